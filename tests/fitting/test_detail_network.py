"""Laws of the detail network: where it may act, what it answers to, and that its training can stop and go on."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quickly
from safetensors import safe_open
from safetensors.numpy import save_file

from fitting.detail_augmentation import Mixture, random_mixture, recombined
from fitting.detail_checkpoint import CheckpointError, load_checkpoint, load_network, save_checkpoint, save_network
from fitting.detail_examples import Example, mirror_of, mirrored, read_person, save_person
from fitting.detail_losses import (
    LossWeights,
    change_loss,
    fine,
    normal_loss,
    photometric_loss,
    slopes,
    smoothness_loss,
    symmetry_loss,
    turn_loss,
)
from fitting.detail_network import DetailInputs, DetailNetwork, face_window, jaw_matrix
from fitting.detail_training import (
    People,
    Shared,
    Trainer,
    TrainingError,
    TrainingSettings,
    stacked,
    start,
    train,
)
from fitting.wrinkle_maps import wrinkle_drivers, wrinkle_maps
from morphable.detail import LIMIT_MM

SIZE, WIDTHS = 32, (8, 8)
NAMES = ("jawOpen", "mouthClose", "mouthSmileLeft", "eyeLookUpLeft")
SETTINGS = TrainingSettings(steps=30, warm_up=2, chips=0, learning_rate=5e-3, weights=LossWeights(photometric=5.0))


@functools.cache
def network(attention: bool = True) -> DetailNetwork:
    return DetailNetwork(jax.random.key(1), names=NAMES, identity=6, size=SIZE, widths=WIDTHS, attention=attention)


def person(seed: int, known: float = 1.0, photos: int = 2) -> Example:
    """A person whose relief shows in the photo exactly as the light's response says."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:SIZE, :SIZE] / SIZE
    made = []
    phase = rng.uniform(0, 6, 2)
    for k in range(photos):
        truth = 0.4 * np.sin(12 * row + phase[0]) * np.cos(9 * column + phase[1]) + 0.1 * k
        frame = np.stack([np.ones((SIZE, SIZE)), np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE))], axis=-1)
        response = np.broadcast_to(rng.normal(size=2), (SIZE, SIZE, 2))
        slope = np.asarray(slopes(jnp.asarray(truth, jnp.float32), jnp.asarray(frame, jnp.float32)))
        maps = np.zeros((SIZE, SIZE, 15))
        maps[..., 3:6] = np.sum(response * slope, axis=-1, keepdims=True)
        maps[..., 6] = 1.0
        maps[..., 13:] = response
        turn = np.concatenate([known * slope, np.full((SIZE, SIZE, 1), known)], axis=-1)
        expression = rng.uniform(0, 1, len(NAMES))
        made.append(
            Example(
                maps=maps.astype(np.float16), frame=frame.astype(np.float16),
                base=np.zeros((SIZE, SIZE, 3), np.float16),
                identity=rng.normal(size=6).astype(np.float32), expression=expression.astype(np.float32),
                known=np.float32(known), turn=turn.astype(np.float16), truth=(known * truth).astype(np.float16),
                wrinkles=np.zeros((1, SIZE // 2, SIZE // 2), np.float16),
                drivers=np.zeros((1, len(NAMES)), np.float32),
                true_expression=expression.astype(np.float32), chip=np.zeros((150, 150, 3), np.uint8),
                chip_uv=np.zeros((150, 150, 2), np.float32), chip_share=np.zeros((150, 150), np.float16),
            )
        )  # fmt: skip
    return Example(*(np.stack(values) for values in zip(*made, strict=True)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("people")
    for seed in range(3):
        examples = person(seed)
        save_person(path / f"{seed}.npz", [Example(*(v[k] for v in examples)) for k in range(2)])
    return path


def common() -> Shared:
    """What the examples have in common: a border without skin, and no network for pictures."""
    u, v = np.meshgrid((np.arange(SIZE) + 0.5) / SIZE, (np.arange(SIZE) + 0.5) / SIZE)
    mirror = jnp.asarray(np.stack([1 - u, v], axis=-1), jnp.float32)
    return Shared(jnp.ones((SIZE, SIZE)).at[:4].set(0.0), mirror, None)


@pytest.fixture(scope="module")
def shared() -> Shared:
    return common()


@pytest.fixture(scope="module")
def trainer(shared) -> Trainer:
    return Trainer(shared, SETTINGS, jax.local_devices()[:1])


def inputs(example: Example, region) -> DetailInputs:
    single = [jnp.asarray(v[0], jnp.float32) for v in (example.maps, example.identity, example.expression)]
    return DetailInputs(single[0], region, single[1], single[2])


def test_acts_where_it_may_and_within_its_bounds(shared):
    loud = jax.tree.map(lambda x: 30.0 * x if eqx.is_inexact_array(x) else x, network())
    given = inputs(person(0), shared.region)
    found = quickly(lambda n, i: n(i))(loud, given)
    assert found.displacement.shape == (SIZE, SIZE) and found.code.shape == (128,)
    assert not np.asarray(found.displacement[:4]).any()
    assert 1.0 < np.abs(found.displacement).max() <= LIMIT_MM


def test_what_it_sees_depends_on_photo_and_code_on_neither_expression(shared):
    net, given = network(), inputs(person(0), shared.region)
    look = quickly(lambda n, i: n(i))
    one = look(net, given)
    other = look(net, given._replace(expression=1.0 - given.expression))
    # The code is the person's: it is read from the maps alone.
    np.testing.assert_array_equal(one.code, other.code)
    assert np.abs(one.displacement - other.displacement).max() > 1e-5  # the tokens of the code ask for something else
    dark = look(net, given._replace(maps=given.maps.at[..., :6].set(0.0)))
    assert np.abs(one.displacement - dark.displacement).max() > 1e-5


def test_attention_is_a_part_that_can_be_left_out(shared):
    with_, without = network(), network(attention=False)
    count = lambda n: len(jax.tree.leaves(eqx.filter(n, eqx.is_array)))  # noqa: E731
    assert count(with_) > count(without)
    found = quickly(lambda n, i: n(i))(without, inputs(person(0), shared.region))
    assert np.isfinite(found.displacement).all()


def test_size_and_widths_must_fit():
    with pytest.raises(ValueError, match="got size 64 and 2 widths, expected size 32"):
        DetailNetwork(jax.random.key(0), names=NAMES, size=64, widths=(8, 8))


def test_a_window_holds_all_of_the_face_and_nothing_beyond_it_counts():
    region = np.zeros((64, 64))
    region[9:40, 20:33] = 1.0
    top, left, height, width = face_window(region, levels=3)
    assert (height, width) == (32, 16)
    assert region[top : top + height, left : left + width].sum() == region.sum()
    assert face_window(np.zeros((64, 64)), levels=3) == (0, 0, 64, 64)
    assert face_window(np.ones((64, 64)), levels=3) == (0, 0, 64, 64)

    narrow = DetailNetwork(jax.random.key(1), names=NAMES, identity=6, size=SIZE, widths=WIDTHS, window=(8, 4, 16, 24))
    given = inputs(person(0), jnp.ones((SIZE, SIZE)))
    found = quickly(lambda n, i: n(i))(narrow, given).displacement
    inside = np.zeros((SIZE, SIZE), bool)
    inside[8:24, 4:28] = True
    assert np.abs(found[inside]).max() > 1e-3 and not np.asarray(found)[~inside].any()
    for window in ((0, 0, 16, 18), (20, 0, 16, 16), (0, 0, 4, 4)):
        with pytest.raises(ValueError, match="face_window"):
            DetailNetwork(jax.random.key(0), names=NAMES, size=SIZE, widths=WIDTHS, window=window)


def test_the_jaw_is_three_numbers_of_the_units_there_are():
    matrix = jaw_matrix(("jawOpen", "jawRight", "jawLeft", "smile"))
    np.testing.assert_array_equal(matrix @ [0.5, 0.25, 1.0, 9.0], [0.5, 0.75, 0.0])


# ------------------------------------------------------------------------------------------------------ losses


def test_exact_shading_leaves_nothing_and_no_relief_leaves_all():
    example = person(3)
    frame, truth = (jnp.asarray(v[0], jnp.float32) for v in (example.frame, example.truth))
    response, ratio = (jnp.asarray(v, jnp.float32) for v in (example.maps[0][..., 13:], example.maps[0][..., 3]))
    weight = jnp.ones((SIZE, SIZE))
    right = photometric_loss(truth, ratio, response, frame, weight)
    assert right < 1e-4 < 100 * right + 1e-2 < photometric_loss(0 * truth, ratio, response, frame, weight) + 1e-2
    # Smooth changes of light are none of its business.
    smooth = ratio + jnp.linspace(0, 0.1, SIZE)[:, None]
    assert photometric_loss(truth, smooth, response, frame, weight) < 0.05
    assert np.abs(fine(smooth - ratio, weight)).max() < 0.03


def test_photos_put_together_anew_show_what_their_truth_says():
    batch = jax.tree.map(jnp.asarray, stacked([person(0), person(1), person(2, known=0.0)]))
    count = len(batch.known)
    parts = np.zeros((count, 2)), np.zeros((count, 2)), np.zeros(count)
    parts[0][:, 0] = parts[1][:, 0] = 1.0
    same, added = quickly(recombined)(batch, Mixture(*(jnp.asarray(x, jnp.float32) for x in parts)))
    assert not np.asarray(added).any()
    np.testing.assert_allclose(same.maps, batch.maps, atol=1e-6)
    np.testing.assert_allclose(same.turn, batch.turn, atol=1e-6)

    mixture = random_mixture(jax.random.key(1), count)
    mixed, added = quickly(recombined)(batch, mixture)
    # The third person's truth is unknown: nothing is taken from it, nothing given to it.
    assert np.abs(added[:2]).max() > 0.01 and not np.asarray(added[2:]).any()
    # A person's two photos are given the same relief.
    given = added - (mixture.relief[:, :1, None] - 1.0) * batch.truth
    np.testing.assert_allclose(given[0], given[1], atol=1e-6)
    np.testing.assert_allclose(mixed.truth, batch.truth + added, atol=1e-6)
    for k in range(2):
        frame, response = (jnp.asarray(x[k], jnp.float32) for x in (batch.frame, batch.maps[..., 13:]))
        # In these photos the fit's only error is the relief, and they show nothing but its shading.
        assert turn_loss(mixed.truth[k], mixed.turn[k], frame, jnp.ones((SIZE, SIZE))) < 1e-3
        shown = np.sum(np.asarray(response * mixed.turn[k, ..., :2]), axis=-1)
        left_over = np.asarray(mixed.maps[k, ..., 3]) - shown  # a photo's tone is taken off
        assert left_over.std() < 0.05 * shown.std()


def test_another_persons_pigments_are_laid_over_the_same_relief():
    batch = jax.tree.map(jnp.asarray, stacked([person(0), person(1)]))
    spots = 0.1 * jnp.asarray(np.random.default_rng(1).normal(size=(SIZE, SIZE, 1)), jnp.float32)
    batch = batch._replace(maps=batch.maps.astype(jnp.float32).at[2, ..., :6].add(spots))
    mixture = Mixture(jnp.tile(jnp.array([1.0, 0.0]), (4, 1)), jnp.tile(jnp.array([1.0, 0.0]), (4, 1)), jnp.ones(4))
    mixed, added = quickly(recombined)(batch, mixture)
    assert not np.asarray(added).any()
    np.testing.assert_allclose(mixed.turn, batch.turn, atol=1e-6)
    change = np.asarray(mixed.maps[0, ..., 3] - batch.maps[0, ..., 3])
    assert np.corrcoef(change.ravel(), np.asarray(spots).ravel())[0, 1] > 0.9
    assert change.std() == pytest.approx(np.sin(1.0) * 0.1, rel=0.15)


def test_a_fold_that_may_be_anywhere_is_learned_as_their_mean():
    square = jnp.ones((SIZE, SIZE))
    places = jnp.asarray(np.random.default_rng(0).random((20, SIZE, SIZE)) < 0.1, jnp.float32) * 0.1
    cost = lambda guess: sum(float(change_loss(guess * square, place, square)) for place in places)  # noqa: E731
    # The mean costs less than nothing does, which is the median.
    assert cost(0.01) < cost(0.0) and cost(0.01) < cost(0.05)


def test_slopes_of_a_plane_and_what_bending_costs():
    frame = jnp.broadcast_to(jnp.array([2.0, 0.0, 0.5]), (SIZE, SIZE, 3))
    row, column = jnp.mgrid[:SIZE, :SIZE].astype(jnp.float32)
    plane = 0.1 * column + 0.3 * row
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(slopes(plane, frame)[inner], np.broadcast_to([0.2, 0.15], (30, 30, 2)), atol=1e-5)
    weight = jnp.zeros((SIZE, SIZE)).at[2:-2, 2:-2].set(1.0)
    assert smoothness_loss(plane, frame, weight) < 1e-3 < smoothness_loss(plane + jnp.sin(row), frame, weight)
    # The angle between two normals, but for the rounding of small ones.
    assert normal_loss(plane, 0 * plane, frame, weight) == pytest.approx(np.hypot(0.25, 0.1) - 0.1, abs=2e-3)


def test_symmetry_counts_where_one_side_is_seen(shared):
    mirror, column = shared.mirror_uv, jnp.mgrid[:SIZE, :SIZE][1].astype(jnp.float32)
    even = jnp.abs(column - (SIZE - 1) / 2)
    half = (column < SIZE / 2).astype(jnp.float32)
    assert symmetry_loss(even, mirror, half) < 1e-4
    assert symmetry_loss(column, mirror, half) > 1.0
    assert symmetry_loss(column, mirror, jnp.ones((SIZE, SIZE))) < 1e-4  # both sides are seen: nothing to guess


# ---------------------------------------------------------------------------------------------------- training


def test_learns_and_stops_and_goes_on_to_the_bit(folder, trainer, tiny, tmp_path):
    people = People(sorted(folder.glob("*.npz")), SETTINGS)
    told: list[float] = []
    first = start(network(attention=False), SETTINGS)
    whole = train(trainer, first, people, 30, lambda _, state, terms: told.append(terms["normals"]), every=5)
    assert told[-1] < 0.8 * told[0]
    half = train(trainer, first, people, 15)
    save_checkpoint(tmp_path / "c.safetensors", half, tiny, {"log": [1, 2]})
    again, record = load_checkpoint(tmp_path / "c.safetensors", SETTINGS)
    assert record == {"log": [1, 2]} and int(again.step) == 15
    ended = train(trainer, again, people, 30)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(ended), strict=True):
        np.testing.assert_array_equal(one, other)


def test_photos_without_truth_teach_by_their_shading(trainer):
    batch = jax.tree.map(jnp.asarray, Example(*(np.concatenate([a, a]) for a in person(5, known=0.0))))
    state, terms, before = start(network(attention=False), SETTINGS), {}, 0.0
    for step in range(25):
        state, terms = trainer.step(state, batch)
        if step == 0:
            before = float(terms["photometric"])
    assert float(terms["photometric"]) < 0.9 * before
    assert float(terms["normals"]) == 0.0 and float(terms["change"]) == 0.0


def test_batches_are_pairs_of_a_person(folder):
    people = People(sorted(folder.glob("*.npz")), SETTINGS)
    batch, again = people.batch(7), people.batch(7)
    assert batch.maps.shape == (4, SIZE, SIZE, 15)
    np.testing.assert_array_equal(batch.truth, again.truth)
    stored = [read_person(p) for p in sorted(folder.glob("*.npz"))]
    for k in (0, 2):
        owners = [n for n, s in enumerate(stored) if any((batch.truth[k] == t).all() for t in s.truth)]
        assert any((batch.truth[k + 1] == t).all() for t in stored[owners[0]].truth)
    with pytest.raises(TrainingError, match="expected at least one person"):
        People([], SETTINGS)


def two_people() -> Example:
    return Example(*(np.concatenate(v) for v in zip(person(0), person(1), strict=True)))


def test_devices_share_a_batch(shared, trainer, tmp_path):
    with pytest.raises(TrainingError, match="got 4 photos in a batch and 3 devices"):
        Trainer(shared, SETTINGS, jax.local_devices()[:1] * 3)
    alone, _ = trainer.step(start(network(attention=False), SETTINGS), two_people())
    root = Path(__file__).parents[2]
    script = f"""
import importlib.util, sys
sys.path[:0] = [{str(root)!r}, {str(root / "tests")!r}]
import jax, jax.numpy as jnp, numpy as np
spec = importlib.util.spec_from_file_location("cases", {__file__!r})
cases = importlib.util.module_from_spec(spec); spec.loader.exec_module(cases)
trainer = cases.Trainer(cases.common(), cases.SETTINGS)
state = trainer.placed(cases.start(cases.network(attention=False), cases.SETTINGS))
state, _ = trainer.step(state, cases.two_people())
assert len(state.step.sharding.device_set) == 2
np.save({str(tmp_path / "filters.npy")!r}, state.network.stem.weight)
"""
    flags = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags}, cwd=root
    )
    assert done.returncode == 0, done.stderr
    # Sums of other order; a step of AdamW has the size of its rate, whatever the gradient.
    shared_out = np.load(tmp_path / "filters.npy")
    np.testing.assert_allclose(shared_out, alone.network.stem.weight, atol=0.02 * SETTINGS.learning_rate)


# ------------------------------------------------------------------------------------------------------- files


def test_weights_go_around_in_half_precision_and_for_their_model(tiny, head, tmp_path):
    path = tmp_path / "w.safetensors"
    mine = network()
    save_network(path, mine, tiny, {"figures": {"steps": 3}})
    back = load_network(path, tiny)
    for one, other in zip(jax.tree.leaves(eqx.filter(mine, eqx.is_array)), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    with pytest.raises(CheckpointError, match="expected those of .*train-detail --model"):
        load_network(path, head)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no safetensors"):
        load_network(tmp_path / "cut.safetensors", tiny)
    with pytest.raises(CheckpointError, match="got no file"):
        load_network(tmp_path / "none.safetensors", tiny)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError):
        load_network(tmp_path / "text.safetensors", tiny)


def test_weights_that_are_not_finite_are_refused(tiny, tmp_path):
    path = tmp_path / "w.safetensors"
    bad = eqx.tree_at(lambda n: n.out.bias, network(), jnp.full(1, jnp.nan))
    save_network(path, bad, tiny, {})
    with pytest.raises(CheckpointError, match="not finite"):
        load_network(path, tiny)
    # Numbers of double precision that single precision does not have.
    with safe_open(path, framework="numpy") as file:
        arrays, description = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    arrays["out.bias"] = np.full(1, 1e300)
    save_file(arrays, path, description)
    with pytest.raises(CheckpointError, match="not finite"):
        load_network(path, tiny)


# ---------------------------------------------------------------------------------------------------- wrinkles


class _Linear(eqx.Module):
    """A stand-in whose displacement is a sum of maps by activation, as wrinkle maps are."""

    maps: jax.Array
    drivers: jax.Array

    def decode(self, expression, region):
        return jnp.tensordot(jnp.clip(self.drivers @ expression, 0, 1), self.maps, 1) * region


def test_wrinkle_maps_are_those_of_a_decoder_that_has_some(head):
    drivers, names = wrinkle_drivers(head)
    assert {"brows_raisedLeft", "smileRight", "pucker"} <= set(names) and (drivers >= 0).all()
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(len(names), 16, 16)), jnp.float32)
    stand_in = _Linear(maps, jnp.asarray(drivers))
    found = wrinkle_maps(stand_in.decode, jnp.ones((16, 16)), head, drivers)
    # All but what the ridge holds back, of maps that some expressions show.
    assert np.corrcoef(np.ravel(found), np.ravel(maps))[0, 1] > 0.95


def test_models_without_the_units_have_no_wrinkle_maps(tiny):
    drivers, names = wrinkle_drivers(tiny)
    assert names == ("smileLeft",)
    assert drivers.shape == (1, len(NAMES))


# ------------------------------------------------------------------------------------------------------ mirror


def test_a_photo_in_the_mirror_has_the_same_shading_and_twice_mirrored_is_itself(head):
    mirror = mirror_of(head)
    assert mirror is not None
    units = len(head.expression_names)
    rng = np.random.default_rng(2)
    one = person(4)._replace(
        identity=rng.normal(size=(2, 100)).astype(np.float32), expression=rng.random((2, units)).astype(np.float32)
    )
    one = one._replace(true_expression=one.expression, drivers=rng.random((2, 1, units)).astype(np.float32))
    frame = np.stack([1 + rng.random((2, SIZE, SIZE)), rng.normal(size=(2, SIZE, SIZE)), np.ones((2, SIZE, SIZE))], -1)
    one = one._replace(frame=frame.astype(np.float32), chip_share=np.ones((2, 150, 150), np.float16))
    other = mirrored(one, mirror)
    for a, b in zip(one, mirrored(other, mirror), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)

    def shading(example, k):
        slope = slopes(jnp.asarray(example.truth[k], jnp.float32), jnp.asarray(example.frame[k], jnp.float32))
        return np.sum(np.asarray(example.maps[k][..., 13:], np.float32) * slope, axis=-1)

    np.testing.assert_allclose(shading(other, 0), shading(one, 0)[:, ::-1], atol=1e-4)
    # The coefficients of the mirrored head.
    vertices = np.asarray(head.neutral(jnp.asarray(one.identity[0])))
    twin = np.asarray(head.neutral(jnp.asarray(other.identity[0])))
    np.testing.assert_allclose(twin, (vertices * [-1, 1, 1])[np.asarray(head.mirror)], atol=1e-2)
    smile = head.unit("mouthSmileLeft")
    assert other.expression[0, head.unit("mouthSmileRight")] == one.expression[0, smile]


def test_models_without_symmetry_have_no_mirror(tiny):
    assert mirror_of(tiny) is None
