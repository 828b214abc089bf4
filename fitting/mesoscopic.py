"""Fine relief of the skin from its colour: dark is deep.

Beeler et al. 2010, High-Quality Single-Shot Capture of Facial Geometry, section on mesoscopic augmentation: pores and
fine wrinkles are darker than the skin around them, since light reaches them less, so the high-pass of the skin's
brightness serves as a displacement that looks right, whatever its true size. It is not a measurement. A freckle is as
dark as a pore: hence small amplitudes, and none where colour has other reasons (hair, lips, eyes).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter

from fitting.normal_map import normal_map, texel_surface
from morphable.colour import srgb_to_linear
from morphable.detail import UVSurface
from morphable.model import MorphableModel
from morphable.uv import interpolate
from renderer.unwrap import texel_table

_BROADEST_MM = 1.2  # standard deviation of what counts as broad: folds are the model's or a displacement map's
_FINEST_MM = 0.25  # finer than this no photo of a whole face shows
_DEPTH_MM = 0.6  # for one unit of the logarithm: a tenth darker is 0.06 mm deep
_DEEPEST_MM = 0.12
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


def skin_normal_map(
    model: MorphableModel,
    neutral_vertices: Float[np.ndarray, "vertex 3"],
    texture: UInt8[np.ndarray, "size size 3"],
    pixel_mm: float = 0.3,
    displacement: Float[np.ndarray, "texel texel"] | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """The normal map of a head's skin from its colour map, for `write_head_glb`: surface, heights, normals.

    With a `displacement` (mm, `morphable.detail`) its slopes too; colour then adds only what is finer than that map.
    """
    surface = texel_surface(neutral_vertices, np.asarray(model.triangles), np.asarray(model.uv), len(texture))
    heights = skin_heights(model, texture, surface, pixel_mm)
    if displacement is not None:
        coarse = resized(heights, len(displacement))
        heights = heights + resized(displacement - coarse, len(texture))
    return normal_map(heights, surface)


def resized(values: Float[np.ndarray, "texel texel"], size: int) -> Float[np.ndarray, "{size} {size}"]:
    """A map at another size: cubic, so that slopes stay smooth, and without aliases where it gets smaller."""
    return np.asarray(jax.image.resize(jnp.asarray(values, jnp.float32), (size, size), "cubic"))


def skin_heights(
    model: MorphableModel,
    texture: UInt8[np.ndarray, "size size 3"],
    surface: UVSurface,
    pixel_mm: float = 0.3,
) -> Float[np.ndarray, "size size"]:
    """Heights (mm, outwards) of fine relief over the skin, from its delit colour map (sRGB-encoded).

    `pixel_mm` is how much skin a pixel of the photo covers; what is finer is noise of its sensor and blocks of its
    compression. Zero off the front of the face and on brows, lips, lids, beard, scalp, ears and inner parts.
    """
    size = len(texture)
    where = plain_skin(model, size)
    linear = np.asarray(srgb_to_linear(jnp.asarray(texture, jnp.float32) / 255))
    brightness = np.log(np.maximum(linear @ _LUMINANCE, 0.01))
    face = (where > 0.5) & np.asarray(surface.valid)
    if not face.any():
        return np.zeros((size, size), np.float32)
    texel_mm = float(np.sqrt(np.median(np.asarray(surface.areas)[face])))
    fine = max(_FINEST_MM, 0.8 * pixel_mm) / texel_mm
    broad = max(_BROADEST_MM, 2.5 * pixel_mm) / texel_mm
    # Over plain skin alone, or the dark of a brow would raise a wall around it.
    relief = _mean_over(brightness, where, fine) - _mean_over(brightness, where, broad)
    heights = _DEEPEST_MM * np.tanh(_DEPTH_MM * relief / _DEEPEST_MM)
    return (heights * where).astype(np.float32)


_NOT_PLAIN = ("lips", "lids", "beard", "scalp", "ears", "iris", "sclera")


def plain_skin(
    model: MorphableModel, size: int, other: tuple[str, ...] = _NOT_PLAIN
) -> Float[np.ndarray, "{size} {size}"]:
    """1 where the map shows bare skin of the face's front, falling softly to 0 towards all else.

    `other` are the masks whose skin does not count, besides brows and inner parts; where beards grow is one of them.
    """
    count = len(model.mean)
    skin = np.ones(count, np.float32)
    if "skin" in model.part_names:
        skin = (np.asarray(model.part_of_vertex) == model.part_names.index("skin")).astype(np.float32)

    def of(*names: str) -> Float[np.ndarray, " vertex"]:
        return sum((np.asarray(model.masks[n], np.float32) for n in names if n in model.masks), np.zeros(count))

    face = of("face") if "face" in model.masks else skin
    amounts = np.stack([skin * face * np.clip(1.0 - 2.0 * of(*other), 0.0, 1.0), of("brows", "interior")], axis=1)
    table = texel_table(model.uv, model.triangles, size)
    flat = np.asarray(interpolate(jnp.asarray(amounts), model.triangles, *table))
    flat = np.where((np.asarray(table.triangle_ids) >= 0)[..., None], flat, 0.0)
    # A photo's brows and nostrils are never quite where the model's are.
    around = np.clip(4.0 * gaussian_filter(flat[..., 1], size / 100), 0.0, 1.0)
    # A mask ends within a triangle; eroded and smoothed, it leaves no edge in the relief.
    flat = gaussian_filter(flat[..., 0] * (1.0 - around), size / 200)
    soft = np.clip(2.0 * flat - 1.0, 0.0, 1.0)
    return (soft * soft * (3.0 - 2.0 * soft)).astype(np.float32)


def _mean_over(
    values: Float[np.ndarray, "row column"], weights: Float[np.ndarray, "row column"], sigma: float
) -> Float[np.ndarray, "row column"]:
    """Gaussian mean (sigma in texels) of the values, each counted by its weight."""
    return gaussian_filter(values * weights, sigma) / np.maximum(gaussian_filter(weights, sigma), 1e-3)
