"""Photos whose truth is known: random people, expressions, cameras and lights, drawn from the model and rendered.

A photo is made in three steps, and the first two are pure functions of arrays that compile and batch:
`draw_scene` draws everything the picture depends on from a random key, `render_scene` renders it, and `synthesize` adds
on the CPU what a file has besides: occluders, eight bits, JPEG. A network's training can stream the first two.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8
from PIL import Image

from fitting.compilation import compiled
from fitting.detection import Face, LandmarkNoise
from fitting.observation import Photo, write_landmarks
from fitting.parameters import FaceParameters, start_parameters
from fitting.skin_appearance import Skin, SkinMaps, draw_skin, skin_maps, textures
from fitting.skin_relief import Relief
from morphable.colour import linear_to_srgb, srgb_to_linear
from morphable.landmarks import JAW, ContourFans
from morphable.mesh import Mesh
from morphable.model import MorphableModel
from renderer.camera import Pinhole, swing_to
from renderer.light import DirectionalLight, ambient_light, direction_from_angles, sh_basis
from renderer.render import render

Picture = UInt8[np.ndarray, "height width 3"]  # sRGB-encoded
Mask = Bool[np.ndarray, "height width"]
Range = tuple[float, float]

_FILM_MM = 36.0  # width of the picture to which focal lengths of lenses are quoted
_BLUR_REACH = 8  # px; of the blur's kernel, to either side
_HIDDEN_MM = 4.0  # a landmark this far behind what is seen in its place is hidden
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear RGB (ITU-R BT.709)


class SynthesisError(ValueError):
    """Settings that cannot be drawn from: what, got, expected, remedy."""


@dataclasses.dataclass(frozen=True)
class SynthesisSettings:
    """What is drawn from. Ranges are uniform, or log-uniform where noted; angles in degrees to either side."""

    size: int = 512  # px, side of the square photo
    yaw: float = 40.0
    pitch: float = 15.0
    roll: float = 15.0
    expression: float = 1.0  # factor on the weights: 0 leaves every face neutral
    lens_mm: Range = (24.0, 200.0)  # as on 36 mm film, log-uniform
    head_share: Range = (0.5, 0.8)  # of the photo's side, of what lies above the chin
    nearest_mm: float = 400.0  # between camera and head; a wide lens then shows it smaller
    off_centre: float = 0.0  # of the principal point along u and v, in sizes of the photo, as after a crop
    detail: float = 0.0  # strength of wrinkles, pores and spots: 0 none, 1 as on people; with them true lamps and gloss
    occluded: float = 0.0  # share of photos in which something covers a part of the face
    noise: float = 0.02  # largest deviation of a white pixel's linear value; darker ones have less
    blur_px: float = 0.8  # largest deviation of the Gaussian blur
    jpeg_quality: tuple[int, int] | None = (80, 97)  # None for no compression

    def __post_init__(self):
        for name, (least, most) in _LIMITS.items():
            values = np.atleast_1d(getattr(self, name))
            if not (np.isfinite(values).all() and (values >= least).all() and (values <= most).all()):
                raise SynthesisError(
                    f"{name}: got {getattr(self, name)}, expected {least:g} to {most:g}. Leave it out for the default."
                )
        for name in ("lens_mm", "head_share", "jpeg_quality"):
            given = getattr(self, name)
            if given is not None and given[0] > given[1]:
                raise SynthesisError(f"{name}: got {given}, expected the lower limit first. Exchange them.")

    @classmethod
    def clean(cls, **changes) -> "SynthesisSettings":
        """A perfect camera: no noise, no blur, no compression."""
        return cls(**{"noise": 0.0, "blur_px": 0.0, "jpeg_quality": None, **changes})


_LIMITS = {
    "size": (32, 8192),
    "yaw": (0, 90),
    "pitch": (0, 60),
    "roll": (0, 180),
    "expression": (0, 1),
    "lens_mm": (10, 2000),
    "head_share": (0.05, 1),
    "nearest_mm": (200, 1e5),
    "off_centre": (0, 10),
    "detail": (0, 3),
    "occluded": (0, 1),
    "noise": (0, 0.5),
    "blur_px": (0, _BLUR_REACH / 3),
}


class Background(eqx.Module):
    """A picture made of a gradient, waves of all sizes, soft discs and stripes; linear RGB, lengths in sides."""

    gradient: Float[Array, "2 3"]  # colours of its two ends
    direction: Float[Array, "2"]
    wave_colour: Float[Array, "3"]
    waves: Float[Array, "wave 4"]  # frequencies along u and v, phase, amplitude
    disc_colours: Float[Array, "disc 3"]
    discs: Float[Array, "disc 5"]  # u, v, radius, width of the soft edge, opacity
    stripe_colour: Float[Array, "3"]
    stripes: Float[Array, "4"]  # frequencies along u and v, phase, opacity

    def picture(self, height: int, width: int) -> Float[Array, "{height} {width} 3"]:
        """The background by itself."""
        side = max(height, width)
        v, u = jnp.meshgrid((jnp.arange(height) + 0.5) / side, (jnp.arange(width) + 0.5) / side, indexing="ij")
        along = jnp.clip(0.5 + (u - 0.5) * self.direction[0] + (v - 0.5) * self.direction[1], 0.0, 1.0)
        colour = _mix(self.gradient[0], self.gradient[1], along)

        def add(total, wave):
            return total + wave[3] * jnp.cos(2 * jnp.pi * (wave[0] * u + wave[1] * v) + wave[2]), None

        height_map = jax.lax.scan(add, jnp.zeros((height, width)), self.waves)[0]
        colour = _mix(colour, self.wave_colour, jnp.clip(height_map, 0.0, 1.0))

        def cover(below, disc):
            (x, y, radius, edge, opacity), tint = disc
            inside = jax.nn.sigmoid((radius - jnp.sqrt((u - x) ** 2 + (v - y) ** 2 + 1e-12)) / edge)
            return _mix(below, tint, opacity * inside), None

        colour = jax.lax.scan(cover, colour, (self.discs, self.disc_colours))[0]
        wave = jnp.sin(2 * jnp.pi * (self.stripes[0] * u + self.stripes[1] * v) + self.stripes[2])
        return _mix(colour, self.stripe_colour, self.stripes[3] * jax.nn.sigmoid(8.0 * wave))


def _mix(below, above, share):
    """Colours blended by a share for each pixel; one colour or a picture of them."""
    below, above = (jnp.broadcast_to(c, (*share.shape, 3)) for c in (below, above))
    return below + share[..., None] * (above - below)


class Scene(eqx.Module):
    """Everything that a photo shows, and the camera that takes it."""

    face: FaceParameters  # log_focal in pixels of the photo
    centre: Float[Array, "2"]  # px, the principal point
    background: Background
    noise: Float[Array, ""]  # deviation of a white pixel's linear value
    blur_px: Float[Array, ""]
    grain: Key[Array, ""]  # of the sensor's noise
    size: int = eqx.field(static=True)
    skin: Skin | None = None  # of a photo with detail
    lamp: DirectionalLight | None = None  # a part of the face's light that casts shadows; may be black

    @property
    def relief(self) -> Relief | None:
        """What displaces the head's surface."""
        return None if self.skin is None else self.skin.relief

    @property
    def camera(self) -> Pinhole:
        """The photo's camera, with the pose of the head."""
        focal = jnp.exp(self.face.log_focal)
        return Pinhole(jnp.stack([focal, focal]), self.centre, self.face.pose, self.size, self.size)


class View(eqx.Module):
    """A scene as a perfect camera sees it, and its truth."""

    linear: Float[Array, "height width 3"]
    face: Bool[Array, "height width"]  # skin of the face, eyes, mouth; no scalp, ears or neck
    head: Bool[Array, "height width"]
    landmarks: Float[Array, "68 2"]  # px, of fixed points of the surface: the model's `landmarks`
    hidden: Bool[Array, "68"]  # behind another part of the head
    outline: Float[Array, "17 2"]  # px, the outermost point of each jaw landmark's path; the landmark, without paths
    vertices: Float[Array, "vertex 3"]  # mm, head space


# ---------------------------------------------------------------------------------------------------- drawing

# Groups of which each photo shows one entry, or nothing: chance, and weights at full strength. A name without its
# side means both, which move together up to a small difference; except where `_YOKED` they may also move alone.
_REPERTOIRE: dict[str, tuple[tuple[float, dict[str, float]], ...]] = {
    "brows": (
        (0.12, {"browDown": 1.0}),
        (0.12, {"browInnerUp": 1.0}),
        (0.10, {"browOuterUp": 1.0}),
        (0.14, {"browInnerUp": 1.0, "browOuterUp": 1.0}),
    ),
    "lids": ((0.20, {"eyeSquint": 1.0}), (0.12, {"eyeWide": 1.0}), (0.10, {"eyeBlink": 1.0})),
    "gaze across": (
        (0.3, {"eyeLookOutLeft": 0.7, "eyeLookInRight": 0.7}),
        (0.3, {"eyeLookInLeft": 0.7, "eyeLookOutRight": 0.7}),
    ),
    "gaze along": ((0.2, {"eyeLookUp": 0.5}), (0.25, {"eyeLookDown": 0.7})),
    "mouth": (
        (0.25, {"mouthSmile": 1.0, "cheekSquint": 0.5, "mouthDimple": 0.3}),
        (0.07, {"mouthFrown": 1.0}),
        (0.06, {"mouthPucker": 1.0}),
        (0.06, {"mouthFunnel": 1.0}),
        (0.06, {"mouthPress": 1.0}),
        (0.05, {"mouthStretch": 1.0}),
        (0.10, {"mouthUpperUp": 0.8, "mouthLowerDown": 0.8}),
        (0.04, {"mouthRollLower": 0.8, "mouthRollUpper": 0.8}),
        (0.04, {"mouthShrugLower": 1.0, "mouthShrugUpper": 1.0}),
        (0.03, {"mouthLeft": 0.8}),
        (0.03, {"mouthRight": 0.8}),
    ),
    "jaw": (
        (0.36, {"jawOpen": 0.8}),
        (0.06, {"jawOpen": 0.5, "mouthClose": 0.3}),
        (0.03, {"jawForward": 1.0}),
        (0.03, {"jawLeft": 1.0}),
        (0.03, {"jawRight": 1.0}),
    ),
    "cheeks and nose": ((0.05, {"cheekPuff": 0.8}), (0.08, {"noseSneer": 0.8})),
}
_YOKED = ("gaze across", "gaze along")
_ALONE = 0.1  # chance that a paired movement shows on one side only


def draw_expression(model: MorphableModel, key: Key[Array, ""]) -> Float[Array, " unit"]:
    """Weights in [0, 1] of a face among people: a few units of 52 active, the sides mostly paired.

    Of a model whose expressions are principal components, a draw from their distribution.
    """
    names = model.expression_names
    if model.expression_kind == "components":
        return jnp.clip(jax.random.normal(key, (len(names),)), *model.expression_limits)
    left = np.array([name.endswith("Left") for name in names])
    right = np.array([name.endswith("Right") for name in names])
    total = jnp.zeros(len(names))
    # One call for all random numbers: compiling the generator is most of what this costs.
    for entries, numbers, yoked in zip(
        _REPERTOIRE.values(),
        jax.random.uniform(key, (len(_REPERTOIRE), 5)),
        [group in _YOKED for group in _REPERTOIRE],
        strict=True,
    ):
        choice, strength, which, alone, weaker = numbers
        rows = np.zeros((len(entries) + 1, len(names)), np.float32)  # the last for nothing
        for row, (_, units) in zip(rows, entries, strict=False):
            for unit, weight in units.items():
                for name in (unit, unit + "Left", unit + "Right"):
                    if name in names:  # other models have other units
                        row[names.index(name)] = weight
        index = jnp.sum(choice > np.cumsum([chance for chance, _ in entries]).astype(np.float32))
        chosen = (0.15 + 0.85 * strength**1.5) * jnp.asarray(rows)[index]
        if not yoked:
            less = jnp.where(alone < _ALONE, 0.0, 0.75 + 0.25 * weaker)
            chosen = chosen * jnp.where(jnp.where(which < 0.5, left, right), less, 1.0)
        total = total + chosen
    return model.effective_expression(jnp.clip(total, 0.0, 1.0))


_AMBIENT = (0.2, 0.6)  # share of the light: from least to most
# In photos with detail. Under facefit's fits of real ones a slope changes the brightness by 0.59 of itself (median of
# thirteen, 0.3 to 1 within a face), in random ones with the shares above by 0.42.
_AMBIENT_WITH_DETAIL = (0.1, 0.4)


def draw_light(key: Key[Array, ""], ambient: tuple[float, float] | Float[Array, "2"] = _AMBIENT) -> Float[Array, "9 3"]:
    """Ambient light and one to three lamps in front of the face, each with its colour; 1 where all of them add up.

    The ambient light, of a random share between two, keeps the harmonics positive for every normal, although a lamp's
    own bands 0 to 2 are not.
    """
    least, most = ambient
    ambient, share, lamps = _draw_lamps(key, least, most)
    return ambient_light(ambient) + (1.0 - share) * jnp.sum(jax.vmap(lambda lamp: lamp.harmonics())(lamps), axis=0)


def _draw_lamps(key: Key[Array, ""], least, most) -> tuple[Float[Array, "3"], Float[Array, ""], DirectionalLight]:
    """The ambient light's colour, its share, and three lamps (stacked) that add up to 1 before they get the rest."""
    numbers = jax.random.uniform(key, (17,))
    share = least + (most - least) * numbers[0]  # of the ambient light
    # The first lamp stands in front; the others, not always there, may stand anywhere but behind.
    azimuth = jnp.deg2rad(jnp.array([70.0, 110.0, 110.0]) * (2 * numbers[1:4] - 1))
    elevation = jnp.deg2rad(90.0 * numbers[4:7] - 20.0)
    strength = numbers[7:13].reshape(3, 2)  # one column decides whether, the other how much
    present = strength[:, 0] < jnp.array([1.1, 0.6, 0.3])
    strength = jnp.where(present, jnp.array([1.0, 0.7, 0.7]) * (0.3 + 0.7 * strength[:, 1]), 0.0)
    strength = strength / jnp.sum(strength)
    warmth = 0.4 * (numbers[13:17, None] - 0.5)
    casts = jnp.exp(warmth * jnp.array([[0.5, 0.0, -0.7]]))
    lamps = jax.vmap(lambda a, e, c: DirectionalLight(direction_from_angles(a, e), c))(
        azimuth, elevation, strength[:, None] * casts[:3]
    )
    return share * casts[3], share, lamps


@jax.jit
def _draw_lamp(light_key: Key[Array, ""], key: Key[Array, ""], light: Float[Array, "9 3"]) -> DirectionalLight:
    """Of a drawn and exposed light's strongest lamp what comes from one point; the rest comes from around it.

    In three of ten photos that is nothing.
    """
    _, share, lamps = _draw_lamps(light_key, *_AMBIENT_WITH_DETAIL)
    exposure = light[0, 0] / draw_light(light_key, _AMBIENT_WITH_DETAIL)[0, 0]
    strongest = jnp.argmax(jnp.sum(lamps.colour, axis=1))
    colour = exposure * (1.0 - share) * lamps.colour[strongest]
    chance, hardness = jax.random.uniform(key, (2,))
    return DirectionalLight(lamps.direction[strongest], jnp.where(chance < 0.7, 0.35 + 0.65 * hardness, 0.0) * colour)


@jax.jit
def draw_background(key: Key[Array, ""]) -> Background:
    """Any mixture of gradient, waves, discs and stripes, from plain walls to clutter."""
    colour_key, wave_key, disc_key, key = jax.random.split(key, 4)
    vivid = jax.random.uniform(colour_key, (12, 4))
    grey = jnp.mean(vivid[:, :3], axis=1, keepdims=True)
    colours = srgb_to_linear(grey + 0.7 * vivid[:, 3:] * (vivid[:, :3] - grey))
    loudness, angle, reach, stripe_way, frequency, phase = jnp.split(jax.random.uniform(key, (8,)), [3, 4, 5, 6, 7])
    wave = jax.random.uniform(wave_key, (24, 3))
    octave, way = jnp.exp2(6.0 * wave[:, 0]), 2 * jnp.pi * wave[:, 1:]
    # Amplitudes that fall with the frequency look like any scene out of focus.
    amplitude = 1.5 * jnp.maximum(loudness[0] - 0.3, 0.0) / jnp.sqrt(octave)
    disc = jax.random.uniform(disc_key, (8, 5))
    opacity = jnp.where(disc[:, 4] < loudness[1] - 0.3, 0.3 + 0.7 * disc[:, 3], 0.0)
    scale = jnp.array([1.0, 1.0, 0.3, 0.03, 0.0])
    least = jnp.array([0.0, 0.0, 0.03, 0.002, 0.0])
    towards = lambda a: jnp.stack([jnp.cos(a), jnp.sin(a)], axis=-1)  # noqa: E731
    return Background(
        gradient=colours[:2],
        direction=(reach[:, None] * towards(2 * jnp.pi * angle))[0],
        wave_colour=colours[2],
        waves=jnp.concatenate([octave[:, None] * towards(way[:, 0]), way[:, 1:], amplitude[:, None]], axis=1),
        disc_colours=colours[3:11],
        discs=(least + scale * disc).at[:, 4].set(opacity),
        stripe_colour=colours[11],
        stripes=jnp.concatenate(
            [
                (jnp.exp2(4.0 * frequency)[:, None] * towards(2 * jnp.pi * stripe_way))[0],
                2 * jnp.pi * phase,
                jnp.where(loudness[2:] < 0.2, 0.6, 0.0),
            ]
        ),
    )


def draw_scene(
    model: MorphableModel, key: Key[Array, ""], settings: SynthesisSettings, maps: SkinMaps | None = None
) -> Scene:
    """A random person, expression, pose, camera, light and background. Pure: equal keys give equal scenes.

    With detail, on the model's skin `maps`; without them they are made (and kept), for a model that is no tracer.
    """
    names = ("yaw", "pitch", "roll", "expression", "lens_mm", "head_share", "nearest_mm", "off_centre", "noise")
    # As arrays, so that other settings are no other program.
    numbers = {name: jnp.asarray(getattr(settings, name), jnp.float32) for name in (*names, "blur_px", "size")}
    numbers["ambient"] = jnp.asarray(_AMBIENT if settings.detail == 0 else _AMBIENT_WITH_DETAIL, jnp.float32)
    face_key, background_key = jax.random.split(key)
    face, centre, noise, blur_px, grain = _draw(model, face_key, numbers)
    scene = Scene(face, centre, draw_background(background_key), noise, blur_px, grain, settings.size)
    if settings.detail == 0:
        return scene
    # Keys of its own: what was drawn so far is the same with detail and without, but for the share of ambient light.
    skin_key, lamp_key = jax.random.split(jax.random.fold_in(key, 1))
    maps = skin_maps(model) if maps is None else maps
    skin = draw_skin(maps, skin_key, jnp.asarray(settings.detail, jnp.float32))
    lamp = _draw_lamp(jax.random.split(face_key, _FACE_KEYS)[_LIGHT_KEY], lamp_key, face.light)
    return dataclasses.replace(scene, skin=skin, lamp=lamp)


_FACE_KEYS, _LIGHT_KEY = 6, 4


@eqx.filter_jit
def _draw(model: MorphableModel, key: Key[Array, ""], settings: dict[str, Array]):
    """A scene's face, principal point, noise, blur and grain."""
    keys = jax.random.split(key, _FACE_KEYS)
    identity = jax.random.normal(keys[0], (model.shape.rank,))
    albedo = jax.random.normal(keys[1], (model.albedo.rank,))
    expression = settings["expression"] * draw_expression(model, keys[2])
    # lens, principal point (2), yaw, pitch, roll, share, place (2), exposure, noise, blur
    numbers = jax.random.uniform(keys[3], (12,))
    low, high = jnp.log(settings["lens_mm"])
    size = settings["size"]
    focal = jnp.exp(low + numbers[0] * (high - low)) * size / _FILM_MM
    centre = size * (0.5 + settings["off_centre"] * (2 * numbers[1:3] - 1))
    mesh = Mesh(model.vertices(identity, expression), solid(model), albedo=model.albedo_linear(albedo))
    pose = _posed(model, mesh.vertices, numbers[3:9], focal, centre, settings)
    light = draw_light(keys[_LIGHT_KEY], settings["ambient"])
    face = dataclasses.replace(
        start_parameters(
            model.shape.rank, len(model.expression_names), model.albedo.rank, jnp.asarray(model.expression_limits)
        ),
        identity=identity,
        expression=expression,
        albedo=albedo,
        light=light * _exposure(model, mesh, pose, light, 0.35 * (2 * numbers[9] - 1)),
        pose=pose,
        log_focal=jnp.log(focal),
    )
    return face, centre, settings["noise"] * (0.2 + 0.8 * numbers[10]), settings["blur_px"] * numbers[11], keys[5]


def _posed(model, vertices, numbers, focal, centre, settings) -> jaxlie.SE3:
    """A pose that shows the head, what lies above its chin, at the drawn size and somewhere inside the picture."""
    reach = jnp.deg2rad(jnp.stack([settings["yaw"], settings["pitch"], settings["roll"]]))
    yaw, pitch, roll = reach * (2 * numbers[:3] - 1)
    facing = jaxlie.SO3.from_x_radians(jnp.pi)  # head axes (y up, z to the viewer) to OpenCV's
    turned = jaxlie.SO3.from_z_radians(roll) @ jaxlie.SO3.from_x_radians(pitch) @ jaxlie.SO3.from_y_radians(yaw)
    rotation = facing @ turned
    above = (model.mean[:, 1] > model.landmarks(model.mean)[8, 1])[:, None]
    seen = vertices @ rotation.as_matrix().T
    low = jnp.min(jnp.where(above, seen, jnp.inf), axis=0)
    high = jnp.max(jnp.where(above, seen, -jnp.inf), axis=0)
    least, most = settings["head_share"]
    size, extent = settings["size"], jnp.max((high - low)[:2])
    # Where the head is nearest it looks largest: there it has the drawn size, so all of it is inside.
    depth = jnp.maximum(focal * extent / ((least + numbers[3] * (most - least)) * size), settings["nearest_mm"])
    spare = 0.5 * (size - focal * extent / depth)
    place = 0.5 * size + 0.95 * spare * (2 * numbers[4:6] - 1)
    ray = jnp.append((place - centre) / focal, 1.0)
    # Yaw and pitch are what the photo shows: from the line of sight, not from the camera's axis.
    swing = swing_to(ray[:2])
    middle = (low + high) / 2
    offset = (depth + middle[2] - low[2]) * ray - swing @ middle
    return jaxlie.SE3.from_rotation_and_translation(swing @ rotation, offset)


def _exposure(model, mesh, pose, light, deviation):
    """The factor on the light that a camera's automatic exposure would choose, off by a deviation of its logarithm."""
    rotation = pose.rotation().as_matrix()
    normals = mesh.normals @ rotation.T
    towards = -(mesh.vertices @ rotation.T + pose.translation()[None])
    facing = jnp.sum(normals * towards, axis=1) / jnp.linalg.norm(towards, axis=1)
    weight = model.masks.get("face", jnp.ones(len(facing))) * jnp.maximum(facing, 0.0)
    colour = mesh.albedo * jnp.maximum(sh_basis(normals) @ light, 0.0)
    luminance = jnp.asarray(_LUMINANCE, colour.dtype)
    mean = lambda values: jnp.sum(weight * (values @ luminance)) / jnp.sum(weight)  # noqa: E731
    usual = mean(model.albedo_linear(jnp.zeros(model.albedo.rank)))
    # Exposure takes back half of the difference between dark and light skin.
    level = 0.27 * jnp.sqrt(mean(mesh.albedo) / usual) * jnp.exp(deviation)
    bright = jnp.nanquantile(jnp.where(weight > 0.1, jnp.max(colour, axis=1), jnp.nan), 0.98)
    return jnp.minimum(level / mean(colour), 0.85 / bright)


# -------------------------------------------------------------------------------------------------- rendering


def solid(model: MorphableModel) -> Array:
    """The model's triangles, the lashes' shrunk to a point each: drawn opaque they look like thick paint."""
    lashes = [i for i, name in enumerate(model.part_names) if name.startswith("lashes")]
    drop = jnp.isin(model.part_of_vertex[model.triangles[:, 0]], jnp.asarray(lashes, jnp.int32))
    return jnp.where(drop[:, None], 0, model.triangles)


def render_scene(model: MorphableModel, scene: Scene, maps: SkinMaps | None = None) -> View:
    """The scene without blur and noise, four samples a pixel, and which pixel and landmark shows what.

    A scene with detail needs the skin `maps` it was drawn with; without them those of `skin_maps(model)` are taken.
    """
    if scene.skin is not None and maps is None:
        maps = skin_maps(model)
    return _render_scene(model, scene, maps)


@compiled
def _render_scene(model: MorphableModel, scene: Scene, maps: SkinMaps | None) -> View:
    face, camera = scene.face, scene.camera
    vertices = model.vertices(face.identity, face.expression)
    mesh = Mesh(vertices, solid(model), albedo=model.albedo_linear(face.albedo))
    if scene.skin is None or scene.lamp is None or maps is None:
        picture = render(mesh, camera, face.light, samples=2)
    else:
        head = Mesh(vertices, model.triangles, model.uv, mesh.albedo)
        colours, normals = textures(maps, scene.skin, head, model.effective_expression(face.expression))
        picture = render(
            Mesh(vertices, mesh.triangles, model.uv),
            camera,
            face.light - scene.lamp.harmonics(),
            texture=colours,
            samples=2,
            lamp=scene.lamp,
            gloss=scene.skin.gloss,
            normal_map=normals,
        )
    background = scene.background.picture(scene.size, scene.size)

    inside = jnp.maximum(
        model.masks.get("face", jnp.ones(len(vertices))), model.masks.get("interior", jnp.zeros(len(vertices)))
    )
    if "skin" in model.part_names:
        inside = jnp.where(model.part_of_vertex == model.part_names.index("skin"), inside, 1.0)
    shown = picture.interpolate(inside[:, None], mesh.triangles)[..., 0] > 0.5

    points = model.landmarks(vertices)
    landmarks = camera.project(points)
    # The farthest surface around a landmark: where it is steep, one pixel is many millimetres deep.
    depth = jnp.where(jnp.isfinite(picture.depth), picture.depth, -jnp.inf)
    around = jax.lax.reduce_window(depth, -jnp.inf, jax.lax.max, (3, 3), (1, 1), "SAME")
    column, row = jnp.clip(jnp.floor(landmarks), 0, scene.size - 1).astype(jnp.int32).T
    behind = camera.to_camera(points)[:, 2] - around[row, column]
    outline = landmarks[JAW]
    if model.contour is not None:
        fans = model.contour.points(vertices)
        paths = camera.project(fans.reshape(-1, 3)).reshape(*fans.shape[:2], 2)
        outline = paths[jnp.arange(len(paths)), ContourFans.outermost(paths, camera.rotation)]
    return View(
        linear=picture.over(background),
        face=shown & (picture.triangle_ids >= 0),
        head=picture.triangle_ids >= 0,
        landmarks=landmarks,
        hidden=jnp.isfinite(behind) & (behind > _HIDDEN_MM),
        outline=outline,
        vertices=vertices,
    )


@eqx.filter_jit
def expose(scene: Scene, linear: Float[Array, "height width 3"]) -> Float[Array, "height width 3"]:
    """What the scene's camera records of a linear picture, sRGB-encoded in [0, 1]: blurred and with its noise.

    The variance grows with the light, as photons are counted, over a floor of a twentieth of white's.
    """
    taps = jnp.arange(-_BLUR_REACH, _BLUR_REACH + 1.0)
    kernel = jnp.exp(-0.5 * (taps / jnp.maximum(scene.blur_px, 0.01)) ** 2)
    kernel = kernel / jnp.sum(kernel)
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (_BLUR_REACH, _BLUR_REACH)
        wide, length = jnp.pad(linear, pad, mode="edge"), linear.shape[axis]
        linear = jnp.zeros_like(linear)
        for k, weight in enumerate(kernel):
            linear = linear + weight * jax.lax.slice_in_dim(wide, k, k + length, axis=axis)
    grain = jax.random.normal(scene.grain, linear.shape)
    linear = linear + scene.noise * jnp.sqrt(jnp.maximum(linear, 0.0) + 0.05) * grain
    return linear_to_srgb(jnp.clip(linear, 0.0, 1.0))


# ----------------------------------------------------------------------------------------------------- photos


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticPhoto:
    """A photo and its truth. Pixels with centres at +0.5; lengths in mm, head space."""

    photo: Photo
    scene: Scene
    vertices: Float[np.ndarray, "vertex 3"]
    landmarks3d: Float[np.ndarray, "68 3"]  # the model's, as a fit has them
    landmarks: Float[np.ndarray, "68 2"]  # as detectors have them, of fixed points of the surface
    outline: Float[np.ndarray, "17 2"]  # outermost points of the jaw landmarks' paths in this view
    hidden: Bool[np.ndarray, "68"]  # behind another part of the head
    head_mask: Mask  # the head, as if nothing covered it
    face_mask: Mask  # of it the face with eyes and mouth, without scalp, ears and neck
    occluder_mask: Mask  # what covers either
    occluder: str  # its kind, "" for none

    @property
    def truth(self) -> FaceParameters:
        """What a fit should find; log_focal in pixels of this photo."""
        return self.scene.face

    @property
    def camera(self) -> Pinhole:
        """With its pose T_camera_head."""
        return self.scene.camera

    @property
    def landmarks2d(self) -> Float[np.ndarray, "68 2"]:
        """`landmarks3d` in this photo, hidden ones, too."""
        return np.asarray(self.camera.project(jnp.asarray(self.landmarks3d)), float)

    @property
    def relief(self) -> dict[str, Any]:
        """The true relief on a map of half the size it was drawn at, empty without detail; docs/synthesis.md has more.

        `displacement` (mm) as the face moves in the photo, `relief_static` at rest, and `wrinkle_mask`.
        """
        relief = self.scene.relief
        if relief is None:
            return {}
        moved = relief.displacement(self.truth.expression)
        maps = np.stack([np.asarray(m, np.float32) for m in (moved, relief.static, relief.wrinkle_mask)])
        half = maps.shape[1] // 2
        means = maps.reshape(3, half, 2, half, 2).mean(axis=(2, 4))
        displacement, static, mask = means.astype(np.float16)
        return {"displacement": displacement, "relief_static": static, "wrinkle_mask": mask >= 0.5}

    @property
    def visible(self) -> Bool[np.ndarray, "68"]:
        """Which of `landmarks` the photo shows: inside it, and behind neither the head nor an occluder."""
        column, row = np.floor(self.landmarks).astype(int).T
        height, width = self.occluder_mask.shape
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        covered = self.occluder_mask[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
        return inside & ~self.hidden & ~covered

    @property
    def marked(self) -> Float[np.ndarray, "68 2"]:
        """Landmarks as one would mark them by hand: NaN where not visible, but jaw points that the head itself hides
        lie on its outline."""
        points = np.where(self.visible[:, None], self.landmarks, np.nan)
        points[JAW] = np.where(self.hidden[JAW, None], self.outline, points[JAW])
        return points

    def as_face(self, noise_px: float = 0.0, seed: int = 0) -> Face:
        """The face as `Fitter.fit` takes it, its marked landmarks moved by noise of this deviation in u and in v."""
        moved = self.marked + noise_px * np.random.default_rng(seed).normal(size=(68, 2))
        # Marked by the model's own convention, so nothing but the noise is wrong.
        return Face.from_landmarks(moved, self.photo, LandmarkNoise(inner_mm=2.0, jaw_mm=2.0))


def synthesize(
    model: MorphableModel,
    seed: int,
    settings: SynthesisSettings | None = None,
    person: Scene | None = None,
    maps: SkinMaps | None = None,
) -> SyntheticPhoto:
    """Photo number `seed` of an endless album; the same seed and settings give the same bytes.

    With `person` it shows the one of another photo's scene, through the same lens; with the same skin, where the
    settings ask for detail. Other `maps` than `skin_maps(model)` give detail of another size.
    """
    settings = SynthesisSettings() if settings is None else settings
    scene = draw_scene(model, jax.random.key(seed), settings, maps)
    if person is not None:
        who, place = person.face, scene.face.pose.translation()
        # The pose was drawn for another lens: at the depth where the head is as large in the picture.
        place = place * jnp.array([1.0, 1.0, jnp.exp(who.log_focal - scene.face.log_focal)])
        pose = jaxlie.SE3.from_rotation_and_translation(scene.face.pose.rotation(), place)
        face = dataclasses.replace(
            scene.face, identity=who.identity, albedo=who.albedo, log_focal=who.log_focal, pose=pose
        )
        scene = dataclasses.replace(scene, face=face, skin=None if scene.skin is None else person.skin)
    view = render_scene(model, scene, maps)
    rng = np.random.default_rng(seed)
    landmarks = np.asarray(view.landmarks)
    linear, kind, mask = view.linear, "", np.zeros((scene.size, scene.size), bool)
    if rng.random() < settings.occluded:
        from fitting.occluders import KINDS, paint_occluder

        kind = KINDS[rng.integers(len(KINDS))]
        before = _eight_bits(linear_to_srgb(jnp.clip(linear, 0.0, 1.0)))
        after, mask = paint_occluder(before, landmarks, kind, seed)
        painted = (after != before).any(axis=2, keepdims=True)  # more than the mask: its soft edge, too
        linear = jnp.where(painted, srgb_to_linear(jnp.asarray(after, jnp.float32) / 255), linear)
    pixels = _eight_bits(expose(scene, linear))
    if settings.jpeg_quality is not None:
        pixels = _through_jpeg(pixels, int(rng.integers(*settings.jpeg_quality, endpoint=True)))
    return SyntheticPhoto(
        photo=Photo(pixels, path=f"synthetic photo {seed}"),
        scene=scene,
        vertices=np.asarray(view.vertices),
        landmarks3d=np.asarray(model.landmarks3d(view.vertices)),
        landmarks=landmarks.astype(float),
        outline=np.asarray(view.outline).astype(float),
        hidden=np.asarray(view.hidden),
        head_mask=np.asarray(view.head),
        face_mask=np.asarray(view.face),
        occluder_mask=mask,
        occluder=kind,
    )


def _eight_bits(encoded) -> Picture:
    return np.rint(255 * np.asarray(encoded)).astype(np.uint8)


def _through_jpeg(pixels: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


# ------------------------------------------------------------------------------------------------------ files


def save_photo(folder: str | Path, name: str, synthetic: SyntheticPhoto) -> None:
    """Write NAME.png, NAME.landmarks.npy (for `facefit fit --landmarks`) and the truth, NAME.npz.

    docs/synthesis.md says what the keys mean.
    """
    folder, face, camera = Path(folder), synthetic.truth, synthetic.camera
    Image.fromarray(synthetic.photo.pixels).save(folder / f"{name}.png")
    write_landmarks(folder / f"{name}.landmarks.npy", synthetic.marked)
    K = np.diag([*np.asarray(camera.focal), 1.0])
    K[:2, 2] = np.asarray(camera.centre)
    np.savez_compressed(
        folder / f"{name}.npz",
        identity=face.identity,
        expression=face.expression,
        albedo=face.albedo,
        light=face.light,
        K=K,
        R=np.asarray(camera.rotation),
        t=np.asarray(face.pose.translation()),
        vertices=synthetic.vertices,
        landmarks2d=synthetic.landmarks2d,
        landmarks_visible=synthetic.visible,
        landmarks_marked=synthetic.marked,
        head_mask=synthetic.head_mask,
        face_mask=synthetic.face_mask,
        occluder_mask=synthetic.occluder_mask,
        occluder=synthetic.occluder,
        **synthetic.relief,
    )


def contact_sheet(photos: list[SyntheticPhoto], tile: int = 256, across: int = 6) -> Picture:
    """All photos in rows, each reduced to `tile` pixels."""
    gap, columns = 6, min(across, len(photos))
    rows = -(-len(photos) // columns)
    sheet = Image.new("RGB", (gap + columns * (tile + gap), gap + rows * (tile + gap)), "white")
    for index, synthetic in enumerate(photos):
        picture = Image.fromarray(synthetic.photo.pixels).resize((tile, tile), Image.Resampling.BOX)
        sheet.paste(picture, (gap + index % columns * (tile + gap), gap + index // columns * (tile + gap)))
    return np.asarray(sheet)
