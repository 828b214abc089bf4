"""What expressions do to a person's skin, as a few maps with the blendshapes that drive them: what a rig can carry."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fitting.synthesis import draw_expression
from morphable.model import MorphableModel

_DRAWN = 96  # expressions from which the maps are found
_RIDGE = 0.1  # of a map's size, in expressions that show it fully: what is rarely seen stays small

# Wrinkle maps that a rig carries, and what brings each out; left and right sides apart.
WRINKLES: dict[str, dict[str, float]] = {
    "brows_raised": {"browInnerUp": 0.7, "browOuterUp": 0.6},
    "brows_lowered": {"browDown": 1.0},
    "smile": {"mouthSmile": 0.8, "cheekSquint": 0.4, "eyeSquint": 0.4},
    "sneer": {"noseSneer": 0.8, "mouthUpperUp": 0.5},
    "frown": {"mouthFrown": 0.8, "mouthStretch": 0.3},
}
CENTRAL: dict[str, dict[str, float]] = {
    "pucker": {"mouthPucker": 0.9, "mouthFunnel": 0.4},
    "chin": {"mouthShrugLower": 1.0, "mouthRollLower": 0.3},
}


def wrinkle_drivers(model: MorphableModel) -> tuple[Float[np.ndarray, "group unit"], tuple[str, ...]]:
    """Which expression units bring out each wrinkle map that a rig carries, and the maps' names.

    A model without any of a map's units does not have the map.
    """
    names = model.expression_names
    wanted = {name + side: {u + side: w for u, w in units.items()} | {u: w for u, w in units.items()}
              for name, units in WRINKLES.items() for side in ("Left", "Right")} | CENTRAL  # fmt: skip
    rows = {}
    for group, units in wanted.items():
        row = np.zeros(len(names), np.float32)
        for unit, weight in units.items():
            if unit in names:
                row[names.index(unit)] = weight
        if row.any():
            rows[group] = row
    matrix = np.stack(list(rows.values())) if rows else np.zeros((0, len(names)), np.float32)
    return matrix, tuple(rows)


Decoder = Callable[[Float[Array, " unit"], Float[Array, "size size"]], Float[Array, "size size"]]


@eqx.filter_jit
def _decoded(decode: Decoder, expressions: Float[Array, "drawn unit"], region: Float[Array, "size size"]):
    return jax.lax.map(lambda expression: decode(expression, region), expressions)


def wrinkle_maps(
    decode: Decoder,
    region: Float[Array, "size size"],
    model: MorphableModel,
    drivers: Float[np.ndarray, "group unit"],
) -> Float[Array, "group size size"]:
    """What each group of drivers adds at activation 1: the least-squares fit to a decoder's displacements.

    `decode` says what displacement (mm) a person has with an expression, such as
    `eqx.Partial(network.decode, code)`; it is a pytree, or it is compiled again for every person.
    Decoders are not linear and groups overlap; over expressions as people make them, the sum of the maps is as near to
    the decoder's displacement as a sum can be.
    """
    if not len(drivers):
        return jnp.zeros((0, *region.shape))
    drawn = jax.vmap(lambda k: draw_expression(model, k))(jax.random.split(jax.random.key(7), _DRAWN))
    # Among what people do, each group by itself: some show rarely.
    drawn = jnp.concatenate([drawn, jnp.asarray(drivers > 0, drawn.dtype)])
    rest = jnp.zeros((1, drawn.shape[1]), drawn.dtype)
    shown = _decoded(decode, jnp.concatenate([rest, drawn]), region)
    change = (shown[1:] - shown[0]).reshape(len(drawn), -1)
    active = jnp.clip(drawn @ jnp.asarray(drivers).T, 0.0, 1.0)
    normal = active.T @ active + _RIDGE * jnp.eye(len(drivers))
    return jnp.linalg.solve(normal, active.T @ change).reshape(len(drivers), *region.shape)
