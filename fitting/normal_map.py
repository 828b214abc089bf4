"""A tangent-space normal map, as glTF wants it, from heights over the skin in UV space; where heights come from is not
its concern."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fitting.glb import uv_derivatives
from renderer.unwrap import texel_table

_STEEPEST = 0.7  # slope (35 degrees) above which heights are a mistake in the map, not skin


class TexelFrames(NamedTuple):
    """How a map's texels lie in the surface: how far (mm) it goes for one texel.

    The tangent points along growing u; the bitangent is perpendicular to it in the surface and points up the map.
    """

    right: Float[np.ndarray, "row column"]  # along the tangent, for one texel to the right
    sheared: Float[np.ndarray, "row column"]  # along the tangent, for one texel down
    down: Float[np.ndarray, "row column"]  # against the bitangent, for one texel down
    valid: Bool[np.ndarray, "row column"]  # whether there is a surface


def texel_frames(
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    uv: Float[np.ndarray, "vertex 2"],
    size: int,
) -> TexelFrames:
    """The frames of a size x size map over a surface in mm."""
    triangles = np.asarray(triangles)
    along_u, along_v, _ = uv_derivatives(np.asarray(vertices, np.float64), triangles, np.asarray(uv))
    right = np.linalg.norm(along_u, axis=1)
    tangent = along_u / np.maximum(right, 1e-12)[:, None]
    sheared = np.einsum("ti,ti->t", along_v, tangent)
    down = np.linalg.norm(along_v - sheared[:, None] * tangent, axis=1)
    ids = np.asarray(texel_table(jnp.asarray(uv), jnp.asarray(triangles), size).triangle_ids)
    valid = (ids >= 0) & (right[ids] > 0) & (down[ids] > 0)

    def of_texel(values: Float[np.ndarray, " triangle"]) -> Float[np.ndarray, "row column"]:
        return np.where(valid, values[ids] / size, 1.0)

    return TexelFrames(of_texel(right), of_texel(sheared), of_texel(down), valid)


def normal_map(heights: Float[np.ndarray, "row column"], frames: TexelFrames) -> UInt8[np.ndarray, "row column 3"]:
    """glTF's normal map of heights (mm, outwards): x along the tangent, y up the map, z out of the surface.

    Linear; 128 128 255 is flat. Slopes beyond 35 degrees are drawn in. Texels without a surface, or with heights that
    are not finite, are flat.
    """
    if heights.shape != frames.valid.shape:
        raise ValueError(
            f"normal_map: heights of {heights.shape} and frames of {frames.valid.shape} texels, expected the same. "
            "Make the frames with texel_frames(..., size)."
        )
    known = np.isfinite(heights) & frames.valid
    values = np.where(known, heights, 0.0).astype(np.float64)
    per_row, per_column = np.gradient(values)
    # The surface gradient g has g . x_u = h_u and g . x_v = h_v, also where the map shears.
    along_tangent = per_column / frames.right
    along_bitangent = -(per_row - along_tangent * frames.sheared) / frames.down
    steep = np.maximum(np.hypot(along_tangent, along_bitangent) / _STEEPEST, 1e-12)
    drawn_in = np.where(known, np.tanh(steep) / steep, 0.0)
    normal = np.stack([-along_tangent * drawn_in, -along_bitangent * drawn_in, np.ones_like(values)], axis=2)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    return np.clip(np.rint(normal * 127.0 + 128.0), 0, 255).astype(np.uint8)
