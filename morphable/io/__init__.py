"""Model files: `load` picks the reader, each reader converts to mm, our axes and our names at the door."""

from pathlib import Path

from morphable.io.contents import ModelFileError as ModelFileError
from morphable.io.native import read_native as read_native
from morphable.io.native import write_native as write_native
from morphable.model import MorphableModel

DEFAULT = Path(__file__).parents[1] / "default_model" / "head.npz"


def load(path: str | Path | None = None) -> MorphableModel:
    """Read a morphable model; without a path, the CC0 head that ships with facefit."""
    return read_native(DEFAULT if path is None else path)


def save(path: str | Path, model: MorphableModel) -> None:
    """Write a model to facefit's own format."""
    write_native(path, model)
