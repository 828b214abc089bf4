"""One photo of a joint fit seen from outside: its own unknowns eliminated from the normal equations, under bounds.

Of a photo's flat step the expression weights are bounded, light, pose, focal length and colour offset are not. The
latter go first (Schur complement), so that the active-set passes over the bounds work on a small matrix, as in
`fitting.solvers.bounded_minimiser`; then those weights that rest on no bound.

In NumPy and double precision: for a photo's 90 private unknowns LAPACK takes a fraction of what it costs to dispatch
compiled programs, on a GPU even more so.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg.blas import dgemm, dtrsm, dtrsv  # pyright: ignore[reportAttributeAccessIssue]: not in its stubs
from scipy.linalg.lapack import dpotrf, dpotrs  # pyright: ignore[reportAttributeAccessIssue]

from fitting.parameters import Layout

_RIDGE = 1e-7  # of systems scaled to a unit diagonal, whose entries have the errors of single precision
_PASSES = 4  # of the active set, as in `bounded_minimiser`
_TINY = 1e-20


class Model(NamedTuple):
    """A photo's quadratic model in NumPy, and how far its expression weights may move."""

    hessian: Float[np.ndarray, "step step"]
    gradient: Float[np.ndarray, " step"]
    low: Float[np.ndarray, " unit"]
    high: Float[np.ndarray, " unit"]


class Eliminated(NamedTuple):
    """What is left of a photo's model: for the system of the shared unknowns, and to complete its own step later."""

    columns: Float[np.ndarray, "step private"]  # Z: the Hessian of all others is H - Z Zᵀ
    gradient: Float[np.ndarray, " step"]  # at the best private step while the others rest
    # All below with the private unknowns scaled to a unit diagonal of the damped Hessian.
    factor: Float[np.ndarray, "plain plain"]  # of the unbounded ones, lower triangle
    coupling: Float[np.ndarray, "unit plain"]  # to the bounded ones, solved with the factor
    bounded: Float[np.ndarray, "unit unit"]  # Hessian of the bounded ones, the others eliminated
    plain_scale: Float[np.ndarray, " plain"]  # 0 for what is not private, or not free
    bounded_scale: Float[np.ndarray, " unit"]
    loose: Bool[np.ndarray, " unit"]  # bounded ones that are free


def blocks(layout: Layout) -> tuple[slice, slice]:
    """Where the unbounded and the bounded unknowns lie that may be a photo's own."""
    return slice(layout.block("light").start, layout.block("offset").stop), layout.block("expression")


def eliminate(model: Model, layout: Layout, private: Bool[np.ndarray, " step"], damping: float) -> Eliminated:
    """Eliminate the private unknowns of a photo, their diagonal raised by a share of itself (Marquardt).

    Expression weights that come to rest on a bound are taken as fixed there. Raises LinAlgError where single precision
    has left the private Hessian indefinite; more damping helps.
    """
    plain, inside = blocks(layout)
    hessian = model.hessian
    diagonal = np.maximum(np.diag(hessian).astype(np.float64) * (1.0 + damping), _TINY)
    loose = private[inside]
    plain_scale = private[plain] / np.sqrt(diagonal[plain])
    bounded_scale = loose / np.sqrt(diagonal[inside])
    # Matrices are kept as (step, private), rows of the Hessian transposed: BLAS copies what is not in Fortran's order.
    own = hessian[plain].T * plain_scale
    system = plain_scale[:, None] * own[plain]
    np.fill_diagonal(system, 1.0 + _RIDGE)
    factor = _cholesky(system)
    solved = dtrsm(1.0, factor, own, side=1, lower=1, trans_a=1, overwrite_b=1)
    coupling = bounded_scale[:, None] * solved[inside]
    other = hessian[inside].T * bounded_scale
    other = dgemm(-1.0, solved, coupling, beta=1.0, c=other, trans_b=1, overwrite_c=1)
    bounded = bounded_scale[:, None] * other[inside]
    # What damping, ridge and the diagonal of what is not free add.
    np.einsum("ii->i", bounded)[:] += np.where(loose, damping / (1.0 + damping) + _RIDGE, 1.0)
    parts = Eliminated(solved, model.gradient, factor, coupling, bounded, plain_scale, bounded_scale, loose)
    step, held = _minimise(parts, model, model.gradient, layout)
    # At the minimum over the private unknowns the gradient has moved by the coupling times their step.
    parts = parts._replace(gradient=model.gradient + hessian @ step.astype(hessian.dtype))
    at = np.flatnonzero(~held)
    if not len(at):
        return parts
    last = dtrsm(1.0, _cholesky(bounded[np.ix_(at, at)]), other[:, at], side=1, lower=1, trans_a=1)
    return parts._replace(columns=np.concatenate([solved, last], axis=1))


def complete(
    parts: Eliminated, model: Model, layout: Layout, shared: Float[np.ndarray, " step"]
) -> Float[np.ndarray, " step"]:
    """The photo's whole step: that of what it shares, and the best private one beside it."""
    return (
        shared + _minimise(parts, model, model.gradient + model.hessian @ shared.astype(model.hessian.dtype), layout)[0]
    )


def _minimise(parts: Eliminated, model: Model, gradient, layout: Layout):
    """The private step that minimises the damped model with this gradient, and which weights rest on a bound."""
    plain, inside = blocks(layout)
    reduced = dtrsv(parts.factor, parts.plain_scale * gradient[plain], lower=1)
    right = parts.coupling @ reduced - parts.bounded_scale * gradient[inside]
    unit = np.where(parts.loose, parts.bounded_scale, 1.0)
    low, high = model.low / unit, model.high / unit
    loose, value = parts.loose.copy(), np.zeros(len(right))
    for _ in range(_PASSES):
        at = np.flatnonzero(loose)
        part = parts.bounded[at]
        target = right[at] - part @ np.where(loose, 0.0, value)
        move = dpotrs(_cholesky(part[:, at]), target, lower=1)[0] if len(at) else target
        value[at] = np.minimum(np.maximum(move, low[at]), high[at])
        outside = value[at] != move
        if not outside.any():
            break
        loose[at[outside]] = False
    step = np.zeros(len(gradient))
    step[inside] = value * parts.bounded_scale
    step[plain] = -parts.plain_scale * dtrsv(parts.factor, reduced + parts.coupling.T @ value, lower=1, trans=1)
    return step, ~loose


def _cholesky(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    factor, failed = dpotrf(matrix, lower=1, clean=1)
    if failed or not np.isfinite(factor[-1, -1]):
        raise np.linalg.LinAlgError("a photo's own Hessian is not positive definite")
    return factor
