"""Laws of the pictures that a fit writes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_texture_map import make_fit, painted, photograph, side_lamp

import fitting.pictures as pictures
from fitting.observation import Photo


@pytest.fixture(autouse=True)
def small_squares(monkeypatch):
    monkeypatch.setattr(pictures, "_SIZES", (96, 192))


@pytest.fixture(scope="module")
def texture():
    return np.rint(255 * painted()).astype(np.uint8)


def test_render_covers_the_head_and_nothing_else(tiny, texture):
    fit = make_fit(tiny, side_lamp())
    photo = photograph(fit, texture / 255, background=(0.9, 0.1, 0.9))
    out = pictures.render_over_photo(fit, photo, texture)
    assert out.shape == photo.pixels.shape and out.dtype == np.uint8
    difference = np.abs(out.astype(int) - photo.pixels)
    # Rendered with its own texture, light and camera a head looks like its photo, up to antialiased outlines.
    assert np.median(difference) == 0 and np.mean(difference > 6) < 0.03
    blank = Photo(np.full_like(photo.pixels, 255))
    drawn = np.any(pictures.render_over_photo(fit, blank, texture) != 255, axis=2)
    head = np.any(np.abs(photo.pixels.astype(int) - photo.pixels[0, 0]) > 4, axis=2)
    assert np.mean(drawn != head) < 0.02
    points = np.asarray(fit.camera.project(jnp.asarray(fit.vertices)))
    outside = np.ones_like(drawn)
    x, y = np.clip(points.T.round().astype(int), 0, [[127], [159]])
    outside[max(y.min() - 2, 0) : y.max() + 3, max(x.min() - 2, 0) : x.max() + 3] = False
    assert not drawn[outside].any()


@pytest.mark.parametrize("zoom", [0.25, 5])
def test_render_suits_any_size_of_photo(tiny, texture, zoom):
    """The same picture whatever the photo's resolution, although the rendered square has one of few sizes."""
    fit = make_fit(tiny)
    height, width = int(160 * zoom), int(128 * zoom)
    scaled = dataclasses.replace(fit, camera=fit.camera.resize(height, width))
    big = pictures.render_over_photo(scaled, Photo(np.full((height, width, 3), 255, np.uint8)), texture)
    small = pictures.render_over_photo(fit, Photo(np.full((160, 128, 3), 255, np.uint8)), texture)
    assert big.shape == (height, width, 3)
    assert np.abs(big.mean(axis=(0, 1)) - small.mean(axis=(0, 1))).max() < 3
    centre = big[height // 2, width // 2].astype(int) - small[80, 64]
    assert np.abs(centre).max() < 12


@pytest.mark.parametrize("offset", [(5000.0, 0.0), (140.0, -120.0)], ids=["outside", "cut by the border"])
def test_pictures_of_a_head_that_leaves_the_photo(tiny, texture, offset):
    fit = make_fit(tiny, offset=offset)
    photo = Photo(np.full((160, 128, 3), 90, np.uint8))
    out = pictures.render_over_photo(fit, photo, texture)
    assert out.shape == photo.pixels.shape
    assert np.any(out != photo.pixels) == (offset[0] < 1000)
    assert pictures.overlay(fit, photo, texture).ndim == 3


def test_overlay_shows_photo_landmarks_fit_and_shape(tiny, texture):
    fit = make_fit(tiny)
    fit = dataclasses.replace(fit, detected=np.asarray(fit.landmarks2d, np.float32) + 0.5)
    sheet = pictures.overlay(fit, photograph(fit, texture / 255), texture)
    width = (sheet.shape[1] - 12) // 4
    photo, points, over, shape = (sheet[50:, 12 + k * width : 12 + k * width + 96].astype(int) for k in range(4))
    for colour in (pictures._DETECTED, pictures._FITTED):
        assert np.any(np.abs(points - colour).max(axis=2) < 40)
        assert not np.any(np.abs(photo - colour).max(axis=2) < 40)
    assert np.abs(over - photo).mean() < 6  # the fit looks like the photo
    middle = shape[30:60, 40:56]
    assert np.ptp(middle, axis=2).max() < 6 < np.ptp(photo[30:60, 40:56], axis=2).min()  # clay is grey


def test_overlay_draws_only_known_landmarks(tiny, texture):
    fit = make_fit(tiny)
    hidden = np.full((68, 2), np.nan, np.float32)
    sheet = pictures.overlay(dataclasses.replace(fit, detected=hidden), photograph(fit, texture / 255), texture)
    assert sheet.dtype == np.uint8


def test_turntable_turns_the_neutral_head(tiny, texture):
    fit = make_fit(tiny)
    fit = dataclasses.replace(fit, expression=np.asarray(tiny.weights(jawOpen=1.0)))
    neutral = dataclasses.replace(fit, expression=np.zeros_like(fit.expression))
    sheet = pictures.turntable(fit, texture)
    assert np.array_equal(sheet, pictures.turntable(neutral, texture))
    assert not np.array_equal(sheet, pictures.turntable(neutral, texture, yaws=(-60.0, -40.0, 0.0, 40.0, 60.0)))


def test_studio_light_shows_an_albedo_at_about_its_own_brightness():
    from renderer.light import sh_basis

    facing = np.asarray(sh_basis(jnp.array([0.0, 0.0, -1.0]))) @ pictures.studio_light()
    assert np.all((facing > 0.8) & (facing < 1.15))


def test_portraits_show_each_person_twice(tiny, texture, tmp_path):
    people = np.zeros((4, 6), np.float32)
    people[1, 0] = 2.5
    pictures.portraits(tiny, people, [texture] * 4, tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as picture:
        sheet = np.asarray(picture).astype(int)
    tile = 96 - 2 * (96 // 10)
    corners = [(46 + row * (96 + 12), 12 + column * (tile + 12)) for row in (0, 1) for column in range(6)]
    tiles = [sheet[y : y + 96, x : x + tile] for y, x in corners]
    assert np.array_equal(tiles[0], tiles[4]) and np.array_equal(tiles[1], tiles[5])  # the same person
    assert not np.array_equal(tiles[0], tiles[2]) and not np.array_equal(tiles[0], tiles[1])
    assert np.all(tiles[8] == pictures.PAPER)  # four people leave two places empty
