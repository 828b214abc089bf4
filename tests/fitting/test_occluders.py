"""Painted occluders cover what they say, follow from their seed, and move with the face."""

import numpy as np
import pytest

from fitting.occluders import KINDS, MIN_SHARE, face_outline, paint_occluder

SIZE = (192, 224)


@pytest.fixture(scope="module")
def landmarks(head):
    """The mean face seen from the front, 110 px wide."""
    points = np.asarray(head.landmarks(head.mean))
    return np.stack([112 + 0.75 * points[:, 0], 80 - 0.75 * points[:, 1]], axis=1).astype(float)


@pytest.fixture(scope="module")
def pixels():
    ramp = np.linspace(90, 200, SIZE[1])[None, :, None] * np.array([1.0, 0.8, 0.7])
    return np.broadcast_to(ramp, (*SIZE, 3)).astype(np.uint8).copy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 3])
def test_covers_and_leaves_alone(pixels, landmarks, kind, seed):
    painted, mask = paint_occluder(pixels, landmarks, kind, seed)
    face = face_outline(landmarks, SIZE)
    assert (mask & face).sum() >= MIN_SHARE * face.sum()
    changed = np.abs(painted.astype(int) - pixels).max(axis=2) > 0
    # Edges are one pixel soft: beyond that nothing changes.
    near = np.zeros_like(mask)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near |= np.roll(mask, (dy, dx), (0, 1))
    assert not (changed & ~near).any()
    assert changed[mask].mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_follows_from_its_seed(pixels, landmarks, kind):
    before = pixels.copy()
    first, again, other = (paint_occluder(pixels, landmarks, kind, seed) for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("kind", KINDS)
def test_moves_with_the_face(pixels, landmarks, kind):
    shift = np.array([7, -4])
    _, mask = paint_occluder(pixels, landmarks, kind, 2)
    _, moved = paint_occluder(pixels, landmarks + shift, kind, 2)
    back = np.roll(moved, (-shift[1], -shift[0]), (0, 1))[8:-8, 8:-8]
    assert (back == mask[8:-8, 8:-8]).mean() > 0.999


def test_sunglasses_hide_the_eyes_and_scarves_the_mouth(pixels, landmarks):
    at = lambda mask, points: mask[points[:, 1].astype(int), points[:, 0].astype(int)]  # noqa: E731
    for seed in range(4):
        assert at(paint_occluder(pixels, landmarks, "sunglasses", seed)[1], landmarks[36:48]).all()
        assert at(paint_occluder(pixels, landmarks, "scarf", seed)[1], landmarks[48:68]).all()


def test_outline_holds_the_inner_landmarks(landmarks):
    face = face_outline(landmarks, SIZE)
    assert face[landmarks[17:, 1].astype(int), landmarks[17:, 0].astype(int)].all()
    assert not face[0].any() and not face[-1].any()


def test_errors_say_what_is_expected(pixels, landmarks):
    with pytest.raises(ValueError, match="got kind 'hat', expected one of hand"):
        paint_occluder(pixels, landmarks, "hat", 0)
    hidden = landmarks.copy()
    hidden[3] = np.nan
    with pytest.raises(ValueError, match="not finite, expected all 68"):
        paint_occluder(pixels, hidden, "patch", 0)
