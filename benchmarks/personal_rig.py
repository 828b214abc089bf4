"""Whether personal correctives help: an expression that a rig has not seen, on `data/ict_dev`.

    python -m benchmarks.personal_rig --shared ../shared [--detections FILE] [--subjects s40 s43] [--json FILE]

For each subject and each of its three expressions, a joint fit to the five neutral views and the other two expressions;
then the held-out photo is fitted with the person held, once with the plain model and once with each kind of rig, by one
plan. Scores are scaled median scan-to-mesh distances (core mask, mm) to the neutral and to the held-out expression's
mesh. Landmarks are the truth's with 2 px of noise, or with `--detections` dlib's, kept in that file between runs.
"""

import argparse
import json
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import morphable
from fitting.detection import LANDMARK_NOISE, Face, NoFaceError, detect_faces
from fitting.evaluation import FaceMesh, mean_face, scan_to_mesh
from fitting.fit import Fitter
from fitting.ground_truth import read_scan
from fitting.multi_image import fit_together
from fitting.observation import read_photo
from fitting.personal_rig import PersonalRig, RigSettings, personal_rig

KINDS = {
    "plain": RigSettings(example=0.0),
    "units": RigSettings(),
    "rest": RigSettings(rest=True, example=0.0),
    "rest+units": RigSettings(rest=True),
    "rest+residual": RigSettings(rest=True, example=0.0, residual=0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--subjects", nargs="+")
    parser.add_argument("--detections", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    fitter, rows = Fitter(morphable.load()), []
    known = {} if options.detections is None else _read(options.detections)
    for folder in sorted((options.shared / "data" / "ict_dev").iterdir()):
        if options.subjects and folder.name not in options.subjects:
            continue
        truth = dict(np.load(folder / "gt.npz"))
        names = [str(n) for n in truth["names"]]
        for held in (n for n in names if n.startswith("e")):
            began = time.perf_counter()
            views = [n for n in names if n != held]
            face = lambda view: _face(folder, truth, view, options.detections and known)  # noqa: B023, E731
            last = face(held)
            if last is None:
                continue
            photos = [read_photo(folder / f"{v}.jpg") for v in views]
            joint = fit_together(fitter, photos, [face(v) for v in views], names=views, same_camera=True)
            row = {}
            for kind, settings in KINDS.items():
                rig = personal_rig(fitter, joint, settings=settings)
                row[kind] = _scores(fitter, rig, folder, truth, held, last, float(joint.fits[0].camera.focal[0]))
            rows.append(row)
            texts = [f"{kind} {n:.3f} {e:.3f}" for kind, (n, e) in row.items()]
            seconds = time.perf_counter() - began
            print(folder.name, held, f"{len(joint.fits)} photos |", ", ".join(texts), f"| {seconds:.0f} s", flush=True)
    flat = figures(rows)
    for name, value in flat.items():
        print(f"{name:40s} {value:8.3f}")
    if options.json:
        options.json.write_text(json.dumps(flat, indent=1) + "\n")
    if options.detections is not None:
        np.savez(options.detections, allow_pickle=False, **known)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _face(folder: Path, truth, view: str, known: dict[str, np.ndarray] | None) -> Face | None:
    index = [str(n) for n in truth["names"]].index(view)
    if known is None:
        noise = np.random.default_rng([0, int(folder.name[1:]), index]).normal(size=(68, 2))
        seen = truth["lmk_vis"][index][:, None] > 0
        return Face.from_landmarks(np.where(seen, truth["lmk2d"][index] + 2 * noise, np.nan))
    key = f"{folder.name}|{view}"  # as of benchmarks/accuracy.py
    if key not in known:
        try:
            found = detect_faces(read_photo(folder / f"{view}.jpg"))[0]
            known[key] = np.concatenate([np.reshape(found.box, (2, 2)), found.landmarks, [[found.spread, 0]]])
        except NoFaceError:
            known[key] = np.full((71, 2), np.nan)
    stored = known[key]
    if np.isnan(stored[:2]).any():
        return None
    x0, y0, x1, y1 = (float(v) for v in stored[:2].ravel())
    noise, spread = LANDMARK_NOISE["dlib"], float(stored[70, 0])
    return Face((x0, y0, x1, y1), stored[2:70], "dlib-hog", 1.0, noise, spread=spread)


def _scores(plain: Fitter, rig: PersonalRig, folder: Path, truth, held: str, face: Face, focal_px: float):
    """Of the neutral and of the held-out expression, mm."""
    fitter = Fitter(rig.model)
    fit = rig.fit(fitter, read_photo(folder / f"{held}.jpg"), face, focal_px)
    triangles, expression = mean_face(plain.model).triangles, int(truth["verts_id"][list(truth["names"]).index(held)])
    out = []
    for which, vertices in ((0, np.asarray(rig.neutral)), (expression, fit.vertices)):
        marks = np.asarray(rig.model.landmarks(jnp.asarray(vertices)), float)
        scan = read_scan(folder / "gt.npz", mask="face_mask_core", expression=which)
        out.append(scan_to_mesh(scan, FaceMesh(vertices.astype(float), triangles, marks)).median)
    return tuple(out)


def figures(rows: list[dict[str, tuple[float, float]]]) -> dict[str, float]:
    """Means over subjects and held-out expressions, and the share of those that a rig improves."""
    out: dict[str, float] = {}
    for kind in KINDS:
        scores, plain = np.array([r[kind] for r in rows]), np.array([r["plain"] for r in rows])
        name = kind.replace("+", "_")
        out[f"rig_{name}_neutral_mm"], out[f"rig_{name}_held_out_mm"] = scores.mean(axis=0)
        if kind != "plain":
            out[f"rig_{name}_better_share"] = float((scores[:, 1] < plain[:, 1]).mean())
    return {name: float(value) for name, value in out.items()}


if __name__ == "__main__":
    main()
