"""The `facefit` command: fit a photo, look at a model.

Exit codes: 0 success, 1 the fit failed (what was computed is written all the same), 2 bad input, 130 interrupted.
"""

import functools
import logging
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fitting.command import BAD_INPUT, FIT_FAILED, INTERRUPTED, SUCCESS, UsageError, stage
from fitting.detail_command import train_detail
from fitting.landmark_command import train_landmarks
from fitting.landmark_source import SOURCES, VIDEO_SOURCES, check_source, landmark_provider
from fitting.model_commands import model_app

_DETAIL_VIEWS = 6  # photos that detail is looked for in: those that together show the head best

app = tyro.extras.SubcommandApp()
evaluate_app = tyro.extras.SubcommandApp()


@app.command(name="fit")
def fit(
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")],
    /,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    model: Path | None = None,
    box: str | None = None,
    landmarks: str | None = None,
    landmark_weights: Path | None = None,
    mask: Path | None = None,
    focal_px: float | None = None,
    all_faces: bool = False,
    covered: bool = False,
    report: bool = False,
    detail: Literal["none", "optimise", "network"] = "none",
    refine: bool = False,
    detail_weights: Path | None = None,
) -> int:
    """Fit the head model to one photo and write a riggable, textured head.

    OUT receives fit.npz (vertices, landmarks, camera, coefficients), fit.json (settings, stages, energies),
    mesh.obj and neutral.obj with a texture, head.glb (skeleton and 52 ARKit morph targets), render.png,
    overlay.png and turntable.png.

    Args:
        photo: JPEG, PNG, TIFF, WebP or BMP.
        out: Folder for the results; made if missing, written only when everything succeeded.
        model: A morphable model in facefit's own format. Default: the CC0 head that ships with facefit.
        box: Where the face is, as x0,y0,x1,y1 in photo pixels, if detection misses it or takes the wrong one.
        landmarks: Where landmarks come from: "dlib", "network" (hundreds of points at any pose, each with its own
            uncertainty), "mediapipe", or a file of 68 iBUG landmarks, for which no detector is run: .pts (pixels from
            1), .json or .npy (pixel centres at +0.5); NaN = hidden. Default: dlib.
        landmark_weights: For the network, weights that `facefit train-landmarks` wrote (default: those that ship with
            facefit); for MediaPipe, your copy of its face_landmarker.task.
        mask: Image of the photo's size: white where the photo may be used, black over hands, glasses, hair.
        focal_px: Focal length in pixels of the photo, where known.
        all_faces: Fit every detected face, largest first, into OUT/face_0, OUT/face_1, ...
        covered: Something covers a part of the face, such as a hand, a scarf or sunglasses: look for it, leave it out.
        report: Write report.html too: what the fit found, how it came there, which term moved which vertex.
        detail: Wrinkles and folds that no coefficient says, as a displacement map: by shape from shading, or by the
            network that ships with facefit, which also knows what expressions do to them. See docs/detail.md.
        refine: Train the network on this photo for a moment.
        detail_weights: Weights that `facefit train-detail` wrote. Default: those that ship with facefit.
    """
    began = time.perf_counter()
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    # Everything that can be wrong with the input is looked at before the slow libraries load.
    from fitting.output import check_writable

    check_writable(out)
    region = _parse_box(box)
    if focal_px is not None and not (focal_px > 0 and math.isfinite(focal_px)):
        raise UsageError(f"--focal-px: got {focal_px:g}, expected a positive number of pixels.")
    if box is not None and all_faces:
        raise UsageError("--box states one face: it cannot be combined with --all-faces.")
    given = landmarks is not None and landmarks not in SOURCES
    if given and (box is not None or all_faces):
        raise UsageError("--landmarks FILE states one face: it cannot be combined with --box or --all-faces.")
    check_source(landmarks, landmark_weights)
    _check_detail(detail, refine, detail_weights)

    import morphable
    from fitting.detection import Face, detect_faces
    from fitting.export import save_results
    from fitting.fit import Fitter
    from fitting.observation import read_landmarks, read_mask, read_photo
    from fitting.schedule import coarse_to_fine

    with stage(console, "reading the photo"):
        picture = read_photo(photo)
        allowed = None if mask is None else read_mask(mask, picture)
        for note in picture.notes:
            console.print(f"  {note}")
    head = functools.cache(lambda: morphable.load(model))  # the network alone needs it before faces are found
    if given:
        faces = [Face.from_landmarks(read_landmarks(str(landmarks), picture), picture)]
    else:
        with stage(console, "looking for faces"):
            provider = landmark_provider(landmarks, landmark_weights, head)
            faces = detect_faces(picture, box=region, all_faces=all_faces, provider=provider)
    for index, face in enumerate(faces):
        x0, y0, x1, y1 = (round(float(v)) for v in face.box)
        console.print(f"  face {index}: {face.source}, box {x0},{y0},{x1},{y1}")
        if face.truncated:
            console.print("  it is cut by the photo's border: what lies outside is the model's guess")
    with stage(console, "loading the model"):
        fitter = Fitter(head())
        network = _detail_network(detail, detail_weights, fitter.model)
    failed = False
    for index, face in enumerate(faces):
        target = out / f"face_{index}" if all_faces else out
        if len(faces) > 1:
            console.print(f"face {index}:")
        plan = coarse_to_fine(label=covered)
        result = fitter.fit(picture, face, plan, focal_px, allowed, _Progress(console))
        if covered and result.labels is not None:
            share = 100 * result.labels.outlier_share
            console.print(
                f"  {share:.0f} % of the face is covered" if result.labels.found else "  nothing covers the face"
            )
        relief = None
        if detail != "none" and result.result != "failed":
            from fitting.detail_estimate import estimate_detail

            with stage(console, f"detail: {detail}"):
                relief = estimate_detail([result], [picture], detail, masks=[allowed], network=network, refine=refine)
        with stage(console, f"writing {target}"):
            options = {
                "photo": str(photo),
                "box": region,
                "landmarks": landmarks,
                "landmark_weights": None if landmark_weights is None else str(landmark_weights),
                "mask": None if mask is None else str(mask),
                "focal_px": focal_px,
                "detail": detail,
                "refine": refine,
            }
            elapsed = time.perf_counter() - began
            detection = {"box": face.box, "truncated": face.truncated, "seconds_before_writing": elapsed}
            save_results(target, result, picture, allowed, options, detection, report=report, detail=relief)
        if result.result == "failed":
            failed = True
            console.print(f"[red]the fit failed[/red]: {result.reason}. Try --box, --landmarks or a larger image.")
        else:
            console.print(f"[green]{result.result}[/green]; see {target / 'overlay.png'} and {target / 'head.glb'}")
    console.print(f"{time.perf_counter() - began:.1f} s")
    return FIT_FAILED if failed else SUCCESS


@app.command(name="rig")
def rig(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...")],
    /,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    model: Path | None = None,
    landmarks: tuple[str, ...] | None = None,
    landmark_weights: Path | None = None,
    cameras: Path | None = None,
    same_camera: bool = False,
    focal_px: float | None = None,
    one_person: bool = False,
    pupils_mm: float | None = None,
    plain: bool = False,
    detail: Literal["none", "optimise", "network"] = "none",
    refine: bool = False,
    detail_weights: Path | None = None,
) -> int:
    """Fit several photos of one person together and write one riggable head.

    OUT receives head.glb (skeleton, 52 ARKit morph targets, colour and normal maps), neutral.obj, rig.npz and
    parameters.npz (one row for each photo), rig.json (what became of each photo), cameras/ in six conventions,
    sheet.png (every photo beside its fit) and turntable.png.

    Args:
        photos: Photos, or folders of them.
        out: Folder for the results; made if missing, written only when everything succeeded.
        model: A morphable model in facefit's own format. Default: the CC0 head that ships with facefit.
        landmarks: "dlib", "network" or "mediapipe", or one file of 68 iBUG landmarks for each photo, in their order, as
            for `facefit fit`. Default: dlib.
        landmark_weights: As for `facefit fit`.
        cameras: Known cameras: a transforms.json (NeRF), a COLMAP folder, or an opencv.json that facefit wrote.
        same_camera: All photos were taken with one focal length. Photos whose EXIF tells the same one share it anyway.
        focal_px: Focal length in pixels, of all photos, where known.
        one_person: Do not look whether the photos show different people.
        pupils_mm: The person's distance between the pupils, measured: it sets the head's true size.
        plain: Leave out personal corrections: blendshapes are the model's own.
        detail: Wrinkles and folds as a displacement map from all photos: by shape from shading, or by the network,
            which also says what expressions do to them.
        refine: Train the network on these photos for a moment.
        detail_weights: Weights that `facefit train-detail` wrote. Default: those that ship with facefit.
    """
    began = time.perf_counter()
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    from fitting.output import check_writable, output_folder

    check_writable(out)
    if focal_px is not None and not (focal_px > 0 and math.isfinite(focal_px)):
        raise UsageError(f"--focal-px: got {focal_px:g}, expected a positive number of pixels.")
    named = landmarks[0] if landmarks is not None and len(landmarks) == 1 and landmarks[0] in SOURCES else None
    files = None if landmarks is None or named is not None else [Path(p) for p in landmarks]
    check_source(named, landmark_weights)
    _check_detail(detail, refine, detail_weights)

    import morphable
    from fitting.fit import Fitter
    from fitting.multi_image import fit_together
    from fitting.personal_rig import personal_rig
    from fitting.rig import photos_of, read_set, write_rig

    paths, known = photos_of(photos), None
    if cameras is not None:
        from fitting.known_cameras import cameras_of, read_cameras

        known = cameras_of(read_cameras(cameras), paths)
    head = functools.cache(lambda: morphable.load(model))
    with stage(console, "looking for faces"):
        provider = landmark_provider(named, landmark_weights, head) if files is None else None
        given = read_set(paths, files, console.print, provider)
    with stage(console, "loading the model"):
        fitter = Fitter(head())
        network = _detail_network(detail, detail_weights, fitter.model)
    with stage(console, "fitting"):
        joint = fit_together(
            fitter,
            given.sources,
            given.faces,
            names=given.names,
            same_camera=same_camera,
            one_person=one_person,
            focal_px=focal_px,
            cameras=known,
            progress=console.print,
            provider=provider,
        )
    for verdict in joint.verdicts:
        mark = "[green]" if verdict.used else "[yellow]"
        console.print(f"  {mark}{verdict.name}[/]: {verdict.words}")
    options = {
        "landmarks": None if landmarks is None else list(landmarks),
        "landmark_weights": None if landmark_weights is None else str(landmark_weights),
        "cameras": None if cameras is None else str(cameras),
        "same_camera": same_camera,
        "focal_px": focal_px,
        "pupils_mm": pupils_mm,
        "plain": plain,
        "detail": detail,
        "refine": refine,
    }
    with stage(console, "the person's own corrections"):
        own = None if plain else personal_rig(fitter, joint, given.sources)
    relief = None
    if detail != "none":
        from fitting.detail_estimate import estimate_detail
        from fitting.texture_map import best_views

        with stage(console, f"detail: {detail}"):
            fits = joint.fits if own is None else [own.applied_to(f) for f in joint.fits]
            views = best_views(fits)[:_DETAIL_VIEWS]
            pictures = [given.sources[joint.indices[k]]() for k in views]
            relief = estimate_detail([fits[k] for k in views], pictures, detail, network=network, refine=refine)
    with stage(console, f"writing {out}"), output_folder(out) as folder:
        scale = write_rig(folder, joint, given, own, pupils_mm, options, detail=relief)
    console.print(f"  {scale}")
    console.print(f"[green]{joint.result}[/green]; see {out / 'sheet.png'} and {out / 'head.glb'}")
    console.print(f"{time.perf_counter() - began:.1f} s")
    return SUCCESS


@app.command(name="track")
def track(
    video: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO")],
    /,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    model: Path | None = None,
    landmarks: str = "dlib",
    landmark_weights: Path | None = None,
    focal_px: float | None = None,
    key_frames: int = 6,
    fps: float | None = None,
    obj_sequence: bool = False,
    pictures: bool = True,
) -> int:
    """Track the face of a video: one person's head, and how it moves. The same command goes on where it was stopped.

    OUT receives track.npz and track.json (pose, expression and light of each frame; jitter, leakage), head.glb
    (skeleton, 52 ARKit morph targets, colour and normal maps, the animation), blendshapes.csv (Live Link Face),
    parameters.npz, cameras/ in six conventions, strip.png and overlay.mp4 (frames beside their fits), and track/, what
    is done so far.

    Args:
        video: Any video file that FFmpeg reads.
        out: Folder for the results; made if missing. It holds one video's track: other settings need another folder.
        model: A morphable model in facefit's own format. Default: the CC0 head that ships with facefit.
        landmarks: Where landmarks come from: "dlib", or "network" (hundreds of points at any pose, each with its own
            uncertainty).
        landmark_weights: For the network, weights that `facefit train-landmarks` wrote. Default: those that ship with
            facefit.
        focal_px: Focal length in pixels of the video, where known.
        key_frames: At most so many frames make the identity and the colours.
        fps: Frames per second that the timecodes of blendshapes.csv count in. Default: the video's.
        obj_sequence: Write every frame as an OBJ file too, into OUT/obj.
        pictures: Draw strip.png and overlay.mp4, half a second for each frame.
    """
    began = time.perf_counter()
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    say = functools.partial(console.print, markup=False)
    from fitting.output import check_writable, output_folder

    check_writable(out)
    for name, value, unit in (("--focal-px", focal_px, "pixels"), ("--fps", fps, "frames per second, at least 1")):
        if value is not None and not (math.isfinite(value) and value >= (1 if name == "--fps" else 1e-9)):
            raise UsageError(f"{name}: got {value:g}, expected a positive number of {unit}.")
    check_source(landmarks, landmark_weights, VIDEO_SOURCES)
    from fitting.clip.frames import describe_video

    clip = describe_video(video)
    try:
        import morphable
        from fitting.clip.files import write_track
        from fitting.clip.tracking import TrackSettings
        from fitting.clip.tracking import track as track_video

        settings = TrackSettings(key_frames=key_frames)
        with stage(console, "loading the model"):
            head = morphable.load(model)
            provider = landmark_provider(landmarks, landmark_weights, lambda: head)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
            tasks: dict[str, Any] = {}

            def progress(phase: str, done: int, of: int | None) -> None:
                if phase not in tasks:
                    tasks[phase] = bars.add_task(phase, total=of)
                bars.update(tasks[phase], completed=done)

            done = track_video(
                video,
                out,
                model=head,
                landmarks=provider,
                focal_px=focal_px,
                settings=settings,
                pictures=pictures,
                say=say,
                progress=progress,
            )
        rate = max(clip.rate, 1.0) if fps is None else fps
        with stage(console, f"writing {out}"), output_folder(out) as folder:
            notes = write_track(folder, video, done.track, head, done.key_frames, fps=rate, obj_sequence=obj_sequence)
        for note in notes:
            say(f"  {note}")
    except KeyboardInterrupt:
        # Unlike what main() says of the other commands.
        say(f"facefit: interrupted; what is done is kept in {out / 'track'}, and the same command goes on from there")
        return INTERRUPTED
    see = [out / name for name in (("strip.png", "head.glb") if pictures else ("track.npz", "head.glb"))]
    console.print(f"[green]tracked[/green]; see {see[0]} and {see[1]}")
    console.print(f"{time.perf_counter() - began:.1f} s")
    return SUCCESS


@app.command(name="synthesize")
def synthesize(
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    model: Path | None = None,
    count: int = 1,
    seed: int = 0,
    size: int = 512,
    yaw: float = 40.0,
    expression: float = 1.0,
    off_centre: float = 0.0,
    occluders: bool = False,
    clean: bool = False,
    one_person: bool = False,
    detail: bool = False,
    portraits: bool = False,
    backgrounds: Path | None = None,
    turn: Path | None = None,
    frames: int = 60,
) -> int:
    """Make photos whose truth is known: random people, cameras, lights and backgrounds, rendered from a model.

    With --portraits they are what the landmark network is trained on: crops of 128 pixels, heads with hair, beards,
    hats, glasses and clothes at any yaw, under any light, behind hands, through poor cameras. OUT then receives
    portrait_0000.png, its landmarks, the truth in portraits.npz, and portraits.png. With --turn PHOTO it receives a
    clip of that photo's turning face, turned.mp4, and its truth, turned.npz.

    OUT receives photo_0000.png, its landmarks photo_0000.landmarks.npy (for fit --landmarks), its truth
    photo_0000.npz (parameters, camera, vertices, masks; see docs/synthesis.md), ..., and all of them in synthesize.png.

    Args:
        out: Folder for the photos; made if missing, written only when everything succeeded.
        model: A model file. Default: the head that ships with facefit.
        count: How many photos.
        seed: Of the first photo; the next ones have the next seeds. The same seed gives the same photo.
        size: Side of the square photos in pixels.
        yaw: Heads are turned by up to so many degrees to either side.
        expression: Factor on the expressions: 1 as drawn, 0 for neutral faces.
        off_centre: How far, in sizes of the photo, the camera's axis may lie from its middle, as after a crop.
        occluders: Cover a part of each face: a hand, sunglasses, a scarf or a patch.
        clean: A perfect camera: no noise, no blur, no JPEG compression.
        one_person: All photos show the person of the first one, through one lens: a set for `facefit rig`.
        detail: Skin with wrinkles, pores and spots, gloss, and lamps that cast shadows.
        portraits: Crops for the landmark network; of the settings above --count, --seed and --model matter.
        backgrounds: A folder of pictures, parts of which stand behind half of the portraits.
        turn: A photo to be fitted and moved, in place of random people: by --yaw, --size, --seed and --model.
        frames: Of the clip that --turn makes.
    """
    if turn is not None:
        return _turn_photo(turn, out, model, size, yaw, seed, frames)
    import dataclasses

    from PIL import Image

    import morphable
    from fitting.compilation import enable_cache
    from fitting.output import check_writable, output_folder
    from fitting.synthesis import SynthesisSettings, contact_sheet, save_photo
    from fitting.synthesis import synthesize as make

    if count < 1:
        raise UsageError(f"--count: got {count}, expected at least 1.")
    if not 0 <= seed <= 2**32 - count:
        raise UsageError(f"--seed: got {seed}, expected 0 to {2**32 - count}.")
    settings = SynthesisSettings.clean() if clean else SynthesisSettings()
    settings = dataclasses.replace(
        settings, size=size, yaw=yaw, expression=expression, off_centre=off_centre, occluded=float(occluders)
    )
    settings = dataclasses.replace(settings, detail=float(detail))
    if backgrounds is not None and not portraits:
        raise UsageError("--backgrounds: got it without --portraits, expected both.")
    check_writable(out)
    enable_cache()
    m = morphable.load(model)
    if portraits:
        from fitting.portraits.backdrop import Pictures
        from fitting.portraits.files import write_portraits

        try:
            pictures = None if backgrounds is None else Pictures.of(backgrounds)
        except ValueError as error:
            raise UsageError(f"--backgrounds: {error}") from error
        with output_folder(out) as folder:
            write_portraits(folder, m, seed, count, pictures)
        print(f"{count} portrait(s) in {out}; see {out / 'portraits.png'}")
        return SUCCESS
    with output_folder(out) as folder:
        shown, person = [], None
        for number in range(count):
            synthetic = make(m, seed + number, settings, person)
            person = synthetic.scene if one_person and person is None else person
            save_photo(folder, f"photo_{number:04d}", synthetic)
            if number < 60:  # a sheet of more would not be looked at
                shown.append(synthetic)
        Image.fromarray(contact_sheet(shown)).save(folder / "synthesize.png")
    print(f"{count} photo(s) in {out}; see {out / 'synthesize.png'}")
    return SUCCESS


def _turn_photo(photo: Path, out: Path, model: Path | None, size: int, yaw: float, seed: int, frames: int) -> int:
    """A clip of a photo whose face turns, and its truth."""
    import morphable
    from fitting.clip.frames import ClipWriter
    from fitting.clip.turned import ClipSettings, save_turned_clip
    from fitting.detection import detect_faces
    from fitting.face_profiling import profile_mesh
    from fitting.fit import Fitter
    from fitting.observation import read_photo
    from fitting.output import check_writable, output_folder

    settings = ClipSettings(yaw=yaw)
    check_writable(out)
    picture = read_photo(photo)
    face = detect_faces(picture)[0]
    profile = profile_mesh(Fitter(morphable.load(model)).fit(picture, face), picture, size)
    with output_folder(out) as folder, ClipWriter(folder / "turned.mp4", settings.rate) as writer:
        save_turned_clip(folder / "turned.npz", writer.write, profile, seed, frames, settings)
    print(f"{frames} frame(s) in {out / 'turned.mp4'}, their truth in {out / 'turned.npz'}")
    return SUCCESS


app.command(name="train-detail")(train_detail)
app.command(name="train-landmarks")(train_landmarks)
app.command(model_app, name="model", help="Morphable models: info, validate, convert, transfer, compare, ...")


@evaluate_app.command(name="mesh")
def evaluate_mesh(
    pred: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PRED...")],
    /,
    scan: tuple[Path, ...],
    landmarks: tuple[Path, ...] = (),
    scan_landmarks: tuple[Path, ...] = (),
    expression: int = 0,
    mask: str | None = None,
    crop: Literal["now", "stirling", "none"] | None = None,
    align: Literal["icp", "landmarks"] = "icp",
    regions: str | None = None,
    unit: Literal["mm", "cm", "m"] = "mm",
    model: Path | None = None,
    every_triangle: bool = False,
    json: Path | None = None,
) -> int:
    """Distance of scans to fitted heads (NoW, Stirling, REALY's regions), with the mean face beside it.

    PRED is a folder that `facefit fit` wrote, a folder of such folders, or an .npz, .obj or .ply mesh.

    Args:
        pred: What to score: one or more, or a folder of them.
        scan: Ground truth in mm (.npz, .obj, .ply): as many as PRED, or a folder in which each subject finds its own.
        landmarks: 68 or 7 3D points (.npy, .json, text) on each PRED that is a plain mesh. Default: the .npy beside it.
        scan_landmarks: The same for each scan that is a plain mesh.
        expression: Score against the scan's expression mesh of this number, from 1; 0 is neutral.
        mask: Which of the scan's masks says what counts. Default: face_mask where there is one.
        crop: Of it, count what is within NoW's or Stirling's radius. Default: none; now, for a scan without a mask.
        align: By landmarks and ICP as NoW does, or by landmarks alone as FG2018 does.
        regions: Score nose, mouth, forehead and cheek too: "landmarks" draws them, or an .npz (or folder) of masks.
        unit: Of plain meshes; a fit is in mm.
        model: The model of the fits and of the mean face. Default: the head that ships with facefit.
        every_triangle: Count the mouth's inside, sockets, eyes and teeth of a fit too, not the visible skin alone.
        json: Write the figures as one flat object.
    """
    import morphable
    from fitting.evaluation import NOW_CROP, STIRLING_CROP, face_regions, mean_face
    from fitting.ground_truth import paired, read_prediction, read_regions, read_scan
    from fitting.score_report import mesh_report

    pairs = paired(pred, scan)
    for name, files in (("--landmarks", landmarks), ("--scan-landmarks", scan_landmarks)):
        if files and len(files) != len(pairs):
            raise UsageError(f"{name}: got {len(files)} file(s), expected one for each of the {len(pairs)} pair(s).")
    factor = {None: None, "now": NOW_CROP, "stirling": STIRLING_CROP, "none": math.inf}[crop]
    head = morphable.load(model)
    scored = []
    for index, (predicted, truth) in enumerate(pairs):
        marks = landmarks[index] if landmarks else None
        mesh = read_prediction(predicted, head, marks, expression > 0, every_triangle, unit)
        marks = scan_landmarks[index] if scan_landmarks else None
        scored.append((read_scan(truth, marks, expression, mask, factor), mesh))
    chosen = None
    if regions is not None:
        chosen = face_regions if regions == "landmarks" else functools.partial(read_regions, Path(regions))
    return _print_report(mesh_report(scored, mean_face(head, every_triangle), align == "icp", chosen), json)


@evaluate_app.command(name="landmarks")
def evaluate_landmarks(
    pred: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PRED")],
    /,
    truth: Path,
    key: str = "pts68_2d",
    jaw: Literal["mandible", "outline"] = "mandible",
    normaliser: Literal["bbox", "interocular", "interpupil"] = "bbox",
    model: Path | None = None,
    json: Path | None = None,
) -> int:
    """Landmark error by yaw (AFLW2000-3D), in both averages, with the mean face beside it.

    Args:
        pred: An .npz with a (68, 2) array for each image, by its name without extension; or a folder of fits so named.
        truth: An .npz with names, yaw_deg and the true points.
        key: The true points' name in it.
        jaw: Where the truth has the jaw: on the mandible as AFLW2000-3D, or on the face's outline as 2D sets.
        normaliser: What errors are divided by: sqrt(width x height) of the true box, or an eye distance.
        model: The model of the mean face. Default: the head that ships with facefit.
        json: Write the figures as one flat object.
    """
    import numpy as np

    import morphable
    from fitting.ground_truth import read_landmark_predictions, read_landmark_truth
    from fitting.score_report import landmark_report

    names, points, yaw = read_landmark_truth(truth, key)
    predictions = read_landmark_predictions(pred, jaw)
    head = morphable.load(model)
    mean = np.asarray((head.landmarks3d if jaw == "mandible" else head.landmarks)(head.mean), float)
    return _print_report(landmark_report(predictions, names, points, yaw, mean, normaliser), json)


@evaluate_app.command(name="truth")
def evaluate_truth(
    pred: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FIT...")],
    /,
    truth: tuple[Path, ...],
    model: Path | None = None,
    json: Path | None = None,
) -> int:
    """Error of fits of synthetic faces, vertex by vertex, with the mean face beside it.

    Args:
        pred: Folders that `facefit fit` wrote, or a folder of such folders.
        truth: What `facefit synthesize` wrote: an .npz for each fit, or their folder.
        model: The model of both. Default: the head that ships with facefit.
        json: Write the figures as one flat object.
    """
    import morphable
    from fitting.evaluation import counted_vertices, mean_face
    from fitting.ground_truth import paired, read_fit, read_truth, subject_name
    from fitting.score_report import correspondence_report

    pairs = paired(pred, truth, "truth", ("truth",))
    head = morphable.load(model)
    read = [(subject_name(a), read_fit(a, head), read_truth(b, head)) for a, b in pairs]
    return _print_report(correspondence_report(read, counted_vertices(head), mean_face(head).vertices), json)


@evaluate_app.command(name="image")
def evaluate_image(
    pred: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FIT")],
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")],
    /,
    region: str = "face",
    mask: Path | None = None,
    model: Path | None = None,
    json: Path | None = None,
) -> int:
    """PSNR and SSIM of a fit's rendering under the mask of the rendered pixels, with the mean face beside it.

    Args:
        pred: Folder that `facefit fit` wrote.
        photo: The photo that was fitted.
        region: A mask of the model that says which pixels count, or skin, or all.
        mask: Image of the photo's size, as for `facefit fit`: black over hair, hands and glasses, which do not count.
        model: The fit's model. Default: the head that ships with facefit.
        json: Write the figures as one flat object.
    """
    import morphable
    from fitting.compilation import enable_cache
    from fitting.ground_truth import read_fit
    from fitting.observation import read_mask, read_photo
    from fitting.score_report import image_report

    picture = read_photo(photo)
    usable = None if mask is None else read_mask(mask, picture)
    enable_cache()
    head = morphable.load(model)
    rendered = pred / "render.png" if pred.is_dir() else pred.parent / "render.png"
    textured = read_photo(rendered) if rendered.exists() else None
    return _print_report(image_report(read_fit(pred, head), picture, head, region, textured, usable), json)


def _print_report(report, json: Path | None) -> int:
    from fitting.score_report import write_json

    print(report.text)
    if json is not None:
        write_json(json, report.numbers)
    return SUCCESS


app.command(evaluate_app, name="evaluate", help="Score results: mesh, landmarks, truth, image.")


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `facefit` command."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("facefit").setLevel(logging.INFO)
    try:
        code = app.cli(prog="facefit", description="Fit riggable 3D head models to photos.", args=argv)
    except ValueError as error:  # our own errors say what, got, expected, remedy
        ours = type(error).__module__.startswith(("fitting", "morphable", "renderer"))
        if not (ours or isinstance(error, UsageError)):  # whose module is __main__ under python -m
            raise
        print(f"facefit: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("facefit: interrupted; unfinished results were removed", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(code or SUCCESS)


def _check_detail(detail: str, refine: bool, weights: Path | None) -> None:
    if refine and detail != "network":
        raise UsageError(f"--refine: got it with --detail {detail}, expected it with --detail network.")
    if weights is not None and detail != "network":
        raise UsageError(f"--detail-weights: got them with --detail {detail}, expected them with --detail network.")
    if weights is not None and not weights.is_file():
        raise UsageError(f"--detail-weights: got {weights}, expected a file that 'facefit train-detail' wrote.")


def _detail_network(detail: str, weights: Path | None, model):
    if detail != "network":
        return None
    from fitting.detail_checkpoint import load_network

    return load_network(weights, model)


def _parse_box(box: str | None) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    remedy = "expected --box x0,y0,x1,y1 in photo pixels with x0 < x1 and y0 < y1, such as --box 120,80,340,360."
    try:
        x0, y0, x1, y1 = (float(v) for v in box.split(","))
    except ValueError as error:
        raise UsageError(f"--box: got {box!r}, {remedy}") from error
    if not (x0 < x1 and y0 < y1):
        raise UsageError(f"--box: got {box!r}, {remedy}")
    return x0, y0, x1, y1


class _Progress:
    """A line for each stage: its steps, and every term's energy before and after."""

    def __init__(self, console):
        self.console = console

    def __call__(self, stage, number, count, record):
        history = record["history"]
        if not history:
            self.console.print(f"stage {number + 1}/{count} {stage.name}: the energy is not finite")
            return
        changes = [
            f"{term} {history[0][term]:.1f}->{energy:.1f}"
            for term, energy in record["energies"].items()
            if energy > 0.05
        ]
        self.console.print(
            f"stage {number + 1}/{count} {stage.name}: {record['steps']} of {stage.steps} steps, "
            f"energy {sum(history[0].values()):.1f}->{sum(record['energies'].values()):.1f} "
            f"[dim]({', '.join(changes)})[/dim]"
        )


if __name__ == "__main__":
    main()
