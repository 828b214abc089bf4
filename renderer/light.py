"""Light as nine spherical harmonics per colour channel, and what it does to a diffuse surface; and a single lamp.

A light is its radiance's coefficients, (9, 3), in the orthonormal real basis Y_lm ordered 00, 1-1, 10, 11, 2-2, 2-1,
20, 21, 22: the polynomials 1, y, z, x, xy, yz, 3z^2 - 1, xz, x^2 - y^2 of a unit direction in CAMERA axes (x right,
y down, z forward: light from above comes from -y, from the viewer's side from -z).
A diffuse surface of normal n and albedo a reflects a sum_lm (A_l / pi) L_lm Y_lm(n), with A = pi, 2 pi / 3, pi / 4
(Ramamoorthi & Hanrahan 2001, eq. 8 and 12). So a light of radiance 1 all around reflects the albedo itself.

An environment map is a panorama (equirectangular, linear RGB) as seen from the head's place by somebody who looks along
the camera's axis with the camera upright: the middle of the picture is camera +z, to the right of it is +x, the top is
-y, the left and right borders are -z, where the viewer is. Pixel (row, column) of height x width covers longitudes
2 pi [column, column + 1) / width - pi and polar angles pi [row, row + 1) / height, in the directions
    (sin polar sin longitude, -cos polar, sin polar cos longitude).
OpenEXR, OpenUSD and Mitsuba put the same picture around axes (x, y, z) = (-x, -y, z) of the camera (x left, y up, z
forward: half a turn about the camera's axis), Blender around (z, -x, -y) (x forward, y left, z up). So a map made for
a world shows that world if the camera looks along its +z (Blender: its +x) and is upright, else `rotate_light` helps.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

_A_OVER_PI = np.repeat([1.0, 2 / 3, 1 / 4], [1, 3, 5])
# Of the polynomials above, in their order.
_NORMALISATION = np.sqrt(np.array([1 / 4, 3 / 4, 3 / 4, 3 / 4, 15 / 4, 15 / 4, 5 / 16, 15 / 4, 15 / 16]) / np.pi)
_BAND1_AXES = np.array([1, 2, 0])  # Y_1-1, Y_10, Y_11 are y, z, x
# Band 2 as quadratic forms d^T M d of a direction d, with M symmetric and without trace.
_BAND2_FORMS = _NORMALISATION[4:, None, None] * np.array(
    [
        [[0, 1 / 2, 0], [1 / 2, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 1 / 2], [0, 1 / 2, 0]],
        [[-1, 0, 0], [0, -1, 0], [0, 0, 2]],
        [[0, 0, 1 / 2], [0, 0, 0], [1 / 2, 0, 0]],
        [[1, 0, 0], [0, -1, 0], [0, 0, 0]],
    ]
)


def sh_basis(normals: Float[Array, "*batch 3"]) -> Float[Array, "*batch 9"]:
    """(A_l / pi) Y_lm of unit normals in camera axes: what a surface reflects is `albedo * (sh_basis(n) @ light)`."""
    return _polynomials(normals, _A_OVER_PI * _NORMALISATION)


def radiance(light: Float[Array, "9 3"], directions: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """The light itself, as seen in unit directions of camera axes; it may be negative where bands 0 to 2 overshoot."""
    return jnp.matmul(_polynomials(directions, _NORMALISATION), light, precision="highest")


def rotate_light(light: Float[Array, "9 3"], rotation: Float[Array, "3 3"]) -> Float[Array, "9 3"]:
    """The light turned by a rotation R: what came from direction d comes from R d.

    `rotate_light(light, camera.rotation)` takes a light given in head axes to camera axes. Exact, and smooth in R:
    band 1 is a vector; band 2 a quadratic form, of matrix M, which becomes R M R^T.
    """
    band1 = jnp.zeros((3, 3), light.dtype).at[_BAND1_AXES].set(light[1:4])  # axes x, y, z in order
    band1 = jnp.matmul(rotation, band1, precision="highest")[_BAND1_AXES]
    forms = jnp.asarray(_BAND2_FORMS, light.dtype)
    band2 = jnp.einsum("mij,mc->ijc", forms, light[4:], precision="highest")
    band2 = jnp.einsum("ai,bj,ijc->abc", rotation, rotation, band2, precision="highest")
    # Over the sphere, d^T M d times d^T N d integrates to 8 pi / 15 tr(M N) if neither has a trace.
    band2 = 8 * np.pi / 15 * jnp.einsum("mij,ijc->mc", forms, band2, precision="highest")
    return jnp.concatenate([light[:1], band1, band2])


def to_environment(light: Float[Array, "9 3"], height: int, width: int) -> Float[Array, "{height} {width} 3"]:
    """The light as an environment map, sampled at the pixels' centres; module docstring for the map's axes."""
    return radiance(light, _map_directions(height, width, light.dtype))


def from_environment(environment: Float[Array, "height width 3"]) -> Float[Array, "9 3"]:
    """The light of an environment map of linear radiance; module docstring for the map's axes.

    The least-squares fit over the sphere, pixels weighted by their exact solid angles: the projection onto the basis,
    except that the basis is orthonormal only up to the size of a pixel, for which the fit corrects. So a map made of
    bands 0 to 2 gives them back exactly. Linear in the map, which must be 3 pixels high and 5 wide at least.
    """
    height, width = environment.shape[:2]
    if height < 3 or width < 5:
        raise ValueError(f"environment map: got {height}x{width} pixels, nine coefficients need at least 3x5")
    directions = _map_directions(height, width, environment.dtype)
    borders = np.cos(np.pi * np.arange(height + 1) / height)
    solid_angle = jnp.asarray((borders[:-1] - borders[1:]) * 2 * np.pi / width, environment.dtype)
    basis = _polynomials(directions, _NORMALISATION)
    weighted = basis * solid_angle[:, None, None]
    gram = jnp.einsum("rci,rcj->ij", weighted, basis, precision="highest")
    return jnp.linalg.solve(gram, jnp.einsum("rci,rck->ik", weighted, environment, precision="highest"))


class DirectionalLight(eqx.Module):
    """A lamp infinitely far away."""

    direction: Float[Array, "3"]  # unit vector of camera axes from the surface towards the lamp
    colour: Float[Array, "3"]  # linear RGB: a diffuse surface that faces the lamp shows albedo * colour

    def harmonics(self) -> Float[Array, "9 3"]:
        """The lamp's bands 0 to 2, as a light. A surface facing it shows 17/16 of what the lamp itself would give."""
        return np.pi * _polynomials(self.direction, _NORMALISATION)[:, None] * self.colour[None]


def direction_from_angles(azimuth: Float[ArrayLike, ""], elevation: Float[ArrayLike, ""]) -> Float[Array, "3"]:
    """Unit vector of camera axes, in radians: (0, 0) points at the viewer, azimuth turns right in the picture.

    Elevation rises to the picture's top, which is straight above at pi / 2.
    """
    right, towards = jnp.sin(azimuth), jnp.cos(azimuth)
    level = jnp.cos(elevation)
    return jnp.stack([right * level, -jnp.sin(elevation), -towards * level])


def ambient_light(colour: Float[Array, "3"]) -> Float[Array, "9 3"]:
    """The same radiance, linear RGB, from everywhere, under which a surface shows its albedo times the colour."""
    return jnp.zeros((9, 3), colour.dtype).at[0].set(float(np.sqrt(4 * np.pi)) * colour)


def ambient_white() -> Float[Array, "9 3"]:
    """Radiance 1 from everywhere, under which a surface shows its albedo."""
    return ambient_light(jnp.ones(3))


def frontal(ambient: float = 0.35) -> Float[Array, "9 3"]:
    """A white lamp at the viewer, a little above, and ambient light; a surface facing the lamp shows its albedo."""
    direction = np.array([0.0, -0.35, -1.0])
    direction = jnp.asarray(direction / np.linalg.norm(direction), jnp.result_type(float))
    lamp = DirectionalLight(direction, jnp.ones_like(direction)).harmonics() * (16 / 17)
    return ambient * ambient_white() + (1 - ambient) * lamp


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


def _polynomials(directions, weights):
    """The nine polynomials of the module docstring, each times its weight."""
    x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
    polynomials = [jnp.ones_like(x), y, z, x, x * y, y * z, 3 * z**2 - 1, x * z, x**2 - y**2]
    return jnp.stack([w * p for w, p in zip(weights.tolist(), polynomials, strict=True)], axis=-1)


def _map_directions(height, width, dtype):
    """Unit directions of camera axes at the centres of an environment map's pixels."""
    polar = np.pi * (np.arange(height)[:, None] + 0.5) / height
    longitude = 2 * np.pi * (np.arange(width)[None] + 0.5) / width - np.pi
    sine, cosine, across, along = (
        jnp.asarray(a, dtype) for a in (np.sin(polar), np.cos(polar), np.sin(longitude), np.cos(longitude))
    )
    return jnp.stack([sine * across, jnp.broadcast_to(-cosine, (height, width)), sine * along], axis=-1)
