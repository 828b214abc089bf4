"""Pictures of a fit: over the photo, beside it, and the head by itself from five sides."""

from collections.abc import Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from fitting.compilation import compiled
from fitting.fit import Fit
from fitting.observation import Photo
from fitting.texture_map import solid_triangles
from morphable.colour import linear_to_srgb, srgb_to_linear
from morphable.detail import Detail, detail_normals, skin_vertices, uv_surface
from morphable.mesh import Mesh
from morphable.model import MorphableModel
from morphable.uv import interpolate
from renderer.camera import Pinhole
from renderer.light import DirectionalLight, ambient_white, direction_from_angles, sh_basis
from renderer.render import render
from renderer.unwrap import texel_table

Picture = UInt8[np.ndarray, "_ _ 3"]

_SIZES = (512, 1024, 2048)  # of rendered squares: few sizes, so few compilations, whatever the photo's size
_CLAY = 0.55  # linear
INK, PAPER = (30, 30, 34), (247, 247, 244)
_DETECTED, _FITTED = (255, 196, 0), (0, 214, 255)
# Which of the 68 points are joined by a line; the last three runs are closed.
_RUNS = (range(0, 17), range(17, 22), range(22, 27), range(27, 31), range(31, 36))
_LOOPS = (range(36, 42), range(42, 48), range(48, 60), range(60, 68))


def render_over_photo(fit: Fit, photo: Photo, texture: Picture, detail: Detail | None = None) -> Picture:
    """The fitted head alone, textured and lit as fitted, rendered over the photo at the photo's size.

    With `detail`, `texture` is the one that its shading has been taken off.
    """
    colour, coverage, (x0, y0, side) = _render_square(fit, texture, detail)
    out = photo.pixels.copy()
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + side, photo.width), min(y0 + side, photo.height)
    if left >= right or top >= bottom:
        return out
    inner = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
    under = out[top:bottom, left:right]
    out[top:bottom, left:right] = over(colour[inner], coverage[inner], under)
    return out


def overlay(fit: Fit, photo: Photo, texture: Picture) -> Picture:
    """Photo, landmarks, the fit over the photo and its shape over the photo, side by side around the head."""
    size = _SIZES[0]
    x0, y0, side = _head_box(fit, 1.2, neck=False)
    if not _touches((x0, y0, side), photo):
        x0, y0, side = 0, 0, max(photo.width, photo.height)
    box = (float(x0), float(y0), float(side), float(side))
    crop, inside = photo.crop_srgb(box, size)
    crop = np.where(inside[..., None], np.rint(255 * crop), PAPER).astype(np.uint8)
    camera = fit.camera.crop(box, size, size)
    mesh = drawable(fit.model, fit.vertices)
    tiles = [crop, _landmarks(fit, crop, box)]
    # Clay in the fitted light would repeat the photo's shadows; under a lamp of ours it shows the shape.
    for albedo, light in ((_linear(texture), fit.light), (_clay(texture), studio_light())):
        tiles.append(over(*_rendered(mesh, camera, light, albedo), crop))
    return sheet_of([tiles], ("photo", "landmarks", "fit over the photo", "shape over the photo"))


def detail_strip(fit: Fit, photo: Photo, detail: Detail, texture: Picture) -> Picture:
    """The face in the photo, its shape without and with detail under a lamp from the side, and all of it as fitted."""
    size = _SIZES[0]
    x0, y0, side = _head_box(fit, 0.9, neck=False)
    box = (float(x0), float(y0), float(side), float(side))
    crop, inside = photo.crop_srgb(box, size)
    crop = np.where(inside[..., None], np.rint(255 * crop), PAPER).astype(np.uint8)
    camera = fit.camera.crop(box, size, size)
    mesh, relief = drawable(fit.model, fit.vertices), detail_normal_map(fit, detail)
    raking = 0.25 * ambient_white() + DirectionalLight(direction_from_angles(-0.9, 0.5), 0.8 * jnp.ones(3)).harmonics()
    tiles = [crop]
    for albedo, light, normals in (
        (_clay(texture), raking, None),
        (_clay(texture), raking, relief),
        (_linear(texture), fit.light, relief),
    ):
        tiles.append(over(*_rendered(mesh, camera, light, albedo, normals), crop))
    return sheet_of([tiles], ("photo", "shape, side light", f"with detail ({detail.method})", "with detail, as fitted"))


def detail_normal_map(fit: Fit, detail: Detail, size: int = 512) -> Float[np.ndarray, "{size} {size} 3"]:
    """Unit normals (head space) of a fit's surface with its detail by uv, for `render`; 0 off the skin."""
    moving = skin_vertices(fit.model).astype(np.float32)
    displacement = detail.at(jnp.asarray(fit.expression))
    return np.asarray(_detail_normals(fit.mesh, fit.model.uv, displacement, jnp.asarray(moving), size))


@eqx.filter_jit
def _detail_normals(mesh: Mesh, uv, displacement, moving, size: int):
    table = texel_table(uv, mesh.triangles, size)
    normals = detail_normals(uv_surface(mesh, table), jax.image.resize(displacement, (size, size), "cubic"))
    return normals * interpolate(moving[:, None], mesh.triangles, *table)


def turntable(fit: Fit, texture: Picture, yaws: Sequence[float] = (-80.0, -40.0, 0.0, 40.0, 80.0)) -> Picture:
    """The neutral head from several sides (degrees), textured above and plain below."""
    size = _SIZES[0]
    mesh = drawable(fit.model, fit.neutral_vertices)
    light = studio_light()
    rows = []
    for albedo in (_linear(texture), _clay(texture)):
        cameras = [portrait_camera(np.asarray(mesh.vertices), yaw, size) for yaw in yaws]
        row = [over(*_rendered(mesh, camera, light, albedo), _blank(size)) for camera in cameras]
        rows.append([tile[:, size // 10 : -(size // 10)] for tile in row])
    return sheet_of(rows, tuple(f"{yaw:g}°" for yaw in yaws))


def portraits(
    model: MorphableModel, identities: Float[np.ndarray, "person rank"], textures: Sequence[Picture], path: str | Path
) -> None:
    """Write a picture of several neutral people, seen from the front and from 40 degrees."""
    size, light = _SIZES[0], studio_light()
    columns = []
    for identity, texture in zip(identities, textures, strict=True):
        mesh = drawable(model, model.neutral(jnp.asarray(identity, jnp.float32)))
        cameras = [portrait_camera(np.asarray(mesh.vertices), yaw, size) for yaw in (0.0, 40.0)]
        columns.append([over(*_rendered(mesh, c, light, _linear(texture)), _blank(size)) for c in cameras])
    margin = size // 10
    tiles = [tile[:, margin : size - margin] for column in columns for tile in column]
    across = 2 * min(3, len(columns))
    rows = [tiles[i : i + across] for i in range(0, len(tiles), across)]
    rows[-1] = rows[-1] + [np.full_like(tiles[0], PAPER)] * (across - len(rows[-1]))
    Image.fromarray(sheet_of(rows, ("",) * across)).save(path)


def _render_square(fit: Fit, texture: Picture, detail: Detail | None = None):
    """Premultiplied linear colour and coverage of the head in an integer box (x0, y0, side) of the photo."""
    x0, y0, side = _head_box(fit, 1.02)
    size = next((s for s in _SIZES if s >= side), _SIZES[-1])
    camera = fit.camera.crop((float(x0), float(y0), float(side), float(side)), size, size)
    relief = None if detail is None else detail_normal_map(fit, detail)
    colour, coverage = _rendered(drawable(fit.model, fit.vertices), camera, fit.light, _linear(texture), relief)
    layers = np.concatenate([colour, coverage[..., None]], axis=2)
    if size != side:
        # Each pixel of the photo averages the rendered ones under it; when enlarging, bicubic.
        resample = Image.Resampling.BOX if side < size else Image.Resampling.BICUBIC
        channels = [Image.fromarray(layers[..., k]).resize((side, side), resample) for k in range(4)]
        layers = np.stack([np.asarray(c) for c in channels], axis=2)
    layers = np.clip(layers, 0.0, None)
    return layers[..., :3], np.clip(layers[..., 3], 0.0, 1.0), (x0, y0, side)


def _head_box(fit: Fit, margin: float, neck: bool = True) -> tuple[int, int, int]:
    """The square (x0, y0, side) around the projected head, in whole pixels of the photo."""
    pixels = np.asarray(fit.camera.project(jnp.asarray(fit.vertices)))
    if not neck:
        mean, chin = np.asarray(fit.model.mean), float(fit.model.landmarks(fit.model.mean)[8, 1])
        pixels = pixels[mean[:, 1] > chin - 10.0]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    if not np.isfinite([low, high]).all():
        return 0, 0, max(fit.camera.width, fit.camera.height)
    # A head close behind the camera's plane projects to anywhere; nothing larger than this could be seen.
    side = int(np.ceil(np.clip(margin * (high - low).max(), 8, 8 * max(fit.camera.width, fit.camera.height))))
    x0, y0 = np.floor((low + high - side) / 2).astype(int)
    return int(x0), int(y0), side


def _touches(box: tuple[int, int, int], photo: Photo) -> bool:
    x0, y0, side = box
    return x0 < photo.width and y0 < photo.height and x0 + side > 0 and y0 + side > 0


def drawable(model: MorphableModel, vertices) -> Mesh:
    """The head without its lashes, which drawn opaque look like thick paint."""
    return Mesh(jnp.asarray(vertices), jnp.asarray(solid_triangles(model)), model.uv)


@compiled
def _drawn(mesh: Mesh, camera: Pinhole, light, albedo, normals):
    picture = render(mesh, camera, light, albedo, samples=2, normal_map=normals)
    return picture.colour, picture.coverage


def _rendered(mesh: Mesh, camera: Pinhole, light, albedo, normals=None):
    """Premultiplied linear colour and coverage."""
    relief = None if normals is None else jnp.asarray(normals)
    colour, coverage = _drawn(mesh, camera, jnp.asarray(light, jnp.float32), albedo, relief)
    return np.asarray(colour), np.asarray(coverage)


def _blank(size: int) -> Picture:
    return np.full((size, size, 3), PAPER, np.uint8)


def _linear(texture: Picture):
    return srgb_to_linear(jnp.asarray(texture, jnp.float32) / 255)


def _clay(texture: Picture):
    """A texture of one colour, of the same size so that it shares the textured rendering's compilation."""
    return jnp.full(texture.shape, _CLAY, jnp.float32)


def over(colour, coverage, under: Picture) -> Picture:
    """A premultiplied linear picture over an sRGB one, blended in linear light; untouched where there is nothing."""
    below = np.asarray(_linear(under))
    blended = np.clip(colour + (1.0 - coverage[..., None]) * below, 0.0, 1.0)
    encoded = np.rint(255 * np.asarray(linear_to_srgb(jnp.asarray(blended)))).astype(np.uint8)
    return np.where(coverage[..., None] > 0, encoded, under)


def portrait_camera(vertices: Float[np.ndarray, "vertex 3"], yaw: float, size: int, pitch: float = 0.0) -> Pinhole:
    """A camera 1.4 m before the head's middle that sees all of it, turned by yaw and nodding by pitch (degrees)."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    middle, distance = (low + high) / 2, 1400.0
    turned = jaxlie.SO3.from_x_radians(jnp.deg2rad(pitch)) @ jaxlie.SO3.from_y_radians(jnp.deg2rad(yaw))
    facing = jaxlie.SO3.from_x_radians(jnp.pi)  # head axes (y up, z to the viewer) to OpenCV's
    rotation = facing @ turned
    offset = jnp.array([0.0, 0.0, distance]) - rotation @ jnp.asarray(middle, jnp.float32)
    focal = 0.94 * size * distance / float((high - low)[1])
    return Pinhole(
        focal=jnp.array([focal, focal]),
        centre=jnp.array([size / 2, size / 2]),
        pose=jaxlie.SE3.from_rotation_and_translation(rotation, offset),
        height=size,
        width=size,
    )


def studio_light() -> Float[np.ndarray, "9 3"]:
    """A broad lamp high on the left, a weak one on the right, and ambient light; white."""
    light = 0.42 * np.asarray(ambient_white())
    for direction, strength in (((-0.55, -0.6, -0.75), 0.62), ((0.9, -0.1, -0.35), 0.16)):
        d = np.array(direction) / np.linalg.norm(direction)
        towards = np.asarray(sh_basis(jnp.asarray(d, jnp.float32)))
        lamp = towards / np.repeat([1.0, 2 / 3, 1 / 4], [1, 3, 5])
        light = light + strength * np.repeat((lamp / (towards @ lamp))[:, None], 3, axis=1)
    return light.astype(np.float32)


def _landmarks(fit: Fit, tile: Picture, box: tuple[float, float, float, float]) -> Picture:
    """The given landmarks (dots) and the model's (lines), drawn at twice the size and reduced: smooth edges."""
    scale = 2 * tile.shape[0] / box[2]
    image = Image.fromarray(tile).resize((2 * tile.shape[1], 2 * tile.shape[0]), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    fitted = (fit.matched2d - np.array(box[:2])) * scale
    given = (fit.detected - np.array(box[:2])) * scale
    for run in (*_RUNS, *_LOOPS):
        points = [tuple(fitted[i]) for i in run]
        if run in _LOOPS:
            points.append(points[0])
        draw.line(points, fill=_FITTED, width=3, joint="curve")
    for (x, y), colour, r in [*((p, _FITTED, 3.5) for p in fitted), *((p, _DETECTED, 5) for p in given)]:
        if np.isfinite([x, y]).all():
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=INK)
    font = ImageFont.load_default(size=30)
    height = image.height
    for row, (text, colour) in enumerate((("given", _DETECTED), ("fitted model", _FITTED))):
        y = height - 84 + 40 * row
        draw.ellipse((18, y + 8, 38, y + 28), fill=colour, outline=INK)
        draw.text((50, y + 18), text, fill=(255, 255, 255), font=font, anchor="lm", stroke_width=3, stroke_fill=INK)
    return np.asarray(image.resize((tile.shape[1], tile.shape[0]), Image.Resampling.BOX))


def sheet_of(rows: Sequence[Sequence[Picture]], captions: Sequence[str]) -> Picture:
    """Tiles of one size in rows, with a caption over each column."""
    height, width = rows[0][0].shape[:2]
    gap, head = 12, 46
    sheet = Image.new("RGB", (gap + len(rows[0]) * (width + gap), head + len(rows) * (height + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=22)
    for column, caption in enumerate(captions):
        x = gap + column * (width + gap)
        draw.text((x + width // 2, head // 2 + 1), caption, fill=INK, font=font, anchor="mm")
        for row, tiles in enumerate(rows):
            sheet.paste(Image.fromarray(tiles[column]), (x, head + row * (height + gap)))
    return np.asarray(sheet)
