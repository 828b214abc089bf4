"""ICT-FaceKit's folder of meshes: every mesh is a face of the model, eyes turn, materials share one map."""

import jax.numpy as jnp
import numpy as np
import pytest
from published import ict as published
from published.landmarks import IBUG

from morphable.io import read
from morphable.io.contents import ModelFileError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return published.write_ict(tmp_path_factory.mktemp("ict"))


@pytest.fixture(scope="module")
def contents(path):
    return read(path)[0]


@pytest.fixture(scope="module")
def truth():
    return published.truth_of(published.write_ict)


def test_every_mesh_is_a_face_of_the_model(contents, truth):
    count = len(truth["mean_mm"])
    np.testing.assert_allclose(contents.mean[:count], truth["mean_mm"], atol=1e-3)
    np.testing.assert_allclose(contents.identity[:count], truth["identity_mm"], atol=1e-3)
    shapes = truth["expression_mm"]
    wanted = {
        "jawOpen": shapes["jawOpen"],
        "mouthSmileLeft": shapes["mouthSmile_L"],
        "browInnerUp": shapes["browInnerUp_L"] + shapes["browInnerUp_R"],
        "eyeLookUpRight": shapes["eyeLookUp_R"],
        "PupilDilate_L": shapes["PupilDilate_L"],  # none of ARKit's: its own name
    }
    assert {*wanted, "eyeLookUpLeft"} == set(contents.expression_names)
    for name, shape in wanted.items():
        got = contents.expression[:count, :, contents.expression_names.index(name)]
        np.testing.assert_allclose(got, shape, atol=2e-3)


def test_a_gaze_turns_the_eyeball_as_its_mesh_does(contents, truth):
    rig, count = contents.rig, len(truth["mean_mm"])
    (unit,) = np.asarray(rig.gaze.units)
    assert contents.expression_names[unit] == "eyeLookUpLeft" and rig.names[int(rig.gaze.joints[0])] == "eye_left"
    np.testing.assert_allclose(rig.gaze.rotations[0], [-published.GAZE_RADIANS, 0, 0], atol=1e-3)
    w = np.eye(len(contents.expression_names))[unit]
    shaped = jnp.asarray(contents.mean + contents.expression @ w, jnp.float32)
    turned = rig.skin(shaped, rig.joint_positions(jnp.zeros(3)), rig.rotations(jnp.asarray(w, jnp.float32)))
    expected = truth["mean_mm"] + truth["expression_mm"]["eyeLookUp_L"]
    np.testing.assert_allclose(np.asarray(turned)[:count], expected, atol=5e-3)


def test_joints_follow_the_eyeballs_of_other_people(contents, truth):
    c = np.array([1.0, -0.5, 2.0])
    person = truth["mean_mm"] + truth["identity_mm"] @ c
    joints = contents.rig.joint_positions(jnp.asarray(c, jnp.float32))
    for side, joint in (("left", 1), ("right", 2)):
        # The small balls have vertices opposite each other, so their means are their centres.
        np.testing.assert_allclose(joints[joint], person[truth["ranges"][f"eye_{side}"]].mean(axis=0), atol=5e-3)


def test_parts_are_told_by_material_and_place(contents, truth):
    for name, ids in truth["ranges"].items():
        if name != "shell":
            assert (contents.part_of_vertex[ids] == contents.part_names.index(name)).all(), name
    drawn = np.unique(contents.triangles)
    assert not np.isin(truth["ranges"]["shell"], drawn).any()
    assert any("left out: 2 triangles" in note for note in contents.notes)


def test_materials_share_one_map_without_overlap(contents):
    assert contents.uv.min() >= 0 and contents.uv.max() <= 1
    part = contents.part_of_vertex[contents.triangles[:, 0]]
    boxes = []
    for names in (
        ("skin",),
        ("eye_left",),
        ("eye_right",),
        ("teeth_upper", "teeth_lower"),
        ("lashes_left", "lashes_right"),
    ):
        inside = np.isin(part, [contents.part_names.index(n) for n in names])
        uv = contents.uv[contents.triangles[inside]].reshape(-1, 2)
        boxes.append((uv.min(axis=0), uv.max(axis=0)))
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:i]:
            assert (high <= other_low).any() or (other_high <= low).any()
    # v runs down: the forehead is above the chin.
    points = contents.uv[IBUG]
    assert points[27, 1] < points[8, 1] and points[36, 0] < points[45, 0]


def test_polygons_keep_their_corners_and_their_side(contents, truth):
    skin = [truth["mean_mm"][q] for q in truth["polygons"]["M_Face"]]
    corners = contents.mean[contents.triangles[: len(skin)]]
    np.testing.assert_allclose(corners, np.array(skin)[:, :3], atol=1e-3)
    np.testing.assert_array_equal(contents.landmarks.vertices[:, 0], IBUG)


def test_the_repositorys_root_will_do(path, contents):
    np.testing.assert_array_equal(read(path.parent)[0].mean, contents.mean)


@pytest.mark.parametrize(
    "name, change",
    [
        ("identity001.obj", lambda text: text.replace("v ", "# ", 1)),
        ("jawOpen.obj", lambda text: text.replace("v ", "v x", 1)),
        ("generic_neutral_mesh.obj", lambda text: text.replace("f ", "f 9999999/1 ", 1)),
        ("generic_neutral_mesh.obj", lambda text: text.replace("f ", "f x/", 1)),
        ("generic_neutral_mesh.obj", lambda text: text.replace("f ", "o ")),
        ("vertex_indices.json", lambda text: text.replace("[", "", 1)),
        ("vertex_indices.json", lambda text: text.replace("idx_to", "to")),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, change):
    path = published.write_ict(tmp_path)
    (path / name).write_text(change((path / name).read_text()))
    with pytest.raises(ModelFileError, match=name.split(".")[0]):
        read(path)


def test_a_folder_without_identities_is_refused(tmp_path):
    path = published.write_ict(tmp_path)
    for mesh in path.glob("identity*.obj"):
        mesh.unlink()
    with pytest.raises(ModelFileError, match="no identity000.obj"):
        read(path)


def test_the_kit_itself(shared):
    path = shared / "models/ict/FaceXModel"
    if not path.exists():
        pytest.skip(f"no {path}")
    contents, _ = read(path)
    parts = contents.part_of_vertex[:26719]
    ranges = {  # README, "Face Model Topology" and "Teeth Details"
        "teeth_upper": (17039, 19246),
        "teeth_lower": (19247, 21450),
        "eye_left": (21451, 23020),
        "eye_right": (23021, 24590),
        "lashes_left": (25351, 26034),
        "lashes_right": (26035, 26718),
    }
    for name, (first, last) in ranges.items():
        ids = np.flatnonzero(parts == contents.part_names.index(name))
        np.testing.assert_array_equal(ids, np.arange(first, last + 1))
    points = contents.mean[contents.landmarks.vertices[:, 0]]
    assert 85 < np.linalg.norm(points[45] - points[36]) < 95 and points[45, 0] > 0 > points[36, 0]
    assert points[36, 1] > points[30, 1] > points[57, 1] > points[8, 1] and points[30, 2] > points[8, 2]
    np.testing.assert_allclose(points[:17] * [-1, 1, 1], points[16::-1], atol=0.01)
    a, b, c = (contents.mean[contents.triangles[:, k]] for k in range(3))
    volume = np.einsum("ti,ti->", a, np.cross(b, c)) / 6
    assert 3e6 < volume < 8e6  # mm³, positive: the triangles face outwards
    for side, x in ((1, 1.0), (2, -1.0)):
        joint = np.asarray(contents.rig.joints.mean)[side]
        assert joint[0] * x > 25 and joint[2] > 60
    jaw = contents.expression[:26719, :, contents.expression_names.index("jawOpen")]
    chin = contents.landmarks.vertices[8, 0]
    assert jaw[chin, 1] < -10
    smile = contents.expression[:26719, :, contents.expression_names.index("mouthSmileLeft")]
    assert np.linalg.norm(smile[parts == 0], axis=1)[contents.mean[:26719][parts == 0][:, 0] < -40].max() < 0.5
