"""The detail network on disk: weights to use, and checkpoints to go on from, both safetensors (no code inside)."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from fitting.detail_network import DetailNetwork
from fitting.detail_training import State, TrainingSettings, start
from morphable.model import MorphableModel

FORMAT, VERSION = "facefit-detail-network", 1
SHIPPED = "detail_network.safetensors"


class CheckpointError(ValueError):
    """A file of weights that cannot be used: what, got, expected, remedy."""


def save_network(path: str | Path, network: DetailNetwork, model: MorphableModel, record: Mapping[str, Any]) -> None:
    """Write a network's weights in half precision: matrices and filters; offsets stay float32.

    `record` is what else shall be known of it, such as settings and figures; JSON.
    """
    arrays = {
        name: np.asarray(leaf, np.float16 if np.ndim(leaf) > 1 else np.float32)
        for name, leaf in _named(network).items()
    }
    _write(path, arrays, {**_description(network, model), "record": dict(record)})


def load_network(path: str | Path | None, model: MorphableModel) -> DetailNetwork:
    """A network for a model; without a path the one that ships with facefit.

    Raises CheckpointError where the file is none, or was trained for another model, whose maps lie otherwise.
    """
    path = Path(str(files("fitting") / SHIPPED)) if path is None else Path(path)
    arrays, description = _read(path)
    trained_for = description.get("model", {})
    mine = _of_model(model)
    if trained_for.get("names") != mine["names"] or trained_for.get("uv") != mine["uv"]:
        raise CheckpointError(
            f"{path}: got weights for the maps and expression units of {trained_for.get('name')}, expected those of "
            f"{mine['name']}. Train some with 'facefit train-detail --model', or use '--detail optimise', which needs "
            "none."
        )
    return _filled(_skeleton(description, path), arrays, path)


def save_checkpoint(path: str | Path, state: State, model: MorphableModel, record: Mapping[str, Any]) -> None:
    """Write everything that the next step depends on, exactly."""
    arrays = {name: np.asarray(leaf) for name, leaf in _named(state).items()}
    _write(path, arrays, {**_description(state.network, model), "record": dict(record)})


def load_checkpoint(path: str | Path, settings: TrainingSettings) -> tuple[State, dict[str, Any]]:
    """The state to go on from under these settings, and the record that was saved with it."""
    arrays, description = _read(Path(path))
    skeleton = eqx.filter_eval_shape(start, _skeleton(description, Path(path)), settings)
    state = _filled(skeleton, arrays, Path(path))
    return state, description.get("record", {})


def _description(network: DetailNetwork, model: MorphableModel) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
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


def _skeleton(description: Mapping[str, Any], path: Path) -> DetailNetwork:
    """The network that a file describes, shapes in place of arrays: drawing weights only to replace them costs 15 s."""
    try:
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
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: got a description without a usable plan of the network ({error}), expected one that 'facefit "
            "train-detail' wrote. Use another file."
        ) from error


def _named(tree: Any) -> dict[str, Any]:
    """Arrays by their place in the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))[0]
    return {jax.tree_util.keystr(where, simple=True, separator="."): leaf for where, leaf in leaves}


def _filled(tree: Any, arrays: Mapping[str, np.ndarray], path: Path) -> Any:
    """The tree of shapes with the file's arrays in their places, in its types."""
    kept, rest = eqx.partition(tree, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    leaves, plan = jax.tree_util.tree_flatten_with_path(kept)
    names = [jax.tree_util.keystr(where, simple=True, separator=".") for where, _ in leaves]
    wrong = [n for n, (_, own) in zip(names, leaves, strict=True) if n not in arrays or arrays[n].shape != own.shape]
    if wrong or len(arrays) != len(names):
        raise CheckpointError(
            f"{path}: got {len(arrays)} arrays, of which {', '.join(wrong[:3]) or 'some'} do not fit, expected the "
            f"{len(names)} of the network that it describes. Use a file that 'facefit train-detail' wrote."
        )
    # In the types that they will have: what is finite in a file's double precision need not be in single.
    with np.errstate(over="ignore", invalid="ignore"):
        filled = [arrays[name].astype(own.dtype) for name, (_, own) in zip(names, leaves, strict=True)]
    if not all(np.isfinite(x).all() for x in filled):
        raise CheckpointError(f"{path}: got weights that are not finite, expected numbers. Use another file.")
    return eqx.combine(jax.tree_util.tree_unflatten(plan, [jnp.asarray(x) for x in filled]), rest)


def _write(path: str | Path, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    path = Path(path)
    part = path.with_suffix(".part")
    save_file(
        {name: np.array(value, order="C") for name, value in arrays.items()},
        part,
        metadata={"facefit": json.dumps(description)},
    )
    part.replace(path)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    remedy = "Use a file that 'facefit train-detail' wrote."
    try:
        with safe_open(path, framework="numpy") as stored:
            description = json.loads((stored.metadata() or {}).get("facefit", "null"))
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: got no file, expected weights of the detail network. {remedy}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: got a file that is no safetensors ({error}). {remedy}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{path}: got safetensors of something else, expected format {FORMAT}. {remedy}")
    if description.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: got version {description.get('version')}, expected {VERSION}. Use the facefit that wrote it."
        )
    return arrays, description
