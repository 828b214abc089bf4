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
from renderer import ambient_white, frontal, lambert, render


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
