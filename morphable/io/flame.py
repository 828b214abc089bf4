"""FLAME (Li et al. 2017, "Learning a model of facial shape and expression from 4D scans"): files and side files.

Read are the releases of 2017, 2019, 2020 and 2023 and FLAME 2023 Open, as `.pkl` (generic, female and male) or as an
`.npz` with the same arrays. The layout is SMPL's: `v_template` (V, 3), `f` (F, 3), `shapedirs` (V, 3, 400), `posedirs`
(V, 3, 36), `J_regressor` (5, V), `kintree_table` (2, 5), `weights` (V, 5); V = 5023, in metres, in our axes. Of the 400
directions the first 300 are identity and the last 100 expression, each for one standard deviation. Reduced files with
20 have 10 and 10 (github.com/vchoutas/smplx, body_models.py, class FLAME).

Beside the model these files are read when they are there, under the names that they are distributed with:

* `FLAME_masks.pkl`: vertices of regions by name;
* `landmark_embedding.npy` (DECA) or `landmark_embedding_with_eyes.npy` (VHAP): the 68 landmarks; else
  `flame_static_embedding.pkl`: the 51 without the jaw, and `flame_dynamic_embedding.npy`: the jaw's 17 at each yaw;
* `albedoModel2020_FLAME_albedoPart.npz` (AlbedoMM), else `FLAME_albedo_from_BFM.npz` (made by BFM_to_FLAME), else
  `FLAME_texture.npz`: an albedo space as maps, sampled at the vertices;
* `head_template.obj` (DECA) or `head_template_mesh.obj` (VHAP): texture coordinates.

With texture coordinates, vertices on seams are doubled behind the file's own (`split_seams`).
"""

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from morphable.basis import GaussianBasis
from morphable.io.archive import member_names, npy_header, read_member, read_one
from morphable.io.contents import Contents, ModelFileError, Points, Source, allowance, split_seams
from morphable.io.layout import Layout, array
from morphable.io.pickles import read_pickle
from morphable.rig import Gaze, Rig

JOINTS = ("root", "neck", "jaw", "eye_left", "eye_right")  # FLAME's global, neck, jaw, left and right eye
_KEYS = frozenset("v_template f shapedirs posedirs J_regressor kintree_table weights".split())
_IDENTITY_OF = {400: 300, 20: 10}  # identity directions among all
_LARGEST = 1e4  # of any entry, whatever it means
_PAPER = "FLAME: Li, Bolkart, Black, Li, Romero, SIGGRAPH Asia 2017; Max Planck Institute for Intelligent Systems"
_ACADEMIC = "FLAME licence of the Max Planck Society, non-commercial research"
_OPEN = re.compile(r"2023[ _-]?open", re.IGNORECASE)


def matches(names: frozenset[str]) -> bool:
    """FLAME's arrays; those of SMPL's body models have the same names, and are told apart by their joints in `read`."""
    return names >= _KEYS


def read(arrays: Mapping[str, Any], source: Source) -> Contents:
    """FLAME from its arrays, with what lies beside the file; raises ModelFileError."""
    mean = _numbers(arrays, "v_template", source, (None, 3)) * 1000
    count = len(mean)
    triangles = _below(array(arrays, "f", source, (None, 3), "i"), count, "triangles 'f'", source.path)
    tree = array(arrays, "kintree_table", source, (2, None), "i")
    if tree.shape[1] != len(JOINTS):
        raise ModelFileError(
            f"{source.path}: got a model with {tree.shape[1]} joints, expected FLAME's {len(JOINTS)}. Body and hand "
            "models (SMPL, SMPL-X, MANO) have the same layout; facefit reads heads."
        )
    directions = _numbers(arrays, "shapedirs", source, (count, 3, None)) * 1000
    if directions.shape[2] not in _IDENTITY_OF:
        raise ModelFileError(
            f"{source.path}: 'shapedirs' has {directions.shape[2]} directions, expected 400 (300 of identity, 100 of "
            "expression) or 20 (10 and 10). Which are expression cannot be told: use the file as published."
        )
    identity, expression = np.split(directions, [_IDENTITY_OF[directions.shape[2]]], axis=2)
    weights = _numbers(arrays, "weights", source, (count, len(JOINTS)))
    if np.abs(weights.sum(axis=1) - 1).max(initial=0.0) > 0.01:
        raise ModelFileError(f"{source.path}: 'weights' do not sum to 1 at each vertex. Is the file damaged?")
    regressor = _numbers(arrays, "J_regressor", source, (len(JOINTS), count))
    correctives = _numbers(arrays, "posedirs", source, (count, 3, 9 * (len(JOINTS) - 1))) * 1000

    def of_joints(values: np.ndarray) -> jnp.ndarray:
        return jnp.asarray(np.tensordot(regressor, values, axes=1), jnp.float32)

    rig = Rig(
        joints=GaussianBasis(of_joints(mean), of_joints(identity)),
        weights=jnp.asarray(weights, jnp.float32),
        gaze=Gaze(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32), jnp.zeros((0, 3))),
        names=JOINTS,
        parents=_parents(tree[0], source),
        joints_expression=of_joints(expression),
        correctives=jnp.asarray(correctives, jnp.float32),
    )
    release, licence, licence_class, notes = _release(source.path)
    contents = Contents(
        name=release,
        format="flame",
        licence=licence,
        licence_class=licence_class,
        mean=mean.astype(np.float32),
        identity=identity.astype(np.float32),
        triangles=triangles,
        unit_mm=1000.0,
        expression=expression.astype(np.float32),
        expression_names=tuple(f"expression_{k}" for k in range(expression.shape[2])),
        expression_kind="components",
        masks=_masks(source.path.parent, count),
        landmarks=_landmarks(source.path.parent, triangles),
        part_of_vertex=_parts(triangles, weights),
        part_names=("skin", "eye_left", "eye_right"),
        rig=rig,
        sources=(_PAPER,),
        notes=notes,
    )
    return _with_texture(contents, source.path.parent)


LAYOUTS = (Layout("flame", "pickle", matches, read), Layout("flame", "npz", matches, read))


def dynamic_contour(
    path: str | Path, triangles: Int[np.ndarray, "triangle 3"]
) -> tuple[Int[np.ndarray, "17 79 3"], Float[np.ndarray, "17 79 3"]]:
    """The paths of the 17 jaw landmarks over the cheeks, from `flame_dynamic_embedding.npy`: corners and weights.

    Steps are the head's yaw from -39 to 39 degrees, positive where it turns to the subject's left. In the file, rows 0
    to 39 are yaws 0 to -39 degrees and rows 40 to 78 are 1 to 39 (github.com/vchoutas/smplx, lbs.py,
    `find_dynamic_lmk_idx_and_bcoords`, whose angle is minus the neck's rotation about y).
    """
    path = Path(path)
    vertices, weights = _embedded(read_pickle(path), "lmk_face_idx", "lmk_b_coords", (79, 17), triangles, path)
    by_yaw = np.r_[np.arange(39, -1, -1), np.arange(40, 79)]
    return vertices[by_yaw].swapaxes(0, 1), weights[by_yaw].swapaxes(0, 1)


def _numbers(arrays: Mapping[str, Any], name: str, source: Source, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array of finite numbers that a head in metres can have."""
    values = array(arrays, name, source, shape)
    if not (np.abs(values) < _LARGEST).all():
        raise ModelFileError(f"{source.path}: {name!r} has values that are no numbers, or huge. Is the file damaged?")
    return values


def _below(ids: np.ndarray, count: int, what: str, path: Path) -> np.ndarray:
    if ids.size and not 0 <= ids.min() <= ids.max() < count:
        raise ModelFileError(
            f"{path}: {what} are {ids.min()} to {ids.max()}, expected 0 to {count - 1}. Is it damaged?"
        )
    return ids.astype(np.int32)


def _parents(row: Int[np.ndarray, " joint"], source: Source) -> tuple[int, ...]:
    """The tree's parents; the root's is 2³² - 1 in the files."""
    parents = (-1, *(int(parent) for parent in row[1:]))
    if not all(0 <= parent < joint for joint, parent in enumerate(parents) if joint):
        raise ModelFileError(
            f"{source.path}: 'kintree_table' has parents {parents}, expected each before its child. Is it damaged?"
        )
    return parents


def _release(path: Path) -> tuple[str, str, str, tuple[str, ...]]:
    """Name, licence, its class and notes. The arrays do not say which release they are: file and folder names do."""
    words = f"{path.parent.name}/{path.stem}"
    notes = []
    year = re.search("20(17|19|20|23)", path.stem) or re.search("20(17|19|20|23)", path.parent.name)
    name = f"FLAME {year[0]}" if year else "FLAME"
    licence, licence_class = _ACADEMIC, "non-commercial"
    if _OPEN.search(words):
        name, licence, licence_class = "FLAME 2023 Open", "CC-BY-4.0", "attribution"
        notes.append("taken for FLAME 2023 Open (CC-BY-4.0) by its file name, as its arrays do not tell it")
    else:
        notes.append("licence by file name: the open release is distributed as flame2023_Open.pkl")
    for variant in ("female", "male"):
        if re.search(rf"(^|[^a-z]){variant}", path.stem.lower()):
            name += f", {variant}"
    if "no_jaw" in path.stem.lower():
        notes.append("the release without jaw rotation: its expression components open the mouth")
    return name, licence, licence_class, tuple(notes)


def _parts(triangles: Int[np.ndarray, "triangle 3"], weights: Float[np.ndarray, "vertex joint"]) -> np.ndarray:
    """Part of each vertex: 1 and 2 for the connected surfaces that follow an eye's joint, 0 for all others.

    In the published topology these are vertices 3931 to 4476 and 4477 to 5022.
    """
    count = len(weights)
    ends = (np.r_[triangles[:, 0], triangles[:, 1]], np.r_[triangles[:, 1], triangles[:, 2]])
    number, surface = connected_components(coo_matrix((np.ones(len(ends[0])), ends), shape=(count, count)), False)
    size = np.bincount(surface, minlength=number)
    parts = np.zeros(count, np.int32)
    for part, joint in ((1, JOINTS.index("eye_left")), (2, JOINTS.index("eye_right"))):
        follows = np.bincount(surface, weights[:, joint], minlength=number) > 0.5 * size
        parts[follows[surface]] = part
    return parts


_REGIONS = {"face": ("face",), "lips": ("lips",), "scalp": ("scalp",), "ears": ("left_ear", "right_ear")}


def _masks(folder: Path, count: int) -> dict[str, np.ndarray]:
    """Our masks from FLAME_masks.pkl, whose values are vertex ids; other regions of it have none of ours."""
    path = folder / "FLAME_masks.pkl"
    if not path.exists():
        return {}
    regions, masks = read_pickle(path), {}
    beside = Source(path, "")
    for name, theirs in _REGIONS.items():
        masks[name] = np.zeros(count, np.float32)
        for region in theirs:
            ids = array(regions, region, beside, (None,), "i")
            masks[name][_below(ids, count, f"vertices of {region!r}", path)] = 1
    return masks


def _embedded(
    embedding: dict, faces: str, weights: str, shape: tuple, triangles: Int[np.ndarray, "triangle 3"], path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Corners and weights of points that a file gives by triangles and barycentric coordinates."""
    beside = Source(path, "")
    chosen = array(embedding, faces, beside, shape, "i")
    coordinates = _numbers(embedding, weights, beside, (*chosen.shape, 3))
    return triangles[_below(chosen, len(triangles), f"triangles {faces!r}", path)], coordinates.astype(np.float32)


_EMBEDDINGS = ("landmark_embedding.npy", "landmark_embedding_with_eyes.npy", "flame_static_embedding.pkl")


def _landmarks(folder: Path, triangles: Int[np.ndarray, "triangle 3"]) -> Points | None:
    corners, weights = np.zeros((68, 3), np.int32), np.full((68, 3), np.nan, np.float32)
    path = next((folder / name for name in _EMBEDDINGS if (folder / name).exists()), None)
    if path is None:
        return None
    embedding = read_pickle(path)
    if "full_lmk_faces_idx" in embedding:
        found, shares = _embedded(embedding, "full_lmk_faces_idx", "full_lmk_bary_coords", (1, None), triangles, path)
        if found.shape[1] < 68:
            raise ModelFileError(f"{path}: got {found.shape[1]} landmarks, expected 68 or more.")
        return Points(found[0, :68], shares[0, :68])  # VHAP's file has the eyes' centres behind them
    deca = "static_lmk_faces_idx" in embedding
    names = ("static_lmk_faces_idx", "static_lmk_bary_coords") if deca else ("lmk_face_idx", "lmk_b_coords")
    corners[17:], weights[17:] = _embedded(embedding, *names, (51,), triangles, path)
    path = folder / "flame_dynamic_embedding.npy"
    if path.exists():
        along, shares = dynamic_contour(path, triangles)
        corners[:17], weights[:17] = along[:, 39], shares[:, 39]  # of the frontal head
    return Points(corners, weights)


class _Texture(NamedTuple):
    """An albedo space distributed for FLAME: maps of 512 x 512 texels, blue, green, red, with modes per deviation."""

    file: str
    mean: str
    modes: str
    encoded: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # of mean and modes: sRGB, 0 to 1
    credit: str


def _as_bytes(mean: np.ndarray, modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return mean / 255, modes / 255


def _as_is(mean: np.ndarray, modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return mean, modes


def _from_linear(mean: np.ndarray, modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sRGB curve at the mean, and its slope there: the space is Gaussian in linear light, ours in encoded."""
    light = np.clip(mean, 0.0, 1.0)
    curved = np.maximum(light, 0.0031308)
    encoded = np.where(light > 0.0031308, 1.055 * curved ** (1 / 2.4) - 0.055, 12.92 * light)
    slope = np.where(light > 0.0031308, 1.055 / 2.4 * curved ** (1 / 2.4 - 1), 12.92)
    return encoded, modes * slope[..., None]


# Channels and units: github.com/TimoBolkart/TF_FLAME, sample_texture.py (written by OpenCV, so blue first; coefficients
# drawn from N(0, 1); MU and PC of AlbedoMM are linear) and github.com/TimoBolkart/BFM_to_FLAME, col_to_tex.py.
_TEXTURES = (
    _Texture(
        "albedoModel2020_FLAME_albedoPart.npz", "MU", "PC", _from_linear, "albedo: AlbedoMM, Smith et al., CVPR 2020"
    ),
    _Texture("FLAME_albedo_from_BFM.npz", "MU", "PC", _as_is, "albedo: Basel Face Model 2017 by BFM_to_FLAME"),
    _Texture("FLAME_texture.npz", "mean", "tex_dir", _as_bytes, "albedo: FLAME texture space, CC-BY-NC-SA-4.0"),
)
_TEMPLATES = ("head_template.obj", "head_template_mesh.obj")


def _with_texture(contents: Contents, folder: Path) -> Contents:
    """The contents with texture coordinates and albedo, if files with them lie in the folder."""
    texture = next((t for t in _TEXTURES if (folder / t.file).exists()), None)
    coordinates = _coordinates(folder, contents.triangles)
    if coordinates is None:
        if texture is None:
            return contents
        note = (
            f"{texture.file} left out: no texture coordinates beside it, neither FLAME_texture.npz nor {_TEMPLATES[0]}"
        )
        return replace(contents, notes=(*contents.notes, note))
    triangles, uv, origin = split_seams(contents.triangles, *coordinates, len(contents.mean))
    c, rig = contents, contents.rig
    assert c.expression is not None and c.part_of_vertex is not None and rig is not None and rig.correctives is not None
    contents = replace(
        c,
        triangles=triangles,
        uv=uv,
        mean=c.mean[origin],
        identity=c.identity[origin],
        expression=c.expression[origin],
        masks={name: mask[origin] for name, mask in c.masks.items()},
        part_of_vertex=c.part_of_vertex[origin],
        rig=Rig(
            joints=rig.joints,
            weights=rig.weights[origin],
            gaze=rig.gaze,
            names=rig.names,
            parents=rig.parents,
            joints_expression=rig.joints_expression,
            correctives=rig.correctives[origin],
        ),
    )
    if texture is None:
        return contents
    path = folder / texture.file
    mean, modes = (_sampled(path, name, uv)[:, ::-1] for name in (texture.mean, texture.modes))
    mean, modes = texture.encoded(mean[..., 0], modes)
    notes = contents.notes
    if texture.encoded is _from_linear:
        notes += ("albedo modes: linear-light modes at the slope of the sRGB curve; specular albedo left out",)
    return replace(
        contents,
        albedo_mean=mean.astype(np.float32),
        albedo_modes=modes.astype(np.float32),
        licence=f"{contents.licence}; {texture.credit}, non-commercial research",
        licence_class="non-commercial",  # of every texture space for FLAME, whatever the shapes' licence
        sources=(*contents.sources, texture.credit),
        notes=notes,
    )


def _coordinates(folder: Path, triangles: Int[np.ndarray, "triangle 3"]) -> tuple[np.ndarray, np.ndarray] | None:
    """Texture coordinates with v down, and their triangles, from the first file that has them."""
    for path in (folder / texture.file for texture in _TEXTURES):
        if path.exists() and {"vt", "ft"} <= member_names(path):
            found = {name: read_one(path, name) for name in ("vt", "ft")}
            beside = Source(path, "")
            uv = array(found, "vt", beside, (None, 2))
            return _v_down(uv, array(found, "ft", beside, (len(triangles), 3), "i"), path)
    for path in (folder / name for name in _TEMPLATES):
        if path.exists():
            return _obj_coordinates(path, triangles)
    return None


def _v_down(uv: np.ndarray, corners: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not np.isfinite(uv).all() or (uv.size and (uv.min() < -1 or uv.max() > 2)):
        raise ModelFileError(f"{path}: texture coordinates from {uv.min()} to {uv.max()}, expected 0 to 1.")
    corners = _below(corners, len(uv), "corners' texture coordinates", path)
    return np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1), corners


def _obj_coordinates(path: Path, triangles: Int[np.ndarray, "triangle 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates from a Wavefront OBJ whose triangles are the model's, in its order."""
    places, corners = [], []
    try:
        for line in path.read_text("ascii", errors="replace").splitlines():
            word, *rest = line.split() or [""]
            if word == "vt":
                places.append([float(x) for x in rest[:2]])
            elif word == "f":
                corners.append([[int(x) for x in corner.split("/")[:2]] for corner in rest])
        uv, indices = np.array(places, np.float64).reshape(-1, 2), np.array(corners, np.int64).reshape(-1, 3, 2) - 1
    except (ValueError, OverflowError, OSError) as error:
        raise ModelFileError(
            f"{path}: not a mesh of triangles with texture coordinates ({error}); expected FLAME's template."
        ) from error
    if not np.array_equal(indices[..., 0], triangles):
        raise ModelFileError(f"{path}: its triangles are not the model's. Is it another mesh? Move it elsewhere.")
    return _v_down(uv, indices[..., 1], path)


def _sampled(path: Path, name: str, uv: Float[np.ndarray, "vertex 2"]) -> Float[np.ndarray, "vertex 3 mode"]:
    """A map, or a map for each mode, at texture coordinates: bilinear, row by row, as the modes take a gigabyte.

    Maps are (height, width, 3) and (height, width, 3, mode), or square and flat, (texel * 3) and (texel * 3, mode).
    """

    def sample(file: io.BufferedIOBase, size: int) -> np.ndarray:
        header, fortran, dtype = npy_header(file, f"{path}: {name}")
        shape = list(header)
        if dtype.kind not in "fiu" or not 1 <= len(shape) <= 4 or min(shape) < 1:
            raise ModelFileError(f"{path}: {name!r} is {dtype} of shape {shape}, expected maps of three channels.")
        if math.prod(shape) * dtype.itemsize > size:
            raise ModelFileError(f"{path}: {name!r} of shape {shape} is cut off. Is the file complete?")
        if len(shape) < 3:
            side = round((shape[0] / 3) ** 0.5)
            height, width, modes = side, side, shape[1] if len(shape) == 2 else 1
            fits = shape[0] == 3 * side * side
        else:
            height, width, modes = shape[0], shape[1], shape[3] if len(shape) == 4 else 1
            fits = shape[2] == 3
        if not fits or len(uv) * modes * 24 > allowance(size):
            raise ModelFileError(f"{path}: {name!r} has shape {shape}, expected maps of three channels.")
        x, y = (np.clip(uv[:, k] * texels - 0.5, 0, texels - 1) for k, texels in ((0, width), (1, height)))
        left, above = np.floor(x).astype(int), np.floor(y).astype(int)
        right, below = np.minimum(left + 1, width - 1), np.minimum(above + 1, height - 1)
        across, down = (x - left)[:, None], (y - above)[:, None]
        values = np.zeros((len(uv), 3 * modes))

        def rows() -> Iterator[np.ndarray]:
            if fortran:
                yield from np.frombuffer(file.read(), dtype).reshape(shape, order="F").reshape(height, width, -1)
            else:
                for _ in range(height):
                    text = file.read(width * 3 * modes * dtype.itemsize)
                    yield np.frombuffer(text, dtype).reshape(width, 3 * modes)

        for number, row in enumerate(rows()):
            for at, share in ((above, 1 - down), (below, down)):
                here = np.flatnonzero(at == number)
                values[here] += share[here] * ((1 - across[here]) * row[left[here]] + across[here] * row[right[here]])
        if not np.isfinite(values).all():
            raise ModelFileError(f"{path}: {name!r} has values that are no numbers. Is the file damaged?")
        return values.reshape(len(uv), 3, modes)

    return read_member(path, name, sample)
