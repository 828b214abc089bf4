"""Pickles are read as data: what they hold comes back, what they would run does not run, what they claim is bounded."""

import collections
import copyreg
import pickle
import struct
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from published.flame import Instance, python2_pickle, write_deca_embedding, write_dynamic_embedding, write_flame

from morphable.io.contents import ModelFileError
from morphable.io.pickles import Unread, read_pickle, unpickle

PLAIN = {
    "doubles": np.linspace(-1, 1, 12).reshape(4, 3),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    "big-endian": np.arange(5, dtype=">u4"),
    "empty": np.zeros((0, 3)),
    "flags": np.array([True, False]),
    "names": np.array(["jaw", "neck"]),
    "scalar": np.float64(3.5),
    "text": "Kopf, tête",
    "bytes": b"\x00\xff",
    "nothing": b"",
    "numbers": [1, -2.5, None, True, 2**40, (1, (2, 3))],
    "inner": collections.OrderedDict(x=np.arange(3)),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_come_back_from_every_protocol(protocol):
    found = unpickle(pickle.dumps(PLAIN, protocol=protocol), "test")
    assert found.keys() == PLAIN.keys()
    for name, value in PLAIN.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype and np.array_equal(found[name], value)
        elif name == "inner":
            assert np.array_equal(found[name]["x"], value["x"])
        else:
            assert found[name] == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [sp.csc_matrix, sp.csr_matrix, sp.csc_array])
def test_sparse_matrices_become_dense(protocol, kind):
    dense = np.where(np.random.default_rng(0).random((5, 30)) < 0.2, 1.5, 0.0)
    assert np.array_equal(unpickle(pickle.dumps(kind(dense), protocol=protocol), "test"), dense)


def test_shared_objects_stay_one_object():
    array = np.arange(3)
    first, second = unpickle(pickle.dumps([array, array]), "test")
    assert first is second


def test_python_2s_escaped_strings_are_latin_1():
    raw = bytes(range(256)).decode("latin-1")
    escaped = ascii(raw).encode()  # as Python 2's repr, which protocol 0 has
    assert unpickle(b"S" + escaped + b"\np0\n.", "test") == raw


def test_sets_become_lists_and_bytearrays_bytes():
    found = unpickle(pickle.dumps({"set": {1, 2}, "frozen": frozenset("a"), "bytes": bytearray(b"ab")}), "test")
    assert found == {"set": [1, 2], "frozen": ["a"], "bytes": b"ab"}


def test_chumpy_rearrangements_are_evaluated_and_others_left():
    values = np.arange(12.0).reshape(3, 4)
    ch = Instance("chumpy.ch", "Ch", {"x": values})
    chosen = {"a": ch, "idxs": np.array([5, 0]), "preferred_shape": (2, 1)}
    of = {
        "plain": ch,
        "select": Instance("chumpy.reordering", "Select", chosen),
        "reshape": Instance("chumpy.reordering", "Reshape", {"a": ch, "newshape": (4, 3)}),
        "transpose": Instance("chumpy.reordering", "transpose", {"a": ch, "axes": None}),
        "sum": Instance("chumpy.ch_ops", "add", {"a": ch, "b": ch}),
    }
    found = unpickle(python2_pickle(of), "test")
    assert np.array_equal(found["plain"], values)
    assert found["select"].tolist() == [[5.0], [0.0]]
    assert np.array_equal(found["reshape"], values.reshape(4, 3))
    assert np.array_equal(found["transpose"], values.T)
    assert found["sum"] == Unread("chumpy.ch_ops.add")


def test_nothing_that_a_file_names_is_imported(tmp_path, monkeypatch):
    for name in ("chumpy", "torch", "poison"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    read_pickle(write_flame(tmp_path))
    assert read_pickle(write_deca_embedding(tmp_path))["dynamic_lmk_faces_idx"] == Unread("torch.Tensor")
    with pytest.raises(ModelFileError, match="poison.arrow"):
        unpickle(b"cpoison\narrow\n.", "test")
    assert not {"chumpy", "torch", "poison"} & (set(sys.modules) - before)


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _live(command: str) -> dict[str, bytes]:
    """Pickles that run a shell command when Python unpickles them, by the way they do it."""
    run, source = _text(command), f"__import__('os').system({command!r})"
    system = b"cos\nsystem\n"
    inner = system + b"(" + run + b"tR."
    module = b"cimportlib\nimport_module\n(" + _text("os") + b"tR"
    return {
        "REDUCE": system + b"(" + run + b"tR.",
        "the module behind os": b"cposix\nsystem\n(" + run + b"tR.",
        "STACK_GLOBAL": b"\x80\x04" + _text("os") + _text("system") + b"\x93" + run + b"\x85R.",
        "INST": b"(" + run + b"ios\nsystem\n.",
        "OBJ": b"(" + system + run + b"o.",
        "a file's name in the memo": b"0".join([system + b"q\x00", b"h\x00" + run + b"\x85R"]) + b".",
        "eval": b"c__builtin__\neval\n(" + _text(source) + b"tR.",
        "exec": b"cbuiltins\nexec\n(" + _text(source) + b"tR.",
        "getattr": b"cbuiltins\ngetattr\n(" + module + _text("system") + b"tR(" + run + b"tR.",
        "attrgetter": b"coperator\nattrgetter\n(" + _text("system") + b"tR(" + module + b"tR(" + run + b"tR.",
        "methodcaller": b"coperator\nmethodcaller\n(" + _text("system") + run + b"tR(" + module + b"tR.",
        "partial": b"cfunctools\npartial\n(" + system + run + b"tR)R.",
        "map in a list": b"c__builtin__\nlist\n(c__builtin__\nmap\n(" + system + b"(" + run + b"ltRtR.",
        "subprocess": b"csubprocess\ngetoutput\n(" + run + b"tR.",
        "a pickle in a pickle": b"cpickle\nloads\n(B" + struct.pack("<I", len(inner)) + inner + b"tR.",
        "timeit": b"ctimeit\ntimeit\n(" + _text(source) + _text("0") + b"ctime\ntime\nK\x01tR.",
        "NumPy's exec": b"cnumpy.testing._private.utils\nrunstring\n(" + _text(source) + b"}tR.",
        "NEWOBJ": b"\x80\x02cbuiltins\nbytes\ncbuiltins\nmap\n" + system + b"](" + run + b"e\x86\x81\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cbuiltins\nbytes\ncbuiltins\nmap\n" + system + b"](" + run + b"e\x86}\x92\x85}\x92.",
        "BUILD": b"ctypes\nSimpleNamespace\n)R}" + _text("__setstate__") + system + b"sb" + run + b"b.",
        "EXT1": b"\x82\xf0(" + run + b"tR.",
    }


@pytest.fixture
def extension():
    """`os.system` in the registry of pickle's extension codes, as an application might have it."""
    copyreg.add_extension("os", "system", 240)
    yield
    copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize("way", _live("").keys())
def test_no_pickle_runs_a_command(way, tmp_path, extension):
    ran = tmp_path / "ran"
    payload = _live(f"touch {ran}")[way]
    with pytest.raises(ModelFileError):
        unpickle(payload, "test")
    path = tmp_path / "model.pkl"
    path.write_bytes(payload)
    with pytest.raises(ModelFileError, match="model.pkl"):
        read_pickle(path)
    assert not ran.exists()
    pickle.loads(payload)  # the payload is a live one
    assert ran.exists()


REFUSED = {
    "PERSID": b"Pos.system\n.",
    "BINPERSID": b"\x80\x02" + _text("os.system") + b"Q.",
    "NEWOBJ_EX": b"\x80\x04cchumpy.ch\nCh\n)}\x92.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "BUILD of a name": b"cnumpy.core.multiarray\n_reconstruct\n}" + _text("__defaults__") + b")sb.",
    "BUILD of a dictionary": b"}}b.",
    "BUILD twice": b"cchumpy.ch\nCh\n)\x81}b}b.",
    "a call of an array": python2_pickle(np.arange(3))[:-1] + b")R.",
    "an object array's object": b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n(K\x00tU\x01btR.",
    "an object made from another": b"ccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\nlist\n]tR.",
    "arguments for a class": b"(K\x01ichumpy.ch\nCh\n.",
    "numpy's loader": b"cnumpy\nload\n(" + _text("/etc/passwd") + b"tR.",
    "a dotted name": b"\x80\x04" + _text("numpy") + _text("dtype.__class__") + b"\x93.",
    "a dtype with fields": b"cnumpy\ndtype\n(U\x03V16K\x00K\x01tR.",
    "a dtype by code": b"cnumpy\ndtype\n(" + _text("f8,(1000000000,)f8") + b"K\x00K\x01tR.",
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_no_model_needs_is_refused(way):
    with pytest.raises(ModelFileError):
        unpickle(REFUSED[way], "test")


def test_the_error_names_what_the_file_asks_for():
    with pytest.raises(ModelFileError, match=r"face.pkl: asks to run 'os.system'; refused"):
        unpickle(b"cos\nsystem\n(S'true'\ntR.", "face.pkl")


def _array(shape: bytes, dtype: bytes, raw: bytes) -> bytes:
    """An ndarray of a protocol 2 pickle, whatever it claims."""
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
    return start + shape + b"cnumpy\ndtype\n(" + dtype + b"K\x00K\x01tR" + b"\x89" + raw + b"tb."


def _sparse(shape: tuple, indices: list, pointers: list) -> bytes:
    state = {"_shape": shape, "data": np.ones(len(indices)), "indices": np.array(indices, np.int32)}
    state["indptr"] = np.array(pointers, np.int64)
    return python2_pickle(Instance("scipy.sparse.csc", "csc_matrix", state))


_LARGE = b"\x8a\x08" + struct.pack("<q", 2**50)
BOMBS = {
    "bytes longer than the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"ab.",
    "text longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"ab.",
    "a bytearray longer than the file": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"ab.",
    "a frame longer than the file": b"\x80\x04\x95" + struct.pack("<Q", 2**62),
    "an integer of two gigabytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"ab.",
    "an integer of many digits": b"L" + b"9" * 100_000 + b"L\n.",
    "an integer of many bits": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6 + b".",
    "a memo of great numbers": b"N" + b"p99999999999999999999\n.",
    "an array larger than its bytes": _array(b"(" + _LARGE + b"t", b"U\x02f8", b"U\x08" + b"x" * 8),
    "an array of nothing, very often": _array(b"(" + _LARGE + b"t", b"U\x02S0", b"U\x00"),
    "an array of objects": _array(b"(" + _LARGE + b"t", b"U\x02O8", b"]"),
    "a negative shape": _array(b"(J\xff\xff\xff\xfft", b"U\x02f8", b"U\x00"),
    "a sparse matrix, very wide": _sparse((10**6, 10**6), [], [0] * (10**6 + 1)),
    "a sparse index out of range": _sparse((3, 2), [0, 3], [0, 1, 2]),
    "a negative sparse index": _sparse((3, 2), [0, -1], [0, 1, 2]),
    "sparse pointers that go back": _sparse((3, 2), [0, 1], [0, 3, 2]),
    "ever the same bytes encoded": b"c_codecs\nencode\nq\x01" + _text("a" * 100_000) + b"q\x02"
    + b"h\x01h\x02\x85R0" * 100_000 + b".",
    "a selection out of range": python2_pickle(
        Instance("chumpy.reordering", "Select", {"a": np.arange(3), "idxs": np.array([3])})
    ),
    "keys whose hashes collide": b"}(" + b"".join(
        b"\x8a\x09" + (k * (2**61 - 1)).to_bytes(9, "little", signed=True) + b"N" for k in range(1, 60)
    ) + b"u.",
    "no end": b"N",
    "nothing": b"",
    "no opcode": b"\xff.",
    "an empty stack": b".",
    "a mark too many": b"(.",
    "no mark": b"t.",
}  # fmt: skip


@pytest.mark.parametrize("way", BOMBS)
def test_claims_are_bounded_by_the_file(way):
    with pytest.raises(ModelFileError):
        unpickle(BOMBS[way], "test")


def test_opcodes_are_counted(monkeypatch):
    monkeypatch.setattr("morphable.io.pickles.OPERATIONS", 100)
    assert unpickle(b"N0" * 49 + b"N.", "test") is None
    with pytest.raises(ModelFileError, match="more than 100 opcodes"):
        unpickle(b"N0" * 50 + b"N.", "test")


def test_nesting_costs_no_recursion():
    depth = 20_000
    found = unpickle(b"]" * depth + b"a" * (depth - 1) + b".", "test")
    for _ in range(depth - 1):
        (found,) = found
    assert found == []


def test_a_dictionary_is_expected(tmp_path):
    path = tmp_path / "model.pkl"
    for value in ([1, 2], np.arange(3), {1: 2}):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(ModelFileError, match="expected a dictionary of arrays"):
            read_pickle(path)
    np.save(tmp_path / "plain.npy", np.arange(3))
    with pytest.raises(ModelFileError, match="expected a dictionary of arrays"):
        read_pickle(tmp_path / "plain.npy")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_pickle(tmp_path / "absent.pkl")


def test_damaged_files_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(3)
    for write in (write_flame, write_dynamic_embedding):
        path = write(tmp_path)
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(len(data) if rng.random() < 0.5 else 400)] = rng.integers(256)
            path.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)
            try:
                read_pickle(path)
            except ModelFileError as error:
                assert str(path) in str(error)
