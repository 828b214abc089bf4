"""Plans: a fit is a tuple of stages, printable, editable, resumable; one compiled program runs any of them."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fitting.energies import (
    BlockPrior,
    DistancePrior,
    JawTerm,
    LandmarkTerm,
    PhotometricTerm,
    Quadratic,
    project,
)
from fitting.parameters import FaceParameters, Layout
from fitting.solvers import Solution, levenberg_marquardt
from fitting.surface_samples import BLOCK, PointBasis, SolverModel
from renderer.rasterize import rasterize

TERMS = ("landmarks", "jaw", "photometric", "identity", "expression", "albedo", "light", "focal", "distance")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One call of the solver: what is free, which observations count, how fine the image and the model are."""

    name: str
    free: tuple[str, ...]  # among identity, expression, albedo, light, pose, focal
    steps: int  # at most
    photometric: bool = False
    level: int = 0  # of the image pyramid, 0 the most blurred
    blocks: int = 2  # of 512 skin samples
    identity_components: int | None = None  # the first ones; None for all
    albedo_components: int | None = None
    relight: bool = False  # start from the closed-form light for the present shape and albedo
    landmark_noise: float = 1.0  # factor on the landmarks' deviations
    tolerance: float = 1e-4  # a step that lowers the energy by less than this share is the last

    def row(self, layout: Layout, free_units: Float[Array, " unit"]) -> "StageRow":
        """The stage as traced numbers, so that the compiled program does not depend on it."""
        free = jnp.zeros(layout.size)
        for name in self.free:
            at = layout.block(name)
            ones = jnp.ones(at.stop - at.start)
            limit = {"identity": self.identity_components, "albedo": self.albedo_components}.get(name)
            if limit is not None:
                ones = (jnp.arange(ones.shape[0]) < limit).astype(ones.dtype)
            if name == "expression":
                ones = jnp.asarray(free_units)
            free = free.at[at].set(ones)
        integer = lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
        return StageRow(
            free,
            integer(self.steps),
            integer(self.photometric),
            integer(self.level),
            integer(self.blocks if self.photometric else 0),
            integer(self.relight),
            jnp.asarray(self.landmark_noise, jnp.float32),
            jnp.asarray(self.tolerance, jnp.float32),
        )


class StageRow(eqx.Module):
    """A stage's traced form."""

    free: Float[Array, " step"]
    steps: Int[Array, ""]
    photometric: Int[Array, ""]
    level: Int[Array, ""]
    blocks: Int[Array, ""]
    relight: Int[Array, ""]
    landmark_noise: Float[Array, ""]
    tolerance: Float[Array, ""]


SHAPE = ("identity", "expression", "pose", "focal")
EVERYTHING = (*SHAPE, "albedo", "light")


def coarse_to_fine() -> tuple[Stage, ...]:
    """The default plan: pose, landmarks, then the photo from blurred to sharp with more components and samples."""
    return (
        Stage("pose", ("pose",), 4),
        Stage("landmarks", SHAPE, 8),
        Stage(
            "photo, coarse",
            EVERYTHING,
            5,
            photometric=True,
            level=0,
            blocks=2,
            identity_components=40,
            albedo_components=20,
            relight=True,
            tolerance=1e-2,
        ),
        Stage("photo, fine", EVERYTHING, 12, photometric=True, level=1, blocks=4, tolerance=3e-3),
    )


class Problem(eqx.Module):
    """One photo, one face, one model: everything a stage needs besides the face itself."""

    model: SolverModel
    pyramid: Float[Array, "level height width 3"]  # sRGB-encoded
    valid: Float[Array, "height width"]
    points_px: Float[Array, "68 2"]
    sigma_px: Float[Array, "68"]  # inf for hidden points; for jaw points, across the jaw line
    sigma_along_px: Float[Array, "17"]
    centre: Float[Array, "2"]  # principal point
    log_focal: Float[Array, "1"]
    log_focal_sigma: Float[Array, "1"]
    log_distance: Float[Array, ""]
    log_distance_sigma: Float[Array, ""]
    expression_sigma: Float[Array, ""]
    photometric_sigma: Float[Array, ""]
    photometric_cutoff: Float[Array, ""]
    saturation: Float[Array, ""]

    def terms(self, row: StageRow, visible: Float[Array, "block point"]) -> tuple:
        """Every term, in the order of TERMS."""
        m = self.model
        part = lambda s: PointBasis(m.landmarks.mean[s], m.landmarks.modes[s])  # noqa: E731
        units = m.free_units.shape[0]
        noise = row.landmark_noise
        return (
            LandmarkTerm(part(slice(17, 68)), self.points_px[17:], noise * self.sigma_px[17:], self.centre),
            JawTerm(
                part(slice(0, 17)),
                m.contour,
                self.points_px[:17],
                noise * self.sigma_px[:17],
                noise * self.sigma_along_px,
                self.centre,
            ),
            PhotometricTerm(
                m.skin,
                self.pyramid,
                self.valid,
                visible,
                row.level,
                row.blocks,
                self.photometric_sigma,
                self.photometric_cutoff,
                self.saturation,
                self.centre,
            ),
            BlockPrior("identity", jnp.zeros(m.identity_rank), jnp.ones(m.identity_rank)),
            BlockPrior("expression", jnp.zeros(units), jnp.full(units, self.expression_sigma)),
            BlockPrior("albedo", jnp.zeros(m.albedo_rank), jnp.ones(m.albedo_rank)),
            BlockPrior("light", jnp.zeros(27), light_sigma()),
            BlockPrior("focal", self.log_focal, self.log_focal_sigma),
            DistancePrior(self.log_distance, self.log_distance_sigma),
        )


def light_sigma() -> Float[Array, " 27"]:
    """Prior deviations of the light: its effect on shading, 3 for the ambient band, .5 and .25 for bands 1 and 2."""
    shading = jnp.array([3.0, *[0.5] * 3, *[0.25] * 5])
    per_unit = jnp.array([0.282, *[0.326] * 3, 0.273, 0.273, 0.158, 0.273, 0.273])
    return jnp.repeat(shading / per_unit, 3)


@eqx.filter_jit
def run_stage(problem: Problem, face: FaceParameters, row: StageRow) -> Solution:
    """Run one stage. Compiled once per model and image size: the stage is data."""
    total = problem.model.skin.geometry.shape[0]
    visible = lax.cond(row.photometric > 0, lambda: visible_samples(problem, face), lambda: jnp.zeros((total, BLOCK)))
    terms = problem.terms(row, visible)
    light = lax.cond(row.relight > 0, lambda: terms[2].light(face, light_sigma()), lambda: face.light)
    face = eqx.tree_at(lambda f: f.light, face, light)

    def linearise(at: FaceParameters) -> tuple[Quadratic, Float[Array, " term"]]:
        parts = [term.linearise(at) for term in terms]
        total_model = parts[0]
        for part in parts[1:]:
            total_model = total_model + part
        return total_model, jnp.stack([part.energy for part in parts])

    return levenberg_marquardt(linearise, face, row.free, row.steps, row.tolerance)


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
        points = (geometry[:3] + jnp.einsum("knp,n->kp", modes[:3], coefficients)).T
        at = project(face, points, problem.centre)
        z = jax.vmap(lambda x: (face.pose @ x)[2])(points)
        column = jnp.clip(at[:, 0].astype(jnp.int32), 0, width - 1)
        line = jnp.clip(at[:, 1].astype(jnp.int32), 0, height - 1)
        return None, (z < farthest[line, column] + OCCLUSION_MM).astype(jnp.float32)

    _, visible = lax.scan(block, None, (model.skin.geometry, model.skin.geometry_modes))
    return visible


OCCLUSION_MM = 4.0  # how far behind the coarse mesh a sample may lie and still count as seen
