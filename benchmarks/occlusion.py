"""How well occluders are found and what they cost, on rendered subjects with occluders painted over them.

    python -m benchmarks occlusion --shared ../shared

Prints for each kind of occluder, over the subjects of `data/ict_dev`: IoU of the recovered mask with the truth inside
the head's projected face region (from the chin to 35 mm above the brows, where hair begins on many heads, and over all
of it), the share of the visible face that was removed, the share of hidden and of visible landmarks that were dropped,
and the scaled median scan-to-mesh distance of the fit: of the photo without the occluder, with it, and with it when
labels are used. `clear` is the photo itself. Every kind is painted with its own seed for each subject.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import morphable
from benchmarks.accuracy import Detections
from fitting.detection import Face
from fitting.energies import project
from fitting.evaluation import FaceMesh, mean_face, scan_to_mesh
from fitting.fit import Fit, Fitter
from fitting.ground_truth import read_scan
from fitting.observation import Photo, crop, read_photo
from fitting.occluders import KINDS, paint_occluder
from fitting.parameters import FaceParameters
from fitting.schedule import Problem, coarse_to_fine

_HAIRLINE_MM = 35  # above the brows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--view", default="y+00")
    parser.add_argument("--landmarks", choices=["true", "dlib"], default="true", help="true: those that are visible")
    parser.add_argument("--kinds", nargs="+", default=["clear", *KINDS], choices=["clear", *KINDS])
    parser.add_argument("--subjects", nargs="+", help="names of folders; all by default")
    parser.add_argument("--detections", type=Path, help="npz that keeps dlib's answers between runs")
    args = parser.parse_args()
    fitter = Fitter(morphable.load())
    detections = Detections(args.detections)
    rows: dict[str, list[_Row]] = {kind: [] for kind in args.kinds}
    for folder in sorted((args.shared / "data" / "ict_dev").iterdir()):
        if args.subjects and folder.name not in args.subjects:
            continue
        for kind in args.kinds:
            rows[kind].append(_measure(fitter, _case(folder, kind, args, detections), folder / "gt.npz"))
            print(f"{folder.name} {kind:10s} {rows[kind][-1]}", flush=True)
    detections.save()
    clear = rows.get("clear")
    for kind in args.kinds:
        mean = _mean(rows[kind])
        print(
            f"{kind:10s} {mean}" + (f" ratio to clear {mean.with_labels / _mean(clear).without:.3f}" if clear else "")
        )
    covered = [_mean(rows[kind]).iou for kind in args.kinds if kind != "clear"]
    if covered:
        print(f"IoU, mean over kinds: {np.mean(covered):.3f}")


@dataclasses.dataclass(frozen=True)
class _Row:
    iou: float  # NaN without an occluder
    iou_with_hair: float
    removed: float  # share of the visible face below the hairline
    hidden_found: float  # share of hidden landmarks that were dropped; NaN where none is hidden
    visible_dropped: float
    milliseconds: float  # of one labelling
    without: float  # mm, scaled median, labels not used
    with_labels: float

    def __str__(self):
        return (
            f"IoU {self.iou:.3f} (with hair {self.iou_with_hair:.3f}) removed {self.removed:.3f} landmarks dropped "
            f"{self.hidden_found:.2f} of hidden, {self.visible_dropped:.2f} of visible | {self.milliseconds:.0f} ms | "
            f"fit {self.without:.3f}, with labels {self.with_labels:.3f} mm"
        )


def _mean(rows: list[_Row]) -> _Row:
    table = np.array([dataclasses.astuple(row) for row in rows])
    known = np.isfinite(table)
    return _Row(*(np.where(known, table, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)))


@dataclasses.dataclass(frozen=True)
class _Case:
    photo: Photo
    mask: np.ndarray  # true under the occluder
    face: Face
    hidden: np.ndarray  # landmarks under the occluder


def _case(folder: Path, kind: str, args, detections: Detections) -> _Case:
    gt = np.load(folder / "gt.npz")
    index = list(gt["names"]).index(args.view)
    photo, landmarks = read_photo(folder / f"{args.view}.jpg"), gt["lmk2d"][index].astype(float)
    bare, mask = photo, np.zeros(photo.pixels.shape[:2], bool)
    if kind != "clear":
        seed = 1000 * args.seed + int("".join(c for c in folder.name if c.isdigit()))
        pixels, mask = paint_occluder(photo.pixels, landmarks, kind, seed)
        photo = dataclasses.replace(photo, pixels=pixels)
    column, row = (np.clip(landmarks[:, k].astype(int), 0, mask.shape[1 - k] - 1) for k in (0, 1))
    hidden = mask[row, column]
    if args.landmarks == "true":
        face = Face.from_landmarks(np.where((gt["lmk_vis"][index] > 0)[:, None] & ~hidden[:, None], landmarks, np.nan))
    else:
        key = f"{folder.name}|{args.view}"
        face = detections(key, bare)
        if face is not None and kind != "clear":
            face = detections(f"{key}|{kind}|{args.seed}", photo, near=face.box)
        if face is None:
            raise ValueError(
                f"{folder / args.view}.jpg: dlib finds no face, expected one. Name the other --subjects, or use "
                "--landmarks true."
            )
    return _Case(photo, mask, face, hidden)


def _measure(fitter: Fitter, case: _Case, truth: Path) -> _Row:
    problem, _, box = fitter.problem(case.photo, case.face)
    scan, mean = read_scan(truth, mask="face_mask_core"), mean_face(fitter.model)

    def score(fit: Fit) -> float:
        neutral, landmarks = fit.neutral_vertices.astype(float), fit.neutral_landmarks3d.astype(float)
        return scan_to_mesh(scan, FaceMesh(neutral, mean.triangles, landmarks)).median

    without = fitter.fit(case.photo, case.face)
    labelled = fitter.fit(case.photo, case.face, coarse_to_fine(label=True))
    face, labels = labelled.parameters, labelled.labels
    assert face is not None and labels is not None  # the plan asks for them
    began = time.perf_counter()
    fitter.occlusion(problem, face)
    seconds = time.perf_counter() - began
    size = fitter.settings.image_size
    mask = crop(case.mask, tuple(box), size) > 0.5
    found = (labels.face_probability < 0.5) & labels.covered
    below = labels.covered & _below_hairline(face, problem)
    iou = lambda where: (found & mask & where).sum() / max(((found | mask) & where).sum(), 1)  # noqa: E731
    dropped = labels.landmark_hidden > 0.5
    known = np.isfinite(np.asarray(problem.sigma_px))
    share = lambda where: dropped[where].mean() if where.any() else np.nan  # noqa: E731
    clear = not case.mask.any()
    return _Row(
        np.nan if clear else iou(below),
        np.nan if clear else iou(labels.covered),
        (found & ~mask & below).sum() / max((~mask & below).sum(), 1),
        share(case.hidden & known),
        share(~case.hidden & known),
        1e3 * seconds,
        score(without),
        score(labelled),
    )


def _below_hairline(face: FaceParameters, problem: Problem) -> np.ndarray:
    """Rows of the crop below a line through the head, `_HAIRLINE_MM` above the brows."""
    brows = np.asarray(problem.model.landmarks.positions(face.identity, face.expression))[17:27]
    above = jnp.asarray(brows + np.array([0, _HAIRLINE_MM, 0], np.float32))
    line = np.asarray(project(face, above, problem.centre))
    size = problem.valid.shape[0]
    slope, offset = np.polyfit(line[:, 0], line[:, 1], 1)
    v, u = np.mgrid[:size, :size] + 0.5
    return v > slope * u + offset


if __name__ == "__main__":
    main()
