"""Laws of a person's rig: what it changes, what it leaves, and what transfers to it, on a synthetic head."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tree_equal

from fitting.arrowhead import JointSolution
from fitting.fit import Fit, Fitter, Settings
from fitting.multi_image import JointFit
from fitting.personal_rig import (
    PersonalRig,
    RigError,
    RigSettings,
    _moved,
    load_rig,
    personal_rig,
    plain_rig,
    reach,
    residual_modes,
    resting,
    retarget,
    transferred,
)
from morphable.colour import linear_to_srgb


def person(model, seed: int) -> PersonalRig:
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.normal(size=n).astype(np.float32)  # noqa: E731
    return plain_rig(model, draw(model.shape.rank), draw(model.albedo.rank))


def corrected(rig: PersonalRig, seed: int) -> PersonalRig:
    """A person whose neutral and units are not the model's."""
    rng = np.random.default_rng(seed)
    neutral = jnp.asarray(rng.normal(size=rig.model.mean.shape), jnp.float32)
    units = jnp.asarray(rng.normal(size=rig.model.expression.shape), jnp.float32)
    return dataclasses.replace(
        rig,
        model=_moved(rig.model, neutral, units),
        neutral_change=neutral,
        unit_change=units,
        shading=jnp.asarray(0.05 * rng.normal(size=rig.shading.shape), jnp.float32),
    )


def test_without_corrections_the_rig_is_the_model(tiny):
    rig = person(tiny, 1)
    expression = tiny.weights(jawOpen=0.6, mouthSmileLeft=0.3)
    vertices, albedo = rig(expression)
    assert jnp.array_equal(vertices, tiny.vertices(rig.identity, expression))
    assert jnp.allclose(albedo, tiny.albedo_linear(rig.albedo))


def test_no_expression_is_the_personal_neutral(tiny):
    rig = corrected(person(tiny, 1), 2)
    vertices, albedo = rig(jnp.zeros(len(tiny.expression_names)))
    assert jnp.allclose(vertices, rig.neutral, atol=1e-4)
    assert jnp.allclose(rig.neutral, tiny.neutral(rig.identity) + rig.neutral_change, atol=1e-4)
    assert jnp.allclose(albedo, rig.colour)


def test_albedo_changes_with_the_expression(tiny):
    rig = corrected(person(tiny, 1), 2)
    expression = tiny.weights(mouthSmileLeft=1.0)
    change = jnp.log(rig(expression)[1] / rig.colour)
    inside = rig.colour * jnp.exp(rig.shading[:, 2:3]) < 1
    assert jnp.allclose(jnp.where(inside, change - rig.shading[:, 2:3], 0.0), 0.0, atol=1e-5)


def test_saved_and_loaded_the_rig_is_the_same(tiny, tmp_path):
    rig = corrected(person(tiny, 1), 2)
    rig.save(tmp_path / "rig.npz")
    assert tree_equal(load_rig(tmp_path / "rig.npz", tiny), rig)


def test_a_rig_of_another_model_is_refused(tiny, tmp_path):
    rig = person(tiny, 1)
    rig.save(tmp_path / "rig.npz")
    other = dataclasses.replace(tiny, provenance=tiny.provenance._replace(sha256="abc", name="other"))
    with pytest.raises(RigError, match="made for the model tiny"):
        load_rig(tmp_path / "rig.npz", other)
    np.savez(tmp_path / "else.npz", x=np.zeros(1))
    with pytest.raises(RigError, match="missing"):
        load_rig(tmp_path / "else.npz", tiny)
    with pytest.raises(RigError, match="cannot be read"):
        load_rig(tmp_path / "nothing.npz", tiny)


# ------------------------------------------------------------------------------------------------------- transfer


def smiles(tiny, units: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What photos with these weights show beyond the model, of a person whose units differ by `units`."""
    return np.einsum("pu,vcu->pvc", weights, units).astype(np.float32)


def test_a_corrective_is_recovered_from_photos_that_show_it(tiny):
    """The truth is known; so is an expression that no photo shows."""
    model = np.asarray(tiny.expression)
    rng = np.random.default_rng(3)
    truth = 0.25 * model[..., [1, 2, 3, 0]] * reach(model)[:, None]
    weights = np.clip(rng.uniform(-0.6, 1.0, (12, 4)), 0, 1)
    noise = 0.3 * rng.normal(size=(12, *tiny.mean.shape))
    got = transferred(model, smiles(tiny, truth, weights) + noise.astype(np.float32), weights, 0.5)
    unseen = np.array([0.5, 0.0, 0.8, 0.3])
    error, plain = ((truth - d) @ unseen for d in (got, 0.0 * got))
    assert np.linalg.norm(error) < 0.5 * np.linalg.norm(plain)


def test_units_that_no_photo_shows_stay_the_models(tiny):
    weights = np.array([[0.9, 0, 0, 0], [0.5, 0, 0.4, 0], [0, 0, 0, 0]])
    shown = np.random.default_rng(1).normal(size=(3, *tiny.mean.shape)).astype(np.float32)
    got = transferred(np.asarray(tiny.expression), shown, weights, 0.5)
    assert np.all(got[..., [1, 3]] == 0)
    assert np.abs(got[..., [0, 2]]).max() > 0.1


def test_without_photos_or_displacements_nothing_changes(tiny):
    units, shape = np.asarray(tiny.expression), tiny.mean.shape
    assert np.all(transferred(units, np.zeros((0, *shape), np.float32), np.zeros((0, 4)), 0.5) == 0)
    assert np.all(transferred(units, np.zeros((3, *shape), np.float32), np.full((3, 4), 0.5), 0.5) == 0)


def test_an_error_of_the_neutral_is_hardly_taken_for_an_expressions(tiny):
    """All photos show it, whatever they do."""
    units = np.asarray(tiny.expression)
    weights = np.array([[0.0] * 4] * 5 + [[0.8, 0, 0, 0], [0, 0, 0.8, 0]])
    common = np.broadcast_to(np.ones(tiny.mean.shape, np.float32), (7, *tiny.mean.shape))
    assert np.abs(transferred(units, common, weights, 0.5)).max() < 0.25


def test_the_order_of_photos_does_not_matter(tiny):
    rng = np.random.default_rng(5)
    weights, shown = rng.uniform(size=(5, 4)), rng.normal(size=(5, *tiny.mean.shape)).astype(np.float32)
    units, order = np.asarray(tiny.expression), [3, 0, 4, 2, 1]
    assert np.allclose(
        transferred(units, shown, weights, 0.5), transferred(units, shown[order], weights[order], 0.5), atol=1e-5
    )
    assert np.allclose(resting(weights.astype(np.float32)), resting(weights[order].astype(np.float32)))


def test_a_correction_stays_where_its_unit_moves_the_surface(tiny):
    units = np.asarray(tiny.expression).copy()
    units[:80, :, 2] = 0.0
    weights = np.array([[0, 0, 0.9, 0], [0, 0, 0, 0.0]])
    shown = np.ones((2, *tiny.mean.shape), np.float32)
    assert np.all(transferred(units, shown, weights, 0.5)[:80, :, 2] == 0)


def test_rest_is_what_most_photos_show(tiny):
    weights = np.array([[0.1, 0, 0, 0], [0.1, 0, 0, 0], [0.12, 0, 0.9, 0]], np.float32)
    assert np.allclose(resting(weights), [0.1, 0, 0, 0])
    assert np.all(resting(weights[:2]) == 0)  # one smiles, one does not: who knows
    rig = dataclasses.replace(person(tiny, 1), rest=jnp.asarray(resting(weights)))
    assert np.allclose(rig.weights(jnp.asarray(weights[2])), [0.02, 0, 0.9, 0], atol=1e-6)


def test_residual_components_move_one_axis_each(tiny):
    modes = residual_modes(tiny, 0.5)
    assert modes.shape == (len(tiny.mean), 3, 9)
    assert np.allclose(modes[:, 1, 1::3], 0.5 * np.asarray(tiny.residual))
    assert np.all(modes[:, 0, 1::3] == 0)


# ------------------------------------------------------------------------------------------------------ retargeting


def test_retargeting_keeps_the_targets_identity(tiny):
    """The same displacement on another's neutral: how far the two people are apart stays put."""
    one, two = corrected(person(tiny, 1), 2), corrected(person(tiny, 3), 4)
    expression = tiny.weights(jawOpen=0.7, mouthSmileLeft=0.4)
    vertices, albedo = retarget(one, two, expression)
    moved = vertices - two.neutral
    assert jnp.allclose(moved, two.model.expression @ expression, atol=1e-3)
    assert not jnp.allclose(vertices, one(expression)[0], atol=1.0)
    assert jnp.allclose(albedo, two(expression)[1])
    back, _ = retarget(two, one, expression)
    assert jnp.array_equal(back, one(expression)[0])


def test_rigs_of_other_models_are_matched_by_names(tiny):
    one, two = person(tiny, 1), person(tiny, 3)
    order = jnp.array([2, 0, 1, 3])
    names = tuple(tiny.expression_names[i] for i in order)
    model = dataclasses.replace(tiny, expression=tiny.expression[..., order], expression_names=names, rig=None)
    shuffled = dataclasses.replace(one, model=model)
    weights = tiny.weights(jawOpen=0.7, mouthSmileLeft=0.4)
    got, _ = retarget(shuffled, two, weights[order])
    assert jnp.allclose(got, two(weights)[0], atol=1e-4)
    strange = dataclasses.replace(model, expression_names=("a", "b", "c", "d"))
    with pytest.raises(RigError, match="none of the units"):
        retarget(dataclasses.replace(one, model=strange), two, weights)


def test_a_fit_becomes_one_of_the_rig(tiny, make_plain_fit):
    rig = dataclasses.replace(corrected(person(tiny, 1), 2), rest=tiny.weights(jawOpen=0.1))
    fit: Fit = make_plain_fit(tiny, tiny.weights(jawOpen=0.5))
    worn = rig.applied_to(fit)
    expected = rig(tiny.weights(jawOpen=0.4))[0]
    assert np.allclose(worn.vertices, expected, atol=1e-3)
    assert np.allclose(worn.neutral_vertices, rig.neutral, atol=1e-3)


def test_photos_give_the_rig_its_colour(tiny, monkeypatch):
    """Three photos of a painted head whose fits are right: the paint is the rig's, and nothing else has changed."""
    import test_texture_map as painting

    monkeypatch.setattr("fitting.texture_map._CROP", painting.SIZE)
    fits, photos, truth = painting.several(tiny)
    joint = JointFit(tuple(fits), (0, 1, 2), (), (), object.__new__(JointSolution), [], {})
    settings = RigSettings(example=0.0, map_size=painting.SIZE)
    rig = personal_rig(Fitter(tiny, Settings(skin_blocks=1)), joint, photos, settings)
    plain = plain_rig(tiny, fits[0].identity, fits[0].albedo)
    inner = np.all(np.abs(np.asarray(tiny.uv) - 0.5) < 0.25, axis=1)
    column, row = (np.asarray(tiny.uv)[inner] * painting.SIZE).astype(int).T
    error = lambda c: np.abs(np.asarray(linear_to_srgb(c))[inner] - truth[row, column]).mean()  # noqa: E731
    assert error(rig.colour) < 0.5 * error(plain.colour)
    assert jnp.array_equal(rig.neutral, plain.neutral)
    assert np.all(np.asarray(rig.shading) == 0)  # no photo shows an expression


@pytest.fixture
def make_plain_fit():
    from test_texture_map import make_fit

    return lambda model, expression: dataclasses.replace(make_fit(model), expression=np.asarray(expression))
