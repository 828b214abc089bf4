"""The light that a surface reflects at every pixel."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from renderer.light import DirectionalLight, sh_basis

_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear RGB with sRGB's primaries (ITU-R BT.709)

CLAY = 0.6  # albedo of a mesh that has neither texture nor colours


def lambert(
    albedo: Float[Array, "*shape 3"], normals: Float[Array, "*shape 3"], light: Float[Array, "9 3"]
) -> Float[Array, "*shape 3"]:
    """Linear colour of a diffuse surface; unit normals in camera axes."""
    return albedo * jnp.matmul(sh_basis(normals), light, precision="highest")


class Gloss(eqx.Module):
    """The mirror-like part of Phong's (1975) reflection."""

    specular: Float[Array, ""] = eqx.field(converter=jnp.asarray)  # k_s: the highlight's height, 0 for a matt surface
    shininess: Float[Array, ""] = eqx.field(converter=jnp.asarray)  # nu > 0: larger is narrower


def phong(
    albedo: Float[Array, "*shape 3"],
    normals: Float[Array, "*shape 3"],
    towards_viewer: Float[Array, "*shape 3"],
    light: Float[Array, "9 3"],
    lamp: DirectionalLight,
    gloss: Gloss,
    lit: Float[Array, "*shape"] | None = None,
) -> Float[Array, "*shape 3"]:
    """Linear colour of a glossy surface under one lamp and other light, as Blanz & Vetter (1999, 2003) render faces.

        lambert(albedo, n, light) + lit * lamp * (albedo * max(0, n . l) + k_s max(0, r . v)^nu),  r = 2 (n . l) n - l

    for unit normals n, directions v to the viewer and l to the lamp, all in camera axes. Their ambient RGB is the light
    `ambient_light(rgb)`. `lit` is how much of the lamp reaches the surface (`cast_shadow`), None for all of it; what is
    turned away from the lamp gets none.

    The highlight's peak is k_s * lamp whatever the shininess. Of the lamp's light along the normal at most
    albedo + 2 k_s / (nu + 2) leaves again, so a surface that keeps this below 1 adds no energy there.
    """
    facing = jnp.matmul(normals, lamp.direction, precision="highest")
    along = jnp.sum(normals * towards_viewer, axis=-1)
    aligned = 2.0 * facing * along - jnp.matmul(towards_viewer, lamp.direction, precision="highest")
    # A power's derivatives in base and exponent are not finite at 0, and not wanted where there is no highlight.
    shines = (facing > 0.0) & (aligned > 0.0)
    highlight = jnp.where(shines, gloss.specular * jnp.where(shines, aligned, 1.0) ** gloss.shininess, 0.0)
    reflected = albedo * jnp.maximum(facing, 0.0)[..., None] + highlight[..., None]
    if lit is not None:
        reflected = reflected * lit[..., None]
    return lambert(albedo, normals, light) + reflected * jnp.broadcast_to(lamp.colour, reflected.shape)


class ColourTransform(eqx.Module):
    """A camera's colours (Blanz & Vetter 2003): contrast between colour and grey, then gain and offset per channel.

    colour -> gain * (contrast * colour + (1 - contrast) * luminance) + offset, with the luminance of linear RGB.
    """

    gain: Float[Array, "3"] = eqx.field(default_factory=lambda: jnp.ones(3))
    offset: Float[Array, "3"] = eqx.field(default_factory=lambda: jnp.zeros(3))
    contrast: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.ones(()))  # 1 leaves colours alone, 0 is grey

    def __call__(self, colour: Float[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
        """The colour that the camera records of a linear colour."""
        gain, offset = (jnp.broadcast_to(v, colour.shape) for v in (self.gain, self.offset))
        return gain * _mix_with_luminance(colour, self.contrast) + offset

    def inverse(self, recorded: Float[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
        """The linear colour of a recorded one; gain and contrast must not be zero."""
        gain, offset = (jnp.broadcast_to(v, recorded.shape) for v in (self.gain, self.offset))
        # Mixing with the luminance does not change it, so the inverse is another mixture with the same one.
        return _mix_with_luminance((recorded - offset) / gain, 1.0 / self.contrast)


def _mix_with_luminance(colour, contrast):
    luminance = jnp.matmul(colour, jnp.asarray(_LUMINANCE, colour.dtype), precision="highest")[..., None]
    return contrast * colour + (1.0 - contrast) * luminance
