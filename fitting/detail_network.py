"""Relief of the skin from one look at it: a UNet over UV maps, and a code of the person that answers to expression.

Two ways from a photo to a displacement map, sharing one encoder:

- **what the photo shows**: a UNet (Ronneberger et al. 2015) over maps in UV space of colour, position and normals; at
  each scale of its decoder tokens of the identity and expression code attend to the features (query: code; key and
  value: features; after the coarse-to-fine UNet of 10.12677/csa.2024.144095);
- **who the person is**: the encoder's end becomes a detail code of 128 numbers, which a decoder turns, together with
  expression and jaw, into the displacement of any other expression (the form of DECA, Feng et al. 2021, eq. 6-7).

The first is sharp and knows one expression, the second is coarser and knows them all. So a head that is animated has
the first's relief, moved by the second's difference between two expressions: moles stay, wrinkles come and go.

Maps are (row, column, channel); all functions are of one face, `jax.vmap` makes batches of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fitting.detail_losses import fine
from fitting.detail_observation import DetailObservation
from morphable.detail import limited

CODE = 128  # numbers of a detail code
_TOKENS, _TOKEN_SIZE = 8, 32  # that the identity and expression code asks the features with
_JAW = 3
_RATIO_LIMIT = 1.5  # logarithm; beyond it a photo shows something else than skin
_POSITION_MM = 100.0
_FIRST_MM = 0.3  # what an output of 1 means: of the order of a wrinkle's depth

Map = Float[Array, "_ _ _"]  # row, column, channel


class DetailInputs(NamedTuple):
    """What the network looks at."""

    maps: Float[Array, "size size channel"]  # see `input_maps`
    region: Float[Array, "size size"]  # 1 where there may be relief
    identity: Float[Array, " identity"]  # standard deviations
    expression: Float[Array, " unit"]


class Prediction(NamedTuple):
    """What the network makes of it."""

    displacement: Float[Array, "size size"]  # mm, with the photo's expression
    code: Float[Array, " code"]  # of the person's detail, for `DetailNetwork.decode`


_FEATURES = 22  # channels that the first layer sees
_LOUDER = 8.0  # shading by relief changes a photo's logarithm by a tenth; positions and normals are of order 1
_NEAR, _BROAD = 2 / 256, 12 / 256  # of the map: deviations of blurs, 2 and 12 mm
_FLAT = 0.2  # derivative of the logarithm below which a photo hardly tells a slope


def input_maps(observation: DetailObservation) -> Float[Array, "size size 15"]:
    """An observation as the network's maps.

    The photo's colour and its ratio to what the fit expects (logarithms, 3 + 3), how far each texel is trusted (1), the
    position (3) and the normal in camera axes (3); and the derivatives of the logarithm of the shade by the two slopes
    of `tangent_frame` (2): what a slope would change in the picture under this photo's light.
    """
    weight = observation.weight[..., None]
    surface = observation.surface
    valid = surface.valid[..., None]
    ratio = jnp.clip(observation.ratio, -_RATIO_LIMIT, _RATIO_LIMIT)
    # The colour's level is the exposure's and the skin's; its pattern counts.
    texture = jnp.log(observation.plain + 0.02) + ratio
    level = jnp.sum(texture * weight, axis=(0, 1)) / jnp.maximum(jnp.sum(weight), 1e-6)
    tone = jnp.sum(ratio * weight, axis=(0, 1)) / jnp.maximum(jnp.sum(weight), 1e-6)
    normals = jnp.matmul(surface.normals, observation.rotation.T, precision="highest")
    return jnp.concatenate(
        [
            (texture - level) * weight,
            (ratio - tone) * weight,
            weight,
            surface.points / _POSITION_MM * valid,
            normals * valid,
            light_response(observation) * valid,
        ],
        axis=-1,
    )


def _features(maps: Float[Array, "size size 15"]) -> Float[Array, "size size 22"]:
    """The maps as the first layer sees them: of one order, and beside them what is fine in the photo, and which slopes
    alone would explain it (the shortest ones, as in linear shape from shading, Pentland 1990).

    Slopes are those that each colour would have: shading is in all alike, pigments are not, and a filter that tells
    them apart is linear in the three.
    """
    texture, ratio, weight, surface, response = jnp.split(maps, [3, 6, 7, 13], axis=-1)
    shading = jax.vmap(fine, in_axes=(-1, None), out_axes=-1)(ratio, weight[..., 0]) * weight
    per_slope = response / (jnp.sum(response**2, axis=-1, keepdims=True) + _FLAT**2)
    slope = (shading[..., :, None] * per_slope[..., None, :]).reshape(*shading.shape[:-1], 6)
    shading = jnp.mean(shading, axis=-1, keepdims=True)
    return jnp.concatenate(
        [2.0 * texture, 2.0 * ratio, _LOUDER * shading, weight, surface, response, _LOUDER * slope], axis=-1
    )


def tangent_frame(observation: DetailObservation) -> tuple[Float[Array, "size size 2 3"], Float[Array, "size size 3"]]:
    """Two orthonormal tangents for each texel, and (a, b, c): D's slopes along them are a D_u + b D_v and c D_v.

    D_u and D_v are differences from texel to texel, slopes are mm per mm.
    """
    u, v = observation.surface.dual_u, observation.surface.dual_v
    a = jnp.sqrt(jnp.sum(u**2, axis=-1) + 1e-20)
    first = u / a[..., None]
    b = jnp.sum(v * first, axis=-1)
    rest = v - b[..., None] * first
    c = jnp.sqrt(jnp.sum(rest**2, axis=-1) + 1e-20)
    return jnp.stack([first, rest / c[..., None]], axis=-2), jnp.stack([a, b, c], axis=-1)


def light_response(observation: DetailObservation) -> Float[Array, "size size 2"]:
    """Derivative of the logarithm of the shade (mean of the channels) by the slopes along the two tangents."""
    tangents, _ = tangent_frame(observation)
    normals = observation.surface.normals

    def along(k):
        # A slope s turns the normal n to n - s t, to first order.
        turn = lambda s: jnp.mean(jnp.log(observation.shade(normals - s * tangents[..., k, :])), axis=-1)  # noqa: E731
        return jax.jvp(turn, (jnp.zeros(()),), (jnp.ones(()),))[1]

    return jnp.clip(jnp.stack([along(0), along(1)], axis=-1), -3.0, 3.0)


def jaw_matrix(names: Sequence[str]) -> Float[np.ndarray, "3 unit"]:
    """What of the expression units the jaw does: opened, moved to the subject's left, moved forward."""
    matrix = np.zeros((_JAW, len(names)), np.float32)
    for row, name, sign in ((0, "jawOpen", 1), (1, "jawLeft", 1), (1, "jawRight", -1), (2, "jawForward", 1)):
        if name in names:
            matrix[row, names.index(name)] = sign
    return matrix


# ------------------------------------------------------------------------------------------------------ layers


class Convolution(eqx.Module):
    """A convolution over rows and columns, zeros around the map; weights (row, column, in, out)."""

    weight: Float[Array, "kernel kernel in out"]
    bias: Float[Array, " out"]
    stride: int = eqx.field(static=True)
    dilation: int = eqx.field(static=True)

    def __init__(
        self, key: Key[Array, ""], inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1,
        gain: float = 1.0,
    ):  # fmt: skip
        # He et al. 2015; halved variance at the end of residual branches is the caller's `gain`.
        deviation = gain * float(np.sqrt(2.0 / (inputs * kernel * kernel)))
        self.weight = deviation * jax.random.normal(key, (kernel, kernel, inputs, outputs))
        self.bias = jnp.zeros(outputs)
        self.stride, self.dilation = stride, dilation

    def __call__(self, x: Map) -> Map:
        out = jax.lax.conv_general_dilated(
            x[None],
            self.weight.astype(x.dtype),
            (self.stride, self.stride),
            "SAME",
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out[0] + self.bias.astype(x.dtype)


class Dense(eqx.Module):
    """A matrix and an offset, of vectors or of the last axis of anything."""

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"]

    def __init__(self, key: Key[Array, ""], inputs: int, outputs: int, gain: float = 1.0):
        self.weight = gain * float(np.sqrt(1.0 / inputs)) * jax.random.normal(key, (inputs, outputs))
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*shape in"]) -> Float[Array, "*shape out"]:
        return x @ self.weight.astype(x.dtype) + self.bias.astype(x.dtype)


def _normalised(x: Map) -> Map:
    """Each pixel's channels scaled to unit mean square (Karras et al. 2018, section 4.2): no statistics of a batch."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(square + 1e-4).astype(x.dtype)


class Residual(eqx.Module):
    """Two convolutions whose result is added to the map."""

    first: Convolution
    second: Convolution

    def __init__(self, key: Key[Array, ""], channels: int):
        a, b = jax.random.split(key)
        self.first = Convolution(a, channels, channels)
        self.second = Convolution(b, channels, channels, gain=0.2)

    def __call__(self, x: Map) -> Map:
        return x + self.second(jax.nn.silu(self.first(_normalised(x))))


class MultiScaleAttention(eqx.Module):
    """Four convolutions side by side, of 1 x 1 and of three dilations, weighed by channel and by place.

    After the multi-scale identity module of 10.12677/csa.2024.144095: the channels' weights come from global means
    through a small perceptron, the places' from two 1 x 1 and two dilated 3 x 3 convolutions; both multiply the map.
    """

    branches: tuple[Convolution, ...]
    channel: tuple[Dense, Dense]
    place: tuple[Convolution, ...]
    merge: Convolution

    def __init__(self, key: Key[Array, ""], channels: int):
        keys = jax.random.split(key, 11)
        part = max(channels // 4, 4)
        self.branches = (
            Convolution(keys[0], channels, part, kernel=1),
            *(Convolution(keys[k], channels, part, dilation=d) for k, d in ((1, 1), (2, 2), (3, 4))),
        )
        self.channel = (Dense(keys[4], 4 * part, part), Dense(keys[5], part, 4 * part))
        self.place = (
            Convolution(keys[6], 4 * part, part, kernel=1),
            Convolution(keys[7], part, part, dilation=2),
            Convolution(keys[8], part, part, dilation=2),
            Convolution(keys[9], part, 1, kernel=1),
        )
        self.merge = Convolution(keys[10], 4 * part, channels, kernel=1, gain=0.2)

    def __call__(self, x: Map) -> Map:
        y = jax.nn.silu(jnp.concatenate([branch(_normalised(x)) for branch in self.branches], axis=-1))
        channel = jax.nn.sigmoid(self.channel[1](jax.nn.silu(self.channel[0](jnp.mean(y, axis=(0, 1))))))
        place = y
        for convolution in self.place[:-1]:
            place = jax.nn.silu(convolution(place))
        return x + self.merge(y * channel * jax.nn.sigmoid(self.place[-1](place)))


class CodeAttention(eqx.Module):
    """Tokens of the identity and expression code look at a map, and write what they make of it where they looked."""

    query: Dense
    key: Convolution
    value: Convolution
    answer: Dense
    out: Convolution

    def __init__(self, key: Key[Array, ""], channels: int, condition: int):
        keys = jax.random.split(key, 5)
        self.query = Dense(keys[0], condition, _TOKENS * _TOKEN_SIZE)
        self.key = Convolution(keys[1], channels, _TOKEN_SIZE, kernel=1)
        self.value = Convolution(keys[2], channels, _TOKEN_SIZE, kernel=1)
        self.answer = Dense(keys[3], _TOKEN_SIZE + condition, _TOKEN_SIZE)
        self.out = Convolution(keys[4], _TOKEN_SIZE, channels, kernel=1, gain=0.2)

    def __call__(self, x: Map, condition: Float[Array, " condition"]) -> Map:
        seen = _normalised(x)
        query = self.query(condition.astype(x.dtype)).reshape(_TOKENS, _TOKEN_SIZE)
        keys = self.key(seen).reshape(-1, _TOKEN_SIZE)
        likeness = (keys @ query.T / float(np.sqrt(_TOKEN_SIZE))).astype(jnp.float32)  # (place, token)
        share = jax.nn.softmax(likeness, axis=0).astype(x.dtype)
        found = share.T @ self.value(seen).reshape(-1, _TOKEN_SIZE)
        told = jnp.broadcast_to(condition.astype(x.dtype), (_TOKENS, condition.shape[0]))
        answer = jax.nn.silu(self.answer(jnp.concatenate([found, told], axis=1)))
        written = jax.nn.sigmoid(likeness).astype(x.dtype) @ answer
        return x + self.out(written.reshape(*x.shape[:2], _TOKEN_SIZE))


def _folded(x: Map) -> Map:
    """Blocks of 2 x 2 texels as channels."""
    height, width, channels = x.shape
    blocks = x.reshape(height // 2, 2, width // 2, 2, channels)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(height // 2, width // 2, 4 * channels)


def _doubled(x: Map) -> Map:
    """Twice as many rows and columns, each texel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)


def _enlarged(x: Map, factor: int) -> Map:
    """Linear between texels. Not unfolded: texels would differ by where they stand in a block, and one sees that."""
    return jax.image.resize(x, (factor * x.shape[0], factor * x.shape[1], x.shape[2]), "linear")


def _where_trusted(
    relief: Float[Array, "size size"], weight: Float[Array, "size size"], region: Float[Array, "size size"]
) -> Float[Array, "size size"]:
    """Less of a relief where the photo shows the skin badly, and half of what is broad in it.

    Both are what a scan shows to be wrong most often; together they cost a fifth of the normals that a network mends.
    """
    size = len(relief)
    trust = jnp.clip(_blurred(weight, _NEAR * size) / jnp.maximum(_blurred(region, _NEAR * size), 0.05), 0.0, 1.0)
    counts = (weight + 1e-3) * region + 1e-6
    broad = _blurred(relief * counts, _BROAD * size) / _blurred(counts, _BROAD * size)
    return (relief - 0.5 * broad) * trust**2 * region


def _blurred(x: Float[Array, "size size"], sigma: float) -> Float[Array, "size size"]:
    """Gaussian; 0 beyond the border."""
    place = jnp.arange(len(x))
    across = jnp.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
    across = across / jnp.sum(across, axis=1, keepdims=True)
    return across @ x @ across.T


# ----------------------------------------------------------------------------------------------------- network


def face_window(region: Float[np.ndarray, "size size"], levels: int) -> tuple[int, int, int, int]:
    """The smallest window (first row and column, rows, columns) that a network of so many widths can look through at
    all of a region: a map shows the whole head, three quarters of it are of no use."""
    size, step = len(region), 2**levels

    def span(used):
        first, last = np.flatnonzero(used)[[0, -1]]
        length = min(size, max(2, -(-(last + 1 - first) // step)) * step)
        start = (first + last + 1 - length) // 2
        return int(np.clip(start, 0, size - length)), int(length)

    if not (region > 0).any():
        return 0, 0, size, size
    (top, height), (left, width) = span((region > 0).any(axis=1)), span((region > 0).any(axis=0))
    return top, left, height, width


class CodeDecoder(eqx.Module):
    """A detail code, an expression and a jaw become a displacement: 8 x 8 places, doubled again and again.

    Half of the map's rows and columns, interpolated: a code does not know the place of every pore.
    """

    start: Dense
    grow: tuple[Convolution, ...]
    fine: Convolution
    out: Convolution
    widths: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, key: Key[Array, ""], units: int, widths: Sequence[int]):
        keys = jax.random.split(key, len(widths) + 2)
        self.widths = tuple(widths)
        self.start = Dense(keys[0], CODE + units + _JAW, 64 * widths[0])
        self.grow = tuple(Convolution(k, a, b) for k, a, b in zip(keys[1:-2], widths[:-1], widths[1:], strict=True))
        self.fine = Convolution(keys[-2], widths[-1], 12, kernel=1)
        self.out = Convolution(keys[-1], 12, 1, gain=0.1)

    def __call__(self, code, expression, jaw) -> Float[Array, "size size"]:
        x = self.start(jnp.concatenate([code, expression.astype(code.dtype), jaw.astype(code.dtype)]))
        x = jax.nn.silu(x.reshape(8, 8, self.widths[0]))
        for convolution in self.grow:
            x = jax.nn.silu(convolution(_normalised(_doubled(x))))
        x = jax.nn.silu(_enlarged(self.fine(_normalised(x)), 2))
        return _enlarged(self.out(x), 2)[..., 0]


class DetailNetwork(eqx.Module):
    """The network; its maps have `size` texels in a row, which is 16 times a power of two."""

    stem: Convolution
    encoder: tuple[tuple[Residual | None, MultiScaleAttention | None, Convolution], ...]
    bottom: tuple[Residual, MultiScaleAttention | None]
    to_code: tuple[Dense, Dense]
    decoder: tuple[tuple[Convolution, CodeAttention, Residual], ...]
    grow: Convolution
    sharpen: Convolution  # at the map's own scale: what the photo shows there, beside what the decoder makes of it
    out: Convolution
    code_decoder: CodeDecoder
    size: int = eqx.field(static=True)
    window: tuple[int, int, int, int] = eqx.field(static=True)  # first row and column, rows, columns that it looks at
    identity: int = eqx.field(static=True)  # coefficients that it is told; more are left out, missing ones 0
    names: tuple[str, ...] = eqx.field(static=True)  # of the expression units
    widths: tuple[int, ...] = eqx.field(static=True)
    attention: bool = eqx.field(static=True)  # whether the encoder has `MultiScaleAttention`

    def __init__(
        self,
        key: Key[Array, ""],
        *,
        names: Sequence[str],
        identity: int = 50,
        size: int = 256,
        widths: Sequence[int] = (24, 48, 64, 96, 128),
        attention: bool = True,
        window: Sequence[int] | None = None,
    ):
        folds = size // 2 // 2 ** (len(widths) - 1)
        if folds != 8:
            raise ValueError(
                f"DetailNetwork: got size {size} and {len(widths)} widths, expected size "
                f"{16 * 2 ** (len(widths) - 1)} for so many. Give one width for each halving from size / 2 to 8."
            )
        top, left, height, width = (0, 0, size, size) if window is None else (int(n) for n in window)
        least = 2 ** len(widths)
        inside = min(top, left) >= 0 and max(top + height, left + width) <= size
        if not inside or height < 2 * least or width < 2 * least or height % least or width % least:
            raise ValueError(
                f"DetailNetwork: got the window {tuple(window or ())}, expected (first row, first column, rows, "
                f"columns) inside the map's {size} x {size} texels, rows and columns multiples of {least}, "
                f"{2 * least} at least. Use `face_window`."
            )
        keys = iter(jax.random.split(key, 8 * len(widths) + 8))
        condition = identity + len(names) + _JAW
        self.stem = Convolution(next(keys), 4 * _FEATURES, widths[0])
        self.encoder = tuple(
            (
                # At the finest scale these would cost as much as all the rest.
                Residual(next(keys), a) if level > 0 else None,
                MultiScaleAttention(next(keys), a) if attention and level > 0 else None,
                Convolution(next(keys), a, b, stride=2),
            )
            for level, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        last = widths[-1]
        self.bottom = Residual(next(keys), last), MultiScaleAttention(next(keys), last) if attention else None
        pooled = (height // least // 2) * (width // least // 2) * last
        self.to_code = Dense(next(keys), pooled, 256), Dense(next(keys), 256, CODE)
        self.decoder = tuple(
            (Convolution(next(keys), b + a, a), CodeAttention(next(keys), a, condition), Residual(next(keys), a))
            for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.grow = Convolution(next(keys), widths[0], 12, kernel=1)
        self.sharpen = Convolution(next(keys), 12 + 11, 12)
        self.out = Convolution(next(keys), 12, 1, gain=0.1)
        growing = [64, 64, 48, 32, 24, 16][: len(widths) - 1]
        self.code_decoder = CodeDecoder(next(keys), len(names), growing)
        self.size, self.identity, self.names = size, identity, tuple(names)
        self.window = (top, left, height, width)
        self.widths, self.attention = tuple(widths), attention

    def __call__(self, inputs: DetailInputs) -> Prediction:
        """Displacement and code of one face."""
        top, left, height, width = self.window
        features = _features(inputs.maps)[top : top + height, left : left + width]
        x = self.stem(_folded(features))
        passed = []
        for residual, attention, down in self.encoder:
            x = x if residual is None else residual(x)
            x = x if attention is None else attention(x)
            passed.append(x)
            x = down(x)
        residual, attention = self.bottom
        x = residual(x)
        x = x if attention is None else attention(x)
        code = self._code(x)
        condition = self._condition(inputs)
        for (merge, attend, residual), skipped in zip(self.decoder, passed[::-1], strict=True):
            x = jax.nn.silu(merge(jnp.concatenate([_doubled(x), skipped], axis=-1)))
            x = residual(attend(x, condition))
        x = _enlarged(self.grow(_normalised(x)), 2)
        photo = jnp.concatenate([features[..., 3:8], features[..., -6:]], axis=-1)  # ratio, shading, trust, slopes
        x = jnp.concatenate([x, photo], axis=-1)
        raw = self.out(jax.nn.silu(self.sharpen(_normalised(x))))[..., 0].astype(jnp.float32)
        around = ((top, self.size - top - height), (left, self.size - left - width))
        region = jnp.pad(inputs.region[top : top + height, left : left + width], around)
        # Broad shape is the linear model's: slopes of little certainty would add up to millimetres.
        relief = fine(_FIRST_MM * jnp.pad(raw, around), region)
        trusted = _where_trusted(limited(relief) * region, inputs.maps[..., 6].astype(jnp.float32), region)
        return Prediction(trusted, code.astype(jnp.float32))

    def _code(self, x: Map) -> Float[Array, " code"]:
        pooled = jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 2, 1), (2, 2, 1), "VALID") / 4
        return self.to_code[1](jax.nn.silu(self.to_code[0](_normalised(pooled).reshape(-1))))

    def _condition(self, inputs: DetailInputs) -> Float[Array, " condition"]:
        identity = inputs.identity[: self.identity]
        identity = jnp.pad(identity, (0, self.identity - identity.shape[0]))
        return jnp.concatenate([0.3 * identity, inputs.expression, self._jaw(inputs.expression)])

    def _jaw(self, expression: Float[Array, " unit"]) -> Float[Array, "3"]:
        return jnp.matmul(jaw_matrix(self.names), expression, precision="highest")

    def decode(
        self,
        code: Float[Array, " code"],
        expression: Float[Array, " unit"],
        region: Float[Array, "size size"],
    ) -> Float[Array, "size size"]:
        """The displacement (mm) of a person of this code with an expression."""
        raw = self.code_decoder(code, expression, self._jaw(expression)).astype(jnp.float32)
        return limited(_FIRST_MM * raw) * region
