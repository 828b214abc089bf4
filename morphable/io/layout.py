"""What arrays mean: a published layout, told by the names of its arrays, and how one array is taken out of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from morphable.io.contents import Contents, ModelFileError, Source


class Layout(NamedTuple):
    """A published layout: which container it comes in, how it is told from others, and its reader."""

    name: str  # "flame", "bfm2017", ...
    container: str  # "pickle", "npz", "mat", "hdf5", "cereal" or "folder"
    matches: Callable[[frozenset[str]], bool]  # from the names of the container's top-level entries
    read: Callable[[Mapping[str, Any], Source], Contents]


_KINDS = {"f": "numbers", "i": "integers"}


def array(
    arrays: Mapping[str, Any], name: str, source: Source, shape: tuple[int | None, ...], kind: str = "f"
) -> np.ndarray:
    """One array of a file as float64 (kind "f") or int64 ("i"), of this shape (None: any length), else ModelFileError.

    Floating values that are whole, as MATLAB stores its indices, count as integers.
    """
    if name not in arrays:
        raise ModelFileError(f"{source.path}: array {name!r} is missing, found {sorted(map(str, arrays))}.")
    values = arrays[name]
    if hasattr(values, "toarray"):  # scipy's sparse matrices
        values = values.toarray()
    expected = (
        f"{source.path}: {name!r}: expected {_KINDS[kind]} of shape {tuple('n' if n is None else n for n in shape)}"
    )
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        what = f"{values.dtype} values" if isinstance(values, np.ndarray) else type(values).__name__
        raise ModelFileError(f"{expected}, got {what}. Is it another format?")
    if values.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, values.shape, strict=True)):
        raise ModelFileError(f"{expected}, got {values.shape}. Is the file complete, and of this format?")
    if kind == "f":
        with np.errstate(invalid="ignore"):  # damaged numbers may be signalling ones; `checked` refuses them
            return values.astype(np.float64)
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (np.abs(values) < 2**53) & (values == np.floor(values))
        if not whole.all():
            raise ModelFileError(f"{expected}, got fractions. Is the file damaged?")
    return values.astype(np.int64)
