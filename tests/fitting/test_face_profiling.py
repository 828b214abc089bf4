"""A photo turned by nothing is the photo; turned, it shows its landmarks where the truth says they are."""

import dataclasses

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import fitting.clip.turned as turned_clip
import fitting.face_profiling as face_profiling
from fitting.clip.motion import offset_error
from fitting.clip.synthetic import ClipTruth
from fitting.clip.turned import ClipSettings, motion, save_turned_clip, short_video
from fitting.evaluation import psnr
from fitting.face_profiling import (
    ProfilingError,
    enlarged,
    profile_mesh,
    rotated,
)
from fitting.fit import Fit, Settings
from fitting.observation import Photo
from morphable.colour import linear_to_srgb
from renderer.camera import Pinhole
from renderer.light import ambient_white
from renderer.render import render

HEIGHT, WIDTH, FOCAL = 200, 200, 220.0
STILL = ClipSettings(yaw=0.0, pitch=0.0, roll=0.0, tilt=0.0, shift=0.0, zoom=0.0, noise=0.0)


@pytest.fixture(scope="module", autouse=True)
def small_maps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(face_profiling, "_SURVEY", 192)
        patch.setattr(face_profiling, "_LINES", 64)
        yield


def make_fit(model, yaw=0.0, place=(0.0, 0.0, 700.0)) -> Fit:
    """A fit that is exactly right about a head in front of a small camera."""
    rotation = jaxlie.SO3.from_x_radians(jnp.pi) @ jaxlie.SO3.from_y_radians(jnp.deg2rad(yaw))
    camera = Pinhole(
        focal=jnp.array([FOCAL, FOCAL]),
        centre=jnp.array([WIDTH / 2, HEIGHT / 2]),
        pose=jaxlie.SE3.from_rotation_and_translation(rotation, jnp.array(place)),
        height=HEIGHT,
        width=WIDTH,
    )
    return Fit(
        model=model,
        camera=camera,
        identity=np.zeros(model.shape.rank, np.float32),
        expression=np.zeros(len(model.expression_names), np.float32),
        albedo=np.zeros(model.albedo.rank, np.float32),
        light=np.asarray(ambient_white(), np.float32),
        detected=np.zeros((68, 2), np.float32),
        source="test",
        result="converged",
        reason="",
        energies={},
        stages=[],
        timings={},
        settings=Settings(),
        hessian=None,
    )


def photograph(fit: Fit):
    """The tiny head, of the same colours on both sides, before a wavy wall; and where it is."""
    x, y, _ = np.asarray(fit.mesh.vertices).T / 70
    colours = 0.45 + 0.2 * np.stack([np.cos(3 * x), np.sin(4 * y), np.cos(2 * x) * np.sin(3 * y)], axis=-1)
    mesh = dataclasses.replace(fit.mesh, albedo=jnp.asarray(colours, jnp.float32))
    picture = render(mesh, fit.camera, jnp.asarray(fit.light))
    v, u = np.meshgrid(np.arange(HEIGHT) / 9, np.arange(WIDTH) / 11, indexing="ij")
    wall = 0.3 + 0.15 * np.stack([np.sin(u), np.cos(v), np.sin(u + v)], axis=-1)
    encoded = np.asarray(linear_to_srgb(jnp.clip(picture.over(jnp.asarray(wall, jnp.float32)), 0, 1)))
    return Photo(np.rint(255 * encoded).astype(np.uint8)), np.asarray(picture.coverage) == 1


@pytest.fixture(scope="module")
def fit(tiny) -> Fit:
    return make_fit(tiny, yaw=20.0)


@pytest.fixture(scope="module")
def photo(fit) -> Photo:
    return photograph(fit)[0]


@pytest.fixture(scope="module")
def profile(fit, photo):
    return profile_mesh(fit, photo)


# -------------------------------------------------------------------------------------------------------- pictures


def test_turned_by_nothing_it_is_the_photo(profile, photo, fit):
    same = rotated(profile)
    assert np.abs(same.pixels.astype(int) - photo.pixels).max() <= 2
    assert (same.pixels == photo.pixels).mean() > 0.999
    assert np.allclose(same.landmarks, fit.landmarks2d, atol=1e-3)
    assert np.allclose(same.pose.as_matrix(), fit.camera.pose.as_matrix(), atol=1e-4)


def test_a_square_about_the_head_is_a_crop_of_the_photo(fit, photo):
    square = profile_mesh(fit, photo, size=WIDTH)  # of one size, so of one program
    same = rotated(square)
    # The crop's camera says which box it shows.
    scale = FOCAL / float(square.camera.focal[0])
    corner = np.array([WIDTH, HEIGHT]) / 2 - scale * np.asarray(square.camera.centre)
    side = WIDTH * scale
    expected, inside = photo.crop_srgb((*corner, side, side), WIDTH)
    assert same.pixels.shape == (WIDTH, WIDTH, 3)
    assert np.abs(same.pixels[inside] / 255 - expected[inside]).max() < 0.02
    above = np.asarray(square.camera.project(fit.model.mean))
    assert (above > -1).all() and (above < WIDTH + 1).all()  # all of the tiny head, which has no neck


def test_landmarks_are_the_models_under_the_turned_pose(profile, fit):
    yaw, pitch, roll = 25.0, -12.0, 8.0
    turned = rotated(profile, yaw, pitch, roll)
    turn = Rotation.from_euler("YXZ", [yaw, pitch, roll], degrees=True).as_matrix()  # about the head's own axes
    R, t, pivot = (np.asarray(a, float) for a in (fit.camera.rotation, fit.camera.pose.translation(), profile.pivot))
    # The head's middle stays where it is.
    points = (fit.landmarks3d - R.T @ (pivot - t)) @ (R @ turn).T + pivot
    expected = FOCAL * points[:, :2] / points[:, 2:] + np.array([WIDTH, HEIGHT]) / 2
    assert np.allclose(turned.landmarks, expected, atol=0.01)
    assert np.allclose(np.asarray(turned.pose.rotation().as_matrix()), R @ turn, atol=1e-5)
    assert np.allclose(np.asarray(turned.pose @ jnp.asarray(fit.landmarks3d[30])), points[30], atol=0.01)


@pytest.mark.parametrize("angles", [(-20.0, 0.0, 0.0), (25.0, 10.0, 0.0), (0.0, -15.0, 15.0)])
def test_what_was_painted_on_a_landmark_is_found_on_it(fit, photo, angles):
    forward = fit.landmarks3d[:, 2] > 40
    chosen = int(np.flatnonzero(forward)[0])  # on the front, which all these views show
    v, u = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    x, y = fit.landmarks2d[chosen]
    spot = np.exp(-((u - x) ** 2 + (v - y) ** 2) / 8.0)
    dark = np.zeros_like(photo.pixels)
    dark[..., 1] = np.rint(255 * spot)
    turned = rotated(profile_mesh(fit, Photo(dark)), *angles)
    weight = turned.pixels[..., 1].astype(float) ** 2
    found = np.array([np.sum(weight * u), np.sum(weight * v)]) / weight.sum()
    assert turned.visible[chosen]
    assert np.linalg.norm(found - turned.landmarks[chosen]) < 0.7


@pytest.mark.parametrize(
    ("yaw", "d_yaw", "least"), [(25.0, -25.0, 34.0), (25.0, 25.0, 34.0), (40.0, -65.0, 25.0), (55.0, -60.0, 26.0)]
)
def test_it_looks_like_the_head_from_there(tiny, yaw, d_yaw, least):
    """Turned past the front, the side that the photo does not show is the other one's mirror image."""
    fit = make_fit(tiny, yaw=yaw)
    turned = rotated(profile_mesh(fit, photograph(fit)[0]), d_yaw)
    seen = dataclasses.replace(fit, camera=dataclasses.replace(fit.camera, pose=turned.pose))
    truth, head = photograph(seen)
    assert psnr(turned.pixels / 255, truth.pixels / 255, head) > least


def test_background_far_from_the_head_stays(profile, photo):
    turned = rotated(profile, 40.0, 10.0).pixels
    far = np.ones((HEIGHT, WIDTH), bool)
    reach = round(200 * FOCAL / 700)  # px of 200 mm
    column, row = (np.asarray(profile.camera.project(profile.landmarks)).mean(axis=0)).astype(int)
    far[max(0, row - reach - 30) : row + reach + 30, max(0, column - reach - 30) : column + reach + 30] = False
    assert far.any()
    assert np.abs(turned[far].astype(int) - photo.pixels[far]).max() <= 2
    assert (turned != photo.pixels)[~far].any()


@pytest.mark.parametrize("angles", [(85.0, 0.0, 0.0), (-60.0, 30.0, 0.0), (-85.0, 0.0, 40.0), (0.0, -60.0, 0.0)])
def test_no_hole_opens(fit, angles):
    white = profile_mesh(fit, Photo(np.full((HEIGHT, WIDTH, 3), 255, np.uint8)))
    assert (rotated(white, *angles).pixels >= 254).all()
    course = dict(zip(("yaw", "pitch", "roll"), angles, strict=True))
    for corner in (-0.3, 0.3):
        most = course | {"tilt": 45.0, "across": corner, "down": 0.3, "zoom": -0.4}
        view = face_profiling.seen_turned(white, *turned_clip._moved(white, most))
        assert (np.asarray(view.linear) > 0.99).all()


def test_visible_landmarks_are_those_in_front(profile, fit):
    near = fit.landmarks3d[:, 2] > 35
    assert rotated(profile).visible[near].all()
    away = rotated(profile, 60.0)  # 80 degrees to its left: its right side is towards the camera
    left, right = fit.landmarks3d[:, 0] > 40, fit.landmarks3d[:, 0] < -40
    assert not away.visible[left].any() and away.visible[right].mean() > 0.9


def test_what_leaves_the_picture_is_not_visible(tiny):
    beside = make_fit(tiny, place=(-300.0, 0.0, 700.0))
    turned = rotated(profile_mesh(beside, photograph(beside)[0]))
    outside = (turned.landmarks < 0).any(axis=1)
    assert outside.any() and not outside.all()
    assert not turned.visible[outside].any()


def test_yaw_is_enlarged_away_from_the_front(tiny):
    for yaw in (25.0, -25.0):
        fit = make_fit(tiny, yaw=yaw)
        profile = profile_mesh(fit, photograph(fit)[0])
        assert profile.yaw == pytest.approx(yaw, abs=0.01)
        forward = [np.asarray(view.pose.rotation().as_matrix())[:, 2] for view in enlarged(profile, 20.0, 70.0)]
        yaws = np.degrees([np.arctan2(f[0], -f[2]) for f in forward])
        assert np.allclose(yaws, np.sign(yaw) * np.array([25.0, 45.0, 65.0]), atol=0.01)


# ----------------------------------------------------------------------------------------------------------- clips


def test_a_still_clip_shows_the_photo(profile, photo):
    for frame in short_video(profile, seed=1, frames=2, settings=STILL):
        assert np.abs(frame.pixels.astype(int) - photo.pixels).max() <= 2


def test_equal_seeds_give_equal_bytes(profile):
    first, longer = (list(short_video(profile, seed=5, frames=n)) for n in (2, 3))
    other = next(short_video(profile, seed=6, frames=1))
    for a, b in zip(first, longer, strict=False):
        assert a.pixels.tobytes() == b.pixels.tobytes()
        assert np.array_equal(a.landmarks, b.landmarks)
    assert other.pixels.tobytes() != first[0].pixels.tobytes()
    assert [frame.time_s for frame in longer] == [0.0, 0.04, 0.08]


def test_truth_of_a_frame_is_one_pose_seen_by_the_photos_camera(profile, fit):
    settings = dataclasses.replace(STILL, yaw=30.0, pitch=10.0, roll=10.0, tilt=20.0, shift=0.1, zoom=0.3, exposures=1)
    for frame in short_video(profile, seed=2, frames=3, settings=settings):
        pose = np.asarray(frame.pose.as_matrix(), float)
        assert np.allclose(fit.landmarks3d @ pose[:3, :3].T + pose[:3, 3], frame.points, atol=0.02)
        pixels = FOCAL * frame.points[:, :2] / frame.points[:, 2:] + np.array([WIDTH, HEIGHT]) / 2
        assert np.allclose(pixels, frame.landmarks, atol=0.02)


def test_each_motion_does_what_its_name_says(profile):
    """In-plane motions are similarities of the picture about the head's middle."""
    at = np.asarray(profile.camera.project_camera(profile.pivot[None]), float)[0]
    nothing = dict.fromkeys(("yaw", "pitch", "roll", "tilt", "across", "down", "zoom"), 0.0)

    def seen(**course):
        turn, scene = turned_clip._moved(profile, nothing | course)
        pose = face_profiling.turned_pose(profile, turn, scene)
        middle = profile.camera.pose.inverse() @ profile.pivot
        camera = dataclasses.replace(profile.camera, pose=pose)
        points = jnp.stack([middle, middle + jnp.array([0.0, 50.0, 0.0])])
        return np.asarray(camera.project(points), float)

    still = seen()
    assert np.allclose(still[0], at, atol=1e-3)
    assert np.allclose(seen(across=0.1)[0] - at, [0.1 * WIDTH, 0], atol=0.01)
    assert np.allclose(seen(down=0.1)[0] - at, [0, 0.1 * WIDTH], atol=0.01)
    near = seen(zoom=np.log(1.25))
    assert np.allclose(near[0], at, atol=0.01)
    assert np.allclose((near[1] - at) / (still[1] - at)[1], [0, 1.25], atol=0.01)
    tilted = seen(tilt=90.0)
    assert np.allclose(tilted[1] - at, [-(still[1] - at)[1], 0], atol=0.01)


@pytest.mark.parametrize("seed", range(6))
def test_motions_are_bounded_and_smooth(seed):
    settings = ClipSettings(fastest_hz=1.5)
    times = np.linspace(0, 20, 4001)
    course = motion(seed, times, settings)
    reach = {"across": settings.shift, "down": settings.shift}
    for name, values in course.items():
        most = reach.get(name, getattr(settings, name, None))
        fastest = 2 * np.pi * settings.fastest_hz
        speed = np.diff(values) / np.diff(times)
        assert np.abs(values).max() <= most
        assert np.abs(values).max() > 0.3 * most  # and it moves
        assert np.abs(speed).max() <= fastest * most
        assert np.abs(np.diff(speed) / np.diff(times)[1:]).max() <= fastest**2 * most
    assert np.allclose(motion(seed, times[7:9], settings)["yaw"], course["yaw"][7:9])


def test_an_open_shutter_blurs_and_a_sensor_adds_noise(profile):
    fast = dataclasses.replace(STILL, shift=0.3, fastest_hz=5.0, rate=10.0, shutter=1.0, exposures=9)
    sharp = dataclasses.replace(fast, shutter=0.0)
    detail = lambda frame: np.abs(np.diff(frame.pixels.astype(float), axis=0)).mean()  # noqa: E731
    blurred, clear = (next(short_video(profile, 3, 1, settings)) for settings in (fast, sharp))
    assert detail(blurred) < 0.8 * detail(clear)
    assert np.array_equal(blurred.landmarks, clear.landmarks)  # of the middle of the exposure
    noisy = next(short_video(profile, 3, 1, dataclasses.replace(STILL, noise=0.02)))
    difference = noisy.pixels.astype(float) - rotated(profile).pixels
    assert 1.0 < difference.std() < 10.0 and abs(difference.mean()) < 0.3


def test_saved_truth_has_the_names_of_a_clips_truth(profile, tmp_path):
    written = []
    save_turned_clip(tmp_path / "turned.npz", lambda *frame: written.append(frame), profile, seed=4, frames=3)
    with np.load(tmp_path / "turned.npz") as truth:
        assert {field.name for field in dataclasses.fields(ClipTruth)} | {"visible"} == set(truth.files)
        assert truth["pixels"].shape == (3, 68, 2) and truth["poses"].shape == (3, 4, 4)
        assert truth["expression"].shape == (3, len(profile.expression))
        assert float(truth["focal_px"]) == FOCAL
        frames = list(short_video(profile, seed=4, frames=3))
        assert np.allclose(truth["pixels"], [frame.landmarks for frame in frames])
        assert offset_error(truth["pixels"] + 3.0, truth["pixels"]) < 1e-9  # 3DDFA's stability
    assert [time for _, time in written] == [0.0, 0.04, 0.08]
    assert all(np.array_equal(pixels, frame.pixels) for (pixels, _), frame in zip(written, frames, strict=True))


# ---------------------------------------------------------------------------------------------------------- errors


def test_errors_of_what_cannot_be_turned(fit, photo, tiny):
    with pytest.raises(ProfilingError, match="100 x 100 pixels, expected 200 x 200"):
        profile_mesh(fit, Photo(photo.pixels[::2, ::2].copy()))
    with pytest.raises(ProfilingError, match="failed fit .the head got away."):
        profile_mesh(dataclasses.replace(fit, result="failed", reason="the head got away"), photo)
    with pytest.raises(ProfilingError, match="outside the photo of 200 x 200"):
        profile_mesh(make_fit(tiny, place=(900.0, 0.0, 700.0)), photo)
    with pytest.raises(ProfilingError, match="got size 7, expected 32 to 4096"):
        profile_mesh(fit, photo, size=7)
    with pytest.raises(ProfilingError, match="lens distortion"):
        bent = dataclasses.replace(fit.camera, distortion=jnp.array([-0.1, 0.0, 0.0]))
        profile_mesh(dataclasses.replace(fit, camera=bent), photo)


def test_errors_of_settings(profile):
    with pytest.raises(ProfilingError, match="expected degrees from -180 to 180"):
        rotated(profile, float("nan"))
    with pytest.raises(ProfilingError, match="got steps of 0"):
        enlarged(profile, step=0.0)
    with pytest.raises(ProfilingError, match="got seed -1 and 5 frames"):
        short_video(profile, seed=-1, frames=5)
    with pytest.raises(ProfilingError, match="at least one frame"):
        short_video(profile, frames=0)
    for name, value in (("yaw", 91.0), ("shutter", -0.1), ("zoom", float("nan")), ("rate", 0.0)):
        with pytest.raises(ProfilingError, match=f"{name}: got {value}, expected"):
            ClipSettings(**{name: value})
    with pytest.raises(ProfilingError, match="exposures: got 4, expected an odd"):
        ClipSettings(exposures=4)
