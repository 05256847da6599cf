"""The whole way of a volume, timed stage by stage: receive, assemble, the engine's own stages, write."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.daemon.bench.scene import assemble
from microdiffusion.daemon.bench.settings import WARM_UP
from microdiffusion.daemon.bench.transport import Disk, Wire
from microdiffusion.daemon.runs import Assembler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microdiffusion.config import RecorderConfig
    from microdiffusion.daemon.bench.scene import Scene
    from microdiffusion.daemon.bench.settings import BenchSettings
    from microdiffusion.engines.pipeline import Reconstructor

_MOST = 1000
_FILE_VOLUMES = 16  # of a run file; the next one begins where there are more
ENGINE = ("prepare", "inr", "sampler", "consistency", "judge")


@dataclass(frozen=True, slots=True)
class Sample:
    """One volume.

    Attributes
    ----------
    stages : dict
        Seconds; "other" is what the engine's stages leave of its total.
    engine_s : float
        The update: projections to volume.
    inr_iterations : int
    served : str
    raw_write_s : float
        Of as many bytes, written to a file in one go.
    """

    stages: dict[str, float]
    engine_s: float
    inr_iterations: int
    served: str
    raw_write_s: float

    @property
    def pipeline_s(self) -> float:
        """From the first frame sent to the volume that can be read."""
        return sum(self.stages.values())


def whole_way(
    reconstructor: Reconstructor, scene: Scene, settings: BenchSettings, recorder: RecorderConfig
) -> list[Sample]:
    """Return the cold volume, the volumes that warm up, and then as many as the settings ask for."""
    sessions = range(settings.sessions)
    wanted = settings.volumes
    room = 1 + WARM_UP + min(wanted, _FILE_VOLUMES)
    assembler = Assembler(timeout_s=60.0)
    samples: list[Sample] = []
    with Wire(scene.header) as wire, Disk(scene.header, recorder, room) as disk:
        number, begun = 0, 0.0
        while len(samples) < len(sessions) * (1 + WARM_UP) + wanted:
            if number == 1 + WARM_UP:
                begun = time.perf_counter()
            for session in sessions:
                frames, receive_s = wire.carry(scene.frames(number, session))
                started = time.perf_counter()
                sweep = assemble(assembler, frames)
                assemble_s = time.perf_counter() - started
                result = reconstructor.reconstruct(sweep)
                write_s = disk.write(frames, result)
                stages = {name: result.seconds.get(name, 0.0) for name in ENGINE}
                total = result.seconds["total"]
                more = {name: s for name, s in result.seconds.items() if name not in (*ENGINE, "total")}
                stages |= more
                stages["other"] = max(0.0, total - sum(stages.values()))
                stages = {"receive": receive_s, "assemble": assemble_s, **stages, "write": write_s}
                samples.append(Sample(stages, total, result.inr_iterations, result.served, disk.write_raw()))
            number += 1
            if settings.seconds is not None and begun:
                enough = time.perf_counter() - begun > settings.seconds and len(samples) > 1 + WARM_UP + 2
                wanted = 0 if enough else _MOST
    return samples


def summary(samples: Sequence[Sample], scene: Scene, sessions: int) -> dict[str, Any]:
    """Return the figures of `whole_way`, as JSON can hold them: the cold volumes apart from the warm ones."""
    cold, warm = samples[0], list(samples[sessions * (1 + WARM_UP) :])
    volume_s = statistics.median(sample.engine_s for sample in warm)
    pipeline_s = [sample.pipeline_s for sample in warm]
    middle = _middle(warm)
    stages = {
        name: statistics.fmean(sample.stages.get(name, 0.0) for sample in middle) for name in cold.stages
    }
    voxels = int(np.prod(scene.header.shape))
    percentiles = {
        f"p{share}": {
            "pipeline": float(np.percentile(pipeline_s, share)),
            "engine": float(np.percentile([sample.engine_s for sample in warm], share)),
        }
        for share in (50, 95, 99)
    }
    return {
        "voxels": voxels,
        "projections": scene.projections,
        "volumes": len(warm),
        "volume_s": volume_s,
        "volume_best_s": min(sample.engine_s for sample in warm),
        "pipeline_s": statistics.median(pipeline_s),
        "cold_s": cold.engine_s,
        "voxels_per_s": voxels / volume_s,
        "ns_per_voxel": 1e9 * volume_s / voxels,
        "latency_s": percentiles,
        "stages": stages,
        "stages_cold": cold.stages,
        "inr_iterations": {
            "cold": cold.inr_iterations,
            "warm": [sample.inr_iterations for sample in warm],
        },
        "served": dict(Counter(sample.served for sample in warm)),
        "write_fraction": min(sample.raw_write_s for sample in warm)
        / min(sample.stages["write"] for sample in warm),
    }


def _middle(samples: list[Sample]) -> list[Sample]:
    """Return the half of the volumes whose time is nearest to the median: their mean stages add up to it."""
    median = statistics.median(sample.pipeline_s for sample in samples)
    near = sorted(samples, key=lambda sample: abs(sample.pipeline_s - median))
    return near[: max(1, (len(near) + 1) // 2)]
