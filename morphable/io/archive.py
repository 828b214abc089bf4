"""NumPy's own files, `.npz` and `.npy`, from strangers: nothing is unpickled, nothing grows without bound."""

import contextlib
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from morphable.io.contents import ModelFileError, allowance

# What the zip reader raises for damaged archives, passwords and unknown methods.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
# NumPy evaluates a header as a Python literal, and passes on whatever goes wrong there.
_BAD_HEADER = (
    *(ValueError, TypeError, SyntaxError, KeyError, EOFError, RecursionError, MemoryError, OverflowError),
    tokenize.TokenError,
)
_HEADER_CHARACTERS = 10_000  # of an array's description; NumPy's own limit
Made = TypeVar("Made")


class PickledArrayError(ModelFileError):
    """An array of Python objects, which is a pickle."""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of numbers and text in an `.npz`, by name; Python objects in it, which are pickles, are left out.

    Raises ModelFileError for what is no such file.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            whole = sum(member.file_size for member in members)
            if whole > allowance(size):
                raise ModelFileError(
                    f"{path}: unpacks to {whole >> 20} MiB from {size >> 20} MiB, expected at most "
                    f"{allowance(size) >> 20}. Is the file damaged?"
                )
            arrays = {}
            for member in members:
                with contextlib.suppress(PickledArrayError):
                    values = read_array(archive.read(member), f"{path}: {member.filename}")
                    arrays[member.filename.removesuffix(".npy")] = values
            return arrays
    except ModelFileError:
        raise
    except _DAMAGED as error:
        raise ModelFileError(
            f"{path}: not a readable .npz ({error}); expected a zip of numpy arrays. Was it cut off while copying?"
        ) from error


def member_names(path: Path) -> frozenset[str]:
    """The names of an `.npz`'s arrays, without reading them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except _DAMAGED as error:
        raise ModelFileError(f"{path}: not an .npz ({error}). Was it cut off while copying?") from error


def read_member(path: Path, name: str, use: Callable[[Any, int], Made]) -> Made:
    """What `use` makes of one array of an `.npz`, given its `.npy` as a stream and its size, which has been checked.

    For arrays that are larger than what is wanted of them. Raises ModelFileError for whatever goes wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            size, most = archive.getinfo(f"{name}.npy").file_size, allowance(path.stat().st_size)
            if size > most:
                raise ValueError(f"unpacks to {size} bytes, and a file of this size may hold {most}")
            return use(file, size)
    except ModelFileError:
        raise
    except Exception as error:  # of zipfile, zlib, NumPy and `use`: a damaged file, whatever its kind
        raise ModelFileError(
            f"{path}: array {name!r} cannot be read ({type(error).__name__}: {error}). Is the file complete?"
        ) from error


def read_one(path: Path, name: str) -> np.ndarray:
    """One whole array of an `.npz`."""
    return read_member(path, name, lambda file, _: read_array(file.read(), f"{path}: {name}"))


def npy_header(file: io.BufferedIOBase, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype of the `.npy` whose data follow in the stream."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file, max_header_size=_HEADER_CHARACTERS)
    except _BAD_HEADER as error:
        raise ModelFileError(
            f"{where}: not a readable .npy ({error}); expected a numpy array. Was it cut off while copying?"
        ) from error
    return shape, fortran, dtype


def read_array(content: bytes, where: str) -> np.ndarray:
    """The array in the bytes of an `.npy`; its size is checked before memory is taken for it."""
    stream = io.BytesIO(content)
    shape, fortran, dtype = npy_header(stream, where)
    if dtype.hasobject:
        raise PickledArrayError(f"{where}: got an array of objects, expected numbers or text. Pickles are not read.")
    if dtype.kind not in "fiubUS" or dtype.subdtype is not None:
        raise ModelFileError(f"{where}: got an array of {dtype}, expected numbers or text. Other objects are not read.")
    if any(n < 0 for n in shape) or len(shape) > 8:
        raise ModelFileError(f"{where}: got shape {shape}, expected lengths of 0 or more. Is the file damaged?")
    data = content[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ModelFileError(
            f"{where}: got {len(data)} bytes for an array of shape {shape} and type {dtype}. Is the file cut off?"
        )
    if dtype.itemsize == 0 or not len(data):
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
