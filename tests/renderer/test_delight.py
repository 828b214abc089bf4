import jax
import jax.numpy as jnp
import numpy as np

from renderer import ambient_white, frontal, lambert
from renderer.delight import delight, usable_shade

delight_all = jax.jit(delight)
usable = jax.jit(usable_shade, static_argnames="floor")


def directions(count, key):
    v = jax.random.normal(key, (count, 3))
    return v / jnp.linalg.norm(v, axis=1, keepdims=True)


def test_delight_inverts_lambert_where_there_is_light(key):
    normals, albedo = directions(400, key), jax.random.uniform(key, (400, 3), minval=0.05)
    light = frontal(0.0) * jnp.array([[1.1, 1.0, 0.7]])
    colour = lambert(albedo, normals, light)
    shade = np.asarray(colour / albedo)
    mean = np.asarray(light[0]) / np.sqrt(4 * np.pi)
    bright = shade.mean(axis=1) > 0.1 * mean.mean()
    assert 100 < bright.sum() < 400
    got = np.asarray(delight_all(colour, normals, light))
    assert np.allclose(got[bright], albedo[bright], rtol=1e-4)
    assert np.allclose(delight_all(albedo, normals, ambient_white()), albedo, rtol=1e-5)


def test_dark_and_negative_shades_give_finite_albedos_and_derivatives(key):
    normals, colour = directions(200, key), jax.random.uniform(key, (200, 3))
    lights = [2.0 * frontal(0.0), -ambient_white(), jnp.zeros((9, 3))]
    lights.append(jax.random.normal(key, (9, 3)))
    both = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(delight(*a)), argnums=(0, 1, 2)))
    for light in lights:
        value, slopes = both(colour, normals, light)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(s)) for s in slopes)


def test_usable_shade_is_the_shade_above_its_floor_and_positive_and_smooth_below():
    usual = jnp.array([1.2, 1.0, 0.8])
    t = jnp.linspace(-1.0, 2.0, 3001)
    got = np.asarray(usable(t[:, None] * usual[None], usual, floor=0.3))
    brightness, plain = got.mean(axis=1), np.asarray(t)
    assert np.allclose(brightness[plain >= 0.3], plain[plain >= 0.3], rtol=1e-5)
    assert np.all(brightness >= 0.15 - 1e-6) and np.all(np.diff(brightness) >= -1e-6)
    assert np.abs(np.diff(brightness, 2)).max() < 2e-5  # the slope changes by no more than this, so it has no kink
    odd = np.asarray(usable(jnp.array([[0.0, 0.15, 0.0], [0.9, -0.1, 0.4]]), usual, floor=0.3))
    assert np.allclose(odd[0] / odd[0].mean(), usual, rtol=1e-5)  # too dark to have a colour
    assert np.all(odd >= 0.01 - 1e-6)
