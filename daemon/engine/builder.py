"""The engine's build in a process of its own, while torch serves.

TensorRT holds locks for seconds and crashes for reasons of its own; here that costs the build and nothing
else. `EngineBuilder` belongs to the thread of `EngineProcess`, which waits on its pipe; the process sends the
share that is done, and at the end that the engine lies in the cache, or why there is none. It runs at a low
priority, and ends when the daemon does, however that happens.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from microdiffusion.config import EngineConfig
from microdiffusion.errors import MddError
from microdiffusion.processes import keyboard_ignored, leave_stops_to_parent

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

Build = Callable[[EngineConfig, Callable[[float], None]], None]
"""Builds and keeps the engine of a configuration, telling the share that is done; a function of a module."""

_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Built:
    """The end of a build; `failure` is empty where all went well."""

    failure: str = ""


def build_engine(config: EngineConfig, progress: Callable[[float], None]) -> None:
    """Build what `config` asks for, into the user's cache.

    Raises
    ------
    MddError
        See `compile_network`.
    """
    from microdiffusion.engines.pipeline import pick_device, weights_path
    from microdiffusion.engines.runtimes import compile_network

    device, _ = pick_device(config.device)
    compile_network(weights_path(config, device), device, config.tile, progress=progress)


class EngineBuilder:
    """A process that builds one engine.

    Parameters
    ----------
    context : SpawnContext
    config : EngineConfig
    build : callable

    Attributes
    ----------
    pipe : Connection
        To wait on; then `take`.
    share : float
        How much is done, 0 to 1.
    """

    def __init__(self, context: SpawnContext, config: EngineConfig, build: Build = build_engine) -> None:
        self.share = 0.0
        self.pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(theirs, config, build), name="mdd-build", daemon=True
        )
        with keyboard_ignored():
            self._process.start()
        theirs.close()

    def take(self) -> Built | None:
        """Take what came; return the end of the build, None while it goes on."""
        try:
            while self.pipe.poll():
                answer = self.pipe.recv()
                if isinstance(answer, Built):
                    self.stop()
                    return answer
                self.share = float(answer)
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self.stop()
            return Built(f"the process that built it died (exit code {code})")
        return None

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self.pipe.close()
        # An orderly end may take minutes; the cache knows nothing of files that are not complete.
        self._process.join(0.1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)


def _run(pipe: Connection, config: EngineConfig, build: Build) -> None:
    """Run the child: build, tell how far, and how it ended."""
    leave_stops_to_parent()
    logging.getLogger("microdiffusion").addHandler(logging.NullHandler())  # the terminal is the dashboard's
    threading.Thread(target=_end_with_parent, name="mdd-orphan", daemon=True).start()
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(10)
    told_s = float("-inf")

    def progress(share: float) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _EVERY_S:
            told_s = time.monotonic()
            pipe.send(share)

    try:
        build(config, progress)
        outcome = Built()
    except MddError as error:
        outcome = Built(str(error))
    except Exception as error:  # TensorRT's bindings raise what they like
        outcome = Built(f"{type(error).__name__}: {error}")
    # A pipe that breaks means that nobody waits any more.
    with contextlib.suppress(OSError):
        pipe.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # the main thread may be in C++ for minutes
