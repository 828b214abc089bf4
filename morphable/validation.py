"""Whether a model is sound: every inconsistency between its parts, not only the first."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from morphable.landmarks import MIRROR_68, SurfacePoints
from morphable.mesh import triangle_areas_normals
from morphable.model import MorphableModel

_HEAD_MM = (80.0, 600.0)  # between which the largest side of a mean's box lies, from a bare face to head and shoulders
_EYES_MM = (45.0, 80.0)  # distance of the outer eye corners' middles, left to right
_WIDE_MM = 30.0  # rms displacement of one deviation that no face shows
_FAR_MM = 120.0  # displacement of an expression unit that no face shows
_JOINTS_MM = 200.0  # a bare face still turns about its neck
_MIRROR_MM = 3.0  # between a vertex and the mirror image of its counterpart


class Finding(NamedTuple):
    """One thing that is wrong ("error": results will be) or strange ("warning") with a model."""

    level: str
    where: str  # "triangles", "landmarks", ...
    what: str  # got, expected


def validate(model: MorphableModel) -> list[Finding]:
    """All findings; none for a sound model. Errors first."""
    findings: list[Finding] = []
    for check in _CHECKS:
        findings += check(model)
    return sorted(findings, key=lambda finding: finding.level)  # "error" comes before "warning"


def _errors(where: str, *pairs: tuple[bool | np.bool_, str]) -> Iterator[Finding]:
    return (Finding("error", where, what) for wrong, what in pairs if wrong)


def _warnings(where: str, *pairs: tuple[bool | np.bool_, str]) -> Iterator[Finding]:
    return (Finding("warning", where, what) for wrong, what in pairs if wrong)


def _numbers(m: MorphableModel) -> Iterator[Finding]:
    arrays = {
        "mean": m.shape.mean,
        "identity": m.shape.modes,
        "expression": m.expression,
        "albedo mean": m.albedo.mean,
        "albedo": m.albedo.modes,
        "uv": m.uv,
        "residual": m.residual,
        **{f"mask {name}": mask for name, mask in m.masks.items()},
    }
    for name, values in arrays.items():
        bad = int((~np.isfinite(np.asarray(values))).sum())
        yield from _errors(name, (bad > 0, f"{bad} values are no numbers, expected finite ones"))


def _sizes(m: MorphableModel) -> Iterator[Finding]:
    count = len(m.mean)
    rows = {
        "identity": m.shape.modes,
        "expression": m.expression,
        "albedo": m.albedo.mean,
        "albedo modes": m.albedo.modes,
        "uv": m.uv,
        "mirror": m.mirror,
        "parts": m.part_of_vertex,
        **{f"mask {name}": mask for name, mask in m.masks.items()},
    }
    for name, values in rows.items():
        yield from _errors(name, (len(values) != count, f"{len(values)} rows, expected {count}, one for each vertex"))
    ids = {
        "triangles": (m.triangles, count),
        "proxy triangles": (m.proxy_triangles, count),
        "mirror": (m.mirror, count),
        **{name: (points.vertices, count) for name, points in _named_points(m).items()},
        "parts": (m.part_of_vertex, len(m.part_names)),
    }
    for name, (values, below) in ids.items():
        values = np.asarray(values)
        outside = values.size > 0 and not (0 <= values.min() and values.max() < below)
        yield from _errors(name, (outside, f"indices outside of 0 to {below - 1}"))


def _topology(m: MorphableModel) -> Iterator[Finding]:
    triangles = np.asarray(m.triangles)
    if not _usable(m):
        return
    twice = (np.sort(triangles, axis=1)[:, 1:] == np.sort(triangles, axis=1)[:, :-1]).any(axis=1)
    _, copies = np.unique(np.sort(triangles, axis=1), axis=0, return_counts=True)
    edges = np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)])
    _, directed = np.unique(edges, axis=0, return_counts=True)
    _, uses = np.unique(np.sort(edges, axis=1), axis=0, return_counts=True)
    unused = len(m.mean) - len(np.unique(triangles))
    mean = np.asarray(m.mean, float)
    area = np.linalg.norm(_facing(mean, triangles), axis=1) / 2
    yield from _errors(
        "triangles",
        (bool(twice.any()), f"{int(twice.sum())} have a corner twice, expected three different ones"),
        (bool((copies > 1).any()), f"{int((copies > 1).sum())} occur more than once"),
        (
            bool((directed > 1).any()) and not bool((uses > 2).any()),
            f"{int((directed > 1).sum())} edges are run through twice in one direction: neighbours face opposite sides",
        ),
    )
    yield from _warnings(
        "triangles",
        (bool((uses > 2).any()), f"{int((uses > 2).sum())} edges have more than two triangles"),
        (bool((area < 1e-8).any()), f"{int((area < 1e-8).sum())} have no area in the mean"),
        (unused > 0, f"{unused} vertices belong to none"),
    )


def _orientation(m: MorphableModel) -> Iterator[Finding]:
    if not _usable(m):
        return
    mean, triangles = np.asarray(m.mean, float), np.asarray(m.triangles)
    # Around the nose's tip a face's surface looks forward.
    tip = np.asarray(m.landmarks(m.mean), float)[30]
    near = np.linalg.norm(mean[triangles].mean(axis=1) - tip, axis=1) < 25
    forward = _facing(mean, triangles)[near].sum(axis=0)
    yield from _errors(
        "orientation",
        (
            bool(near.any()) and forward[2] < 0,
            "triangles beside the nose face inwards, expected counter-clockwise order seen from outside and a face "
            "that looks along +z",
        ),
    )


def _scale(m: MorphableModel) -> Iterator[Finding]:
    if not _usable(m):
        return
    mean = np.asarray(m.mean, float)
    size = float(np.ptp(mean[np.unique(np.asarray(m.triangles))], axis=0).max())
    points = np.asarray(m.landmarks(m.mean), float)
    eyes = [points[36:42].mean(axis=0), points[42:48].mean(axis=0)]
    apart, middle = float(np.linalg.norm(eyes[1] - eyes[0])), (eyes[0] + eyes[1]) / 2
    low, high = _HEAD_MM
    yield from _errors(
        "unit", (not low < size < high, f"the mean is {size:.4g} mm large, expected {low:g} to {high:g}: another unit?")
    )
    low, high = _EYES_MM
    yield from _warnings(
        "unit", (not low < apart < high, f"the eyes are {apart:.3g} mm apart, expected {low:g} to {high:g}")
    )
    yield from _warnings(
        "origin",
        (
            bool(np.abs(middle[:2]).max() > 15 or abs(middle[2]) > 60),
            f"the eyes' middle is at {middle.round(0).tolist()} mm, expected the origin between the eyeballs",
        ),
    )


def _modes(m: MorphableModel) -> Iterator[Finding]:
    sigma = np.asarray(m.shape.sigma, float)
    rank = m.shape.rank
    flat = np.asarray(m.shape.modes, float).reshape(-1, rank)
    length = np.linalg.norm(flat, axis=0)
    unit = flat / np.maximum(length, 1e-12)
    alike = int((np.abs(np.triu(unit.T @ unit, 1)) > 0.999).sum())
    reach = np.abs(np.asarray(m.expression, float)).max(axis=(0, 1), initial=0.0)
    names = np.array(m.expression_names)
    limit = _FAR_MM if m.expression_kind == "units" else _FAR_MM / 3
    far = names[reach > limit].tolist()
    yield from _errors(
        "identity",
        (bool((sigma > _WIDE_MM).any()), f"a mode moves vertices by {sigma.max(initial=0):.3g} mm rms, expected < 30"),
        (alike > 0, f"{alike} pairs of modes are the same up to scale"),
    )
    yield from _errors("expression", (bool(far), f"{', '.join(far)} move vertices by more than {limit:.0f} mm"))
    yield from _warnings(
        "identity",
        (bool((length < 1e-6).any()), f"{int((length < 1e-6).sum())} modes move nothing"),
        (bool((np.diff(sigma) > 0.25 * sigma.max(initial=0)).any()), "modes are not ordered by size"),
    )
    still = names[(reach < 1e-4) & ~np.isin(np.arange(len(names)), _gazing(m))].tolist()
    yield from _warnings("expression", (bool(still), f"{', '.join(still)} move nothing"))
    if m.expression_kind == "units":
        yield from _sides(m)


def _sides(m: MorphableModel) -> Iterator[Finding]:
    """A unit named Left moves the subject's left, where x is positive."""
    x = np.asarray(m.mean, float)[:, 0]
    for k, name in enumerate(m.expression_names):
        if name.endswith(("Left", "Right")) and not name.startswith(("jaw", "mouthLeft", "mouthRight")):
            moved = np.linalg.norm(np.asarray(m.expression[..., k], float), axis=1)
            left, right = moved[x > 0].sum(), moved[x < 0].sum()
            wrong = left < right / 2 if name.endswith("Left") else right < left / 2
            yield from _errors("expression", (bool(wrong), f"{name} moves the other side, expected +x for left"))


def _albedo(m: MorphableModel) -> Iterator[Finding]:
    mean = np.asarray(m.albedo.mean, float)
    outside = int(((mean < -0.01) | (mean > 1.01)).any(axis=1).sum())
    face = np.asarray(m.masks.get("face", np.ones(len(mean)))) > 0.5
    brightness = float(mean[face].mean()) if face.any() else 0.5
    yield from _errors(
        "albedo", (not 0.05 < brightness < 0.98, f"the mean face's is {brightness:.2f}, expected sRGB in [0, 1]")
    )
    yield from _warnings("albedo", (outside > 0, f"{outside} vertices' mean lies outside of [0, 1]"))


def _named_points(m: MorphableModel) -> dict[str, SurfacePoints]:
    return {"landmarks": m.landmarks} | ({} if m.mandible is None else {"mandible": m.mandible})


def _landmarks(m: MorphableModel) -> Iterator[Finding]:
    if not _usable(m):
        return
    triangles = {tuple(t) for t in np.sort(np.asarray(m.triangles), axis=1).tolist()}
    for name, placed in _named_points(m).items():
        weights = np.asarray(placed.weights, float)
        corners = np.sort(np.asarray(placed.vertices), axis=1)
        single = weights.max(axis=1) > 1 - 1e-6
        astray = [k for k, t in enumerate(corners.tolist()) if not single[k] and tuple(t) not in triangles]
        pairs = np.abs(weights.sum(axis=1) - 1) > 0.01
        yield from _errors(
            name,
            (bool(pairs.any()), f"weights of {np.flatnonzero(pairs).tolist()} do not sum to 1"),
            (bool(astray), f"{astray} are on no triangle of the mesh"),
        )
    points = np.asarray(m.landmarks(m.mean), float)
    off = np.linalg.norm(points * [-1, 1, 1] - points[MIRROR_68], axis=1)
    off = np.abs(off - np.median(off))
    yield from _errors(
        "landmarks",
        (
            not points[36:42, 0].mean() < points[30, 0] < points[42:48, 0].mean(),
            "36-41 lie on the subject's left of 42-47, expected iBUG's order, right eye first",
        ),
        (
            not points[36:48, 1].mean() > points[33, 1] > points[57, 1] > points[8, 1],
            "eyes, nose, lower lip and chin (36-47, 33, 57, 8) are not in this order from top to bottom",
        ),
    )
    yield from _warnings(
        "landmarks",
        (
            bool((off > 6).any()),
            f"{np.flatnonzero(off > 6).tolist()} and their mirror images differ by more than 6 mm",
        ),
    )
    if m.contour is None:
        yield from _warnings("contour", (True, "no jaw-line paths: in turned heads the jaw's landmarks cannot slide"))


def _mirror(m: MorphableModel) -> Iterator[Finding]:
    mirror, mean = np.asarray(m.mirror), np.asarray(m.mean, float)
    if not _usable(m) or mirror.max(initial=0) >= len(mean):
        return
    used = np.unique(np.asarray(m.triangles))
    involution = float((mirror[mirror[used]] != used).mean())
    apart = np.linalg.norm(mean[used] * [-1, 1, 1] - mean[mirror[used]], axis=1)
    far = float((apart > _MIRROR_MM).mean())
    yield from _errors("mirror", (involution > 0.3, f"{involution:.0%} of vertices are not their mirror's mirror"))
    yield from _warnings(
        "mirror", (far > 0.25, f"{far:.0%} of vertices lie more than {_MIRROR_MM:g} mm from their mirror's image")
    )


def _texture(m: MorphableModel) -> Iterator[Finding]:
    if not _usable(m):
        return
    uv, triangles = np.asarray(m.uv, float), np.asarray(m.triangles)
    outside = int(((uv < -1e-3) | (uv > 1 + 1e-3)).any(axis=1).sum())
    a, b, c = (uv[triangles[:, k]] for k in range(3))
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    solid = area[np.abs(area) > 1e-12]
    against = float(min((solid > 0).mean(), (solid < 0).mean())) if len(solid) else 1.0
    yield from _errors("uv", (not len(solid), "no triangle has an area in the map"))
    yield from _warnings(
        "uv",
        (outside > 0, f"{outside} vertices lie outside of [0, 1]"),
        (0.02 < against < 1.0, f"{against:.0%} of triangles are turned over in the map"),
    )


def _masks(m: MorphableModel) -> Iterator[Finding]:
    for name, mask in m.masks.items():
        values = np.asarray(mask)
        wrong = values.size > 0 and not (-1e-3 <= values.min() and values.max() <= 1 + 1e-3)
        yield from _errors(f"mask {name}", (wrong, f"values from {values.min():.3g} to {values.max():.3g}, not 0 to 1"))
    face = np.asarray(m.masks.get("face", np.ones(1)))
    yield from _errors("mask face", (not (face > 0.9).any(), "nothing of the model is face: no photo can be explained"))


def _rig(m: MorphableModel) -> Iterator[Finding]:
    if m.rig is None:
        yield from _warnings("rig", (True, "no skeleton: the head cannot be posed"))
        return
    weights, joints = np.asarray(m.rig.weights, float), np.asarray(m.rig.joints.mean, float)
    used = np.unique(np.asarray(m.triangles))
    off = np.abs(weights[used].sum(axis=1) - 1) > 0.01
    mean = np.asarray(m.mean, float)[used]
    beyond = ((joints < mean.min(axis=0) - _JOINTS_MM) | (joints > mean.max(axis=0) + _JOINTS_MM)).any(axis=1)
    names = np.array(m.rig.names)
    yield from _errors(
        "rig",
        (len(weights) != len(m.mean), f"weights for {len(weights)} vertices, expected {len(m.mean)}"),
        (bool(off.any()), f"weights of {int(off.sum())} vertices do not sum to 1"),
        (bool(beyond.any()), f"joints {names[beyond].tolist()} lie outside of the head"),
    )
    yield from _warnings("rig", (bool((weights < -1e-3).any()), "some weights are negative"))


def _licence(m: MorphableModel) -> Iterator[Finding]:
    p = m.provenance
    yield from _warnings("licence", (p.licence_class == "unknown", f"{p.licence!r}: what it allows is not known"))


_CHECKS: tuple[Callable[[MorphableModel], Iterator[Finding]], ...] = (
    *(_numbers, _sizes, _topology, _orientation, _scale, _modes, _albedo, _landmarks, _mirror, _texture, _masks, _rig),
    _licence,
)


def _usable(m: MorphableModel) -> bool:
    """Whether the surface can be looked at: `_sizes` and `_numbers` have said so where not."""
    triangles, points = np.asarray(m.triangles), np.asarray(m.landmarks.vertices)
    inside = min(triangles.min(initial=0), points.min(initial=0)) >= 0
    below = max(triangles.max(initial=0), points.max(initial=0)) < len(m.mean)
    return bool(inside and below and len(triangles) and np.isfinite(np.asarray(m.mean)).all())


def _facing(mean: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]):
    return np.asarray(triangle_areas_normals(jnp.asarray(mean, jnp.float32), jnp.asarray(triangles)), float)


def _gazing(m: MorphableModel) -> np.ndarray:
    """Units that turn the eyes need move no vertex."""
    return np.zeros(0, int) if m.rig is None else np.asarray(m.rig.gaze.units)
