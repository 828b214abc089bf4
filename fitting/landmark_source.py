"""Where landmarks come from, by name: what `--landmarks` takes besides files."""

from pathlib import Path

from fitting.command import UsageError
from fitting.detection import LandmarkProvider
from morphable.model import MorphableModel

SOURCES = ("dlib", "network")


def check_source(name: str | None, weights: Path | None) -> None:
    """Raise UsageError for weights without the network, or that are no file."""
    if weights is None:
        return
    if name != "network":
        raise UsageError("--landmark-weights: got weights without --landmarks network, expected both.")
    if not weights.is_file():
        raise UsageError(f"--landmark-weights: got {weights}, expected a file that 'facefit train-landmarks' wrote.")


def landmark_provider(name: str | None, weights: Path | None, model: MorphableModel) -> LandmarkProvider | None:
    """The provider of a name in `SOURCES`; None for the default one."""
    if name == "network":
        from fitting.landmark_checkpoint import load_network
        from fitting.network_detection import NetworkProvider

        return NetworkProvider(load_network(weights, model))
    return None
