"""A small textured sphere and cameras that look at it."""

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from helpers import uv_sphere

from renderer import Pinhole


def facing_pose(yaw=0.0, pitch=0.0, at=(0.0, 0.0, 600.0)):
    """T_camera_head of a head that looks into the camera, turned by yaw and pitch."""
    turned = jaxlie.SO3.from_y_radians(yaw) @ jaxlie.SO3.from_x_radians(np.pi + pitch)
    return jaxlie.SE3.from_rotation_and_translation(turned, jnp.array(at))


@pytest.fixture(scope="session")
def sphere():
    """Radius 100 mm; u runs once around it from the back, v from its top down."""
    return uv_sphere(20, 12)


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
