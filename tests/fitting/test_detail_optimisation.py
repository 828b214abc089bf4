"""Shape from shading in a map: what is a height is found, what is a colour is not taken for one."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly
from scipy.ndimage import gaussian_filter

from fitting.detail_observation import DetailObservation
from fitting.detail_optimisation import (
    DetailError,
    DetailSettings,
    Unknowns,
    detail_energies,
    optimise_detail,
)
from morphable.detail import UVSurface, detail_normals
from morphable.mesh import unit

SIZE, TEXEL_MM = 64, 1.5
# The noise of these photos, no colour but the spots', and a map of a third of a face, where nothing is broad.
SETTINGS = DetailSettings(
    steps=4, broad_mm=2.0, noise=0.006, dark=1e-3, grey=0.01, grey_edge=0.005, light=0.02, cavity=0.0
)
PATCH = np.s_[16:48, 16:48]


def surface() -> UVSurface:
    """A part of a sphere of radius 120 mm, 96 mm wide, seen from the front; u right, v down, symmetric."""
    x, y = ((np.arange(SIZE) + 0.5 - SIZE / 2) * TEXEL_MM * np.array([[1], [-1]]))[:, :, None]
    x, y = np.broadcast_arrays(x.T, y)
    points = jnp.asarray(np.stack([x, y, np.sqrt(120.0**2 - x**2 - y**2)], axis=-1), jnp.float32)
    normals = unit(points)
    along_u = np.array([TEXEL_MM, 0.0, 0.0]) + jnp.zeros_like(points)
    along_v = np.array([0.0, -TEXEL_MM, 0.0]) + jnp.zeros_like(points)
    along_u, along_v = (a.at[..., 2].set(-(a * points)[..., :2].sum(-1) / points[..., 2]) for a in (along_u, along_v))
    volume = jnp.sum(normals * jnp.cross(along_u, along_v), axis=-1, keepdims=True)
    inside = np.arange(SIZE) < SIZE - 1
    return UVSurface(
        points,
        normals,
        jnp.cross(along_v, normals) / volume,
        jnp.cross(normals, along_u) / volume,
        jnp.zeros((SIZE, SIZE, 2, 2)) + jnp.eye(2) / 120.0,
        jnp.asarray(np.tile(inside, (SIZE, 1))),
        jnp.asarray(np.tile(inside, (SIZE, 1)).T),
        jnp.ones((SIZE, SIZE), bool),
    )


def lamp(x: float, y: float = 0.3) -> jax.Array:
    """White light from the side: its harmonics up to band 1, in camera axes (y down, z away from the viewer)."""
    direction = np.array([x, -y, -1.0]) / np.linalg.norm([x, y, 1.0])
    light = np.zeros((9, 3))
    light[0] = 1.2
    light[1:4] = 1.3 * np.array([direction[1], direction[2], direction[0]])[:, None]
    return jnp.asarray(light, jnp.float32)


WEIGHT = np.zeros((SIZE, SIZE), np.float32)
WEIGHT[4:60, 4:60] = 1.0


def observed(displacement, light, colour=0.0, seed: int | None = 0, weight=WEIGHT) -> DetailObservation:
    """What a photo of the displaced patch shows, with a change of the logarithm of its albedo and some noise."""
    blank = DetailObservation(
        jnp.zeros((SIZE, SIZE, 3)),
        jnp.asarray(weight),
        jnp.full((SIZE, SIZE, 3), 0.4),
        surface(),
        jnp.diag(jnp.array([1.0, -1.0, -1.0])),
        light,
        jnp.ones(3),
    )
    noise = 0.0 if seed is None else 0.005 * np.random.default_rng(seed).normal(size=(SIZE, SIZE, 3))
    ratio = (blank.shading_change(jnp.asarray(displacement)) + colour + noise) * weight[..., None]
    return eqx.tree_at(lambda o: o.ratio, blank, jnp.asarray(ratio, jnp.float32))


def mirror_uv():
    u, v = np.meshgrid((np.arange(SIZE) + 0.5) / SIZE, (np.arange(SIZE) + 0.5) / SIZE)
    return np.stack([1.0 - u, v], axis=-1).astype(np.float32)


def grooves() -> np.ndarray:
    """Two grooves, one down and one aslant, on one side more than on the other; mm."""
    x, y = np.meshgrid(np.arange(SIZE) * TEXEL_MM - 48, np.arange(SIZE) * TEXEL_MM - 48)
    groove = lambda t, width: -np.exp(-0.5 * (t / width) ** 2) + 0.4 * np.exp(-0.5 * (t / (2.5 * width)) ** 2)  # noqa: E731
    depth = 0.5 * groove(x - 8, 2.5) * np.exp(-((y / 25) ** 2)) + 0.3 * groove(0.7 * x + 0.7 * y + 8, 2.5)
    return (depth * WEIGHT).astype(np.float32)


def found(*observations, **changes):
    # Always two photos, if need be one that shows nothing: one program for all tests.
    unseen = observed(grooves(), lamp(0.0), weight=0 * WEIGHT)
    settings = dataclasses.replace(SETTINGS, **changes)
    both = (*observations, unseen)[:2]
    displacement, albedo, history = optimise_detail(both, mirror_uv(), settings=settings)
    return np.asarray(displacement), np.asarray(albedo), history


def correlation(a, b) -> float:
    return float(np.corrcoef(a[PATCH].ravel(), b[PATCH].ravel())[0, 1])


def normal_error(displacement) -> float:
    """Mean degrees inside the patch."""
    one, other = (detail_normals(surface(), jnp.asarray(d)) for d in (displacement, grooves()))
    cosine = np.clip(np.sum(np.asarray(one * other), axis=-1), -1, 1)
    return float(np.degrees(np.arccos(cosine))[PATCH].mean())


def test_a_relief_is_recovered_from_its_shading_and_the_energy_falls():
    displacement, _, history = found(observed(grooves(), lamp(0.9)))
    assert correlation(displacement, grooves()) > 0.75
    assert normal_error(displacement) < 0.8 * normal_error(0 * grooves())
    totals = [sum(row.values()) for row in history]
    assert len(totals) == SETTINGS.steps + 1 and totals[-1] < 0.3 * totals[0]
    assert all(later <= 1.02 * earlier for earlier, later in zip(totals[:-1], totals[1:], strict=True))


def test_two_photos_under_different_lights_say_more_than_one():
    one, _, _ = found(observed(grooves(), lamp(0.9)))
    two, _, _ = found(observed(grooves(), lamp(0.9)), observed(grooves(), lamp(-0.4, -0.9), seed=1))
    assert normal_error(two) < 0.9 * normal_error(one)


def test_deep_is_dark_under_a_light_from_the_front():
    around = gaussian_filter(grooves(), 1.0)  # 1.5 mm
    dark = -0.3 * np.maximum(around - grooves(), 0.0)[..., None] * np.ones(3)
    seen = observed(grooves(), lamp(0.0, 0.0), dark)
    told, untold = (correlation(found(seen, cavity=c)[0], grooves()) for c in (0.3, 0.0))
    assert told > untold + 0.05


def test_spots_of_pigment_are_no_relief():
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    spots = sum(np.exp(-((((x - a) ** 2 + (y - b) ** 2) / 6.0) ** 2)) for a, b in ((20, 22), (40, 30), (28, 45)))
    change = -spots[..., None] * np.array([0.27, 0.45, 0.6])
    displacement, albedo, _ = found(observed(0 * grooves(), lamp(0.9), change))
    assert np.sqrt(np.mean(displacement[PATCH] ** 2)) < 0.06
    assert np.corrcoef(albedo[PATCH].ravel(), change[PATCH].ravel())[0, 1] > 0.95


def test_relief_is_zero_where_neither_a_photo_shows_the_skin_nor_its_mirror_image():
    weight = WEIGHT.copy()
    weight[:, :30] = 0.0
    weight[:24] = 0.0
    displacement, _, _ = found(observed(grooves(), lamp(0.9), weight=weight))
    assert np.abs(displacement[:24]).max() == 0.0
    assert np.abs(displacement[:, :4]).max() == 0.0
    # What the left side does not show is taken from the right.
    assert np.abs(displacement[26:56, 6:28]).max() > 0.02
    assert np.isfinite(displacement).all()


def test_exposure_and_white_balance_do_not_matter():
    seen = observed(grooves(), lamp(0.9))
    change = jnp.log(jnp.array([1.9, 2.0, 2.2]))
    other = eqx.tree_at(lambda o: o.ratio, seen, (seen.ratio + change) * WEIGHT[..., None])
    assert np.allclose(found(seen)[0], found(other)[0], atol=2e-3)


def test_a_mirrored_photo_gives_the_mirrored_relief():
    straight = found(observed(grooves(), lamp(0.9), seed=None))[0]
    mirrored = found(observed(grooves()[:, ::-1], lamp(-0.9), seed=None))[0]
    assert np.allclose(mirrored[:, ::-1], straight, atol=0.01)


def test_the_energy_has_a_finite_gradient_everywhere():
    seen = observed(grooves(), lamp(0.9))
    rng = np.random.default_rng(1)
    unknowns = Unknowns(
        jnp.asarray(rng.normal(size=(SIZE, SIZE)), jnp.float32), jnp.zeros((SIZE, SIZE, 3)), jnp.zeros((1, 16, 16, 3))
    )

    def total(u):
        energies = detail_energies((seen,), jnp.asarray(mirror_uv()), u, SETTINGS)
        return sum(energies.values()), energies

    (_, energies), slope = quickly(eqx.filter_value_and_grad(total, has_aux=True))(unknowns)
    assert all(float(energy) >= 0 for energy in energies.values())
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))


def test_observations_of_different_sizes_are_refused():
    with pytest.raises(DetailError, match="expected one or more, all of one size"):
        optimise_detail([observed(grooves(), lamp(0.9))], np.zeros((32, 32, 2), np.float32))
    with pytest.raises(DetailError, match="got 0 observations"):
        optimise_detail([], mirror_uv())
