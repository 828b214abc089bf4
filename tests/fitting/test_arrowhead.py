import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fitting.arrowhead import Member, World, WorldCamera, solve_together
from fitting.energies import project
from fitting.parameters import FaceParameters, start_parameters
from fitting.schedule import Problem, Stage, run_stage
from fitting.solvers import LevenbergMarquardt

UNITS = ("jawOpen", "mouthSmileLeft", "mouthSmileRight", "browInnerUp")  # which landmarks show well
SHAPE = ("identity", "expression", "pose", "focal")
LANDMARKS = Stage("landmarks", SHAPE, 12, without=("photometric", "distance", "light"), tolerance=1e-5)


def so3(degrees) -> jaxlie.SO3:
    return jaxlie.SO3(jnp.asarray(Rotation.from_euler("xyz", degrees, True).as_quat(scalar_first=True), jnp.float32))


def pose(degrees, place) -> jaxlie.SE3:
    return jaxlie.SE3.from_rotation_and_translation(so3(degrees), jnp.asarray(place, jnp.float32))


TURNS = ((178.0, 4.0, 3.0), (186.0, -25.0, 0.0), (176.0, 30.0, -5.0))


@pytest.fixture(scope="module")
def truth(fitter) -> list[FaceParameters]:
    """One person in three photos."""
    model, rng = fitter.solver_model, np.random.default_rng(0)
    mean = start_parameters(model.identity_rank, model.free_units.shape[0], model.albedo_rank)
    identity = jnp.asarray(rng.normal(size=model.identity_rank), jnp.float32)
    seen = [fitter.model.expression_names.index(name) for name in UNITS]
    faces = []
    for k, turn in enumerate(TURNS):
        expression = np.zeros(model.free_units.shape[0], np.float32)
        expression[seen] = 0.5 + 0.1 * rng.normal(size=len(UNITS))
        faces.append(
            dataclasses.replace(
                mean,
                identity=identity,
                expression=jnp.asarray(expression),
                pose=pose(turn, [20.0 * k, -10.0, 800.0 + 100 * k]),
                log_focal=jnp.float32(np.log(900.0)),
            )
        )
    return faces


@pytest.fixture(scope="module")
def problem(fitted, fitter) -> Problem:
    """The bundled photo's, with inner landmarks alone and the units that they show."""
    free = np.isin(fitter.model.expression_names, UNITS).astype(np.float32)
    sigma = np.full(68, 1.0, np.float32)
    sigma[:17] = np.inf  # they slide along an outline, which the truth does not tell
    base = fitted.inside[0]
    return dataclasses.replace(
        base,
        model=eqx.tree_at(lambda m: m.free_units, base.model, jnp.asarray(free)),
        sigma_px=jnp.asarray(sigma),
        sigma_along_px=jnp.full(17, np.inf, jnp.float32),
        shared_mm=jnp.zeros_like(base.shared_mm),
        log_focal=jnp.array([np.log(900.0)], jnp.float32),
        log_focal_sigma=jnp.array([0.1], jnp.float32),
    )


def observed(problem: Problem, face: FaceParameters, noise_px: float = 0.0, seed: int = 0) -> Problem:
    """The problem with the landmarks that a face shows."""
    at = jax.jit(lambda f: project(f, problem.model.landmarks.positions(f.identity, f.expression), problem.centre))(
        face
    )
    moved = np.asarray(at) + noise_px * np.random.default_rng(seed).normal(size=(68, 2))
    return dataclasses.replace(problem, points_px=jnp.asarray(moved, jnp.float32))


def beside(face: FaceParameters, seed: int = 0) -> FaceParameters:
    """A start near a face."""
    rng = np.random.default_rng(seed)
    turn = jaxlie.SE3.exp(jnp.asarray(rng.normal(size=6) * [3, 3, 3, 0.03, 0.03, 0.03], jnp.float32))
    return dataclasses.replace(
        face,
        identity=0.9 * face.identity,
        expression=0.95 * face.expression,
        pose=face.pose @ turn,
        log_focal=face.log_focal + 0.02,
    )


@pytest.fixture(scope="module")
def members(problem, truth) -> list[Member]:
    """Noisy landmarks; every photo with a focal length of its own."""
    return [Member(observed(problem, f, 1.0, k), beside(f, k), k) for k, f in enumerate(truth)]


# A world turned against the cameras, one unit of which is 10 cm; the head stands somewhere in it.
WORLD = World(pose((20.0, 40.0, -10.0), (150.0, 60.0, -40.0)), jnp.float32(np.log(100.0)))


def camera_at(face: FaceParameters, world: World = WORLD) -> WorldCamera:
    """The camera that sees the head in this pose."""
    seen = face.pose @ world.pose.inverse()
    translation = np.asarray(seen.translation(), np.float64) / float(np.exp(world.log_unit))
    return WorldCamera(np.asarray(seen.rotation().as_matrix(), np.float64), translation)


def in_world(truth, problem, noise_px=0.0) -> list[Member]:
    """Photos by known cameras."""
    return [
        Member(
            observed(problem, f, noise_px, k), dataclasses.replace(beside(f, k), log_focal=f.log_focal), k, camera_at(f)
        )
        for k, f in enumerate(truth)
    ]


def moved_world(share: float = 1.0) -> World:
    """A start for the similarity that is off by 6 degrees, 4 cm and a tenth, or a share of that."""
    off = jaxlie.SE3.exp(share * jnp.array([30.0, -20.0, 15.0, 0.06, -0.07, 0.05]))
    return World(WORLD.pose @ off, WORLD.log_unit + 0.1 * share)


def test_head_in_world_of_known_cameras(truth):
    for face in truth:
        np.testing.assert_allclose(
            np.asarray(WORLD.head_pose(camera_at(face)).as_matrix()), np.asarray(face.pose.as_matrix()), atol=1e-3
        )


def dense_step(solution, members, shared_focal: bool, world: World | None, damping=1e-3):
    """Each photo's flat step by the joint normal equations, written out with all unknowns of all photos."""
    layout = solution.faces[0].layout
    coefficients = np.r_[np.arange(layout.identity_rank), np.arange(layout.size)[layout.block("albedo")]]
    twist, focal = layout.block("pose"), layout.block("focal").start
    columns: list[np.ndarray] = []  # (photo, step) each: what one unknown of all moves in every photo

    def unknown(entries: dict):
        column = np.zeros((len(members), layout.size))
        for (k, entry), value in entries.items():
            column[k, entry] = value
        columns.append(column.reshape(-1))

    photos = range(len(members))
    for entry in coefficients:
        unknown({(k, entry): 1.0 for k in photos})
    if shared_focal:
        unknown({(k, focal): 1.0 for k in photos})
    if world is not None:
        for axis in np.eye(7):
            # By central differences of the poses that the world gives.
            ahead, behind = (
                [world.moved(sign * 0.02 * axis).head_pose(m.camera) for m in members] for sign in (1.0, -1.0)
            )
            column = np.zeros((len(members), layout.size))
            for k, (a, b) in enumerate(zip(ahead, behind, strict=True)):
                column[k, twist] = np.asarray((b.inverse() @ a).log()) / 0.04
            columns.append(column.reshape(-1))
    units = np.flatnonzero(np.asarray(members[0].problem.model.free_units))
    private = [layout.block("expression").start + unit for unit in units]
    private += [] if world is not None else [*range(twist.start, twist.stop)]
    private += [] if shared_focal else [focal]
    for k in photos:
        for entry in private:
            unknown({(k, entry): 1.0})
    basis = np.stack(columns, axis=1)
    hessian = np.zeros((basis.shape[1],) * 2)
    gradient = np.zeros(basis.shape[1])
    for k, quadratic in enumerate(solution.quadratics):
        part = basis.reshape(len(members), layout.size, -1)[k]
        hessian += part.T @ np.asarray(quadratic.hessian, np.float64) @ part
        gradient += part.T @ np.asarray(quadratic.gradient, np.float64)
    free = np.diag(hessian) > 1e-9
    system = (hessian + damping * np.diag(np.diag(hessian)))[np.ix_(free, free)]
    return (basis[:, free] @ -np.linalg.solve(system, gradient[free])).reshape(len(members), layout.size)


def flat_step(before: FaceParameters, after: FaceParameters) -> np.ndarray:
    layout = before.layout
    step = np.zeros(layout.size)
    for name in ("identity", "expression", "albedo", "light", "focal", "offset"):
        step[layout.block(name)] = np.asarray(after.block(name)) - np.asarray(before.block(name))
    step[layout.block("pose")] = np.asarray((before.pose.inverse() @ after.pose).log())
    return step


@pytest.mark.parametrize("case", ["free", "shared focal", "known cameras"])
def test_a_step_is_that_of_the_dense_equations(members, truth, problem, case):
    world = moved_world(0.03) if case == "known cameras" else None
    if world is not None:
        # While the pose rests, brows and smiles are blamed for its errors, and meet their bounds on the way.
        jaw_alone = np.asarray(problem.model.free_units).copy()
        jaw_alone[jaw_alone.nonzero()[0][1:]] = 0.0
        problem = eqx.tree_at(lambda p: p.model.free_units, problem, jnp.asarray(jaw_alone))
        members = in_world(truth, problem, 0.3)
    if case == "shared focal":
        members = [dataclasses.replace(m, focal_group=0) for m in members]
    # Weights near one half, whose prior must not draw those that the landmarks do not show to their bounds.
    members = [
        dataclasses.replace(m, problem=dataclasses.replace(m.problem, expression_sigma=jnp.float32(3.0)))
        for m in members
    ]
    before = solve_together(members, dataclasses.replace(LANDMARKS, steps=0), world)
    after = solve_together(members, dataclasses.replace(LANDMARKS, steps=1), world)
    assert after.history.sum(axis=1)[1] < after.history.sum(axis=1)[0]  # so the step was taken
    expected = dense_step(before, members, case == "shared focal", world)
    layout = after.faces[0].layout
    units = np.flatnonzero(np.asarray(problem.model.free_units))
    scale = np.ones(layout.size)  # of what is solved for: coefficients, mm, rad
    scale[layout.block("pose")] = [100.0, 100.0, 100.0, 1.0, 1.0, 1.0]
    for k, (one, two) in enumerate(zip(before.faces, after.faces, strict=True)):
        weights = np.asarray(two.expression)[units]
        assert ((weights > 0) & (weights < 1)).all(), "a bound is active: the law does not apply"
        np.testing.assert_allclose(flat_step(one, two) / scale, expected[k] / scale, atol=2e-3)
    assert np.abs(expected).max() > 0.1
    if case == "known cameras":
        assert before.world is not None and after.world is not None
        assert abs(float(after.world.log_unit - before.world.log_unit)) > 1e-3


def test_one_photo_together_ends_where_it_ends_alone(members):
    stage = dataclasses.replace(LANDMARKS, steps=20)
    member = members[0]
    alone = run_stage(member.problem, member.face, stage)
    together = solve_together([member], stage)
    assert together.names == alone.names
    np.testing.assert_allclose(together.energies.sum(), float(jnp.sum(alone.energies)), rtol=1e-3)
    np.testing.assert_allclose(together.faces[0].expression, alone.face.expression, atol=0.01)
    np.testing.assert_allclose(together.faces[0].identity, alone.face.identity, atol=0.02)


def test_photos_share_what_they_share(members):
    paired = [dataclasses.replace(m, focal_group=min(k, 1)) for k, m in enumerate(members)]
    paired = [
        dataclasses.replace(m, face=dataclasses.replace(m.face, log_focal=members[0].face.log_focal)) for m in paired
    ]
    told = []
    solution = solve_together(
        paired, LANDMARKS, tell=lambda step, energies: told.append((step, sum(energies.values())))
    )
    first = solution.faces[0]
    for face in solution.faces:
        np.testing.assert_array_equal(face.identity, first.identity)
        np.testing.assert_array_equal(face.albedo, first.albedo)
    focal = [float(face.log_focal) for face in solution.faces]
    assert focal[1] == pytest.approx(focal[2], abs=1e-6) and focal[0] != pytest.approx(focal[1], abs=1e-4)
    # Three views tell the person better than the start did, and the energy never rises on the way.
    assert np.allclose([total for _, total in told], solution.history[1:].sum(axis=1))
    assert (np.diff(solution.history.sum(axis=1)) <= 0).all()
    np.testing.assert_allclose(solution.energies.sum(axis=0), solution.history[-1])
    assert solution.result == "converged"


def test_expression_stays_within_its_bounds(problem, truth):
    """Landmarks that no face has, from a start outside of what a step may reach."""
    wild = [observed(problem, f, 15.0, k) for k, f in enumerate(truth)]
    solution = solve_together(
        [Member(p, beside(f), k) for k, (p, f) in enumerate(zip(wild, truth, strict=True))], LANDMARKS
    )
    weights = np.stack([np.asarray(face.expression) for face in solution.faces])
    assert (weights >= 0).all() and (weights <= 1).all()
    units = np.flatnonzero(np.asarray(problem.model.free_units))
    assert ((weights[:, units] == 0) | (weights[:, units] == 1)).any()
    assert (np.diff(solution.history.sum(axis=1)) <= 0).all()


def test_known_cameras_give_the_similarity(problem, truth):
    """Of the mean head, with which the priors agree: what is found is then exact."""
    faces = [dataclasses.replace(f, identity=0 * f.identity, expression=0 * f.expression) for f in truth]
    members = in_world(faces, problem)
    solution = solve_together(
        members, dataclasses.replace(LANDMARKS, free=("identity", "expression", "pose")), moved_world()
    )
    assert solution.finite and solution.world is not None
    assert solution.energies.sum() < 1e-3
    assert float(jnp.exp(solution.world.log_unit - WORLD.log_unit)) == pytest.approx(1.0, abs=1e-4)
    away = np.asarray((WORLD.pose.inverse() @ solution.world.pose).log())
    assert np.abs(away[:3]).max() < 0.05 and np.abs(away[3:]).max() < 5e-4  # mm, rad
    for face, member in zip(solution.faces, members, strict=True):
        assert member.camera is not None
        np.testing.assert_allclose(
            np.asarray(face.pose.as_matrix()),
            np.asarray(solution.world.head_pose(member.camera).as_matrix()),
            atol=1e-3,
        )


def test_what_is_not_finite_is_reported(members):
    nowhere = jnp.asarray(np.full((68, 2), np.nan, np.float32))
    broken = dataclasses.replace(members[0].problem, points_px=nowhere)
    solution = solve_together([dataclasses.replace(members[0], problem=broken), *members[1:]], LANDMARKS)
    assert solution.result == "non-finite" and not solution.converged and solution.steps == 0


def test_bad_input(members):
    with pytest.raises(ValueError, match="no photos"):
        solve_together([], LANDMARKS)
    with pytest.raises(ValueError, match="0 of 3 photos with known cameras and world=True"):
        solve_together(members, LANDMARKS, WORLD)
    mixed = [dataclasses.replace(members[0], camera=WorldCamera(np.eye(3), np.zeros(3))), *members[1:]]
    with pytest.raises(ValueError, match="1 of 3"):
        solve_together(mixed, LANDMARKS)
    for change in ({"solver": LevenbergMarquardt()}, {"segments": 0.25}):
        with pytest.raises(ValueError, match="its own solver"):
            solve_together(members, dataclasses.replace(LANDMARKS, **change))
