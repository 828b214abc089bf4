"""How a person's skin looks: its relief, its gloss and its dark creases, as maps for the renderer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fitting.skin_relief import Relief, ReliefLayout, draw_relief, relief_layout
from morphable.detail import LIMIT_MM, detail_normals, uv_surface
from morphable.mesh import Mesh
from morphable.model import MorphableModel, once_for_each_model
from morphable.uv import TexelTable, interpolate
from renderer.shade import Gloss
from renderer.unwrap import texel_table

TEXELS = 512  # in a row of the maps: .6 mm on the face of the model that ships with facefit
_CREASE_MM = 1.3  # deviation of the blur below which a crease lies
_CREASE_FROM_MM = 0.02  # what is shallower is the skin at large
_REDDER = np.array([0.8, 1.05, 1.1])  # in creases light goes from skin to skin, which returns more red


class SkinMaps(eqx.Module):
    """What the maps of all skins on one model have in common."""

    layout: ReliefLayout
    table: TexelTable
    nearest: Int[Array, "size size"]  # flat index of the nearest texel that shows a surface
    blur: Float[Array, " tap"]  # one side of a Gaussian, from its middle


class Skin(eqx.Module):
    """One person's skin."""

    relief: Relief
    gloss: Gloss
    crease: Float[Array, ""]  # of the light that a crease loses, logarithm for each mm that it is deep


@once_for_each_model
def skin_maps(model: MorphableModel, size: int = TEXELS) -> SkinMaps:
    """The maps for a model; takes seconds."""
    from scipy.ndimage import distance_transform_edt

    with jax.ensure_compile_time_eval():
        layout = relief_layout(model, size)
        table = texel_table(model.uv, model.triangles, size)
        empty = np.asarray(table.triangle_ids) < 0
        row, column = np.asarray(distance_transform_edt(empty, return_distances=False, return_indices=True))
        sigma = _CREASE_MM / layout.texel_mm
        taps = np.exp(-0.5 * (np.arange(int(np.ceil(2.5 * sigma)) + 1) / sigma) ** 2)
        return SkinMaps(
            layout=layout,
            table=table,
            nearest=jnp.asarray(row * size + column, jnp.int32),
            blur=jnp.asarray(taps / (2 * taps.sum() - taps[0]), jnp.float32),
        )


@eqx.filter_jit
def draw_skin(maps: SkinMaps, key: Key[Array, ""], strength: Float[Array, ""]) -> Skin:
    """A random person's skin, relief and spots times a strength. Pure: equal keys give equal skins."""
    relief_key, key = jax.random.split(key)
    relief = draw_relief(maps.layout, relief_key)
    relief = eqx.tree_at(
        lambda r: (r.static, r.wrinkles, r.albedo),
        relief,
        (jnp.clip(strength * relief.static, -LIMIT_MM, LIMIT_MM), strength * relief.wrinkles, strength * relief.albedo),
    )
    numbers = jax.random.uniform(key, (3,))
    # From powdered to oily: a sheen rather than a mirror.
    gloss = Gloss(0.12 * numbers[0] ** 2, jnp.exp(jnp.log(5.0) + numbers[1] * jnp.log(6.0)))
    return Skin(relief, gloss, 0.2 + 0.8 * numbers[2])


def textures(
    maps: SkinMaps, skin: Skin, mesh: Mesh, expression: Float[Array, " unit"]
) -> tuple[Float[Array, "size size 3"], Float[Array, "size size 3"]]:
    """The colour map (linear RGB) and the normal map (head space) of a head in uv, with its skin as the face moves.

    `mesh` is the head with its vertices' albedo. The colour map is continued beyond the charts' borders; the normal map
    is zero where no surface is.
    """
    if mesh.albedo is None or mesh.uv is None:
        raise ValueError("textures: got a mesh without albedo or uv, expected both. Use `model.instance`.")
    size = maps.nearest.shape[0]
    displacement = skin.relief.displacement(expression)
    normals = detail_normals(uv_surface(mesh, maps.table), displacement)
    # Ambient light reaches a groove less, the more so the deeper it lies below the skin around it.
    depth = jnp.maximum(_blurred(displacement, maps.blur) - displacement - _CREASE_FROM_MM, 0.0)
    dark = skin.crease * jnp.minimum(depth, 1.0)[..., None] * jnp.asarray(_REDDER, jnp.float32)
    plain = interpolate(mesh.albedo, mesh.triangles, *maps.table)
    colour = jnp.clip(plain * jnp.exp(skin.relief.albedo - dark), 0.0, 1.0)
    return colour.reshape(size * size, 3)[maps.nearest], normals


def _blurred(values: Float[Array, "size size"], side: Float[Array, " tap"]) -> Float[Array, "size size"]:
    """Separable blur; beyond the border there is nothing."""
    kernel = jnp.concatenate([side[:0:-1], side])
    for shape in ((-1, 1), (1, -1)):
        values = jax.scipy.signal.convolve(values, kernel.reshape(shape), mode="same")
    return values
