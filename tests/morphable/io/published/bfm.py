"""Small files in the published layouts of the Basel Face Models and what is made of them.

Each `write_*` returns the path; `truth_of` gives the arrays that a file was written from.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

SIDE = 13  # 169 vertices
COUNT = SIDE * SIDE


def face() -> tuple[np.ndarray, np.ndarray]:
    """A half ellipsoid that looks along +z, mm, and its triangles, counter-clockwise from outside."""
    u, v = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    x, y = 70 * np.sin(u * 1.35), -90 * np.sin(v * 1.35)
    z = 60 * np.cos(u * 1.35) * np.cos(v * 1.35) + 25 * np.exp(-((u / 0.18) ** 2 + (v / 0.3) ** 2))
    i = np.arange(COUNT).reshape(SIDE, SIDE)
    a, b, c, d = (q.ravel() for q in (i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]))
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return np.stack([x, y, z], axis=-1).reshape(-1, 3), triangles.astype(np.int32)


def basis(rng: np.random.Generator, rank: int) -> np.ndarray:
    """Orthonormal columns, (3 COUNT, rank)."""
    return np.linalg.qr(rng.normal(size=(3 * COUNT, rank)))[0].astype(np.float32)


def deviations(rank: int, first_mm: float = 3.0) -> np.ndarray:
    """For orthonormal columns: the first moves a vertex by so much, root mean square."""
    return (first_mm * np.sqrt(COUNT) / np.arange(1, rank + 1)).astype(np.float32)


def write_bfm2009(folder: Path, seed: int = 0) -> Path:
    """`01_MorphableModel.mat`.

    shapeMU, shapePC, shapeEV, texMU, texPC, texEV, tl: shapes, the units (µm, 0 to 255), standard deviations under the
    name EV, indices from 1 and clockwise triangles after eos `share/scripts/convert-bfm2009-to-eos.py`; segbin
    (n, 4), segMM and segMB after the model's own MATLAB code, which other projects quote (`segbin(:, i)`).
    """
    truth = truth_of(write_bfm2009, seed)
    arrays = {
        "shapeMU": truth["mean_mm"].reshape(-1, 1) * 1e3,
        "shapePC": truth["identity"],
        "shapeEV": truth["identity_mm"].reshape(-1, 1) * 1e3,
        "texMU": truth["colour"].reshape(-1, 1) * 255,
        "texPC": truth["colours"],
        "texEV": truth["colour_deviations"].reshape(-1, 1) * 255,
    }
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    arrays |= {
        "tl": (truth["triangles"][:, [0, 2, 1]] + 1).astype(np.float64),
        "segbin": truth["segments"].astype(np.uint8),
        "segMM": np.eye(4),
        "segMB": np.eye(4),
    }
    path = folder / "01_MorphableModel.mat"
    scipy.io.savemat(path, arrays, do_compression=True)
    return path


NAMED = {  # as in metadata/landmarks/json of the 2017 model, with two that are none of iBUG's
    "center.nose.tip": 84,
    "right.eye.corner_outer": 54,
    "left.eye.corner_outer": 62,
    "right.lips.corner": 108,
    "left.lips.corner": 112,
    "center.chin.tip": 149,
    "right.eye.top": 43,
    "left.ear.lobule.tip": 77,
}


def _statismo(
    file: h5py.File,
    part: str,
    representer: str,
    mean: np.ndarray,
    columns: np.ndarray,
    variances: np.ndarray,
    shape: tuple[np.ndarray, np.ndarray],
):
    file[f"{part}/version/majorVersion"] = np.int32(0)
    file[f"{part}/version/minorVersion"] = np.int32(9)
    file[f"{part}/model/mean"] = mean.ravel().astype(np.float32)
    file[f"{part}/model/noiseVariance"] = np.zeros(1, np.float32)
    chunks = tuple(np.minimum((100, 2), columns.shape).tolist())
    file.create_dataset(f"{part}/model/pcaBasis", data=columns.astype(np.float32), chunks=chunks, compression="gzip")
    file[f"{part}/model/pcaVariance"] = variances.astype(np.float32)
    file[f"{part}/modelinfo/build-time"] = "Tue Sep 05 10:00:00 CEST 2017"
    file[f"{part}/modelinfo/scores"] = np.zeros((1, 1), np.float32)
    file[f"{part}/representer/points"] = shape[0].T.astype(np.float32)
    file[f"{part}/representer/cells"] = shape[1].T.astype(np.int32)
    file[f"{part}/representer"].attrs["name"] = np.bytes_(f"gravis::{representer}")
    file[f"{part}/representer"].attrs["datasetType"] = np.bytes_("POLYGON_MESH")


def write_bfm2017(folder: Path, seed: int = 0, name: str = "model2017-1_bfm_nomouth.h5") -> Path:
    """`model2017-1_bfm_nomouth.h5`, and with another name the models of 2019.

    Groups, types and shapes after scalismo-faces `io/MoMoIO.scala` (writeToHDF5, writeStatisticalModel,
    writeTriangleMesh3D: points and cells (3, n), from 0); orthonormal bases and variances after eos
    `share/scripts/convert-bfm2017-to-eos.py`; landmarks as scalismo's JSON, [{"id", "coordinates"}].
    """
    truth = truth_of(write_bfm2017, seed)
    path = folder / name
    mesh = truth["mean_mm"], truth["triangles"]
    entries = [{"id": label, "coordinates": truth["mean_mm"][v].tolist()} for label, v in NAMED.items()]
    with h5py.File(path, "w") as file:
        file["version/majorVersion"], file["version/minorVersion"] = np.int32(0), np.int32(9)
        file["catalog/MorphableModel/modelType"] = np.bytes_("CUSTOM_MODEL")
        file["catalog/MorphableModel/modelPath"] = np.bytes_("/")
        for part, representer, mean, columns, sigma in (
            ("shape", "MeshShapeRepresenter", "mean_mm", "identity", "identity_mm"),
            ("color", "MeshColorRepresenter", "colour", "colours", "colour_deviations"),
            ("expression", "MeshExpressionRepresenter", "expression_mean_mm", "expression", "expression_mm"),
        ):
            _statismo(file, part, representer, truth[mean], truth[columns], truth[sigma] ** 2, mesh)
        file["metadata/landmarks/json"] = np.array([json.dumps(entries).encode()])
    return path


def write_albedomm(folder: Path, seed: int = 0) -> Path:
    """`albedoModel2020_bfm_albedoPart.h5`, and the model of 2017 that it belongs to beside it.

    Groups after AlbedoMM `AlbedoMoMoIO.scala`; the shape of 25 random points after `CombineModel.scala`
    (randomGridShape); linear RGB after Smith et al. 2020, section 5.
    """
    truth = truth_of(write_albedomm, seed)
    rng = np.random.default_rng(seed)
    write_bfm2017(folder, seed)
    path = folder / "albedoModel2020_bfm_albedoPart.h5"
    mesh = truth["mean_mm"], truth["triangles"]
    with h5py.File(path, "w") as file:
        file["version/majorVersion"], file["version/minorVersion"] = np.int32(0), np.int32(9)
        _statismo(file, "shape", "MeshShapeRepresenter", rng.normal(size=75), np.eye(75, 1), np.ones(1) * 0.05, mesh)
        for part, representer in (
            ("diffuseAlbedo", "MeshDiffuseAlbedoRepresenter"),
            ("specularAlbedo", "MeshSpecularAlbedoRepresenter"),
        ):
            variances = truth["linear_deviations"] ** 2
            _statismo(file, part, representer, truth["linear"], truth["linears"], variances, mesh)
    return path


def write_deep3d(folder: Path, seed: int = 0) -> Path:
    """`BFM_model_front.mat`.

    All arrays and shapes after Deep3DFaceRecon_pytorch `util/load_mats.py` (transferBFM09: decimetres, bases that have
    their deviations) and `models/bfm.py` (indices from 1, point_buf (n, 8) with one past the last for none).
    """
    truth = truth_of(write_deep3d, seed)
    path = folder / "BFM_model_front.mat"
    triangles = truth["triangles"] + 1
    arrays = {
        "meanshape": truth["mean_mm"].reshape(1, -1) / 100,
        "meantex": truth["colour"].reshape(1, -1) * 255,
        "idBase": truth["identity"] * truth["identity_mm"] / 100,
        "exBase": truth["expression"] * truth["expression_mm"] / 100,
        "texBase": truth["colours"] * truth["colour_deviations"] * 255,
    }
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    arrays |= {
        "tri": triangles.astype(np.float64),
        "point_buf": np.full((COUNT, 8), len(triangles) + 1, np.float64),
        "tri_mask2": triangles[:40].astype(np.float64),
        "keypoints": (truth["keypoints"] + 1).reshape(1, -1).astype(np.float64),
        "frontmask2_idx": np.arange(40, 90, dtype=np.float64).reshape(-1, 1),
        "skinmask": (np.arange(COUNT) % 3 > 0).astype(np.float64).reshape(1, -1),
    }
    scipy.io.savemat(path, arrays)
    return path


def write_3ddfa(folder: Path, seed: int = 0) -> Path:
    """`bfm_noneck_v3.pkl`, with `tri.pkl` and `param_mean_std_62d_120x120.pkl` as in the folder configs.

    Arrays after 3DDFA_V2 `bfm/bfm.py`: u (3n, 1), w_shp (3n, 40), w_exp (3n, 10), tri (3, m), keypoints (204,), the
    places of x, y and z in u; tri.pkl (3, m) replaces tri for version 3; mean and std (62,) after `TDDFA.py`.
    """
    truth = truth_of(write_3ddfa, seed)
    path = folder / "bfm_noneck_v3.pkl"
    stored = {
        "u": (truth["mean_mm"].reshape(-1, 1) * 1e3).astype(np.float32),
        "w_shp": truth["identity"],
        "w_exp": (truth["expression"] * truth["expression_mm"] * 1e3).astype(np.float32),
        "tri": truth["triangles"].T[:, :5].copy(),
        "keypoints": (3 * truth["keypoints"][:, None] + np.arange(3)).ravel(),
    }
    path.write_bytes(pickle.dumps(stored))
    (folder / "tri.pkl").write_bytes(pickle.dumps(truth["triangles"].T.copy()))
    std = np.r_[np.ones(12), truth["identity_mm"] * 1e3, truth["expression_parameters"]].astype(np.float32)
    parameters = {"mean": np.zeros(62, np.float32), "std": std}
    (folder / "param_mean_std_62d_120x120.pkl").write_bytes(pickle.dumps(parameters))
    return path


def truth_of(writer: Callable[..., Path], seed: int = 0) -> dict[str, Any]:
    """The arrays behind a file: mm, colours from 0 to 1, orthonormal bases and their deviations."""
    rng = np.random.default_rng(seed)
    vertices, triangles = face()
    ranks = (40, 10) if writer is write_3ddfa else (6, 4)
    colour = rng.uniform(0.3, 0.7, (COUNT, 3))
    return {
        "mean_mm": vertices,
        "triangles": triangles,
        "identity": basis(rng, ranks[0]),
        "identity_mm": deviations(ranks[0]),
        "expression": basis(rng, ranks[1]),
        "expression_mm": deviations(ranks[1]),
        "expression_mean_mm": rng.normal(size=(COUNT, 3)),
        "expression_parameters": rng.uniform(0.2, 1.5, ranks[1]),
        "colour": colour,
        "colours": basis(rng, 5),
        "colour_deviations": deviations(5, 0.05),
        "linear": colour**2.2,
        "linears": basis(rng, 3),
        "linear_deviations": deviations(3, 0.01),
        "segments": np.eye(4)[rng.integers(0, 4, COUNT)],
        "keypoints": rng.choice(COUNT, 68, replace=False),
    }
