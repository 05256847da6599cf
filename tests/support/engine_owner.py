"""The daemon's side of an engine process: the sink of one run, which keeps all that the engine says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from microdiffusion.config import EngineConfig
from microdiffusion.daemon.engine.messages import EngineInfo
from microdiffusion.daemon.engine.process import EngineProcess
from microdiffusion.daemon.engine.sinks import SweepJob
from microdiffusion.frames import Reconstruction, Sweep
from support.sample_data import header

RUN = header().run_id
FAST = {"method": "linear", "threads": 1, "device": "cpu"}


class Owner:
    """One run; `engine` is shared with others where it is given."""

    def __init__(
        self,
        waiting_bytes: int = 1 << 30,
        state: Path | None = None,
        engine: EngineProcess | None = None,
        opener: Any = None,
        **config: Any,
    ) -> None:
        self.volumes: list[tuple[SweepJob, Reconstruction]] = []
        self.rolling: list[SweepJob] = []
        self.lost_jobs: list[tuple[int, str, str]] = []
        self.events: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.on_disk: dict[int, Sweep] = {}
        self.loaded: list[int] = []
        self.has_room = True
        self.offered: list[int] = []
        self.engine = engine or EngineProcess(
            EngineConfig(**{**FAST, **config}),
            waiting_bytes=waiting_bytes,
            state=state,
            on_note=lambda text, level: (self.warnings if level == "warning" else self.notes).append(text),
            **({} if opener is None else {"opener": opener}),
        )
        self.queue = self.engine.queue

    def begin(self, **changes: Any) -> None:
        self.queue.begin(header(**changes), self, file="run.h5")

    def submit(self, *sweeps: Sweep) -> None:
        for sweep in sweeps:
            self.on_disk[sweep.sweep] = sweep
            self.queue.submit(RUN, sweep)

    def volume(self, job: SweepJob, result: Reconstruction) -> bool:
        self.offered.append(job.sweep_number)
        if self.has_room:
            self.volumes.append((job, result))
        return self.has_room

    def live(self, job: SweepJob, result: Reconstruction) -> None:
        self.rolling.append(job)

    def lost(self, job: SweepJob, outcome: str, reason: str) -> None:
        self.lost_jobs.append((job.sweep_number, outcome, reason))

    def left(self, jobs: Sequence[SweepJob], reason: str) -> None:
        for job in jobs:
            self.lost(job, "skipped", reason)

    def load(self, job: SweepJob) -> Sweep | None:
        self.loaded.append(job.sweep_number)
        return self.on_disk.get(job.sweep_number)

    def event(self, kind: str, text: str) -> None:
        self.events.append((kind, text))

    @property
    def done(self) -> list[int]:
        return [job.sweep_number for job, _ in self.volumes]

    @property
    def settled(self) -> list[int]:
        return sorted(self.done + [number for number, _, _ in self.lost_jobs])

    def wait(self, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self.engine.raise_if_failed()
            assert time.monotonic() < deadline_s, (self.settled, self.lost_jobs, self.notes, self.warnings)
            time.sleep(0.01)

    def ready(self, timeout_s: float = 120.0) -> EngineInfo:
        """Wait until the engine is open; raise what it could not open."""
        self.wait(lambda: self.engine.info, timeout_s)
        assert self.engine.info is not None
        return self.engine.info
