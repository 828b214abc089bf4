"""Cameras: head space (mm) to the picture (px), with conversions to and from OpenCV.

Camera axes are OpenCV's: x right, y down, z forward. Pixel (row, column) covers [column, column + 1) x [row, row + 1)
and has its centre at + 0.5, so that crops and changes of size are exact in continuous coordinates.
"""

from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

_WIDEST = 10.0  # tangent of the largest angle to the axis, 84 degrees, at which lens distortion is evaluated
_BISECTIONS = 32
_NEWTON_STEPS = 2


class AbstractCamera(eqx.Module):
    """A camera that looks at a head; subclasses say how camera space becomes a picture."""

    centre: eqx.AbstractVar[Float[Array, "2"]]
    pose: eqx.AbstractVar[jaxlie.SE3]  # T_camera_head
    height: eqx.AbstractVar[int]
    width: eqx.AbstractVar[int]
    perspective: ClassVar[bool]  # whether 1 / depth, rather than depth, is affine in the picture
    near: ClassVar[float]  # mm; nothing at or before this depth is drawn

    def to_camera(self, points: Float[Array, "point 3"]) -> Float[Array, "point 3"]:
        """Points of head space in camera space."""
        # Full precision asked for: GPUs and TPUs would round the factors to 10 bits or less.
        rotated = jnp.matmul(points, self.rotation.T, precision="highest")
        return rotated + self.pose.translation()[None]

    @property
    def rotation(self) -> Float[Array, "3 3"]:
        """R_camera_head."""
        return self.pose.rotation().as_matrix()

    def project(self, points: Float[Array, "point 3"]) -> Float[Array, "point 2"]:
        """Pixels of points in head space."""
        return self.project_camera(self.to_camera(points))

    def project_camera(self, points: Float[Array, "point 3"]) -> Float[Array, "point 2"]:
        """Pixels of points in camera space."""
        raise NotImplementedError

    def unproject(self, pixels: Float[Array, "point 2"], depth: Float[Array, "point"]) -> Float[Array, "point 3"]:
        """Points of camera space at the given depths (mm, camera z) that project to pixels."""
        raise NotImplementedError

    def towards_camera(self, points: Float[Array, "point 3"]) -> Float[Array, "point 3"]:
        """Unit vectors of camera space from points in camera space to the viewer."""
        raise NotImplementedError

    def pixel_size(self, depth: Float[Array, "point"]) -> Float[Array, "point"]:
        """Side in mm of what one pixel sees of a surface that faces the camera, at depths in mm."""
        raise NotImplementedError

    def crop(self, box: Sequence[float] | Float[Array, "4"], height: int, width: int) -> "AbstractCamera":
        """The camera of the box (x0, y0, width, height) of this picture, resampled to height x width."""
        raise NotImplementedError

    def resize(self, height: int, width: int) -> "AbstractCamera":
        """The camera of this picture resampled to height x width."""
        return self.crop((0.0, 0.0, float(self.width), float(self.height)), height, width)

    def pixels_from(self, other: "AbstractCamera", pixels: Float[Array, "point 2"]) -> Float[Array, "point 2"]:
        """Pixels of another camera's picture as pixels of this camera's.

        Both cameras must stem from one by `crop` and `resize`, any number of them; so
        `original.pixels_from(cropped, pixels)` leads back to the photo, whatever happened in between.
        """
        if type(self) is not type(other):
            raise TypeError(
                f"pixels_from: got a {type(other).__name__} for a {type(self).__name__}; crops of one picture are of "
                "one kind"
            )
        return (pixels - other.centre[None]) * (self._magnification / other._magnification)[None] + self.centre[None]

    @property
    def _magnification(self) -> Float[Array, "2"]:
        """What grows with the resolution of the picture, along u and v."""
        raise NotImplementedError


class Pinhole(AbstractCamera):
    """A pinhole camera with a full K and, optionally, radial lens distortion.

    With x' = x / z, y' = y / z and r² = x'² + y'², distortion (k1, k2, k3) multiplies (x', y') by
    1 + k1 r² + k2 r⁴ + k3 r⁶ (Brown 1971, in OpenCV's coefficients); then u = focal_u x' + skew y' + centre_u and
    v = focal_v y' + centre_v.

    The polynomial describes the lens where the distorted radius still grows with r; beyond, it would fold what lies
    far outside back into the picture. There, and more than 84 degrees off the axis, its factor is held at the last
    value: the distorted radius goes on linearly, no two directions share a pixel, and `unproject` is an inverse
    everywhere. The radius where that begins counts as a constant in derivatives.
    """

    focal: Float[Array, "2"]  # px, along u and v
    centre: Float[Array, "2"]  # px, the principal point
    pose: jaxlie.SE3  # T_camera_head
    height: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    skew: Float[Array, ""]  # px, K[0, 1]
    distortion: Float[Array, "3"] | None  # k1, k2, k3; None for none

    perspective: ClassVar[bool] = True
    near: ClassVar[float] = 1.0

    def __init__(
        self,
        focal: Float[Array, "2"],
        centre: Float[Array, "2"],
        pose: jaxlie.SE3,
        height: int,
        width: int,
        skew: float | Float[Array, ""] = 0.0,
        distortion: Float[Array, "3"] | None = None,
    ):
        self.focal, self.centre, self.pose = focal, centre, pose
        self.height, self.width = height, width
        # In the focal length's precision: a default of its own would turn float32 cameras into float64 under x64.
        self.skew = jnp.asarray(skew, focal.dtype)
        self.distortion = distortion

    def project_camera(self, points: Float[Array, "point 3"]) -> Float[Array, "point 2"]:
        """Pixels of points in camera space.

        Points behind the camera keep their negative z, so that without distortion (u z, v z, z) is K (x, y, z) on
        both sides of the camera's plane, as clipping at `near` needs; only |z| below 1e-6 mm is taken for 1e-6 mm.
        Distortion acts on what lies at least `near` away. Pixels and their derivatives are finite everywhere.
        """
        z = points[:, 2:]
        seen = z >= self.near
        z = jnp.where(jnp.abs(z) < 1e-6, 1e-6, z)
        x = points[:, :2] / z
        if self.distortion is not None:
            r2 = jnp.sum(x**2, axis=1, keepdims=True)
            x = x * jnp.where(seen, _distortion_factor(self.distortion, r2, _growth_limit(self.distortion)), 1.0)
        u = self.focal[0] * x[:, 0] + self.skew * x[:, 1] + self.centre[0]
        v = self.focal[1] * x[:, 1] + self.centre[1]
        return jnp.stack([u, v], axis=1)

    def unproject(self, pixels: Float[Array, "point 2"], depth: Float[Array, "point"]) -> Float[Array, "point 3"]:
        """Points of camera space at the given depths (mm, camera z) that project to pixels.

        Distortion is inverted by bisection and two Newton steps, and has exact first derivatives in both modes;
        where the lens model stops growing its inverse has an infinite derivative, which is bounded here.
        """
        y = (pixels[:, 1] - self.centre[1]) / self.focal[1]
        x = (pixels[:, 0] - self.centre[0] - self.skew * y) / self.focal[0]
        if self.distortion is not None:
            per_factor = 1.0 / _undistortion_divisor(self.distortion, x**2 + y**2)
            per_factor = jnp.where(depth >= self.near, per_factor, 1.0)
            x, y = x * per_factor, y * per_factor
        return jnp.stack([x * depth, y * depth, depth], axis=1)

    def towards_camera(self, points: Float[Array, "point 3"]) -> Float[Array, "point 3"]:
        """Unit vectors of camera space from points in camera space to the centre of projection."""
        return -points / jnp.sqrt(jnp.sum(points**2, axis=1, keepdims=True) + 1e-12)

    def pixel_size(self, depth: Float[Array, "point"]) -> Float[Array, "point"]:
        """Side in mm of what one pixel sees of a surface that faces the camera, at depths in mm, near the axis."""
        return depth / jnp.mean(self.focal)

    def crop(self, box: Sequence[float] | Float[Array, "4"], height: int, width: int) -> "Pinhole":
        """The camera of the box (x0, y0, width, height) of this picture, resampled to height x width."""
        scale, corner = _crop_scale(box, height, width, self.focal.dtype)
        return Pinhole(
            focal=self.focal * scale,
            centre=(self.centre - corner) * scale,
            pose=self.pose,
            height=height,
            width=width,
            skew=self.skew * scale[0],
            distortion=self.distortion,
        )

    @property
    def _magnification(self) -> Float[Array, "2"]:
        return self.focal

    @staticmethod
    def from_opencv(
        K: Float[ArrayLike, "3 3"],
        R: Float[ArrayLike, "3 3"],
        t: Float[ArrayLike, "3"],
        height: int,
        width: int,
        pixel_centre: float = 0.5,
        distortion: Float[ArrayLike, "*coefficients"] | Sequence[float] | None = None,
    ) -> "Pinhole":
        """The camera x = K (R x_head + t), head space and t in mm; K may have skew.

        `pixel_centre` says where K puts the centre of the first pixel: 0.5 as this project and COLMAP do, 0 as
        cv2's own functions do. `distortion` is cv2's distCoeffs, (k1, k2, p1, p2), (k1, k2, p1, p2, k3) or longer;
        raises ValueError unless all but k1, k2, k3 are 0. Its values must be known, not traced.
        """
        K, R, t = (jnp.asarray(v, dtype=jnp.result_type(float)) for v in (K, R, t))
        pose = jaxlie.SE3.from_rotation_and_translation(jaxlie.SO3.from_matrix(R), t)
        focal, centre = jnp.stack([K[0, 0], K[1, 1]]), K[:2, 2] + (0.5 - pixel_centre)
        radial = None if distortion is None else _radial_of_opencv(np.asarray(distortion, np.float64))
        return Pinhole(
            focal=focal,
            centre=centre,
            pose=pose,
            height=height,
            width=width,
            skew=K[0, 1],
            distortion=None if radial is None else jnp.asarray(radial, focal.dtype),
        )

    def to_opencv(
        self, pixel_centre: float = 0.5
    ) -> tuple[Float[Array, "3 3"], Float[Array, "3 3"], Float[Array, "3"]]:
        """K, R, t of `from_opencv`; the lens's distortion is `opencv_distortion`."""
        u, v = self.centre + (pixel_centre - 0.5)
        zero, one = jnp.zeros_like(u), jnp.ones_like(u)
        K = jnp.stack([self.focal[0], self.skew, u, zero, self.focal[1], v, zero, zero, one]).reshape(3, 3)
        return K, self.rotation, self.pose.translation()

    @property
    def opencv_distortion(self) -> Float[Array, "5"]:
        """cv2's distCoeffs (k1, k2, p1, p2, k3), zeros without distortion."""
        k1, k2, k3 = jnp.zeros_like(self.focal, shape=3) if self.distortion is None else self.distortion
        zero = jnp.zeros_like(k1)
        return jnp.stack([k1, k2, zero, zero, k3])

    def to_weak_perspective(self, depth: float | Float[Array, ""] | None = None) -> "WeakPerspective":
        """The weak-perspective camera that agrees with this one at a camera depth in mm (default: head origin).

        It has no skew; this camera's is left out. Raises ValueError if this camera has distortion.
        """
        if self.distortion is not None:
            raise ValueError(
                "to_weak_perspective: the camera has lens distortion, which weak perspective has not. Undistort the "
                "photo (cv2.undistort) and make a camera with distortion=None"
            )
        depth = self.pose.translation()[2] if depth is None else depth
        return WeakPerspective(
            scale=self.focal / depth, centre=self.centre, pose=self.pose, height=self.height, width=self.width
        )


class WeakPerspective(AbstractCamera):
    """Orthographic projection with a scale: a camera far away, for a start or for small depth ranges."""

    scale: Float[Array, "2"] = eqx.field(converter=lambda s: jnp.broadcast_to(s, (2,)))  # px/mm, along u and v
    centre: Float[Array, "2"]  # px, where the camera's axis meets the picture
    pose: jaxlie.SE3  # T_camera_head; the translation's z does not move the picture
    height: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    perspective: ClassVar[bool] = False
    near: ClassVar[float] = -float("inf")

    def project_camera(self, points: Float[Array, "point 3"]) -> Float[Array, "point 2"]:
        """Pixels of points in camera space."""
        return self.scale[None] * points[:, :2] + self.centre[None]

    def unproject(self, pixels: Float[Array, "point 2"], depth: Float[Array, "point"]) -> Float[Array, "point 3"]:
        """Points of camera space at the given depths (mm, camera z) that project to pixels."""
        x = (pixels - self.centre[None]) / self.scale[None]
        return jnp.concatenate([x, depth[:, None]], axis=1)

    def towards_camera(self, points: Float[Array, "point 3"]) -> Float[Array, "point 3"]:
        """The unit vector of camera space to the viewer, the same for all points."""
        return jnp.broadcast_to(jnp.array([[0.0, 0.0, -1.0]], points.dtype), points.shape)

    def pixel_size(self, depth: Float[Array, "point"]) -> Float[Array, "point"]:
        """Side in mm of what one pixel sees of a surface that faces the camera, the same at all depths."""
        return jnp.full_like(depth, 1.0) / jnp.mean(self.scale)

    def crop(self, box: Sequence[float] | Float[Array, "4"], height: int, width: int) -> "WeakPerspective":
        """The camera of the box (x0, y0, width, height) of this picture, resampled to height x width."""
        scale, corner = _crop_scale(box, height, width, self.centre.dtype)
        return WeakPerspective(
            scale=self.scale * scale,
            centre=(self.centre - corner) * scale,
            pose=self.pose,
            height=height,
            width=width,
        )

    @property
    def _magnification(self) -> Float[Array, "2"]:
        return self.scale

    def to_pinhole(self, depth: float | Float[Array, ""]) -> Pinhole:
        """The pinhole camera that agrees with this one on the plane of the head's origin, put at a depth in mm."""
        t = self.pose.translation()
        pose = jaxlie.SE3.from_rotation_and_translation(self.pose.rotation(), t.at[2].set(depth))
        return Pinhole(focal=self.scale * depth, centre=self.centre, pose=pose, height=self.height, width=self.width)

    @staticmethod
    def from_opencv(
        K: Float[ArrayLike, "3 3"],
        R: Float[ArrayLike, "3 3"],
        t: Float[ArrayLike, "3"],
        height: int,
        width: int,
        pixel_centre: float = 0.5,
    ) -> "WeakPerspective":
        """The weak-perspective camera that agrees with an OpenCV camera at the depth of the head's origin."""
        return Pinhole.from_opencv(K, R, t, height, width, pixel_centre).to_weak_perspective()

    def to_opencv(
        self, depth: float | Float[Array, ""], pixel_centre: float = 0.5
    ) -> tuple[Float[Array, "3 3"], Float[Array, "3 3"], Float[Array, "3"]]:
        """K, R, t of `to_pinhole(depth)`; the larger the depth, the closer the two pictures."""
        return self.to_pinhole(depth).to_opencv(pixel_centre)


def swing_to(tangent: Float[Array, "2"]) -> jaxlie.SO3:
    """The shortest turn from the camera's axis to a ray (x/z, y/z).

    A head turned by it looks along the ray as it did along the axis: what a crop shows of its rotation.
    """
    slope = jnp.sqrt(jnp.sum(tangent**2) + 1e-12)
    axis = jnp.stack([-tangent[1], tangent[0], jnp.zeros(())]) / slope
    return jaxlie.SO3.exp(jnp.arctan(slope) * axis)


def _crop_scale(box, height, width, dtype):
    x0, y0, w, h = (jnp.asarray(v, dtype) for v in box)
    return jnp.stack([width / w, height / h]), jnp.stack([x0, y0])


def _distortion_factor(distortion, r2, limit):
    """What distortion multiplies x / z and y / z by, at squared radii; constant beyond the limit."""
    k1, k2, k3 = distortion
    r2 = jnp.minimum(r2, limit)
    return 1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))


def _growth(distortion, r2):
    """Derivative of the distorted radius by the radius, at squared radii."""
    k1, k2, k3 = distortion
    return 1.0 + r2 * (3.0 * k1 + r2 * (5.0 * k2 + r2 * (7.0 * k3)))


@jax.jit  # its loop would be traced anew at every call outside of jit
def _growth_limit(distortion):
    """The squared radius up to which the distorted radius grows, at most _WIDEST squared."""
    distortion = lax.stop_gradient(distortion)
    r2 = jnp.asarray(np.tan(np.linspace(0.0, np.arctan(_WIDEST), 256)) ** 2, distortion.dtype)
    falls = _growth(distortion, r2) <= 0.0
    after = jnp.argmax(falls)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        grows = _growth(distortion, middle) > 0.0
        return jnp.where(grows, middle, low), jnp.where(grows, high, middle)

    low, _ = lax.fori_loop(0, _BISECTIONS, halve, (r2[after - 1], r2[after]))
    return jnp.where(jnp.any(falls), low, r2[-1])


@jax.jit
def _undistortion_divisor(distortion, distorted_r2):
    """The factor of distortion at the points whose distorted squared radii are given."""
    limit = _growth_limit(distortion)

    def squared_radius(distortion, r2):
        return r2 * _distortion_factor(distortion, r2, limit) ** 2

    # Derivatives pass through the Newton steps alone: they are exact there, the root being found already.
    fixed, target = lax.stop_gradient((distortion, distorted_r2))

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        short = squared_radius(fixed, middle) < target
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    low, high = jnp.zeros_like(target), jnp.full_like(target, 1.0) * limit
    r2, _ = lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    for _ in range(_NEWTON_STEPS):
        slope = _distortion_factor(distortion, r2, limit) * _growth(distortion, r2)
        r2 = r2 - (squared_radius(distortion, r2) - distorted_r2) / jnp.maximum(slope, 1e-3)
        r2 = jnp.clip(r2, 0.0, limit)
    return _distortion_factor(distortion, r2, limit)


def _radial_of_opencv(coefficients):
    """k1, k2, k3 of cv2's distCoeffs, None if all are 0."""
    if coefficients.size not in (4, 5, 8, 12, 14):
        raise ValueError(
            f"distortion: got {coefficients.size} coefficients, cv2 has 4, 5, 8, 12 or 14: (k1, k2, p1, p2, k3, ...)"
        )
    k1, k2, p1, p2, k3, *rest = *coefficients.ravel(), *([0.0] if coefficients.size == 4 else [])
    if p1 != 0 or p2 != 0 or np.any(rest):
        raise ValueError(
            f"distortion: got {coefficients.ravel().tolist()}, but only k1, k2 and k3 of (k1, k2, p1, p2, k3, ...) may "
            "differ from 0. Calibrate with cv2.CALIB_ZERO_TANGENT_DIST, or undistort the photo with cv2.undistort"
        )
    return (k1, k2, k3) if k1 or k2 or k3 else None
