"""Archives of cereal: all that eos writes is read, and nothing else is."""

import struct

import numpy as np
import pytest
from published import sfm as published

from morphable.io.cereal import is_eos, read_blendshapes, read_cereal
from morphable.io.contents import ModelFileError


def test_an_archive_holds_what_eos_wrote(tmp_path):
    truth = published.truth_of(published.write_eos)
    arrays = read_cereal(published.write_eos(tmp_path))
    assert arrays["version"] == 4
    np.testing.assert_array_equal(arrays["shape_model/mean"][:, 0], truth["mean_mm"].ravel().astype(np.float32))
    np.testing.assert_array_equal(arrays["shape_model/orthonormal_pca_basis"], truth["identity"])
    np.testing.assert_array_equal(arrays["color_model/orthonormal_pca_basis"], truth["colours"])
    np.testing.assert_array_equal(arrays["expression_model/orthonormal_pca_basis"], truth["expression"])
    np.testing.assert_array_equal(arrays["texture_coordinates"], truth["coordinates"])
    np.testing.assert_array_equal(arrays["texture_triangle_indices"], truth["coordinate_triangles"])
    assert arrays["landmark_definitions"]["left.ear.top"] == 0


def test_a_portable_archive_holds_the_same(tmp_path):
    path = published.write_sfm(tmp_path)
    portable = tmp_path / "portable.bin"
    portable.write_bytes(b"\x01" + path.read_bytes())
    plain, other = read_cereal(path), read_cereal(portable)
    assert plain.keys() == other.keys()
    for name, values in plain.items():
        np.testing.assert_array_equal(values, other[name])


def test_models_are_told_from_other_archives(tmp_path):
    path = published.write_sfm(tmp_path)
    expressions = tmp_path / "expression_blendshapes_169.bin"
    assert is_eos(path.read_bytes()[:16])
    assert not is_eos(expressions.read_bytes()[:16])
    assert read_blendshapes(expressions).names == published.EMOTIONS
    with pytest.raises(ModelFileError, match="with the model beside it"):
        read_cereal(expressions)
    with pytest.raises(ModelFileError):
        read_blendshapes(path)


@pytest.mark.parametrize("version", [0, 5, 2**31])
def test_other_versions_are_refused(tmp_path, version):
    path = published.write_sfm(tmp_path)
    path.write_bytes(struct.pack("<I", version) + path.read_bytes()[4:])
    with pytest.raises(ModelFileError, match="class version 1 to 4"):
        read_cereal(path)


def test_every_cut_and_every_excess_is_noticed(tmp_path):
    path = published.write_eos(tmp_path)
    whole = path.read_bytes()
    for end in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelFileError):
            read_cereal(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ModelFileError, match="1 bytes too many"):
        read_cereal(path)


@pytest.mark.parametrize("rows, columns", [(2**31 - 1, 2**31 - 1), (-1, 1), (2**31 - 1, 1), (3, -3)])
def test_sizes_beyond_the_file_take_no_memory(tmp_path, rows, columns):
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<Iii", 1, rows, columns) + bytes(64))
    with pytest.raises(ModelFileError, match="expected"):
        read_cereal(path)


def test_a_missing_file_is_a_model_file_error(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_cereal(tmp_path / "none.bin")
