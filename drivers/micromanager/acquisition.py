"""A run of a real Micro-Manager: a pycromanager `Acquisition` whose images go to the daemon.

Three threads meet here, all in the driver's own process. The caller's thread feeds the acquisition sweep by
sweep and watches it; pycromanager's image thread calls `FrameHook.take` with every image; the `Sender`'s
thread puts frames on the wire, and hears from the daemon whether to continue, pause or stop.

Invariants
- At most two sweeps of events are queued in the engine, so an endless run needs no memory and a stop has
  little to cancel. The interval is timed here rather than by the events' `min_start_time`, because the engine
  cannot be interrupted while it waits for that.
- During a pause no further sweep is queued, and the stages stay where they are; afterwards the interval is
  counted afresh. A pause may last any time: the sender keeps the run alive.
- All work on Micro-Manager goes through `MicroscopeWatch.call`. However the run ends, the acquisition is
  closed and given a few seconds; one that does not return is abandoned and reported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from microdiffusion.config import AcquisitionConfig
from microdiffusion.drivers.adaptive import AdaptivePlanner
from microdiffusion.drivers.micromanager.bridge import MicroscopeWatch, watched
from microdiffusion.drivers.micromanager.core import open_core, prepare, stage_limits
from microdiffusion.drivers.micromanager.hook import FrameHook
from microdiffusion.drivers.micromanager.preflight import (
    TOLERANCE,
    check_free,
    check_travel,
    exposure_remark,
)
from microdiffusion.drivers.micromanager.restore import left_as_found
from microdiffusion.drivers.micromanager.server import message_of
from microdiffusion.drivers.plan import Plan, PlannedSweep
from microdiffusion.drivers.sending import DriverTask, SenderProgress
from microdiffusion.drivers.specimen import specimen_of_run
from microdiffusion.errors import AcquisitionError
from microdiffusion.header import RunHeader
from microdiffusion.sender import Sender, SenderStats
from microdiffusion.text import count_noun

TICK_S = 0.05
GRACE_S = 1.5
"""Time limit for queued sweeps after a stop."""
CLOSE_S = 8.0
"""Time limit for a finished acquisition to shut down."""
SILENCE_S = 30.0
"""The microscope counts as stuck after this time, plus ten exposures, without an image."""


def acquire(task: DriverTask) -> SenderStats:
    """Run the acquisition that the configuration describes and send its frames.

    Returns after the last sweep, or within a few seconds of `task.stop` or a stop by the daemon. With the
    Python backend, call it once per process: pycromanager keeps the first core for ever.

    Raises
    ------
    UserError
        The plan does not fit the volume, or a file is missing.
    AcquisitionError
        The microscope could not start or failed, frames were lost in the hook, or the daemon refused.
    """
    config, resume, note = task.config, task.resume, task.note
    plan = Plan(config)
    with watched(config.acquisition, task.stop.is_set) as watch:
        core = watch.call("answer", open_core, config.acquisition)
        watch.call("say what it does", check_free, core, config.acquisition, note)
        with ExitStack() as found:
            found.enter_context(left_as_found(core, config.acquisition, watch, note))
            run_id = resume.run_id if resume else None
            header = watch.call("take its settings", partial(prepare, run_id=run_id), core, config, plan)
            note(
                f"{header.source}; {header.shape[2]} x {header.shape[1]} pixels of "
                f"{header.voxel_size_um[1]:g} µm"
            )
            stage = watch.call("name its stage", core.get_focus_device)
            planner = None
            if config.acquisition.adaptive.policy != "off":
                travel_um = watch.call("say how far its stage goes", stage_limits, core, stage)
                planner = AdaptivePlanner(
                    config, plan, travel_um=travel_um, refocus_um=resume.refocus_um if resume else 0.0
                )
            watch.call("move its stage", check_travel, core, plan, config.volume.voxel_z_um)
            if remark := watch.call("say its exposure", exposure_remark, core, config):
                note(remark)
            where = partial(core.get_position, stage)
            return _acquire(task, plan, header, watch, where, found, planner)


def _acquire(
    task: DriverTask,
    plan: Plan,
    header: RunHeader,
    watch: MicroscopeWatch,
    where: Callable[[], float],
    found: ExitStack,
    planner: AdaptivePlanner | None = None,
) -> SenderStats:
    """Acquire, leave the microscope as it was `found`, and deliver what remains, which may take a while."""
    config, resume, note = task.config, task.resume, task.note
    if resume:
        note(f"resuming run {resume.run_id} at sweep {resume.sweep}")
    sender = task.open_sender(header, first_seq=resume.seq if resume else 0)
    specimens = [
        specimen_of_run(config.specimen, header, position=position)
        for position in range(len(header.positions) if config.acquisition.specimen else 0)
    ]
    hook = FrameHook(
        sender,
        header,
        specimens,
        seed=config.specimen.seed,
        time_s=resume.time_s if resume else 0.0,
        rests=config.acquisition.backend == "java",
    )
    reason = "failed"
    try:
        with found:
            sender.start()
            sweeps = plan.sweeps(first=resume.sweep, seq=resume.seq) if resume else plan.sweeps()
            reason = _Feeder(task, hook, sender, watch, where, planner).run(sweeps)
    finally:
        stats = sender.finish(reason=reason, timeout_s=task.finish_s())
        if stats.unsent:
            left = count_noun(
                stats.unsent, "frame was not delivered and is", "frames were not delivered and are"
            )
            note(f"{left} in the journal: see `mdd deliver`")
    hook.raise_if_failed()
    sender.raise_if_failed()
    return stats


class _Feeder:
    """Queues sweeps in an acquisition, as fast as it takes them and as the daemon wants them."""

    def __init__(
        self,
        task: DriverTask,
        hook: FrameHook,
        sender: Sender,
        watch: MicroscopeWatch,
        where: Callable[[], float],
        planner: AdaptivePlanner | None = None,
    ) -> None:
        self._planner = planner
        self._task, self._hook, self._sender, self._watch, self._where = task, hook, sender, watch, where
        self._tell_progress = SenderProgress(sender, task)
        self._interval_s = task.config.acquisition.sweep_interval_s
        self._told_late = self._told_unusable = self._told_moved = False
        self._told_failures = 0
        self._left_um: float | None = None  # where the last sweep ends
        self._frames = 0  # of a sweep
        self._over = threading.Event()  # the acquisition has ended from Micro-Manager's side

    def run(self, sweeps: Iterable[PlannedSweep]) -> str:
        """Acquire all sweeps with pycromanager; return why it ended: "finished" or "stopped"."""
        config, watch = self._task.config, self._watch
        acquisition = open_acquisition(
            config.acquisition, watch, config.name, self._hook.take, notification_callback_fn=self._listen
        )
        complete = False
        try:
            complete = self.feed(acquisition, sweeps)
        finally:
            self._hook.release()
            close_acquisition(acquisition, watch, abort=not complete)
        if not complete and not self._task.is_stopped(self._sender):
            raise AcquisitionError(
                "The acquisition was ended from Micro-Manager's side before all its sweeps were taken."
            )
        return "finished" if complete else "stopped"

    def feed(self, acquisition: Any, sweeps: Iterable[PlannedSweep]) -> bool:
        """Acquire all sweeps; True when every frame has come, False if the run was stopped or ended."""
        complete = self._queue(acquisition, sweeps) and self._wait(lambda: self._hook.outstanding == 0)
        if self._sender.wanted == "stop":
            self._task.note(f"the daemon ends the run {self._sender.wanted_text}".rstrip())
        deadline_s = time.monotonic() + GRACE_S
        while not complete and self._hook.outstanding and time.monotonic() < deadline_s:
            if self._over.wait(TICK_S):
                break
        return complete

    def _listen(self, notification: Any) -> None:
        # An exception would kill pycromanager's dispatcher and hang the run: nothing here may raise.
        if notification is not None and getattr(notification, "milestone", None) == "acq_events_finished":
            self._over.set()

    def _queue(self, acquisition: Any, sweeps: Iterable[PlannedSweep]) -> bool:
        began_s = time.monotonic()
        for sweep in sweeps:
            # The engine works on one sweep while the next is queued.
            if not self._wait(partial(self._has_room_for, sweep)):
                return False
            due_s = began_s + sweep.start_s
            if self._planner is not None:
                planned = self._planned(self._planner, sweep)
                if planned is None:
                    return False
                sweep, due_s = planned
            if not self._wait(partial(_is_past, due_s), idle=True):
                return False
            if self._sender.wanted == "pause":
                self._task.note("paused: no further sweep is acquired until the daemon says go")
                if not self._wait(lambda: self._sender.wanted == "go", idle=True):
                    return False
                self._task.note("resumed")
                began_s = time.monotonic() - sweep.start_s
            if self._planner is None:
                self._tell_late(time.monotonic() - began_s - sweep.start_s)
            self._tell_moved()
            self._left_um = float(sweep.shots[-1].event["z"])
            self._frames = len(sweep.shots)
            self._hook.expect(sweep)
            if self._planner is not None:
                self._planner.start(sweep, time.monotonic())
            self._watch.call("take a sweep", acquisition.acquire, [shot.event for shot in sweep.shots])
        return True

    def _planned(self, planner: AdaptivePlanner, sweep: PlannedSweep) -> tuple[PlannedSweep, float] | None:
        """Return what to take instead of a planned sweep, and when; None if the run was stopped or ended.

        The last sweep is over first, and the engine has a moment to say what it showed.
        """
        if not self._wait(lambda: self._hook.outstanding == 0):
            return None
        planner.over(time.monotonic())
        sender = self._sender
        if not self._wait(lambda: planner.is_ready(sender.feedback, time.monotonic()), idle=True):
            return None
        result = planner.plan(sweep, sender.feedback, time.monotonic())
        for text in planner.take_notes():
            self._task.note(text)
        return result

    def _has_room_for(self, sweep: PlannedSweep) -> bool:
        return self._hook.outstanding <= len(sweep.shots)

    def _tell_late(self, late_s: float) -> None:
        """Tell once that the sweeps do not keep their interval."""
        if self._told_late or not self._interval_s or late_s <= 2 * self._interval_s:
            return
        self._told_late = True
        self._task.note(
            f"a sweep takes longer than acquisition.sweep_interval_s = {self._interval_s:g}, it begins "
            f"{late_s:.2g} s late: raise that, lower the exposure, or widen sweep.step_um"
        )

    def _tell_moved(self) -> None:
        """Tell once that the stage has left its place between two sweeps."""
        left_um = self._left_um
        if self._told_moved or left_um is None or self._hook.outstanding:
            return
        found_um = float(self._watch.call("say where its stage is", self._where))
        if abs(found_um - left_um) <= TOLERANCE * self._task.config.volume.voxel_z_um:
            return
        self._told_moved = True
        self._task.note(
            f"the focus stage moved from {left_um:g} to {found_um:g} µm while mdd was not moving it: "
            "something else drives it, and depths are wrong where it does so during an exposure"
        )

    def _tell_unusable(self) -> None:
        """Tell when frames cannot be used, and when they can again; end a run without a usable frame."""
        row = self._hook.failures_in_a_row
        if row >= self._frames > 0:
            self._hook.raise_if_failed()
        if row and not self._told_unusable:
            self._told_unusable = True
            self._task.note(
                f"frames cannot be used because of {self._hook.reason}; the run ends after a sweep without a "
                "usable frame"
            )
        failures = self._hook.failures
        if not row and failures > self._told_failures:  # also where they came and went between two looks
            self._told_unusable, self._told_failures = False, failures
            self._task.note(f"frames can be used again; {failures} were left out")

    def _wait(self, is_met: Callable[[], bool], *, idle: bool = False) -> bool:
        """Wait until `is_met`; False if the run was stopped or ended before.

        Images must keep coming meanwhile, unless `idle`.
        """
        watch = ImageWatch(self._hook.progress, self._task.config.acquisition.exposure_ms)
        while not is_met():
            self._sender.raise_if_failed()
            self._watch.raise_if_lost()
            self._tell_unusable()
            self._tell_progress()
            if self._task.is_stopped(self._sender) or self._over.is_set():
                return False
            watch.wait(idle=idle)
        return not self._task.is_stopped(self._sender)


def _is_past(moment_s: float) -> bool:
    return time.monotonic() >= moment_s


class ImageWatch:
    """Waits for images, with a timeout for a microscope that is stuck.

    Parameters
    ----------
    came : Event
        Set whenever an image comes; cleared here.
    """

    def __init__(self, came: threading.Event, exposure_ms: float) -> None:
        self._came = came
        self._limit_s = SILENCE_S + 10 * exposure_ms / 1000.0
        self._last_s = time.monotonic()

    def wait(self, *, idle: bool = False) -> None:
        """Wait a moment for an image; raise `AcquisitionError` after the timeout, unless `idle`."""
        if self._came.wait(TICK_S):
            self._came.clear()
            self._last_s = time.monotonic()
        elif not idle and time.monotonic() - self._last_s > self._limit_s:
            raise AcquisitionError(
                f"No image has come for {self._limit_s:.0f} s: the camera or a stage has stopped answering; "
                "check them in Micro-Manager."
            )


def open_acquisition(
    config: AcquisitionConfig, watch: MicroscopeWatch, name: str, take: Callable[..., None], **more: Any
) -> Any:
    """Return a pycromanager `Acquisition` whose images go to `take`, and are kept nowhere."""
    from pycromanager import Acquisition

    make = partial(
        Acquisition, name=name, image_process_fn=take, show_display=False, port=config.port, **more
    )
    return watch.call("begin an acquisition", make)


def close_acquisition(acquisition: Any, watch: MicroscopeWatch, *, abort: bool) -> None:
    """End the acquisition, and wait up to `CLOSE_S` for it.

    Raises
    ------
    AcquisitionError
        It failed with an error of its own, or does not end.
    """

    def shut_down() -> list[Exception]:
        failures = []
        # `await_completion` ignores an error if the engine has already shut down, so check first.
        for step in (
            getattr(acquisition, "_check_for_exceptions", None),
            acquisition.abort if abort else None,
            acquisition.mark_finished,
            acquisition.await_completion,
        ):
            try:
                if step is not None:
                    step()
            except Exception as error:
                failures.append(error)
        return failures

    failures = watch.call("end the acquisition", shut_down, limit_s=CLOSE_S)
    if failures:
        cause: BaseException = failures[0]
        while cause.__context__ is not None:  # the engine wraps it in general messages
            cause = cause.__context__
        raise AcquisitionError(
            f"The acquisition broke off ({message_of(cause)}): check the device in Micro-Manager."
        ) from failures[0]
