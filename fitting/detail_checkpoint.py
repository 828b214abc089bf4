"""The detail network on disk: weights to use, and checkpoints to go on from, both safetensors (no code inside)."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from fitting.detail_network import DetailNetwork
from fitting.detail_training import State, TrainingSettings, start
from fitting.weights_file import (
    CheckpointError,
    FileKind,
    filled,
    in_half_precision,
    read_arrays,
    read_state,
    shaped,
    write_arrays,
    write_state,
)
from morphable.model import MorphableModel

_KIND = FileKind("facefit-detail-network", 1, "detail network", "facefit train-detail")
SHIPPED = "detail_network.safetensors"


def save_network(path: str | Path, network: DetailNetwork, model: MorphableModel, record: Mapping[str, Any]) -> None:
    """Write a network's weights in half precision: matrices and filters; offsets stay float32.

    `record` is what else shall be known of it, such as settings and figures; JSON.
    """
    write_arrays(path, in_half_precision(network), {**_description(network, model), "record": dict(record)})


def load_network(path: str | Path | None, model: MorphableModel) -> DetailNetwork:
    """A network for a model; without a path the one that ships with facefit.

    Raises CheckpointError where the file is none, or was trained for another model, whose maps lie otherwise.
    """
    path = Path(str(files("fitting") / SHIPPED)) if path is None else Path(path)
    arrays, description = read_arrays(path, _KIND)
    trained_for = description.get("model", {})
    mine = _of_model(model)
    if trained_for.get("names") != mine["names"] or trained_for.get("uv") != mine["uv"]:
        raise CheckpointError(
            f"{path}: got weights for the maps and expression units of {trained_for.get('name')}, expected those of "
            f"{mine['name']}. Train some with 'facefit train-detail --model', or use '--detail optimise', which needs "
            "none."
        )
    return filled(shaped(description, path, _KIND, _network), arrays, path, _KIND.command)


def save_checkpoint(path: str | Path, state: State, model: MorphableModel, record: Mapping[str, Any]) -> None:
    """Write everything that the next step depends on, exactly."""
    write_state(path, state, _description(state.network, model), record)


def load_checkpoint(path: str | Path, settings: TrainingSettings) -> tuple[State, dict[str, Any]]:
    """The state to go on from under these settings, and the record that was saved with it."""
    return read_state(path, _KIND, _network, lambda network: start(network, settings))


def _description(network: DetailNetwork, model: MorphableModel) -> dict[str, Any]:
    return {
        "format": _KIND.format,
        "version": _KIND.version,
        "model": _of_model(model),
        "network": {
            "size": network.size,
            "identity": network.identity,
            "widths": list(network.widths),
            "attention": network.attention,
            "window": list(network.window),
        },
    }


def _of_model(model: MorphableModel) -> dict[str, Any]:
    """What makes two models one to the network: their units, and where on a map the face's parts lie."""
    places = np.asarray(model.landmarks(model.uv), np.float64)
    return {
        "name": model.provenance.name,
        "names": list(model.expression_names),
        "uv": np.round(places, 3).tolist(),
    }


def _network(description: Mapping[str, Any]) -> DetailNetwork:
    plan = description["network"]
    return eqx.filter_eval_shape(
        DetailNetwork,
        jax.random.key(0),
        names=tuple(str(n) for n in description["model"]["names"]),
        identity=int(plan["identity"]),
        size=int(plan["size"]),
        widths=tuple(int(w) for w in plan["widths"]),
        attention=bool(plan["attention"]),
        window=tuple(int(n) for n in plan["window"]),
    )
