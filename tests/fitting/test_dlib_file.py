"""dlib's network file: what was written is read, whole, and nothing else is."""

import numpy as np
import pytest
from dlib_writer import MEAN, integer, integers, name, real, write_network

from fitting.detection import dlib_model_folder
from fitting.dlib_file import Affine, Convolution, Dense, DlibFileError, Plain, Pool, read_metric_network
from fitting.identity_network import FILE, load_identity_network


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "network.dat"
    write_network(path)
    return path


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "network.dat"
    truth = write_network(path)
    stored = read_metric_network(path)
    assert stored.size == (150, 150)
    np.testing.assert_array_equal(stored.mean, MEAN)
    read = []
    for layer in stored.layers:
        if isinstance(layer, Convolution):
            read += [layer.weights, layer.biases]
        elif isinstance(layer, Affine):
            read += [layer.gamma, layer.beta]
        elif isinstance(layer, Dense):
            read += [layer.weights]
    assert len(read) == len(truth)
    for got, wanted in zip(read, truth, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_dlibs_own_file_is_read_to_its_end():
    stored = read_metric_network(dlib_model_folder() / FILE)
    kinds = [type(layer).__name__ for layer in stored.layers]
    assert kinds.count("Convolution") == kinds.count("Affine") == 29 and kinds[-1] == "Dense"
    parameters = [array for layer in stored.layers for array in layer if isinstance(array, np.ndarray)]
    assert sum(array.size for array in parameters) == 5_614_592
    assert stored.layers[3] == Pool("max", (3, 3), (2, 2), (0, 0)) and stored.layers[4] == Plain("mark")
    np.testing.assert_allclose(stored.mean, [122.782, 117.001, 104.298], atol=1e-6)


def test_every_cut_and_every_excess_is_noticed(path):
    whole = path.read_bytes()
    for end in np.linspace(0, len(whole) - 1, 30).astype(int):
        path.write_bytes(whole[:end])
        with pytest.raises(DlibFileError, match="got .* expected .*pip install"):
            read_metric_network(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DlibFileError, match="1 bytes too many"):
        read_metric_network(path)


def test_damage_is_refused_or_does_not_matter(path):
    """50 files with bytes changed, left out, put in and copied: the network is loaded or DlibFileError raised."""
    rng = np.random.default_rng(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(50):
        data = bytearray(whole)
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
        kind = rng.integers(5)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = rng.bytes(length)
        elif kind == 3:
            data[at : at + length] = rng.bytes(length)
        else:
            start = int(rng.integers(len(data)))
            data[at:at] = data[start : start + length]
        path.write_bytes(data)
        try:
            load_identity_network(path)
        except DlibFileError:
            refused += 1
    assert refused > 25  # the rest changed a weight or a learning rate


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"BZh91AY&SY",  # still packed
        integer(1) + name("loss_binary_log_"),
        integer(1) + name("loss_metric_2") + real(0.04) + real(0.6) + integer(2) * 5000,
        integer(1) + name("loss_metric_2") + integers(1, 2**62),
        integer(1) + integer(2**62),
        integer(1) + integer(-1),
    ],
)
def test_other_files_are_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(DlibFileError, match="expected"):
        read_metric_network(path)


def test_sizes_beyond_the_file_take_no_memory(path):
    whole = path.read_bytes()
    at = whole.index(name("con_4")) + len(name("con_4"))
    for sizes in ((2**27,) * 4, (2**40, 1, 1, 1), (0, 2**27, 2**27, 2**27), (-1, -1, 1, 1)):
        path.write_bytes(whole[:at] + integers(2, *sizes) + whole[at:])
        with pytest.raises(DlibFileError):
            read_metric_network(path)


def test_a_number_that_is_none_is_refused(path):
    whole = path.read_bytes()
    first = read_metric_network(path).layers[0]
    assert isinstance(first, Convolution)
    value = first.weights.astype("<f4").tobytes()[:8]
    path.write_bytes(whole.replace(value, b"\x00\x00\xc0\x7f" + value[4:]))
    with pytest.raises(DlibFileError, match="parameters up to nan"):
        read_metric_network(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DlibFileError, match="none.dat: cannot be read"):
        read_metric_network(tmp_path / "none.dat")
