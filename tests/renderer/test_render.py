import ast
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from jax.test_util import check_grads

import renderer
from morphable.mesh import Mesh
from renderer import (
    DirectionalLight,
    Gloss,
    ambient_light,
    ambient_white,
    edge_table,
    frontal,
    lambert,
    mip_pyramid,
    ncc,
    render,
)


@pytest.fixture(scope="module")
def coloured(sphere):
    albedo = np.random.default_rng(0).uniform(0.2, 0.9, sphere.vertices.shape)
    return eqx.tree_at(lambda m: m.albedo, sphere, jnp.asarray(albedo, jnp.float32), is_leaf=lambda x: x is None)


@pytest.mark.parametrize("weak", [False, True])
def test_ambient_light_renders_albedo(coloured, camera, weak):
    camera = camera.to_weak_perspective() if weak else camera
    picture = render(coloured, camera, ambient_white())
    row, column = np.nonzero(picture.triangle_ids >= 0)
    corners = coloured.albedo[coloured.triangles[picture.triangle_ids[row, column]]]
    expected = jnp.sum(corners * picture.barycentrics[row, column][:, :, None], axis=1)
    assert np.allclose(picture.colour[row, column], expected, atol=1e-5)
    assert np.all(picture.colour[picture.triangle_ids < 0] == 0)


@pytest.mark.parametrize("weak", [False, True])
def test_buffers_describe_the_surface(coloured, camera, weak):
    """Depth and normals are the sphere's own, and the pixels project back to where they are."""
    camera = camera.to_weak_perspective() if weak else camera
    picture = render(coloured, camera, frontal())
    seen = np.asarray(picture.coverage) == 1
    assert np.array_equal(seen, np.asarray(picture.triangle_ids) >= 0)
    assert np.all(np.isinf(picture.depth[~seen])) and np.all(picture.normals[~seen] == 0)
    assert np.allclose(np.linalg.norm(picture.normals[seen], axis=1), 1, atol=1e-5)
    row, column = np.nonzero(seen)
    corners = camera.to_camera(coloured.vertices)[coloured.triangles[picture.triangle_ids[row, column]]]
    points = jnp.sum(corners * picture.barycentrics[row, column][:, :, None], axis=1)
    assert np.allclose(points[:, 2], picture.depth[row, column], atol=1e-2)
    assert np.allclose(camera.project_camera(points), np.stack([column, row], 1) + 0.5, atol=1e-2)
    radial = (points - camera.pose.translation()[None]) / 100
    assert np.all(np.sum(radial * picture.normals[row, column], axis=1) > 0.97)
    assert np.allclose(
        picture.colour[row, column],
        lambert(render(coloured, camera, ambient_white()).colour[row, column], picture.normals[row, column], frontal()),
        atol=1e-5,
    )


def test_supersampling_measures_area(facing):
    """A card whose edges lie on sample boundaries: coverage sums to its area, colour over a background adds up."""
    corners = np.array([[6.5, 4.0], [6.5, 30.5], [31.0, 30.5], [31.0, 4.0]])
    x = (corners - np.asarray(facing.centre)) / np.asarray(facing.focal) * 500
    vertices = np.concatenate([x * [1, -1], np.zeros((4, 1))], 1)
    mesh = Mesh(jnp.asarray(vertices, jnp.float32), jnp.array([[0, 1, 2], [0, 2, 3]]))
    picture = render(mesh, facing, ambient_white(), samples=2)
    assert np.allclose(picture.coverage.sum(), 24.5 * 26.5, atol=1e-3)
    assert np.allclose(picture.coverage[10, 6], 0.5) and np.allclose(picture.coverage[30, 6], 0.25)
    background = jnp.full((40, 48, 3), 0.2)
    assert np.allclose(picture.over(background)[10, 6], 0.5 * 0.6 + 0.5 * 0.2, atol=1e-5)
    centres = render(mesh, facing, ambient_white())
    assert np.array_equal(picture.triangle_ids, centres.triangle_ids)
    assert np.array_equal(picture.depth, centres.depth)


def test_without_culling_back_faces_are_lit_as_front_faces(sphere, camera):
    inside_out = eqx.tree_at(lambda m: m.triangles, sphere, sphere.triangles[:, ::-1])
    expected, got = render(sphere, camera, frontal()), render(inside_out, camera, frontal(), cull=False)
    assert np.array_equal(got.triangle_ids, expected.triangle_ids)
    assert np.allclose(got.colour, expected.colour, atol=1e-5)


def test_render_has_derivatives_in_pose_light_and_albedo(coloured, camera):
    with jax.enable_x64(True):
        mesh, camera = (
            jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)) if a.dtype == jnp.float32 else a, tree)
            for tree in (coloured, camera)
        )
        mix = jnp.asarray(np.random.default_rng(1).normal(size=(40, 48, 3)))

        def total(twist, light, albedo):
            posed = eqx.tree_at(lambda c: c.pose, camera, camera.pose @ jaxlie.SE3.exp(twist))
            lit = eqx.tree_at(lambda m: m.albedo, mesh, albedo)
            return jnp.sum(render(lit, posed, light).colour * mix)

        light = frontal() + jnp.asarray(np.random.default_rng(2).normal(size=(9, 3)))
        check_grads(jax.jit(total), (jnp.zeros(6), light, mesh.albedo), order=1, modes=("fwd", "rev"), eps=1e-6)


def test_pncc_tells_where_on_the_model_each_pixel_is(sphere, camera):
    """Of the mean itself, the code is the place: the same that depth and the camera tell."""
    picture = render(sphere, camera, ambient_white())
    seen = np.asarray(picture.triangle_ids) >= 0
    code = np.asarray(picture.interpolate(ncc(sphere.vertices), sphere.triangles))
    assert np.all(code[~seen] == 0) and np.ptp(ncc(sphere.vertices), axis=0) == pytest.approx(1)
    row, column = np.nonzero(seen)
    points = camera.unproject(jnp.asarray(np.stack([column, row], 1) + 0.5, jnp.float32), picture.depth[seen])
    on_head = jax.vmap(camera.pose.inverse().apply)(points)
    low, high = np.min(sphere.vertices, axis=0), np.max(sphere.vertices, axis=0)
    assert np.allclose(low + code[seen] * (high - low), on_head, atol=0.02)


def test_labels_are_those_of_the_triangles_seen(sphere, camera):
    picture = render(sphere, camera, ambient_white())
    upper = (np.asarray(sphere.vertices)[np.asarray(sphere.triangles), 1].mean(1) > 0).astype(np.int32)
    labels = np.asarray(picture.labels(jnp.asarray(upper)))
    height = np.asarray(picture.interpolate(sphere.vertices, sphere.triangles))[..., 1]
    seen = np.asarray(picture.coverage) > 0
    assert np.array_equal(labels == -1, ~seen)
    assert set(np.unique(labels)) == {-1, 0, 1}
    assert np.all(height[labels == 1] > -1e-3) and np.all(height[labels == 0] < 1e-3)


def test_a_lamp_alone_lights_what_faces_it(coloured, camera):
    dark = ambient_light(jnp.zeros(3))
    direction = jnp.array([0.6, -0.5, -np.sqrt(1 - 0.6**2 - 0.5**2)])
    lamp = DirectionalLight(direction, jnp.array([2.0, 1.0, 0.5]))
    albedo = render(coloured, camera, ambient_white())
    lit = render(coloured, camera, dark, lamp=lamp)
    cosine = np.maximum(np.asarray(albedo.normals) @ np.asarray(direction), 0)
    expected = np.asarray(albedo.colour) * cosine[..., None] * np.asarray(lamp.colour)
    assert np.allclose(lit.colour, expected, atol=1e-5)  # a ball casts no shadow on itself
    glossy = render(coloured, camera, dark, lamp=lamp, gloss=Gloss(0.3, 20.0))
    added = np.asarray(glossy.colour - lit.colour)
    assert added.min() > -1e-6 and 0.25 < added[..., 1].max() <= 0.3 + 1e-5


def test_a_card_shades_the_ball_behind_it(sphere, facing):
    card = np.array([[-40, 40, 150], [-40, -40, 150], [40, -40, 150], [40, 40, 150]])
    vertices = jnp.concatenate([sphere.vertices, jnp.asarray(card, jnp.float32) + jnp.array([[80.0, 0, 0]])])
    first = len(sphere.vertices)
    triangles = jnp.concatenate([sphere.triangles, first + jnp.array([[0, 1, 2], [0, 2, 3]])])
    scene = Mesh(vertices, triangles)
    lamp = DirectionalLight(jnp.array([np.sin(0.5), 0.0, -np.cos(0.5)]), jnp.ones(3))
    dark = ambient_light(jnp.zeros(3))
    free, shaded = (render(scene, facing, dark, lamp=lamp, shadow_size=size) for size in (None, 256))
    ball = np.asarray(free.triangle_ids)
    ball = (ball >= 0) & (ball < len(sphere.triangles)) & (np.asarray(free.colour).sum(-1) > 0.1)
    ratio = np.asarray(shaded.colour).sum(-1)[ball] / np.asarray(free.colour).sum(-1)[ball]
    assert 0.05 < np.mean(ratio < 0.02) < 0.5 and np.mean(ratio > 0.98) > 0.4
    assert np.mean((ratio > 0.02) & (ratio < 0.98)) < 0.2  # the border


def test_a_fine_texture_seen_from_afar_is_its_mean(sphere, facing):
    check = np.indices((256, 256)).sum(0) % 2
    texture = jnp.asarray(np.repeat(check[..., None], 3, axis=2), jnp.float32)
    picture = render(sphere, facing, ambient_white(), mip_pyramid(texture))
    covered = np.asarray(picture.coverage) > 0
    assert np.allclose(np.asarray(picture.colour)[covered], 0.5, atol=0.02)


def test_a_camera_inside_a_ball_sees_it_all_around(sphere, facing):
    """Half of the triangles reach behind the camera, and all show their backs."""
    within = eqx.tree_at(lambda c: c.pose, facing, facing.pose.inverse() @ facing.pose)
    picture = render(sphere, within, frontal(), cull=False)
    assert np.all(picture.coverage == 1)
    towards = np.asarray(picture.normals)[..., 2]
    assert np.all(towards < 0)  # lit as if they faced the camera
    assert np.allclose(picture.depth[20, 24], 100, atol=3)
    assert np.all(render(sphere, within, frontal()).coverage == 0)


def test_outlines_are_smoothed_one_way_only(sphere, camera):
    with pytest.raises(ValueError, match="edges and samples=2"):
        render(sphere, camera, frontal(), samples=2, edges=edge_table(sphere.triangles))


def test_a_texture_needs_uv(sphere, camera):
    with pytest.raises(ValueError, match="uv"):
        render(Mesh(sphere.vertices, sphere.triangles), camera, frontal(), jnp.zeros((4, 4, 3)))


def test_renderer_imports_morphable_meshes_and_colour_only():
    allowed = {"morphable.mesh", "morphable.colour", "morphable.uv"}
    for path in pathlib.Path(renderer.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith("fitting"), f"{path.name} imports {name}"
                assert not name.startswith("morphable") or name in allowed, f"{path.name} imports {name}"


def test_normal_map_of_a_sphere_is_the_sphere_and_a_turned_one_is_lit_as_turned(sphere, camera):
    """A map of head-space normals replaces the mesh's own; where it is zero they stay."""
    light = ambient_light(0.3 * jnp.ones(3)) + DirectionalLight(jnp.array([0.6, 0.0, -0.8]), jnp.ones(3)).harmonics()
    column, row = np.meshgrid((np.arange(256) + 0.5) / 256, (np.arange(128) + 0.5) / 128)
    around, down = (column - 0.5) * 2 * np.pi, row * np.pi
    own = np.stack([np.sin(around) * np.sin(down), np.cos(down), np.cos(around) * np.sin(down)], -1).astype(np.float32)
    plain = render(sphere, camera, light)
    mapped = render(sphere, camera, light, normal_map=jnp.asarray(own))
    none = render(sphere, camera, light, normal_map=jnp.zeros((128, 256, 3)))
    np.testing.assert_allclose(none.colour, plain.colour, atol=1e-6)
    inner = np.asarray(plain.normals[..., 2]) < -0.3
    assert np.abs(mapped.colour - plain.colour)[inner].max() < 0.03
    tilt = jaxlie.SO3.from_y_radians(0.3).as_matrix()
    turned = render(sphere, camera, light, normal_map=jnp.asarray(own) @ tilt.T)
    seen = np.asarray(camera.rotation @ tilt @ camera.rotation.T)
    expected = lambert(jnp.full((*inner.shape, 3), 0.6), jnp.asarray(plain.normals) @ seen.T, light)
    assert np.abs(turned.colour - expected)[inner].max() < 0.04
    with pytest.raises(ValueError, match="mesh.uv is None"):
        render(eqx.tree_at(lambda m: m.uv, sphere, None), camera, light, normal_map=jnp.asarray(own))
