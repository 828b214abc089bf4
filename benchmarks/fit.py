"""What fitting costs, and what the solvers reach: `python -m benchmarks fit [--repeats 30] [--json FILE]`.

Four questions, each answered by ratios within this run: how far the normal equations are from the bare matrix product
that they contain, and from forward differentiation; how long a fit takes, and its parts; how long the first fit of a
new process takes, with an empty compilation cache and a filled one; how Levenberg-Marquardt compares with Adam, whose
rate and schedule are searched on this very problem. Times of pieces are medians of process CPU time; those of fits are
wall time, as a user waits for it. `baseline_fit.json` beside this file is a run to compare with.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from threadpoolctl import threadpool_limits

import morphable
from fitting.detection import detect_faces
from fitting.energies import PhotometricTerm
from fitting.export import save_results
from fitting.fit import Fitter
from fitting.observation import read_photo
from fitting.parameters import FaceParameters, retract, start_parameters
from fitting.photometric import SkinPoints
from fitting.schedule import coarse_to_fine, run_stage, stage_terms
from fitting.solvers import FirstOrder, LevenbergMarquardt, solve
from fitting.surface_samples import BLOCK, SkinSamples
from fitting.terms import energies

BASELINE = Path(__file__).with_name("baseline_fit.json")
PHOTO = Path(__file__).parents[1] / "fitting" / "examples" / "eileen_collins.jpg"
IDENTITY, UNITS, ALBEDO, BLOCKS = 105, 52, 50, 10  # with light, pose, focal and offset 244 unknowns; 5120 samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["equations", "time", "first", "adam"])
    options = parser.parse_args()
    flat: dict[str, float] = {}
    parts: dict[str, Callable] = {
        "equations": normal_equations,
        "time": warm_fit,
        "first": first_fit,
        "adam": levenberg_marquardt_and_adam,
    }
    for name, measure in parts.items():
        if options.only in (None, name):
            flat |= measure(options)
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    print(f"{'on ' + str(jax.devices()[0]):40s} {'now':>10s} {'baseline':>10s}")
    for name, value in flat.items():
        print(f"{name:40s} {value:10.4g} {baseline.get(name, float('nan')):10.4g}")
    if options.json:
        options.json.write_text(json.dumps(flat, indent=1) + "\n")


def timed(work: Callable) -> tuple[float, float, object]:
    """CPU seconds, wall seconds, result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = jax.block_until_ready(work())
    return time.process_time() - cpu, time.perf_counter() - wall, result


# -------------------------------------------------------------------------------------------------- normal equations


def random_problem() -> tuple[PhotometricTerm, FaceParameters]:
    """Numbers of realistic sizes: what they are does not matter for the time."""
    rng = np.random.default_rng(0)
    draw = lambda scale, *shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)  # noqa: E731
    coefficients = IDENTITY + UNITS
    position = jnp.asarray(rng.uniform(-70, 70, (BLOCKS, 3, BLOCK)), jnp.float32)
    tangents = jnp.tile(jnp.eye(3, dtype=jnp.float32)[:2].reshape(1, 6, 1), (BLOCKS, 1, BLOCK))
    skin = SkinSamples(
        jnp.concatenate([position, tangents + draw(0.1, BLOCKS, 6, BLOCK)], axis=1),
        draw(0.3, BLOCKS, 9, coefficients, BLOCK).at[:, 3:].multiply(0.03),
        jnp.full((BLOCKS, 3, BLOCK), 0.6),
        draw(0.02, BLOCKS, 3, ALBEDO, BLOCK),
    )
    image = jnp.asarray(rng.uniform(0.2, 0.8, (1, 256, 256, 3)), jnp.float32)
    term = PhotometricTerm(
        skin,
        image,
        jnp.ones((BLOCKS, BLOCK)),
        jnp.int32(0),
        jnp.int32(BLOCKS),
        jnp.array(0.4),
        jnp.array(0.1),
        jnp.array([128.0, 128.0]),
    )
    return term, start_parameters(IDENTITY, UNITS, ALBEDO)


def normal_equations(options) -> dict[str, float]:
    """Our two-stage assembly against JᵀJ of a given J of the same size, and against forward differentiation."""
    term, face = random_problem()
    size = face.layout.size
    rows = 3 * BLOCK * BLOCKS
    jacobian = jnp.asarray(np.random.default_rng(1).normal(size=(size, rows)), jnp.float32)
    product = jax.jit(lambda j: jax.lax.dot_general(j, j, (((1,), (1,)), ((), ()))))
    ours = eqx.filter_jit(lambda t, f: t.linearise(f))

    @eqx.filter_jit
    def forward(term, face):
        weight = jnp.sqrt(term.inlier_weights(face) * 2000 / (BLOCKS * BLOCK) / term.sigma**2).reshape(-1)
        skin = term.skin
        # All samples at once, as one would write it: (block, ..., point) to (..., block and point).
        at_once = [
            jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)
            for x in (skin.geometry, skin.geometry_modes, skin.albedo, skin.albedo_modes)
        ]

        def residuals(step):
            return SkinPoints(retract(face, step), term.centre, term.pyramid[0], *at_once).residual * weight

        j = jax.jacfwd(residuals)(jnp.zeros(size)).reshape(-1, size)
        return j.T @ j

    works = {"gemm": lambda: product(jacobian), "ours": lambda: ours(term, face)}
    times = {name: [] for name in works}
    for _ in range(max(options.repeats, 3) + 1):
        for name, work in works.items():
            times[name].append(timed(work)[0])
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    reference = timed(lambda: forward(term, face))[2]
    jacfwd = min(timed(lambda: forward(term, face))[0] for _ in range(3))
    found = np.asarray(ours(term, face).hessian)
    return {
        "normal_equations_unknowns": size,
        "normal_equations_cpu_ms": 1e3 * median["ours"],
        "normal_equations_vs_gemm_cpu": median["ours"] / median["gemm"],
        "normal_equations_vs_jacfwd_cpu": jacfwd / median["ours"],
        "normal_equations_error": float(np.linalg.norm(found - reference) / np.linalg.norm(reference)),
    }


# ----------------------------------------------------------------------------------------------------- time of a fit


def warm_fit(options) -> dict[str, float]:
    """Medians over repeats of one 256-pixel fit, detection excluded; its stages; what writing the results costs."""
    photo = read_photo(options.photo)
    face = detect_faces(photo)[0]
    fitter = Fitter(morphable.load())
    plan = coarse_to_fine()
    fit = fitter.fit(photo, face)
    work = {"whole": lambda: fitter.fit(photo, face)}
    work |= {stage.name: lambda n=n: fitter.fit(photo, face, plan[: n + 1]) for n, stage in enumerate(plan)}
    wall = {name: [] for name in work}
    cpu, prepare = [], []
    for _ in range(options.repeats):
        for name, run in work.items():
            used, passed, result = timed(run)
            wall[name].append(passed)
            if name == "whole":
                cpu.append(used)
                prepare.append(result.timings["prepare"])
    until = [statistics.median(prepare), *(statistics.median(wall[stage.name]) for stage in plan)]
    figures = {
        "fit_256_warm_wall_ms": 1e3 * statistics.median(wall["whole"]),
        "fit_256_quickest_wall_ms": 1e3 * min(wall["whole"]),
        "fit_256_warm_cpu_ms": 1e3 * statistics.median(cpu),
        "fit_prepare_wall_ms": 1e3 * until[0],
    }
    for stage, before, after in zip(plan, until, until[1:], strict=False):
        figures[f"fit_{stage.name.replace(', ', '_').replace(' ', '_')}_wall_ms"] = 1e3 * (after - before)
    with tempfile.TemporaryDirectory() as folder:
        figures["writing_first_s"] = timed(lambda: save_results(Path(folder) / "out", fit, photo))[1]
        figures["writing_warm_s"] = timed(lambda: save_results(Path(folder) / "out", fit, photo))[1]
    return figures


# Prints the process time of one fit, from before the packages are imported.
_FIRST = """
import json, sys, time
began, cpu = time.perf_counter(), time.process_time()
import numpy as np
import morphable
from fitting.detection import Face
from fitting.fit import Fitter
from fitting.observation import read_photo
photo = read_photo(sys.argv[1])
face = Face.from_landmarks(np.load(sys.argv[2]), photo)
fitter = Fitter(morphable.load())
ready, ready_cpu = time.perf_counter(), time.process_time()
fitter.fit(photo, face)
print(json.dumps([time.process_time() - ready_cpu, time.perf_counter() - ready, time.process_time() - cpu]))
"""


def first_fit(options) -> dict[str, float]:
    """The first fit in a new process: CPU time of the fit itself, and with imports and loading the model."""
    photo = read_photo(options.photo)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        points = Path(folder) / "points.npy"
        np.save(points, detect_faces(photo)[0].landmarks)
        environment = {**os.environ, "FACEFIT_CACHE": str(Path(folder) / "cache")}
        command = [sys.executable, "-c", _FIRST, str(options.photo), str(points)]
        runs = [
            json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
            for _ in range(4)
        ]
    cached = [statistics.median(column) for column in zip(*runs[1:], strict=True)]
    for name, (cpu, wall, whole) in (("cold", runs[0]), ("cached", cached)):
        figures[f"fit_first_{name}_cpu_s"] = cpu
        figures[f"fit_first_{name}_wall_s"] = wall
        figures[f"process_{name}_cpu_s"] = whole
    return figures


# ------------------------------------------------------------------------------------- Levenberg-Marquardt and Adam


def levenberg_marquardt_and_adam(options) -> dict[str, float]:
    """Both from the landmark solution, on the terms of the finest stage; Adam's best of all rates and schedules.

    The level to reach is a thousandth above the lowest energy of any Adam; each solver's time is that to its first row
    below it. Energies are rows of the solvers' histories; a step's time is that of a whole run over its steps.
    """
    photo = read_photo(options.photo)
    fitter = Fitter(morphable.load())
    problem, face, _ = fitter.problem(photo, detect_faces(photo)[0])
    *before, fine = coarse_to_fine()
    with threadpool_limits(1, user_api="blas"):
        for stage in before:
            if not stage.photometric:
                face = run_stage(problem, face, stage).face
        row = fine.row(problem)
        terms, face = stage_terms(problem, face, eqx.tree_at(lambda r: r.relight, row, jnp.int32(1)))
        # Adam shall not visit samples that weigh nothing.
        used = int(row.blocks)
        trim = lambda t: jax.tree.map(lambda x: x[:used], t)  # noqa: E731
        inner = lambda t: (t["photometric"].term.skin, t["photometric"].term.weight)  # noqa: E731
        terms = eqx.tree_at(inner, terms, tuple(trim(x) for x in inner(terms)))

        rates, steps = (0.01, 0.02, 0.05, 0.1, 0.2), 400
        schedules = {
            "constant": lambda rate: rate,
            "cosine": lambda rate: optax.cosine_decay_schedule(rate, steps),
            "exponential": lambda rate: optax.exponential_decay(rate, steps, 0.01),
        }
        adam = {}
        for rate in rates:
            for name, schedule in schedules.items():
                solver = FirstOrder(optax.adam(schedule(rate)), steps=steps, tolerance=-np.inf)
                solve(terms, face, row.free, solver)
                cpu, _, solution = timed(lambda s=solver: solve(terms, face, row.free, s))
                adam[f"{name} {rate:g}"] = cpu / steps, solution
        ours = LevenbergMarquardt(steps=40, tolerance=1e-6)
        solve(terms, face, row.free, ours)
        lm_cpu, _, lm = timed(lambda: solve(terms, face, row.free, ours))
    total = lambda solution: np.asarray(solution.history).sum(axis=1)  # noqa: E731
    lowest = {name: float(total(solution).min()) for name, (_, solution) in adam.items()}
    level = min(lowest.values()) * 1.001

    def reached(solution) -> float:
        below = np.flatnonzero(total(solution) <= level)
        return float(np.asarray(solution.history_steps)[below[0]]) if len(below) else np.inf

    step_cpu = statistics.median(cpu for cpu, _ in adam.values())
    needed = {name: reached(solution) for name, (_, solution) in adam.items()}
    best = min(needed, key=lambda name: needed[name])
    # A step's linearisation is that of the next row: row k needs k + 1 of them.
    lm_steps = reached(lm)
    per_step = lm_cpu / (int(lm.steps) + 1)
    start = float(jnp.sum(energies(terms, face)))
    print(f"from energy {start:.2f}; lowest of each Adam: " + ", ".join(f"{n} {e:.3f}" for n, e in lowest.items()))
    print(
        f"level {level:.3f}: Adam, {best}, after {needed[best]:.0f} steps of {1e3 * step_cpu:.1f} ms; Levenberg-"
        f"Marquardt after {lm_steps:.0f} of {1e3 * per_step:.1f} ms; it ends at {total(lm)[-1]:.3f} after {lm.steps}"
    )
    return {
        "lm_vs_adam_cpu": (lm_steps + 1) * per_step / (needed[best] * step_cpu),
        "lm_vs_adam_energy": float(total(lm)[-1]) / min(lowest.values()),
        "lm_steps": float(lm.steps),
        "adam_steps": needed[best],
    }


if __name__ == "__main__":
    main()
