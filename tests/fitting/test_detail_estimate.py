"""What detail does for a fit, end to end: the default model, its shipped network, photos that nobody trained on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fitting.detail_checkpoint import load_network
from fitting.detail_estimate import DetailEstimateError, estimate_detail
from fitting.detail_examples import PORTRAITS, Example, example
from fitting.detail_losses import slopes, turn_loss
from fitting.detail_network import DetailNetwork
from fitting.synthesis import SyntheticPhoto, synthesize
from morphable.detail import LIMIT_MM

# The training's are below these.
SEEDS = (7_000_000, 7_000_003)


@pytest.fixture(scope="module")
def network(head) -> DetailNetwork:
    return load_network(None, head)


@pytest.fixture(scope="module")
def shown(head) -> list[SyntheticPhoto]:
    return [synthesize(head, seed, PORTRAITS) for seed in SEEDS]


@pytest.fixture(scope="module")
def fits(fitter, shown):
    return [fitter.fit(one.photo, one.as_face(1.5, k)) for k, one in enumerate(shown)]


def error(displacement, seen: Example) -> float:
    """Mean angle from the true normals, radians."""
    single = [jnp.asarray(x, jnp.float32) for x in (seen.turn, seen.frame, seen.maps[..., 6])]
    return float(turn_loss(jnp.asarray(displacement), *single))


def test_a_true_fit_has_only_the_relief_to_find(shown, fits):
    true = dataclasses.replace(
        fits[0],
        camera=shown[0].camera,
        **{name: np.asarray(getattr(shown[0].truth, name)) for name in ("identity", "expression", "albedo", "light")},
    )
    seen = example(true, shown[0].photo, 256, synthetic=shown[0])
    known = (seen.turn[..., 2] > 0) & (seen.maps[..., 6] > 0.5)
    assert known.sum() > 3000
    relief = np.asarray(slopes(jnp.asarray(seen.truth, jnp.float32), jnp.asarray(seen.frame, jnp.float32)))[known]
    turn = seen.turn[known][:, :2].astype(float)
    assert np.corrcoef(relief.ravel(), turn.ravel())[0, 1] > 0.97
    assert np.linalg.norm(turn - relief, axis=1).mean() < 0.2 * np.linalg.norm(turn, axis=1).mean()
    # One that is off has more to find than the relief.
    off = example(fits[0], shown[0].photo, 256, synthetic=shown[0])
    assert error(np.zeros((256, 256)), off) > 1.1 * error(np.zeros((256, 256)), seen)


def test_the_shipped_network_brings_normals_nearer_to_the_truth(shown, fits, network):
    before, after = [], []
    for one, fit in zip(shown, fits, strict=True):
        detail = estimate_detail([fit], [one.photo], "network", network=network)
        assert detail.displacement.shape == (256, 256) and np.abs(detail.displacement).max() < LIMIT_MM
        seen = example(fit, one.photo, 256, synthetic=one)
        before.append(error(np.zeros((256, 256)), seen))
        after.append(error(detail.displacement, seen))
    assert np.mean(after) < 0.95 * np.mean(before)


def test_what_does_not_fit_together_is_refused(shown, fits, network):
    photo, fit = shown[0].photo, fits[0]
    with pytest.raises(DetailEstimateError, match="1 fits, 2 photos"):
        estimate_detail([fit], [photo, photo], "network", network=network)
    with pytest.raises(DetailEstimateError, match="load_network"):
        estimate_detail([fit], [photo], "network")
    with pytest.raises(DetailEstimateError, match="refine for the method 'optimise'"):
        estimate_detail([fit], [photo], "optimise", refine=True)
    with pytest.raises(DetailEstimateError, match="got size 128, expected 256"):
        estimate_detail([fit], [photo], "network", network=network, size=128)
    other = DetailNetwork(jax.random.key(0), names=("a", "b"), widths=(4,) * 5)
    with pytest.raises(DetailEstimateError, match="other expression units"):
        estimate_detail([fit], [photo], "network", network=other)
