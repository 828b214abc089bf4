"""A skeleton for a model that has none, or no jaw: the embedded head's, carried over by its registration."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from morphable.basis import GaussianBasis
from morphable.model import MorphableModel
from morphable.registration import Registration
from morphable.registration.correspondence import SurfaceMap
from morphable.rig import Gaze, Rig

_JOINT_VERTICES = 400  # that a joint's place is regressed on


def no_gaze() -> Gaze:
    """Eyes that no expression unit turns."""
    return Gaze(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32), jnp.zeros((0, 3)))


def carried_joints(head: MorphableModel, laid: Registration) -> Float[np.ndarray, "joint 3"]:
    """The head's joints, moved with the vertices around them by the affine map that explains those best."""
    assert head.rig is not None
    rest = np.asarray(head.mean, float)
    used = np.unique(np.asarray(head.triangles))
    out = []
    for joint in np.asarray(head.rig.joints.mean, float):
        distance = np.linalg.norm(rest[used] - joint, axis=1)
        around = used[np.argsort(distance)[:_JOINT_VERTICES]]
        weight = np.sqrt(1 / (5.0 + np.linalg.norm(rest[around] - joint, axis=1)))[:, None]
        rows = np.concatenate([rest[around] - joint, np.ones((len(around), 1))], axis=1)
        # Drawn towards the similarity, which a flat neighbourhood leaves free across itself.
        expected = laid.similarity(rest[around])
        change = np.linalg.lstsq(
            np.concatenate([rows * weight, np.diag([3.0, 3.0, 3.0, 0.0])]),
            np.concatenate([(laid.vertices[around] - expected) * weight, np.zeros((4, 3))]),
            rcond=None,
        )[0][3]
        out.append(laid.similarity(joint[None])[0] + change)
    return np.array(out)


def carried_rig(
    mean: Float[np.ndarray, "vertex 3"],
    identity: Float[np.ndarray, "vertex 3 rank"],
    head: MorphableModel,
    laid: Registration,
    to_head: SurfaceMap,
    part_names: tuple[str, ...],
    parts: Int[np.ndarray, " vertex"],
) -> Rig | None:
    """The head's joints in the model, following its identity, with its skinning weights carried over."""
    if head.rig is None:
        return None
    joints = carried_joints(head, laid)
    weights = np.maximum(to_head(np.asarray(head.rig.weights, float)), 0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    root = head.rig.parents.index(-1)
    lost = ~np.isfinite(to_head.distance)
    weights[lost] = np.eye(len(head.rig.names))[root]
    modes = np.stack(
        [
            regress_joint(joint, mean, np.isfinite(to_head.distance)) @ identity.reshape(len(mean), -1)
            for joint in joints
        ]
    ).reshape(len(joints), 3, -1)
    eyes = [name for name in ("eye_left", "eye_right") if name in part_names]
    for name in eyes:
        own, at = parts == part_names.index(name), head.rig.names.index(name)
        weights[own] = np.eye(len(head.rig.names))[at]
        joints[at], modes[at] = mean[own].mean(axis=0), identity[own].mean(axis=0)
    return Rig(
        joints=GaussianBasis(jnp.asarray(joints, jnp.float32), jnp.asarray(modes, jnp.float32)),
        weights=jnp.asarray(weights, jnp.float32),
        gaze=no_gaze(),
        names=head.rig.names,
        parents=head.rig.parents,
    )


def joined_rig(made: Rig, given: Rig) -> Rig:
    """The made rig with those joints of the file that it has, too: their places, their vertices and their gaze."""
    shared = [(made.names.index(name), k) for k, name in enumerate(given.names) if name in made.names]
    own, theirs = (np.array(x, int) for x in zip(*shared, strict=True)) if shared else (np.zeros(0, int),) * 2
    mean, modes = np.array(made.joints.mean), np.array(made.joints.modes)
    mean[own], modes[own] = np.asarray(given.joints.mean)[theirs], np.asarray(given.joints.modes)[theirs]
    weights = np.array(made.weights)
    for k, j in shared:
        if given.names[j].startswith("eye_"):  # rigid; of other joints the file says less than the head
            rigid = np.asarray(given.weights)[:, j] > 0.5
            weights[rigid] = np.eye(len(made.names))[k]
    rows = [row for row, joint in enumerate(np.asarray(given.gaze.joints)) if given.names[joint] in made.names]
    joints = [made.names.index(given.names[int(given.gaze.joints[row])]) for row in rows]
    gaze = Gaze(
        given.gaze.units[np.array(rows, int)],
        jnp.asarray(np.array(joints, np.int32)),
        given.gaze.rotations[np.array(rows, int)],
    )
    basis = GaussianBasis(jnp.asarray(mean), jnp.asarray(modes))
    return dataclasses.replace(made, joints=basis, weights=jnp.asarray(weights, jnp.float32), gaze=gaze)


def carried_gaze(
    head: MorphableModel, joints: tuple[str, ...], part_names: tuple[str, ...], units: tuple[str, ...]
) -> Gaze:
    """How the head's eyeLook units turn the model's eyes, for those that it has as joints and parts."""
    rows = []
    if head.rig is not None:
        gaze = head.rig.gaze
        for unit, joint, turn in zip(*(np.asarray(x) for x in (gaze.units, gaze.joints, gaze.rotations)), strict=True):
            name, eye = head.expression_names[int(unit)], head.rig.names[int(joint)]
            if name in units and eye in joints and eye in part_names:
                rows.append((units.index(name), joints.index(eye), turn))
    return Gaze(
        jnp.asarray(np.array([row[0] for row in rows], np.int32)),
        jnp.asarray(np.array([row[1] for row in rows], np.int32)),
        jnp.asarray(np.array([row[2] for row in rows], np.float32).reshape(-1, 3)),
    )


def regress_joint(
    joint: Float[np.ndarray, "3"], vertices: Float[np.ndarray, "vertex 3"], usable: Bool[np.ndarray, " vertex"]
) -> Float[np.ndarray, " vertex"]:
    """Weights on nearby vertices, summing to 1, whose mean is the joint: the smallest such, so that noise averages out.

    A joint that follows a mesh (Loper et al. 2015, section 3.1) by a regressor that is exact on the mean.
    """
    ids = np.flatnonzero(usable)
    order = np.argsort(np.linalg.norm(vertices[ids] - joint, axis=1))[:_JOINT_VERTICES]
    near = ids[order]
    away = vertices[near] - joint
    scale = max(float(np.abs(away).max(initial=0.0)), 1e-9)
    constraints = np.concatenate([np.ones((1, len(near))), away.T / scale])
    weights = np.linalg.lstsq(constraints, np.array([1.0, 0, 0, 0]), rcond=None)[0]
    out = np.zeros(len(vertices))
    out[near] = weights
    return out
