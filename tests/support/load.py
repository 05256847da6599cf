"""A stream of 512 x 512 uint16 frames at a steady rate: what is lost, what grows, how late frames are.

`run_load` starts two processes and watches them: the sender (`Sender`) paces the frames as a camera does,
and never waits; the receiver is `Ingest` and `Assembler` as in the daemon, with no engine behind them.
Memory is the receiver's resident set; its slope is fitted from the first minute on (of a shorter run, from a
third on). The latency of a frame is from `put` until ingest hands it on; a frame's age when it was
acknowledged is not measured. The tests keep it up for ten seconds, `benchmarks/load.py` for ten minutes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq

from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.ingest import Ingest, PlainSink
from microdiffusion.daemon.receipt import Receipt
from microdiffusion.daemon.recorder.opening import create_recorder
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.daemon.runs.assembler import Assembler, LostSweep
from microdiffusion.frames import Frame, FrameInfo, StagePosition, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.sender.sender import Sender
from microdiffusion.wire.security import ServerKeys

SHAPE = (512, 512)
FRAMES_PER_SWEEP = 40
SWEEPS_PER_FILE = 60
"""1.4 GB of a run file: a new one every five seconds at 500 frames a second."""
FILES_KEPT = 2
BUFFER_BYTES = 256_000_000
TIMEOUT_S = 5.0
QUANTILES = ("0.5", "0.99", "0.999", "1")
OF_THE_SENDER = ("put", "dropped", "sent", "resent", "acknowledged", "refused", "journaled", "ended")
PATIENCE_S = 60.0


def image() -> np.ndarray:
    """Return a frame's pixels (Y, X) uint16, noise of 12 bits."""
    return np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)


def run_header(**changes: Any) -> RunHeader:
    """Return the header of a run of such frames."""
    values: dict[str, Any] = {
        "run_id": uuid.uuid4().hex,
        "shape": (1, *SHAPE),
        "voxel_size_um": (1.0, 1.0, 1.0),
        "z0_um": 0.0,
        "profile_weights": (1.0,),
        "profile_spacing_um": 1.0,
    }
    return RunHeader(**{**values, **changes})


def some_keys() -> ServerKeys:
    """Return keys of a daemon that trusts itself alone."""
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return ServerKeys(public, secret)


class Latencies:
    """A histogram of times on a logarithmic scale: it does not grow."""

    edges_s = np.geomspace(1e-5, 100.0, 281)

    def __init__(self) -> None:
        self._counts = np.zeros(len(self.edges_s) + 1, np.int64)

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[np.searchsorted(self.edges_s, seconds)] += 1

    def quantile_ms(self, share: float) -> float:
        """Return the upper edge of the bin that holds this quantile, ms."""
        at = int(np.searchsorted(np.cumsum(self._counts), share * self._counts.sum()))
        return round(1e3 * float(self.edges_s[min(at, len(self.edges_s) - 1)]), 3)


class LoadSink(PlainSink):
    """Frames to sweeps, and sweeps to nowhere; with a recorder, frames are acknowledged when written."""

    def __init__(self, header: RunHeader, recorder: Recorder | None) -> None:
        super().__init__(header, self._assemble, window_bytes=32 << 20)
        self.latencies = Latencies()
        self.frames = self.sweeps = self.lost = 0
        self._recorder = recorder
        self._assembler = Assembler(TIMEOUT_S)
        self._assembling = threading.Lock()

    def frame(self, frame: Frame, receipt: Receipt) -> None:
        """Take a frame, as the daemon's own runs do."""
        self.latencies.add(time.monotonic() - frame.info.camera_time_s)
        if self._recorder is None:
            super().frame(frame, receipt)
            return
        self._recorder.put_frame(frame, receipt)
        self._assemble(frame)

    def _assemble(self, frame: Frame) -> None:
        self.frames += 1
        with self._assembling:
            self._settle(self._assembler.add(frame))

    def tick(self) -> None:
        """Give up sweeps that wait too long."""
        with self._assembling:
            self._settle(self._assembler.tick(time.monotonic()))

    def _settle(self, over: list[Sweep | LostSweep]) -> None:
        for item in over:
            self.lost += isinstance(item, LostSweep)
            self.sweeps += not isinstance(item, LostSweep)


def _receive(pipe: Connection, folder: str | None, keys: ServerKeys | None, report_s: float) -> None:
    """Be the daemon until the run has ended; say each second how it stands."""
    process = psutil.Process()
    sinks: list[LoadSink] = []
    recorders: list[Recorder] = []

    def on_start(header: RunHeader, owner: str) -> LoadSink:
        if folder is not None:
            recorders.append(_recorder(Path(folder), header))
        sinks.append(LoadSink(header, recorders[-1] if recorders else None))
        return sinks[-1]

    ingest = Ingest("tcp://127.0.0.1:*", security=keys)
    ingest.start(on_start)
    pipe.send(ingest.address)
    emptied: set[Path] = set()
    begin = time.monotonic()
    while not sinks or not sinks[-1].ended.wait(0):
        time.sleep(report_s)
        ingest.raise_if_failed()
        for recorder in recorders:
            recorder.raise_if_failed()
            for path in recorder.paths[:-FILES_KEPT]:
                if path not in emptied:
                    emptied.add(path)
                    _empty(path)
        if sinks:
            sinks[-1].tick()
        frames = sinks[-1].frames if sinks else 0
        pipe.send((time.monotonic() - begin, frames, process.memory_info().rss))
    sink, refused = sinks[-1], ingest.refused
    stats = ingest.run_stats(sink.header.run_id)
    ingest.stop()
    for recorder in recorders:
        recorder.stop()
    pipe.send(
        {
            "announced": sink.last_word.announced if sink.last_word else None,
            "dropped_by_sender": sink.last_word.dropped if sink.last_word else None,
            "received": stats.frames,
            "duplicates": stats.duplicates,
            "refused": refused,
            "sweeps": sink.sweeps,
            "sweeps_lost": sink.lost,
            "in_the_file": sum(r.data.ledger.received - r.data.ledger.unplaced for r in recorders)
            if recorders
            else None,
            "latency_ms": {
                str(share): sink.latencies.quantile_ms(share) for share in (0.5, 0.99, 0.999, 1.0)
            },
            "cpu_s": round(sum(process.cpu_times()[:2]), 1),
        }
    )


def _recorder(folder: Path, header: RunHeader) -> Recorder:
    recorder = create_recorder(
        folder / "load.h5",
        header,
        RecorderConfig(output=folder, time_points=SWEEPS_PER_FILE),
        frames_per_sweep=FRAMES_PER_SWEEP,
        configuration="{}",
        provenance={},
        on_written=lambda _: None,
    )
    recorder.start()
    return recorder


def _empty(path: Path) -> None:
    """Give the room of a file back while it stays open and as long as it is."""
    size = path.stat().st_size
    subprocess.run(["fallocate", "--punch-hole", "--offset", "0", "--length", str(size), path], check=True)


def _drive(pipe: Connection, address: str, frames: int, rate_hz: float, keys: ServerKeys | None) -> None:
    """Be a camera: a frame whenever its time has come, whether there is room or not."""
    process = psutil.Process()
    pixels = image()
    header = run_header(shape=(8, *SHAPE), frames_per_sweep=FRAMES_PER_SWEEP)
    sender = Sender(address, header, buffer_bytes=BUFFER_BYTES, security=keys and keys.as_client())
    sender.start()
    begin = time.monotonic()
    rss, latest_s, slowest_s = process.memory_info().rss, 0.0, 0.0
    for seq in range(frames):
        due_s = begin + seq / rate_hz
        while (now_s := time.monotonic()) < due_s:
            time.sleep(due_s - now_s)
        latest_s = max(latest_s, now_s - due_s)
        sweep, index = divmod(seq, FRAMES_PER_SWEEP)
        stage = StagePosition(float(index))
        sender.put(FrameInfo(seq, sweep, index, FRAMES_PER_SWEEP, stage, camera_time_s=now_s), pixels)
        slowest_s = max(slowest_s, time.monotonic() - now_s)
        if seq == frames // 3:
            rss = process.memory_info().rss
    seconds = time.monotonic() - begin
    stats = sender.finish(timeout_s=PATIENCE_S)
    grown = process.memory_info().rss - rss
    sender.raise_if_failed()
    pipe.send(
        {
            "seconds": round(seconds, 2),
            "frames_per_s": round(frames / seconds, 2),
            "slowest_put_ms": round(1e3 * slowest_s, 2),
            "latest_frame_ms": round(1e3 * latest_s, 2),
            "grown_mb": round(grown / 1e6, 2),
            "cpu_s": round(sum(process.cpu_times()[:2]), 1),
            **{
                name: value
                for name, value in asdict(stats).items()
                if name
                in ("put", "dropped", "sent", "resent", "acknowledged", "refused", "journaled", "ended")
            },
        }
    )


def slope_mb_per_min(samples: list[tuple[float, int, int]]) -> float:
    """Return the growth of the resident set: least squares over (s, frames, bytes), without the beginning."""
    begin = next((at_s for at_s, frames, _ in samples if frames), 0.0)
    settled_s = begin + min(60.0, (samples[-1][0] - begin) / 3)
    minutes, mb = zip(*((at_s / 60, rss / 1e6) for at_s, _, rss in samples if at_s >= settled_s), strict=True)
    return float(np.polyfit(minutes, mb, 1)[0]) if len(minutes) > 2 else float("nan")


def run_load(
    variant: str,
    *,
    seconds: float,
    rate_hz: float = 500.0,
    curve: bool = False,
    folder: Path | None = None,
    report_s: float = 1.0,
) -> dict[str, Any]:
    """Send frames for so long; return what became of them, and of the memory.

    Raises
    ------
    RuntimeError
        One of the processes failed.
    """
    keys = some_keys() if curve else None
    with contextlib.ExitStack() as stack:
        room: str | None = None
        if variant == "recorder":
            room = stack.enter_context(tempfile.TemporaryDirectory(prefix="mdd-load-", dir=folder))
        receiver, heard = stack.enter_context(_process(_receive, room, keys, report_s))
        address = heard.recv()
        driver, driven = stack.enter_context(
            _process(_drive, address, round(seconds * rate_hz), rate_hz, keys)
        )
        samples: list[tuple[float, int, int]] = []
        result: dict[str, Any] | None = None
        while result is None:
            if not heard.poll(PATIENCE_S):
                raise RuntimeError("the receiver has nothing more to say")
            message = heard.recv()
            if isinstance(message, dict):
                result = message
            else:
                samples.append(message)
        sender = driven.recv() if driven.poll(PATIENCE_S) else {}
        driver.join(PATIENCE_S)
        receiver.join(PATIENCE_S)
    rss = [each[2] / 1e6 for each in samples]
    return {
        "variant": variant,
        "encrypted": curve,
        "rate_hz": rate_hz,
        "lost": (result["announced"] or 0) - result["received"],
        **result,
        "slope_mb_per_min": round(slope_mb_per_min(samples), 3),
        "rss_mb": {
            "settled": round(rss[len(rss) // 3], 1),
            "last": round(rss[-1], 1),
            "most": round(max(rss), 1),
        },
        "sender": sender,
    }


@contextlib.contextmanager
def _process(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[Any, Connection]]:
    """Run `target(pipe, *arguments)` in a process of its own; it does not outlive the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.terminate()
        process.join()
        ours.close()
