"""Replays: what is in the file arrives, at the rate asked for, and every refusal is one sentence."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.wire_support import Receiver, receiving, wait_until

from microdiffusion.config.models import SweepConfig
from microdiffusion.drivers.replay import open_source, replay
from microdiffusion.errors import (
    AcquisitionError,
    AddressError,
    ConfigError,
    GeometryError,
    InputFileError,
    MissingFileError,
)
from microdiffusion.files.projections import write_projections
from microdiffusion.optics import AxialProfile
from microdiffusion.sender.faults import Faults

SWEEPS, COUNT, SHAPE = 3, 5, (20, 16, 24)
SLABS = SweepConfig(length_um=8.0, step_um=8.0, offsets="fixed", hold_out_every=0)


@pytest.fixture
def projections(tmp_path: Path) -> Path:
    path = tmp_path / "projections.h5"
    pixels = np.random.default_rng(0).integers(0, 4096, (SWEEPS, COUNT, *SHAPE[1:])).astype(np.uint16)
    write_projections(
        path,
        pixels,
        z_um=np.array([4.0, 12.0, 20.0, 28.0, 16.0]),
        profile=AxialProfile.box(8.0),
        voxel_size_um=(2.0, 0.5, 0.5),
        z0_um=0.0,
        shape_z=SHAPE[0],
        time_s=np.array([0.0, 2.0, 4.5]),
        held_out=np.array([0, 0, 0, 0, 1]),
    )
    return path


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    path = tmp_path / "volume.h5"
    with h5py.File(path, "w") as file:
        file["volume"] = np.random.default_rng(1).random((2, *SHAPE), dtype=np.float32)
        file.attrs["voxel_size_um"] = (2.0, 0.5, 0.5)
    return path


def test_a_projection_file_arrives_as_it_is(projections: Path) -> None:
    with receiving() as receiver, open_source(projections) as source:
        stats = replay(source, receiver.address)
        assert (stats.acknowledged, stats.dropped, stats.ended) == (SWEEPS * COUNT, 0, True)
        assert receiver.headers == [source.header]
        assert receiver.ends[0].reason == "finished"
        with h5py.File(projections) as file:
            for frame in receiver.frames:
                info = frame.info
                assert info.seq == info.sweep * COUNT + info.index
                assert info.held_out is (info.index == 4)
                assert info.stage.z_um == file.attrs["z_um"][info.index]
                np.testing.assert_array_equal(frame.pixels, file["projections"][info.sweep, info.index])
        assert [frame.info.camera_time_s for frame in receiver.frames[::COUNT]] == [0.0, 2.0, 4.5]


def test_a_volume_file_is_projected_on_the_way(volumes: Path) -> None:
    with receiving() as receiver, open_source(volumes, sweep=SLABS) as source:
        replay(source, receiver.address)
        header = receiver.headers[0]
        assert (header.shape, header.dtype, header.sweeps) == (SHAPE, "float32", 2)
        assert header.profile.length_um == pytest.approx(8.0)
        with h5py.File(volumes) as file:
            truth = file["volume"][()]
        slabs = truth.reshape(2, 5, 4, *SHAPE[1:]).mean(axis=2)  # four slices of 2 µm each, side by side
        assert len(receiver.frames) == 10
        for frame in receiver.frames:
            np.testing.assert_allclose(frame.pixels, slabs[frame.info.sweep, frame.info.index], rtol=1e-5)
            assert frame.info.stage.z_um == pytest.approx(3.0 + 8.0 * frame.info.index)


def test_offsets_and_held_out_projections_of_a_volume_follow_the_configuration(volumes: Path) -> None:
    slabs = SweepConfig(length_um=8.0, step_um=8.0, offsets="alternate", hold_out_every=1)
    with open_source(volumes, sweep=slabs) as source:
        infos = [info for info, _ in source.frames()]
    assert [info.held_out for info in infos] == [False, False, False, False, False, True] * 2
    assert (infos[0].stage.z_um, infos[6].stage.z_um) == (3.0, 7.0)
    assert [info.seq for info in infos] == list(range(12))
    assert {info.count for info in infos} == {6}


def test_a_single_volume_without_voxel_size_has_voxels_of_1_um(tmp_path: Path) -> None:
    path = tmp_path / "volume.h5"
    with h5py.File(path, "w") as file:
        file["volume"] = np.full((24, 16, 16), 7, dtype=np.uint8)
    with open_source(path) as source:
        assert source.header.voxel_size_um == (1.0, 1.0, 1.0)
        frames = [pixels for _, pixels in source.frames()]
    assert len(frames) == 3
    np.testing.assert_allclose(np.array(frames), 7.0, rtol=1e-6)


def test_the_rate_is_kept(projections: Path) -> None:
    with receiving() as receiver, open_source(projections) as source:
        replay(source, receiver.address, rate_hz=40.0)
        times = [frame.received_s for frame in receiver.frames]
        assert 0.3 < times[-1] - times[0] < 2.0  # 14 intervals of 25 ms


def test_without_a_rate_nothing_is_dropped_however_slow_the_daemon(projections: Path) -> None:
    with receiving() as receiver, open_source(projections) as source:
        receiver.hold()
        timer = threading.Timer(0.4, receiver.release)
        timer.start()
        stats = replay(source, receiver.address, buffer_bytes=2 * 16 * 24 * 2)
        timer.join()
        assert (stats.dropped, len(receiver.frames)) == (0, SWEEPS * COUNT)


def test_with_a_rate_a_slow_daemon_costs_frames_that_are_counted(projections: Path) -> None:
    with receiving() as receiver, open_source(projections) as source:
        receiver.hold()
        timer = threading.Timer(0.4, receiver.release)
        timer.start()
        stats = replay(source, receiver.address, rate_hz=1000.0, buffer_bytes=4 * 16 * 24 * 2)
        timer.join()
        assert stats.dropped == receiver.ends[0].dropped > 0
        assert stats.dropped + len(receiver.frames) == receiver.ends[0].announced == SWEEPS * COUNT


def test_faults_act_on_the_way(projections: Path) -> None:
    faults = Faults(drop=0.3, duplicate=0.2, reorder=0.2, corrupt=0.2, seed=2)
    with receiving() as receiver, open_source(projections) as source:
        stats = replay(source, receiver.address, faults=faults)
        assert stats.lost > 0
        assert len(receiver.frames) == len(set(receiver.seqs)) == SWEEPS * COUNT - stats.lost
        assert receiver.ends[0].announced == SWEEPS * COUNT


def test_a_replay_stops_early_in_good_order(projections: Path) -> None:
    with receiving() as receiver, open_source(projections) as source:
        stats = replay(source, receiver.address, rate_hz=10.0, stop=lambda: len(receiver.frames) >= 3)
        assert stats.ended
        assert 3 <= len(receiver.frames) < SWEEPS * COUNT
        assert receiver.ends[0].reason == "stopped"


def test_a_daemon_that_restarts_in_between_gets_the_rest(projections: Path) -> None:
    first = Receiver()
    with open_source(projections) as source:
        results = []
        thread = threading.Thread(
            target=lambda: results.append(replay(source, first.address, rate_hz=20.0)), daemon=True
        )
        thread.start()
        wait_until(lambda: len(first.frames) >= 4)
        first.stop()
        with receiving(first.address) as second:
            thread.join(20.0)
            assert results[0].ended
            assert sorted({*first.seqs, *second.seqs}) == list(range(SWEEPS * COUNT))


def test_nobody_at_the_address_is_said_soon(projections: Path) -> None:
    with receiving() as receiver:
        address = receiver.address
    with open_source(projections) as source:
        begin = time.monotonic()
        with pytest.raises(AddressError, match="start `mdd serve` there first"):
            replay(source, address, connect_timeout_s=0.3)
        assert time.monotonic() - begin < 3.0


def test_a_daemon_with_too_many_runs_is_said_with_their_names(projections: Path) -> None:
    with (
        receiving(runs=1) as receiver,
        open_source(projections) as source,
        open_source(projections) as other,
    ):
        thread = threading.Thread(target=replay, args=(source, receiver.address), kwargs={"rate_hz": 20.0})
        thread.start()
        wait_until(lambda: bool(receiver.frames))
        with pytest.raises(AcquisitionError, match="'projections'"):
            replay(other, receiver.address)
        thread.join()


def test_with_a_rate_and_a_journal_a_slow_daemon_costs_nothing(projections: Path, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with receiving() as receiver, open_source(projections) as source:
        receiver.hold()
        timer = threading.Timer(0.8, receiver.release)
        timer.start()
        stats = replay(
            source,
            receiver.address,
            rate_hz=30.0,
            buffer_bytes=8 * 16 * 24 * 2,
            journal=folder,
            journal_bytes=1 << 20,
        )
        timer.join()
        assert (stats.dropped, len(receiver.frames)) == (0, SWEEPS * COUNT)
        assert receiver.ends[0].announced == SWEEPS * COUNT
    assert list(folder.iterdir()) == []


def test_a_last_frame_that_nothing_overtakes_goes_all_the_same(projections: Path) -> None:
    with receiving() as receiver, open_source(projections) as source:
        begin = time.monotonic()
        stats = replay(source, receiver.address, faults=Faults(reorder=1.0))
        assert time.monotonic() - begin < 10.0
        assert (stats.acknowledged, len(receiver.frames)) == (SWEEPS * COUNT, SWEEPS * COUNT)


def test_being_cut_off_costs_nothing(projections: Path) -> None:
    with receiving() as receiver, open_source(projections) as source:
        stats = replay(source, receiver.address, faults=Faults(cut_s=0.3, cut_after=5))
        assert (stats.lost, stats.dropped, len(receiver.frames)) == (0, 0, SWEEPS * COUNT)


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_rate_is_refused(projections: Path, rate_hz: float) -> None:
    with open_source(projections) as source, pytest.raises(ConfigError, match="positive number of frames"):
        replay(source, "tcp://127.0.0.1:5750", rate_hz=rate_hz)


def test_an_error_in_the_file_ends_the_run_with_the_reason(volumes: Path) -> None:
    with h5py.File(volumes, "r+") as file:
        file["volume"][1, 3, 4, 5] = np.nan
    with receiving() as receiver, open_source(volumes, sweep=SLABS) as source:
        with pytest.raises(InputFileError, match="time point 1"):
            replay(source, receiver.address)
        assert "time point 1 holds values that are not finite" in receiver.ends[0].reason
        assert len(receiver.frames) == 5


def _write_text(path: Path) -> None:
    path.write_text("no HDF5")


def _write_foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["something"] = [1, 2, 3]


def _write_flat_volume(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["volume"] = np.zeros((16, 16))


def _write_thin_volume(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["volume"] = np.zeros((4, 16, 16))


@pytest.mark.parametrize(
    ("write", "error"),
    [
        pytest.param(lambda path: None, MissingFileError, id="missing"),
        pytest.param(_write_text, InputFileError, id="not HDF5"),
        pytest.param(_write_foreign, InputFileError, id="neither projections nor volume"),
        pytest.param(_write_flat_volume, InputFileError, id="volume of two axes"),
        pytest.param(_write_thin_volume, GeometryError, id="volume thinner than the slab"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_refused(tmp_path: Path, write: object, error: type) -> None:
    path = tmp_path / "input.h5"
    write(path)
    with pytest.raises(error) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
