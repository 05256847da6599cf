"""Going on with a run that was cut off: what the driver before left comes first, then the next sweep.

The driver of a daemon that died lives on for some seconds, tries to deliver, and puts what it could not
into its journal. So before a new driver takes numbers of its own, `Leftovers` (one thread) waits until no
journal of the run is in use any more and delivers what they hold.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from microdiffusion.drivers.plan import ResumeFrom
from microdiffusion.errors import MddError, RunError
from microdiffusion.paths import journal_folder
from microdiffusion.sender import deliver, in_use
from microdiffusion.wire import own_security

if TYPE_CHECKING:
    from microdiffusion.config import Config
    from microdiffusion.daemon.runs import LiveRun

PATIENCE_S = 20.0
"""How long a driver without its daemon may live on."""
LOOK_S = 0.25
SEQ_ROOM = 1 << 32
"""Numbers that a sender has for itself: the next one begins beyond all that the one before may still use."""


class Leftovers:
    """Delivers what an earlier driver left of one run.

    Parameters
    ----------
    config : Config
    run_id : str

    Attributes
    ----------
    run_id : str
    notes : list of str
        What was delivered, in sentences; complete when `busy` is False.
    """

    def __init__(self, config: Config, run_id: str) -> None:
        self._config = config
        self.run_id = run_id
        self._stopping = threading.Event()
        self._failure: MddError | None = None
        self._address = ""
        self._thread = threading.Thread(target=self._run, name="mdd-leftovers", daemon=True)
        self.notes: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether something may still come."""
        return self._thread.is_alive()

    def start(self, address: str) -> None:
        """Start the thread; `address` is where the daemon takes frames."""
        self._address = address
        self._thread.start()

    def stop(self) -> None:
        """Stop waiting; what is not delivered stays in the journal."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    def raise_if_failed(self) -> None:
        """Raise what went wrong."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        folder = self._config.wire.journal or journal_folder()
        deadline_s = time.monotonic() + PATIENCE_S
        try:
            while True:
                for delivered in deliver(
                    folder,
                    self._address,
                    run_id=self.run_id,
                    security=own_security(self._config.wire, self._address),
                    stop=self._stopping.is_set,
                ):
                    self.notes.append(str(delivered))
                if not in_use(folder, self.run_id) or time.monotonic() > deadline_s:
                    return
                if self._stopping.wait(LOOK_S):
                    return
        except MddError as error:
            self._failure = error
        except Exception as error:  # the main thread hears of it
            self._failure = RunError(f"The journal could not be delivered ({type(error).__name__}: {error}).")
            self._failure.__cause__ = error


def resume_from(run: LiveRun) -> ResumeFrom:
    """Return where the acquisition of a run goes on: after everything that its file and senders know."""
    recorder = run.recorder
    used = run.received.highest
    return ResumeFrom(
        run_id=run.header.run_id,
        sweep=recorder.next_sweep,
        seq=(used // SEQ_ROOM + 1) * SEQ_ROOM if used >= 0 else 0,
        time_s=recorder.last_time_s,
    )
