"""Regression in a Gaussian process is conditioning; an ICP in its space recovers its members."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from morphable.registration.alignment import Similarity
from morphable.registration.gaussian_process import (
    DeformationProcess,
    Gaussian,
    Marks,
    SurfaceFit,
    SurfaceFitSettings,
    fit_surface,
    kernel,
    kernel_fields,
)
from morphable.registration.target import TargetSurface


@pytest.fixture
def process():
    rng = np.random.default_rng(0)
    count = 12
    return DeformationProcess(
        rng.normal(size=(count, 3)),
        rng.normal(size=(count, 3, 4)),
        rng.normal(size=(count, 5)),
        rng.uniform(0.2, 2, size=(3, 5)),
    )


def columns(process):
    """The whole design matrix, column by column."""
    rest = process.instance(np.zeros(process.rank))
    return np.stack([(process.instance(e) - rest).ravel() for e in np.eye(process.rank)], axis=1)


def test_regression_is_dense_conditioning(process):
    """Of the positions' joint Gaussian, with noise that differs by point and direction; one point is not seen."""
    rng = np.random.default_rng(1)
    design = columns(process)
    variance = np.r_[np.ones(4), process.spread.ravel() ** 2]
    roots = rng.normal(size=(12, 3, 3))
    noise = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(3)
    values = process.mean + rng.normal(size=(12, 3))
    precision = np.linalg.inv(noise)
    precision[5] = 0
    coefficients = process.regress(values, precision)
    seen = np.flatnonzero(np.repeat(np.arange(12) != 5, 3))
    covariance = design * variance @ design.T
    block = np.zeros((36, 36))
    for k in range(12):
        block[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = noise[k]
    gain = covariance[:, seen] @ np.linalg.inv((covariance + block)[np.ix_(seen, seen)])
    expected = process.mean.ravel() + gain @ (values - process.mean).ravel()[seen]
    np.testing.assert_allclose(process.instance(coefficients).ravel(), expected, atol=1e-8)


def test_distances_to_planes_do_not_draw_along_them(process):
    normal = np.array([0.0, 0, 1])
    precision = np.broadcast_to(1e6 * np.outer(normal, normal), (12, 3, 3)).copy()
    slid = process.mean + [7.0, -3.0, 0.0]
    np.testing.assert_allclose(process.regress(slid, precision), 0, atol=1e-9)


def test_a_process_at_a_corner_is_its_row(process):
    at = process.at(np.array([[3, 4, 5], [7, 1, 2]]), np.array([[1.0, 0, 0], [0, 0, 1]]))
    rows = process.rows(np.array([3, 2]))
    c = np.random.default_rng(2).normal(size=process.rank)
    np.testing.assert_allclose(at.instance(c), rows.instance(c))
    np.testing.assert_allclose(at.instance(c), process.instance(c)[[3, 2]])


def test_even_and_odd_fields_make_the_kernel_and_are_even_and_odd():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(40, 3)) * 50
    scales = (Gaussian(3.0, 60.0), Gaussian(1.0, 25.0))
    even, odd = (kernel_fields(points, points, scales, 40, sign) for sign in (1, -1))
    np.testing.assert_allclose(even @ even.T + odd @ odd.T, kernel(points, points, scales), atol=1e-5)
    mirrored = points * [-1, 1, 1]
    np.testing.assert_allclose(kernel_fields(mirrored, points, scales, 40, 1), even, atol=1e-6)
    np.testing.assert_allclose(kernel_fields(mirrored, points, scales, 40, -1), -odd, atol=1e-6)


def test_a_member_of_the_space_is_recovered_from_its_moved_surface(tiny):
    mean, modes = np.asarray(tiny.mean, float), np.asarray(tiny.shape.modes, float)
    triangles = np.asarray(tiny.triangles)
    process = DeformationProcess(mean, modes, np.zeros((len(mean), 0)), np.zeros((3, 0)))
    truth = np.random.default_rng(5).normal(size=6)
    pose = Similarity(1.04, Rotation.from_rotvec([0.05, -0.08, 0.03]).as_matrix(), np.array([3.0, -2.0, 4.0]))
    lying = pose(process.instance(truth))
    corners, weights = np.asarray(tiny.landmarks.vertices), np.asarray(tiny.landmarks.weights, float)
    marks = Marks(corners, weights, np.einsum("mk,mkc->mc", weights, lying[corners]), np.full(68, 0.5))
    marks.points[::3] = np.nan
    start = SurfaceFit(Similarity.identity(), np.zeros(6))
    settings = SurfaceFitSettings(rounds=40, sigma=0.05)
    fit = fit_surface(
        process, triangles, np.ones(len(mean)), TargetSurface(lying, triangles), start, marks, settings=settings
    )
    apart = np.linalg.norm(fit.similarity(process.instance(fit.coefficients)) - lying, axis=1)
    assert np.median(apart) < 0.1
