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


def clipped_polygon(corners, near):
    """Corners (u w, v w, w, depth) of a triangle cut at `near` and at +-2^15 px, in float64, plane by plane."""
    polygon = [np.asarray(c, np.float64) for c in corners]
    guard = 2.0**15
    planes = [
        lambda p: p[3] - near if np.isfinite(near) else 1.0,
        lambda p: p[0] + guard * p[2],
        lambda p: guard * p[2] - p[0],
        lambda p: p[1] + guard * p[2],
        lambda p: guard * p[2] - p[1],
    ]
    for plane in planes:
        kept = []
        for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            dp, dq = plane(p), plane(q)
            if dp > 0:
                kept.append(p)
            if (dp > 0) != (dq > 0):
                kept.append(p + (q - p) * (dp / (dp - dq)))
        polygon = kept
        if not polygon:
            return np.zeros((0, 4))
    return np.array(polygon)


def brute_force(pixels, depth, triangles, *, perspective, cull, near=0.0, size=(HEIGHT, WIDTH)):
    """For every triangle and pixel, one after the other in float64: its depth where it covers the pixel, else inf."""
    pixels, depth = np.asarray(pixels, np.float64), np.asarray(depth, np.float64)
    w = depth if perspective else np.ones_like(depth)
    points = np.stack([pixels[:, 0] * w, pixels[:, 1] * w, w, depth], 1)
    y, x = np.mgrid[: size[0], : size[1]] * 256 + 128
    seen = np.full((len(triangles), *size), np.inf)
    for t, corners in enumerate(np.asarray(triangles)):
        if not np.isfinite(points[corners]).all():
            continue
        polygon = clipped_polygon(points[corners], near)
        snapped = np.round(polygon[:, :2] / polygon[:, 2:3] * 256).astype(np.int64)
        key = -1 / polygon[:, 3] if perspective else polygon[:, 3]  # affine in the picture
        for k in range(1, len(polygon) - 1):
            (a, b, c), (za, zb, zc) = snapped[[0, k, k + 1]], key[[0, k, k + 1]]
            area = (b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]
            if area == 0 or (cull and area > 0):
                continue
            if area < 0:
                b, c, zb, zc, area = c, b, zc, zb, -area
            inside, value = np.ones(size, bool), 0.0
            for p, q, z in ((b, c, za), (c, a, zb), (a, b, zc)):
                dx, dy = q - p
                edge = dx * (y - p[1]) - dy * (x - p[0])
                inside &= (edge > 0) | ((edge == 0) & ((dy == 0 and dx > 0) or dy < 0))
                value = value + edge / area * z
            seen[t][inside] = -1 / value[inside] if perspective else value[inside]
    return seen


def nearest(seen):
    """Ids of the nearest triangles, of equally near ones the lowest."""
    return np.where(np.isfinite(seen).any(0), seen.argmin(0), -1)


def random_scene(seed):
    """Triangles of all kinds: ordinary, tiny, huge, degenerate, off the picture, on the pixel lattice, shared edges."""
    rng = np.random.default_rng(seed)
    size = np.repeat([6.0, 40.0, 0.4, 10.0], COUNT // 4)
    size[:6] = 2e3, 1e4, 1e6, 1e6, 60, 60
    centre = rng.uniform([0, 0], [WIDTH, HEIGHT], (COUNT, 2))
    corners = centre[:, None] + rng.normal(size=(COUNT, 3, 2)) * size[:, None, None]
    corners[-8:-4] = np.round(corners[-8:-4]) + 0.5
    corners[-4, 2] = corners[-4, 0]  # no area
    corners[-3, 2] = 2 * corners[-3, 1] - corners[-3, 0]  # a line
    corners[-2] += 500  # off the picture
    corners[-1, :2] = corners[6, :2][::-1]  # a neighbour
    depth = rng.uniform(300, 900, (COUNT, 3))
    depth[:4] += 600  # the largest are a background, and cut each other
    triangles = np.arange(3 * COUNT).reshape(COUNT, 3)
    return (
        jnp.asarray(corners.reshape(-1, 2), jnp.float32),
        jnp.asarray(depth.ravel(), jnp.float32),
        jnp.asarray(triangles, jnp.int32),
    )


def scene_around_the_camera(seed):
    """Triangles before, beside and behind a camera, most of which reach through its plane."""
    rng = np.random.default_rng(seed)
    corners = rng.normal(size=(COUNT, 1, 3)) * [80, 80, 150] + rng.normal(size=(COUNT, 3, 3)) * [40, 40, 150]
    corners[COUNT // 2 :] *= 3  # triangles that fill the picture cut each other
    corners[:, :, 2] += 120
    x, y, z = corners.reshape(-1, 3).astype(np.float32).T
    pixels = np.stack([30 * x / z + WIDTH / 2, 30 * y / z + HEIGHT / 2], 1)
    return jnp.asarray(pixels), jnp.asarray(z), jnp.arange(3 * COUNT, dtype=jnp.int32).reshape(COUNT, 3)


SCENES = [random_scene(seed) for seed in range(4)]
AROUND = [scene_around_the_camera(seed) for seed in range(4)]
# Few slots, so that most scenes need several passes.
draw = functools.partial(rasterize, height=HEIGHT, width=WIDTH, perspective=False, cull=False, slots=64)


@pytest.mark.parametrize("perspective_and_cull", [False, True])
def test_every_pixel_sees_the_nearest_triangle(perspective_and_cull):
    how = {"perspective": perspective_and_cull, "cull": perspective_and_cull}
    for scene in SCENES:
        ids = rasterize(*scene, HEIGHT, WIDTH, slots=64, **how)
        expected = nearest(brute_force(*scene, **how))
        assert len(np.unique(expected)) > 6
        assert np.array_equal(ids, expected)


@pytest.mark.parametrize("near", [1.0, 60.0])
def test_triangles_are_clipped_at_the_near_plane(near):
    for scene in AROUND:
        depth = np.asarray(scene[1]).reshape(COUNT, 3)
        assert np.sum((depth > near).any(1) & (depth < near).any(1)) > COUNT // 4
        ids = rasterize(*scene, HEIGHT, WIDTH, slots=64, near=near)
        expected = nearest(brute_force(*scene, perspective=True, cull=True, near=near))
        assert len(np.unique(expected)) > 4
        assert np.array_equal(ids, expected)


def test_more_triangles_are_clipped_than_one_pass_takes():
    pixels, depth = (jnp.concatenate([scene[k] for scene in AROUND]) for k in range(2))
    triangles = jnp.arange(len(pixels), dtype=jnp.int32).reshape(-1, 3)
    reach = np.asarray(depth).reshape(-1, 3)
    assert np.sum((reach > 1).any(1) & (reach < 1).any(1)) > 80  # a pass takes 64
    expected = nearest(brute_force(pixels, depth, triangles, perspective=True, cull=True, near=1.0))
    assert np.array_equal(rasterize(pixels, depth, triangles, HEIGHT, WIDTH, near=1.0), expected)


def test_a_floor_through_the_camera_ends_at_its_horizon():
    """A square 50 mm below a camera that looks along it: both triangles reach behind the camera."""
    x, z = np.array([-1e4, 1e4, 1e4, -1e4]), np.array([-1e4, -1e4, 1e4, 1e4])
    pixels = jnp.asarray(np.stack([30 * x / z + WIDTH / 2, 30 * 50 / z + HEIGHT / 2], 1), jnp.float32)
    floor = jnp.array([[0, 1, 2], [0, 2, 3]])
    depth = jnp.asarray(z, jnp.float32)
    ids = np.asarray(rasterize(pixels, depth, floor, HEIGHT, WIDTH, near=1.0, cull=False))
    assert np.all(ids[: HEIGHT // 2] == -1) and np.all(ids[HEIGHT // 2 + 1 :] >= 0)
    # The ray of each pixel meets the floor where its weights say.
    weights = np.asarray(barycentrics(pixels, depth, floor, jnp.asarray(ids)))
    row, column = np.nonzero(ids >= 0)
    met = np.einsum("pk,pkc->pc", weights[row, column], np.stack([x, z], 1)[np.asarray(floor)[ids[row, column]]])
    ahead = 30 * 50 / (row + 0.5 - HEIGHT / 2)
    assert np.allclose(met, np.stack([(column + 0.5 - WIDTH / 2) / 30 * ahead, ahead], 1), rtol=2e-3, atol=3)


def test_something_close_does_not_blur_what_is_far():
    """A triangle at the camera leaves steps enough to tell two surfaces apart that lie 1 mm behind each other."""
    pixels = jnp.array([[1.0, 1], [1, 3], [3, 1], [0, 0], [0, 99], [99, 0], [0, 0], [0, 99], [99, 0]])
    depth = jnp.array([1.5, 1.5, 1.5, 600, 601, 602, 601, 602, 603])
    triangles = jnp.concatenate([jnp.zeros((30_000, 3), jnp.int32), jnp.arange(9, dtype=jnp.int32).reshape(3, 3)[::-1]])
    ids = np.asarray(rasterize(pixels, depth, triangles, HEIGHT, WIDTH, near=1.0))
    assert set(np.unique(ids)) == {30_001, 30_002}


def test_equal_depths_fall_to_the_lower_id():
    for pixels, _, triangles in SCENES:
        levels = np.random.default_rng(5).integers(1, 5, COUNT) * 100.0
        depth = np.repeat(levels, 3).astype(np.float32)
        seen = brute_force(pixels, depth, triangles, perspective=False, cull=False).round(6)
        assert np.array_equal(draw(pixels, jnp.asarray(depth), triangles), nearest(seen))


def test_vmap_of_different_scenes_is_the_loop():
    for scenes in (SCENES, AROUND):
        stacked = [jnp.stack(leaves) for leaves in zip(*scenes, strict=True)]
        batched = jax.vmap(lambda p, d, t: draw(p, d, t))(*stacked)
        for ids, scene in zip(batched, scenes, strict=True):
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
    monkeypatch.setattr(module, "_MOST_TILES", 150 * (HEIGHT // 8) * (WIDTH // 8))
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
        alone = brute_force(points, np.ones(13), fan, perspective=False, cull=False)
        assert np.array_equal(count, np.isfinite(alone).sum(0))
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
    corners = slice(3 * gone, 3 * gone + 3)
    for where, at, value in (
        (depth, corners, 0.0),
        (depth, corners, -10.0),
        (depth, 3 * gone + 1, np.nan),
        (pixels, 3 * gone + 1, np.inf),
        (pixels, 3 * gone + 1, np.nan),
    ):
        spoiled = where.at[at].set(value)
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
    row, column = np.nonzero(np.asarray(ids) >= 4)
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
