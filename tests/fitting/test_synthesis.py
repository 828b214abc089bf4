"""Synthetic photos: reproducible, plausible, and what is called their truth is what they show."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tree_equal
from PIL import Image
from scipy import stats
from scipy.ndimage import maximum_filter

from fitting.cli import main
from fitting.observation import read_landmarks, read_photo
from fitting.skin_appearance import SkinMaps, skin_maps
from fitting.synthesis import (
    Scene,
    SynthesisError,
    SynthesisSettings,
    SyntheticPhoto,
    draw_expression,
    draw_scene,
    expose,
    synthesize,
)
from morphable.colour import linear_to_srgb, srgb_to_linear
from renderer.light import sh_basis

SMALL = SynthesisSettings(size=160)  # one size for all: each is a program of its own
CLEAN = SynthesisSettings.clean(size=160)
COUNT = 300


class Drawn(NamedTuple):
    """A scene and the geometry in it."""

    scene: Scene
    vertices: np.ndarray
    landmarks: np.ndarray  # px
    pixels: np.ndarray  # of the vertices
    camera_points: np.ndarray
    normals: np.ndarray  # camera axes
    albedo: np.ndarray


@eqx.filter_jit
def geometry(model, scene):
    mesh = model.instance(scene.face.identity, scene.face.expression, scene.face.albedo)
    camera, points = scene.camera, model.landmarks(mesh.vertices)
    turned = mesh.normals @ camera.rotation.T
    return (
        mesh.vertices, camera.project(points), camera.project(mesh.vertices), camera.to_camera(mesh.vertices), turned,
        mesh.albedo,
    )  # fmt: skip


def drawn(model, scene) -> Drawn:
    return Drawn(scene, *(np.asarray(a) for a in geometry(model, scene)))


@pytest.fixture(scope="module")
def scenes(head) -> list[Scene]:
    """Many scenes of the default model."""
    return [draw_scene(head, jax.random.key(seed), SMALL) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def heads(head) -> list[Drawn]:
    """Some scenes of the default model."""
    return [drawn(head, draw_scene(head, jax.random.key(seed), CLEAN)) for seed in range(40)]


@pytest.fixture(scope="module")
def clean(head) -> SyntheticPhoto:
    return synthesize(head, 3, CLEAN)


@pytest.fixture(scope="module")
def covered(head) -> SyntheticPhoto:
    return synthesize(head, 3, dataclasses.replace(CLEAN, occluded=1.0))


# ----------------------------------------------------------------------------------------------- reproducible


def test_a_seed_is_a_photo(head):
    one, again, other = (synthesize(head, seed, SMALL) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.photo.pixels, again.photo.pixels)
    assert tree_equal(one.truth, again.truth)
    np.testing.assert_array_equal(one.marked, again.marked)
    assert np.abs(one.photo.pixels.astype(int) - other.photo.pixels).mean() > 2


def test_a_camera_changes_nothing_but_the_picture(head):
    real, perfect = (synthesize(head, 5, s) for s in (SMALL, CLEAN))
    assert tree_equal(real.truth, perfect.truth)
    np.testing.assert_array_equal(real.landmarks, perfect.landmarks)
    difference = np.abs(real.photo.pixels.astype(int) - perfect.photo.pixels)
    assert 0 < difference.mean() < 10


# --------------------------------------------------------------------------------------------- what is drawn


def test_people_are_drawn_from_the_population(scenes):
    for name in ("identity", "albedo"):
        coefficients = np.array([getattr(scene.face, name)[:6] for scene in scenes])
        assert stats.kstest(np.ravel(coefficients), "norm").pvalue > 0.01
        off_diagonal = np.cov(coefficients.T) - np.eye(coefficients.shape[1])
        assert np.abs(off_diagonal).max() < 4.5 / np.sqrt(COUNT)


def test_expressions_are_few_units_and_mostly_paired(head):
    weights = jax.jit(jax.vmap(lambda key: draw_expression(head, key)))(jax.random.split(jax.random.key(0), 1000))
    weights, names = np.asarray(weights), head.expression_names
    assert weights.min() == 0 and weights.max() <= 1
    active = (weights > 0).sum(axis=1)
    assert 2 < active.mean() < 10 and active.max() < 26
    of = lambda name: weights[:, names.index(name)]  # noqa: E731
    assert (of("mouthClose") <= of("jawOpen")).all()
    assert 0.3 < (of("jawOpen") > 0).mean() < 0.5
    for name in ("mouthSmile", "browDown", "eyeBlink"):
        left, right = of(name + "Left"), of(name + "Right")
        some = (left > 0) | (right > 0)
        ratio = np.minimum(left, right)[some] / np.maximum(left, right)[some]
        assert 0.8 < (ratio > 0.7).mean() < 1.0
        assert abs((left - right).mean()) < 0.05  # no side is preferred
    # Eyes look the same way: one out, the other in.
    np.testing.assert_allclose(of("eyeLookOutLeft"), of("eyeLookInRight"), atol=1e-6)


def test_no_expression_when_asked_for_none(head, key):
    assert not np.any(draw_scene(head, key, dataclasses.replace(SMALL, expression=0.0)).face.expression)


def test_models_with_other_units_have_expressions(tiny):
    weights = np.array([draw_expression(tiny, jax.random.key(seed)) for seed in range(12)])
    assert weights.min() == 0 and 0 < weights.max() <= 1


def test_light_is_positive_and_exposes_the_face(head, heads):
    normals = np.random.default_rng(0).normal(size=(2000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    basis = np.asarray(sh_basis(jnp.asarray(normals, jnp.float32)))
    face = np.asarray(head.masks["face"]) > 0.9
    for k in heads:
        assert (basis @ np.asarray(k.scene.face.light)).min() > 0
        colour = k.albedo * (np.asarray(sh_basis(jnp.asarray(k.normals))) @ np.asarray(k.scene.face.light))
        colour = colour[face & (facing(k) > 0.3)]
        assert 0.05 < np.median(colour) < 0.6 and (colour > 0.95).mean() < 0.01
        assert np.quantile(colour.max(axis=1), 0.02) > 0.02


def facing(k: Drawn) -> np.ndarray:
    """Cosine between each vertex's normal and the line of sight."""
    return -(k.normals * k.camera_points).sum(axis=1) / np.linalg.norm(k.camera_points, axis=1)


def test_heads_are_inside_the_picture_and_turned_as_asked(head, heads):
    above = np.asarray(head.mean)[:, 1] > float(head.landmarks(head.mean)[8, 1])
    most = np.cos(np.radians(CLEAN.yaw)) * np.cos(np.radians(CLEAN.pitch))
    for k in heads:
        assert k.pixels[above].min() > 0 and k.pixels[above].max() < CLEAN.size
        assert k.landmarks.min() > 0 and k.landmarks.max() < CLEAN.size
        assert np.ptp(k.landmarks, axis=0).max() > 0.15 * CLEAN.size
        middle = k.camera_points[above].mean(axis=0)
        forward = np.asarray(k.scene.camera.rotation)[:, 2]
        assert forward @ -middle / np.linalg.norm(middle) > most - 0.03


def test_the_principal_point_moves_only_when_asked(head, scenes):
    assert all((np.asarray(scene.centre) == CLEAN.size / 2).all() for scene in scenes)
    moved = draw_scene(head, jax.random.key(0), dataclasses.replace(SMALL, off_centre=0.5))
    assert 1 < np.abs(moved.centre - CLEAN.size / 2).max() <= CLEAN.size / 2
    lens = np.exp([scene.face.log_focal for scene in scenes]) * 36 / SMALL.size
    assert 23.999 < lens.min() < 27 and 180 < lens.max() < 200.001


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"yaw": 120.0},
        {"lens_mm": (85.0, 24.0)},
        {"occluded": 2.0},
        {"detail": -1.0},
        {"noise": float("nan")},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SynthesisError, match=f"{next(iter(wrong))}: got .*expected"):
        SynthesisSettings(**wrong)


# ------------------------------------------------------------------------------------------ the truth is true


def test_landmarks_are_the_models(head, clean):
    again = drawn(head, clean.scene)
    np.testing.assert_allclose(clean.vertices, again.vertices, atol=1e-3)
    np.testing.assert_allclose(clean.landmarks, again.landmarks, atol=0.01)
    np.testing.assert_allclose(clean.camera.focal, np.exp(clean.truth.log_focal), rtol=1e-6)


def test_the_photo_shows_the_truth(head, clean):
    # Without the renderer: vertices that face the camera have their albedo times the light's shading.
    k = drawn(head, clean.scene)
    shading = np.asarray(sh_basis(jnp.asarray(k.normals))) @ np.asarray(clean.truth.light)
    expected = np.asarray(linear_to_srgb(jnp.clip(jnp.asarray(k.albedo * shading), 0, 1)))
    plain = np.asarray(head.masks["face"]) > 0.9
    for name in ("brows", "lips", "lids", "beard", "interior"):  # changes of colour within a pixel
        plain &= np.asarray(head.masks[name]) < 0.1
    column, row = np.floor(k.pixels).astype(int).T
    chosen = np.flatnonzero(plain & (facing(k) > 0.5))
    error = np.abs(clean.photo.srgb[row[chosen], column[chosen]] - expected[chosen]).max(axis=1)
    assert len(chosen) > 1000 and np.median(error) < 0.01 and np.quantile(error, 0.9) < 0.05
    background = np.asarray(linear_to_srgb(clean.scene.background.picture(CLEAN.size, CLEAN.size)))
    away = np.asarray(maximum_filter(clean.head_mask, 3)) == 0  # antialiased outlines reach one pixel further
    assert np.abs(clean.photo.srgb - background).max(axis=2)[away].max() < 1.01 / 255


def test_masks_agree(clean, covered):
    np.testing.assert_array_equal(clean.face_mask, covered.face_mask)
    assert not (clean.face_mask & ~clean.head_mask).any()
    assert 0.1 < clean.face_mask.sum() / clean.head_mask.sum() < 0.9
    assert clean.occluder == "" and not clean.occluder_mask.any()
    assert covered.occluder != "" and (covered.occluder_mask & covered.face_mask).any()
    changed = (clean.photo.pixels != covered.photo.pixels).any(axis=2)
    assert changed[covered.occluder_mask].mean() > 0.98
    assert changed[~covered.occluder_mask].mean() < 0.1  # soft edges
    column, row = np.floor(clean.landmarks[27:68]).astype(int).T
    assert clean.face_mask[row, column].mean() > 0.9  # nose, eyes and mouth are face


def test_marked_are_the_visible_and_the_outline(head, clean, covered):
    assert clean.visible[27:48].sum() > 12
    inner = slice(17, 68)
    assert (np.isfinite(clean.marked[inner]).all(axis=1) == clean.visible[inner]).all()
    np.testing.assert_array_equal(clean.marked[clean.visible], clean.landmarks[clean.visible])
    hidden_jaw = clean.hidden[:17]
    assert hidden_jaw.any()  # of this photo, which is turned
    np.testing.assert_array_equal(clean.marked[:17][hidden_jaw], clean.outline[hidden_jaw])
    # Points moved to the outline lie at the face's border: background within a few pixels.
    for x, y in clean.outline[hidden_jaw]:
        around = clean.face_mask[max(int(y) - 6, 0) : int(y) + 7, max(int(x) - 6, 0) : int(x) + 7]
        assert not around.all()
    under = covered.occluder_mask[tuple(np.floor(covered.landmarks).astype(int).T[::-1])]
    assert under.any() and not covered.visible[under].any()
    assert np.isnan(covered.marked[inner][under[inner]]).all()


def test_the_true_landmarks_are_those_that_a_fit_reports(head, clean):
    vertices = jnp.asarray(clean.vertices)
    np.testing.assert_allclose(clean.landmarks3d, head.landmarks3d(vertices), atol=1e-3)
    np.testing.assert_allclose(clean.landmarks2d, clean.camera.project(head.landmarks3d(vertices)), atol=1e-2)
    np.testing.assert_allclose(clean.landmarks2d[17:], clean.landmarks[17:], atol=1e-2)
    assert np.linalg.norm(clean.landmarks3d - head.landmarks(vertices), axis=1)[3:6].min() > 8  # mm: the jaw's angle


def test_noise_of_landmarks_is_what_was_asked_for(clean):
    known = np.isfinite(clean.marked).all(axis=1)
    errors = [clean.as_face(2.0, seed).landmarks[known] - clean.marked[known] for seed in range(60)]
    assert abs(np.std(errors) - 2.0) < 0.1 and abs(np.mean(errors)) < 0.1
    np.testing.assert_array_equal(clean.as_face().landmarks, clean.marked)
    np.testing.assert_array_equal(clean.as_face(1.0, 4).landmarks, clean.as_face(1.0, 4).landmarks)


def test_sensor_noise_and_blur_have_their_deviations(head, key):
    scene = draw_scene(head, key, SMALL)
    sharp = eqx.tree_at(lambda s: (s.noise, s.blur_px), scene, (jnp.array(0.02), jnp.array(0.0)))
    grey = jnp.full((160, 160, 3), 0.3)
    recorded = np.asarray(srgb_to_linear(expose(sharp, grey)))
    assert abs(recorded.mean() - 0.3) < 1e-3
    assert abs(recorded.std() / (0.02 * np.sqrt(0.35)) - 1) < 0.03
    soft = eqx.tree_at(lambda s: (s.noise, s.blur_px), scene, (jnp.array(0.0), jnp.array(1.5)))
    dot = jnp.zeros((160, 160, 3)).at[80, 70].set(1.0)
    spread = np.asarray(srgb_to_linear(expose(soft, dot)))[..., 0].astype(float)
    assert abs(spread.sum() - 1) < 1e-3
    offset = np.arange(160)
    assert abs((spread.sum(axis=0) * (offset - 70) ** 2).sum() - 1.5**2) < 0.05
    assert abs((spread.sum(axis=1) * (offset - 80) ** 2).sum() - 1.5**2) < 0.05


# ----------------------------------------------------------------------------------------------------- detail


DETAILED = dataclasses.replace(CLEAN, detail=1.0)


@pytest.fixture(scope="module")
def maps(head) -> SkinMaps:
    return skin_maps(head, 128)  # smaller ones than usual


@pytest.fixture(scope="module")
def detailed(head, maps) -> SyntheticPhoto:
    return synthesize(head, 3, DETAILED, maps=maps)


def test_detail_changes_the_skin_and_the_light_on_it_alone(head, maps, clean, detailed):
    dark = dataclasses.replace(detailed.truth, light=clean.truth.light)
    assert tree_equal(dark, clean.truth)
    # As many lamps from the same sides; less light from everywhere.
    contrast = [
        np.linalg.norm(np.mean(f.light[1:4], axis=1)) / np.mean(f.light[0]) for f in (detailed.truth, clean.truth)
    ]
    assert contrast[0] > 1.1 * contrast[1]
    np.testing.assert_array_equal(detailed.landmarks, clean.landmarks)
    np.testing.assert_array_equal(detailed.face_mask, clean.face_mask)
    away = np.asarray(maximum_filter(clean.head_mask, 3)) == 0
    np.testing.assert_array_equal(detailed.photo.pixels[away], clean.photo.pixels[away])
    change = np.abs(detailed.photo.srgb - clean.photo.srgb).mean(axis=2)
    assert 0.005 < change[clean.face_mask].mean() < 0.2
    assert clean.scene.relief is None and clean.relief == {}
    np.testing.assert_array_equal(synthesize(head, 3, DETAILED, maps=maps).photo.pixels, detailed.photo.pixels)


def test_detail_has_its_truth(detailed):
    truth, relief = detailed.relief, detailed.scene.relief
    side = relief.static.shape[0] // 2
    assert {name: values.shape for name, values in truth.items()} == dict.fromkeys(
        ("displacement", "relief_static", "wrinkle_mask"), (side, side)
    )
    full = np.asarray(relief.displacement(detailed.truth.expression))
    np.testing.assert_allclose(truth["displacement"][40, 32], full[80:82, 64:66].mean(), atol=2e-3)
    moved = np.abs(truth["displacement"].astype(float) - truth["relief_static"])
    assert moved[~truth["wrinkle_mask"]].max() < 0.05


def test_strength_is_a_factor(head, maps, key):
    one, half = (draw_scene(head, key, dataclasses.replace(CLEAN, detail=d), maps).relief for d in (1.0, 0.5))
    np.testing.assert_allclose(half.static, 0.5 * np.asarray(one.static), atol=1e-6)
    np.testing.assert_allclose(half.wrinkles, 0.5 * np.asarray(one.wrinkles), atol=1e-6)


def test_a_lamp_is_part_of_the_light(head, maps):
    lamps = [draw_scene(head, jax.random.key(seed), DETAILED, maps) for seed in range(24)]
    black = [not np.any(scene.lamp.colour) for scene in lamps]
    assert 0.05 < np.mean(black) < 0.6
    normals = np.random.default_rng(0).normal(size=(500, 3))
    basis = np.asarray(sh_basis(jnp.asarray(normals / np.linalg.norm(normals, axis=1, keepdims=True), jnp.float32)))
    for scene in lamps:
        rest = basis @ np.asarray(scene.face.light - scene.lamp.harmonics())
        assert rest.min() > 0  # what is left is a light, too
        assert abs(np.linalg.norm(scene.lamp.direction) - 1) < 1e-5


def test_a_person_keeps_the_skin(head, maps, detailed):
    other = synthesize(head, 4, DETAILED, detailed.scene, maps)
    assert tree_equal(other.scene.skin, detailed.scene.skin)
    assert np.abs(other.relief["displacement"] - detailed.relief["displacement"]).max() > 0.01  # another expression
    np.testing.assert_array_equal(other.relief["relief_static"], detailed.relief["relief_static"])


# ---------------------------------------------------------------------------------------------------- command


def facefit(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    code = end.value.code
    assert isinstance(code, int)
    return code


def test_the_command_writes_photos_and_truth(head, tmp_path, capsys):
    out = tmp_path / "out"
    ran = facefit("synthesize", "-o", out, "--count", 2, "--seed", 5, "--size", 160, "--clean")
    assert ran == 0 and "2 photo(s)" in capsys.readouterr().out
    names = [f"photo_{k:04d}{end}" for k in (0, 1) for end in (".png", ".npz", ".landmarks.npy")]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "synthesize.png"])
    expected = synthesize(head, 6, CLEAN)
    photo = read_photo(out / "photo_0001.png")
    np.testing.assert_array_equal(photo.pixels, expected.photo.pixels)
    np.testing.assert_array_equal(read_landmarks(out / "photo_0001.landmarks.npy", photo), expected.marked)
    with np.load(out / "photo_0001.npz") as truth:
        np.testing.assert_array_equal(truth["identity"], expected.truth.identity)
        np.testing.assert_array_equal(truth["face_mask"], expected.face_mask)
        camera = truth["vertices"] @ truth["R"].T + truth["t"]
        pixels = camera @ truth["K"].T
        np.testing.assert_allclose(
            pixels[:, :2] / pixels[:, 2:], expected.camera.project(jnp.asarray(expected.vertices)), atol=1e-2
        )
    assert Image.open(out / "synthesize.png").size == (2 * 262 + 6, 268)


@pytest.mark.parametrize("wrong", [("--count", 0), ("--size", 4), ("--seed", -1), ("--yaw", 100)])
def test_the_command_refuses(tmp_path, capsys, wrong):
    assert facefit("synthesize", "-o", tmp_path / "out", *wrong) == 2
    assert "expected" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_photos_of_one_person_have_one_head_and_one_lens(head):
    settings = SynthesisSettings(size=128, expression=0.5)
    first = synthesize(head, 0, settings)
    second = synthesize(head, 1, settings, person=first.scene)
    np.testing.assert_array_equal(second.truth.identity, first.truth.identity)
    np.testing.assert_array_equal(second.truth.albedo, first.truth.albedo)
    np.testing.assert_allclose(second.camera.focal, first.camera.focal)
    assert np.abs(np.asarray(second.truth.expression - first.truth.expression)).max() > 0.05
    assert second.visible.sum() > 30  # though its pose was drawn for another lens
