"""Cameras that somebody else has calibrated: read them, find each photo's, and find the head among them.

A file of cameras (COLMAP's, nerfstudio's, our own) has a world of its own: some origin, some axes, some unit. Between
it and the head lies a similarity, which `start_world` estimates from the poses that the photos show by themselves and
`fitting.arrowhead` refines together with the person.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from fitting.arrowhead import World, WorldCamera
from fitting.sequence import read_opencv_cameras
from renderer.camera import Pinhole
from renderer.camera_formats import ColmapCamera, from_colmap, from_colmap_text, from_nerf

_LENS_PX = 0.5  # what a lens may bend straight lines by, at the photo's corner, and still count as straight
_SQUARE = 2e-3  # relative difference of the two focal lengths, and skew over focal length, that count as none
_BASELINE = 0.02  # of the distance to the head: cameras nearer together than this cannot tell the unit
_ASIDE_DEGREES = 25.0  # a photo whose head is turned this far from the others' has no say in the start
_DEPTH_OVER_ASIDE = 8.0  # how much less certain a photo's depth of the head is than its place across the picture


class CameraError(ValueError):
    """Cameras that cannot be used: what, got, expected, remedy."""


class Calibrated(NamedTuple):
    """What a joint fit needs of a known camera."""

    focal_px: float
    centre_px: Float[np.ndarray, "2"]  # the principal point
    camera: WorldCamera

    def about(self, origin: Float[np.ndarray, "3"]) -> WorldCamera:
        """The camera in a world whose origin is moved to a point of this one."""
        return WorldCamera(self.camera.rotation, self.camera.translation + self.camera.rotation @ origin)


# ------------------------------------------------------------------------------------------------------------ files


def read_cameras(path: str | Path) -> dict[str, Pinhole]:
    """Cameras by the photo names of a file or folder; their world counts in its own unit, whatever that is.

    Reads nerfstudio's and NeRF's transforms.json, our own opencv.json, a COLMAP model (cameras and images, .txt or
    .bin), and folders with one of these, such as `cameras/` that facefit writes. Raises CameraError.
    """
    path = Path(path)
    if not path.exists():
        raise CameraError(
            f"{path}: no such file or folder; expected transforms.json, opencv.json or a COLMAP folder with "
            "cameras.txt and images.txt. Check the path."
        )
    source = _found(path) if path.is_dir() else path
    try:
        if source.is_dir():
            cameras = _read_colmap(source)
        else:
            cameras = _read_json(source)
    except CameraError:
        raise
    except struct.error as error:
        raise CameraError(
            f"{source}: the file ends too early ({error}), expected a COLMAP model. Copy it anew."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CameraError(f"{source}: {type(error).__name__}: {error}") from error
    if not cameras:
        raise CameraError(f"{source}: got no cameras, expected one for each photo. Is the reconstruction empty?")
    return cameras


def _found(folder: Path) -> Path:
    """The file or COLMAP folder inside a folder."""
    for name in ("opencv.json", "transforms.json", "cameras/opencv.json"):
        if (folder / name).is_file():
            return folder / name
    for name in ("", "sparse/0", "sparse", "0", "colmap"):
        if any((folder / name / f"cameras.{kind}").is_file() for kind in ("txt", "bin")):
            return folder / name
    raise CameraError(
        f"{folder}: got a folder without cameras, expected transforms.json, opencv.json, or COLMAP's cameras.txt and "
        "images.txt (or .bin). Give the folder that has them."
    )


def _read_json(path: Path) -> dict[str, Pinhole]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CameraError(f"{path}: got {error}, expected JSON such as transforms.json. Export it again.") from error
    if isinstance(content, dict) and "frames" in content:
        return from_nerf(content)
    if isinstance(content, dict) and isinstance(content.get("cameras"), dict):
        return read_opencv_cameras(path)
    keys = sorted(content)[:8] if isinstance(content, dict) else type(content).__name__
    raise CameraError(
        f"{path}: got {keys}, expected 'frames' (transforms.json) or 'cameras' (opencv.json). Is this another file?"
    )


def _read_colmap(folder: Path) -> dict[str, Pinhole]:
    for name, needed in (("txt", "text"), ("bin", "binary")):
        files = [folder / f"{part}.{name}" for part in ("cameras", "images")]
        if not files[0].is_file():
            continue
        if not files[1].is_file():
            raise CameraError(f"{folder}: got {files[0].name} without {files[1].name}, expected both {needed} files.")
        if name == "txt":
            return from_colmap_text(*(f.read_text(encoding="utf-8") for f in files))
        return _colmap_binary(*(f.read_bytes() for f in files))
    raise CameraError(f"{folder}: got no cameras.txt, expected a COLMAP model. Give its folder, such as sparse/0.")


# COLMAP's src/colmap/sensor/models.h: the models that `from_colmap` knows by their number, with their parameters.
_COLMAP_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    6: ("FULL_OPENCV", 12),
}


def _colmap_binary(cameras: bytes, images: bytes) -> dict[str, Pinhole]:
    """cameras.bin and images.bin (colmap.github.io/format.html): little-endian, one record after the other."""
    (count,), at, lenses = struct.unpack_from("<Q", cameras), 8, {}
    for _ in range(count):
        number, kind, width, height = struct.unpack_from("<iiQQ", cameras, at)
        if kind not in _COLMAP_MODELS:
            raise CameraError(
                f"cameras.bin: camera {number} has model number {kind}, expected one of "
                f"{', '.join(name for name, _ in _COLMAP_MODELS.values())}. Undistort with `colmap image_undistorter`."
            )
        model, size = _COLMAP_MODELS[kind]
        lenses[number] = (model, width, height, struct.unpack_from(f"<{size}d", cameras, at + 24))
        at += 24 + 8 * size
    (count,), at, found = struct.unpack_from("<Q", images), 8, {}
    for _ in range(count):
        _, *pose, number = struct.unpack_from("<i7di", images, at)
        end = images.index(b"\0", at + 64)
        name = images[at + 64 : end].decode()
        (points,) = struct.unpack_from("<Q", images, end + 1)
        at = end + 9 + 24 * points
        qw, qx, qy, qz, tx, ty, tz = pose
        found[name] = from_colmap(ColmapCamera(*lenses[number], qvec=(qw, qx, qy, qz), tvec=(tx, ty, tz)))
    return found


# ------------------------------------------------------------------------------------------------- a photo's camera


def cameras_of(cameras: Mapping[str, Pinhole], photos: Sequence[str | Path]) -> list[Pinhole]:
    """Each photo's camera, by file name: with as many folders as tell photos apart, without ending where it is lacking.

    Raises CameraError that names the photos without a camera, or with several.
    """
    found, missing, several = [], [], []
    for photo in photos:
        parts = PurePosixPath(Path(photo).as_posix()).parts
        fits = {name: _alike(PurePosixPath(name.replace("\\", "/")).parts, parts) for name in cameras}
        best = max(fits.values(), default=0)
        chosen = [name for name, count in fits.items() if count == best]
        if best == 0:
            missing.append(str(photo))
        elif len(chosen) > 1:
            several.append(f"{photo} ({', '.join(chosen)})")
        else:
            found.append(cameras[chosen[0]])
    if missing:
        known = ", ".join(list(cameras)[:8]) + (", ..." if len(cameras) > 8 else "")
        raise CameraError(
            f"cameras: got none for {', '.join(missing)}; expected one for each of the {len(photos)} photos. The file "
            f"has {len(cameras)}: {known}. Photos are matched by file name; leave those without a camera out."
        )
    if several:
        raise CameraError(
            f"cameras: got several for {'; '.join(several)}; expected one for each photo. Give the photos with the "
            "folders that the file names."
        )
    return found


def _alike(name: tuple[str, ...], photo: tuple[str, ...]) -> int:
    """How many parts two paths have in common from their end; 0 where not even the file is the same."""
    if not name or not photo:
        return 0
    if name[-1] != photo[-1] and PurePosixPath(photo[-1]).stem != name[-1]:
        return 0
    count = 1
    for a, b in zip(reversed(name[:-1]), reversed(photo[:-1]), strict=False):
        if a != b:
            break
        count += 1
    return count


def calibrated(camera: Pinhole, name: str, height: int, width: int) -> Calibrated:
    """A photo's camera as the joint fit takes it. Raises CameraError for another size, and lenses it cannot have."""
    if (camera.height, camera.width) != (height, width):
        turned = (camera.width, camera.height) == (height, width)
        remedy = (
            "The photo is displayed turned by its EXIF orientation: calibrate the turned photos."
            if turned
            else "Give the photos that the cameras were made for."
        )
        raise CameraError(
            f"{name}: its camera is of a photo of {camera.width} x {camera.height} pixels, expected {width} x "
            f"{height}. {remedy}"
        )
    focal, centre = np.asarray(camera.focal, np.float64), np.asarray(camera.centre, np.float64)
    bent = _bent_px(camera)
    if bent > _LENS_PX:
        raise CameraError(
            f"{name}: its lens distorts by up to {bent:.1f} px, expected none (at most {_LENS_PX} px). Undistort the "
            "photos: `colmap image_undistorter`, or cv2.undistort, and use the cameras that belong to the result."
        )
    if abs(focal[0] / focal[1] - 1) > _SQUARE or abs(float(camera.skew)) > _SQUARE * focal[0]:
        raise CameraError(
            f"{name}: its pixels are not square (focal lengths {focal[0]:.1f} and {focal[1]:.1f} px, skew "
            f"{float(camera.skew):.1f} px), expected equal ones and no skew. Resample the photo to square pixels."
        )
    rotation = np.asarray(Rotation.from_quat(np.asarray(camera.pose.rotation().wxyz), scalar_first=True).as_matrix())
    place = np.asarray(camera.pose.translation(), np.float64)
    return Calibrated(float(np.sqrt(focal[0] * focal[1])), centre, WorldCamera(rotation, place))


def _bent_px(camera: Pinhole) -> float:
    """How far the lens moves the photo's corners."""
    if camera.distortion is None or not np.asarray(camera.distortion).any():
        return 0.0
    straight = Pinhole(camera.focal, camera.centre, camera.pose, camera.height, camera.width, camera.skew)
    w, h = float(camera.width), float(camera.height)
    corners = straight.unproject(jnp.array([[0.0, 0.0], [w, 0.0], [0.0, h], [w, h]]), jnp.full(4, 1000.0))
    moved = np.asarray(camera.project_camera(corners)) - np.asarray(straight.project_camera(corners))
    return float(np.linalg.norm(moved, axis=1).max())


# ----------------------------------------------------------------------------------------------- the head among them


def start_world(poses: Sequence[jaxlie.SE3], cameras: Sequence[WorldCamera]) -> World:
    """The head in the cameras' world, from the pose T_camera_head (mm) that each photo shows by itself.

    Every photo says how the head is turned in the world; the mean of those that agree most widely is its rotation.
    Place and unit are then linear in what the photos say of the head's place, which is least certain in depth. Raises
    CameraError where the cameras stand too near together to tell the unit, or contradict the photos outright.
    """
    rotations = [np.asarray(p.rotation().as_matrix(), np.float64) for p in poses]
    places = [np.asarray(p.translation(), np.float64) for p in poses]
    votes = Rotation.from_matrix(np.stack([c.rotation.T @ r for c, r in zip(cameras, rotations, strict=True)]))
    apart = np.stack([np.degrees((votes[k].inv() * votes).magnitude()) for k in range(len(poses))])
    leader = apart[int(np.argmin(np.minimum(apart, _ASIDE_DEGREES).sum(axis=1)))]
    agreeing = [k for k in range(len(poses)) if leader[k] < _ASIDE_DEGREES]
    if len(poses) > 1 and len(agreeing) < 2:
        raise CameraError(
            f"cameras: got {len(poses)} that contradict the photos, which see the head turned some "
            f"{np.median(apart[apart > 0]):.0f} degrees from each other in the cameras' world; expected one head. Are "
            "the file's names shuffled, or did the head move between the photos?"
        )
    rows, right = [], []
    for k in agreeing:
        # Camera axes with depth last along the line of sight: across it a photo is more certain.
        sight = places[k] / np.linalg.norm(places[k])
        whiten = (np.eye(3) - (1 - 1 / _DEPTH_OVER_ASIDE) * np.outer(sight, sight)) / np.linalg.norm(places[k])
        rows.append(whiten @ np.column_stack([cameras[k].rotation, cameras[k].translation]))
        right.append(whiten @ places[k])
    rows, right = np.stack(rows), np.stack(right)
    weight, found = np.ones(len(agreeing)), np.zeros(4)
    for _ in range(10):  # Huber's weights, against a photo whose head is far off
        root = np.sqrt(weight)[:, None]
        found = np.linalg.lstsq((rows * root[..., None]).reshape(-1, 4), (right * root).reshape(-1), rcond=None)[0]
        error = np.linalg.norm(rows @ found - right, axis=1)
        weight = 1 / np.maximum(error / max(1.5 * float(np.median(error)), 1e-6), 1.0)
    place, unit = found[:3], float(found[3])
    centres = np.stack([-cameras[k].rotation.T @ cameras[k].translation for k in agreeing])
    spread = float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()) * abs(unit)
    distance = float(np.median([np.linalg.norm(places[k]) for k in agreeing]))
    size = float(np.abs(centres).max()) + 1e-12
    if spread < _BASELINE * distance or np.ptp(centres, axis=0).max() < 1e-6 * size:
        raise CameraError(
            f"cameras: got {len(agreeing)} that stand {spread:.0f} mm around one point, {distance:.0f} mm from the "
            "head; expected different viewpoints, without which the unit of their world is unknown. Leave the cameras "
            "out, and give the focal length with --focal-px."
        )
    if unit <= 0:
        raise CameraError(
            "cameras: got some that contradict the photos: the head gets larger where they say that it is farther "
            "away. Are the file's names shuffled, or its poses those from camera to world?"
        )
    mean = Rotation.from_matrix(votes.as_matrix()[agreeing]).mean()
    pose = jaxlie.SE3(jnp.asarray(np.r_[mean.as_quat(scalar_first=True), place], jnp.float32))
    return World(pose, jnp.float32(np.log(unit)))


def origin_at_head(world: World) -> tuple[World, Float[np.ndarray, "3"]]:
    """The same similarity with the world's origin moved to the head, and that point in world units.

    A far origin would make a change of the unit look like a shift of the head, which single precision cannot part.
    """
    origin = np.asarray(world.pose.translation(), np.float64) / float(np.exp(world.log_unit))
    return _shifted(world, -origin), origin


def origin_back(world: World, origin: Float[np.ndarray, "3"]) -> World:
    """The inverse of `origin_at_head`."""
    return _shifted(world, origin)


def _shifted(world: World, by: Float[np.ndarray, "3"]) -> World:
    place = np.asarray(world.pose.translation(), np.float64) + by * float(np.exp(world.log_unit))
    moved = jnp.asarray(place, jnp.float32)
    return World(jaxlie.SE3.from_rotation_and_translation(world.pose.rotation(), moved), world.log_unit)
