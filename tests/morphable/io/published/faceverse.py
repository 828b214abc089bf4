"""Small FaceVerse models: pickled dictionaries in `.npy` files."""

from pathlib import Path
from typing import Any

import numpy as np

from published.bfm import COUNT, deviations, face
from published.landmarks import EYE_CORNERS_MM, IBUG

NAMES = ("jawOpen", "mouthSmile_L", "eyeLookUpLeft", "browInnerUp")
UNIT_V2_MM = 162.6
SCALE_V2 = 90.0 / EYE_CORNERS_MM  # a reader that does not know that unit takes eyes to be 90 mm apart
FLIP = np.array([1.0, -1.0, -1.0])


def truth_of(writer, seed: int = 0) -> dict[str, Any]:
    """Shapes in mm and our axes; version 4 has two eyeballs behind the face's vertices."""
    rng = np.random.default_rng(seed)
    mean, triangles = face()
    if writer is write_faceverse_v4:
        ball = np.concatenate([np.eye(3), -np.eye(3)])
        sides = np.array([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
        for k, x in enumerate((30.0, -30.0)):
            mean = np.concatenate([mean, 12 * ball + [x, 32, 30]])
            triangles = np.concatenate([triangles, sides + COUNT + 6 * k])
    count = len(mean)
    columns = np.linalg.qr(rng.normal(size=(3 * count, 5)))[0] * deviations(5)
    return {
        "mean_mm": mean,
        "triangles": triangles,
        "identity_mm": columns,
        "expression_mm": 3 * rng.normal(size=(3 * count, 6)),
        "colour": rng.uniform(40, 220, (count, 3)),
        "colours": 10 * np.linalg.qr(rng.normal(size=(3 * count, 3)))[0],
    }


def _write(path: Path, truth: dict[str, Any], signs: np.ndarray, unit_mm: float, further: dict[str, Any]) -> Path:
    count = len(truth["mean_mm"])
    flip = np.tile(signs, count)[:, None] / unit_mm
    arrays = {
        "meanshape": (truth["mean_mm"] * signs / unit_mm).astype(np.float32),
        "idBase": (truth["identity_mm"] * flip).astype(np.float32),
        "exBase": (truth["expression_mm"] * flip).astype(np.float32),
        "texBase": truth["colours"].astype(np.float32),
        "meantex": truth["colour"].reshape(1, -1).astype(np.float32),
        "tri": truth["triangles"].astype(np.int64),
    }
    np.save(path, np.array({**arrays, **further}, dtype=object), allow_pickle=True)
    return path


def write_faceverse(folder: Path, seed: int = 0) -> Path:
    """`faceverse_simple_v2.npy` (LizhenWangT/FaceVerse, model/FaceVerseModel.py; README on `exp_name_list`): y down, z
    into the face, lengths of its own, 66 landmarks of which the first 48 are iBUG's.
    """
    truth = truth_of(write_faceverse, seed)
    further = {
        "keypoints": np.r_[IBUG[:60], IBUG[61:64], IBUG[65:]],
        "skinmask": np.ones(COUNT),
        "exp_name_list": list(NAMES),
        "point_buf": np.zeros((COUNT, 8), np.int64),
    }
    return _write(folder / "faceverse_simple_v2.npy", truth, FLIP, UNIT_V2_MM, further)


def write_faceverse_v4(folder: Path, seed: int = 0) -> Path:
    """`faceverse_v4_2.npy` (LizhenWangT/FaceVerse_v4, faceversev4/FaceVerseModel_torch.py): 68 landmarks and two
    pupils, eyeballs between `ver_inds`, `face_mask`, `parsing`; here in cm and turned about z.
    """
    truth = truth_of(write_faceverse_v4, seed)
    count = len(truth["mean_mm"])
    further = {
        "keypoints_68": np.r_[IBUG, COUNT, COUNT + 6],
        "ver_inds": [COUNT, COUNT + 6, COUNT + 12],
        "tri_inds": [0, 0, len(truth["triangles"])],
        "face_mask": (np.arange(count) < 100).astype(np.float32),
        "parsing": {"skin": np.ones(count, np.uint8)},
    }
    return _write(folder / "faceverse_v4_2.npy", truth, np.array([-1.0, -1.0, 1.0]), 10.0, further)
