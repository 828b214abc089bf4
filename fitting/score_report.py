"""Tables of scores, always beside the model's mean face and with bootstrap intervals, and the same as JSON."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from fitting.evaluation import (
    CURVE_MM,
    NORMALISERS,
    EvaluationError,
    FaceMesh,
    Interval,
    Scan,
    SurfaceScore,
    adapted_labels,
    bootstrap,
    correspondence_error,
    cumulative,
    landmark_errors,
    psnr,
    region_scores,
    scan_to_mesh,
    ssim,
    visible_skin,
)
from fitting.landmark_start import LandmarkFitError, weak_perspective_pose
from fitting.observation import Photo, crop
from fitting.texture_map import solid_triangles
from morphable.colour import linear_to_srgb
from morphable.mesh import Mesh
from morphable.model import MorphableModel
from morphable.registration.closest_points import SurfaceSearch
from renderer.camera import Pinhole
from renderer.light import solve_light
from renderer.render import render

# The 51 inner points without the inner mouth's corners: the set of 49 that many trackers report.
LANDMARKS_49 = np.array([i for i in range(17, 68) if i not in (60, 64)])
YAW_BINS = ((0, 30), (30, 60), (60, 90))  # degrees; the last one is closed


@dataclass(frozen=True)
class Report:
    """Tables to read, and their figures by name."""

    text: str
    numbers: dict[str, float | int | str | None]


def write_json(path: str | os.PathLike, numbers: Mapping[str, float | int | str | None]) -> None:
    """One flat object; a number that is not finite becomes null."""
    plain = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in numbers.items()}
    try:
        Path(path).write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written ({error}), expected a file name. Choose another.") from error


def table(head: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1) -> str:
    """Aligned columns, the first `labels` to the left and the rest to the right."""
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]

    def line(row):
        cells = [
            cell.ljust(w) if k < labels else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(line(row) for row in (head, *rows))


def _with_interval(value: float, interval: Interval, digits: int = 3) -> str:
    if not np.isfinite(interval.low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _store(numbers: dict, key: str, value: float, interval: Interval) -> None:
    numbers[key] = value
    if np.isfinite(interval.low):
        numbers[f"{key}_low"], numbers[f"{key}_high"] = interval


class _Pool:
    """The distances of several subjects as one set, in which a resample counts whole subjects."""

    def __init__(self, scores: Sequence[SurfaceScore]):
        self.count = len(scores)
        self.distance = np.concatenate([s.distance for s in scores])
        owner = np.repeat(np.arange(self.count), [len(s.distance) for s in scores])
        order = np.argsort(self.distance)
        self._sorted, self._owner = self.distance[order], owner[order]
        self._sums = np.array([[len(s.distance), s.distance.sum(), (s.distance**2).sum()] for s in scores])

    def median(self, subjects) -> float:
        total = np.cumsum(np.bincount(subjects, minlength=self.count)[self._owner])
        below, above = np.searchsorted(total, [total[-1] / 2, np.nextafter(total[-1] / 2, np.inf)])
        return float(self._sorted[[below, above]].mean())

    def mean(self, subjects) -> float:
        count, total, _ = self._sums[subjects].sum(axis=0)
        return float(total / count)

    def std(self, subjects) -> float:
        count, total, squares = self._sums[subjects].sum(axis=0)
        return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))

    def rms(self, subjects) -> float:
        count, _, squares = self._sums[subjects].sum(axis=0)
        return float(np.sqrt(squares / count))


def mesh_report(
    pairs: Sequence[tuple[Scan, FaceMesh]],
    mean: FaceMesh,
    refine: bool = True,
    regions: Callable[[Scan], Mapping[str, Bool[np.ndarray, " point"]]] | None = None,
) -> Report:
    """Scan-to-mesh scores of fits and of the mean face, for each subject and together, scaled and metrical.

    `regions` gives the regions of a scan to score besides (`face_regions`, or masks that were read).
    """
    scores: dict[tuple[str, str], list[SurfaceScore]] = {}
    by_region: dict[tuple[str, str], list[SurfaceScore]] = {}
    mean_search = SurfaceSearch(mean.vertices, mean.triangles)
    for scan, mesh in pairs:
        search = SurfaceSearch(mesh.vertices, mesh.triangles)
        chosen = None if regions is None else regions(scan)
        for face, candidate, tree in (("fit", mesh, search), ("mean face", mean, mean_search)):
            for alignment in ("scaled", "metrical"):
                score = scan_to_mesh(scan, candidate, alignment == "scaled", refine, tree)
                scores.setdefault((face, alignment), []).append(score)
            if chosen is not None:
                for region, score in region_scores(scan, candidate, chosen).items():
                    by_region.setdefault((region, face), []).append(score)
    numbers: dict[str, float | int | str | None] = {"subjects": len(pairs), "unit": "mm"}
    aligned = "7 landmarks and ICP" if refine else "7 landmarks alone"
    parts = [
        f"distance of scan points to the mesh in mm, aligned by {aligned}; scaled: size free, metrical: as it is\n"
        + _subject_table([scan for scan, _ in pairs], scores, numbers)
    ]
    parts.append(_pooled_table(scores, numbers))
    parts.append(_curve_table(scores, numbers))
    if by_region:
        parts.append(_region_table(by_region, numbers))
    return Report("\n\n".join(parts), numbers)


def _key(*words: str) -> str:
    return "_".join(words).replace(" ", "_")


def _subject_table(scans: Sequence[Scan], scores, numbers) -> str:
    head = ["subject", "face", "alignment", "points", "median", "mean", "std", "area median", "p90", "rms"]
    rows = []
    for k, scan in enumerate(scans):
        for (face, alignment), of_subjects in scores.items():
            score: SurfaceScore = of_subjects[k]
            shown = (score.median, score.mean, score.std, score.area_median, score.p90, score.rms)
            cells = [f"{v:.3f}" for v in shown] + [f"{score.mesh_to_scan.scale:.4f}", f"{score.landmarks51:.2f}"]
            rows.append([scan.name, face, alignment, str(len(score.distance)), *cells])
            numbers.update({f"{scan.name}/{_key(face, alignment, name)}": v for name, v in score.numbers.items()})
    return table([*head, "scale", "51 landmarks"], rows, labels=3)


def _pooled_table(scores, numbers) -> str:
    head = ["face", "alignment", "median", "mean", "std", "rms", "subjects' median", "51 landmarks"]
    rows = []
    for (face, alignment), of_subjects in scores.items():
        everyone = np.arange(len(of_subjects))
        pool = _Pool(of_subjects)
        medians = np.array([s.median for s in of_subjects])
        landmarks = np.array([s.landmarks51 for s in of_subjects])
        statistics = {
            "median_mm": pool.median,
            "mean_mm": pool.mean,
            "std_mm": pool.std,
            "rms_mm": pool.rms,
            "subject_median_mm": lambda i, of=medians: float(of[i].mean()),
            "landmarks51_mm": lambda i, of=landmarks: float(of[i].mean()),
        }
        cells = []
        for name, statistic in statistics.items():
            value, interval = statistic(everyone), bootstrap(statistic, len(everyone))
            _store(numbers, _key(face, alignment, name), value, interval)
            cells.append(_with_interval(value, interval))
        rows.append([face, alignment, *cells])
    text = f"{_together(numbers['subjects'])}; subjects' median: the mean of their medians\n" + table(
        head, rows, labels=2
    )
    ratios = []
    for alignment in ("scaled", "metrical"):
        ours, mean = (np.array([s.median for s in scores[face, alignment]]) for face in ("fit", "mean face"))

        def ratio(i, ours=ours, mean=mean):
            return float(ours[i].sum() / max(mean[i].sum(), np.finfo(float).tiny))

        value, interval = ratio(np.arange(len(ours))), bootstrap(ratio, len(ours))
        _store(numbers, f"fit_to_mean_face_{alignment}", value, interval)
        ratios.append(f"{alignment} {_with_interval(value, interval)}")
    return f"{text}\nsubjects' median, fit / mean face: {', '.join(ratios)}"


def _together(subjects) -> str:
    if subjects == 1:
        return "one subject, so no interval"
    return f"all points of {subjects} subjects together, with 95 % bootstrap intervals over subjects"


def _curve_table(scores, numbers) -> str:
    rows = []
    for (face, alignment), of_subjects in scores.items():
        shares = cumulative(np.concatenate([s.distance for s in of_subjects]))
        rows.append([face, alignment, *(f"{share:.1f}" for share in shares)])
        for threshold, share in zip(CURVE_MM, shares, strict=True):
            numbers[_key(face, alignment, f"within_{threshold:g}mm_percent")] = float(share)
    head = ["face", "alignment", *(f"{t:g} mm" for t in CURVE_MM)]
    return "per cent of the points within a distance\n" + table(head, rows, labels=2)


def _region_table(by_region, numbers) -> str:
    rows = []
    for (region, face), of_subjects in by_region.items():
        cells = []
        for name in ("mean", "area_mean", "rms"):
            values = np.array([getattr(score, name) for score in of_subjects])

            def average(i, values=values):
                return float(values[i].mean())

            value, interval = average(np.arange(len(values))), bootstrap(average, len(values))
            _store(numbers, _key(face, region, name, "mm"), value, interval)
            cells.append(_with_interval(value, interval))
        rows.append([region, face, *cells])
    note = "distance by region in mm, each region aligned by itself (mean: what REALY calls NMSE)\n"
    return note + table(["region", "face", "mean", "area mean", "rms"], rows, labels=2)


def landmark_report(
    predictions: Mapping[str, Float[np.ndarray, "68 2"]],
    names: Sequence[str],
    truth: Float[np.ndarray, "image 68 2"],
    yaw_deg: Float[np.ndarray, " image"],
    mean_landmarks: Float[np.ndarray, "68 3"],
    normaliser: str = "bbox",
) -> Report:
    """Landmark NME by yaw bin (AFLW2000-3D; Zhu et al. 2016) and in both averages: over images, and over bins.

    On a set with many frontal faces the two differ, and published tables mix them. The mean face's row poses the
    model's mean landmarks on the prediction's points: what the pose alone explains. From eight answers on there is a
    row with adapted labels: the prediction in the set's own definition of the landmarks, learnt from the other images.
    """
    errors = {"prediction": np.full((len(names), 68), np.nan), "mean face": np.full((len(names), 68), np.nan)}
    for k, name in enumerate(names):
        if name not in predictions:
            continue
        points = predictions[name]
        errors["prediction"][k] = landmark_errors(points, truth[k], normaliser)
        try:
            rotation, scale, origin = weak_perspective_pose(mean_landmarks, points)
        except LandmarkFitError:
            continue
        posed = scale * mean_landmarks @ rotation[:2].T + origin
        errors["mean face"][k] = landmark_errors(posed, truth[k], normaliser)
    if np.isfinite(errors["prediction"]).all(axis=1).sum() >= _ADAPT_FROM:
        given = np.stack([predictions.get(name, np.full((68, 2), np.nan)) for name in names])
        moved = adapted_labels(np.asarray(given, float), np.asarray(truth, float), mean_landmarks)
        errors["label-adapted"] = np.stack(
            [landmark_errors(p, t, normaliser) for p, t in zip(moved, truth, strict=True)]
        )
    yaw = np.abs(yaw_deg)
    in_bin = [(yaw >= low) & ((yaw < high) | (high == YAW_BINS[-1][1])) for low, high in YAW_BINS]
    answered = np.asarray(np.isfinite(errors["prediction"]).all(axis=1))
    numbers: dict[str, float | int | str | None] = {
        "normaliser": normaliser,
        "images": len(names),
        "answered": int(answered.sum()),
    }
    rows = []
    for k in np.argsort(yaw, kind="stable"):
        of_image = errors["prediction"][k]
        cells = [f"{of_image[s].mean():.3f}" for s in _LANDMARK_SETS.values()] if answered[k] else ["no answer", "", ""]
        rows.append([names[k], f"{yaw_deg[k]:.1f}", *cells])
        numbers[f"{names[k]}/nme68_percent"] = float(of_image.mean())
    described = f"{normaliser} = {NORMALISERS[normaliser].description}"
    first = f"landmark NME in per cent of {described}\n" + table(["image", "yaw", *_SET_HEADS], rows)
    rows = []
    for face, of_images in errors.items():
        for label, statistic, chosen, strata in _landmark_averages(in_bin, answered):
            cells = []
            for short, indices in _LANDMARK_SETS.items():
                per_image = of_images[:, indices].mean(axis=1)

                def average(i, per_image=per_image, statistic=statistic, chosen=chosen):
                    return statistic(per_image, chosen[i])

                if len(chosen):
                    value, interval = average(np.arange(len(chosen))), bootstrap(average, len(chosen), strata=strata)
                else:
                    value, interval = float("nan"), Interval(float("nan"), float("nan"))
                _store(numbers, _key(face, label.replace("|", ""), f"nme{short}_percent"), value, interval)
                cells.append(_with_interval(value, interval) if len(chosen) else "-")
            rows.append([face, label, str(len(chosen)), *cells])
    counts = ", ".join(f"{int((m & answered).sum())} of {int(m.sum())}" for m in in_bin)
    note = f"answered by yaw bin: {counts}; 95 % bootstrap intervals over images; mean of bins: over those with images"
    if "label-adapted" in errors:
        note += "\nlabel-adapted: without the constant differences to the truth that the other images show"
    return Report(f"{first}\n\n{note}\n" + table(["face", "average", "images", *_SET_HEADS], rows, labels=2), numbers)


_ADAPT_FROM = 8  # answers: from few images, what is one face's own passes for the set's definition
_LANDMARK_SETS = {"68": np.arange(68), "51": np.arange(17, 68), "49": LANDMARKS_49}
_SET_HEADS = [f"NME{k}" for k in _LANDMARK_SETS]


def _landmark_averages(in_bin, answered) -> Iterator[tuple[str, Callable, np.ndarray, list | None]]:
    """Each average's name, its function of all errors and chosen images, those images, and groups to resample in."""

    def over_images(errors, images):
        return float(errors[images].mean())

    def over_bins(errors, images):
        means = [errors[images[m[images]]].mean() for m in in_bin if m[images].any()]
        return float(np.mean(means))

    for (low, high), members in zip(YAW_BINS, in_bin, strict=True):
        yield f"|yaw| {low}-{high}", over_images, np.flatnonzero(members & answered), None
    everyone = np.flatnonzero(answered)
    yield "mean over images", over_images, everyone, None
    yield "mean of bins", over_bins, everyone, [np.flatnonzero(m[everyone]) for m in in_bin]


def correspondence_report(
    pairs: Sequence[tuple[str, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
    counted: Int[np.ndarray, " counted"],
    mean: Float[np.ndarray, "vertex 3"],
) -> Report:
    """Error of known correspondences: fits of synthetic faces against the vertices they were made from.

    `pairs` holds a name, a fit's arrays and the truth's, of one model; `counted` are the vertices that count.
    """
    values: dict[tuple[str, str, str], list[float]] = {}
    numbers: dict[str, float | int | str | None] = {"subjects": len(pairs), "vertices": len(counted), "unit": "mm"}
    rows = []
    for name, fit, truth in pairs:
        for shape, key in (("neutral", "neutral_vertices"), ("with expression", "vertices")):
            for face, vertices in (("fit", fit[key]), ("mean face", mean)):
                for alignment in ("scaled", "metrical"):
                    target = np.asarray(truth[key], float)
                    if target.shape != vertices.shape:
                        raise EvaluationError(
                            f"{name}: got a truth of {target.shape} vertices and a fit of {vertices.shape}, expected "
                            "the same model in both. Name the truth's own model when fitting."
                        )
                    ours = np.asarray(vertices, float)[counted]
                    error = correspondence_error(ours, target[counted], alignment == "scaled")
                    values.setdefault((shape, face, alignment), []).append(float(error.mean()))
                    cells = [f"{v:.3f}" for v in (np.median(error), error.mean(), error.std(), error.max())]
                    rows.append([name, shape, face, alignment, *cells])
                    numbers[f"{name}/{_key(shape, face, alignment, 'mean_mm')}"] = float(error.mean())
    parts = [
        f"distance of {len(counted)} vertices to the same vertices of the truth in mm, after the best motion\n"
        + table(["subject", "shape", "face", "alignment", "median", "mean", "std", "max"], rows, labels=4)
    ]
    rows = []
    for (shape, face, alignment), means in values.items():
        of_subjects = np.array(means)

        def average(i, of_subjects=of_subjects):
            return float(of_subjects[i].mean())

        value, interval = average(np.arange(len(means))), bootstrap(average, len(means))
        _store(numbers, _key(shape, face, alignment, "mean_mm"), value, interval)
        rows.append([shape, face, alignment, _with_interval(value, interval)])
    note = "one subject, so no interval" if len(pairs) == 1 else f"{len(pairs)} subjects, 95 % bootstrap intervals"
    parts.append(
        f"mean over vertices and subjects; {note}\n" + table(["shape", "face", "alignment", "mean"], rows, labels=3)
    )
    return Report("\n\n".join(parts), numbers)


# ------------------------------------------------------------------------------------------- the photo itself

_PICTURE_SIZE = 512  # of the compared square, so that scores of large and small photos compare


def image_report(
    fit: Mapping[str, np.ndarray],
    photo: Photo,
    model: MorphableModel,
    region: str = "face",
    textured: Photo | None = None,
    usable: Bool[np.ndarray, "height width"] | None = None,
) -> Report:
    """PSNR and SSIM of a fit's rendering under the mask of the pixels that it renders, sRGB-encoded.

    Rows: the model's own colours under the fitted light; the mean face in the same camera, its light solved anew (the
    best a face without identity can do); and `textured`, the fit's render.png, whose texture was taken from this very
    photo and which therefore says little. `region` is a mask of the model, or "skin" or "all"; where the photo is not
    `usable`, under hair or hands, nothing counts.
    """
    single = lambda values: jnp.asarray(values, jnp.float32)  # noqa: E731
    counted = _region_weight(model, region)
    K, R, t = (fit[name][0] for name in ("K", "R", "t"))
    camera = Pinhole.from_opencv(single(K), single(R), single(t), photo.height, photo.width)
    pixels = np.asarray(camera.project(single(fit["vertices"])))[counted > 0.5]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    if not np.isfinite([low, high]).all() or (high < 0).any() or (low > [photo.width, photo.height]).any():
        raise EvaluationError(
            f"{photo.path}: got a fit whose {region} is not in the photo, expected the photo that was fitted."
        )
    side = float((high - low).max()) * 1.05
    x0, y0 = ((low + high - side) / 2).tolist()
    box = (x0, y0, side, side)
    encoded, inside = photo.crop_srgb(box, _PICTURE_SIZE)
    linear, _ = photo.crop_linear(box, _PICTURE_SIZE)
    if usable is not None:
        inside = inside & (crop(usable, box, _PICTURE_SIZE) > 0.5)
    square = camera.crop(box, _PICTURE_SIZE, _PICTURE_SIZE)
    albedo = model.albedo_linear(single(fit["albedo"]))
    mean_albedo = model.albedo_linear(jnp.zeros(0))
    triangles = jnp.asarray(solid_triangles(model))

    def picture(vertices, colours, light):
        drawn = render(Mesh(vertices, triangles, albedo=colours), square, light)
        share = np.asarray(drawn.interpolate(single(counted)[:, None], triangles))[..., 0]
        return drawn, inside & (np.asarray(drawn.triangle_ids) >= 0) & (share > 0.5)

    first, mask = picture(single(fit["vertices"]), albedo, single(fit["light"][0]))
    plain, mean_mask = picture(model.mean, mean_albedo, single(fit["light"][0]))
    of_pixel = plain.interpolate(mean_albedo, triangles)
    colours, normals, seen = (jnp.reshape(x, (-1, 3)) for x in (of_pixel, plain.normals, single(linear)))
    light = solve_light(colours, normals, seen, single(mean_mask.ravel()))
    relit, _ = picture(model.mean, mean_albedo, light)
    rows: list[tuple[str, np.ndarray, np.ndarray]] = [
        ("fit", np.asarray(linear_to_srgb(jnp.clip(first.colour, 0, 1))), mask),
        ("mean face", np.asarray(linear_to_srgb(jnp.clip(relit.colour, 0, 1))), mean_mask),
    ]
    if textured is not None:
        rows.append(("fit, textured by the photo", textured.crop_srgb(box, _PICTURE_SIZE)[0], mask))
    numbers: dict[str, float | int | str | None] = {"region": region, "size": _PICTURE_SIZE}
    cells = []
    for name, drawn, where in rows:
        scores = (
            psnr(drawn.astype(float), encoded.astype(float), where),
            ssim(drawn.astype(float), encoded.astype(float), where),
        )
        cells.append([name, str(int(where.sum())), f"{scores[0]:.2f}", f"{scores[1]:.4f}"])
        key = _key(name.split(" by ")[0].replace(",", ""))
        numbers[f"{key}_psnr_db"], numbers[f"{key}_ssim"], numbers[f"{key}_pixels"] = *scores, int(where.sum())
    note = (
        f"rendering against the photo, sRGB-encoded in [0, 1], at {_PICTURE_SIZE} x {_PICTURE_SIZE} pixels around the "
        f"face (one is {side / _PICTURE_SIZE:.2f} of the photo's), under the rendered pixels of: {region}\n"
    )
    return Report(note + table(["face", "pixels", "PSNR dB", "SSIM"], cells), numbers)


def _region_weight(model: MorphableModel, region: str) -> Float[np.ndarray, " vertex"]:
    if region == "all":
        return np.ones(len(model.mean))
    visible = np.zeros(len(model.mean))
    visible[np.unique(visible_skin(model))] = 1.0
    if region == "skin":
        return visible
    if region not in model.masks:
        raise EvaluationError(f"--region: got {region!r}, expected all, skin or one of {', '.join(model.masks)}.")
    return visible * np.asarray(model.masks[region])
