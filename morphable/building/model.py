"""A morphable model from scans: every step in turn, and a report of what each found."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from morphable.building.registered_scans import (
    Progress,
    RegisteredScan,
    align_shapes,
    alignment_weights,
    complete_shapes,
    register_scans,
)
from morphable.building.scans import NEUTRAL, BuildError, Scan
from morphable.building.spaces import (
    LEAST_WEIGHT,
    AlignedFiles,
    Subjects,
    albedo_space,
    expression_deltas,
    expression_units,
    identity_space,
    regressed_joints,
    residual_fields,
    streamed_motions,
    subject_means,
    without_noise,
)
from morphable.model import MorphableModel, Provenance
from morphable.registration import RegistrationSettings
from morphable.rig import Gaze
from morphable.statistics import (
    Attribute,
    Measures,
    PrincipalComponents,
    StatisticsError,
    attribute_direction,
    measure,
    principal_components,
    streamed_components,
)


@dataclass(frozen=True)
class BuildSettings:
    """How a model is built from scans. Lengths in mm."""

    name: str = "built"  # of the model
    licence: str = "unknown"  # of the model: the scans' and the template's both bind it
    licence_class: Literal["free", "attribution", "non-commercial", "unknown"] = "unknown"
    prior: Literal["model", "kernel"] = "model"  # of registration: the template's modes, or smoothness alone
    registration: RegistrationSettings = RegistrationSettings()
    least_share: float = 0.3  # of the visible template that a scan must match
    scaled: bool = False  # whether the sizes of heads are taken out
    mirrored: bool = True  # whether mirror images count as faces, too
    complete: bool = False  # whether holes are filled by probabilistic PCA, or stay as registration left them
    share: float = 1.0  # of the identity's variance to keep
    rank: int | None = None  # the most identity modes to keep
    noise_mm: float | None = None  # root mean square of registration's error; None: from people scanned twice, if any
    expressions: Literal["units", "components"] = "units"  # what expression scans become
    keep_units: bool = True  # whether the template's other expression units stay
    expression_share: float = 0.98  # of the expressions' variance that components keep
    albedo_rank: int | None = None  # the most albedo modes to keep
    residual: bool = True  # whether smooth fields for what the scans do not span are added
    in_memory: int = 400  # neutral scans; more are read from their files in several passes


class BuiltModel(NamedTuple):
    """A model, how good it is, and what became of every scan."""

    model: MorphableModel
    identity: PrincipalComponents  # in double precision
    measures: Measures | None  # of the neutral shapes' plain components; None with fewer than three people
    attributes: tuple[Attribute, ...]  # one for each label that enough people have
    scans: tuple[RegisteredScan, ...]
    notes: tuple[str, ...]  # what was taken from the template, estimated or left out

    def __str__(self) -> str:
        used = [scan for scan in self.scans if scan.used]
        lines = [
            f"{self.model.provenance.name}: {self.identity.rank} identity modes, {len(self.model.expression_names)} "
            f"expression {self.model.expression_kind}, {self.model.albedo.rank} albedo modes, from {len(used)} of "
            f"{len(self.scans)} scans",
            *(str(scan) for scan in self.scans if not scan.used),
            *self.notes,
        ]
        if used:
            distance = np.median([scan.distance for scan in used])
            share = np.median([scan.share for scan in used])
            lines.append(f"registration: median distance {distance:.2f} mm, median {share:.0%} of the template matched")
        lines += [str(attribute) for attribute in self.attributes]
        if self.measures is not None:
            lines.append(str(self.measures))
        return "\n".join(lines)


def build_model(
    scans: Iterable[Scan],
    template: MorphableModel,
    settings: BuildSettings = BuildSettings(),
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> BuiltModel:
    """A model of the people in scans, on the template's mesh and with all that belongs to that mesh.

    Every scan is registered to the template (`register_scans`; a bad one is reported and left out), and the model is
    put together from those (`assemble_model`). With many scans give a folder for the registered shapes and an iterable
    that reads scans as they are asked for: nothing then grows with their number but the files. Registering again with
    the modes found so far as prior (bootstrapping: Blanz & Vetter 1999, section 5) did not help: of ten sampled heads'
    faces, vertices were then 1.06 instead of 0.96 mm off (mean of medians, kernel prior first).

    progress: is called after each scan with its index.
    Raises BuildError where fewer than two people's neutral scans remain.
    """
    place = None if folder is None else Path(folder)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    found = register_scans(
        template, scans, settings.prior, settings.registration, settings.least_share, place, progress
    )
    return assemble_model(found, template, settings)


def assemble_model(
    scans: Sequence[RegisteredScan], template: MorphableModel, settings: BuildSettings = BuildSettings()
) -> BuiltModel:
    """The model of scans that are in correspondence with the template.

    Procrustes alignment; holes filled by probabilistic PCA where asked for (registration fills those of a few
    centimetres as well: benchmarks/build.py); people scanned more than once averaged; principal components of the
    neutral shapes, with their mirror images; expressions from differences to the same person's neutral; albedo from
    colours; attributes from labels; joints by regression on the vertices; everything else is the template's.
    """
    notes: list[str] = []
    neutral = [scan for scan in scans if scan.used and scan.expression == NEUTRAL]
    people = tuple(dict.fromkeys(scan.subject for scan in neutral))
    if len(people) < 2:
        reasons = "; ".join(str(scan) for scan in scans if not scan.used)
        remedy = reasons or f"Name the neutral ones {NEUTRAL!r} in the table."
        raise BuildError(f"scans: got neutral scans of {len(people)} people, expected two or more. {remedy}")
    weights = alignment_weights(template, neutral)
    mirror = np.asarray(template.mirror) if settings.mirrored else None
    if len(neutral) > settings.in_memory:
        persons, identity, measures = _streamed_identity(neutral, template, weights, mirror, settings, notes)
    else:
        persons, identity, measures = _identity(neutral, template, weights, mirror, settings, notes)
    fields: dict = {"shape": identity.basis}
    fields |= _expressions(scans, persons, template, weights, settings, notes)
    coloured = [scan for scan in neutral if scan.colours is not None]
    if len(coloured) >= 2:
        colours = np.stack([scan.colours for scan in coloured if scan.colours is not None])
        fields["albedo"] = albedo_space(colours, template, mirror, settings.albedo_rank)
    else:
        notes.append(f"albedo: the template's, as {len(coloured)} neutral scans have colours")
    if template.rig is not None:
        rig = replace(template.rig, joints=regressed_joints(template, identity))
        if "expression_names" in fields:
            rig = _rig_of_expressions(rig, template, fields)
        fields["rig"] = rig
    curve = None if measures is None else measures.generalisation
    kept = residual_fields(template, identity, curve) if settings.residual else np.zeros((len(weights), 0))
    fields["residual"] = jnp.asarray(kept, float)
    if template.interaction is not None:
        fields["interaction"] = None
        notes.append("expressions: the same for everyone; the template's change with identity")
    used = sum(scan.used for scan in scans)
    sources = (f"{used} scans of {len(people)} people", *template.provenance.sources)
    fields["provenance"] = Provenance(settings.name, settings.licence, settings.licence_class, "", sources)
    attributes = _attributes(neutral, persons, notes)
    return BuiltModel(replace(template, **fields), identity, measures, attributes, tuple(scans), tuple(notes))


class _Persons(NamedTuple):
    """Whose neutral faces the identity space is of."""

    names: tuple[str, ...]
    shapes: Float[np.ndarray, "person vertex 3"] | AlignedFiles
    coefficients: Float[np.ndarray, "person rank"]


def _identity(neutral, template, weights, mirror, settings: BuildSettings, notes):
    raw = np.stack([np.asarray(scan.vertices, float) for scan in neutral])
    shapes = align_shapes(raw, template, weights, settings.scaled, settings.mirrored).shapes
    if settings.complete:
        seen = np.stack([scan.matched for scan in neutral])
        shapes = complete_shapes(shapes, seen, np.asarray(template.triangles))
    subjects = subject_means(shapes, [scan.subject for scan in neutral])
    identity = identity_space(
        subjects.shapes, weights, mirror, _noise(subjects, weights, settings, notes), settings.share, settings.rank
    )
    if identity.rank == 0:
        raise BuildError(
            "identity: no mode holds more variance than the noise; expected people that differ. Lower noise_mm."
        )
    measures = None
    if len(subjects.names) >= 3:
        measures = measure(subjects.shapes, weights=np.maximum(weights / weights.max(), LEAST_WEIGHT))
    return _Persons(subjects.names, subjects.shapes, identity.coefficients(subjects.shapes)), identity, measures


def _streamed_identity(neutral, template, weights, mirror, settings: BuildSettings, notes):
    """As `_identity` with the shapes left on disk: holes stay as registered, and each scan is a person."""
    shapes = [scan.vertices for scan in neutral]
    goal = np.asarray(template.mean, float)
    motions = streamed_motions(shapes, goal, weights, mirror)
    relative = np.maximum(weights / weights.max(), LEAST_WEIGHT)
    if mirror is not None:
        relative = (relative + relative[mirror]) / 2
    rank = 150 if settings.rank is None else settings.rank
    identity = streamed_components(AlignedFiles(shapes, motions, mirror), rank, relative)
    noise = 0.0 if settings.noise_mm is None else settings.noise_mm**2
    identity = without_noise(identity, noise).truncate_to_share(settings.share)
    some = np.unique(np.linspace(0, len(shapes) - 1, min(len(shapes), 100)).astype(int))
    sample = np.concatenate(list(AlignedFiles([shapes[i] for i in some], [motions[i] for i in some], None)))
    notes.append(
        f"identity: more than {settings.in_memory} scans, read in passes: holes as registered, each scan counted by "
        f"itself; the measures are those of {len(some)} scans"
    )
    everyone = AlignedFiles(shapes, motions, None)
    coefficients = np.concatenate([identity.coefficients(batch) for batch in everyone])
    persons = _Persons(tuple(scan.subject for scan in neutral), everyone, coefficients)
    return persons, identity, measure(sample, weights=relative)


def _noise(subjects: Subjects, weights, settings: BuildSettings, notes) -> float:
    """Mean square of the distance of a person's vertex from its place, mm²."""
    if settings.noise_mm is not None:
        return settings.noise_mm**2 * float(np.mean(1 / subjects.scans))
    if subjects.variance is None:
        return 0.0
    between = float(subjects.variance @ weights / weights.sum())
    notes.append(f"identity: scans of one person differ by {np.sqrt(between):.2f} mm, which is taken out of the modes")
    return between * float(np.mean(1 / subjects.scans))


def _expressions(scans, persons: _Persons, template: MorphableModel, weights, settings: BuildSettings, notes) -> dict:
    """The fields of the model that expression scans change; none where there are none."""
    expressive = [scan for scan in scans if scan.used and scan.expression != NEUTRAL]
    usable = [scan for scan in expressive if scan.subject in persons.names]
    if len(usable) < len(expressive):
        notes.append(f"expressions: {len(expressive) - len(usable)} scans of people without a neutral one are not used")
    if not usable:
        notes.append("expressions: the template's")
        return {}
    neutral = np.stack([persons.shapes[persons.names.index(scan.subject)] for scan in usable])
    shapes = [np.asarray(scan.vertices, float) for scan in usable]
    deltas = expression_deltas(shapes, neutral, template, weights, settings.scaled)
    if settings.expressions == "components":
        # The neutral is known, and so is the mean of the coefficients: 0. The mean expression is one of the modes.
        found = principal_components(
            deltas, weights=np.maximum(weights / weights.max(), LEAST_WEIGHT), centred=True
        ).truncate_to_share(settings.expression_share)
        names = tuple(f"expression_{k}" for k in range(found.rank))
        return {
            "expression": jnp.asarray(found.modes, float),
            "expression_names": names,
            "expression_kind": "components",
        }
    units = expression_units([scan.expression for scan in usable], deltas, np.stack([scan.matched for scan in usable]))
    told = ", ".join(f"{name} ({count})" for name, count in zip(units.names, units.people, strict=True))
    notes.append(f"expressions: from scans (people): {told}")
    if not settings.keep_units or template.expression_kind != "units":
        names, values = units.names, units.deltas
    else:
        added = tuple(name for name in units.names if name not in template.expression_names)
        names = template.expression_names + added
        old = np.asarray(template.expression, float)
        values = np.concatenate([old, np.zeros((*old.shape[:2], len(added)))], axis=2)
        for name, delta in zip(units.names, np.moveaxis(units.deltas, 2, 0), strict=True):
            values[..., names.index(name)] = delta
    return {"expression": jnp.asarray(values, float), "expression_names": names, "expression_kind": "units"}


def _rig_of_expressions(rig, template: MorphableModel, fields: dict):
    """The rig, whose gaze and joints name expression units by their place."""
    names = fields["expression_names"]
    old = template.expression_names
    if fields["expression_kind"] == template.expression_kind and names[: len(old)] == old:
        moves = rig.joints_expression
        if moves is not None:
            moves = jnp.concatenate([moves, jnp.zeros((*moves.shape[:2], len(names) - len(old)))], axis=2)
        return replace(rig, joints_expression=moves)
    units = [(u, row) for row, u in enumerate(np.asarray(rig.gaze.units)) if old[u] in names]
    rows = np.array([row for _, row in units], int)
    gaze = Gaze(
        jnp.asarray([names.index(old[u]) for u, _ in units], jnp.int32),
        rig.gaze.joints[rows],
        rig.gaze.rotations[rows],
    )
    return replace(rig, gaze=gaze, joints_expression=None)


def _attributes(neutral, persons: _Persons, notes) -> tuple[Attribute, ...]:
    """One for each label that four or more people have and that differs."""
    labels: dict[str, dict[str, list[float]]] = {}
    for scan in neutral:
        for name, value in scan.labels.items():
            labels.setdefault(name, {}).setdefault(scan.subject, []).append(value)
    found = []
    for name, of_people in labels.items():
        values = np.array([np.mean(of_people[s]) if s in of_people else np.nan for s in persons.names])
        try:
            found.append(attribute_direction(name, values, persons.coefficients, "one"))
        except StatisticsError as error:
            notes.append(re.sub(r"\.$", "", str(error)))
    return tuple(found)
