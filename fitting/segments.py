"""Eyes, nose, mouth and the rest with coefficients of their own: Blanz & Vetter's segmented model (1999, section 3).

One set of coefficients for the whole face ties a nose to the cheeks that such noses usually come with. As a last step
of a fit every segment is refined alone, everything but its shape and albedo frozen, and the results are blended with
weights that are smooth over the surface: no seam, and no border at which a derivative jumps.
"""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fitting.energies import BlockPrior
from fitting.parameters import FaceParameters
from fitting.solvers import levenberg_marquardt
from fitting.terms import linearise_all
from morphable.model import MorphableModel

if TYPE_CHECKING:
    from fitting.schedule import Problem, StageRow

NAMES = ("eyes", "nose", "mouth", "rest")
# Of the 68 landmarks: brows and eyes, nose, lips.
_MARKS = ((*range(17, 27), *range(36, 48)), (*range(27, 36),), (*range(48, 68),))
_REACH_MM = 14.0  # from a segment's landmarks to where it has lost half its say to the rest


def segment_weights(points: Float[Array, "point 3"], landmarks: Float[Array, "68 3"]) -> Float[Array, "point segment"]:
    """Share of each segment in points of the mean head; they sum to 1.

    A segment's say falls off like a Gaussian with the distance to its nearest landmark; the rest's is the same
    everywhere.
    """
    say = []
    for marks in _MARKS:
        apart = jnp.sum((points[:, None] - landmarks[jnp.array(marks)]) ** 2, axis=2)
        # A smooth minimum: the nearest landmark must not change with a kink.
        nearest = -jax.nn.logsumexp(-apart / _REACH_MM**2, axis=1) * _REACH_MM**2
        say.append(jnp.exp2(-jnp.maximum(nearest, 0.0) / _REACH_MM**2))
    rest = jnp.full(len(points), 0.5)
    weights = jnp.stack([*say, rest], axis=1)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


class Segmented(eqx.Module):
    """A face and, for each of NAMES, its own identity and albedo."""

    face: FaceParameters
    identity: Float[Array, "segment rank"]
    albedo: Float[Array, "segment arank"]

    def correction(self, model: MorphableModel) -> Float[Array, "vertex 3"]:
        """What the segments add to the neutral of the whole face, mm."""
        weights = segment_weights(model.mean, model.landmarks(model.mean))
        change = self.identity - self.face.identity
        return jnp.einsum("vcn,sn,vs->vc", model.shape.modes, change, weights)


@eqx.filter_jit
def refine_segments(
    problem: "Problem", face: FaceParameters, row: "StageRow", terms: dict, sigma: Float[Array, ""]
) -> Segmented:
    """Refine every segment alone on the observations that fall to it, from the whole face, which is its prior.

    `sigma` is the prior deviation of a segment's coefficients from the whole face's, in the model's own deviations. An
    observation counts for a segment by the segment's share in the place where it is made.
    """
    model, layout = problem.model, face.layout
    mean68 = model.landmarks.mean
    at_landmarks = segment_weights(mean68, mean68)
    skin = model.skin
    places = jnp.moveaxis(skin.geometry[:, :3], 1, 2).reshape(-1, 3)
    at_samples = segment_weights(places, mean68).reshape(skin.geometry.shape[0], skin.geometry.shape[2], -1)
    free = row.free * layout.free("identity", "albedo")

    def one(segment):
        mine = dict(terms)
        # A share of an observation is an observation with a larger deviation.
        blur = lambda share: 1.0 / jnp.sqrt(jnp.maximum(share, 1e-6))  # noqa: E731
        inner = terms["landmarks"].term
        mine["landmarks"] = eqx.tree_at(
            lambda t: t.term.sigma_px, terms["landmarks"], inner.sigma_px * blur(at_landmarks[17:, segment])
        )
        photometric = terms["photometric"].term
        mine["photometric"] = eqx.tree_at(
            lambda t: t.term.weight, terms["photometric"], photometric.weight * at_samples[..., segment]
        )
        jaw = terms["jaw"].term
        share = blur(at_landmarks[:17, segment])
        mine["jaw"] = eqx.tree_at(
            lambda t: (t.term.sigma_across_px, t.term.sigma_along_px),
            terms["jaw"],
            (jaw.sigma_across_px * share, jaw.sigma_along_px * share),
        )
        for block, value in (("identity", face.identity), ("albedo", face.albedo)):
            mine[block] = BlockPrior(block, value, jnp.full(value.shape, sigma))
        linearise = lambda f: linearise_all(mine, f)  # noqa: E731
        found = levenberg_marquardt(linearise, len(mine), face, free, row.steps, row.tolerance).face
        return found.identity, found.albedo

    identity, albedo = lax.map(one, jnp.arange(len(NAMES)))
    return Segmented(face, identity, albedo)
