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

_Seen = TypeVar("_Seen", Prediction, Truth)


class Mirror(NamedTuple):
    """What stands for what on the other side."""

    points: Int[Array, " point"]  # landmark on the other side
    units: Int[Array, " unit"]  # expression unit on the other side
    identity: Float[Array, " identity"]  # sign of each coefficient


def mirror_of(model: MorphableModel, points: Int[ArrayLike, " point"]) -> Mirror:
    """The mirror of a model whose modes are symmetric or antisymmetric, and of its landmarks' twins."""
    names = list(model.expression_names)

    def other(name: str) -> int:
        for one, two in (("Left", "Right"), ("Right", "Left")):
            if name.endswith(one):
                twin = name.removesuffix(one) + two
                return names.index(twin) if twin in names else names.index(name)
        return names.index(name)

    modes = np.asarray(model.shape.modes)
    seen = modes[np.asarray(model.mirror)] * np.array([-1.0, 1.0, 1.0])[:, None]
    sign = np.where(np.sum(seen * modes, axis=(0, 1)) < 0, -1.0, 1.0)
    units = jnp.asarray([other(n) for n in names], jnp.int32)
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
