"""Landmarks on a mesh of any topology, a model's or a scan's: draw it, detect, go back to the surface, agree."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from fitting.detection import NoFaceError, detect_faces
from fitting.observation import Photo
from fitting.pictures import drawable, portrait_camera, studio_light
from morphable.building.scans import Scan
from morphable.colour import linear_to_srgb, srgb_to_linear
from morphable.landmarks import JAW, MIRROR_68, SurfacePoints
from morphable.mesh import Mesh, vertex_normals
from morphable.model import MorphableModel
from morphable.registration.oriented_map import oriented_map
from renderer.render import render

VIEWS = tuple((yaw, pitch) for pitch in (0.0, -10.0, 10.0) for yaw in (0.0, -12.0, 12.0, -25.0, 25.0))  # degrees
_SIZE = 512  # of the pictures
_BACKGROUND = 0.35  # linear RGB
_LEAST_VIEWS = 3
_SEARCH_PX = 12  # around a landmark that lies off the head
_SYMMETRIC_MM = 6.0
_FEW_VIEWS = VIEWS[:5]
_FRONTAL_DEG = 5.0
_LEAST_POINTS = 20
_SKIN = (0.78, 0.6, 0.5)  # sRGB, of meshes without colours


class FoundLandmarks(NamedTuple):
    """What the views agree on."""

    points: SurfacePoints  # iBUG-68, on the skin
    positions: Float[np.ndarray, "68 3"]  # mm, on the mean
    spread_mm: Float[np.ndarray, "68"]  # median distance of the views' points from the agreed one
    views: int  # in which a face was found


class ModelLandmarkError(ValueError):
    """A model in whose pictures no face is found: what, got, expected, remedy."""


def find_landmarks(model: MorphableModel, views: Sequence[tuple[float, float]] = VIEWS) -> FoundLandmarks:
    """The detector's 68 points on a model's mean face.

    Each view's points are taken back to the surface where they were seen. The median over views, and over the two
    sides of a symmetric face, is set on the nearest skin that faces the same way. Raises ModelLandmarkError where a
    face is found in too few of the pictures.
    """
    mesh = dataclasses.replace(drawable(model, model.mean), albedo=model.albedo_linear(jnp.zeros(model.albedo.rank)))
    seen = seen_landmarks(mesh, views)
    found = int(np.isfinite(seen).any(axis=(1, 2)).sum())
    if found < _LEAST_VIEWS or np.isfinite(seen).all(axis=2).sum(axis=0).min() == 0:
        raise ModelLandmarkError(
            f"{model.provenance.name}: a face was found in {found} of {len(views)} pictures of its mean, expected "
            f"{_LEAST_VIEWS} or more. Does it look along +z, in mm, in natural colours? Else edit the landmarks that "
            "'facefit model convert' carries over from the embedded head."
        )
    agreed = np.nanmedian(seen, axis=0)
    mirrored = agreed[MIRROR_68] * [-1, 1, 1]
    symmetric = np.linalg.norm(agreed - mirrored, axis=1) < _SYMMETRIC_MM
    agreed = np.where(symmetric[:, None], (agreed + mirrored) / 2, agreed)
    spread = np.nanmedian(np.linalg.norm(seen - agreed, axis=2), axis=0)
    triangles = np.asarray(model.triangles)
    mean, normals = np.asarray(model.mean, float), np.asarray(vertex_normals(model.mean, model.triangles), float)
    skin = triangles[model.part("skin").triangles] if "skin" in model.part_names else triangles
    near = oriented_map(agreed, np.zeros((68, 3)), mean, skin)
    towards = np.einsum("pk,pkc->pc", near.weights, normals[near.corners])
    # Inside the mouth and the nostrils there is skin, too; what was seen faces the front.
    towards = towards + [0.0, 0.0, 0.5]
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    places = oriented_map(agreed, towards, mean, skin)
    points = SurfacePoints(jnp.asarray(places.corners, jnp.int32), jnp.asarray(places.weights, jnp.float32))
    return FoundLandmarks(points, places(mean), spread, found)


def seen_landmarks(mesh: Mesh, views: Sequence[tuple[float, float]] = VIEWS) -> Float[np.ndarray, "view 68 3"]:
    """The detector's points in pictures of a mesh (mm, looking along +z, y up), taken back to its surface.

    NaN in views without a face. The jaw's 17 are those of views from the front, as elsewhere the detector sets them on
    the outline, which is another curve on the head. A mesh without colours is drawn in skin's.
    """
    if mesh.albedo is None:
        skin = srgb_to_linear(jnp.asarray(_SKIN))
        mesh = dataclasses.replace(mesh, albedo=jnp.broadcast_to(skin, mesh.vertices.shape))
    light = studio_light()
    seen = np.full((len(views), 68, 3), np.nan)
    for row, (yaw, pitch) in zip(seen, views, strict=True):
        camera = portrait_camera(np.asarray(mesh.vertices), yaw, _SIZE, pitch)
        picture = render(mesh, camera, jnp.asarray(light, jnp.float32))
        colour = picture.over(jnp.full((_SIZE, _SIZE, 3), _BACKGROUND))
        pixels = np.asarray(linear_to_srgb(jnp.clip(colour, 0, 1)))
        try:
            face = detect_faces(Photo(np.round(255 * pixels).astype(np.uint8)))[0]
        except NoFaceError:
            continue
        row[:] = _back_projected(face.landmarks, picture, mesh)
        if abs(yaw) > _FRONTAL_DEG:
            row[JAW] = np.nan
    return seen


def with_detected_landmarks(scans: Sequence[Scan], say: Callable[[str], None]) -> list[Scan]:
    """The scans, those without landmarks with the points that a detector finds in pictures of them.

    A scan in whose pictures there is no face stays as it is; `say` tells.
    """
    out = []
    for scan in scans:
        if scan.landmarks is not None:
            out.append(scan)
            continue
        colours = None if scan.colours is None else srgb_to_linear(jnp.asarray(scan.colours, jnp.float32))
        mesh = Mesh(jnp.asarray(scan.vertices, jnp.float32), jnp.asarray(scan.triangles, jnp.int32), albedo=colours)
        seen = seen_landmarks(mesh, _FEW_VIEWS)
        points = np.full((68, 3), np.nan)
        known = np.asarray(np.isfinite(seen).all(axis=2).any(axis=0))
        points[known] = np.nanmedian(seen[:, known], axis=0)
        if known[JAW.stop :].sum() < _LEAST_POINTS:
            say(f"  {scan.name}: no face in pictures of it; it is registered without landmarks")
            out.append(scan)
        else:
            out.append(dataclasses.replace(scan, landmarks=points))
    return out


def landmark_picture(model: MorphableModel, path: str | Path) -> None:
    """Write a picture of a model's landmarks on its mean face, from the front and from both sides."""
    mesh = dataclasses.replace(drawable(model, model.mean), albedo=model.albedo_linear(jnp.zeros(model.albedo.rank)))
    points = np.asarray(model.landmarks(model.mean))
    tiles = []
    for yaw in (-35.0, 0.0, 35.0):
        camera = portrait_camera(np.asarray(mesh.vertices), yaw, _SIZE)
        picture = render(mesh, camera, jnp.asarray(studio_light(), jnp.float32))
        colour = picture.over(jnp.full((_SIZE, _SIZE, 3), _BACKGROUND))
        tile = Image.fromarray(np.round(255 * np.asarray(linear_to_srgb(jnp.clip(colour, 0, 1)))).astype(np.uint8))
        draw = ImageDraw.Draw(tile)
        for x, y in np.asarray(camera.project(jnp.asarray(points))):
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(40, 220, 60))
        tiles.append(np.asarray(tile))
    Image.fromarray(np.concatenate(tiles, axis=1)).save(path)


def _back_projected(landmarks: Float[np.ndarray, "68 2"], picture, mesh) -> Float[np.ndarray, "68 3"]:
    """The surface points under the pixels of landmarks; of those off the head, under the nearest pixel on it."""
    ids = np.asarray(picture.triangle_ids)
    weights = np.asarray(picture.barycentrics, float)
    rows, columns = np.nonzero(ids >= 0)
    vertices, triangles = np.asarray(mesh.vertices, float), np.asarray(mesh.triangles)
    out = np.full((68, 3), np.nan)
    if not len(rows):
        return out
    for k, (u, v) in enumerate(np.asarray(landmarks, float)):
        if not np.isfinite([u, v]).all():
            continue
        apart = (columns + 0.5 - u) ** 2 + (rows + 0.5 - v) ** 2
        best = int(apart.argmin())
        if apart[best] > _SEARCH_PX**2:
            continue
        row, column = rows[best], columns[best]
        out[k] = weights[row, column] @ vertices[triangles[ids[row, column]]]
    return out
