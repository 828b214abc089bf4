"""Texture coordinates: the skin as one seamless chart with most of its area on the face, other parts in the corners.

The skin is a disc whose rim is the collar. Tutte's embedding (1963: rim on a convex curve, every vertex a positive
average of its neighbours) gives a chart without flips; minimising the symmetric Dirichlet energy against the wanted
size of each quad by scalable locally injective mappings (Rabinovich et al. 2017) then removes most of its distortion
without ever flipping a triangle.
"""

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from jaxtyping import Float, Int

from morphable.default_model.surface import HeadTopology, boundary_loop, pieces
from morphable.mesh import catmull_clark, triangulate

SUPERELLIPSE = 3.0  # |x|^p + |y|^p = 1: leaves the corners of the square free
POLISH_STEPS = 40
# Centre (u, v) and radius of each small chart; the corners hold the largest circles the superellipse leaves free.
_CORNER, _BESIDE = 0.058, 0.030
_CHARTS = {
    "eye_right": ((_CORNER, _CORNER, _CORNER - 0.004),),
    "eye_left": ((1 - _CORNER, _CORNER, _CORNER - 0.004),),
    "teeth_upper": ((_CORNER, 1 - _CORNER, _CORNER - 0.004),),
    "teeth_lower": ((1 - _CORNER, 1 - _CORNER, _CORNER - 0.004),),
    "tongue": ((2 * _CORNER + _BESIDE, 1 - _BESIDE, _BESIDE - 0.004),),
    "lashes_right": (
        (_BESIDE, 2 * _CORNER + _BESIDE, _BESIDE - 0.004),
        (2 * _CORNER + _BESIDE, _BESIDE, _BESIDE - 0.004),
    ),
    "lashes_left": (
        (1 - _BESIDE, 2 * _CORNER + _BESIDE, _BESIDE - 0.004),
        (1 - 2 * _CORNER - _BESIDE, _BESIDE, _BESIDE - 0.004),
    ),
}


def corner_triangles(quads: Int[np.ndarray, "quad 4"]) -> Int[np.ndarray, "triangle 3"]:
    """All four triangles of three successive corners: unflipped together they make a quad convex."""
    return np.concatenate([quads[:, [(i - 1) % 4, i, (i + 1) % 4]] for i in range(4)])


def signed_areas(
    uv: Float[np.ndarray, "vertex 2"], triangles: Int[np.ndarray, "triangle 3"]
) -> Float[np.ndarray, "triangle"]:
    a, b, c = (uv[triangles[:, k]] for k in range(3))
    return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2


def rim_on_superellipse(
    vertices: Float[np.ndarray, "rim 3"], exponent: float = SUPERELLIPSE, start_angle: float = -np.pi / 2
) -> Float[np.ndarray, "rim 2"]:
    """A closed rim laid counter-clockwise on a superellipse around the origin, evenly by length."""
    length = np.linalg.norm(np.roll(vertices, -1, axis=0) - vertices, axis=1)
    angle = start_angle + 2 * np.pi * np.r_[0, np.cumsum(length)[:-1]] / length.sum()
    xy = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return xy / (np.abs(xy) ** exponent).sum(axis=1, keepdims=True) ** (1 / exponent)


def tutte(
    count: int,
    triangles: Int[np.ndarray, "triangle 3"],
    rim: Int[np.ndarray, "rim"],
    rim_xy: Float[np.ndarray, "rim 2"],
    lengths: Float[np.ndarray, "vertex 3"],
) -> Float[np.ndarray, "vertex 2"]:
    """Tutte's embedding with weights 1 / edge length in 3D."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    w = 1 / (0.1 + np.linalg.norm(lengths[edges[:, 0]] - lengths[edges[:, 1]], axis=1))
    pairs = np.concatenate([edges, edges[:, ::-1]])
    weights = sp.csr_matrix((np.r_[w, w], (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    laplacian = sp.csr_matrix(sp.diags(np.asarray(weights.sum(axis=1)).ravel()) - weights)
    free = np.setdiff1d(np.arange(count), rim)
    uv = np.zeros((count, 2))
    uv[rim] = rim_xy
    uv[free] = np.asarray(sla.spsolve(laplacian[free][:, free].tocsc(), -(laplacian[free][:, rim] @ rim_xy)))
    return uv


def polish(
    uv: Float[np.ndarray, "vertex 2"],
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    size: Float[np.ndarray, "triangle"],
    importance: Float[np.ndarray, "triangle"],
    fixed: Int[np.ndarray, "rim"],
    stencil: sp.csr_matrix | None = None,
    steps: int = POLISH_STEPS,
) -> Float[np.ndarray, "control 2"]:
    """Less distortion, no flips: SLIM steps on the symmetric Dirichlet energy |J|^2 + |J^-1|^2.

    J maps each triangle's own plane, enlarged so that its area is `size` of its true area (up to a common factor that
    fits the whole chart), to the chart. Fixed coordinates stay. With a stencil, the triangles are those of the
    subdivided surface and the coordinates those of its control points.
    """
    count = len(uv)
    to_vertices = sp.csr_matrix(sp.identity(count)) if stencil is None else stencil
    area = signed_areas(to_vertices @ uv, triangles)
    if (area <= 0).any():
        raise ValueError(
            f"chart polish: expected an embedding without flips, got {(area <= 0).sum()} flipped triangles"
        )
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    ab, ac = b - a, c - a
    x1 = np.linalg.norm(ab, axis=1)
    x2 = (ab * ac).sum(axis=1) / x1
    y2 = np.linalg.norm(np.cross(ab, ac), axis=1) / x1
    share = size * x1 * y2 / 2
    factor = np.sqrt(size * area.sum() / share.sum())
    x1, x2, y2 = factor * x1, factor * x2, factor * y2
    # Derivatives along the plane's axes: d/dx = (f_b - f_a) / x1, d/dy = (f_c - f_a - x2 d/dx) / y2.
    rows = np.arange(len(triangles))
    entries_x = (-1 / x1, 1 / x1, np.zeros(len(rows)))
    entries_y = ((x2 / x1 - 1) / y2, -x2 / (x1 * y2), 1 / y2)
    dx, dy = (
        sp.csr_matrix(
            (np.concatenate(entries), (np.tile(rows, 3), triangles.T.ravel())), shape=(len(rows), len(vertices))
        )
        @ to_vertices
        for entries in (entries_x, entries_y)
    )
    weight = importance * x1 * y2 / 2
    free = np.setdiff1d(np.arange(count), fixed)
    columns = np.r_[free, free + count]

    def jacobians(p):
        return np.stack([dx @ p, dy @ p], axis=2)  # [triangle, chart axis, plane axis]

    def energy(p):
        j = jacobians(p)
        det = j[:, 0, 0] * j[:, 1, 1] - j[:, 0, 1] * j[:, 1, 0]
        norm = (j**2).sum(axis=(1, 2))
        return np.inf if (det <= 0).any() else float(weight @ (norm * (1 + 1 / det**2)))

    value = energy(uv)
    for _ in range(steps):
        u, s, vt = np.linalg.svd(jacobians(uv))
        # Weights that give |W (J - R)|^2 the gradient of the energy (Rabinovich et al. 2017, eq. 28): the square root
        # of (s - s^-3) / (s - 1), written without its removable singularity.
        stretch = np.sqrt((s + 1) * (s**2 + 1) / s**3)
        w = u @ (stretch[:, :, None] * np.swapaxes(u, 1, 2))
        target = w @ (u @ vt)
        blocks, right = [], []
        for i in range(2):
            for j, d in enumerate((dx, dy)):
                scale = np.sqrt(weight)[:, None] * w[:, i]
                blocks.append(sp.hstack([sp.diags(scale[:, 0]) @ d, sp.diags(scale[:, 1]) @ d]))
                right.append(np.sqrt(weight) * target[:, i, j])
        system = sp.csr_matrix(sp.vstack(blocks))
        flat = uv.T.ravel()
        residual = np.concatenate(right) - system @ flat
        own = sp.csr_matrix(system[:, columns])
        normal = (own.T @ own + 1e-9 * sp.eye(len(columns))).tocsc()
        move = np.zeros(2 * count)
        move[columns] = np.asarray(sla.spsolve(normal, own.T @ residual))
        direction = move.reshape(2, count).T
        step = min(1.0, 0.8 * _largest_step(to_vertices @ uv, to_vertices @ direction, triangles))
        while step > 1e-8 and energy(uv + step * direction) >= value:
            step /= 2
        if step <= 1e-8:
            break
        uv = uv + step * direction
        previous, value = value, energy(uv)
        if previous - value < 1e-5 * value:
            break
    return uv


def _largest_step(uv, direction, triangles) -> float:
    """The first step along a direction at which a triangle loses its area (a quadratic in the step)."""
    a, b, c = (uv[triangles[:, k]] for k in range(3))
    da, db, dc = (direction[triangles[:, k]] for k in range(3))
    e, f, de, df = b - a, c - a, db - da, dc - da

    def cross(p, q):
        return p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]

    c2, c1, c0 = cross(de, df), cross(e, df) + cross(de, f), cross(e, f)
    root = c1**2 - 4 * c2 * c0
    square = np.sqrt(np.maximum(root, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # The stable form of the quadratic's roots also covers the linear case c2 = 0.
        t1 = 2 * c0 / (-c1 + square)
        t2 = 2 * c0 / (-c1 - square)
    t = np.concatenate([t1, t2])
    t = t[np.isfinite(t) & (t > 0) & np.tile(root >= 0, 2)]
    return float(t.min()) if len(t) else np.inf


def wanted_size(
    skin: Float[np.ndarray, "skin 3"],
    landmarks: Float[np.ndarray, "68 3"],
    textures: dict[str, Float[np.ndarray, "skin"]],
    openness: Float[np.ndarray, "skin"],
) -> tuple[Float[np.ndarray, "skin"], Float[np.ndarray, "skin"]]:
    """Area in the chart for each area of skin, relative to the face, and how much its distortion matters."""
    middle = np.array([0.0, landmarks[33, 1] + 12, landmarks[30, 2] - 30])
    distance = np.linalg.norm((skin - middle) / [1, 1.25, 1.1], axis=1)
    face = 1 / (1 + np.exp((distance - 75) / 8))
    size = 0.16 + 0.84 * face
    size += 1.6 * np.maximum(textures["lips"], textures["eyelids"]) * (openness > 0.2)
    size = np.where(textures["ears"] > 0.3, 0.35, size)
    size = np.where(openness < 0.06, 0.08, size)
    return size, np.where(openness < 0.06, 0.05, 0.05 + 0.95 * face)


def flatten_skin(
    vertices: Float[np.ndarray, "skin 3"],
    quads: Int[np.ndarray, "quad 4"],
    mirror: Int[np.ndarray, "skin"],
    size: Float[np.ndarray, "skin"],
    importance: Float[np.ndarray, "skin"],
) -> Float[np.ndarray, "skin 2"]:
    """The skin on the unit superellipse, front of the collar at the bottom, subject's left to the right (y up).

    Distortion is measured on the quads and on the subdivided surface together, so that neither has flips.
    """
    rim = boundary_loop(quads)
    # Start at the rim's frontmost vertex on the midline so that the chart is mirror-symmetric.
    start = int(np.argmax(vertices[rim, 2] - 10 * np.abs(vertices[rim, 0])))
    rim = np.roll(rim, -start)
    rim_xy = rim_on_superellipse(vertices[rim])
    if rim_xy[1, 0] * vertices[rim[1], 0] < 0:
        raise ValueError("skin chart: the collar runs clockwise; expected quads counter-clockwise seen from outside")
    coarse = corner_triangles(quads)
    uv = tutte(len(vertices), coarse, rim, rim_xy, vertices)
    stencil, subquads = catmull_clark(quads, len(vertices))
    triangles = np.concatenate([coarse, triangulate(subquads) + len(vertices)])
    stencil = sp.csr_matrix(sp.vstack([sp.identity(len(vertices)), stencil]))
    size, importance = ((stencil @ values)[triangles].mean(axis=1) for values in (size, importance))
    uv = polish(uv, stencil @ vertices, triangles, size, importance, rim, stencil)
    return (uv + uv[mirror] * [-1, 1]) / 2


def flatten_ball(vertices: Float[np.ndarray, "ball 3"], centre: Float[np.ndarray, "3"]) -> Float[np.ndarray, "ball 2"]:
    """An eyeball on the unit disc, the pupil in its middle, the rear opening on its rim (y up)."""
    d = (vertices - centre) / np.linalg.norm(vertices - centre, axis=1, keepdims=True)
    angle, around = np.arccos(np.clip(d[:, 2], -1, 1)), np.arctan2(d[:, 1], d[:, 0])
    return (angle / angle.max())[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)


def flatten_disc(
    vertices: Float[np.ndarray, "vertex 3"], quads: Int[np.ndarray, "quad 4"]
) -> Float[np.ndarray, "vertex 2"]:
    """Any other disc of quads on the unit disc (y up)."""
    triangles = corner_triangles(quads)
    rim = boundary_loop(quads)
    rim_xy = rim_on_superellipse(vertices[rim], exponent=2.0)
    uv = tutte(len(vertices), triangles, rim, rim_xy, vertices)
    even = np.ones(len(triangles))
    return polish(uv, vertices, triangles, even, even, rim)


def unwrap(
    topology: HeadTopology,
    vertices: Float[np.ndarray, "row 3"],
    eye_centre: Float[np.ndarray, "3"],
    size: Float[np.ndarray, "skin"],
    importance: Float[np.ndarray, "skin"],
) -> Float[np.ndarray, "row 2"]:
    """Texture coordinates of all rows (u right, v down). `eye_centre` is the left eye's."""
    skin = topology.part_rows["skin"]
    uv = np.zeros((topology.rows, 2))
    xy = flatten_skin(vertices[skin], topology.quads_of("skin"), topology.mirror[skin], size, importance)
    uv[skin] = 0.5 + 0.5 * xy * [1, -1]
    for part, charts in _CHARTS.items():
        if part.endswith("_right"):
            continue
        rows = topology.part_rows[part]
        local = topology.quads_of(part) - rows.start
        piece = pieces(local, rows.stop - rows.start)
        for k, (u, v, radius) in enumerate(charts):
            own = np.flatnonzero(piece == k)
            points = vertices[rows][own]
            if part == "eye_left":
                xy = flatten_ball(points, eye_centre)
            else:
                index = np.full(len(piece), -1)
                index[own] = np.arange(len(own))
                xy = flatten_disc(points, index[local[(piece[local] == k).all(axis=1)]])
            uv[rows.start + own] = [u, v] + radius * xy * [1, -1]
        if part.endswith("_left"):
            twin = topology.mirror[rows]
            uv[twin] = uv[rows] * [-1, 1] + [1, 0]
    return uv


def check(topology: HeadTopology, uv: Float[np.ndarray, "row 2"]) -> None:
    """Raises unless every triangle of the quads and of the subdivided quads keeps its side, all in the unit square."""
    fine = topology.stencil @ uv
    for level, coordinates, quads in (("coarse", uv, topology.quads), ("subdivided", fine, topology.subquads)):
        flipped = int((signed_areas(coordinates * [1, -1], triangulate(quads)) <= 0).sum())
        if flipped or coordinates.min() < 0 or coordinates.max() > 1:
            raise ValueError(
                f"texture coordinates: {flipped} flipped {level} triangles, expected 0 within the unit square"
            )
