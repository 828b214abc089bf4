"""How large the head is in millimetres, and how far that can be believed.

Pictures alone do not tell a head's size: a larger one farther away looks the same. What tells it are lengths that
hardly differ between people. The identity prior is in millimetres and knows how size goes with shape; the visible iris
is 11.7 mm wide in nearly every adult (Hashemi et al. 2015: 11.80, sd .5 mm; Rüfer et al. 2005: 11.71, sd .42 mm); or
the user has measured the distance between the pupils. Each gives a factor on the fitted head with a deviation, and they
are combined as independent Gaussians of the logarithm.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fitting.fit import Fit
from fitting.observation import Photo

IRIS_MM, IRIS_SIGMA_MM = 11.75, 0.5  # diameter of the visible iris of adults
RULER_SIGMA_MM = 1.0  # of a pupil distance that a user states
# Hundreds of photos seem to leave no doubt, as their noise is taken for independent. With 200 rendered ones of a person
# the distance between the eyes was wrong by 4 %.
_SURE = 0.03
_CROP_PX = 96  # side of the square about an eye, three irises wide
_SMALLEST_PX = 14.0  # diameter of an iris in the photo below which its edge is not measured
_MOST_TURNED = np.cos(np.radians(35.0))  # an iris seen at a slant is narrower
_READING_SIGMA = 0.12  # of one iris's diameter, relative; the spread over real photos
_CLEAR = 0.04  # step of brightness (encoded) that an iris's edge makes at least


@dataclasses.dataclass(frozen=True)
class Measure:
    """One statement about the head's size."""

    source: str  # "identity prior", "iris" or "pupil distance"
    factor: float  # the true size over the fitted one
    sigma: float  # of the factor's logarithm


@dataclasses.dataclass(frozen=True)
class MetricScale:
    """The true size of the head over the fitted one."""

    factor: float
    low: float  # 95 % interval
    high: float
    pupils_mm: float  # distance between the eyes' centres, scaled
    measures: tuple[Measure, ...]

    def __str__(self) -> str:
        spread = self.pupils_mm * (self.high - self.low) / (2 * self.factor)
        said = ", ".join(m.source for m in self.measures)
        return f"{self.pupils_mm:.1f} mm between the eyes, ± {spread:.1f} mm in 95 of 100 cases (by {said})"


def metric_scale(
    fits: Sequence[Fit],
    photos: Sequence[Photo] = (),
    identity_covariance: Float[np.ndarray, "identity identity"] | None = None,
    pupils_mm: float | None = None,
) -> MetricScale:
    """The size of a head that was fitted to some photos.

    `photos` (those of `fits`) are searched for irises that are large enough. A stated `pupils_mm` overrules both
    priors. Raises ValueError for a model without eye joints.
    """
    first = fits[0]
    between, slope = _eye_distance(first)
    if pupils_mm is not None:
        if not 30 < pupils_mm < 100:
            raise ValueError(
                f"distance between the pupils: got {pupils_mm:g} mm, expected 30 to 100. Is it in another unit?"
            )
        measures = [Measure("pupil distance", pupils_mm / between, RULER_SIGMA_MM / pupils_mm)]
    else:
        covariance = np.eye(len(slope)) if identity_covariance is None else identity_covariance
        said = float(np.sqrt(slope @ covariance @ slope)) / between
        measures = [Measure("identity prior", 1.0, max(said, _SURE))]
        widths = [w for fit, photo in zip(fits, photos, strict=False) for w in iris_widths(fit, photo)]
        if widths:
            # Irises of one person are alike: measuring several narrows the reading, not the prior.
            reading = _READING_SIGMA / np.sqrt(len(widths))
            sigma = float(np.hypot(IRIS_SIGMA_MM / IRIS_MM, reading))
            measures.append(Measure("iris", IRIS_MM / float(np.median(widths)), sigma))
    precision = np.array([m.sigma**-2 for m in measures])
    mean = float(np.sum(precision * np.log([m.factor for m in measures])) / precision.sum())
    spread = 1.96 / np.sqrt(precision.sum())
    low, factor, high = (float(np.exp(mean + k * spread)) for k in (-1, 0, 1))
    return MetricScale(factor, low, high, between * factor, tuple(measures))


def _eyes(fit: Fit) -> Float[np.ndarray, "2 3"]:
    """Centres of the eyeballs in head space, mm."""
    rig = fit.model.rig
    if rig is None or not {"eye_left", "eye_right"} <= set(rig.names):
        names = "no rig" if rig is None else ", ".join(rig.names)
        raise ValueError(f"metric scale: got a model with {names}, expected joints eye_left and eye_right.")
    joints = np.asarray(rig.joint_positions(jnp.asarray(fit.identity)))
    return joints[[rig.names.index("eye_left"), rig.names.index("eye_right")]]


def _eye_distance(fit: Fit) -> tuple[float, Float[np.ndarray, " identity"]]:
    """Distance between the eyes' centres, and its derivative by the identity's coefficients, mm."""
    eyes, rig = _eyes(fit), fit.model.rig
    assert rig is not None  # _eyes has looked
    apart = eyes[0] - eyes[1]
    between = float(np.linalg.norm(apart))
    modes = np.asarray(rig.joints.modes)[..., : len(fit.identity)]
    slope = (modes[rig.names.index("eye_left")] - modes[rig.names.index("eye_right")]).T @ (apart / between)
    return between, slope


def iris_widths(fit: Fit, photo: Photo) -> list[float]:
    """Diameters of the irises that a photo shows well, in the fit's mm; empty where it shows none.

    The circle whose edge is the strongest step from dark to bright along its left and right arcs, which lids leave
    open (Daugman 1993, eq. 1), about the place where the fit has the eye.
    """
    camera = fit.camera
    turned = np.asarray(camera.rotation) @ np.array([0.0, 0.0, 1.0])  # the face's direction, to the camera's axes
    if -turned[2] < _MOST_TURNED:
        return []
    found = []
    for eye in _eyes(fit):
        iris = jnp.asarray(eye[None] + [[0.0, 0.0, 11.0]])  # before the eyeball's centre
        at_camera, pixel = np.asarray(camera.to_camera(iris))[0], np.asarray(camera.project(iris))[0]
        per_mm = float(np.asarray(camera.focal).mean()) / at_camera[2]
        expected = IRIS_MM * per_mm
        inside = 2 * expected < pixel[0] < photo.width - 2 * expected and expected < pixel[1] < photo.height - expected
        if expected < _SMALLEST_PX or not inside:
            continue
        side = 3.0 * expected
        box = np.array([pixel[0] - side / 2, pixel[1] - side / 2, side, side], float)
        picture, _ = photo.crop_srgb(box, _CROP_PX)
        radius = _iris_radius(picture.mean(axis=2))
        if radius is not None:
            found.append(float(2 * radius * side / _CROP_PX / per_mm))
    return found


def _iris_radius(grey: Float[np.ndarray, "size size"]) -> float | None:
    """Radius of the iris in a square three irises wide, in its pixels; None where no clear edge is found."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    size = len(grey)
    smooth = gaussian_filter(grey, 1.0)
    usual = size / 6
    radii = np.arange(0.7 * usual, 1.35 * usual, 0.5)
    angles = np.radians(np.r_[-35:36:5, 145:216:5])
    best, scores = (-np.inf, 0.0, 0.0), None
    for y in np.arange(-0.5, 0.51, 0.1) * usual + size / 2:
        for x in np.arange(-0.7, 0.71, 0.1) * usual + size / 2:
            at = [
                y - 0.5 + radii[:, None] * np.sin(angles),
                x - 0.5 + radii[:, None] * np.cos(angles),
            ]
            rings = map_coordinates(smooth, at, order=1, mode="nearest")
            halves = rings.reshape(len(radii), 2, -1).mean(axis=2)
            steps = halves[2:] - halves[:-2]
            # Both sides must show it: one alone is a lid's corner or a highlight.
            both = steps.min(axis=1)
            k = int(np.argmax(both))
            if both[k] > best[0]:
                best, scores = (float(both[k]), float(radii[k + 1]), float(k)), both
    if scores is None or best[0] < _CLEAR or best[2] in (0.0, float(len(scores) - 1)):
        return None
    return best[1]
