"""How bright a person's skin is: photos show albedo times light, and only a guess at the camera tells them apart.

A fit splits them by the priors of both. The light's has its middle at none, and every photo brings a light of its own,
so the more photos, the paler the skin: in six frames of one clip by three standard deviations. Here the level is
decided anew, once for all photos, by what is known of cameras: their automatic exposure shows a face at about the same
brightness, and takes back half of the difference between dark and light skin.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fitting.fit import Fit
from morphable.model import MorphableModel
from renderer.light import sh_basis

_USUAL_LEVEL = 0.27  # linear luminance at which cameras show a face; as `fitting.synthesis` exposes its own
_LEVEL_SIGMA = 0.35  # of its logarithm
_HALF = 0.5  # of the skin's difference that stays in the picture
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear RGB (ITU-R BT.709)


class Exposed(NamedTuple):
    """An albedo as bright as it is likely to be, and what makes up for it."""

    albedo: Float[np.ndarray, " albedo"]
    light_factor: Float[np.ndarray, "3"]  # on the lights of all photos, by channel: the pictures stay as they are


def likely_albedo(fits: Sequence[Fit]) -> Exposed:
    """The albedo of one person's fits, moved along the one direction that they cannot tell: brighter or darker skin.

    It is little more than a prior: over five rendered clips the level is wrong by 0.40 in its logarithm, as the joint
    fit's own is by 0.36, but that one is nearly always too pale (0.32), up to white for a face of mean brightness.
    """
    model, albedo = fits[0].model, np.asarray(fits[0].albedo, float)
    front = np.asarray(model.masks["face"] > 0.5) if "face" in model.masks else np.ones(len(model.mean), bool)
    mean = lambda a: _colour(model, a, front)  # noqa: E731
    shown = np.log(np.median([_shown(fit, front) for fit in fits]))
    usual, before = mean(np.zeros_like(albedo)), mean(albedo)
    steps = 1e-2 * np.eye(len(albedo))
    slope = np.array([np.log(mean(step) @ _LUMINANCE) - np.log(usual @ _LUMINANCE) for step in steps]) / 1e-2
    along = slope / max(float(np.linalg.norm(slope)), 1e-9)  # the likeliest way to be brighter
    rest = albedo - (albedo @ along) * along

    def cost(amount: float) -> float:
        brighter = np.log(mean(rest + amount * along) @ _LUMINANCE) - np.log(usual @ _LUMINANCE)
        return amount**2 + ((shown - np.log(_USUAL_LEVEL) - _HALF * brighter) / _LEVEL_SIGMA) ** 2

    amounts = np.linspace(-3.0, 3.0, 121)
    best = rest + amounts[int(np.argmin([cost(amount) for amount in amounts]))] * along
    return Exposed(best, before / mean(best))


def _colour(model: MorphableModel, albedo: Float[np.ndarray, " albedo"], front: np.ndarray) -> Float[np.ndarray, "3"]:
    """Mean colour of the face, linear."""
    colour = np.asarray(model.albedo_linear(jnp.asarray(albedo, jnp.float32)), float)
    return np.maximum(colour[front], 1e-3).mean(axis=0)


def _shown(fit: Fit, front: np.ndarray) -> float:
    """Mean linear luminance of the face as a fit shows it, where it faces the camera."""
    mesh = fit.mesh
    normals = np.asarray(mesh.normals @ fit.camera.rotation.T)
    shade = np.maximum(np.asarray(sh_basis(jnp.asarray(normals)) @ jnp.asarray(fit.light)), 0.0)
    weight = np.maximum(-normals[:, 2], 0.0) * front
    colour = np.asarray(fit.model.albedo_linear(jnp.asarray(fit.albedo))) * shade
    return max(float((weight @ (colour @ _LUMINANCE)) / max(float(weight.sum()), 1e-9)), 1e-3)
