"""A surface map that does not jump from one lip to the other: it looks at where a point faces, too."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from morphable.mesh import vertex_normals
from morphable.registration.closest_points import SurfaceError, closest_on_triangles
from morphable.registration.correspondence import SurfaceMap
from morphable.registration.target import barycentric

_CANDIDATES = 12  # triangles looked at for each point
_BLOCK = 4096  # points at a time: the candidates' corners are 9 numbers each


def unit_normals(
    vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]
) -> Float[np.ndarray, "vertex 3"]:
    """Outward unit normals; zero at vertices without triangles."""
    return np.asarray(vertex_normals(jnp.asarray(vertices, jnp.float32), jnp.asarray(triangles)), float)


def oriented_map(
    points: Float[np.ndarray, "point 3"],
    normals: Float[np.ndarray, "point 3"],
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    turn_mm: float = 8.0,
) -> SurfaceMap:
    """The nearest places on a mesh in position and normal: two unit vectors at a right angle are 1.4 `turn_mm` apart.

    Where lips touch, or a lid lies on an eyeball, the closest surface is often the wrong one; its normal tells. Among
    the triangles whose centroids are nearest in (position, normal), the closest point decides. Points without a normal
    (zero) are mapped by position. Raises SurfaceError for a mesh without area.
    """
    triangles = np.asarray(triangles)
    corners = np.asarray(vertices, float)[triangles]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(facing, axis=1)
    solid = np.flatnonzero(area > 1e-12 * max(float(area.max(initial=0.0)), 1e-300))
    if not len(solid):
        raise SurfaceError(f"mesh: got {len(triangles)} triangles without area, expected a surface. Is it empty?")
    corners, facing = corners[solid], facing[solid] / area[solid, None]
    tree = KDTree(np.concatenate([corners.mean(axis=1), turn_mm * facing], axis=1))
    count = min(_CANDIDATES, len(solid))
    chosen, nearest = np.zeros(len(points), int), np.zeros((len(points), 3))
    for start in range(0, len(points), _BLOCK):
        rows = slice(start, start + _BLOCK)
        at, towards = np.asarray(points[rows], float), np.asarray(normals[rows], float)
        found = tree.query(np.concatenate([at, turn_mm * towards], axis=1), k=count)[1].reshape(len(at), count)
        closest = closest_on_triangles(np.repeat(at, count, axis=0), corners[found.ravel()]).reshape(-1, count, 3)
        apart = ((closest - at[:, None]) ** 2).sum(axis=2)
        apart += turn_mm**2 * ((facing[found] - towards[:, None]) ** 2).sum(axis=2)
        best = apart.argmin(axis=1)
        row = np.arange(len(at))
        chosen[rows], nearest[rows] = found[row, best], closest[row, best]
    weights = barycentric(nearest, corners[chosen])
    distance = np.linalg.norm(np.asarray(points, float) - nearest, axis=1)
    return SurfaceMap(solid[chosen], triangles[solid[chosen]], weights, distance)
