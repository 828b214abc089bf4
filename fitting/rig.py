"""Photos of one person in, a rig on disk: reading a set, fitting it together, writing what a user opens.

Photos are read when they are needed and let go again, so a set of hundreds takes no more memory than its crops.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jaxlie
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fitting.detail_files import write_detail
from fitting.detection import Face, LandmarkProvider, NoFaceError, detect_faces
from fitting.export import fit_arrays, fit_record, part_triangles, write_head_glb, write_obj
from fitting.fit import Fit
from fitting.mesoscopic import skin_normal_map
from fitting.metric_scale import MetricScale, metric_scale
from fitting.multi_image import JointFit, SetError
from fitting.observation import Photo, read_landmarks, read_photo
from fitting.personal_rig import PersonalRig
from fitting.pictures import overlay, turntable
from fitting.sequence import parameters, write_cameras
from fitting.texture_map import person_texture
from morphable.detail import Detail

_SHEET_ROWS, _SHEET_WIDTH = 24, 1280  # of the contact sheet: more would not be looked at


@dataclasses.dataclass(frozen=True)
class PhotoSet:
    """Photos of one person by name, and the face of each; None where none was found."""

    paths: tuple[Path, ...]
    faces: tuple[Face | None, ...]
    notes: tuple[str, ...]  # why a photo has no face, else ""

    @property
    def names(self) -> tuple[str, ...]:
        """File names, with as many of their folders as tell them apart."""
        depth = 1
        while True:
            names = tuple("/".join(path.parts[-depth:]) for path in self.paths)
            if len(set(names)) == len(set(self.paths)) or depth > max(len(p.parts) for p in self.paths):
                return names
            depth += 1

    @property
    def sources(self) -> tuple[Callable[[], Photo], ...]:
        """How to read each photo."""
        return tuple(functools.partial(read_photo, path) for path in self.paths)


def read_set(
    paths: Sequence[Path],
    landmarks: Sequence[Path] | None = None,
    tell: Callable[[str], None] | None = None,
    provider: LandmarkProvider | None = None,
) -> PhotoSet:
    """The photos of a set with their faces: given landmarks, one file for each photo, or a provider's (dlib's).

    Raises PhotoError for a file that is no photo, SetError where landmarks do not match photos in number.
    """
    if not paths:
        raise SetError("rig: got no photos, expected one or more. Name them, or a folder of them.")
    if landmarks is not None and len(landmarks) != len(paths):
        raise SetError(
            f"--landmarks: got {len(landmarks)} files for {len(paths)} photos, expected one for each, in their order."
        )
    faces: list[Face | None] = []
    notes: list[str] = []
    for k, path in enumerate(paths):
        photo = read_photo(path)
        try:
            if landmarks is not None:
                faces.append(Face.from_landmarks(read_landmarks(landmarks[k], photo), photo))
            else:
                faces.append(detect_faces(photo, provider=provider)[0])
            notes.append("")
        except NoFaceError as error:
            faces.append(None)
            notes.append(str(error))
        if tell is not None:
            found = faces[-1]
            tell(f"  {path.name}: " + ("no face found" if found is None else found.source))
    return PhotoSet(tuple(paths), tuple(faces), tuple(notes))


def photos_of(paths: Sequence[Path]) -> list[Path]:
    """The photos meant by some paths: files as they are, folders by their pictures, sorted by name."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
            if not inside:
                raise SetError(f"{path}: got a folder without pictures, expected some ({', '.join(_SUFFIXES)}).")
            found += inside
        else:
            found.append(path)
    return found


_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


def write_rig(
    folder: Path,
    joint: JointFit,
    photos: PhotoSet,
    rig: PersonalRig | None = None,
    pupils_mm: float | None = None,
    settings: Mapping[str, Any] | None = None,
    texture_size: int = 1024,
    detail: Detail | None = None,
) -> MetricScale:
    """Write everything of a rig into an existing folder; the metric scale that was found.

    head.glb, neutral.obj, texture.png, normal.png, rig.npz (as fit.npz, one row for each photo), rig.json (verdicts,
    energies, scale), parameters.npz, cameras/, sheet.png (photos and overlays) and turntable.png. With a `rig` the
    files hold the person's own units, and personal.npz what was corrected. A stated `pupils_mm` scales everything.
    With `detail` also the files of `fitting.detail_files`, whose maps head.glb then has.
    """
    names, sources = photos.names, photos.sources
    used = [sources[i] for i in joint.indices]
    scale = metric_scale(joint.fits, [s() for s in used[:_SHEET_ROWS]], joint.identity_covariance, pupils_mm)
    fits = joint.fits if rig is None else tuple(rig.applied_to(f) for f in joint.fits)
    if pupils_mm is not None:
        fits = tuple(scaled(f, scale.factor) for f in fits)
    if rig is not None:
        rig.save(folder / "personal.npz")
    first = fits[0]
    texture = person_texture(fits, used, texture_size, detail=detail)
    pixel_mm = float(np.median([f.camera.pose.translation()[2] / f.camera.focal[0] for f in fits]))
    if detail is None:
        relief, wrinkles = skin_normal_map(first.model, first.neutral_vertices, texture, pixel_mm), ()
    else:
        relief, wrinkles = write_detail(folder, first.person, first.identity, detail, texture, pixel_mm=pixel_mm)
    for name, picture in (
        ("texture.png", texture),
        ("normal.png", relief),
        ("turntable.png", turntable(first, texture)),
    ):
        Image.fromarray(picture).save(folder / name)
    frontal = max(fits, key=lambda f: -float(np.asarray(f.camera.rotation)[2, 2]))
    write_head_glb(
        folder / "head.glb",
        first.person,
        first.identity,
        None,
        texture,
        frontal.camera,
        normal_map=relief,
        wrinkle_maps=wrinkles,
    )
    source = first.model.provenance
    write_obj(
        folder / "neutral.obj",
        first.neutral_vertices,
        np.asarray(first.model.triangles),
        np.asarray(first.model.uv),
        "texture.png",
        part_triangles(first.model),
        f"head model {source.name}, licence {source.licence} ({source.licence_class})",
    )
    arrays = fit_arrays(list(fits))
    np.savez_compressed(
        folder / "rig.npz", allow_pickle=False, photos=np.array([names[i] for i in joint.indices]), **arrays
    )
    expression = np.stack([f.expression for f in fits])
    frames = parameters(
        first.model,
        np.arange(len(fits), dtype=float),
        first.identity,
        expression,
        [f.camera for f in fits],
        first.albedo,
        np.stack([f.light for f in fits]),
    )
    np.savez_compressed(folder / "parameters.npz", allow_pickle=False, **frames)
    (folder / "cameras").mkdir()
    write_cameras(folder / "cameras", {names[i]: f.camera for i, f in zip(joint.indices, fits, strict=True)})
    Image.fromarray(contact_sheet(fits, used, texture)).save(folder / "sheet.png")
    record = fit_record(first, settings)
    record |= {
        "format": "facefit-rig",
        "photos": [dataclasses.asdict(v) for v in joint.verdicts],
        "stages": joint.records,
        "seconds": joint.seconds,
        "metric_scale": dataclasses.asdict(scale),
        "focal_px": [float(f.camera.focal[0]) for f in fits],
    }
    for key in ("photo", "detection", "reason", "energies", "timings"):
        record.pop(key)
    (folder / "rig.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return scale


def scaled(fit: Fit, factor: float) -> Fit:
    """The same fit in the same photo with all lengths times a factor: a larger head, farther away."""
    m = fit.model
    lengths = lambda m: (m.shape.mean, m.shape.modes, m.expression, m.residual, m.interaction)  # noqa: E731
    times = lambda tree: jax.tree.map(lambda x: factor * x, tree)  # noqa: E731
    model = eqx.tree_at(lengths, m, times(lengths(m)), is_leaf=lambda leaf: leaf is None)
    if m.rig is not None:
        joints = lambda m: (m.rig.joints, m.rig.joints_expression, m.rig.correctives)  # noqa: E731
        model = eqx.tree_at(joints, model, times(joints(m)), is_leaf=lambda leaf: leaf is None)
    pose = fit.camera.pose
    moved = jaxlie.SE3.from_rotation_and_translation(pose.rotation(), factor * pose.translation())
    camera = dataclasses.replace(fit.camera, pose=moved)
    return dataclasses.replace(fit, model=model, camera=camera, problem=None, parameters=None)


def contact_sheet(
    fits: Sequence[Fit], photos: Sequence[Callable[[], Photo]], texture: UInt8[np.ndarray, "size size 3"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Photo, landmarks, fit and shape of each photo below each other; of a large set an even choice."""
    chosen = np.unique(np.linspace(0, len(fits) - 1, min(len(fits), _SHEET_ROWS)).round().astype(int))
    rows = []
    for k in chosen:
        row = Image.fromarray(overlay(fits[k], photos[k](), texture))
        rows.append(np.asarray(row.resize((_SHEET_WIDTH, round(row.height * _SHEET_WIDTH / row.width)))))
    return np.concatenate(rows)
