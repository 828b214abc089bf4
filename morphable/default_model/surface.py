"""Which part of the body mesh is the head, its named parts, and how the parts mirror, subdivide and occlude."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import scipy.sparse.csgraph
from jaxtyping import Bool, Float, Int

from morphable.default_model.assets import BaseMesh
from morphable.mesh import catmull_clark, triangulate

# The closed edge loop through this edge of the base mesh is the collar. A plane cut leaves a jagged collar; this loop
# leaves a topological disc with a single boundary of 42 edges.
COLLAR_EDGE = (1522, 8205)

# Parts in the order of their rows, and the helper groups of the base mesh they consist of.
PARTS = {
    "skin": (),
    "eye_left": ("helper-l-eye",),
    "eye_right": ("helper-r-eye",),
    "teeth_upper": ("helper-upper-teeth",),
    "teeth_lower": ("helper-lower-teeth",),
    "tongue": ("helper-tongue",),
    "lashes_left": ("helper-l-eyelashes-1", "helper-l-eyelashes-2"),
    "lashes_right": ("helper-r-eyelashes-1", "helper-r-eyelashes-2"),
}


@dataclass(frozen=True)
class HeadTopology:
    """Rows (level-0 vertices) and quads of the head model, and their subdivision (level 1)."""

    base_ids: Int[np.ndarray, "row"]  # vertex of the base mesh in each row
    quads: Int[np.ndarray, "quad 4"]
    part_rows: dict[str, slice]
    part_quads: dict[str, slice]
    mirror: Int[np.ndarray, "row"]
    stencil: sp.csr_matrix  # (subvertex, row)
    subquads: Int[np.ndarray, "subquad 4"]

    @property
    def rows(self) -> int:
        return len(self.base_ids)

    @property
    def subvertices(self) -> int:
        return int(self.subquads.max()) + 1

    @property
    def triangles(self) -> Int[np.ndarray, "triangle 3"]:
        return triangulate(self.quads)

    @property
    def subtriangles(self) -> Int[np.ndarray, "subtriangle 3"]:
        return triangulate(self.subquads)

    def quads_of(self, part: str) -> Int[np.ndarray, "quad 4"]:
        return self.quads[self.part_quads[part]]

    def subquads_of(self, part: str) -> Int[np.ndarray, "subquad 4"]:
        """Subdivision keeps four blocks of quads, one for each corner, in the order of the quads."""
        span = self.part_quads[part]
        return self.subquads.reshape(4, len(self.quads), 4)[:, span].reshape(-1, 4)

    def subvertices_of(self, part: str) -> Bool[np.ndarray, "subvertex"]:
        inside = np.zeros(self.subvertices, bool)
        inside[self.subquads_of(part)] = True
        return inside

    def submirror(self) -> Int[np.ndarray, "subvertex"]:
        """The mirror table after subdivision, from where vertex, quad and edge points come from."""
        n, m = self.rows, len(self.quads)
        quad_of = {frozenset(q): i for i, q in enumerate(self.quads.tolist())}
        edge_point = {}
        for corner in range(4):
            block = self.subquads[corner * m : (corner + 1) * m]
            ends = zip(self.quads[:, corner].tolist(), self.quads[:, (corner + 1) % 4].tolist(), strict=True)
            edge_point.update(zip(map(frozenset, ends), block[:, 1].tolist(), strict=True))
        out = np.empty(self.subvertices, np.int64)
        out[:n] = self.mirror
        for i, quad in enumerate(self.mirror[self.quads].tolist()):
            out[n + i] = n + quad_of[frozenset(quad)]
        for edge, point in edge_point.items():
            out[point] = edge_point[frozenset(self.mirror[list(edge)].tolist())]
        return out


def edge_loop(quads: Int[np.ndarray, "quad 4"], start: int, second: int) -> list[int]:
    """The closed loop of a quad mesh that goes straight on through four-valent vertices."""
    neighbours, quads_at = _adjacency(quads)
    loop = [start, second]
    while len(loop) <= len(neighbours):
        previous, current = loop[-2:]
        beside = quads_at[previous] & quads_at[current]
        ahead = [n for n in neighbours[current] if n != previous and not quads_at[n] & quads_at[current] & beside]
        if len(neighbours[current]) != 4 or len(ahead) != 1:
            raise ValueError(
                f"edge loop from ({start}, {second}): expected to go straight on, stopped at vertex {current} "
                f"with {len(neighbours[current])} edges. Start from an edge of a regular ring."
            )
        if ahead[0] == start:
            return loop
        loop.append(ahead[0])
    raise ValueError(f"edge loop from ({start}, {second}): did not close after {len(loop)} vertices")


def _adjacency(quads: Int[np.ndarray, "quad 4"]) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    neighbours: dict[int, set[int]] = defaultdict(set)
    quads_at: dict[int, set[int]] = defaultdict(set)
    for i, quad in enumerate(quads.tolist()):
        for a, b in zip(quad, quad[1:] + quad[:1], strict=True):
            neighbours[a].add(b)
            neighbours[b].add(a)
            quads_at[a].add(i)
    return neighbours, quads_at


def head_skin(base: BaseMesh) -> Int[np.ndarray, "quad 4"]:
    """The quads of the body above the collar loop (base mesh ids)."""
    body = base.quads[base.groups == "body"]
    collar = set(edge_loop(body, *COLLAR_EDGE))
    neighbours, _ = _adjacency(body)
    ids = np.unique(body)
    crown = int(ids[np.argmax(base.vertices[ids, 1])])
    head, front = {crown}, [crown]
    while front:
        for n in neighbours[front.pop()]:
            if n not in head and n not in collar:
                head.add(n)
                front.append(n)
    return body[np.isin(body, list(head | collar)).all(axis=1)]


def open_behind(quads: Int[np.ndarray, "quad 4"], vertices: Float[np.ndarray, "vertex 3"]) -> Int[np.ndarray, "quad 4"]:
    """A closed part without the quads around its rearmost point.

    Eyeballs and the tongue are closed surfaces, which no continuous chart can flatten. The opening is where nobody can
    look: inside the socket and in the throat.
    """
    z = vertices[quads].mean(axis=1)[:, 2]
    return quads[z > z.min() + OPENING_DEPTH * (z.max() - z.min())]


OPENING_DEPTH = 0.08  # share of the part's depth that is cut away


def head_topology(base: BaseMesh, mirror: Int[np.ndarray, "vertex"]) -> HeadTopology:
    ids_of_part, quads_of_part = {}, {}
    for part, groups in PARTS.items():
        quads = base.quads[np.isin(base.groups, groups)] if groups else head_skin(base)
        if part.startswith("eye") or part == "tongue":
            quads = open_behind(quads, base.vertices)
        ids_of_part[part], quads_of_part[part] = np.unique(quads), quads
    base_ids = np.concatenate(list(ids_of_part.values()))
    row_of = np.full(len(base.vertices), -1)
    row_of[base_ids] = np.arange(len(base_ids))
    quads = row_of[np.concatenate(list(quads_of_part.values()))]
    stencil, subquads = catmull_clark(quads, len(base_ids))
    return HeadTopology(
        base_ids=base_ids,
        quads=quads,
        part_rows=_spans(ids_of_part),
        part_quads=_spans(quads_of_part),
        mirror=row_of[mirror[base_ids]],
        stencil=stencil,
        subquads=subquads,
    )


def _spans(blocks: dict[str, np.ndarray]) -> dict[str, slice]:
    ends = np.cumsum([len(block) for block in blocks.values()])
    return {
        name: slice(int(end) - len(block), int(end)) for (name, block), end in zip(blocks.items(), ends, strict=True)
    }


def boundary_loop(quads: Int[np.ndarray, "quad 4"]) -> Int[np.ndarray, "rim"]:
    """The single open boundary of a disc of quads, in the direction in which its quads run."""
    edges = np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)])
    present = set(map(tuple, edges.tolist()))
    successor = {a: b for a, b in present if (b, a) not in present}
    if not successor:
        raise ValueError("boundary loop: the mesh is closed, expected one open boundary")
    first = min(successor)
    loop = [first]
    while successor[loop[-1]] != first:
        loop.append(successor[loop[-1]])
    if len(loop) != len(successor):
        raise ValueError(f"boundary loop: expected one boundary, found more ({len(loop)} of {len(successor)} edges)")
    return np.array(loop)


def pieces(quads: Int[np.ndarray, "quad 4"], count: int) -> Int[np.ndarray, "vertex"]:
    """Connected component of every vertex."""
    edges = np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)])
    graph = sp.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]


def area_normals(
    vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]
) -> tuple[Float[np.ndarray, "vertex"], Float[np.ndarray, "vertex 3"]]:
    """A third of the surface around each vertex (mm2), and unit vertex normals."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    area, total = np.zeros(len(vertices)), np.zeros_like(vertices)
    for k in range(3):
        np.add.at(area, triangles[:, k], np.linalg.norm(normals, axis=1) / 6)
        np.add.at(total, triangles[:, k], normals)
    return area, total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def sphere_directions(count: int) -> Float[np.ndarray, "count 3"]:
    """Nearly evenly spread unit vectors, mirror-symmetric in x (half a Fibonacci lattice and its mirror image)."""
    half = count // 2
    i = np.arange(count) + 0.5
    z, angle = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    r = np.sqrt(1 - z**2)
    points = np.stack([r * np.cos(angle), z, r * np.sin(angle)], axis=1)
    points = points[np.argsort(-points[:, 0], kind="stable")[:half]]
    return np.concatenate([points, points * [-1, 1, 1]])


def openness(
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    directions: Float[np.ndarray, "direction 3"],
    pixel_mm: float = 0.5,
    offset_mm: float = 0.4,
) -> Float[np.ndarray, "vertex"]:
    """Share of each vertex's hemisphere from which it can be seen (one minus ambient occlusion).

    One orthographic depth map for each direction; `offset_mm` lifts the points off the surface so that it does not
    hide itself within the map's resolution.
    """
    _, normals = area_normals(vertices, triangles)
    points = vertices + offset_mm * normals
    seen = np.zeros(len(vertices))
    possible = np.zeros(len(vertices))
    for direction in directions:
        facing = normals @ direction > 0
        possible += facing
        seen += facing & ~_hidden(vertices, triangles, points, direction, pixel_mm)
    return seen / np.maximum(possible, 1)


def _hidden(
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    points: Float[np.ndarray, "point 3"],
    direction: Float[np.ndarray, "3"],
    pixel_mm: float,
) -> Bool[np.ndarray, "point"]:
    """Whether the mesh lies between each point and an eye infinitely far away along `direction`."""
    side = np.cross(direction, [0.0, 0.0, 1.0] if abs(direction[2]) < 0.9 else [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(direction, side), direction], axis=1)
    corners = vertices @ frame
    origin = corners[:, :2].min(axis=0) - pixel_mm
    width, height = np.ceil((corners[:, :2].max(axis=0) - origin) / pixel_mm).astype(int) + 2
    depth = np.full(height * width, -np.inf)
    xy = (corners[:, :2] - origin) / pixel_mm - 0.5  # pixel centres at whole numbers
    a, b, c = (triangles[:, k] for k in range(3))
    low = np.ceil(np.minimum(np.minimum(xy[a], xy[b]), xy[c])).astype(int)
    size = np.floor(np.maximum(np.maximum(xy[a], xy[b]), xy[c])).astype(int) - low + 1
    ab, ac = xy[b] - xy[a], xy[c] - xy[a]
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    cells = np.where((size > 0).all(axis=1) & (np.abs(area) > 1e-9), size.prod(axis=1), 0)
    triangle = np.repeat(np.arange(len(triangles)), cells)
    within = np.arange(len(triangle)) - np.repeat(np.cumsum(cells) - cells, cells)
    x = low[triangle, 0] + within % size[triangle, 0]
    y = low[triangle, 1] + within // size[triangle, 0]
    px, py = x - xy[a, 0][triangle], y - xy[a, 1][triangle]
    s = (px * ac[triangle, 1] - py * ac[triangle, 0]) / area[triangle]
    t = (py * ab[triangle, 0] - px * ab[triangle, 1]) / area[triangle]
    inside = (s >= 0) & (t >= 0) & (s + t <= 1)
    z = corners[:, 2]
    za, zb, zc = z[a], z[b], z[c]
    fragment = za[triangle] + s * (zb - za)[triangle] + t * (zc - za)[triangle]
    np.maximum.at(depth, (y * width + x)[inside], fragment[inside])
    at = points @ frame
    cell = np.round((at[:, :2] - origin) / pixel_mm - 0.5).astype(int)
    cell = np.clip(cell, 0, [width - 1, height - 1])
    return depth[cell[:, 1] * width + cell[:, 0]] > at[:, 2] + pixel_mm
