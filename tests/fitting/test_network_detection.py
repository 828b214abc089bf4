"""Sightings of a landmark network: squares cut out of photos, faces looked for, and fits held to many points."""

import collections
import contextlib
import dataclasses
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from fitting import network_detection
from fitting.dense_landmarks import dense_landmarks
from fitting.detection import LANDMARK_NOISE, UNSURE_SPREAD, DetectorError, Face, detect_faces
from fitting.landmark_source import check_source, landmark_provider
from fitting.mediapipe_detection import MediaPipeProvider
from fitting.network_detection import NetworkProvider, around, cut_out, locate, look
from fitting.observation import Photo, read_photo
from fitting.portraits.portrait import CROP_FACTOR
from fitting.sighting import Sighting, Square
from fitting.synthesis import SynthesisSettings, synthesize
from morphable.landmarks import MEDIAPIPE_OF_IBUG


@pytest.fixture(scope="module")
def side_view(head):
    """A random person, turned by some 70 degrees."""
    return synthesize(head, 2, SynthesisSettings(size=256, yaw=85.0))


def sighting(head, synthetic, noise_px=0.0, sigma_px=2.0, seed=0) -> Sighting:
    """What a network would say that errs so much."""
    dense, camera = dense_landmarks(head), synthetic.camera
    points = np.asarray(camera.project(dense.surface(jnp.asarray(synthetic.vertices))), float)
    points = points + noise_px * np.random.default_rng(seed).normal(size=points.shape)
    place = np.asarray(synthetic.truth.pose.translation(), float)
    return Sighting(
        surface=dense.surface,
        square=around(points[:68]),
        points=points,
        sigma=np.full(len(points), sigma_px),
        visible=np.concatenate([~synthetic.hidden, np.ones(len(points) - 68)]).astype(float),
        rotation=np.asarray(camera.rotation, float),
        origin=np.asarray(camera.project(jnp.zeros((1, 3))), float)[0],
        px_per_mm=float(camera.focal[0]) / place[2],
        expression=np.zeros(len(head.expression_names)),
        identity=np.zeros(head.shape.rank),
    )


def as_face(seen: Sighting) -> Face:
    return Face((0.0, 0.0, 1.0, 1.0), seen.landmarks, "network", 0.0, LANDMARK_NOISE["network"], sighting=seen)


# ------------------------------------------------------------------------------------------------------ squares


@pytest.mark.parametrize("roll", [0.0, 0.7, -2.5])
def test_the_square_around_points_holds_them_with_a_margin_however_it_is_turned(roll):
    points = np.random.default_rng(0).normal(size=(68, 2)) * [40, 60] + [300, 200]
    square = around(np.concatenate([points, [[np.nan, 1.0]]]), roll)
    local = (points - square.centre) @ square.turn / square.side
    assert np.ptp(local, axis=0).max() == pytest.approx(1 / CROP_FACTOR)
    np.testing.assert_allclose(local.max(axis=0) + local.min(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(square.to_photo(local), points)


def test_a_square_at_its_own_size_is_cut_out_as_it_is():
    pixels = np.random.default_rng(1).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    photo = Photo(pixels)
    np.testing.assert_array_equal(cut_out(photo, Square(np.array([40.0, 30.0]), 32.0), 32), pixels[14:46, 24:56])
    # A quarter turn clockwise of the square turns what it shows the other way.
    turned = cut_out(photo, Square(np.array([40.0, 30.0]), 32.0, np.pi / 2), 32)
    assert np.abs(turned.astype(int) - np.rot90(pixels[14:46, 24:56])).max() <= 1
    outside = cut_out(photo, Square(np.array([0.0, 30.0]), 32.0), 32)
    assert (outside[:, :15] == 0).all()
    np.testing.assert_array_equal(outside[:, 16:], pixels[14:46, :16])
    assert (cut_out(photo, Square(np.array([-500.0, 30.0]), 32.0), 32) == 0).all()


@pytest.mark.parametrize("side", [20.0, 64.0, 250.0])
def test_a_cut_out_shows_places_where_it_says(side):
    # A smooth picture tells where each of its pixels is.
    v, u = np.mgrid[:400, :500] + 0.5
    photo = Photo(np.stack([u / 2, v / 2, 0 * u], axis=-1).astype(np.uint8))
    square = Square(np.array([251.3, 199.2]), side, 0.4)
    found = cut_out(photo, square, 64).astype(float)
    place = (np.arange(64) + 0.5) / 64 - 0.5
    where = square.to_photo(np.stack(np.meshgrid(place, place), axis=-1).reshape(-1, 2)).reshape(64, 64, 2)
    assert np.abs(found[..., :2] + 0.5 - where / 2)[2:-2, 2:-2].max() < 1.5


# --------------------------------------------------------------------------------------------------------- fits


def test_a_profile_is_fitted_from_many_points(head, fitter, side_view):
    fit = fitter.fit(side_view.photo, as_face(sighting(head, side_view, 1.5)))
    truth = np.asarray(side_view.camera.rotation)
    assert abs(np.rad2deg(np.arctan2(truth[0, 2], -truth[2, 2]))) > 60
    cosine = (np.trace(np.asarray(fit.camera.rotation).T @ truth) - 1) / 2
    assert np.rad2deg(np.arccos(cosine)) < 2.0
    assert fit.result == "converged" and "dense" in fit.energies
    error = np.linalg.norm(fit.landmarks2d - side_view.landmarks2d, axis=1)
    assert error.mean() < 2.0
    # Points that the photo does not show are as good as the others: what matters is what the network says of them.
    assert error[side_view.hidden].mean() < 2.5


def test_points_count_by_their_own_deviation(head, fitter, side_view):
    seen = sighting(head, side_view)
    moved = seen.points.copy()
    wrong = np.arange(len(moved)) % 4 == 1
    moved[wrong] += [25.0, 0.0]
    sure = dataclasses.replace(seen, points=moved)
    unsure = dataclasses.replace(sure, sigma=np.where(wrong, 400.0, seen.sigma))
    problems = [fitter.problem(side_view.photo, as_face(s))[0] for s in (seen, unsure, sure)]
    hidden_jaw = np.flatnonzero(seen.visible[:17] < 0.5)
    before, after = (np.asarray(p.extra["dense"].sigma_px) for p in problems[:2])
    counts = np.isfinite(before)
    told = wrong[[*hidden_jaw, *range(68, 320)]].sum() - _eyes(head, wrong)
    assert (after[counts] > 50 * before[counts]).sum() == told
    right, with_unsure, with_sure = (fitter.fit(side_view.photo, as_face(s)).landmarks2d for s in (seen, unsure, sure))
    assert np.abs(with_unsure - right).max() < 1.0 < 1.3 < np.abs(with_sure - right).mean()


def _eyes(head, wrong) -> int:
    """Points of eyeballs do not count: they turn."""
    vertices = np.asarray(dense_landmarks(head).surface.vertices)[:, 0]
    names = [head.part_names[i] for i in np.asarray(head.part_of_vertex)[vertices]]
    return sum(w and name.startswith("eye") for w, name in zip(wrong, names, strict=True))


def test_jaw_points_slide_where_they_are_seen_and_are_points_of_the_surface_elsewhere(head, fitter, side_view):
    seen = dataclasses.replace(sighting(head, side_view), visible=(np.arange(320) % 2).astype(float))
    problem, first, _ = fitter.problem(side_view.photo, as_face(seen))
    slides = np.arange(17) % 2 == 1
    for sigma in (problem.sigma_px, problem.sigma_along_px):
        np.testing.assert_array_equal(np.isfinite(np.asarray(sigma)[:17]), slides)
    assert np.isfinite(np.asarray(problem.sigma_px)[17:]).all()
    dense = problem.extra["dense"]
    assert len(dense.points_px) == 320 - 51
    np.testing.assert_array_equal(np.isfinite(np.asarray(dense.sigma_px)[:17]), ~slides)
    # The start is the network's.
    np.testing.assert_allclose(first.pose.rotation().as_matrix(), side_view.camera.rotation, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- providers


@pytest.fixture
def faked(monkeypatch, head, side_view, shipped):
    """A provider whose looks are right near the face, and unsure elsewhere; and where they looked."""
    truth, looks = sighting(head, side_view), []
    right = around(truth.landmarks)

    def look(network, photo, square, mirror=None):
        looks.append(square)
        off = np.linalg.norm(square.centre - right.centre) / right.side + abs(np.log(square.side / right.side))
        good = off < 0.3
        towards = truth.points + (0.0 if good else 0.95) * (square.centre - right.centre)
        return dataclasses.replace(
            truth, square=square, points=towards, sigma=np.full(320, (0.01 if good else 0.2) * right.side)
        )

    monkeypatch.setattr(network_detection, "look", look)
    return shipped, looks, right


def test_a_face_is_looked_at_again_where_its_landmarks_are(faked, side_view):
    provider, looks, right = faked
    start = right._replace(centre=right.centre + 0.2 * right.side)
    seen = locate(provider.network, side_view.photo, start)
    assert len(looks) == 3 and looks[0] == start
    np.testing.assert_allclose(looks[2].centre, around(seen.landmarks, seen.roll).centre)
    assert seen.doubt < 0.02


def test_a_box_that_does_not_fit_is_tried_at_other_sizes(faked, side_view):
    provider, looks, right = faked
    (x, y), half = right.centre, 0.5 * right.side / 1.25 / 1.45
    face = provider.faces(side_view.photo, (x - half, y - half, x + half, y + half), False)[0]
    assert face.sure and face.source == "network" and face.sighting is not None
    assert face.box == pytest.approx((x - half, y - half, x + half, y + half))
    assert len({round(s.side) for s in looks}) >= 2


def test_a_face_that_no_detector_knows_is_searched_for_and_no_face_is_none(faked, side_view, monkeypatch):
    provider = faked[0]
    monkeypatch.setattr(network_detection, "proposals", lambda photo: iter(()))
    found = provider.faces(side_view.photo, None, False)
    assert len(found) == 1 and found[0].sure
    elsewhere = Photo(np.zeros((3000, 40, 3), np.uint8))
    assert provider.faces(elsewhere, None, False) == []


def test_unsure_sightings_are_unsure_faces(side_view, faked):
    provider, _, right = faked
    x, y = right.centre + 5 * right.side
    face = provider.faces(side_view.photo, (x - 9, y - 9, x + 9, y + 9), False)[0]
    assert not face.sure and face.spread > UNSURE_SPREAD


# -------------------------------------------------------------------------------------------- weights that ship


@pytest.fixture(scope="module")
def shipped(head):
    return NetworkProvider.of(head)


def test_the_shipped_network_agrees_with_dlib_on_the_bundled_photo(shipped, photo, face):
    seen = detect_faces(photo, provider=shipped)[0]
    box = np.sqrt(np.prod(np.ptp(face.landmarks, axis=0)))
    assert np.linalg.norm(seen.landmarks - face.landmarks, axis=1).mean() < 0.06 * box
    assert seen.sure and not seen.truncated


def test_the_shipped_network_sees_a_turned_photo_as_it_sees_it_upright(shipped, collins):
    photo = read_photo(collins)
    upright = detect_faces(photo, provider=shipped)[0]
    turned = Photo(np.ascontiguousarray(np.rot90(photo.pixels)))
    x0, y0, x1, y1 = upright.box
    box = (y0, photo.width - x1, y1, photo.width - x0)
    seen = detect_faces(turned, box=box, provider=shipped)[0]
    back = np.stack([photo.width - seen.landmarks[:, 1], seen.landmarks[:, 0]], axis=1)
    assert np.linalg.norm(back - upright.landmarks, axis=1).mean() < 0.03 * (x1 - x0)


def test_left_is_seen_as_right_is(shipped, photo, face):
    """A look in the mirror is the mirror image of a look at the photo in the mirror."""
    square, across = around(face.landmarks), np.array([-1.0, 1.0])
    there = square._replace(centre=square.centre * across + [photo.width, 0.0])
    mirrored = Photo(np.ascontiguousarray(photo.pixels[:, ::-1]))
    network, mirror = shipped.network, shipped.mirror
    here, seen = ([look(network, p, s, way) for way in (None, mirror)] for p, s in ((photo, square), (mirrored, there)))
    for one, other in ((here[0], seen[1]), (here[1], seen[0])):
        back = one.points * across + [photo.width, 0.0]
        np.testing.assert_allclose(back[np.asarray(mirror.points)], other.points, atol=0.02 * square.side / 128)
        np.testing.assert_allclose(one.rotation * np.outer([-1, 1, 1], [-1, 1, 1]), other.rotation, atol=1e-3)
        np.testing.assert_allclose(one.identity * np.asarray(mirror.identity), other.identity, atol=1e-2)
    assert np.abs(here[0].points - here[1].points).max() > 0.1  # it is not symmetric by itself


def test_sources_have_names(head, tmp_path):
    assert isinstance(landmark_provider("network", None, lambda: head), NetworkProvider)
    assert landmark_provider("dlib", None, pytest.fail) is landmark_provider(None, None, pytest.fail) is None
    with pytest.raises(ValueError, match="got weights without --landmarks network or mediapipe"):
        check_source("dlib", tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="expected a file that 'facefit train-landmarks' wrote"):
        check_source("network", tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="face_landmarker.task"):
        check_source("mediapipe", None)
    with pytest.raises(ValueError, match="got 'netwrok', expected dlib, network, mediapipe, or a file"):
        check_source("netwrok", None)
    check_source("points.pts", None)


# ----------------------------------------------------------------------------------------------------- MediaPipe


class _FakeMediaPipe:
    """As much of MediaPipe's Tasks as is asked: a landmarker that knows one face."""

    def __init__(self, points):
        point = collections.namedtuple("point", "x y")

        class Landmarker(contextlib.AbstractContextManager):
            def __exit__(self, *_):
                return None

            def detect(self, image):
                height, width = image.data.shape[:2]
                answer = [point(x / width, y / height) for x, y in points(image.data)]
                return types.SimpleNamespace(face_landmarks=[answer])

        self.Image = lambda image_format, data: types.SimpleNamespace(data=data)
        self.ImageFormat = types.SimpleNamespace(SRGB=0)
        vision = types.SimpleNamespace(
            FaceLandmarkerOptions=lambda **options: options,
            FaceLandmarker=types.SimpleNamespace(create_from_options=lambda options: Landmarker()),
        )
        self.tasks = types.SimpleNamespace(vision=vision, BaseOptions=lambda **options: options)


def test_mediapipes_points_are_ibugs_in_pixels_of_the_photo(monkeypatch, tmp_path, photo, face):
    def points(pixels):
        # Where the photo's own face is, in whichever part of it is looked at.
        shift = np.array([0.0, 0.0]) if pixels.shape == photo.pixels.shape else np.floor(_start(photo, face))
        mesh = np.zeros((478, 2))
        mesh[MEDIAPIPE_OF_IBUG] = face.landmarks - shift
        return mesh

    fake = _FakeMediaPipe(points)
    monkeypatch.setitem(sys.modules, "mediapipe", fake)
    monkeypatch.setitem(sys.modules, "mediapipe.tasks.python", fake.tasks)
    with pytest.raises(DetectorError, match="no such file, expected MediaPipe's face_landmarker.task"):
        detect_faces(photo, provider=MediaPipeProvider(tmp_path / "none.task"))
    (tmp_path / "face_landmarker.task").write_bytes(b"model")
    provider = MediaPipeProvider(tmp_path / "face_landmarker.task")
    for box in (None, face.box):
        found = detect_faces(photo, box=box, provider=provider)[0]
        np.testing.assert_allclose(found.landmarks, face.landmarks, atol=1e-6)
        assert found.source == "mediapipe" and found.noise == LANDMARK_NOISE["mediapipe"]
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(DetectorError, match="pip install mediapipe"):
        detect_faces(photo, provider=provider)


def _start(photo, face):
    x0, y0, x1, y1 = face.box
    return np.maximum([x0 - 0.5 * (x1 - x0), y0 - 0.5 * (y1 - y0)], 0.0)
