"""Optimal-step non-rigid ICP: a template bends until it lies on a target, stiffly first, softly at last.

After Amberg, Romdhani & Vetter 2007: every node of the template has an affine map, neighbours' maps should agree, and
for each stiffness the optimum is found for the present counterparts until these settle. Distances are measured to the
counterparts' tangent planes, mostly (Chen & Medioni 1992). Three things differ:

- neighbours' maps are compared where their edge is, not at the origin: moving everything changes nothing;
- stiffness is a length. Bending is weighed against areas of surface, as in the energy l⁴ ∫ |∇²x|² + ∫ |gap|², so that
  it means the same on every triangulation: details below `l` are left to the template;
- large templates are solved on a subset of their vertices, neighbours being those whose surroundings touch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import splu

from morphable.laplacian import cotangent_laplacian
from morphable.registration.gaussian_process import Marks
from morphable.registration.target import TargetSurface, outward_normals

_SOLVED, _SOLVER_STEPS = 1e-3, 15  # of a round's conjugate gradients: relative residual, steps at most


@dataclass(frozen=True)
class NonrigidSettings:
    """The schedule of a non-rigid ICP. Lengths in mm; pairs are at the first and the last stiffness."""

    stiffness: tuple[float, ...] = (40.0, 25.0, 15.0, 9.0, 6.0)  # smoothing lengths, one after the other
    landmarks: tuple[float, float] = (1.0, 0.0)  # factor of the landmarks' precision
    rounds: int = 3  # at most, for each stiffness
    settled: float = 0.02  # mean motion of the nodes in a round, below which the next stiffness follows
    reach: tuple[float, float] = (12.0, 4.0)  # counterparts farther away do not count
    robust: tuple[float, float] = (4.0, 1.0)  # a counterpart at this distance draws with a quarter of its weight
    facing: float = 0.6  # least cosine between the normals of a point and of its counterpart
    tangential: float = 0.1  # precision of the motion within the plane, relative to that across it
    hold: float = 80.0  # what no counterpart draws goes with its surroundings this far, and then returns to the start
    nodes: int = 6000  # at most; larger templates are solved on a subset


class Graph(NamedTuple):
    """The nodes of a mesh on which a deformation is solved."""

    nodes: Int[np.ndarray, " node"]  # vertex ids, ascending
    edges: Int[np.ndarray, "edge 2"]  # of nodes, by their place in `nodes`
    node_of: Int[np.ndarray, " vertex"]  # the nearest node along the surface, by its place; -1 off the mesh


def nonrigid_icp(
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    target: TargetSurface,
    pull: Float[np.ndarray, " vertex"],
    marks: Marks | None = None,
    settings: NonrigidSettings = NonrigidSettings(),
) -> Float[np.ndarray, "vertex 3"]:
    """The template's vertices (mm, near the target) moved onto the target.

    `pull`, in [0, 1], says how much a vertex is drawn; where it is 0 the surface only goes along. Vertices without
    triangles stay. The start counts: similarity and large deformations are gaussian_process.fit_surface's.
    """
    vertices, triangles = np.asarray(vertices, float), np.asarray(triangles)
    graph = mesh_graph(vertices, triangles, settings.nodes)
    if len(graph.nodes) == 0:
        return vertices
    rest = vertices[graph.nodes]
    count = len(rest)
    laplacian = cotangent_laplacian(vertices, triangles)
    on = graph.node_of >= 0
    area = np.bincount(graph.node_of[on], laplacian.mass[on], minlength=count)
    known = _known_marks(marks, graph)
    rows = None if known is None else _mark_rows(known, vertices, graph)
    bending, spacing = _bending(rest, graph.edges)
    drawn = np.asarray(pull, float)[graph.nodes]
    displacement = np.zeros((4 * count, 3))  # of each node: the affine map's three rows less the identity's, its shift
    moved = vertices
    levels = len(settings.stiffness)
    for level, length in enumerate(settings.stiffness):
        along = level / max(levels - 1, 1)
        reach, robust = (a * (b / a) ** along for a, b in (settings.reach, settings.robust))
        fading = settings.landmarks[0] + along * (settings.landmarks[1] - settings.landmarks[0])
        fixed = length**4 * bending + _hold((length / settings.hold) ** 4 * area, spacing)
        pulled = np.zeros((4 * count, 3))
        if rows is not None and known is not None and fading > 0:
            # A landmark counts as the patch that the smoothing length makes of it.
            precision = sp.diags(fading * length**2 / known.sigma**2)
            fixed = fixed + rows.T @ precision @ rows
            rest_marks = np.einsum("mk,mkc->mc", known.weights, vertices[known.corners])
            pulled = rows.T @ precision @ (known.points - rest_marks)
        factor = None
        for _ in range(settings.rounds):
            nodes = rest + displacement[3::4]
            normals = outward_normals(moved, triangles)[graph.nodes]
            found = target.match(nodes, normals, reach, settings.facing)
            weight = area * drawn * found.valid / (1 + (found.distance / robust) ** 2) ** 2
            if factor is None:
                # Isotropic stand-in of the planes' pull, for which x, y and z separate; the counterparts of later
                # rounds differ too little to be worth another factorisation.
                mean = (1 / 3 + settings.tangential) * weight
                factor = _factor(fixed + sp.diags(np.kron(mean, [0.0, 0.0, 0.0, 1.0])))
            planes = weight[:, None, None] * (
                found.normals[:, :, None] * found.normals[:, None, :] + settings.tangential * np.eye(3)
            )
            new = _solve(fixed, planes, found.points - rest, pulled, displacement, factor)
            step = np.linalg.norm(new[3::4] - displacement[3::4], axis=1).mean()
            displacement = new
            moved = vertices + _affine(displacement, vertices, graph)
            if step < settings.settled:
                break
    return vertices + spread(vertices, triangles, graph.nodes, displacement[3::4])


def mesh_graph(vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"], most: int) -> Graph:
    """The mesh's vertices, thinned to `most` at most: a maximal set of vertices that are no neighbours, repeatedly.

    So the subset is dense where the mesh is, and lips that touch in space stay apart. Of a mesh subdivided once, with
    the old vertices first, it is those.
    """
    count = len(vertices)
    edges = np.unique(np.sort(np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)]), axis=1), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    nodes, here = np.unique(triangles), edges
    lengths = np.maximum(np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1), 1e-9)
    graph = sp.csr_matrix((lengths, (edges[:, 0], edges[:, 1])), shape=(count, count))
    node_of = np.full(count, -1)
    node_of[nodes] = np.arange(len(nodes))
    while len(nodes) > most:
        nodes = nodes[_independent(node_of[here] if len(here) else here, len(nodes))]
        _, _, nearest = dijkstra(graph, directed=False, indices=nodes, min_only=True, return_predecessors=True)
        place = np.full(count, -1)
        place[nodes] = np.arange(len(nodes))
        node_of = np.where(nearest >= 0, place[nearest], -1)
        pairs = node_of[edges]
        pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
        here = nodes[np.unique(pairs, axis=0)] if len(pairs) else np.zeros((0, 2), int)
    return Graph(nodes, node_of[here].reshape(-1, 2), node_of)


def spread(
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    known: Int[np.ndarray, " known"],
    values: Float[np.ndarray, "known channel"],
) -> Float[np.ndarray, "vertex channel"]:
    """Values at some vertices, carried to the others of the mesh by the least bending (Botsch & Sorkine 2008, section
    III): biharmonic. 0 at vertices without triangles.
    """
    out = np.zeros((len(vertices), values.shape[1]))
    on = np.unique(triangles)
    if len(known) == len(on):
        out[known] = values
        return out
    laplacian = cotangent_laplacian(vertices, triangles)
    # A sliver's tiny mass would make its curvature count for thousands of others.
    mass = np.maximum(laplacian.mass, 0.05 * np.median(laplacian.mass[on]))
    bending = laplacian.stiffness.T @ sp.diags(1 / mass) @ laplacian.stiffness
    firm = np.zeros(len(vertices))
    firm[known] = 1e3 / np.median(mass[on])
    system = (bending + sp.diags(firm + 1e-9))[on][:, on]
    right = np.zeros_like(out)
    right[known] = firm[known, None] * values
    out[on] = _factor(system).solve(right[on])
    out[known] = values
    return out


def _independent(edges: Int[np.ndarray, "edge 2"], count: int) -> Bool[np.ndarray, " vertex"]:
    """A maximal independent set, the first vertices first."""
    both = np.concatenate([edges, edges[:, ::-1]])
    near = sp.csr_matrix((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(count, count))
    taken, chosen = np.zeros(count, bool), np.zeros(count, bool)
    starts, ids = list(near.indptr), np.asarray(near.indices)
    for i in range(count):
        if not taken[i]:
            chosen[i] = True
            taken[ids[starts[i] : starts[i + 1]]] = True
    return chosen


def _bending(rest: Float[np.ndarray, "node 3"], edges: Int[np.ndarray, "edge 2"]) -> tuple[sp.csr_matrix, float]:
    """Disagreement of neighbours' affine maps: of their linear parts, and of where they take their edge's middle, in
    parts of its length. Unknowns of a node are consecutive: three of the linear part, one shift. Also the mean length.
    """
    count, number = len(rest), len(edges)
    i, j = edges[:, 0], edges[:, 1]
    half = (rest[j] - rest[i]) / 2
    length = np.maximum(2 * np.linalg.norm(half, axis=1), 1e-9)
    typical = float(length.mean()) if number else 1.0
    row = np.arange(number)
    entries = []
    for k in range(3):  # linear parts
        entries += [(4 * row + k, 4 * i + k, np.ones(number)), (4 * row + k, 4 * j + k, -np.ones(number))]
        entries += [(4 * row + 3, 4 * i + k, half[:, k] / length), (4 * row + 3, 4 * j + k, half[:, k] / length)]
    entries += [(4 * row + 3, 4 * i + 3, 1 / length), (4 * row + 3, 4 * j + 3, -1 / length)]
    rows, columns, values = (np.concatenate(x) for x in zip(*entries, strict=True))
    difference = sp.csr_matrix((values, (rows, columns)), shape=(4 * number, 4 * count))
    return sp.csr_matrix(difference.T @ difference), typical


def _hold(precision: Float[np.ndarray, " node"], spacing: float) -> sp.dia_matrix:
    """Precision of the nodes' start, in shift and, over an edge's length, in linear part."""
    return sp.diags(np.kron(precision, [0.1 * spacing**2] * 3 + [1.0]))


def _known_marks(marks: Marks | None, graph: Graph) -> Marks | None:
    if marks is None:
        return None
    use = np.isfinite(marks.points).all(axis=1) & np.isfinite(marks.sigma)
    use &= (graph.node_of[marks.corners] >= 0).all(axis=1)
    return Marks(*(x[use] for x in marks)) if use.any() else None


def _mark_rows(marks: Marks, vertices: Float[np.ndarray, "vertex 3"], graph: Graph) -> sp.csr_matrix:
    """Displacement of landmarks from the nodes' unknowns: each corner moves as its nearest node says."""
    node = graph.node_of[marks.corners]
    arm = vertices[marks.corners] - vertices[graph.nodes[node]]
    entries = marks.weights[..., None] * np.concatenate([arm, np.ones((*arm.shape[:2], 1))], axis=2)
    columns = 4 * node[..., None] + np.arange(4)
    rows = np.broadcast_to(np.arange(len(node))[:, None, None], columns.shape)
    shape = (len(node), 4 * len(graph.nodes))
    return sp.csr_matrix((entries.ravel(), (rows.ravel(), columns.ravel())), shape=shape)


def _affine(
    displacement: Float[np.ndarray, "unknown 3"], vertices: Float[np.ndarray, "vertex 3"], graph: Graph
) -> Float[np.ndarray, "vertex 3"]:
    """Displacement of all vertices, each as its nearest node's affine map says: rough, for normals."""
    on = graph.node_of >= 0
    node = graph.node_of[on]
    maps = displacement.reshape(-1, 4, 3)[node]
    arm = vertices[on] - vertices[graph.nodes[node]]
    out = np.zeros_like(vertices)
    out[on] = np.einsum("vk,vkc->vc", arm, maps[:, :3]) + maps[:, 3]
    return out


def _factor(system: sp.spmatrix):
    """Factors of a positive definite matrix, its pattern's symmetry kept."""
    return splu(
        sp.csc_matrix(system), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )


def _solve(fixed, planes, gaps, pulled, start, factor) -> Float[np.ndarray, "unknown 3"]:
    """Conjugate gradients on the system that the planes couple in x, y and z, preconditioned by the separable one."""
    right = pulled.copy()
    right[3::4] += np.einsum("nab,nb->na", planes, gaps)

    def apply(x):
        out = fixed @ x
        out[3::4] += np.einsum("nab,nb->na", planes, x[3::4])
        return out

    x = start.copy()
    residual = right - apply(x)
    ahead = factor.solve(residual)
    direction, energy = ahead, float((residual * ahead).sum())
    # A round need not be solved better than its counterparts are known.
    enough = _SOLVED * np.linalg.norm(right)
    for _ in range(_SOLVER_STEPS):
        if np.linalg.norm(residual) <= enough:
            break
        image = apply(direction)
        step = energy / float((direction * image).sum())
        x += step * direction
        residual -= step * image
        ahead = factor.solve(residual)
        before, energy = energy, float((residual * ahead).sum())
        direction = ahead + energy / before * direction
    return x
