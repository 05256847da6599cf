"""Watches every snapshot on its way to the user: adds the alarms, and keeps the log of the daemon's life.

Belongs to the daemon's main thread; notes reach the log from whichever thread adds them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from microdiffusion import __version__
from microdiffusion.config import Config
from microdiffusion.daemon.monitoring.alarms import Alarms
from microdiffusion.daemon.monitoring.log import JsonLog
from microdiffusion.daemon.status import Alarm, Note, StatusBoard, StatusSnapshot, log_fields, log_line

FIGURES_EVERY_S = 10.0

logger = logging.getLogger("microdiffusion.daemon")


class Monitor:
    """Watches the status of one daemon between `start` and `stop`."""

    def __init__(self, config: Config, board: StatusBoard) -> None:
        acquisition, settings = config.acquisition, config.monitoring
        own = acquisition.driver != "none"
        self._alarms = Alarms(
            journal_gb=config.wire.journal_gb, interval_s=acquisition.sweep_interval_s if own else 0.0
        )
        # Lines that are put into a log that was not started go nowhere.
        self._log = JsonLog(config.recorder.output, max_mb=settings.log_mb, keep=settings.log_files)
        self._keeps_log = settings.log
        self._board = board
        self._prometheus = settings.prometheus
        self._latest = StatusSnapshot()
        self._standing: dict[str, Alarm] = {}
        self._state = ""
        self._echo = False
        self._next_s = 0.0

    def start(self, *, echo: bool = False, **fields: object) -> None:
        """Begin; `fields` go into the first line. `echo`: figures and notes go to stderr, too."""
        self._echo = echo
        if self._keeps_log:
            self._log.start()
        self._log.put("start", f"mdd {__version__} starts", fields={"version": __version__, **fields})
        self._board.on_note(self._note)

    @contextlib.contextmanager
    def exporter(self) -> Iterator[None]:
        """Serve Prometheus, where that is configured; raises AddressError where its port is taken."""
        if self._prometheus is None:
            yield
            return
        from microdiffusion.daemon.monitoring.prometheus import serve_metrics

        def latest() -> StatusSnapshot:
            return self._latest

        with serve_metrics(self._prometheus, self._board, latest, lambda: self._log.dropped) as address:
            self._board.note(f"Prometheus metrics are at http://{address}/metrics")
            yield

    def complete(self, snapshot: StatusSnapshot) -> StatusSnapshot:
        """Return the snapshot with its alarms."""
        alarms = self._alarms.look(snapshot)
        latest = self._latest = snapshot.model_copy(update={"alarms": alarms})
        standing = {alarm.kind: alarm for alarm in alarms}
        for kind, alarm in standing.items():
            before = self._standing.get(kind)
            if before is None or before.level != alarm.level:
                self._log.put("alarm", alarm.text, alarm.level, {"alarm": kind, "fix": alarm.fix})
        for kind, alarm in self._standing.items():
            if kind not in standing:
                lasted_s = round(snapshot.elapsed_s - alarm.since_s, 1)
                self._log.put("alarm_over", alarm.text, fields={"alarm": kind, "lasted_s": lasted_s})
        self._standing = standing
        if snapshot.state != self._state or snapshot.elapsed_s >= self._next_s:
            self._state, self._next_s = snapshot.state, snapshot.elapsed_s + FIGURES_EVERY_S
            figures = {key: value for key, value in log_fields(latest) if key != "time"}
            self._log.put("status", snapshot.state, fields=figures)
            if self._echo:
                logger.info(log_line(latest))
        return latest

    def stop(self, failure: Exception | None) -> None:
        """Write the last line."""
        if failure is None:
            self._log.put("stop", "closed cleanly")
        else:
            self._log.put("stop", str(failure), "error", {"error": type(failure).__name__})
        self._log.stop()

    def _note(self, note: Note) -> None:
        self._log.put("note", note.text, note.level)
        if self._echo:
            logger.log(logging.getLevelNamesMapping()[note.level.upper()], note.text)
