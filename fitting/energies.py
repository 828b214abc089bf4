"""Energy terms: each knows its observation and its noise and returns whitened residuals.

What a term is, is said in `fitting.terms`; the terms that look at pixels live in `fitting.photometric` (samples of the
skin) and `fitting.pixels` (whole pictures through the renderer). All of them can be imported from here, but for
`fitting.outline.OutlineTerm`, which stands with what finds outlines in photos.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from fitting.parameters import FaceParameters, retract, within_limits
from fitting.photometric import PhotometricTerm as PhotometricTerm
from fitting.pixels import RenderedTerm as RenderedTerm
from fitting.pixels import SilhouetteTerm as SilhouetteTerm
from fitting.surface_samples import PointBasis
from fitting.terms import AbstractKernel as AbstractKernel
from fitting.terms import AbstractResidualTerm, AbstractTerm, GemanMcClure, Huber, Quadratic, Terms, fold
from morphable.landmarks import ContourFans
from morphable.model import MorphableModel
from renderer.camera import swing_to


def project(
    face: FaceParameters, points: Float[Array, "point 3"], centre: Float[Array, "2"]
) -> Float[Array, "point 2"]:
    """Pixels of head-space points through the face's pinhole camera, principal point at `centre`."""
    camera = jax.vmap(lambda x: face.pose @ x)(points)
    return jnp.exp(face.log_focal) * camera[:, :2] / camera[:, 2:] + centre


# ------------------------------------------------------------------------------------------------- points and contours


class LandmarkTerm(AbstractTerm):
    """Reprojection error of surface points, in standard deviations, with errors that several points share.

    Whoever places landmarks decides where a brow's points or the nose ridge's lie, and is then wrong for all points of
    that feature together. `shared` holds such displacements on the head, one standard deviation each. Their amplitudes
    ~ N(0, 1) are eliminated: the energy is the smallest over them and the normal equations are the Schur complement.
    This is a full covariance of the points, in which each point keeps its robust kernel.
    """

    basis: PointBasis
    points_px: Float[Array, "point 2"]
    sigma_px: Float[Array, " point"]  # inf drops a point
    centre: Float[Array, "2"]
    shared: Float[Array, "mode point 3"] | None = None  # mm in head space
    kernel: AbstractKernel = eqx.field(default_factory=lambda: Huber(3.0))

    def residuals(self, face: FaceParameters) -> Float[Array, "point 2"]:
        """Whitened errors of the points, less the most probable shared ones."""
        return self._residuals(face, self.amplitude(face))

    def _residuals(self, face, amplitude):
        shaped = self.basis.positions(face.identity, face.expression)
        if self.shared is not None:
            shaped = shaped + jnp.tensordot(amplitude, self.shared, 1)
        return (project(face, shaped, self.centre) - self.points_px) / self.sigma_px[:, None]

    def amplitude(self, face: FaceParameters) -> Float[Array, " mode"]:
        """The most probable amplitudes of the shared errors for this face, by reweighted least squares."""
        if self.shared is None:
            return jnp.zeros(0)
        face = lax.stop_gradient(face)  # at their best the energy's derivative does not see them
        start = jnp.zeros(self.shared.shape[0])
        error, columns = self._residuals(face, start), self._columns(face, start)

        def reweighted(_, amplitude):
            weight = self.kernel.weight(jnp.sum((error + columns @ amplitude) ** 2, axis=1))
            weighted = columns * weight[:, None, None]
            system = jnp.einsum("pcm,pcn->mn", weighted, columns) + jnp.eye(len(start))
            return -jnp.linalg.solve(system, jnp.einsum("pcm,pc->m", weighted, error))

        # All zeros where the source's points follow the model's own convention: nothing to solve for.
        return lax.cond(jnp.any(self.shared != 0), lambda: lax.fori_loop(0, 4, reweighted, start), lambda: start)

    def _columns(self, face, amplitude):
        return jax.jacfwd(lambda a: self._residuals(face, a))(amplitude)

    def energy(self, face):
        amplitude = self.amplitude(face)
        square = jnp.sum(self._residuals(face, amplitude) ** 2, axis=1)
        return 0.5 * jnp.sum(self.kernel.rho(square)) + 0.5 * jnp.sum(amplitude**2)

    def flat_residuals(self, face):
        amplitude = self.amplitude(face)
        rows = self._residuals(face, amplitude)
        return jnp.concatenate([fold(rows, jnp.sum(rows**2, axis=1), self.kernel).reshape(-1), amplitude])

    def linearise(self, face):
        amplitude = self.amplitude(face)

        def moved(step):
            rows = self._residuals(retract(face, step), amplitude)
            return rows, rows

        jacobian, rows = jax.jacfwd(moved, has_aux=True)(jnp.zeros(face.layout.size))
        square = jnp.sum(rows**2, axis=1)
        root = jnp.sqrt(self.kernel.weight(square))[:, None]
        jacobian = (jacobian * root[..., None]).reshape(-1, jacobian.shape[-1])
        hessian, gradient = jacobian.T @ jacobian, jacobian.T @ (rows * root).reshape(-1)
        if self.shared is not None:
            columns = (self._columns(face, amplitude) * root[..., None]).reshape(len(jacobian), -1)
            cross = columns.T @ jacobian
            hessian = hessian - cross.T @ jnp.linalg.solve(columns.T @ columns + jnp.eye(len(amplitude)), cross)
        return Quadratic(hessian, gradient, 0.5 * jnp.sum(self.kernel.rho(square)) + 0.5 * jnp.sum(amplitude**2))


# Measured on 150 renderings of our own heads: from here on dlib's far jaw points are nearer to the fans' outermost
# points than to the fixed ones (at 24-32 degrees 1-5 mm against 12-17 mm); the near ones always to the fixed ones.
OUTLINE_YAW_DEG = 10.0


class JawTerm(AbstractResidualTerm):
    """The 17 jaw landmarks, each free to slide along the projected jaw line.

    Detectors and annotators place jaw points somewhere on the outline: across it they are accurate, along it they
    carry little information. Measured: fixed points err a tenth more (research/accuracy, section 1). Under a turned
    head the outline itself moves over the surface, so the points are taken from the model's contour fans, as far as
    the head is turned.
    """

    fixed: PointBasis  # the 17 jaw landmarks
    contour: PointBasis  # candidates, path by path
    points_px: Float[Array, "17 2"]
    sigma_across_px: Float[Array, "17"]  # inf drops a point
    sigma_along_px: Float[Array, "17"]
    centre: Float[Array, "2"]
    robust: AbstractKernel = eqx.field(default_factory=lambda: Huber(3.0))

    def residuals(self, face):
        basis = self.on_outline(lax.stop_gradient(face))
        pixels = project(face, basis.positions(face.identity, face.expression), self.centre)
        line = lax.stop_gradient(pixels)
        along = jnp.concatenate([line[1:2] - line[:1], line[2:] - line[:-2], line[-1:] - line[-2:-1]])
        along = along / jnp.sqrt(jnp.sum(along**2, axis=1, keepdims=True) + 1e-12)
        across = jnp.stack([-along[:, 1], along[:, 0]], axis=1)
        error = pixels - self.points_px
        return jnp.concatenate(
            [
                (jnp.sum(error * across, axis=1) / self.sigma_across_px)[:, None],
                (jnp.sum(error * along, axis=1) / self.sigma_along_px)[:, None],
            ]
        )

    def kernel(self):
        return self.robust

    def on_outline(self, face: FaceParameters) -> PointBasis:
        """The surface points that stand for the jaw landmarks in this view."""
        paths = self.fixed.mean.shape[0]
        steps = self.contour.mean.shape[0] // paths
        candidates = project(face, self.contour.positions(face.identity, face.expression), self.centre).reshape(
            paths, steps, 2
        )
        rotation = face.pose.rotation().as_matrix()
        chosen = ContourFans.outermost(candidates, rotation) + steps * jnp.arange(paths)
        # Where the camera is, seen from the head: the half on its other side shows its outline, the near half does not.
        camera = face.pose.inverse().translation()
        yaw = jnp.arctan2(camera[0], camera[2])
        left = jnp.arange(paths) - paths // 2  # of the subject, which is +x
        away = (jnp.abs(yaw) > jnp.deg2rad(OUTLINE_YAW_DEG)) & (jnp.sign(yaw) * left < 0)
        return PointBasis(
            jnp.where(away[:, None], self.contour.mean[chosen], self.fixed.mean),
            jnp.where(away[:, None, None], self.contour.modes[chosen], self.fixed.modes),
        )


class RelativeTerm(AbstractResidualTerm):
    """Differences between pairs of landmarks: how far lids and lips are apart, wherever they are.

    DECA's eye-closure and lip-distance losses (Feng et al. 2021, section 4.1): a common shift of both points, which
    detectors make often, changes nothing, so the opening can be trusted more than the points.
    """

    upper: PointBasis
    lower: PointBasis
    difference_px: Float[Array, "pair 2"]  # upper minus lower in the photo
    sigma_px: Float[Array, " pair"]  # inf drops a pair
    centre: Float[Array, "2"]
    robust: AbstractKernel = eqx.field(default_factory=lambda: Huber(3.0))

    def residuals(self, face):
        at = lambda basis: project(face, basis.positions(face.identity, face.expression), self.centre)  # noqa: E731
        return (at(self.upper) - at(self.lower) - self.difference_px) / self.sigma_px[:, None]

    def kernel(self):
        return self.robust


LIDS = ((37, 41), (38, 40), (43, 47), (44, 46))  # upper and lower lids of iBUG-68
INNER_LIPS = ((61, 67), (62, 66), (63, 65))


def relative_term(
    landmarks: PointBasis,
    points_px: Float[Array, "68 2"],
    pairs: Sequence[tuple[int, int]],
    sigma_px: float | Float[Array, ""] | Float[Array, " pair"],
    centre: Float[Array, "2"],
) -> RelativeTerm:
    """The term of pairs of the 68 landmarks, such as LIDS or INNER_LIPS; pairs with NaN say nothing."""
    upper, lower = (np.array(side) for side in zip(*pairs, strict=True))
    part = lambda s: PointBasis(landmarks.mean[s], landmarks.modes[s])  # noqa: E731
    difference = points_px[upper] - points_px[lower]
    known = jnp.all(jnp.isfinite(difference), axis=1)
    return RelativeTerm(
        part(upper),
        part(lower),
        jnp.where(known[:, None], difference, 0.0),
        jnp.where(known, sigma_px, jnp.inf),
        centre,
    )


class OccludingEdgeTerm(AbstractResidualTerm):
    """The head's outline against edges found in the image: eos's closest-edge term (Bas et al. 2016, section 3.4).

    Mesh edges between a triangle that faces the camera and one that does not make the outline. Each is drawn to the
    closest of the given image points, along the normal there. Which edges and which points are decided anew in every
    evaluation and held fixed in its derivative. Edges of hair and background attract as strongly as the face's: use
    it on the outline of a segmentation (research/accuracy, section 3: raw image edges are a lottery).
    """

    vertices: PointBasis  # of a mesh
    edges: Int[Array, "edge 2"]  # vertex ids
    faces: Int[Array, "edge 2 3"]  # vertex ids of the two triangles at each edge
    points_px: Float[Array, "point 2"]
    normals: Float[Array, "point 2"]  # unit, of the image's edge
    sigma_px: Float[Array, ""]
    reach_px: Float[Array, ""]  # farther points are not this edge's
    centre: Float[Array, "2"]
    count: int = eqx.field(static=True, default=256)  # most outline edges that are used

    def residuals(self, face):
        here = lax.stop_gradient(face)
        pixels = project(here, self.vertices.positions(here.identity, here.expression), self.centre)
        corners = pixels[self.faces]
        one, two = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
        turn = one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0]
        outline = turn[:, 0] * turn[:, 1] < 0
        # Evenly thinned where there are more: those of every n-th place in the mesh.
        rank = jnp.where(outline, jnp.arange(len(outline)) * 7919 % len(outline), len(outline))
        chosen = jnp.argsort(rank)[: self.count]
        used = outline[chosen]
        ends = self.edges[chosen]
        basis = PointBasis(
            (self.vertices.mean[ends[:, 0]] + self.vertices.mean[ends[:, 1]]) / 2,
            (self.vertices.modes[ends[:, 0]] + self.vertices.modes[ends[:, 1]]) / 2,
        )
        middle = project(face, basis.positions(face.identity, face.expression), self.centre)
        apart = jnp.sum((lax.stop_gradient(middle)[:, None] - self.points_px) ** 2, axis=2)
        closest = jnp.argmin(apart, axis=1)
        used = used & (jnp.min(apart, axis=1) < self.reach_px**2)
        across = jnp.sum((middle - self.points_px[closest]) * self.normals[closest], axis=1)
        return (jnp.where(used, across, 0.0) / self.sigma_px)[:, None]

    def kernel(self):
        return GemanMcClure(self.reach_px / self.sigma_px)


# --------------------------------------------------------------------------------------------------------- priors


class BlockPrior(AbstractTerm):
    """Independent Gaussians on one block of the parameters, or with the kernel `tails`."""

    block: str = eqx.field(static=True)
    mean: Float[Array, " n"]
    sigma: Float[Array, " n"]  # inf leaves an entry free
    tails: AbstractKernel | None = None

    def _whitened(self, face: FaceParameters) -> Float[Array, " n"]:
        return (face.block(self.block) - self.mean) / self.sigma

    def flat_residuals(self, face):
        r = self._whitened(face)
        return r if self.tails is None else fold(r[:, None], r**2, self.tails)[:, 0]

    def energy(self, face):
        square = self._whitened(face) ** 2
        return 0.5 * jnp.sum(square if self.tails is None else self.tails.rho(square))

    def linearise(self, face):
        size, at = face.layout.size, face.layout.block(self.block)
        r = self._whitened(face)
        weight = jnp.ones_like(r) if self.tails is None else self.tails.weight(r**2)
        diagonal = jnp.zeros(size).at[at].set(weight * self.sigma**-2)
        gradient = jnp.zeros(size).at[at].set(weight * r / self.sigma)
        return Quadratic(jnp.diag(diagonal), gradient, self.energy(face))


class PosePrior(AbstractResidualTerm):
    """A pose is close to another: a calibrated camera's, or that of the neighbouring frame."""

    pose: jaxlie.SE3
    sigma: Float[Array, "6"]  # mm and rad, in the head's axes; inf leaves a direction free

    def residuals(self, face):
        return ((self.pose.inverse() @ face.pose).log() / self.sigma)[:, None]


class SightedRotation(AbstractResidualTerm):
    """The head's rotation as somebody sees it who looks at a crop: along the ray to the crop's middle."""

    rotation: jaxlie.SO3  # camera from head, as of a head on the axis
    place_px: Float[Array, "2"]  # the crop's middle in the picture
    centre: Float[Array, "2"]  # principal point
    sigma: Float[Array, ""]  # rad about each axis; inf says nothing

    def residuals(self, face):
        ray = swing_to((self.place_px - self.centre) / jnp.exp(face.log_focal))
        seen = ray.inverse() @ face.pose.rotation()
        return ((self.rotation.inverse() @ seen).log() / self.sigma)[:, None]


class DistancePrior(AbstractResidualTerm):
    """Log-normal prior on the distance from camera to head.

    With an unknown lens it is the distance, not the focal length, that photographs of people share: crops change the
    focal length in pixels, nothing changes that people are photographed from half a metre to a few metres.
    """

    log_distance: Float[Array, ""]
    sigma: Float[Array, ""]

    def residuals(self, face):
        depth = jnp.maximum(face.pose.translation()[2], 1.0)
        return ((jnp.log(depth) - self.log_distance) / self.sigma)[None, None]


class BoundsTerm(AbstractResidualTerm):
    """An expression weight outside of its limits, [0, 1] for ARKit's units, costs its distance from them.

    Levenberg-Marquardt keeps the bounds exactly and needs no such term; solvers that know no bounds do.
    """

    sigma: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.array(0.02))

    def residuals(self, face):
        outside = face.expression - within_limits(face).expression
        return (outside / self.sigma)[:, None]


class SymmetryTerm(AbstractResidualTerm):
    """Faces are nearly symmetric: the neutral shape against its mirror image, and left units against right ones."""

    asymmetry: PointBasis  # a point minus the mirror image of its counterpart, mm
    left: Int[Array, " pair"]  # expression units
    right: Int[Array, " pair"]
    sigma_mm: Float[Array, ""]
    sigma_weight: Float[Array, ""]  # of the difference of two weights; inf leaves expressions alone

    def residuals(self, face):
        shape = self.asymmetry.positions(face.identity, jnp.zeros_like(face.expression)).reshape(-1) / self.sigma_mm
        weights = (face.expression[self.left] - face.expression[self.right]) / self.sigma_weight
        return jnp.concatenate([shape, weights])[:, None]


def symmetry_term(
    model: MorphableModel, sigma_mm: float, sigma_weight: float = np.inf, count: int = 200, seed: int = 0
) -> SymmetryTerm:
    """The term for `count` random pairs of face vertices and every pair of ...Left, ...Right units."""
    mirror = np.asarray(model.mirror)
    face = np.asarray(model.masks.get("face", np.ones(len(mirror)))) > 0.5
    candidates = np.flatnonzero(face & (np.arange(len(mirror)) < mirror))
    chosen = np.random.default_rng(seed).permutation(candidates)[:count]
    if len(chosen) == 0:
        raise ValueError(
            f"symmetry_term: {model.provenance.name} pairs no two vertices of its face; expected `mirror` to map each "
            "vertex to the one on the other side. Give the model a mirror table."
        )
    flip = np.array([-1.0, 1.0, 1.0], np.float32)
    mean, modes = np.asarray(model.shape.mean), np.asarray(model.shape.modes)
    units = np.zeros((len(chosen), 3, len(model.expression_names)), np.float32)
    across = lambda x: x[chosen] - flip.reshape(1, 3, *[1] * (x.ndim - 2)) * x[mirror[chosen]]  # noqa: E731
    names = model.expression_names
    other = {n: n.removesuffix("Left") + "Right" for n in names if n.endswith("Left")}
    pairs = [(names.index(n), names.index(o)) for n, o in other.items() if o in names]
    left, right = np.array(pairs, np.int32).reshape(-1, 2).T
    return SymmetryTerm(
        PointBasis(jnp.asarray(across(mean)), jnp.asarray(np.concatenate([across(modes), units], axis=2))),
        jnp.asarray(left),
        jnp.asarray(right),
        # Each vertex pair is one observation of a smooth field, not an independent one.
        jnp.asarray(sigma_mm * np.sqrt(len(chosen) / 10), jnp.float32),
        jnp.asarray(sigma_weight, jnp.float32),
    )


class TemporalTerm(AbstractResidualTerm):
    """Smoothness over time: a face is close to where its predecessor was, or was going.

    With `before` the prediction is the previous face moved on by its last motion (constant velocity), without it the
    previous face itself.
    """

    previous: FaceParameters
    before: FaceParameters | None
    sigma_pose: Float[Array, "6"]  # mm and rad per frame
    sigma_expression: Float[Array, ""]  # weight per frame

    def residuals(self, face):
        expected = self.previous.pose
        weights = self.previous.expression
        if self.before is not None:
            expected = expected @ (self.before.pose.inverse() @ self.previous.pose)
            weights = jnp.clip(2.0 * weights - self.before.expression, *face.limits)
        moved = (expected.inverse() @ face.pose).log() / self.sigma_pose
        changed = (face.expression - weights) / self.sigma_expression
        return jnp.concatenate([moved, changed])[:, None]


class AsymmetricTerm(AbstractTerm):
    """Asymmetric Euclidean loss between coefficients and a target (Tran et al. 2017, equation 2).

    With g⁺ = |g|, p⁺ = sign(g) p and m = max(g⁺, p⁺) it is λ₁ |g⁺ - m|² + λ₂ |p⁺ - m|²: an estimate that falls short of
    the target's size is the rounding towards the mean that least squares prefers, and costs λ₂ > λ₁; one that goes
    beyond costs λ₁. Here λ = 1 / (2 σ²).
    """

    block: str = eqx.field(static=True)
    target: Float[Array, " n"]
    sigma_over: Float[Array, ""]  # larger than ...
    sigma_under: Float[Array, ""]

    def _rows(self, face):
        size = jnp.abs(self.target)
        signed = jnp.where(self.target < 0, -1.0, 1.0) * face.block(self.block)
        beyond = signed - size
        sigma = jnp.where(beyond > 0, self.sigma_over, self.sigma_under)
        return beyond / sigma, jnp.where(self.target < 0, -1.0, 1.0) / sigma

    def flat_residuals(self, face: FaceParameters) -> Float[Array, " n"]:
        return self._rows(face)[0]

    def energy(self, face):
        return 0.5 * jnp.sum(self._rows(face)[0] ** 2)

    def linearise(self, face):
        size, at = face.layout.size, face.layout.block(self.block)
        r, slope = self._rows(face)
        diagonal = jnp.zeros(size).at[at].set(slope**2)
        return Quadratic(jnp.diag(diagonal), jnp.zeros(size).at[at].set(r * slope), 0.5 * jnp.sum(r**2))


# ------------------------------------------------------------------------------------------ other images, other models


class EmbeddingTerm(AbstractResidualTerm):
    """Distance between embeddings of a picture of the face and of a reference, by any callable.

    `embed(face)` draws the face as it likes and returns a vector: an identity network on a rendering, a perceptual
    feature, a regressor's code. Half the squared residual is (1 - cosine) / sigma²: DECA's identity loss.
    """

    embed: Callable[[FaceParameters], Float[Array, " feature"]]
    reference: Float[Array, " feature"]
    sigma: Float[Array, ""]

    def residuals(self, face):
        unit = lambda v: v / jnp.sqrt(jnp.sum(v**2) + 1e-20)  # noqa: E731
        return ((unit(self.embed(face)) - unit(self.reference)) / self.sigma)[:, None]


class ShapeConsistencyTerm(AbstractTerm):
    """This face's identity must explain the person's other images as well: DECA's shape consistency.

    Every other image comes with its terms and its own face; their energy is taken with this face's identity in place
    of theirs. Only the identity moves: the others' poses, expressions and lights are data here.
    """

    others: Sequence[tuple[FaceParameters, Terms]]

    def _swapped(self, face):
        for theirs, terms in self.others:
            swapped = eqx.tree_at(lambda f: f.identity, theirs, face.identity)
            for term in terms.values():
                yield swapped, term

    def energy(self, face):
        return sum((term.energy(swapped) for swapped, term in self._swapped(face)), start=jnp.array(0.0))

    def flat_residuals(self, face: FaceParameters) -> Float[Array, " row"]:
        return jnp.concatenate([term.flat_residuals(swapped) for swapped, term in self._swapped(face)])

    def linearise(self, face):
        size, at = face.layout.size, face.layout.block("identity")
        total = Quadratic(jnp.zeros((size, size)), jnp.zeros(size), jnp.array(0.0))
        for swapped, term in self._swapped(face):
            theirs, their = term.linearise(swapped), swapped.layout.block("identity")
            total = total + Quadratic(
                jnp.zeros((size, size)).at[at, at].set(theirs.hessian[their, their]),
                jnp.zeros(size).at[at].set(theirs.gradient[their]),
                theirs.energy,
            )
        return total
