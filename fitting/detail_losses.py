"""What a displacement map of the network costs: beside the truth, where it is known, and beside the photo.

The names are DECA's (Feng et al. 2021, section 4.3 and supplement) and those of the coarse-to-fine UNet: photometric,
ID-MRF, identity, soft symmetry, smoothness of normals, L1, detail consistency. Each is a pure function of one face's
maps, averaged over the texels that count, so that none depends on a map's size or on how much of a face is seen.
Slopes are mm per mm along the two tangents of `fitting.detail_network.tangent_frame`: the difference of two slopes is,
for all but the steepest, the angle between two normals in radians.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from morphable.uv import sample_texture

Plane = Float[Array, "size size"]

_EDGE = 0.1  # slope below which differences cost quadratically: six degrees. Nearer to 0, noisy photos teach nothing
_FOLD_MM = 0.2  # change of height by an expression below which differences cost quadratically: see `change_loss`
_BLOCK = 16  # texels, of a map of 256; as many mm: what is broader is the light's and the coarse shape's
_OUTLIER = 0.1  # logarithm; what differs more is no shading


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Factors of the terms. Slopes count in radians, displacements in mm, photos in logarithms."""

    normal: float = 10.0  # mean angle from the true normals, of the head with its relief
    displacement: float = 1.0  # mean distance from the true displacement; of the code's, and of what is hidden
    hidden: float = 0.05  # of both, for the skin that the photo does not show, where the truth is known
    code: float = 0.1  # of both, for what the detail code decodes to
    change: float = 100.0  # of what expressions change, beside the truth; as a distance in mm
    consistency: float = 0.1  # of both, for the code of the person's other photo (detail consistency)
    photometric: float = 1.0
    smoothness: float = 0.2  # difference of normals from texel to texel
    symmetry: float = 0.1
    sparsity: float = 0.02  # mean |D|
    mrf: float = 0.02
    identity: float = 0.1
    known: float = 0.1  # factor on the terms of the photo, where the truth is known


def slopes(displacement: Plane, frame: Float[Array, "size size 3"]) -> Float[Array, "size size 2"]:
    """The gradient of a displacement within the surface, along the two tangents; central differences."""
    padded = jnp.pad(displacement, 1, mode="edge")
    d_u = 0.5 * (padded[1:-1, 2:] - padded[1:-1, :-2])
    d_v = 0.5 * (padded[2:, 1:-1] - padded[:-2, 1:-1])
    return jnp.stack([frame[..., 0] * d_u + frame[..., 1] * d_v, frame[..., 2] * d_v], axis=-1)


def mean_over(values: Float[Array, "row column"], weight: Float[Array, "row column"]) -> Float[Array, ""]:
    """Weighted mean; 0 without any weight."""
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1e-3)


def turn_loss(
    displacement: Plane, turn: Float[Array, "size size 3"], frame: Float[Array, "size size 3"], weight: Plane
) -> Float[Array, ""]:
    """Mean angle (rad, to first order) from normals that slopes lead to, where they are known: `Example.turn`."""
    square = jnp.sum((slopes(displacement, frame) - turn[..., :2]) ** 2, axis=-1)
    return mean_over(jnp.sqrt(square + _EDGE**2) - _EDGE, weight * turn[..., 2])


def normal_loss(one: Plane, other: Plane, frame: Float[Array, "size size 3"], weight: Plane) -> Float[Array, ""]:
    """Mean angle (rad, to first order) between the normals of two displacements."""
    square = jnp.sum((slopes(one, frame) - slopes(other, frame)) ** 2, axis=-1)
    return mean_over(jnp.sqrt(square + _EDGE**2) - _EDGE, weight)


def change_loss(change: Plane, truth: Plane, weight: Plane) -> Float[Array, ""]:
    """Mean distance (mm) of what another expression adds from what it truly adds.

    Quadratic at first: nobody knows to the millimetre where a fold will come, and most places have none. The median
    of what may come is nothing everywhere, the mean is a soft fold.
    """
    return mean_over(jnp.sqrt((change - truth) ** 2 + _FOLD_MM**2) - _FOLD_MM, weight)


def photometric_loss(
    displacement: Plane,
    ratio: Float[Array, "size size"],
    response: Float[Array, "size size 2"],
    frame: Float[Array, "size size 3"],
    weight: Plane,
) -> Float[Array, ""]:
    """What the relief leaves unexplained of the photo's fine shading (Geman-McClure, so that moles are outliers).

    `ratio` is the logarithm of the photo over what the fit expects, `response` its derivative by the slopes. Only what
    is finer than the light's and the coarse shape's errors counts.
    """
    left = fine(ratio - jnp.sum(response * slopes(displacement, frame), axis=-1), weight)
    square = (left / _OUTLIER) ** 2
    return mean_over(square / (1.0 + square), weight)


def smoothness_loss(displacement: Plane, frame: Float[Array, "size size 3"], weight: Plane) -> Float[Array, ""]:
    """Mean angle between the normals of neighbouring texels that the relief brings about."""
    slope = slopes(displacement, frame)
    total = 0.0
    for axis in (0, 1):
        change = jnp.sqrt(jnp.sum(jnp.diff(slope, axis=axis) ** 2, axis=-1) + 1e-8)
        both = jnp.minimum(jnp.delete(weight, 0, axis), jnp.delete(weight, -1, axis))
        total = total + mean_over(change, both)
    return total


def symmetry_loss(displacement: Plane, mirror_uv: Float[Array, "size size 2"], weight: Plane) -> Float[Array, ""]:
    """Mean difference (mm) from the face's other side, where the photo does not show it well: soft symmetry.

    DECA weighs it by visibility; here the more the better one side is seen than the other, for what both show is known.
    """
    both = jnp.stack([displacement, weight], axis=-1)
    other = sample_texture(both, mirror_uv)
    hidden = jnp.abs(weight - other[..., 1])
    return mean_over(jnp.abs(displacement - other[..., 0]), hidden)


def fine(values: Plane, weight: Plane) -> Plane:
    """Values without their smooth part: minus the weighted means of blocks, interpolated between their centres."""
    size = values.shape[0]
    blocks = size // min(max(_BLOCK, size * _BLOCK // 256), size)

    def means(x):
        return jnp.mean(x.reshape(blocks, size // blocks, blocks, size // blocks), axis=(1, 3))

    smooth = means(values * weight) / jnp.maximum(means(weight), 1e-2)
    return values - jax.image.resize(smooth, (size, size), "linear")


def relit_chip(
    displacement: Plane,
    base: Float[Array, "size size 3"],
    response: Float[Array, "size size 2"],
    frame: Float[Array, "size size 3"],
    chip: Float[Array, "150 150 3"],
    chip_uv: Float[Array, "150 150 2"],
    chip_share: Float[Array, "150 150"],
) -> Float[Array, "150 150 3"]:
    """dlib's aligned picture of the face with this relief, sRGB-encoded 0 to 255; around the face the photo's own.

    `base` is the logarithm of the photo's linear colour without its fine pattern; the relief's shading is added to it.
    """
    shading = jnp.sum(response * slopes(displacement, frame), axis=-1)[..., None]
    # The power law of sRGB: its linear foot is black.
    encoded = 255.0 * jnp.clip(jnp.exp((base + shading) / 2.2), 0.0, 1.0)
    share = chip_share[..., None]
    return chip + share * (sample_texture(encoded, chip_uv) - chip)
