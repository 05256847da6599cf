"""`Run.traces`: which regions it takes, gaps, a run that grows, and volumes without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.run_file_writer import SHAPE, header, put_sweep, put_volume, recorder, started, wait

from microdiffusion import open_run, traces_of
from microdiffusion.errors import InputFileError
from microdiffusion.export import export_run
from microdiffusion.header import CameraNoise
from microdiffusion.runfile import Status

OFFSET = 100.0
LABELS = np.zeros(SHAPE, np.uint16)
LABELS[1:4, 2:6, 3:8], LABELS[3:5, 10:13, 12:15] = 3, 7


def lit(*brighter: float) -> np.ndarray:
    """Return a volume in which the two regions are so many times as bright as usual."""
    volume = np.full(SHAPE, OFFSET, np.float32)
    for label, by in zip((3, 7), brighter, strict=True):
        volume[label == LABELS] += 200.0 * by
    return volume


def test_labels_give_brightness_over_time_and_a_gap_is_nan(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path, run=header(camera=CameraNoise(offset=OFFSET, gain=1.0))))
    put_sweep(target, 0, volume=lit(1, 1))
    put_sweep(target, 1, volume=lit(1, 1.5))
    with open_run(path) as run:
        wait(lambda: len(run.written()) == 2)
        live = run.traces(LABELS, baseline=[0])
        assert live.dff.shape == (2, 2)
        target.mark(2, 0, 0, Status.LOST, "no frame came")
        put_sweep(target, 3, volume=lit(0.5, 1))
        wait(lambda: len(run.written()) == 3)
        grown = run.traces(LABELS, baseline=[0, 1])
    target.stop()
    assert grown.labels.tolist() == [3, 7]
    np.testing.assert_allclose(live.dff, [[0, 0], [0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(grown.fluorescence[0], [200, 200, np.nan, 100])
    np.testing.assert_allclose(grown.dff[1], [200 / 250 - 1, 300 / 250 - 1, np.nan, 200 / 250 - 1], rtol=1e-6)
    np.testing.assert_allclose(grown.times, [0, 1, np.nan, 3])
    there = np.isfinite(grown.dff)
    assert (grown.dff_sd[there] > 0).all()
    assert ((grown.data_share[there] >= 0) & (grown.data_share[there] <= 1)).all()
    assert np.isnan(grown.dff_sd[~there]).all()


def test_volumes_without_their_projections_have_no_data_share(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = started(recorder(path))
    put_volume(target, 0, volume=lit(1, 1))
    target.stop()
    with open_run(path) as run:
        traces = run.traces(LABELS)
    assert np.isnan(traces.data_share).all()
    assert np.isfinite(traces.dff_sd).all()


def test_a_ball_is_the_voxels_within_its_radius() -> None:
    volumes = np.random.default_rng(0).uniform(1, 2, (3, *SHAPE)).astype(np.float32)
    z, y, x = np.indices(SHAPE)
    ball = (z - 2) ** 2 + (y - 8.5) ** 2 + (x - 10) ** 2 <= 2.5**2
    told, expected = traces_of(volumes, [(2, 8.5, 10, 2.5)]), traces_of(volumes, ball)
    np.testing.assert_array_equal(told.fluorescence, expected.fluorescence)
    np.testing.assert_allclose(told.fluorescence[0], volumes[:, ball].mean(1), rtol=1e-6)
    assert told.labels.tolist() == [1]


def test_an_export_has_the_same_traces(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "run.h5"
    target = started(recorder(path, run=header(camera=CameraNoise(offset=OFFSET))))
    for sweep, by in enumerate((1.0, 1.2, 0.9)):
        put_sweep(target, sweep, volume=lit(by, 1))
    target.stop()
    export_run(path, "ome-zarr", tmp_path / "out.zarr")
    volumes = zarr.open_group(tmp_path / "out.zarr", mode="r")["0"][:, 0]
    with open_run(path) as run:
        recorded = run.traces(LABELS)
    exported = traces_of(volumes, LABELS, offset=OFFSET)
    np.testing.assert_array_equal(exported.dff, recorded.dff)
    assert np.isnan(exported.data_share).all()


@pytest.mark.parametrize(
    ("rois", "sentence"),
    [
        (np.zeros(SHAPE, int), "no label"),
        (np.zeros((2, 2, 2), int), r"label image of integers of the shape \(6, 16, 20\)"),
        (np.ones(SHAPE), "not an array of float64"),
        ([(50, 8, 8, 2)], "Ball 1 .* no voxel"),
        ([(3, 8, 8, 2), (3, np.nan, 8, 2)], "Ball 2 .* not finite"),
        ([], "label image"),
    ],
)
def test_what_is_no_region_is_refused(rois: object, sentence: str) -> None:
    with pytest.raises(InputFileError, match=sentence):
        traces_of(np.ones((2, *SHAPE), np.float32), np.asarray(rois))


def test_a_baseline_without_a_volume_and_a_series_of_channels_are_refused() -> None:
    volumes = np.full((2, *SHAPE), np.nan, np.float32)
    with pytest.raises(InputFileError, match="baseline has a volume"):
        traces_of(volumes, LABELS)
    with pytest.raises(InputFileError, match="the axes t, z, y, x"):
        traces_of(volumes[:, None], LABELS)


@pytest.mark.parametrize("baseline", [3, [0, 99], "first", [[0, 1]]])
def test_a_baseline_that_is_no_time_points_of_the_run_is_refused(baseline: Any) -> None:
    with pytest.raises(InputFileError, match="baseline"):
        traces_of(np.ones((4, *SHAPE), np.float32), LABELS, baseline=baseline)


def test_a_baseline_is_a_slice_or_any_sequence_of_time_points() -> None:
    volumes = np.multiply.outer([1.0, 2.0, 4.0, 8.0], np.ones(SHAPE)).astype(np.float32)
    for baseline in (slice(1, 2), [1], (1,), np.array([1]), np.arange(4) == 1):
        np.testing.assert_allclose(traces_of(volumes, LABELS, baseline=baseline).baseline, 2.0)


def test_what_is_dark_has_no_relative_brightness() -> None:
    traces = traces_of(np.full((4, *SHAPE), OFFSET, np.float32), LABELS, offset=OFFSET)
    assert np.isnan(traces.dff).all()
