"""Texture lookup, trilinear in levels of detail chosen by what a pixel covers of the map.

u runs right and v down from the map's top left corner, both in [0, 1]; texel (row, column) has its centre at
((column + 0.5) / width, (row + 0.5) / height).
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class MipPyramid(eqx.Module):
    """A texture at half, a quarter, ... of its size down to one texel, in one table so that a lookup is one gather."""

    texels: Float[Array, "texel channel"]  # level after level, each row after row; one texel of padding at the end
    sizes: tuple[tuple[int, int], ...] = eqx.field(static=True)  # (height, width) of each level, the finest first

    def level(self, k: int) -> Float[Array, "height width channel"]:
        """The texture's k-th halving."""
        height, width = self.sizes[k]
        start = sum(h * w for h, w in self.sizes[:k])
        return self.texels[start : start + height * width].reshape(height, width, -1)


def mip_pyramid(texture: Float[Array, "height width channel"]) -> MipPyramid:
    """All levels of detail of a texture of any size; linear in the texture.

    A level has half the rows and columns of the one before, rounded down, and its texels are averages of what they
    cover there: 2 x 2 boxes, and where a size is odd, boxes of 2 + 1 / n texels. So all levels have the same mean, and
    a feature lies at the same uv in all of them.
    """
    levels = [texture]
    while max(levels[-1].shape[:2]) > 1:
        levels.append(_halved(_halved(levels[-1], 0), 1))
    rows = [level.reshape(-1, texture.shape[2]) for level in levels]
    padding = jnp.zeros((1, texture.shape[2]), texture.dtype)
    return MipPyramid(jnp.concatenate([*rows, padding]), tuple((v.shape[0], v.shape[1]) for v in levels))


def sample_mip(
    pyramid: MipPyramid, uv: Float[Array, "*shape 2"], level: Float[Array, "*shape"]
) -> Float[Array, "*shape channel"]:
    """Trilinear lookup (Williams 1983, "Pyramidal parametrics"): bilinear in the two levels around `level`, blended.

    Level 0 and all below it are the texture itself; levels past the last are the last. Clamped at the map's border;
    differentiable in the texture, in uv and in the level. `mip_level` says which level a pixel needs.
    """
    last = len(pyramid.sizes) - 1
    level = jnp.clip(level, 0.0, float(last))
    fine = jnp.minimum(jnp.floor(level).astype(jnp.int32), max(last - 1, 0))
    blend = (level - fine.astype(level.dtype))[..., None]
    sizes = np.array(pyramid.sizes, np.int32)
    starts = np.concatenate([[0], np.cumsum(np.prod(sizes, axis=1))[:-1]]).astype(np.int32)

    def bilinear(k):
        start, height, width = (jnp.asarray(v)[k] for v in (starts, sizes[:, 0], sizes[:, 1]))
        left, fx = _cell(uv[..., 0], width)
        top, fy = _cell(uv[..., 1], height)
        first = start + top * width + left
        below = first + jnp.where(height > 1, width, 0)
        # The texel after the last of a row, which is another's, has weight 0: only one-texel rows get there.
        a, b, c, d = (pyramid.texels.at[i].get(mode="promise_in_bounds") for i in (first, first + 1, below, below + 1))
        return (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy

    return bilinear(fine) * (1.0 - blend) + bilinear(jnp.minimum(fine + 1, last)) * blend


def mip_level(pyramid: MipPyramid, footprint: Float[Array, "*shape 2 2"]) -> Float[Array, "*shape"]:
    """log2 of the largest extent in texels of a pixel whose footprint is d(u, v) / d(x, y); below 0 where magnified.

    OpenGL 4.6 (section 8.14.1) takes the longer of the footprint's two columns and allows anything between it and their
    sum; this is the ellipse's major axis, the same however the camera is rolled.
    """
    height, width = pyramid.sizes[0]
    texels = jnp.array([width, height], footprint.dtype)
    columns = footprint * texels[:, None]
    x, y = columns[..., 0], columns[..., 1]
    xx, yy, xy = (jnp.sum(p * q, axis=-1) for p, q in ((x, x), (y, y), (x, y)))
    # The added constants give round and empty footprints a finite derivative.
    major = 0.5 * (xx + yy) + jnp.sqrt(0.25 * (xx - yy) ** 2 + xy**2 + 1e-12)
    return 0.5 * jnp.log2(major)


def uv_footprint(
    pixels: Float[Array, "vertex 2"],
    depth: Float[Array, "vertex"] | None,
    triangles: Int[Array, "triangle 3"],
    uv: Float[Array, "vertex 2"],
    ids: Int[Array, "*shape"],
    weights: Float[Array, "*shape 3"],
) -> Float[Array, "*shape 2 2"]:
    """d(u, v) / d(x, y): how the uv changes from pixel to pixel to the right (last index 0) and down (1).

    `ids` and `weights` are the picture's triangles and barycentrics; `depth` (camera z) is None if those are affine.
    Analytic: with affine barycentrics b, 1 / z = sum b_k / z_k and uv = z sum b_k uv_k / z_k, hence the derivative
    z sum grad(b_k) / z_k (uv_k - uv). Zero where ids is -1 and where a triangle has no area in the picture.
    """
    inverse = jnp.ones_like(pixels[:, 0]) if depth is None else 1.0 / jnp.where(depth == 0, 1.0, depth)
    table = jnp.concatenate([pixels, inverse[:, None], uv], axis=1)
    seen = jnp.maximum(ids, 0)
    p, n, t = ([v[..., s] for v in (table[triangles[:, k]][seen] for k in range(3))] for s in _COLUMNS)
    edges = [p[2] - p[1], p[0] - p[2], p[1] - p[0]]
    area = edges[0][..., 0] * edges[1][..., 1] - edges[0][..., 1] * edges[1][..., 0]
    solid = (ids >= 0) & (jnp.abs(area) > 1e-5)
    w = [weights[..., k, None] for k in range(3)]
    here = w[0] * t[0] + w[1] * t[1] + w[2] * t[2]
    # Weights are b_k z / z_k and sum to 1, so sum w_k / (1 / z_k) = z.
    z = sum(a / jnp.where(solid[..., None], b, 1.0) for a, b in zip(w, n, strict=True))
    scale = jnp.where(solid[..., None], z, 0.0) / jnp.where(solid, area, 1.0)[..., None]
    total = 0.0
    for edge, near, corner in zip(edges, n, t, strict=True):
        # grad b_k is the opposite edge turned by a quarter, over the area.
        turned = jnp.stack([-edge[..., 1], edge[..., 0]], axis=-1)
        total = total + (corner - here)[..., :, None] * (turned * near)[..., None, :]
    return total * scale[..., None]


_COLUMNS = (slice(0, 2), slice(2, 3), slice(3, 5))


def _halved(texture, axis):
    """Half as many rows or columns, rounded down, each the average of what it covers."""
    size = texture.shape[axis]
    half = size // 2
    if half == 0:
        return texture
    even = texture.shape[:axis] + (half, 2) + texture.shape[axis + 1 :]
    if size % 2 == 0:
        return jnp.mean(texture.reshape(even), axis=axis + 1)
    # Texel i covers [i, i + 1) (2 + 1 / half): a box of two and parts of a third (Guthe & Heckbert 2005).
    i = np.arange(half).reshape((-1,) + (1,) * (texture.ndim - 1 - axis))
    weights = [jnp.asarray(w / size, texture.dtype) for w in (half - i, np.full_like(i, half), i + 1)]
    parts = [jnp.take(texture, np.arange(k, k + 2 * half, 2), axis=axis) for k in range(3)]
    return parts[0] * weights[0] + parts[1] * weights[1] + parts[2] * weights[2]


def _cell(t, size):
    """First of the two texels around t, and how far t lies towards the second."""
    count = size.astype(t.dtype)
    x = jnp.clip(t * count - 0.5, 0.0, count - 1.0)
    first = jnp.clip(jnp.floor(x).astype(jnp.int32), 0, jnp.maximum(size - 2, 0))
    return first, (x - first.astype(t.dtype))[..., None]
