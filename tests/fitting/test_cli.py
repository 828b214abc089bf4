"""The command from its arguments to its files: what works is written whole, what does not leaves nothing behind."""

import contextlib
import dataclasses
import errno
import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fitting.detection as detection
import fitting.export as export
import fitting.fit
import morphable
from fitting.cli import main
from fitting.observation import read_photo, write_landmarks
from fitting.occluders import paint_occluder

FILES = {
    "fit.npz", "fit.json", "mesh.obj", "mesh.mtl", "neutral.obj", "neutral.mtl", "texture.png", "head.glb",
    "render.png", "overlay.png", "turntable.png", "report.html",
}  # fmt: skip


class Ran(NamedTuple):
    """What came of a command."""

    code: int
    printed: str
    said: str  # on stderr, with the log

    @property
    def text(self) -> str:
        return self.printed + self.said


def facefit(*arguments) -> Ran:
    """Run the command in this process; unlike pytest's capture it also serves fixtures of a module."""
    logger, root = logging.getLogger("facefit"), logging.getLogger()
    level, handlers = logger.level, root.handlers[:]
    root.handlers[:] = []  # as in a process of its own, where the command sets up the log
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
    finally:
        root.handlers[:] = handlers
        logger.setLevel(level)
    code = end.value.code
    assert isinstance(code, int)
    return Ran(code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(ran: Ran, *parts: str) -> None:
    """Exit code 2 and one line of our own that says what, got, expected and remedy."""
    assert ran.code == 2, ran.text
    message = ran.said.splitlines()[-1]
    assert message.startswith("facefit: ") and "Traceback" not in ran.text
    missing = [part for part in ("expected", *parts) if part not in message]
    assert not missing, f"{missing} not in: {message}"


def record(out: Path) -> dict:
    def no_constant(name):
        raise AssertionError(f"fit.json holds {name}, which is no JSON")

    return json.loads((out / "fit.json").read_text(encoding="utf-8"), parse_constant=no_constant)


def arrays(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "fit.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def good(collins, tmp_path_factory) -> tuple[Ran, Path]:
    """The bundled photo fitted and written in full, once for all tests."""
    out = tmp_path_factory.mktemp("good") / "new" / "out"
    return facefit("fit", collins, "-o", out, "--report"), out


@pytest.fixture(scope="module")
def pixels(collins) -> np.ndarray:
    return read_photo(collins).pixels


@pytest.fixture(scope="module")
def pair(pixels) -> Image.Image:
    """The portrait, and a smaller one on its left."""
    canvas = Image.new("RGB", (900, 512), (128, 128, 128))
    canvas.paste(Image.fromarray(pixels), (388, 0))
    canvas.paste(Image.fromarray(pixels).resize((384, 384), Image.Resampling.BICUBIC), (0, 100))
    return canvas


@pytest.fixture
def brief(monkeypatch):
    """Write the numbers alone: textures and pictures take seconds, and `good` has them."""

    def write(folder, fit, photo, mask=None, settings=None, detection=None, size=1024, report=False, detail=None):
        np.savez(folder / "fit.npz", **export.fit_arrays([fit]))
        described = export.fit_record(fit, settings, detection, photo.notes)
        (folder / "fit.json").write_text(json.dumps(described, allow_nan=False), encoding="utf-8")

    monkeypatch.setattr(export, "write_results", write)


@pytest.fixture
def no_model(monkeypatch):
    """Bad input is found before the model is loaded."""

    def load(path=None):
        raise AssertionError("the model was loaded for bad input")

    monkeypatch.setattr(morphable, "load", load)


@pytest.fixture
def no_detector(monkeypatch):
    def load(override):
        raise AssertionError("a detector ran")

    monkeypatch.setattr(detection, "_load_models", load)


# ----------------------------------------------------------------------------------------------- what is written


def test_success_writes_exactly_the_documented_files(good):
    ran, out = good
    assert ran.code == 0, ran.text
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert ran.printed == "" and "converged" in ran.said and str(out / "overlay.png") in ran.said
    assert all(f"stage {k}/4" in ran.said for k in (1, 2, 3, 4))


def test_arrays_have_their_documented_shapes(good, head):
    saved = arrays(good[1])
    vertices, triangles = len(head.mean), len(head.triangles)
    shapes = {
        "vertices": (vertices, 3), "neutral_vertices": (vertices, 3), "triangles": (triangles, 3),
        "landmarks3d": (68, 3), "neutral_landmarks3d": (68, 3), "landmarks2d": (1, 68, 2), "matched2d": (1, 68, 2),
        "K": (1, 3, 3), "R": (1, 3, 3), "t": (1, 3),
        "identity": (head.shape.rank,), "expression": (1, 52), "albedo": (head.albedo.rank,), "light": (1, 9, 3),
        "mean_vertices": (vertices, 3), "mean_landmarks3d": (68, 3),
    }  # fmt: skip
    assert {name: array.shape for name, array in saved.items()} == shapes
    assert all(array.dtype == (np.int32 if name == "triangles" else np.float32) for name, array in saved.items())
    assert all(np.isfinite(array).all() for array in saved.values())


def test_arrays_agree_with_each_other(good, head):
    saved = arrays(good[1])
    (K,), (R,), (t,) = saved["K"], saved["R"], saved["t"]
    camera = saved["landmarks3d"] @ R.T + t
    image = camera @ K.T
    np.testing.assert_allclose(image[:, :2] / image[:, 2:], saved["landmarks2d"][0], atol=0.01)
    assert (camera[:, 2] > 0).all() and np.allclose(R @ R.T, np.eye(3), atol=1e-5) and np.linalg.det(R) > 0
    np.testing.assert_allclose(K, [[K[0, 0], 0, 256], [0, K[0, 0], 256], [0, 0, 1]])
    seen = np.asarray(head.landmarks(jnp.asarray(saved["vertices"]))) @ R.T + t
    np.testing.assert_allclose(saved["matched2d"][0], (seen @ K.T)[:, :2] / seen[:, 2:], atol=0.01)
    identity, expression = jnp.asarray(saved["identity"]), jnp.asarray(saved["expression"][0])
    np.testing.assert_allclose(saved["vertices"], head.vertices(identity, expression), atol=1e-3)
    np.testing.assert_allclose(saved["neutral_vertices"], head.neutral(identity), atol=1e-3)
    np.testing.assert_array_equal(saved["mean_vertices"], head.mean)
    np.testing.assert_array_equal(saved["triangles"], head.triangles)
    for landmarks, vertices in (
        ("landmarks3d", "vertices"),
        ("neutral_landmarks3d", "neutral_vertices"),
        ("mean_landmarks3d", "mean_vertices"),
    ):
        np.testing.assert_allclose(saved[landmarks], head.landmarks3d(jnp.asarray(saved[vertices])), atol=1e-3)
    assert saved["expression"].min() >= 0 and saved["expression"].max() <= 1


def test_meshes_are_those_of_the_arrays(good):
    _, out = good
    saved = arrays(out)
    for name, array in (("mesh", "vertices"), ("neutral", "neutral_vertices")):
        lines = (out / f"{name}.obj").read_text().splitlines()
        vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
        np.testing.assert_allclose(vertices, saved[array], atol=1e-4)
        assert sum(line.startswith("f ") for line in lines) == len(saved["triangles"])
        assert f"mtllib {name}.mtl" in lines and "texture.png" in (out / f"{name}.mtl").read_text()


def test_render_looks_like_the_photo(good, pixels):
    _, out = good
    with Image.open(out / "render.png") as image:
        rendered = np.asarray(image).astype(int)
    assert rendered.shape == pixels.shape
    saved = arrays(out)
    low, high = saved["landmarks2d"][0].min(axis=0).astype(int), saved["landmarks2d"][0].max(axis=0).astype(int)
    face = (slice(low[1], high[1]), slice(low[0], high[0]))
    plain = np.abs(pixels[face].mean(axis=(0, 1)) - pixels[face]).mean()
    assert 0 < np.abs(rendered[face] - pixels[face]).mean() < 0.35 * plain
    assert np.array_equal(rendered[:30], pixels[:30]) and np.array_equal(rendered[:, -100:], pixels[:, -100:])


def test_record_says_where_the_result_comes_from(good, collins, head):
    ran, out = good
    said = record(out)
    assert (said["result"], said["reason"]) == ("converged", "")
    assert said["photo"] == {"width": 512, "height": 512, "notes": []}
    assert said["model"]["sha256"] == head.provenance.sha256 and said["model"]["licence"] == "CC0-1.0"
    assert said["settings"]["photo"] == str(collins) and said["settings"]["focal_px"] is None
    assert said["detection"]["landmarks"] == "dlib-hog" and not said["detection"]["truncated"]
    x0, y0, x1, y1 = said["detection"]["box"]
    middle = arrays(out)["landmarks2d"][0, 17:].mean(axis=0)
    assert x0 < middle[0] < x1 and y0 < middle[1] < y1
    assert [stage["name"] for stage in said["stages"]] == ["pose", "landmarks", "photo, coarse", "photo, fine"]
    assert said["energies"] == said["stages"][-1]["energies"]


def test_the_same_command_gives_the_same_numbers(good, collins, tmp_path, brief):
    out = tmp_path / "out"
    assert facefit("fit", collins, "-o", out).code == 0
    first = arrays(good[1])
    for name, again in arrays(out).items():
        np.testing.assert_array_equal(again, first[name], err_msg=name)


def test_an_existing_folder_keeps_what_is_not_a_result(collins, tmp_path, brief):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "fit.npz").write_text("old")
    assert facefit("fit", collins, "-o", tmp_path).code == 0
    assert set(contents(tmp_path)) == {"notes.txt", "fit.npz", "fit.json"}
    assert (tmp_path / "notes.txt").read_text() == "mine" and arrays(tmp_path)["K"].shape == (1, 3, 3)


# ---------------------------------------------------------------------------------------------- faces and photos


def test_of_several_faces_the_largest_is_fitted_and_said(good, pair, tmp_path, brief):
    pair.save(tmp_path / "pair.png")
    ran = facefit("fit", tmp_path / "pair.png", "-o", tmp_path / "out")
    assert ran.code == 0, ran.text
    assert all(part in ran.said for part in ("2 faces found", "the largest is used", "--all-faces", "--box"))
    expected = arrays(good[1])["landmarks2d"][0] + [388, 0]
    assert np.linalg.norm(arrays(tmp_path / "out")["landmarks2d"][0] - expected, axis=1).max() < 2


def test_a_box_picks_the_smaller_face(good, pair, tmp_path, brief):
    pair.save(tmp_path / "pair.png")
    expected = 0.75 * arrays(good[1])["landmarks2d"][0] + [0, 100]
    (x0, y0), (x1, y1) = expected.min(axis=0), expected.max(axis=0)
    ran = facefit("fit", tmp_path / "pair.png", "-o", tmp_path / "out", "--box", f"{x0},{y0},{x1},{y1}")
    assert ran.code == 0, ran.text
    assert np.linalg.norm(arrays(tmp_path / "out")["landmarks2d"][0] - expected, axis=1).max() < 2
    assert record(tmp_path / "out")["settings"]["box"] == pytest.approx([x0, y0, x1, y1])


def test_all_faces_are_written_largest_first(good, pair, tmp_path, brief, monkeypatch):
    monkeypatch.setattr(detection, "_CNN_PIXELS", 60_000)  # it looks too, but need not look closely
    pair.save(tmp_path / "pair.png")
    ran = facefit("fit", tmp_path / "pair.png", "-o", tmp_path / "out", "--all-faces")
    assert ran.code == 0, ran.text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"face_0", "face_1"}
    alone = arrays(good[1])["landmarks2d"][0]
    for name, expected in (("face_0", alone + [388, 0]), ("face_1", 0.75 * alone + [0, 100])):
        found = arrays(tmp_path / "out" / name)["landmarks2d"][0]
        assert np.linalg.norm(found - expected, axis=1).max() < 2


def test_a_face_cut_by_the_border_is_fitted_and_said(good, pixels, tmp_path, brief):
    width = 248  # a third of the eye on the right, and the cheek beyond it, are gone
    Image.fromarray(pixels[:, :width]).save(tmp_path / "cut.png")
    ran = facefit("fit", tmp_path / "cut.png", "-o", tmp_path / "out")
    assert ran.code == 0, ran.text
    assert "cut by the photo's border" in ran.said and record(tmp_path / "out")["detection"]["truncated"]
    whole, found = arrays(good[1])["landmarks2d"][0], arrays(tmp_path / "out")["landmarks2d"][0]
    seen = whole[:, 0] < width
    error = np.linalg.norm(found - whole, axis=1)
    assert error[seen].mean() < 4 and error[~seen].mean() < 12  # of a face of 88 px


def test_a_greyscale_photo_that_exif_turns(good, pixels, tmp_path, brief):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright = Image.fromarray(np.ascontiguousarray(pixels[:400])).convert("L")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    ran = facefit("fit", tmp_path / "phone.jpg", "-o", tmp_path / "out")
    assert ran.code == 0, ran.text
    said = record(tmp_path / "out")
    assert (said["photo"]["width"], said["photo"]["height"]) == (512, 400)
    notes = " ".join(said["photo"]["notes"])
    assert "EXIF orientation 6" in notes and "greyscale" in notes and "greyscale" in ran.said
    error = arrays(tmp_path / "out")["landmarks2d"] - arrays(good[1])["landmarks2d"]
    assert np.linalg.norm(error[0], axis=1).mean() < 2


def test_a_cmyk_photo(good, pixels, tmp_path, brief):
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "print.tif")
    ran = facefit("fit", tmp_path / "print.tif", "-o", tmp_path / "out")
    assert ran.code == 0, ran.text
    assert "CMYK" in ran.said
    error = arrays(tmp_path / "out")["landmarks2d"] - arrays(good[1])["landmarks2d"]
    assert np.linalg.norm(error[0], axis=1).mean() < 1


def test_a_face_of_15_pixels_is_fitted_where_a_box_is_given(good, pixels, tmp_path, brief):
    face = Image.fromarray(pixels[60:200, 150:290])
    face.resize((20, 20), Image.Resampling.LANCZOS).save(tmp_path / "tiny.png")
    ran = facefit("fit", tmp_path / "tiny.png", "-o", tmp_path / "out", "--box", "4,3,17,17")
    assert ran.code == 0, ran.text
    found = arrays(tmp_path / "out")
    assert all(np.isfinite(array).all() for array in found.values())
    expected = (arrays(good[1])["landmarks2d"][0] - [150, 60]) / 7
    assert np.linalg.norm(found["landmarks2d"][0] - expected, axis=1).mean() < 2


# ------------------------------------------------------------------------------------------------------- options


@pytest.mark.usefixtures("brief")
def test_what_covers_the_face_is_said(collins, pixels, tmp_path):
    photo = read_photo(collins)
    landmarks = detection.detect_faces(photo)[0].landmarks
    painted, _ = paint_occluder(pixels, landmarks, "patch", 1)
    Image.fromarray(painted).save(tmp_path / "patch.png")
    write_landmarks(tmp_path / "face.npy", landmarks)
    ran = facefit(
        "fit", tmp_path / "patch.png", "-o", tmp_path / "out", "--landmarks", tmp_path / "face.npy", "--covered"
    )
    assert ran.code in (0, 1) and " % of the face is covered" in ran.said


@pytest.mark.parametrize("ending", ["npy", "pts"])
def test_given_landmarks_are_used_and_no_detector_runs(good, collins, tmp_path, brief, no_detector, ending):
    points = arrays(good[1])["matched2d"][0]
    write_landmarks(tmp_path / f"face.{ending}", points)
    ran = facefit("fit", collins, "-o", tmp_path / "out", "--landmarks", tmp_path / f"face.{ending}")
    assert ran.code == 0, ran.text
    assert record(tmp_path / "out")["detection"]["landmarks"] == "file"
    error = np.linalg.norm(arrays(tmp_path / "out")["landmarks2d"][0] - points, axis=1)
    assert np.median(error[17:]) < 0.5  # the jaw may slide


def test_known_focal_length_is_kept(good, collins, tmp_path, brief):
    assert facefit("fit", collins, "-o", tmp_path / "out", "--focal-px", "1500").code == 0
    assert arrays(tmp_path / "out")["K"][0, 0, 0] == pytest.approx(1500, rel=0.03)
    assert abs(arrays(good[1])["K"][0, 0, 0] / 1500 - 1) > 0.2
    assert record(tmp_path / "out")["settings"]["focal_px"] == 1500


def test_what_the_mask_covers_has_no_influence(good, pixels, tmp_path, brief):
    np.save(tmp_path / "face.npy", arrays(good[1])["matched2d"][0])
    mask = np.full((512, 512), 255, np.uint8)
    mask[:, 222:] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    painted = pixels.copy()
    # The photo is blurred before it is compared: paint nearer to the edge than that reaches over it.
    painted[:, 228:] = np.random.default_rng(0).integers(0, 256, painted[:, 228:].shape)
    found = {}
    for name, photo in (("photo", pixels), ("painted", painted)):
        Image.fromarray(photo).save(tmp_path / f"{name}.png")
        for options in ((), ("--mask", tmp_path / "mask.png")):
            common = ("--landmarks", tmp_path / "face.npy", "-o", tmp_path / "out")
            assert facefit("fit", tmp_path / f"{name}.png", *common, *options).code == 0
            found[name, bool(options)] = arrays(tmp_path / "out")["vertices"]
    np.testing.assert_array_equal(found["painted", True], found["photo", True])
    assert np.linalg.norm(found["painted", False] - found["photo", False], axis=1).mean() > 0.3  # mm


# ------------------------------------------------------------------------------------------------------ failed fits


def test_a_failed_fit_is_reported_and_written(good, collins, tmp_path):
    np.save(tmp_path / "face.npy", arrays(good[1])["matched2d"][0] * [-1, 1] + [512, 0])  # left and right swapped
    out = tmp_path / "out"
    ran = facefit("fit", collins, "-o", out, "--landmarks", tmp_path / "face.npy", "--report")
    assert ran.code == 1, ran.text
    assert {path.name for path in out.iterdir()} == FILES
    said = record(out)
    assert said["result"] == "failed" and "left and right" in said["reason"]
    assert "the fit failed" in ran.said and said["reason"] in ran.said and "--landmarks" in ran.said


@pytest.mark.parametrize("points", ["anywhere", "shuffled"])
def test_random_points_are_no_face(good, collins, tmp_path, brief, points):
    rng = np.random.default_rng(0)
    drawn = rng.uniform(100, 400, (68, 2)) if points == "anywhere" else rng.permutation(arrays(good[1])["matched2d"][0])
    np.save(tmp_path / "face.npy", drawn)
    assert facefit("fit", collins, "-o", tmp_path / "out", "--landmarks", tmp_path / "face.npy").code == 1
    assert record(tmp_path / "out")["result"] == "failed" and record(tmp_path / "out")["reason"]


def test_one_failed_face_of_several_does_not_hide_the_others(pair, tmp_path, brief, monkeypatch):
    monkeypatch.setattr(detection, "_CNN_PIXELS", 60_000)
    pair.save(tmp_path / "pair.png")
    fit = fitting.fit.Fitter.fit
    results = iter(["failed", "converged"])

    def spoilt(self, *arguments, **options):
        return dataclasses.replace(fit(self, *arguments, **options), result=next(results), reason="spoilt")

    monkeypatch.setattr(fitting.fit.Fitter, "fit", spoilt)
    ran = facefit("fit", tmp_path / "pair.png", "-o", tmp_path / "out", "--all-faces")
    assert ran.code == 1 and "spoilt" in ran.said
    assert [record(tmp_path / "out" / f"face_{k}")["result"] for k in (0, 1)] == ["failed", "converged"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 2)],
    ids=["interrupted", "disk full"],
)
def test_writing_that_stops_half_way_leaves_nothing(collins, tmp_path, monkeypatch, error, code, existing):
    def stop(*_, **__):
        raise error

    monkeypatch.setattr(export, "face_texture", stop)  # by then fit.npz lies in the temporary folder
    out = tmp_path / "a" / "out"
    if existing:
        out.mkdir(parents=True)
        (out / "fit.npz").write_text("old")
    before = contents(tmp_path)
    ran = facefit("fit", collins, "-o", out)
    assert ran.code == code, ran.text
    assert contents(tmp_path) == before
    if code == 2:
        refused(ran, str(out), "No space left on device", "free space")


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def bad(pixels, tmp_path_factory) -> Path:
    """A folder of inputs that cannot be used."""
    folder = tmp_path_factory.mktemp("bad")
    Image.new("RGB", (100, 100), (90, 110, 130)).save(folder / "wall.png")
    Image.fromarray(pixels).resize((20, 20)).save(folder / "20.png")
    Image.fromarray(pixels).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:9000])
    (folder / "text.jpg").write_text("no picture")
    points = np.stack([np.linspace(180, 260, 68), 90 + np.arange(68) % 17 * 5], axis=1)
    np.save(folder / "67.npy", points[:67])
    np.save(folder / "five.npy", np.where(np.arange(68)[:, None] < 5, points, np.nan))
    np.save(folder / "68.npy", points)
    Image.new("L", (100, 90), 255).save(folder / "small_mask.png")
    Image.new("L", (512, 512), 0).save(folder / "black_mask.png")
    return folder


BAD = {
    "no face": (("wall.png",), ("100 x 100", "no face", "--box", "--landmarks")),
    "20 px": (("20.png",), ("20 x 20", "no face", "larger")),
    "truncated": (("cut.jpg",), ("cut.jpg", "cut short", "again")),
    "no picture": (("text.jpg",), ("text.jpg", "no picture", "JPEG", "Convert")),
    "missing": (("none.jpg",), ("none.jpg", "no such file", "Check the name")),
    "a folder": ((".",), ("folder", "Name one file")),
    "67 landmarks": (("whole.jpg", "--landmarks", "67.npy"), ("67.npy", "67 points", "68", "NaN")),
    "five landmarks": (("whole.jpg", "--landmarks", "five.npy"), ("five.npy", "5 finite points", "Mark more")),
    "missing landmarks": (("whole.jpg", "--landmarks", "none.pts"), ("none.pts", "no such file")),
    "words as box": (("whole.jpg", "--box", "a,b,c,d"), ("--box", "'a,b,c,d'", "x0,y0,x1,y1")),
    "three numbers as box": (("whole.jpg", "--box", "10,20,30"), ("--box", "'10,20,30'", "x0,y0,x1,y1")),
    "box upside down": (("whole.jpg", "--box", "200,300,100,400"), ("--box", "x0 < x1")),
    "NaN in the box": (("whole.jpg", "--box", "nan,0,100,100"), ("--box", "x0 < x1")),
    "box outside": (("whole.jpg", "--box", "600,0,700,100"), ("--box", "outside the photo of 512 x 512")),
    "focal 0": (("whole.jpg", "--focal-px", "0"), ("--focal-px", "got 0", "positive")),
    "focal negative": (("whole.jpg", "--focal-px", "-50"), ("--focal-px", "got -50", "positive")),
    "focal NaN": (("whole.jpg", "--focal-px", "nan"), ("--focal-px", "got nan", "positive")),
    "focal infinite": (("whole.jpg", "--focal-px", "inf"), ("--focal-px", "got inf", "positive")),
    "mask of another size": (("whole.jpg", "--mask", "small_mask.png"), ("100 x 90", "512 x 512", "full size")),
    "black mask": (("whole.jpg", "--mask", "black_mask.png"), ("black everywhere", "Invert")),
    "refine without a network": (("whole.jpg", "--refine"), ("--refine", "--detail none", "--detail network")),
    "weights of nothing": (("whole.jpg", "--detail", "optimise", "--detail-weights", "w"), ("--detail-weights",)),
    "missing weights": (("whole.jpg", "--detail", "network", "--detail-weights", "w"), ("got w", "train-detail")),
    "mask that is none": (("whole.jpg", "--mask", "text.jpg"), ("text.jpg", "no picture")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_leaves_nothing(bad, tmp_path, no_model, case):
    arguments, parts = BAD[case]
    arguments = [bad / a if "." in a and not a.startswith("-") and "," not in a else a for a in arguments]
    refused(facefit("fit", *arguments, "-o", tmp_path / "new" / "out"), *parts)
    assert contents(tmp_path) == {}
    (tmp_path / "fit.npz").write_text("old")
    refused(facefit("fit", *arguments, "-o", tmp_path), *parts)
    assert contents(tmp_path) == {"fit.npz": b"old"}


@pytest.mark.parametrize("other", [("--box", "100,100,200,200"), ("--all-faces",)])
def test_landmarks_contradict_a_search(bad, tmp_path, no_model, no_detector, other):
    ran = facefit("fit", bad / "whole.jpg", "-o", tmp_path / "out", "--landmarks", bad / "68.npy", *other)
    assert ran.code == 2 and "--landmarks" in ran.said and other[0] in ran.said
    assert ran.said.startswith("facefit: ") and "cannot be combined" in ran.said
    assert contents(tmp_path) == {}


def test_a_box_contradicts_all_faces(bad, tmp_path, no_model, no_detector):
    ran = facefit("fit", bad / "whole.jpg", "-o", tmp_path / "out", "--box", "100,100,200,200", "--all-faces")
    assert ran.code == 2 and ran.said.startswith("facefit: --box ") and "cannot be combined" in ran.said
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_the_way_of_the_results_is_said_first(bad, tmp_path, no_model, no_detector, below):
    (tmp_path / "out").write_text("mine")
    out = tmp_path / "out" / "below" if below else tmp_path / "out"
    refused(facefit("fit", bad / "whole.jpg", "-o", out), f"got the file {tmp_path / 'out'}", "Choose another -o OUT")
    assert contents(tmp_path) == {"out": b"mine"}


@pytest.mark.parametrize("name", ["none.npz", "68.npy", "whole.jpg", "text.jpg"])
@pytest.mark.parametrize("command", [("model", "info"), ("fit", "PHOTO", "-o", "OUT", "--model")], ids=["info", "fit"])
def test_what_is_no_model_is_refused(bad, tmp_path, name, command):
    given = {"PHOTO": bad / "whole.jpg", "OUT": tmp_path / "out"}
    refused(facefit(*(given.get(word, word) for word in command), bad / name), name, "model")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "fit"),
        (("model",), "sample"),
        (("fit", "whole.jpg"), "--out"),
        (("fit", "-o", "out"), "Required"),
        (("fit", "whole.jpg", "-o", "out", "--focal-px", "long"), "--focal-px"),
        (("fit", "whole.jpg", "-o", "out", "--boxes", "1,2,3,4"), "--box"),
    ],
)
def test_a_command_that_cannot_be_parsed(no_model, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    ran = facefit(*arguments)
    assert ran.code == 2 and named in ran.said and "Traceback" not in ran.said
    assert contents(tmp_path) == {}


def test_bad_input_to_the_module_run_as_a_script(tmp_path):
    """Its errors then are those of a module called __main__."""
    command = [sys.executable, "-m", "fitting.cli", "fit", "photo.jpg", "-o", str(tmp_path / "out"), "--box", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    refused(Ran(ran.returncode, ran.stdout, ran.stderr), "--box", "'1'")


# ------------------------------------------------------------------------------------------------- help and models


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ((), ("fit", "model")),
        (
            ("fit",),
            (
                "PATH",
                "--out",
                "-o",
                "--model",
                "--box",
                "--landmarks",
                "--mask",
                "--focal-px",
                "--all-faces",
                "fit.npz",
            ),
        ),
        (("model",), ("info", "sample")),
        (("model", "sample"), ("--out", "--count", "--seed", "--scale", "--model")),
    ],
    ids=["facefit", "fit", "model", "sample"],
)
def test_help_names_the_options(no_model, command, named):
    ran = facefit(*command, "--help")
    assert ran.code == 0 and all(word in ran.printed for word in named), ran.printed


def test_model_info(head):
    ran = facefit("model", "info")
    assert ran.code == 0
    facts = (head.provenance.name, "CC0-1.0 (free)", head.provenance.sha256, f"{len(head.mean)},", "52 units")
    assert all(fact in ran.printed for fact in (*facts, *head.expression_names, *head.part_names, *head.rig.names))


def test_model_sample_draws_people(head, tmp_path):
    command = ("model", "sample", "--count", "2", "--seed", "5", "--out")
    ran = facefit(*command, tmp_path / "out")
    assert ran.code == 0 and str(tmp_path / "out") in ran.printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"sample_0.glb", "sample_1.glb", "samples.png", "samples.npz"}
    assert (tmp_path / "out" / "sample_0.glb").read_bytes() != (tmp_path / "out" / "sample_1.glb").read_bytes()
    drawn = dict(np.load(tmp_path / "out" / "samples.npz"))
    assert drawn["identity"].shape == (2, head.shape.rank) and drawn["albedo"].shape == (2, head.albedo.rank)
    assert 0.8 < drawn["identity"].std() < 1.2 and 0.8 < drawn["albedo"].std() < 1.2


def test_samples_at_scale_0_are_the_mean(tmp_path, monkeypatch):
    monkeypatch.setattr("fitting.pictures.portraits", lambda *arguments: None)
    assert facefit("model", "sample", "--count", "2", "--scale", "0", "-o", tmp_path).code == 0
    assert (tmp_path / "sample_0.glb").read_bytes() == (tmp_path / "sample_1.glb").read_bytes()
    assert not np.load(tmp_path / "samples.npz")["identity"].any()


@pytest.mark.parametrize("option", [("--count", "0"), ("--scale", "nan")])
def test_samples_that_cannot_be_drawn(tmp_path, no_model, option):
    refused(facefit("model", "sample", "-o", tmp_path / "out", *option), *option[:1], f"got {option[1]}")
    assert contents(tmp_path) == {}
