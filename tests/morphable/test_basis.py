import jax
import jax.numpy as jnp
import numpy as np
import pytest

from morphable import GaussianBasis


def test_project_inverts_instance(tiny, key):
    c = jax.random.normal(key, (tiny.shape.rank,))
    np.testing.assert_allclose(tiny.shape.project(tiny.shape.instance(c)), c, atol=1e-3)


def test_posterior_shrinks_towards_the_mean(tiny, key):
    c = jax.random.normal(key, (tiny.shape.rank,))
    noisy = tiny.shape.project(tiny.shape.instance(c), noise=1e3)
    assert jnp.linalg.norm(noisy) < 0.9 * jnp.linalg.norm(c)
    np.testing.assert_allclose(tiny.shape.project(tiny.shape.instance(c), noise=1e-3), c, atol=1e-2)


def test_truncated_instance_is_the_instance_with_zeros(tiny, key):
    c = jax.random.normal(key, (3,))
    padded = jnp.zeros(tiny.shape.rank).at[:3].set(c)
    np.testing.assert_allclose(tiny.shape.truncate(3).instance(c), tiny.shape.instance(padded), atol=1e-4)
    with pytest.raises(ValueError, match="expected 0..6"):
        tiny.shape.truncate(7)


def test_samples_have_the_law_that_modes_state(tiny, key):
    samples = jax.vmap(tiny.shape.sample)(jax.random.split(key, 4000))
    spread = jnp.sqrt(jnp.mean(jnp.sum((samples - tiny.shape.mean) ** 2, axis=2), axis=0))
    stated = jnp.sqrt(jnp.sum(tiny.shape.modes**2, axis=(1, 2)))
    np.testing.assert_allclose(spread, stated, rtol=0.08)


def test_dimensions_are_checked_together():
    with pytest.raises(Exception, match="modes"):
        GaussianBasis(jnp.zeros((4, 3)), jnp.zeros((5, 3, 2)))
