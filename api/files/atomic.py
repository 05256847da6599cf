"""Outputs that are complete or absent.

An output is made beside its place under a hidden name, and gets its name when it is complete. If the work
ends early (an error, Ctrl-C, a full disk), it is removed. `staged` never touches an existing output;
`replacing` replaces one. Functions hold no state; any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from microdiffusion.errors import DiskError, InputFileError, MddError, NoRoomError

_PART = ".part-"
_LOCK = ".in-use.lock"
_NO_ROOM = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it when the block succeeds.

    Raises
    ------
    DiskError
        The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
        raise DiskError(
            f"{path} cannot be written ({error}): check the folder and its free space."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text (UTF-8) whole or not at all; raises as `replacing` does.

    Names of files in it that are not UTF-8 become readable ones.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


@contextlib.contextmanager
def staged(*finals: Path, needed_bytes: int = 0) -> Iterator[tuple[Path, ...]]:
    """Yield a path for each of `finals`, all in one folder; they get their names when the block succeeds.

    Parameters
    ----------
    finals
        Files or folders to create, in one folder and with different names. They get their names in this
        order, so the one that a viewer opens comes last.
    needed_bytes
        Their size, if it is known; 0: unknown.

    Raises
    ------
    InputFileError
        One of them exists.
    NoRoomError, DiskError
        The disk is full, or cannot be written.
    """
    parent = finals[0].parent
    refuse_existing(*finals)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if needed_bytes > free:
            raise NoRoomError(
                f"{finals[-1].name} needs {needed_bytes / 1e9:.2f} GB and {parent} has {free / 1e9:.2f} GB "
                "free: free some, or choose another folder with --output."
            )
        for left in leftovers(parent, finals[0].name):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{finals[0].name}{_PART}", dir=parent))
        lock = FileLock(folder / _LOCK, timeout=0)
        with contextlib.suppress(OSError, NotImplementedError):  # a network folder without locks
            lock.acquire()
    except OSError as error:
        if isinstance(error, MddError):
            raise
        raise _cannot(finals[-1], error) from error
    try:
        yield tuple(folder / final.name for final in finals)
        _name(folder, finals)
    except OSError as error:
        if isinstance(error, MddError):
            raise
        raise _cannot(finals[-1], error) from error
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(parent: Path, name: str = "") -> list[Path]:
    """Return the folders of outputs in the making (of `name`, or any) whose process was killed."""
    found = []
    for folder in parent.iterdir():
        begin, part, _ = folder.name.partition(_PART)
        if not part or not begin.startswith(".") or (name and begin != f".{name}"):
            continue
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            if (folder / _LOCK).is_file():
                with FileLock(folder / _LOCK, timeout=0):
                    found.append(folder)
    return sorted(found)


def refuse_existing(*paths: Path) -> None:
    """Raise InputFileError where one of them exists."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise InputFileError(f"{path} exists and is not overwritten: remove it, or name another.")


def _name(folder: Path, finals: tuple[Path, ...]) -> None:
    """Give all outputs their names, or none."""
    refuse_existing(*finals)
    named: list[Path] = []
    try:
        for final in finals:
            (folder / final.name).rename(final)
            named.append(final)
    except BaseException:
        for final in reversed(named):
            with contextlib.suppress(OSError):
                final.rename(folder / final.name)
        raise


def _cannot(path: Path, error: OSError) -> DiskError:
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM or "No space left" in str(error):
        return NoRoomError(f"{path} cannot be written ({reason}): free some space, nothing was left behind.")
    return DiskError(f"{path} cannot be written ({reason}): check the folder's rights and the disk.")
