"""What the training of the landmark network shows while it runs: curves of its errors, and what it sees."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from fitting.landmark_network import LandmarkNetwork
from fitting.network_detection import cut_out
from fitting.observation import Photo
from fitting.portraits.stream import Examples
from fitting.sighting import Sighting, Square
from fitting.training_curves import Curve, chart


def curves(log: Sequence[Mapping[str, float]]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Mean error of the 68 landmarks over the steps, in percent of their box: trained on, held out, and real photos."""
    lines = (
        Curve("nme68", "trained on (varied)", "#3b5b92"),
        Curve("held_out_nme68", "held out", "#c8663f"),
        Curve("real_nme68", "real photos", "#4e9a6b"),
    )
    return chart(log, lines, 12.0, "error of 68 landmarks, percent of their box")


def marked(
    pixels: UInt8[np.ndarray, "size size 3"],
    points: np.ndarray,
    radius: np.ndarray,
    truth: np.ndarray | None = None,
    zoom: int = 2,
) -> UInt8[np.ndarray, "_ _ 3"]:
    """A crop with landmarks (px) as discs of one deviation, iBUG's 68 in yellow; true places as green dots."""
    picture = Image.fromarray(pixels).resize((pixels.shape[1] * zoom,) * 2, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture, "RGBA")
    for k, ((x, y), r) in enumerate(zip(points * zoom, np.maximum(radius * zoom, 0.7), strict=True)):
        colour = (255, 220, 60, 150) if k < 68 else (80, 160, 255, 90)
        draw.ellipse((x - r, y - r, x + r, y + r), outline=colour)
    if truth is not None:
        draw.point([(float(x), float(y)) for x, y in truth[:68] * zoom], fill=(60, 255, 90, 255))
    return np.asarray(picture)


def sighting_picture(
    photo: Photo, sighting: Sighting, truth: np.ndarray | None = None, size: int = 320
) -> UInt8[np.ndarray, "_ _ 3"]:
    """What a network says about a face of a photo, as `marked`; true places in pixels of the photo."""
    square = Square(sighting.square.centre, 1.15 * sighting.square.side)
    local = lambda points: (points - square.centre) * (size / square.side) + size / 2  # noqa: E731
    true = None if truth is None else local(truth)
    radius = sighting.sigma * (size / square.side)
    return marked(cut_out(photo, square, size), local(sighting.points), radius, true, zoom=1)


def sheet(network: LandmarkNetwork, examples: Examples, count: int = 24, across: int = 8) -> UInt8[np.ndarray, "_ _ 3"]:
    """Crops with what the network says, and the truth."""
    pixels = np.asarray(examples.pixels[:count])
    said = jax.jit(jax.vmap(network))(jnp.asarray(pixels, jnp.float32) / 255.0)
    size = pixels.shape[1]
    tiles = [
        marked(p, (np.asarray(m) + 0.5) * size, np.exp(np.asarray(s)) * size, np.asarray(t, float))
        for p, m, s, t in zip(pixels, said.landmarks, said.log_sigma, examples.landmarks[:count], strict=True)
    ]
    while len(tiles) % across:
        tiles.append(np.zeros_like(tiles[0]))
    return np.concatenate([np.concatenate(tiles[k : k + across], axis=1) for k in range(0, len(tiles), across)])
