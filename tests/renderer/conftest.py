"""A small textured sphere and cameras that look at it."""

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from morphable.mesh import Mesh
from renderer import Pinhole


def facing_pose(yaw=0.0, pitch=0.0, at=(0.0, 0.0, 600.0)):
    """T_camera_head of a head that looks into the camera, turned by yaw and pitch."""
    turned = jaxlie.SO3.from_y_radians(yaw) @ jaxlie.SO3.from_x_radians(np.pi + pitch)
    return jaxlie.SE3.from_rotation_and_translation(turned, jnp.array(at))


@pytest.fixture(scope="session")
def sphere():
    """Radius 100 mm; u runs once around it from the back, v from its top down."""
    columns, rows = 20, 12
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    around, down = (u - 0.5) * 2 * np.pi, v * np.pi
    points = [np.sin(around) * np.sin(down), np.cos(down), np.cos(around) * np.sin(down)]
    i = np.arange(rows * (columns + 1)).reshape(rows, columns + 1)[:, :-1].ravel()
    below = i + columns + 1
    triangles = np.concatenate([np.stack([i, below, below + 1], 1), np.stack([i, below + 1, i + 1], 1)])
    return Mesh(
        vertices=jnp.asarray(100 * np.stack(points, -1).reshape(-1, 3), jnp.float32),
        triangles=jnp.asarray(triangles, jnp.int32),
        uv=jnp.asarray(np.stack([u.ravel(), v.ravel()], 1), jnp.float32),
    )


@pytest.fixture(scope="session")
def camera():
    return Pinhole(
        focal=jnp.array([110.0, 110.0]),
        centre=jnp.array([24.0, 20.0]),
        pose=facing_pose(0.4, 0.2, (5.0, -3.0, 500.0)),
        height=40,
        width=48,
    )


@pytest.fixture(scope="session")
def facing(camera):
    """A camera 500 mm straight before the head."""
    return Pinhole(
        focal=camera.focal, centre=camera.centre, pose=facing_pose(at=(0.0, 0.0, 500.0)), height=40, width=48
    )
