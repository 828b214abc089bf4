"""What predicted parameters of a face cost beside true ones, for a network that looks at a crop and answers numbers.

The names are 3DDFA's (Zhu et al. 2016, "Face Alignment Across Large Poses", equations 6 to 8; Zhu et al. 2019, "Face
Alignment in Full Pose Range"; Guo et al. 2020, "Towards Fast, Accurate and Stable 3D Dense Face Alignment"): PDC, VDC,
WPDC, fWPDC, OWPDC, the choice between two of them by looking ahead, and landmark regression as a regularisation.
Each loss is a pure function of one face, `loss(basis, predicted, truth)`; batches are `jax.vmap`, and
`PARAMETER_LOSSES` has them by name.

What fWPDC rests on: posed vertices are M(q) X(c) + t with a matrix M quadratic in the quaternion q and a shape X
linear in the coefficients c. How far the vertices move when one parameter alone is wrong is then a quadratic form of
second moments of the basis, which are a model's and are summed once: no vertex is computed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from morphable.model import MorphableModel

_POSE = 6  # the entries of a vector before the coefficients: quaternion and shift
_SWEEPS = 200  # of accelerated projection: weights to three digits, on fifty coefficients with correlated modes

# ------------------------------------------------------------------------------------------------------ parameters


class PosedParameters(eqx.Module):
    """A face under weak perspective in a crop: six numbers of pose, identity and expression coefficients.

    The quaternion carries the scale: scale * rotation = M(quaternion), a homogeneous quadratic polynomial
    (`scaled_rotation`). It has as many numbers as rotation and scale have freedoms, no gimbal lock, no constraint for
    a network to keep, and -q is the same pose: losses compare with the sign of the truth that is nearer.
    """

    quaternion: Float[Array, "4"]  # wxyz, of R_camera_head, times the square root of the scale in px/mm
    shift: Float[Array, "2"]  # px of the crop, where the head's origin is seen
    identity: Float[Array, " identity"]  # standard deviations
    expression: Float[Array, " unit"]  # weights

    @staticmethod
    def from_pose(
        rotation: Float[Array, "3 3"],
        scale: Float[Array, ""],
        shift: Float[Array, "2"],
        identity: Float[Array, " identity"],
        expression: Float[Array, " unit"],
    ) -> "PosedParameters":
        """From R_camera_head, the scale in px/mm and the pixel of the head's origin, as `WeakPerspective` has them.

        Of both quaternions it takes the one on the side of the head that faces the camera, (0, 1, 0, 0): it changes
        continuously for all poses less than half a turn away from that.
        """
        unit = jaxlie.SO3.from_matrix(rotation).wxyz
        sign = jnp.where(unit[1] < 0, -1.0, 1.0)
        return PosedParameters(sign * jnp.sqrt(scale) * unit, shift, identity, expression)

    @property
    def scale(self) -> Float[Array, ""]:
        """Pixels per mm."""
        return jnp.sum(self.quaternion**2)

    @property
    def rotation(self) -> Float[Array, "3 3"]:
        """R_camera_head."""
        return scaled_rotation(self.quaternion) / self.scale

    @property
    def vector(self) -> Float[Array, " parameter"]:
        """Quaternion, shift, identity, expression: what PDC and WPDC count one by one."""
        return jnp.concatenate([self.quaternion, self.shift, self.identity, self.expression])

    def with_vector(self, vector: Float[Array, " parameter"]) -> "PosedParameters":
        """The parameters that have this `vector`; of these here only the sizes matter."""
        end = _POSE + self.identity.shape[0]
        return PosedParameters(vector[:4], vector[4:_POSE], vector[_POSE:end], vector[end:])


def scaled_rotation(quaternion: Float[Array, "4"]) -> Float[Array, "3 3"]:
    """Scale times rotation of a quaternion (wxyz) that carries the square root of the scale."""
    return _polar(quaternion, quaternion)


def reciprocal_scale(quaternion: Float[Array, "4"]) -> Float[Array, "4"]:
    """The same rotation with one over the scale: from our quaternion to one divided by the scale's root, and back.

    Zhu et al. (2019) divide by the root. Then scale * rotation is a quotient, infinite at 0; ours is a polynomial.
    """
    return quaternion / jnp.sum(quaternion**2)


def _polar(a: Float[Array, "4"], b: Float[Array, "4"]) -> Float[Array, "3 3"]:
    """The symmetric bilinear form whose diagonal is `scaled_rotation`.

    From it differences without cancellation: M(a) - M(b) = polar(a + b, a - b).
    """
    u, v = a[1:], b[1:]
    both = a[0] * v + b[0] * u
    turn = jnp.cross(both, -jnp.eye(3, dtype=both.dtype))  # the matrix of the cross product with `both`
    return (a[0] * b[0] - jnp.sum(u * v)) * jnp.eye(3, dtype=u.dtype) + jnp.outer(u, v) + jnp.outer(v, u) + turn


def _on_side_of(truth: PosedParameters, predicted: PosedParameters) -> PosedParameters:
    """The truth with that of its two quaternions which is nearer to the predicted one."""
    sign = jnp.where(jnp.sum(lax.stop_gradient(predicted.quaternion) * truth.quaternion) < 0, -1.0, 1.0)
    return eqx.tree_at(lambda p: p.quaternion, truth, sign * truth.quaternion)


# ----------------------------------------------------------------------------------------------------------- basis


class LossBasis(eqx.Module):
    """The linear model on the vertices that losses count, and how much each parameter varies among faces."""

    mean: Float[Array, "point 3"]  # mm, head space
    identity: Float[Array, "point 3 identity"]  # mm at one standard deviation
    expression: Float[Array, "point 3 unit"]  # mm at weight 1
    spread: Float[Array, " parameter"]  # by which errors of `vector` are divided: whitening; ones for none
    # Mean over the vertices of b_ma b_nb, mm², for axes a, b and b_0 the mean, then identity, then expression.
    moments: Float[Array, "mode mode 3 3"]
    depth: bool = eqx.field(static=True)  # whether the third axis counts: yes in Guo et al., no in Zhu et al.

    def __init__(
        self,
        mean: Float[Array, "point 3"],
        identity: Float[Array, "point 3 identity"],
        expression: Float[Array, "point 3 unit"],
        spread: Float[Array, " parameter"] | None = None,
        depth: bool = True,
    ):
        count, parameters = mean.shape[0], _POSE + identity.shape[-1] + expression.shape[-1]
        if spread is not None and spread.shape[0] != parameters:
            raise ValueError(
                f"LossBasis: got a spread of {spread.shape[0]} parameters, expected {parameters}: 4 of the quaternion, "
                f"2 of the shift, {identity.shape[-1]} of identity, {expression.shape[-1]} of expression. "
                "See parameter_spread."
            )
        self.mean, self.identity, self.expression, self.depth = mean, identity, expression, depth
        self.spread = jnp.ones(parameters, mean.dtype) if spread is None else spread
        modes = jnp.concatenate([mean[..., None], identity, expression], axis=-1)
        moments = jnp.einsum("vam,vbn->mnab", modes, modes, precision="highest")
        self.moments = moments / count


def loss_basis(
    model: MorphableModel,
    vertices: Int[ArrayLike, " point"],
    identity_rank: int | None = None,
    spread: Float[Array, " parameter"] | None = None,
    depth: bool = True,
) -> LossBasis:
    """The basis of some vertices of a model, by id, with its first identity modes and all its expression units.

    Linear only: eyes are not turned by eyeLook, joints not by a rig, and mouthClose is not limited by jawOpen.
    """
    ids, count, rank = np.asarray(vertices), model.mean.shape[0], model.shape.rank
    if ids.size == 0 or ids.min() < 0 or ids.max() >= count:
        raise ValueError(
            f"loss_basis: got vertices {ids.min() if ids.size else 'none'}..{ids.max() if ids.size else ''}, expected "
            f"some of 0..{count - 1}. Are these ids of another model?"
        )
    if identity_rank is not None and not 0 <= identity_rank <= rank:
        raise ValueError(f"loss_basis: got identity_rank {identity_rank}, expected 0..{rank}, the model's modes.")
    if model.interaction is not None:
        raise ValueError(
            f"loss_basis: got {model.provenance.name}, whose expressions depend on the identity, expected a model that "
            "is linear. Give its tangent, model.linearised(identity, expression)."
        )
    return LossBasis(
        model.mean[ids], model.shape.modes[ids, :, :identity_rank], model.expression[ids], spread=spread, depth=depth
    )


def parameter_spread(vectors: Float[Array, "sample parameter"]) -> Float[Array, " parameter"]:
    """Standard deviation of each parameter among the truths of a training set; 1 for what never changes."""
    deviation = jnp.std(vectors, axis=0)
    return jnp.where(deviation > 0, deviation, 1.0)


def posed(basis: LossBasis, parameters: PosedParameters) -> Float[Array, "point axis"]:
    """The vertices in the crop, px: u, v and, if it counts, depth behind the head's origin at the same scale."""
    axes = 3 if basis.depth else 2
    # Full precision asked for: GPUs would round the factors to 10 bits.
    shape = basis.mean + jnp.matmul(basis.identity, parameters.identity, precision="highest")
    shape = shape + jnp.matmul(basis.expression, parameters.expression, precision="highest")
    turned = jnp.matmul(shape, scaled_rotation(parameters.quaternion)[:axes].T, precision="highest")
    return turned.at[:, :2].add(parameters.shift)


# ---------------------------------------------------------------------------------------------------------- losses


def pdc(basis: LossBasis, predicted: PosedParameters, truth: PosedParameters) -> Float[Array, ""]:
    """Parameter distance cost: the squared distance of the vectors (Zhu et al. 2016, equation 6)."""
    del basis
    return jnp.sum((predicted.vector - _on_side_of(truth, predicted).vector) ** 2)


def whitened_pdc(basis: LossBasis, predicted: PosedParameters, truth: PosedParameters) -> Float[Array, ""]:
    """PDC in standard deviations of the training set: else pixels of the shift drown coefficients."""
    return jnp.sum(_whitened_error(basis, predicted, truth) ** 2)


def vdc(basis: LossBasis, predicted: PosedParameters, truth: PosedParameters) -> Float[Array, ""]:
    """Vertex distance cost: the mean squared distance of posed vertices, px² (Zhu et al. 2016, equation 7)."""
    return jnp.mean(jnp.sum((posed(basis, predicted) - posed(basis, truth)) ** 2, axis=-1))


def wpdc(basis: LossBasis, predicted: PosedParameters, truth: PosedParameters) -> Float[Array, ""]:
    """Weighted parameter distance cost: squared whitened errors, each by how far it moves the vertices.

    Zhu et al. (2016), equation 8, with the weights over their largest (Guo et al. 2020) rather than over their sum,
    so that the number of coefficients does not scale the loss. Weights are constants in derivatives. This is the
    definition, and the measure of `fwpdc`.
    """
    return _weighted(basis, predicted, truth, _of_largest(movements(basis, predicted, truth)))


def fwpdc(basis: LossBasis, predicted: PosedParameters, truth: PosedParameters) -> Float[Array, ""]:
    """WPDC from norms of the basis instead of vertices: the same value (Guo et al. 2020, fast WPDC)."""
    return _weighted(basis, predicted, truth, _of_largest(fast_movements(basis, predicted, truth)))


def owpdc(basis: LossBasis, predicted: PosedParameters, truth: PosedParameters) -> Float[Array, ""]:
    """Optimised WPDC: the weights are the `mending_shares` (Zhu et al. 2019)."""
    return _weighted(basis, predicted, truth, mending_shares(basis, predicted, truth))


def movements(basis: LossBasis, predicted: PosedParameters, truth: PosedParameters) -> Float[Array, " parameter"]:
    """Root-mean-square distance (px) by which vertices would be off, were each parameter alone as predicted.

    By definition, hence a set of vertices for every parameter. Constant in derivatives.
    """
    predicted, truth = lax.stop_gradient((predicted, _on_side_of(truth, predicted)))
    right, wrong = truth.vector, predicted.vector
    target = posed(basis, truth)

    def movement(index: Int[Array, ""]) -> Float[Array, ""]:
        alone = truth.with_vector(right.at[index].set(wrong[index]))
        return jnp.sqrt(jnp.mean(jnp.sum((posed(basis, alone) - target) ** 2, axis=-1)))

    return jax.vmap(movement)(jnp.arange(right.shape[0]))


def fast_movements(basis: LossBasis, predicted: PosedParameters, truth: PosedParameters) -> Float[Array, " parameter"]:
    """`movements` in closed form, at a cost that does not depend on the number of vertices.

    With the moments G of the basis and P = M(q), the rows of M that count:
    a mode's coefficient, wrong by d, moves vertices by d P b_m: |d| √tr(P G_mm Pᵀ), the norm of the mode as seen;
    an entry of the quaternion moves them by D X with D = M(q + d e) - M(q): √tr(D C Dᵀ), C the truth's own moments,
    which are Σ c_m c_n G_mn; the shift moves all by |d|.
    """
    predicted, truth = lax.stop_gradient((predicted, _on_side_of(truth, predicted)))
    axes, q = 3 if basis.depth else 2, truth.quaternion
    error = jnp.abs(predicted.vector - truth.vector)

    own = jnp.concatenate([jnp.ones(1, q.dtype), truth.identity, truth.expression])
    shape = jnp.einsum("m,n,mnab->ab", own, own, basis.moments, precision="highest")
    steps = jnp.diag(predicted.quaternion - q)
    change = jax.vmap(lambda step: _polar(2.0 * q + step, step)[:axes])(steps)
    turned = jnp.einsum("kra,ab,krb->k", change, shape, change, precision="highest")

    view = scaled_rotation(q)[:axes]
    seen = jnp.einsum("ra,mmab,rb->m", view, basis.moments, view, precision="highest")[1:]
    # Rounding may leave a little less than nothing of a mode seen along its direction.
    turned, seen = (jnp.sqrt(jnp.maximum(square, 0.0)) for square in (turned, seen))
    return jnp.concatenate([turned, error[4:_POSE], seen * error[_POSE:]])


def mending_shares(
    basis: LossBasis, predicted: PosedParameters, truth: PosedParameters, ridge: float = 0.1
) -> Float[Array, " parameter"]:
    """Which share of each parameter's error, 0 to 1, is best mended where mending costs: the weights of OWPDC.

    WPDC takes parameters one by one; errors that undo each other, of scale and depth or of two similar modes, weigh as
    much as errors that add up. Zhu et al. (2019) ask for the shares w that leave least of the vertices' error and cost
    least: with d the error, e the whitened one and J the derivative of the posed vertices at the truth,
    minimal |J (1 - w) d|² / |J d|² + ridge |w e|² / |e|² for 0 <= w <= 1. What is wrong alone has 1 / (1 + ridge), what
    mends little 0; the ridge is a choice of ours. Constant in derivatives.
    """
    predicted, truth = lax.stop_gradient((predicted, _on_side_of(truth, predicted)))
    error = predicted.vector - truth.vector
    slope = jax.jacfwd(lambda vector: posed(basis, truth.with_vector(vector)))(truth.vector)
    moves = (slope * error).reshape(-1, error.shape[0])
    gram = jnp.matmul(moves.T, moves, precision="highest")
    cost = (error / basis.spread) ** 2
    tiny = jnp.finfo(gram.dtype).tiny
    gram = gram / jnp.maximum(jnp.sum(gram), tiny)
    pull = jnp.sum(gram, axis=1)
    bowl = gram + ridge * jnp.diag(cost / jnp.maximum(jnp.sum(cost), tiny))
    # A diagonal that is larger than the bowl in every direction (Gershgorin): the steps keep within the box.
    step = 1.0 / jnp.maximum(jnp.sum(jnp.abs(bowl), axis=1), tiny)

    # Accelerated projected gradient (Beck & Teboulle 2009, FISTA).
    def sweep(_, state):
        shares, ahead, momentum = state
        moved = jnp.clip(ahead - step * (bowl @ ahead - pull), 0.0, 1.0)
        longer = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2))
        return moved, moved + (momentum - 1.0) / longer * (moved - shares), longer

    start = jnp.zeros_like(error)
    return lax.fori_loop(0, _SWEEPS, sweep, (start, start, jnp.ones((), error.dtype)))[0]


def _whitened_error(basis, predicted, truth):
    return (predicted.vector - _on_side_of(truth, predicted).vector) / basis.spread


def _of_largest(weights):
    """At the truth none moves anything: zeros, not 0 / 0."""
    return weights / jnp.maximum(jnp.max(weights), jnp.finfo(weights.dtype).tiny)


def _weighted(basis, predicted, truth, weights):
    return jnp.sum(weights * _whitened_error(basis, predicted, truth) ** 2)


LossName = Literal["pdc", "whitened_pdc", "vdc", "wpdc", "fwpdc", "owpdc"]
ParameterLoss = Callable[[LossBasis, PosedParameters, PosedParameters], Float[Array, ""]]

PARAMETER_LOSSES: dict[LossName, ParameterLoss] = {
    "pdc": pdc,
    "whitened_pdc": whitened_pdc,
    "vdc": vdc,
    "wpdc": wpdc,
    "fwpdc": fwpdc,
    "owpdc": owpdc,
}


def landmark_regression_loss(
    regressed: Float[Array, "landmark 2"], truth: Float[Array, "landmark 2"]
) -> Float[Array, ""]:
    """Mean squared distance (px²) of landmarks that a second head regresses from the same feature, to be added.

    Landmark-regression regularisation (Guo et al. 2020): the head is dropped after training; what it
    teaches is the feature. Rows of NaN in the truth are hidden points and do not count.
    """
    known = jnp.isfinite(truth).all(axis=-1)
    # The NaN are replaced before the difference: a zero weight after it would still have a derivative of NaN.
    apart = regressed - jnp.where(known[:, None], truth, lax.stop_gradient(regressed))
    return jnp.sum(apart**2) / jnp.maximum(jnp.sum(known), 1)


# ------------------------------------------------------------------------------------------------------ meta-joint

State = TypeVar("State")
Batch = TypeVar("Batch")


class Choice(NamedTuple):
    """What looking ahead found."""

    state: Any  # after the steps with the loss that did best
    chosen: int  # which one that is
    errors: Float[np.ndarray, " loss"]  # of each, on the held batch


def choose_loss(
    state: State,
    advances: Sequence[Callable[[State, Batch], State]],
    error: Callable[[State, Batch], Float[Array, ""]],
    batches: Sequence[Batch],
    held: Batch,
) -> Choice:
    """Trains some steps with each of several losses, keeps what does best on a batch that none has seen.

    Meta-joint optimisation (Guo et al. 2020) has two, fWPDC and VDC, and the VDC as the error: far from
    the truth the first goes faster, close to it the second goes where it should, and nobody need say when.
    `batches` are those of the steps one after the other; `advances` and `error` are compiled by who calls.
    The steps are the training, not a trial of it: go on from `Choice.state`. A loss that led to NaN is not chosen, as
    long as another did not.
    """
    if not advances:
        raise ValueError("choose_loss: got no advances, expected one for each loss to choose from.")
    ends = [functools.reduce(advance, batches, state) for advance in advances]
    errors = np.array([float(error(end, held)) for end in ends])
    chosen = int(np.argmin(np.where(np.isnan(errors), np.inf, errors)))
    return Choice(ends[chosen], chosen, errors)
