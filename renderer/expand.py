"""Work expansion: some items for each owner, laid out in one array of static size, round after round.

A rasterizer's triangles have any number of tiles, an outline's edges any number of rows. A prefix sum of the counts
says where each owner's items begin; a round takes the items from `done` to `done + slots`, and a loop over rounds
leaves none out, however many there are.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int


def owners(
    counts: Int[Array, "owner"], ends: Int[Array, "owner"], done: Int[Array, ""], slots: int
) -> tuple[Int[Array, "{slots}"], Int[Array, "{slots}"]]:
    """For each item of a round, its owner and its rank among the owner's items; past the last item, anything valid.

    `ends` is the prefix sum of `counts`.
    """
    starts = ends - counts
    # The owner's id is written where its items begin, and a running maximum fills the rest.
    here = (counts > 0) & (ends > done) & (starts < done + slots)
    at = jnp.where(here, jnp.maximum(starts - done, 0), slots)
    ids = jnp.arange(counts.shape[0], dtype=jnp.int32)
    seed = jnp.zeros(slots + 1, jnp.int32).at[at].max(ids, mode="promise_in_bounds")[:slots]
    owner = prefix(seed, jnp.maximum)
    return owner, done + jnp.arange(slots, dtype=jnp.int32) - take(starts, owner)


def prefix(x: Int[Array, "item"], op) -> Int[Array, "item"]:
    """Inclusive prefix sum or maximum of non-negative integers, by doubling (Hillis & Steele 1986) on two levels.

    As fast on CPU as a sequential scan at the top level of a program (25 000 elements: 50 us; jnp.cumsum 190, cummax
    360), and unlike it also fast inside loops, under vmap, and on a GPU.
    """
    size, row = x.shape[0], 128
    rows = -(-size // row)

    def along(axis, length, y):
        def double(k, y):
            shifted = jnp.concatenate([jnp.zeros_like(y), y], axis)
            return op(y, lax.dynamic_slice_in_dim(shifted, length - jnp.left_shift(1, k), length, axis))

        return lax.fori_loop(np.int32(0), np.int32((length - 1).bit_length()), double, y)

    y = along(1, row, jnp.pad(x, (0, rows * row - size)).reshape(rows, row))
    totals = along(0, rows, y[:, -1])
    before = jnp.concatenate([jnp.zeros(1, x.dtype), totals[:-1]])
    return op(y, before[:, None]).reshape(-1)[:size]


def take(values: Array, indices: Int[Array, "*shape"]) -> Array:
    """Rows of values at indices that are known to be valid."""
    return values.at[indices].get(mode="promise_in_bounds")


def divide(a: Int[Array, "*shape"], b: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """a // b of non-negative integers, the quotient below 2^22; vector units have no integer division."""
    q = (a.astype(jnp.float32) / b.astype(jnp.float32)).astype(jnp.int32)
    r = a - q * b
    return q + jnp.where(r >= b, 1, 0) - jnp.where(r < 0, 1, 0)
