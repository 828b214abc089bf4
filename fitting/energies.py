"""Energy terms: each knows its observation and its noise and returns whitened residuals.

A term's energy is ½ Σ ρ(|r|²) over its rows, with r in standard deviations and ρ a robust kernel. The same residuals
serve first-order methods (`energy` is differentiable) and Gauss-Newton (`linearise` gives JᵀJ and Jᵀr). Terms with few
rows are linearised by forward-mode differentiation; the photometric term, with thousands of rows, assembles its
normal equations in a structured way and is tested against the generic one.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fitting.parameters import FaceParameters, retract
from fitting.surface_samples import BLOCK, PointBasis, SkinSamples
from morphable.colour import linear_to_srgb, srgb_to_linear
from morphable.landmarks import ContourFans
from renderer.light import sh_basis


class Quadratic(eqx.Module):
    """A local model of an energy: energy + gradient · step + ½ step · hessian · step."""

    hessian: Float[Array, "step step"]
    gradient: Float[Array, " step"]
    energy: Float[Array, ""]

    def __add__(self, other: "Quadratic") -> "Quadratic":
        return Quadratic(self.hessian + other.hessian, self.gradient + other.gradient, self.energy + other.energy)


class Huber(eqx.Module):
    """Quadratic up to `cutoff` standard deviations, linear beyond (Huber 1964)."""

    cutoff: Float[Array, ""]

    def rho(self, square: Float[Array, "..."]) -> Float[Array, "..."]:
        """Robust energy of a squared residual norm."""
        k = self.cutoff
        return jnp.where(square <= k**2, square, 2 * k * jnp.sqrt(jnp.maximum(square, k**2)) - k**2)

    def weight(self, square: Float[Array, "..."]) -> Float[Array, "..."]:
        """Derivative of rho: the factor of iteratively reweighted least squares."""
        return self.cutoff / jnp.sqrt(jnp.maximum(square, self.cutoff**2))


class AbstractTerm(eqx.Module):
    """One additive part of the energy."""

    @abc.abstractmethod
    def energy(self, face: FaceParameters) -> Float[Array, ""]:
        """½ Σ ρ(|r|²)."""

    @abc.abstractmethod
    def linearise(self, face: FaceParameters) -> Quadratic:
        """Gauss-Newton model of the energy about a face, in the flat step of `fitting.parameters`."""


class AbstractResidualTerm(AbstractTerm):
    """A term given by rows of whitened residuals; each row's norm goes through a robust kernel."""

    @abc.abstractmethod
    def residuals(self, face: FaceParameters) -> Float[Array, "row column"]:
        """Whitened residuals."""

    @abc.abstractmethod
    def kernel(self) -> Huber | None:
        """The robust kernel of a row, or None for plain least squares."""

    def energy(self, face: FaceParameters) -> Float[Array, ""]:
        square = jnp.sum(self.residuals(face) ** 2, axis=1)
        kernel = self.kernel()
        return 0.5 * jnp.sum(square if kernel is None else kernel.rho(square))

    def linearise(self, face: FaceParameters) -> Quadratic:
        def moved(step):
            rows = self.residuals(retract(face, step))
            return rows, rows

        jacobian, rows = jax.jacfwd(moved, has_aux=True)(jnp.zeros(face.layout.size))
        square = jnp.sum(rows**2, axis=1)
        kernel = self.kernel()
        if kernel is None:
            weight, energy = jnp.ones_like(square), 0.5 * jnp.sum(square)
        else:
            weight, energy = kernel.weight(square), 0.5 * jnp.sum(kernel.rho(square))
        flat = (jacobian * jnp.sqrt(weight)[:, None, None]).reshape(-1, jacobian.shape[-1])
        weighted = (rows * jnp.sqrt(weight)[:, None]).reshape(-1)
        return Quadratic(flat.T @ flat, flat.T @ weighted, energy)


def project(
    face: FaceParameters, points: Float[Array, "point 3"], centre: Float[Array, "2"]
) -> Float[Array, "point 2"]:
    """Pixels of head-space points through the face's pinhole camera, principal point at `centre`."""
    camera = jax.vmap(lambda x: face.pose @ x)(points)
    return jnp.exp(face.log_focal) * camera[:, :2] / camera[:, 2:] + centre


class LandmarkTerm(AbstractResidualTerm):
    """Reprojection error of surface points, in standard deviations."""

    basis: PointBasis
    points_px: Float[Array, "point 2"]
    sigma_px: Float[Array, " point"]  # inf drops a point
    centre: Float[Array, "2"]
    cutoff: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.array(3.0))

    def residuals(self, face):
        shaped = self.basis.positions(face.identity, face.expression)
        return (project(face, shaped, self.centre) - self.points_px) / self.sigma_px[:, None]

    def kernel(self):
        return Huber(self.cutoff)


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
    cutoff: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.array(3.0))

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
        return Huber(self.cutoff)

    def on_outline(self, face: FaceParameters) -> PointBasis:
        """The surface points that stand for the jaw landmarks in this view."""
        paths = self.fixed.mean.shape[0]
        steps = self.contour.mean.shape[0] // paths
        candidates = project(face, self.contour.positions(face.identity, face.expression), self.centre).reshape(
            paths, steps, 2
        )
        rotation = face.pose.rotation().as_matrix()
        chosen = ContourFans.outermost(candidates, rotation) + steps * jnp.arange(paths)
        # Yaw and pitch as the angle between the head's forward axis and the viewing axis: below 15 degrees the
        # annotated points are better than the outline, which then runs over the cheeks' flanks.
        forward = rotation @ jnp.array([0.0, 0.0, 1.0])
        turned = jnp.abs(forward[2]) < jnp.cos(jnp.deg2rad(15.0))
        side = jnp.sign(forward[0]) * (jnp.arange(paths) - paths // 2)  # which half faces away from the camera
        away = turned & (side < 0)
        return PointBasis(
            jnp.where(away[:, None], self.contour.mean[chosen], self.fixed.mean),
            jnp.where(away[:, None, None], self.contour.modes[chosen], self.fixed.modes),
        )


class BlockPrior(AbstractTerm):
    """Independent Gaussians on one block of the parameters."""

    block: str = eqx.field(static=True)
    mean: Float[Array, " n"]
    sigma: Float[Array, " n"]  # inf leaves an entry free

    def _whitened(self, face: FaceParameters) -> Float[Array, " n"]:
        value = {
            "identity": lambda: face.identity,
            "expression": lambda: face.expression,
            "albedo": lambda: face.albedo,
            "light": lambda: face.light.reshape(-1),
            "focal": lambda: face.log_focal[None],
        }[self.block]()
        return (value - self.mean) / self.sigma

    def energy(self, face):
        return 0.5 * jnp.sum(self._whitened(face) ** 2)

    def linearise(self, face):
        size, at = face.layout.size, face.layout.block(self.block)
        r = self._whitened(face)
        diagonal = jnp.zeros(size).at[at].set(self.sigma**-2)
        return Quadratic(jnp.diag(diagonal), jnp.zeros(size).at[at].set(r / self.sigma), 0.5 * jnp.sum(r**2))


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

    def kernel(self):
        return None


class PhotometricTerm(AbstractTerm):
    """Colour of the skin under spherical-harmonics light against the photo, both sRGB-encoded.

    The kernel is Geman-McClure with a hard cut-off: with a quadratic or mildly robust loss, cast shadows, highlights
    and albedo outside the basis become shape (research/accuracy, section 2: up to 2.4 times the mean face's error).
    Neighbouring points see the same unmodelled effects, so 2000 points carry the weight of `sigma`, however many are
    evaluated.
    """

    skin: SkinSamples
    pyramid: Float[Array, "level height width 3"]  # sRGB-encoded, blurred
    valid: Float[Array, "height width"]  # 1 where the photo may be used
    visible: Float[Array, "block point"]  # 1 where a sample is seen
    level: Int[Array, ""]
    blocks: Int[Array, ""]  # how many blocks of samples are evaluated
    sigma: Float[Array, ""]  # of a colour channel, for 2000 samples
    cutoff: Float[Array, ""]  # colour; residuals beyond it count as outliers
    saturation: Float[Array, ""]  # encoded value above which a pixel says nothing
    centre: Float[Array, "2"]

    def _scale(self):
        return 2000.0 / (jnp.maximum(self.blocks, 1) * BLOCK) / self.sigma**2

    def energy(self, face):
        image = lax.dynamic_index_in_dim(self.pyramid, self.level, 0, False)

        # The number of blocks is traced, so that one program serves all levels, and reverse mode needs a fixed
        # trip count: all blocks are visited, those beyond `blocks` weigh nothing.
        def one(total, block):
            index, visible, geometry, modes, albedo, albedo_modes = block
            r, weight = self._residual(face, image, visible, geometry, modes, albedo, albedo_modes)
            s = jnp.mean(r**2, axis=0)
            rho = s / (1 + s / self.cutoff**2)
            return total + jnp.where(index < self.blocks, jnp.sum(weight * rho), 0.0), None

        skin = self.skin
        index = jnp.arange(skin.geometry.shape[0])
        inputs = (index, self.visible, skin.geometry, skin.geometry_modes, skin.albedo, skin.albedo_modes)
        total, _ = lax.scan(one, jnp.array(0.0), inputs)
        return 0.5 * 3 * self._scale() * total

    def _residual(self, face, image, visible, geometry, modes, albedo, albedo_modes):
        point = _SkinPoint(face, self.centre, image, self.valid, geometry, modes, albedo, albedo_modes)
        return point.residual, lax.stop_gradient(point.confidence(self.saturation) * visible)

    def linearise(self, face):
        """Two stages: per-point coefficients in a first loop, whose end materialises them, then one matrix product
        for each block and channel. Fusing them makes XLA recompute the coefficients for every column."""
        image = lax.dynamic_index_in_dim(self.pyramid, self.level, 0, False)
        skin, layout = self.skin, face.layout
        total_blocks = skin.geometry.shape[0]
        rows = 28  # residual, 9 geometry, albedo, 9 light, 6 pose, focal, weight
        pick = lambda x, i: lax.dynamic_index_in_dim(x, i, 0, False)  # noqa: E731

        def coefficients(i, carry):
            buffers, energy = carry
            point = _SkinPoint(
                face,
                self.centre,
                image,
                self.valid,
                *(pick(x, i) for x in (skin.geometry, skin.geometry_modes, skin.albedo, skin.albedo_modes)),
            )
            s = jnp.mean(point.residual**2, axis=0)
            base = point.confidence(self.saturation) * pick(self.visible, i) * self._scale()
            energy = energy + 1.5 * jnp.sum(base * s / (1 + s / self.cutoff**2))
            root = jnp.sqrt(base) / (1 + s / self.cutoff**2)
            stacked = [row * root for row in point.jacobian_rows()]
            return [
                lax.dynamic_update_slice(b, x[None], (i, 0, 0)) for b, x in zip(buffers, stacked, strict=True)
            ], energy

        buffers = [jnp.zeros((total_blocks, 3, BLOCK)) for _ in range(rows - 1)]
        buffers, energy = lax.fori_loop(0, self.blocks, coefficients, (buffers, jnp.array(0.0)))

        geometry = layout.identity_rank + layout.unit_count
        dense = geometry + layout.albedo_rank + 7

        def assemble(t, carry):
            hessian, cross, light, gradient, light_gradient = carry
            i, c = t // 3, t % 3
            row = [lax.dynamic_slice(b, (i, c, 0), (1, 1, BLOCK)).reshape(1, BLOCK) for b in buffers]
            r, light_rows = row[0][0], jnp.concatenate(row[11:20])
            modes = pick(skin.geometry_modes, i)
            shape = row[1] * modes[0]
            for k in range(1, 9):
                shape = shape + row[1 + k] * modes[k]
            colour = row[10] * lax.dynamic_slice(
                skin.albedo_modes, (i, c, 0, 0), (1, 1, layout.albedo_rank, BLOCK)
            ).reshape(layout.albedo_rank, BLOCK)
            jacobian = jnp.zeros((dense, BLOCK))
            jacobian = lax.dynamic_update_slice(jacobian, shape, (0, 0))
            jacobian = lax.dynamic_update_slice(jacobian, colour, (geometry, 0))
            jacobian = lax.dynamic_update_slice(
                jacobian, jnp.concatenate(row[20:27]), (geometry + layout.albedo_rank, 0)
            )
            product = lambda a, b: lax.dot_general(a, b, (((1,), (1,)), ((), ())))  # noqa: E731
            add = lambda x, v: lax.dynamic_update_index_in_dim(x, pick(x, c) + v, c, 0)  # noqa: E731
            return (
                hessian + product(jacobian, jacobian),
                add(cross, product(jacobian, light_rows)),
                add(light, product(light_rows, light_rows)),
                gradient + jacobian @ r,
                add(light_gradient, light_rows @ r),
            )

        zero = (
            jnp.zeros((dense, dense)),
            jnp.zeros((3, dense, 9)),
            jnp.zeros((3, 9, 9)),
            jnp.zeros(dense),
            jnp.zeros((3, 9)),
        )
        hessian, cross, light, gradient, light_gradient = lax.fori_loop(0, 3 * self.blocks, assemble, zero)
        # The light of one channel never meets another channel's pixels: its block is three 9 x 9 matrices.
        a = geometry + layout.albedo_rank
        cross = cross.transpose(1, 2, 0).reshape(dense, 27)
        channel = jnp.arange(3)
        light = jnp.zeros((9, 3, 9, 3)).at[:, channel, :, channel].set(light).reshape(27, 27)
        full = jnp.block(
            [
                [hessian[:a, :a], cross[:a], hessian[:a, a:]],
                [cross[:a].T, light, cross[a:].T],
                [hessian[a:, :a], cross[a:], hessian[a:, a:]],
            ]
        )
        step = jnp.concatenate([gradient[:a], light_gradient.T.reshape(27), gradient[a:]])
        return Quadratic(full, step, energy)

    def light(self, face: FaceParameters, ridge: Float[Array, " 27"]) -> Float[Array, "9 3"]:
        """The light that best explains the photo for this shape and albedo, by reweighted least squares."""
        image = lax.dynamic_index_in_dim(self.pyramid, self.level, 0, False)
        skin = self.skin

        def gather(_, block):
            index, visible, *data = block
            point = _SkinPoint(face, self.centre, image, self.valid, *data)
            use = point.confidence(self.saturation) * visible * (index < self.blocks)
            return None, (sh_basis(point.normal.T), point.albedo, srgb_to_linear(point.seen), use)

        index = jnp.arange(skin.geometry.shape[0])
        inputs = (index, self.visible, skin.geometry, skin.geometry_modes, skin.albedo, skin.albedo_modes)
        _, (basis, albedo, seen, use) = lax.scan(gather, None, inputs)
        basis, use = basis.reshape(-1, 9), use.reshape(-1)
        albedo, seen = (jnp.moveaxis(x, 1, 0).reshape(3, -1) for x in (albedo, seen))
        precision = (ridge.reshape(9, 3) ** -2).T * 0.01

        def reweighted(_, weight):
            light = solve(weight)
            error = jnp.sum((seen - albedo * (basis @ light).T) ** 2, axis=0)
            return use / (1 + error / 0.1**2)

        def solve(weight):
            def channel(a, b, p):
                design = basis * a[:, None]
                gram = (design * weight[:, None]).T @ design / (jnp.sum(weight) + 1e-6)
                right = design.T @ (weight * b) / (jnp.sum(weight) + 1e-6)
                return jnp.linalg.solve(gram + jnp.diag(p) * 0.02, right)

            return jax.vmap(channel)(albedo, seen, precision).T

        return solve(lax.fori_loop(0, 5, reweighted, use))


def _cross(a, b):
    return jnp.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


class _SkinPoint:
    """A block of samples rendered, with what its derivatives need. Arrays are (component, point)."""

    def __init__(self, face, centre, image, valid, geometry, geometry_modes, albedo, albedo_modes):
        coefficients = jnp.concatenate([face.identity, face.expression])
        rows = geometry + jnp.einsum("knp,n->kp", geometry_modes, coefficients)
        self.head, self.tangent_1, self.tangent_2 = rows[:3], rows[3:6], rows[6:9]
        self.rotation = face.pose.rotation().as_matrix()
        self.camera = self.rotation @ self.head + face.pose.translation()[:, None]
        focal = jnp.exp(face.log_focal)
        self.inverse_depth = 1 / self.camera[2]
        self.scale = focal * self.inverse_depth  # px per mm
        self.offset = self.scale * self.camera[:2]  # from the principal point
        self.pixel = self.offset + centre[:, None]
        normal = _cross(self.tangent_1, self.tangent_2)
        self.inverse_area = lax.rsqrt(jnp.sum(normal**2, axis=0) + 1e-20)
        self.head_normal = normal * self.inverse_area
        self.normal = self.rotation @ self.head_normal
        self.encoded_albedo = albedo + jnp.einsum("cnp,n->cp", albedo_modes, face.albedo)
        self.albedo = jnp.maximum(srgb_to_linear(self.encoded_albedo), 0.003)
        self.light = face.light
        self.basis = sh_basis(self.normal.T).T
        self.shade = face.light.T @ self.basis
        self.reflected = jnp.maximum(self.albedo * self.shade, 0.001)
        self.seen, self.d_column, self.d_row = _sample(image, self.pixel)
        self.usable = _sample(valid[..., None], self.pixel)[0][0]
        self.inside = jnp.all(
            (self.pixel > 1) & (self.pixel < jnp.array([[image.shape[1] - 1.0], [image.shape[0] - 1.0]])), axis=0
        )
        self.residual = linear_to_srgb(self.reflected) - self.seen

    def confidence(self, saturation) -> Float[Array, " point"]:
        """How far a sample may be believed: facing the camera, inside the photo, not saturated, not masked."""
        view = -jnp.sum(self.normal * self.camera, axis=0) * lax.rsqrt(jnp.sum(self.camera**2, axis=0))
        facing = jnp.clip((view - 0.2) / 0.2, 0.0, 1.0)
        saturated = jax.nn.sigmoid((saturation - jnp.max(self.seen, axis=0)) / 0.02)
        return facing * saturated * self.inside * (self.usable > 0.99) * (self.camera[2] > 1)

    def jacobian_rows(self) -> list[Float[Array, "3 point"]]:
        """Residual, then its derivatives: 9 geometry rows, albedo, 9 light bands, 6 pose, log focal; by channel."""
        slope = _encode_slope(self.reflected)
        # Image motion: the photo slides under the sample.
        du, dv = -self.d_column * self.scale, -self.d_row * self.scale
        along_depth = -(du * self.camera[0] + dv * self.camera[1]) * self.inverse_depth
        to_head = lambda x, y, z: [  # noqa: E731
            self.rotation[0, i] * x + self.rotation[1, i] * y + self.rotation[2, i] * z for i in range(3)
        ]
        position = to_head(du, dv, along_depth)
        # Shading: reflected colour changes with the normal.
        response = slope * self.albedo
        x, y, z = self.normal
        band = _SH_POLYNOMIALS
        s = [self.light[k][:, None] * band[k] for k in range(9)]
        gradient = [
            s[3] + y * s[4] + z * s[7] + 2 * x * s[8],
            s[1] + x * s[4] + z * s[5] - 2 * y * s[8],
            s[2] + y * s[5] + 6 * z * s[6] + x * s[7],
        ]
        head_gradient = [response * g for g in to_head(*gradient)]
        n = self.head_normal
        radial = head_gradient[0] * n[0] + head_gradient[1] * n[1] + head_gradient[2] * n[2]
        k = [(head_gradient[i] - radial * n[i]) * self.inverse_area for i in range(3)]
        tangent_1 = list(_cross(self.tangent_2, k))
        tangent_2 = list(_cross(k, self.tangent_1))
        decode = _decode_slope(self.encoded_albedo)
        albedo = slope * self.shade * decode
        light = [response * b for b in self.basis]
        # Twist on the head's side: translation moves along head axes, rotation turns position and normal.
        p = self.head
        turn = [a + b for a, b in zip(_cross(p, position), _cross(n, head_gradient), strict=True)]
        focal = -(self.d_column * self.offset[0] + self.d_row * self.offset[1])
        return [self.residual, *position, *tangent_1, *tangent_2, albedo, *light, *position, *turn, focal]


# Factors of the polynomials 1, y, z, x, xy, yz, 3z²-1, xz, x²-y² in renderer.light.sh_basis.
_SH_POLYNOMIALS = (0.282095, *(0.325735,) * 3, 0.273137, 0.273137, 0.078848, 0.273137, 0.136569)


def _encode_slope(linear):
    return jnp.where(linear <= 0.0031308, 12.92, 1.055 / 2.4 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4 - 1))


def _decode_slope(encoded):
    curved = 2.4 / 1.055 * ((jnp.maximum(encoded, 0.04045) + 0.055) / 1.055) ** 1.4
    return jnp.where(encoded <= 0.04045, 1 / 12.92, curved)


def _sample(image, pixel):
    """Bilinear value and its exact derivatives along columns and rows, (channel, point) each; clamped at the edge."""
    height, width, channels = image.shape
    u, v = pixel[0] - 0.5, pixel[1] - 0.5
    cu, cv = jnp.clip(u, 0.0, width - 1.001), jnp.clip(v, 0.0, height - 1.001)
    x, y = jnp.floor(cu), jnp.floor(cv)
    fx, fy = cu - lax.stop_gradient(x), cv - lax.stop_gradient(y)
    at = y.astype(jnp.int32) * width + x.astype(jnp.int32)
    values, columns, rows = [], [], []
    for c in range(channels):
        flat = image[..., c].reshape(-1)
        a, b, d, e = (flat.at[at + o].get(mode="promise_in_bounds") for o in (0, 1, width, width + 1))
        values.append((a * (1 - fx) + b * fx) * (1 - fy) + (d * (1 - fx) + e * fx) * fy)
        columns.append(((b - a) * (1 - fy) + (e - d) * fy) * (u == cu))
        rows.append(((d - a) * (1 - fx) + (e - b) * fx) * (v == cv))
    return jnp.stack(values), jnp.stack(columns), jnp.stack(rows)
