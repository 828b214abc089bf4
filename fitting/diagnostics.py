"""A look inside a fit: what each term says, where the photo is not explained, which term moved which vertex."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from fitting.fit import Fit
from fitting.parameters import FaceParameters
from fitting.photometric import PhotometricTerm, SkinPoints
from fitting.schedule import OBSERVATIONS
from fitting.terms import Quadratic, WeightedTerm


@dataclasses.dataclass(frozen=True)
class SampleReport:
    """The photometric term's samples in the crop: one row for each sample that was evaluated."""

    pixels: Float[np.ndarray, "sample 2"]  # of the crop
    belief: Float[np.ndarray, "sample"]  # 0 to 1: seen, facing the camera, not masked, not saturated
    inlier: Float[np.ndarray, "sample"]  # 0 to 1: what the robust kernel leaves of it
    residual: Float[np.ndarray, "sample 3"]  # rendered minus photographed, sRGB-encoded


def sample_report(fit: Fit) -> SampleReport:
    """What the photometric term saw at the end of a fit."""
    term = _photometric(fit)
    skin, blocks = term.skin, int(term.blocks)
    data = (skin.geometry, skin.geometry_modes, skin.albedo, skin.albedo_modes)
    image = term.pyramid[int(term.level)]
    _, face, _ = fit.inside

    @jax.jit
    def look(face):
        def one(_, block):
            point = SkinPoints(face, term.centre, image, *block)
            return None, (point.pixel, point.residual)

        return jax.lax.scan(one, None, data)[1]

    rows = lambda x: np.asarray(jnp.moveaxis(x[:blocks], 1, 2)).reshape(blocks * x.shape[2], -1)  # noqa: E731
    pixel, residual = (rows(x) for x in look(face))
    belief = np.asarray(term.weight[:blocks]).reshape(-1)
    inlier = np.asarray(term.kernel().weight(jnp.sum(jnp.asarray(residual) ** 2, axis=1)))
    return SampleReport(pixel, belief, inlier, residual)


def _photometric(fit: Fit) -> PhotometricTerm:
    term = fit.terms()["photometric"].term
    assert isinstance(term, PhotometricTerm)  # as Problem.terms made it
    if int(term.blocks) == 0:
        raise ValueError(
            "sample_report: the last stage of this fit left out the photometric term, expected one that looks at the "
            "photo. Fit with a plan such as coarse_to_fine()."
        )
    return term


def term_influence(fit: Fit) -> dict[str, Float[np.ndarray, "vertex 3"]]:
    """How far each observation moved each vertex of the fitted face, mm in head space.

    The solution is where all terms balance. Without term t it would move, to first order, by (H - H_t)⁻¹ g_t, H being
    the Gauss-Newton Hessian of all terms and g_t the gradient of this one; the term has moved it by the opposite. The
    priors stay. Expression weights at a bound are held there.
    """
    problem, face, _ = fit.inside
    parts = _linearise_each(fit.terms(), face)
    names = [n for n in parts if n in (*OBSERVATIONS, *problem.extra)]
    free = _movable(fit)
    total = np.sum([np.asarray(q.hessian, np.float64) for q in parts.values()], axis=0)[np.ix_(free, free)]
    modes = np.concatenate([np.asarray(fit.model.shape.modes), np.asarray(fit.model.expression)], axis=2)
    geometry = face.layout.block("geometry")
    moved = {}
    for name in names:
        hessian, gradient = (np.asarray(x, np.float64) for x in (parts[name].hessian, parts[name].gradient))
        if not gradient[free].any():
            continue
        left = total - hessian[np.ix_(free, free)]
        scale = 1 / np.sqrt(np.maximum(np.diag(left), 1e-12))
        # Without its observations a direction may have nothing but a hair of damping to hold it.
        system = left * scale[:, None] * scale + 1e-6 * np.eye(len(left))
        step = np.zeros(len(gradient))
        step[free] = -scale * np.linalg.solve(system, scale * gradient[free])
        moved[name] = (modes @ step[geometry]).astype(np.float32)
    return moved


@eqx.filter_jit
def _linearise_each(terms: dict[str, WeightedTerm], face: FaceParameters) -> dict[str, Quadratic]:
    return {name: term.linearise(face) for name, term in terms.items()}


def _movable(fit: Fit) -> np.ndarray:
    """Indices of the unknowns that were free in the last stage and are not held by a bound."""
    problem, face, stage = fit.inside
    free = np.asarray(stage.row(problem).free) > 0
    at = face.layout.block("expression")
    free[at] &= (fit.expression > 1e-4) & (fit.expression < 1 - 1e-4)
    return np.flatnonzero(free)


def crop_picture(fit: Fit) -> UInt8[np.ndarray, "size size 3"]:
    """The crop as the last stage saw it, blurred as its level is."""
    problem, _, stage = fit.inside
    return np.rint(255 * np.clip(np.asarray(problem.pyramid[stage.level]), 0, 1)).astype(np.uint8)
