"""One binary glTF of a head: skinned, with named morph targets, its maps inside, the photo's camera, and an animation.

Head space has glTF's axes already (+x subject's left, +y up, +z out of the face) and UV its origin (top
left); glTF counts in metres, so lengths are divided by 1000 here and nowhere else.
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.spatial.transform import Rotation

from fitting.animation import Animation, continuous_quaternions

_MILLIMETRES_PER_METRE = 1000.0
# Displacements below this are left out: all 52 of them together stay below a hundredth of a millimetre. A normal
# turned by less than four degrees is not worth its bytes.
_STILL_MM, _TURNED = 1e-4, 0.07
HEAD_POSE = "head_pose"  # the node above the skeleton that an animation moves through the world
VERTEX_ID = "_VERTEX_ID"  # each point's number in the arrays that were written: primitives have an order of their own

# What a program must do with wrinkle maps, in the words that the files themselves carry.
ACTIVATION = "clip(sum(weight of blendshape * blendshape), 0, 1)"
BLENDING = (
    "decode each map to n = (255 * texel - 128) / 127; slopes of all maps add: "
    "normalize(sum(activation * n.xy / n.z), 1), the normal map itself at activation 1"
)

# glTF 2.0 enumerations (section 5 of the specification)
_BYTE_TYPES = {"f4": 5126, "u1": 5121, "u2": 5123, "u4": 5125}
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """Joints in head space (mm) at rest, all of them unrotated, and the share of each in every vertex."""

    names: tuple[str, ...]
    parents: tuple[int, ...]  # -1 marks the root; a parent stands before its children
    joints: Float[np.ndarray, "joint 3"]
    weights: Float[np.ndarray, "vertex joint"]  # rows sum to 1

    def __post_init__(self):
        count = len(self.names)
        if len(self.parents) != count or self.joints.shape != (count, 3) or self.weights.shape[1] != count:
            raise ValueError(
                f"skeleton: {count} names, {len(self.parents)} parents, joints {self.joints.shape}, weights "
                f"{self.weights.shape}; expected a parent, a position and a weight column for each."
            )
        if list(self.parents).count(-1) != 1 or any(p >= i for i, p in enumerate(self.parents)):
            raise ValueError(f"skeleton: parents {self.parents}; expected one root (-1) and parents before children.")


@dataclasses.dataclass(frozen=True)
class JointedParts:
    """Parts that joints alone move while an animation plays, such as eyeballs, which turn and do not stretch.

    They become a mesh of their own. Its morph targets, straight stand-ins for the joints' rotations, serve whoever sets
    weights by hand; the animation leaves them at 0.
    """

    parts: tuple[str, ...]
    targets: Mapping[str, np.ndarray]  # displacement of every vertex, mm at weight 1


class WrinkleMap(NamedTuple):
    """Wrinkles that expressions bring out, as a normal map of the skin whose slopes are added to the normal map's.

    Its share is the sum of the weights times the blendshapes', within [0, 1].
    """

    name: str
    normal_map: UInt8[np.ndarray, "row column 3"]  # tangent space, at share 1
    blendshapes: Mapping[str, float]  # by name, >= 0


# How each part answers light: roughness, and whether its back is seen (lashes are sheets; the skin ends
# in an open collar). Names are matched by their beginning, so lashes_left and lashes_right share one
# material.
_MATERIALS = {
    "skin": {"roughness": 0.6, "double_sided": True},
    "eye": {"roughness": 0.2, "double_sided": False},
    "teeth": {"roughness": 0.3, "double_sided": False},
    "tongue": {"roughness": 0.45, "double_sided": False},
    "lashes": {"roughness": 0.9, "double_sided": True},
}


def write_glb(
    path: str | Path,
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    uv: Float[np.ndarray, "vertex 2"],
    *,
    texture: UInt8[np.ndarray, "height width 3"] | None = None,
    normal_map: UInt8[np.ndarray, "map_height map_width 3"] | None = None,
    wrinkle_maps: Sequence[WrinkleMap] = (),
    opacity: Float[np.ndarray, " vertex"] | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    targets: Mapping[str, np.ndarray] | None = None,
    target_weights: Mapping[str, float] | None = None,
    skeleton: Skeleton | None = None,
    camera: Any = None,
    animation: Animation | None = None,
    jointed: JointedParts | None = None,
    generator: str = "facefit",
    copyright: str | None = None,
    extras: Mapping[str, Any] | None = None,
    jpeg_quality: int = 90,
    morph_normals: bool = True,
) -> None:
    """Write one binary glTF: a skinned mesh with named morph targets, its maps inside, the photo's camera, and what
    the head does over time.

    `groups` (part name -> triangle indices) become primitives with a material each; where their `opacity` is
    below 1 they are blended. `normal_map` (tangent space, see `fitting.normal_map`) is the skin's, and so are the
    `wrinkle_maps`: textures that the material's extras name, since glTF has no normal maps driven by weights. `targets`
    maps a blendshape to the displacement of every vertex (mm) at weight 1; only moved vertices are stored.
    `target_weights` are the weights the file opens with. `camera` is a pinhole camera with `to_opencv()`,
    `height` and `width`; glTF has no principal point, so the file's camera looks along the axis and the
    exact K stands in its extras.

    With an `animation` the camera stands still, and the node `head_pose` above the skeleton moves; the file rests as
    without it, so in head space. The groups named by `jointed` become a second mesh, which the animation's weights do
    not move. Raises ValueError for arrays that do not fit each other, and for units or joints of the animation that
    the file does not have.
    """
    import pygltflib as g

    vertices = np.asarray(vertices, np.float64)
    groups = groups or {"skin": np.arange(len(triangles))}
    targets = {name: np.asarray(value, np.float64) for name, value in (targets or {}).items()}
    apart = {} if jointed is None else {name: np.asarray(v, np.float64) for name, v in jointed.targets.items()}
    for name, value in [*targets.items(), *apart.items()]:
        if value.shape != vertices.shape:
            raise ValueError(
                f"morph target {name}: shape {value.shape}, expected that of the vertices {vertices.shape}."
            )
    unknown = sorted({name for wrinkle in wrinkle_maps for name in wrinkle.blendshapes} - set(targets))
    if unknown:
        raise ValueError(f"wrinkle maps: blendshapes {unknown} are not among the file's {list(targets)}.")
    if animation is not None:
        _check_animation(animation, tuple(targets), () if skeleton is None else skeleton.names)

    file = _GlbBuilder(g)
    image = None if texture is None else file.texture("albedo", _jpeg(texture, jpeg_quality), "image/jpeg")
    relief = None if normal_map is None else file.texture("normal", _png(normal_map), "image/png")
    file.wrinkles(wrinkle_maps)
    normals = surface_normals(vertices, triangles)
    bent = normal_map is not None or wrinkle_maps
    tangents = surface_tangents(vertices, triangles, uv, normals) if bent else None
    shape = _Shape(vertices, triangles, uv, normals, tangents, opacity, skeleton, morph_normals)
    own = set() if jointed is None else set(jointed.parts)
    file.mesh("head", shape, {k: v for k, v in groups.items() if k not in own}, targets, target_weights, image, relief)
    if own:
        file.mesh("jointed", shape, {k: v for k, v in groups.items() if k in own}, apart, None, image, relief)

    roots = list(range(len(file.gltf.nodes)))
    if animation is not None:  # a skinned mesh stays where its joints are: only a plain one is moved by its parent
        still = roots if skeleton is not None else []
        children = [file.skin(skeleton)] if skeleton is not None else roots
        file.gltf.nodes.append(g.Node(name=HEAD_POSE, children=children))
        roots = [*still, len(file.gltf.nodes) - 1]
    elif skeleton is not None:
        roots.append(file.skin(skeleton))
    if camera is not None:
        roots.append(file.camera(camera))
    if animation is not None:
        file.animation(animation, tuple(targets))
    file.gltf.scenes.append(g.Scene(name="facefit", nodes=roots))
    file.gltf.scene = 0
    file.gltf.asset = g.Asset(version="2.0", generator=generator, copyright=copyright)
    if extras:
        file.gltf.asset.extras = dict(extras)
    file.save(path)


def _check_animation(animation: Animation, targets: tuple[str, ...], joints: tuple[str, ...]) -> None:
    for what, wanted, there in (("units", animation.units, targets), ("joints", animation.joints, joints)):
        missing = [name for name in wanted if name not in there]
        if missing:
            raise ValueError(f"animation: {what} {missing} are not among the file's {list(there)}.")


class _Shape(NamedTuple):
    """The arrays of all vertices, from which every primitive takes its own."""

    vertices: Float[np.ndarray, "vertex 3"]
    triangles: Int[np.ndarray, "triangle 3"]
    uv: Float[np.ndarray, "vertex 2"]
    normals: Float[np.ndarray, "vertex 3"]
    tangents: Float[np.ndarray, "vertex 4"] | None
    opacity: Float[np.ndarray, " vertex"] | None
    skeleton: Skeleton | None
    morph_normals: bool


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")  # JPEG's blocks would show as dents
    return stream.getvalue()


def _metres(millimetres: np.ndarray) -> np.ndarray:
    return millimetres / _MILLIMETRES_PER_METRE


def _four_influences(
    weights: Float[np.ndarray, "vertex joint"],
) -> tuple[UInt8[np.ndarray, "vertex 4"], np.ndarray]:
    """The four strongest joints of each vertex, and their weights in 1/65535 summing to exactly 1."""
    padded = np.pad(np.asarray(weights, np.float64), ((0, 0), (0, max(0, 4 - weights.shape[1]))))
    joints = np.argsort(-padded, axis=1, kind="stable")[:, :4]
    strongest = np.take_along_axis(padded, joints, axis=1)
    strongest = np.maximum(strongest, 0) / strongest.sum(axis=1, keepdims=True)
    units = np.rint(strongest * 65535).astype(np.int64)
    units[:, 0] += 65535 - units.sum(axis=1)
    joints = np.where(units > 0, joints, 0)  # the validator asks that an unused slot names joint 0
    return joints.astype(np.uint8), units.astype(np.uint16)


class _GlbBuilder:
    """Collects the arrays of a GLB in its one buffer, and the accessors that describe them."""

    def __init__(self, g):
        self.g = g
        self.gltf = g.GLTF2()
        self.blob = bytearray()
        self.zero: dict[int, int] = {}  # row count -> accessor of that many zero vectors
        self.sparse_parts: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.skin_extras: dict[str, Any] = {}

    def view(self, data: bytes, target: int | None = None) -> int:
        self.blob.extend(b"\0" * (-len(self.blob) % 4))
        view = self.g.BufferView(buffer=0, byteOffset=len(self.blob), byteLength=len(data), target=target)
        self.blob.extend(data)
        self.gltf.bufferViews.append(view)
        return len(self.gltf.bufferViews) - 1

    def accessor(
        self,
        values: np.ndarray,
        kind: str,
        bounds: bool = False,
        normalized: bool = False,
        target: int | None = None,
    ) -> int:
        values = np.ascontiguousarray(values, np.dtype("<" + kind))
        shape = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}[values.shape[1]]
        accessor = self.g.Accessor(
            bufferView=self.view(values.tobytes(), target),
            byteOffset=0,
            componentType=_BYTE_TYPES[kind],
            count=len(values),
            type=shape,
        )
        if normalized:
            accessor.normalized = True
        if bounds:
            accessor.min, accessor.max = values.min(axis=0).tolist(), values.max(axis=0).tolist()
        return self._add(accessor)

    def sparse(self, values: Float[np.ndarray, "row 3"], rows: Int[np.ndarray, "stored"]) -> int:
        """An accessor that is zero except in `rows`; without any, all primitives of that size share one."""
        count = len(values)
        if len(rows) == 0:
            if count not in self.zero:
                nothing = self.g.Accessor(componentType=_BYTE_TYPES["f4"], count=count, type="VEC3", byteOffset=None)
                nothing.min, nothing.max = [0.0] * 3, [0.0] * 3
                self.zero[count] = self._add(nothing)
            return self.zero[count]
        stored = np.ascontiguousarray(values[rows], "<f4")
        low, high = stored.min(axis=0), stored.max(axis=0)
        if len(rows) < count:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        accessor = self.g.Accessor(componentType=_BYTE_TYPES["f4"], count=count, type="VEC3", byteOffset=None)
        accessor.min, accessor.max = low.tolist(), high.tolist()
        number = self._add(accessor)
        self.sparse_parts.append((number, rows, stored))
        return number

    def _add(self, accessor) -> int:
        self.gltf.accessors.append(accessor)
        return len(self.gltf.accessors) - 1

    def _pack_sparse(self) -> None:
        """All sparse rows in one view and all their values in another: a hundred views fewer in the JSON."""
        if not self.sparse_parts:
            return
        g = self.g
        index_type = "u2" if all(rows[-1] < 65536 for _, rows, _ in self.sparse_parts) else "u4"
        indices, values = bytearray(), bytearray()
        for number, rows, stored in self.sparse_parts:
            indices.extend(b"\0" * (-len(indices) % 4))
            self.gltf.accessors[number].sparse = g.Sparse(
                count=len(rows),
                indices=g.AccessorSparseIndices(byteOffset=len(indices), componentType=_BYTE_TYPES[index_type]),
                values=g.AccessorSparseValues(byteOffset=len(values)),
            )
            indices.extend(rows.astype("<" + index_type).tobytes())
            values.extend(stored.tobytes())
        index_view, value_view = self.view(bytes(indices)), self.view(bytes(values))
        for number, _, _ in self.sparse_parts:
            sparse = self.gltf.accessors[number].sparse
            sparse.indices.bufferView, sparse.values.bufferView = index_view, value_view

    def mesh(
        self,
        name: str,
        shape: _Shape,
        groups: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        opening: Mapping[str, float] | None,
        image: int | None,
        relief: int | None,
    ) -> None:
        """A mesh with a primitive for each group, and the node that shows it."""
        g = self.g
        normal_changes = {}
        if shape.morph_normals:
            for target, value in targets.items():
                normal_changes[target] = surface_normals(shape.vertices + value, shape.triangles) - shape.normals
        primitives = []
        for part, chosen in groups.items():
            used, local = np.unique(shape.triangles[chosen], return_inverse=True)
            if len(used) == 0:
                continue
            kind = next((k for k in _MATERIALS if part.startswith(k)), "skin")
            blended = shape.opacity is not None and float(shape.opacity[used].min()) < 1.0
            attributes = g.Attributes(
                POSITION=self.accessor(_metres(shape.vertices[used]), "f4", bounds=True, target=_ARRAY_BUFFER),
                NORMAL=self.accessor(shape.normals[used], "f4", target=_ARRAY_BUFFER),
                TEXCOORD_0=self.accessor(shape.uv[used], "f4", target=_ARRAY_BUFFER),
            )
            if shape.tangents is not None and kind == "skin":
                attributes.TANGENT = self.accessor(shape.tangents[used], "f4", target=_ARRAY_BUFFER)
            # float, since glTF has no 32-bit integers for vertices; exact up to 16 million of them
            setattr(attributes, VERTEX_ID, self.accessor(used[:, None], "f4", target=_ARRAY_BUFFER))
            if shape.opacity is not None and blended:
                colours = np.full((len(used), 4), 255, np.uint8)
                colours[:, 3] = np.rint(255 * np.clip(shape.opacity[used], 0.0, 1.0))
                attributes.COLOR_0 = self.accessor(colours, "u1", normalized=True, target=_ARRAY_BUFFER)
            if shape.skeleton is not None:
                joints, weights = _four_influences(shape.skeleton.weights[used])
                attributes.JOINTS_0 = self.accessor(joints, "u1", target=_ARRAY_BUFFER)
                attributes.WEIGHTS_0 = self.accessor(weights, "u2", normalized=True, target=_ARRAY_BUFFER)
            index_type = "u2" if len(used) < 65535 else "u4"
            indices = self.accessor(local.reshape(-1, 1), index_type, target=_ELEMENT_ARRAY_BUFFER)
            morphs = []
            for target, value in targets.items():
                moved = np.flatnonzero(np.abs(value[used]).max(axis=1) > _STILL_MM)
                morph = {"POSITION": self.sparse(_metres(value[used]), moved)}
                if shape.morph_normals:
                    turned = np.flatnonzero(np.abs(normal_changes[target][used]).max(axis=1) > _TURNED)
                    morph["NORMAL"] = self.sparse(normal_changes[target][used], turned)
                morphs.append(morph)
            material = self.material(kind, image, relief if kind == "skin" else None, blended)
            primitives.append(
                g.Primitive(attributes=attributes, indices=indices, material=material, targets=morphs, mode=4)
            )
        if not primitives:
            return
        mesh = g.Mesh(name=name, primitives=primitives)
        if targets:
            mesh.extras = {"targetNames": list(targets)}
            mesh.weights = [float((opening or {}).get(target, 0.0)) for target in targets]
        self.gltf.meshes.append(mesh)
        skin = 0 if shape.skeleton is not None else None
        self.gltf.nodes.append(g.Node(name=f"{name}_mesh", mesh=len(self.gltf.meshes) - 1, skin=skin))

    def texture(self, name: str, data: bytes, mime: str) -> int:
        g = self.g
        self.gltf.images.append(g.Image(name=name, mimeType=mime, bufferView=self.view(data)))
        if not self.gltf.samplers:
            # The map is one chart with its border on the square's: wrapping would bleed one side into the
            # other.
            self.gltf.samplers.append(
                g.Sampler(magFilter=_LINEAR, minFilter=_LINEAR_MIPMAP_LINEAR, wrapS=_CLAMP, wrapT=_CLAMP)
            )
        self.gltf.textures.append(g.Texture(source=len(self.gltf.images) - 1, sampler=0))
        return len(self.gltf.textures) - 1

    def wrinkles(self, maps: Sequence[WrinkleMap]) -> None:
        """Textures for the maps, and what the skin's material will say about them."""
        said = [
            {
                "name": wrinkle.name,
                "texture": self.texture(f"wrinkle_{wrinkle.name}", _png(wrinkle.normal_map), "image/png"),
                "blendshapes": {name: float(weight) for name, weight in wrinkle.blendshapes.items()},
            }
            for wrinkle in maps
        ]
        if said:
            self.skin_extras = {
                "facefit": {"wrinkle_maps": said, "activation": ACTIVATION, "blending": BLENDING},
            }

    def material(self, kind: str, texture: int | None, relief: int | None, blended: bool) -> int:
        """The material of a kind of part, made once."""
        for number, material in enumerate(self.gltf.materials):
            if material.name == kind:
                return number
        g = self.g
        look = _MATERIALS[kind]
        surface = g.PbrMetallicRoughness(metallicFactor=0.0, roughnessFactor=look["roughness"])
        if texture is not None:
            surface.baseColorTexture = g.TextureInfo(index=texture)
        self.gltf.materials.append(
            g.Material(
                name=kind,
                pbrMetallicRoughness=surface,
                normalTexture=None if relief is None else g.NormalMaterialTexture(index=relief, scale=1.0),
                doubleSided=look["double_sided"],
                alphaMode="BLEND" if blended else "OPAQUE",
                alphaCutoff=None,  # only meant for the third mode
                extras=self.skin_extras if kind == "skin" else {},
            )
        )
        return len(self.gltf.materials) - 1

    def animation(self, animation: Animation, targets: tuple[str, ...]) -> None:
        """Keys for the weights of the head's mesh, for every joint that turns, and for the head's pose."""
        g = self.g
        times = self.accessor(animation.times[:, None], "f4", bounds=True)
        clip = g.Animation(name="performance", samplers=[], channels=[])

        def channel(node: str, path: str, values: np.ndarray, kind: str = "f4") -> None:
            number = next(i for i, n in enumerate(self.gltf.nodes) if n.name == node)
            clip.samplers.append(g.AnimationSampler(input=times, output=self.accessor(values, kind)))
            target = g.AnimationChannelTarget(node=number, path=path)
            clip.channels.append(g.AnimationChannel(sampler=len(clip.samplers) - 1, target=target))

        if targets:
            weights = np.zeros((len(animation.times), len(targets)))
            weights[:, [targets.index(unit) for unit in animation.units]] = animation.weights
            channel("head_mesh", "weights", weights.reshape(-1, 1))
        quaternions = animation.quaternions
        for k, joint in enumerate(animation.joints):
            if np.any(animation.rotations[:, k]):
                channel(joint, "rotation", quaternions[:, k])
        turns = Rotation.from_matrix(animation.T_world_head[:, :3, :3]).as_quat()
        channel(HEAD_POSE, "rotation", continuous_quaternions(turns[:, None])[:, 0])
        channel(HEAD_POSE, "translation", _metres(animation.T_world_head[:, :3, 3]))
        self.gltf.animations.append(clip)

    def skin(self, skeleton: Skeleton) -> int:
        """Nodes for the joints and the skin that binds them; returns the root's node."""
        g = self.g
        first = len(self.gltf.nodes)
        joints = _metres(np.asarray(skeleton.joints, np.float64))
        for name, parent, joint in zip(skeleton.names, skeleton.parents, joints, strict=True):
            offset = joint - joints[parent] if parent >= 0 else joint
            self.gltf.nodes.append(g.Node(name=name, translation=offset.tolist()))
        for child, parent in enumerate(skeleton.parents):
            if parent >= 0:
                node = self.gltf.nodes[first + parent]
                node.children = [*(node.children or []), first + child]
        inverse = np.tile(np.eye(4), (len(joints), 1, 1))
        inverse[:, :3, 3] = -joints
        columns = inverse.transpose(0, 2, 1).reshape(-1, 16)  # glTF stores matrices column by column
        root = first + skeleton.parents.index(-1)
        self.gltf.skins.append(
            g.Skin(
                name="head",
                skeleton=root,
                joints=list(range(first, first + len(joints))),
                inverseBindMatrices=self.accessor(columns, "f4"),
            )
        )
        return root

    def camera(self, camera) -> int:
        g = self.g
        K, R, t = (np.asarray(value, np.float64) for value in camera.to_opencv())
        height, width = int(camera.height), int(camera.width)
        self.gltf.cameras.append(
            g.Camera(
                name="photo",
                type="perspective",
                perspective=g.Perspective(
                    yfov=2 * math.atan(0.5 * height / K[1, 1]),
                    aspectRatio=width * K[1, 1] / (height * K[0, 0]),
                    znear=0.01,
                    zfar=100.0,
                ),
                extras={"K": K.tolist(), "width": width, "height": height},
            )
        )
        T_head_camera = np.eye(4)
        T_head_camera[:3, :3] = R.T
        T_head_camera[:3, 3] = _metres(-R.T @ t)
        matrix = T_head_camera @ np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV looks along +z with y down, glTF along -z
        self.gltf.nodes.append(g.Node(name="photo_camera", camera=0, matrix=matrix.T.ravel().tolist()))
        return len(self.gltf.nodes) - 1

    def save(self, path: str | Path) -> None:
        self._pack_sparse()
        self.blob.extend(b"\0" * (-len(self.blob) % 4))
        self.gltf.buffers.append(self.g.Buffer(byteLength=len(self.blob)))
        self.gltf.set_binary_blob(bytes(self.blob))
        self.gltf.save_binary(str(path))


def surface_normals(
    vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]
) -> Float[np.ndarray, "vertex 3"]:
    """Unit normals averaged by area; where there is no area, +z, since files must have one."""
    a, b, c = (np.asarray(vertices, np.float64)[triangles[:, k]] for k in range(3))
    faces = np.cross(b - a, c - a)
    total = np.stack(
        [sum(np.bincount(triangles[:, k], faces[:, i], len(vertices)) for k in range(3)) for i in range(3)],
        axis=1,
    )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-12, total / np.maximum(length, 1e-12), np.array([0.0, 0.0, 1.0]))


def surface_tangents(
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    uv: Float[np.ndarray, "vertex 2"],
    normals: Float[np.ndarray, "vertex 3"],
) -> Float[np.ndarray, "vertex 4"]:
    """Unit tangents along which u grows, averaged by area, and in the fourth column glTF's handedness.

    That is the w for which w cross(normal, tangent) points up in the map, against v.
    """
    along_u, along_v, area = uv_derivatives(np.asarray(vertices, np.float64), triangles, uv)

    def at_vertices(values: np.ndarray) -> np.ndarray:
        weighted = np.repeat(values * area[:, None], 3, axis=0)
        return np.stack(
            [np.bincount(triangles.ravel(), weighted[:, i], len(vertices)) for i in range(3)],
            axis=1,
        )

    tangents = at_vertices(along_u)
    tangents -= np.einsum("vi,vi->v", tangents, normals)[:, None] * normals
    length = np.linalg.norm(tangents, axis=1, keepdims=True)
    # Where the map has no area any direction in the surface will do, but the file must have one.
    spare = np.cross(normals, np.where(np.abs(normals[:, [1]]) < 0.9, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]))
    tangents = np.where(length > 1e-9, tangents / np.maximum(length, 1e-9), spare)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    up = -np.einsum("vi,vi->v", np.cross(normals, tangents), at_vertices(along_v))
    return np.concatenate([tangents, np.where(up < 0, -1.0, 1.0)[:, None]], axis=1)


def uv_derivatives(
    vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"], uv: Float[np.ndarray, "vertex 2"]
) -> tuple[Float[np.ndarray, "triangle 3"], Float[np.ndarray, "triangle 3"], Float[np.ndarray, " triangle"]]:
    """How far the surface goes (mm) along a whole side of the map, in u and in v, and the area in the map."""
    p, q = vertices[triangles], np.asarray(uv, np.float64)[triangles]
    e1, e2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
    d1, d2 = q[:, 1] - q[:, 0], q[:, 2] - q[:, 0]
    twice = d1[:, 0] * d2[:, 1] - d2[:, 0] * d1[:, 1]
    inverse = np.where(np.abs(twice) > 1e-15, 1 / np.where(np.abs(twice) > 1e-15, twice, 1.0), 0.0)[:, None]
    along_u = (e1 * d2[:, [1]] - e2 * d1[:, [1]]) * inverse
    along_v = (e2 * d1[:, [0]] - e1 * d2[:, [0]]) * inverse
    return along_u, along_v, np.abs(twice) / 2
