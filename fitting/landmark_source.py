"""Where landmarks come from, by name: what `--landmarks` takes besides files."""

from collections.abc import Callable, Collection
from pathlib import Path

from fitting.command import UsageError
from fitting.detection import LandmarkProvider
from morphable.model import MorphableModel

SOURCES = ("dlib", "network", "mediapipe")
VIDEO_SOURCES = ("dlib", "network")  # that follow a head from frame to frame


def check_source(name: str | None, weights: Path | None, among: Collection[str] | None = None) -> None:
    """Raise UsageError for names of nothing, weights without a source that has some, and MediaPipe without any.

    `among` are the sources there are, where it cannot be a file.
    """
    if among is not None and name is not None and name not in among:
        raise UsageError(
            f"--landmarks: got {name!r}, expected {' or '.join(among)}. Files and other detectors serve photos only."
        )
    if name is not None and name not in SOURCES and not Path(name).suffix:
        raise UsageError(
            f"--landmarks: got {name!r}, expected {', '.join(SOURCES)}, or a file of 68 points (.pts, .json, .npy). "
            "Check the name."
        )
    if weights is None:
        if name == "mediapipe":
            raise UsageError(
                "--landmarks mediapipe: got no model file, expected your copy of MediaPipe's face_landmarker.task. "
                "Give it with --landmark-weights."
            )
        return
    if name not in ("network", "mediapipe"):
        raise UsageError("--landmark-weights: got weights without --landmarks network or mediapipe, expected both.")
    if not weights.is_file():
        wanted = "face_landmarker.task" if name == "mediapipe" else "a file that 'facefit train-landmarks' wrote"
        raise UsageError(f"--landmark-weights: got {weights}, expected {wanted}.")


def landmark_provider(
    name: str | None, weights: Path | None, model: Callable[[], MorphableModel]
) -> LandmarkProvider | None:
    """The provider of a name in `SOURCES`; None for the default one. The model is asked for if it is needed."""
    if name == "network":
        from fitting.network_detection import NetworkProvider

        return NetworkProvider.of(model(), weights)
    if name == "mediapipe" and weights is not None:
        from fitting.mediapipe_detection import MediaPipeProvider

        return MediaPipeProvider(weights)
    return None
