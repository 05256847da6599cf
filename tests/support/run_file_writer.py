"""What the run file's tests share: a run's parts, and a writer process that is there to be killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.receipt import Receipt
from microdiffusion.daemon.recorder.opening import create_recorder, resume_recorder
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.daemon.recorder.writer import Written
from microdiffusion.frames import Frame, Reconstruction, frame_info
from microdiffusion.header import RunHeader

SHAPE = (6, 16, 20)
FRAMES = 3


def header(**changes: Any) -> RunHeader:
    values: dict[str, Any] = {
        "run_id": "0123456789abcdef" * 2,
        "shape": SHAPE,
        "voxel_size_um": (2.0, 0.5, 0.25),
        "z0_um": -5.0,
        "profile_weights": (1.0,),
        "profile_spacing_um": 6.0,
    }
    return RunHeader(**(values | changes))


def volume(sweep: int, channel: int = 0, position: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng([sweep, channel, position])
    return rng.integers(0, 65536, shape).astype(np.float32)


def frame(sweep: int, index: int, channel: int = 0, position: int = 0, **changes: Any) -> Frame:
    rng = np.random.default_rng([sweep, index, channel, position, 1])
    values: dict[str, Any] = {
        "seq": sweep * FRAMES + index,
        "sweep": sweep,
        "index": index,
        "count": FRAMES,
        "z_um": 4.0 * index,
        "channel": channel,
        "position": position,
        "held_out": index == FRAMES - 1,
        "camera_time_s": sweep + 0.1 * index,
    }
    info = frame_info(values | changes)
    return Frame(info, rng.integers(0, 65536, SHAPE[1:]).astype(np.uint16), time.monotonic())


def recorder(
    path: Path,
    *,
    on_written: Callable[[Written], None] = lambda written: None,
    run: RunHeader | None = None,
    configuration: str = '{"name": "µ"}',
    live: bool = False,
    **config: Any,
) -> Recorder:
    return create_recorder(
        path,
        run or header(),
        RecorderConfig(**({"time_points": 8} | config)),
        frames_per_sweep=FRAMES,
        configuration=configuration,
        provenance={"weights": "sha256:abc"},
        on_written=on_written,
        live=live,
    )


def resumed(path: Path, *, on_written: Callable[[Written], None] = lambda written: None) -> Recorder:
    return resume_recorder(path, RecorderConfig(time_points=8), on_written=on_written)


def started(target: Recorder) -> Recorder:
    target.start()
    return target


def when_recorded(work: Callable[[], object]) -> Receipt:
    """Return a receipt that has `work` done when it is complete."""
    return Receipt(0, 0, work)


def put_sweep(target: Recorder, sweep: int, channel: int = 0, position: int = 0, **result: Any) -> None:
    for index in range(FRAMES):
        target.put_frame(frame(sweep, index, channel, position))
    put_volume(target, sweep, channel, position, **result)


def put_volume(
    target: Recorder, sweep: int, channel: int = 0, position: int = 0, *, effort: int = 0, **result: Any
) -> None:
    done = reconstruction(sweep, channel, position, **result)
    wait(
        lambda: target.put_volume(
            sweep,
            channel,
            position,
            done,
            acquired_s=float(sweep),
            received_s=time.monotonic(),
            effort=effort,
        )
    )


def reconstruction(sweep: int, channel: int = 0, position: int = 0, **result: Any) -> Reconstruction:
    values: dict[str, Any] = {
        "volume": volume(sweep, channel, position),
        "served": "tikhonov",
        "residual": 1.5,
        "held_out_error": 2.5,
        "candidate_errors": {"mdd": 3.0, "tikhonov": 2.5},
        "seconds": {"inr": 0.1, "tiles": 0.2, "stitch": 0.3, "total": 0.6},
        "inr_iterations": 7,
    }
    return Reconstruction(**(values | result))


def wait(done: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise TimeoutError("it did not come about")
        time.sleep(0.001)


def main(arguments: Sequence[str]) -> None:
    """Write volumes for ever, naming each that was announced, and each frame that was taken."""
    path, time_points, durable = Path(arguments[0]), int(arguments[1]), arguments[2] == "durable"

    def announce(written: Written) -> None:
        print(written.sweep, flush=True)

    if arguments[2] == "resumed" and path.exists():
        target = resumed(path, on_written=announce)
    else:
        target = recorder(path, time_points=time_points, durable=durable, on_written=announce)
    print("ready", flush=True)
    target.start()
    for sweep in range(target.index.next_sweep, 10_000):
        for index in range(FRAMES):
            one = frame(sweep, index)
            tell = partial(print, f"frame {one.info.seq}", flush=True)
            wait(lambda: not target.is_full)
            target.put_frame(one, when_recorded(tell))
        put_volume(target, sweep)
        target.raise_if_failed()


if __name__ == "__main__":
    main(sys.argv[1:])
