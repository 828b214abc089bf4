"""Triangle meshes, and the subdivision that turns a model's quads into them."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float, Int


class Mesh(eqx.Module):
    """A triangle mesh in head space (mm; x to the subject's left, y up, z out of the face)."""

    vertices: Float[Array, "vertex 3"]
    triangles: Int[Array, "triangle 3"]  # counter-clockwise seen from outside
    uv: Float[Array, "vertex 2"] | None = None  # u right, v down, in [0, 1]; origin at the map's top left
    albedo: Float[Array, "vertex 3"] | None = None  # linear RGB

    @property
    def normals(self) -> Float[Array, "vertex 3"]:
        """Unit outward normals, averaged over each vertex's triangles by area."""
        return vertex_normals(self.vertices, self.triangles)


def triangle_areas_normals(
    vertices: Float[Array, "vertex 3"], triangles: Int[Array, "triangle 3"]
) -> Float[Array, "triangle 3"]:
    """Outward normal of every triangle, its length twice the triangle's area."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    return jnp.cross(b - a, c - a)


def vertex_normals(vertices: Float[Array, "vertex 3"], triangles: Int[Array, "triangle 3"]) -> Float[Array, "vertex 3"]:
    """Unit outward vertex normals; a vertex without triangles gets the zero vector."""
    n = triangle_areas_normals(vertices, triangles)
    total = jnp.zeros_like(vertices)
    for k in range(3):
        total = total.at[triangles[:, k]].add(n)
    # The square root of a sum that may be zero has no derivative there; the added constant gives it one.
    return total / jnp.sqrt(jnp.sum(total**2, axis=1, keepdims=True) + 1e-20)


def unit(vectors: Float[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
    """Vectors scaled to length one; zero stays zero, and its derivative finite."""
    return vectors / jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-20)


def smoothstep(values, low, high):
    """0 at `low`, 1 at `high` (in either order), level at both ends: how regions fade out. Arrays of NumPy or JAX."""
    t = ((values - low) / (high - low)).clip(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def triangulate(quads: Int[np.ndarray, "quad 4"]) -> Int[np.ndarray, "triangle 3"]:
    """Two triangles (0 1 2, 0 2 3) for each quad, the first halves of all quads first."""
    quads = np.asarray(quads)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def catmull_clark(
    quads: Int[np.ndarray, "quad 4"], vertex_count: int
) -> tuple[sp.csr_matrix, Int[np.ndarray, "subquad 4"]]:
    """One level of Catmull-Clark subdivision (Catmull & Clark 1978) as a linear map.

    Returns the sparse matrix that takes per-vertex values to per-subvertex values, and the new quads.
    Subvertices are ordered: the old vertices, then a point for each quad, then a point for each edge; so old
    vertex i stays vertex i. Open boundaries follow the cubic B-spline rule (1/8, 3/4, 1/8).
    """
    quads = np.asarray(quads)
    m, n = len(quads), vertex_count
    edges = np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)])
    unique, inverse = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
    inverse = inverse.ravel()
    e = len(unique)
    quad_of_edge = np.tile(np.arange(m), 4)
    uses = np.bincount(inverse, minlength=e)
    boundary = uses == 1

    def matrix(values, rows, cols, shape):
        return sp.csr_matrix((values, (rows, cols)), shape=shape)

    face_points = matrix(np.full(4 * m, 0.25), np.repeat(np.arange(m), 4), quads.ravel(), (m, n))
    midpoints = matrix(np.full(2 * e, 0.5), np.repeat(np.arange(e), 2), unique.ravel(), (e, n))
    edge_faces = matrix(1.0 / uses[inverse], inverse, quad_of_edge, (e, m))
    edge_points = sp.diags(np.where(boundary, 1.0, 0.5)) @ midpoints + sp.diags(np.where(boundary, 0.0, 0.5)) @ (
        edge_faces @ face_points
    )

    valence = np.bincount(unique.ravel(), minlength=n)
    face_count = np.bincount(quads.ravel(), minlength=n)
    mean_of_faces = matrix(
        1.0 / np.maximum(face_count[quads.ravel()], 1), quads.ravel(), np.repeat(np.arange(m), 4), (n, m)
    )
    mean_of_edges = matrix(
        1.0 / np.maximum(valence[unique.ravel()], 1), unique.ravel(), np.repeat(np.arange(e), 2), (n, e)
    )
    k = np.maximum(valence, 1).astype(float)
    inner = (
        sp.diags(1 / k) @ (mean_of_faces @ face_points)
        + sp.diags(2 / k) @ (mean_of_edges @ midpoints)
        + sp.diags((k - 3) / k)
    )
    rim = unique[boundary]
    rim_rule = matrix(np.full(2 * len(rim), 0.125), rim.ravel(), rim[:, ::-1].ravel(), (n, n)) + sp.diags(
        np.full(n, 0.75)
    )
    on_rim = np.zeros(n, bool)
    on_rim[rim.ravel()] = True
    vertex_points = sp.diags((~on_rim).astype(float)) @ inner + sp.diags(on_rim.astype(float)) @ rim_rule

    stencil = sp.csr_matrix(sp.vstack([vertex_points, face_points, edge_points]))
    edge_id = inverse.reshape(4, m).T + n + m
    face_id = n + np.arange(m)
    subquads = np.concatenate(
        [np.stack([quads[:, i], edge_id[:, i], face_id, edge_id[:, (i - 1) % 4]], axis=1) for i in range(4)]
    )
    return stencil, subquads
