"""Curves of a training: figures over its steps, as a picture."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw


class Curve(NamedTuple):
    """One figure of the log."""

    name: str  # in the log
    words: str
    colour: str


def chart(
    log: Sequence[Mapping[str, float | int]],
    curves: Sequence[Curve],
    top: float,
    caption: str,
    size: tuple[int, int] = (900, 420),
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Curves over `log`'s "step", between 0 and `top` (what is above is drawn there); lines without a figure are left
    out."""
    width, height = size
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    left, upper, right, lower = 60, 20, width - 20, height - 40
    last = max(1, *(line["step"] for line in log))
    draw.rectangle((left, upper, right, lower), outline="#999999")
    for k in range(7):
        y = lower - (lower - upper) * k / 6
        draw.line((left, y, right, y), fill="#e6e6e6")
        draw.text((8, y - 6), f"{top * k / 6:.3g}", fill="#444444")
    draw.text((left, lower + 8), f"0 to {last} steps; {caption}", fill="#444444")
    for row, (name, words, colour) in enumerate(curves):
        points = [
            (left + (right - left) * line["step"] / last, lower - (lower - upper) * min(line[name], top) / top)
            for line in log
            if name in line
        ]
        if points:
            draw.line(points if len(points) > 1 else points * 2, fill=colour, width=2)
            draw.text((right - 190, upper + 8 + 16 * row), words, fill=colour)
    return np.asarray(picture)
