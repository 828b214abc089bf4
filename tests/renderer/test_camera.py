import jax.numpy as jnp
import numpy as np
import pytest

from renderer import Pinhole, WeakPerspective

POINTS = jnp.asarray(np.random.default_rng(0).uniform(-100, 100, (20, 3)), jnp.float32)


def test_projection_is_opencvs(camera):
    K, R, t = (np.asarray(m, np.float64) for m in camera.to_opencv())
    homogeneous = (K @ (R @ np.asarray(POINTS).T + t[:, None])).T
    assert np.allclose(camera.project(POINTS), homogeneous[:, :2] / homogeneous[:, 2:], atol=1e-3)


@pytest.mark.parametrize("pixel_centre", [0.5, 0.0])
def test_opencv_round_trip(camera, pixel_centre):
    K, R, t = camera.to_opencv(pixel_centre)
    again = Pinhole.from_opencv(K, R, t, camera.height, camera.width, pixel_centre)
    assert np.allclose(again.project(POINTS), camera.project(POINTS), atol=1e-3)
    assert np.allclose(K[:2, 2], camera.centre + (pixel_centre - 0.5))


def test_head_axes_in_the_picture(camera):
    """Up is up, the subject's left is on the right, and nearer to the viewer is a smaller depth."""
    facing = Pinhole.from_opencv(
        jnp.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]),
        jnp.diag(jnp.array([1.0, -1.0, -1.0])),
        jnp.array([0.0, 0.0, 500.0]),
        100,
        100,
    )
    origin, left, up, nose = facing.project(jnp.array([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]]))
    assert left[0] > origin[0] and left[1] == origin[1]
    assert up[1] < origin[1] and up[0] == origin[0]
    assert jnp.array_equal(nose, origin)
    assert facing.to_camera(jnp.array([[0.0, 0, 10]]))[0, 2] == 490


@pytest.mark.parametrize("weak", [False, True])
def test_crop_and_resize_keep_pixels(camera, weak):
    camera = camera.to_weak_perspective() if weak else camera
    pixels = camera.project(POINTS)
    x0, y0, w, h = 3.0, 5.0, 30.0, 20.0
    cropped = camera.crop((x0, y0, w, h), 60, 120)
    assert (cropped.height, cropped.width) == (60, 120)
    assert np.allclose(cropped.project(POINTS) / jnp.array([[4.0, 3.0]]) + jnp.array([[x0, y0]]), pixels, atol=1e-3)
    # Halved, the centre of the first pixel of the small picture is the corner shared by four pixels.
    halved = camera.resize(camera.height // 2, camera.width // 2)
    assert np.allclose(halved.project(POINTS) * 2, pixels, atol=1e-3)


def test_weak_perspective_agrees_on_its_plane(camera):
    """The pinhole camera and its weak-perspective one agree at the reference depth, and far away everywhere."""
    depth = 480.0
    on_plane = jnp.concatenate([POINTS[:, :2], jnp.full((len(POINTS), 1), depth)], axis=1)
    weak = camera.to_weak_perspective(depth)
    assert np.allclose(weak.project_camera(on_plane), camera.project_camera(on_plane), atol=1e-3)
    assert np.allclose(weak.to_pinhole(1e6).project(POINTS), weak.project(POINTS), atol=1e-2)
    K, R, t = weak.to_opencv(1e6)
    assert np.allclose(Pinhole.from_opencv(K, R, t, 40, 48).project(POINTS), weak.project(POINTS), atol=0.05)


def test_weak_perspective_round_trip(camera):
    weak = camera.to_weak_perspective()
    back = weak.to_pinhole(camera.pose.translation()[2])
    assert np.allclose(back.project(POINTS), camera.project(POINTS), atol=1e-3)
    from_opencv = type(weak).from_opencv(*camera.to_opencv(), 40, 48)
    assert np.allclose(from_opencv.project(POINTS), weak.project(POINTS), atol=1e-3)


def test_pixel_size_is_the_projections_derivative(camera):
    for cam in (camera, camera.to_weak_perspective()):
        near = jnp.array([[3.0, 2.0, 450.0]])
        step = cam.project_camera(near + jnp.array([[1.0, 0, 0]])) - cam.project_camera(near)
        assert np.allclose(step[0, 0] * cam.pixel_size(near[:, 2])[0], 1.0, atol=1e-3)


def test_towards_camera(camera):
    points = camera.to_camera(POINTS)
    directions = camera.towards_camera(points)
    reach = points + directions * jnp.linalg.norm(points, axis=1, keepdims=True)
    assert np.allclose(reach, 0, atol=1e-3)
    assert np.allclose(camera.to_weak_perspective().towards_camera(points), [0, 0, -1])


def test_one_scale_serves_both_axes(camera):
    pose, centre = camera.pose, camera.centre
    one = WeakPerspective(scale=2.0, centre=centre, pose=pose, height=40, width=48)
    two = WeakPerspective(scale=jnp.array([2.0, 2.0]), centre=centre, pose=pose, height=40, width=48)
    assert np.array_equal(one.project(POINTS), two.project(POINTS))
