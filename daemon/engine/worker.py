"""The engine process: opens device and weights, reports them, then answers one sweep after the other.

It imports torch, and ends when its pipe closes, so it cannot outlive the daemon. Where the GPU's memory is
too small, the same sweep is done with smaller tiles. Where a runtime fails, or an error leaves the GPU
refusing the whole process, it reports that and ends without an answer; the daemon knows the sweep and starts
another process, in the first case with torch. `SessionStore` keeps the sessions of all runs and writes
checkpoints when no sweep waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from microdiffusion.config import Config, EngineConfig
from microdiffusion.daemon.engine.messages import (
    Begin,
    Building,
    Configure,
    End,
    EngineInfo,
    Notice,
    Release,
    Released,
    Work,
)
from microdiffusion.daemon.engine.pace import slow_engine
from microdiffusion.errors import EngineError, MddError
from microdiffusion.processes import leave_stops_to_parent

if TYPE_CHECKING:
    from microdiffusion.engines.pipeline import Engine, Reconstructor, SessionStore
    from microdiffusion.frames import Reconstruction

_LOST = 70  # the exit code where the GPU is lost
_LEAST_TILE = 64
_OVERDUE = 3.0  # checkpoint intervals: then one is written before the next sweep
_LEAST_REST = 20.0  # durations of a checkpoint until the next one: the disk belongs to the recorder
_TELL_EVERY_S = 0.25

Opener = Callable[[EngineConfig, Callable[[float], None]], "Engine"]
"""Opens an engine; reports the share of a build that is done."""


def open_engine(config: EngineConfig, progress: Callable[[float], None]) -> Engine:
    """Open the engine, in the process: it imports torch."""
    from microdiffusion.engines.pipeline import open_engine

    return open_engine(config, progress=progress)


def serve_engine(
    pipe: Connection,
    config: EngineConfig,
    opener: Opener,
    state: Path | None = None,
    planned: Config | None = None,
    cores: tuple[int, ...] = (),
) -> None:
    """Run the process: report the engine, then answer sweeps until the pipe closes.

    Where a run is `planned`, the engine's pace is measured first, for a second. `cores` are those that the
    process keeps to; none: all.
    """
    leave_stops_to_parent()
    if cores:
        with contextlib.suppress(OSError, psutil.Error):  # a core that was taken away
            psutil.Process().cpu_affinity(list(cores))
    # The terminal belongs to the dashboard; everything important goes through the pipe.
    logging.getLogger("microdiffusion").addHandler(logging.NullHandler())
    told_s = float("-inf")

    def progress(share: float) -> None:
        nonlocal told_s
        if share >= 1 or time.monotonic() - told_s >= _TELL_EVERY_S:
            told_s = time.monotonic()
            pipe.send(Building(share))

    # A broken pipe means that the daemon is gone: there is nobody to report to.
    with contextlib.suppress(EOFError, OSError):
        try:
            engine = opener(config, progress)
        except MddError as error:
            pipe.send(error)
            return
        except Exception as error:  # a retry would not help
            pipe.send(EngineError(f"The engine could not start ({type(error).__name__}: {error})."))
            return
        slow = ""
        if planned is not None:
            with contextlib.suppress(Exception):  # what is wrong there is wrong with the first sweep too
                slow = slow_engine(planned, engine)
        pipe.send(EngineInfo.of(engine, slow))
        _Worker(pipe, config, engine, state).serve()


class _RuntimeFailedError(Exception):
    """The runtime has stopped working; torch may still work."""


class _Worker:
    """The state of the process: the engine, a reconstructor for each run, and their sessions."""

    def __init__(self, pipe: Connection, config: EngineConfig, engine: Engine, state: Path | None) -> None:
        from microdiffusion.engines.pipeline import SessionStore

        self._pipe = pipe
        self._config = config
        self._engine = engine
        self._store: SessionStore = SessionStore(state, most_bytes=int(config.session_memory_mb * 1e6))
        self._runs: dict[str, Reconstructor] = {}
        self._unfit: dict[str, str] = {}  # runs that could not be begun, and why
        self._checked_s = time.monotonic()

    def serve(self) -> None:
        """Answer requests until the pipe closes."""
        try:
            with contextlib.suppress(_RuntimeFailedError):
                while True:
                    self._checkpoint()
                    self._answer(self._pipe.recv())
        finally:
            self._store.close()

    def _checkpoint(self) -> None:
        """Write changed sessions to disk when due, preferably while no sweep waits."""
        every_s = max(self._config.checkpoint_s, _LEAST_REST * self._store.write_s)
        left_s = self._checked_s + every_s - time.monotonic()
        overdue = left_s < -(_OVERDUE - 1) * every_s
        if self._store.dirty and (overdue or not self._pipe.poll(max(left_s, 0.0))):
            self._store.checkpoint()
            self._checked_s = time.monotonic()

    def _answer(self, request: object) -> None:
        if isinstance(request, Begin):
            self._begin(request)
        elif isinstance(request, End):
            self._runs.pop(request.run_id, None)
            self._unfit.pop(request.run_id, None)
            self._store.forget(request.run_id)
        elif isinstance(request, Release):
            self._store.release(*request.session)
            self._pipe.send(Released(request.session))
        elif isinstance(request, Configure):
            self._configure(request.config)
        elif isinstance(request, Work):
            try:
                answer: object = self._reconstruct(request)
            except _RuntimeFailedError:
                raise
            except Exception as error:  # one bad sweep does not end the run
                if _is_lost(self._engine):
                    self._pipe.send(Notice(f"the GPU takes no more work of the engine's process: {error}"))
                    self._pipe.close()
                    os._exit(_LOST)  # a clean exit may hang
                answer = EngineError(f"{type(error).__name__}: {error}")
            self._pipe.send(answer)

    def _begin(self, request: Begin) -> None:
        from microdiffusion.engines.pipeline import Reconstructor

        header = request.header
        try:
            run = Reconstructor(
                header, self._config, self._engine, sessions=self._store, on_feedback=self._pipe.send
            )
            self._runs[header.run_id] = run
        except Exception as error:  # such as a volume that is too large: no concern of the other runs
            if _is_lost(self._engine):
                os._exit(_LOST)
            reason = f"the engine cannot work for this run ({type(error).__name__}: {error})"
            self._unfit[header.run_id] = reason

    def _reconstruct(self, work: Work) -> Reconstruction:
        """Return the sweep's volume, with smaller tiles where necessary."""
        run = self._runs.get(work.run_id)
        if run is None:
            raise EngineError(self._unfit.get(work.run_id, "a sweep came before its run's header"))
        while True:
            try:
                return run.reconstruct(work.sweep, lane=work.lane, effort=work.effort)
            except RuntimeError as error:  # an EngineError is one too
                if _is_lost(self._engine):
                    raise
                name = self._engine.name
                if not name.startswith("torch"):
                    text = f"{name} is not used any more, torch goes on in its place: {error}"
                    self._pipe.send(Notice(text, {"runtime": "torch"}))
                    raise _RuntimeFailedError from error
                if not (_out_of_memory(error) and self._smaller_tiles()):
                    raise

    def _configure(self, config: EngineConfig) -> None:
        self._config = config
        for run in self._runs.values():
            run.configure(config)

    def _smaller_tiles(self) -> bool:
        """Halve the edge of the tiles; return False where they are as small as possible."""
        tile = max(self._config.tile // 2 // 16 * 16, _LEAST_TILE)
        if tile >= self._config.tile:
            return False
        text = (
            f"the GPU's memory is too small for engine.tile = {self._config.tile}: it is {tile} from now on"
        )
        self._configure(self._config.model_copy(update={"tile": tile}))
        self._pipe.send(Notice(text, {"tile": tile}))
        return True


def _out_of_memory(error: RuntimeError) -> bool:
    """Return whether the device ran out of memory; free torch's reserve."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError):
        return False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


def _is_lost(engine: Engine) -> bool:
    """Return whether the GPU refuses all work of this process, as after an illegal memory access."""
    if engine.device.type != "cuda":
        return False
    import torch

    try:
        torch.cuda.synchronize(engine.device)
    except RuntimeError:
        return True
    return False
