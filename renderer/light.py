"""Light as nine spherical harmonics per colour channel, and what it does to a diffuse surface.

A light is its radiance's coefficients, (9, 3), in the orthonormal real basis Y_lm ordered 00, 1-1, 10, 11, 2-2, 2-1,
20, 21, 22: the polynomials 1, y, z, x, xy, yz, 3z^2 - 1, xz, x^2 - y^2 of a unit direction in CAMERA axes (x right,
y down, z forward: light from above comes from -y, from the viewer's side from -z).
A diffuse surface of normal n and albedo a reflects a sum_lm (A_l / pi) L_lm Y_lm(n), with A = pi, 2 pi / 3, pi / 4
(Ramamoorthi & Hanrahan 2001, eq. 8 and 12). So a light of radiance 1 all around reflects the albedo itself.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_A_OVER_PI = np.repeat([1.0, 2 / 3, 1 / 4], [1, 3, 5])
# Of the polynomials above, in their order.
_NORMALISATION = np.sqrt(np.array([1 / 4, 3 / 4, 3 / 4, 3 / 4, 15 / 4, 15 / 4, 5 / 16, 15 / 4, 15 / 16]) / np.pi)


def sh_basis(normals: Float[Array, "*batch 3"]) -> Float[Array, "*batch 9"]:
    """(A_l / pi) Y_lm of unit normals in camera axes: what a surface reflects is `albedo * (sh_basis(n) @ light)`."""
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    polynomials = [jnp.ones_like(x), y, z, x, x * y, y * z, 3 * z**2 - 1, x * z, x**2 - y**2]
    weights = (_A_OVER_PI * _NORMALISATION).tolist()
    return jnp.stack([w * p for w, p in zip(weights, polynomials, strict=True)], axis=-1)


def ambient_white() -> Float[Array, "9 3"]:
    """Radiance 1 from everywhere, under which a surface shows its albedo."""
    return jnp.zeros((9, 3)).at[0].set(float(np.sqrt(4 * np.pi)))


def frontal(ambient: float = 0.35) -> Float[Array, "9 3"]:
    """A white lamp at the viewer, a little above, and ambient light; a surface facing the lamp shows its albedo."""
    direction = np.array([0.0, -0.35, -1.0])
    direction = jnp.asarray(direction / np.linalg.norm(direction), jnp.result_type(float))
    lamp = sh_basis(direction) / jnp.asarray(_A_OVER_PI, direction.dtype)
    lamp = lamp / jnp.dot(sh_basis(direction), lamp)
    return ambient * ambient_white() + (1 - ambient) * jnp.broadcast_to(lamp[:, None], (9, 3))


def solve_light(
    albedo: Float[Array, "point 3"],
    normals: Float[Array, "point 3"],
    colour: Float[Array, "point 3"],
    weight: Float[Array, "point"],
    ridge: float = 1e-3,
) -> Float[Array, "9 3"]:
    """The light under which points of known albedo and unit normals (camera axes) have the observed linear colour.

    Weighted least squares in closed form. `ridge` draws the coefficients of bands 1 and 2 to zero, in units of the
    ambient band's own weight, for faces show half of the sphere of normals at best; band 0 is free. Points whose
    weight is zero may hold anything finite; without any weight the light is zero.
    """
    basis = sh_basis(normals)  # (point, 9)
    design = jnp.transpose(albedo)[:, :, None] * basis[None]  # (3, point, 9)
    weighted = design * weight[None, :, None]
    normal_matrix = jnp.einsum("cpi,cpj->cij", weighted, design, precision="highest")
    right = jnp.einsum("cpi,pc->ci", weighted, colour, precision="highest")
    scale = normal_matrix[:, 0, 0]
    penalty = jnp.asarray(np.repeat([0.0, 1.0], [1, 8]), basis.dtype) * ridge
    # The last term only matters where there is no weight at all: the matrix stays invertible, the light zero.
    diagonal = scale[:, None] * (penalty[None] + 1e-7) + 1e-12
    coefficients = jnp.linalg.solve(normal_matrix + jnp.eye(9)[None] * diagonal[:, :, None], right[:, :, None])
    return jnp.transpose(coefficients[:, :, 0])
