"""Landmarks from MediaPipe's face landmarker, by the user's own model file (an extra: `pip install mediapipe`)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fitting.detection import LANDMARK_NOISE, Box, DetectorError, Face
from fitting.mediapipe_tasks import run_task
from fitting.observation import Photo
from morphable.landmarks import MEDIAPIPE_OF_IBUG

_FACES = 20  # most that are looked for
_MARGIN = 0.5  # of a given box's size, on each side of what is looked at


@dataclass(frozen=True)
class MediaPipeProvider:
    """MediaPipe's face landmarker (Tasks): of its 478 points the 68 that are nearest to iBUG's."""

    task_file: Path  # the user's own copy of face_landmarker.task

    def faces(self, photo: Photo, box: Box | None, all_faces: bool) -> list[Face]:
        """The faces of the photo; the largest near the middle of `box` if it is given."""
        if box is None:
            return self._found(photo, _FACES if all_faces else 4)
        x0, y0, x1, y1 = box
        wide, high = _MARGIN * (x1 - x0), _MARGIN * (y1 - y0)
        left, top = max(0, int(x0 - wide)), max(0, int(y0 - high))
        part = Photo(photo.pixels[top : int(y1 + high) + 1, left : int(x1 + wide) + 1])
        found = []
        for face in self._found(part, 4):
            moved = replace(face, box=box, landmarks=face.landmarks + [left, top])
            middle = np.nanmean(moved.landmarks, axis=0)
            if x0 <= middle[0] <= x1 and y0 <= middle[1] <= y1:
                found.append((float(np.ptp(moved.landmarks[:, 0])), moved))
        return [max(found, key=lambda entry: entry[0])[1]] if found else []

    def _found(self, photo: Photo, most: int) -> list[Face]:
        def found(tasks, base, image):
            options = tasks.vision.FaceLandmarkerOptions(base_options=base, num_faces=most)
            with tasks.vision.FaceLandmarker.create_from_options(options) as landmarker:
                return landmarker.detect(image).face_landmarks

        answers = run_task(
            photo,
            self.task_file,
            "MediaPipe's face_landmarker.task",
            found,
            DetectorError,
            "use '--landmarks network'",
        )
        return [_face(photo, answer) for answer in answers]


def _face(photo: Photo, answer: Any) -> Face:
    points = np.array([(p.x * photo.width, p.y * photo.height) for p in answer], float)
    if len(points) <= MEDIAPIPE_OF_IBUG.max():
        raise DetectorError(
            f"MediaPipe: got {len(points)} points of a face, expected 478, of which 68 are iBUG's. Use "
            "face_landmarker.task."
        )
    points = points[MEDIAPIPE_OF_IBUG]
    low, high = points.min(axis=0), points.max(axis=0)
    inside = np.all((points >= 0) & (points <= [photo.width, photo.height]), axis=1)
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    points = np.where(inside[:, None], points, np.nan)
    return Face(box, points, "mediapipe", 1.0, LANDMARK_NOISE["mediapipe"], truncated=not inside.all())
