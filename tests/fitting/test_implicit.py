"""Derivatives through a fit are those of fits solved anew, and learn what noise a detector has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitting.energies import BlockPrior, LandmarkTerm, project
from fitting.implicit import implicit_fit
from fitting.parameters import retract, start_parameters
from fitting.surface_samples import PointBasis

CENTRE = jnp.array([128.0, 128.0])
QUIET_MM, LOUD_MM = 1.0, 3.0


@pytest.fixture(scope="module")
def people(tiny):
    """Faces of the tiny model and their noisy landmarks: every second point is three times noisier."""
    modes = jnp.concatenate([tiny.shape.modes, tiny.expression], axis=2)
    rows = lambda values: jnp.einsum("lk,lk...->l...", tiny.landmarks.weights, values[tiny.landmarks.vertices])  # noqa: E731
    basis = PointBasis(rows(tiny.mean), rows(modes))
    start = start_parameters(tiny.shape.rank, len(tiny.expression_names), tiny.albedo.rank)
    layout = start.layout
    loud = jnp.arange(68) % 2 == 1

    def terms(log_sigma, points):
        quiet, noisy = jnp.exp(log_sigma)
        return {
            "landmarks": LandmarkTerm(basis, points, jnp.where(loud, noisy, quiet), CENTRE),
            "identity": BlockPrior("identity", jnp.zeros(tiny.shape.rank), jnp.ones(tiny.shape.rank)),
            "expression": BlockPrior("expression", jnp.zeros(4), jnp.full(4, 0.25)),
        }

    def draw(key):
        keys = jax.random.split(key, 4)
        step = jnp.zeros(layout.size)
        step = step.at[layout.block("identity")].set(jax.random.normal(keys[0], (tiny.shape.rank,)))
        step = step.at[layout.block("expression")].set(0.6 * jax.random.uniform(keys[1], (4,)))
        turn = jax.random.normal(keys[2], (6,)) * jnp.array([10.0, 10.0, 20.0, 0.2, 0.2, 0.1])
        face = retract(start, step.at[layout.block("pose")].set(turn))
        # One pixel is one millimetre: 1000 px focal length at one metre.
        noise = jnp.where(loud, LOUD_MM, QUIET_MM)[:, None] * jax.random.normal(keys[3], (68, 2))
        return face, project(face, basis.positions(face.identity, face.expression), CENTRE) + noise

    faces, points = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), 16))
    free = layout.free("identity", "expression", "pose")
    nudge = jax.random.normal(jax.random.key(4), (68, 2))

    def fit(theta, points, **how):
        """Fitted coefficients against both logarithms of the deviations, and a shift of all points in mm."""
        face = implicit_fit(terms(theta[:2], points + theta[2] * nudge), start, free, **how)
        return (face.identity, face.expression), face

    def with_itself(theta, points):
        coefficients, face = fit(theta, points)
        return coefficients, (coefficients, face)

    # One program for all tests: derivatives and values of all fits.
    everyone = jax.jit(jax.vmap(jax.jacfwd(with_itself, has_aux=True), (None, 0)))
    return fit, everyone, faces, points


def _theta(quiet, loud):
    return jnp.log(jnp.array([quiet, loud, 1.0]))


def test_derivatives_are_those_of_fits_solved_anew(people):
    """To 1 %, where no weight reaches or leaves its bound in between, and but for the few fits in which a residual
    crosses its robust cut-off in between."""
    _, everyone, _, points = people
    theta, step = _theta(1.5, 4.5), 0.06
    (exact, _), ((_, middle), _) = everyone(theta, points)
    for column, e in enumerate(jnp.eye(3)):
        ends = [everyone(theta + sign * step * e, points)[1][0] for sign in (1, -1)]
        held = [np.asarray((w == 0) | (w == 1)) for w in (middle, ends[0][1], ends[1][1])]
        smooth = np.all((held[0] == held[1]) & (held[0] == held[2]), axis=1)
        assert smooth.sum() >= 8
        moved = np.asarray(ends[0][0] - ends[1][0])[smooth] / (2 * step)
        wrong = np.linalg.norm(np.asarray(exact)[smooth, :, column] - moved, axis=1)
        size = np.linalg.norm(moved, axis=1)
        assert np.median(wrong / size) < 0.01
        assert np.linalg.norm(wrong) < 0.04 * np.linalg.norm(size)


def test_reverse_derivatives_are_the_forward_ones(people):
    """Without a solver in it: any face that is a minimum will do, and is returned as it is."""
    fit, everyone, _, points = people
    theta = _theta(1.0, 3.0)
    forward, (values, faces) = everyone(theta, points)
    first = jax.tree.map(lambda x: x[0], faces)
    weights = [
        jax.random.normal(k, v[0].shape) for k, v in zip(jax.random.split(jax.random.key(5)), values, strict=True)
    ]

    def projected(theta):
        coefficients = fit(theta, points[0], minimise=lambda *_: first)[0]
        return sum(jnp.vdot(w, c) for w, c in zip(weights, coefficients, strict=True)), coefficients

    reverse, again = jax.jit(jax.grad(projected, has_aux=True))(theta)
    assert all(jnp.array_equal(c, v[0]) for c, v in zip(again, values, strict=True))
    expected = sum(w @ slopes[0] for w, slopes in zip(weights, forward, strict=True))
    assert jnp.allclose(reverse, expected, atol=1e-3 * float(jnp.abs(expected).max()))


def test_term_deviations_are_learnt_through_the_fit(people, tiny):
    """From true vertices of half of the faces; scored on the other half."""
    _, everyone, faces, points = people
    modes = np.asarray(tiny.shape.modes)

    def error(theta, part):
        """Mean squared distance of the vertices of neutral faces (mm²), and its gradient."""
        slopes, ((identity, _), _) = everyone(theta, points)
        wrong = np.einsum("vci,fi->fvc", modes, identity - faces.identity)[part]
        by_identity = 2 * np.einsum("vci,fvc->fi", modes, wrong) / wrong[..., 0].size
        return np.mean(np.sum(wrong**2, axis=2)), np.einsum("fi,fit->t", by_identity, np.asarray(slopes[0])[part])

    training, others = slice(0, 8), slice(8, 16)
    equal = theta = _theta(2.0, 2.0)
    optimiser = optax.adam(0.15)
    state = optimiser.init(theta)
    for _ in range(10):
        _, slope = error(theta, training)
        update, state = optimiser.update(jnp.asarray(slope * [1, 1, 0], jnp.float32), state)
        theta = theta + jnp.asarray(update)
    quiet, loud = np.exp(theta[:2])
    assert loud > 1.5 * quiet
    assert error(theta, others)[0] < 0.95 * error(equal, others)[0]


def test_weights_at_their_bounds_do_not_move(people):
    _, everyone, _, points = people
    (_, slopes), ((_, weights), _) = everyone(_theta(1.0, 3.0), points)
    held = np.asarray((weights == 0) | (weights == 1))
    assert held.any() and not held.all()
    assert np.all(np.asarray(slopes)[held] == 0)
    assert np.all(np.any(np.asarray(slopes)[~held] != 0, axis=1))
