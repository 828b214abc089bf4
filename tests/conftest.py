"""Shapes are checked at run time in every test; the small synthetic model is made once."""

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

# Compiling is most of the suite. XLA's older emitters take half the time for programs that run nearly as fast; a
# release that lacks the option would abort on it.
CODEGEN = "xla_cpu_use_fusion_emitters"
for library in Path(jaxlib.__file__).parent.glob("*jax_common*"):
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if CODEGEN not in os.environ.get("XLA_FLAGS", "") and content.find(CODEGEN.encode()) >= 0:
            os.environ["XLA_FLAGS"] = f"--{CODEGEN}=false {os.environ.get('XLA_FLAGS', '')}"

# What is compiled here runs a few times: a level less of LLVM's optimisation saves a tenth of the suite.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=1 {os.environ.get('XLA_FLAGS', '')}"

import jax  # noqa: E402
from helpers import tiny_model  # noqa: E402

from fitting.compilation import enable_cache  # noqa: E402

enable_cache()

SHARED = Path(__file__).parents[2] / "shared"


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
