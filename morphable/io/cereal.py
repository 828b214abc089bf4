"""Archives of the C++ library cereal as eos (Huber et al. 2016) writes morphable models: numbers without names.

A binary archive has neither tags nor checksums, so the order of `serialize` is the format: that of eos's MorphableModel
in class versions 1 to 4, PcaModel, Blendshape and its serialisation of Eigen's matrices (patrikhuber/eos,
include/eos/morphablemodel/{MorphableModel,PcaModel,Blendshape}.hpp and io/eigen_cerealisation.hpp), with cereal's own
types: sizes in 8 bytes, class versions in 4, a flag before an optional, an index before a variant. Version 0 held
OpenCV matrices; eos refuses it, too. A portable archive, which eos's authors do not use, begins with its byte order.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from morphable.io.contents import ModelFileError

VERSIONS = (1, 2, 3, 4)
_LONGEST_NAME = 200  # characters
_MOST_BLENDSHAPES = 10_000


class Blendshapes(NamedTuple):
    """Displacements by name, in the model's unit."""

    names: tuple[str, ...]
    deformations: Float[np.ndarray, "coordinate unit"]  # x y z of the first vertex, of the second, ...


def is_eos(head: bytes) -> bool:
    """Whether a file that begins with these 16 bytes or more may hold an eos model."""
    start = _start(head)
    if start is None or len(head) < start[0] + 12:
        return False
    position, order = start
    rows, columns = np.frombuffer(head, order + "i4", 2, position + 4)
    return bool(rows > 0 and rows % 3 == 0 and columns == 1)


def read_cereal(path: Path) -> dict[str, Any]:
    """A morphable model's arrays by eos's names: "shape_model/mean" (3n, 1), "shape_model/orthonormal_pca_basis"
    (3n, k), "shape_model/eigenvalues" (k, 1), "shape_model/triangle_list" (t, 3), the same under "color_model" (empty
    where there is none) and under "expression_model" if expressions are principal components, "expression_model"
    itself a `Blendshapes` if they are not, "landmark_definitions" (a dictionary of vertices), "texture_coordinates"
    (c, 2), "texture_triangle_indices" (t, 3) and "version".

    Arrays are views of the file's bytes. Raises ModelFileError if the file is cut off, or goes on behind its end.
    """
    data = _bytes_of(path)
    start = _start(data)
    if start is None:
        raise ModelFileError(
            f"{path}: got a file that begins {data[:5].hex(' ')}, expected an eos model of class version 1 to 4. An "
            "expression file is read with the model beside it; a model of version 0 needs eos before 1.0 to convert it."
        )
    archive = _Archive(path, data, *start)
    version = archive.number("u4")
    arrays: dict[str, Any] = {"version": version}
    _pca_model(archive, "shape_model", arrays)
    _pca_model(archive, "color_model", arrays)
    if version >= 2 and not archive.flag():
        kind = archive.number("i4")  # std::variant<PcaModel, Blendshapes>
        if kind == 0:
            _pca_model(archive, "expression_model", arrays)
        elif kind == 1:
            arrays["expression_model"] = _blendshapes(archive)
        else:
            archive.refuse(f"expression model of kind {kind}", "0 (principal components) or 1 (blendshapes)")
    if version >= 3 and not archive.flag():
        count = archive.count(12)  # a name's length and a vertex
        arrays["landmark_definitions"] = {archive.text(): archive.number("i4") for _ in range(count)}
    arrays["texture_coordinates"] = archive.vector("f8", 2)
    if version >= 4:
        arrays["texture_triangle_indices"] = archive.vector("i4", 3)
    archive.end()
    return arrays


def read_blendshapes(path: Path) -> Blendshapes:
    """The blendshapes of a file of their own, `expression_blendshapes_*.bin`. Raises ModelFileError."""
    archive = _Archive(path, _bytes_of(path), 0, "<")
    blendshapes = _blendshapes(archive)
    archive.end()
    return blendshapes


class _Archive:
    """Bytes, and how far they are read."""

    def __init__(self, path: Path, data: bytes, position: int, order: str):
        self.path, self.data, self.position, self.order = path, data, position, order

    def refuse(self, got: str, expected: str):
        raise ModelFileError(
            f"{self.path}: got {got} at byte {self.position} of {len(self.data)}, expected {expected}. Is the file "
            "complete, and written by eos?"
        )

    def take(self, kind: str, count: int) -> np.ndarray:
        dtype = np.dtype(self.order + kind if kind[-1] != "1" else kind)
        if not 0 <= count * dtype.itemsize <= len(self.data) - self.position:
            self.refuse(f"{count} numbers of {dtype.itemsize} bytes", "no more than the file holds")
        values = np.frombuffer(self.data, dtype, count, self.position)
        self.position += values.nbytes
        return values

    def number(self, kind: str) -> int:
        return int(self.take(kind, 1)[0])

    def flag(self) -> bool:
        value = self.number("u1")
        if value > 1:
            self.refuse(f"{value} for a flag", "0 or 1")
        return value == 1

    def count(self, smallest: int) -> int:
        """How many things of at least this many bytes follow."""
        count = self.number("u8")
        if count * smallest > len(self.data) - self.position:
            self.refuse(f"a list of {count}", "no more than the file holds")
        return count

    def text(self) -> str:
        length = self.count(1)
        if length > _LONGEST_NAME:
            self.refuse(f"a name of {length} bytes", f"at most {_LONGEST_NAME}")
        try:
            return self.take("u1", length).tobytes().decode()
        except UnicodeDecodeError:
            self.refuse("a name that is no text", "UTF-8")
            raise

    def vector(self, kind: str, width: int) -> np.ndarray:
        return self.take(kind, self.count(width * int(kind[1:])) * width).reshape(-1, width)

    def matrix(self) -> np.ndarray:
        """Eigen stores columns one after another."""
        rows, columns = self.number("i4"), self.number("i4")
        if rows < 0 or columns < 0:
            self.refuse(f"a matrix of {rows} by {columns}", "sizes of 0 or more")
        return self.take("f4", rows * columns).reshape(columns, rows).T

    def end(self):
        if self.position != len(self.data):
            self.refuse(f"{len(self.data) - self.position} bytes too many", "the end of the file")


def _pca_model(archive: _Archive, name: str, arrays: dict[str, Any]):
    for part in ("mean", "orthonormal_pca_basis", "eigenvalues"):
        arrays[f"{name}/{part}"] = archive.matrix()
    arrays[f"{name}/triangle_list"] = archive.vector("i4", 3)


def _blendshapes(archive: _Archive) -> Blendshapes:
    count = archive.count(16)  # a name's length and a matrix's size
    if not 0 < count <= _MOST_BLENDSHAPES:
        archive.refuse(f"{count} blendshapes", f"1 to {_MOST_BLENDSHAPES}")
    names, columns = [], []
    for _ in range(count):
        names.append(archive.text())
        columns.append(archive.matrix())
        if columns[-1].shape != (len(columns[0]), 1):
            archive.refuse(f"a blendshape of {columns[-1].shape}", f"{(len(columns[0]), 1)} as of the first")
    return Blendshapes(tuple(names), np.concatenate(columns, axis=1))


def _start(data: bytes) -> tuple[int, str] | None:
    """Where the class version is, and the byte order, by the only values that it may have."""
    for position, order in ((0, "<"), (1, "<"), (1, ">")):
        if len(data) < position + 4 or (position and data[0] != (order == "<")):
            continue
        if int(np.frombuffer(data, order + "u4", 1, position)[0]) in VERSIONS:
            return position, order
    return None


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); expected an eos model. Check it.") from error
