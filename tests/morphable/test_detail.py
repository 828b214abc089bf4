"""Detail is a displacement along smooth normals; its normals are those of the surface that it makes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import uv_sphere

from morphable.detail import (
    LIMIT_MM,
    Detail,
    UVSurface,
    dense_layout,
    dense_normals,
    detail_normals,
    displaced,
    displaced_mesh,
    displaced_points,
    limited,
    skin_vertices,
    uv_surface,
)
from morphable.mesh import Mesh, triangulate
from morphable.uv import TexelTable, sample_texture

SIZE = 64


def table_of(mesh: Mesh, size: int = SIZE, dtype=np.float32) -> TexelTable:
    """The triangle under each texel and its barycentrics, one triangle after the other."""
    texels, ids, weights = np.asarray(mesh.uv, float) * size, np.full((size, size), -1), np.zeros((size, size, 3))
    for t, corners in reversed(list(enumerate(texels[np.asarray(mesh.triangles)]))):
        low, high = np.maximum(np.floor(corners.min(0) - 1), 0).astype(int), np.ceil(corners.max(0) + 1).astype(int)
        x, y = np.meshgrid(np.arange(low[0], min(high[0], size)), np.arange(low[1], min(high[1], size)))
        edges = np.stack([corners[1] - corners[0], corners[2] - corners[0]], 1)
        if abs(np.linalg.det(edges)) < 1e-9:
            continue
        b = np.linalg.solve(edges, np.stack([x.ravel() + 0.5, y.ravel() + 0.5]) - corners[0][:, None])
        bary = np.stack([1 - b[0] - b[1], b[0], b[1]], 1)
        inside = (bary > -1e-9).all(1)
        ids[y.ravel()[inside], x.ravel()[inside]] = t
        weights[y.ravel()[inside], x.ravel()[inside]] = bary[inside]
    return TexelTable(jnp.asarray(ids, jnp.int32), jnp.asarray(weights, dtype))


def grid(points, uv) -> Mesh:
    """A mesh over a grid of points whose rows run downwards, seen from +z."""
    rows, columns = points.shape[:2]
    i = np.arange(rows * columns).reshape(rows, columns)
    quads = np.stack([i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]], -1).reshape(-1, 4)
    return Mesh(
        jnp.asarray(points.reshape(-1, 3), jnp.float32),
        jnp.asarray(triangulate(quads), jnp.int32),
        jnp.asarray(uv.reshape(-1, 2), jnp.float32),
    )


def plane(layout=((1.0, 0.0), (0.0, 1.0)), start=(0.0, 0.0), side=9) -> Mesh:
    """A square of 80 mm facing +z, its map a linear image of it."""
    u, v = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    points = np.stack([80 * u, -80 * v, 0 * u], -1)
    return grid(points, np.stack([u, v], -1) @ np.asarray(layout).T + np.asarray(start))


@pytest.fixture(scope="module")
def sphere() -> tuple[Mesh, UVSurface]:
    mesh = uv_sphere(48, 24)
    return mesh, uv_surface(mesh, table_of(mesh))


def degrees(a, b):
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), np.sum(np.asarray(a) * np.asarray(b), -1)))


def test_without_displacement_all_stays(sphere):
    mesh, surface = sphere
    none = jnp.zeros((SIZE, SIZE))
    assert surface.valid.all() and np.allclose(np.linalg.norm(surface.normals, axis=2), 1, atol=1e-5)
    assert np.array_equal(displaced_points(surface, none), surface.points)
    assert np.allclose(detail_normals(surface, none), surface.normals, atol=1e-6)
    assert np.array_equal(displaced_mesh(mesh, none).vertices, mesh.vertices)


def test_a_constant_displacement_makes_a_larger_sphere_with_the_same_normals(sphere):
    mesh, surface = sphere
    moved = jnp.full((SIZE, SIZE), 7.0)
    assert np.allclose(detail_normals(surface, moved), surface.normals, atol=1e-6)
    radii = np.linalg.norm(displaced_mesh(mesh, moved).vertices, axis=1)
    off_poles = np.abs(mesh.vertices[:, 1]) < 99.9  # which have a vertex for each triangle
    assert np.allclose(radii[off_poles], 107, atol=0.05)
    before, after = (np.linalg.norm(p, axis=2)[4:-4] for p in (surface.points, displaced_points(surface, moved)))
    assert np.allclose(after, before + 7, atol=0.05)


def test_normals_far_from_the_surface_follow_its_curvature(sphere):
    # The star-shaped surface r(n) = 120 + 30 n_y has the normal n - grad r / r, with r and not the sphere's radius.
    _, surface = sphere
    n = surface.points / jnp.linalg.norm(surface.points, axis=2, keepdims=True)
    displacement = 20.0 + 30.0 * n[..., 1]
    radius = (100.0 + displacement)[..., None]
    truth = n - 30.0 * (jnp.array([0.0, 1.0, 0.0]) - n[..., 1:2] * n) / radius
    inner = np.s_[6:-6, 2:-2]  # the poles are singular, and at the back the map is cut
    assert degrees(detail_normals(surface, displacement), truth)[inner].max() < 1.0
    flat = eqx.tree_at(lambda s: s.bending, surface, jnp.zeros_like(surface.bending))
    assert degrees(detail_normals(flat, displacement), truth)[inner].max() > 3.0


@pytest.mark.parametrize(
    "layout", [((1, 0), (0, 1)), ((0.9, 0), (0, 0.3)), ((0.5, 0.4), (0.1, 0.7)), ((-0.8, 0.1), (0.2, 0.6))]
)
def test_a_linear_displacement_of_a_plane_tilts_it_exactly(layout):
    mesh = plane(layout, start=(0.9, 0.05) if layout[0][0] < 0 else (0.02, 0.02))
    surface = uv_surface(mesh, table_of(mesh))
    for slope in ([0.5, 0.0], [0.0, -2.0], [0.3, 0.7]):
        displacement = surface.points[..., :2] @ jnp.array(slope)
        truth = np.array([-slope[0], -slope[1], 1]) / np.sqrt(1 + slope[0] ** 2 + slope[1] ** 2)
        # A texel that the map holds alone in its row or column can tell nothing of that direction.
        known = np.asarray(surface.joined_u | jnp.roll(surface.joined_u, 1, 1))
        known = known & np.asarray(surface.joined_v | jnp.roll(surface.joined_v, 1, 0))
        assert known.sum() > 0.95 * surface.valid.sum() > 100
        assert np.abs(np.asarray(detail_normals(surface, displacement))[known] - truth).max() < 2e-4


def test_a_mirrored_displacement_on_a_mirrored_mesh_has_mirrored_normals(tiny):
    flip = jnp.array([-1.0, 1.0, 1.0])
    mesh = Mesh(tiny.mean, tiny.triangles, tiny.uv)
    # Mirrored in space and in the map, so turned inside out in both.
    other = Mesh(mesh.vertices * flip, mesh.triangles[:, ::-1], mesh.uv * jnp.array([-1.0, 1.0]) + jnp.array([1.0, 0]))
    here, there = (uv_surface(m, table_of(m)) for m in (mesh, other))
    displacement = jnp.sin(0.2 * here.points[..., 0] + 0.5) * jnp.cos(0.3 * here.points[..., 1])
    normals = detail_normals(here, displacement)
    mirrored = detail_normals(there, displacement[:, ::-1])[:, ::-1] * flip
    assert np.abs(normals - here.normals).max() > 0.2
    # Texels on an edge may take either triangle.
    assert np.percentile(np.abs(mirrored - normals).max(axis=2), 99) < 1e-3


def test_normals_agree_with_those_of_a_dense_mesh_the_better_the_more_texels_a_wave_has():
    mesh, worst = plane(), []
    surface = uv_surface(mesh, table_of(mesh))
    layout = dense_layout(mesh.triangles, mesh.uv, 3)
    inner = np.all((np.asarray(layout.uv) > 0.1) & (np.asarray(layout.uv) < 0.9), axis=1)
    for length in (8.0, 16.0, 32.0):
        x, y = surface.points[..., 0] * 2 * np.pi / length, surface.points[..., 1] * 2 * np.pi / length
        displacement = length / 16 * jnp.sin(x) * jnp.cos(0.8 * y)
        normals = sample_texture(detail_normals(surface, displacement), layout.uv)
        worst.append(np.percentile(degrees(normals, displaced(layout, mesh, displacement).normals)[inner], 95))
    assert worst[1] < 0.4 * worst[0] and worst[2] < 0.4 * worst[1] and worst[2] < 0.5


def test_charts_do_not_feel_each_other():
    # Two squares, side by side in the map and far apart in space; each is raised by its own constant.
    left, right = plane(((0.5, 0), (0, 1))), plane(((0.5, 0), (0, 1)), (0.5, 0))
    count = len(left.vertices)
    mesh = Mesh(
        jnp.concatenate([left.vertices, right.vertices + jnp.array([200.0, 30.0, 50.0])]),
        jnp.concatenate([left.triangles, right.triangles + count]),
        jnp.concatenate([left.uv, right.uv]),
    )
    surface = uv_surface(mesh, table_of(mesh))
    raised = jnp.where(jnp.arange(SIZE) < SIZE // 2, -3.0, 4.0) * jnp.ones((SIZE, 1))
    assert surface.valid.all()
    assert np.allclose(detail_normals(surface, raised), jnp.array([0.0, 0.0, 1.0]), atol=1e-6)


def test_lone_and_empty_texels_are_flat_and_have_no_derivative():
    mesh = plane()
    whole = table_of(mesh)
    alone = jnp.zeros((SIZE, SIZE), bool).at[20, 30].set(True)
    surface = uv_surface(mesh, whole._replace(triangle_ids=jnp.where(alone, whole.triangle_ids, -1)))
    bumps = jax.random.normal(jax.random.key(1), (SIZE, SIZE))
    normals = detail_normals(surface, bumps)
    assert np.array_equal(surface.valid, alone) and np.array_equal(normals[20, 30], surface.normals[20, 30])
    assert not np.asarray(normals)[~np.asarray(alone)].any()
    slope = jax.grad(lambda d: jnp.sum(detail_normals(surface, d) ** 2))(bumps)
    assert np.isfinite(slope).all() and not slope.any()


def test_derivatives_are_those_of_finite_differences(tiny):
    with jax.enable_x64(True):
        vertices, uv = (jnp.asarray(np.asarray(a), jnp.float64) for a in (tiny.mean, tiny.uv))
        mesh = Mesh(vertices, tiny.triangles, uv)
        table = table_of(mesh, 16, np.float64)
        start, way = jax.random.normal(jax.random.key(0), (2, 16, 16), jnp.float64)
        weights = jax.random.normal(jax.random.key(1), (16, 16, 3), jnp.float64)
        push = jax.random.normal(jax.random.key(2), mesh.vertices.shape, jnp.float64)

        def value(displacement, vertices):
            surface = uv_surface(eqx.tree_at(lambda m: m.vertices, mesh, vertices), table)
            return jnp.sum(weights * detail_normals(surface, displacement))

        both = jax.jit(jax.value_and_grad(value, (0, 1)))
        here, (in_d, in_v) = both(start, mesh.vertices)
        assert here.dtype == in_d.dtype == jnp.float64
        for slope, direction, step in ((in_d, way, (1e-6, 0.0)), (in_v, push, (0.0, 1e-5))):
            ends = [both(start + s * step[0] * way, mesh.vertices + s * step[1] * push)[0] for s in (1, -1)]
            assert np.isclose(jnp.sum(slope * direction), (ends[0] - ends[1]) / (2 * max(step)), rtol=1e-5)


def test_single_precision_stays_single(sphere):
    mesh, surface = sphere
    both = jax.vmap(detail_normals, (None, 0))(surface, jnp.ones((2, SIZE, SIZE)))
    assert both.dtype == jnp.float32 and both.shape == (2, SIZE, SIZE, 3)
    assert all(a.dtype in (jnp.float32, bool) for a in jax.tree.leaves(surface))
    assert displaced_mesh(mesh, jnp.ones((SIZE, SIZE))).vertices.dtype == jnp.float32


def test_limited_is_bounded_odd_and_the_identity_at_0():
    x = jnp.array([-1e6, -3.0, 0.0, 3.0, 1e6])
    assert np.all(np.abs(limited(x)) <= LIMIT_MM) and np.allclose(limited(-x), -limited(x))
    assert np.isclose(jax.grad(limited)(0.0), 1.0) and np.isclose(limited(jnp.array(0.1)), 0.1, rtol=1e-3)


def test_subdivision_keeps_the_surface_the_first_vertices_and_the_side_that_is_out(tiny):
    mesh = Mesh(tiny.mean, tiny.triangles, tiny.uv, jnp.abs(tiny.albedo.mean))
    none = jnp.zeros((8, 8))
    corners = np.asarray(mesh.vertices)[np.asarray(mesh.triangles)]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    for levels in (0, 1, 2):
        dense = displaced_mesh(mesh, none, levels)
        assert len(dense.triangles) == 4**levels * len(mesh.triangles)
        for field in ("vertices", "uv", "albedo"):
            assert np.array_equal(getattr(dense, field)[: len(mesh.vertices)], getattr(mesh, field))
        parts = np.asarray(dense.vertices)[np.asarray(dense.triangles)]
        small = np.cross(parts[:, 1] - parts[:, 0], parts[:, 2] - parts[:, 0]).reshape(len(areas), 4**levels, 3)
        # Each part is as large as the others and faces the same way: none leaves its triangle.
        assert np.allclose(small, areas[:, None] / 4**levels, atol=0.02)


def test_shading_normals_of_the_dense_mesh_are_the_smooth_ones_turned(tiny):
    mesh, raised = Mesh(tiny.mean, tiny.triangles, tiny.uv), jnp.zeros((8, 8))
    layout = dense_layout(mesh.triangles, mesh.uv, 1)
    smooth = np.asarray(layout.subdivide(mesh.normals))
    smooth = smooth / np.linalg.norm(smooth, axis=1, keepdims=True)
    assert np.allclose(dense_normals(layout, mesh, raised), smooth, atol=1e-5)
    # A flat mesh has no facets to hide: its shading normals are its own.
    flat = plane()
    wave = jnp.sin(jnp.arange(SIZE) / 4.0) * jnp.ones((SIZE, 1))
    layout = dense_layout(flat.triangles, flat.uv, 3)
    assert np.allclose(dense_normals(layout, flat, wave), displaced(layout, flat, wave).normals, atol=1e-5)


def test_only_skin_moves(tiny):
    mesh, raised = Mesh(tiny.mean, tiny.triangles, tiny.uv), jnp.full((8, 8), 2.0)
    skin = np.asarray(tiny.mean)[:, 0] > 0
    layout = dense_layout(mesh.triangles, mesh.uv, 1, skin)
    flat, moved = displaced(layout, mesh, 0 * raised), displaced(layout, mesh, raised)
    how_far = np.linalg.norm(moved.vertices - flat.vertices, axis=1)
    assert np.allclose(how_far[: len(skin)], 2.0 * skin, atol=1e-4)
    # A new vertex between skin and what is not stays, too: the border does not tear.
    pair = np.asarray(layout.edges[0])
    assert np.allclose(how_far[len(skin) :], 2.0 * skin[pair].all(axis=1), atol=1e-4)
    assert skin_vertices(tiny).all()


def test_detail_follows_the_expression_from_the_one_it_was_seen_at():
    rng = np.random.default_rng(3)
    maps = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 8), (2, 8, 8))]
    drivers = jnp.array([[0.5, 0.0, 0.0], [0.0, 1.0, 1.0]])
    seen = jnp.array([0.4, 0.9, 0.8])  # the second group is all out: 1.7 counts as 1
    detail = Detail(*maps, drivers, seen)
    assert np.array_equal(detail.at(seen), maps[0])
    assert np.allclose(detail.activations(seen), [0.2, 1.0])
    assert np.allclose(detail.static, maps[0] - 0.2 * maps[1][0] - maps[1][1], atol=1e-6)
    assert np.allclose(detail.at(jnp.array([1.0, 0.5, 0.0])), detail.static + 0.5 * maps[1].sum(0), atol=1e-6)
    no_wrinkles = Detail(maps[0], maps[1][:0], drivers[:0], seen)
    assert np.array_equal(no_wrinkles.at(jnp.ones(3)), maps[0])


def test_wrong_shapes_are_told():
    flat = jnp.zeros((4, 4))
    detail = Detail(flat, jnp.zeros((2, 4, 4)), jnp.zeros((2, 3)), jnp.zeros(3))
    with pytest.raises(ValueError, match="expected .*a driver row"):  # the tests' own type check would come first
        eqx.tree_at(lambda d: d.drivers, detail, jnp.zeros((1, 3))).__check_init__()
    with pytest.raises(ValueError, match="levels -1"):
        dense_layout(np.zeros((0, 3), int), np.zeros((0, 2)), -1)
    bare = Mesh(jnp.zeros((3, 3)), jnp.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="needs a UV layout"):
        displaced_mesh(bare, flat)
    with pytest.raises(ValueError, match="needs a UV layout"):
        uv_surface(bare, TexelTable(jnp.zeros((4, 4), jnp.int32), jnp.zeros((4, 4, 3))))
