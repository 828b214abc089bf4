"""How accurate fits are, on local measurement data that is not part of the project.

    python benchmarks/accuracy.py --shared ../shared

Prints, for rendered subjects with ground truth (`data/ict_dev`), the scaled median scan-to-mesh distance of the fit and
of the model's own mean face, as `facefit evaluate mesh` does; and for real photos (`data/aflw_dev`) the 68-point error
of the reprojected model and of the detector's own points.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphable  # noqa: E402
from fitting.detection import LANDMARK_NOISE, Face, NoFaceError, detect_faces  # noqa: E402
from fitting.evaluation import FaceMesh, landmark_errors, mean_face, scan_to_mesh  # noqa: E402
from fitting.fit import Fitter, Settings  # noqa: E402
from fitting.ground_truth import read_scan  # noqa: E402
from fitting.observation import read_photo  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--view", default="y+00")
    parser.add_argument("--true-landmarks", type=int, metavar="SEED", help="the truth's visible points + 1 px of noise")
    parser.add_argument("--expressions", action="store_true", help="the photos eK_*.jpg, scored with their expression")
    parser.add_argument("--detections", type=Path, help="npz that keeps detections between runs")
    parser.add_argument("--settings", default="{}", help="JSON that overrides fitting.fit.Settings")
    parser.add_argument("--stages", type=int, help="run only the first stages of the plan")
    parser.add_argument("--only", choices=["ict", "aflw"])
    args = parser.parse_args()
    fitter = Fitter(morphable.load(), Settings(**json.loads(args.settings)))
    detections = Detections(args.detections)
    if args.only != "aflw":
        subjects(fitter, args, detections)
    if args.only != "ict":
        photos(fitter, args, detections)
    detections.save()


class Detections:
    """dlib's largest face of each photo, kept in a file so that a sweep detects once."""

    def __init__(self, path):
        self.path, self.known = path, {}
        if path is not None and path.exists():
            with np.load(path) as file:
                self.known = {k: file[k] for k in file.files}

    def __call__(self, key, photo, near=None) -> Face | None:
        """None where there is no face; with the box `near` the face is in it where dlib finds none close by."""
        if key not in self.known:
            try:
                face = self._detected(photo, near)
                self.known[key] = np.concatenate([np.reshape(face.box, (2, 2)), face.landmarks, [[face.spread, 0]]])
            except ValueError as error:
                print(key, error)
                self.known[key] = np.full((71, 2), np.nan)
        stored = self.known[key]
        if np.isnan(stored[:2]).any():
            return None
        box = tuple(float(v) for v in stored[:2].ravel())
        return Face(box, stored[2:70], "dlib-hog", 1.0, LANDMARK_NOISE["dlib"], spread=float(stored[70, 0]))

    def _detected(self, photo, near) -> Face:
        try:
            face = detect_faces(photo)[0]
        except NoFaceError:
            if near is None:
                raise
        else:
            if near is None or np.abs(np.subtract(face.box, near)).max() <= 0.5 * (near[2] - near[0]):
                return face
        return detect_faces(photo, box=near)[0]

    def save(self):
        if self.path is not None:
            np.savez(self.path, **self.known)


def plan(args):
    from fitting.schedule import coarse_to_fine

    return coarse_to_fine()[: args.stages]


def subjects(fitter, args, detections):
    model = fitter.model
    mean = mean_face(model)  # with the triangles that a scan would see
    rows, seconds = [], []
    for folder in sorted((args.shared / "data" / "ict_dev").iterdir()):
        truth = folder / "gt.npz"
        gt = np.load(truth)
        for view in [str(v) for v in gt["names"] if v.startswith("e")] if args.expressions else [args.view]:
            index = list(gt["names"]).index(view)
            photo = read_photo(folder / f"{view}.jpg")
            if args.true_landmarks is None:
                face = detections(f"{folder.name}|{view}", photo)
            else:
                noise = np.random.default_rng([args.true_landmarks, int(folder.name[1:]), index]).normal(size=(68, 2))
                seen = gt["lmk_vis"][index][:, None] > 0
                face = Face.from_landmarks(np.where(seen, gt["lmk2d"][index] + noise, np.nan))
            if face is None:
                continue
            began = time.perf_counter()
            fit = fitter.fit(photo, face, stages=plan(args))
            seconds.append(time.perf_counter() - began)
            expression = int(gt["verts_id"][index])
            scan = read_scan(truth, mask="face_mask_core", expression=expression)
            shape = (fit.vertices, fit.landmarks3d) if expression else (fit.neutral_vertices, fit.neutral_landmarks3d)
            mesh = FaceMesh(shape[0].astype(float), mean.triangles, shape[1].astype(float))
            fitted, own = scan_to_mesh(scan, mesh), scan_to_mesh(scan, mean)
            rows.append((fitted.median, own.median, fitted.landmarks51, own.landmarks51))
            true_focal = gt["K"][index][0, 0]
            print(
                f"{folder.name} {view} fit {rows[-1][0]:.3f} mean face {rows[-1][1]:.3f} mm, ratio "
                f"{rows[-1][0] / rows[-1][1]:.2f} | 51 landmarks {rows[-1][2]:.2f} ({rows[-1][3]:.2f}) | {fit.result}, "
                f"|identity| {np.linalg.norm(fit.identity):.1f}, max expression {fit.expression.max():.2f}, focal "
                f"{float(fit.camera.focal[0]):.0f} (true {true_focal:.0f})",
                flush=True,
            )
    rows = np.array(rows)
    ratio = rows[:, 0] / rows[:, 1]
    print(
        f"pooled: fit {rows[:, 0].mean():.3f}, mean face {rows[:, 1].mean():.3f} mm; {np.sum(ratio > 1)} of "
        f"{len(rows)} worse than the mean face, at most by {ratio.max():.2f}; 51 landmarks {rows[:, 2].mean():.2f} "
        f"({rows[:, 3].mean():.2f}); warm fit {np.median(seconds) * 1e3:.0f} ms"
    )


def photos(fitter, args, detections):
    index = np.load(args.shared / "data" / "aflw_dev" / "index.npz")
    rows = []
    for name, truth, yaw in zip(index["names"], index["pts68_2d"], np.abs(index["yaw_deg"]), strict=True):
        photo = read_photo(args.shared / "data" / "aflw_dev" / str(name))
        face = detections(f"aflw|{Path(str(name)).stem}", photo)
        if face is None:
            continue
        fit = fitter.fit(photo, face, stages=plan(args))
        error = lambda p: np.nanmean(landmark_errors(np.asarray(p, float), truth))  # noqa: B023, E731
        inner = lambda p: np.nanmean(landmark_errors(np.asarray(p, float), truth)[17:])  # noqa: B023, E731
        rows.append((yaw, error(fit.landmarks2d), error(face.landmarks), inner(fit.landmarks2d), inner(face.landmarks)))
        print(f"{name} yaw {yaw:5.1f} model {rows[-1][1]:6.3f} detector {rows[-1][2]:6.3f} {fit.result}")
    rows = np.array(rows)
    for low, high in ((0, 30), (30, 60), (60, 91)):
        chosen = rows[(rows[:, 0] >= low) & (rows[:, 0] < high)]
        if len(chosen):
            print(
                f"|yaw| {low}-{high}: n={len(chosen)} NME68 model {chosen[:, 1].mean():.3f} detector "
                f"{chosen[:, 2].mean():.3f}; inner 51: {chosen[:, 3].mean():.3f} {chosen[:, 4].mean():.3f}"
            )


if __name__ == "__main__":
    main()
