"""Gaussian-process morphable models: smooth and statistical deformations of a template, and regression in them.

A displacement field is a Gaussian process whose covariance is a sum of kernels, as of a sample's covariance and of
smooth functions (Luethi, Gerig, Jud & Vetter 2018, "Gaussian process morphable models", section 3). Its low-rank form
is a linear space with standard-normal coefficients; observations of some points, each with its own noise, give the
others in closed form.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from morphable.registration.alignment import Similarity
from morphable.registration.target import TargetSurface, outward_normals


class Gaussian(NamedTuple):
    """One scale of a multi-scale kernel: sigma² exp(-|x - y|² / (2 length²)), in mm."""

    sigma: float
    length: float


@dataclass(frozen=True, eq=False)
class DeformationProcess:
    """x = mean + modes · a + fields · b on the vertices of a template, a standard normal, b of deviations `spread`.

    `modes` move a vertex in space; each of the scalar `fields` moves it along x, y and z, independently. Coefficients
    are a, then b for x, for y and for z.
    """

    mean: Float[np.ndarray, "vertex 3"]  # mm
    modes: Float[np.ndarray, "vertex 3 mode"]  # mm at one standard deviation
    fields: Float[np.ndarray, "vertex field"]  # mm at a coefficient of 1
    spread: Float[np.ndarray, "3 field"]  # standard deviation of each field's coefficient along each axis, above 0

    @property
    def rank(self) -> int:
        """Number of coefficients."""
        return self.modes.shape[2] + 3 * self.fields.shape[1]

    def instance(self, coefficients: Float[np.ndarray, " rank"]) -> Float[np.ndarray, "vertex 3"]:
        """The template with these coefficients."""
        split = self.modes.shape[2]
        moved = self.fields @ coefficients[split:].reshape(3, -1).T
        return self.mean + self.modes @ coefficients[:split] + moved

    def at(self, corners: Int[np.ndarray, "point 3"], weights: Float[np.ndarray, "point 3"]) -> "DeformationProcess":
        """The process at points on the template's surface."""
        here = lambda values: np.einsum("pk,pk...->p...", weights, values[corners])  # noqa: E731
        return DeformationProcess(here(self.mean), here(self.modes), here(self.fields), self.spread)

    def rows(self, vertices: Int[np.ndarray, " chosen"]) -> "DeformationProcess":
        """The process at some vertices."""
        return DeformationProcess(self.mean[vertices], self.modes[vertices], self.fields[vertices], self.spread)

    def regress(
        self, values: Float[np.ndarray, "vertex 3"], precision: Float[np.ndarray, "vertex 3 3"]
    ) -> Float[np.ndarray, " rank"]:
        """Posterior mean of the coefficients, given noisy positions of all vertices of this process.

        `precision` is the inverse covariance of each vertex's noise, 1/mm²: zeros where nothing was seen, n nᵀ / sigma²
        for a distance to a plane. (S⁻¹ + Aᵀ P A)⁻¹ Aᵀ P (values - mean), equations 9-10 of Luethi et al.; built from
        blocks, as the same scalar fields serve three axes.
        """
        m, f = self.modes.shape[2], self.fields.shape[1]
        hessian = np.empty((m + 3 * f, m + 3 * f))
        gradient = np.empty(m + 3 * f)
        pull = np.einsum("vab,vb->va", precision, values - self.mean)
        weighted = np.einsum("vab,vbm->vam", precision, self.modes)
        hessian[:m, :m] = self.modes.reshape(-1, m).T @ weighted.reshape(-1, m)
        gradient[:m] = self.modes.reshape(-1, m).T @ pull.ravel()
        for a in range(3):
            rows = slice(m + a * f, m + (a + 1) * f)
            hessian[rows, :m] = self.fields.T @ weighted[:, a]
            hessian[:m, rows] = hessian[rows, :m].T
            gradient[rows] = self.fields.T @ pull[:, a]
            for b in range(a + 1):
                columns = slice(m + b * f, m + (b + 1) * f)
                hessian[rows, columns] = self.fields.T @ (self.fields * precision[:, a, b, None])
                hessian[columns, rows] = hessian[rows, columns].T
        hessian[np.diag_indices_from(hessian)] += np.concatenate([np.ones(m), self.spread.ravel() ** -2])
        return scipy.linalg.solve(hessian, gradient, assume_a="pos", overwrite_a=True, check_finite=False)


def joined(*processes: DeformationProcess) -> DeformationProcess:
    """One process on the points of several that have the same modes and fields."""
    return DeformationProcess(
        np.concatenate([p.mean for p in processes]),
        np.concatenate([p.modes for p in processes]),
        np.concatenate([p.fields for p in processes]),
        processes[0].spread,
    )


def kernel(
    x: Float[np.ndarray, "m 3"], y: Float[np.ndarray, "n 3"], scales: tuple[Gaussian, ...]
) -> Float[np.ndarray, "m n"]:
    """Covariance of one coordinate of the displacement between points, mm²."""
    squared = np.maximum((x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T, 0.0)
    return np.sum([s.sigma**2 * np.exp(-squared / (2 * s.length**2)) for s in scales], axis=0)


def kernel_fields(
    points: Float[np.ndarray, "point 3"],
    samples: Float[np.ndarray, "sample 3"],
    scales: tuple[Gaussian, ...],
    count: int,
    sign: int,
) -> Float[np.ndarray, "point field"]:
    """The strongest scalar modes of a kernel's part that is even (sign 1) or odd (-1) in x, at points.

    By Nystroem's formula from samples of the surface, which spend the modes where they are dense; mm at one standard
    deviation. With both parts the kernel is whole; displacements odd along x and even along y and z make symmetric
    faces (Luethi et al., section 3.3).
    """
    count = min(count, len(samples))
    if count == 0:
        return np.zeros((len(points), 0))
    mirrored = samples * [-1.0, 1.0, 1.0]
    part = lambda x: (kernel(x, samples, scales) + sign * kernel(x, mirrored, scales)) / 2  # noqa: E731
    variance, vectors = scipy.linalg.eigh(part(samples), subset_by_index=[len(samples) - count, len(samples) - 1])
    solid = variance > 1e-9 * variance[-1]
    variance, vectors = variance[solid][::-1], vectors[:, solid][:, ::-1]
    lift = vectors / np.sqrt(variance)
    return np.concatenate([part(points[i : i + 4096]) @ lift for i in range(0, len(points), 4096)])


def mesh_samples(count: int, most: int) -> Int[np.ndarray, " sample"]:
    """Indices of `most` of `count` vertices at random, always the same: dense where the mesh is, at lids and lips.

    Evenly spread samples cost 0.2 mm of correspondence on sampled heads: they miss the features that tell where a
    surface slides.
    """
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


class SurfaceFit(NamedTuple):
    """Where an ICP in a process's space ended: similarity(process.instance(coefficients)) lies on the target."""

    similarity: Similarity
    coefficients: Float[np.ndarray, " rank"]


class Marks(NamedTuple):
    """Landmarks of a template, and where they are on a target."""

    corners: Int[np.ndarray, "mark 3"]
    weights: Float[np.ndarray, "mark 3"]  # barycentric
    points: Float[np.ndarray, "mark 3"]  # target's unit; NaN rows are unknown
    sigma: Float[np.ndarray, " mark"]  # mm


@dataclass(frozen=True)
class SurfaceFitSettings:
    """ICP in a process's space. Lengths in mm; pairs are at the first and the last round, geometric between."""

    rounds: int = 10
    reach: tuple[float, float] = (25.0, 6.0)  # counterparts farther away do not count
    robust: tuple[float, float] = (8.0, 1.5)  # a counterpart at this distance draws with a quarter of its weight
    facing: float = 0.5  # least cosine between the normals of a point and of its counterpart
    sigma: float = 1.0  # of a point's distance to its plane
    tangential: float = 0.01  # precision of the motion within the plane, relative: closest points slide
    points: int = 4000  # a subsample decides


def fit_surface(
    process: DeformationProcess,
    triangles: Int[np.ndarray, "triangle 3"],
    pull: Float[np.ndarray, " vertex"],
    target: TargetSurface,
    start: SurfaceFit,
    marks: Marks | None = None,
    scaled: bool = True,
    settings: SurfaceFitSettings = SurfaceFitSettings(),
) -> SurfaceFit:
    """Similarity and deformation together, alternating with closest points: Gauss-Newton on the posterior.

    Each round is one regression, of the process with the motion's six or seven directions as further modes. `pull`, in
    [0, 1], says how much a vertex is drawn to the target; 0 where it only goes along. Target coordinates are mm but for
    a scale near 1.
    """
    drawn = np.flatnonzero(pull > 0)
    chosen = drawn[mesh_samples(len(drawn), settings.points)]
    seen = process.rows(chosen)
    known = None
    if marks is not None:
        use = np.isfinite(marks.points).all(axis=1) & np.isfinite(marks.sigma)
        marks = Marks(*(x[use] for x in marks))
        known = process.at(marks.corners, marks.weights) if use.any() else None
    pose, coefficients = start
    for k in range(settings.rounds):
        along = k / max(settings.rounds - 1, 1)
        reach, robust = (a * (b / a) ** along for a, b in (settings.reach, settings.robust))
        shape = process.instance(coefficients)
        normals = outward_normals(shape, triangles)[chosen]
        x = shape[chosen]
        found = target.match(pose(x), pose.turn(normals), reach, settings.facing)
        weight = pull[chosen] * found.valid / (1 + (found.distance / robust) ** 2) ** 2 / settings.sigma**2
        back = pose.inverse()
        plane = back.turn(found.normals)
        precision = weight[:, None, None] * (plane[:, :, None] * plane[:, None, :] + settings.tangential * np.eye(3))
        values = back(found.points)
        space = seen
        if known is not None and marks is not None:
            x = np.concatenate([x, known.instance(coefficients)])
            values = np.concatenate([values, back(marks.points)])
            precision = np.concatenate([precision, np.eye(3) / marks.sigma[:, None, None] ** 2])
            space = joined(seen, known)
        middle = x.mean(axis=0)
        motion = _motion_modes(x - middle, scaled)
        moving = DeformationProcess(
            space.mean, np.concatenate([motion, space.modes], axis=2), space.fields, space.spread
        )
        solution = moving.regress(values, precision)
        count = motion.shape[2]
        pose = pose @ _motion(solution[:count], middle)
        coefficients = solution[count:]
    return SurfaceFit(pose, coefficients)


# One round's standard deviations of turn (rad), shift (mm) and growth: wide, as they only damp the step.
_TURN, _SHIFT, _GROWTH = 0.2, 20.0, 0.1


def _motion_modes(arms: Float[np.ndarray, "point 3"], scaled: bool) -> Float[np.ndarray, "point 3 mode"]:
    turn = _TURN * np.stack([np.cross(axis, arms) for axis in np.eye(3)], axis=2)
    shift = _SHIFT * np.broadcast_to(np.eye(3), (len(arms), 3, 3))
    growth = _GROWTH * arms[:, :, None]
    return np.concatenate([turn, shift, growth] if scaled else [turn, shift], axis=2)


def _motion(step: Float[np.ndarray, " mode"], middle: Float[np.ndarray, "3"]) -> Similarity:
    """The similarity whose first order about `middle` is the motion modes' step."""
    x, y, z = _TURN * step[:3]
    rotation = scipy.linalg.expm(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    scale = float(np.exp(_GROWTH * step[6])) if len(step) > 6 else 1.0
    return Similarity(scale, rotation, middle + _SHIFT * step[3:6] - scale * rotation @ middle)
