import numpy as np

from morphable.decimation import coarse_triangles


def test_the_coarse_mesh_lies_on_its_own_vertices_and_covers_the_surface(head):
    mean, triangles = np.asarray(head.mean, float), np.asarray(head.triangles)
    coarse = coarse_triangles(mean, triangles)
    assert len(coarse) < len(triangles) / 2 and set(np.unique(coarse)) <= set(np.unique(triangles))
    area = lambda t: np.linalg.norm(np.cross(mean[t[:, 1]] - mean[t[:, 0]], mean[t[:, 2]] - mean[t[:, 0]]), axis=1)  # noqa: E731
    assert 0.8 < area(coarse).sum() / area(triangles).sum() < 1.05
    np.testing.assert_array_equal(
        coarse_triangles(mean[:100], np.arange(99).reshape(-1, 3)), np.arange(99).reshape(-1, 3)
    )
