"""From a photo and its landmarks to a face: set up the problem, run the plan, report."""

import copy
import dataclasses
import functools
import logging
import time
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

import fitting.compilation as compilation
from fitting.detection import UNSURE_SPREAD, Face, LandmarkNoise
from fitting.energies import LandmarkTerm, SightedRotation
from fitting.landmark_conventions import shared_errors
from fitting.landmark_start import LandmarkFitError, pose_hypotheses, weak_perspective_pose
from fitting.observation import Photo, crop
from fitting.occlusion import DETECTOR_NOISE, Labels, OcclusionModel, occlusion_model
from fitting.outline import OutlineModel, outline_model
from fitting.parameters import FaceParameters, start_parameters
from fitting.schedule import Problem, Stage, coarse_to_fine, run_hypotheses, run_segments, run_stage, stage_terms
from fitting.sighting import Sighting
from fitting.solvers import Solution
from fitting.surface_samples import PointBasis, SolverModel, point_basis, solver_model
from fitting.terms import Terms, WeightedTerm
from morphable.landmarks import INNER
from morphable.mesh import Mesh
from morphable.model import MorphableModel
from renderer.camera import Pinhole

log = logging.getLogger("facefit")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Numbers of a fit that are not the plan. Lengths in mm at the face, colours sRGB-encoded in [0, 1]."""

    image_size: int = 256  # side of the square crop that is fitted
    crop_factor: float = 1.7  # side of the crop over the larger side of the landmarks' box
    blur_px: tuple[float, ...] = (3.0, 1.5)  # of the pyramid's levels, in pixels of the crop
    skin_blocks: int = 8  # of 512 skin samples that are prepared
    jaw_along_mm: float = 15.0  # how freely jaw points slide
    # Of blendshape weights near 0; principal components of expression have the prior N(0, 1) instead ...
    expression_sigma: float = 0.15
    expression_cutoff: float = 0.5  # ... beyond so many deviations the cost is linear: most units rest, a few move far
    photometric_sigma: float = 0.4  # for 2000 samples
    photometric_cutoff: float = 0.1  # residuals beyond it count as outliers
    saturation: float = 0.93  # pixels brighter than this say nothing
    offset_sigma: float = 0.05  # of the colour offset, linear RGB
    focal_over_size: float = 1.4  # prior on the focal length, over the photo's longer side ...
    focal_sigma: float = 0.5  # ... and its logarithm's deviation
    known_focal_sigma: float = 0.01  # when the focal length is given
    exif_focal_sigma: float = 0.1  # when EXIF states it, as the photo may have been cropped
    distance_mm: float = 1000.0  # prior on the distance between camera and head ...
    distance_sigma: float = 0.5  # ... and its logarithm's deviation
    failed_mm: float = 12.0  # median error of the inner landmarks above which a fit has failed
    failed_sigma: float = 2.0  # rms of the identity's coefficients above which no person looks so
    failed_doubt: float = 1.4  # spread over UNSURE_SPREAD, times the root of misfit over usual_energy; see _doubt
    usual_energy: float = 15.0  # landmarks, jaw, identity and expression together, of a good fit to dlib's points
    restart_energy: float = 0.75  # the same energy for each landmark, above which other starts are tried
    # A network's points are wrong together, so in the fit each is less sure than it says: iBUG's by as much as dlib's
    # are, and the hundreds between them, which mostly follow from those, so many times (docs/landmark_network.md).
    sighting_inner_mm: float = 3.5
    sighting_jaw_mm: float = 2.5
    dense_inflation: float = 20.0
    # What the network says of the head's rotation is wrong by so many degrees about each axis, times its doubt.
    sighting_rotation_deg: float = 180.0


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted face. Pixels are those of the original photo, centres at +0.5; lengths are mm in head space."""

    model: MorphableModel
    camera: Pinhole  # with its pose T_camera_head
    identity: Float[np.ndarray, " identity"]
    expression: Float[np.ndarray, " unit"]
    albedo: Float[np.ndarray, " albedo"]
    light: Float[np.ndarray, "9 3"]
    detected: Float[np.ndarray, "68 2"]
    source: str  # of the landmarks
    result: str  # "converged", "steps exhausted" or "failed"
    reason: str  # why it failed, else ""
    energies: dict[str, float]
    stages: list[dict]
    timings: dict[str, float]  # seconds
    settings: Settings
    hessian: Float[np.ndarray, "step step"] | None = dataclasses.field(repr=False)  # None if the last solver has none
    # What was solved last, for a look inside: the crop with all observations, the solution in its pixels, the stage.
    problem: Problem | None = dataclasses.field(default=None, repr=False)
    parameters: FaceParameters | None = dataclasses.field(default=None, repr=False)
    stage: Stage | None = None
    correction: Float[np.ndarray, "vertex 3"] | None = dataclasses.field(default=None, repr=False)  # of the neutral, mm
    labels: Labels | None = dataclasses.field(default=None, repr=False)  # what covers the face, in the crop

    @property
    def person(self) -> MorphableModel:
        """The model as this fit leaves it for this person: its mean moved by what no coefficient says."""
        if self.correction is None:
            return self.model
        return eqx.tree_at(lambda m: m.shape.mean, self.model, self.model.shape.mean + self.correction)

    @property
    def inside(self) -> tuple[Problem, FaceParameters, Stage]:
        """What was solved last: the problem, its solution, the stage. Raises ValueError for a fit made by hand."""
        if self.problem is None or self.parameters is None or self.stage is None:
            raise ValueError("inside: this fit was not made by a Fitter, expected one that was. Run Fitter.fit.")
        return self.problem, self.parameters, self.stage

    def uncovered(
        self, mask: Bool[np.ndarray, "height width"] | None = None
    ) -> Bool[np.ndarray, "height width"] | None:
        """Where the photo may be used: `mask`, without what the fit has labelled as covering the face; None for all."""
        if self.labels is None or not self.labels.found:
            return mask
        problem, face, _ = self.inside
        zoom = float(jnp.exp(face.log_focal)) / float(self.camera.focal[0])  # crop pixels per pixel of the photo
        corner = np.asarray(self.camera.centre) - np.asarray(problem.centre) / zoom
        usable = np.ones((self.camera.height, self.camera.width), bool) if mask is None else mask.copy()
        size = len(self.labels.face_probability)
        rows, columns = (
            np.floor((np.arange(n) + 0.5 - c) * zoom).astype(int)
            for n, c in ((self.camera.height, corner[1]), (self.camera.width, corner[0]))
        )
        inside_rows, inside_columns = (np.flatnonzero((k >= 0) & (k < size)) for k in (rows, columns))
        hidden = self.labels.face_probability[np.ix_(rows[inside_rows], columns[inside_columns])] < 0.5
        usable[np.ix_(inside_rows, inside_columns)] &= ~hidden
        return usable

    def terms(self) -> dict[str, WeightedTerm]:
        """The energy terms of the last stage, about the fitted face; those the stage leaves out weigh nothing."""
        problem, face, stage = self.inside
        return stage_terms(problem, face, dataclasses.replace(stage, relight=False).row(problem))[0]

    def _vertices(self, expression) -> Float[np.ndarray, "vertex 3"]:
        return np.asarray(_shape(self.person, jnp.asarray(self.identity), jnp.asarray(expression)))

    @property
    def vertices(self) -> Float[np.ndarray, "vertex 3"]:
        """With identity and expression, before pose."""
        return self._vertices(self.expression)

    @property
    def neutral_vertices(self) -> Float[np.ndarray, "vertex 3"]:
        """With identity only."""
        return self._vertices(np.zeros_like(self.expression))

    @property
    def landmarks3d(self) -> Float[np.ndarray, "68 3"]:
        """iBUG-68 on `vertices`, the jaw's on the mandible's border (`MorphableModel.landmarks3d`)."""
        return np.asarray(self.model.landmarks3d(jnp.asarray(self.vertices)))

    @property
    def neutral_landmarks3d(self) -> Float[np.ndarray, "68 3"]:
        """The same on `neutral_vertices`."""
        return np.asarray(self.model.landmarks3d(jnp.asarray(self.neutral_vertices)))

    @property
    def landmarks2d(self) -> Float[np.ndarray, "68 2"]:
        """`landmarks3d` in the photo, hidden ones, too."""
        return np.asarray(self.camera.project(jnp.asarray(self.landmarks3d)))

    @property
    def matched2d(self) -> Float[np.ndarray, "68 2"]:
        """The model's points in the photo that stand for `detected`: of the jaw those on a frontal face's outline."""
        return np.asarray(self.camera.project(self.model.landmarks(jnp.asarray(self.vertices))))

    @property
    def misfit(self) -> float:
        """What the landmarks cost: the energy left in them, and spent on a face that is unlike the mean."""
        return sum(self.energies.get(name, 0.0) for name in GEOMETRY)

    @property
    def mesh(self) -> Mesh:
        """The head with expression, before pose, with the model's albedo."""
        return self.person.instance(jnp.asarray(self.identity), jnp.asarray(self.expression), jnp.asarray(self.albedo))


_RELINEARISE = 3  # times that a fit of a multilinear model is solved again in its tangent
_NO_CUTOFF = 100.0  # deviations; an infinite one has no derivative
GEOMETRY = ("landmarks", "jaw", "dense", "identity", "expression")  # terms that tell whether landmarks make a face

Progress = Callable[[Stage, int, int, dict], None]  # stage, its number, how many there are, its record


# Compiled as one: operation by operation the skeleton alone would take dozens of small programs.
@eqx.filter_jit
def _shape(model: MorphableModel, identity, expression):
    return model.vertices(identity, expression)


class Fitter:
    """A model made ready for fitting; the first fit compiles (or reads the compilation cache), the rest are fast."""

    def __init__(self, model: MorphableModel, settings: Settings | None = None):
        compilation.enable_cache()
        self.model = model
        self.settings = settings or Settings()
        self.solver_model: SolverModel = solver_model(model, self.settings.skin_blocks)
        self.relinearise = 0 if model.interaction is None else _RELINEARISE
        self._dense: tuple | None = None  # of the last network's points
        self._folded: Callable[[PointBasis], PointBasis] = lambda basis: basis  # from the whole model's unknowns

    @functools.cached_property
    def occlusion(self) -> OcclusionModel:
        """What looks for things in front of the face; made for the first plan that asks for it."""
        return occlusion_model(self.model, self.solver_model)

    @functools.cached_property
    def outlines(self) -> OutlineModel:
        """What finds the head's outline in photos; made for the first set of photos."""
        return outline_model(self.model)

    def with_offsets(self, landmark_offsets: Float[np.ndarray, "68 3"]) -> "Fitter":
        """A fitter that expects landmarks so far (mm, head axes) from the model's own: see `fitting.landmark_offsets`.

        For further photos of a person whose landmarks came from the same detector or annotator.
        """
        other = copy.copy(self)
        moved = self.solver_model.landmarks.mean + jnp.asarray(landmark_offsets, jnp.float32)
        other.solver_model = eqx.tree_at(lambda m: m.landmarks.mean, self.solver_model, moved)
        return other

    def of_person(self, model: SolverModel, folded: Callable[[PointBasis], PointBasis]) -> "Fitter":
        """A fitter of fewer unknowns: `model` has them, and `folded` makes their basis from one of the whole model."""
        other = copy.copy(self)
        other.solver_model, other._folded, other._dense = model, folded, None
        return other

    def fit(
        self,
        photo: Photo,
        face: Face,
        stages: tuple[Stage, ...] | None = None,
        focal_px: float | None = None,
        mask: Bool[np.ndarray, "height width"] | None = None,
        progress: Progress | None = None,
        start: FaceParameters | None = None,
        terms: Terms | Callable[[Problem], Terms] | None = None,
        centre_px: Float[np.ndarray, "2"] | None = None,
    ) -> Fit:
        """Fit one face of a photo. `mask` is true where the photo may be used; `focal_px` and the principal point
        `centre_px`, the photo's middle unless given, are in photo pixels.

        `start` resumes from the `parameters` of an earlier fit of this face. `terms` are more energy terms, by names
        that stages can leave out, or a function that makes them from the problem, whose pixels are those of the crop.

        Raises LandmarkFitError where the landmarks give no pose; everything later is reported in `Fit.result`.
        """
        began = time.perf_counter()
        stages = coarse_to_fine() if stages is None else stages
        if not stages:
            raise ValueError("fit: got an empty plan, expected at least one stage; see coarse_to_fine().")
        whole = [stage.segments is None for stage in stages]
        if not any(whole):
            raise ValueError("fit: got a plan of segments alone, expected a stage of the whole face before them.")
        if whole != sorted(whole, reverse=True):
            raise ValueError(
                "fit: got a stage of the whole face after one of segments, which refine the face before it. "
                "Put segments last."
            )
        problem, first, box = self.problem(photo, face, focal_px, mask, centre_px)
        if terms is not None:
            own = dict(terms(problem) if callable(terms) else terms)
            problem = dataclasses.replace(problem, extra={**problem.extra, **own})
        parameters = first if start is None else start
        for stage in stages:
            stage.row(problem)  # a mistake in the last stage shows before the first has run
        noise = 1.0 if face.source == "file" else DETECTOR_NOISE
        ready = time.perf_counter()
        records, solution, last, correction = [], None, stages[0], None
        bare, labels = problem, None
        # LAPACK's own threads spin between the small factorisations and take the cores that XLA needs.
        with threadpool_limits(1, user_api="blas"):
            for number, stage in enumerate(stages):
                if stage.label and (labels is None or labels.found):
                    earlier = [] if labels is not None or start is not None else stages[:number]
                    problem, parameters, labels = self._label(bare, first, parameters, earlier, noise)
                if stage.segments is not None:
                    correction = np.asarray(run_segments(problem, parameters, stage).correction(self.model))
                    continue
                solution, last = run_stage(problem, parameters, stage), stage
                finite = bool(solution.finite)
                records.append(_record(stage, solution))
                if progress is not None:
                    progress(stage, number, len(stages), records[-1])
                if not finite:
                    break
                parameters = solution.face
                following = next((s for s in stages[number + 1 :] if s.segments is None), None)
                if not stage.photometric and (following is None or following.photometric) and start is None:
                    better = self._restart(problem, first, face, box, stages[: number + 1], solution)
                    if better is not None:
                        solution, parameters = better, better.face
                        records.append(_record(dataclasses.replace(stage, name="other starts"), better))
        assert solution is not None  # there is a stage of the whole face
        done = time.perf_counter()
        fit = self._report(
            photo,
            face,
            box,
            parameters,
            solution,
            records,
            {"prepare": ready - began, "solve": done - ready},
            centre_px,
        )
        fit = dataclasses.replace(
            fit,
            problem=problem,
            parameters=parameters,
            stage=last,
            correction=correction,
            labels=labels,
        )
        if self.relinearise == 0 or not bool(solution.finite):
            return fit
        final = tuple(s for s in stages if s is last or s.segments is not None)
        return self._about(fit).fit(photo, face, final, focal_px, mask, progress, parameters, terms, centre_px)

    def _about(self, fit: Fit) -> "Fitter":
        """A fitter for the tangent of a multilinear model at a fit.

        The solver's geometry is linear. A multilinear model's first fit takes the expressions of the mean identity;
        from it, one more in the tangent there is a Gauss-Newton step of the whole problem, solved to its end.
        """
        other = copy.copy(self)
        tangent = self.model.linearised(jnp.asarray(fit.identity), jnp.asarray(fit.expression))
        other.solver_model = solver_model(tangent, self.settings.skin_blocks)
        other.relinearise = self.relinearise - 1
        return other

    def problem(self, photo: Photo, face: Face, focal_px=None, mask=None, centre_px=None):
        """The problem of one face: crop, pyramid, noise in pixels, priors; the closed-form start; the crop's box."""
        points = np.asarray(face.landmarks, float)
        known = np.asarray(np.isfinite(points).all(axis=1))
        if known.sum() < 6:
            raise LandmarkFitError(
                f"fit: got {known.sum()} finite landmarks, expected at least 6 of 68. "
                "Give more points with --landmarks, or a photo that shows more of the face."
            )
        box = self.crop_box(points[known])
        if face.sighting is None:
            start = weak_perspective_pose(np.asarray(self.solver_model.landmarks.mean), points)
        else:
            start = face.sighting.rotation, face.sighting.px_per_mm, face.sighting.origin
        problem, first = self.framed(photo, box, start, points, face.noise, focal_px, mask, centre_px)
        if face.sighting is not None:
            problem = self._with_sighting(problem, face.sighting, box)
            first = dataclasses.replace(
                first,
                identity=jnp.asarray(face.sighting.identity[: self.solver_model.identity_rank], jnp.float32),
                expression=jnp.clip(jnp.asarray(face.sighting.expression, jnp.float32), *self.solver_model.limits),
            )
        return problem, first, box

    def _with_sighting(self, problem: Problem, sighting: Sighting, box: Float[np.ndarray, "4"]) -> Problem:
        """The problem with a network's points: iBUG's inner ones and seen jaw as landmarks, all others as term "dense".

        Visible jaw points may slide along the jaw line as other detectors' do. Hidden ones are points of the surface to
        the network, not of the outline, so they do not stand for it. What it says of the head's rotation, which it sees
        in more than points, is the term "rotation".
        """
        s = self.settings
        zoom = s.image_size / box[2]
        basis, still = self._dense_basis(sighting)
        known = np.asarray(np.isfinite(sighting.points).all(axis=1))
        pixels = (np.where(known[:, None], sighting.points, 0.0) - box[:2]) * zoom
        sigma = np.where(known, zoom * sighting.sigma, np.inf)
        named = np.zeros(len(sigma), bool)
        named[INNER] = True
        named[:17] = sighting.visible[:17] > 0.5
        mm = zoom * sighting.px_per_mm * np.r_[np.full(17, s.sighting_jaw_mm), np.full(51, s.sighting_inner_mm)]
        own = np.where(named[:68], np.hypot(sigma[:68], mm), np.inf)
        dense = np.where(named | ~still, np.inf, s.dense_inflation * sigma)
        rest = np.ones(len(sigma), bool)
        rest[INNER] = False  # the jaw's stay: which of them are hidden changes from photo to photo
        single = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
        along = np.maximum(own[:17], zoom * sighting.px_per_mm * s.jaw_along_mm)
        term = LandmarkTerm(
            PointBasis(basis.mean[rest], basis.modes[rest]), single(pixels[rest]), single(dense[rest]), problem.centre
        )
        rotation = SightedRotation(
            jaxlie.SO3.from_matrix(single(sighting.rotation)),
            single((sighting.square.centre - box[:2]) * zoom),
            problem.centre,
            single(np.deg2rad(s.sighting_rotation_deg) * sighting.doubt),
        )
        extra = {**problem.extra, "dense": term, "rotation": rotation}
        return dataclasses.replace(problem, sigma_px=single(own), sigma_along_px=single(along), extra=extra)

    def _dense_basis(self, sighting: Sighting) -> tuple[PointBasis, Bool[np.ndarray, " point"]]:
        """A sighting's points as a fit moves them, and which of them: what turns with the eyes does not follow."""
        vertices = np.asarray(sighting.surface.vertices)
        if self._dense is None or not np.array_equal(self._dense[0], vertices):
            names = self.model.part_names
            eyes = [i for i, name in enumerate(names) if name.startswith("eye")]
            still = ~np.isin(np.asarray(self.model.part_of_vertex)[vertices[:, 0]], eyes)
            self._dense = vertices, self._folded(point_basis(self.model, sighting.surface)), still
        return self._dense[1:]

    def framed(
        self,
        photo: Photo,
        box: Float[np.ndarray, "4"],
        start: tuple[Float[np.ndarray, "3 3"], float, Float[np.ndarray, "2"]],
        points: Float[np.ndarray, "68 2"],
        noise: LandmarkNoise,
        focal_px: float | None = None,
        mask: Bool[np.ndarray, "height width"] | None = None,
        centre_px: Float[np.ndarray, "2"] | None = None,
    ) -> tuple[Problem, FaceParameters]:
        """The problem of a face in a square crop (x0, y0, width, height) of a photo, and the face it starts at.

        `start` is a pose as of `weak_perspective_pose`; rows of `points` are NaN where no landmark is known, and may
        all be. The principal point `centre_px` is the photo's middle unless given.
        """
        s = self.settings
        rotation, scale, origin = start
        known = np.asarray(np.isfinite(points).all(axis=1))
        zoom = s.image_size / box[2]
        picture, inside = photo.crop_srgb(box, s.image_size)
        valid = inside.astype(np.float32)
        if mask is not None:
            valid = valid * crop(mask, tuple(box), s.image_size)
        pyramid = np.stack([_blurred(picture, valid, b) for b in s.blur_px])

        height, width = photo.pixels.shape[:2]
        focal, sigma = s.focal_over_size * max(height, width), s.focal_sigma
        if photo.focal_px is not None:
            focal, sigma = photo.focal_px, s.exif_focal_sigma
        if focal_px is not None:
            focal, sigma = focal_px, s.known_focal_sigma
        focal = focal * zoom
        scale = scale * zoom  # px of the crop per mm
        distance, distance_sigma = np.log(s.distance_mm), s.distance_sigma
        log_focal = np.log(focal)
        # Start where both priors agree best with the face's size in the image: focal = scale * distance.
        if sigma > s.exif_focal_sigma:
            gap = np.log(scale * s.distance_mm) - log_focal
            log_focal_start = log_focal + gap * sigma**2 / (sigma**2 + distance_sigma**2)
        else:
            log_focal_start = log_focal
        depth = np.exp(log_focal_start) / scale
        principal = np.array([width / 2, height / 2]) if centre_px is None else centre_px
        centre = (principal - box[:2]) * zoom
        offset = (origin - box[:2]) * zoom - centre
        quaternion = Rotation.from_matrix(rotation).as_quat(scalar_first=True)
        pose = jaxlie.SE3(jnp.asarray([*quaternion, *(offset / scale), depth], jnp.float32))
        sigma_mm = np.r_[np.full(17, noise.jaw_mm), np.full(51, noise.inner_mm)]
        sigma_px = np.where(known, sigma_mm * scale, np.inf)
        along = np.where(known[:17], max(s.jaw_along_mm, noise.jaw_mm) * scale, np.inf)
        local = (np.where(known[:, None], points, 0.0) - box[:2]) * zoom
        single = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
        shared = shared_errors(np.asarray(self.solver_model.landmarks.mean)[INNER]) * noise.annotated
        problem = Problem(
            model=self.solver_model,
            pyramid=single(pyramid),
            valid=single(valid),
            points_px=single(local),
            sigma_px=single(sigma_px),
            sigma_along_px=single(along),
            shared_mm=single(shared),
            centre=single(centre),
            log_focal=single([log_focal]),
            log_focal_sigma=single([sigma]),
            log_distance=single(distance),
            log_distance_sigma=single(distance_sigma),
            expression_sigma=single(1.0 if self.solver_model.gaussian_expression else s.expression_sigma),
            expression_cutoff=single(_NO_CUTOFF if self.solver_model.gaussian_expression else s.expression_cutoff),
            offset_sigma=single(s.offset_sigma),
            photometric_sigma=single(s.photometric_sigma),
            photometric_cutoff=single(s.photometric_cutoff),
            saturation=single(s.saturation),
        )
        first = start_parameters(
            self.solver_model.identity_rank,
            self.solver_model.free_units.shape[0],
            self.solver_model.albedo_rank,
            self.solver_model.limits,
        )
        return problem, dataclasses.replace(first, pose=pose, log_focal=single(log_focal_start))

    def _label(self, bare: Problem, first: FaceParameters, face: FaceParameters, earlier, noise: float):
        """The problem without what covers the face, a face that has not seen it, and the labels.

        Landmarks on what covers the face have pulled it, so the earlier stages run once more without them.
        """
        labels = self.occlusion(bare, face)
        if not labels.found or not earlier:
            return labels.applied_to(bare, noise), face, labels
        problem, again = labels.applied_to(bare, noise), first
        for stage in (s for s in earlier if s.segments is None):
            again = run_stage(problem, again, stage).face
        better = self.occlusion(bare, again)
        if not better.found:  # the first labels were what made the difference
            return bare, face, better
        return better.applied_to(bare, noise), again, better

    def _restart(self, problem: Problem, first: FaceParameters, face: Face, box, stages, solution: Solution):
        """The solution from other poses and the mean face, where the first one's energy is bad and theirs is less."""
        energies = solution.by_term(np.asarray(solution.energies))
        misfit = sum(energies.get(name, 0.0) for name in GEOMETRY)
        known = np.isfinite(face.landmarks).all(axis=1).sum()
        if face.sighting is not None:
            known = len(face.sighting.sigma)
        if bool(solution.finite) and misfit < self.settings.restart_energy * known:
            return None
        mean = np.asarray(self.solver_model.landmarks.mean)
        zoom = self.settings.image_size / box[2]
        focal, centre = float(jnp.exp(first.log_focal)), np.asarray(problem.centre)
        poses = []
        for rotation, scale, origin in pose_hypotheses(mean, np.asarray(face.landmarks, float)):
            offset = (origin - box[:2]) * zoom - centre
            where = np.r_[offset / (scale * zoom), focal / (scale * zoom)]
            poses.append((rotation, where))
        if not poses:
            return None
        rotations, places = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*poses, strict=True))
        pose = jaxlie.SE3.from_rotation_and_translation(jaxlie.SO3.from_matrix(rotations), places)
        rows = tuple(stage.row(problem) for stage in stages if stage.segments is None)
        best = run_hypotheses(problem, first, pose, rows)
        if not bool(best.finite):
            return None
        # A stage with a solver of its own does not report the terms that it leaves out: they weigh nothing.
        lower = float(jnp.sum(best.energies)) < sum(energies.get(name, 0.0) for name in best.names)
        return best if lower or not bool(solution.finite) else None

    def crop_box(self, points: Float[np.ndarray, "point 2"]) -> Float[np.ndarray, "4"]:
        """The square (x0, y0, width, height) that is fitted around some landmarks."""
        low, high = points.min(axis=0), points.max(axis=0)
        side = max(float((high - low).max()), 4.0) * self.settings.crop_factor
        # The 68 points end at the brows: the forehead lies above them.
        middle = (low + high) / 2 - [0, 0.06 * side]
        return np.r_[middle - side / 2, side, side]

    def _report(self, photo, face, box, parameters, solution, records, timings, centre_px) -> Fit:
        zoom = self.settings.image_size / box[2]
        height, width = photo.pixels.shape[:2]
        focal = float(np.exp(parameters.log_focal)) / zoom
        camera = Pinhole(
            focal=jnp.array([focal, focal]),
            centre=jnp.asarray([width / 2, height / 2] if centre_px is None else centre_px, jnp.float32),
            pose=parameters.pose,
            height=height,
            width=width,
        )
        fit = Fit(
            model=self.model,
            camera=camera,
            identity=np.asarray(parameters.identity),
            expression=np.asarray(parameters.expression),
            albedo=np.asarray(parameters.albedo),
            light=np.asarray(parameters.light),
            detected=np.asarray(face.landmarks, np.float32),
            source=face.source,
            result="converged" if records[-1]["result"] == "converged" else "steps exhausted",
            reason="",
            energies=records[-1]["energies"],
            stages=records,
            timings=timings,
            settings=self.settings,
            hessian=None if solution.hessian is None else np.asarray(solution.hessian),
        )
        finite, depth = bool(solution.finite), float(parameters.pose.translation()[2])
        reason = self._failure(fit, finite, depth, focal) or self._doubt(fit, face.spread)
        return dataclasses.replace(fit, result="failed", reason=reason) if reason else fit

    def _failure(self, fit: Fit, finite: bool, depth: float, focal: float) -> str:
        if not finite:
            return "the energy is not finite"
        if depth < 50:
            return f"the head ended {depth:.0f} mm from the camera"
        away = float(np.asarray(fit.camera.rotation)[2, 2])  # -1 for a head that faces the camera
        if away > 0.5:
            return "the head ended turned away from the camera, as when landmarks have left and right swapped"
        # Wrong landmarks can be met by a monster, or missed by little in the millimetres of an enlarged head.
        rms = float(np.sqrt(np.mean(fit.identity**2)))
        if rms > self.settings.failed_sigma:
            return (
                f"no person looks like that: the identity's coefficients are {rms:.1f} standard deviations in the rms "
                f"(at most {self.settings.failed_sigma:g} expected), as when landmarks are not in the order of iBUG"
            )
        error = np.linalg.norm(fit.matched2d - fit.detected, axis=1)[17:] * depth / focal
        error = float(np.nanmedian(error)) if np.isfinite(error).any() else 0.0
        if error > self.settings.failed_mm:
            return (
                f"the model's landmarks miss the given ones by {error:.1f} mm in the median "
                f"(at most {self.settings.failed_mm:g} expected)"
            )
        return ""

    def _doubt(self, fit: Fit, spread: float) -> str:
        """Whether the detector's own uncertainty and the energy together say that the face is somewhere else.

        Neither does alone: a detector answers a profile with a plausible frontal face, and good landmarks of an unusual
        face cost energy. Calibrated on fits with known landmarks, see docs/detection.md.
        """
        s = self.settings
        doubt = spread / UNSURE_SPREAD * float(np.sqrt(fit.misfit / s.usual_energy))
        if not doubt > s.failed_doubt:
            return ""
        return (
            f"the landmarks cannot be trusted: they move by {100 * spread:.1f} % of the face when its box moves "
            f"(1 % is usual) and cost an energy of {fit.misfit:.0f} (some {s.usual_energy:.0f} is usual), as where the "
            f"face is turned far to the side or covered"
        )


def _blurred(picture, valid, sigma):
    """Gaussian blur in which what may not be used has no part: not even beside its border."""
    smooth = lambda x, axes: gaussian_filter(x, axes, truncate=3.0)  # noqa: E731
    if valid.min() == 1.0:
        return smooth(picture, (sigma, sigma, 0))
    share = smooth(valid, (sigma, sigma))[..., None]
    return smooth(picture * valid[..., None], (sigma, sigma, 0)) / np.maximum(share, 1e-3)


def _record(stage: Stage, solution: Solution) -> dict:
    return {
        "name": stage.name,
        "free": list(stage.free),
        "photometric": stage.photometric,
        "level": stage.level,
        "steps": int(solution.steps),
        "result": solution.result,
        "energies": solution.by_term(np.asarray(solution.energies)),
        "history": [solution.by_term(row) for row in np.asarray(solution.history) if np.isfinite(row).all()],
    }
