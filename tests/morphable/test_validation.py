"""Every planted fault is found, and a sound model has none."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from morphable.validation import validate


def test_the_embedded_head_is_sound(head):
    assert validate(head) == []


def wheres(model, level="error"):
    return {finding.where for finding in validate(model) if finding.level == level}


FAULTS = {
    "identity": lambda m: eqx.tree_at(
        lambda m: m.shape.modes, m, m.shape.modes.at[:, :, 1].set(m.shape.modes[:, :, 0])
    ),
    "mean": lambda m: eqx.tree_at(lambda m: m.shape.mean, m, m.shape.mean.at[3].set(jnp.nan)),
    "triangles": lambda m: eqx.tree_at(lambda m: m.triangles, m, m.triangles.at[5, 0].set(m.triangles[5, 1])),
    "orientation": lambda m: eqx.tree_at(lambda m: m.triangles, m, m.triangles[:, ::-1]),
    "unit": lambda m: eqx.tree_at(lambda m: m.shape.mean, m, m.shape.mean / 1000),
    "expression": lambda m: eqx.tree_at(
        lambda m: m.expression, m, m.expression[..., jnp.asarray(_swapped(m.expression_names))]
    ),
    "albedo": lambda m: eqx.tree_at(lambda m: m.albedo.mean, m, m.albedo.mean * 255),
    "landmarks": lambda m: eqx.tree_at(lambda m: m.landmarks.vertices, m, m.landmarks.vertices[::-1]),
    "mirror": lambda m: eqx.tree_at(lambda m: m.mirror, m, jnp.roll(m.mirror, 1)),
    "mask lips": lambda m: eqx.tree_at(lambda m: m.masks["lips"], m, 255 * m.masks["lips"]),
    "mask face": lambda m: eqx.tree_at(lambda m: m.masks["face"], m, 0 * m.masks["face"]),
    "rig": lambda m: eqx.tree_at(lambda m: m.rig.weights, m, 0.5 * m.rig.weights),
    "uv": lambda m: eqx.tree_at(lambda m: m.uv, m, 0 * m.uv),
}


def _swapped(names):
    """The units' indices, left for right."""
    other = {n: n.replace("Left", "#").replace("Right", "Left").replace("#", "Right") for n in names}
    return np.array([names.index(other[n]) if other[n] in names else k for k, n in enumerate(names)])


@pytest.mark.parametrize("where", FAULTS)
def test_a_planted_fault_is_found_where_it_is(head, where):
    assert where in wheres(FAULTS[where](head))


def test_all_faults_are_told_not_only_the_first(head):
    spoilt = FAULTS["rig"](FAULTS["albedo"](FAULTS["mask lips"](head)))
    assert {"rig", "albedo", "mask lips"} <= wheres(spoilt)


def test_what_is_only_strange_is_a_warning(head):
    loose = dataclasses.replace(head, rig=None, contour=None)
    assert wheres(loose) == set() and {"rig", "contour"} <= wheres(loose, "warning")
