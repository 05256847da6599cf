"""The way of frames to the local disk and back, while the daemon does not take them.

`Spill` owns one thread, which owns the `Journal`; the journal's folder appears with the first frame that
goes there. The thread does four things, in turns, so that none starves: forget what the daemon has, read
back what goes out next, write what does not fit into memory, and, while the line is down or the sender ends,
write copies of everything else, too: a process that is killed then loses nothing. It cannot die silently: a
disk that fails or is full becomes `trouble` and is tried again, anything else goes to `on_failure`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from microdiffusion import wire
from microdiffusion.errors import DiskError, WireError
from microdiffusion.header import RunHeader
from microdiffusion.sender.buffer import SendBuffer
from microdiffusion.sender.entry import Entry
from microdiffusion.sender.journal import Journal, JournalFull

RETRY_S = 0.5
"""How soon a disk that did not take a frame is asked again."""
READ_TRIES = 20
"""How often a frame is read that the disk does not give; then it is damaged, and the next one goes."""
AHEAD_S = 0.25
TICK_S = 0.25


class Spill:
    """Moves frames between a `SendBuffer` and a `Journal`.

    Parameters
    ----------
    buffer : SendBuffer
    folder : Path
        Where the journal appears.
    header, first_seq
        The run, and where the sender's numbers begin.
    limit_bytes : int
        Most that journals may take in that folder.
    journal : Journal or None
        One that was left over, to be sent from; it is written to no more.
    on_fetched : callable
        A frame was read back and can be sent.
    on_failure : callable
        Takes what ended the thread.

    Attributes
    ----------
    line_down : bool
        Set by the sender: nobody takes frames at the moment.
    trouble : str
        Why frames cannot be written to the journal at the moment, one sentence, or empty.
    """

    def __init__(
        self,
        buffer: SendBuffer,
        *,
        folder: Path,
        header: RunHeader,
        first_seq: int,
        limit_bytes: int,
        on_fetched: Callable[[], None],
        on_failure: Callable[[Exception], None],
        journal: Journal | None = None,
    ) -> None:
        self.line_down = False
        self.trouble = ""
        self._buffer = buffer
        self._folder = folder
        self._header = header
        self._first_seq = first_seq
        self._limit_bytes = limit_bytes
        self._journal = journal
        self._read_only = journal is not None
        self._on_fetched = on_fetched
        self._on_failure = on_failure
        self._retry_s = self._read_again_s = 0.0
        self._ahead_s = 0.0
        self._read_failures = 0
        self._unfit: set[int] = set()
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
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._buffer.journal_work.clear()
                worked = self._turn()
                if not worked:
                    self._buffer.journal_work.wait(TICK_S)
        except Exception as error:
            self._on_failure(error)
        finally:
            self._saved.set()
            self._close()

    def _turn(self) -> bool:
        """Do one thing of each kind; False where there was nothing to do."""
        self._release()
        worked = self._fetch()
        if self._read_only:
            self._saved.set()
            return worked
        if time.monotonic() >= self._retry_s:
            entry = self._buffer.to_spill()
            if entry is not None:
                worked = self._write(entry) or worked
                if self.line_down and time.monotonic() >= self._ahead_s:
                    self._write_ahead()
            elif self.line_down or self._ending.is_set():
                saved = all(self._write(entry) for entry in self._buffer.unrecorded())
                if saved and self._ending.is_set():
                    self._saved.set()
            else:
                self.trouble = ""
        return worked

    def _write_ahead(self) -> None:
        """Copy what goes out next, in between: a camera that outpaces the disk must not put that off."""
        for entry in self._buffer.unrecorded(ahead=True):
            behind = self._buffer.to_spill()
            if not self._write(entry) or (behind is not None and not self._write(behind)):
                break
        self._ahead_s = time.monotonic() + AHEAD_S

    def _release(self) -> None:
        for place in self._buffer.take_released():
            if self._journal is not None:
                self._journal.release(place)

    def _fetch(self) -> bool:
        entry = self._buffer.to_fetch()
        if entry is None or entry.place is None or self._journal is None:
            return False
        if time.monotonic() < self._read_again_s:
            return False
        parts: wire.Parts | None = None
        try:
            parts = self._journal.read(entry.place)
        except DiskError as error:
            self.trouble = str(error)
        except OSError as error:  # too many open files, a share that is away: what lies there stays there
            self.trouble = f"The journal in {self._folder} cannot be read ({error}): it is tried again."
            self._read_failures += 1
            if self._read_failures < READ_TRIES:
                self._read_again_s = time.monotonic() + RETRY_S
                return False
        self._read_failures = 0
        self._buffer.fetched(entry, parts)
        self._on_fetched()
        return True

    def _write(self, entry: Entry) -> bool:
        """Write one frame; False where it does not go now."""
        if entry.seq in self._unfit or self._stopping.is_set():
            return not self._stopping.is_set()
        try:
            header, body = entry.encoded(self._header.run_id)[:2]
        except WireError as error:
            if not entry.gone:  # the sender will stumble over it, too, and end the run
                self._unfit.add(entry.seq)
                self._on_failure(error)
            return True
        try:
            if self._journal is None:
                self._journal = Journal.create(
                    self._folder, self._header, self._first_seq, limit_bytes=self._limit_bytes
                )
            stats = self._buffer.stats()
            place = self._journal.append(
                entry.seq, bytes(header), body, announced=stats.put + stats.dropped, dropped=stats.dropped
            )
        except JournalFull:
            self._put_off(
                f"The journal in {self._folder} holds the {self._limit_bytes / 1e9:.3g} GB that it may "
                "(wire.journal_gb); `mdd deliver` sends what earlier runs have left there."
            )
            return False
        except OSError as error:
            self._put_off(f"The journal in {self._folder} cannot be written ({error}): free some room there.")
            return False
        self.trouble = ""
        self._buffer.recorded(entry, place)
        return True

    def _put_off(self, reason: str) -> None:
        self.trouble = reason
        self._retry_s = time.monotonic() + RETRY_S

    def _close(self) -> None:
        self._release()
        journal = self._journal
        if journal is None:
            return
        if self._buffer.stats().journaled == 0:
            journal.delete()
            return
        if not self._read_only:
            stats = self._buffer.stats()
            lost = self._buffer.unsaved()
            try:
                journal.note(stats.put + stats.dropped, stats.dropped + lost)
            except OSError as error:  # each record says how many there were when it was written
                self.trouble = f"The journal in {self._folder} cannot be written ({error})."
        journal.close()
