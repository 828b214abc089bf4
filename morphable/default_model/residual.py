"""Gaussian-process residual: smooth displacements outside the identity space (Luethi et al., TPAMI 2017)."""

import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import eigsh

MODES = 33
# Standard deviation and length scale of three Gaussian kernels (mm).
KERNELS = ((2.5, 45.0), (1.2, 22.0), (0.5, 11.0))
BACK_WEIGHT = 0.15  # amplitude away from the face, relative to the face


def kernel(
    x: Float[np.ndarray, "m 3"], y: Float[np.ndarray, "n 3"], wx: Float[np.ndarray, "m"], wy: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "m n"]:
    """Covariance of one displacement coordinate between surface points (mm2)."""
    d2 = np.maximum((x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T, 0.0)
    k = np.zeros_like(d2)
    for sigma, length in KERNELS:
        k += sigma**2 * np.exp(-d2 / (2 * length**2))
    return wx[:, None] * k * wy


def face_weight(points: Float[np.ndarray, "point 3"], centre: Float[np.ndarray, "3"]) -> Float[np.ndarray, "point"]:
    """One on the face, falling to BACK_WEIGHT behind it; `centre` lies in the head, behind the nose's base."""
    distance = np.linalg.norm((points - centre) / [1, 1.15, 1], axis=1)
    return BACK_WEIGHT + (1 - BACK_WEIGHT) / (1 + np.exp((distance - 95) / 12))


def residual_modes(
    mean: Float[np.ndarray, "row 3"],
    part_rows: dict[str, slice],
    centre: Float[np.ndarray, "3"],
    count: int = MODES,
) -> Float[np.ndarray, "row mode"]:
    """Scalar modes (mm at one standard deviation); the displacement uses the same basis for x, y and z.

    Eigenvectors of the kernel over the skin's vertices, extended by Nystroem's formula: to the lashes, which sit on the
    skin, point by point, and to the rigid parts (eyes, teeth, tongue) by one value at their middle.
    """
    skin = mean[part_rows["skin"]]
    w = face_weight(skin, centre)
    variance, vectors = eigsh(kernel(skin, skin, w, w), k=count, v0=np.ones(len(skin)))
    order = np.argsort(-variance)
    variance, vectors = variance[order], vectors[:, order]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(count)])
    out = np.zeros((len(mean), count))
    out[part_rows["skin"]] = vectors * np.sqrt(variance)
    for part, rows in part_rows.items():
        if part != "skin":
            points = mean[rows] if part.startswith("lashes") else mean[rows].mean(axis=0, keepdims=True)
            out[rows] = kernel(points, skin, face_weight(points, centre), w) @ vectors / np.sqrt(variance)
    return out
