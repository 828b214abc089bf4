"""FaceVerse (Wang et al. 2022), versions 0 to 4: a pickled dictionary in an `.npy`.

LizhenWangT/FaceVerse, model/FaceVerseModel.py (0 to 2) and faceversev3_jittor/faceverse_cuda/FaceVerseModel.py (3);
LizhenWangT/FaceVerse_v4, faceversev4/FaceVerseModel_torch.py (4): `meanshape` (n, 3), `idBase` (3n, k) and `texBase` at
one standard deviation, `exBase` at weight 1 with ARKit's names for the first 52 in `exp_name_list`, `meantex` R, G, B
from 0 to 255, `tri` from 0, eyeballs between the vertices `ver_inds`, which turn about their means.

Versions differ in axes, unit and landmarks, and say none of the first two: version 2 has y down and z into the face and
lengths of its own, 3 and 4 are turned and scaled by their code. So axes and unit are found here from the landmarks: the
eyes are above the mouth, the nose is before them, and outer corners of eyes are about 90 mm apart.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from morphable.basis import GaussianBasis
from morphable.default_model.expressions import ARKIT_NAMES
from morphable.io.contents import Contents, ModelFileError, Points, Source
from morphable.io.layout import Layout, array
from morphable.landmarks import MEDIAPIPE_OF_IBUG
from morphable.rig import Gaze, Rig

_EYES_APART_MM = 90.0  # between outer corners: 89 in ICT-FaceKit's mean, 92 in the Surrey model's
_DECIMAL_UNITS_MM = (1.0, 10.0, 100.0, 1000.0)
_PLAUSIBLE_MM = (75.0, 110.0)  # of that distance, for a unit that is a power of ten
# iBUG-68 points seen in a mirror.
_MIRRORED = np.r_[
    *(np.arange(16, -1, -1), np.arange(26, 16, -1), np.arange(27, 31), np.arange(35, 30, -1)),
    *([45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40], np.arange(54, 47, -1), np.arange(59, 54, -1)),
    *(np.arange(64, 59, -1), np.arange(67, 64, -1)),
]
_EYE_RIGHT, _EYE_LEFT, _NOSE_TIP = 36, 45, 30


def _matches(names: frozenset[str]) -> bool:
    return {"meanshape", "idBase", "exBase", "tri"} <= names


@np.errstate(over="ignore", invalid="ignore")  # `checked` refuses what damaged numbers become
def _read(arrays: Mapping[str, Any], source: Source) -> Contents:
    stored = arrays.get("meanshape")
    if not isinstance(stored, np.ndarray) or not stored.size or stored.size % 3:
        raise ModelFileError(f"{source.path}: 'meanshape': expected x, y, z of each vertex. Is it FaceVerse's?")
    count = stored.size // 3
    mean = array({"meanshape": stored.reshape(-1, 3)}, "meanshape", source, (count, 3))
    identity = _basis(arrays, "idBase", count, source)
    expression = _basis(arrays, "exBase", count, source)
    triangles = array(arrays, "tri", source, (None, 3), "i")
    _within(triangles, count, "tri", source)

    points, mouth, notes = _landmarks(arrays, count, source)
    axes, unit, swapped = _frame(mean, points, mouth, source)
    if swapped:
        points = {landmark: points[m] for landmark, m in enumerate(_MIRRORED.tolist()) if m in points}
    if unit not in _DECIMAL_UNITS_MM:
        notes.append(f"lengths are in units of {unit:.4g} mm, by eyes {_EYES_APART_MM:g} mm apart")
    scale = unit * axes[:, None]
    mean, identity, expression = mean * scale[:, 0], identity * scale, expression * scale
    corners = mean[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    middle = (mean[triangles].min(axis=(0, 1)) + mean[triangles].max(axis=(0, 1))) / 2
    if ((corners.mean(axis=1) - middle) * normals).sum() < 0:
        triangles = triangles[:, ::-1]

    albedo_mean = albedo_modes = None
    if "meantex" in arrays and "texBase" in arrays:
        stored = arrays["meantex"]
        colours = stored.reshape(-1, 3) if isinstance(stored, np.ndarray) and stored.size == 3 * count else stored
        albedo_mean = array({"meantex": colours}, "meantex", source, (count, 3)) / 255
        albedo_modes = _basis(arrays, "texBase", count, source) / 255
    masks = {}
    if "face_mask" in arrays:
        masks["face"] = np.clip(array(arrays, "face_mask", source, (count,)), 0.0, 1.0).astype(np.float32)
    parts, part_names, rig = _eyes(arrays, mean, identity, source)
    names = _names(arrays.get("exp_name_list"), expression.shape[2])
    return Contents(
        name="FaceVerse",
        format="faceverse",
        licence="FaceVerse's repository licence (BSD 2-clause); the scans are for non-commercial research",
        licence_class="unknown",
        mean=mean,
        identity=identity,
        triangles=triangles,
        unit_mm=unit,
        expression=expression,
        expression_names=names,
        albedo_mean=albedo_mean,
        albedo_modes=albedo_modes,
        landmarks=Points.at_vertices(points),
        masks=masks,
        part_of_vertex=parts,
        part_names=part_names,
        rig=rig,
        sources=("Wang et al. 2022, FaceVerse: a Fine-grained and Detail-controllable 3D Face Morphable Model, CVPR",),
        notes=tuple(notes),
    )


def _basis(arrays: Mapping[str, Any], name: str, count: int, source: Source) -> Float[np.ndarray, "vertex 3 mode"]:
    values = arrays.get(name)
    if isinstance(values, np.ndarray) and values.ndim == 3:  # (n, 3, k), as some copies have it
        arrays = {name: values.reshape(-1, values.shape[2])}
    basis = array(arrays, name, source, (3 * count, None))
    return basis.reshape(count, 3, basis.shape[1])


def _within(indices: np.ndarray, below: int, name: str, source: Source):
    if not indices.size or not (0 <= indices.min() and indices.max() < below):
        got = f"{indices.min()} to {indices.max()}" if indices.size else "none"
        raise ModelFileError(f"{source.path}: {name!r}: got {got}, expected 0 to {below - 1}. Is the file damaged?")


def _landmarks(
    arrays: Mapping[str, Any], count: int, source: Source
) -> tuple[dict[int, int], Int[np.ndarray, " point"], list[str]]:
    """Vertices of iBUG-68 points, those of the mouth whatever their order, and where they are from.

    Version 4 has all 68 (and two pupils), version 3 MediaPipe's 478 points, earlier ones the 66 of OpenSeeFace, whose
    first 48 are iBUG's.
    """
    for name in ("keypoints_68", "keypoints_mediapipe", "mediapipe_keypoints", "keypoints"):
        values = arrays.get(name)
        if not isinstance(values, np.ndarray):
            continue
        ids = array({name: values.ravel()}, name, source, (None,), "i")
        if name == "keypoints" and len(ids) == 66:
            ids, kept, note = ids, 48, "landmarks of the mouth, which are in another order"
        elif name in ("keypoints_68", "keypoints") and len(ids) in (68, 70):
            ids, kept, note = ids[:68], 68, ""
        elif len(ids) == 478:
            ids, kept, note = ids[MEDIAPIPE_OF_IBUG], 68, ""
        else:
            continue
        _within(ids, count, name, source)
        return dict(enumerate(ids[:kept].tolist())), ids[48:], [f"left out: {note}"] if note else []
    raise ModelFileError(
        f"{source.path}: expected landmarks ('keypoints_68', 'mediapipe_keypoints' or 'keypoints' of 66), which "
        "tell the model's axes. Is it a FaceVerse model of version 0 to 4?"
    )


def _frame(
    mean: np.ndarray, points: Mapping[int, int], mouth: np.ndarray, source: Source
) -> tuple[Float[np.ndarray, "3"], float, bool]:
    """Signs of the axes, mm for the file's unit, and whether landmarks are named by the other side."""
    right, left = mean[points[_EYE_RIGHT]], mean[points[_EYE_LEFT]]
    up = float(((right + left) / 2 - mean[mouth].mean(axis=0))[1])
    forward = float((mean[points[_NOSE_TIP]] - (right + left) / 2)[2])
    apart = float(np.linalg.norm(left - right))
    if not (np.isfinite([up, forward, apart]).all() and up and forward and apart > 0):
        raise ModelFileError(
            f"{source.path}: landmarks tell no axes: eyes {up:.3g} above the mouth and {apart:.3g} apart, the nose "
            f"{forward:.3g} before them. Is the file damaged?"
        )
    signs = np.array([0.0, np.sign(up), np.sign(forward)])
    signs[0] = signs[1] * signs[2]  # a rotation: no version is a mirror image
    swapped = bool(signs[0] * (left - right)[0] < 0)
    low, high = _PLAUSIBLE_MM
    unit = next((u for u in _DECIMAL_UNITS_MM if low < u * apart < high), _EYES_APART_MM / apart)
    return signs, unit, swapped


def _eyes(
    arrays: Mapping[str, Any], mean: np.ndarray, identity: np.ndarray, source: Source
) -> tuple[Int[np.ndarray, " vertex"] | None, tuple[str, ...], Rig | None]:
    """Parts and a rig of versions with eyeballs: skin, the eyes, and what is inside the mouth behind them."""
    bounds = arrays.get("ver_inds")
    if bounds is None:
        return None, (), None
    count = len(mean)
    ends = array({"ver_inds": np.asarray(bounds).ravel()}, "ver_inds", source, (None,), "i")
    if len(ends) < 3 or not (0 < ends[0] < ends[1] < ends[2] <= count):
        raise ModelFileError(
            f"{source.path}: 'ver_inds': got {ends[:6].tolist()}, expected where face, left and right eye end, up to "
            f"{count}. Is the file damaged?"
        )
    first, second = np.arange(ends[0], ends[1]), np.arange(ends[1], ends[2])
    left, right = (first, second) if mean[first, 0].mean() > mean[second, 0].mean() else (second, first)
    names = ("skin", "eye_left", "eye_right", "mouth")
    parts = np.zeros(count, np.int32)
    parts[left], parts[right], parts[ends[2] :] = 1, 2, 3
    weights = np.zeros((count, 3), np.float32)
    weights[left, 1] = weights[right, 2] = 1.0
    weights[:, 0] = 1.0 - weights[:, 1:].sum(axis=1)
    groups = (np.arange(ends[0]), left, right)
    rig = Rig(
        joints=GaussianBasis(
            jnp.asarray(np.stack([mean[g].mean(axis=0) for g in groups]), jnp.float32),
            jnp.asarray(np.stack([identity[g].mean(axis=0) for g in groups]), jnp.float32),
        ),
        weights=jnp.asarray(weights),
        gaze=Gaze(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32), jnp.zeros((0, 3))),
        names=("head", "eye_left", "eye_right"),
        parents=(-1, 0, 0),
    )
    return parts, names if ends[2] < count else names[:3], rig


def _names(found: Any, count: int) -> tuple[str, ...]:
    """ARKit's names for the units that the file names so, and numbers for those that it does not name."""
    values = found.ravel().tolist() if isinstance(found, np.ndarray) else found
    listed = [v for v in values if isinstance(v, str)] if isinstance(values, list | tuple) else []
    names: list[str] = []
    for k in range(count):
        name = listed[k] if k < len(listed) else ""
        base, _, side = name.rpartition("_")
        sided = base + {"L": "Left", "R": "Right"}.get(side, "")
        name = sided if sided in ARKIT_NAMES else name
        names.append(name if name and name not in names else f"expression_{k:03d}")
    return tuple(names)


LAYOUTS: tuple[Layout, ...] = (Layout("faceverse", "pickle", _matches, _read),)
