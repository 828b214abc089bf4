"""Laws of multilinear models: untruncated they reconstruct, and their bilinear form is the same function."""

import numpy as np
import pytest

from morphable.statistics import StatisticsError, bilinear_model, higher_order_svd, identity_distribution

SUBJECTS, SCANS, VERTICES = 7, 4, 20


def data(seed=0):
    rng = np.random.default_rng(seed)
    return 50 * rng.normal(size=(VERTICES, 3)) + 5 * rng.normal(size=(SUBJECTS, SCANS, VERTICES, 3))


def test_nothing_truncated_reconstructs():
    model = higher_order_svd(data())
    np.testing.assert_allclose(model.reconstruction(), data(), atol=1e-9)
    np.testing.assert_allclose(model.identity.T @ model.identity, np.eye(SUBJECTS), atol=1e-12)
    np.testing.assert_allclose(model.expression.T @ model.expression, np.eye(SCANS), atol=1e-12)
    np.testing.assert_allclose(model.shape(model.identity[2], model.expression[3]), data()[2, 3], atol=1e-9)


def test_the_core_is_ordered_and_all_orthogonal():
    core = higher_order_svd(data()).core
    for axis in (2, 3):
        slices = np.moveaxis(core, axis, 0).reshape(core.shape[axis], -1)
        gram = slices @ slices.T
        np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-8 * gram.max())
        assert (np.diff(np.diag(gram)) < 0).all()


def test_truncation_loses_least_first():
    errors = [np.linalg.norm(higher_order_svd(data(), rank).reconstruction() - data()) for rank in range(1, 8)]
    assert (np.diff(errors) < 0).all() and errors[-1] < 1e-8
    # Data of that rank lose nothing.
    rng = np.random.default_rng(1)
    low = np.einsum("vcij,si,ej->sevc", *(rng.normal(size=s) for s in ((VERTICES, 3, 2, 3), (SUBJECTS, 2), (SCANS, 3))))
    np.testing.assert_allclose(higher_order_svd(low, 2, 3).reconstruction(), low, atol=1e-9)


def test_bilinear_form_is_the_tensor_contraction():
    model = higher_order_svd(data(), 5)
    mean, factor = identity_distribution(model.identity)
    neutral, others = model.expression[0], model.expression[1:]
    bilinear = bilinear_model(model.core, mean, factor, neutral, others)
    rng = np.random.default_rng(2)
    for _ in range(5):
        c, w = rng.normal(size=factor.shape[1]), rng.uniform(size=len(others))
        weights = neutral + w @ (others - neutral)
        np.testing.assert_allclose(bilinear.shape(c, w), model.shape(mean + factor @ c, weights), atol=1e-6)


def test_training_subjects_are_members_of_the_bilinear_model():
    model = higher_order_svd(data())
    mean, factor = identity_distribution(model.identity)
    assert factor.shape[1] == SUBJECTS - 1
    np.testing.assert_allclose(factor @ factor.T, np.cov(model.identity.T), atol=1e-12)
    bilinear = bilinear_model(model.core, mean, factor, model.expression[0], model.expression[1:])
    c = np.linalg.lstsq(factor, model.identity[3] - mean)[0]
    np.testing.assert_allclose(bilinear.shape(c, np.zeros(3)), data()[3, 0], atol=1e-8)
    np.testing.assert_allclose(bilinear.shape(c, np.array([0.0, 1, 0])), data()[3, 2], atol=1e-8)


def test_errors_say_what_to_do():
    with pytest.raises(StatisticsError, match=r"expected 1\.\.7 and 1\.\.4"):
        higher_order_svd(data(), 8)
    model = higher_order_svd(data())
    with pytest.raises(StatisticsError, match="expected the core's"):
        bilinear_model(model.core, np.zeros(6), np.eye(6), model.expression[0], model.expression[1:])
