"""Cast shadows against rays: Moeller & Trumbore's (1997) intersection of every ray with every triangle, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from renderer.shadow import cast_shadow

SIZE, POINTS = 384, 600
TEXEL = 260 / (SIZE - 6)  # mm at most: all scenes fit into 260 mm as any lamp sees them
shadow = functools.partial(cast_shadow, size=SIZE)


def ball(radius, centre=(0.0, 0.0, 0.0), bumps=0.0, subdivisions=3):
    """Vertices, their normals, triangles; bumps are a fraction of the radius."""
    sphere = trimesh.creation.icosphere(subdivisions)
    x, y, z = sphere.vertices.T
    height = 1 + bumps * np.sin(5 * y) * np.cos(4 * x + z)
    shaped = trimesh.Trimesh(sphere.vertices * (radius * height)[:, None], sphere.faces, process=False)
    return shaped.vertices + np.array(centre), shaped.vertex_normals, shaped.faces


def plane(depth, half=90.0):
    corners = np.array([[-1, -1, 0], [-1, 1, 0], [1, 1, 0], [1, -1, 0]]) * half + [0, 0, depth]
    return corners, np.tile([0.0, 0.0, -1.0], (4, 1)), np.array([[0, 1, 2], [0, 2, 3]])


def together(*parts):
    first = np.cumsum([0] + [len(vertices) for vertices, _, _ in parts])
    triangles = [t + n for (_, _, t), n in zip(parts, first, strict=False)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), np.concatenate(triangles)


SCENES = {
    "ball above a plane": together(ball(35, (10.0, -5.0, -60.0)), plane(0.0)),
    "bumpy head with a nose": together(ball(70, bumps=0.06), ball(18, (20.0, 5.0, -75.0))),
}
LAMPS = np.array([[-0.3, -0.8, -0.8], [0.4, 0.9, -0.7], [1.0, 0.3, -0.4]])
LAMPS /= np.linalg.norm(LAMPS, axis=1, keepdims=True)


def arrays(scene):
    vertices, normals, triangles = scene
    return jnp.asarray(vertices, jnp.float32), jnp.asarray(normals, jnp.float32), jnp.asarray(triangles, jnp.int32)


def surface_points(scene, count=POINTS, seed=0):
    """Ids and barycentrics of points spread evenly over the surface."""
    vertices, _, triangles = scene
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    rng = np.random.default_rng(seed)
    ids = rng.choice(len(triangles), count, p=area / area.sum())
    return jnp.asarray(ids, jnp.int32), jnp.asarray(rng.dirichlet(np.ones(3), count), jnp.float32)


def at(values, triangles, ids, weights):
    return np.einsum("pk,pkc->pc", np.asarray(weights, np.float64), values[triangles[np.asarray(ids)]])


def highest_hit(points, direction, scene):
    """How far towards the lamp the last surface lies that the lamp's ray through a point meets; -inf if none is met."""
    vertices, _, triangles = scene
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    across = np.cross(direction, c - a)
    determinant = np.sum((b - a) * across, axis=1)
    usable = np.abs(determinant) > 1e-9
    a, b, c, across, determinant = (v[usable] for v in (a, b, c, across, determinant))
    highest = []
    for point in points:
        offset = point - a
        u = np.sum(offset * across, axis=1) / determinant
        other = np.cross(offset, b - a)
        v = other @ direction / determinant
        t = np.sum((c - a) * other, axis=1) / determinant
        highest.append(np.max(t, initial=-np.inf, where=(u >= 0) & (v >= 0) & (u + v <= 1)))
    return np.array(highest)


@pytest.mark.parametrize("lamp", range(len(LAMPS)))
@pytest.mark.parametrize("name", SCENES)
def test_shadows_are_those_of_rays(name, lamp):
    """Exactly, 2.5 texels away from borders; and on the whole, borders are where they should be."""
    scene, direction = SCENES[name], LAMPS[lamp]
    ids, weights = surface_points(scene)
    lit = np.asarray(shadow(*arrays(scene), jnp.asarray(direction, jnp.float32), ids, weights))
    points, normals = (at(v, scene[2], ids, weights) for v in scene[:2])
    cosine = normals @ direction / np.linalg.norm(normals, axis=1)

    in_the_way = highest_hit(points, direction, scene) > 1e-3
    sideways = np.linalg.svd(direction[None])[2][1:]
    around = [np.cos(a) * sideways[0] + np.sin(a) * sideways[1] for a in np.pi * np.arange(8) / 4]
    around = 2.5 * TEXEL * np.array(around)
    # Rays beside a point's own meet the surface around it higher or lower than the point.
    tangent = -(around @ normals.T) / np.maximum(normals @ direction, 1e-3)
    beside = [highest_hit(points + s, direction, scene) > h + 2.0 for s, h in zip(around, tangent, strict=True)]
    clear = np.all(np.array(beside) == in_the_way, axis=0) & (cosine > 0.1)

    assert np.count_nonzero(clear & in_the_way) > 5 and np.count_nonzero(clear & ~in_the_way) > 100
    assert np.array_equal(lit[clear & in_the_way], np.zeros(np.count_nonzero(clear & in_the_way)))
    assert np.allclose(lit[clear & ~in_the_way], 1, atol=1e-6)


def test_a_border_is_where_the_edge_casts_it():
    """A card 60 mm before a plane, the lamp on a slant: half-light within a texel of the place, over within two."""
    direction = np.array([0.6, 0.0, -0.8])
    scene = together(plane(-60.0, half=30.0), plane(0.0))
    x = np.linspace(-88, 20, 1000)
    points = np.stack([x, np.full_like(x, 3.1), np.zeros_like(x)], -1)
    # In the plane's two triangles, (0 1 2) and (0 2 3) of the corners (-1, -1), (-1, 1), (1, 1), (1, -1).
    u, v = (points[:, 0] / 90 + 1) / 2, (points[:, 1] / 90 + 1) / 2
    lower = np.stack([1 - v, v - u, u], -1)
    upper = np.stack([1 - u, v, u - v], -1)
    ids = jnp.asarray(np.where(u <= v, 2, 3), jnp.int32)
    weights = jnp.asarray(np.where((u <= v)[:, None], lower, upper), jnp.float32)
    lit = np.asarray(shadow(*arrays(scene), jnp.asarray(direction, jnp.float32), ids, weights))
    shadowed = (x > -45 - 30) & (x < -45 + 30)  # 60 mm of 3 : 4
    step, texel = x[1] - x[0], TEXEL / 0.8
    away = np.abs(np.abs(x + 45) - 30) > 2 * texel
    assert np.allclose(lit[away], ~shadowed[away], atol=1e-6)
    for side in (x < -45, x > -45):
        assert abs(np.sum(lit[side] - ~shadowed[side]) * step) < texel


@pytest.mark.parametrize("subdivisions", [2, 4])
def test_a_ball_has_no_shadow_on_its_lit_side(subdivisions):
    """No acne, up to the terminator of the smooth normals although the facets of a coarse ball face away before it."""
    scene = ball(80, subdivisions=subdivisions)
    ids, weights = surface_points(scene, 4000)
    directions = np.random.default_rng(1).normal(size=(3, 3))
    for direction in directions / np.linalg.norm(directions, axis=1, keepdims=True):
        lit = np.asarray(shadow(*arrays(scene), jnp.asarray(direction, jnp.float32), ids, weights))
        normals = at(scene[1], scene[2], ids, weights)
        cosine = normals @ direction / np.linalg.norm(normals, axis=1)
        assert np.all(lit[cosine > 0.02] > 1 - 1e-6)
        assert np.all(lit[cosine < -0.3] == 0)


def test_triangles_cast_shadows_from_either_side():
    vertices, normals, triangles = arrays(SCENES["ball above a plane"])
    ids, weights = surface_points(SCENES["ball above a plane"])
    direction = jnp.asarray(LAMPS[0], jnp.float32)
    turned = shadow(vertices, -normals, triangles[:, ::-1], direction, ids, weights[:, ::-1])
    flat = np.asarray(ids) >= np.asarray(triangles).shape[0] - 2  # where normals carry no curvature
    expected = shadow(vertices, normals, triangles, direction, ids, weights)
    assert 0.05 < 1 - np.mean(np.asarray(expected)[flat]) < 0.9
    assert np.allclose(np.asarray(turned)[flat], np.asarray(expected)[flat], atol=1e-3)


def test_several_lamps_by_vmap_are_the_loop():
    scene = arrays(SCENES["ball above a plane"])
    ids, weights = surface_points(SCENES["ball above a plane"])
    ids = ids.at[:7].set(-1)
    lamps = jnp.asarray(LAMPS, jnp.float32)
    batched = jax.vmap(lambda d: shadow(*scene, d, ids, weights))(lamps)
    for one, direction in zip(batched, lamps, strict=True):
        assert np.allclose(one, shadow(*scene, direction, ids, weights), atol=1e-4)
        assert np.all(one[:7] == 1)  # nothing there to be in shadow


def test_visibility_has_no_derivative():
    """Zero rather than an error, forward and reverse: what shades with it keeps its own derivatives."""
    vertices, normals, triangles = arrays(SCENES["ball above a plane"])
    ids, weights = surface_points(SCENES["ball above a plane"])

    def total(vertices, normals, direction):
        return jnp.sum(shadow(vertices, normals, triangles, direction, ids, weights))

    arguments = (vertices, normals, jnp.asarray(LAMPS[0], jnp.float32))
    _, slope = jax.jvp(total, arguments, tuple(jnp.ones_like(a) for a in arguments))
    assert slope == 0
    assert all(np.all(np.asarray(g) == 0) for g in jax.grad(total, (0, 1, 2))(*arguments))


def test_a_map_needs_texels():
    scene = SCENES["ball above a plane"]
    with pytest.raises(ValueError, match="got 8 texels"):
        cast_shadow(*arrays(scene), jnp.array([0.0, 0.0, -1.0]), *surface_points(scene), size=8)
