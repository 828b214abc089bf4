"""Random reliefs: reproducible, only on skin, and wrinkles that come and go with what drives them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tree_equal

from fitting.skin_relief import ReliefLayout, Spots, draw_relief, draw_spots, paint_spots, relief_layout
from morphable.detail import LIMIT_MM

SIZE = 96
PEOPLE = 40


@pytest.fixture(scope="module")
def layout(head) -> ReliefLayout:
    return relief_layout(head, SIZE)


@pytest.fixture(scope="module")
def reliefs(layout):
    keys = jnp.stack([jax.random.key(seed) for seed in range(PEOPLE)])
    together = jax.jit(jax.vmap(draw_relief, (None, 0)))(layout, keys)
    return [jax.tree.map(lambda leaf, k=k: leaf[k], together) for k in range(PEOPLE)]


@pytest.fixture(scope="module")
def tiny_layout(tiny) -> ReliefLayout:
    return relief_layout(tiny, SIZE)


def texel_of(layout, point) -> tuple[int, int]:
    """Row and column of the texel that shows a point of the reference face."""
    index = int(np.argmin(np.linalg.norm(np.asarray(layout.points) - point, axis=1)))
    return divmod(int(layout.texels[index]), layout.size)


# ------------------------------------------------------------------------------------------------- layout


def test_skin_is_the_face_without_eyes_and_mouth(layout, head):
    skin = np.asarray(layout.map(layout.skin))
    assert skin.shape == (SIZE, SIZE) and skin.min() == 0 and skin.max() <= 1
    assert 0.1 < (skin > 0.5).mean() < 0.6
    for name, ids in (("eye", range(42, 48)), ("mouth", range(60, 68))):
        centre = np.mean([np.asarray(head.landmarks(head.mean))[i] for i in ids], axis=0)
        assert skin[texel_of(layout, centre)] < 0.5, name
    for place in ([0, 45, 30], [40, -40, 20], [-40, -40, 20], [0, -100, 30]):
        assert skin[texel_of(layout, place)] > 0.9, place


def test_the_default_model_is_its_own_reference(layout, head):
    ids = np.asarray(layout.listed) < len(layout.texels)
    points = np.asarray(layout.points)
    # Some vertex of the mean head lies near every texel of the face.
    mean = np.asarray(head.mean)
    some = points[:: len(points) // 200]
    gap = np.linalg.norm(some[:, None] - mean[None], axis=2).min(axis=1)
    assert gap.max() < 6.0 and ids.sum() == len(points)


def test_mirror_swaps_sides(layout):
    points, mirror = np.asarray(layout.points), np.asarray(layout.mirror)
    off = np.linalg.norm(points[mirror] * [-1, 1, 1] - points, axis=1)
    assert np.median(off) < 1.5 * layout.texel_mm
    assert np.mean(mirror[mirror] == np.arange(len(mirror))) > 0.3


def test_units_that_a_model_lacks_drive_nothing(tiny_layout, tiny):
    names, drivers = tiny_layout.group_names, np.asarray(tiny_layout.drivers)
    assert drivers.shape == (len(names), len(tiny.expression_names))
    smile = drivers[:, tiny.unit("mouthSmileLeft")]
    assert smile[names.index("nasolabial_left")] == 1 and smile[names.index("nasolabial_right")] == 0
    assert not drivers[names.index("glabella_left")].any()
    assert not drivers[:, tiny.unit("jawOpen")].any()


def test_sides_have_their_own_drivers(layout, head):
    drivers = dict(zip(layout.group_names, np.asarray(layout.drivers), strict=True))
    for name, row in drivers.items():
        if name.endswith("_left"):
            other = drivers[name.removesuffix("left") + "right"]
            for unit, weight in zip(head.expression_names, row, strict=True):
                twin = unit.removesuffix("Left") + "Right" if unit.endswith("Left") else unit
                if not unit.endswith("Right"):
                    assert other[head.unit(twin)] == weight, (name, unit)
    assert (np.asarray(layout.drivers) >= 0).all() and (np.asarray(layout.drivers).max(axis=1) > 0).all()


# ------------------------------------------------------------------------------------------------- reliefs


def test_a_key_is_a_person(layout, reliefs):
    draw = jax.jit(draw_relief)
    first, again, other = (draw(layout, jax.random.key(seed)) for seed in (0, 0, 1))
    assert tree_equal(first, again)
    assert np.abs(np.asarray(first.static - other.static)).max() > 0.1
    for one, batched in zip(jax.tree.leaves(other), jax.tree.leaves(reliefs[1]), strict=True):
        np.testing.assert_allclose(batched, one, atol=2e-4)


def test_bounded_and_only_on_skin(layout, head, reliefs):
    bare = np.asarray(layout.map(layout.skin)) == 0
    shown = np.asarray(layout.map(layout.face)) == 0
    everything = jnp.ones(len(head.expression_names))
    for relief in reliefs:
        for expression in (jnp.zeros_like(everything), everything):
            displacement = np.asarray(relief.displacement(expression))
            assert np.isfinite(displacement).all() and np.abs(displacement).max() <= LIMIT_MM
            assert not displacement[bare].any()
        assert not np.asarray(relief.albedo)[shown].any()
        assert 0 <= float(relief.age) <= 1


def test_depths_are_those_of_skin(layout, reliefs):
    skin = np.asarray(layout.map(layout.skin)) > 0.9
    static = np.array([np.asarray(relief.static)[skin] for relief in reliefs])
    assert 0.15 < static.std() < 0.8
    assert np.abs(static).max() < 5
    deepest = -np.array([np.asarray(relief.wrinkles).min(axis=(1, 2)) for relief in reliefs])
    of = lambda name: deepest[:, layout.group_names.index(name)]  # noqa: E731
    assert deepest.max() < 3.0
    assert np.median(of("nasolabial_left")) > 2 * np.median(of("infraorbital_left"))
    # A groove displaces skin and loses none.
    mean = np.array([np.asarray(relief.wrinkles).sum(axis=(1, 2)) for relief in reliefs])
    size = np.array([np.abs(np.asarray(relief.wrinkles)).sum(axis=(1, 2)) for relief in reliefs])
    assert np.abs(mean.sum() / size.sum()) < 0.2


def test_neutral_is_static(reliefs):
    relief = reliefs[0]
    np.testing.assert_array_equal(relief.displacement(jnp.zeros(relief.drivers.shape[1])), relief.static)


def test_wrinkles_grow_with_their_drivers_alone(layout, head, reliefs):
    relief = reliefs[3]
    idle = head.weights(jawOpen=1.0, eyeLookUpLeft=1.0, tongueOut=1.0)
    np.testing.assert_array_equal(relief.displacement(idle), relief.static)
    for unit, group in (("mouthSmileLeft", "nasolabial_left"), ("browInnerUp", "forehead_middle")):
        sizes = []
        for weight in (0.0, 0.25, 0.5, 1.0):
            expression = head.weights(**{unit: weight})
            change = np.asarray(relief.displacement(expression) - relief.static)
            assert np.abs(change[~np.asarray(relief.wrinkle_mask)]).max() <= 0.0201
            sizes.append(np.linalg.norm(change))
            active = np.asarray(relief.activations(expression))
            assert active.min() >= 0 and active.max() <= 1
            assert active[layout.group_names.index(group)] == pytest.approx(weight)
        assert sizes[0] == 0 and (np.diff(sizes) > 0).all()


def test_wrinkles_lie_where_anatomy_has_them(layout, reliefs):
    size = np.mean([np.abs(np.asarray(relief.wrinkles)) for relief in reliefs], axis=0).reshape(-1, SIZE**2)
    listed = np.asarray(layout.texels)
    for name, low, high in (
        ("forehead_middle", [-40, 30], [40, 85]),
        ("crows_feet_left", [35, -35], [85, 30]),
        ("crows_feet_right", [-85, -35], [-35, 30]),
        ("nasolabial_left", [5, -85], [50, -20]),
        ("chin", [-40, -125], [40, -75]),
    ):
        weight = size[layout.group_names.index(name)][listed]
        x, y = np.asarray(layout.points)[:, :2].T
        inside = (x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1])
        assert weight[inside].sum() > 0.97 * weight.sum(), name


def test_the_lines_that_stay_in_old_faces_are_those_that_fold(layout, reliefs):
    both = [layout.group_names.index(f"nasolabial_{side}") for side in ("left", "right")]
    age = np.array([float(relief.age) for relief in reliefs])
    folds = np.array([np.asarray(relief.wrinkles)[both].sum(axis=0).ravel() for relief in reliefs])
    static = np.array([np.asarray(relief.static).ravel() for relief in reliefs])

    def staying(who) -> float:
        return np.sum(static[who] * folds[who]) / np.sum(folds[who] ** 2)

    assert staying(age > 0.6) > 0.4
    assert staying(age < 0.4) < 0.7 * staying(age > 0.6)


# --------------------------------------------------------------------------------------------------- spots


def test_most_dark_spots_have_no_height(layout, key):
    spots = jax.jit(jax.vmap(draw_spots, (None, 0, None)))(layout, jax.random.split(key, 60), jnp.asarray(0.3))
    dark, flat = np.asarray(spots.melanin) > 0.05, np.asarray(spots.height) == 0
    assert dark.sum() > 100 and (dark & flat).sum() > 0.7 * dark.sum()
    assert (~flat).sum() > 50
    only_colour = dataclasses.replace(jax.tree.map(lambda a: a[0], spots), height=jnp.zeros(spots.height.shape[1]))
    height, melanin, _ = jax.jit(paint_spots)(layout, only_colour)
    assert not np.asarray(height).any()
    assert np.asarray(melanin).max() >= 0


def test_a_spot_is_where_it_was_put(layout):
    index = int(np.argmin(np.linalg.norm(np.asarray(layout.points) - [35, -35, 20], axis=1)))
    one = lambda value: jnp.full(1, value, jnp.float32)  # noqa: E731
    spots = Spots(jnp.array([index], jnp.int32), radius=one(6), height=one(1), melanin=one(0), blood=one(0))
    height = np.asarray(jax.jit(paint_spots)(layout, spots)[0])
    away = np.linalg.norm(np.asarray(layout.points) - np.asarray(layout.points)[index], axis=1)
    assert height.argmax() == index and height.max() > 0.8
    assert height[away > 12].max(initial=0) < 0.02
