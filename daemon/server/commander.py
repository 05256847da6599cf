"""What the daemon does when it is asked over the control channel; on the main thread.

Each command is a method of `Commander`; what may be set during a run is the engine's list and nothing more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, cast

from microdiffusion.daemon.server.save_tiff import Snapshots
from microdiffusion.daemon.status import state_of
from microdiffusion.errors import UserError
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from microdiffusion.daemon.engine import EngineProcess
    from microdiffusion.daemon.runs import OpenRuns
    from microdiffusion.daemon.status import StatusBoard
    from microdiffusion.wire import Command, Value


class DaemonControls(Protocol):
    """What of the daemon commands reach."""

    board: StatusBoard

    @property
    def engine(self) -> EngineProcess:
        """The engine, whose settings may change."""
        ...

    @property
    def open_runs(self) -> OpenRuns:
        """The runs, whose drivers are told."""
        ...

    def start_source(self) -> bool:
        """Begin the acquisition that waits; False where none does."""
        ...


_MOST_RUNS = 100  # of which a status tells: an answer has 256 values at most
_DONE = {
    "pause": "the acquisition takes no further sweep until `mdd control go`, or space in the dashboard",
    "go": "the acquisition goes on",
    "stop": "the acquisition ends in order",
}


class Commander:
    """Carries out commands.

    Parameters
    ----------
    daemon : DaemonControls
    """

    def __init__(self, daemon: DaemonControls) -> None:
        self._daemon = daemon
        self._snapshots = Snapshots(daemon.board)

    def obey(self, command: Command, by: str = "over the control channel") -> tuple[str, dict[str, Value]]:
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
        if command.command == "status":
            return self._status()
        if command.command == "start":
            if not self._daemon.start_source():
                raise UserError("No acquisition waits for a start here: see acquisition.begin.")
            return "the acquisition begins", {}
        if command.command == "mark":
            return self._mark(command.value), {}
        if command.command == "snapshot":
            return self._snapshots.begin(self._daemon.open_runs.unclosed, command.value), {}
        if command.command == "set":
            return self._set(command.key, command.value), {}
        what = cast('Literal["go", "pause", "stop"]', command.command)
        if not self._daemon.open_runs.tell(what, f"asked for {by}"):
            raise UserError("No run is open, so there is nothing to tell.")
        self._daemon.board.note(f"{_DONE[what]} (asked for {by})")
        return _DONE[what], {}

    def _set(self, key: str, value: str) -> str:
        self._daemon.engine.queue.set(key, value)  # which puts it down in the files of the open runs
        text = f"{key} = {value} from the next sweep on"
        self._daemon.board.note(text)
        return text

    def _mark(self, text: str) -> str:
        text = " ".join(text.split()) or "mark"
        if not self._daemon.open_runs.mark(text):
            raise UserError("No run is open, so there is nothing to mark.")
        self._daemon.board.note(f"mark: {text}")
        return f"marked: {text}"

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
