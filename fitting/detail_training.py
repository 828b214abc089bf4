"""Training of the detail network: from files of examples to weights, on one device or several, resumable to the bit.

The state after a step is a function of the settings and of the examples alone: the order of people, how they are
mixed and the jitter of chips are drawn from (seed, step). So a run that is stopped and resumed ends where an
unbroken one does.
"""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from fitting.detail_augmentation import random_mixture, recombined
from fitting.detail_examples import Example, Mirror, mirrored, read_person
from fitting.detail_losses import (
    LossWeights,
    change_loss,
    mean_over,
    normal_loss,
    photometric_loss,
    relit_chip,
    smoothness_loss,
    symmetry_loss,
    turn_loss,
)
from fitting.detail_network import DetailInputs, DetailNetwork
from fitting.detail_observation import detail_region
from fitting.identity_network import IdentityNetwork, load_identity_network
from fitting.perceptual import id_mrf, identity_distance
from fitting.skin_relief import activations
from morphable.model import MorphableModel
from morphable.uv import interpolate
from renderer.unwrap import texel_table


class TrainingError(ValueError):
    """Training that cannot start or go on: what, got, expected, remedy."""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the result besides the examples."""

    steps: int = 3000
    people: int = 2  # in a batch; two photos of each
    learning_rate: float = 1.5e-3
    warm_up: int = 100  # steps
    weight_decay: float = 1e-3
    average: float = 0.998  # of the weights that are kept: an exponential mean over steps
    chips: int = 1  # photos of a batch on which the identity network looks, 0 for none
    seed: int = 0
    bfloat16: bool = False  # for maps and products; parameters and sums stay float32
    weights: LossWeights = LossWeights()


class Shared(NamedTuple):
    """What all examples of a model have in common."""

    region: Float[Array, "size size"]
    mirror_uv: Float[Array, "size size 2"]
    identity_network: IdentityNetwork | None


def shared_by(model: MorphableModel, size: int) -> Shared:
    """What the training needs of a model, and dlib's network for the terms of pictures."""
    table = texel_table(model.uv, model.triangles, size)
    mirror = interpolate(model.uv[model.mirror], model.triangles, *table)
    return Shared(jnp.asarray(detail_region(model, size).relief), mirror, load_identity_network())


class State(NamedTuple):
    """What a checkpoint holds."""

    network: DetailNetwork
    average: DetailNetwork
    optimiser: Any
    step: Array


Batch = Example  # of JAX arrays; two photos of each person, one after the other


def losses(
    network: DetailNetwork,
    batch: Batch,
    shared: Shared,
    settings: TrainingSettings,
    key: Key[Array, ""],
    added: Float[Array, "photo size size"] | float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum and each term's value, means over the batch. `added` is relief that the chips do not show."""
    w = settings.weights
    compute = jnp.bfloat16 if settings.bfloat16 else jnp.float32
    single = lambda x: x.astype(jnp.float32)  # noqa: E731
    maps, frame, truth, turn = (single(x) for x in (batch.maps, batch.frame, batch.truth, batch.turn))
    count = maps.shape[0]
    region = jnp.broadcast_to(shared.region, truth.shape)
    inputs = DetailInputs(maps.astype(compute), region, batch.identity, batch.expression)
    found, codes = jax.vmap(network)(inputs)
    known = batch.known
    weight = maps[..., 6]
    response, ratio = maps[..., 13:15], jnp.mean(maps[..., 3:6], axis=-1)
    hidden = known[:, None, None] * region * (1.0 - weight)
    counts = weight + w.hidden * hidden

    def both(one, other, counts=counts):
        angle = jax.vmap(normal_loss)(one, other, frame, counts)
        distance = jax.vmap(mean_over)(jnp.abs(one - other), counts)
        return w.normal * angle + w.displacement * distance

    # Where no truth is known, the code learns from what the network sees in the photo.
    target = jnp.where(known[:, None, None] > 0, truth, jax.lax.stop_gradient(found))
    own = jnp.where(known[:, None] > 0, batch.true_expression, batch.expression)
    decode = jax.vmap(network.decode)
    coded = decode(codes.astype(compute), own, region)
    partner = jnp.minimum(jnp.arange(count) ^ 1, count - 1)  # the person's other photo
    swapped = decode(codes[partner].astype(compute), own, region)
    # Somebody else's expression on this face, and what folds a group of wrinkles: by chance people do little.
    fold_key, strength_key, key = jax.random.split(key, 3)
    group = jax.random.randint(fold_key, (count,), 0, batch.drivers.shape[1])
    push = batch.drivers[jnp.arange(count), group]
    push = push / jnp.maximum(jnp.max(push, axis=1, keepdims=True), 1e-6)
    strength = jax.random.uniform(strength_key, (count, 1))
    other = jnp.clip(0.5 * jnp.roll(own, 2, axis=0) + strength * push, 0.0, 1.0)
    changed = decode(codes.astype(compute), other, region) - coded
    fold = jax.vmap(activations)(batch.drivers, other) - jax.vmap(activations)(batch.drivers, own)
    true_change = jnp.einsum("bg,bgij->bij", fold, single(batch.wrinkles))
    true_change = jnp.repeat(jnp.repeat(true_change, 2, axis=1), 2, axis=2) * region

    of_photo = jnp.where(known > 0, w.known, 1.0)
    terms = {
        "normals": known * w.normal * jax.vmap(turn_loss)(found, turn, frame, weight),
        "hidden": known * w.hidden * both(found, truth, hidden),
        "code": w.code * both(coded, target),
        "change": known * w.change * jax.vmap(change_loss)(changed, true_change, region),
        "consistency": w.consistency * both(swapped, target),
        "photometric": of_photo * w.photometric * jax.vmap(photometric_loss)(found, ratio, response, frame, weight),
        "smoothness": of_photo * w.smoothness * jax.vmap(smoothness_loss)(found, frame, region),
        "symmetry": of_photo
        * w.symmetry
        * jax.vmap(symmetry_loss, in_axes=(0, None, 0))(found, shared.mirror_uv, weight),
        "sparsity": of_photo * w.sparsity * jax.vmap(mean_over)(jnp.abs(found), region),
    }
    if settings.chips > 0 and shared.identity_network is not None:
        n = min(settings.chips, count)
        chips = batch.chip[:n].astype(jnp.float32)
        relit = jax.vmap(relit_chip)(
            (found - added)[:n], single(batch.base[:n]), response[:n], frame[:n], chips, batch.chip_uv[:n],
            single(batch.chip_share[:n]),
        )  # fmt: skip
        # Pixels must not learn one alignment's pattern: photo and rendering are moved alike.
        shift = jax.random.randint(key, (2,), -2, 3)
        chips, relit = (jnp.roll(c, shift, axis=(1, 2)) for c in (chips, relit))
        seen = jax.lax.stop_gradient(shared.identity_network.features(chips))
        shown = shared.identity_network.features(relit)
        terms["mrf"] = of_photo[:n] * w.mrf * jax.vmap(id_mrf)(shown, seen)
        apart = jax.vmap(identity_distance)(shown["descriptor"], seen["descriptor"])
        terms["identity"] = of_photo[:n] * w.identity * apart
    means = {name: jnp.mean(value) for name, value in terms.items()}
    total = sum(means.values(), jnp.zeros(()))
    none = jnp.sum(known * jax.vmap(turn_loss)(jnp.zeros_like(truth), turn, frame, weight))
    left = jnp.sum(known * jax.vmap(turn_loss)(found, turn, frame, weight))
    means["normals_left"] = left / jnp.maximum(none, 1e-6)  # of the error that the fit alone has
    none = jnp.sum(known * jax.vmap(normal_loss)(jnp.zeros_like(truth), truth, frame, weight))
    by_code = jnp.sum(known * jax.vmap(normal_loss)(coded, truth, frame, weight))
    means["normals_left_by_code"] = by_code / jnp.maximum(none, 1e-6)
    return total, means


def optimiser(settings: TrainingSettings) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) with warm-up, a cosine to a hundredth, and gradients limited in length."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warm_up, max(settings.steps, settings.warm_up + 1),
        0.01 * settings.learning_rate,
    )  # fmt: skip
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.99, weight_decay=settings.weight_decay, mask=_matrices),
    )


def _matrices(parameters):
    return jax.tree.map(lambda x: None if x is None else jnp.ndim(x) > 1, parameters)


def start(network: DetailNetwork, settings: TrainingSettings) -> State:
    """The state before the first step."""
    own = optimiser(settings).init(eqx.filter(network, eqx.is_inexact_array))
    return State(network, network, own, jnp.zeros((), jnp.int32))


class Trainer:
    """Compiled steps on all local devices: examples are spread over them, parameters are on each."""

    def __init__(self, shared: Shared, settings: TrainingSettings, devices: Sequence[Any] | None = None):
        devices = jax.local_devices() if devices is None else list(devices)
        if (2 * settings.people) % len(devices) != 0:
            raise TrainingError(
                f"train-detail: got {2 * settings.people} photos in a batch and {len(devices)} devices, expected a "
                f"multiple. Set --batch to a multiple of {max(len(devices) // 2, 1)} people."
            )
        mesh = jax.sharding.Mesh(np.array(devices), ("photo",))
        self.settings = settings
        self.spread = NamedSharding(mesh, PartitionSpec("photo"))
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.shared = jax.device_put(shared, self.everywhere)

        def advance(state: State, batch: Batch, shared: Shared):
            key, mixture_key = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), state.step))
            batch, added = recombined(batch, random_mixture(mixture_key, len(batch.known)))
            gradient = eqx.filter_value_and_grad(losses, has_aux=True)
            (total, terms), slope = gradient(state.network, batch, shared, settings, key, added)
            parameters = eqx.filter(state.network, eqx.is_inexact_array)
            change, own = optimiser(settings).update(slope, state.optimiser, parameters)
            network = eqx.apply_updates(state.network, change)
            # Early on, the mean of few.
            share = jnp.minimum(settings.average, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(
                lambda a, b: share * a + (1 - share) * b if eqx.is_inexact_array(a) else a, state.average, network
            )
            return State(network, average, own, state.step + 1), {"total": total, **terms}

        self._advance = eqx.filter_jit(advance)
        self._losses = eqx.filter_jit(losses)

    def placed(self, state: State) -> State:
        """A state on the devices."""
        arrays, rest = eqx.partition(state, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, self.everywhere), rest)

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        """One step, and the terms before it."""
        return self._advance(state, jax.device_put(batch, self.spread), self.shared)

    def evaluate(self, network: DetailNetwork, batch: Batch) -> dict[str, Array]:
        """The terms of a batch."""
        key = jax.random.key(0)
        return self._losses(network, jax.device_put(batch, self.spread), self.shared, self.settings, key)[1]


# -------------------------------------------------------------------------------------------------------- data


class People:
    """The examples of a folder; two photos of each person in a batch, in an order that the seed and the step decide.

    With a `mirror` every other person is seen in it: as good as another person.
    """

    def __init__(self, files: Sequence[Path], settings: TrainingSettings, mirror: Mirror | None = None):
        if not files:
            raise TrainingError(
                "train-detail: got no examples, expected at least one person. Give --people or --photos."
            )
        self.files, self.settings, self.mirror = list(files), settings, mirror

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        each, count = self.settings.people, len(self.files)
        chosen = []
        for k in range(step * each, (step + 1) * each):
            order = np.random.default_rng([self.settings.seed, k // count]).permutation(count)
            chosen.append(self.files[order[k % count]])
        rng = np.random.default_rng([self.settings.seed, 1, step])
        pairs = [_pair(read_person(path), rng) for path in chosen]
        turned = rng.random(len(pairs)) < 0.5
        if self.mirror is not None:
            pairs = [mirrored(p, self.mirror) if turn else p for p, turn in zip(pairs, turned, strict=True)]
        return stacked(pairs)


def _pair(person: Example, rng: np.random.Generator) -> Example:
    """Two photos of a person; the only one twice."""
    count = len(person.known)
    which = rng.permutation(count)[:2] if count > 1 else np.zeros(2, int)
    return Example(*(value[which] for value in person))


def stacked(pairs: Sequence[Example]) -> Example:
    """Pairs of several people as a batch. Own photos have no groups of wrinkles: padded with none."""
    groups = max(max(p.wrinkles.shape[1] for p in pairs), 1)

    def padded(values):
        missing = groups - values.shape[1]
        return np.pad(values, [(0, 0), (0, missing)] + [(0, 0)] * (values.ndim - 2)) if missing else values

    even = [p._replace(wrinkles=padded(p.wrinkles), drivers=padded(p.drivers)) for p in pairs]
    return Example(*(np.concatenate(values) for values in zip(*even, strict=True)))


def train(
    trainer: Trainer,
    state: State,
    people: People,
    until: int,
    report: Callable[[int, State, dict[str, float]], None] = lambda *_: None,
    every: int = 25,
) -> State:
    """Steps from the state's own up to `until`; `report` gets the mean of each term over every so many steps."""
    recent: list[dict[str, Array]] = []
    with ThreadPoolExecutor(1) as reader:
        first = int(state.step)
        coming = reader.submit(people.batch, first)
        for step in range(first, until):
            batch = coming.result()
            coming = reader.submit(people.batch, step + 1)
            state, terms = trainer.step(state, batch)
            recent.append(terms)
            if (step + 1) % every == 0 or step + 1 == until:
                means = {name: float(np.mean([float(t[name]) for t in recent])) for name in terms}
                if not all(np.isfinite(v) for v in means.values()):
                    raise TrainingError(
                        f"train-detail: got a loss that is not finite after step {step + 1}, expected numbers. "
                        "Resume from the last checkpoint with a smaller --learning-rate."
                    )
                report(step + 1, state, means)
                recent = []
    return state
