"""What the commands share: exit codes, the error of an option, a line with its time."""

import contextlib
import time
from collections.abc import Iterator

SUCCESS, FIT_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
UNSOUND = 1  # of `facefit model validate`


class UsageError(ValueError):
    """An option that cannot be understood."""


@contextlib.contextmanager
def stage(console, what: str) -> Iterator[None]:
    """Says what begins, and how long it took."""
    began = time.perf_counter()
    console.print(f"{what} ...")
    yield
    console.print(f"  [dim]{time.perf_counter() - began:.2f} s[/dim]")
