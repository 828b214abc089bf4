"""Laws of symmetry: the two halves' components are those of the shapes and their images."""

import numpy as np
import pytest

from morphable.statistics import StatisticsError, mirrored, principal_components, symmetric_components

VERTICES = 31
MIRROR = np.r_[np.arange(15, 30), np.arange(15), 30]


def shapes(count=8):
    return np.random.default_rng(0).normal(size=(count, VERTICES, 3)) * np.linspace(1, 3, VERTICES)[:, None]


def test_mirroring_twice_changes_nothing():
    np.testing.assert_array_equal(mirrored(mirrored(shapes(), MIRROR), MIRROR), shapes())
    with pytest.raises(StatisticsError, match="own inverse"):
        mirrored(shapes(), np.roll(MIRROR, 1))


def test_modes_are_symmetric_or_antisymmetric():
    found = symmetric_components(shapes(), MIRROR)
    assert found.rank == 2 * 8 - 1
    np.testing.assert_allclose(mirrored(found.mean[None], MIRROR)[0], found.mean, atol=1e-12)
    images = mirrored(np.moveaxis(found.modes, 2, 0), MIRROR)
    signs = np.sign(np.einsum("kvc,vck->k", images, found.modes))
    np.testing.assert_allclose(np.moveaxis(images, 0, 2) * signs, found.modes, atol=1e-10)
    assert set(signs) == {-1.0, 1.0} and (np.diff(found.variances) <= 0).all()


def test_components_are_those_of_shapes_and_images():
    weights = np.linspace(0.5, 2, VERTICES)
    weights = (weights + weights[MIRROR]) / 2
    both = np.concatenate([shapes(), mirrored(shapes(), MIRROR)])
    joint, found = principal_components(both, weights=weights), symmetric_components(shapes(), MIRROR, weights=weights)
    np.testing.assert_allclose(found.mean, joint.mean, atol=1e-12)
    rows = found.modes.reshape(-1, found.rank)
    of_joint = joint.modes.reshape(-1, joint.rank)
    covariance, of_images = rows @ rows.T, of_joint @ of_joint.T
    # The pooled estimate differs by the degrees of freedom alone: 15 of 16 shapes, 7 of 8 and 8 of 8 halves.
    assert np.linalg.norm(covariance - of_images) < 0.1 * np.linalg.norm(covariance)
    projector = lambda m: m @ np.linalg.pinv(m)  # noqa: E731
    np.testing.assert_allclose(projector(rows), projector(of_joint), atol=1e-8)


def test_symmetric_shapes_have_symmetric_modes_only():
    even = (shapes() + mirrored(shapes(), MIRROR)) / 2
    found = symmetric_components(even, MIRROR)
    plain = principal_components(even)
    assert found.rank == plain.rank == 7
    np.testing.assert_allclose(found.variances, plain.variances)


def test_colours_keep_their_signs():
    found = symmetric_components(shapes(), MIRROR, signs=(1.0, 1.0, 1.0))
    np.testing.assert_allclose(found.mean[MIRROR], found.mean)
