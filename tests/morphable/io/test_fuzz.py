"""Model files come from strangers: a damaged one is a model or our error, and nothing else happens.

Each example changes a small file of a published layout (written by `published`) by a few edits: bits, bytes, lengths
that are huge or negative, pieces cut out, repeated or moved. `morphable.io.read` must return contents that hold
together, or raise ModelFileError.
"""

import resource
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import bfm, facescape, faceverse, flame, ict, lsfm, sfm

import morphable
from morphable.io import read
from morphable.io.contents import checked
from morphable.model import MorphableModel

EXAMPLES = 500
FEWER = {"facescape_v1": 50}  # FaceScape's other container, lists of numbers in pickles, which FLAME's stand for
MOST_MEMORY = 1 << 30  # bytes that the process may grow by over all examples of a format
HUNG_MS = 30_000  # an example that takes longer than any computer needs hangs


def write_native(folder: Path) -> Path:
    """Our own format."""
    path = folder / "model.npz"
    morphable.save(path, tiny_model())
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "facefit": write_native,
    "flame_pkl": flame.write_flame,
    "flame_npz": flame.write_flame_npz,
    "bfm2009": bfm.write_bfm2009,
    "bfm2017": bfm.write_bfm2017,
    "albedomm": bfm.write_albedomm,
    "deep3d": bfm.write_deep3d,
    "3ddfa": bfm.write_3ddfa,
    "lsfm": lsfm.write_lsfm,
    "lyhm": lsfm.write_lyhm,
    "sfm": sfm.write_sfm,
    "eos": sfm.write_eos,
    "ict": ict.write_ict,
    "facescape": facescape.write_facescape,
    "facescape_v1": facescape.write_facescape_v1,
    "faceverse": faceverse.write_faceverse,
    "faceverse_v4": faceverse.write_faceverse_v4,
}

PLACE = st.floats(0, 1, exclude_max=True)
VALUES = (0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**40)
NUMBERS = tuple(struct.pack("<q", v) for v in VALUES) + tuple(
    struct.pack(f"{order}d", v) for order in "<>" for v in (np.nan, np.inf, -1e300, 1e-300)
)
EDITS = st.one_of(
    st.tuples(st.just("bit"), PLACE, st.integers(0, 7)),
    st.tuples(st.just("bytes"), PLACE, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("number"), PLACE, st.sampled_from(NUMBERS)),
    st.tuples(st.just("cut"), PLACE, PLACE),
    st.tuples(st.just("end"), PLACE, st.none()),
    st.tuples(st.just("repeat"), PLACE, PLACE),
    st.tuples(st.just("swap"), PLACE, PLACE),
)
# Half of the edits at the beginning, where headers are.
EARLY = EDITS.map(lambda edit: (edit[0], edit[1] ** 6, edit[2]))
MUTATIONS = st.tuples(PLACE, st.lists(st.one_of(EDITS, EARLY), min_size=1, max_size=4), st.booleans())


def edited(data: bytes, edits) -> bytes:
    """The bytes after a few edits."""
    out = bytearray(data)
    for kind, place, what in edits:
        at = int(place * len(out))
        if kind == "bit" and out:
            out[at] ^= 1 << what
        elif kind in ("bytes", "number"):
            out[at : at + len(what)] = what
        elif kind == "cut":
            del out[at : at + int(what**3 * len(out)) + 1]
        elif kind == "end":
            del out[at:]
        elif kind == "repeat":
            out[at:at] = out[at : at + int(what**3 * len(out)) + 1]
        elif kind == "swap":
            size, other = 16, int(what * len(out))
            out[at : at + size], out[other : other + size] = out[other : other + size], out[at : at + size]
    return bytes(out)


def rewrite(file: Path, content: bytes) -> None:
    """Into a new file: a file system may bring one that is cut to nothing to the disk at once, which takes a while."""
    file.unlink()
    file.write_bytes(content)


def mutated(path: Path, which: float, edits, inside: bool) -> Iterator[None]:
    """Damage one of a model's files, or one array inside of a zip, past its checksum; put it back afterwards."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    file = files[int(which * len(files))]
    original = file.read_bytes()
    if inside and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = sorted(members)[int(which * len(members))]
        members[name] = edited(members[name], edits)
        file.unlink()
        with zipfile.ZipFile(file, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    else:
        rewrite(file, edited(original, edits))
    yield
    rewrite(file, original)


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_a_model_or_our_error(name, tmp_path):
    path = WRITERS[name](tmp_path)
    assert read(path), "the file is a model before it is damaged"
    results: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=FEWER.get(name, EXAMPLES),
        deadline=HUNG_MS,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(MUTATIONS)
    def run(mutation):
        which, edits, inside = mutation
        damage = mutated(path, which, edits, inside)
        next(damage)
        try:
            found = read(path)
        except morphable.ModelFileError as error:
            results["refused"] += 1
            assert str(error)
        else:
            results["read"] += 1
            if not isinstance(found, MorphableModel):
                checked(*found)
        finally:
            next(damage, None)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
    assert sum(results.values()) >= FEWER.get(name, EXAMPLES)
    assert results["refused"] > 0, "the damage never mattered"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MOST_MEMORY, f"memory grew by {grown >> 20} MiB"
