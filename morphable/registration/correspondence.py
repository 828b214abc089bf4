"""Maps between surfaces: each point's place on another mesh, so that what is known on one is known on the other."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from morphable.registration.closest_points import SurfaceSearch
from morphable.registration.target import barycentric


class SurfaceMap(NamedTuple):
    """For each point the triangle that it is closest to, its place in it, and how far away it is."""

    triangle: Int[np.ndarray, " point"]  # index into the mesh's triangles
    corners: Int[np.ndarray, "point 3"]  # that triangle's vertices
    weights: Float[np.ndarray, "point 3"]  # barycentric, in [0, 1], summing to 1
    distance: Float[np.ndarray, " point"]  # in the meshes' unit

    def __call__(self, values: Float[np.ndarray, "vertex *channel"]) -> Float[np.ndarray, "point *channel"]:
        """The mesh's per-vertex values (positions, colours, masks, displacements, ...) at the points."""
        return np.einsum("pk,pk...->p...", self.weights, np.asarray(values)[self.corners])


def surface_map(
    points: Float[np.ndarray, "point 3"],
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
) -> SurfaceMap:
    """The exact closest places of points on a mesh. Raises SurfaceError for a mesh without area."""
    search = SurfaceSearch(np.asarray(vertices, float), np.asarray(triangles))
    found = search.closest(np.asarray(points, float))
    triangle = search.solid[found.triangle]
    weights = barycentric(found.points, search.corners[found.triangle])
    return SurfaceMap(triangle, np.asarray(triangles)[triangle], weights, found.distance)
