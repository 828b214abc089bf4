"""Small files in the published layouts of the Large Scale Facial Model and the Liverpool-York Head Model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from published.bfm import COUNT, basis, deviations, face


def write_lsfm(folder: Path, seed: int = 0) -> Path:
    """`all_all_all.mat`: keys, shapes, unit eigenvectors, variances and indices from 0 as the table "Model Format" of
    https://github.com/menpo/lsfm has them. Its unit is nowhere told; metres here."""
    truth = truth_of(write_lsfm, seed)
    path = folder / "all_all_all.mat"
    variances = truth["identity_mm"] ** 2 * 1e-6
    arrays = {
        "mean": truth["mean_mm"].ravel() * 1e-3,
        "components": truth["identity"].astype(np.float64),
        "eigenvalues": variances.astype(np.float64),
        "cumulative_explained_variance": np.cumsum(variances) / variances.sum(),
        "trilist": truth["triangles"].astype(np.uint32),
        "n_training_samples": 8888,
    }
    scipy.io.savemat(path, arrays)
    return path


def write_lyhm(folder: Path, seed: int = 0) -> Path:
    """`LYHM_male.mat`: structs shp and tex with eigVec (3n, k), eigVal (k, 1) and mu (1, 3n), tri.faces from 1 and
    clockwise, colours from 0 to 1, after eos `share/scripts/load_lyhm.py`."""
    truth = truth_of(write_lyhm, seed)
    path = folder / "LYHM_male.mat"
    arrays = {
        "shp": {
            "eigVec": truth["identity"].astype(np.float64),
            "eigVal": (truth["identity_mm"].reshape(-1, 1) ** 2).astype(np.float64),
            "mu": truth["mean_mm"].reshape(1, -1),
        },
        "tex": {
            "eigVec": truth["colours"].astype(np.float64),
            "eigVal": (truth["colour_deviations"].reshape(-1, 1) ** 2).astype(np.float64),
            "mu": truth["colour"].reshape(1, -1),
        },
        "tri": {"faces": (truth["triangles"][:, [0, 2, 1]] + 1).astype(np.float64)},
    }
    scipy.io.savemat(path, arrays)
    return path


def truth_of(writer: Callable[..., Path], seed: int = 0) -> dict[str, Any]:
    """The arrays behind a file: mm, colours from 0 to 1, orthonormal bases and their deviations."""
    del writer
    rng = np.random.default_rng(seed)
    vertices, triangles = face()
    return {
        "mean_mm": vertices,
        "triangles": triangles,
        "identity": basis(rng, 6),
        "identity_mm": deviations(6),
        "colour": rng.uniform(0.3, 0.7, (COUNT, 3)),
        "colours": basis(rng, 4),
        "colour_deviations": deviations(4, 0.05),
    }
