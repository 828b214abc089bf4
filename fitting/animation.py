"""A head over time: weights of expression units, rotations of joints, and where the head stands, at true timestamps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from morphable.model import MorphableModel


@dataclasses.dataclass(frozen=True)
class Animation:
    """What a head does over time, as keys of a player: between two frames weights and translations run straight and
    rotations along the shorter arc.

    The world is the head space of the frame from which the still camera looks; in that frame T_world_head is 1.
    """

    times: Float[np.ndarray, " frame"]  # s, ascending, at least 0; steps may differ
    units: tuple[str, ...]
    weights: Float[np.ndarray, "frame unit"]
    joints: tuple[str, ...]
    rotations: Float[np.ndarray, "frame joint 3"]  # rotation vectors (rad) in the axes of the joint's parent
    T_world_head: Float[np.ndarray, "frame 4 4"]  # rigid; mm

    def __post_init__(self):
        frames = len(self.times)
        shapes = (self.weights.shape, self.rotations.shape, self.T_world_head.shape)
        expected = ((frames, len(self.units)), (frames, len(self.joints), 3), (frames, 4, 4))
        if shapes != expected:
            raise ValueError(
                f"animation of {frames} times, {len(self.units)} units and {len(self.joints)} joints: weights, "
                f"rotations and poses have the shapes {shapes}, expected {expected}."
            )
        if frames == 0:
            raise ValueError("animation without frames: expected at least one. Leave the animation out for a still.")
        if not all(np.isfinite(a).all() for a in (self.times, self.weights, self.rotations, self.T_world_head)):
            bad = [
                k
                for k in range(frames)
                if not all(
                    np.isfinite(a[k]).all() for a in (self.times, self.weights, self.rotations, self.T_world_head)
                )
            ]
            raise ValueError(f"animation: frames {bad[:10]} are not finite. Leave out frames without a fit.")
        # Players keep times as float32: two frames that fall on one number would be one key with two values.
        if self.times[0] < 0 or np.any(np.diff(self.times.astype(np.float32)) <= 0):
            raise ValueError(
                f"animation: got times from {self.times[0]} s with a smallest step of "
                f"{np.diff(self.times).min() if frames > 1 else 0} s; expected them ascending from 0 or later. "
                "Sort the frames and drop repeated ones."
            )

    @property
    def quaternions(self) -> Float[np.ndarray, "frame joint 4"]:
        """The joints' rotations as glTF has them: x, y, z, w, signs such that neighbours lie on the shorter arc."""
        frames, joints = self.rotations.shape[:2]
        flat = Rotation.from_rotvec(self.rotations.reshape(-1, 3)).as_quat().reshape(frames, joints, 4)
        return continuous_quaternions(flat)


def continuous_quaternions(quaternions: Float[np.ndarray, "frame joint 4"]) -> Float[np.ndarray, "frame joint 4"]:
    """The same rotations, each quaternion with the sign that is nearer to the one before."""
    same = np.einsum("fjk,fjk->fj", quaternions[1:], quaternions[:-1]) >= 0
    signs = np.cumprod(np.where(same, 1.0, -1.0), axis=0)
    return np.concatenate([quaternions[:1], quaternions[1:] * signs[..., None]])


def head_poses(cameras: Sequence[Any], reference: int = 0) -> Float[np.ndarray, "frame 4 4"]:
    """T_world_head (mm) of every frame, if the camera of frame `reference` stands still and the head moves instead.

    `cameras` have `to_opencv()`: each frame's T_camera_head. What the still camera sees of the moved head is what each
    frame's own camera sees of the head at rest, as far as all share their intrinsics.
    """
    if not 0 <= reference < len(cameras):
        raise ValueError(f"head_poses: reference frame {reference} of {len(cameras)}; expected one of them.")
    poses = np.tile(np.eye(4), (len(cameras), 1, 1))
    for pose, camera in zip(poses, cameras, strict=True):
        _, R, t = camera.to_opencv()
        # Fits are float32: without this a chain of two such matrices would shear by 1e-7 of the camera's distance.
        pose[:3, :3] = Rotation.from_matrix(np.asarray(R, np.float64)).as_matrix()
        pose[:3, 3] = t
    moved = np.linalg.inv(poses[reference]) @ poses
    moved[reference] = np.eye(4)
    moved[:, 3] = [0, 0, 0, 1]
    return moved


def effective_weights(
    model: MorphableModel, expression: Float[np.ndarray, "frame unit"]
) -> Float[np.ndarray, "frame unit"]:
    """Weights as the mesh obeys them, for programs that only add: `MorphableModel.effective_expression` in NumPy."""
    weights = np.array(expression, np.float64)
    names = model.expression_names
    if "mouthClose" in names and "jawOpen" in names:
        close, jaw = names.index("mouthClose"), names.index("jawOpen")
        weights[:, close] = np.minimum(weights[:, close], weights[:, jaw])
    return weights


def gaze_rotations(
    model: MorphableModel, weights: Float[np.ndarray, "frame unit"]
) -> Float[np.ndarray, "frame joint 3"]:
    """Rotation vectors (rad) of all joints by which the eyeLook units turn the eyes; zeros for the other joints."""
    rig = model.rig
    if rig is None:
        return np.zeros((len(weights), 0, 3))
    rotations = np.zeros((len(weights), len(rig.names), 3))
    units, joints, turns = (np.asarray(a) for a in (rig.gaze.units, rig.gaze.joints, rig.gaze.rotations))
    for unit, joint, turn in zip(units, joints, turns.astype(np.float64), strict=True):
        rotations[:, joint] += weights[:, [unit]] * turn
    return rotations


def animate(
    model: MorphableModel,
    times: Float[np.ndarray, " frame"],
    expression: Float[np.ndarray, "frame unit"],
    cameras: Sequence[Any] | None = None,
    joint_rotations: Float[np.ndarray, "frame joint 3"] | None = None,
    reference: int = 0,
) -> Animation:
    """The animation of a tracked head: in every frame `model.vertices(identity, expression, joint_rotations)`.

    The weights are the effective ones, and the eyes are turned by their joints, exactly. `cameras` are the frames'
    T_camera_head; the camera of frame `reference` is the one to store beside the animation. Without cameras the head
    stands still.
    """
    expression = np.asarray(expression, np.float64)
    if expression.shape != (len(times), len(model.expression_names)):
        raise ValueError(
            f"animate: {len(times)} times and an expression of shape {expression.shape}, expected "
            f"{(len(times), len(model.expression_names))}: a weight for each frame and unit of {model.provenance.name}."
        )
    if cameras is not None and len(cameras) != len(times):
        raise ValueError(f"animate: {len(times)} times and {len(cameras)} cameras, expected one camera for each frame.")
    weights = effective_weights(model, expression)
    rotations = gaze_rotations(model, weights)
    if joint_rotations is not None:
        rotations = rotations + np.asarray(joint_rotations, np.float64)
    return Animation(
        times=np.asarray(times, np.float64),
        units=tuple(model.expression_names),
        weights=weights,
        joints=() if model.rig is None else tuple(model.rig.names),
        rotations=rotations,
        T_world_head=np.tile(np.eye(4), (len(times), 1, 1)) if cameras is None else head_poses(cameras, reference),
    )
