"""The face's own colour map: the photo laid out in UV space, its light taken off, its gaps filled.

What the photo shows is kept as the logarithm of its ratio to what the fit predicts (albedo times shade). Such a
ratio can be blended, mirrored and continued over parts that the photo does not show without leaving a seam, and
where it is 0 the map is the model's own albedo.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import distance_transform_edt, gaussian_filter, maximum_filter, minimum_filter

from fitting.fit import Fit
from fitting.observation import Photo, crop
from morphable.colour import linear_to_srgb
from morphable.mesh import Mesh
from renderer.light import sh_basis
from renderer.rasterize import barycentrics, visibility
from renderer.shade import interpolate, unit
from renderer.texture import dilate, sample_texture, texel_table, unwrap

_CROP = 1024  # side of the square of the photo that is unwrapped; one size, so one compilation
_DARK = 0.004  # added to both colours of a ratio: one step of an 8-bit photo, so that black is not minus infinity
_SATURATED = 0.92  # linear; a channel at its end stop does not tell a colour

Map = Float[np.ndarray, "row column"]
ColourMap = Float[np.ndarray, "row column 3"]


class _Layout(NamedTuple):
    """What lies under each texel of the map, and what the fit expects the photo to show there."""

    valid: Bool[np.ndarray, "row column"]
    skin: Bool[np.ndarray, "row column"]
    albedo: ColourMap  # linear
    shade: ColourMap
    masks: dict[str, Map]
    near_face: Map  # 1 on the front of the face, falling to 0 behind it
    mirror_uv: Float[np.ndarray, "row column 2"]


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


def _observe(fit: Fit, photo: Photo, mesh: Mesh, layout: _Layout, size: int, mask) -> tuple[ColourMap | None, Map]:
    """Logarithm of what the photo shows over what the fit predicts, and how far it can be trusted (0 to 1)."""
    model = fit.model
    # Lashes would hide the skin behind them, and are too thin to be placed to the pixel anyway.
    lashes = [i for i, name in enumerate(model.part_names) if name.startswith("lashes")]
    kept = ~np.isin(np.asarray(model.part_of_vertex)[np.asarray(mesh.triangles)[:, 0]], lashes)
    bare = Mesh(mesh.vertices, mesh.triangles[np.flatnonzero(kept)], mesh.uv)

    front = np.asarray(model.masks["face"] > 0.5) if "face" in model.masks else slice(None)
    pixels = np.asarray(fit.camera.project(mesh.vertices))[front]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    side = 1.3 * max(float((high - low).max()), 4.0)
    x0, y0 = (low + high) / 2 - side / 2
    if not (x0 < photo.width and y0 < photo.height and x0 + side > 0 and y0 + side > 0):
        return None, np.zeros((size, size), np.float32)
    box = (float(x0), float(y0), side, side)
    camera = fit.camera.crop(box, _CROP, _CROP)
    picture, inside = photo.crop_linear(box, _CROP)

    usable = inside.astype(np.float32)
    if mask is not None:
        usable *= crop(mask, box, _CROP)
    dim = 1.0 - _step(picture.max(axis=2), _SATURATED, 1.0)
    pixels_per_mm = float(camera.focal.mean() / camera.pose.translation()[2])
    gauges = np.stack([usable, _clearance(bare, camera, pixels_per_mm), dim], axis=2)

    colour, cosine = (np.asarray(a) for a in unwrap(jnp.asarray(picture), bare, camera, size))
    gauges = np.asarray(unwrap(jnp.asarray(gauges), bare, camera, size)[0])
    trust = _step(cosine, 0.15, 0.6) * _step(gauges[..., 0], 0.5, 1.0) * gauges[..., 1]
    trust = trust * (0.15 + 0.85 * gauges[..., 2]) * layout.skin * layout.near_face
    for name in ("ears", "interior"):
        trust = trust * (1.0 - layout.masks[name])
    ratio = np.log((colour + _DARK) / (layout.albedo * layout.shade + _DARK))
    return np.where(trust[..., None] > 0, ratio, 0.0), trust.astype(np.float32)


def _clearance(mesh: Mesh, camera, pixels_per_mm: float) -> Map:
    """0 at outlines, where a fit that is off by a millimetre sees the wrong thing, 1 well inside of them."""
    ids = visibility(camera, mesh.vertices, mesh.triangles)
    points = camera.to_camera(mesh.vertices)
    weights = barycentrics(camera.project_camera(points), points[:, 2], mesh.triangles, ids)
    depth = np.asarray(interpolate(points[:, 2:], mesh.triangles, ids, weights))[..., 0]
    covered = np.asarray(ids) >= 0
    to_background = distance_transform_edt(covered) / pixels_per_mm
    jump = maximum_filter(depth, 3) - minimum_filter(np.where(covered, depth, np.inf), 3) > 5.0
    to_jump = distance_transform_edt(~jump) / pixels_per_mm
    return (_step(to_background, 2.0, 9.0) * _step(to_jump, 0.5, 2.5)).astype(np.float32)


def _complete(ratio: ColourMap, trust: Map, layout: _Layout) -> ColourMap:
    """The ratio over the whole head: observed, mirrored, continued."""
    tone = _tone(ratio, trust, layout)
    ratio = tone + _limit(ratio - tone, layout)
    mirrored, mirror_trust = _sample(ratio, trust, layout.mirror_uv)
    mirror_trust = np.where(layout.skin, mirror_trust, 0.0) * (1.0 - trust)
    total = trust + mirror_trust
    both = (ratio * trust[..., None] + mirrored * mirror_trust[..., None]) / np.maximum(total, 1e-6)[..., None]
    hair = layout.masks["scalp"] * layout.skin
    beyond = _continue(both, total * (1.0 - hair), tone)
    above = _continue(both, total * hair, beyond)
    beyond = beyond + hair[..., None] * (above - beyond)
    whole = beyond + np.clip(total, 0.0, 1.0)[..., None] * (both - beyond)
    inside = (layout.skin * (1.0 - layout.masks["interior"]))[..., None]
    return whole * inside


def _tone(ratio: ColourMap, trust: Map, layout: _Layout) -> Float[np.ndarray, "3"]:
    """The median ratio of plain skin: what the fit's albedo and light together got wrong everywhere."""
    m = layout.masks
    plain = (trust > 0.5) & (m["lips"] + m["brows"] + m["scalp"] + m["beard"] + m["lids"] < 0.2)
    if plain.sum() < 100:
        plain = trust > 0.3 * trust.max()
    return np.median(ratio[plain], axis=0)


def _limit(ratio: ColourMap, layout: _Layout) -> ColourMap:
    """The ratio with its extremes drawn in: gloss is not white skin, and a cast shadow not dark skin.

    Only brightness is limited, so that colours stay; broad differences more than details such as brows and nostrils.
    """
    brightness = ratio.mean(axis=2)
    known = (np.abs(ratio).sum(axis=2) > 0).astype(np.float32)
    sigma = 0.03 * len(ratio)
    broad = gaussian_filter(brightness * known, sigma) / np.maximum(gaussian_filter(known, sigma), 1e-3)
    detail = brightness - broad
    skin = 1.0 - np.clip(layout.masks["scalp"] + layout.masks["beard"], 0.0, 1.0)
    limited_broad = skin * _knee(broad, 0.35, 0.35) + (1.0 - skin) * _knee(broad, 0.35, 2.0)
    return ratio + (limited_broad + _knee(detail, 0.25, 2.5) - brightness)[..., None]


def _knee(x: np.ndarray, high: float, low: float) -> np.ndarray:
    """x, but beyond `high` above and `-low` below growing with a fifth of its slope."""
    return x - 0.8 * np.maximum(x - high, 0.0) + 0.8 * np.maximum(-low - x, 0.0)


def _sample(ratio: ColourMap, trust: Map, uv: Float[np.ndarray, "row column 2"]) -> tuple[ColourMap, Map]:
    """A weighted map looked up elsewhere; texels of no weight do not leak into their neighbours."""
    packed = np.concatenate([ratio * trust[..., None], trust[..., None]], axis=2)
    found = np.asarray(sample_texture(jnp.asarray(packed), jnp.asarray(uv)))
    return found[..., :3] / np.maximum(found[..., 3:], 1e-6), found[..., 3]


def _continue(values: ColourMap, weight: Map, prior: np.ndarray, fade: float = 0.02) -> ColourMap:
    """Weighted values continued smoothly over texels of no weight, fading to a prior with distance.

    Pull-push over a pyramid (Gortler et al. 1996, "The lumigraph", section 3.4); at every level `fade` of weight goes
    to the prior.
    """
    return prior + _pull_push((values - prior) * weight[..., None], weight, fade)


def _pull_push(total: ColourMap, weight: Map, fade: float) -> ColourMap:
    here = total / np.maximum(weight, 1e-6)[..., None]
    height, width = weight.shape
    if min(height, width) < 2:
        return total / (weight + fade)[..., None]
    pad = ((0, height % 2), (0, width % 2))
    even_total, even_weight = np.pad(total, (*pad, (0, 0))), np.pad(weight, pad)
    sums = [even_total[i::2, j::2] for i in (0, 1) for j in (0, 1)]
    weights = [even_weight[i::2, j::2] for i in (0, 1) for j in (0, 1)]
    coarse_total, coarse_weight = sum(sums), sum(weights)
    excess = np.maximum(coarse_weight, 1.0)
    coarse = _pull_push(coarse_total / excess[..., None] / (1 + fade), coarse_weight / excess, fade)
    w = np.clip(weight, 0.0, 1.0)[..., None]
    return w * here + (1.0 - w) * _double(coarse, height, width)


def _double(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Twice as many rows and columns, interpolated linearly, cut to height x width."""
    for axis in (0, 1):
        padded = np.concatenate([coarse.take([0], axis), coarse, coarse.take([-1], axis)], axis)
        n = coarse.shape[axis]
        low, mid, high = (padded.take(range(k, k + n), axis) for k in range(3))
        coarse = np.stack([0.25 * low + 0.75 * mid, 0.75 * mid + 0.25 * high], axis + 1)
        shape = list(coarse.shape)
        shape[axis : axis + 2] = [2 * n]
        coarse = coarse.reshape(shape)
    return coarse[:height, :width]
