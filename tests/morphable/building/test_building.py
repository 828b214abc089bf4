"""A model built from samples of a known model is that model, whatever is done to the scans."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_model
from scipy.spatial.transform import Rotation

from morphable import load, save
from morphable.basis import GaussianBasis
from morphable.building import (
    BuildError,
    BuildSettings,
    RegisteredScan,
    Scan,
    assemble_model,
    build_model,
)
from morphable.building.registered_scans import align_shapes, alignment_weights, complete_shapes
from morphable.building.spaces import (
    AlignedFiles,
    expression_units,
    regressed_joints,
    streamed_motions,
    subject_means,
    without_noise,
)
from morphable.registration import Similarity, similarity
from morphable.statistics import principal_components


def registered(vertices, name="0", expression="neutral", matched=None, colours=None, subject=None, labels=None):
    seen = np.ones(len(vertices), bool) if matched is None else matched
    subject = name if subject is None else subject
    return RegisteredScan(
        name,
        subject,
        expression,
        labels or {},
        np.asarray(vertices, float),
        seen,
        colours,
        Similarity.identity(),
        0.1,
        1.0,
    )


def people(model, count, seed=0, spread=1.0):
    """Coefficients and neutral shapes of some people.

    Random modes turn heads as no face's do; where alignment is to leave linear modes alone, the spread is small.
    """
    rng = np.random.default_rng(seed)
    coefficients = spread * rng.normal(size=(count, model.shape.rank))
    shapes = np.asarray(model.mean, float) + np.moveaxis(np.asarray(model.shape.modes) @ coefficients.T, 2, 0)
    return coefficients, shapes


def motion(seed):
    rng = np.random.default_rng(1000 + seed)
    return Similarity(1.0, Rotation.from_rotvec(rng.normal(size=3)).as_matrix(), rng.normal(size=3) * 100)


def built(model, scans, **settings):
    return assemble_model(scans, model, BuildSettings(**{"mirrored": False, **settings}))


def miss(basis, shapes):
    """Root mean square of what the basis and small rigid motions leave of shapes, mm."""
    mean, rank = np.asarray(basis.mean, float), basis.rank
    flat = np.asarray(basis.modes, float).reshape(mean.size, rank)
    turns = np.stack(
        [np.cross(axis, mean) for axis in np.eye(3)] + [np.broadcast_to(a, mean.shape) for a in np.eye(3)], 2
    )
    flat = np.concatenate([flat, turns.reshape(mean.size, 6)], axis=1)
    aligned = np.stack([similarity(x, mean, scaled=False)(x) for x in shapes])
    rows = (aligned - mean).reshape(len(shapes), -1)
    left = rows - rows @ np.linalg.pinv(flat).T @ flat.T
    return np.sqrt((left**2).mean() * 3)


def test_the_space_is_recovered_from_scans_that_moved(tiny):
    _, shapes = people(tiny, 40, spread=0.2)
    result = built(tiny, [registered(motion(i)(x), str(i)) for i, x in enumerate(shapes)])
    _, fresh = people(tiny, 10, seed=1, spread=0.2)
    # Six modes, and what turning a head does to second order.
    assert miss(result.model.shape.truncate(0), fresh) > 1.0
    assert miss(result.model.shape.truncate(6), fresh) < 0.25
    assert miss(result.model.shape.truncate(12), fresh) < 0.05
    assert result.measures.shapes == 40
    assert result.model.provenance.name == "built" and "40 scans of 40 people" in result.model.provenance.sources
    assert "40 of 40 scans" in str(result)


def test_what_belongs_to_the_mesh_is_the_templates(tiny, tmp_path):
    _, shapes = people(tiny, 8)
    result = built(tiny, [registered(x, str(i)) for i, x in enumerate(shapes)])
    model = result.model
    for name in ("triangles", "uv", "mirror", "expression", "proxy_triangles", "part_of_vertex"):
        np.testing.assert_array_equal(getattr(model, name), getattr(tiny, name))
    assert model.expression_names == tiny.expression_names
    np.testing.assert_array_equal(model.albedo.mean, tiny.albedo.mean)
    assert any("albedo: the template's" in note for note in result.notes)
    save(tmp_path / "built.npz", model)
    again = load(tmp_path / "built.npz")
    coefficients = jnp.ones(model.shape.rank)
    weights = model.weights(jawOpen=0.5)
    np.testing.assert_array_equal(again.vertices(coefficients, weights), model.vertices(coefficients, weights))


def test_mirror_images_double_the_people(tiny):
    mirror = np.asarray(tiny.mirror)
    _, shapes = people(tiny, 8)
    result = assemble_model([registered(x, str(i)) for i, x in enumerate(shapes)], tiny)
    mean = np.asarray(result.model.mean)
    np.testing.assert_allclose(mean[mirror] * [-1, 1, 1], mean, atol=1e-3)
    assert result.identity.rank > 8
    images = shapes[:, mirror] * [-1, 1, 1]
    other = assemble_model([registered(x, str(i)) for i, x in enumerate(images)], tiny)
    np.testing.assert_allclose(other.identity.variances, result.identity.variances, rtol=1e-6)
    np.testing.assert_allclose(other.identity.mean, result.identity.mean, atol=1e-5)


def test_holes_are_filled_from_the_other_people(tiny):
    _, shapes = people(tiny, 30)
    rng = np.random.default_rng(2)
    seen = np.ones(shapes.shape[:2], bool)
    for i in range(30):
        centre = shapes[i, rng.integers(shapes.shape[1])]
        seen[i] = np.linalg.norm(shapes[i] - centre, axis=1) > 35
    # Registration puts what it does not see anywhere within 5 mm.
    guessed = np.where(seen[..., None], shapes, shapes + 5)
    full = complete_shapes(guessed, seen, np.asarray(tiny.triangles))
    np.testing.assert_array_equal(full[seen], shapes[seen])
    assert np.linalg.norm((full - shapes)[~seen], axis=1).mean() < 0.5
    # What hardly anyone shows stays as it is registered.
    rarely = seen.copy()
    rarely[:20, 5] = False
    np.testing.assert_array_equal(complete_shapes(guessed, rarely, np.asarray(tiny.triangles))[:, 5], guessed[:, 5])


def test_noise_is_taken_out_of_the_variances():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(900, 3)))[0] * [60.0, 40.0, 20.0]
    clean = rng.normal(size=(25, 3)) @ axes.T
    noisy = clean + 0.8 * rng.normal(size=clean.shape)
    components = principal_components(noisy.reshape(25, 300, 3))
    truth = principal_components(clean.reshape(25, 300, 3))
    found = without_noise(components, 3 * 0.8**2)
    of_plain = np.abs(components.variances[:3] / truth.variances - 1)
    np.testing.assert_array_less(np.abs(found.variances[:3] / truth.variances - 1), of_plain)
    assert found.variances[3:].sum() < 0.2 * components.variances[3:].sum()
    np.testing.assert_allclose((found.modes**2).sum(axis=(0, 1)), found.variances)


def test_people_scanned_twice_tell_the_noise(tiny):
    _, shapes = people(tiny, 12)
    rng = np.random.default_rng(3)
    twice = [
        registered(x + 0.5 * rng.normal(size=x.shape), f"{i}/{k}", subject=str(i))
        for i, x in enumerate(shapes)
        for k in range(2)
    ]
    result = built(tiny, twice)
    assert result.measures.shapes == 12
    # 0.5 mm along each axis is 0.87 mm of distance.
    (note,) = (note for note in result.notes if "scans of one person differ by" in note)
    assert 0.75 < float(note.split("differ by ")[1].split()[0]) < 0.95
    once = subject_means(shapes, [str(i) for i in range(12)])
    assert once.variance is None
    np.testing.assert_array_equal(once.shapes, shapes)


def expressive(tiny, count=10):
    _, shapes = people(tiny, count)
    units = np.asarray(tiny.expression, float)
    scans = [registered(motion(i)(x), f"n{i}", subject=str(i)) for i, x in enumerate(shapes)]
    for k, name in enumerate(("jawOpen", "mouthClose")):
        scans += [
            registered(motion(50 + i)(x + units[..., k]), f"{name}{i}", name, subject=str(i))
            for i, x in enumerate(shapes)
        ]
    return scans


def test_expressions_are_differences_to_the_persons_neutral(tiny):
    blank = dataclasses.replace(tiny, expression=tiny.expression.at[..., :2].set(0.0))
    result = built(blank, expressive(tiny))
    assert result.model.expression_names == tiny.expression_names
    for k in range(2):
        # How a head moves with an open jaw is a matter of alignment: compared up to a rigid motion.
        rest = np.asarray(result.model.mean, float)
        found, true = rest + np.asarray(result.model.expression[..., k]), rest + np.asarray(tiny.expression[..., k])
        apart = similarity(found, true, scaled=False)(found) - true
        assert np.sqrt((apart**2).sum(axis=1).mean()) < 0.1 * np.sqrt(
            np.mean(np.sum(tiny.expression[..., k] ** 2, axis=1))
        )
    np.testing.assert_array_equal(result.model.expression[..., 2:], tiny.expression[..., 2:])


def test_new_names_are_added_and_the_rig_still_finds_its_units(tiny):
    scans = [
        dataclasses.replace(s, expression="puff" if s.expression == "jawOpen" else s.expression)
        for s in expressive(tiny)
    ]
    kept = built(tiny, scans).model
    assert kept.expression_names == (*tiny.expression_names, "puff")
    alone = built(tiny, scans, keep_units=False).model
    assert alone.expression_names == ("puff", "mouthClose") and alone.rig.gaze.units.shape == (0,)
    for model in (kept, alone):
        assert np.isfinite(model.vertices(jnp.ones(3), jnp.ones(len(model.expression_names)))).all()


def test_expressions_as_components(tiny):
    model = built(tiny, expressive(tiny), expressions="components").model
    assert model.expression_kind == "components" and len(model.expression_names) == model.expression.shape[-1] >= 2
    assert model.rig.gaze.units.shape == (0,)


def test_units_are_means_over_those_who_show_a_vertex():
    deltas = np.arange(2 * 3 * 3, dtype=float).reshape(2, 3, 3)
    seen = np.array([[True, True, False], [True, False, False]])
    units = expression_units(["smile", "smile"], deltas, seen)
    np.testing.assert_allclose(units.deltas[0, :, 0], deltas[:, 0].mean(axis=0))
    np.testing.assert_allclose(units.deltas[1, :, 0], deltas[0, 1])
    np.testing.assert_allclose(units.deltas[2, :, 0], deltas[:, 2].mean(axis=0))
    assert units.names == ("smile",) and units.people.tolist() == [2]


def test_albedo_is_the_scans(tiny):
    rng = np.random.default_rng(4)
    _, shapes = people(tiny, 20)
    true = np.asarray(tiny.albedo.mean, float) + np.moveaxis(
        np.asarray(tiny.albedo.modes) @ rng.normal(size=(tiny.albedo.rank, 20)), 2, 0
    )
    holed = np.where(rng.uniform(size=true.shape[:2])[..., None] > 0.1, true, np.nan)
    holed[:, 7] = np.nan  # no one shows it
    result = built(tiny, [registered(x, str(i), colours=holed[i]) for i, x in enumerate(shapes)])
    albedo = result.model.albedo
    others = np.delete(np.arange(true.shape[1]), 7)
    np.testing.assert_allclose(np.asarray(albedo.mean)[others], true.mean(axis=0)[others], atol=0.02)
    np.testing.assert_allclose(np.asarray(albedo.mean)[7], true.mean(axis=0)[7], atol=0.05)
    # What nobody shows continues what is beside it: a harmonic function has its extremes elsewhere.
    triangles = np.asarray(tiny.triangles)
    beside = np.setdiff1d(triangles[(triangles == 7).any(axis=1)], [7])
    around = np.asarray(albedo.modes)[beside]
    assert (np.asarray(albedo.modes)[7] >= around.min(axis=0) - 0.01).all()
    assert (np.asarray(albedo.modes)[7] <= around.max(axis=0) + 0.01).all()
    assert np.abs(np.asarray(albedo.modes)[7]).max() > 0.01
    flat = np.asarray(albedo.modes, float)[others].reshape(-1, albedo.rank)
    rows = (true - np.asarray(albedo.mean))[:, others].reshape(20, -1)
    assert np.abs(rows - rows @ np.linalg.pinv(flat).T @ flat.T).max() < 0.02


def test_labels_become_attributes(tiny):
    coefficients, shapes = people(tiny, 150, spread=0.2)
    age = 40 + 10 * coefficients[:, 0]
    scans = [registered(x, str(i), labels={"age": age[i], "one": 1.0}) for i, x in enumerate(shapes)]
    result = built(tiny, scans)
    (found,) = result.attributes
    assert found.name == "age" and found.meaningful and found.correlation > 0.98
    assert any("labels are 1" in note for note in result.notes)
    # A year is 0.1 in the coefficient; alignment takes the mode's rigid motion out.
    mean, modes = np.asarray(result.model.mean, float), np.asarray(result.model.shape.modes, float)
    older, planted = mean + modes @ found.direction, mean + 0.1 * np.asarray(tiny.shape.modes[..., 0], float)
    planted = similarity(planted, mean, scaled=False)(planted)
    assert np.linalg.norm(older - planted) < 0.25 * np.linalg.norm(planted - mean)


def test_joints_follow_the_vertices(tiny):
    """A model built on the template's own people has the template's joints."""
    head = dataclasses.replace(tiny, shape=GaussianBasis(tiny.shape.mean, tiny.shape.modes))
    coefficients, shapes = people(head, 60)
    components = principal_components(shapes)
    joints = regressed_joints(head, components)
    own = components.coefficients(shapes[:5])
    expected = np.asarray(head.rig.joints.mean) + np.moveaxis(
        np.asarray(head.rig.joints.modes) @ coefficients[:5].T, 2, 0
    )
    found = np.asarray(joints.mean) + np.moveaxis(np.asarray(joints.modes) @ own.T, 2, 0)
    np.testing.assert_allclose(found, expected, atol=0.1)
    # What no mode explains moves joints as it moves their surroundings.
    bare = dataclasses.replace(
        head,
        shape=head.shape.truncate(0),
        rig=dataclasses.replace(head.rig, joints=head.rig.joints.truncate(0)),
    )
    shifted = regressed_joints(bare, components._replace(mean=np.asarray(head.mean, float) + [0.0, 0.0, 5.0]))
    np.testing.assert_allclose(shifted.mean - bare.rig.joints.mean, [[0, 0, 5.0]] * 2, atol=1e-4)


def test_streaming_from_files_gives_the_same_space(tiny, tmp_path):
    _, shapes = people(tiny, 30)
    scans = []
    for i, x in enumerate(shapes):
        np.save(tmp_path / f"{i}.npy", motion(i)(x))
        scan = registered(x, str(i), labels={"n": float(i % 7)})
        scans.append(dataclasses.replace(scan, vertices=np.load(tmp_path / f"{i}.npy", mmap_mode="r")))
    exact = built(tiny, scans, rank=8, complete=False)
    streamed = built(tiny, scans, rank=8, complete=False, in_memory=10)
    np.testing.assert_allclose(streamed.identity.variances, exact.identity.variances, rtol=0.02)
    np.testing.assert_allclose(streamed.identity.explained, exact.identity.explained, atol=0.01)
    assert any("read in passes" in note for note in streamed.notes) and len(streamed.attributes) == 1


def test_streamed_motions_align(tiny):
    _, shapes = people(tiny, 6)
    weights = np.ones(shapes.shape[1])
    moved = [motion(i)(x) for i, x in enumerate(shapes)]
    motions = streamed_motions(moved, np.asarray(tiny.mean, float), weights, None)
    (block,) = list(AlignedFiles(moved, motions, None))
    once = align_shapes(np.stack(moved), tiny, weights, symmetric=False).shapes
    assert np.abs(block - once).max() < 0.2


def test_alignment_brings_the_mean_onto_the_template(tiny):
    _, shapes = people(tiny, 8)
    moved = np.stack([motion(i)(x) for i, x in enumerate(shapes)])
    weights = alignment_weights(tiny, [registered(x) for x in moved])
    for symmetric in (False, True):
        aligned = align_shapes(moved, tiny, weights, symmetric=symmetric)
        np.testing.assert_allclose(aligned.motions[3](moved[3]), aligned.shapes[3])
        goal = np.asarray(tiny.mean, float)
        mean = aligned.shapes.mean(axis=0)
        if symmetric:
            image = lambda x: x[np.asarray(tiny.mirror)] * [-1, 1, 1]  # noqa: E731
            mean, goal = (mean + image(mean)) / 2, (goal + image(goal)) / 2
        motion_left = similarity(mean, goal, weights, scaled=False)
        np.testing.assert_allclose(motion_left.rotation, np.eye(3), atol=1e-3)


@pytest.fixture(scope="module")
def fine():
    """A head fine enough to be registered."""
    return tiny_model(identity_rank=3, side=25)


def test_scans_become_a_model_and_bad_ones_are_left_out(fine, tmp_path):
    _, shapes = people(fine, 3, seed=5, spread=0.5)
    triangles = np.asarray(fine.triangles)
    told = []
    corners, weights = np.asarray(fine.landmarks.vertices), np.asarray(fine.landmarks.weights, float)
    scans = [
        Scan(
            f"s{i}",
            motion(i)(x),
            triangles,
            f"p{i}",
            landmarks=motion(i)(np.einsum("lk,lkc->lc", weights, x[corners])),
            colours=np.full(x.shape, 0.5),
        )
        for i, x in enumerate(shapes)
    ]
    rubbish = Scan("ball", np.random.default_rng(0).normal(size=(30, 3)), np.arange(30).reshape(10, 3), "nobody")
    result = build_model(
        [*scans[:1], rubbish, *scans[1:]],
        fine,
        BuildSettings(mirrored=False),
        folder=tmp_path / "shapes",
        progress=lambda index, scan: told.append((index, scan.used)),
    )
    assert told == [(0, True), (1, False), (2, True), (3, True)]
    assert result.identity.rank == 2 and isinstance(result.scans[0].vertices, np.memmap)
    assert "ball (nobody, neutral): left out" in str(result)
    assert miss(result.model.shape.truncate(0), shapes) > 0.9 and miss(result.model.shape, shapes) < 0.5
    assert np.median(np.abs(np.asarray(result.model.albedo.mean) - 0.5)) < 1e-5  # rims are the template's


def test_too_few_people(tiny):
    _, shapes = people(tiny, 1)
    lost = RegisteredScan("b", "b", "neutral", {}, None, None, None, None, np.nan, 0.0, "target: no face.")
    with pytest.raises(BuildError, match="1 people, expected two.*no face"):
        assemble_model([registered(shapes[0]), lost], tiny)
