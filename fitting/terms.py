"""What an energy term is: whitened residuals, a robust kernel, and a Gauss-Newton model of its energy.

A term's energy is ½ Σ ρ(|r|²) over its rows, with r in standard deviations and ρ a robust kernel. Every solver reads a
term in the form it needs: first-order methods differentiate `energy`, Gauss-Newton asks for `linearise` (JᵀJ and Jᵀr),
generic least squares for `flat_residuals`. A new term states its residuals; the rest follows.
"""

import abc
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from fitting.parameters import FaceParameters, retract


class Quadratic(eqx.Module):
    """A local model of an energy: energy + gradient · step + ½ step · hessian · step."""

    hessian: Float[Array, "step step"]
    gradient: Float[Array, " step"]
    energy: Float[Array, ""]

    def __add__(self, other: "Quadratic") -> "Quadratic":
        return Quadratic(self.hessian + other.hessian, self.gradient + other.gradient, self.energy + other.energy)

    def scaled(self, factor: Float[Array, ""]) -> "Quadratic":
        """The model of the energy times a factor."""
        return Quadratic(self.hessian * factor, self.gradient * factor, self.energy * factor)


class AbstractKernel(eqx.Module):
    """How much of a squared residual norm counts."""

    @abc.abstractmethod
    def rho(self, square: Float[Array, "..."]) -> Float[Array, "..."]:
        """Robust energy of a squared residual norm; its slope at 0 is 1."""

    @abc.abstractmethod
    def weight(self, square: Float[Array, "..."]) -> Float[Array, "..."]:
        """Derivative of rho: the factor of iteratively reweighted least squares."""


class Huber(AbstractKernel):
    """Quadratic up to `cutoff` standard deviations, linear beyond (Huber 1964)."""

    cutoff: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def rho(self, square: Float[Array, "..."]) -> Float[Array, "..."]:
        k = self.cutoff
        return jnp.where(square <= k**2, square, 2 * k * jnp.sqrt(jnp.maximum(square, k**2)) - k**2)

    def weight(self, square: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.cutoff / jnp.sqrt(jnp.maximum(square, self.cutoff**2))


class GemanMcClure(AbstractKernel):
    """Bounded by cutoff²: what lies far beyond the cut-off does not pull at all (Geman & McClure 1987)."""

    cutoff: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def rho(self, square: Float[Array, "..."]) -> Float[Array, "..."]:
        return square / (1 + square / self.cutoff**2)

    def weight(self, square: Float[Array, "..."]) -> Float[Array, "..."]:
        return 1 / (1 + square / self.cutoff**2) ** 2


class AbstractTerm(eqx.Module):
    """One additive part of the energy."""

    @abc.abstractmethod
    def energy(self, face: FaceParameters) -> Float[Array, ""]:
        """½ Σ ρ(|r|²)."""

    @abc.abstractmethod
    def linearise(self, face: FaceParameters) -> Quadratic:
        """Gauss-Newton model of the energy about a face, in the flat step of `fitting.parameters`."""

    @abc.abstractmethod
    def flat_residuals(self, face: FaceParameters) -> Float[Array, " row"]:
        """A vector v with energy = ½ |v|², robust kernels folded in: for least-squares solvers that know no kernels."""

    def subset(self, key: PRNGKeyArray, count: int, face: FaceParameters) -> "AbstractTerm":
        """A term with the same expected energy that looks at a few random observations; by default itself."""
        del key, count, face
        return self


class AbstractResidualTerm(AbstractTerm):
    """A term given by rows of whitened residuals; each row's norm goes through a robust kernel."""

    @abc.abstractmethod
    def residuals(self, face: FaceParameters) -> Float[Array, "row column"]:
        """Whitened residuals."""

    def kernel(self) -> AbstractKernel | None:
        """The robust kernel of a row, or None for plain least squares."""
        return None

    def energy(self, face: FaceParameters) -> Float[Array, ""]:
        square = jnp.sum(self.residuals(face) ** 2, axis=1)
        kernel = self.kernel()
        return 0.5 * jnp.sum(square if kernel is None else kernel.rho(square))

    def linearise(self, face: FaceParameters) -> Quadratic:
        def moved(step):
            rows = self.residuals(retract(face, step))
            return rows, rows

        jacobian, rows = jax.jacfwd(moved, has_aux=True)(jnp.zeros(face.layout.size))
        square = jnp.sum(rows**2, axis=1)
        kernel = self.kernel()
        if kernel is None:
            weight, energy = jnp.ones_like(square), 0.5 * jnp.sum(square)
        else:
            weight, energy = kernel.weight(square), 0.5 * jnp.sum(kernel.rho(square))
        flat = (jacobian * jnp.sqrt(weight)[:, None, None]).reshape(-1, jacobian.shape[-1])
        weighted = (rows * jnp.sqrt(weight)[:, None]).reshape(-1)
        return Quadratic(flat.T @ flat, flat.T @ weighted, energy)

    def flat_residuals(self, face: FaceParameters) -> Float[Array, " row"]:
        rows, kernel = self.residuals(face), self.kernel()
        if kernel is None:
            return rows.reshape(-1)
        return fold(rows, jnp.sum(rows**2, axis=1), kernel).reshape(-1)


class WeightedTerm(AbstractTerm):
    """A term whose energy counts several times, or not at all."""

    term: AbstractTerm
    weight: Float[Array, ""]

    def energy(self, face):
        return self.weight * self.term.energy(face)

    def linearise(self, face):
        return self.term.linearise(face).scaled(self.weight)

    def flat_residuals(self, face):
        return jnp.sqrt(self.weight) * self.term.flat_residuals(face)

    def subset(self, key, count, face):
        return WeightedTerm(self.term.subset(key, count, face), self.weight)


Terms = Mapping[str, AbstractTerm]  # by name


def fold(
    rows: Float[Array, "row column"], square: Float[Array, " row"], kernel: AbstractKernel
) -> Float[Array, "row column"]:
    """Rows scaled so that half their squares sum to the kernel's energy (Triggs et al. 2000, section 4.3)."""
    # At 0 the ratio's limit is 1, but its quotient is not defined.
    safe = jnp.maximum(square, 1e-12)
    return rows * jnp.sqrt(jnp.where(square > 1e-12, kernel.rho(safe) / safe, 1.0))[:, None]


def linearise_all(terms: Terms, face: FaceParameters) -> tuple[Quadratic, Float[Array, " term"]]:
    """The sum of the terms' Gauss-Newton models, and each term's energy, by sorted name."""
    parts = [terms[name].linearise(face) for name in sorted(terms)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total, jnp.stack([part.energy for part in parts])


def energies(terms: Terms, face: FaceParameters) -> Float[Array, " term"]:
    """Each term's energy, by sorted name: the one order of a mapping that survives compilation."""
    return jnp.stack([terms[name].energy(face) for name in sorted(terms)])
