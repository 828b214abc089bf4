"""Clips are followed through cuts, gaps and interruptions; what a track says about itself is true."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

import fitting.clip.files as files
import fitting.clip.tracking as tracking
from fitting.cli import main
from fitting.clip.exposure import likely_albedo
from fitting.clip.files import frame_name, most_frontal, shown_frames, write_track
from fitting.clip.frames import ClipWriter, read_frames
from fitting.clip.key_frames import Candidate, Identity, choose
from fitting.clip.motion import Track, TrackFormatError, leakage, offset_error, steadiness
from fitting.clip.synthetic import synthesize_clip
from fitting.clip.tracking import Store, TrackError, TrackSettings, track
from fitting.detection import LANDMARK_NOISE, Face
from fitting.glb_reader import read_glb
from fitting.live_link import read_live_link_csv
from fitting.sequence import read_opencv_cameras
from fitting.synthesis import SynthesisError

pytest.importorskip("av")


def made_track(tiny, count=40, seed=0, times=None):
    """A head that moves evenly, in pieces of one segment."""
    times = np.arange(count) / 25 if times is None else times
    poses = np.repeat(np.eye(4)[None], count, 0)
    poses[:, :3, :3] = np.diag([1.0, -1.0, -1.0])
    poses[:, :3, 3] = np.array([5.0, 0, 800]) + times[:, None] * [30.0, -10.0, 20.0]
    units = len(tiny.expression_names)
    return Track(
        times=times,
        poses=poses,
        expression=np.zeros((count, units)),
        light=np.zeros((count, 9, 3)),
        offset=np.zeros((count, 3)),
        detected=np.zeros((count, 68, 2)),
        segment=np.zeros(count, int),
        identity=np.zeros(tiny.shape.rank),
        albedo=np.zeros(tiny.albedo.rank),
        focal_px=1000.0,
        width=640,
        height=480,
        expression_names=tuple(tiny.expression_names),
    )


def test_a_track_is_saved_and_loaded(tiny, tmp_path):
    made = made_track(tiny)
    made.save(tmp_path / "track.npz")
    loaded = Track.load(tmp_path / "track.npz")
    for field in dataclasses.fields(Track):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(made, field.name))
    assert [p.name for p in tmp_path.iterdir()] == ["track.npz"]
    np.savez(tmp_path / "other.npz", vertices=np.zeros(3))
    with pytest.raises(TrackFormatError, match="format"):
        Track.load(tmp_path / "other.npz")


def test_a_frame_is_a_fit(tiny):
    made = made_track(tiny)
    fit = made.fit(tiny, 3)
    np.testing.assert_allclose(fit.landmarks2d, made.project(made.landmarks(tiny))[3], rtol=1e-4)
    with pytest.raises(ValueError, match="no face"):
        dataclasses.replace(made, segment=np.full(40, -1)).fit(tiny, 3)


def test_even_motion_has_no_jitter_at_uneven_times(tiny):
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.1, 40))
    steady = steadiness(made_track(tiny, times=times), tiny)
    assert steady.jitter_mm < 1e-9 and steady.rotation_jitter_deg < 1e-9


def test_jitter_is_not_counted_across_segments(tiny):
    made = made_track(tiny)
    poses = made.poses.copy()
    poses[20:, :3, 3] += 100.0
    jump = dataclasses.replace(made, poses=poses)
    assert steadiness(jump, tiny).jitter_mm > 5
    apart = dataclasses.replace(jump, segment=np.repeat([0, 1], 20))
    assert steadiness(apart, tiny).jitter_mm < 1e-9


def test_offset_error_sees_shake_and_lag_but_no_constant_error():
    time = np.arange(50) / 25
    truth = np.repeat(np.sin(4 * time)[:, None, None], 3, axis=1)
    shaken = truth + 0.1 * np.random.default_rng(0).normal(size=truth.shape)
    late = np.repeat(np.sin(4 * (time - 0.1))[:, None, None], 3, axis=1)
    assert offset_error(truth + 5, truth) < 1e-12
    assert abs(offset_error(shaken, truth) - 0.1 * np.sqrt(2)) < 0.03
    assert offset_error(late, truth) > 0.02


def test_leakage_is_the_motion_that_the_face_predicts(tiny):
    made = made_track(tiny, 80)
    jaw = 0.3 * (1 + np.sin(np.arange(80) * 0.9))
    expression = made.expression.copy()
    expression[:, made.expression_names.index("jawOpen")] = jaw
    shaken = made.poses.copy()
    shaken[:, :3, 3] += np.random.default_rng(0).normal(size=(80, 3))
    apart = dataclasses.replace(made, expression=expression, poses=shaken)
    assert leakage(apart)[0] < 0.1
    leaking = shaken.copy()
    leaking[:, 2, 3] += 25.0 * jaw
    score, slopes = leakage(dataclasses.replace(apart, poses=leaking))
    assert score > 0.7
    assert abs(slopes["jaw"] - 25.0) < 2.0
    assert np.isnan(slopes["blink"])  # never moved


def candidate(index, yaw, sharpness=1.0, spread=0.005):
    points = np.random.default_rng(index).uniform(0, 100, (68, 2))
    face = Face((0.0, 0.0, 100.0, 100.0), points, "dlib-hog", 1.0, LANDMARK_NOISE["dlib"], spread=spread)
    return Candidate(index, index / 25, face, np.array([yaw, 0.0, 0.0, 0.0]), sharpness)


def test_key_frames_differ_and_are_sharp():
    found = [candidate(i, yaw) for i, yaw in enumerate(np.linspace(-3, 3, 25))]
    found += [candidate(30, 6.0, sharpness=0.2), candidate(31, -6.0, spread=0.03)]
    chosen = choose(found, 5)
    yaws = sorted(c.view[0] for c in chosen)
    assert len(chosen) == 5 and {30, 31}.isdisjoint(c.index for c in chosen)
    assert yaws[0] == -3 and yaws[-1] == 3 and min(np.diff(yaws)) > 0.9
    assert choose([], 5) == []


def test_shards_are_read_back_in_order_and_half_written_ones_are_not(tmp_path):
    store = Store(tmp_path, 4, {"version": 1})
    for k in range(10):
        store.add("followed", {"time": k / 25, "pose": np.eye(4) * k})
    assert store.count("followed") == 8
    assert len(Store(tmp_path, 4, {"version": 1}).rows("followed")) == 8  # as after a crash
    store.flush("followed")
    (tmp_path / "track" / ".followed-00000010.npz.partial.npz").write_bytes(b"half")
    rows = Store(tmp_path, 4, {"version": 1}).rows("followed")
    assert [round(float(r["time"]) * 25) for r in rows] == list(range(10))
    assert len(Store(tmp_path, 4, {"version": 1}).rows("followed", last=3)) == 3


def test_another_clip_or_other_settings_are_refused(tmp_path):
    Store(tmp_path, 4, {"version": 1, "video": {"bytes": 5}, "settings": {"noise": 1.0}})
    with pytest.raises(TrackError, match="another video"):
        Store(tmp_path, 4, {"version": 1, "video": {"bytes": 6}, "settings": {"noise": 1.0}})
    with pytest.raises(TrackError, match="other settings"):
        Store(tmp_path, 4, {"version": 1, "video": {"bytes": 5}, "settings": {"noise": 2.0}})


def test_another_source_of_landmarks_is_refused(tmp_path):
    network = {"source": "network", "weights": "1f"}
    Store(tmp_path, 4, {"landmarks": network})
    for other, named in (({"source": "dlib"}, "from network"), (network | {"weights": "2e"}, "from another network")):
        with pytest.raises(TrackError, match=f"holds a track with landmarks {named}, expected none, or one to go on"):
            Store(tmp_path, 4, {"landmarks": other})


@pytest.mark.parametrize("wrong", [{"key_frames": 0}, {"overlap": 64}, {"noise": 0.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(TrackError):
        TrackSettings(**wrong)


# ------------------------------------------------------------------------------------------------------------ its files


@pytest.fixture
def gappy(tiny):
    """A head that turns and speaks; lost before frame 2, and in frames 6 and 7."""
    made = made_track(tiny, 10)
    turns = Rotation.from_euler("y", np.linspace(-20, 25, 10)[:, None], degrees=True).as_matrix()
    poses, expression = made.poses.copy(), made.expression.copy()
    poses[:, :3, :3] = poses[:, :3, :3] @ turns
    expression[:] = np.random.default_rng(0).uniform(0, 1, expression.shape)
    segment = np.array([-1, -1, 0, 0, 0, 0, -1, -1, 1, 1])
    for rows in (poses[:, :3], expression):
        rows[segment < 0] = np.nan
    light = np.full((10, 9, 3), 0.1) * (segment >= 0)[:, None, None]
    return dataclasses.replace(made, poses=poses, expression=expression, segment=segment, light=light)


def test_what_is_lost_is_held(gappy):
    assert shown_frames(gappy).tolist() == [2, 2, 2, 3, 4, 5, 5, 5, 8, 9]
    assert most_frontal(gappy) == 4
    with pytest.raises(ValueError, match="lost in all of them"):
        shown_frames(dataclasses.replace(gappy, segment=np.full(10, -1)))


def test_files_of_a_track_read_back_as_the_track(gappy, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "track_texture", lambda *_: np.full((64, 64, 3), 128, np.uint8))
    assert write_track(tmp_path, "none.mp4", gappy, tiny, fps=25.0, obj_sequence=True) == ()
    shown, found = shown_frames(gappy), np.flatnonzero(~gappy.lost).tolist()
    read, reference = read_glb(tmp_path / "head.glb"), most_frontal(gappy)
    assert read.animation is not None
    np.testing.assert_allclose(read.animation.times, gappy.times, atol=1e-6)
    for k, frame in enumerate(shown):
        head = np.asarray(tiny.vertices(jnp.asarray(gappy.identity), jnp.asarray(gappy.expression[frame])), float)
        expected = head @ gappy.R[frame].T + gappy.t[frame]
        seen = read.frame(k) @ gappy.R[reference].T + gappy.t[reference]
        assert np.abs(seen - expected).max() < 1e-5 * 230  # mm, the head's size

    with np.load(tmp_path / "parameters.npz") as arrays:
        assert all(np.isfinite(arrays[n]).all() for n in arrays.files if arrays[n].dtype.kind == "f")
        np.testing.assert_array_equal(arrays["lost"], gappy.lost)
        np.testing.assert_allclose(arrays["t"], gappy.t[shown], rtol=1e-6)
        assert json.loads(str(arrays["manifest"]))["licence"] == tiny.provenance.licence
    take = read_live_link_csv(tmp_path / "blendshapes.csv", 25.0)
    np.testing.assert_allclose(take.times, gappy.times[found], atol=1e-6)
    np.testing.assert_allclose(take.expression(tiny.expression_names), gappy.expression[found], atol=1e-7)
    cameras = read_opencv_cameras(tmp_path / "cameras" / "opencv.json")
    assert list(cameras) == [frame_name(k) for k in found]
    np.testing.assert_allclose(cameras[frame_name(3)].pose.translation(), gappy.t[3], rtol=1e-6)
    assert len(list((tmp_path / "obj").glob("*.obj"))) == 10


def test_colours_come_from_key_frames_that_were_tracked(gappy, tiny, tmp_path, monkeypatch):
    with ClipWriter(tmp_path / "clip.mp4") as writer:
        for k in range(10):
            writer.write(np.full((64, 64, 3), 20 * k, np.uint8), k / 25)
    used = []

    def blended(fits, photos, size):
        used.append([round(float(p.pixels.mean()) / 20) for p in photos])
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(files, "person_texture", blended)
    for key_frames in ((9, 3, 6), (0,)):
        files.track_texture(tmp_path / "clip.mp4", gappy, tiny, key_frames)
    assert used == [[3, 9], [4]]


def test_how_bright_skin_is_does_not_depend_on_how_the_fit_split_it(tiny):
    """The same pictures, explained by bright skin in dim light or by dark skin in bright light."""
    light = np.zeros((9, 3), np.float32)
    light[0] = 2.0
    fit = dataclasses.replace(made_track(tiny).fit(tiny, 0), light=light)
    found = likely_albedo([fit])
    mean = lambda a: np.asarray(tiny.albedo_linear(jnp.asarray(a, jnp.float32))).mean(axis=0)  # noqa: E731
    np.testing.assert_allclose(mean(found.albedo) * found.light_factor, mean(fit.albedo), rtol=1e-5)
    again = dataclasses.replace(fit, albedo=found.albedo, light=light * found.light_factor)
    np.testing.assert_allclose(mean(likely_albedo([again]).albedo), mean(found.albedo), rtol=0.03)
    dim = likely_albedo([dataclasses.replace(fit, light=light / 2)])
    assert mean(dim.albedo).mean() < mean(found.albedo).mean()


def test_a_synthetic_clip_tells_the_truth(head, tmp_path):
    truth = synthesize_clip(tmp_path / "clip.mp4", head, frames=3, rate=10.0, size=160)  # the size of other tests
    for k, expression in enumerate(truth.expression):
        vertices = head.vertices(jnp.asarray(truth.identity, jnp.float32), jnp.asarray(expression, jnp.float32))
        points = np.asarray(head.landmarks3d(vertices)) @ truth.poses[k, :3, :3].T + truth.poses[k, :3, 3]
        np.testing.assert_allclose(truth.points[k], points, atol=0.02)
        np.testing.assert_allclose(truth.pixels[k], truth.focal_px * points[:, :2] / points[:, 2:] + 80, atol=0.02)
    frames = list(read_frames(tmp_path / "clip.mp4"))
    np.testing.assert_allclose([f.time_s for f in frames], truth.times, atol=1e-4)
    assert frames[0].photo.pixels.shape == (160, 160, 3) and frames[0].photo.pixels.std() > 5
    with pytest.raises(SynthesisError, match="0 frames"):
        synthesize_clip(tmp_path / "none.mp4", head, frames=0)


# --------------------------------------------------------------------------------------------------------- a whole clip

SIDE = 320
FRAMES = 20
BLACK = (9, 10, 11)
CUT = 15


def shifted(photo, x, y, roll=0.0):
    """The bundled photo, around the face, through a camera that moves."""
    scale, (cx, cy) = 1.2, (photo.width / 2 + x, photo.height / 2 + y)
    c, s = np.cos(roll) * scale, np.sin(roll) * scale
    half = SIDE / 2
    affine = (c, -s, cx - c * half + s * half, s, c, cy - s * half - c * half)
    image = Image.fromarray(photo.pixels)
    return np.asarray(image.transform((SIDE, SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


@pytest.fixture(scope="module")
def clip(tmp_path_factory, photo, face):
    """Twenty frames at uneven times: a head that drifts, black for a while, back, then cut to another place."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    times = np.cumsum(np.r_[0, np.random.default_rng(0).uniform(0.02, 0.06, FRAMES - 1)])
    middle = np.nanmean(face.landmarks, axis=0) - [photo.width / 2, photo.height / 2]
    with ClipWriter(path, quality=12) as writer:
        for k, time in enumerate(times):
            x, y = middle + (np.array([60.0 * time, 10.0]) if k < CUT else np.array([-55.0, -30.0]))
            picture = shifted(photo, x, y, 0.1 * time)
            if k >= CUT:  # another light and place
                picture = 255 - (255 - picture) // 2
            writer.write(np.zeros_like(picture) if k in BLACK else picture, time)
    return path, times


@pytest.fixture
def known_identity(monkeypatch, fitted):
    """The identity of the session's fit: what key frames do is tested elsewhere."""
    who = Identity(fitted.identity, fitted.albedo, float(fitted.camera.focal[0]) / 1.2, fitted.light, (0,))
    monkeypatch.setattr(tracking, "find_identity", lambda *_: who)


SETTINGS = TrackSettings(shard=4, window=8, overlap=3, steps=3, samples=512)


def test_a_clip_with_gap_and_cut_is_tracked_and_resumed(clip, known_identity, head, tmp_path):
    path, times = clip
    said: list[str] = []

    def stop(phase, at):
        def progress(now, done, of):
            del of
            if (now, done) == (phase, at):
                raise KeyboardInterrupt

        return progress

    run = lambda out, **kw: track(path, out, model=head, settings=SETTINGS, pictures=False, say=said.append, **kw)  # noqa: E731
    for phase, at in (("tracking", 7), ("refining", 13)):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", progress=stop(phase, at))
    resumed = run(tmp_path / "stopped")
    assert any("The same command goes on" in line for line in said)
    assert any("going on from frame 7" in line for line in said)

    whole = run(tmp_path / "whole")
    one, two = resumed.track, whole.track
    np.testing.assert_allclose(one.times, times, atol=1e-4)
    assert np.flatnonzero(one.lost).tolist() == list(BLACK)
    assert one.segment.tolist() == [0] * 9 + [-1] * 3 + [1] * 3 + [2] * 5
    np.testing.assert_array_equal(one.segment, two.segment)
    np.testing.assert_allclose(one.poses, two.poses, atol=1e-3)
    np.testing.assert_allclose(one.expression, two.expression, atol=1e-4)
    assert np.isnan(one.poses[10]).all() and np.isnan(one.expression[10]).all()

    # The pictured head drifts to the left by 60 px of the photo a second, that is 50 of the clip.
    before, after = whole.before, whole.after
    assert after.jitter_mm < before.jitter_mm
    pixels = two.project(two.landmarks(head))[:9, 17:].mean(axis=1)
    drift = np.polyfit(times[:9], pixels[:, 0], 1)[0]
    assert abs(drift + 50) < 8
    missed = np.linalg.norm(two.project(two.landmarks(head)) - two.detected, axis=2)[~two.lost, 17:]
    assert np.median(missed) < 6
    turn = Rotation.from_matrix(two.R[0].T @ two.R[8]).magnitude()
    assert turn < 0.2


def test_a_folder_with_another_track_is_refused(clip, known_identity, head, tmp_path):
    path, _ = clip
    Store(tmp_path, 4, {"version": 1, "video": {"bytes": 5}})
    with pytest.raises(TrackError, match="another video"):
        track(path, tmp_path, model=head, settings=SETTINGS)
    with pytest.raises(TrackError, match="focal_px"):
        track(path, tmp_path / "new", model=head, focal_px=-3.0)


def facefit(capsys, *arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


def test_the_command_stops_goes_on_and_writes_its_files(clip, known_identity, tmp_path, monkeypatch, capsys):
    path, times = clip
    out = tmp_path / "out"
    with monkeypatch.context() as stopped:

        def stop(*_, **__):
            raise KeyboardInterrupt

        stopped.setattr(files, "write_track", stop)
        code, said = facefit(capsys, "track", path, "-o", out, "--no-pictures")
    assert code == 130 and "goes on from there" in said and "removed" not in said
    assert sorted(p.name for p in out.iterdir()) == ["track", "track.json", "track.npz"]

    code, said = facefit(capsys, "track", path, "-o", out, "--no-pictures", "--fps", "30")
    assert code == 0 and "going on" in said and "jitter" in said and "leakage" in said
    assert sorted(p.name for p in out.iterdir()) == [
        *("blendshapes.csv", "cameras", "head.glb", "normal.png", "parameters.npz"),
        *("texture.png", "track", "track.json", "track.npz"),
    ]
    assert json.loads((out / "track.json").read_text())["model"]["licence"] == "CC0-1.0"
    result = Track.load(out / "track.npz")
    read = read_glb(out / "head.glb")
    assert read.animation is not None and len(read.animation.times) == len(times)
    # The bundled photo's face, not the model's mean.
    with Image.open(out / "texture.png") as texture:
        assert np.asarray(texture).std() > 20
    assert len(read_live_link_csv(out / "blendshapes.csv", 30.0).times) == (~result.lost).sum()


def test_the_command_refuses_what_it_cannot_use(clip, tmp_path, monkeypatch, capsys):
    def load(path=None):
        raise AssertionError("the model was loaded for bad input")

    monkeypatch.setattr("morphable.load", load)
    (tmp_path / "text.mp4").write_text("no video")
    out = tmp_path / "out"
    for arguments, named in (
        ((tmp_path / "text.mp4",), "text.mp4"),
        ((tmp_path / "none.mp4",), "none.mp4"),
        ((clip[0], "--focal-px", "0"), "--focal-px"),
        ((clip[0], "--fps", "0.5"), "--fps"),
        ((clip[0], "--key-frames", "0"), "key_frames"),
        ((clip[0], "--landmarks", "mediapipe"), "'mediapipe', expected dlib or network"),
        ((clip[0], "--landmarks", "points.npy"), "--landmarks"),
        ((clip[0], "--landmark-weights", "none.safetensors"), "--landmark-weights"),
        ((clip[0], "--landmarks", "network", "--landmark-weights", "none.safetensors"), "none.safetensors"),
    ):
        code, said = facefit(capsys, "track", *arguments, "-o", out)
        message = said.splitlines()[-1]
        assert code == 2 and message.startswith("facefit: ") and named in message and "expected" in message
    assert not out.exists()
