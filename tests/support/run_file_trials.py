"""Trials of the run file that tests make small and `benchmarks/run_file.py` large.

How fast it is written beside a raw write of the same bytes, what many readers see meanwhile, and what a
killed writer leaves. Each takes the `[recorder]` values that choose the kind of file. A trial's volumes can
be computed by whoever checks them: `truth`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
from zlib_ng.zlib_ng import crc32

from microdiffusion import open_run
from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.cli.dispatch import main as command_line
from microdiffusion.daemon.recorder.opening import create_recorder
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.daemon.recorder.writer import RunWriter, Written
from microdiffusion.frames import Frame, FrameInfo, Reconstruction, StagePosition
from microdiffusion.header import RunHeader
from microdiffusion.runfile.pyramid import coarser

Shape = tuple[int, int, int]
Values = Mapping[str, Any]


def truth(sweep: int, base: np.ndarray) -> np.ndarray:
    """Return the voxels of a sweep, (Z, Y, X) uint16."""
    return base + np.uint16((sweep * 257) % 65536)


def base_of(shape: Shape) -> np.ndarray:
    """Return what all volumes of a shape are made from: noise of 12 bits, as a camera's."""
    return np.random.default_rng(7).integers(0, 4096, shape, np.uint16)


class Volumes:
    """A recorder that is given volumes one at a time."""

    def __init__(self, path: Path, shape: Shape, time_points: int, values: Values) -> None:
        header = RunHeader(
            run_id="0123456789abcdef" * 2,
            shape=shape,
            voxel_size_um=(1.0, 0.5, 0.5),
            z0_um=0.0,
            profile_weights=(1.0,),
            profile_spacing_um=4.0,
        )
        self._done: list[int] = []
        self.recorder = create_recorder(
            path,
            header,
            RecorderConfig(**{"time_points": time_points, "queue_mb": 4096.0, **values}),
            frames_per_sweep=1,
            configuration="{}",
            provenance={},
            on_written=self._written,
        )
        self.recorder.start()

    def _written(self, written: Written) -> None:
        self._done.append(written.sweep)

    def put_frame(self, sweep: int, pixels: np.ndarray) -> None:
        """Write a projection, (Y, X) uint16; a sweep has one."""
        info = FrameInfo(
            seq=sweep, sweep=sweep, index=0, count=1, stage=StagePosition(0.0), camera_time_s=float(sweep)
        )
        self.recorder.put_frame(Frame(info, pixels))

    def write(self, sweep: int, volume: np.ndarray) -> float:
        """Write a volume and return the seconds until it was announced."""
        result = Reconstruction(volume, "mdd", 1.0, 1.0, {"mdd": 1.0}, {"total": 0.1})
        begin_s = time.perf_counter()
        self.recorder.put_volume(sweep, 0, 0, result, acquired_s=float(sweep), received_s=time.monotonic())
        while not self._done or self._done[-1] != sweep:
            self.recorder.raise_if_failed()
            time.sleep(0.0002)
        return time.perf_counter() - begin_s


@contextlib.contextmanager
def writing(path: Path, shape: Shape, time_points: int, values: Values) -> Iterator[Volumes]:
    """Write a run, and close it at the end."""
    volumes = Volumes(path, shape, time_points, values)
    try:
        yield volumes
    finally:
        volumes.recorder.stop()


class RawFile:
    """A plain file with its room reserved, written from its start on; removed at the end.

    `durable`: each write is forced to the disk, as a run file's volumes are then.
    """

    def __init__(self, path: Path, shape: Shape, count: int, bytes_each: int, *, durable: bool) -> None:
        self._path, self._durable = path, durable
        self._content = np.resize(base_of(shape).reshape(-1), bytes_each // 2)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._descriptor, 0, bytes_each * count)

    def write(self) -> float:
        """Write as much as a volume has and return the seconds."""
        begin_s = time.perf_counter()
        left = memoryview(self._content).cast("B")
        while len(left):
            left = left[os.write(self._descriptor, left) :]
        if self._durable:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        return time.perf_counter() - begin_s

    def __enter__(self) -> RawFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._path.unlink()


def timed_writes(folder: Path, shape: Shape, count: int, values: Values) -> tuple[list[float], list[float]]:
    """Return the seconds of `count` raw writes and of as many volumes of the same bytes, in turn.

    Volume by volume, since what a disk and its cache take at once changes from second to second.
    """
    path = folder / "run.h5"
    base = base_of(shape)
    source = [truth(sweep, base).astype(np.float32) for sweep in range(2)]
    size = bytes_of_volume(folder, shape, values)
    durable = RecorderConfig(**values).durable
    raw: list[float] = []
    ours: list[float] = []
    with (
        RawFile(folder / "raw.bin", shape, count, size, durable=durable) as plain,
        writing(path, shape, count, values) as volumes,
    ):
        for sweep in range(count):
            if sweep % 2:
                raw.append(plain.write())
            ours.append(volumes.write(sweep, source[sweep % 2]))
            if not sweep % 2:
                raw.append(plain.write())
    path.unlink()
    return raw, ours


def processor_times(folder: Path, shape: Shape, count: int, values: Values) -> dict[str, float]:
    """Return what a volume takes of one processor, and what of it nothing can spare: ms, medians.

    Reading the engine's float32 once, a CRC-32 of the bytes, and handing them to the operating system.
    """
    base = base_of(shape)
    source = truth(1, base).astype(np.float32)
    size = bytes_of_volume(folder, shape, values)
    content = np.resize(base.reshape(-1), size // 2)
    room = np.empty_like(source[0])

    def read() -> None:
        for plane in source:
            np.copyto(room, plane)

    times: dict[str, list[float]] = {"volume": [], "read": [], "crc32": [], "raw_write": []}
    with (
        RawFile(folder / "raw.bin", shape, count, size, durable=False) as plain,
        writing(folder / "run.h5", shape, count, values) as volumes,
    ):
        writer = volumes.recorder._writer
        write_volume = writer.write_volume

        def write(*args: Any, **more: Any) -> Written | None:
            begin_s = time.thread_time()
            found = write_volume(*args, **more)
            times["volume"].append(time.thread_time() - begin_s)
            return found

        writer.write_volume = write  # type: ignore[method-assign]
        parts: dict[str, Callable[[], object]] = {
            "read": read,
            "crc32": lambda: crc32(content.view(np.uint8).data),
            "raw_write": plain.write,
        }
        for sweep in range(count):
            volumes.write(sweep, source)
            for name, work in parts.items():
                begin_s = time.thread_time()
                work()
                times[name].append(time.thread_time() - begin_s)
    (folder / "run.h5").unlink()
    medians = {name: float(np.median(some)) * 1e3 for name, some in times.items()}
    least = medians["read"] + medians["crc32"] + medians["raw_write"]
    return {
        **{f"{name}_ms": round(value, 2) for name, value in medians.items()},
        "best_share_of_raw": round(medians["raw_write"] / least, 3),
    }


def bytes_of_volume(folder: Path, shape: Shape, values: Values) -> int:
    """Return how many bytes of voxels a volume has in the file, coarser levels included."""
    path = folder / "probe.h5"
    with writing(path, shape, 1, values) as volumes:
        volumes.write(0, base_of(shape).astype(np.float32))
    with open_run(path) as run:
        size = sum(series[0].nbytes for series in run.pyramid)
    path.unlink()
    return size


def check_run(path: Path, base: np.ndarray) -> tuple[set[int], list[str]]:
    """Return the sweeps that the file says are written, and what is wrong with them."""
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(open_run(path))
        written = set(run.written().tolist())
        for sweep in sorted(written):
            expected = truth(sweep, base)
            levels = [expected, *coarser(expected, run.pyramid_factors[1:])]
            for level, (series, content) in enumerate(zip(run.pyramid, levels, strict=True)):
                if not np.array_equal(series[sweep], content):
                    wrong.append(f"sweep {sweep}, level {level}")
        file = stack.enter_context(h5py.File(path, "r"))
        wrong += [
            f"sweep {sweep}, read by h5py"
            for sweep in np.flatnonzero(file["mdd/status"][()] == 1).tolist()
            if not np.array_equal(file["volume"][sweep], truth(sweep, base))
        ]
    return written, wrong


def kill_trials(
    folder: Path,
    shape: Shape,
    count: int,
    values: Values,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Kill a writer at random moments of its life, its creation of the file among them."""
    dice = np.random.default_rng(seed)
    base = base_of(shape)
    announced_in_all = files = 0
    wrong: list[str] = []
    for number in range(count):
        path = folder / f"kill-{number:03d}" / "run.h5"
        told = _killed_writer(path, shape, values, dice, early=number % 10 == 9)
        if not path.exists():
            if told:
                wrong.append(f"writer {number}: {len(told)} volumes announced, and no file")
            continue
        files += 1
        try:
            written, faults = check_run(path, base)
        except Exception as error:  # that is the finding
            wrong.append(f"writer {number}: {type(error).__name__}: {error}"[:300])
            continue
        wrong += [f"writer {number}: {fault}" for fault in faults]
        if missing := set(told) - written:
            wrong.append(f"writer {number}: announced and not in the file: {sorted(missing)}")
        announced_in_all += len(told)
        for part in path.parent.iterdir():
            part.unlink()
    return {"kills": count, "files": files, "announced": announced_in_all, "wrong": wrong}


def _killed_writer(
    path: Path, shape: Shape, values: Values, dice: np.random.Generator, *, early: bool
) -> list[int]:
    arguments = ["write", str(path), json.dumps(shape), json.dumps(dict(values))]
    with subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told: list[str] = []
        if child.stdout.readline() == "ready\n" and not early:
            told.append(child.stdout.readline())
        time.sleep(dice.uniform(0, 0.02 if early else 0.3))
        child.kill()
        told += list(child.stdout)
    return [int(line) for line in told if line.endswith("\n")]


def reader_trial(
    folder: Path, shape: Shape, values: Values, *, readers: int, volumes: int, period_s: float, phases: int
) -> dict[str, Any]:
    """Write at a steady rate, in turn without and with readers that check every voxel of every volume."""
    base = base_of(shape)
    alone: list[float] = []
    watched: list[float] = []
    read = 0
    problems: list[str] = []
    for phase in range(2 * phases):
        path = folder / f"watched-{phase}.h5"
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(writing(path, shape, volumes, values))
            children = []
            if phase % 2:
                arguments = ["read", str(path), json.dumps(shape)]
                children = [
                    subprocess.Popen(
                        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True
                    )
                    for _ in range(readers)
                ]
                for child in children:
                    assert child.stdout is not None
                    child.stdout.readline()  # it has opened the file
            due_s = time.monotonic()
            for sweep in range(volumes):
                volume = truth(sweep, base).astype(np.float32)
                due_s += period_s
                time.sleep(max(due_s - time.monotonic(), 0))
                (watched if children else alone).append(target.write(sweep, volume))
        for child in children:
            out, _ = child.communicate(timeout=120)
            said = json.loads(out.splitlines()[-1]) if out else {"read": 0, "wrong": ["it died"]}
            read += said["read"]
            problems += said["wrong"]
            if said["read"] != volumes:
                problems.append(f"a reader saw {said['read']} of {volumes} volumes")
        path.unlink()
    return {
        "readers": readers,
        "volumes_each_phase": volumes,
        "phases": phases,
        "period_s": period_s,
        "volumes_read": read,
        "problems": problems[:20],
        "alone_ms": float(np.median(alone) * 1e3),
        "watched_ms": float(np.median(watched) * 1e3),
        "slower": float(np.median(watched) / np.median(alone) - 1),
    }


def demo_waits(folder: Path, volumes: int, values: Values) -> dict[str, Any]:
    """Run the demo and return how long its engine waited for the recorder, and its volumes to be written."""
    handed: dict[tuple[int, ...], tuple[float, float]] = {}
    written: dict[tuple[int, ...], tuple[float, float]] = {}
    refused = 0
    put_volume, write_volume = Recorder.put_volume, RunWriter.write_volume

    def put(self: Recorder, *args: Any, **more: Any) -> bool:
        nonlocal refused
        begin_s = time.perf_counter()
        taken = put_volume(self, *args, **more)
        if taken:
            handed[args[:3]] = begin_s, time.perf_counter()
        refused += not taken
        return taken

    def write(self: RunWriter, key: tuple[int, ...], *args: Any, **more: Any) -> Written | None:
        begin_s = time.perf_counter()
        found = write_volume(self, key, *args, **more)
        written[key] = begin_s, time.perf_counter()
        return found

    settings = [f"recorder.{key}={value}" for key, value in values.items()]
    arguments = ["serve", "--demo", "--volumes", str(volumes), "--output", str(folder)]
    for setting in settings:
        arguments += ["--set", setting]
    with patch.object(Recorder, "put_volume", put), patch.object(RunWriter, "write_volume", write):
        code = command_line(arguments)
    keys = sorted(handed.keys() & written.keys())

    def spread(seconds: list[float]) -> dict[str, float]:
        shares = {"median_ms": 50, "p99_ms": 99, "largest_ms": 100}
        return {name: round(float(np.percentile(seconds, one)) * 1e3, 3) for name, one in shares.items()}

    return {
        "volumes": len(keys),
        "exit_code": code,
        "refused": refused,
        "handing_over": spread([handed[key][1] - handed[key][0] for key in keys]),
        "in_the_queue": spread([written[key][0] - handed[key][1] for key in keys]),
        "written_in": spread([written[key][1] - written[key][0] for key in keys]),
    }


def _write_for_ever(path: Path, shape: Shape, values: Values) -> None:
    base = base_of(shape)
    print("ready", flush=True)
    target = Volumes(path, shape, 100, values)
    for sweep in range(100_000):
        target.write(sweep, truth(sweep, base).astype(np.float32))
        print(sweep, flush=True)


def _read_along(path: Path, shape: Shape) -> None:
    base = base_of(shape)
    read, wrong = 0, []
    try:
        with open_run(path) as run:
            print("open", flush=True)
            for sweep, volume in run.follow(timeout_s=60):
                read += 1
                if not np.array_equal(volume, truth(sweep, base)):
                    wrong.append(f"sweep {sweep} is wrong")
    except Exception as error:  # that is the finding
        wrong.append(f"{type(error).__name__}: {error}"[:300])
    print(json.dumps({"read": read, "wrong": wrong}), flush=True)


def main(arguments: Sequence[str]) -> None:
    """Be the process of a trial."""
    what, path, shape = arguments[0], Path(arguments[1]), tuple(json.loads(arguments[2]))
    if what == "write":
        _write_for_ever(path, shape, json.loads(arguments[3]))
    else:
        _read_along(path, shape)


if __name__ == "__main__":
    main(sys.argv[1:])
