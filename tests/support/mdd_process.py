"""The real `mdd` command in a process of its own, for tests that talk to it, stop it and kill it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil


def command() -> str:
    """Return the path of the installed `mdd`."""
    name = "mdd.exe" if sys.platform == "win32" else "mdd"
    return str(Path(sys.executable).parent / name)


# Below the ports that the system gives out by itself (32768 and up), each worker's own; another test run on
# the same machine begins elsewhere.
_worker = int("0" + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")) % 8
_begin = 15_000 + 2_000 * _worker
_ports = itertools.cycle([_begin + (37 * os.getpid() + number) % 2_000 for number in range(2_000)])


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has now, and that no other worker is told."""
    return next(port for port in _ports if port_is_free(port))


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections of the past may linger, a listener may not.
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Mdd:
    """A running `mdd`; leaves nothing behind.

    `family` are all processes that were ever seen below it; call `look` (or `wait_for`) now and then.
    """

    def __init__(
        self, *arguments: object, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._out, self._err = folder / "stdout.txt", folder / "stderr.txt"
        self.family: set[psutil.Process] = set()
        settings = {key: value for key, value in os.environ.items() if not key.startswith("MDD_")}
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [command(), *map(str, arguments)],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                # A group of its own, as a terminal gives to a command.
                start_new_session=True,
                env={**settings, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **(environment or {})},
            )
        self._self = psutil.Process(self.process.pid)

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def look(self) -> bool:
        """Note the processes below; return whether `mdd` runs."""
        try:
            self.family.update(self._self.children(recursive=True))
        except psutil.NoSuchProcess:
            return False
        return self.process.poll() is None

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Wait for a condition while `mdd` runs."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert self.look(), f"mdd ended early ({self.process.poll()}): {self.err}"
            assert time.monotonic() < deadline_s, f"it did not come about: {self.err}"
            time.sleep(0.02)

    def below(self, library: str) -> list[psutil.Process]:
        """Return the processes below that have a library in their memory."""
        self.look()
        found = []
        for process in self.family:
            with contextlib.suppress(psutil.Error, OSError):  # one that has gone since
                if any(library in area.path for area in process.memory_maps()):
                    found.append(process)
        return found

    def engine(self) -> psutil.Process:
        """Wait for the engine's process, the one that loads torch, some time after the start."""
        found: list[psutil.Process] = []
        self.wait_for(lambda: found.extend(self.below("libtorch")) or bool(found))
        return found[0]

    def send(self, number: int, *, group: bool = False) -> None:
        self.look()
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def finish(self, timeout_s: float = 120.0) -> int:
        """Wait for the end and return the exit code."""
        deadline_s = time.monotonic() + timeout_s
        while self.look():
            assert time.monotonic() < deadline_s, f"mdd did not end within {timeout_s:g} s: {self.err}"
            time.sleep(0.05)
        return self.process.wait(5)

    def orphans(self, patience_s: float = 15.0) -> list[psutil.Process]:
        """Return what is left of the family after some patience."""
        _, alive = psutil.wait_procs(self.family, timeout=patience_s)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.look()
        for process in [self._self, *self.family]:
            try:
                if process.is_running():
                    process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.process.wait(10)
