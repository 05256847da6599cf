"""Run files with the frames of several sessions, and no volumes: what `mdd reconstruct` is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.recorder.opening import create_recorder
from microdiffusion.frames import Frame, FrameInfo, Sweep
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.schema import Status
from support.sample_data import header, specimen, sweep_of


def recorded_sweep(number: int, channel: int = 0, position: int = 0) -> Sweep:
    sweep = sweep_of(specimen(seed=2 * channel + position, drift=0.1 * number), number, seed=number)
    sweep.channel, sweep.position = channel, position
    return sweep


def write_recording(
    path: Path, sweeps: int, *, channels: int = 1, positions: int = 1, cut_off: bool = False
) -> Path:
    """Write a run without volumes; of its last sweep one frame came where it is `cut_off`."""
    about = header(
        channels=tuple(f"c{number}" for number in range(channels)),
        positions=tuple(f"p{number}" for number in range(positions)),
        sweeps=sweeps,
        frames_per_sweep=8,
    )
    recorder = create_recorder(
        path,
        about,
        RecorderConfig(time_points=sweeps),
        frames_per_sweep=8,
        configuration="{}",
        provenance={},
        on_written=lambda written: None,
    )
    recorder.start()
    seq = 0
    places = np.ndindex(sweeps, channels, positions)
    last = (sweeps - 1, channels - 1, positions - 1)
    for number, channel, position in places:
        sweep = recorded_sweep(number, channel, position)
        stages = list(sweep.stage + sweep.held_out_stage)
        pixels = np.concatenate([sweep.projections, sweep.held_out]).astype(np.uint16)
        for index, stage in enumerate(stages):
            if index == 0 or not (cut_off and (number, channel, position) == last):
                held_out = index >= len(sweep.stage)
                info = FrameInfo(seq, number, index, len(stages), stage, channel, position, held_out)
                recorder.put_frame(Frame(info, pixels[index]))
                seq += 1
        recorder.mark(number, channel, position, Status.SKIPPED, "nobody had time")
    recorder.put_ledger(Ledger(announced=seq, received=seq, announced_known=1))
    recorder.stop()
    return path
