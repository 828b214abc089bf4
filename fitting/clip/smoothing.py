"""The motion of a segment as one least-squares problem: every frame's own terms, and a prior on how heads move.

Poses have a constant velocity but for white noise on their acceleration; the velocity is an unknown of every frame, so
each frame is tied to the next one only, and uneven frames are exact (Barfoot, Tong & Sarkka 2014: batch estimation in
continuous time). Expressions, light and colour offset walk at random. All deviations are physical, so they hold at
every frame rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from fitting.clip.banded import Chain, Rows
from fitting.parameters import unit_limits

Matrices = Float[np.ndarray, "frame 3 3"]


@dataclass(frozen=True)
class MotionPrior:
    """How fast a head moves. A random walk's deviation grows with the root of time, hence the units."""

    translation: float = 120.0  # mm / s^1.5: white noise on the acceleration
    rotation: float = 1.5  # rad / s^1.5
    expression: float = 0.7  # weight / s^0.5 ...
    expression_cutoff: float = 1.5  # ... and deviations from where on the cost is linear: blinks are sudden
    light: float = 0.15  # of its prior's deviations / s^0.5
    offset: float = 0.02  # linear RGB / s^0.5
    start_speed: tuple[float, float] = (300.0, 2.0)  # mm/s and rad/s at a segment's first frame


@dataclass(frozen=True, eq=False)
class Motion:
    """A run of frames as the solver moves it."""

    times: Float[np.ndarray, " frame"]
    rotation: Matrices  # R_camera_head
    place: Float[np.ndarray, "frame 3"]  # of the head in the camera's frame, mm
    velocity: Float[np.ndarray, "frame 6"]  # mm/s and rad/s, in the head's axes
    expression: Float[np.ndarray, "frame unit"]
    light: Float[np.ndarray, "frame 27"]
    offset: Float[np.ndarray, "frame 3"]

    def __len__(self) -> int:
        return len(self.times)

    def part(self, rows: slice) -> "Motion":
        """Some of the frames."""
        return Motion(*(getattr(self, name)[rows] for name in _FIELDS))

    def then(self, other: "Motion") -> "Motion":
        """These frames, and the others after them."""
        return Motion(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in _FIELDS))


_FIELDS = ("times", "rotation", "place", "velocity", "expression", "light", "offset")


@dataclass(frozen=True)
class Blocks:
    """Where a frame's unknowns lie: expression, light, pose (6), offset (3), velocity (6)."""

    units: int

    @property
    def expression(self) -> slice:
        return slice(0, self.units)

    @property
    def light(self) -> slice:
        return slice(self.units, self.units + 27)

    @property
    def pose(self) -> slice:
        return slice(self.units + 27, self.units + 33)

    @property
    def offset(self) -> slice:
        return slice(self.units + 33, self.units + 36)

    @property
    def velocity(self) -> slice:
        return slice(self.units + 36, self.units + 42)

    @property
    def size(self) -> int:
        return self.units + 42


def moved(motion: Motion, step: Rows, limits: Float[np.ndarray, "2 unit"] | None = None) -> Motion:
    """The motion after a step, expression weights between their limits (None: 0 and 1).

    Poses move in their tangent space, as `fitting.parameters.retract` moves them.
    """
    at = Blocks(motion.expression.shape[1])
    low, high = unit_limits(at.units) if limits is None else limits
    turn, shift = exponential(step[:, at.pose])
    return replace(
        motion,
        rotation=_orthonormal(motion.rotation @ turn),
        place=motion.place + np.einsum("tij,tj->ti", motion.rotation, shift),
        velocity=motion.velocity + step[:, at.velocity],
        # The step ends on the bounds up to rounding.
        expression=np.clip(motion.expression + step[:, at.expression], low, high),
        light=motion.light + step[:, at.light],
        offset=motion.offset + step[:, at.offset],
    )


def bounds(motion: Motion, limits: Float[np.ndarray, "2 unit"] | None = None) -> tuple[Rows, Rows]:
    """Between which steps expression weights stay between their limits (None: 0 and 1)."""
    at = Blocks(motion.expression.shape[1])
    lowest, highest = unit_limits(at.units) if limits is None else limits
    low = np.full((len(motion), at.size), -np.inf)
    high = -low
    low[:, at.expression], high[:, at.expression] = lowest - motion.expression, highest - motion.expression
    return low, high


def motion_chain(motion: Motion, prior: MotionPrior, light_sigma: Float[np.ndarray, "27"], starts: bool) -> Chain:
    """The prior's Gauss-Newton model. `starts`: the first frame begins a segment, and its speed is anybody's."""
    at, count = Blocks(motion.expression.shape[1]), len(motion)
    n = at.size
    diagonal, ties = np.zeros((count, n, n)), np.zeros((max(count - 1, 0), n, n))
    gradient, energy = np.zeros((count, n)), 0.0
    if starts:
        speed = np.repeat(1 / np.square(prior.start_speed), 3)
        index = np.arange(at.velocity.start, at.velocity.stop)
        diagonal[0, index, index] += speed
        gradient[0, index] += speed * motion.velocity[0]
        energy += 0.5 * float(speed @ motion.velocity[0] ** 2)
    interval = np.diff(motion.times)
    for block, values, rate, cutoff in (
        (at.expression, motion.expression, np.full(at.units, prior.expression), prior.expression_cutoff),
        (at.light, motion.light, prior.light * light_sigma, 1e9),
        (at.offset, motion.offset, np.full(3, prior.offset), 1e9),
    ):
        index = np.arange(block.start, block.stop)
        precision = 1 / (interval[:, None] * rate**2)
        change = np.diff(values, axis=0)
        square = change**2 * precision
        beyond = square > cutoff**2
        root = np.sqrt(np.maximum(square, 1e-30))
        weight = np.where(beyond, cutoff / root, 1.0)
        energy += 0.5 * float(np.sum(np.where(beyond, 2 * cutoff * root - cutoff**2, square)))
        precision = precision * weight
        diagonal[:-1, index, index] += precision
        diagonal[1:, index, index] += precision
        ties[:, index, index] -= precision
        gradient[:-1, index] -= precision * change
        gradient[1:, index] += precision * change
    energy += _pose_ties(motion, prior, at, diagonal, ties, gradient)
    return Chain(diagonal, ties, gradient, energy)


def _pose_ties(motion, prior, at: Blocks, diagonal, ties, gradient) -> float:
    """White noise on the acceleration: adds to the blocks, returns the energy.

    With the twist ξ from one pose to the next, the residual (ξ - Δt v, v' - v) has the covariance
    q ⊗ [[Δt³/3, Δt²/2], [Δt²/2, Δt]].
    """
    if len(motion) < 2:
        return 0.0
    interval = np.diff(motion.times)
    relative = motion.rotation[:-1].transpose(0, 2, 1)
    turn = relative @ motion.rotation[1:]
    shift = np.einsum("tij,tj->ti", relative, np.diff(motion.place, axis=0))
    twist = logarithm(turn, shift)
    before, after = motion.velocity[:-1], motion.velocity[1:]
    residual = np.concatenate([twist - interval[:, None] * before, after - before], axis=1)
    spectral = np.repeat(1 / np.square([prior.translation, prior.rotation]), 3)
    inverse = np.empty((len(interval), 2, 2))
    inverse[:, 0, 0], inverse[:, 1, 1] = 12 / interval**3, 4 / interval
    inverse[:, 0, 1] = inverse[:, 1, 0] = -6 / interval**2
    full = np.zeros((len(interval), 2, 6, 2, 6))
    same = np.arange(6)
    full[:, :, same, :, same] = inverse * spectral[:, None, None, None]  # numpy puts the indexed axis first
    full = full.reshape(-1, 12, 12)
    eye, nothing = np.eye(6)[None].repeat(len(interval), 0), np.zeros((len(interval), 6, 6))
    stretched = interval[:, None, None] * eye
    here = np.concatenate(
        [
            np.concatenate([-inverse_right_jacobian(-twist), -stretched], axis=2),
            np.concatenate([nothing, -eye], axis=2),
        ],
        axis=1,
    )
    there = np.concatenate(
        [np.concatenate([inverse_right_jacobian(twist), nothing], axis=2), np.concatenate([nothing, eye], axis=2)],
        axis=1,
    )
    index = np.r_[np.arange(at.pose.start, at.pose.stop), np.arange(at.velocity.start, at.velocity.stop)]
    weighted_here, weighted_there = (np.einsum("tji,tjk->tik", x, full) for x in (here, there))
    for rows, matrix in ((slice(None, -1), weighted_here @ here), (slice(1, None), weighted_there @ there)):
        diagonal[rows, index[:, None], index[None, :]] += matrix
    ties[:, index[:, None], index[None, :]] += weighted_here @ there
    gradient[:-1, index] += np.einsum("tij,tj->ti", weighted_here, residual)
    gradient[1:, index] += np.einsum("tij,tj->ti", weighted_there, residual)
    return 0.5 * float(np.einsum("ti,tij,tj->", residual, full, residual))


# ------------------------------------------------------------------------------------------------------ rigid motions


def exponential(twist: Float[np.ndarray, "frame 6"]) -> tuple[Matrices, Float[np.ndarray, "frame 3"]]:
    """Rotation and translation of a twist (translation first), as jaxlie.SE3.exp."""
    omega = twist[:, 3:]
    turn = Rotation.from_rotvec(omega).as_matrix()
    return turn, np.einsum("tij,tj->ti", _left_jacobian(omega), twist[:, :3])


def logarithm(turn: Matrices, shift: Float[np.ndarray, "frame 3"]) -> Float[np.ndarray, "frame 6"]:
    """The inverse of `exponential`."""
    omega = Rotation.from_matrix(turn).as_rotvec()
    return np.concatenate([np.linalg.solve(_left_jacobian(omega), shift[..., None])[..., 0], omega], axis=1)


def _skew(v: Float[np.ndarray, "frame 3"]) -> Matrices:
    out = np.zeros((len(v), 3, 3))
    out[:, 0, 1], out[:, 0, 2], out[:, 1, 2] = -v[:, 2], v[:, 1], -v[:, 0]
    return out - out.transpose(0, 2, 1)


def _left_jacobian(omega: Float[np.ndarray, "frame 3"]) -> Matrices:
    angle = np.linalg.norm(omega, axis=1)[:, None, None]
    skew = _skew(omega)
    small = angle < 1e-4
    safe = np.where(small, 1.0, angle)
    first = np.where(small, 0.5, (1 - np.cos(safe)) / safe**2)
    second = np.where(small, 1 / 6, (safe - np.sin(safe)) / safe**3)
    return np.eye(3) + first * skew + second * skew @ skew


def inverse_right_jacobian(twist: Float[np.ndarray, "frame 6"]) -> Float[np.ndarray, "frame 6 6"]:
    """How log(exp(twist) exp(δ)) moves with δ, by its series: exact to 1e-4 for the third of a radian of a frame."""
    ad = np.zeros((len(twist), 6, 6))
    ad[:, :3, :3] = ad[:, 3:, 3:] = _skew(twist[:, 3:])
    ad[:, :3, 3:] = _skew(twist[:, :3])
    return np.eye(6) + 0.5 * ad + ad @ ad / 12


def _orthonormal(rotation: Matrices) -> Matrices:
    """Products of many rotations drift; once around by quaternions brings them back."""
    return Rotation.from_matrix(rotation).as_matrix()


def added(chains: Sequence[Chain]) -> Chain:
    """The sum of energies."""
    first = chains[0]
    for other in chains[1:]:
        first = Chain(
            first.diagonal + other.diagonal,
            first.ties + other.ties,
            first.gradient + other.gradient,
            first.energy + other.energy,
        )
    return first
