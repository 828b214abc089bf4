"""Cameras: head space (mm) to the picture (px), with conversions to and from OpenCV.

Camera axes are OpenCV's: x right, y down, z forward. Pixel (row, column) covers [column, column + 1) x [row, row + 1)
and has its centre at + 0.5, so that crops and changes of size are exact in continuous coordinates.
"""

from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, ArrayLike, Float


class AbstractCamera(eqx.Module):
    """A camera that looks at a head; subclasses say how camera space becomes a picture."""

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


class Pinhole(AbstractCamera):
    """A pinhole camera without lens distortion."""

    focal: Float[Array, "2"]  # px, along u and v
    centre: Float[Array, "2"]  # px, the principal point
    pose: jaxlie.SE3  # T_camera_head
    height: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    perspective: ClassVar[bool] = True
    near: ClassVar[float] = 1.0

    def project_camera(self, points: Float[Array, "point 3"]) -> Float[Array, "point 2"]:
        """Pixels of points in camera space; points at or behind the camera's plane have no meaningful pixel."""
        z = points[:, 2:]
        # A derivative through a vertex behind the camera must not become NaN: it is never drawn.
        return self.focal[None] * points[:, :2] / jnp.where(z > 1e-6, z, 1e-6) + self.centre[None]

    def towards_camera(self, points: Float[Array, "point 3"]) -> Float[Array, "point 3"]:
        """Unit vectors of camera space from points in camera space to the centre of projection."""
        return -points / jnp.sqrt(jnp.sum(points**2, axis=1, keepdims=True) + 1e-12)

    def pixel_size(self, depth: Float[Array, "point"]) -> Float[Array, "point"]:
        """Side in mm of what one pixel sees of a surface that faces the camera, at depths in mm."""
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
        )

    @staticmethod
    def from_opencv(
        K: Float[ArrayLike, "3 3"],
        R: Float[ArrayLike, "3 3"],
        t: Float[ArrayLike, "3"],
        height: int,
        width: int,
        pixel_centre: float = 0.5,
    ) -> "Pinhole":
        """The camera x = K (R x_head + t), head space and t in mm.

        `pixel_centre` says where K puts the centre of the first pixel: 0.5 as this project and COLMAP do, 0 as
        cv2's own functions do. K must have no skew.
        """
        K, R, t = (jnp.asarray(v, dtype=jnp.result_type(float)) for v in (K, R, t))
        pose = jaxlie.SE3.from_rotation_and_translation(jaxlie.SO3.from_matrix(R), t)
        focal, centre = jnp.stack([K[0, 0], K[1, 1]]), K[:2, 2] + (0.5 - pixel_centre)
        return Pinhole(focal=focal, centre=centre, pose=pose, height=height, width=width)

    def to_opencv(
        self, pixel_centre: float = 0.5
    ) -> tuple[Float[Array, "3 3"], Float[Array, "3 3"], Float[Array, "3"]]:
        """K, R, t of `from_opencv`."""
        u, v = self.centre + (pixel_centre - 0.5)
        zero, one = jnp.zeros_like(u), jnp.ones_like(u)
        K = jnp.stack([self.focal[0], zero, u, zero, self.focal[1], v, zero, zero, one]).reshape(3, 3)
        return K, self.rotation, self.pose.translation()

    def to_weak_perspective(self, depth: float | Float[Array, ""] | None = None) -> "WeakPerspective":
        """The weak-perspective camera that agrees with this one at a camera depth in mm (default: head origin)."""
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


def _crop_scale(box, height, width, dtype):
    x0, y0, w, h = (jnp.asarray(v, dtype) for v in box)
    return jnp.stack([width / w, height / h]), jnp.stack([x0, y0])
