"""A tangent-space normal map, as glTF wants it, from heights over the skin in UV space; where heights come from is not
its concern.

Heights over one surface add, and with them the slopes of what they make. So of several normal maps of one surface the
slopes are added: "partial derivatives" of Barré-Brisebois & Hill 2012 ("Blending in Detail"). Their reoriented maps are
for a relief that lies on another one.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from morphable.detail import UVSurface, detail_normals, uv_surface
from morphable.mesh import Mesh
from renderer.unwrap import texel_table

_STEEPEST = 1.5  # slope (56 degrees) above which heights are a mistake in the map, not skin


def texel_surface(
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    uv: Float[np.ndarray, "vertex 2"],
    size: int,
) -> UVSurface:
    """The surface (mm) under the texels of a size x size map."""
    corners, places = jnp.asarray(triangles, jnp.int32), jnp.asarray(uv, jnp.float32)
    mesh = Mesh(jnp.asarray(vertices, jnp.float32), corners, places)
    return uv_surface(mesh, texel_table(places, corners, size))


def tangent_slopes(heights: Float[np.ndarray, "row column"], surface: UVSurface) -> Float[np.ndarray, "row column 2"]:
    """How steeply heights (mm, outwards) rise along the tangent, which follows u, and up the map: the displaced
    surface's normal is (-slope, 1).

    Slopes beyond 56 degrees are drawn in. Texels without a surface, or with heights that are not finite, are flat.
    """
    if heights.shape != surface.valid.shape:
        raise ValueError(
            f"tangent_slopes: heights of {heights.shape} and a surface of {surface.valid.shape} texels, expected the "
            "same. Make the surface with texel_surface(..., size)."
        )
    return np.asarray(_slopes(jnp.asarray(heights, jnp.float32), surface))


def encoded(slopes: Float[np.ndarray, "row column 2"]) -> UInt8[np.ndarray, "row column 3"]:
    """glTF's normal map of slopes: x along the tangent, y up the map, z out of the surface; 128 128 255 is flat."""
    normal = np.concatenate([-slopes, np.ones_like(slopes[..., :1])], axis=2)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    return np.clip(np.rint(normal * 127.0 + 128.0), 0, 255).astype(np.uint8)


def decoded(pixels: UInt8[np.ndarray, "row column 3"]) -> Float[np.ndarray, "row column 2"]:
    """The slopes of a normal map: what is added, times each map's share, to blend several of one surface."""
    normal = pixels.astype(np.float32) - 128.0
    return -normal[..., :2] / np.maximum(normal[..., 2:], 1.0)


def normal_map(heights: Float[np.ndarray, "row column"], surface: UVSurface) -> UInt8[np.ndarray, "row column 3"]:
    """glTF's normal map, linear, of heights (mm, outwards); see `tangent_slopes`."""
    return encoded(tangent_slopes(heights, surface))


@eqx.filter_jit
def _slopes(heights: Float[Array, "size size"], surface: UVSurface) -> Float[Array, "size size 2"]:
    known = jnp.isfinite(heights) & surface.valid
    normals = detail_normals(surface, jnp.where(known, heights, 0.0))
    across = jnp.stack([jnp.sum(normals * t, axis=-1) for t in surface.tangents], axis=-1)
    # A normal of heights always points out of the surface; where there is none both are zero.
    slopes = -across / jnp.maximum(jnp.sum(normals * surface.normals, axis=-1, keepdims=True), 1e-3)
    steep = jnp.sum(slopes**2, axis=-1, keepdims=True) / _STEEPEST**2
    return jnp.where(known[..., None], slopes * (1.0 + steep**2) ** -0.25, 0.0)  # half of it changes by 1.5 %
