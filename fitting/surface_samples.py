"""The model seen from a solver: chosen surface points whose positions and tangents are linear in the coefficients.

Normals are not linear in the coefficients, but two tangents are, and their cross product is the normal. Storing the
tangents' bases lets the photometric term differentiate shading exactly without touching the mesh.
"""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float, Int

from morphable.landmarks import SurfacePoints
from morphable.model import MorphableModel

BLOCK = 512  # points assembled at a time; large enough for the matrix product, small enough for the cache


class PointBasis(eqx.Module):
    """Positions of some surface points: mean + modes · (identity, expression weights), head mm."""

    mean: Float[Array, "point 3"]
    modes: Float[Array, "point 3 coefficient"]

    def positions(self, identity: Float[Array, " i"], expression: Float[Array, " e"]) -> Float[Array, "point 3"]:
        """Head-space positions for these coefficients."""
        return self.mean + self.modes @ jnp.concatenate([identity, expression])


def combine(
    mean: Float[Array, "row point"],
    modes: Float[Array, "row coefficient point"],
    coefficients: Float[Array, " coefficient"],
) -> Float[Array, "row point"]:
    """mean + Σ coefficient · mode for points that run last, row by row.

    As one contraction over the middle axis XLA:CPU takes seven times as long.
    """
    return mean + jnp.stack([coefficients @ mode for mode in modes])


class SkinSamples(eqx.Module):
    """Evenly spread samples of the visible skin in mirrored pairs; any number of first blocks is even, too.

    Rows of `geometry` are position, first tangent, second tangent (3 each); the points run last, as the solver
    streams over them.
    """

    geometry: Float[Array, "block 9 point"]
    geometry_modes: Float[Array, "block 9 coefficient point"]
    albedo: Float[Array, "block 3 point"]  # sRGB-encoded
    albedo_modes: Float[Array, "block 3 rank point"]

    @property
    def count(self) -> int:
        """Number of points."""
        return self.geometry.shape[0] * self.geometry.shape[2]


class SolverModel(eqx.Module):
    """All of a morphable model that a fit reads."""

    landmarks: PointBasis
    contour: PointBasis  # 17 paths of candidates, flattened
    proxy: PointBasis  # the coarse mesh, for visibility
    proxy_triangles: Int[Array, "triangle 3"]
    skin: SkinSamples
    free_units: Float[Array, " unit"]  # 1 for expression units that a photo can show
    limits: Float[Array, "2 unit"]  # of expression weights
    identity_rank: int = eqx.field(static=True)
    albedo_rank: int = eqx.field(static=True)
    # Whether expressions are principal components, whose prior is N(0, 1), rather than units of which most rest.
    gaussian_expression: bool = eqx.field(static=True, default=False)


# Gaze cannot be seen in 68 landmarks or on skin, mouthClose only corrects jawOpen, and the tongue is not skin.
UNSEEN_UNITS = ("eyeLook", "mouthClose", "tongueOut")


def solver_model(model: MorphableModel, blocks: int = 8) -> SolverModel:
    """Gather what a fit needs from a model: `blocks` times 512 skin samples, landmarks, contour and proxy mesh."""
    mean = np.asarray(model.shape.mean, np.float64)
    modes = np.concatenate([np.asarray(model.shape.modes), np.asarray(model.expression)], axis=2)
    flat = modes.reshape(len(mean), -1)
    points = functools.partial(_point_basis, mean, flat)
    barycentric = functools.partial(_barycentric, len(mean))
    count = blocks * BLOCK
    triangles = np.asarray(model.triangles)
    chosen, weights = _area_uniform(mean, triangles[_skin_triangles(model)], np.asarray(model.mirror), count)
    position, tangent_1, tangent_2 = _tangent_operators(mean, triangles, chosen, weights)
    operator = sp.vstack([position, tangent_1, tangent_2]).tocsr()
    rows = (operator @ mean).astype(np.float32).reshape(3, count, 3)
    row_modes = (operator.astype(np.float32) @ flat).reshape(3, count, 3, -1)
    albedo_modes = np.asarray(model.albedo.modes)
    rank = albedo_modes.shape[2]
    albedo = (position @ np.asarray(model.albedo.mean)).astype(np.float32)
    sampled_albedo_modes = (position.astype(np.float32) @ albedo_modes.reshape(len(mean), -1)).reshape(count, 3, rank)

    def blocked(values, *inner):  # (point, *inner) -> (block, *inner, point)
        return jnp.asarray(np.ascontiguousarray(np.moveaxis(values.reshape(blocks, BLOCK, *inner), 1, -1)))

    coefficients = row_modes.shape[-1]
    skin = SkinSamples(
        geometry=blocked(rows.transpose(1, 0, 2).reshape(count, 9), 9),
        geometry_modes=blocked(row_modes.transpose(1, 0, 2, 3).reshape(count, 9, coefficients), 9, coefficients),
        albedo=blocked(albedo, 3),
        albedo_modes=blocked(sampled_albedo_modes, 3, rank),
    )
    if model.contour is None:
        jaw = slice(0, 17)
        contour = barycentric(model.landmarks.vertices[jaw], model.landmarks.weights[jaw])
    else:
        contour = barycentric(model.contour.vertices, model.contour.weights)
    proxy = np.asarray(model.proxy_triangles)
    interior = np.asarray(model.masks.get("interior", np.zeros(len(mean))))
    proxy = proxy[~(interior[proxy] > 0.5).all(axis=1)]
    used, renumbered = np.unique(proxy, return_inverse=True)
    select = sp.csr_matrix((np.ones(len(used)), (np.arange(len(used)), used)), shape=(len(used), len(mean)))
    free = [not name.startswith(UNSEEN_UNITS) for name in model.expression_names]
    return SolverModel(
        landmarks=points(barycentric(model.landmarks.vertices, model.landmarks.weights)),
        contour=points(contour),
        proxy=points(select),
        proxy_triangles=jnp.asarray(renumbered.reshape(-1, 3), jnp.int32),
        skin=skin,
        free_units=jnp.asarray(free, jnp.float32),
        limits=jnp.asarray(model.expression_limits),
        identity_rank=model.shape.rank,
        albedo_rank=rank,
        gaussian_expression=model.expression_kind == "components",
    )


def point_basis(model: MorphableModel, surface: SurfacePoints) -> PointBasis:
    """Points of a model's surface as a fit moves them."""
    used, rows = np.unique(np.asarray(surface.vertices), return_inverse=True)
    mean = np.asarray(model.shape.mean, np.float64)[used]
    modes = np.concatenate([np.asarray(model.shape.modes)[used], np.asarray(model.expression)[used]], axis=2)
    return _point_basis(mean, modes.reshape(len(used), -1), _barycentric(len(used), rows, surface.weights))


def _point_basis(mean, flat_modes, operator: sp.csr_matrix) -> PointBasis:
    positions = (operator @ mean).astype(np.float32)
    moved = (operator.astype(np.float32) @ flat_modes).reshape(len(positions), 3, -1)
    return PointBasis(jnp.asarray(positions), jnp.asarray(moved))


def _barycentric(count: int, vertices, weights) -> sp.csr_matrix:
    vertices, weights = np.asarray(vertices).reshape(-1, 3), np.asarray(weights).reshape(-1, 3)
    rows = np.repeat(np.arange(len(vertices)), 3)
    return sp.csr_matrix((weights.ravel(), (rows, vertices.ravel())), shape=(len(vertices), count))


def _skin_triangles(model: MorphableModel) -> np.ndarray:
    """Triangles of the face whose colour the albedo model explains: no ears, lids, cavities, eyes or scalp."""
    triangles = np.asarray(model.triangles)
    masks = {name: np.asarray(mask) for name, mask in model.masks.items()}
    nothing = np.zeros(len(model.mean))
    keep = masks.get("face", np.ones(len(nothing))) > 0.9
    for name, limit in (
        ("ears", 0.2),
        ("interior", 0.3),
        ("lids", 0.4),
        ("scalp", 0.4),
        ("sclera", 0.1),
        ("iris", 0.1),
    ):
        keep &= masks.get(name, nothing) < limit
    chosen = np.asarray(keep[triangles].all(axis=1))
    if not chosen.any():
        raise ValueError(
            f"{model.provenance.name}: no triangle is left for the photometric term; expected a 'face' mask that "
            f"covers skin. Masks found: {sorted(masks)}."
        )
    return chosen


def _area_uniform(mean, triangles, mirror, count):
    """`count` points, evenly spread and mirrored in pairs: corners and barycentric weights.

    Half of the face is walked along a space-filling curve, and points are set at the van der Corput sequence of the
    walked area (base 2): any number of first points is spread as evenly as can be, where random points leave gaps and
    clusters that move a face by half a millimetre. Each is followed by its mirror image, so a face has no better side.
    """
    centroid = mean[triangles].mean(axis=1)
    half = triangles[centroid[:, 0] > 0]
    half = half[np.argsort(_morton(mean[half].mean(axis=1)), kind="stable")]
    a, b, c = (mean[half[:, k]] for k in range(3))
    cumulated = np.cumsum(0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1))
    index = np.arange((count + 1) // 2)
    targets = _radical_inverse(index, 2) * cumulated[-1]
    which = np.minimum(np.searchsorted(cumulated, targets, side="right"), len(half) - 1)
    r1, r2 = np.sqrt(_radical_inverse(index + 1, 3)), _radical_inverse(index + 1, 5)
    weights = np.stack([1 - r1, r1 * (1 - r2), r1 * r2], axis=1)
    corners = np.stack([half[which], mirror[half[which]]], axis=1).reshape(-1, 3)
    return corners[:count], np.repeat(weights, 2, axis=0)[:count]


def _radical_inverse(index, base):
    """Digits of an integer mirrored at the point (van der Corput 1935): evenly spread over [0, 1) for every prefix."""
    value, digit = np.zeros(len(index)), 1.0
    rest = index.copy()
    while rest.any():
        digit /= base
        value += digit * (rest % base)
        rest //= base
    return value


def _morton(points, bits=10):
    """Place of each point on a Z-order curve through their box: near on the curve means near in space."""
    low, high = points.min(axis=0), points.max(axis=0)
    cell = ((points - low) / np.maximum(high - low, 1e-9).max() * (2**bits - 1)).astype(np.int64)
    code = np.zeros(len(points), np.int64)
    for bit in range(bits):
        for axis in range(3):
            code |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code


def _tangent_operators(mean, triangles, corners, weights):
    """Sparse maps from vertices to each sample's position and two tangents.

    In the tangent plane of the mean surface at the sample, every incident triangle maps plane coordinates to space
    linearly; the tangents are those maps' columns, averaged with the triangles' projected areas and interpolated
    between the three corners. Weighting by projected area keeps edge-on triangles bounded.
    """
    count = len(corners)
    normals = np.cross(mean[triangles[:, 1]] - mean[triangles[:, 0]], mean[triangles[:, 2]] - mean[triangles[:, 0]])
    vertex_normal = np.zeros_like(mean)
    for k in range(3):
        np.add.at(vertex_normal, triangles[:, k], normals)
    vertex_normal /= np.maximum(np.linalg.norm(vertex_normal, axis=1, keepdims=True), 1e-12)
    n = (vertex_normal[corners] * weights[..., None]).sum(axis=1)
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    s = np.cross(np.where(np.abs(n[:, 1:2]) < 0.9, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]), n)
    s /= np.linalg.norm(s, axis=1, keepdims=True)
    t = np.cross(n, s)

    order = np.argsort(triangles.ravel(), kind="stable")
    first = np.searchsorted(triangles.ravel()[order], np.arange(len(mean) + 1))
    degree = np.diff(first)
    rows, cols, first_values, second_values, norm = [], [], [], [], np.zeros(count)
    for corner in range(3):
        vertex = corners[:, corner]
        for k in range(degree[vertex].max()):
            sample = np.flatnonzero(k < degree[vertex])
            around = triangles[order[first[vertex[sample]] + k] // 3]
            d1, d2 = mean[around[:, 1]] - mean[around[:, 0]], mean[around[:, 2]] - mean[around[:, 0]]
            d1s, d1t = (d1 * s[sample]).sum(1), (d1 * t[sample]).sum(1)
            d2s, d2t = (d2 * s[sample]).sum(1), (d2 * t[sample]).sum(1)
            determinant = d1s * d2t - d1t * d2s
            ok = (determinant > 0) * weights[sample, corner]
            norm[sample] += ok * determinant
            # Columns of [d1 d2] · adjugate([[d1s d2s], [d1t d2t]]): the derivatives along s and t, times the area.
            along_s, along_t = (d2t, -d1t), (-d2s, d1s)
            for (c1, c2), values in ((along_s, first_values), (along_t, second_values)):
                values += [-(c1 + c2) * ok, c1 * ok, c2 * ok]
            rows += [sample] * 3
            cols += [around[:, 0], around[:, 1], around[:, 2]]
    rows, cols = np.concatenate(rows), np.concatenate(cols)
    shape = (count, len(mean))
    tangents = [
        sp.csr_matrix((np.concatenate(values) / norm[rows], (rows, cols)), shape=shape)
        for values in (first_values, second_values)
    ]
    position = sp.csr_matrix((weights.ravel(), (np.repeat(np.arange(count), 3), corners.ravel())), shape=shape)
    return position, *tangents
