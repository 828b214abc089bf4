"""Detail: a displacement along the smooth normals of a coarse surface, as a map in UV space, and its normals.

The surface is x' = x + D n with D in mm. Blinn 1978 ("Simulation of wrinkled surfaces") gives its normals without a
dense mesh: n' ~ n - g with g the gradient of D within the surface; here it is the gradient on the displaced surface,
(I + D S)⁻¹ grad D with S the derivative of n, so that a bump high above a strongly curved place has its true slope.
How D changes with the expression, from wrinkle maps that blendshapes drive, is `Detail`'s.

Maps are square, u right and v down, as in `morphable.uv`.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from morphable.mesh import Mesh, unit
from morphable.model import MorphableModel
from morphable.uv import TexelTable, interpolate, sample_texture

LIMIT_MM = 10.0  # folds of a face are shallower; what is higher belongs to the coarse shape
_JUMP = 3.0  # neighbouring texels further apart than this many of their own sides lie on different charts
_FOLDED = 0.2  # a surface displaced to less of its area than this is about to fold over


class UVSurface(eqx.Module):
    """A mesh's smooth surface under the texels of a map; zero and False where the map shows none."""

    points: Float[Array, "size size 3"]  # mm
    normals: Float[Array, "size size 3"]  # unit, smooth: the vertices' interpolated
    dual_u: Float[Array, "size size 3"]  # a map D has the gradient D_u dual_u + D_v dual_v, with D_u, D_v per texel
    dual_v: Float[Array, "size size 3"]
    bending: Float[Array, "size size 2 2"]  # n_a = sum_b bending[a, b] x_b with a, b in (u, v): 1/mm
    joined_u: Bool[Array, "size size"]  # whether the texel to the right shows the surface beside this one's
    joined_v: Bool[Array, "size size"]  # the same for the texel below
    valid: Bool[Array, "size size"]

    @property
    def areas(self) -> Float[Array, "size size"]:
        """What a texel covers of the surface, mm²; 0 where it shows none."""
        duals = jnp.cross(self.dual_u, self.dual_v)
        squared = jnp.sum(duals**2, axis=-1)
        return jnp.where(self.valid, 1.0 / jnp.sqrt(jnp.where(self.valid, squared, 1.0)), 0.0)

    @property
    def tangents(self) -> tuple[Float[Array, "size size 3"], Float[Array, "size size 3"]]:
        """Unit vectors in the surface: along growing u, and perpendicular to it, up the map. Zero without a surface."""
        hand = jnp.sign(_dot(self.normals, jnp.cross(self.dual_u, self.dual_v)))
        return unit(hand * jnp.cross(self.dual_v, self.normals)), -unit(self.dual_v)


class Detail(eqx.Module):
    """One person's detail: the displacement seen at one expression, and what wrinkles other expressions add."""

    displacement: Float[Array, "size size"]  # mm, at `expression`
    wrinkles: Float[Array, "group size size"]  # mm that each group adds at activation 1
    drivers: Float[Array, "group unit"]  # >= 0: how much each expression unit activates each group
    expression: Float[Array, " unit"]  # weights at which the displacement was seen
    method: str = eqx.field(static=True, default="")  # what made it, for records
    names: tuple[str, ...] = eqx.field(static=True, default=())  # of the groups; none: they are only numbered

    def __check_init__(self):
        side, groups, units = self.displacement.shape[-1], self.wrinkles.shape[0], self.expression.shape[-1]
        found = (self.displacement.shape, self.wrinkles.shape, self.drivers.shape)
        expected = ((side, side), (groups, side, side), (groups, units))
        if found != expected:
            raise ValueError(
                f"Detail: displacement, wrinkles and drivers of shapes {found}, expected {expected}: square "
                f"maps of one size, a driver row for each wrinkle map and a column for each of {units} units."
            )
        if len(self.names) not in (0, groups):
            raise ValueError(f"Detail: got {len(self.names)} names for {groups} wrinkle maps, expected one for each.")

    @property
    def group_names(self) -> tuple[str, ...]:
        """A name for each wrinkle group."""
        return self.names or tuple(f"wrinkle_{k + 1}" for k in range(self.wrinkles.shape[0]))

    def activations(self, expression: Float[Array, " unit"]) -> Float[Array, " group"]:
        """How far each wrinkle group is out, in [0, 1]."""
        return jnp.clip(jnp.sum(self.drivers * expression, axis=1), 0.0, 1.0)

    def at(self, expression: Float[Array, " unit"]) -> Float[Array, "size size"]:
        """The displacement (mm) under an expression; at the photo's own it is `displacement`."""
        change = self.activations(expression) - self.activations(self.expression)
        return self.displacement + jnp.sum(change[:, None, None] * self.wrinkles, axis=0)

    @property
    def static(self) -> Float[Array, "size size"]:
        """The displacement (mm) of the neutral face."""
        return self.at(jnp.zeros_like(self.expression))


def limited(raw: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A displacement (mm) within ±LIMIT_MM from any number; small ones stay as they are."""
    return LIMIT_MM * jnp.tanh(raw / LIMIT_MM)


@eqx.filter_jit
def uv_surface(mesh: Mesh, table: TexelTable) -> UVSurface:
    """The smooth surface of a mesh at the texels of a table that was made for its triangles and uv.

    Differentiable in the vertices; the table stays what it is, as long as uv and triangles do.
    """
    if mesh.uv is None:
        raise ValueError("uv_surface: mesh.uv is None; the mesh needs a UV layout")
    size = table.triangle_ids.shape[0]
    triangles, count = mesh.triangles, mesh.vertices.shape[0]
    texels = (mesh.uv * size)[triangles]
    (u1, v1), (u2, v2) = ((jnp.moveaxis(texels[:, k] - texels[:, 0], -1, 0)) for k in (1, 2))
    signed = u1 * v2 - u2 * v1

    def derivatives(values):
        """Of vertex values along u and along v, each a mean over a vertex's triangles by their area in the map."""
        e1, e2 = (values[triangles[:, k]] - values[triangles[:, 0]] for k in (1, 2))
        both = jnp.concatenate([e1 * v2[:, None] - e2 * v1[:, None], e2 * u1[:, None] - e1 * u2[:, None]], axis=1)
        per_triangle = jnp.concatenate([both * jnp.sign(signed)[:, None], jnp.abs(signed)[:, None]], axis=1)
        total = jnp.zeros((count, 7), values.dtype)
        for k in range(3):
            total = total.at[triangles[:, k]].add(per_triangle)
        area = total[:, 6:]
        return total[:, :6] / jnp.where(area > 0, area, 1.0)

    smooth = mesh.normals
    at_vertices = jnp.concatenate([mesh.vertices, smooth, derivatives(mesh.vertices), derivatives(smooth)], axis=1)
    points, blended, x_u, x_v, n_u, n_v = jnp.split(interpolate(at_vertices, triangles, *table), 6, axis=-1)
    normals = unit(blended)
    x_u, x_v = (x - _dot(x, normals) * normals for x in (x_u, x_v))
    volume = _dot(normals, jnp.cross(x_u, x_v))
    scale = _dot(x_u, x_u) + _dot(x_v, x_v)
    regular = jnp.abs(volume) > 1e-4 * scale
    valid = (table.triangle_ids >= 0) & regular[..., 0]
    dual_u, dual_v = (
        jnp.where(regular, dual / jnp.where(regular, volume, 1.0), 0.0)
        for dual in (jnp.cross(x_v, normals), jnp.cross(normals, x_u))
    )
    length = jnp.sqrt(_dot(blended, blended) + 1e-20)
    bending = jnp.stack([jnp.concatenate([_dot(n, dual_u), _dot(n, dual_v)], axis=-1) for n in (n_u, n_v)], axis=-2)
    joined = []
    for axis, x in ((1, x_u), (0, x_v)):
        gap = jnp.sum((_shifted(points, 1, axis) - points) ** 2, axis=-1)
        side = jnp.sum(x**2, axis=-1)
        near = gap <= _JUMP**2 * jnp.maximum(side, _shifted(side, 1, axis))
        last = jnp.arange(size) == size - 1
        joined.append(valid & _shifted(valid, 1, axis) & near & ~(last[None, :] if axis == 1 else last[:, None]))
    return UVSurface(points, normals, dual_u, dual_v, bending / length[..., None], joined[0], joined[1], valid)


def displaced_points(surface: UVSurface, displacement: Float[Array, "size size"]) -> Float[Array, "size size 3"]:
    """The displaced surface under each texel, mm."""
    return surface.points + displacement[..., None] * surface.normals


def slopes(
    surface: UVSurface, displacement: Float[Array, "size size"]
) -> tuple[Float[Array, "size size"], Float[Array, "size size"]]:
    """Change of a map (per texel) to the right and down: central differences, one-sided beside a chart's border.

    A texel without a neighbour on its own surface has none.
    """
    return _difference(displacement, surface.joined_u, 1), _difference(displacement, surface.joined_v, 0)


@eqx.filter_jit
def detail_normals(surface: UVSurface, displacement: Float[Array, "size size"]) -> Float[Array, "size size 3"]:
    """Unit normals of the displaced surface under each texel; zero where the map shows no surface.

    Differentiable in the displacement and the surface, everywhere finite.
    """
    d_u, d_v = slopes(surface, displacement)
    # Tangents of the offset surface are (I + D B) times the smooth one's; its gradient is solved for in their frame.
    b = surface.bending * displacement[..., None, None]
    area = (1.0 + b[..., 0, 0]) * (1.0 + b[..., 1, 1]) - b[..., 0, 1] * b[..., 1, 0]
    shrunk = jnp.maximum(area, _FOLDED)
    c_u = ((1.0 + b[..., 1, 1]) * d_u - b[..., 0, 1] * d_v) / shrunk
    c_v = ((1.0 + b[..., 0, 0]) * d_v - b[..., 1, 0] * d_u) / shrunk
    return unit(surface.normals - c_u[..., None] * surface.dual_u - c_v[..., None] * surface.dual_v)


class DenseLayout(eqx.Module):
    """The triangles of a mesh after `levels` of midpoint subdivision: each becomes four, none leaves its plane.

    The first vertices are the mesh's own, in their order; those of each level follow.
    """

    triangles: Int[Array, "triangle 3"]
    uv: Float[Array, "vertex 2"]
    moving: Float[Array, " vertex"]  # 1 on what is displaced (skin), 0 on what is not
    edges: tuple[Int[Array, "_ 2"], ...]  # for each level the two vertices that each new one lies between

    def subdivide(self, values: Float[Array, "coarse channel"]) -> Float[Array, "vertex channel"]:
        """Values of the mesh's own vertices at all vertices, linear between them."""
        for pair in self.edges:
            values = jnp.concatenate([values, 0.5 * (values[pair[:, 0]] + values[pair[:, 1]])])
        return values


def dense_layout(
    triangles: Int[Array, "triangle 3"] | Int[np.ndarray, "triangle 3"],
    uv: Float[Array, "vertex 2"] | Float[np.ndarray, "vertex 2"],
    levels: int = 1,
    moving: Bool[np.ndarray, " vertex"] | None = None,
) -> DenseLayout:
    """The topology of `displaced`, once for all expressions of a head; runs on the host.

    `moving` says which vertices are displaced (`skin_vertices`), all without it. Vertices are shared as in the mesh:
    where uv has a seam, so that a place has two vertices, it keeps two.
    """
    if levels < 0:
        raise ValueError(f"dense_layout: got levels {levels}, expected 0 or more.")
    faces, places = np.asarray(triangles), np.asarray(uv)
    count = len(places)
    share = np.ones(count, places.dtype) if moving is None else moving.astype(places.dtype)
    edges = []
    for _ in range(levels):
        sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        pair, inverse = np.unique(sides, axis=0, return_inverse=True)
        ab, bc, ca = inverse.reshape(3, -1) + count
        a, b, c = faces.T
        faces = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=1).reshape(-1, 3)
        places = np.concatenate([places, places[pair].mean(axis=1)])
        share = np.concatenate([share, share[pair].min(axis=1)])
        edges.append(jnp.asarray(pair, jnp.int32))
        count = len(places)
    return DenseLayout(jnp.asarray(faces, jnp.int32), jnp.asarray(places), jnp.asarray(share), tuple(edges))


def skin_vertices(model: MorphableModel) -> Bool[np.ndarray, " vertex"]:
    """The vertices that detail may displace: the part "skin", or all of a model without such a part."""
    if "skin" not in model.part_names:
        return np.ones(len(model.part_of_vertex), bool)
    return np.asarray(model.part_of_vertex) == model.part_names.index("skin")


@eqx.filter_jit
def displaced(layout: DenseLayout, mesh: Mesh, displacement: Float[Array, "size size"]) -> Mesh:
    """The mesh subdivided and displaced along its smooth normals; albedo goes along. For jit and vmap."""
    points, normals = layout.subdivide(mesh.vertices), unit(layout.subdivide(mesh.normals))
    height = sample_texture(displacement[..., None], layout.uv) * layout.moving[:, None]
    albedo = None if mesh.albedo is None else layout.subdivide(mesh.albedo)
    return Mesh(points + height * normals, layout.triangles, layout.uv, albedo)


@eqx.filter_jit
def dense_normals(layout: DenseLayout, mesh: Mesh, displacement: Float[Array, "size size"]) -> Float[Array, "vertex 3"]:
    """Normals to shade `displaced` with: the mesh's smooth ones, turned as the displacement turns the dense mesh's.

    The dense mesh's own show the mesh's triangles, since subdivision leaves those flat.
    """
    after, before = (displaced(layout, mesh, d).normals for d in (displacement, jnp.zeros_like(displacement)))
    return unit(unit(layout.subdivide(mesh.normals)) + after - before)


def displaced_mesh(
    mesh: Mesh,
    displacement: Float[Array, "size size"],
    levels: int = 0,
    moving: Bool[np.ndarray, " vertex"] | None = None,
) -> Mesh:
    """`displaced` for one mesh: at its own vertices (levels 0) or after that many midpoint subdivisions."""
    if mesh.uv is None:
        raise ValueError("displaced_mesh: mesh.uv is None; the mesh needs a UV layout")
    return displaced(dense_layout(mesh.triangles, mesh.uv, levels, moving), mesh, displacement)


def _dot(a, b):
    return jnp.sum(a * b, axis=-1, keepdims=True)


def _shifted(values, by, axis):
    """Each texel's neighbour, `by` further along an axis."""
    return jnp.roll(values, -by, axis)


def _difference(values, joined, axis):
    """The mean of the differences with the texels before and after, of those that are joined."""
    forward = jnp.where(joined, _shifted(values, 1, axis) - values, 0.0)
    sides = joined.astype(values.dtype) + _shifted(joined, -1, axis).astype(values.dtype)
    return (forward + _shifted(forward, -1, axis)) / jnp.maximum(sides, 1.0)
