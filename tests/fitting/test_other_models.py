"""Models whose expressions are components, or depend on the identity, are fitted by the same engine."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from fitting.detection import Face, LandmarkNoise
from fitting.fit import Fitter
from fitting.observation import Photo
from fitting.schedule import coarse_to_fine
from morphable.basis import GaussianBasis
from renderer.camera import Pinhole

RANK, UNITS, SIZE = 12, 6, 400
EXPRESSION = jnp.array([1.5, -1.2, 0.8, 0.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def bilinear(head):
    """The embedded head with few modes, six signed expression components, and strong interaction between both."""
    key = jax.random.key(3)
    names = ("jawOpen", "mouthSmileLeft", "mouthSmileRight", "mouthPucker", "browInnerUp", "mouthUpperUpLeft")
    units = head.expression[..., jnp.asarray([head.unit(name) for name in names])] / 3
    modes = head.shape.modes[..., :RANK]
    mix = 0.1 * jax.random.normal(key, (UNITS, UNITS, RANK))
    return dataclasses.replace(
        head,
        shape=GaussianBasis(head.shape.mean, modes),
        expression=units,
        expression_names=tuple(f"expression_{k}" for k in range(UNITS)),
        expression_kind="components",
        interaction=jnp.einsum("vxs,sur->vxur", units, mix),
        rig=None,
    )


@pytest.fixture(scope="module")
def drawn(bilinear):
    """Landmarks of a face with a negative coefficient among its expressions, seen by a known camera."""
    identity = jax.random.normal(jax.random.key(5), (RANK,))
    rotation = jaxlie.SO3.from_x_radians(jnp.pi) @ jaxlie.SO3.from_y_radians(0.25)
    camera = Pinhole(
        jnp.full(2, 1200.0),
        jnp.full(2, SIZE / 2),
        jaxlie.SE3.from_rotation_and_translation(rotation, jnp.array([0.0, 20.0, 900.0])),
        SIZE,
        SIZE,
    )
    vertices = bilinear.vertices(identity, EXPRESSION)
    points = np.asarray(camera.project(bilinear.landmarks(vertices)), float)
    points[:17] = np.nan  # the jaw's slide
    photo = Photo(np.full((SIZE, SIZE, 3), 128, np.uint8))
    return photo, Face.from_landmarks(points, photo, LandmarkNoise(0.2, 0.2)), np.asarray(vertices), points


def test_a_multilinear_model_with_signed_components_explains_its_own_landmarks(bilinear, drawn):
    photo, face, vertices, points = drawn
    plan = coarse_to_fine()[:2]
    off = {}
    for name, model in (("whole", bilinear), ("linear part", dataclasses.replace(bilinear, interaction=None))):
        fit = Fitter(model).fit(photo, face, plan, focal_px=1200.0)
        off[name] = np.abs(fit.expression - np.asarray(EXPRESSION)).max()
        if name == "whole":
            shown = bilinear.vertices(jnp.asarray(fit.identity), jnp.asarray(fit.expression))
            np.testing.assert_allclose(fit.vertices, shown, atol=1e-3)
            seen = np.asarray(fit.camera.project(bilinear.landmarks(shown)))
            assert np.sqrt(np.mean((seen - points)[17:] ** 2)) < 0.2  # px
    assert off["whole"] < 0.3 and off["linear part"] > 1.0
