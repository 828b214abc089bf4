"""Registration: known heads are found with and without landmarks; nonsense is refused with a remedy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from morphable.mesh import Mesh
from morphable.registration import RegistrationError, Similarity, Template, carry, register, surface_map


def divided(vertices, triangles):
    """Every triangle into four, by its edges' middles."""
    edges = np.sort(np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)]), axis=1)
    unique, inverse = np.unique(edges, axis=0, return_inverse=True)
    ab, bc, ca = inverse.reshape(3, -1) + len(vertices)
    a, b, c = triangles.T
    four = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([vertices, vertices[unique].mean(axis=1)]), np.concatenate([np.stack(t, 1) for t in four])


def marks_on(model, vertices):
    weights = np.asarray(model.landmarks.weights, float)
    return np.einsum("lk,lkc->lc", weights, vertices[np.asarray(model.landmarks.vertices)])


@pytest.fixture(scope="module")
def known(tiny):
    """A member of the model, cut finer, turned and in centimetres, and where its template vertices are."""
    head = np.asarray(tiny.neutral(jnp.asarray(np.random.default_rng(0).normal(size=6), jnp.float32)), float)
    motion = Similarity(0.1, Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix(), np.array([10.0, 20.0, -5.0]))
    target, triangles = divided(head, np.asarray(tiny.triangles))
    return motion(target), triangles, motion(head)


@pytest.mark.parametrize("prior", ["model", "kernel"])
def test_a_known_head_is_found_in_any_unit(tiny, known, prior):
    target, triangles, truth = known
    landmarks = marks_on(tiny, truth)
    landmarks[5:30:4] = np.nan
    found = register(Template.of(tiny, prior), (target, triangles), landmarks)
    error = 10 * np.linalg.norm(found.vertices - truth, axis=1)  # mm
    assert np.median(error) < (0.5 if prior == "model" else 1.0)
    assert np.nanmedian(found.distance) < 0.2
    assert found.matched.mean() > 0.7
    assert np.isnan(found.distance[~found.matched]).all()
    assert len(found.coefficients) == (6 if prior == "model" else 0)


def test_values_go_to_the_target_and_back(tiny, known):
    target, triangles, truth = known
    found = register(tiny, (target, triangles), marks_on(tiny, truth))
    there = carry(found, (target, triangles))
    np.testing.assert_allclose(there(found.vertices), target, atol=0.2)  # cm
    back = surface_map(found.vertices, target, triangles)
    np.testing.assert_allclose(back(target), found.vertices, atol=0.2)


def test_a_face_that_looks_along_z_needs_no_landmarks(tiny):
    mean = np.asarray(tiny.mean, float)
    turn = Rotation.from_rotvec([0.1, 0.0, 0.02]).as_matrix()
    truth = mean @ turn.T + [12.0, -30.0, 50.0]
    found = register(tiny, Mesh(jnp.asarray(truth, jnp.float32), tiny.triangles))
    assert found.similarity.scale == 1
    assert np.median(np.linalg.norm(found.vertices - truth, axis=1)) < 1


def test_a_start_replaces_landmarks(tiny, known):
    target, triangles, truth = known
    motion = Similarity(0.1, Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix(), np.array([10.0, 20.0, -5.0]))
    found = register(tiny, (target, triangles), start=motion)
    assert 10 * np.median(np.linalg.norm(found.vertices - truth, axis=1)) < 2


def test_nonsense_is_refused_with_a_remedy(tiny, known):
    target, triangles, truth = known
    marks = marks_on(tiny, truth)
    few = np.full((68, 3), np.nan)
    few[40:42] = marks[40:42]
    shuffled = marks[np.random.default_rng(0).permutation(68)]
    turned_over = triangles[:, ::-1]
    plank = np.array([[0.0, 0, 0], [900, 0, 0], [900, 5, 0], [0, 5, 0]])
    quad = np.array([[0, 1, 2], [0, 2, 3]])
    for surface, landmarks in (
        ((target, triangles), few),
        ((target, triangles), shuffled),
        ((target, triangles), marks[:51]),
        ((target, turned_over), marks),
        ((target[:5], triangles), marks),
        ((np.full_like(target, np.nan), triangles), marks),
        ((target, triangles[:0]), marks),
        ((plank, quad), None),
    ):
        with pytest.raises(RegistrationError, match="expected"):
            register(tiny, surface, landmarks)


def test_models_without_masks_and_parts_are_templates(tiny, known):
    target, triangles, truth = known
    bare = dataclasses.replace(tiny, masks={})
    found = register(bare, (target, triangles), marks_on(tiny, truth))
    assert 10 * np.median(np.linalg.norm(found.vertices - truth, axis=1)) < 1
