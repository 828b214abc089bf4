"""Levenberg-Marquardt on a sum of terms, with bounds on expression weights."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fitting.energies import Quadratic
from fitting.parameters import FaceParameters, retract

HISTORY = 48  # most steps of a stage whose energies are kept


class Solution(eqx.Module):
    """Where a solver stopped, and how it came there."""

    face: FaceParameters
    energies: Float[Array, "term"]  # of each term at `face`
    history: Float[Array, "iteration term"]  # energies of the accepted face after each step; NaN where no step was made
    steps: Int[Array, ""]
    converged: Bool[Array, ""]  # the relative decrease fell below the tolerance
    finite: Bool[Array, ""]
    hessian: Float[Array, "step step"]  # Gauss-Newton Hessian at `face`: the inverse posterior covariance


def levenberg_marquardt(
    linearise: Callable[[FaceParameters], tuple[Quadratic, Float[Array, " term"]]],
    start: FaceParameters,
    free: Float[Array, " step"],
    steps: Int[Array, ""],
    tolerance: Float[Array, ""] | float = 1e-4,
    damping: float = 1e-3,
) -> Solution:
    """Minimise a sum of terms over the free entries of the step, expression weights kept in [0, 1].

    `linearise` gives the Gauss-Newton model and each term's energy. The damping follows Marquardt (1963): it scales
    the Hessian's diagonal, falls after success and rises after failure. A step is judged when the next Hessian is
    assembled, so every iteration passes over the data once; the Hessian of the last accepted face is kept for retries.
    """

    def iterate(carry):
        k, candidate, best, quadratic, energies, history, damping, _ = carry
        proposal, proposed_energies = linearise(candidate)
        better = (proposal.energy < quadratic.energy) & jnp.isfinite(proposal.energy)
        first = k == 0
        accept = better | first
        decrease = (quadratic.energy - proposal.energy) / jnp.maximum(jnp.abs(quadratic.energy), 1e-12)
        converged = ~first & better & (decrease < tolerance)
        choose = lambda a, b: jax.tree.map(lambda x, y: jnp.where(accept, x, y), a, b)  # noqa: E731
        best, quadratic = choose(candidate, best), choose(proposal, quadratic)
        energies = jnp.where(accept, proposed_energies, energies)
        damping = jnp.where(first, damping, jnp.where(accept, jnp.maximum(damping * 0.3, 1e-6), damping * 8))
        step = bounded_step(quadratic, best, free, damping)
        history = lax.dynamic_update_index_in_dim(history, energies, jnp.minimum(k, HISTORY - 1), 0)
        stuck = damping > 1e6
        candidate = retract(best, step)
        # The step ends on the bounds up to rounding; clipping makes it exact.
        candidate = dataclasses.replace(candidate, expression=jnp.clip(candidate.expression, 0.0, 1.0))
        return k + 1, candidate, best, quadratic, energies, history, damping, converged | stuck

    def running(carry):
        return (carry[0] <= steps) & ~carry[-1]

    size = start.layout.size
    terms = jax.eval_shape(linearise, start)[1].shape[0]
    empty = Quadratic(jnp.zeros((size, size)), jnp.zeros(size), jnp.array(jnp.inf))
    carry = (
        jnp.array(0),
        start,
        start,
        empty,
        jnp.zeros(terms),
        jnp.full((HISTORY, terms), jnp.nan),
        jnp.array(damping),
        jnp.array(False),
    )
    k, _, best, quadratic, energies, history, _, converged = lax.while_loop(running, iterate, carry)
    return Solution(best, energies, history, k - 1, converged, jnp.isfinite(quadratic.energy), quadratic.hessian)


def bounded_step(
    quadratic: Quadratic, face: FaceParameters, free: Float[Array, " step"], damping: Float[Array, ""]
) -> Float[Array, " step"]:
    """Minimiser of the damped quadratic over the free entries, expression weights staying in [0, 1].

    All other unknowns are eliminated first (Schur complement), so the active-set passes over the bounds work on the
    small expression block alone.
    """
    size, at = face.layout.size, face.layout.block("expression")
    expression = jnp.arange(at.start, at.stop)
    others = jnp.concatenate([jnp.arange(at.start), jnp.arange(at.stop, size)])
    diagonal = jnp.diag(quadratic.hessian)
    hessian = quadratic.hessian + jnp.diag(damping * diagonal)
    mask = free > 0
    hessian = jnp.where(mask[:, None] & mask[None, :], hessian, 0.0)
    hessian = hessian + jnp.diag(jnp.where(mask, 0.0, 1.0))
    gradient = jnp.where(mask, quadratic.gradient, 0.0)
    # Unknowns differ by orders of magnitude (radians, millimetres, light): scale to a unit diagonal.
    scale = lax.rsqrt(jnp.maximum(jnp.diag(hessian), 1e-20))
    hessian = hessian * scale[:, None] * scale[None, :]
    hessian = hessian + 1e-7 * jnp.eye(size)
    gradient = gradient * scale

    factor = jnp.linalg.cholesky(hessian[jnp.ix_(others, others)])
    solve = lambda b: lax.linalg.triangular_solve(factor, b, left_side=True, lower=True)  # noqa: E731
    coupling = solve(hessian[jnp.ix_(others, expression)])
    reduced_gradient = solve(gradient[others][:, None])
    schur = hessian[jnp.ix_(expression, expression)] - coupling.T @ coupling
    right = -(gradient[expression] - coupling.T @ reduced_gradient[:, 0])

    unit = scale[expression]
    low, high = (0.0 - face.expression) / unit, (1.0 - face.expression) / unit

    def settle(_, carry):
        fixed, value = carry
        loose = ~fixed
        system = jnp.where(loose[:, None] & loose[None, :], schur, 0.0) + jnp.diag(jnp.where(fixed, 1.0, 0.0))
        target = jnp.where(loose, right - schur @ jnp.where(fixed, value, 0.0), value)
        move = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(system), True), target)
        outside = loose & ((move < low) | (move > high))
        return fixed | outside, jnp.where(outside, jnp.clip(move, low, high), jnp.where(fixed, value, move))

    start = (~mask[expression], jnp.zeros_like(right))
    _, expression_step = lax.fori_loop(0, 4, settle, start)
    expression_step = jnp.clip(expression_step, low, high)
    rest = lax.linalg.triangular_solve(
        factor,
        -(reduced_gradient + (coupling @ expression_step)[:, None]),
        left_side=True,
        lower=True,
        transpose_a=True,
    )[:, 0]
    step = jnp.zeros(size).at[others].set(rest).at[expression].set(expression_step)
    return step * scale
