import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fitting.landmark_start import LandmarkFitError, weak_perspective_pose


@pytest.mark.parametrize("seed", range(5))
def test_pose_of_a_weak_perspective_picture_is_recovered(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(68, 3)) * [60, 80, 40]
    rotation = np.diag([1.0, -1, -1]) @ Rotation.from_rotvec(rng.normal(size=3) * 0.4).as_matrix()
    pixels = 1.7 * (points @ rotation.T)[:, :2] + [300, 200]
    pixels[rng.choice(68, 30, replace=False)] = np.nan
    found, scale, origin = weak_perspective_pose(points, pixels)
    np.testing.assert_allclose(found, rotation, atol=1e-6)
    np.testing.assert_allclose(scale, 1.7, atol=1e-6)
    np.testing.assert_allclose(origin, [300, 200], atol=1e-5)


def test_too_few_or_coinciding_points_are_refused():
    points = np.random.default_rng(0).normal(size=(68, 3))
    with pytest.raises(LandmarkFitError, match="got 0 finite points, expected at least 4"):
        weak_perspective_pose(points, np.full((68, 2), np.nan))
    with pytest.raises(LandmarkFitError, match="coincide"):
        weak_perspective_pose(points, np.full((68, 2), 5.0))
