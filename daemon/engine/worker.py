"""The engine's own process: opens device and weights, reports them, then answers one sweep after the other.

It imports torch, ends when its pipe closes, so it cannot outlive the daemon, and changes its runtime when it
is told that another one has been built, or when it fails in the middle of a run: then torch goes on with
the same sweep. Where the GPU's memory is too small, the same sweep is done with smaller tiles. Where an error
leaves the GPU refusing the whole process, it says so and ends without an answer, to be started again: the
daemon knows which sweep that was. Sessions of all runs are kept, put aside and put on disk by
`engines.session_store.SessionStore`, when no sweep waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion.config import EngineConfig
from microdiffusion.daemon.engine.messages import (
    Begin,
    Changed,
    ChangeOver,
    Configure,
    End,
    EngineInfo,
    Told,
    Work,
)
from microdiffusion.errors import EngineError, MddError
from microdiffusion.processes import leave_stops_to_parent

if TYPE_CHECKING:
    from microdiffusion.engines.pipeline import Engine, Reconstructor, SessionStore
    from microdiffusion.frames import Reconstruction

__all__ = ["EngineInfo", "open_engine", "serve_engine"]

_LOST = 70  # the exit code where the GPU is lost
_LEAST_TILE = 64
_OVERDUE = 3.0  # times as long as between checkpoints: then one goes before the next sweep
_LEAST_REST = 20.0  # times what a checkpoint took to write, until the next: the disk is the recorder's

Opener = Callable[[EngineConfig], "Engine"]


def open_engine(config: EngineConfig) -> Engine:
    """Open the engine that can serve at once; in the child, since it imports torch."""
    from microdiffusion.engines.pipeline import open_engine

    return open_engine(config, build=False)


def serve_engine(pipe: Connection, config: EngineConfig, opener: Opener, state: Path | None = None) -> None:
    """Run the child: report, then answer sweeps until the pipe closes."""
    leave_stops_to_parent()
    # What matters travels through the pipe; the terminal is the dashboard's.
    logging.getLogger("microdiffusion").addHandler(logging.NullHandler())
    # A pipe that breaks means that the daemon is gone: there is nobody to tell.
    with contextlib.suppress(EOFError, OSError):
        try:
            engine = opener(config)
        except MddError as error:
            pipe.send(error)
            return
        except Exception as error:  # trying again would not help
            pipe.send(EngineError(f"The engine could not start ({type(error).__name__}: {error})."))
            return
        pipe.send(EngineInfo.of(engine))
        _Child(pipe, config, opener, engine, state).serve()


class _Child:
    """What the child holds: the engine, a reconstructor for each run, and their sessions."""

    def __init__(
        self, pipe: Connection, config: EngineConfig, opener: Opener, engine: Engine, state: Path | None
    ) -> None:
        from microdiffusion.engines.pipeline import SessionStore

        self._pipe = pipe
        self._config = config
        self._opener = opener
        self._engine = engine
        self._store: SessionStore = SessionStore(state, most_bytes=int(config.session_memory_mb * 1e6))
        self._runs: dict[str, Reconstructor] = {}
        self._unfit: dict[str, str] = {}  # runs that could not be begun, and why
        self._checked_s = time.monotonic()

    def serve(self) -> None:
        """Answer requests until the pipe closes."""
        try:
            while True:
                self._checkpoint()
                self._answer(self._pipe.recv())
        finally:
            self._store.close()

    def _checkpoint(self) -> None:
        """Put changed sessions on disk where it is time, between two sweeps and rather not before one."""
        every_s = max(self._config.checkpoint_s, _LEAST_REST * self._store.write_s)
        left_s = self._checked_s + every_s - time.monotonic()
        overdue = left_s < -(_OVERDUE - 1) * every_s
        if self._store.dirty and (overdue or not self._pipe.poll(max(left_s, 0.0))):
            self._store.checkpoint()
            self._checked_s = time.monotonic()

    def _answer(self, request: object) -> None:
        from microdiffusion.engines.pipeline import Reconstructor

        if isinstance(request, Begin):
            run_id = request.header.run_id
            try:
                self._runs[run_id] = Reconstructor(
                    request.header, self._config, self._engine, sessions=self._store
                )
            except Exception as error:  # a volume that is too large, say: of no concern to the other runs
                if _is_lost(self._engine):
                    os._exit(_LOST)
                self._unfit[run_id] = f"the engine cannot work for this run ({type(error).__name__}: {error})"
        elif isinstance(request, End):
            self._runs.pop(request.run_id, None)
            self._unfit.pop(request.run_id, None)
            self._store.forget(request.run_id)
        elif isinstance(request, Configure):
            self._configure(request.config)
        elif isinstance(request, ChangeOver):
            newer, failure = _reopen(self._config, self._opener)
            if newer is not None:
                self._use(newer)
            self._pipe.send(Changed(None if newer is None else EngineInfo.of(newer), failure))
        elif isinstance(request, Work):
            try:
                answer: object = self._reconstruct(request)
            except Exception as error:  # one bad sweep must not end the run
                if _is_lost(self._engine):
                    self._pipe.send(Told(f"the GPU takes no more work of the engine's process: {error}"))
                    self._pipe.close()
                    os._exit(_LOST)  # an orderly end may hang
                answer = EngineError(f"{type(error).__name__}: {error}")
            self._pipe.send(answer)

    def _reconstruct(self, work: Work) -> Reconstruction:
        """Return the sweep's volume, with another runtime or smaller tiles where that is what it takes."""
        while True:
            run = self._runs.get(work.run_id)
            if run is None:
                raise EngineError(self._unfit.get(work.run_id, "a sweep came before its run's header"))
            try:
                return run.reconstruct(work.sweep, lane=work.lane, effort=work.effort)
            except RuntimeError as error:  # an EngineError is one too
                if _is_lost(self._engine):
                    raise
                if not self._engine.name.startswith("torch"):
                    self._use(_torch_instead(self._config, self._opener, self._engine, error))
                    self._pipe.send(Changed(EngineInfo.of(self._engine), self._engine.fallback))
                elif not (_out_of_memory(error) and self._smaller_tiles()):
                    raise

    def _use(self, engine: Engine) -> None:
        self._engine = engine
        for run in self._runs.values():
            run.use(engine)

    def _configure(self, config: EngineConfig) -> None:
        self._config = config
        for run in self._runs.values():
            run.configure(config)

    def _smaller_tiles(self) -> bool:
        """Go on with tiles of half the edge; False where they are as small as they get."""
        tile = max(self._config.tile // 2 // 16 * 16, _LEAST_TILE)
        if tile >= self._config.tile:
            return False
        _empty_cache()
        self._configure(self._config.model_copy(update={"tile": tile}))
        self._pipe.send(
            Told(
                f"the GPU's memory is too small for engine.tile = {2 * tile}: it is {tile} from now on", tile
            )
        )
        return True


def _out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_lost(engine: Engine) -> bool:
    """Return whether the GPU takes no more work of this process, as after an illegal access to its memory."""
    if engine.device.type != "cuda":
        return False
    import torch

    try:
        torch.cuda.synchronize(engine.device)
    except RuntimeError:
        return True
    return False


def _torch_instead(config: EngineConfig, opener: Opener, failed: Engine, error: RuntimeError) -> Engine:
    """Return the engine with torch, after another runtime failed in the middle of a run."""
    engine = opener(config.model_copy(update={"runtime": "torch"}))
    why = f"{failed.name} failed: {error}"
    return replace(
        engine,
        reason=f"{engine.reason}; torch, {why}",
        fallback=f"{failed.name} is not used any more, torch goes on in its place: {error}",
    )


def _reopen(config: EngineConfig, opener: Opener) -> tuple[Engine | None, str]:
    """Return the engine that has been built meanwhile, or why there is none."""
    try:
        engine = opener(config)
    except Exception as error:  # what serves goes on serving
        return None, str(error) if isinstance(error, MddError) else f"{type(error).__name__}: {error}"
    if engine.pending:
        return None, "what was built is not accepted here"
    return (None, engine.fallback) if engine.fallback else (engine, "")
