"""A fit's stated deviations hold the truth as often as they claim, and say what a photo cannot show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from fitting.energies import BlockPrior, LandmarkTerm, project
from fitting.parameters import retract, start_parameters
from fitting.schedule import coarse_to_fine
from fitting.surface_samples import PointBasis
from fitting.synthesis import SynthesisSettings, synthesize
from fitting.terms import Huber
from fitting.uncertainty import posterior, posterior_of_terms, truncated_moments

CENTRE = jnp.array([128.0, 128.0])


# --------------------------------------------------------------------------- a linear world, where all is exact


@pytest.fixture(scope="module")
def points(tiny):
    """Many vertices of the tiny head as landmarks."""
    chosen = np.arange(0, len(tiny.mean), 2)
    modes = jnp.concatenate([tiny.shape.modes, tiny.expression], axis=2)
    return PointBasis(tiny.mean[chosen], modes[chosen])


def _terms(tiny, points, pixels, sigma):
    return {
        "landmarks": LandmarkTerm(points, pixels, jnp.full(len(pixels), sigma), CENTRE, kernel=Huber(1e6)),
        "identity": BlockPrior("identity", jnp.zeros(tiny.shape.rank), jnp.ones(tiny.shape.rank)),
        "expression": BlockPrior("expression", jnp.zeros(4), jnp.full(4, 0.25)),
    }


def _observed(tiny, points, seed, noise):
    rng = np.random.default_rng(seed)
    face = start_parameters(tiny.shape.rank, 4, tiny.albedo.rank)
    step = np.zeros(face.layout.size, np.float32)
    step[face.layout.block("identity")] = rng.normal(size=tiny.shape.rank)
    truth = retract(face, jnp.asarray(step))
    pixels = project(truth, points.positions(truth.identity, truth.expression), CENTRE)
    return truth, pixels + jnp.asarray(noise * rng.normal(size=pixels.shape), jnp.float32)


@jax.jit
def _linearised(terms, face):
    models = [term.linearise(face) for term in terms.values()]
    return sum((m.hessian for m in models[1:]), models[0].hessian), sum(
        (m.gradient for m in models[1:]), models[0].gradient
    )


def _solved(tiny, points, pixels, sigma, free):
    """The minimum by hand: identity alone is free, so pixels are nearly linear in it."""
    face = start_parameters(tiny.shape.rank, 4, tiny.albedo.rank)
    terms = _terms(tiny, points, pixels, sigma)
    for _ in range(3):
        hessian, gradient = (np.asarray(x, float) for x in _linearised(terms, face))
        step = np.zeros(len(gradient), np.float32)
        step[free] = -np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        face = dataclasses.replace(face, identity=face.identity + step[face.layout.block("identity")])
    return face, terms


def test_noise_and_covariance_are_right_whatever_the_fit_assumed(tiny, points):
    """Points with 1 mm noise, of which the fit thinks 3 mm or a third: deviations are those of the actual error."""
    layout = start_parameters(tiny.shape.rank, 4, tiny.albedo.rank).layout
    mask = np.asarray(layout.free("identity"))
    free = np.flatnonzero(mask)
    for assumed in (0.33, 3.0):
        standard, noise = [], []
        for seed in range(16):
            truth, pixels = _observed(tiny, points, seed, 1.0)
            face, terms = _solved(tiny, points, pixels, assumed, free)
            stated = posterior_of_terms(face, terms, mask)
            standard.append((np.asarray(truth.identity) - np.asarray(face.identity)) / stated.sigma("identity"))
            noise.append(stated.noise["landmarks"].variance)
        assert np.mean(noise) * assumed**2 == pytest.approx(1.0, abs=0.06)
        # 240 standard normal numbers: two and a half deviations of their mean square are 0.23.
        assert np.mean(np.square(standard)) == pytest.approx(1.0, abs=0.25)


def test_right_noise_gives_the_inverse_hessian(tiny, points):
    truth, pixels = _observed(tiny, points, 1, 1.0)
    layout = truth.layout
    mask = np.asarray(layout.free("identity"))
    face, terms = _solved(tiny, points, pixels, 1.0, np.flatnonzero(mask))
    stated = posterior_of_terms(face, terms, mask)
    hessian = (stated.prior + stated.data["landmarks"])[layout.block("identity"), layout.block("identity")]
    got = stated.covariance[layout.block("identity"), layout.block("identity")]
    told = stated.noise["landmarks"].variance
    inverse = np.linalg.inv(hessian)
    data = stated.data["landmarks"][layout.block("identity"), layout.block("identity")]
    assert np.allclose(got - inverse, (told - 1) * inverse @ data @ inverse, atol=1e-5 * np.abs(inverse).max())
    assert not stated.sigma("pose").any() and not stated.sigma("albedo").any()  # fixed unknowns are known


def test_ellipsoids_are_those_of_sampled_faces(tiny, points):
    """Of head space; and of rigidly aligned samples, whose alignment is done in full, not to first order."""
    truth, pixels = _observed(tiny, points, 2, 1.0)
    mask = np.asarray(truth.layout.free("identity"))
    face, terms = _solved(tiny, points, pixels, 1.0, np.flatnonzero(mask))
    stated = posterior_of_terms(face, terms, mask)
    keys = jax.random.split(jax.random.key(0), 400)
    faces = [face, *map(stated.sample, keys)]
    drawn = (np.stack([getattr(f, block) for f in faces]) for block in ("identity", "expression"))
    vertices = np.asarray(jax.jit(jax.vmap(tiny.vertices))(*drawn))
    middle, samples = vertices[0], vertices[1:]
    motion = samples - middle
    empirical = np.einsum("svi,svj->vij", motion, motion) / len(keys)
    scale = np.trace(empirical, axis1=1, axis2=2)[:, None, None]
    assert np.max(np.abs(stated.vertex_covariance(tiny) - empirical) / scale) < 0.25
    assert np.allclose(stated.vertex_sigma(tiny) ** 2, np.trace(stated.vertex_covariance(tiny), axis1=1, axis2=2))
    aligned = np.stack([_aligned(s, middle) for s in samples]) - middle
    ratio = np.mean(np.sum(aligned**2, axis=2), axis=0) / stated.vertex_sigma(tiny, alignment="rigid") ** 2
    assert 0.8 < np.median(ratio) < 1.25
    scaled, rigid, plain = (
        np.sum(stated.vertex_sigma(tiny, alignment=a) ** 2) for a in ("similarity", "rigid", "none")
    )
    assert scaled < rigid < plain


def _aligned(a, b):
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    u, _, vt = np.linalg.svd(x.T @ y)
    return x @ (u * [1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt + b.mean(axis=0)


# -------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(("mean", "variance"), [(0.3, 0.04), (-0.5, 0.01), (1.4, 0.01), (-4.0, 0.002), (0.5, 9.0)])
def test_truncated_moments_agree_with_quadrature(mean, variance):
    s = np.sqrt(variance)
    # About the most probable point, as the density far out in a tail underflows.
    top = np.clip(mean, 0, 1)
    density = lambda x: np.exp(-0.5 * ((x - mean) ** 2 - (top - mean) ** 2) / variance)  # noqa: E731
    near = [t for t in (top - s, top + s, top - 1e-2 * s, top + 1e-2 * s) if 0 < t < 1]
    moment = lambda k: quad(lambda x: x**k * density(x), 0, 1, points=near or None, limit=400)[0]  # noqa: E731
    expected = moment(1) / moment(0)
    got = truncated_moments(mean, variance, 0.0, 1.0)
    assert got[0] == pytest.approx(expected, rel=5e-4)
    assert got[1] == pytest.approx(moment(2) / moment(0) - expected**2, rel=2e-3)


def test_weights_at_a_bound_have_one_sided_intervals(tiny, points):
    """A weight whose unbounded estimate lies below 0 has a smaller error than the unbounded one's, and its mean is
    above 0; the identity, which is correlated with it, learns from that too."""
    truth, pixels = _observed(tiny, points, 3, 1.0)
    pushed = points.modes[:, :2, tiny.shape.rank].reshape(-1, 2)
    pixels = pixels - 0.3 * pushed * jnp.array([1.0, -1.0])  # as if the first unit had a weight of about -0.3
    mask = np.asarray(truth.layout.free("identity", "expression"))
    face, terms = _solved(tiny, points, pixels, 2.0, np.flatnonzero(np.asarray(truth.layout.free("identity"))))
    stated = posterior_of_terms(face, terms, mask)
    unit = truth.layout.block("expression").start
    assert stated.offset[unit] > 0
    assert stated.sigma("expression")[0] < 0.1
    everything = jax.random.split(jax.random.key(1), 50)
    assert all(0 <= float(stated.sample(k).expression.min()) for k in everything)
    assert np.linalg.eigvalsh(stated.covariance).min() > -1e-6


def test_independent_bounded_weights_are_exact(tiny):
    """Without data, weights are cut normals of their prior: mean and error of a half normal number."""
    face = start_parameters(tiny.shape.rank, 4, tiny.albedo.rank)
    terms = {"expression": BlockPrior("expression", jnp.zeros(4), jnp.full(4, 0.25))}
    stated = posterior_of_terms(face, terms, np.asarray(face.layout.free("expression")))
    half = norm.expect(lambda x: x, lb=0, ub=4, conditional=True)
    assert np.allclose(stated.offset[face.layout.block("expression")], 0.25 * half, rtol=1e-4)
    assert np.allclose(stated.sigma("expression"), 0.25, rtol=2e-3)


# -------------------------------------------------------------------------------- the default model and real plans


@pytest.fixture(scope="module")
def album(head, fitter):
    """Synthetic photos, and their fits by landmarks alone and by the default plan, with posteriors."""
    settings, out = SynthesisSettings(size=256), {"landmarks": [], "photo": []}
    for seed in range(16):
        synthetic = synthesize(head, seed, settings)
        truth = synthetic.truth
        face = synthetic.as_face(2.0 * float(jnp.exp(truth.log_focal) / truth.pose.translation()[2]), seed)
        for name, stages in (("landmarks", coarse_to_fine()[:2]), ("photo", coarse_to_fine())):
            fit = fitter.fit(synthetic.photo, face, stages=stages)
            out[name].append((synthetic, fit, posterior(fit)))
    return out


@pytest.mark.parametrize(("plan", "block"), [("landmarks", "identity"), ("photo", "identity"), ("photo", "albedo")])
def test_intervals_hold_the_truth_as_often_as_they_claim(album, plan, block):
    standard = np.concatenate(
        [
            np.abs(np.asarray(getattr(synthetic.truth, block)) - getattr(fit, block)) / stated.sigma(block)
            for synthetic, fit, stated in album[plan]
        ]
    )
    assert 0.60 < np.mean(standard < 1.0) < 0.76
    assert 0.90 < np.mean(standard < 1.96) < 0.98


def test_stated_errors_follow_the_actual_ones(album):
    """Vertices with a larger stated deviation are in truth farther off: no constant could do that."""
    _, fit, _ = album["photo"][0]
    face = np.flatnonzero(np.asarray(fit.model.masks["face"]) > 0.5)[::10]
    stated = np.stack([p.vertex_sigma(f.model)[face] for _, f, p in album["photo"][:20]])
    actual = np.stack([np.linalg.norm(s.vertices - f.vertices, axis=1)[face] for s, f, _ in album["photo"][:20]])
    rms = np.sqrt(np.mean(actual**2, axis=0))
    assert np.corrcoef(np.sqrt(np.mean(stated**2, axis=0)), rms)[0, 1] > 0.6
    assert 0.7 < np.mean(rms) / np.sqrt(np.mean(stated**2)) < 1.4


def test_conditioning_says_what_the_photo_adds(album):
    (_, _, landmarks), (_, _, photo) = album["landmarks"][0], album["photo"][0]
    before, after = landmarks.conditioning(), photo.conditioning()
    assert set(before.blocks) == {"identity", "expression"}
    assert "albedo" in after.blocks
    for report in (before, after):
        identity = report.blocks["identity"]
        assert np.all(np.diff(identity.singular["all"]) <= 0)
        # Landmarks give at most 136 numbers, of which six are the pose.
        assert 3 < identity.observed() < len(identity.prior)
        assert len(identity.unseen) > 10
        assert "identity" in report.table()
    # Every term adds: with all of them no direction is seen worse than by one alone.
    both = after.blocks["identity"].singular
    assert np.all(both["all"] >= both["landmarks"] - 1e-3)


def test_a_fit_without_its_problem_is_told_so(album):
    _, fit, _ = album["photo"][0]
    with pytest.raises(ValueError, match="Fitter"):
        posterior(dataclasses.replace(fit, problem=None))


def test_the_picture_shows_where_the_fit_is_unsure(album):
    """The neck, which no photo of a face decides, is brighter in the picture than the nose."""
    _, fit, stated = album["photo"][0]
    sigma = stated.vertex_sigma(fit.model)
    height = np.asarray(fit.model.mean)[:, 1]
    neck, nose = height < height.min() + 20, fit.model.landmarks.vertices[30]
    assert sigma[neck].mean() > 1.5 * sigma[np.asarray(nose)].mean()
    picture = stated.picture(fit.model).astype(float).mean(axis=2)
    tile = picture[:, : (picture.shape[1] - 96) // 3 * 2][:, (picture.shape[1] - 96) // 3 :]  # the frontal one
    drawn = tile[:, tile.shape[1] // 2]
    head = np.flatnonzero(drawn < 230)
    head = head[head > 60]
    assert drawn[head[-30:-5]].mean() > drawn[head[len(head) // 2]]
