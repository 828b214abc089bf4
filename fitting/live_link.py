"""Blendshape weights over time as the CSV that Epic's Live Link Face app records, which animation tools import.

One row for each frame: `Timecode,BlendShapeCount`, ARKit's 52 weights in the app's order, then nine angles. The names
are ours with a capital first letter.

Angles are radians, about the axes of ARKit's face anchor, which are our head axes (+x subject's left, +y up, +z out of
the face), right-handed: yaw about +y (positive looks to the subject's left), pitch about +x (positive looks down), roll
about +z (positive raises the subject's left ear). They compose as R = R_y(yaw) R_x(pitch) R_z(roll). The head's are
relative to a camera that it faces; the eyes' are relative to the head. Epic documents neither unit nor signs: importers
that take these nine columns at all differ, and most drive the eyes by the eyeLook weights.

A timecode is HH:MM:SS:FF.fff: FF counts whole frames of the nominal rate within the second, fff thousandths of one.
"""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from fitting.animation import gaze_rotations
from morphable.model import MorphableModel

LIVE_LINK_UNITS = (
    *("eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft"),
    *("eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight"),
    *("eyeSquintRight", "eyeWideRight", "jawForward", "jawRight", "jawLeft", "jawOpen", "mouthClose", "mouthFunnel"),
    *("mouthPucker", "mouthRight", "mouthLeft", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft"),
    *("mouthFrownRight", "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight"),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight"),
    *("mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft"),
    *("browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft"),
    *("cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut"),
)
_TURNS = tuple(f"{what}{angle}" for what in ("Head", "LeftEye", "RightEye") for angle in ("Yaw", "Pitch", "Roll"))
LIVE_LINK_COLUMNS = (
    "Timecode",
    "BlendShapeCount",
    *(unit[0].upper() + unit[1:] for unit in LIVE_LINK_UNITS),
    *_TURNS,
)
_FACING = np.diag([1.0, -1.0, -1.0])  # rotation of a head that faces an OpenCV camera


@dataclasses.dataclass(frozen=True)
class LiveLinkTake:
    """What a Live Link Face CSV says."""

    times: Float[np.ndarray, " frame"]  # s since midnight, as the timecode counts
    weights: Float[np.ndarray, "frame 52"]  # in the order of LIVE_LINK_UNITS
    head: Float[np.ndarray, "frame 3"]  # rotation vector, rad; 0 faces the camera
    left_eye: Float[np.ndarray, "frame 3"]  # rotation vectors in the head's axes
    right_eye: Float[np.ndarray, "frame 3"]

    def __post_init__(self):
        frames = len(self.times)
        got = [self.weights.shape, self.head.shape, self.left_eye.shape, self.right_eye.shape]
        expected = [(frames, len(LIVE_LINK_UNITS)), (frames, 3), (frames, 3), (frames, 3)]
        if got != expected:
            raise ValueError(f"Live Link take of {frames} times: got the shapes {got}, expected {expected}.")

    def expression(self, names: Sequence[str]) -> Float[np.ndarray, "frame unit"]:
        """The weights in the order of a model's `expression_names`; units that ARKit does not have are 0."""
        weights = np.zeros((len(self.times), len(names)))
        for k, name in enumerate(names):
            if name in LIVE_LINK_UNITS:
                weights[:, k] = self.weights[:, LIVE_LINK_UNITS.index(name)]
        return weights


def live_link_take(
    model: MorphableModel,
    times: Float[np.ndarray, " frame"],
    expression: Float[np.ndarray, "frame unit"],
    cameras: Sequence[Any] | None = None,
) -> LiveLinkTake:
    """The take of a tracked head: weights as fitted, the head's turn seen from each frame's camera, the eyes' by gaze.

    `cameras` have `to_opencv()`; without them the head faces the camera all the time. Weights are written as they are:
    mouthClose above jawOpen is ARKit's to limit. Raises ValueError where the model has none of ARKit's units.
    """
    expression = np.asarray(expression, np.float64)
    weights = np.zeros((len(times), len(LIVE_LINK_UNITS)))
    shared = [name for name in model.expression_names if name in LIVE_LINK_UNITS]
    if not shared:
        raise ValueError(
            f"live_link_take: {model.provenance.name} has the units {', '.join(model.expression_names)}, none of "
            "ARKit's 52. Live Link Face files hold no others."
        )
    for name in shared:
        weights[:, LIVE_LINK_UNITS.index(name)] = expression[:, model.expression_names.index(name)]
    turns = gaze_rotations(model, expression)
    joints = () if model.rig is None else model.rig.names
    eyes = [
        turns[:, joints.index(name)] if name in joints else np.zeros((len(times), 3))
        for name in ("eye_left", "eye_right")
    ]
    head = np.zeros((len(times), 3))
    if cameras is not None:
        turned = np.stack([_FACING @ np.asarray(camera.to_opencv()[1], np.float64) for camera in cameras])
        head = Rotation.from_matrix(turned).as_rotvec()
    return LiveLinkTake(np.asarray(times, np.float64), weights, head, eyes[0], eyes[1])


def write_live_link_csv(path: str | Path, take: LiveLinkTake, fps: float = 60.0) -> None:
    """Write a take as Live Link Face records it.

    `fps` is the nominal rate that the timecode counts frames in; times that are no multiple of 1 / fps keep a
    thousandth of a frame. Raises ValueError for a rate or for times that a timecode cannot count.
    """
    rate = _rate(fps)
    if len(take.times) and (take.times.min() < 0 or take.times.max() >= 24 * 3600 or np.isnan(take.times).any()):
        raise ValueError(f"times run from {take.times.min()} to {take.times.max()} s; a timecode holds 0 to 24 hours.")
    turns = np.concatenate([_angles(turn) for turn in (take.head, take.left_eye, take.right_eye)], axis=1)
    rows = np.concatenate([take.weights, turns], axis=1)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(LIVE_LINK_COLUMNS)
        for time, row in zip(take.times.tolist(), rows.tolist(), strict=True):
            out.writerow([_timecode(time, rate), str(len(row)), *(f"{value:.8f}" for value in row)])


def read_live_link_csv(path: str | Path, fps: float = 60.0) -> LiveLinkTake:
    """Read a take that the app recorded or `write_live_link_csv` wrote.

    `fps` is the rate of the recording, which the file does not name. Columns are found by their names, whatever their
    order and case; angles may be missing, and rows without weights, which the app writes while it sees no face, are
    left out. Raises ValueError with the line for what is not a number.
    """
    path, rate = Path(path), _rate(fps)
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.reader(file))
    header = [name.strip().lower() for name in lines[0]] if lines else []
    missing = [name for name in LIVE_LINK_COLUMNS[2:54] if name.lower() not in header]
    if "timecode" not in header or missing:
        raise ValueError(
            f"{path}: not a Live Link Face CSV: the first line lacks {['Timecode'] if not missing else missing[:5]}, "
            f"it begins with {header[:4]}."
        )
    wanted = [header.index(name.lower()) if name.lower() in header else None for name in LIVE_LINK_COLUMNS[2:]]
    times, rows = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in line[2:]):
            continue
        try:
            times.append(_seconds(line[header.index("timecode")], rate))
            rows.append([0.0 if k is None else float(line[k]) for k in wanted])
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path}, line {number}: {error}; expected {len(header)} cells, a timecode such as 00:01:02:03.004 "
                "and numbers."
            ) from error
    values = np.asarray(rows, np.float64).reshape(len(rows), len(LIVE_LINK_COLUMNS) - 2)
    turns = (
        [Rotation.from_euler("YXZ", values[:, k : k + 3]).as_rotvec() for k in (52, 55, 58)]
        if rows
        else [np.zeros((0, 3))] * 3
    )
    return LiveLinkTake(np.asarray(times, np.float64), values[:, :52], *turns)


def _angles(turn: Float[np.ndarray, "frame 3"]) -> Float[np.ndarray, "frame 3"]:
    """Yaw, pitch, roll."""
    return Rotation.from_rotvec(turn).as_euler("YXZ") if len(turn) else np.zeros((0, 3))


def _rate(fps: float) -> int:
    """Frames that a timecode counts in a second: 30 for 29.97, as non-drop timecode does."""
    if not (math.isfinite(fps) and fps >= 1):
        raise ValueError(f"fps: got {fps}, expected frames per second, at least 1.")
    return math.ceil(fps - 1e-6)


def _timecode(time: float, rate: int) -> str:
    """HH:MM:SS:FF.fff, counted in thousandths of a frame so that nothing rounds up to a 60th second."""
    thousandths = round(time * rate * 1000)
    frames, thousandths = divmod(thousandths, 1000)
    seconds, frame = divmod(frames, rate)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frame:02d}.{thousandths:03d}"


def _seconds(timecode: str, rate: int) -> float:
    hours, minutes, seconds, frame = timecode.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(frame) / rate
