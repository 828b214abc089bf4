"""A small folder of OBJ meshes as ICT-FaceKit's FaceXModel."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from published.bfm import COUNT, SIDE, face
from published.landmarks import IBUG

EYE_CENTRES_MM = {"Left": np.array([32.0, 32.0, 30.0]), "Right": np.array([-32.0, 32.0, 30.0])}
EYE_RADIUS_MM, GAZE_RADIANS = 12.0, 0.35
MATERIALS = ("M_Face", "M_Teeth", "M_ScleraLeft", "M_ScleraRight", "M_EyeOcclusion", "M_EyeLashes")
EXPRESSIONS = (
    "jawOpen",
    "browInnerUp_L",
    "browInnerUp_R",
    "mouthSmile_L",
    "eyeLookUp_L",
    "eyeLookUp_R",
    "PupilDilate_L",
)


def truth_of(writer, seed: int = 0) -> dict[str, Any]:
    """Vertices of all meshes, mm; polygons by material; texture coordinates of each polygon's corners, v up."""
    rng = np.random.default_rng(seed)
    skin, _ = face()
    i = np.arange(COUNT).reshape(SIDE, SIDE)
    grid = np.stack([i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]], axis=-1).reshape(-1, 4)
    pieces, polygons = [skin], {"M_Face": grid.tolist()}
    count = COUNT

    def add(material, vertices, faces):
        nonlocal count
        pieces.append(vertices)
        polygons.setdefault(material, []).extend([[count + k for k in f] for f in faces])
        count += len(vertices)
        return np.arange(count - len(vertices), count)

    cube = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], float)
    sides = [[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]]
    ranges = {}
    for row, y in (("upper", -25.0), ("lower", -40.0)):
        ids = [add("M_Teeth", 5 * cube + [x, y, 40], sides) for x in (-8, 8)]
        ranges[f"teeth_{row}"] = np.concatenate(ids)
    for side, centre in EYE_CENTRES_MM.items():
        ranges[f"eye_{side.lower()}"] = add(f"M_Sclera{side}", EYE_RADIUS_MM / np.sqrt(3) * cube + centre, sides)
    flat = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float)
    ranges["shell"] = add("M_EyeOcclusion", 8 * flat + [32, 32, 45], [[0, 1, 2, 3]])
    for side, x in (("left", 32), ("right", -32)):
        ranges[f"lashes_{side}"] = add("M_EyeLashes", 4 * flat + [x, 38, 46], [[0, 1, 2, 3]])
    neutral = np.concatenate(pieces)

    def smooth(size):
        waves, phase = rng.normal(size=(6, 3)) / 60, rng.uniform(0, 6, 6)
        return (np.cos(neutral @ waves.T + phase) @ rng.normal(size=(6, 3 * size))).reshape(len(neutral), 3, size)

    shapes = 3 * smooth(len(EXPRESSIONS))
    identity = 2 * smooth(3)
    for side, centre in EYE_CENTRES_MM.items():
        ids = ranges[f"eye_{side.lower()}"]
        # Modes move and scale the balls; of the gazes, only the left one's shape turns its ball.
        identity[ids] = rng.normal(size=(1, 3, 3)) + 0.05 * (neutral[ids] - centre)[..., None]
        shapes[ids] = 0.0
        if side == "Left":
            c, s = np.cos(GAZE_RADIANS), np.sin(GAZE_RADIANS)
            turn = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])  # by -GAZE_RADIANS about x: upwards
            offsets = neutral[ids] - centre
            shapes[ids, :, EXPRESSIONS.index("eyeLookUp_L")] = offsets @ turn.T - offsets
    return {
        "mean_mm": neutral,
        "identity_mm": identity,
        "expression_mm": dict(zip(EXPRESSIONS, np.moveaxis(shapes, -1, 0), strict=True)),
        "polygons": polygons,
        "ranges": ranges,
    }


def write_ict(folder: Path, seed: int = 0) -> Path:
    """`FaceXModel` (github.com/ICT-VGL/ICT-FaceKit, README "Face Model Topology" and "Expression Shapes"; names of
    files and materials as in the repository): cm, quads, `v/vt` corners from 1, texture coordinates in a map for
    each material, next to each other; identityNNN.obj at one standard deviation; `idx_to_landmark_verts` in
    vertex_indices.json.
    """
    truth = truth_of(write_ict, seed)
    path = folder / "FaceXModel"
    path.mkdir()
    lines, places = [], []
    for tile, material in enumerate(MATERIALS):
        lines.append(f"usemtl {material}")
        for polygon in truth["polygons"][material]:
            corners = truth["mean_mm"][polygon]
            uv = np.clip(0.5 + corners[:, :2] / [160, 200], 0.01, 0.99) + [tile, 0]
            lines.append("f " + " ".join(f"{v + 1}/{len(places) + k + 1}" for k, v in enumerate(polygon)))
            places += [f"vt {u:.6f} {v:.6f}" for u, v in uv]
    tail = "\n".join([*places, *lines]) + "\n"

    def write(name, vertices):
        rows = [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in vertices / 10]
        (path / f"{name}.obj").write_text(
            "# a comment\nmtllib ICTFaceModelMaterial.mtl\n" + "\n".join(rows) + "\n" + tail
        )

    write("generic_neutral_mesh", truth["mean_mm"])
    for k in range(truth["identity_mm"].shape[2]):
        write(f"identity{k:03d}", truth["mean_mm"] + truth["identity_mm"][..., k])
    for name, shape in truth["expression_mm"].items():
        write(name, truth["mean_mm"] + shape)
    table = {"expressions": list(EXPRESSIONS), "idx_to_landmark_verts": IBUG.tolist()}
    (path / "vertex_indices.json").write_text(json.dumps(table))
    return path
