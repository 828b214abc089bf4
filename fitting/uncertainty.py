"""How sure a fit is: deviations of every coefficient and vertex, and what the photo could not show.

A fit's noise levels are chosen for robustness against what no term models, so the inverse of its Hessian is not the
covariance of its error. That is worked out instead from the noise which the photo's own residuals show. With H the
Hessian, P the priors' part of it and H_i, k_i, t_i a data term's part, the real variance of its noise over the assumed
one, and the number of neighbouring rows that share one error,

    covariance = H⁻¹ (P + Σ k_i t_i H_i) H⁻¹,

which is H⁻¹ where the assumed noise is right. Expression weights are then cut at their bounds. docs/uncertainty.md
derives all this and states what it cannot know.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8
from scipy.linalg import cho_factor, cho_solve
from scipy.special import log_ndtr
from threadpoolctl import threadpool_limits

from fitting.energies import BlockPrior, DistancePrior, LandmarkTerm, PhotometricTerm
from fitting.fit import Fit
from fitting.heat_map import heat_map
from fitting.parameters import FaceParameters, retract, within_limits
from fitting.terms import AbstractResidualTerm, Terms, WeightedTerm
from morphable.model import MorphableModel

Alignment = Literal["none", "rigid", "similarity"]

# LAPACK's own threads spin between the small factorisations and make them slower, by far on a busy machine.
_one_thread = threadpool_limits.wrap(limits=1, user_api="blas")
_PRIORS = (BlockPrior, DistancePrior)
_LAG_MM, _LAGS = 4.0, 15  # bins of distance in which the correlation of skin residuals is measured
_UNSEEN = 0.9  # posterior over prior variance above which a photo has said nothing about a coefficient


class TermNoise(NamedTuple):
    """What a photo's residuals say about the noise of one term."""

    rows: float  # residuals that count, outliers less
    used: float  # of them, how many the unknowns have absorbed: trace of H⁻¹ H_i
    variance: float  # real over assumed
    shared: float  # how many neighbouring rows have one error


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """Where the true unknowns may lie, seen from the fitted ones, in the flat step of `fitting.parameters`.

    Unknowns that the fit held fixed are taken as known. `covariance` is about the mean, `offset` leads from the fit
    to the mean: it is not zero for expression weights near their bounds, for what depends on them, and for a fit that
    stopped early.
    """

    face: FaceParameters  # as fitted
    free: Bool[np.ndarray, " step"]
    offset: Float[np.ndarray, " step"]
    covariance: Float[np.ndarray, "step step"]
    prior: Float[np.ndarray, "step step"]  # inverse covariance of the priors; 0 where there is none
    data: dict[str, Float[np.ndarray, "step step"]]  # Gauss-Newton Hessian of each data term, its noise as assumed
    noise: dict[str, TermNoise]

    @property
    def error(self) -> Float[np.ndarray, "step step"]:
        """Mean squared error of the fit."""
        return self.covariance + np.outer(self.offset, self.offset)

    def sigma(self, block: str) -> Float[np.ndarray, " n"]:
        """Root mean squared error of a block's entries: fit ± sigma holds the truth in two cases of three.

        Units are the block's own; the pose's are mm along and radians about the head's axes, the focal length's is
        relative. At a bound of an expression weight the interval has one side only.
        """
        at = self.face.layout.block(block)
        return np.sqrt(np.maximum(np.diag(self.error)[at], 0.0))

    def sample(self, key: Key[Array, ""]) -> FaceParameters:
        """A face that could have been the true one; expression weights are clipped to their limits."""
        values, vectors = np.linalg.eigh(self._scaled(self.covariance))
        root = self._scale()[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
        draw = np.asarray(jax.random.normal(key, (len(values),)))
        face = retract(self.face, jnp.asarray(self.offset + root @ draw, jnp.float32))
        return within_limits(face)

    def _scale(self):
        return np.sqrt(np.maximum(np.diag(self.error), 1e-30))

    def _scaled(self, matrix):
        scale = self._scale()
        return matrix / scale / scale[:, None]

    @_one_thread
    def vertex_covariance(
        self, model: MorphableModel, expression: bool = True, alignment: Alignment = "none"
    ) -> Float[np.ndarray, "vertex 3 3"]:
        """Mean squared error of every vertex as a 3 x 3 matrix, mm²; its axes are those of an error ellipsoid.

        Of the face with its expression, or of the neutral one. With `alignment` "none" the error is that in head
        space, the frame of the model's modes: what an animator sees who puts the head where the model says. "rigid"
        and "similarity" take away what a rotation and translation (and a change of size) of the whole face can undo:
        what a comparison with a scan sees after aligning it.
        """
        motion = self._motion(model, expression, alignment)
        return np.matmul(motion, motion.transpose(0, 2, 1))

    @_one_thread
    def vertex_sigma(
        self, model: MorphableModel, expression: bool = True, alignment: Alignment = "none"
    ) -> Float[np.ndarray, " vertex"]:
        """Root mean squared distance of every vertex from its true place, mm; see `vertex_covariance`."""
        motion = self._motion(model, expression, alignment)
        return np.sqrt(np.sum(motion**2, axis=(1, 2)))

    def _motion(self, model, expression, alignment) -> Float[np.ndarray, "vertex 3 direction"]:
        """Vertex displacements along the error's independent directions, each of unit variance."""
        at = self.face.layout.block("geometry" if expression else "identity")
        # Weights and deviations have like sizes, so this block needs no scaling.
        values, vectors = np.linalg.eigh(self.error[at, at])
        kept = values > 1e-6 * values[-1]
        root = (vectors[:, kept] * np.sqrt(values[kept])).astype(np.float32)
        modes = [np.asarray(model.shape.modes)]
        if expression:
            modes.append(np.asarray(model.expression))
        count, parts, start = len(model.mean), [], 0
        for basis in modes:
            rank = basis.shape[2]
            parts.append(basis.reshape(3 * count, rank) @ root[start : start + rank])
            start += rank
        motion = sum(parts[1:], start=parts[0])
        if alignment != "none":
            motion = motion - _rigid_part(model, motion, similarity=alignment == "similarity")
        return motion.reshape(count, 3, -1)

    def picture(
        self, model: MorphableModel, expression: bool = True, alignment: Alignment = "none"
    ) -> UInt8[np.ndarray, "_ _ 3"]:
        """`vertex_sigma` as colours on the head from three sides; the scale ends where 99 % of the face does."""
        sigma = self.vertex_sigma(model, expression, alignment)
        weights = self.face.expression if expression else jnp.zeros_like(self.face.expression)
        face = np.asarray(model.masks.get("face", np.ones(len(sigma)))) > 0.5
        vertices = np.asarray(model.vertices(self.face.identity, weights))
        return heat_map(model, vertices, sigma, float(np.quantile(sigma[face], 0.99)), "mm", (-40.0, 0.0, 40.0))

    def conditioning(self) -> "ConditioningReport":
        """What the photo says about each coefficient, beside what the prior says."""
        return ConditioningReport.of(self)


def _rigid_part(model, motion, similarity):
    """The part of displacements of the face that a small rotation, translation and change of size makes."""
    vertices = np.asarray(model.mean, np.float64)
    weight = np.asarray(model.masks.get("face", np.ones(len(vertices))), np.float64)
    centred = vertices - np.average(vertices, axis=0, weights=weight)
    generators = [np.tile(axis, (len(vertices), 1)) for axis in np.eye(3)]
    generators += [np.cross(axis, centred) for axis in np.eye(3)]
    if similarity:
        generators.append(centred)
    basis = np.stack([g.ravel() for g in generators], axis=1)
    weighted = basis * np.repeat(weight, 3)[:, None]
    # Procrustes' solution to first order: weighted least squares on the face, applied to all of the head.
    undone = np.linalg.solve(weighted.T @ basis, weighted.T.astype(np.float32) @ motion)
    return basis.astype(np.float32) @ undone.astype(np.float32)


# ------------------------------------------------------------------------------------------------------ from a fit


def posterior(fit: Fit) -> Posterior:
    """The posterior of a fit: the terms of its last stage about everything that any stage has moved."""
    terms, face, problem = fit.terms(), fit.parameters, fit.problem
    assert face is not None and problem is not None  # else fit.terms() has raised
    layout = face.layout
    free = np.array(layout.free(*{name for stage in fit.stages for name in stage["free"]}))
    expression = layout.block("expression")
    free[expression] *= np.asarray(problem.model.free_units)
    return posterior_of_terms(face, terms, free)


@_one_thread
def posterior_of_terms(face: FaceParameters, terms: Terms, free: Float[np.ndarray, " step"]) -> Posterior:
    """The posterior of a face that minimises the sum of some terms over the free entries of its step.

    Terms that are a BlockPrior or a DistancePrior are priors, all others are data, whose noise is estimated from
    their residuals. Terms of weight zero are left out.
    """
    weights = {name: float(term.weight) if isinstance(term, WeightedTerm) else 1.0 for name, term in terms.items()}
    inner = {name: term.term if isinstance(term, WeightedTerm) else term for name, term in terms.items()}
    counting = {name: inner[name] for name in terms if weights[name] > 0}
    size = face.layout.size
    prior, gradient, data, rows = np.zeros((size, size)), np.zeros(size), {}, {}
    for name, (model, gathered) in _gather(counting, face).items():
        gradient += weights[name] * np.asarray(model.gradient, np.float64)
        hessian = weights[name] * np.asarray(model.hessian, np.float64)
        if isinstance(counting[name], _PRIORS):
            prior += hessian
        else:
            data[name] = hessian
            rows[name] = gathered._replace(square=weights[name] * gathered.square)
    total = sum(data.values(), start=prior)

    # What nothing holds, stays where it is.
    movable = (free > 0) & (np.diag(total) > 0)
    expression = face.layout.block("expression")
    value = np.asarray(face.expression, np.float64)
    pushed = np.zeros(size, bool)
    pushed[expression] = ((value <= 0) & (gradient[expression] > 0)) | ((value >= 1) & (gradient[expression] < 0))

    noise = _estimate_noise(rows, data, prior, _Inverse(total, movable & ~pushed))
    spread = sum((noise[name].variance * noise[name].shared * data[name] for name in data), start=prior)
    solve = _Inverse(total, movable)
    covariance = solve(solve(spread).T)
    # The unbounded minimum, seen from the fit: where Gauss-Newton would go next if there were no bounds.
    offset = -solve(gradient)
    bounded = np.flatnonzero(movable[expression])
    offset, covariance = _cut(offset, covariance, bounded + expression.start, -value[bounded])
    return Posterior(face, movable, offset, covariance, prior, data, noise)


class _Rows(NamedTuple):
    """What a term's whitened residuals tell of its noise."""

    square: Float[Array, ""]  # sum of their squares, outliers less
    number: Float[Array, ""]  # how many they are, outliers less
    skin: tuple[Array, Array, Array] | None  # places (mean face, mm), residuals and weights of samples of the skin


@eqx.filter_jit
def _gather(terms, face):
    """Each term's Gauss-Newton model and rows."""
    gathered = {}
    for name, term in terms.items():
        model, square, skin = term.linearise(face), None, None
        if isinstance(term, PhotometricTerm):
            weight = term.inlier_weights(face)
            count = 3 * jnp.sum(weight)
            skin = (term.skin.geometry[:, :3], term.residuals(face), weight)
        elif isinstance(term, LandmarkTerm | AbstractResidualTerm):
            rows = term.residuals(face)
            kernel = term.kernel if isinstance(term, LandmarkTerm) else term.kernel()
            norm = jnp.sum(rows**2, axis=1)
            weight = jnp.ones_like(norm) if kernel is None else kernel.weight(norm)
            square = jnp.sum(weight * norm)
            # An infinite deviation drops an entry: its residual is exactly zero.
            count = jnp.sum(weight[:, None] * (rows != 0))
        else:
            count = jnp.sum(term.flat_residuals(face) != 0)
        gathered[name] = model, _Rows(2 * model.energy if square is None else square, count, skin)
    return gathered


class _Inverse:
    """Applies the inverse of a symmetric matrix's chosen rows and columns; the others give zero."""

    def __init__(self, matrix, chosen):
        self.at = np.flatnonzero(chosen)
        part = matrix[np.ix_(self.at, self.at)]
        # Radians, millimetres and light differ by orders of magnitude: to a unit diagonal. The ridge, as the solver's,
        # is what single-precision Hessians need to stay positive.
        self.scale = 1 / np.sqrt(np.diag(part))
        self.factor = cho_factor(part * self.scale * self.scale[:, None] + 1e-7 * np.eye(len(part)))

    def __call__(self, right):
        scale = self.scale if right.ndim == 1 else self.scale[:, None]
        out = np.zeros(right.shape)
        out[self.at] = scale * cho_solve(self.factor, scale * right[self.at])
        return out


def _estimate_noise(rows: dict[str, _Rows], data, prior, inverse) -> dict[str, TermNoise]:
    """Real noise variance of each data term over the assumed one: moments of the residuals, all terms together.

    At the minimum the residuals of term i are its noise less what all unknowns have absorbed, plus what the other
    terms and the prior have pulled; their expected squares are linear in all the variances. It is Helmert's estimation
    of variance components (Helmert 1907), with priors as a component whose variance is known to be 1.
    """
    from scipy.optimize import nnls  # slow to import

    names = list(data)
    if not names:
        return {}
    moved = {name: inverse(data[name]) for name in names}
    square, count = (np.array([float(getattr(rows[n], key)) for n in names]) for key in ("square", "number"))
    shared = np.array([1.0 if (skin := rows[n].skin) is None else _shared_rows(*map(np.asarray, skin)) for n in names])
    design = np.array([[s * np.sum(moved[j] * moved[i].T) for j, s in zip(names, shared, strict=True)] for i in names])
    used = np.array([np.trace(moved[name]) for name in names])
    design[np.diag_indices(len(names))] += count - 2 * shared * used
    of_prior = inverse(prior)
    pulled = np.array([np.sum(of_prior * moved[name].T) for name in names])
    # A term's squares vary in proportion to their number: all terms get a like standing.
    standing = 1 / np.sqrt(np.maximum(count, 1.0))
    variance, _ = nnls(design * standing[:, None], (square - pulled) * standing)
    # Where the prior alone would have made larger residuals than there are, there still is their own size.
    variance = np.maximum(variance, square / np.maximum(count, 1.0))
    columns = zip(names, count, used, variance, shared, strict=True)
    return {name: TermNoise(*(float(v) for v in values)) for name, *values in columns}


def _shared_rows(places, residual, weight) -> float:
    """How many skin samples have one error: the sum of the correlation of a sample's residual with all others'."""
    used = weight > 0
    root = np.sqrt(weight[used])[:, None] * residual.transpose(0, 2, 1)[used]
    # Any number of first samples is spread evenly over the face: a part that stands for all.
    part, at = root[:1024], places.transpose(0, 2, 1)[used][:1024]
    if len(part) < 2:
        return 1.0
    square = np.sum(at**2, axis=1)
    apart = np.sqrt(np.maximum(square[:, None] + square - 2 * at @ at.T, 0.0))
    lag = np.minimum((apart / _LAG_MM).astype(int), _LAGS)
    products = part @ part.T
    np.fill_diagonal(products, 0.0)
    sums = np.bincount(lag.ravel(), products.ravel(), _LAGS + 1)[:_LAGS]
    # The correlation up to its first zero (as Geyer 1992): what comes later is noise, and what the fit has absorbed.
    positive = np.cumprod(sums > 0)
    return 1.0 + float(np.sum(sums * positive) / np.sum(part**2)) * len(root) / len(part)


# ---------------------------------------------------------------------------------------------------------- bounds


def _cut(mean, covariance, bounded, low):
    """Mean and covariance of a Gaussian of which some entries lie in [low, low + 1], by expectation propagation.

    Cunningham, Hennig & Lacoste-Julien (2011): each bound is replaced by a Gaussian factor that gives its entry the
    moments of the truncated marginal; the other entries follow by conditioning.
    """
    if len(bounded) == 0:
        return mean, covariance
    inner = np.ix_(bounded, bounded)
    prior_mean, prior = mean[bounded], covariance[inner]
    count = len(bounded)
    precision, shift = np.zeros(count), np.zeros(count)
    now, value = prior.copy(), prior_mean.copy()
    for _ in range(30):
        before = value.copy()
        for i in range(count):
            cavity_precision = 1 / now[i, i] - precision[i]
            if cavity_precision <= 0:
                continue
            cavity_mean = (value[i] / now[i, i] - shift[i]) / cavity_precision
            m, v = truncated_moments(cavity_mean, 1 / cavity_precision, low[i], low[i] + 1)
            new = max(1 / v - cavity_precision, 0.0)
            change, pull = new - precision[i], (m / v - cavity_mean * cavity_precision) - shift[i]
            precision[i], shift[i] = new, shift[i] + pull
            column = now[:, i].copy()
            gain = 1 / (1 + change * column[i])
            value = value + column * (pull - change * value[i]) * gain
            now = now - np.outer(column, column) * (change * gain)
        if np.max(np.abs(value - before)) < 1e-5:
            break
    spread = covariance[:, bounded] @ np.linalg.inv(prior + 1e-12 * np.eye(count))
    cut = covariance + spread @ (now - prior) @ spread.T
    moved = mean + spread @ (value - prior_mean)
    return moved, (cut + cut.T) / 2


def truncated_moments(mean: float, variance: float, low: float, high: float) -> tuple[float, float]:
    """Mean and variance of a Gaussian restricted to an interval, also far out in its tails."""
    s = math.sqrt(variance)
    a, b = (low - mean) / s, (high - mean) / s
    flip = a + b < 0
    if flip:
        a, b = -b, -a
    if a > 30.0:
        # Far out in the tail, where the differences below lose their digits, the density falls as exp(-a x), up to
        # terms of 1 / a².
        width = b - a
        rest = math.exp(-min(a * width, 700.0))
        centre = a + 1 / a - width * rest / (1 - rest)
        spread = 1 / a**2 - width**2 * rest / (1 - rest) ** 2
    else:
        upper, lower = log_ndtr(-a), log_ndtr(-b)
        mass = upper + math.log1p(-math.exp(lower - upper))
        density = lambda x: math.exp(-0.5 * x * x - 0.5 * math.log(2 * math.pi) - mass)  # noqa: E731
        centre = density(a) - density(b)
        spread = 1 + a * density(a) - b * density(b) - centre**2
    centre = -centre if flip else centre
    return mean + s * centre, max(variance * spread, 1e-12 * variance)


# ---------------------------------------------------------------------------------------------------- conditioning


class BlockConditioning(NamedTuple):
    """What a photo says about one block of coefficients, in units of the prior's deviations."""

    prior: Float[np.ndarray, " n"]  # deviation of each free coefficient before the photo
    error: Float[np.ndarray, " n"]  # and after it: root mean squared error
    singular: dict[str, Float[np.ndarray, " n"]]  # of each data term and of "all", whitened by the prior, largest first

    @property
    def ratio(self) -> Float[np.ndarray, " n"]:
        """Squared error over the prior's variance: 1 for a coefficient of which the photo says nothing."""
        return (self.error / self.prior) ** 2

    def observed(self, term: str = "all") -> float:
        """Number of directions that the term rather than the prior decides: Σ s² / (1 + s²) (MacKay 1992)."""
        square = self.singular[term] ** 2
        return float(np.sum(square / (1 + square)))

    @property
    def unseen(self) -> list[int]:
        """Free coefficients that are as uncertain as before."""
        return [int(i) for i in np.flatnonzero(self.ratio > _UNSEEN)]


@dataclasses.dataclass(frozen=True, eq=False)
class ConditioningReport:
    """Which coefficients the photo decides, which the prior: singular values of the data terms, block by block.

    A singular value s of the data term, whitened by the prior and with all other unknowns eliminated, says how many
    times smaller than the prior's deviation the term's noise is along a direction; below 1 the prior decides. The
    noise is the one that the fit assumed, as this is what the fit went by.
    """

    blocks: dict[str, BlockConditioning]
    index: dict[str, list[int]]  # of the free coefficients within their block
    noise: dict[str, TermNoise]

    @classmethod
    @_one_thread
    def of(cls, posterior: Posterior) -> "ConditioningReport":
        """The report of a posterior: every block with a Gaussian prior on each free coefficient."""
        layout, prior = posterior.face.layout, posterior.prior
        sources = {**posterior.data, "all": sum(posterior.data.values(), start=np.zeros_like(prior))}
        blocks, index = {}, {}
        for name in ("identity", "expression", "albedo", "light"):
            at = layout.block(name)
            chosen = np.flatnonzero(posterior.free[at] & (np.diag(prior)[at] > 0)) + at.start
            if len(chosen) == 0:
                continue
            others = np.setdiff1d(np.flatnonzero(posterior.free), chosen)
            deviation = 1 / np.sqrt(np.diag(prior)[chosen])
            singular = {}
            for source, hessian in sources.items():
                told = _marginal(prior + hessian, chosen, others) - prior[np.ix_(chosen, chosen)]
                whitened = np.linalg.eigvalsh(told * deviation * deviation[:, None])[::-1]
                singular[source] = np.sqrt(np.maximum(whitened, 0.0))
            index[name] = [int(i) for i in chosen - at.start]
            blocks[name] = BlockConditioning(deviation, posterior.sigma(name)[index[name]], singular)
        return cls(blocks, index, posterior.noise)

    def table(self) -> str:
        """The report as text."""
        lines = ["term            rows  absorbed  real noise / assumed  rows that share an error"]
        for name, noise in self.noise.items():
            deviation = math.sqrt(noise.variance)
            lines.append(f"{name:14s} {noise.rows:5.0f}  {noise.used:8.1f}  {deviation:20.2f}  {noise.shared:24.1f}")
        for name, block in self.blocks.items():
            free = len(block.prior)
            each = ", ".join(f"{block.observed(t):.1f} by {t}" for t in block.singular if t != "all")
            lines += ["", f"{name}: {block.observed():.1f} of {free} directions seen ({each})"]
            strongest = " ".join(f"{s:.2g}" for s in block.singular["all"][:10])
            lines.append(f"  singular values {strongest}" + (" ..." if free > 10 else ""))
            ratio = block.ratio
            best = np.argsort(ratio)[:5]
            told = ", ".join(f"{self.index[name][i]} ({ratio[i]:.2f})" for i in best)
            lines.append(f"  best known coefficients, left of the prior's variance: {told}")
            unseen = [self.index[name][i] for i in block.unseen]
            listed = ", ".join(map(str, unseen[:12])) + (" ..." if len(unseen) > 12 else "")
            lines.append(f"  as uncertain as before: {len(unseen)}" + (f" ({listed})" if unseen else ""))
        return "\n".join(lines)


def _marginal(information, chosen, others):
    """Information about some unknowns when the others are unknown too: their Schur complement."""
    chosen_only, cross = np.zeros(len(information), bool), information[:, chosen]
    chosen_only[others] = True
    return information[np.ix_(chosen, chosen)] - cross.T @ _Inverse(information, chosen_only)(cross)
