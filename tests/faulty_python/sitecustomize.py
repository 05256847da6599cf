"""Put on PYTHONPATH by the fault tests: a slow or full disk, a wrong clock, in every Python process below.

FAULT_DISK_BYTES_PER_S: file writes of a process take as long as on a disk of that speed.
FAULT_DISK_FULL, FAULT_DISK_FOLDER: while the first file exists, no file can be made in that folder.
FAULT_CLOCK: a file that holds seconds by which `time.time` is wrong; read again at each call.
"""

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def _slow_down(bytes_per_s: float) -> None:
    free_s = [0.0]

    def slow(write: Callable[..., int]) -> Callable[..., int]:
        def slowly(descriptor: int, data: Any, *more: Any) -> int:
            written = write(descriptor, data, *more)
            # Pipes and sockets are no disk.
            if written >= 512 and _is_file(descriptor):
                now_s = time.monotonic()
                free_s[0] = max(free_s[0], now_s) + written / bytes_per_s
                time.sleep(free_s[0] - now_s)
            return written

        return slowly

    for name in ("write", "pwrite", "writev", "pwritev"):
        if hasattr(os, name):
            setattr(os, name, slow(getattr(os, name)))


def _is_file(descriptor: int) -> bool:
    import stat

    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _fill_disk(flag: str, folder: str) -> None:
    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | os.PathLike) or not os.path.exists(flag):
            return
        path = os.path.abspath(os.fspath(arguments[0]))
        if path.startswith(folder + os.sep) and not os.path.exists(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(refuse)


def _spoil_clock(path: str) -> None:
    true_s, true_ns = time.time, time.time_ns

    def wrong_by() -> float:
        try:
            with open(path, encoding="ascii") as file:
                return float(file.read() or 0)
        except (OSError, ValueError):
            return 0.0

    time.time = lambda: true_s() + wrong_by()
    time.time_ns = lambda: true_ns() + int(wrong_by() * 1e9)


if os.environ.get("FAULT_DISK_BYTES_PER_S"):
    _slow_down(float(os.environ["FAULT_DISK_BYTES_PER_S"]))
if os.environ.get("FAULT_DISK_FULL"):
    _fill_disk(os.environ["FAULT_DISK_FULL"], os.environ["FAULT_DISK_FOLDER"])
if os.environ.get("FAULT_CLOCK"):
    _spoil_clock(os.environ["FAULT_CLOCK"])
