"""Training of a landmark network on portraits that are rendered as it goes, on one device or several.

The state after a step is a function of the settings alone: which portraits a batch has, how they are turned, shifted
and tinted are drawn from (seed, step). So a run that is stopped and resumed ends where an unbroken one does.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from fitting.landmark_losses import JOINT, LandmarkLossWeights, Truth, landmark_terms, within_one_sigma
from fitting.landmark_mirror import Mirror, mirror_of, reflected
from fitting.landmark_network import LandmarkNetwork, Prediction
from fitting.parameter_losses import LossBasis, LossName, choose_loss, loss_basis
from fitting.portraits.stream import Examples
from morphable.model import MorphableModel


class LandmarkTrainingError(ValueError):
    """Training that cannot start or go on: what, got, expected, remedy."""


@dataclasses.dataclass(frozen=True)
class LandmarkTraining:
    """Everything that decides the result besides the portraits."""

    steps: int = 20_000
    batch: int = 32
    learning_rate: float = 1e-3
    warm_up: int = 300  # steps
    weight_decay: float = 0.02
    average: float = 0.999  # of the weights that are kept: an exponential mean over steps
    seed: int = 0
    bfloat16: bool = False  # for maps and filters; parameters and sums stay float32
    reuse: float = 3.0  # times that each portrait is looked at, turned and tinted otherwise
    pool: int = 32_768  # portraits that a batch is drawn from: the latest ones
    identity_rank: int = 60  # coefficients that the parameter losses count
    look_ahead: int = 10  # steps with each of two losses before one is chosen, where weights.parameters is "joint"
    weights: LandmarkLossWeights = LandmarkLossWeights()


class Shared(NamedTuple):
    """What all examples of a model have in common."""

    mirror: Mirror
    basis: LossBasis


def shared_by(model: MorphableModel, points: Array, identity_rank: int, vertices: int = 300) -> Shared:
    """What training needs of a model."""
    face = np.flatnonzero(np.asarray(model.masks.get("face", np.ones(len(model.mean)))) > 0.5)
    chosen = face[:: max(1, len(face) // vertices)]
    plain = eqx.tree_at(lambda m: m.interaction, model, None, is_leaf=lambda x: x is None)
    return Shared(mirror_of(model, points), loss_basis(plain, chosen, min(identity_rank, model.shape.rank)))


class State(NamedTuple):
    """What a checkpoint holds."""

    network: LandmarkNetwork
    average: LandmarkNetwork
    optimiser: Any
    step: Array


# ------------------------------------------------------------------------------------------------ turned and tinted


def varied(
    examples: Examples, key: Key[Array, ""], mirror: Mirror, vary: bool = True
) -> tuple[Float[Array, "example size size 3"], Truth]:
    """A batch's crops in [0, 1] and truths, mirrored, turned, shifted, tinted and patched at random."""
    size = examples.pixels.shape[1]
    keys = jax.random.split(key, examples.pixels.shape[0])
    return jax.vmap(lambda e, k: _varied(e, k, mirror, size, vary))(examples, keys)


_TURN, _SCALE, _SHIFT = 0.12, 0.06, 0.03  # deviations: radians, logarithm, sides of the crop


def _varied(example: Examples, key, mirror: Mirror, size: int, vary: bool):
    pixels = jnp.asarray(example.pixels, jnp.float32) / 255.0
    placement = jnp.asarray(example.placement)
    truth = Truth(
        landmarks=jnp.asarray(example.landmarks) / size - 0.5,
        placement=jnp.append(placement[:2] / size - 0.5, jnp.log(placement[2] * 100.0 / size)),
        **{n: jnp.asarray(getattr(example, n), jnp.float32) for n in ("visible", "rotation", "identity", "expression")},
    )
    if vary:
        flip_key, warp_key, tint_key, patch_key = jax.random.split(key, 4)
        flip = jax.random.bernoulli(flip_key)
        either = lambda there, here: jnp.where(flip, there, here)  # noqa: E731
        pixels, truth = jax.tree.map(either, (pixels[:, ::-1], reflected(truth, mirror)), (pixels, truth))

        n = jnp.clip(jax.random.normal(warp_key, (4,)), -2.5, 2.5)
        angle, zoom, shift = _TURN * n[0], jnp.exp(_SCALE * n[1]), _SHIFT * n[2:]
        c, s = jnp.cos(angle), jnp.sin(angle)
        spin = jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])])
        forward = zoom * spin  # of points about the crop's middle
        pixels = _warped(pixels, jnp.linalg.inv(forward), shift)
        points = truth.landmarks @ forward.T + shift
        pixels = _tinted(pixels, tint_key)
        visible = truth.visible * jnp.all(jnp.abs(points) < 0.5, axis=1)
        pixels, visible = _patched(pixels, points, visible, patch_key)
        truth = truth._replace(
            landmarks=points,
            visible=visible,
            rotation=jnp.eye(3).at[:2, :2].set(spin) @ truth.rotation,
            placement=jnp.append(forward @ truth.placement[:2] + shift, truth.placement[2] + jnp.log(zoom)),
        )
    return pixels, truth


def _warped(pixels, backward, shift):
    """The crop resampled bilinearly; what is outside is what is at the border."""
    size = pixels.shape[0]
    place = (jnp.arange(size) + 0.5) / size - 0.5
    v, u = jnp.meshgrid(place, place, indexing="ij")
    source = (jnp.stack([u, v], axis=-1) - shift) @ backward.T
    x, y = (jnp.clip((source[..., k] + 0.5) * size - 0.5, 0.0, size - 1.001) for k in range(2))
    i, j = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    a, b = (y - i)[..., None], (x - j)[..., None]
    flat = pixels.reshape(size * size, 3)
    at = lambda di, dj: flat[(i + di) * size + j + dj]  # noqa: E731
    return (1 - a) * ((1 - b) * at(0, 0) + b * at(0, 1)) + a * ((1 - b) * at(1, 0) + b * at(1, 1))


def _tinted(pixels, key):
    u = jax.random.uniform(key, (6,))
    gain = jnp.exp(0.3 * (u[0] - 0.5) + 0.12 * (u[1:4] - 0.5))
    return jnp.clip(pixels * gain + 0.08 * (u[4] - 0.5), 0.0, 1.0) ** jnp.exp(0.4 * (u[5] - 0.5))


def _patched(pixels, points, visible, key):
    """A box of one colour over a part of some crops: what is hidden has to be told from the rest."""
    u = jax.random.uniform(key, (9,))
    low, extent = u[:2] * 1.1 - 0.55, 0.06 + 0.3 * u[2:4]
    high = low + jnp.where(u[4] < 0.25, extent, 0.0)
    size = pixels.shape[0]
    place = (jnp.arange(size) + 0.5) / size - 0.5
    within = lambda p, k: (p > low[k]) & (p < high[k])  # noqa: E731
    inside = within(place, 1)[:, None] & within(place, 0)[None]
    hidden = within(points[:, 0], 0) & within(points[:, 1], 1)
    return jnp.where(inside[..., None], u[5:8], pixels), jnp.where(hidden, 0.0, visible)


# -------------------------------------------------------------------------------------------------------- training


def losses(
    network: LandmarkNetwork, examples: Examples, shared: Shared, settings: LandmarkTraining, key, vary: bool = True
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of the terms and each of them, means over the batch; and figures to look at."""
    pixels, truth = varied(examples, key, shared.mirror, vary)
    said = jax.vmap(network)(pixels.astype(jnp.bfloat16 if settings.bfloat16 else jnp.float32))
    terms = jax.vmap(lambda s, t: landmark_terms(s, t, settings.weights, shared.basis))(said, truth)
    means = {name: jnp.mean(value) for name, value in terms.items()}
    return sum(means.values(), jnp.zeros(())), {**means, **figures(said, truth)}


def figures(said: Prediction, truth: Truth) -> dict[str, Float[Array, ""]]:
    """Errors that a person understands: means over a batch."""
    apart = jnp.linalg.norm(said.landmarks - truth.landmarks, axis=-1)
    box = jnp.max(truth.landmarks[:, :68], axis=1) - jnp.min(truth.landmarks[:, :68], axis=1)
    root = jnp.sqrt(box[:, 0] * box[:, 1])
    cosine = 0.5 * (jnp.trace(jnp.swapaxes(said.rotation, 1, 2) @ truth.rotation, axis1=1, axis2=2) - 1.0)
    sure = jax.vmap(within_one_sigma)(said.landmarks, said.log_sigma, truth.landmarks)
    return {
        "nme68": 100 * jnp.mean(jnp.mean(apart[:, :68], axis=1) / root),
        "nme_visible": 100 * jnp.sum(truth.visible * apart / root[:, None]) / jnp.maximum(jnp.sum(truth.visible), 1.0),
        "degrees": jnp.rad2deg(jnp.mean(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)))),
        "within_sigma": jnp.mean(sure),
    }


def optimiser(settings: LandmarkTraining) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) with warm-up, a cosine to a hundredth, and gradients limited in length."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warm_up, max(settings.steps, settings.warm_up + 1),
        0.01 * settings.learning_rate,
    )  # fmt: skip
    decayed = lambda tree: jax.tree.map(lambda x: None if x is None else jnp.ndim(x) > 2, tree)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.adamw(rate, b2=0.99, weight_decay=settings.weight_decay, mask=decayed),
    )


def _trained(network: LandmarkNetwork) -> Any:
    """Which leaves the optimiser moves: all but the points' mean places and what points they are."""
    mask = jax.tree.map(eqx.is_inexact_array, network)
    return eqx.tree_at(
        lambda n: (n.mean_points, n.surface), mask, (False, jax.tree.map(lambda _: False, network.surface))
    )


def start(network: LandmarkNetwork, settings: LandmarkTraining) -> State:
    """The state before the first step."""
    own = optimiser(settings).init(eqx.filter(network, _trained(network)))
    return State(network, network, own, jnp.zeros((), jnp.int32))


def _with_parameters(settings: LandmarkTraining, name: LossName) -> LandmarkTraining:
    return dataclasses.replace(settings, weights=dataclasses.replace(settings.weights, parameters=name))


class Trainer:
    """Compiled steps on all local devices: examples are spread over them, parameters are on each."""

    def __init__(self, shared: Shared, settings: LandmarkTraining, devices: Sequence[Any] | None = None):
        devices = jax.local_devices() if devices is None else list(devices)
        if settings.batch % len(devices) != 0:
            raise LandmarkTrainingError(
                f"train-landmarks: got a batch of {settings.batch} and {len(devices)} devices, expected a multiple. "
                f"Set --batch to a multiple of {len(devices)}."
            )
        mesh = jax.sharding.Mesh(np.array(devices), ("example",))
        self.settings = settings
        self.spread = NamedSharding(mesh, PartitionSpec("example"))
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.shared = jax.device_put(shared, self.everywhere)

        def advance(state: State, examples: Examples, shared: Shared, settings: LandmarkTraining):
            key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
            free, fixed = eqx.partition(state.network, _trained(state.network))
            loss = lambda f: losses(eqx.combine(f, fixed), examples, shared, settings, key)  # noqa: E731
            (total, terms), slope = jax.value_and_grad(loss, has_aux=True)(free)
            change, own = optimiser(settings).update(slope, state.optimiser, free)
            network = eqx.combine(eqx.apply_updates(free, change), fixed)
            # Early on, the mean of few.
            share = jnp.minimum(settings.average, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(
                lambda a, b: share * a + (1 - share) * b if eqx.is_inexact_array(a) else a, state.average, network
            )
            return State(network, average, own, state.step + 1), {"total": total, **terms}

        # By the loss that is the measure of both where two compete, as in 3DDFA_V2.
        judge = _with_parameters(settings, "vdc") if settings.weights.parameters == "joint" else settings

        def evaluate(network, examples, shared):
            total, terms = losses(network, examples, shared, judge, jax.random.key(0), vary=False)
            return {"total": total, **terms}

        self._advance = eqx.filter_jit(advance)
        self._evaluate = eqx.filter_jit(evaluate)

    @property
    def stride(self) -> int:
        """Steps that are taken at once."""
        return self.settings.look_ahead if self.settings.weights.parameters == "joint" else 1

    def placed(self, state: State) -> State:
        """A state on the devices."""
        arrays, rest = eqx.partition(state, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, self.everywhere), rest)

    def step(self, state: State, examples: Examples) -> tuple[State, dict[str, Array]]:
        """One step, and the terms before it."""
        return self._advance(state, jax.device_put(examples, self.spread), self.shared, self.settings)

    def joint_steps(self, state: State, batches: Sequence[Examples], held: Examples) -> tuple[State, dict[str, Array]]:
        """A step for each batch, all with whichever of two parameter losses leads to less VDC on a batch held back.

        Meta-joint optimisation (Guo et al. 2020, section 2.3). The terms are those of the held batch afterwards.
        """
        spread = lambda examples: jax.device_put(examples, self.spread)  # noqa: E731
        kinds = [_with_parameters(self.settings, name) for name in JOINT]
        advances = [lambda s, batch, kind=kind: self._advance(s, batch, self.shared, kind)[0] for kind in kinds]
        terms: list[dict[str, Array]] = []

        def error(state: State, batch: Examples) -> Array:
            terms.append(self._evaluate(state.network, batch, self.shared))
            return terms[-1]["parameters"]

        found = choose_loss(state, advances, error, [spread(b) for b in batches], spread(held))
        return found.state, terms[found.chosen] | {f"{JOINT[0]}_chosen": jnp.asarray(1.0 - found.chosen)}

    def evaluate(self, network: LandmarkNetwork, examples: Examples) -> dict[str, float]:
        """Terms and figures of examples as they are, means over whole batches."""
        count, each = len(examples.pixels), self.settings.batch
        found = []
        for first in range(0, count - each + 1, each):
            part = Examples(*(v[first : first + each] for v in examples))
            found.append(self._evaluate(network, jax.device_put(part, self.spread), self.shared))
        return {name: float(np.mean([float(f[name]) for f in found])) for name in found[0]}


class Pool:
    """The latest portraits, and which of them make a batch: a function of the step alone.

    Before step s the first `portraits_by(s)` portraits of the stream have come; a batch is drawn from the last `pool`
    of them. `chunk(k)` gives the stream's k-th chunk, whichever way it was made.
    """

    def __init__(self, chunk: Callable[[int], Examples], settings: LandmarkTraining, chunk_size: int):
        self.chunk, self.settings, self.chunk_size = chunk, settings, chunk_size
        self.held: dict[int, Examples] = {}

    def chunks_by(self, step: int) -> int:
        """Chunks that have come before a step; at least as many as fill a batch four times over."""
        wanted = (step + 1) * self.settings.batch / self.settings.reuse
        least = max(4 * self.settings.batch, self.chunk_size)
        return int(np.ceil(max(wanted, least) / self.chunk_size))

    def oldest(self, step: int) -> int:
        """The first chunk that a step may still use."""
        return max(0, self.chunks_by(step) - max(1, self.settings.pool // self.chunk_size))

    def batch(self, step: int) -> Examples:
        """The batch of a step; waits for portraits that are still to come."""
        first, end = self.oldest(step), self.chunks_by(step)
        for k in [k for k in self.held if k < first]:
            del self.held[k]
        for k in range(first, end):
            if k not in self.held:
                self.held[k] = self.chunk(k)
        rng = np.random.default_rng([self.settings.seed, step])
        chosen = rng.integers(first * self.chunk_size, end * self.chunk_size, self.settings.batch)
        rows = [(self.held[int(c) // self.chunk_size], int(c) % self.chunk_size) for c in chosen]
        return Examples(*(np.stack([getattr(e, name)[r] for e, r in rows]) for name in Examples._fields))


def mean_points(chunks: Iterable[Examples]) -> Float[np.ndarray, "point 2"]:
    """Where the landmarks are on average, in sides of the crop from its middle."""
    places = [np.mean(np.asarray(c.landmarks), axis=0) / c.pixels.shape[1] - 0.5 for c in chunks]
    return np.mean(places, axis=0).astype(np.float32)


def train(
    trainer: Trainer,
    state: State,
    pool: Pool,
    until: int,
    report: Callable[[int, State, dict[str, float]], None] = lambda *_: None,
    every: int = 100,
) -> State:
    """Steps from the state's own up to `until`; `report` gets the mean of each term over every so many steps.

    Where two losses compete, steps come in strides: `until` and `every` must be multiples, so that a resumed run
    chooses as an unbroken one does.
    """
    from concurrent.futures import ThreadPoolExecutor

    stride, first = trainer.stride, int(state.step)
    if until % stride or every % stride:
        raise LandmarkTrainingError(
            f"train-landmarks: got {until} steps and reports every {every}, expected multiples of {stride}, the steps "
            "after which a loss is chosen. Change --steps and --every."
        )
    recent: list[dict[str, Array]] = []
    with ThreadPoolExecutor(1) as reader:
        # Where losses compete, the batch after the stride's decides; the next stride begins with it.
        needed = lambda step: [pool.batch(k) for k in range(step, step + stride + (stride > 1))]  # noqa: E731
        coming = reader.submit(needed, first)
        for step in range(first, until, stride):
            batches, done = coming.result(), step + stride
            if done < until:
                coming = reader.submit(needed, done)
            if stride == 1:
                state, terms = trainer.step(state, batches[0])
            else:
                state, terms = trainer.joint_steps(state, batches[:-1], batches[-1])
            recent.append(terms)
            if done % every == 0 or done == until:
                means = {name: float(np.mean([float(t[name]) for t in recent])) for name in terms}
                if not all(np.isfinite(v) for v in means.values()):
                    raise LandmarkTrainingError(
                        f"train-landmarks: got a loss that is not finite after step {done}, expected numbers. "
                        "Resume from the last checkpoint with a smaller --learning-rate."
                    )
                report(done, state, means)
                recent = []
    return state
