"""NumPy's own files, `.npz` and `.npy`, from strangers: nothing is unpickled, nothing grows without bound."""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

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
            arrays = {
                member.filename.removesuffix(".npy"): read_array(archive.read(member), f"{path}: {member.filename}")
                for member in members
            }
            return {name: values for name, values in arrays.items() if values is not None}
    except ModelFileError:
        raise
    except _DAMAGED as error:
        raise ModelFileError(
            f"{path}: not a readable .npz ({error}); expected a zip of numpy arrays. Was it cut off while copying?"
        ) from error


def read_array(content: bytes, where: str) -> np.ndarray | None:
    """The array in the bytes of an `.npy`, its size checked before memory is taken for it; None for Python objects."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream, max_header_size=_HEADER_CHARACTERS)
    except _BAD_HEADER as error:
        raise ModelFileError(f"{where}: not a numpy array ({error}); expected an .npy. Is the file damaged?") from error
    if dtype.hasobject:
        return None
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
