"""What the tests of ingest have in common: a sink that remembers, a daemon with such sinks, a peer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zmq

from microdiffusion import wire
from microdiffusion.daemon.ingest import Ingest, PlainSink
from microdiffusion.daemon.receipt import Receipt
from microdiffusion.frames import Frame, FrameInfo
from microdiffusion.header import RunHeader
from microdiffusion.wire.security import ClientKeys
from support.wire_support import FREE_PORT, RUN, make_frame, make_header


class RememberingSink(PlainSink):
    """Keeps all that it is told. With `holds`, a frame is recorded only by `release`."""

    def __init__(
        self, header: RunHeader | None = None, *, holds: bool = False, window_bytes: int = 1 << 20
    ) -> None:
        self.frames: list[Frame] = []
        super().__init__(header or make_header(), self.frames.append, window_bytes)
        self.holds = holds
        self.waiting: deque[Receipt] = deque()
        self.starts: list[int] = []
        self.reports: list[wire.RunProgress] = []
        self.ends: list[wire.RunEnd] = []
        self.silences: list[str] = []
        self.fails_with: Exception | None = None

    @property
    def seqs(self) -> list[int]:
        return [frame.info.seq for frame in self.frames]

    def release(self) -> None:
        """Say that everything is recorded, and will be."""
        self.holds = False
        while self.waiting:
            self.waiting.popleft().recorded()

    def started(self, first_seq: int) -> None:
        self.starts.append(first_seq)

    def frame(self, frame: Frame, receipt: Receipt) -> None:
        if self.fails_with is not None:
            raise self.fails_with
        if self.holds:
            self.frames.append(frame)
            self.waiting.append(receipt)
        else:
            super().frame(frame, receipt)

    def progress(self, message: wire.RunProgress) -> None:
        self.reports.append(message)

    def end(self, message: wire.RunEnd) -> None:
        self.ends.append(message)
        super().end(message)

    def silent(self, reason: str) -> None:
        self.silences.append(reason)
        super().silent(reason)

    def assert_intact(self) -> None:
        """Every frame that was handed on is the one that was sent."""
        for frame in self.frames:
            sent = make_frame(frame.info.seq)
            assert frame.info == sent.info
            np.testing.assert_array_equal(frame.pixels, sent.pixels)


class Listener:
    """An `Ingest` whose runs each get a `RememberingSink`; `on_start` may be replaced."""

    def __init__(self, address: str = FREE_PORT, **options: Any) -> None:
        self.sinks: dict[str, list[RememberingSink]] = {}
        self.sink_options: dict[str, Any] = {}
        self.on_start: Callable[[RunHeader], RememberingSink] = self.new_sink
        self.ingest = Ingest(address, **options)
        self.ingest.start(lambda header, _: self.on_start(header))
        self.address = self.ingest.address

    def new_sink(self, header: RunHeader) -> RememberingSink:
        sink = RememberingSink(header, **self.sink_options)
        self.sinks.setdefault(header.run_id, []).append(sink)
        return sink

    @property
    def sink(self) -> RememberingSink:
        """The latest one of the run that all tests use."""
        return self.sinks[RUN][-1]

    @property
    def refused(self) -> dict[str, int]:
        return self.ingest.refused

    def stop(self) -> None:
        self.ingest.stop()
        self.ingest.raise_if_failed()


@contextmanager
def listening(address: str = FREE_PORT, **options: Any) -> Iterator[Listener]:
    listener = Listener(address, **options)
    try:
        yield listener
    finally:
        listener.stop()


class Peer:
    """A bare DEALER: a sender that says what it likes."""

    def __init__(self, address: str, *, keys: ClientKeys | None = None, **options: int) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        if keys is not None:
            keys.apply(self.socket)
        self.socket.connect(address)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._context.destroy(linger=0)

    def say(self, message: wire.Control | list[bytes]) -> None:
        self.socket.send_multipart(message if isinstance(message, list) else wire.encode(message))

    def hear(self) -> Any:
        assert self.socket.poll(5000), "no answer"
        return wire.decode(self.socket.recv_multipart())

    def hears_nothing(self, timeout_s: float = 0.2) -> bool:
        return not self.socket.poll(int(timeout_s * 1000))

    def start(self, attempt: int = 0, header: RunHeader | None = None, first_seq: int = 0) -> Any:
        """Say `start` and return the answer."""
        self.say(wire.RunStart(header=header or make_header(), attempt=attempt, first_seq=first_seq))
        return self.hear()

    def confirmed(self, count: int) -> list[int]:
        """Wait until `count` frames are acknowledged and return them."""
        seqs: list[int] = []
        while len(seqs) < count:
            answer = self.hear()
            assert isinstance(answer, wire.Ack), answer
            seqs.extend(answer.received)
        return seqs


def frame_parts(seq: int, run: str = RUN, header: RunHeader | None = None, **changes: object) -> list[bytes]:
    """Return the message of frame `seq`, with some of its places changed."""
    frame = make_frame(seq, header)
    values = {name: getattr(frame.info, name) for name in FrameInfo.__slots__}
    frame = Frame(FrameInfo(**{**values, **changes}), frame.pixels)
    return [bytes(part) for part in wire.encode_frame(run, frame)]


def end(announced: int, **changes: Any) -> wire.RunEnd:
    return wire.RunEnd(run=RUN, announced=announced, dropped=0, **changes)
