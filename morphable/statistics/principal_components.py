"""Principal components of registered shapes: by the Gram matrix, streamed from disk, and with missing vertices.

All return modes that carry their standard deviations (`morphable.basis`), largest first, each with the sign that makes
the first of its largest entries positive, so that the same data give the same model everywhere.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from morphable.basis import GaussianBasis

# Variances below this share of the largest are rounding: the Gram matrix squares the deviations' condition.
ROUNDING = 1e-13
# Entries this close to a mode's largest one count as equal to it: mirror images are, but for rounding.
EQUAL = 1e-6
CHUNK = 2048  # vertices whose systems are solved at once


class StatisticsError(ValueError):
    """Data that statistics cannot be taken of."""


class PrincipalComponents(NamedTuple):
    """x = mean + modes · c with c ~ N(0, I), in double precision, and what the modes leave out."""

    mean: Float[np.ndarray, "vertex channel"]
    modes: Float[np.ndarray, "vertex channel rank"]  # at one standard deviation
    variances: Float[np.ndarray, " rank"]  # the weighted sum of the squares of a mode's entries
    total_variance: float  # of the data, in the same scalar product
    weights: Float[np.ndarray, " vertex"]  # of the scalar product Σ w (x · y)
    samples: int  # shapes they were taken of

    @property
    def rank(self) -> int:
        """Number of modes."""
        return self.modes.shape[-1]

    @property
    def basis(self) -> GaussianBasis:
        """The same space as a model's basis, in JAX's default precision."""
        return GaussianBasis(jnp.asarray(self.mean, float), jnp.asarray(self.modes, float))

    @property
    def explained(self) -> Float[np.ndarray, " rank"]:
        """Share of the data's variance that the first 1, 2, ... modes explain together."""
        return np.cumsum(self.variances) / self.total_variance if self.total_variance > 0 else np.ones(self.rank)

    def truncate(self, rank: int) -> "PrincipalComponents":
        """The same space with its first modes only."""
        if not 0 <= rank <= self.rank:
            raise StatisticsError(f"truncate: got rank {rank}, expected 0..{self.rank}, the number of modes.")
        return self._replace(modes=self.modes[..., :rank], variances=self.variances[:rank])

    def truncate_to_share(self, share: float) -> "PrincipalComponents":
        """The fewest first modes that explain this share of the variance; all of them where none suffice."""
        if not 0 <= share <= 1:
            raise StatisticsError(f"truncate_to_share: got {share}, expected a share of the variance in 0..1.")
        enough = np.flatnonzero(np.r_[0.0, self.explained] >= share - 1e-12)
        return self.truncate(int(enough[0]) if len(enough) else self.rank)

    def coefficients(self, shapes: Float[np.ndarray, "shape vertex channel"]) -> Float[np.ndarray, "shape rank"]:
        """Coefficients of the nearest members of the space in the weighted scalar product, standard deviations."""
        weighted = self.modes * self.weights[:, None, None]
        return (
            (shapes - self.mean).reshape(len(shapes), -1) @ weighted.reshape(self.mean.size, self.rank) / self.variances
        )

    def instances(self, coefficients: Float[np.ndarray, "shape rank"]) -> Float[np.ndarray, "shape vertex channel"]:
        """The members of the space with these coefficients; fewer than modes leave the rest at the mean."""
        modes = self.modes[..., : coefficients.shape[1]]
        flat = coefficients @ modes.reshape(self.mean.size, coefficients.shape[1]).T
        return self.mean + flat.reshape(len(coefficients), *self.mean.shape)


class ProbabilisticComponents(NamedTuple):
    """Probabilistic PCA: x = mean + modes · c + noise, with c ~ N(0, I) and the same noise in every entry."""

    components: PrincipalComponents  # without the noise's variance, which plain PCA adds to each mode's
    noise_variance: float  # of one channel of one vertex
    completed: Float[np.ndarray, "shape vertex channel"]  # what was seen as given, the rest as expected given that
    log_likelihood: Float[np.ndarray, " iteration"]  # per seen number, at the start of each iteration
    converged: bool

    def with_noise(self) -> PrincipalComponents:
        """The modes at the standard deviations of noisy data: plain PCA's, where nothing is missing."""
        noise = self.noise_variance * float(self.components.weights.mean())
        variances = self.components.variances
        noisy = np.sqrt(1 + np.divide(noise, variances, out=np.zeros_like(variances), where=variances > 0))
        return self.components._replace(modes=self.components.modes * noisy, variances=variances + noise)


def principal_components(
    shapes: Float[np.ndarray, "shape vertex channel"],
    rank: int | None = None,
    weights: Float[np.ndarray, " vertex"] | None = None,
    centred: bool = False,
) -> PrincipalComponents:
    """Modes of shapes on one mesh, from the Gram matrix of m shapes: at most m - 1, by 1 / (m - 1) of their squares.

    Exact, and cheap where shapes are fewer than their numbers (Turk & Pentland 1991). `weights`, 1 by default, make
    vertices count by their area, say; those of weight 0 follow as regression on the scores moves them. `centred` says
    that the population's mean is known to be 0: there are then up to m modes, by 1 / m. Fewer where shapes depend on
    each other linearly.
    """
    shapes = np.asarray(shapes, float)
    count, vertices = len(shapes), shapes.shape[1]
    if count < 2 and not (centred and count == 1):
        raise StatisticsError(f"principal_components: got {count} shapes, expected 2 or more; one has no variance.")
    if not np.isfinite(shapes).all():
        raise StatisticsError(
            "principal_components: some entries are not finite. Use probabilistic_components for missing vertices."
        )
    weights = _checked_weights(weights, vertices)
    mean = np.zeros(shapes.shape[1:]) if centred else shapes.mean(axis=0)
    deviations = shapes - mean
    gram = gram_matrix(deviations, weights) / (count if centred else count - 1)
    variances, vectors = _descending_eigen(gram)
    kept = variances > ROUNDING * max(count, 1) * max(variances[0], np.finfo(float).tiny)
    most = min(int(kept.sum()), count if centred else count - 1)
    if rank is not None:
        most = min(most, _checked_rank(rank))
    # A mode is its unit vector times its deviation: Σ (x - mean) u / √(m - 1), whatever the weights.
    modes = np.tensordot(deviations, vectors[:, :most], axes=(0, 0)) / np.sqrt(count if centred else count - 1)
    return PrincipalComponents(mean, _signed(modes), variances[:most], float(np.trace(gram)), weights, count)


def streamed_components(
    batches: Iterable[Float[np.ndarray, "_ vertex channel"]],
    rank: int,
    weights: Float[np.ndarray, " vertex"] | None = None,
    oversampling: int = 10,
    power_iterations: int = 2,
    seed: int = 0,
) -> PrincipalComponents:
    """Leading modes of more shapes than memory holds, by a randomised SVD in 2 + `power_iterations` passes.

    Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1: a random sketch finds the data's range, power iterations
    sharpen it, and the SVD of what the data are within it gives the modes. `batches` is anything that can be iterated
    again and again and yields the same batches each time: a memory-mapped array cut in slices, an object whose
    `__iter__` reads files. Held are one batch and (rank + oversampling) x vertex x channel numbers three times; the
    mean is found in the first pass, beside the sketch. The weights must be above 0.
    """
    rank = _checked_rank(rank)
    if iter(batches) is batches:
        raise StatisticsError(
            "streamed_components: got an iterator, which can be read once only; expected a list or an object whose "
            "__iter__ starts again, as several passes are made."
        )
    rng = np.random.default_rng(seed)
    size = rank + oversampling
    count, origin, root = 0, None, None
    total, squares, drawn, sketch = (np.zeros(0),) * 4
    for batch in batches:
        if origin is None or root is None:
            # Sums of differences from one of the shapes: those of the shapes themselves would lose digits.
            origin = np.array(batch[0], float)
            weights = _checked_weights(weights, len(origin), positive=True)
            root = np.sqrt(weights)[:, None]
            total, squares = np.zeros(origin.size), np.zeros(())
            drawn, sketch = np.zeros(size), np.zeros((origin.size, size))
        rows = _rows(batch, origin, root)
        random = rng.standard_normal((len(rows), size))
        count += len(rows)
        total += rows.sum(axis=0)
        squares = squares + (rows**2).sum()
        drawn += random.sum(axis=0)
        sketch += rows.T @ random
    if origin is None or root is None or weights is None or count < 2:
        raise StatisticsError(f"streamed_components: got {count} shapes, expected 2 or more.")
    mean_row = total / count
    mean = origin + mean_row.reshape(origin.shape) / root
    total_variance = float(squares - count * mean_row @ mean_row) / (count - 1)
    sketch -= mean_row[:, None] * drawn
    for _ in range(power_iterations):
        axes = np.linalg.qr(sketch)[0]
        sketch = np.zeros_like(axes)
        seen = 0
        for batch in batches:
            rows = _rows(batch, mean, root)
            sketch += rows.T @ (rows @ axes)
            seen += len(rows)
        if seen != count:
            raise StatisticsError(
                f"streamed_components: got {count} shapes in the first pass and {seen} in a later one; expected the "
                "same each time. Does the iterable start again?"
            )
    axes = np.linalg.qr(sketch)[0]
    triangle = np.zeros((0, axes.shape[1]))
    for batch in batches:
        # The triangular factor of all rows so far stands for them: nothing grows with the number of shapes.
        triangle = np.linalg.qr(np.concatenate([triangle, _rows(batch, mean, root) @ axes]), mode="r")
    _, deviations, directions = np.linalg.svd(triangle, full_matrices=False)
    variances = deviations**2 / (count - 1)
    kept = min(rank, count - 1, int((variances > ROUNDING * max(variances[0], np.finfo(float).tiny)).sum()))
    modes = (axes @ (directions[:kept].T * np.sqrt(variances[:kept]))).reshape(*mean.shape, kept) / root[..., None]
    return PrincipalComponents(mean, _signed(modes), variances[:kept], total_variance, weights, count)


def probabilistic_components(
    shapes: Float[np.ndarray, "shape vertex channel"],
    seen: Bool[np.ndarray, "shape vertex"],
    rank: int,
    iterations: int = 300,
    tolerance: float = 1e-6,
) -> ProbabilisticComponents:
    """Probabilistic PCA (Tipping & Bishop 1999) of shapes of which some vertices are unseen, by EM.

    The E step infers each shape's coefficients from what is seen of it; the M step solves for each vertex's mean and
    modes from the shapes that show it (Roweis 1998; Ilin & Raiko 2010, section 3), and then turns the modes so that
    the coefficients' second moment is the identity, without which EM crawls (parameter expansion: Liu, Rubin & Wu
    1998). It starts from PCA of the shapes with holes filled by the vertices' means, and stops when the log-likelihood
    gains less than `tolerance` per seen number. Vertices that not all shapes show have a Gaussian prior on their modes,
    of the deviations that each mode has over the whole mesh: few shapes would otherwise fix many modes (Ilin & Raiko
    2010, section 4).

    What unseen entries hold does not matter. With nothing missing this is PCA: its span, and its variances less the
    noise's, by 1 / (m - 1) as there, where maximum likelihood has 1 / m. The rank is at most m - 2 for m shapes: what
    the modes leave tells the noise.
    """
    shapes = np.where(seen[..., None], np.asarray(shapes, float), 0.0)
    count, vertices, channels = shapes.shape
    rank = _checked_rank(rank)
    if not 1 <= rank <= count - 2:
        raise StatisticsError(
            f"probabilistic_components: got rank {rank} for {count} shapes, expected 1..{count - 2}: the noise is told "
            "by what the modes leave."
        )
    if not np.isfinite(shapes).all():
        raise StatisticsError("probabilistic_components: some seen entries are not finite; mark them as unseen.")
    times = seen.sum(axis=0)
    if not times.all():
        raise StatisticsError(
            f"probabilistic_components: {int((times == 0).sum())} vertices are seen in no shape, the first is "
            f"{int(np.argmin(times))}. Leave them out, or give them values."
        )
    flat = vertices * channels
    seen_numbers = int(times.sum()) * channels
    mean = shapes.sum(axis=0) / times[:, None]
    start = principal_components(np.where(seen[..., None], shapes, mean), rank)
    spread = start.total_variance / flat
    if spread == 0:
        raise StatisticsError("probabilistic_components: all shapes are equal; there is no variance to explain.")
    floor = 1e-10 * spread  # EM never leaves a noise of 0
    # Maximum likelihood if all were seen (Tipping & Bishop 1999, equations 7 and 8): the directions that the modes
    # leave have equal parts of what they leave, and the modes the rest.
    likely = start.variances[:rank] * (count - 1) / count
    noise = max((start.total_variance * (count - 1) / count - likely.sum()) / (flat - rank), floor)
    modes = np.zeros((flat, rank))
    modes[:, : len(likely)] = start.modes[..., :rank].reshape(flat, -1)
    modes[:, : len(likely)] *= np.sqrt(np.maximum(likely - noise, floor) / start.variances[:rank])
    patterns, pattern_of, uses = np.unique(seen.T, axis=0, return_inverse=True, return_counts=True)
    problem = _Holes(seen, patterns, pattern_of.ravel(), uses)
    history: list[float] = []
    converged = False
    scores = np.zeros((count, rank))
    for _ in range(iterations):
        rows = np.where(seen[..., None], shapes - mean, 0.0).reshape(count, flat)
        scores, spreads, likelihood = _expectation(rows, modes, noise, problem)
        history.append(likelihood / seen_numbers)
        if len(history) > 1 and abs(history[-1] - history[-2]) < tolerance:
            converged = True
            break
        modes, step, noise = _maximisation(rows, scores, spreads, modes, noise, problem, channels)
        mean = mean + step.reshape(mean.shape)
        noise = max(noise, floor)
    expected = mean + (scores @ modes.T).reshape(count, vertices, channels)
    noise = noise * count / (count - 1)
    modes = modes * np.sqrt(count / (count - 1))
    variances, axes = _descending_eigen(modes.T @ modes)
    rotated = _signed((modes @ axes).reshape(vertices, channels, rank))
    total = float(variances.sum() + noise * flat)
    components = PrincipalComponents(mean, rotated, variances, total, np.ones(vertices), count)
    completed = np.where(seen[..., None], shapes, expected)
    return ProbabilisticComponents(components, float(noise), completed, np.array(history), converged)


def gram_matrix(
    deviations: Float[np.ndarray, "shape vertex channel"], weights: Float[np.ndarray, " vertex"]
) -> Float[np.ndarray, "shape shape"]:
    """Weighted scalar products of all pairs of shapes."""
    rows = (deviations * np.sqrt(weights)[:, None]).reshape(len(deviations), -1)
    return rows @ rows.T


class _Holes(NamedTuple):
    """Which vertices each shape shows, and the few patterns in which shapes show vertices."""

    seen: Bool[np.ndarray, "shape vertex"]
    patterns: Bool[np.ndarray, "pattern shape"]
    pattern_of: np.ndarray  # of each vertex
    uses: np.ndarray  # vertices of each pattern


def _expectation(rows, modes, noise, holes: _Holes):
    """Posterior means (shape, rank) and covariances of the coefficients, and the log-likelihood of what is seen."""
    count, rank = len(rows), modes.shape[1]
    channels = rows.shape[1] // holes.seen.shape[1]
    full = modes.T @ modes
    by_vertex = modes.reshape(-1, channels, rank)
    scores, spreads, likelihood = np.zeros((count, rank)), np.zeros((count, rank, rank)), 0.0
    towards = rows @ modes
    for i, row in enumerate(rows):
        shown = holes.seen[i]
        fewer = by_vertex[~shown] if 2 * shown.sum() > len(shown) else by_vertex[shown]
        part = fewer.reshape(-1, rank)
        gram = full - part.T @ part if 2 * shown.sum() > len(shown) else part.T @ part
        precision = gram + noise * np.eye(rank)
        inverse = np.linalg.inv(precision)
        scores[i] = inverse @ towards[i]
        spreads[i] = noise * inverse
        numbers = int(shown.sum()) * channels
        likelihood -= 0.5 * (
            numbers * np.log(2 * np.pi)
            + (numbers - rank) * np.log(noise)
            + np.linalg.slogdet(precision)[1]
            + (row @ row - towards[i] @ scores[i]) / noise
        )
    return scores, spreads, float(likelihood)


def _maximisation(rows, scores, spreads, modes, noise, holes: _Holes, channels):
    """New modes (flat, rank), step of the mean (flat,) and noise variance."""
    count, rank = scores.shape
    vertices = holes.seen.shape[1]
    extended = np.concatenate([scores, np.ones((count, 1))], axis=1)
    moments = extended[:, :, None] * extended[:, None, :]
    moments[:, :rank, :rank] += spreads
    # What each vertex's shapes show, against coefficients: (vertex, rank + 1, channel).
    towards = (rows.T @ extended).reshape(vertices, channels, rank + 1).transpose(0, 2, 1)
    # A vertex's squared modes, averaged over the mesh; the mean (last) has none: nothing is known of it.
    prior = np.diag(np.r_[noise * len(modes) / np.maximum((modes**2).sum(axis=0), 1e-300), 0.0])
    complete: np.ndarray = np.asarray(holes.patterns.all(axis=1))
    solved = np.zeros((vertices, rank + 1, channels))

    def systems(patterns):
        sums = (holes.patterns[patterns].astype(float) @ moments.reshape(count, -1)).reshape(-1, rank + 1, rank + 1)
        return sums + np.where(complete[patterns][:, None, None], 0.0, prior)

    common = np.flatnonzero(holes.uses >= 16)
    for pattern in common:
        of_pattern = np.flatnonzero(holes.pattern_of == pattern)
        right = towards[of_pattern].transpose(1, 0, 2).reshape(rank + 1, -1)
        answer = np.linalg.solve(systems(np.array([pattern]))[0], right)
        solved[of_pattern] = answer.reshape(rank + 1, -1, channels).transpose(1, 0, 2)
    rare = np.flatnonzero(~np.isin(holes.pattern_of, common))
    for start in range(0, len(rare), CHUNK):
        of_chunk = rare[start : start + CHUNK]
        solved[of_chunk] = np.linalg.solve(systems(holes.pattern_of[of_chunk]), towards[of_chunk])
    partly = ~complete[holes.pattern_of]
    penalty = float(np.einsum("vkc,k,vkc->", solved[partly], np.diag(prior), solved[partly]))
    # Σ |x|² - 2 bᵀw + wᵀ S w with (S + prior) w = b: the expected squares of what the modes leave.
    squares = float((rows**2).sum() - (towards * solved).sum() - penalty)
    noise = squares / (int(holes.seen.sum()) * channels)
    modes = solved[:, :rank].transpose(0, 2, 1).reshape(-1, rank)
    step = solved[:, rank].reshape(-1)
    # Parameter expansion: the coefficients' mean and second moment go into the mean and the modes.
    offset = scores.mean(axis=0)
    moment = moments[:, :rank, :rank].mean(axis=0) - np.outer(offset, offset)
    return modes @ np.linalg.cholesky(moment), step + modes @ offset, noise


def _rows(batch, mean, root):
    if batch.ndim != 3 or batch.shape[1:] != mean.shape:
        raise StatisticsError(
            f"streamed_components: got a batch of shape {batch.shape} after shapes of {mean.shape}; expected (shape, "
            "vertex, channel) on one mesh."
        )
    rows = np.asarray(batch, float) - mean
    if not np.isfinite(rows).all():
        raise StatisticsError("streamed_components: some entries are not finite; expected complete shapes.")
    rows *= root
    return rows.reshape(len(rows), -1)


def _descending_eigen(symmetric):
    values, vectors = np.linalg.eigh(symmetric)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def _signed(modes):
    """Each mode with the sign that makes the first of its largest entries positive."""
    if modes.size == 0:
        return modes
    flat = modes.reshape(-1, modes.shape[-1])
    size = np.abs(flat)
    first = np.argmax(size >= (1 - EQUAL) * size.max(axis=0), axis=0)
    return modes * np.where(flat[first, np.arange(flat.shape[1])] < 0, -1.0, 1.0)


def _checked_weights(weights, vertices, positive=False):
    if weights is None:
        return np.ones(vertices)
    weights = np.asarray(weights, float)
    bad = (weights <= 0) if positive else (weights < 0)
    if weights.shape != (vertices,) or bad.any() or not np.isfinite(weights).all() or not weights.any():
        raise StatisticsError(
            f"weights: got {weights.shape} with {int(bad.sum())} too small, expected ({vertices},) finite ones "
            f"{'above' if positive else 'of at least'} 0."
        )
    return weights


def _checked_rank(rank):
    if rank < 0:
        raise StatisticsError(f"got rank {rank}, expected 0 or more modes.")
    return rank
