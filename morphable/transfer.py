"""One topology's face in another's: dense correspondence of two models, and the second model's nearest coefficients."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float
from scipy.optimize import lsq_linear
from scipy.sparse.linalg import splu

from morphable.laplacian import cotangent_laplacian
from morphable.model import MorphableModel
from morphable.part_map import map_parts
from morphable.registration import Similarity, register, similarity
from morphable.registration.closest_points import SurfaceSearch
from morphable.registration.correspondence import SurfaceMap

_REACH_MM = 3.0  # a vertex farther than this from the other model's surface has no counterpart there
_NOISE_MM = 0.5  # of a vertex of the target, for the coefficients that explain it
_ROUNDS = 15  # of rigid motion and coefficients in turn
_EXPRESSION_SIGMA = 0.3  # of blendshape weights; principal components have 1


class Correspondence(NamedTuple):
    """Where on model `source` the vertices of model `target` lie, once and for all faces."""

    source: MorphableModel
    target: MorphableModel
    places: SurfaceMap  # for each vertex of the target a triangle of the source
    matched: Bool[np.ndarray, " vertex"]  # of the target: has a counterpart


class Transferred(NamedTuple):
    """A face of one model in the topology of another. Lengths in mm, in the first model's head space."""

    vertices: Float[np.ndarray, "vertex 3"]  # of the second topology, on the first one's surface
    neutral_vertices: Float[np.ndarray, "vertex 3"]
    matched: Bool[np.ndarray, " vertex"]  # the others have no counterpart and follow their neighbours
    identity: Float[np.ndarray, " rank"]  # coefficients of the second model that come nearest
    expression: Float[np.ndarray, " unit"]
    motion: Similarity  # second model's head space -> first model's: where those coefficients' face lies
    surface_error: Float[np.ndarray, " matched"]  # of `vertices`' surface from the first one's surface
    model_error: Float[np.ndarray, " matched"]  # of the coefficients' face from `vertices`


def correspond(source: MorphableModel, target: MorphableModel) -> Correspondence:
    """Dense correspondence of two models by laying the source's template on the target's mean face.

    Raises RegistrationError where it does not come to lie there.
    """
    mean, triangles = np.asarray(target.mean, float), np.asarray(target.triangles)
    skin = np.asarray(target.part_of_vertex) == (target.part_names.index("skin") if "skin" in target.part_names else 0)
    marks = np.asarray(target.landmarks(target.mean), float)
    laid = register(source, (mean, triangles[skin[triangles].all(axis=1)]), marks, scaled=False)
    places = map_parts(mean, triangles, np.asarray(target.part_of_vertex), target.part_names, laid.vertices, source)
    covered = (places.weights * laid.matched[places.corners]).sum(axis=1) > 0.5
    matched = skin & covered & (places.distance < _REACH_MM)
    for name in set(target.part_names) & set(source.part_names) - {"skin"}:
        matched |= (np.asarray(target.part_of_vertex) == target.part_names.index(name)) & np.isfinite(places.distance)
    return Correspondence(source, target, places, matched)


def transfer(
    between: Correspondence,
    vertices: Float[np.ndarray, "sourcevertex 3"],
    neutral_vertices: Float[np.ndarray, "sourcevertex 3"] | None = None,
) -> Transferred:
    """A face of the source in the topology of the target; without a neutral the face counts as neutral.

    Vertices with a counterpart lie on the face's surface; the displacement of the others from the mean is the smoothest
    that continues theirs (Botsch & Sorkine 2008: the biharmonic field). The coefficients are the posterior mean of the
    target's model given those vertices, _NOISE_MM each, and a rigid motion that is free.
    """
    c = between
    face = np.asarray(vertices, float)
    rest = face if neutral_vertices is None else np.asarray(neutral_vertices, float)
    for what, points in (("vertices", face), ("neutral_vertices", rest)):
        if points.shape != (len(c.source.mean), 3):
            raise ValueError(
                f"transfer: got {what} of shape {points.shape}, expected {(len(c.source.mean), 3)}: a face of "
                f"{c.source.provenance.name}. Was it fitted with another model?"
            )
    moved, calm = (_continued(c, points) for points in (face, rest))
    identity, motion = _identity(c, calm)
    expression = _expression(c, moved, calm, identity, motion) if neutral_vertices is not None else _no_expression(c)
    coefficients = (jnp.asarray(identity, jnp.float32), jnp.asarray(expression, jnp.float32))
    instance = motion(np.asarray(c.target.vertices(*coefficients), float))
    triangles = np.asarray(c.target.triangles)
    inside = triangles[c.matched[triangles].all(axis=1)]
    original = SurfaceSearch(face, np.asarray(c.source.triangles))
    # Middles of triangles, too: vertices lie on the surface by construction, what is between them need not.
    middles = moved[inside].mean(axis=1)
    surface_error = original.closest(np.concatenate([moved[c.matched], middles])).distance
    model_error = np.linalg.norm(instance - moved, axis=1)[c.matched]
    return Transferred(moved, calm, c.matched, identity, expression, motion, surface_error, model_error)


def _continued(c: Correspondence, face: Float[np.ndarray, "sourcevertex 3"]) -> Float[np.ndarray, "vertex 3"]:
    """The target's vertices on a face of the source, and those without counterpart where their neighbours take them."""
    on, mean = c.places(face), np.asarray(c.target.mean, float)
    here = similarity(mean[c.matched], on[c.matched], scaled=False)(mean)
    change = np.where(c.matched[:, None], on - here, 0.0)
    triangles = np.asarray(c.target.triangles)
    laplacian = cotangent_laplacian(here, triangles)
    free = ~c.matched & (laplacian.mass > 0)
    if free.any():
        reach = np.median(np.linalg.norm(here[triangles[:, 0]] - here[triangles[:, 1]], axis=1))
        stiff = sp.csc_matrix(laplacian.stiffness)
        # A trace of mass keeps pieces that touch nothing known at their place; they are carried as a whole below.
        bent = stiff[free] @ sp.diags(1 / np.maximum(laplacian.mass, 1e-9)) @ stiff
        known = c.matched
        system = (bent[:, free] + 1e-9 / reach**2 * sp.eye(int(free.sum()))).tocsc()
        change[free] = splu(system).solve(-np.asarray(bent[:, known] @ change[known]))
    loose = _loose_pieces(triangles, c.matched)
    for piece in loose:
        # What hangs on nothing (teeth, eyeballs that the source has not) moves with the skin around its middle.
        near = np.argsort(np.linalg.norm(here[c.matched] - here[piece].mean(axis=0), axis=1))[:200]
        change[piece] = change[c.matched][near].mean(axis=0)
    unused = np.setdiff1d(np.flatnonzero(~c.matched), np.unique(triangles))
    change[unused] = 0.0
    return here + change


def _loose_pieces(triangles, matched) -> list[np.ndarray]:
    count = len(matched)
    graph = sp.csr_matrix(
        (np.ones(2 * len(triangles)), (triangles[:, [0, 1]].ravel(), triangles[:, [1, 2]].ravel())),
        shape=(count, count),
    )
    _, piece = sp.csgraph.connected_components(graph, directed=False)
    known = np.bincount(piece, matched)
    used = np.zeros(count, bool)
    used[triangles] = True
    return [np.flatnonzero(piece == k) for k in np.flatnonzero(known == 0) if used[piece == k].any()]


def _identity(c: Correspondence, calm: Float[np.ndarray, "vertex 3"]):
    """Coefficients and rigid motion, in turn, of the target's model that explain the neutral face."""
    model, use = c.target, _sampled(c)
    modes, mean = np.asarray(model.shape.modes, float)[use].reshape(3 * len(use), -1), np.asarray(model.mean, float)
    gram = modes.T @ modes + _NOISE_MM**2 * np.eye(modes.shape[1])
    motion, identity = similarity(mean[use], calm[use], scaled=False), np.zeros(modes.shape[1])
    for _ in range(_ROUNDS):
        wanted = motion.inverse()(calm[use]) - mean[use]
        identity = np.linalg.solve(gram, modes.T @ wanted.reshape(-1))
        shape = mean[use] + (modes @ identity).reshape(-1, 3)
        motion = similarity(shape, calm[use], scaled=False)
    return identity, motion


def _expression(c, moved, calm, identity, motion) -> Float[np.ndarray, " unit"]:
    """Expression weights within their limits that explain how the face differs from its neutral."""
    model, use = c.target, _sampled(c)
    units = np.asarray(model.expression, float)[use]
    if model.interaction is not None:
        units = units + np.asarray(model.interaction, float)[use] @ identity
    units = units.reshape(3 * len(use), -1)
    if not units.shape[1]:
        return np.zeros(0)
    wanted = (motion.inverse()(moved[use]) - motion.inverse()(calm[use])).reshape(-1)
    sigma = 1.0 if model.expression_kind == "components" else _EXPRESSION_SIGMA
    gram = units.T @ units / _NOISE_MM**2 + np.eye(units.shape[1]) / sigma**2
    root = np.linalg.cholesky(gram).T
    right = np.linalg.solve(root.T, units.T @ wanted / _NOISE_MM**2)
    low, high = np.asarray(model.expression_limits, float)
    return lsq_linear(root, right, bounds=(low, high)).x


def _no_expression(c: Correspondence) -> Float[np.ndarray, " unit"]:
    return np.zeros(len(c.target.expression_names))


def _sampled(c: Correspondence, most: int = 4000):
    """Matched skin vertices, thinned to a few thousand: more say nothing new of a hundred coefficients."""
    use = np.flatnonzero(c.matched)
    return use[:: max(1, len(use) // most)]
