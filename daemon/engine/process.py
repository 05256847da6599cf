"""The engine in processes of its own, one on each device: a crash there costs no frame, only time.

`EngineProcess` lives in the daemon and serves all of its runs. Runs put their sweeps into its `WorkQueue` as
soon as they begin; its thread hands them to the processes, one at a time each, and volumes back to the queue.
Only this thread ever waits for a process. One that dies is replaced: its sweep is tried once more, its
sessions resume from their checkpoints, on another device where there is one. Sessions belong to a device
(`placement`) and move with their state, which one process leaves on the disk and the other takes up. Where an
engine of TensorRT has to be built, the process does so while it opens; `building` tells how far it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import multiprocessing
import shutil
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

from microdiffusion.config import Config, EngineConfig
from microdiffusion.daemon.engine.device_process import DeviceProcess, forget_stale
from microdiffusion.daemon.engine.messages import (
    Begin,
    Building,
    Configure,
    End,
    EngineInfo,
    Notice,
    Release,
    Released,
    Work,
)
from microdiffusion.daemon.engine.placement import Placement, SessionName
from microdiffusion.daemon.engine.work_queue import Note, WorkQueue
from microdiffusion.daemon.engine.worker import Opener, open_engine
from microdiffusion.errors import EngineError, MddError
from microdiffusion.wire import SweepFeedback

TENSORRT = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Modules that build engines; the list in `engines.runtimes` would bring torch."""

HANG_S = 600.0
"""Timeout of a sweep, or 20 times the longest so far."""

_WATCHED_S = 5.0  # after the timeout: the thread is stuck as well
_IDLE_S = 0.5
_AGAIN_S = 0.01  # until a volume is offered again for which there was no room
_HURRY_S = 0.5  # for a process to end whose work nobody waits for
_BALANCE_S = 10.0  # between two looks at who has how much to do


class EngineProcess:
    """Runs the reconstructor beside the daemon.

    Parameters
    ----------
    waiting_bytes : int
        See `WorkQueue`.
    state : Path, optional
        Folder of the sessions; None: a session whose process dies starts cold.
    on_note : callable
        Takes messages for the user, of level "info" or "warning".
    opener : callable
        A module-level function that opens the engine in the process.
    planned : Config, optional
        The run that is about to begin: the engine says when it opens whether it is too slow for it.

    `info` is None until the engine is open, on one device at least.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        waiting_bytes: int,
        state: Path | None = None,
        on_note: Note = lambda text, level: None,
        opener: Opener = open_engine,
        planned: Config | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.queue = WorkQueue(config, waiting_bytes=waiting_bytes, on_note=on_note, wake=self._wake)
        self._on_note = on_note
        self._state = state
        count = max(len(config.devices), 1)
        self._devices = [
            DeviceProcess(number, count, config, context, opener, state, None if number else planned)
            for number in range(count)
        ]
        self._placement = Placement()
        self._moving: dict[SessionName, tuple[int, int]] = {}  # from which device to which
        self._balanced_s = time.monotonic()
        self._wake_out, self._wake_in = context.Pipe(duplex=False)
        self._waking = threading.Lock()
        self._woken = False
        self._may_build = may_build(config)
        self._stop_requested = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mdd-engine", daemon=True)

    @property
    def info(self) -> EngineInfo | None:
        """The open engine; of several devices their names together."""
        infos = [served.info for served in self._devices if served.info is not None]
        if len(infos) < 2:
            return infos[0] if infos else None
        return replace(infos[0], device="; ".join(info.device for info in infos))

    @property
    def pid(self) -> int | None:
        """Process id, of the first device."""
        return self._devices[0].supervisor.pid

    @property
    def pids(self) -> list[int | None]:
        """Process ids, by device."""
        return [served.supervisor.pid for served in self._devices]

    @property
    def restarts(self) -> int:
        """Number of times a process was replaced."""
        return sum(served.supervisor.restarts for served in self._devices)

    @property
    def may_build(self) -> bool:
        """True while an engine is built, or may have to be: the camera should wait."""
        return self.info is None and self._may_build

    @property
    def building(self) -> tuple[float, float] | None:
        """The share of a build that is done and the seconds left; None without a build."""
        builds = [
            served.build for served in self._devices if served.info is None and served.build is not None
        ]
        if self.info is not None or not builds:
            return None
        began_s, share = min(builds, key=lambda build: build[1])
        return share, (time.monotonic() - began_s) * (1 - share) / max(share, 1e-3)

    def start(self) -> None:
        """Start processes and thread; returns at once."""
        if self._state is not None:
            forget_stale(self._state)
        for served in self._devices:
            served.start(self.queue.config)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the processes; kill those that do not end in time."""
        self._stop_requested.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        for served in self._devices:
            at_something = served.handed_s is not None or served.info is None
            served.supervisor.stop(_HURRY_S if at_something else timeout_s)
        for run_id in self.queue.close():
            self._forget_files(run_id)

    def raise_if_failed(self) -> None:
        """Raise what ended the engine, if anything did; its owner calls this often.

        A process that hangs may also block this one's thread in the pipe: then the owner's thread kills it
        here.
        """
        self.queue.raise_if_failed()
        for served in self._devices:
            if served.busy_s > _patience_s(served) + _WATCHED_S:
                served.supervisor.kill()

    def _wake(self) -> None:
        with self._waking:
            if self._woken:
                return  # a pipe that is full of them would block
            self._woken = True
        with contextlib.suppress(OSError):
            self._wake_in.send_bytes(b"\0")

    def _run(self) -> None:
        try:
            while not self._stop_requested.is_set():
                pipes = [served.pipe for served in self._devices if served.pipe is not None]
                if not pipes:
                    return
                wait([*pipes, self._wake_out], timeout=_AGAIN_S if self.queue.has_undelivered else _IDLE_S)
                while self._wake_out.poll():
                    self._wake_out.recv_bytes()
                # After reading the byte: a wake in between sends none, but is served by this turn.
                with self._waking:
                    self._woken = False
                self._end_runs()
                self._balance()
                for served in self._devices:
                    try:
                        self._turn(served)
                    except MddError:
                        raise  # sent by the process; some of them are OSErrors
                    except (EOFError, OSError):
                        if self._stop_requested.is_set():
                            return
                        self._restart(served)
        except MddError as error:
            self.queue.fail(error)
        except Exception as error:  # raise_if_failed raises it on the owner's thread
            failure = EngineError(f"The engine's thread failed ({type(error).__name__}: {error}).")
            failure.__cause__ = error
            self.queue.fail(failure)

    def _turn(self, served: DeviceProcess) -> None:
        """Take the messages of a process, and send it what is next."""
        pipe = served.pipe
        if pipe is None:
            return
        while pipe.poll():
            self._take(pipe.recv(), served)
        self.queue.deliver()
        if served.info is None:
            return
        while served.outbox:
            pipe.send(served.outbox.pop(0))
        config = self.queue.config
        if config is not served.configured:
            served.configured = config
            pipe.send(Configure(served.config(config)))
        if served.handed_s is not None:
            self._check_for_hang(served)
            return
        taken = self.queue.next(served.number, partial(self._serves, served.number))
        if taken is None:
            return
        job, header = taken
        served.handed_s, served.job = time.monotonic(), job
        if job.run_id not in served.begun:
            served.begun.add(job.run_id)
            pipe.send(Begin(header))
        if job.sweep is not None:
            pipe.send(Work(job.run_id, job.sweep, job.lane, job.effort))

    def _check_for_hang(self, served: DeviceProcess) -> None:
        """Kill a process that has been at one sweep for far too long; it is replaced as one that died."""
        if served.busy_s > _patience_s(served):
            self._on_note(f"the engine has not answered for {served.busy_s:.0f} s: it is ended", "warning")
            served.supervisor.stop(0.0)
            raise EOFError

    def _take(self, answer: object, served: DeviceProcess) -> None:
        if isinstance(answer, Building):
            self._take_share(answer.share, served)
        elif isinstance(answer, EngineInfo):
            self._opened(answer, served)
        elif isinstance(answer, Notice):
            self._change(answer.changes, served)
            self._on_note(answer.text, "warning")
            self.queue.runs.tell_all("engine", answer.text)
        elif isinstance(answer, SweepFeedback):
            self.queue.hear(answer, served.number)
        elif isinstance(answer, Released):
            self._moved(answer.session)
        elif isinstance(answer, MddError) and served.info is None:
            raise answer  # it could not even start
        elif served.handed_s is not None:
            job, seconds = served.answered()
            if job is not None and job.lane == "sweep":
                self._placement.took(job.session, seconds, job.queued_s)
            self.queue.done(answer, seconds, served.number)

    def _take_share(self, share: float, served: DeviceProcess) -> None:
        now_s = time.monotonic()
        if served.build is not None:
            served.build = (served.build[0], share)
        elif share < 1:
            served.build = (now_s, share)
            self._on_note(
                "TensorRT's engine is built first, which takes a while once; --no-compile serves with torch",
                "info",
            )
        else:
            self._may_build = False

    def _opened(self, info: EngineInfo, served: DeviceProcess) -> None:
        if served.build is not None:
            took_s = time.monotonic() - served.build[0]
            self._on_note(f"{info.device} is open, its build took {took_s:.0f} s", "info")
            served.build = None
        for text in filter(None, (info.fallback, info.slow)):
            self._on_note(text, "warning")
        served.info = info
        self.queue.set_serving(True)

    def _change(self, changes: dict[str, object], served: DeviceProcess) -> None:
        """Adopt settings that a process has changed by itself."""
        before, after = self.queue.change(changes)
        if served.configured is before:  # else it still has to get what was set meanwhile
            served.configured = after

    # Several devices ------------------------------------------------------------------------------

    @property
    def _alive(self) -> list[int]:
        return [served.number for served in self._devices if served.info is not None]

    def _serves(self, device: int, run_id: str, channel: int, position: int) -> bool:
        """Return whether a device serves a session."""
        if len(self._devices) == 1:
            return True
        session = SessionName(run_id, channel, position)
        return session not in self._moving and self._placement.device_of(session, self._alive) == device

    def _balance(self) -> None:
        """Let sessions move from devices with more to do than others."""
        alive = self._alive
        if len(alive) < 2 or time.monotonic() - self._balanced_s < _BALANCE_S or self._moving:
            return
        self._balanced_s = time.monotonic()
        for session, device in self._placement.moves(alive):
            home = self._placement.device_of(session, alive)
            self._moving[session] = home, device
            self._devices[home].outbox.append(Release(session))

    def _moved(self, session: SessionName) -> None:
        """Note that a session's state is there for another device."""
        home, device = self._moving.pop(session, (0, None))
        if device is not None:
            self._placement.put(session, device)
            old, new = self._devices[home].name, self._devices[device].name
            text = f"channel {session.channel}, position {session.position} moves to {new}, as {old}"
            self.queue.runs.event(session.run_id, "engine", f"{text} has more to do")

    def _end_runs(self) -> None:
        """Let the processes forget the runs that are over."""
        if self.info is None:
            return
        for run_id in self.queue.take_ended():
            self._placement.forget(run_id)
            self._moving = {name: move for name, move in self._moving.items() if name.run_id != run_id}
            known = [served for served in self._devices if run_id in served.begun]
            for served in known:
                served.begun.discard(run_id)
                served.outbox.append(End(run_id))
            if not known and run_id not in self.queue.runs:
                self._forget_files(run_id)

    def _restart(self, served: DeviceProcess) -> None:
        """Replace a process that died; its sweep is tried once more, its sessions go on elsewhere."""
        code = served.supervisor.reap()
        self.queue.died(code, served.number)
        often = served.info is None or served.supervisor.died_lately > 1
        served.info = None
        for session in [name for name, (home, _) in self._moving.items() if home == served.number]:
            del self._moving[session]  # its last checkpoint is on the disk
        others = bool(self._alive)
        self.queue.set_serving(others)
        name = "" if len(self._devices) == 1 else f" of {served.name}"
        elsewhere = ", and its sessions go on elsewhere" if others else ""
        try:
            served.supervisor.check(code)
        except EngineError as error:
            if not any(other.pipe is not None for other in self._devices if other is not served):
                raise
            served.given_up, served.handed_s, served.job = True, None, None
            self._on_note(f"{served.name} is not used any more{elsewhere}: {error}", "warning")
            self.queue.runs.tell_all("engine", f"the engine process{name} is given up{elsewhere}")
            return
        config = self.queue.config
        if often and config.method == "mdd" and config.runtime != "torch":
            # The runtime may have killed it, and would again.
            self.queue.change({"runtime": "torch"})
            self._on_note(f"the engine process died (exit code {code}): from now on torch serves", "warning")
        self._may_build = False
        self.queue.runs.tell_all(
            "engine", f"the engine process{name} died (exit code {code}): it is started again{elsewhere}"
        )
        served.start(self.queue.config)

    def _forget_files(self, run_id: str) -> None:
        if self._state is not None:
            shutil.rmtree(self._state / run_id, ignore_errors=True)


def _patience_s(served: DeviceProcess) -> float:
    return max(HANG_S, 20 * served.longest_s)


def may_build(config: EngineConfig) -> bool:
    """Return whether opening may have to build an engine of TensorRT; asks neither torch nor the GPU."""
    if not config.compile or config.method != "mdd" or config.runtime not in ("auto", "tensorrt"):
        return False
    if {*(config.devices or (config.device,))} == {"cpu"} or not any(
        importlib.util.find_spec(name) for name in TENSORRT
    ):
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
