"""A stage for one fault: a source of frames, a daemon, senders, a bad line, and somebody who watches.

Everything goes through the `mdd` command and the files that it leaves. `Stage` starts the processes, marks
them in their environment so that none can hide, and ends them whatever happens. `Watcher` looks on from a
thread of its own, as a colleague's notebook would: it keeps each volume as it was when it was first said to
be written, to be held against the file at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import psutil
import zmq
from numpy.typing import NDArray

from microdiffusion import open_run
from microdiffusion.errors import MissingFileError
from microdiffusion.runfile.reader import Run
from support.bad_line import BadLine
from support.mdd_process import Mdd, command, free_port

FAULTY_PYTHON = Path(__file__).parents[1] / "faulty_python"
WRITTEN = 1
MARK = "FAULT_MARK"
DEMO = (
    *("volume.shape_z=24", "camera.width=48", "camera.height=48"),
    *("specimen.nuclei=8", "specimen.neurons=1", "acquisition.sweep_interval_s=0.4"),
)
ENGINES = {
    "linear": ("engine.method=linear",),
    "inr": ("engine.method=inr", "engine.inr.cold_steps=20", "engine.inr.warm_steps=5"),
    "mdd": ("engine.inr.cold_steps=20", "engine.inr.warm_steps=5"),
}


class FaultError(AssertionError):
    """What must hold does not."""


@dataclass(frozen=True)
class Source:
    """A projection file, and the pixels (T, M, Y, X) of all of its frames."""

    path: Path
    pixels: NDArray[Any]

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return int(np.prod(self.pixels.shape[:2]))


def make_source(folder: Path, *, sweeps: int, edge: int = 64, slices: int = 32) -> Source:
    """Return a projection file of `sweeps` noisy sweeps of five frames, made with `mdd simulate`."""
    path = folder / f"projections_{sweeps}x{slices}x{edge}.h5"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        volume, unfinished = path.with_suffix(".volume.h5"), path.with_suffix(f".{uuid.uuid4().hex}.h5")
        rng = np.random.default_rng(0)
        blobs = np.zeros((slices, edge, edge))
        grid = np.stack(np.meshgrid(*map(np.arange, blobs.shape), indexing="ij"), axis=-1)
        for _ in range(20):
            centre = rng.uniform(0, blobs.shape)
            blobs += np.exp(-(((grid - centre) / (2.0, 2.5, 2.5)) ** 2).sum(axis=-1))
        with h5py.File(volume, "w") as file:
            file["volume"] = blobs.astype(np.float32)
        slab = slices / 4
        subprocess.run(
            [
                *(command(), "simulate", volume, "--length-um", f"{slab:g}", "--step-um", f"{slab:g}"),
                *("--hold-out", "--sweeps", str(sweeps), "--photons", "300", "--offset", "100"),
                *("--read-noise", "2", "--output", unfinished),
            ],
            check=True,
            capture_output=True,
        )
        os.replace(unfinished, path)
    with h5py.File(path) as file:
        return Source(path, file["projections"][()])


class Watcher:
    """Looks at the run files of a folder, and listens to the daemon's status, until stopped.

    Attributes
    ----------
    volumes : dict
        (name of the file, time point) -> the volume as it was when it was first said to be written.
    announced : int
        Most volumes that one daemon's status said were written.
    frames, written : int
        In all files, as of the last look.
    problems : list of str
        What must not be seen.
    """

    def __init__(self, folder: Path, status: str) -> None:
        self._folder = folder
        self._status = status
        self.volumes: dict[tuple[str, int], NDArray[Any]] = {}
        self.announced = self.frames = self.written = 0
        self.problems: list[str] = []
        self._runs: dict[Path, tuple[int, Run]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Have a last look."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(30)

    def _watch(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, b"status")
        socket.connect(self._status)
        try:
            while not self._stopping.is_set():
                self._look()
                self._listen(socket)
            self._look()
        except Exception as error:
            self.problems.append(f"the watcher: {type(error).__name__}: {error}")
        finally:
            socket.close()
            context.term()
            for _, run in self._runs.values():
                run.close()

    def _listen(self, socket: zmq.Socket[bytes]) -> None:
        wait_ms = 100
        while socket.poll(wait_ms):
            wait_ms = 0
            snapshot = json.loads(socket.recv_multipart()[-1])
            self.announced = max(self.announced, snapshot.get("volumes", {}).get("written", 0))

    def _look(self) -> None:
        frames = written = 0
        for path in first_files(self._folder):
            run = self._open(path)
            if run is None:
                continue
            frames += int(np.isfinite(run.values("frames/z_um")).sum())
            done = np.flatnonzero(run.status == WRITTEN)
            written += done.size
            for t in map(int, done):
                if (path.name, t) not in self.volumes:
                    self.volumes[path.name, t] = run.volume[t]
        self.frames, self.written = frames, written

    def _open(self, path: Path) -> Run | None:
        """Return the run, opened anew where its file was replaced."""
        try:
            number = path.stat().st_ino
            known = self._runs.get(path)
            if known is None or known[0] != number:
                if known is not None:
                    known[1].close()
                    del self._runs[path]
                self._runs[path] = known = (number, open_run(path))
        except (MissingFileError, FileNotFoundError):
            return None
        return known[1]


def first_files(folder: Path) -> list[Path]:
    """Return the runs of a folder: their first files, not those that they went on in."""
    return sorted(path for path in folder.glob("*.h5") if not _goes_on(path))


def _goes_on(path: Path) -> bool:
    stem, _, number = path.stem.rpartition("_s")
    return bool(stem) and number.isdigit()


class Stage:
    """Where one scenario plays; a context manager that leaves nothing running.

    Parameters
    ----------
    folder : Path
        For everything that comes about; new.
    seed : str
        Of all that is random here.

    Attributes
    ----------
    dice : random.Random
    output, journal : Path
        Folders of the run files, and of what senders spill.
    data, status, control : int
        Ports of the daemon.
    facts : dict
        What is worth knowing afterwards.
    """

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.dice = random.Random(seed)  # noqa: S311
        self.mark = uuid.uuid4().hex
        self.output, self.journal = folder / "runs", folder / "journal"
        self.output.mkdir()
        self.journal.mkdir()
        self.data, self.status, self.control = free_port(), free_port(), free_port()
        self.environment: dict[str, str] = {MARK: self.mark}
        self.facts: dict[str, Any] = {}
        self.engine = self.dice.choices(list(ENGINES), (8, 1, 1))[0]
        self.settings: list[str] = []
        self.watcher = Watcher(self.output, f"tcp://127.0.0.1:{self.status}")
        self._processes: list[Mdd] = []
        self._exits = contextlib.ExitStack()

    # Processes ------------------------------------------------------------------------------------

    def run(self, name: str, *arguments: object) -> Mdd:
        """Start an `mdd` with a folder of its own for what it says."""
        folder = self.folder / f"{len(self._processes):02d}-{name}"
        folder.mkdir()
        mdd = self._exits.enter_context(Mdd(*arguments, folder=folder, environment=self.environment))
        self._processes.append(mdd)
        return mdd

    def serve(self, *more: object, demo: bool = False) -> Mdd:
        """Start the daemon."""
        addresses = {"data": self.data, "status": self.status, "control": self.control}
        pairs = [f"wire.{name}=tcp://127.0.0.1:{port}" for name, port in addresses.items()]
        pairs += [*ENGINES[self.engine], "engine.threads=1", "engine.device=cpu"]
        pairs += ["recorder.time_points=40", *(DEMO if demo else ()), *self.settings, *self._journal()]
        if "--resume" not in more:  # a run goes on where its file is
            more = ("--output", self.output, *more)
        mdd = self.run(
            *("serve", "serve", "--headless", "--config", "demo" if demo else "remote-engine"),
            *(*settings(*pairs), *more),
        )
        if len(self._processes) == 1 or not self.watcher._thread.is_alive():
            self.watcher.start()
        return mdd

    def replay(self, source: Source, rate_hz: float | None, *more: object, port: int | None = None) -> Mdd:
        """Send a source; `port` is that of a bad line."""
        rate = () if rate_hz is None else ("--rate", f"{rate_hz:g}")
        return self.run(
            *("replay", "replay", source.path, "--address", f"tcp://127.0.0.1:{port or self.data}"),
            *(*rate, *settings(*self._journal(), *self.settings), *more),
        )

    def deliver(self) -> int:
        """Deliver what killed senders left, and return the exit code."""
        address = f"tcp://127.0.0.1:{self.data}"
        return self.run("deliver", "deliver", self.journal, "--address", address).finish(60)

    def line(self) -> BadLine:
        """Return a line to the daemon that can be cut."""
        return self._exits.enter_context(BadLine(self.data, seed=self.dice.randrange(1 << 30)))

    def child(self, mdd: Mdd, library: str, timeout_s: float = 60.0) -> psutil.Process:
        """Return the process below `mdd` that has a library in its memory."""
        found: list[psutil.Process] = []
        self.until(
            lambda: found.extend(mdd.below(library)) or bool(found), f"a process with {library}", timeout_s
        )
        return found[0]

    # Waiting --------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait for a condition."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            for mdd in self._processes:
                mdd.look()
            if time.monotonic() > deadline_s:
                raise FaultError(f"{what}: not within {timeout_s:g} s; {self.last_words()}")
            time.sleep(0.05)

    def moment(self, frames: int) -> None:
        """Wait for some random moment after so many frames are in the files."""
        self.until(lambda: self.watcher.frames >= frames, f"{frames} frames in the file")
        time.sleep(self.dice.uniform(0.0, 0.3))

    def finish(self, mdd: Mdd, *codes: int, timeout_s: float = 45.0) -> None:
        """Wait for the end of a process, which must have one of these exit codes (0 where none is named)."""
        code = mdd.finish(timeout_s)
        if code not in (codes or (0,)):
            raise FaultError(f"{mdd.process.args[1]} ended with {code}: {mdd.err[-400:]}")
        if "Traceback" in mdd.err:
            raise FaultError(f"{mdd.process.args[1]} showed a traceback: {mdd.err[-600:]}")

    def kill(self, mdd: Mdd) -> None:
        """Kill without a warning."""
        mdd.look()
        mdd.process.kill()
        mdd.finish(10)

    def close(self, daemon: Mdd, *codes: int) -> None:
        """Wait until all runs are closed, then stop the daemon in order."""
        self.until(self.all_closed, "closed run files", 90)
        daemon.send(signal.SIGTERM)
        self.finish(daemon, *codes)

    def all_closed(self) -> bool:
        """Whether there are runs, and each is closed."""
        files = first_files(self.output)
        return bool(files) and all(is_closed(path) for path in files)

    def last_words(self) -> str:
        """Return the ends of what the processes wrote."""
        return " | ".join(f"{mdd.process.args[1]}: …{mdd.err[-300:].strip()}" for mdd in self._processes)

    def left(self, patience_s: float = 15.0) -> list[str]:
        """Return the processes of this stage that are still there after some patience."""
        deadline_s = time.monotonic() + patience_s
        while (left := list(self._marked())) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()
        self.watcher.stop()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    process.kill()

    def small_disk(self, folder: Path, megabytes: int) -> Disk:
        """Return a small disk in place of an empty folder."""
        return self._exits.enter_context(small_disk(folder, megabytes, self.environment))

    def _marked(self) -> Iterator[str]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield f"{process.pid} {' '.join(process.cmdline())[:120]}"

    def _journal(self) -> list[str]:
        return [f"wire.journal={self.journal}"]


class Disk:
    """A disk that can be full.

    Attributes
    ----------
    how : str
        "tmpfs", or "pretended" where no disk can be mounted.
    """

    def __init__(self, folder: Path, how: str, flag: Path) -> None:
        self._ballast = folder / "ballast" if how == "tmpfs" else flag
        self.how = how

    def fill(self) -> None:
        """Leave no room."""
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while self.how == "tmpfs":
                file.write(bytes(1 << 12))

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int, environment: dict[str, str]) -> Iterator[Disk]:
    """Mount a disk of so many MB; where that is forbidden, let Python pretend that one is full."""
    flag = folder.with_name(f"{folder.name}.full")
    mounted = sys.platform == "linux" and shutil.which("mount") is not None
    if mounted:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        environment.update(FAULT_DISK_FULL=str(flag), FAULT_DISK_FOLDER=str(folder))
        environment["PYTHONPATH"] = str(FAULTY_PYTHON)
    try:
        yield Disk(folder, "tmpfs" if mounted else "pretended", flag)
    finally:
        if mounted:
            keep = folder.with_name(f"{folder.name}.kept")
            shutil.copytree(folder, keep, ignore=shutil.ignore_patterns("ballast"), dirs_exist_ok=True)
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def settings(*pairs: object) -> list[str]:
    """Return --set options."""
    return [word for pair in pairs for word in ("--set", str(pair))]


def is_closed(path: Path) -> bool:
    """Whether a run, and so the last of its files, was closed in order."""
    try:
        with open_run(path) as run:
            return run.closed
    except MissingFileError:
        return False
