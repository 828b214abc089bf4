"""What a fit is given: photos as displayed pixels, landmark files, masks. Everything is converted at this door.

A photo stays 8-bit sRGB at its full size, so that results are in the photo's own pixels and 100 megapixels
fit in memory; crops of it are resampled to floats on demand.
"""

import contextlib
import json
import math
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

Box = Sequence[float | int] | Float[np.ndarray, "4"]
LANDMARK_COUNT = 68
INNER_LANDMARKS = slice(17, 68)  # brows, nose, eyes, mouth: all but the jaw line
MAX_PIXELS = 400_000_000  # beyond it a file is taken for a decompression bomb

# Only formats that pillow decodes itself: EPS and its like would start an outside program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000", "AVIF")
_EXPECTED = "a JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, TGA, JPEG 2000 or AVIF picture"
# What pillow's decoders raise on damaged files, found by flipping and cutting bytes of each format.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError)
_DAMAGE += (struct.error, zlib.error)


class PhotoError(ValueError):
    """A photo or mask that cannot be used: what, got, expected, remedy."""


class LandmarkError(ValueError):
    """A landmark file that cannot be used: what, got, expected, remedy."""


def _srgb_decoding() -> Float[np.ndarray, "256"]:
    code = np.arange(256) / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4).astype(np.float32)


_ENCODED = (np.arange(256) / 255).astype(np.float32)
_LINEAR = _srgb_decoding()  # IEC 61966-2-1


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as it is displayed: upright, three channels, on the CPU."""

    pixels: UInt8[np.ndarray, "height width 3"]  # sRGB-encoded
    path: str = "photo"  # for messages
    notes: tuple[str, ...] = ()  # what was converted on reading
    focal_px: float | None = None  # from EXIF, in pixels of this photo

    def __post_init__(self):
        pixels = self.pixels
        if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3):
            got = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {np.shape(pixels)}"
            raise PhotoError(f"Photo: got pixels of {got}, expected uint8 (height, width, 3). Use read_photo.")
        if pixels.shape[2] != 3 or min(pixels.shape[:2]) == 0:
            raise PhotoError(f"Photo: got pixels of shape {pixels.shape}, expected (height, width, 3). Use read_photo.")

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def srgb(self) -> Float[np.ndarray, "height width 3"]:
        """sRGB-encoded floats in [0, 1]; 12 bytes a pixel, so crop large photos instead."""
        return _ENCODED[self.pixels]

    def crop_srgb(self, box: Box, size: int) -> tuple[Float[np.ndarray, "size size 3"], Bool[np.ndarray, "size size"]]:
        """As crop_linear, but sRGB-encoded, and averaged so, as pictures made for display are."""
        return crop(self.pixels, box, size, _ENCODED), _inside(self.pixels, box, size)

    def crop_linear(
        self, box: Box, size: int
    ) -> tuple[Float[np.ndarray, "size size 3"], Bool[np.ndarray, "size size"]]:
        """The box (x0, y0, width, height) at size x size, linear RGB, and which of its pixels the photo has.

        Light is averaged before it is encoded, as a smaller camera would. The rest repeats the photo's edge.
        """
        return crop(self.pixels, box, size, _LINEAR), _inside(self.pixels, box, size)


def crop(
    image: UInt8[np.ndarray, "height width ..."] | Bool[np.ndarray, "height width"],
    box: Box,
    size: int,
    values: Float[np.ndarray, "code"] = _ENCODED,
) -> Float[np.ndarray, "size size ..."]:
    """Antialiased resample of a float box (x0, y0, width, height); `values` gives each 8-bit code its value.

    The centre of crop pixel i lies at x0 + (i + 0.5) width / size. The filter is a triangle as wide as two crop
    pixels, or two image pixels when enlarging: never negative, so no ringing that a fit could take for shading.
    """
    if image.dtype == bool:
        image, values = image.view(np.uint8), np.array([0, 1], np.float32)
    x0, y0, width, height = (float(v) for v in box)
    image_height, image_width = image.shape[:2]
    if not (np.isfinite([x0, y0, width, height]).all() and width > 0 and height > 0):
        raise ValueError(f"crop: got box {box}, expected finite x0, y0 and positive width, height.")
    if x0 >= image_width or y0 >= image_height or x0 + width <= 0 or y0 + height <= 0:
        raise ValueError(f"crop: box {box} does not touch the {image_width} x {image_height} image. Is it of another?")
    channels = image.reshape(image_height, image_width, -1)
    rows, row_start, row_stop = _resampling(y0, height, size, image_height)
    columns, column_start, column_stop = _resampling(x0, width, size, image_width)
    count = channels.shape[2]
    flat = np.empty((column_stop - column_start, size, count), np.float32)
    for start in range(column_start, column_stop, 512):  # bounds the floats held of a very large box
        part = values[channels[row_start:row_stop, start : min(start + 512, column_stop)]]
        part = (rows @ part.reshape(row_stop - row_start, -1)).reshape(size, -1, count)
        flat[start - column_start :][: part.shape[1]] = part.transpose(1, 0, 2)
    out = (columns @ flat.reshape(column_stop - column_start, -1)).reshape(size, size, count)
    return np.ascontiguousarray(out.transpose(1, 0, 2)).reshape(size, size, *image.shape[2:])


def _resampling(start: float, length: float, size: int, count: int) -> tuple[Any, int, int]:
    """Sparse (size, stop - first) weights of `count` samples, and the range [first, stop) that has any."""
    import scipy.sparse as sp

    step = length / size
    support = max(step, 1.0)
    centre = start + (np.arange(size) + 0.5) * step
    sample = np.floor(centre - support)[:, None] + np.arange(math.ceil(2 * support) + 1)
    weight = np.maximum(0, 1 - np.abs(sample + 0.5 - centre[:, None]) / support)
    weight /= weight.sum(axis=1, keepdims=True)
    column = np.clip(sample, 0, count - 1).astype(int)  # beyond the edge, the edge again
    first, stop = int(column.min()), int(column.max()) + 1
    row = np.broadcast_to(np.arange(size)[:, None], column.shape)
    entries = (weight.astype(np.float32).ravel(), (row.ravel(), (column - first).ravel()))
    return sp.csr_matrix(entries, shape=(size, stop - first)), first, stop


def _inside(image: UInt8[np.ndarray, "height width 3"], box: Box, size: int) -> Bool[np.ndarray, "size size"]:
    x0, y0, width, height = box
    x = x0 + (np.arange(size) + 0.5) * width / size
    y = y0 + (np.arange(size) + 0.5) * height / size
    return ((y >= 0) & (y <= image.shape[0]))[:, None] & ((x >= 0) & (x <= image.shape[1]))[None, :]


# ---------------------------------------------------------------------------------------------------- photos


def read_photo(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Photo:
    """Any common picture as upright 8-bit sRGB; `notes` of the photo says what was converted."""
    path = _existing_file(path, PhotoError, what="photo", expected=_EXPECTED)
    with _strict_pillow(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pillow's remarks on odd metadata; damage raises
        return _decode(path, max_pixels)


def read_mask(path: str | os.PathLike, photo: Photo) -> Bool[np.ndarray, "height width"]:
    """Which pixels of the photo may be used: white is used, black ignored, grey split at the middle."""
    picture = read_photo(path)
    if (picture.height, picture.width) != (photo.height, photo.width):
        raise PhotoError(
            f"{path}: got a mask of {picture.width} x {picture.height} pixels, expected {photo.width} x {photo.height} "
            f"as in {photo.path}. Draw the mask over the photo at its full size, turned as it is displayed."
        )
    mask = picture.pixels.max(axis=2) >= 128
    if not mask.any():
        raise PhotoError(
            f"{path}: got a mask that is black everywhere, expected white where the photo is to be used. Invert it?"
        )
    return mask


def _existing_file(path: str | os.PathLike, error: type[ValueError], what: str, expected: str) -> Path:
    path = Path(path)
    if path.is_dir():
        raise error(f"{path}: got a folder, expected {expected}. Name one file in it.")
    if not path.exists():
        raise error(f"{path}: there is no such file, expected {expected}. Check the name of the {what}.")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as cause:
        reason = cause.strerror or str(cause)
        raise error(f"{path}: cannot be opened ({reason}), expected {expected}. Check its permissions.") from cause
    if not first:
        raise error(f"{path}: got an empty file (0 bytes), expected {expected}. Copy or download the {what} again.")
    return path


_pillow_lock = threading.Lock()


@contextlib.contextmanager
def _strict_pillow() -> Iterator[None]:
    """Our own size limit in place of pillow's, and damaged files refused whatever the program around us set."""
    from PIL import Image, ImageFile

    with _pillow_lock:
        saved = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = saved


def _decode(path: Path, max_pixels: int) -> Photo:
    from PIL import Image, UnidentifiedImageError

    Image.init()
    damaged = f"expected {_EXPECTED} that is whole. Copy or download it again, or save it anew as PNG"
    try:
        image = Image.open(path, formats=[f for f in _FORMATS if f in Image.OPEN])
    except UnidentifiedImageError as cause:
        raise PhotoError(f"{path}: got {_describe_start(path)}, expected {_EXPECTED}. Convert it first.") from cause
    except _DAMAGE as cause:
        raise PhotoError(f"{path}: the picture cannot be opened ({cause}), {damaged}.") from cause
    with image:
        if image.width * image.height > max_pixels:
            raise PhotoError(
                f"{path}: got {image.width} x {image.height} = {image.width * image.height / 1e6:.0f} megapixels, "
                f"expected at most {max_pixels / 1e6:.0f}. Scale the photo down or cut out the face."
            )
        sixteen_bit = ";16" in str(image.tile) or image.mode.startswith("I")  # the mode alone hides it for RGB
        try:
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            image.load()
        except _DAMAGE as cause:
            raise PhotoError(f"{path}: the picture is damaged or cut short ({cause}), {damaged}.") from cause
        notes = []
        try:
            exif = image.getexif()
            orientation = exif.get(0x0112, 1)
            focal_px = _exif_focal_px(exif, image.width, image.height)
        except _DAMAGE as cause:
            notes.append(f"its EXIF data cannot be read ({cause}) and is ignored")
            orientation, focal_px = 1, None
        if frames > 1:
            notes.append(f"the first of its {frames} frames is used")
        if sixteen_bit:
            notes.append("16 bits per channel reduced to 8")
        pixels = _to_rgb(image, path, notes)
    if orientation in _ORIENTATIONS:
        notes.append(f"turned upright (EXIF orientation {orientation})")
        pixels = np.ascontiguousarray(_ORIENTATIONS[orientation](pixels))
    return Photo(pixels=pixels, path=str(path), notes=tuple(notes), focal_px=focal_px)


# EXIF 2.32, tag 0x0112: where the stored first row and first column are to be shown.
_ORIENTATIONS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def _describe_start(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    if start[4:8] == b"ftyp":
        kind = "a HEIC picture" if start[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc") else "a video"
        return f"{kind} (first bytes {start[:12]!r})"
    if start.startswith(b"%PDF"):
        return "a PDF document"
    return f"a file that is no picture known here (first bytes {start!r})"


def _to_rgb(image: Any, path: Path, notes: list[str]) -> UInt8[np.ndarray, "height width 3"]:
    """Strip by strip, so that the conversions of a large photo hold one strip in floats."""
    mode = image.mode
    if mode == "F" or (mode == "I" and image.getextrema()[1] > 65535):
        raise PhotoError(
            f"{path}: got {'float' if mode == 'F' else '32-bit'} pixels, whose white is not defined, expected 8 or 16 "
            f"bits per channel. Tone-map it and save it as PNG or JPEG."
        )
    transform = None
    if image.info.get("icc_profile") and not mode.startswith("I"):
        transform = _colour_transform(image, notes)
    if mode == "CMYK":
        notes.append("CMYK converted to RGB")
    if mode in ("1", "L", "LA", "La") or mode.startswith("I"):
        notes.append("greyscale repeated in the three channels")
    has_alpha = image.has_transparency_data
    translucent = False
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, 4_000_000 // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if mode.startswith("I"):
            grey = (np.asarray(strip).astype(np.float32) / 257 + 0.5).clip(0, 255).astype(np.uint8)
            pixels[top : top + rows] = grey[..., None]
            continue
        alpha = np.asarray(strip.convert("RGBA"))[..., 3:] if has_alpha else None
        if has_alpha:
            strip = strip.convert("RGBA").convert("L" if mode in ("LA", "La") else "RGB")
        elif mode in ("1", "P"):
            strip = strip.convert("L" if mode == "1" else "RGB")
        colour = np.asarray(transform(strip) if transform else strip.convert("RGB"))
        if alpha is not None and alpha.min() < 255:
            translucent = True
            cover = alpha.astype(np.float32) / 255
            colour = (colour * cover + 255 * (1 - cover) + 0.5).astype(np.uint8)
        pixels[top : top + rows] = colour
    if translucent:
        notes.append("transparent parts laid over white")
    return pixels


def _colour_transform(image: Any, notes: list[str]) -> Any:
    """From the embedded colour profile to sRGB (phones save Display P3), or None where there is nothing to do."""
    import io

    from PIL import ImageCms

    source_mode = {"LA": "L", "La": "L", "1": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB"}
    mode = str(source_mode.get(image.mode, image.mode))
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        name = ImageCms.getProfileDescription(profile).strip()
        if "sRGB" in name:
            return None
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as cause:
        notes.append(f"its colour profile cannot be used ({cause}) and is ignored")
        return None
    notes.append(f"colours converted from '{name}' to sRGB")
    return transform.apply


def _exif_focal_px(exif: Any, width: int, height: int) -> float | None:
    """Focal length in pixels from EXIF, or None: absent, impossible, or the photo was cut after it was taken."""
    tags = exif.get_ifd(0x8769)

    def number(tag: int) -> float:
        try:
            value = float(tags.get(tag, 0))
        except (TypeError, ValueError, ZeroDivisionError):
            return 0.0
        return value if math.isfinite(value) and value > 0 else 0.0

    long, short = max(width, height), min(width, height)
    taken = sorted((number(0xA002), number(0xA003)))  # PixelXDimension, PixelYDimension: often of the uncut photo
    if taken[0] and abs(taken[1] / taken[0] * short / long - 1) > 0.02:
        return None
    diagonal = math.hypot(width, height)
    focal_px = 0.0
    if film := number(0xA405):  # FocalLengthIn35mmFilm; CIPA DCG-001: equal angle over the diagonal of 36 x 24 mm
        focal_px = film * diagonal / math.hypot(36, 24)
    elif (focal_mm := number(0x920A)) and (density := number(0xA20E)):  # FocalLength, FocalPlaneXResolution
        unit_mm = {2: 25.4, 3: 10.0, 4: 1.0}.get(int(number(0xA210)) or 2, 0.0)
        if unit_mm and taken[1]:
            focal_px = focal_mm * density / unit_mm * long / taken[1]
    return focal_px if 0.25 < focal_px / diagonal < 40 else None  # 11 mm to 1700 mm in 35 mm terms


# ------------------------------------------------------------------------------------------------- landmarks


def read_landmarks(
    path: str | os.PathLike, photo: Photo | None = None, min_points: int = 6, min_inner_points: int = 4
) -> Float[np.ndarray, "68 2"]:
    """The iBUG 68 points in photo pixels (centres at +0.5); NaN rows are hidden points.

    `.pts` counts pixels from 1 as iBUG does: its (1, 1) is our (0.5, 0.5). `.json` (a list of 68 [x, y] or null,
    or an object with it under "matched2d", "landmarks2d" or "landmarks") and `.npy` are in our own convention.
    """
    expected = "68 landmarks in a .pts, .json or .npy file"
    path = _existing_file(path, LandmarkError, what="landmark file", expected=expected)
    suffix = path.suffix.lower()
    readers = {".pts": _read_pts, ".json": _read_json, ".npy": _read_npy}
    if suffix not in readers:
        raise LandmarkError(f"{path}: got a file ending in '{suffix}', expected {expected}. Convert or rename it.")
    points = readers[suffix](path)
    if points.shape == (1, LANDMARK_COUNT, 2):  # as fit.npz has them, for one photo
        points = points[0]
    if points.shape != (LANDMARK_COUNT, 2):
        pairs = points.ndim == 2 and points.shape[1] == 2
        got = f"{len(points)} points" if pairs else f"an array of shape {points.shape}"
        raise LandmarkError(
            f"{path}: got {got}, expected the {LANDMARK_COUNT} points of the iBUG scheme as x, y. Give points that "
            f"you do not have as {'nan nan' if suffix == '.pts' else 'null' if suffix == '.json' else 'NaN'}."
        )
    _check_landmarks(points, path, photo, min_points, min_inner_points)
    return points


def write_landmarks(path: str | os.PathLike, points: Float[np.ndarray, "68 2"]) -> None:
    """The inverse of read_landmarks, in the format that the file's ending names."""
    path, points = Path(path), np.asarray(points, float)
    suffix = path.suffix.lower()
    if suffix == ".pts":
        rows = "\n".join(f"{x:.6f} {y:.6f}" for x, y in points + 0.5)
        path.write_text(f"version: 1\nn_points: {len(points)}\n{{\n{rows}\n}}\n")
    elif suffix == ".json":
        rows = [None if np.isnan(point).any() else [float(v) for v in point] for point in points]
        path.write_text(json.dumps({"landmarks2d": rows}))
    elif suffix == ".npy":
        np.save(path, points)
    else:
        raise LandmarkError(f"{path}: got a file ending in '{suffix}', expected .pts, .json or .npy. Rename it.")


def _read_pts(path: Path) -> Float[np.ndarray, "..."]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as cause:
        raise LandmarkError(f"{path}: got binary data, expected text: 'version: 1', 'n_points: 68', '{{', 68 lines "
                            f"of x y, '}}'. Write it anew.") from cause  # fmt: skip
    if "{" in lines:
        lines = lines[lines.index("{") + 1 :]
    lines = lines[: lines.index("}")] if "}" in lines else lines
    rows = []
    for line in filter(None, lines):
        try:
            x, y = (float(word) for word in line.replace(",", " ").split())
        except ValueError as cause:
            raise LandmarkError(
                f"{path}: got the line {line[:60]!r}, expected two numbers, x and y. Hidden points are 'nan nan'."
            ) from cause
        rows.append((x, y))
    return np.array(rows, float).reshape(-1, 2) - 0.5


def _read_json(path: Path) -> Float[np.ndarray, "..."]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as cause:
        raise LandmarkError(f"{path}: is not valid JSON ({cause}), expected a list of 68 [x, y] or null.") from cause
    if isinstance(data, dict):
        keys = [key for key in ("matched2d", "landmarks2d", "landmarks") if key in data]
        if not keys:
            raise LandmarkError(
                f"{path}: got an object with the keys {sorted(data)[:8]}, expected 'matched2d', "
                "'landmarks2d' or 'landmarks'. "
                "Rename one."
            )
        data = data[keys[0]]
    if isinstance(data, list) and len(data) == 1 and isinstance(data[0], list):
        data = data[0]  # one photo, as in fit.npz
    if not isinstance(data, list):
        raise LandmarkError(f"{path}: got a {type(data).__name__}, expected a list of 68 [x, y] or null. Nest it so.")
    rows = []
    for i, point in enumerate(data):
        point = [None, None] if point is None else point
        if not (isinstance(point, list) and len(point) == 2):
            raise LandmarkError(f"{path}: point {i} is {str(point)[:40]}, expected [x, y], or null for a hidden point.")
        for value in point:
            if not (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))):
                raise LandmarkError(f"{path}: point {i} is {str(point)[:40]}, expected two numbers, or null if hidden.")
        rows.append([math.nan if value is None else float(value) for value in point])
    return np.array(rows, float).reshape(-1, 2)


def _read_npy(path: Path) -> Float[np.ndarray, "..."]:
    try:
        points = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as cause:
        raise LandmarkError(
            f"{path}: is not a numpy array of numbers ({cause}), expected float (68, 2). Save it with numpy.save."
        ) from cause
    if not isinstance(points, np.ndarray) or points.dtype.kind not in "fiu":
        got = points.dtype if isinstance(points, np.ndarray) else "an archive of arrays"
        raise LandmarkError(f"{path}: got {got}, expected numbers of shape (68, 2). Save them with numpy.save.")
    return points.astype(float)


def _check_landmarks(
    points: Float[np.ndarray, "68 2"], path: Path, photo: Photo | None, min_points: int, min_inner_points: int
) -> None:
    finite = np.all(np.isfinite(points), axis=1)
    meant = np.logical_or(finite, np.all(np.isnan(points), axis=1))
    if not np.all(meant):
        row = int(np.argmin(meant))
        raise LandmarkError(
            f"{path}: point {row} is {points[row].tolist()}, expected two finite numbers, or two NaN if it is hidden."
        )
    inner = int(finite[INNER_LANDMARKS].sum())
    if finite.sum() < min_points or inner < min_inner_points:
        raise LandmarkError(
            f"{path}: got {finite.sum()} finite points, {inner} of them on brows, nose, eyes and mouth, expected at "
            f"least {min_points} and {min_inner_points}. Mark more: corners of eyes and mouth, and the tip of the nose."
        )
    seen = points[finite]
    extent = float(np.ptp(seen, axis=0).max())
    if extent < 4:
        raise LandmarkError(
            f"{path}: the points span {extent:.3g} pixels, expected a face of at least a few dozen. "
            f"Are they normalised? Multiply x by the photo's width and y by its height."
        )
    if photo is not None:
        margin = np.array([photo.width, photo.height]) / 2  # a cut face has points outside, but not this far
        outside = ((seen < -margin) | (seen > [photo.width, photo.height] + margin)).any(axis=1)
        if outside.any():
            far = seen[outside][0].round(1).tolist()
            raise LandmarkError(
                f"{path}: {outside.sum()} points such as {far} lie far outside the photo, expected pixels of "
                f"{photo.path} ({photo.width} x {photo.height}) as displayed. Are they of another copy or scale of it?"
            )
