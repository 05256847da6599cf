"""Looks at every snapshot on its way to the user: adds the alarms, and keeps the log of the daemon's life.

Belongs to the daemon's main thread; notes reach the log from whichever thread notes them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from microdiffusion import __version__
from microdiffusion.daemon.monitoring.alarms import Alarms
from microdiffusion.daemon.monitoring.log import JsonLog
from microdiffusion.daemon.status import StatusSnapshot, log_fields

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from microdiffusion.config import Config
    from microdiffusion.daemon.status import Alarm, Note, StatusBoard

FIGURES_EVERY_S = 10.0


class Monitor:
    """Watches the status of one daemon between `start` and `stop`.

    Parameters
    ----------
    config : Config
    board : StatusBoard
    """

    def __init__(self, config: Config, board: StatusBoard) -> None:
        acquisition = config.acquisition
        own = acquisition.driver != "none"
        self._alarms = Alarms(
            journal_gb=config.wire.journal_gb, interval_s=acquisition.sweep_interval_s if own else 0.0
        )
        settings = config.monitoring
        self._log = (
            JsonLog(config.recorder.output, max_mb=settings.log_mb, keep=settings.log_files)
            if settings.log
            else None
        )
        self._board = board
        self._prometheus = settings.prometheus
        self._latest = StatusSnapshot()
        self._stood: dict[str, Alarm] = {}
        self._state = ""
        self._next_s = 0.0

    @property
    def log_lines_dropped(self) -> int:
        """Lines of the log that could not be kept."""
        return self._log.dropped if self._log is not None else 0

    def start(self, **fields: object) -> None:
        """Begin; `fields` go into the first line."""
        if self._log is None:
            return
        self._log.start()
        self._log.put("start", f"mdd {__version__} starts", fields={"version": __version__, **fields})
        self._board.on_note(self._note)

    def exporter(self) -> AbstractContextManager[object]:
        """Return the Prometheus endpoint, which listens at once; a thing that does nothing where it is off.

        Raises
        ------
        AddressError
            Its port is taken.
        """
        if self._prometheus is None:
            return contextlib.nullcontext()
        from microdiffusion.daemon.monitoring.exporter import Exporter

        exporter = Exporter(
            self._prometheus, self._board, lambda: self._latest, lambda: self.log_lines_dropped
        )
        self._board.note(f"Prometheus finds the figures at http://{exporter.address}/metrics")
        return exporter

    def complete(self, snapshot: StatusSnapshot) -> StatusSnapshot:
        """Return the snapshot with its alarms."""
        alarms = self._alarms.look(snapshot)
        if self._log is not None:
            self._write(snapshot, alarms)
        self._latest = snapshot.model_copy(update={"alarms": alarms})
        return self._latest

    def stop(self, failure: Exception | None) -> None:
        """Write the last line."""
        if self._log is None:
            return
        if failure is None:
            self._log.put("stop", "closed in order")
        else:
            self._log.put("stop", str(failure), "error", {"error": type(failure).__name__})
        self._log.stop()

    def _note(self, note: Note) -> None:
        if self._log is not None:
            self._log.put("note", note.text, note.level)

    def _write(self, snapshot: StatusSnapshot, alarms: tuple[Alarm, ...]) -> None:
        log = self._log
        if log is None:
            return
        stand = {alarm.kind: alarm for alarm in alarms}
        for kind, alarm in stand.items():
            before = self._stood.get(kind)
            if before is None or before.level != alarm.level:
                log.put("alarm", alarm.text, alarm.level, {"alarm": kind, "cure": alarm.cure})
        for kind, alarm in self._stood.items():
            if kind not in stand:
                lasted_s = round(snapshot.elapsed_s - alarm.since_s, 1)
                log.put("alarm_over", alarm.text, fields={"alarm": kind, "lasted_s": lasted_s})
        self._stood = stand
        changed, self._state = snapshot.state != self._state, snapshot.state
        if changed or snapshot.elapsed_s >= self._next_s:
            self._next_s = snapshot.elapsed_s + FIGURES_EVERY_S
            figures = {key: value for key, value in log_fields(snapshot) if key != "time"}
            log.put("status", snapshot.state, fields=figures)
