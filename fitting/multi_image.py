"""One identity, many photos: each photo fitted alone, doubtful ones told apart, then all of them solved together.

A face in one photo is ambiguous (depth against focal length, albedo against light, shape against expression); several
photos of the same head are not. `fit_together` shares identity, albedo and, where photos come from one camera, the
focal length, and leaves every photo its pose, expression, light and colour. A photo whose landmarks are missing or
contradict the head that the others agree on is started anew from poses around that head, by its pixels alone, and
stays only if they explain it.
"""

import dataclasses
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from fitting.arrowhead import JointSolution, Member, World, solve_together
from fitting.detection import (
    ONE_PERSON,
    UNSURE_SPREAD,
    DlibProvider,
    Face,
    LandmarkNoise,
    LandmarkProvider,
    face_descriptor,
    landmarks_at,
)
from fitting.energies import LandmarkTerm, SightedRotation
from fitting.fit import Fit, Fitter
from fitting.known_cameras import Calibrated, CameraError, calibrated, origin_at_head, origin_back, start_world
from fitting.landmark_offsets import landmark_offsets
from fitting.landmark_start import LandmarkFitError, weak_perspective_pose
from fitting.observation import Photo
from fitting.parameters import FaceParameters
from fitting.photometric import PhotometricTerm
from fitting.schedule import EVERYTHING, SHAPE, Problem, Stage, StageRow, run_stage, start_stage
from renderer.camera import Pinhole

log = logging.getLogger("facefit")

Source = Photo | Callable[[], Photo]  # a photo, or how to read it: a large set is never held whole


class SetError(ValueError):
    """Photos that cannot be fitted together: what, got, expected, remedy."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one photo."""

    name: str
    used: bool
    words: str
    alone: str | None = None  # how its own fit ended; None where there were no landmarks
    explained: float = 0.0  # share of the visible skin whose colour the joint fit explains


@dataclasses.dataclass(frozen=True)
class JointFit:
    """A person fitted to several photos: one fit for each photo that is used, in the order given."""

    fits: tuple[Fit, ...]  # with the same identity and albedo
    indices: tuple[int, ...]  # of these photos among those given
    verdicts: tuple[Verdict, ...]  # of all photos given
    alone: tuple[Fit | None, ...]  # the photos' own fits
    solution: JointSolution = dataclasses.field(repr=False)
    records: list[dict]  # of the joint stages
    seconds: dict[str, float]
    world: World | None = None  # the head among the cameras that were given

    @property
    def identity(self) -> Float[np.ndarray, " identity"]:
        """Of the person, in standard deviations."""
        return self.fits[0].identity

    @property
    def albedo(self) -> Float[np.ndarray, " albedo"]:
        """Of the person, in standard deviations."""
        return self.fits[0].albedo

    @property
    def result(self) -> str:
        """As of the last joint stage."""
        return self.solution.result

    @functools.cached_property
    def landmark_offsets(self) -> Float[np.ndarray, "68 3"]:
        """How far from the model's points the given landmarks lie on this person, mm: for `Fitter.with_offsets`."""
        return landmark_offsets(self.fits)

    @property
    def identity_covariance(self) -> Float[np.ndarray, "identity identity"]:
        """Covariance of the identity coefficients given all photos, for noise as the terms assume it."""
        count = len(self.identity)
        free = np.flatnonzero(np.diag(self.solution.hessian) > 0)
        inverse = np.linalg.inv(self.solution.hessian[np.ix_(free, free)])
        kept = free < count
        return inverse[np.ix_(kept, kept)]


def together() -> tuple[Stage, ...]:
    """The default plan of a joint fit: landmarks, then the photos from blurred to sharp, all identity components."""
    return (
        Stage("landmarks, together", SHAPE, 12, without=("photometric",), tolerance=1e-3),
        Stage("photos, coarse, together", EVERYTHING, 8, level=0, relight=True, tolerance=1e-3),
        Stage("photos, fine, together", EVERYTHING, 12, level=1, samples=2048, tolerance=1e-3),
        Stage("photos, outlines anew, together", EVERYTHING, 12, level=1, samples=2048, tolerance=1e-3),
    )


class _Entry:
    """A photo of the set on its way through `fit_together`."""

    def __init__(self, index: int, name: str, source: Source, face: Face | None):
        self.index, self.name, self.source, self.face = index, name, source, face
        self.digest, self.size = "", (0, 0)
        self.focal_px: float | None = None
        self.known: Calibrated | None = None
        self.descriptor: Float[np.ndarray, " 128"] | None = None
        self.alone: Fit | None = None
        self.problem: Problem | None = None
        self.start: FaceParameters | None = None
        self.zoom = 1.0  # pixels of the crop per pixel of the photo
        self.used, self.words, self.explained = False, "", 0.0
        self.placed = False  # among the others, once they had told whose head it is
        self.moved = False  # since the trusted photos were solved together
        self.energies: dict[str, float] = {}

    @property
    def blind(self) -> bool:
        """Whether it has no landmarks that count."""
        return not bool(jnp.isfinite(self.ready[0].sigma_px).any())

    @property
    def unit_px(self) -> float:
        """Pixels of the crop in the longer side of the photo: what focal lengths of one camera have in common."""
        return self.zoom * max(self.size)

    @property
    def ready(self) -> tuple[Problem, FaceParameters]:
        assert self.problem is not None and self.start is not None
        return self.problem, self.start


Progress = Callable[[str], None]


def fit_together(
    fitter: Fitter,
    photos: Sequence[Source],
    faces: Sequence[Face | None],
    *,
    names: Sequence[str] | None = None,
    same_camera: bool = False,
    one_person: bool = False,
    focal_px: float | None = None,
    cameras: Sequence[Pinhole] | None = None,
    masks: Sequence[Bool[np.ndarray, "height width"] | None] | None = None,
    stages: tuple[Stage, ...] | None = None,
    progress: Progress | None = None,
    provider: LandmarkProvider | None = None,
) -> JointFit:
    """Fit one person to several photos. The result does not depend on their order.

    `faces` holds each photo's face, or None where none was found. With `same_camera` all photos have one focal length
    (in sizes of the photo); photos whose EXIF tells the same one share it anyway; `focal_px` states it for all. With
    `one_person` nobody looks whether the photos show different people. `masks` are true where a photo may be used.
    `progress` is told what happens, in words. `cameras` are the photos' calibrated ones, in a world of their own (see
    `fitting.known_cameras`); the head's place in that world and its unit are then solved for: `JointFit.world`.
    `provider` is asked again about photos that do not go with the others; dlib without one.

    Raises SetError where nothing can be fitted together; a photo that cannot be used is reported in its verdict.
    """
    names = [f"photo {i}" for i in range(len(photos))] if names is None else list(names)
    masks = [None] * len(photos) if masks is None else list(masks)
    if not len(photos) == len(faces) == len(names) == len(masks) or not photos:
        raise SetError(
            f"fit_together: got {len(photos)} photos, {len(faces)} faces, {len(names)} names and {len(masks)} masks; "
            "expected one or more photos, and one of each for every photo."
        )
    if cameras is not None and (len(cameras) != len(photos) or focal_px is not None):
        raise SetError(
            f"fit_together: got {len(cameras)} cameras for {len(photos)} photos and focal_px={focal_px}; expected one "
            "for each photo, which tells the focal length too. Drop focal_px, or the cameras."
        )
    return _Set(
        fitter, photos, faces, names, same_camera, one_person, focal_px, masks, stages or together(), progress, cameras,
        provider or DlibProvider(),
    ).fit()  # fmt: skip


# Several photos separate shape from shading better than one, so their colours may count more; measured on rendered
# heads, docs/rigs.md. A detector's landmarks are twice as far off in a head turned by so many degrees.
_PHOTOMETRIC_SIGMA, _CUTOFF, _TURN_DEGREES = 0.28, 0.07, 30.0
_CONTRADICTS = 40.0  # energy by which landmarks may cost more with a known camera than twice what a free one costs
# A head is sought by its outline from these turns (degrees), twice from all, then thrice from the most promising.
_TURNS, _FINALISTS, _PROFILE_DEGREES = (-75, -50, -25, 0, 25, 50, 75), 3, 90.0
_WIDE_MM, _CLOSE_MM, _SEEK_MM = (18.0, 12.0), (9.0, 7.0, 7.0), 2.0  # how far to look, and how exact outlines then are
_MEETS, _MEETS_WELL = 0.7, 0.85  # shares of the outline that tell a right place, and one beyond doubt
_SHOWS = 0.55  # of the share of skin that trusted photos explain, in a place told by the outline
_MEETS_HALF = 0.5  # the least that tells a place in a photo that has a far worse one
_BETTER, _FAR_BETTER = 1.1, 2.0  # how much better another place must be
_OWN = ("expression", "pose", "light")  # what a photo does not share
_DISAGREES = 25.0  # energy by which a photo's landmarks may cost more with the shared identity than with its own
_COSTS, _COSTS_AT_LEAST = 1.5, 30.0  # of the trusted photos' landmark energy: more is another head, or another pose
_AGREE, _ALIKE_DEGREES = 0.6, 8.0  # of a doubtful photo's answers, the share that must see the head turned alike
_DOUBT = 1.6  # as Settings.failed_doubt, with the steadiest of these answers and the identity known
_EXPLAINS = 0.7  # of the share of skin that trusted photos explain
# Boxes in which a doubtful photo's landmarks are predicted anew: shifts and sizes, in sides of the first one.
_MOVES = ((0, 0, 1.0), (0.12, 0, 1.0), (-0.12, 0, 1.0), (0, 0.12, 1.0), (0, -0.12, 1.0), (0, 0, 0.85), (0, 0, 1.2))


class _Set:
    """One run of `fit_together`."""

    def __init__(
        self,
        fitter,
        photos,
        faces,
        names,
        same_camera,
        one_person,
        focal_px,
        masks,
        stages,
        progress,
        cameras,
        provider,
    ):
        self.provider: LandmarkProvider = provider
        self.fitter, self.same_camera, self.one_person, self.focal_px = fitter, same_camera, one_person, focal_px
        self.stages, self.tell = stages, progress or log.info
        self.masks, self.seconds, self.records = masks, {}, []
        self.cameras: Sequence[Pinhole] | None = cameras
        self.world: World | None = None  # in which cameras count; its origin is near the head
        self.origin = np.zeros(3)  # of that world, in the given one
        self.entries = [_Entry(i, n, p, f) for i, (n, p, f) in enumerate(zip(names, photos, faces, strict=True))]

    def fit(self) -> JointFit:
        began = time.perf_counter()
        for entry in self.entries:
            self._alone(entry)
        # By content, so that sums and choices are the same in whatever order the photos were given.
        order = sorted(self.entries, key=lambda e: e.digest)
        self._mark_duplicates(order)
        fresh = [e for e in order if not e.words]
        trusted = [e for e in fresh if e.alone is not None and e.alone.result != "failed"]
        doubtful = [e for e in fresh if e not in trusted]
        if not trusted:
            reasons = "; ".join(f"{e.name}: {e.alone.reason if e.alone else 'no face'}" for e in self.entries)
            raise SetError(
                f"fit_together: got {len(self.entries)} photos of which none can be trusted ({reasons}); expected at "
                "least one whose face is found. Add a frontal photo, or give landmarks."
            )
        if not self.one_person:
            trusted = self._mark_strangers(trusted)
        self.seconds["alone"] = time.perf_counter() - began
        began = time.perf_counter()
        trusted, solution = self._agreeing(trusted, doubtful)
        for stage in self.stages[1:]:
            solution = self._solve(trusted, stage)
        head = trusted[0].ready[1]
        self._place_all(head, trusted, doubtful)
        if self.cameras is None:
            self._seek_all(head, trusted, doubtful)
        placed = [e for e in doubtful if e.placed]
        self.seconds["agree"] = time.perf_counter() - began
        began = time.perf_counter()
        used = sorted(trusted + placed, key=lambda e: e.digest)
        if self.cameras is not None:
            used = self._among_cameras(used)
            used = sorted(used + self._seen_by_cameras(doubtful, used), key=lambda e: e.digest)
        if self.cameras is not None or any(e.moved for e in used):
            for stage in self.stages:
                solution = self._solve(used, stage)
        for entry in used:
            self._own(entry)
        self.seconds["together"] = time.perf_counter() - began
        return self._result(used, solution)

    # ------------------------------------------------------------------------------------------- each photo alone

    def _alone(self, entry: _Entry) -> None:
        photo = entry.source() if callable(entry.source) else entry.source
        entry.digest = hashlib.sha256(photo.pixels.tobytes() + str(photo.pixels.shape).encode()).hexdigest()
        entry.size, entry.focal_px = (photo.height, photo.width), photo.focal_px
        if self.cameras is not None:
            entry.known = calibrated(self.cameras[entry.index], entry.name, photo.height, photo.width)
        if entry.face is None:
            return
        try:
            focal_px, centre_px = self._lens(entry)
            mask = self.masks[entry.index]
            fit = self.fitter.fit(photo, entry.face, focal_px=focal_px, mask=mask, centre_px=centre_px)
        except LandmarkFitError as error:
            self.tell(f"{entry.name}: {error}")
            return
        entry.alone = fit
        problem, start, _ = fit.inside
        entry.problem, entry.start = problem, start
        entry.zoom = float(jnp.exp(start.log_focal)) / float(fit.camera.focal[0])
        if fit.result != "failed" and not self.one_person:
            entry.descriptor = face_descriptor(photo, fit.landmarks2d)

    def _lens(self, entry: _Entry) -> tuple[float | None, Float[np.ndarray, "2"] | None]:
        """Focal length and principal point of the photo, where they are known."""
        return (self.focal_px, None) if entry.known is None else (entry.known.focal_px, entry.known.centre_px)

    def _mark_duplicates(self, order: Sequence[_Entry]) -> None:
        for earlier, entry in zip(order, order[1:], strict=False):
            if earlier.digest == entry.digest:
                entry.words = f"left out: the same picture as {earlier.name}"

    def _mark_strangers(self, trusted: list[_Entry]) -> list[_Entry]:
        """The photos of the person whom most photos show; the others are reported."""
        if len(trusted) < 2:
            return trusted
        described = np.stack([e.descriptor for e in trusted if e.descriptor is not None])
        apart = np.linalg.norm(described[:, None] - described, axis=2)
        # Whoever is linked by a chain of like faces is one person: turned heads are like their neighbours.
        count, person = connected_components(apart <= ONE_PERSON, directed=False)
        if count == 1:
            return trusted
        sizes = np.bincount(person)
        largest = np.flatnonzero(sizes == sizes.max())
        if len(largest) > 1:
            groups = "; ".join(
                ", ".join(e.name for e, p in zip(trusted, person, strict=True) if p == k) for k in range(count)
            )
            raise SetError(
                f"fit_together: got photos of {count} different people ({groups}), expected one person's. Remove the "
                "others', or state that they are one person's with one_person=True (--one-person)."
            )
        for entry, who, distance in zip(trusted, person, apart, strict=True):
            if who != largest[0]:
                nearest = float(distance[person == largest[0]].min())
                entry.words = (
                    f"left out: another person (dlib's descriptor is {nearest:.2f} from the others', up to "
                    f"{ONE_PERSON:g} is one person)"
                )
                self.tell(f"  {entry.name}: another person")
        return [e for e, who in zip(trusted, person, strict=True) if who == largest[0]]

    # ---------------------------------------------------------------------------------------------- all together

    def _solve(self, entries: Sequence[_Entry], stage: Stage) -> JointSolution:
        # A stage that does not look at the photos has nothing to hold one without landmarks.
        seen = [e for e in entries if stage.photometric or not e.blind]
        groups = self._focal_groups(seen)
        common = self._common(seen) if not self.records else seen[0].ready[1]
        faces = _one_focal([e.ready[1] for e in seen], [e.unit_px for e in seen], groups)
        problems = alike_in_terms([self._seen(e, f, stage, len(seen)) for e, f in zip(seen, faces, strict=True)])
        members = [
            Member(
                p,
                dataclasses.replace(f, identity=common.identity, albedo=common.albedo),
                g,
                None if self.world is None or e.known is None else e.known.about(self.origin),
            )
            for e, p, f, g in zip(seen, problems, faces, groups, strict=True)
        ]
        if self.world is not None:  # a known focal length is not solved for
            stage = dataclasses.replace(stage, free=tuple(name for name in stage.free if name != "focal"))
        solution = solve_together(members, stage, self.world)
        self.world = solution.world
        for entry, face in zip(seen, solution.faces, strict=True):
            entry.start = face
        for entry in entries:
            at = entry.ready[1]
            entry.start = dataclasses.replace(at, identity=solution.faces[0].identity, albedo=solution.faces[0].albedo)
        total = dict(zip(solution.names, solution.history[-1].tolist(), strict=True))
        self.records.append(
            {
                "name": stage.name,
                "photos": len(seen),
                "steps": solution.steps,
                "result": solution.result,
                "energies": total,
                "seconds": solution.seconds,
            }
        )
        energy = sum(total.values())
        self.tell(f"  {stage.name}: {len(seen)} photo(s), energy {energy:.1f} after {solution.steps} steps")
        return solution

    def _seen(self, entry: _Entry, face: FaceParameters, stage: Stage, count: int) -> Problem:
        """A photo's problem among `count`; a stage that looks at photos sees the head's outline as well."""
        problem = among(entry.ready[0], face, count, entry.face is not None and entry.face.noise.alike)
        outlines = self.fitter.outlines
        return outlines.seen_in(problem, face) if stage.photometric else outlines.with_term(problem, None)

    def _own(self, entry: _Entry) -> None:
        """The photo's own unknowns once more, now that identity is known, with the noise that one photo's points have.

        Errors that photos share blur whose head it is. What the face does in this photo they do not.
        """
        face, last = entry.ready[1], self.stages[-1]
        free = tuple(name for name in _OWN if name != "pose" or self.world is None)
        stage = dataclasses.replace(last, name="alone again", free=free, relight=False, steps=8)
        problem = self._seen(entry, face, stage, 1)
        camera = None if self.world is None or entry.known is None else entry.known.about(self.origin)
        solution = solve_together([Member(problem, face, 0, camera)], stage, self.world)
        if solution.finite:
            entry.start = solution.faces[0]
            entry.energies = dict(zip(solution.names, solution.energies[0].tolist(), strict=True))

    def _common(self, entries: Sequence[_Entry]) -> FaceParameters:
        """Identity and albedo to start from: the mean of the photos' own."""
        faces = [e.ready[1] for e in entries]
        mean = lambda name: jnp.mean(jnp.stack([getattr(f, name) for f in faces]), axis=0)  # noqa: E731
        return dataclasses.replace(faces[0], identity=mean("identity"), albedo=mean("albedo"))

    def _focal_groups(self, entries: Sequence[_Entry]) -> list[int]:
        if self.cameras is not None:
            return [-1 - e.index for e in entries]
        if self.same_camera or self.focal_px is not None:
            return [0] * len(entries)
        told = {f: k for k, f in enumerate(sorted({round(e.focal_px, 1) for e in entries if e.focal_px is not None}))}
        return [told[round(e.focal_px, 1)] if e.focal_px is not None else -1 - e.index for e in entries]

    def _agreeing(self, trusted: list[_Entry], doubtful: list[_Entry]) -> tuple[list[_Entry], JointSolution]:
        """Photos whose landmarks fit one head; the others become doubtful, the worst first."""
        while True:
            solution = self._solve(trusted, self.stages[0])
            if len(trusted) < 3:
                return trusted, solution
            costs = [self._cost(e, row, solution.names) for e, row in zip(trusted, solution.energies, strict=True)]
            worst = int(np.argmax(costs))
            if costs[worst] < _DISAGREES:
                return trusted, solution
            self.tell(f"  {trusted[worst].name}: its landmarks contradict the other photos'")
            doubtful.append(trusted.pop(worst))

    def _cost(self, entry: _Entry, energies: Float[np.ndarray, " term"], names: Sequence[str]) -> float:
        """By how much the photo's landmarks cost more with the shared identity than with its own."""
        assert entry.alone is not None
        shared = sum(e for e, n in zip(energies, names, strict=True) if n in ("landmarks", "jaw", "expression"))
        return float(shared) - entry.alone.misfit

    # ------------------------------------------------------------------------------------------- known cameras

    def _among_cameras(self, used: list[_Entry]) -> list[_Entry]:
        """Place the head among the known cameras; the photos whose landmarks these can explain.

        Where a camera belongs to another photo, the landmarks cost far more with it than with a pose of their own.
        """
        stage, found = self.stages[0], {e.index: e.ready[1] for e in used}
        alone = {e.index: self._tried(*e.ready, stage).landmarks for e in used}
        count = len(used)
        while True:
            faces = [found[e.index] for e in used]
            known = [e.known for e in used if e.known is not None]
            try:
                start = start_world([f.pose for f in faces], [k.camera for k in known])
            except CameraError as error:
                raise SetError(str(error)) from error
            self.world, self.origin = origin_at_head(start)
            for entry, face, lens in zip(used, faces, known, strict=True):
                entry.start = dataclasses.replace(face, log_focal=jnp.float32(np.log(lens.focal_px * entry.zoom)))
            self._solve(used, stage)
            costs = {e.index: self._tried(*e.ready, stage).landmarks for e in used}
            excess = np.array([costs[e.index] - 2 * alone[e.index] for e in used])
            if excess.max() < _CONTRADICTS:
                return used
            # A wrong camera draws the head away from the right ones: the worst go first.
            wrong = [e for e, x in zip(used, excess, strict=True) if x > 0.5 * excess.max()]
            names = ", ".join(f"{e.name} (energy {costs[e.index]:.0f}, without it {alone[e.index]:.0f})" for e in wrong)
            used = [e for e in used if e not in wrong]
            if len(used) < max(2, 2 * count / 3):
                raise SetError(
                    f"cameras: got some that contradict the photos: {names}; expected cameras with which the landmarks "
                    "cost hardly more than with free poses. Are the file's names shuffled, or did the head move "
                    "between the photos? Correct the file, or leave the cameras out."
                )
            for entry in wrong:
                entry.words = (
                    f"left out: its landmarks or its camera contradict the others' (landmarks cost "
                    f"{costs[entry.index]:.0f}, with a free pose {alone[entry.index]:.0f})"
                )
            self.tell(f"  cameras contradict {names}")

    def _seen_by_cameras(self, doubtful: Sequence[_Entry], used: Sequence[_Entry]) -> list[_Entry]:
        """Photos without landmarks to trust that show the head where their known cameras see it."""
        last = self.stages[-1]
        if not last.photometric:
            return []
        least = _EXPLAINS * float(np.median([self._tried(*e.ready, last).explained for e in used]))
        seen = []
        for entry in (e for e in doubtful if not e.placed):
            problem, face, zoom = self._seen_by_camera(entry, used[0].ready[1])
            lit = run_stage(problem, face, Stage("light", ("light",), 1, level=last.level, relight=True))
            entry.explained = self._tried(problem, lit.face, last).explained if bool(lit.finite) else 0.0
            if entry.explained < least:
                entry.words = (
                    "left out: its landmarks cannot be trusted, and where its camera sees the head this explains "
                    f"{100 * entry.explained:.0f} % of the skin (at least {100 * least:.0f} % expected)"
                )
                continue
            entry.problem, entry.start, entry.zoom, entry.face = problem, lit.face, zoom, None
            entry.words = "used where its camera sees the head, without landmarks"
            seen.append(entry)
        return seen

    def _seen_by_camera(self, entry: _Entry, head: FaceParameters) -> tuple[Problem, FaceParameters, float]:
        """The photo around the head as its known camera sees it; see `_blind`."""
        assert self.world is not None and entry.known is not None
        pose = self.world.head_pose(entry.known.about(self.origin))
        return self._blind(entry, head, pose, entry.known.focal_px, entry.known.centre_px)

    def _blind(self, entry: _Entry, head: FaceParameters, pose: jaxlie.SE3, focal_px: float, centre_px=None):
        """The photo around the head in a pose, without landmarks; the face there; pixels of the crop per pixel."""
        photo = entry.source() if callable(entry.source) else entry.source
        middle = np.array([photo.width / 2, photo.height / 2]) if centre_px is None else np.asarray(centre_px)
        focal = jnp.full(2, focal_px, jnp.float32)
        lens = Pinhole(focal, jnp.asarray(middle, jnp.float32), pose, photo.height, photo.width)
        model = self.fitter.solver_model
        points = np.asarray(lens.project(model.landmarks.positions(head.identity, jnp.zeros_like(head.expression))))
        box = self.fitter.crop_box(points)
        start = weak_perspective_pose(np.asarray(model.landmarks.mean), points)
        nowhere, noise = np.full((68, 2), np.nan), LandmarkNoise(inner_mm=1.0, jaw_mm=1.0)
        mask = self.masks[entry.index]
        problem, first = self.fitter.framed(photo, box, start, nowhere, noise, focal_px, mask, centre_px)
        zoom = self.fitter.settings.image_size / float(box[2])
        log_focal = jnp.float32(np.log(focal_px * zoom))
        face = dataclasses.replace(first, identity=head.identity, albedo=head.albedo, pose=pose, log_focal=log_focal)
        return problem, face, zoom

    # ------------------------------------------------------------------------- photos whose landmarks do not help

    def _place_all(self, head: FaceParameters, trusted: Sequence[_Entry], doubtful: Sequence[_Entry]) -> None:
        """Look in doubtful photos for the head that the others agree on, by what a detector says of them."""
        if not doubtful:
            return
        usual = _Usual.of([self._tried(*e.ready, self.stages[-1]) for e in trusted])
        spots = [_spot(e) for e in trusted if e.face is not None]
        for entry in doubtful:
            self._place(entry, head, usual, spots)

    def _place(self, entry: _Entry, head: FaceParameters, usual: "_Usual", spots: Sequence["_Spot"]) -> None:
        """Believe the landmarks, of several boxes, with which the head fits the photo best, if it fits."""
        photo = entry.source() if callable(entry.source) else entry.source
        boxes = [entry.face.box] if entry.face is not None else [tuple(s.box_in(photo)) for s in spots]
        faces = [] if entry.face is None else [entry.face]
        if entry.face is None or entry.face.source != "file":
            faces += [f for box in boxes for f in self._faces_about(photo, box)]
        tries = []
        for face in faces:
            try:
                focal_px, centre_px = self._lens(entry)
                problem, first, box = self.fitter.problem(photo, face, focal_px, self.masks[entry.index], centre_px)
            except LandmarkFitError:
                continue
            zoom = self.fitter.settings.image_size / box[2]
            unit = np.log(zoom * max(photo.height, photo.width))
            found = self._fitted(problem, first, head, float(np.median([s.log_focal for s in spots]) + unit))
            if found is not None:
                tries.append(_Try(problem, found, zoom, face, self._tried(problem, found, self.stages[-1])))
        if not tries:
            entry.words = "left out: no face was found in it"
            return
        agreeing = _agreeing(tries)
        best = min(agreeing, key=lambda t: t.cost.landmarks)
        cost, entry.explained = best.cost, best.cost.explained
        spread = min(t.face.spread for t in agreeing)
        doubt = spread / UNSURE_SPREAD * float(np.sqrt(cost.landmarks / self.fitter.settings.usual_energy))
        if len(agreeing) < _AGREE * len(tries) or doubt > _DOUBT:
            entry.words = (
                "left out: its landmarks cannot be trusted, as where a face is turned far to the side or covered"
            )
            return
        if cost.landmarks > usual.landmarks or cost.explained < usual.explained:
            entry.words = (
                f"left out: the others' head meets its landmarks at an energy of {cost.landmarks:.0f} "
                f"(at most {usual.landmarks:.0f} expected) and explains {100 * cost.explained:.0f} % of the skin "
                f"(at least {100 * usual.explained:.0f} %)"
            )
            return
        entry.problem, entry.start, entry.zoom, entry.face = best.problem, best.at, best.zoom, best.face
        entry.placed = entry.moved = True
        entry.words = "used, once the others had told whose head it is"

    def _seek_all(self, head: FaceParameters, trusted: Sequence[_Entry], doubtful: Sequence[_Entry]) -> None:
        """Look for the head by its outline: in photos not placed yet, and in those whose outline it does not meet.

        A place counts if enough of outline and skin are met there, and more than where landmarks have put the head. The
        landmarks of the photo are then forgotten; those that were given are not, where the other photos agree.
        """
        last = self.stages[-1]
        if not last.photometric:
            return
        least = _SHOWS * float(np.median([self._tried(*e.ready, last).explained for e in trusted]))
        spots = [_spot(e) for e in trusted if e.face is not None]
        for entry in [*trusted, *doubtful] if len(trusted) + len(doubtful) > 1 else []:
            here = 0.0
            if entry in trusted and entry.face is not None and entry.face.source == "file":
                continue
            if entry in trusted or entry.placed:
                outline = self.fitter.outlines.outline(*entry.ready)
                if not len(outline.share) or outline.meets >= _MEETS_WELL:
                    continue  # seen from the front, or beyond doubt
                here = outline.meets * self._tried(*entry.ready, last).explained
            best = self._sought(entry, head, spots)
            if best is None or best.explained < least or not best.beats(here):
                continue
            if here == 0.0 or _between(entry.ready[1], best.at) > _ALIKE_DEGREES:
                best.taken_by(entry)

    def _sought(self, entry: _Entry, head: FaceParameters, spots: Sequence["_Spot"]) -> "_Sought | None":
        """The head in a photo by outline and colours alone, from upright poses with several turns; None if nowhere."""
        photo = entry.source() if callable(entry.source) else entry.source
        middle, size = _extent(entry.face) if entry.face is not None else _usual_extent(spots, photo)
        focal_px = float(np.exp(np.median([s.log_focal for s in spots]))) * max(photo.width, photo.height)
        focal_px = self._lens(entry)[0] or entry.focal_px or focal_px
        depth = focal_px / (size * float(np.median([s.scale for s in spots])))
        points = np.asarray(
            self.fitter.solver_model.landmarks.positions(head.identity, jnp.zeros_like(head.expression))
        )
        tries = []
        for turn in _TURNS:
            rotation = np.diag([1.0, -1.0, -1.0]) @ Rotation.from_euler("y", -turn, degrees=True).as_matrix()
            seen = points @ rotation[:2].T
            ray = (middle - [photo.width / 2, photo.height / 2]) / focal_px * depth
            place = np.r_[ray - (seen.max(axis=0) + seen.min(axis=0)) / 2, depth]
            turned = jaxlie.SO3.from_matrix(jnp.asarray(rotation, jnp.float32))
            pose = jaxlie.SE3.from_rotation_and_translation(turned, jnp.asarray(place, jnp.float32))
            tries.append(self._closer(entry, head, pose, focal_px, _WIDE_MM))
        found = [t for t in tries if t is not None and abs(_yaw(t.at)) <= _PROFILE_DEGREES]
        best = sorted(found, key=lambda t: -t.score)[:_FINALISTS]
        tries = [self._closer(entry, head, t.at.pose, focal_px, _CLOSE_MM) for t in best]
        found = [t for t in tries if t is not None and abs(_yaw(t.at)) <= _PROFILE_DEGREES]
        return max(found, key=lambda t: t.score, default=None)

    def _closer(self, entry: _Entry, head: FaceParameters, pose: jaxlie.SE3, focal_px: float, reaches: Sequence[float]):
        """The head drawn to where its outline ends in the photo, looked for farther first; None where that fails."""
        problem, face, zoom = self._blind(entry, head, pose, focal_px)
        problem, outlines = among(problem, face, 1, False), self.fitter.outlines
        stage = Stage("seek", ("pose", "light"), 8, level=0, relight=True, tolerance=1e-2)
        for reach in reaches:
            seen = outlines.with_term(problem, outlines.outline(problem, face, reach), _SEEK_MM)
            solution = solve_together([Member(seen, face, 0)], stage)
            if not solution.finite:
                return None
            face = solution.faces[0]
        explained = self._tried(problem, face, self.stages[-1]).explained
        return _Sought(problem, face, zoom, outlines.outline(problem, face).meets, explained)

    def _faces_about(self, photo: Photo, box) -> list[Face]:
        """The detector's answers in a box and some beside it: wrong ones differ, right ones agree."""
        x0, y0, x1, y1 = (float(v) for v in box)
        side, found = max(x1 - x0, y1 - y0), []
        for dx, dy, scale in _MOVES:
            middle, reach = np.array([(x0 + x1) / 2 + dx * side, (y0 + y1) / 2 + dy * side]), scale * side / 2
            if isinstance(self.provider, DlibProvider):
                face = landmarks_at(photo, middle, 2 * reach)  # as it is; given a box, the provider would search
                found += [] if face is None else [face]
            else:
                found += self.provider.faces(photo, (*(middle - reach), *(middle + reach)), False)
        return found

    def _fitted(self, problem: Problem, first: FaceParameters, head: FaceParameters, log_focal: float):
        """The head in a photo by landmarks alone: its pose, expression and light; None where that fails."""
        nearer = np.exp(log_focal - float(first.log_focal))
        place = first.pose.translation() * jnp.array([1.0, 1.0, nearer])
        start = dataclasses.replace(
            first,
            identity=head.identity,
            albedo=head.albedo,
            log_focal=jnp.asarray(np.float32(log_focal)),
            pose=jaxlie.SE3.from_rotation_and_translation(first.pose.rotation(), place),
        )
        stage = Stage("place", ("pose", "expression"), 15, without=("photometric",))
        solution = run_stage(problem, start, stage)
        if not bool(solution.finite):
            return None
        light = Stage("light", ("light",), 1, level=self.stages[-1].level, relight=True)
        lit = run_stage(problem, solution.face, light)
        return lit.face if bool(lit.finite) else None

    def _tried(self, problem: Problem, face: FaceParameters, last: Stage) -> "_Cost":
        """What a face's landmarks cost, apart from its identity, and how much of the visible skin it explains."""
        energies, explained = _judged(problem, face, last.row(problem))
        return _Cost(float(sum(energies[n] for n in ("landmarks", "jaw", "expression"))), float(explained))

    # ------------------------------------------------------------------------------------------------ the result

    def _result(self, used: Sequence[_Entry], solution: JointSolution) -> JointFit:
        last = self.stages[-1]
        fits: dict[int, Fit] = {}
        for k, entry in enumerate(used):
            problem, face = entry.ready
            entry.used = True
            entry.words = entry.words or "used"
            if last.photometric:
                entry.explained = self._tried(problem, face, last).explained
            fits[entry.index] = self._fit_of(
                entry, entry.energies, solution, np.asarray(solution.quadratics[k].hessian)
            )
        verdicts = tuple(
            Verdict(e.name, e.used, e.words or "left out", e.alone.result if e.alone else None, e.explained)
            for e in self.entries
        )
        indices = tuple(sorted(fits))
        return JointFit(
            fits=tuple(fits[i] for i in indices),
            indices=indices,
            verdicts=verdicts,
            alone=tuple(e.alone for e in self.entries),
            solution=solution,
            records=self.records,
            seconds=self.seconds,
            world=None if self.world is None else origin_back(self.world, self.origin),
        )

    def _fit_of(self, entry: _Entry, energies: dict[str, float], solution: JointSolution, hessian) -> Fit:
        problem, face = entry.ready
        height, width = entry.size
        focal = float(jnp.exp(face.log_focal)) / entry.zoom
        camera = Pinhole(
            focal=jnp.array([focal, focal]),
            centre=jnp.asarray([width / 2, height / 2] if entry.known is None else entry.known.centre_px, jnp.float32),
            pose=face.pose,
            height=height,
            width=width,
        )
        detected = np.full((68, 2), np.nan, np.float32) if entry.face is None else entry.face.landmarks
        return Fit(
            model=self.fitter.model,
            camera=camera,
            identity=np.asarray(face.identity),
            expression=np.asarray(face.expression),
            albedo=np.asarray(face.albedo),
            light=np.asarray(face.light),
            detected=np.asarray(detected, np.float32),
            source="none" if entry.face is None else entry.face.source,
            result=solution.result,
            reason="",
            energies=energies,
            stages=self.records,
            timings={},
            settings=self.fitter.settings,
            hessian=hessian,
            problem=problem,
            parameters=face,
            stage=self.stages[-1],
        )


class _Cost(NamedTuple):
    """How well a face suits a photo."""

    landmarks: float  # energy of landmarks, jaw and expression
    explained: float  # share of the visible skin


def among(problem: Problem, face: FaceParameters, count: int, alike: bool) -> Problem:
    """A photo's problem with the noise that it has among several photos.

    Definitions of landmarks that are not the model's are the same in every photo of a head, and so are most of dlib's
    errors (`alike`, see LandmarkNoise): n photos say no more about them than one. Their variance grows with n, which is
    what a shared error that is solved for would come to. dlib's errors also grow as the head turns away.
    """
    root = float(np.sqrt(count))
    factor = root * (1.0 + abs(_yaw(face)) / _TURN_DEGREES) if alike and count > 1 else 1.0
    return dataclasses.replace(
        problem,
        shared_mm=problem.shared_mm * root,  # zeros but for annotated points
        sigma_px=problem.sigma_px * factor,
        photometric_sigma=jnp.float32(_PHOTOMETRIC_SIGMA),
        photometric_cutoff=jnp.float32(_CUTOFF),
    )


def alike_in_terms(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with a network's points in all if in one of them: photos placed without the network have others."""
    sighted = next((p.extra for p in problems if "dense" in p.extra), None)
    if sighted is None:
        return list(problems)
    dense, rotation = sighted["dense"], sighted["rotation"]
    assert isinstance(dense, LandmarkTerm) and isinstance(rotation, SightedRotation)  # as the Fitter made them
    silent = {
        "dense": eqx.tree_at(lambda t: t.sigma_px, dense, jnp.full_like(dense.sigma_px, jnp.inf)),
        "rotation": eqx.tree_at(lambda t: t.sigma, rotation, jnp.full_like(rotation.sigma, jnp.inf)),
    }
    of = lambda p: {name: eqx.tree_at(lambda t: t.centre, term, p.centre) for name, term in silent.items()}  # noqa: E731
    return [dataclasses.replace(p, extra={**of(p), **p.extra}) for p in problems]


class _Try(NamedTuple):
    """The head fitted to one answer of the detector."""

    problem: Problem
    at: FaceParameters
    zoom: float
    face: Face
    cost: _Cost

    @property
    def yaw(self) -> float:
        """Degrees."""
        return _yaw(self.at)


def _agreeing(tries: Sequence[_Try]) -> list[_Try]:
    """The largest group that sees the head turned alike: wrong answers depend on the box, right ones do not."""
    groups = [[other for other in tries if abs(other.yaw - one.yaw) <= _ALIKE_DEGREES] for one in tries]
    return max(groups, key=lambda g: (len(g), -min(t.cost.landmarks for t in g)))


def _yaw(face: FaceParameters) -> float:
    rotation = np.asarray(face.pose.rotation().as_matrix())
    return float(np.degrees(np.arctan2(rotation[0, 2], -rotation[2, 2])))


class _Sought(NamedTuple):
    """The head where its outline and colours say that it is."""

    problem: Problem  # without landmarks
    at: FaceParameters
    zoom: float
    meets: float  # share of its outline
    explained: float  # share of its skin

    @property
    def score(self) -> float:
        """Of places in one photo, the right one has the highest."""
        return self.meets * self.explained

    def beats(self, here: float) -> bool:
        """Whether it is worth more than the photo's present place: surely right, or far better; 0 if it has none."""
        if self.meets >= _MEETS:
            return self.score > _BETTER * here
        return here > 0 and self.meets >= _MEETS_HALF and self.score > _FAR_BETTER * here

    def taken_by(self, entry: _Entry) -> None:
        """Let a photo have the head there."""
        entry.problem, entry.start, entry.zoom, entry.face = self.problem, self.at, self.zoom, None
        entry.placed = entry.moved = True
        entry.words = "used by the head's outline and colours, without landmarks"


def _between(one: FaceParameters, other: FaceParameters) -> float:
    """The angle between two heads' orientations, degrees."""
    return float(np.degrees(np.linalg.norm((one.pose.rotation().inverse() @ other.pose.rotation()).log())))


class _Usual(NamedTuple):
    """What is expected of a photo that joins trusted ones."""

    landmarks: float  # at most
    explained: float  # at least

    @classmethod
    def of(cls, costs: Sequence[_Cost]) -> "_Usual":
        landmarks, explained = (np.array(x) for x in zip(*costs, strict=True))
        return cls(max(_COSTS * float(landmarks.max()), _COSTS_AT_LEAST), _EXPLAINS * float(np.median(explained)))


class _Spot(NamedTuple):
    """Where a trusted photo has its face, how large, and through which lens."""

    relative: Float[np.ndarray, "3"]  # middle and side of the face's box, in widths and heights of the photo
    log_focal: float  # in longer sides of the photo
    height: float  # of the landmarks, in longer sides of the photo
    scale: float  # pixels per mm at the head, for each pixel of that height

    def box_in(self, photo: Photo) -> Float[np.ndarray, "4"]:
        """The same place in another photo."""
        x, y, side = self.relative * [photo.width, photo.height, max(photo.width, photo.height)]
        return np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2])


def _spot(entry: _Entry) -> _Spot:
    assert entry.face is not None  # a trusted photo has one
    box = np.asarray(entry.face.box, float)
    middle, side = (box[:2] + box[2:]) / 2, float(np.sqrt(np.prod(box[2:] - box[:2])))
    height, width = entry.size
    relative = np.array([middle[0] / width, middle[1] / height, side / max(width, height)])
    face = entry.ready[1]
    per_mm = float(np.exp(face.log_focal)) / entry.zoom / float(face.pose.translation()[2])
    tall = _extent(entry.face)[1]
    log_focal = float(face.log_focal) - float(np.log(entry.unit_px))
    return _Spot(relative, log_focal, tall / max(width, height), per_mm / tall)


def _extent(face: Face) -> tuple[Float[np.ndarray, "2"], float]:
    """Middle and height of the landmarks: profiles are as high as other faces."""
    low, high = np.nanmin(face.landmarks, axis=0), np.nanmax(face.landmarks, axis=0)
    return (low + high) / 2, float(high[1] - low[1])


def _usual_extent(spots: Sequence[_Spot], photo: Photo) -> tuple[Float[np.ndarray, "2"], float]:
    """The same in a photo where no face was found: as in the others."""
    box = np.median([s.box_in(photo) for s in spots], axis=0)
    return (box[:2] + box[2:]) / 2, float(np.median([s.height for s in spots])) * max(photo.width, photo.height)


def _one_focal(faces: Sequence[FaceParameters], units: Sequence[float], groups: Sequence[int]) -> list[FaceParameters]:
    """Faces of one focal group at the mean of their focal lengths, at the depth that keeps their size in the photo."""
    relative = np.array([float(f.log_focal) - np.log(u) for f, u in zip(faces, units, strict=True)])
    out = []
    for face, unit, group, own in zip(faces, units, groups, relative, strict=True):
        shared = float(np.mean(relative[np.array(groups) == group]))
        place = face.pose.translation() * jnp.array([1.0, 1.0, np.exp(shared - own)])
        pose = jaxlie.SE3.from_rotation_and_translation(face.pose.rotation(), place)
        out.append(dataclasses.replace(face, pose=pose, log_focal=jnp.asarray(np.float32(shared + np.log(unit)))))
    return out


def explained(problem: Problem, face: FaceParameters, stage: Stage) -> float:
    """The share of the visible skin whose colour a face explains in a photo, as a photometric stage would see it."""
    return float(_judged(problem, face, stage.row(problem))[1])


@eqx.filter_jit
def _judged(problem: Problem, face: FaceParameters, row: StageRow) -> tuple[dict[str, Array], Float[Array, ""]]:
    """The energy of every term, and the share of the visible skin whose colour the face explains."""
    weight, _ = start_stage(problem, face, row)
    terms = problem.terms(row, weight)
    photometric = terms["photometric"].term
    assert isinstance(photometric, PhotometricTerm)  # as Problem.terms made it
    counted = jnp.where((jnp.arange(weight.shape[0]) < row.blocks)[:, None], weight, 0.0)
    share = jnp.sum(photometric.inlier_weights(face)) / jnp.maximum(jnp.sum(counted), 1e-6)
    return {name: terms[name].term.energy(face) for name in terms if name != "photometric"}, share
