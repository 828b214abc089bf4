"""One face in two topologies: there and back it is the same face."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_completion import NOWHERE, bare

from morphable.comparison import compare
from morphable.completion import complete
from morphable.mesh import triangulate
from morphable.registration import SurfaceSearch
from morphable.transfer import correspond, transfer


@pytest.fixture(scope="module")
def other(tiny):
    """The same heads on another grid of vertices: each of the tiny head's fields, resampled."""
    side, fine = 13, 17
    place = np.linspace(0, side - 1, fine)
    low = np.minimum(place.astype(int), side - 2)
    share = place - low

    def resample(values):
        grid = np.asarray(values, float).reshape(side, side, -1)
        rows = grid[low] * (1 - share)[:, None, None] + grid[low + 1] * share[:, None, None]
        both = rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]
        return both.reshape(fine * fine, *np.shape(values)[1:])

    index = np.arange(fine * fine).reshape(fine, fine)
    quads = np.stack([index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]], axis=-1).reshape(-1, 4)
    contents = bare(
        tiny,
        mean=resample(tiny.mean),
        identity=resample(tiny.shape.modes),
        triangles=triangulate(quads),
        expression=resample(tiny.expression),
        expression_names=tiny.expression_names,
        uv=resample(tiny.uv),
    )
    return complete(contents, NOWHERE, tiny)


@pytest.fixture(scope="module")
def there(tiny, other):
    return correspond(tiny, other)


def face(model):
    identity = jnp.array([1.0, -1.0, 0.5, 0.0, 0.8, -0.3])
    weights = model.weights(mouthSmileLeft=0.6)
    return np.asarray(model.neutral(identity)), np.asarray(model.neutral(identity) + model.expression @ weights)


def test_a_face_lies_on_the_same_surface_and_says_its_coefficients(tiny, there):
    neutral, smiling = face(tiny)
    moved = transfer(there, smiling, neutral)
    assert np.median(moved.surface_error) < 0.3 and there.matched.mean() > 0.6
    # On grids of 10 mm correspondence is good to a part of that; the face that the coefficients say is the same.
    assert np.corrcoef(moved.identity, [1.0, -1.0, 0.5, 0.0, 0.8, -0.3])[0, 1] > 0.8
    np.testing.assert_allclose(moved.expression, [0, 0, 0.6, 0], atol=0.1)
    assert np.median(moved.model_error) < 1.0


def test_there_and_back_is_the_same_face(tiny, other, there):
    neutral, _ = face(tiny)
    moved = transfer(there, neutral)
    assert not moved.expression.any()
    again = transfer(correspond(other, tiny), moved.motion.inverse()(moved.vertices))
    back = moved.motion(again.vertices)
    original = SurfaceSearch(neutral, np.asarray(tiny.triangles))
    assert np.median(original.closest(back[again.matched]).distance) < 0.8  # of 6 mm between this face and the mean


def test_a_rigid_motion_of_the_face_moves_the_result_and_leaves_the_coefficients(tiny, there):
    neutral, _ = face(tiny)
    first, second = transfer(there, neutral), transfer(there, neutral + [10.0, 20.0, -5.0])
    np.testing.assert_allclose(
        second.vertices - first.vertices, np.tile([10.0, 20, -5], (len(first.vertices), 1)), atol=0.05
    )
    np.testing.assert_allclose(second.identity, first.identity, atol=1e-3)


def test_a_face_of_another_model_is_refused(there):
    with pytest.raises(ValueError, match="fitted with another model"):
        transfer(there, np.zeros((7, 3)))


def test_comparison_finds_the_same_people(tiny, other):
    found = compare(tiny, other, people=3)
    assert not found.same_topology and found.only_first == () and found.shared_units == tiny.expression_names
    assert np.median(found.mean_distance) < 0.5 and abs(found.scale - 1) < 0.01
    assert found.explained.mean() < found.baseline.mean() / 2
    assert "random people" in str(found)
