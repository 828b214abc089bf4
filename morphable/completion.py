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
from jaxtyping import Float, Int

from morphable.basis import GaussianBasis
from morphable.carried_rig import carried_gaze, carried_joints, carried_rig, joined_rig, no_gaze
from morphable.decimation import coarse_triangles
from morphable.io.contents import Contents, Source
from morphable.landmarks import JAW, ContourFans, SurfacePoints
from morphable.model import MorphableModel, Provenance
from morphable.part_map import REACH_MM, map_parts
from morphable.registration import Registration, register
from morphable.registration.oriented_map import oriented_map, unit_normals
from morphable.symmetry import mirror_table

_SOFT_MM = 6.0  # a vertex nearer to the registered head than this is wholly a counterpart, beyond REACH_MM none
_MOVES_MM = 0.2  # a carried expression unit that moves nothing farther is none


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
            rig = dataclasses.replace(rig, joints_expression=None, gaze=no_gaze())
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
    near = np.clip((REACH_MM - to_head.distance) / (REACH_MM - _SOFT_MM), 0.0, 1.0)
    carry = lambda values: to_head(np.asarray(values, float))  # noqa: E731
    normals = unit_normals(laid.vertices, np.asarray(head.triangles))

    def onto(points: SurfacePoints) -> SurfacePoints:  # the head's points on the model's skin
        at, towards = points(jnp.asarray(laid.vertices)), points(jnp.asarray(normals))
        at, towards = np.asarray(at, float), np.asarray(towards, float)
        towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12)
        found = oriented_map(at, towards, mean, skin_triangles)
        return SurfacePoints(jnp.asarray(found.corners, jnp.int32), jnp.asarray(found.weights, jnp.float32))

    centre = _between_eyes(contents, head, laid, mean)
    landmarks = _landmarks(contents, onto(head.landmarks))
    contour = _contour(head.contour, onto)
    mandible = None if _has_jaw(contents) or head.mandible is None else onto(head.mandible)
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
        name: carry(mask) * near for name, mask in head.masks.items() if name not in contents.masks
    } | contents.masks
    rig, jawless = contents.rig, contents.rig is not None and "jaw" not in contents.rig.names
    if rig is None or jawless:
        made_rig = carried_rig(mean, np.asarray(contents.identity, float), head, laid, to_head, part_names, parts)
        rig = made_rig if rig is None or made_rig is None else joined_rig(made_rig, rig)
    if rig is not None and (missing.expression or (jawless and not len(rig.gaze.units))):
        rig = dataclasses.replace(rig, gaze=carried_gaze(head, rig.names, part_names, names))
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
        mandible=mandible,
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


def _landmarks(contents: Contents, carried: SurfacePoints) -> SurfacePoints:
    """The file's landmarks, and the carried ones where the file has none."""
    if contents.landmarks is None:
        return carried
    corners, weights = (np.array(x) for x in (carried.vertices, carried.weights))
    own = np.isfinite(contents.landmarks.weights).all(axis=1)
    corners[own], weights[own] = contents.landmarks.vertices[own], contents.landmarks.weights[own]
    return SurfacePoints(jnp.asarray(corners, jnp.int32), jnp.asarray(weights, jnp.float32))


def _has_jaw(contents: Contents) -> bool:
    """Whether the file says where the jaw's landmarks are, in its own convention."""
    return contents.landmarks is not None and bool(np.isfinite(contents.landmarks.weights[JAW]).any())


def _contour(fans: ContourFans | None, onto: Callable[[SurfacePoints], SurfacePoints]) -> ContourFans | None:
    if fans is None:
        return None
    placed = onto(SurfacePoints(fans.vertices.reshape(-1, 3), fans.weights.reshape(-1, 3)))
    return ContourFans(placed.vertices.reshape(fans.vertices.shape), placed.weights.reshape(fans.weights.shape))


def _between_eyes(contents: Contents, head: MorphableModel, laid: Registration, mean) -> Float[np.ndarray, "3"]:
    """The point midway between the eyeballs: of the file's rig or eyeballs, else of the laid head."""
    if contents.rig is not None and {"eye_left", "eye_right"} <= set(contents.rig.names):
        joints = np.asarray(contents.rig.joints.mean, float)
        return (joints[contents.rig.names.index("eye_left")] + joints[contents.rig.names.index("eye_right")]) / 2
    if head.rig is None or not {"eye_left", "eye_right"} <= set(head.rig.names):
        return laid.similarity(np.zeros((1, 3)))[0]
    joints = carried_joints(head, laid)
    return (joints[head.rig.names.index("eye_left")] + joints[head.rig.names.index("eye_right")]) / 2
