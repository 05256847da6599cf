"""The daemon: starts everything, watches over it, and closes it in order.

The main thread lives here. It starts the ingest, the engine process, the driver process, status and control,
then draws, obeys and checks a few times a second until somebody says stop; every part reports its own
failure through `raise_if_failed`, and one that stands still through its pulse. Frames are taken as soon as
the ingest listens, long before the engine is open: what it is for waits. Closing goes with the stream:
driver, ingest, runs, engine, so that nothing that was acquired is lost on the way.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion.daemon.control import ControlServer
from microdiffusion.daemon.dashboard import LiveDashboard
from microdiffusion.daemon.engine import EngineInfo, EngineProcess
from microdiffusion.daemon.ingest import Ingest, RunState
from microdiffusion.daemon.monitoring import Monitor
from microdiffusion.daemon.runs import OpenRuns, RunFolder
from microdiffusion.daemon.server.commander import Commander
from microdiffusion.daemon.server.resume import Leftovers, resume_from
from microdiffusion.daemon.server.sources import STOP_S, open_source
from microdiffusion.daemon.server.systemd import ServiceManager
from microdiffusion.daemon.signals import StopRequest
from microdiffusion.daemon.status import (
    EngineStatus,
    QueueDepth,
    StatusBoard,
    StatusPublisher,
    duration,
    log_line,
)
from microdiffusion.errors import AcquisitionError, DiskError
from microdiffusion.wire import Command, server_security

if TYPE_CHECKING:
    from microdiffusion.config import Config, EngineConfig
    from microdiffusion.daemon.runs import ClosedRun
    from microdiffusion.daemon.server.sources import Feed, Source

CLOSE_S = 1.5
"""How long a daemon that was told to stop goes on reconstructing; `mdd reconstruct` does the rest."""
STUCK_S = 20.0
"""A thread that has shown no sign of life for so long is stuck: the service manager is not told that all is
well, and the user is."""


class Daemon:
    """Everything that runs while `mdd serve` runs.

    Parameters
    ----------
    config : Config
    volumes, duration_s
        Stop after so many volumes, or seconds of acquisition; None for no such limit.
    feed : Feed, optional
        Sends the frames instead of the configured driver.
    resume : Path, optional
        A run file to go on with.
    stopping : StopRequest, optional
        Whether somebody wants it to stop; None: only `request_stop` says so.
    """

    def __init__(
        self,
        config: Config,
        *,
        volumes: int | None,
        duration_s: float | None,
        feed: Feed | None = None,
        resume: Path | None = None,
        stopping: StopRequest | None = None,
    ) -> None:
        self._config = config
        self._volumes = volumes
        self._duration_s = duration_s
        self._feed = feed
        self._resume = resume
        self._leftovers: Leftovers | None = None
        self._remarks: list[str] = []  # of the driver, not in a run file yet
        self.board = StatusBoard()
        self.stopping = StopRequest() if stopping is None else stopping
        self._before_runs_s = -float("inf")  # when what comes before the runs had stopped
        self._show: Callable[[], None] = lambda: None
        self._shown_s = 0.0
        self._began_s: float | None = None
        self._source: Source | None = None
        self._source_started = False
        self._source_wanted = False
        self._service = ServiceManager()
        self._watched = True  # whether ingest has to give signs of life
        self._told_stuck = False
        self._state = config.recorder.output / ".mdd-state"
        self._engine = EngineProcess(
            config.engine,
            waiting_bytes=int(config.wire.receive_buffer_mb * 1e6),
            state=self._state,
            on_note=self.board.note,
        )
        self._ingest = Ingest(
            config.wire.data,
            security=server_security(config.wire, config.wire.data),
            runs=config.wire.runs,
            silent_s=config.wire.silent_s,
            max_frame_bytes=int(config.wire.max_frame_mb * 1e6),
        )
        self._runs = OpenRuns(config, self._engine, self.board, self._ingest)
        self._commander = Commander(self)
        self._watchman = Monitor(config, self.board)
        self._told: tuple[EngineInfo | None, str, EngineConfig] | None = None

    @property
    def runs(self) -> list[ClosedRun]:
        """The runs that are over."""
        return self._runs.closed

    @property
    def engine(self) -> EngineProcess:
        """The engine."""
        return self._engine

    @property
    def open_runs(self) -> OpenRuns:
        """The runs that are open."""
        return self._runs

    def serve(self, *, dashboard: bool) -> None:
        """Run until told to stop, or until the source ends; afterwards `runs` holds them, their files closed.

        Raises
        ------
        MddError
            What could not be started, or what failed while running; files are closed first.
        """
        config = self._config
        failure: Exception | None = None
        with contextlib.ExitStack() as stack:
            stack.callback(self._ingest.stop)
            _make_folder(config.recorder.output)
            security = server_security(config.wire, config.wire.status)
            publisher = stack.enter_context(StatusPublisher(config.wire.status, security=security))
            control = ControlServer(
                config.wire.control,
                self._commander.obey,
                security=server_security(config.wire, config.wire.control),
            )
            stack.callback(control.close)
            self._engine.start()
            stack.callback(self._engine.stop)
            if self._resume is not None:
                self._take_up(self._resume)
            self._ingest.start(self._runs.on_start)
            self._watchman.start(
                echo=not dashboard,
                data=self._ingest.address,
                status=publisher.address,
                control=control.address,
                name=config.name,
            )
            stack.callback(lambda: self._watchman.stop(failure))
            stack.enter_context(self._watchman.exporter())
            self._service.ready(f"listening at {self._ingest.address}")
            self._tell_unclosed()
            display = None
            if dashboard:
                display = LiveDashboard(config.dashboard, perform=self._by_key, asks_to_quit=True)
                stack.enter_context(display)

            def show() -> None:
                snapshot = self._watchman.complete(self.board.snapshot())
                publisher.publish(snapshot)
                if display is not None:
                    with contextlib.suppress(OSError):  # a terminal that is gone costs nobody a run
                        display.show(snapshot)
                if self._stuck():
                    return
                self._service.alive(log_line(snapshot))

            troubles: set[str] = set()

            def show_if_possible() -> None:
                try:
                    show()
                except Exception as error:  # it must not keep a file from being closed
                    trouble = f"the status cannot be told: {type(error).__name__}: {error}"
                    if trouble not in troubles:  # each once: this is tried again and again
                        troubles.add(trouble)
                        self.board.note(trouble, "error")

            self._show = show_if_possible
            try:
                self._open_source(stack)
                self.board.put(state="waiting")
                while not self._over():
                    self._step()
                    control.poll()
                    show()
                    if display is None:
                        self.stopping.wait(1.0 / config.dashboard.refresh_hz)
                    else:
                        display.wait(1.0 / config.dashboard.refresh_hz, self.stopping)
            except Exception as error:  # a mistake of ours, too, must not cost the order of the close
                failure = error
                self.board.note(str(error), "error")
            self.board.put(state="closing")
            self._service.stopping()
            show_if_possible()
            failure = self._close(failure)
            self.board.put(state="failed" if failure else "closed")
            show_if_possible()
        if failure is not None:
            raise failure

    def request_stop(self) -> None:
        """Stop soon; asked twice, do not reconstruct what still waits."""
        self.stopping.ask()

    def _by_key(self, command: str, value: str) -> str:
        """Carry out what a key of the dashboard asks for."""
        if command == "quit":
            self.request_stop()
            return "closing"
        return self._commander.obey(Command(command=command, value=value), by="with a key")[0]

    def start_source(self) -> bool:
        """Begin the acquisition that waits for a command; False where there is none, or it has begun.

        Where an engine is built first, it begins when that is open.
        """
        if self._source is None or self._source_wanted:
            return False
        self._source_wanted = True
        self._start_source()
        return True

    def _start_source(self) -> None:
        due = self._source_wanted and not self._source_started
        if due and self._source is not None and not self._engine.may_build:
            self._source.start()
            self._source_started = True

    def _tell_unclosed(self) -> None:
        """Say which runs an earlier daemon left open: their senders may never come back."""
        folder = RunFolder(self._config.recorder.output)
        folder.remove_remains()
        for path in folder.unclosed():
            if path != self._resume:
                self.board.note(
                    f"{path.name} was not closed: its sender may go on with it, `mdd serve --resume` "
                    "acquires on, `mdd reconstruct` closes it"
                )

    def _take_up(self, path: Path) -> None:
        """Go on with a run file; what the driver before left in its journal comes first."""
        run = self._runs.resume(path)
        self._leftovers = Leftovers(self._config, run.header.run_id)

    def _open_source(self, stack: contextlib.ExitStack) -> None:
        if self._leftovers is not None:
            self._leftovers.start(self._ingest.address)
            stack.callback(self._leftovers.stop)
            return  # the driver waits for it: its numbers go on after theirs
        if self.stopping.is_set():  # while everything else was started
            return
        self._source = open_source(self._config, self._ingest.address, feed=self._feed)
        if self._source is not None:
            stack.callback(self._source.stop)
            if self._config.acquisition.begin == "at once":
                self.start_source()
            else:
                self.board.note("the acquisition waits for `mdd control start`")

    def _go_on_acquiring(self) -> None:
        """Start the driver again, once everything that its predecessor left has come."""
        leftovers = self._leftovers
        if leftovers is None or leftovers.busy:
            return
        leftovers.raise_if_failed()
        self._leftovers = None
        for text in leftovers.notes:
            self.board.note(text)
        run = next((run for run in self._runs.unclosed if run.header.run_id == leftovers.run_id), None)
        if run is None or self._config.acquisition.driver == "none":
            return
        where = resume_from(run)
        if run.header.sweeps is not None and where.sweep >= run.header.sweeps:
            self.board.note("all sweeps of the run were taken; what was not reconstructed is caught up")
            run.abort("all its sweeps had been taken.")
            self._ingest.close_run(run.header.run_id, run.reason)
            return
        self._source = open_source(self._config, self._ingest.address, resume=where)
        if self._source is not None:
            self.start_source()

    def _tell_engine(self) -> None:
        """Show what serves now, or how far the build of its engine is."""
        info, engine = self._engine.info, self._engine.queue.config
        building = _progress(self._engine.building)
        if (info, building, engine) == self._told or (info is None and not building):
            return
        self._told = (info, building, engine)
        info = info or EngineInfo("", "", "", "")
        self.board.watch_process("engine", self._engine.pid)
        self.board.put(
            engine=EngineStatus(
                device=info.device,
                device_reason=info.reason,
                building=building,
                weights=info.weights,
                method=engine.method,
                steps=engine.steps,
                guidance=engine.guidance,
            )
        )

    def _stuck(self) -> bool:
        """Whether a thread stands still; the user is told once."""
        age_s = time.monotonic() - self._ingest.pulse_s
        stuck = self._watched and age_s > STUCK_S
        told, self._told_stuck = self._told_stuck, stuck
        if stuck and not told:
            self.board.note(
                f"nothing has been received for {age_s:.0f} s, the thread for it stands still: end mdd and "
                "start it again; frames wait with their sender",
                "error",
            )
        return stuck

    def _over(self) -> bool:
        if self.stopping.is_set():
            return True
        if self._volumes is not None and self._runs.written >= self._volumes:
            return True
        if self._began_s is not None and self._duration_s is not None:
            return time.monotonic() - self._began_s >= self._duration_s
        # With a source of our own the daemon ends with it.
        source = self._source
        if self._resume is not None and self._leftovers is None and source is None:
            return self._config.acquisition.driver != "none" and not len(self._runs)
        return source is not None and self._source_started and not source.alive and not len(self._runs)

    def _step(self) -> None:
        self._ingest.raise_if_failed()
        self._engine.raise_if_failed()
        self._tell_engine()
        self._start_source()
        self._go_on_acquiring()
        self._watch_source()
        self._runs.tick(time.monotonic(), drain_s=self._drain_s(), hurry=self._hurried)
        if len(self._runs) and self._began_s is None:
            self._began_s = time.monotonic()
        self.board.put(
            state="running" if len(self._runs) else "waiting",
            queues={"engine": QueueDepth(bytes=self._engine.queue.waiting_bytes)},
        )

    def _watch_source(self) -> None:
        source = self._source
        if source is None or not self._source_started:
            return
        if self._runs.failures and not len(self._runs):
            raise next(iter(self._runs.failures.values()))  # the source has nobody to send to
        for text in source.take_notes():
            self.board.note(text)
            self._remarks.append(text)
        # They belong to its run, which may not have been opened yet.
        if self._remarks and len(self._runs) == 1 and self._runs.unclosed:
            for text in self._remarks:
                self._runs.unclosed[0].remark(text)
            self._remarks.clear()
        source.raise_if_failed()
        if source.alive:
            return
        # Another sender's run is none of its business.
        if len(self._runs) == 1 and any(run.state is RunState.OPEN for run in self._runs.unclosed):
            raise AcquisitionError("The driver ended without saying so; the run was closed as it is.")

    def _close(self, failure: Exception | None) -> Exception | None:
        """Close in the order of the stream; return the first failure."""

        def attempt(work: Callable[[], object]) -> None:
            nonlocal failure
            try:
                work()
            except Exception as error:
                failure = failure or error

        source = self._source
        if source is not None and self._source_started:
            attempt(lambda: source.stop(STOP_S))
            attempt(source.raise_if_failed)
        self._watched = False
        attempt(self._ingest.stop)
        self._before_runs_s = time.monotonic()
        drain_s = 0.0 if failure is not None else self._drain_s()
        self._runs.close_all(drain_s=drain_s, hurry=self._hurried, show=self._show)
        attempt(self._engine.stop)
        with contextlib.suppress(OSError):  # what runs left for later is kept
            self._state.rmdir()
        # What went wrong with a run comes first: that its driver then failed as well is no wonder.
        return next(iter(self._runs.failures.values()), failure)

    def _drain_s(self) -> float:
        """How long a run that is over may be reconstructed: to its end, unless somebody wants to go."""
        return CLOSE_S if self.stopping.is_set() else float("inf")

    def _hurried(self) -> bool:
        """Say whether to stop waiting for a run that closes: asked often, on its own thread.

        A run that was over before somebody said stop was to be reconstructed to its end, and waits no longer.
        """
        wish = self.stopping
        return wish.hurry or time.monotonic() - max(wish.asked_s, self._before_runs_s) > CLOSE_S


def _progress(building: tuple[float, float] | None) -> str:
    """Return how far a build is, in words."""
    if building is None:
        return ""
    share, left_s = building
    left = f", {duration(left_s)} left" if share > 0 else ""
    return f"TensorRT {100 * share:.0f} %{left}"


def _make_folder(path: Path) -> None:
    """Make the folder of the run files, and see that files can be made in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise DiskError(
            f"Run files cannot be written to {path} ({error.strerror}): name another folder with --output."
        ) from None
