"""The surface that a template is registered to: its normals, its holes, and where it answers to a point."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from morphable.registration.closest_points import SurfaceSearch, row_dot


class Match(NamedTuple):
    """What a target has for each of some points."""

    points: Float[np.ndarray, "point 3"]  # the closest ones on the target
    normals: Float[np.ndarray, "point 3"]  # the target's there, unit
    distance: Float[np.ndarray, " point"]  # along the normal, positive where the target lies outside of the point
    valid: Bool[np.ndarray, " point"]  # a true counterpart: near, facing the same way, not at a rim


class TargetSurface:
    """A mesh or scan, ready to be asked for counterparts.

    Vertices in one place are one vertex, so seams are no rims. Normals are averaged over each vertex's triangles and
    their neighbours: on a scan whose noise is a fifth of its spacing, those of single triangles are off by 15 degrees.
    """

    def __init__(self, vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]):
        self.search = SurfaceSearch(np.asarray(vertices, float), np.asarray(triangles))
        # Seams' copies may differ by rounding; a millionth of the mesh's size is no distance.
        grain = 1e-6 * np.ptp(self.search.corners.reshape(-1, 3), axis=0).max()
        unique, welded = np.unique(np.round(np.asarray(vertices, float) / grain), axis=0, return_inverse=True)
        self._triangles = welded.ravel()[np.asarray(triangles)[self.search.solid]]
        self.rim = rim_vertices(self._triangles, len(unique))
        corners = self.search.corners
        of_triangle = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        around = _summed(of_triangle, self._triangles, len(unique))
        wider = _summed(around[self._triangles].sum(axis=1), self._triangles, len(unique))
        self._normals = wider / np.maximum(np.linalg.norm(wider, axis=1, keepdims=True), 1e-300)

    def match(
        self,
        points: Float[np.ndarray, "point 3"],
        normals: Float[np.ndarray, "point 3"],
        reach: float,
        facing: float,
        exact: bool = False,
    ) -> Match:
        """Counterparts of points within `reach`, where the normals' cosine is above `facing`, and not on a rim: the
        closest point of a missing piece lies on the rim of its hole.
        """
        found = self.search.closest(points) if exact else self.search.nearly_closest(points)
        weights = barycentric(found.points, self.search.corners[found.triangle])
        corners = self._triangles[found.triangle]
        smooth = np.einsum("pk,pkc->pc", weights, self._normals[corners])
        smooth = smooth / np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-300)
        on_rim = (weights * self.rim[corners]).sum(axis=1) > 1 - 1e-6
        valid = (found.distance < reach) & (row_dot(smooth, normals) > facing) & ~on_rim
        return Match(found.points, smooth, row_dot(found.points - points, smooth), valid)


def barycentric(
    points: Float[np.ndarray, "point 3"], corners: Float[np.ndarray, "point 3 3"]
) -> Float[np.ndarray, "point 3"]:
    """Barycentric weights of points in the planes of their triangles, none below 0, summing to 1."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    normal = np.cross(b - a, c - a)
    area = np.maximum(row_dot(normal, normal), 1e-300)
    of_b = row_dot(np.cross(points - a, c - a), normal) / area
    of_c = row_dot(np.cross(b - a, points - a), normal) / area
    weights = np.clip(np.stack([1 - of_b - of_c, of_b, of_c], axis=1), 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def rim_vertices(triangles: Int[np.ndarray, "triangle 3"], count: int) -> Bool[np.ndarray, " vertex"]:
    """The vertices on edges with one triangle only, of `count` vertices."""
    edges = np.sort(np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)]), axis=1)
    unique, uses = np.unique(edges, axis=0, return_counts=True)
    on_rim = np.zeros(count, bool)
    on_rim[unique[uses == 1]] = True
    return on_rim


def outward_normals(
    vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]
) -> Float[np.ndarray, "vertex 3"]:
    """Unit normals averaged over each vertex's triangles by area; zero at vertices without any.

    As morphable.mesh.vertex_normals, in double precision and without compilation.
    """
    corners = vertices[triangles]
    of_triangle = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = _summed(of_triangle, triangles, len(vertices))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)


def _summed(
    of_triangle: Float[np.ndarray, "triangle 3"], triangles: Int[np.ndarray, "triangle 3"], count: int
) -> Float[np.ndarray, "vertex 3"]:
    """Sums over each vertex's triangles."""
    return np.stack([np.bincount(triangles.ravel(), np.repeat(x, 3), count) for x in of_triangle.T], axis=1)
