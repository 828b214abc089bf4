"""The photometric term: colour of the skin under spherical-harmonics light against the photo.

Its normal equations, thousands of rows by hundreds of unknowns, are most of a fit's time. They are assembled in two
stages (research/performance, section 3: within twice the time of the bare matrix product), and tested against forward
differentiation.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from fitting.parameters import FaceParameters
from fitting.surface_samples import SkinSamples, combine
from fitting.terms import AbstractTerm, GemanMcClure, Quadratic, fold
from morphable.colour import linear_to_srgb, srgb_to_linear
from renderer.light import sh_basis

NOMINAL_SAMPLES = 2000  # samples for which the term's deviation is stated


class PhotometricTerm(AbstractTerm):
    """Difference of rendered and photographed skin colour, both sRGB-encoded, at samples of the surface.

    The kernel is Geman-McClure with a hard cut-off: with a quadratic or mildly robust loss, cast shadows, highlights
    and albedo outside the basis become shape (research/accuracy, section 2: up to 2.4 times the mean face's error).
    Neighbouring points see the same unmodelled effects, so the samples together carry the weight of 2000 with deviation
    `sigma`, however many are evaluated. Which samples count is decided once for each stage (`sample_weights`): weights
    that moved with the face would be an energy of their own, and make Gauss-Newton stall.
    """

    skin: SkinSamples
    pyramid: Float[Array, "level height width 3"]  # sRGB-encoded, blurred
    weight: Float[Array, "block point"]  # how far each sample is believed, 0 to 1
    level: Int[Array, ""]
    blocks: Int[Array, ""]  # how many blocks of samples are evaluated
    sigma: Float[Array, ""]  # of a colour channel, for 2000 samples
    cutoff: Float[Array, ""]  # colour; residuals beyond it count as outliers
    centre: Float[Array, "2"]

    def _image(self):
        return lax.dynamic_index_in_dim(self.pyramid, self.level, 0, False)

    def _precision(self):
        evaluated = jnp.maximum(self.blocks, 1) * self.skin.geometry.shape[2]
        return NOMINAL_SAMPLES / evaluated / self.sigma**2

    def kernel(self) -> GemanMcClure:
        """The robust kernel of a sample's squared residual, summed over the three channels."""
        return GemanMcClure(jnp.sqrt(3.0) * self.cutoff)

    def residuals(self, face: FaceParameters) -> Float[Array, "block 3 point"]:
        """Rendered minus photographed colour of every sample, sRGB-encoded; not weighted, not whitened."""
        image, skin = self._image(), self.skin

        def one(_, block):
            return None, SkinPoints(face, self.centre, image, *block).residual

        return lax.scan(one, None, (skin.geometry, skin.geometry_modes, skin.albedo, skin.albedo_modes))[1]

    def inlier_weights(self, face: FaceParameters) -> Float[Array, "block point"]:
        """Weight of every sample in Gauss-Newton: belief times what the robust kernel leaves of it."""
        square = jnp.sum(self.residuals(face) ** 2, axis=1)
        return self._evaluated() * self.kernel().weight(square)

    def _evaluated(self):
        # The number of blocks is traced, so that one program serves all levels, and reverse mode needs a fixed trip
        # count: all blocks are visited, those beyond `blocks` weigh nothing.
        index = jnp.arange(self.weight.shape[0])[:, None]
        return jnp.where(index < self.blocks, self.weight, 0.0)

    def energy(self, face: FaceParameters) -> Float[Array, ""]:
        square = jnp.sum(self.residuals(face) ** 2, axis=1)
        return 0.5 * self._precision() * jnp.sum(self._evaluated() * self.kernel().rho(square))

    def flat_residuals(self, face: FaceParameters) -> Float[Array, " row"]:
        rows = jnp.moveaxis(self.residuals(face), 1, 2).reshape(-1, 3)
        folded = fold(rows, jnp.sum(rows**2, axis=1), self.kernel())
        return (folded * jnp.sqrt(self._precision() * self._evaluated().reshape(-1, 1))).reshape(-1)

    def linearise(self, face: FaceParameters) -> Quadratic:
        """Two stages: per-point coefficients in a first loop, whose end materialises them, then one matrix product
        for each block and channel. Fusing them makes XLA recompute the coefficients for every column."""
        image, kernel, precision = self._image(), self.kernel(), self._precision()
        skin, layout = self.skin, face.layout
        total_blocks, width = skin.geometry.shape[0], skin.geometry.shape[2]
        rows = 28  # residual, 9 geometry, albedo, 9 light and an offset, 6 pose, focal
        pick = lambda x, i: lax.dynamic_index_in_dim(x, i, 0, False)  # noqa: E731

        def coefficients(i, carry):
            buffers, energy = carry
            data = (pick(x, i) for x in (skin.geometry, skin.geometry_modes, skin.albedo, skin.albedo_modes))
            point = SkinPoints(face, self.centre, image, *data)
            square = jnp.sum(point.residual**2, axis=0)
            base = pick(self.weight, i) * precision
            energy = energy + 0.5 * jnp.sum(base * kernel.rho(square))
            root = jnp.sqrt(base * kernel.weight(square))
            stacked = [row * root for row in point.jacobian_rows()]
            return [
                lax.dynamic_update_slice(b, x[None], (i, 0, 0)) for b, x in zip(buffers, stacked, strict=True)
            ], energy

        buffers = [jnp.zeros((total_blocks, 3, width)) for _ in range(rows)]
        buffers, energy = lax.fori_loop(0, self.blocks, coefficients, (buffers, jnp.array(0.0)))

        geometry = layout.identity_rank + layout.unit_count
        dense = geometry + layout.albedo_rank + 7

        half = (dense + 1) // 2
        product = lambda a, b: lax.dot_general(a, b, (((1,), (1,)), ((), ())))  # noqa: E731

        def assemble(t, carry):
            (upper, side, lower), cross, light, gradient, light_gradient = carry
            i, c = t // 3, t % 3
            row = [lax.dynamic_slice(b, (i, c, 0), (1, 1, width)).reshape(1, width) for b in buffers]
            r, light_rows = row[0][0], jnp.concatenate(row[11:21])
            modes = pick(skin.geometry_modes, i)
            shape = row[1] * modes[0]
            for k in range(1, 9):
                shape = shape + row[1 + k] * modes[k]
            colour = row[10] * lax.dynamic_slice(
                skin.albedo_modes, (i, c, 0, 0), (1, 1, layout.albedo_rank, width)
            ).reshape(layout.albedo_rank, width)
            jacobian = jnp.zeros((dense, width))
            jacobian = lax.dynamic_update_slice(jacobian, shape, (0, 0))
            jacobian = lax.dynamic_update_slice(jacobian, colour, (geometry, 0))
            jacobian = lax.dynamic_update_slice(
                jacobian, jnp.concatenate(row[21:28]), (geometry + layout.albedo_rank, 0)
            )
            add = lambda x, v: lax.dynamic_update_index_in_dim(x, pick(x, c) + v, c, 0)  # noqa: E731
            # The product is symmetric: three quarters of it are enough.
            first, second = jacobian[:half], jacobian[half:]
            return (
                (upper + product(first, first), side + product(first, second), lower + product(second, second)),
                add(cross, product(jacobian, light_rows)),
                add(light, product(light_rows, light_rows)),
                gradient + jacobian @ r,
                add(light_gradient, light_rows @ r),
            )

        zero = (
            (jnp.zeros((half, half)), jnp.zeros((half, dense - half)), jnp.zeros((dense - half, dense - half))),
            jnp.zeros((3, dense, 10)),
            jnp.zeros((3, 10, 10)),
            jnp.zeros(dense),
            jnp.zeros((3, 10)),
        )
        quarters, cross, light, gradient, light_gradient = lax.fori_loop(0, 3 * self.blocks, assemble, zero)
        upper, side, lower = quarters
        hessian = jnp.block([[upper, side], [side.T, lower]])
        # The light and offset of one channel never meet another channel's pixels: their block is three 10 x 10
        # matrices, to be spread over 9 x 3 light coefficients and 3 offsets.
        channel = jnp.arange(3)
        spread = jnp.zeros((10, 3, 10, 3)).at[:, channel, :, channel].set(light).reshape(30, 30)
        cross = cross.transpose(1, 2, 0).reshape(dense, 30)
        joined = jnp.block([[hessian, cross], [cross.T, spread]])
        slope = jnp.concatenate([gradient, light_gradient.T.reshape(30)])
        # From (geometry, albedo, pose, focal, light, offset) to the layout's order.
        a = geometry + layout.albedo_rank
        order = jnp.concatenate(
            [jnp.arange(a), dense + jnp.arange(27), jnp.arange(a, dense), dense + 27 + jnp.arange(3)]
        )
        return Quadratic(joined[jnp.ix_(order, order)], slope[order], energy)

    def light(self, face: FaceParameters, ridge: Float[Array, " 27"]) -> Float[Array, "9 3"]:
        """The light that best explains the photo for this shape and albedo, by reweighted least squares."""
        image, skin = self._image(), self.skin

        def gather(_, block):
            point = SkinPoints(face, self.centre, image, *block)
            return None, (sh_basis(point.normal.T), point.albedo, srgb_to_linear(point.seen) - face.offset[:, None])

        inputs = (skin.geometry, skin.geometry_modes, skin.albedo, skin.albedo_modes)
        _, (basis, albedo, seen) = lax.scan(gather, None, inputs)
        basis, use = basis.reshape(-1, 9), self._evaluated().reshape(-1)
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

    def subset(self, key: PRNGKeyArray, count: int, face: FaceParameters) -> "PhotometricTerm":
        """A few samples drawn with probability proportional to their projected area, as an unbiased estimate.

        Blanz & Vetter (2003, section 4.2.1) draw triangles so. Samples are uniform on the surface, so the chance of
        one is its area in the image: the cosine of its angle over its squared distance. Its energy is divided by that
        chance, which keeps the expected energy that of all samples.
        """
        skin, width = self.skin, self.skin.geometry.shape[2]
        use = self._evaluated().reshape(-1)
        facing = lax.stop_gradient(self._projected_area(face)).reshape(-1)
        chance = jnp.where(use > 0, facing + 1e-6, 0.0)
        chance = chance / jnp.maximum(jnp.sum(chance), 1e-12)
        chosen = jax.random.categorical(key, jnp.log(jnp.maximum(chance, 1e-20)), shape=(count,))
        block, at = chosen // width, chosen % width
        # Gathered dimensions come first: (count, ...) back to (..., count).
        pick = lambda x: jnp.moveaxis(x[block, ..., at], 0, -1)[None]  # noqa: E731
        few = SkinSamples(pick(skin.geometry), pick(skin.geometry_modes), pick(skin.albedo), pick(skin.albedo_modes))
        total = self._precision() / (NOMINAL_SAMPLES / count / self.sigma**2)
        weight = total * use[chosen] / (count * jnp.maximum(chance[chosen], 1e-12))
        return PhotometricTerm(
            few,
            self.pyramid,
            weight[None],
            self.level,
            jnp.ones_like(self.blocks),
            self.sigma,
            self.cutoff,
            self.centre,
        )

    def _projected_area(self, face):
        skin = self.skin

        def one(_, block):
            point = SurfacePoints(face, *block)
            return None, point.facing() / point.camera[2] ** 2

        area = lax.scan(one, None, (skin.geometry, skin.geometry_modes))[1]
        return jnp.maximum(area, 0.0) * 1e6  # per (mm/m)², of order one


def sample_weights(
    skin: SkinSamples,
    face: FaceParameters,
    image: Float[Array, "height width 3"],
    valid: Float[Array, "height width"],
    visible: Float[Array, "block point"],
    saturation: Float[Array, ""],
    centre: Float[Array, "2"],
) -> Float[Array, "block point"]:
    """How far each sample may be believed: seen, facing the camera, inside the photo, not saturated, not masked.

    `valid` is 1 where the photo may be used; fractions are beliefs. `saturation` is the encoded value above which a
    pixel says nothing.
    """
    height, width = valid.shape

    def one(_, block):
        index, *data = block
        point = SkinPoints(face, centre, image, *data)
        saturated = jax.nn.sigmoid((saturation - jnp.max(point.seen, axis=0)) / 0.02)
        usable = _sample(valid[..., None], point.pixel)[0][0]
        inside = jnp.all((point.pixel > 1) & (point.pixel < jnp.array([[width - 1.0], [height - 1.0]])), axis=0)
        facing = jnp.clip((point.facing() - 0.2) / 0.2, 0.0, 1.0)
        # A sample's bilinear footprint must not touch what is not valid: beliefs fall to nothing below a half.
        belief = jnp.clip(2.0 * usable - 1.0, 0.0, 1.0)
        return None, visible[index] * facing * saturated * inside * belief * (point.camera[2] > 1)

    index = jnp.arange(skin.geometry.shape[0])
    inputs = (index, skin.geometry, skin.geometry_modes, skin.albedo, skin.albedo_modes)
    return lax.scan(one, None, inputs)[1]


def _cross(a, b):
    return jnp.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


class SurfacePoints:
    """A block of samples in space: arrays are (component, point), in mm."""

    def __init__(self, face: FaceParameters, geometry, geometry_modes):
        coefficients = jnp.concatenate([face.identity, face.expression])
        rows = combine(geometry, geometry_modes, coefficients)
        self.head, self.tangent_1, self.tangent_2 = rows[:3], rows[3:6], rows[6:9]
        self.rotation = face.pose.rotation().as_matrix()
        self.camera = self.rotation @ self.head + face.pose.translation()[:, None]
        normal = _cross(self.tangent_1, self.tangent_2)
        self.inverse_area = lax.rsqrt(jnp.sum(normal**2, axis=0) + 1e-20)
        self.head_normal = normal * self.inverse_area
        self.normal = self.rotation @ self.head_normal

    def facing(self):
        """Cosine between normal and the direction to the camera."""
        return -jnp.sum(self.normal * self.camera, axis=0) * lax.rsqrt(jnp.sum(self.camera**2, axis=0))


class SkinPoints(SurfacePoints):
    """A block of samples rendered and looked up in the photo, with what the derivatives of their colour need."""

    def __init__(self, face, centre, image, geometry, geometry_modes, albedo, albedo_modes):
        super().__init__(face, geometry, geometry_modes)
        focal = jnp.exp(face.log_focal)
        self.inverse_depth = 1 / self.camera[2]
        self.scale = focal * self.inverse_depth  # px per mm
        self.shift = self.scale * self.camera[:2]  # from the principal point
        self.pixel = self.shift + centre[:, None]
        self.encoded_albedo = combine(albedo, albedo_modes, face.albedo)
        self.albedo = jnp.maximum(srgb_to_linear(self.encoded_albedo), 0.003)
        self.light = face.light
        self.basis = sh_basis(self.normal.T).T
        self.shade = face.light.T @ self.basis
        self.reflected = jnp.maximum(self.albedo * self.shade + face.offset[:, None], 0.001)
        self.seen, self.d_column, self.d_row = _sample(image, self.pixel)
        self.residual = linear_to_srgb(self.reflected) - self.seen

    def jacobian_rows(self) -> list[Float[Array, "3 point"]]:
        """Residual, then its derivatives by channel: 9 geometry rows, albedo, 9 light bands, colour offset, 6 pose,
        log focal."""
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
        albedo = slope * self.shade * _decode_slope(self.encoded_albedo)
        light = [response * b for b in self.basis]
        # Twist on the head's side: translation moves along head axes, rotation turns position and normal.
        p = self.head
        turn = [a + b for a, b in zip(_cross(p, position), _cross(n, head_gradient), strict=True)]
        focal = -(self.d_column * self.shift[0] + self.d_row * self.shift[1])
        return [
            self.residual, *position, *tangent_1, *tangent_2, albedo, *light, slope, *position, *turn, focal,
        ]  # fmt: skip


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
