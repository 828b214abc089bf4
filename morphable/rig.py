"""Joints and linear blend skinning: what moves a head that blendshapes do not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Float, Int

from morphable.basis import GaussianBasis


class Gaze(eqx.Module):
    """How the eight eyeLook units turn the eyeballs: a rotation vector at weight 1 for each unit."""

    units: Int[Array, " unit"]  # indices among the expression units
    joints: Int[Array, " unit"]
    rotations: Float[Array, "unit 3"]  # rad, head axes


class Rig(eqx.Module):
    """A kinematic tree whose joint positions are linear in identity and expression, and skinning weights.

    Pose correctives are displacements before skinning, linear in the entries of R - I of all joints but the root
    (Loper et al. 2015, SMPL, section 3), joint by joint and row by row.
    """

    joints: GaussianBasis  # mm
    weights: Float[Array, "vertex joint"]  # rows sum to 1
    gaze: Gaze
    names: tuple[str, ...] = eqx.field(static=True)
    parents: tuple[int, ...] = eqx.field(static=True)  # -1 at the root; a parent comes before its children
    joints_expression: Float[Array, "joint 3 unit"] | None = None  # mm at weight 1; None: joints do not follow
    correctives: Float[Array, "vertex 3 feature"] | None = None  # mm; nine features for each joint but the first

    def __check_init__(self):
        if self.correctives is not None and self.correctives.shape[2] != 9 * (len(self.names) - 1):
            raise ValueError(
                f"Rig: got {self.correctives.shape[2]} pose correctives, expected nine for each of the "
                f"{len(self.names) - 1} joints below the root."
            )
        if len(self.names) != len(self.parents) or self.weights.shape[1] != len(self.names):
            raise ValueError(
                f"Rig: got {len(self.names)} names, {len(self.parents)} parents and weights for "
                f"{self.weights.shape[1]} joints; expected one of each per joint."
            )
        if any(p >= j for j, p in enumerate(self.parents)):
            raise ValueError(f"Rig: parents {self.parents} must each come before their children.")

    def joint_positions(
        self, identity: Float[Array, " rank"], expression: Float[Array, " unit"] | None = None
    ) -> Float[Array, "joint 3"]:
        """Where the joints of a person are, mm; fewer coefficients than modes leave the rest at the mean."""
        joints = self.joints.mean + self.joints.modes[..., : identity.shape[0]] @ identity
        if self.joints_expression is None or expression is None:
            return joints
        return joints + self.joints_expression @ expression

    def corrected(
        self, vertices: Float[Array, "vertex 3"], rotations: Float[Array, "joint 3"]
    ) -> Float[Array, "vertex 3"]:
        """Vertices in the rest pose with the correctives that these joint rotations (rad) call for."""
        if self.correctives is None:
            return vertices
        turned = jax.vmap(lambda w: jaxlie.SO3.exp(w).as_matrix())(rotations[1:]) - jnp.eye(3)
        return vertices + self.correctives @ turned.reshape(-1)

    def rotations(
        self, expression: Float[Array, " unit"], pose: Float[Array, "joint 3"] | None = None
    ) -> Float[Array, "joint 3"]:
        """Rotation vector (rad) of every joint: the given pose, and the eyes turned by the eyeLook units."""
        start = jnp.zeros((len(self.names), 3)) if pose is None else pose
        return start.at[self.gaze.joints].add(self.gaze.rotations * expression[self.gaze.units][:, None])

    def skin(
        self,
        vertices: Float[Array, "vertex 3"],
        joints: Float[Array, "joint 3"],
        rotations: Float[Array, "joint 3"],
    ) -> Float[Array, "vertex 3"]:
        """Linear blend skinning (Lewis et al. 2000): each joint turns about its position in the rest pose."""
        matrices = jax.vmap(lambda w: jaxlie.SO3.exp(w).as_matrix())(rotations)
        world_rotation, world_offset = [], []
        for j, parent in enumerate(self.parents):
            local = joints[j] - matrices[j] @ joints[j]
            if parent < 0:
                world_rotation.append(matrices[j])
                world_offset.append(local)
            else:
                world_rotation.append(world_rotation[parent] @ matrices[j])
                world_offset.append(world_rotation[parent] @ local + world_offset[parent])
        blended = jnp.einsum("vj,jik->vik", self.weights, jnp.stack(world_rotation))
        return jnp.einsum("vik,vk->vi", blended, vertices) + self.weights @ jnp.stack(world_offset)
