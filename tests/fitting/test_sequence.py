"""Parameters, meshes and cameras of a clip, read back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fitting.animation import head_poses
from fitting.sequence import parameters, read_opencv_cameras, write_cameras, write_obj_sequence
from renderer.camera import Pinhole
from renderer.camera_formats import (
    BlenderCamera,
    from_blender,
    from_colmap_text,
    from_nerf,
    from_opengl,
    from_pytorch3d,
)

POINTS = np.random.default_rng(0).uniform(-100, 100, (10, 3))


def clip(count=3, distortion=None):
    """The cameras of a few frames of a moving head, by file name."""
    cameras = {}
    for k in range(count):
        R = Rotation.from_euler("xyz", [180 + 5 * k, 12 * k, -3 * k], degrees=True).as_matrix()
        K = np.array([[900.0 + k, 0, 320], [0, 910.0, 240 + k], [0, 0, 1]])
        t = np.array([10.0 * k, -5, 700 + k])
        cameras[f"frame_{k:04d}.png"] = Pinhole.from_opencv(K, R, t, 480, 640, distortion=distortion)
    return cameras


def project(camera):
    return np.asarray(camera.project(jnp.asarray(POINTS, jnp.float32)))


def test_every_convention_reads_back_as_the_same_camera(tmp_path):
    with jax.enable_x64(True):
        cameras = clip()
        files = write_cameras(tmp_path, cameras)
        names = ["opencv.json", "transforms.json", "cameras.txt", "images.txt", "points3D.txt"]
        assert [f.name for f in files] == [*names, "opengl.json", "pytorch3d.json", "blender.json"]

        def arrays(values):  # JSON holds lists
            return {name: np.asarray(v) if isinstance(v, list) else v for name, v in values.items()}

        load = lambda name: json.loads((tmp_path / name).read_text())  # noqa: E731
        text = {name: (tmp_path / "colmap" / f"{name}.txt").read_text() for name in ("cameras", "images")}
        opengl, blender, pytorch3d = (load(f"{n}.json")["cameras"] for n in ("opengl", "blender", "pytorch3d"))
        read = {
            "opencv": read_opencv_cameras(tmp_path / "opencv.json"),
            "nerf": from_nerf(load("transforms.json"), unit_mm=1000.0),
            "colmap": from_colmap_text(text["cameras"], text["images"]),
            "opengl": {n: from_opengl(**arrays(v), height=480, width=640) for n, v in opengl.items()},
            "blender": {n: from_blender(BlenderCamera(**arrays(v))) for n, v in blender.items()},
            "pytorch3d": {n: from_pytorch3d(**arrays(v)) for n, v in pytorch3d.items()},
        }
        for convention, got in read.items():
            assert list(got) == list(cameras), convention
            for name, camera in cameras.items():
                assert np.allclose(project(got[name]), project(camera), atol=1e-3), (convention, name)


def test_formats_that_cannot_hold_a_camera_are_left_out_and_say_why(tmp_path):
    (camera,) = clip(1, distortion=(-0.1, 0.02, 0.0, 0.0, 0.0)).values()
    cameras = {"my photo.png": camera}
    files = {f.relative_to(tmp_path).as_posix() for f in write_cameras(tmp_path, cameras)}
    assert files == {"opencv.json", "transforms.json", "left_out.json"}
    reasons = json.loads((tmp_path / "left_out.json").read_text())
    assert set(reasons) == {"colmap", "opengl.json", "pytorch3d.json", "blender.json"}
    assert "rename" in reasons["colmap"] and "distortion" in reasons["blender.json"]
    read = read_opencv_cameras(tmp_path / "opencv.json")["my photo.png"]
    assert np.allclose(project(read), project(cameras["my photo.png"]), atol=1e-3)
    (tmp_path / "opencv.json").write_text("[]")
    with pytest.raises(ValueError, match="opencv.json: not a list of OpenCV cameras"):
        read_opencv_cameras(tmp_path / "opencv.json")


def test_parameters_rebuild_every_frame(tiny, tmp_path):
    rng = np.random.default_rng(1)
    identity, cameras = rng.normal(size=6).astype(np.float32), clip()
    expression, times = rng.uniform(0, 1, (3, 4)), np.array([0.0, 0.04, 0.1])
    arrays = parameters(tiny, times, identity, expression, list(cameras.values()), light=np.ones((3, 9, 3)))
    np.savez(tmp_path / "parameters.npz", allow_pickle=False, **arrays)
    read = np.load(tmp_path / "parameters.npz", allow_pickle=False)
    manifest = json.loads(str(read["manifest"]))
    assert manifest["format"] == "facefit-parameters" and manifest["licence"] == "CC0-1.0"
    assert tuple(read["expression_names"]) == tiny.expression_names and tuple(read["joint_names"]) == tiny.rig.names
    assert np.array_equal(read["timestamps"], times) and read["light"].shape == (3, 9, 3)
    for k, camera in enumerate(cameras.values()):
        vertices = np.asarray(tiny.vertices(jnp.asarray(read["identity"]), jnp.asarray(read["expression"][k])))
        R = Rotation.from_rotvec(read["rotation"][k]).as_matrix()
        seen = (vertices @ R.T + read["translation"][k]) @ read["K"][k].T
        assert np.allclose(seen[:, :2] / seen[:, 2:], np.asarray(camera.project(jnp.asarray(vertices))), atol=1e-2)
    assert np.array_equal(read["shape"], read["identity"]) and np.array_equal(read["expr"], read["expression"])
    assert np.allclose(read["jaw_pose"], 0) and read["eyes_pose"].shape == (3, 6)
    with pytest.raises(ValueError, match="one of each"):
        parameters(tiny, times, identity, expression, list(cameras.values())[:2])


def test_a_sequence_of_meshes_is_one_topology_with_one_material(tiny, tmp_path):
    rng = np.random.default_rng(2)
    identity, expression = rng.normal(size=6).astype(np.float32), rng.uniform(0, 1, (2, 4)).astype(np.float32)
    moved = head_poses(list(clip(2).values()))
    texture = np.full((8, 8, 3), 90, np.uint8)
    files = write_obj_sequence(tmp_path / "objs", tiny, identity, expression, texture, moved)
    assert [f.name for f in files] == ["frame_000000.obj", "frame_000001.obj"]
    assert {f.name for f in (tmp_path / "objs").iterdir()} == {*(f.name for f in files), "head.mtl", "texture.png"}
    lines = [f.read_text().splitlines() for f in files]
    faces = [[line for line in text if line[:2] in ("f ", "vt", "g ")] for text in lines]
    assert faces[0] == faces[1] and all("mtllib head.mtl" in text for text in lines)
    for k, text in enumerate(lines):
        got = np.array([line.split()[1:] for line in text if line.startswith("v ")], float)
        expected = np.asarray(tiny.vertices(jnp.asarray(identity), jnp.asarray(expression[k])))
        assert np.allclose(got, expected @ moved[k, :3, :3].T + moved[k, :3, 3], atol=1e-4)
    assert "map_Kd texture.png" in (tmp_path / "objs" / "head.mtl").read_text()
