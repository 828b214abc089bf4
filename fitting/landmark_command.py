"""`facefit train-landmarks`: portraits are rendered, the network is trained on them, progress is written as it goes."""

import dataclasses
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fitting.command import SUCCESS, UsageError, stage

_HELD_OUT = 1_000_000_007  # added to the seed: portraits that no training sees
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def train_landmarks(
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    model: Path | None = None,
    steps: int = 20_000,
    batch: int = 32,
    learning_rate: float = 1e-3,
    loss: Literal["vdc", "wpdc", "fwpdc", "owpdc", "pdc", "whitened_pdc", "joint", "none"] = "vdc",
    parameter_weight: float = 1.0,
    regression: float = 0.0,
    reuse: float = 3.0,
    pool: int = 32_768,
    widths: tuple[int, ...] = (32, 64, 128, 192),
    depths: tuple[int, ...] = (1, 2, 2, 1),
    backgrounds: Path | None = None,
    real: Path | None = None,
    start_from: Path | None = None,
    bfloat16: bool = False,
    seed: int = 0,
    workers: int | None = None,
    held_out: int = 1024,
    every: int = 500,
) -> int:
    """Train the network of `--landmarks network`. The same command goes on where it was stopped.

    OUT receives checkpoint.safetensors, weights.safetensors (for `--landmark-weights`), log.jsonl, curves.png, sheets/
    and, on a CPU, portraits/: what processes have rendered ahead. Used ones are removed.

    Args:
        out: Folder for everything; made if missing.
        model: A model file. Default: the head that ships with facefit.
        steps: Steps of training, altogether.
        batch: Portraits in a step.
        learning_rate: Of AdamW, at its highest.
        loss: Of pose and coefficients together, one of 3DDFA's, none, or joint: for ten steps at a time the better one
            of fwpdc and vdc, at three times the cost.
        parameter_weight: How much that loss counts.
        regression: Weight of 3DDFA_V2's landmark-regression regularisation; 0 for none.
        reuse: Times that each portrait is used, mirrored, turned and tinted otherwise.
        pool: Portraits that a batch is drawn from, the latest ones.
        widths: Channels of the network at a quarter of the crop's size, an eighth, and so on.
        depths: Residual blocks at each of these sizes.
        backgrounds: A folder of pictures, parts of which stand behind half of the portraits. Default: invented ones.
        real: A folder of photos, each beside its 68 points (NAME.pts): their error is reported, nothing is learnt.
        start_from: Weights to begin with, of an earlier training, as far as they fit. Default: random ones.
        bfloat16: Compute maps in half precision, as GPUs and TPUs do fast; a CPU does it slowly.
        seed: Of the portraits, the first weights and the order.
        workers: Processes that render ahead; 0 renders on the training device. Default: 0 on GPUs and TPUs, else one
            for every core but one.
        held_out: Portraits that are tested on and never learnt from: a multiple of 256.
        every: Steps between reports.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for name, value, least in (
        ("--steps", steps, 1), ("--batch", batch, 1), ("--every", every, 1), ("--pool", pool, 1), ("--reuse", reuse, 1),
        ("--held-out", held_out, 256),
    ):  # fmt: skip
        if value < least:
            raise UsageError(f"{name}: got {value}, expected at least {least}.")
    if len(widths) != len(depths):
        raise UsageError(f"--depths: got {len(depths)} numbers for {len(widths)} widths, expected as many.")
    out.mkdir(parents=True, exist_ok=True)

    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from PIL import Image

    import morphable
    from fitting.compilation import enable_cache
    from fitting.dense_landmarks import dense_landmarks
    from fitting.landmark_checkpoint import begun_from, load_checkpoint, save_checkpoint, save_network
    from fitting.landmark_losses import LandmarkLossWeights
    from fitting.landmark_network import LandmarkNetwork
    from fitting.landmark_pictures import curves, sheet
    from fitting.landmark_training import (
        LandmarkTraining,
        LandmarkTrainingError,
        Pool,
        State,
        Trainer,
        mean_points,
        shared_by,
        start,
        train,
    )
    from fitting.portraits.backdrop import Pictures
    from fitting.portraits.portrait import PortraitSettings
    from fitting.portraits.stream import CHUNK, Examples, Order, joined, read_chunk, render_chunk, write_examples
    from fitting.portraits.studio import studio

    enable_cache()
    weighing = LandmarkLossWeights(parameters=loss, parameter_weight=parameter_weight, regression=regression)
    settings = LandmarkTraining(
        steps=steps, batch=batch, learning_rate=learning_rate, seed=seed, bfloat16=bfloat16, reuse=reuse, pool=pool,
        weights=weighing,
    )  # fmt: skip
    if workers is None:
        workers = 0 if jax.default_backend() != "cpu" else max(1, (os.cpu_count() or 2) - 1)
    portraits = PortraitSettings()
    with stage(console, "loading the model"):
        head = morphable.load(model)
        stage_ = studio(head)
        points = dense_landmarks(head)
        trainer = Trainer(shared_by(head, points.mirror, settings.identity_rank), settings)
    behind = None
    if backgrounds is not None:
        try:
            behind = Pictures.of(backgrounds)
        except ValueError as error:
            raise UsageError(f"--backgrounds: {error}") from error
    order = Order(model, out / "portraits", seed, portraits, behind)
    held_file = out / "held_out.npz"
    with stage(console, "rendering portraits to test on"):
        if not held_file.exists():
            chunks = [render_chunk(stage_, seed + _HELD_OUT, k, portraits) for k in range(held_out // CHUNK)]
            with held_file.open("wb") as file:
                write_examples(file, joined(chunks))
        held = read_chunk(held_file)
    known = [] if real is None else _annotated(real)

    checkpoint = out / "checkpoint.safetensors"
    begun = "random weights" if start_from is None else start_from.name
    asked = {
        **dataclasses.asdict(settings), "backgrounds": None if behind is None else [p.name for p in behind.files],
        "portraits": dataclasses.asdict(portraits), "widths": list(widths),
        "depths": list(depths), "start": begun,
    }  # fmt: skip
    asked = json.loads(json.dumps(asked))
    if checkpoint.exists():
        state, record = load_checkpoint(checkpoint, settings)
        changed = [k for k in asked if record["settings"].get(k) != asked[k]]
        if changed:
            raise LandmarkTrainingError(
                f"{checkpoint}: got a checkpoint of other settings ({', '.join(changed)}), expected these. Give the "
                "settings that it was made with, or another --out."
            )
        console.print(f"  going on from step {int(state.step)}")
    else:
        network = eqx.filter_jit(LandmarkNetwork)(
            jax.random.key(seed), points.surface, len(head.expression_names), head.shape.rank, portraits.size, widths,
            depths,
        )  # fmt: skip
        network = eqx.tree_at(lambda n: n.mean_points, network, jnp.asarray(mean_points([held])))
        if start_from is not None:
            network, left = begun_from(start_from, network)
            if left:
                console.print(f"  {start_from.name} has nothing for {len(left)} arrays: {', '.join(left[:4])} ...")
        state, record = start(network, settings), {"settings": asked, "log": []}
    state = trainer.placed(state)

    def chunk(index: int) -> Examples:
        if not workers:
            return jax.device_get(render_chunk(stage_, seed, index, portraits, pictures=behind))
        while not order.file(index).exists():
            if not any(p.is_alive() for p in processes):
                raise LandmarkTrainingError(
                    f"train-landmarks: got no {order.file(index).name}, expected it by now: the processes that "
                    "render have ended. See what they printed, or use --workers 0."
                )
            time.sleep(0.2)
        return read_chunk(order.file(index))

    source = Pool(chunk, settings, CHUNK)
    log, began = list(record["log"]), time.perf_counter()

    def report(step: int, state: State, terms: dict[str, float]) -> None:
        test = {f"held_out_{k}": v for k, v in trainer.evaluate(state.average, held).items()}
        if known:
            test["real_nme68"] = _real_error(state.average, known)
        log.append({"step": step, **terms, **test, "seconds": round(time.perf_counter() - began, 1)})
        save_checkpoint(checkpoint, state, head, {"settings": asked, "log": log})
        save_network(
            out / "weights.safetensors", state.average, head, {"settings": asked, "figures": {"steps": step, **test}}
        )
        (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
        Image.fromarray(curves(log)).save(out / "curves.png")
        (out / "sheets").mkdir(exist_ok=True)
        Image.fromarray(sheet(state.average, held)).save(out / "sheets" / f"step_{step:06d}.png")
        for path in order.folder.glob("portraits_*.npz"):
            if int(path.stem.split("_")[1]) < source.oldest(step):
                path.unlink()
        more = f", real {test['real_nme68']:.2f} %" if known else ""
        console.print(
            f"step {step}/{steps}: loss {terms['total']:.3f}, NME {terms['nme68']:.2f} % (held out "
            f"{test['held_out_nme68']:.2f} %, {test['held_out_degrees']:.1f} degrees, within sigma "
            f"{100 * test['held_out_within_sigma']:.0f} %{more}) [dim]{log[-1]['seconds']:.0f} s[/dim]"
        )

    processes: list = []
    if workers:
        order.folder.mkdir(parents=True, exist_ok=True)
        processes = _rendering(order, source.oldest(int(state.step)), workers, 2 * pool // CHUNK + 8)
    try:
        train(trainer, state, source, steps, report, every)
    finally:
        for process in processes:
            process.terminate()
    console.print(f"[green]trained[/green]; see {out / 'curves.png'} and {out / 'sheets'}")
    return SUCCESS


def _rendering(order, first: int, workers: int, ahead: int) -> list:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_render, args=(order, first + k, workers, ahead, os.getpid()), daemon=True)
        for k in range(workers)
    ]
    before = os.environ.get("XLA_FLAGS")
    # One thread each: a portrait is too small to share.
    os.environ["XLA_FLAGS"] = (
        f"{before or ''} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()
    )
    try:
        for process in processes:
            process.start()
    finally:
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before
    return processes


def _render(order, first: int, stride: int, ahead: int, parent: int) -> None:
    from fitting.portraits.stream import render_ahead

    os.nice(5)  # the one that learns comes first
    render_ahead(order, first, stride, ahead, lambda: os.getppid() == parent)


def _annotated(folder: Path) -> list:
    """Photos of a folder and their 68 points in pixels, pixel centres at +0.5."""
    from fitting.observation import read_landmarks, read_photo

    if not folder.is_dir():
        raise UsageError(f"--real: got {folder}, expected a folder of photos with a .pts file beside each.")
    found = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES):
        points = path.with_suffix(".pts")
        if points.exists():
            photo = read_photo(path)
            found.append((photo, read_landmarks(points, photo)))
    if not found:
        raise UsageError(f"--real: got {folder} without a photo that has NAME.pts beside NAME.jpg, expected some.")
    return found


def _real_error(network, known: list) -> float:
    """Mean NME of 68 points in percent, from boxes around the annotated ones."""
    import numpy as np

    from fitting.evaluation import landmark_errors
    from fitting.network_detection import around, locate

    seen = [locate(network, photo, around(truth)).landmarks for photo, truth in known]
    errors = [np.nanmean(landmark_errors(found, truth)) for found, (_, truth) in zip(seen, known, strict=True)]
    return float(np.mean(errors))
