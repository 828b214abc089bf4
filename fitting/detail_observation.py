"""What a photo says about the relief of the skin: its colours at the texels of a map, beside what the fit expects.

Everything is a logarithm of a ratio, as in `fitting.texture_map`: of the photo's linear colour over the fit's (plain
albedo times shade). A relief turns the normals and so changes the logarithm of the shade; moles and beard change that
of the albedo; the light's errors are smooth. So the three add, and detail is what explains the first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fitting.fit import Fit
from fitting.mesoscopic import plain_skin
from fitting.observation import Photo
from fitting.skin_relief import relief_region
from fitting.texture_map import SHADE_FLOOR, TextureLayout, observe_texels, texture_layout, usual_shade
from morphable.detail import UVSurface, detail_normals, uv_surface
from morphable.model import MorphableModel, once_for_each_model
from renderer.delight import usable_shade
from renderer.light import sh_basis
from renderer.unwrap import texel_table

SIZE = 256  # texels in a row of a detail map: 1.1 mm on the face of the model that ships with facefit
_PIXELS_PER_TEXEL = 1.5  # of the crop across the face that is unwrapped
_NEAR = 0.008  # of the map's side: 2 mm on the face
# Logarithms: what differs more from the fit over some mm, or between some mm, is hair, glasses or a hard shadow. Folds
# that the fit does not have are as dark as light hair.
_FOREIGN, _CONTRAST = 0.7, 0.3
_NOT_SKIN = ("lips", "lids", "scalp", "ears", "iris", "sclera")  # a beard may be shaven: the photo decides


class DetailObservation(eqx.Module):
    """One photo of a fitted head, laid out at the texels of a map. Head space in mm, colours linear RGB."""

    ratio: Float[Array, "row column 3"]  # logarithm of the photo over the fit's plain albedo and shade; 0 where unseen
    weight: Float[Array, "row column"]  # 0 to 1: how far the texel can be trusted to show the face's bare skin
    plain: Float[Array, "row column 3"]  # the fit's albedo, skin in place of brows and lips
    surface: UVSurface  # of the fitted head with its expression
    rotation: Float[Array, "3 3"]  # head to camera axes
    light: Float[Array, "9 3"]  # camera axes
    usual: Float[Array, "3"]  # shade of the well lit part of the face

    def shade(self, normals: Float[Array, "row column 3"]) -> Float[Array, "row column 3"]:
        """What light unit normals (head axes) get, usable to divide by (`renderer.delight.usable_shade`)."""
        turned = jnp.matmul(normals, self.rotation.T, precision="highest")
        return usable_shade(
            jnp.matmul(sh_basis(turned), self.light, precision="highest"), self.usual, floor=SHADE_FLOOR
        )

    def shading_change(self, displacement: Float[Array, "row column"]) -> Float[Array, "row column 3"]:
        """By how much a displacement (mm) changes the logarithm of the shade."""
        return jnp.log(self.shade(detail_normals(self.surface, displacement))) - jnp.log(
            self.shade(self.surface.normals)
        )

    @property
    def colour(self) -> Float[Array, "row column 3"]:
        """The photo's colour, linear RGB; the fit's own where the photo shows nothing."""
        return self.plain * self.shade(self.surface.normals) * jnp.exp(self.ratio)


@eqx.filter_jit
def _surface(mesh, size: int) -> UVSurface:
    return uv_surface(mesh, texel_table(mesh.uv, mesh.triangles, size))


class DetailRegion(NamedTuple):
    """Where on a map there is skin of the face's front: 1 there, falling softly to 0 towards all else."""

    relief: Float[np.ndarray, "size size"]  # skin that may have relief, under brows, too
    bare: Float[np.ndarray, "size size"]  # skin that a photo shows, if nothing else covers it


@once_for_each_model
def detail_region(model: MorphableModel, size: int = SIZE) -> DetailRegion:
    """The region of a model's map."""
    relief = relief_region(model, size)
    return DetailRegion(relief, relief * plain_skin(model, size, _NOT_SKIN))


def observe(
    fit: Fit,
    photo: Photo,
    size: int = SIZE,
    mask: Bool[np.ndarray, "height width"] | None = None,
    layout: TextureLayout | None = None,
    region: DetailRegion | None = None,
) -> DetailObservation:
    """What a fitted photo shows at the texels of a size x size map; `mask` is true where the photo may be used.

    `layout` and `region` are `texture_layout(fit, size)` and `detail_region(model, size)`, where they are at hand.
    """
    layout = texture_layout(fit, size) if layout is None else layout
    region = detail_region(fit.model, size) if region is None else region
    crop_size = int(np.ceil(_PIXELS_PER_TEXEL * size))
    ratio, trust = observe_texels(fit, photo, layout, fit.uncovered(mask), crop_size)
    mesh = fit.mesh
    single = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return DetailObservation(
        ratio=single(ratio),
        weight=_of_skin(single(ratio), single(trust * region.bare)),
        plain=single(layout.plain),
        surface=_surface(mesh, size),
        rotation=single(fit.camera.rotation),
        light=single(fit.light),
        usual=single(usual_shade(fit, mesh)),
    )


@eqx.filter_jit
def _of_skin(ratio, weight):
    """The weight without what a photo shows that does not look like the fit's skin."""
    brightness = jnp.mean(ratio - median_ratio(ratio, weight), axis=-1)
    around = lambda x: _mean(x * weight) / jnp.maximum(_mean(weight), 1e-3)  # noqa: E731
    broad = around(brightness)
    contrast = around((brightness - broad) ** 2)
    return weight / (1.0 + (broad / _FOREIGN) ** 4 + (contrast / _CONTRAST**2) ** 2)


def _mean(values):
    """Over some mm, as two running means."""
    side = max(1, round(values.shape[0] * _NEAR))
    for axis in (0, 1, 0, 1):
        values = sum(jnp.roll(values, k - side, axis) for k in range(2 * side + 1)) / (2 * side + 1)
    return values


def median_ratio(ratio: Float[Array, "row column 3"], weight: Float[Array, "row column"]) -> Float[Array, "3"]:
    """Of what is seen: the exposure and white balance that the fit got wrong."""
    values = jnp.where(weight[..., None] > 0.5, ratio, jnp.nan).reshape(-1, 3)
    return jnp.nan_to_num(jnp.nanmedian(values, axis=0))


def stacked(observations: Sequence[DetailObservation]) -> DetailObservation:
    """Several observations as one with a leading axis, for `jax.vmap`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *observations)
