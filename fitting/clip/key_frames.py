"""Who is in a clip: a few sharp frames that show the head from different sides make one identity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import laplace

from fitting.clip.exposure import likely_albedo
from fitting.clip.frames import Frame, describe_video, read_frames
from fitting.clip.sight import Sight
from fitting.detection import Face, LandmarkProvider, NoFaceError
from fitting.fit import Fitter
from fitting.landmark_start import LandmarkFitError, weak_perspective_pose
from fitting.multi_image import fit_together
from fitting.observation import Photo

_SAMPLES = 48  # candidates that are kept; twice as many are looked at, then every second is dropped
_PER_SECOND = 8.0  # candidates looked at, at most
_SHARP = 0.6  # of the candidates' median sharpness; what is below is blurred by motion or focus
_NOVEL = 0.5  # distance in the units below under which a further frame shows nothing new


@dataclass(frozen=True, eq=False)
class Candidate:
    """A frame that may become a key frame."""

    index: int
    time_s: float
    face: Face
    view: Float[np.ndarray, "4"]  # yaw and pitch in 12 degrees, openings of mouth and eyes in a sixteenth of the face
    sharpness: float


@dataclass(frozen=True, eq=False)
class Identity:
    """What all frames share."""

    identity: Float[np.ndarray, " identity"]
    albedo: Float[np.ndarray, " albedo"]
    focal_px: float
    light: Float[np.ndarray, "9 3"]  # of a key frame, to begin with
    key_frames: tuple[int, ...]


def candidates(
    path: str,
    mean_landmarks: Float[np.ndarray, "68 3"],
    sight: Sight,
    told: Callable[[int], None] | None = None,
) -> list[Candidate]:
    """Frames spread evenly over the clip that show a face. Their number is bounded, whatever the clip's length."""
    stride = max(1, round(describe_video(path).rate / _PER_SECOND))
    looked: list[tuple[int, Candidate | None]] = []
    for frame in read_frames(path, every=1 if stride == 1 else stride):
        if told is not None:
            told(frame.index)
        if frame.index % stride:
            continue
        looked.append((frame.index, candidate(frame, mean_landmarks, sight)))
        if len(looked) == 2 * _SAMPLES:
            # The length of a clip is often not known, and stated wrongly: halve the rate as it turns out to be long.
            stride *= 2
            looked = [(i, c) for i, c in looked if i % stride == 0]
    return [c for _, c in looked if c is not None]


def candidate(frame: Frame, mean_landmarks: Float[np.ndarray, "68 3"], sight: Sight) -> Candidate | None:
    """What a frame is worth as a key frame; None without a face."""
    face = sight.largest(frame.photo)
    if face is None:
        return None
    points = face.landmarks
    try:
        rotation, scale, _ = weak_perspective_pose(mean_landmarks, np.asarray(points, float))
    except LandmarkFitError:
        return None
    towards = rotation.T @ [0.0, 0.0, -1.0]  # where the camera is, seen from the head
    yaw, pitch = np.arctan2(towards[0], towards[2]), np.arcsin(np.clip(towards[1], -1, 1))
    apart = lambda a, b: float(np.nanmean(np.linalg.norm(points[list(a)] - points[list(b)], axis=1))) / scale  # noqa: E731
    mouth, eyes = apart((61, 62, 63), (67, 66, 65)), apart((37, 38, 43, 44), (41, 40, 47, 46))
    view = np.array([yaw, pitch, 0.0, 0.0]) / np.radians(12) + np.array([0.0, 0.0, mouth / 8, eyes / 4])
    return Candidate(frame.index, frame.time_s, face, np.nan_to_num(view), sharpness(frame.photo, face))


def sharpness(photo: Photo, face: Face) -> float:
    """Energy of the Laplacian over the contrast of the face, at one size for all frames."""
    x0, y0, x1, y1 = face.box
    grey = photo.crop_srgb((x0, y0, x1 - x0, y1 - y0), 128)[0].mean(axis=2)
    return float(np.std(laplace(grey)) / max(float(np.std(grey)), 0.02))


def choose(found: Sequence[Candidate], count: int) -> list[Candidate]:
    """Sharp frames that differ most in view and expression: farthest points, from the most frontal one on."""
    if not found:
        return []
    sharp = np.array([c.sharpness for c in found])
    good = [c for c, s in zip(found, sharp, strict=True) if s >= _SHARP * np.median(sharp) and not c.face.truncated]
    steady = [c for c in good if c.face.spread <= 0.015]
    pool = steady if len(steady) >= count else (good or list(found))
    views = np.stack([c.view for c in pool])
    chosen = [int(np.argmin(np.abs(views[:, :2]).sum(axis=1)))]
    while len(chosen) < min(count, len(pool)):
        distance = np.linalg.norm(views[:, None] - views[chosen], axis=2).min(axis=1)
        farthest = int(np.argmax(distance))
        if distance[farthest] < _NOVEL and len(chosen) >= 3:
            break
        chosen.append(farthest)
    return sorted((pool[i] for i in chosen), key=lambda c: c.index)


def find_identity(
    fitter: Fitter,
    path: str,
    count: int,
    focal_px: float | None,
    sight: Sight,
    told: Callable[[int], None] | None = None,
) -> Identity:
    """Identity, albedo and focal length from a clip's key frames. Raises NoFaceError where no frame shows a face."""
    found = candidates(path, np.asarray(fitter.solver_model.landmarks.mean), sight, told)
    chosen = choose(found, count)
    if chosen:
        faces = {c.index: c.face for c in chosen}
    else:
        faces = _searched_harder(path, sight)
    frames = list(read_frames(path, wanted=set(faces)))
    photos, seen = [f.photo for f in frames], [faces[f.index] for f in frames]
    return identity_of(fitter, photos, seen, focal_px, tuple(faces), sight.provider)


def _searched_harder(path: str, sight: Sight) -> dict[int, Face]:
    """A face from a few frames, with every detector there is."""
    frames = describe_video(path).frames or 1
    step = max(1, frames // 5)
    for frame in read_frames(path, every=step):
        faces = [face for face in sight.provider.faces(frame.photo, None, False) if face.sure]
        if faces:
            return {frame.index: max(faces, key=lambda f: f.box[2] - f.box[0])}
        if frame.index >= 5 * step:
            break
    raise NoFaceError(
        f"{path}: no face was found in frames spread over the whole clip, expected one, upright, of at least some 40 "
        f"pixels, and turned by less than about 50 degrees. Use a larger or sharper video."
    )


def identity_of(
    fitter: Fitter,
    photos: Sequence[Photo],
    faces: Sequence[Face],
    focal_px: float | None,
    indices: tuple[int, ...],
    provider: LandmarkProvider,
) -> Identity:
    """The identity that the key frames agree on: solved for together, with one focal length."""
    names = [f"frame {index}" for index in indices]
    joint = fit_together(fitter, photos, faces, names=names, same_camera=True, focal_px=focal_px, provider=provider)
    first = joint.fits[0]
    used = tuple(indices[i] for i in joint.indices)
    skin = likely_albedo(joint.fits)
    light = np.asarray(first.light) * skin.light_factor
    return Identity(joint.identity, skin.albedo, float(first.camera.focal[0]), light, used)
