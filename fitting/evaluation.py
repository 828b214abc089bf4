"""How good a result is, against scans, landmarks, synthetic truth and the photo.

The protocols of the field in NumPy and SciPy: scan-to-mesh distance after NoW (Sanyal et al. 2019) and FG2018/Stirling
(Feng et al. 2018), regions after REALY (Chai et al. 2022), landmark NME, known correspondences, PSNR and SSIM under a
mask, bootstrap intervals. docs/evaluation.md says how each differs from the published tool; score_report.py puts them
into tables beside the mean face. Lengths are mm; landmarks are iBUG-68, NaN unknown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import correlate1d
from scipy.spatial import ConvexHull

from fitting.landmark_start import LandmarkFitError, weak_perspective_pose
from fitting.observation import INNER_LANDMARKS
from morphable.landmarks import MIRROR_68
from morphable.model import MorphableModel
from morphable.registration.alignment import Similarity, similarity
from morphable.registration.closest_points import SurfaceSearch, row_dot

# Outer and inner eye corners, nose bottom, mouth corners, in the order of NoW's landmark files.
NOW_LANDMARKS = np.array([36, 39, 42, 45, 33, 48, 54])
NOW_CROP, STIRLING_CROP = 1.4, 1.2  # radii in units of `crop`
CURVE_MM = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)

_ICP_POINTS = 2000  # an even subsample decides the alignment, all points are measured
_ICP_TRIM = 0.9  # the share of points nearest to the surface that draws: hair and ragged borders do not
_ICP_STEPS, _ICP_TOLERANCE = 40, 2e-5  # radians, or parts of the points' spread


class EvaluationError(ValueError):
    """A scan, mesh or truth that cannot be scored: what, got, expected, remedy."""


# ------------------------------------------------------------------------------------------------ alignment


class Anchors(NamedTuple):
    """Points that an ICP keeps together besides the surfaces."""

    scan: Float[np.ndarray, "anchor 3"]
    mesh: Float[np.ndarray, "anchor 3"]
    weight: float  # of each, in the unit of the points' weights


def icp(
    points: Float[np.ndarray, "point 3"],
    weights: Float[np.ndarray, " point"],
    search: SurfaceSearch,
    start: Similarity,
    scaled: bool,
    trim: float = _ICP_TRIM,
    anchors: Anchors | None = None,
) -> Similarity:
    """Refine `start`, which takes the mesh to the scan points, by trimmed point-to-plane ICP (Chen & Medioni 1992).

    Residuals are measured in the mesh's frame, where the search trees are, so the mesh need not be moved. Their planes
    come from nearly closest points: exact ones cost ten times as much and move the result by less than the noise of
    any scan. The steps are few on purpose: with the size free some faces creep for hundreds of steps along a valley of
    almost equal energy, away from their landmarks. A point beyond an edge is equally near to two triangles and
    rounding decides whose plane counts, so one mesh in two poses may score differently by some 0.001 mm.
    """
    pose = start
    spread = np.median(np.linalg.norm(points - points.mean(axis=0), axis=1))
    for _ in range(_ICP_STEPS):
        moved = pose.back(points)
        found = search.nearly_closest(moved)
        near = found.distance <= np.quantile(found.distance, trim)
        x, normals = moved[near], search.normals[found.triangle[near]]
        gap = row_dot(found.points[near] - x, normals)
        drawn = None if anchors is None else anchors._replace(scan=pose.back(anchors.scan))
        centre = x.mean(axis=0)
        turn, shift, growth = _icp_step(x - centre, gap, normals, weights[near], scaled, centre, drawn)
        rotation, scale = pose.rotation @ _rotation(turn).T, pose.scale / growth
        translation = pose.offset + pose.scale * pose.rotation @ centre - scale * rotation @ (centre + shift)
        pose = Similarity(scale, rotation, translation)
        moves = (np.linalg.norm(turn), np.linalg.norm(shift) * scale / spread, abs(growth - 1))
        if max(moves) < _ICP_TOLERANCE:
            break
    return pose


def _icp_step(arms, gap, normals, weights, scaled, centre, anchors: Anchors | None):
    """One Gauss-Newton step: a rotation vector about the points' centre, a shift and a growth of the scan."""
    system, gaps = _motion_columns(arms, normals, scaled), gap
    if anchors is not None:
        lever, apart = anchors.scan - centre, anchors.mesh - anchors.scan
        axes = [np.broadcast_to(axis, lever.shape) for axis in np.eye(3)]
        system = np.concatenate([system, *(_motion_columns(lever, axis, scaled) for axis in axes)])
        gaps = np.concatenate([gap, apart.T.ravel()])
        weights = np.concatenate([weights, np.full(3 * len(lever), anchors.weight)])
    weighted = system * weights[:, None]
    hessian = system.T @ weighted
    # What the surface leaves open, such as sliding on a plane, stays as it is.
    hessian += 1e-9 * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
    step = np.linalg.solve(hessian, weighted.T @ gaps)
    return step[:3], step[3:6], float(np.exp(step[6])) if scaled else 1.0


def _motion_columns(arms, directions, scaled) -> Float[np.ndarray, "row column"]:
    """How far points move along their directions as the scan turns, shifts and grows by one unit."""
    columns = [np.cross(arms, directions), directions]
    return np.concatenate([*columns, row_dot(arms, directions)[:, None]] if scaled else columns, axis=1)


def _rotation(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rodrigues' formula."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


# --------------------------------------------------------------------------------------------- scan to mesh


@dataclass(frozen=True, eq=False)
class Scan:
    """The points of a ground truth that count, the area each stands for, and its landmarks."""

    points: Float[np.ndarray, "point 3"]
    area: Float[np.ndarray, " point"]  # mm²; all the same for a scan without triangles
    landmarks: Float[np.ndarray, "68 3"]
    vertex: Int[np.ndarray, " point"]  # which vertex of the file each point is
    name: str = "scan"


@dataclass(frozen=True, eq=False)
class FaceMesh:
    """A mesh to be scored, in any unit and pose, with its landmarks in the same frame."""

    vertices: Float[np.ndarray, "vertex 3"]
    triangles: Int[np.ndarray, "triangle 3"]
    landmarks: Float[np.ndarray, "68 3"]
    name: str = "mesh"


@dataclass(frozen=True, eq=False)
class SurfaceScore:
    """Distances of a scan's points to a mesh, mm of the scan."""

    distance: Float[np.ndarray, " point"]
    area: Float[np.ndarray, " point"]
    landmark_error: Float[np.ndarray, "68"]
    mesh_to_scan: Similarity

    @property
    def median(self) -> float:
        return float(np.median(self.distance))

    @property
    def mean(self) -> float:
        return float(self.distance.mean())

    @property
    def std(self) -> float:
        return float(self.distance.std())

    @property
    def rms(self) -> float:
        return float(np.sqrt((self.distance**2).mean()))

    @property
    def p90(self) -> float:
        return float(np.quantile(self.distance, 0.9))

    @property
    def area_median(self) -> float:
        """Half of the surface, not half of the vertices, is nearer than this."""
        return weighted_median(self.distance, self.area)

    @property
    def area_mean(self) -> float:
        return float(np.average(self.distance, weights=self.area))

    @property
    def landmarks51(self) -> float:
        """Mean error of the 51 inner landmarks: what a surface distance cannot see is sliding along the surface."""
        inner = self.landmark_error[INNER_LANDMARKS]
        return float(np.nanmean(inner)) if np.isfinite(inner).any() else float("nan")

    @property
    def numbers(self) -> dict[str, float]:
        """The figures by the names they bear in tables and JSON."""
        return {
            "median_mm": self.median,
            "mean_mm": self.mean,
            "std_mm": self.std,
            "area_median_mm": self.area_median,
            "area_mean_mm": self.area_mean,
            "p90_mm": self.p90,
            "rms_mm": self.rms,
            "scale": self.mesh_to_scan.scale,
            "landmarks51_mm": self.landmarks51,
        }


def weighted_median(values: Float[np.ndarray, " point"], weights: Float[np.ndarray, " point"]) -> float:
    """The smallest value that at least half of the weight does not exceed."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, 0.5 * total[-1])])


def cumulative(
    distance: Float[np.ndarray, " point"], thresholds: Sequence[float] = CURVE_MM
) -> Float[np.ndarray, " threshold"]:
    """The cumulative error curve: per cent of the points within each threshold."""
    return 100 * np.searchsorted(np.sort(distance), np.asarray(thresholds, float), side="right") / len(distance)


def scan_to_mesh(
    scan: Scan, mesh: FaceMesh, scaled: bool = True, refine: bool = True, search: SurfaceSearch | None = None
) -> SurfaceScore:
    """Distance of every scan point to the mesh, which is moved by Procrustes on NoW's 7 landmarks and then by ICP.

    `scaled` leaves the mesh's size free (NoW's non-metrical challenge); without, its unit must be mm. Without
    `refine` the landmarks alone decide, as FG2018 has it. `search` is the mesh's, where it is used more than once.
    """
    search = search or SurfaceSearch(mesh.vertices, mesh.triangles)
    pose = _landmark_alignment(scan, mesh, scaled)
    if refine:
        chosen = np.arange(len(scan.points))
        if len(chosen) > _ICP_POINTS:
            chosen = np.random.default_rng(0).choice(len(chosen), _ICP_POINTS, replace=False)
        pose = icp(scan.points[chosen], scan.area[chosen] / scan.area.mean(), search, pose, scaled)
    return _measure(scan, mesh, search, pose, slice(None))


def _measure(scan: Scan, mesh: FaceMesh, search: SurfaceSearch, pose: Similarity, chosen) -> SurfaceScore:
    distance = pose.scale * search.closest(pose.back(scan.points[chosen])).distance
    landmark_error = np.linalg.norm(pose(mesh.landmarks) - scan.landmarks, axis=1)
    return SurfaceScore(distance, scan.area[chosen], landmark_error, pose)


def _known(scan: Scan, mesh: FaceMesh) -> Bool[np.ndarray, "68"]:
    """Which landmarks both have."""
    return np.asarray(np.isfinite(scan.landmarks + mesh.landmarks).all(axis=1))


def _landmark_alignment(scan: Scan, mesh: FaceMesh, scaled: bool) -> Similarity:
    """Takes the mesh's seven landmarks to the scan's."""
    known = NOW_LANDMARKS[_known(scan, mesh)[NOW_LANDMARKS]]
    if len(known) < 3:
        raise EvaluationError(
            f"{mesh.name} and {scan.name}: got {len(known)} landmarks known in both, expected at least 3 of the eye "
            f"corners, nose bottom and mouth corners (iBUG {', '.join(map(str, NOW_LANDMARKS))}). Mark more of them."
        )
    return similarity(mesh.landmarks[known], scan.landmarks[known], scaled=scaled)


def crop(
    points: Float[np.ndarray, "point 3"], landmarks: Float[np.ndarray, "68 3"], factor: float = STIRLING_CROP
) -> Bool[np.ndarray, " point"]:
    """The inner face of FG2018 (factor 1.2) or of NoW's published tool (1.4).

    A ball around nose bottom + 0.3 (bridge - bottom), the bridge midway between the inner eye corners; its radius is
    the factor times half the sum of the outer eye distance and the nose's length (Feng et al. 2018).
    """
    needed = landmarks[[36, 39, 42, 45, 33]]
    if not np.isfinite(needed).all():
        raise EvaluationError(
            "crop: got a scan without some of the landmarks 33, 36, 39, 42 and 45, expected all. Give it a mask."
        )
    bottom, bridge = landmarks[33], (landmarks[39] + landmarks[42]) / 2
    eyes, nose = np.linalg.norm(landmarks[36] - landmarks[45]), np.linalg.norm(bridge - bottom)
    centre = bottom + 0.3 * (bridge - bottom)
    return np.linalg.norm(points - centre, axis=1) <= factor * (eyes + nose) / 2


# --------------------------------------------------------------------------------------------------- regions

# What holds a region in place besides its surface: REALY's key points come with its data; these are iBUG's.
_REGION_LANDMARKS = {
    "nose": np.arange(27, 36),
    "mouth": np.arange(48, 68),
    "forehead": np.arange(17, 27),
    "cheek": np.array([31, 35, 36, 45, 48, 54]),
}
_REGION_ANCHORS = {"nose": 1.0, "mouth": 1.0, "forehead": 1.0, "cheek": 0.25}  # their weight against the surface's


def face_regions(scan: Scan) -> dict[str, Bool[np.ndarray, " point"]]:
    """Nose, mouth, forehead and cheek of a scan, drawn around its landmarks as seen from the front.

    Lengths are in outer eye distances. They resemble REALY's regions, which are hand-drawn; see docs/evaluation.md.
    """
    marks = scan.landmarks
    if not np.isfinite(marks[17:60]).all():
        raise EvaluationError(
            f"{scan.name}: regions need the landmarks 17 to 59, got {np.isnan(marks[17:60, 0]).sum()} "
            "unknown, expected none. Give --regions FILE.npz with a mask of the scan's vertices for each region."
        )
    width = marks[45] - marks[36]
    unit = float(np.linalg.norm(width))
    across = width / unit
    up = (marks[39] + marks[42]) / 2 - (marks[48] + marks[54]) / 2
    up = up - (up @ across) * across
    frame = np.stack([across, up / np.linalg.norm(up)], axis=1) / unit
    middle = (marks[36] + marks[45]) / 2
    flat, seen = (marks - middle) @ frame, (scan.points - middle) @ frame
    x, y = seen[:, 0], seen[:, 1]
    wings = flat[[31, 35]] + 0.6 * (flat[[31, 35]] - flat[33])  # the landmarks mark the nostrils' outer ends
    nose = _outside_hull(seen, np.concatenate([flat[27:36], wings])) <= 0.06
    mouth = (_outside_hull(seen, flat[48:60]) <= 0.1) & ~nose
    brow = _line(x, flat[17:27])
    forehead = (y > brow + 0.04) & (y < brow + 0.55) & (np.abs(x) < 0.55)
    below_lids = _line(x, flat[[36, 41, 40, 39, 42, 47, 46, 45]]) - 0.1
    cheek = (y < below_lids) & (y > _line(x, flat[[48, 54]])) & (np.abs(x) < 0.65) & ~nose & ~mouth
    # Between the nostrils everything is nose or lip.
    cheek &= (x < flat[31, 0]) | (x > flat[35, 0])
    return {"nose": nose, "mouth": mouth, "forehead": forehead, "cheek": cheek}


def _line(x: Float[np.ndarray, " point"], marks: Float[np.ndarray, "mark 2"]) -> Float[np.ndarray, " point"]:
    """Height at x of the line through the marks, level beyond its ends."""
    marks = marks[np.argsort(marks[:, 0])]
    return np.interp(x, marks[:, 0], marks[:, 1])


def _outside_hull(points: Float[np.ndarray, "point 2"], corners: Float[np.ndarray, "corner 2"]) -> np.ndarray:
    """Distance beyond the farthest side of the convex hull, negative inside."""
    sides = ConvexHull(corners).equations
    return (points @ sides[:, :2].T + sides[:, 2]).max(axis=1)


def region_scores(
    scan: Scan, mesh: FaceMesh, regions: Mapping[str, Bool[np.ndarray, " point"]] | None = None
) -> dict[str, SurfaceScore]:
    """Scan-to-mesh distances of each region, for which the mesh is aligned anew: a long nose does not spoil the cheeks.

    The size comes from Procrustes on the seven landmarks and stays; then each region moves the mesh rigidly by ICP on
    its own points, held by its landmarks. What REALY calls NMSE is `mean`.
    """
    regions = face_regions(scan) if regions is None else regions
    search = SurfaceSearch(mesh.vertices, mesh.triangles)
    start = _landmark_alignment(scan, mesh, True)
    known = _known(scan, mesh)
    scores = {}
    for name, chosen in regions.items():
        if chosen.sum() < 10:
            raise EvaluationError(
                f"{scan.name}, region {name}: got {int(chosen.sum())} points, expected at least 10. Is the region's "
                "mask of this scan, and does --mask or --crop leave it in?"
            )
        marks = _REGION_LANDMARKS.get(name, NOW_LANDMARKS)
        marks = marks[known[marks]]
        weights = scan.area[chosen] / max(float(scan.area[chosen].mean()), 1e-300)
        share = _REGION_ANCHORS.get(name, 1.0) * len(weights)
        anchors = Anchors(scan.landmarks[marks], mesh.landmarks[marks], share / max(len(marks), 1))
        pose = icp(scan.points[chosen], weights, search, start, False, trim=1.0, anchors=anchors)
        scores[name] = _measure(scan, mesh, search, pose, chosen)
    return scores


# ---------------------------------------------------------------------------- correspondences and landmarks


def correspondence_error(
    vertices: Float[np.ndarray, "vertex 3"], truth: Float[np.ndarray, "vertex 3"], scaled: bool = True
) -> Float[np.ndarray, " vertex"]:
    """Distance of each vertex to the same vertex of the truth, after the motion that makes their squares least.

    Scores by closest points forgive sliding and rank methods wrongly (M3DFB, arXiv 2505.18025); on
    synthetic faces the correspondence is known and nothing is forgiven.
    """
    return np.linalg.norm(similarity(vertices, truth, scaled=scaled)(vertices) - truth, axis=1)


def _box_size(truth: Float[np.ndarray, "68 2"]) -> float:
    known = truth[np.isfinite(truth).all(axis=1)]
    return float(np.sqrt(np.prod(np.ptp(known, axis=0)))) if len(known) else float("nan")


def _outer_eye_distance(truth: Float[np.ndarray, "68 2"]) -> float:
    return float(np.linalg.norm(truth[36] - truth[45]))


def _pupil_distance(truth: Float[np.ndarray, "68 2"]) -> float:
    return float(np.linalg.norm(truth[36:42].mean(axis=0) - truth[42:48].mean(axis=0)))


class Normaliser(NamedTuple):
    """What a landmark error is divided by: the same points give very different NMEs."""

    description: str
    length: Callable[[np.ndarray], float]


NORMALISERS = {
    "bbox": Normaliser("sqrt(width x height) of the true 68 points' box", _box_size),
    "interocular": Normaliser("the true outer eye corners' distance", _outer_eye_distance),
    "interpupil": Normaliser("the true eye centres' distance", _pupil_distance),
}


def landmark_errors(
    predicted: Float[np.ndarray, "68 2"], truth: Float[np.ndarray, "68 2"], normaliser: str = "bbox"
) -> Float[np.ndarray, "68"]:
    """Error of each landmark in per cent of a length of the true face, NaN where either is unknown."""
    if normaliser not in NORMALISERS:
        raise EvaluationError(f"normaliser: got {normaliser!r}, expected one of {', '.join(NORMALISERS)}. Name it.")
    length = NORMALISERS[normaliser].length(truth)
    if not length > 0:
        raise EvaluationError(
            f"landmark error: the true face's {normaliser} length is {length:g}, expected a positive number of "
            "pixels. Are the true landmarks known and apart?"
        )
    return 100 * np.linalg.norm(predicted - truth, axis=1) / length


# In mm: how far definitions of a landmark lie apart, and how far a prediction and its truth do for other reasons.
_DEFINITION_MM, _ERROR_MM = 5.0, 4.0
_FAILED_MM = 8.0  # median error of an image that tells half as much as a right one


def adapted_labels(
    predicted: Float[np.ndarray, "image 68 2"],
    truth: Float[np.ndarray, "image 68 2"],
    mean_landmarks: Float[np.ndarray, "68 3"],
) -> Float[np.ndarray, "image 68 2"]:
    """Predictions with what separates them from the truth *in all other images* taken away.

    Data sets define the 68 points differently, by up to 2 cm along the jaw: two exact answers differ by that, and
    published systems either were trained on the set's own definition or adapt labels (Wood et al. 2021, "Fake it till
    you make it", section 4). Here each landmark gets one offset in the head's axes, the same on both sides of the face,
    most probable for Gaussians, from the other images only: no image sees its own truth, and one that failed says
    little. The poses are those of the mean landmarks on the predictions. What a predictor gets wrong alike in all
    images goes away, too. Images whose prediction has no pose come back NaN.
    """
    looks = np.full((len(predicted), 2, 3), np.nan)
    for k, points in enumerate(predicted):
        try:
            rotation, scale, _ = weak_perspective_pose(mean_landmarks, points)
        except LandmarkFitError:
            continue
        looks[k] = scale * rotation[:2]
    scale = np.linalg.norm(looks[:, 0], axis=1)[:, None, None]
    error = (truth - predicted) / scale
    slopes = np.broadcast_to((looks / scale)[:, None], (*error.shape, 3))
    mirrored = slopes[:, MIRROR_68] * [-1.0, 1.0, 1.0]  # of the twin's offset, which is this one's in the mirror
    known = np.isfinite(error).all(axis=2) & np.isfinite(slopes).all(axis=(2, 3))
    apart = np.where(known, np.linalg.norm(error, axis=2), np.nan)
    usual = np.array([np.median(e[k]) if k.any() else np.inf for e, k in zip(apart, known, strict=True)])
    weight = 1.0 / np.sqrt(1.0 + (usual / _FAILED_MM) ** 2)

    def normal_equations(slopes, error, known):
        share = np.where(known, weight[:, None], 0.0)
        slopes = np.nan_to_num(slopes) * share[..., None, None]
        error = np.nan_to_num(error) * share[..., None]
        return np.einsum("klci,klcj->klij", slopes, slopes), np.einsum("klci,klc->kli", slopes, error)

    one, two = (
        normal_equations(slopes, error, known),
        normal_equations(mirrored, error[:, MIRROR_68], known[:, MIRROR_68]),
    )
    precision, weighted = one[0] + two[0], one[1] + two[1]
    others = lambda of_image: np.sum(of_image, axis=0) - of_image  # noqa: E731
    prior = (_ERROR_MM / _DEFINITION_MM) ** 2 * np.eye(3)
    offsets = np.linalg.solve(others(precision) + prior, others(weighted)[..., None])[..., 0]
    return predicted + np.einsum("kci,kli->klc", looks, offsets)


# ----------------------------------------------------------------------------------------------- pictures


def psnr(
    picture: Float[np.ndarray, "height width 3"],
    truth: Float[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"],
) -> float:
    """Peak signal-to-noise ratio in dB over the masked pixels of two pictures in [0, 1]; inf if they are equal."""
    error = float(((picture - truth)[_some(mask)] ** 2).mean())
    return float(-10 * np.log10(error)) if error > 0 else float("inf")


def ssim(
    picture: Float[np.ndarray, "height width 3"],
    truth: Float[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"],
) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of sigma 1.5 and 11 pixels, K 0.01 and 0.03), mean over
    channels and masked pixels of two pictures in [0, 1].

    Windows at the mask's border see only what lies inside: anything else would be compared with what is not a face.
    """
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blurred(image):
        image = correlate1d(image, window, axis=0, mode="constant")
        return correlate1d(image, window, axis=1, mode="constant")

    inside = _some(mask)[..., None].astype(float)
    weight = np.maximum(blurred(inside), np.finfo(float).tiny)
    mean_a, mean_b = blurred(picture * inside) / weight, blurred(truth * inside) / weight
    var_a = blurred(picture**2 * inside) / weight - mean_a**2
    var_b = blurred(truth**2 * inside) / weight - mean_b**2
    covariance = blurred(picture * truth * inside) / weight - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    structure /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float(structure[mask].mean())


def _some(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    if not mask.any():
        raise EvaluationError("picture error: got an empty mask, expected pixels to compare. Is the face in the photo?")
    return mask


# ---------------------------------------------------------------------------------------------- uncertainty


class Interval(NamedTuple):
    """A percentile interval; NaN where one unit alone leaves nothing to resample."""

    low: float
    high: float


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " unit"]], float],
    units: int,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    strata: Sequence[Int[np.ndarray, " _"]] | None = None,
) -> Interval:
    """Percentile interval of a statistic of resampled units (Efron 1979): subjects or images, never points of one face,
    which are not independent.

    `statistic` gets the indices of a resample, as many as there are units, with repetition. `strata` are groups of
    indices that keep their sizes.
    """
    if units < 2:
        return Interval(float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    groups = [np.arange(units)] if strata is None else [s for s in strata if len(s)]
    values = [statistic(np.concatenate([rng.choice(g, len(g)) for g in groups])) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


# ------------------------------------------------------------------------------------------ our own meshes


def visible_skin(model: MorphableModel) -> Int[np.ndarray, "triangle 3"]:
    """The triangles that a scanner would see: the skin without the mouth's bag and the sockets, no eyes or teeth.

    Inner surfaces would be closest to scan points at the lips and lids and forgive errors there. A model without
    these parts and masks is taken whole.
    """
    triangles = np.asarray(model.triangles)
    if "skin" in model.part_names:
        triangles = triangles[model.part("skin").triangles]
    if "interior" in model.masks:
        inner = np.asarray(model.masks["interior"]) > 0.5
        triangles = triangles[~inner[triangles].all(axis=1)]
    return triangles


def mean_face(model: MorphableModel, every_triangle: bool = False) -> FaceMesh:
    """The model's mean neutral face: what a method must beat that has not looked at the photo."""
    triangles = np.asarray(model.triangles) if every_triangle else visible_skin(model)
    mean = np.asarray(model.mean, float)
    return FaceMesh(mean, triangles, np.asarray(model.landmarks3d(model.mean), float), "mean face")


def counted_vertices(model: MorphableModel) -> Int[np.ndarray, " vertex"]:
    """The vertices of the visible skin within the model's face mask, where it has one."""
    visible = np.unique(visible_skin(model))
    if "face" in model.masks:
        visible = visible[np.asarray(model.masks["face"])[visible] > 0.5]
    return visible
