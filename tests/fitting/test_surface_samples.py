"""Skin samples are evenly spread for any number of blocks, and mirrored."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from fitting.surface_samples import BLOCK, _skin_triangles, solver_model


@pytest.fixture(scope="module")
def points(head):
    return np.asarray(solver_model(head, blocks=4).skin.geometry[:, :3]).transpose(0, 2, 1)


def test_every_block_is_its_own_mirror_image(points):
    for block in points:
        distance, _ = cKDTree(block).query(block * [-1, 1, 1])
        assert distance.max() < 1e-3  # mm


def test_first_blocks_are_even(head, points):
    """Twice as many samples per area where twice as many are drawn, and smaller gaps than random points leave."""
    mean, triangles = np.asarray(head.mean), np.asarray(head.triangles)[_skin_triangles(head)]
    corners = mean[triangles]
    centroid = corners.mean(axis=1)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    random = centroid[np.random.default_rng(0).choice(len(area), 4 * BLOCK, p=area / area.sum())]
    for blocks in (1, 2, 4):
        first = points[:blocks].reshape(-1, 3)
        for cut in np.quantile(centroid[:, 1], [0.2, 0.5, 0.8]):
            share = area[centroid[:, 1] < cut].sum() / area.sum()
            assert abs((first[:, 1] < cut).mean() - share) < 0.02
        gap = lambda some: np.quantile(cKDTree(some).query(centroid)[0], 0.95)  # noqa: E731
        assert gap(first) < 0.87 * gap(random[: len(first)])
