"""The engine on dask arrays: the same volumes, whoever computes the blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.recorded_sessions import write_recording

from microdiffusion import open_run
from microdiffusion.config.engine_tables import EngineConfig, InrConfig
from microdiffusion.engines import lazy_projections, map_sweeps
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.errors import GapError, GeometryError

pytest.importorskip("dask.array")
CONFIG = EngineConfig(method="inr", device="cpu", threads=1, inr=InrConfig(cold_steps=3))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("runs") / "run.h5", 6)


@pytest.mark.parametrize("scheduler", ["synchronous", "processes"])
def test_blocks_that_know_all_before_them_are_what_one_session_makes(recording: Path, scheduler: str) -> None:
    with open_run(recording) as run:
        projections, z_um = lazy_projections(run)
        assert projections.shape == (6, *z_um.shape[1:], 32, 32)
        volumes = map_sweeps(projections.rechunk({0: 3}), z_um, run.header, CONFIG, warm_up=3)
        assert volumes.chunks == ((3, 3), (24,), (32,), (32,))
        made = volumes.compute(scheduler=scheduler, num_workers=2)
        session = Reconstructor(run.header, CONFIG)
        for number in range(6):
            sweep = run.sweep(number)
            sweep.held_out, sweep.held_out_stage = sweep.held_out[:0], sweep.held_out_stage[:0]
            assert np.array_equal(made[number], session.reconstruct(sweep).volume)


def test_chunks_without_a_warm_up_begin_anew(recording: Path) -> None:
    with open_run(recording) as run:
        projections, z_um = lazy_projections(run)
        made = map_sweeps(projections.rechunk({0: 3}), z_um, run.header, CONFIG)[3].compute()
        alone = map_sweeps(projections[3:].rechunk({0: 3}), z_um[3:], run.header, CONFIG)[0].compute()
    assert np.array_equal(made, alone)


def test_what_does_not_fit_is_refused(recording: Path, tmp_path: Path) -> None:
    with open_run(recording) as run:
        projections, z_um = lazy_projections(run)
        with pytest.raises(GeometryError, match="stack them so"):
            map_sweeps(projections, z_um[:3], run.header)
        with pytest.raises(GeometryError, match="give the header"):
            map_sweeps(projections[..., :16], z_um, run.header)
        with pytest.raises(GeometryError, match="needs chunks of as many"):
            map_sweeps(projections, z_um, run.header, warm_up=2)
    cut = write_recording(tmp_path / "cut.h5", 2, cut_off=True)
    with open_run(cut) as run, pytest.raises(GapError, match="mdd reconstruct"):
        lazy_projections(run)
