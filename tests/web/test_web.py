"""What other programs make of head.glb: Khronos's validator, and three.js in headless Chromium.

Needs node, Chromium and the packages of tests/web/package.json (`npm ci --prefix tests/web`); skipped without.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from fitting.animation import animate
from fitting.export import write_head_glb
from fitting.glb import WrinkleMap
from fitting.glb_reader import read_glb
from fitting.texture_map import model_texture
from renderer.camera import Pinhole

HERE = Path(__file__).parent
PACKAGES = Path(os.environ.get("FACEFIT_NODE_MODULES", HERE))
WIDTH, HEIGHT = 320, 400
TIMES = np.array([0.0, 0.1, 0.35, 0.6])
WRINKLES = (("brow", 32, {"browInnerUp": 1.0, "browOuterUpLeft": 0.5}), ("smile", 16, {"mouthSmileLeft": 0.75}))
OPEN = np.array([0.0, 0.3, 1.0, 0.0])


def _run(script: str, *arguments: str) -> dict:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed (apt-get install nodejs npm)")
    package = "gltf-validator" if script == "validate.mjs" else "puppeteer-core"
    if not (PACKAGES / "node_modules" / package).is_dir():
        pytest.skip(f"no npm package {package} in {PACKAGES} (npm ci --prefix tests/web)")
    done = subprocess.run([node, HERE / script, *arguments], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def chromium(request):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    request.getfixturevalue("monkeymodule").setenv("FACEFIT_CHROMIUM", browser)


@pytest.fixture(scope="module")
def monkeymodule():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def cameras():
    """A head that turns and moves before a camera; glTF cameras look along their axis, so the centre is the middle."""
    made = []
    for k in range(len(TIMES)):
        R = Rotation.from_euler("xyz", [180 - 4 * k, 12 * k, 3 * k], degrees=True).as_matrix()
        K = np.array([[900.0, 0, WIDTH / 2], [0, 900.0, HEIGHT / 2], [0, 0, 1]])
        made.append(Pinhole.from_opencv(K, R, np.array([8.0 * k, 20.0, 900 - 20 * k]), HEIGHT, WIDTH))
    return made


@pytest.fixture(scope="module")
def files(head, cameras, tmp_path_factory):
    """A still head and a moving one, with all maps."""
    folder = tmp_path_factory.mktemp("web")
    identity = np.zeros(head.shape.rank, np.float32)
    texture = model_texture(head, np.zeros(head.albedo.rank, np.float32), 512)
    relief = np.full((64, 64, 3), (128, 128, 255), np.uint8)
    relief[::4] = (128, 90, 250)
    expression = np.zeros((len(TIMES), len(head.expression_names)))
    expression[:, head.unit("jawOpen")] = OPEN
    expression[:, head.unit("eyeLookOutLeft")] = expression[:, head.unit("eyeLookInRight")] = OPEN
    motion = animate(head, TIMES, expression, cameras)
    write_head_glb(folder / "still.glb", head, identity, expression[1], texture, cameras[0])
    write_head_glb(
        folder / "moving.glb",
        head,
        identity,
        None,
        texture,
        cameras[0],
        normal_map=relief,
        wrinkle_maps=[WrinkleMap(name, relief[:size, :size], drivers) for name, size, drivers in WRINKLES],
        animation=motion,
    )
    return folder


@pytest.mark.parametrize("name", ["still", "moving"])
def test_khronos_finds_nothing_wrong(files, name):
    report = _run("validate.mjs", str(files / f"{name}.glb"))
    assert report["issues"]["numErrors"] == 0 and report["issues"]["numWarnings"] == 0, report["issues"]["messages"]
    info = report["info"]
    assert info["hasMorphTargets"] and info["hasSkins"] and info["hasTextures"]
    assert info["animationCount"] == (1 if name == "moving" else 0)


def test_the_head_read_back_is_posed_like_the_model_in_every_frame(files, head):
    """The default head, which no other test writes whole: to 1e-5 of its size."""
    read = read_glb(files / "moving.glb")
    size = float(np.linalg.norm(np.ptp(np.asarray(head.mean), axis=0)))
    for k in range(len(TIMES)):
        posed = head.weights(jawOpen=OPEN[k], eyeLookOutLeft=OPEN[k], eyeLookInRight=OPEN[k])
        expected = np.asarray(head.vertices(jnp.zeros(head.shape.rank), posed), np.float64)
        T = read.animation.T_world_head[k]
        assert np.abs(read.frame(k) - (expected @ T[:3, :3].T + T[:3, 3])).max() < 1e-5 * size


@pytest.fixture(scope="module")
def viewed(files, chromium):
    """Pictures of the moving head in three.js by name, and what three.js says about it."""
    steps = [
        {"name": "rest"},
        {"name": "jaw", "weights": {"jawOpen": 1.0}},
        {"name": "smooth", "weights": {"jawOpen": 0.0}, "relief": 0.0},
        {"name": "eyes", "weights": {"eyeLookOutLeft": 1.0, "eyeLookInRight": 1.0}},
        {"name": "start", "weights": {"eyeLookOutLeft": 0.0, "eyeLookInRight": 0.0}, "relief": 1.0, "time": 0.0},
        {"name": "middle", "time": 0.35},
        {"name": "between", "time": 0.48},
    ]
    (files / "job.json").write_text(json.dumps({"width": WIDTH, "height": HEIGHT, "steps": steps}))
    about = _run("view.mjs", str(files / "moving.glb"), str(files / "job.json"), str(files))
    pictures = {}
    for step in steps:
        with Image.open(files / f"{step['name']}.png") as picture:
            pictures[step["name"]] = np.asarray(picture.convert("RGB")).astype(int)
    return pictures, about


def _box(points, margin=0):
    low, high = np.floor(points.min(axis=0)) - margin, np.ceil(points.max(axis=0)) + margin
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _changed(a, b):
    return np.abs(a - b).max(axis=2) > 8


def test_three_js_loads_the_file_with_its_names_maps_and_clip(viewed, head):
    _, about = viewed
    assert about["messages"] == []
    assert about["names"] == list(head.expression_names)
    (clip,) = about["clips"]
    assert abs(clip["duration"] - TIMES[-1]) < 1e-6 and clip["tracks"] > 4
    assert all(colour for _, colour, _ in about["maps"])
    assert {material for material, _, relief in about["maps"] if relief} == {"skin"}


def test_three_js_finds_the_wrinkle_maps_and_what_drives_them(viewed):
    _, about = viewed
    assert about["wrinkles"] == [list(wrinkle) for wrinkle in WRINKLES]


def test_jaw_open_moves_the_mouth_and_nothing_above_the_brows(viewed, head, cameras):
    pictures, _ = viewed
    landmarks = np.asarray(cameras[0].project(head.landmarks(head.mean)))
    moved = _changed(pictures["jaw"], pictures["rest"])
    assert moved[_box(landmarks[48:])].mean() > 0.3
    assert not moved[: int(landmarks[17:27, 1].max())].any()


def test_eye_weights_turn_the_eyes_alone(viewed, head, cameras):
    pictures, _ = viewed
    landmarks = np.asarray(cameras[0].project(head.landmarks(head.mean)))
    moved = _changed(pictures["eyes"], pictures["smooth"])
    eyes = np.zeros_like(moved)
    for corners in (landmarks[36:42], landmarks[42:48]):
        where = _box(corners, margin=8)
        assert moved[where].mean() > 0.1
        eyes[where] = True
    assert not (moved & ~eyes).any()


def test_the_normal_map_bends_the_light_on_the_skin(viewed):
    pictures, _ = viewed
    assert _changed(pictures["smooth"], pictures["rest"]).mean() > 0.005


@pytest.mark.parametrize("name, frame", [("start", 0), ("middle", 2)])
def test_a_player_shows_each_frame_as_its_own_camera_saw_it(viewed, head, cameras, name, frame):
    """The drawn head's outline box is where the model, posed and seen by that frame's camera, says."""
    pictures, _ = viewed
    turned = {"jawOpen": OPEN[frame], "eyeLookOutLeft": OPEN[frame], "eyeLookInRight": OPEN[frame]}
    vertices = head.vertices(jnp.zeros(head.shape.rank), head.weights(**turned))
    pixels = np.asarray(cameras[frame].project(vertices))
    background = pictures["rest"][2, 2]
    rows, columns = np.nonzero(_changed(pictures[name], np.broadcast_to(background, pictures[name].shape)))
    low, high = np.maximum(pixels.min(axis=0), 0), np.minimum(pixels.max(axis=0), (WIDTH, HEIGHT))
    assert np.allclose([columns.min(), rows.min()], low, atol=1.5)
    assert np.allclose([columns.max() + 1, rows.max() + 1], high, atol=1.5)


def test_the_animation_plays_between_its_keys(viewed):
    pictures, _ = viewed
    assert _changed(pictures["middle"], pictures["start"]).mean() > 0.05
    assert _changed(pictures["between"], pictures["middle"]).mean() > 0.01
