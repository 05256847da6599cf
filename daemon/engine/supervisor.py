"""Supervises the engine process: start, end, and a limit of restarts.

Belongs to `EngineProcess`: `start` and `reap` run on its thread, `kill` and `stop` on any.
"""

from __future__ import annotations

import time
from collections import deque
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

from microdiffusion.config import Config, EngineConfig
from microdiffusion.daemon.engine.worker import Opener, serve_engine
from microdiffusion.errors import EngineError
from microdiffusion.processes import keyboard_ignored

MAX_RESTARTS = 5
RESTARTS_WITHIN_S = 600.0


class Supervisor:
    """One process at a time; `pipe` leads to the present one."""

    def __init__(
        self,
        context: SpawnContext,
        opener: Opener,
        state: Path | None,
        planned: Config | None,
        cores: tuple[int, ...] = (),
    ) -> None:
        self._context = context
        self._opener = opener
        self._state = state
        self._planned = planned
        self._cores = cores
        self._process: SpawnProcess | None = None
        self._died_s: deque[float] = deque()
        self.pipe: Connection | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._process.pid if self._process is not None else None

    @property
    def died_lately(self) -> int:
        """Number of processes that died within the last minutes."""
        return len(self._died_s)

    def start(self, config: EngineConfig) -> None:
        """Start a process."""
        ours: Any  # of another type on Windows, with the same methods
        ours, theirs = self._context.Pipe()
        self.pipe = ours
        self._process = self._context.Process(
            target=serve_engine,
            args=(theirs, config, self._opener, self._state, self._planned, self._cores),
            name="mdd-engine",
            daemon=True,
        )
        self._planned = None  # its pace is measured once
        with keyboard_ignored():
            self._process.start()
        theirs.close()

    def reap(self) -> object:
        """Count a process that died; return its exit code."""
        self._end(5.0)  # its pipe is broken, and it may hang on its way out
        if self.pipe is not None:
            self.pipe.close()
        now_s = time.monotonic()
        self.restarts += 1
        self._died_s.append(now_s)
        while self._died_s[0] < now_s - RESTARTS_WITHIN_S:
            self._died_s.popleft()
        return None if self._process is None else self._process.exitcode

    def check(self, code: object) -> None:
        """Raise an EngineError where too many processes died within some minutes."""
        if len(self._died_s) > MAX_RESTARTS:
            raise EngineError(
                f"The engine process died {len(self._died_s)} times within {RESTARTS_WITHIN_S / 60:.0f} "
                f"minutes (exit code {code}): too little memory? "
                'Try a smaller engine.tile or engine.device = "cpu".'
            )

    def kill(self) -> None:
        """Kill the process; the engine's thread finds its pipe broken."""
        if self._process is not None:
            self._process.kill()

    def stop(self, timeout_s: float) -> None:
        """Close the pipe, which ends the process; kill it if it does not end in time."""
        if self.pipe is not None:
            self.pipe.close()
        self._end(timeout_s)

    def _end(self, timeout_s: float) -> None:
        if self._process is None:
            return
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)
