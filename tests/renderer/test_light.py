import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from renderer import ambient_white, frontal, lambert, sh_basis, solve_light
from renderer.light import (
    DirectionalLight,
    ambient_light,
    direction_from_angles,
    from_environment,
    radiance,
    rotate_light,
    to_environment,
)

BANDS = np.repeat([0, 1, 2], [1, 3, 5])
A_OVER_PI = np.array([1, 2 / 3, 1 / 4])[BANDS]


def random_normals(n, seed=0):
    v = np.random.default_rng(seed).normal(size=(n, 3))
    return jnp.asarray(v / np.linalg.norm(v, axis=1, keepdims=True), jnp.float32)


def quadrature(cosines, weights):
    """Directions and weights of a product rule over the azimuth and the given polar cosines."""
    azimuth = 2 * np.pi * np.arange(8) / 8
    c, a = np.meshgrid(cosines, azimuth, indexing="ij")
    s = np.sqrt(1 - c**2)
    directions = np.stack([s * np.cos(a), s * np.sin(a), c], -1).reshape(-1, 3)
    return directions, np.repeat(weights, 8) * 2 * np.pi / 8


def test_basis_is_orthonormal():
    directions, weights = quadrature(*np.polynomial.legendre.leggauss(6))
    basis = np.asarray(sh_basis(jnp.asarray(directions, jnp.float32))) / A_OVER_PI
    assert np.allclose(basis.T @ (weights[:, None] * basis), np.eye(9), atol=1e-5)


def test_basis_follows_the_documented_order():
    x, y, z = (np.asarray(random_normals(10))[:, k] for k in range(3))
    basis = np.asarray(sh_basis(random_normals(10))) / A_OVER_PI
    polynomials = [1 + 0 * x, y, z, x, x * y, y * z, 3 * z**2 - 1, x * z, x**2 - y**2]
    for column, polynomial in zip(basis.T, polynomials, strict=True):
        ratio = column / polynomial
        assert ratio[0] > 0 and np.allclose(ratio, ratio[0], rtol=1e-3)


def test_shading_is_the_clamped_cosine_integral():
    """Integrating radiance over the hemisphere numerically gives sh_basis(n) @ light (times pi)."""
    light = np.random.default_rng(1).normal(size=(9, 3))
    cosines, weights = np.polynomial.legendre.leggauss(6)
    directions, weights = quadrature((cosines + 1) / 2, weights / 2)
    for normal in np.asarray(random_normals(5), np.float64):
        frame = np.linalg.svd(normal[None])[2][1:]
        world = directions[:, :2] @ frame + directions[:, 2:] * normal
        radiance = np.asarray(sh_basis(jnp.asarray(world, jnp.float32))) / A_OVER_PI @ light
        irradiance = (weights * directions[:, 2]) @ radiance
        assert np.allclose(sh_basis(jnp.asarray(normal, jnp.float32)) @ light, irradiance / np.pi, atol=1e-4)


def test_ambient_white_shows_the_albedo():
    albedo = jnp.asarray(np.random.default_rng(2).uniform(size=(30, 3)), jnp.float32)
    assert np.allclose(lambert(albedo, random_normals(30), ambient_white()), albedo, atol=1e-6)


def test_frontal_light_comes_from_the_viewer_and_above():
    shade = sh_basis(jnp.array([[0.0, 0, -1], [0, 0, 1], [0, -1, 0], [0, 1, 0]])) @ frontal()
    front, back, top, bottom = np.asarray(shade)[:, 0]
    assert 0.9 < front <= 1 and front > top > max(bottom, back) and min(bottom, back) > 0
    lamp = np.array([0, -0.35, -1]) / np.hypot(0.35, 1)
    assert np.allclose(sh_basis(jnp.asarray(lamp, jnp.float32)) @ frontal(), 1, atol=1e-5)


def test_solve_light_recovers_the_light_of_its_own_shading():
    rng = np.random.default_rng(3)
    albedo = jnp.asarray(rng.uniform(0.2, 0.9, (400, 3)), jnp.float32)
    normals = random_normals(400)
    light = jnp.asarray(rng.normal(size=(9, 3)), jnp.float32)
    colour = lambert(albedo, normals, light)
    spoiled = jnp.where(jnp.arange(400)[:, None] < 50, 9.0, colour)
    weight = jnp.where(jnp.arange(400) < 50, 0.0, 2.0)
    assert np.allclose(solve_light(albedo, normals, spoiled, weight, ridge=0.0), light, atol=1e-3)
    assert np.array_equal(solve_light(albedo, normals, colour, jnp.zeros(400)), np.zeros((9, 3)))


def test_solve_light_keeps_unseen_sides_dark_rather_than_wild():
    """From the viewer's half of the sphere, noise may not blow up the bands that it does not show."""
    rng = np.random.default_rng(4)
    normals = random_normals(400, seed=5)
    normals = normals * jnp.where(normals[:, 2:] > 0, -1.0, 1.0)
    noisy = 1 + jnp.asarray(rng.normal(0, 0.1, (400, 3)), jnp.float32)
    light = solve_light(jnp.ones((400, 3)), normals, noisy, jnp.ones(400), ridge=0.1)
    assert np.abs(light - ambient_white()).max() < 0.5


def random_light(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(9, 3)), jnp.float32)


def random_rotations(n, seed=0):
    return jnp.asarray(Rotation.random(n, rng=np.random.default_rng(seed)).as_matrix(), jnp.float32)


def test_radiance_is_the_light_itself():
    """Its coefficients are its inner products with the basis."""
    directions, weights = quadrature(*np.polynomial.legendre.leggauss(6))
    directions = jnp.asarray(directions, jnp.float32)
    seen = np.asarray(radiance(random_light(), directions), np.float64)
    basis = np.asarray(sh_basis(directions)) / A_OVER_PI
    assert np.allclose((weights[:, None] * basis).T @ seen, random_light(), atol=1e-5)
    assert np.allclose(radiance(ambient_white(), directions), 1, atol=1e-6)


def test_rotating_light_and_normals_together_changes_nothing():
    light, normals, albedo = random_light(), random_normals(40), jnp.ones((40, 3))
    for rotation in random_rotations(5):
        turned = rotate_light(light, rotation)
        assert np.allclose(lambert(albedo, normals @ rotation.T, turned), lambert(albedo, normals, light), atol=1e-5)
        assert np.allclose(radiance(turned, normals @ rotation.T), radiance(light, normals), atol=1e-5)


def test_rotations_of_light_compose_and_keep_the_energy_of_each_band():
    light = random_light()
    for first, second in random_rotations(10).reshape(5, 2, 3, 3):
        at_once, in_turn = rotate_light(light, second @ first), rotate_light(rotate_light(light, first), second)
        assert np.allclose(at_once, in_turn, atol=1e-5)
        for band in range(3):
            energy = [np.sum(np.square(v)[BANDS == band], axis=0) for v in (light, at_once)]
            assert np.allclose(*energy, rtol=1e-4)


def test_rotating_light_has_derivatives():
    with jax.enable_x64(True):
        light, rotation = (jnp.asarray(np.asarray(v, np.float64)) for v in (random_light(), random_rotations(1)[0]))
        check_grads(jax.jit(rotate_light), (light, rotation), order=1, modes=("fwd", "rev"), eps=1e-6)


@pytest.mark.parametrize("size", [(3, 5), (8, 16), (21, 10), (64, 128)])
def test_an_environment_map_gives_back_its_light(size):
    light = random_light()
    assert np.allclose(from_environment(to_environment(light, *size)), light, atol=1e-5)


def test_bands_of_an_environment_map_are_integrals_over_the_sphere():
    """A radiance of max(0, d . n) has the coefficients A_l Y_lm(n), by the convolution theorem (Funk & Hecke)."""
    normals = random_normals(3)
    y, x = np.mgrid[:90, :180] + 0.5
    polar, longitude = y * np.pi / 90, x * 2 * np.pi / 180 - np.pi
    directions = np.stack([np.sin(polar) * np.sin(longitude), -np.cos(polar), np.sin(polar) * np.cos(longitude)], -1)
    environment = jnp.asarray(np.maximum(directions @ np.asarray(normals).T, 0), jnp.float32)
    assert np.allclose(from_environment(environment), np.pi * sh_basis(normals).T, atol=2e-3)


def test_pixels_count_by_their_solid_angle():
    height, width = 60, 120
    edges = np.cos(np.pi * np.arange(height + 1) / height)
    for row in (0, 1, 12, 59):
        environment = jnp.zeros((height, width, 3)).at[row, 7].set(1.0)
        flux = np.sqrt(4 * np.pi) * from_environment(environment)[0]
        assert np.allclose(flux, (edges[row] - edges[row + 1]) * 2 * np.pi / width, rtol=5e-3)


@pytest.mark.parametrize(
    ("rows", "columns", "direction"),
    [
        ([29, 30], [59, 60], (0, 0, 1)),
        ([29, 30], [89, 90], (1, 0, 0)),
        ([29, 30], [29, 30], (-1, 0, 0)),
        ([29, 30], [119, 0], (0, 0, -1)),
        ([0], range(120), (0, -1, 0)),
    ],
    ids=["centre is forward", "right", "left", "borders are the viewer's side", "top is up"],
)
def test_where_a_map_is_bright_the_light_comes_from(rows, columns, direction):
    environment = np.zeros((60, 120, 3), np.float32)
    environment[np.ix_(rows, columns)] = 1
    light = from_environment(jnp.asarray(environment))
    lamp = DirectionalLight(jnp.asarray(direction, jnp.float32), jnp.ones(3)).harmonics()
    assert np.allclose(light / light[:1], lamp / lamp[:1], atol=0.02)
    seen = radiance(light, jnp.concatenate([jnp.asarray([direction], jnp.float32), random_normals(200)]))
    assert np.argmax(seen[:, 0]) == 0


def test_a_map_must_show_nine_coefficients():
    with pytest.raises(ValueError, match="got 2x8 pixels"):
        from_environment(jnp.ones((2, 8, 3)))


def test_angles_turn_right_and_up():
    angles = [(0.0, 0.0), (np.pi / 2, 0.0), (np.pi, 0.0), (0.3, np.pi / 2), (-np.pi / 2, -np.pi / 4)]
    expected = [[0, 0, -1], [1, 0, 0], [0, 0, 1], [0, -1, 0], [-np.sqrt(0.5), np.sqrt(0.5), 0]]
    got = [direction_from_angles(*a) for a in angles]
    assert np.allclose(got, expected, atol=1e-6)


def test_ambient_light_tints_the_albedo():
    tint, albedo = jnp.array([0.2, 0.7, 1.5]), jnp.full((6, 3), 0.5)
    assert np.allclose(lambert(albedo, random_normals(6), ambient_light(tint)), 0.5 * tint[None], atol=1e-6)


def test_harmonics_of_a_lamp_are_the_best_of_three_bands():
    """They light a surface as the lamp does but for higher bands: the difference has no part in bands 0 to 2."""
    colour = jnp.array([1.0, 0.5, 0.1])
    directions, weights = quadrature(*np.polynomial.legendre.leggauss(200))
    normals = jnp.asarray(directions, jnp.float32)
    lamp = DirectionalLight(jnp.array([0.0, 0.0, -1.0]), colour)
    by_lamp = jnp.maximum(normals @ lamp.direction, 0.0)[:, None] * colour[None]
    difference = np.asarray(sh_basis(normals) @ lamp.harmonics() - by_lamp, np.float64)
    assert np.abs(difference).max() > 0.03
    assert np.allclose((weights[:, None] * np.asarray(sh_basis(normals))).T @ difference, 0, atol=1e-4)
    assert np.allclose(sh_basis(lamp.direction) @ lamp.harmonics(), 17 / 16 * colour, atol=1e-6)
