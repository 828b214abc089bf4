"""How close the model comes to real shapes, and how well registration finds what corresponds to what.

    python benchmarks/registration.py --shared ../shared
    python benchmarks/registration.py --sampled 10

The first is the floor under every photo fit: all identity components fitted directly to ground-truth meshes. Non-rigid
ICP restricted to the model's space: similarity and coefficients alternate with closest points, point to plane with a
small tangential part, N(0, 1) on the coefficients. Distances are from the scan's visible narrow face to the model's
surface, true millimetres.

The second samples heads from the model, cuts them into unrelated triangles, adds noise, holes and a motion, registers
the template and measures how far its vertices are from where they truly belong: with the model's own modes as prior,
and with smooth deformations only, as for a template without statistics.
"""

import argparse
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphable  # noqa: E402
from morphable.mesh import vertex_normals  # noqa: E402
from morphable.registration import Similarity, Template, similarity  # noqa: E402
from morphable.registration import register as register_template  # noqa: E402

SIGMA_MM = 1.0  # of a point's distance to its plane
TANGENTIAL = 0.05  # weight of the motion within the plane: closest points slide
ROUNDS = 30
NOISE_MM, HOLES, HOLE_MM = 0.2, 8, (5.0, 15.0)  # holes' number and radii
LANDMARK_MM = 1.0  # noise of the given landmarks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="fit the identity components to its ict_dev scans")
    parser.add_argument("--components", type=int, default=100)
    parser.add_argument("--sampled", type=int, default=0, help="number of heads to sample, remesh and register")
    parser.add_argument("--no-landmarks", action="store_true", help="register the sampled heads without landmarks")
    args = parser.parse_args()
    model = morphable.load()
    if args.shared:
        scorer = load_scorer(args.shared)
        rows = []
        for folder in sorted((args.shared / "data" / "ict_dev").iterdir()):
            gt = np.load(folder / "gt.npz")
            rows.append(register(model, gt, scorer, args.components).distances)
            print(f"{folder.name} mean {rows[-1][0]:.3f} median {rows[-1][1]:.3f} p95 {rows[-1][2]:.2f} mm", flush=True)
        rows = np.mean(rows, axis=0)
        print(f"all: mean {rows[0]:.3f} median {rows[1]:.3f} p95 {rows[2]:.2f} mm with {args.components} components")
    if args.sampled:
        sampled(model, args.sampled, not args.no_landmarks)


def load_scorer(shared):
    spec = importlib.util.spec_from_file_location("eval_mesh", shared / "eval" / "eval_mesh.py")
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    return scorer


# ------------------------------------------------------------------------------------- the model's own space


@dataclass(frozen=True)
class IdentityFit:
    """Where the model ended: `scale * vertices @ rotation.T + offset` lies on the target."""

    coefficients: np.ndarray
    scale: float
    rotation: np.ndarray
    offset: np.ndarray
    distances: tuple[float, float, float]  # mean, median and 95th percentile, mm


def register(model, gt, scorer, components) -> IdentityFit:
    """The identity components alone, on the narrow face of a mesh with landmarks. Here the scan's points draw the
    model; morphable.registration.fit_surface, where the model's points are drawn, ended at a mean of 0.704 mm.
    """
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
    start = similarity(at_landmarks(mean)[inner], truth[inner])
    scale, rotation, offset = start.scale, start.rotation, start.offset
    coefficients = np.zeros(components)
    for k in range(ROUNDS):
        vertices = mean + modes @ coefficients
        moved = scale * vertices @ rotation.T + offset
        points = moved[sources]
        normals = np.asarray(vertex_normals(moved, faces))[sources]
        # Every scan point pulls the model's nearest vertex along that vertex's normal.
        nearest = KDTree(points).query(scan)[1]
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
    return IdentityFit(coefficients, scale, rotation, offset, distances)


# --------------------------------------------------------------------------------------- sampled, known heads


@dataclass(frozen=True)
class Scan:
    """A scan of a head whose template vertices are known."""

    vertices: np.ndarray  # of the scan
    triangles: np.ndarray
    landmarks: np.ndarray  # (68, 3), noisy
    truth: np.ndarray  # (vertex, 3): the template's vertices, in the scan's coordinates


def remesh(vertices, triangles, spacing, rng):
    """A surface cut into unrelated triangles of about `spacing` mm: random samples of the finely divided mesh, none
    closer to another than that, and the dual of their geodesic Voronoi cells. Samples lie on the surface.
    """
    edge = np.linalg.norm(vertices[triangles] - vertices[np.roll(triangles, 1, axis=1)], axis=2)
    while np.quantile(edge, 0.8) > 0.5 * spacing:
        vertices, triangles = divide(vertices, triangles)
        edge = edge / 2
    on, flat = np.unique(triangles, return_inverse=True)
    vertices, triangles = vertices[on], flat.reshape(-1, 3)
    sides = vertices[triangles]
    area = np.linalg.norm(np.cross(sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0]), axis=1) / 2
    share = np.bincount(triangles.ravel(), np.repeat(area / 3, 3), minlength=len(vertices))
    throws = min(int(5 * area.sum() / spacing**2), np.count_nonzero(share))
    order = rng.choice(len(vertices), throws, replace=False, p=share / share.sum())
    pairs = KDTree(vertices[order]).query_pairs(0.8 * spacing, output_type="ndarray")
    ends = np.concatenate([pairs, pairs[:, ::-1]])
    near = sp.csr_matrix((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(throws, throws))
    taken, chosen = np.zeros(throws, bool), np.zeros(throws, bool)
    starts = near.indptr.tolist()
    for i in range(throws):
        if not taken[i]:
            chosen[i] = True
            taken[near.indices[starts[i] : starts[i + 1]]] = True
    samples = np.sort(order[chosen])
    a, b = triangles[:, [0, 1, 2]].ravel(), triangles[:, [1, 2, 0]].ravel()
    length = np.maximum(np.linalg.norm(vertices[a] - vertices[b], axis=1), 1e-9)
    graph = sp.csr_matrix((length, (a, b)), shape=(len(vertices),) * 2)
    _, _, source = dijkstra(graph, directed=False, indices=samples, min_only=True, return_predecessors=True)
    cell = np.searchsorted(samples, source)[triangles]
    corner = (cell[:, 0] != cell[:, 1]) & (cell[:, 1] != cell[:, 2]) & (cell[:, 2] != cell[:, 0])
    dual = cell[corner]
    # Each triangle once, whatever corner comes first.
    first = dual.argmin(axis=1)[:, None]
    dual = np.unique(np.take_along_axis(dual, (first + np.arange(3)) % 3, axis=1), axis=0)
    return vertices[samples], dual


def divide(vertices, triangles):
    """Every triangle into four, by its edges' middles."""
    edges = np.sort(np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)]), axis=1)
    unique, inverse = np.unique(edges, axis=0, return_inverse=True)
    ab, bc, ca = inverse.reshape(3, -1) + len(vertices)
    a, b, c = triangles.T
    four = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([vertices, vertices[unique].mean(axis=1)]), np.concatenate([np.stack(t, 1) for t in four])


def scan_of(model, head, rng, spacing=1.8) -> Scan:
    """A scan of a head (vertex, 3) of the model: its visible skin without the scalp's back, cut anew, noisy, with
    holes, and moved.
    """
    skin = np.asarray(model.triangles)[model.part("skin").triangles]
    seen = (np.asarray(model.masks["interior"]) < 0.5) & (head[:, 2] > -80)
    vertices, triangles = remesh(head, skin[seen[skin].all(axis=1)], spacing, rng)
    vertices = vertices + NOISE_MM * rng.normal(size=vertices.shape)
    front = np.flatnonzero(vertices[:, 2] > -20)
    kept = np.ones(len(vertices), bool)
    for centre in vertices[rng.choice(front, HOLES)]:
        kept &= np.linalg.norm(vertices - centre, axis=1) > rng.uniform(*HOLE_MM)
    triangles = triangles[kept[triangles].all(axis=1)]
    turn = Rotation.from_rotvec(rng.normal(size=3) * 0.2).as_matrix()
    motion = Similarity(1.0, turn, rng.normal(size=3) * 50)
    corners, weights = np.asarray(model.landmarks.vertices), np.asarray(model.landmarks.weights, float)
    marks = np.einsum("lk,lkc->lc", weights, head[corners]) + LANDMARK_MM * rng.normal(size=(68, 3))
    return Scan(motion(vertices), triangles, motion(marks), motion(head))


def sampled(model, count, landmarks):
    """Print the correspondence errors of sampled heads, for both priors."""
    templates = {prior: Template.of(model, prior) for prior in ("model", "kernel")}
    skin = np.asarray(model.part_of_vertex) == model.part_names.index("skin")
    seen = skin & (np.asarray(model.masks["interior"]) < 0.5) & (np.asarray(model.mean)[:, 2] > -80)
    face = seen & (np.asarray(model.masks["face"]) > 0.5)
    rows = {prior: [] for prior in templates}
    for seed in range(count):
        rng = np.random.default_rng(seed)
        head = np.asarray(model.neutral(rng.normal(size=model.shape.rank).astype(np.float32)), float)
        scan = scan_of(model, head, rng)
        for prior, template in templates.items():
            began = time.perf_counter()
            marks = scan.landmarks if landmarks else None
            found = register_template(template, (scan.vertices, scan.triangles), marks)
            seconds = time.perf_counter() - began
            error = np.linalg.norm(found.vertices - scan.truth, axis=1)
            across = np.nanmedian(found.distance[face])
            row = [np.median(error[face]), np.quantile(error[face], 0.95), np.median(error[seen]), across, seconds]
            rows[prior].append(row)
            print(
                f"{seed:3d} {prior:6s} face median {row[0]:.2f} p95 {row[1]:.2f}, skin median {row[2]:.2f}, distance "
                f"to the scan {row[3]:.3f} mm, {seconds:.1f} s, {len(scan.vertices)} scan vertices",
                flush=True,
            )
    for prior, table in rows.items():
        mean = np.mean(table, axis=0)
        print(
            f"{prior}: face median {mean[0]:.2f} p95 {mean[1]:.2f}, skin median {mean[2]:.2f}, distance {mean[3]:.3f}"
            f" mm, {mean[4]:.1f} s, mean of {count} heads"
        )


if __name__ == "__main__":
    main()
