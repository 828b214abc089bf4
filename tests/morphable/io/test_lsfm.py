"""Files of the Large Scale Facial Model and the Liverpool-York Head Model."""

import numpy as np
import pytest
import scipy.io
from published import lsfm as published

from morphable.io import lsfm
from morphable.io.contents import Contents, ModelFileError, Source, checked
from morphable.io.matlab import read_mat

WRITERS = {"lsfm": published.write_lsfm, "lyhm": published.write_lyhm}


def read(path) -> Contents:
    arrays, source = read_mat(path), Source(path, "")
    (layout,) = [x for x in lsfm.LAYOUTS if x.matches(frozenset(arrays))]
    return checked(layout.read(arrays, source), source)


@pytest.mark.parametrize("name", WRITERS)
def test_a_head_is_the_files_own_formula_in_mm(name, tmp_path):
    truth, contents = published.truth_of(WRITERS[name]), read(WRITERS[name](tmp_path))
    c = np.random.default_rng(1).normal(size=contents.identity.shape[-1])
    expected = truth["mean_mm"] + (truth["identity"] @ (truth["identity_mm"] * c)).reshape(-1, 3)
    np.testing.assert_allclose(contents.mean + contents.identity @ c, expected, atol=1e-3)
    assert contents.unit_mm == {"lsfm": 1000, "lyhm": 1}[name]
    assert np.array_equal(contents.triangles, truth["triangles"])
    assert contents.expression is None and contents.format == name


def test_colours_of_lyhm(tmp_path):
    truth, contents = published.truth_of(published.write_lyhm), read(published.write_lyhm(tmp_path))
    b = np.array([1.0, -2.0, 0.5, 1.0])
    expected = truth["colour"] + (truth["colours"] @ (truth["colour_deviations"] * b)).reshape(-1, 3)
    np.testing.assert_allclose(contents.albedo_mean + contents.albedo_modes @ b, expected, atol=1e-5)


def test_one_power_of_ten_makes_a_head():
    head = np.array([[-80.0, -110, 0], [80, 110, 100]])
    source = Source(published.Path("x.mat"), "")
    for unit in (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0):
        assert lsfm.decimal_unit(head / unit, source) == pytest.approx(unit)
    with pytest.raises(ModelFileError, match="expected a head"):
        lsfm.decimal_unit(np.zeros((5, 3)), source)


def test_triangles_may_count_from_1(tmp_path):
    path = published.write_lsfm(tmp_path)
    expected = read(path).triangles
    arrays = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
    scipy.io.savemat(path, {**arrays, "trilist": arrays["trilist"] + 1})
    assert np.array_equal(read(path).triangles, expected)
    scipy.io.savemat(path, {**arrays, "trilist": arrays["trilist"] + 2})
    with pytest.raises(ModelFileError, match="trilist"):
        read(path)


def test_negative_variances_and_too_few_are_refused(tmp_path):
    path = published.write_lsfm(tmp_path)
    arrays = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
    for wrong, message in ((-arrays["eigenvalues"], "below 0"), (arrays["eigenvalues"][:, :2], "one for each")):
        scipy.io.savemat(path, {**arrays, "eigenvalues": wrong})
        with pytest.raises(ModelFileError, match=message):
            read(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_was_cut_off_says_so(name, tmp_path):
    path = WRITERS[name](tmp_path)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ModelFileError, match=path.name):
            read(path)
