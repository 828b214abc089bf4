import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fitting.landmark_start import LandmarkFitError, pose_hypotheses, weak_perspective_pose


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


@pytest.mark.parametrize("yaw", [-60, -30, 0, 30, 60])
def test_wrong_points_do_not_carry_the_best_hypothesis_off(yaw):
    """One point in four anywhere: the turn is on the grid, so the rest is found exactly."""
    rng = np.random.default_rng(yaw + 90)
    points = rng.normal(size=(68, 3)) * [60, 80, 40]
    turn = np.diag([1.0, -1, -1]) @ Rotation.from_euler("y", yaw, degrees=True).as_matrix()
    rotation = Rotation.from_euler("z", rng.uniform(-180, 180), degrees=True).as_matrix() @ turn
    pixels = 1.7 * (points @ rotation.T)[:, :2] + [300, 200]
    pixels[rng.choice(68, 17, replace=False)] = rng.uniform(-2000, 2000, (17, 2))
    found, scale, origin = pose_hypotheses(points, pixels)[0]
    np.testing.assert_allclose(found, rotation, atol=0.02)
    np.testing.assert_allclose(scale, 1.7, rtol=0.02)
    np.testing.assert_allclose(origin, [300, 200], atol=5)
    assert np.abs(weak_perspective_pose(points, pixels)[0] - rotation).max() > 0.1
