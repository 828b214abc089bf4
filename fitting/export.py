"""What a fit leaves on disk: OBJ meshes, the rigged head, the pictures, fit.npz and fit.json.

Everything here stays in head space and millimetres (`glb` changes to metres). UV has its origin at the
top left; OBJ wants it at the bottom left, and `write_obj` is the one place that flips v.
"""

import dataclasses
import functools
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from fitting.animation import Animation
from fitting.fit import Fit
from fitting.glb import JointedParts, Skeleton, WrinkleMap, surface_normals, write_glb
from fitting.observation import Photo
from fitting.output import OutputError as OutputError
from fitting.output import check_writable as check_writable
from fitting.output import output_folder as output_folder
from fitting.pictures import detail_strip, overlay, render_over_photo, turntable
from fitting.report import write_report
from fitting.texture_map import face_texture
from morphable.detail import Detail
from morphable.model import MorphableModel

FORMAT = "facefit-fit"
FORMAT_VERSION = 1


def save_results(
    out: str | Path,
    fit: Fit,
    photo: Photo,
    mask: Bool[np.ndarray, "height width"] | None = None,
    settings: Mapping[str, Any] | None = None,
    detection: Mapping[str, Any] | None = None,
    texture_size: int = 1024,
    report: bool = False,
    detail: Detail | None = None,
) -> None:
    """Write all results of one fit to the folder `out`, all of them or none; see `write_results`."""
    with output_folder(out) as folder:
        write_results(folder, fit, photo, mask, settings, detection, texture_size, report, detail)


def write_results(
    folder: Path,
    fit: Fit,
    photo: Photo,
    mask: Bool[np.ndarray, "height width"] | None = None,
    settings: Mapping[str, Any] | None = None,
    detection: Mapping[str, Any] | None = None,
    texture_size: int = 1024,
    report: bool = False,
    detail: Detail | None = None,
) -> None:
    """Write fit.npz, fit.json, the meshes with their texture, head.glb and the pictures into an existing folder.

    With `report` also report.html (`fitting.report`); with `detail` the files of `fitting.detail_files`, detail.png
    (the face without and with it), and head.glb has its normal and wrinkle maps. `settings` and `detection` are what
    the caller wants to stand in fit.json beside the fit's own. A fit whose vertices are not finite has nothing to show:
    only its numbers and record are written.
    """
    timings = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        timings[name] = time.perf_counter() - began
        return result

    arrays = fit_arrays([fit])
    np.savez_compressed(folder / "fit.npz", allow_pickle=False, **arrays)
    if np.isfinite(arrays["vertices"]).all() and np.isfinite(arrays["K"]).all():
        texture = timed("texture", lambda: face_texture(fit, photo, texture_size, mask, detail))
        timed("meshes", lambda: _write_meshes(folder, fit, arrays, texture))
        if detail is None:
            timed("head.glb", lambda: _write_fitted_glb(folder / "head.glb", fit, texture))
        else:
            timed("detail", lambda: _write_detailed(folder, fit, photo, detail, texture))
        pictures = {"render.png": functools.partial(render_over_photo, detail=detail), "overlay.png": overlay}
        drawn = {name: timed(name, lambda draw=draw: draw(fit, photo, texture)) for name, draw in pictures.items()}
        drawn["turntable.png"] = timed("turntable.png", lambda: turntable(fit, texture))
        for name, picture in drawn.items():
            _save_png(folder / name, picture)
        if report:
            shown = drawn["overlay.png"], drawn["turntable.png"]
            timed("report.html", lambda: write_report(folder / "report.html", fit, photo, shown))
    record = fit_record(fit, settings, detection, photo.notes, timings)
    (folder / "fit.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_meshes(folder: Path, fit: Fit, arrays: Mapping[str, np.ndarray], texture: np.ndarray) -> None:
    _save_png(folder / "texture.png", texture)
    groups = part_triangles(fit.model)
    source = fit.model.provenance
    note = f"head model {source.name}, licence {source.licence} ({source.licence_class})"
    for name in ("vertices", "neutral_vertices"):
        path = folder / {"vertices": "mesh.obj", "neutral_vertices": "neutral.obj"}[name]
        write_obj(path, arrays[name], arrays["triangles"], np.asarray(fit.model.uv), "texture.png", groups, note)


def _write_fitted_glb(path: Path, fit: Fit, texture: np.ndarray) -> None:
    write_head_glb(path, fit.person, fit.identity, fit.expression, texture, fit.camera)


def _write_detailed(folder: Path, fit: Fit, photo: Photo, detail: Detail, texture: np.ndarray) -> None:
    from fitting.detail_files import write_detail

    pixel_mm = float(fit.camera.pose.translation()[2] / fit.camera.focal[0])
    maps = write_detail(folder, fit.person, fit.identity, detail, texture, pixel_mm=pixel_mm)
    write_head_glb(
        folder / "head.glb",
        fit.person,
        fit.identity,
        fit.expression,
        texture,
        fit.camera,
        normal_map=maps.normal_map,
        wrinkle_maps=maps.wrinkle_maps,
    )
    _save_png(folder / "detail.png", detail_strip(fit, photo, detail, texture))


def _save_png(path: Path, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
    # A 100-megapixel photo takes minutes at the best compression and seconds at the fastest.
    Image.fromarray(pixels).save(path, compress_level=6 if pixels.size < 3e7 else 1)


def write_obj(
    path: str | Path,
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    uv: Float[np.ndarray, "vertex 2"] | None = None,
    texture_name: str | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    note: str = "",
    material: str | None = None,
    normals: Float[np.ndarray, "vertex 3"] | None = None,
) -> None:
    """Write a mesh in head space (mm) as OBJ with smooth normals (`normals`, or the triangles' by area), and an .mtl
    beside it when it has a texture.

    `groups` maps a name to the indices of its triangles; triangles of no group are left out. The vertices
    keep their order, so vertex i of the model is vertex i + 1 of the file. `material` names the .mtl, for meshes that
    share one.
    """
    path = Path(path)
    normals = surface_normals(vertices, triangles) if normals is None else normals
    lines = ["# facefit head mesh; unit: millimetre; +x subject's left, +y up, +z out of the face\n"]
    lines += [f"# {line}\n" for line in note.splitlines()]
    textured = uv is not None and texture_name is not None
    if textured:
        library = path.with_suffix(".mtl") if material is None else path.with_name(material)
        lines.append(f"mtllib {library.name}\n")
        library.write_text(
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
    model = _of_person(model, identity)
    shapes = _linear_shapes(model)
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
        joints=np.asarray(rig.joint_positions(jnp.asarray(identity)), np.float64),
        weights=np.asarray(rig.weights, np.float64),
    )


def write_head_glb(
    path: str | Path,
    model: MorphableModel,
    identity: Float[np.ndarray, " rank"],
    expression: Float[np.ndarray, " unit"] | None = None,
    texture: UInt8[np.ndarray, "height width 3"] | None = None,
    camera: Any = None,
    *,
    normal_map: UInt8[np.ndarray, "map_height map_width 3"] | None = None,
    wrinkle_maps: Sequence[WrinkleMap] = (),
    animation: Animation | None = None,
) -> None:
    """Write the neutral head of one identity with all its blendshapes; the file opens in `expression`.

    `normal_map` is the skin's, in tangent space (`fitting.normal_map`), and `wrinkle_maps` what expressions add to it
    (`fitting.detail_files.detail_maps` makes both). With an `animation`
    (`fitting.animation.animate`) the eyeballs are a mesh of their own that follows the eye joints, since no straight
    path turns an eye: then the head's eyeLook* targets move the lids alone, and the eyeballs' own turn the eyes of
    whoever sets weights by hand. `camera` is then the one of the animation's reference frame.
    """
    model = _of_person(model, identity)
    weights = {} if expression is None else dict(zip(model.expression_names, expression.tolist(), strict=True))
    neutral = np.asarray(model.neutral(jnp.asarray(identity)), np.float64)
    targets, jointed = blendshapes(model, identity), None
    if animation is not None:
        jointed = _eyeballs(model, targets)
        targets = _linear_shapes(model)
    write_glb(
        path,
        neutral,
        np.asarray(model.triangles),
        np.asarray(model.uv),
        texture=texture,
        normal_map=normal_map,
        wrinkle_maps=wrinkle_maps,
        opacity=_lash_opacity(model, neutral),
        groups=part_triangles(model),
        targets=targets,
        target_weights=weights,
        skeleton=skeleton_of(model, identity),
        camera=camera,
        animation=animation,
        jointed=jointed,
        generator=f"facefit {_version('facefit')}",
        extras={"model": _provenance(model), "mouthClose": "meant for a jawOpen at least as large"},
        copyright=f"head model {model.provenance.name}: {model.provenance.licence}",
    )


def _of_person(model: MorphableModel, identity: Float[np.ndarray, " rank"]) -> MorphableModel:
    """A multilinear model with one person's expression units; any other model as it is."""
    return model.linearised(jnp.asarray(identity, jnp.float32), jnp.zeros(len(model.expression_names)))


def _linear_shapes(model: MorphableModel) -> dict[str, Float[np.ndarray, "vertex 3"]]:
    """Displacement of every vertex (mm) at weight 1 of each expression unit, without what joints do."""
    linear = np.asarray(model.expression, np.float64)
    return {name: linear[:, :, k] for k, name in enumerate(model.expression_names)}


def _eyeballs(model: MorphableModel, shapes: Mapping[str, np.ndarray]) -> JointedParts | None:
    """The parts that follow a joint of the gaze alone, with the units that turn them."""
    if model.rig is None:
        return None
    gazing = np.asarray(model.rig.weights)[:, np.unique(np.asarray(model.rig.gaze.joints))].max(axis=1)
    parts = [name for name in model.part_names if np.all(gazing[model.part(name).vertices] > 0.999)]
    units = [model.expression_names[unit] for unit in np.asarray(model.rig.gaze.units).tolist()]
    return JointedParts(tuple(parts), {unit: shapes[unit] for unit in dict.fromkeys(units)}) if parts else None


def _lash_opacity(model: MorphableModel, vertices: Float[np.ndarray, "vertex 3"]) -> Float[np.ndarray, " vertex"]:
    """Lashes are sheets; thinning out with the distance from the lid they look like hairs."""
    opacity = np.ones(len(vertices))
    skin = KDTree(vertices[model.part("skin").vertices]) if "skin" in model.part_names else None
    for name in model.part_names:
        if skin is not None and name.startswith("lashes"):
            hairs = model.part(name).vertices
            distance, _ = skin.query(vertices[hairs])
            opacity[hairs] = 0.85 * (1.0 - distance / max(float(distance.max()), 1e-6)) ** 2
    return opacity


def _provenance(model: MorphableModel) -> dict[str, str]:
    source = model.provenance
    return {
        "name": source.name,
        "sha256": source.sha256,
        "licence": source.licence,
        "licence_class": source.licence_class,
    }


def fit_arrays(fits: Sequence[Fit]) -> dict[str, np.ndarray]:
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
        "matched2d": [fit.matched2d for fit in fits],
        "K": [K for K, _, _ in cameras],
        "R": [R for _, R, _ in cameras],
        "t": [t for _, _, t in cameras],
        "identity": first.identity,
        "expression": [fit.expression for fit in fits],
        "albedo": first.albedo,
        "light": [fit.light for fit in fits],
        "mean_vertices": model.mean,
        "mean_landmarks3d": model.landmarks3d(model.mean),
    }
    stacked = {name: np.asarray(np.stack(v) if isinstance(v, list) else v, np.float32) for name, v in arrays.items()}
    return {**stacked, "triangles": np.asarray(model.triangles, np.int32)}


def fit_record(
    fit: Fit,
    settings: Mapping[str, Any] | None = None,
    detection: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    timings: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The contents of fit.json: where a result came from and how well its fit ended."""
    return _plain(
        {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "photo": {"width": fit.camera.width, "height": fit.camera.height, "notes": notes},
            "model": _provenance(fit.model),
            "detection": {"landmarks": fit.source, **(detection or {})},
            "result": fit.result,
            "reason": fit.reason,
            "energies": fit.energies,
            "stages": fit.stages,
            "timings": {**fit.timings, **(timings or {})},
            "settings": {**_plain(fit.settings), **(settings or {})},
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
