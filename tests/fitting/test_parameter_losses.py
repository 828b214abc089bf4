"""Laws of the parameter losses: what they measure, that the fast form is the slow one, and that each leads home."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import optax
import pytest
from helpers import finite_difference, quickly
from scipy.optimize import lsq_linear

from fitting.parameter_losses import (
    PARAMETER_LOSSES,
    LossBasis,
    PosedParameters,
    choose_loss,
    fast_movements,
    landmark_regression_loss,
    loss_basis,
    mending_shares,
    movements,
    parameter_spread,
    posed,
    reciprocal_scale,
    vdc,
)
from renderer.camera import WeakPerspective

WEIGHTED = ("wpdc", "fwpdc", "owpdc")
FACING = jaxlie.SO3(jnp.array([0.0, 1.0, 0.0, 0.0]))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def basis_of(tiny, depth: bool = True, dtype=np.float64, spread=None) -> LossBasis:
    """Some vertices of the tiny head, in double precision."""
    model = jax.tree.map(lambda x: jnp.asarray(x, dtype) if eqx.is_inexact_array(x) else x, tiny)
    return loss_basis(model, np.arange(0, 169, 3), spread=spread, depth=depth)


@pytest.fixture(scope="module")
def basis(tiny) -> LossBasis:
    with jax.enable_x64(True):
        varies = np.random.default_rng(3).uniform(0.5, 2.0, 16)
        return basis_of(tiny, spread=jnp.asarray(varies * np.r_[np.full(4, 0.1), 9, 9, np.ones(6), np.full(4, 0.2)]))


def turned(pitch, yaw, roll) -> jaxlie.SO3:
    """A head turned away from the camera it faces; radians."""
    return FACING @ jaxlie.SO3.from_rpy_radians(pitch, 0.0, roll) @ jaxlie.SO3.from_y_radians(yaw)


@functools.cache
def face(seed: int, turn: float = 0.6, dtype=np.float64) -> PosedParameters:
    """Some face in a crop of 120 px."""
    rng = np.random.default_rng(seed)
    rotation = turned(*jnp.asarray(turn * rng.uniform(-1, 1, 3))).as_matrix()
    numbers = 0.5 + 0.2 * rng.random(), rng.normal(60, 6, 2), rng.normal(size=6), rng.random(4)
    parameters = PosedParameters.from_pose(rotation, *(jnp.asarray(n) for n in numbers))
    return jax.tree.map(lambda x: x.astype(dtype), parameters)


def moved(parameters: PosedParameters, size: float = 1.0, seed: int = 9) -> PosedParameters:
    """Wrong by some percent of a typical face's numbers."""
    off = np.random.default_rng(seed).normal(size=16) * np.r_[np.full(4, 0.05), 3, 3, np.ones(6), np.full(4, 0.3)]
    return parameters.with_vector(parameters.vector + jnp.asarray(size * off, parameters.vector.dtype))


@functools.cache
def compiled(name):
    return quickly(PARAMETER_LOSSES[name])


COMPILED_POSED, SLOW, FAST, SHARES = (quickly(f) for f in (posed, movements, fast_movements, mending_shares))


@functools.cache
def compiled_slope(name):
    return quickly(jax.grad(lambda vector, basis, like, truth: PARAMETER_LOSSES[name](basis, like(vector), truth)))


# ------------------------------------------------------------------------------------------------------------ pose


def test_ten_thousand_poses_come_back_from_their_quaternions():
    rng = np.random.default_rng(0)
    quarter = np.pi / 2
    angles = rng.uniform([-quarter, -quarter, -np.pi], [quarter, quarter, np.pi], (10_000, 3))
    angles[:2000, 1] = rng.choice([-quarter, quarter], 2000)  # profiles
    angles[:10, ::2] = 0.0
    scales = jnp.asarray(np.exp(rng.uniform(-5, 5, len(angles))))

    @jax.jit
    @jax.vmap
    def there_and_back(angle, scale):
        rotation = turned(*angle).as_matrix()
        pose = PosedParameters.from_pose(rotation, scale, jnp.zeros(2), jnp.zeros(0), jnp.zeros(0))
        divided = reciprocal_scale(pose.quaternion)  # the paper's
        unit = jnp.sqrt(jnp.sum(divided**2)) * jnp.sqrt(scale)
        again = reciprocal_scale(divided)
        twice = PosedParameters.from_pose(pose.rotation, pose.scale, jnp.zeros(2), jnp.zeros(0), jnp.zeros(0))
        off = jnp.abs(pose.rotation - rotation).max(), pose.scale / scale - 1, unit - 1
        same = again - pose.quaternion, twice.quaternion - pose.quaternion
        return [*off, *(difference / jnp.sqrt(scale) for difference in same)]

    for error in there_and_back(jnp.asarray(angles), scales):
        np.testing.assert_allclose(error, 0.0, atol=1e-12)


def test_no_pose_is_locked():
    """A small turn about any axis changes the quaternion by as much, at a profile as in front: half the angle."""

    @quickly
    def quaternion(vector, yaw):
        turn = (turned(0.0, yaw, 0.2) @ jaxlie.SO3.exp(vector)).as_matrix()
        empty = jnp.zeros(0)
        return PosedParameters.from_pose(turn, jnp.asarray(4.0), jnp.zeros(2), empty, empty).quaternion

    for yaw in (0.0, 0.7, np.pi / 2, -np.pi / 2):
        change = finite_difference(lambda vector, yaw=yaw: quaternion(vector, yaw), jnp.zeros(3))
        np.testing.assert_allclose(change.T @ change, np.eye(3), atol=1e-6)  # half of the root of the scale, 2: 1


def test_posed_vertices_are_what_a_weak_perspective_camera_sees_of_the_model(tiny, basis):
    found = face(1)
    weights = found.expression.at[1].set(0.5 * found.expression[0])  # jawOpen allows for this mouthClose
    found = eqx.tree_at(lambda p: p.expression, found, weights)

    @quickly
    def seen_by_camera(model, found):
        pose = jaxlie.SE3.from_rotation_and_translation(jaxlie.SO3.from_matrix(found.rotation), jnp.zeros(3))
        camera = WeakPerspective(found.scale, found.shift, pose, 120, 120)
        vertices = model.vertices(found.identity, found.expression)[::3]
        return camera.project(vertices), found.scale * camera.to_camera(vertices)[:, 2]

    pixels, depth = seen_by_camera(eqx.tree_at(lambda m: m.rig, tiny, None), found)
    seen = COMPILED_POSED(basis, found)
    np.testing.assert_allclose(seen[:, :2], pixels, atol=1e-4)
    np.testing.assert_allclose(seen[:, 2], depth, atol=1e-4)


def test_a_vector_holds_all_and_in_its_order():
    found = face(2)
    again = found.with_vector(found.vector)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found.vector[:6], jnp.concatenate([found.quaternion, found.shift]))


# ---------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("name", PARAMETER_LOSSES)
def test_costs_nothing_at_the_truth_and_has_no_slope_there(name, basis):
    truth = face(1)
    assert compiled(name)(basis, truth, truth) == 0.0
    slope = compiled_slope(name)(truth.vector, basis, truth.with_vector, truth)
    np.testing.assert_array_equal(slope, np.zeros(16))
    assert compiled(name)(basis, moved(truth), truth) > 0.0


@pytest.mark.parametrize("name", PARAMETER_LOSSES)
def test_both_quaternions_of_a_pose_cost_the_same(name, basis):
    truth, found = face(1), moved(face(1))
    flip = lambda p: eqx.tree_at(lambda q: q.quaternion, p, -p.quaternion)  # noqa: E731
    cost = compiled(name)(basis, found, truth)
    np.testing.assert_allclose(compiled(name)(basis, flip(found), truth), cost, rtol=1e-12)
    np.testing.assert_allclose(compiled(name)(basis, found, flip(truth)), cost, rtol=1e-12)


@pytest.mark.parametrize("depth", [True, False])
def test_vertex_distance_is_that_of_the_vertices(tiny, depth):
    basis, truth = basis_of(tiny, depth), face(1)
    found = moved(truth)
    total = 0.0
    for k in range(basis.mean.shape[0]):
        ends = []
        for p in (found, truth):
            x = np.asarray(basis.mean[k] + basis.identity[k] @ p.identity + basis.expression[k] @ p.expression)
            ends.append(float(p.scale) * np.asarray(p.rotation) @ x + np.r_[np.asarray(p.shift), 0.0])
        total += np.sum((ends[0] - ends[1])[: 3 if depth else 2] ** 2)
    np.testing.assert_allclose(compiled("vdc")(basis, found, truth), total / basis.mean.shape[0], rtol=1e-12)


def test_vertex_distance_does_not_depend_on_what_both_share(basis):
    truth, found = face(1), moved(face(1))
    common = jaxlie.SO3.from_rpy_radians(0.3, -1.2, 2.0)

    def changed(p, scale=1.0, shift=0.0, turn=common):
        q = jnp.sqrt(scale) * (turn @ jaxlie.SO3(p.quaternion)).wxyz
        # The shift is turned, too, where it is seen: about the camera's axis.
        return PosedParameters(q, turn.as_matrix()[:2, :2] @ p.shift * scale + shift, p.identity, p.expression)

    roll = jaxlie.SO3.from_z_radians(0.8)
    cost = compiled("vdc")(basis, found, truth)
    both = lambda **how: compiled("vdc")(basis, changed(found, **how), changed(truth, **how))  # noqa: E731
    np.testing.assert_allclose(both(turn=roll, shift=7.0), cost, rtol=1e-10)
    np.testing.assert_allclose(both(turn=roll, scale=1.7), 1.7**2 * cost, rtol=1e-10)
    found = eqx.tree_at(lambda p: p.shift, found, truth.shift)
    np.testing.assert_allclose(both(), compiled("vdc")(basis, found, truth), rtol=1e-10)


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("turn", [0.6, 1.5])
def test_the_fast_form_is_the_slow_one(tiny, basis, depth, turn):
    basis = LossBasis(basis.mean, basis.identity, basis.expression, basis.spread, depth)
    for seed, size in ((1, 1.0), (2, 1e-3), (3, 10.0)):
        truth = face(seed, turn)
        found = moved(truth, size, seed)
        np.testing.assert_allclose(FAST(basis, found, truth), SLOW(basis, found, truth), rtol=1e-9)
        costs = [compiled(name)(basis, found, truth) for name in ("wpdc", "fwpdc")]
        np.testing.assert_allclose(costs[1], costs[0], rtol=1e-6)
        slopes = [compiled_slope(n)(found.vector, basis, found.with_vector, truth) for n in ("wpdc", "fwpdc")]
        np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-6)


def test_the_fast_form_keeps_its_digits_in_single_precision(tiny):
    basis, truth = basis_of(tiny, dtype=np.float32), face(1, dtype=np.float32)
    for size in (1.0, 1e-3):
        found = moved(truth, size)
        in_double = jax.tree.map(lambda x: x.astype(np.float64), (basis, found, truth))
        cost = compiled("fwpdc")(basis, found, truth)
        assert cost.dtype == np.float32
        np.testing.assert_allclose(cost, compiled("wpdc")(*in_double), rtol=2e-5)


def test_weights_are_by_how_far_each_parameter_moves_vertices(basis):
    truth = face(1)
    found = moved(truth, 1e-5)
    slope = finite_difference(lambda vector: COMPILED_POSED(basis, truth.with_vector(vector)).ravel(), truth.vector)
    expected = jnp.linalg.norm(slope, axis=0) / np.sqrt(basis.mean.shape[0]) * jnp.abs(found.vector - truth.vector)
    np.testing.assert_allclose(SLOW(basis, found, truth), expected, rtol=1e-4)
    # The largest weight is one: a parameter that is wrong alone counts in full.
    alone = truth.with_vector(truth.vector.at[8].add(0.3))
    for name in ("wpdc", "fwpdc", "whitened_pdc"):
        np.testing.assert_allclose(compiled(name)(basis, alone, truth), (0.3 / basis.spread[8]) ** 2, rtol=1e-12)


def test_shares_of_mending_solve_their_quadratic_programme(basis):
    """SciPy's solver for bounded least squares as the oracle."""
    truth, found = face(1), moved(face(1))
    error = found.vector - truth.vector
    slope = finite_difference(lambda vector: COMPILED_POSED(basis, truth.with_vector(vector)).ravel(), truth.vector)
    moves = slope * error
    size = jnp.linalg.norm(jnp.sum(moves, axis=1))
    whitened = error / basis.spread
    ridge = np.sqrt(0.1) * jnp.diag(whitened) / jnp.linalg.norm(whitened)
    system = np.concatenate([moves / size, ridge])
    right = np.concatenate([np.sum(moves, axis=1) / size, np.zeros(16)])
    expected = lsq_linear(system, right, bounds=(0, 1), tol=1e-12).x
    shares = SHARES(basis, found, truth)
    np.testing.assert_allclose(shares, expected, atol=1e-3)
    assert np.ptp(shares) > 0.5
    alone = truth.with_vector(truth.vector.at[8].add(1e-3))
    assert SHARES(basis, alone, truth)[8] == pytest.approx(1 / 1.1, rel=1e-6)


@pytest.mark.parametrize("name", PARAMETER_LOSSES)
def test_slopes_are_those_of_finite_differences(name, basis):
    truth, found = face(1), moved(face(1))
    weights = jnp.ones(16)
    if name in WEIGHTED:  # constants in derivatives: so the differences are of the loss with its weights held
        weights = SHARES(basis, found, truth) if name == "owpdc" else SLOW(basis, found, truth)
        weights = weights if name == "owpdc" else weights / weights.max()

    def cost(vector):
        if name in ("pdc", "vdc"):
            return compiled(name)(basis, found.with_vector(vector), truth)
        return jnp.sum(weights * ((vector - truth.vector) / basis.spread) ** 2)

    np.testing.assert_allclose(compiled(name)(basis, found, truth), cost(found.vector), rtol=1e-12)
    slope = compiled_slope(name)(found.vector, basis, found.with_vector, truth)
    np.testing.assert_allclose(slope, finite_difference(cost, found.vector), rtol=1e-6, atol=1e-6)


def test_faces_of_a_batch_do_not_know_of_each_other(basis):
    truths = [face(seed) for seed in (1, 2, 3)]
    founds = [moved(truth, seed=seed) for seed, truth in enumerate(truths)]
    stack = lambda faces: jax.tree.map(lambda *x: jnp.stack(x), *faces)  # noqa: E731
    costs = quickly(jax.vmap(PARAMETER_LOSSES["fwpdc"], (None, 0, 0)))(basis, stack(founds), stack(truths))
    single = [compiled("fwpdc")(basis, *pair) for pair in zip(founds, truths, strict=True)]
    np.testing.assert_allclose(costs, single, rtol=1e-10)


@pytest.mark.parametrize("name", PARAMETER_LOSSES)
def test_each_leads_back_to_the_truth(name, basis):
    truth, found = face(1), moved(face(1))
    steps = 1500
    optimiser = optax.chain(
        optax.scale_by_adam(b2=0.99), optax.scale_by_learning_rate(optax.cosine_decay_schedule(1.0, steps))
    )
    # One rate for each parameter, that of its spread: Adam's steps have the size of its rate, whatever the loss.
    pace = 0.05 * basis.spread

    @quickly
    def descend(vector):
        def cost(scaled):
            return PARAMETER_LOSSES[name](basis, found.with_vector(scaled * pace), truth)

        def step(carry, _):
            scaled, memory = carry
            updates, memory = optimiser.update(jax.grad(cost)(scaled), memory)
            return (optax.apply_updates(scaled, updates), memory), None

        start = vector / pace
        return jax.lax.scan(step, (start, optimiser.init(start)), None, steps)[0][0] * pace

    end = descend(found.vector)
    before, after = (vdc(basis, found.with_vector(v), truth) for v in (found.vector, end))
    assert after < 1e-4 * before
    error, start = (jnp.abs(v - truth.vector) / basis.spread for v in (end, found.vector))
    assert error.max() < 0.05 * start.max()


def test_spread_is_of_what_varies():
    vectors = jnp.asarray(np.random.default_rng(0).normal(3.0, [2.0, 0.0, 0.5], (4000, 3)))
    np.testing.assert_allclose(parameter_spread(vectors), [2.0, 1.0, 0.5], rtol=0.05)


def test_hidden_landmarks_do_not_count_nor_teach():
    regressed = jnp.arange(10.0).reshape(5, 2)
    truth = (regressed + jnp.array([3.0, 4.0])).at[1].set(jnp.nan)
    measure = quickly(jax.value_and_grad(landmark_regression_loss))
    cost, slope = measure(regressed, truth)
    assert cost == pytest.approx(25.0)
    np.testing.assert_allclose(slope, np.where(np.arange(5)[:, None] == 1, 0.0, [-1.5, -2.0]))
    assert measure(regressed, jnp.full((5, 2), jnp.nan))[0] == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: loss_basis(m, np.array([0, 169])), "got vertices 0..169, expected some of 0..168"),
        (lambda m: loss_basis(m, np.array([], int)), "got vertices none"),
        (lambda m: loss_basis(m, np.array([1]), identity_rank=7), "got identity_rank 7, expected 0..6"),
        (lambda m: loss_basis(m, np.array([1]), spread=jnp.ones(10)), "a spread of 10 parameters, expected 16"),
        (
            lambda m: loss_basis(
                eqx.tree_at(lambda t: t.interaction, m, jnp.ones((169, 3, 4, 6)), is_leaf=lambda x: x is None),
                np.array([1]),
            ),
            "got tiny, whose expressions depend on the identity",
        ),
    ],
)
def test_a_basis_must_fit_its_model(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        make(tiny)
    assert loss_basis(tiny, np.array([1, 5]), identity_rank=2).moments.shape == (7, 7, 3, 3)


# ------------------------------------------------------------------------------------------------------ meta-joint


def test_looking_ahead_goes_with_the_loss_that_leads_closer():
    """Two ways along a line: one halves what the batch says is left, the other overshoots; and one that breaks."""
    nearer = lambda x, target: x + 0.5 * (target - x)  # noqa: E731
    further = lambda x, target: x + 2.5 * (target - x)  # noqa: E731
    broken = lambda x, target: x * jnp.nan  # noqa: E731
    error = lambda x, target: (x - target) ** 2  # noqa: E731
    batches = [jnp.asarray(8.0)] * 3
    for advances, best in (((nearer, further), 0), ((further, nearer), 1), ((broken, further, nearer), 2)):
        choice = choose_loss(jnp.asarray(0.0), advances, error, batches, jnp.asarray(8.0))
        assert choice.chosen == best
        assert choice.state == 7.0  # three halves nearer
        np.testing.assert_array_equal(choice.errors[best], 1.0)
        assert not (choice.errors < 1.0).any()  # the others': 27² or NaN
    with pytest.raises(ValueError, match="got no advances"):
        choose_loss(jnp.asarray(0.0), (), error, batches, jnp.asarray(8.0))


def test_the_choice_between_two_losses_is_that_of_two_runs_side_by_side(basis):
    """A network of one layer, that reads the pose off a feature: training both ways and comparing says the same."""
    truth = face(1)
    feature = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5, 3)))  # batch, face, feature
    network = eqx.nn.Linear(3, 16, key=jax.random.key(0), dtype=jnp.float64)
    network = eqx.tree_at(lambda n: (n.weight, n.bias), network, (0.01 * network.weight, moved(truth).vector))

    def mean_of(name):
        loss = PARAMETER_LOSSES[name]

        def cost(network, features):
            return jnp.mean(jax.vmap(lambda x: loss(basis, truth.with_vector(network(x)), truth))(features))

        return cost

    names, held = ("fwpdc", "vdc"), feature[3]
    distance = mean_of("vdc")

    def step(name):
        down = quickly(eqx.filter_grad(mean_of(name)))

        def advance(state, batch):
            network, rate = state
            return jax.tree.map(lambda weight, slope: weight - rate * slope, network, down(network, batch)), rate

        return advance

    advances, error = [step(name) for name in names], quickly(lambda state, x: distance(state[0], x))

    @quickly
    def side_by_side(rate):
        ends = []
        for name in names:
            end = network
            for batch in feature[:3]:
                slope = eqx.filter_grad(mean_of(name))(end, batch)
                end = jax.tree.map(lambda weight, down: weight - rate * down, end, slope)
            ends.append((end.weight, distance(end, held)))
        return ends

    chosen = []
    # VDC is ten thousand times steeper along the quaternion than along coefficients: at a rate that moves these it
    # diverges, at one that it bears WPDC stands still.
    for rate in (3e-6, 5e-4):
        choice = choose_loss((network, rate), advances, error, list(feature[:3]), held)
        ends = side_by_side(jnp.asarray(rate))
        errors = np.array([error for _, error in ends])
        np.testing.assert_allclose(choice.errors, errors, rtol=1e-9)
        best = int(np.nanargmin(errors))
        assert choice.chosen == best
        np.testing.assert_allclose(choice.state[0].weight, ends[best][0], rtol=1e-9, atol=1e-12)
        chosen.append(best)
    assert chosen == [1, 0]
