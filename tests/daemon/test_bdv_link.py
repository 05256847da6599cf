"""The link that a daemon makes at a run's start and makes anew at its end."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from support.run_file_writer import header, put_volume, recorder, started, volume, wait

from microdiffusion.daemon.runs.bdv_link import RunLink
from microdiffusion.runfile.schema import Status


def test_link_is_made_at_the_start_and_knows_all_files_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path, time_points=2))
    told: list[str] = []
    link = RunLink(path, told.append)
    link.begin()
    wait((tmp_path / "run_bdv.xml").exists)
    put_volume(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    with h5py.File(tmp_path / "run_bdv.h5") as file:
        assert np.array_equal(file["t00000/s00/0/cells"], volume(0))
    put_volume(target, 2)
    target.stop()
    link.finish()
    assert told == []
    with h5py.File(tmp_path / "run_bdv.h5") as file:
        assert np.array_equal(file["t00002/s00/0/cells"], volume(2))
    assert '<MissingView timepoint="1" setup="0" />' in (tmp_path / "run_bdv.xml").read_text("utf-8")


def test_what_cannot_be_linked_is_told_and_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path, run=header(dtype="float32")))
    told: list[str] = []
    link = RunLink(path, told.append)
    link.begin()
    put_volume(target, 0)
    target.stop()
    link.finish()
    assert len(told) == 1
    assert "BigDataViewer takes uint16" in told[0]
    assert [one.name for one in tmp_path.iterdir()] == ["run.h5"]
