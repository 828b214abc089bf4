"""One person in many photos: Levenberg-Marquardt whose Hessian is an arrowhead.

Identity, albedo, a focal length that photos have in common and, where cameras are known, the head's place among them
are shared; expression, light, colour offset, and whatever of pose and focal length is not shared, belong to one photo.
No term joins the private unknowns of two photos, so each photo's are eliminated by itself (Schur complement; Triggs et
al. 2000, section 6.1), the small system of the shared ones is solved, and each photo completes its own step. Time and
memory are linear in the number of photos, and all photos run through the same compiled programs, one after the other.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from fitting.parameters import FaceParameters, Layout, retract
from fitting.schedule import PRIORS, Problem, Stage, StageRow, start_stage
from fitting.solvers import bounded_minimiser
from fitting.terms import Quadratic, linearise_all

_SHARED_PRIORS = ("identity", "albedo")
_PRIVATE = ("expression", "light", "pose", "focal", "offset")


class WorldCamera(eqx.Module):
    """A camera whose place is known in a world of its own unit: x_camera = rotation · x_world + translation."""

    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]  # world units


class World(eqx.Module):
    """Where the head stands in the world of known cameras: a similarity."""

    pose: jaxlie.SE3  # T_world_head, both in mm
    log_unit: Float[Array, ""]  # logarithm of one world unit in mm

    def head_pose(self, camera: WorldCamera) -> jaxlie.SE3:
        """T_camera_head in mm."""
        offset = jnp.asarray(camera.translation) * jnp.exp(self.log_unit)
        rotation = jaxlie.SO3.from_matrix(jnp.asarray(camera.rotation))
        return jaxlie.SE3.from_rotation_and_translation(rotation, offset) @ self.pose

    def moved(self, step: Float[np.ndarray, "7"]) -> "World":
        """After a twist on the head's side and a change of the unit's logarithm."""
        return World(self.pose @ jaxlie.SE3.exp(jnp.asarray(step[:6], jnp.float32)), self.log_unit + float(step[6]))


@dataclasses.dataclass(frozen=True)
class Member:
    """One photo of a joint fit. Members of one focal group have one focal length, up to the zoom of their crops."""

    problem: Problem
    face: FaceParameters
    focal_group: int
    camera: WorldCamera | None = None


@dataclasses.dataclass(frozen=True)
class JointSolution:
    """Where a joint solve stopped."""

    faces: tuple[FaceParameters, ...]  # of the members, in their order
    energies: Float[np.ndarray, "photo term"]
    history: Float[np.ndarray, "row term"]  # summed over photos, of the accepted faces
    names: tuple[str, ...]  # of the terms, sorted
    steps: int
    converged: bool
    finite: bool
    world: World | None
    quadratics: tuple[Quadratic, ...]  # of each photo at its face, with its share of the priors of what is shared
    hessian: Float[np.ndarray, "shared shared"]  # of the shared unknowns, the private ones eliminated
    seconds: dict[str, float]  # "prepare", "linearise", "solve"

    @property
    def result(self) -> str:
        """In words: "converged", "steps exhausted" or "non-finite"."""
        if not self.finite:
            return "non-finite"
        return "converged" if self.converged else "steps exhausted"


class _Columns:
    """Where the shared unknowns lie: identity, albedo, one focal length per group, and the head in the world."""

    def __init__(self, layout: Layout, members: Sequence[Member]):
        groups = [m.focal_group for m in members]
        self.shared_groups = sorted({g for g in groups if groups.count(g) > 1})
        self.of_member = [self.shared_groups.index(g) if g in self.shared_groups else None for g in groups]
        self.layout, self.known_cameras = layout, members[0].camera is not None
        self.coefficients = layout.identity_rank + layout.albedo_rank
        self.world = slice(self.coefficients + len(self.shared_groups), None)
        self.size = self.coefficients + len(self.shared_groups) + 7 * self.known_cameras

    def tail(self, index: int, face: FaceParameters, member: Member, unit: float) -> Float[np.ndarray, "7 tail"]:
        """The photo's log focal length and twist as a linear map of the shared unknowns after the coefficients."""
        out = np.zeros((7, self.size - self.coefficients))
        group = self.of_member[index]
        if group is not None:
            out[0, group] = 1.0
        if member.camera is not None:
            twist, at = out[1:], len(self.shared_groups)
            twist[:, at : at + 6] = np.eye(6)
            # The camera moves away as a world unit grows; seen as a shift on the head's side.
            rotation = np.asarray(face.pose.rotation().as_matrix(), np.float64)
            twist[:3, at + 6] = rotation.T @ member.camera.translation * unit
        return out

    def free(self, mask: Bool[np.ndarray, " step"]) -> Bool[np.ndarray, " shared"]:
        at = self.layout.block
        groups = np.full(len(self.shared_groups), mask[at("focal")][0])
        world = np.full(7 * self.known_cameras, mask[at("pose")].all())
        return np.concatenate([mask[at("identity")], mask[at("albedo")], groups, world])

    def private(self, index: int, mask: Bool[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
        """The free entries that the photo does not share."""
        out = np.zeros_like(mask)
        for name in _PRIVATE:
            shared = (name == "focal" and self.of_member[index] is not None) or (name == "pose" and self.known_cameras)
            if not shared:
                out[self.layout.block(name)] = mask[self.layout.block(name)]
        return out.astype(np.float32)


def solve_together(
    members: Sequence[Member],
    stage: Stage,
    world: World | None = None,
    tell: Callable[[int, dict[str, float]], None] | None = None,
) -> JointSolution:
    """Run one stage on all photos at once; what they share starts as the first member has it.

    The energy is the sum of the photos' own, with the priors of what they share counted once. `world` places the head
    among known cameras, which then all members must have. `tell` is called with each step's energies.
    """
    if not members:
        raise ValueError("solve_together: got no photos, expected at least one.")
    if any((m.camera is None) != (world is None) for m in members):
        known = sum(m.camera is not None for m in members)
        raise ValueError(
            f"solve_together: got {known} of {len(members)} photos with known cameras and world={world is not None}; "
            "expected cameras for all photos and a world, or neither."
        )
    if stage.solver is not None or stage.segments is not None:
        raise ValueError(f"stage {stage.name!r}: a joint fit has its own solver and no segments; drop them.")
    # LAPACK's own threads spin between the small factorisations and take the cores that XLA needs.
    with threadpool_limits(1, user_api="blas"):
        return _Joint(members, stage, world).run(tell)


class _Joint:
    """The state of one joint solve that does not change: rows, sample weights, masks."""

    def __init__(self, members: Sequence[Member], stage: Stage, world: World | None):
        self.members, self.stage, self.first_world = members, stage, world
        layout = members[0].face.layout
        self.columns = _Columns(layout, members)
        began = time.perf_counter()
        self.rows = [self._row(i) for i in range(len(members))]
        self.mask = np.asarray(self.rows[0].free) > 0
        # Units that the photos cannot show are not free, whatever their number.
        self.private = [jnp.asarray(self.columns.private(i, self.mask)) for i in range(len(members))]
        self.shared_free = self.columns.free(self.mask)
        faces = _alike([m.face for m in members])
        if world is not None:
            poses = [world.head_pose(m.camera) for m in members if m.camera is not None]
            faces = [dataclasses.replace(f, pose=p) for f, p in zip(faces, poses, strict=True)]
        started = [_start(m.problem, f, r) for m, f, r in zip(members, faces, self.rows, strict=True)]
        self.weights = [weight for weight, _ in started]
        self.start = [face for _, face in started]
        self.names = tuple(sorted(self.rows[0].weights))
        self.seconds = {"prepare": time.perf_counter() - began, "linearise": 0.0, "solve": 0.0}

    def _row(self, index: int) -> StageRow:
        """The stage for one photo, with its share of the priors of what all photos share."""
        member = self.members[index]
        row = self.stage.row(member.problem)
        group = sum(m.focal_group == member.focal_group for m in self.members)
        shares: dict[str, float] = {**dict.fromkeys(_SHARED_PRIORS, 1 / len(self.members)), "focal": 1 / group}
        weights = {n: w * shares[n] if n in shares and n in PRIORS else w for n, w in row.weights.items()}
        return dataclasses.replace(row, weights=weights)

    def _linearise(self, faces: Sequence[FaceParameters]) -> tuple[list[Quadratic], np.ndarray]:
        began = time.perf_counter()
        models = [
            _linearise(m.problem, face, row, weight)
            for m, face, row, weight in zip(self.members, faces, self.rows, self.weights, strict=True)
        ]
        energies = np.stack([np.asarray(values, np.float64) for _, values in models])
        self.seconds["linearise"] += time.perf_counter() - began
        return [quadratic for quadratic, _ in models], energies

    def _system(self, quadratics, faces, world: World | None, damping: float):
        """Hessian and gradient of the shared unknowns with the private ones eliminated; the photos' local maps."""
        hessian, gradient = np.zeros((self.columns.size,) * 2), np.zeros(self.columns.size)
        diagonal, maps = np.zeros(self.columns.size), []
        damped, n = jnp.asarray(damping, jnp.float32), self.columns.coefficients
        unit = 1.0 if world is None else float(np.exp(world.log_unit))
        parts = [_eliminate(*args, damped) for args in zip(quadratics, faces, self.private, strict=True)]
        for index, (part, face, member) in enumerate(zip(parts, faces, self.members, strict=True)):
            local, slope, own = (np.asarray(x, np.float64) for x in part)
            tail = self.columns.tail(index, face, member, unit)
            maps.append(tail)
            # The coefficients are the photo's own: only the tail of the map is not the identity.
            hessian[:n, :n] += local[:n, :n]
            hessian[:n, n:] += local[:n, n:] @ tail
            hessian[n:, n:] += tail.T @ local[n:, n:] @ tail
            gradient += np.concatenate([slope[:n], tail.T @ slope[n:]])
            diagonal += np.concatenate([own[:n], (tail**2).T @ own[n:]])
        hessian[n:, :n] = hessian[:n, n:].T
        return hessian, gradient, damping * diagonal, maps

    def _solve(self, hessian, gradient, extra):
        free = np.flatnonzero(self.shared_free & (np.diag(hessian) > 0))
        step = np.zeros(len(gradient))
        if len(free):
            part = hessian[np.ix_(free, free)] + np.diag(extra[free])
            scale = 1 / np.sqrt(np.diag(part))
            part = part * scale * scale[:, None] + 1e-7 * np.eye(len(free))
            step[free] = -scale * cho_solve(cho_factor(part), scale * gradient[free])
        return step

    def _propose(self, quadratics, faces, world: World | None, damping: float):
        began = time.perf_counter()
        hessian, gradient, extra, maps = self._system(quadratics, faces, world, damping)
        try:
            step = self._solve(hessian, gradient, extra)
        except np.linalg.LinAlgError:  # single precision has lost definiteness: more damping brings it back
            return None, world
        damped = jnp.asarray(damping, jnp.float32)
        n = self.columns.coefficients
        own = [jnp.asarray(np.concatenate([step[:n], tail @ step[n:]]), jnp.float32) for tail in maps]
        moved = [
            _complete(quadratic, face, private, damped, shared)
            for quadratic, face, private, shared in zip(quadratics, faces, self.private, own, strict=True)
        ]
        if world is not None:
            world = world.moved(step[self.columns.world])
            poses = [world.head_pose(m.camera) for m in self.members if m.camera is not None]
            moved = [dataclasses.replace(face, pose=pose) for face, pose in zip(moved, poses, strict=True)]
        jax.block_until_ready(moved)
        self.seconds["solve"] += time.perf_counter() - began
        return moved, world

    def run(self, tell) -> JointSolution:
        damping, converged, k = 1e-3, False, 0
        best, world = self.start, self.first_world
        quadratics, energies = self._linearise(best)
        total = float(energies.sum())
        finite = bool(np.isfinite(total))
        history = [energies.sum(axis=0)]
        while finite and k < self.stage.steps and not converged and damping < 1e6:
            candidate, candidate_world = self._propose(quadratics, best, world, damping)
            k += 1
            if candidate is None:
                damping *= 8
                continue
            proposal, proposed = self._linearise(candidate)
            lower = float(proposed.sum())
            if lower < total:  # false for what is not finite
                converged = total - lower < self.stage.tolerance * abs(total)
                best, world, quadratics, energies, total = candidate, candidate_world, proposal, proposed, lower
                damping = max(damping * 0.3, 1e-6)
            else:
                damping *= 8
            history.append(energies.sum(axis=0))
            if tell is not None:
                tell(k, dict(zip(self.names, history[-1].tolist(), strict=True)))
        converged = converged or damping >= 1e6
        hessian = self._system(quadratics, best, world, 0.0)[0] if finite else np.zeros((self.columns.size,) * 2)
        return JointSolution(
            faces=tuple(best),
            energies=energies,
            history=np.stack(history),
            names=self.names,
            steps=k,
            converged=converged and finite,
            finite=finite,
            world=world,
            quadratics=tuple(quadratics),
            hessian=hessian,
            seconds=self.seconds,
        )


def _alike(faces: Sequence[FaceParameters]) -> list[FaceParameters]:
    first = faces[0]
    return [dataclasses.replace(face, identity=first.identity, albedo=first.albedo) for face in faces]


@eqx.filter_jit
def _start(problem: Problem, face: FaceParameters, row: StageRow):
    return start_stage(problem, face, row)


@eqx.filter_jit
def _linearise(problem: Problem, face: FaceParameters, row: StageRow, weight):
    return linearise_all(problem.terms(row, weight), face)


def _order(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the flat step: what may be shared (identity, albedo, focal, pose), and what may be private."""
    pick = lambda names: np.concatenate([np.arange(layout.size)[layout.block(n)] for n in names])  # noqa: E731
    return pick(("identity", "albedo", "focal", "pose")), pick(_PRIVATE)


def _private_problem(quadratic: Quadratic, face: FaceParameters, free, damping, shared_step):
    """Bounded minimisation over the private unknowns, the shared ones moved by a step; and which rest on a bound."""
    shared, private = _order(face.layout)
    hessian = quadratic.hessian[jnp.ix_(private, private)]
    hessian = hessian + jnp.diag(damping * jnp.diag(hessian))
    gradient = quadratic.gradient[private] + quadratic.hessian[jnp.ix_(private, shared)] @ shared_step
    bounded = slice(0, face.layout.unit_count)  # expression comes first among the private ones
    value, fixed = bounded_minimiser(
        hessian, gradient, free[private] > 0, bounded, -face.expression, 1.0 - face.expression
    )
    return hessian, value, fixed


@eqx.filter_jit
def _eliminate(quadratic: Quadratic, face: FaceParameters, free, damping):
    """The photo's Hessian and gradient of what it shares, its private unknowns eliminated, and the plain diagonal.

    Expression weights that come to rest on a bound are taken as fixed there.
    """
    shared, private = _order(face.layout)
    none = jnp.zeros(len(shared))
    hessian, value, fixed = _private_problem(quadratic, face, free, damping, none)
    count = face.layout.unit_count
    held = jnp.concatenate([fixed, jnp.zeros(len(private) - count, bool)]) | (free[private] <= 0)
    coupling = jnp.where(held[:, None], 0.0, quadratic.hessian[jnp.ix_(private, shared)])
    system = jnp.where(held[:, None] | held[None, :], 0.0, hessian) + jnp.diag(jnp.where(held, 1.0, 0.0))
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diag(system), 1e-20))
    system = system * scale[:, None] * scale[None, :] + 1e-7 * jnp.eye(len(private))
    factor = jnp.linalg.cholesky(system)
    solved = jax.lax.linalg.triangular_solve(factor, scale[:, None] * coupling, left_side=True, lower=True)
    own = quadratic.hessian[jnp.ix_(shared, shared)]
    # At the minimum over the private unknowns the shared gradient has moved by the coupling times their step.
    slope = quadratic.gradient[shared] + quadratic.hessian[jnp.ix_(shared, private)] @ value
    return own - solved.T @ solved, slope, jnp.diag(own)


@eqx.filter_jit
def _complete(quadratic: Quadratic, face: FaceParameters, free, damping, shared_step) -> FaceParameters:
    """The face after a step of what is shared and the best step of its own."""
    shared, private = _order(face.layout)
    _, value, _ = _private_problem(quadratic, face, free, damping, shared_step)
    step = jnp.zeros(face.layout.size).at[shared].add(shared_step).at[private].add(value)
    moved = retract(face, step)
    # The step ends on the bounds up to rounding; clipping makes it exact.
    return dataclasses.replace(moved, expression=jnp.clip(moved.expression, 0.0, 1.0))
