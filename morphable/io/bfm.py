"""The Basel Face Models and the models made of them: what their files' arrays mean.

* `bfm2009`: `01_MorphableModel.mat`, MATLAB 5, µm. Paysan et al. 2009; eos `share/scripts/convert-bfm2009-to-eos.py`.
* `bfm2017`: `model2017-1_*.h5` and `model2019_*.h5`, statismo 0.9 in HDF5, mm. Gerig et al. 2018; scalismo-faces
  `io/MoMoIO.scala`; eos `share/scripts/convert-bfm2017-to-eos.py`.
* `albedomm`: `albedoModel2020_*.h5`, the same for albedo. Smith et al. 2020; github.com/waps101/AlbedoMM
  `AlbedoMoMoIO.scala`, `CombineModel.scala`, `AlbedoModelBuilder.scala`.
* `deep3d`: `BFM_model_front.mat`, MATLAB 5, dm. Deng et al. 2019; Deep3DFaceRecon_pytorch `util/load_mats.py`,
  `models/bfm.py`.
* `3ddfa`: `bfm_noneck_v3.pkl`, a pickle, µm. Guo et al. 2020; 3DDFA_V2 `bfm/bfm.py`, `TDDFA.py`.

All have our axes, x to the subject's left, y up and z out of the face. The triangles of 2009 run clockwise (eos swaps
them), those of 2017 and 2019 do not, others come both ways: `outward` decides by the surface itself.

The neutral face of the models with expressions is the mean shape alone. Statismo's expression model is N(μ, Σ) with
μ ≠ 0, the mean of the expressions it was made from, whose mouths are a little open: added to the mean shape, as
scalismo and eos do, no coefficients that the prior likes close the mouth (eos #364). It becomes one more component
here, the last one, "expression_mean": at 1 the file's own distribution, at 0 the neutral face.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from morphable.io.contents import Contents, ModelFileError, Points, Source
from morphable.io.layout import Layout, array

_LICENCE = "Basel Face Model licence: non-commercial research, no redistribution"
_CLASS = "non-commercial"
_BFM2009 = "Basel Face Model 2009: Paysan, Knothe, Amberg, Romdhani, Vetter, AVSS 2009; University of Basel"

# Feature points of MPEG-4 on the topology of 2009 that are also iBUG's: eos `share/ibug_to_bfm.txt` (Apache-2.0).
_VERTICES_2009 = 53490
_LANDMARKS_2009 = {
    17: 38792, 19: 40087, 21: 40514, 22: 41091, 24: 41511, 26: 42825, 30: 8319, 33: 8334, 36: 2088, 39: 5959,
    42: 10603, 45: 14472, 48: 5006, 51: 8344, 54: 11714, 57: 8374, 62: 8354, 66: 8366,
}  # fmt: skip
# Named landmarks of 2017 and 2019 that are the same point as one of iBUG's. Those that lie between two of iBUG's (lids)
# or near one (brows, wings of the nose) are none.
_LANDMARKS_2017 = {
    "center.chin.tip": 8,
    "center.nose.tip": 30,
    "center.nose.attachement_to_philtrum": 33,
    "right.eye.corner_outer": 36,
    "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42,
    "left.eye.corner_outer": 45,
    "right.lips.corner": 48,
    "right.lips.philtrum_ridge": 50,
    "center.lips.upper.outer": 51,
    "left.lips.philtrum_ridge": 52,
    "left.lips.corner": 54,
    "center.lips.lower.outer": 57,
    "center.lips.upper.inner": 62,
    "center.lips.lower.inner": 66,
}


def outward(
    vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]
) -> Int[np.ndarray, "triangle 3"]:
    """The triangles counter-clockwise seen from outside, all of them turned around if they are not.

    The flux of p - c through the surface is three times the volume inside, by Gauss's theorem, for every c; with c
    behind a face that looks along +z it is positive for an open mask, too.
    """
    corners = np.asarray(vertices, float)[triangles]
    used = corners.reshape(-1, 3)
    low, high = used.min(axis=0), used.max(axis=0)
    behind = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flux = (area * (corners.mean(axis=1) - behind)).sum()
    return (triangles if flux >= 0 else triangles[:, [0, 2, 1]]).astype(np.int32)


def points(arrays: Mapping[str, Any], name: str, source: Source) -> Float[np.ndarray, "vertex 3"]:
    """Points x₁ y₁ z₁ x₂ ... in a row, a column or a vector, in the file's unit."""
    values = flat(arrays, name, source)
    if len(values) % 3 or not len(values):
        raise ModelFileError(
            f"{source.path}: {name!r}: got {len(values)} numbers, expected three for each vertex. Is the file complete?"
        )
    return values.reshape(-1, 3)


def flat(arrays: Mapping[str, Any], name: str, source: Source, kind: str = "f") -> np.ndarray:
    """A vector, which MATLAB stores as a row or a column."""
    values = arrays.get(name)
    if isinstance(values, np.ndarray) and values.ndim == 2 and 1 in values.shape:
        arrays = {name: values.ravel()}
    return array(arrays, name, source, (None,), kind)


def modes(
    arrays: Mapping[str, Any], name: str, source: Source, count: int, deviations: np.ndarray | float = 1.0
) -> Float[np.ndarray, "vertex 3 rank"]:
    """A basis (3 vertices, rank) in the file's unit, each column times its standard deviation."""
    with np.errstate(over="ignore", invalid="ignore"):  # of damaged files; `checked` finds what is not finite
        basis = array(arrays, name, source, (3 * count, None)).astype(np.float32)
    if isinstance(deviations, np.ndarray):
        if len(deviations) < basis.shape[1]:
            raise ModelFileError(
                f"{source.path}: {name!r} has {basis.shape[1]} columns, got {len(deviations)} standard deviations; "
                "expected one for each. Is the file complete?"
            )
        deviations = deviations[: basis.shape[1]].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return (basis * deviations).reshape(count, 3, -1)


def from_variances(values: np.ndarray, what: str, source: Source) -> np.ndarray:
    """Standard deviations; a variance is not negative."""
    if len(values) and not values.min() >= 0:
        raise ModelFileError(
            f"{source.path}: {what!r}: got variances down to {values.min():.3g}, expected none below 0. "
            "Is the file damaged?"
        )
    return np.sqrt(values)


def triangles_of(
    arrays: Mapping[str, Any], name: str, source: Source, mean: Float[np.ndarray, "vertex 3"], first: int | None
) -> Int[np.ndarray, "triangle 3"]:
    """Triangles as rows or columns, counted from `first` (None: from 1 where the last vertex needs it), outward."""
    values = arrays.get(name)
    rows = isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == 3
    found = array(arrays, name, source, (None, 3) if rows else (3, None), "i")
    found = found if rows else found.T
    if not len(found):
        raise ModelFileError(f"{source.path}: {name!r}: got no triangles, expected a surface. Is the file complete?")
    if first is None:
        first = int(found.min() >= 1 and found.max() == len(mean))
    found = found - first
    if found.min() < 0 or found.max() >= len(mean):
        raise ModelFileError(
            f"{source.path}: {name!r}: got vertices {found.min() + first} to {found.max() + first}, expected {first} "
            f"to {len(mean) - 1 + first}. Is the file damaged?"
        )
    return outward(mean, found)


def component_names(count: int) -> tuple[str, ...]:
    """Names of expression components."""
    return tuple(f"expression_{k}" for k in range(count))


def _chosen(ids: np.ndarray, name: str, source: Source, count: int) -> np.ndarray:
    """Vertices that are there."""
    if len(ids) and not (0 <= ids.min() and ids.max() < count):
        raise ModelFileError(
            f"{source.path}: {name!r}: got vertices {ids.min()} to {ids.max()} (from 0), expected 0 to {count - 1}. "
            "Is the file damaged?"
        )
    return ids


# --- 2009


def _read_2009(arrays: Mapping[str, Any], source: Source) -> Contents:
    unit_mm = 1e-3
    mean = points(arrays, "shapeMU", source) * unit_mm
    count = len(mean)
    masks = {}
    if "segbin" in arrays:  # the four segments of Paysan et al., figure 4
        segments = array(arrays, "segbin", source, (count, 4))
        masks = {name: np.clip(segments[:, k], 0, 1) for k, name in enumerate(("nose", "eyes", "mouth", "cheeks"))}
    landmarks = Points.at_vertices(_LANDMARKS_2009) if count == _VERTICES_2009 else None
    return Contents(
        name="Basel Face Model 2009",
        format="bfm2009",
        licence=_LICENCE,
        licence_class=_CLASS,
        mean=mean,
        # shapeEV and texEV are standard deviations, whatever their name (eos, convert-bfm2009-to-eos.py).
        identity=modes(arrays, "shapePC", source, count, flat(arrays, "shapeEV", source) * unit_mm),
        triangles=triangles_of(arrays, "tl", source, mean, first=1),
        unit_mm=unit_mm,
        albedo_mean=points(arrays, "texMU", source) / 255,
        albedo_modes=modes(arrays, "texPC", source, count, flat(arrays, "texEV", source) / 255),
        landmarks=landmarks,
        masks=masks,
        sources=(_BFM2009,),
        notes=(
            "no expressions in this file",
            "segments' blending weights (segMM, segMB) left out; the segments are masks",
            *(() if landmarks else (f"landmarks are known for {_VERTICES_2009} vertices only",)),
        ),
    )


# --- 2017, 2019


def _statismo_version(arrays: Mapping[str, Any], part: str) -> tuple[int, int]:
    versions = [arrays.get(f"{part}/version/{which}Version") for which in ("major", "minor")]
    if not all(isinstance(v, np.ndarray) and v.size == 1 and v.dtype.kind in "iu" for v in versions):
        return 0, 9
    major, minor = (int(v.ravel()[0]) for v in versions if v is not None)
    return major, minor


def _statismo(
    arrays: Mapping[str, Any], part: str, source: Source
) -> tuple[Float[np.ndarray, "vertex 3"], Float[np.ndarray, "vertex 3 rank"]]:
    """Mean and modes of one of the file's models: basis · √variance."""
    mean = points(arrays, f"{part}/model/mean", source)
    name = f"{part}/model/pcaVariance"
    deviations = from_variances(flat(arrays, name, source), name, source)
    basis = modes(arrays, f"{part}/model/pcaBasis", source, len(mean), deviations)
    if _statismo_version(arrays, part) == (0, 8):
        # Such files' columns have their deviations already (MoMoIO.scala, extractOrthonormalPCABasisMatrix).
        lengths = np.linalg.norm(basis, axis=(0, 1))
        basis = basis * np.divide(deviations, lengths, out=np.zeros(len(lengths)), where=lengths > 0).astype(np.float32)
    return mean, basis


def _reference(
    arrays: Mapping[str, Any], source: Source, mean: Float[np.ndarray, "vertex 3"]
) -> tuple[Float[np.ndarray, "vertex 3"], Int[np.ndarray, "triangle 3"]]:
    """The representer's points, on which landmarks are given, and its triangles."""
    legacy = "shape/representer/reference-mesh/"
    if f"{legacy}triangle-list" in arrays:
        names = (f"{legacy}vertex-coordinates", f"{legacy}triangle-list")
    else:
        names = ("shape/representer/points", "shape/representer/cells")
    cells = arrays.get(names[1])
    if isinstance(cells, np.ndarray) and cells.ndim == 2 and cells.shape[0] == 3:  # as published; not rows if (3, 3)
        arrays = {**arrays, names[1]: cells.T}
    triangles = triangles_of(arrays, names[1], source, mean, first=0)
    if names[0] not in arrays:
        return mean, triangles
    place = arrays[names[0]]
    columns = isinstance(place, np.ndarray) and place.ndim == 2 and place.shape[0] == 3
    found = array(arrays, names[0], source, (3, len(mean)) if columns else (len(mean), 3))
    return (found.T if columns else found), triangles


def _named_landmarks(
    arrays: Mapping[str, Any], source: Source, reference: Float[np.ndarray, "vertex 3"]
) -> tuple[Points | None, int]:
    """iBUG's among the landmarks of `metadata/landmarks/json`, at the nearest vertices; and how many others there are.

    The JSON is scalismo's: a list of {"id": name, "coordinates": [x, y, z]}.
    """
    stored = arrays.get("metadata/landmarks/json")
    if stored is None:
        return None, 0
    name = f"{source.path}: 'metadata/landmarks/json'"
    if not isinstance(stored, np.ndarray) or not stored.size:
        raise ModelFileError(f"{name}: got no text, expected scalismo's list of landmarks. Is the file complete?")
    text = str(stored.ravel()[0]) if stored.dtype.kind == "U" else stored.tobytes().decode("utf-8", "replace")
    try:
        entries = json.loads(text.rstrip("\0"))
        placed = {str(entry["id"]): np.array([float(x) for x in entry["coordinates"]]) for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(
            f"{name}: got {text[:40]!r} ({type(error).__name__}), expected scalismo's list of "
            '{"id": ..., "coordinates": [x, y, z]}. Is the file complete?'
        ) from error
    vertices = {}
    for label, landmark in _LANDMARKS_2017.items():
        place = placed.get(label)
        if place is not None and place.shape == (3,) and np.isfinite(place).all():
            vertices[landmark] = int(((reference - place) ** 2).sum(axis=1).argmin())
    return (Points.at_vertices(vertices) if vertices else None), len(placed) - len(vertices)


_EDITIONS = {58203: 2019, 47439: 2019, 27657: 2019}  # by vertices: fullHead, bfm, face12
_CREDITS = {
    2017: "Basel Face Model 2017: Gerig, Morel-Forster, Blumer, Egger, Lüthi, Schönborn, Vetter, FG 2018; "
    "University of Basel",
    2019: "Basel Face Model 2019: University of Basel, https://faces.dmi.unibas.ch/bfm/bfm2019.html",
}
_ALBEDOMM = (
    "AlbedoMM: Smith, Seck, Dee, Tiddeman, Tenenbaum, Egger, A Morphable Face Albedo Model, CVPR 2020; with 3DRFE"
)
_ALBEDOMM_LICENCE = "AlbedoMM: academic research only"


def _read_2017(arrays: Mapping[str, Any], source: Source) -> Contents:
    contents = _geometry(arrays, source)
    if "color/model/mean" in arrays:
        mean, basis = _statismo(arrays, "color", source)
        contents = _with_albedo(contents, mean, basis, source)
    beside = _beside(source, "albedoModel2020_*_albedoPart.h5", "diffuseAlbedo/model/mean", len(contents.mean))
    return contents if beside is None else _with_diffuse(contents, *beside)


def _geometry(arrays: Mapping[str, Any], source: Source) -> Contents:
    mean, identity = _statismo(arrays, "shape", source)
    count = len(mean)
    reference, triangles = _reference(arrays, source, mean)
    landmarks, others = _named_landmarks(arrays, source, reference)
    expression, names = None, ()
    notes = ["noise variances left out", *([f"{others} landmarks that are none of iBUG's left out"] if others else [])]
    if "expression/model/mean" in arrays:
        centre, expression = _statismo(arrays, "expression", source)
        if len(centre) != count:
            raise ModelFileError(
                f"{source.path}: expressions of {len(centre)} vertices, a shape of {count}; expected the same. "
                "Is the file complete?"
            )
        names = component_names(expression.shape[-1])
        if np.abs(centre).max() > 1e-6:
            expression = np.concatenate([expression, centre[..., None].astype(np.float32)], axis=-1)
            names += ("expression_mean",)
            notes.append(
                "the expressions' mean, which opens the mouth, is component 'expression_mean': neutral at 0, the "
                "file's mean face at 1"
            )
    edition = _EDITIONS.get(count, 2019 if "2019" in source.path.name else 2017)
    return Contents(
        name=f"Basel Face Model {edition}",
        format=f"bfm{edition}",
        licence=_LICENCE,
        licence_class=_CLASS,
        mean=mean,
        identity=identity,
        triangles=triangles,
        unit_mm=1.0,
        expression=expression,
        expression_names=names,
        expression_kind="components",
        landmarks=landmarks,
        sources=(_CREDITS[edition],),
        notes=tuple(notes),
    )


def _with_albedo(contents: Contents, mean: np.ndarray, basis: np.ndarray, source: Source, **changes: Any) -> Contents:
    if len(mean) != len(contents.mean):
        raise ModelFileError(
            f"{source.path}: colours of {len(mean)} vertices, a shape of {len(contents.mean)}; expected the same. "
            "Is it the file for another mesh, bfm or face12?"
        )
    return Contents(**{**vars(contents), "albedo_mean": mean, "albedo_modes": basis, **changes})


# --- AlbedoMM


def _encoded(linear: np.ndarray) -> np.ndarray:
    """sRGB's encoding (IEC 61966-2-1) of linear values from 0."""
    linear = np.maximum(linear, 0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def _with_diffuse(contents: Contents, arrays: Mapping[str, Any], source: Source) -> Contents:
    """The contents with AlbedoMM's diffuse albedo, which is linear RGB, encoded as ours is.

    The mean is encoded exactly, and each mode as half the difference of the encoded colours one deviation above and
    below the mean: exact for one mode at a time at ±1 where the encoding is symmetric, to first order elsewhere.
    """
    mean, basis = _statismo(arrays, "diffuseAlbedo", source)
    encoded = np.empty_like(basis)
    for k in range(basis.shape[-1]):  # one at a time: the whole is 100 MB
        encoded[..., k] = (_encoded(mean + basis[..., k]) - _encoded(mean - basis[..., k])) / 2
    return _with_albedo(
        contents,
        _encoded(mean),
        encoded,
        source,
        name=f"{contents.name} with AlbedoMM",
        licence=f"{contents.licence}; {_ALBEDOMM_LICENCE}",
        sources=(*contents.sources, _ALBEDOMM),
        notes=(
            *contents.notes,
            f"albedo from {source.path.name}: linear, encoded to first order; specular albedo left out",
        ),
    )


def _read_albedomm(arrays: Mapping[str, Any], source: Source) -> Contents:
    """With a shape of its own (`AlbedoModelBuilder.scala`), or with that of the BFM 2017 beside it."""
    wanted = len(points(arrays, "diffuseAlbedo/model/mean", source))
    # The published part has a random shape of 25 points in its place (`CombineModel.scala`).
    if "shape/model/mean" in arrays and len(points(arrays, "shape/model/mean", source)) == wanted:
        return _with_diffuse(_geometry(arrays, source), arrays, source)
    beside = _beside(source, "model2017-1_*_nomouth.h5", "shape/model/mean", wanted)
    if beside is None:
        raise ModelFileError(
            f"{source.path}: got AlbedoMM's albedo of {wanted} vertices without a shape, expected the Basel Face Model "
            "2017 that it belongs to in the same folder: model2017-1_bfm_nomouth.h5 for the bfm part, "
            "model2017-1_face12_nomouth.h5 for face12."
        )
    return _with_diffuse(_geometry(*beside), arrays, source)


def _beside(source: Source, pattern: str, name: str, count: int) -> tuple[Mapping[str, Any], Source] | None:
    """The first file of this name in the model's folder that has so many vertices, opened."""
    from morphable.io.hdf5 import read_hdf5

    for path in sorted(source.path.parent.glob(pattern)):
        if path.name == source.path.name or not path.is_file():
            continue
        arrays = read_hdf5(path)
        mean = arrays.get(name)
        if mean is not None and mean.size == 3 * count:
            return arrays, Source(path, "")
    return None


# --- Deep3DFaceRecon


def _read_deep3d(arrays: Mapping[str, Any], source: Source) -> Contents:
    unit_mm = 100.0  # decimetres: load_mats.py divides the 2009 model's µm by 1e5
    mean = points(arrays, "meanshape", source) * unit_mm
    count = len(mean)
    expression = modes(arrays, "exBase", source, count, unit_mm)
    keypoints = _chosen(flat(arrays, "keypoints", source, "i") - 1, "keypoints", source, count)
    if len(keypoints) != 68:
        raise ModelFileError(
            f"{source.path}: 'keypoints': got {len(keypoints)}, expected iBUG's 68. Is it another version of the model?"
        )
    masks = {}
    if "skinmask" in arrays:
        skin = flat(arrays, "skinmask", source)
        if len(skin) != count:
            raise ModelFileError(f"{source.path}: 'skinmask': got {len(skin)} values for {count} vertices.")
        masks["skin"] = np.clip(skin, 0, 1)
    if "frontmask2_idx" in arrays:
        front = _chosen(flat(arrays, "frontmask2_idx", source, "i") - 1, "frontmask2_idx", source, count)
        masks["front"] = np.zeros(count)
        masks["front"][front] = 1
    return Contents(
        name="Deep3DFaceRecon's front of the Basel Face Model 2009",
        format="deep3d",
        licence=_LICENCE,
        licence_class=_CLASS,
        mean=mean,
        identity=modes(arrays, "idBase", source, count, unit_mm),  # the bases have their deviations
        triangles=triangles_of(arrays, "tri", source, mean, first=1),
        unit_mm=unit_mm,
        expression=expression,
        expression_names=component_names(expression.shape[-1]),
        expression_kind="components",
        albedo_mean=points(arrays, "meantex", source) / 255,
        albedo_modes=modes(arrays, "texBase", source, count, 1 / 255),
        landmarks=Points.at_vertices({k: int(v) for k, v in enumerate(keypoints)}),
        masks=masks,
        sources=(
            _BFM2009,
            "Deep3DFaceRecon: Deng, Yang, Xu, Chen, Jia, Tong, CVPR Workshops 2019",
            "expressions: Guo, Zhang, Cai, Liu, Jiang, PAMI 2018, from FaceWarehouse (Cao et al. 2014)",
        ),
        notes=("point_buf, which follows from the triangles, and tri_mask2 left out",),
    )


# --- 3DDFA

_POSE, _SHAPE, _EXPRESSION = 12, 40, 10  # of 3DDFA's 62 parameters
_FIRST_MODE_MM, _DECAY = 3.0, 0.65


def _read_3ddfa(arrays: Mapping[str, Any], source: Source) -> Contents:
    """Coefficients' deviations are not in the file: its shape basis is orthonormal, and 3DDFA's networks predict µm.

    `param_mean_std_62d_120x120.pkl`, which lies beside the file where it is published, has the deviations of the
    parameters of 300W-LP. Without it the modes get a power law, 3 mm (root mean square over the vertices) for the first
    and k^-0.65 of that for the k-th, as in facefit's own head (2.9 mm, and k^-0.66 to the 40th). The parameters' means
    are a bias of that dataset's fits and are left out. The triangles of version 3 are in `tri.pkl` beside it
    (`bfm/bfm.py`); without that file those in the model's count.
    """
    unit_mm = 1e-3
    mean = points(arrays, "u", source) * unit_mm
    count = len(mean)
    identity = modes(arrays, "w_shp", source, count, unit_mm)
    expression = modes(arrays, "w_exp", source, count, unit_mm)
    notes = []
    deviations = _parameter_deviations(source)
    if deviations is not None:
        shape, face = deviations[_POSE : _POSE + _SHAPE], deviations[_POSE + _SHAPE :]
        identity, expression = identity[..., :_SHAPE], expression[..., :_EXPRESSION]
        with np.errstate(over="ignore", invalid="ignore"):
            identity, expression = identity * shape[: identity.shape[-1]], expression * face[: expression.shape[-1]]
        notes.append("standard deviations are those of 300W-LP's parameters")
    else:
        lengths = np.linalg.norm(identity, axis=(0, 1)) / unit_mm
        if len(lengths) and np.abs(lengths - 1).max() < 0.1:
            scale = _FIRST_MODE_MM * np.sqrt(count) / unit_mm * np.arange(1, len(lengths) + 1.0) ** -_DECAY
            identity = identity * scale.astype(np.float32)
            notes.append(
                "standard deviations of the shape modes are not in this file: a power law stands for them; put "
                "param_mean_std_62d_120x120.pkl beside it for 3DDFA's own"
            )
    flat_ids = flat(arrays, "keypoints", source, "i")
    triples = flat_ids.reshape(-1, 3) if len(flat_ids) == 3 * 68 else np.zeros((0, 3), np.int64)
    if len(triples) != 68 or not (triples == triples[:, :1] + np.arange(3)).all() or (triples[:, 0] % 3).any():
        raise ModelFileError(
            f"{source.path}: 'keypoints': got {len(flat_ids)} numbers, expected places of x, y and z of iBUG's 68 "
            "landmarks in 'u'. Is it another version of the model?"
        )
    keypoints = _chosen(triples[:, 0] // 3, "keypoints", source, count)
    beside = source.path.with_name("tri.pkl")
    held = arrays
    if beside != source.path and beside.is_file():
        from morphable.io.pickles import unpickle

        held, source = {"tri": unpickle(beside.read_bytes(), str(beside))}, Source(beside, "")
    return Contents(
        name="3DDFA's Basel Face Model 2009 without neck",
        format="3ddfa",
        licence=_LICENCE,
        licence_class=_CLASS,
        mean=mean,
        identity=identity.astype(np.float32),
        triangles=triangles_of(held, "tri", source, mean, first=None),
        unit_mm=unit_mm,
        expression=expression.astype(np.float32),
        expression_names=component_names(expression.shape[-1]),
        expression_kind="components",
        landmarks=Points.at_vertices({k: int(v) for k, v in enumerate(keypoints)}),
        sources=(
            _BFM2009,
            "3DDFA_V2: Guo, Zhu, Yang, Yang, Lei, Li, ECCV 2020; 300W-LP: Zhu, Lei, Liu, Shi, Li, CVPR 2016",
            "expressions from FaceWarehouse: Cao, Weng, Zhou, Tong, Zhou, TVCG 2014",
        ),
        notes=(*notes, "no colours in this file"),
    )


def _parameter_deviations(source: Source) -> np.ndarray | None:
    path = source.path.with_name("param_mean_std_62d_120x120.pkl")
    if not path.is_file():
        return None
    from morphable.io.pickles import read_pickle

    arrays = read_pickle(path)
    values = flat(arrays, "std", Source(path, ""))
    if len(values) != _POSE + _SHAPE + _EXPRESSION or not (np.isfinite(values) & (values >= 0)).all():
        raise ModelFileError(
            f"{path}: 'std': got {len(values)} numbers, expected {_POSE + _SHAPE + _EXPRESSION} from 0: pose, shape, "
            "expression. Take the file that belongs to this model, or none."
        )
    return values.astype(np.float32)


def _has(*names: str, lacks: str = ""):
    return lambda found: set(names) <= found and lacks not in found


LAYOUTS: tuple[Layout, ...] = (
    Layout("bfm2009", "mat", _has("shapeMU", "shapePC", "shapeEV", "tl"), _read_2009),
    Layout("albedomm", "hdf5", _has("diffuseAlbedo/model/mean"), _read_albedomm),
    Layout(
        "bfm2017",
        "hdf5",
        _has("shape/model/mean", "shape/model/pcaBasis", lacks="diffuseAlbedo/model/mean"),
        _read_2017,
    ),
    Layout("deep3d", "mat", _has("meanshape", "idBase", "exBase"), _read_deep3d),
    Layout("3ddfa", "pickle", _has("u", "w_shp", "w_exp"), _read_3ddfa),
)
