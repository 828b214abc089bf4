"""A track on disk: the head as it moved, its colour and relief, and every frame's numbers as other programs read them.

No file holds a NaN. Where the face is lost, files with one entry for each frame of the video (the animation, the
parameters, the OBJ sequence) hold what was seen last, or before the first sight what is seen first; files whose entries
name their frame or time (the Live Link CSV, the cameras) leave lost frames out.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from fitting.animation import animate, head_poses
from fitting.clip.frames import read_frames
from fitting.clip.motion import Track
from fitting.export import write_head_glb
from fitting.live_link import LIVE_LINK_UNITS, live_link_take, write_live_link_csv
from fitting.mesoscopic import skin_normal_map
from fitting.sequence import parameters, write_cameras, write_obj_sequence
from fitting.texture_map import person_texture
from morphable.model import MorphableModel

_PHOTOS = 16  # frames that colour the head at most; all are held at once, since a video is read in one go
_FACING = np.diag([1.0, -1.0, -1.0])  # rotation of a head that faces an OpenCV camera


def write_track(
    folder: Path,
    video: str | os.PathLike,
    track: Track,
    model: MorphableModel,
    key_frames: Sequence[int] = (),
    *,
    fps: float = 30.0,
    obj_sequence: bool = False,
    texture_size: int = 1024,
) -> tuple[str, ...]:
    """Write what other programs read of a track into an existing folder; notes on what was left out.

    head.glb (animated), texture.png, normal.png, blendshapes.csv, parameters.npz, cameras/ and with `obj_sequence`
    obj/. Colours come from the key frames, or from the most frontal frame where none of them was tracked. `fps` is the
    rate that the CSV's timecodes count in. Raises ValueError for a track without any face.
    """
    shown = shown_frames(track)
    found = np.flatnonzero(~track.lost)
    reference = most_frontal(track)
    cameras = {int(k): track.camera(int(k)) for k in found}
    every = [cameras[int(k)] for k in shown]
    expression = track.expression[shown]

    texture = track_texture(video, track, model, key_frames, texture_size)
    pixel_mm = float(np.median(track.t[found, 2])) / track.focal_px
    relief = skin_normal_map(model, track.fit(model, reference).neutral_vertices, texture, pixel_mm)
    Image.fromarray(texture).save(folder / "texture.png")
    Image.fromarray(relief).save(folder / "normal.png")
    motion = animate(model, track.times, expression, every, reference=reference)
    identity = track.identity.astype(np.float32)
    write_head_glb(
        folder / "head.glb",
        model,
        identity,
        None,
        texture,
        cameras[reference],
        normal_map=relief,
        animation=motion,
    )

    arrays: dict[str, Any] = parameters(
        model, track.times, track.identity, expression, every, track.albedo, track.light[shown]
    )
    arrays |= {"lost": track.lost, "segment": track.segment.astype(np.int32)}
    np.savez_compressed(folder / "parameters.npz", allow_pickle=False, **arrays)
    write_cameras(folder / "cameras", {frame_name(k): camera for k, camera in cameras.items()})
    notes = []
    if set(model.expression_names) & set(LIVE_LINK_UNITS):
        take = live_link_take(model, track.times[found], track.expression[found], list(cameras.values()))
        write_live_link_csv(folder / "blendshapes.csv", take, fps)
    else:
        notes.append(f"blendshapes.csv is left out: {model.provenance.name} has none of ARKit's units")
    if obj_sequence:
        write_obj_sequence(folder / "obj", model, identity, expression, texture, head_poses(every, reference))
    return tuple(notes)


def frame_name(frame: int) -> str:
    """What a frame of a video is called in the camera files."""
    return f"frame_{frame:06d}.png"


def shown_frames(track: Track) -> Int[np.ndarray, " frame"]:
    """For each frame the one to show: itself, or where the face is lost the last that has it, else the first."""
    found = np.flatnonzero(~track.lost)
    if not len(found):
        raise ValueError(
            f"track of {len(track.times)} frames: the face is lost in all of them, expected it in one or more. "
            "There is nothing to export."
        )
    before = np.searchsorted(found, np.arange(len(track.times)), side="right") - 1
    return found[np.maximum(before, 0)]


def most_frontal(track: Track) -> int:
    """The frame in which the head faces the camera most squarely and most upright."""
    agreement = np.einsum("xy,fxy->f", _FACING, np.nan_to_num(track.R))
    return int(np.argmax(np.where(track.lost, -np.inf, agreement)))


def track_texture(
    video: str | os.PathLike, track: Track, model: MorphableModel, key_frames: Sequence[int] = (), size: int = 1024
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The head's colour (sRGB-encoded) from the key frames: sharp, and seen from different sides.

    Frames without the face are passed over; where none is left, the most frontal one serves.
    """
    usable = [k for k in sorted(set(key_frames)) if 0 <= k < len(track.times) and not track.lost[k]]
    if len(usable) > _PHOTOS:
        usable = [usable[k] for k in np.unique(np.linspace(0, len(usable) - 1, _PHOTOS).round().astype(int))]
    chosen = usable or [most_frontal(track)]
    photos = {frame.index: frame.photo for frame in read_frames(video, wanted=set(chosen))}
    there = [k for k in chosen if k in photos]
    return person_texture([track.fit(model, k) for k in there], [photos[k] for k in there], size)
