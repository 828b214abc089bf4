"""How well a fit finds the parameters that a photo was made from: faces of `fitting.synthesis`, default plan.

    python -m benchmarks recovery [--count 50] [--size 320]

Prints one column for each condition: landmarks exact or with noise of 1.5 % of the face's box, a perfect camera or
one with noise, blur and JPEG. Beside errors stand those of an answer that knows nothing: the mean face, no expression,
white light, the priors' focal length.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import morphable  # noqa: E402
from fitting.fit import Fit, Fitter  # noqa: E402
from fitting.synthesis import SynthesisSettings, SyntheticPhoto, synthesize  # noqa: E402
from morphable.mesh import Mesh  # noqa: E402
from renderer.light import sh_basis  # noqa: E402

NOISE = 0.015  # of landmarks, in sides of the face's box


class Recovery(NamedTuple):
    """One fit against its truth. Errors, unless said otherwise; `blind` ones are those of knowing nothing."""

    identity: np.ndarray  # (2, rank), true and fitted coefficients, as the next two
    albedo: np.ndarray
    light: np.ndarray  # (2, 27)
    neutral_mm: float  # mean over the face's vertices after rigid alignment
    neutral_blind: float
    scaled_mm: float  # with the best scale too: what is left when the person's size, which no photo shows, is given
    scaled_blind: float
    rotation_deg: float
    focal: float  # natural logarithm of fitted over true
    focal_blind: float
    depth: float  # the same, of the distance
    magnification: float  # the same, of focal length over distance: what the photo shows
    shading: float  # rms over the visible face, relative to the true shading's
    shading_blind: float
    relief: float  # the same after the best factor for each channel, which the albedo can take over
    relief_blind: float
    colour: float  # the same of albedo times shading
    expression: float  # mean absolute error of the weights that a fit can find
    expression_blind: float
    expression_mm: float  # mean over the face's vertices of the displacement by expression
    expression_mm_blind: float
    result: str


def recover(fitter: Fitter, synthetic: SyntheticPhoto, noise: float = 0.0, seed: int = 0) -> Recovery:
    """Fit one synthetic photo, its landmarks moved by noise (of the face's box), and compare with the truth."""
    side = np.ptp(synthetic.landmarks, axis=0).max()
    fit = fitter.fit(synthetic.photo, synthetic.as_face(noise * side, seed))
    return compare(fitter, fit, synthetic)


def compare(fitter: Fitter, fit: Fit, synthetic: SyntheticPhoto) -> Recovery:
    """The table's figures of one fit."""
    model, truth = fitter.model, synthetic.truth
    face = np.asarray(model.masks["face"]) > 0.5
    nothing = jnp.zeros(len(model.expression_names))
    neutral = np.asarray(model.vertices(truth.identity, nothing), float)
    mean = np.asarray(model.mean, float)
    fitted = fit.neutral_vertices.astype(float)
    moved, true_moved = fit.vertices - fitted, synthetic.vertices - neutral
    length = lambda v: float(np.linalg.norm(v[face], axis=1).mean())  # noqa: E731
    turned = np.asarray(fit.camera.rotation, float).T @ np.asarray(synthetic.camera.rotation, float)
    log_focal, log_true = np.log(float(fit.camera.focal[0])), float(truth.log_focal)
    depth = np.log(float(fit.camera.pose.translation()[2]) / float(truth.pose.translation()[2]))
    prior = np.log(fitter.settings.focal_over_size * max(synthetic.photo.height, synthetic.photo.width))
    true_albedo, true_shading, seen = _reflected(
        model, synthetic.vertices, synthetic.camera, truth.albedo, truth.light, face
    )
    albedo, shading, _ = _reflected(model, fit.vertices, fit.camera, fit.albedo, fit.light, face)
    relative = lambda a, b: float(np.linalg.norm((a - b)[seen]) / np.linalg.norm(b[seen]))  # noqa: E731
    gained = lambda a: a * (a * true_shading)[seen].sum(axis=0) / (a**2)[seen].sum(axis=0)  # noqa: E731
    blind = np.ones_like(shading)  # under white ambient light
    free = np.asarray(fitter.solver_model.free_units) > 0
    expression = np.asarray(truth.expression)
    return Recovery(
        identity=np.stack([truth.identity, fit.identity]),
        albedo=np.stack([truth.albedo, fit.albedo]),
        light=np.stack([np.ravel(truth.light), fit.light.ravel()]),
        neutral_mm=_aligned(fitted, neutral, face, scale=False),
        neutral_blind=_aligned(mean, neutral, face, scale=False),
        scaled_mm=_aligned(fitted, neutral, face, scale=True),
        scaled_blind=_aligned(mean, neutral, face, scale=True),
        rotation_deg=float(np.degrees(np.arccos(np.clip((np.trace(turned) - 1) / 2, -1, 1)))),
        focal=log_focal - log_true,
        focal_blind=prior - log_true,
        depth=float(depth),
        magnification=log_focal - log_true - float(depth),
        shading=relative(shading, true_shading),
        shading_blind=relative(blind, true_shading),
        relief=relative(gained(shading), true_shading),
        relief_blind=relative(gained(blind), true_shading),
        colour=relative(albedo * shading, true_albedo * true_shading),
        expression=float(np.abs(fit.expression - expression)[free].mean()),
        expression_blind=float(np.abs(expression)[free].mean()),
        expression_mm=length(moved - true_moved),
        expression_mm_blind=length(true_moved),
        result=fit.result,
    )


def _aligned(vertices, truth, chosen, scale: bool) -> float:
    """Mean distance over the chosen vertices after the best rotation, translation and, if asked for, scale."""
    a, b = vertices[chosen], truth[chosen]
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    u, s, vt = np.linalg.svd(a.T @ b)
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    factor = (s * sign).sum() / (a**2).sum() if scale else 1.0
    return float(np.linalg.norm(factor * a @ (u * sign) @ vt - b, axis=1).mean())


@jax.jit
def _at_vertices(mesh, rotation, translation, light):
    """Shading, and the cosine between normal and line of sight."""
    normals = mesh.normals @ rotation.T
    towards = -(mesh.vertices @ rotation.T + translation[None])
    return sh_basis(normals) @ light, jnp.sum(normals * towards, axis=1) / jnp.linalg.norm(towards, axis=1)


def _reflected(model, vertices, camera, albedo, light, chosen):
    """Albedo and shading of all vertices, and which of the chosen ones face the camera by 60 degrees at least."""
    mesh = Mesh(jnp.asarray(vertices), model.triangles)
    shading, facing = _at_vertices(mesh, camera.rotation, camera.pose.translation(), jnp.asarray(light))
    colour = np.asarray(model.albedo_linear(jnp.asarray(albedo)))
    return colour, np.asarray(shading), chosen & (np.asarray(facing) > 0.5)


def correlation(pairs: list[np.ndarray], count: int | None = None) -> float:
    """Pearson's correlation between true and fitted coefficients, pooled over faces and (the first) coefficients."""
    true, fitted = (np.concatenate([p[k, :count] for p in pairs]) for k in (0, 1))
    return float(np.corrcoef(true, fitted)[0, 1])


def summary(recoveries: list[Recovery]) -> dict[str, float]:
    """The table's rows of one condition: pooled correlations, and means over the faces."""
    of = lambda name: np.array([getattr(r, name) for r in recoveries])  # noqa: E731
    mean = lambda name: float(np.abs(of(name)).mean())  # noqa: E731
    identity, light = [r.identity for r in recoveries], [r.light for r in recoveries]
    return {
        "identity, correlation": correlation(identity),
        "identity, correlation of the first 10": correlation(identity, 10),
        "identity, rms of the fitted coefficients": float(np.sqrt(np.mean([p[1] ** 2 for p in identity]))),
        "albedo, correlation": correlation([r.albedo for r in recoveries]),
        "albedo, correlation of the first 10": correlation([r.albedo for r in recoveries], 10),
        "neutral face, mm, rigid": mean("neutral_mm"),
        "  mean face": mean("neutral_blind"),
        "  faces worse than the mean face": int((of("neutral_mm") > of("neutral_blind")).sum()),
        "neutral face, mm, scaled": mean("scaled_mm"),
        "  mean face, scaled": mean("scaled_blind"),
        "rotation, degrees": mean("rotation_deg"),
        "rotation, degrees, median": float(np.median(of("rotation_deg"))),
        "focal length, |log ratio|": mean("focal"),
        "  the prior's": mean("focal_blind"),
        "focal length, correlation of logarithms": float(
            np.corrcoef(-of("focal_blind"), of("focal") - of("focal_blind"))[0, 1]
        ),
        "distance, |log ratio|": mean("depth"),
        "focal length over distance, |log ratio|": mean("magnification"),
        "shading, relative error": mean("shading"),
        "  white ambient light": mean("shading_blind"),
        "shading up to gain, relative error": mean("relief"),
        "  white ambient light, up to gain": mean("relief_blind"),
        "albedo x shading, relative error": mean("colour"),
        "light, correlation": correlation(light),
        "light without the ambient band, correlation": correlation([p[:, 3:] for p in light]),
        "expression, mean absolute error": mean("expression"),
        "  no expression": mean("expression_blind"),
        "expression, mm": mean("expression_mm"),
        "  no expression, mm": mean("expression_mm_blind"),
        "failed": sum(r.result == "failed" for r in recoveries),
    }


def photos(model, count: int, size: int, camera: str) -> list[SyntheticPhoto]:
    """The first synthetic photos by a "perfect" or a "real" camera: the same people, poses and lights."""
    settings = SynthesisSettings.clean(size=size) if camera == "perfect" else SynthesisSettings(size=size)
    return [synthesize(model, seed, settings) for seed in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--size", type=int, default=320)
    args = parser.parse_args()
    fitter = Fitter(morphable.load())
    columns = {}
    for camera in ("perfect", "real"):
        album = photos(fitter.model, args.count, args.size, camera)
        for points, noise in (("exact", 0.0), ("noisy", NOISE)):
            columns[f"{points} points, {camera}"] = summary([recover(fitter, p, noise, k) for k, p in enumerate(album)])
    rows = next(iter(columns.values()))
    print(f"{'':45s}" + "".join(f"{name:>23s}" for name in columns))
    for row in rows:
        print(f"{row:45s}" + "".join(f"{column[row]:23.3f}" for column in columns.values()))


if __name__ == "__main__":
    main()
