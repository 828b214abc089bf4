"""The morphable model: a face is a point in a linear space, and a rig moves it."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from morphable.basis import GaussianBasis
from morphable.colour import srgb_to_linear
from morphable.landmarks import ContourFans, SurfacePoints
from morphable.mesh import Mesh
from morphable.rig import Rig


class Part(NamedTuple):
    """A named piece of the head."""

    name: str
    vertices: np.ndarray  # ids, ascending
    triangles: np.ndarray  # ids, ascending


class Provenance(NamedTuple):
    """Where a model comes from and what its licence allows."""

    name: str
    licence: str
    licence_class: str  # "free", "attribution", "non-commercial" or "unknown"
    sha256: str  # of the file it was read from; "" for a model made in memory
    sources: tuple[str, ...] = ()  # one line for each: what, who, licence


class MorphableModel(eqx.Module):
    """Identity, expression and albedo spaces over one mesh, with landmarks, parts, masks and an optional rig.

    Coefficients are in standard deviations for identity and albedo, and weights in [0, 1] for expression units.
    """

    shape: GaussianBasis  # mm, head space
    expression: Float[Array, "vertex 3 unit"]  # mm at weight 1
    albedo: GaussianBasis  # sRGB-encoded, where its statistics are closest to Gaussian
    triangles: Int[Array, "triangle 3"]
    uv: Float[Array, "vertex 2"]
    landmarks: SurfacePoints  # iBUG-68
    contour: ContourFans | None
    rig: Rig | None
    masks: dict[str, Float[Array, " vertex"]]  # in [0, 1]
    mirror: Int[Array, " vertex"]  # the vertex on the other side
    residual: Float[Array, "vertex mode"]  # Gaussian-process modes, mm, one scalar field for each axis; off by default
    proxy_triangles: Int[Array, "coarse 3"]  # a coarser mesh on the first vertices, for visibility
    part_of_vertex: Int[Array, " vertex"]  # index into part_names
    expression_names: tuple[str, ...] = eqx.field(static=True)
    part_names: tuple[str, ...] = eqx.field(static=True)
    provenance: Provenance = eqx.field(static=True)

    def __check_init__(self):
        units = len(self.expression_names)
        if self.expression.shape[-1] != units:
            raise ValueError(
                f"MorphableModel: got {self.expression.shape[-1]} expression deltas and {units} names; "
                "expected one name for each."
            )

    @property
    def mean(self) -> Float[Array, "vertex 3"]:
        """The mean neutral face, mm."""
        return self.shape.mean

    def unit(self, name: str) -> int:
        """Index of a named expression unit."""
        if name not in self.expression_names:
            raise ValueError(
                f"unknown expression unit {name!r}; {self.provenance.name} has {', '.join(self.expression_names)}."
            )
        return self.expression_names.index(name)

    def part(self, name: str) -> Part:
        """The vertices and triangles of a named part."""
        if name not in self.part_names:
            raise ValueError(f"unknown part {name!r}; this model has {', '.join(self.part_names)}.")
        of_vertex = np.asarray(self.part_of_vertex)
        index = self.part_names.index(name)
        of_triangle = of_vertex[np.asarray(self.triangles)[:, 0]]
        return Part(name, np.flatnonzero(of_vertex == index), np.flatnonzero(of_triangle == index))

    def weights(self, **units: float) -> Float[Array, " unit"]:
        """Expression weights from names: `model.weights(jawOpen=0.5, mouthSmileLeft=1)`."""
        w = np.zeros(len(self.expression_names), np.float32)
        for name, value in units.items():
            w[self.unit(name)] = value
        return jnp.asarray(w)

    def neutral(self, identity: Float[Array, " rank"]) -> Float[Array, "vertex 3"]:
        """The person without expression; fewer coefficients than modes leave the rest at the mean."""
        k = identity.shape[0]
        return self.shape.mean + self.shape.modes[..., :k] @ identity

    def effective_expression(self, expression: Float[Array, " unit"]) -> Float[Array, " unit"]:
        """Weights as the mesh obeys them: mouthClose corrects jawOpen and cannot exceed it."""
        if "mouthClose" not in self.expression_names or "jawOpen" not in self.expression_names:
            return expression
        close, jaw = self.unit("mouthClose"), self.unit("jawOpen")
        return expression.at[close].set(jnp.minimum(expression[close], expression[jaw]))

    def vertices(
        self,
        identity: Float[Array, " rank"],
        expression: Float[Array, " unit"],
        joint_rotations: Float[Array, "joint 3"] | None = None,
    ) -> Float[Array, "vertex 3"]:
        """Identity and expression in head space (mm), eyes turned by eyeLook, joints by rotation vectors (rad)."""
        weights = self.effective_expression(expression)
        shaped = self.neutral(identity) + self.expression @ weights
        if self.rig is None:
            return shaped
        k = identity.shape[0]
        joints = self.rig.joints.mean + self.rig.joints.modes[..., :k] @ identity
        return self.rig.skin(shaped, joints, self.rig.rotations(weights, joint_rotations))

    def albedo_linear(self, albedo: Float[Array, " rank"]) -> Float[Array, "vertex 3"]:
        """Diffuse reflectance for each vertex, linear RGB in [0, 1]."""
        encoded = self.albedo.mean + self.albedo.modes[..., : albedo.shape[0]] @ albedo
        return srgb_to_linear(jnp.clip(encoded, 0.0, 1.0))

    def instance(
        self,
        identity: Float[Array, " rank"],
        expression: Float[Array, " unit"] | None = None,
        albedo: Float[Array, " arank"] | None = None,
    ) -> Mesh:
        """The head with these coefficients."""
        if expression is None:
            expression = jnp.zeros(len(self.expression_names))
        if albedo is None:
            albedo = jnp.zeros(self.albedo.rank)
        return Mesh(self.vertices(identity, expression), self.triangles, self.uv, self.albedo_linear(albedo))
