"""Detail by optimisation: shape from shading on a fitted head, in its map, from all photos of a person at once.

The logarithm of a photo over what the fit expects (`fitting.detail_observation`) is explained as

    shading(D) - cavity(D) + pigments + light,

with one displacement D and one set of pigments for all photos, and a smooth error of the light for each. What tells
them apart:

- Light that is nearly white darkens all channels alike; skin's colour changes along the absorption of melanin and of
  blood (Tsumura et al. 1999, "Independent-component analysis of skin color image"), and along grey where stubble is.
- A displacement is a height, so its shading has a sign on either side of a groove, and follows the light's direction;
  a dark spot that is dark all around has no height that would explain it.
- Colour has sharp, sparse edges, skin's normals change little from place to place (Barron & Malik 2015, "Shape,
  illumination, and reflectance from shading"), and light's errors are broader than both.
- Deep is dark under any light (Beeler et al. 2010), which tells of grooves under a light from the front.

Every quantity has a standard deviation for a square millimetre of skin, so that maps of any size give the same energy.
The energy is minimised by Gauss-Newton steps with reweighted robust kernels, each solved by conjugate gradients.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from fitting.compilation import compiled
from fitting.detail_observation import DetailObservation, median_ratio, stacked
from fitting.terms import AbstractKernel, Huber
from morphable.detail import UVSurface, limited, slopes
from morphable.mesh import unit

# What melanin and blood take from the logarithms of linear red, green and blue, and what takes from all alike.
_ABSORPTION = np.array([[0.45, 0.75, 1.0], [0.1, 0.75, 0.65], [1.0, 1.0, 1.0]])
_PIGMENTS = (_ABSORPTION / np.linalg.norm(_ABSORPTION, axis=1, keepdims=True)).astype(np.float32)
_NODES = 16  # of the light's error, in a row: 17 mm on the face of the default model
_BLOCKS = 32  # in a row, over whose means D is broad: 9 mm
_LARGEST_MM2 = 9.0  # of a texel; larger ones lie where the map is squeezed, beside the face
_FINEST = 1e-3  # mm; the kernel |D| is rounded off below it
_COARSEST = 8  # nodes in a row of the solver's coarsest grid
_SHALLOW = 0.02  # mm; over which the darkening of cavities sets in


class DetailError(ValueError):
    """Observations that do not go together: what, got, expected, remedy."""


@dataclasses.dataclass(frozen=True)
class DetailSettings:
    """Standard deviations of what is unknown, for a square mm of skin; cut-offs in standard deviations.

    Logarithms are natural, of linear colour. Beyond its cut-off a robust term's cost is linear.
    """

    steps: int = 8  # Gauss-Newton steps
    inner_steps: int = 12  # of conjugate gradients in each
    noise: float = 0.016  # logarithm: of a photo, with its blocks of compression
    dark: float = 0.005  # linear colour of the usual exposure: dark skin's logarithm is noisier
    outlier: float = 1.8  # cut-off of the photo's residuals: gloss, edges of shadows, hairs
    cavity: float = 0.3  # logarithm by which a groove darkens for each mm below the skin around it
    cavity_mm: float = 1.5  # deviation of what is "around"
    displacement_mm: float = 4.0  # hardly a constraint; smoothness says what skin is like
    sparsity_mm: float = 40.0  # mean of |D|: skin without detail stays without
    broad_mm: float = 0.06  # of D's mean over 9 mm x 9 mm: broader shape is the linear model's
    slope: float = 0.35  # of D: detail does not turn the coarse surface
    bend: float = 0.09  # 1/mm; difference of normals between neighbours 1 mm apart
    bend_outlier: float = 1.0  # the bottom of a wrinkle bends more than other skin
    asymmetry_mm: float = 1.0  # difference between the two sides, where both or only the other are seen
    melanin: float = 0.5  # logarithm (length of the RGB vector), from the fit's albedo
    blood: float = 0.5
    grey: float = 0.04  # stubble, and all that is neither
    pigment_outlier: float = 1.0  # moles and stubble are far from other skin
    melanin_edge: float = 0.1  # the same between neighbours 1 mm apart: moles have edges, most skin has none
    blood_edge: float = 0.15
    grey_edge: float = 0.02
    edge_outlier: float = 0.5
    light: float = 0.03  # logarithm: a photo's light against the fit's
    light_slope: float = 0.01  # the same between nodes 17 mm apart


class Unknowns(eqx.Module):
    """What explains the photos, besides the fit."""

    displacement: Float[Array, "row column"]  # mm
    pigments: Float[Array, "row column 3"]  # logarithms along the three absorptions
    light: Float[Array, "photo 16 16 3"]  # logarithm, at nodes between which it is linear


class _Rows(eqx.Module):
    """Weighted least squares of one term, about the present unknowns: sum of weight * (rows(x) - target)^2 / 2."""

    rows: Callable[[Unknowns], Array]  # linear
    target: Array
    weight: Array


class _Scene(eqx.Module):
    """What stays the same from step to step."""

    observations: DetailObservation  # with a leading axis of photos
    tone: Float[Array, "photo 3"]  # of each photo's ratio: exposure and white balance
    surface: UVSurface  # of the first photo
    flip: Int[Array, "row column"]  # flat index of the texel on the other side
    area: Float[Array, "row column"]  # mm^2 of a texel
    seen: Float[Array, "row column"]  # 0 to 1, by any photo
    free: Float[Array, "row column"]  # 1 where D may differ from 0: seen here or on the other side
    variance: Float[Array, "photo row column 3"]  # of the photos' noise


def optimise_detail(
    observations: Sequence[DetailObservation],
    mirror_uv: Float[Array, "row column 2"] | Float[np.ndarray, "row column 2"],
    *,
    start: Float[Array, "row column"] | Float[np.ndarray, "row column"] | None = None,
    settings: DetailSettings | None = None,
) -> tuple[Float[Array, "row column"], Float[Array, "row column 3"], list[dict[str, float]]]:
    """Displacement (mm), change of the logarithm of the linear albedo, and the energy of each term before every step.

    The photos show one person, with one expression if the displacement is to be exact. `mirror_uv` says where the
    other side of each texel lies (`fitting.texture_map.texture_layout`); `start` is a displacement to begin from. The
    displacement is 0 where neither a photo shows the skin nor its mirror image.
    """
    settings = DetailSettings() if settings is None else settings
    sizes = {o.weight.shape for o in observations}
    shape = np.shape(mirror_uv)[:2]
    if sizes != {shape} or (start is not None and np.shape(start) != shape):
        raise DetailError(
            f"optimise_detail: got {len(observations)} observations of sizes {sorted(sizes)}, mirror_uv of {shape} and "
            f"start of {None if start is None else np.shape(start)}; expected one or more, all of one size. "
            "Observe all photos at the same size."
        )
    both = stacked(observations)
    begin = jnp.zeros(shape, jnp.float32) if start is None else jnp.asarray(start, jnp.float32)
    numbers = {name: jnp.asarray(v, jnp.float32) for name, v in vars(settings).items() if not name.endswith("steps")}
    found, rows = _optimise(both, jnp.asarray(mirror_uv), begin, numbers, settings.steps, settings.inner_steps)
    history = [{name: float(values[k]) for name, values in rows.items()} for k in range(settings.steps + 1)]
    return limited(found.displacement), found.pigments @ jnp.asarray(_PIGMENTS), history


def detail_energies(
    observations: Sequence[DetailObservation],
    mirror_uv: Float[Array, "row column 2"],
    unknowns: Unknowns,
    settings: DetailSettings,
) -> dict[str, Float[Array, ""]]:
    """The energy of each term, in JAX: to look at, or to differentiate."""
    numbers = {name: jnp.asarray(v, jnp.float32) for name, v in vars(settings).items()}
    return _energies(_scene(stacked(observations), mirror_uv, numbers), unknowns, numbers)


@compiled
def _optimise(observations, mirror_uv, start, numbers, steps: int, inner_steps: int):
    scene = _scene(observations, mirror_uv, numbers)
    photos, size = scene.observations.weight.shape[:2]
    unknowns = Unknowns(
        start * scene.free, jnp.zeros((size, size, 3)), jnp.zeros((photos, _NODES, _NODES, 3), jnp.float32)
    )

    def step(unknowns, _):
        before = _energies(scene, unknowns, numbers)
        return _gauss_newton(scene, unknowns, numbers, inner_steps), before

    unknowns, history = lax.scan(step, unknowns, None, length=steps)
    last = _energies(scene, unknowns, numbers)
    return unknowns, {name: jnp.append(history[name], last[name]) for name in last}


def _scene(observations: DetailObservation, mirror_uv, numbers) -> _Scene:
    weight = observations.weight
    size = weight.shape[-1]
    texel = jnp.clip(jnp.floor(mirror_uv * size), 0, size - 1).astype(jnp.int32)
    surface = jax.tree.map(lambda leaf: leaf[0], observations.surface)
    # A texel of 1 mm has duals of length 1.
    spread = jnp.linalg.norm(jnp.cross(surface.dual_u, surface.dual_v), axis=-1)
    area = jnp.where(surface.valid, jnp.minimum(1.0 / jnp.maximum(spread, 1e-3), _LARGEST_MM2), 0.0)
    # Mirror images outside the surface: the texel itself, which says nothing.
    flip = texel[..., 1] * size + texel[..., 0]
    flip = jnp.where(surface.valid, flip, jnp.arange(size * size).reshape(size, size))
    seen = jnp.clip(jnp.sum(weight, axis=0), 0.0, 1.0) * surface.valid
    tone = jax.vmap(median_ratio)(observations.ratio, weight)
    # Brightness at the usual exposure, whatever the photo's was.
    shade = jax.vmap(lambda o: o.shade(o.surface.normals) / jnp.mean(o.usual))(observations)
    shown = observations.plain * shade * jnp.exp(observations.ratio - tone[:, None, None])
    return _Scene(
        observations,
        tone,
        surface,
        flip,
        area,
        seen,
        ((seen > 0) | (_flipped(seen, flip) > 0)) * surface.valid.astype(jnp.float32),
        numbers["noise"] ** 2 + (numbers["dark"] / jnp.maximum(shown, 1e-3)) ** 2,
    )


def _flipped(values, flip):
    return values.reshape(-1)[flip]


# --------------------------------------------------------------------------------------------- parts of the forward


def _light(nodes: Float[Array, "photo 16 16 3"], size: int) -> Float[Array, "photo {size} {size} 3"]:
    """Linear between nodes, constant beyond the outermost."""
    place = (np.arange(size) + 0.5) / size * _NODES - 0.5
    first = np.clip(np.floor(place).astype(int), 0, _NODES - 2)
    share = np.clip(place - first, 0, 1)
    matrix = np.zeros((size, _NODES), np.float32)
    matrix[np.arange(size), first], matrix[np.arange(size), first + 1] = 1 - share, share
    return jnp.einsum("sj,krjc->krsc", matrix, jnp.einsum("ri,kijc->krjc", matrix, nodes))


def _light_transpose(values: Float[Array, "photo row column 3"]) -> Float[Array, "photo 16 16 3"]:
    """What each node gets of values at the texels."""
    nodes = jnp.zeros((len(values), _NODES, _NODES, 3), values.dtype)
    return jax.linear_transpose(lambda n: _light(n, values.shape[1]), nodes)(values)[0]


def _depth(displacement, texel_mm, cavity_mm):
    """How far below the skin around it each texel lies, mm: a Gaussian mean less the displacement."""
    reach = max(3, -(-3 * displacement.shape[0] // 256))
    offsets = jnp.arange(-reach, reach + 1)
    taps = jnp.exp(-0.5 * (offsets * texel_mm / cavity_mm) ** 2)
    taps = taps / jnp.sum(taps)
    around = displacement
    for axis in (0, 1):
        around = sum(taps[k] * jnp.roll(around, k - reach, axis) for k in range(2 * reach + 1))
    return around - displacement


def _forward(values, axis):
    return jnp.roll(values, -1, axis) - values


def _edges(values, surface: UVSurface):
    """Differences with the texels to the right and below, of a map with channels; 0 across borders."""
    across = jnp.where(surface.joined_u[..., None], _forward(values, 1), 0.0)
    return jnp.stack([across, jnp.where(surface.joined_v[..., None], _forward(values, 0), 0.0)])


def _bending(displacement, surface: UVSurface):
    """Second derivatives of D within the surface, 1/mm: along u, along v, and twist. 0 across borders."""
    u, v = (jnp.linalg.norm(dual, axis=-1) for dual in (surface.dual_u, surface.dual_v))
    before_u, before_v = jnp.roll(surface.joined_u, 1, 1), jnp.roll(surface.joined_v, 1, 0)
    step_u, step_v = _forward(displacement, 1), _forward(displacement, 0)
    uu = jnp.where(surface.joined_u & before_u, step_u - jnp.roll(step_u, 1, 1), 0.0)
    vv = jnp.where(surface.joined_v & before_v, step_v - jnp.roll(step_v, 1, 0), 0.0)
    square = surface.joined_u & surface.joined_v & jnp.roll(surface.joined_u, -1, 0)
    uv = jnp.where(square, _forward(step_v, 1), 0.0)
    return jnp.stack([uu * u * u, vv * v * v, np.sqrt(2.0) * uv * u * v], axis=-1)


def _blocks(displacement):
    """Means over squares of the map."""
    side = displacement.shape[0] // _BLOCKS
    used = side * _BLOCKS
    return displacement[:used, :used].reshape(_BLOCKS, side, _BLOCKS, side).mean(axis=(1, 3))


def _responses(observation: DetailObservation, du, dv):
    """Derivatives of the logarithm of the shade by the slopes per texel."""

    def shade(du, dv):
        surface = observation.surface
        normals = unit(surface.normals - du[..., None] * surface.dual_u - dv[..., None] * surface.dual_v)
        return jnp.log(observation.shade(normals))

    one, zero = jnp.ones_like(du), jnp.zeros_like(du)
    return tuple(jax.jvp(shade, (du, dv), way)[1] for way in ((one, zero), (zero, one)))


# ------------------------------------------------------------------------------------------------------------ terms


def _texel_mm(scene: _Scene):
    weight = scene.seen * scene.area
    return jnp.sqrt(jnp.sum(weight * scene.area) / jnp.maximum(jnp.sum(weight), 1e-6) + 1e-6)


class _Terms:
    """Terms as they are added, and about the diagonal of their normal equations."""

    def __init__(self, now: Unknowns):
        self.now = now
        self.rows: dict[str, _Rows] = {}
        self.energies: dict[str, Array] = {}
        self.diagonal = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-9), now)
        self.orders = [jnp.full_like(now.displacement, 1e-9) for _ in range(3)]  # D's, by order of differentiation

    def add(
        self,
        name: str,
        rows: Callable[[Unknowns], Array],
        target: Array | float,
        weight: Array,
        kernel: AbstractKernel | None = None,
        at: Array | None = None,
        order: int = 0,
        **diagonals: Callable[[Array], Array],
    ) -> None:
        """Residuals rows(x) - target, each row's times `weight`; `at` is rows(now) where it is at hand.

        `diagonals` gives, by unknown, the diagonal that rows of given weights add; `order` is how often D is
        differentiated in them.
        """
        square = jnp.sum(((rows(self.now) if at is None else at) - target) ** 2, axis=-1)
        share = jnp.ones_like(square) if kernel is None else kernel.weight(square)
        self.energies[name] = 0.5 * jnp.sum(weight * (square if kernel is None else kernel.rho(square)))
        self.rows[name] = _Rows(rows, jnp.asarray(target), (weight * share)[..., None])
        for unknown, of_weights in diagonals.items():
            more = of_weights(weight * share)
            total = getattr(self.diagonal, unknown) + more
            self.diagonal = eqx.tree_at(lambda d, name=unknown: getattr(d, name), self.diagonal, total)
            if unknown == "displacement":
                self.orders[order] = self.orders[order] + more


def _terms(scene: _Scene, now: Unknowns, numbers: dict[str, Array]) -> _Terms:
    """All terms as least squares about the present unknowns."""
    photos, area, surface = scene.observations, scene.area, scene.surface
    size, displacement = area.shape[0], now.displacement
    terms = _Terms(now)

    deviation = jnp.sqrt(scene.variance)
    du, dv = slopes(surface, displacement)
    by_u, by_v = jax.vmap(lambda o: _responses(o, du, dv))(photos)
    texel_mm = _texel_mm(scene)
    depth = _depth(displacement, texel_mm, numbers["cavity_mm"])
    # Skin above its surroundings is not brighter; a smooth step, or the solver's steps would jump.
    darkening = numbers["cavity"] * jax.nn.sigmoid(depth / _SHALLOW)

    def explained(x: Unknowns):
        a, b = slopes(surface, x.displacement)
        shading = by_u * a[..., None] + by_v * b[..., None]
        cavity = darkening * _depth(x.displacement, texel_mm, numbers["cavity_mm"])
        common = x.pigments @ _PIGMENTS - cavity[..., None]
        return (shading + common[None] + _light(x.light, size)) / deviation

    exact = jax.vmap(lambda o: o.shading_change(displacement))(photos)
    common = now.pigments @ _PIGMENTS - (darkening * depth)[..., None]
    error = exact + common[None] + _light(now.light, size) - photos.ratio + scene.tone[:, None, None]
    linear = explained(now)
    response = (0.5 * (by_u**2 + by_v**2) + 0.7 * darkening[..., None] ** 2) / scene.variance
    terms.add(
        "photos",
        explained,
        linear - error / deviation,
        scene.observations.weight * area,
        Huber(numbers["outlier"]),
        at=linear,
        order=1,
        displacement=lambda w: jnp.sum(response * w[..., None], axis=(0, -1)),
        pigments=lambda w: jnp.sum(w[..., None] / scene.variance, axis=0) @ (_PIGMENTS.T**2),
        light=lambda w: 0.4 * _light_transpose(w[..., None] / scene.variance),
    )

    free = scene.free * area
    height = lambda x: x.displacement[..., None]  # noqa: E731
    squared = {name: 1.0 / value**2 for name, value in numbers.items()}
    terms.add(
        "size",
        lambda x: height(x) / numbers["displacement_mm"],
        0.0,
        free,
        displacement=lambda w: w * squared["displacement_mm"],
    )
    # |D| / b is Huber's kernel of D / sqrt(b e), but below e.
    rounded = jnp.sqrt(numbers["sparsity_mm"] * _FINEST)
    terms.add(
        "sparsity",
        lambda x: height(x) / rounded,
        0.0,
        free,
        Huber(_FINEST / rounded),
        displacement=lambda w: w / rounded**2,
    )
    terms.add("breadth", lambda x: _blocks(x.displacement)[..., None] / numbers["broad_mm"], 0.0, jnp.ones(()))
    along_u, along_v = jnp.sum(surface.dual_u**2, axis=-1), jnp.sum(surface.dual_v**2, axis=-1)
    lengths = jnp.sqrt(jnp.stack([along_u, along_v], axis=-1))
    terms.add(
        "slopes",
        lambda x: jnp.stack(slopes(surface, x.displacement), axis=-1) * lengths / numbers["slope"],
        0.0,
        area,
        order=1,
        displacement=lambda w: 0.5 * (along_u + along_v) * w * squared["slope"],
    )
    stiff = 6.0 * (along_u**2 + along_v**2 + along_u * along_v) * squared["bend"]
    terms.add(
        "smoothness",
        lambda x: _bending(x.displacement, surface) / numbers["bend"],
        0.0,
        area,
        Huber(numbers["bend_outlier"]),
        order=2,
        displacement=lambda w: w * stiff,
    )
    # The other side as it is now: to look it up in every product would cost more than all else.
    terms.add(
        "symmetry",
        lambda x: height(x) / numbers["asymmetry_mm"],
        (_flipped(displacement, scene.flip) * scene.free / numbers["asymmetry_mm"])[..., None],
        free * _flipped(scene.seen, scene.flip),
        displacement=lambda w: w * squared["asymmetry_mm"],
    )

    sigma = jnp.stack([numbers[name] for name in ("melanin", "blood", "grey")])
    edge = jnp.stack([numbers[name + "_edge"] for name in ("melanin", "blood", "grey")])
    terms.add(
        "pigments",
        lambda x: (x.pigments / sigma)[..., None],
        0.0,
        free[..., None],
        Huber(numbers["pigment_outlier"]),
        pigments=lambda w: w / sigma**2,
    )
    terms.add(
        "edges",
        lambda x: (_edges(x.pigments, surface) / edge)[..., None],
        0.0,
        scene.free[..., None],
        Huber(numbers["edge_outlier"]),
        pigments=lambda w: 2.0 * jnp.sum(w, axis=0) / edge**2,
    )
    everywhere = jnp.ones(())
    terms.add(
        "light",
        lambda x: x.light / numbers["light"],
        0.0,
        everywhere,
        light=lambda w: squared["light"] + 4.0 * squared["light_slope"],
    )
    for name, axis in (("light across", 2), ("light along", 1)):
        terms.add(name, lambda x, axis=axis: jnp.diff(x.light, axis=axis) / numbers["light_slope"], 0.0, everywhere)
    return terms


def _energies(scene: _Scene, now: Unknowns, numbers) -> dict[str, Float[Array, ""]]:
    return _terms(scene, now, numbers).energies


# ----------------------------------------------------------------------------------------------------------- solver


def _gauss_newton(scene: _Scene, now: Unknowns, numbers, inner_steps: int) -> Unknowns:
    """One step: the reweighted normal equations by conjugate gradients, preconditioned by their diagonal."""
    every = _terms(scene, now, numbers)
    terms, diagonal = every.rows, every.diagonal

    def rows(x: Unknowns):
        return {name: term.rows(x) for name, term in terms.items()}

    transpose = jax.linear_transpose(rows, now)

    def pinned(x: Unknowns) -> Unknowns:
        return Unknowns(x.displacement * scene.free, x.pigments * scene.free[..., None], x.light)

    def gradient(residuals):
        return pinned(transpose({name: term.weight * residuals[name] for name, term in terms.items()})[0])

    def curvature(x: Unknowns):
        return gradient(rows(x))

    first = rows(now)
    downhill = jax.tree.map(jnp.negative, gradient({name: first[name] - term.target for name, term in terms.items()}))
    levels = _levels(every.orders)

    def precondition(x: Unknowns) -> Unknowns:
        alone = jax.tree.map(lambda leaf, d: leaf / d, x, diagonal)
        height = alone.displacement
        for up, level in levels:
            height = height + up @ ((up.T @ x.displacement @ up) / level) @ up.T
        return eqx.tree_at(lambda u: u.displacement, alone, height * scene.free)

    def advance(state, _):
        step, residual, direction, energy = state
        bent = curvature(direction)
        length = energy / jnp.maximum(_dot(direction, bent), 1e-30)
        step, residual = _add(length, direction, step), _add(-length, bent, residual)
        better = precondition(residual)
        after = _dot(residual, better)
        direction = _add(after / jnp.maximum(energy, 1e-30), direction, better)
        return (step, residual, direction, after), None

    begin = precondition(downhill)
    nothing = jax.tree.map(jnp.zeros_like, now)
    (step, *_), _ = lax.scan(advance, (nothing, downhill, begin, _dot(downhill, begin)), None, length=inner_steps)
    return _add(1.0, step, now)


# A hat function, 2 w wide in both directions, has about this energy over w^(2 - 2 order).
_HAT = (4 / 9, 8 / 3, 4.0)


def _levels(orders: Sequence[Array]) -> list[tuple[Float[np.ndarray, "size node"], Float[Array, "node node"]]]:
    """Grids ever coarser: their hat functions, and the diagonal of the normal equations for these.

    Corrections on all of them at once make the number of steps independent of the map's size (Bramble, Pasciak & Xu
    1990, "Parallel multilevel preconditioners"); with the texels alone, what is broad would take hundreds.
    """
    size = orders[0].shape[0]
    levels, width = [], 2
    while size // width >= _COARSEST:
        place = (np.arange(size) + 0.5) / width - 0.5
        up = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(size // width))).astype(np.float32)
        parts = [
            hat * width ** (2 - 2 * k) * (up.T @ values @ up) / width**2
            for k, (hat, values) in enumerate(zip(_HAT, orders, strict=True))
        ]
        levels.append((up, sum(parts[1:], parts[0])))
        width *= 2
    return levels


def _dot(a: Any, b: Any) -> Float[Array, ""]:
    return sum((jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)), jnp.zeros(()))


def _add(factor, a, b):
    """factor a + b."""
    return jax.tree.map(lambda x, y: factor * x + y, a, b)
