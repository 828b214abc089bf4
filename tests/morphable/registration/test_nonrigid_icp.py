"""Non-rigid ICP: what lies right stays, smooth deformations are found, holes do not pull."""

import numpy as np
import pytest
from helpers import uv_sphere

from morphable.registration import NonrigidSettings, nonrigid_icp
from morphable.registration.gaussian_process import Marks
from morphable.registration.nonrigid_icp import mesh_graph, spread
from morphable.registration.target import TargetSurface


def welded_ball(columns, rows):
    mesh = uv_sphere(columns, rows)
    vertices, ids = np.unique(np.round(np.asarray(mesh.vertices, float), 4), axis=0, return_inverse=True)
    triangles = ids.ravel()[np.asarray(mesh.triangles)]
    solid = (triangles != np.roll(triangles, 1, axis=1)).all(axis=1)
    return vertices, triangles[solid]


@pytest.fixture(scope="module")
def ball():
    return welded_ball(20, 12)


def bent(points):
    """A smooth deformation of the sphere, up to some 5 mm."""
    x, y, z = (points / 100).T
    return points + 4 * np.stack([y * z, np.sin(2 * x), 0.5 * x * y + 0.5 * z], axis=1)


def test_a_template_on_its_target_stays(ball):
    vertices, triangles = ball
    out = nonrigid_icp(vertices, triangles, TargetSurface(vertices, triangles), np.ones(len(vertices)))
    np.testing.assert_allclose(out, vertices, atol=1e-6)


def test_a_smooth_deformation_is_found_on_unrelated_triangles(ball):
    vertices, triangles = ball
    fine, faces = welded_ball(61, 37)
    truth = bent(vertices)
    target = TargetSurface(bent(fine), faces)
    marked = np.arange(0, len(vertices), 6)
    corners = np.repeat(marked[:, None], 3, axis=1)
    marks = Marks(corners, np.tile([1.0, 0, 0], (len(marked), 1)), truth[marked], np.full(len(marked), 0.3))
    out = nonrigid_icp(vertices, triangles, target, np.ones(len(vertices)), marks)
    assert np.abs(target.search.closest(out).distance).max() < 0.1
    assert np.median(np.linalg.norm(vertices - truth, axis=1)) > 2
    assert np.median(np.linalg.norm(out - truth, axis=1)) < 0.4


def test_a_hole_does_not_pull(ball):
    """Over a hole the template goes on as its surroundings do, and is not drawn to the rim."""
    vertices, triangles = ball
    fine, faces = welded_ball(61, 37)
    grown = 1.04 * fine
    open_faces = faces[(fine[faces][..., 2] < 85).all(axis=1)]
    out = nonrigid_icp(vertices, triangles, TargetSurface(grown, open_faces), np.ones(len(vertices)))
    over = vertices[:, 2] > 90
    assert over.any()
    radius = np.linalg.norm(out[over], axis=1)
    assert np.abs(radius - 104).max() < 1.5
    along = out[over] / radius[:, None] - vertices[over] / 100
    assert np.linalg.norm(along, axis=1).max() < 0.01


def test_what_is_not_drawn_goes_along(ball):
    vertices, triangles = ball
    shifted = vertices + [0.0, 0.0, 3.0]
    pull = (vertices[:, 2] > -60).astype(float)
    out = nonrigid_icp(vertices, triangles, TargetSurface(shifted, triangles), pull)
    moved = out - vertices
    assert np.abs(moved[vertices[:, 2] > 60, 2] - 3).max() < 0.6  # along the sphere it may slide
    assert moved[pull == 0, 2].min() > 1


def test_a_subset_of_nodes_carries_the_rest():
    """Each vertex has a node, neighbours' cells are joined, and the result is that of all vertices, nearly."""
    vertices, triangles = welded_ball(40, 24)
    graph = mesh_graph(vertices, triangles, 400)
    assert len(graph.nodes) <= 400
    assert (graph.node_of >= 0).all()
    np.testing.assert_array_equal(graph.node_of[graph.nodes], np.arange(len(graph.nodes)))
    assert len(np.unique(graph.edges)) == len(graph.nodes)
    target = TargetSurface(bent(vertices), triangles)
    whole, few = (
        nonrigid_icp(vertices, triangles, target, np.ones(len(vertices)), settings=NonrigidSettings(nodes=n))
        for n in (10_000, 400)
    )
    assert np.median(np.linalg.norm(whole - few, axis=1)) < 0.3


def test_spreading_keeps_what_is_known_and_what_is_constant(ball):
    vertices, triangles = ball
    known = np.arange(0, len(vertices), 5)
    values = np.random.default_rng(0).normal(size=(len(known), 3))
    padded = np.concatenate([vertices, [[500.0, 0, 0]]])  # a vertex without triangles
    out = spread(padded, triangles, known, values)
    np.testing.assert_array_equal(out[known], values)
    np.testing.assert_array_equal(out[-1], 0)
    flat = spread(vertices, triangles, known, np.ones((len(known), 1)))
    np.testing.assert_allclose(flat, 1, atol=1e-3)
