"""What all portraits of one head model share: a coarser head, its dense landmarks, how open its surface lies, its
hull."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fitting.dense_landmarks import DenseLandmarks, dense_landmarks
from morphable.basis import GaussianBasis
from morphable.landmarks import SurfacePoints
from morphable.mesh import smoothstep, vertex_normals
from morphable.model import MorphableModel, once_for_each_model
from renderer.rasterize import barycentrics, rasterize

SKULL = np.array([0.0, 15.0, -62.0])  # mm; of the mean head: level with the brows, above the ears
COLUMNS, ROWS = 72, 26  # of the hull: azimuths, 0 to the front and growing to the subject's left; polar angles
LOWEST = np.deg2rad(150.0)  # polar angle, from straight up, at which the hull ends: below chin and nape
_OPENNESS_DIRECTIONS = 48
_BUSHY_MM = 4.5  # by which thick brows are wider than the model's, ...
_BUSHY_DROP_MM = 2.0  # ... more below than above


class Studio(eqx.Module):
    """A head of the control vertices alone, which at 128 pixels looks like the whole one at a quarter of the cost."""

    head: MorphableModel
    landmarks: DenseLandmarks  # on `head`
    openness: Float[Array, " vertex"]  # share of the sky over a point that the head leaves, 0 to 1
    hull: Int[Array, "column row"]  # vertex that lies outermost in this direction from `SKULL`
    hull_offset: Float[Array, "column row 3"]  # mm, from the vertex to the direction's ray
    hull_out: Float[Array, "column row 3"]  # unit directions from `SKULL`
    skin: Float[Array, " vertex"]  # 1 on skin, 0 on eyes, teeth and tongue
    eyes: Float[Array, " vertex"]
    teeth: Float[Array, " vertex"]
    bushy: Float[Array, " vertex"]  # where thick brows grow: around the model's own
    neck: Float[Array, " vertex"]  # 1 on the neck, 0 from the jaw's lower edge upwards and on ears
    throat: Float[Array, " vertex"]  # 1 in the middle of what lies between chin and neck
    triangles: Int[Array, "triangle 3"]  # without lashes, which drawn opaque look like paint


@once_for_each_model
def studio(model: MorphableModel) -> Studio:
    """The studio of a model; takes a second or two."""
    points = dense_landmarks(model)
    count = int(np.max(np.asarray(model.proxy_triangles))) + 1
    kept, (landmarks, dense) = _rows(count, [model.landmarks, points.surface])
    head = _reduced(model, kept, landmarks)
    part = np.asarray(head.part_of_vertex)
    skin = _of_parts(head, part, ["skin"]) if "skin" in head.part_names else np.ones(len(part))
    eyes = _of_parts(head, part, [n for n in head.part_names if n.startswith("eye")])
    lashes = [i for i, name in enumerate(head.part_names) if name.startswith("lashes")]
    triangles = np.asarray(head.triangles)
    triangles = triangles[~np.isin(part[triangles[:, 0]], lashes)]
    mean = np.asarray(head.mean, float)
    openness = _openness(mean, triangles)
    # Behind closed lips teeth would be dark; where they are seen they are not.
    teeth = _of_parts(head, part, [n for n in head.part_names if n.startswith("teeth")])
    openness = np.maximum(openness, 0.75 * teeth)
    outside = (skin > 0) & (np.asarray(head.masks.get("interior", np.zeros(len(part)))) < 0.5)
    ears = np.asarray(head.masks.get("ears", np.zeros(len(part))), float)
    outside &= ears < 0.05
    hull, offset, out = _hull(mean, outside)
    neck, throat = _below_jaw(mean, np.asarray(landmarks(head.mean), float), ears)
    return Studio(
        head=head,
        landmarks=dataclasses.replace(points, surface=dense),
        openness=jnp.asarray(openness, jnp.float32),
        hull=jnp.asarray(hull),
        hull_offset=jnp.asarray(offset, jnp.float32),
        hull_out=jnp.asarray(out, jnp.float32),
        skin=jnp.asarray(skin, jnp.float32),
        eyes=jnp.asarray(eyes, jnp.float32),
        teeth=jnp.asarray(teeth, jnp.float32),
        bushy=jnp.asarray(_around(mean, np.asarray(head.masks.get("brows", np.zeros(len(part))))) * skin, jnp.float32),
        neck=jnp.asarray(neck * skin, jnp.float32),
        throat=jnp.asarray(throat * skin, jnp.float32),
        triangles=jnp.asarray(triangles, jnp.int32),
    )


def _below_jaw(
    mean: Float[np.ndarray, "vertex 3"], marks: Float[np.ndarray, "68 3"], ears: Float[np.ndarray, " vertex"]
) -> tuple[Float[np.ndarray, " vertex"], Float[np.ndarray, " vertex"]]:
    """How much vertices belong to the neck, and to the throat between it and the chin; from iBUG's points. mm."""
    chin, corner = marks[8], 0.5 * (marks[3] + marks[13])  # the latter between the jaw's corners
    back = (corner - chin)[1:] / np.linalg.norm((corner - chin)[1:])  # along the jaw's lower edge, as (y, z)
    down = np.array([0.0, back[1], -back[0]])
    depth = (mean - chin) @ down  # mm below the plane of the jaw's lower edge
    under = (
        smoothstep(depth, 4.0, 30.0)
        * smoothstep(corner[1] - mean[:, 1], -5.0, 30.0)
        * (1.0 - np.clip(2.0 * ears, 0.0, 1.0))
    )
    middle = smoothstep(depth, 0.0, 15.0) * smoothstep(-depth, -75.0, -35.0) * np.exp(-((mean[:, 0] / 40.0) ** 2))
    return under, middle * smoothstep(mean[:, 2] - corner[2], -25.0, 10.0)


def _around(mean: Float[np.ndarray, "vertex 3"], mask: Float[np.ndarray, " vertex"]) -> Float[np.ndarray, " vertex"]:
    """A mask grown by some millimetres, downwards most."""
    inside = np.flatnonzero(mask > 0.1)
    if len(inside) == 0:
        return np.zeros(len(mean))
    lower = mean[inside] - [0.0, _BUSHY_DROP_MM, 0.0]
    apart = np.linalg.norm(mean[:, None] - lower[None], axis=2)
    return np.max(mask[inside] * np.exp(-((apart / _BUSHY_MM) ** 2)), axis=1)


def _of_parts(head: MorphableModel, part, names: Sequence[str]):
    return np.isin(part, [head.part_names.index(n) for n in names]).astype(float)


def _rows(count: int, points: Sequence[SurfacePoints]) -> tuple[Int[np.ndarray, " row"], list[SurfacePoints]]:
    """The first vertices and those that points need, and the points on them."""
    needed = np.concatenate([np.asarray(p.vertices).reshape(-1) for p in points])
    extra = np.setdiff1d(needed, np.arange(count))
    kept = np.concatenate([np.arange(count), extra])
    place = np.full(int(kept.max()) + 1, -1)
    place[kept] = np.arange(len(kept))
    return kept, [SurfacePoints(jnp.asarray(place[np.asarray(p.vertices)], jnp.int32), p.weights) for p in points]


def _reduced(model: MorphableModel, kept: Int[np.ndarray, " row"], landmarks: SurfacePoints) -> MorphableModel:
    """The model on some of its vertices, with the coarser triangles."""
    of = lambda values: values[kept]  # noqa: E731
    basis = lambda b: GaussianBasis(b.mean[kept], b.modes[kept])  # noqa: E731
    rig = model.rig
    if rig is not None:
        rig = dataclasses.replace(
            rig,
            weights=of(rig.weights),
            correctives=None if rig.correctives is None else of(rig.correctives),
        )
    return dataclasses.replace(
        model,
        shape=basis(model.shape),
        expression=of(model.expression),
        albedo=basis(model.albedo),
        triangles=model.proxy_triangles,
        uv=of(model.uv),
        landmarks=landmarks,
        contour=None,
        rig=rig,
        masks={name: of(mask) for name, mask in model.masks.items()},
        mirror=jnp.zeros(len(kept), jnp.int32),  # nobody asks for it here
        residual=of(model.residual),
        part_of_vertex=of(model.part_of_vertex),
        interaction=None if model.interaction is None else of(model.interaction),
    )


def _openness(points: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]):
    """Cosine-weighted share of the directions over each vertex in which nothing is in the way."""
    normals = np.asarray(vertex_normals(jnp.asarray(points, jnp.float32), jnp.asarray(triangles)))
    k = np.arange(_OPENNESS_DIRECTIONS) + 0.5
    z, turn = 1 - 2 * k / _OPENNESS_DIRECTIONS, np.pi * (1 + 5**0.5) * k  # spread evenly over the sphere
    directions = np.stack([np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], axis=1)

    @jax.jit
    def lit(direction):
        return lit_vertices(jnp.asarray(points, jnp.float32), jnp.asarray(triangles), direction, 192)

    total, weight = np.zeros(len(points)), np.zeros(len(points))
    for direction in directions:
        cosine = np.maximum(normals @ direction, 0)
        total += cosine * np.asarray(lit(jnp.asarray(direction, jnp.float32)))
        weight += cosine
    return total / np.maximum(weight, 1e-9)


def lit_vertices(
    vertices: Float[Array, "vertex 3"],
    triangles: Int[Array, "triangle 3"],
    direction: Float[Array, "3"],
    size: int = 160,
) -> Float[Array, " vertex"]:
    """How much of a far lamp in a unit direction reaches each vertex, by a shadow map of `size` texels.

    Soft over three texels and lifted by two: for training pictures, at a tenth of the cost of `renderer.shadow`.
    """
    helper = jnp.where(jnp.abs(direction[1]) < 0.9, jnp.array([0.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0]))
    right = jnp.cross(helper, direction)
    right = right / jnp.linalg.norm(right)
    axes = jnp.stack([right, jnp.cross(direction, right), -direction])
    corners = vertices @ axes.T
    low, high = jnp.min(corners, axis=0), jnp.max(corners, axis=0)
    texel = jnp.max((high - low)[:2]) / (size - 6)
    pixels = (corners[:, :2] - low[:2]) / texel + 3.0
    depth = corners[:, 2] - low[2] + 1.0
    ids = rasterize(pixels, depth, triangles, size, size, perspective=False, cull=False)
    weights = barycentrics(pixels, None, triangles, ids)
    near = jnp.sum(depth[triangles[jnp.maximum(ids, 0)]] * weights, axis=-1)
    near = jnp.where(ids >= 0, near, jnp.inf)
    bias = 2.0 * texel + 1.0
    lit = jnp.zeros(len(vertices))
    for dx in (-1.0, 0.0, 1.0):
        for dy in (-1.0, 0.0, 1.0):
            column, row = (
                jnp.clip(jnp.floor(pixels[:, k] + d), 0, size - 1).astype(jnp.int32) for k, d in ((0, dx), (1, dy))
            )
            behind = depth - near[row, column]
            lit = lit + jnp.where(behind > bias, 0.0, 1.0 / 9.0)
    return lit


def _hull(mean: Float[np.ndarray, "vertex 3"], outside: Bool[np.ndarray, " vertex"]):
    azimuth = 2 * np.pi * np.arange(COLUMNS) / COLUMNS - np.pi
    polar = LOWEST * np.arange(ROWS) / (ROWS - 1)
    out = np.stack(
        [
            np.sin(azimuth)[:, None] * np.sin(polar),
            np.broadcast_to(np.cos(polar), (COLUMNS, ROWS)),
            np.cos(azimuth)[:, None] * np.sin(polar),
        ],
        axis=-1,
    )
    candidates = np.flatnonzero(outside)
    ray = mean[candidates] - SKULL
    far = np.linalg.norm(ray, axis=1)
    cosine = out.reshape(-1, 3) @ (ray / far[:, None]).T
    best = np.argmax(cosine, axis=1)
    hull = candidates[best].reshape(COLUMNS, ROWS)
    radius = far[best].reshape(COLUMNS, ROWS)
    return hull, SKULL + radius[..., None] * out - mean[hull], out
