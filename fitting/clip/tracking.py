"""A clip becomes one head in motion: key frames, then frame after frame, then all of them as one problem.

What is done is on disk: frames go to OUT/track in shards, each written in one go, so a crash costs at most the
shard that was being filled, and the same command goes on where it stopped. Memory does not grow with the clip, but for
the parameters of its frames.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

import morphable
from fitting.clip.banded import chain_least_squares
from fitting.clip.follow import FollowSettings, FrameFitter, FrameTracker, Seen, single
from fitting.clip.frames import ClipWriter, VideoError, describe_video, read_frames
from fitting.clip.key_frames import Identity, find_identity
from fitting.clip.lid_opening import EyeDark, lid_openings
from fitting.clip.motion import Steadiness, Track, model_provenance, steadiness
from fitting.clip.sight import Row, Sight, sight_of
from fitting.clip.smoothing import Motion, MotionPrior, added, logarithm, motion_chain
from fitting.detection import LandmarkProvider
from fitting.fit import Fit, Fitter
from fitting.observation import Photo
from fitting.output import OutputError, check_writable
from fitting.pictures import Picture, over, sheet_of
from fitting.schedule import light_sigma
from fitting.synthesis import solid
from morphable.mesh import Mesh
from morphable.model import MorphableModel, Provenance
from renderer.render import render

VERSION = 3  # of the shards; a folder of another one is not resumed
Progress = Callable[[str, int, int | None], None]  # phase, frames done, of how many (None: not known)


class TrackError(ValueError):
    """A clip cannot be tracked, or not into this folder: what, got, expected, remedy."""


@dataclasses.dataclass(frozen=True)
class TrackSettings:
    """How a clip is tracked. Another setting is another track, in another folder."""

    key_frames: int = 6  # that make the identity, at most
    samples: int = 1024  # of the skin, for each frame
    noise: float = 1.0  # factor on the deviations of all observations
    shard: int = 32  # frames that are written together
    window: int = 64  # frames that are refined together ...
    overlap: int = 16  # ... of which the last are only looked at, and belong to the next window
    steps: int = 6  # of the refinement, at most
    follow: FollowSettings = dataclasses.field(default_factory=FollowSettings)
    prior: MotionPrior = dataclasses.field(default_factory=MotionPrior)

    def __post_init__(self):
        for name in ("key_frames", "samples", "shard", "window"):
            if getattr(self, name) < 1:
                raise TrackError(f"{name}: got {getattr(self, name)}, expected at least 1.")
        if not 0 <= self.overlap < self.window:
            raise TrackError(
                f"overlap: got {self.overlap} frames of a window of {self.window}, expected fewer than the window has."
            )
        if not self.noise > 0:
            raise TrackError(f"noise: got {self.noise}, expected a positive factor.")


@dataclasses.dataclass(frozen=True, eq=False)
class Tracked:
    """A finished track and how it went."""

    track: Track
    before: Steadiness  # of frame after frame
    after: Steadiness  # refined
    frames: int
    lost: int
    segments: int
    seconds: dict[str, float]  # of this run, by phase
    done: dict[str, int]  # frames of this run, by phase
    key_frames: tuple[int, ...]

    @property
    def frames_per_second(self) -> float:
        """Frames for each second, in this run: each is both followed and refined. NaN if one of it was done before."""
        if not self.done.get("follow") or not self.done.get("refine"):
            return float("nan")
        return 1 / sum(self.seconds[phase] / self.done[phase] for phase in ("follow", "refine"))


def track(
    video: str | os.PathLike,
    out: str | Path,
    *,
    model: str | Path | MorphableModel | None = None,
    landmarks: LandmarkProvider | None = None,
    focal_px: float | None = None,
    settings: TrackSettings | None = None,
    pictures: bool = True,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Tracked:
    """Track the face of a video; the same call goes on where an earlier one was stopped.

    OUT receives track.npz (see `Track`), track.json (settings, figures), and with `pictures` strip.png, overlay.mp4.
    `landmarks` is a `NetworkProvider`, or None for dlib (a `DlibProvider` is the same).
    `say` gets lines for the user, `progress` the number of frames done. Raises VideoError, NoFaceError, OutputError,
    and TrackError where OUT holds another clip's or other settings' track; KeyboardInterrupt passes once what
    is done was written.
    """
    settings = TrackSettings() if settings is None else settings
    say = (lambda line: None) if say is None else say
    progress = (lambda phase, done, of: None) if progress is None else progress
    if focal_px is not None and not (np.isfinite(focal_px) and focal_px > 0):
        raise TrackError(f"focal_px: got {focal_px}, expected a positive number of pixels of the video.")
    sight = sight_of(landmarks)
    check_writable(out)
    clip = describe_video(video)
    for note in clip.notes:
        say(f"  {note}")
    head = model if isinstance(model, MorphableModel) else morphable.load(model)
    name, digest = model_provenance(head)
    store = Store(Path(out), settings.shard, _fingerprint(video, digest, sight, focal_px, settings))
    fitter = Fitter(head)
    seconds: dict[str, float] = {}
    try:
        # LAPACK's own threads spin between the small factorisations and take the cores that XLA needs.
        with threadpool_limits(1, user_api="blas"):
            who = store.identity()
            if who is None:
                with _timed(seconds, "identity"):
                    who = find_identity(
                        fitter,
                        str(video),
                        settings.key_frames,
                        focal_px,
                        sight,
                        lambda done: progress("key frames", done, clip.frames),
                    )
                    store.keep_identity(who)
                say(f"  identity from frames {', '.join(map(str, who.key_frames))}, focal length {who.focal_px:.0f} px")
            else:
                say("  going on with the identity found before")
            frames = FrameFitter(fitter, who, sight, settings.samples, settings.noise)
            before_run = {phase: store.count(phase) for phase in ("followed", "refined")}
            with _timed(seconds, "follow"):
                _follow_all(video, frames, settings, store, say, lambda n: progress("tracking", n, clip.frames))
            rows = store.rows("followed")
            with _timed(seconds, "refine"):
                _refine_all(video, frames, settings, store, rows, lambda n: progress("refining", n, len(rows)))
    except KeyboardInterrupt:
        done = len(store.rows("followed"))
        say(f"  stopped; {done} frames are kept in {store.folder}. The same command goes on from there.")
        raise
    refined = store.rows("refined")
    make = lambda moved: _as_track(rows, moved, who, head, clip, name, digest)  # noqa: E731
    first, final = make(rows), make(refined)
    if final.lost.all():
        raise TrackError(
            f"{video}: no face could be followed in any of {len(rows)} frames, expected one of some 40 pixels or more. "
            "Is it the face that key frames showed? Cut the clip to its part with the face."
        )
    before, after = steadiness(first, head), steadiness(final, head)
    final.save(Path(out) / "track.npz")
    result = Tracked(
        track=final,
        before=before,
        after=after,
        frames=len(rows),
        lost=int(final.lost.sum()),
        segments=int(final.segment.max()) + 1,
        seconds=seconds,
        done={
            "follow": len(rows) - before_run["followed"],
            "refine": len(refined) - before_run["refined"],
        },
        key_frames=who.key_frames,
    )
    if pictures:
        with _timed(seconds, "pictures"):
            write_pictures(out, video, final, head, clip.rate, lambda n: progress("drawing", n, len(rows)))
    _write_json(Path(out) / "track.json", _record(result, video, clip.rate, settings, focal_px, sight, head.provenance))
    for line in summary(result):
        say(f"  {line}")
    return result


def summary(result: Tracked) -> list[str]:
    """The figures of a track in words."""
    b, a = result.before, result.after
    mm = lambda x: "does not move" if np.isnan(x) else f"{x:+.1f} mm"  # noqa: E731
    speed = result.frames_per_second
    lines = [
        f"{result.frames} frames, {result.lost} of them without the face, in {result.segments} uninterrupted "
        f"part{'s' if result.segments != 1 else ''}" + ("" if np.isnan(speed) else f"; {speed:.1f} frames/s"),
    ]
    if np.isnan(b.jitter_px):
        return [*lines, "too short to say how steady it is: no three frames follow each other"]
    lines.append(
        f"jitter: {b.jitter_px:.2f} -> {a.jitter_px:.2f} px, {b.jitter_mm:.2f} -> {a.jitter_mm:.2f} mm, "
        f"depth {b.depth_jitter_mm:.2f} -> {a.depth_jitter_mm:.2f} mm, "
        f"rotation {b.rotation_jitter_deg:.2f} -> {a.rotation_jitter_deg:.2f} degrees"
    )
    share = lambda x: "not measurable" if np.isnan(x) else f"{100 * x:.0f} %"  # noqa: E731
    lines.append(f"leakage of expression into pose: {share(b.leakage)} -> {share(a.leakage)}")
    lines += [
        f"  depth for a whole {unit}: {mm(b.leakage_mm[unit])} -> {mm(a.leakage_mm[unit])}" for unit in b.leakage_mm
    ]
    return lines


# --------------------------------------------------------------------------------------------------- frame after frame


def _follow_all(video, frames: FrameFitter, settings: TrackSettings, store: "Store", say, told) -> None:
    """Every frame from the one before, into the store; goes on after what it holds."""
    if store.finished("followed"):
        return
    rows = store.rows("followed", last=16)
    tracker = FrameTracker(frames, settings.follow)
    begin = 0
    if rows:
        begin = int(rows[-1]["index"]) + 1
        say(f"  going on from frame {begin}")
    lost = False
    try:
        for frame in read_frames(video, start=max(begin - 1, 0)):
            if frame.index < begin:
                tracker.resume(rows, frame.photo)
                lost = bool(rows[-1]["segment"] < 0)
                continue
            row = tracker.follow(frame)
            if (row["segment"] < 0) != lost:
                lost = not lost
                say(f"  {frame.time_s:.2f} s: the face is {'lost' if lost else 'found'} (frame {frame.index})")
            store.add("followed", row)
            told(frame.index + 1)
    finally:
        store.flush("followed")
    if not store.count("followed"):
        raise VideoError(f"{video}: no frame can be decoded, expected a video that is whole. Convert it with ffmpeg.")
    store.finish("followed")


# ---------------------------------------------------------------------------------------------------------- refinement


def _refine_all(video, frames: FrameFitter, settings: TrackSettings, store: "Store", rows: list[Row], told) -> None:
    """Windows over each segment, into the store; goes on after what it holds."""
    if store.finished("refined"):
        return
    done = store.count("refined")
    anchor = None
    if (
        done
        and rows[done - 1]["segment"] >= 0
        and done < len(rows)
        and rows[done]["segment"] == rows[done - 1]["segment"]
    ):
        anchor = _as_motion([store.rows("refined", last=1)[0]])
    stack = lambda key: np.stack([np.asarray(row[key]) for row in rows])  # noqa: E731
    # Of all rows, which are on disk by now: what an open eye looks like may be seen only later in the clip.
    lids = lid_openings(EyeDark(stack("eye_depth"), stack("eye_thickness")), stack("time"), stack("segment"))
    waiting: list[Seen] = []
    motion: Motion | None = None
    try:
        for frame in read_frames(video, start=done):
            if frame.index >= len(rows):
                break
            row = rows[frame.index]
            if row["segment"] >= 0:
                here = _as_motion([row])
                seen = frames.seen(frame.photo, frames.sight.recalled(row, frame.photo), lids[frame.index])[0]
                seen = frames.believing(seen, here)
                waiting.append(seen)
                motion = here if motion is None else motion.then(_speeding(motion, here))
            following = rows[frame.index + 1] if frame.index + 1 < len(rows) else None
            ends = following is None or following["segment"] != row["segment"]
            if motion is not None and (ends or len(waiting) >= settings.window):
                motion = refine(frames, waiting, motion, anchor, settings)
                kept = len(waiting) if ends else len(waiting) - settings.overlap
                for one in range(kept):
                    store.add("refined", _motion_row(motion, one))
                anchor = None if ends else motion.part(slice(kept - 1, kept))
                motion, waiting = (None, []) if ends else (motion.part(slice(kept, None)), waiting[kept:])
            if row["segment"] < 0:
                anchor = None
                store.add("refined", _lost_row(row, frames.units))
            told(frame.index + 1)
    finally:
        store.flush("refined")
    store.finish("refined")


def refine(
    frames: FrameFitter, seen: list[Seen], start: Motion, anchor: Motion | None, settings: TrackSettings
) -> Motion:
    """A run of frames as one banded problem; `anchor` is the frame before them, which stays where it is."""
    held = 0 if anchor is None else 1
    motion = start if anchor is None else anchor.then(start)
    everything = frames.free("expression", "light", "pose", "offset", "velocity")
    free = np.broadcast_to(everything, (len(motion), len(everything))).copy()
    free[:held] = False
    sigma = np.asarray(light_sigma(), float)
    observed: list[Seen | None] = [*[None] * held, *seen]

    def linearise(at: Motion):
        return added([frames.chain(observed, at), motion_chain(at, settings.prior, sigma, anchor is None)])

    solution = chain_least_squares(linearise, frames.moved, frames.bounds, motion, free, settings.steps, 1e-4)
    return solution.state.part(slice(held, None))


def _speeding(before: Motion, here: Motion) -> Motion:
    """A frame with the speed that led to it."""
    relative = before.rotation[-1].T
    twist = logarithm((relative @ here.rotation[0])[None], (relative @ (here.place[0] - before.place[-1]))[None])
    speed = twist / max(float(here.times[0] - before.times[-1]), 1e-6)
    return dataclasses.replace(here, velocity=speed)


def _as_motion(rows: list[Row]) -> Motion:
    parts = []
    for row in rows:
        part = single(row["time"], row["pose"], row["expression"], row["light"], row["offset"])
        parts.append(dataclasses.replace(part, velocity=np.asarray(row.get("velocity", np.zeros(6)), float)[None]))
    motion = parts[0]
    for part in parts[1:]:
        motion = motion.then(part)
    return motion


def _motion_row(motion: Motion, frame: int) -> Row:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = motion.rotation[frame], motion.place[frame]
    return {
        "time": motion.times[frame],
        "pose": pose,
        "expression": motion.expression[frame],
        "light": motion.light[frame].reshape(9, 3),
        "offset": motion.offset[frame],
        "velocity": motion.velocity[frame],
    }


def _lost_row(row: Row, units: int) -> Row:
    nothing = {"pose": (4, 4), "expression": units, "light": (9, 3), "offset": 3, "velocity": 6}
    return {"time": row["time"]} | {name: np.full(shape, np.nan) for name, shape in nothing.items()}


def _as_track(
    rows: list[Row], moved_rows: list[Row], who: Identity, head: MorphableModel, clip, name: str, digest: str
) -> Track:
    stack = lambda key, source=moved_rows: np.stack([np.asarray(r[key], float) for r in source])  # noqa: E731
    return Track(
        times=stack("time"),
        poses=stack("pose"),
        expression=stack("expression"),
        light=stack("light"),
        offset=stack("offset"),
        detected=stack("landmarks", rows),
        segment=np.array([int(r["segment"]) for r in rows]),
        identity=np.asarray(who.identity, float),
        albedo=np.asarray(who.albedo, float),
        focal_px=who.focal_px,
        width=clip.width,
        height=clip.height,
        expression_names=tuple(head.expression_names),
        model=name,
        model_sha256=digest,
    )


# ------------------------------------------------------------------------------------------------------------ the store


class Store:
    """OUT/track: shards of rows in order, the identity, and which phases are finished.

    Shards are written under another name and renamed, so a file with a shard's name is whole. A shard's name says where
    it begins; one that does not begin where the shards before it end was left by an older run and is not read.
    """

    def __init__(self, out: Path, size: int, fingerprint: dict[str, Any]):
        self.folder, self.size = out / "track", size
        self._waiting: dict[str, list[Row]] = {}
        self._count: dict[str, int] = {}
        state = self.folder / "state.json"
        if state.exists():
            _check_same(state, fingerprint, out)
        else:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                _write_json(state, fingerprint)
            except OSError as cause:
                raise OutputError(
                    f"{self.folder}: cannot be written ({cause.strerror or cause}), expected a folder for the track. "
                    "Check its permissions, or choose another -o OUT."
                ) from cause

    def identity(self) -> Identity | None:
        """The identity that was kept, or None."""
        path = self.folder / "identity.npz"
        if not path.exists():
            return None
        with np.load(path) as data:
            return Identity(
                data["identity"],
                data["albedo"],
                float(data["focal_px"]),
                data["light"],
                tuple(int(i) for i in data["key_frames"]),
            )

    def keep_identity(self, who: Identity) -> None:
        """Write the identity."""
        fields = {f.name: np.asarray(getattr(who, f.name)) for f in dataclasses.fields(who)}
        self._write("identity.npz", fields)

    def add(self, phase: str, row: Row) -> None:
        """Append a row; a full shard is written."""
        waiting = self._waiting.setdefault(phase, [])
        waiting.append(row)
        if len(waiting) >= self.size:
            self.flush(phase)

    def flush(self, phase: str) -> None:
        """Write the rows that wait."""
        waiting = self._waiting.get(phase, [])
        if not waiting:
            return
        begin = self.count(phase)
        self._write(
            f"{phase}-{begin:08d}.npz", {key: np.stack([np.asarray(row[key]) for row in waiting]) for key in waiting[0]}
        )
        self._count[phase] = begin + len(waiting)
        self._waiting[phase] = []

    def count(self, phase: str) -> int:
        """Rows that are written."""
        if phase not in self._count:
            self._count[phase] = sum(len(shard) for shard in self._shards(phase))
        return self._count[phase]

    def rows(self, phase: str, last: int | None = None) -> list[Row]:
        """The written rows, or the last of them."""
        rows = [row for shard in self._shards(phase) for row in shard]
        return rows if last is None else rows[-last:]

    def finish(self, phase: str) -> None:
        """Mark a phase as done."""
        (self.folder / f"{phase}.done").touch()

    def finished(self, phase: str) -> bool:
        """Whether a phase was marked as done."""
        return (self.folder / f"{phase}.done").exists()

    def _shards(self, phase: str) -> Iterator[list[Row]]:
        expected = 0
        while (path := self.folder / f"{phase}-{expected:08d}.npz").exists():
            with np.load(path) as data:
                arrays = {name: data[name] for name in data.files}
            count = len(next(iter(arrays.values())))
            yield [{name: values[i] for name, values in arrays.items()} for i in range(count)]
            expected += count

    def _write(self, name: str, arrays: dict[str, Any]) -> None:
        partial = self.folder / f".{name}.partial.npz"
        try:
            np.savez(partial, **arrays)
            os.replace(partial, self.folder / name)
        except OSError as cause:
            raise OutputError(
                f"{self.folder / name}: cannot be written ({cause.strerror or cause}). Free some space and run the "
                "same command again: it goes on from here."
            ) from cause


def _fingerprint(video, digest: str, sight: Sight, focal_px: float | None, settings: TrackSettings) -> dict[str, Any]:
    """What must be the same for a track to go on. Files may move and be copied: their bytes count."""
    size = os.stat(video).st_size
    ends = hashlib.sha256()
    with open(video, "rb") as file:
        ends.update(file.read(1 << 20))
        file.seek(max(size - (1 << 20), 0))
        ends.update(file.read(1 << 20))
    return {
        "version": VERSION,
        "video": {"bytes": size, "sha256_of_ends": ends.hexdigest()},
        "model": digest,
        "landmarks": sight.fingerprint(),
        "focal_px": focal_px,
        "settings": dataclasses.asdict(settings),
    }


def _check_same(state: Path, fingerprint: dict[str, Any], out: Path) -> None:
    try:
        kept = json.loads(state.read_text())
    except (OSError, ValueError) as cause:
        raise TrackError(
            f"{state}: cannot be read ({cause}). Delete {state.parent}, or choose another -o OUT."
        ) from cause
    wanted = json.loads(json.dumps(fingerprint))
    differ = [key for key in wanted if kept.get(key) != wanted[key]]
    if not differ:
        return
    words = {"version": "of another version of facefit", "video": "of another video", "model": "with another model"}
    source = kept.get("landmarks", {}).get("source", "an unknown source")
    mine = wanted.get("landmarks", {}).get("source")
    words |= {"landmarks": f"with landmarks from {'another network' if source == mine else source}"}
    words |= {"focal_px": f"with focal_px {kept.get('focal_px')}", "settings": "with other settings"}
    raise TrackError(
        f"{out}: holds a track {' and '.join(words[key] for key in differ)}, expected none, or one to go on with. "
        f"Choose another -o OUT, or delete {state.parent}."
    )


def _write_json(path: Path, record: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(record, indent=1))
    os.replace(partial, path)


def _record(
    result: Tracked,
    video,
    rate: float,
    settings: TrackSettings,
    focal_px: float | None,
    sight: Sight,
    source: Provenance,
) -> dict[str, Any]:
    plain = lambda x: None if isinstance(x, float) and not np.isfinite(x) else x  # noqa: E731

    def steady(s: Steadiness) -> dict[str, Any]:
        record = {k: plain(v) for k, v in dataclasses.asdict(s).items() if k != "leakage_mm"}
        return record | {"leakage_mm": {k: plain(v) for k, v in s.leakage_mm.items()}}

    return {
        "format": "facefit track",
        "version": VERSION,
        "video": str(video),
        "frames_per_second_of_the_video": rate,
        "frames": result.frames,
        "lost": [int(i) for i in np.flatnonzero(result.track.lost)],
        "segments": result.segments,
        "landmarks": sight.fingerprint(),
        "key_frames": list(result.key_frames),
        "focal_px": result.track.focal_px,
        "focal_given": focal_px,
        "before": steady(result.before),
        "after": steady(result.after),
        "seconds": result.seconds,
        "frames_per_second": plain(result.frames_per_second),
        "model": {
            "name": result.track.model,
            "sha256": result.track.model_sha256,
            "licence": source.licence,
            "licence_class": source.licence_class,
        },
        "settings": dataclasses.asdict(settings),
    }


class _timed:
    """Adds the seconds of a block to a dict."""

    def __init__(self, seconds: dict[str, float], name: str):
        self.seconds, self.name = seconds, name

    def __enter__(self):
        self.began = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.began


# ------------------------------------------------------------------------------------------------------------- pictures

_TILE = 256  # px, of the strip
_STRIP = 8  # frames
_DRAWN = 384  # px, of the square that the head is drawn in
_CLIP_LONG_SIDE = 960  # px, of overlay.mp4


def write_pictures(out, video, track: Track, head: MorphableModel, rate: float, told=lambda n: None) -> None:
    """strip.png (photo above, fit below, for frames across the clip) and overlay.mp4 (photo beside the fit)."""
    there = np.flatnonzero(~track.lost)
    shown = set(there[np.unique(np.linspace(0, len(there) - 1, _STRIP).round().astype(int))].tolist())
    columns: list[list[Picture]] = []
    labels: list[str] = []
    with ClipWriter(Path(out) / "overlay.mp4", rate) as writer:
        for frame in read_frames(video):
            if frame.index >= len(track.times):
                break
            drawn = frame.photo.pixels
            if not track.lost[frame.index]:
                drawn = _drawn_over(track.fit(head, frame.index), frame.photo.pixels)
            writer.write(_beside(frame.photo.pixels, drawn), frame.time_s)
            if frame.index in shown:
                box = _face_box(track, frame.index)
                tiles = [
                    np.rint(255 * p.crop_srgb(box, _TILE)[0]).astype(np.uint8) for p in (frame.photo, Photo(drawn))
                ]
                columns.append(tiles)
                labels.append(f"{frame.time_s:.2f} s")
            told(frame.index + 1)
    rows = [[column[k] for column in columns] for k in range(2)]
    Image.fromarray(sheet_of(rows, tuple(labels))).save(Path(out) / "strip.png")


def _drawn_over(fit: Fit, pixels: Picture) -> Picture:
    """The head in its albedo and light over the frame; no texture of the photo, which would hide what is wrong."""
    mesh = fit.mesh
    mesh = Mesh(mesh.vertices, solid(fit.model), albedo=fit.model.albedo_linear(jnp.asarray(fit.albedo)))
    projected = np.asarray(fit.camera.project(mesh.vertices))
    low, high = projected.min(axis=0), projected.max(axis=0)
    height, width = pixels.shape[:2]
    side = float(np.clip((high - low).max() * 1.02, 8, 4 * max(height, width)))
    x0, y0 = ((low + high - side) / 2).tolist()
    picture = render(mesh, fit.camera.crop((x0, y0, side, side), _DRAWN, _DRAWN), jnp.asarray(fit.light), samples=1)
    layers = np.concatenate([np.asarray(picture.colour), np.asarray(picture.coverage)[..., None]], axis=2)
    left, top = max(int(x0), 0), max(int(y0), 0)
    right, bottom = min(int(x0 + side) + 1, width), min(int(y0 + side) + 1, height)
    if left >= right or top >= bottom:
        return pixels
    scale = _DRAWN / side
    corners = np.array([left - x0, top - y0, right - x0, bottom - y0]) * scale
    where = tuple(float(v) for v in np.clip(corners, 0, _DRAWN))
    assert len(where) == 4  # for the type checker
    size = right - left, bottom - top
    part = [
        np.asarray(Image.fromarray(np.ascontiguousarray(layers[..., k])).resize(size, Image.Resampling.BILINEAR, where))
        for k in range(4)
    ]
    out = pixels.copy()
    colour, coverage = np.stack(part[:3], axis=2), np.clip(part[3], 0.0, 1.0)
    out[top:bottom, left:right] = over(np.maximum(colour, 0.0), coverage, out[top:bottom, left:right])
    return out


def _face_box(track: Track, frame: int) -> tuple[float, float, float, float]:
    points = track.detected[frame]
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    side = 1.9 * float((high - low).max())
    x, y = (low + high) / 2 - [0, 0.1 * side]
    return x - side / 2, y - side / 2, side, side


def _beside(left: Picture, right: Picture) -> Picture:
    height, width = left.shape[:2]
    scale = min(1.0, _CLIP_LONG_SIDE / max(height, width))
    size = max(2, round(width * scale)), max(2, round(height * scale))
    return np.concatenate([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX)) for x in (left, right)], 1)
