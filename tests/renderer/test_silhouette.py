"""Outlines against supersampled pictures: areas, and the derivatives that visibility alone does not have."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from jax.test_util import check_grads

from renderer import Pinhole, WeakPerspective, antialias, edge_table, frontal, rasterize, render, visibility

SIZE = 48


@pytest.fixture(scope="module")
def edges(sphere):
    return edge_table(sphere.triangles, sphere.vertices)


@pytest.fixture(scope="module")
def blob(sphere):
    """A lopsided, coloured body, so that no motion leaves its picture alone."""
    stretched = sphere.vertices * jnp.array([[1.0, 1.25, 0.8]]) + 12 * jnp.sin(sphere.vertices[:, [1, 2, 0]] / 30)
    colours = 0.5 + 0.3 * jnp.sin(sphere.vertices / 40)
    return eqx.tree_at(lambda m: (m.vertices, m.albedo), sphere, (stretched, colours), is_leaf=lambda x: x is None)


def coverage(ids):
    return (ids >= 0).astype(jnp.float32)[..., None]


def card(corners):
    """Two triangles at one depth that make a quad of picture coordinates, counter-clockwise as seen."""
    return jnp.asarray(corners, jnp.float32), jnp.full(4, 500.0), jnp.array([[0, 1, 2], [0, 2, 3]], jnp.int32)


def areas(pixels, depth, triangles, height, width, **how):
    ids = rasterize(pixels, depth, triangles, height, width, **how)
    options = {k: v for k, v in how.items() if k in ("cull", "perspective", "near")}
    return antialias(coverage(ids), pixels, depth, triangles, ids, edge_table(triangles), **options)[..., 0]


def test_edges_are_counted_once():
    triangles = np.array([[0, 1, 2], [2, 1, 3], [0, 0, 3], [4, 5, 1], [5, 4, 2], [4, 5, 3]])
    table = edge_table(triangles)
    found = {}
    for ends, sides in zip(np.asarray(table.vertices), np.asarray(table.triangles), strict=True):
        found.setdefault(tuple(ends.tolist()), []).append(tuple(sides.tolist()))
    assert found[1, 2] == [(0, 1)] and found[0, 1] == [(0, -1)]
    assert found[4, 5] == [(3, -1), (4, -1), (5, -1)]  # where three meet, each has its own
    assert (0, 0) not in found


def test_every_side_of_a_triangle_is_beside_one_edge(edges, sphere):
    sides = np.asarray(edges.triangles)
    assert np.all(sides >= 0)  # the sphere's seam is none
    assert set(np.bincount(sides.ravel(), minlength=len(sphere.triangles)).tolist()) == {0, 3}
    assert np.sum(np.bincount(sides.ravel(), minlength=len(sphere.triangles)) == 0) == 40  # at the poles
    open_seam = np.asarray(edge_table(sphere.triangles).triangles)[:, 1]
    assert np.sum(open_seam < 0) > 12


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.8])
def test_an_upright_rectangle_has_its_exact_area(fraction):
    x0, x1, y0, y1 = 5.0 + fraction, 15.0 + fraction, 4.5, 12.25
    area = areas(*card([[x0, y0], [x0, y1], [x1, y1], [x1, y0]]), 20, 24)
    column = np.clip(np.minimum(np.arange(1, 25), x1) - np.maximum(np.arange(24), x0), 0, 1)
    row = np.clip(np.minimum(np.arange(1, 21), y1) - np.maximum(np.arange(20), y0), 0, 1)
    expected = row[:, None] * column[None]
    apart = (expected == 1) | (expected == 0) | (row[:, None] == 1) | (column[None] == 1)  # all but the four corners
    assert np.allclose(np.asarray(area)[apart], expected[apart], atol=1e-5)


@pytest.mark.parametrize("how", ["perspective", "weak, unculled"])
def test_areas_are_those_of_a_supersampled_picture(blob, edges, how):
    turn = jaxlie.SO3.exp(jnp.array([0.2, 0.5, 0.1])) @ jaxlie.SO3.from_x_radians(np.pi)
    pose = jaxlie.SE3.from_rotation_and_translation(turn, jnp.array([5.0, -3.0, 600.0]))
    centre, cull = jnp.full(2, SIZE / 2), how == "perspective"
    camera = Pinhole(jnp.full(2, 2.0 * SIZE), centre, pose, SIZE, SIZE)
    if not cull:
        camera = WeakPerspective(scale=0.16, centre=centre, pose=pose, height=SIZE, width=SIZE)
    pixels, depth = camera.project(blob.vertices), camera.to_camera(blob.vertices)[:, 2]
    arguments = {"perspective": camera.perspective, "cull": cull, "near": camera.near}
    ids = rasterize(pixels, depth, blob.triangles, SIZE, SIZE, **arguments)
    hard = np.asarray(coverage(ids))[..., 0]
    smooth = antialias(coverage(ids), pixels, depth, blob.triangles, ids, edges, **arguments)
    smooth = np.asarray(smooth)[..., 0]
    fine = rasterize(16 * pixels, depth, blob.triangles, 16 * SIZE, 16 * SIZE, **arguments)
    true = np.asarray(fine >= 0, float).reshape(SIZE, 16, SIZE, 16).mean((1, 3))
    assert np.abs(smooth - true).sum() < 0.25 * np.abs(hard - true).sum()
    assert abs(np.sum(smooth) - np.sum(true)) < 0.3
    # Nothing but the outline has changed.
    assert np.array_equal(smooth[true == 1], hard[true == 1]) and np.array_equal(smooth[true == 0], hard[true == 0])


def test_a_nearer_outline_hides_a_farther_one():
    """A card before a card that reaches as far but for a third of a pixel: the nearer one's outline counts."""
    near, _, _ = card([[4.2, 3.5], [4.2, 12.5], [9.4, 12.5], [9.4, 3.5]])
    far, _, _ = card([[2.2, 2.5], [2.2, 14.5], [9.7, 14.5], [9.7, 2.5]])
    pixels, depth = jnp.concatenate([far, near]), jnp.repeat(jnp.array([600.0, 500.0]), 4)
    triangles = jnp.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], jnp.int32)
    ids = rasterize(pixels, depth, triangles, 20, 24)
    image = jnp.where((ids >= 2)[..., None], 1.0, jnp.where((ids >= 0)[..., None], 0.5, 0.0))
    mixed = np.asarray(antialias(image, pixels, depth, triangles, ids, edge_table(triangles)))[..., 0]
    assert np.allclose(mixed[8, 3:11], [0.5, 0.9, 1, 1, 1, 1, 0.4 + 0.3 / 2, 0], atol=1e-5)
    assert np.allclose(mixed[13, 1:11], [0, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.35, 0], atol=1e-5)


def test_few_slots_change_nothing(blob, camera, edges):
    pixels, depth = camera.project(blob.vertices), camera.to_camera(blob.vertices)[:, 2]
    ids = visibility(camera, blob.vertices, blob.triangles)
    image = jnp.concatenate([coverage(ids), jnp.sin(ids)[..., None]], axis=-1)
    smooth = [antialias(image, pixels, depth, blob.triangles, ids, edges, slots=slots) for slots in (None, 16)]
    assert np.sum(smooth[0] != image) > 60
    assert np.allclose(*smooth, atol=1e-6)


def test_vmap_of_different_poses_is_the_loop(blob, edges, facing):
    def smooth(shift):
        moved = eqx.tree_at(lambda m: m.vertices, blob, blob.vertices + shift[None])
        return render(moved, facing, frontal(), edges=edges).colour

    shifts = jnp.array([[0.0, 0, 0], [40.0, -20, 30], [-400.0, 0, 0]])
    for one, shift in zip(jax.jit(jax.vmap(smooth))(shifts), shifts, strict=True):
        assert np.allclose(one, smooth(shift), atol=1e-5)


def test_derivatives_in_both_modes_at_fixed_ids(blob, camera, edges):
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), camera)
        vertices = jnp.asarray(np.asarray(blob.vertices, np.float64))
        ids = visibility(camera, blob.vertices, blob.triangles)
        image = jnp.asarray(np.random.default_rng(0).uniform(size=(*ids.shape, 2)))
        mix = jnp.asarray(np.random.default_rng(1).normal(size=image.shape))

        def total(vertices, image):
            depth = double.to_camera(vertices)[:, 2]
            return jnp.sum(mix * antialias(image, double.project(vertices), depth, blob.triangles, ids, edges))

        check_grads(jax.jit(total), (vertices, image), order=1, modes=("fwd", "rev"), eps=1e-6)
        direction = jax.jit(jax.grad(total))(vertices, image)
        assert np.sum(np.any(direction != 0, axis=1)) > 15


def test_gradients_are_those_of_a_supersampled_picture(blob, edges):
    """Median error over 50 random poses; without outlines it is that of shading alone, several times as large."""
    light, background = frontal(), jnp.array([0.1, 0.3, 0.6])

    def camera_of(motion, start, size=SIZE):
        turn, shift = start
        turn = jaxlie.SO3.exp(0.03 * motion[3:]) @ turn
        pose = jaxlie.SE3.from_rotation_and_translation(turn, shift + 4 * jnp.append(motion[:2], 0.0))
        focal = jnp.full(2, 2.0 * size) * jnp.exp(0.02 * motion[2])
        return Pinhole(focal, jnp.full(2, size / 2), pose, size, size)

    def energy(motion, start, target, edges):
        picture = render(blob, camera_of(motion, start), light, edges=edges)
        return jnp.sum((picture.over(jnp.broadcast_to(background, target.shape)) - target) ** 2)

    @jax.jit
    def supersampled(motion, start):
        fine = render(blob, camera_of(motion, start, 8 * SIZE), light)
        picture = fine.over(jnp.broadcast_to(background, fine.colour.shape))
        return jnp.mean(picture.reshape(SIZE, 8, SIZE, 8, 3), axis=(1, 3))

    gradient = eqx.filter_jit(jax.grad(energy))
    rng = np.random.default_rng(0)
    errors, errors_without = [], []
    for _ in range(50):
        turn = jaxlie.SO3.exp(jnp.asarray(0.6 * rng.normal(size=3))) @ jaxlie.SO3.from_x_radians(np.pi)
        start = (turn, jnp.asarray([*(15 * rng.normal(size=2)), 600.0]))
        target = supersampled(jnp.asarray(3 * rng.normal(size=6)), start)
        steps = 0.5 * np.eye(6)
        ends = [np.sum((supersampled(jnp.asarray(s), start) - target) ** 2, dtype=float) for s in [*steps, *-steps]]
        true = np.subtract(ends[:6], ends[6:])
        for found, table in ((errors, edges), (errors_without, None)):
            found.append(np.linalg.norm(gradient(jnp.zeros(6), start, target, table) - true) / np.linalg.norm(true))
    assert np.median(errors) < 0.15 and np.quantile(errors, 0.9) < 0.3
    assert np.median(errors_without) > 3 * np.median(errors)
