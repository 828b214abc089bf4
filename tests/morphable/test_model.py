import dataclasses

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from helpers import tree_equal

import morphable
from morphable.landmarks import INNER, JAW, SurfacePoints


def test_zero_coefficients_give_the_mean(tiny):
    zero = jnp.zeros(6)
    np.testing.assert_allclose(tiny.vertices(zero, jnp.zeros(4)), tiny.mean, atol=1e-4)
    np.testing.assert_allclose(tiny.instance(zero).vertices, tiny.mean, atol=1e-4)


def test_fewer_coefficients_leave_the_rest_at_the_mean(tiny, key):
    c = jax.random.normal(key, (3,))
    np.testing.assert_allclose(tiny.neutral(c), tiny.neutral(jnp.pad(c, (0, 3))), atol=1e-4)


def test_mouth_close_cannot_exceed_jaw_open(tiny):
    i = jnp.zeros(6)
    alone = tiny.vertices(i, tiny.weights(mouthClose=1.0))
    np.testing.assert_allclose(alone, tiny.mean, atol=1e-4)
    tied = tiny.vertices(i, tiny.weights(mouthClose=1.0, jawOpen=0.5))
    np.testing.assert_allclose(tied, tiny.vertices(i, tiny.weights(mouthClose=0.5, jawOpen=0.5)), atol=1e-4)


def test_unknown_unit_is_named(tiny):
    with pytest.raises(ValueError, match="unknown expression unit 'smirk'"):
        tiny.weights(smirk=1.0)


def test_neutral_pose_skins_to_the_template(tiny, key):
    rig = tiny.rig
    vertices = tiny.neutral(jax.random.normal(key, (6,)))
    np.testing.assert_allclose(rig.skin(vertices, rig.joints.mean, jnp.zeros((2, 3))), vertices, atol=1e-4)


def test_turning_the_root_turns_everything_rigidly(tiny):
    rig = tiny.rig
    turned = rig.skin(tiny.mean, rig.joints.mean, jnp.array([[0.0, 0.3, 0.0], [0.0, 0.0, 0.0]]))
    distance = lambda v: jnp.linalg.norm(v[:20, None] - v[None, :20], axis=-1)  # noqa: E731
    np.testing.assert_allclose(distance(turned), distance(tiny.mean), atol=1e-2)
    joint = rig.joints.mean[0]
    np.testing.assert_allclose(
        jnp.linalg.norm(turned - joint, axis=1), jnp.linalg.norm(tiny.mean - joint, axis=1), atol=1e-2
    )


def test_gaze_adds_to_the_eye_joint(tiny):
    w = tiny.weights(eyeLookUpLeft=0.5)
    np.testing.assert_allclose(tiny.rig.rotations(w)[0], [-0.2, 0, 0], atol=1e-6)


def test_save_then_load_is_the_identity(tiny, tmp_path):
    morphable.save(tmp_path / "tiny.npz", tiny)
    again = morphable.load(tmp_path / "tiny.npz")
    first, second = (jax.tree.map(np.asarray, m) for m in (tiny, again))
    assert tree_equal(first.shape, second.shape) and tree_equal(first.rig, second.rig)
    assert tree_equal(first.albedo, second.albedo) and tree_equal(first.contour, second.contour)
    assert tree_equal(first.masks, second.masks) and again.expression_names == tiny.expression_names
    assert again.provenance[:3] == tiny.provenance[:3] and len(again.provenance.sha256) == 64
    assert not list(tmp_path.glob("*.partial*"))


@pytest.fixture(scope="module")
def jawed(tiny):
    """The tiny head with the jaw's landmarks elsewhere for sets of 3D landmarks: one vertex further on."""
    jaw = tiny.landmarks.vertices[JAW] + 1
    return dataclasses.replace(tiny, mandible=SurfacePoints(jaw, tiny.landmarks.weights[JAW]))


def test_3d_landmarks_have_the_jaw_on_the_mandible_and_the_rest_as_detectors_do(tiny, jawed):
    seen, fixed = (np.asarray(points(tiny.mean)) for points in (jawed.landmarks, jawed.landmarks3d))
    np.testing.assert_array_equal(fixed[INNER], seen[INNER])
    np.testing.assert_array_equal(fixed[JAW], jawed.mandible(tiny.mean))
    assert np.linalg.norm(fixed - seen, axis=1)[JAW].min() > 0.1
    np.testing.assert_array_equal(tiny.landmarks3d(tiny.mean), tiny.landmarks(tiny.mean))  # which knows no other jaw


def test_a_file_keeps_the_mandible_and_one_without_weights_is_refused(jawed, tmp_path):
    morphable.save(tmp_path / "jawed.npz", jawed)
    again = morphable.load(tmp_path / "jawed.npz")
    assert tree_equal(*(jax.tree.map(np.asarray, m.mandible) for m in (jawed, again)))
    with np.load(tmp_path / "jawed.npz") as file:
        arrays = dict(file)
    for name, values, words in (
        ("mandible_weights", None, "mandible_weights.*none"),
        ("mandible_weights", np.ones((17, 3), np.float32), "do not sum to 1"),
        ("mandible_vertices", arrays["mandible_vertices"] + 10**6, "mandible_vertices.*indices"),
        ("mandible_vertices", arrays["mandible_vertices"][:16], "mandible_vertices.*shape"),
    ):
        np.savez(tmp_path / "bad.npz", **{k: v for k, v in (arrays | {name: values}).items() if v is not None})
        with pytest.raises(morphable.ModelFileError, match=words):
            morphable.load(tmp_path / "bad.npz")


def test_files_that_are_no_models_are_refused(tmp_path):
    cut = tmp_path / "cut.npz"
    cut.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(morphable.ModelFileError, match="not a readable .npz"):
        morphable.load(cut)
    with pytest.raises(morphable.ModelFileError, match="cannot be read"):
        morphable.load(tmp_path / "missing.npz")
    other = tmp_path / "other.npz"
    np.savez(other, manifest='{"format": "facefit-model", "version": 99}')
    with pytest.raises(morphable.ModelFileError, match="version 99.*upgrade"):
        morphable.load(other)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, manifest=np.array([{"a": 1}], dtype=object))
    with pytest.raises(morphable.ModelFileError, match="expected a layout that facefit knows"):
        morphable.load(pickled)


def test_outline_of_a_frontal_head_is_found_on_both_sides(tiny):
    """Under a frontal view the outermost candidate of a side path is the one with the largest |x|."""
    points = tiny.contour.points(tiny.mean)
    pixels = points[..., :2] * jnp.array([1.0, -1.0])
    chosen = tiny.contour.outermost(pixels, jnp.diag(jnp.array([1.0, -1.0, -1.0])))
    reach = jnp.abs(points[..., 0])
    for path in (0, 1, 15, 16):
        assert reach[path, chosen[path]] == reach[path].max()


def with_interaction(tiny, key):
    shape = (*tiny.expression.shape, tiny.shape.rank)
    return dataclasses.replace(tiny, rig=None, interaction=0.5 * jax.random.normal(key, shape))


def test_interaction_makes_the_units_depend_on_the_identity(tiny, key):
    model = with_interaction(tiny, key)
    c, w = jnp.array([1.0, -0.5, 0.2, 0, 0, 0.3]), jnp.array([0.5, 0.2, 0.7, 0.1])
    expected = tiny.mean + tiny.shape.modes @ c + tiny.expression @ w
    expected += jnp.einsum("vxui,u,i->vx", model.interaction, w, c)
    np.testing.assert_allclose(model.vertices(c, w), expected, atol=1e-3)
    np.testing.assert_allclose(model.neutral(c), tiny.neutral(c), atol=1e-5)


def test_the_tangent_model_agrees_to_first_order(tiny, key):
    model = with_interaction(tiny, key)
    c, w = jnp.array([1.0, -0.5, 0.2, 0, 0, 0.3]), jnp.array([0.5, 0.2, 0.7, 0.1])
    tangent = model.linearised(c, w)
    assert tangent.interaction is None and tiny.linearised(c, w) is tiny
    np.testing.assert_allclose(tangent.vertices(c, w), model.vertices(c, w), atol=1e-3)
    dc, dw = jnp.array([0.0, 1, 0, 2, 0, 0]), jnp.array([0.1, 0, -0.1, 0.2])
    step = lambda m, h: (m.vertices(c + h * dc, w + h * dw) - m.vertices(c - h * dc, w - h * dw)) / (2 * h)  # noqa: E731
    np.testing.assert_allclose(step(tangent, 0.1), step(model, 0.1), atol=5e-2)


def test_interaction_components_and_correctives_survive_the_file(tiny, key, tmp_path):
    rig = dataclasses.replace(
        tiny.rig,
        joints_expression=jax.random.normal(key, (2, 3, 4)),
        correctives=jax.random.normal(key, (len(tiny.mean), 3, 9)),
    )
    model = dataclasses.replace(
        tiny, rig=rig, interaction=with_interaction(tiny, key).interaction, expression_kind="components"
    )
    morphable.save(tmp_path / "all.npz", model)
    again = morphable.load(tmp_path / "all.npz")
    assert again.expression_kind == "components" and tree_equal(again.rig, model.rig)
    np.testing.assert_array_equal(again.interaction, model.interaction)
    assert np.asarray(again.expression_limits).min() == -4


def test_correctives_act_with_the_joints_and_only_then(tiny, key):
    fields = jax.random.normal(key, (len(tiny.mean), 3, 9))
    rig = dataclasses.replace(tiny.rig, correctives=fields)
    still, turned = jnp.zeros((2, 3)), jnp.zeros((2, 3)).at[1, 0].set(0.4)
    np.testing.assert_allclose(rig.corrected(tiny.mean, still), tiny.mean, atol=1e-5)
    matrix = jaxlie.SO3.exp(turned[1]).as_matrix()
    np.testing.assert_allclose(
        rig.corrected(tiny.mean, turned) - tiny.mean, fields @ (matrix - jnp.eye(3)).reshape(-1), atol=1e-4
    )
    with pytest.raises(ValueError, match="nine for each"):
        dataclasses.replace(tiny.rig, correctives=fields[..., :5])
