from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import FRAMES, SHAPE, frame, header, put_sweep, recorder, started, volume, wait

from microdiffusion.errors import GapError, InputFileError, MissingFileError
from microdiffusion.runfile.reader import open_run
from microdiffusion.runfile.schema import Status, segment_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def write_run(path: Path, sweeps: int = 4, **arguments: object) -> None:
    target = started(recorder(path, **arguments))
    for sweep in range(sweeps):
        put_sweep(target, sweep)
    target.stop()


def test_plain_h5py_reads_what_was_written(path: Path) -> None:
    write_run(path, sweeps=4)
    with h5py.File(path) as file:
        assert file["volume"].shape == (4, *SHAPE)
        assert file["volume"].dtype == np.uint16
        assert file["mdd/status"].dtype == np.uint8
        np.testing.assert_array_equal(file["mdd/status"], 1)
        for t in range(4):
            np.testing.assert_array_equal(file["volume"][t], volume(t))
            for index in range(FRAMES):
                np.testing.assert_array_equal(file["projections"][t, index], frame(t, index).pixels)
        np.testing.assert_array_equal(file["mdd/frames/z_um"][2], [0, 4, 8])
        np.testing.assert_array_equal(file["mdd/frames/held_out"][2], [0, 0, 1])
        np.testing.assert_array_equal(file["mdd/frames/seq"][2], [6, 7, 8])
        np.testing.assert_array_equal(file["z"], -5 + 2 * np.arange(6))
        np.testing.assert_array_equal(file.attrs["voxel_size_um"], [2, 0.5, 0.25])
        assert file.attrs["default"] == b"entry"
        assert file["volume"].attrs["units"] == b"counts"
        for where in (file, file["mdd/provenance"], file["volume"], file["mdd/status"]):
            for name in where.attrs:  # text of variable length would lie in HDF5's global heap
                assert h5py.check_string_dtype(where.attrs.get_id(name).dtype) is None or (
                    h5py.check_string_dtype(where.attrs.get_id(name).dtype).length
                ), name
        assert file["mdd/provenance"].attrs["weights"] == b"sha256:abc"
        assert file["mdd/configuration"][()].decode() == '{"name": "µ"}'
        assert file["mdd/closed"][()] == 1


def test_open_run_reads_what_was_written(path: Path) -> None:
    write_run(path, sweeps=4)
    with open_run(path) as run:
        assert run.header == header()
        assert run.config == {"name": "µ"}
        assert run.provenance == {"weights": "sha256:abc"}
        assert run.voxel_size_um == (2.0, 0.5, 0.25)
        assert run.closed
        assert (len(run), run.volume.shape, run.volume.dtype) == (4, (4, *SHAPE), np.uint16)
        np.testing.assert_array_equal(run.status, [1, 1, 1, 1])
        np.testing.assert_array_equal(run.times, [0, 1, 2, 3])
        np.testing.assert_array_equal(run.volume[-1], volume(3))
        np.testing.assert_array_equal(run.volume[1, 2:4, :, 5], volume(1)[2:4, :, 5])
        np.testing.assert_array_equal(run.volume[..., 0], np.stack([volume(t)[..., 0] for t in range(4)]))
        np.testing.assert_array_equal(np.asarray(run.volume), run.volume[:])
        assert run.values("residual").tolist() == [1.5] * 4
        assert run.values("held_out_errors/mdd").tolist() == [3.0] * 4
        assert np.isnan(run.values("held_out_errors/inr")).all()
        assert run.values("served").tolist() == [3] * 4
        assert run.values("inr_iterations").tolist() == [7] * 4
        assert run.values("seconds/total").tolist() == [0.6] * 4
        np.testing.assert_allclose(run.values("seconds/other"), 0.5)
        assert np.isnan(run.values("seconds/sampler")).all()
        assert (run.values("latency_s") > 0).all()
        assert run.values("frames_received").tolist() == [FRAMES] * 4
        sweep = run.sweep(2)
        np.testing.assert_array_equal(sweep.stage.z_um, [0, 4])
        np.testing.assert_array_equal(sweep.held_out_stage.z_um, [8])
        np.testing.assert_array_equal(sweep.projections[1], frame(2, 1).pixels)


def test_what_was_read_neither_changes_nor_dies_with_the_run(path: Path) -> None:
    write_run(path)
    with open_run(path) as run:
        first = run.volume[0]
        first += 1
        np.testing.assert_array_equal(run.volume[0], volume(0))
    np.testing.assert_array_equal(first, (volume(0) + 1).astype(np.uint32).astype(np.uint16))
    with pytest.raises(ValueError, match="was closed"):
        run.volume[0]


def test_open_run_is_exported_and_importing_the_package_stays_light() -> None:
    code = (
        "import sys, microdiffusion; light = 'h5py' not in sys.modules and 'numpy' not in sys.modules; "
        "from microdiffusion import open_run; sys.exit(not (light and 'torch' not in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_only_bytes_inside_of_datasets_change(path: Path) -> None:
    """Pins the static layout: whatever is not a dataset's content is the same before and after a run."""
    target = recorder(path, time_points=4, run=header(channels=("a", "b"), positions=("p", "q")))
    target.start()
    before = np.frombuffer(path.read_bytes(), np.uint8)
    content = np.zeros(before.size, bool)
    with h5py.File(path) as file:

        def cover(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                content[item.id.get_offset() : item.id.get_offset() + item.nbytes] = True

        file.visititems(cover)
    for sweep in range(4):
        for channel in range(2):
            for position in range(2):
                put_sweep(target, sweep, channel, position)
    target.stop()
    after = np.frombuffer(path.read_bytes(), np.uint8)
    assert after.size == before.size
    changed = after != before
    assert changed.sum() > 10_000
    assert not np.any(changed & ~content)
    assert (~content).sum() > 1_000


def test_room_is_reserved_before_the_first_volume(path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("no block counts here")
    target = started(recorder(path, time_points=500))
    info = path.stat()
    target.stop()
    assert info.st_blocks * 512 >= 500 * (SHAPE[0] + FRAMES) * SHAPE[1] * SHAPE[2] * 2


@pytest.mark.parametrize("durable", [pytest.param("durable", marks=pytest.mark.slow), "fast"])
def test_killed_writer_leaves_every_announced_volume(tmp_path: Path, durable: str) -> None:
    """SIGKILL at random moments, the creation of the first and of further files among them."""
    rng = np.random.default_rng(5)
    announced_in_all = 0
    for attempt in range(11):
        path = tmp_path / f"{attempt}" / "run.h5"
        script = Path(__file__).parents[1] / "support" / "run_file_writer.py"
        with subprocess.Popen(
            [sys.executable, str(script), str(path), "5", durable], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            told = []
            while attempt > 3 and not any(not line.startswith("frame") for line in told):
                told.append(writer.stdout.readline())
            time.sleep(rng.uniform(0, 0.2))
            writer.kill()
            told += [line for line in writer.stdout if line.endswith("\n")]
        announced = [int(line) for line in told if not line.startswith("frame")]
        announced_in_all += len(announced)
        if not path.exists():
            assert not announced
            continue
        seen = {}
        for segment, part in enumerate(sorted(path.parent.glob("run*.h5"))):
            with h5py.File(part) as file:
                for t in np.flatnonzero(file["mdd/status"][()] == Status.WRITTEN):
                    seen[int(t) + 5 * segment] = file["volume"][t]
        assert set(announced) <= set(seen)
        for sweep, content in seen.items():
            np.testing.assert_array_equal(content, volume(sweep))
        with open_run(path) as run:
            assert not run.closed
            assert [t for t, _ in run.follow(timeout_s=0)] == sorted(seen)
    assert announced_in_all >= 7


def test_plain_reader_sees_correct_volumes_while_the_run_goes_on(path: Path) -> None:
    """One plain reader: HDF5 shares its buffers among all that open a file in one process."""
    target = started(recorder(path, time_points=200))
    stop = threading.Event()
    problems: list[object] = []
    opens = [0]

    def look() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            with h5py.File(path, "r") as file:
                ready = np.flatnonzero(file["mdd/status"][()] == Status.WRITTEN)
                chosen = rng.permutation(ready)[:2]
                problems.extend(t for t in chosen if not np.array_equal(file["volume"][t], volume(t)))
            opens[0] += 1

    reader = threading.Thread(target=look)
    reader.start()
    with open_run(path) as run:
        for sweep in range(200):
            put_sweep(target, sweep)
            time.sleep(0.004)
            for t in np.flatnonzero(run.status == Status.WRITTEN)[-2:]:
                np.testing.assert_array_equal(run.volume[t], volume(t))
    stop.set()
    reader.join()
    target.stop()
    assert problems == []
    assert opens[0] > 20


@pytest.mark.skipif(sys.platform == "win32", reason="HDF5's locks are POSIX")
def test_opening_a_running_file_for_writing_is_refused_by_hdf5(path: Path) -> None:
    target = started(recorder(path))
    with pytest.raises(OSError, match="lock"):
        h5py.File(path, "r+")
    target.stop()
    h5py.File(path, "r+").close()


def test_reader_that_is_open_while_the_file_is_trimmed_is_not_hurt(path: Path) -> None:
    target = started(recorder(path, time_points=50))
    put_sweep(target, 0)
    with h5py.File(path) as plain, open_run(path) as run:
        wait(lambda: run.status[0] == 1)
        put_sweep(target, 1)
        target.stop()
        assert plain["volume"].shape[0] == len(run) == 50
        np.testing.assert_array_equal(plain["volume"][1], volume(1))
        assert [t for t, _ in run.follow()] == [0, 1]
        assert run.closed
    with open_run(path) as run:
        assert len(run) == 2
        np.testing.assert_array_equal(run.volume[1], volume(1))
        np.testing.assert_array_equal(run.projections[1, 2], frame(1, 2).pixels)
        assert run.closed


def test_follow_yields_each_volume_as_it_is_written_over_several_files(path: Path) -> None:
    target = started(recorder(path, time_points=3))

    def write() -> None:
        for sweep in range(8):
            if sweep == 5:
                target.mark(5, 0, 0, Status.SKIPPED, "the engine was busy")
            else:
                put_sweep(target, sweep)
            time.sleep(0.02)
        target.stop()

    writer = threading.Thread(target=write)
    with open_run(path) as run:
        writer.start()
        got = []
        for t, content in run.follow(timeout_s=20, poll_s=0.005):
            np.testing.assert_array_equal(content, volume(t))
            got.append(t)
        writer.join()
        assert got == [0, 1, 2, 3, 4, 6, 7]
    with open_run(path) as run:
        assert run.volume.shape == (8, *SHAPE)  # 3 + 3 + 2: the last file is trimmed
        assert run.status.tolist() == [1, 1, 1, 1, 1, 3, 1, 1]
        np.testing.assert_array_equal(run.volume[6], volume(6))
        np.testing.assert_array_equal(run.volume[-2:, 3], np.stack([volume(6)[3], volume(7)[3]]))
        assert run.volume[8:].shape == (0, *SHAPE)
        with pytest.raises(IndexError, match="out of bounds"):
            run.volume[8]
    with open_run(segment_path(path, 1)) as part:
        assert len(part) == 3
        assert part.sweep(0).sweep == 3


def test_follow_gives_up_after_the_timeout(path: Path) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    with open_run(path) as run:
        wait(lambda: run.status[0] == 1)
        start = time.monotonic()
        assert [t for t, _ in run.follow(timeout_s=0.2)] == [0]
        assert 0.15 < time.monotonic() - start < 5
    target.stop()


def test_channels_and_positions_have_their_places(path: Path) -> None:
    target = recorder(path, run=header(channels=("green", "red"), positions=("a", "b"), sweeps=2))
    target.start()
    for sweep in range(2):
        for channel in range(2):
            for position in range(2):
                put_sweep(target, sweep, channel, position)
    target.stop()
    for position in range(2):
        with open_run(path, position=position) as run:
            assert run.volume.shape == (2, 2, *SHAPE)
            assert run.status.tolist() == [[1, 1], [1, 1]]
            expected = np.stack([volume(1, channel, position) for channel in range(2)])
            np.testing.assert_array_equal(run.volume[1], expected)
            np.testing.assert_array_equal(
                run.sweep(1, channel=1).projections[0], frame(1, 0, 1, position).pixels
            )
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["position_001/volume"][0, 1], volume(0, 1, 1))
    with pytest.raises(InputFileError, match="no position 2"):
        open_run(path, position=2)


def test_follow_yields_a_time_point_when_all_its_channels_are_written_or_those_of_one_channel(
    path: Path,
) -> None:
    target = recorder(path, run=header(channels=("green", "red"), sweeps=3))
    target.start()
    for sweep in range(3):
        put_sweep(target, sweep, channel=0)
    target.mark(1, 1, 0, Status.FAILED, "the engine failed")
    put_sweep(target, 2, channel=1)
    with open_run(path) as run:
        wait(lambda: run.status[2, 1] == Status.WRITTEN)
        assert [t for t, _ in run.follow(timeout_s=0)] == [2]
        both = dict(run.follow(timeout_s=0))[2]
        np.testing.assert_array_equal(both, np.stack([volume(2, channel) for channel in range(2)]))
        for t, content in run.follow(timeout_s=0, channel=0):
            np.testing.assert_array_equal(content, volume(t, 0))
        assert run.written(0).tolist() == [0, 1, 2]
        assert run.written().tolist() == [2]
        gaps = [(gap.time_point, gap.channel, gap.status) for gap in run.gaps()]
        assert gaps == [(0, 1, Status.EMPTY), (1, 1, Status.FAILED)]
        assert run.gaps()[1].reason == "the engine failed"
        np.testing.assert_array_equal(run.volume[1, 0], volume(1, 0))
        with pytest.raises(GapError, match=r"no volume at \(1, 1\): it is failed, the engine failed"):
            run.volume[1]
    target.stop()


def test_a_volume_written_while_the_gaps_are_looked_for_is_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = started(recorder(path))
    put_sweep(target, 0)
    with open_run(path) as run:
        wait(lambda: run.status[0] == Status.WRITTEN)
        values = run.values

        def slow(name: str) -> np.ndarray:
            if name == "reason":
                put_sweep(target, 1)
                wait(lambda: run.status[1] == Status.WRITTEN)
            return values(name)

        monkeypatch.setattr(run, "values", slow)
        assert run.gaps() == []
    target.stop()


def test_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(MissingFileError, match="no file at"):
        open_run(path)


def change_version(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["mdd_layout"] = np.bytes_("99.0")


def drop_status(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["mdd/status"]


def spoil_header(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["mdd/run_header"][()] = b"{}"


def make_foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["volume"] = np.ones((2, 3, 4, 5))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(change_version, "layout 99.0 and this mdd .* reads layout 1", id="another version"),
        pytest.param(make_foreign, "not a run file", id="another HDF5 file"),
        pytest.param(lambda path: path.write_text("hello"), "cannot be read as HDF5", id="text"),
        pytest.param(lambda path: path.write_bytes(b""), "cannot be read as HDF5", id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), "HDF5", id="truncated by a byte"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:3000]), "HDF5", id="truncated"),
        pytest.param(drop_status, "/mdd/status is absent", id="dataset deleted"),
        pytest.param(spoil_header, "lacks a part", id="header spoilt"),
    ],
)
def test_unreadable_run_is_refused_in_one_sentence(path: Path, damage: object, words: str) -> None:
    write_run(path)
    damage(path)
    with pytest.raises(InputFileError, match=words) as caught:
        open_run(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_copy_with_the_name_of_a_further_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path))
    put_sweep(target, 0)
    target.stop()
    segment_path(path, 1).write_bytes(path.read_bytes())
    with open_run(path) as run:
        assert run.written().tolist() == [0]


def test_what_an_adaptive_acquisition_decided_is_in_the_file_and_where_the_stage_stood(path: Path) -> None:
    target = started(recorder(path))
    for sweep in range(2):
        for index in range(FRAMES):
            made = frame(sweep, index)
            decision = "" if index or sweep == 0 else f"denser at 3 to 9 µm {'x' * 140}"
            target.put_frame(
                replace(made, info=replace(made.info, refocus_um=0.5 * sweep, decision=decision))
            )
    target.stop()
    with open_run(path) as run:
        first, second = run.decisions()[:2]
        assert first == ""
        assert second.startswith("denser at 3 to 9 µm xxx")
        assert [each.info.refocus_um for each in run.frames(1)] == [0.5] * FRAMES
        np.testing.assert_array_equal(run.values("frames/refocus_um")[0], 0.0)
        assert all(not each.info.decision for each in run.frames(1))
