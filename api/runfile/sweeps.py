"""A sweep from what a run file keeps of its frames; shared by the reader and the recorder. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.frames import Frame, FrameInfo, Sweep


@dataclass(slots=True)
class FrameTable:
    """The slots of one time point: M frames, present or not.

    Attributes
    ----------
    z_um, time_s : (M,) float64
        Slab's centre and camera time.
    held_out : (M,) bool
    seq : (M,) int64
        -1: no frame.
    pixels : (M, Y, X) uint16 or float32
    expected : int
        How many frames the sweep has, as its frames say; 0: unknown.
    """

    z_um: NDArray[np.float64]
    time_s: NDArray[np.float64]
    held_out: NDArray[np.bool_]
    seq: NDArray[np.int64]
    pixels: NDArray[Any]
    expected: int

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which slots have a frame, (M,) bool."""
        return (self.seq >= 0) & np.isfinite(self.z_um)

    def put(self, frame: Frame) -> None:
        """Take in a frame that has its slot, and is not in the file yet."""
        info = frame.info
        if 0 <= info.index < len(self.z_um) and self.seq[info.index] < 0:
            self.z_um[info.index] = info.z_um
            self.time_s[info.index] = info.camera_time_s
            self.held_out[info.index] = info.held_out
            self.pixels[info.index] = frame.pixels
            self.seq[info.index] = info.seq
            self.expected = max(self.expected, info.count)

    def frames(self, sweep: int, channel: int, position: int) -> list[Frame]:
        """Return the frames that are there, in the order of their slots; the exposure is not kept."""
        return [
            Frame(
                FrameInfo(
                    seq=int(self.seq[slot]),
                    sweep=sweep,
                    index=slot,
                    count=max(self.expected, slot + 1),
                    z_um=float(self.z_um[slot]),
                    channel=channel,
                    position=position,
                    held_out=bool(self.held_out[slot]),
                    camera_time_s=float(self.time_s[slot]),
                ),
                self.pixels[slot],
            )
            for slot in np.flatnonzero(self.present).tolist()
        ]


def assemble(rows: FrameTable, sweep: int, channel: int, position: int) -> Sweep:
    """Return the frames that are there as a sweep, ascending in z, the held-out ones apart."""
    order = np.argsort(rows.z_um, kind="stable")
    there = rows.present
    kept, judges = (order[(there & (rows.held_out == flag))[order]] for flag in (False, True))
    return Sweep(
        sweep=sweep,
        channel=channel,
        position=position,
        z_um=rows.z_um[kept],
        projections=rows.pixels[kept].astype(np.float32),
        held_out_z_um=rows.z_um[judges],
        held_out=rows.pixels[judges].astype(np.float32),
        missing=max(rows.expected - int(np.count_nonzero(there)), 0),
        time_s=float(np.max(rows.time_s[there], initial=-np.inf)) if there.any() else float("nan"),
        slots=np.concatenate([kept, judges]),
    )
