"""Named points on the model's surface: fixed landmarks, and the contour that moves with the view."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# iBUG / Multi-PIE 68 order (Sagonas et al. 2013): jaw 0-16 from the subject's right ear to the left, brows 17-26,
# nose 27-35, eyes 36-47, lips 48-67.
JAW = slice(0, 17)
INNER = slice(17, 68)
MIRROR_68 = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)


# The vertices of MediaPipe's 478-point face mesh that lie nearest to iBUG's 68 points, in iBUG's order.
MEDIAPIPE_OF_IBUG = np.array(
    [162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389]
    + [71, 63, 105, 66, 107, 336, 296, 334, 293, 301]
    + [168, 197, 5, 4, 75, 97, 2, 326, 305]
    + [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]
    + [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87]
)


class SurfacePoints(eqx.Module):
    """Points fixed to the surface: three vertices each, and barycentric weights."""

    vertices: Int[Array, "point 3"]
    weights: Float[Array, "point 3"]

    def __call__(self, values: Float[Array, "vertex channel"]) -> Float[Array, "point channel"]:
        """Per-vertex values (positions, colours, ...) at the points."""
        return jnp.sum(values[self.vertices] * self.weights[:, :, None], axis=1)


class ContourFans(eqx.Module):
    """For each of the 17 jaw landmarks, candidates along a path from the cheek to behind the jaw.

    A detector's jaw points lie on the *visible* outline, which slides over the surface as the head turns
    (Zhu et al. 2015, "High-fidelity pose and expression normalization", section 3.1). Each path lies in the
    half-plane that holds the landmark and the forward axis.
    """

    vertices: Int[Array, "path step 3"]
    weights: Float[Array, "path step 3"]

    def points(self, values: Float[Array, "vertex channel"]) -> Float[Array, "path step channel"]:
        """Per-vertex values at every candidate."""
        return jnp.sum(values[self.vertices] * self.weights[..., None], axis=2)

    @staticmethod
    def outermost(projected: Float[Array, "path step 2"], rotation: Float[Array, "3 3"]) -> Int[Array, " path"]:
        """The outermost candidate of each path in an image, for a head turned by `rotation` (camera from head)."""
        up = rotation[:2, 1] / jnp.linalg.norm(rotation[:2, 1])
        # The subject's left in the image, were the head rolled but not turned.
        left = jnp.stack([-up[1], up[0]])
        middle = projected.shape[1] // 2
        angle = jnp.linspace(jnp.pi, 2 * jnp.pi, projected.shape[0])
        # The mean jaw is close to half an ellipse in the frontal plane: its directions serve every model.
        towards = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1) @ jnp.stack([left, up])
        reach = jnp.sum((projected - projected[:, middle : middle + 1]) * towards[:, None, :], axis=2)
        return jnp.argmax(reach, axis=1)
