"""The runs that the engine works for, and how they hear of it: what one's sink raises ends that one alone.

`EngineSinks` has no thread and no lock: its dictionaries are changed by whole entries, and what a sink is
told comes from the engine's thread, or (`lost`, `event`) from whoever submits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from microdiffusion.errors import EngineError, MddError

if TYPE_CHECKING:
    from microdiffusion.daemon.engine.scheduler import Job
    from microdiffusion.frames import Reconstruction, Sweep
    from microdiffusion.header import RunHeader

_T = TypeVar("_T")


class EngineSink(Protocol):
    """What a run does with the engine's answers. All but `lost` and `event` are called on its thread."""

    def volume(self, job: Job, result: Reconstruction) -> bool:
        """Take a volume; False where there is no room yet."""
        ...

    def live(self, job: Job, result: Reconstruction) -> object:
        """Take a rolling volume; where there is no room it is dropped."""
        ...

    def lost(self, job: Job, outcome: Literal["skipped", "failed"], reason: str) -> None:
        """Take note that a sweep gets no volume."""
        ...

    def load(self, job: Job) -> Sweep | None:
        """Return the frames of a sweep that was put off; None where they are not on the disk (yet)."""
        ...

    def event(self, kind: str, text: str) -> None:
        """Take note of what the engine does differently from now on: kind "effort", "backlog" or "engine"."""
        ...


@dataclass(slots=True, eq=False)
class Served:
    """A run: `file` is its file's name, `failure` what its sink raised, `behind`: some sweeps are put off."""

    header: RunHeader
    sink: EngineSink
    file: str
    failure: MddError | None = None
    behind: bool = False


class EngineSinks:
    """The runs that are open.

    Parameters
    ----------
    on_broken : callable
        Told the run and the error when a sink raised.
    """

    def __init__(self, on_broken: Callable[[str, MddError], None]) -> None:
        self._on_broken = on_broken
        self._runs: dict[str, Served] = {}

    def begin(self, header: RunHeader, sink: EngineSink, file: str) -> None:
        """Take in a run."""
        self._runs[header.run_id] = Served(header, sink, file)

    def end(self, run_id: str) -> None:
        """Forget a run."""
        self._runs.pop(run_id, None)

    def get(self, run_id: str) -> Served | None:
        """Return a run; None where it is over."""
        return self._runs.get(run_id)

    @property
    def run_ids(self) -> list[str]:
        """All that are open."""
        return list(self._runs)

    @property
    def headers(self) -> list[RunHeader]:
        """Theirs."""
        return [run.header for run in list(self._runs.values())]

    def works(self, run_id: str) -> bool:
        """Whether the run is open and its sink has not failed."""
        run = self._runs.get(run_id)
        return run is not None and run.failure is None

    def volume(self, job: Job, result: Reconstruction) -> bool:
        """Offer a volume; True where it is taken, or nobody is there to take it."""
        return self._call(job.run_id, lambda sink: sink.volume(job, result), True)

    def live(self, job: Job, result: Reconstruction) -> None:
        """Offer a rolling volume."""
        self._call(job.run_id, lambda sink: sink.live(job, result), None)

    def load(self, job: Job) -> Sweep | None:
        """Return the frames of a sweep that was put off.

        Raises
        ------
        MddError
            They cannot be read: one sweep's trouble, and not the run's.
        """
        run = self._runs.get(job.run_id)
        return None if run is None or run.failure is not None else run.sink.load(job)

    def lost(self, job: Job, outcome: Literal["skipped", "failed"], reason: str) -> None:
        """Say that a sweep gets no volume."""
        self._call(job.run_id, lambda sink: sink.lost(job, outcome, reason), None)

    def event(self, run_id: str, kind: str, text: str) -> None:
        """Say what is different from now on."""
        self._call(run_id, lambda sink: sink.event(kind, text), None)

    def event_for_all(self, kind: str, text: str) -> None:
        """Say it to every run."""
        for run_id in self.run_ids:
            self.event(run_id, kind, text)

    def fell_behind(self, job: Job) -> None:
        """Say that sweeps are put off, the first time."""
        run = self._runs.get(job.run_id)
        if run is not None and not run.behind:
            run.behind = True
            self.event(
                job.run_id,
                "backlog",
                f"sweeps come faster than the engine takes them: from sweep {job.sweep_number} on some are "
                "done later",
            )

    def caught_up(self, run_id: str) -> None:
        """Say that none is put off any more."""
        run = self._runs.get(run_id)
        if run is not None and run.behind:
            run.behind = False
            self.event(run_id, "backlog", "the sweeps that waited in the run file are caught up")

    def _call(self, run_id: str, work: Callable[[EngineSink], _T], nobody: _T) -> _T:
        run = self._runs.get(run_id)
        if run is None or run.failure is not None:
            return nobody
        try:
            return work(run.sink)
        except Exception as error:  # one run's disk is no other's trouble
            failure = EngineError(f"The run could not take what the engine made ({error}).")
            failure.__cause__ = error
            run.failure = error if isinstance(error, MddError) else failure
            self._on_broken(run_id, run.failure)
            return nobody
