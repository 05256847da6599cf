from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from support.power_cuts import power_cut_trials
from support.run_file_writer import put_sweep, recorder, resumed, volume, wait

from microdiffusion.daemon.recorder.chunk_tables import ChunkTables
from microdiffusion.daemon.recorder.mending import mend
from microdiffusion.errors import InputFileError
from microdiffusion.runfile.layout import Status
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.verify import verify_run


@pytest.mark.timeout(300)
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_whatever_a_power_cut_leaves_every_volume_marked_written_is_whole(
    tmp_path: Path, compression: str
) -> None:
    sweeps = [0, 1, 130]  # the last one makes the file longer
    found = power_cut_trials(tmp_path, (6, 72, 80), {"compression": compression}, sweeps=sweeps, each=1)
    assert found["wrong"] == []
    assert found["volumes"] == 3
    assert found["files"] >= 8
    assert found["mended"] >= 3


@pytest.mark.parametrize("options", [{}, {"compression": 1}])
def test_every_table_is_found_and_what_is_kept_is_read(tmp_path: Path, options: dict[str, int]) -> None:
    path = tmp_path / "x.h5"
    length = 9000  # of two chunks: so many that the tables have pages
    with h5py.File(path, "w", libver="v110") as file:
        made = file.create_dataset("x", (length, 4), "u2", maxshape=(None, 4), chunks=(1, 2), **options)
        made[:] = 1
        address = file.id.links.get_info(b"x").u
    marked = np.arange(length) % 3 > 0
    with path.open("r+b") as stream:
        tables = ChunkTables(stream, address)
        assert (tables.length, tables.chunk) == (length, (1, 2))
        assert tables.keep(np.ones(length, bool), 2, path.stat().st_size).all()
        assert tables.save() == 0
        assert len(tables.tables) > 20
        np.testing.assert_array_equal(tables.keep(marked, 2, path.stat().st_size), marked)
        tables.length = length - 5
        assert tables.save() > 10
    with h5py.File(path) as file:
        content = file["x"][:]
        assert len(content) == length - 5
        np.testing.assert_array_equal((content == 1).all(axis=1), marked[:-5])
        assert not content[~marked[:-5]].any()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_table_whose_checksum_is_torn_is_mended_and_the_run_goes_on(
    tmp_path: Path, compression: str
) -> None:
    path, torn = tmp_path / "run.h5", tmp_path / "torn.h5"
    target = recorder(path, layout="swmr", compression=compression, time_points=1000)
    target.start()
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    content = bytearray(path.read_bytes())
    target.stop()
    with h5py.File(path) as file:
        address = file.id.links.get_info(b"volume").u
    with path.open("rb") as stream:
        sums = [table.at + len(table.content) - 4 for table in ChunkTables(stream, address).tables]
    for at in sums:
        content[at] ^= 1
    torn.write_bytes(content)
    with pytest.raises(InputFileError, match="cannot be read"), open_run(torn) as run:
        run.volume[0]
    again = resumed(torn)
    again.start()
    put_sweep(again, 200)
    again.stop()
    with open_run(torn) as run:
        np.testing.assert_array_equal(run.volume[0], volume(0))
        np.testing.assert_array_equal(run.volume[200], volume(200))
    assert verify_run(torn).sound


def test_tables_that_no_power_cut_leaves_so_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = recorder(path, layout="swmr", time_points=1000)
    target.start()
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    content = path.read_bytes()
    target.stop()
    at = content.index(b"EAHD")
    for place in range(at + 6, at + 12):
        for value in (0, 255):
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            with pytest.raises(InputFileError):
                mend(path)


def test_what_a_kill_left_needs_no_mending(tmp_path: Path) -> None:
    path, left = tmp_path / "run.h5", tmp_path / "left.h5"
    target = recorder(path, layout="swmr", compression="gzip", time_points=1000)
    target.start()
    for sweep in range(3):
        put_sweep(target, sweep)
    wait(lambda: target.counts[Status.WRITTEN] == 3)
    left.write_bytes(path.read_bytes())
    target.stop()
    mended = mend(left)
    assert (mended.tables, mended.gone) == (0, {})
