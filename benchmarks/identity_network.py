"""dlib's recogniser in JAX beside dlib's own: `python -m benchmarks identity_network [PHOTO ...] [--json FILE]`.

Whether descriptors are the same (of the largest face of every photo, cut by dlib; by default of the bundled photo), how
far our alignment and dlib's are apart, whether gradients agree with central differences in float64, and what it all
costs: medians of process CPU time and of wall time over repeats, the first call with its compilation apart. dlib's
forward pass takes turns with ours, so that `..._vs_dlib`, a ratio of CPU times, travels between machines.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dlib
import jax
import jax.numpy as jnp
import numpy as np

import fitting
from fitting.detection import NoFaceError, detect_faces, dlib_model_folder
from fitting.identity_network import FILE, IdentityNetwork, chip_matrix, chip_taps, cut_chip, load_identity_network
from fitting.observation import Photo, read_photo
from fitting.perceptual import MRF_STAGES, id_mrf, identity_distance

BUNDLED = Path(fitting.__file__).parent / "examples" / "eileen_collins.jpg"
DLIB: Any = dlib


def descriptor_of(network: IdentityNetwork, chips: jax.Array) -> jax.Array:
    """Whose faces they are."""
    return network.descriptor(chips)


def identity_loss(chips: jax.Array, reference: jax.Array, network: IdentityNetwork) -> jax.Array:
    """Mean distance from one descriptor each."""
    return jnp.mean(jax.vmap(identity_distance)(network.descriptor(chips), reference))


def detail_loss(chips: jax.Array, reference: dict[str, jax.Array], network: IdentityNetwork) -> jax.Array:
    """Mean ID-MRF loss against the features of other pictures."""
    features = network.features(chips)
    return jnp.mean(jax.vmap(id_mrf)({name: features[name] for name in MRF_STAGES}, reference))


def photo_loss(image: jax.Array, matrix: jax.Array, reference: jax.Array, network: IdentityNetwork) -> jax.Array:
    """The same of a whole picture that is cut first, four samples for each pixel."""
    return identity_distance(network.descriptor(cut_chip(image, matrix, 2)[None])[0], reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="*", default=[BUNDLED])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began = time.perf_counter()
    network = load_identity_network()
    flat = {"load_s": time.perf_counter() - began}
    recogniser = DLIB.face_recognition_model_v1(str(dlib_model_folder() / FILE))
    flat |= parity(network, recogniser, options.photos)
    flat |= gradients(network)
    flat |= times(network, recogniser, options.repeats)
    print(f"on {jax.devices()[0]}")
    for name, value in flat.items():
        print(f"{name:44s} {value:10.4g}")
    if options.json:
        options.json.write_text(json.dumps(flat, indent=1) + "\n")


def parity(network: IdentityNetwork, recogniser: Any, paths: list[Path]) -> dict[str, float]:
    """Largest differences over the photos, and those that alignment and resampling make."""
    describe, cut = jax.jit(descriptor_of), jax.jit(cut_chip, static_argnames="taps")
    same, corner, near = [], [], []
    for path in paths:
        photo = read_photo(path)
        try:
            face = detect_faces(photo)[0]
        except NoFaceError:
            continue
        if not np.isfinite(face.landmarks).all():
            continue
        theirs, details = dlibs_chip(photo, face.landmarks)
        wanted = np.array(recogniser.compute_face_descriptor(theirs))
        same.append(np.abs(describe(network, jnp.asarray(theirs, jnp.float32)[None])[0] - wanted).max())
        matrix = chip_matrix(face.landmarks)
        corner.append(corner_error(np.asarray(matrix), details))
        ours = cut(jnp.asarray(photo.pixels, jnp.float32), matrix, taps=chip_taps(matrix))
        near.append(np.linalg.norm(describe(network, ours[None])[0] - wanted))
    return {
        "faces": len(same),
        "descriptor_error_max": float(max(same)),
        "chip_corner_error_max_chip_px": float(max(corner)),
        "own_chip_distance_median": float(np.median(near)),
        "own_chip_distance_max": float(max(near)),
    }


def dlibs_chip(photo: Photo, landmarks: np.ndarray) -> tuple[np.ndarray, Any]:
    """What dlib cuts for these landmarks, and where."""
    points = [DLIB.point(*(int(v) for v in np.round(point - 0.5))) for point in landmarks]
    shape = DLIB.full_object_detection(DLIB.rectangle(0, 0, photo.width, photo.height), points)
    chip = DLIB.get_face_chip(np.ascontiguousarray(photo.pixels), shape, 150, 0.25)
    return chip, DLIB.get_face_chip_details(shape, 150, 0.25)


def corner_error(matrix: np.ndarray, details: Any) -> float:
    """Largest distance of a chip's corner from dlib's, in pixels of the chip."""
    rect, cos, sin = details.rect, np.cos(details.angle), np.sin(details.angle)
    pixel = (rect.right() - rect.left()) / 149 * np.array([[cos, -sin], [sin, cos]])
    centre = np.array([rect.left() + rect.right(), rect.top() + rect.bottom()]) / 2 + 0.5
    corners = np.array([[0, 0, 1], [150, 0, 1], [0, 150, 1], [150, 150, 1]]).T
    moved = matrix @ corners - (pixel @ (corners[:2] - 75) + centre[:, None])
    return float(np.linalg.norm(moved, axis=0).max() / np.linalg.norm(pixel[0]))


def gradients(network: IdentityNetwork) -> dict[str, float]:
    """Relative error of the gradient along random directions of the picture, in float64; float32's against it."""
    rng = np.random.default_rng(0)
    chips, other = (random_chips(1, seed) for seed in (0, 1))
    slope = jax.jit(jax.grad(identity_loss))
    single = np.asarray(slope(chips, network.descriptor(other), network), float)
    with jax.enable_x64(True):
        exact = jnp.asarray(chips, jnp.float64)
        reference = network.descriptor(jnp.asarray(other, jnp.float64))
        gradient = slope(exact, reference, network)
        errors, h = [], 1e-5
        value = jax.jit(identity_loss)
        for _ in range(5):
            step = jnp.asarray(rng.normal(size=chips.shape))
            central = (value(exact + h * step, reference, network) - value(exact - h * step, reference, network)) / (
                2 * h
            )
            errors.append(abs(float(central / jnp.vdot(gradient, step)) - 1))
        double = np.asarray(gradient)
    cosine = np.vdot(single, double) / np.linalg.norm(single) / np.linalg.norm(double)
    return {"gradient_error_max": max(errors), "float32_gradient_cosine": float(cosine)}


def random_chips(count: int, seed: int) -> jax.Array:
    """The bundled face with noise."""
    photo = read_photo(BUNDLED)
    chip = cut_chip(jnp.asarray(photo.pixels, jnp.float32), chip_matrix(detect_faces(photo)[0].landmarks))
    noise = np.random.default_rng(seed).normal(scale=12.0, size=(count, 150, 150, 3))
    return jnp.clip(chip + jnp.asarray(noise, jnp.float32), 0.0, 255.0)


def times(network: IdentityNetwork, recogniser: Any, repeats: int) -> dict[str, float]:
    """Medians of CPU and wall milliseconds, first calls in seconds, and ratios to dlib's forward pass."""
    picture = np.asarray(random_chips(1, 0)[0], np.uint8)
    cases: dict[str, Callable[[], Any]] = {"dlib_forward_1": lambda: recogniser.compute_face_descriptor(picture)}
    forward, whole = jax.jit(descriptor_of), jax.jit(jax.value_and_grad(photo_loss))
    identity, detail = jax.jit(jax.value_and_grad(identity_loss)), jax.jit(jax.value_and_grad(detail_loss))
    for count in (1, 4):
        chips = random_chips(count, 1)
        stages = network.features(random_chips(count, 2))
        maps = {name: stages[name] for name in MRF_STAGES}
        cases[f"forward_{count}"] = lambda chips=chips: forward(network, chips)
        cases[f"identity_gradient_{count}"] = lambda chips=chips, of=stages["descriptor"]: identity(chips, of, network)
        cases[f"id_mrf_gradient_{count}"] = lambda chips=chips, maps=maps: detail(chips, maps, network)
    photo = read_photo(BUNDLED)
    image, matrix = jnp.asarray(photo.pixels, jnp.float32), chip_matrix(detect_faces(photo)[0].landmarks)
    reference = network.descriptor(random_chips(1, 2))[0]
    cases["photo_gradient"] = lambda: whole(image, matrix, reference, network)

    flat: dict[str, float] = {}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for name, call in cases.items():
        flat[f"{name}_first_call_cpu_s"] = timed(call)[0]
    for _ in range(repeats):
        for name, call in cases.items():
            spent[name].append(timed(call))
    for name, rows in spent.items():
        flat[f"{name}_cpu_ms"], flat[f"{name}_wall_ms"] = (
            1e3 * statistics.median(part) for part in zip(*rows, strict=True)
        )
        ratios = [row[0] / base[0] for row, base in zip(rows, spent["dlib_forward_1"], strict=True)]
        flat[f"{name}_vs_dlib"] = statistics.median(ratios)
    return flat


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of a call and all that it started."""
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(call())
    return time.process_time() - cpu, time.perf_counter() - wall


if __name__ == "__main__":
    main()
