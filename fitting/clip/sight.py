"""Where a clip's landmarks come from: found in a whole frame, or placed where the head must be by now.

All that differs between dlib's detectors and the landmark network is here; what follows a clip knows neither.
"""

import dataclasses
import hashlib
import itertools
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from fitting.detection import (
    LANDMARK_NOISE,
    UNSURE_SPREAD,
    DlibProvider,
    Face,
    LandmarkProvider,
    hog_faces,
    landmarks_at,
    proposals,
)
from fitting.network_detection import NetworkProvider, around, as_face, look_steadily
from fitting.observation import Photo
from fitting.sighting import Sighting, Square
from fitting.weights_file import named_arrays

Row = dict[str, Any]  # of a frame, as `fitting.clip.tracking.Store` keeps it

# The box that dlib's HOG detector draws, seen from the head: around the projection of this point, this many mm wide.
# Fitted to 54 renderings with yaws to 40 degrees; its centre is then right to 3 % of the side.
_BOX_CENTRE_MM = np.array([-1.9, -26.5, 9.9])
_BOX_MM = 156.0
_LONG_SIDES = (1024, 2048)  # px at which dlib searches for faces: quickly, thoroughly


@dataclasses.dataclass(frozen=True, eq=False)
class Whereabouts:
    """Where a head must be by now."""

    rotation: Float[np.ndarray, "3 3"]  # camera from head
    place: Float[np.ndarray, "3"]  # of the head's origin in the camera's frame, mm
    landmarks: Float[np.ndarray, "68 2"]  # px of the frame
    focal_px: float


@runtime_checkable
class Sight(Protocol):
    """What a tracker has to ask of a source of landmarks."""

    @property
    def provider(self) -> LandmarkProvider:
        """What searches a frame with all there is, however long it takes."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """What must be the same for a track to go on."""
        ...

    def largest(self, photo: Photo, thorough: bool = False) -> Face | None:
        """The largest trusted face of a frame: fast enough for many frames, or for one a second if `thorough`."""
        ...

    def placed(self, photo: Photo, head: Whereabouts) -> Face | None:
        """The face where the head must be by now, without a search; None where too little of it is in the frame."""
        ...

    def kept(self, face: Face | None) -> Row:
        """A face as numbers of fixed shapes, NaN without one."""
        ...

    def recalled(self, row: Row, photo: Photo) -> Face:
        """The inverse of `kept`."""
        ...


def sight_of(provider: LandmarkProvider | None) -> Sight:
    """How a clip is seen through a provider; None for dlib. Raises ValueError for one that cannot follow a head."""
    if provider is None or isinstance(provider, DlibProvider):
        return DlibSight()
    if isinstance(provider, NetworkProvider):
        return NetworkSight(provider)
    raise ValueError(
        f"landmarks: got {type(provider).__name__}, expected a NetworkProvider, or None for dlib. "
        "Other sources serve photos only."
    )


def unsureness(face: Face) -> float:
    """Factor on the usual noise of a face's landmarks: 1 where they can be trusted."""
    return max(1.0, face.spread / UNSURE_SPREAD)


@dataclasses.dataclass(frozen=True)
class DlibSight:
    """HOG's boxes with dlib's 68 landmarks in them."""

    provider: DlibProvider = DlibProvider()

    def fingerprint(self) -> dict[str, str]:
        """Its name."""
        return {"source": "dlib"}

    def largest(self, photo: Photo, thorough: bool = False) -> Face | None:
        """By the HOG detector alone."""
        return _largest(hog_faces(photo, _LONG_SIDES[thorough]))

    def placed(self, photo: Photo, head: Whereabouts) -> Face | None:
        """In the box that HOG would draw around the head in this pose: no jumping box."""
        x, y, z = head.rotation @ _BOX_CENTRE_MM + head.place
        across = head.rotation[:, 0]
        roll = float(np.arctan2(across[1], across[0]))
        middle = np.array([photo.width / 2, photo.height / 2])
        square = Square(head.focal_px * np.array([x, y]) / z + middle, float(_BOX_MM * head.focal_px / z), roll)
        if not _shows(photo, square):
            return None
        face = landmarks_at(photo, square.centre, square.side, roll, "track")
        return None if face is None else _as_sure_as_it_is(face)

    def kept(self, face: Face | None) -> Row:
        """Landmarks and their spread."""
        return _kept_landmarks(face)

    def recalled(self, row: Row, photo: Photo) -> Face:
        """With the noise that the spread tells of."""
        face = Face.from_landmarks(np.asarray(row["landmarks"], float), photo, LANDMARK_NOISE["dlib"])
        return _as_sure_as_it_is(dataclasses.replace(face, spread=float(row["spread"])))


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkSight:
    """Boxes of dlib's detectors, the network's points in them; then squares from the frames before."""

    provider: NetworkProvider

    def fingerprint(self) -> dict[str, str]:
        """With a digest of the weights, wherever they came from."""
        digest = hashlib.sha256()
        for name, array in sorted(named_arrays(self.provider.network).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return {"source": "network", "weights": digest.hexdigest()}

    def largest(self, photo: Photo, thorough: bool = False) -> Face | None:
        """In boxes that dlib's HOG detector draws; thoroughly, in an enlarged frame and in squares all over it, too."""
        for _, regions in itertools.islice(proposals(photo), 2 if thorough else 1):
            face = _largest([face for face in (self.provider.within(photo, r) for r in regions) if face.sure])
            if face is not None:
                return face
        seen = self.provider.search(photo) if thorough else None
        return None if seen is None else as_face(photo, seen)

    def placed(self, photo: Photo, head: Whereabouts) -> Face | None:
        """In about the square around the landmarks."""
        roll = float(np.arctan2(head.rotation[0, 1], -head.rotation[1, 1]))  # as Sighting.roll
        square = around(head.landmarks, roll)
        if not _shows(photo, square):
            return None
        return as_face(photo, look_steadily(self.provider.network, photo, square, self.provider.mirror))

    def kept(self, face: Face | None) -> Row:
        """All of the sighting but what the network itself knows."""
        network = self.provider.network
        points = network.points
        shapes = {"points": (points, 2), "sigma": points, "visible": points, "rotation": (3, 3), "origin": 2}
        shapes |= {"px_per_mm": (), "expression": network.units, "identity": network.identity, "square": 4}
        row = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
        if face is not None and face.sighting is not None:
            seen = vars(face.sighting) | {"square": np.hstack(face.sighting.square)}
            row = {name: np.asarray(seen[name], np.float32) for name in row}
        return _kept_landmarks(face) | {f"seen_{name}": values for name, values in row.items()}

    def recalled(self, row: Row, photo: Photo) -> Face:
        """What the network saw, in single precision."""
        x, y, side, roll = (float(v) for v in row["seen_square"])
        names = ("points", "sigma", "visible", "rotation", "origin", "expression", "identity")
        seen = Sighting(
            surface=self.provider.network.surface,
            square=Square(np.array([x, y]), side, roll),
            px_per_mm=float(row["seen_px_per_mm"]),
            **{name: np.asarray(row[f"seen_{name}"], float) for name in names},
        )
        return as_face(photo, seen)


def _largest(faces: list[Face]) -> Face | None:
    return max(faces, key=lambda face: face.box[2] - face.box[0], default=None)


def _shows(photo: Photo, square: Square) -> bool:
    """Whether more than a tenth of the square lies in the frame."""
    low, high = square.centre - square.side / 2, square.centre + square.side / 2
    margin = 0.1 * square.side
    return not ((high < margin).any() or (low > np.array([photo.width, photo.height]) - margin).any())


def _kept_landmarks(face: Face | None) -> Row:
    if face is None:
        return {"landmarks": np.full((68, 2), np.nan), "spread": np.nan}
    return {"landmarks": np.asarray(face.landmarks, float), "spread": face.spread}


def _as_sure_as_it_is(face: Face) -> Face:
    """The face with the noise that the spread of its landmarks tells of: unsure ones are left to photo and motion."""
    usual, factor = LANDMARK_NOISE["dlib"], unsureness(face)
    noise = dataclasses.replace(usual, inner_mm=factor * usual.inner_mm, jaw_mm=factor * usual.jaw_mm)
    return dataclasses.replace(face, noise=noise)
