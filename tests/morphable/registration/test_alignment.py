"""Similarities: recovery, invariance, the group's laws."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from morphable.registration import AlignmentError, Similarity, generalised_procrustes, similarity


def motion(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return Similarity(scale, Rotation.random(rng=rng).as_matrix(), rng.normal(size=3) * 30)


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(20, 3)) * [50, 70, 40]


def test_a_known_similarity_is_recovered_whatever_rows_are_missing(points):
    truth = motion(1, 0.37)
    target = truth(points)
    target[3], target[7, 1] = np.nan, np.nan
    found = similarity(points, target)
    np.testing.assert_allclose(found(points), truth(points), atol=1e-10)


def test_without_scale_the_motion_is_rigid(points):
    found = similarity(points, motion(2, 1.5)(points), scaled=False)
    assert found.scale == 1
    np.testing.assert_allclose(found.rotation, motion(2).rotation, atol=1e-12)


def test_a_mirror_image_is_not_reflected_back(points):
    found = similarity(points, points * [-1, 1, 1])
    assert np.isclose(np.linalg.det(found.rotation), 1)


def test_moving_both_sets_moves_the_similarity(points):
    noisy = motion(3, 2.0)(points) + np.random.default_rng(1).normal(size=points.shape)
    a, b = motion(4, 0.5), motion(5, 3.0)
    plain, moved = similarity(points, noisy), similarity(a(points), b(noisy))
    expected = b @ plain @ a.inverse()
    np.testing.assert_allclose(moved(points), expected(points), atol=1e-8)


def test_a_weight_is_a_repetition(points):
    noisy = points + np.random.default_rng(2).normal(size=points.shape)
    weights = np.r_[3.0, 0.0, np.ones(18)]
    rows = np.r_[0, 0, 0, 2:20]
    weighted, repeated = similarity(points, noisy, weights), similarity(points[rows], noisy[rows])
    np.testing.assert_allclose(weighted(points), repeated(points), atol=1e-10)


def test_similarities_are_a_group(points):
    a, b = motion(6, 0.2), motion(7, 5.0)
    np.testing.assert_allclose((a @ b)(points), a(b(points)), atol=1e-10)
    np.testing.assert_allclose((a @ a.inverse())(points), points, atol=1e-10)
    np.testing.assert_allclose(Similarity.identity()(points), points)


@pytest.mark.parametrize("source", [np.zeros((2, 3)), np.outer(np.arange(5.0), [1, 2, 3]), np.full((5, 3), np.nan)])
def test_points_that_fix_no_turn_are_refused(source):
    with pytest.raises(AlignmentError, match="expected three or more"):
        similarity(source, source)


@pytest.mark.parametrize("scaled", [False, True])
def test_procrustes_does_not_see_the_motions_of_its_shapes(points, scaled):
    rng = np.random.default_rng(3)
    shapes = points + rng.normal(size=(6, 20, 3)) * 2
    moved = np.stack([shapes[0], *(motion(k, 2.0**k if scaled else 1.0)(x) for k, x in enumerate(shapes[1:]))])
    aligned, mean, motions = generalised_procrustes(moved, scaled)
    plain, mean_plain, _ = generalised_procrustes(shapes, scaled)
    # With free scales the mean's size is the shapes' mean size: the only thing that the scales may change.
    ratio = np.linalg.norm(mean) / np.linalg.norm(mean_plain)
    assert scaled or np.isclose(ratio, 1)
    np.testing.assert_allclose(aligned / ratio, plain, atol=1e-4)
    np.testing.assert_allclose(mean, aligned.mean(axis=0) if not scaled else mean, atol=1e-6)
    for motion_, x, y in zip(motions, moved, aligned, strict=True):
        np.testing.assert_allclose(motion_(x), y, atol=1e-9)


def test_copies_of_a_shape_align_exactly(points):
    shapes = np.stack([motion(k)(points) for k in range(4)])
    aligned, mean, _ = generalised_procrustes(shapes)
    np.testing.assert_allclose(aligned, np.broadcast_to(mean, aligned.shape), atol=1e-8)
    np.testing.assert_allclose(mean.mean(axis=0), 0, atol=1e-8)
