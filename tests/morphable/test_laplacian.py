"""Laws of the Laplacian, of its eigenfunctions and of the field that it is a prior of, on a sphere and on a sheet."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from morphable.laplacian import cotangent_laplacian, inner_vertices, laplacian_modes, manifold_harmonics
from morphable.mesh import catmull_clark, triangulate

RADIUS, SIDE, CELLS = 80.0, 50.0, 24


def sphere(levels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A closed mesh: a subdivided cube, its vertices moved to a sphere."""
    points = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], float)
    quads = np.array([[4, 5, 7, 6], [1, 0, 2, 3], [5, 1, 3, 7], [0, 4, 6, 2], [6, 7, 3, 2], [0, 1, 5, 4]])
    for _ in range(levels):
        stencil, quads = catmull_clark(quads, len(points))
        points = stencil @ points
    return RADIUS * points / np.linalg.norm(points, axis=1, keepdims=True), triangulate(quads)


def sheet() -> tuple[np.ndarray, np.ndarray]:
    """A flat square with unequal cells: its triangles' shapes must not matter."""
    along = np.linspace(0, 1, CELLS + 1) + 0.02 * np.sin(2 * np.pi * np.linspace(0, 1, CELLS + 1))
    x, y = np.meshgrid(SIDE * along, SIDE * along[::-1])
    index = np.arange(x.size).reshape(x.shape)
    quads = np.stack([index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]], axis=-1).reshape(-1, 4)
    return np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1), triangulate(quads)


def bent() -> tuple[np.ndarray, np.ndarray]:
    """The sheet as a hill."""
    vertices, triangles = sheet()
    vertices[:, 2] = 12 * np.sin(vertices[:, 0] / 9) * np.cos(vertices[:, 1] / 14)
    return vertices, triangles


MESHES = pytest.mark.parametrize("make", [sphere, sheet, bent])


@MESHES
def test_it_is_symmetric_and_positive_semi_definite_and_constants_alone_are_its_kernel(make):
    laplacian = cotangent_laplacian(*make())
    dense = laplacian.stiffness.toarray()
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    values = np.linalg.eigvalsh(dense)
    assert abs(values[0]) < 1e-9 < 1e-3 < values[1]
    np.testing.assert_allclose(laplacian(np.full(len(dense), 3.0)), 0.0, atol=1e-10)


@MESHES
def test_rigid_motions_do_not_change_it_and_size_changes_its_unit(make):
    vertices, triangles = make()
    before = cotangent_laplacian(vertices, triangles)
    turned = vertices @ Rotation.from_euler("xyz", [20, 50, -70], True).as_matrix().T + [100, -20, 300]
    after, larger = cotangent_laplacian(turned, triangles), cotangent_laplacian(3 * vertices, triangles)
    np.testing.assert_allclose(after.stiffness.toarray(), before.stiffness.toarray(), atol=1e-9)
    np.testing.assert_allclose(after.mass, before.mass, rtol=1e-9)
    values = vertices[:, 0] ** 2
    np.testing.assert_allclose(larger(values), before(values) / 9, atol=1e-9)


def test_its_mass_is_the_area():
    vertices, triangles = sheet()
    assert cotangent_laplacian(vertices, triangles).mass.sum() == pytest.approx(SIDE**2)


def test_linear_functions_have_none_on_a_plane():
    """Linear precision (Wardetzky et al. 2007), which weights that know no geometry lack."""
    vertices, triangles = sheet()
    inner = inner_vertices(triangles, np.ones(len(vertices), bool))
    slope = cotangent_laplacian(vertices, triangles)(2 * vertices[:, 0] - 5 * vertices[:, 1] + 7)
    np.testing.assert_allclose(slope[inner], 0.0, atol=1e-9)


@MESHES
def test_of_positions_it_is_the_areas_gradient(make):
    """Pinkall & Polthier 1993, exact on every mesh: the mean curvature is how fast the area grows outwards."""
    vertices, triangles = make()
    stiffness = cotangent_laplacian(vertices, triangles).stiffness
    area = lambda x: np.linalg.norm(np.cross(*(x[triangles[:, k]] - x[triangles[:, 0]] for k in (1, 2))), axis=1).sum()  # noqa: E731
    step = 1e-4 * np.random.default_rng(1).normal(size=vertices.shape)
    growth = (area(vertices + step) - area(vertices - step)) / 4
    assert np.sum(step * (stiffness @ vertices)) == pytest.approx(growth, rel=1e-5)


def test_eigenvalues_of_a_sphere_and_of_a_clamped_square_are_those_known():
    on_sphere = manifold_harmonics(cotangent_laplacian(*sphere()), 9).eigenvalues
    np.testing.assert_allclose(on_sphere * RADIUS**2, [0, 2, 2, 2, 6, 6, 6, 6, 6], rtol=0.02, atol=1e-6)
    vertices, triangles = sheet()
    inner = inner_vertices(triangles, np.ones(len(vertices), bool))
    clamped = manifold_harmonics(cotangent_laplacian(vertices, triangles), 6, inner).eigenvalues
    np.testing.assert_allclose(clamped * (SIDE / np.pi) ** 2, [2, 5, 5, 8, 10, 10], rtol=0.02)


@pytest.mark.parametrize("clamped", [False, True])
def test_eigenfunctions_solve_their_equation_and_are_orthonormal(clamped):
    vertices, triangles = bent()
    laplacian = cotangent_laplacian(vertices, triangles)
    free = inner_vertices(triangles, vertices[:, 0] < 30.0) if clamped else np.ones(len(vertices), bool)
    values, functions = manifold_harmonics(laplacian, 30, free)
    assert np.all(functions[~free] == 0.0)
    np.testing.assert_allclose(functions.T @ (laplacian.mass[:, None] * functions), np.eye(30), atol=1e-8)
    error = laplacian.stiffness @ functions - laplacian.mass[:, None] * functions * values
    np.testing.assert_allclose(error[free], 0.0, atol=1e-8)
    assert np.all(np.diff(values) > -1e-12)


def test_inner_vertices_are_those_that_a_region_surrounds():
    vertices, triangles = sheet()
    row, column = np.divmod(np.arange(len(vertices)), CELLS + 1)
    region = (row <= 10) & (column >= 5) & (column <= 12)
    region[-1] = True  # alone, it has no triangle
    # The first row is the mesh's own rim.
    expected = (row >= 1) & (row <= 9) & (column >= 6) & (column <= 11)
    np.testing.assert_array_equal(inner_vertices(triangles, region), expected)


def test_samples_have_the_stated_deviation_and_the_laplacians_energy():
    vertices, triangles = bent()
    region = np.ones(len(vertices), bool)
    free, laplacian = inner_vertices(triangles, region), cotangent_laplacian(vertices, triangles)
    modes = laplacian_modes(vertices, triangles, region, 40)
    assert np.all(modes[~free] == 0.0)
    c = np.random.default_rng(0).normal(size=(40, 4000))
    variance = ((modes @ c) ** 2).mean(axis=1)
    mean = laplacian.mass[free] @ variance[free] / laplacian.mass[free].sum()
    assert np.sqrt(mean) == pytest.approx(1.0, abs=0.03)
    # The energy ∫ |L d|² is that of the coefficients, up to the one factor that the deviation's unit makes.
    energies = [laplacian.mass[free] @ laplacian(modes @ x)[free] ** 2 for x in c.T[:20]]
    ratio = np.array(energies) / (c.T[:20] ** 2).sum(axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_the_size_of_the_mesh_does_not_change_the_deviation():
    vertices, triangles = bent()
    region = np.ones(len(vertices), bool)
    small, large = (laplacian_modes(k * vertices, triangles, region, 10) for k in (1.0, 3.0))
    np.testing.assert_allclose(np.abs(large), np.abs(small), atol=1e-8)


def test_more_functions_than_vertices_are_refused():
    laplacian = cotangent_laplacian(*sheet())
    with pytest.raises(ValueError, match="got 625 functions of 625 free vertices"):
        manifold_harmonics(laplacian, 625)
