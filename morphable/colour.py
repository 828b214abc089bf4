"""The sRGB transfer function (IEC 61966-2-1), with derivatives that stay finite."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def srgb_to_linear(encoded: Float[Array, "..."]) -> Float[Array, "..."]:
    """Linear light from sRGB-encoded values; negative values continue along the linear toe."""
    curve = ((jnp.maximum(encoded, 0.04045) + 0.055) / 1.055) ** 2.4
    return jnp.where(encoded <= 0.04045, encoded / 12.92, curve)


def linear_to_srgb(linear: Float[Array, "..."]) -> Float[Array, "..."]:
    """sRGB-encoded values from linear light; the inverse of `srgb_to_linear`."""
    curve = 1.055 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.where(linear <= 0.0031308, linear * 12.92, curve)
