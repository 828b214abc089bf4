"""Shapes are checked at run time in every test; the small synthetic model is made once."""

import gc
import mmap
import os
import sys
from pathlib import Path

import jaxlib
import jaxtyping
import pytest

jaxtyping.install_import_hook(["morphable", "renderer", "fitting"], "beartype.beartype")
sys.path.insert(0, str(Path(__file__).parent))
# Tests must not depend on, nor grow, the user's cache; one folder for the whole run still saves recompilation.
os.environ.setdefault("FACEFIT_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))

# Traced programs are many small objects that stay: looking through them for garbage at Python's pace costs a tenth.
gc.set_threshold(200_000, 20, 20)

# Compiling is most of the suite, and what is compiled here runs a few times. XLA's older emitters take half the time
# for programs that run nearly as fast; level 1 of LLVM's optimisation saves another tenth. (Level 0 saves a fifth, and
# has crashed in the unwinder.) A release that lacks an option would abort on it.
OPTIONS = {"xla_cpu_use_fusion_emitters": "false", "xla_backend_optimization_level": "1"}
for library in Path(jaxlib.__file__).parent.glob("*jax_common*"):
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for option, value in OPTIONS.items():
            if option not in os.environ.get("XLA_FLAGS", "") and content.find(option.encode()) >= 0:
                os.environ["XLA_FLAGS"] = f"--{option}={value} {os.environ.get('XLA_FLAGS', '')}"

import jax  # noqa: E402
from helpers import tiny_model  # noqa: E402

from fitting.compilation import enable_cache  # noqa: E402

enable_cache()

SHARED = Path(__file__).parents[2] / "shared"

# Each compiled program takes some memory mappings for as long as it is cached. Linux gives a process 65 530 of them,
# and XLA crashes when there is none left: near the end of a suite that has compiled thousands of programs.
MAPPINGS = 40_000


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Forget compiled programs after a file that has brought their mappings to three fifths of what there may be."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny():
    """A synthetic head of 169 vertices."""
    return tiny_model()


@pytest.fixture(scope="session")
def head():
    """The embedded default model."""
    import morphable

    return morphable.load()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def collins() -> Path:
    """The bundled photo."""
    import fitting

    return Path(fitting.__file__).parent / "examples" / "eileen_collins.jpg"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Local measurement data, absent on other machines."""
    if not SHARED.exists():
        pytest.skip(f"no measurement data at {SHARED}")
    return SHARED
