"""Laws of the three measures: what they are of, and how they behave by the number of modes."""

import numpy as np
import pytest

from morphable.statistics import (
    StatisticsError,
    generalisation,
    leave_one_out,
    measure,
    principal_components,
    specificity,
)


def shapes(count=14, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    modes = np.random.default_rng(99).normal(size=(4, 50, 3)) * np.array([4, 3, 2, 1])[:, None, None]
    return np.einsum("nk,kvc->nvc", rng.normal(size=(count, 4)), modes) + noise * rng.normal(size=(count, 50, 3))


@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_is_what_its_name_says(weighted):
    data = shapes()
    weights = np.random.default_rng(1).uniform(0.5, 2, 50) if weighted else None
    curve = leave_one_out(data, (0, 1, 4, 12), weights)
    by_hand = []
    for i in range(len(data)):
        rest = principal_components(np.delete(data, i, axis=0), weights=weights)
        by_hand.append(generalisation(rest, data[i : i + 1], (0, 1, 4, 12)).value)
    np.testing.assert_allclose(curve.value, np.mean(by_hand, axis=0), rtol=1e-9)
    np.testing.assert_allclose(curve.error, np.std(by_hand, axis=0, ddof=1) / np.sqrt(len(data)), rtol=1e-9)


def test_generalisation_falls_with_the_number_of_modes():
    report = measure(shapes(noise=0.0))
    assert (np.diff(report.generalisation.value) < 1e-9).all()
    # Four modes span the population.
    assert report.generalisation.ranks[-1] == 4 and report.generalisation.value[-1] < 1e-6
    noisy = measure(shapes(60))
    assert (np.diff(noisy.generalisation.value) < 0).all()
    held_out = generalisation(principal_components(shapes(60)), shapes(200, seed=1), noisy.generalisation.ranks)
    apart = held_out.value - noisy.generalisation.value
    assert (np.abs(apart) < 4 * np.hypot(held_out.error, noisy.generalisation.error)).all()


def test_compactness_is_the_cumulative_variance():
    data = shapes()
    report = measure(data, (1, 3, 13))
    np.testing.assert_allclose(report.compactness.value[-1], data.var(axis=0, ddof=1).sum() / 50)
    np.testing.assert_allclose(report.share[-1], 1)
    assert (np.diff(report.compactness.value) > 0).all()
    # Leaving one of 14 out, 12 modes are the most.
    assert report.generalisation.ranks == (1, 3)


def test_specificity_finds_the_nearest_shape():
    data = shapes()
    components = principal_components(data)
    curve = specificity(components, data, (0, 2, 13), samples=20, seed=3)
    draws = np.random.default_rng(3).standard_normal((20, components.rank))
    by_hand = []
    for rank in (0, 2, 13):
        members = components.instances(draws[:, :rank])
        to_all = members[:, None] - data
        nearest = (to_all**2).sum(axis=(2, 3)).argmin(axis=1)
        by_hand.append(np.linalg.norm(to_all[np.arange(20), nearest], axis=2).mean())
    np.testing.assert_allclose(curve.value, by_hand)


def test_a_report_prints_as_a_table():
    text = str(measure(shapes()))
    assert "14 shapes" in text and len(text.splitlines()) == 2 + len((1, 2, 3, 5, 8, 12, 13))


def test_errors_say_what_to_do():
    with pytest.raises(StatisticsError, match="3 or more"):
        leave_one_out(shapes(2))
    with pytest.raises(StatisticsError, match=r"expected 0\.\.13"):
        measure(shapes(), (20,))
