"""Where another published head's landmark vertices lie on ours: measures the table of fitting/landmark_conventions.py.

    python benchmarks/landmark_conventions.py --shared ../shared

The model is registered to the mean head of ICT-FaceKit Light (MIT); its annotated vertices are carried over, compared
with the registered model's own landmarks, and made symmetric. Millimetres along the head's axes.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphable  # noqa: E402
from benchmarks.registration import load_scorer, register  # noqa: E402
from morphable.landmarks import INNER, JAW, MIRROR_68  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    args = parser.parse_args()
    scorer, model = load_scorer(args.shared), morphable.load()
    folder = args.shared / "models" / "ict" / "FaceXModel"
    vertices, triangles = scorer.load_mesh(str(folder / "generic_neutral_mesh.obj"))
    vertices = 10 * vertices  # cm
    marks = np.array(json.loads((folder / "vertex_indices.json").read_text())["idx_to_landmark_verts"])
    with np.load(args.shared / "data" / "ict_dev" / "s40" / "gt.npz") as topology:  # which vertices are the face
        masks = {name: topology[name] for name in ("face_mask", "face_mask_narrow")}
    found = register(model, {"verts": vertices, "tris": triangles, "lmk_idx": marks, **masks}, scorer, 100)
    head = np.asarray(model.mean, float) + np.asarray(model.shape.modes, float) @ found.coefficients
    own = np.asarray(model.landmarks(head.astype(np.float32)), float)
    published = (vertices[marks] - found.offset) @ found.rotation / found.scale
    offset = published - own
    offset = (offset + offset[MIRROR_68] * [-1, 1, 1]) / 2
    for i in range(INNER.start, 68):
        if i <= MIRROR_68[i]:
            print(f"    {i}: ({', '.join(f'{x:.1f}' for x in offset[i] + 0.0)}),")
    line = np.gradient(own[JAW, :2], axis=0)
    line /= np.linalg.norm(line, axis=1, keepdims=True)
    along = np.sum(offset[JAW, :2] * line, axis=1)
    across = offset[JAW, 1] * line[:, 0] - offset[JAW, 0] * line[:, 1]
    rms = lambda x: np.sqrt(np.mean(x**2))  # noqa: E731
    print(f"jaw in the frontal plane: rms {rms(across):.1f} mm across its line, {rms(along):.1f} mm along it")


if __name__ == "__main__":
    main()
