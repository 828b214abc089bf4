"""The spaces of a model from corresponding shapes: identity, expressions, albedo, joints, and what is left over."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy.sparse.linalg import splu

from morphable.basis import GaussianBasis
from morphable.building.scans import BuildError
from morphable.laplacian import cotangent_laplacian, laplacian_modes
from morphable.model import MorphableModel
from morphable.registration import Similarity, similarity
from morphable.statistics import (
    Curve,
    PrincipalComponents,
    mirrored,
    principal_components,
    probabilistic_components,
    symmetric_components,
)

# A vertex that the weights leave out still counts this much: it must not be free of the streamed components.
LEAST_WEIGHT = 1e-4
JOINT_NOISE_MM = 1.0  # how far the template's space may be from a head when its joints are read off it
JOINT_REACH_MM = 15.0  # a joint follows the vertices around its nearest one
# Smooth scalar fields for what scans do not span, where the template has none (`laplacian_modes`).
RESIDUAL_MODES = 33
# The root mean square of a 3D normal variable's length over the mean of that length, √(3 π / 8).
RMS_OF_MEAN = float(np.sqrt(3 * np.pi / 8))


class Subjects(NamedTuple):
    """One neutral shape for each person, the mean where there are several scans."""

    names: tuple[str, ...]
    shapes: Float[np.ndarray, "subject vertex 3"]  # mm, aligned
    variance: Float[np.ndarray, " vertex"] | None  # between scans of one person, mm²; None where each has one
    scans: Float[np.ndarray, " subject"]  # number of each


class Units(NamedTuple):
    """Expression blendshapes, the mean of people's."""

    names: tuple[str, ...]
    deltas: Float[np.ndarray, "vertex 3 unit"]  # mm at weight 1
    people: Int[np.ndarray, " unit"]  # how many each is the mean of


def subject_means(shapes: Float[np.ndarray, "shape vertex 3"], subjects: Sequence[str]) -> Subjects:
    """Scans of the same person averaged; how they differ tells the noise of scanning and registration."""
    names = tuple(dict.fromkeys(subjects))
    of = np.array([names.index(subject) for subject in subjects])
    counts = np.bincount(of)
    means = np.stack([shapes[of == k].mean(axis=0) for k in range(len(names))])
    freedom = len(shapes) - len(names)
    variance = ((shapes - means[of]) ** 2).sum(axis=(0, 2)) / freedom if freedom > 0 else None
    return Subjects(names, means, variance, counts.astype(float))


def identity_space(
    shapes: Float[np.ndarray, "shape vertex 3"],
    weights: Float[np.ndarray, " vertex"],
    mirror: Int[np.ndarray, " vertex"] | None = None,
    noise_variance: float = 0.0,
    share: float = 1.0,
    rank: int | None = None,
) -> PrincipalComponents:
    """Components of neutral shapes, of their mirror images too where a mirror table is given.

    noise_variance: mean square of the distance, mm², that registration puts a vertex from where it belongs; see
        `without_noise`. share: of the variance to keep. rank: the most modes to keep.
    """
    weights = np.maximum(weights / weights.max(), LEAST_WEIGHT)
    if mirror is None:
        components = principal_components(shapes, weights=weights)
    else:
        components = symmetric_components(shapes, mirror, weights=weights)
    components = without_noise(components, noise_variance).truncate_to_share(share)
    return components if rank is None else components.truncate(min(rank, components.rank))


def without_noise(components: PrincipalComponents, noise_variance: float) -> PrincipalComponents:
    """Components less what noise adds to each: few noisy shapes have too much variance along all their components.

    Independent noise of many vertices in m shapes is nearly orthogonal to everything and to itself, and so adds the
    same to all eigenvalues of the Gram matrix: its whole variance over the number of modes (Johnstone 2001 has the
    general law). Modes that hold no more than that are dropped.

    noise_variance: mean square of a vertex's distance from its place, mm².
    """
    if noise_variance <= 0 or components.rank == 0:
        return components
    added = noise_variance * float(components.weights.sum()) / components.rank
    kept = components.variances > added
    left = components.variances[kept] - added
    modes = components.modes[..., kept] * np.sqrt(left / components.variances[kept])
    total = max(components.total_variance - added * components.rank, float(left.sum()))
    return components._replace(modes=modes, variances=left, total_variance=total)


class AlignedFiles:
    """Batches of shapes read from memory-mapped files, moved into one frame, with their mirror images if wanted.

    May be iterated again and again, and holds one batch; `files[i]` is one shape.
    """

    def __init__(
        self,
        shapes: Sequence[Float[np.ndarray, "vertex 3"]],
        motions: Sequence[Similarity],
        mirror: Int[np.ndarray, " vertex"] | None,
        batch: int = 16,
    ):
        self.shapes, self.motions, self.mirror, self.batch = shapes, motions, mirror, batch

    def __getitem__(self, index: int) -> Float[np.ndarray, "vertex 3"]:
        return self.motions[index](np.asarray(self.shapes[index], float))

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.shapes), self.batch):
            ids = range(start, min(start + self.batch, len(self.shapes)))
            block = np.stack([self[i] for i in ids])
            yield block
            if self.mirror is not None:
                yield mirrored(block, self.mirror)


def streamed_motions(
    shapes: Sequence[Float[np.ndarray, "vertex 3"]],
    goal: Float[np.ndarray, "vertex 3"],
    weights: Float[np.ndarray, " vertex"],
    mirror: Int[np.ndarray, " vertex"] | None,
    rounds: int = 3,
) -> list[Similarity]:
    """Rigid motions of many shapes onto their own mean, starting from a goal, with one shape in memory at a time."""
    mean, motions = goal, []
    for _ in range(rounds):
        motions, total = [], np.zeros_like(goal)
        for shape in shapes:
            motions.append(similarity(np.asarray(shape, float), mean, weights, scaled=False))
            total += motions[-1](np.asarray(shape, float))
        mean = total / len(shapes)
        if mirror is not None:
            mean = (mean + mirrored(mean[None], mirror)[0]) / 2
        mean = similarity(mean, goal, weights, scaled=False)(mean)
    return motions


def expression_deltas(
    expressive: Sequence[Float[np.ndarray, "vertex 3"]],
    neutral: Float[np.ndarray, "scan vertex 3"],
    template: MorphableModel,
    weights: Float[np.ndarray, " vertex"],
    scaled: bool = False,
) -> Float[np.ndarray, "scan vertex 3"]:
    """How expressive scans differ from the same people's neutral ones (aligned already), mm.

    Aligned by what expressions leave in place: vertices count by 1 / (1 + e²), where e is how far, in mm, the
    template's expressions move them as a root mean square.
    """
    moved = np.asarray(template.expression, float)
    still = weights
    if moved.shape[-1]:
        still = weights / (1 + (moved**2).sum(axis=1).mean(axis=1))
    return np.stack([similarity(x, n, still, scaled)(x) - n for x, n in zip(expressive, neutral, strict=True)])


def expression_units(
    names: Sequence[str],
    deltas: Float[np.ndarray, "scan vertex 3"],
    seen: Bool[np.ndarray, "scan vertex"],
) -> Units:
    """Blendshapes: the mean of each name's scans at each vertex, over those that show it, or over all if none does."""
    unique = tuple(dict.fromkeys(names))
    of = np.array([unique.index(name) for name in names])
    out = np.zeros((*deltas.shape[1:], len(unique)))
    for k in range(len(unique)):
        weight = np.where(seen[of == k], 1.0, 0.0)
        weight[:, weight.sum(axis=0) == 0] = 1.0
        out[..., k] = np.einsum("sv,svc->vc", weight / weight.sum(axis=0), deltas[of == k])
    return Units(unique, out, np.bincount(of))


def albedo_space(
    colours: Float[np.ndarray, "shape vertex 3"],
    template: MorphableModel,
    mirror: Int[np.ndarray, " vertex"] | None,
    rank: int | None = None,
) -> GaussianBasis:
    """The basis of sRGB-encoded vertex colours, NaN where a scan has none (six shapes or more to fill them).

    On vertices that fewer than half of the scans colour, a person's difference from the template's mean continues that
    of the surface beside them (the harmonic field); pieces of which nothing is seen, such as teeth, keep the mean.
    """
    seen: np.ndarray = np.asarray(np.isfinite(colours).all(axis=2))
    often: np.ndarray = np.asarray(seen.mean(axis=0) >= 0.5)
    if not often.any() or len(colours) < 2:
        raise BuildError(
            f"colours: got {len(colours)} coloured scans that share no part of the face, expected two or more."
        )
    own = np.asarray(template.albedo.mean, float)
    counts = np.maximum(seen.sum(axis=0), 1)[:, None]
    mean = np.where(seen[..., None], colours, 0.0).sum(axis=0) / counts
    filled = np.where(seen[..., None], colours, mean)
    partly = seen[:, often]
    if len(colours) >= 6 and not partly.all():
        filled[:, often] = probabilistic_components(filled[:, often], partly, max(1, len(colours) // 3)).completed
    filled = np.clip(own + _continued(filled - own, often, template), 0, 1)
    if mirror is None:
        components = principal_components(filled, rank)
    else:
        components = symmetric_components(filled, mirror, rank, signs=(1.0, 1.0, 1.0))
    return components.basis


def _continued(
    fields: Float[np.ndarray, "shape vertex 3"], known: Bool[np.ndarray, " vertex"], template: MorphableModel
) -> Float[np.ndarray, "shape vertex 3"]:
    """Fields that are known on a part of the surface, harmonic on the rest of each piece, 0 where nothing is known."""
    triangles = np.asarray(template.triangles)
    laplacian = cotangent_laplacian(np.asarray(template.mean, float), triangles)
    stiffness = sp.csc_matrix(laplacian.stiffness)
    _, piece = sp.csgraph.connected_components(stiffness, directed=False)
    free = ~known & (np.bincount(piece, known)[piece] > 0)
    out = np.where(known[:, None], fields, 0.0)
    if free.any():
        values = np.moveaxis(out[:, known], 0, 1).reshape(int(known.sum()), -1)
        right = -np.asarray(stiffness[free][:, known] @ values)
        found = splu(sp.csc_matrix(stiffness[free][:, free] + 1e-9 * sp.eye(int(free.sum())))).solve(right)
        out[:, free] = np.moveaxis(found.reshape(int(free.sum()), len(fields), 3), 0, 1)
    return out


def regressed_joints(template: MorphableModel, components: PrincipalComponents) -> GaussianBasis:
    """The template's joints in a new identity space: the same linear function of the vertices as in the template.

    The head is first explained by the template's own modes, whose joints are known (posterior mean at
    `JOINT_NOISE_MM`); what these leave moves a joint as it moves the vertices around its nearest one.
    """
    if template.rig is None:
        raise BuildError("regressed_joints: the template has no rig.")
    mean, modes = np.asarray(template.mean, float), np.asarray(template.shape.modes, float)
    joints = np.asarray(template.rig.joints.mean, float)
    moves = np.asarray(template.rig.joints.modes, float)
    rank = modes.shape[-1]
    flat = modes.reshape(mean.size, rank)
    # Neighbouring vertices err together: as many independent ones count as there are modes to find, tenfold.
    noise = JOINT_NOISE_MM**2 * max(1.0, len(mean) / (10.0 * max(rank, 1)))
    gram = flat.T @ flat + noise * np.eye(rank)
    near = np.empty((len(joints), len(mean)))
    for j, joint in enumerate(joints):
        nearest = mean[np.linalg.norm(mean - joint, axis=1).argmin()]
        near[j] = np.exp(-((mean - nearest) ** 2).sum(axis=1) / (2 * JOINT_REACH_MM**2))
    near /= near.sum(axis=1, keepdims=True)

    def displacement(values: np.ndarray) -> np.ndarray:  # (vertex, 3, k) -> (joint, 3, k)
        c = np.linalg.solve(gram, flat.T @ values.reshape(mean.size, -1))
        left = values - (flat @ c).reshape(values.shape)
        return moves @ c + np.einsum("jv,vck->jck", near, left)

    new_mean = joints + displacement((components.mean - mean)[..., None])[..., 0]
    return GaussianBasis(jnp.asarray(new_mean, float), jnp.asarray(displacement(components.modes), float))


def residual_fields(
    template: MorphableModel, components: PrincipalComponents, generalisation: Curve | None
) -> Float[np.ndarray, "vertex mode"]:
    """Scalar modes (mm) for what the scans do not span, at the deviation that leaving each scan out shows.

    The template's own fields, or smooth ones where it has none, scaled so that they move a vertex as far as the
    reconstructions of left-out scans miss it, in the root mean square.
    """
    fields = np.asarray(template.residual, float)
    if fields.shape[1] == 0:
        shown = components.weights > 2 * LEAST_WEIGHT
        fields = laplacian_modes(components.mean, np.asarray(template.triangles), shown, RESIDUAL_MODES)
    if generalisation is None or len(generalisation.value) == 0:
        return fields
    share = components.weights / components.weights.sum()
    own = np.sqrt(3 * share @ (fields**2).sum(axis=1))
    missed = RMS_OF_MEAN * float(generalisation.value[-1])
    return fields * (missed / own) if own > 0 else fields
