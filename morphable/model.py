"""The morphable model: a face is a point in a linear space, and a rig moves it."""

import functools
from collections.abc import Callable, Hashable
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from morphable.basis import GaussianBasis
from morphable.colour import srgb_to_linear
from morphable.landmarks import INNER, ContourFans, SurfacePoints
from morphable.mesh import Mesh
from morphable.rig import Rig

P = ParamSpec("P")
T = TypeVar("T")


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
    format: str = "facefit-model"  # of the file it was first read from
    unit_mm: float = 1.0  # length of that file's unit: x_head = unit_mm * x_file + origin_mm
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    made: tuple[str, ...] = ()  # what that file lacks and facefit made


class MorphableModel(eqx.Module):
    """Identity, expression and albedo spaces over one mesh, with landmarks, parts, masks and an optional rig.

    Coefficients are in standard deviations for identity and albedo, and weights in [0, 1] for expression units.
    Where `expression_kind` is "components", expressions are principal components, too, in standard deviations.
    In multilinear models (Vlasic et al. 2005) the units depend on the identity: `interaction`.
    """

    shape: GaussianBasis  # mm, head space
    expression: Float[Array, "vertex 3 unit"]  # mm at weight 1
    albedo: GaussianBasis  # sRGB-encoded, where its statistics are closest to Gaussian
    triangles: Int[Array, "triangle 3"]
    uv: Float[Array, "vertex 2"]
    landmarks: SurfacePoints  # iBUG-68 as detectors see them: the jaw's on a frontal face's outline
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
    expression_kind: str = eqx.field(static=True, default="units")  # or "components"
    interaction: Float[Array, "vertex 3 unit rank"] | None = None  # mm at weight 1 per standard deviation of identity
    mandible: SurfacePoints | None = None  # the jaw's 17 points on the bone's border; None: those of `landmarks` are

    def __check_init__(self):
        if self.expression_kind not in ("units", "components"):
            raise ValueError(
                f"MorphableModel: got expression_kind {self.expression_kind!r}, expected 'units' (weights in [0, 1]) "
                "or 'components' (standard deviations)."
            )
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

    @property
    def landmarks3d(self) -> SurfacePoints:
        """iBUG-68 as sets of 3D landmarks have them: the jaw's on the mandible's border, from the tragus to the chin.

        So 300W-LP and AFLW2000-3D (Zhu et al. 2016), which turned faces show to lie up to 2 cm behind the outline of a
        frontal face. There `landmarks` has the jaw, since detectors do: seen from the front both lie on one line.
        """
        if self.mandible is None:
            return self.landmarks
        joined = lambda jaw, all_68: jnp.concatenate([jaw, all_68[INNER]])  # noqa: E731
        return SurfacePoints(
            joined(self.mandible.vertices, self.landmarks.vertices),
            joined(self.mandible.weights, self.landmarks.weights),
        )

    @property
    def expression_limits(self) -> Float[np.ndarray, "2 unit"]:
        """Lowest and highest coefficient of each expression unit: 0 and 1, or four deviations for components."""
        low, high = (0.0, 1.0) if self.expression_kind == "units" else (-4.0, 4.0)
        return np.repeat(np.array([[low], [high]], np.float32), len(self.expression_names), axis=1)

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
        if self.interaction is not None:
            shaped = shaped + (self.interaction[..., : identity.shape[0]] @ identity) @ weights
        if self.rig is None:
            return shaped
        rotations = self.rig.rotations(weights, joint_rotations)
        return self.rig.skin(
            self.rig.corrected(shaped, rotations), self.rig.joint_positions(identity, weights), rotations
        )

    def linearised(self, identity: Float[Array, " rank"], expression: Float[Array, " unit"]) -> "MorphableModel":
        """The model without interaction that agrees with this one to first order about these coefficients.

        x = m + B c + E w + T c w is linear in each of c and w; its tangent at (c0, w0) has modes B + T w0, units
        E + T c0 and mean m - T c0 w0. A model without interaction is returned as it is.
        """
        if self.interaction is None:
            return self
        weights = self.effective_expression(expression)
        of_identity = jnp.einsum("vxur,u->vxr", self.interaction, weights)
        modes = self.shape.modes + of_identity
        mean = self.shape.mean - of_identity[..., : identity.shape[0]] @ identity
        units = self.expression + self.interaction[..., : identity.shape[0]] @ identity
        return eqx.tree_at(
            lambda m: (m.shape, m.expression, m.interaction),
            self,
            (GaussianBasis(mean, modes), units, None),
            is_leaf=lambda leaf: leaf is None,
        )

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


class _Itself:
    """A model as a key: it is itself, whatever it holds."""

    def __init__(self, model: MorphableModel):
        self.model = model

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.model is self.model


def once_for_each_model(
    function: Callable[Concatenate[MorphableModel, P], T],
) -> Callable[Concatenate[MorphableModel, P], T]:
    """The function, whose last two results are kept: for what takes seconds and depends on the model alone.

    The other arguments must be hashable, and no one may change what it returns.
    """

    @functools.lru_cache(maxsize=2)
    def kept(key: _Itself, *args: Hashable, **kwargs: Hashable) -> T:
        return function(key.model, *args, **kwargs)  # pyright: ignore[reportCallIssue]

    @functools.wraps(function)
    def call(model: MorphableModel, *args: P.args, **kwargs: P.kwargs) -> T:
        return kept(_Itself(model), *args, **kwargs)

    return call
