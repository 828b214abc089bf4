import numpy as np

from renderer.fill import dilate, double, extrapolate, halve, mirror_fill


def test_dilate_fills_with_the_nearest_valid_texel():
    rng = np.random.default_rng(2)
    texture, valid = rng.uniform(size=(9, 7, 3)), rng.uniform(size=(9, 7)) < 0.2
    filled = dilate(texture, valid)
    assert np.array_equal(filled[valid], texture[valid])
    known = np.argwhere(valid)
    for row, column in np.argwhere(~valid):
        distance = np.hypot(*(known - [row, column]).T)
        nearest = known[distance == distance.min()]
        assert any(np.array_equal(filled[row, column], texture[tuple(n)]) for n in nearest)
    assert np.array_equal(dilate(texture, np.zeros_like(valid)), texture)


def test_halving_keeps_sums_and_doubling_keeps_ramps():
    values = np.random.default_rng(0).normal(size=(9, 6, 2))
    assert np.allclose(halve(values).sum(axis=(0, 1)), values.sum(axis=(0, 1)))
    assert np.allclose(halve(values[:8])[1, 2], values[2:4, 4:6].sum(axis=(0, 1)))
    y, x = np.mgrid[:5, :4]
    ramp = 2.0 * x - 3.0 * y
    fine_y, fine_x = (np.mgrid[:9, :8] + 0.5) / 2 - 0.5
    inner = (slice(1, -1), slice(1, -1))
    assert np.allclose(double(ramp, 9, 8)[inner], (2.0 * fine_x - 3.0 * fine_y)[inner])


def test_extrapolation_keeps_what_is_known_and_reaches_everywhere():
    rng = np.random.default_rng(0)
    weight = np.zeros((48, 37), np.float32)
    weight[10:20, 5:15] = 1
    values = np.where(weight[..., None] > 0, rng.normal(size=(48, 37, 3)), 0).astype(np.float32)
    got = extrapolate(values, weight, np.zeros(3, np.float32), fade=0.02)
    assert got.dtype == np.float32
    assert np.allclose(got[weight > 0], values[weight > 0], atol=1e-6)
    low, high = values[weight > 0].min(axis=0), values[weight > 0].max(axis=0)
    assert np.all(got >= np.minimum(low, 0) - 1e-5) and np.all(got <= np.maximum(high, 0) + 1e-5)
    constant = extrapolate(np.full((48, 37, 3), 0.7), weight, np.zeros(3))
    assert np.allclose(constant, 0.7, atol=1e-5)


def one_sided(size=96, hole=0.0):
    """A map symmetric in u but for a smooth difference of exposure, its right part (and a hole) unknown."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    symmetric = 0.3 * np.sin(9 * np.abs(x - 0.5) + 5 * y) + 0.2 * np.cos(30 * y) * np.cos(40 * (x - 0.5))
    exposure = 0.3 * np.tanh(8 * (x - 0.5))
    truth = np.stack([symmetric + exposure, 0.5 * symmetric - exposure], -1).astype(np.float32)
    weight = np.clip((0.62 - x) * size / 4, 0, 1).astype(np.float32)  # falls off over a few texels
    weight[np.hypot(x - 0.3, y - 0.5) < hole] = 0
    return truth, weight, np.stack([1 - x, y], -1).astype(np.float32), exposure


def test_the_other_side_fills_in_without_a_seam():
    truth, weight, mirror_uv, exposure = one_sided()
    values = np.where(weight[..., None] > 0, truth, 99.0).astype(np.float32)  # what is not known may be anything
    filled, total = mirror_fill(values, weight, mirror_uv, fade=0.0)
    assert np.all(total > 0.99)
    known = weight == 1
    assert np.allclose(filled[known], truth[known], atol=1e-5)
    # Across the border the map is as smooth as the truth; without the difference it would jump by up to 0.4.
    x = (np.arange(96) + 0.5) / 96
    border = np.flatnonzero((x[1:] > 0.55) & (x[1:] < 0.68))
    steps = np.abs(np.diff(filled, axis=1) - np.diff(truth, axis=1))[:, border]
    assert steps.max() < 0.06
    naive = np.where(weight[..., None] > 0.5, truth, truth[:, ::-1])
    assert np.abs(np.diff(naive, axis=1) - np.diff(truth, axis=1))[:, border].max() > 0.25


def test_symmetric_maps_are_restored_exactly_and_what_neither_side_shows_stays_unknown():
    truth, weight, mirror_uv, exposure = one_sided(hole=0.1)
    truth = (truth + truth[:, ::-1]) / 2
    filled, total = mirror_fill(truth, weight, mirror_uv)
    assert np.allclose(filled[total > 0.99], truth[total > 0.99], atol=1e-4)
    y, x = (np.mgrid[:96, :96] + 0.5) / 96
    neither = np.hypot(np.abs(x - 0.5) - 0.2, y - 0.5) < 0.08
    assert np.all(total[neither] == 0) and np.all(total[np.hypot(np.abs(x - 0.5) - 0.2, y - 0.5) > 0.12] > 0.99)
    whole = extrapolate(filled, total, np.zeros(2, np.float32))
    assert np.abs(whole - truth)[neither].max() < 0.5 * np.ptp(truth)


def test_nothing_is_taken_from_a_side_that_differs_too_much_or_where_it_is_not_wanted():
    truth, weight, mirror_uv, _ = one_sided()
    stranger = truth + np.where(np.arange(96) < 48, 2.0, 0.0)[:, None].astype(np.float32)
    _, total = mirror_fill(stranger, weight, mirror_uv, tolerance=0.5)
    assert np.all(total[weight == 0] == 0)
    # A thing that only one side has, beside the border, does not change what is taken elsewhere.
    spoilt = truth.copy()
    spoilt[30:40, 48:52] += 5.0
    plain, _ = mirror_fill(truth, weight, mirror_uv, tolerance=0.5)
    robust, _ = mirror_fill(spoilt, weight, mirror_uv, tolerance=0.5)
    assert np.abs(robust - plain)[:20, 64:].max() < 0.1
    usable = np.ones_like(weight)
    usable[:40] = 0
    _, total = mirror_fill(truth, weight, mirror_uv, usable=usable)
    assert np.allclose(total[:40], weight[:40]) and np.all(total[40:] > 0.99)
