"""Gaussian linear spaces: a mean, modes, and standard-normal coefficients (Blanz & Vetter 1999)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class GaussianBasis(eqx.Module):
    """x = mean + modes · c with c ~ N(0, I): probabilistic PCA whose modes carry their standard deviations.

    The modes are kept in the units of the mean per standard deviation, because subdivision and the choice of a
    sub-surface both destroy orthonormality, while the law c ~ N(0, I) survives them.
    """

    mean: Float[Array, "vertex channel"]
    modes: Float[Array, "vertex channel rank"]  # largest first

    @property
    def rank(self) -> int:
        """Number of modes."""
        return self.modes.shape[-1]

    @property
    def sigma(self) -> Float[Array, " rank"]:
        """Root-mean-square displacement of a vertex at one standard deviation of each mode."""
        return jnp.sqrt(jnp.mean(jnp.sum(self.modes**2, axis=1), axis=0))

    def instance(self, coefficients: Float[Array, " rank"]) -> Float[Array, "vertex channel"]:
        """The member of the space with these coefficients, given in standard deviations."""
        return self.mean + self.modes @ coefficients

    def project(self, values: Float[Array, "vertex channel"], noise: float | None = None) -> Float[Array, " rank"]:
        """Coefficients that explain values: least squares, or, with a noise standard deviation, the posterior mean.

        The posterior mean is that of probabilistic PCA (Tipping & Bishop 1999): (MᵀM + noise² I)⁻¹ Mᵀ (x - mean).
        """
        flat = self.modes.reshape(-1, self.rank)
        residual = (values - self.mean).reshape(-1)
        if noise is None:
            return jnp.linalg.lstsq(flat, residual)[0]
        gram = flat.T @ flat + noise**2 * jnp.eye(self.rank)
        return jax.scipy.linalg.solve(gram, flat.T @ residual, assume_a="pos")

    def sample(self, key: PRNGKeyArray) -> Float[Array, "vertex channel"]:
        """A random member."""
        return self.instance(jax.random.normal(key, (self.rank,)))

    def truncate(self, rank: int) -> "GaussianBasis":
        """The same space with its first modes only."""
        if not 0 <= rank <= self.rank:
            raise ValueError(f"truncate: got rank {rank}, expected 0..{self.rank}; this basis has {self.rank} modes.")
        return GaussianBasis(self.mean, self.modes[..., :rank])
