"""Every term's Gauss-Newton model agrees with derivatives of its own energy."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from helpers import quickly
from scipy.ndimage import binary_erosion, gaussian_filter

from fitting.energies import (
    LIDS,
    AsymmetricTerm,
    BlockPrior,
    BoundsTerm,
    DistancePrior,
    EmbeddingTerm,
    JawTerm,
    LandmarkTerm,
    OccludingEdgeTerm,
    PhotometricTerm,
    PosePrior,
    RenderedTerm,
    ShapeConsistencyTerm,
    SightedRotation,
    SilhouetteTerm,
    TemporalTerm,
    project,
    relative_term,
    symmetry_term,
)
from fitting.parameters import retract, start_parameters
from fitting.photometric import SkinPoints, sample_weights
from fitting.pixels import Softness, head_surface
from fitting.schedule import light_sigma
from fitting.surface_samples import PointBasis, solver_model
from fitting.terms import GemanMcClure, Huber, WeightedTerm
from morphable.colour import linear_to_srgb
from renderer.camera import Pinhole, swing_to
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
        scalar(rng.random((2, 512)) > 0.2),
        jnp.int32(0),
        jnp.int32(2),
        scalar(0.4),
        scalar(0.3),
        scalar([128.0, 128.0]),
    )


CENTRE = jnp.array([128.0, 128.0])


@pytest.fixture(scope="module")
def terms(tiny, sampled, face, photometric):
    """One of each, about a generic face: nothing is at its minimum."""
    basis = sampled.landmarks
    where = project(face, basis.positions(face.identity, face.expression), CENTRE)
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(68, 2)), jnp.float32)
    points = where + 3 * noise
    sigma = jnp.full(68, 2.0).at[20].set(jnp.inf)
    part = lambda s: PointBasis(basis.mean[s], basis.modes[s])  # noqa: E731
    moved = retract(face, 0.1 * jnp.ones(face.layout.size))
    surface = head_surface(tiny, full=True)
    edges = surface.edges
    inner = edges.triangles[:, 1] >= 0
    ring = jnp.asarray(np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 80)), np.sin(t)], axis=1), jnp.float32)
    middle = jnp.mean(where, axis=0)
    shared = jnp.asarray(np.random.default_rng(4).normal(size=(3, 68, 3)), jnp.float32)
    landmark = LandmarkTerm(basis, points, sigma, CENTRE, shared)
    return {
        "landmarks": landmark,
        "jaw": JawTerm(part(slice(0, 17)), sampled.contour, points[:17], sigma[:17], jnp.full(17, 6.0), CENTRE),
        "photometric": photometric,
        "lids": relative_term(basis, points, LIDS, 1.0, CENTRE),
        "edges": OccludingEdgeTerm(
            surface.basis,
            edges.vertices[inner],
            surface.triangles[edges.triangles[inner]],
            middle + 95.0 * ring,
            ring,
            jnp.array(3.0),
            jnp.array(60.0),
            CENTRE,
            count=32,
        ),
        "silhouette": SilhouetteTerm(
            surface, gaussian_filter_mask(), jnp.ones((48, 48)), jnp.array([24.0, 24.0]), jnp.array(0.3)
        ),
        "expression": BlockPrior("expression", jnp.zeros(4), jnp.full(4, 0.25), Huber(1.0)),
        "light": BlockPrior("light", jnp.zeros(27), jnp.full(27, 2.0)),
        "distance": DistancePrior(jnp.log(jnp.array(900.0)), jnp.array(0.3)),
        "pose": PosePrior(moved.pose, jnp.array([5.0, 5.0, 5.0, 0.1, 0.1, 0.1])),
        "rotation": SightedRotation(moved.pose.rotation(), jnp.array([70.0, 20.0]), CENTRE, jnp.array(0.1)),
        "bounds": BoundsTerm(),
        "symmetry": symmetry_term(tiny, 1.0, count=20),
        "time": TemporalTerm(moved, face, jnp.full(6, 2.0), jnp.array(0.1)),
        "asymmetric": AsymmetricTerm(
            "identity", jnp.array([1.0, -1.0, 0.5, 2.0, -0.1, 0.3]), jnp.array(2.0), jnp.array(1.0)
        ),
        "embedding": EmbeddingTerm(lambda f: jnp.sin(f.identity[:3] + 1), jnp.array([0.3, 0.2, 1.0]), jnp.array(0.1)),
        "consistency": ShapeConsistencyTerm([(moved, {"landmarks": landmark})]),
        "weighted": WeightedTerm(landmark, jnp.array(0.3)),
    }


def gaussian_filter_mask():
    disc = np.hypot(*(np.mgrid[:48, :48] + 0.5 - 24.0)) < 16
    return jnp.asarray(gaussian_filter(disc.astype(np.float32), 1))


NAMES = (
    "landmarks", "jaw", "photometric", "lids", "edges", "silhouette", "expression", "light", "distance", "pose",
    "rotation", "bounds", "symmetry", "time", "asymmetric", "embedding", "consistency", "weighted",
)  # fmt: skip


@pytest.fixture(scope="module")
def outside(face):
    """The face with two expression weights beyond their bounds."""
    return dataclasses.replace(face, expression=jnp.array([1.2, 0.1, -0.3, 0.4]))


@quickly  # one program for all tests of a term
def everything(term, here):
    """Gauss-Newton's model, the energy and its gradient, and the energy of the residual vector."""
    zero = jnp.zeros(here.layout.size)
    energy, gradient = jax.value_and_grad(lambda s: term.energy(retract(here, s)))(zero)
    return term.linearise(here), energy, gradient, 0.5 * jnp.sum(term.flat_residuals(here) ** 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_a_term_is_the_same_energy(name, terms, face, outside):
    """Gauss-Newton's model, the energy and the residual vector: one value, one gradient."""
    term = terms[name]
    here = outside if name == "bounds" else face
    if name == "silhouette":  # the little picture's camera
        here = dataclasses.replace(face, log_focal=jnp.log(jnp.array(280.0)))
    model, energy, gradient, folded = everything(term, here)
    scale = jnp.max(jnp.abs(gradient))
    assert scale > 0
    np.testing.assert_allclose(model.gradient, gradient, atol=float(3e-4 * scale))
    np.testing.assert_allclose(model.energy, energy, rtol=1e-5)
    np.testing.assert_allclose(folded, energy, rtol=1e-4)
    assert jnp.all(jnp.linalg.eigvalsh(model.hessian) > -1e-4 * jnp.max(jnp.diag(model.hessian)))


def test_shared_errors_of_landmarks_are_a_covariance(terms, face):
    """Eliminating the amplitudes of G gives the normal equations of the covariance S² + G Gᵀ."""
    term = dataclasses.replace(terms["landmarks"], sigma_px=jnp.linspace(1.0, 3.0, 68), kernel=Huber(1e3))
    flat = lambda x: np.asarray(x, np.float64).reshape(136, -1)  # noqa: E731
    alone = dataclasses.replace(term, shared=None)
    jacobian = flat(jax.jit(jax.jacfwd(lambda s: alone.residuals(retract(face, s))))(jnp.zeros(face.layout.size)))
    # One deviation of each shared error, as the image shows it.
    shaped = term.basis.positions(face.identity, face.expression)
    seen = lambda a: project(face, shaped + jnp.tensordot(a, term.shared, 1), CENTRE) / term.sigma_px[:, None]  # noqa: E731
    columns = flat(jax.jit(jax.jacfwd(seen))(jnp.zeros(3)))
    precision = np.linalg.inv(np.eye(136) + columns @ columns.T)
    error = flat(alone.residuals(face))
    model = eqx.filter_jit(lambda t: t.linearise(face))(term)
    expected = jacobian.T @ precision @ jacobian
    # The elimination follows the displaced points, whose derivatives differ by their displacement over the distance.
    np.testing.assert_allclose(model.hessian, expected, atol=0.02 * np.abs(expected).max())
    np.testing.assert_allclose(model.energy, 0.5 * (error.T @ precision @ error).item(), rtol=0.01)


def test_points_that_err_together_cost_one_deviation(terms, face):
    term = terms["landmarks"]
    shaped = term.basis.positions(face.identity, face.expression)
    displaced = dataclasses.replace(term, points_px=project(face, shaped + term.shared[1], CENTRE))
    alone = dataclasses.replace(displaced, shared=None)
    amplitude, energy = eqx.filter_jit(lambda t: (t.amplitude(face), t.energy(face)))(displaced)
    np.testing.assert_allclose(amplitude, [0.0, 1.0, 0.0], atol=0.1)
    assert energy < 0.5 < alone.energy(face) / 10


@pytest.mark.parametrize("yaw, outlined", [(0, slice(0, 0)), (30, slice(9, 17)), (-30, slice(0, 8))])
def test_the_half_of_the_jaw_that_is_turned_away_shows_its_outline(terms, face, yaw, outlined):
    """Turned to its left (positive yaw), a head hides its left half, 9-16; nodding and tilting hide neither."""
    jaw = terms["jaw"]
    moved = eqx.tree_at(lambda t: t.contour.mean, jaw, jaw.contour.mean + 1000.0)
    facing = jaxlie.SO3.from_z_radians(0.6) @ jaxlie.SO3.from_x_radians(np.pi + 0.5)
    turned = jaxlie.SE3.from_rotation_and_translation(
        facing @ jaxlie.SO3.from_y_radians(np.radians(yaw)), jnp.array([0.0, 0.0, 1000.0])
    )
    chosen = moved.on_outline(dataclasses.replace(face, pose=turned)).mean
    expected = np.zeros(17, bool)
    expected[outlined] = True
    np.testing.assert_array_equal(np.any(chosen != jaw.fixed.mean, axis=1), expected)


def test_structured_hessian_is_that_of_forward_differentiation(face, photometric):
    skin = photometric.skin

    @quickly
    def reference(face):
        hessian = 0.0
        for i in range(2):
            data = (skin.geometry[i], skin.geometry_modes[i], skin.albedo[i], skin.albedo_modes[i])

            def residual(s, data=data):
                return SkinPoints(retract(face, s), photometric.centre, photometric.pyramid[0], *data).residual

            jacobian = jax.jacfwd(residual)(jnp.zeros(face.layout.size))
            square = jnp.mean(residual(jnp.zeros(face.layout.size)) ** 2, axis=0)
            weight = photometric.weight[i] * 2000 / 1024 / photometric.sigma**2
            weight = weight / (1 + square / photometric.cutoff**2) ** 2
            hessian = hessian + jnp.einsum("cpd,p,cpe->de", jacobian, weight, jacobian)
        return hessian

    hessian = reference(face)
    structured = everything(photometric, face)[0].hessian
    np.testing.assert_allclose(structured, hessian, atol=2e-5 * float(jnp.max(jnp.abs(hessian))))


def test_random_samples_have_the_expected_energy_of_all(face, photometric):
    """The mean over many draws of Blanz & Vetter's estimate, within three of its standard errors."""
    whole = everything(photometric, face)[1]
    draw = jax.jit(lambda k: photometric.subset(k, 40, face).energy(face))
    drawn = jax.lax.map(draw, jax.random.split(jax.random.key(0), 400))
    assert abs(jnp.mean(drawn) - whole) < 3 * jnp.std(drawn) / 20
    assert jnp.std(drawn) < whole  # and a single draw is of some use


def test_photometric_derivatives_match_finite_differences(face, photometric):
    """The image is piecewise bilinear, so steps stay inside a pixel for nearly all samples."""
    direction = jnp.asarray(np.random.default_rng(3).normal(size=face.layout.size), jnp.float32)
    at = face.layout.block
    scale = jnp.ones(face.layout.size).at[at("pose")].set(0.02).at[at("focal")].set(0.002)
    direction = direction * scale / jnp.linalg.norm(direction)
    energy = jax.jit(lambda h: photometric.energy(retract(face, h * direction)))
    numeric = (energy(0.01) - energy(-0.01)) / 0.02
    analytic = everything(photometric, face)[0].gradient @ direction
    np.testing.assert_allclose(analytic, numeric, rtol=0.05)


def test_hidden_landmarks_say_nothing(terms, face):
    landmarks = terms["landmarks"]
    moved = eqx.tree_at(lambda t: t.points_px, landmarks, landmarks.points_px.at[20].add(500.0))
    np.testing.assert_allclose(moved.energy(face), landmarks.energy(face))


def test_only_seen_unsaturated_valid_pixels_are_believed(sampled, face, photometric):
    image, centre = photometric.pyramid[0], photometric.centre
    everything, allowed = jnp.ones((2, 512)), jnp.ones((256, 256))
    weigh = jax.jit(lambda i, v, w: sample_weights(sampled.skin, face, i, v, w, jnp.array(0.97), centre))
    weight = weigh(image, allowed, everything)
    assert 0.3 < jnp.mean(weight > 0.9) < 1  # the rest is turned away
    assert jnp.all(weigh(image, 0 * allowed, everything) == 0)
    assert jnp.all(weigh(image, allowed, 0 * everything) == 0)
    assert jnp.all(weigh(jnp.ones_like(image), allowed, everything) < 0.2)
    left = allowed.at[:, 128:].set(0.0)
    half = weigh(image, left, everything)
    assert 0.2 < jnp.sum(half) / jnp.sum(weight) < 0.8


def test_jaw_points_slide_along_the_line_but_not_across(terms, face):
    jaw = terms["jaw"]
    here = project(face, jaw.on_outline(face).positions(face.identity, face.expression), jaw.centre)
    jaw = eqx.tree_at(lambda t: t.points_px, jaw, here)
    along = (here[9] - here[7]) / jnp.linalg.norm(here[9] - here[7])
    across = jnp.array([-along[1], along[0]])
    shifted = lambda d: eqx.tree_at(lambda t: t.points_px, jaw, here.at[8].add(3 * d))  # noqa: E731
    assert shifted(along).energy(face) < 0.2 * shifted(across).energy(face)


def test_a_common_shift_of_both_lids_changes_nothing(sampled, face, terms):
    lids = terms["lids"]
    points = jnp.asarray(np.random.default_rng(5).normal(size=(68, 2)), jnp.float32)
    shifted = points.at[jnp.array([37, 41])].add(jnp.array([4.0, -3.0]))
    one, two = (relative_term(sampled.landmarks, p, LIDS, 1.0, lids.centre).energy(face) for p in (points, shifted))
    np.testing.assert_allclose(one, two, rtol=1e-4)
    opened = points.at[37, 1].add(-4.0)
    assert relative_term(sampled.landmarks, opened, LIDS, 1.0, lids.centre).energy(face) != one


def test_falling_short_costs_more_than_going_beyond():
    face = start_parameters(6, 4, 4)
    target = jnp.array([1.0, -2.0, 0.5, -0.5, 1.0, 0.0])
    term = AsymmetricTerm("identity", target, jnp.array(2.0), jnp.array(1.0))
    at = lambda v: term.energy(dataclasses.replace(face, identity=v))  # noqa: E731
    away = 0.3 * jnp.where(target < 0, -1.0, 1.0)
    np.testing.assert_allclose(at(target - away), 4 * at(target + away), rtol=1e-5)
    assert at(target) == 0


def test_a_mirrored_head_is_as_symmetric(tiny):
    term = symmetry_term(tiny, 1.0, count=30)
    face = start_parameters(6, 4, 4)
    vertices = tiny.neutral(jnp.ones(6))
    moved = dataclasses.replace(face, identity=jnp.ones(6))
    # By hand, from the vertices themselves.
    mirror = np.asarray(tiny.mirror)
    gap = np.asarray(vertices) - np.array([-1, 1, 1]) * np.asarray(vertices)[mirror]
    rms = np.sqrt((gap[np.arange(len(mirror)) < mirror] ** 2).sum(axis=1).mean())
    found = jnp.sqrt(2 * term.energy(moved) / 10)  # the pairs together count as ten
    assert 0.5 * rms < found < 2 * rms


def test_a_face_that_moves_steadily_is_where_it_was_going(face):
    velocity = jnp.zeros(face.layout.size).at[face.layout.block("pose")].set(0.02 * jnp.arange(6))
    one = retract(face, velocity)
    two = retract(one, velocity)
    steady = TemporalTerm(one, face, jnp.full(6, 1.0), jnp.array(0.1))
    still = TemporalTerm(one, None, jnp.full(6, 1.0), jnp.array(0.1))
    assert steady.energy(two) < 1e-6 < still.energy(two)


def test_a_head_beside_the_axis_looks_turned_along_its_ray(face):
    """A head on the axis, turned with it about the camera, looks the same where it then is: by any focal length."""
    where = jnp.array([200.0, 90.0])
    for focal in (300.0, 1500.0):
        swing = swing_to((where - CENTRE) / focal)
        moved = dataclasses.replace(
            face, pose=jaxlie.SE3.from_rotation(swing) @ face.pose, log_focal=jnp.log(jnp.array(focal))
        )
        ray = moved.pose @ (face.pose.inverse() @ jnp.array([0.0, 0.0, 900.0]))
        np.testing.assert_allclose(focal * ray[:2] / ray[2] + CENTRE, where, atol=1e-2)
        said = SightedRotation(face.pose.rotation(), where, CENTRE, jnp.array(0.05))
        np.testing.assert_allclose(said.flat_residuals(moved), 0.0, atol=1e-4)
        np.testing.assert_array_equal(
            eqx.tree_at(lambda t: t.sigma, said, jnp.array(jnp.inf)).flat_residuals(face), 0.0
        )
        turned = dataclasses.replace(moved, pose=moved.pose @ jaxlie.SE3.exp(jnp.array([0.0, 0, 0, 0.1, 0, 0])))
        assert float(said.energy(turned)) == pytest.approx(2.0, rel=1e-3)


def test_half_the_squared_distance_of_embeddings_is_one_minus_the_cosine(face):
    term = EmbeddingTerm(lambda f: 3 * f.identity, jnp.arange(6.0), jnp.array(1.0))
    cosine = face.identity @ jnp.arange(6.0) / jnp.linalg.norm(face.identity) / jnp.linalg.norm(jnp.arange(6.0))
    np.testing.assert_allclose(term.energy(face), 1 - cosine, rtol=1e-5)


@pytest.mark.parametrize("softness", [None, Softness(sigma=0.05, gamma=1e-4, count=4)], ids=["exact", "soft"])
def test_a_rendered_head_explains_its_own_picture(tiny, face, softness):
    """The energy of the drawn term is smallest at the truth, and only the head's own pixels count."""
    surface = head_surface(tiny, full=True)
    here = dataclasses.replace(face, log_focal=jnp.log(jnp.array(280.0)))
    term = RenderedTerm(
        surface,
        jnp.full((48, 48, 3), 0.3, jnp.float32),
        jnp.ones((48, 48)),
        jnp.array([24.0, 24.0]),
        jnp.array(0.1),
        jnp.array(0.5),
        softness,
    )

    @quickly
    def drawn_and_energy(image, step):
        there, moved = eqx.tree_at(lambda t: t.image, term, image), retract(here, step)
        return (*there.drawn(moved), there.energy(moved))

    zero = jnp.zeros(face.layout.size)
    picture, coverage, _ = drawn_and_energy(term.image, zero)
    assert 0.05 < jnp.mean(coverage) < 0.9
    np.testing.assert_allclose(picture[coverage == 0], 0.3, atol=2e-3)
    at = face.layout.block
    best = drawn_and_energy(picture, zero)[2]
    for block, size in (("pose", 0.05), ("albedo", 0.5), ("light", 0.2), ("identity", 0.5)):
        assert (
            drawn_and_energy(picture, zero.at[at(block)].set(size))[2] > 1.3 * best
        )  # which outlines blended twice leave


@eqx.filter_jit
def light_of(term, face, sigma):
    return term.light(face, sigma)


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
    mesh = eqx.filter_jit(head.instance)(face.identity, face.expression, face.albedo)
    picture = render(mesh, camera, light)
    seen = linear_to_srgb(picture.over(jnp.full((size, size, 3), 0.5)))
    if covered:
        seen = seen.at[130:160, 130:150].set(jnp.array([0.05, 0.6, 0.1]))
    # Samples beside the outline would mix with the background.
    inside = jnp.asarray(binary_erosion(np.asarray(picture.coverage) > 0, iterations=3), jnp.float32)
    term = PhotometricTerm(
        sampled.skin,
        seen[None],
        eqx.filter_jit(sample_weights)(
            sampled.skin, face, seen, inside, jnp.ones((blocks, 512)), jnp.array(0.97), centre
        ),
        jnp.array(0),
        jnp.array(blocks),
        sigma=jnp.array(0.4),
        cutoff=jnp.array(0.1),
        centre=centre,
    )
    facing = np.asarray(picture.normals)[np.asarray(inside) > 0]
    facing = sh_basis(jnp.asarray(facing[facing[:, 2] < -0.5]))
    shade = facing @ light  # from 0.29 to 0.89
    # The half of a sphere that a face shows ties the bands together: a tight prior would move the coefficients.
    found = light_of(term, face, jnp.full(27, 300.0, jnp.float32))
    if covered:  # plain least squares: 0.035
        assert jnp.mean(jnp.abs(facing @ found - shade)) < 0.01
    else:
        np.testing.assert_allclose(found, light, atol=0.07)
        np.testing.assert_allclose(facing @ found, shade, atol=0.01)
    assert jnp.mean(jnp.abs(facing @ light_of(term, face, light_sigma()) - shade)) < 0.02


@pytest.mark.parametrize("kernel", [Huber(2.0), GemanMcClure(2.0)], ids=["Huber", "Geman-McClure"])
@pytest.mark.parametrize("square", [0.5, 4.0, 30.0])
def test_a_kernels_weight_is_the_derivative_of_rho(kernel, square):
    np.testing.assert_allclose(jax.grad(lambda s: kernel.rho(s))(square), kernel.weight(jnp.array(square)), rtol=1e-5)


def test_a_blocks_values_move_by_its_part_of_a_step(face):
    step = 0.1 * jnp.arange(1.0, face.layout.size + 1)
    moved = retract(face, step)
    for name in ("identity", "expression", "albedo", "light", "focal", "offset"):
        expected = face.block(name) + step[face.layout.block(name)]
        np.testing.assert_allclose(moved.block(name), expected, rtol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="got 'pose', expected one of identity.*PosePrior"):
        face.block("pose")
