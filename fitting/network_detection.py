"""Dense landmarks of a photo's faces by the landmark network: cut out, look, cut out again where the landmarks lie."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image
from scipy.spatial.transform import Rotation

from fitting.compilation import compiled
from fitting.dense_landmarks import dense_landmarks
from fitting.detection import LANDMARK_NOISE, UNSURE_SPREAD, Box, Face, Region, overlap, proposals
from fitting.landmark_checkpoint import load_network
from fitting.landmark_mirror import Mirror, mirror_of, reflected
from fitting.landmark_network import LandmarkNetwork, Prediction
from fitting.observation import Photo
from fitting.portraits.portrait import CROP_FACTOR
from fitting.sighting import Sighting, Square
from morphable.model import MorphableModel


def around(points: Float[np.ndarray, "point 2"], roll: float = 0.0) -> Square:
    """The square in which the network wants to see a face whose 68 landmarks are these (NaN rows do not count)."""
    turn = Square(np.zeros(2), 1.0, roll).turn
    seen = points[np.isfinite(points).all(axis=1)] @ turn
    low, high = seen.min(axis=0), seen.max(axis=0)
    return Square(turn @ ((low + high) / 2), float(CROP_FACTOR * (high - low).max()), roll)


def cut_out(photo: Photo, square: Square, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The square as a picture of `size` pixels, smoothed where it is made smaller; black beyond the photo."""
    # An upright part of the photo that holds the square, brought to its resolution; then the square in it.
    reach = square.side * (abs(math.cos(square.roll)) + abs(math.sin(square.roll))) / 2 + 2
    left, top = np.floor(square.centre - reach).astype(int)
    right, bottom = np.ceil(square.centre + reach).astype(int)
    inside = photo.pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if inside.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    scale = min(1.0, size / square.side)
    small = Image.fromarray(inside)
    if scale < 1:
        shape = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        small = small.resize(shape, Image.Resampling.BOX, reducing_gap=None)
    per = np.array([small.width / inside.shape[1], small.height / inside.shape[0]])
    corner = np.array([max(left, 0), max(top, 0)])
    step = square.turn * (square.side / size)  # photo pixels for each pixel of the crop
    first = square.centre - step @ np.full(2, size / 2)
    matrix = per[:, None] * step
    offset = per * (first - corner)
    data = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    return np.asarray(small.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))


@compiled
def _look(network: LandmarkNetwork, pixels: UInt8[Array, "size size 3"], mirror: Mirror | None) -> Prediction:
    said = network((pixels if mirror is None else pixels[:, ::-1]).astype(jnp.float32) / 255.0)
    said = said if mirror is None else reflected(said, mirror)
    return eqx.tree_at(lambda p: p.visible, said, jax.nn.sigmoid(said.visible))


def look(network: LandmarkNetwork, photo: Photo, square: Square, mirror: Mirror | None = None) -> Sighting:
    """What the network sees in a square of a photo, or in its mirror image."""
    said = jax.device_get(_look(network, cut_out(photo, square, network.size), mirror))
    turn = np.eye(3)
    turn[:2, :2] = square.turn
    return Sighting(
        surface=network.surface,
        square=square,
        points=square.to_photo(np.asarray(said.landmarks, float)),
        sigma=square.side * np.exp(np.asarray(said.log_sigma, float)),
        visible=np.asarray(said.visible, float),
        rotation=turn @ np.asarray(said.rotation, float),
        origin=square.to_photo(np.asarray(said.placement[None, :2], float))[0],
        px_per_mm=float(square.side * np.exp(said.placement[2]) / 100.0),
        expression=np.asarray(said.expression, float),
        identity=np.asarray(said.identity, float),
    )


def locate(network: LandmarkNetwork, photo: Photo, square: Square, refinements: int = 2) -> Sighting:
    """A face's landmarks from a square that roughly holds it: looked at again where the landmarks lie, upright."""
    seen = look(network, photo, square)
    for _ in range(refinements):
        seen = look(network, photo, around(seen.landmarks, seen.roll))
    return seen


# Moves of a square (in its sides) and factors on its side. On renderings whose squares jump by 1 % of their side from
# frame to frame, one look's landmarks jitter by 1.3 px and 2.4 px, the mean of these by 0.9 px and 1.3 px, of nine
# moves without factors by 0.9 px and 1.1 px.
_MOVES = ((0.0, 0.0, 1.0), (0.04, 0.04, 1.0), (-0.04, 0.04, 0.96), (0.04, -0.04, 1.04), (-0.04, -0.04, 1.0))


def look_steadily(network: LandmarkNetwork, photo: Photo, square: Square, mirror: Mirror) -> Sighting:
    """What the network sees in about this square: the mean of a few looks, which depends less on where it lies.

    Each is taken both ways, so that left and right are alike. The mean is nearer to the truth than one look:
    docs/landmark_network.md.
    """
    moved = [Square(square.centre + square.side * np.array([x, y]), f * square.side, square.roll) for x, y, f in _MOVES]
    looks = [look(network, photo, s, way) for s in moved for way in (None, mirror)]
    names = ("points", "sigma", "visible", "origin", "px_per_mm", "expression", "identity")
    mean = {name: np.mean([getattr(seen, name) for seen in looks], axis=0) for name in names}
    rotation = Rotation.from_matrix([seen.rotation for seen in looks]).mean().as_matrix()
    return replace(looks[0], **mean, rotation=rotation)


# ----------------------------------------------------------------------------------------------------- provider

_FIRST_SIDE = 1.25  # of the square over a given box's side: boxes end at brows and chin, or a little further
# What is tried where a box does not fit, one after the other: factors on its side, and turns, as of photos that lie.
_TRIES = ((1.0, 0.0), (1.45, 0.0), (0.7, 0.0), (1.0, 0.5 * math.pi), (1.0, -0.5 * math.pi), (1.0, math.pi))
_DOUBTFUL = 0.03  # of a sighting: with more there is no face, or it is somewhere else
_STEADY = 0.018  # with less the first square was good
_SEARCH_SHARES = (1.0, 0.7, 0.45, 0.3)  # of the photo's shorter side, that squares of a search have


@dataclass(frozen=True, eq=False)
class NetworkProvider:
    """Faces found by dlib's detectors, or in a given box, and seen by the landmark network."""

    network: LandmarkNetwork
    mirror: Mirror

    @staticmethod
    def of(model: MorphableModel, weights: str | Path | None = None) -> "NetworkProvider":
        """The network that ships with facefit, or one of a file's weights. Raises CheckpointError as `load_network`."""
        network, twins = load_network(weights, model), dense_landmarks(model).mirror
        return NetworkProvider(network, mirror_of(model, twins))

    def faces(self, photo: Photo, box: Box | None, all_faces: bool) -> list[Face]:
        """The faces of the photo; the one in `box` if it is given."""
        if box is not None:
            x0, y0, x1, y1 = box
            square = Square(np.array([(x0 + x1) / 2, (y0 + y1) / 2]), _FIRST_SIDE * max(x1 - x0, y1 - y0))
            return [replace(as_face(photo, self.best(photo, square)), box=box)]
        found: list[Face] = []
        for _, regions in proposals(photo):
            for region in regions:
                if any(overlap(region.box, face.box) > 0.3 for face in found):
                    continue
                face = self.within(photo, region)
                if not any(overlap(face.box, other.box) > 0.5 for other in found):
                    found.append(face)
            if not all_faces and any(face.sure for face in found):
                return found
        if not any(face.sure for face in found):
            seen = self.search(photo)
            if seen is not None:
                found.append(as_face(photo, seen))
        return found

    def within(self, photo: Photo, region: Region) -> Face:
        """The face that a detector has seen in a region."""
        return as_face(photo, self.best(photo, Square(region.centre, CROP_FACTOR * region.side, region.roll)))

    def search(self, photo: Photo) -> Sighting | None:
        """The surest sighting in squares all over the photo, for faces that detectors do not know, such as profiles."""
        best: Sighting | None = None
        for share in _SEARCH_SHARES:
            side = share * min(photo.width, photo.height)
            columns, rows = (max(1, math.ceil(2.5 * (n - side) / side) + 1) for n in (photo.width, photo.height))
            for x in np.linspace(side / 2, photo.width - side / 2, columns):
                for y in np.linspace(side / 2, photo.height - side / 2, rows):
                    seen = look(self.network, photo, Square(np.array([x, y]), side))
                    if best is None or seen.doubt < best.doubt:
                        best = seen
        if best is None:
            return None
        best = self.steadily(photo, locate(self.network, photo, around(best.landmarks, best.roll)))
        return best if best.doubt < _DOUBTFUL else None

    def best(self, photo: Photo, square: Square) -> Sighting:
        """The surest sighting of a face in about this square, tried larger, smaller and turned where it is unsure."""
        best: Sighting | None = None
        for scale, roll in _TRIES:
            tried = square._replace(side=scale * square.side, roll=square.roll + roll)
            seen = locate(self.network, photo, tried)
            if best is None or seen.doubt < best.doubt:
                best = seen
            if best.doubt < _STEADY:
                break
        assert best is not None  # there are tries
        return self.steadily(photo, best)

    def steadily(self, photo: Photo, seen: Sighting) -> Sighting:
        """A face that has been found, looked at a few times."""
        return look_steadily(self.network, photo, around(seen.landmarks, seen.roll), self.mirror)


def as_face(photo: Photo, seen: Sighting) -> Face:
    """A sighting as a face of the photo."""
    low, high = seen.landmarks.min(axis=0), seen.landmarks.max(axis=0)
    middle, side = (low + high) / 2, float((high - low).max())
    x, y = (float(v) for v in middle)
    inside = np.all((seen.landmarks >= 0) & (seen.landmarks <= [photo.width, photo.height]), axis=1)
    return Face(
        box=(x - side / 2, y - side / 2, x + side / 2, y + side / 2),
        landmarks=seen.landmarks,
        source="network",
        score=-seen.doubt,
        noise=LANDMARK_NOISE["network"],
        truncated=not inside.all(),
        # On the scale on which detectors are trusted up to UNSURE_SPREAD.
        spread=UNSURE_SPREAD * seen.doubt / _DOUBTFUL,
        sighting=seen,
    )
