"""Eyeballs, eyelashes and teeth, reshaped so that they work on a subdivided mesh without textures.

Each function returns a matrix that maps the rows of one part to new rows and whose own rows sum to one. It therefore
applies to the mean as to every mode and expression.
"""

import numpy as np
from jaxtyping import Float, Int

from morphable.default_model.surface import HeadTopology, boundary_loop, pieces

# Rings of eyeball vertices about the gaze axis (degrees): where MakeHuman has them and where they go. Colour is given at
# vertices, so that the rims of pupil and iris are as sharp as the rings around them are close.
GAZE = np.array([0.0, 0.0, 1.0])
RINGS_FROM = np.array([11.25, 22.5, 45.0, 67.5, 90.0, 112.5, 135.0, 157.5])
RINGS_TO = np.array([7.5, 18.5, 25.0, 50.0, 82.0, 110.0, 135.0, 157.5])
LASH_LENGTH = 0.35  # share of MakeHuman's lashes that is kept: as opaque strips they look like thick eyeliner


def ball_matrix(
    topology: HeadTopology, part: str, points: Float[np.ndarray, "row 3"], centre: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "ball ball"]:
    """An eyeball as the affine image of a better ball: vertices in closer rings, and truly round when subdivided.

    Subdivision pulls the coarse ball in by 1 to 9 %, most at its eight irregular vertices, and the lids would stand off.
    """
    rows = topology.part_rows[part]
    old = points[rows]
    arms = old - centre
    radius = np.linalg.norm(arms, axis=1)
    along = arms @ GAZE / radius
    across = arms / radius[:, None] - along[:, None] * GAZE
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    ring = np.abs(np.degrees(np.arccos(along))[:, None] - RINGS_FROM).argmin(axis=1)
    angle = np.radians(RINGS_TO[ring])
    arms = radius.mean() * (np.cos(angle)[:, None] * GAZE + np.sin(angle)[:, None] * across)

    stencil = topology.stencil[topology.subvertices_of(part)][:, rows].toarray()
    factor = np.ones(len(arms))
    for _ in range(5):
        outer = stencil @ (factor[:, None] * arms)
        normal = outer / np.linalg.norm(outer, axis=1, keepdims=True)
        slope = stencil * (normal @ arms.T)  # derivative of a subdivided radius by each factor
        even = 0.3 * radius.mean() * np.eye(len(factor))  # a weak pull towards equal factors
        wanted = np.r_[radius.mean() - (normal * outer).sum(axis=1), even @ (factor.mean() - factor)]
        factor = factor + np.linalg.lstsq(np.concatenate([slope, even]), wanted, rcond=None)[0]

    def homogeneous(x):
        return np.c_[x, np.ones(len(x))]

    return homogeneous(centre + factor[:, None] * arms) @ np.linalg.pinv(homogeneous(old))


def lash_grid(
    quads: Int[np.ndarray, "quad 4"], points: Float[np.ndarray, "vertex 3"], eye_centre: Float[np.ndarray, "3"]
) -> Int[np.ndarray, "across along"]:
    """The vertices of one strip of lashes as a grid, roots (nearer to the eye's centre) first."""
    valence = np.bincount(quads.ravel())
    rim = boundary_loop(quads)
    corners = np.flatnonzero(valence[rim] == 1)
    rim = np.roll(rim, -corners[0])
    corners = [*(corners - corners[0]), len(rim)]
    sides = [np.take(rim, np.arange(a, b + 1), mode="wrap") for a, b in zip(corners[:-1], corners[1:], strict=True)]
    if len(sides) != 4:
        raise ValueError(f"lashes: expected a strip with 4 corners, got {len(sides)}")
    long = sorted(sides, key=len)[2:]
    root = min(long, key=lambda side: np.linalg.norm(points[side] - eye_centre, axis=1).mean())
    grid = [root]
    quad_sets = [set(quad) for quad in quads.tolist()]
    used: set[int] = set()
    while len(used) < len(quads):
        row, upper = grid[-1].tolist(), {}
        for a, b in zip(row[:-1], row[1:], strict=True):
            (k,) = [i for i, quad in enumerate(quad_sets) if {a, b} <= quad and i not in used]
            used.add(k)
            cycle = quads[k].tolist()
            for end, other in ((a, b), (b, a)):
                at = cycle.index(end)
                (upper[end],) = {cycle[at - 1], cycle[(at + 1) % 4]} - {other}
        grid.append(np.array([upper[vertex] for vertex in row]))
    return np.array(grid)


def lash_grids(
    quads: Int[np.ndarray, "quad 4"], points: Float[np.ndarray, "lash 3"], eye_centre: Float[np.ndarray, "3"]
) -> list[Int[np.ndarray, "across along"]]:
    """The strips (upper and lower lashes) of one eye as grids of its lash vertices."""
    piece = pieces(quads, len(points))
    grids = []
    for k in range(piece.max() + 1):
        own = np.flatnonzero(piece == k)
        index = np.full(len(points), -1)
        index[own] = np.arange(len(own))
        grids.append(own[lash_grid(index[quads[piece[quads[:, 0]] == k]], points[own], eye_centre)])
    return grids


def lash_matrix(grids: list[Int[np.ndarray, "across along"]], count: int) -> Float[np.ndarray, "lash lash"]:
    """Lashes shortened towards their roots."""
    out = np.eye(count)
    for grid in grids:
        for row in grid[1:]:
            out[row] = 0.0
            out[row, row] = LASH_LENGTH
            out[row, grid[0]] = 1 - LASH_LENGTH
    return out


def lash_tips(grids: list[Int[np.ndarray, "across along"]], count: int) -> Float[np.ndarray, "lash"]:
    """From 0 at the roots to 1 at the tips."""
    out = np.zeros(count)
    for grid in grids:
        out[grid] = np.linspace(0, 1, len(grid))[:, None]
    return out
