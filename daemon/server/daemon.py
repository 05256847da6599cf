"""The daemon: starts everything, watches over it, and shuts it down cleanly.

The main thread lives here. It starts ingest, the engine process, the driver process, status and control; then
it draws, executes commands and checks a few times a second until a stop is requested. Every part reports its
own failure through `raise_if_failed`, and a thread that is stuck shows by its pulse. Frames are taken as soon
as ingest listens, long before the engine is open: their sweeps wait for it. Parts are closed downstream:
driver, ingest, runs, engine, so that nothing that was acquired is lost on the way.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from microdiffusion.config import Config, EngineConfig
from microdiffusion.daemon.control import ControlServer
from microdiffusion.daemon.dashboard import LiveDashboard
from microdiffusion.daemon.engine import EngineInfo, EngineProcess
from microdiffusion.daemon.ingest import Ingest, owner_of
from microdiffusion.daemon.monitoring import Monitor
from microdiffusion.daemon.runs import OpenRuns, RunFolder
from microdiffusion.daemon.server.acquisition import Acquisition, Feed
from microdiffusion.daemon.server.commander import Commander
from microdiffusion.daemon.server.systemd import ServiceManager
from microdiffusion.daemon.signals import StopRequest
from microdiffusion.daemon.status import (
    EngineStatus,
    QueueDepth,
    StatusBoard,
    StatusPublisher,
    StatusSnapshot,
    duration,
    log_line,
)
from microdiffusion.errors import DiskError
from microdiffusion.wire import Command, server_security

CLOSE_S = 1.5
"""Time that a daemon which was told to stop goes on reconstructing; `mdd reconstruct` does the rest."""
STUCK_S = 20.0
"""A thread that has shown no sign of life for so long is stuck: the user is told, and the service manager is
not told that all is well."""


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
        A run file to resume.
    stopping : StopRequest, optional
        Says when to stop.

    Attributes
    ----------
    board : StatusBoard
    engine : EngineProcess
    runs : OpenRuns
    acquisition : Acquisition
    """

    def __init__(
        self,
        config: Config,
        *,
        volumes: int | None = None,
        duration_s: float | None = None,
        feed: Feed | None = None,
        resume: Path | None = None,
        stopping: StopRequest | None = None,
    ) -> None:
        self._config = config
        self._volumes = volumes
        self._duration_s = duration_s
        self._resume = resume
        self._stopping = StopRequest() if stopping is None else stopping
        self._began_s: float | None = None
        self._before_runs_s = -float("inf")  # when what comes before the runs had stopped
        self._watched = True  # whether ingest has to give signs of life
        self._told_stuck = False
        self._told_engine: tuple[EngineInfo | None, str, EngineConfig] | None = None
        self._troubles: set[str] = set()
        self._state = config.recorder.output / ".mdd-state"
        self.board = StatusBoard()
        self.engine = EngineProcess(
            config.engine,
            waiting_bytes=int(config.wire.receive_buffer_mb * 1e6),
            state=self._state,
            on_note=self.board.note,
            planned=config if feed is None else None,
        )
        self._ingest = Ingest(
            config.wire.data,
            security=server_security(config.wire, config.wire.data),
            runs=config.wire.runs,
            silent_s=config.wire.silent_s,
            max_frame_bytes=int(config.wire.max_frame_mb * 1e6),
        )
        self.runs = OpenRuns(config, self.engine, self.board, self._ingest)
        self.acquisition = Acquisition(config, self.runs, self.board, feed)
        self._commander = Commander(self)
        self._monitor = Monitor(config, self.board)
        self._service = ServiceManager()

    def serve(self, *, dashboard: bool) -> None:
        """Run until told to stop, or until the source ends; then the files of all `runs` are closed.

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
            security = server_security(config.wire, config.wire.control)
            control = ControlServer(config.wire.control, self._commander.execute, security=security)
            stack.callback(control.close)
            self.engine.start()
            stack.callback(self.engine.stop)
            resumed = (
                None
                if self._resume is None
                else self.runs.resume(self._resume, owner_of(self.acquisition.secret))
            )
            self._ingest.start(self.runs.on_start)
            self._monitor.start(
                echo=not dashboard,
                data=self._ingest.address,
                status=publisher.address,
                control=control.address,
                name=config.name,
            )
            stack.callback(lambda: self._monitor.stop(failure))
            stack.enter_context(self._monitor.exporter())
            self._service.ready(f"listening at {self._ingest.address}")
            self._tell_unclosed()
            display = None
            if dashboard:
                display = LiveDashboard(config.dashboard, perform=self._by_key, asks_to_quit=True)
                stack.enter_context(display)

            def show() -> None:
                snapshot = self._monitor.complete(self.board.snapshot())
                publisher.publish(snapshot)
                if display is not None:
                    with contextlib.suppress(OSError):  # a terminal that is gone costs nobody a run
                        display.show(snapshot)
                self._give_sign_of_life(snapshot)

            stack.callback(self.acquisition.close)
            try:
                if not self._stopping.is_set():  # while everything else was started
                    self.acquisition.open(self._ingest.address, resumed)
                while not self._is_over():
                    self._step()
                    control.poll()
                    show()
                    if display is None:
                        self._stopping.wait(1.0 / config.dashboard.refresh_hz)
                    else:
                        display.wait(1.0 / config.dashboard.refresh_hz, self._stopping)
            except Exception as error:  # a mistake of ours, too, must not cost the order of the close
                failure = error
                self.board.note(str(error), "error")
            self._service.stopping()
            failure = self._close(failure, show)
        if failure is not None:
            raise failure

    def _step(self) -> None:
        self._ingest.raise_if_failed()
        self.engine.raise_if_failed()
        self._tell_engine()
        self.acquisition.step(may_start=not self.engine.may_build)
        self.runs.tick(time.monotonic(), drain_s=self._drain_s, hurry=self._hurried)
        if len(self.runs) and self._began_s is None:
            self._began_s = time.monotonic()
        self.board.put(
            state="running" if len(self.runs) else "waiting",
            queues={"engine": QueueDepth(bytes=self.engine.queue.waiting_bytes)},
        )

    def _is_over(self) -> bool:
        if self._stopping.is_set() or self.acquisition.is_over:
            return True
        if self._volumes is not None and self.runs.written >= self._volumes:
            return True
        if self._duration_s is None or self._began_s is None:
            return False
        return time.monotonic() - self._began_s >= self._duration_s

    @property
    def is_stuck(self) -> bool:
        """True where a thread that makes a run did not end, and may hold a lock that exiting waits for."""
        return self._ingest.is_stuck

    def _close(self, failure: Exception | None, show: Callable[[], None]) -> Exception | None:
        """Close in the order of the stream; return the first failure."""

        def attempt(work: Callable[[], object]) -> None:
            nonlocal failure
            try:
                work()
            except Exception as error:
                failure = failure or error

        def show_if_possible() -> None:
            try:
                show()
            except Exception as error:  # it must not keep a file from being closed
                trouble = f"the status cannot be told: {type(error).__name__}: {error}"
                if trouble not in self._troubles:  # each once: this is tried again and again
                    self._troubles.add(trouble)
                    self.board.note(trouble, "error")

        self.board.put(state="closing")
        show_if_possible()
        attempt(self.acquisition.end)
        self._watched = False
        attempt(self._ingest.stop)
        self._before_runs_s = time.monotonic()
        drain_s = 0.0 if failure is not None else self._drain_s
        self.runs.close_all(drain_s=drain_s, hurry=self._hurried, show=show_if_possible)
        attempt(self.engine.stop)
        with contextlib.suppress(OSError):  # what runs left for later is kept
            self._state.rmdir()
        # What went wrong with a run comes first: that its driver then failed as well is no wonder.
        failure = next(iter(self.runs.failures.values()), failure)
        self.board.put(state="failed" if failure else "closed")
        show_if_possible()
        return failure

    @property
    def _drain_s(self) -> float:
        """Time that a run which is over may be reconstructed: unlimited, unless a stop was requested."""
        return CLOSE_S if self._stopping.is_set() else float("inf")

    def _hurried(self) -> bool:
        """Return whether to stop waiting for a run that closes: asked often, on its own thread.

        A run that was over before the stop was to be reconstructed completely; it waits no longer either.
        """
        asked = self._stopping
        return asked.hurry or time.monotonic() - max(asked.asked_s, self._before_runs_s) > CLOSE_S

    def _by_key(self, command: str, value: str) -> str:
        """Carry out what a key of the dashboard asks for."""
        if command == "quit":
            self._stopping.ask()
            return "closing"
        return self._commander.execute(Command(command=command, value=value), by="with a key")[0]

    def _tell_unclosed(self) -> None:
        """Say which runs an earlier daemon left open: their senders may never come back."""
        folder = RunFolder(self._config.recorder.output)
        folder.remove_remains()
        for path in folder.unclosed():
            if path != self._resume:
                self.board.note(
                    f"{path.name} was not closed: its sender may resume it, `mdd serve --resume` "
                    "acquires on, `mdd reconstruct` closes it"
                )

    def _tell_engine(self) -> None:
        """Show what serves now, or how far the build of its engine is."""
        info, engine = self.engine.info, self.engine.queue.config
        building = _progress(self.engine.building)
        if (info, building, engine) == self._told_engine or (info is None and not building):
            return
        self._told_engine = (info, building, engine)
        info = info or EngineInfo("", "", "", "")
        self.board.watch_process("engine", self.engine.pid)
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

    def _give_sign_of_life(self, snapshot: StatusSnapshot) -> None:
        """Tell the service manager that all is well; not where a thread is stuck, which the user is told."""
        age_s = time.monotonic() - self._ingest.pulse_s
        stuck = self._watched and age_s > STUCK_S
        if not stuck:
            self._service.alive(log_line(snapshot))
        elif not self._told_stuck:
            self.board.note(
                f"nothing has been received for {age_s:.0f} s, the thread for it stands still: end mdd and "
                "start it again; frames wait with their sender",
                "error",
            )
        self._told_stuck = stuck


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
