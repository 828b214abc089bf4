"""Which vertex lies on the other side of the face, for meshes that do not say, and which expression unit."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

_ROUNDS = 3  # of finding the plane and the pairs in turn
_NEAR = 8  # candidates for each vertex


def mirror_table(vertices: Float[np.ndarray, "vertex 3"], middle_x: float = 0.0) -> Int[np.ndarray, " vertex"]:
    """The vertex at the mirror image of each one; its own inverse, and the identity on the midline.

    The plane x = `middle_x` (mm) is where the search starts; it moves to the pairs' middle. Vertices are paired the
    nearest ones first, so a symmetric mesh gets its true table whatever its order. On other meshes a vertex whose
    counterparts are all taken is its own.
    """
    vertices = np.asarray(vertices, float)
    count = len(vertices)
    tree = KDTree(vertices)
    everyone = np.arange(count)
    for _ in range(_ROUNDS):
        reflected = vertices * [-1, 1, 1] + [2 * middle_x, 0, 0]
        nearest = np.asarray(tree.query(reflected)[1])
        pairs = np.asarray(nearest[nearest] == everyone)
        middle_x = float(np.median((vertices[pairs, 0] + vertices[nearest[pairs], 0]) / 2)) if pairs.any() else middle_x
    reflected = vertices * [-1, 1, 1] + [2 * middle_x, 0, 0]
    apart, candidates = tree.query(reflected, k=min(_NEAR, count))
    apart, candidates = apart.reshape(count, -1), candidates.reshape(count, -1)
    first = np.repeat(np.arange(count), apart.shape[1])
    table = np.full(count, -1)
    for k in np.argsort(apart, axis=None, kind="stable"):
        i, j = first[k], candidates.flat[k]
        if table[i] < 0 and table[j] < 0:
            table[i], table[j] = j, i
    alone = table < 0
    table[alone] = np.flatnonzero(alone)
    return table


def mirrored_name(name: str) -> str:
    """The expression unit of the other side; a unit without sides is its own."""
    if name.endswith("Left"):
        return name.removesuffix("Left") + "Right"
    return name.removesuffix("Right") + "Left" if name.endswith("Right") else name


def mirrored_units(names: Sequence[str]) -> Int[np.ndarray, " unit"]:
    """The unit of the other side for each of a model's; one whose twin the model has not is its own."""
    at = {name: k for k, name in enumerate(names)}
    return np.array([at.get(mirrored_name(name), k) for k, name in enumerate(names)], int)
