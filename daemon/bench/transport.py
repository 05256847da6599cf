"""The stages round the engine: frames over the wire, volumes into the run file, as the daemon does both.

`Wire` owns a sender and the daemon's `Ingest`, loopback in one process; `Disk` a real recorder in a temporary
folder, and a file beside it that takes the same bytes raw. Both are context managers, used on one thread.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion.daemon.ingest import Ingest, PlainSink
from microdiffusion.daemon.recorder import Recorder
from microdiffusion.errors import RunError
from microdiffusion.sender import Sender

if TYPE_CHECKING:
    from types import TracebackType

    from microdiffusion.config import RecorderConfig
    from microdiffusion.frames import Frame, Reconstruction
    from microdiffusion.header import RunHeader

_PATIENCE_S = 60.0
_BUFFER_BYTES = 1 << 28


class Wire:
    """Sends frames through ZeroMQ and takes them out at the other end, checked and answered."""

    def __init__(self, header: RunHeader) -> None:
        self._header = header
        self._got: list[Frame] = []
        self._wanted = 0
        self._there = threading.Event()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Wire:
        ingest = Ingest("tcp://127.0.0.1:*", on_start=lambda header: PlainSink(self._take))
        ingest.start()
        self._stack.callback(ingest.stop)
        # Every frame of a run is answered within its sweep, so the buffer never holds more than one.
        self._sender = Sender(ingest.address, self._header, buffer_bytes=_BUFFER_BYTES)
        self._sender.start()
        self._stack.callback(self._sender.finish, timeout_s=5.0)
        self._ingest = ingest
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def carry(self, frames: list[Frame]) -> tuple[list[Frame], float]:
        """Send a sweep's frames; return what came out, and the seconds from the first to the last of them.

        Raises
        ------
        RunError
            They did not come through.
        """
        self._got, self._wanted = [], len(frames)
        self._there.clear()
        begun = time.perf_counter()
        for frame in frames:
            self._sender.wait_for_room(_PATIENCE_S)
            self._sender.put(frame.info, frame.pixels)
        arrived = self._there.wait(_PATIENCE_S)
        seconds = time.perf_counter() - begun
        self._sender.raise_if_failed()
        self._ingest.raise_if_failed()
        if not arrived:
            raise RunError(f"{len(self._got)} of {len(frames)} frames came through the loopback: try again.")
        return self._got, seconds

    def _take(self, frame: Frame) -> None:
        self._got.append(frame)
        if len(self._got) == self._wanted:
            self._there.set()


class Disk:
    """Writes frames and volumes by the recorder, and as many bytes raw; everything is removed at the end.

    Parameters
    ----------
    header : RunHeader
    config : RecorderConfig
    volumes : int
        Most that will be written.
    """

    def __init__(self, header: RunHeader, config: RecorderConfig, volumes: int) -> None:
        self._header = header
        self._config = config.model_copy(update={"time_points": volumes})
        self._stack = contextlib.ExitStack()
        self._written = threading.Event()
        self.bytes = 0

    def __enter__(self) -> Disk:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mdd-bench-")))
        self._recorder = Recorder(
            self.folder / "run.h5",
            self._header,
            self._config,
            frames_per_sweep=self._header.frames_per_sweep,
            configuration="{}",
            provenance={},
            on_written=lambda written: self._written.set(),
        )
        self._recorder.start()
        self._stack.callback(self._recorder.stop)
        self._raw = os.open(self.folder / "raw", os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        self._stack.callback(os.close, self._raw)
        self._at = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, frames: list[Frame], result: Reconstruction) -> float:
        """Record a sweep and its volume; return the seconds until a reader can see it.

        Raises
        ------
        RunError, DiskError
            It was not written.
        """
        self._written.clear()
        begun = time.perf_counter()
        for frame in frames:
            while not self._recorder.put_frame(frame):
                self._recorder.raise_if_failed()
                time.sleep(0.001)
        info = frames[0].info
        key = info.sweep, info.channel, info.position
        while not self._recorder.put_volume(*key, result, acquired_s=0.0, received_s=time.monotonic()):
            self._recorder.raise_if_failed()
            time.sleep(0.001)
        there = self._written.wait(_PATIENCE_S)
        seconds = time.perf_counter() - begun
        self._recorder.raise_if_failed()
        if not there:
            raise RunError(f"Volume {info.sweep} was not written within {_PATIENCE_S:g} s: is the disk well?")
        pixel = 2 if self._header.dtype == "uint16" else 4
        self.bytes = sum(frame.pixels.nbytes for frame in frames) + result.volume.size * pixel
        return seconds

    def write_raw(self) -> float:
        """Write as many bytes as the last volume took to a reserved file in one go; return the seconds.

        The policy is the recorder's: forced to the disk where `durable` is set, else left to the system.
        """
        data = memoryview(bytes(self.bytes))
        if hasattr(os, "posix_fallocate"):
            with contextlib.suppress(OSError):
                os.posix_fallocate(self._raw, self._at, self.bytes)
        os.lseek(self._raw, self._at, os.SEEK_SET)
        begun = time.perf_counter()
        while data:
            data = data[os.write(self._raw, data) :]
        if self._config.durable:
            getattr(os, "fdatasync", os.fsync)(self._raw)
        seconds = time.perf_counter() - begun
        self._at += self.bytes
        return seconds
