"""Networks on disk: arrays by their place in a tree, and a description, in safetensors (no code inside)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


class CheckpointError(ValueError):
    """A file of weights that cannot be used: what, got, expected, remedy."""


class FileKind(NamedTuple):
    """What a file of weights is for."""

    format: str
    version: int
    network: str  # in words
    command: str  # that writes such files


def in_half_precision(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a network by name: floating matrices and filters as float16, offsets as float32."""

    def kept(leaf):
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            return np.asarray(leaf)
        return np.asarray(leaf, np.float16 if np.ndim(leaf) > 1 else np.float32)

    return {name: kept(leaf) for name, leaf in named_arrays(tree).items()}


def named_arrays(tree: Any) -> dict[str, Any]:
    """Arrays by their place in the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))[0]
    return {jax.tree_util.keystr(where, simple=True, separator="."): leaf for where, leaf in leaves}


def filled(tree: Any, arrays: Mapping[str, np.ndarray], path: Path, command: str) -> Any:
    """The tree of shapes with the file's arrays in their places, in its types."""
    kept, rest = eqx.partition(tree, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    leaves, plan = jax.tree_util.tree_flatten_with_path(kept)
    names = [jax.tree_util.keystr(where, simple=True, separator=".") for where, _ in leaves]
    wrong = [n for n, (_, own) in zip(names, leaves, strict=True) if n not in arrays or arrays[n].shape != own.shape]
    if wrong or len(arrays) != len(names):
        raise CheckpointError(
            f"{path}: got {len(arrays)} arrays, of which {', '.join(wrong[:3]) or 'some'} do not fit, expected the "
            f"{len(names)} of the network that it describes. Use a file that '{command}' wrote."
        )
    # In the types that they will have: what is finite in a file's double precision need not be in single.
    with np.errstate(over="ignore", invalid="ignore"):
        filled = [arrays[name].astype(own.dtype) for name, (_, own) in zip(names, leaves, strict=True)]
    if not all(np.isfinite(x).all() for x in filled):
        raise CheckpointError(f"{path}: got weights that are not finite, expected numbers. Use another file.")
    return eqx.combine(jax.tree_util.tree_unflatten(plan, [jnp.asarray(x) for x in filled]), rest)


def carried_over(tree: Any, arrays: Mapping[str, np.ndarray]) -> tuple[Any, list[str]]:
    """The tree with those arrays that fit one of its own by name and shape, and the names of those left as they are."""
    own, rest = eqx.partition(tree, eqx.is_array)
    leaves, plan = jax.tree_util.tree_flatten_with_path(own)
    kept, left = [], []
    for where, leaf in leaves:
        name = jax.tree_util.keystr(where, simple=True, separator=".")
        fits = name in arrays and arrays[name].shape == leaf.shape and bool(np.isfinite(arrays[name]).all())
        kept.append(jnp.asarray(arrays[name], leaf.dtype) if fits else leaf)
        left += [] if fits else [name]
    return eqx.combine(jax.tree_util.tree_unflatten(plan, kept), rest), left


def shaped(description: Mapping[str, Any], path: Path, kind: FileKind, network: Callable[[Mapping[str, Any]], Any]):
    """The network of a description, shapes in place of arrays: drawing weights only to replace them takes seconds."""
    try:
        return network(description)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: got a description without a usable plan of the network ({error}), expected one that "
            f"'{kind.command}' wrote. Use another file."
        ) from error


def write_state(path: str | Path, state: Any, description: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Write everything that the next step of a training depends on, exactly."""
    arrays = {name: np.asarray(leaf) for name, leaf in named_arrays(state).items()}
    write_arrays(path, arrays, {**description, "record": dict(record)})


def read_state(
    path: str | Path, kind: FileKind, network: Callable[[Mapping[str, Any]], Any], start: Callable[[Any], Any]
) -> tuple[Any, dict[str, Any]]:
    """The state to go on from, of the form that `start` gives a network, and the record that was saved with it."""
    arrays, description = read_arrays(Path(path), kind)
    skeleton = eqx.filter_eval_shape(start, shaped(description, Path(path), kind, network))
    return filled(skeleton, arrays, Path(path), kind.command), description.get("record", {})


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    """Write arrays by name, and a description of what they are (JSON)."""
    from safetensors.numpy import save_file

    path = Path(path)
    part = path.with_suffix(".part")
    save_file(
        {name: np.array(value, order="C") for name, value in arrays.items()},
        part,
        metadata={"facefit": json.dumps(description)},
    )
    part.replace(path)


def read_arrays(path: Path, kind: FileKind) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description of a file of this kind; raises CheckpointError for any other."""
    from safetensors import SafetensorError, safe_open

    remedy = f"Use a file that '{kind.command}' wrote."
    try:
        with safe_open(path, framework="numpy") as stored:
            description = json.loads((stored.metadata() or {}).get("facefit", "null"))
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: got no file, expected weights of the {kind.network}. {remedy}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: got a file that is no safetensors ({error}). {remedy}") from error
    if not isinstance(description, dict) or description.get("format") != kind.format:
        raise CheckpointError(f"{path}: got safetensors of something else, expected format {kind.format}. {remedy}")
    if description.get("version") != kind.version:
        raise CheckpointError(
            f"{path}: got version {description.get('version')}, expected {kind.version}. Use the facefit that wrote it."
        )
    return arrays, description
