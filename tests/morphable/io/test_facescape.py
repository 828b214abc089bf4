"""FaceScape's bilinear models: our form of them is exact."""

import numpy as np
import pytest
from published import facescape as published
from published.bfm import COUNT
from published.landmarks import IBUG

from morphable.io import read
from morphable.io.contents import ModelFileError
from morphable.statistics.multilinear import identity_distribution


def _face(contents, c, w):
    units = contents.expression + contents.interaction @ c
    return contents.mean + contents.identity @ c + units @ w


@pytest.mark.parametrize("writer", [published.write_facescape, published.write_facescape_v1])
def test_a_face_is_the_core_contracted_with_both_weights(tmp_path, writer):
    truth = published.truth_of(writer)
    contents, _ = read(writer(tmp_path))
    rng = np.random.default_rng(1)
    c, w = rng.normal(size=published.RANK), rng.uniform(size=51) * (rng.uniform(size=51) < 0.1)
    if writer is published.write_facescape:
        a = truth["id_mean"] + np.sqrt(truth["id_var"]) * c
    else:
        mean, factor = identity_distribution(truth["people"])
        a = mean + factor @ c
    b = np.r_[1 - w.sum(), w]
    expected = (truth["core"].astype(float) @ a @ b).reshape(-1, 3)
    np.testing.assert_allclose(_face(contents, c, w)[:COUNT], expected, atol=0.01)
    corners = truth["coordinates"][truth["coordinate_triangles"]] * [1, -1] + [0, 1]
    np.testing.assert_allclose(contents.uv[contents.triangles], corners, atol=1e-6)
    assert contents.licence_class == "non-commercial" and len(contents.expression_names) == 51


def test_landmarks_colours_and_the_face(tmp_path):
    truth = published.truth_of(published.write_facescape)
    contents, _ = read(published.write_facescape(tmp_path))
    np.testing.assert_array_equal(contents.landmarks.vertices[:, 0], IBUG)
    coloured = truth["front"][:80]
    np.testing.assert_allclose(contents.albedo_mean[coloured], truth["colour"][:, ::-1] / 255, atol=1e-6)
    modes = truth["colours"].reshape(80, 3, 2)[:, ::-1] / 255 / np.sqrt(847)
    np.testing.assert_allclose(contents.albedo_modes[coloured], modes, atol=1e-5)
    assert not contents.albedo_modes[truth["front"][80:]].any()
    assert np.flatnonzero(contents.masks["face"][:COUNT]).tolist() == truth["front"].tolist()


def _changed(tmp_path, **changes):
    path = published.write_facescape(tmp_path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {name: change(arrays[name]) for name, change in changes.items() if change}
    np.savez(path, **{name: v for name, v in arrays.items() if name not in changes or changes[name]})
    return path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"id_mean": None}, "id_front.npz"),
        ({"id_var": lambda v: -v}, "variances"),
        ({"fv_indices": lambda v: v - 1}, "triangles: got -1"),
        ({"ft_indices": lambda v: v + 9999}, "texture triangles"),
        ({"ft_indices": lambda v: v[:-1]}, "expected as many"),
        ({"shape_bm_core": lambda v: v[:, :51]}, "52"),
        ({"shape_bm_core": lambda v: v.astype(int)}, "three axes"),
        ({"lm_list_v16": lambda v: v[:66]}, "lm_list_v16"),
        ({"vc_dict_front": lambda v: v + 50}, "vc_dict_front"),
        ({"v_indices_front": lambda v: v + 150}, "v_indices_front"),
    ],
)
def test_damaged_files_are_refused(tmp_path, changes, message):
    with pytest.raises(ModelFileError, match=message):
        read(_changed(tmp_path, **changes))


def test_principal_components_of_expressions_are_told_from_expressions(tmp_path):
    def rotated(core):
        turn = np.linalg.qr(np.random.default_rng(2).normal(size=(52, 52)))[0]
        turn[:, 0] = 1 / np.sqrt(52)
        return (core.transpose(0, 2, 1) @ np.linalg.qr(turn[:, ::1])[0]).transpose(0, 2, 1).astype(np.float32)

    with pytest.raises(ModelFileError, match="_id_exp.npz"):
        read(_changed(tmp_path, shape_bm_core=rotated))
