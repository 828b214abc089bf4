"""The jaw's 17 landmarks as sets of 3D landmarks have them: along the border of the lower jaw.

Detectors put the jaw's points on the outline of what they see, and seen from the front the outline of cheeks and the
mandible behind it are one line. Turned faces tell them apart, by up to 2 cm. 300W-LP and AFLW2000-3D (Zhu et al. 2016,
"Face alignment across large poses") have the mandible. The rule below is anatomy; its numbers were chosen with the
points of twelve photos of the latter in view, which fits lay on the mean head within 1 to 5 mm of these.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from morphable.default_model.landmarks import JAW_POINTS
from morphable.default_model.surface import area_normals
from morphable.registration.correspondence import surface_map

_EDGE_DEG = 45.0  # where cheek turns into neck: the normal's angle down from the side, seen from the front
_STEP_MM = 2.0
_BEHIND_CHIN_MM = (43.0, 7.0)  # where that edge is read off the normals: in front of the jaw's angle, behind the chin
_SIDE_MM = 10.0  # from how far outside the rounding of the jaw's angle is laid on the skin
_RIGHT = 1.0  # mm, x of the middle's vertices and those of the subject's right


def mandible_border(
    vertices: Float[np.ndarray, "subvertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    mirror: Int[np.ndarray, "subvertex"],
    chin: Float[np.ndarray, "3"],
    skin: Bool[np.ndarray, "subvertex"],
    ears: Bool[np.ndarray, "subvertex"],
) -> tuple[Int[np.ndarray, "17 3"], Float[np.ndarray, "17 3"]]:
    """Corners of triangles and weights of 17 points at even steps along the border, right ear to left.

    It runs along the front of the ear's root from its upper corner to its lower one at the lobe, around the jaw's angle
    and along the edge between cheek and neck to the chin.
    """
    right = triangles[(skin & (vertices[:, 0] < _RIGHT))[triangles].all(axis=1)]
    joining = right[ears[right].any(axis=1)]
    rim = vertices[np.unique(joining[~ears[joining]])]
    top, lobe = (rim[(rim[:, 2] + sign * rim[:, 1]).argmax()] for sign in (1, -1))
    edge = _cheek_edge(vertices, right[~ears[right].any(axis=1)], chin)

    # Around the jaw's angle, seen from the side, a parabola that leaves the one line and joins the other.
    down, back = (lobe - top)[1:], (edge[0] - edge[-1])[1:]
    corner = lobe[1:] + down * np.linalg.solve(np.stack([down, -back], axis=1), (edge[0] - lobe)[1:])[0]
    t = np.linspace(0, 1, 24)[:, None]
    turn = (1 - t) ** 2 * lobe[1:] + 2 * t * (1 - t) * corner + t**2 * edge[0, 1:]
    side = np.linspace(lobe[0], edge[0, 0], 24) - _SIDE_MM
    line = np.concatenate([top + t * (lobe - top), np.column_stack([side, turn])[1:-1], edge, chin[None]])
    line = surface_map(line, vertices, right)(vertices)
    along = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))]
    at = np.linspace(0.0, along[-1], JAW_POINTS // 2 + 1)
    found = surface_map(np.stack([np.interp(at, along, line[:, k]) for k in range(3)], axis=1), vertices, right)
    corners, weights = found.corners, found.weights
    # The mirrored triangle runs the other way round; swapping two corners turns it back.
    return (
        np.concatenate([corners, mirror[corners[-2::-1]][:, [0, 2, 1]]]),
        np.concatenate([weights, weights[-2::-1][:, [0, 2, 1]]]),
    )


def _cheek_edge(
    vertices: Float[np.ndarray, "subvertex 3"], triangles: Int[np.ndarray, "triangle 3"], chin: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "slice 3"]:
    """The edge between cheek and neck from the jaw's angle forward: a cubic through the places, slice by slice, where
    the cheek has first turned down far enough."""
    _, normals = area_normals(vertices, triangles)
    angle = np.degrees(np.arctan2(-normals[:, 1], -normals[:, 0]))
    edges = np.unique(np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)
    a, b = edges.T
    middle = 0.5 * chin[1]  # mm, height: the lower half of the face
    depths = np.arange(chin[2] - _BEHIND_CHIN_MM[0], chin[2] - _BEHIND_CHIN_MM[1] + 1e-6, _STEP_MM)
    found = []
    for depth in depths:
        crossing = (vertices[a, 2] - depth) * (vertices[b, 2] - depth) < 0
        i, j = a[crossing], b[crossing]
        share = ((depth - vertices[i, 2]) / (vertices[j, 2] - vertices[i, 2]))[:, None]
        cut = (1 - share) * vertices[i] + share * vertices[j]
        turned = ((1 - share[:, 0]) * angle[i] + share[:, 0] * angle[j] > _EDGE_DEG) & (cut[:, 1] < middle)
        found.append(cut[turned][cut[turned, 1].argmax()])
    found = np.array(found)
    x, y = (np.polyval(np.polyfit(depths, found[:, k], 3), depths) for k in (0, 1))
    return np.column_stack([x, y, depths])
