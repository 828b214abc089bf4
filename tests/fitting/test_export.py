"""Laws of what a fit leaves on disk, on a head of 60 vertices."""

import dataclasses
import json
import struct

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from fitting import export, pictures, texture_map
from fitting.animation import Animation, animate
from fitting.fit import Fit, Settings
from fitting.glb import Skeleton, surface_tangents, write_glb
from fitting.glb_reader import read_glb
from fitting.observation import Photo
from morphable.basis import GaussianBasis
from morphable.landmarks import SurfacePoints
from morphable.mesh import triangulate
from morphable.model import MorphableModel, Provenance
from morphable.rig import Gaze, Rig
from renderer.camera import Pinhole
from renderer.light import ambient_white

UNITS = ("jawOpen", "mouthClose", "mouthSmileLeft", "eyeLookUpLeft", "eyeLookOutLeft", "eyeLookUpRight")
JOINTS, PARENTS = ("neck", "head", "jaw", "eye_left", "eye_right"), (-1, 0, 1, 1, 1)
OCTAHEDRON = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])


@pytest.fixture(scope="module")
def model():
    """A bent sheet for the skin, two octahedra for the eyes."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.linspace(60, -80, 8), np.linspace(-70, 70, 6), indexing="ij")
    skin = np.stack([x, y, 40 - 0.01 * x**2], axis=-1).reshape(-1, 3)
    grid = np.arange(48).reshape(8, 6)
    quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], axis=-1).reshape(-1, 4)
    ball = 12.0 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    eyes = [ball + np.array([side * 31.0, 0, 0]) for side in (1, -1)]
    mean = np.concatenate([skin, *eyes])
    triangles = np.concatenate([triangulate(quads), OCTAHEDRON + 48, OCTAHEDRON + 54])
    part = np.repeat([0, 1, 2], [48, 6, 6])
    expression = np.zeros((60, 3, len(UNITS)))
    expression[24:48, 1, 0] = np.linspace(0, -30, 24)
    expression[30:40, 1, 1] = 10.0
    expression[26:29, :, 2] = rng.normal(size=(3, 3)) * 5
    expression[8:12, 1, 3] = 1.5  # the lid follows the gaze
    weights = np.zeros((60, 5))
    weights[:48, 0] = np.linspace(0.3, 0.7, 48)
    weights[:48, 2] = np.linspace(0, 0.3, 48)
    weights[:48, 1] = 1 - weights[:48].sum(axis=1)
    weights[48:54, 3] = weights[54:, 4] = 1
    joints = np.array([[0, -90, -60], [0, -40, -40], [0, -30, -20], [31, 0, 0], [-31, 0, 0]], float)
    gaze = Gaze(jnp.array([3, 4, 5]), jnp.array([3, 3, 4]), jnp.array([[-0.5, 0.0, 0], [0.0, 0.6, 0], [-0.5, 0.0, 0]]))
    rig = Rig(
        GaussianBasis(jnp.asarray(joints), jnp.asarray(rng.normal(size=(5, 3, 4)))),
        jnp.asarray(weights),
        gaze,
        JOINTS,
        PARENTS,
    )
    return MorphableModel(
        shape=GaussianBasis(jnp.asarray(mean), jnp.asarray(rng.normal(size=(60, 3, 4)))),
        expression=jnp.asarray(expression),
        albedo=GaussianBasis(jnp.full((60, 3), 0.5), jnp.zeros((60, 3, 2))),
        triangles=jnp.asarray(triangles),
        uv=jnp.asarray(rng.uniform(size=(60, 2))),
        landmarks=SurfacePoints(jnp.asarray(triangles[rng.integers(0, 70, 68)]), jnp.full((68, 3), 1 / 3)),
        contour=None,
        rig=rig,
        masks={},
        mirror=jnp.arange(60),
        residual=jnp.zeros((60, 0)),
        proxy_triangles=jnp.asarray(triangles),
        part_of_vertex=jnp.asarray(part),
        expression_names=UNITS,
        part_names=("skin", "eye_left", "eye_right"),
        provenance=Provenance("tiny", "CC0-1.0", "free", "0" * 64),
    )


class _Camera:
    """What exports ask of a pinhole camera."""

    height, width = 400, 300

    def __init__(self):
        self.pose = jaxlie.SE3.from_rotation_and_translation(
            jaxlie.SO3.from_matrix(Rotation.from_euler("xyz", [170, 20, 5], degrees=True).as_matrix()),
            jnp.array([10.0, -20.0, 600.0]),
        )

    def to_opencv(self):
        K = np.array([[800.0, 0, 150], [0, 820.0, 200], [0, 0, 1]])
        return K, np.asarray(self.pose.rotation().as_matrix()), np.asarray(self.pose.translation())


IDENTITY = np.array([0.5, -1.0, 2.0, 0.3], np.float32)


class _Glb:
    """Reads a GLB as the specification says, with nothing of ours: the second opinion of these tests."""

    def __init__(self, path):
        data = path.read_bytes()
        magic, version, length = struct.unpack("<4sII", data[:12])
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack("<I4s", data[12:20])
        assert kind == b"JSON"
        self.json = json.loads(data[20 : 20 + size])
        size_bin, kind = struct.unpack("<I4s", data[20 + size : 28 + size])
        assert kind == b"BIN\0"
        self.bin = data[28 + size : 28 + size + size_bin]

    def _raw(self, view, offset, dtype, shape):
        view = self.json["bufferViews"][view]
        start = view.get("byteOffset", 0) + offset
        return np.frombuffer(self.bin, dtype, int(np.prod(shape)), start).reshape(shape)

    def accessor(self, number):
        a = self.json["accessors"][number]
        dtypes = {5126: "<f4", 5121: "<u1", 5123: "<u2", 5125: "<u4"}
        dtype = dtypes[a["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[a["type"]]
        values = np.zeros((a["count"], width), dtype)
        if "bufferView" in a:
            values = self._raw(a["bufferView"], a.get("byteOffset", 0), dtype, (a["count"], width)).copy()
        if "sparse" in a:
            s = a["sparse"]
            i = s["indices"]
            rows = self._raw(i["bufferView"], i.get("byteOffset", 0), dtypes[i["componentType"]], (s["count"],))
            assert np.all(np.diff(rows.astype(int)) > 0)
            v = s["values"]
            values[rows] = self._raw(v["bufferView"], v.get("byteOffset", 0), dtype, (s["count"], width))
        if "min" in a:
            assert np.array_equal(values.min(axis=0), np.asarray(a["min"], dtype))
            assert np.array_equal(values.max(axis=0), np.asarray(a["max"], dtype))
        return values / np.iinfo(dtype).max if a.get("normalized") else values

    def node(self, name):
        return next(i for i, n in enumerate(self.json["nodes"]) if n.get("name") == name)

    def world(self, rotations):
        """World matrix of every node, with rotation vectors put on named nodes."""
        nodes = self.json["nodes"]
        worlds = {}

        def visit(i, above):
            node = nodes[i]
            local = np.eye(4)
            if "matrix" in node:
                local = np.reshape(node["matrix"], (4, 4)).T
            local[:3, 3] += node.get("translation", [0, 0, 0])
            local[:3, :3] = local[:3, :3] @ Rotation.from_rotvec(rotations.get(node["name"], [0, 0, 0])).as_matrix()
            worlds[i] = above @ local
            for child in node.get("children", []):
                visit(child, worlds[i])

        for root in self.json["scenes"][self.json["scene"]]["nodes"]:
            visit(root, np.eye(4))
        return worlds

    def posed(self, targets, rotations):
        """Vertices (m) of every primitive, morphed and skinned."""
        mesh = self.json["meshes"][0]
        names = mesh["extras"]["targetNames"]
        skin = self.json["skins"][0]
        worlds = self.world(rotations)
        inverse = self.accessor(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        matrices = np.stack([worlds[j] @ b for j, b in zip(skin["joints"], inverse, strict=True)])
        parts = []
        for primitive in mesh["primitives"]:
            attributes = primitive["attributes"]
            points = self.accessor(attributes["POSITION"]).astype(float)
            assert len(primitive["targets"]) == len(names)
            for name, weight in targets.items():
                points = points + weight * self.accessor(primitive["targets"][names.index(name)]["POSITION"])
            blend = np.einsum(
                "vk,vkij->vij",
                self.accessor(attributes["WEIGHTS_0"]),
                matrices[self.accessor(attributes["JOINTS_0"])],
            )
            homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
            parts.append(np.einsum("vij,vj->vi", blend, homogeneous)[:, :3])
        return parts


@pytest.fixture(scope="module")
def glb(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("glb") / "head.glb"
    texture = np.full((16, 16, 3), 128, np.uint8)
    expression = np.linspace(0, 1, len(UNITS)).astype(np.float32)
    export.write_head_glb(path, model, IDENTITY, expression, texture, _Camera())
    return path


@pytest.mark.parametrize("name", UNITS)
def test_glb_morph_targets_and_joints_pose_like_the_model(model, glb, name):
    file = _Glb(glb)
    pose = np.array([[0.1, 0.0, 0.2], [0.0, 0.3, 0.0], [0.4, 0.0, 0.0], [0, 0, 0], [0, 0, 0]])
    weights = {name: 1.0} if name != "mouthClose" else {"mouthClose": 0.8, "jawOpen": 0.9}
    expected = model.vertices(jnp.asarray(IDENTITY), model.weights(**weights), jnp.asarray(pose)) / 1000
    rotations = dict(zip(JOINTS, pose, strict=True))
    got = np.concatenate(file.posed(weights, rotations))
    assert np.abs(got - np.asarray(expected)).max() < 1e-5  # the parts of this head are in file order


def test_glb_at_rest_is_the_neutral_head_in_metres(model, glb):
    got = np.concatenate(_Glb(glb).posed({}, {}))
    assert np.allclose(got, np.asarray(model.neutral(jnp.asarray(IDENTITY))) / 1000, atol=1e-7)


def test_glb_names_its_targets_joints_and_parts_and_opens_in_the_fitted_expression(glb):
    file = _Glb(glb).json
    mesh = file["meshes"][0]
    assert tuple(mesh["extras"]["targetNames"]) == UNITS
    assert np.allclose(mesh["weights"], np.linspace(0, 1, len(UNITS)))
    assert [file["nodes"][j]["name"] for j in file["skins"][0]["joints"]] == list(JOINTS)
    assert [m["name"] for m in file["materials"]] == ["skin", "eye"]
    assert file["asset"]["extras"]["model"]["licence_class"] == "free"


def test_glb_stores_only_what_moves(glb):
    file = _Glb(glb)
    for primitive in file.json["meshes"][0]["primitives"]:
        for target in primitive["targets"]:
            accessor = file.json["accessors"][target["POSITION"]]
            moved = np.abs(file.accessor(target["POSITION"])).max(axis=1) > 0
            assert "bufferView" not in accessor and "byteOffset" not in accessor  # one asks for the other
            assert accessor.get("sparse", {"count": 0})["count"] == moved.sum()


def test_glb_morphed_normals_are_those_of_the_morphed_surface(model, glb):
    file = _Glb(glb)
    skin = file.json["meshes"][0]["primitives"][0]
    k = UNITS.index("jawOpen")
    normals = file.accessor(skin["attributes"]["NORMAL"]) + file.accessor(skin["targets"][k]["NORMAL"])
    mesh = model.instance(jnp.asarray(IDENTITY), model.weights(jawOpen=1.0))
    assert np.abs(normals - np.asarray(mesh.normals)[:48]).max() < 0.07


def test_glb_camera_sees_each_point_where_the_photo_does(model, glb):
    file = _Glb(glb)
    node = file.node("photo_camera")
    camera = file.json["cameras"][file.json["nodes"][node]["camera"]]["perspective"]
    T_camera_head = np.linalg.inv(file.world({})[node])
    points = np.asarray(model.mean)
    seen = points / 1000 @ T_camera_head[:3, :3].T + T_camera_head[:3, 3]
    assert np.all(seen[:, 2] < 0)  # glTF cameras look along -z
    tangent = np.tan(camera["yfov"] / 2)
    x = seen[:, 0] / -seen[:, 2] / tangent / camera["aspectRatio"]
    y = seen[:, 1] / -seen[:, 2] / tangent
    pixels = np.stack([(x + 1) / 2 * _Camera.width, (1 - y) / 2 * _Camera.height], axis=1)
    K, R, t = _Camera().to_opencv()
    expected = (points @ R.T + t) @ K.T
    assert np.allclose(pixels, expected[:, :2] / expected[:, 2:], atol=1e-3)


def test_glb_is_read_by_pygltflib_and_trimesh(model, glb):
    import pygltflib
    import trimesh

    read = pygltflib.GLTF2().load(str(glb))
    assert read is not None and read.meshes[0].extras["targetNames"] == list(UNITS)
    scene = trimesh.load(glb)
    vertices = sum(len(geometry.vertices) for geometry in scene.geometry.values())
    assert vertices == 60
    assert np.allclose(
        scene.extents, np.ptp(np.asarray(model.neutral(jnp.asarray(IDENTITY))), axis=0) / 1000, atol=1e-6
    )


def test_glb_blends_the_parts_that_are_not_opaque_and_no_others(model, tmp_path):
    opacity = np.ones(60)
    opacity[48:54] = np.linspace(0, 0.8, 6)
    groups = export.part_triangles(model)
    mean, triangles, uv = np.asarray(model.mean), np.asarray(model.triangles), np.asarray(model.uv)
    groups = {"skin": groups["skin"], "lashes_left": groups["eye_left"]}
    write_glb(tmp_path / "head.glb", mean, triangles, uv, opacity=opacity, groups=groups)
    file = _Glb(tmp_path / "head.glb")
    skin, lashes = file.json["meshes"][0]["primitives"]
    assert "COLOR_0" not in skin["attributes"]
    assert np.allclose(file.accessor(lashes["attributes"]["COLOR_0"])[:, 3], opacity[48:54], atol=0.003)
    modes = [file.json["materials"][p["material"]].get("alphaMode", "OPAQUE") for p in (skin, lashes)]
    assert modes == ["OPAQUE", "BLEND"]


def test_glb_refuses_a_target_of_another_topology(model, tmp_path):
    with pytest.raises(ValueError, match="morph target smile"):
        write_glb(
            tmp_path / "head.glb",
            np.asarray(model.mean),
            np.asarray(model.triangles),
            np.asarray(model.uv),
            targets={"smile": np.zeros((4, 3))},
        )


def test_skeleton_refuses_a_child_before_its_parent():
    with pytest.raises(ValueError, match="parents before children"):
        Skeleton(("a", "b"), (1, -1), np.zeros((2, 3)), np.zeros((5, 2)))


def test_obj_keeps_vertices_order_and_flips_v_once(model, tmp_path):
    import trimesh

    path = tmp_path / "mesh.obj"
    vertices, uv = np.asarray(model.mean), np.asarray(model.uv)
    groups = export.part_triangles(model)
    export.write_obj(path, vertices, np.asarray(model.triangles), uv, "texture.png", groups)
    lines = path.read_text().splitlines()
    assert "millimetre" in lines[0]
    read = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    assert np.allclose(read, vertices, atol=1e-5)
    flipped = np.array([line.split()[1:] for line in lines if line.startswith("vt ")], float)
    assert np.allclose(flipped, np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1), atol=1e-6)
    faces = np.array([[c.split("/") for c in line.split()[1:]] for line in lines if line.startswith("f ")], int)
    assert np.array_equal(faces[:, :, 0], np.asarray(model.triangles) + 1)
    assert np.array_equal(faces[:, :, 0], faces[:, :, 1]) and np.array_equal(faces[:, :, 0], faces[:, :, 2])
    assert [line for line in lines if line.startswith("g ")] == ["g skin", "g eye_left", "g eye_right"]
    assert "map_Kd texture.png" in path.with_suffix(".mtl").read_text()
    assert len(trimesh.load(path, process=False, force="mesh").faces) == len(model.triangles)


# -- the animation, and the reader ------------------------------------------------------------------------------


TIMES = np.array([0.04, 0.08, 0.2, 0.21, 0.5])  # a variable frame rate


def moving_cameras():
    """The cameras of five frames, for a head that turns and comes nearer."""
    for k in range(5):
        R = Rotation.from_euler("xyz", [180 + 4 * k, 10 * k - 20, 3 * k], degrees=True).as_matrix()
        K = np.array([[800.0, 0, 150], [0, 820.0, 200], [0, 0, 1]])
        yield Pinhole.from_opencv(K, R, np.array([3.0 * k, -5.0, 600.0 - 20 * k]), 400, 300)


@pytest.fixture(scope="module")
def performance(model, tmp_path_factory):
    """An animated file, what it was made from, and it read back."""
    rng = np.random.default_rng(5)
    expression = rng.uniform(0, 1, (5, len(UNITS)))
    joints = rng.normal(size=(5, 5, 3)) * [[[0.1], [0.2], [0.2], [0.0], [0.0]]]
    cameras = list(moving_cameras())
    path = tmp_path_factory.mktemp("glb") / "performance.glb"
    relief = np.full((8, 8, 3), (128, 128, 255), np.uint8)
    animation = animate(model, TIMES, expression, cameras, joints, reference=1)
    export.write_head_glb(path, model, IDENTITY, camera=cameras[1], animation=animation, normal_map=relief)
    return path, expression, joints, cameras, read_glb(path)


def test_each_frame_of_the_animation_is_the_models_head_and_seen_as_its_own_camera_saw_it(model, performance):
    _, expression, joints, cameras, head = performance
    assert np.allclose(head.animation.times, TIMES)
    K, R, t = (np.asarray(a, float) for a in head.camera.to_opencv())
    for k, camera in enumerate(cameras):
        expected = np.asarray(model.vertices(jnp.asarray(IDENTITY), jnp.asarray(expression[k]), jnp.asarray(joints[k])))
        T = head.animation.T_world_head[k]
        assert np.abs(head.frame(k) - (expected @ T[:3, :3].T + T[:3, 3])).max() < 1e-5 * 250  # of the head's size
        seen = (head.frame(k) @ R.T + t) @ K.T
        assert np.allclose(seen[:, :2] / seen[:, 2:], np.asarray(camera.project(jnp.asarray(expected))), atol=2e-3)
    assert np.abs(head.animation.T_world_head[1] - np.eye(4)).max() < 1e-6


def test_the_animated_file_rests_as_the_neutral_head_and_its_weights_still_turn_the_eyes(model, performance):
    *_, head = performance
    identity = jnp.asarray(IDENTITY)
    assert np.allclose(head.posed(), np.asarray(model.neutral(identity)), atol=1e-4)
    expected = np.asarray(model.vertices(identity, model.weights(eyeLookUpRight=1.0, jawOpen=0.5)))
    assert np.abs(head.posed({"eyeLookUpRight": 1.0, "jawOpen": 0.5}) - expected).max() < 1e-5 * 250
    assert list(head.targets) == ["head", "jointed"]
    assert set(head.targets["jointed"]) == {"eyeLookUpLeft", "eyeLookOutLeft", "eyeLookUpRight"}


@pytest.mark.parametrize("seed", range(3))
def test_the_reader_poses_a_still_file_like_the_model(model, glb, seed):
    rng = np.random.default_rng(seed)
    weights = {name: value for name, value in zip(UNITS, rng.uniform(0, 1, len(UNITS)).tolist(), strict=True)}
    weights["mouthClose"] *= weights["jawOpen"]  # a file cannot limit it
    weights = {name: value for name, value in weights.items() if not name.startswith("eyeLook")}  # straight paths
    pose = np.concatenate([rng.normal(size=(3, 3)) * 0.3, rng.normal(size=(2, 3)) * 0.3])
    head = read_glb(glb)
    expected = model.vertices(jnp.asarray(IDENTITY), model.weights(**weights), jnp.asarray(pose))
    got = head.posed(weights, dict(zip(JOINTS, pose, strict=True)))
    assert np.abs(got - np.asarray(expected)).max() < 1e-5 * 250


def test_the_reader_returns_what_was_written(model, glb, performance):
    path, *_, animated = performance
    for head in (read_glb(glb), animated):
        assert np.allclose(head.vertices, np.asarray(model.neutral(jnp.asarray(IDENTITY))), atol=1e-4)
        rows = lambda t: sorted(map(tuple, np.asarray(t).tolist()))  # noqa: E731
        assert rows(head.triangles) == rows(model.triangles)
        assert np.allclose(head.uv, np.asarray(model.uv)) and head.skeleton.names == JOINTS
        assert head.skeleton.parents == PARENTS
        assert np.allclose(head.skeleton.weights, np.asarray(model.rig.weights), atol=2e-5)
    assert np.allclose(list(read_glb(glb).opening.values()), np.linspace(0, 1, len(UNITS)))
    K, R, t = _Camera().to_opencv()
    for got, expected in zip(read_glb(glb).camera.to_opencv(), (K, R, t), strict=True):
        assert np.allclose(got, expected, atol=1e-3)
    assert np.all(animated.images["normal"] == (128, 128, 255)) and read_glb(glb).images["albedo"].shape == (16, 16, 3)


def test_a_camera_that_follows_the_head_is_not_needed_for_an_animation(model, tmp_path):
    expression = np.zeros((2, len(UNITS)))
    export.write_head_glb(
        tmp_path / "a.glb", model, IDENTITY, animation=animate(model, np.array([0.0, 1.0]), expression)
    )
    head = read_glb(tmp_path / "a.glb")
    assert head.camera is None and np.allclose(head.frame(1), head.posed(), atol=1e-4)


def test_tangents_follow_u_in_the_surface_and_their_handedness_points_up_the_map(model):
    vertices, triangles = np.asarray(model.mean)[:48], np.asarray(model.triangles)[:70]
    uv = vertices[:, :2] * [1, -1] / 200 + 0.5  # the sheet seen from the front: u to the right, v down
    normals = np.tile([0.0, 0, 1], (48, 1))
    tangents = surface_tangents(vertices, triangles, uv, normals)
    assert np.allclose(tangents, [1, 0, 0, 1], atol=1e-9)
    mirrored = surface_tangents(vertices, triangles, uv * [-1, 1], normals)
    assert np.allclose(mirrored, [-1, 0, 0, -1], atol=1e-9)


def test_animations_refuse_what_no_player_can_show(model, tmp_path):
    weights = np.zeros((3, len(UNITS)))
    with pytest.raises(ValueError, match="ascending"):
        animate(model, np.array([0.0, 0.1, 0.1]), weights)
    with pytest.raises(ValueError, match=r"frames \[1\] are not finite"):
        animate(model, np.array([0.0, np.nan, 0.1]), weights)
    with pytest.raises(ValueError, match="a weight for each frame"):
        animate(model, np.array([0.0, 0.1, 0.2]), weights[:, :3])
    with pytest.raises(ValueError, match="one camera for each frame"):
        animate(model, np.array([0.0, 0.1, 0.2]), weights, cameras=[_Camera()])
    with pytest.raises(ValueError, match="at least one"):
        animate(model, np.zeros(0), weights[:0])
    alien = Animation(np.zeros(1), ("wink",), np.zeros((1, 1)), (), np.zeros((1, 0, 3)), np.eye(4)[None])
    with pytest.raises(ValueError, match="wink"):
        export.write_head_glb(tmp_path / "head.glb", model, IDENTITY, animation=alien)


def test_the_reader_names_a_file_that_it_cannot_read(glb, tmp_path):
    (tmp_path / "picture.glb").write_bytes(b"\x89PNG....")
    with pytest.raises(ValueError, match="picture.glb: not a binary glTF"):
        read_glb(tmp_path / "picture.glb")
    (tmp_path / "half.glb").write_bytes(glb.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="half.glb: broken"):
        read_glb(tmp_path / "half.glb")
    spoilt = glb.read_bytes().replace(b"\xff\xd8\xff", b"\x00\x00\x00")  # the JPEG's first bytes
    (tmp_path / "spoilt.glb").write_bytes(spoilt)
    with pytest.raises(ValueError, match="spoilt.glb: .*image 0"):
        read_glb(tmp_path / "spoilt.glb")
    with pytest.raises(ValueError, match="wink"):
        read_glb(glb).posed({"wink": 1.0})


# -- fit.npz and fit.json ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fit(model):
    lookalike = _Camera()
    K, R, t = lookalike.to_opencv()
    return Fit(
        model=model,
        camera=Pinhole.from_opencv(K, R, t, lookalike.height, lookalike.width),
        identity=IDENTITY,
        expression=np.asarray(model.weights(jawOpen=0.3)),
        albedo=np.zeros(2, np.float32),
        light=np.asarray(ambient_white()),
        detected=np.full((68, 2), 100, np.float32),
        source="dlib",
        result="converged",
        reason="",
        energies={"landmarks": 3.5, "photometric": float("nan")},
        stages=[{"name": "pose", "steps": np.int64(4)}],
        timings={"fit": 0.2},
        settings=Settings(),
        hessian=np.zeros((1, 1), np.float32),
    )


def test_fit_arrays_have_the_promised_names_shapes_and_type(fit, model):
    for count in (1, 3):
        arrays = export.fit_arrays([fit] * count)
        assert {name: a.shape for name, a in arrays.items()} == {
            "vertices": (60, 3),
            "neutral_vertices": (60, 3),
            "triangles": (len(model.triangles), 3),
            "landmarks3d": (68, 3),
            "neutral_landmarks3d": (68, 3),
            "landmarks2d": (count, 68, 2),
            "matched2d": (count, 68, 2),
            "K": (count, 3, 3),
            "R": (count, 3, 3),
            "t": (count, 3),
            "identity": (4,),
            "expression": (count, len(UNITS)),
            "albedo": (2,),
            "light": (count, 9, 3),
            "mean_vertices": (60, 3),
            "mean_landmarks3d": (68, 3),
        }
        assert {a.dtype for name, a in arrays.items() if name != "triangles"} == {np.dtype(np.float32)}


def test_fit_record_is_strict_json_that_names_the_model(fit):
    record = export.fit_record(fit, settings={"focal_px": None}, detection={"box": (1, 2, 3, 4)})
    read = json.loads(json.dumps(record, allow_nan=False))
    assert read["format"] == "facefit-fit" and read["version"] == 1
    assert read["model"]["licence"] == "CC0-1.0" and read["model"]["sha256"] == "0" * 64
    assert read["energies"] == {"landmarks": 3.5, "photometric": None}
    assert read["stages"] == [{"name": "pose", "steps": 4}]
    assert read["detection"] == {"landmarks": "dlib", "box": [1, 2, 3, 4]}
    assert read["settings"]["image_size"] == 256 and read["settings"]["focal_px"] is None
    assert read["photo"]["width"] == 300 and read["photo"]["height"] == 400
    assert read["result"] == "converged" and read["timings"]["fit"] == 0.2


RESULTS = {
    "fit.npz",
    "fit.json",
    "mesh.obj",
    "mesh.mtl",
    "neutral.obj",
    "neutral.mtl",
    "texture.png",
    "head.glb",
    "render.png",
    "overlay.png",
    "turntable.png",
}


def test_results_are_complete_and_agree_with_each_other(fit, model, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_SIZES", (64,))
    monkeypatch.setattr(texture_map, "_CROP", 64)
    photo = Photo(np.full((400, 300, 3), 120, np.uint8))
    export.save_results(tmp_path / "out", fit, photo, settings={"model": tmp_path}, texture_size=32)
    assert {p.name for p in tmp_path.joinpath("out").iterdir()} == RESULTS
    arrays = np.load(tmp_path / "out" / "fit.npz", allow_pickle=False)
    lines = (tmp_path / "out" / "mesh.obj").read_text().splitlines()
    assert np.allclose(
        np.array([x.split()[1:] for x in lines if x.startswith("v ")], float), arrays["vertices"], atol=1e-5
    )
    glb = np.concatenate(_Glb(tmp_path / "out" / "head.glb").posed({}, {}))
    assert np.allclose(glb, arrays["neutral_vertices"] / 1000, atol=1e-6)
    weights = dict(zip(UNITS, arrays["expression"][0].tolist(), strict=True))
    glb = np.concatenate(_Glb(tmp_path / "out" / "head.glb").posed(weights, {}))
    assert np.allclose(glb, arrays["vertices"] / 1000, atol=1e-5)
    K, R, t = arrays["K"][0], arrays["R"][0], arrays["t"][0]
    seen = (arrays["landmarks3d"] @ R.T + t) @ K.T
    assert np.allclose(seen[:, :2] / seen[:, 2:], arrays["landmarks2d"][0], atol=1e-3)
    with Image.open(tmp_path / "out" / "render.png") as picture:
        assert picture.size == (300, 400)
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["settings"]["model"] == str(tmp_path)


def test_results_of_a_fit_that_is_not_finite_are_its_record_alone(fit, tmp_path):
    broken = dataclasses.replace(fit, identity=np.full(4, np.nan, np.float32), result="failed", reason="not finite")
    export.save_results(tmp_path / "out", broken, Photo(np.zeros((400, 300, 3), np.uint8)))
    assert {p.name for p in tmp_path.joinpath("out").iterdir()} == {"fit.npz", "fit.json"}
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["reason"] == "not finite"
