"""Portraits: what is called their truth is what they show, what people wear sits on the head, faults have their sizes.

Compiling is nearly all of this file: one set of portraits, small ones, serves it all.
"""

import dataclasses
import functools
import io
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly, tree_equal
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from fitting.dense_landmarks import dense_landmarks
from fitting.portraits import stream
from fitting.portraits.backdrop import Pictures, before_the_face, clutter
from fitting.portraits.faults import blurred, jpeg, record
from fitting.portraits.portrait import CROP_FACTOR, Dressed, Portrait, PortraitSettings, Shot, draw_portrait
from fitting.portraits.stream import Examples, Order, read_chunk, render_ahead, render_chunk
from fitting.portraits.studio import SKULL, Studio, lit_vertices, studio
from fitting.portraits.wardrobe import (
    WARDROBE_TRIANGLES,
    Build,
    body,
    draw_build,
    dye,
    grid_triangles,
    hair,
    hat,
    natural_hair_colour,
    smooth_noise,
    spectacles,
    with_build,
)
from morphable.colour import linear_to_srgb

SEED, COUNT, SIZE = 0, 40, 64
SETTINGS = PortraitSettings(size=SIZE, samples=1)  # one for all: others are other programs
NARROW = PortraitSettings(yaw=30.0, pitch=20.0, roll=15.0, lens_mm=(20.0, 60.0), shift=0.0, zoom=0.0)
CLOSING = ("mouthClose", "jawOpen")  # the first corrects the second and is limited by it
FACING = np.diag([1.0, -1.0, -1.0])  # a head that looks into the camera


class Taken(NamedTuple):
    """A portrait, and what became of it on the way to a crop."""

    portrait: Portrait
    dressed: Dressed
    shot: Shot
    example: Examples  # of NumPy's arrays
    rotation: np.ndarray  # camera from head
    translation: np.ndarray
    place: np.ndarray  # what stands behind; NaN for what `clutter` invents

    @property
    def yaw(self) -> float:
        """Degrees from the line of sight."""
        return Rotation.from_matrix(FACING @ self.example.rotation).as_euler("ZXY", degrees=True)[2]

    def in_head(self, points) -> np.ndarray:
        """Points in camera axes, in head space."""
        return (np.asarray(points, float) - self.translation) @ self.rotation


def placed(pose) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation of a transform."""
    numbers = np.asarray(pose.wxyz_xyz, float)
    return Rotation.from_quat(numbers[:4], scalar_first=True).as_matrix(), numbers[4:]


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    """Without optimisation the three programs compile in two thirds of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_drawn", "_shot", "_developed"):
            patch.setattr(stream, name, quickly(getattr(stream, name).__wrapped__))
        yield


@pytest.fixture(scope="module")
def stage(head) -> Studio:
    return studio(head)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Pictures:
    """Two backgrounds of one colour each, behind some portraits; with and without them are two programs."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("a.png", (255, 128, 0)), ("b.JPG", (90, 90, 90))):
        Image.new("RGB", (70, 50), colour).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return dataclasses.replace(Pictures.of(folder), share=0.25)


@pytest.fixture(scope="module")
def taken(stage, pictures) -> list[Taken]:
    """The stream's first portraits."""
    found = []
    for k in range(COUNT):
        portrait, dressed = stream._drawn(stage, jax.random.fold_in(jax.random.key(SEED), k), SETTINGS)
        place = pictures.place(SEED, k, SIZE)
        shot = stream._shot(stage, portrait, dressed, jnp.asarray(place))
        example = Examples(*(np.asarray(v) for v in stream._developed(portrait, shot)))
        found.append(Taken(portrait, dressed, shot, example, *placed(portrait.pose), place))
    return found


# Models are arguments: as constants, XLA would compute with them while it compiles, for seconds.
_vertices = quickly(lambda model, identity, expression: jax.vmap(model.vertices)(identity, expression))


def all_vertices(model, identity, expression) -> np.ndarray:
    """Of many people."""
    return np.asarray(_vertices(model, jnp.asarray(identity), jnp.asarray(expression)))


@pytest.fixture(scope="module")
def people(head, taken) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients of the portraits' people and of eight who use every unit, and all vertices of the full model."""
    rng = np.random.default_rng(0)
    identity = np.stack([t.example.identity for t in taken])
    drawn = np.stack([t.example.expression for t in taken])
    identity = np.concatenate([identity, rng.normal(size=(8, identity.shape[1]))]).astype(np.float32)
    expression = np.concatenate([drawn, rng.uniform(0, 1, (8, drawn.shape[1]))]).astype(np.float32)
    return identity, expression, all_vertices(head, identity, expression)


@pytest.fixture(scope="module")
def reduced(stage, people) -> np.ndarray:
    """The same people on the studio's head."""
    return all_vertices(stage.head, *people[:2])


def parts(stage: Studio, values) -> list[np.ndarray]:
    """Rows of head, hair, hat, clothes and spectacles' bars."""
    sizes = [len(stage.head.mean), *(t.max() + 1 for t in WARDROBE_TRIANGLES)]
    ends = np.cumsum(sizes)
    assert ends[-1] == len(values)
    return np.split(np.asarray(values), ends[:-1])


# ------------------------------------------------------------------------------------------------------- studio


def test_the_reduced_head_is_the_head(head, stage, people, reduced):
    identity, expression, vertices = people
    count = int(np.asarray(head.proxy_triangles).max()) + 1
    np.testing.assert_allclose(reduced[:, :count], vertices[:, :count], atol=2e-3)
    # Gaze is among what was compared.
    looking = [k for k, name in enumerate(head.expression_names) if name.startswith("eyeLook")]
    assert (expression[-8:, looking] > 0).any(axis=0).all()
    for ours, whole in ((stage.head.landmarks, head.landmarks), (stage.landmarks.surface, dense(head))):
        np.testing.assert_allclose(on(ours, reduced), on(whole, vertices), atol=2e-3)
    assert np.asarray(stage.triangles).max() < len(stage.head.mean)
    albedo = np.asarray(stage.head.albedo.mean)[:count]
    np.testing.assert_array_equal(albedo, np.asarray(head.albedo.mean)[:count])


def dense(head):
    return dense_landmarks(head).surface


def on(surface, vertices: np.ndarray) -> np.ndarray:
    """Surface points of many heads."""
    weights = np.asarray(surface.weights, float)[:, :, None]
    return (vertices[:, np.asarray(surface.vertices)] * weights).sum(axis=2)


def test_lashes_are_not_drawn_and_parts_are_told_apart(stage):
    part = np.asarray(stage.head.part_of_vertex)
    names = np.array(stage.head.part_names)[part]
    drawn = np.zeros(len(part), bool)
    drawn[np.asarray(stage.triangles)] = True
    lashes = np.char.startswith(names, "lashes")
    assert lashes.any() and not drawn[lashes].any() and drawn[~lashes].mean() > 0.95
    np.testing.assert_array_equal(np.asarray(stage.skin) == 1, names == "skin")
    np.testing.assert_array_equal(np.asarray(stage.eyes) == 1, np.char.startswith(names, "eye"))
    np.testing.assert_array_equal(np.asarray(stage.teeth) == 1, np.char.startswith(names, "teeth"))


def test_foreheads_are_open_and_mouths_are_not(stage):
    openness, mean = np.asarray(stage.openness), np.asarray(stage.head.mean)
    drawn = np.unique(np.asarray(stage.triangles))
    assert openness.min() >= 0 and openness.max() <= 1 + 1e-6
    forehead = drawn[(np.abs(mean[drawn, 0]) < 40) & (mean[drawn, 1] > 55) & (mean[drawn, 2] > 0)]
    assert len(forehead) > 20 and openness[forehead].min() > 0.9
    sides = on(stage.landmarks.surface, openness[None, :, None])[0, :, 0]
    assert np.abs(sides - sides[np.asarray(stage.landmarks.mirror)])[:68].max() < 0.15


def test_no_sky_shines_into_a_closed_mouth(stage):
    drawn = np.unique(np.asarray(stage.triangles))
    inside = (np.asarray(stage.head.masks["interior"]) > 0.9) & (np.asarray(stage.teeth) == 0)
    mouth = drawn[inside[drawn]]
    assert len(mouth) > 500 and np.quantile(np.asarray(stage.openness)[mouth], 0.9) < 0.1


def test_the_hull_lies_on_its_rays(stage):
    mean, out = np.asarray(stage.head.mean, float), np.asarray(stage.hull_out, float)
    place = mean[np.asarray(stage.hull)] + np.asarray(stage.hull_offset)
    radius = np.linalg.norm(place - SKULL, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(place, SKULL + radius[..., None] * out, atol=1e-3)
    np.testing.assert_allclose(radius, np.linalg.norm(mean[np.asarray(stage.hull)] - SKULL, axis=-1), rtol=1e-5)
    assert 50 < radius.min() and radius.max() < 250
    # The middle column is the front, a quarter on is the subject's left; rows go down.
    columns, rows = radius.shape
    front, left = place[columns // 2], place[3 * columns // 4]
    assert np.abs(front[:, 0]).max() < 1e-3 and (front[1:, 2] > SKULL[2]).all()
    assert (left[1:, 0] > 0).all() and (np.diff(out[..., 1], axis=1) < 0).all()
    assert place[0, 0, 1] > mean[:, 1].max() - 5  # the crown
    # Of skin, and no vertex lies much nearer to a ray than the one that was chosen.
    assert (np.asarray(stage.skin)[np.asarray(stage.hull)] == 1).all()
    direction = (mean - SKULL) / np.linalg.norm(mean - SKULL, axis=1, keepdims=True)
    above = out[:, : rows // 2].reshape(-1, 3)
    chosen = direction[np.asarray(stage.hull)[:, : rows // 2].reshape(-1)]
    best = np.max(above @ direction.T, axis=1)
    np.testing.assert_allclose(np.sum(above * chosen, axis=1), best, atol=2e-4)


# ------------------------------------------------------------------------------------------------------ shadows


def grid(side: int, half: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """A square in a plane of constant z."""
    x = np.linspace(-half, half, side)
    points = np.stack([*(a.ravel() for a in np.meshgrid(x, x, indexing="ij")), np.full(side * side, height)], axis=1)
    return points, grid_triangles(side, side, closed=False)


@pytest.fixture(scope="module")
def shade():
    """Light on a floor of 200 mm and on a plate of 60 mm that is 40 mm above it; the scene may lie on any side."""
    (floor, below), (plate, above) = grid(21, 100.0, 0.0), grid(3, 30.0, 40.0)
    vertices, triangles = np.concatenate([floor, plate]), jnp.asarray(np.concatenate([below, above + len(floor)]))
    program = quickly(lambda v, d: lit_vertices(v, triangles, d, 64))

    def from_direction(direction, up: int = 2):
        direction = np.array(direction) / np.linalg.norm(direction)
        turned = (np.roll(a, up - 2, axis=-1) for a in (vertices, direction))
        lit = np.asarray(program(*(jnp.asarray(a, jnp.float32) for a in turned)))
        # How far each point of the floor is from the middle of the plate's shadow.
        off = np.abs(floor[:, :2] + direction[:2] / direction[2] * 40.0).max(axis=1)
        return lit[: len(floor)], lit[len(floor) :], off

    return from_direction


@pytest.mark.parametrize("up", [0, 1, 2])
@pytest.mark.parametrize("direction", [(0, 0, 1), (0.5, 0.1, 1), (-0.3, 0.6, 1)])
def test_a_plate_shadows_what_is_behind_it_and_nothing_else(shade, direction, up):
    floor, plate, off = shade(direction, up)
    assert floor.min() >= 0 and max(floor.max(), plate.max()) <= 1 + 1e-6
    assert (floor[off < 20] == 0).all() and (off < 20).sum() > 8
    np.testing.assert_allclose(floor[off > 42], 1, atol=1e-6)
    np.testing.assert_allclose(plate, 1, atol=1e-6)


def test_light_from_below_shadows_the_plate(shade):
    floor, plate, _ = shade((0, 0, -1))
    np.testing.assert_allclose(floor, 1, atol=1e-6)
    assert (plate == 0).all()


# ------------------------------------------------------------------------------------------------------- faults


@functools.cache
def scenery(size: int = SIZE) -> np.ndarray:
    """A picture with edges and texture, sRGB-encoded, well inside [0, 1]."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(size, size, 3)), (5, 5, 0))
    picture = 0.5 + 0.12 * smooth / smooth.std() + 0.02 * rng.normal(size=smooth.shape)
    picture[:, size // 2 :] += 0.15
    return np.clip(picture, 0.05, 0.95).astype(np.float32)


@functools.cache
def _jpeg_program():
    return jax.jit(jpeg)


def compressed(picture, quality: float, shift=(0, 0)) -> np.ndarray:
    return np.asarray(
        _jpeg_program()(jnp.asarray(picture), jnp.float32(quality), jnp.asarray(shift, jnp.int32)), np.float64
    )


def test_jpeg_takes_more_the_lower_its_quality():
    np.testing.assert_array_equal(compressed(scenery(), 100.0, (3, 5)), scenery())
    errors = [np.abs(compressed(scenery(), q) - scenery()).mean() for q in (95.0, 85.0, 70.0, 50.0, 30.0, 15.0)]
    assert errors[0] > 1e-3 and (np.diff(errors) > 0).all()
    flat = np.full((64, 64, 3), 0.4, np.float32)
    assert np.abs(compressed(flat, 50.0) - flat).max() < 0.5 * 17 / 8 / 255 * 2


@pytest.mark.parametrize("quality", [90, 60, 35])
def test_jpeg_is_what_a_file_leaves(quality):
    # Pillow's encoder: the same tables, integers for colours, and no halved chroma.
    file = io.BytesIO()
    Image.fromarray(np.round(255 * scenery()).astype(np.uint8)).save(file, "JPEG", quality=quality, subsampling=0)
    read = np.asarray(Image.open(file)) / 255.0
    ours, lost = compressed(scenery(), quality), np.abs(read - scenery()).mean()
    assert np.abs(ours - read).mean() < 0.4 * lost  # it rounds its tables


def test_blocks_move_with_their_shift():
    shifted = compressed(scenery(), 40.0, (3, 6))
    rolled = np.roll(compressed(np.roll(scenery(), (3, 6), (0, 1)), 40.0), (-3, -6), (0, 1))
    np.testing.assert_allclose(shifted, rolled, atol=1e-5)
    assert np.abs(shifted - compressed(scenery(), 40.0)).mean() > 1e-3
    np.testing.assert_allclose(compressed(scenery(), 40.0, (8, 8)), compressed(scenery(), 40.0), atol=1e-5)


@functools.cache
def _blur_program():
    return jax.jit(blurred)


def soft(picture, deviation: float, motion=(0.0, 0.0)) -> np.ndarray:
    arguments = (jnp.asarray(picture, jnp.float32), jnp.float32(deviation), jnp.asarray(motion, jnp.float32))
    return np.asarray(_blur_program()(*arguments), np.float64)


def test_no_blur_and_no_motion_is_the_identity():
    np.testing.assert_allclose(soft(scenery(), 0.0), scenery(), atol=1e-5)
    np.testing.assert_allclose(soft(np.full((64, 64, 3), 0.3), 2.5, (3.0, 1.0)), 0.3, atol=1e-5)


@pytest.mark.parametrize(("deviation", "motion"), [(1.5, (0.0, 0.0)), (2.0, (5.0, 0.0)), (1.0, (3.0, -4.0))])
def test_a_blurred_point_has_its_covariance(deviation, motion):
    point = np.zeros((64, 64, 3), np.float32)
    point[30, 34] = (1.0, 0.5, 0.25)
    spread = soft(point, deviation, motion)
    np.testing.assert_allclose(spread.sum(axis=(0, 1)), point[30, 34], atol=1e-3)
    v, u = np.meshgrid(np.arange(64) - 30, np.arange(64) - 34, indexing="ij")
    offset, weight = np.stack([u.ravel(), v.ravel()]), spread[..., 0].ravel()
    np.testing.assert_allclose(offset @ weight, 0, atol=5e-3)
    expected = deviation**2 * np.eye(2) + np.outer(motion, motion) / 12  # that of a line, evenly lit
    np.testing.assert_allclose((weight * offset) @ offset.T, expected, atol=0.02)


def test_records_are_pictures(key):
    program = quickly(jax.vmap(jax.vmap(record, (None, 0)), (0, None)))
    own = scenery(32)
    linear = np.stack([*(np.full((32, 32, 3), level) for level in (0.0, 0.2, 0.7, 30.0)), own**2.2])
    keys = jax.random.split(key, 48)
    recorded = np.asarray(program(jnp.asarray(linear, jnp.float32), keys))
    assert np.isfinite(recorded).all() and recorded.min() >= 0 and recorded.max() <= 1
    np.testing.assert_array_equal(program(jnp.asarray(linear, jnp.float32), keys), recorded)
    # Every camera keeps the order of light; most keep the picture, and no two are alike.
    means = recorded[:4].mean(axis=(2, 3, 4))
    assert (np.diff(means, axis=0) >= 0).all() and (means[2] - means[0] > 0.2).all()
    seen = recorded[4].mean(axis=-1).reshape(len(keys), -1)
    alike = [np.corrcoef(s, own.mean(axis=-1).ravel())[0, 1] for s in seen]
    assert np.median(alike) > 0.9 and min(alike) > 0.5
    colour = np.abs(recorded[4] - recorded[4].mean(axis=-1, keepdims=True)).mean(axis=(1, 2, 3))
    assert 0 < (colour < 0.01).mean() < 0.3  # some are black and white
    assert len({s.tobytes() for s in seen}) == len(keys)


# ----------------------------------------------------------------------------------------------------- backdrop


def test_places_are_light_and_all_different(key):
    keys = jax.random.split(key, 48)
    program = quickly(jax.vmap(lambda k: clutter(k, 32)))
    places = np.asarray(program(keys))
    assert np.isfinite(places).all() and places.min() >= 0 and places.max() <= 1.5
    np.testing.assert_array_equal(program(keys), places)
    apart = np.abs(places[:, None] - places[None]).mean(axis=(2, 3, 4))
    assert apart[~np.eye(48, dtype=bool)].min() > 0 and np.median(apart) > 0.1  # black studios are nearly alike
    contrast = places.std(axis=(1, 2)).mean(axis=1)
    assert contrast.min() < 0.03 and contrast.max() > 0.2  # from walls to leaves


def test_pictures_are_cut_at_random_and_the_same_again(pictures, tmp_path):
    assert [p.name for p in pictures.files] == ["a.png", "b.JPG"]
    places = [pictures.place(3, k, 16) for k in range(200)]
    np.testing.assert_array_equal(places, [pictures.place(3, k, 16) for k in range(200)])
    invented = np.array([np.isnan(p).all() for p in places])
    assert abs(invented.mean() - 0.75) < 0.1 and np.isfinite(np.array(places)[~invented]).all()
    colours = np.unique(np.round([p.mean(axis=(0, 1)) for p in places if np.isfinite(p).all()], 2), axis=0)
    np.testing.assert_allclose(colours, [[0.1, 0.1, 0.1], [1, 0.22, 0]], atol=0.011)  # linear
    # A part of the picture, never stretched, now and then its mirror image.
    ramp = np.broadcast_to(np.arange(120, dtype=np.uint8)[None], (60, 120))
    Image.fromarray(np.stack([ramp, ramp, ramp], axis=-1)).save(tmp_path / "ramp.png")
    always = dataclasses.replace(Pictures.of(tmp_path), share=1.0)
    parts = np.array([linear_to_srgb(jnp.asarray(always.place(0, k, 8)))[..., 0] for k in range(60)]) * 255
    slope = (parts[:, :, -1] - parts[:, :, 0]) / 7 * 8
    assert (np.ptp(parts, axis=1) < 0.5).all() and np.ptp(slope, axis=1).max() < 0.5
    assert 0.3 < (slope[:, 0] > 0).mean() < 0.7
    assert 0.3 * 60 - 1 < np.abs(slope).min() < 30 and 50 < np.abs(slope).max() < 61


def test_folders_without_pictures_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"got .*expected a folder with pictures"):
            Pictures.of(folder)


def test_what_is_before_the_face_follows_it(key):
    keys = jax.random.split(key, 512)
    program = quickly(lambda k, at, skin: jax.vmap(lambda k: before_the_face(k, 32, at, jnp.float32(0.15), skin))(k))
    at, skin = jnp.array([16.0, 16.0]), jnp.array([0.4, 0.2, 0.1])
    alpha, colour = (np.asarray(v) for v in program(keys, at, skin))
    assert np.isfinite(alpha).all() and alpha.min() >= 0 and alpha.max() == 1
    assert np.isfinite(colour).all() and colour.min() >= 0
    covers = alpha.max(axis=(1, 2)) > 0.5
    assert 0.04 < covers.mean() < 0.25
    moved = np.asarray(program(keys, at + jnp.array([5.0, -3.0]), skin)[0])
    np.testing.assert_allclose(moved[:, :-3, 5:], alpha[:, 3:, :-5], atol=1e-3)
    # Hands have the person's skin, things have not.
    paler = np.asarray(program(keys, at, 1.5 * skin)[1])
    ratio = (paler / np.maximum(colour, 1e-9)).mean(axis=(1, 2, 3))[covers]
    hands = np.abs(ratio - 1.5) < 1e-3
    assert 0.2 < hands.mean() < 0.8
    np.testing.assert_allclose(ratio[~hands], 1, atol=1e-3)
    hand = colour[covers][hands][0]
    np.testing.assert_allclose(hand / hand[..., :1], np.broadcast_to([1, 0.5, 0.25], hand.shape), rtol=1e-3)


# ----------------------------------------------------------------------------------------------------- wardrobe


@pytest.mark.parametrize("closed", [True, False])
def test_grids_are_surfaces(closed):
    columns, rows = 7, 4
    triangles = grid_triangles(columns, rows, closed)
    edges = np.concatenate([triangles[:, [i, (i + 1) % 3]] for i in range(3)])
    directed = {tuple(e) for e in edges.tolist()}
    assert len(directed) == len(edges)  # each edge once in either direction: triangles turn the same way
    border = [e for e in directed if e[::-1] not in directed]
    assert len(border) == (2 * columns if closed else 2 * (columns - 1) + 2 * (rows - 1))
    inner = (len(edges) - len(border)) // 2
    euler = columns * rows - (inner + len(border)) + len(triangles)
    assert euler == (0 if closed else 1)  # a tube or a disc
    np.testing.assert_array_equal(np.unique(triangles), np.arange(columns * rows))


def test_builds_are_of_neck_and_throat_alone(stage):
    mean, zero = stage.head.mean, jnp.zeros(())
    rounded = lambda neck, throat: np.asarray(with_build(stage, mean, Build(zero + neck, zero + throat)), float)  # noqa: E731
    before = np.asarray(mean, float)
    np.testing.assert_array_equal(rounded(0.0, 0.0), before)
    broad, full = rounded(10.0, 0.0), rounded(0.0, 10.0)
    marks = on(stage.landmarks.surface, np.stack([before, broad, full]))[:, :68]
    assert np.abs(marks[1:] - marks[0]).max() < 0.6
    chin = marks[0, 8]
    level = np.asarray(stage.skin > 0) & (np.abs(before[:, 1] - chin[1] + 30) < 8)  # 3 cm below the chin
    assert 18 < np.ptp(broad[level, 0]) - np.ptp(before[level, 0]) <= 20
    out = broad - before
    side = np.asarray(stage.neck == 1) & (np.abs(before[:, 0]) > 20)
    np.testing.assert_allclose(np.linalg.norm(out[side], axis=1), 10, atol=1e-3)
    assert (out[side, 0] * before[side, 0] > 0).all()
    np.testing.assert_allclose(out[:, 1], 0, atol=1e-4)
    moved = full - before
    lowest = moved[np.argmax(np.linalg.norm(moved, axis=1))]
    assert 8 < -lowest[1] < 10 and lowest[2] > 3 and lowest[0] == 0
    under = np.linalg.norm(moved, axis=1) > 3
    assert (before[under, 1] < marks[0, 4, 1]).all() and (np.abs(before[under, 0]) < 50).all()


def test_necks_are_of_all_sizes_and_some_throats_full(key):
    neck, throat = (np.asarray(v) for v in quickly(jax.vmap(draw_build))(jax.random.split(key, 400)))
    assert neck.min() < 0 and neck.max() > 14 and abs(neck.mean() - 6) < 1
    assert 0.25 < np.mean(throat > 0) < 0.45 and throat.min() == 0 and throat.max() > 14


def test_clothes_have_the_vertices_that_their_triangles_join(stage, key):
    vertices, colour = stage.head.mean, jnp.ones(3)
    made = jax.eval_shape(
        lambda: (
            hair(stage, vertices, key, colour), hat(stage, vertices, key),
            body(vertices, key, colour, draw_build(key)),
            spectacles(stage, vertices, key)[1],
        )
    )  # fmt: skip
    for cloth, triangles in zip(made, WARDROBE_TRIANGLES, strict=True):
        assert len(cloth.vertices) == len(cloth.albedo) == len(cloth.strand) == len(cloth.pattern)
        np.testing.assert_array_equal(np.unique(triangles), np.arange(len(cloth.vertices)))
    pieces = [pieces_of(triangles)[0] for triangles in WARDROBE_TRIANGLES]
    assert pieces == [1, 1, 1, 3]  # two temples and a bridge


def pieces_of(triangles: np.ndarray) -> tuple[int, np.ndarray]:
    pairs = np.concatenate([triangles[:, :2], triangles[:, 1:]])
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(triangles.max() + 1,) * 2)
    return connected_components(graph, directed=False)


def test_noise_has_no_seam(key):
    program = quickly(jax.vmap(lambda k: smooth_noise(k, (18, 5), (72, 12))))
    fields = np.asarray(program(jax.random.split(key, 400)))
    assert 0.7 < fields.std() < 1.2 and abs(fields.mean()) < 0.05
    step = np.diff(np.concatenate([fields, fields[:, :1]], axis=1), axis=1)
    each = np.sqrt((step**2).mean(axis=(0, 2)))
    assert each[-1] < 1.1 * each[:-1].max() and each.max() < 0.6


def test_colours_are_reflectances(key):
    program = quickly(jax.vmap(lambda n: (dye(n), natural_hair_colour(n[:4]))))
    dyed, grown = (np.asarray(c) for c in program(jax.random.uniform(key, (500, 5))))
    for colours in (dyed, grown):
        assert colours.min() > 0 and colours.max() <= 1 and colours.mean(axis=1).std() > 0.05
    assert (grown[:, 0] >= grown[:, 1]).all() and (grown[:, 1] >= grown[:, 2]).all()  # hair is not blue


def test_what_is_not_worn_is_a_point_of_the_head(stage, taken, reduced):
    worn = np.zeros((COUNT, 4), bool)
    for k, t in enumerate(taken):
        things = [t.in_head(p) for p in parts(stage, t.dressed.points)[1:]]
        for j, (points, least) in enumerate(zip(things, (100, 150, 300, 100), strict=True)):
            extent = np.ptp(points, axis=0).max()
            worn[k, j] = extent > 1e-3
            if worn[k, j]:
                assert extent > least  # mm
            else:
                crown = reduced[k, np.asarray(stage.hull)[0, 0]]
                np.testing.assert_allclose(points - crown, 0, atol=0.02)
        assert worn[k, 3] == (float(t.dressed.glasses.worn) == 1)
    shares = worn.mean(axis=0)
    assert 0.7 < shares[0] < 1 and 0.02 < shares[1] < 0.4 and shares[2] == 1 and 0.1 < shares[3] < 0.5


def test_hair_and_hats_lie_outside_the_head_and_clothes_below_it(stage, taken, reduced):
    mouth = float(np.asarray(stage.head.landmarks(stage.head.mean))[48:, 1].mean())
    for t, vertices in zip(taken, reduced[:COUNT], strict=True):
        hull = vertices[np.asarray(stage.hull)] + np.asarray(stage.hull_offset) - SKULL
        hull = hull[:, ::5].reshape(-1, 3)  # directions enough
        radius = np.linalg.norm(hull, axis=1)
        _, hair_points, hat_points, clothes, _ = (t.in_head(p) for p in parts(stage, t.dressed.points))
        for points in (hair_points, hat_points):
            if np.ptp(points) > 200:
                ray = points - SKULL
                far = np.linalg.norm(ray, axis=1)
                near = np.argmax(ray @ (hull / radius[:, None]).T, axis=1)
                high = points[:, 1] > 30  # above, hulls are smooth
                assert (far - radius[near])[high].min() > -12  # between the hull's directions
                assert np.median((far - radius[near])[high]) > 2
        assert np.median(clothes[:, 1]) < mouth - 60
        assert np.ptp(clothes[:, 0]) > 300 and clothes[:, 1].max() < mouth + 10


def test_spectacles_sit_before_the_eyes(stage, taken, reduced):
    points = on(stage.landmarks.surface, reduced[:COUNT])
    seen = 0
    for t, p in zip(taken, points, strict=True):
        glasses = t.dressed.glasses
        if not float(glasses.worn):
            continue
        seen += 1
        centres, normals, half = (np.asarray(a, float) for a in (glasses.centres, glasses.normals, glasses.half))
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        assert (normals[:, 2] > 0.9).all()
        eyes = np.stack([p[36:42].mean(axis=0), p[42:48].mean(axis=0)])
        assert (np.abs(eyes - centres)[:, :2] < half).all()
        assert (centres[:, 2] > eyes[:, 2] + 5).all() and centres[0, 0] < centres[1, 0]
        # Temples lead from the lenses to the ears.
        bars = t.in_head(parts(stage, t.dressed.points)[4]).reshape(3, 10, 3)
        for bar, ear, centre in zip(bars[:2], p[[0, 16]], centres, strict=True):
            assert np.linalg.norm(bar[0] - centre) < 1.3 * half[0] + 5
            assert np.linalg.norm(bar[4] - ear) < 40
        assert (np.abs(bars[2, :, 0]) < np.abs(centres[:, 0]).max()).all()
    assert seen > 5


def test_dark_glasses_hide_eyes(taken):
    facing = [t for t in taken if abs(t.yaw) < 45]
    worn = np.array([float(t.dressed.glasses.worn) > 0 for t in facing])
    dark = worn & np.array([float(t.dressed.glasses.opacity) > 0.6 for t in facing])
    eyes = np.array([t.example.visible[36:48].mean() for t in facing])
    assert dark.sum() >= 3 and eyes[dark].max() < 0.3
    assert np.median(eyes[~worn]) == 1


def test_paint_is_a_colour_and_only_beards_lift_the_skin(stage, taken, reduced):
    beard = np.asarray(stage.head.masks["beard"]) * np.asarray(stage.skin)
    built = quickly(lambda stage, vertices, key: with_build(stage, vertices, draw_build(key)))
    most = []
    for t, vertices in zip(taken, reduced[:COUNT], strict=True):
        table = np.asarray(t.dressed.table)
        assert np.isfinite(table).all()
        assert table[:, 4:7].min() >= 0 and table[:, 4:7].max() <= 1  # albedo
        assert table[:, 7].min() >= 0 and table[:, 7].max() <= 1 + 1e-6  # of the lamp
        assert table[:, 9].min() >= 0 and table[:, 9].max() <= 1
        bare = built(stage, jnp.asarray(vertices), jax.random.fold_in(t.portrait.keys[0], 1))
        lift = np.linalg.norm(t.in_head(parts(stage, t.dressed.points)[0]) - np.asarray(bare), axis=1)
        assert lift[beard == 0].max() < 0.02 and lift.max() < 25
        most.append(lift.max())
    assert np.mean(np.array(most) > 1) > 0.05 and np.mean(np.array(most) < 0.02) > 0.3


# ----------------------------------------------------------------------------------------------------- portrait


def test_landmarks_are_the_full_models(head, taken, people):
    points = on(dense(head), people[2])
    for t, p in zip(taken, points, strict=False):
        seen = p @ t.rotation.T + t.translation
        pixels = float(t.portrait.focal) * seen[:, :2] / seen[:, 2:] + np.asarray(t.portrait.centre)
        np.testing.assert_allclose(t.example.landmarks, pixels, atol=5e-3)
        assert seen[:, 2].min() > 100


def test_coefficients_are_those_that_are_shown(taken):
    for t in taken:
        np.testing.assert_array_equal(t.example.identity, t.portrait.identity)
        np.testing.assert_array_equal(t.example.expression, t.portrait.expression)
    identity = np.stack([t.example.identity for t in taken])
    expression = np.stack([t.example.expression for t in taken])
    assert 0.95 < identity.std() < 1.2 and abs(identity.mean()) < 0.05
    assert expression.min() == 0 and expression.max() <= 1


def test_visible_points_are_in_the_picture(taken):
    ended = 0
    for t in taken:
        visible, at = t.example.visible, t.example.landmarks
        assert set(np.unique(visible)) == {0, 1}
        assert (at[visible > 0] >= 0).all() and (at[visible > 0] < SIZE).all()
        black = (t.example.pixels == 0).all(axis=2)
        beyond = black.all(axis=1)[:, None] | black.all(axis=0)  # the photo's end
        column, row = np.clip(np.floor(at).astype(int), 0, SIZE - 1).T
        assert not visible[beyond[row, column]].any()
        ended += beyond.mean() > 0.05
    assert ended > 0
    assert 0.35 < np.mean([t.example.visible.mean() for t in taken]) < 0.65


def test_profiles_hide_the_far_side(head, taken):
    side = on(dense(head), np.asarray(head.mean)[None])[0, :, 0]  # growing to the subject's left
    near, far = [], []
    for t in taken:
        if abs(t.yaw) > 60:
            towards = side * np.sign(-t.yaw)
            near.append(t.example.visible[towards > 45].mean())
            far.append(t.example.visible[towards < -45].mean())
    assert len(near) > 8
    assert max(far) < 0.06 and np.mean(near) > 0.5 and min(near) > 0.2


def nearest_depth(points: np.ndarray, triangles: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Depth of the nearest surface on rays (x/z, y/z), in double precision; infinite where there is none."""
    corners = points[triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    distance = np.sum(normal * corners[:, 0], axis=1)
    rays = np.concatenate([at, np.ones((len(at), 1))], axis=1)
    # A ray meets a triangle where it is on the same side of the three planes through the eye and an edge.
    sides = [rays @ np.cross(corners[:, k], corners[:, (k + 1) % 3]).T for k in range(3)]
    hit = np.all([s >= 0 for s in sides], axis=0) | np.all([s <= 0 for s in sides], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = distance / (rays @ normal.T)
    return np.min(np.where(hit & np.isfinite(depth), depth, np.inf), axis=1)


def test_visible_is_what_nothing_covers(taken):
    hidden_though_clear, shown_though_covered = [], []
    for t in taken[1::7]:
        points, at = np.asarray(t.dressed.points, float), np.asarray(t.example.landmarks, float)
        inside = ((at > 1) & (at < SIZE - 1)).all(axis=1)
        rays = (at - np.asarray(t.portrait.centre)) / float(t.portrait.focal)
        behind = np.asarray(t.dressed.landmarks)[:, 2] - nearest_depth(points, np.asarray(t.dressed.triangles), rays)
        visible = t.example.visible > 0
        # In between, and at borders, it depends on the pixel.
        hidden_though_clear.append(np.mean(~visible[inside & (behind < 2)]))
        shown_though_covered.append(np.mean(visible[inside & (behind > 20)]))
    assert np.median(hidden_though_clear) < 0.06  # hands and dark glass are before some
    assert np.median(shown_though_covered) < 0.12


def test_the_place_is_seen_where_nothing_is(taken):
    v, u = (a.ravel() for a in np.meshgrid(*(np.arange(4, SIZE, 8),) * 2, indexing="ij"))
    same = []
    for t in [t for t in taken if np.isfinite(t.place).all()][:5]:
        points, triangles = np.asarray(t.dressed.points, float), np.asarray(t.dressed.triangles)
        rays = (np.stack([u, v], axis=1) + 0.5 - np.asarray(t.portrait.centre)) / float(t.portrait.focal)
        free = np.isinf(nearest_depth(points, triangles, rays))
        linear = np.asarray(t.shot.linear)
        same.extend(np.abs(linear - t.place)[v, u].max(axis=1)[free] < 1e-5)
        assert np.mean(np.abs(linear - t.place)[v, u].max(axis=1)[~free] < 1e-5) < 0.05
    assert len(same) > 40 and np.mean(same) > 0.9  # spectacles and hands are not among the triangles


def recoloured(stage: Studio, t: Taken, colour: np.ndarray) -> Shot:
    """A portrait whose vertices have other colours; without sheen and glasses."""
    table = np.asarray(t.dressed.table).copy()
    table[:, 4:7], table[:, 9], table[:, 12] = colour, 0, 0
    painted = eqx.tree_at(lambda d: (d.table, d.glasses.worn), t.dressed, (jnp.asarray(table), jnp.zeros(())))
    return stream._shot(stage, t.portrait, painted, jnp.asarray(t.place))


def test_the_picture_shows_what_is_said_to_be_there(stage, taken):
    """Of a head green on one side and red on the other, all else blue, visible points have their side's colour."""
    side, dark = np.asarray(stage.landmarks.surface(stage.head.mean))[:, 0], 0.01
    left = np.asarray(stage.head.mean)[:, :1] > 0
    colour = np.tile([dark, dark, 1], (len(taken[0].dressed.points), 1))
    colour[: len(left)] = np.where(left, [[dark, 1, dark]], [[1, dark, dark]])
    right, wrong = [], []
    for t in taken[2::4]:  # before three of them are a hand, a bar and a box
        shot = recoloured(stage, t, colour)
        linear, at = np.asarray(shot.linear), np.floor(np.asarray(shot.landmarks)).astype(int)
        np.testing.assert_array_equal(shot.landmarks, t.shot.landmarks)
        chosen = (np.asarray(shot.visible) > 0) & (np.abs(side) > 8)
        x, y = at[chosen].T
        seen, said = np.argmax(linear[y, x], axis=1), np.where(side[chosen] > 0, 1, 0)
        pure = linear[y, x].max(axis=1) > 5 * np.sort(linear[y, x], axis=1)[:, 1]  # hands are not
        right.append(np.mean((seen == said) & pure))
        wrong.append(np.mean(seen == 1 - said))
    assert np.median(right) > 0.85 and min(right) > 0.75 and np.mean(wrong) < 0.03  # hair begins within a pixel


def test_black_things_leave_the_picture_finite(stage, taken):
    speckled = np.random.default_rng(0).integers(0, 2, (len(taken[0].dressed.points), 3))
    assert all(np.isfinite(recoloured(stage, t, speckled).linear).all() for t in taken[::4])


def test_rotation_is_the_heads_as_seen_along_the_ray(taken):
    for t in taken:
        seen = t.example.rotation.astype(float)
        np.testing.assert_allclose(seen @ seen.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(seen) > 0
        # From the ray to the camera's axis by the shortest way: turned about an axis at right angles to both.
        swing = t.rotation @ seen.T
        ray = np.append((SIZE / 2 - np.asarray(t.portrait.centre)) / float(t.portrait.focal), 1.0)
        np.testing.assert_allclose(swing[:, 2], ray / np.linalg.norm(ray), atol=1e-5)
        assert abs(Rotation.from_matrix(swing).as_rotvec()[2]) < 1e-5
    assert max(abs(t.yaw) for t in taken) > 80


def test_a_far_head_is_its_rotation_and_placement(taken):
    far = 0
    for t in taken:
        head = t.in_head(t.dressed.landmarks)
        placement = t.example.placement.astype(float)
        predicted = placement[:2] + placement[2] * (head @ t.example.rotation.T)[:, :2]
        error = np.linalg.norm(predicted - t.example.landmarks, axis=1).max()
        error /= np.ptp(t.example.landmarks[:68], axis=0).max()
        assert error < 0.04 + 150.0 / t.translation[2]
        far += t.translation[2] > 2500
    assert far > 3


def test_crops_are_about_the_landmarks(taken):
    low, high = (np.array([f(t.example.landmarks[:68], axis=0) for t in taken]) for f in (np.min, np.max))
    zoom = np.log(SIZE / (CROP_FACTOR * (high - low).max(axis=1)))
    shift = (high + low) / 2 / SIZE - 0.5
    assert np.abs(zoom).max() < 0.4501 and np.abs(shift).max() < 0.2201
    assert 0.05 < zoom.std() < 0.3 and 0.03 < shift.std() < 0.15


def test_settings_are_kept(head, stage):
    draw = quickly(lambda stage, keys: jax.vmap(lambda k: draw_portrait(stage, k, NARROW))(keys))
    portraits = draw(stage, jax.random.split(jax.random.key(5), 256))
    rotation, offset = placed_many(portraits.pose)
    # Degrees from the line of sight to the nose.
    middle = np.asarray(head.landmarks(head.mean), float)[27:36].mean(axis=0)
    ray = offset + np.einsum("nij,j->ni", rotation, middle)
    distance = np.linalg.norm(ray, axis=1)
    axis = np.cross([0, 0, 1.0], ray / distance[:, None])
    angle = np.arcsin(np.linalg.norm(axis, axis=1, keepdims=True))
    swing = Rotation.from_rotvec(axis / np.linalg.norm(axis, axis=1, keepdims=True) * angle).as_matrix()
    seen = FACING @ np.swapaxes(swing, 1, 2) @ rotation
    angles = np.abs(Rotation.from_matrix(seen).as_euler("ZXY", degrees=True))
    for found, most in zip(angles.T, (NARROW.roll, NARROW.pitch, NARROW.yaw), strict=True):
        assert 0.9 * most < found.max() < most + 1
    closed, opened = (np.asarray(portraits.expression)[:, head.expression_names.index(n)] for n in CLOSING)
    assert (closed <= opened + 1e-6).all() and (closed > 0.02).sum() > 3
    # From 320 mm to where the head is a tenth of the longest lens's photo.
    assert 315 < distance.min() < 600 and 2000 < distance.max() < 240 / 36 * NARROW.lens_mm[1] / 0.1 + 5
    # Without shift and zoom the box of the 68 landmarks is in the middle, in its proportion.
    some = slice(COUNT + 8)  # as many as above: one program for vertices
    points = on(stage.head.landmarks, all_vertices(stage.head, portraits.identity[some], portraits.expression[some]))
    points = np.einsum("nij,nkj->nki", rotation[some], points) + offset[some, None]
    focal, centre = np.asarray(portraits.focal, float)[some], np.asarray(portraits.centre)[some]
    pixels = focal[:, None, None] * points[..., :2] / points[..., 2:] + centre[:, None]
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    np.testing.assert_allclose(CROP_FACTOR * (high - low).max(axis=1), NARROW.size, rtol=1e-3)
    np.testing.assert_allclose((high + low) / 2, NARROW.size / 2, atol=0.05)


def placed_many(pose) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.asarray(pose.wxyz_xyz, float)
    return Rotation.from_quat(numbers[:, :4], scalar_first=True).as_matrix(), numbers[:, 4:]


def test_pictures_are_finite_and_exposed(taken):
    linear = np.stack([np.asarray(t.shot.linear) for t in taken])
    assert np.isfinite(linear).all() and linear.min() >= 0
    pixels = np.stack([t.example.pixels for t in taken]).astype(float)
    middle = pixels[:, 16:48, 16:48].mean(axis=(1, 2, 3))
    assert 60 < np.median(middle) < 180 and middle.min() > 10 and middle.max() < 250
    assert pixels.std(axis=(1, 2, 3)).min() > 8


# ------------------------------------------------------------------------------------------------------- stream


def test_a_chunk_is_a_piece_of_the_stream(stage, taken, pictures):
    chunk = render_chunk(stage, SEED, 3, SETTINGS, 2, pictures)
    for name, values in zip(Examples._fields, chunk, strict=True):
        for k, value in enumerate(values):
            np.testing.assert_array_equal(value, getattr(taken[6 + k].example, name), err_msg=name)
    assert tree_equal(render_chunk(stage, SEED, 3, SETTINGS, 2, pictures), chunk)
    for seed, index in ((SEED, 4), (SEED + 1, 3)):
        other = render_chunk(stage, seed, index, SETTINGS, 2, pictures)
        for a in chunk.pixels:
            assert all(np.abs(a.astype(float) - b).mean() > 2 for b in other.pixels)
        assert np.abs(chunk.identity - other.identity).mean() > 0.5
    assert chunk.pixels.shape == (2, SIZE, SIZE, 3) and chunk.pixels.dtype == np.uint8
    assert chunk.landmarks.shape == (2, stage.landmarks.count, 2) and chunk.visible.dtype == np.float16


@pytest.fixture
def order(stage, pictures, tmp_path, monkeypatch) -> Order:
    """What processes render, two portraits at a time, without waiting."""
    monkeypatch.setattr(stream, "_stage", lambda model: stage)
    monkeypatch.setattr(stream, "render_chunk", functools.partial(render_chunk, count=2))
    monkeypatch.setattr(stream.time, "sleep", lambda seconds: None)
    return Order(None, tmp_path, SEED, SETTINGS, pictures)


def looks(count: int):
    """A parent that is gone when it is looked for once more."""
    left = iter([True] * count)
    return lambda: next(left, False)


def waiting(order: Order) -> list[str]:
    return sorted(p.name for p in order.folder.iterdir())


def test_chunks_that_wait_are_those_of_the_stream(stage, order):
    render_ahead(order, 1, 2, 8, looks(2))
    assert waiting(order) == [order.file(1).name, order.file(3).name]
    for index in (1, 3):
        read, made = read_chunk(order.file(index)), render_chunk(stage, SEED, index, SETTINGS, 2, order.pictures)
        assert tree_equal(read, made) and [v.dtype for v in read] == [v.dtype for v in made]


def test_no_more_is_rendered_than_may_wait_and_nothing_twice(order):
    render_ahead(order, 0, 1, 2, looks(0))
    assert waiting(order) == []
    order.file(0).write_bytes(b"there already")
    most = []

    def alive(left=iter([True] * 8)):  # noqa: B006, B008
        most.append(len(waiting(order)))
        if len(most) == 5:
            order.file(0).unlink()  # used
        return next(left, False)

    render_ahead(order, 0, 1, 2, alive)
    assert max(most) == 2 and waiting(order) == [order.file(1).name, order.file(2).name]
