"""Labels of rendered heads: what was painted over them is found, and nothing where nothing was painted."""

import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import fitting.occlusion as occlusion
from fitting.detection import Face
from fitting.fit import Fitter, Settings
from fitting.observation import Photo, crop
from fitting.occluders import paint_occluder
from fitting.occlusion import (
    LEAST_SHARE,
    Labels,
    OcclusionModel,
    SegmenterError,
    mediapipe_face_mask,
    occlusion_model,
)
from morphable.colour import linear_to_srgb
from renderer.camera import Pinhole
from renderer.light import ambient_white
from renderer.render import render

SIZE = 256


@pytest.fixture(scope="module")
def fitter(head) -> Fitter:
    return Fitter(head, Settings(skin_blocks=1))


@pytest.fixture(scope="module")
def model(head, fitter) -> OcclusionModel:
    return occlusion_model(head, fitter.solver_model)


@pytest.fixture(scope="module")
def bare(head):
    """A somewhat turned head under a lamp from the side, over a grey wall, and its landmarks."""
    turned = np.array([[0.97, 0.0, 0.24], [0.0, -1.0, 0.0], [0.24, 0.0, -0.97]])
    camera = Pinhole.from_opencv(
        np.array([[720.0, 0, SIZE / 2], [0, 720.0, SIZE / 2], [0, 0, 1]]),
        turned,
        np.array([0.0, 20.0, 900.0]),
        SIZE,
        SIZE,
    )
    identity = jnp.zeros(head.shape.rank).at[:6].set(jnp.array([1.0, -0.8, 0.6, 0.5, -0.5, 0.4]))
    mesh = head.instance(identity)
    light = 0.8 * ambient_white().at[1].add(-0.6).at[3].add(-0.7)
    image = render(mesh, camera, light)
    wall = 0.2 + 0.1 * np.linspace(0, 1, SIZE)[None, :, None]
    cover = np.asarray(image.coverage)[..., None]
    linear = np.clip(np.asarray(image.colour) + (1 - cover) * wall, 0, 1)
    noise = np.random.default_rng(0).normal(0, 1.5, linear.shape)
    pixels = np.clip(255 * np.asarray(linear_to_srgb(jnp.asarray(linear))) + noise, 0, 255).astype(np.uint8)
    landmarks = np.asarray(camera.project(head.landmarks(mesh.vertices)), float)
    return pixels, landmarks


def labelled(fitter, model, pixels, landmarks, mask=None):
    """Labels about the closed-form start, the problem, and the box of the crop."""
    problem, start, box = fitter.problem(Photo(pixels), Face.from_landmarks(landmarks), mask=mask)
    return model(problem, start), problem, box


@pytest.fixture(scope="module")
def covered(fitter, model, bare):
    """Labels, problem and truth in the crop for three occluders."""
    pixels, landmarks = bare
    cases = {}
    for kind, seed in (("sunglasses", 1), ("scarf", 2), ("patch", 4)):
        painted, mask = paint_occluder(pixels, landmarks, kind, seed)
        labels, problem, box = labelled(fitter, model, painted, landmarks)
        inside = mask[landmarks[:, 1].astype(int), landmarks[:, 0].astype(int)]
        cases[kind] = labels, problem, crop(mask, tuple(box), SIZE) > 0.5, inside
    return cases


def test_finds_what_was_painted(covered):
    for kind, (labels, _, truth, _) in covered.items():
        found = (labels.face_probability < 0.5) & labels.covered
        truth = truth & labels.covered
        assert (found & truth).sum() > 0.75 * (found | truth).sum(), kind
        assert labels.found


def test_a_bare_face_stays_whole(fitter, model, bare):
    labels, problem, _ = labelled(fitter, model, *bare)
    assert not labels.found
    assert labels.outlier_share < LEAST_SHARE
    assert (labels.face_probability == 1).all() and (labels.landmark_hidden == 0).all()
    assert labels.applied_to(problem) is problem
    assert labels.covered.mean() > 0.1  # it was looked at


def test_hidden_landmarks_are_those_behind_it(covered):
    for kind in ("sunglasses", "scarf"):
        labels, _, _, inside = covered[kind]
        dropped = labels.landmark_hidden > 0.5
        assert dropped[inside].mean() > 0.8, kind
        assert dropped[~inside].mean() < 0.15, kind


def test_exposure_and_white_balance_do_not_matter(fitter, model, bare, covered):
    """Light takes them up."""
    pixels, landmarks = bare
    painted, _ = paint_occluder(pixels, landmarks, "scarf", 2)
    tinted = (painted * np.array([0.8, 0.72, 0.66])).astype(np.uint8)
    labels, _, _ = labelled(fitter, model, tinted, landmarks)
    before = covered["scarf"][0]
    same = (labels.face_probability < 0.5) == (before.face_probability < 0.5)
    assert same[labels.covered & before.covered].mean() > 0.93


def test_mirrored_photo_has_mirrored_labels(fitter, model, bare, covered):
    pixels, landmarks = bare
    painted, _ = paint_occluder(pixels, landmarks, "patch", 4)
    swap = np.r_[16:-1:-1, 26:16:-1, 27:31, 35:30:-1, 45:41:-1, 47:45:-1, 39:35:-1, 41:39:-1]
    swap = np.r_[swap, 54:47:-1, 59:54:-1, 64:59:-1, 67:64:-1]
    mirrored = (landmarks * [-1, 1] + [SIZE, 0])[swap]
    labels, _, _ = labelled(fitter, model, painted[:, ::-1].copy(), mirrored)
    before = covered["patch"][0]
    back = labels.face_probability[:, ::-1] < 0.5
    both = labels.covered[:, ::-1] & before.covered
    assert (back == (before.face_probability < 0.5))[both].mean() > 0.93


def test_masked_pixels_are_not_labelled(fitter, model, bare):
    pixels, landmarks = bare
    mask = np.ones(pixels.shape[:2], bool)
    mask[:, : SIZE // 2] = False
    labels, problem, _ = labelled(fitter, model, pixels, landmarks, mask)
    assert not labels.covered[np.asarray(problem.valid) < 0.4].any()
    assert labels.covered.any()


def test_applied_labels_only_take_away(covered):
    labels, problem, truth, _ = covered["patch"]
    applied = labels.applied_to(problem, 2.0)
    assert (np.asarray(applied.valid) <= np.asarray(problem.valid)).all()
    assert np.asarray(applied.valid)[truth & labels.covered].mean() < 0.1
    hidden = labels.landmark_hidden > 0.5
    sigma = np.asarray(applied.sigma_px)
    assert np.isinf(sigma[hidden]).all()
    assert np.allclose(sigma[~hidden], 2 * np.asarray(problem.sigma_px)[~hidden])
    assert np.allclose(
        np.asarray(applied.sigma_along_px)[~hidden[:17]], 2 * np.asarray(problem.sigma_along_px)[~hidden[:17]]
    )


def test_borders_of_occluders_go_too(fitter, bare):
    _, problem, _ = labelled(fitter, lambda *_: None, *bare)
    probability = np.ones((SIZE, SIZE), np.float32)
    probability[100:120, 100:120] = 0.0
    labels = Labels(probability, probability > -1, np.zeros(68, np.float32), 0.5)
    valid = np.asarray(labels.applied_to(problem).valid)
    assert (valid[98:122, 98:122] == 0).all()
    assert (valid[97, :] == np.asarray(problem.valid)[97]).all()


def test_some_landmarks_always_hold_the_pose(fitter, bare):
    _, problem, _ = labelled(fitter, lambda *_: None, *bare)
    probability = np.ones((SIZE, SIZE), np.float32)
    labels = Labels(probability, probability > 0, np.ones(68, np.float32), 0.5)
    assert np.isfinite(np.asarray(labels.applied_to(problem).sigma_px)).all()


def test_light_is_found_behind_an_occluder(fitter, model, bare):
    """The robust light of a half covered face shades its bare half as it is."""
    pixels, landmarks = bare
    painted, mask = paint_occluder(pixels, landmarks, "scarf", 2)
    problem, start, box = fitter.problem(Photo(painted), Face.from_landmarks(landmarks))
    scene = occlusion._Scene.of(problem, start, model)
    assert scene is not None
    shown = occlusion._shown(scene, *occlusion._robust_appearance(scene, model.patches))
    hidden = crop(mask, tuple(box), SIZE)[:: scene.factor, :: scene.factor][scene.window] > 0
    skin = scene.region & ~hidden & (scene.tolerance < 1.2)
    error = np.sqrt(np.mean((shown - scene.picture) ** 2, axis=-1))
    assert np.median(error[skin]) < 0.04
    assert np.median(error[scene.region & hidden]) > 0.08


def test_neighbours_of_one_colour_share_a_label(model):
    del model
    grey = np.full((20, 20, 3), 0.5, np.float32)
    everywhere = np.ones((20, 20), bool)
    odds = np.full((20, 20), 1.0)
    odds[10, 10] = -2.0
    settled = occlusion._Pairs(grey, everywhere).settled(odds)
    assert (settled > 0.5).all()
    # Across an edge of colour nothing is shared.
    edge = grey.copy()
    edge[:, 10:] = 1.0
    odds = np.where(np.arange(20) < 10, 2.0, -1.0) * np.ones((20, 1))
    settled = occlusion._Pairs(edge, everywhere).settled(odds)
    assert (settled[:, :10] > 0.5).all() and (settled[:, 10:] < 0.5).all()


def test_a_head_out_of_the_picture_has_no_labels(fitter, model, bare):
    problem, start, _ = fitter.problem(Photo(bare[0]), Face.from_landmarks(bare[1]))
    away = dataclasses.replace(start, log_focal=start.log_focal - 5.0)
    labels = model(problem, away)
    assert not labels.found and not labels.covered.any()


def test_a_model_for_another_mesh_is_refused(fitter, model, bare):
    problem, start, _ = fitter.problem(Photo(bare[0]), Face.from_landmarks(bare[1]))
    per_triangle = ("albedo", "albedo_modes", "region", "bare", "tolerance")
    cut = dataclasses.replace(model, **{name: getattr(model, name)[:-1] for name in per_triangle})
    with pytest.raises(ValueError, match="triangles, expected .* Make it anew"):
        cut(problem, start)


def test_segmenter_errors_say_the_remedy(bare, tmp_path, monkeypatch):
    photo = Photo(bare[0])
    with pytest.raises(SegmenterError, match="no such file, expected MediaPipe's selfie_multiclass"):
        mediapipe_face_mask(photo, tmp_path / "missing.task")
    file = tmp_path / "model.tflite"
    file.write_bytes(b"no model")
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(SegmenterError, match="pip install mediapipe"):
        mediapipe_face_mask(photo, file)
