"""Our cameras in the conventions of other tools, and back: OpenGL, PyTorch3D, Blender, COLMAP, NeRF's transforms.json.

The world of the other tool is our head space (mm; x to the subject's left, y up, z out of the face) unless a function
says otherwise. What a format cannot hold (a skew in Blender, lens distortion in OpenGL) raises ValueError and is never
dropped. Results are NumPy float64, computed in float64 from the camera's own numbers; cameras come back in JAX's
default precision. OpenCV's convention is ours: `Pinhole.to_opencv`, `Pinhole.from_opencv`.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import ArrayLike, Float

from renderer.camera import AbstractCamera, Pinhole, WeakPerspective

_TO_OPENGL = np.diag([1.0, -1.0, -1.0])  # camera axes: x right, y up, z backwards; its own inverse
_TO_PYTORCH3D = np.diag([-1.0, -1.0, 1.0])  # x left, y up, z forwards; its own inverse
_TO_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # what Blender's importers do to y-up files


class OpenGLCamera(NamedTuple):
    """clip = projection @ view @ (x, y, z, 1), written as on paper: OpenGL itself stores columns (pass `.T`)."""

    view: Float[np.ndarray, "4 4"]  # to camera axes x right, y up, z backwards, in mm
    projection: Float[np.ndarray, "4 4"]


class PyTorch3DCamera(NamedTuple):
    """The keyword arguments of pytorch3d's PerspectiveCameras or OrthographicCameras, for a batch of one.

    x_camera = x R + T with row vectors, x left, y up, z forwards.
    """

    R: Float[np.ndarray, "1 3 3"]
    T: Float[np.ndarray, "1 3"]  # mm
    focal_length: Float[np.ndarray, "1 2"]
    principal_point: Float[np.ndarray, "1 2"]
    in_ndc: bool
    image_size: Float[np.ndarray, "1 2"]  # height, width
    K: Float[np.ndarray, "1 4 4"] | None  # overrides focal_length and principal_point; for cameras with skew


class BlenderCamera(NamedTuple):
    """Attributes of a Blender camera object, of its `data` and of `scene.render`, under Blender's names."""

    matrix_world: Float[np.ndarray, "4 4"]  # camera to world, camera axes x right, y up, z backwards
    type: str  # data: PERSP or ORTHO
    lens: float  # data: mm; of no effect if ORTHO
    ortho_scale: float  # data: world units; of no effect if PERSP
    sensor_fit: str  # data: AUTO, HORIZONTAL or VERTICAL
    sensor_width: float  # data: mm
    sensor_height: float  # data: mm; of no effect unless VERTICAL
    shift_x: float  # data
    shift_y: float  # data
    resolution_x: int  # render, at 100 %
    resolution_y: int  # render
    pixel_aspect_x: float  # render
    pixel_aspect_y: float  # render


class ColmapCamera(NamedTuple):
    """A line of COLMAP's cameras.txt with a pose of images.txt, world to camera."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]  # in the order of the model
    qvec: tuple[float, float, float, float]  # w, x, y, z
    tvec: tuple[float, float, float]


class ColmapText(NamedTuple):
    """What belongs into cameras.txt and images.txt."""

    cameras: str
    images: str


_COLMAP_PARAMS = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
}


def to_opengl(camera: AbstractCamera, near: float, far: float) -> OpenGLCamera:
    """View and projection matrix whose viewport of the camera's size shows the camera's picture.

    `near` and `far` in mm. Normalised device coordinates run from -1 to 1 on all axes, y up and z to the back, so
    u = (x_ndc + 1) / 2 width and v = (1 - y_ndc) / 2 height; fragments have their centres at + 0.5, as our pixels do.
    A weak-perspective camera becomes an orthographic projection. (OpenGL 4.6 specification, sections 13.6 and 13.8;
    Vulkan and Direct3D differ in y or z.) Raises ValueError if the camera has distortion.
    """
    _refuse(camera, "OpenGL", distortion=True)
    height, width = camera.height, camera.width
    perspective, (fx, fy), (cx, cy), skew, _ = _intrinsics(camera)
    if near >= far or (perspective and near <= 0):
        raise ValueError(f"to_opengl: got near {near}, far {far} mm, expected near < far, and 0 < near in perspective")
    projection = np.zeros((4, 4))
    projection[0, :2] = 2 * fx / width, -2 * skew / width
    projection[1, 1] = 2 * fy / height
    offset = 2 * cx / width - 1, 1 - 2 * cy / height
    if perspective:
        projection[:2, 2] = -offset[0], -offset[1]
        projection[2, 2:] = -(far + near) / (far - near), -2 * far * near / (far - near)
        projection[3, 2] = -1
    else:
        projection[:2, 3] = offset
        projection[2, 2:] = -2 / (far - near), -(far + near) / (far - near)
        projection[3, 3] = 1
    R, t = _pose(camera)
    return OpenGLCamera(_rigid(_TO_OPENGL @ R, _TO_OPENGL @ t), projection)


def from_opengl(
    view: Float[ArrayLike, "4 4"], projection: Float[ArrayLike, "4 4"], height: int, width: int
) -> Pinhole | WeakPerspective:
    """The camera of a viewport, from the matrices of `to_opengl`; orthographic projections become weak perspective."""
    P = np.asarray(projection, np.float64)
    R, t = _parts(view, "from_opengl: view")
    R, t = _TO_OPENGL @ R, _TO_OPENGL @ t
    perspective = np.allclose(P[3], [0, 0, -1, 0], atol=1e-9)
    if not perspective and not np.allclose(P[3], [0, 0, 0, 1], atol=1e-9):
        raise ValueError(
            f"from_opengl: the last row of projection is {P[3].tolist()}, expected (0, 0, -1, 0) or (0, 0, 0, 1). "
            "Column-major arrays need a transpose"
        )
    unused = [P[1, 0], P[0, 3], P[1, 3]] if perspective else [P[1, 0], P[0, 1], P[0, 2], P[1, 2]]
    if not np.allclose(unused, 0, atol=1e-9) or P[0, 0] <= 0 or P[1, 1] <= 0:
        raise ValueError(
            f"from_opengl: projection has the rows {P[:2].tolist()}, expected positive factors of x and y, y's row "
            "without x, and no shear if orthographic. A negative factor of y is Vulkan's: negate the second row"
        )
    focal = np.array([P[0, 0] * width, P[1, 1] * height]) / 2
    offset = (-P[0, 2], -P[1, 2]) if perspective else (P[0, 3], P[1, 3])
    centre = np.array([(offset[0] + 1) * width, (1 - offset[1]) * height]) / 2
    if perspective:
        return _pinhole(R, t, focal, centre, height, width, skew=-P[0, 1] * width / 2)
    return _weak_perspective(R, t, focal, centre, height, width)


def to_pytorch3d(camera: AbstractCamera, in_ndc: bool = False) -> PyTorch3DCamera:
    """Arguments for pytorch3d: `PerspectiveCameras(**to_pytorch3d(camera)._asdict())`.

    OrthographicCameras takes those of a weak-perspective camera. Screen space (`in_ndc=False`) has its origin at the
    top left corner of the first pixel, whose centre is at + 0.5, as ours; its focal lengths and principal point are
    ours. NDC runs from -1 to 1 along the shorter side of the picture, x left and y up (pytorch3d docs/notes/cameras.md
    and renderer/cameras.py, release 0.6.1 and later; earlier ones put screen points half a pixel off). A skew takes
    the 4x4 `K`. Raises ValueError if the camera has distortion.
    """
    _refuse(camera, "PyTorch3D", distortion=True)
    perspective, focal, centre, skew, _ = _intrinsics(camera)
    if in_ndc:
        shorter = min(camera.height, camera.width) / 2
        focal, skew = focal / shorter, skew / shorter
        centre = (np.array([camera.width, camera.height]) / 2 - centre) / shorter
    K = None
    if skew != 0:
        K = np.zeros((1, 4, 4))
        K[0, 0, :3], K[0, 1, 1:3], K[0, 2, 3], K[0, 3, 2] = (focal[0], skew, centre[0]), (focal[1], centre[1]), 1, 1
    R, t = _pose(camera)
    return PyTorch3DCamera(
        R=(_TO_PYTORCH3D @ R).T[None],
        T=(_TO_PYTORCH3D @ t)[None],
        focal_length=focal[None],
        principal_point=centre[None],
        in_ndc=in_ndc,
        image_size=np.array([[camera.height, camera.width]], np.float64),
        K=K,
    )


def from_pytorch3d(
    R: Float[ArrayLike, "1 3 3"],
    T: Float[ArrayLike, "1 3"],
    focal_length: Float[ArrayLike, "1 2"],
    principal_point: Float[ArrayLike, "1 2"],
    in_ndc: bool,
    image_size: Float[ArrayLike, "1 2"],
    K: Float[ArrayLike, "1 4 4"] | None = None,
    orthographic: bool = False,
) -> Pinhole | WeakPerspective:
    """The camera of pytorch3d's PerspectiveCameras, or with `orthographic` OrthographicCameras; see `to_pytorch3d`."""
    height, width = (int(side) for side in np.asarray(image_size).reshape(2))
    rotation = _TO_PYTORCH3D @ _rotation(np.asarray(R, np.float64).reshape(3, 3).T, "from_pytorch3d: R")
    t = _TO_PYTORCH3D @ np.asarray(T, np.float64).reshape(3)
    focal, skew = np.asarray(focal_length, np.float64).reshape(2), 0.0
    centre = np.asarray(principal_point, np.float64).reshape(2)
    if K is not None:
        full = np.asarray(K, np.float64).reshape(4, 4)
        focal, skew = np.array([full[0, 0], full[1, 1]]), full[0, 1]
        centre = full[:2, 3] if orthographic else full[:2, 2]
    if orthographic and skew != 0:
        raise ValueError(f"from_pytorch3d: K shears by {skew}, which a weak-perspective camera cannot")
    if in_ndc:
        shorter = min(height, width) / 2
        focal, skew = focal * shorter, skew * shorter
        centre = np.array([width, height]) / 2 - centre * shorter
    if orthographic:
        return _weak_perspective(rotation, t, focal, centre, height, width)
    return _pinhole(rotation, t, focal, centre, height, width, skew=skew)


def to_blender(
    camera: AbstractCamera,
    *,
    unit_mm: float = 1000.0,
    z_up: bool = True,
    sensor_fit: str = "AUTO",
    sensor_width: float = 36.0,
    sensor_height: float = 24.0,
) -> BlenderCamera:
    """Settings of a Blender camera that renders the camera's picture.

    `unit_mm` is the length of one Blender unit (1000: metres). With `z_up` the world is head space as Blender's glTF
    and OBJ importers turn it: x to the subject's left, y into the face, z up; without, head space itself. The sensor's
    size is a free choice that `lens` follows: `sensor_width`, or `sensor_height` if `sensor_fit` is VERTICAL, in mm.
    Blender's picture starts at the corner of the first pixel, so its centre is at + 0.5, as ours. Shifts are in units
    of the fitted side and positive to the right and up (BKE_camera_params_compute_viewplane in Blender's
    source/blender/blenkernel/intern/camera). A weak-perspective camera becomes ORTHO, and must stand before the head
    (a translation with positive z), for Blender draws nothing behind it. Raises ValueError for skew or distortion.
    """
    _refuse(camera, "Blender", skew=True, distortion=True)
    perspective, (fx, fy), (cx, cy), _, _ = _intrinsics(camera)
    aspect_x, aspect_y = max(1.0, fy / fx), max(1.0, fx / fy)
    fitted, sensor = _blender_fit(
        camera.width, camera.height, aspect_x, aspect_y, sensor_fit, sensor_width, sensor_height
    )
    R, t = _pose(camera)
    world = _TO_Z_UP if z_up else np.eye(3)
    return BlenderCamera(
        matrix_world=_rigid(world @ R.T @ _TO_OPENGL, world @ (-R.T @ t) / unit_mm),
        type="PERSP" if perspective else "ORTHO",
        lens=float(fx * sensor / fitted) if perspective else 50.0,
        ortho_scale=6.0 if perspective else float(fitted / (fx * unit_mm)),
        sensor_fit=sensor_fit,
        sensor_width=sensor_width,
        sensor_height=sensor_height,
        shift_x=float((camera.width / 2 - cx) / fitted),
        shift_y=float((cy - camera.height / 2) * (aspect_y / aspect_x) / fitted),
        resolution_x=camera.width,
        resolution_y=camera.height,
        pixel_aspect_x=float(aspect_x),
        pixel_aspect_y=float(aspect_y),
    )


def from_blender(camera: BlenderCamera, *, unit_mm: float = 1000.0, z_up: bool = True) -> Pinhole | WeakPerspective:
    """The camera of Blender's settings; units and axes as for `to_blender`."""
    if camera.type not in ("PERSP", "ORTHO"):
        raise ValueError(f"from_blender: got a camera of type {camera.type!r}, expected PERSP or ORTHO")
    aspect = camera.pixel_aspect_y / camera.pixel_aspect_x
    fitted, sensor = _blender_fit(
        camera.resolution_x,
        camera.resolution_y,
        camera.pixel_aspect_x,
        camera.pixel_aspect_y,
        camera.sensor_fit,
        camera.sensor_width,
        camera.sensor_height,
    )
    R, position = _parts(camera.matrix_world, "from_blender: matrix_world")
    world = _TO_Z_UP if z_up else np.eye(3)
    R = (world.T @ R @ _TO_OPENGL).T
    t = -R @ (world.T @ position) * unit_mm
    width, height = camera.resolution_x, camera.resolution_y
    fx = fitted * camera.lens / sensor if camera.type == "PERSP" else fitted / (camera.ortho_scale * unit_mm)
    focal = np.array([fx, fx / aspect])
    centre = np.array([width / 2 - camera.shift_x * fitted, height / 2 + camera.shift_y * fitted / aspect])
    make = _pinhole if camera.type == "PERSP" else _weak_perspective
    return make(R, t, focal, centre, height, width)


def to_colmap(camera: AbstractCamera, model: str | None = None) -> ColmapCamera:
    """A COLMAP camera and its pose; without a model PINHOLE, or OPENCV or FULL_OPENCV as the distortion needs.

    COLMAP's axes are OpenCV's and its first pixel's centre is at + 0.5, as ours (colmap.github.io/format.html and
    src/colmap/sensor/models.h). Lengths stay mm. Raises ValueError for skew, for what the model cannot hold, and for
    weak perspective.
    """
    lens = _lens(camera, "COLMAP")
    if model is None:
        model = "FULL_OPENCV" if lens["k3"] else "OPENCV" if lens["k1"] or lens["k2"] else "PINHOLE"
    names = _colmap_params(model)
    if "f" in names and lens["fx"] != lens["fy"]:
        raise ValueError(
            f"to_colmap: {model} has one focal length, the camera {lens['fx']} and {lens['fy']}; use PINHOLE or OPENCV"
        )
    lost = {k: lens[k] for k in ("k1", "k2", "k3") if lens[k] and k not in names}
    if lost:
        raise ValueError(f"to_colmap: {model} has no place for the lens's {lost}; use FULL_OPENCV")
    values = lens | {"f": lens["fx"]}
    w, x, y, z = _quaternion(camera).tolist()
    tx, ty, tz = _pose(camera)[1].tolist()
    return ColmapCamera(
        model=model,
        width=camera.width,
        height=camera.height,
        params=tuple(values.get(name, 0.0) for name in names),
        qvec=(w, x, y, z),
        tvec=(tx, ty, tz),
    )


def from_colmap(camera: ColmapCamera) -> Pinhole:
    """The pinhole camera of a COLMAP camera and pose, with COLMAP's world as head space and its unit as mm."""
    names = _colmap_params(camera.model)
    if len(names) != len(camera.params):
        raise ValueError(f"from_colmap: {camera.model} has the parameters {names}, got {len(camera.params)} numbers")
    values = dict(zip(names, camera.params, strict=True))
    if "f" in values:
        values["fx"] = values["fy"] = values["f"]
    unsupported = {k: values[k] for k in ("p1", "p2", "k4", "k5", "k6") if values.get(k, 0.0)}
    if unsupported:
        raise ValueError(f"from_colmap: the lens has {unsupported}, only k1, k2, k3 are known; undistort the images")
    w, x, y, z = np.asarray(camera.qvec, np.float64) / np.linalg.norm(camera.qvec)
    R = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return _pinhole(
        R,
        np.asarray(camera.tvec, np.float64),
        np.array([values["fx"], values["fy"]]),
        np.array([values["cx"], values["cy"]]),
        camera.height,
        camera.width,
        distortion=[values.get(k, 0.0) for k in ("k1", "k2", "k3")],
    )


def to_colmap_text(cameras: Mapping[str, AbstractCamera], model: str | None = None) -> ColmapText:
    """cameras.txt and images.txt of photos by file name; COLMAP wants an empty points3D.txt beside them.

    Ids count from 1, one camera per photo; images have no points. Raises ValueError for names with spaces, which COLMAP
    cuts off there.
    """
    spaced = [name for name in cameras if len(name.split()) != 1]
    if spaced:
        raise ValueError(f"to_colmap_text: COLMAP cannot read names with spaces, got {spaced}; rename the photos")
    intrinsics = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    images = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[] as (X, Y, POINT3D_ID)"]
    for i, (name, camera) in enumerate(cameras.items(), start=1):
        c = to_colmap(camera, model)
        intrinsics.append(" ".join(map(str, (i, c.model, c.width, c.height, *c.params))))
        images += [" ".join(map(str, (i, *c.qvec, *c.tvec, i, name))), ""]
    return ColmapText("\n".join(intrinsics) + "\n", "\n".join(images) + "\n")


def from_colmap_text(cameras: str, images: str) -> dict[str, Pinhole]:
    """The cameras of photos by file name, from the text of cameras.txt and images.txt."""
    intrinsics = {}
    for line in cameras.splitlines():
        if line.strip() and not line.startswith("#"):
            camera_id, model, width, height, *params = line.split()
            intrinsics[camera_id] = (model, int(width), int(height), tuple(map(float, params)))
    result = {}
    lines = iter(images.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        _, *pose, camera_id, name = line.split(maxsplit=9)
        if camera_id not in intrinsics:
            raise ValueError(f"images.txt: {name} has camera {camera_id}, but cameras.txt only {sorted(intrinsics)}")
        model, width, height, params = intrinsics[camera_id]
        qw, qx, qy, qz, tx, ty, tz = map(float, pose)
        result[name] = from_colmap(ColmapCamera(model, width, height, params, (qw, qx, qy, qz), (tx, ty, tz)))
        next(lines, None)  # the image's points, an empty line if it has none
    return result


def to_nerf(cameras: Mapping[str, AbstractCamera], *, unit_mm: float = 1.0) -> dict[str, Any]:
    """The contents of transforms.json for photos by file path, ready for json.dump.

    Poses are camera to world with camera axes x right, y up, z backwards; the world is head space in units of
    `unit_mm` mm (instant-ngp likes a head of about 0.3 units: 1000). Both nerfstudio (docs.nerf.studio, Data
    conventions; Cameras.get_image_coords) and instant-ngp (src/nerf_loader.cu) put the first pixel's centre at + 0.5
    for cx, cy, as we do. Intrinsics that all photos share stand at the top, others at each frame. instant-ngp does not
    know k3. Raises ValueError for skew and for weak perspective.
    """
    intrinsics, frames = [], []
    for path, camera in cameras.items():
        lens = _lens(camera, "transforms.json")
        distortion = {k: lens[k] for k in ("k1", "k2", "k3")}
        entry = {
            "camera_model": "OPENCV" if any(distortion.values()) else "PINHOLE",
            "fl_x": lens["fx"],
            "fl_y": lens["fy"],
            "cx": lens["cx"],
            "cy": lens["cy"],
            "w": camera.width,
            "h": camera.height,
            "camera_angle_x": 2 * math.atan(camera.width / (2 * lens["fx"])),
            "camera_angle_y": 2 * math.atan(camera.height / (2 * lens["fy"])),
        }
        if any(distortion.values()):
            entry |= distortion | {"p1": 0.0, "p2": 0.0}
        intrinsics.append(entry)
        R, t = _pose(camera)
        matrix = _rigid(R.T @ _TO_OPENGL, -R.T @ t / unit_mm)
        frames.append({"file_path": path, "transform_matrix": matrix.tolist()})
    if all(entry == intrinsics[0] for entry in intrinsics):
        return {**(intrinsics[0] if intrinsics else {}), "frames": frames}
    return {"frames": [frame | entry for frame, entry in zip(frames, intrinsics, strict=True)]}


def from_nerf(transforms: Mapping[str, Any], *, unit_mm: float = 1.0) -> dict[str, Pinhole]:
    """The cameras of photos by file path, from the contents of transforms.json; see `to_nerf`.

    The file's world becomes head space. Without fl_x the focal length follows from camera_angle_x, without cx, cy the
    principal point is the picture's middle; w and h must be there, or be added from the photos.
    """
    result = {}
    for frame in transforms["frames"]:
        values, path = {**transforms, **frame}, frame["file_path"]
        if "w" not in values or "h" not in values:
            raise ValueError(f"from_nerf: {path} has no 'w' and 'h'; add the photo's size to the top of the file")
        width, height = int(values["w"]), int(values["h"])
        fisheye = "FISHEYE" in values.get("camera_model", "") or values.get("is_fisheye", False)
        unsupported = {k: values[k] for k in ("p1", "p2", "k4") if values.get(k, 0.0)}
        if fisheye or unsupported or values.get("camera_model") == "EQUIRECTANGULAR":
            raise ValueError(
                f"from_nerf: {path} has a {values.get('camera_model', 'camera')} with {unsupported}; only perspective "
                "cameras with k1, k2, k3 are known. Undistort the images"
            )
        fx, fy = values.get("fl_x"), values.get("fl_y")
        if fx is None and "camera_angle_x" in values:
            fx = width / (2 * math.tan(values["camera_angle_x"] / 2))
        if fy is None and "camera_angle_y" in values:
            fy = height / (2 * math.tan(values["camera_angle_y"] / 2))
        if fx is None and fy is None:
            raise ValueError(f"from_nerf: {path} has neither 'fl_x' nor 'camera_angle_x' (nor those of y)")
        fx, fy = (fy if fx is None else fx), (fx if fy is None else fy)
        R, position = _parts(frame["transform_matrix"], f"from_nerf: transform_matrix of {path}")
        R = (R @ _TO_OPENGL).T
        result[path] = _pinhole(
            R,
            -R @ position * unit_mm,
            np.array([fx, fy], np.float64),
            np.array([values.get("cx", width / 2), values.get("cy", height / 2)], np.float64),
            height,
            width,
            distortion=[values.get(k, 0.0) for k in ("k1", "k2", "k3")],
        )
    return result


def _intrinsics(camera):
    """Whether perspective, focal length or scale, centre, skew and distortion, in float64."""
    centre = np.asarray(camera.centre, np.float64)
    if isinstance(camera, WeakPerspective):
        return False, np.asarray(camera.scale, np.float64), centre, 0.0, np.zeros(3)
    distortion = np.zeros(3) if camera.distortion is None else np.asarray(camera.distortion, np.float64)
    return True, np.asarray(camera.focal, np.float64), centre, float(camera.skew), distortion


def _refuse(camera, tool, skew=False, distortion=False):
    """Raise for what the tool's cameras do not have."""
    _, _, _, has_skew, has_distortion = _intrinsics(camera)
    if distortion and has_distortion.any():
        raise ValueError(
            f"{tool} has no lens distortion, the camera has {has_distortion.tolist()}. Undistort the photo "
            "(cv2.undistort with camera.to_opencv(0.0)[0] and camera.opencv_distortion) and use a camera without it"
        )
    if skew and has_skew != 0:
        raise ValueError(
            f"{tool} has no skew, the camera has {has_skew} px. Resample the photo to a camera with skew 0 "
            "(cv2.warpPerspective with K_new K^-1)"
        )


def _lens(camera, tool):
    """Focal length, principal point and distortion by COLMAP's names."""
    if not isinstance(camera, Pinhole):
        raise ValueError(f"{tool} has no weak-perspective camera; use camera.to_pinhole(depth)")
    _refuse(camera, tool, skew=True)
    _, focal, centre, _, distortion = _intrinsics(camera)
    numbers = np.concatenate([focal, centre, distortion]).tolist()
    return dict(zip(("fx", "fy", "cx", "cy", "k1", "k2", "k3"), numbers, strict=True))


def _quaternion(camera):
    wxyz = np.asarray(camera.pose.rotation().wxyz, np.float64)
    return wxyz / np.linalg.norm(wxyz)


def _pose(camera):
    """R, t of x_camera = R x_head + t, OpenCV axes, in float64."""
    w, *v = _quaternion(camera)
    x, y, z = v
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    R = np.eye(3) + 2 * w * cross + 2 * cross @ cross  # Rodrigues' formula in terms of the quaternion
    return R, np.asarray(camera.pose.translation(), np.float64)


def _rigid(R, t):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = R, t
    return matrix


def _parts(matrix, what):
    """Rotation and translation of a 4x4 matrix, or of its first three rows."""
    matrix = np.asarray(matrix, np.float64)
    if not np.array_equal(matrix[3:], np.eye(4)[3 : len(matrix)]):
        raise ValueError(f"{what}: the last row is {matrix[3:].tolist()}, expected 0, 0, 0, 1. Is it transposed?")
    return _rotation(matrix[:3, :3], what), matrix[:3, 3]


def _rotation(R, what):
    if not np.allclose(R @ R.T, np.eye(3), atol=1e-4) or np.linalg.det(R) < 0:
        raise ValueError(f"{what} has {R.tolist()}, expected a rotation. Take out scale and reflections first")
    return R


def _pinhole(R, t, focal, centre, height, width, skew=0.0, distortion=(0.0, 0.0, 0.0)):
    K = np.array([[focal[0], skew, centre[0]], [0.0, focal[1], centre[1]], [0.0, 0.0, 1.0]])
    k1, k2, k3 = distortion
    return Pinhole.from_opencv(K, R, t, height, width, distortion=(k1, k2, 0.0, 0.0, k3))


def _weak_perspective(R, t, scale, centre, height, width):
    R, t, scale, centre = (jnp.asarray(v, dtype=jnp.result_type(float)) for v in (R, t, scale, centre))
    pose = jaxlie.SE3.from_rotation_and_translation(jaxlie.SO3.from_matrix(R), t)
    return WeakPerspective(scale=scale, centre=centre, pose=pose, height=height, width=width)


def _blender_fit(width, height, aspect_x, aspect_y, sensor_fit, sensor_width, sensor_height):
    """How many pixels wide the side is that the sensor's size refers to, and that size."""
    if sensor_fit not in ("AUTO", "HORIZONTAL", "VERTICAL"):
        raise ValueError(f"sensor_fit: got {sensor_fit!r}, expected AUTO, HORIZONTAL or VERTICAL")
    wide = sensor_fit == "HORIZONTAL" or (sensor_fit == "AUTO" and aspect_x * width >= aspect_y * height)
    # AUTO takes sensor_width even for pictures that are higher than wide.
    sensor = sensor_height if sensor_fit == "VERTICAL" else sensor_width
    return (width if wide else height * aspect_y / aspect_x), sensor


def _colmap_params(model):
    if model not in _COLMAP_PARAMS:
        raise ValueError(f"COLMAP's camera model {model} is not supported, expected one of {sorted(_COLMAP_PARAMS)}")
    return _COLMAP_PARAMS[model]
