"""A tracked clip as a value: one identity, and pose, expression and light of every frame; how steady it is."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation

from fitting.fit import Fit, Settings
from morphable.model import MorphableModel
from renderer.camera import Pinhole

FORMAT, FORMAT_VERSION = "facefit track", 1

# What C13 of the anchors is about: movements that must not move the head. Names without a side mean both.
LEAKING_UNITS = {"blink": ("eyeBlinkLeft", "eyeBlinkRight"), "jaw": ("jawOpen",)}
_STEADY_MOTION = 0.01  # rms of a frame's change of weight below which a unit has not moved enough to say anything


class TrackFormatError(ValueError):
    """A file that is no track of this program: what, got, expected, remedy."""


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """A clip's motion. Rows of frames without the face are NaN. Pixels are those of the video as displayed."""

    times: Float[np.ndarray, " frame"]  # seconds since the first frame
    poses: Float[np.ndarray, "frame 4 4"]  # T_camera_head, OpenCV camera, mm
    expression: Float[np.ndarray, "frame unit"]  # weights in [0, 1]
    light: Float[np.ndarray, "frame 9 3"]
    offset: Float[np.ndarray, "frame 3"]  # linear RGB
    detected: Float[np.ndarray, "frame 68 2"]  # the landmarks that were looked at
    segment: Int[np.ndarray, " frame"]  # of uninterrupted motion, counted from 0; -1 where the face is lost
    identity: Float[np.ndarray, " identity"]
    albedo: Float[np.ndarray, " albedo"]
    focal_px: float
    width: int
    height: int
    expression_names: tuple[str, ...]
    model: str = ""  # its name, and the hash of its file
    model_sha256: str = ""

    @property
    def lost(self) -> Bool[np.ndarray, " frame"]:
        """Where there is no face."""
        return self.segment < 0

    @property
    def K(self) -> Float[np.ndarray, "3 3"]:
        """OpenCV's intrinsic matrix: the principal point is the picture's middle."""
        return np.array([[self.focal_px, 0, self.width / 2], [0, self.focal_px, self.height / 2], [0, 0, 1]])

    @property
    def R(self) -> Float[np.ndarray, "frame 3 3"]:
        """Rotations from head to camera."""
        return self.poses[:, :3, :3]

    @property
    def t(self) -> Float[np.ndarray, "frame 3"]:
        """Places of the head's origin in the camera's frame, mm."""
        return self.poses[:, :3, 3]

    def camera(self, frame: int) -> Pinhole:
        """The camera of one frame, with the head's pose; of a frame whose face is lost, without sense."""
        quaternion = Rotation.from_matrix(np.nan_to_num(self.R[frame]) + np.eye(3) * self.lost[frame]).as_quat(
            scalar_first=True
        )
        return Pinhole(
            focal=jnp.full(2, self.focal_px, jnp.float32),
            centre=jnp.array([self.width / 2, self.height / 2], jnp.float32),
            pose=jaxlie.SE3(jnp.asarray(np.r_[quaternion, self.t[frame]], jnp.float32)),
            height=self.height,
            width=self.width,
        )

    def fit(self, model: MorphableModel, frame: int) -> Fit:
        """One frame as a `Fit`, for pictures, textures and export."""
        if self.lost[frame]:
            raise ValueError(f"Track.fit: frame {frame} has no face, expected one of a segment. See Track.lost.")
        return Fit(
            model=model,
            camera=self.camera(frame),
            identity=self.identity.astype(np.float32),
            expression=self.expression[frame].astype(np.float32),
            albedo=self.albedo.astype(np.float32),
            light=self.light[frame].astype(np.float32),
            detected=self.detected[frame].astype(np.float32),
            source="track",
            result="converged",
            reason="",
            energies={},
            stages=[],
            timings={},
            settings=Settings(),
            hessian=None,
        )

    def landmarks(self, model: MorphableModel) -> Float[np.ndarray, "frame 68 3"]:
        """The model's `landmarks3d` of every frame in the camera's frame, mm."""
        points = model.landmarks3d
        corners, weights = np.asarray(points.vertices), np.asarray(points.weights)
        mix = lambda x: np.einsum("pc,pc...->p...", weights, np.asarray(x)[corners])  # noqa: E731
        neutral = mix(model.shape.mean) + mix(model.shape.modes) @ self.identity
        head = neutral + np.einsum("pxu,fu->fpx", mix(model.expression), self.expression)
        return np.einsum("fxy,fpy->fpx", self.R, head) + self.t[:, None]

    def project(self, camera_points: Float[np.ndarray, "frame point 3"]) -> Float[np.ndarray, "frame point 2"]:
        """Pixels of points in the camera's frame."""
        middle = np.array([self.width / 2, self.height / 2])
        return self.focal_px * camera_points[..., :2] / camera_points[..., 2:] + middle

    def save(self, path: str | os.PathLike) -> None:
        """Write one .npz; lengths mm, angles by matrices, pixels of the video, times in seconds."""
        arrays: dict[str, Any] = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("expression_names",)
        }
        arrays |= {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "expression_names": np.array(self.expression_names),
            "lost": self.lost,
            "K": self.K,
            "R": self.R,
            "t": self.t,
        }
        partial = Path(path).with_name(f".{Path(path).name}.partial.npz")
        np.savez(partial, **arrays)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Track":
        """The inverse of `save`. Raises TrackFormatError for other files and for tracks of a later version."""
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
        except (OSError, ValueError, EOFError, KeyError) as cause:
            raise TrackFormatError(f"{path}: cannot be read ({cause}), expected the track.npz of facefit.") from cause
        if str(arrays.get("format", "")) != FORMAT or int(arrays.get("version", 0)) > FORMAT_VERSION:
            raise TrackFormatError(
                f"{path}: got {str(arrays.get('format', 'no format'))!r} version {arrays.get('version', 'unknown')}, "
                f"expected {FORMAT!r} up to version {FORMAT_VERSION}. Write it with 'facefit track'."
            )
        values: dict[str, Any] = {f.name: arrays[f.name] for f in dataclasses.fields(cls)}
        values["expression_names"] = tuple(str(name) for name in arrays["expression_names"])
        for name, kind in (("focal_px", float), ("width", int), ("height", int), ("model", str), ("model_sha256", str)):
            values[name] = kind(values[name])
        return cls(**values)


# ------------------------------------------------------------------------------------------------- how steady it is


@dataclasses.dataclass(frozen=True)
class Steadiness:
    """How much a track shakes, and how much of the head's motion is a face moving."""

    jitter_px: float  # rms of second differences of the 68 points in the picture, per frame
    jitter_mm: float  # the same of the points in space, depth included
    depth_jitter_mm: float  # the same of the head's depth alone
    rotation_jitter_deg: float  # the same of the head's rotation
    leakage: float  # share of the head's frame-to-frame motion that changes of blink and jaw predict, 0 to 1
    leakage_mm: dict[str, float]  # mm that the head moves in depth for each unit of blink and jaw; NaN: did not move


def steadiness(track: Track, model: MorphableModel) -> Steadiness:
    """Jitter and leakage of the frames whose two neighbours belong to the same segment.

    Second differences are taken in time, x(t+1) - x(t) over its interval less the one before, times the mean interval,
    so uneven frames of an even motion have none. What remains of a steady track is the head's true acceleration.
    """
    points = track.landmarks(model)
    rotation = np.zeros((len(track.times), 3))
    turns = _rotation_steps(track)
    rotation[1:] = np.cumsum(np.nan_to_num(turns), axis=0)
    pixels = track.project(points)
    rms = lambda x, per: float(np.sqrt(np.mean(np.sum(x**2, axis=-1)))) * per if x.size else float("nan")  # noqa: E731
    score, slopes = leakage(track)
    return Steadiness(
        jitter_px=rms(second_differences(pixels, track), 1.0),
        jitter_mm=rms(second_differences(points, track), 1.0),
        depth_jitter_mm=rms(second_differences(track.t[:, None, 2:], track), 1.0),
        rotation_jitter_deg=rms(second_differences(rotation[:, None], track), np.degrees(1.0)),
        leakage=score,
        leakage_mm=slopes,
    )


def second_differences(values: Float[np.ndarray, "frame point n"], track: Track) -> Float[np.ndarray, "triple point n"]:
    """Second differences of what was seen in three frames in a row of one segment, in units per frame."""
    interval = np.diff(track.times)
    s = track.segment
    whole = (s[:-2] >= 0) & (s[:-2] == s[1:-1]) & (s[1:-1] == s[2:])
    velocity = np.diff(values, axis=0) / np.maximum(interval, 1e-9)[:, None, None]
    mean = (interval[1:] + interval[:-1]) / 2
    return ((velocity[1:] - velocity[:-1]) * mean[:, None, None])[whole]


def offset_error(points: Float[np.ndarray, "frame point n"], truth: Float[np.ndarray, "frame point n"]) -> float:
    """3DDFA's stability: rms difference between the points' frame-to-frame offsets and the true ones, in their unit.

    It needs a clip with known truth. A constant error counts for nothing, a shake and a lag do.
    """
    wrong = np.diff(points - truth, axis=0)
    return float(np.sqrt(np.nanmean(np.sum(wrong**2, axis=-1))))


def leakage(track: Track) -> tuple[float, dict[str, float]]:
    """How far the head's motion follows from lids and jaw: the pose/expression leakage of a track.

    The six components of the pose's frame-to-frame change (mm; rotations times 80 mm, the head's radius) are regressed
    on the changes of blink and jaw. The score is the share of their variance that is explained, less what as many
    random regressors would explain (adjusted R², not below 0). People do nod as they speak, so it is not 0 for a
    perfect track; but where the same clip is tracked in two ways, the one whose head moves less with its lids is right.
    The second result is the slope in depth: mm for a change of the weight by 1.
    """
    s = track.segment
    pairs = np.flatnonzero(np.logical_and(s[:-1] >= 0, s[:-1] == s[1:]))
    names = track.expression_names
    columns, moved = [], {}
    for name, units in LEAKING_UNITS.items():
        known = [names.index(u) for u in units if u in names]
        if not known:
            continue
        change = np.diff(track.expression[:, known].mean(axis=1))[pairs]
        moved[name] = np.sqrt(np.mean(change**2)) > _STEADY_MOTION if len(change) else False
        if moved[name]:
            columns.append((name, change))
    nothing = {name: float("nan") for name in LEAKING_UNITS}
    count = len(pairs)
    if not columns or count < 8 + len(columns):
        return float("nan"), nothing
    motion = np.concatenate([np.diff(track.t, axis=0), 80.0 * _rotation_steps(track)], axis=1)[pairs]
    motion = motion - motion.mean(axis=0)
    design = np.stack([c - c.mean() for _, c in columns], axis=1)
    slope, *_ = np.linalg.lstsq(design, motion, rcond=None)
    total, left = np.sum(motion**2), np.sum((motion - design @ slope) ** 2)
    unexplained = left / max(total, 1e-12) * (count - 1) / (count - 1 - len(columns))
    slopes = nothing | {name: float(slope[k, 2]) for k, (name, _) in enumerate(columns)}
    return float(max(0.0, 1 - unexplained)), slopes


def _rotation_steps(track: Track) -> Float[np.ndarray, "step 3"]:
    """Rotation vectors from each frame to the next in the camera's axes; NaN beside lost frames."""
    known = np.asarray(np.isfinite(track.R).all(axis=(1, 2)))
    R = np.where(known[:, None, None], track.R, np.eye(3))
    turn = Rotation.from_matrix(R[1:] @ R[:-1].transpose(0, 2, 1)).as_rotvec()
    return np.where((known[1:] & known[:-1])[:, None], turn, np.nan)


def model_provenance(model: MorphableModel) -> tuple[str, str]:
    """Name and hash that tell one model from another, in-memory ones included."""
    digest = hashlib.sha256(model.provenance.sha256.encode())
    if not model.provenance.sha256:
        for leaf in (model.shape.mean, model.shape.modes, model.expression):
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return model.provenance.name, digest.hexdigest()
