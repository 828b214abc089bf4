"""Small models in eos's cereal archives, with the files that the public Surrey Face Model has beside it."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from published.bfm import COUNT, SIDE, basis, deviations, face
from published.landmarks import IBUG, seam

EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")


def truth_of(writer, seed: int = 0) -> dict[str, Any]:
    """What a file says, in mm."""
    rng = np.random.default_rng(seed)
    mean, triangles = face()
    coordinates, corners = seam()
    truth = {
        "mean_mm": mean,
        "triangles": triangles,
        "identity": basis(rng, 4),
        "identity_mm": deviations(4),
        "uv": np.stack([coordinates[:COUNT, 0], 1 - coordinates[:COUNT, 1]], axis=1),  # v down
    }
    if writer is write_sfm:
        return truth | {"expression_mm": 5 * rng.normal(size=(3 * COUNT, 6)).astype(np.float32)}
    return truth | {
        "expression": basis(rng, 3),
        "expression_mm": deviations(3, 2.0),
        "expression_mean_mm": rng.normal(size=3 * COUNT).astype(np.float32),
        "colour": rng.uniform(0.2, 0.8, (COUNT, 3)).astype(np.float32),
        "colours": basis(rng, 2),
        "colour_deviations": deviations(2, 0.05),
        "coordinates": np.stack([coordinates[:, 0], 1 - coordinates[:, 1]], axis=1),
        "coordinate_triangles": corners,
    }


def write_sfm(folder: Path, seed: int = 0) -> Path:
    """`sfm_shape_169.bin`, class version 1: shape model, empty colour model, texture coordinates (eos,
    include/eos/morphablemodel/MorphableModel.hpp and PcaModel.hpp; matrices after io/eigen_cerealisation.hpp).

    Beside it `expression_blendshapes_169.bin` (Blendshape.hpp), `ibug_to_sfm.txt` and `sfm_model_contours.json` as in
    eos's share/: the mapping has no iBUG 1 to 8, 10 to 17, 61 and 65.
    """
    truth = truth_of(write_sfm, seed)
    data = struct.pack("<I", 1)
    data += _pca(truth["mean_mm"].reshape(-1, 1), truth["identity"], truth["identity_mm"] ** 2, truth["triangles"])
    data += _pca(np.zeros((0, 1)), np.zeros((0, 0)), np.zeros(0), np.zeros((0, 3)))
    data += _vector(truth["uv"], "<f8")
    path = folder / f"sfm_shape_{COUNT}.bin"
    path.write_bytes(data)
    shapes = (_text(name) + _matrix(d[:, None]) for name, d in zip(EMOTIONS, truth["expression_mm"].T, strict=True))
    (folder / f"expression_blendshapes_{COUNT}.bin").write_bytes(struct.pack("<Q", 6) + b"".join(shapes))
    left_out = {*range(8), *range(9, 17), 60, 64}
    rows = [f"{i + 1} = {v}  # a point" for i, v in enumerate(IBUG) if i not in left_out]
    (folder / "ibug_to_sfm.txt").write_text("# iBUG to vertices\n[landmark_mappings]\n" + "\n".join(rows) + "\n")
    rim = np.arange(COUNT).reshape(SIDE, SIDE)
    right = [*rim[:, 0].tolist(), *rim[-1, 1 : SIDE // 2].tolist()]
    left = [*rim[:, -1].tolist(), *rim[-1, -2 : SIDE // 2 : -1].tolist()]
    contours = {"model_contour": {"right_contour": right, "left_contour": left}}
    (folder / "sfm_model_contours.json").write_text(json.dumps(contours))
    return path


def write_eos(folder: Path, seed: int = 0, kind: str = "pca") -> Path:
    """`4dfm_head_169.bin`, class version 4: colours, an expression model (`kind` "pca" or "blendshapes", a
    std::variant in a std::optional), landmarks by name, texture coordinates with seams (MorphableModel.hpp).
    """
    truth = truth_of(write_eos, seed)
    shape = _pca(truth["mean_mm"].reshape(-1, 1), truth["identity"], truth["identity_mm"] ** 2, truth["triangles"])
    variances = truth["colour_deviations"] ** 2
    colour = _pca(truth["colour"].reshape(-1, 1), truth["colours"], variances, truth["triangles"])
    columns, sizes = truth["expression"], truth["expression_mm"]
    if kind == "pca":
        model = _pca(truth["expression_mean_mm"][:, None], columns, sizes**2, truth["triangles"])
        expression = struct.pack("<Bi", 0, 0) + model
    else:
        shapes = (_text(f"shape {k}") + _matrix(sizes[k] * columns[:, k : k + 1]) for k in range(3))
        expression = struct.pack("<BiQ", 0, 1, 3) + b"".join(shapes)
    named = {"center.nose.tip": int(IBUG[30]), "right.eye.corner_outer": int(IBUG[36]), "left.ear.top": 0}
    landmarks = struct.pack("<BQ", 0, len(named)) + b"".join(_text(n) + struct.pack("<i", v) for n, v in named.items())
    places = _vector(truth["coordinates"], "<f8") + _vector(truth["coordinate_triangles"], "<i4")
    path = folder / f"4dfm_head_{COUNT}.bin"
    path.write_bytes(struct.pack("<I", 4) + shape + colour + expression + landmarks + places)
    return path


def _matrix(values: np.ndarray) -> bytes:
    return struct.pack("<ii", *values.shape) + np.asarray(values, "<f4").tobytes(order="F")


def _vector(values: np.ndarray, kind: str) -> bytes:
    return struct.pack("<Q", len(values)) + np.asarray(values, kind).tobytes()


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _pca(mean, columns, variances, triangles) -> bytes:
    return _matrix(mean) + _matrix(columns) + _matrix(variances.reshape(-1, 1)) + _vector(triangles, "<i4")
