"""What a landmark network's answers and truths become in a mirror: training shows half of the portraits in one, and a
photo is looked at both ways.
"""

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from fitting.landmark_losses import Truth
from fitting.landmark_network import Prediction
from morphable.model import MorphableModel
from morphable.symmetry import mirrored_units

_Seen = TypeVar("_Seen", Prediction, Truth)


class Mirror(NamedTuple):
    """What stands for what on the other side."""

    points: Int[Array, " point"]  # landmark on the other side
    units: Int[Array, " unit"]  # expression unit on the other side
    identity: Float[Array, " identity"]  # sign of each coefficient


def mirror_of(model: MorphableModel, points: Int[ArrayLike, " point"]) -> Mirror:
    """The mirror of a model whose modes are symmetric or antisymmetric, and of its landmarks' twins."""
    modes = np.asarray(model.shape.modes)
    seen = modes[np.asarray(model.mirror)] * np.array([-1.0, 1.0, 1.0])[:, None]
    sign = np.where(np.sum(seen * modes, axis=(0, 1)) < 0, -1.0, 1.0)
    units = jnp.asarray(mirrored_units(model.expression_names), jnp.int32)
    return Mirror(jnp.asarray(points, jnp.int32), units, jnp.asarray(sign, jnp.float32))


def reflected(seen: _Seen, mirror: Mirror) -> _Seen:
    """What is in a crop, or is said about it, as it is of the crop in the mirror."""
    across = jnp.asarray([-1.0, 1.0, 1.0])
    if isinstance(seen, Prediction):
        seen = seen._replace(log_sigma=seen.log_sigma[mirror.points])
    return seen._replace(
        landmarks=(seen.landmarks * across[:2])[mirror.points],
        visible=seen.visible[mirror.points],
        rotation=across[:, None] * seen.rotation * across,
        placement=seen.placement * across,
        identity=seen.identity * mirror.identity,
        expression=seen.expression[mirror.units],
    )
