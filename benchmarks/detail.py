"""How much nearer to the truth detail brings a head's normals, on synthetic photos that no training has seen.

    python -m benchmarks detail [--count 12] [--first 900000] [--weights FILE] [--refine] [--shared ../shared]
        [--out FOLDER]

For each photo, with the true coarse parameters and with facefit's own fit: mean angle between the normals of the head
with detail and the true ones, pixel by pixel in the camera's frame, over bare skin that the photo shows, and the
correlation of the displacements without what is broader than 8 mm. Of the network also: where on the map another
expression changes the relief, and how much swapping the detail codes of two photos changes what is seen.
With --shared also what it does to scan-to-mesh distances of `data/ict_dev`, heads without wrinkles, and to whom a
rendering of `data/photos_dev` looks like: the distance of dlib's descriptors between photo and rendering, with the
linear model's own albedo, so that whatever is fine is relief, and with the texture that is exported. --out gets a
strip for each of these photos.
"""

import argparse
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter

import morphable
from fitting.detail_checkpoint import load_network
from fitting.detail_estimate import estimate_detail, refined
from fitting.detail_examples import PORTRAITS, averaged
from fitting.detail_network import DetailInputs, DetailNetwork, input_maps
from fitting.detail_observation import DetailObservation, detail_region, observe
from fitting.detail_optimisation import optimise_detail
from fitting.detection import detect_faces, face_descriptor
from fitting.evaluation import FaceMesh, mean_face, scan_to_mesh
from fitting.fit import Fit, Fitter
from fitting.ground_truth import read_scan
from fitting.observation import Photo, read_photo
from fitting.pictures import detail_strip, render_over_photo
from fitting.synthesis import SyntheticPhoto, solid, synthesize
from fitting.texture_map import face_texture, texture_layout
from morphable.colour import linear_to_srgb
from morphable.detail import detail_normals, displaced_mesh, skin_vertices
from morphable.mesh import Mesh
from morphable.model import MorphableModel
from morphable.uv import sample_texture
from renderer.camera import Pinhole
from renderer.render import render

Map = Float[np.ndarray, "size size"]
Method = Callable[[DetailObservation, Fit, Photo], Map]  # mm

_FINE_PX = 12.0  # deviation, pixels of the photo: about 6 mm


def methods(model: MorphableModel, size: int, network: DetailNetwork, refine: bool) -> dict[str, Method]:
    """What is compared. A method gets an observation, and the fit and photo that it was made of."""
    region = detail_region(model, size)
    where = jnp.asarray(region.relief, jnp.float32)

    def optimised(observation: DetailObservation, fit: Fit, photo: Photo) -> Map:
        displacement, _, _ = optimise_detail([observation], texture_layout(fit, size).mirror_uv.astype(np.float32))
        return np.asarray(displacement)

    @eqx.filter_jit
    def look(network, observation, identity, expression):
        return network(DetailInputs(input_maps(observation), where, identity, expression)).displacement

    def looked(network: DetailNetwork, observation: DetailObservation, fit: Fit) -> Map:
        return np.asarray(look(network, observation, jnp.asarray(fit.identity), jnp.asarray(fit.expression)))

    def refined_too(observation: DetailObservation, fit: Fit, photo: Photo) -> Map:
        return looked(refined(network, [fit], [photo], [None], region), observation, fit)

    every = {
        "no detail": lambda observation, fit, photo: np.zeros((size, size), np.float32),
        "optimised": optimised,
        "network": lambda observation, fit, photo: looked(network, observation, fit),
    }
    return {**every, "network, refined": refined_too} if refine else every


def true_fit(model: MorphableModel, fit: Fit, synthetic: SyntheticPhoto) -> Fit:
    """A fit that found the truth."""
    face = synthetic.truth
    return dataclasses.replace(
        fit,
        camera=synthetic.camera,
        identity=np.asarray(face.identity),
        expression=np.asarray(face.expression),
        albedo=np.asarray(face.albedo),
        light=np.asarray(face.light),
        problem=None,
        parameters=None,
        labels=None,
    )


@eqx.filter_jit
def _picture(model: MorphableModel, vertices, camera: Pinhole, normals, maps):
    """Normals in camera axes and maps as the camera sees them, and where there is a head."""
    picture = render(
        Mesh(vertices, solid(model), model.uv), camera, jnp.zeros((9, 3)), normal_map=normals, shadow_size=None
    )
    return picture.normals, sample_texture(maps, picture.uv), picture.triangle_ids >= 0


def seen(model: MorphableModel, fit: Fit, observation: DetailObservation, displacement: Map, weight: Map):
    """Normals, displacement and weight, pixel by pixel."""
    normals = detail_normals(observation.surface, jnp.asarray(displacement))
    maps = jnp.stack([jnp.asarray(displacement), jnp.asarray(weight)], axis=-1)
    parts = _picture(model, jnp.asarray(fit.vertices), fit.camera, normals, maps)
    normals, maps, head = (np.asarray(p) for p in parts)
    return normals, maps[..., 0], maps[..., 1] * head


def degrees(one, other) -> np.ndarray:
    """Angles between unit vectors."""
    return np.degrees(np.arccos(np.clip(np.sum(one * other, axis=-1), -1, 1)))


def fine(values, weight):
    """Values without what is broad, and without their mean."""
    smooth = gaussian_filter(values * weight, _FINE_PX) / np.maximum(gaussian_filter(weight, _FINE_PX), 1e-3)
    high = values - smooth
    return high - np.sum(high * weight) / weight.sum()


def scores(one, other) -> tuple[float, float]:
    """Mean angle in degrees and correlation of the fine displacement, over what both see."""
    weight = one[2] * other[2]
    angle = float(np.sum(degrees(one[0], other[0]) * weight) / weight.sum())
    a, b = fine(one[1], weight), fine(other[1], weight)
    both = np.sqrt(np.sum(a * a * weight) * np.sum(b * b * weight))
    return angle, float(np.sum(a * b * weight) / max(both, 1e-9))


def synthetic(fitter: Fitter, network: DetailNetwork, args) -> None:
    model, size = fitter.model, network.size
    region = detail_region(model, size)
    compared = methods(model, size, network, args.refine)
    rows, seconds = defaultdict(list), defaultdict(list)
    for seed in range(args.first, args.first + args.count):
        shown = synthesize(model, seed, PORTRAITS)
        fit = fitter.fit(shown.photo, shown.as_face(1.5, seed))
        if fit.result == "failed":
            continue
        relief = np.asarray(shown.scene.relief.displacement(shown.truth.expression), np.float32)
        step = len(relief) // size
        relief = relief.reshape(size, step, size, step).mean(axis=(1, 3))
        truth = true_fit(model, fit, shown)
        true_observation = observe(truth, shown.photo, size, region=region)
        true = seen(model, truth, true_observation, relief, np.asarray(true_observation.weight))
        for scenario, guess, observation in (
            ("true coarse parameters", truth, true_observation),
            ("facefit's fit", fit, observe(fit, shown.photo, size, region=region)),
        ):
            for name, method in compared.items():
                began = time.perf_counter()
                displacement = method(observation, guess, shown.photo)
                seconds[name].append(time.perf_counter() - began)
                found = seen(model, guess, observation, displacement, np.asarray(observation.weight))
                rows[scenario, name].append(scores(found, true))
        told = {key: values[-1] for key, values in rows.items()}
        print(seed, f"age {float(shown.scene.relief.age):.2f}", *(f"{a:.2f} ({c:.2f})" for a, c in told.values()))
    print(f"\n{'':26s}{'method':14s}{'degrees':>8s}{'less':>8s}{'correlation':>12s}{'seconds':>9s}")
    for (scenario, name), values in rows.items():
        values, base = np.array(values), np.array(rows[scenario, "no detail"])
        gain = 1.0 - values[:, 0].mean() / base[:, 0].mean()
        middle = np.median(seconds[name])
        print(f"{scenario:26s}{name:14s}{values[:, 0].mean():8.2f}{gain:8.1%}{values[:, 1].mean():12.2f}{middle:9.2f}")


def conditioning(fitter: Fitter, network: DetailNetwork, args) -> None:
    """Whether expressions move wrinkles only, and a detail code says who somebody is."""
    model, size = fitter.model, network.size
    region = detail_region(model, size)
    where = jnp.asarray(region.relief, jnp.float32)
    units = model.expression_names

    @eqx.filter_jit
    def look(network, observation, identity, expression):
        found = network(DetailInputs(input_maps(observation), where, identity, expression))
        return found.displacement, found.code

    @eqx.filter_jit
    def decode(network, code, expression):
        return network.decode(code, expression, where)

    faces = {
        "raised brows": ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
        "frown": ("browDownLeft", "browDownRight"),
        "smile": ("mouthSmileLeft", "mouthSmileRight"),
    }
    ratios, photos = defaultdict(list), []
    for seed in range(args.first, args.first + args.count):
        person, first = [], None
        for k in range(2):
            shown = synthesize(model, seed + 1_000_000_000 * k, PORTRAITS, first)
            first = shown.scene if first is None else first
            fit = fitter.fit(shown.photo, shown.as_face(1.5, seed + k))
            observation = observe(fit, shown.photo, size, region=region)
            _, code = look(network, observation, jnp.asarray(fit.identity), jnp.asarray(fit.expression))
            person.append((observation, np.asarray(fit.expression), jnp.asarray(fit.identity), code))
        photos.append(person)
        # Inside is where this person's own skin folds with the expression.
        relief = first.relief
        rest = np.zeros(len(units), np.float32)
        for name, parts in faces.items():
            put_on = np.array([0.8 * (unit in parts) for unit in units], np.float32)
            folded = relief.displacement(jnp.asarray(put_on)) - relief.displacement(jnp.asarray(rest))
            true = averaged(np.asarray(folded), size)
            inside = np.abs(true) > 0.02
            outside = (region.relief > 0.5) & ~inside
            if inside.sum() < 20:
                continue  # a smooth face
            observation, _, identity, code = person[0]
            changes = {
                "decoded": decode(network, code, jnp.asarray(put_on)) - decode(network, code, jnp.asarray(rest)),
                "seen": look(network, observation, identity, jnp.asarray(put_on))[0]
                - look(network, observation, identity, jnp.asarray(rest))[0],
            }
            for how, change in changes.items():
                change = np.abs(np.asarray(change))
                ratios[how, name].append(change[inside].mean() / max(change[outside].mean(), 1e-9))
    print(f"\n{'change by expression':22s}{'inside : outside of the wrinkles, median':>44s}")
    for (how, name), values in ratios.items():
        print(f"{how:10s}{name:14s}{np.median(values):10.1f}")

    def swapped(one, other):
        """Degrees by which one photo's normals change with the other's code, seen by the photo."""
        observation, own, _, code = one
        pair = [detail_normals(observation.surface, decode(network, c, jnp.asarray(own))) for c in (code, other[3])]
        weight = np.asarray(observation.weight)
        return float(np.sum(degrees(*(np.asarray(n) for n in pair)) * weight) / weight.sum())

    same = [swapped(a, b) for a, b in photos]
    others = [swapped(a, b) for (a, _), (b, _) in zip(photos, photos[1:] + photos[:1], strict=True)]
    print(
        f"swapping codes: {np.mean(same):.2f} degrees between photos of a person, {np.mean(others):.2f} between people"
    )


def scans(fitter: Fitter, network: DetailNetwork, args) -> None:
    model, size = fitter.model, network.size
    region, mean, skin = detail_region(model, size), mean_face(model), skin_vertices(model)
    compared = methods(model, size, network, False)
    rows = defaultdict(list)
    for folder in sorted((args.shared / "data" / "ict_dev").iterdir()):
        photo = read_photo(folder / "y+00.jpg")
        fit = fitter.fit(photo, detect_faces(photo)[0])
        observation = observe(fit, photo, size, region=region)
        scan = read_scan(folder / "gt.npz", mask="face_mask_core", expression=0)
        for name, method in compared.items():
            displacement = method(observation, fit, photo)
            head = Mesh(jnp.asarray(fit.neutral_vertices), model.triangles, model.uv)
            vertices = displaced_mesh(head, jnp.asarray(displacement), 0, skin).vertices
            points = np.asarray(model.landmarks(vertices), float)
            score = scan_to_mesh(scan, FaceMesh(np.asarray(vertices, float), mean.triangles, points))
            size_mm = np.abs(displacement[np.asarray(observation.weight) > 0.5])
            rows[name].append((score.median, np.sqrt(np.mean(size_mm**2)), np.percentile(size_mm, 95)))
    base = np.array(rows["no detail"])[:, 0]
    print(f"\n{'scan to mesh, ict_dev':22s}{'median':>8s}{'worst ratio':>13s}{'rms |D|':>9s}{'95 % of |D|':>13s}")
    for name, values in rows.items():
        values = np.array(values)
        ratio = (values[:, 0] / base).max()
        rms, most = values[:, 1].mean(), values[:, 2].mean()
        print(f"{name:22s}{values[:, 0].mean():8.3f}{ratio:13.3f}{rms:9.3f}{most:13.3f}")


def portraits(fitter: Fitter, network: DetailNetwork, args) -> None:
    """Real photos: no truth, but an eye, and a network that knows people."""
    rows = defaultdict(list)
    for path in sorted((args.shared / "data" / "photos_dev").iterdir()):
        if path.suffix not in (".jpg", ".png"):
            continue
        photo = read_photo(path)
        fit = fitter.fit(photo, detect_faces(photo)[0])
        if fit.result == "failed":
            continue
        seen = face_descriptor(photo, fit.landmarks2d)
        plain = texture_layout(fit, 512).plain
        plain = np.rint(255 * np.asarray(linear_to_srgb(jnp.asarray(plain, jnp.float32)))).astype(np.uint8)
        details = {
            "no detail": None,
            "optimised": estimate_detail([fit], [photo], "optimise"),
            "network": estimate_detail([fit], [photo], "network", network=network),
        }
        strips = []
        for name, detail in details.items():
            texture = face_texture(fit, photo, detail=detail)
            away = []
            for colours in (plain, texture):
                shown = dataclasses.replace(photo, pixels=render_over_photo(fit, photo, colours, detail))
                away.append(float(np.linalg.norm(face_descriptor(shown, fit.landmarks2d) - seen)))
            rows[name].append(away)
            if detail is not None:
                strips.append(detail_strip(fit, photo, detail, texture))
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate(strips)).save(args.out / f"{path.stem}.png")
        print(path.name, *(f"{name} {a[-1][0]:.3f} {a[-1][1]:.3f}" for name, a in rows.items()), sep="  ")
    print(f"\n{'photo to rendering, photos_dev':32s}{'plain albedo':>14s}{'texture':>10s}")
    for name, values in rows.items():
        print(f"{name:32s}{np.mean(values, axis=0)[0]:14.3f}{np.mean(values, axis=0)[1]:10.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--first", type=int, default=900000)
    parser.add_argument("--weights", type=Path, help="of the network; default: the shipped ones")
    parser.add_argument("--refine", action="store_true", help="also the network trained on with each photo")
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--out", type=Path, help="for the strips of photos_dev")
    args = parser.parse_args()
    fitter = Fitter(morphable.load())
    network = load_network(args.weights, fitter.model)
    synthetic(fitter, network, args)
    conditioning(fitter, network, args)
    if args.shared is not None:
        scans(fitter, network, args)
        portraits(fitter, network, args)
