"""Where a detector or an annotator places landmarks on one person, apart from the model's own points.

Whoever places landmarks is wrong in the same way in every photo of a head: definitions differ, and so do faces. One
photo cannot tell such an offset from shape and expression; several that share both identity and annotator can. Known,
it is no longer taken for expression in the next photo.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fitting.fit import Fit
from morphable.landmarks import INNER

OFFSET_MM = 2.0  # prior deviation in each direction: definitions of the same point differ by 1 to 4 mm
_ROBUST = 3.0  # deviations beyond which an error counts linearly (Huber), as in the landmark term


def landmark_offsets(fits: Sequence[Fit], offset_mm: float = OFFSET_MM) -> Float[np.ndarray, "68 3"]:
    """How far from the model's points the given ones of a person's fits lie on the head: mm, in head axes.

    The most probable offsets for a Gaussian prior of deviation `offset_mm` and each photo's own noise, point by point.
    Zero for the jaw, whose points slide, and for points that no photo shows; fits without their problem say nothing.
    """
    precision = np.tile(np.eye(3) / offset_mm**2, (68, 1, 1))
    weighted = np.zeros((68, 3))
    for fit in (f for f in fits if f.problem is not None):
        problem, face, _ = fit.inside
        rotation = np.asarray(face.pose.rotation().as_matrix(), float)
        points = np.asarray(problem.model.landmarks.positions(face.identity, face.expression), float)
        camera = points @ rotation.T + np.asarray(face.pose.translation(), float)
        focal, depth = float(jnp.exp(face.log_focal)), camera[:, 2:]
        pixels = focal * camera[:, :2] / depth + np.asarray(problem.centre)
        sigma = np.asarray(problem.sigma_px, float)[:, None]
        known = np.isfinite(sigma)
        error = np.where(known, (np.asarray(problem.points_px) - pixels) / np.where(known, sigma, 1.0), 0.0)
        slope = np.zeros((68, 2, 3))
        slope[:, 0, 0] = slope[:, 1, 1] = focal / depth[:, 0]
        slope[:, :, 2] = -focal * camera[:, :2] / depth**2
        slope = np.where(known[..., None], slope @ rotation / np.where(known, sigma, 1.0)[..., None], 0.0)
        weight = np.minimum(1.0, _ROBUST / np.maximum(np.linalg.norm(error, axis=1), 1e-9))
        precision += weight[:, None, None] * np.einsum("lki,lkj->lij", slope, slope)
        weighted += weight[:, None] * np.einsum("lki,lk->li", slope, error)
    offsets = np.linalg.solve(precision, weighted[..., None])[..., 0]
    inner = np.zeros(68, bool)
    inner[INNER] = True
    return np.where(inner[:, None], offsets, 0.0).astype(np.float32)
