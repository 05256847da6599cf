"""Peers that send anything to a daemon's socket, and do not care for its answers.

`fuzz_socket` lets them loose on a real `mdd serve`, beside a good sender that must not notice.
"""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq

from microdiffusion import wire
from microdiffusion.errors import WireError
from support.fault_checks import Expected, check
from support.fault_stage import FaultError, Stage, make_source
from support.wire_mutations import Message, Mutator, valid_messages

_PATIENCE_MS = 250
"""How long whoever reads its answers waits for the next: the daemon has other things to do, too."""


def send_hostile(address: str, count: int, seed: int, *, rate_hz: float | None = None) -> Counter[str]:
    """Send spoilt messages over ever new connections, and return the refusals that came back, by reason.

    One connection in five never reads its answers; others speak no ZeroMQ at all.
    """
    dice = random.Random(seed)  # noqa: S311
    # The mutators spoil runs of several names: one daemon may have many strange ones open.
    mutators = [
        Mutator(seed + number, valid_messages(f"{dice.getrandbits(128):032x}")) for number in range(4)
    ]
    refused: Counter[str] = Counter()
    context = zmq.Context()
    begin_s = time.monotonic()
    sent = 0
    try:
        while sent < count:
            batch = min(count - sent, dice.choice((1, 10, 200, 500)))
            reads = dice.random() < 0.8
            dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.LINGER, 0 if dice.random() < 0.2 else 2000)
            dealer.setsockopt(zmq.SNDTIMEO, 5000)
            dealer.setsockopt(zmq.SNDHWM, 50)
            dealer.connect(address)
            for _ in range(batch):
                _send(dealer, dice.choice(mutators).message())
                sent += 1
                if rate_hz is not None:
                    time.sleep(max(0.0, begin_s + sent / rate_hz - time.monotonic()))
                while reads and dealer.poll(0):
                    refused[_answer(dealer)] += 1
            while reads and dealer.poll(_PATIENCE_MS):
                refused[_answer(dealer)] += 1
            dealer.close()
            _speak_no_zeromq(address, dice)
    finally:
        context.destroy(linger=1000)
    return refused


def _send(dealer: zmq.Socket[bytes], message: Message) -> None:
    dealer.send_multipart(message or [b""])


def _answer(dealer: zmq.Socket[bytes]) -> str:
    try:
        answer = wire.decode(dealer.recv_multipart())
    except WireError:
        return "an answer that is none"
    return answer.reason if isinstance(answer, wire.Refuse) else type(answer).__name__


def _speak_no_zeromq(address: str, dice: random.Random) -> None:
    host, _, port = address.rpartition("//")[2].rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    noise = dice.choice((b"GET / HTTP/1.1\r\n\r\n", dice.randbytes(2000), greeting, greeting[:20], b""))
    with socket.create_connection((host, int(port)), timeout=5) as line:
        line.sendall(noise)
        if noise == greeting:  # then a frame that claims to be enormous
            line.sendall(b"\x02" + (1 << dice.choice((30, 50, 62))).to_bytes(8, "big") + b"x" * 100)


def fuzz_socket(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Send spoilt messages to a daemon while a good sender replays a file through it, and then another."""
    source = make_source(folder / "sources", sweeps=24)
    refused: Counter[str] = Counter()
    problems: list[str] = []
    memory: list[tuple[float, float]] = []
    strange_runs = threads = 0
    begin_s = time.monotonic()
    with Stage(folder / "socket", f"socket {seed}") as stage:
        stage.engine = "linear"
        stage.settings += ["wire.runs=64", "wire.silent_s=3", "recorder.time_points=24"]
        daemon = stage.serve()
        first = stage.replay(source, 30.0)
        done = threading.Event()
        process = psutil.Process(daemon.process.pid)

        def measure() -> None:
            while not done.wait(0.25) and process.is_running():
                memory.append((time.monotonic() / 60, process.memory_info().rss / 1e6))

        watching = threading.Thread(target=measure, daemon=True)
        try:
            stage.moment(1)
            watching.start()
            refused = send_hostile(f"tcp://127.0.0.1:{stage.data}", count, seed)
            stage.finish(first)
            stage.finish(stage.replay(source, None))
            stage.until(stage.all_closed, "closed run files", 60)
            threads = process.num_threads()
            done.set()
            daemon.send(signal.SIGTERM)
            stage.finish(daemon)
            strange_runs = _put_strangers_aside(stage)
            problems = check(stage, Expected(source, runs=2, whole=2))
        except (FaultError, AssertionError, OSError, psutil.Error) as error:
            problems = [f"{type(error).__name__}: {error}; {stage.last_words()}"]
        done.set()
    return {
        "messages": count,
        "answers_by_reason": dict(refused),
        "seconds": round(time.monotonic() - begin_s, 1),
        "strange_runs": strange_runs,
        "threads_at_the_end": threads,
        "memory_mb": [round(megabytes) for _, megabytes in memory[:1] + memory[-1:]],
        "memory_mb_per_min": _slope(memory),
        "strange": problems,
        "well": not problems,
    }


def _put_strangers_aside(stage: Stage) -> int:
    """Leave the good sender's runs to be judged: what spoilt messages began are runs too."""
    strangers = stage.folder / "strangers"
    strangers.mkdir()
    paths = [path for path in stage.output.iterdir() if not path.name.lstrip(".").startswith("projections")]
    for path in paths:
        path.rename(strangers / path.name)
    stage.watcher.stop()
    kept = stage.watcher.volumes.items()
    stage.watcher.volumes = {key: volume for key, volume in kept if key[0].startswith("projections")}
    stage.watcher.announced = 0
    return sum(path.suffix == ".h5" for path in paths)


def _slope(samples: list[tuple[float, float]]) -> float | None:
    """Return the slope of the memory over the last two thirds, MB/min; early on, buffers fill."""
    late = np.array(samples[len(samples) // 3 :])
    return round(float(np.polyfit(late[:, 0], late[:, 1], 1)[0]), 2) if len(late) > 3 else None
