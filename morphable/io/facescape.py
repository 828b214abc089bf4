"""FaceScape's bilinear models (Yang et al. 2020): identity and expression in one tensor, for research only.

Version 1.6 is an `.npz` (zhuhao-nju/facescape, doc/doc_bilinear_model.md and toolkit/src/facescape_bm.py):
`shape_bm_core` (3n, 52, k) with x, y, z of a vertex after one another, contracted with the weights of 52 shapes, the
first of which is the neutral face, and with k identity weights of mean `id_mean` and variance `id_var`; triangles
`fv_indices` and `ft_indices` count from 1, `texcoords` run up, `lm_list_v16` are iBUG-68 from 0. Colours of the face's
front are B, G, R from 0 to 255 (`gen_face_color`). Lengths are mm; x to the subject's left, y up, z out of the face.

Versions 1.0 to 1.3 are a folder (tools/bilinear_model/demo_bilinear.py): `core_847_50_52.npy` (k, 52, 3n),
`factors_id_847_50_52.npy` with the identity weights of 847 people, and the mesh in pickled lists.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from morphable.io.contents import Contents, ModelFileError, Points, Source, split_seams
from morphable.io.layout import Layout, array
from morphable.statistics.multilinear import bilinear_model, identity_distribution

_SHAPES = 52
_CHUNK = 256  # vertices contracted at a time: what a chunk needs in double precision is small beside the model
# The authors' list of the 51 shapes after the neutral one (zhuhao-nju/facescape, issue 52), by ARKit's names for them.
_UNITS = """
    eyeBlinkLeft eyeBlinkRight eyeSquintLeft eyeSquintRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft
    eyeLookInRight eyeWideLeft eyeWideRight eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight browDownLeft
    browDownRight browInnerUp browOuterUpLeft browOuterUpRight jawOpen mouthClose jawLeft jawRight jawForward
    mouthUpperUpLeft mouthUpperUpRight mouthLowerDownLeft mouthLowerDownRight mouthRollUpper mouthRollLower
    mouthSmileLeft mouthSmileRight mouthDimpleLeft mouthDimpleRight mouthStretchLeft mouthStretchRight mouthFrownLeft
    mouthFrownRight mouthPressLeft mouthPressRight mouthPucker mouthFunnel mouthLeft mouthRight mouthShrugLower
    mouthShrugUpper noseSneerLeft noseSneerRight cheekPuff cheekSquintLeft cheekSquintRight
""".split()
_CORE_V1 = re.compile(r"core_(?:\d+_)?(\d+)_52\.npy")
_FARTHEST_MM = 40.0  # that an expression moves a face's vertices on average: 4.4 in the published files


class _Surface(NamedTuple):
    triangles: Int[np.ndarray, "triangle 3"]
    coordinate_triangles: Int[np.ndarray, "triangle 3"]
    coordinates: Float[np.ndarray, "coordinate 2"]  # v up


def _matches(names: frozenset[str]) -> bool:
    return {"shape_bm_core", "fv_indices"} <= names


def _matches_v1(names: frozenset[str]) -> bool:
    return "predef_faces.pkl" in names and any(_CORE_V1.fullmatch(name) for name in names)


@np.errstate(over="ignore", invalid="ignore")  # `checked` refuses what damaged numbers become
def _read(arrays: Mapping[str, Any], source: Source) -> Contents:
    core = _core(arrays.get("shape_bm_core"), "shape_bm_core", source)
    if core.shape[0] % 3 or core.shape[1] != _SHAPES:
        raise ModelFileError(
            f"{source.path}: 'shape_bm_core': got {core.shape}, expected (3 vertices, 52, identities)."
        )
    if not {"id_mean", "id_var"} <= arrays.keys():
        raise ModelFileError(
            f"{source.path}: no 'id_mean' and 'id_var' among {len(arrays)} arrays; expected the distribution of the "
            "identity weights. Take facescape_bm_v1.6_847_50_52_id_front.npz, which has it."
        )
    rank = core.shape[2]
    mean = array(arrays, "id_mean", source, (rank,))
    variances = array(arrays, "id_var", source, (rank,))
    if not (variances >= 0).all():
        raise ModelFileError(f"{source.path}: 'id_var': got {variances.min():.3g}, expected variances of 0 or more.")
    surface = _Surface(
        array(arrays, "fv_indices", source, (None, 3), "i") - 1,
        array(arrays, "ft_indices", source, (None, 3), "i") - 1,
        array(arrays, "texcoords", source, (None, 2)),
    )
    landmarks = array(arrays, "lm_list_v16", source, (68,), "i")
    count = core.shape[0] // 3
    albedo = None
    notes = []
    if {"color_bm_mean", "color_bm_core", "vc_dict_front", "v_indices_front"} <= arrays.keys():
        # The weights of colours are factors of the same people as those of shapes, whose variance is all but one's.
        deviation = float(np.sqrt(np.median(variances)))
        albedo = _albedo(arrays, count, deviation, source)
        notes.append("colours cover the front of the face, with its light; elsewhere their mean")
    masks = {}
    if "v_indices_front" in arrays:
        front = array(arrays, "v_indices_front", source, (None,), "i")
        _within(front, count, "v_indices_front", source)
        masks["face"] = np.zeros(count, np.float32)
        masks["face"][front] = 1.0
    return _contents(core, mean, np.diag(np.sqrt(variances)), surface, landmarks, albedo, masks, notes, source)


@np.errstate(over="ignore", invalid="ignore")  # `checked` refuses what damaged numbers become
def _read_v1(folder: Mapping[str, Any], source: Source) -> Contents:
    found = {n: int(m[1]) for n in folder if (m := _CORE_V1.fullmatch(n))}
    name = min(found, key=lambda n: found[n])  # the smaller one, if the folder has both
    stored = _core(folder[name], name, source)
    core = stored.transpose(2, 1, 0)
    if core.shape[0] % 3 or core.shape[1] != _SHAPES:
        raise ModelFileError(f"{source.path}: {name!r}: got {stored.shape}, expected (identities, 52, 3 vertices).")
    factors = name.replace("core_", "factors_id_")
    people = array(folder, factors, source, (None, core.shape[2]))
    if len(people) < 2 or not np.isfinite(people).all():
        raise ModelFileError(f"{source.path}: {factors!r}: expected the weights of two people or more. Is it complete?")
    mean, factor = identity_distribution(people)
    return _contents(core, mean, factor, _pickled_surface(folder, source), None, None, {}, [], source)


def _contents(core, mean, factor, surface: _Surface, landmarks, albedo, masks, notes, source: Source) -> Contents:
    count = core.shape[0] // 3
    _within(surface.triangles, count, "triangles", source)
    _within(surface.coordinate_triangles, len(surface.coordinates), "texture triangles", source)
    if len(surface.triangles) != len(surface.coordinate_triangles):
        raise ModelFileError(
            f"{source.path}: {len(surface.triangles)} triangles and {len(surface.coordinate_triangles)} of the texture,"
            " expected as many. Is the file damaged?"
        )
    places = surface.coordinates * [1.0, -1.0] + [0.0, 1.0]
    triangles, uv, origin = split_seams(surface.triangles, places, surface.coordinate_triangles, count)
    shape = _bilinear(core, mean, factor, source)
    return Contents(
        name="FaceScape",
        format="facescape",
        licence="FaceScape licence (Nanjing University): non-commercial research",
        licence_class="non-commercial",
        mean=shape.mean[origin],
        identity=shape.identity[origin],
        triangles=triangles,
        unit_mm=1.0,
        expression=shape.expression[origin],
        expression_names=tuple(_UNITS),
        interaction=shape.interaction[origin],
        albedo_mean=None if albedo is None else albedo[0][origin],
        albedo_modes=None if albedo is None else albedo[1][origin],
        uv=uv,
        landmarks=None if landmarks is None else Points.at_vertices(dict(enumerate(landmarks.tolist()))),
        masks={name: mask[origin] for name, mask in masks.items()},
        sources=("Yang et al. 2020, FaceScape: A Large-Scale High Quality 3D Face Dataset, CVPR",),
        notes=("LipsTogether is read as mouthClose, LipsUpperClose and LipsLowerClose as mouthRoll", *notes),
    )


class _Shape(NamedTuple):
    mean: Float[np.ndarray, "vertex 3"]
    identity: Float[np.ndarray, "vertex 3 rank"]
    expression: Float[np.ndarray, "vertex 3 unit"]
    interaction: Float[np.ndarray, "vertex 3 unit rank"]


def _bilinear(core: np.ndarray, mean: np.ndarray, factor: np.ndarray, source: Source) -> _Shape:
    """Σ C_ij a_i b_j with a = mean + factor c, and b the neutral's unit vector moved by w towards the others'."""
    count, rank = core.shape[0] // 3, factor.shape[1]
    units = _SHAPES - 1
    out = _Shape(
        np.zeros((count, 3), np.float32),
        np.zeros((count, 3, rank), np.float32),
        np.zeros((count, 3, units), np.float32),
        np.zeros((count, 3, units, rank), np.float32),
    )
    weights = np.eye(_SHAPES)
    for start in range(0, count, _CHUNK):
        piece = core[3 * start : 3 * (start + _CHUNK)].reshape(-1, 3, _SHAPES, core.shape[2])
        piece = np.ascontiguousarray(piece.swapaxes(2, 3), np.float64)
        found = bilinear_model(piece, mean, factor, weights[0], weights[1:])
        for whole, part in zip(out, found, strict=True):
            whole[start : start + _CHUNK] = part
    # In the variant `_id_exp` shapes are principal components, too, and the neutral face is none of them.
    farthest = float(np.linalg.norm(out.expression, axis=1).mean(axis=0).max(initial=0.0))
    if not farthest < _FARTHEST_MM:
        raise ModelFileError(
            f"{source.path}: the shapes are {farthest:.3g} mm from the first on average, expected a neutral face and "
            "expressions of it. Take facescape_bm_v1.6_847_50_52_id_front.npz rather than the model with PCA of "
            "expressions (..._id_exp.npz)."
        )
    return out


def _core(values: Any, name: str, source: Source) -> np.ndarray:
    """The core tensor in its own precision: in double it would take gigabytes."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != 3 or not values.size:
        got = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ModelFileError(
            f"{source.path}: {name!r}: got {got}, expected numbers with three axes. Is it FaceScape's?"
        )
    return values


def _within(indices: np.ndarray, below: int, name: str, source: Source):
    if indices.size and not (0 <= indices.min() and indices.max() < below):
        raise ModelFileError(
            f"{source.path}: {name}: got {indices.min()} to {indices.max()} (from 0), expected 0 to {below - 1}."
        )


def _albedo(
    arrays: Mapping[str, Any], count: int, deviation: float, source: Source
) -> tuple[Float[np.ndarray, "vertex 3"], Float[np.ndarray, "vertex 3 mode"]]:
    """Colours from 0 to 1, R G B; what the file does not colour has the mean colour, and does not vary."""
    front = array(arrays, "v_indices_front", source, (None,), "i")
    colour_of = array(arrays, "vc_dict_front", source, (len(front),), "i")  # -1: no colour
    mean = array(arrays, "color_bm_mean", source, (None,))
    modes = array(arrays, "color_bm_core", source, (len(mean), None))
    if len(mean) % 3 or not len(mean):
        raise ModelFileError(
            f"{source.path}: 'color_bm_mean': got {len(mean)} numbers, expected three for each vertex."
        )
    mean, modes = mean.reshape(-1, 3)[:, ::-1] / 255, modes.reshape(-1, 3, modes.shape[1])[:, ::-1] / 255
    coloured = colour_of >= 0
    _within(front, count, "v_indices_front", source)
    _within(colour_of[coloured], len(mean), "vc_dict_front", source)
    all_mean = np.tile(mean.mean(axis=0), (count, 1))
    all_modes = np.zeros((count, 3, modes.shape[2]), np.float32)
    all_mean[front[coloured]] = mean[colour_of[coloured]]
    all_modes[front[coloured]] = deviation * modes[colour_of[coloured]]
    return all_mean, all_modes


def _pickled_surface(folder: Mapping[str, Any], source: Source) -> _Surface:
    """Faces as tuples of vertices, normals, texture coordinates and material, from 1; and the coordinates."""
    faces, places = folder["predef_faces.pkl"], folder.get("predef_texcoords.pkl", ())
    try:
        corners = np.array([[face[0], face[2]] for face in faces]).reshape(-1, 2, 3)
        coordinates = np.array([[float(p[0]), float(p[1])] for p in places]).reshape(-1, 2)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ModelFileError(
            f"{source.path}: predef_faces.pkl and predef_texcoords.pkl: expected lists of triangles (vertices, normals,"
            f" texture coordinates, material) and of pairs, got others ({str(error)[:100]}). Is the folder complete?"
        ) from error
    if corners.dtype.kind != "i":
        raise ModelFileError(f"{source.path}: predef_faces.pkl: got {corners.dtype} for corners, expected integers.")
    return _Surface(corners[:, 0] - 1, corners[:, 1] - 1, coordinates)


LAYOUTS: tuple[Layout, ...] = (
    Layout("facescape", "npz", _matches, _read),
    Layout("facescape-v1", "folder", _matches_v1, _read_v1),
)
