"""`facefit rig`: photos in, a head and the record of every photo out."""

import json

import numpy as np
import pytest
from PIL import Image

from fitting.cli import main
from fitting.glb_reader import read_glb
from fitting.known_cameras import read_cameras
from fitting.multi_image import SetError
from fitting.rig import photos_of, read_set, scaled


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo):
    """The bundled photo, a darker and smaller copy of it, and the same file under another name."""
    folder = tmp_path_factory.mktemp("set")
    Image.fromarray(photo.pixels).save(folder / "a.png")
    Image.fromarray((0.85 * photo.pixels).astype(np.uint8)).resize((photo.width // 2, photo.height // 2)).save(
        folder / "b.png"
    )
    Image.fromarray(photo.pixels).save(folder / "copy.png")
    return folder


@pytest.fixture(scope="module")
def out(folder):
    target = folder / "rig"
    with pytest.raises(SystemExit) as stopped:
        main(["rig", str(folder), "-o", str(target), "--pupils-mm", "64"])
    assert stopped.value.code == 0
    return target


def test_the_command_writes_a_head_and_what_became_of_each_photo(out, head):
    expected = {"head.glb", "neutral.obj", "texture.png", "normal.png", "rig.npz", "rig.json", "parameters.npz"}
    assert expected | {"cameras", "sheet.png", "turntable.png", "personal.npz"} <= {p.name for p in out.iterdir()}
    record = json.loads((out / "rig.json").read_text())
    assert [p["name"] for p in record["photos"]] == ["a.png", "b.png", "copy.png"]
    used = [p["used"] for p in record["photos"]]
    assert sum(used) == 2 and used[1]
    with np.load(out / "rig.npz") as arrays:
        assert arrays["K"].shape == (2, 3, 3) and arrays["expression"].shape == (2, 52)
    rigged = read_glb(out / "head.glb")
    assert set(next(iter(rigged.targets.values()))) == set(head.expression_names)
    assert len(read_cameras(out / "cameras")) == 2


def test_a_stated_pupil_distance_sets_the_size_of_everything(out):
    rigged = read_glb(out / "head.glb")
    eyes = [rigged.skeleton.joints[rigged.skeleton.names.index(n)] for n in ("eye_left", "eye_right")]
    assert np.linalg.norm(eyes[0] - eyes[1]) == pytest.approx(64.0, abs=0.01)
    with np.load(out / "rig.npz") as arrays:
        points = arrays["landmarks3d"] @ arrays["R"][0].T + arrays["t"][0]
        pixels = points @ arrays["K"][0].T
        np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], arrays["landmarks2d"][0], atol=0.02)


def test_a_scaled_fit_looks_the_same(fitted):
    twice = scaled(fitted, 2.0)
    np.testing.assert_allclose(twice.vertices, 2 * fitted.vertices, atol=1e-3)
    np.testing.assert_allclose(twice.landmarks2d, fitted.landmarks2d, atol=0.01)


def test_bad_sets_say_what_is_wrong(folder, tmp_path, capsys):
    with pytest.raises(SetError, match="got no photos"):
        read_set([])
    with pytest.raises(SetError, match="got 1 files for 2 photos"):
        read_set([folder / "a.png", folder / "b.png"], [folder / "a.npy"])
    with pytest.raises(SetError, match="folder without pictures"):
        photos_of([tmp_path])
    for arguments, said in (
        ([str(folder / "nobody.png")], "nobody.png"),
        ([str(folder / "a.png"), "--cameras", str(tmp_path / "missing")], "no such file"),
        ([str(folder / "a.png"), "--focal-px", "-1"], "expected a positive number"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["rig", *arguments, "-o", str(tmp_path / "never")])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_photos_of_one_name_are_told_apart_by_their_folders(folder, tmp_path, photo):
    (tmp_path / "x").mkdir()
    Image.fromarray(photo.pixels).save(tmp_path / "x" / "a.png")
    names = read_set([folder / "a.png", tmp_path / "x" / "a.png"]).names
    assert len(set(names)) == 2 and all(name.endswith("/a.png") for name in names)
