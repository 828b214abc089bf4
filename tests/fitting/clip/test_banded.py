"""Block-tridiagonal least squares against dense algebra."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from fitting.clip.banded import Chain, bounded_step, chain_least_squares, solve_chain


def random_chain(frames=5, n=4, seed=0):
    """Blocks of JᵀJ with rows that see one frame or two neighbours; and J and r, dense."""
    rng = np.random.default_rng(seed)
    rows = []
    for t in range(frames):
        own = np.zeros((n + 2, frames * n))
        own[:, t * n : (t + 1) * n] = rng.normal(size=(n + 2, n))
        rows.append(own)
    for t in range(frames - 1):
        tie = np.zeros((n, frames * n))
        tie[:, t * n : (t + 2) * n] = rng.normal(size=(n, 2 * n))
        rows.append(tie)
    jacobian = np.concatenate(rows)
    residual = rng.normal(size=len(jacobian))
    hessian = (jacobian.T @ jacobian).reshape(frames, n, frames, n)
    diagonal = np.stack([hessian[t, :, t] for t in range(frames)])
    ties = np.array([hessian[t, :, t + 1] for t in range(frames - 1)]).reshape(-1, n, n)
    gradient = (jacobian.T @ residual).reshape(frames, n)
    return Chain(diagonal, ties, gradient, 0.5 * residual @ residual), jacobian, residual


def test_a_chain_is_solved_as_its_dense_matrix():
    chain, jacobian, _ = random_chain()
    step = solve_chain(chain.diagonal, chain.ties, chain.gradient)
    np.testing.assert_allclose(step.ravel(), np.linalg.solve(jacobian.T @ jacobian, chain.gradient.ravel()), rtol=1e-9)
    np.testing.assert_allclose(chain.times(step), chain.gradient, rtol=1e-9)


def test_one_frame_is_a_chain():
    chain, jacobian, _ = random_chain(frames=1)
    step = solve_chain(chain.diagonal, chain.ties, chain.gradient)
    np.testing.assert_allclose(step.ravel(), np.linalg.solve(jacobian.T @ jacobian, chain.gradient.ravel()), rtol=1e-9)


def test_bounds_are_kept_and_the_step_is_that_of_bounded_least_squares():
    chain, jacobian, residual = random_chain(seed=3)
    shape = chain.gradient.shape
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    low[:, 1], high[:, 1] = -0.1, 0.2
    step = bounded_step(chain, np.ones(shape[1], bool), low, high, 0.0)
    assert (step >= low).all() and (step <= high).all()
    best = lsq_linear(jacobian, -residual, (low.ravel(), high.ravel()), tol=1e-12).x
    assert (np.isclose(step, low) | np.isclose(step, high)).sum() >= 2
    np.testing.assert_allclose(step.ravel(), best, atol=1e-6)


def test_what_is_not_free_stays():
    chain, _, _ = random_chain()
    free = np.array([True, False, True, True])
    endless = np.full(chain.gradient.shape, np.inf)
    step = bounded_step(chain, free, -endless, endless, 0.0)
    assert (step[:, 1] == 0).all() and (step[:, 0] != 0).all()


def test_a_nonlinear_chain_converges():
    """Angles from noisy points on a circle, each tied to the next: the energy falls to a stationary point."""
    rng = np.random.default_rng(0)
    truth = np.linspace(0, 2, 20)
    seen = np.stack([np.cos(truth), np.sin(truth)], 1) + 0.1 * rng.normal(size=(20, 2))

    def linearise(angle):
        error = np.concatenate([np.cos(angle), np.sin(angle)], 1) - seen
        slope = np.concatenate([-np.sin(angle), np.cos(angle)], 1)
        change = np.diff(angle, axis=0) / 0.1
        diagonal, gradient = (slope**2).sum(1) / 0.01, (slope * error).sum(1) / 0.01
        tie = 1 / 0.1**2
        diagonal[:-1] += tie
        diagonal[1:] += tie
        gradient[:-1] -= change[:, 0] / 0.1
        gradient[1:] += change[:, 0] / 0.1
        energy = 0.5 * (error**2).sum() / 0.01 + 0.5 * (change**2).sum()
        return Chain(diagonal[:, None, None], np.full((19, 1, 1), -tie), gradient[:, None], float(energy))

    endless = lambda angle: (np.full(angle.shape, -np.inf), np.full(angle.shape, np.inf))  # noqa: E731
    start = np.zeros((20, 1))
    free = np.ones(1, bool)
    solution = chain_least_squares(linearise, lambda a, s: a + s, endless, start, free, 50, 1e-12)
    assert solution.converged and solution.energy < linearise(start).energy
    assert np.abs(linearise(solution.state).gradient).max() < 1e-3
    raw = np.arctan2(seen[:, 1], seen[:, 0])
    assert np.sqrt(np.mean((solution.state[:, 0] - truth) ** 2)) < np.sqrt(np.mean((raw - truth) ** 2))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="ties"):
        Chain(np.zeros((3, 2, 2)), np.zeros((3, 2, 2)), np.zeros((3, 2)), 0.0)
