"""Portraits as files, to look at and for training elsewhere."""

from pathlib import Path

import numpy as np
from PIL import Image

from fitting.observation import write_landmarks
from fitting.portraits.backdrop import Pictures
from fitting.portraits.portrait import PortraitSettings
from fitting.portraits.stream import Examples, render_chunk, write_examples
from fitting.portraits.studio import studio
from morphable.model import MorphableModel

_SHOWN, _ACROSS = 64, 8


def write_portraits(
    folder: Path, model: MorphableModel, seed: int, count: int, pictures: Pictures | None = None
) -> None:
    """Write the first `count` portraits of a seed into an existing folder.

    portrait_0000.png and portrait_0000.landmarks.npy (iBUG-68 in pixels, hidden ones too), ...; portraits.npz with
    what a network learns of each (`fitting.portraits.stream.Examples` without pixels); portraits.png, the first 64.
    """
    made = render_chunk(studio(model), seed, 0, PortraitSettings(), count, pictures)
    for k in range(count):
        Image.fromarray(np.asarray(made.pixels[k])).save(folder / f"portrait_{k:04d}.png")
        write_landmarks(folder / f"portrait_{k:04d}.landmarks.npy", np.asarray(made.landmarks[k, :68], float))
    with (folder / "portraits.npz").open("wb") as file:
        write_examples(file, made, [name for name in Examples._fields if name != "pixels"])
    tiles = [np.asarray(p) for p in made.pixels[:_SHOWN]]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % _ACROSS)
    rows = [np.concatenate(tiles[k : k + _ACROSS], axis=1) for k in range(0, len(tiles), _ACROSS)]
    Image.fromarray(np.concatenate(rows)).save(folder / "portraits.png")
