"""HDF5 containers: what h5py writes is read back, and damage ends in an error."""

import h5py
import numpy as np
import pytest

from morphable.io import contents
from morphable.io.contents import ModelFileError
from morphable.io.hdf5 import read_hdf5

LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (7, 3)},
    "gzip": {"chunks": (7, 3), "compression": "gzip"},
    "shuffle": {"chunks": (7, 3), "compression": "gzip", "shuffle": True},
    "checksum": {"chunks": (7, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "checksum_only": {"chunks": (50, 5), "fletcher32": True},
}


@pytest.mark.parametrize("libver", ["earliest", "v108"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1", ">f4"])
def test_datasets_come_back(layout, dtype, libver, tmp_path):
    values = (np.random.default_rng(0).normal(size=(50, 5)) * 50).astype("i4" if dtype == "u1" else dtype).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w", libver=(libver, "v108")) as file:
        file.create_dataset("shape/model/pcaBasis", data=values, **LAYOUTS[layout])
    found = read_hdf5(tmp_path / "a.h5")
    assert list(found) == ["shape/model/pcaBasis"] and np.array_equal(found["shape/model/pcaBasis"], values)


def test_scalars_strings_and_what_was_never_written(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["version/majorVersion"] = np.int32(3)
        file["varying"], file["fixed"], file["list"] = "wörter", np.bytes_("abc"), np.array([b"ab", b"c"])
        file.create_dataset("empty", (3, 4), "f4")
        file.create_dataset("empty_chunks", (30, 4), "f4", chunks=(5, 4))
        file["group"] = h5py.SoftLink("/nowhere")
        file["self"] = h5py.SoftLink("/self")
        file["pair"] = np.zeros(2, [("a", "f4"), ("b", "i4")])
        file["shape/representer/cells"] = np.arange(6)
        file["shape"].attrs["name"] = "gravis::MeshShapeRepresenter"
    found = read_hdf5(tmp_path / "a.h5")
    assert found["version/majorVersion"] == 3 and found["version/majorVersion"].shape == ()
    assert found["varying"].tolist() == ["wörter"] and found["fixed"].tolist() == ["abc"]
    assert found["list"].tolist() == ["ab", "c"]
    assert np.array_equal(found["empty"], np.zeros((3, 4))) and not found["empty_chunks"].any()
    assert not {"group", "self", "pair"} & set(found)


def test_groups_that_hold_each_other_end(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b"] = np.ones(3)
        file["a/a"] = file["a"]
    with pytest.raises(ModelFileError, match="nested"):
        read_hdf5(tmp_path / "a.h5")


def test_bombs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "MINIMUM_ALLOWANCE", 1 << 16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("zeros", (10**6, 10**6), "f8", chunks=(10, 10))
    with pytest.raises(ModelFileError, match="are left"):
        read_hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:  # each chunk is far larger than what the dataset has of it
        file.create_dataset("a", data=np.zeros((64, 2)), chunks=(1, 2), maxshape=(None, None))
        file.create_dataset("b", data=np.zeros((64, 1)), chunks=(1, 20000), maxshape=(None, None), compression="gzip")
    with pytest.raises(ModelFileError, match="chunks of"):
        read_hdf5(tmp_path / "b.h5")


def test_other_filters_are_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=np.ones((50, 5)), chunks=(7, 3), compression="lzf")
    with pytest.raises(ModelFileError, match="32000"):
        read_hdf5(tmp_path / "a.h5")


def test_what_is_no_complete_hdf5_is_an_error_of_ours(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_hdf5(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.random.default_rng(0).normal(size=(500, 5)), **LAYOUTS["checksum"])
    whole = path.read_bytes()
    for data in (b"", b"text", whole[:50], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match="HDF5"):
            read_hdf5(path)
