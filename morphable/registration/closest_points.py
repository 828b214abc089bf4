"""Exact closest points on a triangle mesh: vectorised, with search trees, no geometry library."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree


class SurfaceError(ValueError):
    """A mesh on which nothing is closest: what, got, expected, remedy."""


class Closest(NamedTuple):
    """For each point: how far the surface is, where it is nearest, and on which of the search's triangles."""

    distance: Float[np.ndarray, " point"]
    points: Float[np.ndarray, "point 3"]
    triangle: Int[np.ndarray, " point"]


class SurfaceSearch:
    """Exact closest points on a triangle mesh: search trees over the triangles' centroids.

    A triangle that is nearer than the distance d found so far has its centroid within d plus its own radius. So that
    one large triangle does not widen the search among all small ones, triangles of each magnitude have a tree.
    """

    def __init__(self, vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]):
        if len(triangles) == 0 or not np.isfinite(vertices[np.unique(triangles)]).all():
            raise SurfaceError(
                f"mesh: got {len(triangles)} triangles, expected at least one and finite vertices. Is the mesh empty?"
            )
        corners = np.asarray(vertices, float)[triangles]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = np.linalg.norm(normals, axis=1)
        # A triangle without area has no plane, and its edges belong to its neighbours.
        solid = area > 1e-14 * max(float(area.max()), 1e-300)
        self.solid = np.flatnonzero(solid)  # the mesh's triangles that are searched: triangle k here is solid[k] there
        self.corners, self.normals = corners[solid], normals[solid] / area[solid, None]
        if not solid.any():
            raise SurfaceError(f"mesh: got {len(triangles)} triangles without area, expected a surface. Is it a curve?")
        self.centroids = self.corners.mean(axis=1)
        self.radii = np.linalg.norm(self.corners - self.centroids[:, None], axis=2).max(axis=1)
        self._tree = KDTree(self.centroids)
        largest = max(float(self.radii.max()), np.finfo(float).tiny)
        magnitude = np.floor(np.log2(np.maximum(self.radii / largest, 1 / 64)))
        groups = [np.flatnonzero(magnitude == m) for m in np.unique(magnitude)]
        self._groups = [(ids, KDTree(self.centroids[ids]), float(self.radii[ids].max())) for ids in groups]

    def closest(self, points: Float[np.ndarray, "point 3"]) -> Closest:
        """The closest point of the surface to each point."""
        blocks = [self._closest(points[i : i + 1024]) for i in range(0, len(points), 1024)]
        distance, nearest, triangle = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return Closest(distance, nearest, triangle)

    def nearly_closest(self, points: Float[np.ndarray, "point 3"]) -> Closest:
        """The closest point on the four triangles with the nearest centroids: ten times as fast, and seldom another."""
        count = min(4, len(self.centroids))
        near = self._tree.query(points, k=count)[1].reshape(len(points), count)
        every = np.repeat(points, count, axis=0)
        nearest = closest_on_triangles(every, self.corners[near.ravel()])
        apart = ((every - nearest) ** 2).sum(axis=1).reshape(len(points), count)
        best = apart.argmin(axis=1)
        row = np.arange(len(points))
        return Closest(np.sqrt(apart[row, best]), nearest.reshape(-1, count, 3)[row, best], near[row, best])

    def _closest(self, points: Float[np.ndarray, "point 3"]) -> Closest:
        bound = self.nearly_closest(points).distance * (1 + 1e-9)
        rows, triangles = [], []
        for ids, tree, radius in self._groups:
            # The first margin keeps the bound's own triangle in, whatever is lost to rounding.
            found = tree.query_ball_point(points, bound + radius * (1 + 1e-9), return_sorted=False)
            counts = np.fromiter(map(len, found), int, len(points))
            rows.append(np.repeat(np.arange(len(points)), counts))
            triangles.append(ids[np.concatenate(found).astype(int)])
        row, triangle = np.concatenate(rows), np.concatenate(triangles)
        apart = np.linalg.norm(points[row] - self.centroids[triangle], axis=1)
        keep = apart <= bound[row] + self.radii[triangle] * (1 + 1e-9)
        return self._best(points, row[keep], triangle[keep])

    def _best(
        self,
        points: Float[np.ndarray, "point 3"],
        row: Int[np.ndarray, " pair"],
        triangle: Int[np.ndarray, " pair"],
    ) -> Closest:
        """The nearest of each point's candidate triangles; every point has one."""
        nearest = closest_on_triangles(points[row], self.corners[triangle])
        distance = np.linalg.norm(points[row] - nearest, axis=1)
        order = np.lexsort((distance, row))
        first = order[np.searchsorted(row[order], np.arange(len(points)))]
        return Closest(distance[first], nearest[first], triangle[first])


def closest_on_triangles(
    points: Float[np.ndarray, "pair 3"], corners: Float[np.ndarray, "pair 3 3"]
) -> Float[np.ndarray, "pair 3"]:
    """The closest point of each triangle to its point, by the region of the triangle's plane that the point lies over
    (Ericson 2005, "Real-Time Collision Detection", section 5.1.5).
    """
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    ab, ac = b - a, c - a
    along_a, along_b, along_c = ((row_dot(ab, points - corner), row_dot(ac, points - corner)) for corner in (a, b, c))
    (d1, d2), (d3, d4), (d5, d6) = along_a, along_b, along_c
    # Barycentric coordinates times the area, opposite a, b and c.
    of_a, of_b, of_c = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    area = _not_zero(of_a + of_b + of_c)
    nearest = a + ab * (of_b / area)[:, None] + ac * (of_c / area)[:, None]
    to_c, to_b = d4 - d3, d5 - d6

    def replace(where, start, direction, share):
        nearest[where] = start[where] + direction[where] * share[where, None]

    # Edges overrule the inside, corners the edges.
    replace((of_a <= 0) & (to_c >= 0) & (to_b >= 0), b, c - b, to_c / _not_zero(to_c + to_b))
    replace((of_b <= 0) & (d2 >= 0) & (d6 <= 0), a, ac, d2 / _not_zero(d2 - d6))
    replace((of_c <= 0) & (d1 >= 0) & (d3 <= 0), a, ab, d1 / _not_zero(d1 - d3))
    for where, corner in (
        ((d6 >= 0) & (d5 <= d6), c),
        ((d3 >= 0) & (d4 <= d3), b),
        ((d1 <= 0) & (d2 <= 0), a),
    ):
        nearest[where] = corner[where]
    return nearest


def _not_zero(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < 1e-30, 1e-30, values)


def row_dot(a: Float[np.ndarray, "row 3"], b: Float[np.ndarray, "row 3"]) -> Float[np.ndarray, " row"]:
    """The dot product of each pair of rows."""
    return (a * b).sum(axis=1)
