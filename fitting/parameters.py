"""What a fit solves for, and how a solver's flat step moves it."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float


class FaceParameters(eqx.Module):
    """One face in one image. Coefficients in standard deviations, expression weights between their limits."""

    identity: Float[Array, " identity"]
    expression: Float[Array, " unit"]
    albedo: Float[Array, " albedo"]
    light: Float[Array, "9 3"]  # spherical harmonics, camera frame; see renderer.light
    pose: jaxlie.SE3  # T_camera_head, mm
    log_focal: Float[Array, ""]  # logarithm of the focal length in pixels of the fitted image
    # Linear RGB added to what the head reflects: haze, flare, raised blacks (Blanz & Vetter 2003). Their gain is part
    # of the light, which has the same effect.
    offset: Float[Array, "3"]
    # Lowest and highest expression weights: data of the model, not unknowns. [0, 1] for units such as ARKit's.
    limits: Float[Array, "2 unit"]

    @property
    def layout(self) -> "Layout":
        """Where each block lies in a flat step."""
        return Layout(self.identity.shape[0], self.expression.shape[0], self.albedo.shape[0])

    def block(self, name: str) -> Float[Array, " n"]:
        """The values of one block, flat as in `layout`; the pose has none, its part of a step is a motion."""
        match name:
            case "identity" | "expression" | "albedo" | "offset":
                return getattr(self, name)
            case "light":
                return self.light.reshape(-1)
            case "focal":
                return self.log_focal[None]
        raise ValueError(
            f"FaceParameters.block: got {name!r}, expected one of identity, expression, albedo, light, focal, offset. "
            "For the pose use PosePrior."
        )


class Layout(NamedTuple):
    """Blocks of the flat step: identity, expression, albedo, light (9 x 3), twist (6), log focal, colour offset (3)."""

    identity_rank: int
    unit_count: int
    albedo_rank: int

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self.block("offset").stop

    def block(self, name: str) -> slice:
        """The range of one block: identity, expression, geometry (both), albedo, light, pose, focal or offset."""
        i, e, a = self.identity_rank, self.unit_count, self.albedo_rank
        starts = {
            "identity": (0, i),
            "expression": (i, i + e),
            "geometry": (0, i + e),
            "albedo": (i + e, i + e + a),
            "light": (i + e + a, i + e + a + 27),
            "pose": (i + e + a + 27, i + e + a + 33),
            "focal": (i + e + a + 33, i + e + a + 34),
            "offset": (i + e + a + 34, i + e + a + 37),
        }
        if name not in starts:
            raise ValueError(f"unknown parameter block {name!r}; expected one of {', '.join(starts)}.")
        return slice(*starts[name])

    def free(self, *blocks: str) -> Float[Array, " step"]:
        """Ones where an unknown belongs to one of the blocks, else zeros: which unknowns a solver may move."""
        mask = jnp.zeros(self.size)
        for name in blocks:
            mask = mask.at[self.block(name)].set(1.0)
        return mask


def within_limits(face: FaceParameters) -> FaceParameters:
    """The face with its expression weights clipped to their limits."""
    low, high = face.limits
    return dataclasses.replace(face, expression=jnp.clip(face.expression, low, high))


def retract(face: FaceParameters, step: Float[Array, " step"]) -> FaceParameters:
    """The face after a step: coefficients add, the pose moves in its tangent space (pose · exp(twist)).

    The twist acts on the head's side, so it turns the head about its own origin rather than about the camera.
    """
    at = face.layout.block
    return FaceParameters(
        identity=face.identity + step[at("identity")],
        expression=face.expression + step[at("expression")],
        albedo=face.albedo + step[at("albedo")],
        light=face.light + step[at("light")].reshape(9, 3),
        pose=face.pose @ jaxlie.SE3.exp(step[at("pose")]),
        log_focal=face.log_focal + step[at("focal")][0],
        offset=face.offset + step[at("offset")],
        limits=face.limits,
    )


def natural_steps(layout: Layout) -> Float[Array, " step"]:
    """How far each unknown typically moves in a fit: what makes radians, millimetres and light comparable.

    Deviations for coefficients, .25 for expression weights, .3 for light, 5 mm and .05 rad for the pose, a tenth for
    the focal length and .02 for the colour offset. Solvers without curvature scale their steps by it.
    """
    sizes = {"identity": 1.0, "expression": 0.25, "albedo": 1.0, "light": 0.3, "focal": 0.1, "offset": 0.02}
    step = jnp.ones(layout.size)
    for name, size in sizes.items():
        step = step.at[layout.block(name)].set(size)
    return step.at[layout.block("pose")].set(jnp.array([5.0, 5.0, 5.0, 0.05, 0.05, 0.05]))


def unit_limits(unit_count: int) -> Float[np.ndarray, "2 unit"]:
    """The limits of blendshape weights, [0, 1]."""
    return np.repeat(np.array([[0.0], [1.0]], np.float32), unit_count, axis=1)


def start_parameters(
    identity_rank: int, unit_count: int, albedo_rank: int, limits: Float[Array, "2 unit"] | None = None
) -> FaceParameters:
    """The mean face one metre in front of the camera, white ambient light; expression weights in [0, 1] by default."""
    # In NumPy: as JAX operations outside of a compiled program each of these would be compiled by itself.
    light = np.zeros((9, 3), np.float32)
    light[0] = np.sqrt(4 * np.pi)
    facing = [0.0, 1.0, 0.0, 0.0]  # half a turn about x: head axes (y up, z out of the face) to the camera's
    zeros = lambda n: jnp.asarray(np.zeros(n, np.float32))  # noqa: E731
    return FaceParameters(
        identity=zeros(identity_rank),
        expression=zeros(unit_count),
        albedo=zeros(albedo_rank),
        light=jnp.asarray(light),
        pose=jaxlie.SE3(jnp.asarray(np.array([*facing, 0.0, 0.0, 1000.0], np.float32))),
        log_focal=jnp.asarray(np.float32(np.log(1000.0))),
        offset=zeros(3),
        limits=jnp.asarray(unit_limits(unit_count)) if limits is None else limits,
    )
