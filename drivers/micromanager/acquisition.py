"""A run of a real Micro-Manager: a pycromanager `Acquisition` whose images go to the daemon.

Three threads meet here, all in the driver's own process. The caller's feeds the acquisition sweep by sweep
and watches it; pycromanager's image thread calls `FrameHook.take` with every image; the `Sender`'s puts
frames on the wire, and hears from the daemon whether to go on, to pause or to stop.

Invariants
- The hook never raises and never blocks, because either would hang the acquisition; what goes wrong in it
  is kept and told after the run. It returns None, so that no image stays in pycromanager's storage.
- At most two sweeps of events wait in the engine. So an endless run takes no memory, and stopping has
  little to cancel. The pace is kept here and not by the events' `min_start_time`, on which the engine
  cannot be interrupted.
- In a pause no further sweep is handed over, and the stages stay where they are; the pace of the sweeps
  begins anew after it. How long it lasts does not matter: the sender goes on saying that it is there.
- Whatever ends the run, the acquisition is told so and given a few seconds; one that does not come back is
  left behind and reported, never waited for without end.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from microdiffusion.drivers.micromanager.core import open_core, prepare
from microdiffusion.drivers.micromanager.hook import FrameHook
from microdiffusion.drivers.micromanager.preflight import check_travel, exposure_remark
from microdiffusion.drivers.plan import Plan, PlannedSweep, ResumeFrom
from microdiffusion.drivers.sending import FINISH_S, SenderProgress, open_sender
from microdiffusion.drivers.specimen import CalibrationSpecimen, Specimen, specimen_of_run
from microdiffusion.errors import AcquisitionError
from microdiffusion.sender import Sender, SenderStats
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from microdiffusion.config import Config
    from microdiffusion.header import RunHeader
    from microdiffusion.wire import ClientKeys

__all__ = ["FrameHook", "ResumeFrom", "acquire"]

TICK_S = 0.05
GRACE_S = 1.5
"""How long sweeps that have begun may still take after a stop."""
CLOSE_S = 8.0
"""How long a finished acquisition may take to shut down."""
SILENCE_S = 30.0
"""Without an image for this long (and ten exposures) the microscope counts as stuck."""


def acquire(
    config: Config,
    address: str,
    *,
    stop: threading.Event,
    note: Callable[[str], None] = lambda _: None,
    resume: ResumeFrom | None = None,
    security: ClientKeys | None = None,
    patience_s: Callable[[], float] = lambda: FINISH_S,
    on_stats: Callable[[SenderStats], None] | None = None,
) -> SenderStats:
    """Run the acquisition that `config` describes and send its frames to `address`.

    Returns when the last sweep is taken or, at most a few seconds after, `stop` is set or the daemon says
    stop. One call per process with the Python backend: pycromanager keeps the first core for ever.

    Parameters
    ----------
    stop : Event
        Ends the run early; the frames that were taken are still delivered.
    note : callable
        Is told, in one line each, what a user may want to know.
    resume : ResumeFrom or None
        Go on with this run: its next sweep, its next frame number, its camera time.
    security : ClientKeys or None
        Keys for a daemon that asks for them.
    patience_s : callable
        Asked at the end: how long the rest may take to be delivered. Then it goes to the journal.
    on_stats : callable
        Is told the sender's counters about once a second.

    Raises
    ------
    UserError
        The plan does not fit the volume, or a file is missing.
    AcquisitionError
        The microscope could not start or broke off, frames were lost in the hook, or the daemon refused.
    """
    plan = Plan(config)
    core = open_core(config.acquisition)
    header = prepare(core, config, plan, run_id=resume.run_id if resume else None)
    specimens = _specimens(config, header) if config.acquisition.specimen else []
    note(f"{header.source}; {header.shape[2]} x {header.shape[1]} pixels of {header.voxel_size_um[1]:g} µm")
    if resume is not None:
        note(f"going on with run {resume.run_id} at sweep {resume.sweep}")
    focus_um = float(core.get_position(core.get_focus_device()))
    try:
        check_travel(core, plan, config.volume.voxel_z_um)
    except AcquisitionError:
        _put_back(core, focus_um, note)
        raise
    remark = exposure_remark(core, config)
    if remark:
        note(remark)
    sender = open_sender(config, address, header, security, first_seq=resume.seq if resume else 0)
    hook = FrameHook(
        sender, header, specimens, seed=config.specimen.seed, time_s=resume.time_s if resume else 0.0
    )
    sender.start()
    reason = "failed"
    try:
        feeder = _Feeder(config, hook, sender, stop, note=note, tell=SenderProgress(sender, note, on_stats))
        reason = _run(config, plan, hook, feeder, resume)
    finally:
        _put_back(core, focus_um, note)
        stats = sender.finish(reason=reason, timeout_s=patience_s())
        if stats.unsent:
            left = count_noun(
                stats.unsent, "frame was not delivered and lies", "frames were not delivered and lie"
            )
            note(f"{left} in the journal: see `mdd deliver`")
    hook.raise_if_failed()
    sender.raise_if_failed()
    return stats


def _specimens(config: Config, header: RunHeader) -> list[Specimen | CalibrationSpecimen]:
    """Return a specimen for each position: other tissue everywhere, the same in all channels."""
    return [
        specimen_of_run(config.specimen, header, position=position)
        for position in range(len(header.positions))
    ]


def _put_back(core: Any, focus_um: float, note: Callable[[str], None]) -> None:
    try:
        core.set_position(core.get_focus_device(), focus_um)
    except Exception as error:
        note(f"The focus stage could not be moved back to {focus_um:g} µm: {error}")


def _run(config: Config, plan: Plan, hook: FrameHook, feeder: _Feeder, resume: ResumeFrom | None) -> str:
    """Feed the acquisition to its end and return why it ended: "finished" or "stopped"."""
    from pycromanager import Acquisition

    def listen(notification: Any) -> None:
        # An exception here would kill pycromanager's dispatcher and hang the run, so: nothing that can raise.
        if notification is not None and getattr(notification, "milestone", None) == "acq_events_finished":
            feeder.over.set()

    acquisition = Acquisition(
        name=config.name,
        image_process_fn=hook.take,
        notification_callback_fn=listen,
        show_display=False,
        port=config.acquisition.port,
    )
    complete = False
    try:
        sweeps = plan.sweeps(first=resume.sweep, seq=resume.seq) if resume else plan.sweeps()
        complete = feeder.feed(acquisition, sweeps)
    finally:
        close_acquisition(acquisition, abort=not complete)
    if not complete and not feeder.is_stopped:
        raise AcquisitionError(
            "The acquisition was ended from Micro-Manager's side before all its sweeps were taken."
        )
    return "finished" if complete else "stopped"


class _Feeder:
    """Hands sweeps to the acquisition as it gets through them, and as the daemon wants them.

    Attributes
    ----------
    over : Event
        Set where the acquisition has ended from Micro-Manager's side.
    """

    def __init__(
        self,
        config: Config,
        hook: FrameHook,
        sender: Sender,
        stop: threading.Event,
        *,
        note: Callable[[str], None] = lambda _: None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self._hook, self._sender, self._stop = hook, sender, stop
        self._note, self._tell = note, tell
        self._interval_s = config.acquisition.sweep_interval_s
        self._told_late = False
        self._patience_s = SILENCE_S + 10 * config.acquisition.exposure_ms / 1000.0
        self.over = threading.Event()

    @property
    def is_stopped(self) -> bool:
        """Whether the user, or the daemon on his behalf, has ended the run."""
        return self._stop.is_set() or self._sender.wanted == "stop"

    def feed(self, acquisition: Any, sweeps: Iterable[PlannedSweep]) -> bool:
        """Take all sweeps; True when every frame has come, False where the run was stopped or ended."""
        complete = self._hand_over(acquisition, sweeps) and self._wait(lambda: self._hook.outstanding == 0)
        if self._sender.wanted == "stop":
            self._note(f"the daemon ends the run {self._sender.wanted_text}".rstrip())
        if not complete:
            self._let_finish()
        return complete

    def _hand_over(self, acquisition: Any, sweeps: Iterable[PlannedSweep]) -> bool:
        began_s = time.monotonic()
        for sweep in sweeps:
            # The engine works on one sweep while the next already waits.
            if not self._wait(partial(self._has_room_for, sweep)):
                return False
            if not self._wait(partial(_is_past, began_s + sweep.start_s), idle=True):
                return False
            if self._sender.wanted == "pause":
                if not self._pause():
                    return False
                began_s = time.monotonic() - sweep.start_s
            self._tell_late(time.monotonic() - began_s - sweep.start_s)
            self._hook.expect(sweep)
            acquisition.acquire([shot.event for shot in sweep.shots])
        return True

    def _tell_late(self, late_s: float) -> None:
        """Say once that the sweeps do not keep their interval."""
        if self._told_late or not self._interval_s or late_s <= 2 * self._interval_s:
            return
        self._told_late = True
        self._note(
            f"a sweep takes longer than acquisition.sweep_interval_s = {self._interval_s:g}, it begins "
            f"{late_s:.2g} s late: raise that, lower the exposure, or widen sweep.step_um"
        )

    def _pause(self) -> bool:
        """Wait until the daemon says go; False where it, or the user, says stop."""
        self._note("paused: no further sweep is taken until the daemon says go")
        if not self._wait(lambda: self._sender.wanted == "go", idle=True):
            return False
        self._note("going on")
        return True

    def _has_room_for(self, sweep: PlannedSweep) -> bool:
        return self._hook.outstanding <= len(sweep.shots)

    def _wait(self, is_met: Callable[[], bool], *, idle: bool = False) -> bool:
        """Wait until `is_met`; False where the run was stopped or ended before.

        With `idle` nothing needs to happen meanwhile; otherwise images must keep coming.
        """
        last_s = time.monotonic()
        while not is_met():
            self._sender.raise_if_failed()
            self._tell()
            if self.is_stopped or self.over.is_set():
                return False
            if self._hook.progress.wait(TICK_S):
                self._hook.progress.clear()
                last_s = time.monotonic()
            elif not idle and time.monotonic() - last_s > self._patience_s:
                raise AcquisitionError(
                    f"No image has come for {self._patience_s:.0f} s: the camera or a stage has stopped "
                    "answering; check them in Micro-Manager."
                )
        return not self.is_stopped

    def _let_finish(self) -> None:
        deadline_s = time.monotonic() + GRACE_S
        while self._hook.outstanding and not self.over.is_set() and time.monotonic() < deadline_s:
            self._hook.progress.wait(TICK_S)
            self._hook.progress.clear()


def _is_past(moment_s: float) -> bool:
    return time.monotonic() >= moment_s


def close_acquisition(acquisition: Any, *, abort: bool) -> None:
    """End the acquisition, and wait for it as long as is reasonable.

    Raises
    ------
    AcquisitionError
        It broke off with an error of its own, or does not end.
    """
    failures: list[BaseException] = []

    def shut_down() -> None:
        # `await_completion` passes over an error if the engine has already wound up, so ask first.
        for step in (
            getattr(acquisition, "_check_for_exceptions", None),
            acquisition.abort if abort else None,
            acquisition.mark_finished,
            acquisition.await_completion,
        ):
            try:
                if step is not None:
                    step()
            except BaseException as error:
                failures.append(error)

    closer = threading.Thread(target=shut_down, name="mdd-acquisition-close", daemon=True)
    closer.start()
    closer.join(CLOSE_S)
    if closer.is_alive():
        raise AcquisitionError(f"The acquisition did not end within {CLOSE_S:.0f} s of being told to.")
    if failures:
        raise AcquisitionError(
            f"The acquisition broke off ({_root_cause(failures[0])}): check the device in Micro-Manager."
        ) from failures[0]


def _root_cause(error: BaseException) -> str:
    """Return what went wrong first: the engine wraps it in general remarks."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
