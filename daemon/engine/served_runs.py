"""The runs that the engine serves, and how they are told what became of their sweeps.

An exception of a run's sink ends the work for that run alone. Any thread; sinks are called without a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from microdiffusion.daemon.engine.scheduler import Dropped
from microdiffusion.daemon.engine.sinks import EngineSink, SweepJob
from microdiffusion.errors import EngineError, MddError
from microdiffusion.frames import Reconstruction
from microdiffusion.header import RunHeader
from microdiffusion.text import command_line
from microdiffusion.wire import SweepFeedback

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class ServedRun:
    """An open run: `failure` is what its sink raised; `behind`: some of its sweeps are put off."""

    header: RunHeader
    sink: EngineSink
    file: str
    failure: MddError | None = None
    behind: bool = False


class ServedRuns:
    """The open runs by their ids; `on_failure` takes the id of one whose sink has raised, and what."""

    def __init__(self, on_failure: Callable[[str, MddError], None]) -> None:
        self._runs: dict[str, ServedRun] = {}
        self._on_failure = on_failure

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    @property
    def ids(self) -> list[str]:
        """The ids of all."""
        return list(self._runs)

    @property
    def headers(self) -> list[RunHeader]:
        """The headers of all."""
        return [run.header for run in list(self._runs.values())]

    def add(self, header: RunHeader, sink: EngineSink, file: str) -> None:
        """Add a run."""
        self._runs[header.run_id] = ServedRun(header, sink, file)

    def remove(self, run_id: str) -> None:
        """Remove a run."""
        self._runs.pop(run_id, None)

    def get(self, run_id: str) -> ServedRun | None:
        """Return a run that can be told of its sweeps; None where it is over or its sink has raised."""
        run = self._runs.get(run_id)
        return None if run is None or run.failure is not None else run

    def failure_of(self, run_id: str) -> MddError | None:
        """Return what the sink of a run has raised."""
        run = self._runs.get(run_id)
        return None if run is None else run.failure

    def volume(self, job: SweepJob, result: Reconstruction) -> bool:
        """Offer a volume; False where its run has no room for it."""
        return self._call(job.run_id, lambda sink: sink.volume(job, result), True)

    def live(self, job: SweepJob, result: Reconstruction) -> None:
        """Hand over a rolling volume."""
        self._call(job.run_id, lambda sink: sink.live(job, result), None)

    def feedback(self, run_id: str, feedback: SweepFeedback) -> None:
        """Hand over what a sweep of an adaptive run showed."""
        self._call(run_id, lambda sink: sink.feedback(feedback), None)

    def lost(self, job: SweepJob, outcome: Literal["skipped", "failed"], reason: str) -> None:
        """Say that a sweep gets no volume."""
        self._call(job.run_id, lambda sink: sink.lost(job, outcome, reason), None)

    def left(self, run_id: str, jobs: Sequence[SweepJob]) -> None:
        """Say that sweeps, if there are any, were not processed when their run was closed."""
        run = self._runs.get(run_id)
        if jobs and run is not None:
            later = command_line("mdd", "reconstruct", Path(run.file))
            reason = f"the run was closed before its turn came: {later}"
            self._call(run_id, lambda sink: sink.left(jobs, reason), None)

    def dropped(self, dropped: Sequence[Dropped]) -> None:
        """Say which sweeps are skipped; of those that are put off, the first since all was caught up."""
        for each in dropped:
            run = self._runs.get(each.job.run_id)
            if not each.put_off:
                self.lost(each.job, "skipped", each.reason)
            elif run is not None and not run.behind:
                run.behind = True
                text = f"from sweep {each.job.sweep_number} on some are done later"
                self.event(
                    each.job.run_id, "backlog", f"sweeps come faster than the engine takes them: {text}"
                )

    def event(self, run_id: str, kind: str, text: str) -> None:
        """Report a change to a run."""
        self._call(run_id, lambda sink: sink.event(kind, text), None)

    def tell_all(self, kind: str, text: str) -> None:
        """Report a change to every run."""
        for run_id in self.ids:
            self.event(run_id, kind, text)

    def _call(self, run_id: str, work: Callable[[EngineSink], _T], otherwise: _T) -> _T:
        """Return `work(sink)`; `otherwise` where the run is over or its sink raises or has raised."""
        run = self.get(run_id)
        if run is None:
            return otherwise
        try:
            return work(run.sink)
        except Exception as error:  # one run's disk does not concern the others
            failure = EngineError(f"The run could not take what the engine made ({error}).")
            failure.__cause__ = error
            run.failure = error if isinstance(error, MddError) else failure
        self._on_failure(run_id, run.failure)
        return otherwise
