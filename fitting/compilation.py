"""How programs are compiled: quickly, and kept in JAX's persistent cache, so that a second run starts at once."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from morphable.io.cache import cache_folder

log = logging.getLogger("facefit")


def enable_cache() -> None:
    """Keep compiled programs between runs, unless the user already chose a folder for JAX or it cannot be written."""
    if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.info("no compilation cache: %s cannot be made (%s); programs are compiled anew", folder, error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's defaults skip programs that compile fast; together they are most of a command's start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# XLA's older code generator for CPUs, and less of LLVM's optimisation. The first compiles the fit in 0.6 of the time
# (10.8 s instead of 18.0 for the first fit) to programs that take 1.15 times as long (122 ms instead of 107 for the
# next); the second saves another tenth and costs nothing that could be measured.
_QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}


@functools.cache
def _options() -> dict[str, Any] | None:
    """What the large programs are compiled with; None where XLA does not know the option, or need not."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_QUICK).lower(0.0).compile()
    except Exception as error:  # a later XLA may have dropped it; each release raises its own type
        log.debug("XLA refuses %s: %s", _QUICK, error)
        return None
    return _QUICK


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`equinox.filter_jit` for the large programs; options are looked up on the first call, as that starts JAX."""

    @functools.cache
    def program():
        return eqx.filter_jit(function, compiler_options=_options())  # pyright: ignore[reportCallIssue], not in stubs

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return program()(*args, **kwargs)

    return call
