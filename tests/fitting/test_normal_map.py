"""Normal maps turn the surface's normals as the heights would; heights are deep where skin is dark."""

import jax.numpy as jnp
import numpy as np
import pytest

from fitting.glb import surface_normals, surface_tangents
from fitting.mesoscopic import plain_skin, resized, skin_heights, skin_normal_map
from fitting.normal_map import decoded, encoded, normal_map, tangent_slopes, texel_surface

SIZE = 32


@pytest.fixture(scope="module")
def sheet():
    """A tilted flat square of 60 mm whose map is a sheared, mirrored and squeezed picture of it."""
    square = np.array([[0.0, 0, 0], [60, 0, 0], [60, 60, 0], [0, 60, 0]])
    tilt = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    uv = square[:, :2] @ np.array([[-0.9, 0.2], [0.15, -0.7]]) / 60 + [0.85, 0.75]
    return square @ tilt.T, triangles, uv


def test_normals_are_those_of_the_displaced_surface_also_in_a_sheared_map(sheet):
    vertices, triangles, uv = sheet
    surface = texel_surface(vertices, triangles, uv, SIZE)
    normals = surface_normals(vertices, triangles)
    normal, tangent = normals[0], surface_tangents(vertices, triangles, uv, normals)[0]
    slope = np.array([0.12, -0.2, 0.0])  # of the height, per mm, in head axes
    slope -= (slope @ normal) * normal
    # Where each texel's centre lies on the sheet: the map is linear, so three corners give it.
    centres = (np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1) + 0.5) / SIZE
    to_space = np.linalg.lstsq(np.c_[uv, np.ones(4)], vertices, rcond=None)[0]
    heights = np.concatenate([centres, np.ones((SIZE, SIZE, 1))], axis=2) @ to_space @ slope
    pixels = normal_map(heights, surface)
    valid = np.asarray(surface.valid)
    inside = valid[1:-1, 1:-1] & valid[2:, 1:-1] & valid[:-2, 1:-1] & valid[1:-1, 2:] & valid[1:-1, :-2]
    x, y, z = ((pixels[1:-1, 1:-1][inside].astype(float) - 128) / 127).T
    bitangent = tangent[3] * np.cross(normal, tangent[:3])
    got = x[:, None] * tangent[:3] + y[:, None] * bitangent + z[:, None] * normal
    expected = (normal - slope) / np.linalg.norm(normal - slope)
    assert inside.sum() > 200
    assert np.abs(got / np.linalg.norm(got, axis=1, keepdims=True) - expected).max() < 0.02  # 8 bits, drawn-in slopes


def test_a_bump_shines_above_and_is_green_there(sheet):
    """glTF's green points up the map: the upper flank of a bump faces up."""
    vertices = np.array([[0.0, 60, 0], [60, 60, 0], [60, 0, 0], [0, 0, 0]])  # from the front: top left, then clockwise
    uv = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    bump = np.exp(-((rows - 16) ** 2 + (columns - 16) ** 2) / 20)
    pixels = normal_map(bump, texel_surface(vertices, sheet[1][:, ::-1], uv, SIZE)).astype(int)
    assert pixels[12, 16, 1] > 135 and pixels[20, 16, 1] < 121
    assert pixels[16, 20, 0] > 135 and pixels[16, 12, 0] < 121
    assert np.all(pixels[0, 0] == (128, 128, 255))


def test_what_is_no_surface_or_no_number_is_flat_and_cliffs_are_drawn_in(sheet):
    surface = texel_surface(*sheet, SIZE)
    heights = np.where(np.arange(SIZE) < 16, 0.0, 500.0) * np.ones((SIZE, 1))
    heights[5, 15] = np.nan
    pixels = normal_map(heights, surface)
    assert np.all(pixels[~np.asarray(surface.valid)] == (128, 128, 255)) and np.all(pixels[5, 15] == (128, 128, 255))
    assert pixels[..., 2].min() >= 128 + 127 * np.cos(np.radians(57))
    with pytest.raises(ValueError, match="texel_surface"):
        normal_map(heights[:8], surface)


def test_slopes_are_kept_by_the_picture_and_add_up_as_heights_do(sheet):
    surface = texel_surface(*sheet, SIZE)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    first, second = 0.3 * np.sin(rows / 3), 0.2 * np.cos((rows + columns) / 4)
    slopes = [tangent_slopes(h, surface) for h in (first, second, first + second)]
    assert np.abs(slopes[0]).max() > 0.03
    assert np.abs(slopes[0] + slopes[1] - slopes[2]).max() < 2e-3
    for s in slopes:
        assert np.abs(decoded(encoded(s)) - s).max() < 0.75 / 127
    blended = encoded(decoded(encoded(slopes[0])) + decoded(encoded(slopes[1])))
    assert np.abs(blended.astype(int) - encoded(slopes[2])).max() <= 2


@pytest.fixture(scope="module")
def textured(tiny):
    """A colour map of 64 texels with a dark pore, and a dark brow on the model's brow mask."""
    import equinox as eqx

    brow = jnp.asarray((tiny.uv[:, 1] < 0.25).astype(jnp.float32))
    model = eqx.tree_at(lambda m: m.masks, tiny, {**tiny.masks, "brows": brow}, is_leaf=lambda x: isinstance(x, dict))
    texture = np.full((64, 64, 3), 180, np.uint8)
    texture[40, 32] = 120
    texture[:12] = 30
    return model, texture


def test_dark_is_deep_on_bare_skin_alone(textured):
    model, texture = textured
    surface = texel_surface(np.asarray(model.mean), np.asarray(model.triangles), np.asarray(model.uv), 64)
    where = plain_skin(model, 64)
    assert where[40, 32] > 0.99 and np.all(where[:8] == 0)
    heights = skin_heights(model, texture, surface, 1.0)
    assert heights[40, 32] == heights.min() < -0.01
    assert np.all(heights[:8] == 0) and np.abs(heights).max() <= 0.12
    assert np.abs(skin_heights(model, np.full_like(texture, 90), surface)).max() < 1e-4
    relief = skin_normal_map(model, np.asarray(model.mean), texture, 1.0)
    assert relief.shape == texture.shape and np.all(relief[:7] == (128, 128, 255)) and np.any(relief[36:44] != 128)


def test_colour_adds_to_a_displacement_only_what_is_finer(textured):
    model, texture = textured
    vertices = np.asarray(model.mean)
    surface = texel_surface(vertices, np.asarray(model.triangles), np.asarray(model.uv), 64)
    rows, columns = np.mgrid[:16, :16] / 16
    broad = (2.0 * np.sin(6 * rows) * np.cos(5 * columns)).astype(np.float32)
    together = decoded(skin_normal_map(model, vertices, texture, 1.0, broad))
    grey = decoded(skin_normal_map(model, vertices, np.full_like(texture, 90), 1.0, broad))
    assert np.abs(grey - tangent_slopes(resized(broad, 64), surface)).max() < 0.01
    pore = np.s_[36:45, 28:37]
    assert np.abs(together - grey)[pore].max() > 0.01
    # What colour says at the displacement's own scale is left to the displacement.
    heights = skin_heights(model, texture, surface, 1.0)
    finer = heights - resized(resized(heights, 16), 64)
    assert np.abs(resized(finer, 16)).max() < 0.5 * np.abs(resized(heights, 16)).max()
