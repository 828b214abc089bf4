"""Things painted in front of a face: hands, sunglasses, scarves, patches, with the mask of what they cover.

They test what a fit does about an occluder, so they look like one to a colour model: a hand has nearly the face's
own colour and is shaded, a scarf has stripes and folds, lenses are dark with a reflection. Every occluder but the
sunglasses covers at least `MIN_SHARE` of the face, that is of the outline of jaw and forehead.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

KINDS = ("hand", "sunglasses", "scarf", "patch")
MIN_SHARE = 0.2  # of the face that a hand, scarf or patch covers at least

_INTEROCULAR_MM = 63.0  # between the pupils, the adult mean (Dodgson 2004)
_SUPERSAMPLING = 3  # of shapes, for edges that are one pixel soft


def paint_occluder(
    pixels: UInt8[np.ndarray, "height width 3"], landmarks: Float[np.ndarray, "68 2"], kind: str, seed: int
) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
    """The sRGB photo with one occluder painted over the face, and where it covers more than half of a pixel.

    `landmarks` are the face's iBUG-68 points in pixels, all known. Place, size and colours follow from `seed`.
    """
    if kind not in KINDS:
        raise ValueError(f"paint_occluder: got kind {kind!r}, expected one of {', '.join(KINDS)}.")
    if not np.isfinite(landmarks).all():
        raise ValueError("paint_occluder: got landmarks that are not finite, expected all 68 in pixels.")
    frame = _Frame.of(landmarks)
    face = face_outline(landmarks, pixels.shape[:2])
    seeds = [seed, KINDS.index(kind)]
    painter = {"hand": _hand, "sunglasses": _sunglasses, "scarf": _scarf, "patch": _patch}[kind]
    size = 1.0
    while True:
        alpha, colour = painter(np.random.default_rng(seeds), frame, pixels, face, size)
        mask = alpha > 0.5
        if kind == "sunglasses" or (mask & face).sum() >= MIN_SHARE * face.sum():
            break
        size *= 1.08
    grain = np.random.default_rng([*seeds, 1]).normal(
        0, 1.5, pixels.shape
    )  # a camera's noise lies on the occluder, too
    painted = pixels + alpha[..., None] * (255 * np.clip(colour, 0, 1) + grain - pixels)
    return np.clip(np.rint(painted), 0, 255).astype(np.uint8), mask


def face_outline(landmarks: Float[np.ndarray, "68 2"], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Where the face is, for (height, width): inside the jaw line, closed by an arc over the forehead."""
    frame = _Frame.of(landmarks)
    right, left = landmarks[0], landmarks[16]
    angle = np.linspace(0, np.pi, 13)[1:-1, None]
    # The hairline lies about as far above the eyes as the mouth lies below them.
    arc = (left + right) / 2 + np.cos(angle) * (left - right) / 2 - np.sin(angle) * 72 * frame.px_per_mm * frame.down
    return _polygon(np.concatenate([landmarks[:17], arc]), size) > 0.5


class _Frame(NamedTuple):
    """Axes of the face in the image: where it is, which way is down, how large a millimetre."""

    landmarks: Float[np.ndarray, "68 2"]
    centre: Float[np.ndarray, "2"]  # between the eyes' middle and the mouth
    across: Float[np.ndarray, "2"]  # unit, along the eyes, to the image's right of an upright face
    down: Float[np.ndarray, "2"]  # unit
    px_per_mm: float

    @classmethod
    def of(cls, landmarks: Float[np.ndarray, "68 2"]) -> "_Frame":
        eyes = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
        mouth = landmarks[48:60].mean(axis=0)
        middle = (eyes[0] + eyes[1]) / 2
        across = eyes[1] - eyes[0]
        across = across / np.linalg.norm(across)
        down = np.array([-across[1], across[0]])
        # A turned head has its eyes nearer together; from eyes to mouth it keeps its size (about 66 mm).
        scale = max(np.linalg.norm(eyes[1] - eyes[0]) / _INTEROCULAR_MM, abs((mouth - middle) @ down) / 66)
        return cls(landmarks, (middle + mouth) / 2, across, down, float(scale))

    def px(self, mm: Float[np.ndarray, "*point 2"]) -> Float[np.ndarray, "*point 2"]:
        """Pixels of points given in mm across and down from the face's centre."""
        return self.centre + self.px_per_mm * (mm[..., :1] * self.across + mm[..., 1:] * self.down)

    def mm(self, size: tuple[int, int]) -> tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _"]]:
        """Of every pixel's centre: mm across and down from the face's centre."""
        v, u = np.mgrid[: size[0], : size[1]] + 0.5
        x, y = u - self.centre[0], v - self.centre[1]
        return (
            (x * self.across[0] + y * self.across[1]) / self.px_per_mm,
            (x * self.down[0] + y * self.down[1]) / self.px_per_mm,
        )


# Each painter takes (rng, frame, pixels, face, size) and returns coverage and sRGB colour of every pixel.

# ------------------------------------------------------------------------------------------------------ hand

# Knuckle, joints and tip in mm of a right hand seen from its back, wrist at the origin, fingers along +y; radii.
_FINGERS = (
    (((-30, 88), (-38, 118), (-42, 142), (-44, 160)), (10.0, 9.0, 8.0, 7.0)),  # index
    (((-10, 94), (-12, 130), (-13, 158), (-13, 178)), (10.5, 9.5, 8.5, 7.0)),  # middle
    (((10, 90), (13, 122), (15, 148), (16, 166)), (10.0, 9.0, 8.0, 6.5)),  # ring
    (((28, 80), (35, 104), (39, 122), (42, 138)), (9.0, 8.0, 7.0, 6.0)),  # little
    (((-24, 28), (-46, 52), (-58, 76), (-64, 98)), (14.0, 12.0, 10.0, 8.5)),  # thumb
)
_PALM = (((-22, 84), (-14, 20)), ((-4, 88), (-3, 8)), ((14, 84), (10, 16)), ((24, 76), (12, 22)))
_WRIST = (((-10, 10), (-8, -140)), ((8, 10), (8, -140)))


def _hand(rng, frame, pixels, face, size):
    reach = rng.uniform(0.95, 1.1) * size
    side = rng.choice([-1.0, 1.0])  # from the image's left or right
    mirror = rng.choice([-1.0, 1.0])  # left or right hand
    target = np.array([side * rng.uniform(10, 46), rng.uniform(-24, 62)]) / size**2  # mm; of the fingers' roots
    angle = side * np.deg2rad(rng.uniform(10, 75))  # of the arm from straight below
    spread = rng.uniform(0.4, 1.2)
    along = np.array([-np.sin(angle), -np.cos(angle)])  # fingers, in mm across and down
    aside = np.array([along[1], -along[0]]) * mirror
    x, y = frame.mm(pixels.shape[:2])
    x, y = x - target[0], y - target[1]
    a, b = (x * aside[0] + y * aside[1]) / reach, (x * along[0] + y * along[1]) / reach + 105
    height = np.full(a.shape, -np.inf)

    def limb(p, q, r, s):
        """Raise the height field by a tapered capsule."""
        (px, py), (qx, qy) = p, q
        length = (qx - px) ** 2 + (qy - py) ** 2
        t = np.clip(((a - px) * (qx - px) + (b - py) * (qy - py)) / length, 0, 1)
        radius = r + t * (s - r)
        distance = np.hypot(a - px - t * (qx - px), b - py - t * (qy - py))
        inside = np.maximum(radius**2 - distance**2, 0)
        np.maximum(height, np.where(distance < radius, np.sqrt(inside), radius - distance), out=height)

    for joints, radii in _FINGERS:
        points = np.array(joints, float)
        points[:, 0] = points[0, 0] + spread * (points[:, 0] - points[0, 0])
        for k in range(3):
            limb(points[k], points[k + 1], radii[k], radii[k + 1])
    for p, q in _PALM:
        limb(p, q, 13.0, 15.0)
    for p, q in _WRIST:
        limb(p, q, 17.0, 20.0)
    alpha = np.clip(0.5 + height * reach * frame.px_per_mm, 0, 1)

    slope_v, slope_u = np.gradient(np.maximum(height, 0) * reach * frame.px_per_mm)
    sun = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.8, -0.2), 1.0])
    sun /= np.linalg.norm(sun)
    shade = (-slope_u * sun[0] - slope_v * sun[1] + sun[2]) / np.sqrt(1 + slope_u**2 + slope_v**2)
    shade = 0.45 + 0.6 * np.maximum(_smooth(shade, max(1.0, 1.5 * frame.px_per_mm)), 0)
    # Nearly the face's own colour: brightness by a fifth, hue by a little.
    cheeks = pixels[face].astype(float)
    skin = np.median(cheeks, axis=0) / 255 * rng.uniform(0.82, 1.18) * rng.uniform(0.96, 1.04, 3)
    mottle = 1 + 0.05 * _noise(rng, a.shape, 14 * frame.px_per_mm)[..., None] * np.array([0.6, 1.0, 1.0])
    return alpha, skin * shade[..., None] * mottle


# ------------------------------------------------------------------------------------------------ sunglasses


def _sunglasses(rng, frame, pixels, face, size):
    shape = pixels.shape[:2]
    eyes = [frame.landmarks[36:42].mean(axis=0), frame.landmarks[42:48].mean(axis=0)]
    half = np.array([rng.uniform(26, 31), rng.uniform(22, 28)])
    power = rng.uniform(2.2, 4.5)  # of the superellipse: round to square lenses
    rim = rng.uniform(2.0, 4.5)
    drop = rng.uniform(2, 7)  # the lenses hang below the eyes
    x, y = frame.mm(shape)
    lens, outer = np.full(shape, -np.inf), np.full(shape, -np.inf)
    ears = (frame.landmarks[0], frame.landmarks[16])
    for eye, ear, sign in zip(eyes, ears, (-1, 1), strict=True):
        ex, ey = ((eye - frame.centre) @ np.stack([frame.across, frame.down], axis=1)) / frame.px_per_mm
        for field, grown in ((lens, 0.0), (outer, rim)):
            # Lenses narrow towards the nose's side below.
            u = np.abs(x - ex - sign * 2 - sign * 0.12 * (y - ey)) / (half[0] + grown)
            v = np.abs(y - ey - drop) / (half[1] + grown)
            np.maximum(field, (1 - (u**power + v**power) ** (1 / power)) * (half.min() + grown), out=field)
        temple = ((ear - frame.centre) @ np.stack([frame.across, frame.down], axis=1)) / frame.px_per_mm
        start, end = np.array([ex + sign * half[0], ey + drop - 0.55 * half[1]]), np.array([temple[0], ey - 2])
        np.maximum(outer, _bar(x, y, start, end + np.array([sign * 4, 0]), 1.0 + rim / 2), out=outer)
    inner = [((e - frame.centre) @ np.stack([frame.across, frame.down], axis=1)) / frame.px_per_mm for e in eyes]
    bridge = [np.array([p[0] * 0.55, p[1] + drop - 0.3 * half[1]]) for p in inner]
    np.maximum(outer, _bar(x, y, bridge[0], bridge[1], 1.0 + rim / 2), out=outer)

    glass = np.array([0.09, 0.09, 0.1]) + rng.uniform(-0.05, 0.09, 3)
    slope = np.clip(0.5 + y / (2.5 * half[1]), 0, 1)[..., None]  # lighter towards the lower edge
    colour = glass * (0.6 + rng.uniform(0.3, 1.2) * slope)
    stripe = np.exp(-(((x * 0.6 + y - rng.uniform(-40, 0)) / rng.uniform(4, 9)) ** 2))[..., None]
    colour = colour + rng.uniform(0.02, 0.14) * stripe
    frame_colour = rng.choice([[0.05, 0.05, 0.05], [0.25, 0.13, 0.06], [0.6, 0.55, 0.45]], axis=0)
    edge = np.clip(0.5 + lens * frame.px_per_mm, 0, 1)[..., None]
    return np.clip(0.5 + outer * frame.px_per_mm, 0, 1), frame_colour + edge * (colour - frame_colour)


def _bar(x, y, start, end, radius):
    """How deep points lie inside a bar with round ends, negative outside."""
    along = end - start
    t = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / (along @ along), 0, 1)
    return radius - np.hypot(x - start[0] - t * along[0], y - start[1] - t * along[1])


# ----------------------------------------------------------------------------------------------------- scarf


def _scarf(rng, frame, pixels, face, size):
    x, y = frame.mm(pixels.shape[:2])
    top = rng.uniform(4, 18) - 30 * (size - 1)  # mm below the face's centre: from under the nose to its tip
    tilt, sag = rng.uniform(-0.12, 0.12), rng.uniform(0.0005, 0.0022)
    edge = y - top - tilt * x + sag * x**2 - 14 * sag * 100 - 1.5 * np.sin(x / rng.uniform(6, 12) + rng.uniform(0, 6))
    wide = rng.uniform(84, 98)  # half, at the jaw; wider on the shoulders
    flank = wide + 0.5 * np.maximum(y - 70, 0) - np.abs(x + 2 * np.sin(y / 9))
    alpha = np.clip(0.5 + np.minimum(edge, flank) * frame.px_per_mm, 0, 1)
    return alpha, _cloth(rng, frame, x, y + sag * x**2 * 0.8)


def _dye(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """A random colour, less saturated than channels drawn apart."""
    return rng.uniform(0.1, 0.9) + rng.uniform(0, 0.6) * (rng.uniform(0.1, 0.9, 3) - 0.5)


def _cloth(rng, frame, x, y):
    """Striped or checked cloth with folds and a weave."""
    first, second = _dye(rng), _dye(rng)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 26)
    bend = 5 * _noise(rng, x.shape, 35 * frame.px_per_mm)
    u, v = x * np.cos(angle) + y * np.sin(angle) + bend, y * np.cos(angle) - x * np.sin(angle) + bend
    kind = rng.integers(3)  # plain, stripes, checks
    soft = lambda t: 0.5 + 0.5 * np.tanh(6 * np.sin(2 * np.pi * t / period))  # noqa: E731
    blend = (np.zeros_like(u), soft(u), (soft(u) + soft(v)) / 2)[kind][..., None]
    colour = first + blend * (second - first)
    fold = np.sin(2 * np.pi * (y + 0.3 * bend + 0.15 * x) / rng.uniform(22, 40))
    weave = 1 + 0.05 * _noise(rng, x.shape, max(1.5, 1.2 * frame.px_per_mm))[..., None]
    shade = 0.8 + 0.16 * fold + 0.08 * _noise(rng, x.shape, 18 * frame.px_per_mm)
    return colour * shade[..., None] * weave


# ----------------------------------------------------------------------------------------------------- patch


def _patch(rng, frame, pixels, face, size):
    x, y = frame.mm(pixels.shape[:2])
    middle = np.array([rng.uniform(-38, 38), rng.uniform(-50, 50)]) / size**2
    half = np.array([rng.uniform(34, 48), rng.uniform(30, 44)]) * size
    angle, power = rng.uniform(0, np.pi), rng.choice([2.0, 12.0])  # an ellipse or a box
    u = (x - middle[0]) * np.cos(angle) + (y - middle[1]) * np.sin(angle)
    v = (y - middle[1]) * np.cos(angle) - (x - middle[0]) * np.sin(angle)
    inside = (1 - ((np.abs(u) / half[0]) ** power + (np.abs(v) / half[1]) ** power) ** (1 / power)) * half.min()
    alpha = np.clip(0.5 + inside * frame.px_per_mm, 0, 1)
    if rng.integers(2):
        return alpha, _cloth(rng, frame, x, y)
    # Blotches of several colours, like a printed surface or foliage.
    palette = np.stack([_dye(rng), _dye(rng)])
    blotch = sum(_noise(rng, x.shape, s * frame.px_per_mm) / (k + 1) for k, s in enumerate((20, 9, 4)))
    return alpha, palette[0] + (0.5 + 0.5 * np.tanh(1.5 * blotch))[..., None] * (palette[1] - palette[0])


# ---------------------------------------------------------------------------------------------------- shapes


def _polygon(points: Float[np.ndarray, "point 2"], size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """Share of each pixel inside a polygon."""
    k = _SUPERSAMPLING
    image = Image.new("L", (size[1] * k, size[0] * k))
    ImageDraw.Draw(image).polygon([(float(u) * k, float(v) * k) for u, v in points], fill=255)
    return np.asarray(image.reduce(k), float) / 255


def _noise(rng: np.random.Generator, size: tuple[int, int], grain_px: float) -> Float[np.ndarray, "height width"]:
    """Smooth noise with features of about `grain_px`, mean 0 and deviation about 1."""
    coarse = [max(4, int(np.ceil(n / grain_px)) + 3) for n in size]
    values = Image.fromarray(rng.normal(0, 1.3, coarse).astype(np.float32))
    box = (1.0, 1.0, 1.0 + size[1] / grain_px, 1.0 + size[0] / grain_px)
    box = (*box[:2], min(box[2], coarse[1] - 0.5), min(box[3], coarse[0] - 0.5))
    return np.asarray(values.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box), float)


def _smooth(image: Float[np.ndarray, "height width"], sigma: float) -> Float[np.ndarray, "height width"]:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, sigma)
