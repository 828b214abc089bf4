"""From pictures to a map: the surface point of every texel, photos laid out in UV space, and several of them blended.

UV is as in renderer.texture.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from morphable.mesh import Mesh, unit
from morphable.uv import TexelTable, interpolate, sample_texture
from renderer.camera import AbstractCamera
from renderer.rasterize import barycentrics, rasterize

_STEEP = 0.1  # cosine to the viewer beyond which a surface's slope says nothing about the next pixel
_DEPTH_SLACK = 0.25  # of a pixel along the surface's slope: less than the gap at which two layers matter
_LONE = 1e-4  # what is left of a weight at the border of what a view shows, for texels that no other view shows


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
    hidden, outside the photo or on no triangle; the texture is 0 there. Another preference is a function of it
    (`weight**2` favours frontal views more); a mask of the photo is unwrapped as a further channel and multiplied.

    A texel is visible if all four pixels that its colour is mixed from show its surface: if no triangle seen there,
    continued to the texel, lies before it, or if the texel's own plane, continued to the pixel, is not behind what the
    pixel shows. The first is exact where a surface is flat or hollow, the second where it bulges; both allow a quarter
    of a pixel along the slope for curvature and rounding. So texels within a pixel of an occluder's edge or of the
    outline, whose colour is a mixture, count as hidden.
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
    table = texel_table(mesh.uv, mesh.triangles, size)
    triangle_ids = table.triangle_ids.reshape(-1)
    normals = jnp.matmul(mesh.normals, camera.rotation.T, precision="highest")
    both = jnp.concatenate([points, normals], axis=1)
    surface = interpolate(both, mesh.triangles, *table).reshape(size * size, 6)
    point, normal = surface[:, :3], unit(surface[:, 3:])
    pixel = camera.project_camera(point)
    cosine = jnp.sum(normal * camera.towards_camera(point), axis=1)
    bounds = jnp.array([[camera.width, camera.height]], pixel.dtype)
    inside = jnp.all((pixel >= 0.0) & (pixel <= bounds), axis=1)

    # Nearness is affine in the picture, so that a triangle's plane can be continued exactly.
    planes = _nearness_planes(pixels, _nearness(depth, camera), mesh.triangles)
    shown = jnp.where((ids >= 0)[..., None], planes[jnp.maximum(ids, 0)], jnp.inf).reshape(-1, 5)
    own = planes[jnp.maximum(triangle_ids, 0)]
    near = _nearness(point[:, 2], camera)
    # A pixel's side as a change of nearness, along a surface that rises by 45 degrees.
    side = camera.pixel_size(point[:, 2]) * (near**2 if camera.perspective else 1.0)
    slack = _DEPTH_SLACK * side / jnp.maximum(cosine, _STEEP)
    steepness = jnp.sqrt(jnp.sum(own[:, 1:3] ** 2, axis=1) + 1e-30)
    slope = own[:, 1:3] * jnp.minimum(1.0, side / (_STEEP * steepness))[:, None]
    corner = jnp.floor(pixel - 0.5).astype(jnp.int32)
    column, row = (jnp.clip(corner[:, k], 0, max(n - 2, 0)) for k, n in ((0, camera.width), (1, camera.height)))
    seen = (triangle_ids >= 0) & (cosine > 0.0) & (point[:, 2] > camera.near) & inside
    for j in range(min(2, camera.height)):
        for i in range(min(2, camera.width)):
            there = shown.at[(row + j) * camera.width + column + i].get(mode="promise_in_bounds")
            centre = jnp.stack([column + i, row + j], axis=1).astype(pixel.dtype) + 0.5
            before = jnp.clip(_at(there, pixel), there[:, 3], there[:, 4]) <= near + slack
            onward = near + jnp.sum(slope * (centre - pixel), axis=1) + slack >= _at(there, centre)
            seen = seen & jnp.isfinite(there[:, 0]) & (before | onward)

    colour = sample_texture(image, pixel / bounds)
    texture = jnp.where(seen[:, None], colour, 0.0).reshape(size, size, -1)
    return texture, jnp.where(seen, cosine, 0.0).reshape(size, size)


def unwrap_views(
    images: Sequence[Float[Array, "_ _ channel"]],
    meshes: Mesh | Sequence[Mesh],
    cameras: Sequence[AbstractCamera],
    size: int,
    *,
    masks: Sequence[Float[Array, "_ _"]] | None = None,
    power: float = 2.0,
    feather: float = 0.02,
    match: bool = False,
) -> tuple[Float[Array, "{size} {size} channel"], Float[Array, "{size} {size}"]]:
    """One texture from several photos, of any sizes, and how well the best of them saw each texel.

    `meshes` is one mesh for all, or each photo's own (the same person with another expression). `masks` are 1 where a
    photo may be used and 0 elsewhere. With `match`, exposures and white balances are first made equal (`view_gains`).
    For cameras stacked in one pytree, `jax.vmap(unwrap, ...)` and `blend` do the same.
    """
    count = len(images)
    each = [meshes] * count if isinstance(meshes, Mesh) else list(meshes)
    if count == 0 or not len(cameras) == len(each) == count or (masks is not None and len(masks) != count):
        raise ValueError(
            f"unwrap_views: got {count} images, {len(cameras)} cameras, {len(each)} meshes"
            + ("" if masks is None else f", {len(masks)} masks")
            + "; expected as many of each, at least one. A single mesh serves all views if not in a list"
        )
    textures, weights = [], []
    for k, (image, mesh, camera) in enumerate(zip(images, each, cameras, strict=True)):
        mask = jnp.ones(image.shape[:2], image.dtype) if masks is None else masks[k]
        texture, weight = unwrap(jnp.concatenate([image, mask[..., None]], axis=2), mesh, camera, size)
        textures.append(texture[..., :-1])
        weights.append(weight * texture[..., -1])
    views, weight = jnp.stack(textures), jnp.stack(weights)
    if match:
        views = views * view_gains(views, weight)[:, None, None, :]
    return blend(views, weight, power=power, feather=feather)


@eqx.filter_jit
def blend(
    textures: Float[Array, "view height width channel"],
    weights: Float[Array, "view height width"],
    power: float = 2.0,
    feather: float = 0.02,
) -> tuple[Float[Array, "height width channel"], Float[Array, "height width"]]:
    """The weighted mean of several views' textures, and the largest weight; both 0 where no view has weight.

    A view's share is its weight to a `power`, times a factor that falls smoothly to 0 within `feather` (in sides of the
    map) of where the view shows nothing; so no view ends in an edge while another goes on. A view of weight 0 has no
    influence, whatever its texture holds there, and one view alone keeps its colours up to its border.
    """
    seen = weights > 0
    radius = max(1, round(feather * max(weights.shape[1:])))
    near = jax.vmap(lambda s: _box_mean(_box_mean(s, radius, 0), radius, 1))(seen.astype(weights.dtype))
    t = jnp.clip(2.0 * near - 1.0, 0.0, 1.0)
    inner = t * t * (3.0 - 2.0 * t)
    positive = jnp.where(seen, weights, 1.0)  # a power of 0 has no derivative
    share = jnp.where(seen, positive**power * (inner + _LONE), 0.0)
    total = jnp.sum(share, axis=0)
    mean = jnp.sum(jnp.where(seen, share, 0.0)[..., None] * jnp.where(seen[..., None], textures, 0.0), axis=0)
    return mean / jnp.where(total > 0, total, 1.0)[..., None], jnp.max(weights, axis=0)


@eqx.filter_jit
def view_gains(
    textures: Float[Array, "view height width channel"], weights: Float[Array, "view height width"]
) -> Float[Array, "view channel"]:
    """Factors, of geometric mean 1, under which views of one surface agree best where they overlap.

    Brown & Lowe 2007 ("Automatic panoramic image stitching", section 6) on logarithms, per channel: exposure and white
    balance are factors of linear colour, and in logarithms no view can win by getting dark. A view that overlaps with
    no other keeps its colours. Values not above 0.001 are too dark to tell.
    """
    views, channels = textures.shape[0], textures.shape[3]
    lit = textures > 1e-3
    log = jnp.log(jnp.where(lit, textures, 1.0)).reshape(views, -1, channels)
    w = jnp.where(lit, weights[..., None], 0.0).reshape(views, -1, channels)
    # Minimises sum over texels and pairs of w_u w_v (log_u + g_u - log_v - g_v)^2.
    overlap = jnp.einsum("upc,vpc->cuv", w, w, precision="highest") * (1.0 - jnp.eye(views, dtype=w.dtype))[None]
    together, seen = jnp.sum(w * log, axis=0), jnp.sum(w, axis=0)
    right = jnp.einsum("upc,upc->cu", w, together[None] - log * seen[None], precision="highest")
    diagonal = jnp.sum(overlap, axis=2)
    # The small term makes the common factor, which nothing tells, the smallest one.
    ridge = 1e-4 * jnp.mean(diagonal, axis=1, keepdims=True) + 1e-12
    matrix = jnp.eye(views, dtype=w.dtype)[None] * (diagonal + ridge)[:, :, None] - overlap
    return jnp.exp(jnp.transpose(jnp.linalg.solve(matrix, right[..., None])[..., 0]))


def _nearness(depth, camera):
    """Grows towards the camera and is affine in the picture."""
    return 1.0 / jnp.where(depth > 1e-6, depth, 1e-6) if camera.perspective else -depth


def _nearness_planes(pixels, near, triangles):
    """Of each triangle: nearness at the picture's origin, its change per pixel right and down, its least and most."""
    table = jnp.concatenate([pixels, near[:, None]], axis=1)
    a, b, c = (table[triangles[:, k]] for k in range(3))
    p, q = b - a, c - a
    area = p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
    per_area = jnp.where(jnp.abs(area) > 1e-5, 1.0, 0.0) / jnp.where(jnp.abs(area) > 1e-5, area, 1.0)
    right = (p[:, 2] * q[:, 1] - q[:, 2] * p[:, 1]) * per_area
    down = (q[:, 2] * p[:, 0] - p[:, 2] * q[:, 0]) * per_area
    corners = jnp.stack([a[:, 2], b[:, 2], c[:, 2]])
    origin = a[:, 2] - right * a[:, 0] - down * a[:, 1]
    return jnp.stack([origin, right, down, jnp.min(corners, axis=0), jnp.max(corners, axis=0)], axis=1)


def _at(planes, pixel):
    return planes[:, 0] + planes[:, 1] * pixel[:, 0] + planes[:, 2] * pixel[:, 1]


def _box_mean(values, radius, axis):
    """Running mean over 2 radius + 1 rows or columns, the border repeated."""
    pad = [(radius + 1, radius) if k == axis else (0, 0) for k in range(values.ndim)]
    total = jnp.cumsum(jnp.pad(values, pad, mode="edge"), axis=axis)
    n, window = values.shape[axis], 2 * radius + 1
    before, after = (jax.lax.slice_in_dim(total, k, k + n, axis=axis) for k in (0, window))
    return (after - before) / window
