"""facefit's own model file: one compressed `.npz` with a JSON manifest, never a pickle.

Format `facefit-model`, version 1. Geometry is stored before subdivision when `manifest["subdivision"]` is 1: one
Catmull-Clark level is then evaluated on load, which costs milliseconds and keeps the file four times smaller.
Arrays: see `docs/model_format.md`.
"""

import hashlib
import json
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from morphable.basis import GaussianBasis
from morphable.io.contents import ModelFileError
from morphable.landmarks import ContourFans, SurfacePoints
from morphable.mesh import catmull_clark, triangulate
from morphable.model import MorphableModel, Provenance
from morphable.rig import Gaze, Rig

FORMAT, VERSION = "facefit-model", 1
_REQUIRED = (
    "mean identity expression uv albedo_mean albedo_modes albedo_scale landmarks_vertices landmarks_weights "
    "masks mirror"
).split()


def read_native(path: str | Path) -> MorphableModel:
    """Read a model from its native file; lengths are mm, axes those of `docs/conventions.md`."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); expected a facefit model (.npz). Check --model."
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    del data
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, TypeError) as error:  # TypeError: a bare .npy
        raise ModelFileError(
            f"{path}: not a readable .npz ({error}); expected a facefit model file. Was it cut off while copying?"
        ) from error
    if "manifest" not in arrays:
        raise ModelFileError(
            f"{path}: no 'manifest' among {sorted(arrays)}; expected a facefit model. Other formats need their reader."
        )
    manifest = json.loads(str(arrays.pop("manifest")))
    if manifest.get("format") != FORMAT or manifest.get("version", 0) > VERSION:
        raise ModelFileError(
            f"{path}: got format {manifest.get('format')!r} version {manifest.get('version')}, expected {FORMAT!r} "
            f"up to version {VERSION}. A newer facefit wrote it: upgrade."
        )
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing or not ({"quads", "triangles"} & arrays.keys()):
        raise ModelFileError(f"{path}: arrays {missing or ['quads or triangles']} are missing, found {sorted(arrays)}.")
    return _assemble(arrays, manifest, digest)


def _assemble(arrays: dict[str, np.ndarray], manifest: dict, digest: str) -> MorphableModel:
    base_count = len(arrays["mean"])
    if "quads" in arrays and manifest.get("subdivision", 1):
        stencil, quads = catmull_clark(arrays["quads"], base_count)
        stencil = stencil.astype(np.float32)
        triangles, proxy = triangulate(quads), triangulate(arrays["quads"])

        def refine(values):
            flat = np.asarray(values, np.float32).reshape(base_count, -1)
            return jnp.asarray((stencil @ flat).reshape(-1, *values.shape[1:]))
    else:
        triangles = arrays["triangles"]
        proxy = arrays.get("proxy_triangles", triangles)

        def refine(values):
            return jnp.asarray(values, jnp.float32)

    def exact(values, dtype=jnp.float32):
        return jnp.asarray(values, dtype)

    vertex_count = int(triangles.max()) + 1
    albedo_modes = arrays["albedo_modes"].astype(np.float32) * arrays["albedo_scale"]
    rig = None
    if "skin_weights" in arrays:
        gaze, names = manifest["gaze"], list(manifest["joints"])
        expression = list(manifest["expression"])
        rig = Rig(
            joints=GaussianBasis(exact(arrays["joints_mean"]), exact(arrays["joints_identity"])),
            weights=_convex(refine(arrays["skin_weights"])),
            gaze=Gaze(
                exact([expression.index(g["unit"]) for g in gaze], jnp.int32),
                exact([names.index(g["joint"]) for g in gaze], jnp.int32),
                exact(np.reshape([g["rotation"] for g in gaze], (-1, 3))),
            ),
            names=tuple(names),
            parents=tuple(manifest["joint_parents"]),
        )
    contour = None
    if "contour_vertices" in arrays:
        contour = ContourFans(exact(arrays["contour_vertices"], jnp.int32), exact(arrays["contour_weights"]))
    masks = {name: exact(arrays["masks"][:, k]) / 255 for k, name in enumerate(manifest["masks"])}
    parts = manifest["parts"]
    part_of_vertex = arrays.get("part_of_vertex")
    if part_of_vertex is None:
        part_of_vertex = _parts_after_subdivision(parts, arrays["quads"], vertex_count)
    residual = arrays.get("gp_modes", np.zeros((base_count, 0), np.float32))
    sources = tuple(
        s if isinstance(s, str) else "; ".join(f"{v}" for v in s.values()) for s in manifest.get("sources", ())
    )
    return MorphableModel(
        shape=GaussianBasis(refine(arrays["mean"]), refine(arrays["identity"])),
        expression=refine(arrays["expression"]),
        albedo=GaussianBasis(exact(arrays["albedo_mean"]), exact(albedo_modes)),
        triangles=exact(triangles, jnp.int32),
        uv=refine(arrays["uv"]),
        landmarks=SurfacePoints(exact(arrays["landmarks_vertices"], jnp.int32), exact(arrays["landmarks_weights"])),
        contour=contour,
        rig=rig,
        masks=masks,
        mirror=exact(arrays["mirror"], jnp.int32),
        residual=refine(residual),
        proxy_triangles=exact(proxy, jnp.int32),
        part_of_vertex=exact(part_of_vertex, jnp.int32),
        expression_names=tuple(manifest["expression"]),
        part_names=tuple(p["name"] for p in parts),
        provenance=Provenance(manifest["name"], manifest["licence"], manifest["licence_class"], digest, sources),
    )


def _parts_after_subdivision(parts: list[dict], quads: np.ndarray, vertex_count: int) -> np.ndarray:
    """Part index of every subvertex: old vertices by range, new points by the quads they came from."""
    of_vertex = np.full(vertex_count, -1)
    for index, part in enumerate(parts):
        of_vertex[slice(*part["vertices"])] = index
    _, subquads = catmull_clark(quads, int(quads.max()) + 1)
    of_vertex[subquads] = of_vertex[subquads[:, :1]]  # the first corner of a subquad is an old vertex
    return of_vertex


def write_native(path: str | Path, model: MorphableModel) -> None:
    """Write a model so that `read_native` gives back the same arrays, bit for bit."""
    path = Path(path)
    arrays = {
        "triangles": model.triangles,
        "proxy_triangles": model.proxy_triangles,
        "part_of_vertex": model.part_of_vertex,
        "mean": model.shape.mean,
        "identity": model.shape.modes,
        "expression": model.expression,
        "uv": model.uv,
        "albedo_mean": model.albedo.mean,
        "albedo_modes": model.albedo.modes,
        "albedo_scale": np.ones(model.albedo.rank, np.float32),
        "landmarks_vertices": model.landmarks.vertices,
        "landmarks_weights": model.landmarks.weights,
        "masks": np.stack([np.round(np.asarray(m) * 255) for m in model.masks.values()], axis=1).astype(np.uint8)
        if model.masks
        else np.zeros((len(model.mean), 0), np.uint8),
        "mirror": model.mirror,
        "gp_modes": model.residual,
    }
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "subdivision": 0,
        "name": model.provenance.name,
        "licence": model.provenance.licence,
        "licence_class": model.provenance.licence_class,
        "sources": list(model.provenance.sources),
        "unit": "mm",
        "parts": [{"name": name} for name in model.part_names],
        "expression": list(model.expression_names),
        "masks": list(model.masks),
        "gaze": [],
        "joints": [],
        "joint_parents": [],
    }
    if model.contour is not None:
        arrays |= {"contour_vertices": model.contour.vertices, "contour_weights": model.contour.weights}
    if model.rig is not None:
        rig = model.rig
        arrays |= {
            "skin_weights": rig.weights,
            "joints_mean": rig.joints.mean,
            "joints_identity": rig.joints.modes,
        }
        manifest["joints"], manifest["joint_parents"] = list(rig.names), list(rig.parents)
        manifest["gaze"] = [
            {"unit": model.expression_names[u], "joint": rig.names[j], "rotation": [float(x) for x in r]}
            for u, j, r in zip(
                np.asarray(rig.gaze.units),
                np.asarray(rig.gaze.joints),
                np.asarray(rig.gaze.rotations),
                strict=True,
            )
        ]
    partial = path.with_name(path.name + ".partial.npz")
    stored = {name: np.asarray(values) for name, values in arrays.items()}
    np.savez_compressed(partial, allow_pickle=False, manifest=np.array(json.dumps(manifest)), **stored)
    partial.replace(path)


def _convex(weights):
    """Rows that sum to 1: half precision leaves them off by 1e-3, which would shift skinned vertices."""
    return weights / weights.sum(axis=1, keepdims=True)
