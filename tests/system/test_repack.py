from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.mdd_process import Mdd
from support.run_file_writer import (
    FRAMES,
    frame,
    header,
    put_sweep,
    put_volume,
    recorder,
    resumed,
    started,
    volume,
    wait,
)
from support.sample_data import write_sample

from microdiffusion import open_run
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.lock import RunLock
from microdiffusion.daemon.recorder import compress_in_place, remove_leftovers
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.daemon.runs.folder import RunFolder
from microdiffusion.errors import DependencyError, DiskError, InputFileError, NoRoomError
from microdiffusion.export import export_run
from microdiffusion.export.bdv_link import link_run
from microdiffusion.ledger import Ledger
from microdiffusion.runfile.copy import snapshot_run
from microdiffusion.runfile.files import RunFile
from microdiffusion.runfile.layout import SNAPSHOT
from microdiffusion.runfile.schema import Status, datasets, segment_path
from microdiffusion.runfile.verify import verify_run

SHAPE = (6, 64, 80)
FORMS = [("gzip", None), ("gzip", (4, 24, 100)), ("lz4", (1, 16, 16))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run.h5"


def smooth(sweep: int, channel: int = 0, position: int = 0) -> np.ndarray:
    """Return a volume that can be compressed."""
    levels = 100 * np.arange(SHAPE[0]) + 10 * sweep + 3 * channel + position
    return np.broadcast_to(levels[:, None, None], SHAPE).astype(np.float32)


def several(path: Path, **config: Any) -> Recorder:
    """Return a recorder that wrote two channels and two positions, with a gap and rolling volumes."""
    run = header(shape=SHAPE, channels=("a", "b"), positions=("p", "q"))
    target = started(recorder(path, run=run, live=True, **config))
    for sweep in range(3):
        for channel in range(2):
            for position in range(2):
                put_volume(target, sweep, channel, position, volume=smooth(sweep, channel, position))
    target.mark(3, 0, 0, Status.SKIPPED, "the engine was busy")
    target.put_event("disk", "it was full")
    target.put_ledger(Ledger())
    wait(lambda: target.counts[Status.WRITTEN] == 12)
    return target


def contents(path: Path) -> dict[str, np.ndarray]:
    """Return all that the one file of a run holds; of images what is announced."""
    part = RunFile(path)
    values = {}
    for one in datasets(part.plan):
        values[one.path] = np.array(part.view(one.path)[()])
    part.close()
    return values


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize(("compression", "chunks"), FORMS, ids=str)
def test_repacked_and_back_all_is_as_it_was(
    path: Path, compression: str, chunks: tuple[int, int, int] | None
) -> None:
    if compression == "lz4":
        pytest.importorskip("hdf5plugin")
    several(path).stop()
    original = path.read_bytes()
    packed, back = path.with_name("packed.h5"), path.with_name("back.h5")
    before = contents(path)
    assert before["mdd/status"].tolist() == [[1, 1], [1, 1], [1, 1], [3, 0]]
    report = snapshot_run(path, packed, compression=compression, chunks=chunks)
    assert (report.sound, report.closed, report.volumes) == (True, True, 12)
    same(before, contents(packed))
    assert snapshot_run(packed, back).sound
    same(before, contents(back))
    assert path.read_bytes() == original
    with open_run(packed) as run:
        np.testing.assert_array_equal(run.volume[2, 1], smooth(2, 1))
        assert [gap.reason for gap in run.gaps() if gap.status == Status.SKIPPED] == ["the engine was busy"]
    with h5py.File(back) as file:
        assert (file.attrs["storage"], file["volume"].chunks) == (b"static", None)
    with open_run(path) as run, open_run(packed) as other:
        for index in ((1, 0), (slice(1, 3), 1, slice(2, 4), 5), (-3, 1, Ellipsis, slice(None, None, -1))):
            np.testing.assert_array_equal(run.volume[index], other.volume[index])


def test_files_of_a_run_become_one_that_plain_h5py_opens(path: Path) -> None:
    shape = (16, 128, 128)
    target = started(recorder(path, time_points=2, run=header(shape=shape)))
    for sweep in range(5):
        put_volume(target, sweep, volume=np.full(shape, sweep, np.float32))
    target.stop()
    assert segment_path(path, 2).exists()
    packed = path.with_name("packed.h5")
    report = snapshot_run(path, packed, compression="gzip", chunks=(2, 1000, 32))
    assert (report.files, report.volumes) == (1, 5)
    assert packed.stat().st_size < sum(one.stat().st_size for one in path.parent.glob("run*.h5")) / 2
    # In a process of its own, which knows nothing of this one's HDF5.
    code = f"""
import h5py, zlib
with h5py.File({str(packed)!r}) as file:
    assert file["volume"].chunks == (1, 2, 128, 32) and file["volume"].compression == "gzip"
    assert file["projections"].chunks == (1, 1, 128, 32)
    assert file["mdd/crc32"].compression is None
    print(sum(zlib.crc32(file["volume"][t].tobytes()) == file["mdd/crc32"][t] for t in range(5)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5"


def test_what_a_run_that_goes_on_holds_is_repacked(path: Path) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    put_sweep(target, 1)
    wait(lambda: target.counts[Status.WRITTEN] == 2)
    packed = path.with_name("packed.h5")
    report = snapshot_run(path, packed, compression="gzip")
    put_sweep(target, 2)
    target.stop()
    assert (report.sound, report.closed, report.volumes, report.frames) == (True, False, 2, 2 * FRAMES)
    with open_run(packed) as run:
        assert not run.closed
        np.testing.assert_array_equal(run.projections[1, 2], frame(1, 2).pixels)
    assert (verify_run(path).sound, verify_run(path).volumes) == (True, 3)


def test_a_run_is_resumed_in_a_copy_that_was_made_static_again(path: Path) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    target.stop()
    packed, back = path.with_name("a_packed.h5"), path.with_name("back.h5")
    snapshot_run(path, packed, compression="gzip")  # its name comes before that of the run
    assert RunFolder(path.parent).find(header().run_id) == path
    with pytest.raises(InputFileError, match="--compression none"):
        resumed(packed)
    snapshot_run(packed, back)
    again = started(resumed(back))
    put_sweep(again, 1)
    again.stop()
    report = verify_run(back)
    assert (report.sound, report.closed, report.volumes) == (True, True, 2)


def test_exports_of_a_compressed_run(path: Path) -> None:
    several(path).stop()
    packed = path.with_name("packed.h5")
    snapshot_run(path, packed, compression="gzip")
    exported = export_run(packed, "bdv")
    assert exported.volumes == 12
    with h5py.File(exported.outputs[0]) as file:
        np.testing.assert_array_equal(file["t00002/s01/0/cells"][:].view("u2"), smooth(2, 0, 1))
    link = link_run(packed, path.with_name("link.xml"))
    assert link.volumes == 12
    with h5py.File(link.outputs[0]) as file:
        np.testing.assert_array_equal(file["t00002/s01/0/cells"][:].view("u2"), smooth(2, 0, 1))


def test_recipes_and_provenance_come_along(path: Path) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    target.stop()
    recipe = b'{"steps": 3}'
    with open_run(path), h5py.File(path, "r+") as file:
        file["mdd/recipes"][0] = recipe
    for compression in ("none", "gzip"):
        copy = path.with_name(f"{compression}.h5")
        snapshot_run(path, copy, compression=compression)
        with h5py.File(copy) as file:
            assert file["mdd/recipes"][0] == recipe
            assert file["mdd/provenance"].attrs["weights"] == b"sha256:abc"
            assert SNAPSHOT in file["mdd/provenance"].attrs


def test_command_says_what_was_saved(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several(path).stop()
    packed = path.with_name("packed.h5")
    assert main(["repack", str(path), str(packed)]) == 0
    before, after = path.stat().st_size, packed.stat().st_size
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"wrote {packed}: 12 volumes and 0 frames of a closed run, checked"
    assert second == (
        f"  {before / 1e6:.1f} MB in 1 file became {after / 1e6:.1f} MB "
        f"(compression gzip): {before / after:.2f} to 1"
    )
    back = path.with_name("back.h5")
    assert main(["repack", str(packed), str(back), "--compression", "none", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["sound"], said["compression"]) == (True, "none")
    assert (said["bytes_before"], said["bytes_after"]) == (after, back.stat().st_size)
    assert said["ratio"] == pytest.approx(after / back.stat().st_size)


@pytest.mark.parametrize(
    ("output", "more", "complaint"),
    [
        ("there.h5", [], "is not overwritten"),
        ("run_s001.h5", [], "what a further file of run.h5 is called"),
        ("new.h5", ["--compression", "none", "--chunks", "1,2,3"], "no chunks"),
        ("new.h5", ["--chunks", "1,2"], "expected slices, rows and columns"),
        ("new.h5", ["--chunks", "0,2,3"], "slices, rows and columns"),
    ],
)
def test_what_cannot_be_is_refused(
    path: Path, output: str, more: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    target.stop()
    path.with_name("there.h5").write_bytes(b"mine")
    assert main(["repack", str(path), str(path.with_name(output)), *more]) == 2
    assert complaint in capsys.readouterr().err
    assert {one.name for one in path.parent.glob("*.h5")} == {"run.h5", "there.h5"}


@pytest.mark.parametrize("trouble", ["damaged", "full", "interrupted", "no filter"])
def test_nothing_is_left_of_a_copy_that_failed(
    path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    target.stop()
    compression, error, progress = "gzip", InputFileError, lambda done, total: None
    if trouble == "damaged":
        content = bytearray(path.read_bytes())
        content[content.index(volume(0).astype("<u2").tobytes()) + 5] ^= 1
        path.write_bytes(content)
    elif trouble == "full":
        error = NoRoomError
        monkeypatch.setattr("microdiffusion.runfile.copy._MARGIN_BYTES", 1 << 60)
    elif trouble == "interrupted":
        error = KeyboardInterrupt

        def progress(done: int, total: int) -> None:
            raise KeyboardInterrupt
    else:
        compression, error = "lz4", DependencyError
        monkeypatch.setattr("microdiffusion.runfile.layout._BITSHUFFLE", 32999)
    names = {one.name for one in path.parent.iterdir()}
    with pytest.raises(error):
        snapshot_run(path, path.with_name("copy.h5"), compression=compression, progress=progress)
    assert {one.name for one in path.parent.iterdir()} == names


def test_in_place_the_copy_is_the_run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = started(recorder(path, time_points=2))
    for sweep in range(5):
        put_sweep(target, sweep)
    target.stop()
    link_run(path)
    before = {one.name for one in path.parent.iterdir()}
    assert main(["repack", str(path), "--in-place"]) == 0
    assert "3 files became" in capsys.readouterr().out
    assert before - {one.name for one in path.parent.iterdir()} == {"run_s001.h5", "run_s002.h5"}
    report = verify_run(path)
    assert (report.faults, report.closed, report.files, report.volumes) == ([], True, 1, 5)
    assert RunFolder(path.parent).find(header().run_id) == path, "it is the run, not a copy of it"
    with h5py.File(path.parent / "run_bdv.h5") as file:
        np.testing.assert_array_equal(file["t00004/s00/0/cells"][:].view("u2"), volume(4))
    with pytest.raises(InputFileError, match="--compression none"):
        resumed(path)
    assert main(["repack", str(path), "--in-place", "--compression", "none"]) == 0
    again = started(resumed(path))
    put_sweep(again, 5)
    again.stop()
    assert (verify_run(path).faults, verify_run(path).volumes) == ([], 6)


@pytest.mark.parametrize("trouble", ["damaged", "open", "interrupted", "being written", "no replacing"])
def test_in_place_the_run_stays_as_it_was_where_it_does_not_succeed(
    path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = started(recorder(path, time_points=2))
    for sweep in range(3):
        put_sweep(target, sweep)
    error, progress = InputFileError, lambda done, total: None
    if trouble in ("open", "being written"):
        wait(lambda: target.counts[Status.WRITTEN] == 3)
    else:
        target.stop()
    if trouble == "damaged":
        content = bytearray(path.read_bytes())
        content[content.index(volume(0).astype("<u2").tobytes()) + 5] ^= 1
        path.write_bytes(content)
    elif trouble == "being written":
        for part in path.parent.glob("*.h5"):
            with h5py.File(part, "r+", locking=False) as file:
                file["mdd/closed"][()] = 1
    elif trouble == "interrupted":
        error = KeyboardInterrupt

        def progress(done: int, total: int) -> None:
            raise KeyboardInterrupt

    elif trouble == "no replacing":
        error = DiskError
        monkeypatch.setattr("microdiffusion.daemon.recorder.compress.os.replace", full_disk)
    there = {one.name: one.read_bytes() for one in path.parent.glob("*.h5")}
    with pytest.raises(error):
        compress_in_place(path, progress=progress)
    assert {one.name: one.read_bytes() for one in path.parent.glob("*.h5")} == there
    assert list(path.parent.glob(".*packed*")) == []
    target.stop()


def full_disk(*paths: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_further_files_that_a_kill_left_behind_the_compressed_one_are_passed_over(path: Path) -> None:
    target = started(recorder(path, time_points=2))
    for sweep in range(4):
        put_sweep(target, sweep)
    target.stop()
    left = segment_path(path, 1).read_bytes()
    compress_in_place(path)
    segment_path(path, 1).write_bytes(left)
    assert (verify_run(path).faults, verify_run(path).volumes) == ([], 4)
    with open_run(path) as run:
        assert (len(run), len(run.paths)) == (4, 1)
    folder = path.parent / f"..{path.name}.packed.part-x"
    folder.mkdir()
    lock = RunLock(path)
    lock.acquire()
    remove_leftovers(path.parent)
    assert folder.exists(), "another process is at it"
    lock.release()
    remove_leftovers(path.parent)
    assert not folder.exists()
    compress_in_place(path)
    assert [one.name for one in path.parent.iterdir()] == ["run.h5"]


def test_the_daemon_compresses_a_run_when_it_is_over(tmp_path: Path) -> None:
    source = write_sample(tmp_path / "projections.h5", sweeps=3)
    output = tmp_path / "runs"
    settings = ["engine.method=linear", "engine.device=cpu", "recorder.compress_after=gzip"]
    arguments = ["replay", source, "--serve", "--output", output]
    for setting in settings:
        arguments += ["--set", setting]
    with Mdd(*arguments, folder=tmp_path) as mdd:
        assert mdd.finish() == 0, mdd.err
        said = mdd.out
    (path,) = output.glob("*.h5")
    if "is being compressed by process" in said:
        assert f"{path} is being compressed by process" in said
    wait(lambda: is_compressed(path), 60.0)
    assert (verify_run(path).faults, verify_run(path).volumes) == ([], 3)


def is_compressed(path: Path) -> bool:
    with h5py.File(path) as file:
        return file["volume"].compression == "gzip"
