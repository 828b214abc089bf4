"""Reading what an evaluation compares: scans, meshes, fits, true landmarks, and which belongs to which."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from fitting.evaluation import NOW_CROP, NOW_LANDMARKS, EvaluationError, FaceMesh, Scan, crop, visible_skin
from fitting.observation import LANDMARK_COUNT
from morphable.model import MorphableModel

Jaw = Literal["mandible", "outline"]  # where points 0 to 16 lie: docs/conventions.md

_MESH_SUFFIXES = (".npz", ".obj", ".ply", ".stl", ".off")
_UNIT_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}


def _arrays(path: Path, wants: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise EvaluationError(f"{path}: got a single array, expected {wants} in an .npz. Save it by np.savez.")
            return {name: file[name] for name in file.files}
    except EvaluationError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}), expected {wants}. Check the file's name.") from error


def _required(arrays: Mapping[str, np.ndarray], path: Path, names: Sequence[str], what: str) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise EvaluationError(
        f"{path}: expected {' or '.join(map(repr, names))} for {what}, got {', '.join(sorted(arrays))}. "
        "docs/evaluation.md lists the arrays of each kind of file."
    )


def read_mesh(path: str | os.PathLike) -> tuple[Float[np.ndarray, "vertex 3"], Int[np.ndarray, "triangle 3"]]:
    """Vertices and triangles of an .obj, .ply, .stl or .off file, in the file's order and unit."""
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f"{path}: there is no such file, expected a mesh. Check its name.")
    if path.suffix.lower() == ".obj":
        return _read_obj(path)
    import trimesh

    try:
        # Vertices merged or sorted would no longer be those that landmarks and masks count.
        mesh: Any = trimesh.load(path, process=False, maintain_order=True, force="mesh")
        vertices, triangles = np.array(mesh.vertices, float), np.array(mesh.faces, int)
    except Exception as error:  # trimesh's readers raise whatever they stumble over
        raise EvaluationError(
            f"{path}: cannot be read ({error}), expected one of {', '.join(_MESH_SUFFIXES)}. Convert it to OBJ."
        ) from error
    return vertices, triangles.reshape(-1, 3)


def _read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions and polygons alone: colours after a position, texture coordinates and groups do not matter here."""
    vertices, triangles = [], []
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("v "):
                vertices.append([float(x) for x in line.split()[1:4]])
            elif line.startswith("f "):
                corners = [int(corner.split("/")[0]) for corner in line.split()[1:]]
                corners = [c - 1 if c > 0 else len(vertices) + c for c in corners]
                triangles += [[corners[0], corners[k], corners[k + 1]] for k in range(1, len(corners) - 1)]
        positions = np.array(vertices, float).reshape(-1, 3)
        faces = np.array(triangles, int).reshape(-1, 3)
        if len(positions) == 0 or (len(faces) and (faces.min() < 0 or faces.max() >= len(positions))):
            raise ValueError(f"{len(positions)} vertices and faces beyond them")
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path}: cannot be read as OBJ ({error}), expected lines 'v x y z' and 'f i j k'."
        ) from error
    return positions, faces


def read_landmarks3d(path: str | os.PathLike) -> Float[np.ndarray, "68 3"]:
    """3D landmarks from .npy, .json or text: 68 rows in iBUG's order, or NoW's 7; NaN is unknown."""
    path = Path(path)
    expected = (
        "68 rows (iBUG) or 7 (NoW: eye corners from the subject's right to left, nose bottom, mouth corners) of 3"
    )
    try:
        if path.suffix.lower() == ".npy":
            points = np.asarray(np.load(path, allow_pickle=False), float)
        elif path.suffix.lower() == ".json":
            points = np.array(json.loads(path.read_text()), float)
        else:
            points = np.array([line.replace(",", " ").split() for line in path.read_text().splitlines() if line], float)
    except (OSError, ValueError, TypeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}), expected {expected}. Check the file.") from error
    return _landmarks68(points, path, expected)


def _landmarks68(points: np.ndarray, path: Path, expected: str) -> Float[np.ndarray, "68 3"]:
    if points.shape == (len(NOW_LANDMARKS), 3):
        full = np.full((LANDMARK_COUNT, 3), np.nan)
        full[NOW_LANDMARKS] = points
        return full
    if points.shape != (LANDMARK_COUNT, 3):
        raise EvaluationError(f"{path}: got landmarks of shape {points.shape}, expected {expected}. Check the file.")
    return np.asarray(points, float)


def _landmarks_for(mesh: Path, given: Path | None) -> Float[np.ndarray, "68 3"]:
    path = mesh.with_suffix(".npy") if given is None else given
    if not path.is_file():
        raise EvaluationError(
            f"{mesh}: got no landmarks at {path}, expected a file of 68 or 7 3D points on this mesh, in its unit. "
            "Name it with --landmarks (of a prediction) or --scan-landmarks."
        )
    return read_landmarks3d(path)


def read_scan(
    path: str | os.PathLike,
    landmarks: str | os.PathLike | None = None,
    expression: int = 0,
    mask: str | None = None,
    crop_factor: float | None = None,
) -> Scan:
    """A ground truth in mm: .npz (docs/evaluation.md lists its keys), or a mesh file with landmarks beside it.

    `expression` K counts the .npz's expression meshes from 1, 0 is neutral. Counted are the vertices of the named
    mask (by default face_mask where there is one) that are within `crop_factor` (see `crop`; by default NoW's for a
    scan without a mask).
    """
    path = Path(path)
    given = None if landmarks is None else Path(landmarks)
    inside = None
    if path.suffix.lower() == ".npz":
        arrays = _arrays(path, "a scan")
        vertices = np.asarray(_required(arrays, path, ("verts", "vertices"), "a scan"), float)
        triangles = np.asarray(arrays.get("tris", arrays.get("triangles", np.empty((0, 3), int))), int)
        _check_mesh(vertices, triangles, path)
        if expression:
            meshes = _required(arrays, path, ("verts_expr",), f"expression {expression}")
            if not 1 <= expression <= len(meshes):
                raise EvaluationError(f"{path}: got expression {expression}, expected 1 to {len(meshes)}, or 0.")
            if given is None and "lmk_idx" not in arrays:
                raise EvaluationError(
                    f"{path}: got no landmarks of expression {expression}, expected 'lmk_idx', for landmarks3d is "
                    "of the neutral face. Name them with --scan-landmarks."
                )
            vertices = vertices.copy()
            vertices[: meshes.shape[1]] = meshes[expression - 1]
        if given is not None:
            points = read_landmarks3d(given)
        elif "lmk_idx" in arrays:
            points = vertices[arrays["lmk_idx"]]
        else:
            points = np.asarray(_required(arrays, path, ("landmarks3d", "lmk3d"), "a scan's alignment"), float)
        points = _landmarks68(points, path, "(68, 3) or (7, 3)")
        name = "face_mask" if mask is None and "face_mask" in arrays else mask
        if name is not None:
            inside = np.asarray(_required(arrays, path, (name,), "--mask"))
            if inside.shape != (len(vertices),):
                raise EvaluationError(f"{path}: got mask {name} of shape {inside.shape}, expected ({len(vertices)},).")
            inside = inside > 0.5
    else:
        if mask is not None or expression:
            raise EvaluationError(
                f"{path}: --mask and --expression name arrays of an .npz, got a mesh file. Use --crop."
            )
        vertices, triangles = read_mesh(path)
        _check_mesh(vertices, triangles, path)
        points = _landmarks_for(path, given)
    if inside is None:
        inside = crop(vertices, points, NOW_CROP if crop_factor is None else crop_factor)
    elif crop_factor is not None:
        inside = inside & crop(vertices, points, crop_factor)
    area = _vertex_area(vertices, triangles, inside)
    return _scan(vertices, area, points, inside & np.isfinite(vertices).all(axis=1), subject_name(path))


def _check_mesh(vertices: np.ndarray, triangles: np.ndarray, path: Path) -> None:
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        raise EvaluationError(
            f"{path}: got vertices {vertices.shape} and triangles {triangles.shape}, expected (V, 3) and (T, 3)."
        )
    if len(triangles) and not 0 <= triangles.min() <= triangles.max() < len(vertices):
        raise EvaluationError(
            f"{path}: got triangles of vertices {triangles.min()} to {triangles.max()}, expected 0 to "
            f"{len(vertices) - 1}. Are they counted from 1?"
        )


def _scan(vertices, area, landmarks, inside, name) -> Scan:
    vertex = np.flatnonzero(inside)
    if len(vertex) < 10:
        raise EvaluationError(
            f"{name}: got {len(vertex)} points of the scan to score, expected at least 10. Do its mask and landmarks "
            "belong to it, and is it in mm?"
        )
    counted = area[vertex]
    return Scan(vertices[vertex], counted if counted.sum() > 0 else np.ones(len(vertex)), landmarks, vertex, name)


def _vertex_area(vertices, triangles, inside) -> Float[np.ndarray, " vertex"]:
    """A third of the area of each triangle that lies wholly inside, for each of its corners."""
    whole = triangles[inside[triangles].all(axis=1)]
    a, b, c = (vertices[whole[:, k]] for k in range(3))
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return np.sum([np.bincount(whole[:, k], area / 3, len(vertices)) for k in range(3)], axis=0)


def read_fit(path: str | os.PathLike, model: MorphableModel | None = None) -> dict[str, np.ndarray]:
    """The arrays of fit.npz, from the file or its folder; with a model, whether that is the one it was made with."""
    path = Path(path)
    path = path / "fit.npz" if path.is_dir() else path
    arrays = _arrays(path, "what `facefit fit` writes")
    _required(arrays, path, ("neutral_vertices",), "a fit")
    if model is not None and not np.array_equal(arrays["triangles"], np.asarray(model.triangles)):
        raise EvaluationError(
            f"{path}: got a fit of another model than {model.provenance.name} (its triangles differ), expected the "
            "same. Name the fit's model with --model."
        )
    return arrays


def read_prediction(
    path: str | os.PathLike,
    model: MorphableModel,
    landmarks: str | os.PathLike | None = None,
    expression: bool = False,
    every_triangle: bool = False,
    unit: str = "mm",
) -> FaceMesh:
    """A mesh to score: a folder or fit.npz of `facefit fit`, another .npz (vertices, triangles, landmarks3d), or a mesh
    file with landmarks beside it.

    Of a fit the visible skin is taken, with its expression or neutral; a fit is in mm, the rest in `unit`.
    """
    path = Path(path)
    name = subject_name(path)
    scale = _UNIT_MM[unit]
    if path.is_dir() or (path.suffix == ".npz" and "neutral_vertices" in _arrays(path, "a mesh")):
        arrays = read_fit(path, model)
        prefix = "" if expression else "neutral_"
        triangles = arrays["triangles"] if every_triangle else visible_skin(model)
        vertices, points = arrays[f"{prefix}vertices"], arrays[f"{prefix}landmarks3d"]
        if not np.isfinite(vertices).all():
            raise EvaluationError(f"{path}: got vertices that are not finite, expected a fit that did not fail.")
        return FaceMesh(vertices.astype(float), triangles, points.astype(float), name)
    if path.suffix.lower() == ".npz":
        arrays = _arrays(path, "a mesh")
        vertices = np.asarray(_required(arrays, path, ("vertices", "verts"), "a mesh"), float)
        triangles = np.asarray(_required(arrays, path, ("triangles", "tris"), "a mesh"), int)
        if landmarks is None:
            points = _landmarks68(
                np.asarray(_required(arrays, path, ("landmarks3d",), "a mesh"), float), path, "(68, 3) or (7, 3)"
            )
        else:
            points = read_landmarks3d(landmarks)
    else:
        vertices, triangles = read_mesh(path)
        points = _landmarks_for(path, None if landmarks is None else Path(landmarks))
    _check_mesh(vertices, triangles, path)
    return FaceMesh(scale * vertices, triangles, scale * points, name)


def subject_name(path: Path) -> str:
    """What a subject is called: its file, or the folder of a file that bears the same name for every subject."""
    if path.is_dir():
        return path.resolve().name
    shared = path.stem in ("fit", "gt", "scan", "truth")
    return path.resolve().parent.name if shared else path.stem


def paired(
    predictions: Sequence[Path], truths: Sequence[Path], what: str = "scan", names: Sequence[str] = ("gt", "scan")
) -> list[tuple[Path, Path]]:
    """Predictions with their ground truths: as many of each, or a folder of truths in which each finds its own.

    A folder without fit.npz among the predictions stands for all fits and meshes in it. In a folder of truths the one
    of subject NAME is NAME.npz (or a mesh), or NAME/gt.npz or the like.
    """
    found = []
    if not predictions or not truths:
        raise EvaluationError(
            f"got {len(predictions)} prediction(s) and {len(truths)} {what}(s), expected one or more. Name them."
        )
    for path in predictions:
        if path.is_dir() and not (path / "fit.npz").exists():
            children = [p for p in sorted(path.iterdir()) if (p / "fit.npz").exists() or p.suffix in _MESH_SUFFIXES]
            if not children:
                raise EvaluationError(f"{path}: got a folder without fits or meshes, expected fit.npz in it or below.")
            found += children
        elif not path.exists():
            raise EvaluationError(f"{path}: there is no such file, expected a fit's folder or a mesh. Check its name.")
        else:
            found.append(path)
    if len(truths) == 1 and truths[0].is_dir():
        return [(path, _truth_of(subject_name(path), truths[0], what, names)) for path in found]
    if len(truths) != len(found):
        raise EvaluationError(
            f"got {len(found)} prediction(s) and {len(truths)} {what}(s), expected as many of each in the same order, "
            f"or one folder of {what}s."
        )
    return list(zip(found, truths, strict=True))


def _truth_of(subject: str, folder: Path, what: str, names: Sequence[str]) -> Path:
    tried = [folder / f"{subject}{suffix}" for suffix in _MESH_SUFFIXES]
    tried += [folder / subject / f"{name}{suffix}" for name in names for suffix in _MESH_SUFFIXES]
    for path in tried:
        if path.is_file():
            return path
    raise EvaluationError(
        f"{folder}: got no {what} of {subject}, expected {tried[0].name} or {subject}/{names[0]}.npz. Rename one."
    )


def read_regions(path: str | os.PathLike, scan: Scan) -> dict[str, Bool[np.ndarray, " point"]]:
    """Regions of a scan from an .npz of named vertex masks, or from a folder of such files by subject."""
    path = Path(path)
    if path.is_dir():
        path = _truth_of(scan.name, path, "region file", ("regions",))
    arrays = _arrays(path, "masks of the scan's vertices, by region")
    regions = {}
    for name, mask in arrays.items():
        if mask.ndim != 1 or scan.vertex.max() >= len(mask):
            raise EvaluationError(
                f"{path}: got region {name!r} of shape {mask.shape}, expected one value for each vertex of the scan "
                f"{scan.name}, at least {scan.vertex.max() + 1}. Is it of another scan?"
            )
        regions[name] = np.asarray(mask)[scan.vertex] > 0.5
    return regions


def read_landmark_predictions(path: str | os.PathLike, jaw: Jaw = "mandible") -> dict[str, Float[np.ndarray, "68 2"]]:
    """2D landmarks by image name: from an .npz of (68, 2) arrays, or a folder of fits, one for each image.

    Fits have the jaw in both conventions; other predictions are taken as they are.
    """
    path = Path(path)
    if path.is_dir():
        fits = {p.parent.name: p for p in sorted(path.glob("*/fit.npz"))}
        if not fits:
            raise EvaluationError(f"{path}: got no fits, expected IMAGE/fit.npz for each image. Fit them into it.")
        name_2d = {"mandible": "landmarks2d", "outline": "matched2d"}[jaw]
        predictions = {name: _required(_arrays(p, "a fit"), p, (name_2d,), "a fit")[0] for name, p in fits.items()}
    else:
        predictions = _arrays(path, "one (68, 2) array for each image")
    for name, points in predictions.items():
        if points.shape != (LANDMARK_COUNT, 2):
            raise EvaluationError(
                f"{path}: got {name!r} of shape {points.shape}, expected ({LANDMARK_COUNT}, 2): an array for each "
                "image, by the image's name without extension. For fits give their folder."
            )
    return {name: np.asarray(points, float) for name, points in predictions.items()}


def read_landmark_truth(
    path: str | os.PathLike, key: str = "pts68_2d"
) -> tuple[list[str], Float[np.ndarray, "image 68 2"], Float[np.ndarray, " image"]]:
    """Image names without extension, true points in pixels and yaw in degrees, from an index.npz."""
    path = Path(path)
    arrays = _arrays(path, "names, points and yaw_deg")
    names, points, yaw = (_required(arrays, path, (k,), "the truth") for k in ("names", key, "yaw_deg"))
    if points.shape != (len(names), LANDMARK_COUNT, 2) or yaw.shape != (len(names),):
        raise EvaluationError(
            f"{path}: got {key} {points.shape} and yaw_deg {yaw.shape} for {len(names)} names, expected "
            f"({len(names)}, {LANDMARK_COUNT}, 2) and ({len(names)},)."
        )
    return [str(n).rsplit(".", 1)[0] for n in names], points.astype(float), yaw.astype(float)


def read_truth(path: str | os.PathLike, model: MorphableModel) -> dict[str, Float[np.ndarray, "vertex 3"]]:
    """`vertices` and `neutral_vertices` of a synthetic face, from what `facefit synthesize` or `fit` wrote."""
    path = Path(path)
    arrays = _arrays(path, "a synthetic face's truth")
    vertices = np.asarray(_required(arrays, path, ("vertices",), "a truth"), float)
    if "neutral_vertices" in arrays:
        return {"vertices": vertices, "neutral_vertices": np.asarray(arrays["neutral_vertices"], float)}
    identity = _required(arrays, path, ("identity",), "a truth without neutral_vertices")
    if identity.ndim != 1 or len(identity) > model.shape.rank:
        raise EvaluationError(
            f"{path}: got identity of shape {identity.shape}, expected at most {model.shape.rank} coefficients. "
            "Name the truth's model with --model."
        )
    neutral = np.asarray(model.neutral(jnp.asarray(identity, jnp.float32)), float)
    return {"vertices": vertices, "neutral_vertices": neutral}
