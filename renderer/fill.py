"""Texels that nothing was seen of: from the nearest, from around them, from the other side of a symmetric surface.

NumPy: a texture is filled once, at the end, and nothing is differentiated through it.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from morphable.uv import sample_texture

_sample = eqx.filter_jit(sample_texture)


def dilate(
    texture: Float[np.ndarray, "height width channel"], valid: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width channel"]:
    """The texture with every texel outside `valid` set to its nearest valid one.

    Bilinear lookups and mip levels reach past the borders of charts; after this they find the chart's own colour.
    """
    from scipy.ndimage import distance_transform_edt

    texture, valid = np.asarray(texture), np.asarray(valid)
    if not valid.any():
        return texture.copy()
    nearest = np.asarray(distance_transform_edt(~valid, return_distances=False, return_indices=True))
    return texture[nearest[0], nearest[1]]


def mirror_fill(
    values: Float[np.ndarray, "height width channel"],
    weight: Float[np.ndarray, "height width"],
    mirror_uv: Float[np.ndarray, "height width 2"],
    *,
    usable: Float[np.ndarray, "height width"] | None = None,
    fade: float = 0.05,
    tolerance: float = float("inf"),
) -> tuple[Float[np.ndarray, "height width channel"], Float[np.ndarray, "height width"]]:
    """A map with what it does not show taken from the other side of a symmetric surface, without a seam; its weight.

    `weight` (0 to 1) says how far each texel is known, `mirror_uv` where its mirror image lies, `usable` (0 to 1) where
    the mirror image may stand in. The two sides differ by light, exposure and person; that difference is known where
    both were seen, and continued as a membrane from there over the rest (Farbman et al. 2009, "Coordinates for instant
    image cloning", by `extrapolate`). With it added, what is taken meets what is there at every border. With `fade` the
    difference falls off with distance. Texels whose sides differ by more than `tolerance` in any channel show different
    things: they do not count as a difference of light, and nothing is taken where most texels around are such.

    Differences add, so give logarithms for colours under different exposures. Texels of weight 0 in the result are on
    neither side; `extrapolate` fills them.
    """
    packed = np.concatenate([values * weight[..., None], weight[..., None]], axis=2)
    found = np.asarray(_sample(jnp.asarray(packed), jnp.asarray(mirror_uv, packed.dtype)))
    share = found[..., -1]  # a texel of no weight does not leak into its neighbours
    other = found[..., :-1] / np.maximum(share, 1e-6)[..., None]
    difference, both = values - other, weight * share
    if np.isfinite(tolerance):
        alike = np.clip(2.0 - np.abs(difference).max(axis=2) / tolerance, 0.0, 1.0)
        around = extrapolate(alike[..., None], both, np.ones(1, values.dtype))[..., 0]
        both, share = both * alike, share * np.clip(2.0 * around - 0.5, 0.0, 1.0)
    difference = extrapolate(difference, both, np.zeros(values.shape[2], values.dtype), fade)
    share = share * (1.0 - np.clip(weight, 0.0, 1.0))
    if usable is not None:
        share = share * usable
    total = weight + share
    mixed = values * weight[..., None] + (other + difference) * share[..., None]
    return mixed / np.maximum(total, 1e-6)[..., None], total


def extrapolate(
    values: Float[np.ndarray, "height width channel"],
    weight: Float[np.ndarray, "height width"],
    prior: Float[np.ndarray, "channel"] | Float[np.ndarray, "height width channel"],
    fade: float = 0.0,
) -> Float[np.ndarray, "height width channel"]:
    """Weighted values continued smoothly over texels of no weight, fading to a prior with distance.

    Pull-push over a pyramid (Gortler et al. 1996, "The lumigraph", section 3.4), which approximates a membrane spanned
    between what is known; at every level `fade` of weight goes to the prior. Texels of weight 1 keep their value.
    """
    return prior + _pull_push((values - prior) * weight[..., None], weight, fade)


def halve(values: Float[np.ndarray, "height width *channel"]) -> Float[np.ndarray, "half_height half_width *channel"]:
    """Sums over blocks of two by two; an odd border is padded with zeros."""
    pad = [(0, n % 2) for n in values.shape[:2]] + [(0, 0)] * (values.ndim - 2)
    even = np.pad(values, pad) if any(n % 2 for n in values.shape[:2]) else values
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]


def double(
    coarse: Float[np.ndarray, "half_height half_width *channel"], height: int, width: int
) -> Float[np.ndarray, "{height} {width} *channel"]:
    """Twice as many rows and columns, interpolated linearly, cut to height x width."""
    for axis in (0, 1):
        n = coarse.shape[axis]
        fine = np.empty(coarse.shape[:axis] + (2 * n,) + coarse.shape[axis + 1 :], coarse.dtype)
        rows = np.moveaxis(coarse, axis, 0)
        out = np.moveaxis(fine, axis, 0)
        part = 0.75 * rows
        out[::2], out[1::2] = part, part
        quarter = 0.25 * rows
        out[2::2] += quarter[:-1]
        out[1:-1:2] += quarter[1:]
        out[0] += quarter[0]
        out[-1] += quarter[-1]
        coarse = fine
    return coarse[:height, :width]


def _pull_push(total, weight, fade):
    height, width = weight.shape
    if min(height, width) < 2:
        return total / (weight + max(fade, 1e-6))[..., None]
    coarse_total, coarse_weight = halve(total), halve(weight)
    excess = np.maximum(coarse_weight, 1.0)
    coarse = _pull_push(coarse_total / (excess * (1.0 + fade))[..., None], coarse_weight / excess, fade)
    w = np.clip(weight, 0.0, 1.0)[..., None]
    # total is values times weight: where weight is at most 1 it needs no division.
    here = total / np.maximum(weight, 1.0)[..., None]
    return here + (1.0 - w) * double(coarse, height, width)
