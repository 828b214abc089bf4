"""Textures: lookup, the surface point of every texel, and photos unwrapped into UV space.

u runs right and v down from the map's top left corner, both in [0, 1]; texel (row, column) has its centre at
((column + 0.5) / width, (row + 0.5) / height).
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from morphable.mesh import Mesh
from renderer.camera import AbstractCamera
from renderer.rasterize import barycentrics, rasterize
from renderer.shade import interpolate, unit


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


class TexelTable(NamedTuple):
    """The surface point under the centre of each texel: a triangle (-1 for none) and its corners' weights."""

    triangle_ids: Int[Array, "size size"]
    barycentrics: Float[Array, "size size 3"]


def texel_table(uv: Float[Array, "vertex 2"], triangles: Int[Array, "triangle 3"], size: int) -> TexelTable:
    """Which surface point each texel of a size x size map shows; where charts overlap, the lower triangle id."""
    texels = uv * size
    level = jnp.zeros(uv.shape[0], texels.dtype)
    ids = rasterize(texels, level, triangles, size, size, perspective=False, near=-float("inf"), cull=False)
    return TexelTable(ids, barycentrics(texels, None, triangles, ids))


@eqx.filter_jit
def unwrap(
    image: Float[Array, "height width channel"], mesh: Mesh, camera: AbstractCamera, size: int, cull: bool = True
) -> tuple[Float[Array, "{size} {size} channel"], Float[Array, "{size} {size}"]]:
    """A photo (of any number of channels) laid out in UV space, and how well each texel was seen.

    The weight is the cosine between the surface's normal and the direction to the camera, and 0 for texels that are
    hidden, outside the photo or on no triangle; the texture is 0 there. A texel is visible if it is no deeper than
    the z-buffer at the four pixels around it, up to what the surface's own slope explains; so texels within a pixel
    of an occluder's edge, whose colour is mixed, count as hidden.
    """
    if mesh.uv is None:
        raise ValueError("unwrap: mesh.uv is None; the mesh needs a UV layout")
    if image.shape[:2] != (camera.height, camera.width):
        raise ValueError(
            f"unwrap: image is {image.shape[0]}x{image.shape[1]} but the camera's picture "
            f"{camera.height}x{camera.width}; use camera.resize or camera.crop"
        )
    points = camera.to_camera(mesh.vertices)
    pixels, depth = camera.project_camera(points), points[:, 2]
    ids = rasterize(
        pixels,
        depth,
        mesh.triangles,
        camera.height,
        camera.width,
        perspective=camera.perspective,
        near=camera.near,
        cull=cull,
    )
    weights = barycentrics(pixels, depth if camera.perspective else None, mesh.triangles, ids)
    z_buffer = interpolate(depth[:, None], mesh.triangles, ids, weights)[..., 0]
    z_buffer = jnp.where(ids >= 0, z_buffer, jnp.inf)

    table = texel_table(mesh.uv, mesh.triangles, size)
    normals = jnp.matmul(mesh.normals, camera.rotation.T, precision="highest")
    both = jnp.concatenate([points, normals], axis=1)
    surface = interpolate(both, mesh.triangles, *table).reshape(size * size, 6)
    point, normal = surface[:, :3], unit(surface[:, 3:])
    pixel = camera.project_camera(point)
    cosine = jnp.sum(normal * camera.towards_camera(point), axis=1)

    corner = jnp.floor(pixel - 0.5).astype(jnp.int32)
    column, row = (jnp.clip(corner[:, k], 0, n - 2) for k, n in ((0, camera.width), (1, camera.height)))
    nearest = jnp.min(jnp.stack([z_buffer[row + j, column + i] for i in (0, 1) for j in (0, 1)]), axis=0)
    slope = 1.5 * camera.pixel_size(point[:, 2]) / jnp.maximum(cosine, 0.1)
    bounds = jnp.array([[camera.width, camera.height]], pixel.dtype)
    inside = jnp.all((pixel >= 0.0) & (pixel <= bounds), axis=1)
    seen = (point[:, 2] <= nearest + slope) & (point[:, 2] > camera.near) & inside
    seen = seen & (table.triangle_ids.reshape(-1) >= 0) & (cosine > 0.0)

    colour = sample_texture(image, pixel / bounds)
    texture = jnp.where(seen[:, None], colour, 0.0).reshape(size, size, -1)
    return texture, jnp.where(seen, cosine, 0.0).reshape(size, size)


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
