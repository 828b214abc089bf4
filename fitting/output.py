"""The folder that results go to: checked before the work, filled in one go after it."""

import contextlib
import errno
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


class OutputError(ValueError):
    """The results cannot be written where the user asked for them."""


def check_writable(out: str | Path) -> None:
    """Raise `OutputError` unless results could be written to `out`; leaves nothing behind.

    Call it before fitting: it tries what `output_folder` will do later, since permission bits do not tell
    the truth for a superuser, a read-only mount or a full quota.
    """
    out = Path(out).resolve()
    parent = out
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(
                f"output folder: expected a folder or a free name, got the file {out}. Choose another -o OUT."
            )
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise OutputError(
                f"output folder {out}: expected a folder above it, got the file {parent}. Choose another -o OUT."
            )
        probe = parent / f".{out.name}.probe-{uuid.uuid4().hex[:8]}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise _unwritable(out, error) from error


@contextlib.contextmanager
def output_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder whose contents become `out` when the block ends well, and vanish when it does not.

    A new `out` appears whole, by one rename. In an existing folder only files of the same names are
    replaced, and all of them or none: what was there is set aside first and put back if a move fails.
    """
    check_writable(out)
    out = Path(out).resolve()
    fresh = not out.exists()
    # The temporary folder must share a file system with `out`, which may be a mount point: beside it
    # while it does not exist, inside it once it does.
    home = out.parent if fresh else out
    made = _missing_parents(home)
    temporary = home / f".{out.name}.tmp-{uuid.uuid4().hex[:8]}"
    finished = False
    try:
        try:
            home.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()  # not tempfile.mkdtemp, whose 0700 would stay with the results
        except OSError as error:
            raise _unwritable(out, error) from error
        try:
            yield temporary
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
                raise _unwritable(out, error) from error
            raise
        try:
            if fresh and not out.exists():
                temporary.rename(out)
            else:
                _replace_files(temporary, out)
        except OSError as error:
            raise _unwritable(out, error) from error
        finished = True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not finished:
            for folder in reversed(made):
                with contextlib.suppress(OSError):  # not empty: somebody else uses it now
                    folder.rmdir()


def _missing_parents(folder: Path) -> list[Path]:
    """The folders that creating `folder` would create, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing[::-1]


def _replace_files(source: Path, target: Path) -> None:
    """Move every file below `source` to the same place below `target`: all of them, or none on an OSError."""
    backup = source.with_name(source.name + "-old")
    moves = [(file, target / file.relative_to(source)) for file in sorted(source.rglob("*")) if file.is_file()]
    set_aside: list[tuple[Path, Path]] = []
    done: list[Path] = []
    try:
        for _, place in moves:
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder bears the name of a result", str(place))
            if place.exists():
                old = backup / place.relative_to(target)
                old.parent.mkdir(parents=True, exist_ok=True)
                place.rename(old)
                set_aside.append((old, place))
        for file, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
            done.append(place)
    except OSError:
        for place in done:
            place.unlink()
        for old, place in set_aside:
            old.rename(place)
        raise
    finally:
        shutil.rmtree(backup, ignore_errors=True)


def _unwritable(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f"output folder {out}: expected a folder that can be created or written, got "
        f"'{error.strerror or error}'. Check its permissions and free space, or choose another -o OUT."
    )
