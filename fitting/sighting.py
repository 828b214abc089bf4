"""What a landmark network says about one face: hundreds of points, each with its own uncertainty, and where to
start."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from morphable.landmarks import SurfacePoints


class Square(NamedTuple):
    """A square of a photo, turned by `roll` (radians, clockwise as displayed)."""

    centre: Float[np.ndarray, "2"]  # px
    side: float  # px
    roll: float = 0.0

    def to_photo(self, places: Float[np.ndarray, "point 2"]) -> Float[np.ndarray, "point 2"]:
        """Pixels of the photo, of places in sides of the square from its middle."""
        return self.centre + self.side * places @ self.turn.T

    @property
    def turn(self) -> Float[np.ndarray, "2 2"]:
        """Directions of the photo from those of the square."""
        c, s = math.cos(self.roll), math.sin(self.roll)
        return np.array([[c, -s], [s, c]])


@dataclass(frozen=True, eq=False)
class Sighting:
    """What the network says about one face, in photo pixels."""

    surface: SurfacePoints  # which points of the head they are
    square: Square  # that it looked at last
    points: Float[np.ndarray, "point 2"]
    sigma: Float[np.ndarray, " point"]  # px, of either coordinate
    visible: Float[np.ndarray, " point"]  # probability
    rotation: Float[np.ndarray, "3 3"]  # camera from head, as seen along the ray to the square's middle
    origin: Float[np.ndarray, "2"]  # px, where the head's origin is seen
    px_per_mm: float
    expression: Float[np.ndarray, " unit"]
    identity: Float[np.ndarray, " identity"]

    @property
    def landmarks(self) -> Float[np.ndarray, "68 2"]:
        """iBUG-68, hidden ones, too."""
        return self.points[:68]

    @property
    def roll(self) -> float:
        """How far the head is turned in the picture, radians, clockwise as displayed."""
        return float(math.atan2(self.rotation[0, 1], -self.rotation[1, 1]))

    @property
    def doubt(self) -> float:
        """Median deviation of the 68 landmarks over the side of their box: small where there is a face."""
        low, high = self.landmarks.min(axis=0), self.landmarks.max(axis=0)
        return float(np.median(self.sigma[:68]) / max(float((high - low).max()), 1e-9))
