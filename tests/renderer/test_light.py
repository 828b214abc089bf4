import jax.numpy as jnp
import numpy as np

from renderer import ambient_white, frontal, lambert, sh_basis, solve_light

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
