"""Where a brow's or a nose ridge's points lie is convention, and whoever places points by another one is wrong for the
whole feature at once. The model's own table follows dlib on photographs. Points from elsewhere lie up to 5 mm off it,
in groups: taken as independent errors of 2 mm they make faces worse than the mean face (docs/accuracy.md).
"""

import numpy as np
from jaxtyping import Float

from morphable.landmarks import INNER, MIRROR_68

# Where the annotation of another published head lies relative to the default model's table, in mm along head axes x, y,
# z, for one point of each mirrored pair: ICT-FaceKit Light's landmark vertices (MIT, (c) 2020 USC Institute for
# Creative Technologies) on the default model registered to its mean (benchmarks/landmark_conventions.py).
_PUBLISHED_MM = {
    17: (0.6, 1.7, 2.7),
    18: (-1.0, -1.9, 0.1),
    19: (-2.0, -3.6, -0.2),
    20: (-1.4, -3.7, 0.7),
    21: (-0.9, -2.3, 0.6),
    27: (0.0, -5.2, 0.7),
    28: (0.0, -3.1, 2.8),
    29: (0.0, -1.4, 0.2),
    30: (0.0, 0.7, -0.6),
    31: (1.1, -4.4, -2.3),
    32: (0.3, -3.4, 0.2),
    33: (0.0, -2.2, -1.0),
    36: (-0.6, -1.3, -1.9),
    37: (-2.6, -2.4, -2.4),
    38: (-0.2, -0.7, -0.7),
    39: (0.2, -1.3, -0.1),
    40: (0.6, -0.1, 0.2),
    41: (-2.8, 0.7, -2.2),
    48: (0.9, 0.1, -0.2),
    49: (0.4, -0.6, 0.4),
    50: (0.9, 0.6, 0.3),
    51: (0.0, 1.6, -0.4),
    55: (2.4, 1.5, -1.6),
    56: (2.8, 1.7, -0.1),
    57: (0.0, 2.5, 1.7),
    60: (1.0, 0.6, 0.9),
    61: (-2.1, 0.1, 1.1),
    62: (0.0, 0.2, 1.2),
    65: (3.3, 0.0, -2.3),
    66: (0.0, -0.1, -1.5),
}


def shared_errors(points: Float[np.ndarray, "51 3"]) -> Float[np.ndarray, "mode 51 3"]:
    """Displacements that annotated points of one face share, one standard deviation each, in mm in head space.

    `points` are the model's inner landmarks. The first leads to the published convention; the rest move one
    feature as a whole: brows, nose ridge along itself, nostrils, eyes, mouth and lips, up and down or apart.
    """
    points = points - points[13] * [1.0, 0.0, 0.0]  # x from the tip of the nose, point 30
    side = np.sign(np.round(points[:, 0]))[:, None] * [1.0, 0.0, 0.0]
    up = np.array([0.0, 1.0, 0.0])
    feature = lambda first, last: (np.arange(17, 68) >= first) & (np.arange(17, 68) <= last)  # noqa: E731
    brows, ridge, nostrils, eyes, mouth = (feature(*r) for r in ((17, 26), (27, 30), (31, 35), (36, 47), (48, 67)))
    up_ridge = points - points[13]
    wide = points * [1.0, 0.0, 0.0]
    modes = [
        (brows, 2.25 * up),
        (brows, 1.5 * side),
        (ridge, 2.25 * up_ridge / np.linalg.norm(up_ridge[10])),
        (nostrils, 1.5 * up),
        (eyes, 0.75 * up),
        (eyes, 0.75 * side),
        (mouth, 1.0 * up),
        (mouth, 1.0 * wide / np.abs(wide[mouth]).max()),
        (feature(49, 53), 0.75 * up),
        (feature(55, 59), 1.5 * up),
    ]
    return np.stack([_published(), *(np.where(at[:, None], move, 0.0) for at, move in modes)])


def _published() -> Float[np.ndarray, "51 3"]:
    offset = np.zeros((68, 3))
    for point, row in _PUBLISHED_MM.items():
        offset[point] = row
        offset[MIRROR_68[point]] = np.array(row) * ([0, 1, 1] if MIRROR_68[point] == point else [-1, 1, 1])
    return offset[INNER]
