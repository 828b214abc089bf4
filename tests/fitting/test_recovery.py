"""What a fit finds of the truth of synthetic photos: at most a quarter worse than `benchmarks recovery` measured."""

import sys
from pathlib import Path

import pytest

from fitting.fit import Fitter

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.recovery import NOISE, photos, recover, summary  # noqa: E402

COUNT, SIZE = 50, 320

# Figure: measured with exact points and a perfect camera; with noise on the points, sensor noise, blur and JPEG.
AT_MOST = {
    "neutral face, mm, rigid": (3.10, 3.53),
    "neutral face, mm, scaled": (2.39, 2.69),
    "rotation, degrees": (5.00, 5.12),
    "focal length, |log ratio|": (0.383, 0.382),
    "distance, |log ratio|": (0.370, 0.365),
    "focal length over distance, |log ratio|": (0.039, 0.044),
    "shading, relative error": (0.300, 0.296),
    "shading up to gain, relative error": (0.073, 0.078),
    "albedo x shading, relative error": (0.102, 0.108),
    "expression, mean absolute error": (0.062, 0.076),
    "expression, mm": (0.96, 1.11),
}
AT_LEAST = {
    "identity, correlation": (0.405, 0.356),
    "identity, correlation of the first 10": (0.551, 0.500),
    "albedo, correlation": (0.400, 0.370),
    "focal length, correlation of logarithms": (0.614, 0.664),
    "light, correlation": (0.840, 0.837),
    "light without the ambient band, correlation": (0.716, 0.712),
}
# Figure, that of knowing nothing, and the largest share of it.
BELOW = (
    ("neutral face, mm, rigid", "  mean face", 0.9),
    ("neutral face, mm, scaled", "  mean face, scaled", 0.85),
    ("focal length, |log ratio|", "  the prior's", 0.9),
    ("shading up to gain, relative error", "  white ambient light, up to gain", 0.5),
    ("expression, mm", "  no expression, mm", 0.75),
)


@pytest.fixture(scope="module", params=[0, 1], ids=["exact", "noisy"])
def condition(request, head) -> tuple[int, dict[str, float]]:
    """Which condition, and its figures."""
    noisy, fitter = request.param, Fitter(head)
    album = photos(head, COUNT, SIZE, "real" if noisy else "perfect")
    return noisy, summary([recover(fitter, photo, noisy * NOISE, seed) for seed, photo in enumerate(album)])


def test_parameters_are_recovered(condition):
    noisy, found = condition
    worse = {name: found[name] for name, measured in AT_MOST.items() if found[name] > 1.25 * measured[noisy]}
    worse |= {name: found[name] for name, measured in AT_LEAST.items() if found[name] < 0.8 * measured[noisy]}
    assert not worse


def test_a_fit_knows_more_than_nothing(condition):
    _, found = condition
    assert found["failed"] == 0
    not_better = {name: found[name] for name, blind, share in BELOW if found[name] > share * found[blind]}
    assert not not_better
