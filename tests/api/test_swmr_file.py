from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import (
    FRAMES,
    frame,
    header,
    put_sweep,
    put_volume,
    recorder,
    resumed,
    volume,
    wait,
)

from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.recorder.swmr_segment import SwmrSegment
from microdiffusion.errors import DamagedError, DependencyError, InputFileError, MddError
from microdiffusion.runfile.layout import Status, peek
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.superblock import clear_mark, lookup3, read_superblock
from microdiffusion.runfile.swmr_file import require_compression
from microdiffusion.runfile.unmarked import Unmarked
from microdiffusion.runfile.verify import verify_run

STORAGES = ["none", "gzip", "lz4"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run.h5"


def needs(compression: str) -> None:
    if compression == "lz4":
        pytest.importorskip("hdf5plugin")


def elsewhere(code: str, *arguments: object) -> str:
    """Run code in another process, whose HDF5 knows nothing of this one's."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


PLAIN = """
    import sys, zlib, h5py
    with h5py.File(sys.argv[1], swmr=sys.argv[2] == "live") as file:
        for t, code in enumerate(file["mdd/status"][:]):
            if code == 1:
                assert zlib.crc32(file["volume"][t].tobytes()) == file["mdd/crc32"][t]
                print(t)
"""


@pytest.mark.parametrize("compression", STORAGES)
def test_volume_is_readable_in_another_process_as_soon_as_it_is_announced(
    path: Path, compression: str
) -> None:
    needs(compression)
    announced: list[int] = []
    target = recorder(
        path,
        layout="swmr",
        compression=compression,
        time_points=1000,
        on_written=lambda written: announced.append(written.sweep),
    )
    target.start()
    for sweep in range(3):
        put_sweep(target, sweep)
    wait(lambda: len(announced) == 3)
    plain = PLAIN.replace("import sys", "import hdf5plugin, sys") if compression == "lz4" else PLAIN
    assert elsewhere(plain, path, "live").split() == ["0", "1", "2"]
    with open_run(path) as run:
        assert run.status[:4].tolist() == [1, 1, 1, 0]
        np.testing.assert_array_equal(run.volume[2], volume(2))
        np.testing.assert_array_equal(run.projections[1, 2], frame(1, 2).pixels)
        np.testing.assert_array_equal(run.volume[2, ::-1, 3:5], volume(2)[::-1, 3:5])
    assert verify_run(path).sound
    target.stop()
    assert elsewhere(plain, path, "closed").split() == ["0", "1", "2"]
    report = verify_run(path)
    assert (report.faults, report.closed, report.volumes, report.frames) == ([], True, 3, 3 * FRAMES)


def test_file_grows_as_it_is_needed_and_is_cut_at_its_close(path: Path) -> None:
    target = recorder(path, layout="swmr", compression="gzip", time_points=5000)
    target.start()
    put_sweep(target, 0)
    put_sweep(target, 300)
    target.stop()
    with open_run(path) as run:
        assert len(run) == 301
        np.testing.assert_array_equal(run.volume[300], volume(300))
        assert run.status[1:300].tolist() == [Status.LOST] * 299
    assert verify_run(path).sound
    assert path.stat().st_size < 4_000_000


def test_open_ended_by_default() -> None:
    assert RecorderConfig(layout="swmr").time_points == 1_000_000
    assert RecorderConfig(layout="swmr", time_points=7).time_points == 7
    assert RecorderConfig().time_points == 120


@pytest.mark.parametrize("layout", ["static", "swmr"])
def test_run_goes_on_in_a_further_file_before_one_is_too_large(path: Path, layout: str) -> None:
    shape, most_bytes = (16, 64, 64), 4_000_000
    run = header(shape=shape)
    target = recorder(path, run=run, layout=layout, time_points=1000, file_gb=most_bytes / 1e9)
    target.start()
    for sweep in range(60):
        put_volume(target, sweep, volume=volume(sweep, shape=shape))
    target.stop()
    assert len(target.paths) > 1
    assert all(part.stat().st_size <= most_bytes for part in target.paths)
    with open_run(path) as opened:
        assert opened.status[:60].tolist() == [1] * 60
        np.testing.assert_array_equal(opened.volume[59], volume(59, shape=shape))
    assert verify_run(path).faults == []


def test_run_goes_on_in_a_further_file_after_its_time_points(path: Path) -> None:
    target = recorder(path, layout="swmr", compression="gzip", time_points=2)
    target.start()
    for sweep in range(5):
        put_sweep(target, sweep)
    target.stop()
    assert [part.name for part in target.paths] == ["run.h5", "run_s001.h5", "run_s002.h5"]
    with open_run(path) as run:
        for sweep in range(5):
            np.testing.assert_array_equal(run.volume[sweep], volume(sweep))
    assert verify_run(path).sound


def test_closed_run_is_gone_on_with(path: Path) -> None:
    target = recorder(path, layout="swmr", compression="gzip", time_points=1000)
    target.start()
    put_sweep(target, 0)
    target.stop()
    target = resumed(path)
    assert target.received.highest == FRAMES - 1
    target.start()
    put_sweep(target, 200)
    target.stop()
    with open_run(path) as run:
        np.testing.assert_array_equal(run.volume[0], volume(0))
        np.testing.assert_array_equal(run.volume[200], volume(200))
    assert verify_run(path).sound


def test_channels_positions_large_planes_and_floats(path: Path) -> None:
    shape = (3, 700, 1024)
    run = header(shape=shape, dtype="float32", channels=("a", "b"), positions=("p", "q"))
    target = recorder(path, run=run, layout="swmr", compression="gzip", live=True)
    target.start()
    content = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    put_volume(target, 0, 1, 1, volume=content)
    put_volume(target, 0, 0, 0, volume=-content)
    target.stop()
    with open_run(path, position=1) as opened:
        np.testing.assert_array_equal(opened.volume[0, 1], content)
        assert opened.volume.shape[1:] == (2, *shape)
    with open_run(path) as opened:
        np.testing.assert_array_equal(opened.volume[0, 0], -content)
        assert len(opened.pyramid) > 1
        assert opened.pyramid[1][0, 0].shape == opened.pyramid[1].shape[2:]
    report = verify_run(path)
    assert (report.faults, report.volumes) == ([], 2)


def test_follow_yields_each_volume_from_another_process(path: Path) -> None:
    target = recorder(path, layout="swmr", compression="gzip", time_points=1000)
    target.start()
    code = """
        import sys, microdiffusion
        with microdiffusion.open_run(sys.argv[1]) as run:
            for t, volume in run.follow(timeout_s=30):
                print(t, int(volume.sum(dtype="i8")), flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        for sweep in range(140):  # further than the room that it begins with
            put_sweep(target, sweep)
        target.stop()
        out, _ = reader.communicate(timeout=60)
    expected = [f"{t} {int(volume(t).sum(dtype='f8'))}" for t in range(140)]
    assert out.splitlines() == expected


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_killed_at_any_moment_the_file_holds_every_announced_volume(path: Path, compression: str) -> None:
    told: set[int] = set()
    for seed in range(3):
        arguments = [str(path), "1000", "swmr" if seed == 0 else "resumed", compression]
        command = [
            sys.executable,
            str(Path(__file__).parents[1] / "support" / "run_file_writer.py"),
            *arguments,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines: list[str] = []
            seconds = np.random.default_rng(seed).uniform(0.05, 0.6)
            while not any(line.strip().isdigit() for line in lines):
                lines.append(writer.stdout.readline())
            time.sleep(seconds)
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.read().splitlines()
        told |= {int(line) for line in lines if line.strip().isdigit()}
        superblock = read_superblock(path)
        assert superblock is not None
        assert superblock.marked
        assert peek(path)[0] == "0123456789abcdef" * 2
        seen = {int(t) for t in elsewhere(PLAIN, path, "live").split()}
        assert told <= seen
        with open_run(path) as run:
            assert not run.closed
            for t in seen:
                np.testing.assert_array_equal(run.volume[t], volume(t))
        assert verify_run(path).faults == []


def test_mark_is_cleared_and_any_hdf5_opens_the_file(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    target = recorder(path, layout="swmr", time_points=1000)
    target.start()
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    copy.write_bytes(path.read_bytes())  # as a kill would leave it
    target.stop()
    with pytest.raises(OSError, match="already open"):
        h5py.File(copy)
    clear_mark(copy)
    assert elsewhere(PLAIN, copy, "closed").split() == ["0"]


def test_checksum_is_that_of_hdf5(tmp_path: Path) -> None:
    # Known answers of Bob Jenkins' hashlittle.
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    with h5py.File(tmp_path / "x.h5", "w", libver="v110"):
        pass
    superblock = read_superblock(tmp_path / "x.h5")
    assert superblock is not None
    assert superblock.whole
    assert not superblock.marked


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "run.h5"
    target = recorder(path, layout="swmr", compression="gzip", time_points=1000)
    target.start()
    for sweep in range(3):
        put_sweep(target, sweep)
    target.stop()
    return path.read_bytes()


@pytest.mark.parametrize("seed", range(40))
def test_damaged_file_gives_an_error_or_its_own_content(sound: bytes, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(sound)
    if seed % 2:
        del content[int(rng.integers(len(content))) :]
    else:
        for at in rng.integers(len(content), size=rng.choice([1, 8, 64])).tolist():
            content[at] ^= 1 << int(rng.integers(8))
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(content)
    verify_run(damaged)  # a report, never an error
    with contextlib.suppress(MddError), open_run(damaged) as run:
        for t in np.flatnonzero(run.status == Status.WRITTEN)[:3].tolist():
            np.testing.assert_array_equal(run.volume[t], volume(t))


@pytest.mark.parametrize("name", ["mdd/status", "mdd/residual", "volume"])
def test_a_header_that_was_just_being_written_is_read_a_moment_later(
    sound: bytes, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(sound)
    with h5py.File(path) as file:
        at = file.id.links.get_info(name.encode()).u + 6
    with open_run(path) as run:
        np.testing.assert_array_equal(run.volume[0], volume(0))
        before = run.values("residual")
        for content in (bytes([sound[at] ^ 255]), sound[at : at + 1]):
            with path.open("r+b") as stream:
                stream.seek(at)
                stream.write(content)
            if content != sound[at : at + 1]:  # HDF5 lets go of what it cannot read anew
                with pytest.raises(DamagedError):
                    _ = run.status, run.values("residual"), run.volume[1]
        np.testing.assert_array_equal(run.values("residual"), before)
        np.testing.assert_array_equal(run.volume[1], volume(1))


def test_compression_is_refused_in_the_static_layout() -> None:
    with pytest.raises(ValueError, match=r'needs recorder\.layout = "swmr"'):
        RecorderConfig(compression="gzip")


def test_missing_filter_is_refused_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: False)
    with pytest.raises(DependencyError, match=r'pip install "microdiffusion-daemon\[compression\]"'):
        require_compression("lz4")


def test_network_folder_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from microdiffusion.daemon.recorder import filesystem

    monkeypatch.setattr(
        filesystem, "file_system_of", lambda _: filesystem.FileSystem("nfs4", "/", True, False)
    )
    with pytest.raises(InputFileError, match="nfs4"):
        recorder(path, layout="swmr").start()
    assert not path.exists()


def headers(before: bytes, after: bytes) -> list[tuple[int, bytes]]:
    """Return place and content of each of HDF5's object headers that differs."""
    one, other = (np.frombuffer(content, np.uint8) for content in (before, after))
    size = min(one.size, other.size)
    places = {after.rfind(b"OHDR", 0, at + 1) for at in np.flatnonzero(one[:size] != other[:size]).tolist()}
    ends = {place: after.find(b"OHDR", place + 4) for place in places if place >= 0}
    return [(place, after[place : min(end, place + 512) if end > 0 else None]) for place, end in ends.items()]


def test_status_is_never_longer_than_the_rest_wherever_a_kill_comes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = recorder(path, layout="swmr", time_points=1000)
    target.start()
    put_sweep(target, 0)
    target.stop()
    states: list[bytes] = []
    flush = h5py.File.flush

    def watched(file: h5py.File) -> None:
        states.append(path.read_bytes())
        flush(file)
        states.append(path.read_bytes())

    monkeypatch.setattr(h5py.File, "flush", watched)
    segment = SwmrSegment.open(path)
    assert segment.lengthen(128, most_bytes=0)
    assert segment.trim(5, most_bytes=0)
    states.append(path.read_bytes())
    monkeypatch.undo()

    cut = path.with_name("cut.h5")
    names = ("mdd/status", "mdd/reason", "mdd/frames/seq", "volume")
    tried = 0
    for before, after in pairwise(states):
        for place, content in headers(before, after)[:8]:  # a kill leaves any one of them, at first
            cut.write_bytes(before[:place] + content + before[place + len(content) :])
            with Unmarked(cut) as stream, h5py.File(stream, "r") as file:
                status, *others = (len(file[name]) for name in names)
                assert status <= min(others)
            tried += 1
    assert tried > 8


def test_a_run_of_a_later_version_is_not_gone_on_with(path: Path) -> None:
    target = recorder(path, layout="swmr", time_points=1000)
    target.start()
    put_sweep(target, 0)
    target.stop()
    with h5py.File(path, "r+") as file:
        file.attrs["mdd_layout"] = np.bytes_("1.7")
    with pytest.raises(InputFileError, match=r"layout 1\.7"):
        resumed(path)
    with open_run(path) as run:
        np.testing.assert_array_equal(run.volume[0], volume(0))


@pytest.mark.parametrize("name", ["mdd/status", "mdd/crc32", "mdd/run_header"])
def test_figures_that_claim_more_than_the_file_has_are_refused(
    sound: bytes, tmp_path: Path, name: str
) -> None:
    hostile = tmp_path / "run.h5"
    hostile.write_bytes(sound)
    with h5py.File(hostile, "r+") as file:
        kind = file[name].dtype
        del file[name]
        file.create_dataset(name, (1 << 44,), kind, maxshape=(None,), chunks=(1024,))
    with pytest.raises(InputFileError), open_run(hostile) as run:
        run.volume[0]
    assert verify_run(hostile).faults


def test_few_files_are_open_when_a_run_of_many_is_gone_on_with(path: Path) -> None:
    target = recorder(path, layout="swmr", time_points=1)
    target.start()
    for sweep in range(8):
        put_sweep(target, sweep)
    target.stop()
    assert len(target.paths) == 8
    again = resumed(path)
    again.start()
    being_open = [segment for segment in again._files.segments if segment._file or segment._reader]
    assert len(being_open) <= 5  # the last four, and the first, which has the notes
    again.stop()
    assert verify_run(path).sound


@pytest.mark.parametrize("changed", [{"chunks": (16,)}, {"chunks": (1024,), "compression": "gzip"}])
def test_figures_that_were_stored_anew_are_not_written_through(
    sound: bytes, tmp_path: Path, changed: dict[str, object]
) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(sound)
    with h5py.File(path, "r+") as file:
        there = file["mdd/residual"][()]
        del file["mdd/residual"]
        file.create_dataset("mdd/residual", data=there, maxshape=(None,), **changed)
    segment = SwmrSegment.open(path)
    with pytest.raises(InputFileError, match="mdd/residual has no place"):
        segment.write("mdd/residual", (1,), 1.0)
    segment.close()
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["mdd/residual"], there)
