"""What a clip or a photo set leaves on disk beside head.glb: parameters of each frame, meshes, cameras."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.spatial.transform import Rotation

from fitting.animation import effective_weights, gaze_rotations
from fitting.export import part_triangles, write_obj
from morphable.model import MorphableModel
from renderer.camera import Pinhole
from renderer.camera_formats import (
    to_blender,
    to_colmap_text,
    to_nerf,
    to_opengl,
    to_pytorch3d,
)

PARAMETERS_FORMAT, PARAMETERS_VERSION = "facefit-parameters", 1


def parameters(
    model: MorphableModel,
    times: Float[np.ndarray, " frame"],
    identity: Float[np.ndarray, " rank"],
    expression: Float[np.ndarray, "frame unit"],
    cameras: Sequence[Any],
    albedo: Float[np.ndarray, " arank"] | None = None,
    light: Float[np.ndarray, "frame 9 3"] | None = None,
    joint_rotations: Float[np.ndarray, "frame joint 3"] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of parameters.npz: each frame's coefficients under the names that FLAME trackers use, and under ours.

    `shape`, `expr`, `rotation`, `translation`, `neck_pose`, `jaw_pose`, `eyes_pose` are those of VHAP's
    flame_param.npz, but hold our model's coefficients in our units (mm, rad, standard deviations, weights), not those
    of FLAME's bases.
    docs/export.md has the table. Raises ValueError where the frames do not agree in number.
    """
    frames = len(times)
    expression = np.asarray(expression, np.float64)
    if len(cameras) != frames or len(expression) != frames:
        raise ValueError(
            f"parameters: {frames} times, {len(expression)} expressions, {len(cameras)} cameras; expected one of each "
            "for every frame."
        )
    opencv = [tuple(np.asarray(a, np.float64) for a in camera.to_opencv()) for camera in cameras]
    K, R, t = (np.stack([values[k] for values in opencv]) for k in range(3))
    names = () if model.rig is None else model.rig.names
    turns = gaze_rotations(model, effective_weights(model, expression))
    if joint_rotations is not None:
        turns = turns + np.asarray(joint_rotations, np.float64)
    joint = lambda name: turns[:, names.index(name)] if name in names else np.zeros((frames, 3))  # noqa: E731
    arrays = {
        "shape": np.asarray(identity, np.float64),
        "expr": expression,
        "rotation": Rotation.from_matrix(R).as_rotvec(),
        "translation": t,
        "neck_pose": joint("neck"),
        "jaw_pose": joint("jaw"),
        "eyes_pose": np.concatenate([joint("eye_left"), joint("eye_right")], axis=1),
        "identity": np.asarray(identity, np.float64),
        "expression": expression,
        "joint_rotations": turns,
        "K": K,
        "R": R,
        "t": t,
    }
    if albedo is not None:
        arrays["albedo"] = np.asarray(albedo, np.float64)
    if light is not None:
        arrays["light"] = np.asarray(light, np.float64)
    record = {
        "format": PARAMETERS_FORMAT,
        "version": PARAMETERS_VERSION,
        "model": {"name": model.provenance.name, "sha256": model.provenance.sha256},
        "licence": model.provenance.licence,
        "licence_class": model.provenance.licence_class,
        "units": {"length": "mm", "angle": "rad", "time": "s"},
    }
    return {
        **{name: values.astype(np.float32) for name, values in arrays.items()},
        "timestamps": np.asarray(times, np.float64),
        "image_size": np.asarray([[camera.height, camera.width] for camera in cameras], np.int32),
        "expression_names": np.asarray(model.expression_names),
        "joint_names": np.asarray(names, dtype="U32"),
        "manifest": np.asarray(json.dumps(record)),
    }


def write_obj_sequence(
    folder: str | Path,
    model: MorphableModel,
    identity: Float[np.ndarray, " rank"],
    expression: Float[np.ndarray, "frame unit"],
    texture: UInt8[np.ndarray, "height width 3"] | None = None,
    T_world_head: Float[np.ndarray, "frame 4 4"] | None = None,
    digits: int = 6,
) -> list[Path]:
    """Write frame_000000.obj, frame_000001.obj, ... into a folder, with one texture.png and head.mtl for all.

    All have the same vertices in the same order, so programs read them as one moving mesh. In head space (mm), or moved
    by `T_world_head` (`fitting.animation.head_poses`). Returns the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if texture is not None:
        Image.fromarray(texture).save(folder / "texture.png")
    triangles, uv, groups = np.asarray(model.triangles), np.asarray(model.uv), part_triangles(model)
    source = model.provenance
    note = f"head model {source.name}, licence {source.licence} ({source.licence_class})"
    files = []
    for k, weights in enumerate(np.asarray(expression)):
        vertices = np.asarray(model.vertices(jnp.asarray(identity), jnp.asarray(weights)), np.float64)
        if T_world_head is not None:
            vertices = vertices @ T_world_head[k, :3, :3].T + T_world_head[k, :3, 3]
        path = folder / f"frame_{k:0{digits}d}.obj"
        name = None if texture is None else "texture.png"
        write_obj(path, vertices, triangles, uv, name, groups, note, material="head.mtl")
        files.append(path)
    return files


def write_cameras(folder: str | Path, cameras: Mapping[str, Pinhole], unit_mm: float = 1000.0) -> list[Path]:
    """Write the cameras of photos or frames (by file name) in every convention that `renderer.camera_formats` knows.

    opencv.json, transforms.json (NeRF), colmap/ (cameras.txt, images.txt, points3D.txt), opengl.json, pytorch3d.json
    and blender.json. The world is head space: in mm, except in transforms.json and blender.json, whose unit is
    `unit_mm` millimetres. A format that cannot hold a camera (COLMAP: names with spaces; OpenGL, PyTorch3D, Blender:
    lens distortion) is left out, and `left_out.json` says why. Returns the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files, left_out = [], {}

    def write(name: str, make: Any) -> None:
        try:
            contents = make()
        except ValueError as error:
            left_out[name] = str(error)
            return
        for path, text in contents.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            files.append(target)

    def colmap() -> dict[str, str]:
        text = to_colmap_text(cameras)
        points = "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n"
        return {"colmap/cameras.txt": text.cameras, "colmap/images.txt": text.images, "colmap/points3D.txt": points}

    def each(name: str, about: dict[str, Any], convert: Any) -> dict[str, str]:
        frames = {key: _plain(convert(camera)) for key, camera in cameras.items()}
        return {name: _json({**about, "cameras": frames})}

    write("opencv.json", lambda: each("opencv.json", {"unit": "mm", "camera": "x_camera = R x_head + t"}, _opencv))
    write("transforms.json", lambda: {"transforms.json": _json(to_nerf(cameras, unit_mm=unit_mm))})
    write("colmap", colmap)
    about = {"unit": "mm", "clip": "projection @ view @ (x, y, z, 1), rows as on paper"}
    write("opengl.json", lambda: each("opengl.json", about, _opengl))
    about_pytorch3d = {"unit": "mm", "use": "PerspectiveCameras(**{name: torch.tensor(value)})"}
    write("pytorch3d.json", lambda: each("pytorch3d.json", about_pytorch3d, lambda c: to_pytorch3d(c)._asdict()))
    about_blender = {"unit_mm": unit_mm, "world": "head space as Blender's glTF importer turns it: z up"}
    convert = lambda camera: to_blender(camera, unit_mm=unit_mm)._asdict()  # noqa: E731
    write("blender.json", lambda: each("blender.json", about_blender, convert))
    if left_out:
        (folder / "left_out.json").write_text(_json(left_out), encoding="utf-8")
        files.append(folder / "left_out.json")
    return files


def read_opencv_cameras(path: str | Path) -> dict[str, Pinhole]:
    """The cameras of an opencv.json by file name."""
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["cameras"]
        return {
            name: Pinhole.from_opencv(
                np.asarray(c["K"], np.float64),
                np.asarray(c["R"], np.float64),
                np.asarray(c["t"], np.float64),
                int(c["height"]),
                int(c["width"]),
                distortion=c.get("distortion", (0.0,) * 5),
            )
            for name, c in entries.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a list of OpenCV cameras ({type(error).__name__}: {error}); expected "
            '{"cameras": {name: {"K", "R", "t", "height", "width"}}}. `write_cameras` writes one.'
        ) from error


def _opencv(camera: Pinhole) -> dict[str, Any]:
    K, R, t = camera.to_opencv()
    return {
        "K": K,
        "R": R,
        "t": t,
        "height": camera.height,
        "width": camera.width,
        "distortion": camera.opencv_distortion,
    }


def _opengl(camera: Pinhole) -> dict[str, Any]:
    distance = float(np.asarray(camera.to_opencv()[2])[2])
    near = max(distance - 500.0, 1.0)  # mm: a head is half as big
    return to_opengl(camera, near=near, far=near + 1000.0)._asdict()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(v).tolist() if hasattr(v, "shape") else v for name, v in values.items()}


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
