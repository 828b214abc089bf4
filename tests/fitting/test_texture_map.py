"""Laws of the photo's unwrapping into a colour map, on a synthetic head photographed by our own renderer."""

import dataclasses

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

import fitting.texture_map as texture_map
from fitting.fit import Fit, Settings
from fitting.observation import Photo
from fitting.texture_map import face_texture, model_texture, person_texture
from morphable.colour import linear_to_srgb, srgb_to_linear
from renderer.camera import Pinhole
from renderer.light import ambient_white, sh_basis
from renderer.render import render

SIZE = 128


@pytest.fixture(autouse=True)
def small_crop(monkeypatch):
    monkeypatch.setattr(texture_map, "_CROP", SIZE)


def make_fit(model, light=None, yaw=0.0, offset=(0.0, 0.0)) -> Fit:
    """A fit that is exactly right about a head 700 mm in front of a camera of 160 x 128 pixels."""
    rotation = jaxlie.SO3.from_x_radians(jnp.pi) @ jaxlie.SO3.from_y_radians(jnp.deg2rad(yaw))
    camera = Pinhole(
        focal=jnp.array([420.0, 420.0]),
        centre=jnp.array([64.0, 80.0]),
        pose=jaxlie.SE3.from_rotation_and_translation(rotation, jnp.array([*offset, 700.0])),
        height=160,
        width=128,
    )
    units = len(model.expression_names)
    return Fit(
        model=model,
        camera=camera,
        identity=np.zeros(model.shape.rank, np.float32),
        expression=np.zeros(units, np.float32),
        albedo=np.zeros(model.albedo.rank, np.float32),
        light=np.asarray(ambient_white() if light is None else light, np.float32),
        detected=np.zeros((68, 2), np.float32),
        source="test",
        result="converged",
        reason="",
        energies={"landmarks": 1.0},
        stages=[{"name": "pose", "steps": 3}],
        timings={"solve": 0.1},
        settings=Settings(),
        hessian=np.zeros((1, 1), np.float32),
    )


def side_lamp() -> np.ndarray:
    towards = sh_basis(jnp.array([-0.8, 0.0, -0.6]))
    lamp = np.asarray(towards) / np.repeat([1.0, 2 / 3, 1 / 4], [1, 3, 5])
    return np.asarray(0.5 * ambient_white()) + 0.7 * np.repeat(
        (lamp / (np.asarray(towards) @ lamp))[:, None], 3, axis=1
    )


def painted(size: int = SIZE) -> np.ndarray:
    """A smooth, asymmetric skin colour (sRGB-encoded) close to the tiny model's."""
    v, u = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    wave = 0.06 * np.sin(5 * u + 1) + 0.05 * np.cos(7 * v)
    return np.stack([0.62 + wave, 0.55 + wave, 0.5 + 0.5 * wave], axis=-1)


def photograph(fit: Fit, texture: np.ndarray, background=(0.2, 0.3, 0.4)) -> Photo:
    picture = render(fit.mesh, fit.camera, jnp.asarray(fit.light), srgb_to_linear(jnp.asarray(texture)))
    behind = jnp.broadcast_to(jnp.asarray(background), picture.colour.shape)
    encoded = np.asarray(linear_to_srgb(jnp.clip(picture.over(behind), 0, 1)))
    return Photo(np.rint(255 * encoded).astype(np.uint8))


def well_seen(fit: Fit, photo: Photo) -> np.ndarray:
    """Texels that the unwrapping trusts nearly fully."""
    layout = texture_map.texture_layout(fit, SIZE)
    return texture_map.observe_texels(fit, photo, layout)[1] > 0.9


@pytest.mark.parametrize("light", [None, side_lamp()], ids=["ambient", "side lamp"])
def test_a_photographed_texture_comes_back_without_its_light(tiny, light):
    fit = make_fit(tiny, light)
    # The model's albedo and what it does not know: freckles and a change over the face.
    v, u = np.meshgrid(np.linspace(0, 1, SIZE), np.linspace(0, 1, SIZE), indexing="ij")
    detail = 1.0 + 0.06 * np.sin(40 * u) * np.sin(40 * v) + 0.05 * np.sin(3 * u)
    truth = model_texture(tiny, fit.albedo, SIZE) / 255 * detail[..., None]
    photo = photograph(fit, truth)
    seen = well_seen(fit, photo)
    assert seen.mean() > 0.2
    got = face_texture(fit, photo, SIZE) / 255
    error = np.abs(got - truth)[seen]
    assert np.percentile(error, 95) < 0.025


def test_background_never_enters(tiny):
    fit = make_fit(tiny, yaw=35.0)
    plain = face_texture(fit, photograph(fit, painted(), (0.3, 0.3, 0.3)), SIZE).astype(int)
    magenta = face_texture(fit, photograph(fit, painted(), (1.0, 0.0, 1.0)), SIZE).astype(int)
    assert np.abs(plain - magenta).max() <= 3


def test_masked_pixels_never_enter(tiny):
    fit = make_fit(tiny)
    photo = photograph(fit, painted())
    mask = np.ones(photo.pixels.shape[:2], bool)
    mask[:, 74:] = False
    spoilt = photo.pixels.copy()
    spoilt[~mask] = (0, 255, 0)
    expected = face_texture(fit, photo, SIZE, mask).astype(int)
    got = face_texture(fit, Photo(spoilt), SIZE, mask).astype(int)
    assert np.abs(got - expected).max() <= 3
    unmasked = face_texture(fit, Photo(spoilt), SIZE).astype(int)
    assert np.abs(unmasked - expected).max() > 30


def test_what_one_side_hides_is_taken_from_the_other(tiny):
    model = tiny
    fit = make_fit(model)
    truth = painted()
    truth = (truth + truth[:, ::-1]) / 2  # a symmetric face
    mask = np.ones((160, 128), bool)
    mask[:, 66:] = False
    got = face_texture(fit, photograph(fit, truth), SIZE, mask) / 255
    seen = well_seen(fit, photograph(fit, truth))
    # Compared on the hidden half only, where the mirrored texel was well seen.
    error = np.abs(got - truth)[seen & seen[:, ::-1]]
    assert np.percentile(error, 90) < 0.03


def test_outside_the_photo_the_map_is_the_models_albedo(tiny):
    fit = make_fit(tiny, offset=(5000.0, 0.0))
    photo = Photo(np.full((160, 128, 3), 200, np.uint8))
    layout = texture_map.texture_layout(fit, SIZE)
    got = face_texture(fit, photo, SIZE) / 255
    expected = np.asarray(linear_to_srgb(jnp.asarray(layout.albedo)))
    assert np.abs(got - expected)[layout.valid].max() < 0.01


def test_gloss_and_cast_shadow_do_not_become_white_and_black_skin(tiny):
    fit = make_fit(tiny)
    truth = painted()
    photo = photograph(fit, truth)
    spoilt = photo.pixels.copy()
    spoilt[60:72, 50:60] = 255
    spoilt[84:120, 64:] //= 4
    got = face_texture(fit, Photo(spoilt), SIZE) / 255
    assert got.max() < 0.95
    lit = face_texture(fit, photo, SIZE) / 255
    seen = well_seen(fit, photo)
    raw = np.abs(spoilt.astype(float) - photo.pixels).max() / 255
    assert np.abs(got - lit)[seen].mean() < 0.25 * raw


def test_skin_brighter_than_the_fits_light_explains_keeps_its_hue(tiny):
    """Were each channel cut off at 1 by itself, red skin would come out yellow, then white."""
    fit = make_fit(tiny)
    lit = dataclasses.replace(fit, light=np.asarray(1.2 * fit.light))
    # Fitted a quarter as bright as it was: the map has to be four times as bright.
    dim = dataclasses.replace(fit, light=np.asarray(0.3 * fit.light))
    truth = painted()
    photo = photograph(lit, truth)
    seen = well_seen(dim, photo)
    assert seen.mean() > 0.2
    got, true = (
        np.asarray(srgb_to_linear(jnp.asarray(t)))[seen] for t in (face_texture(dim, photo, SIZE) / 255, truth)
    )
    assert np.median(got[:, 0]) > 1.3 * np.median(true[:, 0])
    assert np.abs(got / got[:, :1] - true / true[:, :1]).mean() < 0.04


def test_hair_beside_the_face_is_neither_taken_nor_mirrored(tiny):
    """A dark strand just inside the head's outline, redder than most things and so not told apart by its hue."""
    fit = make_fit(tiny)
    truth = painted()
    truth = (truth + truth[:, ::-1]) / 2
    photo = photograph(fit, truth)
    spoilt = photo.pixels.copy()
    background = np.asarray(photograph(fit, truth, (1.0, 0.0, 1.0)).pixels)[100] == [255, 0, 255]
    inside = np.flatnonzero(~background.all(axis=1))
    strand = slice(inside[0], inside[0] + 8)
    spoilt[92:108, strand] = (38, 26, 22)
    clean = face_texture(fit, photo, SIZE).astype(int)
    got = face_texture(fit, Photo(spoilt), SIZE).astype(int)
    assert np.abs(spoilt.astype(int) - photo.pixels)[100, strand].mean() > 60
    # The strand covers about a hundred texels, and as many lie opposite.
    assert np.sum(np.abs(got - clean).max(axis=2) > 20) < 20


def test_texture_follows_the_expression_of_the_photo(tiny):
    fit = make_fit(tiny)
    smiling = dataclasses.replace(fit, expression=np.asarray(tiny.weights(mouthSmileLeft=0.8)))
    stripes = 0.05 * np.sin(np.linspace(0, 60, SIZE))
    truth = painted() + stripes[:, None, None]
    photo = photograph(smiling, truth)
    seen = well_seen(smiling, photo)
    right = np.abs(face_texture(smiling, photo, SIZE) / 255 - truth)[seen].mean()
    wrong = np.abs(face_texture(fit, photo, SIZE) / 255 - truth)[seen].mean()
    assert right < 0.5 * wrong


def test_model_texture_shows_the_models_albedo_at_each_vertex(tiny):
    coefficients = np.array([1.0, -1.0, 0.5, 0.0], np.float32)
    texture = model_texture(tiny, coefficients, SIZE) / 255
    inner = np.all((np.asarray(tiny.uv) > 0.05) & (np.asarray(tiny.uv) < 0.95), axis=1)
    column, row = (np.asarray(tiny.uv)[inner] * SIZE).astype(int).T
    expected = np.asarray(linear_to_srgb(tiny.albedo_linear(jnp.asarray(coefficients))))[inner]
    assert np.abs(texture[row, column] - expected).max() < 0.02


def several(model, light_of_third=None) -> tuple[list[Fit], list[Photo], np.ndarray]:
    """Three photos of one painted head, from the front and both sides, and what is painted on it."""
    v, u = np.meshgrid(np.linspace(0, 1, SIZE), np.linspace(0, 1, SIZE), indexing="ij")
    detail = 1.0 + 0.06 * np.sin(40 * u) * np.sin(40 * v) + 0.08 * np.sin(3 * u)
    truth = model_texture(model, np.zeros(model.albedo.rank, np.float32), SIZE) / 255 * detail[..., None]
    fits = [make_fit(model, side_lamp(), 0.0), make_fit(model, None, 40.0), make_fit(model, None, -40.0)]
    return fits, [photograph(fit, truth) for fit in fits], truth


def test_several_photos_show_more_of_the_head_than_one(tiny):
    fits, photos, truth = several(tiny)
    error = lambda texture: np.abs(texture / 255 - truth)[texture_map.texture_layout(fits[0], SIZE).valid]  # noqa: E731
    one = [error(face_texture(f, p, SIZE)).mean() for f, p in zip(fits, photos, strict=True)]
    assert error(person_texture(fits, photos, SIZE)).mean() < 0.8 * min(one)


def test_the_order_of_photos_does_not_matter_and_they_may_be_read_late(tiny):
    fits, photos, _ = several(tiny)
    there = person_texture(fits, photos, SIZE).astype(int)
    back = person_texture(fits[::-1], [lambda p=p: p for p in photos[::-1]], SIZE).astype(int)
    assert np.abs(there - back).max() <= 1


def test_a_photo_fitted_too_dark_leaves_no_seam(tiny):
    """Its light is off by a third, more on one side: where it stands alone its colours still meet the others'."""
    fits, photos, truth = several(tiny)
    right = person_texture(fits, photos, SIZE).astype(int)
    wrong = np.asarray(fits[1].light) * 0.7 + 0.1 * side_lamp()
    fits[1] = dataclasses.replace(fits[1], light=wrong.astype(np.float32))
    got = person_texture(fits, photos, SIZE).astype(int)
    steps = [np.abs(np.diff(texture.mean(axis=2) - 255 * truth.mean(axis=2), axis=1)) for texture in (right, got)]
    assert np.percentile(steps[1], 99) < 1.5 * np.percentile(steps[0], 99) + 0.5


def test_what_one_of_three_photos_shows_is_not_skin(tiny):
    fits, photos, _ = several(tiny)
    clean = person_texture(fits, photos, SIZE).astype(int)
    spoilt = photos[0].pixels.copy()
    spoilt[70:90, 56:72] //= 3
    got = person_texture(fits, [Photo(spoilt), *photos[1:]], SIZE).astype(int)
    alone = face_texture(fits[0], Photo(spoilt), SIZE).astype(int) - face_texture(fits[0], photos[0], SIZE)
    assert np.abs(got - clean).max(axis=2).mean() < 0.3 * np.abs(alone).max(axis=2).mean()


def test_of_many_photos_those_that_show_most_are_read(tiny, monkeypatch):
    fits, photos, _ = several(tiny)
    monkeypatch.setattr(texture_map, "_VIEWS", 3)
    far = dataclasses.replace(fits[0], camera=dataclasses.replace(fits[0].camera, focal=jnp.array([60.0, 60.0])))
    assert sorted(texture_map.best_views([fits[0], far, fits[1], far, fits[2]])) == [0, 2, 4]


def test_photos_and_fits_must_match(tiny):
    fits, photos, _ = several(tiny)
    with pytest.raises(ValueError, match="3 fits, 2 photos"):
        person_texture(fits, photos[:2], SIZE)
