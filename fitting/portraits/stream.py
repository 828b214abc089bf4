"""Portraits without end, in chunks: chunk k of a seed is the same on every run.

An accelerator renders a chunk at once and hands it on; nothing is stored. On a CPU rendering takes as long as learning,
so processes of their own render ahead, and what they have rendered waits in a folder until it has been used.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, UInt8

from fitting.compilation import compiled
from fitting.portraits.backdrop import Pictures
from fitting.portraits.portrait import Crop, PortraitSettings, develop, draw_portrait, dress, shoot
from fitting.portraits.studio import Studio, studio

CHUNK = 256  # portraits


class Examples(NamedTuple):
    """Crops and their truth; arrays of NumPy or JAX."""

    pixels: UInt8[Array | np.ndarray, "example size size 3"]  # sRGB
    landmarks: Float[Array | np.ndarray, "example point 2"]  # px
    visible: Float16[Array | np.ndarray, "example point"]  # 0 or 1
    rotation: Float[Array | np.ndarray, "example 3 3"]  # camera from head, as seen along the ray to the crop's middle
    placement: Float[Array | np.ndarray, "example 3"]  # pixel of the head's origin, and there pixels for each mm
    identity: Float[Array | np.ndarray, "example identity"]
    expression: Float[Array | np.ndarray, "example unit"]


def render_chunk(
    stage: Studio,
    seed: int,
    index: int,
    settings: PortraitSettings,
    count: int = CHUNK,
    pictures: Pictures | None = None,
) -> Examples:
    """Portraits `index * count` to `(index + 1) * count` of a seed, some before parts of `pictures`."""
    base, numbers = jax.random.key(seed), range(index * count, (index + 1) * count)
    keys = jax.vmap(lambda k: jax.random.fold_in(base, k))(jnp.asarray(numbers))
    places = None if pictures is None else [pictures.place(seed, n, settings.size) for n in numbers]
    if jax.default_backend() == "cpu":
        each = [None] * count if places is None else places
        crops = [_one(stage, key, settings, place) for key, place in zip(keys, each, strict=True)]
        return Examples(*(np.stack([np.asarray(v) for v in column]) for column in zip(*crops, strict=True)))
    return _many(stage, keys, settings, None if places is None else jnp.asarray(np.stack(places)))


def _one(stage: Studio, key, settings: PortraitSettings, place=None) -> Examples:
    # Three programs: in one, XLA on a CPU computes what pixels interpolate again for every pixel.
    portrait, dressed = _drawn(stage, key, settings)
    return _developed(portrait, _shot(stage, portrait, dressed, None if place is None else jnp.asarray(place)))


@compiled
def _drawn(stage, key, settings):
    portrait = draw_portrait(stage, key, settings)
    return portrait, dress(stage, portrait)


@compiled
def _shot(stage, portrait, dressed, place):
    return shoot(stage, portrait, dressed, place)


@compiled
def _developed(portrait, shot):
    return _example(develop(portrait, shot))


@compiled
def _many(stage, keys, settings, places):
    def one(given):
        key, place = given
        portrait = draw_portrait(stage, key, settings)
        return _example(develop(portrait, shoot(stage, portrait, dress(stage, portrait), place)))

    return jax.lax.map(one, (keys, places), batch_size=16)


def _example(crop: Crop) -> Examples:
    return Examples(
        pixels=jnp.round(255.0 * crop.pixels).astype(jnp.uint8),
        landmarks=crop.landmarks,
        visible=crop.visible.astype(jnp.float16),
        rotation=crop.rotation,
        placement=crop.placement,
        identity=crop.identity,
        expression=crop.expression,
    )


# --------------------------------------------------------------------------------------------------- ahead of time


@dataclasses.dataclass(frozen=True)
class Order:
    """What processes need to know to render."""

    model: Path | None
    folder: Path
    seed: int
    settings: PortraitSettings
    pictures: Pictures | None = None

    def file(self, index: int) -> Path:
        """Where a chunk waits."""
        return self.folder / f"portraits_{index:06d}.npz"


@functools.cache
def _stage(model: Path | None) -> Studio:
    import morphable
    from fitting.compilation import enable_cache

    enable_cache()
    return studio(morphable.load(model))


def render_ahead(order: Order, first: int, stride: int, ahead: int, parent_alive: Callable[[], bool]) -> None:
    """Render chunks first, first + stride, ... into the folder, at most `ahead` of those not used yet; without end."""
    index = first
    while parent_alive():
        target = order.file(index)
        waiting = len(list(order.folder.glob("portraits_*.npz")))
        if waiting >= ahead:
            time.sleep(1.0)
            continue
        if not target.exists():
            chunk = render_chunk(_stage(order.model), order.seed, index, order.settings, pictures=order.pictures)
            part = target.with_suffix(".part")
            with part.open("wb") as file:
                write_examples(file, chunk)
            part.replace(target)
        index += stride


def write_examples(file: BinaryIO, examples: Examples, names: Sequence[str] = Examples._fields) -> None:
    """Write some of examples' arrays as .npz."""
    arrays: Any = {name: np.asarray(getattr(examples, name)) for name in names}
    np.savez(file, **arrays)


def joined(chunks: Sequence[Examples]) -> Examples:
    """Several chunks as one."""
    return Examples(*(np.concatenate([np.asarray(v) for v in column]) for column in zip(*chunks, strict=True)))


def read_chunk(path: Path) -> Examples:
    """A chunk that waits in a file."""
    with np.load(path) as stored:
        return Examples(**{name: stored[name] for name in Examples._fields})
