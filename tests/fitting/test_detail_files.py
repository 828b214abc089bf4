"""Detail on disk: what is written is what is read back, and the maps blend to what the heights say."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fitting.detail_files import DetailError, detail_maps, read_detail, write_detail, write_npz
from fitting.export import write_head_glb
from fitting.glb_reader import read_glb
from fitting.normal_map import decoded, encoded, tangent_slopes, texel_surface
from morphable.detail import LIMIT_MM, Detail

SIZE = 64
IDENTITY = np.zeros(6, np.float32)


@pytest.fixture(scope="module")
def detail(tiny) -> Detail:
    """A static wave, and two groups of wrinkles: one driven by two units."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    maps = [
        1.5 * np.sin(12 * rows) * np.cos(9 * columns),
        0.8 * np.sin(30 * rows) * (rows < 0.4),
        -0.6 * np.cos(25 * columns) * (rows > 0.6),
    ]
    drivers = np.zeros((2, 4), np.float32)
    drivers[0, 2], drivers[1, 0], drivers[1, 2] = 1.0, 0.7, 0.5
    f32 = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    expression = f32([0.5, 0.0, 0.2, 0.0])
    return Detail(f32(maps[0]), f32(np.stack(maps[1:])), f32(drivers), expression, "optimise", ("brow", "cheek-1"))


@pytest.fixture(scope="module")
def texture():
    pixels = np.full((SIZE, SIZE, 3), 170, np.uint8)
    pixels[30:33, 20:40] = 120
    return pixels


@pytest.fixture(scope="module")
def written(tiny, detail, texture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("detail")
    return folder, write_detail(folder, tiny, IDENTITY, detail, texture, settings={"steps": 3})


def test_detail_read_back_is_the_same(written, tiny, detail):
    folder, _ = written
    read = read_detail(folder / "detail.npz", tiny)
    for name in ("displacement", "wrinkles", "drivers", "expression", "method", "names"):
        assert np.array_equal(getattr(read, name), getattr(detail, name)), name
    unnamed = Detail(detail.displacement, detail.wrinkles[:0], detail.drivers[:0], detail.expression)
    write_npz(folder / "bare.npz", unnamed, tiny)
    assert read_detail(folder / "bare.npz", tiny).wrinkles.shape == (0, SIZE, SIZE)


def test_the_displacement_picture_holds_millimetres_as_the_record_says(written, detail):
    folder, _ = written
    record = json.loads((folder / "detail.json").read_text())
    said = record["displacement.png"]
    with Image.open(folder / "displacement.png") as picture:
        grey = np.asarray(picture).astype(float)
    assert np.abs((grey - said["mid_grey"]) * said["mm_per_unit"] - detail.displacement).max() < 2e-4
    assert record["method"] == "optimise" and record["settings"] == {"steps": 3} and record["model"]["name"] == "tiny"


def test_the_pictures_are_the_maps_and_name_their_blendshapes(written):
    folder, maps = written
    with Image.open(folder / "normal_map.png") as picture:
        assert np.array_equal(np.asarray(picture), maps.normal_map) and picture.size == (SIZE, SIZE)
    said = json.loads((folder / "wrinkles.json").read_text())["wrinkle_maps"]
    assert [w["blendshapes"] for w in said] == [
        {"mouthSmileLeft": 1.0},
        {"jawOpen": pytest.approx(0.7), "mouthSmileLeft": 0.5},
    ]
    for wrinkle, entry in zip(maps.wrinkle_maps, said, strict=True):
        with Image.open(folder / entry["file"]) as picture:
            assert np.array_equal(np.asarray(picture), wrinkle.normal_map) and picture.size == (SIZE, SIZE)


def test_static_and_wrinkle_maps_blend_to_what_the_displaced_surface_has(tiny, detail, texture):
    maps = detail_maps(tiny, IDENTITY, detail, np.full_like(texture, 170))
    surface = texel_surface(np.asarray(tiny.mean), np.asarray(tiny.triangles), np.asarray(tiny.uv), SIZE)
    for expression in ([0.0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0.4, 0, 0.6, 0]):
        weights = jnp.asarray(expression, jnp.float32)
        share = np.asarray(detail.activations(weights))
        slopes = decoded(maps.normal_map)
        for amount, wrinkle in zip(share, maps.wrinkle_maps, strict=True):
            slopes = slopes + amount * decoded(wrinkle.normal_map)
        truth = encoded(tangent_slopes(np.asarray(detail.at(weights)), surface)).astype(int)
        off = np.abs(encoded(slopes).astype(int) - truth).max(axis=2)
        assert np.percentile(off, 99) <= 3  # 1.4 degrees
        assert np.abs(encoded(decoded(maps.normal_map)).astype(int) - truth).max() > 10 or not share.any()


def test_the_dense_mesh_keeps_the_models_vertices_and_parts(written, tiny, detail):
    folder, _ = written
    lines = (folder / "detail.obj").read_text().splitlines()
    vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    faces = [line for line in lines if line.startswith("f ")]
    assert len(faces) == 4 * len(tiny.triangles)
    coarse = np.asarray(tiny.vertices(jnp.asarray(IDENTITY), detail.expression))
    moved = np.linalg.norm(vertices[: len(coarse)] - coarse, axis=1)
    assert 0.5 < moved.max() < 1.5 + 1e-3


def test_the_head_file_names_its_wrinkle_maps_and_what_drives_them(written, tiny, texture, tmp_path):
    import pygltflib

    _, maps = written
    path = tmp_path / "head.glb"
    write_head_glb(path, tiny, IDENTITY, None, texture, normal_map=maps.normal_map, wrinkle_maps=maps.wrinkle_maps)
    gltf = pygltflib.GLTF2().load_binary(str(path))
    (skin,) = (material for material in gltf.materials if material.name == "skin")
    said = skin.extras["facefit"]["wrinkle_maps"]
    images = read_glb(path).images
    assert np.array_equal(images["normal"], maps.normal_map)
    for entry, wrinkle in zip(said, maps.wrinkle_maps, strict=True):
        name = gltf.images[gltf.textures[entry["texture"]].source].name
        assert np.array_equal(images[name], wrinkle.normal_map)
        assert entry["blendshapes"] == wrinkle.blendshapes and set(entry["blendshapes"]) <= set(tiny.expression_names)
    with pytest.raises(ValueError, match="'frown'"):
        strange = maps.wrinkle_maps[0]._replace(blendshapes={"frown": 1.0})
        write_head_glb(path, tiny, IDENTITY, wrinkle_maps=(strange,))


def _changed(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= changes
    out = path.with_name("changed.npz")
    np.savez(out, **{name: values for name, values in arrays.items() if values is not None})
    return out


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"drivers": None}, "drivers missing"),
        ({"displacement": np.zeros((SIZE, SIZE + 1), np.float32)}, "displacement is float32"),
        ({"displacement": np.float32(0)}, r"shape \(\), expected a square map"),
        ({"displacement": np.zeros((SIZE, SIZE), int)}, "displacement is int64"),
        ({"wrinkles": np.zeros((1, SIZE, SIZE), np.float32)}, "wrinkles is float32"),
        ({"expression": np.array([0, np.nan, 0, 0], np.float32)}, "expression has 1 values that are not finite"),
        ({"displacement": np.full((SIZE, SIZE), 2 * LIMIT_MM, np.float32)}, "in millimetres"),
        ({"drivers": -np.ones((2, 4), np.float32)}, "none below 0"),
        ({"names": np.array(["../brow", "cheek"])}, "letters, digits"),
        ({"names": np.array(["brow", "brow"])}, "different names"),
        ({"units": np.array(["a", "b", "c", "d"])}, r"made for 4 expression units \(a, b, c"),
        ({"manifest": np.array("{")}, "manifest is damaged"),
        ({"manifest": np.array("[]")}, "manifest is damaged"),
        ({"manifest": np.array('{"format": "x", "version": 1, "model": {}, "method": ""}')}, "got format 'x'"),
        ({"manifest": np.array('{"format": "facefit-detail", "version": 9, "model": {}}')}, "version 9"),
    ],
)
def test_what_is_no_detail_is_refused(written, tiny, changes, match):
    with pytest.raises(DetailError, match=match):
        read_detail(_changed(written[0] / "detail.npz", **changes), tiny)


def test_another_models_detail_and_no_file_are_refused(written, tiny, tmp_path):
    path = written[0] / "detail.npz"
    other = dataclasses.replace(tiny, provenance=tiny.provenance._replace(name="other", sha256="abc"))
    with pytest.raises(DetailError, match="made for the model tiny"):
        read_detail(path, other)
    with pytest.raises(DetailError):
        read_detail(tmp_path / "none.npz", tiny)
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:500])
    with pytest.raises(DetailError, match="cut.npz"):
        read_detail(tmp_path / "cut.npz", tiny)


def test_names_that_are_no_file_names_are_not_written(tiny, detail, texture, tmp_path):
    strange = Detail(detail.displacement, detail.wrinkles, detail.drivers, detail.expression, "", ("a/b", "c"))
    with pytest.raises(DetailError, match="a/b"):
        write_detail(tmp_path, tiny, IDENTITY, strange, texture)
    assert not list(tmp_path.iterdir())
