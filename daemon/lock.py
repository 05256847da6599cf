"""The lock that keeps two processes from writing one run: a file beside the run's, released if they die."""

from __future__ import annotations

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from microdiffusion.errors import DiskError, InputFileError
from microdiffusion.runfile import lock_path

_LOOKED_AT_S = 0.2  # `mdd list` holds a lock for a moment, to see whether it is free


class RunLock:
    """The lock of the run whose first file is `path`, which need not exist; used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(lock_path(path), timeout=_LOOKED_AT_S, thread_local=False)

    def acquire(self) -> None:
        """Take the lock, unless it is held here already.

        Raises
        ------
        InputFileError
            Another process, or another recorder of this one, has it.
        DiskError
            The folder cannot be written.
        """
        if self._lock.is_locked:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise InputFileError(f"{self._path} is being written by another mdd: stop that first.") from error
        except (OSError, NotImplementedError) as error:  # a file system without locks
            raise DiskError(
                f"{self._path} cannot be created ({getattr(error, 'strerror', None) or error}): "
                "check the folder's rights and free space."
            ) from error

    def release(self) -> None:
        """Release the lock and remove its file, while it is held: nobody may hold a name that is gone."""
        if not self._lock.is_locked:
            return
        with contextlib.suppress(OSError):  # Windows removes no open file
            Path(self._lock.lock_file).unlink()
        self._lock.release()
