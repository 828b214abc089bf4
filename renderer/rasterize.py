"""Visibility: which triangle each pixel sees, exactly and in integers; then barycentrics, differentiably.

The two are kept apart on purpose. `rasterize` returns triangle ids and has no derivative; `barycentrics` recomputes
the weights from the vertices for given ids, so whatever is interpolated with them has forward and reverse derivatives.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from renderer.camera import AbstractCamera
from renderer.expand import divide, owners, prefix, take

_SUBPIXEL_BITS = 8  # vertices are snapped to 1/256 px, as GPUs do
_SUBPIXEL = 1 << _SUBPIXEL_BITS
_GUARD_PX = 1 << 15  # triangles that reach farther are clipped there; keeps edge functions within 49 bits
_EMPTY = 0x7FFFFFFF
_NOWHERE = 1 << 30  # coordinate of a vertex that is not inside
_BEHIND = 1 << 30  # flag of a triangle seen from behind
_LOG_SIDES = (1, 2, 3)  # of tiles, in pixels
_LARGEST = 1 << _LOG_SIDES[-1]
_MOST_TILES = 2**31 - 1
_SAMPLED = 8  # one box in so many is looked at to choose the tiles
_SLOTS = 6016  # a round's arrays stay in a core's cache; powers of two would share its lines, at half the speed
_SLOT_COST = 8.0  # of setting up a tile, in pixels
_ROUND_COST = 30_000.0  # of a round of slots, in pixels
_CERTAIN = 1 << 29  # an edge function beyond it has its sign all over a tile
_CLIPPED = 64  # triangles that are clipped in one pass
_CORNERS = 8  # of a triangle after five planes have cut it
_DEPTH_GUARD = 1e-6  # mm; nearer to the camera's plane, depth is taken for this, as by Pinhole.project_camera
_BARYCENTRIC_SLACK = 0.05


def visibility(
    camera: AbstractCamera,
    vertices: Float[Array, "vertex 3"],
    triangles: Int[Array, "triangle 3"],
    cull: bool = True,
) -> Int[Array, "height width"]:
    """Id of the triangle that each of the camera's pixels sees, -1 where there is none; vertices in head space."""
    return rasterize(
        camera.project(vertices),
        camera.to_camera(vertices)[:, 2],
        triangles,
        camera.height,
        camera.width,
        perspective=camera.perspective,
        near=camera.near,
        cull=cull,
    )


@functools.partial(jax.jit, static_argnames=("height", "width", "perspective", "cull", "slots"))
def rasterize(
    pixels: Float[Array, "vertex 2"],
    depth: Float[Array, "vertex"],
    triangles: Int[Array, "triangle 3"],
    height: int,
    width: int,
    *,
    perspective: bool = True,
    near: float | Float[Array, ""] = 0.0,
    cull: bool = True,
    slots: int | None = None,
) -> Int[Array, "{height} {width}"]:
    """Id of the nearest triangle at every pixel centre, -1 where there is none.

    Vertices are snapped to 1/256 px and edge functions are exact integers, so the answer does not depend on rounding,
    on fused multiply-adds or on the device. A centre that lies on an edge belongs to the triangle for which the edge
    is a top edge (horizontal, interior below) or a left edge. So neighbours share no pixel and leave no crack.

    `depth` grows away from the camera: camera z if `perspective`, else anything affine in the picture. It is quantised
    to 31 - ceil(log2 triangles) bits, at most 23, of its range (its logarithm's if `perspective`): for 50 000 triangles
    2^15 steps, 8 micrometres in a 25 cm head. What falls into one step is a tie, and ties go to the lower id.

    Triangles are clipped at depth `near`. `pixels` of a vertex behind the camera must be what the projection's formula
    says with its negative depth (as `Pinhole.project_camera` does), for (u z, v z, z) is then the point to clip.
    Triangles with a vertex that is not finite are dropped whole. `cull` drops those seen from behind (clockwise in the
    picture as a viewer sees it).

    Each triangle's box is cut into square tiles of 2, 4 or 8 pixels, whichever costs least for the mesh at hand; a
    prefix sum hands one tile to each of `slots` slots, and a loop goes on until no tile is left, so triangles of any
    size are exact. A tile's pixels go to the z-buffer with scatter-min of the key (depth step, id). Tried and slower,
    for 25 000 triangles at 256 px against 1 to 2 ms: sorting 216 ms, binning into 16 px tiles 471 ms, a sequential loop
    over triangles 1.4 s.
    """
    count, vertex_count = triangles.shape[0], pixels.shape[0]
    if height >= _GUARD_PX or width >= _GUARD_PX:
        raise ValueError(f"picture size: got {height}x{width}, less than {_GUARD_PX} a side can be rasterized")
    if count == 0:
        return jnp.full((height, width), -1, jnp.int32)

    id_bits = max(1, (count - 1).bit_length())
    pixels = lax.stop_gradient(pixels).astype(jnp.float32)
    depth = lax.stop_gradient(depth).astype(jnp.float32)
    near = jnp.asarray(near, jnp.float32)
    u, v = pixels[:, 0], pixels[:, 1]
    inside = (jnp.abs(u) <= _GUARD_PX) & (jnp.abs(v) <= _GUARD_PX) & (depth > near) & (depth < jnp.inf)

    # Triangles that are to be clipped are few or none; they take extra room behind the others, some at a time.
    points, clipped = lax.cond(
        jnp.any(~inside),
        lambda: _to_clip(u, v, depth, triangles, near, (height, width, perspective)),
        lambda: (jnp.zeros((vertex_count, 4), jnp.float32), jnp.zeros(count, bool)),
    )
    clip_count = jnp.sum(clipped, dtype=jnp.int32)
    to_steps = DepthSteps.of(depth, inside, jnp.where(clip_count > 0, near, jnp.inf), 31 - id_bits, perspective)
    room = (0, _CLIPPED * _CORNERS)
    x, y = (jnp.pad(jnp.where(inside, _snap(w), _NOWHERE), room) for w in (u, v))
    z = jnp.pad(to_steps.affine(jnp.where(inside, depth, 1.0)), room)
    fan = np.arange(_CLIPPED)[:, None] * _CORNERS + np.arange(1, _CORNERS - 1) + vertex_count
    fans = [np.broadcast_to(fan[:, :1] - 1, fan.shape), fan, fan + 1]
    fans = [jnp.asarray(k.ravel(), jnp.int32) for k in fans]
    corners = [jnp.concatenate([triangles[:, k].astype(jnp.int32), fans[k]]) for k in range(3)]
    usable, clipped_ids = jnp.zeros(fan.size, bool), jnp.zeros(fan.size, jnp.int32)
    slots = slots or (_SLOTS if jax.default_backend() == "cpu" else max(count, height * width // 16))

    # The first round draws all triangles that need no clipping, each further one some of those that do.
    def step(state):
        _, done, vertices, usable, clipped_ids, buffer = state
        drawn = jnp.concatenate([jnp.broadcast_to(done == 0, count), usable])
        boxes = jnp.where(drawn, _boxes(corners, vertices[0], vertices[1], height, width, cull), 0)
        buffer = _draw_groups(
            buffer, corners, boxes, clipped_ids, vertices, to_steps, (height, width, id_bits, cull, slots)
        )

        def clip_more():
            polygon, clipped_ids, usable = _clip_some(points, triangles, clipped, done, near)
            w = jnp.where(polygon[:, 2] > 0, polygon[:, 2], 1.0)
            pieces = (_snap(polygon[:, 0] / w), _snap(polygon[:, 1] / w), to_steps.affine(polygon[:, 3]))
            return tuple(v.at[vertex_count:].set(p) for v, p in zip(vertices, pieces, strict=True)), usable, clipped_ids

        more = done < clip_count
        return more, done + _CLIPPED, *lax.cond(more, clip_more, lambda: (vertices, usable, clipped_ids)), buffer

    # Tiles may reach over the picture's right and lower borders.
    empty = jnp.full((height + _LARGEST - 1) * (width + _LARGEST - 1), _EMPTY, jnp.int32)
    start = (jnp.bool_(True), jnp.int32(0), (x, y, z), usable, clipped_ids, empty)
    buffer = lax.while_loop(lambda state: state[0], step, start)[-1]
    buffer = buffer.reshape(height + _LARGEST - 1, width + _LARGEST - 1)[:height, :width]
    return jnp.where(buffer == _EMPTY, -1, buffer & ((1 << id_bits) - 1))


def barycentrics(
    pixels: Float[Array, "vertex 2"],
    depth: Float[Array, "vertex"] | None,
    triangles: Int[Array, "triangle 3"],
    ids: Int[Array, "*shape"],
    at: Float[Array, "*shape 2"] | None = None,
) -> Float[Array, "*shape 3"]:
    """Weights of the three corners of the triangle `ids` at the picture points `at`, zeros where ids is -1.

    Without `at`, ids is a picture and its pixel centres are meant. With `depth` (camera z) the weights are
    perspective-correct, without they are affine in the picture. They have derivatives in forward and reverse mode.

    Triangles may reach behind the camera (see `rasterize`). A centre may lie outside its unsnapped triangle by 1/256
    px, and its weights outside [0, 1] accordingly. Triangles so thin that this matters have their weights held at -0.05
    and 1.05, without derivative, for theirs is unbounded.
    """
    if at is None:
        row, column = jnp.meshgrid(*(jnp.arange(n, dtype=pixels.dtype) + 0.5 for n in ids.shape), indexing="ij")
    else:
        column, row = at[..., 0], at[..., 1]
    seen = ids >= 0
    corners = [triangles[:, k][jnp.maximum(ids, 0)] for k in range(3)]
    x = [pixels[:, 0][c] - column for c in corners]
    y = [pixels[:, 1][c] - row for c in corners]
    areas = [x[i] * y[j] - y[i] * x[j] for i, j in ((1, 2), (2, 0), (0, 1))]
    area = areas[0] + areas[1] + areas[2]
    solid = jnp.abs(area) > 1e-5
    per_area = 1.0 / jnp.where(solid, area, 1.0)
    weights = [jnp.where(solid, a * per_area, 1 / 3) for a in areas]
    if depth is not None:
        depths = [jnp.where(seen, depth[c], 1.0) for c in corners]
        weights = [
            w / jnp.where(jnp.abs(z) < _DEPTH_GUARD, _DEPTH_GUARD, z) for w, z in zip(weights, depths, strict=True)
        ]
    weights = _sum_to_one(weights, seen)
    weights = [jnp.clip(w, -_BARYCENTRIC_SLACK, 1 + _BARYCENTRIC_SLACK) for w in weights]
    return jnp.stack(_sum_to_one(weights, seen), axis=-1)


def _sum_to_one(weights, seen):
    total = weights[0] + weights[1] + weights[2]
    per_total = jnp.where(seen, 1.0, 0.0) / jnp.where(seen & (total != 0), total, 1.0)
    return [w * per_total for w in weights]


class DepthSteps(NamedTuple):
    """Depth in quantisation steps: `affine` makes a number of it that is affine in the picture, `steps` an integer.

    Orthographic depth is that number itself, scaled to the steps. Perspective depth has 1/z, whose floating-point bits
    are taken as the integer: they go like its logarithm, so something close to the camera does not take the steps away
    from what is farther off, as it would from 1/z.
    """

    offset: Float[Array, ""] | Int[Array, ""]
    scale: Float[Array, ""] | Int[Array, ""]
    perspective: bool

    @staticmethod
    def of(depth, valid, closest, bits, perspective):
        """Steps for the depths of valid vertices, and down to `closest`, that fit into some bits."""
        if not perspective:
            nearest = jnp.min(jnp.where(valid, depth, jnp.inf))
            nearest = jnp.where(jnp.isfinite(closest), jnp.minimum(nearest, closest), nearest)
            extent = jnp.max(jnp.where(valid, depth, -jnp.inf)) - nearest
            steps = 2.0 ** min(bits, 23) - 2.0  # float32 counts no further without rounding up into the sign bit
            return DepthSteps(nearest, jnp.where(extent > 0, steps / jnp.where(extent > 0, extent, 1.0), 0.0), False)
        bits_of_depth = _bits(
            jnp.maximum(depth, _DEPTH_GUARD)
        )  # integers: their minimum vectorises, that of floats not
        nearest = lax.bitcast_convert_type(jnp.min(jnp.where(valid, bits_of_depth, _EMPTY)), jnp.float32)
        farthest = lax.bitcast_convert_type(jnp.max(jnp.where(valid, bits_of_depth, 0)), jnp.float32)
        first = _bits(1.0 / jnp.maximum(jnp.fmin(nearest, closest), _DEPTH_GUARD))
        extent = first - _bits(1.0 / jnp.maximum(farthest, _DEPTH_GUARD))
        # The largest step stays below all ones: with an id of all ones the key would be that of an empty pixel.
        shift = jnp.maximum(32 - lax.clz(jnp.maximum(extent, 0) + 1) - bits + 1, 0) if bits < 31 else jnp.int32(0)
        return DepthSteps(first, shift, True)

    def affine(self, depth):
        return 1.0 / jnp.maximum(depth, _DEPTH_GUARD) if self.perspective else (depth - self.offset) * self.scale

    def steps(self, affine):
        if not self.perspective:
            return affine.astype(jnp.int32)
        return lax.shift_right_logical(jnp.maximum(self.offset - _bits(affine), 0), self.scale)


def _bits(x):
    """The bits of positive numbers, which are in the numbers' order."""
    return lax.bitcast_convert_type(x, jnp.int32)


def _boxes(corners, x, y, height, width, cull):
    """Size of each triangle's box in pixels, 0 if it is not seen, as width << 15 | height, | _BEHIND if turned away."""
    (ax, bx, cx), (ay, by, cy) = ([take(v, i) for i in corners] for v in (x, y))
    area_high, area_low = _cross(bx - ax, cy - ay, by - ay, cx - ax)
    facing = area_high < 0  # counter-clockwise as seen: y points down
    usable = (facing if cull else (area_high != 0) | (area_low != 0)) & (max3(ax, bx, cx) < _NOWHERE)
    x0, x1 = _pixel_range(ax, bx, cx, width)
    y0, y1 = _pixel_range(ay, by, cy, height)
    seen = usable & (x1 >= x0) & (y1 >= y0)
    size = ((x1 - x0 + 1) << 15) | (y1 - y0 + 1)
    return jnp.where(seen, size if cull else size | jnp.where(facing, 0, _BEHIND), 0)


def _to_clip(u, v, depth, triangles, near, sizes):
    """Points (u w, v w, w, depth), and which triangles are finite and neither all inside nor all to one side."""
    height, width, perspective = sizes
    finite = jnp.isfinite(u) & jnp.isfinite(v) & jnp.isfinite(depth)
    inside = finite & (depth > near) & (jnp.abs(u) <= _GUARD_PX) & (jnp.abs(v) <= _GUARD_PX)
    w = jnp.where(jnp.abs(depth) < _DEPTH_GUARD, _DEPTH_GUARD, depth) if perspective else jnp.ones_like(depth)
    points = jnp.stack([u * w, v * w, w, depth], axis=1)
    outside = [
        depth <= near,
        points[:, 0] < 0,
        points[:, 0] > width * w,
        points[:, 1] < 0,
        points[:, 1] > height * w,
        inside,  # which needs no clipping
    ]
    # One bit for each, so that one gather a corner tells.
    flags = functools.reduce(jnp.bitwise_or, [jnp.where(side, 1 << k, 0) for k, side in enumerate(outside)])
    flags = jnp.where(finite, flags, -1)
    a, b, c = (flags[triangles[:, k]] for k in range(3))
    return points, ((a & b & c) == 0) & (min3(a, b, c) >= 0)


def _clip_some(points, triangles, clipped, done, near):
    """Some of the triangles marked `clipped`, cut at `near` and at the guard band (Sutherland & Hodgman 1974).

    Returns convex polygons of points, the triangles' ids, and which triangles of each polygon's fan are to be drawn.
    """
    count = triangles.shape[0]
    rank = prefix(clipped.astype(jnp.int32), jnp.add) - 1 - done
    mine = clipped & (rank >= 0) & (rank < _CLIPPED)
    owner = (
        jnp.full(_CLIPPED + 1, count, jnp.int32)
        .at[jnp.where(mine, rank, _CLIPPED)]
        .set(jnp.where(mine, jnp.arange(count, dtype=jnp.int32), count), mode="promise_in_bounds")[:_CLIPPED]
    )
    corners = points[triangles[jnp.minimum(owner, count - 1)]]
    polygon = jnp.pad(corners, ((0, 0), (0, _CORNERS - 3), (0, 0)))
    # A plane is a linear function of (u w, v w, w, depth, 1) that is positive on the side that is kept.
    guard = float(_GUARD_PX)
    sides = np.array([[1, 0, guard, 0, 0], [-1, 0, guard, 0, 0], [0, 1, guard, 0, 0], [0, -1, guard, 0, 0]])
    bound = jnp.isfinite(near)
    front = jnp.stack([jnp.float32(0)] * 3 + [bound.astype(jnp.float32), jnp.where(bound, -near, 1.0)])
    planes = jnp.concatenate([front[None], jnp.asarray(sides, jnp.float32)])

    def cut(k, state):
        polygon, size = state
        index = jnp.arange(_CORNERS, dtype=jnp.int32)[None]
        used = index < size[:, None]
        following = jnp.where(index + 1 < size[:, None], index + 1, 0)
        plane = planes[k]
        distance = jnp.sum(polygon * plane[None, None, :4], axis=2) + plane[4]
        after = jnp.take_along_axis(polygon, following[:, :, None], axis=1)
        distance_after = jnp.take_along_axis(distance, following, axis=1)
        kept, kept_after = distance > 0, distance_after > 0
        # Always from the side that is kept: two triangles then get the same point on the edge that they share.
        inner, outer = (jnp.where(kept[:, :, None], *pair) for pair in ((polygon, after), (after, polygon)))
        start, end = (jnp.where(kept, *pair) for pair in ((distance, distance_after), (distance_after, distance)))
        crosses = used & (kept != kept_after)
        t = jnp.where(crosses, start / jnp.where(crosses, start - end, 1.0), 0.0)
        crossing = inner + t[:, :, None] * (outer - inner)
        emitted = jnp.stack([used & kept, crosses], axis=2).reshape(-1, 2 * _CORNERS)
        values = jnp.stack([polygon, crossing], axis=2).reshape(-1, 2 * _CORNERS, 4)
        place = jnp.cumsum(emitted, axis=1) - 1
        here = emitted[:, :, None] & (place[:, :, None] == index[:, None])
        cut_polygon = jnp.sum(jnp.where(here[..., None], values[:, :, None, :], 0.0), axis=1)
        return cut_polygon, jnp.sum(emitted, axis=1, dtype=jnp.int32)

    start = (polygon, jnp.where(owner < count, jnp.int32(3), jnp.int32(0)))
    polygon, size = lax.fori_loop(np.int32(0), np.int32(5), cut, start)
    pieces = _CORNERS - 2
    usable = (jnp.arange(2, _CORNERS)[None] < size[:, None]).ravel()
    return polygon.reshape(-1, 4), jnp.repeat(jnp.minimum(owner, count - 1), pieces), usable


def _tiles(boxes, log_side):
    """Number of tiles of 2^log_side pixels that boxes need along x, and in all."""
    along = ((((boxes >> 15) & 0x7FFF) - 1) >> log_side) + 1
    return along, along * ((((boxes & 0x7FFF) - 1) >> log_side) + 1)


def _draw_groups(buffer, corners, boxes, clipped_ids, vertices, to_steps, sizes):
    """`_draw` in groups of triangles whose tiles can be counted in 31 bits, even if each covered the picture."""
    height, width = sizes[:2]
    most = -(-height // _LARGEST) * -(-width // _LARGEST)
    size = max(1, _MOST_TILES // most)
    groups = -(-boxes.shape[0] // size)
    if groups == 1:
        return _draw(buffer, corners, boxes, clipped_ids, vertices, to_steps, sizes)
    group = jnp.arange(boxes.shape[0], dtype=jnp.int32) // size

    def draw(g, buffer):
        return _draw(buffer, corners, jnp.where(group == g, boxes, 0), clipped_ids, vertices, to_steps, sizes)

    return lax.fori_loop(np.int32(0), np.int32(groups), draw, buffer)


def _choose_side(boxes, picture, slots):
    """Logarithm of the side of the tiles that probably cost least, by every eighth box; their number fits 31 bits."""
    some = boxes[::_SAMPLED]
    costs = []
    for k in _LOG_SIDES:
        rounds = jnp.sum(_tiles(some, k)[1].astype(jnp.float32)) * (_SAMPLED / slots)
        cost = jnp.ceil(rounds) * (slots * (_SLOT_COST + 4.0**k) + _ROUND_COST)
        if boxes.shape[0] * (picture // 4**k + 1) > _MOST_TILES and k < _LOG_SIDES[-1]:
            cost = jnp.where(jnp.sum(_tiles(boxes, k)[1].astype(jnp.float32)) < _MOST_TILES / 2, cost, jnp.inf)
        costs.append(cost)
    return _LOG_SIDES[0] + jnp.argmin(jnp.stack(costs)).astype(jnp.int32)


def _draw(buffer, corners, boxes, clipped_ids, vertices, to_steps, sizes):
    """Lower the z-buffer's keys to those of all triangles whose box is not 0; the last have clipped_ids."""
    height, width, id_bits, cull, slots = sizes
    x, y, z = vertices
    count = boxes.shape[0]
    stride = width + _LARGEST - 1

    log_side = _choose_side(boxes, height * width, slots)
    along, tiles = _tiles(boxes, log_side)
    end = prefix(tiles, jnp.add)
    total = end[-1]

    def step(state):
        done, buffer = state
        triangle, tile = owners(tiles, end, done, slots)
        idle = done + jnp.arange(slots, dtype=jnp.int32) >= total

        # The second and third corner change places where that makes the area positive.
        a, c, b = (take(corner, triangle) for corner in corners)
        box = take(boxes, triangle)
        if not cull:
            behind = (box & _BEHIND) != 0
            b, c = jnp.where(behind, c, b), jnp.where(behind, b, c)
        ax, bx, cx, ay, by, cy = (take(v, i) for v in (x, y) for i in (a, b, c))
        az, bz, cz = (take(z, i) for i in (a, b, c))
        columns = _tiles(box, log_side)[0]
        row = divide(tile, columns)
        column = jnp.maximum((min3(ax, bx, cx) + (_SUBPIXEL // 2 - 1)) >> _SUBPIXEL_BITS, 0) + (
            (tile - row * columns) << log_side
        )
        row = jnp.maximum((min3(ay, by, cy) + (_SUBPIXEL // 2 - 1)) >> _SUBPIXEL_BITS, 0) + (row << log_side)
        px, py = column * _SUBPIXEL + _SUBPIXEL // 2, row * _SUBPIXEL + _SUBPIXEL // 2
        (ea, eax, eay), (eb, ebx, eby), (ec, ecx, ecy) = (
            _edge(bx, by, cx, cy, px, py),
            _edge(cx, cy, ax, ay, px, py),
            _edge(ax, ay, bx, by, px, py),
        )
        ea = jnp.where(idle, -_CERTAIN, ea)
        pixel = jnp.where(idle, 0, row * stride + column)

        # Depth is a plane over the picture; clamped to the triangle's own range, it is safe for slivers too.
        def f(v):
            return v.astype(jnp.float32)

        area = f(bx - ax) * f(cy - ay) - f(by - ay) * f(cx - ax)
        per_area = 1.0 / jnp.where(area == 0, 1.0, area)
        za, zb = (az - cz) * per_area, (bz - cz) * per_area
        zx = za * f(by - cy) + zb * f(cy - ay)
        zy = za * f(cx - bx) + zb * f(ax - cx)
        z0 = cz + zx * f(px - cx) + zy * f(py - cy)
        zx, zy = zx * _SUBPIXEL, zy * _SUBPIXEL
        lowest, highest = min3(az, bz, cz), max3(az, bz, cz)
        own = count - clipped_ids.shape[0]
        low = jnp.where(triangle < own, triangle, take(clipped_ids, jnp.maximum(triangle - own, 0)))

        # A loop over a tile's pixels, with one-dimensional scatters: building the indices of a single scatter does not
        # vectorise on CPU, and alone cost 5 ms for 25 000 triangles. Pixels that are not covered write what changes
        # nothing to their own place: writing to one common place would make each write wait for the last.
        def draw_pixel(k, buffer):
            j = lax.shift_right_logical(k, log_side)
            i = k - lax.shift_left(j, log_side)
            inside = ((ea + i * eax + j * eay) | (eb + i * ebx + j * eby) | (ec + i * ecx + j * ecy)) >= 0
            value = jnp.clip(z0 + zx * f(i) + zy * f(j), lowest, highest)
            key = jnp.where(inside, (to_steps.steps(value) << id_bits) | low, _EMPTY)
            return buffer.at[pixel + (j * stride + i)].min(key, mode="promise_in_bounds")

        return done + slots, lax.fori_loop(np.int32(0), lax.shift_left(jnp.int32(1), 2 * log_side), draw_pixel, buffer)

    return lax.while_loop(lambda s: s[0] < total, step, (jnp.int32(0), buffer))[1]


def _snap(v):
    # Clipped, for a clipped corner may lie beyond the guard band by a rounding error, and unused ones anywhere.
    return jnp.round(jnp.clip(v, -_GUARD_PX, _GUARD_PX) * _SUBPIXEL).astype(jnp.int32)


def _pixel_range(a, b, c, size):
    """First and last pixel whose centre lies within a triangle's extent, clipped to the picture."""
    half = _SUBPIXEL // 2
    first = (min3(a, b, c) + (half - 1)) >> _SUBPIXEL_BITS
    last = (max3(a, b, c) - half) >> _SUBPIXEL_BITS
    return jnp.maximum(first, 0), jnp.minimum(last, size - 1)


def _cross(a, b, c, d, bias: int | Array = 0):
    """a b - c d - bias of 26-bit integers, exactly, as (high, low) with value high 2^24 + low, 0 <= low < 2^24."""
    (ah, al), (bh, bl), (ch, cl), (dh, dl) = ((v >> 12, v & 4095) for v in (a, b, c, d))
    low = al * bl - cl * dl - bias
    middle = ah * bl + al * bh - ch * dl - cl * dh + (low >> 12)
    high = ah * bh - ch * dh + (middle >> 12)
    return high, ((middle & 4095) << 12) | (low & 4095)


def _edge(px, py, qx, qy, x, y):
    """Edge function of p -> q at (x, y) and its steps per pixel right and down; not negative means inside.

    From pixel to pixel it changes by multiples of a pixel's subpixels, so they are shifted out: exact, and small.
    Zero counts as inside on top and left edges only, which subtracting 1 elsewhere expresses.
    """
    dx, dy = qx - px, qy - py
    top_left = (dy < 0) | ((dy == 0) & (dx > 0))
    high, low = _cross(dx, y - py, dy, x - px, jnp.where(top_left, 0, 1))
    # Clipped where the sign is certain all over the tile.
    most = _CERTAIN >> (24 - _SUBPIXEL_BITS)
    return (jnp.clip(high, -most, most - 1) << (24 - _SUBPIXEL_BITS)) | (low >> _SUBPIXEL_BITS), -dy, dx


def min3(a, b, c):
    return jnp.minimum(jnp.minimum(a, b), c)  # XLA's CPU reduction over an axis of three is four times slower


def max3(a, b, c):
    return jnp.maximum(jnp.maximum(a, b), c)
