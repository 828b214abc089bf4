"""What the training of the detail network shows while it runs: curves of its error, and what it sees."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw

from fitting.detail_examples import Example
from fitting.detail_losses import slopes
from fitting.detail_network import DetailInputs, DetailNetwork


def curves(log: Sequence[Mapping[str, float]], width: int = 900, height: int = 420) -> UInt8[np.ndarray, "_ _ 3"]:
    """The error of the normals over the steps, as a share of a smooth face's: people trained on, people held out."""
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = 60, 20, width - 20, height - 40
    last = max(line["step"] for line in log)
    draw.rectangle((left, top, right, bottom), outline="#999999")
    for k in range(7):
        y = bottom - (bottom - top) * k / 6
        draw.line((left, y, right, y), fill="#e6e6e6")
        draw.text((8, y - 6), f"{0.2 * k:.1f}", fill="#444444")
    draw.text((left, bottom + 8), f"0 to {last} steps; error of normals, 1 for no detail", fill="#444444")
    for row, (name, words, colour) in enumerate(
        (
            ("normals_left", "trained on", "#3b5b92"),
            ("held_out_normals_left", "held out", "#c8663f"),
            ("held_out_normals_left_by_code", "held out, by code alone", "#4e9a6b"),
        )
    ):
        points = [
            (left + (right - left) * line["step"] / last, bottom - (bottom - top) * min(line[name], 1.2) / 1.2)
            for line in log
        ]
        draw.line(points if len(points) > 1 else points * 2, fill=colour, width=2)
        draw.text((right - 190, top + 8 + 16 * row), words, fill=colour)
    return np.asarray(picture)


def samples(network: DetailNetwork, batch: Example, region: Float[Array, "size size"]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Photos of a batch in UV space; true normals from the fit's, and the network's; the true relief, and the code's.

    Lit from the upper left.
    """
    rows = []
    for k in range(min(4, len(batch.known))):
        maps = jnp.asarray(batch.maps[k], jnp.float32)
        found, code = network(
            DetailInputs(maps, region, jnp.asarray(batch.identity[k]), jnp.asarray(batch.expression[k]))
        )
        coded = network.decode(code, jnp.asarray(batch.expression[k]), region)
        frame = jnp.asarray(batch.frame[k], jnp.float32)

        def lit(slope):
            # Rightwards and downwards slopes of a lamp at the upper left.
            return jnp.repeat(jnp.clip(0.5 + 0.9 * (slope[..., 0] + slope[..., 1]), 0, 1)[..., None], 3, axis=-1)

        colour = jnp.clip(0.55 + 0.5 * maps[..., 3:6], 0, 1)
        relief, turn = (jnp.asarray(x[k], jnp.float32) for x in (batch.truth, batch.turn))
        lit_ones = [lit(turn[..., :2]), *(lit(slopes(d, frame)) for d in (found, relief, coded))]
        rows.append(jnp.concatenate([colour, *lit_ones], axis=1))
    return np.asarray(jnp.concatenate(rows) * 255).astype(np.uint8)
