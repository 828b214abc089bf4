"""The soft rasterizer of the literature (Liu, Li, Chen & Li 2019): every face near a pixel has a say in its colour.

Face j reaches pixel i with probability D = sigmoid(+- d^2 / sigma), d being the distance in px from the pixel's centre
to the face's edges, the sign + inside. The faces' colours C are averaged with weights proportional to D exp(z / gamma),
the background with exp(epsilon / gamma), z being the depth normalised to 1 at the near and 0 at the far end of a range
(eq. 1-5 of the paper); the silhouette is 1 - prod(1 - D) (eq. 6). As sigma and gamma go to 0 this is the hard picture.

`sigma` is in px^2, so that it says how wide edges are whatever the picture's size. The paper's and PyTorch3D's sigma
is in squared NDC units, of which a picture's shorter side has 2: sigma = sigma_ndc (shorter side / 2)^2, at 224 px
1.25 px^2 for the usual 1e-4.
"""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from morphable.mesh import Mesh, unit
from renderer.camera import AbstractCamera
from renderer.expand import divide, owners, prefix, take
from renderer.rasterize import DepthSteps, max3, min3
from renderer.shade import CLAY, lambert

_CUTOFF = 1e-4
_THINNEST = 1e-3  # px; of thinner triangles rounding would decide which side is inside
_CHUNK = 1024  # pixels
_BLOCK = 4  # side of a tile, px
_MOST_TILES = 2**31 - 1
_EMPTY = 0x7FFFFFFF


class SoftRendering(eqx.Module):
    """What a camera sees of a mesh through the soft rasterizer."""

    colour: Float[Array, "height width 3"]  # linear RGB times the faces' weights: over black
    coverage: Float[Array, "height width"]  # the faces' weights together; the rest, to 1, is the background's
    silhouette: Float[Array, "height width"]  # 1 - prod(1 - D): how probably any face reaches the pixel
    triangle_ids: Int[Array, "height width count"]  # the faces that were considered, nearest first, -1 for none

    def over(self, background: Float[Array, "height width 3"]) -> Float[Array, "height width 3"]:
        """The picture before a background in linear RGB."""
        return self.colour + (1.0 - self.coverage[:, :, None]) * background


def blur_radius(sigma: float | Float[Array, ""]) -> Float[Array, ""]:
    """Distance in px at which sigmoid(-d^2 / sigma) has fallen to 1e-4: farther faces are not considered."""
    return jnp.sqrt(jnp.asarray(sigma) * float(np.log(1.0 / _CUTOFF - 1.0)))


def soft_render(
    mesh: Mesh,
    camera: AbstractCamera,
    light: Float[Array, "9 3"],
    *,
    sigma: float | Float[Array, ""] = 1.0,
    gamma: float | Float[Array, ""] = 1e-3,
    count: int = 10,
    epsilon: float | Float[Array, ""] = 1e-3,
    depth_range: tuple[float, float] | Float[Array, "2"] | None = None,
    cull: bool = False,
) -> SoftRendering:
    """Picture of a diffuse mesh under a spherical-harmonics light in camera axes, blended from several faces a pixel.

    At each pixel the `count` nearest of the faces within `blur_radius(sigma)` are blended; `soft_faces` says which.
    The paper blends all of them. If there are many more than `count`, those in front, though farther aside, keep out
    the one behind the pixel, and the silhouette gets holes: so let `count` grow with sigma and with the mesh's density
    (10 000 faces that fill half of 224 px, sigma 1.25: 32 faces in reach, 13 without those seen from behind).
    Each is shaded as `render` does, with mesh.albedo, or grey. Attributes are perspective-correct, and beside a face
    they are those of its clamped barycentrics, as in the paper's code. Everything but the choice of the faces has
    derivatives, forward and reverse. sigma (px^2) and gamma must be positive. On CPU, map over images with
    `jax.lax.map`: under `vmap` the gradient of each takes about five times as long (see `_blend`).

    `depth_range` (mm) is where z is 1 and 0; depths outside it go on linearly. By default it reaches from the nearest
    vertex to as far behind the farthest as that is behind the nearest, and has no derivative. So z is at least 1/2,
    and unlike the paper's fixed range it makes gamma mean the same for objects of any size, at any distance.
    The paper considers faces seen from behind too, lit here as if they faced the camera; `cull` leaves them out.
    """
    dtype = mesh.vertices.dtype
    sigma, gamma, epsilon = (jnp.asarray(v, dtype) for v in (sigma, gamma, epsilon))
    limits = None if depth_range is None else jnp.asarray(depth_range, dtype)
    return _soft_render(mesh, camera, light, sigma, gamma, epsilon, limits, count, cull)


# Numbers become arrays before they come here, so that sweeping them does not compile again.
@eqx.filter_jit
def _soft_render(mesh, camera, light, sigma, gamma, epsilon, depth_range, count, cull):
    height, width = camera.height, camera.width
    points = camera.to_camera(mesh.vertices)
    pixels, depth = camera.project_camera(points), points[:, 2]
    valid = _drawable(pixels, depth, camera.near)
    # Derivatives pass through vertices that are never drawn, where they must not become NaN.
    x, y, z = (jnp.where(valid, v, 1.0) for v in (pixels[:, 0], pixels[:, 1], depth))
    nearest = _nearest(
        pixels, depth, mesh.triangles, height, width, blur_radius(sigma), count, camera.perspective, camera.near, cull
    )
    if depth_range is None:
        last = jnp.max(jnp.where(valid, depth, -jnp.inf))
        first = jnp.where(jnp.any(valid), jnp.min(jnp.where(valid, depth, jnp.inf)), 0.0)
        extent = jnp.where(last > first, last - first, 1.0)
        depth_range = lax.stop_gradient(jnp.stack([first, first + 2.0 * extent]))

    normals = jnp.matmul(mesh.normals, camera.rotation.T, precision="highest")
    albedo = jnp.full_like(points, CLAY) if mesh.albedo is None else mesh.albedo
    corners = [mesh.triangles[:, k] for k in range(3)]
    x, y, z = ([v[c] for c in corners] for v in (x, y, z))
    behind = _doubled_area(x, y) > 0
    flip = jnp.where(behind, -1.0, 1.0).astype(normals.dtype)
    # Tables by face, one-dimensional: such gathers and their transposes are the fastest on CPU.
    tables = (
        (x, y, z),
        [[normals[:, d][c] * flip for c in corners] for d in range(3)],
        [[albedo[:, d][c] for c in corners] for d in range(3)],
    )

    # Only pixels that any face reaches are worked on, in chunks that stay in a processor's cache.
    reached = nearest[0] >= 0
    order = prefix(reached.astype(jnp.int32), jnp.add)
    chunk = min(_CHUNK, height * width)
    chunks = -(-height * width // chunk)
    slot = jnp.where(reached, order - 1, chunks * chunk)
    pixel_of = jnp.zeros(chunks * chunk + 1, jnp.int32).at[slot].set(jnp.arange(height * width, dtype=jnp.int32))

    # Reverse mode computes a chunk again rather than keep the intermediate results of all.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def blend_chunk(tables, light, settings, start):
        pixel = lax.dynamic_slice(pixel_of, (start,), (chunk,))
        used = start + jnp.arange(chunk, dtype=jnp.int32) < order[-1]
        ids = jnp.where(used[None], nearest[:, pixel], -1)
        column, row = pixel % width, lax.div(pixel, jnp.int32(width))
        at = (column.astype(light.dtype) + 0.5, row.astype(light.dtype) + 0.5)
        return _blend(tables, light, settings, ids, at, start < order[-1], camera.perspective)

    settings = (sigma, gamma, epsilon, depth_range)
    starts = jnp.arange(chunks, dtype=jnp.int32) * chunk
    _, blended = lax.scan(lambda _, start: (None, blend_chunk(tables, light, settings, start)), None, starts)
    blended = jnp.moveaxis(blended, 1, 0).reshape(5, chunks * chunk)
    blended = jnp.where(reached[None], blended[:, jnp.maximum(order - 1, 0)], 0.0).reshape(5, height, width)
    return SoftRendering(
        colour=jnp.moveaxis(blended[:3], 0, -1),
        coverage=blended[3],
        silhouette=blended[4],
        triangle_ids=jnp.moveaxis(nearest, 0, -1).reshape(height, width, count),
    )


def _blend(tables, light, settings, ids, at, occupied, perspective):
    """Colour, coverage and silhouette (5, pixel) of the faces ids (count, pixel) around the picture points `at`.

    In three stages, each a conditional that skips chunks without pixels. There are three rather than one since XLA's
    CPU compiler fuses whatever lies within one, and then computes shared intermediate results again for each of the
    27 outputs of the backward pass: in one stage the gradient takes five times as long. (So it does under vmap, which
    turns conditionals into selections.)
    """
    sigma, gamma, epsilon, depth_range = settings
    position, normals, albedo = tables
    seen, faces = ids >= 0, jnp.maximum(ids, 0)

    def gather(corners):
        return [take(v, faces) for v in corners]

    def geometry(position):
        x, y, z = (gather(v) for v in position)
        exponent, clamped = _distance_and_weights([v - at[0][None] for v in x], [v - at[1][None] for v in y])
        weights = [w / v for w, v in zip(clamped, z, strict=True)] if perspective else clamped
        per_total = 1.0 / (weights[0] + weights[1] + weights[2])
        weights = [w * per_total for w in weights]
        return weights, exponent / sigma, _mix(weights, z)

    def shade(weights, normals, albedo):
        normal = unit(jnp.stack([_mix(weights, gather(v)) for v in normals], axis=-1))
        reflectance = jnp.stack([_mix(weights, gather(v)) for v in albedo], axis=-1)
        return lambert(reflectance, normal, light)

    def aggregate(exponent, depth, colour):
        # log D and log(1 - D), each without cancellation.
        excess = jnp.log1p(jnp.exp(-jnp.abs(exponent)))
        log_probability = jnp.minimum(exponent, 0.0) - excess
        log_rest = jnp.where(seen, -jnp.maximum(exponent, 0.0) - excess, 0.0)
        z = (depth_range[1] - depth) / (depth_range[1] - depth_range[0])
        # Shifting all exponents alike changes no weight, and the largest cannot overflow then.
        top = lax.stop_gradient(jnp.maximum(jnp.max(jnp.where(seen, z, -jnp.inf), axis=0), epsilon))
        weights = jnp.exp(jnp.where(seen, log_probability + (z - top[None]) / gamma, -jnp.inf))
        background = jnp.exp((epsilon - top) / gamma)
        per_total = 1.0 / (jnp.sum(weights, axis=0) + background)
        channels = [jnp.sum(weights * colour[..., d], axis=0) * per_total for d in range(3)]
        silhouette = -jnp.expm1(jnp.sum(log_rest, axis=0))
        return jnp.stack([*channels, 1.0 - background * per_total, silhouette])

    weights, exponent, depth = _stage(occupied, geometry, position)
    colour = _stage(occupied, shade, weights, normals, albedo)
    return _stage(occupied, aggregate, exponent, depth, colour)


def _stage(occupied, function: Callable, *arguments):
    """function(*arguments), or zeros of that shape if not `occupied`."""
    shapes = jax.eval_shape(function, *arguments)
    return lax.cond(
        occupied, function, lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), *arguments
    )


def _distance_and_weights(x, y):
    """+- d^2 of the origin to triangles (+ inside), and its barycentrics clamped to [0, 1], not normalised."""
    areas = [x[i] * y[j] - y[i] * x[j] for i, j in ((1, 2), (2, 0), (0, 1))]
    area = _doubled_area(x, y)  # more precise than the sum of the three
    solid = jnp.abs(area) > 1e-8  # no triangle that `_nearest` lets through has less, but its placeholders may
    per_area = 1.0 / jnp.where(solid, area, 1.0)
    weights = [jnp.where(solid, a * per_area, 1 / 3) for a in areas]
    inside = solid & (min3(*weights) >= 0)

    squares = [_segment(x[i], y[i], x[j], y[j]) for i, j in ((0, 1), (1, 2), (2, 0))]
    # Chosen by order rather than with minimum, whose derivative asks which one equals the result: compilers may compute
    # these again there, rounded differently, and then none does. Two are equal wherever a corner is nearest.
    fixed = [lax.stop_gradient(v) for v in squares]
    others = jnp.where(fixed[1] <= fixed[2], squares[1], squares[2])
    square = jnp.where(fixed[0] <= jnp.minimum(fixed[1], fixed[2]), squares[0], others)
    return jnp.where(inside, square, -square), [jnp.clip(w, 0.0, 1.0) for w in weights]


def _segment(px, py, qx, qy):
    """Squared distance of the origin to the segment from p to q."""
    dx, dy = qx - px, qy - py
    square = dx * dx + dy * dy
    along = jnp.clip(-(px * dx + py * dy) / jnp.where(square > 0, square, 1.0), 0.0, 1.0)
    rx, ry = px + along * dx, py + along * dy
    return rx * rx + ry * ry


def _mix(weights, values):
    return weights[0] * values[0] + weights[1] * values[1] + weights[2] * values[2]


@functools.partial(jax.jit, static_argnames=("height", "width", "count", "perspective", "cull", "slots"))
def soft_faces(
    pixels: Float[Array, "vertex 2"],
    depth: Float[Array, "vertex"],
    triangles: Int[Array, "triangle 3"],
    height: int,
    width: int,
    radius: float | Float[Array, ""],
    count: int = 10,
    *,
    perspective: bool = True,
    near: float | Float[Array, ""] = 0.0,
    cull: bool = False,
    slots: int | None = None,
) -> Int[Array, "{height} {width} {count}"]:
    """Ids of the `count` nearest triangles among those within `radius` px of each pixel's centre, nearest first.

    Where there are fewer, -1 follows. Nearest is meant in depth, at the barycentrics of the centre clamped to the
    triangle; depth is quantised as in `rasterize`, and what falls into one step is ordered by id. Distances are taken
    to the triangles themselves, not snapped. Triangles with a vertex at or before `near`, or not finite, and those
    thinner than 1/1000 px are dropped whole; `cull` drops those seen from behind. There is no derivative.

    The box of each triangle, `radius` larger on all sides, is cut into tiles of 4 x 4 px, which `slots` slots take up
    in a loop until none is left: triangles of any size are exact. Then the depths are peeled off layer
    by layer (Everitt 2001): a scatter-min of the keys (depth step, id) that lie behind the layer before.
    """
    chosen = _nearest(pixels, depth, triangles, height, width, radius, count, perspective, near, cull, slots)
    return jnp.moveaxis(chosen, 0, -1).reshape(height, width, count)


def _nearest(pixels, depth, triangles, height, width, radius, count, perspective, near, cull, slots=None):
    """The ids of `soft_faces` as (count, pixel)."""
    size = triangles.shape[0]
    if count < 1:
        raise ValueError(f"count: got {count} faces a pixel, expected at least 1")
    if size == 0:
        return jnp.full((count, height * width), -1, jnp.int32)
    id_bits = max(1, (size - 1).bit_length())
    pixels, depth, radius = (lax.stop_gradient(jnp.asarray(v)).astype(jnp.float32) for v in (pixels, depth, radius))
    valid = _drawable(pixels, depth, near)
    corners = [triangles[:, k].astype(jnp.int32) for k in range(3)]
    x, y = ([take(jnp.where(valid, pixels[:, k], 0.0), c) for c in corners] for k in range(2))
    to_steps = DepthSteps.of(depth, valid, jnp.float32(jnp.inf), 31 - id_bits, perspective)
    z = to_steps.affine(jnp.where(valid, depth, 1.0))
    z = [take(z, c) for c in corners]
    doubled = _doubled_area(x, y)
    usable = take(valid, corners[0]) & take(valid, corners[1]) & take(valid, corners[2])
    longest = functools.reduce(jnp.maximum, [jnp.hypot(x[i] - x[j], y[i] - y[j]) for i, j in ((0, 1), (1, 2), (2, 0))])
    usable = usable & ((-doubled if cull else jnp.abs(doubled)) > _THINNEST * longest)
    (x0, x1), (y0, y1) = _reach(x, radius, width), _reach(y, radius, height)
    columns, rows = (jnp.maximum((w1 - w0 + _BLOCK) // _BLOCK, 0) for w0, w1 in ((x0, x1), (y0, y1)))
    tiles = jnp.where(usable, columns * rows, 0)

    # The number of tiles must fit into 31 bits even if every triangle covered the picture.
    group = max(1, _MOST_TILES // (-(-height // _BLOCK) * (-(-width // _BLOCK))))
    slots = slots or max(height * width // 4, 1024)
    # Tiles may reach over the picture's right and lower borders.
    padded_height, stride = height + _BLOCK - 1, width + _BLOCK - 1
    layers = jnp.full((count, padded_height * stride), _EMPTY, jnp.int32)
    for first in range(0, size, group):
        part = slice(first, min(first + group, size))
        faces = [v[part] for v in (*x, *y, *z)], [v[part] for v in (x0, y0, columns, tiles)]
        layers = _peel(layers, faces, radius, to_steps, (stride, id_bits, first, slots))
    layers = layers.reshape(count, padded_height, stride)[:, :height, :width].reshape(count, -1)
    return jnp.where(layers == _EMPTY, -1, layers & ((1 << id_bits) - 1))


def _peel(layers, faces, radius, to_steps, sizes):
    """Layers of sorted keys (count, pixel), with the keys of some triangles sorted into them."""
    stride, id_bits, first_id, slots = sizes
    reals, (x0, y0, columns, tiles) = faces
    end = prefix(tiles, jnp.add)
    total = end[-1]
    squared_radius = radius * radius

    def step(state):
        done, layers = state
        face, tile = owners(tiles, end, done, slots)
        ax, bx, cx, ay, by, cy, az, bz, cz = (take(v, face) for v in reals)
        idle = done + jnp.arange(slots, dtype=jnp.int32) >= total
        tile = jnp.where(idle, 0, tile)
        row = divide(tile, jnp.maximum(take(columns, face), 1))
        column = take(x0, face) + (tile - row * take(columns, face)) * _BLOCK
        row = take(y0, face) + row * _BLOCK
        column, row = jnp.where(idle, 0, column), jnp.where(idle, 0, row)

        doubled = _doubled_area([ax, bx, cx], [ay, by, cy])
        per_area = 1.0 / jnp.where(doubled == 0, 1.0, doubled)
        edges = []
        for px, py, qx, qy in ((bx, by, cx, cy), (cx, cy, ax, ay), (ax, ay, bx, by)):
            dx, dy = qx - px, qy - py
            square = dx * dx + dy * dy
            edges.append((px, py, dx, dy, 1.0 / jnp.where(square == 0, 1.0, square)))
        lowest, highest = min3(az, bz, cz), max3(az, bz, cz)
        low = face + first_id

        # A loop over a tile's pixels, with one-dimensional arrays: what vectorises on CPU. Pixels that are not hit get
        # a key that changes nothing: sending them to one common place would make each write wait for the last.
        def key_pixel(k, keys):
            j, i = k // _BLOCK, k % _BLOCK
            u, v = ((c + o).astype(jnp.float32) + 0.5 for c, o in ((column, i), (row, j)))
            squares, weights = [], []
            for px, py, dx, dy, per_square in edges:
                ox, oy = u - px, v - py
                along = jnp.clip((ox * dx + oy * dy) * per_square, 0.0, 1.0)
                rx, ry = ox - along * dx, oy - along * dy
                squares.append(rx * rx + ry * ry)
                weights.append((dx * oy - dy * ox) * per_area)
            hit = ((min3(*weights) >= 0) | (min3(*squares) < squared_radius)) & ~idle
            wa, wb, wc = (jnp.clip(w, 0.0, 1.0) for w in weights)
            value = jnp.clip((wa * az + wb * bz + wc * cz) / (wa + wb + wc), lowest, highest)
            key = jnp.where(hit, (to_steps.steps(value) << id_bits) | low, _EMPTY)
            return lax.dynamic_update_slice(keys, key, (k * slots,))

        tile_pixels = np.int32(_BLOCK * _BLOCK)
        keys = lax.fori_loop(np.int32(0), tile_pixels, key_pixel, jnp.zeros(slots * _BLOCK * _BLOCK, jnp.int32))
        corner = row * stride + column

        def peel_layer(k, state):
            before, peeled = state

            def lower(b, layer):
                pixel = corner + (b // _BLOCK * stride + b % _BLOCK)
                key = lax.dynamic_slice(keys, (b * slots,), (slots,))
                key = jnp.where(key > take(before, pixel), key, _EMPTY)
                return layer.at[pixel].min(key, mode="promise_in_bounds")

            earlier = jnp.min(jnp.where(layers > before[None], layers, _EMPTY), axis=0)
            layer = lax.fori_loop(np.int32(0), tile_pixels, lower, earlier)
            return layer, lax.dynamic_update_slice(peeled, layer[None], (k, 0))

        none = jnp.full(layers.shape[1], -1, jnp.int32)
        _, layers = lax.fori_loop(np.int32(0), np.int32(layers.shape[0]), peel_layer, (none, layers))
        return done + slots, layers

    return lax.while_loop(lambda s: s[0] < total, step, (jnp.int32(0), layers))[1]


def _drawable(pixels, depth, near):
    return jnp.isfinite(pixels[:, 0]) & jnp.isfinite(pixels[:, 1]) & jnp.isfinite(depth) & (depth > near)


def _doubled_area(x, y):
    """Twice the signed areas of triangles; positive if clockwise in the picture, for y points down."""
    return (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])


def _reach(corners, radius, size):
    """First and last pixel whose centre lies within radius of triangles' extent, clipped to the picture."""
    first = jnp.ceil(jnp.clip(min3(*corners) - radius - 0.5, -1.0, size + 1.0)).astype(jnp.int32)
    last = jnp.floor(jnp.clip(max3(*corners) + radius - 0.5, -2.0, size + 1.0)).astype(jnp.int32)
    return jnp.maximum(first, 0), jnp.minimum(last, size - 1)
