"""How alike two aligned pictures of a face are to a network: whose face it is, and what its skin looks like in detail.

Both compare features of `fitting.identity_network`, of a rendering and of the photo cut by the same chip matrix.
Neither may be given pixels that are free one by one: two grey levels of noise turn one person into another for the
network. And what was optimised for this network must not be judged by it.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Cells of 4 and 8 pixels, fields of view of 43 and 83: as VGG19's relu3_2 (4, 32) and relu4_2 (8, 84) in the paper.
MRF_STAGES = {"block4": 2.0, "block2": 1.0}
MRF_WINDOW = 2  # cells
_BANDWIDTH = 0.5  # h of eq. 3
_EPSILON = 1e-5


def identity_distance(descriptor: Float[Array, " coordinate"], other: Float[Array, " coordinate"]) -> Float[Array, ""]:
    """1 - cos of the angle between two descriptors: 0 to 2, differentiable unless one is 0.

    dlib compares by the distance d of the descriptors instead, of length r = 1.3 to 1.6: d² is about 2 r² times this.
    """
    cosine = jnp.vdot(descriptor, other) / (jnp.linalg.norm(descriptor) * jnp.linalg.norm(other))
    return 1.0 - cosine


def id_mrf(
    features: Mapping[str, Float[Array, "..."]],
    reference: Mapping[str, Float[Array, "..."]],
    stages: Mapping[str, float] | None = None,
    window: int = MRF_WINDOW,
) -> Float[Array, ""]:
    """The implicit diversified Markov random field loss of one picture's features against a reference's, 0 or more.

    Wang, Tao, Qi, Shen & Jia 2018, "Image inpainting via generative multi-column convolutional neural networks", eq. 6,
    whose weights 2 and 1 go to the deeper and the nearer of two stages of VGG19, as in DECA (Feng et al. 2021). See
    `stage_mrf`. Features are `IdentityNetwork.features`, each (row, column, channel): `jax.vmap(id_mrf)` for a batch.

    Cells that need not match are made alike before: lay the rendering over the photo where the photo shows skin.
    """
    stages = MRF_STAGES if stages is None else stages
    losses = [weight * stage_mrf(features[name], reference[name], window) for name, weight in stages.items()]
    return jnp.sum(jnp.stack(losses))


def stage_mrf(
    maps: Float[Array, "row column channel"], reference: Float[Array, "row column channel"], window: int = MRF_WINDOW
) -> Float[Array, ""]:
    """Whether every cell of the reference is what some cell of the maps is like, more than like any other: eq. 3 to 5.

    A cell v of the maps distributes one unit over the reference's cells s, in proportion to exp(-d(v, s) / (h d(v)))
    where d is half of 1 - cos of the angle between features and d(v) the least of them (Mechrez, Talmi & Zelnik-Manor
    2018, "The contextual loss", eq. 2 to 4; eq. 3 has similarities instead, by which a picture is not most like itself;
    its authors' program and DECA have distances). Each s keeps the largest share that it gets; the loss is -log of
    their mean. So one cell that the maps repeat, however alike, serves few cells of the reference.

    Only pairs at most `window` cells apart are compared: the pictures are aligned, and without a window the network's
    32 and 64 channels find a third to a half of the places (VGG19 has 256 and 512). Features are never negative, and
    are therefore centred on the reference's mean. The loss is 0 where the maps are equal and no cell of the reference
    is like its neighbours. It does not change if both are multiplied by a positive number, moved or turned as vectors,
    or mirrored as pictures.
    """
    mean = jnp.mean(reference, axis=(0, 1))
    cells, places = _directions(maps - mean), _directions(reference - mean)
    known = _neighbours(jnp.ones(maps.shape[:2]), window) > 0
    # As a product of matrices: a sum over the last axis takes ten times as long to differentiate.
    cosines = jnp.einsum("rck,derck->derc", cells, _neighbours(places, window))
    distances = jnp.maximum(0.5 - 0.5 * cosines, 0.0)  # rounding leaves some below 0, of which ratios make much
    ratios = distances / (jnp.min(distances, axis=(0, 1), where=known, initial=1.0) + _EPSILON)
    shares = jax.nn.softmax(-ratios / _BANDWIDTH, axis=(0, 1), where=known)
    return -jnp.log(jnp.mean(jnp.max(_of_neighbours(shares, window), axis=(0, 1))))


def _directions(vectors: Float[Array, "row column channel"]) -> Float[Array, "row column channel"]:
    """Of length 1; 0 stays 0, with a derivative that is finite."""
    square = jnp.sum(vectors**2, axis=2, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def _neighbours(maps: Float[Array, "row column *rest"], window: int) -> Float[Array, "down right row column *rest"]:
    """What lies up to `window` cells above and left of each cell to as far below and right; 0 outside."""
    rows, columns = maps.shape[:2]
    padded = jnp.pad(maps, [(window, window)] * 2 + [(0, 0)] * (maps.ndim - 2))
    steps = range(2 * window + 1)
    above = jnp.stack([padded[k : k + rows] for k in steps])
    return jnp.stack([above[:, :, k : k + columns] for k in steps], axis=1)


def _of_neighbours(shares: Float[Array, "down right row column"], window: int) -> Float[Array, "down right row column"]:
    """What each cell gets from its neighbours, of what each gave to its own: `_neighbours` seen from the other side."""
    rows, columns = shares.shape[2:]
    padded = jnp.pad(shares, [(0, 0)] * 2 + [(window, window)] * 2)
    starts = list(enumerate(range(2 * window, -1, -1)))
    above = jnp.stack([padded[k, :, start : start + rows] for k, start in starts])
    return jnp.stack([above[:, k, :, start : start + columns] for k, start in starts], axis=1)
