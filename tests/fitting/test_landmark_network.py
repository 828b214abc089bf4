"""The landmark network: what it says, what its answers cost, how it learns, and its files."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from helpers import finite_difference

from fitting.landmark_checkpoint import begun_from, load_checkpoint, load_network, save_checkpoint, save_network
from fitting.landmark_losses import (
    LandmarkLossWeights,
    Truth,
    identity_shares,
    landmark_terms,
    likelihood,
    posed_parameters,
    within_one_sigma,
)
from fitting.landmark_mirror import mirror_of
from fitting.landmark_network import Consensus, Dense, LandmarkNetwork, Prediction, Refinement, rotation_from_columns
from fitting.landmark_training import (
    LandmarkTraining,
    LandmarkTrainingError,
    Pool,
    Trainer,
    mean_points,
    shared_by,
    start,
    train,
    varied,
)
from fitting.parameter_losses import PARAMETER_LOSSES
from fitting.portraits.stream import Examples
from fitting.weights_file import CheckpointError
from morphable.landmarks import MIRROR_68, SurfacePoints

SIZE, CHUNK = 32, 8
SETTINGS = LandmarkTraining(steps=6, batch=4, warm_up=2, pool=16, reuse=2.0, identity_rank=3)


def network(tiny) -> LandmarkNetwork:
    """A small one for the tiny model, of the 68 points alone."""
    return eqx.filter_jit(LandmarkNetwork)(
        jax.random.key(0),
        tiny.landmarks,
        len(tiny.expression_names),
        tiny.shape.rank,
        size=SIZE,
        widths=(16, 32),
        depths=(1, 1),
    )


def examples(tiny, index: int, count: int = CHUNK) -> Examples:
    """Heads under weak perspective, each landmark a grey level of its own in the picture."""
    rng = np.random.default_rng([7, index])
    identity = rng.normal(size=(count, tiny.shape.rank)).astype(np.float32)
    expression = rng.random((count, len(tiny.expression_names))).astype(np.float32)
    turn = jax.vmap(jaxlie.SO3.exp)(jnp.asarray(0.4 * rng.normal(size=(count, 3)), jnp.float32)).as_matrix()
    rotation = np.asarray(turn @ jnp.diag(jnp.asarray([1.0, -1.0, -1.0])), np.float32)
    scale, origin = 0.12 * np.exp(0.1 * rng.normal(size=count)), SIZE * (0.5 + 0.05 * rng.normal(size=(count, 2)))
    points = jax.vmap(lambda i, e: tiny.landmarks(tiny.vertices(i, e)))(jnp.asarray(identity), jnp.asarray(expression))
    turned = np.einsum("nij,npj->npi", rotation, np.asarray(points))[..., :2]
    landmarks = (scale[:, None, None] * turned + origin[:, None]).astype(np.float32)
    pixels = rng.integers(0, 255, (count, SIZE, SIZE, 3)).astype(np.uint8)
    placement = np.concatenate([origin, scale[:, None]], axis=1).astype(np.float32)
    visible = (rng.random((count, 68)) < 0.8).astype(np.float16)
    return Examples(pixels, landmarks, visible, rotation, placement, identity, expression)


@pytest.fixture(scope="module")
def shared_by_tiny(tiny):
    return shared_by(tiny, jnp.asarray(MIRROR_68), 3, vertices=20)


@pytest.fixture(scope="module")
def trainer(shared_by_tiny):
    return Trainer(shared_by_tiny, SETTINGS)


@pytest.fixture(scope="module")
def fresh(tiny):
    return network(tiny)


# ------------------------------------------------------------------------------------------------------ answers


def test_rotations_from_columns_are_rotations_and_keep_those_that_are_columns_of_one(key):
    columns = jax.random.normal(key, (50, 2, 3))
    found = jax.vmap(rotation_from_columns)(columns)
    np.testing.assert_allclose(found @ jnp.swapaxes(found, 1, 2), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.det(found), 1.0, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(rotation_from_columns)(jnp.swapaxes(found, 1, 2)[:, :2]), found, atol=1e-5)


def test_a_network_says_something_of_every_size_it_should(tiny, fresh):
    said = eqx.filter_jit(lambda n, x: n(x))(fresh, jnp.full((SIZE, SIZE, 3), 0.5))
    assert said.landmarks.shape == (68, 2) and said.log_sigma.shape == said.visible.shape == (68,)
    assert said.expression.shape == (len(tiny.expression_names),) and said.identity.shape == (tiny.shape.rank,)
    assert (fresh.widths, fresh.depths, fresh.points) == ((16, 32), (1, 1), 68)
    # Untrained, it says the mean: a head that faces the camera, near the middle.
    np.testing.assert_allclose(said.rotation, np.diag([1.0, -1.0, -1.0]), atol=0.5)
    with pytest.raises(ValueError, match="multiple of 8 and at least two multiples of 16"):
        LandmarkNetwork(jax.random.key(0), tiny.landmarks, 3, 4, size=36, widths=(16, 32), depths=(1, 1))


def test_a_landmark_goes_where_its_query_draws_it_and_no_farther_than_it_looks(key):
    refinement = Refinement(key, 5, (16, 32))
    fine, coarse = jax.random.normal(key, (8, 8, 16)), jax.random.normal(jax.random.fold_in(key, 1), (4, 4, 32))
    rough = jnp.asarray([[0.0, 0.0], [0.2, 0.1], [-0.3, 0.3], [0.6, 0.0], [0.0, -0.45]])
    act = eqx.filter_jit(lambda r, maps: r(maps, rough))
    shift, more = act(refinement, (fine, coarse))
    np.testing.assert_allclose(shift, 0.0, atol=1e-6)  # untrained, it leaves landmarks where they are
    np.testing.assert_array_equal(more, 0.0)
    seen = np.asarray(refinement.seen((fine, coarse)))
    channel = int(np.argmax(seen.std(axis=(0, 1))))
    row, column = np.unravel_index(np.argmax(seen[..., channel]), seen.shape[:2])
    drawn = eqx.tree_at(lambda r: r.queries, refinement, refinement.queries.at[:, channel].set(1e4))
    far = eqx.tree_at(lambda r: r.reach, drawn, jnp.full(5, 8.0))  # nowhere is far
    strongest = (np.array([column, row]) - 1 + 0.5) / 8 - 0.5
    np.testing.assert_allclose(act(far, (fine, coarse))[0], np.broadcast_to(strongest, (5, 2)), atol=1e-4)
    near = eqx.tree_at(lambda r: (r.queries, r.reach), drawn, (1e-3 * drawn.queries, jnp.full(5, np.log(0.02))))
    assert float(jnp.abs(act(near, (fine, coarse))[0]).max()) < 0.2


def test_landmarks_say_the_same_together_wherever_the_crop_was_cut(key):
    fresh = Consensus(key, 68, 7)
    landmarks, log_sigma = 0.2 * jax.random.normal(key, (68, 2)), jnp.full(68, -3.0)
    act = eqx.filter_jit(lambda c, points: c(points, log_sigma))
    for found in act(fresh, landmarks):  # untrained, it changes nothing
        np.testing.assert_array_equal(found, 0.0)
    learnt = eqx.tree_at(lambda c: c.out, fresh, Dense(jax.random.fold_in(key, 1), fresh.hidden.offset.shape[0], 143))
    shift, others = act(learnt, landmarks)
    elsewhere = 0.7 * landmarks + jnp.asarray([0.1, -0.2])
    assert float(jnp.abs(act(learnt, elsewhere)[1] - others).max()) > 1e-3  # it is told where
    blind = eqx.tree_at(lambda c: c.hidden.matrix, learnt, learnt.hidden.matrix.at[:, -3:].set(0.0))
    one, two = act(blind, landmarks), act(blind, elsewhere)
    np.testing.assert_allclose(two[0], 0.7 * one[0], atol=1e-4)
    np.testing.assert_allclose(two[1], one[1], rtol=1e-2, atol=1e-2)
    assert float(jnp.abs(shift).max()) > 1e-3


# ------------------------------------------------------------------------------------------------------- losses


def test_the_likeliest_deviation_is_that_of_the_errors(key):
    errors = 0.03 * jax.random.normal(key, (4000, 2))
    cost = lambda log_sigma: jnp.mean(likelihood(errors, jnp.full(4000, log_sigma), jnp.zeros((4000, 2))))  # noqa: E731
    grid = jnp.linspace(-6.0, -1.0, 501)
    best = float(grid[jnp.argmin(jax.vmap(cost)(grid))])
    assert best == pytest.approx(np.log(0.03), abs=0.03)
    inside = within_one_sigma(errors, jnp.full(4000, best), jnp.zeros((4000, 2)))
    assert float(jnp.mean(inside)) == pytest.approx(0.683, abs=0.02)


def test_the_likelihood_pulls_surer_points_more():
    pull = jax.grad(lambda x, s: likelihood(x, s, jnp.zeros((1, 2)))[0])
    error = jnp.asarray([[0.01, 0.0]])
    sure, unsure = (pull(error, jnp.asarray([s]))[0, 0] for s in (-4.0, -3.0))
    assert float(sure / unsure) == pytest.approx(np.exp(2.0), rel=1e-4)
    along = lambda t: likelihood(error.at[0, 0].set(t[0]), jnp.asarray([-2.0]), jnp.zeros((1, 2)))[0]  # noqa: E731
    numeric = finite_difference(along, error[0, :1], 1e-3)
    np.testing.assert_allclose(pull(error, jnp.asarray([-2.0]))[0, :1], numeric, rtol=2e-2)


def truths(tiny) -> Truth:
    return varied(examples(tiny, 0, 4), jax.random.key(0), mirror_of(tiny, jnp.asarray(MIRROR_68)), vary=False)[1]


def test_every_loss_is_nothing_at_the_truth_and_something_beside_it(tiny, shared_by_tiny):
    truth = jax.tree.map(lambda x: jnp.asarray(x[0]), truths(tiny))
    names = (*PARAMETER_LOSSES, "none")

    @jax.jit
    def cost(said):
        every = {n: LandmarkLossWeights(parameters=n, regression=1.0) for n in names}
        return {n: landmark_terms(said, truth, w, shared_by_tiny.basis) for n, w in every.items()}

    right = Prediction(
        truth.landmarks, jnp.full(68, -3.0), 20.0 * (2.0 * truth.visible - 1.0), truth.rotation, truth.placement,
        truth.expression, truth.identity,
    )  # fmt: skip
    turn = jaxlie.SO3.exp(jnp.asarray([0.1, -0.2, 0.1])).as_matrix()
    wrong = Prediction(
        right.landmarks + 0.02, right.log_sigma, -right.visible, turn @ right.rotation, right.placement + 0.1,
        right.expression + 0.2, right.identity - 0.5,
    )  # fmt: skip
    exact, off = cost(right), cost(wrong)
    for name in names:
        assert ("parameters" in exact[name]) == (name != "none")
        for term in set(exact[name]) - {"likelihood"}:
            assert float(off[name][term]) > 5e-4 and abs(float(exact[name][term])) < 5e-5, (name, term)
        assert float(off[name]["likelihood"]) > float(exact[name]["likelihood"])


def test_a_coefficient_of_identity_counts_by_how_far_it_moves_the_face(tiny):
    basis = shared_by(tiny, jnp.asarray(MIRROR_68), 3, vertices=10**6).basis
    shares = np.asarray(identity_shares(basis, tiny.shape.rank))
    face = np.asarray(tiny.masks["face"]) > 0.5
    moved = np.square(np.asarray(tiny.shape.modes)[face]).sum(axis=(0, 1))[:3]
    np.testing.assert_allclose(shares[1:3] / shares[0], moved[1:] / moved[0], rtol=1e-4)
    np.testing.assert_array_equal(shares[3:], shares[2])
    assert shares.sum() == pytest.approx(1.0, abs=1e-5)


def test_the_choice_between_losses_is_no_loss(tiny, shared_by_tiny):
    truth = jax.tree.map(lambda x: jnp.asarray(x[0]), truths(tiny))
    said = Prediction(truth.landmarks, jnp.zeros(68), truth.visible, truth.rotation, truth.placement, truth.expression,
                      truth.identity)  # fmt: skip
    with pytest.raises(ValueError, match="got joint, expected one of fwpdc, vdc"):
        landmark_terms(said, truth, LandmarkLossWeights(parameters="joint"), shared_by_tiny.basis)


def test_parameters_pose_the_landmarks_where_the_crop_shows_them(head):
    few = examples(head, 0, 4)
    truth = varied(few, jax.random.key(0), mirror_of(head, jnp.asarray(MIRROR_68)), vary=False)[1]

    @jax.jit
    @jax.vmap
    def seen(one):
        posed = posed_parameters(one, head.shape.rank)
        points = head.landmarks(head.vertices(one.identity, one.expression))
        return posed.scale * points @ posed.rotation[:2].T + posed.shift

    np.testing.assert_allclose(seen(truth) / 100.0, truth.landmarks, atol=3e-4)


# ------------------------------------------------------------------------------------------ turned and tinted


def test_what_happens_to_pixels_happens_to_the_truth(tiny):
    # A bright dot at one landmark is still there after all changes, and the head's pose still puts it there.
    plain = examples(tiny, 3)
    mirror = mirror_of(tiny, jnp.asarray(MIRROR_68))
    v, u = np.mgrid[:SIZE, :SIZE] + 0.5
    for point in (30, 8):
        away = np.hypot(u - plain.landmarks[:, point, 0, None, None], v - plain.landmarks[:, point, 1, None, None])
        dots = plain._replace(pixels=np.repeat((255 * np.exp(-0.25 * away**2))[..., None], 3, -1).astype(np.uint8))
        pixels, truth = varied(dots, jax.random.key(5), mirror)
        moved = np.abs(np.asarray(truth.landmarks[:, point] + 0.5) * SIZE - plain.landmarks[:, point])
        assert moved.max() > 1.0
        found = 0
        for k in range(CHUNK):
            grey = np.asarray(pixels[k]).mean(axis=2)
            grey = np.clip(grey - 0.6 * grey.max(), 0, None)
            at = np.array([(grey * u).sum(), (grey * v).sum()]) / grey.sum()
            found += np.linalg.norm(at - SIZE * (np.asarray(truth.landmarks[k, point]) + 0.5)) < 1.0
        assert found >= CHUNK - 3  # a box of one colour lies over some
    assert float(jnp.min(pixels)) >= 0 and float(jnp.max(pixels)) <= 1


def test_a_head_in_the_mirror_is_a_head_of_the_model(head):
    # Turned, shifted, mirrored: pose and coefficients of the truth put the landmarks where the truth has them.
    plain = examples(head, 2)
    pixels, truth = varied(plain, jax.random.key(6), mirror_of(head, jnp.asarray(MIRROR_68)))
    assert float(jnp.min(pixels)) >= 0 and float(jnp.max(pixels)) <= 1
    vertices = jax.jit(jax.vmap(head.vertices))(truth.identity, truth.expression)
    points = jax.vmap(head.landmarks)(vertices)
    scale, origin = jnp.exp(truth.placement[:, 2]) / 100, truth.placement[:, :2]
    seen = scale[:, None, None] * jnp.einsum("nij,npj->npi", truth.rotation[:, :2], points) + origin[:, None]
    np.testing.assert_allclose(seen, truth.landmarks, atol=3e-4)
    assert np.sign(np.asarray(truth.rotation[:, 0, 2] * plain.rotation[:, 0, 2])).min() < 0  # some were mirrored


def test_without_variation_an_example_stays_as_it_is(tiny):
    plain = examples(tiny, 1)
    pixels, truth = varied(plain, jax.random.key(0), mirror_of(tiny, jnp.asarray(MIRROR_68)), vary=False)
    np.testing.assert_allclose(pixels, plain.pixels / 255.0, atol=1e-6)
    np.testing.assert_allclose((truth.landmarks + 0.5) * SIZE, plain.landmarks, atol=1e-4)
    np.testing.assert_allclose(mean_points([plain]), np.mean(np.asarray(truth.landmarks), axis=0), atol=1e-6)


# ----------------------------------------------------------------------------------------------------- training


def pool(tiny, settings=SETTINGS, asked=None) -> Pool:
    def chunk(index: int) -> Examples:
        if asked is not None:
            asked.append(index)
        return examples(tiny, index)

    return Pool(chunk, settings, CHUNK)


def test_the_pool_gives_the_same_batch_at_the_same_step_and_lets_go_of_old_portraits(tiny):
    asked: list[int] = []
    one, other = pool(tiny, asked=asked), pool(tiny)
    batches = [one.batch(step) for step in range(30)]
    np.testing.assert_array_equal(batches[29].landmarks, other.batch(29).landmarks)
    assert asked == sorted(set(asked))  # each is rendered once, in order
    assert len(one.held) <= SETTINGS.pool // CHUNK and min(one.held) == one.oldest(29) > 0
    # Each portrait is looked at `reuse` times, on average.
    assert 30 * SETTINGS.batch / (CHUNK * one.chunks_by(29)) == pytest.approx(SETTINGS.reuse, rel=0.2)


def test_training_resumed_from_a_checkpoint_ends_where_an_unbroken_one_does(tiny, trainer, fresh, tmp_path):
    settings = SETTINGS
    whole = train(trainer, trainer.placed(start(fresh, settings)), pool(tiny), settings.steps)
    half = train(trainer, trainer.placed(start(fresh, settings)), pool(tiny), 3)
    save_checkpoint(tmp_path / "c.safetensors", half, tiny, {"log": [1]})
    back, record = load_checkpoint(tmp_path / "c.safetensors", settings)
    assert record == {"log": [1]} and int(back.step) == 3
    rest = train(trainer, trainer.placed(back), pool(tiny), settings.steps)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True):
        np.testing.assert_array_equal(one, other)
    # What is not learnt has stayed.
    np.testing.assert_array_equal(whole.network.surface.weights, fresh.surface.weights)
    np.testing.assert_array_equal(whole.network.mean_points, fresh.mean_points)


def test_losses_that_compete_are_chosen_alike_after_a_checkpoint(tiny, shared_by_tiny, fresh):
    settings = dataclasses.replace(SETTINGS, look_ahead=2, weights=LandmarkLossWeights(parameters="joint"))
    trainer, reports = Trainer(shared_by_tiny, settings), []
    told = lambda step, _, terms: reports.append((step, terms))  # noqa: E731
    begun = trainer.placed(start(fresh, settings))
    whole = train(trainer, begun, pool(tiny, settings), 4, told, every=2)
    half = train(trainer, begun, pool(tiny, settings), 2)
    rest = train(trainer, half, pool(tiny, settings), 4)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(whole.step) == 4 and [step for step, _ in reports] == [2, 4]
    assert all(terms["fwpdc_chosen"] in (0.0, 1.0) and terms["parameters"] > 0 for _, terms in reports)
    with pytest.raises(LandmarkTrainingError, match="got 5 steps and reports every 2, expected multiples of 2"):
        train(trainer, begun, pool(tiny, settings), 5, every=2)


def test_training_learns(tiny, trainer, fresh):
    few = examples(tiny, 0, 4)
    state = trainer.placed(start(fresh, SETTINGS))
    first = None
    for _ in range(25):
        state, terms = trainer.step(state, few)
        first = first or float(terms["total"])
    assert float(terms["total"]) < first - 0.5
    figures = trainer.evaluate(state.average, few)
    assert {"nme68", "degrees", "within_sigma", "nme_visible"} <= set(figures)
    assert 0 <= figures["within_sigma"] <= 1


def test_a_loss_that_is_not_finite_stops_the_training(tiny, trainer, fresh):
    broken = eqx.tree_at(lambda n: n.features.offset, fresh, jnp.full_like(fresh.features.offset, jnp.nan))
    with pytest.raises(LandmarkTrainingError, match="not finite after step 2"):
        train(trainer, trainer.placed(start(broken, SETTINGS)), pool(tiny), 4, every=2)


def test_batches_that_devices_cannot_share_are_refused(shared_by_tiny):
    with pytest.raises(LandmarkTrainingError, match="multiple of 3"):
        Trainer(shared_by_tiny, SETTINGS, devices=jax.local_devices() * 3)


def test_devices_share_a_batch_and_maps_may_be_of_half_precision(tiny, trainer, fresh, tmp_path):
    alone, terms = trainer.placed(start(fresh, SETTINGS)), {}
    for _ in range(3):
        alone, terms = trainer.step(alone, examples(tiny, 0, 4))
    root = Path(__file__).parents[2]
    script = f"""
import dataclasses, importlib.util, sys
sys.path[:0] = [{str(root)!r}, {str(root / "tests")!r}]
import jax, jax.numpy as jnp, numpy as np
from helpers import tiny_model
spec = importlib.util.spec_from_file_location("cases", {__file__!r})
cases = importlib.util.module_from_spec(spec); spec.loader.exec_module(cases)
tiny = tiny_model()
settings = dataclasses.replace(cases.SETTINGS, bfloat16=True)
trainer = cases.Trainer(cases.shared_by(tiny, jnp.asarray(cases.MIRROR_68), 3, vertices=20), settings)
state = trainer.placed(cases.start(cases.network(tiny), settings))
for step in range(3):
    state, terms = trainer.step(state, cases.examples(tiny, 0, 4))
assert len(state.step.sharding.device_set) == 2
assert state.network.head.matrix.dtype == jnp.float32
np.savez({str(tmp_path / "out.npz")!r}, offset=state.network.head.offset, total=terms["total"])
"""
    flags = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags}, cwd=root
    )
    assert done.returncode == 0, done.stderr
    out = np.load(tmp_path / "out.npz")
    assert float(out["total"]) == pytest.approx(float(terms["total"]), rel=0.02)
    # A step of AdamW has the size of its rate, whatever the gradient: half precision turns the sign of small ones.
    moved, mine = out["offset"] - fresh.head.offset, np.asarray(alone.network.head.offset - fresh.head.offset)
    assert np.abs(mine).max() > 0.5 * SETTINGS.learning_rate
    assert np.corrcoef(moved, mine)[0, 1] > 0.95


# -------------------------------------------------------------------------------------------------------- files


def test_another_networks_weights_are_a_start_as_far_as_they_fit(tiny, fresh, tmp_path):
    path = tmp_path / "w.safetensors"
    save_network(path, fresh, tiny, {})
    other = eqx.filter_jit(LandmarkNetwork)(
        jax.random.key(1), tiny.landmarks, 2, tiny.shape.rank, size=SIZE, widths=(16, 48), depths=(1, 1)
    )
    begun, left = begun_from(path, other)
    np.testing.assert_allclose(begun.stem[0].filters, fresh.stem[0].filters, atol=1e-3)
    np.testing.assert_array_equal(begun.head.matrix, other.head.matrix)  # fewer units
    assert {"head.matrix", "downs.0.filters"} <= set(left) and "stem.0.filters" not in left
    np.testing.assert_array_equal(begun.surface.weights, other.surface.weights)
    assert begun_from(path, fresh)[1] == []


def test_weights_go_around_and_are_for_their_model(tiny, head, fresh, tmp_path):
    path = tmp_path / "w.safetensors"
    save_network(path, fresh, tiny, {"figures": {"steps": 1}})
    back = load_network(path, tiny)
    for one, other in zip(*(jax.tree.leaves(eqx.filter(n, eqx.is_array)) for n in (fresh, back)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(back.surface.weights, fresh.surface.weights)
    with pytest.raises(CheckpointError, match="expected those of .*train-landmarks --model"):
        load_network(path, head)
    moved = dataclasses.replace(
        tiny, landmarks=SurfacePoints(tiny.landmarks.vertices[::-1], tiny.landmarks.weights[::-1])
    )
    with pytest.raises(CheckpointError, match="expected those of"):
        load_network(path, moved)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no safetensors"):
        load_network(tmp_path / "cut.safetensors", tiny)
    bad = eqx.tree_at(lambda n: n.head.offset, fresh, jnp.full_like(fresh.head.offset, jnp.inf))
    save_network(path, bad, tiny, {})
    with pytest.raises(CheckpointError, match="not finite"):
        load_network(path, tiny)
