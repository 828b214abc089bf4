"""MATLAB's containers: version 5 (v6 and v7 of `save`) after "MAT-File Format" (The MathWorks 2019), and v7.3, an HDF5.

Read here rather than by `scipy.io.loadmat` since files are untrusted: every length is checked against the bytes that
are there, and compressed elements inflate to no more than `allowance`. Only numbers, text and structs of them are read;
objects, functions, cells and sparse matrices are left out, and nothing is ever run.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from morphable.io.contents import ModelFileError, allowance
from morphable.io.hdf5 import read_hdf5

# Table 1-1, data types: what the bytes of an element are.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
# Table 1-3, array types: what a matrix is.
_STRUCT, _CHAR = 2, 4
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_HEADER = 128
_DEEPEST = 8  # structs in structs


def read_mat(path: str | Path) -> Mapping[str, np.ndarray]:
    """The variables of a MATLAB file, each of two dimensions or more as MATLAB has it; fields as "struct/field".

    Text is an array of one `str`. Of arrays of structs the first is read. Raises ModelFileError for a file that is
    damaged, is no MATLAB file, or would take more memory than `allowance`.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); expected a MATLAB file. Check the path."
        ) from error
    if data[:10].startswith(b"MATLAB 7.3") or b"\x89HDF\r\n\x1a\n" in (data[:8], data[512:520]):
        del data
        # MATLAB is column-major: it writes its arrays to HDF5 with axes reversed.
        return {name: values.T for name, values in read_hdf5(path).items() if not name.startswith("#")}
    try:
        return _read(memoryview(data))
    except Exception as error:  # zlib.error, struct.error, MemoryError, ...: damage of any kind
        raise ModelFileError(
            f"{path}: got a file that is no complete MATLAB file ({type(error).__name__}: {str(error)[:200]}); "
            "expected one of version 5 to 7.3. Was it cut off while copying?"
        ) from error


def _read(data: memoryview) -> dict[str, np.ndarray]:
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if order is None:
        raise ValueError("its header has no byte order")
    found: dict[str, np.ndarray] = {}
    left = allowance(len(data))
    position = _HEADER
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        body = data[position + 8 : position + 8 + size]
        if len(body) < size:
            raise EOFError(f"a variable of {size} bytes ends after {len(body)}")
        position += 8 + size
        if kind == _COMPRESSED:
            inflate = zlib.decompressobj()
            inflated = inflate.decompress(body, left + 1)
            left -= len(inflated)
            if left < 0:
                raise MemoryError("variables that inflate to more than a file of this size may")
            if not inflate.eof:
                raise EOFError("a compressed variable that breaks off")
            kind, body = _element(memoryview(inflated), order)[:2]
        else:
            position += -size % 8 if kind != _MATRIX else 0
        if kind == _MATRIX:
            _matrix(body, order, "", found, 0)
    return found


def _element(data: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """The first element: its type, its bytes, and what follows; small ones have both in one word (figure 1-3)."""
    kind, size = struct.unpack_from(f"{order}II", data)
    if kind >> 16:
        kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        if size > 4:
            raise ValueError(f"a small element of {size} bytes")
    else:
        start, end = 8, 8 + size + -size % 8
    if start + size > len(data):
        raise EOFError(f"an element of {size} bytes ends after {len(data) - start}")
    return kind, data[start : start + size], data[end:]


def _matrix(data: memoryview, order: str, prefix: str, found: dict[str, np.ndarray], depth: int, name: str = ""):
    """One array, put into `found`; a field's name comes from its struct."""
    if depth > _DEEPEST:
        raise ValueError(f"structs nested deeper than {_DEEPEST}")
    if not len(data):  # an empty field
        return
    _, flags, data = _element(data, order)
    array_type = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    _, dimensions, data = _element(data, order)
    shape = tuple(np.frombuffer(dimensions, f"{order}i4").tolist())
    _, own_name, data = _element(data, order)
    name = prefix + (name or bytes(own_name).decode("ascii", "replace"))
    if array_type == _STRUCT:
        _, width, data = _element(data, order)
        length = struct.unpack_from(f"{order}i", width)[0]
        _, labels, data = _element(data, order)
        if length <= 0 or len(labels) % length:
            raise ValueError(f"names of fields of {length} bytes in {len(labels)}")
        for k in range(len(labels) // length if min(shape, default=0) > 0 else 0):
            label = bytes(labels[k * length : (k + 1) * length]).split(b"\0")[0].decode("ascii", "replace")
            kind, body, data = _element(data, order)
            if kind == _MATRIX:
                _matrix(body, order, f"{name}/", found, depth + 1, label)
    elif array_type == _CHAR:
        kind, body, _ = _element(data, order)
        codec = _TEXT.get(kind, {2: "latin-1", 4: "utf-16"}.get(kind))
        if codec is not None:
            suffix = "" if codec in ("utf-8", "latin-1") else {"<": "-le", ">": "-be"}[order]
            found[name] = np.array([bytes(body).decode(codec + suffix, "replace")])
    elif array_type in _NUMERIC:
        kind, body, _ = _element(data, order)
        if kind not in _STORED:
            raise ValueError(f"{name!r}: numbers of type {kind}")
        stored = np.frombuffer(body, order + _STORED[kind])
        count = 1
        for extent in shape:
            count *= extent
        if count != len(stored) or min(shape, default=0) < 0:
            raise ValueError(f"{name!r}: {len(stored)} numbers for shape {shape}")
        # MATLAB stores whole numbers in the smallest type that holds them.
        found[name] = stored.reshape(shape, order="F").astype(_NUMERIC[array_type], copy=False)
