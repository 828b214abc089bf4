"""iBUG-68 landmarks and the fans of jaw-line candidates, as points on the subdivided surface."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from morphable.default_model.surface import HeadTopology

TABLE = Path(__file__).parent / "landmarks68.json"
JAW_POINTS = 17
FAN_POINTS = 24
# A fan lies in the half plane through the face's z axis and one jaw point, from behind the point to the front of the
# cheek: from 22 degrees behind it to 62 degrees in front of the plane of the ears (25 degrees past it at the chin).
FAN_BEHIND_DEG, FAN_FRONT_DEG, FAN_CHIN_DEG = 22.0, 62.0, 25.0

# iBUG-68 index of each landmark's mirror image
MIRROR68 = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)


def read_table(path: Path = TABLE) -> tuple[Int[np.ndarray, "68 3"], Float[np.ndarray, "68 3"]]:
    """Base mesh vertices and weights of the 68 landmarks."""
    entries = sorted(json.loads(path.read_text())["landmarks"], key=lambda entry: entry["ibug"])
    vertices = np.array([entry["base_vertices"] for entry in entries])
    weights = np.array([entry["weights"] for entry in entries], float)
    return vertices, weights / weights.sum(axis=1, keepdims=True)


def subdivide_points(
    topology: HeadTopology, vertices: Int[np.ndarray, "point 3"], weights: Float[np.ndarray, "point 3"]
) -> tuple[Int[np.ndarray, "point 3"], Float[np.ndarray, "point 3"]]:
    """Points given on corners of quads, carried to the subdivided triangulation by their place in the quad.

    Corner weights are a place in the quad's unit square; each quarter of the square is a subquad (corner, edge point,
    face point, edge point) that splits along its corner-to-face-point diagonal.
    """
    corner_place = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    quads = len(topology.quads)
    out_vertices, out_weights = [], []
    for points, w in zip(vertices, weights, strict=True):
        inside = (topology.quads[:, :, None] == points).any(axis=1).all(axis=1)
        if inside.sum() != 1:
            raise ValueError(f"landmark on base vertices {points}: expected corners of one quad, got {inside.sum()}")
        quad = int(np.flatnonzero(inside)[0])
        at = [topology.quads[quad].tolist().index(p) for p in points]
        place = w @ corner_place[at]
        corner = int(np.argmin(((corner_place - place) ** 2).sum(axis=1)))
        subquad = topology.subquads[corner * quads + quad]
        ahead, behind = corner_place[(corner + 1) % 4], corner_place[(corner - 1) % 4]
        offset = place - corner_place[corner]
        s, t = 2 * offset @ (ahead - corner_place[corner]), 2 * offset @ (behind - corner_place[corner])
        if s >= t:  # triangle corner, edge point ahead, face point
            out_vertices.append(subquad[[0, 1, 2]])
            out_weights.append([1 - s, s - t, t])
        else:  # triangle corner, face point, edge point behind
            out_vertices.append(subquad[[0, 2, 3]])
            out_weights.append([1 - t, s, t - s])
    return np.array(out_vertices), np.array(out_weights)


def symmetric(
    vertices: Int[np.ndarray, "68 3"], weights: Float[np.ndarray, "68 3"], mirror: Int[np.ndarray, "subvertex"]
) -> tuple[Int[np.ndarray, "68 3"], Float[np.ndarray, "68 3"]]:
    """In each pair of landmarks, the second replaced by the exact mirror image of the first."""
    vertices, weights = vertices.copy(), weights.copy()
    for first, second in enumerate(MIRROR68):
        if first < second:
            # The mirrored triangle runs the other way round; swapping two corners turns it back.
            vertices[second] = mirror[vertices[first]][[0, 2, 1]]
            weights[second] = weights[first][[0, 2, 1]]
    return vertices, weights


def first_hits(
    origin: Float[np.ndarray, "3"],
    directions: Float[np.ndarray, "ray 3"],
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
) -> tuple[Int[np.ndarray, "ray"], Float[np.ndarray, "ray 3"]]:
    """For rays from one point, the first triangle hit (-1: none) and the barycentric weights (Moeller & Trumbore)."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    ab, ac, to_origin = b - a, c - a, origin - a
    hit = np.full(len(directions), -1)
    weights = np.zeros((len(directions), 3))
    q = np.cross(to_origin, ab)
    for i, d in enumerate(directions):
        p = np.cross(d, ac)
        det = (ab * p).sum(axis=1)
        det = np.where(np.abs(det) < 1e-12, np.inf, det)
        u = (to_origin * p).sum(axis=1) / det
        v = (q @ d) / det
        distance = (ac * q).sum(axis=1) / det
        slack = 1e-9  # a ray in the plane of symmetry runs along edges
        ok = (u >= -slack) & (v >= -slack) & (u + v <= 1 + slack) & (distance > 0) & np.isfinite(det)
        if ok.any():
            hit[i] = np.flatnonzero(ok)[np.argmin(distance[ok])]
            w = np.clip([1 - u[hit[i]] - v[hit[i]], u[hit[i]], v[hit[i]]], 0, None)
            weights[i] = w / w.sum()
    return hit, weights


def contour_fans(
    vertices: Float[np.ndarray, "subvertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    mirror: Int[np.ndarray, "subvertex"],
    landmarks: Float[np.ndarray, "68 3"],
    usable: Bool[np.ndarray, "subvertex"],
) -> tuple[Int[np.ndarray, "17 24 3"], Float[np.ndarray, "17 24 3"]]:
    """Candidates for each jaw point's place on the occluding contour, from behind it to the front of the cheek.

    `usable` leaves out ears and hidden cavities. A ray that misses takes the point of its nearest neighbour that hits.
    """
    triangles = triangles[usable[triangles].all(axis=1)]
    centre = np.array([0.0, landmarks[29, 1] - 12.0, landmarks[2, 2] - 5.0])
    out_vertices = np.zeros((JAW_POINTS, FAN_POINTS, 3), int)
    out_weights = np.zeros((JAW_POINTS, FAN_POINTS, 3))
    for point in range(JAW_POINTS // 2 + 1):
        d = landmarks[point] - centre
        outward = np.array([d[0], d[1], 0.0]) / np.hypot(d[0], d[1])
        if point == JAW_POINTS // 2:
            outward = np.array([0.0, -1.0, 0.0])
        own = np.degrees(np.arctan2(d[2], d @ outward))
        front = own + FAN_CHIN_DEG if point == JAW_POINTS // 2 else FAN_FRONT_DEG
        angle = np.radians(np.linspace(own - FAN_BEHIND_DEG, front, FAN_POINTS))
        rays = np.cos(angle)[:, None] * outward + np.sin(angle)[:, None] * np.array([0.0, 0.0, 1.0])
        hit, weights = first_hits(centre, rays, vertices, triangles)
        valid = np.flatnonzero(hit >= 0)
        nearest = valid[np.abs(valid[None] - np.arange(FAN_POINTS)[:, None]).argmin(axis=1)]
        out_vertices[point], out_weights[point] = triangles[hit[nearest]], weights[nearest]
        other = JAW_POINTS - 1 - point
        if other != point:
            out_vertices[other] = mirror[out_vertices[point]][:, [0, 2, 1]]
            out_weights[other] = out_weights[point][:, [0, 2, 1]]
    return out_vertices, out_weights
