"""Where another model's vertices lie on a registered head: part by part, and on the right one of two lips."""

import numpy as np
from jaxtyping import Bool, Float, Int

from morphable.model import MorphableModel
from morphable.registration.correspondence import SurfaceMap
from morphable.registration.oriented_map import oriented_map, unit_normals

REACH_MM = 12.0  # a vertex farther than this from the registered head has no counterpart on it
_OPENINGS = ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight")  # units that part what lies in one place
_TORN_MM = 6.0  # between neighbours under one of them
_CONSISTENT_ROUNDS, _CANDIDATES = 6, 24
_NOT_SKIN = ("eye_left", "eye_right", "teeth_upper", "teeth_lower", "tongue", "lashes_left", "lashes_right")


def map_parts(
    mean: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    parts: Int[np.ndarray, " vertex"],
    part_names: tuple[str, ...],
    laid: Float[np.ndarray, "headvertex 3"],
    head: MorphableModel,
) -> SurfaceMap:
    """Each vertex's place on a registered head: skin on skin, and other parts on the part of the same name.

    The distance is infinite at vertices without triangles.
    """
    of_head = np.asarray(head.triangles)
    ids = {name: head.part(name).triangles for name in head.part_names}
    normals = unit_normals(mean, triangles)
    used = np.zeros(len(mean), bool)
    used[triangles] = True
    triangle, corners = np.zeros(len(mean), int), np.zeros((len(mean), 3), int)
    weights, distance = np.zeros((len(mean), 3)), np.full(len(mean), np.inf)
    for k, name in enumerate(part_names):
        own = parts == k
        if not own.any():
            continue
        on = ids.get(name, np.arange(len(of_head)))
        if name == "skin":
            # A face without eyeballs may have eyes in its skin: what they look like is known on the head's eyeballs.
            eyes = [ids[eye] for eye in ("eye_left", "eye_right") if eye in ids and eye not in part_names]
            on = np.concatenate([on, *eyes])
        points = mean[own]
        surface = laid
        if name in ids and name in _NOT_SKIN:
            surface = _fitted_part(laid, of_head[on], mean[own & used] if (own & used).any() else points)
        found = oriented_map(points, normals[own], surface, of_head[on])
        if name == "skin":
            found = _consistent(found, points, triangles, own, surface, of_head[on], head)
        triangle[own], corners[own] = on[found.triangle], found.corners
        weights[own], distance[own] = found.weights, found.distance
    distance[~used] = np.inf
    return SurfaceMap(triangle, corners, weights, distance)


def _consistent(
    found: SurfaceMap,
    points: Float[np.ndarray, "point 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    own: Bool[np.ndarray, " vertex"],
    surface: Float[np.ndarray, "headvertex 3"],
    on: Int[np.ndarray, "headtriangle 3"],
    head: MorphableModel,
) -> SurfaceMap:
    """The map with every vertex on the same side of mouth and eyes as its neighbours.

    Where lips meet, their rims lie in one place and face one way; only what hangs on a vertex tells which lip it is of.
    A vertex that the head's opening units take elsewhere than the median of its neighbours is mapped again, to where
    they agree with those.
    """
    openings = [k for k, name in enumerate(head.expression_names) if name in _OPENINGS]
    if not openings:
        return found
    moves = np.asarray(head.expression, float)[..., openings].reshape(len(surface), -1)
    number = np.full(len(own), -1)
    number[own] = np.arange(int(own.sum()))
    inner = number[triangles[own[triangles].all(axis=1)]]
    pairs = np.concatenate([inner[:, [0, 1]], inner[:, [1, 2]], inner[:, [2, 0]]])
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    first = np.searchsorted(pairs[:, 0], np.arange(len(points) + 1))
    triangle, corners, weights, distance = (np.array(field) for field in found)
    middles, of_triangle = surface[on].mean(axis=1), moves[on].mean(axis=1)
    for _ in range(_CONSISTENT_ROUNDS):
        at = np.einsum("pk,pkm->pm", weights, moves[corners])
        apart = np.abs(at[pairs[:, 0]] - at[pairs[:, 1]]).max(axis=1) > _TORN_MM
        changed = False
        for vertex in np.unique(pairs[apart, 0]):
            around = pairs[first[vertex] : first[vertex + 1], 1]
            wanted = np.median(at[around], axis=0)
            if np.abs(at[vertex] - wanted).max() <= _TORN_MM:
                continue
            alike = np.flatnonzero(np.abs(of_triangle - wanted).max(axis=1) < _TORN_MM)
            if not len(alike):
                continue
            near = alike[np.argsort(np.linalg.norm(middles[alike] - points[vertex], axis=1))[:_CANDIDATES]]
            again = oriented_map(points[vertex][None], np.zeros((1, 3)), surface, on[near])
            if again.distance[0] < REACH_MM:
                triangle[vertex], corners[vertex] = near[again.triangle[0]], again.corners[0]
                weights[vertex], distance[vertex], changed = again.weights[0], again.distance[0], True
        if not changed:
            break
    return SurfaceMap(triangle, corners, weights, distance)


def _fitted_part(laid, on: Int[np.ndarray, "triangle 3"], target: Float[np.ndarray, "point 3"]):
    """The laid head with one rigid part moved and scaled onto the other model's: an eyeball on an eyeball."""
    own = np.unique(on)
    size = lambda x: np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean())  # noqa: E731
    source = laid[own]
    moved = np.array(laid)
    factor = size(target) / max(size(source), 1e-9)
    moved[own] = (source - source.mean(axis=0)) * factor + target.mean(axis=0)
    return moved
