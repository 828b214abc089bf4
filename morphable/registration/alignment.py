"""Similarity transforms between point sets: Umeyama's, and the generalised Procrustes analysis of many shapes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_GPA_STEPS, _GPA_TOLERANCE = 50, 1e-10  # parts of the shapes' size


class AlignmentError(ValueError):
    """Points that fix no transform: what, got, expected, remedy."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """x -> scale R x + offset, a proper rotation R: never a reflection."""

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    offset: Float[np.ndarray, "3"]

    @classmethod
    def identity(cls) -> "Similarity":
        """The transform that leaves all points where they are."""
        return cls(1.0, np.eye(3), np.zeros(3))

    def __call__(self, points: Float[np.ndarray, "*point 3"]) -> Float[np.ndarray, "*point 3"]:
        """The points' images."""
        return self.scale * points @ self.rotation.T + self.offset

    def __matmul__(self, first: "Similarity") -> "Similarity":
        """Both in turn, the right one first: (a @ b)(x) = a(b(x))."""
        offset = self.scale * self.rotation @ first.offset + self.offset
        return Similarity(self.scale * first.scale, self.rotation @ first.rotation, offset)

    def inverse(self) -> "Similarity":
        """The transform back."""
        back = self.rotation.T / self.scale
        return Similarity(1 / self.scale, self.rotation.T, -back @ self.offset)

    def back(self, points: Float[np.ndarray, "*point 3"]) -> Float[np.ndarray, "*point 3"]:
        """The points that have these images; loses less to rounding than `inverse()` far from the origin."""
        return ((points - self.offset) / self.scale) @ self.rotation

    def turn(self, vectors: Float[np.ndarray, "*point 3"]) -> Float[np.ndarray, "*point 3"]:
        """Directions: turned, neither moved nor scaled."""
        return vectors @ self.rotation.T


def similarity(
    source: Float[np.ndarray, "point 3"],
    target: Float[np.ndarray, "point 3"],
    weights: Float[np.ndarray, " point"] | None = None,
    scaled: bool = True,
) -> Similarity:
    """The transform, with a free scale or without, that takes source nearest to target in the weighted least squares.

    Umeyama 1991, equations 40-43: mirroring is not allowed. Rows with a NaN in either set, and rows of weight 0, do not
    count. Raises AlignmentError where fewer than three rows are left or they lie on a line: the turn is then free.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    w = np.ones(len(source)) if weights is None else np.asarray(weights, float)
    known = np.isfinite(source).all(axis=1) & np.isfinite(target).all(axis=1) & (w > 0)
    if known.sum() < 3:
        raise AlignmentError(
            f"similarity: got {known.sum()} pairs of known points, expected three or more that are not on a line. "
            "Give more landmarks."
        )
    source, target, w = source[known], target[known], w[known]
    a, b = (np.average(x, axis=0, weights=w) for x in (source, target))
    u, s, vt = np.linalg.svd((target - b).T @ ((source - a) * w[:, None]))
    if s[1] <= 1e-9 * s[0] or s[0] == 0:
        raise AlignmentError(
            f"similarity: got {len(source)} pairs of points on a line (or in one place), expected three or more that "
            "span a plane. Give other landmarks."
        )
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    scale = float((s * signs).sum() / (w[:, None] * (source - a) ** 2).sum()) if scaled else 1.0
    return Similarity(scale, rotation, b - scale * rotation @ a)


def generalised_procrustes(
    shapes: Float[np.ndarray, "shape vertex 3"],
    scaled: bool = False,
    weights: Float[np.ndarray, " vertex"] | None = None,
) -> tuple[Float[np.ndarray, "shape vertex 3"], Float[np.ndarray, "vertex 3"], list[Similarity]]:
    """Shapes moved onto each other (Gower 1975): the aligned shapes, their mean, and the motion of each.

    The shapes move onto their mean in turn until it stays. What the law leaves open is fixed thus: the frame is the
    first shape's, moved so that the mean's weighted centroid is the origin; with free scales the mean keeps the mean
    size of the shapes. `weights` say which vertices decide; all are moved.
    """
    shapes = np.asarray(shapes, float)
    w = np.ones(shapes.shape[1]) if weights is None else np.asarray(weights, float)
    w = w / w.sum()
    size = lambda x: float(np.sqrt(w @ ((x - w @ x) ** 2).sum(axis=1)))  # noqa: E731
    sizes = np.array([size(x) for x in shapes])
    mean = shapes[0] - w @ shapes[0]
    if scaled:
        mean = mean * (sizes.mean() / sizes[0])
    motions: list[Similarity] = []
    aligned = shapes
    for _ in range(_GPA_STEPS):
        motions = [similarity(x, mean, w, scaled) for x in shapes]
        aligned = np.stack([motion(x) for motion, x in zip(motions, shapes, strict=True)])
        new = aligned.mean(axis=0)
        new = new - w @ new
        if scaled:
            new = new * (sizes.mean() / size(new))  # shrinking all shapes together would lower the sum for ever
        # The mean may turn with its shapes; only what no common turn explains is progress.
        turned = similarity(new, mean, w, scaled=False)
        new, moved = turned(new), np.abs(turned(new) - mean).max()
        mean = new
        if moved < _GPA_TOLERANCE * sizes.mean():
            break
    return aligned, mean, motions
