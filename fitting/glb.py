"""One binary glTF of a head: skinned, with named morph targets, its texture inside, and the photo's camera.

Head space has glTF's axes already (+x subject's left, +y up, +z out of the face) and UV its origin (top
left); glTF counts in metres, so lengths are divided by 1000 here and nowhere else.
"""

import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

_MILLIMETRES_PER_METRE = 1000.0
# A displacement below this is the rounding of the stored basis (a micrometre), not a movement; a normal turned by
# less than four degrees is not worth its bytes.
_STILL_MM, _TURNED = 1e-3, 0.07

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
    opacity: Float[np.ndarray, " vertex"] | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    targets: Mapping[str, np.ndarray] | None = None,
    target_weights: Mapping[str, float] | None = None,
    skeleton: Skeleton | None = None,
    camera: Any = None,
    generator: str = "facefit",
    copyright: str | None = None,
    extras: Mapping[str, Any] | None = None,
    jpeg_quality: int = 90,
    morph_normals: bool = True,
) -> None:
    """Write one binary glTF: a skinned mesh with named morph targets, its texture inside, and the photo's
    camera.

    `groups` (part name -> triangle indices) become primitives with a material each; where their `opacity` is
    below 1 they are blended. `targets` maps a
    blendshape to the displacement of every vertex (mm) at weight 1; only moved vertices are stored.
    `target_weights` are the weights the file opens with. `camera` is a pinhole camera with `to_opencv()`,
    `height` and `width`; glTF has no principal point, so the file's camera looks along the axis and the
    exact K stands in its extras.
    """
    import pygltflib as g

    vertices = np.asarray(vertices, np.float64)
    targets = {name: np.asarray(value, np.float64) for name, value in (targets or {}).items()}
    for name, value in targets.items():
        if value.shape != vertices.shape:
            raise ValueError(
                f"morph target {name}: shape {value.shape}, expected that of the vertices {vertices.shape}."
            )
    normals = surface_normals(vertices, triangles)
    normal_changes = {}
    if morph_normals:
        for name, value in targets.items():
            normal_changes[name] = surface_normals(vertices + value, triangles) - normals

    file = _GlbBuilder(g)
    primitives, materials = [], {}
    image = None if texture is None else file.texture(texture, jpeg_quality)
    for part, chosen in (groups or {"skin": slice(None)}).items():
        used, local = np.unique(triangles[chosen], return_inverse=True)
        if len(used) == 0:
            continue
        kind = next((k for k in _MATERIALS if part.startswith(k)), "skin")
        blended = opacity is not None and float(opacity[used].min()) < 1.0
        if kind not in materials:
            materials[kind] = file.material(kind, image, blended=blended, **_MATERIALS[kind])
        attributes = g.Attributes(
            POSITION=file.accessor(_metres(vertices[used]), "f4", bounds=True, target=_ARRAY_BUFFER),
            NORMAL=file.accessor(normals[used], "f4", target=_ARRAY_BUFFER),
            TEXCOORD_0=file.accessor(uv[used], "f4", target=_ARRAY_BUFFER),
        )
        if opacity is not None and blended:
            colours = np.full((len(used), 4), 255, np.uint8)
            colours[:, 3] = np.rint(255 * np.clip(opacity[used], 0.0, 1.0))
            attributes.COLOR_0 = file.accessor(colours, "u1", normalized=True, target=_ARRAY_BUFFER)
        if skeleton is not None:
            joints, weights = _four_influences(skeleton.weights[used])
            attributes.JOINTS_0 = file.accessor(joints, "u1", target=_ARRAY_BUFFER)
            attributes.WEIGHTS_0 = file.accessor(weights, "u2", normalized=True, target=_ARRAY_BUFFER)
        index_type = "u2" if len(used) < 65535 else "u4"
        indices = file.accessor(local.reshape(-1, 1), index_type, target=_ELEMENT_ARRAY_BUFFER)
        morphs = []
        for name, value in targets.items():
            moved = np.flatnonzero(np.abs(value[used]).max(axis=1) > _STILL_MM)
            target = {"POSITION": file.sparse(_metres(value[used]), moved)}
            if morph_normals:
                turned = np.flatnonzero(np.abs(normal_changes[name][used]).max(axis=1) > _TURNED)
                target["NORMAL"] = file.sparse(normal_changes[name][used], turned)
            morphs.append(target)
        primitives.append(
            g.Primitive(attributes=attributes, indices=indices, material=materials[kind], targets=morphs, mode=4)
        )
    mesh = g.Mesh(name="head", primitives=primitives)
    if targets:
        mesh.extras = {"targetNames": list(targets)}
        mesh.weights = [float((target_weights or {}).get(name, 0.0)) for name in targets]
    file.gltf.meshes.append(mesh)

    head = g.Node(name="head_mesh", mesh=0)
    file.gltf.nodes.append(head)
    roots = [0]
    if skeleton is not None:
        head.skin = 0
        roots.append(file.skin(skeleton))
    if camera is not None:
        roots.append(file.camera(camera))
    file.gltf.scenes.append(g.Scene(name="facefit", nodes=roots))
    file.gltf.scene = 0
    file.gltf.asset = g.Asset(version="2.0", generator=generator, copyright=copyright)
    if extras:
        file.gltf.asset.extras = dict(extras)
    file.save(path)


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

    def texture(self, pixels: UInt8[np.ndarray, "height width 3"], quality: int) -> int:
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=quality, subsampling=0)
        g = self.g
        self.gltf.images.append(g.Image(name="albedo", mimeType="image/jpeg", bufferView=self.view(stream.getvalue())))
        # The map is one chart with its border on the square's: wrapping would bleed one side into the
        # other.
        self.gltf.samplers.append(
            g.Sampler(magFilter=_LINEAR, minFilter=_LINEAR_MIPMAP_LINEAR, wrapS=_CLAMP, wrapT=_CLAMP)
        )
        self.gltf.textures.append(g.Texture(source=0, sampler=0))
        return 0

    def material(self, name: str, texture: int | None, roughness: float, double_sided: bool, blended: bool) -> int:
        g = self.g
        surface = g.PbrMetallicRoughness(metallicFactor=0.0, roughnessFactor=roughness)
        if texture is not None:
            surface.baseColorTexture = g.TextureInfo(index=texture)
        mode = "BLEND" if blended else "OPAQUE"
        self.gltf.materials.append(
            g.Material(
                name=name,
                pbrMetallicRoughness=surface,
                doubleSided=double_sided,
                alphaMode=mode,
                alphaCutoff=None,  # only meant for the third mode
            )
        )
        return len(self.gltf.materials) - 1

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
