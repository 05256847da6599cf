"""Marks in the run file, and snapshots of the newest volume while a run goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import h5py
import pytest
import tifffile
from support.run_file_writer import put_volume, recorder, started, volume

from microdiffusion.daemon.server.commander import Commander
from microdiffusion.daemon.server.save_tiff import save_newest
from microdiffusion.daemon.status import StatusBoard
from microdiffusion.errors import UserError
from microdiffusion.wire.messages import Command


class NoRun:
    board = StatusBoard()

    class runs:
        unclosed = ()

        @staticmethod
        def mark(text: str) -> int:
            return 0


@pytest.mark.parametrize("what", ["mark", "snapshot"])
def test_without_a_run_there_is_nothing_to_mark_or_save(what: str) -> None:
    with pytest.raises(UserError, match="No run is open"):
        Commander(NoRun()).execute(Command(command=what))  # type: ignore[arg-type]


def test_a_snapshot_is_the_newest_volume_with_its_voxels_while_the_run_goes_on(tmp_path: Path) -> None:
    run = started(recorder(tmp_path / "run.h5"))
    try:
        with pytest.raises(UserError, match="no volume is written yet"):
            save_newest(tmp_path / "run.h5", 0, 0)
        for sweep in (0, 2):
            put_volume(run, sweep)
        done = threading.Event()
        run.call(done.set)
        assert done.wait(20)
        path = save_newest(tmp_path / "run.h5", 0, 0)
    finally:
        run.stop()
    assert path.name == "run_t00002.tif"
    with tifffile.TiffFile(path) as file:
        assert (file.asarray() == volume(2)).all()
        assert file.imagej_metadata["spacing"] == 2.0
        assert file.pages[0].tags["XResolution"].value == (4, 1), "voxels of 0.25 µm"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_mark_is_an_event_of_the_run_file(tmp_path: Path) -> None:
    run = started(recorder(tmp_path / "run.h5"))
    run.put_event("mark", "new objective µ")
    run.stop()
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["mdd/events/kind"][0] == b"mark"
        assert file["mdd/events/text"][0].decode() == "new objective µ"
