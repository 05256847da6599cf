"""The thread between memory and the local disk, for frames that the daemon does not take.

`Spill` owns one thread, which owns the `Journal`. It does three things in turns, so that none starves: forget
what the daemon has, read back what goes out next, and write what does not fit into memory. While the line is
down or the sender ends it writes everything, so that a process that is killed loses nothing. It cannot die
silently: a disk that fails or is full becomes `trouble` and is tried again, anything else goes to
`on_failure`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from microdiffusion import wire
from microdiffusion.errors import DiskError, WireError
from microdiffusion.sender.buffer import SendBuffer
from microdiffusion.sender.buffered import BufferedFrame
from microdiffusion.sender.journal import Journal, JournalFull

RETRY_S = 0.5
"""Interval between attempts at a disk that failed."""
MAX_READS = 20
"""Attempts to read a frame that the disk does not give; then it counts as damaged, and the next one goes."""
TICK_S = 0.25


class Spill:
    """Moves frames between a `SendBuffer` and a `Journal`.

    Parameters
    ----------
    journal : Journal
        A new one, or one that was left over and is sent from.
    on_read : callable
        A frame was read back and can be sent.
    on_failure : callable
        Takes the error that ended the thread.

    Attributes
    ----------
    line_down : bool
        Set by the sender: the daemon takes no frames at the moment.
    trouble : str
        The reason why the journal cannot be written or read at the moment, one sentence, or empty.
    """

    def __init__(
        self,
        buffer: SendBuffer,
        journal: Journal,
        *,
        on_read: Callable[[], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self.line_down = False
        self.trouble = ""
        self._buffer = buffer
        self._journal = journal
        self._folder = journal.path.parent
        self._on_read = on_read
        self._on_failure = on_failure
        self._write_again_s = self._read_again_s = 0.0
        self._failed_reads = 0
        self._ending = threading.Event()
        self._saved = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mdd-journal", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def save_all(self, timeout_s: float) -> None:
        """Have everything that is left written to the journal; returns when it is, or after `timeout_s`."""
        self._ending.set()
        self._buffer.journal_work.set()
        self._saved.wait(timeout_s)

    def stop(self) -> None:
        """End the thread and close the journal: deleted where the daemon has everything, else kept."""
        self._stopping.set()
        self._buffer.journal_work.set()
        if self._thread.ident is None:
            self._close()
        else:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._buffer.journal_work.clear()
                self._release()
                read, wrote = self._read_one(), self._write_one()
                if not read and not wrote:
                    self._buffer.journal_work.wait(TICK_S)
        except Exception as error:
            self._on_failure(error)
        finally:
            self._saved.set()
            self._close()

    def _release(self) -> None:
        for location in self._buffer.take_released():
            self._journal.release(location)

    def _read_one(self) -> bool:
        """Read one frame back; False where none is wanted, or it has to wait."""
        entry = self._buffer.next_to_read()
        if entry is None or entry.location is None or time.monotonic() < self._read_again_s:
            return False
        parts: wire.Parts | None = None
        try:
            parts = self._journal.read(entry.location)
        except DiskError:
            pass
        except OSError as error:  # too many open files, a share that is away: the frame is still there
            self.trouble = f"The journal in {self._folder} cannot be read ({error}): it is tried again."
            self._failed_reads += 1
            if self._failed_reads < MAX_READS:
                self._read_again_s = time.monotonic() + RETRY_S
                return False
        self._failed_reads = 0
        self._buffer.read(entry, parts)
        self._on_read()
        return True

    def _write_one(self) -> bool:
        """Write one frame; False where none needs to be, or it has to wait."""
        if time.monotonic() < self._write_again_s:
            return False
        ending = self._ending.is_set()
        entry = self._buffer.next_to_write(everything=ending or self.line_down)
        if entry is None:
            if not self._failed_reads:
                self.trouble = ""
            if ending:
                self._saved.set()
            return False
        try:
            self._write(entry)
        except JournalFull:
            self.trouble = (
                f"The journal in {self._folder} holds the {self._journal.limit_bytes / 1e9:.3g} GB that it "
                "may (wire.journal_gb); `mdd deliver` sends what earlier runs have left there."
            )
        except OSError as error:
            self.trouble = f"The journal in {self._folder} cannot be written ({error}): free some room there."
        else:
            self.trouble = ""
            return True
        self._write_again_s = time.monotonic() + RETRY_S
        return False

    def _write(self, entry: BufferedFrame) -> None:
        try:
            header, body = entry.encoded(self._journal.header.run_id)[:2]
        except WireError as error:
            if not entry.gone:  # the sender will come across it, too, and end the run
                entry.unfit = True
                self._on_failure(error)
            return
        stats = self._buffer.stats()
        announced = stats.put + stats.dropped
        location = self._journal.append(
            entry.seq, bytes(header), body, announced=announced, dropped=stats.dropped
        )
        self._buffer.written(entry, location)

    def _close(self) -> None:
        self._release()
        stats = self._buffer.stats()
        if stats.journaled == 0:
            self._journal.delete()
            return
        if not self._journal.records:
            lost = self._buffer.unsaved()
            try:
                self._journal.note(stats.put + stats.dropped, stats.dropped + lost)
            except OSError as error:  # each record says how many there were when it was written
                self.trouble = f"The journal in {self._folder} cannot be written ({error})."
        self._journal.close()
