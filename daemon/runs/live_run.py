"""One run, from its start message to its closed file: wires ingest, sweeps, engine and recorder together.

`LiveRun` is the run: its header, its state, the frames that it has. Everything else that deals with a run
refers to it. No thread of its own. As ingest's sink (`frame`, `progress`, `end` ...) it runs on the ingest
thread, as the engine's (`volume`, `live`, `lost`, `load`) on the engine's, `tick` on the main thread, `close`
on whichever closes it. Nothing here waits for a disk or an engine.

A frame goes to the recorder, which completes its receipt once it is in the file; and to the sweeps, which go
to the engine. Every sweep ends as exactly one of written, lost, skipped, failed, in the run file and on the
board. With `engine.policy = "wait"` receipts are held while the engine has enough to do: the sender's window
fills, and it waits.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from microdiffusion.config import Config
from microdiffusion.daemon.engine import EngineProcess, PaceWatch, SweepJob, sessions_of_a_device
from microdiffusion.daemon.ingest import Ingest, RunState
from microdiffusion.daemon.receipt import Receipt
from microdiffusion.daemon.recorder import Recorder
from microdiffusion.daemon.runs.accounting import SenderReports
from microdiffusion.daemon.runs.assembler import enough
from microdiffusion.daemon.runs.exposure import ExposureMonitor
from microdiffusion.daemon.runs.health import RunHealth
from microdiffusion.daemon.runs.sweeps import RecoveredRun, RunSweeps
from microdiffusion.daemon.status import LIVE, Learned, RunSummary, StatusBoard, make_preview, session_name
from microdiffusion.errors import RunError
from microdiffusion.frames import Frame, Reconstruction, Sweep
from microdiffusion.ledger import Ledger
from microdiffusion.runfile import Status
from microdiffusion.text import count_noun
from microdiffusion.wire import RunEnd, RunProgress, SweepFeedback

WINDOW_BYTES = 32 << 20
"""Frames of a run that may be unacknowledged: what a crash of the daemon makes its sender send again."""
CATCH_UP_S = 20.0
"""Most time that a run which is over is caught up, where sweeps of it were put off."""
LEDGER_EVERY_S = 1.0
_MOST_ALARMS = 16


class LiveRun:
    """A run that is being received.

    Parameters
    ----------
    recorder : Recorder
        Started, of a file that is new or resumed.
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
        sessions = len(self.header.channels) * len(self.header.positions)
        self._pace = PaceWatch(sessions_of_a_device(sessions, config.engine))
        self._skipped = 0
        self.reason = ""
        self._engine = engine
        self._queue = engine.queue
        self._ingest = ingest
        self._board = board
        self._held: deque[Receipt] = deque()
        self._alarms = 0
        self._wanted: Literal["go", "pause", "stop"] = "go"
        self._before = recorder.data.ledger
        self._reports = SenderReports.of(recorder.data.senders)
        self._reporting = threading.Lock()
        self._ledger_s = 0.0
        self._health = RunHealth(recorder, board, int(config.recorder.queue_mb * 1e6))
        self._exposure = ExposureMonitor(self.header, self.warn)
        self._queue.begin(self.header, self, file=recorder.paths[0].name)
        self._sweeps = RunSweeps(recorder, self._queue, board, config.wire)
        self._resumed = found is not None
        if found is not None:
            self._sweeps.recover(found)
            frames, sweeps = count_noun(len(self.received), "frame"), count_noun(len(found.settled), "sweep")
            text = f"{frames} and {sweeps} were there"
            recorder.put_event("resumed", text)
            board.note(f"run {self.header.name} is resumed: {text}")

    def started(self, first_seq: int) -> None:
        """Note that a sender is there (again), whose numbers begin at `first_seq`."""
        with self._reporting:
            self._reports.started(first_seq)

    def frame(self, frame: Frame, receipt: Receipt) -> None:
        """Take a frame; its receipt is complete once it is in the file and the engine has room."""
        if self._queue.config.policy == "wait":
            receipt.hold()
            self._held.append(receipt)
            self._release()
        self.recorder.put_frame(frame, receipt)
        self._health.frame(frame)
        self._exposure.look(frame)
        if frame.info.decision:
            self._board.put(adaptive=f"sweep {frame.info.sweep}: {frame.info.decision}")
        self._sweeps.add(frame)

    def repeated(self, frame: Frame, receipt: Receipt) -> bool:
        """Compare a frame with the one of its number in the file; False where that is closed."""
        return self.recorder.compare_frame(frame, receipt)

    def alarm(self, text: str) -> None:
        """Tell of a peer that says what it must not; of very many, the first."""
        self._alarms += 1
        if self._alarms <= _MOST_ALARMS:
            self.warn("peer", text)

    @property
    def owners(self) -> list[str]:
        """Those who may resume the run; empty: whoever asks."""
        return self.recorder.data.owners

    def progress(self, message: RunProgress) -> None:
        """Note how far a sender is."""
        with self._reporting:
            self._reports.progress(message)

    def end(self, message: RunEnd) -> None:
        """Take a sender's last word; the run has ended where no other one is left."""
        with self._reporting:
            self._reports.end(message)
            goes_on = self._reports.any_left
        if not goes_on:
            self._finish(RunState.ENDED, message.reason)

    def silent(self, reason: str) -> None:
        """Close the run as it is: its senders have said nothing for too long."""
        self._board.note(f"run {self.header.name}: {reason}", "warning")
        self.recorder.put_event("silent", reason)
        self._finish(RunState.SILENT, reason)

    def abort(self, reason: str) -> None:
        """Take no further frame; from any thread."""
        if self.state is RunState.OPEN:
            self.state, self.reason = RunState.CLOSED, reason

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
        if job.lane == "sweep":
            session, taken_s = (job.channel, job.position), result.seconds.get("total", 0.0)
            slow = self._pace.volume(session, job.sweep_number, job.received_s, taken_s)
            if slow and self._engine.info is not None and self._engine.info.slow:
                self.recorder.put_event("pace", slow)  # the user was told when the engine opened
            elif slow:
                self.warn("pace", slow)
        for stage, seconds in result.seconds.items():
            self._board.add_latency(stage, seconds)
        self._board.set_quality(
            job.sweep_number,
            result.served,
            result.residual,
            result.held_out_error,
            result.candidate_errors,
            result.why,
            result.alarms,
        )
        if math.isfinite(result.still):
            drift_um = (result.drift.drift_z_um, result.drift.drift_y_um, result.drift.drift_x_um)
            self._board.put(learned=Learned(still=result.still, drift_um=drift_um))
        self._board.set_confidence(result.confidence)
        if job.lane == "sweep":
            self._show(job, result)
        return True

    def live(self, job: SweepJob, result: Reconstruction) -> None:
        """Take a rolling volume; it is shown, and in the file until the next one comes."""
        if job.sweep is not None:
            self.recorder.put_live(job.sweep, result, job.newest_seq)
        self._board.add_latency(LIVE, time.monotonic() - job.received_s)
        self._show(job, result)

    def feedback(self, feedback: SweepFeedback) -> None:
        """Pass on what a sweep of an adaptive run showed to its driver."""
        self._ingest.feedback(self.header.run_id, feedback)

    def lost(self, job: SweepJob, outcome: Literal["skipped", "failed"], reason: str) -> None:
        """Note that the engine gives no volume for this sweep (now)."""
        status = Status.SKIPPED if outcome == "skipped" else Status.FAILED
        self.recorder.mark(job.sweep_number, job.channel, job.position, status, reason)
        self._board.add_volume(outcome)
        if outcome == "skipped":
            self._skipped += 1
        if outcome == "failed" or self._skipped == 1:
            more = "; further ones are counted" if outcome == "skipped" else ""
            self._board.note(f"sweep {job.sweep_number} {outcome}: {reason}{more}", "warning")
        self._release()

    def left(self, jobs: Sequence[SweepJob], reason: str) -> None:
        """Note that the run was closed before these sweeps were reconstructed; one line, however many."""
        for job in jobs:
            self.recorder.mark(job.sweep_number, job.channel, job.position, Status.SKIPPED, reason)
            self._board.add_volume("skipped")
        text = (
            f"{count_noun(len(jobs), 'sweep')} skipped, from sweep {min(job.sweep_number for job in jobs)} on"
        )
        self._board.note(f"{text}: {reason}", "warning")

    def load(self, job: SweepJob) -> Sweep | None:
        """Return the recorded frames of a sweep that was put off."""
        sweep = self.recorder.load_sweep(job.sweep_number, job.channel, job.position)
        if sweep is not None and not enough(len(sweep.stage), sweep.missing):
            raise RunError(f"{sweep.missing} of its frames never came, too few are there for a volume")
        return sweep

    def event(self, kind: str, text: str, level: Literal["info", "warning"] = "info") -> None:
        """Keep an event in the run file, and show it."""
        self.recorder.put_event(kind, text)
        self._board.note(text, level)

    def warn(self, kind: str, text: str) -> None:
        """Keep in the run file, and show, what the user should fix."""
        self.event(kind, text, "warning")

    def tell(self, what: Literal["go", "pause", "stop"], text: str) -> None:
        """Ask the run's driver to go on, to pause or to stop."""
        self._wanted = what
        self._ingest.tell(self.header.run_id, what, text)
        self.recorder.put_event("control", f"{what}: {text}" if text else what)

    def tick(self, now_s: float, *, shown: bool) -> None:
        """Give up sweeps that wait too long; write the ledger; put the run on the board where it is `shown`.

        Raises
        ------
        DiskError, RunError
            The recorder failed.
        """
        self._release()
        # While frames wait for the disk, or with their sender for the engine, nothing is late.
        if not (self._held or self.recorder.is_full or self.recorder.waiting_for):
            self._sweeps.tick(now_s)
        self.recorder.raise_if_failed()
        failure = self._queue.runs.failure_of(self.header.run_id)
        if failure is not None:
            raise failure
        self._health.engine(self._engine.info)
        self._health.disk(now_s)
        if now_s - self._ledger_s > LEDGER_EVERY_S:
            self._ledger_s = now_s
            self._write_ledger()
            self._health.look()
        if shown:
            stats = self._ingest.run_stats(self.header.run_id)
            self._health.show(self._ledger(), stats, self._sweeps)

    def summary(self) -> RunSummary:
        """Return the run in a few figures."""
        ledger = self._ledger()
        return RunSummary(
            name=self.header.name,
            id=self.header.run_id,
            file=str(self.recorder.paths[0]),
            state=self._wanted if self.state is RunState.OPEN else "closing",
            frames=len(self.received),
            written=self.recorder.counts[Status.WRITTEN],
            waiting=self._queue.pending(self.header.run_id),
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
        self._sweeps.finish()
        self._sweeps.put_off_late()
        # A run that was resumed for what it lacks, and got no frame since, is caught up wholly.
        only_catches_up = self._resumed and not self._ingest.run_stats(self.header.run_id).frames
        later_s = math.inf if only_catches_up else CATCH_UP_S
        self._queue.drain(self.header.run_id, drain_s, hurry, later_s=later_s)
        self._queue.end(self.header.run_id)
        self._health.engine(self._engine.info)
        if self._skipped > 1:
            self.warn("skipped", f"{count_noun(self._skipped, 'sweep')} skipped: the engine was too slow")
        while self._held:  # nobody waits for the engine any more
            self._held.popleft().release()
        self._write_ledger()
        strangers = self._ingest.run_stats(self.header.run_id).strangers
        if strangers:
            text = f"{count_noun(strangers, 'message')} refused of connections that had not started this run"
            self.recorder.put_event("peer", text)
        self.recorder.put_event("end", self.reason)
        self.recorder.stop()
        # Of a run that is over only its figures are asked for, until the daemon ends.
        self.recorder.index.forget()
        self._health.forget()

    def _finish(self, state: RunState, reason: str) -> None:
        self._sweeps.finish()
        self.state, self.reason = state, reason

    def _release(self) -> None:
        """Hold no receipt any longer, where the engine has room or frames do not wait for it; any thread."""
        while self._held and (
            self._queue.config.policy != "wait" or self._queue.has_room(self.header.run_id)
        ):
            try:
                self._held.popleft().release()
            except IndexError:  # another thread was quicker
                return

    def _show(self, job: SweepJob, result: Reconstruction) -> None:
        """Put a volume on the board, under the name of its session."""
        preview = make_preview(
            result.volume,
            self.header.voxel_size_um,
            sweep=job.sweep_number,
            served=result.served,
            age=result.age,
        )
        self._board.set_preview(preview, session_name(self.header, job.channel, job.position))

    def _ledger(self) -> Ledger:
        """Return where the frames went, as senders and ingest say."""
        stats = self._ingest.run_stats(self.header.run_id)
        with self._reporting:
            ledger = self._reports.ledger(
                self.received,
                duplicates=self._before.duplicates + stats.duplicates,
                refused=self._before.refused + sum(stats.refused.values()),
            )
        return replace(ledger, received=len(self.received))

    def _write_ledger(self) -> None:
        ledger = self._ledger()
        with self._reporting:
            rows = self._reports.rows()
        self.recorder.put_ledger(ledger, rows)
