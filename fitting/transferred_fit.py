"""A fit that somebody made with one model, in another model's topology, on disk."""

import json
from pathlib import Path

import numpy as np

import morphable
from fitting.export import write_obj
from fitting.ground_truth import read_fit
from fitting.output import output_folder
from morphable.transfer import Transferred, correspond, transfer


def write_transfer(fit: str | Path, model: str | Path | None, to: str | Path, out: str | Path) -> str:
    """Transfer a fit's head to the model `to` and write it to the folder `out`; what to tell the user.

    transfer.npz holds, in mm: vertices and neutral_vertices (V, 3) in the fit's head space, triangles, matched (V,)
    which vertices have a counterpart, identity and expression of the other model, and K, R, t of the fit's cameras for
    the other model's head space: x_camera = R x + t for x = model.vertices(identity, expression).
    """
    source, target = morphable.load(model), morphable.load(to)
    arrays = read_fit(fit, source)
    moved = transfer(correspond(source, target), arrays["vertices"], arrays["neutral_vertices"])
    record = _record(moved, source.provenance.name, target.provenance)
    with output_folder(out) as folder:
        fields = {
            "vertices": moved.vertices,
            "neutral_vertices": moved.neutral_vertices,
            "triangles": np.asarray(target.triangles),
            "matched": moved.matched,
            "identity": moved.identity,
            "expression": moved.expression,
        }
        if {"K", "R", "t"} <= arrays.keys():
            # A rigid motion: x_camera = R (M x + m) + t.
            fields["K"] = arrays["K"]
            fields["R"] = arrays["R"] @ moved.motion.rotation
            fields["t"] = arrays["R"] @ moved.motion.offset + arrays["t"]
        np.savez(folder / "transfer.npz", allow_pickle=False, **fields)
        note = f"{target.provenance.name}: {target.provenance.licence}"
        for name, vertices in (("mesh", moved.vertices), ("neutral", moved.neutral_vertices)):
            write_obj(folder / f"{name}.obj", vertices, np.asarray(target.triangles), np.asarray(target.uv), note=note)
        (folder / "transfer.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    surface, coefficients = record["surface_error_mm"], record["model_error_mm"]
    return (
        f"{out}: {target.provenance.name}'s mesh lies {surface['median']:.3f} mm (median; 95 %: {surface['p95']:.2f}) "
        f"from the fit's surface; its coefficients' face {coefficients['median']:.2f} mm ({coefficients['p95']:.2f}) "
        "from that. "
        f"{record['matched']:.0%} of its vertices have a counterpart. Licence: {target.provenance.licence}"
    )


def _record(moved: Transferred, source: str, target) -> dict:
    def spread(values) -> dict[str, float]:
        return {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95)), "max": float(values.max())}

    return {
        "source": source,
        "target": target.name,
        "licence": target.licence,
        "licence_class": target.licence_class,
        "sha256": target.sha256,
        "matched": float(moved.matched.mean()),
        "surface_error_mm": spread(moved.surface_error),
        "model_error_mm": spread(moved.model_error),
    }
