"""Random skin: wrinkles by anatomy, age and expression; pores, bumps and moles; and spots that are only colour.

A relief is a displacement of the head's surface in mm (outwards) on the model's UV map, with a static part and a map
for each group of wrinkles that expressions deepen, and a factor on the albedo. It is what a network of detail is
trained on, so its laws are those of skin rather than of pictures: a wrinkle is a groove between raised shoulders and
keeps the skin's volume; the lines that an expression folds are those that stay when one grows old; most dark spots have
no height at all.

Where lines run is written once, on a reference face (`_FAMILIES`); a model's landmarks say how its face is warped to
that one. The names of lines are those of Lemperle et al. 2001, "A classification of facial wrinkles".
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from morphable.detail import LIMIT_MM
from morphable.landmarks import MIRROR_68
from morphable.mesh import Mesh, smoothstep
from morphable.model import MorphableModel
from morphable.uv import TexelTable, interpolate
from renderer.unwrap import texel_table

# ------------------------------------------------------------------------------------------------- anatomy

# The reference face: iBUG-68 of the default model's mean, the subject's left half and the middle; mm, head axes.
_REFERENCE = {
    8: (0.0, -113.9, 21.0), 9: (17.0, -110.6, 20.3), 10: (33.7, -102.1, 6.7), 11: (47.2, -90.3, -5.5),
    12: (57.7, -73.9, -15.6), 13: (66.8, -55.5, -31.7), 14: (71.6, -36.6, -46.6), 15: (74.3, -18.1, -51.6),
    16: (75.4, 3.3, -55.3), 22: (10.5, 23.6, 28.9), 23: (22.2, 27.8, 26.7), 24: (35.2, 28.6, 21.6),
    25: (47.3, 24.7, 13.3), 26: (57.6, 14.5, -0.6), 27: (0.0, 6.1, 28.5), 28: (0.0, -5.8, 35.2),
    29: (0.0, -18.0, 45.2), 30: (0.0, -30.2, 53.2), 33: (0.0, -45.8, 39.2), 34: (6.4, -43.9, 36.7),
    35: (13.5, -42.0, 33.4), 42: (18.2, -1.4, 13.9), 43: (26.9, 4.9, 17.7), 44: (35.7, 5.3, 17.4),
    45: (44.2, 0.1, 9.1), 46: (35.6, -4.7, 16.0), 47: (27.4, -4.2, 15.6), 51: (0.0, -61.7, 40.7),
    52: (7.6, -59.8, 38.8), 53: (16.8, -62.5, 33.6), 54: (25.8, -70.7, 23.8), 55: (16.4, -77.1, 32.9),
    56: (7.6, -79.3, 36.2), 57: (0.0, -80.8, 35.9), 62: (0.0, -68.8, 33.6), 63: (7.5, -68.4, 31.7),
    64: (22.8, -70.9, 22.5), 65: (7.6, -69.2, 35.2), 66: (0.0, -69.3, 36.5),
}  # fmt: skip

_SIDES = ("Left", "Right")
Point = tuple[float | int, float | int]  # x and y on the reference face, mm
Curve = tuple[Point, ...]


class Family(NamedTuple):
    """Lines that come together, on the subject's left side or across the middle; right ones are their mirror images.

    A unit's name without its side stands for the unit of the line's own side, or for both in the middle.
    """

    name: str
    curves: tuple[Curve, ...]
    drivers: dict[str, float]  # expression units, and how much of each folds the skin fully
    width: tuple[float, float]  # mm, deviation of the groove's profile: a line looks two to three times as wide
    depth: tuple[float, float]  # mm, of the folded skin of an old person
    stays: tuple[float, float]  # age from which lines stay in a face at rest, and their share of the depth at age 1
    wander: float = 0.8  # mm, deviation of each line from its place
    bend: float = 1.0  # mm, deviation that a person's lines have in common
    bulge: tuple[float, float] = (0.0, 4.0)  # height for a depth of 1, and width in mm, of the skin on its left hand
    frequent: float = 0.8  # share of people of whom one sees them


def _sweep(count: int, *ends: tuple[Point, Point]) -> tuple[Curve, ...]:
    """Curves whose points go evenly from the first to the last, one pair for each point of a curve."""
    steps = np.linspace(0, 1, count)
    return tuple(
        tuple((float(a[0] + s * (b[0] - a[0])), float(a[1] + s * (b[1] - a[1]))) for a, b in ends) for s in steps
    )


_FAMILIES = (
    Family(
        "forehead",  # horizontal, of the frontalis
        (
            *_sweep(5, ((-50, 34), (-47, 63)), ((-24, 39), (-24, 69)), ((0, 40), (0, 70)), ((24, 39), (24, 69)),
                    ((50, 34), (47, 63))),
            *_sweep(4, ((-42, 40), (-6, 62)), ((-25, 43), (10, 64)), ((-8, 44), (25, 65))),
            *_sweep(4, ((42, 40), (6, 62)), ((25, 43), (-10, 64)), ((8, 44), (-25, 65))),
        ),
        {"browInnerUp": 1.0, "browOuterUp": 0.8}, (0.45, 1.1), (0.15, 0.75), (0.35, 0.7), 1.0, 3.0,
    ),
    Family(
        "glabella",  # frown lines, of the corrugator
        (((7, 9), (7.5, 19), (9.5, 33)), ((13, 15), (14.5, 23), (18, 34)), ((2, 12), (2.3, 20), (2.6, 28))),
        {"browDown": 1.0}, (0.7, 1.3), (0.2, 0.9), (0.3, 0.75), 0.5, 0.6, (0.25, 4.0),
    ),
    Family(
        "nasal_root",  # horizontal, of the procerus
        (((-9, 8), (0, 7), (9, 8)), ((-8, 3.5), (0, 3), (8, 3.5))),
        {"browDown": 0.7, "noseSneer": 0.6}, (0.5, 1.0), (0.1, 0.5), (0.4, 0.6), 0.8, 0.8, frequent=0.5,
    ),
    Family(
        "crows_feet",  # of the orbicularis, from the outer corner of the eye
        (
            ((48, 7), (54, 11), (60, 17)), ((49, 4), (55, 6.5), (62, 10)), ((49, 1), (56, 1.5), (63, 2)),
            ((49, -2), (56, -4), (63, -7)), ((48, -5), (54, -9), (60, -15)), ((45, -8), (51, -13), (56, -21)),
            ((56, 8), (60, 10), (64, 13)), ((56, -1), (60, -2), (64, -3)), ((54, -12), (58, -17), (61, -23)),
        ),
        {"eyeSquint": 0.8, "cheekSquint": 0.6, "mouthSmile": 0.6, "eyeBlink": 0.2},
        (0.4, 0.8), (0.12, 0.55), (0.3, 0.65), 0.8, 1.2,
    ),
    Family(
        "infraorbital",  # fine arcs below the lower lid
        (
            *_sweep(4, ((19, -8), (22, -15)), ((31, -11), (33, -19)), ((46, -7), (49, -13))),
            *_sweep(3, ((33, -11), (36, -18)), ((42, -10.5), (45, -15.5)), ((50, -6), (54, -11))),
        ),
        {"eyeSquint": 0.8, "cheekSquint": 0.8, "mouthSmile": 0.4}, (0.4, 0.7), (0.06, 0.28), (0.3, 0.6), 0.7, 0.8,
    ),
    Family(
        "tear_trough",  # below the bag of the lower lid; no muscle folds it
        (((17, -9), (22, -15.5), (30, -20.5), (41, -21)),),
        {}, (1.7, 3.0), (0.2, 0.9), (0.15, 1.0), 1.2, 1.0, (0.9, 4.5),
    ),
    Family(
        "bunny",  # on the side of the nose
        (((3, 2), (8, -3), (12, -8)), ((5, -4), (9.5, -9), (13, -13)), ((6, -11), (10.5, -15), (14, -19))),
        {"noseSneer": 1.0, "mouthUpperUp": 0.2, "eyeSquint": 0.2},
        (0.4, 0.8), (0.1, 0.45), (0.5, 0.4), 0.7, 0.8, frequent=0.6,
    ),
    Family(
        "nasolabial",
        (((15.5, -35), (20, -42), (26, -52), (32, -63), (35, -72)),),
        {"mouthSmile": 1.0, "mouthUpperUp": 0.8, "noseSneer": 0.6, "mouthStretch": 0.3},
        (1.2, 2.4), (0.4, 1.9), (0.05, 0.8), 0.5, 1.2, (0.7, 6.0), 0.97,
    ),
    Family(
        "cheek",  # the smile's brackets beside the mouth, and dimples
        (
            ((38, -51), (42, -60), (43, -70), (41, -79)), ((47, -45), (51, -56), (52, -67), (50, -78)),
            ((35, -66), (37, -71), (37, -76)), ((44, -55), (47, -62), (48, -70)), ((53, -30), (57, -42), (58, -55)),
        ),
        {"mouthSmile": 0.9, "mouthDimple": 0.8, "mouthStretch": 0.4},
        (0.6, 1.3), (0.12, 0.8), (0.45, 0.5), 1.5, 1.5, (0.3, 5.0), 0.6,
    ),
    Family(
        "marionette",  # from the corner of the mouth down
        (((27.5, -74), (30, -82), (32, -90), (32, -98)), ((34, -79), (37, -87), (38, -95))),
        {"mouthFrown": 1.0, "mouthPress": 0.2}, (0.9, 1.8), (0.25, 1.1), (0.35, 0.8), 0.6, 1.0, (0.6, 5.5), 0.75,
    ),
    Family(
        "mentolabial",  # the crease between lip and chin
        (((-16, -92), (-8, -89), (0, -88), (8, -89), (16, -92)),),
        {"mouthShrugLower": 1.0, "mouthFrown": 0.4, "mouthPucker": 0.3, "mouthRollLower": 0.3},
        (1.2, 2.6), (0.2, 1.0), (0.0, 0.6), 1.0, 1.0, (-0.5, 5.0), 0.9,
    ),
    Family(
        "perioral",  # radial, of the orbicularis of the mouth
        (
            *_sweep(4, ((2.5, -57.5), (16, -58)), ((3, -53.5), (18.5, -53)), ((3.2, -49), (20.5, -47.5))),
            *_sweep(3, ((5, -56.5), (19, -60)), ((5.6, -53), (22, -55.5))),
            *_sweep(3, ((3, -83.5), (14, -81)), ((3.3, -87), (17, -85.5))),
        ),
        {"mouthPucker": 0.9, "mouthFunnel": 0.3, "mouthPress": 0.3, "mouthRollUpper": 0.2},
        (0.4, 0.75), (0.06, 0.35), (0.55, 0.7), 0.7, 0.6, frequent=0.6,
    ),
)  # fmt: skip
_LINES_OF_THE_MIDDLE = ("forehead", "nasal_root", "mentolabial")
# Lines across the forehead fold where the muscle below them pulls.
_FOREHEAD = (
    ("forehead_middle", "middle", {"browInnerUp": 1.0}),
    ("forehead_left", "left", {"browOuterUpLeft": 1.0, "browInnerUp": 0.35}),
    ("forehead_right", "right", {"browOuterUpRight": 1.0, "browInnerUp": 0.35}),
)
# The mentalis folds no lines: the chin looks like the peel of an orange.
_CHIN_DRIVERS = {"mouthShrugLower": 1.0, "mouthPucker": 0.4, "mouthFrown": 0.3}


class Lines(eqx.Module):
    """Where lines run, and for every pair of a line and a texel beside it how they lie to each other."""

    family: Int[Array, " line"]
    twin: Int[Array, " line"]  # the line whose mirror image it is, or itself
    leading: Bool[Array, " line"]  # whether it is its family's first, which nobody with the family lacks
    length: Float[Array, " line"]  # mm
    bends: Float[Array, "line 3 point"]  # ways in which the lines of a family bend together: shift, tilt, arch
    line: Int[Array, " pair"]
    texel: Int[Array, " pair"]  # of the layout
    sheet: Int[Array, " pair"]  # the map that the line is drawn on: one for each family and side
    along: Float[Array, " pair"]  # 0 to 1, of the line's point next to the texel
    aside: Float[Array, " pair"]  # mm from there to the texel, growing to the line's left hand
    across: Float[Array, "pair 2"]  # unit vector of that direction in the reference face's frame, its x and y


class ReliefLayout(eqx.Module):
    """What reliefs on a model's map have in common: the surface of its mean face, and where on it things happen.

    Only the map's texels on the face's front are kept, in a list.
    """

    texels: Int[Array, " texel"]  # flat indices into the map, ascending
    listed: Int[Array, "size size"]  # number of each of the map's texels in the list; the list's length for no face
    points: Float[Array, "texel 3"]  # mm, in the reference face's frame
    normals: Float[Array, "texel 3"]
    skin: Float[Array, " texel"]  # 1 on bare skin, 0 on eyes, mouth and scalp
    face: Float[Array, " texel"]  # the same with lips: where colour varies
    mirror: Int[Array, " texel"]  # number of the texel on the other side
    places: dict[str, Float[Array, " texel"]]  # how much there is of what, by `_PLACES`
    streamlines: Int[Array, "step texel"]  # numbers of the texels along the skin's fine lines through each
    chart: Float[Array, "texel 2"]  # where noise is looked up, in cells of its grid
    bands: tuple[Float[Array, "_ _"], ...]  # deviations of the noise's Fourier coefficients: broad, medium, fine
    lines: Lines
    drivers: Float[Array, "group unit"]
    sheets: Int[Array, " group"]  # whose lines each group deepens
    shares: Float[Array, "share texel"]
    share_of: Int[Array, " group"]  # and where: a row of shares
    group_names: tuple[str, ...] = eqx.field(static=True)
    texel_mm: float = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Side of the map in texels."""
        return self.listed.shape[0]

    def map(self, values: Float[Array, "*channels texel"]) -> Float[Array, "*channels size size"]:
        """Values of the listed texels on the whole map, 0 elsewhere."""
        none = jnp.zeros((*values.shape[:-1], 1), values.dtype)
        return jnp.concatenate([values, none], axis=-1)[..., self.listed]


class Relief(eqx.Module):
    """One person's skin. Displacements in mm along the head's outward normals."""

    static: Float[Array, "size size"]
    wrinkles: Float[Array, "group size size"]  # added at activation 1
    drivers: Float[Array, "group unit"]
    albedo: Float[Array, "size size 3"]  # logarithm of a factor on the linear albedo
    age: Float[Array, ""]  # 0 for eighteen years, 1 for eighty

    def activations(self, expression: Float[Array, " unit"]) -> Float[Array, " group"]:
        """How far each group of wrinkles is folded: 0 to 1, growing with its drivers."""
        return activations(self.drivers, expression)

    def displacement(self, expression: Float[Array, " unit"]) -> Float[Array, "size size"]:
        """The relief of the face with this expression, mm, within `LIMIT_MM`."""
        folded = jnp.tensordot(self.activations(expression), self.wrinkles, 1)
        return jnp.clip(self.static + folded, -LIMIT_MM, LIMIT_MM)

    @property
    def wrinkle_mask(self) -> Bool[Array, "size size"]:
        """Where expressions could change the relief by more than 0.02 mm."""
        return jnp.sum(jnp.abs(self.wrinkles), axis=0) > 0.02


def activations(drivers: Float[Array, "group unit"], expression: Float[Array, " unit"]) -> Float[Array, " group"]:
    """How far each group of wrinkles is folded, in [0, 1]: the driving weights' sum, as in `detail.Detail`."""
    return jnp.clip(drivers @ jnp.clip(expression, 0.0, 1.0), 0.0, 1.0)


# -------------------------------------------------------------------------------------------------- layout

_POINTS = 20  # of a line
# Wavelengths of noise, and how its amplitude falls with the frequency.
_BANDS = ((16.0, 50.0, 2.0), (4.0, 12.0, 1.2), (0.0, 4.0, 0.5))
_STREAM_MM = 6.0  # to either side
_SHOULDER = 3.0  # widths of the groove that the raised skin around it is wide
# The chart of noise: directions from a point in the head, at distances as on a ball, in the plane. It stretches the
# front of the face by a sixth at most, the sides of the nose by half.
_CHART_CENTRE = (0.0, -30.0, -60.0)
_CHART_RADIUS = 105.0
_CHART_MM = 300.0


def relief_layout(model: MorphableModel, size: int) -> ReliefLayout:
    """The layout of reliefs on the model's size x size map. Once for each model: takes about a second."""
    table, points, normals, texel_mm = _reference_surface(model, size)
    skin, face = _skin(model, table, points, normals, texel_mm)
    texels = np.flatnonzero((skin > 0) | (face > 0))
    if not (skin > 0).any():
        raise ValueError(
            f"relief_layout: the {size}x{size} map shows no skin of the face's front, expected some. "
            "Are the model's landmarks iBUG-68, and its masks right?"
        )
    listed = np.full(size * size, len(texels))
    listed[texels] = np.arange(len(texels))
    courses, groups = _courses(), _groups()
    lines, streamlines = _lay_lines(courses, points, normals, texels, listed, texel_mm)
    points, normals, skin, face = (a.reshape(size * size, -1)[texels] for a in (points, normals, skin, face))
    skin, face, (x, y) = skin[:, 0], face[:, 0], points[:, :2].T
    left, middle = np.clip(0.5 + x / 20, 0, 1), np.exp(-((x / 20) ** 2))
    shares = {"all": skin, "middle": skin * middle, "left": skin * (1 - middle) * left}
    shares |= {"right": skin * (1 - middle) * (1 - left)}
    cells = math.ceil(_CHART_MM / texel_mm / 2) * 2
    f32 = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    i32 = lambda a: jnp.asarray(a, jnp.int32)  # noqa: E731
    return ReliefLayout(
        texels=i32(texels),
        listed=i32(listed.reshape(size, size)),
        points=f32(points),
        normals=f32(normals),
        skin=f32(skin),
        face=f32(face),
        mirror=i32(_mirror(model, table, texels, listed)),
        places={name: f32(skin * make(x, y)) for name, make in _PLACES.items()},
        streamlines=i32(streamlines),
        chart=f32(_chart(points) / _CHART_MM * cells + cells / 2),
        bands=tuple(f32(band) for band in _bands(cells)),
        lines=lines,
        drivers=f32([[group.drivers.get(unit, 0.0) for unit in model.expression_names] for group in groups]),
        sheets=i32([group.sheet for group in groups]),
        shares=f32(np.stack(list(shares.values()))),
        share_of=i32([list(shares).index(group.share) for group in groups]),
        group_names=tuple(group.name for group in groups),
        texel_mm=texel_mm,
    )


def relief_region(model: MorphableModel, size: int) -> Float[np.ndarray, "{size} {size}"]:
    """1 on the map's texels of the face's bare skin, where reliefs are drawn, fading to 0 over a few mm."""
    return _skin(model, *_reference_surface(model, size))[0].astype(np.float32)


def _reference_surface(model: MorphableModel, size: int):
    """Under each texel the point and normal of the mean head in the reference face's frame; mm of a texel's side."""
    table = texel_table(model.uv, model.triangles, size)
    frame = jnp.asarray(_reference_frame(model), jnp.float32)
    mesh = Mesh(frame, model.triangles, uv=model.uv)
    flat = np.asarray(interpolate(jnp.concatenate([frame, mesh.normals], axis=1), model.triangles, *table), float)
    points, normals = flat[..., :3], flat[..., 3:]
    normals = normals / np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-9)
    return table, points, normals, _texel_mm(points, np.asarray(table.triangle_ids) >= 0)


def _reference_frame(model: MorphableModel) -> Float[np.ndarray, "vertex 3"]:
    """The mean face warped so that its landmarks are those of the reference face (thin plates in space)."""
    from scipy.interpolate import RBFInterpolator

    target = np.full((68, 3), np.nan)
    for index, point in _REFERENCE.items():
        target[index] = point
    mirrored = target[MIRROR_68] * [-1.0, 1.0, 1.0]
    target = np.where(np.isnan(target), mirrored, target)
    landmarks = np.asarray(model.landmarks(model.mean), float)
    # Smoothing: landmarks of other conventions, or two in one place, must not fold the face.
    warp = RBFInterpolator(landmarks, target, kernel="linear", degree=1, smoothing=1.0)
    return warp(np.asarray(model.mean, float))


def _texel_mm(points: Float[np.ndarray, "size size 3"], valid: Bool[np.ndarray, "size size"]) -> float:
    """Side of a texel on the front of the face."""
    front = valid & (points[..., 2] > -20) & (np.abs(points[..., 1] + 30) < 80)
    step = np.linalg.norm(np.diff(points, axis=1), axis=2)
    both = front[:, 1:] & front[:, :-1]
    return float(np.clip(np.median(step[both]), 0.1, 20.0)) if both.any() else 280.0 / len(points)


def _reference_polygon(indices: list[int], side: float = 1.0) -> Float[np.ndarray, "corner 2"]:
    return np.array([_REFERENCE[i][:2] for i in indices]) * [side, 1.0]


def _distance_to(polygon: Float[np.ndarray, "corner 2"], x, y) -> Float[np.ndarray, "size size"]:
    """mm in the frontal plane from each texel to a closed polygon; negative inside."""
    away = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        t = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0, 1)
        away = np.minimum(away, np.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay)))
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (x < ax + (y - ay) * (bx - ax) / np.where(by == ay, 1.0, by - ay))
    return np.where(inside, -away, away)


def _skin(model: MorphableModel, table: TexelTable, points, normals, texel_mm: float):
    """Bare skin of the face's front, and the same with lips; both fade over a few mm."""
    from scipy.ndimage import binary_fill_holes, gaussian_filter, label

    count = len(model.mean)

    def of(*names: str) -> Float[np.ndarray, " vertex"]:
        return sum((np.asarray(model.masks[n], np.float32) for n in names if n in model.masks), np.zeros(count))

    skin = np.ones(count)
    if "skin" in model.part_names:
        skin = (np.asarray(model.part_of_vertex) == model.part_names.index("skin")).astype(float)
    front = of("face") if "face" in model.masks else skin
    other = of("lids", "scalp", "ears", "interior", "iris", "sclera")
    amounts = np.stack([skin * front * np.clip(1.0 - 2.0 * other, 0, 1), of("lips")], axis=1)
    flat = np.asarray(interpolate(jnp.asarray(amounts, jnp.float32), model.triangles, *table), float)
    x, y, z = np.moveaxis(points, 2, 0)
    eyes = [_distance_to(_reference_polygon([42, 43, 44, 45, 46, 47], s), x, y) for s in (1.0, -1.0)]
    right = [54, 53, 52, 51]
    outer = np.concatenate([_reference_polygon(right), _reference_polygon([52, 53, 54, 55, 56, 57], -1.0)])
    outer = np.concatenate([outer, _reference_polygon([56, 55])])
    inner = np.concatenate([_reference_polygon([64, 63, 62]), _reference_polygon([63, 64, 65], -1.0)])
    inner = np.concatenate([inner, _reference_polygon([66, 65])])
    oval = smoothstep(80.0 - np.hypot(x, np.where(y > 20, 1.15 * (y - 20), 0.0)), 0, 8) * smoothstep(y, -120, -112)
    oval = oval * smoothstep(z, -55, -45)
    seen = (np.asarray(table.triangle_ids) >= 0) & _frontmost(x, y, z) & (normals[..., 2] > -0.2)
    base = flat[..., 0] * oval * seen
    for away in eyes:
        base = base * smoothstep(away, 1.0, 4.0)
    face = base * smoothstep(_distance_to(inner, x, y), 0.0, 2.0)
    bare = base * np.clip(1.0 - 2.0 * flat[..., 1], 0, 1) * smoothstep(_distance_to(outer, x, y), -0.5, 2.0)

    def faded(amount):
        # Of what is seen only the face itself, not its fringes; eroded and smoothed, it leaves no edge in the relief.
        parts, _ = label(amount > 0.5)  # pyright: ignore[reportGeneralTypeIssues]
        largest = np.argmax(np.bincount(parts[parts > 0], minlength=1)) if parts.any() else 0
        kept = (parts == largest) & (parts > 0)
        # The outer border, where a jaw turns away from the front, is ragged: there it fades over a wider band.
        outer = gaussian_filter(np.asarray(binary_fill_holes(kept), float), 4.0 / texel_mm)
        inner = gaussian_filter(amount * kept, 1.5 / texel_mm)
        return smoothstep(inner, 0.55, 0.95) * smoothstep(outer, 0.55, 0.98)

    return faded(bare), faded(face)


def _frontmost(x, y, z) -> Bool[np.ndarray, "size size"]:
    """Whether nothing lies before a texel as seen from the front: nostrils and the mouth's inside are behind."""
    column, row = (np.clip(np.round(c / 1.5).astype(int) + 100, 0, 199) for c in (x, y))
    front = np.full((200, 200), -np.inf)
    np.maximum.at(front, (row, column), z)
    return z > front[row, column] - 5.0


def _mirror(model: MorphableModel, table: TexelTable, texels, listed) -> Int[np.ndarray, " texel"]:
    """The texel that shows the mirror image of each one's surface point; itself where no face is there."""
    size = table.triangle_ids.shape[0]
    uv = np.asarray(interpolate(model.uv[model.mirror], model.triangles, *table)).reshape(-1, 2)[texels]
    column, row = np.clip(np.floor(uv.T * size).astype(int), 0, size - 1)
    other = listed[row * size + column]
    return np.where(other < len(texels), other, np.arange(len(texels)))


class _Group(NamedTuple):
    name: str
    drivers: dict[str, float]
    sheet: int
    share: str = "all"


def _groups() -> list[_Group]:
    """The groups of wrinkles that expressions deepen each by itself. The chin's is the last, on a sheet of its own."""
    groups: list[_Group] = []
    for index, family in enumerate(_FAMILIES):
        both = {u: w for unit, w in family.drivers.items() for u in (unit, unit + "Left", unit + "Right")}
        if family.name == "forehead":
            groups += [_Group(name, drivers, 2 * index, share) for name, share, drivers in _FOREHEAD]
        elif family.name in _LINES_OF_THE_MIDDLE:
            groups.append(_Group(family.name, _halved(both), 2 * index))
        elif family.drivers:
            for sheet, side, other in ((0, "Left", "Right"), (1, "Right", "Left")):
                own = {unit: weight for unit, weight in both.items() if not unit.endswith(other)}
                groups.append(_Group(f"{family.name}_{side.lower()}", own, 2 * index + sheet))
    both = {u: w for unit, w in _CHIN_DRIVERS.items() for u in (unit, unit + "Left", unit + "Right")}
    return [*groups, _Group("chin", _halved(both), 2 * len(_FAMILIES))]


def _halved(drivers: dict[str, float]) -> dict[str, float]:
    """Units of one side count for a little more than half where lines cross the middle."""
    return {unit: weight * (0.6 if unit.endswith(_SIDES) else 1.0) for unit, weight in drivers.items()}


class _Course(NamedTuple):
    """A line of the table, or its mirror image."""

    family: int
    points: Float[np.ndarray, "point 2"]
    side: float  # 1, or -1 for a mirror image
    twin: int
    leading: bool
    middle: bool


def _courses() -> list[_Course]:
    """All lines, smooth through the points of the table."""
    from scipy.interpolate import make_interp_spline

    courses: list[_Course] = []
    for index, family in enumerate(_FAMILIES):
        for order, curve in enumerate(family.curves):
            given = np.array(curve, float)
            along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(given, axis=0), axis=1))])
            spline = make_interp_spline(along, given, k=min(3, len(given) - 1))
            points, twin = spline(np.linspace(0, along[-1], _POINTS)), len(courses)
            middle = family.name in _LINES_OF_THE_MIDDLE
            courses.append(_Course(index, points, 1.0, twin, order == 0, middle))
            if not middle:
                courses.append(_Course(index, points * [-1.0, 1.0], -1.0, twin, order == 0, middle))
    return courses


def _lay_lines(courses: list[_Course], points, normals, texels, listed, texel_mm: float):
    """Lines lifted onto the surface, with the texels around each; and the skin's fine lines through every texel."""
    from scipy.spatial import KDTree

    surface, facing = points.reshape(-1, 3)[texels], normals.reshape(-1, 3)[texels]
    tree, plan = KDTree(surface), KDTree(surface[:, :2])
    lifted, pairs = [], []
    for number, course in enumerate(courses):
        family = _FAMILIES[course.family]
        nearest = plan.query(course.points)[1]
        n = facing[nearest]
        offset = course.points - surface[nearest, :2]
        depth = surface[nearest, 2] - np.clip(np.sum(n[:, :2] * offset, axis=1) / np.maximum(n[:, 2], 0.3), -5, 5)
        line = np.column_stack([course.points, depth])
        lifted.append(line)
        broad = max(2.5 * _SHOULDER * family.width[1], 2.6 * family.bulge[1] if family.bulge[0] else 0.0)
        reach = 2.0 * math.hypot(family.wander, family.bend) + broad
        near = tree.query_ball_point(line, reach + 0.5 * float(np.linalg.norm(np.diff(line, axis=0), axis=1).max()))
        around = np.unique(np.concatenate([np.array(k, int) for k in near]))
        tangent = np.gradient(line, axis=0)
        across = np.cross(n, tangent) * course.side
        across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
        # The nearest point, as seen along the surface's normal.
        step = np.diff(line, axis=0)
        to = surface[around, None] - line[None, :-1]
        to = to - np.sum(to * facing[around, None], axis=2, keepdims=True) * facing[around, None]
        at = np.clip(np.sum(to * step, axis=2) / np.maximum(np.sum(step**2, axis=1), 1e-9), 0.0, 1.0)
        to = to - at[..., None] * step
        best = np.argmin(np.sum(to**2, axis=2), axis=1)
        row = np.arange(len(around))
        along, to = (best + at[row, best]) / (_POINTS - 1), to[row, best]
        aside = np.linalg.norm(to, axis=1) * np.sign(np.sum(to * across[best], axis=1))
        kept = (along > 0.0) & (along < 1.0) & (np.abs(aside) < reach)
        sheet = 2 * course.family + (course.side < 0)
        shape = np.full(kept.sum(), number), around[kept], np.full(kept.sum(), sheet)
        pairs.append((*shape, along[kept], aside[kept], across[best[kept], :2]))
    bends = []
    for course in courses:
        # Lines across the middle bend by where they are: long and short ones must not cross.
        t = course.points[:, 0] / 50 if course.middle else np.linspace(-1, 1, _POINTS)
        bends.append(np.stack([np.ones(_POINTS), t, 1 - t**2]))
    line, texel, sheet, along, aside, across = (np.concatenate(part) for part in zip(*pairs, strict=True))
    lines = Lines(
        family=jnp.asarray([course.family for course in courses], jnp.int32),
        twin=jnp.asarray([course.twin for course in courses], jnp.int32),
        leading=jnp.asarray([course.leading for course in courses]),
        length=jnp.asarray([np.linalg.norm(np.diff(k, axis=0), axis=1).sum() for k in lifted], jnp.float32),
        bends=jnp.asarray(np.stack(bends), jnp.float32),
        line=jnp.asarray(line, jnp.int32),
        texel=jnp.asarray(texel, jnp.int32),
        sheet=jnp.asarray(sheet, jnp.int32),
        along=jnp.asarray(along, jnp.float32),
        aside=jnp.asarray(aside, jnp.float32),
        across=jnp.asarray(across, jnp.float32),
    )
    return lines, _streamlines(np.concatenate(lifted), points, texels, listed, texel_mm)


def _streamlines(lines, points, texels, listed, texel_mm: float) -> Int[np.ndarray, "step texel"]:
    """For each texel, those along the skin's fine lines through it: parallel to the nearest wrinkles."""
    from scipy.spatial import KDTree

    size, surface = len(points), points.reshape(-1, 3)[texels]
    tangent = np.gradient(lines.reshape(-1, _POINTS, 3), axis=1).reshape(-1, 3)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    away, near = KDTree(lines).query(surface, k=24)
    weight = 1.0 / (away**2 + 9.0)
    # Directions have no sign: the mean is the largest eigenvector of t t^T.
    tensor = np.einsum("pk,pki,pkj->pij", weight, tangent[near], tangent[near])
    direction = np.linalg.eigh(tensor)[1][:, :, 2]
    # Per texel: how the surface goes with u and v, and so how many texels a mm along the direction is.
    along_u, along_v = (np.gradient(points, axis=axis).reshape(-1, 3)[texels] for axis in (1, 0))
    uu, uv, vv = (np.sum(a * b, axis=1) for a, b in ((along_u, along_u), (along_u, along_v), (along_v, along_v)))
    du, dv = np.sum(direction * along_u, axis=1), np.sum(direction * along_v, axis=1)
    determinant = np.maximum(uu * vv - uv**2, 1e-6)
    step = np.stack([(vv * du - uv * dv) / determinant, (uu * dv - uv * du) / determinant], axis=1)
    step *= max(1.0, texel_mm) / np.maximum(1.0, texel_mm * np.linalg.norm(step, axis=1, keepdims=True))
    start = np.arange(len(texels))
    at = np.stack([texels % size, texels // size], axis=1) + 0.5
    paths = [start]
    for sign in (1.0, -1.0):
        here, place, heading = start, at, sign * step
        for _ in range(round(_STREAM_MM / max(1.0, texel_mm))):
            onward = np.clip(place + heading, 0.5, size - 0.5)
            index = listed[onward[:, 1].astype(int) * size + onward[:, 0].astype(int)]
            go = index < len(texels)
            here, place = np.where(go, index, here), np.where(go[:, None], onward, place)
            turn = np.sign(np.sum(step[here] * heading, axis=1, keepdims=True))
            heading = np.where(turn == 0, heading, step[here] * turn)
            paths.append(here)
    return np.stack(paths)


def _chart(points: Float[np.ndarray, "texel 3"]) -> Float[np.ndarray, "texel 2"]:
    """The face in the plane, mm."""
    towards = points - np.array(_CHART_CENTRE)
    beside = np.linalg.norm(towards[:, :2], axis=1)
    return _CHART_RADIUS * (np.arctan2(beside, towards[:, 2]) / np.maximum(beside, 1e-9))[:, None] * towards[:, :2]


def _bands(cells: int) -> list[Float[np.ndarray, "row column"]]:
    """Deviations of the Fourier coefficients (low frequencies only, as of a real field) of noise of unit variance."""
    spectra = []
    for shortest, longest, falling in _BANDS:
        high = min(_CHART_MM / max(shortest, 1e-9), 0.5 * cells)
        count = min(math.ceil(1.4 * high), cells // 2)
        rows = np.concatenate([np.arange(count), np.arange(-count, 0)])
        frequency = np.hypot(rows[:, None], np.arange(count + 1)[None])
        low = _CHART_MM / longest
        keep = np.exp(-((frequency / high) ** 4)) * (1.0 - np.exp(-((frequency / low) ** 4)))
        keep = keep / np.maximum(frequency, 1.0) ** falling
        # A coefficient and its conjugate, each of a real and an imaginary part, add up to four times its variance.
        spectra.append(keep / math.sqrt(4.0 * float((keep**2).sum())) * cells**2)
    return spectra


def _blob(x0, y0, wide, high):
    """1 at a point of the reference face and its mirror image, falling off as a Gaussian."""
    return lambda x, y: np.exp(-0.5 * (((np.abs(x) - x0) / wide) ** 2 + ((y - y0) / high) ** 2))


def _most(*blobs):
    return lambda x, y: np.max([b(x, y) for b in blobs], axis=0)


def _beard(x, y):
    border = np.interp(np.abs(x), [0, 18, 26, 35, 50, 62, 70], [-48, -48, -57, -72, -66, -45, -5])
    return smoothstep(border - y, -2, 8)


_PLACES = {
    "pores": lambda x, y: (
        0.3 + 0.7 * _most(
            _blob(0, -34, 14, 14), _blob(24, -28, 13, 12), _blob(0, -98, 16, 12), _blob(0, 45, 18, 20)
        )(x, y)
    ),
    "crepe": lambda x, y: (
        0.35 + 0.65 * _most(_blob(42, -14, 16, 10), _blob(50, -60, 14, 25), _blob(0, -54, 18, 5))(x, y)
        - 0.3 * _blob(0, -25, 13, 22)(x, y)
    ),
    "chin": _blob(0, -99, 13, 9),
    "flush": _most(_blob(36, -32, 15, 13), _blob(0, -36, 12, 9), _blob(0, -100, 14, 10)),
    "sun": _most(_blob(28, -22, 20, 14), _blob(0, -20, 14, 16), _blob(0, 48, 35, 16)),
    "shadow": _blob(30, -11, 12, 6),
    "beard": _beard,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- drawing

# Found beside real photos (docs/synthesis.md): with all at 1, the fine pattern that facefit's fit leaves in thirteen of
# them was three times as strong as in random ones, in all bands alike.
_UNEVEN, _DEEP, _COLOURED = 1.6, 1.25, 1.25
_TWINS = 0.85  # correlation of a line's form with that of its mirror image
_STEEPEST = 0.8  # widths that the groove of a line is deep at most
# What one unit of each pigment takes from the logarithm of linear red, green and blue.
_BLOOD = np.array([0.06, 0.42, 0.34])
_MELANIN = np.array([0.45, 0.75, 1.05])
_STUBBLE = np.array([1.0, 0.96, 0.86])


class _Kind(NamedTuple):
    """Spots of one kind: ranges of what is drawn uniformly; `most` on one face."""

    most: int
    place: str
    radius: tuple[float, float]  # mm
    height: tuple[float, float] = (0.0, 0.0)  # mm
    melanin: tuple[float, float] = (0.0, 0.0)
    blood: tuple[float, float] = (0.0, 0.0)


_SPOTS = {
    "mole": _Kind(8, "skin", (0.9, 2.6), (0.2, 1.0), (0.0, 1.1), (0.0, 0.5)),
    "flat mole": _Kind(8, "skin", (0.7, 2.0), melanin=(0.4, 1.4)),
    "papule": _Kind(20, "skin", (0.9, 2.4), (0.08, 0.45), blood=(0.0, 1.6)),
    "scar": _Kind(16, "skin", (0.8, 2.2), (-0.35, -0.05), blood=(-0.3, 0.5)),
    "blemish": _Kind(12, "skin", (0.9, 3.0), blood=(0.3, 1.5)),
    "freckle": _Kind(150, "sun", (0.5, 1.4), melanin=(0.1, 0.6)),
    "lentigo": _Kind(14, "skin", (1.5, 4.0), melanin=(0.15, 0.55)),
}
_RAISED = ("mole", "papule", "scar")


class Spots(eqx.Module):
    """Roundish spots on the skin."""

    texels: Int[Array, " spot"]  # of the layout, at their centres
    radius: Float[Array, " spot"]  # mm
    height: Float[Array, " spot"]  # mm; 0 for those that are only colour
    melanin: Float[Array, " spot"]
    blood: Float[Array, " spot"]


def draw_spots(layout: ReliefLayout, key: Key[Array, ""], age: Float[Array, ""]) -> Spots:
    """A person's moles, papules, scars, blemishes, freckles and lentigines; those that are absent have no strength."""
    kinds = list(_SPOTS.values())
    of_kind = np.repeat(np.arange(len(kinds)), [kind.most for kind in kinds])
    numbers = jax.random.uniform(key, (len(of_kind) + len(kinds), 6))
    spot, person = numbers[: len(of_kind)], numbers[len(of_kind) :]
    # Most people have few of a kind, some have many; freckles fade and lentigines come with age.
    frequent = jnp.where(person[:, 0] < np.array([0.8, 0.8, 0.45, 0.35, 0.6, 0.3, 0.7]), person[:, 1] ** 2, 0.0)
    ages = {"papule": 1.0 - 0.7 * age, "freckle": 1.0 - 0.5 * age, "lentigo": jnp.clip(2.0 * age - 0.8, 0.0, 1.0)}
    frequent = frequent * jnp.stack([jnp.asarray(ages.get(name, 1.0), jnp.float32) for name in _SPOTS])
    present = spot[:, 0] < frequent[of_kind]

    def drawn(column: int, name: str) -> Float[Array, " spot"]:
        low, high = np.array([getattr(kind, name) for kind in kinds], np.float32)[of_kind].T
        return jnp.where(present, low + spot[:, column] * (high - low), 0.0)

    maps = {"skin": layout.skin, "sun": layout.places["sun"]}
    mass = jnp.cumsum(jnp.stack(list(maps.values())), axis=1)
    where = jnp.stack([jnp.searchsorted(m, spot[:, 1] * m[-1], side="right") for m in mass])
    texels = where[np.array([list(maps).index(kind.place) for kind in kinds])[of_kind], np.arange(len(of_kind))]
    return Spots(
        texels=jnp.clip(texels, 0, len(layout.texels) - 1).astype(jnp.int32),
        radius=jnp.maximum(drawn(2, "radius"), 0.1),
        height=drawn(3, "height"),
        melanin=drawn(4, "melanin"),
        blood=drawn(5, "blood"),
    )


def paint_spots(layout: ReliefLayout, spots: Spots) -> Float[Array, "3 texel"]:
    """Height (mm), melanin and blood of the spots on the layout's texels."""
    size, reach = layout.size, 6.0
    side = min(size, 2 * math.ceil(reach / layout.texel_mm) + 1)
    centre = layout.texels[spots.texels]
    row = jnp.clip(centre // size - side // 2, 0, size - side)
    column = jnp.clip(centre % size - side // 2, 0, size - side)
    window = np.arange(side)
    texels = layout.listed[(row[:, None] + window)[:, :, None], (column[:, None] + window)[:, None, :]]
    texels = texels.reshape(len(centre), side * side)
    away = jnp.linalg.norm(layout.points[texels] - layout.points[spots.texels][:, None], axis=2)
    # A spot smaller than a texel spreads over it, fainter.
    radius = jnp.sqrt(spots.radius**2 + (0.5 * layout.texel_mm) ** 2)
    faint = (spots.radius / radius) ** 2
    shape = jnp.exp(-0.7 * (away / radius[:, None]) ** 3) * faint[:, None]
    amounts = jnp.stack([spots.height, spots.melanin, spots.blood])
    values = amounts[:, :, None] * shape[None]
    return jnp.zeros((3, len(layout.texels))).at[:, texels.reshape(-1)].add(values.reshape(3, -1), mode="drop")


def draw_relief(layout: ReliefLayout, key: Key[Array, ""]) -> Relief:
    """A random person's skin. Pure: equal keys give equal reliefs; `jit` it, `vmap` it over keys."""
    person_key, line_key, noise_key, spot_key = jax.random.split(key, 4)
    person = jax.random.uniform(person_key, (16,))
    age, places = person[0], layout.places
    broad, medium, fine = _noise(layout, noise_key)
    sheets, static_lines = _draw_lines(layout, line_key, age, 0.8 * broad[:2])

    # The shape that principal components average away: nearly as symmetric as faces are.
    shape = 0.75 * math.sqrt(0.5) * (broad[2] + broad[2][layout.mirror]) + 0.66 * broad[3]
    shape = (0.18 + 0.42 * person[1] ** 1.5) * shape
    lumps = (0.01 + 0.03 * person[2] ** 2 + 0.03 * age**2) * medium[0]
    # Pores are pits, and so are the fine creases of old skin, which run along its lines.
    pores = (0.004 + 0.03 * person[3] ** 2) * _pitted(fine[0], 0.6) * places["pores"]
    stream = jnp.mean(fine[1][layout.streamlines], axis=0) * math.sqrt(0.5 * len(layout.streamlines))
    crepe = (0.003 + 0.035 * age**1.6 * (0.3 + 0.7 * person[4])) * _pitted(stream, 0.3) * places["crepe"]
    height, melanin, blood = paint_spots(layout, draw_spots(layout, spot_key, age))
    # How strong all of it is, and the pigments below: photos of real people have more fine pattern still.
    static = layout.skin * (_UNEVEN * (shape + lumps + pores + crepe) + static_lines + height)

    chin = _DEEP * (0.08 + 0.2 * person[5]) * (0.4 + 0.6 * age) * _pitted(medium[1], 0.3) * places["chin"]
    wrinkles = jnp.concatenate([sheets, chin[None]])[layout.sheets] * layout.shares[layout.share_of]

    blood = blood + (0.03 + 0.07 * person[6] ** 2) * medium[2] + (0.03 + 0.08 * person[7] ** 2) * broad[4]
    blood = blood + 0.7 * person[8] ** 3 * places["flush"] * (1.0 + 0.3 * broad[5])
    melanin = melanin + (0.01 + 0.04 * person[9] ** 2) * medium[3] + (0.01 + 0.05 * person[10] ** 2) * broad[6]
    melanin = melanin + 0.25 * person[11] ** 2 * places["shadow"] + (0.008 + 0.015 * person[14]) * fine[2]
    bearded = jnp.where(person[12] < 0.4, 0.05 + 0.5 * person[13] ** 2, 0.0)
    stubble = bearded * places["beard"] * jnp.clip(1.0 + 0.3 * fine[2] + 0.25 * medium[3], 0.0, 2.0)
    pigments = _COLOURED * jnp.stack([blood, melanin, stubble])
    taken = jnp.tensordot(jnp.asarray(np.stack([_BLOOD, _MELANIN, _STUBBLE]).T, jnp.float32), pigments, 1)
    albedo = jnp.clip(-taken, -2.5, 0.7) * layout.face
    return Relief(
        static=layout.map(jnp.clip(static, -LIMIT_MM, LIMIT_MM)),
        wrinkles=layout.map(wrinkles),
        drivers=layout.drivers,
        albedo=jnp.moveaxis(layout.map(albedo), 0, 2),
        age=age,
    )


def _pitted(noise, least: float):
    """Noise whose valleys are narrow: half of it as it is, and what exceeds a threshold as pits."""
    return 0.4 * noise - 0.9 * jax.nn.relu(noise - least)


_CHANNELS = (7, 4, 3)  # of each band


def _noise(layout: ReliefLayout, key: Key[Array, ""]) -> list[Float[Array, "channel texel"]]:
    """Channels of noise of unit variance in each band of wavelengths."""
    cells = 2 * (layout.bands[-1].shape[1] - 1)
    fields = []
    for channels, band, own in zip(_CHANNELS, layout.bands, jax.random.split(key, len(_CHANNELS)), strict=True):
        parts = jax.random.normal(own, (2, channels, *band.shape)) * band
        rows, columns = band.shape
        spectrum = jax.lax.complex(parts[0], parts[1])
        between = jnp.zeros((channels, cells - rows, columns), spectrum.dtype)
        spectrum = jnp.concatenate([spectrum[:, : rows // 2], between, spectrum[:, rows // 2 :]], axis=1)
        spectrum = jnp.pad(spectrum, ((0, 0), (0, 0), (0, cells // 2 + 1 - columns)))
        fields.append(jnp.fft.irfft2(spectrum, s=(cells, cells)))
    table = jnp.moveaxis(jnp.concatenate(fields), 0, 2).reshape(cells * cells, -1)
    corner = jnp.floor(layout.chart).astype(jnp.int32)
    right, down = (layout.chart - corner).T[:, :, None]
    at = lambda i, j: table[((corner[:, 1] + j) % cells) * cells + (corner[:, 0] + i) % cells]  # noqa: E731
    upper, lower = (at(0, j) * (1.0 - right) + at(1, j) * right for j in (0, 1))
    noise = jnp.transpose(upper * (1.0 - down) + lower * down)
    return jnp.split(noise, np.cumsum(_CHANNELS)[:-1].tolist())


def _draw_lines(layout: ReliefLayout, key: Key[Array, ""], age, warp: Float[Array, "2 texel"]):
    """Wrinkles of each family and side as a face folds them, and of all of them what stays in a face at rest, mm."""
    families, lines = len(_FAMILIES), layout.lines
    table = lambda name: jnp.asarray([getattr(f, name) for f in _FAMILIES], jnp.float32)  # noqa: E731
    family_key, line_key = jax.random.split(key)
    own = jax.random.normal(family_key, (families + 1, 8))
    z = jax.random.normal(line_key, (len(lines.twin), 20))
    alone = (lines.twin == np.arange(len(lines.twin)))[:, None]
    z = jnp.where(alone, z, _TWINS * z[lines.twin] + math.sqrt(1 - _TWINS**2) * z)
    uniform, family, length = jax.scipy.special.ndtr, lines.family, lines.length[:, None]

    # How deep a person's lines of each family are, and how much of that stays.
    low, high = table("depth").T
    visible = jnp.where(uniform(own[:-1, 0]) < table("frequent"), 1.0, 0.15)
    depth = _DEEP * visible * (low + uniform(own[:-1, 1]) * (high - low)) * jnp.exp(0.2 * own[-1, 0])
    onset, share = table("stays").T
    older = jnp.clip((age + 0.08 * own[:-1, 2] - onset) / (1.0 - onset), 0.0, 1.0)
    at_rest = depth * share * older**1.2 * (0.6 + 0.4 * uniform(own[:-1, 3]))
    folded = depth * (0.3 + 0.7 * jnp.clip(age / 0.6, 0.0, 1.0)) - 0.5 * at_rest
    bent = (table("bend")[:, None] * own[:-1, 4:7])[family]

    # Each line's way, as an offset to its left, and its depth along it; a short line bends less than a long one.
    t = np.linspace(0, 1, _POINTS, dtype=np.float32)
    bends = jnp.asarray(np.stack([np.ones_like(t), t - 0.5, 2 * t * (1 - t)]))
    waves = jnp.asarray(np.cos(np.pi * t * np.arange(2, 10)[:, None]))
    wander = table("wander")[family][:, None]
    less = jnp.minimum(1.0, length / np.array([10.0, 30.0, 30.0], np.float32))
    way = jnp.einsum("lk,lkp->lp", bent * less, lines.bends) + (wander * z[:, :3] * less) @ bends
    wave = jnp.minimum(1.0, length / 60.0) * wander * jnp.asarray([0.6, 0.4, 0.25]) * z[:, 3:6]
    way = way + wave @ waves[:3]
    ends = [smoothstep(way_in - 0.2 * uniform(z[:, k : k + 1]), 0.0, 0.3) for k, way_in in ((6, t), (7, 1.0 - t))]
    smooth = jnp.minimum(1.0, length / (6.0 * np.arange(2.0, 10.0)))
    deep = ends[0] * ends[1] * jnp.clip(0.9 + 0.15 * (smooth * z[:, 8:16]) @ waves, 0.0, 1.4)
    low, high = table("width")[family].T
    width = low + uniform(0.7 * z[:, 16] + 0.7 * own[family, 7]) * (high - low)

    # Lines come one after the other; and one deeper than it is wide would be a cut.
    few = jnp.asarray([len(f.curves) <= 3 for f in _FAMILIES])[family]
    there = smoothstep(0.4 + 0.5 * age - uniform(z[:, 17]), -0.08, 0.08) * jnp.where(few, 0.7, 1.0)
    strength = jnp.where(lines.leading & few, 1.0, there) * jnp.exp(0.3 * z[:, 18])
    rest, fold = (jnp.minimum(strength * d[family], _STEEPEST * width) for d in (at_rest, folded))

    which, at = lines.line, lines.along * (_POINTS - 1)
    before = jnp.minimum(at.astype(jnp.int32), _POINTS - 2)
    between = lambda rows: (  # noqa: E731
        rows[which, before] * (before + 1 - at) + rows[which, before + 1] * (at - before)
    )
    aside = lines.aside + jnp.sum(warp[:, lines.texel].T * lines.across, axis=1) - between(way)
    profile = between(deep) * _groove(aside, width[which], *table("bulge")[family[which]].T)
    static = jnp.zeros(len(layout.texels)).at[lines.texel].add(rest[which] * profile)
    sheets = jnp.zeros((2 * families, len(layout.texels)))
    return sheets.at[lines.sheet, lines.texel].add(fold[which] * profile), static


def _groove(x, width, bulge, bulge_mm):
    """Height across a line, x in mm to its left hand: -1 at its bottom, and zero in the mean.

    A sharp groove (sech) and the skin that it displaces, a Gaussian of the same area; besides, where a fold overhangs,
    what is raised on one side is low on the other.
    """
    raised = math.pi / (_SHOULDER * math.sqrt(2 * math.pi))
    fold = raised * jnp.exp(-0.5 * (x / (_SHOULDER * width)) ** 2) - 1.0 / jnp.cosh(jnp.clip(x / width, -20.0, 20.0))
    return fold / (1.0 - raised) + bulge * (x / bulge_mm) * jnp.exp(0.5 - 0.5 * (x / bulge_mm) ** 2)
