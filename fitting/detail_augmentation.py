"""Few people as many: photos taken apart into relief, coarse error and pigments, and put together anew.

To first order the logarithm of a photo over what its fit expects is a sum:

    ratio = share * response . (slopes of the relief + slopes of the fit's error) + the rest,

`response` being what the fit's light makes of slopes, `share` how much of that a photo shows (ambient light and errors
of the fit's light take a quarter of it, by the photo's own regression), and the rest pigments, noise and gloss. As the
slopes of synthetic photos are known, each part can be weakened, or mixed with that of another person in the batch, and
the truth with it. A network that sees a person's pigments over another one's wrinkles cannot learn either by heart.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fitting.detail_examples import Example
from fitting.detail_losses import fine, slopes

_AS_THEY_ARE = 0.4  # of the people
_SHARE_LIMITS = (0.3, 1.3)
_MOST_PIGMENTS = 0.5  # of a quarter turn between a person's own rest and the other's


class Mixture(NamedTuple):
    """Factors of one photo's parts and of the other's; the first of each 1 and the second 0 leave a photo as it is."""

    relief: Float[Array, "photo 2"]
    error: Float[Array, "photo 2"]  # of the coarse fit
    rest: Float[Array, " photo"]  # angle between the photo's own rest and the other's


def random_mixture(key: Key[Array, ""], photos: int) -> Mixture:
    """A person's photos have one relief, and errors and pigments of their own.

    On the whole relief and errors stay as large as they were: a network learns how large they are, too.
    """
    people = (photos + 1) // 2
    keys = jax.random.split(key, 6)

    def uniform(k, low, high, count=photos):
        return jax.random.uniform(keys[k], (count,), minval=low, maxval=high)

    both = lambda x: jnp.repeat(x, 2)[:photos]  # noqa: E731
    mixed = both((uniform(0, 0.0, 1.0, people) > _AS_THEY_ARE).astype(jnp.float32))
    relief, other = both(uniform(1, 0.6, 1.3, people)), both(uniform(2, -0.8, 0.8, people))
    error, foreign = uniform(3, 0.4, 1.3), uniform(4, -0.5, 0.5)
    return Mixture(
        relief=jnp.stack([1.0 + mixed * (relief - 1.0), mixed * other], axis=1),
        error=jnp.stack([1.0 + mixed * (error - 1.0), mixed * foreign], axis=1),
        rest=mixed * uniform(5, 0.0, _MOST_PIGMENTS * jnp.pi / 2),
    )


def recombined(batch: Example, mixture: Mixture) -> tuple[Example, Float[Array, "photo size size"]]:
    """The batch with each person's parts mixed with the next one's, and the relief (mm) that its chips do not show.

    Photos of unknown truth stay as they are and lend nothing. Chips stay, too.
    """
    count = len(batch.known)
    lender = (jnp.arange(count) + 2) % count  # a photo of the next person
    # Both photos of a person get the same relief.
    donor = (2 * (jnp.arange(count) // 2) + 2) % count
    single = lambda x: x.astype(jnp.float32)  # noqa: E731
    maps, turn, truth, frame = (single(x) for x in (batch.maps, batch.turn, batch.truth, batch.frame))
    known = batch.known * batch.known[lender] * batch.known[donor]
    relief, error = mixture.relief, mixture.error
    plane = lambda x: x[:, None, None]  # noqa: E731

    weight, response, where = maps[..., 6:7], maps[..., 13:15], turn[..., 2:]
    own = jax.vmap(slopes)(truth, frame)
    wrong = (turn[..., :2] - own) * where
    added = plane(known) * (plane(relief[:, 0] - 1.0) * truth + plane(relief[:, 1]) * truth[donor])
    change = jax.vmap(slopes)(added, frame) + plane(known)[..., None] * (
        plane(error[:, :1] - 1.0) * wrong + plane(error[:, 1:]) * wrong[lender]
    )
    change = change * where

    share = jax.vmap(_share)(maps[..., 3:6], response, turn, weight[..., 0])
    shading = plane(share)[..., None] * jnp.sum(response * turn[..., :2], axis=-1, keepdims=True) * where * weight
    rest = maps[..., 3:6] - shading
    # Where the other photo shows nothing there is nothing to mix.
    angle = plane(mixture.rest * known)[..., None]
    lent = weight[lender] * where[lender]
    more = lent * ((jnp.cos(angle) - 1.0) * rest + jnp.sin(angle) * rest[lender])
    more = (more + plane(share)[..., None] * jnp.sum(response * change, axis=-1, keepdims=True)) * weight
    mixed = batch._replace(
        maps=maps.at[..., :6].add(jnp.concatenate([more, more], axis=-1)),
        turn=turn.at[..., :2].add(change),
        truth=truth + added,
    )
    return mixed, added


def _share(ratio, response, turn, weight) -> Float[Array, ""]:
    """Of the expected shading by the known slopes, how much the photo shows: least squares over what is fine."""
    weight = weight * turn[..., 2]
    expected = fine(jnp.sum(response * turn[..., :2], axis=-1), weight)
    seen = fine(jnp.mean(ratio, axis=-1), weight)
    least = 1e-4 * (jnp.sum(weight) + 1.0)  # no relief, or none that the light shows: all of nothing
    both = jnp.sum(weight * expected * seen) + least
    return jnp.clip(both / (jnp.sum(weight * expected**2) + least), *_SHARE_LIMITS)
