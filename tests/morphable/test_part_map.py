"""Every vertex of a model has its place on a registered head: on the right part, the right lip, the right triangle."""

import numpy as np

from morphable.part_map import map_parts


def test_a_head_on_itself_is_mapped_to_itself_part_by_part(head):
    mean, parts = np.asarray(head.mean, float), np.asarray(head.part_of_vertex)
    places = map_parts(mean, np.asarray(head.triangles), parts, head.part_names, mean, head)
    np.testing.assert_array_equal(places.corners, np.asarray(head.triangles)[places.triangle])
    # At creases, such as the lids' rims, a triangle beside may face the way of the vertex's averaged normal better.
    off = np.linalg.norm(places(mean) - mean, axis=1)
    assert np.median(off) < 1e-3 and np.quantile(off, 0.9) < 0.2 and off.max() < 5
    np.testing.assert_array_equal(parts[places.corners[:, 0]], parts)


def test_lips_that_touch_are_told_apart_by_what_hangs_on_them(head):
    """With normals turned away the nearest place of a lip's rim is the other lip; opening the mouth must still part
    neighbours nowhere that the head does not part them.
    """
    triangles = np.asarray(head.triangles)[head.part("skin").triangles]
    mean, parts = np.asarray(head.mean, float), np.asarray(head.part_of_vertex)
    flat = mean * [1, 1, 0.6]  # another face, whose lips' normals differ
    places = map_parts(flat, triangles, parts, head.part_names, mean * [1, 1, 0.6], head)
    opened = places(np.asarray(head.expression, float)[..., head.unit("jawOpen")])
    true = np.asarray(head.expression, float)[..., head.unit("jawOpen")]
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    stretch = lambda moves: np.linalg.norm(moves[edges[:, 0]] - moves[edges[:, 1]], axis=1)  # noqa: E731
    assert stretch(opened).max() < stretch(true).max() + 6


def test_vertices_without_triangles_are_nowhere(tiny):
    mean = np.concatenate([np.asarray(tiny.mean, float), [[0.0, 0, 0]]])
    places = map_parts(mean, np.asarray(tiny.triangles), np.zeros(len(mean), int), ("skin",), mean[:-1], tiny)
    assert np.isinf(places.distance[-1]) and np.isfinite(places.distance[:-1]).all()
