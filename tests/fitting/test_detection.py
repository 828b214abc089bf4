"""Landmarks move with the photo; what is no usable face says so."""

import sys

import numpy as np
import pytest
from PIL import Image

import fitting.detection as detection
from fitting.detection import (
    LANDMARK_NOISE,
    DetectorError,
    Face,
    NoFaceError,
    detect_faces,
    dlib_model_folder,
)
from fitting.observation import Photo, read_photo

# Which iBUG point a point becomes in a mirror.
MIRROR = np.r_[
    16:-1:-1, 26:16:-1, 27:31, 35:30:-1, 45:41:-1, 47, 46, 39:35:-1, 41, 40,
    54:47:-1, 59:54:-1, 64:59:-1, 67:64:-1,
]  # fmt: skip


def says(error: pytest.ExceptionInfo, *parts: str) -> None:
    message = str(error.value)
    missing = [part for part in ("expected", *parts) if part not in message]
    assert not missing, f"{missing} not in: {message}"


def turned(photo: Photo, degrees: float) -> tuple[Photo, np.ndarray, np.ndarray]:
    """The photo turned counter-clockwise about its middle, and R, o with p_turned = R p + o."""
    image = Image.fromarray(photo.pixels).rotate(degrees, Image.Resampling.BICUBIC)
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = np.array([photo.width / 2, photo.height / 2])
    return Photo(np.asarray(image)), rotation, middle - rotation @ middle


# ------------------------------------------------------------------------------------------------ where they are


def test_the_bundled_photo_has_one_sure_face(photo, face):
    assert (face.source, face.count, face.sure, face.truncated) == ("dlib-hog", 1, True, False)
    assert face.noise == LANDMARK_NOISE["dlib"] and face.landmarks.shape == (68, 2)
    # Read off the enlarged photo: outer corners of the eyes, tip of the nose, corners of the mouth, chin.
    clicked = {36: (193, 101), 45: (258, 104.5), 30: (224.5, 126), 48: (203, 139.5), 54: (247, 139), 8: (222.5, 178)}
    error = np.linalg.norm(face.landmarks[list(clicked)] - np.array(list(clicked.values())), axis=1)
    assert error.max() < 4  # of a face of 88 px


def test_landmarks_mirror_with_the_photo(photo, face):
    mirrored = detect_faces(Photo(np.ascontiguousarray(photo.pixels[:, ::-1])))[0].landmarks[MIRROR]
    difference = [photo.width, 0] + [-1, 1] * mirrored - face.landmarks
    assert np.linalg.norm(difference, axis=1).mean() < 1.5
    assert np.abs(difference.mean(axis=0)).max() < 0.4  # half a pixel forgotten would show as one


def test_landmarks_scale_with_the_photo(photo, face):
    large = Image.fromarray(photo.pixels).resize((1024, 1024), Image.Resampling.BICUBIC)
    difference = detect_faces(Photo(np.asarray(large)))[0].landmarks / 2 - face.landmarks
    assert np.linalg.norm(difference, axis=1).mean() < 1 and np.abs(difference.mean(axis=0)).max() < 0.3


def test_a_tilted_head_gets_the_same_landmarks(photo, face):
    tilted, rotation, offset = turned(photo, 40)
    found = detect_faces(tilted)[0]
    assert found.sure
    assert np.linalg.norm(found.landmarks - (face.landmarks @ rotation.T + offset), axis=1).mean() < 1.5


def test_the_cnn_finds_what_hog_does_not(photo, face):
    part = Photo(np.ascontiguousarray(photo.pixels[27:227, 123:323]))
    tilted, rotation, offset = turned(part, 75)
    found = detect_faces(tilted)[0]
    assert found.source == "dlib-cnn" and found.sure
    expected = (face.landmarks - [123, 27]) @ rotation.T + offset
    assert np.linalg.norm(found.landmarks - expected, axis=1).mean() < 1.5


def test_a_small_face_is_found_in_the_upsampled_photo(photo, face):
    small = Image.fromarray(photo.pixels).resize((256, 256), Image.Resampling.LANCZOS)
    found = detect_faces(Photo(np.asarray(small)))[0]
    assert found.source == "dlib-hog-upsampled"
    assert np.linalg.norm(found.landmarks * 2 - face.landmarks, axis=1).mean() < 1.5


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_rotated_photos_are_seen_upright(tmp_path, photo, face, orientation):
    stored = np.rot90(photo.pixels, {3: 2, 6: 1, 8: 3}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    assert np.allclose(detect_faces(read_photo(tmp_path / "photo.png"))[0].landmarks, face.landmarks)


def test_greyscale_is_enough(tmp_path, photo, face):
    Image.fromarray(photo.pixels).convert("L").save(tmp_path / "photo.png")
    found = detect_faces(read_photo(tmp_path / "photo.png"))[0]
    assert np.linalg.norm(found.landmarks - face.landmarks, axis=1).mean() < 1


def test_100_megapixels(photo, face):
    large = Image.fromarray(photo.pixels).resize((10_000, 10_000), Image.Resampling.BILINEAR)
    found = detect_faces(Photo(np.asarray(large)))[0]
    assert np.linalg.norm(found.landmarks * 0.0512 - face.landmarks, axis=1).mean() < 1


def test_landmarks_are_deterministic(photo, face):
    assert np.array_equal(detect_faces(photo)[0].landmarks, face.landmarks)


# --------------------------------------------------------------------------------------------- cut, several, boxed


def test_a_face_cut_by_the_border_hides_what_is_outside(photo, face):
    width = 248  # a third of the eye on the right, and the cheek beyond it, are gone
    cut = detect_faces(Photo(np.ascontiguousarray(photo.pixels[:, :width])))[0]
    seen = np.isfinite(cut.landmarks).all(axis=1)
    assert cut.truncated and cut.sure
    assert not seen[[14, 15, 16, 26]].any() and seen[[0, 4, 8, 30, 36, 42, 48]].all()
    assert np.linalg.norm(cut.landmarks - face.landmarks, axis=1)[seen].mean() < 3


@pytest.fixture
def pair(photo) -> Photo:
    """The portrait, and a smaller one on its left."""
    canvas = np.full((512, 900, 3), 128, np.uint8)
    canvas[:, 388:] = photo.pixels
    canvas[100:484, :384] = np.asarray(Image.fromarray(photo.pixels).resize((384, 384), Image.Resampling.BICUBIC))
    return Photo(canvas, path="pair.png")


def test_of_several_faces_the_largest_is_used_and_said(pair, face, caplog):
    with caplog.at_level("INFO", logger="facefit"):
        faces = detect_faces(pair)
    assert len(faces) == 1 and faces[0].count == 2
    assert np.linalg.norm(faces[0].landmarks - [388, 0] - face.landmarks, axis=1).mean() < 1
    assert all(part in caplog.text for part in ("pair.png", "2 faces", "largest", "--all-faces", "--box"))


def test_all_faces_come_largest_first(pair, face, monkeypatch):
    monkeypatch.setattr(detection, "_CNN_PIXELS", 60_000)  # it looks too, but need not look closely
    faces = detect_faces(pair, all_faces=True)
    assert len(faces) == 2 and faces[0].box[2] - faces[0].box[0] > faces[1].box[2] - faces[1].box[0]
    assert np.linalg.norm((faces[1].landmarks - [0, 100]) / 0.75 - face.landmarks, axis=1).mean() < 1.5


def test_a_box_picks_the_face(pair, face):
    x0, y0, x1, y1 = face.box
    box = (0.75 * x0, 100 + 0.75 * y0, 0.75 * x1, 100 + 0.75 * y1)
    found = detect_faces(pair, box=box)[0]
    assert found.source == "box" and found.box == box
    assert np.linalg.norm((found.landmarks - [0, 100]) / 0.75 - face.landmarks, axis=1).mean() < 1.5


def test_a_box_may_be_loose_and_the_head_lie_on_its_side(photo, face):
    lying = Photo(np.ascontiguousarray(np.rot90(photo.pixels)))  # (x, y) -> (y, width - x)
    expected = np.stack([face.landmarks[:, 1], photo.width - face.landmarks[:, 0]], axis=1)
    low, high = expected.min(axis=0) - 25, expected.max(axis=0) + 15
    found = detect_faces(lying, box=(*low, *high))[0]
    assert np.linalg.norm(found.landmarks - expected, axis=1).mean() < 1.5


@pytest.mark.parametrize(
    ("box", "parts"),
    [
        ((100, 100, 50, 200), ("100,100,50,200", "x1 > x0")),
        ((0, 0, float("nan"), 5), ("nan", "x1 > x0")),
        ((600, 0, 700, 100), ("outside the photo of 512 x 512", "brows to chin")),
        ((100, 100, 105, 105), ("5 x 5", "at least 10 x 10", "width,height")),
        ((-9000, -9000, 9000, 9000), ("18000 x 18000", "512 x 512")),
    ],
)
def test_bad_boxes_say_what_is_wrong(photo, box, parts):
    with pytest.raises(NoFaceError) as error:
        detect_faces(photo, box=box)
    says(error, "--box", *parts)


# --------------------------------------------------------------------------------------------------------- no face


@pytest.mark.parametrize("size", [20, 100])
def test_no_face_says_what_to_do(size):
    with pytest.raises(NoFaceError) as error:
        detect_faces(Photo(np.full((size, size, 3), 128, np.uint8), path="wall.png"))
    says(error, "wall.png", f"{size} x {size}", "no face", "--box", "--landmarks", "larger")


def test_an_unsure_face_is_said(photo, face, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    with caplog.at_level("WARNING", logger="facefit"):
        found = detect_faces(Photo(noise, path="noise.png"), box=(20, 20, 100, 100))[0]
    assert not found.sure and found.spread > 5 * face.spread
    assert all(part in caplog.text for part in ("noise.png", "unsure", "--landmarks"))


# ----------------------------------------------------------------------------------------- files, other providers


def test_trained_files_are_found_without_importing_their_package(face):
    assert face.landmarks.size  # dlib has been used
    assert (dlib_model_folder() / "shape_predictor_68_face_landmarks.dat").is_file()
    assert "face_recognition_models" not in sys.modules


def test_a_folder_of_trained_files_can_be_named(tmp_path, photo, face, monkeypatch):
    monkeypatch.setenv("FACEFIT_DLIB_MODELS", str(tmp_path))
    with pytest.raises(DetectorError) as error:
        detect_faces(photo)
    says(error, "shape_predictor_68_face_landmarks.dat", str(tmp_path), "pip install", "FACEFIT_DLIB_MODELS")
    (tmp_path / "shape_predictor_68_face_landmarks.dat").symlink_to(
        dlib_model_folder() / "shape_predictor_68_face_landmarks.dat"
    )
    assert np.array_equal(detect_faces(photo)[0].landmarks, face.landmarks)


def test_missing_packages_are_named(photo, monkeypatch):
    detection._load_models.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(detection.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DetectorError) as error:
            detect_faces(photo)
        says(error, "face_recognition_models", "pip install face_recognition_models", "FACEFIT_DLIB_MODELS")
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(DetectorError, match="pip install dlib-bin.*--landmarks"):
        detect_faces(photo)


def test_any_provider_will_do(photo, caplog):
    class Two:
        def faces(self, photo, box, all_faces):
            row = np.linspace(0, 1, 68)[:, None] * [40, 30] + 10
            return [Face.from_landmarks(row), Face.from_landmarks(row * 3, photo)]

    faces = detect_faces(photo, all_faces=True, provider=Two())
    assert [face.box for face in faces] == [(30.0, 30.0, 150.0, 120.0), (10.0, 10.0, 50.0, 40.0)]


def test_a_face_from_landmarks_knows_what_is_hidden(photo):
    points = np.linspace(0, 1, 68)[:, None] * [100, 80] + 450
    face = Face.from_landmarks(points, photo)
    assert face.truncated and face.source == "file" and face.noise == LANDMARK_NOISE["file"]
    points[40:] = np.nan
    assert Face.from_landmarks(points).box == pytest.approx((450, 450, *points[39]))
    with pytest.raises(NoFaceError, match="all 68 landmarks are NaN, expected"):
        Face.from_landmarks(np.full((68, 2), np.nan))


# ------------------------------------------------------------------------------------------------- measured data


def test_real_photos_beat_the_plain_predictor(shared):
    truth = np.load(shared / "data" / "aflw_dev" / "index.npz")
    errors = []
    for name, points, yaw in zip(truth["names"], truth["pts68_2d"], truth["yaw_deg"], strict=True):
        if abs(yaw) < 30:
            found = detect_faces(read_photo(shared / "data" / "aflw_dev" / str(name)))[0]
            assert found.sure
            size = np.prod(np.ptp(points, axis=0)) ** 0.5
            errors.append(100 * np.linalg.norm(found.landmarks - points, axis=1).mean() / size)
    assert len(errors) == 8 and np.mean(errors) < 3.60  # dlib on its own box: 3.62
