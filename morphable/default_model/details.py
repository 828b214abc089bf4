"""Eyeballs and eyelashes, reshaped so that they work on a subdivided mesh coloured at its vertices.

The reshaping is linear in the rows of a shape, so that it applies to the mean as to every mode and expression.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from morphable.default_model.surface import HeadTopology, boundary_loop, pieces

# Rings of eyeball vertices about the base mesh's gaze (degrees): where MakeHuman has them and where they go. Colour is
# given at vertices: the rims of pupil and iris are as sharp as the rings around them are close.
GAZE = np.array([0.0, 0.0, 1.0])
RINGS_FROM = np.array([11.25, 22.5, 45.0, 67.5, 90.0, 112.5, 135.0, 157.5])
RINGS_TO = np.array([7.5, 18.5, 25.0, 50.0, 82.0, 110.0, 135.0, 157.5])
LASH_LENGTH = 0.35  # share of MakeHuman's lashes that is kept: as opaque strips they look like thick eyeliner


def ball_arms(
    topology: HeadTopology,
    part: str,
    points: Float[np.ndarray, "row 3"],
    centre: Float[np.ndarray, "3"],
    gaze: Float[np.ndarray, "3"],
) -> tuple[Float[np.ndarray, "ball 3"], Float[np.ndarray, "ball 3"]]:
    """From an eyeball's centre to its rows (mm): the base mesh's, and those of a better ball of the same size.

    The better ball has its rings where the colours want them, looks along `gaze` and is round when subdivided.
    Subdivision pulls the coarse ball in by 1 to 9 %, most at its eight irregular vertices: the lids would stand off.
    """
    rows = topology.part_rows[part]
    old = points[rows] - centre
    radius = np.linalg.norm(old, axis=1)
    along = old @ GAZE / radius
    across = old / radius[:, None] - along[:, None] * GAZE
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    ring = np.abs(np.degrees(np.arccos(along))[:, None] - RINGS_FROM).argmin(axis=1)
    angle = np.radians(RINGS_TO[ring])
    turn = Rotation.align_vectors([gaze], [GAZE])[0]
    arms = radius.mean() * turn.apply(np.cos(angle)[:, None] * GAZE + np.sin(angle)[:, None] * across)

    stencil = topology.stencil[topology.subvertices_of(part)][:, rows].toarray()
    factor = np.ones(len(arms))
    for _ in range(5):
        outer = stencil @ (factor[:, None] * arms)
        normal = outer / np.linalg.norm(outer, axis=1, keepdims=True)
        slope = stencil * (normal @ arms.T)  # derivative of a subdivided radius by each factor
        even = 0.3 * radius.mean() * np.eye(len(factor))  # a weak pull towards equal factors
        wanted = np.r_[radius.mean() - (normal * outer).sum(axis=1), even @ (factor.mean() - factor)]
        factor = factor + np.linalg.lstsq(np.concatenate([slope, even]), wanted, rcond=None)[0]
    return old, factor[:, None] * arms


def round_balls(
    rows: Float[np.ndarray, "*shape ball 3"],
    centre: Float[np.ndarray, "*shape 3"],
    old_arms: Float[np.ndarray, "ball 3"],
    new_arms: Float[np.ndarray, "ball 3"],
) -> Float[np.ndarray, "*shape ball 3"]:
    """Eyeballs that keep the centre and size of the given rows and nothing else of their shape.

    MakeHuman's targets also squash and turn the balls. Linear in rows and centre together: it serves mean and modes.
    """
    size = ((rows - centre[..., None, :]) * old_arms).sum(axis=(-2, -1)) / (old_arms**2).sum()
    return centre[..., None, :] + size[..., None, None] * new_arms


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
