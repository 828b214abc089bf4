"""Detail on disk: the maps themselves, to be read back, and what other programs show them with.

| file | what |
| --- | --- |
| `detail.npz` | all of a `Detail`; `read_detail` |
| `detail.json` | the record: model, method, size, and how the pictures are to be read |
| `displacement.png` | 16-bit grey, the displacement at the photo's expression |
| `normal_map.png` | tangent space, the neutral face's detail, with fine skin from the colour map |
| `wrinkles/NAME.png`, `wrinkles.json` | what each wrinkle group adds to that map, and which blendshapes bring it out |
| `detail.obj` | the dense mesh, displaced, at the photo's expression |
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fitting.export import part_triangles, write_obj
from fitting.glb import ACTIVATION, BLENDING, WrinkleMap
from fitting.mesoscopic import skin_normal_map
from fitting.normal_map import encoded, tangent_slopes, texel_surface
from morphable.detail import LIMIT_MM, Detail, dense_layout, dense_normals, displaced, skin_vertices
from morphable.io.archive import read_npz
from morphable.io.contents import ModelFileError
from morphable.mesh import Mesh
from morphable.model import MorphableModel

FORMAT = "facefit-detail"
VERSION = 1
MID_GREY = 32768
MM_PER_UNIT = LIMIT_MM / 32767  # of displacement.png
_LARGEST_MAP = 8192
_SLACK_MM = 1e-3  # rounding of a displacement at the limit


class DetailError(ValueError):
    """A detail file that cannot be used."""


class DetailMaps(NamedTuple):
    """What `write_head_glb` takes: the neutral skin's normal map, and what expressions add."""

    normal_map: UInt8[np.ndarray, "size size 3"]
    wrinkle_maps: tuple[WrinkleMap, ...]


def detail_maps(
    person: MorphableModel,
    identity: Float[np.ndarray, " rank"],
    detail: Detail,
    texture: UInt8[np.ndarray, "size size 3"],
    pixel_mm: float = 0.3,
) -> DetailMaps:
    """Normal maps of a head's detail: the static one at the texture's size, a wrinkle group's at the detail's own.

    Where the displacement map ends, at its texels' size, the skin's colour goes on (`fitting.mesoscopic`); `pixel_mm`
    is how much skin a pixel of the photo covers. Slopes of wrinkle maps are relative to the static map's. At one full
    activation the sum is what the displaced surface has; in between, and of several, what their heights' sum has but
    for the curvature below.
    """
    neutral = np.asarray(person.neutral(jnp.asarray(identity)))
    static = np.asarray(detail.static)
    surface = texel_surface(neutral, np.asarray(person.triangles), np.asarray(person.uv), len(static))
    rest = tangent_slopes(static, surface)
    names = np.array(person.expression_names)
    wrinkle_maps = []
    for name, wrinkle, drivers in zip(detail.group_names, detail.wrinkles, np.asarray(detail.drivers), strict=True):
        pixels = encoded(tangent_slopes(static + np.asarray(wrinkle), surface) - rest)
        driving = {str(names[k]): float(drivers[k]) for k in np.flatnonzero(drivers)}
        wrinkle_maps.append(WrinkleMap(name, pixels, driving))
    return DetailMaps(skin_normal_map(person, neutral, texture, pixel_mm, static), tuple(wrinkle_maps))


def write_detail(
    folder: Path,
    person: MorphableModel,
    identity: Float[np.ndarray, " rank"],
    detail: Detail,
    texture: UInt8[np.ndarray, "size size 3"],
    *,
    pixel_mm: float = 0.3,
    levels: int = 1,
    texture_name: str = "texture.png",
    settings: Mapping[str, Any] | None = None,
) -> DetailMaps:
    """Write all files of a person's detail into an existing folder; returns the maps for `write_head_glb`.

    `person` is the model as fitted (`Fit.person`). `texture` (sRGB-encoded) is the colour map, which detail.obj refers
    to by `texture_name` and which the caller writes. `levels` of subdivision make detail.obj 4 ** levels times as dense
    as the model. `settings` is what the caller wants to stand in detail.json.
    """
    _check_names("write_detail", detail.group_names)
    write_npz(folder / "detail.npz", detail, person)
    maps = detail_maps(person, identity, detail, texture, pixel_mm)
    displacement = np.asarray(detail.displacement, np.float64)
    grey = np.clip(np.rint(displacement / MM_PER_UNIT) + MID_GREY, 0, 65535).astype(np.uint16)
    Image.fromarray(grey).save(folder / "displacement.png")
    Image.fromarray(maps.normal_map).save(folder / "normal_map.png")
    if maps.wrinkle_maps:
        (folder / "wrinkles").mkdir(exist_ok=True)
    for wrinkle in maps.wrinkle_maps:
        Image.fromarray(wrinkle.normal_map).save(folder / "wrinkles" / f"{wrinkle.name}.png")
    said = [
        {"name": w.name, "file": f"wrinkles/{w.name}.png", "blendshapes": dict(w.blendshapes)}
        for w in maps.wrinkle_maps
    ]
    _write_json(folder / "wrinkles.json", {"activation": ACTIVATION, "blending": BLENDING, "wrinkle_maps": said})
    vertices = _write_dense(folder / "detail.obj", person, identity, detail, levels, texture_name)
    record = {
        **_manifest(detail, person),
        "size": displacement.shape[0],
        "range_mm": [float(displacement.min()), float(displacement.max())],
        "displacement.png": {
            "mid_grey": MID_GREY,
            "mm_per_unit": MM_PER_UNIT,
            "direction": "outwards along the smooth normals",
        },
        "normal_map.png": {"space": "tangent", "format": "glTF: red along u, green up the map", "pixel_mm": pixel_mm},
        "detail.obj": {"levels": levels, "vertices": vertices},
        "expression": dict(zip(person.expression_names, np.asarray(detail.expression).tolist(), strict=True)),
        "settings": dict(settings or {}),
    }
    _write_json(folder / "detail.json", record)
    return maps


def write_npz(path: str | Path, detail: Detail, model: MorphableModel) -> None:
    """Write a detail for `read_detail`: lengths in mm, float32; the model is named by its checksum."""
    arrays = {name: np.asarray(getattr(detail, name), np.float32) for name in _STORED}
    np.savez_compressed(
        path,
        allow_pickle=False,
        manifest=np.array(json.dumps(_manifest(detail, model))),
        names=np.array(detail.group_names, dtype=str),
        units=np.array(model.expression_names, dtype=str),
        **arrays,
    )


_STORED = ("displacement", "wrinkles", "drivers", "expression")


def read_detail(path: str | Path, model: MorphableModel) -> Detail:
    """Read detail.npz for the model that it was made with. Raises DetailError for anything else."""
    path = Path(path)
    try:
        arrays = read_npz(path)
    except ModelFileError as error:
        raise DetailError(str(error)) from error
    missing = [name for name in (*_STORED, "manifest", "names", "units") if name not in arrays]
    if missing:
        raise DetailError(f"{path}: {', '.join(missing)} missing among {sorted(arrays)}; expected a detail.npz.")
    manifest = _read_manifest(path, arrays["manifest"])
    source = model.provenance
    if manifest["model"]["sha256"] != source.sha256:
        raise DetailError(
            f"{path}: made for the model {manifest['model']['name']} ({str(manifest['model']['sha256'])[:8]}), got "
            f"{source.name} ({source.sha256[:8]}). Load it with the model that it was made with."
        )
    units, names = (tuple(str(value) for value in np.ravel(arrays[name]).tolist()) for name in ("units", "names"))
    if units != model.expression_names:
        raise DetailError(
            f"{path}: made for {len(units)} expression units ({', '.join(units[:3])}, ...), expected the "
            f"{len(model.expression_names)} of {source.name}. Load it with the model that it was made with."
        )
    _check_names(str(path), names)
    size = arrays["displacement"].shape[0] if arrays["displacement"].ndim == 2 else 0
    if not 2 <= size <= _LARGEST_MAP:
        raise DetailError(
            f"{path}: displacement of shape {arrays['displacement'].shape}, expected a square map of 2 to "
            f"{_LARGEST_MAP} texels a side."
        )
    expected = {
        "displacement": (size, size),
        "wrinkles": (len(names), size, size),
        "drivers": (len(names), len(units)),
        "expression": (len(units),),
    }
    for name, shape in expected.items():
        values = arrays[name]
        if values.shape != shape or values.dtype.kind != "f":
            raise DetailError(
                f"{path}: {name} is {values.dtype} of shape {values.shape}, expected floats of shape {shape}: square "
                "maps of one size, a driver row for each wrinkle map. Is the file complete?"
            )
        if not np.isfinite(values).all():
            raise DetailError(
                f"{path}: {name} has {np.sum(~np.isfinite(values))} values that are not finite, expected none. Was the "
                "file damaged?"
            )
    highest = float(np.abs(arrays["displacement"]).max())
    if highest > LIMIT_MM + _SLACK_MM or (arrays["drivers"] < 0).any():
        raise DetailError(
            f"{path}: displacements up to {highest:.1f} mm and drivers from {arrays['drivers'].min(initial=0.0):.2f}, "
            f"expected at most {LIMIT_MM:g} mm and none below 0. Are its lengths in millimetres?"
        )
    stored = {name: jnp.asarray(arrays[name], jnp.float32) for name in _STORED}
    return Detail(**stored, method=str(manifest["method"]), names=names)


def _check_names(where: str, names: tuple[str, ...]) -> None:
    """Groups become files: their names must not lead elsewhere."""
    wrong = [name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)]
    if wrong or len(set(names)) < len(names):
        raise DetailError(
            f"{where}: wrinkle groups named {list(names)}, expected different names of letters, digits, - and _."
        )


def _manifest(detail: Detail, model: MorphableModel) -> dict[str, Any]:
    source = model.provenance
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": source.name, "sha256": source.sha256, "licence": source.licence},
        "method": detail.method,
    }


def _read_manifest(path: Path, array: np.ndarray) -> dict[str, Any]:
    try:
        manifest = json.loads(str(array))
        known = manifest["format"] == FORMAT and 1 <= int(manifest["version"]) <= VERSION
        complete = {"name", "sha256"} <= set(manifest["model"]) and "method" in manifest
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DetailError(f"{path}: its manifest is damaged ({error!r}); expected a detail.npz.") from error
    if not known or not complete:
        raise DetailError(
            f"{path}: got format {manifest['format']!r} version {manifest['version']!r}, expected {FORMAT!r} up to "
            f"version {VERSION}, with a model and a method. A newer facefit may have written it: upgrade."
        )
    return manifest


def _write_dense(
    path: Path,
    person: MorphableModel,
    identity: Float[np.ndarray, " rank"],
    detail: Detail,
    levels: int,
    texture_name: str,
) -> int:
    """detail.obj; the number of its vertices."""
    layout = dense_layout(person.triangles, person.uv, levels, skin_vertices(person))
    mesh = Mesh(person.vertices(jnp.asarray(identity), detail.expression), person.triangles, person.uv)
    dense = displaced(layout, mesh, detail.displacement)
    parts, step = part_triangles(person), 4**levels  # a triangle's parts stand where it stood
    groups = {name: (ids[:, None] * step + np.arange(step)).ravel() for name, ids in parts.items()}
    source = person.provenance
    note = f"with detail, at the photo's expression; head model {source.name}, licence {source.licence}"
    vertices, triangles, uv = (np.asarray(a) for a in (dense.vertices, dense.triangles, layout.uv))
    normals = np.asarray(dense_normals(layout, mesh, detail.displacement))
    write_obj(path, vertices, triangles, uv, texture_name, groups, note, normals=normals)
    return len(dense.vertices)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
