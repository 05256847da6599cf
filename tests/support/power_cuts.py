"""What a power cut leaves of a file of the SWMR storage: any mixture of pages that no fdatasync rules out.

A file that is written with `durable` is watched at each of its fdatasyncs. Between two of them, a page may be
as it was, as it is, or as it was at one of HDF5's flushes between. What was not there yet is zeros, or the
file ends before it. Each such mixture is repaired, and every volume that it marks as written, and all that
were marked before, must be there to the bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np

from microdiffusion import open_run
from microdiffusion.daemon.offline.repair import repair_run
from microdiffusion.daemon.recorder import swmr_segment
from microdiffusion.errors import MddError
from support.run_file_trials import Shape, base_of, check_run, truth, writing

PAGE = 4096


def watched_run(
    path: Path, shape: Shape, values: Mapping[str, Any], sweeps: Sequence[int]
) -> list[list[bytes]]:
    """Write sweeps and return the states of the file, by the forcing that ended them."""
    epochs: list[list[bytes]] = [[]]
    force, flush = swmr_segment.force, h5py.File.flush

    def forced(descriptor: int) -> None:
        force(descriptor)
        state = path.read_bytes()
        epochs[-1].append(state)
        epochs.append([state])

    def flushed(file: h5py.File) -> None:
        flush(file)
        if path.exists():
            epochs[-1].append(path.read_bytes())

    more = {"layout": "swmr", "durable": True, **values}
    base = base_of(shape)
    with (
        patch.object(swmr_segment, "force", forced),
        patch.object(h5py.File, "flush", flushed),
        writing(path, shape, 1000, more) as target,
    ):
        for sweep in sweeps:
            target.put_frame(sweep, truth(sweep, base)[0])
            target.write(sweep, truth(sweep, base).astype(np.float32))
    return [states for states in epochs if len(states) > 1]


def mixtures(states: list[bytes], dice: np.random.Generator, count: int) -> Iterator[bytes]:
    """Yield what a power cut may leave of these states, of which the first is on the disk."""
    longest = max(map(len, states))
    rounded = -(-longest // PAGE) * PAGE
    pages = np.array([np.frombuffer(one.ljust(rounded, b"\0"), np.uint8).reshape(-1, PAGE) for one in states])
    differ = np.flatnonzero((pages != pages[0]).any(axis=(0, 2)))
    for _ in range(count):
        mixed = pages[0].copy()
        # Also all pages but few, and few: what else is wrong hides behind the first that is.
        newest = dice.random(differ.size) < dice.choice((0.1, 0.5, 0.9))
        between = dice.integers(len(states), size=differ.size) * dice.integers(2)
        mixed[differ] = pages[np.where(newest, len(states) - 1, between), differ]
        size = longest if dice.random() < 0.75 else int(dice.integers(len(states[0]), longest + 1))
        yield mixed.tobytes()[:size]


def power_cut_trials(
    folder: Path, shape: Shape, values: Mapping[str, Any], *, sweeps: Sequence[int], each: int, seed: int = 0
) -> dict[str, Any]:
    """Cut the power `each` times between any two forcings."""
    dice = np.random.default_rng(seed)
    epochs = watched_run(folder / "run.h5", shape, values, sweeps)
    base = base_of(shape)
    torn = folder / "torn.h5"
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    marked: set[int] = set()
    for number, states in enumerate(epochs):
        for content in mixtures(states, dice, each):
            torn.write_bytes(content)
            counts["files"] += 1
            counts["not readable as they were"] += not _reads(torn)
            torn.write_bytes(content)
            report = repair_run(torn)
            counts["mended"] += any("tables" in sentence for sentence in report.done)
            # A frame is forced with the next volume: until then it may come half, and its checksums tell.
            faults = [fault for fault in report.faults if not fault.startswith("frame ")]
            written, more = check_run(torn, base)
            faults += more + [f"sweep {sweep} is gone" for sweep in sorted(marked - written)]
            wrong += [f"between forcings {number} and {number + 1}: {fault}"[:300] for fault in faults]
        torn.write_bytes(states[-1])
        with open_run(torn) as run:
            marked = set(run.written().tolist())
    return {**counts, "volumes": len(marked), "wrong": wrong[:20]}


def _reads(path: Path) -> bool:
    """Return whether figures and written volumes can be read without repair."""
    try:
        with open_run(path) as run:
            run.gaps()
            for t in run.written().tolist():
                run.volume[t]
    except MddError:
        return False
    return True
