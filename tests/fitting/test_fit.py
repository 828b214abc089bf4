"""A fit end to end on the default head: it recovers what it was drawn from, and answers to its input alone."""

import dataclasses

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from helpers import quickly
from PIL import Image
from test_detection import MIRROR

from fitting.detection import Face, LandmarkNoise
from fitting.energies import INNER_LIPS, BlockPrior, relative_term
from fitting.fit import Fitter
from fitting.landmark_start import LandmarkFitError
from fitting.observation import Photo
from fitting.schedule import coarse_to_fine
from fitting.solvers import LevenbergMarquardt
from fitting.terms import linearise_all
from morphable.colour import linear_to_srgb
from renderer.camera import Pinhole
from renderer.light import ambient_white, sh_basis
from renderer.render import render

INNER = slice(17, 68)


def aligned_error(vertices, truth, chosen) -> float:
    """Mean distance in mm over the chosen vertices after the best rotation, translation and scale."""
    a, b = np.asarray(vertices, float)[chosen], np.asarray(truth, float)[chosen]
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    u, s, vt = np.linalg.svd(a.T @ b)
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    moved = a @ u @ sign @ vt * (np.trace(np.diag(s) @ sign) / (a**2).sum())
    return float(np.linalg.norm(moved - b, axis=1).mean())


def distance(a, b) -> np.ndarray:
    return np.linalg.norm(np.asarray(a) - np.asarray(b), axis=-1)


# ------------------------------------------------------------------------------------------ a head that was drawn


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture and what it was drawn from."""

    photo: Photo
    landmarks: np.ndarray
    vertices: np.ndarray


SIZE, BACKGROUND = 400, 0.2


@pytest.fixture(scope="module", params=[(0, -0.3), (1, 0.25), (2, 0.0)], ids=["left", "right", "front"])
def drawn(request, head) -> Drawn:
    seed, yaw = request.param
    rng = np.random.default_rng(seed)
    identity = jnp.asarray(rng.normal(size=head.shape.rank), jnp.float32)
    albedo = jnp.asarray(rng.normal(size=head.albedo.rank), jnp.float32)
    expression = head.weights(jawOpen=0.25, mouthSmileLeft=0.5, mouthSmileRight=0.4, browInnerUp=0.4)
    facing = jaxlie.SO3.from_matrix(jnp.diag(jnp.array([1.0, -1.0, -1.0])))
    rotation = facing @ jaxlie.SO3.exp(jnp.array([0.08, yaw, 0.05]))
    pose = jaxlie.SE3.from_rotation_and_translation(rotation, jnp.array([10.0, 15.0, 900.0]))
    camera = Pinhole(jnp.array([1100.0, 1100.0]), jnp.array([SIZE / 2, SIZE / 2]), pose, SIZE, SIZE)
    towards = np.array([0.6, -0.4, -0.7]) / np.linalg.norm([0.6, -0.4, -0.7])
    lamp = sh_basis(jnp.asarray(towards, jnp.float32))[:, None] * jnp.array([1.1, 1.0, 0.9])
    light = 0.6 * ambient_white() + 1.5 * lamp
    mesh = head.instance(identity, expression, albedo)
    picture = render(mesh, camera, light, samples=2)
    linear = np.asarray(picture.over(jnp.full((SIZE, SIZE, 3), BACKGROUND)))
    pixels = np.rint(255 * np.asarray(linear_to_srgb(jnp.clip(linear, 0, 1)))).astype(np.uint8)
    landmarks = np.asarray(camera.project(head.landmarks(mesh.vertices)))
    return Drawn(Photo(pixels), landmarks, np.asarray(mesh.vertices))


def test_a_drawn_head_is_recovered(fitter, head, drawn):
    face = Face.from_landmarks(drawn.landmarks.astype(float), drawn.photo, LandmarkNoise(2.0, 2.0))
    fit = fitter.fit(drawn.photo, face)
    assert fit.result != "failed"
    error = distance(fit.matched2d, drawn.landmarks)
    # px, of a face of 170; the jaw points of a turned head are taken for its outline, which here they are not.
    assert np.median(error) < 1.4 and np.median(error[INNER]) < 1.2
    skin = np.asarray(head.masks["face"]) > 0.5
    shape = aligned_error(fit.vertices, drawn.vertices, skin)
    assert shape < 0.62 * aligned_error(head.mean, drawn.vertices, skin)
    without_photo = fitter.fit(drawn.photo, face, stages=coarse_to_fine()[:2])
    assert shape < 1.02 * aligned_error(without_photo.vertices, drawn.vertices, skin)
    # Albedo and light by themselves can be exchanged for each other; their product is what was seen.
    picture = render(fit.mesh, fit.camera, jnp.asarray(fit.light), samples=2)
    again = np.asarray(linear_to_srgb(jnp.clip(picture.over(jnp.full((SIZE, SIZE, 3), BACKGROUND)), 0, 1)))
    (x0, y0), (x1, y1) = drawn.landmarks.min(axis=0).astype(int), drawn.landmarks.max(axis=0).astype(int)
    error = np.abs(again - drawn.photo.srgb)[y0:y1, x0:x1]
    assert np.median(error) < 0.012 and error.mean() < 0.022


# ------------------------------------------------------------------------------------------------ the bundled photo


def test_the_bundled_photo_shows_a_plausible_smile(fitted, head):
    assert fitted.result == "converged" and fitted.reason == ""
    mm_per_px = float(fitted.camera.pose.translation()[2] / fitted.camera.focal[0])
    error = distance(fitted.landmarks2d, fitted.detected)[INNER] * mm_per_px
    assert np.median(error) < 2 and error.max() < 10
    # c ~ N(0, I): a person lies about sqrt(rank) from the mean, a fit, which is drawn to it, nearer.
    assert 1 < np.linalg.norm(fitted.identity) < np.sqrt(head.shape.rank)
    assert 0.5 < np.linalg.norm(fitted.albedo) < np.sqrt(head.albedo.rank)
    gap = lambda points: float(points[62, 1] - points[66, 1])  # noqa: E731, mm between the inner lips
    assert gap(fitted.landmarks3d) > 4 and abs(gap(fitted.neutral_landmarks3d)) < 1.5  # she smiles and shows her teeth
    smile = [head.unit("mouthSmileLeft"), head.unit("mouthSmileRight")]
    assert (fitted.expression[smile] > 0.2).all()


def test_size_of_the_photo_does_not_matter(fitter, photo, face, fitted):
    large = Image.fromarray(photo.pixels).resize((1024, 1024), Image.Resampling.BICUBIC)
    doubled = dataclasses.replace(face, landmarks=2 * face.landmarks)
    again = fitter.fit(Photo(np.asarray(large)), doubled)
    error = distance(again.vertices, fitted.vertices)
    assert error.mean() < 0.1 and error.max() < 0.5  # mm
    np.testing.assert_allclose(again.camera.focal, 2 * fitted.camera.focal, rtol=0.005)
    assert distance(again.landmarks2d / 2, fitted.landmarks2d).max() < 0.1


def test_a_mirrored_photo_gives_the_mirrored_head(head, fitter, photo, face, fitted):
    mirror, flip = np.asarray(head.mirror), np.array([-1, 1, 1])
    points = (face.landmarks * [-1, 1] + [photo.width, 0])[MIRROR]
    turned = Photo(np.ascontiguousarray(photo.pixels[:, ::-1]))
    again = fitter.fit(turned, dataclasses.replace(face, landmarks=points))
    error = distance(again.vertices[mirror] * flip, fitted.vertices)
    asymmetry = distance(fitted.vertices[mirror] * flip, fitted.vertices)
    assert error.max() < 0.01 and asymmetry.mean() > 0.2  # mm


# ---------------------------------------------------------------------------------------------- hidden observations


def test_what_is_masked_has_no_influence(fitter, photo, face, fitted):
    mask = np.ones(photo.pixels.shape[:2], bool)
    mask[:, 222:] = False
    painted = photo.pixels.copy()
    # Resampling mixes pixels across the border of the mask, and only there.
    painted[:, 226:] = np.random.default_rng(0).integers(0, 256, painted[:, 226:].shape)
    one, two = (fitter.fit(Photo(p), face, mask=mask) for p in (photo.pixels, painted))
    np.testing.assert_array_equal(one.vertices, two.vertices)
    np.testing.assert_array_equal(one.light, two.light)
    assert distance(fitter.fit(Photo(painted), face).vertices, fitted.vertices).mean() > 0.3  # mm; without the mask


def test_hidden_landmarks_have_no_influence(fitter, photo, face, fitted):
    hidden = np.array([3, 8, 20, 40, 45, 60])
    some = face.landmarks.copy()
    some[hidden] = np.nan
    one = fitter.fit(photo, dataclasses.replace(face, landmarks=some))
    half = face.landmarks.copy()
    half[hidden, 0] = np.nan  # y is known, x is not: as good as hidden
    half[hidden, 1] += 100
    two = fitter.fit(photo, dataclasses.replace(face, landmarks=half))
    np.testing.assert_array_equal(one.vertices, two.vertices)
    assert distance(one.vertices, fitted.vertices).mean() > 0.05  # mm; they did matter


@pytest.mark.parametrize("count", [0, 3, 5])
def test_too_few_landmarks_are_refused(fitter, photo, face, count):
    points = np.full((68, 2), np.nan)
    points[30 : 30 + count] = face.landmarks[30 : 30 + count]
    with pytest.raises(LandmarkFitError, match=f"got {count} finite landmarks, expected at least 6 .*--landmarks"):
        fitter.fit(photo, dataclasses.replace(face, landmarks=points))


# ----------------------------------------------------------------------------------------------------------- plans


def test_a_plan_can_be_stopped_and_resumed(fitter, photo, face, fitted):
    plan = coarse_to_fine()
    first = fitter.fit(photo, face, stages=plan[:2])
    rest = fitter.fit(photo, face, stages=plan[2:], start=first.parameters)
    assert distance(first.vertices, fitted.vertices).mean() > 0.1
    np.testing.assert_allclose(rest.vertices, fitted.vertices, atol=1e-3)
    assert rest.stages[-1]["steps"] == fitted.stages[-1]["steps"]


def test_added_terms_pull_and_can_be_left_out(fitter, photo, face, fitted):
    """The lips, told to stay closed by a term of one's own."""
    closed = lambda problem: {  # noqa: E731
        "lips": relative_term(
            problem.model.landmarks, jnp.zeros_like(problem.points_px), INNER_LIPS, 0.2, problem.centre
        )
    }
    plan = coarse_to_fine()[:2]
    gap = lambda fit: distance(fit.landmarks2d[61:64], fit.landmarks2d[[67, 66, 65]]).mean()  # noqa: E731
    free, shut = fitter.fit(photo, face, plan), fitter.fit(photo, face, plan, terms=closed)
    assert gap(shut) < 0.5 * gap(free)
    assert shut.energies["lips"] > 0 and "lips" not in free.energies
    without = tuple(dataclasses.replace(stage, without=(*stage.without, "lips")) for stage in plan)
    np.testing.assert_allclose(
        fitter.fit(photo, face, without, terms=closed).landmarks2d, free.landmarks2d, atol=0.05 * gap(free)
    )


def test_the_terms_of_a_fit_are_at_their_minimum(fitted):
    terms = fitted.terms()
    model, values = quickly(linearise_all)(terms, fitted.parameters)
    assert dict(zip(sorted(terms), values.tolist(), strict=True)) == pytest.approx(fitted.energies, rel=0.05, abs=0.1)
    size = np.sqrt(np.diag(np.asarray(model.hessian)) + 1e-12)
    moved = np.asarray(fitted.stage.row(fitted.problem).free) > 0
    inside = np.ones(len(moved), bool)
    inside[fitted.parameters.layout.block("expression")] = (fitted.expression > 0) & (fitted.expression < 1)
    # In standard deviations: what is left to gain along any one unknown is a small part of the energy.
    assert np.abs(np.asarray(model.gradient) / size)[moved & inside].max() < 1.0


def test_plans_that_cannot_run_are_refused_before_they_start(fitter, photo, face):
    wrong = dataclasses.replace(coarse_to_fine()[1], without=("photometry",))
    with pytest.raises(ValueError, match=r"'landmarks': got without='photometry', expected one of .*photometric"):
        fitter.fit(photo, face, (wrong,))
    deep = dataclasses.replace(coarse_to_fine()[3], level=7)
    with pytest.raises(ValueError, match=r"got level 7, expected 0..1.*blur_px"):
        fitter.fit(photo, face, (deep,))
    silent = dataclasses.replace(coarse_to_fine()[3], noise=0.0)
    with pytest.raises(ValueError, match=r"got noise=0.0, expected a positive factor"):
        fitter.fit(photo, face, (silent,))


def test_an_energy_that_is_not_finite_is_reported(fitter, photo, face):
    fit = fitter.fit(photo, face, focal_px=float("inf"))
    assert (fit.result, fit.reason) == ("failed", "the energy is not finite")
    assert len(fit.stages) == 1  # nothing is built on it


def test_landmarks_that_move_with_their_box_are_not_declared_a_success(fitter, photo, face, fitted):
    assert fitted.result != "failed"
    fit = fitter.fit(photo, dataclasses.replace(face, spread=0.06), stages=coarse_to_fine()[:2])
    assert fit.result == "failed" and "6.0 %" in fit.reason and "energy" in fit.reason


def test_other_starts_are_kept_only_where_their_energy_is_less(head, fitter, photo, face):
    wrong = face.landmarks.copy()
    at = np.random.default_rng(0).choice(68, 12, replace=False)
    wrong[at] += 600.0
    plan = coarse_to_fine()[:2]
    never = Fitter(head, dataclasses.replace(fitter.settings, restart_energy=np.inf))
    given = dataclasses.replace(face, landmarks=wrong)
    once, several = never.fit(photo, given, stages=plan), fitter.fit(photo, given, stages=plan)
    assert len(once.stages) == 2
    assert sum(several.energies.values()) <= sum(once.energies.values())


def test_an_empty_plan_is_refused(fitter, photo, face):
    with pytest.raises(ValueError, match=r"empty plan, expected at least one stage.*coarse_to_fine"):
        fitter.fit(photo, face, stages=())


def test_a_stage_with_a_solver_and_terms_of_its_own_can_be_restarted(fitter, photo, face):
    wrong = face.landmarks.copy()
    wrong[np.random.default_rng(0).choice(68, 12, replace=False)] += 600.0
    pose, landmarks = coarse_to_fine()[:2]
    own = dataclasses.replace(landmarks, solver=LevenbergMarquardt(steps=8), without=("photometric", "jaw"))
    fit = fitter.fit(photo, dataclasses.replace(face, landmarks=wrong), stages=(pose, own))
    assert [stage["name"] for stage in fit.stages] == ["pose", "landmarks", "other starts"]
    before, after = (sum(stage["energies"].values()) for stage in fit.stages[1:])
    assert after < before and fit.energies["jaw"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"segments": 0.0}, "'photo, fine': got segments=0.0, expected a positive deviation"),
        ({"steps": 48}, r"'photo, fine': got 48 steps, expected 0..47.*solver=LevenbergMarquardt\(steps=48\)"),
        ({"free": ("nose",)}, "unknown parameter block 'nose'"),
    ],
)
def test_a_mistake_in_the_last_stage_shows_before_the_first_has_run(fitter, photo, face, change, said):
    *others, last = coarse_to_fine()
    ran = []
    with pytest.raises(ValueError, match=said):
        fitter.fit(
            photo, face, (*others, dataclasses.replace(last, **change)), progress=lambda stage, *_: ran.append(stage)
        )
    assert ran == []


def test_segments_come_last(fitter, photo, face):
    whole = coarse_to_fine()[0]
    alone = dataclasses.replace(whole, segments=0.25)
    with pytest.raises(ValueError, match="segments alone, expected a stage of the whole face"):
        fitter.fit(photo, face, (alone,))
    with pytest.raises(ValueError, match="after one of segments.*Put segments last"):
        fitter.fit(photo, face, (whole, alone, whole))


def test_a_stage_with_its_own_solver_takes_its_own_number_of_steps(fitter, photo, face):
    problem, *_ = fitter.problem(photo, face)
    own = dataclasses.replace(coarse_to_fine()[1], steps=100, solver=LevenbergMarquardt(steps=100))
    own.row(problem)
    with pytest.raises(ValueError, match="got 100 steps"):  # segments know no solver but the compiled one
        dataclasses.replace(own, segments=0.25).row(problem)


def test_hidden_landmarks_have_no_place(fitter, photo, face):
    points = face.landmarks.copy()
    points[61] = np.nan
    problem, *_ = fitter.problem(photo, dataclasses.replace(face, landmarks=points))
    np.testing.assert_array_equal(np.isnan(problem.visible_px).all(axis=1), np.arange(68) == 61)
    np.testing.assert_array_equal(np.delete(problem.visible_px, 61, axis=0), np.delete(problem.points_px, 61, axis=0))
    term = relative_term(problem.model.landmarks, problem.visible_px, INNER_LIPS, 0.2, problem.centre)
    assert np.isinf(term.sigma_px).tolist() == [61 in pair for pair in INNER_LIPS]


def test_a_term_cannot_take_the_name_of_another(fitter, photo, face):
    prior = BlockPrior("identity", jnp.zeros(1), jnp.ones(1))
    with pytest.raises(ValueError, match="got a term named 'identity', which every fit has.*Rename"):
        fitter.fit(photo, face, terms={"identity": prior})
