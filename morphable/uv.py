"""Maps over a surface in UV space: values at the vertices laid out on texels, and a map looked up at points.

u runs right and v down from the map's top left corner, both in [0, 1]; texel (row, column) has its centre at
((column + 0.5) / width, (row + 0.5) / height). Which triangle lies under a texel is for a rasterizer to say
(`renderer.texel_table`).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class TexelTable(NamedTuple):
    """The surface point under the centre of each texel: a triangle (-1 for none) and its corners' weights."""

    triangle_ids: Int[Array, "size size"]
    barycentrics: Float[Array, "size size 3"]


def interpolate(
    attributes: Float[Array, "vertex channel"],
    triangles: Int[Array, "triangle 3"],
    ids: Int[Array, "*shape"],
    weights: Float[Array, "*shape 3"],
) -> Float[Array, "*shape channel"]:
    """Vertex attributes at the points that ids and barycentrics name; zeros where ids is -1."""
    total = 0.0
    for k in range(3):
        total = total + attributes[triangles[:, k][jnp.maximum(ids, 0)]] * weights[..., k, None]
    return jnp.where((ids >= 0)[..., None], total, 0.0)


def sample_texture(
    texture: Float[Array, "height width channel"], uv: Float[Array, "*shape 2"]
) -> Float[Array, "*shape channel"]:
    """Bilinear lookup, clamped at the map's border; differentiable in the texture and in uv."""
    height, width = texture.shape[:2]

    def cell(t, size):
        x = jnp.clip(t * size - 0.5, 0.0, size - 1.0)
        first = jnp.clip(jnp.floor(x).astype(jnp.int32), 0, max(size - 2, 0))
        return first, jnp.minimum(first + 1, size - 1), (x - first.astype(x.dtype))[..., None]

    left, right, fx = cell(uv[..., 0], width)
    top, bottom, fy = cell(uv[..., 1], height)
    upper = texture[top, left] * (1.0 - fx) + texture[top, right] * fx
    lower = texture[bottom, left] * (1.0 - fx) + texture[bottom, right] * fx
    return upper * (1.0 - fy) + lower * fy
