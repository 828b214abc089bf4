"""What is read is what is displayed, in its own pixels; what cannot be read says why and what to do."""

import io
import json
import struct
import zlib

import jaxtyping
import numpy as np
import pytest
from PIL import Image, ImageFile

from fitting.observation import (
    LandmarkError,
    Photo,
    PhotoError,
    crop,
    read_landmarks,
    read_mask,
    read_photo,
    write_landmarks,
)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Smooth, so that JPEG keeps it, and without any symmetry."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([4 * x, 6 * y, 2 * x + 3 * y], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    return np.stack([30 + 20 * np.cos(angle), 20 + 12 * np.sin(angle)], axis=1)


def says(error: pytest.ExceptionInfo, *parts: str) -> None:
    """A message says what was expected, and every one of the parts: what, got, remedy."""
    message = str(error.value)
    missing = [part for part in ("expected", *parts) if part not in message]
    assert not missing, f"{missing} not in: {message}"


# ----------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm", "webp", "tga"])
def test_lossless_formats_keep_every_pixel(tmp_path, scene, ending):
    path = tmp_path / f"photo.{ending}"
    Image.fromarray(scene).save(path, **({"lossless": True} if ending == "webp" else {}))
    photo = read_photo(path)
    assert np.array_equal(photo.pixels, scene)
    assert photo.notes == () and photo.focal_px is None and (photo.width, photo.height) == (60, 40)


def test_jpeg_is_close(tmp_path, scene):
    Image.fromarray(scene).save(tmp_path / "photo.jpg", quality=98, subsampling=0)
    assert np.abs(read_photo(tmp_path / "photo.jpg").pixels.astype(int) - scene).max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "LA"])
def test_greyscale_fills_three_channels(tmp_path, scene, mode):
    grey = scene[..., 2]
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "photo.png")
    else:
        Image.fromarray(grey).convert(mode).save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    expected = np.where(np.asarray(Image.fromarray(grey).convert("1")), 255, 0) if mode == "1" else grey
    assert np.array_equal(photo.pixels, np.repeat(expected[..., None], 3, axis=2))
    assert any("greyscale" in note for note in photo.notes)
    assert any("16 bits" in note for note in photo.notes) == (mode == "I;16")


def test_transparency_is_laid_over_white(tmp_path, scene):
    alpha = np.zeros(scene.shape[:2], np.uint8)
    alpha[:, :20], alpha[:, 20:40] = 255, 51
    Image.fromarray(np.dstack([scene, alpha])).save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    assert np.array_equal(photo.pixels[:, :20], scene[:, :20])
    assert np.abs(photo.pixels[:, 20:40] - (0.2 * scene[:, 20:40] + 0.8 * 255)).max() <= 0.5 + 1e-3
    assert (photo.pixels[:, 40:] == 255).all()
    assert any("white" in note for note in photo.notes)


def test_palette_with_a_transparent_colour(tmp_path, scene):
    picture = Image.fromarray(scene).quantize(8)
    opaque = np.asarray(picture.convert("RGB"))
    picture.save(tmp_path / "photo.png", transparency=0)
    pixels = read_photo(tmp_path / "photo.png").pixels
    clear = np.asarray(picture) == 0
    assert clear.any() and (pixels[clear] == 255).all() and np.array_equal(pixels[~clear], opaque[~clear])


def _png16(path, values: np.ndarray) -> None:
    """A 16-bit RGB PNG by hand: pillow cannot write one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_16_bit_rgb_is_reduced_to_8(tmp_path, scene):
    _png16(tmp_path / "photo.png", scene.astype(np.uint16) * 257)
    photo = read_photo(tmp_path / "photo.png")
    assert np.array_equal(photo.pixels, scene)
    assert photo.notes == ("16 bits per channel reduced to 8",)


def test_cmyk_is_shown_as_rgb(tmp_path, scene):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "photo.jpg", quality=98)  # Adobe's inverted CMYK
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "photo.tif")
    for name in ("photo.jpg", "photo.tif"):
        photo = read_photo(tmp_path / name)
        assert np.abs(photo.pixels.astype(int) - flat).max() <= 3
        assert any("CMYK" in note for note in photo.notes)


def test_float_pixels_are_refused(tmp_path, scene):
    Image.fromarray(scene[..., 0].astype(np.float32)).save(tmp_path / "photo.tif")
    with pytest.raises(PhotoError) as error:
        read_photo(tmp_path / "photo.tif")
    says(error, "float", "8 or 16 bits", "save it as PNG")


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "photo.gif", save_all=True, append_images=frames[1:])
    photo = read_photo(tmp_path / "photo.gif")
    assert (photo.pixels == [255, 0, 0]).all() and any("first of its 2 frames" in note for note in photo.notes)


def _matrix_profile(primaries_xyz: np.ndarray, gamma: float) -> bytes:
    """A minimal ICC v2 display profile: three primaries (columns, D50) and one gamma."""

    def s15f16(values) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + s15f16(values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(8 + 3 + 67 + 4)
    tags = [(b"desc", text + bytes(-len(text) % 4)), (b"wtpt", xyz((0.9642, 1, 0.8249)))]
    tags += [(name, xyz(column)) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries_xyz.T, strict=True)]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    offset, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, block in tags:
        table += name + struct.pack(">II", offset + len(data), len(block))
        data += block
    size = offset + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    header += bytes(28) + s15f16((0.9642, 1, 0.8249)) + bytes(128 - 80)
    return header[:128] + table + data


def test_colour_profile_is_converted(tmp_path):
    display_p3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
    srgb = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    colour = np.array([200, 120, 90])
    linear = np.linalg.solve(srgb, display_p3 @ (colour / 255) ** 2.2)
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    picture = Image.new("RGB", (16, 16), tuple(colour))
    picture.save(tmp_path / "photo.png", icc_profile=_matrix_profile(display_p3, 2.2))
    photo = read_photo(tmp_path / "photo.png")
    assert np.abs(photo.pixels[0, 0] - expected).max() < 2  # and 200 would be wrong by:
    assert expected[0] - colour[0] > 8
    assert any("'wide' to sRGB" in note for note in photo.notes)
    picture.save(tmp_path / "photo.png", icc_profile=b"nonsense" * 40)
    photo = read_photo(tmp_path / "photo.png")
    assert (photo.pixels == colour).all() and any("profile cannot be used" in note for note in photo.notes)


# -------------------------------------------------------------------------------------------------------- EXIF


def _upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.32 in words: at which side of the picture the stored first row and first column are."""
    row_side, column_side = {
        1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left",
        5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom",
    }[orientation].split()  # fmt: skip
    shown = stored if row_side in ("top", "bottom") else stored.swapaxes(0, 1)
    if "bottom" in (row_side, column_side):
        shown = shown[::-1]
    return shown[:, ::-1] if "right" in (row_side, column_side) else shown


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_exif_orientation_is_applied(tmp_path, scene, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{ending}"
    Image.fromarray(scene).save(path, exif=exif)
    photo = read_photo(path)
    assert np.array_equal(photo.pixels, _upright(scene, orientation))
    assert photo.pixels.flags.c_contiguous


def _with_exif(path, size, tags: dict, orientation: int = 1) -> Photo:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update(tags)
    Image.new("RGB", size, "gray").save(path, exif=exif)
    return read_photo(path)


def test_focal_length_from_35mm_equivalent(tmp_path):
    photo = _with_exif(tmp_path / "photo.jpg", (300, 200), {0xA405: 50}, orientation=6)
    assert (photo.width, photo.height) == (200, 300)
    assert photo.focal_px == pytest.approx(50 * 300 / 36)  # a 3:2 photo is the 36 x 24 mm film


def test_focal_length_from_the_sensor(tmp_path):
    # 100 pixels per mm at the 6000 pixels taken; the file has 300, so 5 pixels per mm.
    tags = {0x920A: 85.0, 0xA20E: 100.0, 0xA210: 4, 0xA002: 6000, 0xA003: 4000}
    assert _with_exif(tmp_path / "photo.jpg", (300, 200), tags).focal_px == pytest.approx(85 * 5)


@pytest.mark.parametrize(
    "tags", [{}, {0xA405: 0}, {0xA405: 50, 0xA002: 6000, 0xA003: 6000}, {0xA405: 65535}, {0x920A: 85.0}],
    ids=["absent", "zero", "cut afterwards", "impossible", "no sensor"],
)  # fmt: skip
def test_focal_length_that_is_not_known(tmp_path, tags):
    assert _with_exif(tmp_path / "photo.jpg", (300, 200), tags).focal_px is None


# ---------------------------------------------------------------------------------------------------- bad files


def test_missing_file(tmp_path):
    with pytest.raises(PhotoError) as error:
        read_photo(tmp_path / "nothing.jpg")
    says(error, "nothing.jpg", "no such file", "Check the name")


def test_folder(tmp_path):
    with pytest.raises(PhotoError) as error:
        read_photo(tmp_path)
    says(error, "got a folder", "Name one file")


def test_empty_file(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(PhotoError) as error:
        read_photo(tmp_path / "photo.jpg")
    says(error, "empty file", "again")


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"hello, this is text", "no picture"), (b"%PDF-1.7 ...", "PDF"), (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
     (b"\0\0\0\x18ftypmp42\0\0\0\0", "video"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no picture")],
)  # fmt: skip
def test_non_image_is_named(tmp_path, content, kind):
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(PhotoError) as error:
        read_photo(tmp_path / "photo.jpg")
    says(error, kind, "JPEG, PNG", "Convert it")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("ending", ["jpg", "progressive.jpg", "png", "webp", "tif", "bmp"])
def test_truncated_file_is_refused(tmp_path, ending, fraction, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as another library may have left it
    path = tmp_path / f"photo.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **({"progressive": True} if "progressive" in ending else {}))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(PhotoError) as error:
        read_photo(path)
    says(error, path.name, "whole" if "known here" not in str(error.value) else "JPEG, PNG")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_random_damage_never_escapes_as_another_error(tmp_path, scene):
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF"):
        buffer = io.BytesIO()
        Image.fromarray(scene).save(buffer, kind)
        for _ in range(25):
            data = bytearray(buffer.getvalue())
            for at in rng.integers(0, min(len(data), 200), 4):
                data[at] = rng.integers(256)
            (tmp_path / "photo").write_bytes(data)
            try:
                photo = read_photo(tmp_path / "photo", max_pixels=10**6)
            except PhotoError as error:
                assert "expected" in str(error)
            else:
                assert photo.pixels.dtype == np.uint8


def test_20_pixels_load(tmp_path):
    Image.new("RGB", (20, 20), "gray").save(tmp_path / "photo.png")
    assert read_photo(tmp_path / "photo.png").pixels.shape == (20, 20, 3)


def test_100_megapixels_load_and_crop(tmp_path):
    picture = Image.new("1", (10_000, 10_000))
    picture.paste(1, (5_000, 0, 10_000, 10_000))
    picture.save(tmp_path / "photo.png", compress_level=1)
    photo = read_photo(tmp_path / "photo.png")
    assert photo.pixels.shape == (10_000, 10_000, 3)
    part, inside = photo.crop_srgb((4_000.0, 4_000.0, 2_000.0, 2_000.0), 20)
    assert np.allclose(part[:, :9], 0) and np.allclose(part[:, 11:], 1) and inside.all()


def test_decompression_bomb_is_refused(tmp_path):
    _png16(tmp_path / "photo.png", np.zeros((1, 1, 3), np.uint16))
    data = bytearray((tmp_path / "photo.png").read_bytes())
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "photo.png").write_bytes(data)
    with pytest.raises(PhotoError) as error:
        read_photo(tmp_path / "photo.png")
    says(error, "2500 megapixels", "at most 400", "Scale the photo down")


@pytest.mark.parametrize(
    ("pixels", "got"), [(np.zeros((4, 4, 3), np.float32), "float32"), (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)")]
)
def test_photo_from_an_array_is_checked(pixels, got):
    jaxtyping.config.update("jaxtyping_disable", True)  # as it is outside tests
    try:
        with pytest.raises(PhotoError) as error:
            Photo(pixels)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    says(error, got, "read_photo")


# -------------------------------------------------------------------------------------------------------- crops


def test_crop_of_whole_pixels_is_the_photo(scene):
    part, inside = Photo(scene).crop_srgb((10, 5, 16, 16), 16)
    assert np.allclose(part, scene[5:21, 10:26] / 255, atol=1e-6) and inside.all()


@pytest.mark.parametrize(("x0", "width", "size"), [(20.3, 150.2, 64), (50.7, 31.4, 64), (30.0, 120.0, 17)])
@pytest.mark.parametrize("axis", [0, 1])
def test_crop_keeps_pixel_centres(x0, width, size, axis):
    """A ramp says where each sample was taken; a sampled triangle places it to a twentieth of a crop pixel."""
    ramp = np.indices((200, 200))[axis].astype(np.uint8)
    part, _ = Photo(np.repeat(ramp[..., None], 3, axis=2)).crop_srgb((x0, x0, width, width), size)
    found = np.moveaxis(part, axis, 0)[:, size // 2, 0] * 255 + 0.5
    error = (found - x0) * size / width - (np.arange(size) + 0.5)
    assert np.abs(error).max() < 0.05 and abs(error.mean()) < 1e-3


def test_crop_averages_when_shrinking():
    board = Photo(np.repeat((255 * (np.indices((64, 64)).sum(axis=0) % 2)).astype(np.uint8)[..., None], 3, axis=2))
    encoded, _ = board.crop_srgb((0, 0, 64, 64), 8)
    linear, _ = board.crop_linear((0, 0, 64, 64), 8)
    assert np.allclose(encoded[1:-1, 1:-1], 0.5, atol=1e-3)
    assert np.allclose(linear[1:-1, 1:-1], 0.5, atol=1e-3)  # half the light; encoded it would be 0.735


def test_linear_crop_is_decoded_srgb(scene):
    photo = Photo(scene)
    encoded, _ = photo.crop_srgb((3, 3, 20, 20), 20)
    linear, _ = photo.crop_linear((3, 3, 20, 20), 20)
    back = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.allclose(back, encoded, atol=1e-5)


def test_crop_beyond_the_photo_repeats_its_edge(scene):
    photo = Photo(scene)
    part, inside = photo.crop_srgb((-20, -10, 40, 40), 40)
    assert inside.sum() == 30 * 20 and inside[10:, 20:].all()
    assert np.allclose(part[10:, :20], part[10:, 20:21]) and np.allclose(part[:10], part[10:11])


def test_mask_crops_like_the_photo(scene):
    mask = np.zeros((40, 60), bool)
    mask[:, 30:] = True
    part = crop(mask, (20, 10, 20, 20), 10)
    assert part.shape == (10, 10) and np.allclose(part[:, :4], 0) and np.allclose(part[:, 6:], 1)


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (0, 0, np.nan, 5), (60, 0, 5, 5), (-9, 0, 9, 5)])
def test_crop_refuses_boxes_off_the_photo(scene, box):
    with pytest.raises(ValueError, match="crop: .*box"):
        Photo(scene).crop_srgb(box, 8)


# -------------------------------------------------------------------------------------------------------- masks


def test_mask_is_white_where_used(tmp_path, scene):
    grey = np.zeros((40, 60), np.uint8)
    grey[:, :20], grey[:, 20:40] = 255, 100
    Image.fromarray(grey).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", Photo(scene))
    assert mask.dtype == bool and mask[:, :20].all() and not mask[:, 20:].any()


def test_mask_of_another_size_is_refused(tmp_path, scene):
    Image.new("L", (40, 60), 255).save(tmp_path / "mask.png")
    with pytest.raises(PhotoError) as error:
        read_mask(tmp_path / "mask.png", Photo(scene, path="me.jpg"))
    says(error, "40 x 60", "expected 60 x 40", "me.jpg", "full size")


def test_black_mask_is_refused(tmp_path, scene):
    Image.new("L", (60, 40), 0).save(tmp_path / "mask.png")
    with pytest.raises(PhotoError) as error:
        read_mask(tmp_path / "mask.png", Photo(scene))
    says(error, "black everywhere", "Invert")


# ---------------------------------------------------------------------------------------------------- landmarks


@pytest.mark.parametrize("ending", ["pts", "json", "npy"])
def test_landmarks_survive_a_file(tmp_path, points, ending):
    points = points.copy()
    points[[3, 40]] = np.nan
    path = tmp_path / f"face.{ending}"
    write_landmarks(path, points)
    assert np.allclose(read_landmarks(path), points, atol=1e-6, equal_nan=True)


def test_ibug_counts_pixels_from_one(tmp_path, points):
    """iBUG's (1, 1) is the centre of the first pixel, which lies at (0.5, 0.5)."""
    rows = "\n".join(["1 1"] + [f"{x} {y}" for x, y in points[1:]])
    (tmp_path / "face.pts").write_text(f"version: 1\r\nn_points:  68\r\n{{\r\n{rows}\r\n}}\r\n")
    assert np.allclose(read_landmarks(tmp_path / "face.pts")[0], [0.5, 0.5])


@pytest.mark.parametrize("key", [None, "landmarks", "landmarks2d", "matched2d"])
def test_json_is_in_our_convention(tmp_path, points, key):
    rows = [[float(x), float(y)] for x, y in points]
    rows[5] = None
    (tmp_path / "face.json").write_text(json.dumps(rows if key is None else {key: rows}))
    read = read_landmarks(tmp_path / "face.json")
    assert np.isnan(read[5]).all() and np.allclose(np.delete(read, 5, 0), np.delete(points, 5, 0))


def test_landmarks_of_a_fit_can_be_given_back(tmp_path, points):
    np.save(tmp_path / "face.npy", points[None])  # landmarks2d of fit.npz has a photo axis
    assert np.allclose(read_landmarks(tmp_path / "face.npy"), points)


def _save(path, content):
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


FACE = [[10.0 + i % 9, 10.0 + i // 9] for i in range(68)]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.json", FACE[:67], ("67 points", "68", "null")),
        ("a.pts", "version: 1\nn_points: 5\n{\n" + "3 4\n" * 5 + "}\n", ("5 points", "68", "nan nan")),
        ("a.npy", np.zeros((68, 3)), ("(68, 3)", "68")),
        ("a.npy", np.full((68, 2), np.nan), ("0 finite points", "Mark more")),
        ("a.json", FACE[:5] + [None] * 63, ("5 finite points", "at least 6", "eyes and mouth")),
        ("a.json", FACE[:17] + [None] * 51, ("17 finite points, 0 of them", "Mark more")),
        ("a.json", [*FACE[:67], [1.0, None]], ("point 67", "two finite numbers")),
        ("a.json", [*FACE[:67], [1.0, "x"]], ("point 67", "two numbers")),
        ("a.json", [*FACE[:67], 3], ("point 67", "null for a hidden point")),
        ("a.json", {"points": FACE}, ("'points'", "'landmarks'", "Rename")),
        ("a.json", 3, ("a int", "list of 68")),
        ("a.json", "[1, 2", ("not valid JSON", "68")),
        ("a.json", b"\xff\xfe\x00", ("not valid JSON",)),
        ("a.pts", "version: 1\n{\n3 four\n}\n", ("3 four", "two numbers", "nan nan")),
        ("a.pts", b"\xff\xfe\x00\x81", ("binary data", "n_points")),
        ("a.npy", np.array([["a", "b"]] * 68), ("<U1", "numbers")),
        ("a.npy", np.array([{}] * 68), ("numpy array of numbers", "numpy.save")),
        ("a.npy", b"not numpy", ("numpy array of numbers",)),
        ("a.npy", np.where(np.arange(136).reshape(68, 2) == 40, np.inf, 5.0), ("point 20", "inf")),
        ("a.json", [[x / 60, y / 40] for x, y in FACE], ("span", "normalised", "Multiply")),
        ("a.json", [[50 * x, y] for x, y in FACE], ("outside the photo", "me.jpg", "60 x 40", "scale")),
        ("a.txt", "", ("empty file", ".pts")),
        ("a.txt", "1 2", ("'.txt'", ".pts, .json or .npy", "rename")),
    ],
)
def test_bad_landmark_files_say_what_is_wrong(tmp_path, scene, name, content, parts):
    _save(tmp_path / name, content)
    with pytest.raises(LandmarkError) as error:
        read_landmarks(tmp_path / name, Photo(scene, path="me.jpg"))
    says(error, name, *parts)


def test_missing_landmark_file(tmp_path):
    with pytest.raises(LandmarkError) as error:
        read_landmarks(tmp_path / "face.pts")
    says(error, "no such file", "landmark file")


def test_points_of_a_cut_face_may_lie_outside(tmp_path, scene, points):
    np.save(tmp_path / "face.npy", points + [25.0, 0.0])
    assert np.isfinite(read_landmarks(tmp_path / "face.npy", Photo(scene))).all()
