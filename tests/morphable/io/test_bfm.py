"""Files of the Basel Face Models: what they hold, in mm and our axes, is what was written."""

import dataclasses
import json
import pickle

import h5py
import numpy as np
import pytest
import scipy.io
from published import bfm as published

from morphable.io import bfm, hdf5, matlab, pickles
from morphable.io.contents import Contents, ModelFileError, Source, checked

READERS = {"mat": matlab.read_mat, "hdf5": hdf5.read_hdf5, "pickle": pickles.read_pickle}
WRITERS = {
    "bfm2009": published.write_bfm2009,
    "bfm2017": published.write_bfm2017,
    "albedomm": published.write_albedomm,
    "deep3d": published.write_deep3d,
    "3ddfa": published.write_3ddfa,
}


def read(path) -> Contents:
    container = {".mat": "mat", ".h5": "hdf5", ".pkl": "pickle"}[path.suffix]
    arrays, source = READERS[container](path), Source(path, "")
    (layout,) = [x for x in bfm.LAYOUTS if x.container == container and x.matches(frozenset(arrays))]
    return checked(layout.read(arrays, source), source)


def srgb(linear):
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", WRITERS)
def test_a_face_is_the_files_own_formula_in_mm(name, tmp_path):
    writer = WRITERS[name]
    truth, contents = published.truth_of(writer), read(writer(tmp_path))
    rng = np.random.default_rng(1)
    c = rng.normal(size=contents.identity.shape[-1])
    expected = truth["mean_mm"] + (truth["identity"] @ (truth["identity_mm"] * c)).reshape(-1, 3)
    got = contents.mean + contents.identity @ c
    if contents.expression is not None:
        e = rng.normal(size=truth["expression"].shape[1])
        scale = truth["expression_mm"] * (truth["expression_parameters"] if name == "3ddfa" else 1)
        expected += (truth["expression"] @ (scale * e)).reshape(-1, 3)
        got += contents.expression[..., : len(e)] @ e
        assert contents.expression_kind == "components"
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert np.array_equal(np.sort(contents.triangles, axis=1), np.sort(truth["triangles"], axis=1))
    assert contents.licence_class == "non-commercial"


@pytest.mark.parametrize("name", ["bfm2009", "bfm2017", "deep3d"])
def test_colours_are_encoded_and_from_0_to_1(name, tmp_path):
    writer = WRITERS[name]
    truth, contents = published.truth_of(writer), read(writer(tmp_path))
    b = np.random.default_rng(1).normal(size=contents.albedo_modes.shape[-1])
    expected = truth["colour"] + (truth["colours"] @ (truth["colour_deviations"] * b)).reshape(-1, 3)
    np.testing.assert_allclose(contents.albedo_mean + contents.albedo_modes @ b, expected, atol=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_triangles_are_counter_clockwise_from_outside_whatever_the_file_has(name, tmp_path):
    contents = read(WRITERS[name](tmp_path))
    corners = contents.mean[contents.triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 2].sum() > 0) and (normals * corners.mean(axis=1)).sum() > 0


def test_a_closed_surface_is_turned_outward():
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 13)[:-1], np.linspace(0.1, np.pi - 0.1, 8))
    points = np.stack([np.sin(v) * np.sin(u), np.cos(v), np.sin(v) * np.cos(u)], -1).reshape(-1, 3)
    i = np.arange(8 * 12).reshape(8, 12)
    right = np.roll(i, -1, axis=1)
    triangles = np.stack([i[:-1], i[1:], right[1:]], -1).reshape(-1, 3)
    for given in (triangles, triangles[:, ::-1]):
        corners = points[bfm.outward(points, given)]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert ((normals * corners.mean(axis=1)).sum(axis=1) > 0).all()


def test_the_neutral_face_has_no_expression_and_the_files_mean_face_is_its_last_component(tmp_path):
    truth, contents = published.truth_of(published.write_bfm2017), read(published.write_bfm2017(tmp_path))
    np.testing.assert_allclose(contents.mean, truth["mean_mm"], atol=1e-4)
    assert contents.expression_names[-1] == "expression_mean"
    np.testing.assert_allclose(contents.expression[..., -1], truth["expression_mean_mm"], atol=1e-5)


def test_named_landmarks_go_to_the_nearest_vertex_and_to_ibugs_number(tmp_path):
    landmarks = read(published.write_bfm2017(tmp_path)).landmarks
    given = np.flatnonzero(np.isfinite(landmarks.weights[:, 0]))
    assert given.tolist() == [8, 30, 36, 45, 48, 54]
    assert landmarks.vertices[30, 0] == published.NAMED["center.nose.tip"]
    assert landmarks.vertices[36, 0] == published.NAMED["right.eye.corner_outer"]


def test_landmarks_need_not_be_there_and_must_be_json(tmp_path):
    path = published.write_bfm2017(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["metadata"]
    assert read(path).landmarks is None
    for text in ("[{", json.dumps([{"id": "center.nose.tip"}]), "3"):
        with h5py.File(path, "r+") as file:
            if "metadata" in file:
                del file["metadata"]
            file["metadata/landmarks/json"] = text
        with pytest.raises(ModelFileError, match="scalismo's list"):
            read(path)


@pytest.mark.parametrize("writer", [published.write_deep3d, published.write_3ddfa])
def test_keypoints_are_ibugs_68(writer, tmp_path):
    landmarks = read(writer(tmp_path)).landmarks
    assert np.array_equal(landmarks.vertices[:, 0], published.truth_of(writer)["keypoints"])
    assert np.array_equal(landmarks.weights, np.tile([1, 0, 0], (68, 1)))


def test_the_edition_is_told(tmp_path):
    assert read(published.write_bfm2017(tmp_path)).format == "bfm2017"
    newer = read(published.write_bfm2017(tmp_path, name="model2019_fullHead.h5"))
    assert newer.format == "bfm2019" and "2019" in newer.sources[0]


def test_bases_of_old_statismo_files_have_their_deviations(tmp_path):
    new = read(published.write_bfm2017(tmp_path, name="new.h5"))
    path = published.write_bfm2017(tmp_path, name="old.h5")
    with h5py.File(path, "r+") as file:
        for part in ("shape", "color", "expression"):
            file[f"{part}/version/minorVersion"][()] = 8
            file[f"{part}/model/pcaBasis"][...] *= np.sqrt(file[f"{part}/model/pcaVariance"][()])
    np.testing.assert_allclose(read(path).identity, new.identity, atol=1e-4)


def test_segments_are_masks(tmp_path):
    truth, contents = published.truth_of(published.write_bfm2009), read(published.write_bfm2009(tmp_path))
    assert list(contents.masks) == ["nose", "eyes", "mouth", "cheeks"]
    assert np.array_equal(np.stack(list(contents.masks.values()), axis=1), truth["segments"])


def test_masks_of_deep3d(tmp_path):
    masks = read(published.write_deep3d(tmp_path)).masks
    assert np.array_equal(np.flatnonzero(masks["front"]), np.arange(39, 89))
    assert masks["skin"].sum() == published.COUNT - -(-published.COUNT // 3)


def test_albedomm_is_linear_and_gets_the_shape_beside_it(tmp_path):
    truth, contents = published.truth_of(published.write_albedomm), read(published.write_albedomm(tmp_path))
    np.testing.assert_allclose(contents.albedo_mean, srgb(truth["linear"]), atol=1e-6)
    for k, weight in ((0, 1.0), (1, -1.0), (2, 0.5)):
        mode = (truth["linears"][:, k] * truth["linear_deviations"][k]).reshape(-1, 3)
        expected = srgb(truth["linear"] + weight * mode)
        got = contents.albedo_mean + weight * contents.albedo_modes[..., k]
        assert np.abs(got - expected).max() < 0.1 * np.abs(expected - contents.albedo_mean).max()
    assert any("specular" in note for note in contents.notes)


def test_albedomm_beside_a_basel_model_replaces_its_colours(tmp_path):
    with_both = read(published.write_albedomm(tmp_path))
    of_shape = read(tmp_path / "model2017-1_bfm_nomouth.h5")
    for field in dataclasses.fields(Contents):
        if field.name in ("mean", "identity", "albedo_mean", "albedo_modes", "expression"):
            assert np.array_equal(getattr(with_both, field.name), getattr(of_shape, field.name)), field.name
    assert any("AlbedoMM" in source for source in of_shape.sources)


def test_albedomm_alone_says_what_it_needs(tmp_path):
    path = published.write_albedomm(tmp_path)
    (tmp_path / "model2017-1_bfm_nomouth.h5").unlink()
    with pytest.raises(ModelFileError, match="model2017-1_bfm_nomouth.h5"):
        read(path)


def test_albedomm_joined_with_its_shape_is_read_alone(tmp_path):
    expected = read(published.write_albedomm(tmp_path))
    joined = tmp_path / "albedoModel2020_bfm.h5"
    with (
        h5py.File(joined, "w") as file,
        h5py.File(tmp_path / "model2017-1_bfm_nomouth.h5") as shape,
        h5py.File(tmp_path / "albedoModel2020_bfm_albedoPart.h5") as albedo,
    ):
        for source, parts in ((shape, ("shape", "expression", "metadata")), (albedo, ("diffuseAlbedo",))):
            for part in parts:
                source.copy(part, file)
    contents = read(joined)
    assert np.array_equal(contents.albedo_modes, expected.albedo_modes)
    assert np.array_equal(contents.identity, expected.identity)


def test_3ddfa_alone_has_its_own_triangles_and_a_power_law(tmp_path):
    path = published.write_3ddfa(tmp_path)
    (tmp_path / "tri.pkl").unlink()
    (tmp_path / "param_mean_std_62d_120x120.pkl").unlink()
    contents = read(path)
    sizes = np.sqrt((contents.identity**2).sum(axis=(0, 1)) / published.COUNT)
    np.testing.assert_allclose(sizes[[0, 31]], [3, 3 * 32**-0.65], rtol=1e-3)
    assert len(contents.triangles) == 5
    assert any("param_mean_std_62d_120x120.pkl" in note for note in contents.notes)


@pytest.mark.parametrize("name", ["bfm2009", "deep3d"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, n: a.pop(n), "missing"),
        (lambda a, n: a.update({n: a[n][:, :-1] if a[n].shape[0] == 1 else a[n][:-1]}), "expected"),
        (lambda a, n: a.update({n: "text"}), "expected"),
    ],
)
def test_a_missing_or_cut_array_is_named(name, change, message, tmp_path):
    path = WRITERS[name](tmp_path)
    arrays = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
    array = {"bfm2009": "texPC", "deep3d": "texBase"}[name]
    change(arrays, array)
    scipy.io.savemat(path, arrays)
    with pytest.raises(ModelFileError, match=message) as error:
        read(path)
    assert array in str(error.value) and str(path) in str(error.value)


def test_indices_outside_are_refused(tmp_path):
    path = published.write_deep3d(tmp_path)
    arrays = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
    for name, place in (("tri", (0, 0)), ("keypoints", (0, 5)), ("frontmask2_idx", (3, 0))):
        for wrong in (0, published.COUNT + 1, 1.5):
            changed = {**arrays, name: arrays[name].copy()}
            changed[name][place] = wrong
            scipy.io.savemat(path, changed)
            with pytest.raises(ModelFileError, match=name):
                read(path)


def test_wrong_side_files_are_refused(tmp_path):
    path = published.write_3ddfa(tmp_path)
    (tmp_path / "param_mean_std_62d_120x120.pkl").write_bytes(pickle.dumps({"std": np.ones(102), "mean": np.ones(102)}))
    with pytest.raises(ModelFileError, match="param_mean_std_62d"):
        read(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_was_cut_off_says_so(name, tmp_path):
    path = WRITERS[name](tmp_path)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ModelFileError, match=path.name):
            read(path)
