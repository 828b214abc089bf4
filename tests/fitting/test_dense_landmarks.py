"""Dense landmarks are fixed, distinct points of the surface in mirrored pairs, iBUG's first."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tree_equal
from scipy.spatial.distance import pdist, squareform

from fitting.dense_landmarks import COUNT, dense_landmarks

anew = dense_landmarks.__wrapped__  # pyright: ignore, past what is kept for each model


@pytest.fixture(scope="module")
def points(head):
    return dense_landmarks(head)


@pytest.fixture(scope="module")
def places(head, points):
    """Of the mean head."""
    return np.asarray(points.surface(head.mean), float)


def test_the_first_are_the_models(head, points, key):
    values = jax.random.normal(key, head.mean.shape)
    np.testing.assert_array_equal(points.surface(values)[:68], head.landmarks(values))
    # The rest are vertices, of those that coarser heads have, too.
    rows, weights = np.asarray(points.surface.vertices[68:]), np.asarray(points.surface.weights[68:])
    np.testing.assert_array_equal(weights, np.tile([1, 0, 0], (len(rows), 1)))
    assert points.count == len(points.surface.vertices) == COUNT
    assert rows.max() <= np.asarray(head.proxy_triangles).max()


def test_mirrored_points_are_mirror_images(points, places):
    mirror = np.asarray(points.mirror)
    np.testing.assert_array_equal(mirror[mirror], np.arange(COUNT))
    np.testing.assert_allclose(places[mirror] * [-1, 1, 1], places, atol=0.05)
    alone = mirror == np.arange(COUNT)
    assert alone.sum() < COUNT / 8 and np.abs(places[alone, 0]).max() < 0.5


def test_points_are_the_same_every_time(head, points):
    again = dataclasses.replace(head)
    assert again is not head
    assert tree_equal(anew(again), points)
    assert dense_landmarks(head) is points


def test_points_are_distinct_and_spread(head, points, places):
    apart = squareform(pdist(places)) + 1e3 * np.eye(COUNT)
    nearest = apart.min(axis=1)
    assert nearest.min() > 1
    # The face's own are nearer to each other than those of skull and neck; nothing is left out.
    face = np.asarray(head.masks["face"])[np.asarray(points.surface.vertices)[68:, 0]] > 0.5
    assert np.median(nearest[68:][face]) < 0.7 * np.median(nearest[68:][~face])
    skin = np.flatnonzero(
        (np.asarray(head.part_of_vertex) == head.part_names.index("skin"))
        & (np.asarray(head.masks["interior"]) < 0.5)
    )  # fmt: skip
    gap = np.min(np.linalg.norm(np.asarray(head.mean)[skin][:, None] - places[None], axis=2), axis=1)
    on_face = np.asarray(head.masks["face"])[skin] > 0.9
    assert gap[on_face].max() < 15 and gap.max() < 40
    assert not np.isin(places[68:, 0], np.nan).any()


def test_points_lie_on_skin_and_irises_alone(head, points):
    vertices = np.asarray(points.surface.vertices)[68:, 0]
    names = np.array(head.part_names)[np.asarray(head.part_of_vertex)[vertices]]
    eyes = np.char.startswith(names, "eye")
    assert set(names) == {"skin", "eye_left", "eye_right"} and eyes.sum() == 10
    assert (np.asarray(head.masks["interior"])[vertices[~eyes]] < 0.5).all()
    mean = np.asarray(head.mean)
    for eye in ("eye_left", "eye_right"):
        at = mean[vertices[names == eye]]
        ball = mean[np.asarray(head.part_of_vertex) == head.part_names.index(eye)]
        assert len(at) == 5 and at[:, 2].max() > ball[:, 2].max() - 0.5  # the front
        assert np.ptp(at[:, 0]) > 6 and np.ptp(at[:, 1]) > 6  # mm, of an iris
        assert (at[:, 2] > np.median(ball[:, 2])).all()


@pytest.mark.parametrize("count", [67, 0, -1])
def test_fewer_than_the_named_are_refused(tiny, count):
    with pytest.raises(ValueError, match=f"got count {count}, expected at least 68"):
        anew(tiny, count)


def test_models_without_eyes_and_masks_have_points(tiny):
    bare = dataclasses.replace(tiny, masks={}, part_names=())
    for model in (tiny, bare):
        points = anew(model, 100)
        mirror, rows = np.asarray(points.mirror), np.asarray(points.surface.vertices)[68:, 0]
        assert points.count == 100 and len(set(rows)) == 32
        np.testing.assert_array_equal(mirror[mirror], np.arange(100))
        places = np.asarray(points.surface(model.mean))[68:]
        np.testing.assert_allclose(places[mirror[68:] - 68] * [-1, 1, 1], places, atol=1e-3)
        np.testing.assert_array_equal(points.surface.vertices[:68], model.landmarks.vertices)


@pytest.mark.parametrize("count", [100, 200])
def test_no_point_is_half_a_pair(head, count):
    points = anew(head, count)
    places, mirror = np.asarray(points.surface(head.mean), float), np.asarray(points.mirror)
    np.testing.assert_array_equal(mirror[mirror], np.arange(count))
    np.testing.assert_allclose(places[mirror] * [-1, 1, 1], places, atol=0.05)


def test_small_models_have_fewer_points(tiny):
    points = anew(tiny, 400)
    rows, mirror = np.asarray(points.surface.vertices)[68:, 0], np.asarray(points.mirror)
    assert len(set(rows)) == len(rows) and len(rows) < len(tiny.mean)
    np.testing.assert_array_equal(mirror[mirror], np.arange(points.count))
    assert jnp.isfinite(points.surface(tiny.mean)).all()


def test_points_are_as_many_as_asked_for(head):
    for count in (68, 69, 75):
        points = anew(head, count)
        assert points.count == len(points.surface.vertices) == count
