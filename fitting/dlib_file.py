"""dlib's file of a serialised metric-loss network, as its face recogniser comes in: read without dlib, and not trusted.

The file is a stream of values without names, sizes or offsets, so the order in which dlib's layers serialise themselves
is the format (davisking/dlib, dlib/serialize.h, dlib/dnn/{core,layers,input,loss,tensor}.h):

* an integer: a byte with the sign in its top bit and a count of bytes in its lowest four; then those, the lowest first;
* a real number: two integers m and e for m 2**e; exponents from 32000 on stand for infinities and NaN;
* a flag: "0" or "1"; a name: its length and its characters;
* a tensor: version 2, four sizes, then plain little-endian float32; a view of one: version 1 and four sizes.

First the loss. Then versions of the layers from the loss inwards, 2 for a layer that has data and 1 for a mark (tag or
skip), whose meaning is in dlib's C++ types alone, up to the 3 of the layer that sees the input. Then the input. Then
the layers' data in the other direction: the input's neighbour first.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

_LARGEST = 256 << 20  # bytes; the recogniser has 22 million
_LONGEST_NAME = 100  # characters
_MOST_LAYERS = 1000
_LARGEST_PARAMETER = 1e6  # the recogniser's largest is 23


class DlibFileError(ValueError):
    """A file that is not a network as dlib writes it: what, got, expected, remedy."""


class Convolution(NamedTuple):
    """Correlation of all input channels with each filter."""

    weights: Float32[np.ndarray, "filter channel row column"]
    biases: Float32[np.ndarray, " filter"]
    stride: tuple[int, int]  # down, right
    padding: tuple[int, int]  # on either side


class Affine(NamedTuple):
    """x gamma + beta for each channel: what batch normalisation is after training."""

    gamma: Float32[np.ndarray, " channel"]
    beta: Float32[np.ndarray, " channel"]


class Dense(NamedTuple):
    """A matrix product without bias."""

    weights: Float32[np.ndarray, "input output"]


class Pool(NamedTuple):
    """The largest value of a window, or the mean; a window of (0, 0) is the whole picture."""

    kind: str  # "max" or "mean"
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


class Plain(NamedTuple):
    """A layer without parameters."""

    kind: str  # "relu"; "add", of the layer before and a marked one; "mark", a tag or skip whose number is not stored


Layer = Convolution | Affine | Dense | Pool | Plain


class MetricNetwork(NamedTuple):
    """A network from pictures to points whose distances mean likeness."""

    size: tuple[int, int]  # rows and columns of its pictures
    mean: Float[np.ndarray, "3"]  # red, green and blue, of 0 to 255, that is subtracted before division by 256
    layers: tuple[Layer, ...]  # the input's neighbour first


def read_metric_network(path: str | Path) -> MetricNetwork:
    """The network of a `.dat` file, whole; nothing says yet that the layers fit together.

    Takes 0.1 s for the recogniser's 5.6 million weights. Raises DlibFileError if the file is something else, is
    damaged, is cut off or goes on behind its end.
    """
    path = Path(path)
    stream = _Stream(path, _bytes_of(path))
    stream.expect(1, "version of a loss")
    stream.expect_name("loss_metric_2", "a network with metric loss")
    for _ in range(2):  # margin and radius, which only training needs
        stream.real()
    versions: list[int] = []
    while (version := stream.integer()) != 3:
        if version not in (1, 2) or len(versions) == _MOST_LAYERS:
            stream.refuse(f"{version} as the version of layer {len(versions)}", f"1, 2 or 3, of {_MOST_LAYERS} at most")
        versions.append(version)
    stream.expect_name("input_rgb_image_sized", "an input of RGB pictures of one size")
    mean = np.array([stream.real() for _ in range(3)])
    if not ((mean >= 0) & (mean <= 255)).all():
        stream.refuse(f"a mean colour of {mean}", "numbers of 0 to 255")
    size = stream.pair()
    layers = [_layer(stream)]
    stream.expect(1, "number of pictures for a sample")
    layers += [_layer(stream) if version == 2 else Plain("mark") for version in reversed(versions)]
    stream.end()
    return MetricNetwork(size, mean, tuple(layers))


class _Stream:
    """Bytes, and how far they are read."""

    def __init__(self, path: Path, data: bytes):
        self.path, self.data, self.position = path, data, 0

    def refuse(self, got: str, expected: str):
        raise DlibFileError(
            f"{self.path}: got {got} at byte {self.position} of {len(self.data)}, expected {expected}. Is it dlib's "
            "dlib_face_recognition_resnet_model_v1.dat, complete and unpacked? 'pip install --force-reinstall "
            "face_recognition_models' brings it."
        )

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.position:
            self.refuse(f"{count} bytes wanted", "no more than the file holds")
        start = self.position
        self.position += count
        return self.data[start : self.position]

    def integers(self, count: int) -> list[int]:
        values = []
        for _ in range(count):
            control = self.take(1)[0]
            size = control & 0x0F
            if not 1 <= size <= 8 or control & 0x70:
                self.refuse(f"{control:#04x} before an integer", "a sign and a count of 1 to 8 bytes")
            magnitude = int.from_bytes(self.take(size), "little")
            values.append(-magnitude if control & 0x80 else magnitude)
        return values

    def integer(self) -> int:
        return self.integers(1)[0]

    def sizes(self, count: int) -> list[int]:
        values = self.integers(count)
        if min(values) < 0 or max(values) > _LARGEST:
            self.refuse(f"sizes of {values}", f"0 to {_LARGEST}")
        return values

    def pair(self) -> tuple[int, int]:
        first, second = self.sizes(2)
        return first, second

    def real(self) -> float:
        mantissa, exponent = self.integers(2)
        special = {32000: math.inf, 32001: -math.inf, 32002: math.nan}.get(exponent)
        if special is not None:
            return special
        if abs(exponent) > 900:  # with 64 bits before it the largest of doubles, nearly
            self.refuse(f"a number with exponent {exponent}", "-900 to 900")
        return math.ldexp(mantissa, exponent)

    def name(self) -> str:
        length = self.integer()
        if not 0 <= length <= _LONGEST_NAME:
            self.refuse(f"a name of {length} characters", f"at most {_LONGEST_NAME}")
        return self.take(length).decode("latin-1")

    def expect(self, wanted: int, what: str):
        found = self.integer()
        if found != wanted:
            self.refuse(f"{found} as {what}", f"{wanted}")

    def expect_name(self, wanted: str, what: str):
        found = self.name()
        if found != wanted:
            self.refuse(f"{found!r}", f"{wanted!r}, {what}")

    def tensor(self) -> Float32[np.ndarray, "..."]:
        """The values in a row: the sizes say less than those of the views."""
        self.expect(2, "version of a tensor")
        count = math.prod(self.sizes(4))
        values = np.frombuffer(self.take(4 * count), "<f4")
        if not np.abs(values).max(initial=0) <= _LARGEST_PARAMETER:  # nor NaN
            self.refuse(f"parameters up to {np.abs(values).max()}", f"numbers of {_LARGEST_PARAMETER} at most")
        return values.astype(np.float32)

    def views(self, values: Float32[np.ndarray, "..."]) -> list[Float32[np.ndarray, "..."]]:
        """Two arrays that share a tensor's values between them."""
        parts, start = [], 0
        for _ in range(2):
            self.expect(1, "version of a view")
            shape = self.sizes(4)
            count = math.prod(shape)
            if count > len(values) - start:
                self.refuse(f"a view of {count} numbers", f"at most {len(values) - start}")
            # numpy would take an empty array's other sizes for memory that cannot be had.
            parts.append(values[start : start + count].reshape(shape if count else (0, 0, 0, 0)))
            start += count
        if start != len(values):
            self.refuse(f"views of {start} numbers", f"all {len(values)} of the tensor")
        return parts

    def end(self):
        if self.position != len(self.data):
            self.refuse(f"{len(self.data) - self.position} bytes too many", "the end of the file")


def _layer(stream: _Stream) -> Layer:
    name = stream.name()
    if name not in _READERS:
        stream.refuse(f"a layer {name!r}", f"one of {', '.join(_READERS)}")
    layer = _READERS[name](stream)
    flags = stream.take(3)  # whether it was set up, and what is known of its gradient
    if not set(flags) <= set(b"01"):
        stream.refuse(f"{flags!r} for three flags", "'0' or '1'")
    for what in ("gradient by the input", "last output", "gradient by the parameters"):
        if stream.tensor().size:
            stream.refuse(f"a layer with its {what}", "a network that was cleaned before it was written")
    return layer


def _convolution(stream: _Stream) -> Convolution:
    values = stream.tensor()
    shape = stream.sizes(3)
    stride, padding = stream.pair(), stream.pair()
    weights, biases = stream.views(values)
    _learning_rates(stream)
    if [weights.shape[0], *weights.shape[2:]] != shape or biases.size != shape[0]:
        stream.refuse(f"weights {weights.shape} and {biases.size} biases", "those of {} filters {} x {}".format(*shape))
    return Convolution(weights, biases.ravel(), stride, padding)


def _affine(stream: _Stream) -> Affine:
    gamma, beta = stream.views(stream.tensor())
    stream.integer()  # whether for channels or for pixels; the sizes tell, too
    if gamma.shape != beta.shape or gamma.size != math.prod(gamma.shape[1:2]):
        stream.refuse(f"factors {gamma.shape} and offsets {beta.shape}", "one of each for a channel")
    return Affine(gamma.ravel(), beta.ravel())


def _dense(stream: _Stream) -> Dense:
    outputs, inputs = stream.sizes(2)
    weights, biases = stream.views(stream.tensor())
    stream.integer()  # whether with biases
    _learning_rates(stream)
    if weights.size != inputs * outputs or biases.size:
        stream.refuse(f"{weights.size} weights and {biases.size} biases", f"{inputs} x {outputs} and none")
    return Dense(weights.reshape(inputs, outputs))


def _pool(stream: _Stream, kind: str) -> Pool:
    return Pool(kind, stream.pair(), stream.pair(), stream.pair())


def _learning_rates(stream: _Stream):
    for _ in range(4):
        stream.real()


_READERS = {
    "con_4": _convolution,
    "affine_": _affine,
    "fc_2": _dense,
    "max_pool_2": lambda stream: _pool(stream, "max"),
    "avg_pool_2": lambda stream: _pool(stream, "mean"),
    "relu_": lambda stream: Plain("relu"),
    "add_prev_": lambda stream: Plain("add"),
}


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise DlibFileError(f"{path}: cannot be read ({error.strerror}); expected dlib's network. Check it.") from error
    if len(data) > _LARGEST:
        raise DlibFileError(f"{path}: got more than {_LARGEST} bytes, expected a network of dlib. Is it another file?")
    return data
