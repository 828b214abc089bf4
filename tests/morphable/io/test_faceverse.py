"""FaceVerse: axes and unit are found from landmarks, and faces are the file's own formula in them."""

import numpy as np
import pytest
from published import faceverse as published
from published.bfm import COUNT
from published.landmarks import IBUG

from morphable.io import read
from morphable.io.contents import ModelFileError
from morphable.io.faceverse import _MIRRORED
from morphable.landmarks import MEDIAPIPE_OF_IBUG

WRITERS = {published.write_faceverse: published.SCALE_V2, published.write_faceverse_v4: 1.0}


def _changed(path, **changes):
    arrays = np.load(path, allow_pickle=True).item() | changes
    np.save(path, np.array({k: v for k, v in arrays.items() if v is not None}, dtype=object), allow_pickle=True)
    return path


@pytest.mark.parametrize("writer", WRITERS)
def test_a_face_is_the_files_own_formula_in_mm_and_our_axes(tmp_path, writer):
    truth, scale = published.truth_of(writer), WRITERS[writer]
    contents, _ = read(writer(tmp_path))
    rng = np.random.default_rng(1)
    c, w = rng.normal(size=5), rng.uniform(size=6)
    expected = truth["mean_mm"] + (truth["identity_mm"] @ c + truth["expression_mm"] @ w).reshape(-1, 3)
    got = contents.mean + contents.identity @ c + contents.expression @ w
    np.testing.assert_allclose(got, scale * expected, atol=2e-3)
    np.testing.assert_array_equal(contents.triangles, truth["triangles"])
    np.testing.assert_allclose(contents.albedo_mean, truth["colour"] / 255, atol=1e-6)
    np.testing.assert_allclose(contents.albedo_modes, truth["colours"].reshape(-1, 3, 3) / 255, atol=1e-6)


def test_units_have_arkits_names_where_the_file_gives_them(tmp_path):
    contents, _ = read(published.write_faceverse(tmp_path))
    named = ("jawOpen", "mouthSmileLeft", "eyeLookUpLeft", "browInnerUp")
    assert contents.expression_names == (*named, "expression_004", "expression_005")
    assert np.flatnonzero(np.isfinite(contents.landmarks.weights[:, 0])).tolist() == list(range(48))
    np.testing.assert_array_equal(contents.landmarks.vertices[:48, 0], IBUG[:48])


def test_triangles_face_outwards_whatever_their_order(tmp_path):
    path = published.write_faceverse(tmp_path)
    truth = published.truth_of(published.write_faceverse)
    contents, _ = read(_changed(path, tri=truth["triangles"][:, [0, 2, 1]]))
    np.testing.assert_array_equal(np.sort(contents.triangles), np.sort(truth["triangles"]))
    a, b, c = (contents.mean[contents.triangles[:, k]] for k in range(3))
    assert np.cross(b - a, c - a)[:, 2].sum() > 0


def test_landmarks_named_by_the_other_side_change_sides(tmp_path):
    assert (_MIRRORED[_MIRRORED] == np.arange(68)).all()
    path = published.write_faceverse_v4(tmp_path)
    contents, _ = read(_changed(path, keypoints_68=IBUG[_MIRRORED]))
    np.testing.assert_array_equal(contents.landmarks.vertices[:, 0], IBUG)


def test_mediapipes_landmarks_will_do(tmp_path):
    path = published.write_faceverse_v4(tmp_path)
    mesh = np.zeros(478, int)
    mesh[MEDIAPIPE_OF_IBUG] = IBUG
    contents, _ = read(_changed(path, keypoints_68=None, mediapipe_keypoints=mesh))
    np.testing.assert_array_equal(contents.landmarks.vertices[:, 0], IBUG)


def test_eyeballs_are_parts_that_turn_about_their_means(tmp_path):
    contents, _ = read(published.write_faceverse_v4(tmp_path))
    left = np.flatnonzero(contents.part_of_vertex == contents.part_names.index("eye_left"))
    np.testing.assert_array_equal(left, np.arange(COUNT, COUNT + 6))
    assert contents.mean[left, 0].mean() > 0
    np.testing.assert_allclose(contents.rig.joints.mean[1], contents.mean[left].mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(contents.rig.joints.modes[2], contents.identity[left + 6].mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(contents.rig.weights.sum(axis=1), 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"keypoints_68": None},
        {"keypoints_68": np.full(68, 5)},
        {"keypoints_68": IBUG + 1000},
        {"ver_inds": [169, 169, 181]},
        {"tri": np.array([[0, 1, 500]])},
        {"idBase": np.zeros((12, 3))},
        {"meanshape": np.zeros(5)},
        {"meantex": np.zeros((4, 3))},
        {"exBase": "text"},
    ],
)
def test_damaged_files_are_refused(tmp_path, changes):
    with pytest.raises(ModelFileError):
        read(_changed(published.write_faceverse_v4(tmp_path), **changes))
