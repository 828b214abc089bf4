"""How close the model can come to real shapes: all components fitted directly to ground-truth meshes.

    python benchmarks/registration.py --shared ../shared

The floor under every photo fit. Non-rigid ICP restricted to the model's space: similarity and coefficients alternate
with closest points, point to plane with a small tangential part, N(0, 1) on the coefficients. Distances are from the
scan's visible narrow face to the model's surface, true millimetres.
"""

import argparse
import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphable  # noqa: E402
from morphable.mesh import vertex_normals  # noqa: E402

SIGMA_MM = 1.0  # of a point's distance to its plane
TANGENTIAL = 0.05  # weight of the motion within the plane: closest points slide
ROUNDS = 30


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--components", type=int, default=100)
    args = parser.parse_args()
    scorer = load_scorer(args.shared)
    model = morphable.load()
    rows = []
    for folder in sorted((args.shared / "data" / "ict_dev").iterdir()):
        gt = np.load(folder / "gt.npz")
        rows.append(register(model, gt, scorer, args.components).distances)
        print(f"{folder.name} mean {rows[-1][0]:.3f} median {rows[-1][1]:.3f} p95 {rows[-1][2]:.2f} mm", flush=True)
    rows = np.mean(rows, axis=0)
    print(f"all: mean {rows[0]:.3f} median {rows[1]:.3f} p95 {rows[2]:.2f} mm with {args.components} components")


def load_scorer(shared):
    spec = importlib.util.spec_from_file_location("eval_mesh", shared / "eval" / "eval_mesh.py")
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    return scorer


@dataclasses.dataclass(frozen=True)
class Registration:
    """Where the model ended: `scale * vertices @ rotation.T + offset` lies on the target."""

    coefficients: np.ndarray
    scale: float
    rotation: np.ndarray
    offset: np.ndarray
    distances: tuple[float, float, float]  # mean, median and 95th percentile, mm


def register(model, gt, scorer, components) -> Registration:
    target, triangles = gt["verts"].astype(float), gt["tris"]
    narrow = gt["face_mask_narrow"] & gt["face_mask"]
    scan, scan_normals = target[narrow], np.asarray(vertex_normals(target, triangles))[narrow]
    mean = np.asarray(model.mean, float)
    modes = np.asarray(model.shape.modes, float)[..., :components]
    corners, weights = np.asarray(model.landmarks.vertices), np.asarray(model.landmarks.weights, float)
    at_landmarks = lambda values: np.einsum("lk,lk...->l...", weights, values[corners])  # noqa: E731
    interior = np.asarray(model.masks["interior"]) > 0.5
    ears = np.asarray(model.masks["ears"]) > 0.3
    usable = np.asarray(model.part_of_vertex == model.part_names.index("skin")) & ~interior & ~ears
    faces = np.asarray(model.triangles)
    faces = faces[np.isin(np.arange(len(faces)), model.part("skin").triangles)]
    sources = np.flatnonzero(usable)
    inner = np.arange(17, 68)
    truth = target[gt["lmk_idx"]]
    scale, rotation, offset = scorer.umeyama(at_landmarks(mean)[inner], truth[inner], True)
    coefficients = np.zeros(components)
    for k in range(ROUNDS):
        vertices = mean + modes @ coefficients
        moved = scale * vertices @ rotation.T + offset
        points = moved[sources]
        normals = np.asarray(vertex_normals(moved, faces))[sources]
        # Every scan point pulls the model's nearest vertex along that vertex's normal.
        nearest = cKDTree(points).query(scan)[1]
        points, plane, gap = points[nearest], normals[nearest], scan - points[nearest]
        distance = np.abs((gap * plane).sum(1))
        use = (np.linalg.norm(gap, axis=1) < (15 if k < 6 else 8)) & ((scan_normals * plane).sum(1) > 0.3)
        weight = use / (1 + (distance / 2) ** 2) / SIGMA_MM**2
        basis = scale * np.einsum("ij,vjk->vik", rotation, modes[sources[nearest]])
        spin = np.cross(np.eye(3)[None], (points - offset)[:, None])  # (point, axis, 3)
        columns = np.concatenate(
            [spin.transpose(0, 2, 1), np.tile(np.eye(3), (len(points), 1, 1)), (points - offset)[..., None], basis], 2
        )
        across = np.einsum("pi,pik->pk", plane, columns)
        hessian = (across * weight[:, None]).T @ across
        gradient = across.T @ (weight * (gap * plane).sum(1))
        flat = columns.reshape(-1, columns.shape[2])
        hessian += TANGENTIAL * (flat * np.repeat(weight, 3)[:, None]).T @ flat
        gradient += TANGENTIAL * flat.T @ (np.repeat(weight, 3) * gap.ravel())
        marks = scale * at_landmarks(vertices) @ rotation.T + offset
        trust = max(0.02, 0.7**k) / 3**2
        spin = np.cross(np.eye(3)[None], (marks - offset)[:, None]).transpose(0, 2, 1)
        columns = np.concatenate(
            [spin, np.tile(np.eye(3), (68, 1, 1)), (marks - offset)[..., None]]
            + [scale * np.einsum("ij,vjk->vik", rotation, at_landmarks(modes))],
            2,
        )[inner].reshape(-1, 7 + components)
        hessian += trust * columns.T @ columns
        gradient += trust * columns.T @ (truth - marks)[inner].ravel()
        own = np.arange(7, 7 + components)
        hessian[own, own] += 1
        gradient[own] -= coefficients
        step = np.linalg.solve(hessian, gradient)
        turn = Rotation.from_rotvec(step[:3]).as_matrix()
        rotation, offset, scale = turn @ rotation, offset + step[3:6], scale * np.exp(step[6])
        coefficients = coefficients + step[7:]
    final = scorer.Surface(scale * (mean + modes @ coefficients) @ rotation.T + offset, faces)
    distance = final.query(target[narrow])[0]
    distances = (distance.mean(), np.median(distance), np.quantile(distance, 0.95))
    return Registration(coefficients, scale, rotation, offset, distances)


if __name__ == "__main__":
    main()
