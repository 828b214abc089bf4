"""One person's rig: the model as several photos leave it, with what no coefficient of it says.

A morphable model gives everybody the same smile on a face out of its identity space. `personal_rig` goes on from a
joint fit (`fitting.multi_image`) and moves the model's neutral and its expression units for this person:

- **rest** (off by default): what most photos show of an expression belongs to the face at rest, not to what it does;
- **residual** (off by default): smooth displacements of the neutral outside of the identity space, the modes of the
  model's Gaussian process as further components of the same joint problem (Luethi et al. 2018);
- **offsets** (where landmarks were given, not detected): the neutral's vertices moved along their normals, smooth by
  the Laplacian's energy (Sorkine et al. 2004; Botsch & Sorkine 2008), likewise components of that problem;
- **units**: what a photo with an expression shows beyond the model's is ascribed to the units that are at work in it
  (example-based facial rigging, Li, Weise & Pauly 2010), where they move the skin; the other units stay the model's.

The result is again a morphable model, so whatever reads one works on the person. docs/personal_rig.md has the
derivation, and figures that say how much each part brings.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.ndimage import gaussian_filter

from fitting.arrowhead import Member, solve_together
from fitting.fit import Fit, Fitter
from fitting.multi_image import JointFit, among
from fitting.outline import outline_model
from fitting.schedule import EVERYTHING, Problem, Stage, run_stage
from fitting.surface_samples import SolverModel, solver_model
from fitting.texture_map import Source, View, blend_photos, photographed_colour
from morphable.laplacian import inner_vertices, laplacian_modes
from morphable.mesh import vertex_normals
from morphable.model import MorphableModel
from morphable.uv import sample_texture
from renderer.fill import dilate

FORMAT, VERSION = "facefit-person", 2

OFFSETS_MM = 2.0  # measured in docs/personal_rig.md
OFFSET_MODES = 150  # they hold 97.3 % of the prior's variance on the face, the longest waves 19 cm, the shortest 31 mm

_WRINKLE = 0.006  # of the map's side: finer changes of brightness are lost between vertices


class RigError(ValueError):
    """A rig that cannot be made or read: what, got, expected, remedy."""


@dataclasses.dataclass(frozen=True)
class RigSettings:
    """How far photos may move a model away from itself. Measured in docs/personal_rig.md."""

    rest: bool = False  # whether what most photos show of an expression is the neutral's: not where most are smiles
    # Deviation of the neutral's offsets, mm (root mean square over the face). None means OFFSETS_MM where three or more
    # photos have landmarks that were given, and none where a detector placed them.
    offsets: float | None = None
    residual: float = 0.0  # deviations of the neutral's Gaussian process, in the model's own; 0 for none
    example: float = 0.3  # the same of one photo's displacement from the rig
    ridge: float = 0.5  # noise of what a photo shows, as a weight: below it units take little of what they show
    albedo_ridge: float = 1.0  # the same for the change of the skin's brightness, which shadows disturb
    albedo_limit: float = 0.1  # logarithm; wrinkles darken the skin by no more
    map_size: int = 512  # texels in a row of the map that the vertices take their colours from


class PersonalRig(eqx.Module):
    """A person who can be moved: expression weights in, vertices (mm, head space) and albedo (linear RGB) out."""

    model: MorphableModel  # the plain one with mean and expression units moved
    identity: Float[Array, " identity"]  # standard deviations
    albedo: Float[Array, " albedo"]  # standard deviations
    rest: Float[Array, " unit"]  # plain expression weights of the person's neutral
    neutral_change: Float[Array, "vertex 3"]  # what was added to the plain model's mean, mm ...
    unit_change: Float[Array, "vertex 3 unit"]  # ... and to its units, mm at weight 1
    landmark_offsets: Float[Array, "68 3"]  # from the model's landmarks to where this person's were given, mm
    colour: Float[Array, "vertex 3"]  # of the skin at rest, linear RGB
    shading: Float[Array, "vertex unit"]  # logarithm of the albedo's change at weight 1, as of wrinkles

    def __call__(self, expression: Float[Array, " unit"]) -> tuple[Float[Array, "vertex 3"], Float[Array, "vertex 3"]]:
        """Vertices and albedo of an expression."""
        weights = self.model.effective_expression(expression)
        albedo = self.colour * jnp.exp(self.shading @ weights)[:, None]
        return self.model.vertices(self.identity, expression), jnp.clip(albedo, 0.0, 1.0)

    @property
    def neutral(self) -> Float[Array, "vertex 3"]:
        """The person at rest, mm."""
        return self.model.neutral(self.identity)

    def weights(self, expression: Float[Array, " unit"]) -> Float[Array, " unit"]:
        """This rig's weights for weights of the plain model fitted to the same person: those beyond the rest's."""
        return jnp.clip(expression - self.rest, 0.0, 1.0)

    def landmarks(self, expression: Float[Array, " unit"]) -> Float[Array, "68 3"]:
        """Where the detector or annotator of the rig's photos would place iBUG-68, mm."""
        return self.model.landmarks(self.model.vertices(self.identity, expression)) + self.landmark_offsets

    def applied_to(self, fit: Fit) -> Fit:
        """A fit of the plain model to a photo of this person as one of the rig: what exporters and pictures read."""
        return dataclasses.replace(
            fit,
            model=self.model,
            identity=np.asarray(self.identity),
            albedo=np.asarray(self.albedo),
            expression=np.asarray(self.weights(jnp.asarray(fit.expression))),
            problem=None,
            parameters=None,
        )

    def fit(self, fitter: Fitter, photo, face, focal_px: float | None = None, *, same_source: bool = True) -> Fit:
        """Another photo of this person: pose, expression and light, the person held.

        `fitter` is one for `rig.model`. The plan is `moving()`. With `same_source` the landmarks are believed to be off
        as in the rig's photos: those of the same detector or annotator.
        """
        fitter = fitter.with_offsets(np.asarray(self.landmark_offsets)) if same_source else fitter
        problem, first, _ = fitter.problem(photo, face, focal_px)
        del problem
        start = dataclasses.replace(first, identity=self.identity, albedo=self.albedo)
        return fitter.fit(photo, face, moving(), focal_px, start=start)

    def save(self, path: str | Path) -> None:
        """Write all but the plain model, which is named by its checksum."""
        source = self.model.provenance
        manifest = {"format": FORMAT, "version": VERSION, "model": source.name, "sha256": source.sha256}
        arrays = {name: np.asarray(getattr(self, name)) for name in _STORED}
        arrays["units"] = np.array(self.model.expression_names)
        np.savez_compressed(path, allow_pickle=False, manifest=np.array(json.dumps(manifest)), **arrays)


_STORED = ("identity", "albedo", "rest", "neutral_change", "unit_change", "landmark_offsets", "colour", "shading")


def plain_rig(
    model: MorphableModel, identity: Float[np.ndarray, " identity"], albedo: Float[np.ndarray, " albedo"]
) -> PersonalRig:
    """The rig that the model alone gives a person."""
    return PersonalRig(
        model=model,
        identity=jnp.asarray(identity),
        albedo=jnp.asarray(albedo),
        rest=jnp.zeros(len(model.expression_names)),
        neutral_change=jnp.zeros_like(model.mean),
        unit_change=jnp.zeros_like(model.expression),
        landmark_offsets=jnp.zeros((68, 3)),
        colour=model.albedo_linear(jnp.asarray(albedo)),
        shading=jnp.zeros((len(model.mean), len(model.expression_names))),
    )


def load_rig(path: str | Path, model: MorphableModel) -> PersonalRig:
    """Read a rig that was saved for this model."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise RigError(f"{path}: cannot be read ({error}); expected a rig written by PersonalRig.save.") from error
    missing = [name for name in (*_STORED, "manifest", "units") if name not in arrays]
    if missing:
        raise RigError(f"{path}: {', '.join(missing)} missing among {sorted(arrays)}; expected a rig's file.")
    manifest = json.loads(str(arrays["manifest"]))
    if manifest.get("format") != FORMAT or manifest.get("version", 0) > VERSION:
        raise RigError(
            f"{path}: got format {manifest.get('format')!r} version {manifest.get('version')}, expected {FORMAT!r} up "
            f"to version {VERSION}. A newer facefit wrote it: upgrade."
        )
    source = model.provenance
    if manifest["sha256"] != source.sha256 or arrays["unit_change"].shape != model.expression.shape:
        raise RigError(
            f"{path}: made for the model {manifest['model']} ({manifest['sha256'][:8]}), got {source.name} "
            f"({source.sha256[:8]}). Load it with the model that it was made with."
        )
    stored = {name: jnp.asarray(arrays[name]) for name in _STORED}
    return PersonalRig(model=_moved(model, stored["neutral_change"], stored["unit_change"]), **stored)


def retarget(
    source: PersonalRig, target: PersonalRig, expression: Float[Array, " unit"]
) -> tuple[Float[Array, "vertex 3"], Float[Array, "vertex 3"]]:
    """The target person doing what the source does at these weights of the source's rig: vertices and albedo.

    Weights mean the same in all rigs of one set of units; rigs of other models are matched by the units' names.
    """
    names = source.model.expression_names
    if names != target.model.expression_names:
        given = dict(zip(names, range(len(names)), strict=True))
        missing = [n for n in target.model.expression_names if n not in given]
        if len(missing) == len(target.model.expression_names):
            raise RigError(
                f"retarget: {target.model.provenance.name} has none of the units of {source.model.provenance.name}, "
                f"got {', '.join(names[:4])}, ...; expected units of the same names. Map the weights by hand."
            )
        expression = jnp.stack(
            [expression[given[n]] if n in given else jnp.zeros(()) for n in target.model.expression_names]
        )
    return target(expression)


def moving() -> tuple[Stage, ...]:
    """The plan for one photo of a known person: pose, expression, light."""
    own = ("pose", "expression")
    return (
        Stage("pose", ("pose",), 6, without=("photometric",)),
        Stage("landmarks", own, 10, without=("photometric",)),
        Stage("photo, coarse", (*own, "light"), 6, level=0, relight=True, tolerance=1e-3),
        Stage("photo, fine", (*own, "light"), 10, level=1, samples=2048, tolerance=1e-3),
    )


def personal_rig(
    fitter: Fitter, joint: JointFit, photos: Sequence[Source] | None = None, settings: RigSettings | None = None
) -> PersonalRig:
    """The rig of the person of a joint fit made with `fitter`.

    `photos` are all photos that the joint fit was given, or how to read them; without them the skin's colour is the
    model's and does not change with the expression.
    """
    s = settings or RigSettings()
    model, fits = fitter.model, joint.fits
    weights = np.stack([fit.expression for fit in fits])
    rest = resting(weights) if s.rest else np.zeros(weights.shape[1], np.float32)
    at_work = np.clip(weights - rest, 0.0, 1.0)
    identity, change = np.asarray(joint.identity), np.asarray(model.expression) @ rest
    offsets = _offsets_for(fits) if s.offsets is None else s.offsets
    if s.residual > 0 or offsets > 0:
        modes = [residual_modes(model, s.residual)] if s.residual > 0 else []
        modes += [offset_modes(model, offsets)] if offsets > 0 else []
        identity, beyond = _neutral_beyond(fitter, joint, np.concatenate(modes, axis=2))
        change = change + beyond
    bare = eqx.tree_at(lambda m: m.shape.mean, model, model.mean + jnp.asarray(change))
    units = np.zeros(model.expression.shape, np.float32)
    if s.example > 0 and len(fits) > 1:
        examples = _examples(fitter, bare, joint, identity, at_work, s.example)
        units = transferred(np.asarray(model.expression), examples, at_work, s.ridge)
    rig = plain_rig(model, identity, np.asarray(joint.albedo))
    rig = dataclasses.replace(
        rig,
        model=_moved(model, jnp.asarray(change), jnp.asarray(units)),
        rest=jnp.asarray(rest),
        neutral_change=jnp.asarray(change),
        unit_change=jnp.asarray(units),
        landmark_offsets=jnp.asarray(joint.landmark_offsets),
    )
    if photos is None:
        return rig
    worn = [rig.applied_to(fit) for fit in fits]
    layout, blend = blend_photos(worn, [photos[i] for i in joint.indices], s.map_size)
    # Vertices on the border of a chart lie beside it as often as in it.
    colour = _at_vertices(model, dilate(photographed_colour(layout, blend), layout.valid))
    skin = _skin(model)
    colour = np.where(skin[:, None], colour, np.asarray(rig.colour))
    shading = _shading(model, blend.views, at_work, s)
    return dataclasses.replace(rig, colour=jnp.asarray(colour), shading=jnp.asarray(shading))


def _offsets_for(fits: Sequence[Fit]) -> float:
    """The deviation of offsets that pays, mm: a detector's errors, alike in every photo, would become the head's."""
    given = sum(fit.source == "file" for fit in fits)
    return OFFSETS_MM if given >= 3 and all(fit.source in ("file", "none") for fit in fits) else 0.0


def resting(weights: Float[np.ndarray, "photo unit"]) -> Float[np.ndarray, " unit"]:
    """Expression weights that a face has at rest: what at least half of the photos show of each unit.

    With fewer than three photos nobody can tell a face at rest from a smile.
    """
    if len(weights) < 3:
        return np.zeros(weights.shape[1], np.float32)
    return np.median(weights, axis=0).astype(np.float32)


def transferred(
    units: Float[np.ndarray, "vertex 3 unit"],
    examples: Float[np.ndarray, "photo vertex 3"],
    weights: Float[np.ndarray, "photo unit"],
    ridge: float,
) -> Float[np.ndarray, "vertex 3 unit"]:
    """What to add to each unit (mm at weight 1) so that photos with these weights show these displacements (mm).

    Ridge regression: of all corrections d that explain the examples x_p = Σ_u w_pu d_u, the smallest, given noise in
    the examples, which grows with `ridge`. What photos without expression show, too, is the neutral's error and no
    unit's. A unit's correction stays where the unit moves the surface; what is at rest in all photos stays 0.
    """
    shares = _shares(weights, ridge)
    return np.einsum("up,pvc->vcu", shares, examples).astype(np.float32) * reach(units)[:, None]


def reach(units: Float[np.ndarray, "vertex 3 unit"]) -> Float[np.ndarray, "vertex unit"]:
    """1 where a unit moves a vertex by a quarter of the most that it moves any, falling to 0 where it moves nothing."""
    distance = np.linalg.norm(units, axis=1)
    return np.minimum(1.0, 4.0 * distance / np.maximum(distance.max(axis=0), 1e-6)).astype(np.float32)


def _shares(weights: Float[np.ndarray, "photo unit"], ridge: float) -> Float[np.ndarray, "unit photo"]:
    """The linear map from what photos show to what units take of it, a constant common to all photos left out.

    The constant's prior is the photos' own noise, so that one photo alone is shared between it and its units.
    """
    weights = np.asarray(weights, float)
    gram = weights @ weights.T + ridge**2 * (np.eye(len(weights)) + 1.0)
    return np.linalg.solve(gram, weights).T if len(weights) else np.zeros((weights.shape[1], 0))


def _moved(model: MorphableModel, neutral, units) -> MorphableModel:
    moved = (model.mean + neutral, model.expression + units)
    return eqx.tree_at(lambda m: (m.shape.mean, m.expression), model, moved)


def residual_modes(model: MorphableModel, scale: float) -> Float[np.ndarray, "vertex 3 component"]:
    """The model's Gaussian process as components of a shape space: mm at one deviation, three for each scalar mode."""
    scalar = scale * np.asarray(model.residual)
    out = np.zeros((len(scalar), 3, 3 * scalar.shape[1]), np.float32)
    for axis in range(3):
        out[:, axis, axis::3] = scalar
    return out


def offset_modes(model: MorphableModel, deviation: float) -> Float[np.ndarray, "vertex 3 component"]:
    """Offsets of the face's skin along the mean's normals, smooth by the Laplacian's energy, as components: mm.

    At the border of the face, where it turns inwards at the lips, and on the lids, where lashes and eyes are, nothing
    moves. `deviation` is the prior's, mm, as a root mean square over the face.
    """
    vertices, triangles = np.asarray(model.mean, float), np.asarray(model.triangles)
    masks = {name: np.asarray(mask) for name, mask in model.masks.items()}
    region = _skin(model) & (masks.get("face", np.ones(len(vertices))) > 0.5)
    region &= masks.get("lids", np.zeros(len(vertices))) < 0.4
    count = min(OFFSET_MODES, int(np.sum(inner_vertices(triangles, region))) - 1)
    modes = deviation * laplacian_modes(vertices, triangles, region, count)
    normals = np.asarray(vertex_normals(model.mean, model.triangles))
    return (normals[:, :, None] * modes[:, None]).astype(np.float32)


def _on(problem: Problem, model: SolverModel) -> Problem:
    """A photo's problem on another model. Terms that a caller added hold the plain one's points, so they are left."""
    return dataclasses.replace(problem, model=model, extra={})


def _padded(identity, count: int) -> Float[Array, " component"]:
    return jnp.concatenate([jnp.asarray(identity), jnp.zeros(count)])


def _neutral_beyond(fitter: Fitter, joint: JointFit, extra: Float[np.ndarray, "vertex 3 component"]):
    """Identity and displacement (mm) of the neutral, these modes further components of the joint fit."""
    model, count, own = fitter.model, extra.shape[2], len(joint.identity)
    modes = jnp.concatenate([model.shape.modes, jnp.asarray(extra)], axis=2)
    model = eqx.tree_at(lambda m: m.shape.modes, model, modes)
    wide, outlines, members = solver_model(model), outline_model(model), []
    for k, fit in enumerate(joint.fits):
        problem, face, _ = fit.inside
        face = dataclasses.replace(face, identity=_padded(face.identity, count))
        # Points that are not annotated come from a detector, which errs alike in every photo.
        noisy = among(problem, face, len(joint.fits), alike=not bool(jnp.any(problem.shared_mm)))
        members.append(Member(outlines.seen_in(_on(noisy, wide), face), face, k))
    free = tuple(name for name in EVERYTHING if name != "focal")  # known from the joint fit
    stage = Stage("beyond the model", free, 12, level=1, samples=2048, tolerance=1e-3)
    found = np.asarray(solve_together(members, stage).faces[0].identity)
    return found[:own], extra @ found[own:]


def _examples(
    fitter: Fitter, bare: MorphableModel, joint: JointFit, identity, weights, scale: float
) -> Float[np.ndarray, "photo vertex 3"]:
    """How far each photo shows the skin from where the bare rig puts it (mm), identity and expression held."""
    extra = residual_modes(bare, scale)
    # A model whose only identity is the residual: the person is its mean.
    person = eqx.tree_at(
        lambda m: (m.shape.mean, m.shape.modes), bare, (bare.neutral(jnp.asarray(identity)), jnp.asarray(extra))
    )
    own = solver_model(dataclasses.replace(person, rig=None))
    stage = Stage("example", ("identity", "pose", "light"), 10, level=1, samples=2048, tolerance=1e-3)
    shown = []
    for fit, at_work in zip(joint.fits, weights, strict=True):
        problem, face, _ = fit.inside
        start = dataclasses.replace(face, identity=jnp.zeros(extra.shape[2]), expression=jnp.asarray(at_work))
        found = run_stage(_on(problem, own), start, stage)
        shown.append(extra @ np.asarray(found.face.identity) if bool(found.finite) else np.zeros(bare.mean.shape))
    return np.stack(shown).astype(np.float32)


def _skin(model: MorphableModel) -> np.ndarray:
    if "skin" not in model.part_names:
        return np.ones(len(model.mean), bool)
    return np.asarray(model.part_of_vertex) == model.part_names.index("skin")


def _at_vertices(model: MorphableModel, texture: Float[np.ndarray, "row column channel"]):
    return np.asarray(_sample(jnp.asarray(texture, jnp.float32), model.uv))


_sample = eqx.filter_jit(sample_texture)


def _shading(model: MorphableModel, views: Sequence[View], weights, s: RigSettings) -> Float[np.ndarray, "vertex unit"]:
    """How each unit changes the logarithm of the skin's brightness at weight 1."""
    seen = []
    for view in views:
        # Bounded before it is smoothed: a speck of hair or of shadow is no wrinkle.
        brightness = np.clip(view.difference.mean(axis=2), -2 * s.albedo_limit, 2 * s.albedo_limit) * view.trust
        smooth = gaussian_filter(brightness, _WRINKLE * len(brightness))
        seen.append(_at_vertices(model, smooth[..., None])[:, 0])
    shares = _shares(weights[[view.photo for view in views]], s.albedo_ridge)
    change = (shares @ np.stack(seen)).T * reach(np.asarray(model.expression)) * _skin(model)[:, None]
    return np.clip(change, -s.albedo_limit, s.albedo_limit).astype(np.float32)
