"""The face's own colour map: photos laid out in UV space, their light taken off, their gaps filled.

What a photo shows is kept as the logarithm of its ratio to what the fit predicts (albedo times shade). Such a
ratio can be blended, mirrored and continued over parts that the photo does not show without leaving a seam, and
where it is 0 the map is the model's own albedo.

Several photos of one person differ by their light, as far as nine harmonics cannot follow it, smoothly over the face:
each photo's smooth difference from what all have in common is found where photos overlap, continued to where one stands
alone, and taken off. Then broad colours are averaged, while details are taken from the photo that shows them best:
an average of details that lie a millimetre apart is a blur (Burt & Adelson 1983, "A multiresolution spline").
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter, uniform_filter
from scipy.spatial import KDTree

from fitting.fit import Fit
from fitting.observation import Photo, crop
from morphable.colour import linear_to_srgb
from morphable.detail import Detail, detail_normals, uv_surface
from morphable.mesh import Mesh, unit
from morphable.model import MorphableModel
from morphable.uv import interpolate
from renderer.delight import usable_shade
from renderer.fill import dilate, double, extrapolate, halve, mirror_fill
from renderer.light import sh_basis
from renderer.rasterize import barycentrics, visibility
from renderer.unwrap import texel_table, unwrap

_CROP = 1024  # side of the square of the photo that is unwrapped; one size, so one compilation
_DARK = 0.008  # added to both colours of a ratio: the noise of an 8-bit photo, so that black is not minus infinity
SHADE_FLOOR = 0.5  # of the face's usual shade: darker is not divided by
_SATURATED = 0.92  # linear; a channel at its end stop does not tell a colour
_SHOULDER = 0.75  # linear; hardly any skin's albedo is above: what is, is gloss or light that the fit does not know
_SIDES_DIFFER = 0.4  # logarithm; more is not light's or exposure's doing, but hair or a shadow on one side
_VIEWS = 16  # photos that are blended at most: more show nothing that these do not
_ENOUGH = 3.0  # good views of a point, beyond which another adds little
_USEFUL = 4.0  # pixels per mm; the map shows no more
_HALVINGS = 2  # of the map, at which the light's differences and outliers are looked for
_ROUNDS = 3  # of looking for them
_CERTAIN = 8.0  # a difference is known where an eighth of the surroundings overlaps
_BROAD = 0.03  # of the map's side; broader differences between photos are the light's, narrower ones details
_OUTLYING = 0.2  # logarithm; a photo this far from the median shows gloss, a shadow or hair
_DECIDED = 4  # power of the trust that decides whose details are shown
_MASKS = ("face", "scalp", "ears", "interior", "lids", "lips", "brows", "beard", "iris", "sclera")

Map = Float[np.ndarray, "row column"]
ColourMap = Float[np.ndarray, "row column 3"]


class TextureLayout(NamedTuple):
    """What lies under each texel of the map, and what the fit expects the photo to show there."""

    valid: Bool[np.ndarray, "row column"]
    skin: Map  # 1 on the skin, 0 on eyes, teeth, tongue, lashes
    albedo: ColourMap  # linear, the fit's
    plain: ColourMap  # the same, with skin in place of brows and lips, which the photo may have elsewhere
    masks: dict[str, Map]
    near_face: Map  # 1 on the front of the face, falling to 0 behind and below it
    mirror_uv: Float[np.ndarray, "row column 2"]


Source = Photo | Callable[[], Photo]  # a photo, or how to read it: many large ones are never held at once


class Blend(NamedTuple):
    """What several photos of one person show in common."""

    ratio: ColourMap  # logarithm of the common colour over the fit's plain albedo
    trust: Map  # 0 to 1
    views: tuple["View", ...]


class View(NamedTuple):
    """What one photo shows of the map, at a quarter of its size."""

    photo: int  # index among those given
    # Logarithm of its colour, its light's smooth difference taken off, over the common one.
    difference: Float[np.ndarray, "small_row small_column 3"]
    trust: Float[np.ndarray, "small_row small_column"]  # 0 to 1


def face_texture(
    fit: Fit,
    photo: Photo,
    size: int = 1024,
    mask: Bool[np.ndarray, "height width"] | None = None,
    detail: Detail | None = None,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Diffuse colour (sRGB-encoded) of the fitted head, from the photo where it shows the skin well.

    Texels seen at a slant, near an outline, behind something or outside `mask` (true where the photo may be used) are
    filled from the other side of the face, then by continuing the colours around them. Eyes, teeth, tongue and lashes
    are the model's, the eyes as bright as in the photo. With `detail`, its shading is taken off, too: a renderer that
    shows the detail would else show it twice.
    """
    return person_texture([fit], [photo], size, [mask], detail)


def person_texture(
    fits: Sequence[Fit],
    photos: Sequence[Source],
    size: int = 1024,
    masks: Sequence[Bool[np.ndarray, "height width"] | None] | None = None,
    detail: Detail | None = None,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Diffuse colour (sRGB-encoded) of a person's head from several photos; `face_texture` says how gaps are filled.

    `fits` have one identity and albedo (`fitting.multi_image.fit_together`) and one photo each, which may be given as
    a callable that reads it. At most the 16 photos that together show the head best are read.
    """
    layout, blend = blend_photos(fits, photos, size, masks, detail)
    return _finish(photographed_colour(layout, blend), layout.valid)


def photographed_colour(layout: TextureLayout, blend: Blend) -> ColourMap:
    """The completed map, linear RGB; the model's own where the head lies outside the photos."""
    if blend.trust.max() < 0.05:
        return layout.albedo
    return _below_white(layout.plain * np.exp(_complete(blend.ratio, blend.trust, layout)))


def blend_photos(
    fits: Sequence[Fit],
    photos: Sequence[Source],
    size: int = 1024,
    masks: Sequence[Bool[np.ndarray, "height width"] | None] | None = None,
    detail: Detail | None = None,
) -> tuple[TextureLayout, Blend]:
    """The layout of a person's map, and what the photos show in common; see `person_texture`."""
    masks = [None] * len(fits) if masks is None else list(masks)
    if not len(fits) == len(photos) == len(masks) or not fits:
        raise ValueError(
            f"person_texture: got {len(fits)} fits, {len(photos)} photos and {len(masks)} masks; expected one or more "
            "fits, and a photo (and mask, or None) for each. JointFit.indices says which photos its fits belong to."
        )
    layout = texture_layout(fits[0], size)
    chosen = best_views(fits)
    seen = []
    for k in chosen:
        source = photos[k]
        photo = source() if callable(source) else source
        seen.append(observe_texels(fits[k], photo, layout, masks[k], detail=detail))
    worth = _worth([fits[k] for k in chosen], seen)
    return layout, _blend(chosen, [ratio for ratio, _ in seen], [trust for _, trust in seen], worth, layout)


def model_texture(
    model: MorphableModel, albedo: Float[np.ndarray, " rank"], size: int = 1024
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The model's own albedo as a map, sRGB-encoded."""
    linear = model.albedo_linear(jnp.asarray(albedo))
    table = texel_table(model.uv, model.triangles, size)
    colour = np.asarray(interpolate(linear, model.triangles, *table))
    return _finish(colour, np.asarray(table.triangle_ids) >= 0)


def solid_triangles(model: MorphableModel) -> Int[np.ndarray, "triangle 3"]:
    """All triangles but the lashes': sheets of hairs, which are no opaque surface and hide the skin behind them."""
    triangles = np.asarray(model.triangles)
    lashes = [i for i, name in enumerate(model.part_names) if name.startswith("lashes")]
    return triangles[~np.isin(np.asarray(model.part_of_vertex)[triangles[:, 0]], lashes)]


def _finish(colour: ColourMap, valid: Bool[np.ndarray, "row column"]) -> UInt8[np.ndarray, "row column 3"]:
    encoded = np.asarray(linear_to_srgb(jnp.clip(jnp.asarray(colour), 0.0, 1.0)))
    return np.rint(255 * dilate(encoded, valid)).astype(np.uint8)


def _below_white(colour: ColourMap) -> ColourMap:
    """Brightness drawn in below 1, hue kept: cut off one by one, channels would turn bright skin yellow or cyan."""
    largest = np.maximum(colour.max(axis=2, keepdims=True), _SHOULDER)
    room = 1.0 - _SHOULDER
    return colour * ((_SHOULDER + room * np.tanh((largest - _SHOULDER) / room)) / largest)


def texture_layout(fit: Fit, size: int) -> TextureLayout:
    """The layout of a fitted person's map."""
    model = fit.model
    count = len(model.mean)
    skin = _skin(model)
    masks = {name: np.asarray(model.masks.get(name, jnp.zeros(count)), np.float32) for name in _MASKS}
    if "face" not in model.masks:
        masks["face"] = skin.astype(np.float32)
    per_vertex = jnp.stack([jnp.asarray(v) for v in (skin, _near_face(model, masks, skin), *masks.values())], axis=1)
    albedo = model.albedo_linear(jnp.asarray(fit.albedo))
    vertex = jnp.concatenate([albedo, model.uv[model.mirror], per_vertex], axis=1)
    ids, flat = (np.asarray(a) for a in _texels(vertex, model.uv, model.triangles, size))
    named = {name: flat[..., 7 + k] for k, name in enumerate(masks)}
    albedo = np.maximum(flat[..., :3], 1e-3)
    featured = np.clip(4.0 * (named["brows"] + named["lips"]), 0.0, 1.0)
    filled = extrapolate(albedo, flat[..., 5] * (1.0 - featured), np.zeros(3, np.float32), fade=0.0)
    return TextureLayout(
        valid=ids >= 0,
        skin=flat[..., 5],
        albedo=albedo,
        plain=albedo + featured[..., None] * (filled - albedo),
        masks=named,
        near_face=flat[..., 6],
        mirror_uv=flat[..., 3:5],
    )


def _skin(model: MorphableModel) -> Bool[np.ndarray, " vertex"]:
    if "skin" not in model.part_names:
        return np.ones(len(model.mean), bool)
    return np.asarray(model.part_of_vertex) == model.part_names.index("skin")


def _shade(fit: Fit, mesh: Mesh, layout: TextureLayout, detail: Detail | None) -> ColourMap:
    """What light the fit expects on each texel, usable to divide by."""
    normals = mesh.normals @ fit.camera.rotation.T
    light, usual, size = jnp.asarray(fit.light), usual_shade(fit, mesh), len(layout.valid)
    shade = np.asarray(_texel_shade(normals, fit.model.uv, fit.model.triangles, light, jnp.asarray(usual), size))
    if detail is not None:
        displacement = detail.at(jnp.asarray(fit.expression))
        change = _shade_change(mesh, fit.model.uv, displacement, fit.camera.rotation, light, jnp.asarray(usual), size)
        shade = shade * np.asarray(change)
    return _flattened(shade, layout.masks["scalp"], float(usual.mean()))


@eqx.filter_jit
def _texels(vertex: Float[Array, "vertex column"], uv, triangles, size: int):
    """Triangle id and vertex columns of each texel."""
    table = texel_table(uv, triangles, size)
    return table.triangle_ids, interpolate(vertex, triangles, *table)


@eqx.filter_jit
def _texel_shade(normals: Float[Array, "vertex 3"], uv, triangles, light, usual: Float[Array, "3"], size: int):
    """The shade of each texel.

    A fit knows the light from the face's front only; on its sides spherical harmonics fall to anything, and dividing
    by that would blow up noise into colours.
    """
    flat = interpolate(normals, triangles, *texel_table(uv, triangles, size))
    return usable_shade(sh_basis(unit(flat)) @ light, usual, SHADE_FLOOR)


@eqx.filter_jit
def _shade_change(mesh: Mesh, uv, displacement: Float[Array, "texel texel"], rotation, light, usual, size: int):
    """The factor by which a displacement changes the shade of each texel."""
    surface = uv_surface(mesh, texel_table(uv, mesh.triangles, size))
    fine = jax.image.resize(displacement, (size, size), "cubic")

    def shade(normals):
        return usable_shade(sh_basis(normals @ rotation.T) @ light, usual, SHADE_FLOOR)

    return shade(detail_normals(surface, fine)) / shade(surface.normals)


def usual_shade(fit: Fit, mesh: Mesh) -> Float[np.ndarray, "3"]:
    """The shade that the well lit part of a fitted face gets."""
    front = np.asarray(fit.model.masks["face"]) > 0.5 if "face" in fit.model.masks else _skin(fit.model)
    shade = np.asarray(sh_basis(mesh.normals @ fit.camera.rotation.T) @ jnp.asarray(fit.light))
    usual = np.percentile(shade[front] if front.any() else shade, 75, axis=0)
    return np.maximum(usual, 1e-3).astype(np.float32)


def _flattened(shade: ColourMap, scalp: Map, level: float) -> ColourMap:
    """The shade, with half its contrast on hair, which does not have the scalp's normals."""
    return shade * (shade.mean(axis=2, keepdims=True) / level) ** (-0.5 * scalp[..., None])


def _near_face(model: MorphableModel, masks, skin: Bool[np.ndarray, " vertex"]) -> Float[np.ndarray, " vertex"]:
    """How far the photo may be believed to show skin or hair: clothes and background begin behind and below."""
    points = np.asarray(model.mean)
    to_face, _ = KDTree(points[(masks["face"] > 0.5) & skin]).query(points)
    jaw = np.asarray(model.landmarks(model.mean))[:17]
    order = np.argsort(jaw[:, 2])
    above_jaw = points[:, 1] - np.interp(points[:, 2], jaw[order, 2], jaw[order, 1])
    front = (1.0 - _step(to_face, 0.0, 12.0)) * _step(above_jaw, -14.0, -2.0)
    hair = masks["scalp"] * (1.0 - _step(to_face, 10.0, 70.0))
    return np.maximum(front, hair) * (1.0 - masks["ears"]) * (1.0 - masks["interior"]) * skin


def observe_texels(
    fit: Fit,
    photo: Photo,
    layout: TextureLayout,
    mask: Bool[np.ndarray, "height width"] | None = None,
    crop_size: int = _CROP,
    detail: Detail | None = None,
) -> tuple[ColourMap, Map]:
    """Logarithm of what the photo shows over what the fit predicts, and how far it can be trusted (0 to 1).

    The photo is read at `crop_size` pixels across the face and a margin: as fine as the map, or it would alias.
    Beyond the skin, the ratio (at trust 0) also covers what is visible of the eyes.
    """
    model, mesh, size = fit.model, fit.mesh, len(layout.valid)
    nothing = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32)
    front = np.asarray(model.masks["face"] > 0.5) if "face" in model.masks else slice(None)
    pixels = np.asarray(fit.camera.project(mesh.vertices))[front]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    side = 1.3 * max(float((high - low).max()), 4.0)
    x0, y0 = (float(v) for v in (low + high) / 2 - side / 2)
    if not (x0 < photo.width and y0 < photo.height and x0 + side > 0 and y0 + side > 0):
        return nothing
    box = (x0, y0, side, side)
    camera = fit.camera.crop(box, crop_size, crop_size)
    picture, inside = photo.crop_linear(box, crop_size)

    bare = Mesh(mesh.vertices, jnp.asarray(solid_triangles(model)), model.uv)
    usable = inside.astype(np.float32)
    if mask is not None:
        usable *= crop(mask, box, crop_size)
    dim = 1.0 - _step(picture.max(axis=2), _SATURATED, 1.0)
    pixels_per_mm = float(camera.focal.mean() / camera.pose.translation()[2])
    clearance, rim = _clearance(bare, camera, pixels_per_mm)
    gauges = np.stack([usable, clearance * (0.15 + 0.85 * dim), rim], axis=2)

    layers = np.concatenate([picture, gauges], axis=2)
    unwrapped, cosine = (np.asarray(a) for a in unwrap(jnp.asarray(layers), bare, camera, size))
    colour, gauges = unwrapped[..., :3], unwrapped[..., 3:]
    ratio = np.log((colour + _DARK) / (layout.plain * _shade(fit, mesh, layout, detail) + _DARK))
    ratio = np.where(cosine[..., None] > 0, ratio, 0.0)
    trust = _step(cosine, 0.2, 0.65) * _step(gauges[..., 0], 0.9, 1.0) * gauges[..., 1] * layout.near_face
    return ratio, (trust * _looks_like_skin(ratio, trust, gauges[..., 2], layout)).astype(np.float32)


def _clearance(mesh: Mesh, camera, pixels_per_mm: float) -> tuple[Map, Map]:
    """0 at outlines, where a fit that is off by a millimetre sees the wrong thing, 1 well inside of them.

    The second map is 1 along the head's outline, as far inside as a poor fit lets the background reach.
    """
    covered, depth = (np.asarray(a) for a in _depth(mesh, camera))
    to_background = np.asarray(distance_transform_edt(covered)) / pixels_per_mm
    jump = maximum_filter(depth, 3) - minimum_filter(np.where(covered, depth, np.inf), 3) > 5.0
    to_jump = np.asarray(distance_transform_edt(~jump)) / pixels_per_mm
    clearance = _step(to_background, 3.0, 12.0) * _step(to_jump, 0.5, 2.5)
    return clearance.astype(np.float32), (1.0 - _step(to_background, 15.0, 30.0)).astype(np.float32)


@eqx.filter_jit
def _depth(mesh: Mesh, camera) -> tuple[Bool[Array, "row column"], Float[Array, "row column"]]:
    """Which pixels the mesh covers, and its depth there."""
    ids = visibility(camera, mesh.vertices, mesh.triangles)
    points = camera.to_camera(mesh.vertices)
    weights = barycentrics(camera.project_camera(points), points[:, 2], mesh.triangles, ids)
    return ids >= 0, interpolate(points[:, 2:], mesh.triangles, ids, weights)[..., 0]


def _looks_like_skin(ratio: ColourMap, trust: Map, rim: Map, layout: TextureLayout) -> Map:
    """0 on lips and lids where the photo shows teeth, the dark of the mouth, the white of an eye, an iris or lashes.

    A fit's mouth and eyes are never open exactly as far as the photo's, nor is its outline exactly the photo's. Skin
    is redder than teeth, eyeballs and most backgrounds, and brighter than hair and the shadow beside a jaw.
    """
    tone = _tone(ratio, trust, layout)
    difference = ratio - tone
    redness = difference[..., 0] - difference[..., 1]
    brightness = difference.mean(axis=2)
    lids = np.clip(3.0 * _blur(layout.masks["lids"], 0.008), 0.0, 1.0)
    lips = np.clip(3.0 * _blur(layout.masks["lips"], 0.004), 0.0, 1.0)
    lid_like = _step(redness, -0.3, -0.12) * _step(brightness, -0.75, -0.45)
    lip_like = _step(redness, -0.15, 0.0) * _step(brightness, -1.3, -0.9)
    brows = np.clip(4.0 * layout.masks["brows"], 0.0, 1.0)
    near = rim * (1.0 - np.clip(layout.masks["scalp"] + lids + lips + brows, 0.0, 1.0))
    near_like = _step(redness, -0.3, -0.12) * (1.0 - _step(redness, 0.35, 0.6))
    near_like *= _step(brightness, -1.1, -0.7) * (1.0 - _step(brightness, 0.5, 0.8))
    unlike = lids * (1.0 - lid_like) + lips * (1.0 - lip_like) + near * (1.0 - near_like)
    return 1.0 - np.clip(5.0 * _blur(unlike, 0.005) - 0.3, 0.0, 1.0)


def best_views(fits: Sequence[Fit]) -> list[int]:
    """The photos that together show the head best, one after the other, in the order of their worth.

    By what their fits say alone: a photo's worth at a vertex is how squarely and finely it sees it, and a vertex that
    was seen well a few times gains little from one more.
    """
    if len(fits) <= 1:
        return list(range(len(fits)))
    skin = _skin(fits[0].model)
    finest = max(_pixels_per_mm(fit) for fit in fits)
    views = []
    for fit in fits:
        mesh = fit.mesh
        towards = fit.camera.towards_camera(fit.camera.to_camera(mesh.vertices))
        cosine = np.sum(np.asarray(mesh.normals @ fit.camera.rotation.T * towards), axis=1)[skin]
        views.append(_step(cosine, 0.2, 0.65) * min(1.0, _pixels_per_mm(fit) / finest))
    worth, chosen = np.stack(views), []
    total = np.zeros(worth.shape[1])
    while len(chosen) < min(_VIEWS, len(fits)):
        gain = np.exp(-total / _ENOUGH) @ (1.0 - np.exp(-worth / _ENOUGH)).T
        gain[chosen] = -1.0
        chosen.append(int(np.argmax(gain)))
        total += worth[chosen[-1]]
    return chosen


def _pixels_per_mm(fit: Fit) -> float:
    return float(fit.camera.focal.mean() / fit.camera.pose.translation()[2])


def _worth(fits: Sequence[Fit], seen: Sequence[tuple[ColourMap, Map]]) -> list[float]:
    """How much each photo's details count: by its pixels, at most those that the map can show, and by its sharpness.

    Sharpness is the contrast of fine against coarser detail; noise has more of the first, but not four times as much.
    """
    fineness = np.array([min(_pixels_per_mm(fit), _USEFUL) for fit in fits])
    contrast = []
    for ratio, trust in seen:
        grey = ratio.mean(axis=2)
        fine, coarse = (np.abs(_blur(grey, s) - _blur(grey, 3 * s))[trust > 0.5] for s in (0.0015, 0.004))
        contrast.append(float(fine.mean() / max(coarse.mean(), 1e-6)) if fine.size else 0.0)
    sharpness = np.clip(np.array(contrast) / max(max(contrast), 1e-6), 0.25, 1.0)
    return ((fineness / fineness.max()) * sharpness).tolist()


def _blend(
    chosen: Sequence[int], ratios: Sequence[ColourMap], trusts: Sequence[Map], worth, layout: TextureLayout
) -> Blend:
    """Ratios of photos to their predictions made one."""
    size = len(layout.valid)
    # What is shown but not trusted counts where nothing else is known: the eyes' brightness is read from there.
    weights = [np.maximum(t, 1e-3 * (np.abs(r).sum(axis=2) > 0)) for r, t in zip(ratios, trusts, strict=True)]
    small = [_reduced(r, w) for r, w in zip(ratios, weights, strict=True)]
    offsets, agreements, common = _reconciled([r for r, _ in small], [w for _, w in small])
    views = tuple(
        View(k, ratio - offset - common, weight * agrees)
        for k, (ratio, weight), offset, agrees in zip(chosen, small, offsets, agreements, strict=True)
    )
    weights = [w * np.clip(_enlarged(a, size), 1e-3, 1.0) for w, a in zip(weights, agreements, strict=True)]
    best = np.maximum(np.max([v * w for v, w in zip(worth, weights, strict=True)], axis=0), 1e-12)
    broad, fine = np.zeros_like(ratios[0]), np.zeros_like(ratios[0])
    shares = np.zeros((2, size, size), np.float32)
    for ratio, weight, offset, value in zip(ratios, weights, offsets, worth, strict=True):
        own = ratio - _enlarged(offset, size)
        low = _blur(own * weight[..., None], _BROAD) / np.maximum(_blur(weight, _BROAD), 1e-9)[..., None]
        decided = (value * weight / best) ** _DECIDED
        broad += low * weight[..., None]
        fine += (own - low) * decided[..., None]
        shares += np.stack([weight, decided])
    broad, fine = (x / np.maximum(s, 1e-9)[..., None] for x, s in zip((broad, fine), shares, strict=True))
    ratio = np.where(shares[0][..., None] > 0, broad + fine, 0.0)
    return Blend(ratio.astype(np.float32), np.max(trusts, axis=0), views)


def _reduced(
    ratio: ColourMap, weight: Map
) -> tuple[Float[np.ndarray, "small_row small_column 3"], Float[np.ndarray, "small_row small_column"]]:
    """A quarter of a map's rows and columns: weighted means, and the mean weight."""
    total, share = ratio * weight[..., None], weight
    for _ in range(_HALVINGS):
        total, share = halve(total), halve(share)
    return total / np.maximum(share, 1e-9)[..., None], share / 4**_HALVINGS


def _enlarged(values: np.ndarray, size: int) -> np.ndarray:
    """A quarter map at its full size, interpolated."""
    sizes = [size]
    for _ in range(_HALVINGS):
        sizes.append((sizes[-1] + 1) // 2)
    for n in reversed(sizes[:-1]):
        values = double(values, n, n)
    return values


def _reconciled(ratios: Sequence[ColourMap], weights: Sequence[Map]) -> tuple[list[ColourMap], list[Map], ColourMap]:
    """Each photo's smooth difference from what all have in common, how far it agrees with them, and the common map.

    A photo's difference is known where others overlap it; from there it is continued as by `mirror_fill`.
    """
    own = list(ratios)
    offsets = [np.zeros_like(r) for r in ratios]
    agreements = [np.ones_like(w) for w in weights]
    for _ in range(_ROUNDS if len(own) > 1 else 0):
        # Before the differences: a hard shadow that had once passed for a difference of light would stay one.
        agreements = _agreements(own, weights, _mean(own, weights, agreements)[0])
        common, total = _mean(own, weights, agreements)
        for k, (weight, agrees) in enumerate(zip(weights, agreements, strict=True)):
            mine = weight * agrees
            both = np.minimum(mine, np.maximum(total - mine, 0.0))
            near = _blur(both, _BROAD)
            smooth = _blur((own[k] - common) * both[..., None], _BROAD) / np.maximum(near, 1e-9)[..., None]
            known = np.clip(_CERTAIN * near, 0.0, 1.0)
            offsets[k] = offsets[k] + extrapolate(smooth, known, np.zeros(3, smooth.dtype), fade=0.02)
            own[k] = ratios[k] - offsets[k]
    common, _ = _mean(own, weights, agreements)
    return offsets, agreements, common


def _mean(ratios, weights, agreements) -> tuple[ColourMap, Map]:
    shares = [w * a for w, a in zip(weights, agreements, strict=True)]
    total = np.sum(shares, axis=0)
    mean = sum(r * s[..., None] for r, s in zip(ratios, shares, strict=True)) / np.maximum(total, 1e-9)[..., None]
    return mean, total


def _agreements(ratios: Sequence[ColourMap], weights: Sequence[Map], common: ColourMap) -> list[Map]:
    """1 where a photo shows what most do, falling to 0 as it shows something else; 1 where one photo alone sees.

    Where an even number of photos see a texel the prediction votes, too: of two, the one that shows gloss, or the
    shadow of a nose, is the one that is farther from it.
    """
    shown = np.stack(weights) > 0.1
    count = shown.sum(axis=0)
    several = count >= 2
    if not several.any():
        return [np.ones_like(w) for w in weights]
    usual = np.median(common.mean(axis=2)[several])
    votes = np.where(shown, np.stack([r.mean(axis=2) for r in ratios]), np.nan)
    prediction = np.where(count % 2 == 0, usual, np.nan)
    median = np.zeros_like(weights[0])
    median[several] = np.nanmedian(np.concatenate([votes, prediction[None]])[:, several], axis=0)
    off = np.where(shown & several, (votes - median) / _OUTLYING, 0.0)
    return [_blur(1.0 / (1.0 + o**4), 0.008).astype(np.float32) for o in off]


def _complete(ratio: ColourMap, trust: Map, layout: TextureLayout) -> ColourMap:
    """The ratio to `plain` over the whole head: observed, mirrored, continued; the model's own on all but skin."""
    masks = layout.masks
    tone = _tone(ratio, trust, layout)
    eyes = _eye_brightness(ratio, layout)
    ratio = tone + _limit(ratio - tone, trust, layout)
    plain = np.log(layout.plain)
    # Specks that the photo does not show are better continued from around them than taken from the other side.
    usable = layout.skin * (1.0 - np.clip(2.0 * np.maximum(trust, _blur(trust, 0.008)), 0.0, 1.0))
    # What the other side shows is a colour, whatever the model expects here.
    both, total = mirror_fill(ratio + plain, trust, layout.mirror_uv, usable=usable, tolerance=_SIDES_DIFFER)
    both = both - plain
    hair = _blur(masks["scalp"], 0.02) * (1.0 - masks["ears"]) * layout.skin
    # What the photo does not show has the model's brows and lips; the lips differ from them as the seen part does.
    features = np.log(layout.albedo / layout.plain)
    lips = np.clip(4.0 * masks["lips"], 0.0, 1.0)
    featured = np.clip(4.0 * masks["brows"] + lips, 0.0, 1.0)
    beyond = extrapolate(both, total * (1.0 - hair) * (1.0 - featured), tone, fade=0.1)
    beyond = beyond + masks["ears"][..., None] * (tone - beyond)
    for where, values, fade in ((hair, both, 0.002), (lips, both - features, 0.02)):
        beyond = beyond + where[..., None] * (extrapolate(values, total * where, beyond, fade) - beyond)
    beyond = beyond + features
    whole = beyond + np.clip(total, 0.0, 1.0)[..., None] * (both - beyond)
    outer = (layout.skin * (1.0 - masks["interior"]))[..., None]
    return whole * outer + (1.0 - outer) * features + eyes[..., None]


def _tone(ratio: ColourMap, trust: Map, layout: TextureLayout) -> Float[np.ndarray, "3"]:
    """The median ratio of plain skin: what the fit's albedo and light together got wrong everywhere."""
    m = layout.masks
    plain = (trust > 0.5) & (m["lips"] + m["brows"] + m["scalp"] + m["beard"] + m["lids"] < 0.2)
    if plain.sum() < 100:
        plain = trust > 0.3 * trust.max()
    if not plain.any():
        return np.zeros(3, np.float32)
    return np.median(ratio[plain], axis=0)


def _eye_brightness(ratio: ColourMap, layout: TextureLayout) -> Map:
    """How much darker the eyeballs are in the photo than the model's, mostly by the lids' shadow on them."""
    seen = (np.abs(ratio).sum(axis=2) > 0) & (layout.masks["sclera"] > 0.5)
    if seen.sum() < 20:
        return np.zeros_like(layout.skin)
    change = float(np.clip(np.median(ratio[seen].mean(axis=1)), -0.5, 0.0))
    return change * np.clip(layout.masks["sclera"] + layout.masks["iris"], 0.0, 1.0) * (1.0 - layout.skin)


def _limit(ratio: ColourMap, trust: Map, layout: TextureLayout) -> ColourMap:
    """The ratio with its extremes drawn in: gloss is not white skin, and a cast shadow not dark skin.

    Broad differences of brightness are limited more than details such as brows and nostrils.
    """
    brightness = ratio.mean(axis=2, keepdims=True)
    split = np.concatenate([brightness, ratio - brightness], axis=2)  # brightness and colour
    features = np.clip(4.0 * (layout.masks["brows"] + layout.masks["lips"]), 0.0, 1.0)
    plain = np.where(trust > 0.02, 1.0 - features, 0.0)[..., None]
    broad = _blur(split * plain, 0.035) / np.maximum(_blur(plain, 0.035), 1e-3)
    detail = split - broad
    fringe = 3.0 * _blur(layout.masks["scalp"], 0.05)  # hair hangs over the forehead
    skin = (1.0 - np.clip(fringe + layout.masks["beard"], 0.0, 1.0))[..., None]
    dark = 2.0 - 1.85 * skin  # hair and beard may be much darker than skin
    limited = _knee(broad[..., :1], 0.15, dark) + _knee(detail[..., :1], 0.25, 2.5)
    # Skin changes its hue little over the face: the rest is the lamps' colours, which nine harmonics cannot follow.
    colour = 0.1 * np.tanh(broad[..., 1:] / 0.1) + _knee(detail[..., 1:], 0.4, 0.4)
    gloss = skin * _step(brightness, 0.05, 0.5)  # it has the lamp's colour, not the skin's
    black = _step(-brightness, 1.0, 2.2)  # has hardly a colour, and a noisy one
    return limited + colour * (1.0 - 0.7 * np.maximum(gloss, black))


def _knee(x: np.ndarray, high: float, low: float | np.ndarray) -> np.ndarray:
    """x, but beyond `high` above and `-low` below growing with a fifth of its slope."""
    return x - 0.8 * np.maximum(x - high, 0.0) + 0.8 * np.maximum(-low - x, 0.0)


def _step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below low, 1 above high, smooth between (Hermite)."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur over rows and columns; sigma in sides of the map."""
    height, width = values.shape[:2]
    window = max(1, round(2 * sigma * height))
    if window > 16:  # broad blurs do not need every texel
        return double(_blur(halve(values) / 4, sigma), height, width)
    for _ in range(3):  # three running means of this width have the variance (window^2 - 1) / 4
        values = uniform_filter(values, window, mode="nearest", axes=(0, 1))
    return values
