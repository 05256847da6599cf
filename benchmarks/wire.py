"""How fast frames pass the wire, as a share of what bare pyzmq PUSH/PULL moves in the same run.

    python benchmarks/wire.py [--frames 3000] [--repeats 7] [--encrypted]

Sender and receiver are two processes on one machine (tcp, loopback); frames are 512 x 512 uint16. The ways
take turns, and the medians of the ratios within each turn count:

- bare: PUSH sends the same array again and again, PULL receives without copying and looks at nothing.
- receive path: `Ingest` (checks, checksum, order, answers) fed with messages made beforehand.
- sender and receive path: `Sender.put` (copies, for the camera needs its buffer back), checksum, `Ingest`.

`load.py` takes these figures too; `--encrypted` puts CURVE on all three.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import statistics
import time
from collections.abc import Callable
from typing import Any

import zmq
from measuring import machine
from support.load import SHAPE, image, run_header, some_keys

from microdiffusion import wire
from microdiffusion.daemon.ingest import Ingest, PlainSink
from microdiffusion.frames import Frame, FrameInfo, StagePosition
from microdiffusion.header import RunHeader
from microdiffusion.sender.sender import Sender
from microdiffusion.wire.security import ClientKeys, ServerKeys

FRAME_MB = SHAPE[0] * SHAPE[1] * 2 / 1e6
PATIENCE_S = 120.0


def _push(address: str, frames: int, keys: ClientKeys | None) -> None:
    pixels = image()
    context = zmq.Context()
    push = context.socket(zmq.PUSH)
    if keys is not None:
        keys.apply(push)
    push.connect(address)
    for _ in range(frames):
        push.send(pixels, copy=False)
    push.close()
    context.term()


def _feed(address: str, frames: int, keys: ClientKeys | None) -> None:
    """Send frames whose headers were made beforehand; wait only for the window."""
    header, pixels = run_header(), image()
    bodies = memoryview(pixels).cast("B")
    heads = [
        wire.encode_frame(header.run_id, Frame(FrameInfo(seq, seq, 0, 1, StagePosition(0.0)), pixels))
        for seq in range(frames)
    ]
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    if keys is not None:
        keys.apply(dealer)
    dealer.connect(address)
    dealer.send_multipart(wire.encode(wire.RunStart(header=header)))
    opening = wire.decode(dealer.recv_multipart())
    window = max(1, (opening.window_bytes or 0) // bodies.nbytes) if isinstance(opening, wire.Ack) else 1
    sent = confirmed = 0
    while confirmed < frames:
        while sent < frames and sent - confirmed < window:
            dealer.send_multipart([heads[sent][0], bodies, heads[sent][2]], copy=False)
            sent += 1
        answer = wire.decode(dealer.recv_multipart())
        confirmed += len(answer.received) if isinstance(answer, wire.Ack) else 0
    dealer.send_multipart(wire.encode(wire.RunEnd(run=header.run_id, announced=frames, dropped=0)))
    dealer.recv_multipart()
    context.destroy(linger=0)


def _send(address: str, frames: int, keys: ClientKeys | None) -> None:
    pixels = image()
    sender = Sender(address, run_header(), buffer_bytes=128 << 20, security=keys)
    sender.start()
    for seq in range(frames):
        sender.wait_for_room(PATIENCE_S)
        sender.put(FrameInfo(seq, seq, 0, 1, StagePosition(0.0)), pixels)
    sender.finish(timeout_s=PATIENCE_S)
    sender.raise_if_failed()


def _in_process(target: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


def measure_bare(frames: int, keys: ServerKeys | None = None) -> float:
    """Return frames per second of PUSH/PULL, from the first to the last receipt."""
    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    if keys is not None:
        pull.curve_server = True
        pull.curve_publickey, pull.curve_secretkey = keys.public.encode(), keys.secret.encode()
    port = pull.bind_to_random_port("tcp://127.0.0.1")
    process = _in_process(_push, f"tcp://127.0.0.1:{port}", frames, keys and keys.as_client())
    pull.recv(copy=False)
    begin = time.perf_counter()
    for _ in range(frames - 1):
        pull.recv(copy=False)
    seconds = time.perf_counter() - begin
    process.join()
    pull.close()
    context.term()
    return (frames - 1) / seconds


def measure_wire(way: Callable[..., None], frames: int, keys: ServerKeys | None = None) -> float:
    """Return frames per second of `Ingest`, fed by `_feed` or `_send`, from the first to the last receipt."""
    times: list[float] = []
    sinks: queue.Queue[PlainSink] = queue.Queue()

    def on_start(header: RunHeader, owner: str) -> PlainSink:
        sink = PlainSink(header, lambda _: times.append(time.perf_counter()))
        sinks.put(sink)
        return sink

    ingest = Ingest("tcp://127.0.0.1:*", security=keys)
    ingest.start(on_start)
    process = _in_process(way, ingest.address, frames, keys and keys.as_client())
    sinks.get(timeout=PATIENCE_S).ended.wait(PATIENCE_S)
    process.join()
    ingest.stop()
    ingest.raise_if_failed()
    if len(times) != frames:
        raise RuntimeError(f"{len(times)} of {frames} frames arrived")
    return (frames - 1) / (times[-1] - times[0])


def measure(frames: int, repeats: int, keys: ServerKeys | None = None) -> dict[str, Any]:
    """Return rates and ratios; the ways take turns, in an order that changes."""
    ways: list[tuple[str, Callable[[], float]]] = [
        ("bare", lambda: measure_bare(frames, keys)),
        ("receive_path", lambda: measure_wire(_feed, frames, keys)),
        ("sender_and_receive_path", lambda: measure_wire(_send, frames, keys)),
    ]
    rates: dict[str, list[float]] = {name: [] for name, _ in ways}
    for turn in range(repeats):
        for name, way in ways[turn % 3 :] + ways[: turn % 3]:
            rates[name].append(way())
    result: dict[str, Any] = {"frame_mb": round(FRAME_MB, 3), "frames": frames, "repeats": repeats}
    for name, values in rates.items():
        result[name] = {
            "frames_per_s": round(statistics.median(values)),
            "mb_per_s": round(statistics.median(values) * FRAME_MB),
        }
        if name != "bare":
            ratios = [ours / theirs for ours, theirs in zip(values, rates["bare"], strict=True)]
            result[name] |= {
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
            }
    return result


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--encrypted", action="store_true")
    options = parser.parse_args()
    keys = some_keys() if options.encrypted else None
    result = measure(options.frames, options.repeats, keys)
    print(json.dumps(result | {"machine": machine()}, indent=1))


if __name__ == "__main__":
    main()
