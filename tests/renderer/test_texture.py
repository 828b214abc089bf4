import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from morphable.mesh import Mesh
from renderer import ambient_white, dilate, interpolate, render, sample_texture, texel_table, unwrap

SIZE = 64


def smooth_texture(size=SIZE):
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    waves = [np.sin(6 * np.pi * x), np.cos(4 * np.pi * y), np.sin(4 * np.pi * x) * np.sin(2 * np.pi * y)]
    return jnp.asarray(0.5 + 0.4 * np.stack(waves, -1), jnp.float32)


def test_lookup_reproduces_texels_and_clamps():
    texture = smooth_texture(8)[:5]
    y, x = np.mgrid[:5, :8] + 0.5
    centres = jnp.asarray(np.stack([x / 8, y / 5], -1), jnp.float32)
    assert np.allclose(sample_texture(texture, centres), texture, atol=1e-6)
    corners = jnp.array([[-3.0, -1.0], [2.0, 0.0], [0.0, 1.0], [1.0, 9.0]])
    assert np.allclose(sample_texture(texture, corners), texture[[0, 0, -1, -1], [0, -1, 0, -1]])
    half = sample_texture(texture, (centres[:, :-1] + centres[:, 1:]) / 2)
    assert np.allclose(half, (texture[:, :-1] + texture[:, 1:]) / 2, atol=1e-6)
    assert np.allclose(sample_texture(texture[:1, :1], corners), texture[0, 0])


def test_lookup_has_derivatives_in_texture_and_position():
    with jax.enable_x64(True):
        uv = jnp.asarray(np.random.default_rng(0).uniform(0.05, 0.95, (20, 2)))
        texture = jnp.asarray(np.random.default_rng(1).uniform(size=(7, 9, 3)))
        check_grads(jax.jit(sample_texture), (texture, uv), order=1, modes=("fwd", "rev"), eps=1e-6)


def test_texels_know_their_surface_point(sphere):
    """The uv interpolated at a texel is the texel's own centre, and the layout's whole square is covered once."""
    table = texel_table(sphere.uv, sphere.triangles, SIZE)
    assert np.all(np.asarray(table.triangle_ids) >= 0)
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
    uv = interpolate(sphere.uv, sphere.triangles, *table)
    assert np.allclose(uv, np.stack([x, y], -1), atol=1e-5)


def test_unwrap_inverts_render(sphere, camera):
    camera = camera.resize(120, 144)
    texture = smooth_texture()
    picture = render(sphere, camera, ambient_white(), texture)
    unwrapped, weight = unwrap(picture.colour, sphere, camera, SIZE)
    assert 0.2 < np.mean(weight > 0) < 0.5  # a sphere shows less than half of itself
    clear = np.asarray(weight) > 0.4
    assert np.abs(unwrapped - texture)[clear].mean() < 0.01
    assert np.abs(unwrapped - texture)[clear].max() < 0.1
    # Weights are cosines: 1 for the texel that faces the camera, and nothing of the far side is seen.
    assert 0.99 < np.max(weight) <= 1.0 + 1e-5
    points = interpolate(sphere.vertices, sphere.triangles, *texel_table(sphere.uv, sphere.triangles, SIZE))
    eye = -camera.rotation.T @ camera.pose.translation()
    towards = np.sum(np.asarray(points) * (np.asarray(eye) - np.asarray(points)), axis=-1)
    assert np.all(np.asarray(weight)[towards < -0.2 * 100 * 400] == 0)  # the facets are coarse


def test_what_is_hidden_is_not_unwrapped(facing):
    """A small card before a large one: the large one's texels behind it, and a pixel around, get no weight."""

    def card(half, z, u0, u1):
        x = np.array([[-1, 1], [-1, -1], [1, -1], [1, 1]]) * half
        uv = np.array([[u0, 0], [u0, 1], [u1, 1], [u1, 0]])
        return np.concatenate([x, np.full((4, 1), z)], 1), uv

    (back, back_uv), (front, front_uv) = card(90.0, 0.0, 0.0, 0.5), card(30.0, 40.0, 0.5, 1.0)
    quad = np.array([[0, 1, 2], [0, 2, 3]])
    mesh = Mesh(
        vertices=jnp.asarray(np.concatenate([back, front]), jnp.float32),
        triangles=jnp.asarray(np.concatenate([quad, quad + 4]), jnp.int32),
        uv=jnp.asarray(np.concatenate([back_uv, front_uv]), jnp.float32),
    )
    picture = render(mesh, facing, ambient_white())
    _, weight = unwrap(picture.colour, mesh, facing, SIZE)
    weight = np.asarray(weight)
    y, x = (np.mgrid[:SIZE, : SIZE // 2] + 0.5) / np.array([SIZE, SIZE / 2])[:, None, None] * 180 - 90
    # The small card's shadow on the large one, seen from (0, 0, 500).
    shadow = 30 * 500 / 460
    pixel = 500 / 110
    centre = np.maximum(np.abs(x), np.abs(y))
    assert np.all(weight[:, : SIZE // 2][centre < shadow - pixel] == 0)
    assert np.all(weight[:, : SIZE // 2][(centre > shadow + 2 * pixel) & (centre < 85)] > 0.9)
    assert np.all(weight[4:-4, SIZE // 2 + 2 : -2] > 0.9)


def test_unwrap_names_what_is_wrong(sphere, camera):
    with pytest.raises(ValueError, match="image is 10x10 but the camera's picture 40x48"):
        unwrap(jnp.zeros((10, 10, 3)), sphere, camera, SIZE)
    with pytest.raises(ValueError, match="uv"):
        unwrap(jnp.zeros((40, 48, 3)), Mesh(sphere.vertices, sphere.triangles), camera, SIZE)


def test_dilate_fills_with_the_nearest_valid_texel():
    rng = np.random.default_rng(2)
    texture, valid = rng.uniform(size=(9, 7, 3)), rng.uniform(size=(9, 7)) < 0.2
    filled = dilate(texture, valid)
    assert np.array_equal(filled[valid], texture[valid])
    known = np.argwhere(valid)
    for row, column in np.argwhere(~valid):
        distance = np.hypot(*(known - [row, column]).T)
        nearest = known[distance == distance.min()]
        assert any(np.array_equal(filled[row, column], texture[tuple(n)]) for n in nearest)
    assert np.array_equal(dilate(texture, np.zeros_like(valid)), texture)
