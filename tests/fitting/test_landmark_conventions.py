"""What annotators disagree about is symmetric, and small against the face."""

import numpy as np
import pytest

from fitting.detection import LANDMARK_NOISE
from fitting.landmark_conventions import shared_errors
from morphable.landmarks import INNER, MIRROR_68

MIRROR = MIRROR_68[INNER] - INNER.start


@pytest.fixture(scope="module")
def modes(head):
    return shared_errors(np.asarray(head.landmarks(head.mean))[INNER])


def test_conventions_have_no_better_side(modes):
    for field in modes:
        np.testing.assert_allclose(field[MIRROR] * [-1, 1, 1], field, atol=0.02)  # mm


def test_shared_errors_are_millimetres(modes):
    largest = np.linalg.norm(modes, axis=2).max(axis=1)
    assert (0.5 < largest).all() and (largest < 6.0).all()


def test_shared_errors_are_different_ones(modes):
    flat = modes.reshape(len(modes), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.linalg.svd(flat, compute_uv=False)[-1] > 0.2


def test_only_points_of_unknown_convention_have_shared_errors():
    assert LANDMARK_NOISE["file"].annotated and not LANDMARK_NOISE["dlib"].annotated
