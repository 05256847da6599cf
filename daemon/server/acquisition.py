"""The daemon's own acquisition: the driver's process or a replay, begun when it is due, and watched.

A daemon may have no source of frames of its own and wait for senders on the wire. Where it resumes a run that
was cut off, what the driver before left comes first: that driver lives on for some seconds, tries to deliver,
and puts what it could not into its journal. So the new driver, whose numbers go on after those, starts when
no journal of the run is in use any more and what they hold has been delivered.

Everything runs on the main thread, but for what a `SourceThread` does.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from microdiffusion.config import Config
from microdiffusion.daemon.ingest import RunState
from microdiffusion.daemon.runs import LiveRun, OpenRuns
from microdiffusion.daemon.status import StatusBoard
from microdiffusion.drivers.plan import ResumeFrom
from microdiffusion.errors import AcquisitionError, MddError
from microdiffusion.paths import journal_folder
from microdiffusion.sender import deliver, in_use
from microdiffusion.wire import own_security

if TYPE_CHECKING:
    from microdiffusion.drivers.process import DriverProcess

Feed = Callable[[str, Callable[[], bool]], object]
"""Sends frames to an address until done, or until the second argument says stop; runs on a thread."""

STOP_S = 10.0
"""Time for a source to deliver its last frames and say `end`."""
ORPHANED_S = 20.0
"""Time that a driver may live on without its daemon."""
SEQ_ROOM = 1 << 32
"""Numbers that a sender has for itself: the next one begins beyond all that the one before may still use."""
_LOOK_S = 0.25


class SourceThread:
    """A source of frames that is a function, to be used as a `DriverProcess` is.

    Parameters
    ----------
    work : callable
        Gets a callable that says whether to stop, and one that takes notes.
    broke_off : str
        What to say where it fails unexpectedly, such as "The replay broke off".
    """

    def __init__(
        self, work: Callable[[Callable[[], bool], Callable[[str], None]], object], broke_off: str
    ) -> None:
        self._work = work
        self._broke_off = broke_off
        self._notes: list[str] = []
        self._stopping = threading.Event()
        self._failure: MddError | None = None
        self._thread = threading.Thread(target=self._run, name="mdd-source", daemon=True)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ask it to stop, and wait."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def take_notes(self) -> list[str]:
        """Return what was noted since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def raise_if_failed(self) -> None:
        """Raise what ended it early."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._work(self._stopping.is_set, lambda text: self._notes.append(text))
        except MddError as error:
            self._failure = error
        except Exception as error:  # the main thread hears of it
            self._failure = AcquisitionError(f"{self._broke_off} ({type(error).__name__}: {error}).")
            self._failure.__cause__ = error


class Acquisition:
    """The source of a daemon, if it has one.

    Parameters
    ----------
    config : Config
    runs : OpenRuns
    board : StatusBoard
    feed : Feed, optional
        Sends the frames instead of the configured driver.

    Attributes
    ----------
    secret : str
        What proves that its driver may send to a run that is resumed.
    """

    def __init__(self, config: Config, runs: OpenRuns, board: StatusBoard, feed: Feed | None) -> None:
        self._config = config
        self._runs = runs
        self._board = board
        self._feed = feed
        self.secret = secrets.token_hex(16)
        self._address = ""
        self._source: SourceThread | DriverProcess | None = None
        self._resumed: LiveRun | None = None
        self._delivering = False
        self._wanted = self._started = False
        self._remarks: list[str] = []  # of the driver, not in a run file yet

    @property
    def is_over(self) -> bool:
        """True when the daemon's own source has ended, and its run with it; False where it has none."""
        if len(self._runs) or self._delivering:
            return False
        if self._source is None:
            return self._resumed is not None and self._config.acquisition.driver != "none"
        return self._started and not self._source.alive

    def open(self, address: str, resumed: LiveRun | None) -> None:
        """Get ready to send frames to `address`, of the run that is `resumed` if any."""
        self._address, self._resumed = address, resumed
        if resumed is not None:
            work = partial(_deliver, self._config, address, resumed.header.run_id)
            self._source = SourceThread(work, "The journal could not be delivered")
            self._source.start()
            self._delivering = True
            return
        self._source = self._new_source(None)
        if self._source is not None and self._config.acquisition.begin == "at once":
            self._wanted = True
        elif self._source is not None:
            self._board.note("the acquisition waits for `mdd control start`")

    def start(self) -> bool:
        """Begin the acquisition that waits for a command; False where there is none, or it has begun."""
        if self._source is None or self._wanted or self._delivering:
            return False
        self._wanted = True
        return True

    def step(self, *, may_start: bool) -> None:
        """Start what is due; hear what the source says.

        Parameters
        ----------
        may_start : bool
            Whether the camera may move: no engine has to be built first.

        Raises
        ------
        MddError
            The source failed, or has no run to send to.
        """
        if self._delivering:
            self._follow_up()
        source = self._source
        if source is None or self._delivering:
            return
        if self._wanted and not self._started and may_start:
            source.start()
            self._started = True
        if self._started:
            self._watch(source)

    def end(self) -> None:
        """Have the source deliver its last frames; raise what went wrong."""
        if self._source is not None and self._started:
            self._source.stop(STOP_S)
            self._hear(self._source)  # what it left behind, perhaps
            self._source.raise_if_failed()

    def close(self) -> None:
        """Stop, whatever becomes of it."""
        if self._source is not None:
            self._source.stop()

    def _follow_up(self) -> None:
        """Start the driver of the resumed run, once everything that its predecessor left has come."""
        source, run = self._source, self._resumed
        if source is None or run is None or source.alive:
            return
        source.raise_if_failed()
        for text in source.take_notes():
            self._board.note(text)
        self._source, self._delivering = None, False
        if run not in self._runs.unclosed or self._config.acquisition.driver == "none":
            return
        where = _resume_from(run, self.secret)
        if run.header.sweeps is not None and where.sweep >= run.header.sweeps:
            self._board.note("all sweeps of the run were taken; what was not reconstructed is caught up")
            self._runs.abort(run, "all its sweeps had been taken.")
            return
        self._source, self._wanted = self._new_source(where), True

    def _watch(self, source: SourceThread | DriverProcess) -> None:
        if self._runs.failures and not len(self._runs):
            raise next(iter(self._runs.failures.values()))  # the source has no run to send to
        run = self._hear(source)
        source.raise_if_failed()
        if not source.alive and run is not None and run.state is RunState.OPEN:
            raise AcquisitionError("The driver ended without saying so; the run was closed as it is.")

    def _hear(self, source: SourceThread | DriverProcess) -> LiveRun | None:
        """Pass on what the source tells; return its run, if that is open."""
        for text in source.take_notes():
            self._board.note(text)
            self._remarks.append(text)
        # They belong to its run, which may not be open yet; another sender's is none of its business.
        run = self._runs.unclosed[0] if len(self._runs) == 1 else None
        if run is not None:
            for text in self._remarks:
                run.recorder.put_event("driver", text)
            self._remarks.clear()
        return run

    def _new_source(self, where: ResumeFrom | None) -> SourceThread | DriverProcess | None:
        """Return the driver, or what stands in for it, not started; None where there is none."""
        feed, config = self._feed, self._config
        if feed is not None:
            return SourceThread(lambda stop, note: feed(self._address, stop), "The replay broke off")
        if config.acquisition.driver == "none":
            return None
        # Only here: a daemon without a driver of its own pays for no import of it.
        from microdiffusion.drivers.process import DriverProcess

        return DriverProcess(
            config,
            self._address,
            log=config.recorder.output / "driver.log",
            resume=where,
            security=own_security(config.wire, self._address),
        )


def _deliver(
    config: Config, address: str, run_id: str, stop: Callable[[], bool], note: Callable[[str], None]
) -> None:
    """Deliver what an earlier driver left of a run, when it uses its journal no longer."""
    folder = config.wire.journal or journal_folder()
    security = own_security(config.wire, address)
    deadline_s = time.monotonic() + ORPHANED_S
    while True:
        for delivered in deliver(folder, address, run_id=run_id, security=security, stop=stop):
            note(str(delivered))
        if stop() or not in_use(folder, run_id) or time.monotonic() > deadline_s:
            return
        time.sleep(_LOOK_S)


def _resume_from(run: LiveRun, secret: str) -> ResumeFrom:
    """Return where the acquisition of a run goes on: after everything that its file and senders know."""
    used = run.received.highest
    return ResumeFrom(
        run_id=run.header.run_id,
        sweep=run.recorder.index.next_sweep,
        seq=(used // SEQ_ROOM + 1) * SEQ_ROOM if used >= 0 else 0,
        time_s=run.recorder.last_time_s,
        secret=secret,
        refocus_um=_refocus_um(run),
    )


def _refocus_um(run: LiveRun) -> float:
    """Return how far the stage had followed the specimen in the last sweep that the file knows, µm."""
    if not run.header.adaptive:
        return 0.0
    frames = run.recorder.load_frames(run.recorder.index.next_sweep - 1, 0, 0)
    return frames[-1].info.refocus_um if frames else 0.0
