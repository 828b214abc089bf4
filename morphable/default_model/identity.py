"""Identity: heads sampled from MakeHuman's sliders, their principal components, and calibration to a population.

A head is the base mesh plus a weighted sum of shape targets. Sampling the weights gives a population of invented heads;
its principal components are a basis of plausible head shapes whose statistics are an artist's. The mean and covariance
of 80 surface points of a real population (`population_figures.npz`) then correct mean, scale and covariance, and the
basis is rotated and rescaled so that the coefficients stay c ~ N(0, I).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from morphable.default_model.assets import Assets
from morphable.default_model.surface import HeadTopology

POPULATION_FIGURES = Path(__file__).parent / "population_figures.npz"
COMPONENTS = 100
SAMPLES = 2000
SEED = 1

# ---------------------------------------------------------------------------------------------- sliders

# Standard deviation of a slider (its range is -1 to 1) by folder, and for those that need their own.
SIGMA = {
    "head": 0.25,
    "forehead": 0.18,
    "eyebrows": 0.30,
    "eyes": 0.30,
    "nose": 0.32,
    "mouth": 0.30,
    "ears": 0.30,
    "chin": 0.24,
    "cheek": 0.30,
    "neck": 0.20,
    "asym": 0.07,
}
SIGMA_OF = {
    "head/head-angle in|out": 0.06,
    "head/head-scale-depth decr|incr": 0.18,
    "head/head-scale-horiz decr|incr": 0.22,
    "head/head-scale-vert decr|incr": 0.22,
    "head/head-back-scale-depth decr|incr": 0.10,
    "head/head-trans down|up": 0.0,
    "head/head-trans in|out": 0.0,
    "head/head-trans backward|forward": 0.0,
    "head/head-fat decr|incr": 0.35,
    "forehead/forehead-nubian decr|incr": 0.06,
    "forehead/forehead-scale-vert decr|incr": 0.12,
    "eyes/l-eye-trans down|up": 0.24,
    "eyes/l-eye-trans in|out": 0.24,
    "mouth/mouth-trans down|up": 0.12,
    "mouth/mouth-trans in|out": 0.07,
    "mouth/mouth-trans backward|forward": 0.20,
    "nose/nose-trans down|up": 0.17,
    "nose/nose-trans in|out": 0.07,
    "nose/nose-trans backward|forward": 0.25,
    "nose/nose-point down|up": 0.30,
    "nose/nose-hump decr|incr": 0.40,
    "chin/chin-height decr|incr": 0.13,
    "neck/neck-scale-vert decr|incr": 0.06,
    "neck/measure-neck-height decr|incr": 0.06,
    "neck/neck-trans down|up": 0.10,
    "neck/neck-trans in|out": 0.07,
    "neck/neck-trans backward|forward": 0.10,
    "ears/l-ear-scale decr|incr": 0.15,
    "ears/l-ear-shape-pointed": 0.08,
    "ears/l-ear-shape-triangle": 0.12,
}
# MakeHuman's eyes are too small and close together and its mouth too narrow.
MEAN_OF = {
    "eyes/l-eye-trans in|out": 0.42,
    "eyes/l-eye-scale decr|incr": 0.60,
    "mouth/mouth-scale-horiz decr|incr": 0.40,
}
# Eyes, ears and cheeks have one slider for each side: the right one follows the left with this much of its own noise.
SIDE_NOISE = 0.25

_OPPOSITES = (
    ("decr", "incr"),
    ("down", "up"),
    ("in", "out"),
    ("backward", "forward"),
    ("concave", "convex"),
    ("compress", "uncompress"),
    ("l", "r"),
)
_RACES = ("african", "asian", "caucasian")  # MakeHuman's words for three of its artists' target families


@dataclass(frozen=True)
class Slider:
    """One facial control: `positive` is applied by its positive part, `negative` (if any) by its negative part."""

    name: str
    negative: str | None
    positive: str

    @property
    def sigma(self) -> float:
        return SIGMA_OF.get(self.name, SIGMA[self.name.split("/")[0]])

    @property
    def mean(self) -> float:
        return MEAN_OF.get(self.name, 0.0)


def pair_sliders(target_names: list[str]) -> list[Slider]:
    """Targets paired into sliders by their last word; a target without an opposite is a one-sided slider."""
    names, used, sliders = set(target_names), set(), []
    for name in target_names:
        if name in used:
            continue
        stem, _, word = name.rpartition("-")
        for negative, positive in _OPPOSITES:
            if word in (negative, positive) and {f"{stem}-{negative}", f"{stem}-{positive}"} <= names:
                pair = (f"{stem}-{negative}", f"{stem}-{positive}")
                sliders.append(Slider(f"{stem} {negative}|{positive}", *pair))
                used.update(pair)
                break
        else:
            sliders.append(Slider(name, None, name))
            used.add(name)
    return sliders


def local_targets(assets: Assets) -> list[str]:
    """Names of the facial targets, without the whole-head "asymm" presets."""
    names = [name for folder in SIGMA for name in assets.target_names(folder)]
    return [name for name in names if "asymm-" not in name]


def macro_targets(assets: Assets) -> list[str]:
    """Names of the adult targets for sex, age, build and origin."""
    names = assets.target_names("macrodetails")
    return [name for name in names if "baby" not in name and "child" not in name]


def sample_weights(
    sliders: list[Slider], target_names: list[str], count: int, seed: int
) -> Float[np.ndarray, "count target"]:
    """Weights of all targets for `count` random adults."""
    rng = np.random.default_rng(seed)
    column = {name: i for i, name in enumerate(target_names)}
    weights = np.zeros((count, len(target_names)))
    for name, value in _macro_weights(rng, count).items():
        weights[:, column[name]] = value

    def add(slider: Slider, value: Float[np.ndarray, "count"], mirrored: bool = False) -> None:
        for name, part in ((slider.negative, -value), (slider.positive, value)):
            if name is not None:
                name = name.replace("/l-", "/r-") if mirrored else name
                weights[:, column[name]] += np.clip(part, 0, 1)

    for slider in sliders:
        if "/r-" in slider.name:
            continue
        value = np.clip(slider.sigma * rng.normal(size=count) + slider.mean, -1, 1)
        add(slider, value)
        if "/l-" in slider.name:
            noise = SIDE_NOISE * slider.sigma * rng.normal(size=count)
            add(slider, np.clip(value + noise, -1, 1), mirrored=True)
    return weights


def _macro_weights(rng: np.random.Generator, count: int) -> dict[str, Float[np.ndarray, "count"]]:
    """Sex mostly near either end, origins mixed, ages from young adult to old, build around the middle."""
    male = np.where(rng.random(count) < 0.5, rng.beta(1, 6, count), 1 - rng.beta(1, 6, count))
    origin = rng.dirichlet([0.6, 0.6, 0.6], count)
    old = rng.beta(1.3, 1.7, count)
    weight = np.clip(0.5 + 0.17 * rng.normal(size=count), 0, 1)
    muscle = np.clip(0.5 + 0.15 * rng.normal(size=count), 0, 1)

    def three_steps(value: Float[np.ndarray, "count"], what: str) -> dict[str, Float[np.ndarray, "count"]]:
        return {
            f"min{what}": np.clip(1 - 2 * value, 0, 1),
            f"average{what}": 1 - np.abs(2 * value - 1),
            f"max{what}": np.clip(2 * value - 1, 0, 1),
        }

    out = {}
    for sex, s in (("male", male), ("female", 1 - male)):
        for age, a in (("young", 1 - old), ("old", old)):
            for k, name in enumerate(_RACES):
                out[f"macrodetails/{name}-{sex}-{age}"] = origin[:, k] * s * a
            for m, mw in three_steps(muscle, "muscle").items():
                for w, ww in three_steps(weight, "weight").items():
                    out[f"macrodetails/universal-{sex}-{age}-{m}-{w}"] = s * a * mw * ww
    return out


# ---------------------------------------------------------------------------------------------- alignment and PCA


@dataclass(frozen=True)
class ShapeBasis:
    """mean + sum_k c_k modes[k] over the model's rows followed by its joints (mm), c ~ N(0, I).

    Every mode is its own mirror image (parity +1) or the negative of it (parity -1).
    """

    mean: Float[np.ndarray, "row 3"]
    modes: Float[np.ndarray, "mode row 3"]
    parity: Int[np.ndarray, "mode"]


def align_rigidly(
    shapes: Float[np.ndarray, "shape row 3"],
    reference: Float[np.ndarray, "row 3"],
    weights: Float[np.ndarray, "row"],
) -> Float[np.ndarray, "shape row 3"]:
    """Every shape moved and rotated, not scaled, onto the reference (weighted Kabsch)."""
    w = (weights / weights.sum()).astype(shapes.dtype)
    centred = shapes - np.einsum("nvi,v->ni", shapes, w)[:, None]
    centre = w @ reference
    cross = np.einsum("nvi,v,vj->nij", centred, w, (reference - centre).astype(shapes.dtype)).astype(float)
    u, _, vt = np.linalg.svd(cross)
    u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]
    return centred @ (u @ vt).astype(shapes.dtype) + centre.astype(shapes.dtype)


def reflect(shapes: Float[np.ndarray, "*shape row 3"], mirror: Int[np.ndarray, "row"]):
    """The mirror image in the plane x = 0."""
    return shapes[..., mirror, :] * np.array([-1, 1, 1], shapes.dtype)


def symmetric_mean(shapes, mirror):
    mean = shapes.mean(axis=0, dtype=float)
    return (mean + reflect(mean, mirror)) / 2


def principal_components(
    shapes: Float[np.ndarray, "shape row 3"],
    mirror: Int[np.ndarray, "row"],
    weights: Float[np.ndarray, "row"],
    count: int,
) -> tuple[ShapeBasis, Float[np.ndarray, "all"]]:
    """Components of the shapes and their mirror images, largest first, and all variances.

    With the mirror images counted in, the covariance falls into a symmetric and an antisymmetric block, which are
    decomposed apart (each through the Gram matrix of the samples), so that the modes are exactly one or the other.
    """
    mean = symmetric_mean(shapes, mirror)
    n = len(shapes)
    variances, modes, parities = [], [], []
    for parity in (1, -1):
        half = (shapes + parity * reflect(shapes, mirror)) / 2
        if parity == 1:
            half = half - mean.astype(shapes.dtype)
        flat = (half * np.sqrt(weights).astype(shapes.dtype)[:, None]).reshape(n, -1)
        variance, scores = np.linalg.eigh((flat @ flat.T).astype(float) / n)
        order = np.argsort(-variance)[:count]
        variances.append(variance)
        # The mode of unit score variance is the covariance of shape and score.
        modes.append(np.tensordot(scores[:, order].T.astype(shapes.dtype) / np.sqrt(n), half, 1))
        parities.append(np.full(len(order), parity))
    kept = np.concatenate([np.sort(v)[::-1][:count] for v in variances])
    order = np.argsort(-kept, kind="stable")[:count]
    basis = ShapeBasis(
        mean=mean,
        modes=np.concatenate(modes)[order].astype(float),
        parity=np.concatenate(parities)[order],
    )
    return basis, np.sort(np.concatenate(variances))[::-1]


# ---------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class PopulationFigures:
    """Mean and covariance of surface points in a real population (mm, rigidly aligned, true size).

    Measured for facefit on 180 random members of the light-stage population of ICT-FaceKit Light (MIT licence,
    (c) 2020 USC Institute for Creative Technologies), registered to this topology. No individual enters.
    """

    base_ids: Int[np.ndarray, "point"]
    mean: Float[np.ndarray, "point 3"]
    covariance: Float[np.ndarray, "coordinate coordinate"]
    ear: Int[np.ndarray, "2"]  # the points in front of the ears

    @classmethod
    def load(cls, path: Path = POPULATION_FIGURES) -> "PopulationFigures":
        with np.load(path) as file:
            return cls(
                base_ids=file["base_obj_vertex"].astype(int),
                mean=file["mean_mm"].astype(float),
                covariance=file["covariance_mm2"].astype(float),
                ear=np.flatnonzero(np.isin(file["name"], ("jaw line 0", "jaw line 16"))),
            )


def similarity(
    source: Float[np.ndarray, "point 3"], target: Float[np.ndarray, "point 3"]
) -> tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Scale, rotation and translation with target = scale * rotation @ source + translation (Umeyama 1991)."""
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    u, d, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((d * sign).sum() / (a**2).sum())
    return scale, rotation, target.mean(axis=0) - scale * rotation @ source.mean(axis=0)


def calibrate(
    mean: Float[np.ndarray, "point 3"],
    modes: Float[np.ndarray, "mode point 3"],
    target_mean: Float[np.ndarray, "point 3"],
    target_covariance: Float[np.ndarray, "coordinate coordinate"],
    noise_mm: float = 0.8,
    steps: int = 6,
    full_share: float = 0.6,
) -> tuple[float, Float[np.ndarray, "mode"], Float[np.ndarray, "mode mode"]]:
    """Scale, and mean and covariance of the coefficients, from the statistics of some points.

    The coefficients are a latent Gaussian with known loadings, observed with noise: expectation maximisation from
    N(0, I) on the sufficient statistics (Rubin & Thayer 1982), with rigid motion and scale projected out of both sides.
    What the points do not see keeps its prior. The covariance is shrunk towards its diagonal: it comes from 180 faces.
    The scale is that of the uncalibrated mean; as size is projected out, the moved mean needs its own (`true_scale`).
    """
    scale, rotation, translation = similarity(mean, target_mean)
    placed = scale * mean @ rotation.T + translation
    loadings = scale * np.einsum("kpj,ij->pik", modes, rotation).reshape(-1, len(modes))
    centred = placed - placed.mean(axis=0)
    motions = [np.tile(axis, len(centred)) for axis in np.eye(3)]
    motions += [np.cross(axis, centred).ravel() for axis in np.eye(3)] + [centred.ravel()]
    q, _ = np.linalg.qr(np.stack(motions, axis=1))
    outside = np.eye(len(q)) - q @ q.T
    loadings = outside @ loadings
    offset = outside @ (target_mean - placed).ravel()
    spread = outside @ target_covariance @ outside

    m, s = np.zeros(len(modes)), np.eye(len(modes))
    information = loadings.T @ loadings / noise_mm**2
    for _ in range(steps):
        posterior = np.linalg.inv(information + np.linalg.inv(s))
        gain = posterior @ loadings.T / noise_mm**2
        m = m + gain @ (offset - loadings @ m)
        s = posterior + gain @ spread @ gain.T
        s = (s + s.T) / 2
    return scale, m, full_share * s + (1 - full_share) * np.diag(np.diag(s))


def true_scale(
    mean: Float[np.ndarray, "point 3"], modes: Float[np.ndarray, "mode point 3"], m: Float[np.ndarray, "mode"], target
) -> float:
    """Scale at which the calibrated mean's points have the population's true size."""
    return similarity(mean + np.tensordot(m, modes, 1), target)[0]


def whiten(
    basis: ShapeBasis,
    scale: float,
    m: Float[np.ndarray, "mode"],
    s: Float[np.ndarray, "mode mode"],
    weights: Float[np.ndarray, "row"],
) -> ShapeBasis:
    """The same family of shapes, scaled and with coefficients N(m, s), written with coefficients N(0, I).

    The population's own asymmetry is noise of 180 faces: the mean is kept symmetric and symmetric modes stay
    uncorrelated with antisymmetric ones. Modes are sorted by weighted size; in each, the largest displacement on the
    left half is positive.
    """
    flat = basis.modes.reshape(len(basis.modes), -1)
    root = np.repeat(np.sqrt(weights), 3)
    mean = scale * (basis.mean + np.tensordot(np.where(basis.parity == 1, m, 0.0), basis.modes, 1))
    blocks, sizes, parities = [], [], []
    for parity in (1, -1):
        own = np.flatnonzero(basis.parity == parity)
        factor = np.linalg.cholesky(s[np.ix_(own, own)])
        loaded = scale * factor.T @ flat[own]
        size, rotation = np.linalg.eigh((loaded * root) @ (loaded * root).T)
        blocks.append(rotation.T @ loaded)
        sizes.append(size)
        parities.append(np.full(len(own), parity))
    order = np.argsort(-np.concatenate(sizes), kind="stable")
    modes = np.concatenate(blocks)[order].reshape(-1, *basis.mean.shape)
    left = np.where(mean[:, 0] > 0, np.sqrt(weights), 0.0)[:, None]
    weighted = (modes * left).reshape(len(modes), -1)
    peak = np.take_along_axis(weighted, np.abs(weighted).argmax(axis=1)[:, None], axis=1)
    return ShapeBasis(mean, modes * np.sign(peak)[..., None], np.concatenate(parities)[order])


def shorten_skull(basis: ShapeBasis, start_z: float, share: float = 0.86, over: float = 40.0) -> ShapeBasis:
    """The same basis with depths behind `start_z` shrunk to `share` (reached smoothly over `over` mm).

    The population's points are all on the face. Bringing the face to its true size brings the skull along, whose
    proportion to the face is MakeHuman's, and it ends up 15 mm longer than heads are.
    """
    behind = np.clip(start_z - basis.mean[:, 2], 0, None)
    slope = 1 - (1 - share) * np.clip(behind / over, 0, 1)
    saved = (1 - share) * np.where(behind < over, behind**2 / (2 * over), behind - over / 2)
    mean, modes = basis.mean.copy(), basis.modes.copy()
    mean[:, 2] += saved
    modes[:, :, 2] *= slope
    return ShapeBasis(mean, modes, basis.parity)


# ---------------------------------------------------------------------------------------------- all together


def reduce_rows(
    topology: HeadTopology, joints: Float[np.ndarray, "joint vertex"], shape: Float[np.ndarray, "vertex 3"]
) -> Float[np.ndarray, "row 3"]:
    """Rows of the head model followed by its joints, from positions or displacements of the whole base mesh."""
    return np.concatenate([shape[topology.base_ids], joints @ shape])


def sample_heads(
    assets: Assets,
    topology: HeadTopology,
    joints: Float[np.ndarray, "joint vertex"],
    base_vertices: Float[np.ndarray, "vertex 3"],
    count: int = SAMPLES,
    seed: int = SEED,
) -> Float[np.ndarray, "count row 3"]:
    """Random heads (mm, base mesh frame), not yet aligned."""
    local, macro = local_targets(assets), macro_targets(assets)
    names = local + macro
    targets = np.stack(
        [reduce_rows(topology, joints, assets.target(name, len(base_vertices))).astype(np.float32) for name in names]
    )
    weights = sample_weights(pair_sliders(local), names, count, seed).astype(np.float32)
    offsets = (weights @ targets.reshape(len(names), -1)).reshape(count, -1, 3)
    return offsets + reduce_rows(topology, joints, base_vertices).astype(np.float32)


def align_heads(shapes, mirror, weights, rounds: int = 3):
    """Heads aligned to their own symmetric mean."""
    for _ in range(rounds):
        shapes = align_rigidly(shapes, symmetric_mean(shapes, mirror), weights)
    return shapes
