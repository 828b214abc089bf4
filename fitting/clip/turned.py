"""Short clips of one photo: its face turns and the whole picture moves, with a known truth for every frame.

Guo et al. (2020, "Towards fast, accurate and stable 3D dense face alignment") make video of stills so, to train on.
Here it is a test of trackers as well: `fitting.clip.motion.offset_error` says how steady a track of it is.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Bool, Float

from fitting.face_profiling import Picture, ProfileMesh, ProfilingError, encoded, seen_turned, turn_of

_WAVES = 3  # whose sum is a motion
_SLOWEST = 0.3  # of the fastest wave's frequency
_FLOOR = 0.05  # of white's variance of noise, which black has, too


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How a photo moves. Motions are smooth and random, up to so far to either side of the photo; angles in degrees."""

    yaw: float = 25.0  # of the head, out of the picture's plane
    pitch: float = 10.0
    roll: float = 8.0
    tilt: float = 5.0  # of the whole picture, in its plane, as are the next two
    shift: float = 0.06  # of the picture's longer side
    zoom: float = 0.1  # logarithm of the factor
    fastest_hz: float = 0.8
    rate: float = 25.0  # frames per second
    shutter: float = 0.5  # share of the time between frames in which light is gathered: motion blur
    exposures: int = 5  # that a frame is the mean of; odd, so that the truth is the middle one's
    noise: float = 0.012  # deviation of a white pixel's linear value; darker ones have less

    def __post_init__(self):
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:  # nan is not, either
                raise ProfilingError(
                    f"{name}: got {getattr(self, name)}, expected {least:g} to {most:g}. Leave it out for the default."
                )
        if self.exposures % 2 != 1:
            raise ProfilingError(f"exposures: got {self.exposures}, expected an odd whole number. Add one.")


_LIMITS = {
    "yaw": (0, 90),
    "pitch": (0, 60),
    "roll": (0, 90),
    "tilt": (0, 90),
    "shift": (0, 0.3),
    "zoom": (0, 0.4),
    "fastest_hz": (0.01, 5),
    "rate": (1, 240),
    "shutter": (0, 1),
    "exposures": (1, 65),
    "noise": (0, 0.5),
}
_MOTIONS = ("yaw", "pitch", "roll", "tilt", "across", "down", "zoom")


class ClipFrame(NamedTuple):
    """A frame of a short clip, and its truth in the middle of the exposure."""

    pixels: Picture
    time_s: float
    landmarks: Float[np.ndarray, "68 2"]  # px, of fixed points of the surface
    visible: Bool[np.ndarray, "68"]  # inside the frame and not behind another part of the head
    points: Float[np.ndarray, "68 3"]  # the landmarks, mm in the camera's frame
    pose: jaxlie.SE3  # T_camera_head


def short_video(
    profile: ProfileMesh, seed: int = 0, frames: int = 60, settings: ClipSettings | None = None
) -> Iterator[ClipFrame]:
    """A clip of a photo that turns, shifts, tilts and comes nearer, with motion blur and noise; frame after frame.

    Equal seeds give equal bytes, and the first frames of a longer clip are those of a shorter one. Raises
    ProfilingError for what cannot be drawn, before the first frame.
    """
    settings = ClipSettings() if settings is None else settings
    if frames < 1 or seed < 0:
        raise ProfilingError(
            f"short_video: got seed {seed} and {frames} frames, expected a seed of 0 or more and at least one frame. "
            "Leave them out for the defaults."
        )
    return _frames(profile, seed, frames, settings)


def motion(
    seed: int, times: Float[np.ndarray, " time"], settings: ClipSettings
) -> dict[str, Float[np.ndarray, " time"]]:
    """The course of each motion of a seed's clip: yaw, pitch, roll, tilt (degrees), across, down (sides), zoom (log).

    A sum of sines whose amplitudes add up to the setting, so it is never exceeded, and no speed exceeds
    2 pi fastest_hz times it.
    """
    share, hz, phase = np.random.default_rng([seed, 0]).uniform(size=(3, len(_MOTIONS), _WAVES, 1))
    share = (0.2 + share) / np.sum(0.2 + share, axis=1, keepdims=True)
    hz = settings.fastest_hz * (_SLOWEST + (1.0 - _SLOWEST) * hz)
    course = np.sum(share * np.sin(2 * np.pi * (hz * np.asarray(times, float) + phase)), axis=1)
    reach = {name: settings.shift if name in ("across", "down") else getattr(settings, name) for name in _MOTIONS}
    return {name: reach[name] * values for name, values in zip(_MOTIONS, course, strict=True)}


def _frames(profile: ProfileMesh, seed: int, frames: int, settings: ClipSettings) -> Iterator[ClipFrame]:
    half = settings.exposures // 2 if settings.shutter > 0 else 0
    opened = settings.shutter / settings.rate * np.arange(-half, half + 1) / settings.exposures
    for index in range(frames):
        time = index / settings.rate
        course = motion(seed, time + opened, settings)
        moments = [{name: values[i] for name, values in course.items()} for i in range(len(opened))]
        views = [seen_turned(profile, *_moved(profile, moment)) for moment in moments]
        middle = views[half]
        linear = np.mean([np.asarray(view.linear) for view in views], axis=0)
        grain = np.random.default_rng([seed, 1 + index]).normal(size=linear.shape)
        linear = linear + settings.noise * np.sqrt(np.maximum(linear, 0.0) + _FLOOR) * grain
        yield ClipFrame(
            pixels=encoded(linear.astype(np.float32)),
            time_s=time,
            landmarks=np.asarray(middle.landmarks, float),
            visible=np.asarray(middle.visible),
            points=np.asarray(middle.points, float),
            pose=middle.pose,
        )


def _moved(profile: ProfileMesh, course: dict[str, float]) -> tuple[jaxlie.SO3, jaxlie.SE3]:
    """The head's turn, and the motion of the whole scene that tilts, shifts and enlarges the picture.

    In space rather than in the picture: so one camera sees all frames, and the truth is a pose in each.
    """
    turn = turn_of(course["yaw"], course["pitch"], course["roll"])
    camera, pivot = profile.camera, np.asarray(profile.pivot, float)
    side = max(camera.height, camera.width) * float(camera.pixel_size(profile.pivot[2:])[0])  # mm at the head
    nearer = math.exp(-course["zoom"])
    place = nearer * (pivot + side * np.array([course["across"], course["down"], 0.0]))
    tilt = jaxlie.SO3.from_z_radians(jnp.asarray(math.radians(course["tilt"]), jnp.float32))
    offset = jnp.asarray(place, jnp.float32) - tilt @ profile.pivot
    return turn, jaxlie.SE3.from_rotation_and_translation(tilt, offset)


def save_turned_clip(
    path: str | os.PathLike,
    write: Callable[[Picture, float], None],
    profile: ProfileMesh,
    seed: int = 0,
    frames: int = 60,
    settings: ClipSettings | None = None,
) -> None:
    """Hand the frames of `short_video` and their times to `write` (`ClipWriter.write`), and write the truth, an .npz.

    Its keys are those of `fitting.clip.synthetic.ClipTruth`, with `visible` in addition.
    """
    shown = []
    for frame in short_video(profile, seed, frames, settings):
        write(frame.pixels, frame.time_s)
        shown.append(frame._replace(pixels=frame.pixels[:0]))  # the truth alone is kept
    np.savez_compressed(
        path,
        times=np.array([frame.time_s for frame in shown]),
        poses=np.stack([np.asarray(frame.pose.as_matrix(), float) for frame in shown]),
        expression=np.repeat(np.asarray(profile.expression, float)[None], len(shown), axis=0),
        points=np.stack([frame.points for frame in shown]),
        pixels=np.stack([frame.landmarks for frame in shown]),
        visible=np.stack([frame.visible for frame in shown]),
        identity=np.asarray(profile.identity, float),
        albedo=np.asarray(profile.albedo, float),
        focal_px=float(profile.camera.focal[0]),
    )
