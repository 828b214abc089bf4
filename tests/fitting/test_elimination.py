import numpy as np
import pytest
from scipy.optimize import lsq_linear

from fitting.elimination import Model, blocks, complete, eliminate
from fitting.parameters import Layout

LAYOUT = Layout(5, 6, 3)


def drawn(seed: int, room: float):
    """A random quadratic model of a photo, and what it may keep for itself; weights have this much room."""
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(90, LAYOUT.size)) * np.exp(rng.normal(size=LAYOUT.size))
    right = 2 * rng.normal(size=90)
    weights = rng.uniform(0, 1, LAYOUT.unit_count)
    model = Model(jacobian.T @ jacobian, -jacobian.T @ right, -room * weights, room * (1 - weights))
    private = np.zeros(LAYOUT.size, bool)
    for name in ("expression", "light", "pose", "offset"):
        private[LAYOUT.block(name)] = True
    private[LAYOUT.block("expression").start + 2] = False
    return jacobian, right, model, private


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_without_bounds_it_is_the_schur_complement(damping):
    _, _, model, private = drawn(0, room=1e6)
    parts = eliminate(model, LAYOUT, private, damping)
    p, s = np.flatnonzero(private), np.flatnonzero(~private)
    damped = model.hessian[np.ix_(p, p)] * (1 + damping * np.eye(len(p)))
    coupling = model.hessian[np.ix_(p, s)]
    left = model.hessian[np.ix_(s, s)] - coupling.T @ np.linalg.solve(damped, coupling)
    found = model.hessian - parts.columns @ parts.columns.T
    np.testing.assert_allclose(found[np.ix_(s, s)], left, rtol=1e-5, atol=1e-4)
    slope = model.gradient[s] - coupling.T @ np.linalg.solve(damped, model.gradient[p])
    np.testing.assert_allclose(parts.gradient[s], slope, rtol=1e-5, atol=1e-4)
    shared = np.where(private, 0.0, 0.01)
    step = complete(parts, model, LAYOUT, shared)
    np.testing.assert_allclose(step[s], shared[s])
    np.testing.assert_allclose(
        step[p], -np.linalg.solve(damped, model.gradient[p] + coupling @ shared[s]), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_private_step_is_the_constrained_minimum(seed):
    """Against SciPy's bounded least squares, for models whose unbounded minimum leaves the box."""
    jacobian, right, model, private = drawn(seed, room=1.0)
    step = complete(eliminate(model, LAYOUT, private, 0.0), model, LAYOUT, np.zeros(LAYOUT.size))
    inside = blocks(LAYOUT)[1]
    low, high = np.where(private, -np.inf, -1e-9), np.where(private, np.inf, 1e-9)
    loose = private[inside]
    low[inside], high[inside] = np.where(loose, model.low, -1e-9), np.where(loose, model.high, 1e-9)
    best = lsq_linear(jacobian, right, (low, high), tol=1e-12).x
    assert (step[~private] == 0).all()
    assert (step[inside] >= low[inside] - 1e-9).all() and (step[inside] <= high[inside] + 1e-9).all()
    assert (step[inside][loose] <= model.low[loose]).any() or (step[inside][loose] >= model.high[loose]).any()
    cost = lambda s: 0.5 * np.sum((jacobian @ s - right) ** 2)  # noqa: E731
    assert cost(step) <= cost(best) * 1.02 + 1e-3


def test_nothing_private():
    _, _, model, _ = drawn(0, room=1.0)
    parts = eliminate(model, LAYOUT, np.zeros(LAYOUT.size, bool), 1e-3)
    np.testing.assert_array_equal(parts.columns @ parts.columns.T, 0.0)
    np.testing.assert_array_equal(parts.gradient, model.gradient)


def test_an_indefinite_model_is_told():
    _, _, model, private = drawn(0, room=1.0)
    for broken in (model.hessian - 1e4 * np.eye(LAYOUT.size), np.full_like(model.hessian, np.nan)):
        with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
            eliminate(model._replace(hessian=broken), LAYOUT, private, 1e-3)
