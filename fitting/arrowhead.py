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
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk  # pyright: ignore[reportAttributeAccessIssue]: not in its stubs
from threadpoolctl import threadpool_limits

from fitting.compilation import compiled
from fitting.elimination import Eliminated, Model, complete, eliminate
from fitting.parameters import FaceParameters, Layout, retract, within_limits
from fitting.schedule import PRIORS, Problem, Stage, StageRow, start_stage
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


class _System(NamedTuple):
    """The normal equations of what is shared, and each photo's part in them."""

    hessian: Float[np.ndarray, "shared shared"]  # the photos' own unknowns eliminated
    gradient: Float[np.ndarray, " shared"]
    diagonal: Float[np.ndarray, " shared"]  # of the joint Hessian as it was before
    photos: list[tuple[Model, Eliminated, Float[np.ndarray, "7 tail"]]]


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

    def tail(self, index: int, member: Member, world: "World | None") -> Float[np.ndarray, "7 tail"]:
        """The photo's twist and log focal length as a linear map of the shared unknowns after the coefficients."""
        out = np.zeros((7, self.size - self.coefficients))
        group = self.of_member[index]
        if group is not None:
            out[6, group] = 1.0
        if member.camera is not None and world is not None:
            twist, at = out[:6], len(self.shared_groups)
            twist[:, at : at + 6] = np.eye(6)
            # The camera moves away as a world unit grows; seen as a shift on the head's side.
            towards = member.camera.rotation.T @ member.camera.translation * float(np.exp(world.log_unit))
            twist[:3, at + 6] = np.asarray(world.pose.rotation().as_matrix(), np.float64).T @ towards
        return out

    def free(self, mask: Bool[np.ndarray, " step"]) -> Bool[np.ndarray, " shared"]:
        at = self.layout.block
        groups = np.full(len(self.shared_groups), mask[at("focal")][0])
        world = np.full(7 * self.known_cameras, mask[at("pose")].all())
        return np.concatenate([mask[at("identity")], mask[at("albedo")], groups, world])

    def private(self, index: int, mask: Bool[np.ndarray, " step"]) -> Bool[np.ndarray, " step"]:
        """The free entries that the photo does not share."""
        out = np.zeros_like(mask)
        for name in _PRIVATE:
            shared = (name == "focal" and self.of_member[index] is not None) or (name == "pose" and self.known_cameras)
            if not shared:
                out[self.layout.block(name)] = mask[self.layout.block(name)]
        return out


def solve_together(
    members: Sequence[Member],
    stage: Stage,
    world: World | None = None,
    tell: Callable[[int, dict[str, float]], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> JointSolution:
    """Run one stage on all photos at once; what they share starts as the first member has it.

    The energy is the sum of the photos' own, with the priors of what they share counted once. `world` places the head
    among known cameras, which then all members must have. `tell` is called with each step's energies. `clock` tells the
    seconds that the solution reports; time.process_time counts what other programs do not.
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
        return _Joint(members, stage, world, clock).run(tell)


class _Joint:
    """The state of one joint solve that does not change: rows, sample weights, masks."""

    def __init__(self, members: Sequence[Member], stage: Stage, world: World | None, clock: Callable[[], float]):
        self.members, self.stage, self.first_world, self.clock = members, stage, world, clock
        layout = members[0].face.layout
        self.columns = _Columns(layout, members)
        began = self.clock()
        self.rows = [self._row(i) for i in range(len(members))]
        self.mask = np.asarray(self.rows[0].free) > 0
        # Units that the photos cannot show are not free, whatever their number.
        self.private = [self.columns.private(i, self.mask) for i in range(len(members))]
        self.shared_free = self.columns.free(self.mask)
        faces = _alike([m.face for m in members])
        if world is not None:
            faces = [_placed(f, world, m.camera) for f, m in zip(faces, members, strict=True)]
        started = [_start(m.problem, f, r) for m, f, r in zip(members, faces, self.rows, strict=True)]
        self.weights = [weight for weight, _ in started]
        self.start = [face for _, face in started]
        self.names = tuple(sorted(self.rows[0].weights))
        self.seconds = {"prepare": self.clock() - began, "linearise": 0.0, "solve": 0.0}

    def _row(self, index: int) -> StageRow:
        """The stage for one photo, with its share of the priors of what all photos share."""
        member = self.members[index]
        row = self.stage.row(member.problem)
        group = sum(m.focal_group == member.focal_group for m in self.members)
        # Photos of one camera were mostly taken in one go: their distances are one guess, not many.
        shares: dict[str, float] = dict.fromkeys(_SHARED_PRIORS, 1 / len(self.members))
        shares |= {"focal": 1 / group, "distance": 1 / group}
        # Darker light and paler skin look alike in all photos at once: n priors on light against one on albedo would
        # bleach the skin (its level .71 instead of .38 from one photo; .52 so).
        shares["light"] = 1 / len(self.members)
        weights = {n: w * shares[n] if n in shares and n in PRIORS else w for n, w in row.weights.items()}
        return dataclasses.replace(row, weights=weights)

    def _linearise(self, faces: Sequence[FaceParameters], steps: Sequence[np.ndarray], world: World | None):
        """The faces after a step each, their quadratic models and energies."""
        began = self.clock()
        models = [
            _linearise(m.problem, face, step, world, m.camera, row, weight)
            for m, face, step, row, weight in zip(self.members, faces, steps, self.rows, self.weights, strict=True)
        ]
        energies = np.stack([np.asarray(values, np.float64) for _, _, values in models])
        self.seconds["linearise"] += self.clock() - began
        return [face for face, _, _ in models], [quadratic for _, quadratic, _ in models], energies

    def _system(
        self, quadratics: Sequence[Quadratic], faces: Sequence[FaceParameters], world: World | None, damping: float
    ) -> _System:
        """What the shared unknowns see once each photo has eliminated its own. May raise LinAlgError."""
        layout, n = self.columns.layout, self.columns.coefficients
        identity, albedo = layout.block("identity"), layout.block("albedo")
        lens = slice(layout.block("pose").start, layout.block("focal").stop)
        # The coefficients are the photo's own: only the tail of the map is not the identity.
        mapped = lambda x, tail, out=None: np.concatenate([x[identity], x[albedo], tail.T @ x[lens]], out=out)  # noqa: E731
        whole, cross = np.zeros((layout.size, layout.size)), np.zeros((layout.size, self.columns.size - n))
        corner, gradient = np.zeros((cross.shape[1],) * 2), np.zeros(self.columns.size)
        # In Fortran's order dsyrk adds in place; it fills the upper triangle.
        less, photos = np.zeros((self.columns.size,) * 2, order="F"), []
        for index, (quadratic, face) in enumerate(zip(quadratics, faces, strict=True)):
            low, high = np.asarray(face.limits, np.float64) - np.asarray(face.expression, np.float64)
            hessian, slope = np.asarray(quadratic.hessian), np.asarray(quadratic.gradient, np.float64)
            model = Model(hessian, slope, low, high)
            parts = eliminate(model, layout, self.private[index], damping)
            tail = self.columns.tail(index, self.members[index], world)
            whole += hessian
            if tail.shape[1]:
                cross += hessian[:, lens] @ tail
                corner += tail.T @ hessian[lens, lens] @ tail
            columns = np.empty((self.columns.size, parts.columns.shape[1]), order="F")
            mapped(parts.columns, tail, out=columns)
            less = dsyrk(-1.0, columns, beta=1.0, c=less, overwrite_c=1)
            gradient += mapped(parts.gradient, tail)
            photos.append((model, parts, tail))
        left = np.concatenate([whole[identity], whole[albedo], cross.T])
        right = np.concatenate([cross[identity], cross[albedo], corner])
        hessian = np.concatenate([left[:, identity], left[:, albedo], right], axis=1)
        return _System(hessian + np.triu(less) + np.triu(less, 1).T, gradient, np.diag(hessian).copy(), photos)

    def _solve(self, system: _System, damping: float) -> Float[np.ndarray, " shared"]:
        diagonal = np.diag(system.hessian)
        if not np.isfinite(system.hessian).all():
            raise np.linalg.LinAlgError("the system of the shared unknowns is not finite")
        free = np.flatnonzero(self.shared_free & (diagonal > 0))
        step = np.zeros(len(diagonal))
        if len(free):
            part = system.hessian[np.ix_(free, free)] + np.diag(damping * system.diagonal[free])
            scale = 1 / np.sqrt(np.diag(part))
            part = part * scale * scale[:, None] + 1e-7 * np.eye(len(free))
            step[free] = -scale * cho_solve(cho_factor(part), scale * system.gradient[free])
        return step

    def _propose(self, quadratics, faces, world: World | None, damping: float):
        """Each photo's step and the world after it, or None where single precision has lost definiteness."""
        began = self.clock()
        try:
            system = self._system(quadratics, faces, world, damping)
            step = self._solve(system, damping)
        except np.linalg.LinAlgError:  # more damping brings it back
            self.seconds["solve"] += self.clock() - began
            return None, world
        if world is not None:
            world = world.moved(step[self.columns.world])
        steps = [self._completed(photo, step) for photo in system.photos]
        self.seconds["solve"] += self.clock() - began
        return steps, world

    def _completed(self, photo, step: Float[np.ndarray, " shared"]) -> Float[np.ndarray, " step"]:
        """A photo's flat step: that of what is shared and the best one of its own."""
        (model, parts, tail), layout, n = photo, self.columns.layout, self.columns.coefficients
        identity, albedo = layout.block("identity"), layout.block("albedo")
        shared = np.zeros(layout.size)
        shared[identity], shared[albedo] = step[: identity.stop], step[identity.stop : n]
        shared[layout.block("pose").start : layout.block("focal").stop] = tail @ step[n:]
        return complete(parts, model, layout, shared).astype(np.float32)

    def run(self, tell) -> JointSolution:
        damping, converged, k = 1e-3, False, 0
        best, world = self.start, self.first_world
        rest = [np.zeros(self.columns.layout.size, np.float32)] * len(best)
        best, quadratics, energies = self._linearise(best, rest, world)
        total = float(energies.sum())
        finite = bool(np.isfinite(total))
        history = [energies.sum(axis=0)]
        while finite and k < self.stage.steps and not converged and damping < 1e6:
            steps, candidate_world = self._propose(quadratics, best, world, damping)
            k += 1
            if steps is None:
                damping *= 8
                continue
            candidate, proposal, proposed = self._linearise(best, steps, candidate_world)
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
        try:
            hessian = self._system(quadratics, best, world, 0.0).hessian
        except np.linalg.LinAlgError:
            hessian = np.zeros((self.columns.size,) * 2)
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


@compiled
def _start(problem: Problem, face: FaceParameters, row: StageRow):
    return start_stage(problem, face, row)


@compiled
def _linearise(
    problem: Problem,
    face: FaceParameters,
    step: Float[np.ndarray, " step"] | Float[Array, " step"],
    world: World | None,
    camera: WorldCamera | None,
    row: StageRow,
    weight,
):
    """The face after a step, its quadratic model and energies; one program, as each has its price to start."""
    moved = retract(face, jnp.asarray(step))
    # The step ends on the bounds up to rounding; clipping makes it exact.
    moved = within_limits(moved)
    if world is not None and camera is not None:
        moved = dataclasses.replace(moved, pose=world.head_pose(camera))
    return moved, *linearise_all(problem.terms(row, weight), moved)


@jax.jit
def _placed(face: FaceParameters, world: World, camera: WorldCamera) -> FaceParameters:
    return dataclasses.replace(face, pose=world.head_pose(camera))
