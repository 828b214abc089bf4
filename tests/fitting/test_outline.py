"""Laws of outlines: they are where heads end in rendered pictures, say how sure they are, and draw faces there."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fitting.detection import Face
from fitting.fit import Fitter, Settings
from fitting.observation import Photo
from fitting.outline import POINTS, OutlineModel, outline_model
from fitting.parameters import retract
from morphable.colour import linear_to_srgb
from renderer.camera import Pinhole
from renderer.light import ambient_white
from renderer.render import render

SIZE, FOCAL = 256, 720.0
USED = 150  # rows of the picture, where a part is masked


@pytest.fixture(scope="module")
def fitter(head) -> Fitter:
    return Fitter(head, Settings(skin_blocks=1))


@pytest.fixture(scope="module")
def model(fitter) -> OutlineModel:
    return fitter.outlines


@pytest.fixture(scope="module")
def seen(head, fitter):
    """The problem and the true face of a head that is turned by so many degrees, over a wall of some brightness."""

    def make(turn: float, wall: float = 0.15, mask=None):
        turned = np.diag([1.0, -1.0, -1.0]) @ Rotation.from_euler("y", -turn, degrees=True).as_matrix()
        lens = np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])
        camera = Pinhole.from_opencv(lens, turned, np.array([0.0, 20.0, 900.0]), SIZE, SIZE)
        identity = jnp.zeros(head.shape.rank).at[:6].set(jnp.array([1.0, -0.8, 0.6, 0.5, -0.5, 0.4]))
        mesh = head.instance(identity)
        image = render(mesh, camera, 0.8 * ambient_white().at[1].add(-0.5))
        behind = wall * (1 + 0.3 * np.sin(np.arange(SIZE) / 25.0))[:, None, None]
        linear = np.asarray(image.colour) + (1 - np.asarray(image.coverage)[..., None]) * behind
        noise = np.random.default_rng(0).normal(0, 2.0, linear.shape)
        pixels = 255 * np.asarray(linear_to_srgb(jnp.asarray(np.clip(linear, 0, 1)))) + noise
        face = Face.from_landmarks(np.asarray(camera.project(head.landmarks(mesh.vertices)), float))
        problem, start, box = fitter.problem(Photo(np.clip(pixels, 0, 255).astype(np.uint8)), face, mask=mask)
        log_focal = jnp.float32(np.log(FOCAL * SIZE / box[2]))
        return problem, dataclasses.replace(start, identity=identity, pose=camera.pose, log_focal=log_focal)

    return make


@pytest.fixture(scope="module")
def turned(seen):
    return seen(50.0)


def moved(face, x: float = 0.0, y: float = 0.0):
    """The head elsewhere in the picture, mm."""
    place = face.pose.translation() + jnp.array([x, y, 0.0])
    return dataclasses.replace(
        face, pose=jaxlie.SE3.from_rotation_and_translation(face.pose.rotation(), place.astype(jnp.float32))
    )


@pytest.mark.parametrize("wall", [0.02, 0.15, 0.9])
@pytest.mark.parametrize("turn", [-50.0, 50.0])
def test_a_head_ends_where_it_was_drawn(model, seen, turn, wall):
    outline = model.outline(*seen(turn, wall))
    assert len(outline.share) == POINTS
    assert outline.meets > 0.8
    assert np.median(np.abs(outline.offset_px)) < 0.8


def test_a_shifted_head_is_told_how_far(model, turned):
    problem, face = turned
    there = np.array([5.0, 0.0])  # mm
    outline = model.outline(problem, moved(face, *there))
    expected = -(outline.normal @ there) / outline.mm_per_px
    sure = outline.unsure_px < 1.0
    assert sure.mean() > 0.6
    assert np.median(np.abs(outline.offset_px - expected)[sure]) < 1.0
    assert outline.meets < 0.5


def test_far_from_the_head_nothing_is_met(model, turned):
    problem, face = turned
    assert model.outline(problem, moved(face, 35.0, 10.0)).meets < 0.35


def test_what_is_masked_says_nothing(model, seen, turned):
    shown = model.outline(*turned)
    low = np.zeros((SIZE, SIZE), bool)
    low[:USED] = True  # mouth and chin may not be used
    problem, face = seen(50.0, mask=low)
    outline = model.outline(problem, face)
    np.testing.assert_allclose(outline.pixels, shown.pixels, atol=1e-3)
    zoom = float(jnp.exp(face.log_focal)) / FOCAL
    # In the photo's pixels; what lies within reach of the border may see a part of the other half.
    row = (outline.pixels[:, 1] - float(problem.centre[1])) / zoom + SIZE / 2
    below, above = row > USED + 12, row < USED - 12
    assert below.sum() > 10 and above.sum() > 10
    assert (outline.unsure_px[below] > 3.0).all()
    assert np.median(outline.unsure_px[above]) < 1.0
    sigma = np.asarray(model.term(problem, outline).sigma_px)
    assert np.isinf(sigma[: len(below)][below]).all()


def test_a_head_seen_from_the_front_has_no_outline_of_its_own(model, seen):
    problem, face = seen(3.0)
    outline = model.outline(problem, face)
    assert len(outline.share) == 0 and outline.meets == 0.0
    for term in (model.term(problem, outline), model.term(problem, None)):
        assert float(term.energy(moved(face, 20.0))) == 0.0


def test_the_term_draws_a_head_back(model, turned):
    problem, face = turned
    away = moved(face, 4.0, -3.0)
    term = model.term(problem, model.outline(problem, away), sigma_mm=1.0)
    pose, nearer = face.layout.block("pose"), away
    # Across the picture alone: an outline says little of depth.
    place = np.arange(pose.start, pose.stop)[:3]
    for _ in range(4):
        here = term.linearise(nearer)
        part = np.asarray(here.hessian)[np.ix_(place, place)] + 1e-3 * np.eye(3)
        step = np.zeros(face.layout.size, np.float32)
        step[place] = -np.linalg.solve(part, np.asarray(here.gradient)[place])
        nearer = retract(nearer, jnp.asarray(step))
    assert float(term.energy(nearer)) < 0.35 * float(term.energy(away))
    left = np.asarray(nearer.pose.translation() - face.pose.translation())[:2]
    assert np.linalg.norm(left) < 0.3 * 5.0


def test_derivatives_are_those_of_the_energy(model, turned):
    problem, face = turned
    away = moved(face, 3.0, 2.0)
    term = model.term(problem, model.outline(problem, away))
    direction = jnp.asarray(np.random.default_rng(1).normal(size=face.layout.size), jnp.float32) * 0.02
    energy = jax.jit(lambda t: term.energy(retract(away, t * direction)))
    numeric = (float(energy(0.5)) - float(energy(-0.5))) / 1.0
    analytic = float(term.linearise(away).gradient @ direction)
    assert analytic == pytest.approx(numeric, rel=0.03)


def test_any_model_has_outlines(tiny):
    small = outline_model(tiny)
    assert small.modes.shape == (len(small.mean), 3, tiny.shape.rank + len(tiny.expression_names))
    assert len(small.edges) > 0 and small.edges.max() < len(small.mean)
    assert (small.edges[:, 0] < small.edges[:, 1]).all()
