"""The recorder: takes frames, volumes and notes from the daemon's threads and puts them into the run file.

Owns one thread, which alone writes the run's files (`writer.RunWriter`), and what it is to do
(`queue.WriteQueue`). Callers never wait for the disk: what they hand over goes into a queue. It is bounded in
bytes: a volume that finds it full is answered with False; frames are always taken, because their sender's
window bounds them. Callers must not change an array that they handed over.

Invariants
- Writes are done in the order in which they were handed over; a frame's receipt is completed on the
  recorder's thread when its bytes are in the operating system's hands and the file says that it is there.
- A frame's receipt also means that its file still has its name: the run ends where a file was renamed,
  removed or replaced from outside, and what was recorded in it is rescued (`RunFiles.rescue`).
- A full disk fails nothing: `waiting_for` says why nothing moves, it is tried again each second, and what
  waits is not acknowledged. A disk that fails otherwise ends the thread.
- When a run is closed, no time point that was begun, or passed over, is left without a status.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from microdiffusion.config import RecorderConfig
from microdiffusion.daemon.events import tell
from microdiffusion.daemon.frame_ranges import FrameRanges
from microdiffusion.daemon.lock import RunLock
from microdiffusion.daemon.receipt import Receipt
from microdiffusion.daemon.recorder.files import RunFiles
from microdiffusion.daemon.recorder.index import Key
from microdiffusion.daemon.recorder.queue import WriteQueue
from microdiffusion.daemon.recorder.writer import RunWriter, Written
from microdiffusion.errors import DiskError, MddError, NoRoomError, RunError
from microdiffusion.frames import Frame, Reconstruction, Sweep
from microdiffusion.ledger import Ledger
from microdiffusion.runfile import FrameTable, Status, assemble
from microdiffusion.text import count_noun

_RETRY_S = 1.0
_T = TypeVar("_T")


class Recorder:
    """Writes a run. Made by `opening`; `start`, then put and call from any thread, then `stop`.

    Attributes
    ----------
    header : RunHeader
    received : FrameRanges
        `seq` of every frame that was in the file when the recorder was made; not kept up to date here.
    index : RunIndex
        Index of the files; read it on the recorder's thread (`call`), before the start, or after the stop.
    data : RunData
        Ledger, senders and owners of the run, as the file says now.
    waiting_for : str
        Why the disk cannot take more now, in a sentence; empty where it can.
    """

    def __init__(
        self,
        files: RunFiles,
        config: RecorderConfig,
        lock: RunLock,
        on_written: Callable[[Written], None],
        *,
        resumes: bool,
    ) -> None:
        self._files = files
        self._writer = RunWriter(files, config)
        self.header = files.plan.header
        self.index = files.index
        self.data = self._writer.data
        self.received: FrameRanges = self._writer.received()
        self.waiting_for = ""
        self._on_written = on_written
        self._lock = lock
        self._resumes = resumes
        self._queue = WriteQueue(int(config.queue_mb * 1e6))
        self._told: set[tuple[int, int, str]] = set()  # why the network was not served, and alarms
        self._left = 0  # frames that a disk still full at the end kept from being written
        self._failure: Exception | None = None
        self._rescues = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    @property
    def is_full(self) -> bool:
        """True while the queue is full: whoever can hold frames back should."""
        return self._queue.full

    @property
    def queue_bytes(self) -> int:
        """Bytes that wait to be written."""
        return self._queue.bytes

    @property
    def paths(self) -> list[Path]:
        """The run's files so far."""
        return [segment.path for segment in self._files.segments]

    @property
    def counts(self) -> dict[Status, int]:
        """Number of time points (of each channel and position) that are written, lost, skipped, failed."""
        return dict(self.index.counts)

    @property
    def last_time_s(self) -> float:
        """Camera time of the newest frame, s since the start of the run; 0 where there is none."""
        return self._files.last_time_s

    @property
    def short_of_room(self) -> str:
        """Warning of what the disk will soon have too little room for, one sentence; empty: all is well."""
        return self._writer.short_of_room

    def start(self) -> None:
        """Start the thread; a resumed run is marked as open first.

        Raises
        ------
        NoRoomError, DiskError
            Its files cannot be written.
        """
        if self._resumes:
            try:
                self._writer.resume()
            except BaseException:
                self._files.close()
                self._lock.release()
                raise
        self._thread.start()

    def put_frame(self, frame: Frame, receipt: Receipt | None = None) -> None:
        """Queue a frame; ignored where the recorder has stopped or failed.

        Parameters
        ----------
        receipt
            Completed when the frame is in the file, or was counted as having no place in it; with a
            refusal where another one has its place.
        """
        self._queue.put(partial(self._write_frame, frame, receipt), frame.pixels.nbytes, frame)

    def compare_frame(self, frame: Frame, receipt: Receipt) -> bool:
        """Queue the comparison of a frame with the one of its number that came; False after the stop."""
        info, checksum = frame.info, frame.crc32  # its pixels need not wait

        def work() -> None:
            receipt.recorded(self._writer.compare_frame(info, checksum))

        return self._queue.put(partial(self._retried, work))

    def put_volume(
        self,
        sweep: int,
        channel: int,
        position: int,
        result: Reconstruction,
        *,
        acquired_s: float,
        received_s: float,
        effort: int = 0,
        later: bool = False,
    ) -> bool:
        """Queue a volume; False where the queue is full, or the recorder has failed.

        A time point that has its volume keeps it.

        Parameters
        ----------
        acquired_s
            Camera time of the sweep's last frame, s since the start of the run.
        received_s
            `time.monotonic()` when that frame arrived; the latency counts from there.
        effort
            0 full, 1 one evaluation of the network, 2 the INR alone.
        later
            Whether it was reconstructed from the recorded frames; implied where the time point had another
            status before.
        """
        write = partial(
            self._writer.write_volume,
            (sweep, channel, position),
            result,
            acquired_s=acquired_s,
            received_s=received_s,
            effort=effort,
            later=later,
        )

        def work() -> None:
            written = self._retried(write)
            if written is not None:
                self._tell_why(sweep, channel, position, result)
                self._on_written(written)

        size = result.volume.nbytes + (0 if result.uncertainty is None else result.uncertainty.nbytes)
        return self._queue.offer(work, size)

    def put_live(self, sweep: Sweep, result: Reconstruction, newest_seq: int) -> bool:
        """Queue a rolling volume; it replaces one of its session that still waits.

        False where the queue is full, the recorder has failed, or the file has no room for such.

        Parameters
        ----------
        newest_seq
            `seq` of the newest frame in it.
        """
        if not self._writer.live:
            return False
        write = partial(self._writer.write_live, sweep, result, newest_seq)
        session = (sweep.channel, sweep.position)
        return self._queue.put_newest(session, partial(self._retried, write), result.volume.nbytes)

    def mark(self, sweep: int, channel: int, position: int, status: Status, reason: str) -> None:
        """Record that a time point has no volume, and why (one sentence; cut at 160 bytes)."""
        self.call(partial(self._writer.settle, (sweep, channel, position), status, reason))

    def _tell_why(self, sweep: int, channel: int, position: int, result: Reconstruction) -> None:
        """Put down, once for each session and answer, why it was served, and once each alarm about it."""
        answer = channel, position, result.served
        if result.why and answer not in self._told:
            self._told.add(answer)
            text = f"sweep {sweep}: {result.served}, as {result.why}"
            tell("served", text, self.header.name)
            self._retried(partial(self._writer.data.write_event, "served", text))
        for kind, sentence in result.alarms.items():
            if (channel, position, f"alarm {kind}") not in self._told:
                self._told.add((channel, position, f"alarm {kind}"))
                text = f"sweep {sweep}: {sentence}"
                tell("quality", text, self.header.name)
                self._retried(partial(self._writer.data.write_event, "quality", text))

    def put_ledger(self, ledger: Ledger, senders: NDArray[np.int64] | None = None) -> None:
        """Record what became of the frames, and what each sender said; the sums are made here."""
        self.call(partial(self._writer.write_ledger, ledger, senders))

    def put_engine(self, provenance: Mapping[str, str]) -> None:
        """Record what the engine said of itself: device, weights ..."""
        self.call(partial(self.data.write_engine, provenance))

    def put_event(self, kind: str, text: str) -> None:
        """Record and log an event: its kind (16 bytes) and a sentence (160 bytes)."""
        tell(kind, text, self.header.name)
        self.call(partial(self.data.write_event, kind, text))

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` on the recorder's thread, after all that was queued before.

        It is run again where the disk was full, and not at all where the recorder has stopped or failed.
        """
        self._queue.put(partial(self._retried, work))

    def load_sweep(self, sweep: int, channel: int, position: int) -> Sweep | None:
        """Return a sweep from the frames in the file and in the queue; None where there are none. Any thread.

        Raises
        ------
        DiskError
            The file cannot be read.
        """
        rows = self._rows((sweep, channel, position))
        if rows is None or not rows.present.any():
            return None
        loaded = assemble(rows, sweep, channel, position)
        loaded.received_s = time.monotonic()
        return loaded

    def load_frames(self, sweep: int, channel: int, position: int) -> list[Frame]:
        """Return the frames of a sweep, from the file and the queue; errors as of `load_sweep`."""
        rows = self._rows((sweep, channel, position))
        return [] if rows is None else rows.frames(sweep, channel, position)

    def raise_if_failed(self) -> None:
        """Raise what ended the recorder's thread, if something did."""
        if self._failure is not None:
            raise self._failure

    def stop(self, timeout_s: float = 60.0) -> None:
        """Write what is queued, close the run's files and end the thread.

        Raises
        ------
        NoRoomError
            The disk is full, so what was queued is not in the file; it is closed without it.
        DiskError
            It took longer than `timeout_s`, or the disk failed.
        """
        self._queue.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            while self._rescues and self._thread.is_alive():  # copies what is nowhere else
                self._thread.join(1.0)
        else:
            self._files.close()
            self._lock.release()
        if self._thread.is_alive():
            raise DiskError(
                f"The recorder still has {self._queue.bytes / 1e6:.0f} MB to write after {timeout_s:g} s: "
                "the disk is too slow or hangs; what was announced as written is safe."
            )
        self.raise_if_failed()

    def _rows(self, key: Key) -> FrameTable | None:
        # The queue first: what is written meanwhile is in the file then.
        return self._files.read_frames(key, self._queue.frames(*key))

    def _run(self) -> None:
        failure: Exception | None = None
        try:
            while (write := self._queue.next()) is not None:
                try:
                    write.work()
                except NoRoomError as error:  # only during the stop; what needs no room is still written
                    failure = failure or error
                self._queue.done(write)
            self._retried(self._writer.finish)
            if self._left:
                left = count_noun(self._left, "frame was", "frames were")
                failure = NoRoomError(f"{left} not recorded at the end of the run: {failure}")
        except MddError as error:
            failure = failure or error
        except Exception as error:  # the thread's owner gets it from raise_if_failed
            failure = RunError(f"The recorder failed ({type(error).__name__}: {error}): please report this.")
            failure.__cause__ = error
        finally:
            if failure is not None:
                failure = self._rescued(failure)
            try:
                self._files.close()
            except MddError as error:  # a disk that was full, or failed, still is at the last
                failure = failure or error
            if failure is not None:
                self._failure = failure
                self._queue.clear()
            self._lock.release()

    def _rescued(self, failure: Exception) -> Exception:
        """Rescue what is in files that have lost their names; return the failure with what became of it."""
        self._rescues = True
        told = self._files.rescue()
        if not told:
            return failure
        return DiskError(
            " ".join([str(failure), *told, "Frames that are not recorded stay with their sender."])
        )

    def _write_frame(self, frame: Frame, receipt: Receipt | None) -> None:
        if self._left:  # frames are written in order, or not at all
            self._left += 1
            return
        try:
            refusal = self._retried(lambda: self._writer.write_frame(frame))
        except NoRoomError:
            self._left = 1
            raise
        self._files.check(frame.info.sweep)
        if receipt is not None:
            receipt.recorded(refusal)

    def _retried(self, work: Callable[[], _T]) -> _T:
        """Do work that may be done twice; where the disk is full, again each second until the stop."""
        while True:
            stopping = self._queue.stopping  # before the attempt, so that there is one after the stop
            try:
                result = work()
            except NoRoomError as error:
                if stopping:
                    raise
                if not self.waiting_for:
                    self._disk_event(f"waiting: {error}")
                self.waiting_for = str(error)
                with self._queue.changed:
                    self._queue.changed.wait_for(lambda: self._queue.stopping, _RETRY_S)
            else:
                if self.waiting_for:
                    self.waiting_for = ""
                    self._disk_event("there is room again")
                return result

    def _disk_event(self, text: str) -> None:
        tell("disk", text, self.header.name)
        with contextlib.suppress(NoRoomError):
            self.data.write_event("disk", text)
