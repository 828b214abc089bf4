"""What the detail network learns from: photos of people, fitted and laid out, synthetic ones beside their truth.

A person is a file of two or more examples, so that a code learned from one photo can be asked for another. Synthetic
people are drawn by `fitting.synthesis` with the relief of `fitting.skin_relief`, and go the whole way of a user's
photo: eight bits, JPEG, landmarks that are off, and facefit's own fit, whose errors the network has to live with.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from scipy.ndimage import gaussian_filter

from fitting.detail_network import input_maps, tangent_frame
from fitting.detail_observation import DetailObservation, DetailRegion, detail_region, observe
from fitting.fit import Fit, Fitter
from fitting.identity_network import CHIP, chip_matrix, chip_taps, cut_chip
from fitting.observation import Photo
from fitting.skin_appearance import skin_maps
from fitting.synthesis import SynthesisSettings, SyntheticPhoto, synthesize
from fitting.texture_map import solid_triangles
from morphable.detail import detail_normals, skin_vertices, uv_surface
from morphable.mesh import Mesh
from morphable.model import MorphableModel
from morphable.symmetry import mirrored_units
from morphable.uv import TexelTable, interpolate, sample_texture
from renderer.fill import extrapolate
from renderer.rasterize import barycentrics, rasterize

# Portraits, as people take them: what the network sees must be as fine as what it draws.
PORTRAITS = SynthesisSettings(size=512, head_share=(0.75, 1.0), lens_mm=(35.0, 200.0), yaw=35.0, detail=1.0)

_LANDMARK_NOISE_PX = 1.5  # of a 512 px photo: detectors' random part, apart from their conventions
_FARTHEST = 0.06  # of the map, 17 mm on the face: by how much a fit may be off along the skin
_BASE_TEXELS = 4.0  # deviation of the blur that leaves a photo's colours without fine pattern


class Example(NamedTuple):
    """One photo as the training wants it, or several with a leading axis; arrays of NumPy or JAX."""

    maps: Float[Any, "*batch size size 15"]  # `detail_network.input_maps`
    frame: Float[Any, "*batch size size 3"]  # `detail_network.tangent_frame`
    base: Float[Any, "*batch size size 3"]  # logarithm of the photo's colour without its fine pattern
    identity: Float[Any, "*batch identity"]  # the fit's, standard deviations
    expression: Float[Any, "*batch unit"]  # the fit's
    known: Float[Any, "*batch"]  # 1 where the truth is known
    turn: Float[Any, "*batch size size 3"]  # slopes that lead from the fit's normals to the true ones; 1 if known
    truth: Float[Any, "*batch size size"]  # the relief alone, mm, zeros where it is not known
    wrinkles: Float[Any, "*batch group half half"]  # mm that each group of wrinkles adds; at half the size
    drivers: Float[Any, "*batch group unit"]
    true_expression: Float[Any, "*batch unit"]
    chip: UInt8[Any, "*batch 150 150 3"]  # the photo, aligned for the identity network
    chip_uv: Float[Any, "*batch 150 150 2"]  # which place of the map each of its pixels shows
    chip_share: Float[Any, "*batch 150 150"]  # 1 where that is skin with relief


def example(
    fit: Fit,
    photo: Photo,
    size: int,
    mask: Bool[np.ndarray, "height width"] | None = None,
    region: DetailRegion | None = None,
    synthetic: SyntheticPhoto | None = None,
) -> Example:
    """A fitted photo as an example, of known truth if it is `synthetic`.

    A fit is off by a few mm along the skin, as wide as a wrinkle. So the truth of a texel is that of whatever place of
    the true head the photo shows there (`shown_places`), not of the texel's own. And shading shows what the coarse fit
    got wrong as it shows the relief on it: what is to be learned are the normals of the true head with its relief,
    seen from the fit's (`turn`).
    """
    region = detail_region(fit.model, size) if region is None else region
    observation = observe(fit, photo, size, mask, region=region)
    maps, frame, base = (np.asarray(x) for x in _maps(observation))
    units = len(fit.expression)
    relief = None if synthetic is None else synthetic.scene.relief
    groups, half = (0, size // 2) if relief is None else (len(relief.wrinkles), size // 2)
    truth, wrinkles = np.zeros((size, size)), np.zeros((groups, half, half))
    turn = np.zeros((size, size, 3))
    drivers, true = np.zeros((groups, units)), np.zeros(units)
    if synthetic is not None and relief is not None:
        places, known = shown_places(fit, synthetic, observation)
        displacement = relief.displacement(synthetic.truth.expression)
        turn = _turn(fit, synthetic, displacement, observation, places, known)
        true, drivers = np.asarray(synthetic.truth.expression), np.asarray(relief.drivers)
        truth = _carried(displacement[None], places)[0] * region.relief
        coarse = np.asarray(places).reshape(half, 2, half, 2, 2).mean(axis=(1, 3))
        wrinkles = _carried(jnp.asarray(averaged(np.asarray(relief.wrinkles), half)), coarse)
    chip, chip_uv, chip_share = _chip(fit, photo, region.bare)
    return Example(
        maps=maps.astype(np.float16),
        frame=frame.astype(np.float16),
        base=_without_pattern(base, maps[..., 6]).astype(np.float16),
        identity=fit.identity.astype(np.float32),
        expression=fit.expression.astype(np.float32),
        known=np.float32(relief is not None),
        turn=turn.astype(np.float16),
        truth=truth.astype(np.float16),
        wrinkles=wrinkles.astype(np.float16),
        drivers=drivers.astype(np.float32),
        true_expression=true.astype(np.float32),
        chip=chip,
        chip_uv=chip_uv.astype(np.float32),
        chip_share=chip_share.astype(np.float16),
    )


@eqx.filter_jit
def _maps(observation: DetailObservation):
    colour = jnp.log(jnp.maximum(observation.colour, 1e-3))
    return input_maps(observation), tangent_frame(observation)[1], colour


def _without_pattern(colour: np.ndarray, weight: np.ndarray) -> np.ndarray:
    share = gaussian_filter(weight, _BASE_TEXELS)[..., None]
    smooth = gaussian_filter(colour * weight[..., None], (_BASE_TEXELS, _BASE_TEXELS, 0)) / np.maximum(share, 1e-3)
    return np.where(share > 1e-2, smooth, colour)


def shown_places(
    fit: Fit, synthetic: SyntheticPhoto, observation: DetailObservation
) -> tuple[Float[np.ndarray, "size size 2"], Bool[np.ndarray, "size size"]]:
    """Which place (uv) of the true head's map the photo shows at each texel of the fit's, and whether it does.

    Where the photo does not show the fit's skin, the differences around are continued.
    """
    model, size = fit.model, len(observation.weight)
    own = np.stack(np.meshgrid(*2 * [(np.arange(size) + 0.5) / size]), axis=-1)
    pixels = fit.camera.project(jnp.asarray(observation.surface.points).reshape(-1, 3))
    bounds = np.array([fit.camera.width, fit.camera.height], np.float32)
    finer = synthetic.camera.resize(2 * fit.camera.height, 2 * fit.camera.width)
    seen = _seen_uv(jnp.asarray(synthetic.vertices), jnp.asarray(solid_triangles(model)), model.uv, finer)
    found = np.asarray(sample_texture(seen, jnp.asarray(pixels) / bounds)).reshape(size, size, 3)
    away = found[..., :2] / np.maximum(found[..., 2:], 1e-3) - own
    # At outlines two places mix; and what is far off is another part of the head.
    known = (found[..., 2] > 0.999) & (np.abs(away).max(axis=-1) < _FARTHEST) & (np.asarray(observation.weight) > 0.05)
    away = np.where(known[..., None], away, 0.0)
    return own + extrapolate(away, known.astype(float), np.zeros(2), fade=0.02), known


def _turn(fit: Fit, synthetic: SyntheticPhoto, relief, observation: DetailObservation, places, known):
    """Slopes along the two tangents by which the true normals differ from the fit's, and where they are known."""
    table = skin_maps(fit.model, len(relief)).table
    normals = _relief_normals(jnp.asarray(synthetic.vertices), fit.model, table, relief)
    seen = np.moveaxis(_carried(jnp.moveaxis(normals, -1, 0), places), 0, -1)
    # Head axes of the truth, of the camera, of the fit.
    seen = seen @ np.asarray(synthetic.camera.rotation).T @ np.asarray(observation.rotation)
    tangents = np.asarray(tangent_frame(observation)[0])
    facing = np.sum(seen * np.asarray(observation.surface.normals), axis=-1)
    slope = -np.einsum("ijc,ijkc->ijk", seen, tangents) / np.maximum(facing, 0.2)[..., None]
    known = known & (facing > 0.2)
    return np.concatenate([slope * known[..., None], known[..., None]], axis=-1)


@eqx.filter_jit
def _relief_normals(vertices, model: MorphableModel, table: TexelTable, relief) -> Float[Array, "size size 3"]:
    return detail_normals(uv_surface(Mesh(vertices, model.triangles, model.uv), table), relief)


@eqx.filter_jit
def _seen_uv(vertices, triangles, uv, camera) -> Float[Array, "row column 3"]:
    """The uv that each pixel shows, and 1; zeros where it shows none."""
    points = camera.to_camera(vertices)
    pixels, depth = camera.project_camera(points), points[:, 2]
    ids = rasterize(pixels, depth, triangles, camera.height, camera.width, near=camera.near)
    columns = jnp.concatenate([uv, jnp.ones((len(uv), 1))], axis=1)
    return interpolate(columns, triangles, ids, barycentrics(pixels, depth, triangles, ids))


def _carried(maps: Float[Array, "channel fine fine"], places: np.ndarray) -> Float[np.ndarray, "channel size size"]:
    """Maps as seen at places (uv) of them: four lookups a texel."""
    stacked, step = jnp.moveaxis(jnp.asarray(maps), 0, -1), 0.25 / len(places)
    shifts = [(a * step, b * step) for a in (-1, 1) for b in (-1, 1)]
    looked = [np.asarray(sample_texture(stacked, jnp.asarray(places + np.array(s), jnp.float32))) for s in shifts]
    return np.moveaxis(np.mean(looked, axis=0), -1, 0)


def averaged(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps (last two axes) reduced to size x size by means of blocks."""
    factor = maps.shape[-1] // size
    if factor * size != maps.shape[-1]:
        raise ValueError(f"averaged: got maps of {maps.shape[-1]} texels, expected a multiple of {size}.")
    return maps.reshape(*maps.shape[:-2], size, factor, size, factor).mean(axis=(-3, -1))


def _chip(fit: Fit, photo: Photo, region) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The photo's aligned chip, the uv that each of its pixels shows, and how much of it is skin with relief."""
    matrix = np.asarray(chip_matrix(fit.landmarks2d))
    corners = np.array([[0, 0], [CHIP, 0], [0, CHIP], [CHIP, CHIP]]) @ matrix[:, :2].T + matrix[:, 2]
    low = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, [photo.width - 1, photo.height - 1])
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, low + 1, [photo.width, photo.height])
    part = photo.pixels[low[1] : high[1], low[0] : high[0]]
    # Pictures of many sizes would be as many programs: this one is cut to a fixed size first.
    side = int(2 ** np.ceil(np.log2(max(part.shape[:2]))))
    padded = np.zeros((side, side, 3), np.float32)
    padded[: part.shape[0], : part.shape[1]] = part
    moved = matrix - np.array([[0, 0, low[0]], [0, 0, low[1]]])
    chip = np.asarray(_cut(jnp.asarray(padded), jnp.asarray(moved, jnp.float32), chip_taps(matrix)))
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    mesh = fit.mesh
    uv, share = _chip_uv(
        jnp.asarray(np.asarray(fit.camera.project(mesh.vertices)) @ inverse[:, :2].T + inverse[:, 2], jnp.float32),
        fit.camera.to_camera(mesh.vertices)[:, 2],
        jnp.asarray(solid_triangles(fit.model)),
        fit.model.uv,
        jnp.asarray(region, jnp.float32),
    )
    return np.rint(np.clip(chip, 0, 255)).astype(np.uint8), np.asarray(uv), np.asarray(share)


_cut = eqx.filter_jit(cut_chip)


@eqx.filter_jit
def _chip_uv(pixels, depth, triangles, uv, region):
    ids = rasterize(pixels, depth, triangles, CHIP, CHIP)
    found = interpolate(uv, triangles, ids, barycentrics(pixels, depth, triangles, ids))
    return found, jnp.where(ids >= 0, sample_texture(region[..., None], found)[..., 0], 0.0)


# ------------------------------------------------------------------------------------------------------ mirror


class Mirror(NamedTuple):
    """What the mirror image of a person is, in coefficients."""

    identity: Float[np.ndarray, "identity identity"]  # of a column of coefficients
    units: Int[np.ndarray, " unit"]  # the unit of the other side


def mirror_of(model: MorphableModel) -> Mirror | None:
    """The mirror of a model whose map and identity space are symmetric; None for others."""
    twin, uv = np.asarray(model.mirror), np.asarray(model.uv, np.float64)
    skin = skin_vertices(model)
    modes = np.asarray(model.shape.modes, np.float64)
    plain = modes.reshape(-1, modes.shape[-1])
    flipped = (modes[twin] * np.array([-1, 1, 1])[:, None]).reshape(plain.shape)
    matrix = np.linalg.lstsq(plain, flipped, rcond=None)[0]
    left_over = np.linalg.norm(plain @ matrix - flipped) / max(float(np.linalg.norm(flipped)), 1e-9)
    if np.abs(uv[twin] - [[1, 0]] - uv * [[-1, 1]])[skin].max() > 1e-4 or left_over > 0.02:
        return None
    return Mirror(matrix.astype(np.float32), mirrored_units(model.expression_names))


def mirrored(example: Example, mirror: Mirror) -> Example:
    """The same photos as in a mirror; its own inverse."""
    maps = example.maps[..., ::-1, :].copy()
    # x of positions and of normals in camera axes; and the slope along the first tangent, which points along u.
    maps[..., [7, 10, 13]] *= -1
    turn = example.turn[..., ::-1, :] * np.array([-1, 1, 1], example.turn.dtype)
    frame = example.frame[..., ::-1, :] * np.array([1, -1, 1], example.frame.dtype)
    chip_uv = example.chip_uv[..., ::-1, :].copy()
    chip_uv[..., 0] = np.where(example.chip_share[..., ::-1] > 0, 1 - chip_uv[..., 0], chip_uv[..., 0])
    return example._replace(
        maps=maps,
        frame=frame,
        base=example.base[..., ::-1, :],
        identity=(example.identity @ mirror.identity.T).astype(np.float32),
        expression=example.expression[..., mirror.units],
        turn=turn,
        truth=example.truth[..., ::-1],
        wrinkles=example.wrinkles[..., ::-1],
        drivers=example.drivers[..., mirror.units],
        true_expression=example.true_expression[..., mirror.units],
        chip=example.chip[..., ::-1, :],
        chip_uv=chip_uv,
        chip_share=example.chip_share[..., ::-1],
    )


# ------------------------------------------------------------------------------------------------------ people


def synthetic_person(fitter: Fitter, seed: int, photos: int, size: int, settings: SynthesisSettings, region=None):
    """Examples of one random person; photos whose fit failed are left out."""
    made, first = [], None
    for k in range(photos):
        # Seeds of the photos of one person lie a billion apart, so that no two people share a photo's scene.
        synthetic = synthesize(fitter.model, seed + 1_000_000_000 * k, settings, first)
        first = synthetic.scene if first is None else first
        fit = fitter.fit(synthetic.photo, synthetic.as_face(_LANDMARK_NOISE_PX, seed + k))
        if fit.result == "failed":
            continue
        made.append(example(fit, synthetic.photo, size, None, region, synthetic))
    return made


def save_person(path: Path, examples: Sequence[Example]) -> None:
    """Write one person's examples as a plain .npz: read at once, not unpacked."""
    stacked = Example(*(np.stack(values) for values in zip(*examples, strict=True)))
    part = path.with_suffix(".part.npz")
    np.savez(part, allow_pickle=False, **stacked._asdict())
    part.replace(path)


def read_person(path: Path) -> Example:
    """One person's examples, stacked."""
    with np.load(path, allow_pickle=False) as stored:
        return Example(*(stored[name] for name in Example._fields))
