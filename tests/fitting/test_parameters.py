import jax.numpy as jnp
import numpy as np
import pytest

from fitting.parameters import Layout, retract, start_parameters


def test_a_zero_step_changes_nothing():
    face = start_parameters(6, 4, 4)
    same = retract(face, jnp.zeros(face.layout.size))
    np.testing.assert_allclose(same.pose.as_matrix(), face.pose.as_matrix())
    np.testing.assert_array_equal(same.light, face.light)


def test_twist_turns_the_head_about_its_own_origin():
    face = start_parameters(6, 4, 4)
    at = face.layout.block("pose")
    turned = retract(face, jnp.zeros(face.layout.size).at[at].set(jnp.array([0, 0, 0, 0.0, 0.4, 0.0])))
    np.testing.assert_allclose(turned.pose.translation(), face.pose.translation(), atol=1e-4)


def test_blocks_tile_the_step():
    layout = Layout(6, 4, 5)
    names = ("identity", "expression", "albedo", "light", "pose", "focal", "offset")
    covered = np.concatenate([np.arange(layout.size)[layout.block(n)] for n in names])
    np.testing.assert_array_equal(covered, np.arange(layout.size))
    np.testing.assert_array_equal(
        np.flatnonzero(layout.free("pose", "focal")), np.r_[layout.block("pose"), layout.block("focal")]
    )
    with pytest.raises(ValueError, match="unknown parameter block 'hair'"):
        layout.block("hair")
