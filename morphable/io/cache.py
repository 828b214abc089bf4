"""The user's cache folder: compiled programs, and published models with what facefit made for them."""

import contextlib
import hashlib
import os
import sys
from pathlib import Path

from morphable.io.archive import read_npz
from morphable.io.contents import ModelFileError, Source
from morphable.io.native import read_native, write_native
from morphable.model import MorphableModel

_MADE = 3  # rises whenever `morphable.completion` makes something else of the same file
_MOST_BYTES = 4 << 30  # in memory, of a model that is kept


def cache_folder() -> Path:
    """The user's cache folder of this platform, or `FACEFIT_CACHE`."""
    if "FACEFIT_CACHE" in os.environ:
        return Path(os.environ["FACEFIT_CACHE"])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "facefit" / "jax"


def completed_path(source: Source, head_sha256: str, arkit: bool) -> Path:
    """Where a completed model is kept: by its file's content, its neighbours, the head and the way it is made.

    Files beside a model (masks, textures, landmarks) are read with it; any change of theirs counts.
    """
    key = hashlib.sha256(f"{_MADE} {source.sha256} {head_sha256} {arkit}".encode())
    if source.path.is_file():
        for beside in sorted(p for p in source.path.absolute().parent.iterdir() if p.is_file()):
            key.update(f"{beside.name} {beside.stat().st_size} {beside.stat().st_mtime_ns}\n".encode())
    return cache_folder() / "models" / f"{key.hexdigest()[:32]}.npz"


def kept(path: Path, source: Source) -> MorphableModel | None:
    """A completed model from the cache; None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        return read_native(read_npz(path), source)
    except ModelFileError:  # cut off, or written by a later facefit: it is made again
        return None


def keep(path: Path, model: MorphableModel) -> None:
    """Put a completed model into the cache; a folder that cannot be written costs only the time next time."""
    size = 4 * (model.shape.modes.size + model.expression.size + model.albedo.modes.size)
    size += 0 if model.interaction is None else 4 * model.interaction.size
    if size > _MOST_BYTES:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_native(path, model, compress=False)
