"""Numbers as colours: on the head, and in a picture; with a scale that says what they are."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from fitting.pictures import INK, PAPER, drawable, over, portrait_camera, sheet_of, studio_light
from morphable.model import MorphableModel
from renderer.render import render
from renderer.shade import lambert

Picture = UInt8[np.ndarray, "_ _ 3"]

# From dark blue over green to yellow, of steadily growing lightness: orders survive in grey and for the colour-blind.
_STOPS = np.array(
    [[38, 24, 84], [54, 68, 135], [43, 112, 142], [32, 150, 138], [74, 186, 108], [168, 214, 60], [253, 231, 55]]
)
# Below zero blue, above it red.
_SIDES = np.array([[30, 72, 160], [120, 165, 215], [240, 240, 238], [228, 150, 110], [165, 35, 40]])


def ramp(values: Float[np.ndarray, "*shape"], low: float, high: float, signed: bool = False):
    """Colours of values between low and high, as sRGB bytes: (*shape, 3)."""
    stops = _SIDES if signed else _STOPS
    place = np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-12), 0.0, 1.0) * (len(stops) - 1)
    below = np.minimum(place.astype(int), len(stops) - 2)
    part = (place - below)[..., None]
    return np.rint(stops[below] * (1 - part) + stops[below + 1] * part).astype(np.uint8)


def heat_map(
    model: MorphableModel,
    vertices: Float[np.ndarray, "vertex 3"],
    values: Float[np.ndarray, "vertex"],
    limit: float,
    unit: str = "mm",
    yaws: Sequence[float] = (0.0, 40.0),
    size: int = 384,
) -> Picture:
    """A value at each vertex as colours on the head, seen from several sides (degrees), with its scale beside it."""
    mesh = drawable(model, jnp.asarray(vertices, jnp.float32))
    colours = jnp.asarray((ramp(np.asarray(values), 0.0, limit) / 255.0) ** 2.2, jnp.float32)
    light = jnp.asarray(studio_light())
    tiles = []
    for yaw in yaws:
        drawn = render(mesh, portrait_camera(np.asarray(mesh.vertices), yaw, size), light, samples=2)
        picture = lambert(drawn.interpolate(colours, mesh.triangles), drawn.normals, light)
        cover = np.asarray(drawn.coverage)
        tile = over(np.asarray(picture) * cover[..., None], cover, np.full((size, size, 3), PAPER, np.uint8))
        tiles.append(tile[:, size // 10 : -(size // 10)])
    sheet = sheet_of([tiles], [f"{yaw:g}°" for yaw in yaws])
    return np.concatenate([sheet, scale_bar(sheet.shape[0], 0.0, limit, unit)], axis=1)


def scale_bar(height: int, low: float, high: float, unit: str, signed: bool = False) -> Picture:
    """The colours from low to high as an upright bar with five numbers."""
    width, top = 96, 46
    bar = Image.new("RGB", (width, height), PAPER)
    length = height - 2 * top
    column = ramp(np.linspace(high, low, length), low, high, signed)
    bar.paste(Image.fromarray(np.repeat(column[:, None], 18, axis=1)), (6, top))
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(size=15)
    for k, value in enumerate(np.linspace(low, high, 5)):
        y = top + length - length * k // 4
        draw.line((24, y, 29, y), fill=INK)
        draw.text((33, y), f"{value:.3g}" + (f" {unit}" if k == 4 else ""), fill=INK, font=font, anchor="lm")
    return np.asarray(bar)
