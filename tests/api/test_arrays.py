"""Runs as dask and xarray arrays: the same numbers, in any scheduler, and no gap that looks like darkness."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from support.run_file_writer import SHAPE, header, put_sweep, put_volume, recorder, started, wait

from microdiffusion import open_run
from microdiffusion.adapters.arrays import BlockSource, to_dask, to_xarray
from microdiffusion.daemon.offline.summary import duration_s
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.errors import DependencyError, GapError, InputFileError
from microdiffusion.runfile.reader import Run
from microdiffusion.runfile.schema import Status

pytest.importorskip("dask.array")
LOST = 2


def write(path: Path, *, channels: tuple[str, ...] = ("default",), dtype: str = "uint16") -> Path:
    """Write five time points, of which one is lost (with two channels: in one of them)."""
    run = header(channels=channels, dtype=dtype, shape=(6, 130, 132))
    target = started(recorder(path, run=run))
    fill(target, range(5), channels)
    target.stop()
    return path


def fill(target: Recorder, sweeps: range, channels: tuple[str, ...] = ("default",)) -> None:
    shape = target.header.shape
    for sweep in sweeps:
        for channel in range(len(channels)):
            if (sweep, channel) == (LOST, len(channels) - 1):
                target.mark(LOST, channel, 0, Status.LOST, "half of its frames did not come")
                continue
            rng = np.random.default_rng([sweep, channel])
            volume = rng.integers(1, 60000, shape).astype(np.float32)
            put_volume(target, sweep, channel, volume=volume)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("arrays") / "run.h5")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("arrays") / "two.h5", channels=("GFP", "RFP"), dtype="float32")


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_dask_computes_what_the_run_holds(path: Path, level: int, scheduler: str) -> None:
    with open_run(path) as run:
        lazy = to_dask(run, level, gaps="drop")
        assert (lazy.dtype, lazy.shape[0]) == (run.volume.dtype, 4)
        assert lazy.chunksize == (1, *run.pyramid[level].shape[1:])
        np.testing.assert_array_equal(lazy.compute(scheduler=scheduler), run.pyramid[level][run.written()])


def test_dask_computes_in_other_processes_and_after_the_run_was_closed(two: Path) -> None:
    with open_run(two) as run:
        lazy = to_dask(run, gaps="drop").max(axis=(2, 3, 4))
        expected = run.volume[run.written()].max(axis=(2, 3, 4))
    np.testing.assert_array_equal(lazy.compute(scheduler="processes", num_workers=1), expected)


def test_a_gap_is_an_error_or_nan_or_left_out_but_never_zero(path: Path) -> None:
    with open_run(path) as run:
        raises = to_dask(run)
        assert raises.shape == (5, 6, 130, 132)
        np.testing.assert_array_equal(raises[3].compute(), run.volume[3])
        with pytest.raises(GapError, match="half of its frames"):
            raises.max().compute()
        nan = to_dask(run, gaps="nan")
        assert nan.dtype == np.float32
        values = nan.compute()
        assert np.isnan(values[LOST]).all()
        assert np.isfinite(np.delete(values, LOST, axis=0)).all()
        with pytest.raises(ValueError, match="'zero'"):
            to_dask(run, gaps="zero")  # type: ignore[arg-type]
        with pytest.raises(InputFileError, match="no level 9"):
            to_dask(run, 9)


def test_xarray_has_coordinates_in_um_and_s_and_says_what_is_missing(path: Path) -> None:
    pytest.importorskip("xarray")
    with open_run(path) as run:
        data = to_xarray(run)
        assert data.dims == ("t", "z", "y", "x")
        assert data.dtype == np.uint16
        assert data.time_point.values.tolist() == [0, 1, 3, 4]
        assert data.written.values.all()
        np.testing.assert_array_equal(data.t, run.times[[0, 1, 3, 4]])
        np.testing.assert_allclose(data.z, -5.0 + 2.0 * np.arange(6))
        np.testing.assert_allclose(data.x, 0.25 * np.arange(132))
        assert (data.z.attrs["units"], data.t.attrs["units"], data.attrs["units"]) == ("µm", "s", "counts")
        assert data.attrs["gaps"] == ["t=2 default: lost, half of its frames did not come"]
        np.testing.assert_array_equal(data.sel(t=3.2, method="nearest"), run.volume[3])

        whole = to_xarray(run, gaps="nan")
        assert whole.written.values.tolist() == [True, True, False, True, True]
        assert np.isnan(whole[LOST].values).all()


def test_a_coarser_level_lies_where_its_voxels_lie(path: Path) -> None:
    pytest.importorskip("xarray")
    with open_run(path) as run:
        coarse, fine = to_xarray(run, 1), to_xarray(run)
        factors = run.pyramid_factors[1]
        for axis, factor in zip("zyx", factors, strict=True):
            expected = fine[axis].values[: len(coarse[axis]) * factor].reshape(-1, factor).mean(axis=1)
            np.testing.assert_allclose(coarse[axis], expected)
        voxel = np.multiply(run.voxel_size_um, factors)
        np.testing.assert_allclose(coarse.attrs["voxel_size_um"], voxel)


def test_channels_are_named_and_each_has_its_own_gaps(two: Path) -> None:
    pytest.importorskip("xarray")
    with open_run(two) as run:
        data = to_xarray(run, gaps="nan")
        assert data.dims == ("t", "c", "z", "y", "x")
        assert data.written.values[LOST].tolist() == [True, False]
        assert np.isnan(data.sel(c="RFP")[LOST].values).all()
        np.testing.assert_array_equal(data.sel(c="GFP")[LOST], run.volume[LOST, 0])
        assert to_xarray(run).time_point.values.tolist() == [0, 1, 3, 4]


def test_a_growing_run_has_its_shape_as_of_the_call(tmp_path: Path) -> None:
    target = started(recorder(tmp_path / "run.h5"))
    with open_run(tmp_path / "run.h5") as run:
        nothing = to_dask(run)
        assert (nothing.shape, nothing.dtype) == ((0, *SHAPE), np.uint16)
        put_sweep(target, 0)
        wait(lambda: run.status[0] == Status.WRITTEN)
        first = to_dask(run)
        put_sweep(target, 1)
        wait(lambda: run.status[1] == Status.WRITTEN)
        assert first.shape[0] == 1
        second = to_dask(run)
        assert second.shape[0] == 2
        assert first.name != second.name
        target.stop()  # the file is replaced by one without unused room
        np.testing.assert_array_equal(second.compute(), run.volume[:2])


def test_a_volume_that_is_written_meanwhile_is_in_all_of_an_array_or_in_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xarray")
    target = started(recorder(tmp_path / "run.h5", time_points=1))
    put_sweep(target, 0)
    wait(lambda: target.counts[Status.WRITTEN] == 1)
    values = Run.values

    def meanwhile(run: Run, name: str) -> object:
        found = values(run, name)
        sweep = target.counts[Status.WRITTEN]  # each begins a further file
        put_sweep(target, sweep)
        wait(lambda: target.counts[Status.WRITTEN] == sweep + 1)
        return found

    with open_run(tmp_path / "run.h5") as run:
        for look in (lambda run: to_xarray(run).sizes["t"], Run.gaps, duration_s):
            monkeypatch.setattr(Run, "values", meanwhile)
            look(run)
            monkeypatch.undo()
    target.stop()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file keeps its name")
def test_a_block_is_not_read_from_another_run_that_has_taken_the_name(path: Path, tmp_path: Path) -> None:
    moving = tmp_path / "run.h5"
    moving.write_bytes(path.read_bytes())
    with open_run(moving) as run:
        source = pickle.loads(pickle.dumps(BlockSource.of(run, 0)))  # noqa: S301
    other = started(recorder(tmp_path / "other.h5", run=header(run_id="f" * 32)))
    other.stop()
    (tmp_path / "other.h5").replace(moving)
    with pytest.raises(InputFileError, match="another run"):
        source.read(0, 0)


def test_without_dask_the_install_line_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.array", None)
    monkeypatch.setitem(sys.modules, "xarray", None)
    with open_run(path) as run:
        with pytest.raises(DependencyError, match=r'pip install "microdiffusion-daemon\[dask\]"'):
            to_dask(run)
        with pytest.raises(DependencyError, match=r'pip install "microdiffusion-daemon\[xarray\]"'):
            to_xarray(run)
