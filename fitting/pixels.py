"""Terms that compare whole pictures: the head drawn by the renderer against the photo, or against a silhouette.

They cost a rendering for every evaluation, and one for every unknown when Gauss-Newton differentiates them: made for
first-order solvers, small pictures and few unknowns. `fitting.photometric` is the fast way to use colour.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float, Int

from fitting.parameters import FaceParameters
from fitting.photometric import NOMINAL_SAMPLES
from fitting.surface_samples import PointBasis
from fitting.terms import AbstractKernel, AbstractResidualTerm, GemanMcClure
from morphable.colour import linear_to_srgb, srgb_to_linear
from morphable.mesh import Mesh
from morphable.model import MorphableModel
from renderer.camera import Pinhole
from renderer.render import render
from renderer.shade import ColourTransform
from renderer.silhouette import EdgeTable, edge_table
from renderer.soft import soft_render


class HeadSurface(eqx.Module):
    """The mesh that is drawn: positions and albedo linear in the coefficients."""

    basis: PointBasis
    albedo: Float[Array, "vertex 3"]  # sRGB-encoded
    albedo_modes: Float[Array, "vertex 3 rank"]
    triangles: Int[Array, "triangle 3"]
    edges: EdgeTable

    def mesh(self, face: FaceParameters) -> Mesh:
        """The head of a face, before pose."""
        encoded = self.albedo + self.albedo_modes @ face.albedo
        albedo = srgb_to_linear(jnp.clip(encoded, 0.0, 1.0))
        return Mesh(self.basis.positions(face.identity, face.expression), self.triangles, None, albedo)


def head_surface(model: MorphableModel, full: bool = False) -> HeadSurface:
    """The model's coarse mesh, which suits pictures of a few hundred pixels, or its full one."""
    mean = np.asarray(model.mean)
    triangles = np.asarray(model.triangles if full else model.proxy_triangles)
    used, renumbered = np.unique(triangles, return_inverse=True)
    triangles = renumbered.reshape(-1, 3).astype(np.int32)
    select = sp.csr_matrix((np.ones(len(used), np.float32), (np.arange(len(used)), used)), shape=(len(used), len(mean)))
    modes = np.concatenate([np.asarray(model.shape.modes), np.asarray(model.expression)], axis=2)
    carry = lambda x: jnp.asarray((select @ np.asarray(x).reshape(len(mean), -1)).reshape(-1, *x.shape[1:]))  # noqa: E731
    return HeadSurface(
        PointBasis(carry(mean), carry(modes)),
        carry(model.albedo.mean),
        carry(model.albedo.modes),
        jnp.asarray(triangles),
        edge_table(triangles, mean[used]),
    )


class Softness(eqx.Module):
    """How the soft rasterizer blends: see `renderer.soft`."""

    sigma: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.0)  # px²
    gamma: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1e-3)
    count: int = eqx.field(static=True, default=10)


class RenderedTerm(AbstractResidualTerm):
    """Every pixel of the rendered head against the photo, both sRGB-encoded; the photo itself lies behind the head.

    Drawn by the soft rasterizer (`softness`), or exactly with antialiased outlines. `transform` is the camera's colour
    transform where one is known; the face's own offset is added before it.
    """

    surface: HeadSurface
    image: Float[Array, "height width 3"]  # sRGB-encoded
    valid: Float[Array, "height width"]  # 1 where the photo may be used
    centre: Float[Array, "2"]
    sigma: Float[Array, ""]  # of a colour channel; the valid pixels together count as 2000 of this deviation
    cutoff: Float[Array, ""]  # colour; residuals beyond it count as outliers
    softness: Softness | None = None
    transform: ColourTransform | None = None

    def drawn(self, face: FaceParameters) -> tuple[Float[Array, "height width 3"], Float[Array, "height width"]]:
        """The head over the photo, sRGB-encoded, and how far it covers each pixel."""
        height, width = self.valid.shape
        camera = _camera(face, self.centre, height, width)
        mesh = self.surface.mesh(face)
        if self.softness is None:
            picture = render(mesh, camera, face.light, edges=self.surface.edges)
        else:
            soft = self.softness
            picture = soft_render(
                mesh, camera, face.light, sigma=soft.sigma, gamma=soft.gamma, count=soft.count, cull=True
            )
        cover = picture.coverage[..., None]
        colour = picture.colour + cover * face.offset
        if self.transform is not None:
            # Premultiplied colours: the transform's offset counts as far as the head covers.
            colour = cover * self.transform(colour / jnp.maximum(cover, 1e-3))
        over = colour + (1.0 - cover) * srgb_to_linear(self.image)
        return linear_to_srgb(jnp.maximum(over, 1e-3)), picture.coverage

    def residuals(self, face):
        scale = self._scale() * jnp.sqrt(self.valid)
        return ((self.drawn(face)[0] - self.image) * scale[..., None]).reshape(-1, 3)

    def kernel(self) -> AbstractKernel | None:
        return GemanMcClure(jnp.sqrt(3.0) * self.cutoff * self._scale())

    def _scale(self):
        return jnp.sqrt(NOMINAL_SAMPLES / jnp.maximum(jnp.sum(self.valid), 1.0)) / self.sigma


class SilhouetteTerm(AbstractResidualTerm):
    """Coverage of the rendered head, antialiased so that outlines have gradients, against a silhouette.

    What the model does not have, such as hair and shoulders, must be marked unknown in `valid`.
    """

    surface: HeadSurface
    silhouette: Float[Array, "height width"]  # 1 on the head, fractions at its outline
    valid: Float[Array, "height width"]  # 1 where the silhouette is known
    centre: Float[Array, "2"]
    sigma: Float[Array, ""]  # of a pixel's coverage

    def coverage(self, face: FaceParameters) -> Float[Array, "height width"]:
        """How far the head covers each pixel."""
        height, width = self.valid.shape
        camera = _camera(face, self.centre, height, width)
        return render(self.surface.mesh(face), camera, face.light, edges=self.surface.edges).coverage

    def residuals(self, face):
        return ((self.coverage(face) - self.silhouette) * self.valid / self.sigma).reshape(-1, 1)


def _camera(face, centre, height, width):
    focal = jnp.exp(face.log_focal)
    return Pinhole(focal=jnp.stack([focal, focal]), centre=centre, pose=face.pose, height=height, width=width)
