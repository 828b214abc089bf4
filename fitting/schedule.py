"""Plans: a fit is a tuple of stages, printable, editable, resumable; one compiled program runs any of them."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from fitting.compilation import compiled
from fitting.energies import (
    BlockPrior,
    DistancePrior,
    JawTerm,
    LandmarkTerm,
    PhotometricTerm,
    project,
)
from fitting.parameters import FaceParameters, Layout
from fitting.photometric import sample_weights
from fitting.segments import Segmented, refine_segments
from fitting.solvers import HISTORY, AbstractSolver, Solution, levenberg_marquardt, solve
from fitting.surface_samples import BLOCK, PointBasis, SolverModel, combine
from fitting.terms import AbstractTerm, Huber, Terms, WeightedTerm, linearise_all
from morphable.landmarks import INNER
from renderer.rasterize import rasterize

OBSERVATIONS = ("landmarks", "jaw", "photometric")  # and what a caller adds
PRIORS = ("identity", "expression", "albedo", "light", "offset", "focal", "distance")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One call of a solver: what is free, which terms count, how fine image and model are.

    The four ways from coarse to fine of Blanz & Vetter (2003, section 4.2.2) are `level` and `samples` (resolution of
    the image and of the model), the numbers of components, and `noise`.
    """

    name: str
    free: tuple[str, ...]  # among identity, expression, albedo, light, pose, focal, offset
    steps: int  # at most; no more than 47, as the history of the compiled program has room for
    without: tuple[str, ...] = ()  # terms that do not count, such as "photometric"
    level: int = 0  # of the image pyramid, 0 the most blurred
    samples: int = 1024  # of the skin, in blocks of 512
    identity_components: int | None = None  # the first ones; None for all
    albedo_components: int | None = None
    noise: float = 1.0  # factor on the deviations of all observations, against those of the priors
    relight: bool = False  # start from the closed-form light for the present shape and albedo
    label: bool = False  # look for what covers the face first, and leave it out: see fitting.occlusion
    tolerance: float = 1e-4  # a step that lowers the energy by less than this share is the last
    segments: float | None = None  # refine each segment alone, its coefficients this far from the whole face's
    solver: AbstractSolver | None = (
        None  # None for the compiled Levenberg-Marquardt, to which steps and tolerance belong
    )

    @property
    def photometric(self) -> bool:
        """Whether the stage looks at the photo's colours."""
        return "photometric" not in self.without

    def row(self, problem: "Problem") -> "StageRow":
        """The stage as traced numbers, so that the compiled program does not depend on it.

        Raises ValueError for what cannot be run: names that the problem does not have, numbers out of their range.
        """
        compiled = self.solver is None or self.segments is not None  # segments know no other solver
        if compiled and not 0 <= self.steps < HISTORY:
            raise ValueError(
                f"stage {self.name!r}: got {self.steps} steps, expected 0..{HISTORY - 1}, as all stages share one "
                f"program. For more give it solver=LevenbergMarquardt(steps={self.steps}), or split it into two stages."
            )
        if self.segments is not None and not self.segments > 0:
            raise ValueError(
                f"stage {self.name!r}: got segments={self.segments}, expected a positive deviation, such as 0.25."
            )
        if not self.noise > 0:
            raise ValueError(
                f"stage {self.name!r}: got noise={self.noise}, expected a positive factor on observations' deviations."
            )
        known = (*OBSERVATIONS, *PRIORS, *problem.extra)
        for name in self.without:
            if name not in known:
                raise ValueError(
                    f"stage {self.name!r}: got without={name!r}, expected one of {', '.join(known)}. Rename or drop it."
                )
        levels = problem.pyramid.shape[0]
        if not 0 <= self.level < levels:
            raise ValueError(
                f"stage {self.name!r}: got level {self.level}, expected 0..{levels - 1}. "
                "Settings.blur_px has one entry for each level of the pyramid."
            )
        model = problem.model
        layout = Layout(model.identity_rank, model.free_units.shape[0], model.albedo_rank)
        # In NumPy: dozens of small operations, each of which JAX would dispatch by itself.
        free = np.zeros(layout.size, np.float32)
        for name in self.free:
            part = free[layout.block(name)]
            part[: {"identity": self.identity_components, "albedo": self.albedo_components}.get(name)] = 1.0
            if name == "expression":
                part[:] = np.asarray(model.free_units)
        precision = {name: self.noise**-2 for name in (*OBSERVATIONS, *problem.extra)} | dict.fromkeys(PRIORS, 1.0)
        blocks = min(-(-self.samples // BLOCK), model.skin.geometry.shape[0])
        number = lambda x, kind="int32": jnp.asarray(np.asarray(x, kind))  # noqa: E731
        return StageRow(
            free=jnp.asarray(free),
            weights={n: number(0.0 if n in self.without else p, "float32") for n, p in precision.items()},
            steps=number(self.steps),
            level=number(self.level),
            blocks=number(blocks if self.photometric else 0),
            relight=number(self.relight),
            tolerance=number(self.tolerance, "float32"),
        )


class StageRow(eqx.Module):
    """A stage's traced form."""

    free: Float[Array, " step"]
    weights: dict[str, Float[Array, ""]]  # of the terms' energies
    steps: Int[Array, ""]
    level: Int[Array, ""]
    blocks: Int[Array, ""]  # of skin samples; 0 where the photo's colours are left out
    relight: Int[Array, ""]
    tolerance: Float[Array, ""]


SHAPE = ("identity", "expression", "pose", "focal")
EVERYTHING = (*SHAPE, "albedo", "light")
ONE_VIEW = 50  # identity components that one photo can tell from its noise; more change nothing, or make it worse


def coarse_to_fine(label: bool = False) -> tuple[Stage, ...]:
    """The default plan: pose, landmarks, then the photo from blurred to sharp with more components and samples.

    With `label` what covers the face is looked for before each look at the photo, and left out. It is not the default:
    robust terms bear most occluders, and on real photos hair and hard shadows are taken for one in every fourth.
    """
    return (
        Stage("pose", ("pose",), 4, without=("photometric",)),
        Stage("landmarks", SHAPE, 8, without=("photometric",), identity_components=ONE_VIEW),
        Stage(
            "photo, coarse",
            EVERYTHING,
            5,
            level=0,
            samples=1024,
            identity_components=40,
            albedo_components=20,
            relight=True,
            label=label,
            tolerance=1e-2,
        ),
        Stage(
            "photo, fine",
            EVERYTHING,
            12,
            level=1,
            samples=2048,
            identity_components=ONE_VIEW,
            label=label,
            tolerance=3e-3,
        ),
    )


class Problem(eqx.Module):
    """One photo, one face, one model: all a stage needs besides the face itself. Pixels are those of the crop."""

    model: SolverModel
    pyramid: Float[Array, "level height width 3"]  # sRGB-encoded
    valid: Float[Array, "height width"]  # 1 where the photo may be used
    points_px: Float[Array, "68 2"]  # of no meaning for hidden points; see `visible_px`
    sigma_px: Float[Array, "68"]  # inf for hidden points; for jaw points, across the jaw line
    sigma_along_px: Float[Array, "17"]
    shared_mm: Float[Array, "mode 51 3"]  # errors that inner landmarks share, one deviation each
    centre: Float[Array, "2"]  # principal point
    log_focal: Float[Array, "1"]
    log_focal_sigma: Float[Array, "1"]
    log_distance: Float[Array, ""]
    log_distance_sigma: Float[Array, ""]
    expression_sigma: Float[Array, ""]
    expression_cutoff: Float[Array, ""]
    offset_sigma: Float[Array, ""]
    photometric_sigma: Float[Array, ""]
    photometric_cutoff: Float[Array, ""]
    saturation: Float[Array, ""]
    extra: dict[str, AbstractTerm] = eqx.field(default_factory=dict)  # what a caller adds

    def __check_init__(self):
        taken = [name for name in self.extra if name in (*OBSERVATIONS, *PRIORS)]
        if taken:
            raise ValueError(
                f"terms: got a term named {taken[0]!r}, which every fit has, expected a name of its own. Rename it; "
                f"without=({taken[0]!r},) takes the other out of a stage."
            )

    @property
    def visible_px(self) -> Float[Array, "68 2"]:
        """The given landmarks, NaN where one is hidden: for terms of one's own, such as `relative_term`."""
        return jnp.where(jnp.isfinite(self.sigma_px)[:, None], self.points_px, jnp.nan)

    def terms(self, row: StageRow, weight: Float[Array, "block point"]) -> dict[str, WeightedTerm]:
        """Every term of a stage by name; `weight` says how far each skin sample is believed."""
        m = self.model
        part = lambda s: PointBasis(m.landmarks.mean[s], m.landmarks.modes[s])  # noqa: E731
        units = m.free_units.shape[0]
        terms = {
            "landmarks": LandmarkTerm(
                part(INNER), self.points_px[INNER], self.sigma_px[INNER], self.centre, self.shared_mm
            ),
            "jaw": JawTerm(
                part(slice(0, 17)),
                m.contour,
                self.points_px[:17],
                self.sigma_px[:17],
                self.sigma_along_px,
                self.centre,
            ),
            "photometric": PhotometricTerm(
                m.skin,
                self.pyramid,
                weight,
                row.level,
                row.blocks,
                self.photometric_sigma,
                self.photometric_cutoff,
                self.centre,
            ),
            "identity": BlockPrior("identity", jnp.zeros(m.identity_rank), jnp.ones(m.identity_rank)),
            "expression": BlockPrior(
                "expression", jnp.zeros(units), jnp.full(units, self.expression_sigma), Huber(self.expression_cutoff)
            ),
            "albedo": BlockPrior("albedo", jnp.zeros(m.albedo_rank), jnp.ones(m.albedo_rank)),
            "light": BlockPrior("light", jnp.zeros(27), light_sigma()),
            "offset": BlockPrior("offset", jnp.zeros(3), jnp.full(3, self.offset_sigma)),
            "focal": BlockPrior("focal", self.log_focal, self.log_focal_sigma),
            "distance": DistancePrior(self.log_distance, self.log_distance_sigma),
            **self.extra,
        }
        return {name: WeightedTerm(term, row.weights[name]) for name, term in terms.items()}


def light_sigma() -> Float[Array, " 27"]:
    """Prior deviations of the light: its effect on shading, 3 for the ambient band, .5 and .25 for bands 1 and 2."""
    shading = jnp.array([3.0, *[0.5] * 3, *[0.25] * 5])
    per_unit = jnp.array([0.282, *[0.326] * 3, 0.273, 0.273, 0.158, 0.273, 0.273])
    return jnp.repeat(shading / per_unit, 3)


def start_stage(
    problem: Problem, face: FaceParameters, row: StageRow
) -> tuple[Float[Array, "block point"], FaceParameters]:
    """How far each skin sample is believed in a stage, and the face with its light solved for where the stage says so.

    Visibility and all else that decides how far a sample is believed is found here, once for the stage.
    """
    m = problem.model
    total = m.skin.geometry.shape[0]

    def seen():
        image = lax.dynamic_index_in_dim(problem.pyramid, row.level, 0, False)
        visible = visible_samples(problem, face)
        return sample_weights(m.skin, face, image, problem.valid, visible, problem.saturation, problem.centre)

    weight = lax.cond(row.blocks > 0, seen, lambda: jnp.zeros((total, BLOCK)))
    photometric = problem.terms(row, weight)["photometric"].term
    assert isinstance(photometric, PhotometricTerm)  # as Problem.terms made it
    light = lax.cond(row.relight > 0, lambda: photometric.light(face, light_sigma()), lambda: face.light)
    return weight, eqx.tree_at(lambda f: f.light, face, light)


def prepare_stage(
    problem: Problem, face: FaceParameters, row: StageRow
) -> tuple[dict[str, WeightedTerm], FaceParameters]:
    """The terms of a stage that starts at a face, and that face with its light; see `start_stage`."""
    weight, face = start_stage(problem, face, row)
    return problem.terms(row, weight), face


stage_terms = compiled(prepare_stage)


@compiled
def run_hypotheses(problem: Problem, face: FaceParameters, poses: jaxlie.SE3, rows: tuple[StageRow, ...]) -> Solution:
    """Stages without photo from several poses at once (stacked in `poses`); the best, which costs the least.

    Photometric stages would see no photo: that term is left out.
    """
    unseen = jnp.zeros((problem.model.skin.geometry.shape[0], BLOCK))

    def one(pose: jaxlie.SE3) -> Solution:
        at_pose, solution, names = dataclasses.replace(face, pose=pose), None, ()
        for row in rows:
            terms = {n: t for n, t in problem.terms(row, unseen).items() if n not in ("photometric", "albedo", "light")}
            names = tuple(sorted(terms))
            solution = levenberg_marquardt(
                lambda at, terms=terms: linearise_all(terms, at),
                len(terms),
                at_pose,
                row.free,
                row.steps,
                row.tolerance,
            )
            at_pose = solution.face
        assert solution is not None  # there is at least one row
        return dataclasses.replace(solution, names=names)

    solutions = jax.vmap(one)(poses)
    energy = jnp.where(solutions.finite, jnp.sum(solutions.energies, axis=1), jnp.inf)
    return jax.tree.map(lambda x: x[jnp.argmin(energy)], solutions)


@compiled
def _run_compiled(problem: Problem, face: FaceParameters, row: StageRow) -> Solution:
    """Compiled once per model and image size: the stage is data."""
    terms, face = prepare_stage(problem, face, row)
    return levenberg_marquardt(
        lambda at: linearise_all(terms, at), len(terms), face, row.free, row.steps, row.tolerance
    )


def run_stage(problem: Problem, face: FaceParameters, stage: Stage) -> Solution:
    """Run one stage from a face."""
    row = stage.row(problem)
    if stage.solver is None:
        names = tuple(sorted(row.weights))
        solution = _run_compiled(problem, face, row)
        made = int(solution.steps) + 1
        return dataclasses.replace(
            solution, history=solution.history[:made], history_steps=solution.history_steps[:made], names=names
        )
    terms, face = stage_terms(problem, face, row)
    counting: Terms = {n: t for n, t in terms.items() if n not in stage.without}
    return solve(counting, face, row.free, stage.solver)


def run_segments(problem: Problem, face: FaceParameters, stage: Stage) -> Segmented:
    """Run a stage that refines the segments of a face alone; the face itself stays."""
    if stage.segments is None:
        raise ValueError(
            f"run_segments: stage {stage.name!r} has segments=None, expected a deviation, such as 0.25. "
            "Run it with run_stage."
        )
    row = stage.row(problem)
    terms, face = stage_terms(problem, face, row)
    return refine_segments(problem, face, row, terms, jnp.asarray(stage.segments, jnp.float32))


def visible_samples(problem: Problem, face: FaceParameters) -> Float[Array, "block point"]:
    """Which skin samples the camera sees past the rest of the head: a depth test against the coarse mesh."""
    model, height, width = problem.model, *problem.valid.shape
    vertices = model.proxy.positions(face.identity, face.expression)
    pixels = project(face, vertices, problem.centre)
    depth = jax.vmap(lambda x: (face.pose @ x)[2])(vertices)
    ids = rasterize(pixels, depth, model.proxy_triangles, height, width)
    corners = depth[model.proxy_triangles]
    # The depth of a whole small triangle stands for the pixel; the tolerance below is larger than a triangle is deep.
    nearest = jnp.where(ids >= 0, jnp.max(corners, axis=1)[ids], jnp.inf)
    padded = jnp.pad(nearest, 1, constant_values=jnp.inf)
    around = [padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    farthest = jnp.max(jnp.stack([jnp.where(jnp.isfinite(a), a, -jnp.inf) for a in around]), axis=0)

    coefficients = jnp.concatenate([face.identity, face.expression])

    def block(_, data):
        geometry, modes = data
        points = combine(geometry[:3], modes[:3], coefficients).T
        at = project(face, points, problem.centre)
        z = jax.vmap(lambda x: (face.pose @ x)[2])(points)
        column = jnp.clip(at[:, 0].astype(jnp.int32), 0, width - 1)
        line = jnp.clip(at[:, 1].astype(jnp.int32), 0, height - 1)
        return None, (z < farthest[line, column] + OCCLUSION_MM).astype(jnp.float32)

    _, visible = lax.scan(block, None, (model.skin.geometry, model.skin.geometry_modes))
    return visible


OCCLUSION_MM = 4.0  # how far behind the coarse mesh a sample may lie and still count as seen
