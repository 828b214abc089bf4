"""The Laplacian of a triangle mesh, its eigenfunctions, and the smooth random fields that it is a prior of.

The cotangent formula (Pinkall & Polthier 1993), divided by each vertex's area, stands for the surface's differential
operator whatever its triangles: linear finite elements with a lumped mass. Displacements that leave it as it is keep
the surface's details, as in Laplacian mesh editing (Sorkine et al. 2004; Botsch & Sorkine 2008); those that change it
little are smooth.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy.sparse.linalg import eigsh


class Laplacian(NamedTuple):
    """L = M⁻¹ S, positive semi-definite in the scalar product of M: dᵀ S d is the integral of |∇d|²."""

    stiffness: sp.csr_matrix  # S, (vertex, vertex), without unit
    mass: Float[np.ndarray, " vertex"]  # the diagonal of M: a third of the areas of a vertex's triangles, mm²

    def __call__(self, values: Float[np.ndarray, " vertex"]) -> Float[np.ndarray, " vertex"]:
        """L d, in the values' unit per mm²; positive on hilltops. 0 at vertices without triangles."""
        return np.divide(self.stiffness @ values, self.mass, out=np.zeros(len(self.mass)), where=self.mass > 0)


class Harmonics(NamedTuple):
    """Eigenfunctions of a Laplacian: S φ = λ M φ, φᵀ M φ = 1, the smoothest first."""

    eigenvalues: Float[np.ndarray, " mode"]  # 1/mm²
    functions: Float[np.ndarray, "vertex mode"]  # 1/mm


def cotangent_laplacian(vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]) -> Laplacian:
    """The Laplacian of a mesh with vertices in mm. At a rim its boundary condition is the natural one, ∂d/∂n = 0."""
    vertices = np.asarray(vertices, float)
    count = len(vertices)
    rows, columns, values = [], [], []
    side_1, side_2 = (vertices[triangles[:, k]] - vertices[triangles[:, 0]] for k in (1, 2))
    area = np.linalg.norm(np.cross(side_1, side_2), axis=1) / 2
    for k in range(3):
        i, j, opposite = (triangles[:, (k + s) % 3] for s in range(3))
        a, b = vertices[i] - vertices[opposite], vertices[j] - vertices[opposite]
        # Half the cotangent; a triangle without area, which has none, joins nothing.
        half = np.divide((a * b).sum(axis=1), 4 * area, out=np.zeros(len(area)), where=area > 0)
        rows += [i, j, i, j]
        columns += [j, i, i, j]
        values += [-half, -half, half, half]
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    stiffness = sp.csr_matrix(entries, shape=(count, count))
    return Laplacian(stiffness, np.bincount(triangles.ravel(), np.repeat(area / 3, 3), minlength=count))


def inner_vertices(
    triangles: Int[np.ndarray, "triangle 3"], region: Bool[np.ndarray, " vertex"]
) -> Bool[np.ndarray, " vertex"]:
    """The vertices of a region of a mesh without its border: those whose triangles all lie in it and surround them."""
    inside = region[triangles].all(axis=1)
    out = np.zeros(len(region), bool)
    out[triangles[inside]] = True
    out[triangles[~inside]] = False
    edges = np.sort(np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)]), axis=1)
    unique, uses = np.unique(edges, axis=0, return_counts=True)
    out[unique[uses == 1]] = False
    return out


def manifold_harmonics(laplacian: Laplacian, count: int, free: Bool[np.ndarray, " vertex"] | None = None) -> Harmonics:
    """The `count` smoothest eigenfunctions (Vallet & Lévy 2008), 0 where a vertex is not free (Dirichlet's condition).

    Without `free` all vertices of triangles are.
    """
    kept = np.flatnonzero((laplacian.mass > 0) & (True if free is None else free))
    if not 0 < count < len(kept):
        raise ValueError(
            f"manifold_harmonics: got {count} functions of {len(kept)} free vertices, expected one or more and fewer "
            "than vertices. Ask for fewer, or free a larger part of the mesh."
        )
    root = np.sqrt(laplacian.mass[kept])
    # φ = M^(-1/2) ψ makes of S φ = λ M φ an ordinary symmetric problem in ψ.
    scale = sp.diags(1 / root)
    symmetric = sp.csc_matrix(scale @ laplacian.stiffness[kept][:, kept] @ scale)
    # Inverse iteration about a value below all eigenvalues, as 0 may be one; of the lowest ones' order on the face.
    shift = -1.0 / laplacian.mass[kept].sum()
    eigenvalues, vectors = eigsh(symmetric, k=count, sigma=shift, v0=root)
    order = np.argsort(eigenvalues)
    functions = np.zeros((len(laplacian.mass), count))
    functions[kept] = vectors[:, order] / root[:, None]
    return Harmonics(eigenvalues[order], functions)


def laplacian_modes(
    vertices: Float[np.ndarray, "vertex 3"],
    triangles: Int[np.ndarray, "triangle 3"],
    region: Bool[np.ndarray, " vertex"],
    count: int,
) -> Float[np.ndarray, "vertex mode"]:
    """Scalar modes of the random field d with energy ½ ∫ |L d|² / s² on a region, d = 0 on its border and off it.

    Its covariance is s² Σ φ φᵀ / λ² over the region's harmonics. Eigenvalues grow as their index (Weyl's law), so what
    `count` modes leave out of the variance falls as 1 / count. The modes are those at a deviation of 1 mm, the root of
    the variance's mean over the region's area, whatever the region's size.
    """
    laplacian = cotangent_laplacian(vertices, triangles)
    free = inner_vertices(triangles, region)
    eigenvalues, functions = manifold_harmonics(laplacian, count, free)
    area = laplacian.mass[free].sum()
    return functions / eigenvalues * np.sqrt(area / np.sum(eigenvalues**-2))
