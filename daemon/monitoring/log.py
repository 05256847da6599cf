"""The daemon's log beside its run files: one JSON object a line, rotated by size.

Owns one thread, which alone touches the files. `put` never waits: what it is given goes into a queue that is
bounded, and what does not fit is counted and said later (`log_gap`). A disk that is full or gone costs lines
of the log and nothing else; a file that somebody holds open where that forbids its renaming (Windows) grows
on until it is let go. Two daemons in one folder have a log each: who comes second takes `mdd_2`.

Each line has `time` (UTC, ISO 8601), `level` (info, warning, error), `event`, `text` and `pid`; further
fields by event, see docs/monitoring.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from microdiffusion.daemon.events import EVENTS
from microdiffusion.daemon.lock import RunLock
from microdiffusion.errors import DiskError, InputFileError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

QUEUED = 4096
RETRY_S = 1.0
MOST_IN_A_FOLDER = 64

Level = Literal["info", "warning", "error"]


class JsonLog:
    """Writes the log between `start` and `stop`.

    Parameters
    ----------
    folder : Path
        Of the run files.
    max_mb : float
        Size at which a file is put aside, MB.
    keep : int
        Files that are kept besides the one that is written: `mdd.log.1.jsonl` is the newest of them.

    Attributes
    ----------
    path : Path
        The file that is written.
    dropped : int
        Lines that could not be kept.
    """

    def __init__(self, folder: Path, *, max_mb: float = 10.0, keep: int = 5) -> None:
        self._folder = folder
        self._max_bytes = int(max_mb * 1e6)
        self._keep = keep
        self._name = "mdd"
        self.path = self._path()
        self.dropped = 0
        self._gap = 0
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUED)
        self._lock: RunLock | None = None
        self._file = -1
        self._size = 0
        self._again_bytes = 0  # the size at which a file that could not be put aside is tried again
        self._torn = False
        self._retry_s = 0.0
        self._tap = _EventTap(self)
        self._thread = threading.Thread(target=self._run, name="mdd-log", daemon=True)

    def start(self) -> None:
        """Take a name that is free, and begin. What goes wrong costs the log, never the start."""
        for number in range(1, MOST_IN_A_FOLDER + 1):
            self._name = "mdd" if number == 1 else f"mdd_{number}"
            self.path = self._path()
            lock = RunLock(self.path)
            try:
                lock.acquire()
            except InputFileError:
                continue
            except DiskError:
                break
            self._lock = lock
            break
        self._thread.start()
        EVENTS.addHandler(self._tap)

    def put(
        self, event: str, text: str, level: Level = "info", fields: Mapping[str, object] | None = None
    ) -> None:
        """Add a line with further `fields`; any thread, at once."""
        if not self._thread.is_alive():
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "event": event,
            "text": text,
            "pid": os.getpid(),
            **(fields or {}),
        }
        data = json.dumps(line, ensure_ascii=False, default=str).encode(errors="replace") + b"\n"
        try:
            self._queue.put_nowait(data)
        except queue.Full:
            self._lose()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for `timeout_s` at most, and close; a disk that hangs is left to itself."""
        EVENTS.removeHandler(self._tap)
        if not self._thread.is_alive():
            return
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _path(self, number: int = 0) -> Path:
        return self._folder / (f"{self._name}.log.{number}.jsonl" if number else f"{self._name}.log.jsonl")

    def _lose(self) -> None:
        self.dropped += 1
        self._gap += 1

    def _run(self) -> None:
        try:
            while (data := self._queue.get()) is not None:
                self._write(data)
        finally:
            self._close()
            if self._lock is not None:
                self._lock.release()

    def _write(self, data: bytes) -> None:
        if time.monotonic() < self._retry_s:
            self._lose()
            return
        try:
            self._make_room(len(data))
            if self._gap:
                told, gap = self._gap, self._line_of_gap()
                self._append(gap)
                self._gap -= told
            self._append(data)
        except OSError:
            self._lose()
            self._close()
            self._retry_s = time.monotonic() + RETRY_S

    def _append(self, data: bytes) -> None:
        if self._torn:  # half of a line is there: the next one begins on a line of its own
            data = b"\n" + data
        written = os.write(self._file, data)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError("the disk took half a line")

    def _make_room(self, more: int) -> None:
        if self._file >= 0 and self._is_full(more):
            self._close()
            try:
                self._put_aside()
                self._again_bytes = 0
            except OSError:
                self._again_bytes = self._size + more + self._max_bytes // 10
        if self._file < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._file = os.open(self.path, flags | getattr(os, "O_NOINHERIT", 0), 0o644)
            self._size = os.fstat(self._file).st_size
            self._torn = self._torn or self._ends_torn()
            if self._is_full(more):
                self._make_room(more)

    def _is_full(self, more: int) -> bool:
        return bool(self._size) and self._size + more > max(self._max_bytes, self._again_bytes)

    def _put_aside(self) -> None:
        """Move every file on by one, up to the first number that is free: trying again costs no old file."""
        if not self._keep:
            self.path.unlink(missing_ok=True)
            return
        free = next((n for n in range(1, self._keep) if not self._path(n).exists()), self._keep)
        for number in range(free, 0, -1):
            self._path(number - 1).replace(self._path(number))

    def _ends_torn(self) -> bool:
        """Whether an earlier daemon was killed, or its disk full, in the middle of a line."""
        if not self._size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def _line_of_gap(self) -> bytes:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": "warning",
            "event": "log_gap",
            "text": f"{count_noun(self._gap, 'line')} could not be written",
            "pid": os.getpid(),
            "lines": self._gap,
        }
        return json.dumps(line).encode() + b"\n"

    def _close(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1


class _EventTap(logging.Handler):
    """Puts what runs say to `EVENTS` into the log."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"run": getattr(record, "run", "")}
        self._log.put(getattr(record, "kind", "event"), record.getMessage(), fields=fields)
