import dataclasses

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from helpers import uv_sphere

from morphable.mesh import Mesh
from renderer import ambient_white, interpolate, render, sample_texture
from renderer.unwrap import blend, texel_table, unwrap, unwrap_views, view_gains

SIZE = 128


def waves(count=1.0):
    """A smooth texture; with 3 waves, of details a few pixels wide in the pictures below."""
    y, x = count * (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
    colours = [np.sin(6 * np.pi * x), np.cos(4 * np.pi * y), np.sin(4 * np.pi * x) * np.sin(2 * np.pi * y)]
    return jnp.asarray(0.5 + 0.4 * np.stack(colours, -1), jnp.float32)


@pytest.fixture(scope="module")
def globe():
    """Facets not much larger than the pixels."""
    return uv_sphere(60, 40)


@pytest.fixture(scope="module")
def views(facing):
    """Two cameras before a head that is turned to either side."""
    large = facing.resize(120, 144)
    turns = [jaxlie.SE3.from_rotation(jaxlie.SO3.from_y_radians(yaw)) for yaw in (-0.5, 0.6)]
    return [dataclasses.replace(large, pose=large.pose @ turn) for turn in turns]


@pytest.fixture(scope="module")
def pictures(globe, views):
    """Sharp even where the texture is seen at a slant, unlike what mip levels would show."""
    seen = [render(globe, view, ambient_white()) for view in views]
    colours = [jnp.where(s.coverage[..., None] > 0, sample_texture(waves(), s.uv), 0.0) for s in seen]
    return [dataclasses.replace(s, colour=colour) for s, colour in zip(seen, colours, strict=True)]


def unwrapped(picture, mesh, view):
    """As `unwrap_views` calls it, with a channel of ones, so that it is compiled once."""
    layers = jnp.concatenate([picture, jnp.ones((*picture.shape[:2], 1))], axis=2)
    texture, weight = unwrap(layers, mesh, view, SIZE)
    assert np.array_equal(texture[..., 3], np.asarray(weight > 0))
    return texture[..., :3], np.asarray(weight)


def test_texels_know_their_surface_point(globe):
    """The uv interpolated at a texel is the texel's own centre, and the layout's whole square is covered once."""
    table = texel_table(globe.uv, globe.triangles, SIZE)
    assert np.all(np.asarray(table.triangle_ids) >= 0)
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
    uv = interpolate(globe.uv, globe.triangles, *table)
    assert np.allclose(uv, np.stack([x, y], -1), atol=1e-5)


def test_unwrap_inverts_render(globe, views, pictures):
    for view, picture in zip(views, pictures, strict=True):
        texture, weight = unwrapped(picture.colour, globe, view)
        # No texel holds a mixture with the black behind the sphere, be it seen ever so slanted.
        error = np.abs(texture - waves())
        assert error[weight > 0].mean() < 0.005 and error[weight > 0].max() < 0.1
        assert error[weight > 0.3].max() < 0.04
        # Weights are cosines: on a sphere known from the texel's place alone.
        points = interpolate(globe.vertices, globe.triangles, *texel_table(globe.uv, globe.triangles, SIZE))
        towards = -view.rotation.T @ view.pose.translation() - np.asarray(points)
        cosine = np.sum(points / np.linalg.norm(points, axis=2, keepdims=True) * towards, axis=2)
        cosine = cosine / np.linalg.norm(towards, axis=2)
        assert np.allclose(weight[weight > 0], cosine[weight > 0], atol=0.01)
        # All that is well within the outline and the picture is seen, nothing beyond.
        pixel = np.asarray(view.project(points.reshape(-1, 3))).reshape(SIZE, SIZE, 2)
        inside = np.all((pixel > 0) & (pixel < [144, 120]), axis=2)
        assert np.all(weight[inside & (cosine > 0.2)] > 0) and np.all(weight[~inside | (cosine < -0.02)] == 0)


def test_rendering_what_was_unwrapped_gives_the_picture_back(globe, views):
    fine = waves(3)
    for view in views:
        picture = render(globe, view, ambient_white(), fine)
        texture, weight = unwrapped(picture.colour, globe, view)
        again = render(globe, view, ambient_white(), texture)
        assert picture.uv is not None
        known = sample_texture(jnp.asarray(weight > 0.35, jnp.float32)[..., None], picture.uv)[..., 0]
        known = np.asarray((known > 0.999) & (picture.coverage > 0))
        assert known.sum() > 0.75 * np.sum(picture.coverage)
        error = np.abs(again.colour - picture.colour)[known]
        assert error.mean() < 0.015 and error.max() < 0.15


def test_what_is_hidden_is_not_unwrapped(facing):
    """A small card before a large one: the large one's texels behind it, and a pixel around, get no weight."""

    def card(half, z, u0, u1):
        x = np.array([[-1, 1], [-1, -1], [1, -1], [1, 1]]) * half
        uv = np.array([[u0, 0], [u0, 1], [u1, 1], [u1, 0]])
        return np.concatenate([x, np.full((4, 1), z)], 1), uv

    size, pixel = 64, 500 / 110
    gaps = (40.0, 0.6 * pixel)  # a layer that lies closer than a pixel is wide hides as well
    cards = [[card(90.0, 0.0, 0.0, 0.5), card(30.0, gap, 0.5, 1.0)] for gap in gaps]
    quad = np.array([[0, 1, 2], [0, 2, 3]])
    triangles = jnp.asarray(np.concatenate([quad, quad + 4]), jnp.int32)
    uv = jnp.asarray(np.concatenate([uv for _, uv in cards[0]]), jnp.float32)
    vertices = jnp.asarray([np.concatenate([x for x, _ in pair]) for pair in cards], jnp.float32)
    one = lambda v: unwrap(jnp.ones((40, 48, 3)), Mesh(v, triangles, uv), facing, size)[1]  # noqa: E731
    for gap, weight in zip(gaps, np.asarray(jax.vmap(one)(vertices)), strict=True):
        y, x = (np.mgrid[:size, : size // 2] + 0.5) / np.array([size, size / 2])[:, None, None] * 180 - 90
        shadow = 30 * 500 / (500 - gap)  # of the small card on the large one, seen from (0, 0, 500)
        centre = np.maximum(np.abs(x), np.abs(y))
        assert np.all(weight[:, : size // 2][centre < shadow - pixel] == 0)
        assert np.all(weight[:, : size // 2][(centre > shadow + 2 * pixel) & (centre < 83)] > 0.9)
        assert np.all(weight[6:-6, size // 2 + 4 : -4] > 0.9)


def test_unwrap_names_what_is_wrong(sphere, camera):
    with pytest.raises(ValueError, match="image is 10x10 but the camera's picture 40x48"):
        unwrap(jnp.zeros((10, 10, 3)), sphere, camera, SIZE)
    with pytest.raises(ValueError, match="uv"):
        unwrap(jnp.zeros((40, 48, 3)), Mesh(sphere.vertices, sphere.triangles), camera, SIZE)
    with pytest.raises(ValueError, match="got 2 images, 1 cameras, 2 meshes"):
        unwrap_views([jnp.zeros((40, 48, 3))] * 2, sphere, [camera], SIZE)


def test_views_of_one_texture_blend_to_it(globe, views, pictures):
    texture, weight = unwrap_views([p.colour for p in pictures], globe, views, SIZE)
    each = [unwrapped(p.colour, globe, v)[1] for p, v in zip(pictures, views, strict=True)]
    assert np.allclose(weight, np.maximum(*each), atol=1e-5)
    assert np.mean(weight > 0) > 1.2 * np.mean(each[0] > 0)  # together they show more than one
    error, seen = np.abs(texture - waves()), np.asarray(weight) > 0
    assert error[seen].mean() < 0.005 and error[seen].max() < 0.1
    assert np.all(np.asarray(texture)[~seen] == 0)


def test_a_mask_takes_a_photo_out_where_it_is_zero(globe, views, pictures):
    half = jnp.ones((120, 144)).at[:, 72:].set(0.0)
    spoilt = jnp.where(half[..., None] > 0, pictures[1].colour, 9.0)
    masks = [jnp.ones_like(half), half]
    texture, weight = unwrap_views([pictures[0].colour, spoilt], globe, views, SIZE, masks=masks)
    # Right at the mask's edge a texel's four pixels are part masked, part not.
    kept = np.asarray(unwrapped(jnp.repeat(half[..., None], 3, 2), globe, views[1])[0])[..., 0]
    clear = (np.asarray(weight) > 0.3) & ((kept == 0) | (kept == 1))
    assert np.abs(texture - waves())[clear].max() < 0.1


def test_matched_views_blend_without_their_exposures(globe, views, pictures):
    dark = [pictures[0].colour, 0.5 * pictures[1].colour]
    texture, weight = unwrap_views(dark, globe, views, SIZE, match=True)
    error = np.abs(texture / np.sqrt(0.5) - waves())[np.asarray(weight) > 0]
    assert error.mean() < 0.01 and error.max() < 0.12


def discs(size=96):
    """Two views that overlap: weights of 1 within discs, and some outline."""
    y, x = np.mgrid[:size, :size] / size
    inside = [np.hypot(x - cx, y - 0.5) < 0.3 for cx in (0.38, 0.62)]
    return jnp.asarray(np.stack(inside), jnp.float32)


def test_a_view_has_no_influence_where_it_shows_nothing_and_no_edge_where_another_goes_on():
    weights = discs()
    first, second = np.asarray(weights) > 0
    values = jnp.asarray(np.stack([np.zeros((96, 96, 1)), np.ones((96, 96, 1))]), jnp.float32)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=values.shape) * 1e6, jnp.float32)
    got = np.asarray(blend(jnp.where(weights[..., None] > 0, values, noise), weights, feather=0.1)[0])[..., 0]
    assert np.all(got[first & ~second] == 0) and np.allclose(got[second & ~first], 1)
    known = first | second
    steps = [np.abs(np.diff(got, axis=k))[(np.diff(known.astype(int), axis=k) == 0)] for k in (0, 1)]
    # The two discs' outlines cross at two points, where whatever is done has an edge.
    assert np.sort(np.concatenate(steps))[-40] < 0.2
    row = got[48][known[48]]
    assert np.all(np.diff(row) >= -1e-6) and np.abs(np.diff(row)).max() < 0.12
    same = blend(jnp.full_like(values, 0.3), weights)[0]
    assert np.allclose(np.asarray(same)[known], 0.3, atol=1e-6)


def test_exposures_are_found_from_the_overlap():
    rng = np.random.default_rng(4)
    truth = jnp.asarray(rng.uniform(0.1, 0.9, (96, 96, 3)), jnp.float32)
    weights = jnp.concatenate([discs(), jnp.zeros((1, 96, 96)).at[0, :5, :5].set(1.0)])
    exposure = jnp.array([[1.2, 1.0, 0.8], [0.7, 0.9, 1.5], [3.0, 3.0, 3.0]])
    gains = np.asarray(view_gains(truth[None] * exposure[:, None, None, :], weights))
    assert np.allclose(gains[0] / gains[1], exposure[1] / exposure[0], rtol=2e-3)
    assert np.allclose(gains[0] * gains[1], 1.0, rtol=1e-3)
    assert np.allclose(gains[2], 1.0, atol=1e-4)  # nothing to compare it with
