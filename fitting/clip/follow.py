"""One frame after the other: landmarks where the head must be by now, then Gauss-Newton from where it was.

Identity, albedo and focal length are known. They are folded into the model's means once, so that a frame's problem has
no unknowns but expression, light, pose and colour offset: a third of them, an eighth of the time.
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float
from PIL import Image
from scipy.spatial.transform import Rotation

from fitting.clip.banded import Chain, chain_least_squares
from fitting.clip.frames import Frame
from fitting.clip.key_frames import Identity
from fitting.clip.lid_opening import LEVELS, EyeDark, LidOpening, eye_dark
from fitting.clip.sight import Sight, Whereabouts, unsureness
from fitting.clip.smoothing import Blocks, Motion, bounds, exponential, logarithm, moved
from fitting.detection import UNSURE_SPREAD, Face
from fitting.energies import INNER_LIPS, LIDS, relative_term
from fitting.fit import GEOMETRY, Fitter
from fitting.observation import Photo
from fitting.parameters import FaceParameters
from fitting.photometric import NOMINAL_SAMPLES
from fitting.schedule import OBSERVATIONS, PRIORS, Problem, Stage, StageRow, start_stage
from fitting.surface_samples import PointBasis, SkinSamples, SolverModel
from fitting.terms import AbstractTerm, linearise_all


def folded(basis: PointBasis, identity: Float[np.ndarray, " identity"]) -> PointBasis:
    """The same points of one person: identity, whose modes come first, is folded into the mean."""
    modes, rank = np.asarray(basis.modes), len(identity)
    mean = np.asarray(basis.mean) + modes[..., :rank] @ np.asarray(identity, np.float32)
    return PointBasis(jnp.asarray(mean), jnp.asarray(modes[..., rank:]))


def personal_model(
    model: SolverModel, identity: Float[np.ndarray, " identity"], albedo: Float[np.ndarray, " albedo"]
) -> SolverModel:
    """The model of one person: identity and albedo are folded into the means, and no unknowns any more."""
    rank = model.identity_rank
    who, colour = np.asarray(identity, np.float32), np.asarray(albedo, np.float32)
    skin = model.skin
    modes, albedo_modes = np.asarray(skin.geometry_modes), np.asarray(skin.albedo_modes)
    personal = SkinSamples(
        geometry=jnp.asarray(np.asarray(skin.geometry) + np.einsum("brcp,c->brp", modes[:, :, :rank], who)),
        geometry_modes=jnp.asarray(np.ascontiguousarray(modes[:, :, rank:])),
        albedo=jnp.asarray(np.asarray(skin.albedo) + np.einsum("brcp,c->brp", albedo_modes, colour)),
        albedo_modes=jnp.zeros((*albedo_modes.shape[:2], 0, albedo_modes.shape[3])),
    )
    return dataclasses.replace(
        model,
        landmarks=folded(model.landmarks, who),
        contour=folded(model.contour, who),
        proxy=folded(model.proxy, who),
        skin=personal,
        identity_rank=0,
        albedo_rank=0,
    )


class Seen(eqx.Module):
    """A frame's crop and observations, ready for the solver."""

    problem: Problem
    weight: Float[Array, "block point"]  # how far each skin sample is believed
    zoom: float = eqx.field(static=True)  # pixels of the crop for each of the video
    box: tuple[float, float, float, float] = eqx.field(static=True)


# How far lids and lips are apart says more than where they are: detectors shift both together. Name, pairs, mm.
_OPENINGS = {"lids": (LIDS, 0.8), "lips": (INNER_LIPS, 1.2)}
_EYES = ((36, 39), (42, 45))  # corners of the right and the left eye, from left to right in the picture
_LID_POINTS = ((37, 38, 40, 41), (43, 44, 46, 47))
_OPEN_MM = 10.0  # between the lids of an open eye
# How far landmarks of closed lids are apart, in openings of the open eye: dlib's 0.65 to 0.8, those of the landmark
# network 0.9 and 0.55 with two sets of its weights. There is one number for all, since it matters little: weights of
# blinks in a rendered clip err by 0.070 with 0.75 and 0.071 with 0.9 or 1 for the former, by 0.033 with 0.75 and 0.034
# with 0.55 for the latter.
_SEEN_CLOSED = 0.75
_LID_ERROR_MM = 4.0  # how far each then lies from where it should


def _openings(
    problem: Problem, mm_px: float, lids: LidOpening | None, overclosed: Float[np.ndarray, "2"]
) -> tuple[dict[str, AbstractTerm], Float[Array, "68"]]:
    """Terms that follow blinks and speech; and the noise in px of all landmarks, since lids' points miss blinks.

    A deviation of 1 mm is one of `mm_px` pixels. `lids` is how far the eyes are open by their pixels, if that is known;
    else the landmarks of lids are taken as they are. `overclosed` is how far a closed eye's upper points lie below the
    lower ones in the model, in openings.
    """
    known = np.isfinite(np.asarray(problem.sigma_px))
    points = jnp.asarray(np.where(known[:, None], np.asarray(problem.points_px), np.nan))
    share, noise = (np.ones(2), np.zeros(2)) if lids is None else (lids.share, lids.noise)
    share, noise = np.where(np.isfinite(share), share, 1.0), np.where(np.isfinite(share), noise, 0.0)
    # The landmarks' distance stands for an opening from _SEEN_CLOSED to 1; this makes it one from -overclosed to 1.
    stretch = (share - (1 - share) * overclosed) / (_SEEN_CLOSED + (1 - _SEEN_CLOSED) * share)
    sigma_mm = {name: np.full(len(pairs), mm) for name, (pairs, mm) in _OPENINGS.items()}
    sigma_mm["lids"] = np.hypot(sigma_mm["lids"], np.repeat(_OPEN_MM * noise, 2))
    terms: dict[str, AbstractTerm] = {
        name: relative_term(
            problem.model.landmarks, points, pairs, jnp.asarray(sigma_mm[name] * mm_px, jnp.float32), problem.centre
        )
        for name, (pairs, _) in _OPENINGS.items()
    }
    seen = jnp.asarray(np.repeat(stretch, 2)[:, None], jnp.float32)
    terms["lids"] = eqx.tree_at(lambda term: term.difference_px, terms["lids"], replace_fn=lambda apart: apart * seen)
    sigma_px = np.array(problem.sigma_px)
    for eye, rows in enumerate(_LID_POINTS):
        sigma_px[list(rows)] = np.hypot(sigma_px[list(rows)], _LID_ERROR_MM * mm_px * (1 - share[eye]))
    return terms, jnp.asarray(sigma_px)


def _overclosed(model: SolverModel, names: tuple[str, ...]) -> Float[np.ndarray, "2"]:
    """How far the lids' points of each eye pass each other at a whole blink, in openings of the open eye."""
    out = np.zeros(2)
    mean, modes = np.asarray(model.landmarks.mean), np.asarray(model.landmarks.modes)[..., model.identity_rank :]
    for eye, unit in enumerate(("eyeBlinkRight", "eyeBlinkLeft")):
        if unit not in names:
            continue
        upper, lower = (np.array(side) for side in zip(*LIDS[2 * eye : 2 * eye + 2], strict=True))
        apart = mean[upper] - mean[lower]
        moved = modes[upper, :, names.index(unit)] - modes[lower, :, names.index(unit)]
        out[eye] = -1.0 - float(np.sum(moved * apart) / np.sum(apart**2))
    return np.clip(out, 0.0, 0.5)


_begun = eqx.filter_jit(lambda problem, face, row: start_stage(problem, face, row)[0])


@eqx.filter_jit
def _linearised(problem: Problem, weight: Float[Array, "block point"], face: FaceParameters, row: StageRow):
    quadratic, energies = linearise_all(problem.terms(row, weight), face)
    # The focal length is known, and last but the offset: without it the blocks lie as in smoothing.Blocks.
    kept = np.delete(np.arange(face.layout.size), face.layout.block("focal").start)
    return quadratic.hessian[jnp.ix_(kept, kept)], quadratic.gradient[kept], energies


class FrameFitter:
    """Fits frames of one person with one camera; all frames share two compiled programs."""

    def __init__(self, fitter: Fitter, who: Identity, sight: Sight, samples: int, noise: float):
        personal = personal_model(fitter.solver_model, who.identity, who.albedo)
        self.fitter = fitter.of_person(personal, functools.partial(folded, identity=who.identity))
        self.who, self.sight = who, sight
        self.units = int(self.fitter.solver_model.free_units.shape[0])
        self.at = Blocks(self.units)
        self._stages = {
            "landmarks": Stage("landmarks", (), 8, without=("photometric",)),
            "coarse": Stage("photo, coarse", (), 8, level=0, samples=samples),
            "fine": Stage("photo, fine", (), 8, level=1, samples=samples, noise=noise),
        }
        self._rows: dict[str, StageRow] = {}
        self._overclosed = _overclosed(self.fitter.solver_model, tuple(fitter.model.expression_names))

    def seen(self, photo: Photo, face: Face, lids: LidOpening | None = None) -> tuple[Seen, Motion]:
        """A frame's problem, not yet told which samples to believe, and the closed-form start."""
        problem, first, box = self.fitter.problem(photo, face, self.who.focal_px)
        mm_px = float(jnp.exp(first.log_focal) / first.pose.translation()[2]) * unsureness(face)
        terms, sigma_px = _openings(problem, mm_px, lids, self._overclosed)
        problem = dataclasses.replace(problem, extra={**problem.extra, **terms}, sigma_px=sigma_px)
        total = problem.model.skin.geometry.shape
        x0, y0, side = (float(v) for v in box[:3])
        zoom = self.fitter.settings.image_size / side
        seen = Seen(problem, jnp.zeros((total[0], total[2])), zoom, (x0, y0, side, side))
        pose = np.asarray(first.pose.as_matrix(), float)
        return seen, single(0.0, pose, np.zeros(self.units), self.who.light, np.zeros(3))

    def row(self, stage: str, seen: Seen) -> StageRow:
        """A stage as data; made once, since all frames have problems of the same shape."""
        if stage not in self._rows:
            self._rows[stage] = self._stages[stage].row(seen.problem)
        return self._rows[stage]

    def moved(self, motion: Motion, step) -> Motion:
        """The motion after a step, expression weights between the model's limits."""
        return moved(motion, step, np.asarray(self.fitter.solver_model.limits, float))

    def bounds(self, motion: Motion):
        """Between which steps expression weights stay between the model's limits."""
        return bounds(motion, np.asarray(self.fitter.solver_model.limits, float))

    def believing(self, seen: Seen, motion: Motion, frame: int = 0, stage: str = "fine") -> Seen:
        """The frame with its skin samples weighed as they are seen from a pose."""
        weight = _begun(seen.problem, self._face(seen, motion, frame), self.row(stage, seen))
        return Seen(seen.problem, weight, seen.zoom, seen.box)

    def _face(self, seen: Seen, motion: Motion, frame: int) -> FaceParameters:
        single = lambda x: jnp.asarray(np.asarray(x, np.float32))  # noqa: E731
        quaternion = Rotation.from_matrix(motion.rotation[frame]).as_quat(scalar_first=True)
        return FaceParameters(
            identity=single(np.zeros(0)),
            expression=single(motion.expression[frame]),
            albedo=single(np.zeros(0)),
            light=single(motion.light[frame].reshape(9, 3)),
            pose=jaxlie.SE3(single(np.r_[quaternion, motion.place[frame]])),
            log_focal=single(np.log(self.who.focal_px * seen.zoom)),
            offset=single(motion.offset[frame]),
            limits=self.fitter.solver_model.limits,
        )

    def linearise(self, seen: Seen, motion: Motion, frame: int, stage: str = "fine"):
        """Hessian, gradient and energies of a frame's own terms, in double precision."""
        out = _linearised(seen.problem, seen.weight, self._face(seen, motion, frame), self.row(stage, seen))
        return tuple(np.asarray(x, np.float64) for x in out)

    def chain(self, frames: list[Seen | None], motion: Motion, stage: str = "fine") -> Chain:
        """The frames' own terms as a chain without ties; None has no terms."""
        n, count = self.at.size, len(motion)
        diagonal, gradient, energy = np.zeros((count, n, n)), np.zeros((count, n)), 0.0
        for t, seen in enumerate(frames):
            if seen is not None:
                hessian, slope, energies = self.linearise(seen, motion, t, stage)
                diagonal[t, : len(slope), : len(slope)], gradient[t, : len(slope)] = hessian, slope
                energy += float(energies.sum())
        return Chain(diagonal, np.zeros((max(count - 1, 0), n, n)), gradient, energy)

    def free(self, *blocks: str) -> np.ndarray:
        """Which unknowns may move; units that no photo shows never do."""
        mask = np.zeros(self.at.size, bool)
        for block in blocks:
            mask[getattr(self.at, block)] = True
        mask[self.at.expression] &= np.asarray(self.fitter.solver_model.free_units) > 0
        return mask

    def solve(self, seen: Seen, start: Motion, stage: str, free: np.ndarray, steps: int, tolerance: float) -> Motion:
        """One frame by Levenberg-Marquardt."""
        return chain_least_squares(
            lambda m: self.chain([seen], m, stage), self.moved, self.bounds, start, free, steps, tolerance
        ).state

    def unlike(self, seen: Seen, photometric: float) -> float:
        """How far the skin differs from what is expected there: 0 as the model has it, 1 where all is an outlier."""
        problem, blocks = seen.problem, int(self.row("fine", seen).blocks)
        believed = float(jnp.sum(seen.weight[:blocks])) / (blocks * seen.weight.shape[1])
        most = 0.5 * NOMINAL_SAMPLES * believed * 3 * float(problem.photometric_cutoff / problem.photometric_sigma) ** 2
        return photometric / most if most > 0 else 1.0

    def fit(
        self, photo: Photo, face: Face, start: Motion | None, thorough: bool = False
    ) -> tuple[Motion, Seen, dict[str, float]]:
        """A frame from a start, or from its landmarks alone; its observations and energies."""
        seen, first = self.seen(photo, face)
        motion = start
        everything = self.free("expression", "light", "pose", "offset")
        if motion is None:
            motion = self.solve(seen, first, "landmarks", self.free("pose"), 6, 1e-3)
            motion = self.solve(seen, motion, "landmarks", self.free("pose", "expression"), 8, 1e-3)
            seen = self.believing(seen, motion, stage="coarse")
            motion = self.solve(seen, motion, "coarse", everything, 8, 1e-3)
        seen = self.believing(seen, motion)
        # What a start leaves undone, the next frames would make up for, and it would look like motion.
        motion = self.solve(seen, motion, "fine", everything, *((30, 1e-5) if thorough else (10, 5e-4)))
        energies = self.linearise(seen, motion, 0)[2]
        names = sorted((*OBSERVATIONS, *PRIORS, *seen.problem.extra))
        return motion, seen, dict(zip(names, energies.tolist(), strict=True))


def single(time: float, pose, expression, light, offset) -> Motion:
    """One frame's motion, at rest."""
    row = lambda x: np.asarray(x, np.float64)[None]  # noqa: E731
    return Motion(
        times=row(time),
        rotation=row(pose[:3, :3]),
        place=row(pose[:3, 3]),
        velocity=np.zeros((1, 6)),
        expression=row(expression),
        light=row(np.reshape(light, 27)),
        offset=row(offset),
    )


# ------------------------------------------------------------------------------------------------------- the tracker


@dataclasses.dataclass(frozen=True)
class FollowSettings:
    """When a frame belongs to the one before, and when the face is lost."""

    cut_change: float = 0.09  # mean change of a small picture above which the scene may have been cut ...
    cut_ratio: float = 5.0  # ... if it is this many times the usual one
    lost_spread: float = 0.06  # of the landmarks, above which there is no face, or from UNSURE_SPREAD on ...
    lost_unlike: float = 0.5  # ... this share of what would be lost if no skin looked like the face's
    lost_doubt: float = 2.2  # spread over UNSURE_SPREAD times the root of misfit over usual_energy
    lost_mm: float = 10.0  # median distance of model and landmarks
    jump_mm: float = 60.0  # a head that moved farther from its prediction than this, or ...
    jump_rad: float = 0.6  # ... turned farther, is another shot
    gap_s: float = 0.5  # time without frames after which nothing is predicted
    patience_s: float = 1.0  # between two thorough searches for a lost face

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(
                    f"{field.name}: got {getattr(self, field.name)}, expected a positive number. "
                    "Leave it out for the default."
                )


_THUMBNAIL = (48, 27)
_USUAL = 12  # frames over which the usual change of the picture is taken


def thumbnail(photo: Photo) -> Float[np.ndarray, "row column 3"]:
    """The picture in 48 x 27 pixels, to see cuts."""
    small = Image.fromarray(photo.pixels).resize(_THUMBNAIL, Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small, np.float32) / 255


class FrameTracker:
    """Follows one face through frames given in order. What it remembers is in its last rows, so it can be resumed."""

    def __init__(self, frames: FrameFitter, settings: FollowSettings):
        self.frames, self.settings = frames, settings
        self._picture: np.ndarray | None = None
        self._changes: list[float] = []
        self._recent: list[dict[str, Any]] = []  # at most two rows of this segment
        self._segment = -1
        self._searched = -np.inf  # when a lost face was last searched for thoroughly

    def resume(self, rows: list[dict[str, Any]], last: Photo) -> None:
        """Go on after these rows (the last dozen are enough); `last` is the picture of the last of them."""
        self._picture = thumbnail(last)
        self._changes = [float(r["change"]) for r in rows][-_USUAL:]
        self._segment = max((int(r["highest"]) for r in rows), default=-1)
        self._searched = float(rows[-1]["searched"])
        self._recent = []
        for row in rows[-2:]:
            if row["segment"] < 0 or (self._recent and self._recent[-1]["segment"] != row["segment"]):
                self._recent = []
            if row["segment"] >= 0:
                self._recent.append(row)

    def follow(self, frame: Frame) -> dict[str, Any]:
        """The next frame's row."""
        picture = thumbnail(frame.photo)
        change = 0.0 if self._picture is None else float(np.abs(picture - self._picture).mean())
        usual = float(np.median(self._changes)) if self._changes else change
        cut = change > self.settings.cut_change and change > self.settings.cut_ratio * usual
        self._picture, self._changes = picture, [*self._changes, change][-_USUAL:]
        if cut:
            self._recent, self._searched = [], -np.inf
        found = self._continued(frame)
        if found is None:
            before = self._recent
            self._recent = []
            found = self._searched_for(frame)
            if found is not None and before and self._near(found[0], self._predicted(before, frame.time_s)):
                self._recent = before
        if found is None:
            self._recent = []
            return self._row(frame, change, None)
        if not self._recent:
            self._segment += 1
        row = self._row(frame, change, found)
        self._recent = [*self._recent, row][-2:]
        return row

    def _continued(self, frame: Frame):
        """The face where it must be by now, or None."""
        if not self._recent or frame.time_s - self._recent[-1]["time"] > self.settings.gap_s:
            return None
        predicted = self._predicted(self._recent, frame.time_s)
        face = self._placed(frame.photo, predicted)
        if face is None or face.spread > self.settings.lost_spread:
            return None
        found = self._fitted(frame, face, predicted)
        return found if found is not None and self._near(found[0], predicted) else None

    def _searched_for(self, frame: Frame):
        face = self.frames.sight.largest(frame.photo)
        if face is None and frame.time_s - self._searched >= self.settings.patience_s:
            self._searched = frame.time_s
            face = self.frames.sight.largest(frame.photo, thorough=True)
        found = None if face is None else self._fitted(frame, face, None)
        if found is None:
            return None
        # Points depend on the box, dlib's most of all: taken as in all frames that follow, or the head would jump once.
        again = self._placed(frame.photo, found[0])
        refined = None if again is None else self._fitted(frame, again, found[0], thorough=True)
        return found if refined is None else refined

    def _fitted(self, frame: Frame, face: Face, start: Motion | None, thorough: bool = False):
        motion, seen, energies = self.frames.fit(frame.photo, face, start, thorough)
        settings, fit = self.settings, self.frames.fitter.settings
        misfit = sum(energies.get(name, 0.0) for name in GEOMETRY)
        doubt = max(face.spread, UNSURE_SPREAD / 2) / UNSURE_SPREAD * np.sqrt(max(misfit, 0.0) / fit.usual_energy)
        finite = np.isfinite([*energies.values(), *motion.place[0]]).all()
        away = motion.rotation[0][2, 2] > 0.0  # -1 for a head that faces the camera
        if not finite or away or motion.place[0, 2] < 50:
            return None
        # Closed eyes and fast turns make dlib unsure; the skin then says whether it is still the face.
        unlike = self.frames.unlike(seen, energies["photometric"])
        if unlike > settings.lost_unlike and (doubt > settings.lost_doubt or face.spread > UNSURE_SPREAD):
            return None
        if doubt > 2 * settings.lost_doubt:
            return None
        middle = np.array([frame.photo.width / 2, frame.photo.height / 2])
        error = np.linalg.norm(self._landmarks(motion)[17:] + middle - face.landmarks[17:], axis=1)
        if np.nanmedian(error) * motion.place[0, 2] / self.frames.who.focal_px > settings.lost_mm:
            return None
        return motion, face, {"misfit": misfit, "doubt": doubt, "unlike": unlike}

    def _placed(self, photo: Photo, motion: Motion) -> Face | None:
        """The face where a motion has it."""
        if motion.place[0, 2] < 50:
            return None
        middle = np.array([photo.width / 2, photo.height / 2])
        landmarks = self._landmarks(motion) + middle
        head = Whereabouts(motion.rotation[0], motion.place[0], landmarks, self.frames.who.focal_px)
        return self.frames.sight.placed(photo, head)

    def _landmarks(self, motion: Motion) -> Float[np.ndarray, "68 2"]:
        """The model's points, in pixels from the picture's middle."""
        camera = self._camera_landmarks(motion)
        return self.frames.who.focal_px * camera[:, :2] / camera[:, 2:]

    def _camera_landmarks(self, motion: Motion) -> Float[np.ndarray, "68 3"]:
        basis = self.frames.fitter.solver_model.landmarks
        head = np.asarray(basis.mean) + np.asarray(basis.modes) @ motion.expression[0]
        return head @ motion.rotation[0].T + motion.place[0]

    def _eyes(self, photo: Photo, motion: Motion) -> list[EyeDark]:
        """The dark of the right and the left eye; their corners are the model's, which do not shake as dlib's do."""
        camera, pixels = self._camera_landmarks(motion), self._landmarks(motion)
        pixels = pixels + np.array([photo.width / 2, photo.height / 2])
        per_mm = self.frames.who.focal_px / motion.place[0, 2]
        lengths = [float(np.linalg.norm(camera[b] - camera[a])) * per_mm for a, b in _EYES]
        return [eye_dark(photo, pixels[list(eye)], n) for eye, n in zip(_EYES, lengths, strict=True)]

    def _predicted(self, rows: list[dict[str, Any]], time: float) -> Motion:
        """Constant velocity from the last two frames; expression, light and offset stay."""
        last = rows[-1]
        motion = single(time, last["pose"], last["expression"], last["light"], last["offset"])
        if len(rows) < 2:
            return motion
        before = rows[0]
        relative = np.linalg.inv(before["pose"]) @ last["pose"]
        twist = logarithm(relative[None, :3, :3], relative[None, :3, 3])
        ahead = min((time - last["time"]) / max(last["time"] - before["time"], 1e-6), 3.0)
        turn, shift = exponential(ahead * twist)
        return dataclasses.replace(
            motion,
            rotation=motion.rotation @ turn,
            place=motion.place + np.einsum("tij,tj->ti", motion.rotation, shift),
        )

    def _near(self, motion: Motion, predicted: Motion) -> bool:
        apart = motion.place[0] - predicted.place[0]
        # Depth is known ten times worse than what lies across.
        apart = apart * [1.0, 1.0, 0.3]
        turned = Rotation.from_matrix(motion.rotation[0].T @ predicted.rotation[0]).magnitude()
        return bool(np.linalg.norm(apart) < self.settings.jump_mm and turned < self.settings.jump_rad)

    def _row(self, frame: Frame, change: float, found) -> dict[str, Any]:
        units = self.frames.units
        pose = np.full((4, 4), np.nan)
        row = {
            "time": frame.time_s,
            "index": frame.index,
            "segment": -1,
            "highest": self._segment,
            "searched": self._searched,
            "change": change,
            "pose": pose,
            "expression": np.full(units, np.nan),
            "light": np.full((9, 3), np.nan),
            "offset": np.full(3, np.nan),
            **self.frames.sight.kept(None),
            "misfit": np.nan,
            "doubt": np.nan,
            "unlike": np.nan,
            "eye_depth": np.full(2, np.nan),
            "eye_thickness": np.full((2, len(LEVELS)), np.nan),
        }
        if found is None:
            return row
        motion, face, figures = found
        eyes = self._eyes(frame.photo, motion)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = motion.rotation[0], motion.place[0]
        return row | {
            "segment": self._segment,
            "pose": pose,
            "expression": motion.expression[0],
            "light": motion.light[0].reshape(9, 3),
            "offset": motion.offset[0],
            **self.frames.sight.kept(face),
            "eye_depth": np.stack([eye.depth for eye in eyes]),
            "eye_thickness": np.stack([eye.thickness for eye in eyes]),
            **figures,
        }
