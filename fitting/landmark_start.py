"""A first pose from landmarks, in closed form."""

import numpy as np
from jaxtyping import Float


class LandmarkFitError(ValueError):
    """Landmarks from which no pose can be computed."""


def weak_perspective_pose(
    points: Float[np.ndarray, "point 3"], pixels: Float[np.ndarray, "point 2"]
) -> tuple[Float[np.ndarray, "3 3"], float, Float[np.ndarray, "2"]]:
    """Rotation (camera from head), scale (px per mm) and the pixel of the head's origin; NaN rows are ignored.

    Least squares for an affine camera, then the nearest scaled rotation (the POS step of DeMenthon & Davis 1995).
    """
    known = np.isfinite(pixels).all(axis=1)
    if known.sum() < 4:
        raise LandmarkFitError(
            f"pose from landmarks: got {known.sum()} finite points, expected at least 4 not in one plane. "
            "Give more landmarks."
        )
    system = np.concatenate([points[known], np.ones((known.sum(), 1))], axis=1)
    affine = np.linalg.lstsq(system, pixels[known], rcond=None)[0]
    a, b = affine[:3, 0], affine[:3, 1]
    scale = 0.5 * (np.linalg.norm(a) + np.linalg.norm(b))
    if not scale > 1e-9:
        raise LandmarkFitError(
            "pose from landmarks: all points coincide, expected them spread over the face. Check the landmark file."
        )
    rows = np.stack([a / np.linalg.norm(a), b / np.linalg.norm(b)])
    rows = np.concatenate([rows, np.cross(rows[0], rows[1])[None]])
    u, _, vt = np.linalg.svd(rows)
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    return rotation, float(scale), affine[3]
