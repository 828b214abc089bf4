"""Segments: shares sum to one without a seam, and each learns what its own observations say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fitting.parameters import start_parameters
from fitting.schedule import coarse_to_fine
from fitting.segments import NAMES, Segmented, segment_weights


@pytest.fixture(scope="module")
def weights(head):
    return np.asarray(segment_weights(head.mean, head.landmarks(head.mean)))


def test_shares_sum_to_one_and_every_segment_rules_its_own_place(head, weights):
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)
    landmarks = head.landmarks(head.mean)
    at = np.asarray(segment_weights(landmarks, landmarks))
    for name, marks in (("eyes", range(36, 48)), ("nose", [30, 33]), ("mouth", range(48, 68)), ("rest", [0, 8, 16])):
        assert (at[np.array(marks)].argmax(axis=1) == NAMES.index(name)).all()


def test_shares_change_slowly_over_the_surface(head, weights):
    """No seam: along an edge of the mesh a share changes by no more than its length's part of the reach."""
    triangles = np.asarray(head.triangles)
    ends = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]]])
    mean = np.asarray(head.mean)
    length = np.linalg.norm(mean[ends[:, 0]] - mean[ends[:, 1]], axis=1)
    change = np.abs(weights[ends[:, 0]] - weights[ends[:, 1]]).max(axis=1)
    assert (change <= 0.08 * length + 1e-4).all()


def test_equal_segments_are_the_whole_face(tiny):
    face = dataclasses.replace(start_parameters(6, 4, 4), identity=jnp.arange(6.0) / 6)
    same = Segmented(face, jnp.tile(face.identity, (4, 1)), jnp.zeros((4, 4)))
    np.testing.assert_allclose(same.correction(tiny), 0.0, atol=1e-5)
    # All moved alike: what the model does with the sum.
    moved = Segmented(face, jnp.tile(face.identity + 0.5, (4, 1)), jnp.zeros((4, 4)))
    expected = tiny.neutral(face.identity + 0.5) - tiny.neutral(face.identity)
    np.testing.assert_allclose(moved.correction(tiny), expected, atol=1e-4)


def test_a_plan_with_segments_moves_the_neutral_and_keeps_the_rest(fitter, photo, face):
    plan = coarse_to_fine()[:2]
    whole = fitter.fit(photo, face, plan)
    stage = dataclasses.replace(plan[-1], name="segments", segments=0.7)
    fit = fitter.fit(photo, face, (*plan, stage))
    np.testing.assert_array_equal(fit.identity, whole.identity)
    np.testing.assert_allclose(fit.neutral_vertices, whole.neutral_vertices + fit.correction, atol=1e-3)
    moved = np.linalg.norm(fit.correction, axis=1)
    assert 0.05 < moved.mean() < 3.0  # mm
    miss = lambda f: np.linalg.norm(f.landmarks2d - face.landmarks, axis=1)[17:].mean()  # noqa: E731
    assert miss(fit) < miss(whole)  # each segment meets its own landmarks better
    with pytest.raises(ValueError, match="got segments=-1.*expected a positive deviation"):
        fitter.fit(photo, face, (*plan, dataclasses.replace(stage, segments=-1.0)))
    with pytest.raises(ValueError, match="segments alone, expected a stage of the whole face"):
        fitter.fit(photo, face, (stage,))


def test_weights_have_derivatives_everywhere(head):
    """At a landmark the distance to it has none; the share must."""
    landmarks = head.landmarks(head.mean)
    slope = jax.jacfwd(lambda p: segment_weights(p[None], landmarks)[0])(landmarks[30])
    assert jnp.all(jnp.isfinite(slope))
