"""Visibility against brute force in integers, and the laws of the edge rule."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from renderer import barycentrics, interpolate, rasterize, visibility

HEIGHT, WIDTH, COUNT = 32, 40, 48


def coverage_and_depth(pixels, key, triangles, cull):
    """For every triangle and pixel, by brute force: whether it is covered, and the key's value there (float64)."""
    snapped = np.round(np.clip(np.asarray(pixels, np.float64), -(2**15), 2**15) * 256).astype(np.int64)
    y, x = np.mgrid[:HEIGHT, :WIDTH] * 256 + 128
    covered, depth = [], []
    for ia, ib, ic in np.asarray(triangles):
        a, b, c = snapped[[ia, ib, ic]]
        za, zb, zc = key[[ia, ib, ic]]
        area = (b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]
        if cull and area > 0:
            area = 0
        if area < 0:
            b, c, zb, zc, area = c, b, zc, zb, -area
        inside = np.full((HEIGHT, WIDTH), area > 0)
        weights = []
        for p, q in ((b, c), (c, a), (a, b)):
            dx, dy = q - p
            edge = dx * (y - p[1]) - dy * (x - p[0])
            top_or_left = (dy == 0 and dx > 0) or dy < 0
            inside &= (edge > 0) | ((edge == 0) & top_or_left)
            weights.append(edge / max(area, 1))
        covered.append(inside)
        depth.append(weights[0] * za + weights[1] * zb + weights[2] * zc)
    return np.array(covered), np.array(depth)


def brute_force(pixels, depth, triangles, *, perspective, cull):
    key = 1 - depth.min() / depth if perspective else depth - depth.min()
    covered, value = coverage_and_depth(pixels, key.astype(np.float64), triangles, cull)
    return np.where(covered, value, np.inf), key.max() / 2 ** min(23, 31 - int(np.ceil(np.log2(len(triangles)))))


def random_scene(seed):
    """Triangles of all kinds: ordinary, tiny, huge, degenerate, off the picture, on the pixel lattice, shared edges."""
    rng = np.random.default_rng(seed)
    size = np.repeat([6.0, 30.0, 0.4, 2000.0, 1e6, 10.0], COUNT // 6)
    centre = rng.uniform([0, 0], [WIDTH, HEIGHT], (COUNT, 2))
    corners = centre[:, None] + rng.normal(size=(COUNT, 3, 2)) * size[:, None, None]
    corners[-8:-4] = np.round(corners[-8:-4]) + 0.5
    corners[-4, 2] = corners[-4, 0]  # no area
    corners[-3, 2] = 2 * corners[-3, 1] - corners[-3, 0]  # a line
    corners[-2] += 500  # off the picture
    corners[-1, :2] = corners[0, :2][::-1]  # a neighbour
    depth = rng.uniform(300, 900, (COUNT, 3))
    triangles = np.arange(3 * COUNT).reshape(COUNT, 3)
    return (
        jnp.asarray(corners.reshape(-1, 2), jnp.float32),
        jnp.asarray(depth.ravel(), jnp.float32),
        jnp.asarray(triangles, jnp.int32),
    )


SCENES = [random_scene(seed) for seed in range(4)]
# Few slots, so that most scenes need several passes.
draw = functools.partial(rasterize, height=HEIGHT, width=WIDTH, perspective=False, cull=False, slots=64)


@pytest.mark.parametrize("perspective_and_cull", [False, True])
def test_every_pixel_sees_the_nearest_triangle(perspective_and_cull):
    """Covered exactly where brute force says so, by a triangle nearest up to one step of the depth's quantisation."""
    how = {"perspective": perspective_and_cull, "cull": perspective_and_cull}
    for pixels, depth, triangles in SCENES:
        ids = np.asarray(rasterize(pixels, depth, triangles, HEIGHT, WIDTH, slots=64, **how))
        reference, step = brute_force(pixels, np.asarray(depth), triangles, **how)
        nearest = reference.min(axis=0)
        assert np.array_equal(ids >= 0, np.isfinite(nearest))
        row, column = np.nonzero(ids >= 0)
        assert len(row) > 200
        chosen = reference[ids[row, column], row, column]
        assert np.all(chosen <= nearest[row, column] + 2 * step)


def test_ids_are_identical_where_depths_are_flat():
    """With one depth per triangle there is no rounding left, and equal depths fall to the lower id."""
    for pixels, _, triangles in SCENES:
        levels = np.random.default_rng(5).integers(1, 5, COUNT) * 100.0
        depth = np.repeat(levels, 3).astype(np.float32)
        reference, _ = brute_force(pixels, depth, triangles, perspective=False, cull=False)
        expected = np.where(np.isfinite(reference.min(0)), reference.round(6).argmin(0), -1)
        assert np.array_equal(draw(pixels, jnp.asarray(depth), triangles), expected)


def test_vmap_of_different_scenes_is_the_loop():
    stacked = [jnp.stack(leaves) for leaves in zip(*SCENES, strict=True)]
    batched = jax.vmap(lambda p, d, t: draw(p, d, t))(*stacked)
    for ids, scene in zip(batched, SCENES, strict=True):
        assert np.array_equal(ids, draw(*scene))


def test_inside_loops_and_gradients():
    """lax.map gives the same ids, and a derivative passes by visibility without touching it."""
    stacked = [jnp.stack(leaves) for leaves in zip(*SCENES[:2], strict=True)]
    mapped = jax.lax.map(lambda scene: draw(*scene), tuple(stacked))
    assert np.array_equal(mapped[1], draw(*SCENES[1]))
    pixels, depth, triangles = SCENES[0]
    gradient = jax.grad(lambda p: jnp.sum(p * jnp.sum(draw(p, depth, triangles) >= 0)))(pixels)
    assert np.all(gradient == np.sum(draw(pixels, depth, triangles) >= 0))


def test_more_tiles_than_31_bits_count(monkeypatch):
    """Triangles drawn in groups, as huge pictures need, give the same ids."""
    module = importlib.import_module("renderer.rasterize")
    monkeypatch.setattr(module, "_MOST_TILES", 20 * (HEIGHT // 4) * (WIDTH // 4))
    in_groups = jax.jit(functools.partial(rasterize.__wrapped__, **draw.keywords))
    assert np.array_equal(in_groups(*SCENES[2]), draw(*SCENES[2]))


def hits(pixels, triangles):
    """How often each pixel is hit, every triangle drawn alone."""
    depth = jnp.ones(len(pixels))
    one = jax.vmap(lambda t: rasterize(pixels, depth, t[None], HEIGHT, WIDTH, cull=False) == 0)
    return np.asarray(one(jnp.asarray(triangles, jnp.int32))).sum(axis=0)


def padded(triangles, to=12):
    """Degenerate triangles appended, so that all cases share one compilation."""
    return np.concatenate([triangles, np.zeros((to - len(triangles), 3), int)])


def padded_points(points, to=13):
    return jnp.asarray(np.concatenate([points, np.zeros((to - len(points), 2))]), jnp.float32)


@pytest.mark.parametrize("flip", [False, True])
def test_a_quad_split_in_two_hits_each_pixel_once(flip):
    """Corners and the diagonal on pixel centres: top and left edges belong to the square, the others do not."""
    square = np.array([[2.5, 3.5], [10.5, 3.5], [10.5, 11.5], [2.5, 11.5]])
    halves = np.array([[0, 1, 2], [0, 2, 3]] if flip else [[0, 1, 3], [1, 2, 3]])
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[3:11, 2:10] = 1
    assert np.array_equal(hits(padded_points(square), padded(halves)), expected)


def test_a_closed_fan_has_no_cracks_and_no_double_hits():
    """Twelve triangles around a pixel centre, rims on and off the lattice: the union is the polygon, once."""
    rng = np.random.default_rng(7)
    angle = 2 * np.pi * np.arange(12) / 12
    for trial in range(20):
        rim = np.stack([20.5 + 13 * np.cos(angle), 16.5 + 13 * np.sin(angle)], 1)
        rim += rng.uniform(-2, 2, rim.shape)
        rim = np.round(rim) + 0.5 if trial % 2 else rim
        points = np.concatenate([[[20.5, 16.5]], rim]).astype(np.float32)
        spokes = np.arange(12)
        fan = np.stack([np.zeros(12, int), spokes + 1, (spokes + 1) % 12 + 1], 1)
        count = hits(jnp.asarray(points), fan)
        assert count.max() == 1
        covered, _ = coverage_and_depth(points, np.ones(13), fan, cull=False)
        assert np.array_equal(count, covered.sum(0))
        # Every centre well inside the polygon is hit.
        y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        assert np.all(count[np.hypot(x - 20.5, y - 16.5) < 9] == 1)


def test_culling_drops_what_is_seen_from_behind(sphere, camera):
    front = visibility(camera, sphere.vertices, sphere.triangles)
    both = visibility(camera, sphere.vertices, sphere.triangles, cull=False)
    inside_out = visibility(camera, sphere.vertices, sphere.triangles[:, ::-1])
    assert np.array_equal(front, both)
    assert np.array_equal(inside_out >= 0, front >= 0) and not np.any((inside_out == front) & (front >= 0))


def test_triangles_behind_the_near_plane_or_not_finite_are_dropped():
    pixels, depth, triangles = SCENES[0]
    whole = np.asarray(draw(pixels, depth, triangles))
    gone = int(np.bincount(whole[whole >= 0]).argmax())
    for where, value in ((depth, 0.0), (depth, np.nan), (pixels, np.inf), (pixels, np.nan)):
        spoiled = where.at[3 * gone + 1].set(value)
        scene = (spoiled, depth) if where is pixels else (pixels, spoiled)
        ids = np.asarray(draw(*scene, triangles))
        assert not np.any(ids == gone)
        assert np.array_equal(ids[whole != gone], whole[whole != gone])


def test_nothing_to_draw():
    assert np.all(draw(jnp.zeros((1, 2)), jnp.ones(1), jnp.zeros((0, 3), jnp.int32)) == -1)
    with pytest.raises(ValueError, match="picture size"):
        rasterize(jnp.zeros((1, 2)), jnp.ones(1), jnp.zeros((1, 3), jnp.int32), 40000, 10)


def test_barycentrics_are_where_the_pixels_ray_meets_the_plane():
    """Perspective-correct weights against rays intersected with the triangles' planes in space, float64."""
    pixels, depth, triangles = SCENES[0]
    ids = rasterize(pixels, depth, triangles, HEIGHT, WIDTH, slots=64)
    weights = np.asarray(barycentrics(pixels, depth, triangles, ids))
    assert np.all(weights[np.asarray(ids) < 0] == 0)
    focal, centre = 90.0, np.array([20.0, 16.0])
    z = np.asarray(depth, np.float64)[:, None]
    corners = np.concatenate([(np.asarray(pixels) - centre) / focal * z, z], 1)[np.asarray(triangles)]
    # The largest are left out: float32 does not hold their corners to a fraction of a pixel.
    row, column = np.nonzero((np.asarray(ids) >= 0) & (np.asarray(ids) < COUNT // 2))
    assert len(row) > 200
    at = np.stack([column, row], 1) + 0.5
    rays = np.concatenate([(at - centre) / focal, np.ones((len(row), 1))], 1)
    # ray = weights over depth @ corners
    solution = np.linalg.solve(np.swapaxes(corners[np.asarray(ids)[row, column]], 1, 2), rays[:, :, None])[:, :, 0]
    expected = solution / solution.sum(1, keepdims=True)
    assert np.allclose(weights[row, column], expected, atol=2e-3)
    # The same at given points as at the pixels' centres.
    some = barycentrics(pixels, depth, triangles, ids[row, column], jnp.asarray(at, jnp.float32))
    assert np.allclose(some, weights[row, column], atol=1e-5)


@pytest.mark.parametrize("weak", [False, True])
def test_interpolated_attributes_have_derivatives_in_both_modes(sphere, camera, weak):
    """Colour and depth, at fixed ids, against finite differences in the vertices."""
    ids = visibility(camera, sphere.vertices, sphere.triangles)
    rng = np.random.default_rng(9)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), camera)
        double = double.to_weak_perspective() if weak else double
        colour = jnp.asarray(rng.uniform(size=(len(sphere.vertices), 3)))
        mix = jnp.asarray(rng.normal(size=(*ids.shape, 4)))

        def total(vertices):
            points = double.to_camera(vertices)
            depth = points[:, 2] if double.perspective else None
            weights = barycentrics(double.project(vertices), depth, sphere.triangles, ids)
            seen = interpolate(jnp.concatenate([colour, points[:, 2:]], 1), sphere.triangles, ids, weights)
            return jnp.sum(seen * mix)

        vertices = jnp.asarray(np.asarray(sphere.vertices, np.float64))
        check_grads(jax.jit(total), (vertices,), order=1, modes=("fwd", "rev"), eps=1e-5)


def test_degenerate_triangles_give_finite_weights_and_derivatives():
    pixels = jnp.array([[5.5, 5.5], [9.5, 5.5], [7.5, 5.5 + 1e-7], [6.5, 9.5]])
    triangles = jnp.array([[0, 1, 2], [0, 0, 1], [0, 3, 1]])
    ids = jnp.array([0, 1, 2, -1])
    at = jnp.array([[7.5, 5.5], [8.0, 5.5], [6.5, 6.5], [0.5, 0.5]])

    def total(pixels, depth):
        return jnp.sum(barycentrics(pixels, depth, triangles, ids, at) ** 2)

    weights = barycentrics(pixels, jnp.ones(4), triangles, ids, at)
    assert np.allclose(weights.sum(-1), [1, 1, 1, 0], atol=1e-5)
    assert all(np.all(np.isfinite(g)) for g in jax.grad(total, (0, 1))(pixels, jnp.ones(4)))
