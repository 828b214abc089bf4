"""A coarser mesh on a mesh's own vertices."""

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

_PROXY_VERTICES = 6000  # of the coarse mesh for visibility
_FAST_ENOUGH = 9000  # meshes with fewer vertices need none


def coarse_triangles(
    vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]
) -> Int[np.ndarray, "coarse 3"]:
    """The surface on a few thousand of its own vertices, for visibility: vertices are gathered to evenly spread ones.

    Vertex clustering (Rossignac & Borrel 1993): triangles whose corners fall into three clusters remain. A mesh that
    is coarse enough is returned as it is.
    """
    used = np.unique(triangles)
    if len(used) <= _FAST_ENOUGH:
        return triangles
    chosen = one_per_cell(vertices[used], _PROXY_VERTICES)
    cluster = np.zeros(len(vertices), int)
    cluster[used] = used[chosen[KDTree(vertices[used[chosen]]).query(vertices[used])[1]]]
    coarse = cluster[triangles]
    kept = (coarse[:, 0] != coarse[:, 1]) & (coarse[:, 1] != coarse[:, 2]) & (coarse[:, 2] != coarse[:, 0])
    coarse = coarse[kept]
    _, first = np.unique(np.sort(coarse, axis=1), axis=0, return_index=True)
    return coarse[np.sort(first)]


def one_per_cell(points: Float[np.ndarray, "point 3"], count: int) -> Int[np.ndarray, " chosen"]:
    """Indices of `count` points or more, evenly spread: the first in each cell of a grid that is fine enough."""
    low, size = points.min(axis=0), float(np.ptp(points, axis=0).max())
    first = np.arange(len(points))
    for per_side in range(8, 4 * int(np.sqrt(count))):
        cells = np.floor((points - low) / (size / per_side)).astype(int)
        _, first = np.unique(cells, axis=0, return_index=True)
        if len(first) >= count:
            break
    return first
