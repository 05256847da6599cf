"""Carries out what the daemon is asked over the control channel, or with a key; on the main thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from microdiffusion.daemon.server.save_tiff import Snapshots
from microdiffusion.daemon.status import state_of
from microdiffusion.errors import UserError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from microdiffusion.daemon.server.daemon import Daemon
    from microdiffusion.wire import Command, Value

_MOST_RUNS = 100  # that a status tells of: an answer has 256 values at most
_DONE = {
    "pause": "the acquisition takes no further sweep until `mdd control go`, or space in the dashboard",
    "go": "the acquisition goes on",
    "stop": "the acquisition ends after the sweep that is being taken",
}


class Commander:
    """Carries out commands."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._snapshots = Snapshots(daemon.board)

    def execute(self, command: Command, by: str = "over the control channel") -> tuple[str, dict[str, Value]]:
        """Carry out a command of `control.COMMANDS`; return what to say and the values asked for.

        Parameters
        ----------
        by
            How it was asked for.

        Raises
        ------
        UserError
            It cannot be done now, or the value is impossible.
        """
        daemon, name = self._daemon, command.command
        if name == "status":
            return self._status()
        if name == "snapshot":
            return self._snapshots.begin(daemon.runs.unclosed, command.value), {}
        if name == "start":
            if not daemon.acquisition.start():
                raise UserError("No acquisition waits for a start here: see acquisition.begin.")
            return "the acquisition begins", {}
        if name == "set":
            daemon.engine.queue.set(command.key, command.value)  # which the files of the open runs keep
            text = f"{command.key} = {command.value} from the next sweep on"
            daemon.board.note(text)
            return text, {}
        if name == "mark":
            text = " ".join(command.value.split()) or "mark"
            if not daemon.runs.mark(text):
                raise UserError("No run is open, so there is nothing to mark.")
            daemon.board.note(f"mark: {text}")
            return f"marked: {text}", {}
        what = cast('Literal["go", "pause", "stop"]', name)
        if not daemon.runs.tell(what, f"asked for {by}"):
            raise UserError("No run is open, so there is nothing to tell.")
        daemon.board.note(f"{_DONE[what]} (asked for {by})")
        return _DONE[what], {}

    def _status(self) -> tuple[str, dict[str, Value]]:
        snapshot = self._daemon.board.snapshot(preview=False)
        values: dict[str, Value] = {
            "daemon": snapshot.daemon,
            "engine": snapshot.engine.device,
            "frames": snapshot.frames.received,
            "frame_rate_hz": round(snapshot.frame_rate_hz, 2),
            "missing": snapshot.frames.missing,
            "written": snapshot.volumes.written,
            "skipped": snapshot.volumes.skipped,
            "lost": snapshot.volumes.lost,
            "failed": snapshot.volumes.failed,
        }
        for number, run in enumerate(snapshot.runs[:_MOST_RUNS]):
            frames = count_noun(run.frames, "frame")
            values[f"run_{number}"] = f"{run.name} {run.state}, {frames}, {run.waiting} wait"
            values[f"run_{number}_file"] = run.file
        return state_of(snapshot), values
