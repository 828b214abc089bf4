"""Models in eos's format: what they hold, in mm and our axes, is what was written."""

import json
import shutil

import numpy as np
import pytest
from published import sfm as published
from published.landmarks import IBUG

from morphable.io import read
from morphable.io.contents import ModelFileError


def _normals(vertices, triangles):
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def test_a_face_is_the_files_own_formula_in_mm(tmp_path):
    truth = published.truth_of(published.write_sfm)
    contents, _ = read(published.write_sfm(tmp_path))
    rng = np.random.default_rng(1)
    c, w = rng.normal(size=4), rng.uniform(size=6)
    coordinates = truth["identity"] @ (truth["identity_mm"] * c) + truth["expression_mm"] @ w
    expected = truth["mean_mm"] + coordinates.reshape(-1, 3)
    np.testing.assert_allclose(contents.mean + contents.identity @ c + contents.expression @ w, expected, atol=1e-4)
    assert contents.expression_names == published.EMOTIONS
    assert (contents.expression_kind, contents.unit_mm) == ("units", 1.0)
    assert contents.albedo_mean is None
    np.testing.assert_allclose(contents.uv, truth["uv"], atol=1e-6)


@pytest.mark.parametrize("kind", ["pca", "blendshapes"])
def test_expressions_in_the_model_are_read_as_eos_uses_them(tmp_path, kind):
    truth = published.truth_of(published.write_eos)
    contents, _ = read(published.write_eos(tmp_path, kind=kind))
    count = len(truth["mean_mm"])
    resting = truth["expression_mean_mm"].reshape(-1, 3) if kind == "pca" else 0.0
    np.testing.assert_allclose(contents.mean[:count], truth["mean_mm"] + resting, atol=1e-4)
    modes = (truth["expression"] * truth["expression_mm"]).reshape(count, 3, -1)
    np.testing.assert_allclose(contents.expression[:count], modes, atol=1e-4)
    assert contents.expression_kind == ("components" if kind == "pca" else "units")


def test_colours_and_seams(tmp_path):
    truth = published.truth_of(published.write_eos)
    contents, _ = read(published.write_eos(tmp_path, kind="blendshapes"))
    colours = (truth["colours"] * truth["colour_deviations"]).reshape(-1, 3, 2)
    np.testing.assert_allclose(contents.albedo_mean[contents.triangles], truth["colour"][truth["triangles"]], atol=1e-6)
    np.testing.assert_allclose(contents.albedo_modes[contents.triangles], colours[truth["triangles"]], atol=1e-6)
    np.testing.assert_allclose(contents.mean[contents.triangles], truth["mean_mm"][truth["triangles"]], atol=1e-4)
    corners = truth["coordinates"][truth["coordinate_triangles"]]
    np.testing.assert_allclose(contents.uv[contents.triangles], corners, atol=1e-6)


def test_landmarks_come_from_the_files_beside_the_model(tmp_path):
    path = published.write_sfm(tmp_path)
    contents, _ = read(path)
    given = np.isfinite(contents.landmarks.weights[:, 0])
    assert np.flatnonzero(~given).tolist() == [60, 64]
    fixed = [8, *range(17, 60), *range(61, 64), *range(65, 68)]
    np.testing.assert_array_equal(contents.landmarks.vertices[fixed, 0], IBUG[fixed])
    jaw = contents.mean[contents.landmarks.vertices[:17, 0]]
    np.testing.assert_allclose(jaw * [-1, 1, 1], jaw[::-1], atol=1e-4)  # a symmetric face
    assert (np.diff(jaw[:9, 1]) <= 0).all() and (np.diff(jaw[:, 0]) >= -1e-4).all()
    assert jaw[0, 1] == pytest.approx(contents.mean[IBUG[36], 1], abs=10)
    (tmp_path / "ibug_to_sfm.txt").unlink()
    (tmp_path / "expression_blendshapes_169.bin").unlink()
    bare, _ = read(path)
    assert bare.landmarks is None and bare.expression is None


def test_landmarks_by_name(tmp_path):
    contents, _ = read(published.write_eos(tmp_path))
    given = np.flatnonzero(np.isfinite(contents.landmarks.weights[:, 0]))
    assert given.tolist() == [30, 36]
    np.testing.assert_array_equal(contents.landmarks.vertices[given, 0], IBUG[given])


@pytest.mark.parametrize(
    "name, text",
    [
        ("ibug_to_sfm.txt", "[landmark_mappings\n1 = "),
        ("ibug_to_sfm.txt", "a = " + "[" * 5000),
        ("sfm_model_contours.json", '{"model_contour": 3}'),
        ("sfm_model_contours.json", json.dumps({"model_contour": {"right_contour": [10**6], "left_contour": [0]}})),
        ("expression_blendshapes_169.bin", "no blendshapes at all"),
    ],
)
def test_damaged_files_beside_the_model_are_named(tmp_path, name, text):
    path = published.write_sfm(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelFileError, match=name):
        read(path)


def test_expressions_of_another_resolution_are_not_the_models(tmp_path):
    path = published.write_sfm(tmp_path)
    expressions = tmp_path / "expression_blendshapes_169.bin"
    shutil.move(expressions, tmp_path / "expression_blendshapes_3448.bin")
    assert read(path)[0].expression is None


def test_the_surrey_face_model(shared):
    path = shared / "models/sfm/sfm_shape_3448.bin"
    if not path.exists():
        pytest.skip(f"no {path}")
    contents, _ = read(path)
    assert contents.mean.shape == (3448, 3) and contents.identity.shape == (3448, 3, 63)
    assert (contents.name, contents.licence_class) == ("Surrey Face Model", "non-commercial")
    width, height, depth = np.ptp(contents.mean, axis=0)
    assert 140 < width < 160 and 170 < height < 200 and 90 < depth < 120
    normals = _normals(contents.mean, contents.triangles)
    assert normals[:, 2].sum() > 0.5 * np.linalg.norm(normals, axis=1).sum()
    points = contents.mean[contents.landmarks.vertices[:, 0]]
    assert 85 < np.linalg.norm(points[45] - points[36]) < 100 and points[45, 0] > 0 > points[36, 0]
    assert points[36, 1] > points[30, 1] > points[57, 1] > points[8, 1]
    assert points[30, 2] > points[[36, 45, 48, 54], 2].max()  # the tip of the nose is in front
    np.testing.assert_allclose(points[:8, 0], -points[16:8:-1, 0], atol=3)
    # The texture runs down, and is not mirrored.
    uv = contents.uv[contents.landmarks.vertices[:, 0]]
    assert uv[36, 1] < uv[30, 1] < uv[8, 1] and uv[36, 0] < uv[45, 0]
    # Surprise opens the mouth, happiness draws its corners outwards.
    surprise, happiness = (contents.expression[..., published.EMOTIONS.index(n)] for n in ("surprise", "happiness"))
    chin, corner = contents.landmarks.vertices[[8, 54], 0]
    assert surprise[chin, 1] < -10 and happiness[corner, 0] > 3
