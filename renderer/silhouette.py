"""Silhouettes: the outlines that occlude, and pictures that follow them, so that occlusion has a derivative.

A picture of triangle ids jumps where a surface ends before another, and its derivative there is zero although moving
the surface moves the outline. `antialias` finds where outlines pass between two pixel centres and mixes the two
colours by where exactly (Laine et al. 2020, "Modular Primitives for High-Performance Differentiable Rendering", 3.4):
for a straight outline that is the pixel's area, and its derivative is that of the area.

Unlike there, outlines are not looked for among the edges of the triangles that pixels see, but among all edges of the
mesh: on a fine mesh the triangles at an outline turn away from the viewer, are slimmer than a pixel, and no pixel sees
them. The cost is a pass over the edges, then work along outlines only.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from renderer.expand import owners, prefix, take
from renderer.rasterize import barycentrics

_PLACE_BITS = 21  # of a key that orders crossings: by depth, then from outside in
_DEPTH_LEVELS = 30  # in a mesh; outlines on one level count as equally near: surfaces fall off steeply there
_NONE = 0x7FFFFFFF
_ROUNDING = 1e-5  # of depths
_BEHIND = 0.02  # of the mesh's depth, by which a surface may fall off behind its own outline within a pixel


class EdgeTable(NamedTuple):
    """Every edge of a mesh once: its two vertices, and the triangles on its two sides, -1 for none."""

    vertices: Int[Array, "edge 2"]
    triangles: Int[Array, "edge 2"]


def edge_table(
    triangles: Int[np.ndarray, "triangle 3"] | Int[Array, "triangle 3"],
    vertices: Float[np.ndarray, "vertex 3"] | Float[Array, "vertex 3"] | None = None,
) -> EdgeTable:
    """The edges of a mesh, once for a topology, in NumPy. Where three or more triangles meet, each has its own.

    Triangles with two equal corners have none. Give the vertices of a mesh with seams (where uv or colours jump): those
    at one place, to 1e-5 of the mesh's size, count as the first of them, or a seam would be taken for a border.
    """
    triangles = np.asarray(triangles)
    if vertices is not None:
        places = np.asarray(vertices, np.float64)
        places = np.round(places / (1e-5 * max(np.ptp(places, axis=0).max(), 1e-30))).astype(np.int64)
        _, first, same = np.unique(places, axis=0, return_index=True, return_inverse=True)
        triangles = first[same.ravel()][triangles]
    flat = np.any(triangles == np.roll(triangles, 1, axis=1), axis=1)
    ends = np.sort(np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)]), axis=1)
    triangle = np.tile(np.arange(len(triangles)), 3)
    order = np.lexsort((triangle, ends[:, 1], ends[:, 0]))
    order = order[~flat[triangle[order]]]
    ends, triangle = ends[order], triangle[order]
    new = np.any(ends != np.roll(ends, 1, axis=0), axis=1)
    new[:1] = True
    group = np.cumsum(new) - 1
    shared = np.bincount(group)[group] == 2
    first, second, alone = shared & new, shared & ~new, ~shared
    sides = [np.stack([triangle[first], triangle[second]], 1), np.stack([triangle[alone], np.full(alone.sum(), -1)], 1)]
    vertices = np.concatenate([ends[first], ends[alone]])
    return EdgeTable(jnp.asarray(vertices, jnp.int32), jnp.asarray(np.concatenate(sides), jnp.int32))


@functools.partial(jax.jit, static_argnames=("perspective", "cull", "slots"))
def antialias(
    image: Float[Array, "height width channel"],
    pixels: Float[Array, "vertex 2"],
    depth: Float[Array, "vertex"],
    triangles: Int[Array, "triangle 3"],
    ids: Int[Array, "height width"],
    edges: EdgeTable,
    *,
    perspective: bool = True,
    near: float | Float[Array, ""] = 0.0,
    cull: bool = True,
    slots: int | None = None,
) -> Float[Array, "height width channel"]:
    """The image of `ids` with its outlines where they are between pixels; arguments as `rasterize` got them.

    Where an outline crosses the line between two neighbouring pixel centres, the pixel whose area it cuts gets a mix
    of both colours: along rows where the outline is steep, along columns where it is flat. Of several outlines between
    the same centres the nearest counts, of equally near ones the outermost. Edges that reach behind `near` are left
    as they are. Derivatives, forward and reverse, are those in the image's colours and in `pixels`, through the
    outlines' places; depth has none.

    Outlines' crossings with lines between centres, hidden ones included, are looked at in rounds of `slots`; if more
    than that are seen, all lines are treated as if they had one.
    """
    height, width, channels = image.shape
    colours = image.reshape(height * width, channels)
    lines = 2 * height * width  # between centres of neighbours in rows, then in columns
    outlines = _Outlines(lax.stop_gradient(pixels), lax.stop_gradient(depth), triangles, ids, edges, perspective)
    counts = outlines.crossing_counts(jnp.asarray(near, depth.dtype), cull)
    ends = prefix(counts, jnp.add)
    slots = slots or max(4096, height * width // 16)

    # The edge that each line gets, round after round: less to compile than a case apart for the usual single round.
    def find(state):
        done, best, chosen = state
        edge, line, key = outlines.crossings(counts, ends, done, slots)
        better = best.at[line].min(key)
        winner = jnp.where((key < _NONE) & (key == better[line]), edge, -1)
        return done + slots, better, jnp.where(better < best, -1, chosen).at[line].max(winner)

    none = jnp.full(lines + 1, _NONE, jnp.int32)
    start = (jnp.int32(0), none, jnp.full_like(none, -1))
    chosen = lax.while_loop(lambda state: state[0] < ends[-1], find, start)[2][:-1]
    rank = prefix((chosen >= 0).astype(jnp.int32), jnp.add)

    def mix(edge, line):
        """Colours mixed at the crossings of some edges (-1 for none) and lines."""
        inner, outer, place = _place_between(pixels, edges.vertices[jnp.maximum(edge, 0)], outlines, edge, line)
        part = jnp.where(edge >= 0, jnp.clip(place, 0.0, 1.0) - 0.5, 0.0)
        change = part[:, None] * (colours[inner] - colours[outer])
        return colours.at[jnp.where(part > 0, outer, inner)].add(change)

    def listed():
        at = jnp.where((chosen >= 0) & (rank <= slots), rank - 1, slots)
        line = jnp.full(slots + 1, lines, jnp.int32).at[at].min(jnp.arange(lines, dtype=jnp.int32))[:slots]
        return mix(jnp.where(line < lines, chosen[jnp.minimum(line, lines - 1)], -1), jnp.minimum(line, lines - 1))

    def everywhere():
        return mix(chosen, jnp.arange(lines, dtype=jnp.int32))

    return lax.cond(rank[-1] <= slots, listed, everywhere).reshape(image.shape)


class _Outlines(NamedTuple):
    """What is needed to find outlines' crossings; nothing here has a derivative."""

    pixels: Float[Array, "vertex 2"]
    depth: Float[Array, "vertex"]
    triangles: Int[Array, "triangle 3"]
    ids: Int[Array, "height width"]
    edges: EdgeTable
    perspective: bool

    def crossing_counts(self, near, cull):
        """How many lines between centres each edge may cross, 0 unless it is an outline."""
        x, y = self.pixels[:, 0], self.pixels[:, 1]
        ahead = (self.depth > near) & jnp.isfinite(x) & jnp.isfinite(y)
        a, b, c = (self.triangles[:, k] for k in range(3))
        facing = (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]) < 0  # counter-clockwise; y points down
        first, second = self.edges.triangles[:, 0], self.edges.triangles[:, 1]
        facing_second = (second >= 0) & facing[jnp.maximum(second, 0)]
        outline = facing[first] != facing_second
        if not cull:  # a border is an outline whichever side of it is seen
            outline |= second < 0
        low, high, _ = self._range(self.edges.vertices)
        p, q = self.edges.vertices[:, 0], self.edges.vertices[:, 1]
        return jnp.where(outline & ahead[p] & ahead[q], jnp.maximum(high - low, 0), 0)

    def _range(self, ends):
        """First line that edges cross, the one after the last, and whether they are steep: cross lines in rows."""
        px, py, qx, qy = (self.pixels[ends[:, i], k] for i in range(2) for k in range(2))
        steep = jnp.abs(qy - py) >= jnp.abs(qx - px)
        p, q = jnp.where(steep, py, px), jnp.where(steep, qy, qx)
        height, width = self.ids.shape
        count = jnp.where(steep, height, width)
        # A centre on a vertex belongs to one of two edges that meet there.
        low, high = (jnp.ceil(jnp.clip(v, -1, 32768.0) - 0.5) for v in (jnp.minimum(p, q), jnp.maximum(p, q)))
        return jnp.maximum(low.astype(jnp.int32), 0), jnp.minimum(high.astype(jnp.int32), count), steep

    def crossings(self, counts, ends, done, slots):
        """Edges, lines and keys of a round of possible crossings; the least key of a line is to be taken, if not _NONE.

        Crossings that are not seen have the key _NONE, and those outside of the picture the line after the last.
        """
        height, width = self.ids.shape
        edge, rank = owners(counts, ends, done, slots)
        vertices = take(self.edges.vertices, edge)
        low, high, steep = self._range(vertices)
        at = low + rank
        p, q = vertices[:, 0], vertices[:, 1]
        (pa, pc), (qa, qc) = (_along_across(self.pixels[v], steep) for v in (p, q))
        s = (at.astype(pa.dtype) + 0.5 - pa) / jnp.where(qa == pa, 1.0, qa - pa)
        across = pc + s * (qc - pc)
        # An outline through a centre separates its pixel from the one before: inside are those at top and left edges.
        before = jnp.ceil(jnp.clip(across, -9.0, 32768.0) - 0.5).astype(jnp.int32) - 1
        used = (done + jnp.arange(slots, dtype=jnp.int32) < ends[-1]) & (at < high)
        used &= (before >= 0) & (before < jnp.where(steep, width, height) - 1)
        line = jnp.where(steep, at * width + before, height * width + before * width + at)
        line = jnp.where(used, line, 2 * height * width)

        inner, outer = self.centres(edge, line)
        zp, zq = self.depth[p], self.depth[q]
        z = 1.0 / (1.0 / zp + s * (1.0 / zq - 1.0 / zp)) if self.perspective else zp + s * (zq - zp)
        id_inner, id_outer = (self.ids.reshape(-1)[v] for v in (inner, outer))
        nearest, farthest = jnp.min(self.depth), jnp.max(self.depth)
        extent = jnp.maximum(farthest - nearest, 1e-6)
        seen = used & (id_inner >= 0) & (id_inner != id_outer)
        behind = _BEHIND * extent + _ROUNDING * jnp.abs(z)
        seen &= (self._depth_at(inner, id_inner) <= z + behind) & (self._depth_at(outer, id_outer) > z)
        level = jnp.clip((z - nearest) / extent * _DEPTH_LEVELS, 0, _DEPTH_LEVELS).astype(jnp.int32)
        place = across - 0.5 - before.astype(across.dtype)  # from the first centre to the second
        place = jnp.where(inner < outer, 1.0 - place, place)
        inwards = jnp.clip(place * 2.0**_PLACE_BITS, 0, 2.0**_PLACE_BITS - 1).astype(jnp.int32)
        return edge, line, jnp.where(seen, (level << _PLACE_BITS) | inwards, _NONE)

    def _depth_at(self, pixel, ids):
        """Depth of triangles at pixels' centres, infinite where there is none."""
        width = self.ids.shape[1]
        centre = jnp.stack([pixel % width, pixel // width], axis=1).astype(self.pixels.dtype) + 0.5
        weights = barycentrics(self.pixels, self.depth if self.perspective else None, self.triangles, ids, centre)
        depth = jnp.sum(weights * self.depth[self.triangles[jnp.maximum(ids, 0)]], axis=1)
        return jnp.where(ids >= 0, depth, jnp.inf)

    def centres(self, edge, line):
        """The pixel inside and that outside of an outline, for edges and the lines that they cross."""
        height, width = self.ids.shape
        row_like = line < height * width
        first = jnp.clip(jnp.where(row_like, line, line - height * width), 0, height * width - 1)
        second = jnp.minimum(first + jnp.where(row_like, 1, width), height * width - 1)
        p, q = (self.edges.vertices[jnp.maximum(edge, 0), k] for k in range(2))
        # The inside is where the third corner of a triangle is that is seen, which the side of the edge tells.
        one, two = (self.edges.triangles[jnp.maximum(edge, 0), k] for k in range(2))
        owner = jnp.where((two >= 0) & ~self._facing(one), two, one)
        third = jnp.sum(self.triangles[owner], axis=1) - p - q
        (pa, pc), (qa, qc), (ta, tc) = (_along_across(self.pixels[v], row_like) for v in (p, q, third))
        # across of the edge at the third corner's place along it, times (qa - pa)
        side = (tc - pc) * (qa - pa) - (ta - pa) * (qc - pc)
        inside_first = (side < 0) == (qa > pa)
        return jnp.where(inside_first, first, second), jnp.where(inside_first, second, first)

    def _facing(self, triangle):
        a, b, c = (self.pixels[self.triangles[triangle, k]] for k in range(3))
        return (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0] < 0


def _along_across(points, steep):
    """Coordinates along and across the direction that edges mostly have: y and x if steep, else x and y."""
    return jnp.where(steep, points[:, 1], points[:, 0]), jnp.where(steep, points[:, 0], points[:, 1])


def _place_between(pixels, ends, outlines, edge, line):
    """The centres inside and outside of outlines, and the outlines' places from the former, 0, to the latter, 1."""
    height, width = outlines.ids.shape
    inner, outer = outlines.centres(edge, line)
    row_like = line < height * width
    (pa, pc), (qa, qc) = (_along_across(pixels[ends[:, k]], row_like) for k in range(2))
    row, column = inner // width, inner % width
    at, start = (
        v.astype(pixels.dtype) + 0.5 for v in (jnp.where(row_like, row, column), jnp.where(row_like, column, row))
    )
    flat = qa == pa
    across = pc + (at - pa) / jnp.where(flat, 1.0, qa - pa) * (qc - pc)
    return inner, outer, jnp.where(outer > inner, across - start, start - across)
