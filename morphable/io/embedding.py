"""Where the 68 landmarks lie on a model, as a text file that one can edit."""

import json
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from morphable.io.contents import ModelFileError
from morphable.landmarks import SurfacePoints
from morphable.model import MorphableModel

FORMAT, VERSION = "facefit-landmarks", 1
_LARGEST = 10_000_000  # bytes; 68 landmarks need a few thousand


def write_embedding(path: str | Path, model: MorphableModel, spread_mm: Float[np.ndarray, "68"] | None = None) -> None:
    """Write a model's landmarks as JSON: vertices and barycentric weights of each, in iBUG-68 order.

    `spread_mm` says how far the views disagreed, where they were found by `fitting.model_landmarks`.
    """
    corners, weights = np.asarray(model.landmarks.vertices), np.asarray(model.landmarks.weights, float)
    entries = [
        {"ibug": k, "vertices": corners[k].tolist(), "weights": [round(float(w), 6) for w in weights[k]]}
        | ({} if spread_mm is None else {"spread_mm": round(float(spread_mm[k]), 2)})
        for k in range(68)
    ]
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    head = {"format": FORMAT, "version": VERSION, "model": model.provenance.name, "sha256": model.provenance.sha256}
    Path(path).write_text(f'{json.dumps(head)[:-1]}, "landmarks": [\n{lines}\n]}}\n', encoding="utf-8")


def read_embedding(path: str | Path, model: MorphableModel) -> SurfacePoints:
    """The landmarks of a file that `write_embedding` wrote and somebody may have edited; weights are made to sum to 1.

    Raises ModelFileError where they are not 68 places on this model.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise ModelFileError(f"{path}: larger than {_LARGEST} bytes, expected a file of landmarks.")
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = {int(entry["ibug"]): entry for entry in content["landmarks"]}
        corners = np.array([entries[k]["vertices"] for k in range(68)], np.int64)
        weights = np.array([entries[k]["weights"] for k in range(68)], float)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"{path}: no file of 68 landmarks ({type(error).__name__}: {error}); expected what "
            "'facefit model landmarks' writes."
        ) from error
    if corners.shape != (68, 3) or weights.shape != (68, 3) or not np.isfinite(weights).all():
        raise ModelFileError(f"{path}: got vertices {corners.shape} and weights {weights.shape}, expected three each.")
    if corners.min() < 0 or corners.max() >= len(model.mean):
        raise ModelFileError(
            f"{path}: got vertices {corners.min()} to {corners.max()}, expected 0 to {len(model.mean) - 1}. "
            "Are they of another model?"
        )
    total = weights.sum(axis=1, keepdims=True)
    if (weights < -0.01).any() or (total < 0.5).any():
        raise ModelFileError(f"{path}: got weights below 0 or that sum to 0, expected barycentric ones.")
    return SurfacePoints(jnp.asarray(corners, jnp.int32), jnp.asarray(weights / total, jnp.float32))


def with_landmarks(model: MorphableModel, landmarks: SurfacePoints) -> MorphableModel:
    """The model with other landmarks; jaw-line paths stay as they are."""
    return eqx.tree_at(lambda m: m.landmarks, model, landmarks)
