"""A mesh, a camera and a light become a picture."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from morphable.mesh import Mesh, unit
from morphable.uv import interpolate
from renderer.camera import AbstractCamera
from renderer.light import DirectionalLight
from renderer.rasterize import barycentrics, rasterize
from renderer.shade import CLAY, Gloss, lambert, phong
from renderer.shadow import cast_shadow
from renderer.silhouette import EdgeTable, antialias
from renderer.texture import MipPyramid, mip_level, mip_pyramid, sample_mip, uv_footprint


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

    def interpolate(
        self, attributes: Float[Array, "vertex channel"], triangles: Int[Array, "triangle 3"]
    ) -> Float[Array, "height width channel"]:
        """Any attributes of the mesh's vertices as a picture; zeros where there is nothing."""
        return interpolate(attributes, triangles, self.triangle_ids, self.barycentrics)

    def labels(self, of_triangle: Int[Array, "triangle"]) -> Int[Array, "height width"]:
        """Labels of the mesh's triangles, such as its parts, as a picture; -1 where there is nothing."""
        return jnp.where(self.triangle_ids >= 0, of_triangle[jnp.maximum(self.triangle_ids, 0)], -1)


def ncc(mean: Float[Array, "vertex 3"]) -> Float[Array, "vertex 3"]:
    """Normalised coordinate code of Zhu et al. (2016, eq. 9): the mean shape's coordinates, each scaled to [0, 1].

    Its picture, `rendering.interpolate(ncc(model.mean), mesh.triangles)`, is their PNCC: which point of the model each
    pixel sees, as a colour.
    """
    low, high = jnp.min(mean, axis=0, keepdims=True), jnp.max(mean, axis=0, keepdims=True)
    return (mean - low) / (high - low)


@eqx.filter_jit
def render(
    mesh: Mesh,
    camera: AbstractCamera,
    light: Float[Array, "9 3"],
    texture: Float[Array, "texture_height texture_width 3"] | MipPyramid | None = None,
    samples: int = 1,
    cull: bool = True,
    edges: EdgeTable | None = None,
    lamp: DirectionalLight | None = None,
    gloss: Gloss | None = None,
    shadow_size: int | None = 512,
    normal_map: Float[Array, "map_height map_width 3"] | MipPyramid | None = None,
) -> Rendering:
    """Picture of a mesh under a spherical-harmonics light in camera axes, of the camera's size.

    Albedo comes from the texture (linear RGB, through mesh.uv and mip levels; a `mip_pyramid` has them ready), else
    from mesh.albedo, else it is grey. The surface is diffuse; a `lamp` in addition to the light is reflected as
    Phong's `gloss` says (none: diffusely), and casts shadows through a map of `shadow_size` texels, None for none.
    A `normal_map` holds unit normals in head space by uv, which replace the mesh's smooth ones
    (`morphable.detail.detail_normals`); where it is zero they stay.

    Everything but the choice of the visible triangle has derivatives, forward and reverse. With the mesh's
    `edges` (`edge_table`), colour and coverage are antialiased along outlines, and occlusion has a derivative too.
    Without derivatives in mind, `samples` x `samples` samples a pixel smooth outlines and all else, at that many times
    the cost. With `cull` triangles seen from behind are not drawn; without, they are lit as if they faced the camera.
    """
    if samples > 1 and edges is not None:
        raise ValueError(f"render: got edges and samples={samples}; outlines are smoothed by either, not by both")
    if (texture is not None or normal_map is not None) and mesh.uv is None:
        raise ValueError("render: got a texture or normal map but mesh.uv is None; give the mesh uv, or leave them out")
    points = camera.to_camera(mesh.vertices)
    pixels, depth = camera.project_camera(points), points[:, 2]
    normals = jnp.matmul(mesh.normals, camera.rotation.T, precision="highest")
    pyramid, relief = (
        mip_pyramid(m) if m is not None and not isinstance(m, MipPyramid) else m for m in (texture, normal_map)
    )
    if texture is not None:
        albedo = None
    elif mesh.albedo is not None:
        albedo = mesh.albedo
    else:
        albedo = jnp.full_like(points, CLAY)

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
        uv = rest[0] if mesh.uv is not None else None
        reflectance = rest[-1]
        if uv is not None and mesh.uv is not None and (pyramid is not None or relief is not None):
            affine = depth if camera.perspective else None
            footprint = uv_footprint(shifted, affine, mesh.triangles, mesh.uv, ids, weights) / samples
            if pyramid is not None:
                reflectance = sample_mip(pyramid, uv, mip_level(pyramid, footprint))
            if relief is not None:
                n = _with_relief(n, sample_mip(relief, uv, mip_level(relief, footprint)), camera.rotation)
        if not cull:
            n = (
                n
                * jnp.where(
                    _seen_from_behind(
                        shifted, depth if camera.perspective else jnp.ones_like(depth), mesh.triangles, ids
                    ),
                    -1.0,
                    1.0,
                )[..., None]
            )
        if lamp is None:
            colour = lambert(reflectance, n, light)
        else:
            colour = shine(reflectance, n, ids, weights, lamp)
        covered = ids >= 0
        colour = jnp.where(covered[..., None], colour, 0.0)
        coverage = covered.astype(colour.dtype)
        if edges is not None:
            both = antialias(
                jnp.concatenate([colour, coverage[..., None]], axis=-1),
                shifted,
                depth,
                mesh.triangles,
                ids,
                edges,
                perspective=camera.perspective,
                near=camera.near,
                cull=cull,
            )
            colour, coverage = both[..., :3], both[..., 3]
        return Rendering(colour, coverage, jnp.where(covered, z[..., 0], jnp.inf), n, uv, ids, weights)

    def shine(reflectance, n, ids, weights, lamp):
        seen = interpolate(points, mesh.triangles, ids, weights)
        viewer = camera.towards_camera(seen.reshape(-1, 3)).reshape(seen.shape)
        lit = None
        if shadow_size is not None:
            lit = cast_shadow(points, normals, mesh.triangles, lamp.direction, ids, weights, shadow_size)
        return phong(reflectance, n, viewer, light, lamp, gloss or Gloss(0.0, 1.0), lit)

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


def _with_relief(normals, found, rotation):
    """Camera-axes normals replaced by those of a normal map (head space) where it has any."""
    turned = jnp.matmul(found, rotation.T, precision="highest")
    length = jnp.sum(found**2, axis=-1, keepdims=True)
    # At the border of what the map covers it fades to zero: blended, so that no seam shows.
    share = jnp.clip(2.0 * length, 0.0, 1.0)
    return unit(normals + share * (turned / jnp.sqrt(jnp.maximum(length, 1e-12)) - normals))


def _seen_from_behind(pixels, depth, triangles, ids):
    """Whether each pixel's triangle is clockwise in the picture as a viewer sees it."""
    a, b, c = (pixels[triangles[:, k]] for k in range(3))
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    # Each corner behind the camera is seen through its centre, which turns the triangle over once.
    clockwise = area * jnp.prod(jnp.sign(depth[triangles]), axis=1) > 0
    return clockwise[jnp.maximum(ids, 0)] & (ids >= 0)
