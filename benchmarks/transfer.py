"""A face in another topology and back: how far the surface comes home, and what the other model can say of it.

    python benchmarks/transfer.py --model ../shared/models/ict/FaceXModel [--people 5]

Random people of the CC0 head, half of them smiling with open mouths, are transferred to another model and back.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphable  # noqa: E402
from morphable.registration import SurfaceSearch  # noqa: E402
from morphable.transfer import correspond, transfer  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--people", type=int, default=5)
    args = parser.parse_args()
    head = morphable.load()
    began = time.monotonic()
    other = morphable.load(args.model)
    print(f"{other.provenance.name} loaded in {time.monotonic() - began:.1f} s")
    there, back = correspond(head, other), correspond(other, head)
    face = np.asarray(head.masks["face"]) > 0.5
    smile = head.weights(jawOpen=0.4, mouthSmileLeft=0.6, mouthSmileRight=0.6)
    rows = []
    for k, key in enumerate(jax.random.split(jax.random.key(0), args.people)):
        identity = jax.random.normal(key, (head.shape.rank,))
        neutral = np.asarray(head.neutral(identity), float)
        vertices = np.asarray(head.vertices(identity, smile), float) if k % 2 else neutral
        moved = transfer(there, vertices, neutral)
        home = transfer(back, moved.vertices, moved.neutral_vertices)
        distance = SurfaceSearch(vertices, np.asarray(head.triangles)).closest(home.vertices).distance
        say = dict(zip(other.expression_names, moved.expression.round(2).tolist(), strict=True))
        rows.append([np.median(distance[face]), np.quantile(distance[face], 0.95), np.median(distance)])
        rows[-1] += [np.median(moved.surface_error), np.median(moved.model_error), np.median(home.model_error)]
        print(
            f"person {k}: there and back, face {rows[-1][0]:.3f} mm (95 %: {rows[-1][1]:.2f}), all {rows[-1][2]:.3f}; "
            f"there {rows[-1][3]:.3f}, its coefficients {rows[-1][4]:.2f}; back, coefficients {rows[-1][5]:.2f}; "
            + ", ".join(f"{n} {say[n]}" for n in ("jawOpen", "mouthSmileLeft", "happiness") if n in say),
            flush=True,
        )
    mean = np.mean(rows, axis=0)
    print(f"all: face {mean[0]:.3f} mm ({mean[1]:.2f}), all {mean[2]:.3f}; coefficients {mean[4]:.2f}, {mean[5]:.2f}")


if __name__ == "__main__":
    main()
