"""What the tests of the wire have in common: a small run, its frames, and a daemon's end that remembers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from microdiffusion.daemon.frame_ranges import FrameRanges
from microdiffusion.daemon.ingest import Ingest, PlainSink, RunState
from microdiffusion.daemon.receipt import Receipt
from microdiffusion.errors import MddError
from microdiffusion.frames import Frame, FrameInfo, StagePosition
from microdiffusion.header import RunHeader
from microdiffusion.sender.sender import Sender
from microdiffusion.wire import RunEnd, RunProgress

RUN = "0123456789abcdef" * 2
FREE_PORT = "tcp://127.0.0.1:*"
FRAMES_PER_SWEEP = 10


def make_header(**changes: Any) -> RunHeader:
    """Return the header of a run of 16 x 24 uint16 frames."""
    values: dict[str, Any] = {
        "run_id": RUN,
        "shape": (8, 16, 24),
        "voxel_size_um": (2.0, 0.5, 0.5),
        "z0_um": 0.0,
        "profile_weights": (1.0,),
        "profile_spacing_um": 6.0,
    }
    return RunHeader(**{**values, **changes})


def make_frame(seq: int, header: RunHeader | None = None) -> Frame:
    """Return frame `seq`; its pixels depend on `seq`, so a mix-up shows."""
    header = header or make_header()
    info = FrameInfo(
        seq=seq,
        sweep=seq // FRAMES_PER_SWEEP,
        index=seq % FRAMES_PER_SWEEP,
        count=FRAMES_PER_SWEEP,
        stage=StagePosition(6.0 * (seq % FRAMES_PER_SWEEP)),
        exposure_ms=10.0,
        camera_time_s=0.1 * seq,
    )
    pixels = np.random.default_rng(seq).integers(0, 4096, header.shape[1:]).astype(header.dtype)
    return Frame(info, pixels)


class Receiver:
    """An `Ingest` and everything that it handed on, of all runs.

    With `holds`, frames are recorded only by `release`. `received` is what an earlier one had.
    """

    def __init__(self, address: str = FREE_PORT, received: FrameRanges | None = None, **options: Any) -> None:
        self.received = received or FrameRanges()
        self.window_bytes = 1 << 20
        self.headers: list[RunHeader] = []
        self.frames: list[Frame] = []
        self.reports: list[RunProgress] = []
        self.ends: list[RunEnd] = []
        self.declines: MddError | None = None
        self._sinks: dict[str, _Sink] = {}
        self._holding = threading.Lock()
        self._holds = False
        self._waiting: list[Receipt] = []
        self.ingest = Ingest(address, **options)
        self.ingest.start(self._on_start)
        self.address = self.ingest.address

    def hold(self) -> None:
        with self._holding:
            self._holds = True

    def release(self) -> None:
        with self._holding:
            self._holds = False
            waiting, self._waiting = self._waiting, []
        for receipt in waiting:
            receipt.recorded()

    def _on_start(self, header: RunHeader, owner: str = "") -> _Sink:
        if self.declines is not None:
            raise self.declines
        self.headers.append(header)
        sink = self._sinks.setdefault(header.run_id, _Sink(self, header))
        sink.state = RunState.OPEN  # also one that had ended: it is resumed
        return sink

    def take(self, frame: Frame, receipt: Receipt) -> None:
        self.frames.append(frame)
        with self._holding:
            if self._holds:
                self._waiting.append(receipt)
                return
        receipt.recorded()

    @property
    def repeats(self) -> int:
        """Frames that came once more."""
        return sum(self.ingest.run_stats(run_id).duplicates for run_id in self._sinks)

    @property
    def seqs(self) -> list[int]:
        return [frame.info.seq for frame in self.frames]

    def stop(self) -> None:
        self.ingest.stop()
        self.ingest.raise_if_failed()

    def assert_intact(self) -> None:
        """Every frame that was handed on is the one that was sent."""
        for frame in self.frames:
            sent = make_frame(frame.info.seq, self.headers[-1])
            assert frame.info == sent.info
            np.testing.assert_array_equal(frame.pixels, sent.pixels)


class _Sink(PlainSink):
    """A run of a `Receiver`."""

    def __init__(self, receiver: Receiver, header: RunHeader) -> None:
        super().__init__(header, receiver.frames.append, receiver.window_bytes)
        self.received = receiver.received
        self.frame = receiver.take  # type: ignore[method-assign]
        self.progress = receiver.reports.append  # type: ignore[method-assign]
        self._ends = receiver.ends

    def end(self, message: RunEnd) -> None:
        self._ends.append(message)
        super().end(message)


@contextmanager
def receiving(
    address: str = FREE_PORT, received: FrameRanges | None = None, **options: Any
) -> Iterator[Receiver]:
    receiver = Receiver(address, received, **options)
    try:
        yield receiver
    finally:
        receiver.stop()


@contextmanager
def sending(address: str, **options: Any) -> Iterator[Sender]:
    header = options.pop("header", None) or make_header()
    sender = Sender(address, header, buffer_bytes=options.pop("buffer_bytes", 1 << 20), **options)
    sender.start()
    try:
        yield sender
    finally:
        sender.finish(timeout_s=0)


def put_all(sender: Sender, seqs: range) -> list[bool]:
    return [sender.put(frame.info, frame.pixels) for frame in map(make_frame, seqs)]


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "what the test waits for did not happen"
        time.sleep(0.005)
