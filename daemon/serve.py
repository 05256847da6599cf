"""`mdd serve`: starts everything, watches over it, and closes it in order.

The main thread lives here. It starts the engine process, the ingest, the driver process and the status, then
draws and checks a few times a second until somebody says stop; every part reports its own failure through
`raise_if_failed`. Closing goes with the stream: driver, ingest, engine, recorder, so that nothing that was
acquired is lost on the way.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from microdiffusion.daemon.dashboard import open_display
from microdiffusion.daemon.engine_process import READY_S, EngineProcess
from microdiffusion.daemon.ingest import Ingest
from microdiffusion.daemon.live_run import LiveRun
from microdiffusion.daemon.status import EngineStatus, StatusBoard, StatusPublisher
from microdiffusion.errors import AcquisitionError, ConfigError, DiskError, MddError, RunError, UserError
from microdiffusion.run_file import Status

if TYPE_CHECKING:
    from pathlib import Path

    from microdiffusion.config import Config
    from microdiffusion.daemon.engine_child import EngineInfo
    from microdiffusion.run_header import RunHeader
    from microdiffusion.sweep import Frame, Reconstruction, Sweep
    from microdiffusion.wire import RunEnd

Feed = Callable[[str, Callable[[], bool]], object]
"""Sends frames to an address until done, or until the second argument says stop; runs on a thread."""

DRAIN_S = 20.0
"""How long a closing daemon goes on reconstructing what was acquired."""
END_S = 10.0
"""How long it waits for the driver's last frames and its `end`."""


class Source(Protocol):
    """Where frames come from, as far as the daemon minds."""

    @property
    def alive(self) -> bool:
        """Whether more may come."""
        ...

    def start(self) -> None:
        """Begin."""
        ...

    def stop(self, timeout_s: float = ...) -> None:
        """Deliver what there is, say `end`, and be gone."""
        ...

    def take_notes(self) -> list[str]:
        """Return what it has told the user since the last call."""
        ...

    def raise_if_failed(self) -> None:
        """Raise what went wrong."""
        ...


class FeedThread:
    """A `Source` that runs a function on a thread of the daemon (the replay of a file)."""

    def __init__(self, feed: Feed, address: str) -> None:
        self._feed = feed
        self._address = address
        self._stopping = threading.Event()
        self._failure: MddError | None = None
        self._thread = threading.Thread(target=self._run, name="mdd-feed", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it still sends."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = END_S) -> None:
        """Ask it to stop, and wait."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def take_notes(self) -> list[str]:
        """Return nothing: a replay has nothing to tell."""
        return []

    def raise_if_failed(self) -> None:
        """Raise what ended it early."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._feed(self._address, self._stopping.is_set)
        except MddError as error:
            self._failure = error
        except Exception as error:  # the main thread hears of it
            self._failure = AcquisitionError(f"The replay broke off ({type(error).__name__}: {error}).")
            self._failure.__cause__ = error


class Daemon:
    """Everything that runs while `mdd serve` runs.

    Parameters
    ----------
    config : Config
    volumes, duration_s
        Stop after so many volumes, or seconds of acquisition; None for no such limit.
    feed : Feed, optional
        Sends the frames instead of the configured driver.
    """

    def __init__(
        self, config: Config, *, volumes: int | None, duration_s: float | None, feed: Feed | None = None
    ) -> None:
        self._config = _limited(config, volumes)
        self._volumes = volumes
        self._duration_s = duration_s
        self._feed = feed
        self.board = StatusBoard()
        self.stopping = threading.Event()
        self._hurry = False
        self._show: Callable[[], None] = lambda: None
        self._shown_s = 0.0
        self._run: LiveRun | None = None
        self._run_started_s: float | None = None
        self.runs: list[LiveRun] = []
        self._engine = EngineProcess(
            config.engine,
            waiting_bytes=int(config.wire.receive_buffer_mb * 1e6),
            on_volume=self._on_volume,
            on_lost=self._on_lost,
            on_note=self.board.note,
        )
        self._told: tuple[EngineInfo | None, str] = (None, "")
        self._ingest = Ingest(
            config.wire.data, on_start=self._on_start, on_frame=self._on_frame, on_end=self._on_end
        )

    def serve(self, *, dashboard: bool) -> None:
        """Run until told to stop, or until the source ends; afterwards `runs` holds them, their files closed.

        Raises
        ------
        MddError
            What could not be started, or what failed while running; files are closed first.
        """
        config = self._config
        with contextlib.ExitStack() as stack:
            stack.callback(self._ingest.stop)
            _make_folder(config.recorder.output)
            publisher = stack.enter_context(StatusPublisher(config.wire.status))
            self._ingest.start()
            self._engine.start()
            stack.callback(self._engine.stop)
            display = stack.enter_context(open_display(config.dashboard, live=dashboard))

            def show() -> None:
                snapshot = self.board.snapshot()
                publisher.publish(snapshot)
                display.show(snapshot)

            self._show = show
            source = self._source()
            if source is not None:
                stack.callback(source.stop)
            failure: MddError | None = None
            try:
                self._await_engine(show)
                if source is not None and not self.stopping.is_set():
                    source.start()
                self.board.set_state("waiting")
                while not self._over(source):
                    self._step(source)
                    show()
                    self.stopping.wait(1.0 / config.dashboard.refresh_hz)
            except MddError as error:
                failure = error
                self.board.note(str(error), "error")
            self.board.set_state("closing")
            show()
            failure = self._close(source, failure)
            self.board.set_state("failed" if failure else "closed")
            show()
        if failure is not None:
            raise failure

    def request_stop(self) -> None:
        """Stop soon; asked twice, do not reconstruct what still waits."""
        self._hurry = self.stopping.is_set()
        self.stopping.set()

    def _await_engine(self, draw: Callable[[], object]) -> None:
        deadline = time.monotonic() + READY_S
        while not self._engine.is_ready(0.25) and time.monotonic() < deadline:
            draw()
            if self.stopping.is_set():
                return
        self._engine.wait_ready(0.0)
        self._tell_engine()

    def _tell_engine(self) -> None:
        """Show what serves now, and what is being built: either may change while a run goes on."""
        info, building = self._engine.info, self._engine.building
        if info is None or (info, building) == self._told:
            return
        self._told = (info, building)
        engine = self._config.engine
        self.board.watch_process("engine", self._engine.pid)
        self.board.set_engine(
            EngineStatus(
                device=info.device,
                device_reason=info.reason,
                building=building,
                weights=info.weights,
                method=engine.method,
                steps=engine.steps,
                guidance=engine.guidance,
            )
        )

    def _source(self) -> Source | None:
        if self._feed is not None:
            return FeedThread(self._feed, self._ingest.address)
        if self._config.acquisition.driver == "none":
            return None
        from microdiffusion.drivers.process import DriverProcess

        log = self._config.recorder.output / "driver.log"
        return DriverProcess(self._config, self._ingest.address, log=log)

    def _over(self, source: Source | None) -> bool:
        if self.stopping.is_set():
            return True
        run, started = self._run, self._run_started_s
        if self._volumes is not None:
            runs = self.runs if run is None or run in self.runs else [*self.runs, run]
            if sum(each.recorder.counts[Status.WRITTEN] for each in runs) >= self._volumes:
                return True
        if started is not None and self._duration_s is not None:
            return time.monotonic() - started >= self._duration_s
        # With a source of our own the daemon ends with it.
        return source is not None and not source.alive and (run is None or run.ended.is_set())

    def _step(self, source: Source | None) -> None:
        self._ingest.raise_if_failed()
        self._engine.raise_if_failed()
        self._tell_engine()
        if source is not None:
            for text in source.take_notes():
                self.board.note(text)
            source.raise_if_failed()
            if not source.alive and self._run is not None and not self._run.ended.is_set():
                raise AcquisitionError("The driver ended without saying so; the run was closed as it is.")
        run = self._run
        if run is not None:
            run.tick(time.monotonic())
            if run.ended.is_set() and source is None:
                # A remote sender is done: close its file and wait for the next run. The run stays the
                # current one until then: the volumes that are still being made belong to it.
                self.runs.append(run)
                run.close(drain_s=self._drain_s(), hurry=self._hurried)
                self._run_started_s = None
                self.board.set_state("waiting")
                self._run = None

    def _close(self, source: Source | None, failure: MddError | None) -> MddError | None:
        """Close in the order of the stream; return the first failure."""

        def attempt(work: Callable[[], object]) -> None:
            nonlocal failure
            try:
                work()
            except MddError as error:
                failure = failure or error

        if source is not None:
            attempt(lambda: source.stop(END_S))
            attempt(source.raise_if_failed)
            if self._run is not None and failure is None:
                self._run.ended.wait(END_S)
        attempt(self._ingest.stop)
        run = self._run  # only now: a run that began while its driver was being stopped is closed too
        if run is not None and run not in self.runs:
            drain_s = 0.0 if failure is not None else self._drain_s()
            self.runs.append(run)
            attempt(lambda: run.close(drain_s=drain_s, hurry=self._hurried))
        attempt(self._engine.stop)
        return failure

    def _drain_s(self) -> float:
        """How long a closing run may be reconstructed: a file that waits for the engine, to its end."""
        waits = self._config.engine.policy == "wait" and not self.stopping.is_set()
        return float("inf") if waits else DRAIN_S

    def _hurried(self) -> bool:
        """Say whether to stop waiting for a closing run; asked often, so the status goes on meanwhile."""
        now = time.monotonic()
        if now - self._shown_s > 1.0 / self._config.dashboard.refresh_hz:
            self._shown_s = now
            self._show()
        return self._hurry

    def _on_start(self, header: RunHeader) -> None:
        deadline = time.monotonic() + READY_S
        # The run before this one is closed by the main thread; the engine may just be starting (again).
        while self._run is not None or not self._engine.is_ready(0.0):
            if self.stopping.wait(0.02):
                raise UserError("The daemon is closing: start it again for a further run.")
            if self._run is None and time.monotonic() > deadline:
                break
        info = self._engine.wait_ready(0.0)
        self._run = LiveRun(header, self._config, self._engine, info, self._ingest, self.board)
        self._run_started_s = time.monotonic()
        self.board.set_state("running")

    def _on_frame(self, frame: Frame) -> bool:
        return self._run is not None and self._run.frame(frame)

    def _on_end(self, message: RunEnd) -> None:
        if self._run is not None:
            self._run.end(message)

    def _on_volume(self, sweep: Sweep, result: Reconstruction) -> bool:
        return self._run is None or self._run.volume(sweep, result)

    def _on_lost(self, sweep: Sweep, outcome: str, reason: str) -> None:
        if self._run is not None:
            self._run.lost(sweep, outcome, reason)


def serve(
    config: Config,
    *,
    volumes: int | None = None,
    duration_s: float | None = None,
    dashboard: bool = False,
    feed: Feed | None = None,
) -> int:
    """Run the daemon and say at the end where the files are; return the exit code.

    Raises
    ------
    ConfigError
        The method cannot be live.
    MddError
        See `Daemon.serve`; the summary of what was written is printed first.
    """
    if config.engine.method == "microdiffusion":
        raise ConfigError(
            "engine.method microdiffusion trains for hours on every volume and cannot be live: choose "
            "another method here; `mdd reconstruct FILE --method microdiffusion` runs it on a file."
        )
    daemon = Daemon(config, volumes=volumes, duration_s=duration_s, feed=feed)
    with _signals(daemon.request_stop):
        try:
            daemon.serve(dashboard=dashboard)
        finally:
            for run in daemon.runs:
                sys.stdout.write(_summary(run))
    stopped = daemon.stopping.is_set()  # by the user, perhaps before there was anything to write
    if daemon.runs and not stopped and not any(run.recorder.counts[Status.WRITTEN] for run in daemon.runs):
        raise RunError(
            "No volume was written; the run file's /mdd/reason says why for each sweep (mdd info)."
        )
    return 0


def _summary(run: LiveRun) -> str:
    counts = run.recorder.counts
    written = counts[Status.WRITTEN]
    others = "".join(
        f", {counts[status]} {status.name.lower()}"
        for status in (Status.LOST, Status.SKIPPED, Status.FAILED)
        if counts[status]
    )
    z, y, x = run.header.shape
    path = run.recorder.paths[0]
    more = f" (and {len(run.recorder.paths) - 1} more)" if len(run.recorder.paths) > 1 else ""
    if not written:
        return f"{path}{more}\nno volume{others}; the raw projections are there\n"
    return (
        f"{path}{more}\n"
        f"{written} volumes of {z} x {y} x {x} voxels{others}, and their raw projections\n"
        f"open: python -c \"import microdiffusion as m; print(m.open_run(r'{path}').volume[0].shape)\"\n"
    )


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


def _limited(config: Config, volumes: int | None) -> Config:
    """Let the driver acquire no more than what is asked for."""
    acquisition = config.acquisition
    if volumes is None or acquisition.driver == "none":
        return config
    sessions = max(1, len(acquisition.channels)) * max(1, len(acquisition.positions_um))
    sweeps = -(-volumes // sessions)
    if acquisition.sweeps is not None:
        sweeps = min(sweeps, acquisition.sweeps)
    return config.model_copy(update={"acquisition": acquisition.model_copy(update={"sweeps": sweeps})})


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Turn Ctrl-C and a polite kill into a stop; only the main thread may do this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), lambda *_: stop()) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
