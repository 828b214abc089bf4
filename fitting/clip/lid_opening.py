"""How far lids are open, from how thick the dark of an eye is: iris and pupil vanish behind a lid.

dlib's lid landmarks hardly follow a blink: they fall to 75 to 80 % of their distance for closed eyes, in photos and
renderings alike. The dark between the lids falls to none, or to the thin line of the lashes. What "open" looks like
differs between people, lights and resolutions, so it is what this eye mostly looks like in the seconds around: narrow
eyes, the rim of glasses and the shadow below a brow are in the reference as well.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import map_coordinates

from fitting.observation import Photo

_CROP = 64  # px of the square around an eye
_ROWS, _COLUMNS = 32, 30  # of the patch that is looked at
_HALF_WIDTH, _HALF_HEIGHT = 0.4, 0.33  # of the patch, in lengths of the eye: no brow, no sides of glasses
_THICKEST = 5  # columns: a third of an iris, so that the length of a line along the lids does not count
_SMALLEST_PX = 12.0  # length of an eye below which nothing can be told
_FORESHORTENED = 0.65  # of its length: from some 50 degrees on an eye lies on the head's outline
_SHOWN = 0.98  # share of the patch that must lie in the picture
LEVELS = np.linspace(0.0, 0.76, 20)  # how much darker than skin is dark; made definite once the eye is known
_DARK = 0.4  # of the darkest of the open eye
_SHALLOW = 0.35  # an eye that is never this much darker than its skin is hidden, by dark glasses for one
_USUAL = 0.8  # quantile of the reference that is an open eye: eyes may be closed for most of the time, but not for all
_AROUND_S = 8.0  # to either side, from which the reference is taken
_ENOUGH_S, _ENOUGH = 0.6, 12  # time and frames that it takes
# Of the open eye's dark: a closed eye keeps the line of its lashes, an open one is never still. In between may be an
# eye that looks down: half of its iris is hidden, but its lid is lowered by a quarter.
_CLOSED, _OPEN = 0.2, 0.7
_UNSURE = 0.4  # deviation midway between the two
# The iris is gone when lids are half closed, so readings jump; lids need about this long from open to closed.
_CLOSING_S = 0.06


@dataclass(frozen=True, eq=False)
class EyeDark:
    """The dark of one eye or, with leading axes, of many. NaN where an eye is too small, turned away or cut off."""

    depth: Float[np.ndarray, "..."]  # how much darker than skin the darkest 3 % are, as a share of the skin's tone
    thickness: Float[np.ndarray, "... level"]  # mean excess over each of LEVELS where the dark is thickest


def eye_dark(photo: Photo, corners_px: Float[np.ndarray, "2 2"], length_px: float) -> EyeDark:
    """The dark of an eye in a picture.

    `corners_px` are the eye's corners from left to right, `length_px` how far they were apart if they faced the camera.
    Ratios of sRGB values, hence the same in any exposure.
    """
    unknown = EyeDark(np.array(np.nan), np.full(len(LEVELS), np.nan))
    across = corners_px[1] - corners_px[0]
    length = float(np.linalg.norm(across))
    if not (np.isfinite(length_px) and length >= max(_SMALLEST_PX, _FORESHORTENED * length_px)):
        return unknown
    side = 1.4 * length_px
    x0, y0 = (corners_px.mean(axis=0) - side / 2).tolist()
    if x0 >= photo.width or y0 >= photo.height or min(x0, y0) <= -side:
        return unknown
    picture, inside = photo.crop_srgb((x0, y0, side, side), _CROP)
    u = ((np.arange(_COLUMNS) + 0.5) / _COLUMNS * 2 - 1) * _HALF_WIDTH
    v = ((np.arange(_ROWS) + 0.5) / _ROWS * 2 - 1) * _HALF_HEIGHT * length_px / length
    along, up = np.meshgrid(u, v)
    place = np.stack([along * across[1] + up * across[0], along * across[0] - up * across[1]])  # y, x
    place = place * (_CROP / side) + _CROP / 2 - 0.5
    sample = lambda values: map_coordinates(values, place, order=1, mode="nearest")  # noqa: E731
    if sample(inside.astype(np.float32)).mean() < _SHOWN:
        return unknown
    tone = sample(picture.mean(axis=2))
    darker = 1.0 - tone / max(float(np.median(tone)), 1e-3)
    excess = np.maximum(darker - LEVELS[:, None, None], 0.0).mean(axis=1)
    thickest = np.sort(excess, axis=1)[:, -_THICKEST:].mean(axis=1)
    return EyeDark(np.array(np.quantile(darker, 0.97)), thickest)


@dataclass(frozen=True, eq=False)
class LidOpening:
    """How far the right and the left eye are open: 1 as usual, 0 closed, NaN not known; in many frames or in one."""

    share: Float[np.ndarray, "... 2"]
    noise: Float[np.ndarray, "... 2"]  # its deviation, in openings of the open eye

    def __getitem__(self, frame: int) -> "LidOpening":
        return LidOpening(self.share[frame], self.noise[frame])


def lid_openings(dark: EyeDark, times: Float[np.ndarray, " frame"], segment: Int[np.ndarray, " frame"]) -> LidOpening:
    """How far both eyes are open in each frame of a clip, from the dark of the right and of the left one."""
    share, noise = np.full((len(times), 2), np.nan), np.full((len(times), 2), np.nan)
    for shot in np.unique(segment[segment >= 0]):
        for eye in range(2):
            rows = np.flatnonzero((segment == shot) & np.isfinite(dark.depth[:, eye]))
            when = times[rows]
            seen = _compared(dark.depth[rows, eye], dark.thickness[rows, eye], when)
            noise[rows, eye] = _UNSURE * 4 * seen * (1 - seen)
            for k, (low, high) in enumerate(_windows(when, _CLOSING_S)):
                near = 1 - np.abs(when[low:high] - when[k]) / _CLOSING_S
                near = np.where(np.isfinite(seen[low:high]), near, 0.0)
                if np.isfinite(seen[k]):
                    share[rows[k], eye] = near @ np.nan_to_num(seen[low:high]) / near.sum()
    return LidOpening(share, noise)


def _compared(
    depth: Float[np.ndarray, " frame"], thickness: Float[np.ndarray, "frame level"], when: Float[np.ndarray, " frame"]
) -> Float[np.ndarray, " frame"]:
    """How open one eye looks, in comparison with the frames around; NaN where they say too little."""
    out = np.full(len(when), np.nan)
    for k, (low, high) in enumerate(_windows(when, _AROUND_S)):
        if high - low < _ENOUGH or when[high - 1] - when[low] < _ENOUGH_S:
            continue
        deepest = float(np.quantile(depth[low:high], _USUAL))
        above = _thickness_above(thickness[low:high], _DARK * deepest)
        usual = float(np.quantile(above, _USUAL))
        if deepest >= _SHALLOW and usual > 0:
            out[k] = np.clip((above[k - low] / usual - _CLOSED) / (_OPEN - _CLOSED), 0.0, 1.0)
    return out


def _windows(when: Float[np.ndarray, " frame"], reach: float) -> list[tuple[int, int]]:
    """For each time the range of those that are no farther from it than `reach`."""
    first, after = np.searchsorted(when, when - reach), np.searchsorted(when, when + reach, side="right")
    return list(zip(first.tolist(), after.tolist(), strict=True))


def _thickness_above(thickness: Float[np.ndarray, "frame level"], darkness: float) -> Float[np.ndarray, " frame"]:
    """Between two levels by interpolation."""
    place = np.clip(darkness / (LEVELS[1] - LEVELS[0]), 0.0, len(LEVELS) - 1.001)
    level, part = int(place), place - int(place)
    return (1 - part) * thickness[:, level] + part * thickness[:, level + 1]
