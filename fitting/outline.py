"""Where the head ends in a photo: its outline between two colour models, and the term that holds the face to it.

A turned head shows its profile against what is behind it, and a profile tells depths that landmarks do not. Edges of
an image are a poor guide to it (research/accuracy, section 3: raw edges are a lottery). Here each point of the
model's own outline asks where, along its normal, colours change from those inside of the head nearby to those outside
nearby: the contracting curve density algorithm (Hanek & Beetz 2004), which also says how sure it is. Pixels
that may not be used, such as those labelled as covering the face, do not count.

NumPy between the stages of a fit: nothing here is differentiated but the term.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.ndimage import map_coordinates

from fitting.energies import project
from fitting.parameters import FaceParameters
from fitting.schedule import Problem
from fitting.surface_samples import PointBasis
from fitting.terms import AbstractResidualTerm, GemanMcClure
from morphable.mesh import vertex_normals
from morphable.model import MorphableModel
from renderer.rasterize import rasterize

POINTS = 128  # of an outline that a term holds: one compiled program for all
SIGMA_MM = 4.0  # a head of the model's lies so far from a real one's outline, many millimetres at a time
REACH_MM = 9.0  # to each side, in which the end of the head is looked for
TURNED_DEG = 15.0  # a head that is turned less shows cheeks and jaw, which hair covers: no outline of its own
_CUTOFF = 3.0  # deviations beyond which a point is not the outline's
_UNSURE_PX = 1.5  # a place that is known less well is not used
_APART_PX = 2.0  # closer points see the same pixels and count as one
_NEARBY_PX = 6.0  # along the outline, from where colours are gathered
_STEP_PX = 0.5  # along the normal
_ROUNDS = 3  # of gathering colours about the place found last
_FADE = 0.7  # of the bands' width from round to round
_NARROWEST_PX = 4.0
_COLOUR_NOISE = 0.03  # least deviation of a colour model, sRGB-encoded
_EVIDENCE = 2.0  # most that one pixel may say, as a logarithm of odds
_CORRELATED_PX = 2.5  # neighbouring pixels that say the same
_MEETS_MM, _MEETS_SURELY_PX = 2.5, 1.2  # what counts as the model's outline being where the head ends


class OutlineTerm(AbstractResidualTerm):
    """Points of the head's outline lie on lines in the picture: the distance across, in deviations."""

    basis: PointBasis
    place_px: Float[Array, "point 2"]
    normal: Float[Array, "point 2"]  # unit
    sigma_px: Float[Array, " point"]  # inf drops a point
    centre: Float[Array, "2"]

    def residuals(self, face: FaceParameters) -> Float[Array, "point 1"]:
        """Whitened distances along the normals."""
        pixels = project(face, self.basis.positions(face.identity, face.expression), self.centre)
        return (jnp.sum((pixels - self.place_px) * self.normal, axis=1) / self.sigma_px)[:, None]

    def kernel(self) -> GemanMcClure:
        """Bounded: hair, a hand and clothes end elsewhere."""
        return GemanMcClure(_CUTOFF)


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """The model's outline in a picture and how far from it the head ends there."""

    ends: Int[np.ndarray, "point 2"]  # of mesh edges, as rows of OutlineModel's region
    share: Float[np.ndarray, " point"]  # of the second end
    pixels: Float[np.ndarray, "point 2"]
    normal: Float[np.ndarray, "point 2"]  # unit, out of the head
    offset_px: Float[np.ndarray, " point"]  # along the normal, to where the head ends
    unsure_px: Float[np.ndarray, " point"]  # deviation of that
    mm_per_px: float  # at the head

    @property
    def meets(self) -> float:
        """The share of the outline that lies where the head ends; 0 for an outline too short to tell."""
        if len(self.share) < 20:
            return 0.0
        close = np.abs(self.offset_px) * self.mm_per_px < _MEETS_MM
        return float(np.mean(close & (self.unsure_px < _MEETS_SURELY_PX)))


def _nowhere() -> Outline:
    none, pairs = np.zeros(0), np.zeros((0, 2))
    return Outline(np.zeros((0, 2), int), none, pairs, pairs, none, none, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class OutlineModel:
    """What outlines need of a morphable model: the face's skin, vertex by vertex."""

    mean: Float[np.ndarray, "vertex 3"]
    modes: Float[np.ndarray, "vertex 3 coefficient"]  # identity, then expression
    triangles: Int[np.ndarray, "triangle 3"]
    edges: Int[np.ndarray, "edge 2"]  # whose ends both are skin that hair leaves bare

    def outline(self, problem: Problem, face: FaceParameters, reach_mm: float = REACH_MM) -> Outline:
        """The far side of a turned head: empty where it is turned by less than TURNED_DEG, or out of the picture."""
        points, normals = self._in_camera(face)
        focal, centre = float(np.exp(face.log_focal)), np.asarray(problem.centre, float)
        first, second = self.edges.T
        facing = -np.sum(normals * points, axis=1) / np.linalg.norm(points, axis=1)
        turns = facing[first] * facing[second] < 0
        first, second = first[turns], second[turns]
        share = facing[first] / (facing[first] - facing[second])
        mixed = lambda x: x[first] * (1 - share)[:, None] + x[second] * share[:, None]  # noqa: E731
        at, out = mixed(points), mixed(normals)[:, :2]
        out = out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)
        pixels = focal * at[:, :2] / at[:, 2:] + centre
        forward = np.asarray(face.pose.rotation().as_matrix(), float)[:, 2]
        turned = np.hypot(forward[0], forward[1]) > np.sin(np.radians(TURNED_DEG))
        keep = turned & (out @ forward[:2] > 0) & _ends_there(_head(problem, face), pixels, out)
        keep = _thinned(np.flatnonzero(keep), POINTS)
        ends, share, pixels, out = np.stack([first, second], axis=1)[keep], share[keep], pixels[keep], out[keep]
        mm_per_px = float(face.pose.translation()[2]) / focal
        offset, unsure = _ends_of_head(
            np.asarray(problem.pyramid[-1]), np.asarray(problem.valid), pixels, out, reach_mm / mm_per_px
        )
        return Outline(ends, share, pixels, out, offset, unsure, mm_per_px)

    def term(self, problem: Problem, outline: Outline | None, sigma_mm: float = SIGMA_MM) -> OutlineTerm:
        """The term that draws a face to where its head ends; one that says nothing without an outline."""
        outline = _nowhere() if outline is None else outline
        pixels, unsure, normal = outline.pixels, outline.unsure_px, outline.normal
        near = np.linalg.norm(pixels[:, None] - pixels, axis=2) < 2 * _APART_PX
        crowd = np.maximum(near.sum(axis=1) / 2, 1.0)
        sigma = np.hypot(sigma_mm / outline.mm_per_px, unsure) * np.sqrt(crowd)
        sigma = np.where(unsure < _UNSURE_PX, sigma, np.inf)
        (first, second), share = outline.ends.T, outline.share

        def rows(values, fill: float = 0.0):
            padded = np.full((POINTS, *values.shape[1:]), fill, np.float32)
            padded[: len(values)] = values
            return jnp.asarray(padded)

        def mixed(values):
            part = share.reshape(-1, *[1] * (values.ndim - 1))
            return rows(values[first] * (1 - part) + values[second] * part)

        return OutlineTerm(
            PointBasis(mixed(self.mean), mixed(self.modes)),
            rows(pixels + outline.offset_px[:, None] * normal),
            rows(normal),
            rows(sigma, np.inf),
            problem.centre,
        )

    def seen_in(self, problem: Problem, face: FaceParameters) -> Problem:
        """The problem with the term "outline" for where the head ends about a face."""
        return self.with_term(problem, self.outline(problem, face))

    def with_term(self, problem: Problem, outline: Outline | None, sigma_mm: float = SIGMA_MM) -> Problem:
        """The problem with the term "outline", in place of one that it may have."""
        return dataclasses.replace(problem, extra={**problem.extra, "outline": self.term(problem, outline, sigma_mm)})

    def _in_camera(self, face: FaceParameters) -> tuple[Float[np.ndarray, "vertex 3"], Float[np.ndarray, "vertex 3"]]:
        """Vertices and unit normals."""
        weights = np.concatenate([np.asarray(face.identity), np.asarray(face.expression)])
        head = (self.mean + self.modes @ weights).astype(float)
        points = head @ np.asarray(face.pose.rotation().as_matrix(), float).T + np.asarray(face.pose.translation())
        normals = _normals(jnp.asarray(points, jnp.float32), jnp.asarray(self.triangles))
        return points, np.asarray(normals, float)


def outline_model(model: MorphableModel) -> OutlineModel:
    """Prepare a morphable model for outlines; see OutlineModel."""
    mask = lambda name, otherwise: np.asarray(model.masks.get(name, np.full(len(model.mean), otherwise)))  # noqa: E731
    # One ring more than the face, so that normals on its border are whole.
    triangles = np.asarray(model.triangles)
    triangles = triangles[(mask("face", 1.0)[triangles] > 0.5).any(axis=1)]
    used, triangles = np.unique(triangles, return_inverse=True)
    triangles = triangles.reshape(-1, 3)
    bare = (mask("face", 1.0) > 0.9) & (mask("scalp", 0.0) < 0.4) & (mask("ears", 0.0) < 0.2)
    bare = (bare & (mask("interior", 0.0) < 0.5))[used]
    edges = np.unique(np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)
    return OutlineModel(
        mean=np.asarray(model.shape.mean)[used],
        modes=np.concatenate([np.asarray(model.shape.modes)[used], np.asarray(model.expression)[used]], axis=2),
        triangles=triangles,
        edges=edges[bare[edges].all(axis=1)],
    )


_normals = eqx.filter_jit(vertex_normals)


@eqx.filter_jit
def _head(problem: Problem, face: FaceParameters) -> Bool[Array, "height width"]:
    """Where the picture shows any of the head."""
    vertices = problem.model.proxy.positions(face.identity, face.expression)
    depth = vertices @ face.pose.rotation().as_matrix()[2] + face.pose.translation()[2]
    pixels = project(face, vertices, problem.centre)
    return rasterize(pixels, depth, problem.model.proxy_triangles, *problem.valid.shape) >= 0


def _thinned(rows: Int[np.ndarray, " row"], count: int) -> Int[np.ndarray, " kept"]:
    """At most `count` of the rows, evenly."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def _ends_there(
    head: Bool[Array, "height width"], pixels: Float[np.ndarray, "point 2"], normal: Float[np.ndarray, "point 2"]
) -> Bool[np.ndarray, " point"]:
    """Whether nothing of the head lies outside of a point, and the head inside."""
    mask = np.asarray(head)
    size = np.array(mask.shape[::-1])

    def at(distance: float):
        place = np.floor(pixels + distance * normal).astype(int)
        column, row = np.clip(place, 0, size - 1).T
        return mask[row, column], ((place >= 0) & (place < size)).all(axis=1)

    (inside, shown), (outside, also), (beyond, _) = at(-2.0), at(4.0), at(10.0)
    return inside & shown & ~outside & also & ~beyond


def _ends_of_head(
    picture: Float[np.ndarray, "height width 3"],
    valid: Float[np.ndarray, "height width"],
    pixels: Float[np.ndarray, "point 2"],
    normal: Float[np.ndarray, "point 2"],
    reach: float,
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """Offset along the normal to where the head's colours end, and its deviation, px. Contracting curve density.

    Each round gathers the colours of a band inside and one outside of the present curve, Gaussians over the stretch of
    outline nearby, asks every pixel along the normal on which side it lies, and weighs all places at which the two
    sides could meet. The bands then narrow about the places that were found.
    """
    offset, unsure = np.zeros(len(pixels)), np.zeros(len(pixels))
    if len(pixels) == 0:
        return offset, unsure
    along = np.arange(-3.2 * reach, 3.2 * reach + 1e-6, _STEP_PX)
    places = pixels[:, None] + along[None, :, None] * normal[:, None]
    where = [places[..., 1] - 0.5, places[..., 0] - 0.5]
    colour = np.stack([map_coordinates(picture[..., k], where, order=1, mode="nearest") for k in range(3)], axis=-1)
    known = map_coordinates(valid, where, order=1, mode="constant") > 0.5
    apart = np.sum((pixels[:, None] - pixels) ** 2, axis=2)
    neighbours = np.exp(-0.5 * apart / _NEARBY_PX**2) * np.clip(normal @ normal.T, 0, 1)
    shift, width = np.zeros(len(pixels)), reach
    here = np.abs(along) <= 1.5 * reach
    candidates = along[here]
    for _ in range(_ROUNDS):
        relative = along[None] - shift[:, None]
        band = lambda low, high, r=relative: _gathered(colour, known & (r >= low) & (r <= high), neighbours)  # noqa: E731
        (inner, spread_in), (outer, spread_out) = band(-2 * width, -0.4 * width), band(0.4 * width, 2 * width)
        # Blurred pixels of the border are of neither colour, and all would fall to the wider of two unequal Gaussians.
        common = 0.5 * (spread_in + spread_out)
        inside = _log_density(colour[:, here], inner, 0.5 * (spread_in + common))
        odds = inside - _log_density(colour[:, here], outer, 0.5 * (spread_out + common))
        odds = np.clip(odds, -_EVIDENCE, _EVIDENCE) * known[:, here]
        odds = odds * np.exp(-0.5 * (relative[:, here] / (1.5 * width)) ** 2)
        # All before the end is inside, all after it outside.
        before = np.cumsum(odds, axis=1)
        score = (2 * before - odds - before[:, -1:]) * _STEP_PX / _CORRELATED_PX
        score = score - 0.5 * (candidates / (0.6 * reach)) ** 2
        chance = np.exp(score - score.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)
        offset = chance @ candidates
        unsure = np.sqrt(np.sum(chance * (candidates - offset[:, None]) ** 2, axis=1))
        trust = neighbours / (unsure**2 + 0.25)
        shift, width = (trust @ offset) / trust.sum(axis=1), max(_FADE * width, _NARROWEST_PX)
    return offset, unsure


def _gathered(colour, chosen, neighbours) -> tuple[Float[np.ndarray, "point 3"], Float[np.ndarray, "point 3 3"]]:
    """Mean and covariance of the chosen colours about each point of the outline."""
    picked = colour * chosen[..., None]
    count = np.maximum(neighbours @ chosen.sum(axis=1), 1e-6)
    mean = neighbours @ picked.sum(axis=1) / count[:, None]
    square = np.einsum("psi,psj->pij", picked, colour).reshape(-1, 9)
    second = (neighbours @ square / count[:, None]).reshape(-1, 3, 3)
    return mean, second - mean[:, :, None] * mean[:, None] + _COLOUR_NOISE**2 * np.eye(3)


def _log_density(colour, mean, covariance) -> Float[np.ndarray, "point place"]:
    """Logarithm of each point's Gaussian, but for a constant."""
    away = colour - mean[:, None]
    # Where nothing was gathered the covariance is that of noise alone, and never singular.
    inverse = np.linalg.inv(covariance)
    square = np.einsum("psi,pij,psj->ps", away, inverse, away)
    return -0.5 * (square + np.linalg.slogdet(covariance)[1][:, None])
