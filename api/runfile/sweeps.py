"""Sweeps from the recorded frames of a time point; shared by the reader and the recorder. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.frames import FRAME_FIELDS, Frame, StagePositions, Sweep, frame_info
from microdiffusion.runfile.schema import FRAME_COLUMNS, recorded_fields


@dataclass(slots=True)
class FrameTable:
    """The slots of one time point: M frames, present or not.

    Attributes
    ----------
    columns : dict of (M,) arrays
        Recorded fields of the frames (`schema.FRAME_COLUMNS`), by name.
    pixels : (M, Y, X) uint16 or float32
    expected : int
        How many frames the sweep has, as its frames say; 0: unknown.
    """

    columns: dict[str, NDArray[Any]]
    pixels: NDArray[Any]
    expected: int

    @classmethod
    def read(cls, read: Callable[[str], NDArray[Any]], minor: int) -> FrameTable:
        """Return the table of a time point: `read` returns its part of a dataset, `minor` is the file's."""
        names = [field.name for field in recorded_fields(minor)]
        # A frame with a seq is complete, so the seq is read first.
        names.sort(key=lambda name: name != "seq")
        columns = {name: read(f"mdd/frames/{name}") for name in names}
        return cls(columns, read("projections"), int(read("mdd/frames_expected")))

    @classmethod
    def empty(cls, pixels: NDArray[Any]) -> FrameTable:
        """Return a table without frames, with room for these pixels."""
        columns = {
            name: np.full(len(pixels), column.empty, column.dtype) for name, column in FRAME_COLUMNS.items()
        }
        return cls(columns, pixels, 0)

    @property
    def present(self) -> NDArray[np.bool_]:
        """The slots that have a frame, (M,) bool."""
        there: NDArray[np.bool_] = (self.columns["seq"] >= 0) & np.isfinite(self.columns["z_um"])
        return there

    def put(self, frame: Frame) -> None:
        """Add a frame that is not in the file yet, if its slot is free."""
        slot = frame.info.index
        if 0 <= slot < len(self.pixels) and self.columns["seq"][slot] < 0:
            for field in FRAME_FIELDS:
                if field.name in self.columns:
                    self.columns[field.name][slot] = field.plain(frame.info)
            self.pixels[slot] = frame.pixels
            self.expected = max(self.expected, frame.info.count)

    def frames(self, sweep: int, channel: int, position: int) -> list[Frame]:
        """Return the frames that are present, in the order of their slots."""
        kept = [field for field in FRAME_FIELDS if field.name in self.columns]
        found = []
        for slot in np.flatnonzero(self.present).tolist():
            values = {field.name: field.convert(self.columns[field.name][slot]) for field in kept}
            values |= {"sweep": sweep, "channel": channel, "position": position}
            values |= {"index": slot, "count": max(self.expected, slot + 1)}
            found.append(Frame(frame_info(values), self.pixels[slot]))
        return found


def assemble(rows: FrameTable, sweep: int, channel: int, position: int) -> Sweep:
    """Return the frames that are present as a sweep, ascending in z, the held-out ones apart."""
    stage, time_s = StagePositions.read(rows.columns), rows.columns["camera_time_s"]
    order = stage.order()
    there = rows.present
    judging = rows.columns["held_out"] != 0
    kept, judges = (order[(there & (judging == flag))[order]] for flag in (False, True))
    return Sweep(
        sweep=sweep,
        channel=channel,
        position=position,
        stage=stage[kept],
        projections=rows.pixels[kept].astype(np.float32),
        held_out_stage=stage[judges],
        held_out=rows.pixels[judges].astype(np.float32),
        missing=max(rows.expected - int(np.count_nonzero(there)), 0),
        time_s=float(np.max(time_s[there], initial=-np.inf)) if there.any() else float("nan"),
        slots=np.concatenate([kept, judges]),
    )
