"""What a published model lacks is made: by registering the embedded head to its mean, and carrying over what it knows.

A model needs more than its file has to be fitted to photos and rigged: landmarks, jaw-line paths, masks, a symmetry
table, texture coordinates, an albedo basis, expressions, a rig. All of them are known on the embedded head. Once its
surface lies on the other mean, each of the model's vertices has a place on it. The file's own data always win.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree

from morphable.basis import GaussianBasis
from morphable.io.contents import Contents, Points, Source
from morphable.landmarks import ContourFans, SurfacePoints
from morphable.model import MorphableModel, Provenance
from morphable.registration import Registration, register
from morphable.registration.correspondence import SurfaceMap
from morphable.registration.oriented_map import oriented_map, unit_normals
from morphable.rig import Gaze, Rig
from morphable.symmetry import mirror_table

_REACH_MM = 12.0  # a vertex farther than this from the registered head has no counterpart on it
_SOFT_MM = 6.0  # ... and up to here it is a full one
_OPENINGS = ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight")  # units that part what lies in one place
_TORN_MM = 6.0  # between neighbours under one of them
_CONSISTENT_ROUNDS, _CANDIDATES = 6, 24
_MOVES_MM = 0.2  # a carried expression unit that moves nothing farther is none
_PROXY_VERTICES = 6000  # of the coarse mesh for visibility
_FAST_ENOUGH = 9000  # models with fewer vertices need none
_JOINT_VERTICES = 400  # that a joint's place is regressed on
_NOT_SKIN = ("eye_left", "eye_right", "teeth_upper", "teeth_lower", "tongue", "lashes_left", "lashes_right")


class Lacks(NamedTuple):
    """What a file is silent about, by the names that `Provenance.made` uses."""

    landmarks: bool
    mirror: bool
    uv: bool
    albedo_mean: bool
    albedo_modes: bool
    expression: bool
    rig: bool


def lacks(contents: Contents) -> Lacks:
    """What must be made for a model; masks and jaw-line paths always are where the file has none of that name."""
    c = contents
    return Lacks(
        landmarks=c.landmarks is None or bool(np.isnan(c.landmarks.weights).any()),
        mirror=c.mirror is None,
        uv=c.uv is None,
        albedo_mean=c.albedo_mean is None,
        albedo_modes=c.albedo_modes is None or c.albedo_modes.shape[2] == 0,
        expression=c.expression is None or not c.expression_names,
        rig=c.rig is None,
    )


def complete(contents: Contents, source: Source, head: MorphableModel, arkit: bool = False) -> MorphableModel:
    """A model ready to be fitted, rigged and textured, from what its file has and what the embedded `head` knows.

    With `arkit` the head's expression units replace those of the file, as if it had none.

    The origin moves midway between the eyeballs, as everywhere in facefit; `Provenance.origin_mm` has the move.
    Raises RegistrationError where the head cannot be laid on the mean: it is no face, or looks elsewhere than along z.
    """
    if arkit:
        rig = contents.rig
        if rig is not None:
            nowhere = Gaze(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32), jnp.zeros((0, 3)))
            rig = dataclasses.replace(rig, joints_expression=None, gaze=nowhere)
        contents = dataclasses.replace(
            contents, expression=None, expression_names=(), expression_kind="units", interaction=None, rig=rig
        )
    mean, triangles = np.asarray(contents.mean, float), np.asarray(contents.triangles)
    missing = lacks(contents)
    parts, part_names = _parts(contents)
    skin = parts == part_names.index("skin")
    skin_triangles = triangles[skin[triangles].all(axis=1)]
    given = _given_landmarks(contents)
    laid = register(head, (mean, skin_triangles), given)
    to_head = map_parts(mean, triangles, parts, part_names, laid.vertices, head)
    near = np.clip((_REACH_MM - to_head.distance) / (_REACH_MM - _SOFT_MM), 0.0, 1.0)
    carry = lambda values: to_head(np.asarray(values, float))  # noqa: E731
    onto = _onto(laid.vertices, head, mean, skin_triangles)

    centre = _between_eyes(contents, head, laid, mean)
    landmarks = _landmarks(contents, head, onto)
    contour = _contour(head, onto)
    turn, size = laid.similarity.rotation, laid.similarity.scale
    move = lambda displacements: size * np.einsum("ij,vjk->vik", turn, displacements)  # noqa: E731
    albedo_mean = carry(head.albedo.mean) if contents.albedo_mean is None else contents.albedo_mean
    albedo_modes = carry(head.albedo.modes) if missing.albedo_modes else contents.albedo_modes
    names, kind = contents.expression_names, contents.expression_kind
    expression = contents.expression
    if expression is None or missing.expression:
        names, kind = head.expression_names, "units"
        eyes = np.isin(parts, [k for k, name in enumerate(part_names) if name.startswith("eye_")])
        expression = move(carry(head.expression)) * (near * ~eyes)[:, None, None]
        turned = [] if head.rig is None else np.asarray(head.rig.gaze.units).tolist()
        # A model without a tongue does not stick it out.
        kept = [k for k in range(len(names)) if np.abs(expression[..., k]).max() > _MOVES_MM or k in turned]
        names, expression = tuple(names[k] for k in kept), expression[..., kept]
    masks = {
        name: np.asarray(contents.masks.get(name, carry(mask) * near), np.float32) for name, mask in head.masks.items()
    }
    masks |= {name: mask for name, mask in contents.masks.items() if name not in masks}
    rig, jawless = contents.rig, contents.rig is not None and "jaw" not in contents.rig.names
    if rig is None or jawless:
        made_rig = _rig(contents, head, laid, to_head, part_names, parts)
        rig = made_rig if rig is None or made_rig is None else _joined(made_rig, rig)
    if rig is not None and (missing.expression or (jawless and not len(rig.gaze.units))):
        rig = dataclasses.replace(rig, gaze=_gaze(head, rig.names, part_names, names))
    if rig is not None:
        joints = GaussianBasis(rig.joints.mean - jnp.asarray(centre, jnp.float32), rig.joints.modes)
        rig = dataclasses.replace(rig, joints=joints)
    single = lambda values: jnp.asarray(np.asarray(values), jnp.float32)  # noqa: E731
    index = lambda values: jnp.asarray(np.asarray(values), jnp.int32)  # noqa: E731
    made = [name.replace("_", " ") for name, lacking in missing._asdict().items() if lacking]
    made += ["jaw joint"] * jawless
    made += ["jaw-line paths", *(f"mask {name}" for name in head.masks if name not in contents.masks)]
    return MorphableModel(
        shape=GaussianBasis(single(mean - centre), single(contents.identity)),
        expression=single(expression),
        albedo=GaussianBasis(single(albedo_mean), single(albedo_modes)),
        triangles=index(triangles),
        uv=single(carry(head.uv) if contents.uv is None else contents.uv),
        landmarks=landmarks,
        contour=contour,
        rig=rig,
        masks={name: single(np.round(255 * np.clip(mask, 0, 1)) / 255) for name, mask in masks.items()},
        mirror=index(
            mirror_table(mean, float(np.median(mean[skin, 0]))) if contents.mirror is None else contents.mirror
        ),
        residual=single(size * carry(head.residual) * near[:, None]),
        proxy_triangles=index(coarse_triangles(mean, triangles)),
        part_of_vertex=index(parts),
        expression_names=tuple(names),
        part_names=part_names,
        provenance=Provenance(
            name=contents.name,
            licence=contents.licence,
            licence_class=contents.licence_class,
            sha256=source.sha256,
            sources=(*contents.sources, *_credits(head, made), *(f"note: {note}" for note in contents.notes)),
            format=contents.format,
            unit_mm=float(contents.unit_mm),
            origin_mm=(-float(centre[0]), -float(centre[1]), -float(centre[2])),
            made=tuple(made),
        ),
        expression_kind=kind,
        interaction=None if contents.interaction is None else single(contents.interaction),
    )


def _credits(head: MorphableModel, made: list[str]) -> tuple[str, ...]:
    return (f"{', '.join(made)}: from {head.provenance.name} ({head.provenance.licence})",) if made else ()


def _parts(contents: Contents) -> tuple[Int[np.ndarray, " vertex"], tuple[str, ...]]:
    """The file's parts with "skin" among them; the largest piece is skin in a file that names none."""
    if contents.part_of_vertex is not None and "skin" in contents.part_names:
        return np.asarray(contents.part_of_vertex), contents.part_names
    mean, triangles = contents.mean, np.asarray(contents.triangles)
    # Seams of texture coordinates double vertices: what lies in one place is one piece.
    unique, welded = np.unique(np.asarray(mean, np.float32), axis=0, return_inverse=True)
    ids = welded.ravel()[triangles]
    edges = np.concatenate([ids[:, [0, 1]], ids[:, [1, 2]]])
    graph = sp.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(unique), len(unique)))
    _, piece = sp.csgraph.connected_components(graph, directed=False)
    area = np.linalg.norm(
        np.cross(unique[ids[:, 1]] - unique[ids[:, 0]], unique[ids[:, 2]] - unique[ids[:, 0]]), axis=1
    )
    largest = int(np.bincount(piece[ids[:, 0]], area).argmax())
    other = piece[welded.ravel()] != largest
    # Small loose pieces of a scan-like model, and vertices without triangles, are still skin unless they are solid.
    counts = np.bincount(piece[ids[:, 0]], minlength=piece.max() + 1)
    other &= counts[piece[welded.ravel()]] > 50
    return other.astype(np.int64), ("skin", "other") if other.any() else ("skin",)


def _given_landmarks(contents: Contents) -> Float[np.ndarray, "68 3"] | None:
    """Where the file has the 68 points, NaN where it does not say; None where it has too few to align by."""
    if contents.landmarks is None:
        return None
    weights = contents.landmarks.weights
    points = np.einsum("lk,lkc->lc", np.asarray(weights, float), contents.mean[contents.landmarks.vertices])
    # The jaw's 17 are where the outline is seen in one convention or another: they do not decide an alignment.
    return points if np.isfinite(points[17:]).all(axis=1).sum() >= 8 else None


def map_parts(
    mean: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    parts: Int[np.ndarray, " vertex"],
    part_names: tuple[str, ...],
    laid: Float[np.ndarray, "headvertex 3"],
    head: MorphableModel,
) -> SurfaceMap:
    """Each vertex's place on a registered head: skin on skin, and other parts on the part of the same name.

    The distance is infinite at vertices without triangles.
    """
    of_head = np.asarray(head.triangles)
    head_parts = {name: of_head[head.part(name).triangles] for name in head.part_names}
    normals = unit_normals(mean, triangles)
    used = np.zeros(len(mean), bool)
    used[triangles] = True
    triangle, corners = np.zeros(len(mean), int), np.zeros((len(mean), 3), int)
    weights, distance = np.zeros((len(mean), 3)), np.full(len(mean), np.inf)
    for k, name in enumerate(part_names):
        own = parts == k
        if not own.any():
            continue
        on = head_parts.get(name, of_head)
        if name == "skin":
            # A face without eyeballs may have eyes in its skin: what they look like is known on the head's eyeballs.
            eyes = [head_parts[eye] for eye in ("eye_left", "eye_right") if eye in head_parts and eye not in part_names]
            on = np.concatenate([on, *eyes])
        points = mean[own]
        surface = laid
        if name in head_parts and name in _NOT_SKIN:
            surface = _fitted_part(laid, on, mean[own & used] if (own & used).any() else points)
        found = oriented_map(points, normals[own], surface, on)
        if name == "skin":
            found = _consistent(found, points, triangles, own, surface, on, head)
        corners[own], weights[own], distance[own], triangle[own] = found.corners, found.weights, found.distance, 0
    distance[~used] = np.inf
    return SurfaceMap(triangle, corners, weights, distance)


def _consistent(
    found: SurfaceMap,
    points: Float[np.ndarray, "point 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    own: Bool[np.ndarray, " vertex"],
    surface: Float[np.ndarray, "headvertex 3"],
    on: Int[np.ndarray, "headtriangle 3"],
    head: MorphableModel,
) -> SurfaceMap:
    """The map with every vertex on the same side of mouth and eyes as its neighbours.

    Where lips meet, their rims lie in one place and face one way; only what hangs on a vertex tells which lip it is of.
    A vertex that the head's opening units take elsewhere than the median of its neighbours is mapped again, to where
    they agree with those.
    """
    openings = [k for k, name in enumerate(head.expression_names) if name in _OPENINGS]
    if not openings:
        return found
    moves = np.asarray(head.expression, float)[..., openings].reshape(len(surface), -1)
    number = np.full(len(own), -1)
    number[own] = np.arange(int(own.sum()))
    inner = number[triangles[own[triangles].all(axis=1)]]
    pairs = np.concatenate([inner[:, [0, 1]], inner[:, [1, 2]], inner[:, [2, 0]]])
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    first = np.searchsorted(pairs[:, 0], np.arange(len(points) + 1))
    corners, weights, distance = found.corners.copy(), found.weights.copy(), found.distance.copy()
    middles, of_triangle = surface[on].mean(axis=1), moves[on].mean(axis=1)
    for _ in range(_CONSISTENT_ROUNDS):
        at = np.einsum("pk,pkm->pm", weights, moves[corners])
        apart = np.abs(at[pairs[:, 0]] - at[pairs[:, 1]]).max(axis=1) > _TORN_MM
        changed = False
        for vertex in np.unique(pairs[apart, 0]):
            around = pairs[first[vertex] : first[vertex + 1], 1]
            wanted = np.median(at[around], axis=0)
            if np.abs(at[vertex] - wanted).max() <= _TORN_MM:
                continue
            alike = np.flatnonzero(np.abs(of_triangle - wanted).max(axis=1) < _TORN_MM)
            if not len(alike):
                continue
            near = alike[np.argsort(np.linalg.norm(middles[alike] - points[vertex], axis=1))[:_CANDIDATES]]
            again = oriented_map(points[vertex][None], np.zeros((1, 3)), surface, on[near])
            if again.distance[0] < _REACH_MM:
                corners[vertex], weights[vertex] = again.corners[0], again.weights[0]
                distance[vertex], changed = again.distance[0], True
        if not changed:
            break
    return SurfaceMap(found.triangle, corners, weights, distance)


def _fitted_part(laid, on: Int[np.ndarray, "triangle 3"], target: Float[np.ndarray, "point 3"]):
    """The laid head with one rigid part moved and scaled onto the other model's: an eyeball on an eyeball."""
    own = np.unique(on)
    size = lambda x: np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean())  # noqa: E731
    source = laid[own]
    moved = np.array(laid)
    factor = size(target) / max(size(source), 1e-9)
    moved[own] = (source - source.mean(axis=0)) * factor + target.mean(axis=0)
    return moved


class _Onto(NamedTuple):
    """Places on the model's skin for points of the laid head."""

    find: Callable[[SurfacePoints], tuple[Int[np.ndarray, "point 3"], Float[np.ndarray, "point 3"]]]


def _onto(laid, head: MorphableModel, mean, skin_triangles) -> _Onto:
    normals = unit_normals(laid, np.asarray(head.triangles))

    def find(points: SurfacePoints):
        corners, weights = np.asarray(points.vertices), np.asarray(points.weights, float)
        at = np.einsum("pk,pkc->pc", weights, laid[corners])
        towards = np.einsum("pk,pkc->pc", weights, normals[corners])
        towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12)
        found = oriented_map(at, towards, mean, skin_triangles)
        return found.corners, found.weights

    return _Onto(find)


def _landmarks(contents: Contents, head: MorphableModel, onto: _Onto) -> SurfacePoints:
    """The file's landmarks, and the head's where the file has none."""
    corners, weights = onto.find(head.landmarks)
    given = contents.landmarks or Points(np.zeros((68, 3), np.int32), np.full((68, 3), np.nan, np.float32))
    own = np.isfinite(given.weights).all(axis=1)
    corners[own], weights[own] = given.vertices[own], given.weights[own]
    return SurfacePoints(jnp.asarray(corners, jnp.int32), jnp.asarray(weights, jnp.float32))


def _contour(head: MorphableModel, onto: _Onto) -> ContourFans | None:
    if head.contour is None:
        return None
    fans = head.contour
    flat = SurfacePoints(fans.vertices.reshape(-1, 3), fans.weights.reshape(-1, 3))
    corners, weights = onto.find(flat)
    shape = fans.vertices.shape
    return ContourFans(jnp.asarray(corners.reshape(shape), jnp.int32), jnp.asarray(weights.reshape(shape), jnp.float32))


def _between_eyes(contents: Contents, head: MorphableModel, laid: Registration, mean) -> Float[np.ndarray, "3"]:
    """The point midway between the eyeballs: of the file's rig or eyeballs, else of the laid head."""
    if contents.rig is not None and {"eye_left", "eye_right"} <= set(contents.rig.names):
        joints = np.asarray(contents.rig.joints.mean, float)
        return (joints[contents.rig.names.index("eye_left")] + joints[contents.rig.names.index("eye_right")]) / 2
    if head.rig is None or not {"eye_left", "eye_right"} <= set(head.rig.names):
        return laid.similarity(np.zeros((1, 3)))[0]
    joints = _carried_joints(head, laid)
    return (joints[head.rig.names.index("eye_left")] + joints[head.rig.names.index("eye_right")]) / 2


def _carried_joints(head: MorphableModel, laid: Registration) -> Float[np.ndarray, "joint 3"]:
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


def _rig(
    contents: Contents,
    head: MorphableModel,
    laid: Registration,
    to_head: SurfaceMap,
    part_names: tuple[str, ...],
    parts: Int[np.ndarray, " vertex"],
) -> Rig | None:
    """The head's joints in the model, following its identity, with its skinning weights carried over."""
    if head.rig is None:
        return None
    mean, identity = np.asarray(contents.mean, float), np.asarray(contents.identity, float)
    joints = _carried_joints(head, laid)
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
        gaze=Gaze(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32), jnp.zeros((0, 3))),
        names=head.rig.names,
        parents=head.rig.parents,
    )


def _joined(made: Rig, given: Rig) -> Rig:
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


def _gaze(head: MorphableModel, joints: tuple[str, ...], part_names: tuple[str, ...], units: tuple[str, ...]) -> Gaze:
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


def coarse_triangles(
    vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]
) -> Int[np.ndarray, "coarse 3"]:
    """The surface on a few thousand of its own vertices, for visibility: vertices are gathered to evenly spread ones.

    Vertex clustering (Rossignac & Borrel 1993): triangles whose corners fall into three clusters remain. A mesh that
    is coarse enough is returned as it is.
    """
    used = np.unique(triangles)
    if len(used) <= _FAST_ENOUGH:
        return triangles
    chosen = spread(vertices[used], _PROXY_VERTICES)
    cluster = np.zeros(len(vertices), int)
    cluster[used] = used[chosen[KDTree(vertices[used[chosen]]).query(vertices[used])[1]]]
    coarse = cluster[triangles]
    kept = (coarse[:, 0] != coarse[:, 1]) & (coarse[:, 1] != coarse[:, 2]) & (coarse[:, 2] != coarse[:, 0])
    coarse = coarse[kept]
    _, first = np.unique(np.sort(coarse, axis=1), axis=0, return_index=True)
    return coarse[np.sort(first)]


def spread(points: Float[np.ndarray, "point 3"], count: int) -> Int[np.ndarray, " chosen"]:
    """Indices of about `count` points, evenly spread: the point nearest to the middle of each cell of a grid."""
    low, size = points.min(axis=0), float(np.ptp(points, axis=0).max())
    finest, cells = 4 * int(np.sqrt(count)), np.zeros((0, 3))
    first = np.arange(len(points))
    for per_side in range(8, finest):
        cells = np.floor((points - low) / (size / per_side)).astype(int)
        _, first = np.unique(cells, axis=0, return_index=True)
        if len(first) >= count:
            break
    return first
