"""The bundled photo, the face found in it and its fit, once for the whole run."""

import pytest

from fitting.detection import Face, detect_faces
from fitting.fit import Fit, Fitter
from fitting.observation import Photo, read_photo


@pytest.fixture(scope="session")
def photo(collins) -> Photo:
    return read_photo(collins)


@pytest.fixture(scope="session")
def face(photo) -> Face:
    return detect_faces(photo)[0]


@pytest.fixture(scope="session")
def fitter(head) -> Fitter:
    return Fitter(head)


@pytest.fixture(scope="session")
def fitted(fitter, photo, face) -> Fit:
    """The bundled photo by the default plan."""
    return fitter.fit(photo, face)
