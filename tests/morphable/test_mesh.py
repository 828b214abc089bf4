import jax.numpy as jnp
import numpy as np
import pytest

from morphable.mesh import Mesh, catmull_clark, triangulate

CUBE = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], float)
CUBE_QUADS = np.array([[4, 5, 7, 6], [1, 0, 2, 3], [5, 1, 3, 7], [0, 4, 6, 2], [6, 7, 3, 2], [0, 1, 5, 4]])
SHEET_QUADS = np.array([[0, 1, 4, 3], [1, 2, 5, 4], [3, 4, 7, 6], [4, 5, 8, 7]])


def test_normals_of_a_cube_point_outwards():
    mesh = Mesh(jnp.asarray(CUBE, jnp.float32), jnp.asarray(triangulate(CUBE_QUADS)))
    np.testing.assert_allclose(jnp.linalg.norm(mesh.normals, axis=1), 1.0, atol=1e-6)
    assert (jnp.sum(mesh.normals * mesh.vertices, axis=1) > 0.9).all()


@pytest.mark.parametrize(("quads", "count"), [(CUBE_QUADS, 8), (SHEET_QUADS, 9)])
def test_subdivision_is_affine_and_counts_points(quads, count):
    stencil, subquads = catmull_clark(quads, count)
    np.testing.assert_allclose(np.asarray(stencil.sum(axis=1)).ravel(), 1.0)
    edges = {tuple(sorted(e)) for q in quads for e in zip(q, np.roll(q, -1), strict=True)}
    assert stencil.shape == (count + len(quads) + len(edges), count)
    assert len(subquads) == 4 * len(quads)
    # The first corner of every subquad is an old vertex: readers rely on it to carry part labels.
    assert (subquads[:, 0] < count).all()


def test_subdivided_cube_keeps_orientation_and_rounds():
    stencil, subquads = catmull_clark(CUBE_QUADS, 8)
    points = stencil @ CUBE
    mesh = Mesh(jnp.asarray(points, jnp.float32), jnp.asarray(triangulate(subquads)))
    assert (jnp.sum(mesh.normals * mesh.vertices, axis=1) > 0).all()
    # Catmull & Clark 1978: a cube's corner moves to 5/9 of its place, an edge point to 3/4, a face point stays.
    np.testing.assert_allclose(np.abs(points[:8]), 5 / 9)
    np.testing.assert_allclose(np.sort(np.abs(points[8:14]), axis=1), np.tile([0, 0, 1.0], (6, 1)), atol=1e-12)
    np.testing.assert_allclose(np.sort(np.abs(points[14:]), axis=1), np.tile([0, 0.75, 0.75], (12, 1)), atol=1e-12)


def test_boundary_of_a_flat_sheet_stays_in_its_plane_and_follows_the_spline_rule():
    grid = np.array([[x, y, 0] for y in range(3) for x in range(3)], float)
    stencil, _ = catmull_clark(SHEET_QUADS, 9)
    points = stencil @ grid
    np.testing.assert_allclose(points[:, 2], 0)
    np.testing.assert_allclose(points[1], [1, 0, 0])  # middle of a straight side
    np.testing.assert_allclose(points[0], grid[0] * 0.75 + (grid[1] + grid[3]) * 0.125)
