"""Imperial's Large Scale Facial Model and the Liverpool-York Head Model: MATLAB files of one PCA, without expressions.

LSFM (Booth et al. 2016, 2018): the table "Model Format" of https://github.com/menpo/lsfm gives `mean`, `components`
(unit eigenvectors), `eigenvalues` (variances) and `trilist` (from 0). LYHM (Dai et al. 2017, 2020): structs `shp` and
`tex` with `mu`, `eigVec`, `eigVal`, and `tri.faces` (from 1, clockwise), after eos `share/scripts/load_lyhm.py`.

Neither says its unit. A head's size does: of the units that are powers of ten times a millimetre exactly one makes the
mean face 70 to 700 mm large. Both have x to the subject's left, y up and z out of the face.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from morphable.io.bfm import flat, from_variances, modes, points, triangles_of
from morphable.io.contents import Contents, ModelFileError, Source
from morphable.io.layout import Layout

_LARGE_MM = 220.0  # what a face or a head measures from end to end, in the middle of 70 to 700


def decimal_unit(vertices: Float[np.ndarray, "vertex 3"], source: Source) -> float:
    """The unit in mm, a power of ten, in which these points are a head."""
    size = float(np.ptp(vertices, axis=0).max()) if np.isfinite(vertices).all() else np.nan
    if not 1e-7 < size < 1e9:
        raise ModelFileError(
            f"{source.path}: got a mean of size {size:.3g}, expected a head in some unit from µm to m. "
            "Is the file damaged?"
        )
    return float(10.0 ** np.round(np.log10(_LARGE_MM / size)))


def _metric(arrays: Mapping[str, Any], name: str, source: Source) -> tuple[Float[np.ndarray, "vertex 3"], float, str]:
    """A mean in mm, its unit in mm, and the note that says how it was told."""
    stored = points(arrays, name, source)
    unit_mm = decimal_unit(stored, source)
    return stored * unit_mm, unit_mm, f"the file's unit is taken to be {unit_mm:g} mm, by the head's size"


def _read_lsfm(arrays: Mapping[str, Any], source: Source) -> Contents:
    mean, unit_mm, told = _metric(arrays, "mean", source)
    deviations = from_variances(flat(arrays, "eigenvalues", source), "eigenvalues", source)
    return Contents(
        name="Large Scale Facial Model",
        format="lsfm",
        licence="LSFM licence: non-commercial research, no redistribution",
        licence_class="non-commercial",
        mean=mean,
        identity=modes(arrays, "components", source, len(mean), deviations * unit_mm),
        triangles=triangles_of(arrays, "trilist", source, mean, first=None),
        unit_mm=unit_mm,
        sources=("LSFM: Booth, Roussos, Ponniah, Dunaway, Zafeiriou, IJCV 2018; Imperial College London",),
        notes=(
            told,
            "no expressions, colours or landmarks in this file",
        ),
    )


def _read_lyhm(arrays: Mapping[str, Any], source: Source) -> Contents:
    mean, unit_mm, told = _metric(arrays, "shp/mu", source)
    deviations = from_variances(flat(arrays, "shp/eigVal", source), "shp/eigVal", source)
    albedo_mean = albedo_modes = None
    if "tex/mu" in arrays:  # sRGB, 0 to 1
        albedo_mean = points(arrays, "tex/mu", source)
        if len(albedo_mean) != len(mean):
            raise ModelFileError(
                f"{source.path}: 'tex/mu' has {len(albedo_mean)} vertices, 'shp/mu' {len(mean)}; expected the same. "
                "Is the file complete?"
            )
        colours = from_variances(flat(arrays, "tex/eigVal", source), "tex/eigVal", source)
        albedo_modes = modes(arrays, "tex/eigVec", source, len(mean), colours)
    return Contents(
        name="Liverpool-York Head Model",
        format="lyhm",
        licence="LYHM licence: non-commercial research, no redistribution",
        licence_class="non-commercial",
        mean=mean,
        identity=modes(arrays, "shp/eigVec", source, len(mean), deviations * unit_mm),
        triangles=triangles_of(arrays, "tri/faces", source, mean, first=1),
        unit_mm=unit_mm,
        albedo_mean=albedo_mean,
        albedo_modes=albedo_modes,
        sources=("LYHM: Dai, Pears, Smith, Duncan, IJCV 2020; Universities of York and Liverpool, Alder Hey Hospital",),
        notes=(
            told,
            "no expressions or landmarks in this file",
        ),
    )


LAYOUTS: tuple[Layout, ...] = (
    Layout("lsfm", "mat", lambda found: {"mean", "components", "eigenvalues", "trilist"} <= found, _read_lsfm),
    Layout("lyhm", "mat", lambda found: {"shp/mu", "shp/eigVec", "shp/eigVal", "tri/faces"} <= found, _read_lyhm),
)
