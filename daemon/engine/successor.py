"""The runtime that is to replace the one that serves: its build, its change-over, and giving it up.

Where a faster runtime has to be built first, the engine's child serves with torch, the build runs in a third
process (`engine_builder`), and when it is done the child is asked to change over, which it does between two
sweeps. What fails is given up once, with a note. Belongs to the thread of `EngineProcess`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Literal

from microdiffusion.daemon.engine.builder import Build, EngineBuilder
from microdiffusion.daemon.engine.messages import Changed, ChangeOver, EngineInfo

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

    from microdiffusion.config import EngineConfig

Note = Callable[[str, Literal["info", "warning"]], None]


class Successor:
    """What becomes of the runtime that is not there yet.

    Parameters
    ----------
    context : SpawnContext
    config : EngineConfig
        What is built for.
    build : callable
    on_note : callable

    Attributes
    ----------
    info : EngineInfo or None
        What serves; None while no child is ready.
    building : str
        How far a build is, as a sentence; empty where there is none.
    changing : bool
        The child was asked to change over and has not answered yet.
    given_up : bool
        Children open torch from now on.
    """

    def __init__(self, context: SpawnContext, config: EngineConfig, build: Build, on_note: Note) -> None:
        self._context = context
        self._config = config
        self._build = build
        self._on_note = on_note
        self._builder: EngineBuilder | None = None
        self._tried = False
        self.info: EngineInfo | None = None
        self.building = ""
        self.changing = False
        self.given_up = config.runtime == "torch"

    @property
    def pipes(self) -> list[Connection]:
        """What to wait on."""
        return [] if self._builder is None else [self._builder.pipe]

    def opened(self, info: EngineInfo) -> None:
        """Take note of what a child serves with; have built what it would rather serve with."""
        self.info = info
        if info.fallback:
            self._on_note(info.fallback, "warning")
        if info.pending and not self._tried:
            self._tried = True
            self._on_note(f"{info.pending} is being built; torch serves meanwhile", "info")
            try:
                self._builder = EngineBuilder(self._context, self._config, self._build)
            except OSError as error:
                self._stay(f"no process could be started for its build ({error})")

    def watch(self, pipe: Connection) -> None:
        """Say how far the build is; when it is done, ask the child to change over."""
        builder = self._builder
        if builder is None:
            return
        outcome = builder.take()
        if outcome is None:
            self.building = f"TensorRT {100 * builder.share:.0f} %, torch serves meanwhile"
            return
        self._builder = None
        if outcome.failure:
            self._stay(outcome.failure)
            return
        if self.info is not None and not self.info.pending:
            self.building = ""  # a child that was started again found it by itself
            return
        self.building = "TensorRT is built, torch serves until it is open"
        self.changing = True
        pipe.send(ChangeOver())

    def changed(self, answer: Changed) -> None:
        """Take note of what serves after a change-over, or why nothing changed."""
        self.changing = False
        if answer.info is None:
            self._stay(answer.failure)
            return
        self.building = ""
        self.info = answer.info
        if answer.failure:
            self._on_note(answer.failure, "warning")
        else:
            self._on_note(f"{answer.info.device} serves from now on", "info")

    def give_up(self, code: object) -> None:
        """Have the next child serve with torch: it may be the runtime that it died of, and would again."""
        if self.given_up:
            return
        self.given_up = True
        self.changing, self.building = False, ""
        self.stop()
        self._on_note(f"the engine process died (exit code {code}): from now on torch serves", "warning")

    def stop(self) -> None:
        """End a build."""
        if self._builder is not None:
            self._builder.stop()
            self._builder = None

    def _stay(self, why: str) -> None:
        """Say once that torch goes on, and why."""
        self.building = ""
        self._on_note(f"TensorRT is not used, torch goes on in its place: {why}", "warning")
        if self.info is not None:
            self.info = replace(self.info, reason=f"{self.info.reason}; it failed: {why}", pending="")
