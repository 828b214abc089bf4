"""The dark of an eye goes as its lids close, however bright or large the picture; nothing is said of hidden eyes."""

import dataclasses

import numpy as np
import pytest

import fitting.clip.tracking as tracking
from fitting.clip.follow import FollowSettings, FrameFitter, FrameTracker
from fitting.clip.frames import Frame
from fitting.clip.key_frames import Identity
from fitting.clip.lid_opening import LEVELS, EyeDark, LidOpening, eye_dark, lid_openings
from fitting.clip.sight import DlibSight
from fitting.clip.synthetic import synthesize_clip
from fitting.clip.tracking import TrackSettings, track
from fitting.observation import Photo

LENGTH = 48.0  # px of the drawn eye
SKIN, WHITE, IRIS, LASHES = 180, 220, 40, 90


def drawn(opening, scale=1.0, gain=1.0, roll=0.0, lashes=False, rim=False, narrow=1.0):
    """A picture of an eye around its middle, and its corners."""
    side = round(120 * scale)
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    c, s = np.cos(roll), np.sin(roll)
    u, v = (c * x + s * y) / (LENGTH * scale), (c * y - s * x) / (LENGTH * scale)
    half = 0.19 * narrow * np.maximum(1 - (2 * u) ** 2, 0)  # of the opening, which closes from above
    tone = np.full((side, side), float(SKIN))
    between = (v < half) & (v > half - 2 * half * opening) & (np.abs(u) < 0.5)
    tone[between] = WHITE
    tone[between & (np.hypot(u, v) < 0.2)] = IRIS
    if lashes:
        tone[(np.abs(v - half + 2 * half * opening) < 0.03) & (np.abs(u) < 0.5)] = LASHES
    if rim:
        tone[np.abs(np.abs(v) - 0.29) < 0.025] = 20  # of glasses
    corners = np.array([[-c, -s], [c, s]]) * LENGTH * scale / 2 + side / 2
    pixels = np.clip(np.rint(tone * gain), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    return Photo(pixels), corners, LENGTH * scale


def clip_of(openings, **how):
    """Both eyes of a clip at 25 frames a second."""
    seen = [eye_dark(*drawn(o, **how)) for o in openings]
    depth, thickness = (np.stack([[getattr(e, name)] * 2 for e in seen]) for name in ("depth", "thickness"))
    return EyeDark(depth, thickness), np.arange(len(seen)) / 25


def found(openings, **how):
    dark, times = clip_of(openings, **how)
    return lid_openings(dark, times, np.zeros(len(times), int)).share[:, 0]


@pytest.mark.parametrize("how", [{}, {"lashes": True}, {"rim": True}, {"narrow": 0.6}, {"roll": 0.5}])
def test_a_blink_is_seen(how):
    closing = np.linspace(1, 0, 9)
    opening = found(np.r_[np.ones(20), closing, closing[::-1], np.ones(20)], **how)
    assert (opening[:20] == 1).all() and (opening[-20:] == 1).all()
    assert (np.diff(opening[19:29]) <= 1e-9).all()
    assert opening[27:30].max() < 0.25
    assert opening[24] < 0.9


@pytest.mark.parametrize("how", [{"gain": 0.4}, {"scale": 2.5}, {"scale": 0.6}, {"roll": -0.4}])
def test_it_is_the_same_in_other_light_size_and_roll(how):
    for opening in (1.0, 0.5, 0.0):
        one, other = eye_dark(*drawn(opening)), eye_dark(*drawn(opening, **how))
        np.testing.assert_allclose(other.depth, one.depth, atol=0.06)
        np.testing.assert_allclose(other.thickness, one.thickness, atol=0.04)


def test_nothing_is_said_of_eyes_that_cannot_be_seen():
    photo, corners, length = drawn(1.0)
    assert np.isfinite(eye_dark(photo, corners, length).depth)
    middle = corners.mean(axis=0)
    turned = middle + 0.5 * (corners - middle)
    for c, n in (
        (turned, length),
        (middle + 0.2 * (corners - middle), 0.2 * length),
        (corners + [70.0, 0.0], length),
        (corners, np.nan),
    ):
        dark = eye_dark(photo, c, n)
        assert np.isnan(dark.depth) and np.isnan(dark.thickness).all()


def test_a_reference_takes_time_contrast_and_the_same_shot():
    blink = np.r_[np.ones(20), np.zeros(4), np.ones(20)]
    assert np.isnan(found(blink[14:25])).all()
    dark, times = clip_of(blink)
    hidden = dataclasses.replace(dark, depth=0.3 * dark.depth)  # behind dark glasses
    assert np.isnan(lid_openings(hidden, times, np.zeros(44, int)).share).all()
    # Another shot shows another person, whose eyes have half the dark; that is no blink.
    other, _ = clip_of(blink, narrow=0.6)
    both = EyeDark(np.r_[dark.depth, other.depth], np.r_[dark.thickness, other.thickness])
    opening = lid_openings(both, np.arange(88) / 25, np.repeat([0, 1], 44)).share
    np.testing.assert_array_equal(opening[44:] < 0.5, opening[:44] < 0.5)
    lost = lid_openings(both, np.arange(88) / 25, np.repeat([0, -1], 44)).share
    assert np.isnan(lost[44:]).all() and np.isfinite(lost[:44]).all()


def test_a_clip_may_begin_with_closed_eyes():
    opening = found(np.r_[np.zeros(15), np.ones(25)])
    assert (opening[:14] == 0).all() and (opening[16:] == 1).all()


# ----------------------------------------------------------------------------------------------- in the tracker


@pytest.fixture(scope="module")
def frames(fitter, fitted):
    who = Identity(fitted.identity, fitted.albedo, float(fitted.camera.focal[0]), fitted.light, (0,))
    return FrameFitter(fitter, who, DlibSight(), 512, 1.0)


def test_what_is_seen_of_an_eye_closes_that_eye_only(frames, photo, face, head):
    blink = [head.unit("eyeBlinkRight"), head.unit("eyeBlinkLeft")]
    weights = {}
    for name, opening in {"open": [1.0, 1.0], "unknown": [np.nan] * 2, "both": [0.0, 0.0], "wink": [0.0, 1.0]}.items():
        seen, start = frames.seen(photo, face, LidOpening(np.array(opening), np.zeros(2)))
        motion = frames.solve(seen, start, "landmarks", frames.free("pose", "expression"), 12, 1e-4)
        weights[name] = motion.expression[0, blink]
    np.testing.assert_array_equal(weights["open"], weights["unknown"])
    assert (weights["open"] < 0.3).all()
    assert (weights["both"] > 0.6).all()
    assert weights["wink"][0] > 0.6 and weights["wink"][1] < 0.35


def test_a_frame_is_followed_with_what_is_seen_of_its_eyes(frames, photo):
    row = FrameTracker(frames, FollowSettings()).follow(Frame(photo, 0.0, 0))
    assert (row["eye_depth"] > 0.4).all()
    assert row["eye_thickness"].shape == (2, len(LEVELS))
    assert (np.diff(row["eye_thickness"]) <= 0).all()
    black = Photo(np.zeros_like(photo.pixels))
    assert np.isnan(FrameTracker(frames, FollowSettings()).follow(Frame(black, 0.0, 0))["eye_depth"]).all()


def test_a_blink_of_a_clip_is_recovered(head, fitted, tmp_path, monkeypatch):
    truth = synthesize_clip(tmp_path / "clip.mp4", head, seed=2, frames=20, size=320, motion=0.3)
    who = Identity(truth.identity, truth.albedo, truth.focal_px, fitted.light, (0,))
    monkeypatch.setattr(tracking, "find_identity", lambda *_: who)
    settings = TrackSettings(samples=512, window=20, overlap=4)
    found = track(tmp_path / "clip.mp4", tmp_path / "out", model=head, settings=settings, pictures=False).track
    for side in ("Left", "Right"):
        blink = head.unit(f"eyeBlink{side}")
        true, ours = truth.expression[:, blink], found.expression[:, blink]
        assert ours[true > 0.8].min() > 0.65 * true.max()
        assert ours[true < 0.05].max() < 0.2
