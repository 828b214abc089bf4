"""What a fit finds of the truth of synthetic photos: at most a quarter worse than `benchmarks recovery` measured."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.recovery import NOISE, photos, recover, summary  # noqa: E402

COUNT, SIZE = 50, 320

# Figure: measured with exact points and a perfect camera; with noise on the points, sensor noise, blur and JPEG.
AT_MOST = {
    "neutral face, mm, rigid": (2.78, 3.25),
    "neutral face, mm, scaled": (2, 2.36),
    "rotation, degrees": (2.53, 3.08),
    "focal length, |log ratio|": (0.363, 0.384),
    "distance, |log ratio|": (0.342, 0.358),
    "focal length over distance, |log ratio|": (0.039, 0.047),
    "shading, relative error": (0.294, 0.3),
    "shading up to gain, relative error": (0.068, 0.073),
    "albedo x shading, relative error": (0.098, 0.103),
    "expression, mean absolute error": (0.048, 0.064),
    "expression, mm": (0.79, 1.02),
}
AT_LEAST = {
    "identity, correlation": (0.455, 0.382),
    "identity, correlation of the first 10": (0.695, 0.604),
    "albedo, correlation": (0.411, 0.391),
    "focal length, correlation of logarithms": (0.761, 0.693),
    "light, correlation": (0.859, 0.852),
    "light without the ambient band, correlation": (0.749, 0.738),
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
def condition(request, head, fitter) -> tuple[int, dict[str, float]]:
    """Which condition, and its figures."""
    noisy = request.param
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
