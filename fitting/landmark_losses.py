"""What a landmark network's answers cost: likelihood of its landmarks, visibility, pose, and 3DDFA's parameter losses.

Each term is of one crop. Lengths are in sides of the crop, so one network's losses compare with another's.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fitting.landmark_network import Prediction
from fitting.parameter_losses import (
    PARAMETER_LOSSES,
    LossBasis,
    LossName,
    PosedParameters,
    landmark_regression_loss,
)

# One of 3DDFA's, the better one of fwpdc and vdc for some steps at a time (3DDFA_V2's meta-joint choice), or none.
ParameterLossName = LossName | Literal["joint", "none"]
JOINT: tuple[LossName, ...] = ("fwpdc", "vdc")


class Truth(NamedTuple):
    """What a crop really shows."""

    landmarks: Float[Array, "point 2"]  # sides of the crop, from its middle
    visible: Float[Array, " point"]  # 0 or 1
    rotation: Float[Array, "3 3"]
    placement: Float[Array, "3"]  # head's origin in the crop (2; sides from its middle), log of sides for each 100 mm
    identity: Float[Array, " identity"]
    expression: Float[Array, " unit"]


@dataclasses.dataclass(frozen=True)
class LandmarkLossWeights:
    """How much each term counts."""

    named: float = 2.0  # of iBUG's 68 landmarks beside the others, which count 1
    visible: float = 0.05
    rotation: float = 2.0
    placement: float = 1.0
    expression: float = 1.0
    identity: float = 1.0
    parameters: ParameterLossName = "vdc"
    parameter_weight: float = 1.0
    regression: float = 0.0  # 3DDFA_V2's regularisation by plain distances of the landmarks


def likelihood(
    found: Float[Array, "point 2"], log_sigma: Float[Array, " point"], truth: Float[Array, "point 2"]
) -> Float[Array, " point"]:
    """Negative logarithm of each landmark's likelihood, up to a constant: Gaussian errors, alike in both directions.

    Wood et al. (2022), equation 1, with the deviation's logarithm as the network's own output.
    """
    square = jnp.sum((found - truth) ** 2, axis=-1)
    return 2.0 * log_sigma + 0.5 * square * jnp.exp(-2.0 * log_sigma)


def within_one_sigma(
    found: Float[Array, "point 2"], log_sigma: Float[Array, " point"], truth: Float[Array, "point 2"]
) -> Float[Array, "point 2"]:
    """1 where a coordinate's error is within its deviation: 68 % of them, where deviations are right."""
    return (jnp.abs(found - truth) <= jnp.exp(log_sigma)[:, None]).astype(jnp.float32)


def posed_parameters(said: Prediction | Truth, identity: int) -> PosedParameters:
    """An answer as 3DDFA's losses take it, in hundredths of the crop's side; the first coefficients of identity."""
    scale = jnp.exp(said.placement[2])  # hundredths of a side for each mm are sides for each 100 mm
    return PosedParameters.from_pose(
        said.rotation, scale, 100.0 * said.placement[:2], said.identity[:identity], said.expression
    )


def identity_shares(basis: LossBasis, count: int) -> Float[Array, " identity"]:
    """How much of the squared distance between faces each coefficient makes; beyond the basis, as much as its last."""
    rank = basis.identity.shape[-1]
    if rank == 0:
        return jnp.full(count, 1.0 / max(1, count))
    moved = jnp.trace(basis.moments[jnp.arange(1, 1 + rank), jnp.arange(1, 1 + rank)], axis1=-2, axis2=-1)
    moved = jnp.pad(moved, (0, count - rank), mode="edge")
    return moved / jnp.sum(moved)


def landmark_terms(
    said: Prediction, truth: Truth, weights: LandmarkLossWeights, basis: LossBasis
) -> dict[str, Float[Array, ""]]:
    """The weighted terms of one crop."""
    w = weights
    count = truth.landmarks.shape[0]
    share = jnp.where(jnp.arange(count) < 68, w.named, 1.0)
    cost = likelihood(said.landmarks, said.log_sigma, truth.landmarks)
    shares = identity_shares(basis, truth.identity.shape[0])
    seen = jax.nn.softplus(said.visible) - truth.visible * said.visible
    terms = {
        "likelihood": jnp.sum(share * cost) / jnp.sum(share),
        "visible": w.visible * jnp.mean(seen),
        # Half the squared Frobenius distance: 2 (1 - cos) of the angle between them, twice.
        "rotation": w.rotation * 0.5 * jnp.sum((said.rotation - truth.rotation) ** 2),
        "placement": w.placement * jnp.sum((said.placement - truth.placement) ** 2),
        "expression": w.expression * jnp.sum((said.expression - truth.expression) ** 2),
        "identity": w.identity * jnp.sum(shares * (said.identity - truth.identity) ** 2),
    }
    if w.parameters == "joint":
        raise ValueError(f"parameters: got joint, expected one of {', '.join(JOINT)}. See landmark_training.Trainer.")
    if w.parameters != "none":
        rank = basis.identity.shape[-1]
        value = PARAMETER_LOSSES[w.parameters](basis, posed_parameters(said, rank), posed_parameters(truth, rank))
        terms["parameters"] = w.parameter_weight * jnp.log1p(value)  # far from the truth it would drown the rest
    if w.regression > 0:
        terms["regression"] = w.regression * landmark_regression_loss(said.landmarks, truth.landmarks)
    return terms
