"""What the dashboard costs: processor time of `mdd top` and of a drawing `mdd serve`, on a demo that runs.

    python benchmarks/dashboard.py --output benchmarks/results/dashboard.json

POSIX only: each is given a pseudo-terminal of 200 x 60 and 80 x 24, whose other end is read and counted;
once more with real pictures, in cells of 8 x 16 pixels.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import psutil
from measuring import machine

SIZES = ((200, 60), (80, 24))
TRIALS = (*((size, "blocks") for size in SIZES), (SIZES[0], "sixel"), (SIZES[0], "kitty"))
TARGET = 0.05
"""Of one core."""


def mdd() -> str:
    """Return the path of the installed `mdd`."""
    return str(Path(sys.executable).parent / "mdd")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Drawn:
    """A command in a pseudo-terminal of its own, whose output is thrown away and counted."""

    def __init__(self, command: list[str], size: tuple[int, int], folder: Path) -> None:
        columns, rows = size
        self._end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 8 * columns, 16 * rows))
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(other)
        self.bytes = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._end, 1 << 16)
            except OSError:
                return
            if not data:
                return
            self.bytes += len(data)

    def stop(self) -> int:
        """Ask it to end in order, and return its exit code."""
        self.process.terminate()
        return self.process.wait(60)


def share_of_a_core(drawn: Drawn, seconds: float) -> dict[str, float]:
    """Return the share of one core that a process (its threads, not its children) took, and its output."""
    process = psutil.Process(drawn.process.pid)
    main = next(each for each in process.threads() if each.id == process.pid)
    before, main_before, written = process.cpu_times(), main.user_time + main.system_time, drawn.bytes
    began = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    after = process.cpu_times()
    main = next(each for each in process.threads() if each.id == process.pid)
    return {
        "process": round((after.user + after.system - before.user - before.system) / elapsed, 4),
        "main_thread": round((main.user_time + main.system_time - main_before) / elapsed, 4),
        "terminal_kb_per_s": round((drawn.bytes - written) / elapsed / 1000, 1),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = ("data", "status", "control")
        ports = [f"--set=wire.{each}=tcp://127.0.0.1:{free_port()}" for each in names]
        serve = Drawn([mdd(), "serve", "--demo", "--output", "runs", *ports], SIZES[0], folder)
        try:
            time.sleep(30.0)  # the engine is open, the first volumes are there
            for (columns, rows), graphics in TRIALS:
                picture = f"--set=dashboard.graphics={graphics}"
                top = Drawn([mdd(), "top", picture, *ports[1:]], (columns, rows), folder)
                name = f"mdd top, {columns} x {rows}" + ("" if graphics == "blocks" else f", {graphics}")
                try:
                    time.sleep(5.0)  # its imports are no part of it
                    figures[name] = share_of_a_core(top, args.seconds)
                finally:
                    if top.stop() != 128 + 15:
                        sys.exit("mdd top did not end in order")
            figures["mdd serve, 200 x 60"] = share_of_a_core(serve, args.seconds)
        finally:
            serve.stop()
    result = {
        "what": "share of one core; serve: its main thread draws, its process receives and records as well",
        "target": TARGET,
        "seconds": args.seconds,
        "figures": figures,
        "machine": machine(),
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
