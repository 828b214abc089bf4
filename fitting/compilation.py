"""JAX's persistent compilation cache, on by default: the second run of a command starts in a fraction of the time."""

import logging
import os
import sys
from pathlib import Path

import jax

log = logging.getLogger("facefit")


def cache_folder() -> Path:
    """The user's cache folder of this platform, or `FACEFIT_CACHE`."""
    if "FACEFIT_CACHE" in os.environ:
        return Path(os.environ["FACEFIT_CACHE"])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "facefit" / "jax"


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
