"""A .glb of a head read back into arrays, and posed in NumPy as the glTF specification says: nothing in it is run."""

import dataclasses
import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from scipy.spatial.transform import Rotation

from fitting.animation import Animation
from fitting.glb import HEAD_POSE, VERTEX_ID, Skeleton
from renderer.camera import Pinhole

_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_MM = 1000.0
_MOST_ROWS = 20_000_000  # a sparse accessor may claim any number of rows in a few bytes


@dataclasses.dataclass(frozen=True)
class RiggedHead:
    """A head as a file holds it, in millimetres and in the vertex order of the model that it was written from.

    Files of other programs, which do not number their vertices, keep the order of their primitives.
    """

    vertices: Float[np.ndarray, "vertex 3"]  # at rest
    triangles: Int[np.ndarray, "triangle 3"]
    uv: Float[np.ndarray, "vertex 2"]
    normals: Float[np.ndarray, "vertex 3"]
    targets: Mapping[str, Mapping[str, Float[np.ndarray, "vertex 3"]]]  # mesh -> unit -> displacement at weight 1
    skeleton: Skeleton | None
    T_joint_head: Float[np.ndarray, "joint 4 4"]  # inverse bind matrices
    T_parent_joint: Float[np.ndarray, "joint 4 4"]  # at rest
    T_world_head: Float[np.ndarray, "4 4"]  # what stands above the skeleton's root, at rest
    opening: Mapping[str, float]  # the weights that the file opens with
    camera: Pinhole | None  # T_camera_world
    animation: Animation | None
    images: Mapping[str, np.ndarray]  # by name, uint8

    def posed(
        self,
        weights: Mapping[str, float] | None = None,
        rotations: Mapping[str, Float[np.ndarray, "3"]] | None = None,
        T_world_head: Float[np.ndarray, "4 4"] | None = None,
        meshes: Sequence[str] | None = None,
    ) -> Float[np.ndarray, "vertex 3"]:
        """Vertices in the world (mm): morphed, then skinned.

        `weights` of named units, in all meshes that have them or only in `meshes`; `rotations` of named joints as
        rotation vectors (rad) in the axes of their parents; `T_world_head` moves the whole. Raises ValueError for names
        that the file does not have.
        """
        weights, rotations = weights or {}, rotations or {}
        chosen = [self.targets[mesh] for mesh in (self.targets if meshes is None else meshes)]
        unknown = [name for name in weights if not any(name in targets for targets in chosen)]
        joints = () if self.skeleton is None else self.skeleton.names
        unknown += [name for name in rotations if name not in joints]
        if unknown:
            units = sorted({name for targets in chosen for name in targets})
            raise ValueError(f"posed: {unknown} are neither units nor joints; the file has {units} and {list(joints)}.")
        points = self.vertices.astype(np.float64)
        for targets in chosen:
            for name, weight in weights.items():
                if name in targets and weight:
                    points = points + weight * targets[name]
        root = self.T_world_head if T_world_head is None else np.asarray(T_world_head, np.float64)
        if self.skeleton is None:
            return points @ root[:3, :3].T + root[:3, 3]
        worlds = []
        for name, parent, local in zip(joints, self.skeleton.parents, self.T_parent_joint, strict=True):
            turned = local.copy()
            if name in rotations:
                turned[:3, :3] = local[:3, :3] @ Rotation.from_rotvec(rotations[name]).as_matrix()
            worlds.append((root if parent < 0 else worlds[parent]) @ turned)
        matrices = np.stack(worlds) @ self.T_joint_head
        blended = np.einsum("vj,jik->vik", self.skeleton.weights, matrices)
        return np.einsum("vik,vk->vi", blended[:, :3, :3], points) + blended[:, :3, 3]

    def frame(self, number: int) -> Float[np.ndarray, "vertex 3"]:
        """Vertices in the world (mm) at a key of the animation, as a player shows them."""
        animation = self.animation
        if animation is None:
            raise ValueError("frame: this file has no animation; use posed.")
        return self.posed(
            dict(zip(animation.units, animation.weights[number].tolist(), strict=True)),
            dict(zip(animation.joints, animation.rotations[number], strict=True)),
            animation.T_world_head[number],
            meshes=list(self.targets)[:1],
        )


def read_glb(path: str | Path) -> RiggedHead:
    """Read a head that `write_glb` wrote: arrays, rig, maps, camera and animation.

    Raises ValueError, with the file's name, for what is no binary glTF or is broken, and OSError for what cannot be
    read. A file of another program is read as far as it has one skin at most and keys without splines.
    """
    import pygltflib

    path = Path(path)
    head = path.read_bytes()[:4]
    if head != b"glTF":
        raise ValueError(f"{path}: not a binary glTF, begins with {head!r}, expected b'glTF'. Export it as .glb.")
    try:
        gltf: Any = pygltflib.GLTF2().load_binary(str(path))
        return _head(gltf, gltf.binary_blob() or b"")
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: broken or unusual glTF ({type(error).__name__}: {error}). Write it anew.") from error


def _head(gltf: Any, blob: bytes) -> RiggedHead:
    accessor = lambda number: _accessor(gltf, blob, number)  # noqa: E731
    shown = [node for node in gltf.nodes if node.mesh is not None]
    if not shown:
        raise ValueError("the file has no mesh")
    skinned = shown[0].skin is not None
    points, normals, uv, triangles, joints, weights, ids = [], [], [], [], [], [], []
    spans: dict[str, list[tuple[slice, Any, list[str]]]] = {}
    total = 0
    for node in shown:
        mesh = gltf.meshes[node.mesh]
        names = list((mesh.extras or {}).get("targetNames", []))
        for primitive in mesh.primitives:
            a = primitive.attributes
            points.append(accessor(a.POSITION))
            count = len(points[-1])
            normals.append(accessor(a.NORMAL))
            uv.append(accessor(a.TEXCOORD_0))
            triangles.append(accessor(primitive.indices).reshape(-1, 3).astype(np.int64) + total)
            given = getattr(a, VERTEX_ID, None)
            ids.append(np.arange(count) + total if given is None else accessor(given)[:, 0].astype(np.int64))
            if skinned:
                joints.append(accessor(a.JOINTS_0).astype(np.int64))
                weights.append(accessor(a.WEIGHTS_0).astype(np.float64))
            spans.setdefault(mesh.name or f"mesh_{node.mesh}", []).append(
                (slice(total, total + count), primitive.targets or [], names)
            )
            total += count
    _, order, compact = np.unique(np.concatenate(ids), return_index=True, return_inverse=True)
    targets = {}
    for mesh_name, parts in spans.items():
        targets[mesh_name] = {}
        for k, unit in enumerate(parts[0][2]):
            moved = np.zeros((total, 3), np.float32)
            for where, morphs, _ in parts:
                moved[where] = accessor(morphs[k]["POSITION"] if isinstance(morphs[k], dict) else morphs[k].POSITION)
            targets[mesh_name][unit] = _MM * moved[order].astype(np.float64)
    parents = {child: k for k, node in enumerate(gltf.nodes) for child in node.children or []}
    skeleton, T_joint_head, T_parent_joint, above = None, np.zeros((0, 4, 4)), np.zeros((0, 4, 4)), np.eye(4)
    if skinned:
        skin = gltf.skins[shown[0].skin]
        numbers = list(skin.joints)
        T_joint_head = _matrices(accessor(skin.inverseBindMatrices))
        T_parent_joint = np.stack([_local(gltf.nodes[k]) for k in numbers])
        tree = tuple(numbers.index(parents[k]) if parents.get(k) in numbers else -1 for k in numbers)
        above = _world(gltf, parents, parents.get(numbers[tree.index(-1)]))
        shares = np.zeros((total, len(numbers)))
        for k in range(4):
            shares[np.arange(total), np.concatenate(joints)[:, k]] += np.concatenate(weights)[:, k]
        skeleton = Skeleton(
            tuple(gltf.nodes[k].name for k in numbers),
            tree,
            np.linalg.inv(T_joint_head)[:, :3, 3],
            shares[order],
        )
    else:
        above = _world(gltf, parents, next(k for k, node in enumerate(gltf.nodes) if node is shown[0]))
    mesh = gltf.meshes[shown[0].mesh]
    first = next(iter(targets.values()))
    return RiggedHead(
        vertices=_MM * np.concatenate(points)[order].astype(np.float64),
        triangles=compact[np.concatenate(triangles)],
        uv=np.concatenate(uv)[order],
        normals=np.concatenate(normals)[order],
        targets=targets,
        skeleton=skeleton,
        T_joint_head=T_joint_head,
        T_parent_joint=T_parent_joint,
        T_world_head=above,
        opening=dict(zip(first, mesh.weights or [0.0] * len(first), strict=True)),
        camera=_camera(gltf, parents),
        animation=_animation(gltf, accessor, tuple(first), skeleton),
        images=_images(gltf, blob),
    )


def _bytes(gltf: Any, blob: bytes, view: int) -> bytes:
    v = gltf.bufferViews[view]
    start = v.byteOffset or 0
    if start < 0 or v.byteLength < 0 or start + v.byteLength > len(blob):
        raise ValueError(f"view {view} goes from byte {start} to {start + v.byteLength} of {len(blob)}: is it cut off?")
    return blob[start : start + v.byteLength]


def _accessor(gltf: Any, blob: bytes, number: int) -> np.ndarray:
    """The rows of an accessor; integers that stand for fractions become those."""
    a = gltf.accessors[number]
    dtype, width = np.dtype(_TYPES[a.componentType]), _WIDTHS[a.type]
    if not 0 <= a.count <= _MOST_ROWS:
        raise ValueError(f"accessor {number} has {a.count} rows, expected 0 to {_MOST_ROWS}")
    values = np.zeros((a.count, width), dtype)
    if a.bufferView is not None:
        stride = gltf.bufferViews[a.bufferView].byteStride or dtype.itemsize * width
        offset = a.byteOffset or 0
        data = _bytes(gltf, blob, a.bufferView)[offset:]
        if offset < 0 or stride < 0 or (a.count - 1) * stride + dtype.itemsize * width > len(data):
            raise ValueError(
                f"accessor {number} wants {a.count} rows of {stride} bytes, its view has {len(data)} bytes"
            )
        values = np.ndarray((a.count, width), dtype, data, strides=(stride, dtype.itemsize)).copy()
    if a.sparse is not None:
        i, v = a.sparse.indices, a.sparse.values
        rows = np.frombuffer(
            _bytes(gltf, blob, i.bufferView), _TYPES[i.componentType], a.sparse.count, i.byteOffset or 0
        )
        stored = np.frombuffer(_bytes(gltf, blob, v.bufferView), dtype, a.sparse.count * width, v.byteOffset or 0)
        values[rows] = stored.reshape(-1, width)
    if a.normalized:
        return np.maximum(values / np.float64(np.iinfo(dtype).max), -1.0)
    return values


def _matrices(columns: np.ndarray) -> Float[np.ndarray, "joint 4 4"]:
    """glTF's columns in metres as matrices in millimetres."""
    matrices = columns.astype(np.float64).reshape(-1, 4, 4).transpose(0, 2, 1).copy()
    matrices[:, :3, 3] *= _MM
    return matrices


def _local(node: Any) -> Float[np.ndarray, "4 4"]:
    """T_parent_node at rest, mm."""
    if node.matrix is not None:
        return _matrices(np.asarray(node.matrix)[None])[0]
    matrix = np.eye(4)
    if node.rotation is not None:
        matrix[:3, :3] = Rotation.from_quat(node.rotation).as_matrix()
    if node.scale is not None:
        matrix[:3, :3] = matrix[:3, :3] * np.asarray(node.scale)
    if node.translation is not None:
        matrix[:3, 3] = _MM * np.asarray(node.translation)
    return matrix


def _world(gltf: Any, parents: Mapping[int, int], number: int | None) -> Float[np.ndarray, "4 4"]:
    matrix = np.eye(4)
    for _ in range(len(gltf.nodes)):  # a loop in a broken file must end
        if number is None:
            return matrix
        matrix = _local(gltf.nodes[number]) @ matrix
        number = parents.get(number)
    if number is None:
        return matrix
    raise ValueError("the nodes form a loop")


def _camera(gltf: Any, parents: Mapping[int, int]) -> Pinhole | None:
    for number, node in enumerate(gltf.nodes):
        extras = {} if node.camera is None else gltf.cameras[node.camera].extras or {}
        if {"K", "width", "height"} <= set(extras):
            T_camera_world = np.diag([1.0, -1.0, -1.0, 1.0]) @ np.linalg.inv(_world(gltf, parents, number))
            K = np.asarray(extras["K"], np.float64)
            size = int(extras["height"]), int(extras["width"])
            return Pinhole.from_opencv(K, T_camera_world[:3, :3], T_camera_world[:3, 3], *size)
    return None


def _animation(gltf: Any, accessor: Any, units: tuple[str, ...], skeleton: Skeleton | None) -> Animation | None:
    if not gltf.animations:
        return None
    clip = gltf.animations[0]
    joints = () if skeleton is None else skeleton.names
    times = accessor(clip.samplers[clip.channels[0].sampler].input)[:, 0].astype(np.float64)
    weights, rotations = np.zeros((len(times), len(units))), np.zeros((len(times), len(joints), 3))
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    for channel in clip.channels:
        sampler = clip.samplers[channel.sampler]
        node, path = gltf.nodes[channel.target.node], channel.target.path
        if sampler.interpolation not in (None, "LINEAR"):
            raise ValueError(f"the animation of {node.name} has {sampler.interpolation} keys, expected LINEAR")
        values = accessor(sampler.output).astype(np.float64)
        if path == "weights":
            weights = values.reshape(len(times), len(units))
        elif path == "rotation" and node.name in joints:
            rotations[:, joints.index(node.name)] = Rotation.from_quat(values).as_rotvec()
        elif node.name == HEAD_POSE and path == "rotation":
            poses[:, :3, :3] = Rotation.from_quat(values).as_matrix()
        elif node.name == HEAD_POSE and path == "translation":
            poses[:, :3, 3] = _MM * values
        else:
            raise ValueError(f"the animation moves {path} of {node.name}, expected weights, joints and {HEAD_POSE}")
    return Animation(times, units, weights, joints, rotations, poses)


def _images(gltf: Any, blob: bytes) -> dict[str, np.ndarray]:
    images = {}
    for number, image in enumerate(gltf.images or []):
        data = io.BytesIO(_bytes(gltf, blob, image.bufferView))
        try:
            with Image.open(data) as picture:
                images[image.name or f"image_{number}"] = np.asarray(picture.convert("RGB"))
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"image {number}: {error}") from error
    return images
