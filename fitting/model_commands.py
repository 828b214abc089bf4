"""`facefit model ...`: look at morphable models, check, convert, compare and build them."""

import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fitting.command import SUCCESS, UNSOUND, UsageError, stage

model_app = tyro.extras.SubcommandApp()
Model = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Out = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@model_app.command(name="info")
def info(model: Annotated[Path | None, tyro.conf.Positional] = None, /) -> int:
    """Say what a model holds, where it comes from and what its licence allows.

    Args:
        model: A model file in any of the formats of docs/model_formats.md. Default: the head that ships with facefit.
    """
    import numpy as np

    import morphable

    m = morphable.load(model)
    p = m.provenance
    low, high = np.asarray(m.mean).min(0), np.asarray(m.mean).max(0)
    print(f"{p.name}\nlicence: {p.licence} ({p.licence_class})\nsha256: {p.sha256}")
    print(f"format: {p.format}, its unit: {p.unit_mm:g} mm, moved by {', '.join(f'{x:.2f}' for x in p.origin_mm)} mm")
    print(f"vertices: {len(m.mean)}, triangles: {len(m.triangles)}, size of the mean: {(high - low).round(0)} mm")
    print(f"identity: {m.shape.rank} components, {float((np.asarray(m.shape.sigma) ** 2).sum() ** 0.5):.2f} mm rms")
    print(f"albedo: {m.albedo.rank} components\nresidual: {m.residual.shape[1]} modes x 3 axes (off by default)")
    kind = "units" if m.expression_kind == "units" else "components"
    changing = ", different for every identity" if m.interaction is not None else ""
    print(f"expression: {len(m.expression_names)} {kind}{changing}: {', '.join(m.expression_names)}")
    for name in m.part_names:
        part = m.part(name)
        print(f"part {name}: {len(part.vertices)} vertices, {len(part.triangles)} triangles")
    print(f"masks: {', '.join(m.masks)}")
    print("joints: " + (", ".join(m.rig.names) if m.rig else "none"))
    print(f"made by facefit: {', '.join(p.made) or 'nothing'}")
    for source in p.sources:
        print(f"source: {source}")
    return SUCCESS


@model_app.command(name="sample")
def sample(
    out: Out,
    model: Path | None = None,
    count: int = 1,
    seed: int = 0,
    scale: float = 1.0,
) -> int:
    """Draw random people from a model and write each as a riggable GLB and a picture of them all.

    Args:
        out: Folder for sample_0.glb, ..., samples.png.
        model: A model file. Default: the head that ships with facefit.
        count: How many people.
        seed: Of the random numbers; the same seed gives the same people.
        scale: 1 draws from the population, 0 gives the mean, 2 caricatures.
    """
    from fitting.export import write_head_glb
    from fitting.output import check_writable, output_folder
    from fitting.pictures import portraits
    from fitting.texture_map import model_texture

    if count < 1:
        raise UsageError(f"--count: got {count}, expected at least 1.")
    if not math.isfinite(scale):
        raise UsageError(f"--scale: got {scale:g}, expected a finite number, such as 1 for the population.")
    check_writable(out)
    import jax
    import numpy as np

    import morphable

    m = morphable.load(model)
    keys = jax.random.split(jax.random.key(seed), 2)
    identities = scale * np.asarray(jax.random.normal(keys[0], (count, m.shape.rank)))
    albedos = scale * np.asarray(jax.random.normal(keys[1], (count, m.albedo.rank)))
    with output_folder(out) as folder:
        textures = []
        for k, (identity, albedo) in enumerate(zip(identities, albedos, strict=True)):
            textures.append(model_texture(m, albedo))
            write_head_glb(folder / f"sample_{k}.glb", m, identity, texture=textures[-1])
        portraits(m, identities, textures, folder / "samples.png")
        np.savez(folder / "samples.npz", identity=identities, albedo=albedos)
    print(f"{count} sample(s) in {out}")
    return SUCCESS


@model_app.command(name="validate")
def validate_model(model: Model, /) -> int:
    """List everything that is inconsistent in a model; exit code 1 where one of them is an error.

    Args:
        model: A model file, or a folder of OBJ files.
    """
    import morphable
    from morphable.validation import validate

    findings = validate(morphable.load(model))
    for finding in findings:
        print(f"{finding.level}: {finding.where}: {finding.what}")
    errors = sum(finding.level == "error" for finding in findings)
    print(f"{errors} error(s), {len(findings) - errors} warning(s)")
    return UNSOUND if errors else SUCCESS


@model_app.command(name="convert")
def convert(model: Model, /, out: Out, landmarks: Path | None = None, arkit: bool = False) -> int:
    """Write a model in facefit's own format, with all that its file lacks; it then loads at once.

    The licence of the model goes with it: a file that you may not share does not become one that you may.

    Args:
        model: A model file in any known format, or a folder of OBJ files.
        out: The .npz to write.
        landmarks: Places of the 68 landmarks, as 'facefit model landmarks' writes them and you may have edited.
        arkit: Replace the model's expressions by ARKit's units, carried over from the head that ships with facefit.
    """
    from rich.console import Console

    _npz(out)
    import morphable
    from morphable.io.embedding import read_embedding, with_landmarks

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with stage(console, "reading, and making what the file lacks"):
        read = morphable.load(model, arkit)
        if landmarks is not None:
            read = with_landmarks(read, read_embedding(landmarks, read))
    morphable.save(out, read)
    p = read.provenance
    print(f"{out}: {p.name}, {p.licence} ({p.licence_class}); made: {', '.join(p.made) or 'nothing'}")
    return SUCCESS


@model_app.command(name="landmarks")
def landmarks(model: Model, /, out: Out, picture: bool = True) -> int:
    """Find the 68 landmarks on a model of any topology: render its mean from many sides, detect, agree.

    OUT is a text file to look at and to edit; 'facefit model convert MODEL --landmarks OUT' uses it.

    Args:
        model: A model file, or a folder of OBJ files.
        out: The .json to write.
        picture: Also write OUT.png, the landmarks on the mean face.
    """
    import morphable
    from fitting.mesh_landmarks import find_landmarks, landmark_picture
    from morphable.io.embedding import with_landmarks, write_embedding

    if out.suffix.lower() != ".json":
        raise UsageError(f"--out: got {out}, expected a .json file.")
    read = morphable.load(model)
    found = find_landmarks(read)
    placed = with_landmarks(read, found.points)
    write_embedding(out, placed, found.spread_mm)
    if picture:
        landmark_picture(placed, out.with_suffix(".png"))
    import numpy as np

    print(
        f"{out}: {found.views} views agree to {np.median(found.spread_mm):.1f} mm (median; "
        f"{found.spread_mm.max():.1f} at point {int(found.spread_mm.argmax())})"
    )
    return SUCCESS


@model_app.command(name="transfer")
def transfer_fit(
    fit: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FIT")],
    /,
    to: Path,
    out: Out,
    model: Path | None = None,
) -> int:
    """Express a fit in another model's topology and coefficients, and say how far off they are.

    OUT receives transfer.npz (vertices and neutral_vertices on the fitted surface, the other model's identity and
    expression, cameras for its head space), mesh.obj, neutral.obj and transfer.json (errors in mm).

    Args:
        fit: A folder that 'facefit fit' wrote, or its fit.npz.
        to: The model to express it in.
        out: Folder for the results.
        model: The model of the fit. Default: the head that ships with facefit.
    """
    from fitting.output import check_writable

    check_writable(out)
    from fitting.transferred_fit import write_transfer

    print(write_transfer(fit, model, to, out))
    return SUCCESS


@model_app.command(name="compare")
def compare_models(
    first: Model,
    second: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")] = None,
    /,
    people: int = 10,
) -> int:
    """Bring two models into correspondence and say how their meshes, means and people differ.

    Args:
        first: A model file, or a folder of OBJ files.
        second: Another one. Default: the head that ships with facefit.
        people: Random people of the first that the second is asked to be.
    """
    import morphable
    from morphable.comparison import compare

    if people < 1:
        raise UsageError(f"--people: got {people}, expected at least 1.")
    print(compare(morphable.load(first), morphable.load(second), people))
    return SUCCESS


@model_app.command(name="build")
def build(
    scans: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="SCANS")],
    /,
    out: Out,
    template: Path | None = None,
    unit: Literal["mm", "cm", "m"] = "mm",
    prior: Literal["model", "kernel"] = "model",
    name: str = "built",
    licence: str = "unknown",
    licence_class: Literal["free", "attribution", "non-commercial", "unknown"] = "unknown",
    folder: Path | None = None,
    rank: int | None = None,
    expressions: Literal["units", "components"] = "units",
    detect: bool = True,
) -> int:
    """Build a morphable model from scans of people.

    SCANS are OBJ, PLY, STL or GLB files, or folders of them with a scans.csv (columns file, subject, expression, and
    any labels to learn attributes from). Points beside a scan, NAME.landmarks.npy or .json (68, 3), are used;
    for scans without, the landmarks are looked for in pictures of the scan, or the registration starts without.
    The report: compactness, generalisation and specificity.

    Args:
        scans: Files or folders.
        out: The .npz to write.
        template: The model whose mesh the new one has. Default: the head that ships with facefit.
        unit: Of the scans' coordinates.
        prior: How scans are registered: by the template's own modes and smoothness, or by smoothness alone.
        name: Of the new model.
        licence: Of the new model; the scans' and the template's licences bind it.
        licence_class: What that licence allows.
        folder: Where registered scans are kept, for more of them than memory holds.
        rank: The most identity components to keep.
        expressions: Whether expression scans become named units or principal components.
        detect: Look for landmarks in pictures of scans that come without.
    """
    from rich.console import Console

    _npz(out)
    if not scans:
        raise UsageError("SCANS: got none, expected mesh files or folders of them.")
    if rank is not None and rank < 1:
        raise UsageError(f"--rank: got {rank}, expected at least 1.")
    import morphable
    from fitting.mesh_landmarks import with_detected_landmarks
    from morphable.building import BuildSettings, build_model, read_scans

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with stage(console, "reading the scans"):
        found = read_scans(scans, unit)
        console.print(f"  {len(found)} scans")
    if detect:
        with stage(console, "looking for landmarks on scans without"):
            found = with_detected_landmarks(found, console.print)
    settings = BuildSettings(
        name=name, licence=licence, licence_class=licence_class, prior=prior, rank=rank, expressions=expressions
    )
    with stage(console, "registering and building"):
        built = build_model(
            found,
            morphable.load(template),
            settings,
            folder,
            lambda number, scan: console.print(f"  {number + 1}/{len(found)} {scan}"),
        )
    morphable.save(out, built.model)
    print(built)
    return SUCCESS


def _npz(out: Path) -> None:
    if out.suffix.lower() != ".npz":
        raise UsageError(f"--out: got {out}, expected a file that ends in .npz.")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out: the folder {out.absolute().parent} does not exist. Make it first.")
