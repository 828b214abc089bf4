"""From fitted photos of a person to the detail that no coefficient says, by either method.

- `"optimise"`: shape from shading on the fitted head (`fitting.detail_optimisation`), slow, for any model;
- `"network"`: one look (`fitting.detail_network`), for the model that its weights were trained for; it also says what
  other expressions do to the skin, as a few maps of wrinkles.

Several photos of a person give one detail. `refine` goes on training the network's weights on the photos at hand.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float

from fitting.detail_examples import example
from fitting.detail_losses import LossWeights, normal_loss
from fitting.detail_network import DetailInputs, DetailNetwork, input_maps
from fitting.detail_observation import SIZE, DetailObservation, DetailRegion, detail_region, observe
from fitting.detail_optimisation import optimise_detail
from fitting.detail_training import Shared, TrainingSettings, losses, shared_by, stacked
from fitting.fit import Fit
from fitting.observation import Photo
from fitting.texture_map import texture_layout
from fitting.wrinkle_maps import wrinkle_drivers, wrinkle_maps
from morphable.detail import Detail

Method = Literal["optimise", "network"]

_REFINE_STEPS, _REFINE_RATE = 30, 1e-4
_RULE = optax.adam(_REFINE_RATE)  # one object, so that the step is compiled once
_HOLD = 30.0  # for each radian between the normals before and after: three times what the truth weighs in training


class DetailEstimateError(ValueError):
    """Detail that cannot be found: what, got, expected, remedy."""


def estimate_detail(
    fits: Sequence[Fit],
    photos: Sequence[Photo],
    method: Method,
    *,
    masks: Sequence[Bool[np.ndarray, "height width"] | None] | None = None,
    network: DetailNetwork | None = None,
    refine: bool = False,
    size: int | None = None,
) -> Detail:
    """One person's detail from fitted photos; it is of the first photo's expression.

    `network` is needed for the method of that name (`fitting.detail_checkpoint.load_network`). `size` is that of the
    maps: 256 texels in a row, or what the network was trained for.
    """
    masks = [None] * len(fits) if masks is None else list(masks)
    if not fits or not len(fits) == len(photos) == len(masks):
        raise DetailEstimateError(
            f"estimate_detail: got {len(fits)} fits, {len(photos)} photos and {len(masks)} masks; expected one or more "
            "fits, and a photo (and mask, or None) for each."
        )
    if method == "network" and network is None:
        raise DetailEstimateError(
            "estimate_detail: got no network, expected one for the method 'network'. Give "
            "fitting.detail_checkpoint.load_network(None, model)."
        )
    if refine and method != "network":
        raise DetailEstimateError("estimate_detail: got refine for the method 'optimise', expected it with 'network'.")
    model = fits[0].model
    if network is not None and method == "network":
        if size not in (None, network.size):
            raise DetailEstimateError(
                f"estimate_detail: got size {size}, expected {network.size}: that of the network's maps. Leave it out."
            )
        size = network.size
    size = SIZE if size is None else size
    region = detail_region(model, size)
    if network is not None and method == "network":
        if refine:
            network = refined(network, fits, photos, masks, region)
        seen = [observe(f, p, size, m, region=region) for f, p, m in zip(fits, photos, masks, strict=True)]
        return network_detail(network, fits, seen, region.relief)
    layout = texture_layout(fits[0], size)
    seen = [observe(f, p, size, m, region=region) for f, p, m in zip(fits, photos, masks, strict=True)]
    displacement, _, _ = optimise_detail(seen, jnp.asarray(layout.mirror_uv, jnp.float32))
    units = len(model.expression_names)
    return Detail(
        displacement=displacement,
        wrinkles=jnp.zeros((0, size, size)),
        drivers=jnp.zeros((0, units)),
        expression=jnp.asarray(fits[0].expression),
        method="optimise",
    )


# ---------------------------------------------------------------------------------------------------- network


@eqx.filter_jit
def _look(network: DetailNetwork, observation: DetailObservation, region, identity, expression):
    return network(DetailInputs(input_maps(observation), region, identity, expression))


def network_detail(
    network: DetailNetwork,
    fits: Sequence[Fit],
    observations: Sequence[DetailObservation],
    region: Float[np.ndarray, "size size"],
) -> Detail:
    """What the network sees in the photos, and the wrinkles that it expects of the person."""
    model = fits[0].model
    names = network.names
    if names != tuple(model.expression_names):
        raise DetailEstimateError(
            f"network_detail: got a network for other expression units than {model.provenance.name}'s, expected the "
            "same. Train one with 'facefit train-detail --model', or use the method 'optimise'."
        )
    where = jnp.asarray(region, jnp.float32)
    found, codes, shares = [], [], []
    for fit, observation in zip(fits, observations, strict=True):
        prediction = _look(network, observation, where, jnp.asarray(fit.identity), jnp.asarray(fit.expression))
        found.append(prediction.displacement)
        codes.append(prediction.code)
        shares.append(observation.weight**2 + 1e-3)
    total = sum(shares, jnp.zeros_like(where))
    # A code counts by how much of the face its photo shows.
    seen = jnp.stack([jnp.sum(s) for s in shares])
    code = jnp.tensordot(seen / jnp.sum(seen), jnp.stack(codes), 1)
    drivers, groups = wrinkle_drivers(model)
    wrinkles = wrinkle_maps(eqx.Partial(network.decode, code), where, model, drivers)
    base = Detail(found[0], wrinkles, jnp.asarray(drivers), jnp.asarray(fits[0].expression), "network", groups)
    displacement = jnp.zeros_like(where)
    for fit, one, share in zip(fits, found, shares, strict=True):
        # Each photo's relief, brought to the first one's expression.
        own = base.activations(jnp.asarray(fit.expression)) - base.activations(base.expression)
        displacement = displacement + share / total * (one - jnp.tensordot(own, wrinkles, 1))
    return dataclasses.replace(base, displacement=displacement)


# ------------------------------------------------------------------------------------------------- refinement


def refined(
    network: DetailNetwork,
    fits: Sequence[Fit],
    photos: Sequence[Photo],
    masks: Sequence[Bool[np.ndarray, "height width"] | None],
    region: DetailRegion,
    steps: int = _REFINE_STEPS,
) -> DetailNetwork:
    """The network trained on, with these photos alone and no truth: what it costs to explain them.

    It is held to what it saw before, so that few steps cannot take it far from what skin looks like.
    """
    pairs = [
        example(fit, photo, network.size, mask, region) for fit, photo, mask in zip(fits, photos, masks, strict=True)
    ]
    batch = jax.tree.map(jnp.asarray, stacked([type(e)(*(v[None] for v in e)) for e in pairs]))
    settings = TrainingSettings(chips=len(pairs), weights=LossWeights(smoothness=0.3))
    shared = shared_by(fits[0].model, network.size)
    before = _seen(network, batch, shared)
    state = _RULE.init(eqx.filter(network, eqx.is_inexact_array))
    for step in range(steps):
        network, state = _refine_step(network, state, batch, before, shared, settings, jax.random.key(step))
    return network


@eqx.filter_jit
def _seen(network: DetailNetwork, batch, shared: Shared):
    region = jnp.broadcast_to(shared.region, batch.truth.shape)
    inputs = DetailInputs(batch.maps.astype(jnp.float32), region, batch.identity, batch.expression)
    return jax.vmap(network)(inputs).displacement


@eqx.filter_jit
def _refine_step(network, state, batch, before, shared, settings, key):
    def cost(network):
        total, _ = losses(network, batch, shared, settings, key)
        region = jnp.broadcast_to(shared.region, before.shape)
        turned = jax.vmap(normal_loss)(_seen(network, batch, shared), before, batch.frame.astype(jnp.float32), region)
        return total + _HOLD * jnp.mean(turned)

    slope = eqx.filter_grad(cost)(network)
    change, state = _RULE.update(slope, state, eqx.filter(network, eqx.is_inexact_array))
    return eqx.apply_updates(network, change), state
