"""Each format against the other tool's own projection formula, written here in NumPy from its documentation."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from renderer import Pinhole, WeakPerspective
from renderer.camera_formats import (
    BlenderCamera,
    ColmapCamera,
    from_blender,
    from_colmap,
    from_colmap_text,
    from_nerf,
    from_opengl,
    from_pytorch3d,
    to_blender,
    to_colmap,
    to_colmap_text,
    to_nerf,
    to_opengl,
    to_pytorch3d,
)

SIZES = ((480, 640), (500, 300), (256, 256))  # height, width
LENS = (-0.2, 0.12, -0.05)
POINTS = np.random.default_rng(0).uniform(-100, 100, (20, 3))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def cameras(weak=False, square=False, skew=0.0, lens=None) -> Iterator[Any]:
    """One random camera for each of SIZES, before a head that roughly faces it."""
    rng = np.random.default_rng(1)
    for height, width in SIZES:
        turn = jaxlie.SO3(jnp.array([0.0, 1.0, 0.0, 0.0])) @ jaxlie.SO3.exp(jnp.asarray(rng.normal(size=3) * 0.4))
        pose = jaxlie.SE3.from_rotation_and_translation(turn, jnp.asarray([*rng.uniform(-60, 60, 2), 900.0]))
        focal = rng.uniform(400, 1200) * np.array([1.0, 1.0 if square else rng.uniform(0.7, 1.4)])
        centre = np.array([width, height]) / 2 + rng.normal(size=2) * 30
        shared: dict[str, Any] = dict(centre=jnp.asarray(centre), pose=pose, height=height, width=width)
        if weak:
            yield WeakPerspective(scale=jnp.asarray(focal / 900), **shared)
        else:
            lens_array = None if lens is None else jnp.asarray(lens)
            yield Pinhole(focal=jnp.asarray(focal), skew=skew, distortion=lens_array, **shared)


def project(camera):
    return np.asarray(camera.project(jnp.asarray(POINTS)))


def same(a, b):
    assert type(a) is type(b) and (a.height, a.width) == (b.height, b.width)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        # Quaternions of either sign are the same rotation.
        assert np.allclose(x, y, rtol=1e-9, atol=1e-9) or np.allclose(np.abs(x), np.abs(y), rtol=1e-9, atol=1e-9)
    assert np.allclose(project(a), project(b), atol=1e-8)


def homogeneous(points):
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


@pytest.mark.parametrize("weak, skew", [(False, 0.0), (False, 6.0), (True, 0.0)])
def test_opengl(weak, skew):
    """Clip coordinates, division by w, then the viewport transform with the window's origin at the bottom left."""
    for camera in cameras(weak, skew=skew):
        view, projection = to_opengl(camera, near=10.0, far=5000.0)
        clip = homogeneous(POINTS) @ (projection @ view).T
        ndc = clip[:, :3] / clip[:, 3:]
        window = (ndc[:, :2] + 1) / 2 * [camera.width, camera.height]
        assert np.allclose(np.c_[window[:, 0], camera.height - window[:, 1]], project(camera), atol=1e-9)
        # Depth: near is -1, far is 1, and the axis points backwards.
        z = -(homogeneous(POINTS) @ view.T)[:, 2]
        assert np.allclose(z, camera.to_camera(jnp.asarray(POINTS))[:, 2])
        ends = homogeneous(np.array([[1.0, 2.0, -10.0], [1.0, 2.0, -5000.0]])) @ projection.T
        assert np.allclose(ends[:, 2] / ends[:, 3], [-1, 1])
        same(from_opengl(view, projection, camera.height, camera.width), camera)


@pytest.mark.parametrize("in_ndc", [False, True])
@pytest.mark.parametrize("weak, skew", [(False, 0.0), (False, 6.0), (True, 0.0)])
def test_pytorch3d(weak, skew, in_ndc):
    """PyTorch3D's chain of row-vector transforms: view, K, principal point fix, screen to NDC, NDC to screen."""
    for camera in cameras(weak, skew=skew):
        c = to_pytorch3d(camera, in_ndc)
        x_view = POINTS @ c.R[0] + c.T[0]
        (fx, fy), (px, py) = c.focal_length[0], c.principal_point[0]
        K = np.array([[fx, 0, px, 0], [0, fy, py, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
        if weak:
            K = np.array([[fx, 0, 0, px], [0, fy, 0, py], [0, 0, 1, 0], [0, 0, 0, 1]])
        assert (c.K is None) == (skew == 0)
        if c.K is not None:
            differs = np.argwhere(c.K[0] != K)
            K = c.K[0]
            assert differs.tolist() == [[0, 1]]
        p = homogeneous(x_view) @ K.T
        xy = p[:, :2] / p[:, 3:]
        height, width = c.image_size[0]
        s = min(height, width) / 2
        ndc = xy if in_ndc else (xy - 2 * c.principal_point[0] + np.array([width, height]) / 2) / s
        screen = -(s * ndc - np.array([width, height]) / 2)
        assert np.allclose(screen, project(camera), atol=1e-9)
        assert c.in_ndc is in_ndc
        same(from_pytorch3d(**c._asdict(), orthographic=weak), camera)


def blender_pixels(b: BlenderCamera, world):
    """Blender's view plane, as BKE_camera_params_compute_viewplane makes it, one unit before the camera."""
    local = homogeneous(world) @ np.linalg.inv(b.matrix_world).T
    ycor = b.pixel_aspect_y / b.pixel_aspect_x
    horizontal = b.sensor_fit == "HORIZONTAL"
    if b.sensor_fit == "AUTO":
        horizontal = b.pixel_aspect_x * b.resolution_x >= b.pixel_aspect_y * b.resolution_y
    view_factor = b.resolution_x if horizontal else ycor * b.resolution_y
    sensor = b.sensor_height if b.sensor_fit == "VERTICAL" else b.sensor_width
    pixel_size = (sensor / b.lens if b.type == "PERSP" else b.ortho_scale) / view_factor
    left = (-0.5 * b.resolution_x + b.shift_x * view_factor) * pixel_size
    right = (0.5 * b.resolution_x + b.shift_x * view_factor) * pixel_size
    bottom = (-0.5 * ycor * b.resolution_y + b.shift_y * view_factor) * pixel_size
    top = (0.5 * ycor * b.resolution_y + b.shift_y * view_factor) * pixel_size
    on_plane = local[:, :2] / (-local[:, 2:3] if b.type == "PERSP" else 1.0)
    u = (on_plane[:, 0] - left) / (right - left) * b.resolution_x
    v = (top - on_plane[:, 1]) / (top - bottom) * b.resolution_y
    return np.c_[u, v]


@pytest.mark.parametrize("sensor_fit", ["AUTO", "HORIZONTAL", "VERTICAL"])
@pytest.mark.parametrize("weak", [False, True])
def test_blender(weak, sensor_fit):
    for camera in cameras(weak):
        for unit_mm, z_up in ((1000.0, True), (10.0, False)):
            x, y, z = POINTS.T
            world = np.c_[x, -z, y] if z_up else POINTS  # what the glTF importer makes of y up
            b = to_blender(camera, unit_mm=unit_mm, z_up=z_up, sensor_fit=sensor_fit, sensor_height=30.0)
            assert min(b.pixel_aspect_x, b.pixel_aspect_y) == 1  # Blender allows no less
            assert np.allclose(blender_pixels(b, world / unit_mm), project(camera), atol=1e-8)
            same(from_blender(b, unit_mm=unit_mm, z_up=z_up), camera)


def colmap_pixels(c: ColmapCamera):
    """COLMAP's WorldToCam of the models in src/colmap/sensor/models.h and its quaternions, sandwiched."""
    q, v = c.qvec[0], np.array(c.qvec[1:])
    x = POINTS + 2 * np.cross(v, np.cross(v, POINTS) + q * POINTS) + c.tvec
    x = x[:, :2] / x[:, 2:]
    r2 = (x**2).sum(axis=1, keepdims=True)
    match c.model, c.params:
        case "SIMPLE_PINHOLE", (f, cx, cy):
            return f * x + [cx, cy]
        case "PINHOLE", (fx, fy, cx, cy):
            return x * [fx, fy] + [cx, cy]
        case "SIMPLE_RADIAL", (f, cx, cy, k):
            return f * x * (1 + k * r2) + [cx, cy]
        case "RADIAL", (f, cx, cy, k1, k2):
            return f * x * (1 + k1 * r2 + k2 * r2**2) + [cx, cy]
        case "OPENCV", (fx, fy, cx, cy, k1, k2, 0.0, 0.0):
            return x * (1 + k1 * r2 + k2 * r2**2) * [fx, fy] + [cx, cy]
        case "FULL_OPENCV", (fx, fy, cx, cy, k1, k2, 0.0, 0.0, k3, 0.0, 0.0, 0.0):
            return x * (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) * [fx, fy] + [cx, cy]
    raise AssertionError(c)


@pytest.mark.parametrize(
    "model, lens, square",
    [
        ("SIMPLE_PINHOLE", None, True),
        ("PINHOLE", None, False),
        ("SIMPLE_RADIAL", (-0.2, 0.0, 0.0), True),
        ("RADIAL", (-0.2, 0.1, 0.0), True),
        ("OPENCV", (-0.2, 0.1, 0.0), False),
        ("FULL_OPENCV", LENS, False),
    ],
)
def test_colmap(model, lens, square):
    named = {f"photos/{i}.jpg": camera for i, camera in enumerate(cameras(square=square, lens=lens))}
    for camera in named.values():
        c = to_colmap(camera, model)
        assert (c.model, c.width, c.height) == (model, camera.width, camera.height)
        assert np.allclose(colmap_pixels(c), project(camera), atol=1e-9)
        same(from_colmap(c), camera)
        if not square:
            assert to_colmap(camera).model == model
    # Comments and observed points do not disturb, and numbers survive as text.
    text = to_colmap_text(named, model)
    images = text.images.replace("photos/1.jpg\n\n", "photos/1.jpg\n12.5 3.25 -1 7 8 42\n")
    assert "-1 7 8 42" in images
    again = from_colmap_text("# comment\n\n" + text.cameras, images.rstrip("\n"))
    assert list(again) == list(named)
    for name, camera in named.items():
        same(again[name], camera)
        assert np.array_equal(again[name].focal, camera.focal)


@pytest.mark.parametrize("lens", [None, LENS])
def test_nerf(lens):
    """nerfstudio's and instant-ngp's rays: from pixel to the direction in the world, backwards along the camera's z."""
    named = {f"images/{i}.png": camera for i, camera in enumerate(cameras(lens=lens))}
    transforms = json.loads(json.dumps(to_nerf(named, unit_mm=1000.0)))
    for frame, camera in zip(transforms["frames"], named.values(), strict=True):
        matrix = np.array(frame["transform_matrix"])
        local = (POINTS / 1000 - matrix[:3, 3]) @ matrix[:3, :3]
        x = np.c_[local[:, 0], -local[:, 1]] / -local[:, 2:]
        r2 = (x**2).sum(axis=1, keepdims=True)
        x = x * (1 + sum(frame.get(f"k{i}", 0.0) * r2**i for i in (1, 2, 3)))
        pixels = x * [frame["fl_x"], frame["fl_y"]] + [frame["cx"], frame["cy"]]
        assert np.allclose(pixels, project(camera), atol=1e-9)
        assert np.isclose(np.tan(frame["camera_angle_x"] / 2) * 2 * frame["fl_x"], frame["w"])
    again = from_nerf(transforms, unit_mm=1000.0)
    assert list(again) == list(named)
    for path, camera in named.items():
        same(again[path], camera)


def test_nerf_shares_what_photos_share():
    """One camera at two poses has its intrinsics at the top; the original NeRF's files have camera_angle_x alone."""
    one = next(cameras(square=True))
    moved = Pinhole(one.focal, one.centre, one.pose @ jaxlie.SE3.exp(jnp.full(6, 0.1)), 480, 640)
    transforms = to_nerf({"a": one, "b": moved})
    assert [sorted(frame) for frame in transforms["frames"]] == [["file_path", "transform_matrix"]] * 2
    for path, camera in {"a": one, "b": moved}.items():
        same(from_nerf(transforms)[path], camera)

    synthetic = {k: transforms[k] for k in ("camera_angle_x", "w", "h", "frames")}
    middle = Pinhole(one.focal, jnp.array([320.0, 240.0]), one.pose, 480, 640)
    same(from_nerf(synthetic)["a"], middle)
    with pytest.raises(ValueError, match="no 'w' and 'h'; add the photo's size"):
        from_nerf({k: transforms[k] for k in ("camera_angle_x", "frames")})


def test_what_a_format_cannot_hold_is_refused():
    plain, weak = next(cameras()), next(cameras(weak=True))
    lens, skewed = next(cameras(lens=LENS)), next(cameras(skew=2.0))
    for convert in (lambda c: to_opengl(c, 1.0, 10.0), to_pytorch3d, to_blender):
        with pytest.raises(ValueError, match=r"no lens distortion, .* Undistort the photo"):
            convert(lens)
    for convert in (to_blender, to_colmap, lambda c: to_colmap_text({"a": c}), lambda c: to_nerf({"a": c})):
        with pytest.raises(ValueError, match="no skew, the camera has 2.0 px"):
            convert(skewed)
    for convert in (to_colmap, lambda c: to_nerf({"a": c})):
        with pytest.raises(ValueError, match=r"no weak-perspective camera; use camera.to_pinhole\(depth\)"):
            convert(weak)
    with pytest.raises(ValueError, match="RADIAL has one focal length"):
        to_colmap(plain, "RADIAL")
    with pytest.raises(ValueError, match="OPENCV has no place for the lens's {'k3': -0.05}; use FULL_OPENCV"):
        to_colmap(lens, "OPENCV")
    with pytest.raises(ValueError, match="THIN_PRISM_FISHEYE is not supported, expected one of"):
        to_colmap(plain, "THIN_PRISM_FISHEYE")
    with pytest.raises(ValueError, match=r"names with spaces, got \['a b.jpg'\]"):
        to_colmap_text({"a b.jpg": plain})


def test_what_we_cannot_hold_is_refused():
    plain, weak = next(cameras()), next(cameras(weak=True))
    gl = to_opengl(plain, 10.0, 5000.0)
    with pytest.raises(ValueError, match="Column-major arrays need a transpose"):
        from_opengl(gl.view, gl.projection.T, 480, 640)
    with pytest.raises(ValueError, match="view: the last row .* Is it transposed?"):
        from_opengl(gl.view.T, gl.projection, 480, 640)
    with pytest.raises(ValueError, match="Vulkan's"):
        from_opengl(gl.view, np.diag([1.0, -1.0, 1.0, 1.0]) @ gl.projection, 480, 640)
    with pytest.raises(ValueError, match="view has .* Take out scale and reflections"):
        from_opengl(gl.view @ np.diag([2.0, 2.0, 2.0, 1.0]), gl.projection, 480, 640)
    with pytest.raises(ValueError, match="no shear if orthographic"):
        from_opengl(gl.view, to_opengl(weak, 1.0, 10.0).projection + 0.1 * np.eye(4, k=1), 480, 640)
    with pytest.raises(ValueError, match="expected near < far"):
        to_opengl(plain, 0.0, 10.0)
    with pytest.raises(ValueError, match="type 'PANO', expected PERSP or ORTHO"):
        from_blender(to_blender(plain)._replace(type="PANO"))
    with pytest.raises(ValueError, match="sensor_fit: got 'WIDTH'"):
        to_blender(plain, sensor_fit="WIDTH")
    opencv = to_colmap(plain, "OPENCV")
    with pytest.raises(ValueError, match="the lens has {'p2': 0.1}, only k1, k2, k3 are known"):
        from_colmap(opencv._replace(params=(*opencv.params[:7], 0.1)))
    with pytest.raises(ValueError, match="got 7 numbers"):
        from_colmap(opencv._replace(params=opencv.params[:7]))
    text = to_colmap_text({"a": plain})
    with pytest.raises(ValueError, match=r"a has camera 1, but cameras.txt only \['7'\]"):
        from_colmap_text(text.cameras.replace("\n1 ", "\n7 "), text.images)
    nerf = to_nerf({"a": plain})
    for change in ({"camera_model": "OPENCV_FISHEYE"}, {"p1": 0.1}, {"k4": 0.1}, {"is_fisheye": True}):
        with pytest.raises(ValueError, match="only perspective cameras with k1, k2, k3"):
            from_nerf(nerf | change)
    with pytest.raises(ValueError, match="neither 'fl_x' nor 'camera_angle_x'"):
        from_nerf({k: nerf[k] for k in ("w", "h", "frames")})
    shear = to_pytorch3d(next(cameras(skew=2.0)))
    with pytest.raises(ValueError, match="a weak-perspective camera cannot"):
        from_pytorch3d(**shear._asdict(), orthographic=True)
