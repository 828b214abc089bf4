"""Maps between surfaces reproduce what is linear; targets know their rims and normals."""

import numpy as np
import pytest
from helpers import uv_sphere

from morphable.registration import SurfaceError, surface_map
from morphable.registration.target import TargetSurface, barycentric


@pytest.fixture(scope="module")
def ball():
    mesh = uv_sphere(24, 12)
    return np.asarray(mesh.vertices, float), np.asarray(mesh.triangles)


def test_linear_functions_are_reproduced_at_points_of_the_surface(ball):
    vertices, triangles = ball
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), 50)
    points = np.einsum("pk,pkc->pc", weights, vertices[triangles[rng.choice(np.arange(24, 240), 50)]])
    found = surface_map(points, vertices, triangles)
    np.testing.assert_allclose(found.distance, 0, atol=1e-9)
    np.testing.assert_allclose(found(vertices), points, atol=1e-9)
    linear = vertices @ [1.0, -2.0, 0.5] + 3
    np.testing.assert_allclose(found(linear), points @ [1.0, -2.0, 0.5] + 3, atol=1e-9)
    np.testing.assert_array_equal(found.corners, triangles[found.triangle])


def test_far_points_go_to_their_closest_place(ball):
    vertices, triangles = ball
    found = surface_map(2 * vertices, vertices, triangles)
    np.testing.assert_allclose(found(vertices), vertices, atol=1e-6)
    np.testing.assert_allclose(found.distance, 100, rtol=1e-6)
    with pytest.raises(SurfaceError):
        surface_map(vertices, vertices, triangles[:0])


def test_barycentric_weights_place_a_point():
    rng = np.random.default_rng(1)
    corners, weights = rng.normal(size=(30, 3, 3)), rng.dirichlet(np.ones(3), 30)
    found = barycentric(np.einsum("pk,pkc->pc", weights, corners), corners)
    np.testing.assert_allclose(found, weights, atol=1e-9)


def test_a_seam_is_no_rim_and_a_hole_is(ball):
    """The sphere's vertices are doubled where its texture closes."""
    vertices, triangles = ball
    assert not TargetSurface(vertices, triangles).rim.any()
    hole = (vertices[triangles].mean(axis=1) @ [0, 0, 1]) > 80
    target = TargetSurface(vertices, triangles[~hole])
    assert target.rim.any()
    outward = vertices / 100
    found = target.match(1.02 * vertices, outward, 10.0, 0.5)
    inside = np.setdiff1d(triangles[hole], triangles[~hole])
    assert len(inside) > 0
    assert not found.valid[inside].any()
    # A vertex's normal is the mean of its surroundings', those of the poles included.
    assert found.valid[np.abs(vertices[:, 2]) < 50].all()
    assert (np.einsum("vc,vc->v", found.normals, outward)[vertices[:, 2] < 50] > 0.99).all()


def test_what_faces_away_or_is_far_is_no_counterpart(ball):
    vertices, triangles = ball
    target = TargetSurface(vertices, triangles)
    outward = vertices / 100
    assert not target.match(vertices, -outward, 10.0, 0.5).valid.any()
    assert not target.match(1.2 * vertices, outward, 10.0, 0.5).valid.any()
    np.testing.assert_allclose(target.match(0.95 * vertices, outward, 10.0, 0.5, exact=True).distance, 5, atol=0.3)
