"""What people wear and what grows on them: hair, hats and hoods, beards, make-up, clothes and spectacles.

Everything is drawn from random numbers and follows the head it is on. Hair, hats and clothes are surfaces of their own,
grids that hang on the head's hull; beards, brows and make-up change the skin's colour and lift it a little; spectacles
are flat, and the picture asks for each of its rays where it meets them. A thing that somebody does not wear is there
all the same, shrunk to a point: so all portraits are one program.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fitting.portraits.studio import COLUMNS, LOWEST, ROWS, Studio
from morphable.colour import srgb_to_linear

_HAIR_ROWS, _HAT_ROWS, _BODY_ROWS, _BODY_COLUMNS = 24, 12, 12, 36
# Azimuths from the front, at which a hairline is drawn.
_KNOTS = np.deg2rad([0.0, 25.0, 50.0, 75.0, 100.0, 130.0, 180.0])
_FALL = np.deg2rad(97.0)  # polar angle at which long hair leaves the head
_MM_PER_RADIAN = 115.0  # of hair that falls


class Cloth(NamedTuple):
    """A surface with its colours, part of a portrait's mesh."""

    vertices: Float[Array, "vertex 3"]
    albedo: Float[Array, "vertex 3"]  # linear RGB
    strand: Float[Array, "vertex 3"]  # across the strands, along them, and how much of a strand's pattern there is
    pattern: Float[Array, " vertex"]  # how much of a cloth's pattern there is


class Spectacles(eqx.Module):
    """Two lenses in frames, each a rounded plane in head space; nobody wears them where `worn` is 0."""

    centres: Float[Array, "lens 3"]  # mm, head space
    normals: Float[Array, "lens 3"]
    half: Float[Array, "2"]  # mm
    power: Float[Array, ""]  # of the superellipse: 2 round, 5 nearly a rectangle
    rim: Float[Array, ""]  # mm
    frame: Float[Array, "3"]  # linear RGB
    glass: Float[Array, "3"]
    opacity: Float[Array, ""]  # of the glass
    shine: Float[Array, "4"]  # a reflected light: direction across the lens, place, strength
    worn: Float[Array, ""]


def grid_triangles(columns: int, rows: int, closed: bool = True) -> Int[np.ndarray, "triangle 3"]:
    """Triangles of a grid of columns x rows; closed: the last column is joined to the first."""
    c, r = np.meshgrid(np.arange(columns if closed else columns - 1), np.arange(rows - 1), indexing="ij")
    here, right = c * rows + r, ((c + 1) % columns) * rows + r
    quads = np.stack([here, right, right + 1, here + 1], axis=-1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)


WARDROBE_TRIANGLES = (
    grid_triangles(COLUMNS, _HAIR_ROWS),
    grid_triangles(COLUMNS, _HAT_ROWS),
    grid_triangles(_BODY_COLUMNS, _BODY_ROWS),
    # Two temples and a bridge of spectacles; joined to one grid they had sheets between them, like visors.
    np.concatenate([grid_triangles(2, 5, closed=False) + 10 * k for k in range(3)]),
)


def smooth_noise(key: Key[Array, ""], coarse: tuple[int, int], size: tuple[int, int]) -> Float[Array, "_ _"]:
    """Smooth random field of `size`, of deviation about 1, from `coarse` values; periodic along the first."""
    values = jax.random.normal(key, coarse)
    # Periodic: a value more on either side than is kept.
    values = jnp.concatenate([values[-1:], values, values[:1]], axis=0)
    scale = np.divide(size, coarse).astype(np.float32)
    shift = np.array([-scale[0], 0.0], np.float32)
    return 1.3 * jax.image.scale_and_translate(values, size, (0, 1), jnp.asarray(scale), jnp.asarray(shift), "linear")


def natural_hair_colour(numbers: Float[Array, "4"]) -> Float[Array, "3"]:
    """Linear RGB from black to blond, red, grey, white; now and then dyed."""
    dark, fair, red = (jnp.asarray(c) for c in ([0.016, 0.011, 0.009], [0.45, 0.30, 0.14], [0.22, 0.07, 0.025]))
    light = numbers[0] ** 2.2
    colour = dark * (fair / dark) ** light
    colour = jnp.where(numbers[1] < 0.12, 0.4 * colour + 0.6 * red * (0.3 + light), colour)
    grey = jnp.clip((numbers[2] - 0.75) / 0.2, 0.0, 1.0)
    return colour + grey * (jnp.asarray([0.40, 0.39, 0.37]) * (0.3 + 0.9 * numbers[3]) - colour)


def dye(numbers: Float[Array, "5"]) -> Float[Array, "3"]:
    """A cloth's colour, linear RGB: greys, darks and colours."""
    grey = jnp.mean(numbers[:3])
    encoded = grey + (0.2 + 0.8 * numbers[3] ** 2) * (numbers[:3] - grey)
    level = jnp.where(numbers[4] < 0.35, 0.35, 1.0)  # much of what people wear is dark
    return srgb_to_linear(jnp.clip(0.04 + 0.9 * level * encoded, 0.0, 1.0))


def _hull_at(studio: Studio, vertices: Float[Array, "vertex 3"], polar: Float[Array, "column row"]):
    """Points and outward directions of the head's hull at polar angles, column by column."""
    hull = vertices[studio.hull] + studio.hull_offset
    place = jnp.clip(polar / LOWEST * (ROWS - 1), 0.0, ROWS - 1.001)
    low = jnp.floor(place).astype(jnp.int32)
    t = (place - low)[..., None]
    at = lambda table, k: jnp.take_along_axis(table, k[..., None], axis=1)  # noqa: E731
    return tuple(at(table, low) * (1 - t) + at(table, low + 1) * t for table in (hull, studio.hull_out))


def _azimuth():
    return 2 * np.pi * np.arange(COLUMNS) / COLUMNS - np.pi


def _hairline(knots: Float[Array, "7"], lean: Float[Array, ""]) -> Float[Array, " column"]:
    """Values at azimuths from those at knots, alike on both sides but for a lean."""
    return jnp.interp(jnp.abs(jnp.asarray(_azimuth()) + lean), jnp.asarray(_KNOTS), knots)


def hair(studio: Studio, vertices: Float[Array, "vertex 3"], key: Key[Array, ""], colour: Float[Array, "3"]) -> Cloth:
    """A hairdo: none, cropped, short, with a fringe, or falling to the shoulders and beyond, straight or wavy."""
    keys = jax.random.split(key, 6)
    u = jax.random.uniform(keys[0], (24,))
    long = u[0] < 0.42
    present = u[1] > 0.1
    degrees = jnp.deg2rad
    # Hairlines as polar angles: the brows are at 90 degrees of the front, the hair's start at about 60.
    front = 48.0 + 18.0 * u[2]
    fringe = (u[3] < 0.3) & (u[4] > 0.2)
    front = jnp.where(fringe, 66.0 + 24.0 * u[5], front)
    temple = 66.0 + 20.0 * u[6] + jnp.where(fringe, 6.0, 0.0)
    side, ear = 88.0 + 22.0 * u[7], 100.0 + 16.0 * u[8]
    short = jnp.stack([front, front + 3, temple, side, ear, 118 + 14 * u[9], 128 + 16 * u[9]])
    length = 20.0 + 130.0 * u[10]
    curtain = u[11]  # how far to the front long hair falls
    falling = jnp.stack(
        [
            front,
            jnp.where(curtain > 0.975, 100 + length, front + 4),
            jnp.where(curtain > 0.85, 100 + length, temple),
            jnp.where(curtain > 0.4, 100 + length, side),
            *(100.0 + length for _ in range(3)),
        ]
    )
    knots = degrees(jnp.where(long, falling, short))
    end = _hairline(knots, 0.12 * (u[12] - 0.5))
    jag = jax.random.normal(keys[1], (COLUMNS,))
    end = end + degrees(jnp.where(long, 6.0, 1.0 + 5.0 * u[13] ** 2)) * jag * 0.5
    s = jnp.linspace(0.0, 1.0, _HAIR_ROWS)[None]
    polar = end[:, None] * s
    fall = jnp.where(long, _FALL, LOWEST)
    point, out = _hull_at(studio, vertices, jnp.minimum(polar, fall))
    volume = jnp.where(u[14] < 0.12, 25 + 35 * u[15], 2.0 + 22.0 * u[15] ** 1.5)  # now and then a lot
    volume = jnp.where(long, jnp.maximum(volume, 6.0), volume)
    rough = smooth_noise(keys[2], (18, 8), (COLUMNS, _HAIR_ROWS))
    taper = jnp.where(long, jnp.clip(0.35 + 3 * s, 0, 1), jnp.clip((1.0 - s) * 5.0 + 0.12, 0.0, 1.0))
    thick = volume * (1.0 + 0.22 * rough) * taper + 1.2
    over = jnp.maximum(polar - fall, 0.0) * _MM_PER_RADIAN
    wave = smooth_noise(keys[3], (24, 7), (COLUMNS, _HAIR_ROWS)) * (1.0 + 12.0 * u[16] ** 2)
    flat = out * jnp.asarray([1.0, 0.0, 1.0])
    flat = flat / (jnp.linalg.norm(flat, axis=-1, keepdims=True) + 1e-6)
    hang = flat * ((0.12 * u[17] - 0.02) * over + jnp.where(over > 0, wave, 0.0))[..., None]
    place = point + out * thick[..., None] + hang - over[..., None] * jnp.asarray([0.0, 1.0, 0.0])
    place = jnp.where(present, place, vertices[studio.hull[0, 0]])
    shade = 1.0 + 0.15 * smooth_noise(keys[4], (24, 4), (COLUMNS, _HAIR_ROWS))
    root = jnp.where(u[18] < 0.2, 0.5 + 0.5 * jnp.clip(3 * s, 0, 1), 1.0)
    albedo = colour * jnp.clip(shade * root, 0.3, 1.7)[..., None]
    across = jnp.broadcast_to((jnp.arange(COLUMNS) / COLUMNS)[:, None], place.shape[:2])
    across = across + 0.02 * u[19] * smooth_noise(keys[5], (12, 5), (COLUMNS, _HAIR_ROWS))
    along = jnp.broadcast_to(s, place.shape[:2])
    strand = jnp.stack([across, along, jnp.ones_like(along)], axis=-1)
    return Cloth(
        place.reshape(-1, 3), albedo.reshape(-1, 3), strand.reshape(-1, 3), jnp.zeros(place.shape[0] * place.shape[1])
    )


def hat(studio: Studio, vertices: Float[Array, "vertex 3"], key: Key[Array, ""]) -> Cloth:
    """A cap with a brim, a woollen hat, a hood or headscarf that leaves the face free; most often nothing."""
    noise_key, key = jax.random.split(key)
    u = jax.random.uniform(key, (24,))
    present = u[0] < 0.16
    kind = u[1]  # cap, woollen hat, hood
    hood = kind > 0.66
    low = 62.0 + 20.0 * u[2]
    cap = jnp.stack([low, low, low + 4, low + 10, low + 14, low + 22, low + 30])
    open_front = 48.0 + 16.0 * u[3]
    wrap = jnp.stack([open_front, open_front + 6, 96.0 + 54 * u[4], 150.0, 150.0, 150.0, 150.0])
    end = _hairline(jnp.deg2rad(jnp.where(hood, wrap, cap)), 0.1 * (u[5] - 0.5))
    s = jnp.concatenate([jnp.linspace(0.0, 1.0, _HAT_ROWS - 2), jnp.asarray([1.0, 1.0])])[None]
    point, out = _hull_at(studio, vertices, jnp.minimum(end[:, None] * s, LOWEST))
    thick = 7.0 + 12.0 * u[6] + 2.5 * smooth_noise(noise_key, (16, 5), (COLUMNS, _HAT_ROWS))
    # The last rows are the brim: outwards and forwards, where there is one.
    azimuth = jnp.asarray(_azimuth())
    brimmed = (kind < 0.33) | (u[7] < 0.15)
    all_round = u[8] < 0.3
    reach = jnp.where(all_round, 1.0, jnp.clip(1.4 - jnp.abs(azimuth) / 0.8, 0.0, 1.0)) * (35.0 + 45.0 * u[9])
    reach = jnp.where(brimmed & ~hood, reach, 0.0)
    step = jnp.concatenate([jnp.zeros(_HAT_ROWS - 2), jnp.asarray([0.55, 1.0])])
    flat = out * jnp.asarray([1.0, 0.0, 1.0])
    flat = flat / (jnp.linalg.norm(flat, axis=-1, keepdims=True) + 1e-6)
    down = jnp.stack([jnp.zeros(()), 0.1 + 0.35 * u[10], jnp.zeros(())])
    brim = (reach[:, None] * step)[..., None] * (flat - down)
    place = point + out * thick[..., None] + brim
    place = jnp.where(present, place, vertices[studio.hull[0, 0]])
    colour, other = dye(u[11:16]), dye(u[16:21])
    band = ((s > 0.8) & (u[21] < 0.4)).astype(jnp.float32)[..., None]
    albedo = jnp.broadcast_to(colour + band * (other - colour), place.shape)
    strand = jnp.stack(
        [
            jnp.broadcast_to((jnp.arange(COLUMNS) / COLUMNS)[:, None], place.shape[:2]),
            jnp.broadcast_to(s, place.shape[:2]),
            jnp.zeros(place.shape[:2]),
        ],
        axis=-1,
    )
    pattern = jnp.full(place.shape[0] * place.shape[1], jnp.where(u[22] < 0.5, u[23], 0.0))
    return Cloth(place.reshape(-1, 3), albedo.reshape(-1, 3), strand.reshape(-1, 3), pattern)


class Build(NamedTuple):
    """How stout a person is where a head model's modes, which end at the jaw, do not say it. Millimetres."""

    neck: Float[Array, ""]  # added to the neck's half width and half depth
    throat: Float[Array, ""]  # how far the throat stands out, to a double chin


def draw_build(key: Key[Array, ""]) -> Build:
    """Necks from a thin woman's to a strong man's; every third throat is full."""
    u = jax.random.uniform(key, (3,))
    return Build(neck=-3.0 + 18.0 * u[0], throat=jnp.where(u[1] < 0.35, 18.0 * u[2], 0.0))


def with_build(studio: Studio, vertices: Float[Array, "vertex 3"], build: Build) -> Float[Array, "vertex 3"]:
    """The head (mm, head space) with the neck and throat of a person of this build; the face stays.

    Without it all necks would be those of the model's people, .7 of the jaw's width, and a network would take the edge
    of broader necks for the jaw's (docs/landmark_network.md).
    """
    weight = studio.neck / jnp.maximum(jnp.sum(studio.neck), 1e-6)
    across = vertices - weight @ vertices
    across = across.at[:, 1].set(0.0)
    out = across / jnp.maximum(jnp.linalg.norm(across, axis=1, keepdims=True), 10.0)
    down = jnp.asarray([0.0, -0.9, 0.45])
    return vertices + build.neck * studio.neck[:, None] * out + build.throat * studio.throat[:, None] * down


def body(vertices: Float[Array, "vertex 3"], key: Key[Array, ""], skin: Float[Array, "3"], build: Build) -> Cloth:
    """Neck, shoulders and chest in clothes; turned and leaning otherwise than the head."""
    u = jax.random.uniform(key, (28,))
    azimuth = 2 * np.pi * np.arange(_BODY_COLUMNS) / _BODY_COLUMNS - np.pi
    lowest = jnp.min(vertices[:, 1])
    top = lowest + 22.0 + 30.0 * u[0]  # of the collar
    # Half width, half depth and height of the rows, from inside the neck down to the chest.
    steps = jnp.asarray(
        [
            [50, 52, 26], [56, 60, 12], [60, 66, 0], [66, 70, -10], [92, 78, -22], [140, 84, -38], [178, 92, -58],
            [200, 100, -90], [206, 108, -130], [204, 114, -180], [200, 118, -240], [198, 120, -330],
        ]
    )  # fmt: skip
    wide, deep, height = (steps[:, k] for k in range(3))
    broad = 0.85 + 0.35 * u[1]
    slope = jnp.where(height < 0, height * (0.8 + 0.5 * u[2]), height)
    power = 2.2
    c, s = np.cos(azimuth), np.sin(azimuth)
    radius = 1.0 / (np.abs(s) ** power + np.abs(c) ** power) ** (1 / power)
    thick = jnp.where(height < -30, 0.0, build.neck)  # shoulders are as broad with any neck
    x = (s * radius)[:, None] * (wide * jnp.where(height < -15, broad, 1.0) + thick)[None]
    z = (c * radius)[:, None] * (deep * jnp.where(height < -15, broad, 1.0) + thick)[None]
    collar = jnp.where(u[3] < 0.35, 8.0 + 14.0 * u[4], 0.0)  # stands off the neck
    off = jnp.where((height >= 0) & (height < 20), collar, 0.0)
    x, z = x + (s[:, None] * off), z + (c[:, None] * off)
    local = jnp.stack([x, jnp.broadcast_to(slope, x.shape), z], axis=-1)
    turn, lean = 0.9 * (2 * u[5] - 1) * u[6], 0.3 * (2 * u[7] - 1)
    tilt = 0.2 * (2 * u[8] - 1)
    turned = jaxlie.SO3.from_y_radians(turn) @ jaxlie.SO3.from_x_radians(lean) @ jaxlie.SO3.from_z_radians(tilt)
    place = local @ turned.as_matrix().T + jnp.asarray([0.0, 0.0, -75.0]).at[1].set(top)
    cloth, other = dye(u[9:14]), dye(u[14:19])
    neckline = jnp.where(u[19] < 0.4, 0.0, jnp.where(u[20] < 0.5, 25.0, 90.0) * u[21])  # bare skin below the collar
    bare = (-height[None] < neckline * jnp.clip(jnp.asarray(c)[:, None] * 1.5, 0.3, 1.0)) & (u[19] >= 0.4)
    jacket = (jnp.abs(jnp.asarray(s))[:, None] * wide > 14 - 0.2 * height) & (u[22] < 0.35)
    albedo = jnp.where(bare[..., None], skin, jnp.where(jacket[..., None], other, cloth))
    across = jnp.broadcast_to((jnp.arange(_BODY_COLUMNS) / _BODY_COLUMNS)[:, None], x.shape)
    along = jnp.broadcast_to(jnp.linspace(0.0, 1.0, _BODY_ROWS), x.shape)
    strand = jnp.stack([across, along, jnp.zeros_like(across)], axis=-1)
    pattern = jnp.where(bare, 0.0, jnp.where(u[23] < 0.45, u[24], 0.15))
    return Cloth(place.reshape(-1, 3), albedo.reshape(-1, 3), strand.reshape(-1, 3), pattern.reshape(-1))


def spectacles(studio: Studio, vertices: Float[Array, "vertex 3"], key: Key[Array, ""]) -> tuple[Spectacles, Cloth]:
    """Glasses or sunglasses, and the bars that hold them: temples and bridge. In a quarter of the portraits."""
    u = jax.random.uniform(key, (24,))
    worn = (u[0] < 0.25).astype(jnp.float32)
    eyes = jnp.stack([_middle(vertices, studio.landmarks.surface, s) for s in (slice(36, 42), slice(42, 48))])
    bridge = _middle(vertices, studio.landmarks.surface, slice(27, 28))
    half = jnp.stack([22.0 + 9.0 * u[1], 15.0 + 11.0 * u[2]])
    rim = jnp.where(u[3] < 0.2, 0.4, 0.8 + 2.6 * u[4])
    sign = jnp.asarray([-1.0, 1.0])
    apart = jnp.maximum(jnp.abs(eyes[:, 0] - bridge[0]), half[0] + 5.0)
    depth = jnp.maximum(bridge[2] + 1.0, jnp.mean(eyes[:, 2]) + 12.0) + 3.0 * u[5]
    drop = 1.0 + 7.0 * u[6]
    centres = jnp.stack([bridge[0] + sign * apart, eyes[:, 1] - drop, jnp.full(2, depth - 2.0)], axis=1)
    wrap, pantoscopic = 0.06 + 0.12 * u[7], 0.02 + 0.16 * u[8]
    normals = jnp.stack([sign * jnp.sin(wrap), jnp.full(2, -jnp.sin(pantoscopic)), jnp.full(2, jnp.cos(wrap))], axis=1)
    normals = normals / jnp.linalg.norm(normals, axis=1, keepdims=True)
    sun = u[9] < 0.4
    metal = srgb_to_linear(jnp.asarray([0.72, 0.66, 0.55]) * (0.5 + 0.6 * u[10]))
    frame = jnp.where(u[11] < 0.55, 0.02 * (1 + 2 * u[12]), jnp.where(u[11] < 0.8, metal, dye(u[12:17])))
    tint = dye(u[15:20]) * 0.25
    glasses = Spectacles(
        centres=centres,
        normals=normals,
        half=half,
        power=2.2 + 2.6 * u[17],
        rim=rim,
        frame=jnp.broadcast_to(frame, (3,)),
        glass=jnp.where(sun, tint * 0.5, jnp.asarray([0.7, 0.75, 0.8])),
        opacity=jnp.where(sun, 0.65 + 0.33 * u[18], 0.02 + 0.12 * u[18]),
        shine=jnp.stack(
            [
                0.8 * (2 * u[19] - 1),
                1.6 * (2 * u[20] - 1),
                0.15 + 0.5 * u[21],
                jnp.where(u[22] < 0.4, 0.8 * u[23], 0.05),
            ]
        ),
        worn=worn,
    )
    ears = jnp.stack([_middle(vertices, studio.landmarks.surface, s) for s in (slice(0, 1), slice(16, 17))])
    hinge = centres + jnp.stack([sign * half[0] * 1.02, jnp.full(2, 0.35 * half[1]), jnp.full(2, -2.0)], axis=1)
    behind = ears + jnp.stack([sign * 3.0, jnp.full(2, 12.0), jnp.full(2, -22.0)], axis=1)
    inner = centres + jnp.stack([-sign * half[0] * 0.95, jnp.full(2, 0.15 * half[1]), jnp.full(2, 1.0)], axis=1)
    bars = [_bar(hinge[k], behind[k], 1.0 + 0.6 * rim) for k in range(2)] + [_bar(inner[0], inner[1], 0.5 + 0.5 * rim)]
    place = jnp.concatenate(bars)
    place = jnp.where(worn > 0, place, vertices[studio.hull[0, 0]])
    count = place.shape[0]
    return glasses, Cloth(place, jnp.broadcast_to(glasses.frame, (count, 3)), jnp.zeros((count, 3)), jnp.zeros(count))


def _middle(vertices, surface, which: slice):
    return jnp.mean(jnp.sum(vertices[surface.vertices[which]] * surface.weights[which, :, None], axis=1), axis=0)


def _bar(start: Float[Array, "3"], end: Float[Array, "3"], radius) -> Float[Array, "vertex 3"]:
    """An upright strip from one point to another, ten points."""
    t = jnp.asarray([0.0, 0.25, 0.5, 0.75, 1.0])[:, None]
    line = start + t * (end - start)
    up = jnp.asarray([0.0, 1.0, 0.0])
    return jnp.concatenate([line + radius * up, line - radius * up])


class Paint(NamedTuple):
    """What changes the skin itself."""

    albedo: Float[Array, "vertex 3"]  # linear RGB
    lift: Float[Array, " vertex"]  # mm, along the normals
    gloss: Float[Array, " vertex"]


def paint(studio: Studio, albedo: Float[Array, "vertex 3"], key: Key[Array, ""], colour: Float[Array, "3"]) -> Paint:
    """Beard, moustache, stubble, brows, make-up, flush and blotches, from the model's masks."""
    keys = jax.random.split(key, 4)
    u = jax.random.uniform(keys[0], (36,))
    head = studio.head
    count = len(albedo)
    mask = lambda name: jnp.clip(head.masks.get(name, jnp.zeros(count)), 0.0, 1.0) * studio.skin  # noqa: E731
    mean = head.mean
    grain = jax.random.normal(keys[1], (count,))
    # Smooth blotches: a few waves across the head.
    waves = jax.random.normal(keys[2], (6, 3)) * jnp.asarray([0.02, 0.03, 0.05, 0.08, 0.12, 0.18])[:, None]
    phases = 2 * jnp.pi * jax.random.uniform(keys[3], (6, 3))
    blotch = jnp.stack([jnp.mean(jnp.cos(mean @ waves.T + phases[:, k]), axis=1) for k in range(3)], axis=1)
    tone = 1.0 + 0.12 * u[0] * blotch[:, :1] + 0.05 * blotch * jnp.asarray([0.4, 1.0, 1.0])
    flush = jnp.exp(-(((jnp.abs(mean[:, 0]) - 42) / 18) ** 2) - ((mean[:, 1] + 35) / 18) ** 2) * 0.28 * u[1] ** 2
    coloured = albedo * tone * jnp.stack([jnp.ones(count), 1 - flush, 1 - 0.8 * flush], axis=1)

    def over(below, share, above):
        return below + jnp.clip(share, 0.0, 1.0)[:, None] * (above - below)

    # Beards: the model's mask in windows that make moustaches, goatees and full beards.
    bearded = u[2] < 0.38
    mouth = _middle(mean, studio.landmarks.surface, slice(48, 60))
    nose = _middle(mean, studio.landmarks.surface, slice(33, 34))
    upper = jax.nn.sigmoid((mean[:, 1] - mouth[1]) / 3.0) * jax.nn.sigmoid((38.0 - jnp.abs(mean[:, 0])) / 4.0)
    chin = jax.nn.sigmoid((mouth[1] - mean[:, 1]) / 3.0) * jax.nn.sigmoid((26.0 + 8 * u[3] - jnp.abs(mean[:, 0])) / 3.0)
    sides = jax.nn.sigmoid((jnp.abs(mean[:, 0]) - 30.0) / 3.0)
    window = jnp.clip(
        jnp.where(u[4] < 0.8, upper, 0.0) + jnp.where(u[5] < 0.75, chin, 0.0) + jnp.where(u[6] < 0.55, sides, 0.0),
        0.0,
        1.0,
    )
    under_nose = jax.nn.sigmoid((nose[1] - 2.0 - mean[:, 1]) / 2.0)
    density = jnp.where(u[7] < 0.4, 0.25 + 0.3 * u[8], 0.6 + 0.4 * u[8])
    beard = mask("beard") * window * under_nose * (1.0 - mask("lips"))
    beard = jnp.where(bearded, jnp.clip(density * beard * (1.0 + 0.25 * grain), 0.0, 1.0), 0.0)
    full = jnp.where(bearded & (u[7] >= 0.4), 1.0 + 11.0 * u[9] ** 2, 0.0)
    coloured = over(coloured, beard, colour * (0.7 + 0.6 * u[10]))
    # Brows: from nearly none to thick; the model's own are part of its albedo.
    # They stay dark when hair is fair, grey or dyed.
    brows = jnp.maximum(mask("brows"), u[28] * studio.bushy)
    dark = jnp.where(u[29] < 0.6, jnp.minimum(colour, jnp.asarray([0.06, 0.04, 0.025])), colour)
    coloured = over(coloured, (0.3 + 0.7 * u[11]) * brows * (1 + 0.2 * grain), dark * (0.4 + 0.6 * u[12]))
    # Lips are darker and redder than skin, more or less.
    bare_lips = mask("lips")[:, None] * jnp.asarray([0.12, 0.42, 0.36]) * (0.2 + 0.8 * u[26])
    coloured = coloured * (1.0 - bare_lips)
    # Make-up in some portraits: lips, lids, a dark line at the lashes.
    made_up = u[13] < 0.3
    lips = srgb_to_linear(jnp.stack([0.45 + 0.45 * u[14], 0.08 + 0.35 * u[15], 0.12 + 0.35 * u[16]]))
    coloured = over(coloured, jnp.where(made_up, 0.75 * u[17], 0.15 * u[17] ** 2) * mask("lips"), lips)
    lids = mask("lids")
    shadow = dye(u[18:23])
    coloured = over(coloured, jnp.where(made_up, 0.6 * u[23] ** 2, 0.0) * lids, shadow)
    lashes = jnp.exp(-((jnp.minimum(*(_distance(mean, studio, s) for s in (slice(36, 42), slice(42, 48)))) / 2.5) ** 2))
    coloured = over(coloured, (0.25 + 0.6 * u[24]) * lashes * studio.skin, 0.1 * colour)
    coloured = coloured * (1.0 + studio.teeth[:, None] * (0.5 * u[27] - 0.1))
    gloss = studio.skin * 0.25 * u[25] ** 2 * (1.0 - beard) + 0.8 * studio.eyes + 0.3 * studio.teeth
    return Paint(jnp.clip(coloured, 0.0, 1.0), full * beard * (1.0 + 0.3 * grain), gloss)


def _distance(points, studio: Studio, which: slice):
    """Distance of points to the nearest of some landmarks and of the middles between them."""
    surface = studio.landmarks.surface
    ring = jnp.sum(studio.head.mean[surface.vertices[which]] * surface.weights[which, :, None], axis=1)
    ring = jnp.concatenate([ring, 0.5 * (ring + jnp.roll(ring, 1, axis=0))])
    return jnp.sqrt(jnp.min(jnp.sum((points[:, None] - ring[None]) ** 2, axis=2), axis=1))
