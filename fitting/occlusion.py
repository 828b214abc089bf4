"""Which pixels of the head show the face, and which something in front of it: a mixture of two colour models.

After Egger et al. (2018, Occlusion-aware 3D morphable models and an illumination prior for face image analysis): the
light is first estimated robustly (consensus over hypotheses, their section 3.3), then labels and models are updated in
turn. A pixel of the face is explained by the model's albedo under that light; a pixel of an occluder by a histogram of
the colours that the face does not explain, by the colours beside the head, or by any colour; neighbours of like colour
share their label. Two cues are added: how much finer structure a place shows than the model predicts there, and the
colour of the light hardly depending on direction, without which two lamps explain a grey scarf under a pink face.

NumPy between stages of a fit: nothing here is differentiated. Lengths in pixels are those of the small picture.
"""

import dataclasses
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.ndimage import binary_erosion, gaussian_filter, label, minimum_filter
from scipy.spatial import KDTree

from fitting.energies import project
from fitting.mediapipe_tasks import run_task
from fitting.observation import Photo
from fitting.parameters import FaceParameters
from fitting.schedule import Problem
from fitting.surface_samples import SolverModel
from morphable.model import MorphableModel
from renderer.light import sh_basis
from renderer.rasterize import rasterize

# Of the face: what is less is shadow, a beard or a highlight as often as an occluder, and robust terms bear it.
LEAST_SHARE = 0.1
MOST_SHARE = 0.65  # more is rarely an occluder: light or pose was misjudged, as on overexposed faces
# Visible points of dlib move by 1.4 mm (scarf) to 6.5 mm (sunglasses) in the median once something is in front of the
# face; their noise is 3.5 mm without (benchmarks/occlusion.py).
DETECTOR_NOISE = 2.0
_LEAST_LANDMARKS = 12
_SIZE = 128  # px; side of the picture that is labelled, at most
_SAMPLES = 400  # points of plain skin that estimate the light
_CENTRES = 14  # of the patches of skin that light hypotheses are made from
_RANK = 4  # albedo components that are estimated; finer ones follow the occluder
_ROUNDS = 5  # of labels and models in turn
_SWEEPS = 10  # of mean field
_WELL_EXPOSED = 0.6  # encoded grey of a face's brighter parts
_BINS = 16  # of the colour histograms, per channel


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """What covers the face, in pixels of the fitted crop."""

    face_probability: Float[np.ndarray, "height width"]  # 1 where nothing was labelled
    covered: Bool[np.ndarray, "height width"]  # where the model shows its face: the pixels that were labelled
    landmark_hidden: Float[np.ndarray, "68"]  # probability that a landmark lies behind an occluder
    outlier_share: float  # of the face below the hairline; nothing is called hidden if it is too small or too large

    @property
    def found(self) -> bool:
        """Whether something covers a part of the face that is worth acting on."""
        return LEAST_SHARE <= self.outlier_share <= MOST_SHARE

    def applied_to(self, problem: Problem, noise: float = 1.0) -> Problem:
        """The problem without the pixels and landmarks that are hidden; the blurred borders of occluders go, too.

        `noise` is the factor on the deviations of the landmarks that remain where something is hidden: a detector that
        saw the occluder has moved all its points (DETECTOR_NOISE), a person who clicked the visible ones has not.
        """
        if not self.found:
            return problem
        # The coarsest level mixes colours over 3 px: what is nearer to an occluder is not the face's colour.
        believed = minimum_filter(self.face_probability, size=5)
        hidden, sigma = self.landmark_hidden > 0.5, np.asarray(problem.sigma_px)
        # Some must hold the pose: where too few are left, the hidden ones are only believed less.
        enough = np.sum(np.isfinite(sigma) & ~hidden) >= _LEAST_LANDMARKS
        factor = np.where(hidden, np.inf if enough else 5.0 * noise, noise)
        return eqx.tree_at(
            lambda p: (p.valid, p.sigma_px, p.sigma_along_px),
            problem,
            (
                problem.valid * believed,
                jnp.asarray(sigma * factor, jnp.float32),
                jnp.asarray(np.asarray(problem.sigma_along_px) * factor[:17], jnp.float32),
            ),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class OcclusionModel:
    """What labelling needs of a morphable model, on the triangles of the solver's coarse mesh."""

    albedo: Float[np.ndarray, "triangle 3"]  # sRGB-encoded
    albedo_modes: Float[np.ndarray, "triangle 3 rank"]
    region: Bool[np.ndarray, "triangle"]  # the face with its eyes: where labels are made
    bare: Bool[np.ndarray, "triangle"]  # the part of it that hair leaves bare on most heads
    tolerance: Float[np.ndarray, "triangle"]  # factor on colour deviations: brows, lips, beards, eyes vary more
    samples: Int[np.ndarray, "sample"]  # triangles of plain skin, uniform over its area
    patches: Float[np.ndarray, "patch sample"]  # weights of the samples, of which each patch makes one hypothesis

    def __call__(self, problem: Problem, face: FaceParameters) -> Labels:
        """Label the face's pixels for the present pose and shape; the face's own albedo and light are not read."""
        scene = _Scene.of(problem, face, self)
        inside = np.zeros(problem.valid.shape, bool)
        nothing = Labels(np.ones(inside.shape, np.float32), inside, np.zeros(68, np.float32), 0.0)
        if scene is None:
            return nothing
        region = scene.region
        full = np.zeros(scene.full_shape, bool)
        full[scene.window] = region
        inside[: full.shape[0] * scene.factor, : full.shape[1] * scene.factor] = scene.enlarged(full)
        appearance = _robust_appearance(scene, self.patches)
        if _looks_bare(scene, *appearance):
            return nothing
        probability = _labelled(scene, *appearance)
        share = float(np.mean(probability[scene.bare] < 0.5))
        if not LEAST_SHARE <= share <= MOST_SHARE:
            return dataclasses.replace(nothing, outlier_share=share)
        small = np.ones(scene.full_shape, np.float32)
        small[scene.window] = np.where(region, probability, 1.0)
        # A landmark is hidden if what is labelled about it is; beside the face that is the nearest part of it.
        weight = gaussian_filter(full.astype(np.float32), 1.5)
        hidden = gaussian_filter(np.where(full, 1 - small, 0.0), 1.5) / np.maximum(weight, 1e-6)
        points = np.asarray(problem.points_px) / scene.factor
        column, row = (np.clip(points[:, k].astype(int), 0, full.shape[1 - k] - 1) for k in (0, 1))
        at_points = np.where(weight[row, column] > 1e-3, hidden[row, column], 0.0)
        believed = nothing.face_probability.copy()
        believed[inside] = scene.enlarged(small)[inside[: full.shape[0] * scene.factor, : full.shape[1] * scene.factor]]
        return Labels(believed, inside, at_points.astype(np.float32), share)


def occlusion_model(model: MorphableModel, solver: SolverModel) -> OcclusionModel:
    """Prepare labelling for a morphable model and what a fit reads of it."""
    mean = np.asarray(model.mean)
    _, vertex = KDTree(mean).query(np.asarray(solver.proxy.mean))
    triangles = np.asarray(vertex)[np.asarray(solver.proxy_triangles)]
    on = lambda values: np.asarray(values)[triangles].mean(axis=1)  # noqa: E731
    mask = lambda name: on(model.masks.get(name, np.zeros(len(mean))))  # noqa: E731
    part = np.asarray(model.part_of_vertex)[triangles[:, 0]]
    eyes = np.isin(part, [i for i, name in enumerate(model.part_names) if name.startswith(("eye", "lash"))])
    face = mask("face") if "face" in model.masks else np.ones(len(triangles))
    skin = (face > 0.9) & (mask("scalp") < 0.4) & (mask("ears") < 0.2) & (mask("interior") < 0.5)
    brows = np.asarray(solver.landmarks.mean)[17:27, 1].max()
    # Above that, hair begins on many heads, and hair is not lit skin.
    low = mean[triangles][..., 1].max(axis=1) < brows + 35
    plain = skin & ~eyes & low
    for name, limit in (("lids", 0.3), ("brows", 0.3), ("lips", 0.3), ("interior", 0.1), ("scalp", 0.1)):
        plain &= mask(name) < limit
    if not plain.any():
        raise ValueError(
            f"{model.provenance.name}: no triangle of plain skin is left to estimate light from; expected a 'face' "
            f"mask that covers skin. Masks found: {sorted(model.masks)}."
        )
    tolerance = 1 + np.maximum(mask("brows"), mask("lips")) + 0.6 * mask("beard") + mask("lids")
    tolerance[eyes] = 3.0
    corners = mean[triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    cumulated = np.cumsum(np.where(plain, area, 0.0))
    targets = (np.arange(_SAMPLES) + 0.5) / _SAMPLES * cumulated[-1]
    samples = np.minimum(np.searchsorted(cumulated, targets), len(area) - 1)
    return OcclusionModel(
        on(model.albedo.mean).astype(np.float32),
        on(np.asarray(model.albedo.modes)[..., :_RANK]).astype(np.float32),
        skin | eyes,
        (skin | eyes) & low,
        tolerance.astype(np.float32),
        samples,
        _patches(corners[samples].mean(axis=1)).astype(np.float32),
    )


def _patches(points: Float[np.ndarray, "sample 3"]) -> Float[np.ndarray, "patch sample"]:
    """Weights of connected pieces of skin: everything, halves, and discs about evenly spread centres.

    Occluders are connected, so some piece is free of them, where 30 random points of a half-covered face never are.
    """
    patches = [np.ones(len(points))]
    centres = [int(np.argmax(points[:, 2]))]
    away = np.linalg.norm(points - points[centres[0]], axis=1)
    while len(centres) < _CENTRES:
        centres.append(int(away.argmax()))
        away = np.minimum(away, np.linalg.norm(points - points[centres[-1]], axis=1))
    for centre in centres:
        square = np.sum((points - points[centre]) ** 2, axis=1)
        patches += [np.exp(-square / (2 * radius**2)) for radius in (25.0, 50.0)]
    middle = np.median(points, axis=0)
    for axis in (0, 1):
        for sign in (-1.0, 1.0):
            patches.append(1 / (1 + np.exp(np.clip(-sign * (points[:, axis] - middle[axis]) / 8, -30, 30))))
    return np.stack(patches)


# --------------------------------------------------------------------------------------------------- geometry


@eqx.filter_jit
def _geometry(
    problem: Problem, face: FaceParameters, factor: int
) -> tuple[Int[Array, "h w"], Float[Array, "triangle 9"], Float[Array, "triangle 2"], Float[Array, "triangle"]]:
    """On the coarse mesh: the triangle at each pixel; for each triangle light's basis, its pixel, and its facing."""
    vertices = problem.model.proxy.positions(face.identity, face.expression)
    pixels = project(face, vertices, problem.centre) / factor
    camera = jax.vmap(lambda x: face.pose @ x)(vertices)
    triangles = problem.model.proxy_triangles
    height, width = (n // factor for n in problem.valid.shape)
    ids = rasterize(pixels, camera[:, 2], triangles, height, width)
    a, b, c = (camera[triangles[:, k]] for k in range(3))
    around = jnp.zeros_like(vertices).at[triangles].add(jnp.cross(b - a, c - a)[:, None])
    normal = jnp.sum(around[triangles], axis=1)
    normal = normal / jnp.maximum(jnp.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    middle = (a + b + c) / 3
    facing = -jnp.sum(normal * middle, axis=1) / jnp.maximum(jnp.linalg.norm(middle, axis=1), 1e-9)
    return ids, sh_basis(normal), jnp.mean(pixels[triangles], axis=1), facing


@dataclasses.dataclass(frozen=True, eq=False)
class _Scene:
    """The small picture around the face and the model's attributes at its pixels, and at the samples of skin."""

    window: tuple[slice, slice]  # of the small picture, around the face
    full_shape: tuple[int, int]
    factor: int  # crop pixels per pixel
    picture: Float[np.ndarray, "h w 3"]  # sRGB-encoded
    region: Bool[np.ndarray, "h w"]
    bare: Bool[np.ndarray, "h w"]
    tolerance: Float[np.ndarray, "h w"]
    albedo: Float[np.ndarray, "h w 3"]
    albedo_modes: Float[np.ndarray, "h w 3 rank"]
    basis: Float[np.ndarray, "h w 9"]
    beside: Float[np.ndarray, "pixel 3"]  # colours beside the head
    skin: "_Samples"

    def enlarged(self, small: np.ndarray) -> np.ndarray:
        """From the small picture to the crop's pixels; a remainder at its right and lower border is left out."""
        return np.repeat(np.repeat(small, self.factor, axis=0), self.factor, axis=1)

    @classmethod
    def of(cls, problem: Problem, face: FaceParameters, model: OcclusionModel) -> "_Scene | None":
        """None where the head is out of the picture or too small to tell."""
        height, width = problem.valid.shape
        factor = max(1, -(-max(height, width) // _SIZE))
        ids, basis, pixel, facing = (np.asarray(x) for x in _geometry(problem, face, factor))
        if len(basis) != len(model.region):
            raise ValueError(
                f"OcclusionModel: got a coarse mesh of {len(basis)} triangles, expected {len(model.region)}, of the "
                "model it was made from. Make it anew with occlusion_model(model, solver_model)."
            )
        h, w = ids.shape
        reduced = lambda x: x[: h * factor, : w * factor].reshape(h, factor, w, factor, -1).mean(axis=(1, 3))  # noqa: E731
        picture = reduced(np.asarray(problem.pyramid[-1]))
        usable = reduced(np.asarray(problem.valid))[..., 0] > 0.5
        region = (ids >= 0) & model.region[ids] & usable
        if region.sum() < 100:
            return None
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        # Deviations below are meant for a well exposed face.
        bright = np.quantile(_grey(picture[region]), 0.7)
        raw, picture = picture, np.minimum(picture * np.clip(_WELL_EXPOSED / max(bright, 1e-3), 1.0, 3.0), 1.0)
        window = (slice(max(rows[0] - 4, 0), rows[-1] + 5), slice(max(columns[0] - 4, 0), columns[-1] + 5))
        column, row = (np.clip(pixel[model.samples, k].astype(int), 0, n - 1) for k, n in ((0, w), (1, h)))
        seen = picture[row, column]
        use = (facing[model.samples] > 0.2) & usable[row, column]
        within = (
            (row >= window[0].start) & (row < window[0].stop) & (column >= window[1].start) & (column < window[1].stop)
        )
        skin = _Samples(
            seen,
            basis[model.samples],
            model.albedo[model.samples],
            model.albedo_modes[model.samples],
            (use & within).astype(np.float32),
            (raw[row, column] < 0.95).astype(np.float32),
            np.where(within, row - window[0].start, 0),
            np.where(within, column - window[1].start, 0),
        )
        inside = ids[window]
        # Near white the sensor's channels clip one by one: colour says little there.
        clipped = np.clip((raw[window].max(axis=-1) - 0.85) / 0.1, 0, 1)
        return cls(
            window,
            (h, w),
            factor,
            picture[window],
            region[window],
            region[window] & model.bare[inside],
            model.tolerance[inside] * (1 + 2 * clipped),
            model.albedo[inside],
            model.albedo_modes[inside],
            basis[inside],
            picture[(ids < 0) & usable],
            skin,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Samples:
    """Plain skin at single points."""

    seen: Float[np.ndarray, "sample 3"]  # sRGB-encoded
    basis: Float[np.ndarray, "sample 9"]
    albedo: Float[np.ndarray, "sample 3"]  # sRGB-encoded
    albedo_modes: Float[np.ndarray, "sample 3 rank"]
    use: Float[np.ndarray, "sample"]
    measured: Float[np.ndarray, "sample 3"]  # 0 where a channel is saturated: it only says "at least"
    row: Int[np.ndarray, "sample"]
    column: Int[np.ndarray, "sample"]


# ------------------------------------------------------------------------------------------------- appearance


def _grey(colours):
    # A sum over a last axis of three costs NumPy ten times as much.
    return (colours[..., 0] + colours[..., 1] + colours[..., 2]) / 3


def _linear(encoded):
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _encoded(linear):
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


_CONSENSUS = 0.06  # encoded colour by which a sample may miss a hypothesis
_LIGHT_RIDGE = np.array([0.0, *[0.02] * 3, *[0.1] * 5])  # share of the ambient band's information
_HYPOTHESIS_RIDGE = np.array([0.0, *[0.15] * 3, *[1.5] * 5])  # a patch says little about other directions
_TINT_RIDGE = 0.1  # of the directional bands' colour
# Light's usual colour: log ratios of red and blue to green deviate by 0.2 over twelve rendered subjects, white balance
# included. Of a well exposed face the log level deviates by 0.2; twice that is allowed for.
_TINT_SIGMA, _LEVEL, _LEVEL_SIGMA = 0.2, np.log(4.5), 0.4


def _robust_appearance(
    scene: _Scene, patches: Float[np.ndarray, "patch sample"]
) -> tuple[Float[np.ndarray, "9 3"], Float[np.ndarray, " rank"]]:
    """Light and albedo that most of the skin agrees on: hypotheses from patches, the best ones polished on all."""
    s = scene.skin
    fine = _structure(scene)[s.row, s.column]
    use = s.use / (1 + fine / 0.06**2)  # stripes and edges are no skin, whatever the light
    albedo = _linear(s.albedo)
    target = _linear(s.seen)
    precision = s.measured * (2.2 * np.maximum(s.seen, 0.12) ** 1.2) ** -2  # of linear colours: encoded noise is even
    weight = patches * use
    light = _solve_light(s.basis, albedo, target, weight[..., None] * precision, _HYPOTHESIS_RIDGE)
    for _ in range(2):
        belief = 1 / (1 + _misfit(s, light, s.albedo) / _CONSENSUS**2)
        light = _solve_light(s.basis, albedo, target, (weight * belief)[..., None] * precision, _HYPOTHESIS_RIDGE)
    score = _agreement(s, use, light, s.albedo)
    light = light[np.argsort(-score)[:6]]
    coefficients = np.zeros((len(light), _RANK), np.float32)
    for _ in range(4):
        light, coefficients = _polished(s, use, light, coefficients)
    encoded = _tinted(s.albedo, s.albedo_modes, coefficients)
    score = _agreement(s, use, light, encoded) - 0.005 * np.sum(coefficients**2, axis=1)
    best = int(np.argmax(score))
    return light[best], coefficients[best]


def _tinted(albedo, modes, coefficients):
    """Encoded albedo for one or many coefficient vectors."""
    shift = (coefficients @ modes.reshape(-1, modes.shape[-1]).T).reshape(*coefficients.shape[:-1], *albedo.shape)
    return np.clip(albedo + shift, np.float32(0.02), np.float32(1.0))


def _reflected(basis, light, encoded):
    """Encoded colour of surfaces, never brighter than white."""
    return _encoded(np.clip(_linear(encoded) * (basis @ light), 0.001, 1.0))


def _misfit(s: _Samples, light, encoded):
    return _grey((_reflected(s.basis, light, encoded) - s.seen) ** 2)


def _agreement(s: _Samples, use, light, encoded):
    """Share of the samples that hypotheses explain, less what unusual light costs."""
    share = np.sum(use / (1 + _misfit(s, light, encoded) / _CONSENSUS**2), axis=-1) / max(use.sum(), 1e-6)
    ambient = np.log(np.maximum(light[..., 0, :], 1e-3))
    tint = ambient[..., [0, 2]] - ambient[..., 1:2]
    unusual = np.sum((tint / _TINT_SIGMA) ** 2, axis=-1) + ((ambient.mean(axis=-1) - _LEVEL) / _LEVEL_SIGMA) ** 2
    return share - 0.03 * unusual


def _solve_light(basis, albedo, target, weight, ridge):
    """Weighted least squares for lights (..., 9, 3): one shape for all channels, small differences of colour.

    `weight` is (..., sample, 3) and batches; `target` is linear colour.
    """
    ambient = np.einsum("...sc->...c", weight * albedo * target)
    ambient = ambient / np.maximum(np.einsum("...sc->...c", weight * albedo**2), 1e-9)
    white = np.maximum(ambient / np.maximum(ambient.mean(axis=-1, keepdims=True), 1e-9), 0.05)[..., None, :]
    outer = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), 81)
    # All channels share the shape: their weights add up sample by sample.
    gram = (3 * _grey(weight * (albedo * white) ** 2) @ outer).reshape(*weight.shape[:-2], 9, 9)
    right = 3 * _grey(weight * albedo * white * target) @ basis
    scale = gram[..., :1, :1]
    shape = np.linalg.solve(gram + np.diag(ridge) * scale + 1e-6 * np.eye(9), right[..., None])
    light = shape * white
    rest = target - albedo * (basis @ light)
    first, few = basis[:, :4], (basis[:, :4, None] * basis[:, None, :4]).reshape(len(basis), 16)
    gram = (np.swapaxes(weight * albedo**2, -1, -2) @ few).reshape(*weight.shape[:-2], 3, 4, 4)
    right = np.swapaxes(weight * albedo * rest, -1, -2) @ first
    ridge = np.diag([0.0, *[_TINT_RIDGE] * 3])
    tint = np.linalg.solve(gram + ridge * gram[..., :1, :1] + 1e-6 * np.eye(4), right[..., None])[..., 0]
    light[..., :4, :] += np.swapaxes(tint, -1, -2)
    return light.astype(np.float32)


def _polished(s: _Samples, use, light, coefficients):
    """One Gauss-Newton step on light, then on albedo, over the samples that agree; batches over leading axes."""
    encoded = _tinted(s.albedo, s.albedo_modes, coefficients)
    predicted = _reflected(s.basis, light, encoded)
    belief = use / (1 + _grey((predicted - s.seen) ** 2) / _CONSENSUS**2) ** 2
    slope = 2.2 * np.maximum(predicted, 0.12) ** 1.2  # of linear over encoded colour
    albedo = _linear(encoded)
    target = albedo * np.maximum(s.basis @ light, 0.01) + slope * (s.seen - predicted)
    light = _solve_light(s.basis, albedo, target, belief[..., None] * s.measured / slope**2, _LIGHT_RIDGE)
    predicted = _reflected(s.basis, light, encoded)
    jacobian = (predicted / encoded)[..., None] * s.albedo_modes
    rank = s.albedo_modes.shape[-1]
    rest = s.seen - predicted + (jacobian @ coefficients[..., None, :, None])[..., 0]
    # Residuals of neighbours are alike: all samples count as 200 with a deviation of 0.06.
    root = np.sqrt(belief * 200 / len(use) / 0.06**2)[..., None]
    flat = (jacobian * root[..., None]).reshape(*belief.shape[:-1], -1, rank)
    right = np.swapaxes(flat, -1, -2) @ (rest * root).reshape(*belief.shape[:-1], -1, 1)
    moved = np.linalg.solve(np.swapaxes(flat, -1, -2) @ flat + np.eye(rank), right)[..., 0]
    return light, moved.astype(np.float32)


def _smooth(image, sigma):
    return gaussian_filter(image, (sigma, sigma, *[0] * (image.ndim - 2)), mode="constant", truncate=2.5)


def _structure(scene: _Scene) -> Float[np.ndarray, "h w"]:
    """Variance of the picture's fine structure beyond that of the mean albedo."""
    grey, mean = _grey(scene.picture), _grey(scene.albedo)
    weight = np.maximum(_smooth(np.ones_like(grey), 4.0), 1e-6)
    fine = [x - _smooth(x, 4.0) / weight for x in (grey, np.where(scene.region, mean, grey))]
    return _smooth(np.maximum(fine[0] ** 2 - np.where(scene.region, fine[1] ** 2, 0.0), 0.0), 2.0)


# ----------------------------------------------------------------------------------------------------- labels

_PRIOR = np.log(0.75 / 0.25)  # log odds of face against occluder
_LUMINANCE, _CHROMA = (0.035, 0.08), (0.007, 0.02)  # least and largest deviation of unexplained colour on skin
_FIELD_PX = 6.0  # reach of the smooth correction for what light and albedo do not explain
_FIELD_LUMINANCE, _FIELD_CHROMA = 0.06, 0.02  # its largest size
_PAIR = 0.35  # log odds of neighbours of one colour having one label, half
_UNARY = 0.6  # neighbouring pixels are not independent observations


def _shown(scene: _Scene, light, coefficients) -> Float[np.ndarray, "h w 3"]:
    """The face as the model has it, sRGB-encoded."""
    return _reflected(scene.basis, light, _tinted(scene.albedo, scene.albedo_modes, coefficients))


def _first_guess(scene: _Scene, predicted) -> Float[np.ndarray, "h w"]:
    """Probability of face from the error alone."""
    error = _grey((scene.picture - predicted) ** 2)
    return 1 / (1 + (error / (scene.tolerance * 0.08) ** 2) ** 2)


def _looks_bare(scene: _Scene, light, coefficients) -> bool:
    """Whether plainly nothing covers the face, at a third of the cost of labelling it.

    Of twelve rendered subjects without an occluder seven end here, of 48 with one at most one: a hand.
    """
    if scene.bare.sum() == 0:
        return True
    predicted = _shown(scene, light, coefficients)
    probability = _first_guess(scene, predicted)
    if np.mean(probability[scene.bare] < 0.5) >= 0.12:
        return False
    return bool(np.mean(_finer_odds(scene, predicted, probability, 0.05, 0.3)[scene.bare] < -0.5) < 0.1)


def _labelled(
    scene: _Scene, light: Float[np.ndarray, "9 3"], coefficients: Float[np.ndarray, " rank"]
) -> Float[np.ndarray, "h w"]:
    """Probability of face for each pixel of the region: labels and models in turn, then what only structure shows."""
    region, picture, s = scene.region, scene.picture, scene.skin
    plain = region & (scene.tolerance < 1.3)
    dull = picture.max(axis=-1) < 0.97
    pair = _Pairs(picture, region)
    bins = np.minimum((picture * _BINS).astype(int), _BINS - 1)
    code = (bins[..., 0] * _BINS + bins[..., 1]) * _BINS + bins[..., 2]
    beside = np.minimum((scene.beside * _BINS).astype(int), _BINS - 1)
    beside = _density((beside[:, 0] * _BINS + beside[:, 1]) * _BINS + beside[:, 2], np.ones(len(beside)))[code]

    probability = _first_guess(scene, _shown(scene, light, coefficients))
    predicted, finer = picture, np.zeros_like(probability)
    for turn in range(_ROUNDS):
        believed = s.use * (0.02 + probability[s.row, s.column])
        light, coefficients = _polished(s, believed, light, coefficients)
        predicted = _shown(scene, light, coefficients)
        weight = plain * probability**2 * dull
        residual = picture - predicted
        smooth = _smooth(np.concatenate([residual * weight[..., None], weight[..., None]], axis=-1), _FIELD_PX)
        field = smooth[..., :3] / (smooth[..., 3:] + 0.1)
        grey = _grey(field)[..., None]
        field = np.clip(grey, -_FIELD_LUMINANCE, _FIELD_LUMINANCE) + np.clip(
            field - grey, -_FIELD_CHROMA, _FIELD_CHROMA
        )
        predicted = predicted + field
        residual = residual - field
        luminance = _grey(residual)
        chroma = 3 * _grey((residual - luminance[..., None]) ** 2)
        weight = probability * plain
        spread = lambda square, most: np.sqrt(  # noqa: E731
            np.sum(weight * np.minimum(square, most**2)) / max(weight.sum(), 1e-6)  # noqa: B023
        )
        tall = scene.tolerance * np.clip(spread(luminance**2, 0.12), *_LUMINANCE)
        wide = scene.tolerance * np.clip(spread(chroma / 2, 0.05 / np.sqrt(2)), *_CHROMA)
        shape = -0.5 * ((luminance / tall) ** 2 + chroma / wide**2)
        normaliser = -np.log(tall * wide**2) - 1.5 * np.log(2 * np.pi)
        face = normaliser + np.logaddexp(shape + np.log(0.8), shape / 2.5**2 + np.log(0.2 / 2.5**3))
        mass = np.sum((1 - probability) * region)
        known = mass / (mass + 200)
        other = _density(code[region], 1 - probability[region])[code]
        occluder = np.log(0.5 * (known * other + 1 - known) + 0.2 * beside + 0.3)
        odds = np.clip(face - occluder + _PRIOR, -6, 6)
        if turn % 2 == 0:  # it moves little
            finer = _finer_odds(scene, predicted, probability, 0.05, 0.3)
        probability = pair.settled(np.where(region, odds + finer, 0.0))
    return _without_fine_structure(scene, predicted, probability, pair)


def _density(code, weight):
    """Histogram over colours, smoothed, as density against the uniform one."""
    count = np.bincount(code.ravel(), weight.ravel(), _BINS**3).reshape(_BINS, _BINS, _BINS)
    for axis in range(3):
        ends = np.pad(count, [(2, 2) if k == axis else (0, 0) for k in range(3)])
        part = lambda k: np.take(ends, range(k, k + _BINS), axis=axis)  # noqa: B023, E731
        count = 0.4 * part(2) + 0.24 * (part(1) + part(3)) + 0.06 * (part(0) + part(4))
    return (count / max(count.sum(), 1e-6) * _BINS**3).ravel()


def _finer_odds(scene: _Scene, predicted, probability, floor: float, limit: float) -> Float[np.ndarray, "h w"]:
    """Log odds of face from how much finer structure a place shows than is predicted for it.

    The ratio of both is log-normal: about 0.84 on faces, and twice that on hands, cloth and prints (measured on
    rendered faces, the model's own contrast being what misplaced features and shading scale with). `floor` is the least
    weight of pixels that are not face, `limit` the largest structure that counts.
    """
    region = scene.region
    grey = _grey(predicted)
    weight = region * np.maximum(probability, floor)
    local = np.maximum(_smooth(weight, 4.0), 1e-4)
    relative = (_grey(scene.picture) - grey) / (grey + 0.15)
    fine = np.clip(relative - _smooth(relative * weight, 4.0) / local, -limit, limit)
    own = (grey - _smooth(grey * weight, 4.0) / local) / (grey + 0.15)
    ratio = _smooth(fine**2 * weight, 4.0) / (0.03**2 * local + _smooth(own**2 * weight, 4.0))
    log_ratio = 0.5 * np.log(ratio + 1e-4)
    normal = lambda mean, sigma: -0.5 * ((log_ratio - mean) / sigma) ** 2 - np.log(sigma)  # noqa: E731
    on_face = np.where(log_ratio < -0.18, -np.log(0.55), normal(-0.18, 0.55))
    return np.clip(on_face - normal(0.64, 0.6), -3.0, 0.7)


def _without_fine_structure(scene: _Scene, predicted, probability, pair) -> Float[np.ndarray, "h w"]:
    """Remove large pieces that have the face's colour but not its structure, as hands do.

    Colour says nothing there, and structure by itself would take noses and beards: only pieces count that are a twelfth
    of the face, unlike it on average, and come in over its outline.
    """
    region = scene.region
    outline = np.logical_and(region, np.logical_not(binary_erosion(region, iterations=2)))
    result = probability
    for _ in range(2):
        finer = _finer_odds(scene, predicted, result, 0.02, 0.2)
        candidates = region & (probability > 0.5)
        odds = np.where(candidates, -0.3 + 3.0 * finer, np.where(region, -3.0, 0.0))
        pieces, count = label(candidates & (pair.settled(odds) < 0.5))  # pyright: ignore[reportGeneralTypeIssues]
        result, removed = probability.copy(), False
        for piece in range(1, count + 1):
            chosen = pieces == piece
            large = chosen.sum() > 0.08 * region.sum() and (chosen & outline).sum() > 0.12 * outline.sum()
            if large and finer[chosen].mean() < -0.3:
                result[chosen], removed = 0.05, True
        if not removed:
            break
    return result


class _Pairs:
    """Neighbours of like colour want one label: mean field of a Potts model on the eight neighbours."""

    def __init__(self, picture: Float[np.ndarray, "h w 3"], region: Bool[np.ndarray, "h w"]):
        h, w = region.shape
        self.links = []
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            one = (slice(0, h - dy), slice(max(-dx, 0), w - max(dx, 0)))
            two = (slice(dy, h), slice(max(dx, 0), w + min(dx, 0)))
            like = np.exp(-3 * _grey((picture[one] - picture[two]) ** 2) / (2 * 0.06**2)) + 0.05
            strength = _PAIR * like * (1.0 if dy == 0 or dx == 0 else 0.7) * (region[one] & region[two])
            self.links.append((one, two, strength.astype(np.float32)))

    def settled(self, odds: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """Probabilities for log odds of single pixels."""
        odds = odds.astype(np.float32)
        mean = np.tanh(odds / 2)
        for _ in range(_SWEEPS):
            field = _UNARY * odds
            for one, two, strength in self.links:
                field[one] += strength * mean[two]
                field[two] += strength * mean[one]
            mean = np.tanh(field / 2)
        return 0.5 + 0.5 * mean


# -------------------------------------------------------------------------------------------------- MediaPipe


class SegmenterError(ValueError):
    """MediaPipe or its task file cannot be used: what, got, expected, remedy."""


_FACE_SKIN = 3  # of selfie_multiclass: background, hair, body skin, face skin, clothes, others


def mediapipe_face_mask(photo: Photo, task_file: str | os.PathLike) -> Bool[np.ndarray, "height width"]:
    """True where MediaPipe's selfie_multiclass segmenter sees skin of a face; for `mask` of `Fitter.fit`.

    `task_file` is the user's own copy of that model (.task or .tflite).
    """

    def segmented(tasks, base, image):
        options = tasks.vision.ImageSegmenterOptions(
            base_options=base, output_category_mask=False, output_confidence_masks=True
        )
        with tasks.vision.ImageSegmenter.create_from_options(options) as segmenter:
            return segmenter.segment(image).confidence_masks

    masks = run_task(
        photo,
        task_file,
        "MediaPipe's selfie_multiclass model (.task or .tflite)",
        segmented,
        SegmenterError,
        "draw a mask and give it with --mask",
    )
    if len(masks) <= _FACE_SKIN:
        raise SegmenterError(
            f"{task_file}: got {len(masks)} classes of the segmenter, expected selfie_multiclass, whose class "
            f"{_FACE_SKIN} is face skin. Give that model."
        )
    return np.asarray(masks[_FACE_SKIN].numpy_view()).reshape(photo.height, photo.width) > 0.5
