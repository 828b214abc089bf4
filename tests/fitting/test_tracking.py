"""Clips are followed through cuts, gaps and interruptions; what a track says about itself is true."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import fitting.tracking as tracking
from fitting.detection import LANDMARK_NOISE, Face
from fitting.key_frames import Candidate, Identity, choose
from fitting.motion import Track, TrackFormatError, leakage, offset_error, steadiness
from fitting.tracking import Store, TrackError, TrackSettings, track
from fitting.video import ClipWriter

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


@pytest.mark.parametrize("wrong", [{"key_frames": 0}, {"overlap": 64}, {"noise": 0.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(TrackError):
        TrackSettings(**wrong)


# --------------------------------------------------------------------------------------------------------- a whole clip

SIDE = 320
FRAMES = 20
BLACK = (9, 10, 11)
CUT = 15


def shifted(photo, x, y, roll=0.0):
    """The bundled photo, around the face, through a camera that moves."""
    from PIL import Image

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
