"""How good a model is that is built from scans of people whose true shapes are known.

    python benchmarks/build.py --heads 40
    python benchmarks/build.py --heads 40 --prior model --work /tmp/build
    python benchmarks/build.py --shared ../shared

Heads are drawn from the embedded model, cut into unrelated triangles, made noisy (0.2 mm), holed and moved
(benchmarks/registration.py). A model is built from these scans and compared with one built from the true shapes by the
same steps: by how far vertices are from where they belong, and by generalisation, the mean vertex distance of fresh
heads from their reconstructions. With `--prior kernel`, the default, registration knows nothing of the modes that the
heads were drawn from; with `--prior model` it knows them, which flatters it.

The second form keeps the registrations in a folder and takes them from there when they exist. The third runs the same
steps on ICT's own meshes, whose correspondence to the template is unknown, but whose own to each other is known.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from registration import scan_of

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphable  # noqa: E402
from morphable.building import BuildSettings, RegisteredScan, Scan, build_model, register_scans  # noqa: E402
from morphable.building.registered_scans import align_shapes, alignment_weights, complete_shapes  # noqa: E402
from morphable.building.spaces import identity_space  # noqa: E402
from morphable.registration import Similarity, similarity, surface_map  # noqa: E402
from morphable.statistics import generalisation  # noqa: E402

FRESH, RANKS = 20, (5, 10, 20, 30, 39, 60, 79)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=0, help="number of heads to sample")
    parser.add_argument("--prior", choices=("kernel", "model"), default="kernel")
    parser.add_argument("--shared", type=Path, help="build from its ICT meshes")
    parser.add_argument("--work", type=Path, help="folder to keep registrations in")
    args = parser.parse_args()
    model = morphable.load()
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    if args.heads:
        sampled(model, args.heads, args.prior, args.work)
    if args.shared:
        real(model, args.shared, args.prior)


def drawn(model, seed):
    """A head of the model, by seed."""
    rng = np.random.default_rng(seed)
    return np.asarray(model.neutral(rng.normal(size=model.shape.rank).astype(np.float32)), float), rng


def sampled(model, count, prior, work):
    """Print correspondence, and generalisation by the number of modes, of true and built models."""
    scans, heads = registered(model, count, prior, work)
    compare(model, scans, heads)


def registered(model, count, prior, work):
    """Scans in correspondence with the model, and the heads they are of; prints how far they are off."""
    face, seen = regions(model)
    scans, heads, errors = [], [], []
    began = time.perf_counter()
    for seed in range(count):
        head, rng = drawn(model, seed)
        kept = work / f"{prior}_{seed}.npz" if work else None
        if kept is not None and kept.exists():
            scan, truth = read(kept, seed)
        else:
            made = scan_of(model, head, rng)
            truth = made.truth
            given = Scan(str(seed), made.vertices, made.triangles, str(seed), landmarks=made.landmarks)
            (scan,) = register_scans(model, [given], prior)
            if kept is not None and scan.used:
                write(kept, scan, truth)
        if not scan.used:
            print(scan)
            continue
        scans.append(scan)
        heads.append(head)
        apart = np.linalg.norm(scan.vertices - truth, axis=1)
        errors.append([np.median(apart[face]), np.median(apart[seen]), np.median(apart[seen & scan.matched])])
        print(f"{seed:3d} median error of face {errors[-1][0]:.2f}, skin {errors[-1][1]:.2f} mm", flush=True)
    told = "face {:.2f}, skin {:.2f}, matched skin {:.2f}".format(*np.mean(errors, axis=0))
    print(f"{prior}: correspondence {told} mm, mean medians of {len(scans)} scans; {time.perf_counter() - began:.0f} s")
    return scans, np.stack(heads)


def regions(model):
    """Masks of the face and of the skin that scans show."""
    skin = np.asarray(model.part_of_vertex) == model.part_names.index("skin")
    seen = skin & (np.asarray(model.masks["interior"]) < 0.5) & (np.asarray(model.mean)[:, 2] > -80)
    return seen & (np.asarray(model.masks["face"]) > 0.5), seen


def compare(model, scans, heads):
    """Print how models of the scans generalise, beside those of the true heads."""
    face, seen = regions(model)
    weights = alignment_weights(model, scans)
    fresh = np.stack([drawn(model, 10_000 + k)[0] for k in range(FRESH)])
    raw, matched = np.stack([scan.vertices for scan in scans]), np.stack([scan.matched for scan in scans])
    for mirrored in (False, True):
        true = align_shapes(heads, model, weights, symmetric=mirrored).shapes
        registered = align_shapes(raw, model, weights, symmetric=mirrored).shapes
        variants = {
            "true": true,
            "built": registered,
            "built, holes by PPCA": complete_shapes(registered, matched, np.asarray(model.triangles)),
        }
        for region, mask in (("face", face), ("skin", seen)):
            print(f"{'with' if mirrored else 'without'} mirror images, {region}: generalisation, mm (built / true)")
            base = None
            for name, shapes in variants.items():
                curve = by_modes(shapes, np.where(mask, weights, 0.0), model, fresh, mirrored)
                base = curve.value if base is None else base
                cells = [f"{r}: {v:.2f} ({v / b:.2f})" for r, v, b in zip(curve.ranks, curve.value, base, strict=False)]
                print(f"  {name:22s} " + "  ".join(cells), flush=True)


def by_modes(shapes, weights, model, fresh, mirrored):
    """Generalisation to fresh heads, brought rigidly onto the model's mean."""
    components = identity_space(shapes, weights, np.asarray(model.mirror) if mirrored else None)
    lying = np.stack([similarity(x, components.mean, weights, scaled=False)(x) for x in fresh])
    return generalisation(components, lying, [rank for rank in RANKS if rank <= components.rank])


def write(path, scan, truth):
    motion = scan.similarity
    np.savez(
        path,
        vertices=scan.vertices,
        matched=scan.matched,
        truth=truth,
        pose=np.r_[motion.scale, motion.rotation.ravel(), motion.offset],
        told=[scan.distance, scan.share],
    )


def read(path, seed):
    kept = np.load(path)
    pose = kept["pose"]
    motion = Similarity(float(pose[0]), pose[1:10].reshape(3, 3), pose[10:])
    name = str(seed)
    told = [float(x) for x in kept["told"]]
    scan = RegisteredScan(name, name, "neutral", {}, kept["vertices"], kept["matched"], None, motion, *told)
    return scan, kept["truth"]


def real(model, shared, prior):
    """Build from ICT's neutral mesh, identities and the evaluation scans, without and with known landmarks."""
    import json

    folder = next((shared / "models" / "ict").rglob("generic_neutral_mesh.obj")).parent
    table = json.loads((folder / "vertex_indices.json").read_text())
    marks = np.array(table["idx_to_landmark_verts"])
    scans = []
    files = [folder / "generic_neutral_mesh.obj", *sorted(folder.glob("identity*.obj"))]
    ground = [np.load(path) for path in sorted((shared / "data" / "ict_dev").glob("*/gt.npz"))]
    for path in files:
        lines = [line.split() for line in path.read_text().splitlines() if line.startswith("v ")]
        vertices = np.array([line[1:4] for line in lines], float) * 10.0  # cm
        triangles, count = ground[0]["tris"], len(ground[0]["verts"])
        vertices = vertices[:count]
        scans.append(Scan(path.stem, vertices, triangles, path.stem, landmarks=vertices[marks]))
    for k, gt in enumerate(ground):
        vertices = gt["verts"].astype(float)
        scans.append(Scan(f"scan {k}", vertices, gt["tris"], f"scan {k}", landmarks=vertices[gt["lmk_idx"]]))
    settings = BuildSettings("ICT", prior=prior)
    result = build_model(scans, model, settings, progress=lambda index, scan: print(index, scan, flush=True))
    print(result)
    # ICT's meshes correspond to each other: a template vertex should lie on the same place of all of them.
    places = []
    for scan, found in zip(scans, result.scans, strict=True):
        if found.used:
            on = surface_map(found.vertices, scan.vertices, scan.triangles)(scans[0].vertices)
            places.append(np.where(found.matched[:, None], on, np.nan))
    apart = np.linalg.norm(places - np.nanmean(places, axis=0), axis=2)
    for name, mask in zip(("face", "skin"), regions(model), strict=True):
        print(
            f"{name}: a vertex's places on the neutral mesh are {np.nanmedian(apart[:, mask]):.2f} mm (median) from "
            f"their mean, 95th percentile {np.nanquantile(apart[:, mask], 0.95):.2f}"
        )


if __name__ == "__main__":
    main()
