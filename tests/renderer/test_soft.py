"""The soft rasterizer against brute force and its formulas in NumPy (float64), and the laws of its limits."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from renderer import frontal, render, sh_basis
from renderer.soft import blur_radius, soft_faces, soft_render

HEIGHT, WIDTH, FACES, COUNT, RADIUS = 32, 40, 48, 6, 2.5
PAIRS = ((0, 1), (1, 2), (2, 0))


def squared_distance(points, p, q):
    along = np.clip(np.sum((points - p) * (q - p), -1) / max(np.sum((q - p) ** 2), 1e-300), 0, 1)
    return np.sum((points - p - along[..., None] * (q - p)) ** 2, -1)


def signed_square_and_weights(points, corners):
    """d^2 of points (..., 2) to a triangle's edges, + inside, and clamped barycentrics that sum to 1."""

    def doubled(a, b, c):
        return (b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0]

    a, b, c = corners
    weights = np.stack([doubled(points, b, c), doubled(a, points, c), doubled(a, b, points)], -1) / doubled(a, b, c)
    square = np.min([squared_distance(points, corners[i], corners[j]) for i, j in PAIRS], axis=0)
    clamped = np.clip(weights, 0, 1)
    return np.where(weights.min(-1) >= 0, square, -square), clamped / clamped.sum(-1, keepdims=True)


def centres(height, width):
    row, column = np.mgrid[:height, :width] + 0.5
    return np.stack([column, row], -1)


def random_scene(seed, flat=False):
    """Triangles of all kinds: ordinary, tiny, large, huge, degenerate, off the picture; with one depth each if flat."""
    rng = np.random.default_rng(seed)
    size = np.repeat([4.0, 15.0, 0.3, 500.0, 0.05, 2.0], FACES // 6)
    corners = (
        rng.uniform([0, 0], [WIDTH, HEIGHT], (FACES, 2))[:, None]
        + rng.normal(size=(FACES, 3, 2)) * (size[:, None, None])
    )
    corners = np.round(corners * 64) / 64  # so that what is degenerate below is so without rounding
    corners[-4, 2] = corners[-4, 0]  # no area
    corners[-3, 2] = 2 * corners[-3, 1] - corners[-3, 0]  # a line
    corners[-2] += 500  # off the picture
    corners[-1] = corners[0]  # twice the same
    depth = rng.integers(1, 5, (FACES, 1)) * np.full((1, 3), 100) if flat else rng.uniform(300, 900, (FACES, 3))
    triangles = np.arange(3 * FACES).reshape(FACES, 3)
    return (
        jnp.asarray(corners.reshape(-1, 2), jnp.float32),
        jnp.asarray(depth.ravel(), jnp.float32),
        jnp.asarray(triangles, jnp.int32),
    )


def brute_force(pixels, depth, triangles, perspective, cull):
    """Depth of every triangle at every pixel, inf where it is farther than RADIUS; and where float32 cannot say so."""
    pixels, depth = np.asarray(pixels, np.float64), np.asarray(depth, np.float64)
    at, found, unsure = centres(HEIGHT, WIDTH), [], np.zeros((HEIGHT, WIDTH), bool)
    for corners in np.asarray(triangles):
        (ax, ay), (bx, by), (cx, cy) = pixels[corners]
        clockwise = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        longest = max(np.hypot(*(pixels[corners[i]] - pixels[corners[j]])) for i, j in PAIRS)
        if abs(clockwise) <= 1e-3 * longest or (cull and clockwise > 0):
            found.append(np.full((HEIGHT, WIDTH), np.inf))
            continue
        square, weights = signed_square_and_weights(at, pixels[corners])
        z = 1 / (weights @ (1 / depth[corners])) if perspective else weights @ depth[corners]
        found.append(np.where(square > -(RADIUS**2), z, np.inf))
        unsure |= np.abs(np.sqrt(np.maximum(-square, 0)) - RADIUS) < 2e-3
    return np.array(found), unsure


def nearest_faces(pixels, depth, triangles, radius: float | jax.Array = RADIUS, perspective=False, cull=False):
    # Few slots, so that all scenes need many passes.
    return soft_faces(
        pixels,
        depth,
        triangles,
        height=HEIGHT,
        width=WIDTH,
        radius=radius,
        count=COUNT,
        perspective=perspective,
        cull=cull,
        slots=128,
    )


# Compiled without optimisation, which for the gradient takes half the time.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
picture_of = compiled(functools.partial(soft_render, count=5))
SCENES = [random_scene(seed) for seed in range(4)]


@pytest.mark.parametrize("perspective_and_cull", [False, True])
def test_faces_are_the_nearest_within_the_radius(perspective_and_cull):
    how = {"perspective": perspective_and_cull, "cull": perspective_and_cull}
    for scene in SCENES:
        ids = np.asarray(nearest_faces(*scene, **how))
        depth, unsure = brute_force(*scene, **how)
        expected = np.moveaxis(np.sort(depth, axis=0)[:COUNT], 0, -1)
        assert unsure.mean() < 0.1 and 0.05 < np.isfinite(expected).mean() < 0.95
        assert np.array_equal((ids >= 0)[~unsure], np.isfinite(expected)[~unsure])
        assert all(np.array_equal(np.unique(i[i >= 0]), np.sort(i[i >= 0])) for i in ids.reshape(-1, COUNT))
        got = np.where(ids >= 0, np.take_along_axis(np.moveaxis(depth, 0, -1), ids, axis=-1), np.inf)
        close = np.isinf(expected) | (np.abs(got - np.where(np.isinf(expected), 0, expected)) < 0.1)
        assert np.all(close[~unsure])


def test_ids_are_identical_where_depths_are_flat():
    """With one depth per triangle there is no rounding left, and equal depths are in the order of their ids."""
    for seed in range(4):
        scene = random_scene(seed, flat=True)
        depth, unsure = brute_force(*scene, perspective=False, cull=False)
        order = np.argsort(depth.round(6), axis=0, kind="stable")[:COUNT]
        expected = np.where(np.isfinite(np.take_along_axis(depth, order, axis=0)), order, -1)
        ids = np.asarray(nearest_faces(*scene))
        assert np.array_equal(ids[~unsure], np.moveaxis(expected, 0, -1)[~unsure])


def test_vmap_of_different_scenes_is_the_loop():
    stacked = [jnp.stack(leaves) for leaves in zip(*SCENES, strict=True)]
    radii = jnp.array([2.5, 0.5, 4.0, 1.0])
    batched = jax.vmap(nearest_faces)(*stacked, radius=radii)
    for ids, scene, radius in zip(batched, SCENES, radii, strict=True):
        assert np.array_equal(ids, nearest_faces(*scene, radius))


def test_undrawable_triangles_are_dropped_whole():
    """At or before near, or not finite: as if the triangle were not there."""
    pixels, depth, triangles = SCENES[0]
    whole = np.asarray(nearest_faces(pixels, depth, triangles))
    gone = int(np.bincount(whole[whole >= 0]).argmax())
    absent = np.asarray(nearest_faces(pixels, depth, triangles.at[gone].set(0)))
    assert not np.any(absent == gone)
    for where, value in ((depth, 0.0), (depth, np.nan), (pixels, np.inf), (pixels, np.nan)):
        spoiled = where.at[3 * gone + 1].set(value)
        scene = (spoiled, depth) if where is pixels else (pixels, spoiled)
        assert np.array_equal(nearest_faces(*scene, triangles), absent)


def test_nothing_to_draw():
    none = soft_faces(jnp.zeros((1, 2)), jnp.ones(1), jnp.zeros((0, 3), jnp.int32), 4, 5, 1.0, 2)
    assert none.shape == (4, 5, 2) and np.all(none == -1)
    with pytest.raises(ValueError, match="count"):
        soft_faces(jnp.zeros((1, 2)), jnp.ones(1), jnp.zeros((1, 3), jnp.int32), 4, 5, 1.0, 0)


@pytest.fixture(scope="module")
def coloured(sphere):
    albedo = np.random.default_rng(0).uniform(0.2, 0.9, sphere.vertices.shape)
    return eqx.tree_at(lambda m: m.albedo, sphere, jnp.asarray(albedo, jnp.float32), is_leaf=lambda x: x is None)


def test_silhouette_of_one_triangle(coloured, facing):
    """sigmoid(+- d^2 / sigma) by hand; with sigma it grows outside and shrinks inside."""
    corners = np.array([[8.3, 6.1], [10.2, 31.7], [37.9, 20.4]])
    on_plane = (corners - np.asarray(facing.centre)) / np.asarray(facing.focal) * 500
    vertices = np.concatenate([on_plane * [1, -1], np.zeros((3, 1))], 1)
    # The rest of the sphere's vertices and triangles collapse.
    mesh = eqx.tree_at(
        lambda m: (m.vertices, m.triangles),
        coloured,
        (
            jnp.zeros_like(coloured.vertices).at[:3].set(jnp.asarray(vertices, jnp.float32)),
            jnp.full_like(coloured.triangles, 7).at[4].set(jnp.arange(3)),
        ),
    )
    square, _ = signed_square_and_weights(centres(40, 48), corners)
    pictures = []
    for sigma in (0.3, 1.0, 5.0):
        picture = np.asarray(picture_of(mesh, facing, frontal(), sigma=sigma, gamma=1e-3, epsilon=1e-3).silhouette)
        near = np.sqrt(np.maximum(-square, 0)) < blur_radius(sigma) - 1e-3
        expected = 1 / (1 + np.exp(np.minimum(-square / sigma, 50)))
        assert np.allclose(picture[near], expected[near], atol=2e-5)
        assert np.all(picture[expected < 0.9e-4] == 0)
        pictures.append(picture)
    for narrow, wide in zip(pictures, pictures[1:], strict=False):
        assert np.all(wide[square < 0] >= narrow[square < 0]) and np.all(wide[square > 0] <= narrow[square > 0])


@pytest.mark.parametrize("weak", [False, True])
def test_picture_is_the_formula(coloured, camera, weak):
    """The aggregation of the paper in float64, for the faces that were considered."""
    camera = camera.to_weak_perspective() if weak else camera
    light = frontal() + 0.1 * jnp.asarray(np.random.default_rng(2).normal(size=(9, 3)), jnp.float32)
    sigma, gamma, epsilon = 2.0, 0.05, 0.75
    picture = picture_of(coloured, camera, light, sigma=sigma, gamma=gamma, epsilon=epsilon)
    pixels, points = (np.asarray(f(coloured.vertices), np.float64) for f in (camera.project, camera.to_camera))
    near, far = points[:, 2].min(), 2 * points[:, 2].max() - points[:, 2].min()
    normals = np.asarray(coloured.normals @ camera.rotation.T, np.float64)
    albedo, triangles, at = np.asarray(coloured.albedo), np.asarray(coloured.triangles), centres(40, 48)
    colour, total, rest = np.zeros((40, 48, 3)), np.full((40, 48), np.exp(epsilon / gamma)), np.ones((40, 48))
    background = total.copy()
    reflected = jax.jit(lambda n: sh_basis(n) @ light)
    for face, corners in enumerate(triangles):
        here = np.any(np.asarray(picture.triangle_ids) == face, axis=-1)
        if not here.any():
            continue
        square, w = signed_square_and_weights(at, pixels[corners])
        w = w if weak else w / points[corners, 2]
        w = w / w.sum(-1, keepdims=True)
        a, b, c = pixels[corners]
        behind = (b - a)[0] * (c - a)[1] > (b - a)[1] * (c - a)[0]
        n = w @ normals[corners] * (-1 if behind else 1)
        n = n / np.linalg.norm(n, axis=-1, keepdims=True)
        probability = np.where(here, 1 / (1 + np.exp(np.minimum(-square / sigma, 50))), 0)
        weight = probability * np.exp((far - w @ points[corners, 2]) / (far - near) / gamma)
        colour += weight[..., None] * (w @ albedo[corners]) * reflected(jnp.asarray(n, jnp.float32))
        total += weight
        rest *= 1 - probability
    assert np.all(picture.triangle_ids[20, 24] >= 0) and 0.2 < picture.silhouette.mean() < 0.8
    assert np.allclose(picture.colour, colour / total[..., None], atol=2e-3)
    assert np.allclose(picture.coverage, 1 - background / total, atol=2e-3)
    assert np.allclose(picture.silhouette, 1 - rest, atol=2e-4)


def test_without_softness_it_is_the_hard_picture(coloured, camera):
    """Of a sphere turned inside out, so that all that is seen is seen from behind."""
    mesh = eqx.tree_at(lambda m: m.triangles, coloured, coloured.triangles[:, ::-1])
    hard = compiled(lambda mesh: render(mesh, camera, frontal(), cull=False))(mesh)
    soft = picture_of(mesh, camera, frontal(), sigma=1e-5, gamma=1e-5, epsilon=1e-3)
    certain = np.abs(np.asarray(soft.silhouette) - 0.5) > 0.499
    assert certain.mean() > 0.99 and 0.2 < hard.coverage.mean() < 0.8
    assert np.allclose(soft.silhouette[certain], hard.coverage[certain], atol=1e-3)
    assert np.allclose(soft.coverage[certain], hard.coverage[certain], atol=1e-3)
    assert np.allclose(soft.colour[certain], hard.colour[certain], atol=2e-3)
    background = jnp.full((40, 48, 3), 0.3)
    assert np.allclose(soft.over(background)[certain], hard.over(background)[certain], atol=2e-3)


def test_vmap_of_different_poses_is_the_loop(coloured, camera):
    def picture(shift):
        moved = eqx.tree_at(lambda m: m.vertices, coloured, coloured.vertices + shift[None])
        return picture_of(moved, camera, frontal(), sigma=1.0, gamma=1e-3, epsilon=1e-3)

    shifts = jnp.array([[0.0, 0, 0], [40, -30, 60], [1e4, 0, 0]])
    batched = jax.vmap(picture)(shifts)
    for k, shift in enumerate(shifts):
        for one, many in zip(jax.tree.leaves(picture(shift)), jax.tree.leaves(batched), strict=True):
            assert np.allclose(many[k], one, atol=5e-5)
    assert np.all(batched.triangle_ids[2] == -1) and np.all(batched.silhouette[2] == 0)


@pytest.fixture(scope="module")
def energy(coloured, camera):
    """An energy of every output in double precision with its picture and gradient, and values for its arguments."""
    with jax.enable_x64(True):
        mesh, camera = (
            jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)) if a.dtype == jnp.float32 else a, tree)
            for tree in (coloured, camera.resize(20, 24))
        )

        def loss(values, targets):
            vertices, albedo, light, twist, sigma, gamma = values
            posed = eqx.tree_at(lambda c: c.pose, camera, camera.pose @ jaxlie.SE3.exp(twist))
            moved = eqx.tree_at(lambda m: (m.vertices, m.albedo), mesh, (vertices, albedo))
            picture = soft_render(
                moved, posed, light, sigma=sigma, gamma=gamma, count=5, depth_range=(300.0, 700.0), epsilon=0.6
            )
            outputs = (picture.colour, picture.coverage, picture.silhouette)
            return sum(jnp.sum((o - t) ** 2) for o, t in zip(outputs, targets, strict=True)), picture

        values = (mesh.vertices, mesh.albedo, frontal() + 0.1, jnp.zeros(6), jnp.float64(1.3), jnp.float64(0.02))
        rng = np.random.default_rng(1)
        targets = [jnp.asarray(rng.uniform(size=(20, 24, *channels))) for channels in ((3,), (), ())]
        return loss, compiled(jax.value_and_grad(loss, has_aux=True)), values, targets


def test_derivatives_in_both_modes_are_finite_differences(energy):
    """In each argument, in a random direction."""
    with jax.enable_x64(True):
        loss, with_gradient, values, targets = energy
        gradient = with_gradient(values, targets)[1]
        forward = compiled(lambda tangents: jax.jvp(lambda v: loss(v, targets)[0], (values,), (tangents,))[1])
        rng = np.random.default_rng(3)
        for k, value in enumerate(values):
            tangents = [jnp.zeros_like(v) for v in values]
            tangents[k] = jnp.asarray(rng.normal(size=value.shape)) * (1e-2 if k == 5 else 1.0)
            step = 1e-6
            ends = (tuple(v + s * t for v, t in zip(values, tangents, strict=True)) for s in (-step, step))
            below, above = (with_gradient(end, targets)[0][0] for end in ends)
            difference = (above - below) / (2 * step)
            assert abs(difference) > 1e-3
            assert np.allclose(jnp.vdot(gradient[k], tangents[k]), difference, rtol=2e-5)
            assert np.allclose(forward(tuple(tangents)), difference, rtol=2e-5)


def test_vertices_behind_the_camera_leave_derivatives_finite(energy):
    with jax.enable_x64(True):
        _, with_gradient, (vertices, *values), targets = energy
        # Head z points to the camera, 500 mm away.
        crossing = vertices.at[jnp.argmax(vertices[:, 2])].set(jnp.array([0.0, 0.0, 5000.0]))
        (_, picture), gradient = with_gradient((crossing, *values), targets)
        (_, whole), _ = with_gradient((vertices, *values), targets)
        assert not np.array_equal(picture.triangle_ids, whole.triangle_ids)
        assert all(np.all(np.isfinite(g)) for g in gradient) and np.any(gradient[0] != 0)


def test_the_silhouettes_gradient_leads_to_the_target(energy):
    """A sphere seen aside of where it belongs, with nothing but its outline to tell."""
    with jax.enable_x64(True):
        _, with_gradient, (vertices, albedo, *others), _ = energy
        black = jnp.zeros_like(albedo)

        def at(shift):
            return vertices + jnp.append(shift, 0.0)[None], black, *others

        (_, there), _ = with_gradient(at(jnp.zeros(2)), [jnp.zeros((20, 24, *c)) for c in ((3,), (), ())])
        targets = [there.colour, there.coverage, there.silhouette]
        shift, errors = jnp.array([25.0, -18.0]), []
        for step in 3.0 * 0.8 ** np.arange(15):
            (error, _), gradient = with_gradient(at(shift), targets)
            errors.append(float(error))
            shift = shift - step * jnp.sum(gradient[0], axis=0)[:2]
        assert errors[-1] < 0.1 * errors[0]
        assert np.linalg.norm(shift) < 3
