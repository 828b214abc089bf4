"""iBUG-68 on the face that all small files hold: vertices by row and column of its grid."""

import numpy as np

from published.bfm import SIDE

_COLUMNS = np.linspace(0, SIDE - 1, 17).round().astype(int)
_ROWS = (SIDE - 1 - (np.abs(np.arange(17) - 8) / 8 * (SIDE // 2))).round().astype(int)
_INNER = """
    3,2 3,3 3,4 3,4 3,5  3,7 3,8 3,8 3,9 3,10  4,6 5,6 5,6 6,6  7,4 7,5 7,6 7,7 7,8
    4,3 4,4 4,4 4,5 5,4 5,4  4,7 4,8 4,8 4,9 5,8 5,8
    9,4 8,5 8,5 8,6 8,7 8,7 9,8 10,7 10,7 10,6 10,5 10,5  9,4 9,5 9,6 9,7 9,8 9,7 9,6 9,5
""".split()
_PLACES = [*zip(_ROWS, _COLUMNS, strict=True), *(tuple(map(int, p.split(","))) for p in _INNER)]
IBUG = np.array([row * SIDE + column for row, column in _PLACES])
EYE_CORNERS_MM = 70 * 2 * np.sin(1.35 / 2)  # between the outer ones, whose columns are 3 and 9


def seam() -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates, v up, and triangles of them: the face's left half has coordinates of its own."""
    from published.bfm import face

    u, v = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(1, 0, SIDE))
    whole = np.stack([0.8 * u.ravel(), v.ravel()], axis=1)
    _, triangles = face()
    column = (triangles % SIDE).min(axis=1)
    return np.concatenate([whole, whole + [0.2, 0.0]]), np.where(
        (column >= SIDE // 2)[:, None], triangles + len(whole), triangles
    )
