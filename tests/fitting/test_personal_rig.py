"""Laws of a person's rig: what it changes, what it leaves, and what transfers to it, on a synthetic head."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tree_equal

from fitting.arrowhead import JointSolution
from fitting.detection import LandmarkNoise
from fitting.energies import BlockPrior
from fitting.fit import Fit, Fitter, Settings
from fitting.landmark_start import weak_perspective_pose
from fitting.multi_image import JointFit
from fitting.personal_rig import (
    OFFSETS_MM,
    PersonalRig,
    RigError,
    RigSettings,
    _moved,
    _offsets_for,
    load_rig,
    offset_modes,
    personal_rig,
    plain_rig,
    reach,
    residual_modes,
    resting,
    retarget,
    transferred,
)
from fitting.schedule import Stage
from fitting.texture_map import model_texture
from morphable.colour import linear_to_srgb
from morphable.laplacian import cotangent_laplacian
from morphable.mesh import vertex_normals


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


# -------------------------------------------------------------------------------------- a neutral beyond the model


def test_offsets_move_the_inner_face_along_its_normals(tiny):
    modes = offset_modes(tiny, 0.5)
    normals = np.asarray(vertex_normals(tiny.mean, tiny.triangles))
    along = np.einsum("vck,vc->vk", modes, normals)
    assert np.allclose(modes, along[:, None] * normals[:, :, None], atol=1e-5)
    row, column = np.divmod(np.arange(len(tiny.mean)), 13)
    rim = (row % 12 == 0) | (column % 12 == 0)
    assert np.all(modes[rim] == 0)
    mass = cotangent_laplacian(np.asarray(tiny.mean), np.asarray(tiny.triangles)).mass * ~rim
    assert np.isclose(mass @ (along**2).sum(axis=1) / mass.sum(), 0.5**2)


def test_offsets_leave_what_stands_before_and_behind_the_skin(tiny):
    """Where the skin is lids, where it turns inwards, and on other parts there is nothing to be offset."""
    row, column = np.divmod(np.arange(len(tiny.mean)), 13)
    lids, inside, eye = (row < 4) & (column < 5), (row > 8) & (column > 8), (row < 4) & (column > 8)
    model = dataclasses.replace(
        tiny,
        masks={"face": jnp.asarray(1.0 - inside), "lids": jnp.asarray(lids, jnp.float32)},
        part_names=("skin", "eye"),
        part_of_vertex=jnp.asarray(eye, jnp.int32),
    )
    still = np.abs(offset_modes(model, 1.0)).max(axis=(1, 2)) == 0
    assert np.all(still[lids | inside | eye])
    assert not np.any(still[(row > 4) & (row < 8) & (column > 0) & (column < 12)])


VIEWS = (-35.0, 0.0, 35.0)


@pytest.fixture(scope="module")
def swollen(tiny) -> tuple[np.ndarray, JointFit]:
    """A head with one cheek 8 mm thicker than the identity space knows, and a joint fit that does not know it.

    Exact points, photos without noise; the joint fit starts at the mean. As where a caller added a term, one is there.
    """
    import test_texture_map as painting

    fitter, size = Fitter(tiny, Settings(skin_blocks=1)), 128
    mean, normals = np.asarray(tiny.mean), np.asarray(vertex_normals(tiny.mean, tiny.triangles))
    apart = np.linalg.norm(mean - [30.0, -20.0, mean[:, 2].max() - 40], axis=1)
    truth = mean + 8 * np.exp(-((apart / 30) ** 2))[:, None] * normals * (apart < 60)[:, None]
    head = eqx.tree_at(lambda m: m.shape.mean, tiny, jnp.asarray(truth, jnp.float32))
    fits = []
    for yaw in VIEWS:
        shown = painting.make_fit(head, yaw=yaw)
        photo = painting.photograph(shown, model_texture(tiny, shown.albedo, size) / 255)
        points = np.asarray(shown.camera.project(head.landmarks(head.mean)))
        start = weak_perspective_pose(np.asarray(fitter.solver_model.landmarks.mean), points)
        box = np.array([0.0, 16.0, 128.0, 128.0])
        noise = LandmarkNoise(inner_mm=0.2, jaw_mm=0.5)
        problem, first = fitter.framed(photo, box, start, points, noise, focal_px=420.0)
        face = dataclasses.replace(first, pose=shown.camera.pose, light=jnp.asarray(shown.light))
        problem = dataclasses.replace(problem, extra={"mine": BlockPrior("identity", jnp.zeros(6), jnp.ones(6))})
        last = Stage("last", ("identity",), 1)
        fits.append(dataclasses.replace(shown, model=tiny, problem=problem, parameters=face, stage=last))
    joint = JointFit(tuple(fits), (0, 1, 2), (), (), object.__new__(JointSolution), [], {})
    return truth, joint


def test_offsets_recover_what_no_identity_has(tiny, swollen):
    """Nearer to the truth than the best head of the identity space is, be it chosen with the truth known."""
    truth, joint = swollen
    fitter = Fitter(tiny, Settings(skin_blocks=1))
    rig = personal_rig(fitter, joint, settings=RigSettings(example=0.0, offsets=2.0))
    best = tiny.neutral(tiny.shape.project(jnp.asarray(truth, jnp.float32)))
    error = lambda v: np.sqrt(np.mean((np.asarray(v) - truth) ** 2))  # noqa: E731
    assert error(rig.neutral) < 0.5 * error(best)
    assert jnp.allclose(rig.neutral, tiny.neutral(rig.identity) + rig.neutral_change, atol=1e-4)


def test_no_deviation_is_the_plain_rig(tiny, swollen):
    _, joint = swollen
    fitter = Fitter(tiny, Settings(skin_blocks=1))
    none = personal_rig(fitter, joint, settings=RigSettings(example=0.0, offsets=0.0))
    plain = plain_rig(tiny, joint.identity, joint.albedo)
    assert tree_equal(none, dataclasses.replace(plain, landmark_offsets=jnp.asarray(joint.landmark_offsets)))


def test_offsets_are_for_landmarks_that_were_given(swollen):
    _, joint = swollen
    placed_by = lambda *names: [dataclasses.replace(joint.fits[0], source=n) for n in names]  # noqa: E731
    assert _offsets_for(placed_by("file", "file", "file", "none")) == OFFSETS_MM
    assert _offsets_for(placed_by("file", "file")) == 0.0
    assert _offsets_for(placed_by("file", "file", "file", "dlib-hog")) == 0.0


def test_landmarks_lie_where_the_annotator_puts_them(tiny, swollen):
    _, joint = swollen
    rig = personal_rig(Fitter(tiny, Settings(skin_blocks=1)), joint, settings=RigSettings(example=0.0, offsets=0.0))
    expression = tiny.weights(jawOpen=0.5)
    own = tiny.landmarks(tiny.vertices(rig.identity, expression))
    assert jnp.abs(rig.landmark_offsets).max() > 0.01
    assert jnp.allclose(rig.landmarks(expression) - own, joint.landmark_offsets, atol=1e-4)


def test_offsets_and_residual_go_together(tiny, swollen, monkeypatch):
    """Both are components of one problem, and the change is the sum of what each explains."""
    _, joint = swollen
    # As many components as with offsets alone: the same compiled program.
    monkeypatch.setattr("fitting.personal_rig.OFFSET_MODES", offset_modes(tiny, 1.0).shape[2] - 9)
    modes = np.concatenate([residual_modes(tiny, 0.1), offset_modes(tiny, 2.0)], axis=2)
    found = personal_rig(
        Fitter(tiny, Settings(skin_blocks=1)), joint, settings=RigSettings(example=0.0, residual=0.1, offsets=2.0)
    ).neutral_change
    flat, change = modes.reshape(-1, modes.shape[2]), np.asarray(found).ravel()
    assert np.allclose(flat @ np.linalg.lstsq(flat, change)[0], change, atol=1e-4)
    rim = np.all(modes[:, :, 9:] == 0, axis=(1, 2))
    assert np.abs(np.asarray(found)[rim]).max() > 0  # where offsets are none the residual is at work


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
