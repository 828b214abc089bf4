"""Scans brought into correspondence with a template: registered, aligned, and completed where they have holes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy.sparse.linalg import splu

from morphable.building.scans import NEUTRAL, BuildError, Scan
from morphable.laplacian import cotangent_laplacian
from morphable.model import MorphableModel
from morphable.registration import (
    RegistrationSettings,
    Similarity,
    Template,
    generalised_procrustes,
    register,
    similarity,
    surface_map,
)
from morphable.statistics import mirrored, probabilistic_components

REGISTRATION = RegistrationSettings()
COLOUR_MM = 2.0  # a scan's colour does not reach farther than this
# Length over which a hole's filling keeps the offset of its rim, mm.
RIM_MM = 10.0


@dataclass(frozen=True, eq=False)
class RegisteredScan:
    """A scan in correspondence with the template, or why there is none."""

    name: str
    subject: str
    expression: str
    labels: dict[str, float]
    vertices: Float[np.ndarray, "vertex 3"] | None  # the template's, mm in the scan's coordinates; None: left out
    matched: Bool[np.ndarray, " vertex"] | None  # has a counterpart on the scan
    colours: Float[np.ndarray, "vertex 3"] | None  # sRGB-encoded; NaN where the scan has none
    similarity: Similarity | None  # template's head space -> scan
    distance: float  # median over matched vertices, mm; NaN where left out
    share: float  # of the vertices that scans can show, those matched
    problem: str = ""  # why it was left out

    @property
    def used(self) -> bool:
        """Whether the scan is in correspondence."""
        return self.vertices is not None

    def __str__(self) -> str:
        who = f"{self.name} ({self.subject}, {self.expression})"
        if not self.used:
            return f"{who}: left out: {self.problem}"
        return f"{who}: median distance {self.distance:.2f} mm, {self.share:.0%} of the template matched"


class Aligned(NamedTuple):
    """Shapes in the template's frame."""

    shapes: Float[np.ndarray, "shape vertex 3"]  # mm
    motions: tuple[Similarity, ...]  # scan -> frame


Progress = Callable[[int, RegisteredScan], None]


def register_scans(
    template: MorphableModel,
    scans: Iterable[Scan],
    prior: Literal["model", "kernel"] = "model",
    settings: RegistrationSettings = REGISTRATION,
    least_share: float = 0.3,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[RegisteredScan]:
    """Every scan in correspondence with the template; one that cannot be is reported, and the others go on.

    prior: "model" believes the template's own identity modes, "kernel" that faces differ smoothly.
    least_share: scans that match a smaller share of the visible template are left out.
    folder: shapes are kept there, as memory-mapped .npy files, instead of in memory; for many scans, which may then
        come from a generator. Files of an earlier run are written anew.
    progress: is called after each scan with its index.
    """
    neutral, expressive = Template.of(template, prior), None
    drawn = neutral.pull > 0
    found: list[RegisteredScan] = []
    for index, scan in enumerate(scans):
        if scan.expression != NEUTRAL and expressive is None:
            units = template.expression_kind == "units"
            expressive = Template.of(template, prior, expressions=0.3 if units else 1.0)
        result = _registered(neutral if scan.expression == NEUTRAL else expressive, drawn, scan, settings, least_share)
        if folder is not None and result.vertices is not None:
            result = _kept(result, folder / f"{index:06d}.npy")
        found.append(result)
        if progress is not None:
            progress(index, result)
    return found


def alignment_weights(template: MorphableModel, scans: Sequence[RegisteredScan]) -> Float[np.ndarray, " vertex"]:
    """How much each vertex says about where a head is: its area times the share of scans that show it.

    0 for what no scan shows; inner parts and the scalp's back thus have no say.
    """
    mass = cotangent_laplacian(np.asarray(template.mean, float), np.asarray(template.triangles)).mass
    seen = np.mean([scan.matched for scan in scans if scan.matched is not None], axis=0)
    weights = mass * seen * (seen > 0.25)
    if np.count_nonzero(weights) < 3:
        raise BuildError("scans: no part of the template is seen in a quarter of them; expected scans of faces.")
    return weights / weights.sum()


def align_shapes(
    shapes: Float[np.ndarray, "shape vertex 3"],
    template: MorphableModel,
    weights: Float[np.ndarray, " vertex"],
    scaled: bool = False,
    symmetric: bool = True,
) -> Aligned:
    """Generalised Procrustes analysis, with the mean brought rigidly onto the template's.

    With `symmetric` the shapes' mirror images take part, so that the mean is symmetric in the template's own plane.
    """
    count = len(shapes)
    mirror = np.asarray(template.mirror)
    goal = np.asarray(template.mean, float)
    everything = shapes
    if symmetric:
        weights = (weights + weights[mirror]) / 2
        everything = np.concatenate([shapes, mirrored(shapes, mirror)])
        goal = (goal + mirrored(goal[None], mirror)[0]) / 2
    if len(everything) == 1:
        motions, mean = [Similarity.identity()], everything[0]
    else:
        _, mean, motions = generalised_procrustes(everything, scaled, weights)
    onto = similarity(mean, goal, weights, scaled=False)
    total = tuple(onto @ motion for motion in motions[:count])
    return Aligned(np.stack([motion(x) for motion, x in zip(total, shapes, strict=True)]), total)


def complete_shapes(
    shapes: Float[np.ndarray, "shape vertex 3"],
    seen: Bool[np.ndarray, "shape vertex"],
    triangles: Int[np.ndarray, "triangle 3"],
    rank: int | None = None,
) -> Float[np.ndarray, "shape vertex 3"]:
    """Shapes whose unseen vertices are what probabilistic PCA of all expects there, joined smoothly to what is seen.

    rank: modes that fill the holes, a third of the shapes by default. Only vertices that at least half of the shapes
    show are filled so; others keep the places that registration gave them, as do all where there are fewer than six
    shapes. The difference between what is seen and what is expected at a hole's rim fades out over `RIM_MM` inside.
    """
    count = len(shapes)
    often = seen.mean(axis=0) >= 0.5
    given = seen | ~often
    if count < 6 or given.all():
        return shapes
    found = probabilistic_components(shapes, given, max(1, count // 3) if rank is None else min(rank, count - 2))
    coefficients = _posterior(found, shapes, given)
    expected = found.components.instances(coefficients)
    laplacian = cotangent_laplacian(found.components.mean, triangles)
    screened = sp.csr_matrix(laplacian.stiffness + sp.diags(laplacian.mass / RIM_MM**2 + 1e-12))
    out = shapes.copy()
    for i in range(count):
        holes = np.flatnonzero(~given[i])
        if len(holes) == 0:
            continue
        rest = np.flatnonzero(given[i])
        offset = shapes[i, rest] - expected[i, rest]
        rows = screened[holes]
        # (S + M / l²) d = 0 inside, d given on the rim: the offset's smoothest continuation that dies out.
        fade = splu(sp.csc_matrix(rows[:, holes])).solve(-(rows[:, rest] @ offset))
        out[i, holes] = expected[i, holes] + fade
    return out


def _posterior(found, shapes, given):
    """Coefficients of shapes of which some vertices are seen."""
    modes, noise = found.components.modes, found.noise_variance
    rank = modes.shape[-1]
    out = np.empty((len(shapes), rank))
    for i, shape in enumerate(shapes):
        part = modes[given[i]].reshape(-1, rank)
        gram = part.T @ part + noise * np.eye(rank)
        out[i] = np.linalg.solve(gram, part.T @ (shape - found.components.mean)[given[i]].ravel())
    return out


def _registered(template, drawn, scan: Scan, settings, least_share) -> RegisteredScan:
    def result(vertices=None, matched=None, colours=None, motion=None, distance=np.nan, share=0.0, problem=""):
        return RegisteredScan(
            scan.name,
            scan.subject,
            scan.expression,
            scan.labels,
            vertices,
            matched,
            colours,
            motion,
            float(distance),
            float(share),
            problem,
        )

    try:
        found = register(template, (scan.vertices, scan.triangles), scan.landmarks, settings=settings)
    except (ValueError, np.linalg.LinAlgError) as error:
        return result(problem=str(error))
    share = float(found.matched[drawn].mean())
    distance = float(np.nanmedian(found.distance)) if found.matched.any() else np.nan
    if share < least_share or not np.isfinite(found.vertices).all():
        return result(
            distance=distance,
            share=share,
            problem=f"got {share:.0%} of the template matched, expected {least_share:.0%} or more. Is the scan a face, "
            "and do its landmarks belong to it?",
        )
    colours = None
    if scan.colours is not None:
        places = surface_map(found.vertices, scan.vertices, scan.triangles)
        near = found.matched & (places.distance < COLOUR_MM)
        colours = np.where(near[:, None], places(scan.colours), np.nan)
    return result(found.vertices, found.matched, colours, found.similarity, distance, share)


def _kept(scan: RegisteredScan, path: Path) -> RegisteredScan:
    np.save(path, np.asarray(scan.vertices, np.float32))
    return replace(scan, vertices=np.load(path, mmap_mode="r"))
