"""What a fit leaves on disk: the output folder, OBJ meshes, the rigged head, fit.npz and fit.json.

Everything here stays in head space and millimetres (`glb` changes to metres). UV has its origin at the
top left; OBJ wants it at the bottom left, and `write_obj` is the one place that flips v.
"""

import contextlib
import dataclasses
import errno
import importlib.metadata
import math
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.spatial.transform import Rotation

from fitting.glb import Skeleton, surface_normals, write_glb
from morphable.model import MorphableModel

FORMAT = "facefit-fit"
FORMAT_VERSION = 1


class OutputError(ValueError):
    """The results cannot be written where the user asked for them."""


def check_writable(out: str | Path) -> None:
    """Raise `OutputError` unless results could be written to `out`; leaves nothing behind.

    Call it before fitting: it tries what `output_folder` will do later, since permission bits do not tell
    the truth for a superuser, a read-only mount or a full quota.
    """
    out = Path(out).resolve()
    parent = out
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(
                f"output folder: expected a folder or a free name, got the file {out}. Choose another -o OUT."
            )
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise OutputError(
                f"output folder {out}: expected a folder above it, got the file {parent}. Choose another -o OUT."
            )
        probe = parent / f".{out.name}.probe-{uuid.uuid4().hex[:8]}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise _unwritable(out, error) from error


@contextlib.contextmanager
def output_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder whose contents become `out` when the block ends well, and vanish when it does not.

    A new `out` appears whole, by one rename. In an existing folder only files of the same names are
    replaced, and all of them or none: what was there is set aside first and put back if a move fails.
    """
    check_writable(out)
    out = Path(out).resolve()
    fresh = not out.exists()
    # The temporary folder must share a file system with `out`, which may be a mount point: beside it
    # while it does not exist, inside it once it does.
    home = out.parent if fresh else out
    made = _missing_parents(home)
    temporary = home / f".{out.name}.tmp-{uuid.uuid4().hex[:8]}"
    finished = False
    try:
        try:
            home.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()  # not tempfile.mkdtemp, whose 0700 would stay with the results
        except OSError as error:
            raise _unwritable(out, error) from error
        try:
            yield temporary
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
                raise _unwritable(out, error) from error
            raise
        try:
            if fresh and not out.exists():
                temporary.rename(out)
            else:
                _replace_files(temporary, out)
        except OSError as error:
            raise _unwritable(out, error) from error
        finished = True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not finished:
            for folder in reversed(made):
                with contextlib.suppress(OSError):  # not empty: somebody else uses it now
                    folder.rmdir()


def _missing_parents(folder: Path) -> list[Path]:
    """The folders that creating `folder` would create, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing[::-1]


def _replace_files(source: Path, target: Path) -> None:
    """Move every file below `source` to the same place below `target`: all of them, or none on an OSError."""
    backup = source.with_name(source.name + "-old")
    moves = [(file, target / file.relative_to(source)) for file in sorted(source.rglob("*")) if file.is_file()]
    set_aside: list[tuple[Path, Path]] = []
    done: list[Path] = []
    try:
        for _, place in moves:
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder bears the name of a result", str(place))
            if place.exists():
                old = backup / place.relative_to(target)
                old.parent.mkdir(parents=True, exist_ok=True)
                place.rename(old)
                set_aside.append((old, place))
        for file, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
            done.append(place)
    except OSError:
        for place in done:
            place.unlink()
        for old, place in set_aside:
            old.rename(place)
        raise
    finally:
        shutil.rmtree(backup, ignore_errors=True)


def _unwritable(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f"output folder {out}: expected a folder that can be created or written, got "
        f"'{error.strerror or error}'. Check its permissions and free space, or choose another -o OUT."
    )


def write_obj(
    path: str | Path,
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    uv: Float[np.ndarray, "vertex 2"] | None = None,
    texture_name: str | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    note: str = "",
) -> None:
    """Write a mesh in head space (mm) as OBJ with smooth normals, and an .mtl beside it when it has a
    texture.

    `groups` maps a name to the indices of its triangles; triangles of no group are left out. The vertices
    keep their order, so vertex i of the model is vertex i + 1 of the file.
    """
    path = Path(path)
    normals = surface_normals(vertices, triangles)
    lines = ["# facefit head mesh; unit: millimetre; +x subject's left, +y up, +z out of the face\n"]
    lines += [f"# {line}\n" for line in note.splitlines()]
    textured = uv is not None and texture_name is not None
    if textured:
        material = path.with_suffix(".mtl")
        lines.append(f"mtllib {material.name}\n")
        material.write_text(
            "newmtl head\nKa 0 0 0\nKd 1 1 1\nKs 0.04 0.04 0.04\nNs 20\nillum 2\n" + f"map_Kd {texture_name}\n"
        )
    lines.append(_rows("v %.5f %.5f %.5f\n", vertices))
    if uv is not None:
        lines.append(_rows("vt %.6f %.6f\n", np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)))
    lines.append(_rows("vn %.4f %.4f %.4f\n", normals))
    corner = "%d/%d/%d" if uv is not None else "%d//%d"
    repeat = 3 if uv is not None else 2
    if textured:
        lines.append("usemtl head\n")
    lines.append("s 1\n")
    for name, chosen in (groups or {"head": slice(None)}).items():
        faces = np.repeat(triangles[chosen] + 1, repeat, axis=1)
        lines.append(f"g {name}\n" + _rows(f"f {corner} {corner} {corner}\n", faces))
    path.write_text("".join(lines))


def _rows(pattern: str, values: np.ndarray) -> str:
    """One formatted line per row; a single % over all numbers is ten times as fast as a loop."""
    return (pattern * len(values)) % tuple(values.ravel().tolist())


def part_triangles(model: MorphableModel) -> dict[str, Int[np.ndarray, " triangle"]]:
    """The triangle indices of each named part of a model."""
    return {name: model.part(name).triangles for name in model.part_names}


def blendshapes(
    model: MorphableModel, identity: Float[np.ndarray, " rank"]
) -> dict[str, Float[np.ndarray, "vertex 3"]]:
    """Displacement of every vertex (mm) at weight 1 of each expression unit.

    eyeLook* carry the eyeball's rotation as straight paths: exact at weights 0 and 1, where it matters most.
    mouthClose stands alone: the model limits it by jawOpen, which a viewer cannot.
    """
    linear = np.asarray(model.expression, np.float64)
    shapes = {name: linear[:, :, k] for k, name in enumerate(model.expression_names)}
    skeleton = skeleton_of(model, identity)
    if model.rig is None or skeleton is None:
        return shapes
    neutral = np.asarray(model.neutral(jnp.asarray(identity)), np.float64)
    gaze = model.rig.gaze
    for unit, joint, turn in zip(gaze.units.tolist(), gaze.joints.tolist(), gaze.rotations.tolist(), strict=True):
        name = model.expression_names[unit]
        arms = neutral + shapes[name] - skeleton.joints[joint]
        turned = arms @ Rotation.from_rotvec(turn).as_matrix().T
        shapes[name] = shapes[name] + skeleton.weights[:, [joint]] * (turned - arms)
    return shapes


def skeleton_of(model: MorphableModel, identity: Float[np.ndarray, " rank"]) -> Skeleton | None:
    """The model's joints for one identity, or None for a model without a rig."""
    rig = model.rig
    if rig is None:
        return None
    return Skeleton(
        names=tuple(rig.names),
        parents=tuple(int(p) for p in rig.parents),
        joints=np.asarray(
            rig.joints.mean + rig.joints.modes[..., : identity.shape[0]] @ jnp.asarray(identity), np.float64
        ),
        weights=np.asarray(rig.weights, np.float64),
    )


def write_head_glb(
    path: str | Path,
    model: MorphableModel,
    identity: Float[np.ndarray, " rank"],
    expression: Float[np.ndarray, " unit"] | None = None,
    texture: UInt8[np.ndarray, "height width 3"] | None = None,
    camera: Any = None,
) -> None:
    """Write the neutral head of one identity with all its blendshapes; the file opens in `expression`."""
    weights = {} if expression is None else dict(zip(model.expression_names, expression.tolist(), strict=True))
    write_glb(
        path,
        np.asarray(model.neutral(jnp.asarray(identity)), np.float64),
        np.asarray(model.triangles),
        np.asarray(model.uv),
        texture=texture,
        groups=part_triangles(model),
        targets=blendshapes(model, identity),
        target_weights=weights,
        skeleton=skeleton_of(model, identity),
        camera=camera,
        generator=f"facefit {_version('facefit')}",
        extras={"model": _provenance(model), "mouthClose": "meant for a jawOpen at least as large"},
        copyright=f"head model {model.provenance.name}: {model.provenance.licence}",
    )


def _provenance(model: MorphableModel) -> dict[str, str]:
    source = model.provenance
    return {
        "name": source.name,
        "sha256": source.sha256,
        "licence": source.licence,
        "licence_class": source.licence_class,
    }


def fit_arrays(fits: Sequence[Any]) -> dict[str, np.ndarray]:
    """The arrays of fit.npz for one photo, or for several of one person (the first fit's expression is
    `vertices`).

    float32; lengths in mm in head space; `landmarks2d`, `K`, `R`, `t` in pixels of the original photos,
    whose pixel centres are at +0.5; `light` in the camera's frame.
    """
    first = fits[0]
    model = first.model
    cameras = [fit.camera.to_opencv() for fit in fits]
    arrays = {
        "vertices": first.vertices,
        "neutral_vertices": first.neutral_vertices,
        "landmarks3d": first.landmarks3d,
        "neutral_landmarks3d": first.neutral_landmarks3d,
        "landmarks2d": [fit.landmarks2d for fit in fits],
        "K": [K for K, _, _ in cameras],
        "R": [R for _, R, _ in cameras],
        "t": [t for _, _, t in cameras],
        "identity": first.identity,
        "expression": [fit.expression for fit in fits],
        "albedo": first.albedo,
        "light": [fit.light for fit in fits],
        "mean_vertices": model.mean,
        "mean_landmarks3d": model.landmarks(model.mean),
    }
    stacked = {name: np.asarray(np.stack(v) if isinstance(v, list) else v, np.float32) for name, v in arrays.items()}
    return {**stacked, "triangles": np.asarray(model.triangles, np.int32)}


def fit_record(
    fit,
    settings: Any = None,
    detection: Any = None,
    notes: Sequence[str] = (),
    timings: Mapping[str, float] = {},
) -> dict[str, Any]:
    """The contents of fit.json: where a result came from and how well its fit ended."""
    model = fit.model
    return _plain(
        {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "model": _provenance(model),
            "result": fit.result,
            "energies": fit.energies,
            "stages": fit.stages,
            "timings": {**fit.timings, **timings},
            "settings": settings,
            "detection": detection,
            "notes": list(notes),
            "image_size": {"width": fit.camera.width, "height": fit.camera.height},
            "versions": {
                "python": platform.python_version(),
                **{package: _version(package) for package in ("facefit", "jax", "jaxlib", "numpy")},
            },
        }
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _plain(value: Any) -> Any:
    """The same value in what JSON has: arrays become lists, and a number that is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and jax
        return _plain(np.asarray(value).tolist())
    return str(value)
