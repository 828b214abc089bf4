"""What cameras, screens and files do to a picture: blur, motion, low resolution, noise, colour casts, JPEG."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from morphable.colour import linear_to_srgb

Picture = Float[Array, "size size 3"]

# Quantisation tables that the JPEG standard gives as examples (ITU-T T.81, annex K).
_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)  # fmt: skip
_CHROMA = np.full((8, 8), 99, np.float32)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_DCT = np.array(
    [[np.sqrt((1 if k == 0 else 2) / 8) * np.cos(np.pi * k * (2 * n + 1) / 16) for n in range(8)] for k in range(8)],
    np.float32,
)


def record(linear: Picture, key: Key[Array, ""]) -> Picture:
    """A linear picture as a random camera and file give it: sRGB-encoded in [0, 1]."""
    key, noise_key, shift_key = jax.random.split(key, 3)
    u = jax.random.uniform(key, (40,))
    tint = jnp.exp(
        0.25 * (u[0] - 0.5) * jnp.asarray([1.0, 0.0, -1.0]) + 0.10 * (u[1] - 0.5) * jnp.asarray([-0.5, 1.0, -0.5])
    )
    tint = jnp.where(u[2] < 0.08, tint**3, tint)  # stage light, sunsets
    picture = blurred(linear * tint, _blur(u[3:9]), _motion(u[9:13]))
    photons = jnp.sqrt(jnp.clip(picture, 0.0, 1.0) * 0.95 + 0.05)
    size = linear.shape[0]
    grain = jax.random.normal(noise_key, (size, size, 3))
    coarse = jax.image.resize(grain[: size // 2, : size // 2], grain.shape, "linear")
    grain = jnp.where(u[13] < 0.5, grain, 1.4 * coarse)
    picture = picture + 0.04 * u[14] ** 3 * photons * grain
    encoded = linear_to_srgb(jnp.clip(picture, 0.0, 1.0))
    # What photographers and their software do: contrast, saturation, black and white, haze.
    grey = jnp.sum(encoded * jnp.asarray([0.299, 0.587, 0.114]), axis=-1, keepdims=True)
    saturation = jnp.where(u[15] < 0.08, 0.0, 0.6 + 0.7 * u[16])
    encoded = grey + saturation * (encoded - grey)
    contrast = 0.75 + 0.55 * u[17]
    encoded = 0.5 + contrast * (encoded - 0.5) + 0.16 * (u[18] - 0.5)
    encoded = jnp.clip(encoded, 0.0, 1.0) ** jnp.exp(0.5 * (u[19] - 0.5))
    quality = jnp.where(u[20] < 0.7, 35.0 + 60.0 * u[21], 100.0)
    return jpeg(encoded, quality, jax.random.randint(shift_key, (2,), 0, 8))


def _blur(u) -> Float[Array, ""]:
    """Deviation in pixels: mostly sharp, now and then of a low-resolution picture made large."""
    return jnp.where(u[0] < 0.68, 0.6 * u[1], jnp.where(u[0] < 0.94, 0.6 + 1.0 * u[2], 1.6 + 1.4 * u[3]))


def _motion(u) -> Float[Array, "2"]:
    """Path in pixels during the exposure."""
    length = jnp.where(u[0] < 0.08, 5.0 * u[1], 0.0)
    return length * jnp.stack([jnp.cos(2 * np.pi * u[2]), jnp.sin(2 * np.pi * u[2])])


def blurred(picture: Picture, deviation: Float[Array, ""], motion: Float[Array, "2"]) -> Picture:
    """A Gaussian blur and a straight motion, both in pixels, as one product of spectra; the picture is continued by its
    mirror image."""
    size = picture.shape[0]
    margin = 16
    wide = jnp.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    fv = jnp.fft.fftfreq(size + 2 * margin)[:, None]
    fu = jnp.fft.rfftfreq(size + 2 * margin)[None]
    transfer = jnp.exp(-2 * (np.pi * deviation) ** 2 * (fu**2 + fv**2)) * jnp.sinc(fu * motion[0] + fv * motion[1])
    spectrum = jnp.fft.rfft2(wide, axes=(0, 1)) * transfer[..., None]
    back = jnp.fft.irfft2(spectrum, s=wide.shape[:2], axes=(0, 1))
    return back[margin:-margin, margin:-margin]


def jpeg(encoded: Picture, quality: Float[Array, ""], shift: Array) -> Picture:
    """What a JPEG file of this quality leaves of an sRGB-encoded picture, its blocks of 8 shifted by pixels.

    Without the halving of chroma's resolution, which most files have besides. At 100 nothing is changed.
    """
    size = encoded.shape[0]
    blocks = size // 8
    scale = jnp.where(quality < 50, 5000.0 / quality, 200.0 - 2.0 * quality) / 100.0
    ycc = jnp.roll(encoded * 255.0 - 128.0, shift, axis=(0, 1)) @ _YCC.T
    tiles = ycc.reshape(blocks, 8, blocks, 8, 3)
    spectrum = jnp.einsum("ki,aibjc,lj->akblc", _DCT, tiles, _DCT)
    table = jnp.asarray(np.stack([_LUMA, _CHROMA, _CHROMA], axis=-1)) * scale
    table = jnp.maximum(jnp.floor(table + 0.5), 1.0)[None, :, None]  # files hold whole numbers
    spectrum = jnp.round(spectrum / table) * table
    tiles = jnp.einsum("ki,akblc,lj->aibjc", _DCT, spectrum, _DCT)
    back = tiles.reshape(size, size, 3) @ np.linalg.inv(_YCC).T + 128.0
    back = jnp.clip(jnp.roll(back, -shift, axis=(0, 1)) / 255.0, 0.0, 1.0)
    return jnp.where(quality >= 99.0, encoded, back)
