"""The landmark network on disk: weights to use, and checkpoints to go on from."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from fitting.landmark_network import LandmarkNetwork
from fitting.landmark_training import LandmarkTraining, State, start
from fitting.weights_file import (
    CheckpointError,
    FileKind,
    carried_over,
    filled,
    in_half_precision,
    named_arrays,
    read_arrays,
    read_state,
    shaped,
    write_arrays,
    write_state,
)
from morphable.landmarks import SurfacePoints
from morphable.model import MorphableModel

_KIND = FileKind("facefit-landmark-network", 1, "landmark network", "facefit train-landmarks")
SHIPPED = "landmark_network.safetensors"


def save_network(path: str | Path, network: LandmarkNetwork, model: MorphableModel, record: Mapping[str, Any]) -> None:
    """Write a network's weights in half precision; `record` is what else shall be known of it; JSON."""
    arrays = in_half_precision(network)
    # Where points lie on triangles stays exact.
    arrays.update({f"surface.{name}": leaf for name, leaf in _exact(network.surface).items()})
    write_arrays(path, arrays, {**_description(network, model), "record": dict(record)})


def load_network(path: str | Path | None, model: MorphableModel) -> LandmarkNetwork:
    """A network for a model; without a path the one that ships with facefit.

    Raises CheckpointError where the file is none, or was trained for another model.
    """
    path = Path(str(files("fitting") / SHIPPED)) if path is None else Path(path)
    arrays, description = read_arrays(path, _KIND)
    trained_for, mine = description.get("model", {}), _of_model(model)
    if any(trained_for.get(key) != mine[key] for key in ("names", "identity", "vertices", "places")):
        raise CheckpointError(
            f"{path}: got weights for the points and coefficients of {trained_for.get('name')}, expected those of "
            f"{mine['name']}. Train some with 'facefit train-landmarks --model', or use '--landmarks dlib'."
        )
    return filled(shaped(description, path, _KIND, _network), arrays, path, _KIND.command)


def begun_from(path: str | Path, network: LandmarkNetwork) -> tuple[LandmarkNetwork, list[str]]:
    """The network with what fits it of another's weights, and the names of the arrays that stay as they are.

    The other may have been trained for another model, or be of another plan: a wider network, an earlier version.
    """
    arrays, _ = read_arrays(Path(path), _KIND)
    started, left = carried_over(network, arrays)
    # Which points it looks for is the network's own affair.
    return eqx.tree_at(lambda n: n.surface, started, network.surface), left


def save_checkpoint(path: str | Path, state: State, model: MorphableModel, record: Mapping[str, Any]) -> None:
    """Write everything that the next step depends on, exactly."""
    write_state(path, state, _description(state.network, model), record)


def load_checkpoint(path: str | Path, settings: LandmarkTraining) -> tuple[State, dict[str, Any]]:
    """The state to go on from under these settings, and the record that was saved with it."""
    return read_state(path, _KIND, _network, lambda network: start(network, settings))


def _exact(surface: SurfacePoints) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_arrays(surface).items()}


def _description(network: LandmarkNetwork, model: MorphableModel) -> dict[str, Any]:
    return {
        "format": _KIND.format,
        "version": _KIND.version,
        "model": _of_model(model),
        "network": {
            "points": network.points,
            "units": network.units,
            "identity": network.identity,
            "size": network.size,
            "widths": list(network.widths),
            "depths": list(network.depths),
        },
    }


def _of_model(model: MorphableModel) -> dict[str, Any]:
    """What makes two models one to the network: their coefficients, vertices, and where on the head landmarks are."""
    places = np.asarray(model.landmarks(model.mean), np.float64)
    return {
        "name": model.provenance.name,
        "names": list(model.expression_names),
        "identity": model.shape.rank,
        "vertices": int(model.mean.shape[0]),
        "places": np.round(places, 1).tolist(),
    }


def _network(description: Mapping[str, Any]) -> LandmarkNetwork:
    plan = description["network"]
    points = int(plan["points"])
    if not 0 < points < 100_000:
        raise ValueError(f"{points} points")

    def drawn(key):
        surface = SurfacePoints(jnp.zeros((points, 3), jnp.int32), jnp.zeros((points, 3)))
        return LandmarkNetwork(
            key,
            surface,
            units=int(plan["units"]),
            identity=int(plan["identity"]),
            size=int(plan["size"]),
            widths=tuple(int(w) for w in plan["widths"]),
            depths=tuple(int(d) for d in plan["depths"]),
        )

    return eqx.filter_eval_shape(drawn, jax.random.key(0))
