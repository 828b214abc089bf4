"""Laws of attributes: a planted label is found, a meaningless one says so, and moves leave the rest alone."""

import numpy as np
import pytest

from morphable.statistics import StatisticsError, attribute_direction

SHAPES, RANK = 80, 6
COEFFICIENTS = np.random.default_rng(0).normal(size=(SHAPES, RANK))
GRADIENT = np.array([3.0, 0, -4.0, 0, 0, 1.0])


def test_a_planted_label_is_found():
    labels = 30 + COEFFICIENTS @ GRADIENT
    age = attribute_direction("age", labels, COEFFICIENTS, unit="one", rank=RANK)
    np.testing.assert_allclose(age.gradient, GRADIENT, atol=1e-9)
    np.testing.assert_allclose(age.direction, GRADIENT / 26, atol=1e-9)
    assert age.meaningful and age.correlation > 0.999
    face = COEFFICIENTS[0]
    np.testing.assert_allclose(age.value(face), labels[0])
    np.testing.assert_allclose(age.value(age.moved(face, 10.0)), labels[0] + 10)
    # Coefficients without a part in the label stay.
    np.testing.assert_allclose((age.moved(face, 10.0) - face)[[1, 3, 4]], 0, atol=1e-9)


def test_a_step_is_one_deviation_of_the_label():
    labels = 30 + COEFFICIENTS @ GRADIENT + np.random.default_rng(1).normal(size=SHAPES)
    age = attribute_direction("age", labels, COEFFICIENTS)
    np.testing.assert_allclose(age.gradient @ age.direction, labels.std(ddof=1))
    assert age.meaningful and 0.9 < age.correlation < 1


def test_whitened_coefficients_give_the_sum_of_labels_times_deviations():
    """Blanz & Vetter's formula, where the coefficients are exactly white."""
    centred = COEFFICIENTS - COEFFICIENTS.mean(axis=0)
    white = np.linalg.qr(centred)[0] * np.sqrt(SHAPES - 1)
    labels = np.random.default_rng(2).normal(size=SHAPES)
    found = attribute_direction("x", labels, white, rank=RANK)
    theirs = (labels - labels.mean()) @ white
    np.testing.assert_allclose(np.cross(found.direction[:3], theirs[:3]), 0, atol=1e-9)
    np.testing.assert_allclose(found.gradient, theirs / (SHAPES - 1))


def test_a_meaningless_label_says_so():
    correlations = []
    for seed in range(10):
        labels = np.random.default_rng(100 + seed).normal(size=SHAPES)
        found = attribute_direction("shoe size", labels, COEFFICIENTS)
        correlations.append(found.correlation)
        assert found.meaningful or "do not trust" in str(found)
    assert np.sum(np.array(correlations) > found.chance) <= 1


def test_kept_attributes_do_not_move():
    rng = np.random.default_rng(3)
    weight = attribute_direction("weight", COEFFICIENTS @ rng.normal(size=RANK), COEFFICIENTS, rank=RANK)
    age = attribute_direction("age", COEFFICIENTS @ GRADIENT, COEFFICIENTS, "one", RANK, keeping=[weight])
    face = COEFFICIENTS[4]
    np.testing.assert_allclose(weight.value(age.moved(face, 3.0)), weight.value(face))
    np.testing.assert_allclose(age.value(age.moved(face, 3.0)), age.value(face) + 3)
    with pytest.raises(StatisticsError, match="combination"):
        attribute_direction("again", COEFFICIENTS @ GRADIENT, COEFFICIENTS, rank=RANK, keeping=[age])


def test_unknown_labels_are_left_out():
    labels = 30 + COEFFICIENTS @ GRADIENT
    labels[::3] = np.nan
    found = attribute_direction("age", labels, COEFFICIENTS, rank=RANK)
    np.testing.assert_allclose(found.gradient, GRADIENT, atol=1e-9)
    assert found.labelled == np.isfinite(labels).sum()
    with pytest.raises(StatisticsError, match="labels that differ"):
        attribute_direction("age", np.full(SHAPES, 3.0), COEFFICIENTS)
    with pytest.raises(StatisticsError, match="4 or more"):
        attribute_direction("age", np.full(SHAPES, np.nan), COEFFICIENTS)
