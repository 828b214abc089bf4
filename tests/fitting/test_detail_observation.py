"""What a photo says about the relief of the skin: laws of the ratio on the map."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fitting.detail_observation import detail_region, observe
from fitting.occlusion import Labels
from morphable.detail import detail_normals


@pytest.fixture(scope="module")
def observation(fitted, photo):
    return observe(fitted, photo, 128)


def test_region_is_skin_of_the_face_and_symmetric(head):
    region = detail_region(head, 128)
    for values in region:
        assert 0.0 <= values.min() and values.max() <= 1.0
        np.testing.assert_allclose(values, values[:, ::-1], atol=0.05)
    assert (region.bare <= region.relief).all()
    assert 0.1 < region.relief.mean() < 0.6
    # Brows may lie on folds, and hide them.
    assert (region.relief - region.bare).max() > 0.9


def test_no_relief_changes_nothing_and_a_slope_what_its_normal_does(observation):
    size = observation.weight.shape[0]
    np.testing.assert_allclose(observation.shading_change(jnp.zeros((size, size))), 0.0, atol=1e-6)
    bump = 0.5 * jnp.sin(jnp.arange(size) / 4.0)[None] * jnp.ones((size, 1))
    normals = detail_normals(observation.surface, bump)
    expected = jnp.log(observation.shade(normals) / observation.shade(observation.surface.normals))
    np.testing.assert_allclose(observation.shading_change(bump), expected, atol=1e-5)


def test_exposure_moves_all_ratios_alike(fitted, photo, observation):
    brighter = dataclasses.replace(fitted, light=2.0 * fitted.light)
    other = observe(brighter, photo, 128)
    seen = np.asarray(observation.weight) > 0.9
    change = np.asarray(other.ratio - observation.ratio)[seen]
    # But for what keeps the logarithm of black finite.
    assert np.abs(change + np.log(2.0)).max() < 0.15
    # What looks like skin is judged beside the tone of all of it.
    assert np.quantile(np.abs(other.weight - observation.weight), 0.999) < 0.05


def test_what_covers_the_face_is_not_observed(fitted, photo, observation):
    size = fitted.settings.image_size
    probability = np.ones((size, size), np.float32)
    probability[:, size // 2 :] = 0.0
    labels = Labels(probability, probability > 0, np.zeros(68), 0.5 * 0.3)
    half = dataclasses.replace(fitted, labels=labels)
    usable = half.uncovered()
    assert usable is not None and not usable.all() and usable.any()
    seen = np.asarray(observe(half, photo, 128).weight)
    left, right = (float(np.asarray(observation.weight)[:, s].sum()) for s in (slice(64), slice(64, None)))
    kept = float(seen.sum())
    assert kept < 0.75 * (left + right) and kept > 0.1 * (left + right)
    assert fitted.uncovered() is None


def test_what_looks_like_no_skin_is_left_alone(fitted, photo, observation):
    (left, top), (right, bottom) = fitted.landmarks2d.min(axis=0), fitted.landmarks2d.max(axis=0)
    pixels = np.asarray(fitted.camera.project(observation.surface.points.reshape(-1, 3))).reshape(128, 128, 2)
    before = np.asarray(observation.weight)
    # A strip of dark brown across the nose and both cheeks.
    above, below = (top + share * (bottom - top) for share in (0.40, 0.50))
    painted = photo.pixels.copy()
    painted[round(above) : round(below), round(left) : round(right)] = (60, 40, 30)
    after = np.asarray(observe(fitted, dataclasses.replace(photo, pixels=painted), 128).weight)
    margin = 0.02 * (bottom - top)
    covered = (pixels[..., 1] > above + margin) & (pixels[..., 1] < below - margin) & (before > 0.5)
    bare = ((pixels[..., 1] < above - 4 * margin) | (pixels[..., 1] > below + 4 * margin)) & (before > 0.5)
    assert covered.sum() > 50 and after[covered].mean() < 0.2 * before[covered].mean()
    assert np.quantile(np.abs(after - before)[bare], 0.95) < 0.1
