"""Photos of one person: order does not matter, what is shared is shared, photos that do not belong are named."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fitting import multi_image
from fitting.detection import Face, LandmarkNoise
from fitting.metric_scale import MetricScale, iris_widths, metric_scale
from fitting.multi_image import SetError, fit_together
from fitting.observation import Photo
from fitting.synthesis import SynthesisSettings, synthesize

NOISE = LandmarkNoise(inner_mm=1.5, jaw_mm=2.0)
NAMES = ("left.png", "front.png", "right.png")


@dataclasses.dataclass(frozen=True)
class Person:
    """Somebody synthetic in three photos of one camera."""

    neutral: np.ndarray  # mm
    photos: tuple[Photo, ...]
    faces: tuple[Face, ...]
    focal_px: float


@pytest.fixture(scope="module")
def shown(head):
    settings = dataclasses.replace(SynthesisSettings.clean(), size=320, yaw=35.0, lens_mm=(60.0, 60.0))
    who, shown = None, []
    for seed in (3, 4, 6):
        shown.append(synthesize(head, seed, settings, who))
        who = shown[0].scene
    return shown


@pytest.fixture(scope="module")
def person(head, shown) -> Person:
    faces = [dataclasses.replace(s.as_face(noise_px=1.0, seed=k), noise=NOISE) for k, s in enumerate(shown)]
    truth = shown[0].truth
    neutral = np.asarray(head.neutral(truth.identity))
    return Person(neutral, tuple(s.photo for s in shown), tuple(faces), float(np.exp(truth.log_focal)))


@pytest.fixture(scope="module")
def joint(fitter, person):
    return fit_together(fitter, person.photos, person.faces, names=NAMES, same_camera=True)


def neutral_error(vertices, truth) -> float:
    """Mean distance of vertices after the best similarity, mm: size is what no photo tells."""
    a, b = (x - x.mean(axis=0) for x in (np.asarray(vertices, float), np.asarray(truth, float)))
    u, singular, vt = np.linalg.svd(a.T @ b)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return float(np.linalg.norm(singular.sum() / np.sum(a * a) * a @ turn - b, axis=1).mean())


def test_identity_albedo_and_focal_length_are_shared_and_the_rest_is_not(joint):
    assert [v.words for v in joint.verdicts] == ["used"] * 3
    for fit in joint.fits[1:]:
        np.testing.assert_array_equal(fit.identity, joint.identity)
        np.testing.assert_array_equal(fit.albedo, joint.albedo)
        np.testing.assert_allclose(fit.camera.focal, joint.fits[0].camera.focal, rtol=1e-5)
        assert np.abs(fit.expression - joint.fits[0].expression).max() > 0.01
        assert np.abs(fit.light - joint.fits[0].light).max() > 0.01


def test_several_photos_tell_more_about_the_head_than_each_alone(head, joint, person):
    front = np.asarray(head.masks["face"]) > 0.5
    error = lambda v: neutral_error(np.asarray(v)[front], person.neutral[front])  # noqa: E731
    alone = [error(fit.neutral_vertices) for fit in joint.alone]
    assert error(joint.fits[0].neutral_vertices) < 0.85 * min(alone)
    assert error(joint.fits[0].neutral_vertices) < 0.5 * error(head.mean)
    # And its own covariance says so: no direction is less certain than the prior, most of the first are more so.
    assert np.linalg.eigvalsh(joint.identity_covariance).max() < 1.01
    assert np.median(np.diag(joint.identity_covariance)[:10]) < 0.5
    alone_focal = [abs(np.log(float(fit.camera.focal[0]) / person.focal_px)) for fit in joint.alone]
    assert abs(np.log(float(joint.fits[0].camera.focal[0]) / person.focal_px)) < max(alone_focal)


def test_the_order_of_the_photos_does_not_matter(fitter, joint, person):
    order = (2, 0, 1)
    pick = lambda things: [things[i] for i in order]  # noqa: E731
    again = fit_together(fitter, pick(person.photos), pick(person.faces), names=pick(NAMES), same_camera=True)
    np.testing.assert_array_equal(again.identity, joint.identity)
    np.testing.assert_array_equal(again.albedo, joint.albedo)
    assert [v.name for v in again.verdicts] == pick(NAMES)
    for place, i in enumerate(order):
        np.testing.assert_array_equal(again.fits[place].expression, joint.fits[i].expression)
        np.testing.assert_array_equal(again.fits[place].landmarks2d, joint.fits[i].landmarks2d)


def test_photos_may_be_read_when_they_are_needed(fitter, joint, person):
    readers = [lambda photo=photo: photo for photo in person.photos]
    again = fit_together(fitter, readers, person.faces, same_camera=True)
    np.testing.assert_array_equal(again.identity, joint.identity)


def test_a_photo_given_twice_counts_once(fitter, joint, person):
    photos, faces = [*person.photos, person.photos[0]], [*person.faces, person.faces[0]]
    again = fit_together(fitter, photos, faces, names=(*NAMES, "copy.png"), same_camera=True)
    copies = [v for v in again.verdicts if v.name in ("left.png", "copy.png")]
    assert sorted(v.used for v in copies) == [False, True]
    assert any("the same picture as" in v.words for v in copies)
    np.testing.assert_allclose(again.identity, joint.identity, atol=1e-5)


def test_another_person_is_named_and_left_out(fitter, person, photo, face):
    photos, faces = [*person.photos[:2], photo], [*person.faces[:2], face]
    joint = fit_together(fitter, photos, faces, names=("a", "b", "Collins"))
    assert joint.indices == (0, 1)
    assert joint.verdicts[2].words.startswith("left out: another person")
    with pytest.raises(SetError, match=r"2 different people \((a; Collins|Collins; a)\)"):
        fit_together(fitter, [photos[0], photo], [faces[0], face], names=("a", "Collins"))
    both = fit_together(fitter, [photos[0], photo], [faces[0], face], names=("a", "Collins"), one_person=True)
    assert both.indices == (0, 1)


def test_landmarks_that_no_head_of_this_person_has_are_left_out(fitter, joint, person):
    # Squeezed to two thirds: a face, but a much narrower one.
    wrong = person.faces[1].landmarks.copy()
    wrong[:, 0] = np.nanmean(wrong[:, 0]) + 0.6 * (wrong[:, 0] - np.nanmean(wrong[:, 0]))
    faces = [person.faces[0], dataclasses.replace(person.faces[1], landmarks=wrong), person.faces[2]]
    again = fit_together(fitter, person.photos, faces, names=NAMES, same_camera=True, one_person=True)
    assert [v.used for v in again.verdicts] == [True, False, True]
    assert "left out" in again.verdicts[1].words


def test_one_photo_is_a_set_too(fitter, photo, face, fitted):
    one = fit_together(fitter, [photo], [face])
    assert one.verdicts[0].used
    away = np.linalg.norm(one.fits[0].landmarks2d - face.landmarks, axis=1)[17:].mean()
    assert away < 1.3 * np.linalg.norm(fitted.landmarks2d - face.landmarks, axis=1)[17:].mean()


def test_a_photo_without_a_face_is_searched_where_the_others_have_theirs(fitter, photo, face):
    """The bundled photo, darker, as if nothing had been found in it; and a picture that shows nobody."""
    darker = Photo((0.8 * photo.pixels).astype(np.uint8))
    nobody = Photo(np.random.default_rng(0).integers(90, 110, photo.pixels.shape).astype(np.uint8))
    joint = fit_together(fitter, [photo, darker, nobody], [face, None, None], names=("a", "darker", "nobody"))
    assert [v.used for v in joint.verdicts] == [True, True, False]
    assert joint.verdicts[1].words == "used, once the others had told whose head it is"
    assert "left out" in joint.verdicts[2].words


def test_whoever_found_the_faces_is_asked_again(fitter, photo, face, monkeypatch):
    """Not dlib, whose predictor not everybody may use."""

    class Known:
        boxes = []

        def faces(self, photo, box, all_faces):
            self.boxes.append(box)
            return [face]

    monkeypatch.setattr(multi_image, "landmarks_at", lambda *_: pytest.fail("dlib was asked"))
    darker = Photo((0.8 * photo.pixels).astype(np.uint8))
    joint = fit_together(fitter, [photo, darker], [face, None], names=("a", "darker"), provider=Known())
    assert [v.used for v in joint.verdicts] == [True, True]
    middle = np.reshape([(np.add(b[:2], b[2:]) / 2) for b in Known.boxes], (-1, 2))
    assert len(middle) > 1 and np.ptp(middle, axis=0).min() > 0.1 * (face.box[2] - face.box[0])
    assert np.abs(np.median(middle, axis=0) - np.add(face.box[:2], face.box[2:]) / 2).max() < 0.3 * (
        face.box[2] - face.box[0]
    )


def test_a_profile_in_which_no_face_was_found_is_sought_by_its_outline(head, fitter, joint, person, shown):
    settings = dataclasses.replace(SynthesisSettings.clean(), size=320, yaw=70.0, lens_mm=(60.0, 60.0))
    profile = synthesize(head, 24, settings, shown[0].scene)
    photos, faces = [*person.photos, profile.photo], [*person.faces, None]
    again = fit_together(fitter, photos, faces, names=(*NAMES, "profile.png"), same_camera=True, one_person=True)
    assert again.verdicts[3].words == "used by the head's outline and colours, without landmarks"
    found, true = again.fits[3].camera.pose.rotation(), profile.truth.pose.rotation()
    assert np.degrees(np.linalg.norm((found.inverse() @ true).log())) < 8.0
    # It tells the shape of the profile: not worse than without it, where it could have ruined all.
    front = np.asarray(head.masks["face"]) > 0.5
    error = lambda fit: neutral_error(np.asarray(fit.neutral_vertices)[front], person.neutral[front])  # noqa: E731
    assert error(again.fits[0]) < 1.1 * error(joint.fits[0])
    assert np.isfinite(again.landmark_offsets).all()


def test_landmark_offsets_are_where_the_annotator_was_wrong(fitter, joint, person):
    """All noses' tips are marked 5 mm too far to the subject's left: no nose grows so."""
    aside = []
    for face in person.faces:
        points = face.landmarks.copy()
        points[30, 0] += 5.0 * (np.nanmax(points[:, 1]) - np.nanmin(points[:, 1])) / 120.0  # a face is 120 mm high
        aside.append(dataclasses.replace(face, landmarks=points))
    wrong = fit_together(fitter, person.photos, aside, names=NAMES, same_camera=True, one_person=True)
    change = wrong.landmark_offsets - joint.landmark_offsets
    assert 1.5 < change[30, 0] < 5.5 and abs(change[30, 1]) < 1.0
    assert np.abs(change[36:48]).max() < 0.7  # eyes are where they were
    assert np.abs(wrong.landmark_offsets[:17]).max() == 0.0
    moved = fitter.with_offsets(wrong.landmark_offsets).solver_model.landmarks.mean
    np.testing.assert_allclose(moved - fitter.solver_model.landmarks.mean, wrong.landmark_offsets, atol=1e-4)


def test_what_cannot_be_fitted_together_is_an_error(fitter, photo, face):
    with pytest.raises(SetError, match="got 0 photos"):
        fit_together(fitter, [], [])
    with pytest.raises(SetError, match="got 1 photos, 2 faces"):
        fit_together(fitter, [photo], [face, face])
    with pytest.raises(SetError, match="none can be trusted.*no face"):
        fit_together(fitter, [photo], [None])


def test_size_comes_from_the_prior_or_from_who_has_measured_it(joint):
    scale = metric_scale(joint.fits, (), joint.identity_covariance)
    assert scale.low < 1.0 == scale.factor < scale.high
    wide = metric_scale(joint.fits)  # knowing nothing but the prior
    assert wide.high - wide.low > scale.high - scale.low
    stated = metric_scale(joint.fits, pupils_mm=64.0)
    assert stated.pupils_mm == pytest.approx(64.0)
    assert stated.high / stated.low < scale.high / scale.low
    assert isinstance(stated, MetricScale) and "64.0 mm between the eyes" in str(stated)
    with pytest.raises(ValueError, match="got 6.4 mm, expected 30 to 100"):
        metric_scale(joint.fits, pupils_mm=6.4)


def test_an_iris_of_known_size_is_measured(fitted):
    """A dark disc on a bright eye, painted where the fit has the eyes, at three sizes."""
    rig, small = fitted.model.rig, fitted.camera
    camera = small.crop((0.0, 0.0, float(small.width), float(small.height)), 3 * small.height, 3 * small.width)
    fit = dataclasses.replace(fitted, camera=camera)
    joints = np.asarray(rig.joint_positions(jnp.asarray(fitted.identity)))
    for diameter in (10.5, 11.75, 13.0):
        pixels = np.full((camera.height, camera.width, 3), 220, np.uint8)
        row, column = np.mgrid[: camera.height, : camera.width] + 0.5
        for name in ("eye_left", "eye_right"):
            front = jnp.asarray(joints[rig.names.index(name)] + [0.0, 0.0, 11.0])
            u, v = np.asarray(camera.project(front[None]))[0]
            per_mm = float(camera.focal[0]) / np.asarray(camera.to_camera(front[None]))[0, 2]
            pixels[(column - u) ** 2 + (row - v) ** 2 < (0.5 * diameter * per_mm) ** 2] = 60
        widths = iris_widths(fit, Photo(pixels))
        assert len(widths) == 2
        np.testing.assert_allclose(widths, diameter, rtol=0.06)
    assert iris_widths(fit, Photo(np.full((camera.height, camera.width, 3), 128, np.uint8))) == []
