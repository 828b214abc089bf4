"""Where two surfaces touch, the normal tells which one is meant."""

import numpy as np

from morphable.registration.oriented_map import oriented_map, unit_normals


def grid(z: float, up: bool):
    x, y = np.meshgrid(np.linspace(-10, 10, 9), np.linspace(-10, 10, 9))
    vertices = np.stack([x.ravel(), y.ravel(), np.full(81, z)], axis=1)
    index = np.arange(81).reshape(9, 9)
    a, b, c, d = index[:-1, :-1].ravel(), index[:-1, 1:].ravel(), index[1:, 1:].ravel(), index[1:, :-1].ravel()
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return vertices, triangles if up else triangles[:, ::-1]


def test_points_go_to_the_sheet_that_faces_their_way():
    (low, up), (high, down) = grid(0.0, True), grid(0.3, False)
    vertices, triangles = np.concatenate([low, high]), np.concatenate([up, down + 81])
    points = np.random.default_rng(0).uniform(-8, 8, (50, 3)) * [1, 1, 0] + [0, 0, 0.2]
    for towards, z in ((1.0, 0.0), (-1.0, 0.3)):
        found = oriented_map(points, np.tile([0, 0, towards], (50, 1)), vertices, triangles)
        np.testing.assert_allclose(found(vertices)[:, 2], z, atol=1e-9)
    nearest = oriented_map(points, np.zeros((50, 3)), vertices, triangles)  # without normals: the closer one
    np.testing.assert_allclose(nearest(vertices)[:, 2], 0.3, atol=1e-9)


def test_it_reproduces_linear_functions_on_a_plane():
    vertices, triangles = grid(0.0, True)
    points = np.random.default_rng(1).uniform(-9, 9, (40, 3)) * [1, 1, 0.1]
    found = oriented_map(points, np.tile([0.0, 0, 1], (40, 1)), vertices, triangles)
    np.testing.assert_allclose(found(vertices)[:, :2], points[:, :2], atol=1e-9)
    np.testing.assert_allclose(found.distance, np.abs(points[:, 2]), atol=1e-9)
    np.testing.assert_allclose(unit_normals(vertices, triangles), np.tile([0, 0, 1.0], (81, 1)), atol=1e-6)
