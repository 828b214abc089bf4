"""A small synthetic head for tests that state laws, and finite differences."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from morphable.basis import GaussianBasis
from morphable.landmarks import ContourFans, SurfacePoints
from morphable.mesh import Mesh, triangulate
from morphable.model import MorphableModel, Provenance
from morphable.rig import Gaze, Rig

# For large programs that run a few times: without optimisation, compiling takes half the time.
QUICKLY = {"xla_backend_optimization_level": 0}


def quickly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled without optimisation."""
    return eqx.filter_jit(function, compiler_options=QUICKLY)  # pyright: ignore[reportCallIssue], not in its stubs


UNITS = ("jawOpen", "mouthClose", "mouthSmileLeft", "eyeLookUpLeft")


def uv_sphere(columns: int, rows: int) -> Mesh:
    """A textured sphere, radius 100 mm; u runs once around it from the back, v from its top down."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    around, down = (u - 0.5) * 2 * np.pi, v * np.pi
    points = [np.sin(around) * np.sin(down), np.cos(down), np.cos(around) * np.sin(down)]
    i = np.arange(rows * (columns + 1)).reshape(rows, columns + 1)[:, :-1].ravel()
    below = i + columns + 1
    triangles = np.concatenate([np.stack([i, below, below + 1], 1), np.stack([i, below + 1, i + 1], 1)])
    return Mesh(
        vertices=jnp.asarray(100 * np.stack(points, -1).reshape(-1, 3), jnp.float32),
        triangles=jnp.asarray(triangles, jnp.int32),
        uv=jnp.asarray(np.stack([u.ravel(), v.ravel()], 1), jnp.float32),
    )


def tiny_model(identity_rank: int = 6, albedo_rank: int = 4, side: int = 13) -> MorphableModel:
    """A head-sized half ellipsoid with smooth random modes: 169 vertices, four units, two joints."""
    rng = np.random.default_rng(7)
    u, v = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    x, y = 70 * np.sin(u * 1.35), -90 * np.sin(v * 1.35)
    z = 60 * np.cos(u * 1.35) * np.cos(v * 1.35) + 25 * np.exp(-((u / 0.18) ** 2 + (v / 0.3) ** 2))
    vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3).astype(np.float32)
    index = np.arange(side * side).reshape(side, side)
    # Rows run downwards: counter-clockwise seen from +z.
    quads = np.stack([index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]], axis=-1).reshape(-1, 4)
    triangles = triangulate(quads)
    count = len(vertices)
    unit = vertices / [70, 90, 60]

    def smooth(channels, size):
        waves = rng.normal(size=(8, 3)) * 1.5
        phase = rng.uniform(0, 2 * np.pi, 8)
        fields = np.cos(unit @ waves.T + phase)
        return (fields @ rng.normal(size=(8, channels * size)) / np.sqrt(8)).reshape(count, channels, size)

    identity = 4.0 * smooth(3, identity_rank) / np.sqrt(1 + np.arange(identity_rank))
    expression = 6.0 * smooth(3, len(UNITS))
    grid = index[:, :]
    jaw_columns = np.linspace(0, side - 1, 17).round().astype(int)
    jaw_rows = (side - 1 - (np.abs(np.arange(17) - 8) / 8 * (side // 2))).round().astype(int)
    inner = rng.choice(grid[2:-2, 2:-2].ravel(), 51, replace=False)
    chosen = np.r_[grid[jaw_rows, jaw_columns], inner]

    def corners(ids):
        where = np.array([np.flatnonzero((triangles == i).any(axis=1))[0] for i in ids])
        return triangles[where], (triangles[where] == ids[:, None]).astype(np.float32)

    landmark_vertices, landmark_weights = corners(chosen)
    fans = np.stack([grid[np.clip(jaw_rows + d, 0, side - 1), jaw_columns] for d in (-2, -1, 0, 1)], axis=1)
    fan_vertices, fan_weights = corners(fans.ravel())
    parts = np.zeros(count, int)
    weights = np.zeros((count, 2), np.float32)
    lower = np.clip(0.5 - vertices[:, 1] / 60, 0, 1)
    weights[:, 1], weights[:, 0] = lower, 1 - lower
    f32 = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    i32 = lambda a: jnp.asarray(a, jnp.int32)  # noqa: E731
    tone = 0.55 + 0.1 * smooth(3, 1)[..., 0]
    return MorphableModel(
        shape=GaussianBasis(f32(vertices), f32(identity)),
        expression=f32(expression),
        albedo=GaussianBasis(f32(tone), f32(0.05 * smooth(3, albedo_rank))),
        triangles=i32(triangles),
        uv=f32(np.stack([(u + 1) / 2, (v + 1) / 2], axis=-1).reshape(-1, 2)),
        landmarks=SurfacePoints(i32(landmark_vertices), f32(landmark_weights)),
        contour=ContourFans(i32(fan_vertices.reshape(17, 4, 3)), f32(fan_weights.reshape(17, 4, 3))),
        rig=Rig(
            joints=GaussianBasis(f32([[0, 0, 0], [0, -20, 10]]), f32(rng.normal(size=(2, 3, identity_rank)))),
            weights=f32(weights),
            gaze=Gaze(i32([3]), i32([0]), f32([[-0.4, 0, 0]])),
            names=("head", "jaw"),
            parents=(-1, 0),
        ),
        masks={"face": jnp.ones(count), "interior": jnp.zeros(count)},
        mirror=i32(grid[:, ::-1].ravel()),
        residual=f32(smooth(1, 3)[:, 0]),
        proxy_triangles=i32(triangles),
        part_of_vertex=i32(parts),
        expression_names=UNITS,
        part_names=("skin",),
        provenance=Provenance("tiny", "CC0-1.0", "free", "", ("made in memory",)),
    )


def finite_difference(function, x, step=1e-4):
    """Central differences of a vector function along every entry of a flat vector, output last axis over entries."""
    columns = []
    for e in jnp.eye(x.shape[0]):
        columns.append((function(x + step * e) - function(x - step * e)) / (2 * step))
    return jnp.stack(columns, axis=-1)


def tree_equal(a, b) -> bool:
    """All leaves equal, bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)
