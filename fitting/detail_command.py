"""`facefit train-detail`: people are made or read, the network is trained, progress is written as it goes."""

import dataclasses
import functools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import tyro

from fitting.command import SUCCESS, UsageError, stage

_HELD_OUT = 0.04  # of the people, at least two: never trained on, their error is reported
_PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")


def train_detail(
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    model: Path | None = None,
    people: int = 500,
    photos_each: int = 2,
    photos: tuple[Path, ...] = (),
    steps: int = 3000,
    batch: int = 2,
    learning_rate: float = 1.5e-3,
    size: int = 256,
    start_from: Path | None = None,
    plain_encoder: bool = False,
    bfloat16: bool = False,
    seed: int = 0,
    workers: int | None = None,
    every: int = 50,
) -> int:
    """Train the network of `facefit fit --detail network`. The same command goes on where it was stopped.

    OUT receives examples/ (one file for each person), checkpoint.safetensors, weights.safetensors (for
    `--detail-weights`), log.jsonl, curves.png and samples/.

    Args:
        out: Folder for everything; made if missing.
        model: A model file. Default: the head that ships with facefit.
        people: How many random people are made, each with wrinkles, pores and moles of known shape.
        photos_each: Photos of each of them, with other expressions, light and cameras.
        photos: Folders of your own photos, one person in each, to learn from without a known truth.
        steps: Steps of training, altogether.
        batch: People in a batch, two photos of each.
        learning_rate: Of AdamW, at its highest.
        size: Texels in a row of the maps: 16 times a power of two.
        start_from: Weights to begin with, of an earlier training. Default: random ones.
        plain_encoder: Leave out the encoder's multi-scale attention.
        bfloat16: Compute maps in half precision, as GPUs and TPUs do fast; a CPU does it slowly.
        seed: Of the people (a number of their own each), the first weights and the order.
        workers: Processes that make people. Default: one for each core.
        every: Steps between reports.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for name, value, least in (
        ("--people", people, 0), ("--photos-each", photos_each, 1), ("--steps", steps, 1), ("--batch", batch, 1),
        ("--every", every, 1), ("--size", size, 32),
    ):  # fmt: skip
        if value < least:
            raise UsageError(f"{name}: got {value}, expected at least {least}.")
    halvings = math.log2(size / 16)
    if halvings != int(halvings):
        raise UsageError(f"--size: got {size}, expected 32, 64, 128, 256 or 512.")
    if people == 0 and not photos:
        raise UsageError("--people: got 0 and no --photos, expected people to learn from. Give one of them.")
    examples = out / "examples"
    examples.mkdir(parents=True, exist_ok=True)
    plan = _Plan(model, size, seed, photos_each)
    wanted = [examples / f"synthetic_{seed + k:07d}.npz" for k in range(people)]
    with stage(console, f"making {people} people"):
        _make_people(plan, [p for p in wanted if not p.exists()], workers or os.cpu_count() or 1, console)
    own = []
    for folder in photos:
        target = examples / f"own_{folder.resolve().name}.npz"
        with stage(console, f"fitting {folder}"):
            if target.exists() or _own_person(plan, folder, target, console):
                own.append(target)
    files = [p for p in wanted if p.exists()] + own

    import jax
    import numpy as np
    from PIL import Image

    import morphable
    from fitting.compilation import enable_cache
    from fitting.detail_checkpoint import load_checkpoint, load_network, save_checkpoint, save_network
    from fitting.detail_examples import mirror_of
    from fitting.detail_network import DetailNetwork, face_window
    from fitting.detail_pictures import curves, samples
    from fitting.detail_training import (
        People,
        State,
        Trainer,
        TrainingError,
        TrainingSettings,
        shared_by,
        start,
        train,
    )

    enable_cache()
    held = max(2, round(_HELD_OUT * len(files))) if len(files) > 4 else 0
    if len(files) - held < 1:
        raise TrainingError(f"train-detail: got {len(files)} people, expected more. Give more --people or --photos.")
    settings = TrainingSettings(steps=steps, people=batch, learning_rate=learning_rate, seed=seed, bfloat16=bfloat16)
    with stage(console, "loading the model"):
        head = morphable.load(model)
        trainer = Trainer(shared_by(head, size), settings)
        checkpoint = out / "checkpoint.safetensors"
        begun = "random weights" if start_from is None else start_from.name
        asked = {**dataclasses.asdict(settings), "files": [p.name for p in files], "start": begun}
        asked = json.loads(json.dumps(asked))
        if checkpoint.exists():
            state, record = load_checkpoint(checkpoint, settings)
            if record["settings"] != asked:
                changed = [k for k in asked if record["settings"].get(k) != asked[k]]
                raise TrainingError(
                    f"{checkpoint}: got a checkpoint of other settings ({', '.join(changed)}), expected these. Give "
                    "the settings that it was made with, or another --out."
                )
            console.print(f"  going on from step {int(state.step)}")
        elif start_from is not None:
            network = load_network(start_from, head)
            if network.size != size:
                raise UsageError(
                    f"--start-from: got weights for --size {network.size}, expected {size}. Give that size."
                )
            state, record = start(network, settings), {"settings": asked, "log": []}
        else:
            widths = (24, 48, 64, 96, 128, 128)[: int(halvings) + 1]
            network = DetailNetwork(
                jax.random.key(seed),
                names=head.expression_names,
                size=size,
                widths=widths,
                attention=not plain_encoder,
                window=face_window(np.asarray(trainer.shared.region), len(widths)),
            )
            state, record = start(network, settings), {"settings": asked, "log": []}
    state = trainer.placed(state)
    training = People(files[: len(files) - held], settings, mirror_of(head))
    holding = People(files[len(files) - held :] or files, settings)
    log, began = list(record["log"]), time.perf_counter()

    def report(step: int, state: State, terms: dict[str, float]) -> None:
        test = [trainer.evaluate(state.average, holding.batch(k)) for k in range(max(1, min(4, held // batch)))]
        unseen = {
            f"held_out_{name}": float(np.mean([t[name] for t in test]))
            for name in ("normals_left", "normals_left_by_code")
        }
        log.append({"step": step, **terms, **unseen, "seconds": round(time.perf_counter() - began, 1)})
        figures = {"steps": step, **unseen}
        save_checkpoint(checkpoint, state, head, {"settings": asked, "log": log})
        save_network(out / "weights.safetensors", state.average, head, {"settings": asked, "figures": figures})
        (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
        Image.fromarray(curves(log)).save(out / "curves.png")
        (out / "samples").mkdir(exist_ok=True)
        sheet = samples(state.average, holding.batch(0), trainer.shared.region)
        Image.fromarray(sheet).save(out / "samples" / f"step_{step:06d}.png")
        console.print(
            f"step {step}/{steps}: loss {terms['total']:.4f}, normals' error {terms['normals_left']:.2f} of the "
            f"fit's, {unseen['held_out_normals_left']:.2f} on people held out "
            f"({unseen['held_out_normals_left_by_code']:.2f} by code) [dim]{log[-1]['seconds']:.0f} s[/dim]"
        )

    train(trainer, state, training, steps, report, every)
    console.print(f"[green]trained[/green]; see {out / 'curves.png'} and {out / 'samples'}")
    return SUCCESS


# ------------------------------------------------------------------------------------------------------ people


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a process needs to make people."""

    model: Path | None
    size: int
    seed: int
    photos: int


@functools.cache
def _bench(model: Path | None, size: int):
    """A process's model, made ready once."""
    import morphable
    from fitting.detail_observation import detail_region
    from fitting.fit import Fitter

    head = morphable.load(model)
    return Fitter(head), detail_region(head, size)


def _make_person(plan: _Plan, target: Path) -> str:
    from fitting.detail_examples import PORTRAITS, save_person, synthetic_person

    fitter, region = _bench(plan.model, plan.size)
    seed = int(target.stem.split("_")[1])
    made = synthetic_person(fitter, seed, plan.photos, plan.size, PORTRAITS, region)
    if made:
        save_person(target, made)
    return target.stem if made else ""


def _make_people(plan: _Plan, targets: Sequence[Path], workers: int, console) -> None:
    if not targets:
        return
    began, failed = time.perf_counter(), 0
    # The first alone: it fills the cache of compiled programs for the others.
    if not _make_person(plan, targets[0]):
        failed += 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(targets)), mp_context=context) as pool:
        waiting = [pool.submit(_make_person, plan, target) for target in targets[1:]]
        for number, done in enumerate(as_completed(waiting), 2):
            failed += not done.result()
            if number % 25 == 0 or number == len(targets):
                console.print(f"  {number}/{len(targets)} [dim]{time.perf_counter() - began:.0f} s[/dim]")
    if failed:
        console.print(f"  {failed} left out: their fits failed")


def _own_person(plan: _Plan, folder: Path, target: Path, console) -> bool:
    """Examples of one's own photos of one person."""
    from fitting.detail_examples import example, save_person
    from fitting.detection import detect_faces
    from fitting.observation import read_photo

    fitter, region = _bench(plan.model, plan.size)
    if not folder.is_dir():
        raise UsageError(f"--photos: got {folder}, expected a folder of photos of one person.")
    made = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES):
        photo = read_photo(path)
        fit = fitter.fit(photo, detect_faces(photo)[0])
        if fit.result == "failed":
            console.print(f"  {path.name}: left out, {fit.reason}")
            continue
        made.append(example(fit, photo, plan.size, None, region))
    if made:
        save_person(target, made)
    return bool(made)
