import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import finite_difference

from renderer import Pinhole, WeakPerspective

POINTS = jnp.asarray(np.random.default_rng(0).uniform(-100, 100, (20, 3)), jnp.float32)
# None, barrel, pincushion, one whose growth stops at r = 1.04 and begins again at 1.93, one that stops at r = 1.9.
LENSES = (None, (-0.1, 0.05, 0.0), (0.2, -0.02, 0.001), (-0.4, 0.05, 0.0), (-0.02, 0.0, -0.002))


def with_lens(distortion, skew=5.0):
    """A camera of unequal focal lengths, in the precision of the moment."""
    K = np.array([[210.0, skew, 25.0], [0.0, 190.0, 17.0], [0.0, 0.0, 1.0]])
    lens = None if distortion is None else (*distortion[:2], 0.0, 0.0, distortion[2])
    R = np.array([[0.8, 0.0, 0.6], [0.0, -1.0, 0.0], [0.6, 0.0, -0.8]])
    return Pinhole.from_opencv(K, R, np.array([3.0, -4.0, 600.0]), 40, 48, distortion=lens)


def distorted_radius(lens, r):
    """The lens's polynomial, up to where it first falls and as a straight line through the origin from there on."""
    k1, k2, k3 = lens
    roots = np.roots([7 * k3, 5 * k2, 3 * k1, 1.0])
    folds = [root.real for root in roots if abs(root.imag) < 1e-12 and root.real > 0]
    r2 = np.minimum(r**2, min([*folds, 100.0]))
    return r * (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3)


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


@pytest.mark.parametrize("lens", LENSES)
def test_full_k_and_lens(lens):
    """Against the formula in NumPy: K with skew on coordinates whose radius the lens changes, folding excluded."""
    with jax.enable_x64(True):
        camera = with_lens(lens)
        points = np.random.default_rng(1).normal(size=(200, 3)) * [1.5, 1.5, 0] + [0, 0, 1]  # up to 77 degrees off
        points *= np.random.default_rng(2).uniform(10, 1000, (200, 1))
        x = points[:, :2] / points[:, 2:]
        if lens is not None:
            r = np.linalg.norm(x, axis=1, keepdims=True)
            x = x * distorted_radius(lens, r) / r
        K = np.asarray(camera.to_opencv()[0])
        assert K[0, 1] == 5 and K[0, 0] != K[1, 1]
        assert np.allclose(camera.project_camera(jnp.asarray(points)), x @ K[:2, :2].T + K[:2, 2], atol=1e-6)
        expected = np.zeros(5) if lens is None else [lens[0], lens[1], 0, 0, lens[2]]
        assert np.array_equal(camera.opencv_distortion, expected)


@pytest.mark.parametrize("lens", LENSES[1:])
def test_lens_never_folds(lens):
    """The farther from the axis, the farther from the principal point, also where the polynomial falls."""
    r = jnp.linspace(0.0, 30.0, 5000)
    camera = with_lens(lens, skew=0.0)
    pixels = camera.project_camera(jnp.stack([r, jnp.zeros_like(r), jnp.ones_like(r)], axis=1) * 100)
    assert (np.diff(pixels[:, 0]) > 0).all()


@pytest.mark.parametrize("lens", LENSES)
def test_unproject_inverts_project(lens):
    with jax.enable_x64(True):
        camera = with_lens(lens)
        rng = np.random.default_rng(3)
        pixels = jnp.asarray(rng.uniform(-400, 400, (300, 2)))  # far outside the picture too, beyond any fold
        depth = jnp.asarray(np.r_[rng.uniform(1, 2000, 250), rng.uniform(-2000, 0.9, 50)])  # and behind the camera
        points = camera.unproject(pixels, depth)
        assert np.array_equal(points[:, 2], depth)
        assert np.allclose(camera.project_camera(points), pixels, atol=1e-7)
        if lens is None:
            weak = camera.to_weak_perspective()
            assert np.allclose(weak.project_camera(weak.unproject(pixels, depth)), pixels, atol=1e-9)


def test_lens_has_derivatives():
    """Projection and its inverse by the lens's parameters and by their arguments, both modes, against differences."""
    with jax.enable_x64(True):
        start = with_lens(LENSES[3])
        x = jnp.array([-0.4, 0.1, 0.01, 5.0, 130.0, -90.0, 300.0])

        def projected(x):
            camera = Pinhole(start.focal, start.centre, start.pose, 40, 48, x[3], x[:3])
            inside, outside = x[4:][None], x[4:][None] * jnp.array([[2.0, 2.0, 0.3]])  # within and beyond the fold
            inverse = camera.unproject(x[None, 4:6], x[6:])
            return jnp.concatenate([camera.project_camera(inside)[0], inverse[0], camera.project_camera(outside)[0]])

        expected = finite_difference(jax.jit(projected), x, 1e-5)
        forward, reverse = jax.jit(jax.jacfwd(projected))(x), jax.jit(jax.jacrev(projected))(x)
        assert np.allclose(forward, reverse, atol=1e-9)
        # Beyond the fold the radius where it lies is held constant when the lens changes.
        assert np.allclose(forward[:5], expected[:5], rtol=1e-5, atol=1e-5)
        assert np.allclose(forward[5:, 3:], expected[5:, 3:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lens", [None, LENSES[1]])
def test_behind_the_camera_projection_stays_linear(lens):
    """(u z, v z, z) = K x on both sides of the camera's plane, and all derivatives are finite, at z = 0 too."""
    camera = with_lens(lens)
    rng = np.random.default_rng(4)
    behind = rng.uniform([-100, -100, -200], [100, 100, -0.5], (50, 3))
    points = np.concatenate([behind, [[3, 4, 0.99], [3, 4, 1e-3], [3, 4, -1e-3]]])
    K = np.asarray(camera.to_opencv()[0], np.float64)
    pixels = np.asarray(camera.project_camera(jnp.asarray(points, jnp.float32)), np.float64)
    homogeneous = np.c_[pixels, np.ones(len(points))] * points[:, 2:]
    assert np.allclose(homogeneous, points @ K.T, rtol=1e-5, atol=0.05)

    on_the_plane = jnp.array([[1e3, -1e3, 0.0], [0.0, 0.0, 0.0], [50.0, 1e3, 1e-7], [1e3, 0.0, -1e-6], [1e3, 0, 1.0]])
    for jacobian in (jax.jacfwd, jax.jacrev):
        by_camera, by_points = jax.jit(jacobian(Pinhole.project_camera, argnums=(0, 1)))(camera, on_the_plane)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_camera, by_points)))


@pytest.mark.parametrize("weak", [False, True])
def test_chained_crops_lead_back_to_the_photo(weak):
    """Pixels of a crop of a smaller picture of a crop are the photo's after `pixels_from`, and back."""
    with jax.enable_x64(True):
        photo = with_lens(None).to_weak_perspective() if weak else with_lens(LENSES[1])
        points = jnp.asarray(np.random.default_rng(5).uniform(-80, 80, (20, 3)))
        pixels = photo.project(points)
        first = photo.crop((3.5, -2.0, 30.0, 20.0), 60, 120)
        second = first.resize(20, 30)
        third = second.crop((5.0, 4.0, 10.0, 12.0), 96, 40)
        for camera in (first, second, third):
            assert np.allclose(photo.pixels_from(camera, camera.project(points)), pixels, atol=1e-9)
            assert np.allclose(camera.pixels_from(photo, pixels), camera.project(points), atol=1e-9)
        # The same by hand: out of the third box, out of the resize, out of the first box.
        by_hand = third.project(points) / jnp.array([[4.0, 8.0]]) + jnp.array([[5.0, 4.0]])
        by_hand = by_hand * jnp.array([[4.0, 3.0]]) / jnp.array([[4.0, 3.0]]) + jnp.array([[3.5, -2.0]])
        assert np.allclose(by_hand, pixels, atol=1e-9)


def test_a_camera_keeps_its_precision(camera):
    """Under x64 the default skew does not turn a float32 camera's pixels into float64."""
    with jax.enable_x64(True):
        again = Pinhole(camera.focal, camera.centre, camera.pose, camera.height, camera.width)
        assert again.project(POINTS).dtype == again.crop((0.0, 0.0, 8.0, 8.0), 4, 4).skew.dtype == jnp.float32


def test_errors_name_the_remedy(camera):
    K, R, t = camera.to_opencv()
    with pytest.raises(ValueError, match=r"got \[0.1, .* only k1, k2 and k3 .*CALIB_ZERO_TANGENT_DIST"):
        Pinhole.from_opencv(K, R, t, 40, 48, distortion=(0.1, 0.0, 1e-3, 0.0))
    with pytest.raises(ValueError, match="only k1, k2 and k3"):
        Pinhole.from_opencv(K, R, t, 40, 48, distortion=(0.1, 0.0, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0))
    with pytest.raises(ValueError, match="got 3 coefficients"):
        Pinhole.from_opencv(K, R, t, 40, 48, distortion=(0.1, 0.0, 0.0))
    with pytest.raises(ValueError, match="Undistort the photo"):
        with_lens(LENSES[1]).to_weak_perspective()
    with pytest.raises(TypeError, match="got a WeakPerspective for a Pinhole"):
        camera.pixels_from(camera.to_weak_perspective(), jnp.zeros((1, 2)))
    four = Pinhole.from_opencv(K, R, t, 40, 48, distortion=(0.1, 0.2, 0.0, 0.0))
    assert np.allclose(four.opencv_distortion, [0.1, 0.2, 0, 0, 0])
    assert Pinhole.from_opencv(K, R, t, 40, 48, distortion=np.zeros(5)).distortion is None
