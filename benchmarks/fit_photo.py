"""How long a fit takes, and where the time of the whole command goes.

    python benchmarks/fit_photo.py [--repeats 30] [--command]

In one process: medians over warm repeats of one 256-pixel fit (detection excluded) and of its parts, and the time of
each file that is written. With --command also the whole command in fresh processes, with an empty compilation cache and
then with a filled one. Compare as ratios within one run: machines are noisy.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import json  # noqa: E402

import morphable  # noqa: E402
from fitting import Fitter, coarse_to_fine, detect_faces, read_photo, save_results  # noqa: E402

PHOTO = Path(__file__).parents[1] / "fitting" / "examples" / "eileen_collins.jpg"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--command", action="store_true", help="time the whole command too, cold and warm")
    args = parser.parse_args()
    photo = read_photo(args.photo)
    detection, face = timed(lambda: detect_faces(photo)[0])
    again, _ = timed(lambda: detect_faces(photo)[0])
    loading, fitter = timed(lambda: Fitter(morphable.load()))
    first, fit = timed(lambda: fitter.fit(photo, face))
    whole = [timed(lambda: fitter.fit(photo, face))[0] for _ in range(args.repeats)]
    base = statistics.median(whole)
    print(f"detection {detection:.2f} s first, {again:.2f} s warm; model {loading:.2f} s; first fit {first:.2f} s")
    print(f"warm fit: median {base * 1e3:.0f} ms of {args.repeats}, quickest {min(whole) * 1e3:.0f} ms; of which")
    plan = coarse_to_fine()
    until = []
    for count in range(1, len(plan) + 1):
        until.append(statistics.median(timed(lambda: fitter.fit(photo, face, plan[:count]))[0] for _ in whole))  # noqa: B023
    prepare = statistics.median(fitter.fit(photo, face, plan[:1]).timings["prepare"] for _ in whole)
    shares = [prepare, until[0] - prepare, *(b - a for a, b in zip(until, until[1:], strict=False))]
    for name, seconds in zip(("crop and pyramid", *(stage.name for stage in plan)), shares, strict=True):
        print(f"  {name:18s} {seconds * 1e3:6.1f} ms, {100 * seconds / base:3.0f} %")
    with tempfile.TemporaryDirectory() as folder:
        for attempt in ("first", "warm"):
            writing, _ = timed(lambda: save_results(Path(folder) / "out", fit, photo))
            parts = json.loads((Path(folder) / "out" / "fit.json").read_text())["timings"]
            detail = ", ".join(f"{k} {v:.2f}" for k, v in parts.items() if k not in ("prepare", "solve"))
            print(f"writing, {attempt}: {writing:.2f} s ({detail})")
        if args.command:
            environment = {**os.environ, "FACEFIT_CACHE": str(Path(folder) / "cache")}
            command = [sys.executable, "-m", "fitting.cli", "fit", str(args.photo), "-o", str(Path(folder) / "result")]
            for attempt in ("empty cache", "filled cache", "filled cache"):
                run = lambda: subprocess.run(command, env=environment, check=True, capture_output=True)  # noqa: B023, E731
                print(f"whole command, {attempt}: {timed(run)[0]:.1f} s")


def timed(work):
    """Seconds, and the result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
