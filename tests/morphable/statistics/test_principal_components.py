"""Laws of principal components: the three ways of finding them agree, and recover a known space."""

import jax.numpy as jnp
import numpy as np
import pytest

from morphable.statistics.principal_components import (
    StatisticsError,
    principal_components,
    probabilistic_components,
    streamed_components,
)

VERTICES, RANK = 60, 5


def population(count, noise=0.0, seed=0, vertices=VERTICES, rank=RANK):
    """Samples of a known space, (shape, vertex, 3), and its mean and modes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(vertices * 3, rank)))[0] * (20.0 * 0.7 ** np.arange(rank))
    mean = rng.normal(size=(vertices, 3)) * 50
    shapes = mean + (rng.normal(size=(count, rank)) @ axes.T).reshape(count, vertices, 3)
    return shapes + noise * rng.normal(size=shapes.shape), mean, axes.reshape(vertices, 3, rank)


def span(modes):
    axes = np.linalg.qr(modes.reshape(-1, modes.shape[-1]))[0]
    return axes @ axes.T


def test_recovers_the_space_that_shapes_were_drawn_from():
    shapes, mean, modes = population(4000)
    found = principal_components(shapes[:200])
    assert found.rank == RANK
    np.testing.assert_allclose(span(found.modes), span(modes), atol=1e-9)
    many = streamed_components([shapes[i : i + 500] for i in range(0, 4000, 500)], RANK)
    covariance = lambda m: m.reshape(-1, RANK) @ m.reshape(-1, RANK).T  # noqa: E731
    relative = np.linalg.norm(covariance(many.modes) - covariance(modes)) / np.linalg.norm(covariance(modes))
    assert relative < 0.1 and np.abs(many.mean - mean).max() < 1.0


@pytest.mark.parametrize("weighted", [False, True])
def test_gram_matrix_gives_the_singular_value_decomposition(weighted):
    shapes, _, _ = population(12, noise=1.0)
    weights = np.random.default_rng(1).uniform(0.1, 2, VERTICES) if weighted else None
    found = principal_components(shapes, weights=weights)
    assert found.rank == 11
    root = np.ones((VERTICES, 1)) if weights is None else np.sqrt(weights)[:, None]
    rows = ((shapes - shapes.mean(axis=0)) * root).reshape(12, -1)
    _, deviations, axes = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(found.variances, deviations[:11] ** 2 / 11)
    assert (np.diff(found.variances) < 0).all()
    scaled = (found.modes * root[..., None]).reshape(-1, 11)
    np.testing.assert_allclose(scaled.T @ scaled, np.diag(found.variances), atol=1e-9 * found.variances[0])
    np.testing.assert_allclose(np.abs(axes[:11] @ scaled), np.diag(np.sqrt(found.variances)), atol=1e-9)
    np.testing.assert_allclose(found.total_variance, found.variances.sum())


def test_weightless_vertices_follow_and_count_for_nothing():
    shapes, _, _ = population(12, noise=1.0)
    weights = np.r_[np.ones(VERTICES - 10), np.zeros(10)]
    found, without = principal_components(shapes, weights=weights), principal_components(shapes[:, :-10])
    np.testing.assert_allclose(np.abs(found.modes[:-10]), np.abs(without.modes), atol=1e-9)
    # With all modes the training shapes come back, the weightless vertices too.
    np.testing.assert_allclose(found.instances(found.coefficients(shapes)), shapes, atol=1e-8)


def test_streaming_equals_the_exact_components_where_spectra_decay():
    shapes, _, _ = population(300, noise=0.05, rank=12)
    weights = np.random.default_rng(2).uniform(0.5, 2, VERTICES)
    exact = principal_components(shapes, 8, weights)
    batches = [shapes[i : i + 37] for i in range(0, 300, 37)]
    found = streamed_components(batches, 8, weights)
    np.testing.assert_allclose(found.variances, exact.variances, rtol=1e-9)
    np.testing.assert_allclose(found.modes, exact.modes, atol=1e-6)
    np.testing.assert_allclose(found.mean, exact.mean)
    np.testing.assert_allclose(found.total_variance, exact.total_variance)
    assert found.samples == 300
    # Few shapes: no more modes than these leave.
    assert streamed_components(batches[:1], 60).rank == 36


def test_streaming_never_holds_the_data(tmp_path):
    shapes, _, _ = population(64)
    alive, most = [], []

    class Batch(np.ndarray):
        def __array_finalize__(self, source):
            # Only batches as they come are counted, not what arithmetic makes of them.
            self.counted = False

        def __del__(self):
            if self.counted:
                alive.remove(id(self))

    class Files:
        passes = 0

        def __iter__(self):
            Files.passes += 1
            for start in range(0, 64, 4):
                batch = np.array(np.load(tmp_path / "shapes.npy", mmap_mode="r")[start : start + 4]).view(Batch)
                batch.counted = True
                alive.append(id(batch))
                most.append(len(alive))
                yield batch
                del batch

    np.save(tmp_path / "shapes.npy", shapes)
    found = streamed_components(Files(), RANK, power_iterations=2)
    assert max(most) <= 2 and Files.passes == 4
    np.testing.assert_allclose(found.modes, principal_components(shapes, RANK).modes, atol=1e-6)


def test_streaming_reads_a_memory_mapped_array(tmp_path):
    shapes, _, _ = population(20)
    np.save(tmp_path / "shapes.npy", shapes.astype(np.float32))
    mapped = np.load(tmp_path / "shapes.npy", mmap_mode="r")
    found = streamed_components(np.split(mapped, 5), RANK)
    np.testing.assert_allclose(found.modes, principal_components(shapes, RANK).modes, atol=1e-3)


def test_projection_inverts_instances():
    shapes, _, _ = population(40, noise=0.5)
    found = principal_components(shapes, 10)
    coefficients = np.random.default_rng(3).normal(size=(4, 10))
    np.testing.assert_allclose(found.coefficients(found.instances(coefficients)), coefficients, atol=1e-10)
    basis = found.basis
    one = jnp.asarray(coefficients[0], jnp.float32)
    np.testing.assert_allclose(basis.project(basis.instance(one)), one, atol=1e-4)  # single precision
    # The training shapes' coefficients are whitened.
    scores = found.coefficients(shapes)
    np.testing.assert_allclose(scores.T @ scores / 39, np.eye(10), atol=1e-9)


def test_truncation_by_the_share_of_variance():
    shapes, _, _ = population(30, noise=0.5)
    found = principal_components(shapes)
    for share in (0.0, 0.5, 0.9, 0.99, 1.0):
        fewer = found.truncate_to_share(share)
        assert np.r_[0.0, fewer.explained][-1] >= share - 1e-9
        assert fewer.rank == 0 or np.r_[0.0, found.explained][fewer.rank - 1] < share
    np.testing.assert_allclose(found.explained[-1], 1)
    assert found.truncate(3).rank == 3
    with pytest.raises(StatisticsError, match="expected 0..29"):
        found.truncate(30)


def test_signs_do_not_depend_on_the_data_order():
    shapes, _, _ = population(15, noise=0.5)
    one, other = principal_components(shapes), principal_components(shapes[::-1].copy())
    np.testing.assert_allclose(one.modes, other.modes, atol=1e-8)


def test_probabilistic_components_of_complete_shapes_are_the_components():
    shapes, _, _ = population(25, noise=0.8)
    exact = principal_components(shapes)
    found = probabilistic_components(shapes, np.ones(shapes.shape[:2], bool), 4)
    assert found.converged
    np.testing.assert_allclose(found.components.variances + found.noise_variance, exact.variances[:4], rtol=1e-6)
    np.testing.assert_allclose(found.noise_variance, exact.variances[4:].sum() / (VERTICES * 3 - 4), rtol=1e-6)
    noisy = found.with_noise()
    np.testing.assert_allclose(noisy.modes, exact.modes[..., :4], atol=1e-5)
    np.testing.assert_allclose(noisy.variances, exact.variances[:4], rtol=1e-6)
    np.testing.assert_array_equal(found.completed, shapes)


def test_probabilistic_components_find_the_maximum_from_holes():
    """Likelihood rises to a maximum, holes are filled far better than by means, and the space is found."""
    truth, _, modes = population(40, noise=0.1)
    rng = np.random.default_rng(5)
    seen = rng.uniform(size=truth.shape[:2]) > 0.3
    found = probabilistic_components(np.where(seen[..., None], truth, np.nan), seen, RANK, tolerance=1e-8)
    assert found.converged
    assert (np.diff(found.log_likelihood) > -1e-6).all()
    means = (truth * seen[..., None]).sum(axis=0) / seen.sum(axis=0)[:, None]
    error = np.linalg.norm((found.completed - truth)[~seen], axis=1).mean()
    of_means = np.linalg.norm((means - truth)[~seen], axis=1).mean()
    assert error < 0.15 * of_means
    np.testing.assert_allclose(np.sqrt(found.noise_variance), 0.1, rtol=0.15)
    outside = modes.reshape(-1, RANK) - span(found.components.modes) @ modes.reshape(-1, RANK)
    assert np.linalg.norm(outside) < 0.03 * np.linalg.norm(modes)


def test_probabilistic_components_where_whole_regions_are_missing():
    truth, _, _ = population(40, noise=0.1)
    seen = np.ones(truth.shape[:2], bool)
    seen[:15, :20] = False
    seen[10:30, 40:] = False
    found = probabilistic_components(truth, seen, RANK)
    error = np.linalg.norm((found.completed - truth)[~seen], axis=1).mean()
    assert found.converged and error < 0.5
    # What is not seen does not matter.
    garbage = np.where(seen[..., None], truth, 1e6)
    again = probabilistic_components(garbage, seen, RANK)
    np.testing.assert_array_equal(found.completed, again.completed)


def test_errors_say_what_to_do():
    shapes, _, _ = population(5)
    with pytest.raises(StatisticsError, match="expected 2 or more"):
        principal_components(shapes[:1])
    with pytest.raises(StatisticsError, match="probabilistic_components"):
        principal_components(np.where(shapes > 0, shapes, np.nan))
    with pytest.raises(StatisticsError, match="read once only"):
        streamed_components(iter([shapes]), 2)
    with pytest.raises(StatisticsError, match=r"expected 1\.\.3"):
        probabilistic_components(shapes, np.ones(shapes.shape[:2], bool), 4)
    seen = np.ones(shapes.shape[:2], bool)
    seen[:, 7] = False
    with pytest.raises(StatisticsError, match="first is 7"):
        probabilistic_components(shapes, seen, 2)
