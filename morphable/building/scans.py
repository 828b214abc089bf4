"""Scans to build a model from, and how they are read from files."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

FORMATS = (".obj", ".ply", ".stl", ".glb", ".gltf", ".off")
UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
NEUTRAL = "neutral"
TABLE = "scans.csv"


class BuildError(ValueError):
    """Scans or settings that no model can be built from: what, got, expected, remedy."""


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan of a face, in coordinates of its own."""

    name: str
    vertices: Float[np.ndarray, "point 3"]  # mm
    triangles: Int[np.ndarray, "triangle 3"]
    subject: str
    expression: str = NEUTRAL
    landmarks: Float[np.ndarray, "68 3"] | None = None  # mm, iBUG's order, NaN rows unknown
    colours: Float[np.ndarray, "point 3"] | None = None  # sRGB-encoded, 0 to 1
    labels: dict[str, float] = field(default_factory=dict)  # of the subject: age, weight, ...


def read_scans(paths: Sequence[str | Path], unit: str = "mm") -> list[Scan]:
    """Read meshes (OBJ, PLY, STL, OFF, glTF) from files, from folders, and from tables of files.

    A table is a CSV file with a column `file` (relative to the table) and, where wanted, `subject`, `expression` and
    columns of numbers, which become labels; empty cells are unknown. A folder is read by its `scans.csv` where it has
    one, else all its meshes are; a mesh without a table is the neutral scan of a subject of its own. Landmarks lie
    beside a mesh: `NAME.landmarks.npy` or `NAME.landmarks.json`, (68, 3) in the mesh's coordinates and unit, NaN or
    null where unknown. Colours are the vertices' or the texture's at the vertices.

    unit: of all these files, "mm", "cm" or "m"; meshes do not say it.
    Raises BuildError, which names the file.
    """
    if unit not in UNITS_MM:
        raise BuildError(f"unit: got {unit!r}, expected one of {', '.join(UNITS_MM)}.")
    scans = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in FORMATS)
            if (path / TABLE).exists():
                scans += _table(path / TABLE, UNITS_MM[unit])
            elif files:
                scans += [read_scan(p, unit) for p in files]
            else:
                raise BuildError(
                    f"{path}: got a folder without meshes, expected {TABLE} or files {', '.join(FORMATS)}."
                )
        elif path.suffix.lower() == ".csv":
            scans += _table(path, UNITS_MM[unit])
        else:
            scans.append(read_scan(path, unit))
    names = [scan.name for scan in scans]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise BuildError(f"scans: got {twice[0]} twice, expected every scan once.")
    return scans


def read_scan(path: str | Path, unit: str = "mm") -> Scan:
    """Read one mesh and the landmarks beside it, as the neutral scan of a subject named as the file."""
    path = Path(path)
    return _read(path, UNITS_MM[unit], path.stem, NEUTRAL, {})


def _table(path: Path, unit_mm: float) -> list[Scan]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BuildError(f"{path}: cannot be read as a table ({error}); expected a CSV file in UTF-8.") from error
    if not rows or "file" not in rows[0]:
        found = ", ".join(name for name in rows[0] if name) if rows else "no rows"
        raise BuildError(f"{path}: got {found}, expected a header line with a column 'file' and a row for each scan.")
    scans = []
    for number, row in enumerate(rows, 2):
        labels = {}
        for name, text in row.items():
            if name in ("file", "subject", "expression") or name is None or not (text or "").strip():
                continue
            try:
                labels[name] = float(text)
            except ValueError as error:
                raise BuildError(
                    f"{path} line {number}: got {name} = {text!r}, expected a number or nothing. "
                    "Write classes as 0 and 1."
                ) from error
        name = (row["file"] or "").strip()
        if not name:
            raise BuildError(f"{path} line {number}: got no file, expected one in each row.")
        subject = (row.get("subject") or "").strip() or Path(name).stem
        expression = (row.get("expression") or "").strip() or NEUTRAL
        scans.append(_read(path.parent / name, unit_mm, subject, expression, labels))
    return scans


def _read(path: Path, unit_mm: float, subject: str, expression: str, labels: dict[str, float]) -> Scan:
    import trimesh

    if path.suffix.lower() not in FORMATS:
        raise BuildError(f"{path}: got a file {path.suffix or 'without suffix'}, expected {', '.join(FORMATS)}.")
    if not path.exists():
        raise BuildError(f"{path}: no such file. Paths in a table are relative to the table.")
    try:
        mesh = trimesh.load_mesh(path, process=False, maintain_order=True)
    except Exception as error:  # trimesh's readers raise whatever they stumble over
        raise BuildError(f"{path}: cannot be read as a mesh ({error}). Is the file complete?") from error
    triangles = np.asarray(getattr(mesh, "faces", []), np.int64).reshape(-1, 3)
    if len(triangles) == 0:
        raise BuildError(f"{path}: got no triangles, expected a surface. Point clouds must be triangulated first.")
    vertices: np.ndarray = np.asarray(mesh.vertices, float) * unit_mm
    size = float(np.ptp(vertices[triangles.ravel()], axis=0).max())
    if not 50 < size < 3000:
        raise BuildError(
            f"{path}: got a surface of {size:.3g} mm, expected a face, 100 to 400 mm. Give the file's --unit: "
            f"{', '.join(UNITS_MM)}."
        )
    landmarks = _landmarks(path, unit_mm)
    return Scan(path.as_posix(), vertices, triangles, subject, expression, landmarks, _colours(mesh), labels)


def _colours(mesh) -> np.ndarray | None:
    visual = mesh.visual
    if visual.kind == "texture" and visual.uv is not None:
        material = visual.material
        image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
        visual = visual.to_color() if image is not None else None
    elif visual.kind != "vertex":
        visual = None
    colours = None if visual is None else np.asarray(visual.vertex_colors)
    if colours is None or colours.shape != (len(mesh.vertices), 4):
        return None
    return colours[:, :3].astype(float) / 255


def _landmarks(path: Path, unit_mm: float) -> np.ndarray | None:
    binary, text = path.with_suffix(".landmarks.npy"), path.with_suffix(".landmarks.json")
    found = binary if binary.exists() else text if text.exists() else None
    if found is None:
        return None
    try:
        if found == binary:
            points = np.asarray(np.load(found, allow_pickle=False), float)
        else:
            rows = json.loads(found.read_text(encoding="utf-8"))
            hidden = [np.nan] * 3
            points = np.array(
                [hidden if row is None else [np.nan if x is None else x for x in row] for row in rows], float
            )
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise BuildError(f"{found}: cannot be read as landmarks ({error}); expected 68 points.") from error
    if points.shape != (68, 3):
        raise BuildError(
            f"{found}: got landmarks of shape {points.shape}, expected (68, 3), iBUG's order, NaN rows where unknown."
        )
    return points * unit_mm
