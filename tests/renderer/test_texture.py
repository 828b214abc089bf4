import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from morphable.mesh import Mesh
from renderer import barycentrics, interpolate, sample_texture, visibility
from renderer.texture import MipPyramid, mip_level, mip_pyramid, sample_mip, uv_footprint

lookup = jax.jit(sample_texture)
pyramid_of = jax.jit(mip_pyramid)
mip_lookup = jax.jit(sample_mip)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


def test_lookup_reproduces_texels_and_clamps():
    texture = noise(5, 8, 3)
    y, x = np.mgrid[:5, :8] + 0.5
    centres = jnp.asarray(np.stack([x / 8, y / 5], -1), jnp.float32)
    assert np.allclose(lookup(texture, centres), texture, atol=1e-6)
    corners = jnp.array([[-3.0, -1.0], [2.0, 0.0], [0.0, 1.0], [1.0, 9.0]])
    assert np.allclose(lookup(texture, corners), texture[[0, 0, -1, -1], [0, -1, 0, -1]])
    half = lookup(texture, (centres[:, :-1] + centres[:, 1:]) / 2)
    assert np.allclose(half, (texture[:, :-1] + texture[:, 1:]) / 2, atol=1e-6)
    assert np.allclose(lookup(texture[:1, :1], corners), texture[0, 0])


def test_lookups_have_derivatives_in_texture_position_and_level():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        uv, level = jnp.asarray(rng.uniform(0.05, 0.95, (20, 2))), jnp.asarray(rng.uniform(0.05, 2.95, 20))
        texture = jnp.asarray(rng.uniform(size=(7, 12, 3)))

        def both(texture, uv, level):
            return sample_texture(texture, uv), sample_mip(mip_pyramid(texture), uv, level)

        check_grads(jax.jit(both), (texture, uv, level), order=1, modes=("fwd", "rev"), eps=1e-6)


def coverage(size, half):
    """Row i: how much of each of `size` texels the i-th of `half` equal parts covers, summing to 1."""
    edges = np.linspace(0, size, half + 1)
    overlap = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size))
    return np.clip(overlap, 0, None) * half / size


@pytest.mark.parametrize("shape", [(8, 8), (13, 6), (1, 7)])
def test_each_level_averages_what_it_covers(shape):
    texture = noise(*shape, 2)
    pyramid = pyramid_of(texture)
    assert pyramid.sizes[0] == shape and pyramid.sizes[-1] == (1, 1)
    expected = np.asarray(texture, float)
    for k, size in enumerate(pyramid.sizes):
        if k > 0:
            rows, columns = (coverage(n, max(n // 2, 1)) for n in expected.shape[:2])
            expected = np.einsum("ia,jb,abc->ijc", rows, columns, expected)
        assert expected.shape[:2] == size
        assert np.allclose(pyramid.level(k), expected, atol=1e-6)
        assert np.allclose(pyramid.level(k).mean(axis=(0, 1)), texture.mean(axis=(0, 1)), atol=1e-6)


def test_mip_lookup_is_bilinear_at_whole_levels_and_between_them_a_blend():
    texture = noise(13, 22, 3)
    pyramid = pyramid_of(texture)
    uv = jnp.asarray(np.random.default_rng(1).uniform(-0.1, 1.1, (50, 2)), jnp.float32)
    at = lambda level: mip_lookup(pyramid, uv, jnp.full(50, level, jnp.float32))  # noqa: E731
    for k in range(len(pyramid.sizes)):
        assert np.allclose(at(float(k)), sample_texture(pyramid.level(k), uv), atol=1e-6)
    assert np.allclose(at(-7.0), sample_texture(texture, uv), atol=1e-6)  # magnified
    assert np.allclose(at(1.25), 0.75 * at(1.0) + 0.25 * at(2.0), atol=1e-6)
    assert np.allclose(at(99.0), texture.mean(axis=(0, 1)), atol=1e-6)
    constant = pyramid_of(jnp.full((13, 22, 3), 0.3))
    levels = jnp.asarray(np.random.default_rng(2).uniform(-1, 9, 50), jnp.float32)
    assert np.allclose(mip_lookup(constant, uv, levels), 0.3, atol=1e-6)


def projected(mesh, camera):
    points = camera.to_camera(mesh.vertices)
    ids = visibility(camera, mesh.vertices, mesh.triangles)
    return camera.project_camera(points), points[:, 2], mesh.triangles, mesh.uv, ids


@pytest.mark.parametrize("perspective", [True, False])
def test_footprint_is_the_derivative_of_uv_in_the_picture(sphere, camera, perspective):
    projection = [np.asarray(v) for v in projected(sphere, camera)]
    with jax.enable_x64(True):
        pixels, depth, triangles, uv, ids = (
            jnp.asarray(v, jnp.float64 if v.dtype.kind == "f" else jnp.int32) for v in projection
        )
        z = depth if perspective else None
        row, column = np.mgrid[: ids.shape[0], : ids.shape[1]] + 0.5
        centres = jnp.asarray(np.stack([column, row], -1))

        @jax.jit
        def uv_at(shift, pixels=pixels):
            weights = barycentrics(pixels, z, triangles, ids, centres + shift)
            return (
                interpolate(uv, triangles, ids, weights),
                uv_footprint(pixels, z, triangles, uv, ids, weights),
                weights,
            )

        _, got, weights = uv_at(jnp.zeros(2))
        h = 1e-4
        numeric = [(uv_at(s)[0] - uv_at(-s)[0]) / (2 * h) for s in h * jnp.eye(2)]
        # Where a centre lies outside of its unsnapped triangle, the weights' clamp may have no derivative.
        inner = np.asarray((weights.min(axis=-1) > 0.01) & (ids >= 0))
        assert inner.sum() > 300
        assert np.allclose(got[inner], np.stack(numeric, -1)[inner], rtol=1e-5, atol=1e-9)
        assert np.all(np.asarray(got)[ids < 0] == 0)
        if not perspective:
            return

        def total_level(pixels):
            level = mip_level(MipPyramid(jnp.zeros((1, 1)), ((64, 32),)), uv_at(jnp.zeros(2), pixels)[1])
            return jnp.where(inner, level, 0.0).sum()

        towards = jnp.asarray(np.random.default_rng(5).normal(size=pixels.shape))
        along = jax.jit(lambda p: jax.jvp(total_level, (p,), (towards,)))
        difference = (along(pixels + 1e-6 * towards)[0] - along(pixels - 1e-6 * towards)[0]) / 2e-6
        assert np.allclose(along(pixels)[1], difference, rtol=1e-4)


def test_level_is_the_log_of_the_longest_extent_and_ignores_the_cameras_roll():
    pyramid = pyramid_of(jnp.zeros((32, 64, 1)))
    for texels in (0.25, 1.0, 6.0):
        square = jnp.array([[texels / 64, 0.0], [0.0, texels / 32]])
        assert np.allclose(mip_level(pyramid, square), np.log2(texels), atol=1e-5)
    footprint = jnp.asarray(np.random.default_rng(3).normal(size=(2, 2)) * 0.1, jnp.float32)
    largest = np.linalg.svd(np.array([64, 32])[:, None] * np.asarray(footprint))[1][0]
    for angle in (0.0, 0.4, 2.0):
        c, s = np.cos(angle), np.sin(angle)
        rolled = footprint @ jnp.array([[c, -s], [s, c]])
        assert np.allclose(mip_level(pyramid, rolled), np.log2(largest), atol=1e-5)
    nothing, slope = jax.value_and_grad(lambda f: mip_level(pyramid, f))(jnp.zeros((2, 2)))
    assert nothing < -4 and np.all(np.isfinite(slope))


def test_a_receding_checkerboard_is_as_grey_as_its_supersampled_picture(facing):
    """Lookups by level come much closer than bilinear ones to the mean over each pixel, and hardly flicker."""
    floor = jnp.array([[-100.0, -100, 40], [100, -100, 40], [100, 100, -600], [-100, 100, -600]])
    triangles, uv = jnp.array([[0, 1, 2], [0, 2, 3]]), jnp.array([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    pixels, depth, _, _, ids = projected(Mesh(floor, triangles, uv), facing)
    board = jnp.asarray((np.indices((256, 256)).sum(axis=0) // 2 % 2)[..., None], jnp.float32)
    row, column = np.mgrid[:40, :48] + 0.5

    @jax.jit
    def seen(shift):
        at = jnp.asarray(np.stack([column, row], -1), jnp.float32) + shift[None, None]
        weights = barycentrics(pixels, depth, triangles, ids, at)
        where = interpolate(uv, triangles, ids, weights)
        level = mip_level(pyramid, uv_footprint(pixels, depth, triangles, uv, ids, weights))
        return sample_texture(board, where), sample_mip(pyramid, where, level), level

    pyramid = pyramid_of(board)
    n = 12
    shifts = np.stack(np.meshgrid(*2 * [(np.arange(n) + 0.5) / n - 0.5]), -1).reshape(-1, 2)
    truth = np.mean([np.asarray(seen(jnp.asarray(s, jnp.float32))[0]) for s in shifts], axis=0)
    bilinear, mip, level = (np.asarray(v) for v in seen(jnp.zeros(2)))
    covered = np.asarray(ids) >= 0
    assert covered.sum() > 200 and level[covered].min() > 1
    assert np.abs(mip - truth)[covered].mean() < 0.15 * np.abs(bilinear - truth)[covered].mean()
    assert np.abs(mip - truth)[covered].max() < 0.2
