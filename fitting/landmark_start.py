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


HYPOTHESIS_YAWS = (-60.0, -30.0, 0.0, 30.0, 60.0)  # degrees; beyond, half of the 68 points are hidden
HYPOTHESIS_PITCHES = (-30.0, 0.0, 30.0)
HYPOTHESES = 4  # of the grid's best; one solve of the landmark stages each


def pose_hypotheses(
    points: Float[np.ndarray, "point 3"], pixels: Float[np.ndarray, "point 2"]
) -> list[tuple[Float[np.ndarray, "3 3"], float, Float[np.ndarray, "2"]]]:
    """Poses as of `weak_perspective_pose`: the best of a grid of yaws and pitches, best first; NaN rows are ignored.

    With the turn given, what is left is a similarity in the image: roll, scale and shift. It is found by least absolute
    deviations, so that wrong points do not carry it off; the closed form, which asks for all at once by least squares,
    loses its rotation to one point in five.
    """
    known = np.isfinite(pixels).all(axis=1)
    target = pixels[known] @ [1, 1j]
    found: list = []
    for yaw in np.radians(HYPOTHESIS_YAWS):
        for pitch in np.radians(HYPOTHESIS_PITCHES):
            about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
            about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
            turn = np.diag([1.0, -1.0, -1.0]) @ about_x @ about_y  # head axes to the camera's, which looks along +z
            flat = points[known] @ turn[:2].T @ [1, 1j]
            weight, factor, shift = np.ones(len(flat)), 0j, 0j
            for _ in range(20):
                root = np.sqrt(weight)
                system = np.stack([flat, np.ones_like(flat)], axis=1)
                factor, shift = np.linalg.lstsq(root[:, None] * system, root * target, rcond=None)[0]
                error = np.abs(factor * flat + shift - target)
                weight = 1 / np.maximum(error, 0.02 * np.median(np.abs(target - np.median(target))) + 1e-9)
            scale, roll = np.abs(factor), np.angle(factor)
            if not scale > 1e-9:
                continue
            in_image = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
            cost = float(np.sum(np.abs(factor * flat + shift - target)))
            found.append((cost, len(found), (in_image @ turn, float(scale), np.array([shift.real, shift.imag]))))
    return [pose for _, _, pose in sorted(found)[:HYPOTHESES]]
