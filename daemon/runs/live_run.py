"""One run, from its start message to its closed file: wires ingest, assembler, engine and recorder together.

`LiveRun` is the run: its header, its state, the frames that it has. Everything else that deals with a run
refers to it. No thread of its own. As ingest's sink (`frame`, `progress`, `end` ...) it runs on the ingest
thread, as the engine's (`volume`, `live`, `lost`, `load`) on the engine's, `tick` on the main thread, `close`
on whichever closes it. Nothing here waits for a disk or an engine.

A frame goes to the recorder, which completes its receipt once it is in the file; and to the assembler,
whose sweeps go to the engine. Every sweep ends as exactly one of written, lost, skipped, failed, in the run
file and on the board. With `engine.policy = "wait"` receipts are held while the engine has enough to do: the
sender's window fills, and it waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from microdiffusion.daemon.ingest import RunState
from microdiffusion.daemon.runs.accounting import SenderReports
from microdiffusion.daemon.runs.assembler import Assembler, LostSweep, enough, room_for
from microdiffusion.daemon.runs.bdv_link import RunLink
from microdiffusion.daemon.runs.exposure import ExposureMonitor
from microdiffusion.daemon.runs.health import RunHealth
from microdiffusion.daemon.status import LIVE, RunSummary, SweepProgress, make_preview, session_name
from microdiffusion.errors import RunError
from microdiffusion.runfile import Status
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from collections.abc import Callable

    from microdiffusion.config import Config
    from microdiffusion.daemon.engine import EngineProcess, SweepJob
    from microdiffusion.daemon.ingest import Ingest
    from microdiffusion.daemon.receipt import Receipt
    from microdiffusion.daemon.recorder import Key, Recorder
    from microdiffusion.daemon.runs.recovered import RecoveredRun
    from microdiffusion.daemon.status import StatusBoard
    from microdiffusion.frames import Frame, Reconstruction, Sweep
    from microdiffusion.ledger import Ledger
    from microdiffusion.wire import RunEnd, RunProgress

WINDOW_BYTES = 32 << 20
"""Frames of a run that may be unacknowledged: what a crash of the daemon makes its sender send again."""
LEDGER_EVERY_S = 1.0


class LiveRun:
    """A run that is being received.

    Parameters
    ----------
    recorder : Recorder
        Started, of a file that is new or gone on with.
    config : Config
    engine : EngineProcess
        Serves this run until `close`; it need not be ready yet.
    ingest : Ingest
        Where the frames come in.
    board : StatusBoard
        Told of everything that happens.
    found : RecoveredRun, optional
        What the file held already, where the run is resumed.

    Attributes
    ----------
    header : RunHeader
    received : FrameRanges
        Numbers of the frames that the run has.
    state : RunState
    reason : str
        Why it is not open.
    """

    def __init__(
        self,
        recorder: Recorder,
        config: Config,
        engine: EngineProcess,
        ingest: Ingest,
        board: StatusBoard,
        *,
        found: RecoveredRun | None = None,
    ) -> None:
        self.recorder = recorder
        self.header = recorder.header
        self.received = recorder.received
        self.window_bytes = WINDOW_BYTES
        self.state = RunState.OPEN
        self.reason = ""
        self._config = config
        self._engine = engine
        self._ingest = ingest
        self._board = board
        self._lock = threading.Lock()
        self._room = room_for(self.header, int(config.wire.receive_buffer_mb * 1e6))
        self._assembler = Assembler(
            config.wire.sweep_timeout_s, limit_bytes=self._room, most_frames=self.header.frames_per_sweep
        )
        self._reports = SenderReports.of(recorder.senders)
        self._before = recorder.ledger
        self._held: deque[Receipt] = deque()
        self._wanted: Literal["go", "pause", "stop"] = "go"
        self._ledger_s = 0.0
        self._health = RunHealth(recorder, board, int(config.recorder.queue_mb * 1e6))
        engine.queue.begin(self.header, self, file=recorder.paths[0].name)
        self._exposure = ExposureMonitor(self.header, self.warn)
        self._settled_before: frozenset[Key] = frozenset()
        self._lost: set[Key] = set()  # for want of frames
        self._came_after_all: set[Key] = set()
        self._resumed = found is not None
        if found is not None:
            self._take_up(found)
        self._link: RunLink | None = None
        if config.recorder.bigdataviewer:
            self._link = RunLink(recorder.paths[0], lambda text: board.note(text, "warning"))
            self._link.begin()

    # As ingest's sink -----------------------------------------------------------------------------

    def started(self, first_seq: int) -> None:
        """Note that a sender is there (again), whose numbers begin at `first_seq`."""
        with self._lock:
            self._reports.started(first_seq)

    def frame(self, frame: Frame, receipt: Receipt) -> None:
        """Take a frame; its receipt is complete once it is in the file and the engine has room."""
        if self._engine.queue.config.policy == "wait":
            receipt.hold()
            self._held.append(receipt)
            self._release()
        self.recorder.put_frame(frame, receipt)
        self._health.frame(frame)
        self._exposure.look(frame)
        info = frame.info
        with self._lock:
            over = self._assembler.add(frame)
            received, count = self._assembler.progress(info.channel, info.position, info.sweep)
            rolling = self._rolling(frame, over)
            key = (info.sweep, info.channel, info.position)
            if key in self._lost:
                self._came_after_all.add(key)
        self._board.put(
            sweep=SweepProgress(
                number=info.sweep, received=received if count else info.count, count=info.count
            )
        )
        self._settle(over)
        if rolling is not None:
            self._engine.queue.submit(self.header.run_id, rolling, lane="rolling", newest_seq=info.seq)

    def progress(self, message: RunProgress) -> None:
        """Take note of how far the sender is."""
        with self._lock:
            self._reports.progress(message)

    def end(self, message: RunEnd) -> None:
        """Take a sender's last word; the run has ended where no other one goes on with it."""
        with self._lock:
            self._reports.end(message)
            goes_on = self._reports.anybody
        if not goes_on:
            self._finish(RunState.ENDED, message.reason)

    def silent(self, reason: str) -> None:
        """Close the run as it is: its sender has said nothing for too long."""
        self._board.note(f"run {self.header.name}: {reason}", "warning")
        self.recorder.put_event("silent", reason)
        self._finish(RunState.SILENT, reason)

    def abort(self, reason: str) -> None:
        """Take no further frame; from any thread."""
        if self.state is RunState.OPEN:
            self.state, self.reason = RunState.CLOSED, reason

    # As the engine's sink -------------------------------------------------------------------------

    def volume(self, job: SweepJob, result: Reconstruction) -> bool:
        """Take a time point's volume; False where the recorder has no room now."""
        if not self.recorder.put_volume(
            job.sweep_number,
            job.channel,
            job.position,
            result,
            acquired_s=job.time_s,
            received_s=job.received_s,
            effort=job.effort,
            later=job.lane == "later",
        ):
            # Where it failed rather than being full, this raises, and the daemon closes.
            self.recorder.raise_if_failed()
            return False
        self._release()
        for stage, seconds in result.seconds.items():
            self._board.add_latency(stage, seconds)
        self._board.set_quality(
            job.sweep_number, result.served, result.residual, result.held_out_error, result.candidate_errors
        )
        if job.lane == "sweep":
            self._show(job, result)
        return True

    def live(self, job: SweepJob, result: Reconstruction) -> None:
        """Take a rolling volume; it is shown, and in the file until the next one comes."""
        if job.sweep is not None:
            self.recorder.put_live(job.sweep, result, job.newest_seq)
        self._board.add_latency(LIVE, time.monotonic() - job.received_s)
        self._show(job, result)

    def lost(self, job: SweepJob, outcome: str, reason: str) -> None:
        """Note that the engine gives no volume for this sweep (now)."""
        status = Status.SKIPPED if outcome == "skipped" else Status.FAILED
        self.recorder.mark(job.sweep_number, job.channel, job.position, status, reason)
        self._board.add_volume("skipped" if outcome == "skipped" else "failed")
        self._board.note(f"sweep {job.sweep_number} {outcome}: {reason}", "warning")
        self._release()

    def load(self, job: SweepJob) -> Sweep | None:
        """Return the recorded frames of a sweep that was put off."""
        sweep = self.recorder.load_sweep(job.sweep_number, job.channel, job.position)
        if sweep is not None and not enough(sweep):
            raise RunError(f"{sweep.missing} of its frames never came, too few are there for a volume")
        return sweep

    def event(self, kind: str, text: str) -> None:
        """Keep in the run file, and show, what is done differently from now on."""
        self.recorder.put_event(kind, text)
        self._board.note(text)

    def warn(self, kind: str, text: str) -> None:
        """Keep in the run file, and show, what the user should mend."""
        self.recorder.put_event(kind, text)
        self._board.note(text, "warning")

    # From the main thread -------------------------------------------------------------------------

    def tell(self, what: Literal["go", "pause", "stop"], text: str) -> None:
        """Ask the run's driver to go on, to pause or to stop."""
        self._wanted = what
        self._ingest.tell(self.header.run_id, what, text)
        self.recorder.put_event("control", f"{what}: {text}" if text else what)

    def tick(self, now_s: float, *, shown: bool) -> None:
        """Give up sweeps that wait too long; write the ledger; tell the board how things stand.

        Raises
        ------
        DiskError, RunError
            The recorder failed.
        """
        self._release()
        # While frames wait for the disk, or with their sender for the engine, nothing is late.
        if not (self._held or self.recorder.is_full or self.recorder.waiting_for):
            with self._lock:
                over = self._assembler.tick(now_s)
            self._settle(over)
        self.recorder.raise_if_failed()
        failure = self._engine.queue.failure_of(self.header.run_id)
        if failure is not None:
            raise failure
        self._health.engine(self._engine.info)
        self._health.disk(now_s)
        if now_s - self._ledger_s > LEDGER_EVERY_S:
            self._ledger_s = now_s
            self._write_ledger()
            self._health.look()
        if shown:
            with self._lock:
                missing, nbytes = self._assembler.missing, self._assembler.waiting_bytes
            stats = self._ingest.run_stats(self.header.run_id)
            self._health.show(self._ledger(), stats, missing=missing, assembler_bytes=nbytes)

    def remark(self, text: str) -> None:
        """Keep in the run file what its driver told."""
        self.recorder.put_event("driver", text)

    def summary(self) -> RunSummary:
        """Return the run in a few figures."""
        counts = self.recorder.counts
        waiting = self._engine.queue.pending(self.header.run_id)
        ledger = self._ledger()
        return RunSummary(
            name=self.header.name,
            id=self.header.run_id,
            file=str(self.recorder.paths[0]),
            state=self._wanted if self.state is RunState.OPEN else "closing",
            frames=len(self.received),
            written=counts[Status.WRITTEN],
            waiting=waiting,
            waits_for=self.recorder.waiting_for,
            missing=ledger.missing,
            dropped=ledger.dropped_by_sender,
            refused=ledger.refused,
            duplicate=ledger.duplicates,
            silent_s=self._health.silent_s,
            saturated=self._health.saturated,
            journal_bytes=self._reports.journal_bytes,
            resumed=self._resumed,
        )

    def close(self, *, drain_s: float, hurry: Callable[[], bool]) -> None:
        """Finish what waits, for at most `drain_s` or until `hurry`; write the ledger, close the file.

        Raises
        ------
        DiskError, RunError
            The recorder failed; what it announced as written is safe.
        """
        self.abort("the daemon closed the run")
        self._settle_all()
        run_id = self.header.run_id
        self._put_off_what_came_late()
        self._engine.queue.drain(run_id, drain_s, hurry)
        self._engine.queue.end(run_id)
        self._health.engine(self._engine.info)
        while self._held:  # nobody waits for the engine any more
            self._held.popleft().release()
        self._write_ledger()
        self.recorder.put_event("end", self.reason)
        self.recorder.stop()
        if self._link is not None:
            self._link.finish()
        # Of a run that is over only its figures are asked for, until the daemon ends.
        self.recorder.forget()
        self._health.look()  # which also lets go of the newest frame
        with self._lock:
            self._assembler = Assembler(self._config.wire.sweep_timeout_s)

    # ----------------------------------------------------------------------------------------------

    def _show(self, job: SweepJob, result: Reconstruction) -> None:
        """Put a volume on the board, under the name of its session."""
        preview = make_preview(
            result.volume, self.header.voxel_size_um, sweep=job.sweep_number, served=result.served
        )
        self._board.set_preview(preview, session_name(self.header, job.channel, job.position))

    def _release(self) -> None:
        """Hold no receipt any longer, where the engine has room; from any thread."""
        while self._held and self._engine.queue.has_room(self.header.run_id):
            try:
                self._held.popleft().release()
            except IndexError:  # another thread was quicker
                return

    def _rolling(self, frame: Frame, over: list[Sweep | LostSweep]) -> Sweep | None:
        """Return the newest sweep's worth of frames, where a volume after every projection is wanted."""
        if self._engine.queue.config.update != "projection" or frame.info.held_out or over:
            return None  # a sweep that is whole gets its own volume
        return self._assembler.window(frame.info.channel, frame.info.position)

    def _finish(self, state: RunState, reason: str) -> None:
        self._settle_all()
        self.state, self.reason = state, reason

    def _settle_all(self) -> None:
        """Wait for no further frame of any sweep."""
        with self._lock:
            over = self._assembler.finish()
        self._settle(over)

    def _settle(self, over: list[Sweep | LostSweep]) -> None:
        for item in over:
            key = (item.sweep, item.channel, item.position)
            if key in self._settled_before:
                continue
            if isinstance(item, LostSweep):
                self._lost.add(key)
                self.recorder.mark(item.sweep, item.channel, item.position, Status.LOST, item.reason)
                self._board.add_volume("lost")
                self._board.note(f"sweep {item.sweep} lost: {item.reason}", "warning")
            else:
                if item.missing:
                    self._board.note(
                        f"sweep {item.sweep}: {count_noun(item.missing, 'frame')} missing", "warning"
                    )
                self._engine.queue.submit(self.header.run_id, item)

    def _put_off_what_came_late(self) -> None:
        """Have reconstructed, as the last, what was lost for want of frames that came after all."""
        run_id = self.header.run_id
        if self._engine.queue.config.policy == "live" or self._engine.queue.failure_of(run_id) is not None:
            return
        for sweep, channel, position in sorted(self._came_after_all):
            self._engine.queue.put_off(run_id, sweep, channel, position)

    def _take_up(self, found: RecoveredRun) -> None:
        """Go on with a file: open sweeps wait for their frames, the others are caught up."""
        over, complete = found.feed(self._assembler, self.recorder, most_bytes=self._room // 2)
        # Neither is of a sweep that the assembler should hear of.
        self._settled_before = found.settled | frozenset(complete)
        for sweep, channel, position in complete:
            self._engine.queue.put_off(self.header.run_id, sweep, channel, position)
        self._settle(over)
        frames, sweeps = count_noun(len(self.received), "frame"), count_noun(len(found.settled), "sweep")
        text = f"{frames} and {sweeps} were there"
        self.recorder.put_event("resumed", text)
        self._board.note(f"run {self.header.name} is gone on with: {text}")

    def _ledger(self) -> Ledger:
        """Return where the frames went, as the senders and the line say."""
        stats = self._ingest.run_stats(self.header.run_id)
        with self._lock:
            ledger = self._reports.ledger(
                self.received,
                duplicates=self._before.duplicates + stats.duplicates,
                refused=self._before.refused + sum(stats.refused.values()),
            )
        return replace(ledger, received=len(self.received))

    def _write_ledger(self) -> None:
        ledger = self._ledger()
        with self._lock:
            rows = self._reports.rows()
        self.recorder.put_ledger(ledger, rows)
