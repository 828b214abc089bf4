"""Differentiate through a fit: how the fitted face changes with noise levels, observations or anything in the terms.

A fit is where the gradient g(x, θ) of its energy vanishes. Whatever solver found it, the implicit function theorem
gives the derivative of the minimiser, dx/dθ = -H⁻¹ ∂g/∂θ, from the full Hessian H there; no step of the solver is
stored or differentiated. Blondel et al. (2022) describe the technique at length.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fitting.parameters import FaceParameters, retract
from fitting.solvers import levenberg_marquardt
from fitting.terms import Terms, energies, linearise_all

Minimise = Callable[[Terms, FaceParameters, Float[Array, " step"]], FaceParameters]

_CHUNK = 16  # columns of the Hessian at a time: bounds the memory of terms with thousands of rows


def minimise_tightly(terms: Terms, start: FaceParameters, free: Float[Array, " step"]) -> FaceParameters:
    """Levenberg-Marquardt until a step changes the energy's last digits only: the derivative is that at a minimum."""
    linearise = lambda face: linearise_all(terms, face)  # noqa: E731
    return levenberg_marquardt(linearise, len(terms), start, free, jnp.int32(40), 0.0).face


def implicit_fit(
    terms: Terms,
    start: FaceParameters,
    free: Float[Array, " step"],
    minimise: Minimise = minimise_tightly,
) -> FaceParameters:
    """The face that minimises the sum of the terms over the free unknowns, differentiable in every array of the terms.

    Forward and reverse derivatives exist, also under `jit` and `vmap`; `minimise` itself is never differentiated and
    may be anything that ends at a minimum, since the derivative is as wrong as the minimum is not one. Nothing depends
    on `start`. Expression weights held by a bound, and unknowns that are not free, do not move. Second derivatives are
    not those of the fit.

    The Hessian is the full one, not Gauss-Newton's: residuals times their curvature count, and so do robust kernels.
    What a term itself takes as fixed (visibility, which point stands for the outline) is fixed here too.
    """
    frozen = _without_derivatives(dict(terms))
    begin = _without_derivatives(start)
    face = _without_derivatives(minimise(frozen, begin, free))

    def slope(terms, step):
        return jax.grad(lambda s: jnp.sum(energies(terms, retract(face, s))))(step)

    here = jnp.zeros(face.layout.size)
    moving = slope(dict(terms), here)
    gradient = lax.stop_gradient(moving)
    column = lambda direction: jax.jvp(lambda s: slope(frozen, s), (here,), (direction,))[1]  # noqa: E731
    hessian = lax.map(column, jnp.eye(len(here)), batch_size=_CHUNK)
    hessian = lax.stop_gradient((hessian + hessian.T) / 2)

    at = face.layout.block("expression")
    held = ((face.expression <= 0) & (gradient[at] > 0)) | ((face.expression >= 1) & (gradient[at] < 0))
    movable = (free > 0).at[at].set((free[at] > 0) & ~held)
    both = movable[:, None] & movable[None, :]
    # Unknowns differ by orders of magnitude (radians, millimetres, light): to a unit diagonal.
    diagonal = jnp.abs(jnp.diag(hessian))
    movable = movable & (diagonal > 0)
    scale = jnp.where(movable, lax.rsqrt(jnp.where(movable, diagonal, 1.0)), 1.0)
    system = jnp.where(both, hessian * scale[:, None] * scale, 0.0) + jnp.diag(jnp.where(movable, 0.0, 1.0))
    newton = -scale * jnp.linalg.solve(system, scale * jnp.where(movable, moving, 0.0))
    # One Newton step has the derivative of the minimiser; its own length, which the solver has left, is taken off.
    return retract(face, newton - lax.stop_gradient(newton))


def _without_derivatives(tree):
    return jax.tree.map(lambda leaf: lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)
