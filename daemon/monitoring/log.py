"""The daemon's log beside its run files: one JSON object a line, rotated by size.

`put` and whatever runs report to `EVENTS` go into a bounded queue; one thread alone touches the files.
Nothing waits for it: what the queue or the disk does not take is counted and lost. Two daemons in one folder
have a log each: the second takes `mdd_2`. Fields by event: docs/monitoring.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import QueueHandler, RotatingFileHandler
from pathlib import Path
from typing import Literal

from microdiffusion.daemon.events import EVENTS
from microdiffusion.daemon.lock import RunLock
from microdiffusion.errors import DiskError, InputFileError

QUEUED = 4096
MOST_IN_A_FOLDER = 64

Level = Literal["info", "warning", "error"]


class JsonLog:
    """Writes the log between `start` and `stop`.

    It is rotated at `max_mb`; of older files `keep` are kept, `mdd.log.1.jsonl` is the newest of them.
    `dropped` counts the lines that could not be kept.
    """

    def __init__(self, folder: Path, *, max_mb: float = 10.0, keep: int = 5) -> None:
        self.path = folder / "mdd.log.jsonl"
        self.dropped = 0
        self._lock = RunLock(self.path)
        self._file = _Rotated(self.path, int(max_mb * 1e6), keep, self._drop)
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(QUEUED)
        self._handler = _Bounded(self._queue, self._drop)
        self._thread = threading.Thread(target=self._run, name="mdd-log", daemon=True)

    def start(self) -> None:
        """Take a name that is free, and begin. What goes wrong costs the log, never the start."""
        with contextlib.suppress(DiskError):
            for name in ("mdd", *(f"mdd_{number}" for number in range(2, MOST_IN_A_FOLDER))):
                self.path = self.path.with_name(f"{name}.log.jsonl")
                self._lock = RunLock(self.path)
                with contextlib.suppress(InputFileError):
                    self._lock.acquire()
                    break
        self._file.baseFilename = str(self.path.absolute())
        self._thread.start()
        EVENTS.addHandler(self._handler)

    def put(
        self, event: str, text: str, level: Level = "info", fields: Mapping[str, object] | None = None
    ) -> None:
        """Add a line with further `fields`; any thread, at once."""
        if self._thread.is_alive():
            line = {"levelname": level, "kind": event, "msg": text, "fields": fields or {}}
            self._handler.handle(logging.makeLogRecord(line))

    def stop(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for `timeout_s` at most, and close; a disk that hangs is left to itself."""
        EVENTS.removeHandler(self._handler)
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                self._file.stream = None  # which `logging` would wait for when the process ends

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            self._file.emit(record)
        self._file.close()
        self._lock.release()

    def _drop(self) -> None:
        self.dropped += 1


class _Bounded(QueueHandler):
    """Makes lines of records, on the thread that logs, and queues them."""

    def __init__(self, lines: queue.Queue[logging.LogRecord | None], dropped: Callable[[], None]) -> None:
        super().__init__(lines)
        self._dropped = dropped

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "fields", {"run": getattr(record, "run", "")})
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "kind", "event"),
            "text": record.getMessage(),
            "pid": record.process,
            **fields,
        }
        return json.dumps(line, ensure_ascii=False, default=str)

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped()


class _Rotated(RotatingFileHandler):
    """Writes lines into `mdd.log.jsonl`; older files are `mdd.log.1.jsonl` and so on."""

    def __init__(self, path: Path, max_bytes: int, keep: int, dropped: Callable[[], None]) -> None:
        super().__init__(
            path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8", delay=True, errors="replace"
        )
        self._dropped = dropped

    def handleError(self, record: logging.LogRecord) -> None:
        """Count the line, and open the file again for the next one."""
        self._dropped()
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()

    def _open(self) -> TextIOWrapper:
        """Open the file; half of a line, of a full disk or a daemon that was killed, becomes a line."""
        stream = super()._open()
        with Path(self.baseFilename).open("rb") as file:
            if stream.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                stream.write("\n")
        return stream

    def doRollover(self) -> None:
        """Rotate, unless somebody has the file open where that forbids renaming it (Windows): it grows on."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        with contextlib.suppress(OSError):
            os.replace(self.baseFilename, f"{self.baseFilename}.full")
            super().doRollover()
            Path(f"{self.baseFilename}.full").unlink(missing_ok=True)  # there if no older file is kept

    def rotation_filename(self, default_name: str) -> str:
        name, _, number = default_name.rpartition(".")
        return f"{name.removesuffix('.jsonl')}.{number}.jsonl"

    def rotate(self, source: str, dest: str) -> None:
        os.replace(f"{source}.full", dest)
