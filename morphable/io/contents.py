"""What a published model file says, in our units, axes and names: the value that every reader returns.

Model files are untrusted. A reader gets arrays from a container (`pickles`, `matlab`, `hdf5`, `cereal`, ...) that runs
nothing and reads no more than `allowance` bytes; `checked` then holds the numbers to what a model needs.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from morphable.rig import Rig


class ModelFileError(ValueError):
    """A file that is not a model that facefit understands: what, got, expected, remedy."""


class Source(NamedTuple):
    """The file (or folder) that a model is read from."""

    path: Path
    sha256: str  # of the file; of a folder: of its files' names and hashes


class Points(NamedTuple):
    """Landmarks on a mesh in iBUG-68 order: corners of a triangle and barycentric weights; NaN weights: not given."""

    vertices: Int[np.ndarray, "68 3"]
    weights: Float[np.ndarray, "68 3"]

    @classmethod
    def at_vertices(cls, vertices: dict[int, int]) -> "Points":
        """From vertex ids for some of the landmarks, counted from 0."""
        corners, weights = np.zeros((68, 3), np.int64), np.full((68, 3), np.nan, np.float32)
        for landmark, vertex in vertices.items():
            corners[landmark], weights[landmark] = vertex, (1.0, 0.0, 0.0)
        return cls(corners, weights)


@dataclasses.dataclass(frozen=True)
class Contents:
    """A model as its file has it, converted to mm and our axes; None or empty where the file is silent.

    Modes are displacements for one standard deviation. Only the mean, the identity and the triangles must be there.
    """

    name: str  # "FLAME 2020"
    format: str  # of the file: "flame", "bfm2009", "bfm2017", "sfm", ...
    licence: str  # as its owners call it
    licence_class: str  # "free", "attribution", "non-commercial" or "unknown"
    mean: Float[np.ndarray, "vertex 3"]  # mm; x to the subject's left, y up, z out of the face; any origin
    identity: Float[np.ndarray, "vertex 3 rank"]  # mm
    triangles: Int[np.ndarray, "triangle 3"]  # counter-clockwise seen from outside
    unit_mm: float  # length of the file's unit
    expression: Float[np.ndarray, "vertex 3 unit"] | None = None  # mm at weight 1, or for one standard deviation
    expression_names: tuple[str, ...] = ()  # ours where a unit is one of ARKit's
    expression_kind: str = "units"  # or "components"
    interaction: Float[np.ndarray, "vertex 3 unit rank"] | None = None  # mm; of multilinear models
    albedo_mean: Float[np.ndarray, "vertex 3"] | None = None  # sRGB-encoded, 0 to 1
    albedo_modes: Float[np.ndarray, "vertex 3 arank"] | None = None
    uv: Float[np.ndarray, "vertex 2"] | None = None  # v down; see `split_seams`
    landmarks: Points | None = None
    mirror: Int[np.ndarray, " vertex"] | None = None
    masks: dict[str, Float[np.ndarray, " vertex"]] = dataclasses.field(default_factory=dict)  # 0 to 1
    part_of_vertex: Int[np.ndarray, " vertex"] | None = None
    part_names: tuple[
        str, ...
    ] = ()  # ours: skin, eye_left, eye_right, teeth_upper, teeth_lower, tongue, lashes_left, ...
    rig: Rig | None = None  # mm
    sources: tuple[str, ...] = ()  # credits, one line each
    notes: tuple[str, ...] = ()  # what the reader left out or assumed, for `facefit model info`


MINIMUM_ALLOWANCE = 64 << 20


def allowance(size: int) -> int:
    """Bytes that a file of this size may become in memory: more is a damaged or a hostile file."""
    return max(MINIMUM_ALLOWANCE, 64 * size)


_LARGEST_MM = 5000.0  # no head is larger; a wrong unit or a damaged number is


def checked(contents: Contents, source: Source) -> Contents:
    """The contents, if they make a model; raises ModelFileError that names the first inconsistency."""

    def refuse(what: str, got, expected: str):
        raise ModelFileError(f"{source.path}: {what}: got {got}, expected {expected}. Is the file complete?")

    c = contents
    count = len(c.mean)
    if count < 4:
        refuse("mean", f"{count} vertices", "a surface of at least 4")
    shapes = {
        "mean": (c.mean, (count, 3)),
        "identity": (c.identity, (count, 3, None)),
        "triangles": (c.triangles, (None, 3)),
        "expression": (c.expression, (count, 3, len(c.expression_names))),
        "interaction": (c.interaction, (count, 3, len(c.expression_names), c.identity.shape[-1])),
        "albedo mean": (c.albedo_mean, (count, 3)),
        "albedo modes": (c.albedo_modes, (count, 3, None)),
        "uv": (c.uv, (count, 2)),
        "mirror": (c.mirror, (count,)),
        "parts": (c.part_of_vertex, (count,)),
        **{f"mask {name!r}": (mask, (count,)) for name, mask in c.masks.items()},
    }
    for what, (values, shape) in shapes.items():
        if values is None:
            continue
        fits = values.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, values.shape, strict=True))
        if not fits:
            refuse(what, f"shape {values.shape}", str(tuple("n" if n is None else n for n in shape)))
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            refuse(what, f"{int((~np.isfinite(values)).sum())} values that are no numbers", "finite ones")
    if c.expression is None and c.expression_names:
        refuse("expression", f"{len(c.expression_names)} names without displacements", "both")
    if len(set(c.expression_names)) != len(c.expression_names):
        refuse("expression", "a name twice", "each name once")
    if not len(c.triangles):
        refuse("triangles", "none", "a surface")
    for what, ids, below in (
        ("triangles", c.triangles, count),
        ("mirror", c.mirror, count),
        ("parts", c.part_of_vertex, len(c.part_names)),
        ("landmarks", None if c.landmarks is None else c.landmarks.vertices, count),
    ):
        if ids is not None and ids.size and not (0 <= ids.min() and ids.max() < below):
            refuse(what, f"indices {ids.min()} to {ids.max()}", f"0 to {below - 1}")
    size = float(np.ptp(c.mean[np.unique(c.triangles)], axis=0).max())
    if not 1.0 < size < _LARGEST_MM:
        refuse("mean", f"a head of {size:.3g} mm", "one of 100 to 500 mm. Is the unit another one?")
    for what, values in (("identity", c.identity), ("expression", c.expression), ("interaction", c.interaction)):
        if values is not None and values.size and np.abs(values).max() > _LARGEST_MM:
            refuse(what, f"displacements of {np.abs(values).max():.3g} mm", "some of a few mm")
    for what, values in (("albedo mean", c.albedo_mean), ("albedo modes", c.albedo_modes)):
        if values is not None and values.size and np.abs(values).max() > 4:
            refuse(what, f"values up to {np.abs(values).max():.3g}", "colours from 0 to 1")
    if c.landmarks is not None:
        given = np.isfinite(c.landmarks.weights).all(axis=1)
        if np.abs(c.landmarks.weights[given].sum(axis=1) - 1).max(initial=0.0) > 0.01:
            refuse("landmarks", "barycentric weights that do not sum to 1", "weights that do")
    if c.rig is not None:
        if c.rig.weights.shape[0] != count or not all(
            np.isfinite(np.asarray(x)).all() for x in (c.rig.weights, c.rig.joints.mean, c.rig.joints.modes)
        ):
            refuse("rig", f"skinning weights {c.rig.weights.shape}", f"finite ones for {count} vertices")
    return c


def split_seams(
    triangles: Int[np.ndarray, "triangle 3"],
    uv: Float[np.ndarray, "coordinate 2"],
    uv_triangles: Int[np.ndarray, "triangle 3"],
    vertex_count: int,
) -> tuple[Int[np.ndarray, "triangle 3"], Float[np.ndarray, "split 2"], Int[np.ndarray, " split"]]:
    """One texture coordinate for each vertex: vertices on seams are doubled, and the copies put behind all others.

    Returns the triangles, the coordinates and, for every vertex after splitting, the file's vertex it comes from; so
    the first `vertex_count` of them are the file's own. A vertex without triangles gets coordinate (0, 0).
    """
    corners, places = triangles.ravel().astype(np.int64), uv_triangles.ravel().astype(np.int64)
    pairs, inverse = np.unique(np.stack([corners, places], axis=1), axis=0, return_inverse=True)
    vertex, coordinate = pairs[:, 0], pairs[:, 1]
    first = np.r_[True, vertex[1:] != vertex[:-1]]
    number = np.where(first, vertex, 0)
    number[~first] = vertex_count + np.arange((~first).sum())
    origin = np.r_[np.arange(vertex_count), vertex[~first]]
    placed = np.zeros((len(origin), 2), np.float32)
    placed[number] = uv[coordinate]
    return number[inverse.ravel()].reshape(-1, 3).astype(np.int32), placed, origin.astype(np.int32)
