"""What is behind the people of portraits, and what comes between them and the camera."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from PIL import Image

from fitting.portraits.wardrobe import dye
from morphable.colour import srgb_to_linear

Picture = Float[Array, "size size 3"]

_GRIDS = (2, 3, 5, 9, 17, 33, 65)
_SHAPES = 14


def clutter(key: Key[Array, ""], size: int) -> Picture:
    """A place: colours that vary over all sizes, with boxes, discs and bars before them; linear RGB.

    From plain walls to leaves. Amplitudes fall with the frequency as in pictures of natural scenes (Field 1987), at a
    rate of its own for each picture.
    """
    colour_key, shape_key, *grid_keys = jax.random.split(key, 2 + len(_GRIDS))
    u = jax.random.uniform(colour_key, (40,))
    fall, loud = 0.4 + 1.2 * u[0], 1.6 * u[1] ** 1.5
    first, second = dye(u[2:7].at[4].set(0.9 - 0.6 * u[6])), dye(u[7:12])
    saturation = 0.1 + 0.7 * u[12] ** 2
    field = jnp.zeros((size, size, 3))
    for n, grid_key in zip(_GRIDS, grid_keys, strict=True):
        values = jax.random.normal(grid_key, (n, n, 3))
        grey = jnp.mean(values, axis=-1, keepdims=True) * 1.7
        values = grey + saturation * (values - grey)
        field = field + jax.image.resize(values, (size, size, 3), "linear") * n ** (-fall)
    ramp_v, ramp_u = jnp.meshgrid(*(jnp.linspace(-0.5, 0.5, size),) * 2, indexing="ij")
    along = jnp.clip(0.5 + ramp_u * (2 * u[13] - 1) + ramp_v * (2 * u[14] - 1), 0.0, 1.0)[..., None]
    picture = (first + along * (second - first)) * jnp.exp(loud * field)
    # Studios: nearly one colour, black or white for the most part.
    plain = jnp.where(u[16] < 0.5, 0.03 * u[17] ** 2, jnp.where(u[16] < 0.8, 0.8 + 0.5 * u[17], jnp.mean(first)))
    is_plain = u[18] < 0.25
    picture = jnp.where(is_plain, plain * (1.0 + 0.25 * (picture - jnp.mean(picture))), picture)
    shapes = jax.random.uniform(shape_key, (_SHAPES, 16))
    shown = jnp.where(is_plain, 0.0, u[15])

    def before(below, s):
        x, y = ramp_u - (s[0] - 0.5) * 1.2, ramp_v - (s[1] - 0.5) * 1.2
        # Upright for the most part, as what people build is.
        turn = jnp.where(s[2] < 0.7, 0.06 * (s[3] - 0.5), np.pi * s[3])
        a, b = x * jnp.cos(turn) + y * jnp.sin(turn), y * jnp.cos(turn) - x * jnp.sin(turn)
        half_a, half_b = 0.02 + 0.4 * s[4] ** 2, 0.02 + 0.6 * s[5] ** 2
        box = jnp.minimum(half_a - jnp.abs(a), half_b - jnp.abs(b))
        disc = half_a - jnp.sqrt(a**2 + b**2 + 1e-9)
        inside = jax.nn.sigmoid(jnp.where(s[6] < 0.7, box, disc) / (0.002 + 0.02 * s[7] ** 3))
        stripes = 1.0 + 0.5 * jnp.where(s[8] < 0.25, jnp.sign(jnp.sin(a * (20 + 150 * s[9]))), 0.0)
        share = (inside * jnp.where(s[10] < shown - 0.1, 0.5 + 0.5 * s[11], 0.0))[..., None]
        return below + share * (dye(s[11:16]) * stripes[..., None] - below), None

    picture = jax.lax.scan(before, picture, shapes)[0]
    return jnp.clip(picture, 0.0, 1.5)


@dataclass(frozen=True)
class Pictures:
    """Pictures of one's own, parts of which stand behind some portraits."""

    files: tuple[Path, ...]
    share: float = 0.5  # of the portraits

    @classmethod
    def of(cls, folder: Path) -> "Pictures":
        """All pictures of a folder; raises ValueError where it has none."""
        found = sorted(p for p in folder.glob("*") if p.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
        if not found:
            raise ValueError(
                f"got {folder}, expected a folder with pictures ({', '.join(_SUFFIXES)}). Leave it out for invented "
                "backgrounds."
            )
        return cls(tuple(found))

    def place(self, seed: int, index: int, size: int) -> Float[np.ndarray, "size size 3"]:
        """What stands behind a portrait, linear RGB: a random part of a random picture; NaN for an invented place."""
        rng = np.random.default_rng([seed, index])
        if rng.random() >= self.share:
            return np.full((size, size, 3), np.nan, np.float32)
        picture = Image.open(self.files[rng.integers(len(self.files))]).convert("RGB")
        side = min(picture.size) * rng.uniform(0.3, 1.0)
        left, top = (rng.uniform(0, n - side) for n in picture.size)
        part = picture.resize((size, size), Image.Resampling.BOX, (left, top, left + side, top + side))
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part
        return np.asarray(srgb_to_linear(jnp.asarray(part, jnp.float32) / 255.0), np.float32)


_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


# Joints and tip of a right hand's fingers in mm, seen from its back, wrist at the origin, fingers along +y; radii. The
# same hand as in fitting.occluders, which paints finished photos.
_LIMBS = np.array(
    [
        *[(-30, 88, -38, 118, 10, 9), (-38, 118, -42, 142, 9, 8), (-42, 142, -44, 160, 8, 7)],
        *[(-10, 94, -12, 130, 10.5, 9.5), (-12, 130, -13, 158, 9.5, 8.5), (-13, 158, -13, 178, 8.5, 7)],
        *[(10, 90, 13, 122, 10, 9), (13, 122, 15, 148, 9, 8), (15, 148, 16, 166, 8, 6.5)],
        *[(28, 80, 35, 104, 9, 8), (35, 104, 39, 122, 8, 7), (39, 122, 42, 138, 7, 6)],
        *[(-24, 28, -46, 52, 14, 12), (-46, 52, -58, 76, 12, 10), (-58, 76, -64, 98, 10, 8.5)],
        *[(-22, 84, -14, 20, 13, 15), (-4, 88, -3, 8, 13, 15), (14, 84, 10, 16, 13, 15), (24, 76, 12, 22, 13, 15)],
        *[(-10, 10, -8, -140, 17, 20), (8, 10, 8, -140, 17, 20)],
    ],
    np.float32,
)


def before_the_face(
    key: Key[Array, ""],
    size: int,
    centre: Float[Array, "2"],
    px_per_mm: Float[Array, ""],
    skin: Float[Array, "3"],
) -> tuple[Float[Array, "size size"], Picture]:
    """Coverage and colour (linear RGB) of what hides a part of the face: a hand, cloth, a box, a bar; often nothing.

    `centre` is the face's middle in pixels, `skin` the colour of the hand where it is lit as the face is.
    """
    key, noise_key = jax.random.split(key)
    u = jax.random.uniform(key, (40,))
    v_px, u_px = jnp.meshgrid(*(jnp.arange(size) + 0.5,) * 2, indexing="ij")
    x, y = (u_px - centre[0]) / px_per_mm, (v_px - centre[1]) / px_per_mm

    # A hand: capsules as a height field, shaded by its slopes.
    angle = 2 * np.pi * u[0]
    reach, mirror = 0.85 + 0.3 * u[1], jnp.where(u[2] < 0.5, 1.0, -1.0)
    along = jnp.stack([jnp.sin(angle), -jnp.cos(angle)])
    aside = jnp.stack([along[1], -along[0]]) * mirror
    x0, y0 = x - 130.0 * (u[3] - 0.5), y - 150.0 * (u[4] - 0.5)
    a = (x0 * aside[0] + y0 * aside[1]) / reach
    b = (x0 * along[0] + y0 * along[1]) / reach + 105.0
    spread = 0.4 + 0.9 * u[5]

    def raise_by(height, limb):
        px, py, qx, qy, r, s = limb
        length = (qx - px) ** 2 + (qy - py) ** 2
        t = jnp.clip(((a - px) * (qx - px) + (b - py) * (qy - py)) / length, 0, 1)
        radius = r + t * (s - r)
        square = (a - px - t * (qx - px)) ** 2 + (b - py - t * (qy - py)) ** 2
        bulge = jnp.sqrt(jnp.maximum(radius**2 - square, 0.0))
        return jnp.maximum(height, jnp.where(square < radius**2, bulge, radius - jnp.sqrt(square + 1e-6))), None

    limbs = jnp.asarray(_LIMBS).at[:12, 0].mul(spread).at[:12, 2].mul(spread)
    height = jax.lax.scan(raise_by, jnp.full(x.shape, -1e3), limbs)[0]
    hand_alpha = jnp.clip(0.5 + height * px_per_mm, 0.0, 1.0)
    slope_v, slope_u = jnp.gradient(jnp.maximum(height, 0.0) * reach * px_per_mm)
    sun = jnp.stack([1.2 * (u[6] - 0.5), -0.2 - 0.6 * u[7]])
    shade = (1.0 - slope_u * sun[0] - slope_v * sun[1]) / jnp.sqrt(1.0 + slope_u**2 + slope_v**2)
    hand = skin * (0.75 + 0.5 * u[8]) * jnp.clip(0.35 + 0.65 * shade, 0.05, 1.5)[..., None]

    # Cloth, a box or a bar: a rounded rectangle anywhere, striped or blotched.
    turn = np.pi * u[9]
    a = (x - 160.0 * (u[10] - 0.5)) * jnp.cos(turn) + (y - 190.0 * (u[11] - 0.5)) * jnp.sin(turn)
    b = (y - 190.0 * (u[11] - 0.5)) * jnp.cos(turn) - (x - 160.0 * (u[10] - 0.5)) * jnp.sin(turn)
    half_a, half_b = 12.0 + 40.0 * u[12], jnp.where(u[13] < 0.35, 300.0, 15.0 + 45.0 * u[14])
    power = jnp.where(u[15] < 0.4, 2.0, 8.0)
    ring = ((jnp.abs(a) / half_a) ** power + (jnp.abs(b) / half_b) ** power) ** (1 / power)
    wavy = 1.0 + 0.08 * jnp.sin(b / (5 + 20 * u[16]) + 6 * u[17])
    thing_alpha = jnp.clip(0.5 + (wavy - ring) * half_a * px_per_mm, 0.0, 1.0)
    one, other = dye(u[18:23]), dye(u[23:28])
    stripe = jax.nn.sigmoid(6.0 * jnp.sin(a / (2.0 + 10.0 * u[28]))) * (u[29] < 0.4)
    blotch = jax.image.resize(jax.random.normal(noise_key, (9, 9)), (size, size), "linear")
    thing = (one + stripe[..., None] * (other - one)) * jnp.exp(0.35 * blotch)[..., None]

    choice = u[30]
    is_hand = choice < 0.06
    alpha = jnp.where(is_hand, hand_alpha, jnp.where(choice < 0.13, thing_alpha, 0.0))
    return alpha, jnp.where(is_hand, hand, thing)
