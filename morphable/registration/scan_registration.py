"""Registration of a model's template to a face scan or to another model's mesh."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from morphable.mesh import Mesh
from morphable.model import MorphableModel
from morphable.registration.alignment import AlignmentError, Similarity, similarity
from morphable.registration.correspondence import SurfaceMap, surface_map
from morphable.registration.gaussian_process import (
    DeformationProcess,
    Marks,
    SurfaceFit,
    SurfaceFitSettings,
    fit_surface,
)
from morphable.registration.nonrigid_icp import NonrigidSettings, nonrigid_icp
from morphable.registration.target import TargetSurface, outward_normals
from morphable.registration.template import Template

_FRONT_MM = 75.0  # around the nose: what a start without landmarks looks at
_FEW = 8  # modes of its rough face
_MISS_MM, _LOST_MM = 15.0, 6.0  # what a point without counterpart counts; mean distance that is no face
_TURNED = np.deg2rad(40)  # a face turned farther than this does not look along +z
_SEARCH = SurfaceFitSettings(rounds=12, reach=(60.0, 15.0), robust=(25.0, 5.0), facing=0.3, points=500)


class RegistrationError(ValueError):
    """A target that the template was not brought onto: what, got, expected, remedy."""


@dataclass(frozen=True)
class RegistrationSettings:
    """How a template is registered. Lengths in mm."""

    landmark_sigma: float = 1.0  # of a landmark's place, the template's definition of it included
    jaw_sigma: float = 2.0  # of the 17 jaw points, which annotators place by the outline
    surface: SurfaceFitSettings = SurfaceFitSettings()
    nonrigid: NonrigidSettings = NonrigidSettings(stiffness=(15.0, 9.0, 6.0))  # the process has done the rest
    matched: float = 3.0  # a template vertex farther from the target has no counterpart
    refused: float = 3.0  # median distance of the drawn vertices within 20 mm, above which a target is refused
    least_matched: float = 0.1  # share of the drawn vertices with a counterpart, below which a target is refused


@dataclass(frozen=True, eq=False)
class Registration:
    """Where a template came to lie on a target."""

    similarity: Similarity  # the model's head space (mm) -> target
    coefficients: Float[np.ndarray, " rank"]  # identity, in standard deviations; none with the kernel prior
    vertices: Float[np.ndarray, "vertex 3"]  # the template's, in the target's coordinates
    distance: Float[np.ndarray, " vertex"]  # to the target, mm of head space; NaN where there is no counterpart
    matched: Bool[np.ndarray, " vertex"]  # has a true counterpart on the target
    triangles: Int[np.ndarray, "triangle 3"]  # of the registered surface, the skin


def register(
    model: MorphableModel | Template,
    target: Mesh | tuple[np.ndarray, np.ndarray],
    landmarks: Float[np.ndarray, "mark 3"] | None = None,
    *,
    start: Similarity | None = None,
    scaled: bool | None = None,
    settings: RegistrationSettings = RegistrationSettings(),
) -> Registration:
    """The template of a model, brought onto a target surface with its vertices in correspondence.

    In stages: a similarity from landmarks; the posterior of the template's Gaussian process given landmarks and closest
    points (`fit_surface`), which decides what corresponds to what; a non-rigid ICP for the remaining distance
    (`nonrigid_icp`). A `Template` made once serves many targets.

    landmarks: the 68 iBUG points on the target, NaN rows unknown. Without them, and without a start, the target must be
        a face in mm that looks along +z with y up, as published models' means do.
    start: model's head space -> target, in place of the landmarks' similarity.
    scaled: whether the target's scale is free; as default it is with landmarks or a start, and not without.
    Raises RegistrationError where the template does not come to lie on the target.
    """
    # BLAS's own threads spin between these many small products; on busy cores that took four times as long.
    with threadpool_limits(1, user_api="blas"):
        template = model if isinstance(model, Template) else Template.of(model)
        return _registered(template, target, landmarks, start, scaled, settings)


def _registered(template: Template, target, landmarks, start, scaled, settings: RegistrationSettings) -> Registration:
    vertices, triangles = _surface(target)
    free = (landmarks is not None or start is not None) if scaled is None else scaled
    if landmarks is not None and landmarks.shape != (68, 3):
        raise RegistrationError(
            f"landmarks: got shape {landmarks.shape}, expected (68, 3), iBUG's order, NaN rows for unknown points. "
            "Fill the array with NaN and set the rows that you know."
        )
    if start is None:
        start = _start(template, vertices, triangles, landmarks, free)
    # All stages run in the template's frame: their lengths are mm, whatever the target's unit.
    back = start.inverse()
    surface = TargetSurface(back(vertices), triangles)
    marks = None
    if landmarks is not None:
        sigma = np.r_[np.full(17, settings.jaw_sigma), np.full(51, settings.landmark_sigma)]
        marks = Marks(template.corners, template.weights, back(np.asarray(landmarks, float)), sigma)
    fit = fit_surface(
        template.process,
        template.triangles,
        template.pull,
        surface,
        SurfaceFit(Similarity.identity(), np.zeros(template.process.rank)),
        marks,
        # Without modes the fields say how large a head is; a free scale as well would drift against them.
        free and template.identity_rank > 0,
        settings.surface,
    )
    placed = fit.similarity(template.process.instance(fit.coefficients))
    lying = nonrigid_icp(placed, template.triangles, surface, template.pull, marks, settings.nonrigid)
    lying = template.carry(placed, lying)
    normals = outward_normals(lying, template.triangles)
    drawn = np.flatnonzero(template.pull > 0)
    found = surface.match(lying[drawn], normals[drawn], 20.0, 0.5, exact=True)
    apart = np.linalg.norm(found.points - lying[drawn], axis=1)
    _refuse_far(apart, found.valid, settings)
    matched = np.zeros(len(lying), bool)
    matched[drawn] = found.valid & (apart < settings.matched)
    distance = np.full(len(lying), np.nan)
    distance[drawn] = apart
    distance[~matched] = np.nan
    return Registration(
        similarity=start @ fit.similarity,
        coefficients=fit.coefficients[: template.identity_rank],
        vertices=start(lying),
        distance=distance,
        matched=matched,
        triangles=template.triangles,
    )


def carry(registration: Registration, target: Mesh | tuple[np.ndarray, np.ndarray]) -> SurfaceMap:
    """For each target vertex its place on the registered template's skin; the distance is in the target's unit.

    `carry(registration, target)(values)` takes the template's masks, albedo or displacements to the target; for the way
    back, `surface_map(registration.vertices, *target)`.
    """
    vertices, _ = _surface(target)
    return surface_map(vertices, registration.vertices, registration.triangles)


def _start(template: Template, vertices, triangles, landmarks, scaled: bool) -> Similarity:
    """From landmarks where there are some; else as faces that look along +z, y up, in mm."""
    if landmarks is None:
        return facing_start(template, vertices, triangles)
    own = np.einsum("lk,lkc->lc", template.weights, template.process.mean[template.corners])
    weights = np.r_[np.full(17, 0.1), np.ones(51)]
    try:
        start = similarity(own, landmarks, weights, scaled)
    except AlignmentError as error:
        raise RegistrationError(f"landmarks: {error}") from error
    known = np.isfinite(landmarks).all(axis=1)
    apart = np.linalg.norm(start.inverse()(landmarks[known]) - own[known], axis=1)
    if np.median(apart) > 15:
        raise RegistrationError(
            f"landmarks: got a median distance of {np.median(apart):.0f} mm from the template's after alignment, "
            "expected a few mm. Are they in iBUG's order, in the mesh's coordinates, and the mesh no mirror image?"
        )
    return start


def facing_start(
    template: Template, vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]
) -> Similarity:
    """Rigid motion of the template to a face in mm that looks along +z with y up: the best of several short ICPs.

    They start with nose tip on foremost point, of the whole target and of bands of its height, as a cap's peak or a
    chin may be in front of the nose, and with the head level, raised or bowed; the mean's form follows roughly.
    """
    process = template.process
    drawn = process.mean[template.pull > 0]
    tip = _noses(drawn)[0]
    pull = template.pull * (np.linalg.norm(process.mean - tip, axis=1) < _FRONT_MM)
    few = process.modes.shape[2]
    smooth = 0 if few else _FEW
    process = DeformationProcess(
        process.mean, process.modes[..., :_FEW], process.fields[:, :smooth], process.spread[:, :smooth]
    )
    surface = TargetSurface(vertices, triangles)
    noses = _noses(vertices[np.unique(triangles)])
    best, least = None, np.inf
    for nose in noses:
        for pitch in np.deg2rad([-15.0, 0.0, 15.0]):
            c, s = np.cos(pitch), np.sin(pitch)
            rotation = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
            start = SurfaceFit(Similarity(1.0, rotation, nose - rotation @ tip), np.zeros(process.rank))
            fit = fit_surface(process, template.triangles, pull, surface, start, None, False, _SEARCH)
            shape = process.instance(fit.coefficients)
            normals = outward_normals(shape, template.triangles)[pull > 0]
            found = surface.match(fit.similarity(shape[pull > 0]), fit.similarity.turn(normals), _MISS_MM, 0.5)
            misfit = np.where(found.valid, np.abs(found.distance), _MISS_MM).mean()
            if np.trace(fit.similarity.rotation) < 1 + 2 * np.cos(_TURNED):
                continue
            if misfit < least:
                best, least = fit.similarity, misfit
    if best is None or least > _LOST_MM:
        raise RegistrationError(
            f"target: got a mean distance of {least:.1f} mm between its front and a mean face, expected less than "
            f"{_LOST_MM:.0f} mm. Without landmarks a face must look along +z, y up, in mm; or give landmarks."
        )
    return best


def _noses(points: Float[np.ndarray, "point 3"]) -> Float[np.ndarray, "nose 3"]:
    """Where a nose's tip may be: the foremost central point, and those of bands of the height."""
    middle = (points[:, 0].min() + points[:, 0].max()) / 2
    central = points[np.abs(points[:, 0] - middle) < 35]
    if len(central) == 0:
        central = points
    low, high = central[:, 1].min(), central[:, 1].max()
    share = (central[:, 1] - low) / max(high - low, 1e-9)
    bands = [(0.0, 1.0), (0.2, 0.8), (0.35, 0.65), (0.4, 0.9), (0.1, 0.6)]
    inside = [central[(share >= a) & (share <= b)] for a, b in bands]
    noses = np.stack([x[x[:, 2].argmax()] for x in inside if len(x)])
    _, first = np.unique(noses, axis=0, return_index=True)
    return noses[np.sort(first)]


def _refuse_far(apart, valid, settings: RegistrationSettings) -> None:
    near = apart[valid]
    if len(near) < settings.least_matched * len(valid):
        raise RegistrationError(
            f"target: got counterparts for {len(near)} of the template's {len(valid)} drawn vertices, expected "
            f"{settings.least_matched:.0%} or more. Do the landmarks belong to this mesh, and do its triangles face "
            "outwards?"
        )
    if np.median(near) > settings.refused:
        raise RegistrationError(
            f"target: got a median distance of {np.median(near):.1f} mm to the template, expected less than "
            f"{settings.refused:g} mm. Is it a face? Give landmarks, or check those given."
        )


def _surface(target: Mesh | tuple[np.ndarray, np.ndarray]):
    vertices, triangles = (target.vertices, target.triangles) if isinstance(target, Mesh) else target
    vertices, triangles = np.asarray(vertices, float), np.asarray(triangles)
    fits = vertices.ndim == 2 and vertices.shape[1] == 3 and triangles.ndim == 2 and triangles.shape[1] == 3
    if not fits or len(triangles) == 0 or triangles.min() < 0 or triangles.max() >= len(vertices):
        raise RegistrationError(
            f"target: got vertices {vertices.shape} and triangles {triangles.shape}, expected (vertex, 3) and one or "
            "more triangles (triangle, 3) of their indices. Point clouds must be triangulated first."
        )
    if not np.isfinite(vertices[np.unique(triangles)]).all():
        raise RegistrationError(
            "target: got triangles with corners that are not finite, expected a place for each. Leave them out."
        )
    return vertices, triangles
