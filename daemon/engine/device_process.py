"""The engine process on one device, as the engine's thread sees it: what it knows, and what it is at."""

from __future__ import annotations

import contextlib
import shutil
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path

import psutil

from microdiffusion.config import Config, EngineConfig
from microdiffusion.daemon.engine.messages import EngineInfo
from microdiffusion.daemon.engine.sinks import SweepJob
from microdiffusion.daemon.engine.supervisor import Supervisor
from microdiffusion.daemon.engine.worker import Opener

_STALE_S = 7 * 86400.0  # age of the state of runs that nobody resumed


class DeviceProcess:
    """A device, and the process that works there.

    Parameters
    ----------
    number, of : int
        Which of how many. Several on a CPU share its cores: each is kept to its own.

    Attributes
    ----------
    info : EngineInfo or None
        None until the engine is open.
    begun : set of str
        Runs that the present process knows.
    configured : EngineConfig
        The settings that it has, as those of all devices.
    handed_s : float or None
        When it got its sweep, `job`; None while it is idle.
    longest_s : float
        Longest sweep.
    build : pair of float, or None
        When a build began, and the share that is done.
    outbox : list
        Messages for its next turn.
    given_up : bool
        It died too often: others do its work.
    """

    def __init__(
        self,
        number: int,
        of: int,
        config: EngineConfig,
        context: SpawnContext,
        opener: Opener,
        state: Path | None,
        planned: Config | None,
    ) -> None:
        self.number = number
        self.device = config.devices[number] if config.devices else config.device
        self._cores = own_cores(number, of) if of > 1 and self.device == "cpu" else ()
        self.supervisor = Supervisor(context, opener, state, planned, self._cores)
        self.info: EngineInfo | None = None
        self.begun: set[str] = set()
        self.configured = config
        self.handed_s: float | None = None
        self.job: SweepJob | None = None
        self.longest_s = 0.0
        self.build: tuple[float, float] | None = None
        self.outbox: list[object] = []
        self.given_up = False

    @property
    def pipe(self) -> Connection | None:
        """Pipe of the present process; None where there is none any more."""
        return None if self.given_up else self.supervisor.pipe

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.device} (engine {self.number + 1})"

    @property
    def busy_s(self) -> float:
        """Seconds at the present sweep; 0 while it is idle. Any thread."""
        handed_s = self.handed_s
        return 0.0 if handed_s is None else time.monotonic() - handed_s

    def config(self, config: EngineConfig) -> EngineConfig:
        """Return the settings of all devices as this one gets them."""
        changes: dict[str, object] = {"device": self.device}
        if self._cores:
            changes["threads"] = min(config.threads or len(self._cores), len(self._cores))
        return config.model_copy(update=changes)

    def start(self, config: EngineConfig) -> None:
        """Start a process."""
        self.info, self.build, self.handed_s, self.job = None, None, None, None
        self.begun.clear()
        self.outbox.clear()
        self.configured = config
        self.supervisor.start(self.config(config))

    def answered(self) -> tuple[SweepJob | None, float]:
        """Return the sweep that it was at, and the seconds that it took; it is idle now."""
        seconds = self.busy_s
        job, self.job, self.handed_s = self.job, None, None
        self.longest_s = max(self.longest_s, seconds)
        return job, seconds


def own_cores(number: int, of: int) -> tuple[int, ...]:
    """Return the cores of one of several processes; none where the system keeps no process to cores."""
    try:
        every = psutil.Process().cpu_affinity()
    except AttributeError:  # macOS
        return ()
    cores = tuple(every[number::of])
    return cores or (every[number % len(every)],)


def forget_stale(state: Path) -> None:
    """Remove the state of runs that nobody resumed for a week; without it they start cold."""
    for folder in state.iterdir() if state.is_dir() else ():
        with contextlib.suppress(OSError):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
