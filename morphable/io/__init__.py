"""Model files: `load` finds the reader, each reader converts to mm, our axes and our names at the door."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from morphable.io.archive import read_npz
from morphable.io.contents import Contents, Source, checked
from morphable.io.contents import ModelFileError as ModelFileError
from morphable.io.layout import Layout
from morphable.io.native import read_native
from morphable.io.native import write_native as write_native
from morphable.model import MorphableModel

DEFAULT = Path(__file__).parents[1] / "default_model" / "head.npz"


def load(path: str | Path | None = None, arkit: bool = False) -> MorphableModel:
    """Read a morphable model in any of the published formats; without a path, the CC0 head that ships with facefit.

    What the file lacks (landmarks, masks, a rig, ...) is made by laying the CC0 head on its mean, which takes some
    seconds the first time; the result is kept in the user's cache folder, and `Provenance.made` names what was made.
    Formats: `docs/model_formats.md`. Raises ModelFileError for a file that is none of them or is damaged, and
    RegistrationError where the head cannot be laid on it.

    With `arkit` the CC0 head's 52 expression units replace those of a published model: all then speak one language.
    """
    if path is None:
        return _default()
    found = read(path)
    if isinstance(found, MorphableModel):
        return found
    from morphable.completion import complete
    from morphable.io.cache import completed_path, keep, kept

    contents, source = found
    place = completed_path(source, _default().provenance.sha256, arkit)
    model = kept(place, source)
    if model is None:
        model = complete(contents, source, _default(), arkit)
        keep(place, model)
        model = kept(place, source) or model  # the first time's bits are those of all other times
    return model


def save(path: str | Path, model: MorphableModel) -> None:
    """Write a model to facefit's own format."""
    write_native(path, model)


def read(path: str | Path) -> MorphableModel | tuple[Contents, Source]:
    """What a file holds and nothing more: a model of our own format, or the contents of a published one."""
    path = Path(path)
    if not path.exists():
        raise ModelFileError(f"{path}: cannot be read (no such file or folder); expected a model. Check the path.")
    container, arrays = _open(path)
    source = Source(path, _digest(path))
    names = frozenset(str(name) for name in arrays)
    if container == "npz" and "manifest" in names:
        return read_native(dict(arrays), source)
    layouts = [layout for layout in _layouts() if layout.container == container]
    for layout in layouts:
        if layout.matches(names):
            # Damaged numbers overflow on their way; `checked` refuses what they become.
            with np.errstate(all="ignore"):
                return checked(layout.read(arrays, source), source), source
    known = ", ".join(layout.name for layout in layouts) or "none"
    raise ModelFileError(
        f"{path}: a {container} file with {_some(names)}; expected a layout that facefit knows (in such files "
        f"{known}). See docs/model_formats.md; convert other models to facefit's own format, docs/model_format.md."
    )


def _some(names: frozenset[str], most: int = 12) -> str:
    ordered = sorted(names)
    return ", ".join(repr(name[:60]) for name in ordered[:most]) + (", ..." if len(ordered) > most else "")


@functools.cache
def _default() -> MorphableModel:
    """The embedded head; frozen, so all may share it."""
    return read_native(read_npz(DEFAULT), Source(DEFAULT, _digest(DEFAULT)))


def _open(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The container's kind, told by its first bytes, and its arrays by name."""
    if path.is_dir():
        from morphable.io.ict import read_folder

        return "folder", read_folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); expected a morphable model.") from error
    if start.startswith(b"PK\x03\x04"):
        return "npz", read_npz(path)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        from morphable.io.hdf5 import read_hdf5

        return "hdf5", read_hdf5(path)
    if start.startswith(b"MATLAB 5.0") or start.startswith(b"MATLAB 7.3"):
        from morphable.io.matlab import read_mat

        return "mat", read_mat(path)
    if start.startswith(b"\x93NUMPY") or path.suffix.lower() in (".pkl", ".pickle", ".npy"):
        from morphable.io.pickles import read_pickle

        return "pickle", read_pickle(path)
    if path.suffix.lower() == ".bin":
        from morphable.io.cereal import read_cereal

        return "cereal", read_cereal(path)
    raise ModelFileError(
        f"{path}: starts with {start[:8]!r}, expected a facefit model (.npz) or a published model: .pkl, .npz, .npy, "
        ".mat, .h5, .bin, or a folder of OBJ files."
    )


def _layouts() -> tuple[Layout, ...]:
    from morphable.io import bfm, facescape, faceverse, flame, ict, lsfm, sfm

    return tuple(layout for module in (flame, bfm, lsfm, sfm, ict, facescape, faceverse) for layout in module.LAYOUTS)


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of a folder's files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        whole.update(f"{inner.relative_to(path).as_posix()} {_digest(inner)}\n".encode())
    return whole.hexdigest()
