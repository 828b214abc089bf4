"""Whether a fit's stated uncertainty is true: how often intervals of 68 and 95 % hold the truth.

    python -m benchmarks calibration [--count 60] [--size 320] [--noise-mm 2] [--shared ../shared] [--detections FILE]

First on synthetic faces, whose every coefficient is known, with landmarks alone and with the default plan; beside it
what the inverse of the Hessian would have claimed. Then, with --shared, on rendered people from outside of the model
(`data/ict_dev`): scan-to-surface distances against the deviations of the vertices along their normals, all after
alignment.
"""

import argparse
import importlib.util
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphable  # noqa: E402
from benchmarks.accuracy import Detections  # noqa: E402
from fitting.detection import Face  # noqa: E402
from fitting.fit import Fit, Fitter  # noqa: E402
from fitting.observation import read_photo  # noqa: E402
from fitting.schedule import coarse_to_fine  # noqa: E402
from fitting.synthesis import SynthesisSettings, SyntheticPhoto, synthesize  # noqa: E402
from fitting.uncertainty import Posterior, posterior  # noqa: E402

BLOCKS = ("identity", "expression", "albedo", "light", "pose", "focal")


def errors(fit: Fit, synthetic: SyntheticPhoto) -> np.ndarray:
    """The step from the fit to the truth, flat as in `fitting.parameters`."""
    fitted, truth = fit.parameters, synthetic.truth
    assert fitted is not None
    layout = fitted.layout
    step = np.zeros(layout.size)
    for name in ("identity", "expression", "albedo", "light"):
        step[layout.block(name)] = np.ravel(getattr(truth, name) - getattr(fitted, name))
    step[layout.block("pose")] = (fitted.pose.inverse() @ truth.pose).log()
    # The truth counts in pixels of the photo, as the camera of the fit does.
    step[layout.block("focal")] = float(truth.log_focal) - np.log(float(fit.camera.focal[0]))
    return step


def noisy_face(synthetic: SyntheticPhoto, noise_mm: float, seed: int) -> Face:
    """The photo's marked landmarks with noise of a deviation given in mm at the face."""
    truth = synthetic.truth
    return synthetic.as_face(noise_mm * float(np.exp(truth.log_focal)) / float(truth.pose.translation()[2]), seed)


def scores(fitted: Posterior, step: np.ndarray) -> dict[str, np.ndarray]:
    """Errors in units of the stated deviations, by block, of unknowns that the fit was free to move."""
    layout, out = fitted.face.layout, {}
    for name in BLOCKS:
        at = layout.block(name)
        free = fitted.free[at]
        if free.any():
            out[name] = (step[at] / np.maximum(fitted.sigma(name), 1e-12))[free]
    return out


def naive_scores(fitted: Posterior, step: np.ndarray) -> dict[str, np.ndarray]:
    """The same for the inverse of the Hessian: what a textbook would state."""
    free, layout = np.flatnonzero(fitted.free), fitted.face.layout
    hessian = sum(fitted.data.values(), start=fitted.prior)[np.ix_(free, free)]
    scale = 1 / np.sqrt(np.diag(hessian))
    inverse = np.linalg.inv(hessian * scale * scale[:, None] + 1e-7 * np.eye(len(free)))
    standard = step[free] / (scale * np.sqrt(np.diag(inverse)))
    blocks = {name: layout.block(name) for name in BLOCKS}
    inside = {name: (free >= at.start) & (free < at.stop) for name, at in blocks.items()}
    return {name: standard[chosen] for name, chosen in inside.items() if chosen.any()}


def vertex_scores(fitted: Posterior, fit: Fit, synthetic: SyntheticPhoto, expression: bool) -> np.ndarray:
    """Errors of face vertices along head axes in units of their deviations, in head space."""
    model = fit.model
    face = np.flatnonzero(np.asarray(model.masks["face"]) > 0.5)[::20]
    deviations = np.sqrt(np.diagonal(fitted.vertex_covariance(model, expression), axis1=1, axis2=2))
    if expression:
        wrong = synthetic.vertices - fit.vertices
    else:
        wrong = np.asarray(model.neutral(synthetic.truth.identity)) - fit.neutral_vertices
    return (wrong / deviations)[face].ravel()


def coverage(values: list[np.ndarray]) -> tuple[float, float]:
    """Shares within 1 and within 1.96 deviations."""
    size = np.abs(np.concatenate(values))
    return float(np.mean(size < 1.0)), float(np.mean(size < 1.96))


def synthetic_faces(fitter: Fitter, args) -> None:
    settings = SynthesisSettings(size=args.size)
    album = [synthesize(fitter.model, seed, settings) for seed in range(args.count)]
    plans = (("landmarks alone", coarse_to_fine()[:2]), ("default plan", coarse_to_fine()))
    for title, stages in plans:
        stated, naive, noise, failed = defaultdict(list), defaultdict(list), defaultdict(list), 0
        for seed, synthetic in enumerate(album):
            fit = fitter.fit(synthetic.photo, noisy_face(synthetic, args.noise_mm, seed), stages=stages)
            if fit.result == "failed":
                failed += 1
                continue
            fitted, step = posterior(fit), errors(fit, synthetic)
            for name, values in scores(fitted, step).items():
                stated[name].append(values)
            active = fitted.free[fitted.face.layout.block("expression")]
            moved = np.asarray(synthetic.truth.expression)[active] > 0
            stated["expression, truth not 0"].append(stated["expression"][-1][moved])
            stated["vertices"].append(vertex_scores(fitted, fit, synthetic, True))
            stated["vertices, neutral"].append(vertex_scores(fitted, fit, synthetic, False))
            for name, values in naive_scores(fitted, step).items():
                naive[name].append(values)
            for name, told in fitted.noise.items():
                noise[name].append((np.sqrt(told.variance), told.shared))
        print(f"\n{title}: {args.count} synthetic faces, {failed} failed; points of {args.noise_mm:g} mm noise")
        print(f"{'':26s}{'68 %':>8s}{'95 %':>8s}   inverse Hessian 68 %, 95 %")
        for name, values in stated.items():
            one, two = coverage(values)
            row = f"{name:26s}{one:8.3f}{two:8.3f}"
            if name in naive:
                row += "   {:.3f} {:.3f}".format(*coverage(naive[name]))
            print(row)
        for name, values in noise.items():
            deviation, shared = np.median(values, axis=0)
            print(
                f"noise of {name}: {deviation:.2f} of the assumed deviation, {shared:.1f} rows share an error (medians)"
            )


def scanned_people(fitter: Fitter, args) -> None:
    spec = importlib.util.spec_from_file_location("eval_mesh", args.shared / "eval" / "eval_mesh.py")
    assert spec is not None and spec.loader is not None
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    model, detections = fitter.model, Detections(args.detections)
    triangles = np.asarray(model.triangles)
    interior = np.asarray(model.masks["interior"]) > 0.5
    skin = np.isin(np.arange(len(triangles)), model.part("skin").triangles)
    triangles = triangles[skin & ~interior[triangles].all(axis=1)]
    print("\nrendered people from outside of the model: distance to the scan over its deviation along the normal")
    for source in ("dlib's points", "true points + 1 px"):
        stated, ratios = [], []
        for number, folder in enumerate(sorted((args.shared / "data" / "ict_dev").iterdir())):
            gt = np.load(folder / "gt.npz")
            index = list(gt["names"]).index("y+00")
            photo = read_photo(folder / "y+00.jpg")
            if source.startswith("true"):
                noise = np.random.default_rng(number).normal(size=(68, 2))
                points = np.where(gt["lmk_vis"][index][:, None] > 0, gt["lmk2d"][index] + noise, np.nan)
                face = Face.from_landmarks(points)
            else:
                face = detections(f"{folder.name}|y+00", photo)
            if face is None:
                continue
            fit = fitter.fit(photo, face)
            vertices = fit.neutral_vertices.astype(float)
            scan, scan_landmarks, weight = scorer.load_gt(folder / "gt.npz", 0, "face_mask_core")
            seven = scorer.NOW7
            surface = scorer.Surface(vertices, triangles)
            scale, turn, shift = scorer.icp(
                scan, scan_landmarks[seven], surface, fit.neutral_landmarks3d[seven].astype(float), True,
                w=weight / weight.mean(),
            )  # fmt: skip
            distance, nearest, normal = surface.query(((scan - shift) / scale) @ turn)
            at = KDTree(vertices).query(nearest)[1]
            covariance = posterior(fit).vertex_covariance(model, expression=False, alignment="similarity")[at]
            deviation = np.sqrt(np.einsum("ni,nij,nj->n", normal, covariance, normal))
            stated.append(distance / deviation)
            ratios.append((np.median(distance), np.median(deviation)))
            print(
                f"{folder.name} {source}: 68 % {np.mean(stated[-1] < 1):.3f}, 95 % {np.mean(stated[-1] < 1.96):.3f}, "
                f"median distance {ratios[-1][0]:.2f}, median deviation {ratios[-1][1]:.2f} mm",
                flush=True,
            )
        one, two = coverage(stated)
        print(f"pooled, {source}: 68 % {one:.3f}, 95 % {two:.3f}")
    detections.save()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--noise-mm", type=float, default=2.0)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--detections", type=Path, help="npz that keeps detections between runs")
    args = parser.parse_args()
    fitter = Fitter(morphable.load())
    if args.count:
        synthetic_faces(fitter, args)
    if args.shared is not None:
        scanned_people(fitter, args)


if __name__ == "__main__":
    main()
