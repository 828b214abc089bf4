"""MATLAB's containers: what SciPy writes is read back, and nothing of a damaged file gets further."""

import struct
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from morphable.io import contents
from morphable.io.contents import ModelFileError
from morphable.io.matlab import read_mat

TYPES = ("f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_of_every_type_come_back(compressed, tmp_path):
    arrays = {f"a_{t}": np.arange(24).reshape(4, 6).astype(t) for t in TYPES}
    arrays |= {"cube": np.arange(24.0).reshape(2, 3, 4), "one": np.array([[3.5]]), "none": np.zeros((0, 3))}
    scipy.io.savemat(tmp_path / "a.mat", arrays, do_compression=compressed)
    found = read_mat(tmp_path / "a.mat")
    assert set(found) == set(arrays)
    for name, values in arrays.items():
        assert found[name].dtype == values.dtype and np.array_equal(found[name], values), name


def test_fields_of_structs_have_paths_and_text_is_text(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"shp": {"mu": np.eye(2), "inner": {"v": np.ones((1, 3))}}, "text": "Grüße"})
    found = read_mat(tmp_path / "a.mat")
    assert set(found) == {"shp/mu", "shp/inner/v", "text"}
    assert np.array_equal(found["shp/inner/v"], np.ones((1, 3))) and found["text"][0] == "Grüße"


def test_what_no_model_has_is_left_out(tmp_path):
    cells = np.empty((1, 2), object)
    cells[0] = [np.ones(2), "x"]
    scipy.io.savemat(tmp_path / "a.mat", {"c": cells, "s": scipy.sparse.eye(4), "kept": np.ones((2, 2))})
    assert set(read_mat(tmp_path / "a.mat")) == {"kept"}


def test_the_other_byte_order(tmp_path):
    values = np.array([[1.5, 2.0], [3.0, 4.0]])

    def element(kind, body):
        return struct.pack(">II", kind, len(body)) + body + b"\0" * (-len(body) % 8)

    matrix = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 2, 2)) + element(1, b"ab")
    matrix += element(9, values.T.astype(">f8").tobytes())
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    (tmp_path / "a.mat").write_bytes(header + element(14, matrix))
    assert np.array_equal(read_mat(tmp_path / "a.mat")["ab"], values)


def test_version_7_3_is_hdf5_with_its_axes_reversed(tmp_path):
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["shp/mu"] = np.arange(6.0).reshape(1, 6).T
        file["#refs#/a"] = np.ones(3)
    data = bytearray(path.read_bytes())
    data[:124] = b"MATLAB 7.3 MAT-file".ljust(124)
    path.write_bytes(data)
    found = read_mat(path)
    assert set(found) == {"shp/mu"} and np.array_equal(found["shp/mu"], np.arange(6.0).reshape(1, 6))


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "MINIMUM_ALLOWANCE", 1 << 16)
    scipy.io.savemat(tmp_path / "a.mat", {"a": np.zeros((1000, 1000))}, do_compression=True)
    with pytest.raises(ModelFileError, match="inflate"):
        read_mat(tmp_path / "a.mat")


def test_lengths_that_lie_are_refused(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.arange(12.0).reshape(3, 4), "b": np.ones((5, 5))})
    whole = path.read_bytes()
    for place in range(128, 200, 4):
        for wrong in (0xFFFFFFFF, 0x7FFFFFFF, 1 << 20):
            path.write_bytes(whole[:place] + struct.pack("<I", wrong) + whole[place + 4 :])
            try:
                for values in read_mat(path).values():
                    assert values.nbytes <= len(whole)
            except ModelFileError:
                continue


def test_a_broken_stream_and_a_missing_file_are_errors_of_ours(tmp_path):
    path = tmp_path / "a.mat"
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_mat(path)
    scipy.io.savemat(path, {"a": np.random.default_rng(0).normal(size=(50, 50))}, do_compression=True)
    whole = path.read_bytes()
    body = zlib.compress(b"nothing")
    for data in (whole[:-9], whole[:100], b"", whole[:128] + struct.pack("<II", 15, len(body)) + body):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match="MATLAB file"):
            read_mat(path)
