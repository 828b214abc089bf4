"""Multilinear models of identity and expression, and their exact form as a linear model with an interaction."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from morphable.statistics.principal_components import StatisticsError


class Multilinear(NamedTuple):
    """Shapes as a core tensor contracted with a subject's weights and an expression's (Vlasic et al. 2005)."""

    core: Float[np.ndarray, "vertex 3 identity expression"]
    identity: Float[np.ndarray, "subject identity"]  # each training subject's weights
    expression: Float[np.ndarray, "scan expression"]  # each training expression's

    def shape(
        self, identity: Float[np.ndarray, " identity"], expression: Float[np.ndarray, " expression"]
    ) -> Float[np.ndarray, "vertex 3"]:
        """The face with these weights, mm."""
        return self.core @ expression @ identity

    def reconstruction(self) -> Float[np.ndarray, "subject scan vertex 3"]:
        """The training shapes, exact where nothing was truncated."""
        return np.einsum("vcij,si,ej->sevc", self.core, self.identity, self.expression, optimize=True)


class Bilinear(NamedTuple):
    """x = mean + identity · c + expression · w + (interaction · c) · w: c ~ N(0, I), w in [0, 1] from the neutral."""

    mean: Float[np.ndarray, "vertex 3"]
    identity: Float[np.ndarray, "vertex 3 rank"]  # mm at one standard deviation
    expression: Float[np.ndarray, "vertex 3 unit"]  # mm at weight 1, of the mean face
    interaction: Float[np.ndarray, "vertex 3 unit rank"]  # what one standard deviation of identity adds to a unit

    def shape(
        self, identity: Float[np.ndarray, " rank"], expression: Float[np.ndarray, " unit"]
    ) -> Float[np.ndarray, "vertex 3"]:
        """The face with these coefficients and weights, mm."""
        units = self.expression + self.interaction @ identity
        return self.mean + self.identity @ identity + units @ expression


def higher_order_svd(
    shapes: Float[np.ndarray, "subject scan vertex 3"],
    identity_rank: int | None = None,
    expression_rank: int | None = None,
) -> Multilinear:
    """Truncated higher-order SVD (De Lathauwer, De Moor & Vandewalle 2000) of subjects in the same expressions.

    The factors' columns are orthonormal, the most important first, from the unfoldings' Gram matrices; the vertices'
    mode is left as it is, as in FaceWarehouse (Cao et al. 2014). Nothing is subtracted: the first weight of a subject
    and of an expression is nearly constant, and carries the mean.
    """
    subjects, scans = shapes.shape[:2]
    shapes = np.asarray(shapes, float)
    if not np.isfinite(shapes).all():
        raise StatisticsError(
            "higher_order_svd: some entries are not finite; expected every subject in every expression."
        )
    of_identity = subjects if identity_rank is None else identity_rank
    of_expression = scans if expression_rank is None else expression_rank
    if not (1 <= of_identity <= subjects and 1 <= of_expression <= scans):
        raise StatisticsError(
            f"higher_order_svd: got ranks {of_identity} and {of_expression}, expected 1..{subjects} and 1..{scans}."
        )
    identity = _left_vectors(shapes.reshape(subjects, -1), of_identity)
    expression = _left_vectors(shapes.swapaxes(0, 1).reshape(scans, -1), of_expression)
    core = np.einsum("sevc,si,ej->vcij", shapes, identity, expression, optimize=True)
    return Multilinear(core, identity, expression)


def bilinear_model(
    core: Float[np.ndarray, "vertex 3 identity expression"],
    identity_mean: Float[np.ndarray, " subject_weight"],
    identity_factor: Float[np.ndarray, "subject_weight rank"],
    neutral: Float[np.ndarray, " expression_weight"],
    expressions: Float[np.ndarray, "unit expression_weight"],
) -> Bilinear:
    """A multilinear model in this project's form, exactly.

    With a = identity_mean + identity_factor · c the weights of a subject, c ~ N(0, I), and
    b = neutral + Σ w_k (expressions_k - neutral) those of an expression, the shape Σ C_ij a_i b_j is bilinear in c and
    w: a mean, identity modes, blendshapes of the mean face, and an interaction. `identity_factor` is a factor of the
    weights' covariance in the population, `identity_distribution`'s for example.
    """
    if not (core.shape[2] == len(identity_mean) == len(identity_factor)) or not (
        core.shape[3] == len(neutral) == expressions.shape[1]
    ):
        raise StatisticsError(
            f"bilinear_model: got a core of shape {core.shape}, {len(identity_mean)} identity weights in the mean and "
            f"{len(identity_factor)} in the factor, {len(neutral)} expression weights of the neutral and "
            f"{expressions.shape[1]} of the others; expected the core's last two sizes."
        )
    deltas = (expressions - neutral).T
    moved = core @ deltas  # (vertex, 3, identity, unit)
    rest = core @ neutral
    return Bilinear(
        mean=rest @ identity_mean,
        identity=rest @ identity_factor,
        expression=np.einsum("vciu,i->vcu", moved, identity_mean),
        interaction=np.einsum("vciu,ir->vcur", moved, identity_factor, optimize=True),
    )


def identity_distribution(
    identity: Float[np.ndarray, "subject identity"],
) -> tuple[Float[np.ndarray, " identity"], Float[np.ndarray, "identity rank"]]:
    """Mean of subjects' weights and a factor F of their covariance F Fᵀ, by 1 / (m - 1), the largest column first.

    m subjects give at most m - 1 columns.
    """
    if len(identity) < 2:
        raise StatisticsError(f"identity_distribution: got {len(identity)} subjects, expected 2 or more.")
    mean = identity.mean(axis=0)
    _, deviations, axes = np.linalg.svd((identity - mean) / np.sqrt(len(identity) - 1), full_matrices=False)
    kept = deviations > 1e-10 * deviations[0]
    return mean, _signed(axes[kept].T) * deviations[kept]


def _left_vectors(unfolding, rank):
    return _signed(np.linalg.eigh(unfolding @ unfolding.T)[1][:, ::-1][:, :rank])


def _signed(columns):
    """Columns with positive sums, or first entries where they sum to nothing."""
    sums = columns.sum(axis=0)
    signs = np.where(np.abs(sums) > 1e-9, sums, columns[0])
    return columns * np.where(signs < 0, -1.0, 1.0)
