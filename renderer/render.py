"""A mesh, a camera and a light become a picture."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from morphable.mesh import Mesh
from renderer.camera import AbstractCamera
from renderer.rasterize import barycentrics, rasterize
from renderer.shade import interpolate, lambert, unit
from renderer.texture import sample_texture

_CLAY = 0.6  # albedo of a mesh that has neither texture nor colours


class Rendering(eqx.Module):
    """What a camera sees of a mesh. All but colour and coverage is taken at the pixels' centres."""

    colour: Float[Array, "height width 3"]  # linear RGB, multiplied by coverage: over black
    coverage: Float[Array, "height width"]  # 0 to 1; fractions at silhouettes if rendered with several samples
    depth: Float[Array, "height width"]  # mm along the camera's axis, inf where there is nothing
    normals: Float[Array, "height width 3"]  # camera axes, unit length, smooth; 0 where there is nothing
    uv: Float[Array, "height width 2"] | None  # None if the mesh has none
    triangle_ids: Int[Array, "height width"]  # -1 where there is nothing
    barycentrics: Float[Array, "height width 3"]  # perspective-correct weights of the triangle's corners

    def over(self, background: Float[Array, "height width 3"]) -> Float[Array, "height width 3"]:
        """The picture before a background in linear RGB."""
        return self.colour + (1.0 - self.coverage[:, :, None]) * background


@eqx.filter_jit
def render(
    mesh: Mesh,
    camera: AbstractCamera,
    light: Float[Array, "9 3"],
    texture: Float[Array, "texture_height texture_width 3"] | None = None,
    samples: int = 1,
    cull: bool = True,
) -> Rendering:
    """Picture of a diffuse mesh under a spherical-harmonics light in camera axes, of the camera's size.

    Albedo comes from the texture (linear RGB, through mesh.uv), else from mesh.albedo, else it is grey. Everything but
    the choice of the visible triangle has derivatives, forward and reverse. `samples` x `samples` samples a pixel
    smooth the silhouettes and the texture, at that many times the cost. With `cull` triangles seen from behind are not
    drawn; without, they are lit as if they faced the camera.
    """
    if texture is not None and mesh.uv is None:
        raise ValueError("render: got a texture but mesh.uv is None; give the mesh uv, or leave the texture out")
    points = camera.to_camera(mesh.vertices)
    pixels, depth = camera.project_camera(points), points[:, 2]
    normals = jnp.matmul(mesh.normals, camera.rotation.T, precision="highest")
    if texture is not None:
        albedo = None
    elif mesh.albedo is not None:
        albedo = mesh.albedo
    else:
        albedo = jnp.full_like(points, _CLAY)

    # All attributes in one table: one gather per corner, not one per attribute.
    columns = [depth[:, None], normals]
    columns += [a for a in (mesh.uv, albedo) if a is not None]
    splits = np.cumsum([c.shape[1] for c in columns])[:-1].tolist()
    table = jnp.concatenate(columns, axis=1)

    def picture(shift):
        shifted = pixels + shift[None]
        ids = rasterize(
            shifted,
            depth,
            mesh.triangles,
            camera.height,
            camera.width,
            perspective=camera.perspective,
            near=camera.near,
            cull=cull,
        )
        weights = barycentrics(shifted, depth if camera.perspective else None, mesh.triangles, ids)
        z, n, *rest = jnp.split(interpolate(table, mesh.triangles, ids, weights), splits, axis=-1)
        n = unit(n)
        if not cull:
            n = n * jnp.where(_seen_from_behind(shifted, mesh.triangles, ids), -1.0, 1.0)[..., None]
        uv = rest[0] if mesh.uv is not None else None
        if texture is not None and uv is not None:
            reflectance = sample_texture(texture, uv)
        else:
            reflectance = rest[-1]
        covered = ids >= 0
        colour = jnp.where(covered[..., None], lambert(reflectance, n, light), 0.0)
        z = jnp.where(covered, z[..., 0], jnp.inf)
        return Rendering(colour, covered.astype(colour.dtype), z, n, uv, ids, weights)

    centre = picture(jnp.zeros(2, pixels.dtype))
    if samples == 1:
        return centre

    def add(total, shift):
        sample = picture(shift)
        return (total[0] + sample.colour, total[1] + sample.coverage), None

    offsets = 0.5 - (np.arange(samples) + 0.5) / samples
    shifts = jnp.asarray(np.stack(np.meshgrid(offsets, offsets), axis=-1).reshape(-1, 2), pixels.dtype)
    zero = (jnp.zeros_like(centre.colour), jnp.zeros_like(centre.coverage))
    colour, coverage = (v / samples**2 for v in lax.scan(add, zero, shifts)[0])
    return eqx.tree_at(lambda r: (r.colour, r.coverage), centre, (colour, coverage))


def _seen_from_behind(pixels, triangles, ids):
    """Whether each pixel's triangle is clockwise in the picture as a viewer sees it."""
    a, b, c = (pixels[triangles[:, k]] for k in range(3))
    clockwise = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0] > 0
    return clockwise[jnp.maximum(ids, 0)] & (ids >= 0)
