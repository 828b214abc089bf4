"""Wavefront OBJ files and folders of them: vertices in the file's order, corners with texture coordinates, materials.

A model that is published as a folder of meshes says what they are by the order of their vertices, which general
readers of OBJ files do not promise to keep.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from morphable.io.archive import read_array
from morphable.io.contents import ModelFileError
from morphable.io.pickles import unpickle

_LARGEST_TEXT = 256 << 20  # bytes of one OBJ or JSON file; ICT-FaceKit's have 2.6 MB
_MOST_CORNERS = 64  # of a polygon


class Surface(NamedTuple):
    """Polygons cut into triangles, fans around their first corners."""

    triangles: Int[np.ndarray, "triangle 3"]
    coordinate_triangles: Int[np.ndarray, "triangle 3"] | None  # into the coordinates; None if any corner has none
    coordinates: Float[np.ndarray, "coordinate 2"]  # u right, v UP, as in the file
    material_of_triangle: Int[np.ndarray, " triangle"]
    materials: tuple[str, ...]  # in order of first use; "" before the first `usemtl`


class Obj:
    """An OBJ file; lines are parsed when they are asked for: most meshes of a model repeat the first's polygons."""

    def __init__(self, path: Path, data: bytes):
        self.path, self._data = path, data

    @cached_property
    def vertices(self) -> Float[np.ndarray, "vertex 3"]:
        """Positions in the file's order and unit. Raises ModelFileError for lines that are no positions."""
        return self._table(b"v", 3)

    @cached_property
    def surface(self) -> Surface:
        """The polygons. Raises ModelFileError for corners that do not exist."""
        materials: dict[str, int] = {}
        material, corners, owners = 0, {}, {}
        for line in self._data.splitlines():
            if line.startswith(b"f "):
                fields = line.split()[1:]
                corners.setdefault(len(fields), []).extend(fields)
                owners.setdefault(len(fields), []).append(material if materials else materials.setdefault("", 0))
            elif line.startswith(b"usemtl "):
                name = line[7:].strip().decode("utf-8", "replace")
                material = materials.setdefault(name, len(materials))
        coordinates = self._table(b"vt", 2)
        pieces, places, of = [], [], []
        for size in sorted(corners):
            if not 3 <= size <= _MOST_CORNERS:
                self._refuse(f"a polygon of {size} corners", f"3 to {_MOST_CORNERS}")
            polygons, spots = self._corners(corners[size], len(self.vertices), len(coordinates))
            for k in range(1, size - 1):
                fan = [0, k, k + 1]
                pieces.append(polygons.reshape(-1, size)[:, fan])
                places.append(None if spots is None else spots.reshape(-1, size)[:, fan])
                of.append(np.asarray(owners[size], np.int32))
        if not pieces:
            self._refuse("no polygons", "a surface")
        whole = all(place is not None for place in places)
        return Surface(
            np.concatenate(pieces).astype(np.int32),
            np.concatenate([p for p in places if p is not None]).astype(np.int32) if whole else None,
            coordinates,
            np.concatenate(of),
            tuple(materials),
        )

    def _corners(self, fields: list[bytes], vertex_count: int, coordinate_count: int):
        """Vertices, and coordinates if all have one, of corners "12", "12/7", "12/7/3" or "12//3", from 0."""
        parts = [field.split(b"/") for field in fields]
        vertices = self._indices([p[0] for p in parts], vertex_count)
        if any(len(p) < 2 or not p[1] for p in parts):
            return vertices, None
        return vertices, self._indices([p[1] for p in parts], coordinate_count)

    def _indices(self, fields: list[bytes], count: int) -> np.ndarray:
        try:
            indices = np.array([int(f) for f in fields], np.int64)
        except (ValueError, OverflowError):
            self._refuse("a corner that is no number", "one")
            raise
        indices = np.where(indices < 0, indices + count, indices - 1)  # from 1, or from the end
        if indices.size and not (0 <= indices.min() and indices.max() < count):
            self._refuse(f"corners {indices.min() + 1} to {indices.max() + 1}", f"1 to {count}")
        return indices

    def _table(self, key: bytes, width: int) -> np.ndarray:
        rows = re.findall(rb"(?m)^" + key + rb"[ \t]+([^\r\n]*)", self._data)
        if not rows:
            return np.zeros((0, width))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy only warns of what is no number, and drops the rest
                table = np.fromstring(b" ".join(rows), sep=" ").reshape(len(rows), -1)
        except (ValueError, DeprecationWarning):
            self._refuse(f"lines {key.decode()!r} that are not all numbers, as many in each", "a table")
            raise
        if table.shape[1] < width:
            self._refuse(f"{table.shape[1]} numbers in lines {key.decode()!r}", f"{width} or more")
        return table[:, :width]

    def _refuse(self, got: str, expected: str):
        raise ModelFileError(f"{self.path}: got {got}, expected {expected}. Is it a complete OBJ file?")


class Folder(Mapping[str, Any]):
    """A folder's files by name, read when they are asked for: OBJ meshes, JSON, arrays and plain pickles."""

    def __init__(self, path: Path, names: tuple[str, ...]):
        self.path, self._names = path, names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        path = self.path / name
        kind = path.suffix.lower()
        if kind not in (".obj", ".json", ".npy", ".pkl"):
            raise ModelFileError(f"{path}: got a file of another kind, expected .obj, .json, .npy or .pkl.")
        try:
            size = path.stat().st_size
            if kind in (".obj", ".json") and size > _LARGEST_TEXT:
                raise ModelFileError(f"{path}: got {size >> 20} MiB, expected at most {_LARGEST_TEXT >> 20}.")
            data = path.read_bytes()
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read ({error.strerror}). Check it.") from error
        if kind == ".obj":
            return Obj(path, data)
        if kind == ".npy":
            return read_array(data, str(path))
        if kind == ".pkl":
            return unpickle(data, str(path))
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{path}: not JSON ({error}). Is it complete?") from error


def read_folder(path: Path) -> Folder:
    """The files of a folder, or of its only one that holds a model, `FaceXModel` in ICT-FaceKit's repository."""
    inner = path / "FaceXModel"
    if inner.is_dir():
        path = inner
    try:
        names = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_file()))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); expected a folder.") from error
    return Folder(path, names)
