"""How good a shape model is: compactness, generalisation and specificity (Davies 2002; Styner et al. 2003)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from morphable.statistics.principal_components import (
    PrincipalComponents,
    StatisticsError,
    gram_matrix,
    principal_components,
)

# Numbers of modes that a report shows, as far as the model has them.
RANKS = (1, 2, 3, 5, 8, 12, 16, 20, 30, 40, 60, 80, 100)
SAMPLES = 200


class Curve(NamedTuple):
    """A measure by the number of modes, with the standard errors of its values."""

    ranks: tuple[int, ...]
    value: Float[np.ndarray, " rank"]
    error: Float[np.ndarray, " rank"]


class Measures(NamedTuple):
    """Compactness, generalisation and specificity of the model of a set of shapes, by the number of modes."""

    compactness: Curve  # variance of a vertex that the modes hold, mm²
    generalisation: Curve  # mean distance of a vertex of a shape left out from its reconstruction, mm
    specificity: Curve  # mean distance of a vertex of a random member from the nearest shape's, mm
    share: Float[np.ndarray, " rank"]  # of the variance, cumulative
    shapes: int

    def __str__(self) -> str:
        lines = [f"{self.shapes} shapes", "modes  share  compactness mm²  generalisation mm    specificity mm"]
        curves = (self.compactness, self.generalisation, self.specificity)
        for k, rank in enumerate(self.compactness.ranks):
            columns = [
                f"{curve.value[k]:8.3f} ± {curve.error[k]:.3f}" if k < len(curve.ranks) else "" for curve in curves
            ]
            lines.append(
                f"{rank:5d} {self.share[k]:6.3f} {columns[0]:>16s} {columns[1]:>18s} {columns[2]:>17s}".rstrip()
            )
        return "\n".join(lines)


def measure(
    shapes: Float[np.ndarray, "shape vertex channel"],
    ranks: Sequence[int] | None = None,
    weights: Float[np.ndarray, " vertex"] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Measures:
    """The three measures of the principal components of shapes (three or more); `weights` say how vertices count.

    Generalisation leaves each shape out in turn, so it ends at m - 2 modes.
    """
    components = principal_components(shapes, weights=weights)
    chosen = _chosen(ranks, components.rank)
    share = np.r_[0.0, components.explained][list(chosen)]
    return Measures(
        compactness(components, chosen),
        leave_one_out(shapes, [rank for rank in chosen if rank <= len(shapes) - 2], weights),
        specificity(components, shapes, chosen, samples, seed),
        share,
        len(shapes),
    )


def compactness(components: PrincipalComponents, ranks: Sequence[int] | None = None) -> Curve:
    """Cumulative variance of a vertex, and its standard error Σ √(2 / m) λ (Styner et al. 2003, section 2.4)."""
    chosen = _chosen(ranks, components.rank)
    by_rank = np.r_[0.0, np.cumsum(components.variances)][list(chosen)] / components.weights.sum()
    return Curve(chosen, by_rank, by_rank * np.sqrt(2 / components.samples))


def generalisation(
    components: PrincipalComponents,
    shapes: Float[np.ndarray, "shape vertex channel"],
    ranks: Sequence[int] | None = None,
) -> Curve:
    """Mean vertex distance of held-out shapes, in the model's frame, from their reconstructions by 0, 1, ... modes."""
    chosen = _chosen(ranks, components.rank)
    shares = components.weights / components.weights.sum()
    coefficients = components.coefficients(shapes)
    distances = np.empty((len(shapes), len(chosen)))
    for k, rank in enumerate(chosen):
        for i, shape in enumerate(shapes):
            near = components.instances(coefficients[i : i + 1, :rank])[0]
            distances[i, k] = shares @ np.linalg.norm(shape - near, axis=1)
    return _curve(chosen, distances)


def leave_one_out(
    shapes: Float[np.ndarray, "shape vertex channel"],
    ranks: Sequence[int] | None = None,
    weights: Float[np.ndarray, " vertex"] | None = None,
) -> Curve:
    """Generalisation: mean vertex distance of each shape from its reconstruction by the components of the others.

    What a reconstruction leaves is a combination of the shapes, whose weights follow from their Gram matrix: the
    vertices are touched once for each shape left out, whatever the numbers of modes.
    """
    count, vertices = shapes.shape[:2]
    if count < 3:
        raise StatisticsError(f"leave_one_out: got {count} shapes, expected 3 or more: two must remain.")
    chosen = _chosen(ranks, count - 2)
    weights = np.ones(vertices) if weights is None else np.asarray(weights, float)
    shares = weights / weights.sum()
    rows = np.asarray(shapes, float) - np.mean(shapes, axis=0)
    gram = gram_matrix(rows, weights)
    flat = rows.reshape(count, -1)
    distances = np.empty((count, len(chosen)))
    for i in range(count):
        others = np.flatnonzero(np.arange(count) != i)
        # Deviations from the others' mean, as combinations of all shapes.
        centring = np.eye(count)
        centring[:, others] -= 1 / (count - 1)
        inner = centring @ gram @ centring.T
        variances, vectors = np.linalg.eigh(inner[np.ix_(others, others)])
        variances, vectors = variances[::-1], vectors[:, ::-1]
        kept = np.cumprod(variances > 1e-12 * max(variances[0], 1e-300)).astype(bool)
        scores = np.where(kept, vectors.T @ inner[others, i] / np.where(kept, variances, 1.0), 0.0)
        left = np.zeros((count, len(chosen)))
        for k, rank in enumerate(chosen):
            left[i, k] = 1.0
            left[others, k] = -vectors[:, :rank] @ scores[:rank]
        residual = (flat.T @ (centring.T @ left)).reshape(vertices, -1, len(chosen))
        distances[i] = shares @ np.linalg.norm(residual, axis=1)
    return _curve(chosen, distances)


def specificity(
    components: PrincipalComponents,
    shapes: Float[np.ndarray, "shape vertex channel"],
    ranks: Sequence[int] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Curve:
    """Mean vertex distance of random members from the nearest of the shapes, nearest by the root mean square.

    The same random coefficients serve all numbers of modes, so that the values compare.
    """
    if samples < 2:
        raise StatisticsError(f"specificity: got {samples} samples, expected 2 or more.")
    chosen = _chosen(ranks, components.rank)
    shares = components.weights / components.weights.sum()
    draws = np.random.default_rng(seed).standard_normal((samples, components.rank))
    # Squared distances need only the shapes' coefficients and what the modes leave of them, which all samples share.
    scores = components.coefficients(shapes) * np.sqrt(components.variances)
    rows = (shapes - components.mean) * np.sqrt(components.weights)[:, None]
    outside = (rows**2).sum(axis=(1, 2)) - (scores**2).sum(axis=1)
    distances = np.empty((samples, len(chosen)))
    for k, rank in enumerate(chosen):
        drawn = np.where(np.arange(components.rank) < rank, draws, 0.0) * np.sqrt(components.variances)
        squared = (drawn**2).sum(axis=1)[:, None] - 2 * drawn @ scores.T + (scores**2).sum(axis=1) + outside
        nearest = squared.argmin(axis=1)
        for i in range(samples):
            member = components.instances(draws[i : i + 1, :rank])[0]
            distances[i, k] = shares @ np.linalg.norm(member - shapes[nearest[i]], axis=1)
    return _curve(chosen, distances)


def _chosen(ranks, highest):
    if ranks is None:
        return tuple(rank for rank in RANKS if rank < highest) + (highest,)
    if any(not 0 <= rank <= highest for rank in ranks):
        raise StatisticsError(f"got numbers of modes {tuple(ranks)}, expected 0..{highest}.")
    return tuple(int(rank) for rank in ranks)


def _curve(ranks, distances):
    count = len(distances)
    error = distances.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.full(len(ranks), np.nan)
    return Curve(ranks, distances.mean(axis=0), error)
