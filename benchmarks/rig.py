"""What a joint fit costs for each photo: `python -m benchmarks rig [--photos 8 32 128] [--repeats 5] [--json FILE]`.

One synthetic person in a few rendered photos, repeated with noise of their own on pixels and landmarks until there are
as many as asked for; the finest stage of the default plan, a fixed number of iterations. The time of an iteration is
that of linearising every photo once and of solving the arrowhead once (elimination, shared system, completion).

Times are process CPU time, all threads, so that other programs on the machine count little; sizes take turns in every
repeat, figures are medians over repeats, ratios are within a repeat. Memory is the growth of the process's peak.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import morphable
from fitting.arrowhead import JointSolution, Member, solve_together
from fitting.detection import Face
from fitting.fit import Fitter
from fitting.multi_image import together
from fitting.observation import Photo
from fitting.schedule import run_stage
from fitting.synthesis import SynthesisSettings, synthesize
from morphable.model import MorphableModel

_RENDERED = 4  # different photos; more would only take longer to render
_ITERATIONS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    fitter = Fitter(morphable.load())
    base = [_member(fitter, photo, face) for photo, face in rendered(fitter.model)]
    times: dict[int, list[dict[str, float]]] = {count: [] for count in sorted(options.photos)}
    peaks: dict[int, float] = {}
    _iterations(repeated(base, _RENDERED))  # compiles
    for repeat in range(options.repeats):
        for count in times:
            solution = _iterations(repeated(base, count))
            times[count].append(_per_photo(solution, count))
            if repeat == 0:
                peaks[count] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    flat = figures(times, peaks)
    print(f"on {jax.devices()[0]}")
    for name, value in flat.items():
        print(f"{name:40s} {value:10.4g}")
    if options.json:
        options.json.write_text(json.dumps(flat, indent=1) + "\n")


def rendered(model: MorphableModel) -> list[tuple[Photo, Face]]:
    """A person in a few photos of different pose, expression and light."""
    settings = SynthesisSettings(size=384, yaw=50.0, lens_mm=(60.0, 60.0))  # one lens, so that every head is inside
    photos: list[SyntheticPhoto] = []
    for seed in range(_RENDERED):
        photos.append(synthesize(model, seed, settings, photos[0].scene if photos else None))
    return [(p.photo, p.as_face(noise_px=1.0, seed=k)) for k, p in enumerate(photos)]


def _member(fitter: Fitter, photo: Photo, face: Face) -> Member:
    """A photo that its landmarks have been fitted to, with its outline."""
    problem, first, _ = fitter.problem(photo, face)
    start = run_stage(problem, first, together()[0]).face
    return Member(fitter.outlines.seen_in(problem, start), start, 0)


def repeated(base: list[Member], count: int) -> list[Member]:
    """So many photos with pixels and landmarks of their own."""
    rng, members = np.random.default_rng(count), []
    for index in range(count):
        member = base[index % len(base)]
        problem = member.problem
        pyramid = np.asarray(problem.pyramid)
        grain = rng.normal(scale=0.01, size=pyramid.shape[-3:]).astype(np.float32)
        moved = np.asarray(problem.points_px) + rng.normal(scale=1.0, size=problem.points_px.shape)
        problem = dataclasses.replace(
            problem,
            pyramid=jnp.asarray(np.clip(pyramid + grain, 0.0, 1.0)),
            valid=jnp.array(problem.valid),
            points_px=jnp.asarray(moved, jnp.float32),
        )
        members.append(dataclasses.replace(member, problem=problem, focal_group=index))
    return members


def _iterations(members: list[Member]) -> JointSolution:
    stage = dataclasses.replace(together()[-1], steps=_ITERATIONS, tolerance=0.0)
    return solve_together(members, stage, clock=time.process_time)


def _per_photo(solution: JointSolution, count: int) -> dict[str, float]:
    """CPU milliseconds of one iteration, for each photo."""
    linearise = solution.seconds["linearise"] / (solution.steps + 1)  # that of the start, and one for each step
    solve = solution.seconds["solve"] / solution.steps
    share = solve / (linearise + solve)
    return {"linearise": 1e3 * linearise / count, "solve": 1e3 * solve / count, "share": share}


def figures(times: dict[int, list[dict[str, float]]], peaks: dict[int, float]) -> dict[str, float]:
    """Medians by name."""
    flat: dict[str, float] = {}
    for count, rows in times.items():
        for part in ("linearise", "solve"):
            flat[f"rig_{part}_cpu_ms_per_photo_{count}"] = statistics.median(row[part] for row in rows)
        flat[f"rig_solve_share_{count}"] = statistics.median(row["share"] for row in rows)
    fewest, most = min(times), max(times)
    whole = {count: [row["linearise"] + row["solve"] for row in rows] for count, rows in times.items()}
    ratios = [many / few for many, few in zip(whole[most], whole[fewest], strict=True)]
    flat[f"rig_cost_per_photo_{most}_vs_{fewest}"] = statistics.median(ratios)
    if most > fewest:
        flat["rig_memory_mb_per_photo"] = (peaks[most] - peaks[fewest]) / (most - fewest)
        flat[f"rig_memory_mb_{most}"] = peaks[most]
    return flat


if __name__ == "__main__":
    main()
