"""Cast shadows: which points of a mesh see a lamp that is infinitely far away, by an orthographic shadow map.

A shadow map (Williams 1978) is the picture that the lamp sees; a point is lit if nothing in that picture is nearer to
the lamp. Kept here are triangle ids rather than depths, so that planes, and not samples, are compared: a bias against
self-shadowing need not grow with the slope.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from morphable.mesh import unit
from morphable.uv import interpolate
from renderer.rasterize import rasterize

_BORDER = 3  # empty texels around the mesh
_OFFSET = 0.5  # texels along the surface's normal by which a point is lifted towards the lamp
_REACH = 1.5  # texels along either axis from a point to its farthest tap
_DEEPEST = 50.0  # texels of depth that a grazing surface may explain; what is farther before it casts a shadow


def cast_shadow(
    vertices: Float[Array, "vertex 3"],
    normals: Float[Array, "vertex 3"],
    triangles: Int[Array, "triangle 3"],
    direction: Float[Array, "3"],
    ids: Int[Array, "*shape"],
    weights: Float[Array, "*shape 3"],
    size: int = 512,
) -> Float[Array, "*shape"]:
    """How much of a lamp in a unit `direction` reaches the surface points of ids and barycentrics: 0 none, 1 all.

    Vertices (mm) and their unit normals, those that shade, are in the axes of `direction`: the camera's or any other.
    All triangles cast shadows, whichever side they show. The answer is about what is in the way only; that a lamp
    behind a surface does not light it is for shading to say (`phong` does), and within a degree of that, where next to
    nothing is received, the answer is rough. Where ids is -1 it is 1. Nothing has a derivative here: within light or
    shadow it is zero, and the border's is not modelled.

    The map is `size` x `size` texels around the mesh: for a head of 300 mm, 512 texels of 0.6 mm. Borders are in place
    to a texel, and soft over three: percentage-closer filtering (Reeves et al. 1987), weighted by a quadratic B-spline.
    """
    if size < 16:
        raise ValueError(f"shadow map: got {size} texels a side, of which {2 * _BORDER} are border; use 16 at least")
    # Outside the compiled part, or that would be compiled again for derivatives.
    vertices, normals, direction, weights = (lax.stop_gradient(v) for v in (vertices, normals, direction, weights))
    return _visibility(vertices, normals, triangles, direction, ids, weights, size)


@functools.partial(jax.jit, static_argnames=("size",))
def _visibility(vertices, normals, triangles, direction, ids, weights, size):
    axes = _lamp_axes(direction)
    corners = jnp.matmul(vertices, axes.T, precision="highest")  # right, down, away from the lamp; mm
    low, high = jnp.min(corners, axis=0), jnp.max(corners, axis=0)
    texel = jnp.maximum(jnp.max((high - low)[:2]), 1e-6) / (size - 2 * _BORDER)
    corners = (corners - low[None]) / texel + jnp.asarray([_BORDER, _BORDER, 0], corners.dtype)[None]  # texels
    normals = jnp.matmul(normals, axes.T, precision="highest")
    seen = rasterize(
        corners[:, :2], corners[:, 2], triangles, size, size, perspective=False, near=-float("inf"), cull=False
    )

    # Depth over the map as a plane through the first corner, and the range in which the triangle itself lies.
    a, b, c = (corners[triangles[:, k]] for k in range(3))
    nearest, farthest = jnp.minimum(jnp.minimum(a, b), c)[:, 2:], jnp.maximum(jnp.maximum(a, b), c)[:, 2:]
    planes = jnp.concatenate([a, _slope(_towards_lamp(unit(jnp.cross(b - a, c - a)))), nearest, farthest], axis=1)

    def depth_at(plane, x, y):
        return plane[..., 2] + plane[..., 3] * (x - plane[..., 0]) + plane[..., 4] * (y - plane[..., 1])

    up = _towards_lamp(unit(interpolate(normals, triangles, ids, weights)))
    own_slope = _slope(up)
    point = _smooth_point(corners, normals, triangles, ids, weights) + _OFFSET * up
    # One texel inside the map: past the empty border, all taps are in it and empty.
    x, y = (jnp.clip(point[..., k], 1.0, size - 1.001) for k in range(2))
    z = point[..., 2]
    surely_before = z - jnp.minimum(_REACH * jnp.sum(jnp.abs(own_slope), axis=-1), _DEEPEST)
    column, row = (jnp.floor(v).astype(jnp.int32) for v in (x, y))

    def spline(t, k):  # of the texel k after the point's own, in which the point is t after the centre
        return 0.75 - t**2 if k == 0 else 0.5 * (0.5 + k * t) ** 2

    lit = jnp.zeros_like(x)
    for j in (-1, 0, 1):
        for i in (-1, 0, 1):
            tap = seen[row + j, column + i]
            plane = planes[jnp.maximum(tap, 0)]
            tap_x, tap_y = column.astype(x.dtype) + (i + 0.5), row.astype(y.dtype) + (j + 0.5)
            # In the way at the texel's centre, where the surface around the point goes on as a plane; ...
            there = jnp.clip(depth_at(plane, tap_x, tap_y), plane[..., 5], plane[..., 6])
            rise = own_slope[..., 0] * (tap_x - x) + own_slope[..., 1] * (tap_y - y)
            before = there < z + jnp.maximum(rise, -_DEEPEST)
            # ... and, going on as a plane itself, at the point: else what rises from it is a fold of the same surface.
            before = before & ((depth_at(plane, x, y) < z) | (plane[..., 6] < surely_before))
            weight = spline(x - column.astype(x.dtype) - 0.5, i) * spline(y - row.astype(y.dtype) - 0.5, j)
            lit = lit + weight * jnp.where(before & (tap >= 0), 0.0, 1.0)
    return jnp.where(ids >= 0, jnp.clip(lit, 0.0, 1.0), 1.0)


def _lamp_axes(direction):
    """Rows: right, down and forward of a camera at the lamp that looks at the scene."""
    forward = -unit(direction)
    # The axis that the view is least along, so that the cross product is far from zero.
    helper = jnp.zeros(3, forward.dtype).at[jnp.argmin(jnp.abs(forward))].set(1.0)
    right = unit(jnp.cross(helper, forward))
    return jnp.stack([right, jnp.cross(forward, right), forward])


def _towards_lamp(normals):
    """Normals of the side that the lamp's map shows."""
    return normals * jnp.where(normals[..., 2:] > 0, -1.0, 1.0)


def _slope(normals):
    """Change of depth per texel right and down on planes with these normals; on edge it is large but finite."""
    return normals[..., :2] / jnp.maximum(-normals[..., 2:], 1e-6)


def _smooth_point(corners, normals, triangles, ids, weights):
    """The points moved out to the smooth surface that the vertex normals stand for.

    Facets of a convex surface near the terminator face away from a lamp that its smooth normals still see, and would
    shadow themselves in steps. Moving a point from each corner's tangent plane, where it is below, and averaging
    (Hanika 2021, "Hacking the shadow terminator", Ray Tracing Gems II) puts shadow and shading on the same terminator.
    """
    point = interpolate(corners, triangles, ids, weights)
    moved = point
    for k in range(3):
        corner = triangles[:, k][jnp.maximum(ids, 0)]
        below = jnp.minimum(jnp.sum((point - corners[corner]) * normals[corner], axis=-1), 0.0)
        moved = moved - (weights[..., k] * below)[..., None] * normals[corner]
    return moved
