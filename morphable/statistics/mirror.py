"""The symmetry of a population: that a face's mirror image is as likely as the face."""

import numpy as np
from jaxtyping import Float, Int

from morphable.statistics.principal_components import (
    PrincipalComponents,
    StatisticsError,
    principal_components,
)


def mirrored(
    shapes: Float[np.ndarray, "shape vertex channel"],
    mirror: Int[np.ndarray, " vertex"],
    signs: tuple[float, ...] = (-1.0, 1.0, 1.0),
) -> Float[np.ndarray, "shape vertex channel"]:
    """Every shape's mirror image on the same mesh: vertex i moves to where its counterpart `mirror[i]` is, x negated.

    `signs` multiply the channels: those of positions by default, (1, 1, 1) for colours.
    """
    if len(signs) != shapes.shape[2] or not np.array_equal(mirror[mirror], np.arange(shapes.shape[1])):
        raise StatisticsError(
            f"mirrored: got {len(signs)} signs for {shapes.shape[2]} channels, or a mirror table of {len(mirror)} "
            f"entries for {shapes.shape[1]} vertices that is not its own inverse."
        )
    return shapes[:, mirror] * np.array(signs)


def symmetric_components(
    shapes: Float[np.ndarray, "shape vertex channel"],
    mirror: Int[np.ndarray, " vertex"],
    rank: int | None = None,
    weights: Float[np.ndarray, " vertex"] | None = None,
    signs: tuple[float, ...] = (-1.0, 1.0, 1.0),
) -> PrincipalComponents:
    """Components of shapes and their mirror images: each mode is symmetric, or antisymmetric, to rounding.

    A shape is the sum of a symmetric and an antisymmetric half, which the images make uncorrelated: two Gram matrices
    of m shapes serve where one of 2 m would. The antisymmetric halves' mean is known to be 0, so theirs is divided by
    m, the others' by m - 1, and there are up to 2 m - 1 modes. The weights should be symmetric, and are made so.
    """
    images = mirrored(shapes, mirror, signs)
    if weights is not None:
        weights = (weights + weights[mirror]) / 2
    even = principal_components((shapes + images) / 2, weights=weights)
    odd = principal_components((shapes - images) / 2, weights=weights, centred=True)
    variances = np.concatenate([even.variances, odd.variances])
    # What one half leaves to the other by rounding is no mode.
    variances = np.where(variances > 1e-12 * variances.max(initial=0.0), variances, 0.0)
    order = np.argsort(-variances, kind="stable")[: int((variances > 0).sum())][:rank]
    modes = np.concatenate([even.modes, odd.modes], axis=2)[..., order]
    total = even.total_variance + odd.total_variance
    return PrincipalComponents(even.mean, modes, variances[order], total, even.weights, len(shapes))
