"""Hundreds of named points of a head: what a landmark network sees, and what a fit can be held to.

The first 68 are iBUG's, as the model defines them; the rest are vertices spread evenly over face, ears, neck and skull,
in mirrored pairs, densest in the face. Unlike a detector's jaw points all of them are fixed points of the surface, so a
hidden one has a place in the picture, too.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from morphable.landmarks import MIRROR_68, SurfacePoints
from morphable.model import MorphableModel, once_for_each_model

COUNT = 320
# How far apart points lie, relative to the face's: of ears, neck and skull.
_FACE, _EARS, _NECK, _SKULL = 1.0, 1.2, 2.6, 2.6


class DenseLandmarks(eqx.Module):
    """Fixed points of a head's surface, the 68 of iBUG first."""

    surface: SurfacePoints
    mirror: Int[Array, " point"]  # the point on the other side

    @property
    def count(self) -> int:
        """Number of points."""
        return self.mirror.shape[0]


@once_for_each_model
def dense_landmarks(model: MorphableModel, count: int = COUNT) -> DenseLandmarks:
    """The points of a model, the same ones every time; fewer than `count` where it has not as many vertices.

    Raises ValueError where `count` is less than the 68 named ones.
    """
    if count < 68:
        raise ValueError(f"dense_landmarks: got count {count}, expected at least 68, which are iBUG's.")
    mean = np.asarray(model.mean, float)
    named = np.asarray(model.landmarks(model.mean), float)
    mirror = np.asarray(model.mirror)
    spacing, allowed = _spacing(model)
    first = int(np.max(np.asarray(model.proxy_triangles))) + 1  # vertices that coarser heads have, too
    allowed[first:] = False
    allowed &= mirror < first
    eyes = _eye_points(model, allowed)[: (count - 68) // 2 * 2]
    middle = np.abs(mean[:, 0]) < 0.5
    candidates = np.flatnonzero(allowed & ((mean[:, 0] >= 0.5) | middle) & (spacing > 0))
    # Farthest point next: distances to the points so far, counted in the local spacing.
    distance = np.full(len(candidates), np.inf)
    taken = np.concatenate([named, named * [-1, 1, 1], mean[eyes]])
    for point in taken:
        distance = np.minimum(distance, np.linalg.norm(mean[candidates] - point, axis=1))
    chosen: list[int] = list(eyes)
    alone = middle | (mirror == np.arange(len(mean)))
    while len(chosen) < count - 68:
        left = distance / spacing[candidates]
        if len(chosen) == count - 69:  # one place is left: half a pair would have no mirror image
            left = np.where(alone[candidates], left, 0.0)
        if not np.any(left > 0):
            break
        vertex = int(candidates[np.argmax(left)])
        pair = [vertex] if alone[vertex] else [vertex, int(mirror[vertex])]
        chosen += pair
        for v in pair:
            distance = np.minimum(distance, np.linalg.norm(mean[candidates] - mean[v], axis=1))
    place = {v: 68 + k for k, v in enumerate(chosen)}
    other = np.concatenate([MIRROR_68, [place.get(int(mirror[v]), place[v]) for v in chosen]])
    rows = np.repeat(np.asarray(chosen, np.int32)[:, None], 3, axis=1)
    weights = np.tile(np.array([[1.0, 0.0, 0.0]], np.float32), (len(chosen), 1))
    surface = SurfacePoints(
        jnp.concatenate([model.landmarks.vertices, jnp.asarray(rows)]),
        jnp.concatenate([model.landmarks.weights, jnp.asarray(weights)]),
    )
    return DenseLandmarks(surface, jnp.asarray(other, jnp.int32))


def _spacing(model: MorphableModel) -> tuple[Float[np.ndarray, " vertex"], Bool[np.ndarray, " vertex"]]:
    """Relative distance between points at each vertex, and where points may lie."""
    count = len(np.asarray(model.mean))
    none = np.zeros(count)
    face, ears, inside = (np.asarray(model.masks.get(k, none), float) for k in ("face", "ears", "interior"))
    mean = np.asarray(model.mean, float)
    chin = float(np.asarray(model.landmarks(model.mean))[8, 1])
    spacing = np.full(count, _SKULL)
    spacing[mean[:, 1] < chin] = _NECK
    spacing[ears > 0.5] = _EARS
    spacing[face > 0.5] = _FACE
    skin = np.ones(count, bool)
    if "skin" in model.part_names:
        skin = np.asarray(model.part_of_vertex) == model.part_names.index("skin")
    return spacing, skin & (inside < 0.5)


def _eye_points(model: MorphableModel, allowed: Bool[np.ndarray, " vertex"]) -> list[int]:
    """For each eyeball the middle of its iris and four points of its border."""
    found: list[int] = []
    names = [n for n in ("eye_left", "eye_right") if n in model.part_names]
    iris = model.masks.get("iris")
    if len(names) < 2 or iris is None:
        return found
    mean = np.asarray(model.mean, float)
    first = int(np.max(np.asarray(model.proxy_triangles))) + 1
    mirror = np.asarray(model.mirror)
    vertices = np.flatnonzero(np.asarray(model.part_of_vertex)[:first] == model.part_names.index("eye_left"))
    centre = mean[vertices].mean(axis=0)
    front = vertices[np.argmax(mean[vertices, 2])]
    rim = vertices[np.asarray(iris)[vertices] > 0.5]
    offset = mean[rim] - [centre[0], centre[1], 0]
    radius = np.hypot(offset[:, 0], offset[:, 1])
    outer = rim[radius > 0.8 * radius.max()]
    for towards in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        best = outer[np.argmax((mean[outer, :2] - centre[:2]) @ towards)]
        found += [int(best), int(mirror[best])]
    return [int(front), int(mirror[front]), *found]
