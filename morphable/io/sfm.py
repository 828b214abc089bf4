"""The Surrey Face Model (Huber et al. 2016), the 4DFM and other models in eos's format, with the files beside them.

A model file has shape, perhaps colour and expressions; the public Surrey model's six emotions, its landmarks and its
contours are files of their own in the same folder, and are read if their names begin as the model's does. Lengths are
mm, x to the subject's left, y up, z out of the face; triangles are counter-clockwise from outside. Colours are RGB from
0 to 1 as photos have them (`sample_to_mesh` of eos's MorphableModel.hpp clamps them to that). Texture coordinates
run down: eos writes 1 - v to OBJ files.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from morphable.io.cereal import Blendshapes, read_blendshapes
from morphable.io.contents import Contents, ModelFileError, Points, Source, split_seams
from morphable.io.layout import Layout, array

_SURREY_SIZES = (845, 3448, 16759, 29587)  # vertices at its four resolutions, the coarser ones first in the finer
_LARGEST_SIDE_FILE = 16 << 20  # bytes; the edge topology, which is not read, has 2 MB
_UNITS_MM = (1.0, 10.0, 1000.0, 0.001)
# Landmarks that eos models made from the Basel Face Model define by name, and the iBUG-68 points they are.
_NAMED = {
    "center.chin.tip": 8,
    "center.nose.tip": 30,
    "right.eye.corner_outer": 36,
    "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42,
    "left.eye.corner_outer": 45,
    "right.lips.corner": 48,
    "center.lips.upper.outer": 51,
    "left.lips.corner": 54,
    "center.lips.lower.outer": 57,
    "center.lips.upper.inner": 62,
    "center.lips.lower.inner": 66,
}
_CHIN, _EYES_OUTER = 8, (36, 45)


def _matches(names: frozenset[str]) -> bool:
    return {"shape_model/mean", "shape_model/triangle_list", "version"} <= names


@np.errstate(over="ignore", invalid="ignore")  # `checked` refuses what damaged numbers become
def _read(arrays: Mapping[str, Any], source: Source) -> Contents:
    mean, modes = _pca(arrays, "shape_model", source)
    count = len(mean)
    triangles = array(arrays, "shape_model/triangle_list", source, (None, 3), "i")
    surrey = count in _SURREY_SIZES
    notes = []

    names, expression, kind = (), None, "units"
    if isinstance(arrays.get("expression_model"), Blendshapes):
        names, expression = _checked_blendshapes(arrays["expression_model"], count, source.path)
    elif "expression_model/mean" in arrays:
        resting, expression = _pca(arrays, "expression_model", source)
        if len(resting) != count:
            raise ModelFileError(f"{source.path}: expressions of {len(resting)} vertices, expected {count}.")
        # eos adds the mean of the expressions to that of the shapes: `MorphableModel::get_mean`.
        mean, kind = mean + resting, "components"
        names = tuple(f"expression_{i:03d}" for i in range(expression.shape[2]))
    else:
        beside = _expressions_beside(source.path, count)
        if beside is not None:
            names, expression = beside[0], beside[1]
            notes.append(f"expressions from {beside[2].name}")

    extent = float(np.ptp(mean, axis=0).max()) if count else 0.0
    unit = next((u for u in _UNITS_MM if 60.0 < u * extent < 600.0), 1.0)
    if unit != 1.0:
        notes.append(f"the unit is not given; {unit:g} mm makes the head {unit * extent:.0f} mm large")

    albedo_mean = albedo_modes = None
    if array(arrays, "color_model/mean", source, (None, 1)).size:
        albedo_mean, albedo_modes = _pca(arrays, "color_model", source)
        if len(albedo_mean) != count:
            raise ModelFileError(f"{source.path}: colours of {len(albedo_mean)} vertices, expected {count}.")
        if np.abs(albedo_mean).max() > 2.0:
            albedo_mean, albedo_modes = albedo_mean / 255, albedo_modes / 255
            notes.append("colours were 0 to 255")

    landmarks, how = _landmarks(arrays, mean, source.path)
    notes += how
    coordinates = array(arrays, "texture_coordinates", source, (None, 2)).astype(np.float32)
    uv, origin = None, None
    corners = arrays.get("texture_triangle_indices")
    if corners is not None and len(corners):
        corners = array(arrays, "texture_triangle_indices", source, (len(triangles), 3), "i")
        _indices(corners, len(coordinates), "texture_triangle_indices", source)
        _indices(triangles, count, "shape_model/triangle_list", source)
        triangles, uv, origin = split_seams(triangles, coordinates, corners, count)
    elif len(coordinates):
        if len(coordinates) != count:
            raise ModelFileError(
                f"{source.path}: {len(coordinates)} texture coordinates, expected {count}, one for each vertex. Is the "
                "file complete?"
            )
        uv = coordinates

    def placed(values):
        return values if values is None or origin is None else values[origin]

    return Contents(
        name="Surrey Face Model" if surrey else source.path.stem,
        format="sfm",
        licence="Surrey Face Model licence (University of Surrey): non-commercial research" if surrey else "unknown",
        licence_class="non-commercial" if surrey or source.path.stem.lower().startswith("4dfm") else "unknown",
        mean=placed(unit * mean),
        identity=placed(unit * modes),
        triangles=triangles,
        unit_mm=unit,
        expression=None if expression is None else placed(unit * expression),
        expression_names=names,
        expression_kind=kind,
        albedo_mean=placed(albedo_mean),
        albedo_modes=placed(albedo_modes),
        uv=uv,
        landmarks=landmarks,
        sources=(
            "Huber et al. 2016, A Multiresolution 3D Morphable Face Model and Fitting Framework, VISAPP"
            if surrey
            else "a model in eos's format; its own authors are not named in the file",
        ),
        notes=tuple(notes),
    )


def _pca(arrays, name: str, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Mean (vertex, 3), and modes (vertex, 3, rank) at one standard deviation."""
    mean = array(arrays, f"{name}/mean", source, (None, 1))
    basis = array(arrays, f"{name}/orthonormal_pca_basis", source, (len(mean), None))
    variances = array(arrays, f"{name}/eigenvalues", source, (basis.shape[1], 1))[:, 0]
    if len(mean) % 3 or not (variances >= 0).all():
        raise ModelFileError(
            f"{source.path}: {name!r}: got {len(mean)} coordinates and variances from {variances.min(initial=0.0):.3g},"
            " expected x, y, z for each vertex and variances of 0 or more. Is the file damaged?"
        )
    return mean.reshape(-1, 3), (basis * np.sqrt(variances)).reshape(-1, 3, basis.shape[1])


def _indices(indices: np.ndarray, below: int, name: str, source: Source):
    if indices.size and not (0 <= indices.min() and indices.max() < below):
        raise ModelFileError(
            f"{source.path}: {name!r}: got indices {indices.min()} to {indices.max()}, expected 0 to {below - 1}."
        )


def _checked_blendshapes(found: Blendshapes, count: int, path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    if len(found.deformations) != 3 * count:
        raise ModelFileError(
            f"{path}: blendshapes of {len(found.deformations)} coordinates, expected {3 * count}, 3 for each vertex."
        )
    return found.names, found.deformations.reshape(count, 3, -1).astype(np.float64)


def _expressions_beside(path: Path, count: int) -> tuple[tuple[str, ...], np.ndarray, Path] | None:
    """The blendshapes of `expression_blendshapes_*.bin` in the model's folder with the model's number of vertices."""
    for other in sorted(path.parent.glob("expression_blendshapes_*.bin")):
        # The name says for how many vertices; another resolution's file is not opened, and must not be an error.
        if re.search(r"_(\d+)", other.stem) and str(count) not in re.findall(r"\d+", other.stem):
            continue
        return *_checked_blendshapes(read_blendshapes(other), count, other), other
    return None


def _beside(path: Path, pattern: str, count: int) -> Path | None:
    """The file named after a family (`*` in the pattern) with which the model's name begins, the longest if several."""
    before, after = pattern.split("*")
    family = {p: p.name.removeprefix(before).removesuffix(after) for p in path.parent.glob(pattern) if p.is_file()}
    fitting = [p for p, f in family.items() if path.stem.startswith(f) or (f == "sfm" and count in _SURREY_SIZES)]
    found = max(fitting, key=lambda p: len(family[p]), default=None)
    if found is not None and found.stat().st_size > _LARGEST_SIDE_FILE:
        raise ModelFileError(f"{found}: {found.stat().st_size >> 20} MiB, expected a short table. Is it another file?")
    return found


def _landmarks(arrays, mean: np.ndarray, path: Path) -> tuple[Points | None, list[str]]:
    """iBUG-68 from the mapping beside the model, else from names in it; and where they are from."""
    count = len(mean)
    defined = arrays.get("landmark_definitions") or {}
    vertices = {_NAMED[name]: vertex for name, vertex in defined.items() if name in _NAMED}
    notes = [f"{len(vertices)} landmarks by name"] if vertices else []
    mapping = _beside(path, "ibug_to_*.txt", count)
    if mapping is not None:
        vertices |= _mapped(mapping, defined)
        notes.append(f"landmarks from {mapping.name}")
    vertices = {landmark: vertex for landmark, vertex in vertices.items() if 0 <= vertex < count}
    contours = _beside(path, "*_model_contours.json", count)
    if contours is not None and {_CHIN, *_EYES_OUTER} <= vertices.keys():
        vertices = _jaw(contours, mean, vertices) | vertices
        notes.append(f"landmarks of the jaw spread along the contours in {contours.name}, from the eyes' height")
    return (Points.at_vertices(vertices) if vertices else None), notes


def _mapped(path: Path, defined: Mapping[str, int]) -> dict[int, int]:
    """eos's mapping: a TOML table from iBUG numbers, counted from 1, to vertices or names of landmarks in the model."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("landmark_mappings", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ModelFileError(
            f"{path}: not a table of landmarks ({error}); expected eos's TOML. Move it away."
        ) from error
    vertices = {}
    for key, value in table.items() if isinstance(table, dict) else ():
        vertex = defined.get(value) if isinstance(value, str) else value
        if key.isdecimal() and 1 <= int(key) <= 68 and isinstance(vertex, int):
            vertices[int(key) - 1] = vertex
    return vertices


def _jaw(path: Path, mean: np.ndarray, vertices: Mapping[int, int]) -> dict[int, int]:
    """Vertices of a side's contour at equal distances from the eye's height to the chin, for iBUG 0-7 and 9-16.

    eos has no fixed vertices for the jaw; it takes, for each pose, those of the contour that are seen nearest.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["model_contour"]
        sides = [np.asarray(table[f"{side}_contour"], np.int64) for side in ("right", "left")]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{path}: not a table of contours ({error}); expected eos's. Move it away.") from error
    jaw = {}
    for contour, eye, places in zip(sides, _EYES_OUTER, (range(8), range(16, 8, -1)), strict=True):
        if contour.ndim != 1 or not contour.size or contour.min() < 0 or contour.max() >= len(mean):
            raise ModelFileError(f"{path}: got contours that are no vertices 0 to {len(mean) - 1}. Move it away.")
        top = int(np.abs(mean[contour, 1] - mean[vertices[eye], 1]).argmin())
        line = np.r_[contour[top:], vertices[_CHIN]]
        along = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(mean[line], axis=0), axis=1))]
        for step, place in enumerate(places):
            jaw[place] = int(line[np.abs(along - along[-1] * step / 8).argmin()])
    return jaw


LAYOUTS: tuple[Layout, ...] = (Layout("sfm", "cereal", _matches, _read),)
