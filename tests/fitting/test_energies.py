"""Every term's Gauss-Newton model agrees with derivatives of its own energy."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter

from fitting.energies import (
    BlockPrior,
    DistancePrior,
    Huber,
    JawTerm,
    LandmarkTerm,
    PhotometricTerm,
    _SkinPoint,
    project,
)
from fitting.parameters import retract, start_parameters
from fitting.schedule import light_sigma
from fitting.surface_samples import PointBasis, solver_model
from morphable.colour import linear_to_srgb
from renderer.camera import Pinhole
from renderer.light import sh_basis
from renderer.render import render


@pytest.fixture(scope="module")
def sampled(tiny):
    return solver_model(tiny, blocks=2)


@pytest.fixture(scope="module")
def face():
    """Somewhere generic: no symmetry, no zero derivative."""
    rng = np.random.default_rng(0)
    start = start_parameters(6, 4, 4)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return dataclasses.replace(
        start,
        identity=0.5 * draw(6),
        expression=jnp.array([0.2, 0.1, 0.3, 0.4]),
        albedo=draw(4),
        light=start.light + 0.2 * draw(9, 3),
        log_focal=jnp.log(jnp.array(1500.0)),
        pose=start.pose @ jaxlie.SE3.exp(jnp.array([5.0, 3.0, 10.0, 0.1, 0.35, 0.1])),
    )


@pytest.fixture(scope="module")
def photometric(sampled):
    rng = np.random.default_rng(1)
    image = gaussian_filter(rng.random((1, 256, 256, 3)), (0, 6, 6, 0))
    image = 0.8 * (image - image.min()) / np.ptp(image)
    scalar = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return PhotometricTerm(
        sampled.skin,
        scalar(image),
        jnp.ones((256, 256)),
        scalar(rng.random((2, 512)) > 0.2),
        jnp.int32(0),
        jnp.int32(2),
        scalar(0.4),
        scalar(0.3),
        scalar(0.7),
        scalar([128.0, 128.0]),
    )


def _terms(sampled, face, photometric):
    centre = jnp.array([128.0, 128.0])
    basis = sampled.landmarks
    where = project(face, basis.positions(face.identity, face.expression), centre)
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(68, 2)), jnp.float32)
    points = where + 3 * noise
    sigma = jnp.full(68, 2.0).at[20].set(jnp.inf)
    part = lambda s: PointBasis(basis.mean[s], basis.modes[s])  # noqa: E731
    jaw = JawTerm(part(slice(0, 17)), sampled.contour, points[:17], sigma[:17], jnp.full(17, 6.0), centre)
    return {
        "landmarks": LandmarkTerm(basis, points, sigma, centre),
        "jaw": jaw,
        "photometric": photometric,
        "expression": BlockPrior("expression", jnp.zeros(4), jnp.full(4, 0.25)),
        "light": BlockPrior("light", jnp.zeros(27), jnp.full(27, 2.0)),
        "distance": DistancePrior(jnp.log(jnp.array(900.0)), jnp.array(0.3)),
    }


@pytest.mark.parametrize("name", ["landmarks", "jaw", "photometric", "expression", "light", "distance"])
def test_gradient_is_the_energys_derivative(name, sampled, face, photometric):
    term = _terms(sampled, face, photometric)[name]
    model = eqx.filter_jit(lambda t, f: t.linearise(f))(term, face)
    gradient = jax.grad(lambda s: term.energy(retract(face, s)))(jnp.zeros(face.layout.size))
    if name == "jaw":  # the direction of the jaw line is held fixed in the model: the energy must be, too
        np.testing.assert_allclose(model.energy, term.energy(face), rtol=1e-5)
    scale = jnp.max(jnp.abs(gradient))
    assert scale > 0
    np.testing.assert_allclose(model.gradient, gradient, atol=2e-4 * scale)
    np.testing.assert_allclose(model.energy, term.energy(face), rtol=1e-5)


def test_structured_hessian_is_that_of_forward_differentiation(face, photometric):
    skin = photometric.skin

    def point(f, i):
        data = (skin.geometry[i], skin.geometry_modes[i], skin.albedo[i], skin.albedo_modes[i])
        return _SkinPoint(f, photometric.centre, photometric.pyramid[0], photometric.valid, *data)

    hessian = 0.0
    for i in range(2):
        jacobian = jax.jacfwd(lambda s, i=i: point(retract(face, s), i).residual)(jnp.zeros(face.layout.size))
        here = point(face, i)
        square = jnp.mean(here.residual**2, axis=0)
        weight = here.confidence(photometric.saturation) * photometric.visible[i]
        weight = weight * 2000 / 1024 / photometric.sigma**2 / (1 + square / photometric.cutoff**2) ** 2
        hessian = hessian + jnp.einsum("cpd,p,cpe->de", jacobian, weight, jacobian)
    structured = photometric.linearise(face).hessian
    np.testing.assert_allclose(structured, hessian, atol=2e-5 * float(jnp.max(jnp.abs(hessian))))


def test_photometric_derivatives_match_finite_differences(face, photometric):
    """The image is piecewise bilinear, so steps stay inside a pixel for nearly all samples."""
    direction = jnp.asarray(np.random.default_rng(3).normal(size=face.layout.size), jnp.float32)
    at = face.layout.block
    scale = jnp.ones(face.layout.size).at[at("pose")].set(0.02).at[at("focal")].set(0.002)
    direction = direction * scale / jnp.linalg.norm(direction)
    energy = jax.jit(lambda h: photometric.energy(retract(face, h * direction)))
    numeric = (energy(0.01) - energy(-0.01)) / 0.02
    analytic = photometric.linearise(face).gradient @ direction
    np.testing.assert_allclose(analytic, numeric, rtol=0.05)


def test_hidden_landmarks_and_masked_pixels_say_nothing(sampled, face, photometric):
    terms = _terms(sampled, face, photometric)
    moved = eqx.tree_at(lambda t: t.points_px, terms["landmarks"], terms["landmarks"].points_px.at[20].add(500.0))
    np.testing.assert_allclose(moved.energy(face), terms["landmarks"].energy(face))
    masked = eqx.tree_at(lambda t: t.valid, photometric, jnp.zeros((256, 256)))
    assert masked.energy(face) == 0 and jnp.all(masked.linearise(face).hessian == 0)


def test_jaw_points_slide_along_the_line_but_not_across(sampled, face, photometric):
    jaw = _terms(sampled, face, photometric)["jaw"]
    here = project(face, jaw.on_outline(face).positions(face.identity, face.expression), jaw.centre)
    jaw = eqx.tree_at(lambda t: t.points_px, jaw, here)
    along = (here[9] - here[7]) / jnp.linalg.norm(here[9] - here[7])
    across = jnp.array([-along[1], along[0]])
    shifted = lambda d: eqx.tree_at(lambda t: t.points_px, jaw, here.at[8].add(3 * d))  # noqa: E731
    assert shifted(along).energy(face) < 0.2 * shifted(across).energy(face)


@pytest.mark.parametrize("covered", [False, True], ids=["clear", "a tenth covered"])
def test_light_is_recovered_from_a_rendered_head(head, covered):
    """A head drawn by the renderer, so by other code than the term's, gives back the light it was lit with."""
    blocks, size = 4, 256
    sampled = solver_model(head, blocks)
    start = start_parameters(sampled.identity_rank, sampled.free_units.shape[0], sampled.albedo_rank)
    rng = np.random.default_rng(0)
    draw = lambda n: jnp.asarray(rng.normal(size=n), jnp.float32)  # noqa: E731
    face = dataclasses.replace(
        start,
        identity=0.5 * draw(sampled.identity_rank),
        expression=head.weights(jawOpen=0.2, mouthSmileLeft=0.3),
        albedo=draw(sampled.albedo_rank),
        log_focal=jnp.log(jnp.array(900.0)),
        pose=start.pose @ jaxlie.SE3.exp(jnp.array([5.0, 3.0, 10.0, 0.1, 0.35, 0.1])),
    )
    # Another lamp in each channel: neither the channels nor the bands can be mistaken for each other.
    lamp = np.random.default_rng(4).normal(size=(9, 3)) * np.repeat([0.0, 0.5, 0.25], [1, 3, 5])[:, None]
    light = jnp.asarray(np.sqrt(4 * np.pi) * np.eye(9)[:, :1] * [0.55, 0.45, 0.5] + lamp, jnp.float32)
    focal, centre = jnp.exp(face.log_focal), jnp.array([size / 2, size / 2])
    camera = Pinhole(jnp.stack([focal, focal]), centre, face.pose, size, size)
    picture = render(head.instance(face.identity, face.expression, face.albedo), camera, light)
    seen = linear_to_srgb(picture.over(jnp.full((size, size, 3), 0.5)))
    if covered:
        seen = seen.at[130:160, 130:150].set(jnp.array([0.05, 0.6, 0.1]))
    # Samples beside the outline would mix with the background.
    inside = jnp.asarray(binary_erosion(np.asarray(picture.coverage) > 0, iterations=3), jnp.float32)
    term = PhotometricTerm(
        sampled.skin,
        seen[None],
        inside,
        jnp.ones((blocks, 512)),
        jnp.array(0),
        jnp.array(blocks),
        sigma=jnp.array(0.4),
        cutoff=jnp.array(0.1),
        saturation=jnp.array(0.97),
        centre=centre,
    )
    facing = np.asarray(picture.normals)[np.asarray(inside) > 0]
    facing = sh_basis(jnp.asarray(facing[facing[:, 2] < -0.5]))
    shade = facing @ light  # from 0.29 to 0.89
    # The half of a sphere that a face shows ties the bands together: a tight prior would move the coefficients.
    found = term.light(face, jnp.full(27, 300.0))
    if covered:  # plain least squares: 0.035
        assert jnp.mean(jnp.abs(facing @ found - shade)) < 0.01
    else:
        np.testing.assert_allclose(found, light, atol=0.07)
        np.testing.assert_allclose(facing @ found, shade, atol=0.01)
    assert jnp.mean(jnp.abs(facing @ term.light(face, light_sigma()) - shade)) < 0.02


@pytest.mark.parametrize("square", [0.5, 4.0, 30.0])
def test_huber_weight_is_the_derivative_of_rho(square):
    kernel = Huber(jnp.array(2.0))
    np.testing.assert_allclose(jax.grad(lambda s: kernel.rho(s))(square), kernel.weight(jnp.array(square)), rtol=1e-5)
