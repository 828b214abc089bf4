"""MediaPipe's Tasks, on the user's own model files (an extra: `pip install mediapipe`)."""

import importlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fitting.observation import Photo

Answer = TypeVar("Answer")


def run_task(
    photo: Photo,
    file: str | os.PathLike,
    model: str,
    use: Callable[[Any, Any, Any], Answer],
    wrong: type[ValueError],
    instead: str,
) -> Answer:
    """What `use` makes of MediaPipe's tasks, the options that name the file, and the photo as MediaPipe's image.

    Raises `wrong` where there is no file, no MediaPipe, or where it cannot use the file, which should be a `model`;
    `instead` is what the user may do without.
    """
    path = os.fspath(file)
    if not os.path.isfile(path):
        raise wrong(f"{path}: there is no such file, expected {model}. Download it from MediaPipe's page of models.")
    try:
        mp: Any = importlib.import_module("mediapipe")
        tasks: Any = importlib.import_module("mediapipe.tasks.python")
    except ImportError as cause:
        raise wrong(
            f"mediapipe cannot be imported ({cause}), expected it to use {os.path.basename(path)}. Install it with "
            f"'pip install mediapipe', or {instead}."
        ) from cause
    image = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(photo.pixels))
    try:
        return use(tasks, tasks.BaseOptions(model_asset_path=path), image)
    except (RuntimeError, ValueError) as cause:
        raise wrong(f"{path}: MediaPipe cannot use it ({cause}), expected {model}.") from cause
