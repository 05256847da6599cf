"""Following a run while it goes on: each volume as it comes, and the rolling volume.

Owns the waiting: a follower looks, yields what is new, and rests. It ends when the run is closed, or when
nothing came for as long as its caller chose. Used on the thread of the `Run` that it follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from microdiffusion.errors import InputFileError

if TYPE_CHECKING:
    from microdiffusion.runfile.files import RunFile
    from microdiffusion.runfile.reader import Run

_LIVE_ATTEMPTS = 100
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LiveVolume:
    """A rolling volume, from the newest frame and those before it, a sweep's worth.

    Attributes
    ----------
    number : int
        Counts the updates, from 1.
    sweep, newest_seq : int
        The sweep of the newest frame in it, and that frame's `seq`.
    time_s : float
        Camera time of that frame, s since the start.
    volume : (Z, Y, X) uint16 or float32
    """

    number: int
    sweep: int
    newest_seq: int
    time_s: float
    volume: NDArray[Any]


def follow(
    run: Run, channel: int | None, timeout_s: float | None, poll_s: float
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (t, volume) for every written time point; see `Run.follow`."""
    seen: set[int] = set()

    def new() -> Iterator[tuple[int, NDArray[Any]]]:
        for t in run.written(channel).tolist():
            if t not in seen:
                seen.add(t)
                alone = channel is None or len(run.header.channels) == 1
                yield t, run.volume[t] if alone else run.volume[t, channel]

    return _polled(run, new, timeout_s, poll_s)


def follow_live(run: Run, channel: int, timeout_s: float | None, poll_s: float) -> Iterator[LiveVolume]:
    """Yield each rolling volume that is newer than the one before; see `Run.follow_live`."""
    seen = 0

    def new() -> Iterator[LiveVolume]:
        nonlocal seen
        newest = run.live(channel)
        if newest is not None and newest.number != seen:
            seen = newest.number
            yield newest

    return _polled(run, new, timeout_s, poll_s)


def read_live(first: RunFile, prefix: str, place: tuple[int, ...]) -> LiveVolume | None:
    """Return the newest rolling volume of a position and channel; None where there is none yet."""

    def view(name: str) -> Any:
        return first.view(f"{prefix}live/{name}")

    # The writer fills the buffer that the counter does not name, then counts on. So a copy is whole where the
    # counter stood still meanwhile; the checksum holds wherever bytes arrive in any order.
    for _ in range(_LIVE_ATTEMPTS):
        number = int(view("counter")[place])
        if number <= 0:
            return None
        index = (number % 2, *place)
        volume = np.array(view("volume")[index])
        sweep, newest_seq = int(view("sweep")[index]), int(view("newest_seq")[index])
        found = LiveVolume(number, sweep, newest_seq, float(view("time_s")[index]), volume)
        whole = crc32(volume.reshape(-1).view(np.uint8).data) == int(view("crc32")[index])
        if whole and number == int(view("counter")[place]):
            return found
        time.sleep(0.001)
    raise InputFileError(f"{first.path}: no rolling volume comes whole: the file is damaged.")


def _polled(
    run: Run, new: Callable[[], Iterator[_T]], timeout_s: float | None, poll_s: float
) -> Iterator[_T]:
    """Yield what is new until the run is closed, or nothing came for `timeout_s` (None: waits for ever)."""
    last_s = time.monotonic()
    while True:
        closed = run.closed  # before looking, so that nothing written before the close is missed
        came = False
        for one in new():
            came = True
            yield one
            last_s = time.monotonic()
        if came:
            continue
        if closed or (timeout_s is not None and time.monotonic() - last_s > timeout_s):
            return
        time.sleep(poll_s)
