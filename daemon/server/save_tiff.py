"""A run's newest volume as a TIFF beside its file: for a look in Fiji while the run goes on.

A thread reads the run file as any reader would, and ends by itself; the board is told what came of it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from microdiffusion.daemon.runs import LiveRun
from microdiffusion.daemon.status import StatusBoard, session_name
from microdiffusion.errors import UserError
from microdiffusion.files import replacing
from microdiffusion.runfile import Status, open_run


class Snapshots:
    """Saves volumes, one after the other."""

    def __init__(self, board: StatusBoard) -> None:
        self._board = board
        self._thread: threading.Thread | None = None

    def begin(self, runs: Sequence[LiveRun], session: str) -> str:
        """Begin to save the newest volume of a session of these runs; empty: of the run that began last.

        Raises
        ------
        UserError
            No run is open, there is no such session, or one is being saved.
        """
        if not runs:
            raise UserError("No run is open, so there is no volume to save.")
        if self._thread is not None and self._thread.is_alive():
            raise UserError("A snapshot is being saved: try again in a moment.")
        for run in reversed(runs):
            for channel, position in np.ndindex(len(run.header.channels), len(run.header.positions)):
                if session in ("", session_name(run.header, channel, position)):
                    where = (run.recorder.paths[0], channel, position)
                    self._thread = threading.Thread(target=self._save, args=where, name="mdd-snapshot")
                    self._thread.start()
                    return "the newest volume is being saved; a note says where"
        raise UserError(f"There is no session {session!r} now.")

    def _save(self, path: Path, channel: int, position: int) -> None:
        try:
            self._board.note(f"snapshot: {save_newest(path, channel, position)}")
        except Exception as error:  # the run goes on whatever became of a picture of it
            self._board.note(f"no snapshot was saved ({error})", "warning")


def save_newest(path: Path, channel: int, position: int) -> Path:
    """Write the newest volume of a channel and position as ImageJ's TIFF; return its path.

    Raises
    ------
    UserError
        No volume is written yet.
    MddError
        The run cannot be read, or the TIFF not written.
    """
    import tifffile

    with open_run(path, position=position, missing="ignore") as run:
        status = np.asarray(run.status)
        several = status.ndim > 1
        written = np.flatnonzero((status[:, channel] if several else status) == Status.WRITTEN)
        if not written.size:
            raise UserError("no volume is written yet")
        t = int(written[-1])
        volume = np.asarray(run.volume[t][channel] if several else run.volume[t])
        z_um, y_um, x_um = run.voxel_size_um
    place = (f"_p{position:03d}" if position else "") + (f"_c{channel}" if several else "")
    target = path.with_name(f"{path.stem}{place}_t{t:05d}.tif")
    with replacing(target) as partial:
        tifffile.imwrite(
            partial,
            volume,
            imagej=True,
            resolution=(1.0 / x_um, 1.0 / y_um),
            metadata={"axes": "ZYX", "spacing": z_um, "unit": "um"},
        )
    return target
