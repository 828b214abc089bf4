"""Dense landmarks from one look at a face: where hundreds of points of the head lie, how sure each place is, and which
pose, expression and shape to start a fit from.

A residual network (He et al. 2016) on a square crop. Its landmarks come with their own standard deviations, learnt by
the likelihood of Gaussian errors, as in Wood et al. (2022), who showed that renderings of a parametric head suffice to
train it: points that hair or the head itself hides get large ones, so a fit may take all of them as they are. Filters
are 3 x 3 over all channels: on CPUs XLA computes those at 60 to 180 GFLOP/s and channel-wise ones at 2 (measured, batch
32).

The last map says where all landmarks are about; then each looks for itself at a finer map around that place. From the
last map alone a network of this size knows how faces usually are, and says so of photos: brows 4 % of the face too high
(docs/landmark_network.md). What is seen around a landmark holds for photos and renderings alike. At last all landmarks
are read together: shape, expression and pose are in how they lie to each other, not in the last map.

All functions are of one crop; `jax.vmap` makes batches of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from morphable.landmarks import SurfacePoints

Map = Float[Array, "_ _ _"]  # row, column, channel
_STEM = 16  # channels at half the crop's size
WIDTHS = (32, 64, 128, 192)  # channels at a quarter, an eighth, ...
DEPTHS = (1, 2, 2, 1)  # residual blocks at each of these sizes
_SQUEEZED = 64  # channels of the last map, all of whose places are read
_FEATURES = 512
_GROUP = 16  # channels that are brought to one level together
_READ = 96  # channels of the finer map that landmarks look at
_BORDER = 1  # its places beyond the crop, where landmarks may lie, too
_REACH = 0.08  # sides of the crop; how far a landmark looks about at first, as a deviation
LOG_SIGMA = (-5.5, 0.0)  # limits of the logarithm of a deviation over the crop's side: 0.4 % to all of it
_FIRST_LOG_SIGMA = -2.5
_SPOKEN = 256  # features of all landmarks together
_UNIT_SHARE = 0.1  # an expression unit's mean weight: where its output starts


class Prediction(NamedTuple):
    """What the network says about a crop."""

    landmarks: Float[Array, "point 2"]  # sides of the crop, from its middle
    log_sigma: Float[Array, " point"]  # logarithm of the deviation of either coordinate, in sides of the crop
    visible: Float[Array, " point"]  # logit
    rotation: Float[Array, "3 3"]  # camera from head, as seen along the ray to the crop's middle
    placement: Float[Array, "3"]  # head's origin in the crop (2; sides from its middle), log of sides for each 100 mm
    expression: Float[Array, " unit"]  # weights
    identity: Float[Array, " identity"]  # standard deviations


class Convolution(eqx.Module):
    """3 x 3 filters over all channels, each `stride` pixels; the border counts as zero."""

    filters: Float[Array, "3 3 channel out"]
    offset: Float[Array, " out"]
    stride: int = eqx.field(static=True)

    def __init__(self, key: Key[Array, ""], channels: int, out: int, stride: int = 1):
        self.filters = jax.random.normal(key, (3, 3, channels, out)) * np.sqrt(2.0 / (9 * channels))
        self.offset = jnp.zeros(out)
        self.stride = stride

    def __call__(self, maps: Map) -> Map:
        """The filtered maps, in their type."""
        stride = (self.stride, self.stride)
        found = jax.lax.conv_general_dilated(
            maps[None],
            self.filters.astype(maps.dtype),
            stride,
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return found[0] + self.offset.astype(maps.dtype)


class Level(eqx.Module):
    """Group normalisation (Wu & He 2018): each group of channels to mean 0 and deviation 1 over the crop."""

    scale: Float[Array, " channel"]
    offset: Float[Array, " channel"]

    def __init__(self, channels: int):
        self.scale, self.offset = jnp.ones(channels), jnp.zeros(channels)

    def __call__(self, maps: Map) -> Map:
        """Levelled maps; sums are taken in single precision."""
        height, width, channels = maps.shape
        groups = maps.astype(jnp.float32).reshape(height * width, channels // _GROUP, _GROUP)
        mean = jnp.mean(groups, axis=(0, 2), keepdims=True)
        spread = jnp.mean(groups**2, axis=(0, 2), keepdims=True) - mean**2
        level = ((groups - mean) * jax.lax.rsqrt(jnp.maximum(spread, 0.0) + 1e-5)).reshape(maps.shape)
        return (level * self.scale + self.offset).astype(maps.dtype)


class Block(eqx.Module):
    """A residual block, levelled before its filters (He et al. 2016b)."""

    first: Convolution
    second: Convolution
    level: Level
    inner: Level

    def __init__(self, key: Key[Array, ""], channels: int):
        one, two = jax.random.split(key)
        self.first, self.second = Convolution(one, channels, channels), Convolution(two, channels, channels)
        # Blocks start as if they were not there.
        self.second = eqx.tree_at(lambda c: c.filters, self.second, 0.1 * self.second.filters)
        self.level, self.inner = Level(channels), Level(channels)

    def __call__(self, maps: Map) -> Map:
        """The maps and what the block adds to them."""
        inner = self.first(jax.nn.relu(self.level(maps)))
        return maps + self.second(jax.nn.relu(self.inner(inner)))


class Dense(eqx.Module):
    """A matrix and an offset."""

    matrix: Float[Array, "out feature"]
    offset: Float[Array, " out"]

    def __init__(self, key: Key[Array, ""], features: int, out: int, gain: float = 1.0):
        self.matrix = jax.random.normal(key, (out, features)) * gain * np.sqrt(1.0 / features)
        self.offset = jnp.zeros(out)

    def __call__(self, features: Float[Array, " feature"]) -> Float[Array, " out"]:
        """The product, in single precision."""
        return self.matrix @ features + self.offset


class Merge(eqx.Module):
    """A coarse map and one twice as fine as a fine one that knows what both do (Lin et al. 2017)."""

    level: Level
    lateral: Float[Array, "out channel"]
    inner: Level
    mixed: Convolution

    def __init__(self, key: Key[Array, ""], channels: int):
        one, two = jax.random.split(key)
        self.level, self.inner = Level(channels), Level(_READ)
        self.lateral = jax.random.normal(one, (_READ, channels)) * np.sqrt(1.0 / channels)
        self.mixed = Convolution(two, _READ, _READ)

    def __call__(self, coarse: Map | None, fine: Map) -> Map:
        """The fine map; without a coarse one it begins."""
        maps = jnp.einsum("hwc,oc->hwo", jax.nn.relu(self.level(fine)), self.lateral.astype(fine.dtype))
        if coarse is not None:
            maps = maps + jnp.repeat(jnp.repeat(coarse, 2, axis=0), 2, axis=1)
        return maps + self.mixed(jax.nn.relu(self.inner(maps)))


class Refinement(eqx.Module):
    """Each landmark's look about the place where it is thought to be.

    Attention (Vaswani et al. 2017) with a query for each landmark, over the places of a map at an eighth of the crop,
    near ones before far ones: where it looks moves the landmark (as in Nibali et al. 2018), what it sees there moves it
    further, by less than a place, and says how sure it is.
    """

    merges: tuple[Merge, ...]
    level: Level
    mix: Dense
    queries: Float[Array, "point read"]
    answers: Float[Array, "point 4 read"]  # shift (2, tenths of a side), what is added to log sigma's and the logit
    reach: Float[Array, " point"]  # logarithm of how far it looks about, sides of the crop

    def __init__(self, key: Key[Array, ""], points: int, widths: tuple[int, ...]):
        *keys, mix = jax.random.split(key, 1 + len(widths))
        self.merges = tuple(Merge(k, width) for k, width in zip(keys, widths, strict=True))
        self.level, self.mix = Level(_READ), Dense(mix, _READ, _READ, np.sqrt(2.0))
        # At first nothing is moved.
        self.queries, self.answers = jnp.zeros((points, _READ)), jnp.zeros((points, 4, _READ))
        self.reach = jnp.full(points, float(np.log(_REACH)))

    def __call__(
        self, maps: Sequence[Map], rough: Float[Array, "point 2"]
    ) -> tuple[Float[Array, "point 2"], Float[Array, "point 2"]]:
        """By how much landmarks at `rough` move, and what is added to their log sigma's and visibility's outputs."""
        seen = self.seen(maps)
        side = seen.shape[0] - 2 * _BORDER
        seen = seen.reshape(-1, _READ)
        along = (np.arange(side + 2 * _BORDER) - _BORDER + 0.5) / side - 0.5
        places = jnp.asarray(np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2), jnp.float32)
        apart = jnp.sum((places - rough[:, None]) ** 2, axis=-1) * (0.5 * jnp.exp(-2.0 * self.reach))[:, None]
        share = jax.nn.softmax(self.queries @ seen.T - apart, axis=-1)
        # Places are coarse: what counts is by how much attention moves from where nothing draws it.
        shift = (share - jax.nn.softmax(-apart, axis=-1)) @ places
        answer = jnp.einsum("kac,kc->ka", self.answers, share @ seen)
        return shift + 0.1 * answer[:, :2], answer[:, 2:]

    def seen(self, maps: Sequence[Map]) -> Map:
        """What landmarks look at, from maps, fine to coarse: as fine as the first, with a border about the crop."""
        seen = None
        for merge, one in zip(self.merges[::-1], maps[::-1], strict=True):
            seen = merge(seen, one)
        assert seen is not None  # there are at least two maps
        seen = jax.nn.relu(self.level(seen))
        seen = jnp.einsum("hwc,oc->hwo", seen, self.mix.matrix.astype(seen.dtype)) + self.mix.offset
        return jnp.pad(seen, ((_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0)), mode="edge").astype(jnp.float32)


class Consensus(eqx.Module):
    """What landmarks and their deviations say together about each other, pose, expression and identity.

    Identity is in differences of a few per cent between landmarks. Features of the last map hold none of it: from them
    alone no coefficient of unseen faces is known better than its mean (docs/landmark_network.md). Landmarks are read
    from their own middle in units of their own spread, so that where the crop was cut does not matter.
    """

    hidden: Dense
    out: Dense

    def __init__(self, key: Key[Array, ""], points: int, others: int):
        self.hidden = Dense(key, 3 * points + 3, _SPOKEN, np.sqrt(2.0))
        # At first nothing is changed.
        count = 2 * points + others
        self.out = Dense(key, _SPOKEN, count, gain=0.0)

    def __call__(
        self, landmarks: Float[Array, "point 2"], log_sigma: Float[Array, " point"]
    ) -> tuple[Float[Array, "point 2"], Float[Array, " other"]]:
        """By how much landmarks move, and what is added to the other outputs."""
        middle = jnp.mean(landmarks, axis=0)
        spread = jnp.sqrt(jnp.mean((landmarks - middle) ** 2) + 1e-4)
        where = jnp.append(middle, jnp.log(spread))
        said = jnp.concatenate([((landmarks - middle) / spread).reshape(-1), log_sigma - _FIRST_LOG_SIGMA, where])
        out = self.out(jax.nn.relu(self.hidden(said)))
        shift, others = jnp.split(out, [landmarks.size])
        return 0.1 * spread * shift.reshape(landmarks.shape), others


class LandmarkNetwork(eqx.Module):
    """A crop's landmarks, their deviations, and what to start a fit from."""

    stem: tuple[Convolution, Convolution]
    downs: tuple[Convolution, ...]
    blocks: tuple[tuple[Block, ...], ...]
    last: Level
    squeeze: Float[Array, "squeezed channel"]
    features: Dense
    head: Dense
    refinement: Refinement
    consensus: Consensus
    mean_points: Float[Array, "point 2"]  # where the points are on average, sides of the crop from its middle
    surface: SurfacePoints  # which points they are
    size: int = eqx.field(static=True)  # px, side of the crop
    units: int = eqx.field(static=True)
    identity: int = eqx.field(static=True)

    def __init__(
        self,
        key: Key[Array, ""],
        surface: SurfacePoints,
        units: int,
        identity: int,
        size: int = 128,
        widths: tuple[int, ...] = WIDTHS,
        depths: tuple[int, ...] = DEPTHS,
    ):
        least = 2 ** (len(widths) + 1)
        if len(widths) < 2 or size % least != 0 or any(w % _GROUP for w in (_STEM, *widths)):
            raise ValueError(
                f"LandmarkNetwork: got a crop of {size} pixels and widths {widths}, expected a multiple of {least} and "
                f"at least two multiples of {_GROUP}."
            )
        keys = iter(jax.random.split(key, 9 + 2 * len(widths) + sum(depths)))
        points = surface.vertices.shape[0]
        self.stem = (Convolution(next(keys), 3, _STEM, 2), Convolution(next(keys), _STEM, widths[0], 2))
        self.downs = tuple(Convolution(next(keys), a, b, 2) for a, b in zip(widths, widths[1:], strict=False))
        self.blocks = tuple(tuple(Block(next(keys), w) for _ in range(d)) for w, d in zip(widths, depths, strict=True))
        self.last = Level(widths[-1])
        side = size // 2 ** (len(widths) + 1)
        self.squeeze = jax.random.normal(next(keys), (_SQUEEZED, widths[-1])) * np.sqrt(1.0 / widths[-1])
        self.features = Dense(next(keys), side * side * _SQUEEZED, _FEATURES, np.sqrt(2.0))
        self.head = Dense(next(keys), _FEATURES, 4 * points + 6 + 3 + units + identity, 0.1)
        self.refinement = Refinement(next(keys), points, widths[1:])
        self.consensus = Consensus(next(keys), points, 6 + 3 + units + identity)
        self.mean_points = jnp.zeros((points, 2))
        self.surface = surface
        self.size, self.units, self.identity = size, units, identity

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each size."""
        return tuple(blocks[0].level.scale.shape[0] for blocks in self.blocks)

    @property
    def depths(self) -> tuple[int, ...]:
        """Residual blocks at each size."""
        return tuple(len(blocks) for blocks in self.blocks)

    @property
    def points(self) -> int:
        """Number of landmarks."""
        return self.surface.vertices.shape[0]

    def __call__(self, pixels: Float[Array, "size size 3"]) -> Prediction:
        """What the network says about a crop, sRGB-encoded in [0, 1]. Half precision in, half precision inside."""
        maps = 4.0 * (pixels - 0.45)
        for convolution in self.stem:
            maps = jax.nn.relu(convolution(maps))
        finer = []
        for number, blocks in enumerate(self.blocks):
            if number > 0:
                maps = self.downs[number - 1](maps)
            for block in blocks:
                maps = block(maps)
            finer.append(maps)
        maps = jax.nn.relu(self.last(maps)).astype(jnp.float32)
        squeezed = jnp.einsum("hwc,sc->hws", maps, self.squeeze)
        features = jax.nn.relu(self.features(squeezed.reshape(-1)))
        n = self.points
        place, sigma, seen, others = jnp.split(self.head(features), [2 * n, 3 * n, 4 * n])
        rough = self.mean_points + 0.3 * place.reshape(n, 2)
        shift, more = self.refinement(finer[1:], rough)
        low, high = LOG_SIGMA
        first = _logit((_FIRST_LOG_SIGMA - low) / (high - low))
        log_sigma = low + (high - low) * jax.nn.sigmoid(sigma + more[:, 0] + first)
        landmarks = rough + shift
        agreed, added = self.consensus(landmarks, log_sigma)
        turn, placement, expression, identity = jnp.split(others + added, [6, 9, 9 + self.units])
        return Prediction(
            landmarks=landmarks + agreed,
            log_sigma=log_sigma,
            visible=seen + more[:, 1],
            rotation=rotation_from_columns(turn.reshape(2, 3) + jnp.asarray(_UPRIGHT)),
            placement=placement,
            expression=_UNIT_SHARE + expression,
            identity=identity,
        )


# First two columns of the rotation of a head facing the camera.
_UPRIGHT = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def rotation_from_columns(columns: Float[Array, "2 3"]) -> Float[Array, "3 3"]:
    """The rotation whose first two columns are nearest to these, one after the other.

    A representation without jumps, as networks want it (Zhou et al. 2019, section 4).
    """
    first = columns[0] / jnp.sqrt(jnp.sum(columns[0] ** 2) + 1e-8)
    second = columns[1] - jnp.dot(first, columns[1]) * first
    second = second / jnp.sqrt(jnp.sum(second**2) + 1e-8)
    return jnp.stack([first, second, jnp.cross(first, second)], axis=1)
