"""A network of the recogniser's plan with few channels, written as dlib does: sources in `fitting.dlib_file`."""

import itertools
from pathlib import Path

import numpy as np

WIDTHS = [2] * 3 + [3] * 4 + [4] * 3 + [5] * 4  # of the 14 blocks; dlib's are 32, 64, 128 and 256
HALVING = (3, 7, 10, 13)


def integer(value: int) -> bytes:
    size = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([size | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(size, "little")


def integers(*values: int) -> bytes:
    return b"".join(map(integer, values))


def real(value: float) -> bytes:
    mantissa, exponent = np.frexp(value)
    return integers(int(mantissa * 2**24), int(exponent) - 24)


def name(text: str) -> bytes:
    return integer(len(text)) + text.encode()


def tensor(values: np.ndarray, *shape: int) -> bytes:
    return integers(2, *shape) + values.astype("<f4").tobytes()


EMPTY = tensor(np.zeros(0), 0, 0, 0, 0)
RATES = b"".join(map(real, (1.0, 1.0, 1.0, 0.0)))
STATE = b"100" + 3 * EMPTY


def convolution(weights: np.ndarray, biases: np.ndarray, stride: int, padding: int) -> bytes:
    filters, channels, rows, columns = weights.shape
    values = np.concatenate([weights.ravel(), biases])
    head = name("con_4") + tensor(values, values.size, 1, 1, 1) + integers(filters, rows, columns, stride, stride)
    views = integers(1, filters, channels, rows, columns) + integers(1, 1, filters, 1, 1)
    return head + integers(padding, padding) + views + RATES + STATE


def affine(gamma: np.ndarray, beta: np.ndarray) -> bytes:
    count = len(gamma)
    views = 2 * integers(1, 1, count, 1, 1)
    return name("affine_") + tensor(np.concatenate([gamma, beta]), 2 * count, 1, 1, 1) + views + integer(0) + STATE


def pool(kind: str, window: int, stride: int) -> bytes:
    return name(kind) + integers(window, window, stride, stride, 0, 0) + STATE


def dense(weights: np.ndarray) -> bytes:
    inputs, outputs = weights.shape
    views = integers(1, inputs, outputs, 1, 1) + integers(1, 0, 0, 0, 0)
    parameters = tensor(weights, inputs, outputs, 1, 1)
    return name("fc_2") + integers(outputs, inputs) + parameters + views + integer(1) + RATES + STATE


RELU, ADD = name("relu_") + STATE, name("add_prev_") + STATE
MEAN = (122.5, 117.0, 104.25)


def write_network(path: Path, seed: int = 0) -> list[np.ndarray]:
    """Write the file; returns the weights, biases, gamma and beta of every convolution, and the matrix at the end."""
    rng = np.random.default_rng(seed)
    truth: list[np.ndarray] = []

    def filters(channels: int, count: int, size: int, stride: int, padding: int) -> list[bytes]:
        weights = rng.normal(size=(count, channels, size, size)) / (channels * size**2) ** 0.5
        parts = [weights.astype(np.float32)] + [rng.normal(size=count).astype(np.float32) for _ in range(3)]
        truth.extend(parts)
        return [convolution(*parts[:2], stride, padding), affine(*parts[2:])]

    # None is a tag or a skip: it has a version and no data.
    layers: list[bytes | None] = [*filters(3, 2, 7, 2, 0), RELU, pool("max_pool_2", 3, 2)]
    for block, (before, count) in enumerate(itertools.pairwise([2, *WIDTHS])):
        halving = block in HALVING
        first = filters(before, count, 3, 2 if halving else 1, 0 if halving else 1)
        layers += [None, *first, RELU, *filters(count, count, 3, 1, 1)]
        layers += [None, None, pool("avg_pool_2", 2, 2)] if halving else []
        layers += [ADD, RELU]
    truth.append(rng.normal(size=(WIDTHS[-1], 6)).astype(np.float32))
    layers += [pool("avg_pool_2", 0, 1), dense(truth[-1])]

    head = integer(1) + name("loss_metric_2") + real(0.04) + real(0.6)
    versions = integers(*[1 if layer is None else 2 for layer in layers[:0:-1]], 3)
    source = name("input_rgb_image_sized") + b"".join(map(real, MEAN)) + integers(150, 150)
    bodies = [b"" if layer is None else layer for layer in layers]
    path.write_bytes(head + versions + source + bodies[0] + integer(1) + b"".join(bodies[1:]))
    return truth
