"""Curves of a training are drawn where their figures are."""

import numpy as np
import pytest

from fitting.training_curves import Curve, chart

BLUE, RED = (0, 0, 255), (255, 0, 0)
CURVES = (Curve("seen", "", "#0000ff"), Curve("held", "", "#ff0000"))


def drawn(log, colour, top: float = 2.0) -> np.ndarray:
    """Columns and rows of a curve's pixels, as shares of its frame."""
    picture = chart(log, CURVES, top, "")
    row, column = np.nonzero((picture == colour).all(axis=2))
    height, width = picture.shape[:2]
    return np.stack([(column - 60) / (width - 80), (height - 40 - row) / (height - 60)])


def test_figures_are_heights():
    log = [{"step": float(s), "seen": 0.5 + 0.01 * s} for s in range(0, 101, 10)]
    across, up = drawn(log, BLUE)
    np.testing.assert_allclose(up, (0.5 + across) / 2, atol=0.01)
    assert across.min() < 0.01 and across.max() > 0.99
    assert len(drawn(log, RED)[0]) == 0


def test_what_is_above_is_drawn_at_the_top_and_gaps_are_bridged():
    log = [{"step": 10.0, "seen": 50.0}, {"step": 20.0, "held": 1.0}, {"step": 40.0, "seen": 3.0, "held": 1.0}]
    across, up = drawn(log, BLUE)
    np.testing.assert_allclose(up, 1, atol=0.01)
    assert abs(across.min() - 0.25) < 0.01
    across, up = drawn(log, RED)
    np.testing.assert_allclose(up, 0.5, atol=0.01)
    assert abs(across.min() - 0.5) < 0.01 and across.max() > 0.99


@pytest.mark.parametrize("size", [(900, 420), (400, 200)])
def test_pictures_have_their_size(size):
    assert chart([{"step": 1.0, "seen": 1.0}], CURVES, 2.0, "a caption", size).shape == (size[1], size[0], 3)
