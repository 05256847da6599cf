"""How fast frames pass the wire, as a share of what bare pyzmq PUSH/PULL moves in the same run.

    python benchmarks/wire.py [--frames 2000] [--repeats 5]

Sender and receiver are two processes on one machine (tcp, loopback); frames are 512 x 512 uint16. Both
ways take turns; the medians are compared. The bare way neither copies into a buffer, nor checks, nor
acknowledges: it is the ceiling. `put` and `crc32` are timed alone, as the two costs that the safety has.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import threading
import time
import uuid
import zlib
from typing import Any

import numpy as np
import zmq

from microdiffusion.daemon.ingest import Ingest
from microdiffusion.run_header import RunHeader
from microdiffusion.sender import Sender
from microdiffusion.sweep import FrameInfo

SHAPE = (512, 512)
FRAME_MB = SHAPE[0] * SHAPE[1] * 2 / 1e6


def _image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)


def _push(address: str, frames: int) -> None:
    image = _image()
    context = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.connect(address)
    for _ in range(frames):
        push.send(image, copy=False)
    push.close()
    context.term()


def _send(address: str, frames: int) -> None:
    image = _image()
    header = RunHeader(
        run_id=uuid.uuid4().hex,
        shape=(1, *SHAPE),
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        profile_weights=(1.0,),
        profile_spacing_um=1.0,
    )
    sender = Sender(address, header, buffer_bytes=128 << 20)
    sender.start()
    for seq in range(frames):
        sender.wait_for_room(60.0)
        sender.put(FrameInfo(seq, seq, 0, 1, 0.0), image)
    sender.finish(timeout_s=60.0)
    sender.raise_if_failed()


def _in_process(target: Any, address: str, frames: int) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=target, args=(address, frames))
    process.start()
    return process


def measure_bare(frames: int) -> float:
    """Return frames per second of PUSH/PULL, from the first to the last receipt."""
    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    port = pull.bind_to_random_port("tcp://127.0.0.1")
    process = _in_process(_push, f"tcp://127.0.0.1:{port}", frames)
    pull.recv(copy=False)
    begin = time.perf_counter()
    for _ in range(frames - 1):
        pull.recv(copy=False)
    seconds = time.perf_counter() - begin
    process.join()
    pull.close()
    context.term()
    return (frames - 1) / seconds


def measure_wire(frames: int) -> float:
    """Return frames per second of Sender/Ingest, from the first to the last receipt."""
    times: list[float] = []
    done = threading.Event()

    def on_frame(_: Any) -> bool:
        times.append(time.perf_counter())
        return True

    ingest = Ingest(
        "tcp://127.0.0.1:*", on_start=lambda _: None, on_frame=on_frame, on_end=lambda _: done.set()
    )
    ingest.start()
    process = _in_process(_send, ingest.address, frames)
    done.wait(120.0)
    process.join()
    ingest.stop()
    ingest.raise_if_failed()
    return (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rates = [(measure_bare(options.frames), measure_wire(options.frames)) for _ in range(options.repeats)]
    bare, wire = (statistics.median(column) for column in zip(*rates, strict=True))
    body = _image().tobytes()
    begin = time.perf_counter()
    for _ in range(200):
        zlib.crc32(body)
    crc_s = (time.perf_counter() - begin) / 200
    print(
        json.dumps(
            {
                "frame_mb": round(FRAME_MB, 3),
                "bare_mb_per_s": round(bare * FRAME_MB),
                "wire_mb_per_s": round(wire * FRAME_MB),
                "wire_frames_per_s": round(wire),
                "ratio": round(statistics.median(ours / theirs for theirs, ours in rates), 3),
                "ratios": [round(ours / theirs, 3) for theirs, ours in rates],
                "crc32_mb_per_s": round(FRAME_MB / crc_s),
            }
        )
    )


if __name__ == "__main__":
    main()
