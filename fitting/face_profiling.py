"""A fitted photo turned out of its plane, background and all: face profiling.

After Zhu et al. (2016, "Face alignment across large poses: a 3D solution", section 5), who made 300W-LP so: the fitted
head gives the photo depth, a mesh continues that depth over the background, and the photo is the texture of both. Where
the head ends the background is as deep as its outline and turns with it; away from the head it falls back to a plane
and stays. So a real face is shown from new sides, with landmarks that are exact for the shape of the fit.

The surface has two layers. The first is the model's head, as far as the photo shows it and a little further: folds are
bridged by what is around them, and what only the other half of the face shows is mirrored, in this half's light. The
second is the background, a grid over the whole picture that goes on below the head: whatever turns, no hole opens.

`fitting.clip.turned` makes clips of it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from scipy.ndimage import distance_transform_edt, map_coordinates, maximum_filter
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from fitting.compilation import compiled
from fitting.fit import Fit
from fitting.observation import Photo
from fitting.texture_map import solid_triangles
from morphable.colour import linear_to_srgb, srgb_to_linear
from morphable.mesh import smoothstep, triangulate, unit
from morphable.model import MorphableModel
from morphable.uv import interpolate
from renderer.camera import Pinhole
from renderer.fill import extrapolate
from renderer.rasterize import barycentrics, rasterize, visibility

Picture = UInt8[np.ndarray, "height width 3"]  # sRGB-encoded

_MARGIN = 0.5  # of the picture's longer side, by which it is continued all around
_HEAD_SHARE = 0.53  # of the side of a square about the head: what lies above its chin
_LEAST_SIZE, _MOST_SIZE = 32, 4096  # px, of such a square

_STEEP = 0.4  # cosine to the viewer; of steeper skin the photo shows too little, and often what lies beside it
_RIM_MM = 7.0  # from the head's outline, within which the same is true
_BETTER = 0.2  # so much less steep must a place's mirror image be seen to stand in for it
_ROUND = -0.25  # the head goes on behind its outline until it is turned away so far
_FOLD = 10  # edges; gaps in what the photo shows of the head are closed up to twice as wide
_INWARD_DEG = 15.0  # turned so far, steep skin shows what is beside it or its mirror image, in place of its own pixels
_DARK = 0.01  # linear; added to colours before their ratio is taken
_MOST_GAIN = 1.5  # logarithm; more is no difference of light between the halves of a face
_NECK_MM = (10.0, 80.0)  # below the chin: from the first to the second the neck begins to stay behind ...
_NECK_STAYS = 0.6  # ... by this share of the head's turn

_SURVEY = 512  # side of the map about the head on which depths and distances are measured
_LINES = 160  # of the background's grid over that map, in each direction
_REACH_MM = 190.0  # from the head's box to the map's border
_TUCK_MM = 8.0  # beside the outline the background is as deep as the deepest of the head so near
_STAYS_MM = (15.0, 50.0)  # from mirrored parts: nearer the background stays, farther it follows
_GAP_MM = 2.0  # between the head and the background below it
_RIM_COLOUR_MM = (7.0, 12.0, 40.0, 55.0)  # in from the outline: where its colours begin, are whole, fade and end
_FALL_MM = 90.0  # from the outline; over it the background falls back to its plane ...
_BEHIND_MM = 110.0  # ... which lies so far behind the head's middle
_FOLLOW_MM = (10.0, 170.0)  # from the outline: nearer the background turns with the head, farther it stays

_SHARP, _JUMP = 0.7, 1.2  # px of the photo between a pixel's samples: below one is enough, above all are needed
_HIDDEN_MM = 4.0  # a landmark this far behind what is seen in its place is hidden


class ProfilingError(ValueError):
    """A photo that cannot be turned, or settings that cannot be drawn from: what, got, expected, remedy."""


class ProfileMesh(eqx.Module):
    """A photo as a textured surface in the camera's space (mm). Pixels are those of the picture that it shows.

    The head's vertices and triangles come first, then the background's.
    """

    points: Float[Array, "vertex 3"]  # as in the photo
    follow: Float[Array, " vertex"]  # share of the head's turn: 1 on the head, 0 far away from it
    revealing_points: Float[Array, "vertex 3"]  # for turns that reveal the side which the photo does not show
    revealing_follow: Float[Array, " vertex"]
    triangles: Int[Array, "triangle 3"]
    place: Float[Array, "vertex 2"]  # px, where the photo shows it
    inner_place: Float[Array, "vertex 2"]  # px, the same; of steep skin, a place beside it
    twin_place: Float[Array, "vertex 2"]  # px, where the photo shows its mirror image
    twin_share: Float[Array, " vertex"]  # of the mirror image in its colour
    inner_twin_share: Float[Array, " vertex"]  # the same; more of steep skin, where the mirror image is better
    gain: Float[Array, "vertex 3"]  # logarithm of the factor that puts the mirror image into this side's light
    texture: UInt8[Array, "row column 3"]  # the photo, continued by a margin all around
    margin: Float[Array, ""]  # px
    camera: Pinhole  # with the photo's pose T_camera_head
    pivot: Float[Array, "3"]  # camera space: what the head turns about
    landmarks: Float[Array, "68 3"]  # mm, head space
    identity: Float[Array, " identity"]
    expression: Float[Array, " unit"]
    albedo: Float[Array, " albedo"]
    head_triangles: int = eqx.field(static=True)

    @property
    def yaw(self) -> float:
        """The head's yaw in the photo, in degrees; positive for a head turned to its left, the picture's right."""
        forward = np.asarray(self.camera.rotation)[:, 2]
        return float(np.degrees(np.arctan2(forward[0], -forward[2])))


class Turned(NamedTuple):
    """A picture of a turned photo, and its truth."""

    pixels: Picture
    landmarks: Float[np.ndarray, "68 2"]  # px, of fixed points of the surface
    visible: Bool[np.ndarray, "68"]  # inside the picture and not behind another part of the head
    pose: jaxlie.SE3  # T_camera_head


# ------------------------------------------------------------------------------------------------------- the mesh


def profile_mesh(fit: Fit, photo: Photo, size: int | None = None) -> ProfileMesh:
    """The surface of a fitted photo, to be shown from other sides by `rotated`.

    `size` makes it a square picture about the head of so many pixels a side, as those of 300W-LP are; None keeps the
    photo's frame. Raises ProfilingError for a fit that failed, for another photo, and for a head outside of it.
    """
    camera = fit.camera
    if fit.result == "failed":
        raise ProfilingError(
            f"profile_mesh: got a failed fit ({fit.reason}), expected a face that was found. Fit the photo with "
            "landmarks of your own."
        )
    if (photo.height, photo.width) != (camera.height, camera.width):
        raise ProfilingError(
            f"profile_mesh: got a photo of {photo.width} x {photo.height} pixels, expected {camera.width} x "
            f"{camera.height} as the fit's camera has. Give the photo that was fitted."
        )
    if size is not None and not _LEAST_SIZE <= size <= _MOST_SIZE:
        raise ProfilingError(
            f"profile_mesh: got size {size}, expected {_LEAST_SIZE} to {_MOST_SIZE} pixels. None keeps the photo's."
        )
    if camera.distortion is not None:
        raise ProfilingError(
            "profile_mesh: got a camera with lens distortion, expected one without, under which lines are straight. "
            "Take the distortion off the photo and fit it again."
        )
    vertices = np.asarray(fit.vertices)
    above = np.asarray(camera.project(jnp.asarray(vertices)))[vertices[:, 1] >= _chin(fit)]
    low, high = above.min(axis=0), above.max(axis=0)
    extent = np.array([camera.width, camera.height])
    if not (np.isfinite([low, high]).all() and (low < extent).all() and (high > 0).all()):
        raise ProfilingError(
            f"profile_mesh: the head lies from {np.round(low)} to {np.round(high)} px, outside the photo of "
            f"{camera.width} x {camera.height}; expected at least a part of it inside. Fit another face."
        )
    if size is None:
        margin = round(_MARGIN * max(photo.height, photo.width))
        around = ((margin, margin), (margin, margin))
        known = np.pad(np.ones((photo.height, photo.width), bool), around)
        return _meshed(fit, camera, np.pad(photo.pixels, (*around, (0, 0))), known, margin)
    margin, side = round(_MARGIN * size), float((high - low).max()) / _HEAD_SHARE
    x0, y0 = (float(v) for v in (low + high) / 2 - side / 2)
    more = side * margin / size
    picture, known = photo.crop_srgb((x0 - more, y0 - more, side + 2 * more, side + 2 * more), size + 2 * margin)
    square = camera.crop((x0, y0, side, side), size, size)
    return _meshed(fit, square, np.rint(255 * picture).astype(np.uint8), known, margin)


def _chin(fit: Fit) -> float:
    """Height of the chin, mm in head space."""
    return float(fit.landmarks3d[8, 1])


def _meshed(
    fit: Fit, camera: Pinhole, pixels: Picture, known: Bool[np.ndarray, "height width"], margin: int
) -> ProfileMesh:
    """The surface in a picture with a margin, not all of whose pixels are known."""
    linear = _decode(pixels)
    linear = extrapolate(linear, known.astype(np.float32), linear[known].mean(axis=0))
    points = np.asarray(camera.to_camera(jnp.asarray(fit.vertices)), float)
    above = points[fit.vertices[:, 1] >= _chin(fit)]
    pivot = (above.min(axis=0) + above.max(axis=0)) / 2
    per_px = float(camera.pixel_size(jnp.asarray(pivot[2:], jnp.float32))[0])
    head = _head(fit, camera, linear, margin, per_px)
    sheet = _background(camera, _Survey.of(camera, head, per_px), pivot, margin, known.shape)
    f32 = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    layers = lambda a, b: f32(np.concatenate([a, b]))  # noqa: E731
    nothing = np.zeros(len(sheet.points))
    return ProfileMesh(
        points=layers(head.points, sheet.points),
        follow=layers(head.follow, sheet.follow),
        revealing_points=layers(head.points, sheet.revealing_points),
        revealing_follow=layers(head.follow, sheet.revealing_follow),
        triangles=jnp.asarray(np.concatenate([head.triangles, sheet.triangles + len(points)]), jnp.int32),
        place=layers(head.place, sheet.place),
        inner_place=layers(head.inner_place, sheet.place),
        twin_place=layers(head.twin_place, sheet.place),
        twin_share=layers(head.twin_share, nothing),
        inner_twin_share=layers(head.inner_twin_share, nothing),
        gain=layers(head.gain, np.zeros((len(nothing), 3))),
        texture=jnp.asarray(np.where(known[..., None], pixels, encoded(linear))),
        margin=f32(margin),
        camera=camera,
        pivot=f32(pivot),
        landmarks=f32(fit.landmarks3d),
        identity=f32(fit.identity),
        expression=f32(fit.expression),
        albedo=f32(fit.albedo),
        head_triangles=len(head.triangles),
    )


class _Head(NamedTuple):
    """The head's layer; fields are those of ProfileMesh."""

    points: Float[np.ndarray, "vertex 3"]
    triangles: Int[np.ndarray, "triangle 3"]
    follow: Float[np.ndarray, " vertex"]
    place: Float[np.ndarray, "vertex 2"]
    inner_place: Float[np.ndarray, "vertex 2"]
    twin_place: Float[np.ndarray, "vertex 2"]
    twin_share: Bool[np.ndarray, " vertex"]
    inner_twin_share: Bool[np.ndarray, " vertex"]
    gain: Float[np.ndarray, "vertex 3"]
    skin: Bool[np.ndarray, " vertex"]  # of the face: no hair, neck or collar


def _head(fit: Fit, camera: Pinhole, linear, margin: int, per_px: float) -> _Head:
    vertices, triangles = np.asarray(fit.vertices), solid_triangles(fit.model)
    points = np.asarray(camera.to_camera(jnp.asarray(vertices)), float)
    place = np.asarray(camera.project(jnp.asarray(vertices)), float)
    normals = np.asarray(fit.mesh.normals) @ np.asarray(camera.rotation).T
    facing = -np.sum(normals * points, axis=1) / np.linalg.norm(points, axis=1)
    surface, mirror = _Surface(triangles, len(vertices)), np.asarray(fit.model.mirror)

    # What the photo shows, and what of it well. Where a fit ends a millimetre too far out its skin has the background's
    # colour; what hair, collars and teeth have farther in is no better than what they have there.
    visible, inside = _visible(camera, vertices, triangles, place, linear.shape, margin)
    outer, hair = _outer_skin(fit.model), _hair(fit.model)
    skin = outer & ~hair & (vertices[:, 1] > _chin(fit) - _NECK_MM[0])
    well = visible & (((facing > _STEEP) & (inside * per_px > _RIM_MM)) | ~skin)
    better = facing[mirror] > np.maximum(np.where(skin, _STEEP, 0.0), facing + _BETTER)
    from_twin = well[mirror] & outer & outer[mirror] & better

    # Folds and mirrored parts are drawn, too, and a strip behind the outline; hair goes on as background.
    drawn = surface.closed(visible | from_twin, _FOLD)
    drawn |= surface.joined(visible) & ~(outer & hair) & (facing > _ROUND)
    level = np.maximum(facing - _ROUND, np.where(visible[mirror], facing[mirror] - _STEEP, -1.0))
    points, edge = surface.cut(points, level, drawn)
    kept = (drawn | edge)[triangles].all(axis=1) & drawn[triangles].any(axis=1)

    inner = surface.continued(place, well, drawn | edge)
    own = np.where(visible[:, None], place, inner)
    colour = np.stack([_bilinear(linear[..., k], own + margin) for k in range(3)], axis=1)
    ratio = np.log((colour + _DARK) / (colour[mirror] + _DARK))
    face = skin & (np.asarray(fit.model.masks.get("face", np.ones(len(vertices)))) > 0.5)
    both = (well & face) & (well & face)[mirror]
    gain = surface.continued(surface.smoothed(ratio, both), both, drawn | edge)

    neck = smoothstep(_chin(fit) - vertices[:, 1], *_NECK_MM)
    return _Head(
        points=points,
        triangles=np.where(kept[:, None], triangles, 0),  # as many for every photo: one program for all
        follow=1.0 - _NECK_STAYS * neck,
        place=np.where(edge[:, None], np.asarray(camera.project_camera(jnp.asarray(points, jnp.float32))), own),
        inner_place=inner,
        twin_place=own[mirror],
        twin_share=from_twin & ~visible,
        inner_twin_share=from_twin & ~well,
        gain=np.clip(gain, -_MOST_GAIN, _MOST_GAIN) if both.any() else np.zeros_like(gain),
        skin=skin,
    )


def _visible(camera: Pinhole, vertices, triangles, place, shape: tuple[int, ...], margin: int):
    """Vertices of triangles that the picture and its margin show; pixels from each vertex to the head's outline."""
    mesh = jnp.asarray(vertices), jnp.asarray(triangles)
    box = (-float(margin), -float(margin), float(shape[1]), float(shape[0]))
    wide = camera.crop(box, shape[0], shape[1])
    ids = np.asarray(visibility(wide, *mesh, cull=False))
    # A pixel's four other samples, too, as `_view` looks at them.
    fine = visibility(camera.resize(2 * camera.height, 2 * camera.width), *mesh, cull=False)
    seen = np.unique(np.r_[ids.ravel(), np.asarray(fine).ravel()])
    visible = np.zeros(len(vertices), bool)
    visible[triangles[seen[seen >= 0]]] = True
    return visible, _bilinear(_distance(ids >= 0), place + margin)


def _outer_skin(model: MorphableModel) -> Bool[np.ndarray, " vertex"]:
    """The head's skin without the mouth's inside."""
    outer = np.asarray(model.masks.get("interior", np.zeros(len(model.mean)))) < 0.5
    if "skin" in model.part_names:
        outer &= np.asarray(model.part_of_vertex) == model.part_names.index("skin")
    return outer


def _hair(model: MorphableModel) -> Bool[np.ndarray, " vertex"]:
    """Where most heads have hair."""
    return np.asarray(model.masks.get("scalp", np.zeros(len(model.mean)))) >= 0.5


class _Surface:
    """The head's mesh as a graph: what is known at some vertices goes on to others."""

    def __init__(self, triangles: Int[np.ndarray, "triangle 3"], count: int):
        a, b = triangles.ravel(), triangles[:, [1, 2, 0]].ravel()
        edges = coo_matrix((np.ones(len(a)), (a, b)), shape=(count, count))
        self.edges = csr_matrix((edges + edges.T) > 0, dtype=float)

    def joined(self, chosen):
        """Whether each vertex belongs to a piece with a chosen one."""
        _, piece = connected_components(self.edges, directed=False)
        return np.isin(piece, piece[chosen])

    def closed(self, chosen, rounds: int):
        """The chosen vertices and those of gaps between them."""
        for _ in range(rounds):
            chosen = chosen | (self.edges @ chosen > 0)
        for _ in range(rounds):
            chosen = chosen & ~(self.edges @ ~chosen > 0)
        return chosen

    def cut(self, points, level, drawn):
        """Points whose neighbours are drawn pulled in to where the level is 0, so that what is drawn ends smoothly.

        And which points these are.
        """
        a, b = self.edges.nonzero()
        across = drawn[a] & ~drawn[b]
        a, b = a[across], b[across]
        part = np.where((level[a] > 0) & (level[b] < 0), level[a] / np.maximum(level[a] - level[b], 1e-9), 0.0)
        total, count = np.zeros_like(points), np.zeros(len(points))
        np.add.at(total, b, points[a] + part[:, None] * (points[b] - points[a]))
        np.add.at(count, b, 1.0)
        edge = count > 0
        return np.where(edge[:, None], total / np.maximum(count, 1.0)[:, None], points), edge

    def continued(self, values, known, where):
        """The values, and where they are not known but wanted a membrane that spans what is around."""
        unknown = where & ~known
        if not (known.any() and unknown.any()):
            return values
        # Beyond what is wanted nothing pulls: at a free border the values end as they are.
        edges = diags((known | where).astype(float)) @ self.edges @ diags((known | where).astype(float))
        # The small term holds pieces of which nothing is known.
        laplacian = csr_matrix(diags(np.asarray(edges.sum(axis=1)).ravel() + 1e-6) - edges)[unknown]
        mean = values[known].mean(axis=0)
        right = -(laplacian[:, known] @ (values[known] - mean))
        out = np.array(values, float)
        out[unknown] = mean + splu(laplacian[:, unknown].tocsc()).solve(right)
        return out

    def smoothed(self, values, known, rounds: int = 8):
        """Known values averaged with their known neighbours, several times."""
        weights = self.edges @ diags(known.astype(float))
        total = np.asarray(weights.sum(axis=1)).ravel()[:, None]
        for _ in range(rounds):
            values = np.where(total > 0, 0.5 * values + 0.5 * (weights @ values) / np.maximum(total, 1.0), values)
        return values


class _Survey(NamedTuple):
    """A square map about the head: what lies deepest of it at each place."""

    corner: Float[np.ndarray, "2"]  # px of the picture
    cell_px: float
    cell_mm: float
    depth: Float[np.ndarray, "row column"]  # mm, -inf beside the head
    follow: Float[np.ndarray, "row column"]
    skin: Float[np.ndarray, "row column"]
    twin_depth: Float[np.ndarray, "row column"]  # of what only its mirror image shows, which the others leave out

    @classmethod
    def of(cls, camera: Pinhole, head: _Head, per_px: float) -> "_Survey":
        used = np.unique(head.triangles)
        place = np.asarray(camera.project_camera(jnp.asarray(head.points[used], jnp.float32)), float)
        low, high = place.min(axis=0), place.max(axis=0)
        side = float((high - low).max()) + 2 * _REACH_MM / per_px
        corner = (low + high) / 2 - side / 2
        square = camera.crop((float(corner[0]), float(corner[1]), side, side), _SURVEY, _SURVEY)
        values = np.stack([head.points[:, 2], head.follow, head.skin], axis=1)
        of_twin = np.any(head.twin_share[head.triangles], axis=1, keepdims=True)
        shown, twins = (
            np.asarray(_deepest(square, jnp.asarray(head.points, jnp.float32), jnp.asarray(values, jnp.float32), t))
            for t in (jnp.asarray(np.where(of_twin == twin, head.triangles, 0)) for twin in (False, True))
        )
        cell = side / _SURVEY
        depth, follow, skin = np.moveaxis(shown, -1, 0)
        return cls(corner, cell, cell * per_px, depth, follow, skin, twins[..., 0])

    def at(self, values, place):
        """A map's values at points of the picture; outside it goes on as at its border."""
        return _bilinear(values, (place - self.corner) / self.cell_px)


@eqx.filter_jit
def _deepest(camera: Pinhole, points, values, triangles):
    """Values of the farthest triangle at each pixel, -inf where there is none."""
    pixels, depth = camera.project_camera(points), points[:, 2]
    size = (camera.height, camera.width)
    ids = rasterize(pixels, -depth, triangles, *size, perspective=False, near=-jnp.inf, cull=False)
    found = interpolate(values, triangles, ids, barycentrics(pixels, depth, triangles, ids))
    return jnp.where(ids[..., None] >= 0, found, -jnp.inf)


class _Sheet(NamedTuple):
    """The background's layer; fields are those of ProfileMesh."""

    points: Float[np.ndarray, "vertex 3"]
    revealing_points: Float[np.ndarray, "vertex 3"]
    follow: Float[np.ndarray, " vertex"]
    revealing_follow: Float[np.ndarray, " vertex"]
    place: Float[np.ndarray, "vertex 2"]
    triangles: Int[np.ndarray, "triangle 3"]


def _background(camera: Pinhole, survey: _Survey, pivot, margin: int, shape: tuple[int, ...]) -> _Sheet:
    """A grid over the picture and its margin: below the head, as deep as its outline beside it, then on a plane.

    The paper triangulates anchors on outline and background. A grid has as many triangles for every photo, and as it
    goes on below the head it needs no anchor on the outline, where the two layers would have to meet.
    """
    head = np.isfinite(survey.depth)
    outside = _distance(~head) * survey.cell_mm
    below = maximum_filter(survey.depth, 2 * math.ceil(_TUCK_MM / survey.cell_mm) + 1)
    known = np.isfinite(below)
    outline = extrapolate(np.where(known, below, 0.0)[..., None], known.astype(float), np.array([pivot[2]]))[..., 0]
    plane = max(pivot[2] + _BEHIND_MM, float(outline.max()))
    back = smoothstep(outside, 0.0, _FALL_MM)
    near = extrapolate(np.where(head, survey.follow, 0.0)[..., None], head.astype(float), np.ones(1))[..., 0]
    follow = near * (1.0 - smoothstep(outside, *_FOLLOW_MM))
    # Mirrored parts come forth from behind the outline. There the background stays, far back: it would cover them.
    twins = np.isfinite(survey.twin_depth)
    beside = _distance(~twins) * survey.cell_mm if twins.any() else np.full(twins.shape, np.inf)
    stays = 1.0 - smoothstep(beside, *_STAYS_MM)

    lines, side = [], _SURVEY * survey.cell_px
    for start, length in zip(survey.corner, shape[::-1], strict=True):
        low, high = -float(margin), float(length - margin)
        fine = np.clip(np.linspace(start, start + side, _LINES), low, high)
        # The last lines lie far beyond the margin, whose outermost colours they stretch: no motion shows an end.
        lines.append(np.sort(np.r_[low - 3 * length, low, fine, high, high + 3 * length]))
    u, v = np.meshgrid(*lines)
    rays = np.stack([u.ravel(), v.ravel()], axis=1)
    place = np.clip(rays, -margin, np.array(shape[::-1]) - margin)

    def layer(back, follow):
        z = jnp.asarray(survey.at(outline + (plane - outline) * back + _GAP_MM, place), jnp.float32)
        points = camera.unproject(jnp.asarray(rays, jnp.float32), z)
        return np.asarray(points), np.clip(survey.at(follow, place), 0.0, 1.0)

    usual, revealing = (
        layer(back, follow),
        layer(np.maximum(back, np.minimum(1.0, 4.0 * stays)), follow * (1.0 - stays)),
    )
    # Below the face it has the face's colours, for skin goes on behind an outline. Hair and collars go on outwards:
    # below them, and where the face was and is no more, it has the outline's colours.
    nearest = np.asarray(distance_transform_edt(head, return_distances=False, return_indices=True))
    outwards = (nearest - np.indices(head.shape))[::-1] * survey.cell_px
    inside = np.linalg.norm(outwards, axis=0) * survey.cell_mm / survey.cell_px
    begins, whole, fades, ends = _RIM_COLOUR_MM
    share = np.where(head, np.maximum(stays, 1.0 - survey.skin), 0.0)
    share *= smoothstep(inside, begins, whole) * (1.0 - smoothstep(inside, fades, ends))
    coloured = place + np.stack([survey.at(k * share, place) for k in outwards], axis=1)
    i = np.arange(u.size).reshape(u.shape)
    quads = np.stack([i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]], axis=-1).reshape(-1, 4)
    return _Sheet(usual[0], revealing[0], usual[1], revealing[1], coloured, triangulate(quads))


def _distance(inside: Bool[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """From each place of a mask to the nearest one outside of it, in pixels."""
    return np.asarray(distance_transform_edt(inside))


def _bilinear(values, at):
    """A map's values at points in its pixels, whose centres are at +0.5."""
    return map_coordinates(values, at.T[::-1] - 0.5, order=1, mode="nearest")


def _decode(pixels):
    return np.asarray(_decoding())[pixels]


def _decoding():
    return srgb_to_linear(jnp.arange(256, dtype=jnp.float32) / 255)


def encoded(linear) -> Picture:
    return np.rint(255 * np.asarray(linear_to_srgb(jnp.clip(jnp.asarray(linear), 0.0, 1.0)))).astype(np.uint8)


# --------------------------------------------------------------------------------------------------- the pictures


def rotated(profile: ProfileMesh, d_yaw: float = 0.0, d_pitch: float = 0.0, d_roll: float = 0.0) -> Turned:
    """The photo with its head turned further by yaw, pitch and roll in degrees, about the head's own axes.

    Positive yaw turns it to its left, the picture's right; positive pitch lets it nod; positive roll tilts it to its
    right.
    """
    angles = np.array([d_yaw, d_pitch, d_roll], float)
    if not (np.isfinite(angles).all() and np.abs(angles).max() <= 180):
        raise ProfilingError(
            f"rotated: got yaw, pitch and roll of {d_yaw}, {d_pitch} and {d_roll}, expected degrees from -180 to 180. "
            "Reduce them."
        )
    view = seen_turned(profile, turn_of(*angles), jaxlie.SE3.identity())
    return Turned(encoded(view.linear), np.asarray(view.landmarks, float), np.asarray(view.visible), view.pose)


def enlarged(profile: ProfileMesh, step: float = 10.0, most: float = 90.0) -> Iterator[Turned]:
    """300W-LP's recipe: the photo, then its yaw enlarged step by step, away from the front, up to `most` degrees."""
    if not (step > 0 and 0 < most <= 90):
        raise ProfilingError(
            f"enlarged: got steps of {step} up to {most} degrees, expected a positive step and up to 90. Leave them "
            "out for the defaults."
        )
    way = math.copysign(step, profile.yaw)
    return (rotated(profile, way * k) for k in range(1 + max(0, math.floor((most - abs(profile.yaw)) / step))))


def turned_pose(profile: ProfileMesh, turn: jaxlie.SO3, scene: jaxlie.SE3) -> jaxlie.SE3:
    """T_camera_head of the head turned by `turn` (head axes), then moved with all of the scene (camera space)."""
    pose = profile.camera.pose
    rotation = pose.rotation() @ turn
    middle = pose.inverse() @ profile.pivot
    return scene @ jaxlie.SE3.from_rotation_and_translation(rotation, profile.pivot - rotation @ middle)


def turn_of(yaw: float, pitch: float, roll: float) -> jaxlie.SO3:
    """Degrees about the head's axes: roll first, yaw last."""
    y, x, z = (jnp.asarray(math.radians(a), jnp.float32) for a in (yaw, pitch, roll))
    return jaxlie.SO3.from_y_radians(y) @ jaxlie.SO3.from_x_radians(x) @ jaxlie.SO3.from_z_radians(z)


class _View(NamedTuple):
    """What a perfect camera sees."""

    linear: Float[Array, "height width 3"]
    points: Float[Array, "68 3"]  # the landmarks, camera space
    landmarks: Float[Array, "68 2"]
    visible: Bool[Array, "68"]
    pose: jaxlie.SE3


@compiled
def seen_turned(profile: ProfileMesh, turn: jaxlie.SO3, scene: jaxlie.SE3) -> _View:
    """The photo with its head turned (head axes), then all of it moved (camera space)."""
    camera = profile.camera
    # Which side of the head is seen, before and after; a roll does not change it.
    before = unit(-camera.rotation.T @ profile.pivot)
    after = turn.inverse() @ before
    angle = jnp.arctan2(jnp.linalg.norm(jnp.cross(before, after)), jnp.dot(before, after))
    inward = jnp.clip(angle / math.radians(_INWARD_DEG), 0.0, 1.0)
    revealed = jnp.clip(jnp.sign(before[0]) * (before[0] - after[0]) / math.sin(math.radians(_INWARD_DEG)), 0.0, 1.0)
    mixed = lambda a, b, share: a + share * (b - a)  # noqa: E731
    points = mixed(profile.points, profile.revealing_points, revealed)
    follow = mixed(profile.follow, profile.revealing_follow, revealed)
    place = mixed(profile.place, profile.inner_place, inward)
    share = mixed(profile.twin_share, profile.inner_twin_share, inward)

    # What follows by a share turns about the same axis, by that share of the angle.
    spin = camera.rotation @ turn.log()  # in the camera's axes
    turned = jax.vmap(lambda share, arm: jaxlie.SO3.exp(share * spin) @ arm)(follow, points - profile.pivot[None])
    moved = jax.vmap(lambda point: scene @ point)(turned + profile.pivot[None])
    pixels, depth = camera.project_camera(moved), moved[:, 2]
    # Homogeneous pixels of the photo are linear in space: so interpolated, triangles show it without distortion.
    q = points[:, 2:]
    columns = [depth[:, None], q, place * q, profile.twin_place * q, share[:, None], profile.gain]
    table = jnp.concatenate(columns, axis=1)

    def sample(shift):
        shifted = pixels + shift[None]
        size = (camera.height, camera.width)
        ids = rasterize(shifted, depth, profile.triangles, *size, near=camera.near, cull=False)
        weights = barycentrics(shifted, depth, profile.triangles, ids)
        found = interpolate(table, profile.triangles, ids, weights)
        z, q, at, twin, share, gain = jnp.split(found, [1, 2, 4, 6, 7], axis=-1)
        covered = ids[..., None] >= 0
        q = jnp.where(covered, q, 1.0)
        at = at / q
        colour = _look_up(profile.texture, at + profile.margin)
        other = _look_up(profile.texture, twin / q + profile.margin) * jnp.exp(gain)
        colour = jnp.where(covered, colour + share * (other - colour), 0.0)
        return colour, at, z[..., 0], ids < profile.head_triangles

    def add(found, sample_of):
        centre, mean, least, most = found
        shift, share = sample_of
        here = sample(shift)
        centre = jax.tree.map(lambda old, new: jnp.where(share == 0, new, old), centre, here)
        return (centre, mean + share * here[0], jnp.minimum(least, here[1]), jnp.maximum(most, here[1])), None

    # The pixel's centre, and the mean of four samples around it.
    shifts = 0.25 * jnp.array([[0.0, 0.0], [-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    blank = lambda channels, value=0.0: jnp.full((camera.height, camera.width, *channels), value)  # noqa: E731
    nothing = (blank((3,)), blank((2,)), blank(()), blank((), False))
    start = (nothing, blank((3,)), blank((2,), jnp.inf), blank((2,), -jnp.inf))
    ((centre, _, z, head), mean, least, most), _ = jax.lax.scan(add, start, (shifts, 0.25 * (jnp.arange(5) > 0)))
    # Four samples lie half a pixel of the photo apart where nothing is turned, and would only blur it. Outlines, and
    # what is seen smaller than in the photo, need them.
    needed = jnp.clip((jnp.max(most - least, axis=-1) - _SHARP) / (_JUMP - _SHARP), 0.0, 1.0)[..., None]

    posed = eqx.tree_at(lambda c: c.pose, camera, turned_pose(profile, turn, scene))
    seen_from = posed.to_camera(profile.landmarks)
    landmarks = posed.project_camera(seen_from)
    # The farthest surface around a landmark: where it is steep, one pixel is many millimetres deep. Background beside
    # an outline does not count: what is behind the head is not seen in it.
    farthest = lambda z: jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (3, 3), (1, 1), "SAME")  # noqa: E731
    of_head = farthest(jnp.where(head, z, -jnp.inf))
    around = jnp.where(jnp.isfinite(of_head), of_head, farthest(z))
    limits = jnp.array([[camera.width, camera.height]])
    column, row = jnp.clip(jnp.floor(landmarks), 0, limits - 1).astype(jnp.int32).T
    inside = jnp.all((landmarks >= 0) & (landmarks < limits), axis=1)
    visible = inside & (seen_from[:, 2] - around[row, column] <= _HIDDEN_MM)
    return _View(centre + needed * (mean - centre), seen_from, landmarks, visible, posed.pose)


def _look_up(texture, at):
    """Linear colours of an encoded texture at points in its pixels: bilinear, clamped at the border."""
    height, width, _ = texture.shape
    decoding = _decoding()
    x, y = (jnp.clip(at[..., k] - 0.5, 0.0, n - 1.0) for k, n in ((0, width), (1, height)))
    column, row = (jnp.minimum(jnp.floor(t).astype(jnp.int32), n - 2) for t, n in ((x, width), (y, height)))
    fx, fy = (x - column)[..., None], (y - row)[..., None]
    a, b, c, d = (decoding[texture[row + j, column + i]] for j, i in ((0, 0), (0, 1), (1, 0), (1, 1)))
    return (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy
