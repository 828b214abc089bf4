"""Distances between pictures by a network's features: least where equal, blind to what they should be blind to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fitting.identity_network import chip_matrix, cut_chip, load_identity_network
from fitting.perceptual import MRF_STAGES, id_mrf, identity_distance, stage_mrf

value_and_grad = jax.jit(jax.value_and_grad(stage_mrf))
loss = jax.jit(stage_mrf)


def _maps(seed: int, moved: float = 0.0) -> jax.Array:
    """Smooth features that differ from cell to cell, sampled `moved` cells further to the right."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:10, :9].astype(float)
    waves = rng.uniform(-1.5, 1.5, (6, 2))
    phase = rng.uniform(0, 6, 6)
    return jnp.asarray(np.sin(np.stack([rows, columns + moved], axis=2) @ waves.T + phase), jnp.float32)


def test_equal_pictures_have_no_loss_and_no_slope():
    for seed in range(3):
        maps = _maps(seed)
        value, slope = value_and_grad(maps, maps)
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
        np.testing.assert_allclose(slope, 0.0, atol=1e-6)
        for other in range(3, 6):
            assert loss(_maps(other), maps) > 0.1


@pytest.mark.parametrize("flat", [0.0, 3.0])
def test_slopes_are_finite_where_nothing_can_be_told_apart(flat):
    even, maps = jnp.full((10, 9, 6), flat), _maps(0)
    for a, b in ((even, even), (even, maps), (maps, even)):
        value, slope = value_and_grad(a, b)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all() and value > 0.1


def test_what_both_pictures_share_does_not_matter():
    maps, reference = _maps(0), _maps(1)
    value = loss(maps, reference)
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0], jnp.float32)
    shift = jnp.arange(6.0)
    for change in (
        lambda x: 3.0 * x,
        lambda x: x + shift,
        lambda x: x @ turn,
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
    ):
        np.testing.assert_allclose(loss(change(maps), change(reference)), value, rtol=2e-4)


def test_detail_in_its_place_is_best():
    """A sharp feature on an even face: best in its place, worst where it is not looked for; and a slope leads there."""
    base = 0.1 * _maps(0)
    blob = jnp.array([0.0, 5.0, 0.0, 0.0, 0.0, 5.0])
    reference = base.at[5, 4].add(blob)
    there, near, far = (loss(base.at[5, column].add(blob), reference) for column in (4, 5, 8))
    assert there < near < far and there < loss(base, reference)

    along = jax.jit(jax.value_and_grad(lambda t: stage_mrf(base.at[5, 4].add(t * blob), reference)))
    values, slopes = zip(*(along(t) for t in (0.02, 0.03, 0.04)), strict=True)
    assert values[0] > values[1] > values[2] and max(slopes) < 0


def test_a_picture_between_cells_is_drawn_into_them():
    reference = _maps(2)
    values = [float(loss(_maps(2, moved), reference)) for moved in (0.0, 0.2, 0.35, 0.5)]
    assert values == sorted(values) and values[0] < 1e-6 < values[-1]


def test_only_near_cells_are_compared():
    """A picture moved by the window or less costs its rim alone; by more, everything."""
    reference = _maps(3)
    whole = [float(loss(jnp.roll(reference, step, axis=1), reference)) for step in (1, 2, 3)]
    assert whole[0] < whole[1] < 0.5 < whole[2]
    assert jax.jit(stage_mrf, static_argnums=2)(jnp.roll(reference, 3, axis=1), reference, 3) < whole[2]


def test_one_cell_that_serves_for_all_is_no_match():
    """What diversity is for: the nearest cell everywhere is cheap for a plain comparison of patches, not for this."""
    reference = _maps(4)
    repeated = jnp.broadcast_to(reference[4, 4], reference.shape)
    assert loss(repeated, reference) > 2 * loss(_maps(4, 0.4), reference) > 0


def test_derivatives_are_true():
    with jax.enable_x64(True):
        maps, reference = (x.astype(jnp.float64) for x in (_maps(0), _maps(1)))
        step = jnp.asarray(np.random.default_rng(0).normal(size=maps.shape))
        along, h = jnp.vdot(value_and_grad(maps, reference)[1], step), 1e-6
        central = (loss(maps + h * step, reference) - loss(maps - h * step, reference)) / (2 * h)
        np.testing.assert_allclose(central, along, rtol=1e-5)


def test_stages_are_weighed():
    features, reference = ({"block4": _maps(k), "block2": _maps(k + 1)} for k in (0, 4))
    parts = {name: float(loss(features[name], reference[name])) for name in MRF_STAGES}
    wanted = 2 * parts["block4"] + parts["block2"]
    np.testing.assert_allclose(jax.jit(id_mrf)(features, reference), wanted, rtol=1e-5)


def test_descriptors_of_one_direction_are_one_person():
    a, b = jnp.asarray(np.random.default_rng(0).normal(size=(2, 128)), jnp.float32)
    np.testing.assert_allclose(identity_distance(a, 2 * a), 0.0, atol=1e-6)
    np.testing.assert_allclose(identity_distance(a, -a), 2.0, rtol=1e-6)
    np.testing.assert_allclose(identity_distance(a, b), identity_distance(b, 3 * a), rtol=1e-5)
    value, slope = jax.value_and_grad(identity_distance)(a, b)
    np.testing.assert_allclose(jnp.vdot(slope, a), 0.0, atol=1e-5)  # length does not matter
    assert identity_distance(a - 0.1 * slope / jnp.linalg.norm(slope), b) < value


def test_a_wrinkle_is_best_where_the_photo_has_it(photo, face):
    """On the bundled face: a fold drawn across the forehead, in its place, elsewhere, and not at all."""
    chip = cut_chip(jnp.asarray(photo.pixels, jnp.float32), chip_matrix(face.landmarks))
    rows, columns = np.mgrid[:150, :150] + 0.5

    def folded(row: float):
        dark = np.exp(-0.5 * ((rows - row) / 1.2) ** 2 - 0.5 * ((columns - 75) / 18) ** 4)
        return chip * (1 - 0.5 * jnp.asarray(dark, jnp.float32)[..., None])

    chips = jnp.stack([folded(22), folded(22.5), folded(40), chip])
    features = {name: jnp.asarray(maps) for name, maps in _features(chips).items()}
    reference = {name: maps[0] for name, maps in features.items()}
    same, right, elsewhere, none = jax.jit(jax.vmap(id_mrf, (0, None)))(features, reference)
    assert same < 1e-5 and same < right < min(none, elsewhere)
    assert right < 0.2 * none


def _features(chips: jax.Array) -> dict[str, jax.Array]:
    used = jax.jit(lambda network, x: {name: network.features(x)[name] for name in MRF_STAGES})
    return used(load_identity_network(), chips)
