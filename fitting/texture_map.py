"""The face's own colour map: the photo laid out in UV space, its light taken off, its gaps filled.

What the photo shows is kept as the logarithm of its ratio to what the fit predicts (albedo times shade). Such a
ratio can be blended, mirrored and continued over parts that the photo does not show without leaving a seam, and
where it is 0 the map is the model's own albedo.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, maximum_filter, minimum_filter

from fitting.fit import Fit
from fitting.observation import Photo, crop
from morphable.colour import linear_to_srgb, srgb_to_linear
from morphable.mesh import Mesh
from renderer.light import sh_basis
from renderer.rasterize import barycentrics, visibility
from renderer.shade import interpolate, unit
from renderer.texture import dilate, sample_texture, texel_table, unwrap

_CROP = 1024  # side of the square of the photo that is unwrapped; one size, so one compilation
_DARK = 0.004  # added to both colours of a ratio: one step of an 8-bit photo, so that black is not minus infinity
_SATURATED = 0.92  # linear; a channel at its end stop does not tell a colour

Map = Float[np.ndarray, "size size"]
ColourMap = Float[np.ndarray, "size size 3"]


class _Layout(NamedTuple):
    """What lies under each texel of the map, and what the fit expects the photo to show there."""

    valid: Bool[np.ndarray, "size size"]
    skin: Bool[np.ndarray, "size size"]
    albedo: ColourMap  # linear
    shade: ColourMap
    masks: dict[str, Map]
    near_face: Map  # 1 on the front of the face, falling to 0 behind it
    mirror_uv: Float[np.ndarray, "size size 2"]


def face_texture(
    fit: Fit, photo: Photo, size: int = 1024, mask: Bool[np.ndarray, "height width"] | None = None
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Diffuse colour (sRGB-encoded) of the fitted head, from the photo where it shows the skin well.

    Texels seen at a slant, near an outline, behind something or outside `mask` (true where the photo may be used) are
    filled from the other side of the face, then by continuing the colours around them; eyes, teeth, tongue and lashes
    are the model's, with the irises tinted like the photo's.
    """
    mesh = fit.mesh
    layout = _layout(fit, mesh, size)
    ratio, trust = _observe(fit, photo, mesh, layout, size, mask)
    if ratio is None or trust.max() < 0.05:  # the head lies outside the photo: nothing to take from it
        colour = layout.albedo
    else:
        colour = layout.albedo * np.exp(_complete(ratio, trust, layout))
    colour = dilate(np.clip(colour, 0.0, 1.0), layout.valid)
    return np.rint(255 * np.asarray(linear_to_srgb(jnp.asarray(colour)))).astype(np.uint8)


def _layout(fit: Fit, mesh: Mesh, size: int) -> _Layout:
    model = fit.model
    table = texel_table(mesh.uv, mesh.triangles, size)
    names = ("face", "scalp", "ears", "interior", "lids", "lips", "brows", "beard", "iris")
    count = len(mesh.vertices)
    skin = np.asarray(model.part_of_vertex) == model.part_names.index("skin")
    masks = {name: np.asarray(model.masks.get(name, jnp.zeros(count))) for name in names}
    if "face" not in model.masks:
        masks["face"] = skin.astype(np.float32)
    normals = jnp.matmul(mesh.normals, fit.camera.rotation.T)
    columns = [
        mesh.albedo,
        normals,
        mesh.uv[model.mirror],
        jnp.asarray(skin, jnp.float32)[:, None],
        jnp.asarray(_near(np.asarray(model.mean), (masks["face"] > 0.5) & skin))[:, None],
        *(jnp.asarray(masks[name], jnp.float32)[:, None] for name in names),
    ]
    flat = np.asarray(interpolate(jnp.concatenate(columns, axis=1), mesh.triangles, *table))
    shade = sh_basis(unit(jnp.asarray(flat[..., 3:6]))) @ jnp.asarray(fit.light)
    shade = np.asarray(shade)
    # The least light that the fit may claim: dividing by less would amplify noise and shadows it did not model.
    floor = 0.15 * np.percentile(shade[flat[..., 9] > 0], 90, axis=0)
    return _Layout(
        valid=np.asarray(table.triangle_ids) >= 0,
        skin=flat[..., 8] > 0.5,
        albedo=np.maximum(flat[..., :3], 1e-3),
        shade=np.maximum(shade, np.maximum(floor, 1e-3)),
        masks={name: flat[..., 10 + i] for i, name in enumerate(names)},
        near_face=flat[..., 9],
        mirror_uv=flat[..., 6:8],
    )


def _near(points: Float[np.ndarray, "vertex 3"], inside: Bool[np.ndarray, " vertex"]) -> Float[np.ndarray, " vertex"]:
    """1 at the vertices of a region, falling smoothly to 0 at 30 mm from it."""
    from scipy.spatial import cKDTree

    distance, _ = cKDTree(points[inside]).query(points)
    return (1.0 - _step(distance, 0.0, 30.0)).astype(np.float32)


def _step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below low, 1 above high, smooth between (Hermite)."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
