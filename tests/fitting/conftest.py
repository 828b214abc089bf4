"""The bundled photo and the face found in it, once for the whole run."""

import pytest

from fitting.detection import Face, detect_faces
from fitting.observation import Photo, read_photo


@pytest.fixture(scope="session")
def photo(collins) -> Photo:
    return read_photo(collins)


@pytest.fixture(scope="session")
def face(photo) -> Face:
    return detect_faces(photo)[0]
