"""Clips as photos with times: read frame by frame as players show them, and written again.

What a file says about itself is honoured: rotation, colour matrix and range, edit lists, and the true time of every
frame, which in films of phones and screens is rarely evenly spaced. One frame is held at a time.
"""

import contextlib
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fitting.observation import Photo

log = logging.getLogger("facefit")

_EXPECTED = "a video such as MP4, MOV, MKV, WebM or AVI"
_DAMAGED_IN_A_ROW = 200  # packets without a picture after which the rest of a file is given up
_USUAL_RATE = 25.0  # frames per second, where a file states no times at all
_TICKS = 90_000  # per second: the clock of MPEG, in which every usual frame rate is whole


class VideoError(ValueError):
    """A video that cannot be read or written: what, got, expected, remedy."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a clip as it is displayed."""

    photo: Photo
    time_s: float  # since the clip's first frame; strictly increasing
    index: int  # counted from 0 over the frames that are displayed


@dataclass(frozen=True)
class Clip:
    """What a file states about itself before it is decoded; numbers of frames and durations are often wrong."""

    path: str
    width: int  # as displayed, after rotation
    height: int
    rate: float  # frames per second, on average
    frames: int | None  # about so many, from the duration
    notes: tuple[str, ...]


def describe_video(path: str | os.PathLike) -> Clip:
    """What the file states about itself; decodes its first frame. Raises VideoError for what is no video."""
    with _opened(path) as (container, stream):
        frame = next(_decoded(container, stream, path, []), None)
        if frame is None:
            raise _nothing_decoded(path)
        turned = _quarter_turns(frame) % 2
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        rate = _rate(stream)
        duration = _duration(container, stream)
        notes = [f"turned by {frame.rotation % 360} degrees, as the file asks for"] if _quarter_turns(frame) else []
        if getattr(frame, "color_trc", 0) in (16, 18):  # PQ and HLG
            notes.append("it is HDR video, whose colours are read as if they were sRGB")
        return Clip(
            str(path), width, height, rate, None if duration is None else max(1, round(duration * rate)), tuple(notes)
        )


def read_frames(
    path: str | os.PathLike, start: int = 0, every: int = 1, wanted: Collection[int] | None = None
) -> Iterator[Frame]:
    """The clip's frames in the order in which they are displayed, one at a time.

    `start` skips frames, `every` takes each n-th from there, `wanted` names the ones to take; what is skipped is
    decoded but not converted. A file that is damaged or cut short gives the frames that can be decoded, and a warning.
    Raises VideoError where there is no frame at all.
    """
    damage: list[str] = []
    last = None if wanted is None else max(wanted, default=-1)
    previous, first, index = -np.inf, None, -1
    size: tuple[int, int] | None = None
    with _opened(path) as (container, stream):
        step = 1.0 / _rate(stream)
        for index, frame in enumerate(_decoded(container, stream, path, damage)):
            if last is not None and index > last:
                return
            time = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
            # Damaged files repeat times or go back; velocities need time to pass.
            if time is None or time <= previous:
                time = 0.0 if first is None else previous + step
            first = time if first is None else first
            previous = time
            if index < start or (index - start) % every or (wanted is not None and index not in wanted):
                continue
            pixels = _displayed(frame, size)
            size = (pixels.shape[1], pixels.shape[0]) if size is None else size
            yield Frame(Photo(pixels, path=f"{path}, frame {index}"), time - first, index)
        stated = None if stream.duration is None else float(stream.duration * stream.time_base)
        # What is missing at the end of an MP4 that was cut short is no error to FFmpeg.
        if index >= 0 and first is not None and stated is not None and previous - first < 0.95 * stated - 3 * step:
            damage.append(f"it ends after {previous - first:.1f} s and should last {stated:.1f} s, so it was cut short")
    if index < 0:
        raise _nothing_decoded(path)
    if damage:
        log.warning(f"{path}: {damage[0]}; the {index + 1} frames that can be read are used.")


class ClipWriter:
    """An H.264 file that gets frames with their times; sides are made even by repeating the last row or column.

    To be used in a `with` block: at its end the file gets its final name, which it never has while it is incomplete.
    """

    def __init__(self, path: str | os.PathLike, rate: float = _USUAL_RATE, quality: int = 20):
        self.path = Path(path)
        self._partial = self.path.with_name(f".{self.path.stem}.partial{self.path.suffix or '.mp4'}")
        self._rate, self._quality = rate, quality
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> "ClipWriter":
        return self

    def write(self, pixels: UInt8[np.ndarray, "height width 3"], time_s: float) -> None:
        """Append a frame (sRGB); times must increase. The first frame states the size of all."""
        import av

        height, width = pixels.shape[:2]
        if self._container is None:
            self._container = self._opened(av)
            self._stream = self._added_stream(av, width + width % 2, height + height % 2)
        if (width + width % 2, height + height % 2) != (self._stream.width, self._stream.height):
            raise VideoError(
                f"{self.path}: got a frame of {width} x {height} pixels, expected {self._stream.width} x "
                f"{self._stream.height} as before. Resize it."
            )
        padded = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)  # BT.709, as the stream states
        frame.pts = max(round(time_s * _TICKS), self._last + 1)
        frame.time_base = Fraction(1, _TICKS)
        self._last = frame.pts
        self._container.mux(self._stream.encode(frame))

    def _opened(self, av: Any) -> Any:
        try:
            # The container must keep our clock, or it rounds uneven times to the nominal rate.
            options = {"movflags": "+faststart", "video_track_timescale": str(_TICKS)}
            return av.open(str(self._partial), "w", format="mp4", options=options)
        except (OSError, ValueError) as cause:
            raise VideoError(f"{self.path}: cannot be written ({cause}), expected a free name in a folder.") from cause

    def _added_stream(self, av: Any, width: int, height: int) -> Any:
        codec = next((name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available), "mpeg4")
        rate = Fraction(self._rate).limit_denominator(1001)
        stream = self._container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, _TICKS)
        context = stream.codec_context
        context.time_base = Fraction(1, _TICKS)
        context.colorspace, context.color_range = 1, 1
        context.color_primaries, context.color_trc = 1, 1
        if codec == "libx264":
            stream.options = {"crf": str(self._quality), "preset": "veryfast"}
        else:
            stream.bit_rate = 8 * width * height
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
            if kind is None:
                os.replace(self._partial, self.path)
            else:
                self._partial.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------- decoding


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[Any, Any]]:
    """The container and its main video stream."""
    try:
        import av
    except ImportError as cause:
        raise VideoError(
            f"{path}: PyAV cannot be imported ({cause}), but reads videos. Install it with 'pip install av'."
        ) from cause
    path = Path(path)
    if path.is_dir():
        raise VideoError(f"{path}: got a folder, expected {_EXPECTED}. Name one file in it.")
    if not path.exists():
        raise VideoError(f"{path}: there is no such file, expected {_EXPECTED}. Check the name of the video.")
    try:
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: got an empty file (0 bytes), expected {_EXPECTED}. Copy it again.")
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as cause:
        # An MP4 keeps its index at its end, so one that was cut short cannot be opened at all.
        raise VideoError(
            f"{path}: cannot be opened as a video ({_reason(cause)}), expected {_EXPECTED} that is whole. "
            "Was it copied to its end? Else convert it with ffmpeg."
        ) from cause
    with container:
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
            raise VideoError(f"{path}: got a file with {', '.join(kinds)} but no video stream, expected {_EXPECTED}.")
        stream = max(streams, key=lambda s: (s.width or 0) * (s.height or 0))
        stream.thread_type = "AUTO"
        yield container, stream


def _is_cover(stream: Any) -> bool:
    """Whether it is the picture on the cover of a piece of music."""
    return bool(int(getattr(stream, "disposition", 0) or 0) & 0x400)


def _decoded(container: Any, stream: Any, path: str | os.PathLike, damage: list[str]) -> Iterator[Any]:
    """Decoded frames; what could not be decoded is described in `damage`."""
    import av

    broken, in_a_row = 0, 0
    packets = iter(container.demux(stream))
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as cause:
            damage.append(f"the file ends early or is damaged ({_reason(cause)})")
            break
        try:
            frames = packet.decode()
            in_a_row = 0
        except av.FFmpegError as cause:
            broken, in_a_row = broken + 1, in_a_row + 1
            if broken == 1:
                damage.append(f"a part of it is damaged ({_reason(cause)})")
            if in_a_row > _DAMAGED_IN_A_ROW:
                break
            continue
        yield from frames  # FFmpeg itself drops what the edit list hides


def _displayed(frame: Any, size: tuple[int, int] | None) -> UInt8[np.ndarray, "height width 3"]:
    """The frame as 8-bit RGB, upright, at `size` (width, height) where streams change theirs."""
    turns = _quarter_turns(frame)
    # What states no colour matrix is shown with that of its size: BT.709 for HD, BT.601 below.
    matrix = frame.colorspace if frame.colorspace in (1, 4, 5, 6, 7, 9) else (1 if frame.height >= 720 else 5)
    matrix = {6: 5}.get(matrix, matrix)  # SMPTE 170M has BT.601's matrix
    full = frame.color_range == 2 or frame.format.name.startswith("yuvj")
    options: dict[str, Any] = {"format": "rgb24"}
    if not frame.format.name.startswith(("rgb", "bgr", "gbr", "gray", "pal", "argb", "abgr")):
        options |= {"src_colorspace": matrix, "src_color_range": 2 if full else 1, "dst_color_range": 2}
    if size is not None:
        options["width"], options["height"] = size if turns % 2 == 0 else size[::-1]
    pixels = frame.to_ndarray(**options)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _quarter_turns(frame: Any) -> int:
    """Quarter turns counter-clockwise from the stored to the displayed frame."""
    return round(frame.rotation / 90) % 4


def _rate(stream: Any) -> float:
    for rate in (stream.average_rate, getattr(stream, "guessed_rate", None), stream.base_rate):
        if rate is not None and 0.1 < float(rate) < 1000:
            return float(rate)
    return _USUAL_RATE


def _duration(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6


def _nothing_decoded(path: str | os.PathLike) -> VideoError:
    return VideoError(f"{path}: no frame can be decoded, expected {_EXPECTED} that is whole. Convert it with ffmpeg.")


def _reason(cause: BaseException) -> str:
    return str(getattr(cause, "strerror", None) or cause)
