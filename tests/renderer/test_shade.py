import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from renderer import ambient_white, frontal, lambert
from renderer.light import DirectionalLight, ambient_light, direction_from_angles
from renderer.shade import ColourTransform, Gloss, phong

POINTS = 60


def units(n, seed, dtype=np.float32):
    v = np.random.default_rng(seed).normal(size=(n, 3))
    return jnp.asarray(v / np.linalg.norm(v, axis=1, keepdims=True), dtype)


@pytest.fixture(scope="module")
def surface():
    """Albedo, normals, directions to the viewer."""
    albedo = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.9, (POINTS, 3)), jnp.float32)
    return albedo, units(POINTS, 1), units(POINTS, 2)


@pytest.fixture(scope="module")
def lamp():
    return DirectionalLight(direction_from_angles(jnp.asarray(0.7), jnp.asarray(0.4)), jnp.array([1.0, 0.8, 0.5]))


GLOSS = Gloss(0.3, 12.0)


def test_phong_is_the_formula_of_blanz_and_vetter(surface, lamp):
    """R (L_amb + L_dir <n, l>) + k_s L_dir <r, v>^nu, in float64 and with the mirrored direction by Householder."""
    albedo, normals, viewer = (np.asarray(v, np.float64) for v in surface)
    ambient, lit = np.array([0.2, 0.3, 0.1]), np.random.default_rng(3).uniform(size=POINTS)
    direction, colour = (np.asarray(v, np.float64) for v in (lamp.direction, lamp.colour))
    expected = np.empty((POINTS, 3))
    for i, (a, n, v) in enumerate(zip(albedo, normals, viewer, strict=True)):
        mirrored = -(np.eye(3) - 2 * np.outer(n, n)) @ direction
        cosine = n @ direction
        shine = max(mirrored @ v, 0) ** 12 if cosine > 0 else 0
        expected[i] = a * (ambient + lit[i] * colour * max(cosine, 0)) + lit[i] * 0.3 * colour * shine
    light = ambient_light(jnp.asarray(ambient, jnp.float32))
    albedo, normals, viewer = surface
    colour = phong(albedo, normals, viewer, light, lamp, GLOSS, jnp.asarray(lit, jnp.float32))
    assert np.allclose(colour, expected, atol=1e-5)


def test_without_its_lamp_a_surface_is_diffuse(surface, lamp):
    albedo, normals, viewer = surface
    off = DirectionalLight(lamp.direction, jnp.zeros(3))
    expected = lambert(albedo, normals, frontal())
    assert np.allclose(phong(albedo, normals, viewer, frontal(), off, GLOSS), expected, atol=1e-6)
    in_shadow = phong(albedo, normals, viewer, frontal(), lamp, GLOSS, jnp.zeros(POINTS))
    assert np.allclose(in_shadow, expected, atol=1e-6)
    behind = jnp.where((normals @ lamp.direction > 0)[:, None], -normals, normals)
    shaded = phong(albedo, behind, viewer, frontal(), lamp, GLOSS)
    assert np.allclose(shaded, lambert(albedo, behind, frontal()), atol=1e-6)


def test_a_surface_that_faces_the_lamp_shows_albedo_times_its_colour(surface, lamp):
    albedo, _, viewer = surface
    normals = jnp.broadcast_to(lamp.direction, (POINTS, 3))
    colour = phong(albedo, normals, viewer, 0 * ambient_white(), lamp, Gloss(0.0, 5.0))
    assert np.allclose(colour, albedo * lamp.colour[None], atol=1e-6)


def test_the_highlight_peaks_at_the_mirrored_lamp(surface, lamp):
    _, normals, viewer = surface
    normals = normals * jnp.where(normals @ lamp.direction > 0, 1.0, -1.0)[:, None]
    mirrored = 2 * (normals @ lamp.direction)[:, None] * normals - lamp.direction[None]
    black, dark = jnp.zeros((POINTS, 3)), 0 * ambient_white()
    for shininess in (1.0, 8.0, 100.0):
        gloss = Gloss(0.3, shininess)
        peak = phong(black, normals, mirrored, dark, lamp, gloss)
        assert np.allclose(peak, 0.3 * lamp.colour[None], atol=1e-4)
        assert np.all(phong(black, normals, viewer, dark, lamp, gloss) <= peak + 1e-5)


@pytest.mark.parametrize("shininess", [1.0, 10.0, 60.0])
def test_what_leaves_is_albedo_and_two_specular_over_shininess_plus_two(lamp, shininess):
    """Of light along the normal, by integrating the reflected radiance over all viewers; the lamp brings pi colour."""
    cosines, weights = np.polynomial.legendre.leggauss(60)
    cosines, weights = (cosines + 1) / 2, weights / 2 * 2 * np.pi
    n = np.asarray(lamp.direction)
    sideways = np.linalg.svd(n[None])[2][1]
    viewers = cosines[:, None] * n + np.sqrt(1 - cosines**2)[:, None] * sideways
    normals = jnp.broadcast_to(lamp.direction, (60, 3))
    radiance = phong(
        jnp.full((60, 3), 0.4),
        normals,
        jnp.asarray(viewers, jnp.float32),
        0 * ambient_white(),
        lamp,
        Gloss(0.3, shininess),
    )
    leaves = (weights * cosines) @ np.asarray(radiance, np.float64)
    assert np.allclose(leaves / (np.pi * lamp.colour), 0.4 + 2 * 0.3 / (shininess + 2), rtol=1e-4)


def test_phong_has_derivatives_in_everything(surface, lamp):
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(v, np.float64)) for v in (*surface, frontal(), lamp.direction, lamp.colour)]
        mix = jnp.asarray(np.random.default_rng(4).normal(size=(POINTS, 3)))

        def total(albedo, normals, viewer, light, direction, colour, specular, shininess, lit):
            gloss, lamp = Gloss(specular, shininess), DirectionalLight(direction, colour)
            return jnp.sum(phong(albedo, normals, viewer, light, lamp, gloss, lit) * mix)

        arguments = (*wide, jnp.asarray(0.3), jnp.asarray(12.0), jnp.full(POINTS, 0.7))
        check_grads(jax.jit(total), arguments, order=1, modes=("fwd", "rev"), eps=1e-6)


def test_derivatives_are_finite_where_the_highlight_ends(lamp):
    """Viewer and lamp at right angles to normal or mirrored lamp, for exponents below and above 1."""
    n, d = jnp.array([0.0, 0.0, -1.0]), jnp.array([0.0, 0.0, -1.0])
    side = jnp.array([1.0, 0.0, 0.0])
    for normal, viewer, direction in ((n, side, d), (n, n, side), (side, side, d), (n, d, d)):
        for shininess in (0.5, 1.0, 20.0):

            def total(normal, viewer, direction, shininess):
                lamp = DirectionalLight(direction, jnp.ones(3))
                return jnp.sum(phong(jnp.ones(3), normal, viewer, ambient_white(), lamp, Gloss(0.3, shininess)))

            gradient = jax.grad(total, (0, 1, 2, 3))(normal, viewer, direction, jnp.asarray(shininess))
            assert all(np.all(np.isfinite(g)) for g in gradient)


def test_colour_transform_and_its_inverse(surface):
    transform = ColourTransform(jnp.array([1.2, 0.9, 0.7]), jnp.array([0.05, -0.02, 0.1]), jnp.asarray(0.6))
    assert np.allclose(transform.inverse(transform(surface[0])), surface[0], atol=1e-5)
    assert np.array_equal(ColourTransform()(surface[0]), surface[0])


def test_contrast_mixes_with_the_luminance(surface):
    """It keeps the luminance, and grey; at 0 it leaves nothing else."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    luminance = np.asarray(surface[0]) @ weights
    for contrast in (0.0, 0.5, 1.3):
        mixed = np.asarray(ColourTransform(contrast=jnp.asarray(contrast))(surface[0]))
        assert np.allclose(mixed @ weights, luminance, atol=1e-5)
        spread, before = (v - luminance[:, None] for v in (mixed, np.asarray(surface[0])))
        assert np.allclose(spread, contrast * before, atol=1e-5)


def test_colour_transform_has_derivatives(surface):
    with jax.enable_x64(True):
        colour = jnp.asarray(np.asarray(surface[0], np.float64))

        def there_and_back(gain, offset, contrast, colour):
            transform = ColourTransform(gain, offset, contrast)
            return transform(colour), transform.inverse(colour)

        arguments = (jnp.array([1.2, 0.9, 0.7]), jnp.array([0.05, -0.02, 0.1]), jnp.asarray(0.6), colour)
        check_grads(jax.jit(there_and_back), arguments, order=1, modes=("fwd", "rev"), eps=1e-6)
