"""What the landmark network is worth: alone and as the start of a fit, beside dlib, on data that is not in the project.

    python -m benchmarks landmark_network --shared ../shared [--weights FILE] [--only NAME ...]

calibration  portraits that no training sees: NME by yaw, and how many errors are within one deviation
speed        processor time of crop and network for one face
aflw         `data/aflw_dev`, boxes given: NME of 68 points by yaw, network alone, network and fit, dlib; the same
             label-adapted, which is to say in the set's own definition of the points, learnt from its other images,
             and against the set's second, corrected annotation
ict          `data/ict_dev`: scan-to-mesh of single views with dlib and the network; pose of the views at 60 degrees
rig          `data/ict_dev`: five views of each subject fitted together with the network
video        `data/video` and the bundled photo made to turn: jitter, lost frames and errors of tracks with either
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

import fitting
import morphable
from fitting.clip.frames import ClipWriter
from fitting.clip.motion import Track
from fitting.clip.tracking import track
from fitting.clip.turned import ClipSettings, save_turned_clip
from fitting.detection import Face, NoFaceError, detect_faces
from fitting.evaluation import FaceMesh, adapted_labels, landmark_errors, mean_face, scan_to_mesh
from fitting.face_profiling import profile_mesh
from fitting.fit import Fitter
from fitting.ground_truth import read_scan
from fitting.multi_image import fit_together
from fitting.network_detection import NetworkProvider, around, locate, look
from fitting.observation import Photo, read_photo
from fitting.portraits.portrait import PortraitSettings
from fitting.portraits.stream import render_chunk
from fitting.portraits.studio import studio
from fitting.sighting import Square

_BINS = ((0, 30), (30, 60), (60, 91))
_TURNS = {"turned": ClipSettings(), "to the sides": ClipSettings(yaw=85.0, pitch=5.0)}  # of the bundled photo
VIEWS = ("y-60", "y-30", "y+00", "y+30", "y+60")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only", nargs="*", choices=["calibration", "speed", "aflw", "ict", "rig", "video"])
    parser.add_argument("--portraits", type=int, default=512)
    args = parser.parse_args(arguments)
    on_data = {"aflw": aflw, "ict": ict, "rig": rig, "video": video}
    wanted = args.only or ["calibration", "speed", *(on_data if args.shared else [])]
    if args.shared is None and set(wanted) & set(on_data):
        parser.error(
            f"{', '.join(n for n in wanted if n in on_data)}: give --shared, the folder whose data/ they read."
        )
    model = morphable.load()
    provider = NetworkProvider.of(model, args.weights)
    fitter = Fitter(model)
    for name in wanted:
        print(f"== {name}")
        if name == "calibration":
            calibration(provider, model, args.portraits)
        elif name == "speed":
            speed(provider)
        else:
            on_data[name](provider, fitter, args.shared / "data")


def nme(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean error of the 68 points in per cent of the root of the true points' box."""
    return float(np.mean(landmark_errors(found, truth)))


def by_yaw(yaws, values) -> str:
    """Means in bins of |yaw|, and over all."""
    yaws, values = np.abs(yaws), np.asarray(values)
    parts = [values[(yaws >= low) & (yaws < high)] for low, high in _BINS]
    shown = [f"{np.nanmean(p):.2f} ({np.isfinite(p).sum()})" if np.isfinite(p).any() else "-" for p in parts]
    return f"{' / '.join(shown)}; all {np.nanmean(values):.3f}"


def calibration(provider: NetworkProvider, model, count: int):
    truth = render_chunk(studio(model), 2_000_000_011, 0, PortraitSettings(), count)
    size = truth.pixels.shape[1]
    yaws, errors, within, within_68, seen, degrees = [], [], [], [], [], []
    for k in range(count):
        points, rotation = np.asarray(truth.landmarks[k]), np.asarray(truth.rotation[k])
        photo = Photo(np.asarray(truth.pixels[k]))
        found = look(provider.network, photo, Square(np.full(2, size / 2), float(size)))
        inside = np.abs(found.points - points) <= found.sigma[:, None]
        yaws.append(np.rad2deg(np.arctan2(rotation[0, 2], -rotation[2, 2])))
        errors.append(nme(found.landmarks, points[:68]))
        within.append(inside.mean())
        within_68.append(inside[:68].mean())
        seen.append(inside[np.asarray(truth.visible[k]) > 0.5].mean())
        cosine = (np.trace(found.rotation.T @ rotation) - 1) / 2
        degrees.append(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))
    print(f"{count} portraits: NME68 by |yaw| {by_yaw(yaws, errors)}; rotation {np.mean(degrees):.2f} degrees")
    print(
        f"errors within one deviation: all points {100 * np.mean(within):.1f} %, the 68 "
        f"{100 * np.mean(within_68):.1f} %, visible ones {100 * np.nanmean(seen):.1f} %"
    )


def speed(provider: NetworkProvider, repeats: int = 40):
    rng = np.random.default_rng(0)
    photo = Photo(rng.integers(0, 255, (1200, 900, 3), dtype=np.uint8))
    square = around(np.array([[300.0, 400.0], [700.0, 800.0]]), 0.2)
    look(provider.network, photo, square)
    cpu, wall = [], []
    for _ in range(repeats):
        began, clock = time.process_time(), time.perf_counter()
        look(provider.network, photo, square)
        cpu.append(time.process_time() - began)
        wall.append(time.perf_counter() - clock)
    print(f"crop and network, one look: {1e3 * np.median(cpu):.1f} ms of CPU, {1e3 * np.median(wall):.1f} ms in all")


def aflw(provider: NetworkProvider, fitter: Fitter, data: Path):
    index = np.load(data / "aflw_dev" / "index.npz")
    yaws = index["yaw_deg"]
    truths = np.asarray(index["pts68_2d"], float)
    rows: dict[str, list[np.ndarray]] = {"network": [], "network + fit": [], "dlib": [], "dlib + fit": []}
    for name, truth, box, yaw in zip(index["names"], truths, index["roi_box"], yaws, strict=True):
        photo = read_photo(data / "aflw_dev" / str(name))
        face = detect_faces(photo, box=[float(v) for v in box], provider=provider)[0]
        rows["network"].append(face.landmarks)
        near = nme(locate(provider.network, photo, around(truth)).landmarks, truth)
        rows["network + fit"].append(fitter.fit(photo, face).landmarks2d)
        try:
            other = detect_faces(photo, box=[float(v) for v in box])[0]
            rows["dlib"].append(other.landmarks)
            rows["dlib + fit"].append(fitter.fit(photo, other).landmarks2d)
        except NoFaceError:
            rows["dlib"].append(np.full((68, 2), np.nan))
            rows["dlib + fit"].append(np.full((68, 2), np.nan))
        alone, fitted, dlib, dlib_fitted = (nme(found[-1], truth) for found in rows.values())
        print(
            f"{name} yaw {yaw:5.1f}: network {alone:5.2f} (from the true box {near:5.2f}), + fit {fitted:5.2f}; dlib "
            f"{dlib:5.2f}, + fit {dlib_fitted:5.2f}; doubt {face.sighting.doubt if face.sighting else 0:.4f}"
        )
    mean = mean_face(fitter.model).landmarks
    again = np.asarray(index["pts68_2d_reannotated"], float)
    for name, found in rows.items():
        points = np.asarray(found, float)
        for label, given, true in (
            ("", points, truths),
            (", label-adapted", adapted_labels(points, truths, mean), truths),
            (", re-annotated", points, again),
        ):
            values = [nme(p, t) for p, t in zip(given, true, strict=True)]
            if np.isfinite(values).any():
                print(f"{name + label:28s} {by_yaw(yaws, values)}")


def _score(fit, scan, mean) -> tuple[float, float]:
    mesh = FaceMesh(fit.neutral_vertices.astype(float), mean.triangles, fit.neutral_landmarks3d.astype(float))
    found = scan_to_mesh(scan, mesh)
    return found.median, found.landmarks51


_SINGLE = ("y+00", "y-30", "y+30")  # views fitted alone, from which dlib finds its points


def ict(provider: NetworkProvider, fitter: Fitter, data: Path):
    """Every view fitted alone: shape by view and pooled, with dlib and the network; rotation where dlib is useless."""
    mean, sources = mean_face(fitter.model), {"dlib": None, "network": provider}
    table: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in sources}  # a row for each subject
    plain: list[float] = []
    turned: list[float] = []
    for folder in sorted((data / "ict_dev").iterdir()):
        truth, scan = np.load(folder / "gt.npz"), read_scan(folder / "gt.npz", mask="face_mask_core", expression=0)
        plain.append(scan_to_mesh(scan, mean).median)
        words = [f"mean {plain[-1]:.3f}"]
        for name, source in sources.items():
            row = []
            for view in _SINGLE:
                photo = read_photo(folder / f"{view}.jpg")
                row.append(_score(fitter.fit(photo, detect_faces(photo, provider=source)[0]), scan, mean))
            table[name].append(row)
            words.append(
                f"{name} " + " ".join(f"{v} {x:.3f} (51: {i:.2f})" for v, (x, i) in zip(_SINGLE, row, strict=True))
            )
        for view in ("y-60", "y+60"):
            side = read_photo(folder / f"{view}.jpg")
            try:
                face = detect_faces(side, provider=provider)[0]
            except NoFaceError:
                words.append(f"{view} no face")
                turned.append(np.nan)
                continue
            fit, k = fitter.fit(side, face), list(truth["names"]).index(view)
            turned.append(angle(np.asarray(fit.camera.rotation), truth["R"][k]))
            before = nme(face.landmarks, truth["lmk2d"][k])
            median = _score(fit, scan, mean)[0]
            words.append(f"{view} {median:.3f} {turned[-1]:.1f} deg, NME {before:.1f}, {fit.result}")
        print(f"{folder.name}: {'; '.join(words)}", flush=True)
    print(f"mean face: {np.mean(plain):.3f} mm")
    dlib, network = (np.array(table[name]) for name in sources)
    for label, columns in (*((v, [k]) for k, v in enumerate(_SINGLE)), ("pooled", [0, 1, 2])):
        (one, one51), (other, other51) = (t[:, columns].mean(axis=1).T for t in (dlib, network))
        error = np.std(other - one, ddof=1) / np.sqrt(len(one))  # subjects differ more than detectors
        print(
            f"{label}: dlib {one.mean():.3f} (51: {one51.mean():.2f}), network {other.mean():.3f} mm "
            f"(51: {other51.mean():.2f}), "
            f"{100 * (other.mean() / one.mean() - 1):+.1f} % "
            f"(difference {np.mean(other - one):+.3f}, standard error {error:.3f})"
        )
    degrees = np.array(turned)
    near = int(np.sum(degrees < 5))
    print(f"views at 60 degrees: worst {np.nanmax(degrees):.1f}, within 5 degrees {near} of {len(degrees)}")


def angle(one: np.ndarray, other: np.ndarray) -> float:
    """Degrees between two rotations."""
    return float(np.rad2deg(np.arccos(np.clip((np.trace(one.T @ other) - 1) / 2, -1, 1))))


def rig(provider: NetworkProvider, fitter: Fitter, data: Path):
    mean, scores = mean_face(fitter.model), []
    for folder in sorted((data / "ict_dev").iterdir()):
        scan = read_scan(folder / "gt.npz", mask="face_mask_core", expression=0)
        paths = [folder / f"{view}.jpg" for view in VIEWS]
        faces: list[Face | None] = []
        for path in paths:
            try:
                faces.append(detect_faces(read_photo(path), provider=provider)[0])
            except NoFaceError:
                faces.append(None)
        joint = fit_together(fitter, [lambda p=p: read_photo(p) for p in paths], faces, names=[p.stem for p in paths])
        median, inner = _score(joint.fits[0], scan, mean)
        scores.append(median)
        used = sum(v.used for v in joint.verdicts)
        print(f"{folder.name}: {median:.3f} (51: {inner:.2f}); {used} of 5 used", flush=True)
    print(f"pooled {np.mean(scores):.3f}")


def video(provider: NetworkProvider, fitter: Fitter, data: Path):
    """Both tracks of each clip; errors where the truth is known, whose head is that of a fit to dlib's landmarks."""
    print(
        "clip             source    lost %  jitter px (before)      mm  rotation, deg  pose error, deg (steady)  NME %"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photo = read_photo(Path(fitting.__file__).parent / "examples" / "eileen_collins.jpg")
        profile = profile_mesh(fitter.fit(photo, detect_faces(photo)[0]), photo, 512)
        for clip, settings in _TURNS.items():
            with ClipWriter(folder / f"{clip}.mp4", settings.rate) as writer:
                save_turned_clip(folder / f"{clip}.npz", writer.write, profile, seed=1, frames=60, settings=settings)
        for path in (*sorted((data / "video").glob("*.mp4")), *(folder / f"{clip}.mp4" for clip in _TURNS)):
            for name, source in (("dlib", None), ("network", provider)):
                out = folder / path.stem / name
                found = track(path, out, model=fitter.model, landmarks=source, pictures=False)
                before, after = found.before, found.after
                line = f"{path.stem:16s} {name:8s} {100 * found.lost / found.frames:7.1f} {after.jitter_px:12.2f} "
                line += f"({before.jitter_px:.2f}) {after.jitter_mm:7.2f} {after.rotation_jitter_deg:14.2f}"
                truth = path.with_suffix(".npz")
                print(line + (_errors(found.track, fitter, truth) if path.stem in _TURNS else ""), flush=True)


def _errors(found: Track, fitter: Fitter, truth: Path) -> str:
    """Of rotations, of their changes over the clip, and of landmarks."""
    with np.load(truth) as true:
        seen = np.flatnonzero(~found.lost)
        points = found.project(found.landmarks(fitter.model))
        rotations = true["poses"][seen][:, :3, :3]
        off = np.mean([nme(points[k], true["pixels"][k]) for k in seen])
    wrong = Rotation.from_matrix(rotations.transpose(0, 2, 1) @ found.R[seen])  # about the head's axes
    changes = np.rad2deg((wrong * wrong.mean().inv()).magnitude())
    return f" {np.rad2deg(wrong.magnitude()).mean():18.2f} ({changes.mean():.2f}) {off:6.2f}"


if __name__ == "__main__":
    main()
