"""Portraits drawn and rendered: from a random key to a network's crop and the truth about it.

Both steps are pure functions of arrays: `draw_portrait` decides everything, `render_portrait` takes the picture. They
compile and batch, so training streams them from the device that trains, and nothing is stored.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fitting.portraits.backdrop import before_the_face, clutter
from fitting.portraits.faults import record
from fitting.portraits.studio import Studio, lit_vertices
from fitting.portraits.wardrobe import (
    WARDROBE_TRIANGLES,
    Spectacles,
    body,
    draw_build,
    hair,
    hat,
    natural_hair_colour,
    paint,
    spectacles,
    with_build,
)
from fitting.synthesis import draw_expression, draw_light
from morphable.mesh import unit, vertex_normals
from morphable.model import MorphableModel
from morphable.uv import interpolate
from renderer.camera import swing_to
from renderer.light import DirectionalLight, direction_from_angles, sh_basis
from renderer.rasterize import barycentrics, rasterize

CROP_FACTOR = 1.5  # side of the network's crop over the larger side of the 68 landmarks' box


@dataclasses.dataclass(frozen=True)
class PortraitSettings:
    """What portraits are drawn from. Angles in degrees to either side."""

    size: int = 128  # px, side of the crop
    samples: int = 2  # rendered pixels for each pixel of the crop, along a side
    yaw: float = 95.0
    pitch: float = 45.0
    roll: float = 60.0
    lens_mm: tuple[float, float] = (25.0, 200.0)  # as on 36 mm film, log-uniform
    shift: float = 0.06  # deviation of the crop's middle, in its sides
    zoom: float = 0.10  # deviation of the logarithm of its size
    rough: float = 0.35  # share of portraits whose crop is as far off as a detector's first box


class Portrait(eqx.Module):
    """Everything that a portrait shows, and the camera that takes it."""

    identity: Float[Array, " identity"]
    expression: Float[Array, " unit"]
    albedo: Float[Array, " albedo"]
    pose: jaxlie.SE3  # T_camera_head, mm
    focal: Float[Array, ""]  # px of the crop
    centre: Float[Array, "2"]  # px of the crop: principal point
    light: Float[Array, "9 3"]
    lamp: DirectionalLight
    keys: Key[Array, " thing"]  # of what is worn, behind and before, and of the camera's faults
    size: int = eqx.field(static=True)
    samples: int = eqx.field(static=True)

    def project(self, points: Float[Array, "point 3"]) -> tuple[Float[Array, "point 2"], Float[Array, " point"]]:
        """Pixels of the crop and depths (mm) of points in head space."""
        seen = points @ self.pose.rotation().as_matrix().T + self.pose.translation()
        return self.focal * seen[:, :2] / seen[:, 2:] + self.centre, seen[:, 2]


class Crop(eqx.Module):
    """A network's input and what it shall say."""

    pixels: Float[Array, "size size 3"]  # sRGB-encoded in [0, 1]
    landmarks: Float[Array, "point 2"]  # px
    visible: Float[Array, " point"]  # 1 where the picture shows the point
    rotation: Float[Array, "3 3"]  # camera from head, as seen along the ray to the crop's middle
    placement: Float[Array, "3"]  # pixel of the head's origin, and there pixels for each mm
    identity: Float[Array, " identity"]
    expression: Float[Array, " unit"]


_THINGS = 8
_HIDDEN_MM = 6.0  # a landmark this far behind what is seen in its place is hidden


def draw_portrait(studio: Studio, key: Key[Array, ""], settings: PortraitSettings) -> Portrait:
    """A random person in a random pose, light and crop. Pure: equal keys give equal portraits."""
    keys = jax.random.split(key, 6)
    head = studio.head
    u = jax.random.uniform(keys[0], (40,))
    n = jax.random.normal(keys[1], (8,))
    spread = 0.8 + 0.5 * u[0]  # some people are nearer to the mean than others
    identity = spread * jax.random.normal(keys[2], (head.shape.rank,))
    albedo = jax.random.normal(jax.random.fold_in(keys[2], 1), (head.albedo.rank,))
    expression = _draw_expression(head, keys[3])
    yaw = jnp.where(u[3] < 0.4, 22.0 * n[0], settings.yaw * (2 * u[4] - 1))
    pitch = jnp.where(u[5] < 0.7, 11.0 * n[1], settings.pitch * (2 * u[6] - 1))
    roll = jnp.where(u[7] < 0.75, 9.0 * n[2], settings.roll * (2 * u[8] - 1))
    yaw, pitch, roll = (
        jnp.deg2rad(jnp.clip(a, -most, most))
        for a, most in ((yaw, settings.yaw), (pitch, settings.pitch), (roll, settings.roll))
    )
    facing = jaxlie.SO3.from_x_radians(jnp.pi)
    turned = jaxlie.SO3.from_z_radians(roll) @ jaxlie.SO3.from_x_radians(pitch) @ jaxlie.SO3.from_y_radians(yaw)
    # Somewhere in the photo: yaw and pitch are from the line of sight, as the picture shows them.
    tangent = 0.3 * u[9] * jnp.stack([jnp.cos(2 * np.pi * u[10]), jnp.sin(2 * np.pi * u[10])])
    ray = jnp.append(tangent, 1.0)
    swing = swing_to(tangent)
    rotation = swing @ facing @ turned
    low, high = np.log(settings.lens_mm)
    share = 0.10 + 0.65 * u[11]  # of the photo's side that the head takes
    distance = jnp.clip(jnp.exp(low + u[12] * (high - low)) * 240.0 / (36.0 * share), 320.0, 8000.0)
    middle = jnp.mean(head.mean[studio.landmarks.surface.vertices[27:36, 0]], axis=0)
    offset = distance * ray / jnp.linalg.norm(ray) - rotation.as_matrix() @ middle
    pose = jaxlie.SE3.from_rotation_and_translation(rotation, offset)
    points = _posed_points(studio, identity, expression)[:68]
    seen = points @ rotation.as_matrix().T + offset
    flat = seen[:, :2] / seen[:, 2:]
    lowest, highest = jnp.min(flat, axis=0), jnp.max(flat, axis=0)
    side = CROP_FACTOR * jnp.max(highest - lowest)
    off = jnp.where(u[13] < settings.rough, 2.2, 1.0)
    zoom = jnp.exp(jnp.clip(settings.zoom * off * n[3], -0.45, 0.45))
    focal = settings.size / (side * zoom)
    shift = settings.size * jnp.clip(settings.shift * off * n[4:6], -0.22, 0.22)
    centre = settings.size / 2 + shift - focal * (lowest + highest) / 2
    # Light: anything but black, with one lamp of its own that casts shadows.
    ambient = jnp.stack([0.08 + 0.2 * u[14], 0.5 + 0.2 * u[14]])
    light = draw_light(keys[4], ambient)
    direction = direction_from_angles(jnp.deg2rad(100.0 * (2 * u[15] - 1)), jnp.deg2rad(85.0 * u[16] - 20.0))
    warmth = jnp.exp(0.5 * (u[17] - 0.5) * jnp.asarray([1.0, 0.0, -1.0]))
    strength = jnp.where(u[18] < 0.7, 1.3 * u[19], 0.0)
    lamp = DirectionalLight(direction, strength * warmth)
    return Portrait(
        identity=identity,
        expression=expression,
        albedo=albedo,
        pose=pose,
        focal=focal,
        centre=centre,
        light=jnp.maximum(1.0 - 0.6 * strength, 0.25) * light,
        lamp=lamp,
        keys=jax.random.split(keys[5], _THINGS),
        size=settings.size,
        samples=settings.samples,
    )


# What people do with their faces before cameras, more often and more strongly than at other times: chance, and lowest
# and highest weights. A unit without its side is meant on both.
_FACES: tuple[tuple[float, dict[str, tuple[float, float]]], ...] = (
    (
        0.30,  # a smile that shows teeth
        {
            "mouthSmile": (0.5, 1.0),
            "mouthUpperUp": (0.1, 0.7),
            "mouthLowerDown": (0.0, 0.6),
            "jawOpen": (0.0, 0.3),
            "cheekSquint": (0.2, 1.0),
            "eyeSquint": (0.0, 0.7),
            "mouthDimple": (0.0, 0.4),
            "browDown": (0.0, 0.4),
        },
    ),
    (
        0.08,  # laughing, shouting
        {
            "jawOpen": (0.5, 1.0),
            "mouthSmile": (0.0, 1.0),
            "mouthUpperUp": (0.2, 0.8),
            "mouthLowerDown": (0.2, 1.0),
            "mouthStretch": (0.0, 0.8),
            "noseSneer": (0.0, 0.6),
            "browDown": (0.0, 0.6),
        },
    ),
    (
        0.10,  # speaking
        {
            "jawOpen": (0.05, 0.4),
            "mouthUpperUp": (0.0, 0.5),
            "mouthLowerDown": (0.0, 0.6),
            "mouthFunnel": (0.0, 0.5),
            "mouthPucker": (0.0, 0.4),
            "mouthStretch": (0.0, 0.3),
        },
    ),
    (0.10, {}),  # nothing, but for the brows
)


def _draw_expression(head: MorphableModel, key: Key[Array, ""]) -> Float[Array, " unit"]:
    """Weights of a face before a camera: half as in other photos, half of the above; brows often down."""
    if head.expression_kind == "components":
        return draw_expression(head, key)
    own_key, key = jax.random.split(key)
    names = head.expression_names
    low, high = (np.zeros((len(_FACES), len(names)), np.float32) for _ in range(2))
    for row, (_, units) in enumerate(_FACES):
        for movement, (least, most) in units.items():
            for name in (movement, movement + "Left", movement + "Right"):
                if name in names:
                    low[row, names.index(name)], high[row, names.index(name)] = least, most
    # Both sides move together: one number for each pair, and a little for each alone.
    left = {n: n.removesuffix("Right") + "Left" for n in names if n.endswith("Right")}
    pair = np.array([names.index(left[n]) if left.get(n) in names else k for k, n in enumerate(names)])
    u = jax.random.uniform(key, (len(names) + 4,))
    together, alone = u[: len(names)][pair], jax.random.uniform(jax.random.fold_in(key, 1), (len(names),))
    share = jnp.clip(together + 0.15 * (alone - 0.5), 0.0, 1.0)
    chosen = jnp.sum(u[-1] > np.cumsum([chance for chance, _ in _FACES]).astype(np.float32))
    usual = draw_expression(head, own_key)
    low, high = (jnp.concatenate([jnp.asarray(v), jnp.zeros((1, len(names)))])[chosen] for v in (low, high))
    # Whatever the mouth does, eyes blink and look about.
    mouth = np.array([n.startswith(("mouth", "jaw", "cheek", "nose", "tongue")) for n in names])
    of_face = jnp.where(mouth, low + (high - low) * share, jnp.maximum(usual, low + (high - low) * share))
    expression = jnp.where(chosen < len(_FACES) - 1, of_face, jnp.where(chosen == len(_FACES) - 1, 0.0, usual))
    raised = np.array([n.startswith(("browInnerUp", "browOuterUp")) for n in names])
    lowered = np.array([n.startswith("browDown") for n in names])
    expression = jnp.where(raised & (u[-2] < 0.4), 0.0, expression)
    expression = jnp.where(lowered & (u[-3] < 0.5), u[-4], expression)
    # Every unit alone, a little.
    little = 0.5 * jnp.maximum(alone - 0.85, 0.0) / 0.15
    expression = expression + jnp.where(u[-3] > 0.7, little, 0.0)
    return head.effective_expression(jnp.clip(expression, 0.0, 1.0))


def _posed_points(studio: Studio, identity, expression) -> Float[Array, "point 3"]:
    """The dense landmarks; all vertices are cheap enough."""
    return studio.landmarks.surface(studio.head.vertices(identity, expression))


class Dressed(eqx.Module):
    """A portrait's people and things as one mesh, in camera axes."""

    points: Float[Array, "vertex 3"]  # mm, camera axes
    triangles: Int[Array, "triangle 3"]
    # What pixels interpolate: depth, normal, albedo, lamp, openness, gloss, strand, pattern.
    table: Float[Array, "vertex 14"]
    glasses: Spectacles
    landmarks: Float[Array, "point 3"]  # mm, camera axes
    skin: Float[Array, "3"]  # colour of the nose, linear RGB


def dress(studio: Studio, portrait: Portrait) -> Dressed:
    """The portrait's head with all that it wears."""
    head, keys = studio.head, portrait.keys
    face = head.vertices(portrait.identity, portrait.expression)
    build = draw_build(jax.random.fold_in(keys[0], 1))
    vertices = with_build(studio, face, build)
    tone = jax.random.uniform(keys[0], (8,))
    hair_colour = natural_hair_colour(tone[:4])
    albedo = head.albedo_linear(portrait.albedo) * jnp.exp(0.5 * (tone[4] - 0.55))
    skin = jnp.mean(albedo[studio.landmarks.surface.vertices[27:36, 0]], axis=0)
    painted = paint(studio, albedo, keys[1], hair_colour)
    surface = vertices + vertex_normals(vertices, head.triangles) * painted.lift[:, None]
    glasses, bars = spectacles(studio, vertices, keys[2])
    cloths = [
        hair(studio, vertices, keys[3], hair_colour),
        hat(studio, vertices, jax.random.fold_in(keys[3], 1)),
        body(vertices, jax.random.fold_in(keys[3], 2), skin, build),
        bars,
    ]
    triangles, start = [studio.triangles], len(surface)
    for cloth, own in zip(cloths, WARDROBE_TRIANGLES, strict=True):
        triangles.append(jnp.asarray(own) + start)
        start += len(cloth.vertices)
    triangles = jnp.concatenate(triangles)
    more = start - len(surface)
    in_camera = lambda p: p @ portrait.pose.rotation().as_matrix().T + portrait.pose.translation()  # noqa: E731
    points = in_camera(jnp.concatenate([surface, *(c.vertices for c in cloths)]))
    lit = lit_vertices(points, triangles, portrait.lamp.direction)
    columns = [
        points[:, 2:],
        vertex_normals(points, triangles),
        jnp.concatenate([painted.albedo, *(c.albedo for c in cloths)]),
        jnp.maximum(lit, jnp.concatenate([0.5 * studio.teeth, jnp.zeros(more)]))[:, None],
        jnp.concatenate([studio.openness, jnp.ones(more)])[:, None],
        jnp.concatenate([painted.gloss, jnp.zeros(more)])[:, None],
        jnp.concatenate([jnp.zeros((len(surface), 3)), *(c.strand for c in cloths)]),
        jnp.concatenate([jnp.zeros(len(surface)), *(c.pattern for c in cloths)])[:, None],
    ]
    return Dressed(
        points=points,
        triangles=triangles,
        table=jnp.concatenate(columns, axis=1),
        glasses=glasses,
        landmarks=in_camera(studio.landmarks.surface(face)),  # the model's, as a fit knows no build
        skin=skin,
    )


class Shot(eqx.Module):
    """What the lens sees, before the camera records it."""

    linear: Float[Array, "size size 3"]
    landmarks: Float[Array, "point 2"]  # px
    visible: Float[Array, " point"]


def shoot(
    studio: Studio, portrait: Portrait, dressed: Dressed, place: Float[Array, "size size 3"] | None = None
) -> Shot:
    """The portrait's picture in linear RGB, and which landmarks it shows.

    `place` is what stands behind, linear RGB; where it is NaN, and without it, that is `clutter`.
    """
    size, keys = portrait.size, portrait.keys
    fine = size * portrait.samples
    on_screen = lambda p: portrait.focal * p[:, :2] / p[:, 2:] + portrait.centre  # noqa: E731
    pixels, depth = portrait.samples * on_screen(dressed.points), dressed.points[:, 2]
    ids = rasterize(pixels, depth, dressed.triangles, fine, fine, cull=False, near=50.0)
    weights = barycentrics(pixels, depth, dressed.triangles, ids)
    found = interpolate(dressed.table, dressed.triangles, ids, weights)
    covered = ids >= 0
    z, normal, colour, lamp_share, openness, gloss, strand, pattern = jnp.split(found, [1, 4, 7, 8, 9, 10, 13], axis=-1)
    z = jnp.where(covered, z[..., 0], jnp.inf)
    normal = unit(normal)
    row, column = jnp.meshgrid(*((jnp.arange(fine) + 0.5) / portrait.samples,) * 2, indexing="ij")
    ray = jnp.stack([column, row], axis=-1)
    ray = jnp.concatenate([(ray - portrait.centre) / portrait.focal, jnp.ones_like(ray[..., :1])], axis=-1)
    towards = -unit(ray)
    # Grids have two sides.
    normal = normal * jnp.where(jnp.sum(normal * towards, axis=-1, keepdims=True) < 0, -1.0, 1.0)
    colour = colour * _textures(keys[4], strand, pattern)
    shading = jnp.maximum(sh_basis(normal) @ portrait.light, 0.02) * (0.35 + 0.65 * openness)
    facing = jnp.maximum(jnp.sum(normal * portrait.lamp.direction, axis=-1, keepdims=True), 0.0)
    halfway = unit(towards + portrait.lamp.direction)
    glance = jnp.maximum(jnp.sum(normal * halfway, axis=-1, keepdims=True), 0.0)
    # Skin has a sheen, eyes a spark, hair a band across its strands. Powers by squaring: 16 and 64.
    broad = glance**16
    # Corner weights may be a little below zero.
    sheen = strand[..., 2:] * 0.25 * jnp.sqrt(jnp.maximum(colour, 0.0)) * broad
    mirror = jnp.where(gloss > 0.5, gloss * broad**4, gloss * broad) + sheen
    direct = portrait.lamp.colour * lamp_share
    linear = colour * (shading + direct * facing) + mirror * (direct * (facing > 0) + 0.15 * shading)
    tone = jax.random.uniform(keys[5], (2,))
    exposure = _exposure(linear, (ids >= 0) & (ids < len(studio.triangles)), tone[0])
    behind_all = clutter(keys[5], size)
    if place is not None:
        behind_all = jnp.where(jnp.isnan(place), behind_all, place)
    behind_all = jnp.repeat(jnp.repeat(behind_all, portrait.samples, axis=0), portrait.samples, axis=1)
    linear = jnp.where(covered[..., None], exposure * linear, behind_all)
    linear, darkened = _with_spectacles(linear, z, ray, dressed.glasses, portrait, exposure)
    linear = linear.reshape(size, portrait.samples, size, portrait.samples, 3).mean(axis=(1, 3))

    landmarks, landmark_depth = on_screen(dressed.landmarks), dressed.landmarks[:, 2]
    px_per_mm = portrait.focal / jnp.mean(landmark_depth)
    lit_skin = dressed.skin * exposure * jnp.maximum(portrait.light[0] * 0.9, 0.05)
    alpha, thing = before_the_face(keys[6], size, jnp.mean(landmarks[:68], axis=0), px_per_mm, lit_skin)
    linear = linear + alpha[..., None] * (thing - linear)

    at = jnp.clip(jnp.floor(landmarks), 0, size - 1).astype(jnp.int32)
    at_fine = jnp.clip(jnp.floor(landmarks * portrait.samples), 0, fine - 1).astype(jnp.int32)
    # The farthest surface around: where it is steep, one pixel is many millimetres deep.
    deep = jnp.where(covered, z, -jnp.inf)
    farthest = jax.lax.reduce_window(deep, -jnp.inf, jax.lax.max, (3, 3), (1, 1), "SAME")
    behind = landmark_depth - farthest[at_fine[:, 1], at_fine[:, 0]]
    inside = jnp.all((landmarks > 0) & (landmarks < size), axis=1)
    uncovered = (alpha[at[:, 1], at[:, 0]] < 0.5) & ~darkened[at_fine[:, 1], at_fine[:, 0]]
    visible = inside & (behind < _HIDDEN_MM) & uncovered
    return Shot(linear, landmarks, visible.astype(jnp.float32))


def render_portrait(studio: Studio, portrait: Portrait) -> Crop:
    """The portrait's picture as a camera and a file give it, and what is where in it."""
    return develop(portrait, shoot(studio, portrait, dress(studio, portrait)))


def develop(portrait: Portrait, shot: Shot) -> Crop:
    """The picture as a camera records it, and the truth."""
    key = portrait.keys[7]
    encoded, cut = _border(record(shot.linear, key), jax.random.fold_in(key, 1))
    at = jnp.clip(jnp.floor(shot.landmarks), 0, portrait.size - 1).astype(jnp.int32)
    middle = (0.5 * portrait.size - portrait.centre) / portrait.focal
    origin = portrait.pose.translation()
    return Crop(
        pixels=encoded,
        landmarks=shot.landmarks,
        visible=shot.visible * (1.0 - cut[at[:, 1], at[:, 0]]),
        rotation=swing_to(middle).inverse().as_matrix() @ portrait.pose.rotation().as_matrix(),
        placement=jnp.append(portrait.focal * origin[:2] / origin[2] + portrait.centre, portrait.focal / origin[2]),
        identity=portrait.identity,
        expression=portrait.expression,
    )


_STRANDS = (512, 24)


def _textures(key, strand, pattern):
    """Factors on the colour: strands of hair, stripes and checks of cloth."""
    strand_key, key = jax.random.split(key)
    fine = jax.random.normal(strand_key, _STRANDS)
    clumps = jax.image.resize(jax.random.normal(key, (64, 4)), _STRANDS, "linear")
    table = jnp.exp(0.35 * fine * 0.8 + 0.3 * clumps)
    u = jax.random.uniform(key, (6,))
    i = jnp.mod(jnp.floor(strand[..., 0] * _STRANDS[0]), _STRANDS[0]).astype(jnp.int32)
    j = jnp.clip(strand[..., 1] * _STRANDS[1], 0, _STRANDS[1] - 1).astype(jnp.int32)
    hairy = 1.0 + strand[..., 2] * (table[i, j] - 1.0)
    stripes = jnp.sign(jnp.sin(strand[..., 0] * 2 * np.pi * jnp.round(6 + 40 * u[0])))
    rings = jnp.sign(jnp.sin(strand[..., 1] * (10 + 80 * u[1])))
    checks = jnp.where(u[2] < 0.3, stripes, jnp.where(u[2] < 0.6, rings, stripes * rings))
    cloth = 1.0 + 0.45 * pattern[..., 0] * checks
    return (hairy * cloth)[..., None]


def _exposure(linear, on_head, number):
    """A factor that brings the mean of the head's pixels to a camera's usual level, more or less."""
    mean = jnp.sum(jnp.where(on_head[..., None], linear, 0.0)) / (3.0 * jnp.maximum(jnp.sum(on_head), 1.0))
    # It takes back four fifths of the difference between dark and light skin.
    return 0.2 * jnp.exp(1.5 * (number - 0.45)) / (jnp.maximum(mean, 1e-3) ** 0.8 * 0.2**0.2)


def _with_spectacles(linear, z, ray, glasses: Spectacles, portrait: Portrait, exposure):
    """The picture through and around two lenses, and where dark glass hides what is behind it."""
    rotation = portrait.pose.rotation().as_matrix()
    level = exposure * jnp.mean(portrait.light[0]) * 0.9

    def through(below, lens):
        centre, normal = lens
        right = rotation @ jnp.stack([normal[2], jnp.zeros(()), -normal[0]])
        right = right / jnp.linalg.norm(right)
        centre, normal = rotation @ centre + portrait.pose.translation(), rotation @ normal
        up = jnp.cross(normal, right)
        along = ray @ normal
        depth = jnp.dot(centre, normal) / jnp.where(jnp.abs(along) < 1e-4, 1e-4, along)
        local = ray * depth[..., None] - centre
        a, b = local @ right, local @ up
        u, v = jnp.abs(a) / glasses.half[0] + 1e-6, jnp.abs(b) / glasses.half[1] + 1e-6
        power = glasses.power
        ring = jnp.exp(jnp.log(jnp.exp(power * jnp.log(u)) + jnp.exp(power * jnp.log(v))) / power)
        inside = (1.0 - ring) * jnp.min(glasses.half)  # mm from the border, about
        before = (depth < z + 2.0) & (depth > 50.0)
        rim = before & (jnp.abs(inside) < glasses.rim)
        glass = before & (inside >= glasses.rim)
        across = a * glasses.shine[0] + b - 10.0 * glasses.shine[1]
        stripe = jnp.exp(-((across / (glasses.half[1] * glasses.shine[2])) ** 2))[..., None]
        shown = glasses.glass * level + glasses.shine[3] * stripe
        share = glasses.opacity + (1 - glasses.opacity) * jnp.clip(glasses.shine[3] * stripe, 0, 0.9)
        seen = jnp.where(glass[..., None], below + share * (shown - below), below)
        seen = jnp.where(rim[..., None], glasses.frame * level * 1.2, seen)
        return seen, glass & (share[..., 0] > 0.6)

    def worn():
        seen, hidden = jax.lax.scan(through, linear, (glasses.centres, glasses.normals))
        return seen, jnp.any(hidden, axis=0)

    return jax.lax.cond(glasses.worn > 0, worn, lambda: (linear, jnp.zeros(z.shape, bool)))


def _border(encoded, key):
    """The photo's end in some crops, black beyond it as in the network's crops, and where that is."""
    size = encoded.shape[0]
    u = jax.random.uniform(key, (4,))
    cut = jnp.where(u[0] < 0.12, size * 0.22 * u[1], 0.0)
    place = jnp.arange(size)
    near, far = place < cut, place >= size - cut
    side = jnp.where(u[2] < 0.5, near, far)
    beyond = jnp.where(u[3] < 0.5, side[:, None], side[None])
    beyond = jnp.broadcast_to(beyond, (size, size))
    return jnp.where(beyond[..., None], 0.0, encoded), beyond.astype(jnp.float32)
