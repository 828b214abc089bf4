"""From triangle ids and barycentrics to attributes and reflected light at every pixel."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from renderer.light import sh_basis


def interpolate(
    attributes: Float[Array, "vertex channel"],
    triangles: Int[Array, "triangle 3"],
    ids: Int[Array, "*shape"],
    weights: Float[Array, "*shape 3"],
) -> Float[Array, "*shape channel"]:
    """Vertex attributes at the points that ids and barycentrics name; zeros where ids is -1."""
    total = 0.0
    for k in range(3):
        total = total + attributes[triangles[:, k][jnp.maximum(ids, 0)]] * weights[..., k, None]
    return jnp.where((ids >= 0)[..., None], total, 0.0)


def lambert(
    albedo: Float[Array, "*shape 3"], normals: Float[Array, "*shape 3"], light: Float[Array, "9 3"]
) -> Float[Array, "*shape 3"]:
    """Linear colour of a diffuse surface; unit normals in camera axes."""
    return albedo * jnp.matmul(sh_basis(normals), light, precision="highest")


def unit(vectors: Float[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
    """Vectors scaled to length one; zero stays zero, and its derivative finite."""
    return vectors / jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-20)
