"""Where the faces of a photo are and where their 68 iBUG landmarks lie, from dlib or any other provider.

dlib's two face detectors only propose a region. What decides the quality of dlib's landmarks is the box that the
predictor gets: it was trained on upright boxes of the HOG detector. So every proposal is turned upright, brought
to one size, and predicted from several slightly moved boxes. Measured, see docs/detection.md: this makes usable
landmarks of the CNN's boxes and of tilted heads, and takes some noise from the easy ones.
"""

import functools
import importlib
import importlib.util
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fitting.observation import INNER_LANDMARKS, Photo
from fitting.sighting import Sighting

log = logging.getLogger("facefit")

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in photo pixels


class NoFaceError(ValueError):
    """No face was found, or none that can be fitted: what, got, expected, remedy."""


class DetectorError(ValueError):
    """The detector itself cannot run: its library or trained files are missing."""


@dataclass(frozen=True)
class LandmarkNoise:
    """Standard deviation of a source's landmarks, in mm at the face."""

    inner_mm: float  # brows, nose, eyes, mouth
    jaw_mm: float  # the 17 points of the jaw line, across it
    annotated: bool = False  # placed by an unknown convention: see fitting.landmark_conventions
    alike: bool = False  # wrong in much the same way in every photo of a head, and more so where it is turned


# dlib: measured on rendered heads with known landmarks, definition differences included; see docs/detection.md.
# File: two published conventions differ by 2.3 mm across the jaw line, which adds to the 2 mm of whoever marks points.
LANDMARK_NOISE = {
    "dlib": LandmarkNoise(inner_mm=3.5, jaw_mm=2.5, alike=True),
    "file": LandmarkNoise(2.0, 3.0, annotated=True),
    # Its points lie beside iBUG's by definition, most of all at the jaw and the brows.
    "mediapipe": LandmarkNoise(inner_mm=3.5, jaw_mm=5.0, alike=True),
    "network": LandmarkNoise(2.0, 2.0),  # of a face without deviations of its own; see Face.sighting
}


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photo, in photo pixels with centres at +0.5."""

    box: Box  # upright square around the face from above the brows to the chin, of a given box that box
    landmarks: Float[np.ndarray, "68 2"]  # NaN rows are hidden
    source: str  # "dlib-hog", "dlib-hog-upsampled", "dlib-cnn", "box", "file", "network" or "mediapipe"
    score: float  # the detector's confidence, to be compared within one source only
    noise: LandmarkNoise
    truncated: bool = False  # cut by the photo's border
    spread: float = 0.0  # rms of the landmarks over moved boxes, over the box's side; see UNSURE_SPREAD
    count: int = 1  # faces found in the photo
    sighting: Sighting | None = None  # of a landmark network: more points, their own deviations, and a start

    @property
    def sure(self) -> bool:
        """Whether the landmarks can be trusted; else it is a face seen from the side, or covered, or no face."""
        return self.spread <= UNSURE_SPREAD

    @classmethod
    def from_landmarks(
        cls, landmarks: Float[np.ndarray, "68 2"], photo: Photo | None = None, noise: LandmarkNoise | None = None
    ) -> "Face":
        """A face known by its landmarks; without `noise` as from a file, whose convention nobody knows."""
        seen = landmarks[np.isfinite(landmarks).all(axis=1)]
        if len(seen) == 0:
            raise NoFaceError("Face.from_landmarks: all 68 landmarks are NaN, expected at least 6 points. Mark some.")
        low, high = seen.min(axis=0), seen.max(axis=0)
        truncated = photo is not None and not _in_photo(seen, photo).all()
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        return cls(box, landmarks, "file", 1.0, LANDMARK_NOISE["file"] if noise is None else noise, truncated)


@runtime_checkable
class LandmarkProvider(Protocol):
    """What a detector of any kind has to offer: dlib below, and networks, MediaPipe or clicks like it."""

    def faces(self, photo: Photo, box: Box | None, all_faces: bool) -> list[Face]:
        """The faces of the photo in any order; the one in `box` if it is given; empty if there is none."""
        ...


def detect_faces(
    photo: Photo,
    box: Sequence[float | int] | None = None,
    all_faces: bool = False,
    provider: LandmarkProvider | None = None,
) -> list[Face]:
    """The largest face of the photo, or all of them, largest first; never empty.

    Where some landmarks can be trusted (Face.sure), faces whose cannot are left out.
    With `box` (x0, y0, x1, y1) no face is searched for: the landmarks are placed in it.
    """
    provider = DlibProvider() if provider is None else provider
    region = None if box is None else _checked_box(box, photo)
    faces = provider.faces(photo, region, all_faces)
    trusted = [face for face in faces if face.sure]
    if trusted and all_faces:
        for face in faces:
            if not face.sure:
                log.info(f"{photo.path}: what may be a face {_where(face.box)} is left out; --box x0,y0,x1,y1 fits it.")
    faces = sorted(trusted or faces, key=lambda face: face.box[2] - face.box[0], reverse=True)
    if not faces:
        raise NoFaceError(
            f"{photo.path}: no face was found in {photo.width} x {photo.height} pixels, expected one, upright, of at "
            f"least some 40 pixels, and turned by less than about 50 degrees. Give its place with --box x0,y0,x1,y1 or "
            f"its points with --landmarks FILE, or use a larger or sharper image."
        )
    faces = [replace(face, count=len(faces)) for face in faces]
    if len(faces) > 1 and not all_faces:
        log.info(
            f"{photo.path}: {len(faces)} faces found, the largest is used ({_where(faces[0].box)}); "
            f"--all-faces fits each, --box x0,y0,x1,y1 picks one."
        )
    chosen = faces if all_faces else faces[:1]
    for face in chosen:
        if not face.sure:
            log.warning(
                f"{photo.path}: the landmarks of the face {_where(face.box)} are unsure (turned far to the side, "
                f"covered or blurred); look at the overlay, and give points with --landmarks FILE where it is wrong."
            )
    return chosen


ONE_PERSON = 0.6  # distance of two descriptors up to which dlib takes faces for one person's


def face_descriptor(photo: Photo, landmarks: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "128"]:
    """dlib's description of whose face it is (King 2017): near for photos of one person, see ONE_PERSON.

    `landmarks` are in photo pixels, all of them; those of a fit do where a detector has hidden some.
    """
    if not np.isfinite(landmarks).all():
        hidden = int(np.sum(~np.isfinite(landmarks).all(axis=1)))
        raise NoFaceError(f"face_descriptor: got {hidden} hidden landmarks, expected all 68. Use a fit's landmarks2d.")
    models = _models()
    points = [models.dlib.point(round(float(x)), round(float(y))) for x, y in landmarks]
    (left, top), (right, bottom) = landmarks.min(axis=0).astype(int), landmarks.max(axis=0).astype(int)
    box = models.dlib.rectangle(int(left), int(top), int(right), int(bottom))
    shape = models.dlib.full_object_detection(box, points)
    return np.array(models.recogniser.compute_face_descriptor(np.ascontiguousarray(photo.pixels), shape))


def _where(box: Box) -> str:
    return "at " + ",".join(f"{v:.0f}" for v in box)


def _checked_box(box: Sequence[float | int], photo: Photo) -> Box:
    x0, y0, x1, y1 = (float(v) for v in box)
    size = f"{photo.width} x {photo.height}"
    expected = "expected x0,y0,x1,y1 in pixels of the photo as displayed, around the face from brows to chin"
    if not (np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0):
        raise NoFaceError(f"--box: got {x0:g},{y0:g},{x1:g},{y1:g}, {expected}, with x1 > x0 and y1 > y0.")
    if x0 >= photo.width or y0 >= photo.height or x1 <= 0 or y1 <= 0:
        raise NoFaceError(f"--box: got {x0:g},{y0:g},{x1:g},{y1:g}, outside the photo of {size} pixels; {expected}.")
    if min(x1 - x0, y1 - y0) < 10:
        raise NoFaceError(
            f"--box: got {x1 - x0:g} x {y1 - y0:g} pixels, {expected}, of at least 10 x 10. Is it x0,y0,width,height?"
        )
    if x1 - x0 > 4 * photo.width or y1 - y0 > 4 * photo.height:
        raise NoFaceError(f"--box: got {x1 - x0:g} x {y1 - y0:g} for a photo of {size} pixels; {expected}.")
    return x0, y0, x1, y1


def _in_photo(points: Float[np.ndarray, "point 2"], photo: Photo) -> Bool[np.ndarray, "point"]:
    return np.all((points >= 0) & (points <= [photo.width, photo.height]), axis=1)


# ------------------------------------------------------------------------------------------------------ dlib

UNSURE_SPREAD = 0.02  # of 108 images with known landmarks, 4 of 79 below it and 23 of 29 above were wrong by > 6 %
_HOG_LONG_SIDE = 1024  # px: HOG sees faces from 80 px, so from a thirteenth of the photo; 0.05 s
_UPSAMPLED_LONG_SIDE = 2048  # px; 0.4 s
_CNN_PIXELS = 500_000  # 6 s a megapixel on two cores, and a gigabyte
_FACE_PX = 200  # width of the box that the predictor gets; 120 to 400 and the photo's own size measured alike
_REFINE_FACE_PX = (120, 200)
_MARGIN = 0.75  # of a crop around the box, in box widths
_REFINE_THRESHOLD = -1.0  # HOG score; there is a face, the question is only where
_STEADY_SPREAD = 0.015  # up to it the first box was a good one: none of the 72 such images was wrong
_ROLLS = tuple(
    math.radians(d) for d in (0, 15, -15, 30, -30, 45, -45, 60, -60, 75, -75, 90, -90, 120, -120, 150, -150, 180)
)
# The predictor's answer jumps with its box; the mean over these moves and sizes (in box widths) halves that.
_MOVES = [
    (dx, dy, scale) for scale in (0.92, 1.0, 1.08) for dx, dy in ((0, 0), (0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05))
]


@dataclass(frozen=True)
class Region:
    """A square in the photo that may be turned, and how much a detector likes it."""

    centre: Float[np.ndarray, "2"]
    side: float
    roll: float = 0.0  # radians, clockwise as displayed
    score: float = 0.0

    @property
    def box(self) -> Box:
        x, y = (float(v) for v in self.centre)
        return x - self.side / 2, y - self.side / 2, x + self.side / 2, y + self.side / 2


@dataclass(frozen=True)
class DlibProvider:
    """HOG at a bounded size, then upsampled, then dlib's CNN; landmarks by the predictor trained on iBUG 300-W."""

    def faces(self, photo: Photo, box: Box | None = None, all_faces: bool = False) -> list[Face]:
        if box is not None:
            x0, y0, x1, y1 = box
            given = Region(np.array([(x0 + x1) / 2, (y0 + y1) / 2]), math.sqrt((x1 - x0) * (y1 - y0)))
            face = _face(photo, given, "box", 0.0, reach=0.5, smallest=0.35)
            return [] if face is None else [replace(face, box=box)]
        found: list[Face] = []
        for source, regions in proposals(photo):
            for region in regions:
                if any(overlap(region.box, face.box) > 0.3 for face in found):
                    continue
                # Beside a good face, a doubtful one is not worth the search.
                steady_spread = math.inf if not all_faces and any(face.sure for face in found) else _STEADY_SPREAD
                face = _face(photo, region, source, steady_spread)
                if face is not None:
                    found.append(face)
            if not all_faces and any(face.sure for face in found):
                break
        return found


def proposals(photo: Photo) -> Iterator[tuple[str, Iterator[Region]]]:
    """Where dlib's detectors see faces, best first: HOG, HOG on the enlarged photo, CNN; each runs when asked."""
    long_side = max(photo.width, photo.height)
    yield "dlib-hog", _hog_regions(photo, min(1.0, _HOG_LONG_SIDE / long_side))
    yield "dlib-hog-upsampled", _hog_regions(photo, min(4.0, _UPSAMPLED_LONG_SIDE / long_side))
    yield "dlib-cnn", _cnn_regions(photo)


def landmarks_at(
    photo: Photo, centre: Float[np.ndarray, "2"], side: float, roll: float = 0.0, source: str = "box"
) -> Face | None:
    """dlib's landmarks in a square of a photo as it is, without a search; None where too little of it is in the photo.

    `side` is in photo pixels, `roll` in radians, clockwise as displayed. For those who know where the face is: a
    tracker, or a fit.
    """
    return _face(photo, Region(np.asarray(centre, float), side, roll), source, math.inf)


def hog_faces(photo: Photo, long_side: int = _HOG_LONG_SIDE) -> list[Face]:
    """Trusted faces by the HOG detector alone, with the photo resized to `long_side` pixels (at most fourfold).

    A twentieth of a second, where `DlibProvider` searches on until it is sure: for one frame of many. Empty where there
    is none.
    """
    regions = _hog_regions(photo, min(4.0, long_side / max(photo.width, photo.height)))
    faces = [_face(photo, region, "dlib-hog", math.inf) for region in regions]
    return [face for face in faces if face is not None and face.sure]


def _face(photo: Photo, region: Region, source: str, steady_spread: float, **search: float) -> Face | None:
    """The face of a region, or None where too little of it is in the photo."""
    best = region
    points, spread = _predict(photo, region)
    if spread > steady_spread:
        # The box may be badly placed, or the head lie on its side. dlib's answers agree where they are right: of
        # several boxes the one with the least spread is used; a turned one must be that much better.
        least = spread
        for face_px in _REFINE_FACE_PX:
            other = _refined(photo, region, face_px, **search)
            if other is None:
                continue
            other_points, other_spread = _predict(photo, other)
            value = other_spread * (1 + abs(other.roll) / math.radians(90))
            if value < 0.8 * least:
                best, points, spread, least = other, other_points, other_spread, value
    inside = _in_photo(points, photo)
    if inside.sum() < 6 or inside[INNER_LANDMARKS].sum() < 4:
        log.info(f"{photo.path}: the face {_where(best.box)} shows {inside.sum()} of 68 points and is left out.")
        return None
    # Beyond the border the predictor continues its average face: no observation.
    points = np.where(inside[:, None], points, np.nan)
    return Face(
        best.box, points, source, region.score, LANDMARK_NOISE["dlib"], truncated=not inside.all(), spread=spread
    )


def _hog_regions(photo: Photo, scale: float) -> Iterator[Region]:
    image = _resized(photo, scale)
    boxes, scores, _ = _models().hog.run(image, 0, 0.0)
    for box, score in zip(boxes, scores, strict=True):  # best first
        yield replace(_region(box, scale), score=score)


def _cnn_regions(photo: Photo) -> Iterator[Region]:
    scale = min(3.0, math.sqrt(_CNN_PIXELS / (photo.width * photo.height)))
    for detection in _models().cnn(_resized(photo, scale), 0):
        region = replace(_region(detection.rect, scale), score=detection.confidence)
        # The CNN's boxes sit higher and are smaller than the HOG detector's (median of 80 faces).
        yield replace(region, centre=region.centre + [0, 0.075 * region.side], side=1.07 * region.side)


def _region(rectangle: Any, scale: float) -> Region:
    middle = [rectangle.left() + rectangle.right() + 1, rectangle.top() + rectangle.bottom() + 1]
    return Region(np.array(middle) / 2 / scale, rectangle.width() / scale)


def _refined(photo: Photo, region: Region, face_px: int, reach: float = 0.4, smallest: float = 0.55) -> Region | None:
    """The region as the HOG detector would have drawn it, turned upright; None where it sees nothing at all.

    `reach` is how far its centre may be off, `smallest` how much smaller it may be, in sides of the region.
    """
    near = _neighbourhood(photo, region, face_px)
    best, best_value = None, -math.inf
    for roll in _ROLLS:
        image, to_photo = near.upright(replace(region, roll=roll), face_px)
        boxes, scores, _ = _models().hog.run(image, 0, _REFINE_THRESHOLD)
        for box, score in zip(boxes, scores, strict=True):
            found = _region(box, 1.0)
            offset = np.abs(found.centre - image.shape[0] / 2).max() / face_px
            size = found.side / face_px
            value = score - min(0.01 * abs(math.degrees(roll)), 0.6)  # heads are mostly upright
            if offset < reach and smallest < size < 1.7 and value > best_value:
                best_value = value
                best = Region(to_photo(found.centre[None])[0], size * region.side, roll, score)
    return best


def _predict(photo: Photo, region: Region) -> tuple[Float[np.ndarray, "68 2"], float]:
    """Landmarks in the photo, and their spread over moved boxes as a fraction of the box's side."""
    points, spread = _predict_upright(photo, region)
    eyes = points[42:48].mean(axis=0) - points[36:42].mean(axis=0)
    roll = math.atan2(eyes[1], eyes[0])
    # A head tilted 45 degrees: error 7.9 -> 1.8 % of the face. Below 12 degrees there is nothing to gain.
    if abs(math.remainder(roll - region.roll, 2 * math.pi)) > math.radians(12):
        turned = _turned(region, points, roll)
        again, spread_again = _predict_upright(photo, turned)
        if spread_again < 1.5 * spread:
            points, spread = again, spread_again
    return points, spread


def _turned(region: Region, points: Float[np.ndarray, "68 2"], roll: float) -> Region:
    """The box the HOG detector draws around such points on an upright head (median of 77 faces)."""
    turn = _rotation(roll)  # upright to photo
    upright = points @ turn
    low, high = upright.min(axis=0), upright.max(axis=0)
    size = math.sqrt(float(np.prod(high - low)))
    return Region(turn @ ((low + high) / 2 - [0, 0.095 * size]), 1.08 * size, roll, region.score)


def _predict_upright(photo: Photo, region: Region) -> tuple[Float[np.ndarray, "68 2"], float]:
    models = _models()
    image, to_photo = _neighbourhood(photo, region, _FACE_PX).upright(region, _FACE_PX)
    middle = image.shape[0] / 2
    answers = []
    for dx, dy, scale in _MOVES:
        x, y, half = middle + dx * _FACE_PX, middle + dy * _FACE_PX, scale * _FACE_PX / 2
        box = models.dlib.rectangle(round(x - half), round(y - half), round(x + half) - 1, round(y + half) - 1)
        parts = models.predictor(image, box).parts()
        answers.append([(part.x + 0.5, part.y + 0.5) for part in parts])  # dlib counts pixel centres from 0
    answers = np.array(answers, float)
    points = answers.mean(axis=0)
    spread = float(np.sqrt(((answers - points) ** 2).sum(axis=2).mean())) / _FACE_PX
    return to_photo(points), spread


def _rotation(roll: float) -> Float[np.ndarray, "2 2"]:
    return np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


# ---------------------------------------------------------------------------------------------------- pixels


def _resized(photo: Photo, scale: float) -> UInt8[np.ndarray, "height width 3"]:
    """The whole photo at another size; a very large one is first reduced strip by strip."""
    from PIL import Image

    step = max(1, int(0.5 / scale))
    rows = step * max(1, 4_000_000 // (photo.width * step))
    strips = [photo.pixels[top : top + rows] for top in range(0, photo.height, rows)]
    reduced = np.concatenate([np.asarray(Image.fromarray(strip).reduce(step)) for strip in strips])
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    box = (0, 0, photo.width / step, photo.height / step)
    return np.asarray(Image.fromarray(reduced).resize(size, Image.Resampling.BILINEAR, box=box))


@dataclass(frozen=True)
class _Neighbourhood:
    """What surrounds a region, however it is turned, at about the size that is needed of it."""

    image: Any  # pillow's
    origin: Float[np.ndarray, "2"]  # of the image, in the photo
    step: int  # photo pixels per pixel

    def upright(self, region: Region, face_px: int) -> tuple[UInt8[np.ndarray, "size size 3"], Any]:
        """The region with a margin, turned upright, its side at face_px; and the map of its pixels to the photo's."""
        from PIL import Image

        size = round(face_px * (1 + 2 * _MARGIN))
        turn = region.side / face_px * _rotation(region.roll)
        origin = region.centre - turn @ [size / 2, size / 2]
        (a, b), (c, d) = turn / self.step
        x, y = (origin - self.origin) / self.step
        affine = (a, b, x, c, d, y)
        # Black beyond the photo, as dlib itself reads it.
        image = self.image.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        return np.asarray(image), lambda points: points @ turn.T + origin


def _neighbourhood(photo: Photo, region: Region, face_px: int) -> _Neighbourhood:
    from PIL import Image

    radius = region.side * (0.5 + _MARGIN) * math.sqrt(2) + 2
    limit = np.array([photo.width, photo.height])
    low = np.clip(np.floor(region.centre - radius), 0, limit - 1).astype(int)
    high = np.clip(np.ceil(region.centre + radius), low + 1, limit).astype(int)
    step = max(1, round(region.side / face_px))
    part = Image.fromarray(photo.pixels[low[1] : high[1], low[0] : high[0]])
    return _Neighbourhood(part.reduce(step), low.astype(float), step)


# ---------------------------------------------------------------------------------------------- trained files


@dataclass(frozen=True)
class _DlibModels:
    dlib: Any  # the module
    hog: Any
    folder: Path

    # Each file is read when it is needed: who gives landmarks of their own never loads the predictor, whose training
    # data exclude commercial use.
    @functools.cached_property
    def predictor(self) -> Any:
        return self.dlib.shape_predictor(str(trained_file(self.folder, "shape_predictor_68_face_landmarks.dat")))

    @functools.cached_property
    def cnn(self) -> Any:
        return self.dlib.cnn_face_detection_model_v1(str(trained_file(self.folder, "mmod_human_face_detector.dat")))

    @functools.cached_property
    def recogniser(self) -> Any:
        path = trained_file(self.folder, "dlib_face_recognition_resnet_model_v1.dat")
        return self.dlib.face_recognition_model_v1(str(path))


def _models() -> _DlibModels:
    return _load_models(os.environ.get("FACEFIT_DLIB_MODELS"))


@functools.lru_cache(maxsize=1)
def _load_models(override: str | None) -> _DlibModels:
    try:
        dlib: Any = importlib.import_module("dlib")
    except ImportError as cause:
        raise DetectorError(
            f"dlib cannot be imported ({cause}), but finds the faces. Install its wheel with "
            f"'pip install dlib-bin', or give points with --landmarks FILE."
        ) from cause
    folder = dlib_model_folder(override)
    return _DlibModels(dlib, dlib.get_frontal_face_detector(), folder)


def dlib_model_folder(override: str | None = None) -> Path:
    """Of dlib's trained files: `override` (FACEFIT_DLIB_MODELS), or inside the package face_recognition_models.

    The package is located, not imported: its __init__ needs pkg_resources, which newer setuptools lack.
    """
    if override:
        return Path(override)
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise DetectorError(
            "dlib's trained files: got no package face_recognition_models, expected it beside facefit. "
            "Run 'pip install face_recognition_models', or name a folder with the .dat files in FACEFIT_DLIB_MODELS."
        )
    return Path(next(iter(spec.submodule_search_locations))) / "models"


def trained_file(folder: Path, name: str) -> Path:
    """One of dlib's trained files in the folder of them; raises DetectorError where it is missing."""
    path = folder / name
    if not path.is_file():
        raise DetectorError(
            f"dlib's trained files: got no {name} in {folder}, expected it there. Run 'pip install --force-reinstall "
            f"face_recognition_models', or name a folder that has it in FACEFIT_DLIB_MODELS."
        )
    return path
