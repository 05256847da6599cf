"""The whole way of a volume, timed stage by stage: receive, assemble, the engine's own stages, write.

`loopback` and `run_file` are the stages round the engine, done as the daemon does them: a sender and the
daemon's `Ingest` in one process, and a real recorder in a temporary folder. Used on one thread; sender,
ingest and recorder have their own.
"""

from __future__ import annotations

import contextlib
import queue
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microdiffusion.config import RecorderConfig
from microdiffusion.daemon.bench.scene import Scene, assemble
from microdiffusion.daemon.bench.settings import WARM_UP
from microdiffusion.daemon.ingest import Ingest, PlainSink
from microdiffusion.daemon.recorder import create_recorder
from microdiffusion.daemon.runs import Assembler
from microdiffusion.engines.pipeline import Reconstructor
from microdiffusion.errors import RunError
from microdiffusion.frames import Frame, Reconstruction
from microdiffusion.header import RunHeader
from microdiffusion.sender import Sender

ENGINE = ("prepare", "inr", "sampler", "consistency", "scores")
_TIMEOUT_S = 60.0
_BUFFER_BYTES = 1 << 28
_FILE_VOLUMES = 16  # of a run file; the next one begins where there are more


@dataclass(frozen=True, slots=True)
class Sample:
    """One volume.

    Attributes
    ----------
    stages : dict
        Seconds; "other" is what the engine's stages leave of its total.
    engine_s : float
        The update: projections to volume.
    """

    stages: dict[str, float]
    engine_s: float
    inr_iterations: int
    served: str

    @property
    def pipeline_s(self) -> float:
        """From the first frame sent to the volume that can be read."""
        return sum(self.stages.values())


@contextlib.contextmanager
def loopback(header: RunHeader) -> Iterator[Callable[[list[Frame]], list[Frame]]]:
    """Give a call that sends a sweep's frames over the wire and returns them, checked and acknowledged."""
    arrived: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    ingest = Ingest("tcp://127.0.0.1:*")
    with contextlib.ExitStack() as stack:
        ingest.start(lambda header, _: PlainSink(header, arrived.put))
        stack.callback(ingest.stop)
        # Every frame of a run is acknowledged within its sweep, so the buffer never holds more than one.
        sender = Sender(ingest.address, header, buffer_bytes=_BUFFER_BYTES)
        sender.start()
        stack.callback(sender.finish, timeout_s=5.0)

        def carry(frames: list[Frame]) -> list[Frame]:
            for frame in frames:
                sender.wait_for_room(_TIMEOUT_S)
                sender.put(frame.info, frame.pixels)
            try:
                return [arrived.get(timeout=_TIMEOUT_S) for _ in frames]
            except queue.Empty:
                sender.raise_if_failed()
                ingest.raise_if_failed()
                raise RunError("The frames did not come through the loopback: try again.") from None

        yield carry


@contextlib.contextmanager
def run_file(
    header: RunHeader, config: RecorderConfig, volumes: int
) -> Iterator[Callable[[list[Frame], Reconstruction], None]]:
    """Give a call that records a sweep and its volume, and returns when a reader can see them."""
    written: queue.SimpleQueue[object] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="mdd-bench-") as folder:
        recorder = create_recorder(
            Path(folder) / "run.h5",
            header,
            config.model_copy(update={"time_points": volumes}),
            frames_per_sweep=header.frames_per_sweep,
            configuration="{}",
            provenance={},
            on_written=written.put,
        )
        recorder.start()

        def write(frames: list[Frame], result: Reconstruction) -> None:
            for frame in frames:
                recorder.put_frame(frame)
            info = frames[0].info
            key = info.sweep, info.channel, info.position
            while not recorder.put_volume(*key, result, acquired_s=0.0, received_s=time.monotonic()):
                recorder.raise_if_failed()
                time.sleep(0.001)
            try:
                written.get(timeout=_TIMEOUT_S)
            except queue.Empty:
                recorder.raise_if_failed()
                raise RunError(
                    f"Volume {info.sweep} was not written within {_TIMEOUT_S:g} s: is the disk well?"
                ) from None

        try:
            yield write
        finally:
            recorder.stop()


def whole_way(
    reconstructor: Reconstructor, scene: Scene, volumes: int, recorder: RecorderConfig
) -> list[Sample]:
    """Return the cold volume, those that warm up, and then as many as are asked for."""
    assembler = Assembler(timeout_s=60.0)
    samples: list[Sample] = []
    room = 1 + WARM_UP + min(volumes, _FILE_VOLUMES)
    with loopback(scene.header) as carry, run_file(scene.header, recorder, room) as write:
        for number in range(1 + WARM_UP + volumes):
            sent = scene.frames(number)
            marks = [time.perf_counter()]
            frames = carry(sent)
            marks.append(time.perf_counter())
            sweep = assemble(assembler, frames)
            marks.append(time.perf_counter())
            result = reconstructor.reconstruct(sweep)
            marks.append(time.perf_counter())
            write(frames, result)
            marks.append(time.perf_counter())
            receive_s, assemble_s, _, write_s = np.diff(marks).tolist()
            total = result.seconds["total"]
            stages = {name: result.seconds.get(name, 0.0) for name in ENGINE}
            stages |= {name: s for name, s in result.seconds.items() if name != "total"}
            stages["other"] = max(0.0, total - sum(stages.values()))
            stages = {"receive": receive_s, "assemble": assemble_s, **stages, "write": write_s}
            samples.append(Sample(stages, total, result.inr_iterations, result.served))
    return samples


def summary(samples: Sequence[Sample], scene: Scene) -> dict[str, Any]:
    """Return the figures of `whole_way`, as JSON can hold them: the cold volume apart from the warm ones."""
    cold, warm = samples[0], list(samples[1 + WARM_UP :])
    volume_s = statistics.median(sample.engine_s for sample in warm)
    pipeline_s = [sample.pipeline_s for sample in warm]
    # The half of the volumes whose time is nearest to the median: their mean stages add up to it.
    near = sorted(warm, key=lambda sample: abs(sample.pipeline_s - statistics.median(pipeline_s)))
    middle = near[: max(1, (len(near) + 1) // 2)]
    voxels = int(np.prod(scene.header.shape))
    return {
        "voxels": voxels,
        "projections": scene.projections,
        "volumes": len(warm),
        "volume_s": volume_s,
        "pipeline_s": statistics.median(pipeline_s),
        "cold_s": cold.engine_s,
        "voxels_per_s": voxels / volume_s,
        "ns_per_voxel": 1e9 * volume_s / voxels,
        "latency_s": {
            f"p{share}": {
                "pipeline": float(np.percentile(pipeline_s, share)),
                "engine": float(np.percentile([sample.engine_s for sample in warm], share)),
            }
            for share in (50, 95, 99)
        },
        "stages": {
            name: statistics.fmean(sample.stages.get(name, 0.0) for sample in middle) for name in cold.stages
        },
        "inr_iterations": {"cold": cold.inr_iterations, "warm": [sample.inr_iterations for sample in warm]},
        "served": dict(Counter(sample.served for sample in warm)),
    }
