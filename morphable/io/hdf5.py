"""HDF5 containers, read by `pyfive` (Lawrence et al. 2026, JOSS 9688): the format in Python, for untrusted files.

The HDF5 group's C library parses damaged files without fear, and has crashed on some of them; Python raises. What
`pyfive` cannot promise is an end: B-trees may have cycles, and a chunk of a few bytes may inflate to gigabytes. So it
reads through `_Budget`, which refuses to read much more than the file holds, and chunks are inflated here, to the size
that their shape gives and no further. Filters: deflate, shuffle and Fletcher-32, which are all that HDF5 1.8 writes
without plug-ins. Links within the file are followed, those to other files and names are not.
"""

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from morphable.io.contents import ModelFileError, allowance

_DEEPEST = 12  # groups in groups; a statismo file has 4
_MOST_ENTRIES = 4096
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3


def read_hdf5(path: str | Path) -> Mapping[str, np.ndarray]:
    """All datasets of an HDF5 file under flat names, "shape/model/mean"; strings as arrays of `str`.

    Numbers keep their type and shape. Anything but numbers and strings is left out. Raises ModelFileError for a file
    that is damaged, is no HDF5, or would take more memory than `allowance`.
    """
    path = Path(path)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); expected an HDF5 file. Check the path."
        ) from error
    try:
        with raw:
            return _read(raw, path.stat().st_size)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except Exception as error:  # whatever damage makes pyfive raise: assertions, struct.error, KeyError, RecursionError
        raise ModelFileError(
            f"{path}: got a file that is no complete HDF5 ({type(error).__name__}: {str(error)[:200]}); expected one "
            "as it was published. Was it cut off while copying?"
        ) from error


class _Budget(io.RawIOBase):
    """The file, until four times its size was read: enough for each byte and its place in the indices."""

    def __init__(self, raw: Any, size: int):
        self._raw_file, self._left = raw, 4 * size + (16 << 20)

    def read(self, size: int = -1) -> bytes:
        data = self._raw_file.read(size)
        # Small reads cost time, not bytes: a cycle of them must end, too.
        self._left -= max(len(data), 256)
        if self._left < 0:
            raise ValueError("its index leads around in circles")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw_file.seek(offset, whence)

    def tell(self) -> int:
        return self._raw_file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _read(raw: Any, size: int) -> dict[str, np.ndarray]:
    import pyfive

    found: dict[str, np.ndarray] = {}
    left = allowance(size)
    entries = 0
    file: Any = _Budget(raw, size)
    pending: list[tuple[str, Any, int]] = [("", pyfive.File(file), 0)]
    while pending:
        prefix, group, depth = pending.pop()
        for name in group:
            entries += 1
            if entries > _MOST_ENTRIES or depth > _DEEPEST:
                raise ValueError(f"more than {_MOST_ENTRIES} entries, or groups nested deeper than {_DEEPEST}")
            if isinstance(group._links[name], str):
                continue  # a soft link: a name, which may lead in a circle
            entry = group[name]
            if isinstance(entry, pyfive.Group):
                pending.append((f"{prefix}{name}/", entry, depth + 1))
            elif isinstance(entry, pyfive.Dataset):
                values, cost = _dataset(entry, left)
                left -= cost
                if values is not None:
                    found[f"{prefix}{name}"] = values
    return found


def _dataset(dataset: Any, left: int) -> tuple[np.ndarray | None, int]:
    """The dataset's values, and the bytes that they took; none for types that no model has."""
    from pyfive.p5t import P5VlenStringType

    storage = dataset.id
    shape = tuple(int(n) for n in storage.shape)
    strings = isinstance(storage.get_type(), P5VlenStringType)
    itemsize = 16 if strings else int(storage.dtype.itemsize)
    cost = itemsize
    for extent in shape:
        cost *= extent
    if cost > left:
        raise MemoryError(f"a dataset of {cost} bytes, where {left} are left for a file of this size")
    if strings:
        texts = np.asarray(dataset[...] if shape else dataset[()], object).ravel()
        return np.array([t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in texts]), cost
    dtype = storage.dtype
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiubS":
        return None, 0
    if storage.layout_class == 2:
        values, cost = _chunked(storage, shape, dtype, left, dataset.name)
    elif storage.layout_class == 1:
        values = _contiguous(storage, shape, dtype, cost)
    else:
        values = np.array(dataset[()]).reshape(shape)
    if dtype.kind == "S":
        values = np.array([text.decode("utf-8", "replace") for text in values.ravel()])
    return values, cost


def _contiguous(storage: Any, shape: tuple[int, ...], dtype: np.dtype, size: int) -> np.ndarray:
    from pyfive.core import UNDEFINED_ADDRESS

    if storage.data_offset == UNDEFINED_ADDRESS:  # never written
        return np.zeros(shape, dtype)
    file = storage._fh
    file.seek(storage.data_offset)
    data = file.read(size)
    if len(data) < size:
        raise EOFError(f"a dataset of {size} bytes ends after {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _chunked(storage: Any, shape: tuple[int, ...], dtype: np.dtype, left: int, name: str) -> tuple[np.ndarray, int]:
    chunk = tuple(int(n) for n in storage.chunks)
    chunk_size = int(dtype.itemsize)
    for extent in chunk:
        chunk_size *= extent
    if len(chunk) != len(shape) or chunk_size <= 0:
        raise ValueError(f"chunks of shape {chunk} for a dataset of shape {shape}")
    filters = [(f["filter_id"], position) for position, f in enumerate(storage.filter_pipeline or ())]
    unknown = sorted({kind for kind, _ in filters} - {_DEFLATE, _SHUFFLE, _FLETCHER32})
    if unknown:
        raise ModelFileError(
            f"dataset {name!r}: compressed by HDF5 filters {unknown}, expected deflate, shuffle or Fletcher-32. "
            "Pack it anew: h5repack -f GZIP=4 OLD NEW."
        )
    index = storage.index
    if chunk_size * len(index) > left:
        raise MemoryError(f"{len(index)} chunks of {chunk_size} bytes, where {left} are left for a file of this size")
    values = np.zeros(shape, dtype)
    for start in index:
        if any(s < 0 or s % c or s >= n for s, c, n in zip(start, chunk, shape, strict=True)):
            raise ValueError(f"a chunk at {start} in a dataset of shape {shape}")
        skipped, data = storage.read_direct_chunk(start)
        for kind, position in reversed(filters):
            if not skipped >> position & 1:
                data = _unfiltered(kind, data, dtype.itemsize, chunk_size)
        if len(data) != chunk_size:
            raise EOFError(f"a chunk of {chunk_size} bytes has {len(data)}")
        block = np.frombuffer(data, dtype).reshape(chunk)
        inside = tuple(slice(0, n - s) for s, n in zip(start, shape, strict=True))
        values[tuple(slice(s, s + c) for s, c in zip(start, chunk, strict=True))] = block[inside]
    return values, chunk_size * len(index)


def _unfiltered(kind: int, data: bytes, itemsize: int, size: int) -> bytes:
    if kind == _DEFLATE:
        inflate = zlib.decompressobj()
        data = inflate.decompress(data, size + 8)  # with a checksum behind the data, where Fletcher-32 came first
        if inflate.unconsumed_tail:
            raise ValueError("a chunk that is larger than its shape")
        return data
    if kind == _SHUFFLE:
        whole = len(data) - len(data) % itemsize
        planes = np.frombuffer(data, np.uint8, whole).reshape(itemsize, -1)
        return planes.T.tobytes() + data[whole:]
    return data[:-4]  # Fletcher-32's checksum; wrong numbers are found by what they mean
