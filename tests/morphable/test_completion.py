"""What a file lacks is carried over from a head that is laid on it; what it has stays."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tree_equal

import morphable
from morphable.basis import GaussianBasis
from morphable.completion import complete, lacks
from morphable.io.contents import Contents, ModelFileError, Points, Source, checked, split_seams
from morphable.landmarks import JAW, SurfacePoints
from morphable.registration import RegistrationError
from morphable.rig import Gaze, Rig
from morphable.validation import validate

NOWHERE = Source(Path("model"), "0" * 64)
SHIFT = np.array([3.0, 40.0, -50.0])


def bare(model, **more) -> Contents:
    """A file with a model's shapes and nothing else, elsewhere in space."""
    fields = {
        "name": "bare",
        "format": "bare",
        "licence": "none",
        "licence_class": "free",
        "mean": np.asarray(model.mean, float) + SHIFT,
        "identity": np.asarray(model.shape.modes, float),
        "triangles": np.asarray(model.triangles),
        "unit_mm": 10.0,
    }
    return Contents(**(fields | more))


@pytest.fixture(scope="module")
def made(tiny):
    return complete(bare(tiny), NOWHERE, tiny)


def test_a_bare_copy_of_the_head_gets_everything_that_the_head_has(made, tiny):
    np.testing.assert_allclose(made.mean, tiny.mean, atol=0.1)  # moved to its origin
    np.testing.assert_allclose(made.landmarks(made.mean), tiny.landmarks(tiny.mean), atol=0.5)
    np.testing.assert_allclose(made.contour.points(made.mean), tiny.contour.points(tiny.mean), atol=0.5)
    np.testing.assert_allclose(made.expression, tiny.expression, atol=0.3)
    np.testing.assert_allclose(made.albedo.modes, tiny.albedo.modes, atol=0.01)
    np.testing.assert_allclose(made.uv, tiny.uv, atol=0.01)
    np.testing.assert_allclose(made.rig.weights, tiny.rig.weights, atol=0.02)
    np.testing.assert_array_equal(made.mirror, tiny.mirror)
    assert made.expression_names == tiny.expression_names and made.masks.keys() == tiny.masks.keys()


def test_the_mandible_is_carried_over_unless_the_file_has_a_jaw_of_its_own(tiny):
    border = SurfacePoints(tiny.landmarks.vertices[JAW], tiny.landmarks.weights[JAW])
    head = dataclasses.replace(tiny, mandible=border)
    assert complete(bare(tiny), NOWHERE, tiny).mandible is None
    carried = complete(bare(tiny), NOWHERE, head)
    np.testing.assert_allclose(carried.mandible(carried.mean), border(tiny.mean), atol=0.5)
    own = Points(np.asarray(tiny.landmarks.vertices), np.asarray(tiny.landmarks.weights, float))
    assert complete(bare(tiny, landmarks=own), NOWHERE, head).mandible is None


def test_the_origin_moves_and_the_provenance_says_how(made):
    np.testing.assert_allclose(made.provenance.origin_mm, -SHIFT, atol=0.1)
    assert made.provenance.unit_mm == 10.0 and made.provenance.format == "bare"
    assert {"landmarks", "uv", "rig", "albedo modes", "mask face"} <= set(made.provenance.made)
    assert any("tiny (CC0-1.0)" in source for source in made.provenance.sources)


def test_joints_follow_the_identity_as_the_vertices_around_them(tiny, made):
    moved = dataclasses.replace(bare(tiny), identity=np.ones((len(tiny.mean), 3, 1)))
    again = complete(moved, NOWHERE, tiny)
    np.testing.assert_allclose(again.rig.joints.modes, 1.0, atol=1e-3)


def test_what_the_file_has_stays(tiny):
    count = len(tiny.mean)
    own = {
        "uv": np.random.default_rng(0).uniform(0, 1, (count, 2)),
        "albedo_mean": np.full((count, 3), 0.25),
        "expression": np.ones((count, 3, 1)),
        "expression_names": ("surprise",),
        "mirror": np.arange(count),
        "masks": {"lips": np.full(count, 0.5)},
        "landmarks": Points.at_vertices({8: 100, 30: 84}),
    }
    model = complete(bare(tiny, **own), NOWHERE, tiny)
    np.testing.assert_allclose(model.uv, own["uv"], atol=1e-6)
    np.testing.assert_allclose(model.albedo.mean, 0.25)
    assert model.albedo.rank == tiny.albedo.rank  # only the mean was there
    assert model.expression_names == ("surprise",) and model.rig.gaze.units.shape == (0,)
    np.testing.assert_array_equal(model.mirror, np.arange(count))
    np.testing.assert_allclose(model.masks["lips"], 0.5, atol=1 / 255)  # as files keep them
    assert int(model.landmarks.vertices[30, 0]) == 84
    np.testing.assert_allclose(model.landmarks(model.mean)[0], tiny.landmarks(tiny.mean)[0], atol=0.5)
    missing = lacks(bare(tiny, **own))
    assert missing.landmarks and missing.albedo_modes and missing.rig and not (missing.uv or missing.expression)


def test_units_of_the_head_replace_those_of_the_file_on_request(tiny):
    count, empty = len(tiny.mean), jnp.zeros(0, jnp.int32)
    rig = Rig(
        joints=tiny.rig.joints,
        weights=tiny.rig.weights,
        gaze=Gaze(empty, empty, jnp.zeros((0, 3))),
        names=("head", "jaw"),
        parents=(-1, 0),
        joints_expression=jnp.zeros((2, 3, 5)),
    )
    five = tuple(f"expression_{k}" for k in range(5))
    contents = bare(
        tiny, expression=np.ones((count, 3, 5)), expression_names=five, expression_kind="components", rig=rig
    )
    model = complete(contents, NOWHERE, tiny, arkit=True)
    assert model.expression_names == tiny.expression_names and model.expression_kind == "units"
    model.vertices(jnp.zeros(6), jnp.zeros(4))  # the rig goes with the units
    assert complete(contents, NOWHERE, tiny).expression_kind == "components"


def test_a_rig_without_a_jaw_gets_one_and_keeps_its_own_joints(tiny):
    count, none = len(tiny.mean), jnp.zeros(0, jnp.int32)
    place = jnp.asarray(SHIFT + [1.0, 2.0, 3.0], jnp.float32)[None]
    joints = GaussianBasis(place, jnp.ones((1, 3, tiny.shape.rank)))
    rig = Rig(joints, jnp.ones((count, 1)), Gaze(none, none, jnp.zeros((0, 3))), ("head",), (-1,))
    model = complete(bare(tiny, rig=rig), NOWHERE, tiny)
    assert model.rig.names == ("head", "jaw") and "jaw joint" in model.provenance.made
    np.testing.assert_allclose(model.rig.joints.mean[0], [1, 2, 3], atol=0.1)
    np.testing.assert_allclose(model.rig.joints.modes[0], 1)
    np.testing.assert_allclose(model.rig.weights, tiny.rig.weights, atol=0.02)


def test_what_is_no_face_is_refused(tiny):
    rng = np.random.default_rng(0)
    cube = rng.normal(size=(300, 3)) * [200, 20, 300]
    triangles = rng.integers(0, 300, (500, 3))
    contents = bare(tiny, mean=cube, identity=np.zeros((300, 3, 1)), triangles=triangles)
    with pytest.raises(RegistrationError):
        complete(contents, NOWHERE, tiny)


def test_seams_double_vertices_behind_all_others():
    triangles, uv_triangles = np.array([[0, 1, 2], [2, 1, 3]]), np.array([[0, 1, 2], [4, 3, 5]])
    uv = np.arange(12, dtype=float).reshape(6, 2) / 12
    split, placed, origin = split_seams(triangles, uv, uv_triangles, 5)
    np.testing.assert_array_equal(origin[split], triangles)  # the same corners ...
    np.testing.assert_allclose(placed[split], uv[uv_triangles])  # ... with the places that the file gives them
    np.testing.assert_array_equal(origin[:5], np.arange(5))
    assert len(origin) == 7


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mean": np.zeros((169, 3))}, "0 mm"),
        ({"mean": np.full((169, 3), np.nan)}, "no numbers"),
        ({"triangles": np.array([[0, 1, 169]])}, "0 to 168"),
        ({"triangles": np.zeros((0, 3), int)}, "none"),
        ({"mirror": np.full(169, -1)}, "mirror"),
        ({"expression": np.ones((169, 3, 2)), "expression_names": ("a", "a")}, "name twice"),
        ({"identity": np.full((169, 3, 1), 1e6)}, "identity"),
        ({"albedo_mean": np.full((169, 3), 128.0)}, "albedo mean"),
        ({"landmarks": Points(np.zeros((68, 3), int), np.ones((68, 3)))}, "barycentric"),
    ],
)
def test_contents_that_contradict_themselves_are_refused(tiny, change, complaint):
    assert checked(bare(tiny), NOWHERE)
    with pytest.raises(ModelFileError, match=complaint):
        checked(bare(tiny, **change), NOWHERE)


@pytest.mark.parametrize("name", ["sfm/sfm_shape_3448.bin", "ict/FaceXModel"])
def test_real_models_are_sound_once_completed(shared, name):
    model = morphable.load(shared / "models" / name)
    assert [finding for finding in validate(model) if finding.level == "error"] == []
    between = np.asarray(model.landmarks(model.mean))[36:48].mean(axis=0)
    assert np.abs(between[:2]).max() < 5 and 0 < between[2] < 30  # the origin lies between the eyeballs
    again = morphable.load(shared / "models" / name)  # from the cache
    assert tree_equal(jax.tree.map(np.asarray, model), jax.tree.map(np.asarray, again))
    assert again.provenance == model.provenance
