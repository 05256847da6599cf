"""Checks of what one file of a run holds of one position: codes, frames, volumes, counts.

Statuses and numbers of frames are read before what they announce. One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.errors import DamagedError
from microdiffusion.runfile.files import RunFile
from microdiffusion.runfile.pyramid import coarser
from microdiffusion.runfile.schema import (
    CHECKED,
    EFFORTS,
    RUNTIMES,
    SERVED,
    Status,
    position_prefix,
    recorded_fields,
)

MOST_FAULTS = 100
"""Faults of one kind that are told one by one."""


class PositionCheck:
    """One position in one file; arrays are (T, C) or (T, C, M).

    Parameters
    ----------
    part : RunFile
    position : int
    add : callable
        Takes a sentence for each thing that is wrong.
    closed : bool
        Whether the run is closed: then its counts and its rolling volumes are final.

    Attributes
    ----------
    status, received : (T, C)
        Statuses of the time points, and how many frames they have.
    seqs : (N,) int64
        Numbers of the frames.
    frames, volumes : int
        Frames and written volumes.
    """

    def __init__(self, part: RunFile, position: int, add: Callable[[str], None], *, closed: bool) -> None:
        plan = part.plan
        self._part, self._add, self._closed = part, add, closed
        self._prefix = position_prefix(position)
        self._name = plan.header.positions[position] if position else ""
        self._channels, self._depth = plan.header.channels, plan.header.shape[0]
        self._lead = (plan.time_points, len(self._channels))
        # Statuses and seqs first: what they announce was written before them.
        self.status = self._values("status")
        self._seq = self._frame_values("seq")
        self._recorded = [field.name for field in recorded_fields(plan.minor)]
        self.received = np.count_nonzero(self._seq >= 0, axis=-1)
        self.seqs: NDArray[np.int64] = self._seq[self._seq >= 0]
        self.frames, self.volumes = self.seqs.size, int(np.count_nonzero(self.status == Status.WRITTEN))

    def where(self, t: int, channel: int) -> str:
        """Return a time point's name."""
        text = f"sweep {self._part.plan.first_time_point + t}"
        text += f" of channel {self._channels[channel]}" if len(self._channels) > 1 else ""
        return text + (f" of position {self._name}" if self._name else "")

    @property
    def planes(self) -> int:
        """Amount to read: one plane for each frame, Z for each volume."""
        return self.frames + self.volumes * self._depth

    def verify(self) -> Iterator[int]:
        """Check everything of this position; yield the planes of each frame and volume as it is done."""
        self._codes()
        yield from self._frames()
        yield from self._volumes()
        if self._closed:
            self._counts()
            self._live()

    def _codes(self) -> None:
        sizes = {
            "status": len(Status),
            "effort": len(EFFORTS),
            "later": 2,
            "merged": 2,
            "served": len(SERVED),
            "runtime": len(RUNTIMES),
        }
        for name, size in sizes.items():
            values = self._values(name)
            for t, channel in np.argwhere(values >= size)[:MOST_FAULTS].tolist():
                code = int(values[t, channel])
                self._add(f"{self.where(t, channel)} has the unknown code {code} in /mdd/{name}")

    def _frames(self) -> Iterator[int]:
        columns = {name: self._frame_values(name) for name in (*self._recorded, "crc32")}
        rows = np.empty(self._seq.shape, CHECKED)
        for name in CHECKED.names or ():
            rows[name] = columns[name]
        sums, checks = columns["crc32"], self._frame_values("check")
        lacking = {name: ~np.isfinite(columns[name]) for name in self._recorded}
        images = f"{self._prefix}projections"
        for t, channel, slot in np.argwhere(self._seq >= 0).tolist():
            what = f"frame {slot} (seq {self._seq[t, channel, slot]}) of {self.where(t, channel)}"
            for name, absent in lacking.items():
                if absent[t, channel, slot]:
                    self._add(f"{what} has no {name}")
            if crc32(rows[t, channel, slot].tobytes()) != checks[t, channel, slot]:
                self._add(f"{what} was changed: its number, place, time or checksum")
            if self._sum(images, (*self._index(t, channel), slot)) != sums[t, channel, slot]:
                self._add(f"{what} has the wrong checksum")
            yield 1

    def _volumes(self) -> Iterator[int]:
        sums, acquired_s = self._values("crc32"), self._values("acquired_s")
        served, reasons = self._values("served"), self._values("reason")
        volumes = f"{self._prefix}volume"
        beside = self._sums_beside()
        for t, channel in np.argwhere(self.status == Status.WRITTEN).tolist():
            what = f"the volume of {self.where(t, channel)}"
            content = self._item(volumes, self._index(t, channel))
            if content is None or _crc32(content) != sums[t, channel]:
                self._add(f"{what} has the wrong checksum")
            self._beside(t, channel, what, content, beside)
            if not np.isfinite(acquired_s[t, channel]):
                self._add(f"{what} has no time")
            if served[t, channel] == 0:
                self._add(f"{what} does not say which answer it is")
            if reasons[t, channel]:
                self._add(f"{what} is written, and has a reason why it should not be")
            yield self._depth
        for t, channel in np.argwhere((self.status > Status.WRITTEN) & (reasons == b"")).tolist():
            self._add(f"{self.where(t, channel)} has no volume, and no reason for it")

    def _sums_beside(self) -> dict[str, NDArray[Any]]:
        """Return the checksums of levels and uncertainty, once for all volumes."""
        plan = self._part.plan
        names = [f"pyramid_crc32/{level}" for level in range(1, len(plan.pyramid) + 1)]
        if plan.uncertainty:
            names += ["has_uncertainty", "uncertainty_crc32"]
        return {name: self._values(name) for name in names}

    def _beside(
        self, t: int, channel: int, what: str, volume: NDArray[Any] | None, sums: dict[str, NDArray[Any]]
    ) -> None:
        """Check the coarser levels of a volume, and its uncertainty."""
        plan, index = self._part.plan, self._index(t, channel)
        if volume is None:  # of the volume it is known already
            return
        with np.errstate(all="ignore"):  # damaged voxels may be anything
            levels = coarser(volume, plan.pyramid)
        for level, content in enumerate(levels, 1):
            found = self._sum(f"{self._prefix}pyramid/{level}", index)
            if found != sums[f"pyramid_crc32/{level}"][t, channel]:
                self._add(f"level {level} of {what} has the wrong checksum")
            elif found != _crc32(content):
                self._add(f"level {level} of {what} is not made of its voxels")
        if plan.uncertainty and sums["has_uncertainty"][t, channel]:
            found = self._sum(f"{self._prefix}uncertainty", index)
            if found != sums["uncertainty_crc32"][t, channel]:
                self._add(f"the uncertainty of {what} has the wrong checksum")

    def _counts(self) -> None:
        expected = self._values("frames_expected").astype(np.int64)
        missing = np.where(self.status != 0, np.maximum(expected - self.received, 0), 0)
        for name, truth in (("received", self.received), ("missing", missing)):
            values = self._values(f"frames_{name}")
            for t, channel in np.argwhere(values != truth)[:MOST_FAULTS].tolist():
                self._add(
                    f"{self.where(t, channel)} says that {values[t, channel]} frames are {name}, "
                    f"and {truth[t, channel]} are"
                )

    def _live(self) -> None:
        plan = self._part.plan
        if not plan.live or plan.segment:
            return
        counters = self._part.read(f"{self._prefix}live/counter").reshape(-1)
        sums = self._part.read(f"{self._prefix}live/crc32").reshape(2, -1)
        volumes = f"{self._prefix}live/volume"
        for channel in np.flatnonzero(counters > 0).tolist():
            newest = int(counters[channel] % 2)
            index = (newest,) if len(self._channels) == 1 else (newest, channel)
            if self._sum(volumes, index) != sums[newest, channel]:
                of = self.where(0, channel).partition(" of ")[2]
                self._add(f"the rolling volume{of and ' of ' + of} has the wrong checksum")

    def _item(self, name: str, index: tuple[int, ...]) -> NDArray[Any] | None:
        """Return an image, None where HDF5 cannot unpack it."""
        try:
            return self._part.read(name, index)
        except DamagedError:
            return None

    def _sum(self, name: str, index: tuple[int, ...]) -> int:
        """Return the CRC-32 of an image; -1 where HDF5 cannot unpack it."""
        content = self._item(name, index)
        return -1 if content is None else _crc32(content)

    def _frame_values(self, name: str) -> NDArray[Any]:
        frames = self._part.plan.frames_per_sweep
        return self._part.read(f"{self._prefix}mdd/frames/{name}").reshape(*self._lead, frames)

    def _values(self, name: str) -> NDArray[Any]:
        return self._part.read(f"{self._prefix}mdd/{name}").reshape(self._lead)

    def _index(self, t: int, channel: int) -> tuple[int, ...]:
        return (t,) if len(self._channels) == 1 else (t, channel)


def _crc32(content: NDArray[Any]) -> int:
    return int(crc32(content.reshape(-1).view(np.uint8).data))
