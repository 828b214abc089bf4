"""What the training of the detail network shows while it runs: curves of its error, and what it sees."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fitting.detail_examples import Example
from fitting.detail_losses import slopes
from fitting.detail_network import DetailInputs, DetailNetwork
from fitting.training_curves import Curve, chart


def curves(log: Sequence[Mapping[str, float]]) -> UInt8[np.ndarray, "_ _ 3"]:
    """The error of the normals over the steps, as a share of a smooth face's: people trained on, people held out."""
    lines = (
        Curve("normals_left", "trained on", "#3b5b92"),
        Curve("held_out_normals_left", "held out", "#c8663f"),
        Curve("held_out_normals_left_by_code", "held out, by code alone", "#4e9a6b"),
    )
    return chart(log, lines, 1.2, "error of normals, 1 for no detail")


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
