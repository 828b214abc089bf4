import dataclasses

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from fitting.energies import BlockPrior, LandmarkTerm, Quadratic, project
from fitting.parameters import retract, start_parameters
from fitting.solvers import bounded_step, levenberg_marquardt
from fitting.surface_samples import solver_model


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
    step = bounded_step(quadratic, face, free, jnp.array(0.0))
    low, high = np.full(size, -np.inf), np.full(size, np.inf)
    low[at], high[at] = -np.asarray(face.expression), 1 - np.asarray(face.expression)
    low[3], high[3] = -1e-9, 1e-9
    best = lsq_linear(jacobian, right, (low, high), tol=1e-12).x
    assert step[3] == 0
    cost = lambda s: 0.5 * np.sum((jacobian @ s - right) ** 2)  # noqa: E731
    moved = np.asarray(step)
    assert (moved >= low - 1e-5).all() and (moved <= high + 1e-5).all()
    assert cost(moved) <= cost(best) * 1.02 + 1e-3


def test_known_coefficients_and_pose_are_recovered_from_exact_landmarks(sampled):
    rng = np.random.default_rng(0)
    centre = jnp.array([128.0, 128.0])
    start = start_parameters(6, 4, 4)
    start = dataclasses.replace(start, log_focal=jnp.log(jnp.array(1200.0)))
    truth = dataclasses.replace(
        start,
        identity=jnp.asarray(rng.normal(size=6), jnp.float32),
        expression=jnp.array([0.3, 0.0, 0.5, 0.0]),
        pose=start.pose @ jaxlie.SE3.exp(jnp.array([10.0, -5.0, 30.0, 0.1, 0.2, -0.1])),
    )
    points = project(truth, sampled.landmarks.positions(truth.identity, truth.expression), centre)
    terms = (
        LandmarkTerm(sampled.landmarks, points, jnp.full(68, 0.05), centre),
        BlockPrior("identity", jnp.zeros(6), jnp.ones(6)),
    )

    def linearise(face):
        parts = [t.linearise(face) for t in terms]
        return parts[0] + parts[1], jnp.stack([p.energy for p in parts])

    at = start.layout.block
    free = jnp.zeros(start.layout.size)
    for block in ("identity", "expression", "pose"):
        free = free.at[at(block)].set(1.0)
    solution = jax.jit(lambda f: levenberg_marquardt(linearise, f, free, jnp.int32(40)))(start)
    assert solution.converged and solution.finite
    found = project(
        solution.face, sampled.landmarks.positions(solution.face.identity, solution.face.expression), centre
    )
    np.testing.assert_allclose(found, points, atol=0.05)
    np.testing.assert_allclose(solution.face.identity, truth.identity, atol=0.1)
    assert (solution.face.expression >= 0).all() and (solution.face.expression <= 1).all()
    energies = np.asarray(solution.history)[: int(solution.steps) + 1].sum(axis=1)
    assert (np.diff(energies) <= 1e-3).all()  # an accepted face never costs more
    assert solution.face.log_focal == start.log_focal  # what is not free does not move


def test_a_non_finite_start_is_reported_not_raised(sampled):
    face = start_parameters(6, 4, 4)
    face = dataclasses.replace(face, identity=face.identity.at[0].set(jnp.nan))
    term = LandmarkTerm(sampled.landmarks, jnp.zeros((68, 2)), jnp.ones(68), jnp.zeros(2))

    def linearise(f):
        q = term.linearise(f)
        return q, q.energy[None]

    solution = jax.jit(lambda f: levenberg_marquardt(linearise, f, jnp.ones(f.layout.size), jnp.int32(3)))(face)
    assert not solution.finite


def test_retraction_of_the_zero_step_keeps_the_energy(sampled):
    face = start_parameters(6, 4, 4)
    term = LandmarkTerm(sampled.landmarks, jnp.zeros((68, 2)), jnp.ones(68), jnp.zeros(2))
    np.testing.assert_allclose(term.energy(retract(face, jnp.zeros(face.layout.size))), term.energy(face), rtol=1e-6)
