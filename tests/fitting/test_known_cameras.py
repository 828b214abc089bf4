"""Cameras from files, each photo's among them, and the head in their world."""

import dataclasses
import struct

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fitting.arrowhead import World, WorldCamera
from fitting.detection import Face, LandmarkNoise
from fitting.known_cameras import (
    CameraError,
    calibrated,
    cameras_of,
    origin_at_head,
    origin_back,
    read_cameras,
    start_world,
)
from fitting.multi_image import SetError, fit_together, together
from fitting.observation import Photo
from fitting.sequence import write_cameras
from fitting.synthesis import SynthesisSettings, draw_scene, expose, render_scene
from renderer.camera import Pinhole
from renderer.camera_formats import to_colmap


def turned(degrees, place) -> jaxlie.SE3:
    quaternion = Rotation.from_euler("xyz", degrees, True).as_quat(scalar_first=True)
    return jaxlie.SE3(jnp.asarray(np.r_[quaternion, place], jnp.float32))


def pinhole(pose: jaxlie.SE3, distortion=None, focal=(900.0, 900.0)) -> Pinhole:
    return Pinhole(jnp.array(focal), jnp.array([330.0, 250.0]), pose, 480, 640, distortion=distortion)


# A world whose unit is 10 cm; four cameras around a head that stands somewhere in it.
WORLD = World(turned((20.0, 40.0, -10.0), (150.0, 60.0, -40.0)), jnp.float32(np.log(100.0)))
POSES = [
    turned((180.0 + 3 * k, yaw, 2.0 * k), (10.0 * k, -20.0, 700 + 60 * k)) for k, yaw in enumerate((-40, -5, 20, 45))
]


def in_world(pose: jaxlie.SE3, world: World = WORLD) -> jaxlie.SE3:
    """The pose of a camera in world units."""
    seen = pose @ world.pose.inverse()
    return jaxlie.SE3.from_rotation_and_translation(seen.rotation(), seen.translation() / jnp.exp(world.log_unit))


def world_camera(pose: jaxlie.SE3) -> WorldCamera:
    return calibrated(pinhole(in_world(pose)), "photo", 480, 640).camera


CAMERAS = {f"photos/{k}.jpg": pinhole(in_world(pose)) for k, pose in enumerate(POSES)}


def same(one: Pinhole, two: Pinhole, unit: float = 1.0) -> None:
    (ka, ra, ta), (kb, rb, tb) = ([np.asarray(x) for x in c.to_opencv()] for c in (one, two))
    np.testing.assert_allclose(ka, kb, rtol=1e-5)
    np.testing.assert_allclose(ra, rb, atol=1e-5)
    np.testing.assert_allclose(ta / unit, tb, atol=1e-4)
    assert (one.height, one.width) == (two.height, two.width)


# ------------------------------------------------------------------------------------------------------------ files


def test_every_file_that_is_written_can_be_read(tmp_path):
    write_cameras(tmp_path / "cameras", CAMERAS, unit_mm=2.0)
    for place, unit in (("", 1.0), ("cameras", 1.0), ("cameras/transforms.json", 2.0), ("cameras/colmap", 1.0)):
        found = read_cameras(tmp_path / place)
        assert list(found) == list(CAMERAS)
        for name, camera in CAMERAS.items():
            same(camera, found[name], unit)


def test_colmap_binary(tmp_path):
    folder = tmp_path / "sparse" / "0"
    folder.mkdir(parents=True)
    cameras, images = struct.pack("<Q", len(CAMERAS)), struct.pack("<Q", len(CAMERAS))
    for k, (name, camera) in enumerate(CAMERAS.items()):
        c = to_colmap(camera)
        cameras += struct.pack("<iiQQ4d", k, 1, c.width, c.height, *c.params)
        images += struct.pack("<i7di", 7 * k, *c.qvec, *c.tvec, k) + name.encode() + b"\0"
        images += struct.pack("<Q", k) + struct.pack("<ddq", 1.0, 2.0, -1) * k
    (folder / "cameras.bin").write_bytes(cameras)
    (folder / "images.bin").write_bytes(images)
    found = read_cameras(tmp_path)
    for name, camera in CAMERAS.items():
        same(camera, found[name])
    (folder / "images.bin").write_bytes(images[:120])
    with pytest.raises(CameraError, match="ends too early"):
        read_cameras(tmp_path)
    (folder / "cameras.bin").write_bytes(cameras.replace(struct.pack("<ii", 0, 1), struct.pack("<ii", 0, 5)))
    with pytest.raises(CameraError, match="model number 5, expected one of SIMPLE_PINHOLE"):
        read_cameras(tmp_path)


def test_bad_files(tmp_path):
    with pytest.raises(CameraError, match=r"absent: no such file or folder; expected transforms\.json"):
        read_cameras(tmp_path / "absent")
    with pytest.raises(CameraError, match="got a folder without cameras"):
        read_cameras(tmp_path)
    bad = tmp_path / "transforms.json"
    for text, words in (
        ("{", "expected JSON"),
        ("[1]", "got list, expected 'frames'"),
        ('{"frames": []}', "got no cameras"),
        ('{"frames": [{"file_path": "a.jpg"}]}', "has no 'w' and 'h'"),
        ('{"frames": [{"file_path": "a", "w": 4, "h": 4, "fl_x": 3}]}', "KeyError: 'transform_matrix'"),
        ('{"frames": [{"file_path": "a", "w": 4, "h": 4, "fl_x": 3, "p1": 0.1}]}', "Undistort the images"),
    ):
        bad.write_text(text)
        with pytest.raises(CameraError, match=words):
            read_cameras(bad)
    (tmp_path / "colmap").mkdir()
    bad.unlink()
    (tmp_path / "colmap" / "cameras.txt").write_text("1 PINHOLE 640 480 1 1 1 1\n")
    with pytest.raises(CameraError, match=r"cameras.txt without images.txt"):
        read_cameras(tmp_path)


# ------------------------------------------------------------------------------------------------- a photo's camera


def test_photos_find_their_cameras_by_name():
    assert cameras_of(CAMERAS, ["/elsewhere/2.jpg", "0.jpg"]) == [CAMERAS["photos/2.jpg"], CAMERAS["photos/0.jpg"]]
    assert cameras_of({"./train/r_0": CAMERAS["photos/0.jpg"]}, ["r_0.png"]) == [CAMERAS["photos/0.jpg"]]
    with pytest.raises(CameraError, match=r"got none for x/9.jpg, 8.jpg; expected one for each of the 3 photos.*has 4"):
        cameras_of(CAMERAS, ["x/9.jpg", "1.jpg", "8.jpg"])
    twice = {"left/1.jpg": CAMERAS["photos/0.jpg"], "right/1.jpg": CAMERAS["photos/1.jpg"]}
    assert cameras_of(twice, ["/data/right/1.jpg"]) == [twice["right/1.jpg"]]
    with pytest.raises(CameraError, match=r"got several for 1.jpg \(left/1.jpg, right/1.jpg\)"):
        cameras_of(twice, ["1.jpg"])


def test_cameras_that_the_fit_cannot_have():
    pose = POSES[0]
    known = calibrated(pinhole(pose), "a", 480, 640)
    assert known.focal_px == pytest.approx(900) and known.centre_px.tolist() == [330.0, 250.0]
    calibrated(pinhole(pose, distortion=jnp.array([1e-4, 0.0, 0.0])), "a", 480, 640)  # a tenth of a pixel
    with pytest.raises(CameraError, match=r"a.jpg: its camera is of a photo of 640 x 480 pixels, expected 1280 x 960"):
        calibrated(pinhole(pose), "a.jpg", 960, 1280)
    with pytest.raises(CameraError, match="EXIF orientation"):
        calibrated(pinhole(pose), "a.jpg", 640, 480)
    with pytest.raises(CameraError, match=r"a.jpg: its lens distorts by up to \d+.\d px.*Undistort the photos"):
        calibrated(pinhole(pose, distortion=jnp.array([-0.2, 0.0, 0.0])), "a.jpg", 480, 640)
    with pytest.raises(CameraError, match="pixels are not square"):
        calibrated(pinhole(pose, focal=(900.0, 1000.0)), "a.jpg", 480, 640)


# ----------------------------------------------------------------------------------------------- the head among them


def off(world: World) -> tuple[float, float, float]:
    """How far a similarity is from the truth: mm, degrees, share of the unit."""
    error = WORLD.pose.inverse() @ world.pose
    turn = np.degrees(float(np.linalg.norm(np.asarray(error.rotation().log()))))
    return float(np.linalg.norm(error.translation())), turn, abs(float(jnp.exp(world.log_unit - WORLD.log_unit)) - 1)


def test_the_start_is_exact_where_the_photos_are():
    found = start_world(POSES, [world_camera(p) for p in POSES])
    mm, degrees, share = off(found)
    assert mm < 0.1 and degrees < 0.02 and share < 1e-4
    near, origin = origin_at_head(found)
    np.testing.assert_allclose(near.pose.translation(), 0.0, atol=1e-3)
    back = origin_back(near, origin)
    np.testing.assert_allclose(back.pose.translation(), found.pose.translation(), atol=1e-3)
    known = calibrated(pinhole(in_world(POSES[1])), "photo", 480, 640)
    np.testing.assert_allclose(
        np.asarray(near.head_pose(known.about(origin)).as_matrix()), np.asarray(POSES[1].as_matrix()), atol=0.05
    )


def test_a_photo_that_is_wrong_does_not_move_the_start_far():
    rng = np.random.default_rng(0)
    noisy = [
        p @ jaxlie.SE3.exp(jnp.asarray(rng.normal(size=6) * [5, 5, 20, 0.03, 0.03, 0.03], jnp.float32)) for p in POSES
    ]
    mm, degrees, share = off(start_world(noisy, [world_camera(p) for p in POSES]))
    assert mm < 30 and degrees < 3 and share < 0.05
    wrong = [*noisy[:3], turned((180.0, -60.0, 0.0), (0.0, 0.0, 2000.0))]
    mm, degrees, share = off(start_world(wrong, [world_camera(p) for p in POSES]))
    assert mm < 40 and degrees < 4 and share < 0.08


def test_cameras_in_one_place_cannot_tell_the_unit():
    nod = [POSES[1] @ jaxlie.SE3.exp(jnp.array([0, 0, 0, 0.02 * k, 0, 0.0])) for k in range(3)]
    for poses in (nod[:1], nod):
        with pytest.raises(CameraError, match="expected different viewpoints.*--focal-px"):
            start_world(poses, [world_camera(POSES[1])] * len(poses))


def test_shuffled_cameras_contradict_the_poses():
    with pytest.raises(CameraError, match="Are the file's names shuffled"):
        start_world(POSES[:2], [world_camera(POSES[k]) for k in (1, 0)])


# --------------------------------------------------------------------------------------------------- the joint fit


@pytest.fixture(scope="module")
def rig(head):
    """Somebody in four photos of calibrated cameras, whose principal points are off the middle."""
    settings = SynthesisSettings.clean(size=320, yaw=35.0, lens_mm=(50.0, 90.0), off_centre=0.08)
    scenes = [draw_scene(head, jax.random.key(seed), settings) for seed in (3, 4, 6, 7)]
    photos, faces, cameras = [], [], []
    for scene in scenes:
        face = dataclasses.replace(scene.face, identity=scenes[0].face.identity, albedo=scenes[0].face.albedo)
        scene = dataclasses.replace(scene, face=face)
        view = render_scene(head, scene)
        photos.append(Photo(np.rint(255 * np.asarray(expose(scene, view.linear))).astype(np.uint8)))
        points = np.where(np.asarray(view.hidden)[:, None], np.nan, np.asarray(view.landmarks, float))
        faces.append(Face.from_landmarks(points, noise=LandmarkNoise(inner_mm=1.5, jaw_mm=2.0)))
        cameras.append(dataclasses.replace(scene.camera, pose=in_world(scene.camera.pose)))
    return photos, faces, cameras


STAGES = together()[:1]
NAMES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")


def test_the_joint_fit_keeps_known_cameras(fitter, rig):
    photos, faces, cameras = rig
    joint = fit_together(fitter, photos, faces, names=NAMES, cameras=cameras, stages=STAGES, one_person=True)
    assert [v.words for v in joint.verdicts] == ["used"] * 4 and joint.world is not None
    mm, degrees, share = off(joint.world)
    # How large the head is, and with it the unit, only the prior on faces says; but not how it is turned.
    assert degrees < 1.5 and share < 0.1 and mm < 200 * share + 5
    for fit, camera in zip(joint.fits, cameras, strict=True):
        np.testing.assert_allclose(fit.camera.centre, camera.centre, atol=1e-3)
        np.testing.assert_allclose(fit.camera.focal, camera.focal, rtol=1e-4)
        known = calibrated(camera, "", 320, 320).camera
        np.testing.assert_allclose(
            np.asarray(fit.camera.pose.as_matrix()), np.asarray(joint.world.head_pose(known).as_matrix()), atol=0.05
        )
        assert np.nanmedian(np.linalg.norm(fit.landmarks2d - fit.detected, axis=1)) < 2.0


def test_a_shuffled_file_is_refused_and_one_wrong_camera_left_out(fitter, rig):
    photos, faces, cameras = rig
    fit = lambda given, **more: fit_together(  # noqa: E731
        fitter, photos, faces, names=NAMES, cameras=given, stages=STAGES, one_person=True, **more
    )
    with pytest.raises(SetError, match="contradict the photos.*shuffled"):
        fit([cameras[k] for k in (1, 2, 3, 0)])
    aside = dataclasses.replace(cameras[2], pose=cameras[2].pose @ jaxlie.SE3.exp(jnp.array([0, 0, 0, 0, 0.3, 0.0])))
    joint = fit([*cameras[:2], aside, cameras[3]])
    assert joint.indices == (0, 1, 3)
    assert joint.verdicts[2].words.startswith("left out: its landmarks or its camera contradict the others'")
    with pytest.raises(SetError, match="got 3 cameras for 4 photos"):
        fit(cameras[:3])
    with pytest.raises(SetError, match="focal_px=100"):
        fit(cameras, focal_px=100.0)


def test_a_photo_without_landmarks_is_seen_by_its_camera(fitter, rig, monkeypatch):
    """Unless the camera is wrong, and sees the head where the photo shows something else."""
    photos, faces, cameras = rig
    monkeypatch.setattr("fitting.multi_image._Set._place", lambda *_: None)  # as where no detector answers

    def fit(given):
        return fit_together(fitter, photos, [*faces[:2], None, faces[3]], names=NAMES, cameras=given, one_person=True)

    joint = fit(cameras)
    assert joint.verdicts[2].words == "used where its camera sees the head, without landmarks"
    model = joint.fits[2].landmarks2d
    assert np.nanmedian(np.linalg.norm(model - faces[2].landmarks, axis=1)) < 3.0
    assert joint.fits[2].source == "none" and np.isnan(joint.fits[2].detected).all()
    aside = dataclasses.replace(cameras[2], pose=turned((0.0, 0.0, 90.0), (0.0, 0.0, 0.0)) @ cameras[2].pose)
    joint = fit([*cameras[:2], aside, cameras[3]])
    assert joint.indices == (0, 1, 3)
    assert "where its camera sees the head this explains" in joint.verdicts[2].words
