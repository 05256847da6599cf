"""The health of one run: its source, its disk, the engine that serves it; for the board and the run file.

Says once what has changed: another engine, a disk that is full or hangs, and when it takes data again.
`frame` comes on the ingest thread and only puts a value down, `_reached` on the recorder's; all else runs on
the main thread.
"""

from __future__ import annotations

import time

from microdiffusion.daemon.engine import EngineInfo, provenance
from microdiffusion.daemon.ingest import RunStats
from microdiffusion.daemon.recorder import Recorder
from microdiffusion.daemon.runs.exposure import saturated_share
from microdiffusion.daemon.runs.sweeps import RunSweeps
from microdiffusion.daemon.status import FrameCounts, QueueDepth, RunStatus, StatusBoard
from microdiffusion.frames import Frame
from microdiffusion.ledger import Ledger

HANGS_S = 20.0
"""A disk that has taken nothing for so long, and does not say that it is full, hangs: the user is told."""


class RunHealth:
    """Watches one run.

    Parameters
    ----------
    recorder : Recorder
    board : StatusBoard
    queue_limit : int
        Bytes that the recorder's queue may hold.

    Attributes
    ----------
    saturated : float
        Share (0 to 1) of the newest frame's pixels that are as bright as the camera can count.
    """

    def __init__(self, recorder: Recorder, board: StatusBoard, queue_limit: int) -> None:
        self.saturated = 0.0
        self._recorder = recorder
        self._board = board
        self._queue_limit = queue_limit
        self._newest: Frame | None = None
        self._newest_s: float | None = None
        self._told: EngineInfo | None = None
        self._waiting_for = self._short = ""
        self._reached_s = self._looked_s = time.monotonic()
        self._hangs = False

    @property
    def silent_s(self) -> float | None:
        """Time since the last frame, s; None before the first."""
        return None if self._newest_s is None else time.monotonic() - self._newest_s

    def frame(self, frame: Frame) -> None:
        """Note that a frame came."""
        self._newest, self._newest_s = frame, time.monotonic()

    def look(self) -> None:
        """Look at the newest frame, and ask the recorder for a sign of life; once a second."""
        frame, self._newest = self._newest, None
        if frame is not None:
            self.saturated = saturated_share(frame.pixels)
        self._recorder.call(self._reached)

    def engine(self, info: EngineInfo | None) -> None:
        """Put down in the file what reconstructs, as soon as it is known and whenever it changes."""
        if info is None or info == self._told:
            return
        if self._told is not None:
            self._recorder.put_event("engine", info.device)
        self._told = info
        self._recorder.put_engine(provenance(info))

    def disk(self, now_s: float) -> None:
        """Say when the disk takes nothing, and when it does again; the recorder tells the file."""
        waiting_for = self._recorder.waiting_for
        if waiting_for != self._waiting_for:
            self._waiting_for = waiting_for
            if waiting_for:
                self._board.note(waiting_for, "error")
            else:
                self._board.note("the disk takes data again")
        short = self._recorder.short_of_room
        if short and not self._short:
            self._board.note(f"{self._recorder.paths[0].parent}: {short}", "warning")
        self._short = short
        if now_s - self._looked_s > HANGS_S / 2:
            self._reached_s = now_s  # this process stood still (a laptop that slept): no word on the disk
        self._looked_s = now_s
        hangs = now_s - self._reached_s > HANGS_S and not waiting_for
        if hangs == self._hangs:
            return
        self._hangs = hangs
        folder = self._recorder.paths[0].parent
        if hangs:
            text = f"the disk of {folder} has taken nothing for {HANGS_S:.0f} s: check it; frames wait with "
            self._board.note(f"{text}their sender", "error")
        else:
            self._board.note(f"the disk of {folder} takes data again")

    def forget(self) -> None:
        """Release the newest frame."""
        self._newest = None

    def show(self, ledger: Ledger, stats: RunStats, sweeps: RunSweeps) -> None:
        """Make this the run that the board shows."""
        header = self._recorder.header
        self._board.put(
            frames=FrameCounts(
                received=ledger.received,
                announced=ledger.announced if ledger.announced_known else None,
                missing=sweeps.missing,
                duplicate=ledger.duplicates,
                refused=ledger.refused,
                dropped_by_sender=ledger.dropped_by_sender,
            ),
            queues={
                "recorder": QueueDepth(bytes=self._recorder.queue_bytes, limit=self._queue_limit),
                "unconfirmed": QueueDepth(bytes=stats.pending_bytes, limit=stats.window_bytes),
                "assembler": QueueDepth(bytes=sweeps.waiting_bytes),
            },
            run=RunStatus(
                name=header.name,
                id=header.run_id,
                file=str(self._recorder.paths[0]),
                source=header.source,
                sweeps=header.sweeps,
                shape=header.shape,
                voxel_size_um=header.voxel_size_um,
            ),
        )

    def _reached(self) -> None:
        self._reached_s = time.monotonic()
