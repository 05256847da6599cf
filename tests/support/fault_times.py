"""How long it takes from the start of `mdd serve` to the first frame that is accepted, and to stop it."""

from __future__ import annotations

import signal
import statistics
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.frames import FrameInfo, StagePosition
from microdiffusion.header import RunHeader
from microdiffusion.sender.sender import Sender
from support.fault_stage import Stage, first_files, is_closed, make_source

START_BAR_S, STOP_BAR_S = 2.0, 5.0


def measure_times(folder: Path, sources: Path, repeats: int) -> dict[str, Any]:
    """Return the seconds of each repeat; the first, which warms the caches, is left out."""
    starts, stops, closed = [], [], []
    for number in range(repeats + 1):
        with Stage(folder / f"{uuid.uuid4().hex[:8]}", f"times {number}") as stage:
            stage.engine = "mdd"
            starts.append(_first_ack(stage))
            _settle(stage)
        with Stage(folder / f"{uuid.uuid4().hex[:8]}", f"times {number}") as stage:
            daemon = stage.serve()
            stage.replay(make_source(sources, sweeps=24), 30.0)
            stage.moment(20)
            begin_s = time.monotonic()
            daemon.send(signal.SIGTERM)
            daemon.finish(60)
            stops.append(time.monotonic() - begin_s)
            closed.append(all(map(is_closed, first_files(stage.output))))
            stage.watcher.stop()
    return {
        "start_to_first_frame_s": _summary(starts[1:], START_BAR_S),
        "stop_to_closed_file_s": _summary(stops[1:], STOP_BAR_S) | {"closed": all(closed)},
    }


def _first_ack(stage: Stage) -> float:
    """Return the seconds from the start of the command to a waiting sender's first acknowledged frame."""
    header = RunHeader(
        run_id=uuid.uuid4().hex,
        shape=(32, 64, 64),
        voxel_size_um=(1.0, 1.0, 1.0),
        z0_um=0.0,
        profile_weights=(1.0,),
        profile_spacing_um=8.0,
        frames_per_sweep=4,
        sweeps=1,
    )
    sender = Sender(f"tcp://127.0.0.1:{stage.data}", header, buffer_bytes=1 << 24)
    sender.start()
    for index in range(4):
        pixels = np.full((64, 64), 100 + index, dtype=np.uint16)
        sender.put(
            FrameInfo(seq=index, sweep=0, index=index, count=4, stage=StagePosition(4.0 + 8.0 * index)),
            pixels,
        )
    begin_s = time.monotonic()
    stage.serve()
    while sender.stats.acknowledged < 1 and time.monotonic() - begin_s < 60:
        sender.raise_if_failed()
        time.sleep(0.002)
    seconds = time.monotonic() - begin_s
    sender.finish(timeout_s=10)
    return seconds


def _settle(stage: Stage) -> None:
    daemon = stage._processes[0]
    stage.until(stage.all_closed, "a closed run file")
    daemon.send(signal.SIGTERM)
    daemon.finish(30)
    stage.watcher.stop()


def _summary(seconds: list[float], bar_s: float) -> dict[str, Any]:
    return {
        "median": round(statistics.median(seconds), 2),
        "most": round(max(seconds), 2),
        "bar": bar_s,
        "all": [round(each, 2) for each in seconds],
    }
