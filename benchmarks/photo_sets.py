"""How accurate heads from several photos are, on rendered subjects with ground truth that are not part of the project.

    python -m benchmarks photo_sets --shared ../shared [--landmarks true] [--detections FILE]

For each subject of `data/ict_dev`: the scaled median scan-to-mesh distance (mm, core mask) of heads from 1, 2, 3, 5 and
8 photos (frontal, +30, -30, +60, -60 degrees, then expressions), of every photo alone, and of the mean face; then the
same head explaining the view that was held out: error of the landmarks against the truth and share of the skin
explained, beside the best of the single photos' heads.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import morphable
from benchmarks.accuracy import Detections
from fitting.detection import Face
from fitting.evaluation import FaceMesh, mean_face, scan_to_mesh
from fitting.fit import Fitter
from fitting.ground_truth import read_scan
from fitting.landmark_offsets import landmark_offsets
from fitting.multi_image import JointFit, explained, fit_together
from fitting.observation import read_photo
from fitting.schedule import Stage, run_stage

VIEWS = ("y+00", "y+30", "y-30", "y+60", "y-60")
SIZES = (1, 2, 3, 5, 8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--landmarks", choices=["dlib", "true"], default="dlib", help="true: the visible ones + 2 px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--detections", type=Path, help="npz that keeps detections between runs")
    parser.add_argument("--subjects", nargs="+")
    parser.add_argument("--skip-held-out", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench = PhotoSets(Fitter(morphable.load()), options)
    folders = sorted(p for p in (options.shared / "data" / "ict_dev").iterdir() if p.is_dir())
    rows = [bench.subject(f) for f in folders if options.subjects is None or f.name in options.subjects]
    bench.detections.save()
    figures = pooled(rows)
    for name, value in figures.items():
        print(f"{name:44s} {value:8.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


class PhotoSets:
    """The fits of one run."""

    def __init__(self, fitter: Fitter, options):
        self.fitter, self.options = fitter, options
        self.mean = mean_face(fitter.model)
        self.detections = Detections(options.detections)

    def subject(self, folder: Path) -> dict[str, float]:
        """Errors in mm, and what held-out views say."""
        truth = np.load(folder / "gt.npz")
        names = [str(n) for n in truth["names"]]
        views = [*VIEWS, *[n for n in names if n.startswith("e")]]
        photos = [read_photo(folder / f"{v}.jpg") for v in views]
        faces = [self._face(folder, truth, names.index(v), v, p) for v, p in zip(views, photos, strict=True)]
        scan = read_scan(folder / "gt.npz", mask="face_mask_core", expression=0)
        row = {"mean face": scan_to_mesh(scan, self.mean).median}
        whole = None
        for count in SIZES:
            joint = self._together(photos[:count], faces[:count], views[:count])
            if joint is None:
                continue
            row[f"{count} photos"] = self._error(scan, joint.identity)
            row[f"{count} photos, used"] = float(len(joint.fits))
            if count == len(VIEWS):
                whole = joint
        if whole is not None:
            alone = [f for f in whole.alone if f is not None and f.result != "failed"]
            row["best alone"] = min(self._error(scan, f.identity) for f in alone)
            if not self.options.skip_held_out:
                row |= self._held_out(whole, photos, faces, truth, names)
        print(folder.name, {k: round(v, 3) for k, v in row.items()}, flush=True)
        return row

    def _face(self, folder, truth, index, view, photo) -> Face | None:
        if self.options.landmarks == "dlib":
            return self.detections(f"{folder.name}|{view}", photo)
        noise = np.random.default_rng([self.options.seed, int(folder.name[1:]), index]).normal(size=(68, 2))
        seen = truth["lmk_vis"][index][:, None] > 0
        return Face.from_landmarks(np.where(seen, truth["lmk2d"][index] + 2.0 * noise, np.nan))

    def _together(self, photos, faces, names) -> JointFit | None:
        try:
            # Rendered people of one population are alike to dlib's descriptor.
            return fit_together(
                self.fitter, photos, faces, names=names, same_camera=True, one_person=True, progress=lambda _: None
            )
        except ValueError as error:
            print(names, error)
            return None

    def _error(self, scan, identity) -> float:
        model = self.fitter.model
        vertices = np.asarray(model.neutral(jnp.asarray(identity)), float)
        landmarks = np.asarray(model.landmarks(jnp.asarray(vertices, jnp.float32)), float)
        return scan_to_mesh(scan, FaceMesh(vertices, self.mean.triangles, landmarks)).median

    def _held_out(self, whole: JointFit, photos, faces, truth, names) -> dict[str, float]:
        """Means over held-out views: of the head from the other photos, and of the best of their own heads."""
        rows = []
        for left in whole.indices:
            rest = [k for k in whole.indices if k != left]
            if not rest:
                continue
            joint = self._together([photos[k] for k in rest], [faces[k] for k in rest], [VIEWS[k] for k in rest])
            if joint is None:
                continue
            singles = [f for f in (whole.alone[k] for k in rest) if f is not None]
            heads = [(joint.identity, joint.albedo, joint.landmark_offsets)]
            heads += [(f.identity, f.albedo, landmark_offsets([f])) for f in singles]
            index = names.index(VIEWS[left])
            scores = [self._explains(*head, photos[left], faces[left], truth, index) for head in heads]
            points, shares = np.array(scores).T
            rows.append((points[0], points[1:].min(), shares[0], shares[1:].max()))
        if not rows:
            return {}
        mean = np.mean(rows, axis=0)
        keys = (
            "held out, landmarks",
            "held out, landmarks, best alone",
            "held out, skin",
            "held out, skin, best alone",
        )
        return dict(zip(keys, mean.tolist(), strict=True))

    def _explains(self, identity, albedo, offsets, photo, face, truth, index) -> tuple[float, float]:
        """Inner landmarks' error against the truth, per cent of the face's size; share of the skin explained.

        Every head brings what its own photos tell of where this annotator places its landmarks.
        """
        fitter = self.fitter.with_offsets(offsets)
        problem, first, box = fitter.problem(photo, face)
        start = dataclasses.replace(first, identity=jnp.asarray(identity), albedo=jnp.asarray(albedo))
        own = ("pose", "expression", "focal", "light")
        plan = (
            Stage("pose", own[:3], 12, without=("photometric",)),
            Stage("photo", own, 10, level=0, relight=True),
            Stage("photo, fine", own, 10, level=1, samples=2048),
        )
        for stage in plan:
            start = run_stage(problem, start, stage).face
        points = fitter.solver_model.landmarks.positions(start.identity, start.expression)
        camera = np.asarray(start.pose.apply(points))
        zoom = problem.valid.shape[0] / box[2]
        pixels = np.exp(float(start.log_focal)) * camera[:, :2] / camera[:, 2:] + np.asarray(problem.centre)
        true = truth["lmk2d"][index]
        error = np.linalg.norm(pixels / zoom + box[:2] - true, axis=1)[17:]
        size = float(np.sqrt(np.prod(true.max(axis=0) - true.min(axis=0))))
        seen = truth["lmk_vis"][index][17:] > 0
        return 100 * float(error[seen].mean()) / size, explained(problem, start, plan[-1])


def pooled(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the subjects that have a figure, and in how many of them one beats the other."""
    keys = list(dict.fromkeys(k for row in rows for k in row))
    figures = {k: float(np.mean([row[k] for row in rows if k in row])) for k in keys}
    five = [row for row in rows if "5 photos" in row and "best alone" in row]
    figures["subjects worse than their best photo alone"] = sum(r["5 photos"] > r["best alone"] for r in five)
    held = [row for row in rows if "held out, skin" in row]
    figures["subjects held out"] = len(held)
    figures["of them better in landmarks"] = sum(
        r["held out, landmarks"] < r["held out, landmarks, best alone"] for r in held
    )
    figures["of them better in skin"] = sum(r["held out, skin"] > r["held out, skin, best alone"] for r in held)
    return figures


if __name__ == "__main__":
    main()
