"""ICT-FaceKit's light model (Li et al. 2020), published as a folder `FaceXModel` of OBJ meshes in one vertex order.

github.com/ICT-VGL/ICT-FaceKit: `generic_neutral_mesh.obj` is the mean, `identityNNN.obj` the mean at one standard
deviation of each mode (Scripts/ict_face_model.py draws their weights from N(0, 1)), every other OBJ an expression at
weight 1 (README, "Expression Shapes": ARKit's names with _L and _R, browInnerUp and cheekPuff in halves), and
`vertex_indices.json` has the 68 landmarks. Lengths are cm; x to the subject's left, y up, z out of the face.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components

from morphable.basis import GaussianBasis
from morphable.default_model.expressions import ARKIT_NAMES
from morphable.io.contents import Contents, ModelFileError, Points, Source, split_seams
from morphable.io.layout import Layout
from morphable.io.obj import Obj, Surface
from morphable.io.obj import read_folder as read_folder
from morphable.rig import Gaze, Rig

_NEUTRAL, _INDICES, _LANDMARKS = "generic_neutral_mesh.obj", "vertex_indices.json", "idx_to_landmark_verts"
_IDENTITY = re.compile(r"identity(\d+)\.obj")
_CM = 10.0  # mm
_IN_HALVES = ("browInnerUp", "cheekPuff")

_PARTS = ("skin", "eye_left", "eye_right", "teeth_upper", "teeth_lower", "tongue", "lashes_left", "lashes_right")
_PART_OF_MATERIAL = {
    "M_Face": "skin",
    "M_BackHead": "skin",
    "M_GumsTongue": "tongue",
    "M_Teeth": "teeth_upper",
    "M_ScleraLeft": "eye_left",
    "M_IrisLeft": "eye_left",
    "M_ScleraRight": "eye_right",
    "M_IrisRight": "eye_right",
    "M_EyeLashes": "lashes_left",
}
# Films and shadow catchers before the eyes, for a renderer with transparency: opaque, they would hide the eyes.
_TRANSPARENT = ("M_LacrimalFluid", "M_EyeBlend", "M_EyeOcclusion")
# README, "Face Model Topology" and "Face Area Details": the vertices, and which of them are face and inner skin.
_PUBLISHED, _NARROW_FACE, _INNER = 26719, slice(0, 6706), slice(11248, 14062)
# The kit's texture coordinates are in a map for each material; here all share one, the face in a square of this size
# and the others along the right and the lower border.
_FACE_SIZE, _SMALL_SIZE = 0.8, 0.2
_CELLS = [(0.8, 0.2 * k) for k in range(5)] + [(0.2 * k, 0.8) for k in range(4)]

_GAZE = re.compile(r"eyeLook(Up|Down|In|Out)(Left|Right)")
_TURNED = np.deg2rad(2.0)  # an eyeball that turns less than this in a gaze is one that was left as it is


def _matches(names: frozenset[str]) -> bool:
    return _NEUTRAL in names


@np.errstate(over="ignore", invalid="ignore")  # `checked` refuses what damaged numbers become
def _read(folder: Mapping[str, Any], source: Source) -> Contents:
    neutral = _mesh(folder, _NEUTRAL, source)
    vertices, surface = neutral.vertices, neutral.surface
    count = len(vertices)
    modes = sorted((name for name in folder if _IDENTITY.fullmatch(name)), key=lambda n: int(n[8:-4]))
    if not modes:
        raise ModelFileError(
            f"{source.path}: no identity000.obj, identity001.obj, ... among {len(folder)} files; expected the folder "
            "FaceXModel of ICT-FaceKit. Is it complete?"
        )
    identity = _displacements(folder, modes, vertices, source)
    stems = sorted(n[:-4] for n in folder if n.endswith(".obj") and n != _NEUTRAL and not _IDENTITY.fullmatch(n))
    shapes = _displacements(folder, [f"{stem}.obj" for stem in stems], vertices, source)
    names, expression = _units(stems, shapes)

    drawn = ~np.isin(
        surface.material_of_triangle, [surface.materials.index(m) for m in _TRANSPARENT if m in surface.materials]
    )
    surface = surface._replace(
        triangles=surface.triangles[drawn],
        coordinate_triangles=None if surface.coordinate_triangles is None else surface.coordinate_triangles[drawn],
        material_of_triangle=surface.material_of_triangle[drawn],
    )
    parts = _parts(surface, vertices)
    rig, names_turning = _rig(parts, vertices, identity, names, expression)
    notes = [f"{len(modes)} identities and {len(stems)} expression meshes of the kit's 100 and 53"]
    if not drawn.all():
        notes.append(f"left out: {int((~drawn).sum())} triangles of tear fluid and shadow before the eyes")
    if rig is not None and any(_GAZE.fullmatch(n) for n in names) and not names_turning:
        notes.append("the eyeLook shapes move the lids only; nothing turns the eyes")
    masks = {}
    if count == _PUBLISHED:
        masks = {"face": np.zeros(count, np.float32), "interior": np.zeros(count, np.float32)}
        masks["face"][_NARROW_FACE], masks["interior"][_INNER] = 1.0, 1.0

    triangles, uv, origin = surface.triangles, None, np.arange(count)
    if surface.coordinate_triangles is not None:
        places, corners = _one_map(surface)
        triangles, uv, origin = split_seams(triangles, places, corners, count)
        notes.append("texture coordinates of all materials share one map: the kit's own textures do not fit it")
    if rig is not None:
        weights = jnp.asarray(np.asarray(rig.weights)[origin])
        rig = Rig(rig.joints, weights, rig.gaze, rig.names, rig.parents)

    def placed(values: np.ndarray) -> np.ndarray:
        return (_CM * values[origin]).astype(np.float32)

    return Contents(
        name="ICT-FaceKit Light",
        format="ict",
        licence="MIT, USC Institute for Creative Technologies",
        licence_class="attribution",
        mean=placed(vertices),
        identity=placed(identity),
        triangles=triangles,
        unit_mm=_CM,
        expression=placed(expression) if names else None,
        expression_names=names,
        uv=uv,
        landmarks=_landmarks(folder, count, source),
        masks={name: mask[origin] for name, mask in masks.items()},
        part_of_vertex=parts[origin],
        part_names=_PARTS,
        rig=rig,
        sources=(
            "Li et al. 2020, Learning Formation of Physically-Based Face Attributes, CVPR; ICT-FaceKit, "
            "Copyright (c) 2020 USC Institute for Creative Technologies, MIT",
        ),
        notes=tuple(notes),
    )


def _mesh(folder: Mapping[str, Any], name: str, source: Source) -> Obj:
    mesh = folder[name]
    if not isinstance(mesh, Obj):
        raise ModelFileError(f"{source.path}: {name!r}: got {type(mesh).__name__}, expected an OBJ mesh.")
    return mesh


def _displacements(folder, files: list[str], neutral: np.ndarray, source: Source) -> Float[np.ndarray, "vertex 3 mesh"]:
    """What each mesh adds to the neutral one, in cm."""
    out = np.zeros((*neutral.shape, len(files)))
    for k, name in enumerate(files):
        vertices = _mesh(folder, name, source).vertices
        if len(vertices) != len(neutral):
            raise ModelFileError(
                f"{source.path}: {name!r}: got {len(vertices)} vertices, expected {len(neutral)} as in {_NEUTRAL}. Is "
                "the file complete, and of this version of the kit?"
            )
        out[..., k] = vertices - neutral
    return out


def _units(stems: list[str], shapes: np.ndarray) -> tuple[tuple[str, ...], Float[np.ndarray, "vertex 3 unit"]]:
    """ARKit's units in ARKit's order, then those that ARKit has not, under the kit's names."""
    found: dict[str, np.ndarray] = {}
    for k, stem in enumerate(stems):
        base, _, side = stem.rpartition("_")
        sided = base + {"L": "Left", "R": "Right"}.get(side, "")
        if base in _IN_HALVES and {f"{base}_L", f"{base}_R"} <= set(stems):
            found[base] = found.get(base, 0.0) + shapes[..., k]
        else:
            found[sided if sided in ARKIT_NAMES else stem] = shapes[..., k]
    names = [n for n in ARKIT_NAMES if n in found] + sorted(n for n in found if n not in ARKIT_NAMES)
    return tuple(names), np.stack([found[n] for n in names], axis=-1) if names else shapes


def _parts(surface: Surface, vertices: np.ndarray) -> Int[np.ndarray, " vertex"]:
    """Part of each vertex by the materials of its triangles; sides and rows of teeth by where they are."""
    of = np.zeros(len(vertices), np.int32)
    part_of = np.array([_PARTS.index(_PART_OF_MATERIAL.get(m, "skin")) for m in surface.materials])
    of[surface.triangles] = part_of[surface.material_of_triangle][:, None]
    lashes = of == _PARTS.index("lashes_left")
    of[lashes & (vertices[:, 0] < 0)] = _PARTS.index("lashes_right")
    teeth = np.flatnonzero(of == _PARTS.index("teeth_upper"))
    if len(teeth):
        edges = np.concatenate([surface.triangles[:, [i, (i + 1) % 3]] for i in range(3)])
        graph = sp.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(vertices),) * 2)
        _, tooth = np.unique(connected_components(graph, directed=False)[1][teeth], return_inverse=True)
        height = np.bincount(tooth, vertices[teeth, 1]) / np.bincount(tooth)
        # Uppers and lowers overlap where incisors cover each other, but whole teeth are 13 mm apart or more.
        lower = (height < (height.min() + height.max()) / 2)[tooth]
        of[teeth[lower]] = _PARTS.index("teeth_lower")
    return of


def _one_map(surface: Surface) -> tuple[Float[np.ndarray, "coordinate 2"], Int[np.ndarray, "triangle 3"]]:
    """Coordinates, v down, in one map for all materials; and each triangle's corners among them."""
    assert surface.coordinate_triangles is not None
    faces = {m for m in range(len(surface.materials)) if surface.materials[m] in ("M_Face", "")}
    others = [m for m in np.unique(surface.material_of_triangle) if m not in faces]
    cell_of = {int(m): 1 + k % len(_CELLS) for k, m in enumerate(others)}
    cell = np.array([cell_of.get(m, 0) for m in range(len(surface.materials))])[surface.material_of_triangle]
    pairs = surface.coordinate_triangles.astype(np.int64) * (1 + len(_CELLS)) + cell[:, None]
    kept, corners = np.unique(pairs, return_inverse=True)
    index, place = kept // (1 + len(_CELLS)), kept % (1 + len(_CELLS))
    u, v = surface.coordinates[index].T
    # Maps lie side by side, 0 to 1, 1 to 2, ...; no triangle is in two of them.
    inside = np.stack([u - np.floor(u), 1.0 - (v - np.floor(v))], axis=1)
    if not others:
        return inside.astype(np.float32), corners.reshape(-1, 3)
    corner = np.array([(0.0, 0.0), *_CELLS])[place]
    size = np.where(place == 0, _FACE_SIZE, _SMALL_SIZE)[:, None]
    return (corner + size * inside).astype(np.float32), corners.reshape(-1, 3)


def _landmarks(folder: Mapping[str, Any], count: int, source: Source) -> Points | None:
    if _INDICES not in folder:
        return None
    table = folder[_INDICES]
    ids = table.get(_LANDMARKS) if isinstance(table, dict) else None
    if not (isinstance(ids, list) and len(ids) == 68 and all(type(i) is int and 0 <= i < count for i in ids)):
        raise ModelFileError(
            f"{source.path}: {_INDICES}: {_LANDMARKS!r}: expected 68 vertices from 0 to {count - 1}, got "
            f"{type(ids).__name__} of {len(ids) if isinstance(ids, list) else 0}. Is it another version's?"
        )
    return Points.at_vertices(dict(enumerate(ids)))


def _rig(
    parts: np.ndarray, vertices: np.ndarray, identity: np.ndarray, names: tuple[str, ...], expression: np.ndarray
) -> tuple[Rig | None, list[str]]:
    """Eyeballs that turn about their centres, mm, if the kit has them; and the units that turn them.

    Where a gaze shape turns an eyeball, the rotation is taken from it and its displacements there become zero, in
    place; the joints' modes are the displacements of the spheres' centres.
    """
    eyes = {side: np.flatnonzero(parts == _PARTS.index(f"eye_{side.lower()}")) for side in ("Left", "Right")}
    if any(len(ids) < 4 for ids in eyes.values()):
        return None, []
    means, modes = [vertices.mean(axis=0)], [identity.mean(axis=0)]
    weights = np.zeros((len(vertices), 3), np.float32)
    for j, ids in enumerate(eyes.values(), start=1):
        centre = _sphere_centre(vertices[ids])
        # To first order a mode moves and scales the ball: d = t + s (x - centre).
        offsets = vertices[ids] - centre
        design = np.concatenate([np.tile(np.eye(3), (len(ids), 1)), offsets.reshape(-1, 1)], axis=1)
        moved = np.linalg.lstsq(design, identity[ids].reshape(3 * len(ids), -1), rcond=None)[0][:3]
        means.append(centre)
        modes.append(moved)
        weights[ids, j] = 1.0
    weights[:, 0] = 1.0 - weights[:, 1:].sum(axis=1)

    units, joints, rotations = [], [], []
    for unit, name in enumerate(names):
        match = _GAZE.fullmatch(name)
        if match is None:
            continue
        joint = 1 + list(eyes).index(match.group(2))
        ids = eyes[match.group(2)]
        turn = _rotation(vertices[ids], vertices[ids] + expression[ids, :, unit])
        if np.linalg.norm(turn) > _TURNED:
            units.append(unit)
            joints.append(joint)
            rotations.append(turn)
            expression[ids, :, unit] = 0.0
    rig = Rig(
        joints=GaussianBasis(
            jnp.asarray(_CM * np.stack(means), jnp.float32), jnp.asarray(_CM * np.stack(modes), jnp.float32)
        ),
        weights=jnp.asarray(weights),
        gaze=Gaze(
            jnp.asarray(units, jnp.int32),
            jnp.asarray(joints, jnp.int32),
            jnp.asarray(np.reshape(rotations, (-1, 3)), jnp.float32),
        ),
        names=("head", "eye_left", "eye_right"),
        parents=(-1, 0, 0),
    )
    return rig, [names[u] for u in units]


def _sphere_centre(points: Float[np.ndarray, "point 3"]) -> Float[np.ndarray, "3"]:
    """Centre of the sphere that fits best algebraically: |x|² = 2 c·x + (r² - |c|²) is linear in c."""
    middle = points.mean(axis=0)
    offsets = points - middle
    design = np.concatenate([2 * offsets, np.ones((len(points), 1))], axis=1)
    return middle + np.linalg.lstsq(design, (offsets**2).sum(axis=1), rcond=None)[0][:3]


def _rotation(before: Float[np.ndarray, "point 3"], after: Float[np.ndarray, "point 3"]) -> Float[np.ndarray, "3"]:
    """Rotation vector (rad) that takes points onto others best (Kabsch 1976)."""
    a, b = before - before.mean(axis=0), after - after.mean(axis=0)
    left, _, right = np.linalg.svd(b.T @ a)
    proper = np.diag([1.0, 1.0, np.linalg.det(left @ right)])
    matrix = left @ proper @ right
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    angle = np.arctan2(np.linalg.norm(axis), np.trace(matrix) - 1.0)
    length = np.linalg.norm(axis)
    return axis * (angle / length) if length > 0 else np.zeros(3)


LAYOUTS: tuple[Layout, ...] = (Layout("ict", "folder", _matches, _read),)
