"""Small bilinear models in FaceScape's layouts."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from published.bfm import COUNT, face
from published.landmarks import IBUG, seam

RANK, PEOPLE = 4, 30


def truth_of(writer, seed: int = 0) -> dict[str, Any]:
    """Core (3n, 52, k), mm, and the distribution of the identity weights."""
    rng = np.random.default_rng(seed)
    mean, triangles = face()
    id_mean = np.r_[0.0344, 0.01 * rng.normal(size=RANK - 1)]
    core = np.zeros((3 * COUNT, 52, RANK))
    core[:, :, 0] = (mean.reshape(-1, 1) + 2 * np.r_[0.0, np.ones(51)] * rng.normal(size=(3 * COUNT, 52))) / 0.0344
    core[:, :, 1:] = 80 * (rng.normal(size=(3 * COUNT, 1, RANK - 1)) + 0.1 * rng.normal(size=(3 * COUNT, 52, RANK - 1)))
    coordinates, corners = seam()
    return {
        "core": core.astype(np.float32),
        "id_mean": id_mean,
        "id_var": np.r_[1e-5, np.full(RANK - 1, 1 / 847)],
        "people": id_mean + rng.normal(size=(PEOPLE, RANK)) / np.sqrt(847),
        "triangles": triangles,
        "coordinates": coordinates,
        "coordinate_triangles": corners,
        "front": np.arange(10, 100),
        "colour": rng.uniform(60, 200, (80, 3)),  # B G R
        "colours": 300 * rng.normal(size=(240, 2)),
    }


def write_facescape(folder: Path, seed: int = 0) -> Path:
    """`facescape_bm_v1.6_847_50_52_id_front.npz`: names and use of the arrays after zhuhao-nju/facescape,
    toolkit/src/facescape_bm.py (`gen_full`, `gen_face_color`) and facescape_fitter.py (`texcoords` from 1, v up).
    """
    truth = truth_of(write_facescape, seed)
    path = folder / "facescape_bm_v1.6_847_50_52_id_front.npz"
    np.savez(
        path,
        shape_bm_core=truth["core"],
        color_bm_core=truth["colours"].astype(np.float32),
        color_bm_mean=truth["colour"].reshape(-1).astype(np.float32),
        fv_indices=truth["triangles"] + 1,
        ft_indices=truth["coordinate_triangles"] + 1,
        texcoords=truth["coordinates"],
        v_indices_front=truth["front"],
        vc_dict_front=np.r_[np.arange(80), np.full(10, -1)],
        vert_num=np.array(COUNT),
        face_num=np.array(len(truth["triangles"])),
        id_mean=truth["id_mean"].astype(np.float32),
        id_var=truth["id_var"].astype(np.float32),
        lm_list_v16=IBUG,
    )
    return path


def write_facescape_v1(folder: Path, seed: int = 0) -> Path:
    """Folder `data` of versions 1.2 and 1.3 after zhuhao-nju/facescape, tools/bilinear_model/demo_bilinear.py."""
    truth = truth_of(write_facescape_v1, seed)
    path = folder / "data"
    path.mkdir()
    np.save(path / "core_847_50_52.npy", truth["core"].transpose(2, 1, 0))
    np.save(path / "factors_id_847_50_52.npy", truth["people"])
    pairs = zip(truth["triangles"] + 1, truth["coordinate_triangles"] + 1, strict=True)
    faces = [(v.tolist(), [0, 0, 0], t.tolist(), "") for v, t in pairs]
    (path / "predef_faces.pkl").write_bytes(pickle.dumps(faces))
    (path / "predef_texcoords.pkl").write_bytes(pickle.dumps(truth["coordinates"].tolist()))
    return path
