import dataclasses

import equinox as eqx
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from fitting.energies import BlockPrior, LandmarkTerm, PhotometricTerm, project
from fitting.parameters import retract, start_parameters
from fitting.photometric import SkinPoints
from fitting.solvers import (
    LBFGS,
    FirstOrder,
    GenericLevenbergMarquardt,
    LevenbergMarquardt,
    StochasticNewton,
    bounded_step,
    solve,
)
from fitting.surface_samples import solver_model
from fitting.terms import AbstractResidualTerm, Quadratic, energies


@pytest.fixture(scope="module")
def sampled(tiny):
    return solver_model(tiny, blocks=1)


@pytest.mark.parametrize("seed", range(4))
def test_bounded_step_is_the_constrained_minimum(seed):
    """Against SciPy's bounded least squares, for problems whose unbounded minimum leaves the box."""
    rng = np.random.default_rng(seed)
    face = start_parameters(5, 6, 2)
    size, at = face.layout.size, face.layout.block("expression")
    face = dataclasses.replace(face, expression=jnp.asarray(rng.uniform(0, 1, 6), jnp.float32))
    jacobian, right = rng.normal(size=(90, size)), 2 * rng.normal(size=90)
    quadratic = Quadratic(
        jnp.asarray(jacobian.T @ jacobian, jnp.float32), jnp.asarray(-jacobian.T @ right, jnp.float32), jnp.array(0.0)
    )
    free = jnp.ones(size).at[3].set(0.0)
    step = eqx.filter_jit(bounded_step)(quadratic, face, free, jnp.array(0.0))
    low, high = np.full(size, -np.inf), np.full(size, np.inf)
    low[at], high[at] = -np.asarray(face.expression), 1 - np.asarray(face.expression)
    low[3], high[3] = -1e-9, 1e-9
    best = lsq_linear(jacobian, right, (low, high), tol=1e-12).x
    assert step[3] == 0
    cost = lambda s: 0.5 * np.sum((jacobian @ s - right) ** 2)  # noqa: E731
    moved = np.asarray(step)
    assert (moved >= low - 1e-5).all() and (moved <= high + 1e-5).all()
    assert cost(moved) <= cost(best) * 1.02 + 1e-3


CENTRE = jnp.array([64.0, 64.0])
FREE = ("identity", "expression", "pose")


@pytest.fixture(scope="module")
def start():
    return dataclasses.replace(start_parameters(6, 4, 4), log_focal=jnp.log(jnp.array(600.0)))


@pytest.fixture(scope="module")
def truth(start):
    rng = np.random.default_rng(0)
    return dataclasses.replace(
        start,
        identity=jnp.asarray(rng.normal(size=6), jnp.float32),
        expression=jnp.array([0.3, 0.0, 0.5, 0.0]),
        pose=start.pose @ jaxlie.SE3.exp(jnp.array([10.0, -5.0, 30.0, 0.1, 0.2, -0.1])),
    )


@pytest.fixture(scope="module")
def exact(sampled, truth):
    """Exact landmarks, and a weak prior."""
    points = project(truth, sampled.landmarks.positions(truth.identity, truth.expression), CENTRE)
    return {
        "landmarks": LandmarkTerm(sampled.landmarks, points, jnp.full(68, 0.05), CENTRE),
        "identity": BlockPrior("identity", jnp.zeros(6), jnp.ones(6)),
    }


@pytest.fixture(scope="module")
def coloured(sampled, truth, exact):
    """Besides, a picture: smooth, and equal to the head's colours where the samples are at the truth."""
    block = (x[0] for x in (sampled.skin.geometry, sampled.skin.geometry_modes))
    albedo = (x[0] for x in (sampled.skin.albedo, sampled.skin.albedo_modes))
    point = SkinPoints(truth, CENTRE, jnp.zeros((128, 128, 3)), *block, *albedo)
    # A plane of colours fitted to the samples: the head's shading is not far from it.
    design = np.concatenate([np.asarray(point.pixel).T, np.ones((512, 1))], axis=1)
    plane = np.linalg.lstsq(design, np.asarray(point.residual).T, rcond=None)[0]
    v, u = np.mgrid[:128, :128] + 0.5
    image = np.stack([u, v, np.ones_like(u)], axis=2) @ plane
    photometric = PhotometricTerm(
        sampled.skin,
        jnp.asarray(image[None], jnp.float32),
        jnp.ones((1, 512)),
        jnp.int32(0),
        jnp.int32(1),
        jnp.array(0.2),
        jnp.array(0.3),
        CENTRE,
    )
    landmarks = dataclasses.replace(exact["landmarks"], sigma_px=jnp.full(68, 1.0))
    albedo_prior = BlockPrior("albedo", jnp.zeros(4), jnp.ones(4))
    return {**exact, "landmarks": landmarks, "photometric": photometric, "albedo": albedo_prior}


@pytest.fixture(scope="module")
def best(coloured, start):
    return solve(coloured, start, (*FREE, "albedo"), LevenbergMarquardt(tolerance=1e-6))


def test_known_coefficients_and_pose_are_recovered_from_exact_landmarks(sampled, exact, start, truth):
    solution = solve(exact, start, FREE, LevenbergMarquardt(40))
    assert solution.result == "converged"
    face = solution.face
    found = project(face, sampled.landmarks.positions(face.identity, face.expression), CENTRE)
    np.testing.assert_allclose(found, exact["landmarks"].points_px, atol=0.05)
    np.testing.assert_allclose(face.identity, truth.identity, atol=0.1)
    assert (face.expression >= 0).all() and (face.expression <= 1).all()
    assert (np.diff(np.asarray(solution.history).sum(axis=1)) <= 1e-3).all()  # an accepted face never costs more
    assert face.log_focal == start.log_focal  # what is not free does not move


@pytest.mark.parametrize(
    ("solver", "share"),
    [
        (GenericLevenbergMarquardt(), 1.02),
        (LBFGS(), 1.2),
        (FirstOrder(), 1.2),
        (StochasticNewton(steps=600), 1.6),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, float) else "",
)
def test_all_solvers_find_the_same_minimum(solver, share, coloured, start, best):
    """As far as each of them goes: the random one ends in its own noise."""
    first = float(jnp.sum(energies(coloured, start)))
    lowest = float(jnp.sum(best.energies))
    told = []
    watch = lambda step, values, face: told.append((step, values))  # noqa: E731
    solution = solve(coloured, start, (*FREE, "albedo"), solver, watch)
    total = float(jnp.sum(solution.energies))
    assert lowest * 0.98 < total < share * lowest < 0.1 * first
    assert (solution.face.expression >= 0).all() and (solution.face.expression <= 1).all()
    np.testing.assert_array_equal(solution.face.light, start.light)
    # What was watched is what is kept: every row but that of the start.
    assert [step for step, _ in told] == solution.history_steps.tolist()[1:]
    for (_, values), row in zip(told, np.asarray(solution.history)[1:], strict=True):
        assert values == pytest.approx(solution.by_term(row))


def test_the_default_solver_can_be_watched(exact, start):
    told = []
    solution = solve(exact, start, FREE, watch=lambda step, values, face: told.append((step, values, face)))
    assert [step for step, _, _ in told] == solution.history_steps.tolist()
    assert told[-1][1] == pytest.approx(solution.by_term(solution.energies))
    assert told[0][2].identity.shape == (6,)


@pytest.mark.parametrize("solver", [LevenbergMarquardt(), LBFGS()], ids=["LevenbergMarquardt", "LBFGS"])
def test_a_non_finite_start_is_reported_not_raised(exact, start, solver):
    broken = dataclasses.replace(start, identity=start.identity.at[0].set(jnp.nan))
    solution = solve(exact, broken, FREE, solver)
    assert solution.result == "non-finite" and not solution.converged


def test_bad_calls_are_refused(exact, start):
    with pytest.raises(ValueError, match="no terms, expected a mapping"):
        solve({}, start, FREE)
    with pytest.raises(ValueError, match="unknown parameter block 'nose'.*identity"):
        solve(exact, start, ("nose",))
    with pytest.raises(ValueError, match=r"got a mask of \(3,\), expected \d+ unknowns"):
        solve(exact, start, jnp.ones(3))
    with pytest.raises(ValueError, match="got free='pose', expected several names"):
        solve(exact, start, "pose")


def test_retraction_of_the_zero_step_keeps_the_energy(exact, start):
    zero = jnp.zeros(start.layout.size)
    np.testing.assert_allclose(energies(exact, retract(start, zero)), energies(exact, start), rtol=1e-6)


class Stiff(AbstractResidualTerm):
    """A term that claims far more curvature than it has, so that steps are a hundredth of what they should be."""

    def residuals(self, face):
        return face.identity[:, None]

    def linearise(self, face):
        true = super().linearise(face)
        return Quadratic(100 * true.hessian, true.gradient, true.energy)


def test_as_many_steps_are_made_and_kept_as_were_asked_for(start):
    steps = 60  # more than a stage may make
    away = dataclasses.replace(start, identity=jnp.ones(6))
    solution = solve({"stiff": Stiff()}, away, ("identity",), LevenbergMarquardt(steps=steps, tolerance=0.0))
    assert solution.result == "steps exhausted" and int(solution.steps) == steps
    assert solution.history_steps.tolist() == list(range(steps + 1))
    assert (np.diff(np.asarray(solution.history)[:, 0]) < 0).all()
