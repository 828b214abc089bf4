"""Attributes of faces from labels: the direction in which a model's coefficients move a label (Blanz & Vetter 1999)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from morphable.statistics.principal_components import StatisticsError

# Ranks that a regression may use, where none is given.
RANKS = (1, 2, 3, 5, 8, 13, 21, 34, 55)


class Attribute(NamedTuple):
    """A label as a linear function of coefficients, and the smallest move that changes it.

    label ≈ mean + gradient · c. A step of 1 along `direction` changes it by one unit, or by its standard deviation.
    """

    name: str
    direction: Float[np.ndarray, " rank"]  # standard deviations of each coefficient at a step of 1
    gradient: Float[np.ndarray, " rank"]  # label per standard deviation of each coefficient
    mean: float  # label at the mean face
    deviation: float  # of the labels
    unit: str  # "deviation" or "one": what a step of 1 changes the label by
    rank: int  # coefficients that the regression used
    correlation: float  # of labels with their prediction from the other shapes; NaN where that could not be had
    labelled: int  # shapes

    @property
    def chance(self) -> float:
        """The size that the correlation of unrelated numbers stays below 95 times in 100, 1.96 / √m."""
        return 1.96 / np.sqrt(self.labelled)

    @property
    def meaningful(self) -> bool:
        """Whether the label can be predicted better than by chance from shapes that it was not learned from."""
        return bool(self.correlation > self.chance)

    def value(self, coefficients: Float[np.ndarray, " rank"]) -> float:
        """The label to expect of a face."""
        return float(self.mean + self.gradient[: len(coefficients)] @ coefficients)

    def moved(self, coefficients: Float[np.ndarray, " rank"], steps: float) -> Float[np.ndarray, " rank"]:
        """The face with the label changed by so many steps; all that has no part in the label stays as it is."""
        return coefficients + steps * self.direction

    def __str__(self) -> str:
        verdict = "" if self.meaningful else f"; not above chance, {self.chance:.2f}: do not trust it"
        return (
            f"{self.name}: {self.mean:.3g} ± {self.deviation:.3g} in {self.labelled} shapes, predicted with "
            f"correlation {self.correlation:.2f} (leave one out, {self.rank} coefficients){verdict}"
        )


def attribute_direction(
    name: str,
    labels: Float[np.ndarray, " shape"],
    coefficients: Float[np.ndarray, "shape rank"],
    unit: str = "deviation",
    rank: int | None = None,
    keeping: Sequence[Attribute] = (),
) -> Attribute:
    """The attribute that labels describe, from the coefficients (standard deviations) of the labelled shapes.

    Blanz & Vetter 1999, section 3.2: ΔS = Σ μ_i (S_i - mean). In whitened coefficients that is the gradient of the
    label's linear regression, and of all moves that change the label as much it is the likeliest: the shortest in
    standard deviations. So a move along it leaves alone the coefficients that have no part in the label; with `keeping`
    it is the shortest that leaves those attributes' labels alone too.

    The regression uses the first `rank` coefficients. Without it, the number among `RANKS`, up to half the shapes, that
    predicts labels best with each shape left out in turn; the reported correlation then chooses it anew for each shape
    without that shape's label, so that it is no optimist. The shapes' own share in the modes is not taken out.
    Rows of NaN labels are left out.
    """
    labels = np.asarray(labels, float)
    labelled = np.isfinite(labels)
    if unit not in ("deviation", "one"):
        raise StatisticsError(f"attribute_direction: got unit {unit!r}, expected 'deviation' or 'one'.")
    if labels.shape != (len(coefficients),) or labelled.sum() < 4:
        raise StatisticsError(
            f"attribute {name!r}: got {int(labelled.sum())} labels for {len(coefficients)} shapes, expected one for "
            "each (NaN where unknown) and 4 or more known ones."
        )
    values, rows = labels[labelled], np.asarray(coefficients, float)[labelled]
    count, deviation = len(values), float(values.std(ddof=1))
    if deviation == 0:
        raise StatisticsError(f"attribute {name!r}: all {count} labels are {values[0]:g}; expected labels that differ.")
    highest = min(rows.shape[1], count // 2)
    if rank is not None and not 1 <= rank <= min(rows.shape[1], count - 2):
        raise StatisticsError(
            f"attribute {name!r}: got rank {rank}, expected 1..{min(rows.shape[1], count - 2)} for {count} labels."
        )
    ranks = (rank,) if rank is not None else tuple(r for r in RANKS if r < highest) + (highest,)
    predicted = np.empty(count)
    for i in range(count):
        others = np.arange(count) != i
        best = _best_rank(values[others], rows[others], ranks)
        mean, gradient = _regression(values[others], rows[others], best)
        predicted[i] = mean + rows[i, :best] @ gradient
    correlation = float(np.corrcoef(predicted, values)[0, 1]) if np.ptp(predicted) > 0 else np.nan
    best = _best_rank(values, rows, ranks)
    gradient = np.zeros(rows.shape[1])
    mean, gradient[:best] = _regression(values, rows, best)
    direction = gradient
    if keeping:
        # The part of the gradient that moves none of the labels to be kept.
        others = np.linalg.svd(np.stack([other.gradient for other in keeping]), full_matrices=False)[2]
        direction = gradient - others.T @ (others @ gradient)
    change = float(direction @ gradient)
    if change <= 1e-12 * float(gradient @ gradient):
        raise StatisticsError(
            f"attribute {name!r}: no direction changes it while keeping {[other.name for other in keeping]}; "
            "the labels are a combination of those."
        )
    step = direction / change * (deviation if unit == "deviation" else 1.0)
    return Attribute(name, step, gradient, float(mean), deviation, unit, best, correlation, count)


def _regression(values, rows, rank):
    """Label at coefficients 0 and gradient by least squares."""
    design = np.concatenate([np.ones((len(rows), 1)), rows[:, :rank]], axis=1)
    solution = np.linalg.lstsq(design, values)[0]
    return solution[0], solution[1:]


def _best_rank(values, rows, ranks):
    """The rank with the least squares of leave-one-out errors, which the hat matrix's diagonal gives (Allen 1974)."""
    if len(ranks) == 1:
        return ranks[0]
    errors = []
    for rank in ranks:
        axes = np.linalg.qr(np.concatenate([np.ones((len(rows), 1)), rows[:, :rank]], axis=1))[0]
        left = 1 - (axes**2).sum(axis=1)
        residual = values - axes @ (axes.T @ values)
        errors.append(np.mean((residual / np.maximum(left, 1e-9)) ** 2))
    return ranks[int(np.argmin(errors))]
