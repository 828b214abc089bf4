"""Whether personal correctives help: an expression that a rig has not seen, on `data/ict_dev`.

    python -m benchmarks.personal_rig --shared ../shared [--detections FILE] [--subjects s40 s43] [--json FILE]
    python -m benchmarks.personal_rig --shared ../shared --neutral --kinds plain --offsets 1 2 4

For each subject and each of its three expressions, a joint fit to the five neutral views and the other two expressions;
then the held-out photo is fitted with the person held, once with the plain model and once with each kind of rig, by one
plan. Scores are scaled median scan-to-mesh distances (core mask, mm) to the neutral and to the held-out expression's
mesh. With `--neutral` a joint fit to the five neutral views, and the neutral's score alone. Landmarks are the truth's
with 2 px of noise, or with `--detections` dlib's, kept in that file between runs.
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
from fitting.multi_image import JointFit, fit_together
from fitting.observation import read_photo
from fitting.personal_rig import RigSettings, personal_rig
from morphable import MorphableModel

KINDS = {
    "plain": RigSettings(example=0.0, offsets=0.0),
    "default": RigSettings(),
    "units": RigSettings(offsets=0.0),
    "rest": RigSettings(rest=True, example=0.0, offsets=0.0),
    "rest+units": RigSettings(rest=True, offsets=0.0),
    "rest+residual": RigSettings(rest=True, example=0.0, residual=0.1, offsets=0.0),
    "offsets": RigSettings(example=0.0, offsets=2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--subjects", nargs="+")
    parser.add_argument("--detections", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--offsets", nargs="+", type=float, default=[], help="further kinds: deviations in mm")
    parser.add_argument("--neutral", action="store_true", help="five neutral views, no held-out expression")
    options = parser.parse_args()
    kinds = {name: KINDS[name] for name in dict.fromkeys(["plain", *options.kinds])}
    kinds |= {f"offsets {s:g} mm": RigSettings(example=0.0, offsets=s) for s in options.offsets}
    fitter, rows = Fitter(morphable.load()), []
    known = {} if options.detections is None else _read(options.detections)
    for folder in sorted((options.shared / "data" / "ict_dev").iterdir()):
        if options.subjects and folder.name not in options.subjects:
            continue
        truth = dict(np.load(folder / "gt.npz"))
        names = [str(n) for n in truth["names"]]
        expressions = [n for n in names if n.startswith("e")]
        for held in [None] if options.neutral else expressions:
            began = time.perf_counter()
            views = [n for n in names if n not in (expressions if held is None else [held])]
            face = lambda view: _face(folder, truth, view, options.detections and known)  # noqa: B023, E731
            last = None if held is None else face(held)
            if held is not None and last is None:
                continue
            photos = [read_photo(folder / f"{v}.jpg") for v in views]
            joint = fit_together(fitter, photos, [face(v) for v in views], names=views, same_camera=True)
            row = {}
            for kind, settings in kinds.items():
                rig = personal_rig(fitter, joint, settings=settings)
                row[kind] = (_score(fitter.model, np.asarray(rig.neutral), folder, 0),)
                if held is not None and last is not None:
                    fit = rig.fit(Fitter(rig.model), read_photo(folder / f"{held}.jpg"), last, _focal(joint))
                    expression = int(truth["verts_id"][names.index(held)])
                    row[kind] += (_score(fitter.model, fit.vertices, folder, expression),)
            rows.append((folder.name, row))
            texts = [" ".join([kind, *(f"{x:.3f}" for x in scores)]) for kind, scores in row.items()]
            seconds = time.perf_counter() - began
            words = f"{len(joint.fits)} photos | {', '.join(texts)} | {seconds:.0f} s"
            print(folder.name, held or "neutral", words, flush=True)
    flat = figures(rows)
    for name, value in flat.items():
        print(f"{name:50s} {value:8.3f}")
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


def _focal(joint: JointFit) -> float:
    """Of the subject's camera, px."""
    return float(joint.fits[0].camera.focal[0])


def _score(model: MorphableModel, vertices: np.ndarray, folder: Path, which: int) -> float:
    """Distance of a mesh to one of the subject's scans (0 is the neutral), mm."""
    marks = np.asarray(model.landmarks(jnp.asarray(vertices)), float)
    scan = read_scan(folder / "gt.npz", mask="face_mask_core", expression=which)
    return scan_to_mesh(scan, FaceMesh(vertices.astype(float), mean_face(model).triangles, marks)).median


def figures(rows: list[tuple[str, dict[str, tuple[float, ...]]]]) -> dict[str, float]:
    """Of the neutral and, where there is one, of the held-out expression: each kind's mean over rows, how far it is
    below the plain model's, that difference's standard error over subjects, and how many rows are better."""
    out: dict[str, float] = {}
    subjects = np.array([subject for subject, _ in rows])
    for kind in rows[0][1]:
        scores, plain = (np.array([row[k] for _, row in rows]) for k in (kind, "plain"))
        for column, what in enumerate(("neutral", "held_out")[: scores.shape[1]]):
            name = f"rig_{kind}_{what}".replace("+", "_").replace(" ", "_")
            out[f"{name}_mm"] = scores[:, column].mean()
            if kind == "plain":
                continue
            less = (plain - scores)[:, column]
            out[f"{name}_less_mm"] = less.mean()
            # A subject's rows have most photos in common.
            own = [less[subjects == subject].mean() for subject in np.unique(subjects)]
            if len(own) > 1:
                out[f"{name}_less_error_mm"] = np.std(own, ddof=1) / np.sqrt(len(own))
            out[f"{name}_better"] = np.sum(less > 0)
    return {name: float(value) for name, value in out.items()}


if __name__ == "__main__":
    main()
