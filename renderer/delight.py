"""The light taken off a picture: what a diffuse surface's own colour is."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from renderer.light import sh_basis

_LEAST = 0.01  # of the usual shade, in each channel


def delight(
    colour: Float[Array, "*shape 3"], normals: Float[Array, "*shape 3"], light: Float[Array, "9 3"], floor: float = 0.1
) -> Float[Array, "*shape 3"]:
    """Albedo of a diffuse surface that shows `colour` (linear RGB); unit normals in camera axes.

    The inverse of `lambert` wherever the shade is brighter than `floor` times its mean over all normals; below, the
    shade is `usable_shade`'s, so that albedo and its derivatives stay finite where the light is dark or, as spherical
    harmonics may be, negative.
    """
    shade = jnp.matmul(sh_basis(normals), light, precision="highest")
    # The mean over the sphere is band 0's: all the other harmonics have mean 0.
    usual = jnp.maximum(light[0] * sh_basis(jnp.zeros(3, light.dtype))[0], 1e-6)
    return colour / usable_shade(shade, usual, floor)


def usable_shade(
    shade: Float[Array, "*shape 3"], usual: Float[Array, "3"], floor: float = 0.1
) -> Float[Array, "*shape 3"]:
    """A shade that can be divided by: unchanged if brighter (mean of the channels) than `floor` times the usual shade.

    Below, brightness falls ever more slowly to half the floor, with a continuous slope, and the colour fades into the
    usual one, reached at half the floor: of a dark shade's colour little more is known than that. No channel gets
    below 1 % of the usual brightness.
    """
    level = jnp.mean(usual)
    brightness = jnp.mean(shade, axis=-1, keepdims=True) / level
    below = jnp.minimum(brightness / floor - 1.0, 0.0)
    held = jnp.where(below < 0, 0.5 * floor * (1.0 + jnp.exp(2.0 * below)), brightness)
    t = jnp.clip(1.0 + 2.0 * below, 0.0, 1.0)
    certain = t * t * (3.0 - 2.0 * t)
    tint = shade / (level * jnp.maximum(brightness, 0.5 * floor))
    colour = certain * tint + (1.0 - certain) * (usual / level)
    return level * jnp.maximum(colour * held, _LEAST)
