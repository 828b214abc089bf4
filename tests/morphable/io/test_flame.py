"""FLAME's files: the arrays arrive in our units, the model moves as others' implementations do, side files are used."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from published import flame as published

from morphable.basis import GaussianBasis
from morphable.colour import srgb_to_linear
from morphable.io import flame
from morphable.io.archive import read_npz
from morphable.io.contents import Contents, ModelFileError, Source, checked
from morphable.io.pickles import read_pickle
from morphable.landmarks import SurfacePoints
from morphable.model import MorphableModel, Provenance


def _read(path) -> Contents:
    arrays = read_npz(path) if path.suffix == ".npz" else read_pickle(path)
    assert any(layout.matches(frozenset(arrays)) for layout in flame.LAYOUTS)
    source = Source(path, "")
    return checked(flame.read(arrays, source), source)


@pytest.mark.parametrize("write", [published.write_flame, published.write_flame_npz])
@pytest.mark.parametrize("directions, identities", [(20, 10), (400, 300)])
def test_arrays_arrive_in_millimetres(write, directions, identities, tmp_path):
    truth, found = published.truth(1, directions), _read(write(tmp_path, 1, directions))
    assert np.allclose(found.mean, 1000 * truth["v_template"], atol=1e-4)
    assert np.allclose(found.identity, 1000 * truth["shapedirs"][..., :identities], atol=1e-5)
    assert np.allclose(found.expression, 1000 * truth["shapedirs"][..., identities:], atol=1e-5)
    assert np.array_equal(found.triangles, truth["f"])
    assert found.expression_kind == "components" and len(found.expression_names) == directions - identities
    assert found.rig.parents == (-1, 0, 1, 1, 1)
    assert np.allclose(found.rig.correctives, 1000 * truth["posedirs"], atol=1e-5)


def test_joints_follow_the_shape(tmp_path):
    truth, found = published.truth(), _read(published.write_flame(tmp_path))
    rng = np.random.default_rng(0)
    identity, expression = rng.normal(size=10), rng.normal(size=10)
    shaped = truth["v_template"] + truth["shapedirs"] @ np.r_[identity, expression]
    joints = found.rig.joint_positions(jnp.asarray(identity), jnp.asarray(expression))
    assert np.allclose(joints, 1000 * truth["J_regressor"] @ shaped, atol=1e-3)


def test_eyeballs_are_parts(tmp_path):
    found = _read(published.write_flame(tmp_path))
    skin = published.SIDE**2
    assert np.array_equal(found.part_of_vertex, np.repeat([0, 1, 2], [skin, published.EYE, published.EYE]))
    left, right = (found.mean[found.part_of_vertex == part] for part in (1, 2))
    assert left[:, 0].min() > 0 > right[:, 0].max()  # +x is the subject's left
    assert found.part_names == ("skin", "eye_left", "eye_right")


def _model(contents: Contents) -> MorphableModel:
    """The model of contents, with nothing where the file is silent."""
    count = len(contents.mean)
    ids, zeros = jnp.zeros((68, 3), jnp.int32), jnp.zeros((count, 3))
    return MorphableModel(
        shape=GaussianBasis(jnp.asarray(contents.mean), jnp.asarray(contents.identity)),
        expression=jnp.asarray(contents.expression),
        albedo=GaussianBasis(zeros, jnp.zeros((count, 3, 0))),
        triangles=jnp.asarray(contents.triangles, jnp.int32),
        uv=jnp.zeros((count, 2)),
        landmarks=SurfacePoints(ids, jnp.full((68, 3), 1 / 3)),
        contour=None,
        rig=contents.rig,
        masks={},
        mirror=jnp.arange(count),
        residual=jnp.zeros((count, 0)),
        proxy_triangles=jnp.asarray(contents.triangles, jnp.int32),
        part_of_vertex=jnp.zeros(count, jnp.int32),
        expression_names=contents.expression_names,
        part_names=("skin",),
        provenance=Provenance(contents.name, contents.licence, contents.licence_class, ""),
        expression_kind=contents.expression_kind,
    )


def test_the_model_moves_as_body_models_moves_it(tmp_path):
    oracle = pytest.importorskip("body_models.flame.numpy")
    path = published.write_flame(tmp_path, 2, 400)
    theirs, model = oracle.FLAME(model_path=path), _model(_read(path))
    rng = np.random.default_rng(5)
    for _ in range(3):
        identity, expression = rng.normal(size=300), rng.normal(size=100)
        pose = rng.normal(size=(5, 3)) * [[0.5], [0.3], [0.2], [0.4], [0.4]]
        expected = theirs.forward_vertices(
            pose[None, 1:].astype(np.float32),
            head_rotation=pose[None, 0].astype(np.float32),
            shape=identity[None].astype(np.float32),
            expression=expression[None].astype(np.float32),
        )
        ours = model.vertices(*(jnp.asarray(x, jnp.float32) for x in (identity, expression, pose)))
        assert np.abs(np.asarray(ours) / 1000 - np.asarray(expected)[0]).max() < 1e-5  # metres


def test_the_model_moves_by_smpls_equations(tmp_path):
    """SMPL (Loper et al. 2015), equations 1 to 10, written out for one vertex after the other."""
    truth, model = published.truth(2), _model(_read(published.write_flame(tmp_path, 2)))
    rng = np.random.default_rng(6)
    coefficients, pose = rng.normal(size=20), 0.4 * rng.normal(size=(5, 3))

    def rotation(vector: np.ndarray) -> np.ndarray:
        angle = np.linalg.norm(vector)
        x, y, z = vector / angle
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross

    turns = np.stack([rotation(vector) for vector in pose])
    shaped = truth["v_template"] + truth["shapedirs"] @ coefficients
    joints = truth["J_regressor"] @ shaped
    rest = shaped + truth["posedirs"] @ (turns[1:] - np.eye(3)).ravel()
    world = []
    for joint, parent in enumerate((None, 0, 1, 1, 1)):
        local = np.eye(4)
        local[:3, :3], local[:3, 3] = turns[joint], joints[joint] - (0 if parent is None else joints[parent])
        world.append(local if parent is None else world[parent] @ local)
    posed = np.zeros_like(rest)
    for joint, transform in enumerate(world):
        moved = (rest - joints[joint]) @ transform[:3, :3].T + transform[:3, 3]
        posed += truth["weights"][:, joint, None] * moved
    ours = model.vertices(*(jnp.asarray(x, jnp.float32) for x in (coefficients[:10], coefficients[10:], pose)))
    assert np.abs(np.asarray(ours) / 1000 - posed).max() < 1e-5  # metres


@pytest.mark.parametrize(
    "file, name, licence_class",
    [
        ("generic_model.pkl", "FLAME", "non-commercial"),
        ("FLAME2020/female_model.pkl", "FLAME 2020, female", "non-commercial"),
        ("FLAME2019/male_model.pkl", "FLAME 2019, male", "non-commercial"),
        ("flame2023.pkl", "FLAME 2023", "non-commercial"),
        ("flame2023_no_jaw.pkl", "FLAME 2023", "non-commercial"),
        ("flame2023_Open.pkl", "FLAME 2023 Open", "attribution"),
        ("FLAME2023Open/generic_model.pkl", "FLAME 2023 Open", "attribution"),
        ("open/generic_model.pkl", "FLAME", "non-commercial"),
    ],
)
def test_the_release_is_told_by_its_name(file, name, licence_class, tmp_path):
    path = tmp_path / "models" / file
    path.parent.mkdir(parents=True)
    found = _read(published.write_flame(path.parent, name=path.name))
    assert (found.name, found.licence_class) == (name, licence_class)
    assert found.notes


def test_masks_are_the_regions(tmp_path):
    published.write_masks(tmp_path)
    regions, found = published.truth()["regions"], _read(published.write_flame(tmp_path))
    assert found.masks.keys() == {"face", "lips", "scalp", "ears"}
    assert np.array_equal(np.flatnonzero(found.masks["lips"]), regions["lips"])
    assert np.array_equal(np.flatnonzero(found.masks["ears"]), np.union1d(regions["left_ear"], regions["right_ear"]))


def _points(found: Contents) -> np.ndarray:
    return (found.mean[found.landmarks.vertices] * found.landmarks.weights[..., None]).sum(axis=1)


def _at(truth: dict, triangles: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return 1000 * (truth["v_template"][truth["f"][triangles]] * weights[..., None]).sum(axis=-2)


def test_landmarks_come_from_the_embedding_beside_the_model(tmp_path):
    path, truth = published.write_flame(tmp_path), published.truth()
    assert _read(path).landmarks is None
    published.write_static_embedding(tmp_path)
    inner = _at(truth, truth["static_triangles"], truth["static_weights"])
    assert np.allclose(_points(_read(path))[17:], inner, atol=1e-3)
    assert np.isnan(_read(path).landmarks.weights[:17]).all()
    published.write_dynamic_embedding(tmp_path)
    jaw = _at(truth, truth["dynamic_triangles"], truth["dynamic_weights"])
    assert np.allclose(_points(_read(path)), np.concatenate([jaw[0], inner]), atol=1e-3)
    published.write_deca_embedding(tmp_path, full=False)
    assert np.allclose(_points(_read(path)), np.concatenate([jaw[0], inner]), atol=1e-3)
    published.write_deca_embedding(tmp_path)
    assert np.allclose(_points(_read(path)), _at(truth, truth["full_triangles"], truth["full_weights"])[0], atol=1e-3)


def test_the_contour_is_ordered_by_yaw(tmp_path):
    truth = published.truth()
    vertices, weights = flame.dynamic_contour(published.write_dynamic_embedding(tmp_path), truth["f"].astype(np.int32))
    assert vertices.shape == weights.shape == (17, 79, 3)
    for step, row in ((0, 39), (39, 0), (40, 40), (78, 78)):  # yaw -39, 0, 1 and 39 degrees
        assert np.array_equal(vertices[:, step], truth["f"][truth["dynamic_triangles"][row]])
        assert np.allclose(weights[:, step], truth["dynamic_weights"][row])


def test_a_template_gives_texture_coordinates(tmp_path):
    published.write_template(tmp_path)
    published.write_masks(tmp_path)
    truth, found = published.truth(), _read(published.write_flame(tmp_path))
    corners = np.stack([truth["vt"][:, 0], 1 - truth["vt"][:, 1]], axis=1)[truth["ft"]]
    assert np.allclose(found.uv[found.triangles], corners, atol=1e-6)
    count = len(truth["v_template"])
    assert len(found.mean) == count + truth["right_of_seam"]
    assert np.allclose(found.mean[:count], 1000 * truth["v_template"], atol=1e-4)
    assert np.allclose(found.mean[found.triangles], 1000 * truth["v_template"][truth["f"]], atol=1e-4)
    assert found.rig.weights.shape[0] == found.rig.correctives.shape[0] == len(found.mean)
    assert found.licence_class == "non-commercial" and found.albedo_mean is None


_SPACES = ("FLAME_texture.npz", "FLAME_albedo_from_BFM.npz", "albedoModel2020_FLAME_albedoPart.npz")


@pytest.mark.parametrize("file", _SPACES)
def test_albedo_is_the_map_at_the_vertices(file, tmp_path):
    published.write_texture(tmp_path, file)
    published.write_template(tmp_path)
    truth, found = published.truth(), _read(published.write_flame(tmp_path, name="flame2023_Open.pkl"))
    place = np.concatenate([np.ones((len(found.uv), 1)), found.uv], axis=1)
    mean, modes = place @ truth["colour"], np.tensordot(place, truth["colour_modes"], axes=1)
    if file.startswith("albedo"):  # in linear light: a small step along a mode is the same in either
        assert np.allclose(srgb_to_linear(jnp.asarray(found.albedo_mean)), mean, atol=1e-5)
        step = 1e-2 * np.random.default_rng(0).normal(size=4)
        stepped = srgb_to_linear(jnp.asarray(found.albedo_mean + found.albedo_modes @ step))
        assert np.allclose(stepped, mean + modes @ step, atol=1e-4)
    else:
        assert np.allclose(found.albedo_mean, mean, atol=1e-5)
        assert np.allclose(found.albedo_modes, modes, atol=1e-5)
    assert found.licence_class == "non-commercial"  # of the textures, whatever the shapes' is
    assert found.expression.shape[0] == found.identity.shape[0] == len(found.albedo_mean) == len(found.part_of_vertex)


def test_a_texture_without_coordinates_is_left_out(tmp_path):
    published.write_texture(tmp_path, "FLAME_albedo_from_BFM.npz")
    found = _read(published.write_flame(tmp_path, name="flame2023_Open.pkl"))
    assert found.albedo_mean is None and found.uv is None and found.licence_class == "attribution"
    assert any("FLAME_albedo_from_BFM.npz" in note for note in found.notes)


def _changed(**changes) -> dict:
    truth = published.truth()
    return {key: truth[key] for key in flame._KEYS} | changes


BROKEN = {
    "joints": ({"kintree_table": np.zeros((2, 24), np.uint32)}, "24 joints"),
    "tree": ({"kintree_table": np.array([[published.ROOT, 3, 1, 1, 1], range(5)])}, "kintree_table"),
    "directions": ({"shapedirs": np.zeros((181, 3, 150))}, "150 directions"),
    "triangle": ({"f": np.array([[0, 1, 181]])}, "0 to 180"),
    "weights": ({"weights": np.zeros((181, 5))}, "sum to 1"),
    "no numbers": ({"weights": np.full((181, 5), np.nan)}, "no numbers"),
    "regressor": ({"J_regressor": np.zeros((5, 180))}, "J_regressor"),
    "correctives": ({"posedirs": np.zeros((181, 3, 207))}, "posedirs"),
    "infinite": ({"posedirs": np.full((181, 3, 36), np.inf)}, "posedirs"),
    "kind": ({"v_template": "template"}, "v_template"),
}


@pytest.mark.parametrize("way", BROKEN)
def test_inconsistent_files_are_refused(way, tmp_path):
    changes, message = BROKEN[way]
    with pytest.raises(ModelFileError, match=message):
        flame.read(_changed(**changes), Source(tmp_path / "model.pkl", ""))


@pytest.mark.parametrize(
    "write",
    [published.write_masks, published.write_dynamic_embedding, published.write_texture, published.write_template],
)
def test_damaged_side_files_are_used_or_refused(write, tmp_path):
    path = published.write_flame(tmp_path)
    published.write_static_embedding(tmp_path)
    beside = write(tmp_path)
    whole, rng = beside.read_bytes(), np.random.default_rng(1)
    for _ in range(15):
        data = bytearray(whole)
        for _ in itertools.repeat(None, 3):
            data[rng.integers(len(data))] = rng.integers(256)
        beside.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        try:
            _read(path)
        except ModelFileError as error:
            assert str(tmp_path) in str(error)
