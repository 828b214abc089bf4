"""Small files in FLAME's published layouts: the model, and the files that are distributed for it.

A head-like half ellipsoid with two eyeballs, in metres; `truth` has the arrays that the writers write.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SIDE = 13
EYE = 6  # vertices of an eyeball, an octahedron
TEXELS = 24
ROOT = 2**32 - 1


class Instance(NamedTuple):
    """An object of a class that is not installed, as a pickle has it: its class's name and its state."""

    module: str
    name: str
    state: Any


def truth(seed: int = 0, directions: int = 20) -> dict[str, Any]:
    """Arrays of a FLAME file, of its masks, embeddings and texture; lengths in metres."""
    rng = np.random.default_rng(seed)
    u, v = (grid.ravel() for grid in np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE)))
    skin = np.stack([70 * np.sin(u * 1.35), -90 * np.sin(v * 1.35), 60 * np.cos(u * 1.35) * np.cos(v * 1.35)], axis=1)
    octahedron = 12.0 * np.concatenate([np.eye(3), -np.eye(3)])
    template = np.concatenate([skin, octahedron + [30, 20, 30], octahedron + [-30, 20, 30]]) / 1000
    count = len(template)
    i = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    corners = [i[:-1, :-1], i[1:, :-1], i[1:, 1:]], [i[:-1, :-1], i[1:, 1:], i[:-1, 1:]]
    skin_triangles = np.concatenate([np.stack([c.ravel() for c in three], axis=1) for three in corners])
    ball = np.array([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    triangles = np.concatenate([skin_triangles, ball + len(skin), ball + len(skin) + EYE]).astype(np.uint32)
    weights = np.zeros((count, 5))
    weights[: len(skin), :3] = rng.dirichlet(np.ones(3), len(skin))
    weights[len(skin) : len(skin) + EYE, 3] = weights[len(skin) + EYE :, 4] = 1.0
    regressor = np.where(rng.random((5, count)) < 0.1, rng.random((5, count)), 0.0)
    regressor /= regressor.sum(axis=1, keepdims=True)
    # Texture coordinates, v up: the middle column is a seam, whose right side has coordinates of its own.
    coordinates = np.stack([0.3 + 0.2 * u, 0.5 - 0.4 * v], axis=1)
    right_seam = coordinates[i[:, SIDE // 2]] + [0.35, 0.0]
    coordinates[u > 0] += [0.35, 0.0]
    eyes = rng.uniform(0.1, 0.9, (2 * EYE, 2))
    uv = np.concatenate([coordinates, eyes, right_seam])
    uv_triangles = triangles.astype(np.int64)
    right = (uv_triangles < len(skin)).all(axis=1) & (u[np.minimum(uv_triangles, len(skin) - 1)] > 0).any(axis=1)
    on_seam = right[:, None] & np.isin(uv_triangles, i[:, SIDE // 2])
    uv_triangles[on_seam] = count + uv_triangles[on_seam] // SIDE
    shares = rng.dirichlet(np.ones(3), (79, 17))
    return {
        "v_template": template,
        "f": triangles,
        "shapedirs": 0.003 * rng.normal(size=(count, 3, directions)),
        "posedirs": 0.002 * rng.normal(size=(count, 3, 36)),
        "J_regressor": regressor,
        "kintree_table": np.array([[ROOT, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
        "weights": weights,
        "vt": uv,
        "ft": uv_triangles.astype(np.int32),
        "right_of_seam": len(right_seam),
        "static_triangles": rng.integers(0, len(skin_triangles), 51),
        "static_weights": rng.dirichlet(np.ones(3), 51),
        "dynamic_triangles": rng.integers(0, len(skin_triangles), (79, 17)),
        "dynamic_weights": shares,
        "full_triangles": rng.integers(0, len(skin_triangles), (1, 68)),
        "full_weights": rng.dirichlet(np.ones(3), (1, 68)),
        "regions": {
            name: np.sort(rng.choice(count, 20, replace=False))
            for name in "face lips scalp left_ear right_ear neck nose boundary".split()
        },
        # Colours as affine functions of the coordinates: constant, along u, along v (down), for each RGB channel.
        "colour": np.array([[0.2, 0.5, 0.1], [0.3, 0.1, 0.4], [0.6, -0.2, 0.1]]),
        "colour_modes": 0.05 * rng.normal(size=(3, 3, 4)),
    }


def write_flame(folder: Path, seed: int = 0, directions: int = 20, name: str = "generic_model.pkl") -> Path:
    """FLAME 2019 and 2020's `generic_model.pkl`.

    Keys and shapes: github.com/vchoutas/smplx, body_models.py, class FLAME (v_template, f, shapedirs, posedirs,
    J_regressor, kintree_table, weights); classes of the values: github.com/vchoutas/smplx, README, "Removing Chumpy
    objects" and tools/clean_ch.py, and github.com/mattloper/chumpy, ch.py, `__getstate__`; SciPy 0.x's state of
    csc_matrix; Python 2, protocol 2.
    """
    t = truth(seed, directions)
    values = {key: t[key] for key in ("v_template", "f", "posedirs", "kintree_table", "weights")}
    values["shapedirs"] = chumpy(t["shapedirs"])
    values["v_template"] = chumpy(t["v_template"])
    values["weights"] = chumpy(np.asfortranarray(t["weights"]))
    values["J_regressor"] = sparse(t["J_regressor"])
    values |= {"bs_style": "lbs", "bs_type": "lrotmin", "J": t["J_regressor"] @ t["v_template"]}
    path = folder / name
    path.write_bytes(python2_pickle(values))
    return path


def write_flame_npz(folder: Path, seed: int = 0, directions: int = 20) -> Path:
    """The same as `FLAME_NEUTRAL.npz`, which smplx's FLAME takes with `ext="npz"`: dense, without objects."""
    t = truth(seed, directions)
    keys = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights")
    path = folder / "FLAME_NEUTRAL.npz"
    np.savez_compressed(path, bs_style="lbs", bs_type="lrotmin", **{key: t[key] for key in keys})
    return path


def write_masks(folder: Path, seed: int = 0) -> Path:
    """`FLAME_masks.pkl` (flame.is.tue.mpg.de, "FLAME vertex masks"): vertex ids by region."""
    path = folder / "FLAME_masks.pkl"
    path.write_bytes(python2_pickle(truth(seed)["regions"]))
    return path


def write_static_embedding(folder: Path, seed: int = 0) -> Path:
    """`flame_static_embedding.pkl` (github.com/soubhiksanyal/RingNet): 51 landmarks; read by smplx's FLAME."""
    t, path = truth(seed), folder / "flame_static_embedding.pkl"
    values = {"lmk_face_idx": t["static_triangles"].astype(np.uint32), "lmk_b_coords": t["static_weights"]}
    path.write_bytes(python2_pickle(values))
    return path


def write_dynamic_embedding(folder: Path, seed: int = 0) -> Path:
    """`flame_dynamic_embedding.npy` (github.com/soubhiksanyal/RingNet): 17 jaw landmarks at 79 yaws; read by smplx."""
    t, path = truth(seed), folder / "flame_dynamic_embedding.npy"
    values = {"lmk_face_idx": t["dynamic_triangles"], "lmk_b_coords": t["dynamic_weights"]}
    np.save(path, np.array(values, object), allow_pickle=True)
    return path


def write_deca_embedding(folder: Path, seed: int = 0, full: bool = True) -> Path:
    """`landmark_embedding.npy` (github.com/yfeng95/DECA, decalib/models/FLAME.py); the dynamic ones are torch's."""
    t, path = truth(seed), folder / "landmark_embedding.npy"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n(U\x03abctRK\x00K\x01\x85K\x01\x85tR"
    )
    values = {
        "static_lmk_faces_idx": t["static_triangles"],
        "static_lmk_bary_coords": t["static_weights"],
        "dynamic_lmk_faces_idx": tensor,
        "dynamic_lmk_bary_coords": tensor,
    }
    if full:
        values |= {"full_lmk_faces_idx": t["full_triangles"], "full_lmk_bary_coords": t["full_weights"]}
    np.save(path, np.array({}, object), allow_pickle=True)
    header = path.read_bytes()[:128]
    path.write_bytes(header + python2_pickle(ObjectArray(values)))
    return path


def write_texture(folder: Path, file: str = "FLAME_texture.npz", seed: int = 0) -> Path:
    """A texture space: colours (blue first) that are affine in the coordinates, as 24 x 24 texels.

    `FLAME_texture.npz`: mean (512, 512, 3) of 0 to 255, tex_dir (512, 512, 3, 200), vt (5118, 2), ft (9976, 3);
    `albedoModel2020_FLAME_albedoPart.npz`: MU, PC (512, 512, 3, 145), linear, specMU, specPC, vt, ft, after
    github.com/TimoBolkart/TF_FLAME, sample_texture.py; `FLAME_albedo_from_BFM.npz`: MU (512 * 512 * 3), PC
    (512 * 512 * 3, 199) and no coordinates, after github.com/TimoBolkart/BFM_to_FLAME, col_to_tex.py.
    """
    t, path = truth(seed), folder / file
    across, down = np.meshgrid(*2 * [(np.arange(TEXELS) + 0.5) / TEXELS])
    place = np.stack([np.ones_like(across), across, down], axis=-1)
    mean = (place @ t["colour"])[..., ::-1]
    modes = np.tensordot(place, t["colour_modes"], axes=1)[..., ::-1, :]
    coordinates = {"vt": t["vt"], "ft": t["ft"]}
    if file == "FLAME_texture.npz":
        np.savez(path, mean=(255 * mean).astype(np.float32), tex_dir=(255 * modes).astype(np.float32), **coordinates)
    elif file == "FLAME_albedo_from_BFM.npz":
        np.savez(path, MU=mean.ravel(), PC=modes.reshape(-1, modes.shape[-1]))
    else:
        np.savez(path, MU=mean, PC=np.asfortranarray(modes), specMU=mean, specPC=modes, **coordinates)
    return path


def write_template(folder: Path, seed: int = 0) -> Path:
    """`head_template.obj` (github.com/yfeng95/DECA, data/): v, vt and f with both indices, counted from 1."""
    t, path = truth(seed), folder / "head_template.obj"
    lines = [f"v {x} {y} {z}" for x, y, z in t["v_template"]] + [f"vt {u} {v}" for u, v in t["vt"]]
    for corners, places in zip(t["f"] + 1, t["ft"] + 1, strict=True):
        lines.append("f " + " ".join(f"{c}/{p}" for c, p in zip(corners, places, strict=True)))
    path.write_text("\n".join(lines))
    return path


def chumpy(values: np.ndarray) -> Instance:
    """A chumpy array: the state of `Ch` after its `__getstate__`."""
    state = {"_dirty_vars": set(), "_itr": None, "_make_dense": False, "_make_sparse": False, "x": values}
    return Instance("chumpy.ch", "Ch", state | {"_depends_on_deps": {}})


def sparse(values: np.ndarray) -> Instance:
    """A SciPy csc_matrix under its old module."""
    rows, columns = (part[np.lexsort(np.nonzero(values))] for part in np.nonzero(values))
    state = {
        "_shape": values.shape,
        "data": values[rows, columns],
        "indices": rows.astype(np.int32),
        "indptr": np.searchsorted(columns, np.arange(values.shape[1] + 1)).astype(np.int32),
        "maxprint": 50,
        "format": "csc",
    }
    return Instance("scipy.sparse.csc", "csc_matrix", state)


class ObjectArray(NamedTuple):
    """An array of dtype object, without dimensions, that holds one value."""

    value: Any


def python2_pickle(value: Any) -> bytes:
    """A pickle as Python 2 and NumPy 1 wrote it (protocol 2); a `bytes` value is put in as it is, as opcodes."""
    memo: dict[str, bytes] = {}

    def dtype_of(dtype: np.dtype) -> bytes:
        if dtype.str not in memo:
            memo[dtype.str] = struct.pack("<BB", ord("h"), len(memo))
            order = "|" if dtype.hasobject else "<"
            state = dump((3, order, None, None, None, -1, -1, 63 if dtype.hasobject else 0))
            put = struct.pack("<BB", ord("q"), len(memo) - 1)  # before its state, as pickle does
            return b"cnumpy\ndtype\n" + dump((dtype.str[1:], 0, 1)) + b"R" + put + state + b"b"
        return memo[dtype.str]

    def array(dtype: np.dtype, shape: tuple, fortran: bool, raw: bytes) -> bytes:
        start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        return start + b"(K\x01" + dump(shape) + dtype_of(dtype) + dump(fortran) + raw + b"tb"

    def dump(value: Any) -> bytes:
        match value:
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int() if 0 <= value < 256:
                return struct.pack("<cB", b"K", value)
            case int():
                return struct.pack("<ci", b"J", value)
            case float():
                return struct.pack(">cd", b"G", value)
            case bytes():
                return value
            case str():
                return struct.pack("<ci", b"T", len(value)) + value.encode("latin-1")
            case set():
                return b"c__builtin__\nset\n(" + dump(list(value)) + b"tR"
            case list():
                return b"](" + b"".join(map(dump, value)) + b"e"
            case dict():
                return b"}(" + b"".join(dump(key) + dump(item) for key, item in value.items()) + b"u"
            case Instance():
                return f"c{value.module}\n{value.name}\n".encode() + b")\x81" + dump(value.state) + b"b"
            case ObjectArray():
                return array(np.dtype(object), (), False, dump([value.value]))
            case tuple():
                return b"(" + b"".join(map(dump, value)) + b"t"
            case np.ndarray():
                fortran = value.flags.f_contiguous and not value.flags.c_contiguous
                raw = value.tobytes(order="F" if fortran else "C")
                return array(value.dtype, value.shape, fortran, struct.pack("<ci", b"T", len(raw)) + raw)
        raise TypeError(type(value))

    return b"\x80\x02" + dump(value) + b"."
