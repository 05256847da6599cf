"""Layout 1.0 as docs/run-file.md specifies it: what the page names, what viewers plot, what is never read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.run_file_writer import SHAPE, header, put_sweep, put_volume, recorder, started, volume

from microdiffusion import open_run
from microdiffusion.errors import DamagedError, GapError, InputFileError
from microdiffusion.runfile.schema import RunPlan, Status, datasets
from microdiffusion.runfile.verify import verify_run

PAGE = Path(__file__).parents[2] / "docs" / "run-file.md"
LARGE = (5, 70, 80)


def large_run(path: Path, **arguments: object) -> None:
    target = started(recorder(path, run=header(shape=LARGE, sweeps=3), time_points=3, **arguments))
    for sweep in range(2):
        put_volume(target, sweep, volume=volume(sweep, shape=LARGE))
    target.mark(2, 0, 0, Status.SKIPPED, "the engine was busy")
    target.stop()


def full_plan(**changes: object) -> RunPlan:
    run = header(channels=("a", "b"), positions=("p", "q"))
    plan = RunPlan(run, 3, 4, live=True, uncertainty=True, pyramid=((1, 2, 2), (2, 4, 4)))
    return replace(plan, **changes)


def names_on_the_page() -> set[str]:
    """Return the paths in the first column of the tables, braces and lists spelled out."""
    names: set[str] = set()
    for row in re.findall(r"^\| (`/.*?) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        folder = ""
        for text in re.findall(r"`([^`]+)`", row):
            head, _, tail = text.partition("{")
            inner, _, end = tail.partition("}")
            for one in [head + option + end for option in inner.split(",")] if tail else [text]:
                path = one if one.startswith("/") else f"{folder}/{one}"
                names.add(path.lstrip("/"))
                folder = path.rpartition("/")[0]
    return names


def test_the_page_names_every_dataset_and_no_other() -> None:
    general = {
        re.sub(r"(pyramid_crc32/|pyramid[_/])\d+", r"\1N", dataset.path)
        for dataset in datasets(full_plan())
        if not dataset.path.startswith("position_001/")
    }
    attributes_only = {"mdd/provenance"}
    assert names_on_the_page() - attributes_only == general


def test_the_page_says_of_each_attribute(tmp_path: Path) -> None:
    large_run(tmp_path / "run.h5")
    text = PAGE.read_text(encoding="utf-8")
    with h5py.File(tmp_path / "run.h5") as file:
        for name in (*file.attrs, *file["pyramid/1"].attrs, *file["mdd/status"].attrs):
            assert f"`{name}`" in text, name


def test_what_has_a_time_axis_is_marked() -> None:
    short, long = (
        {dataset.path: dataset for dataset in datasets(full_plan(time_points=count))} for count in (3, 5)
    )
    for path, dataset in short.items():
        assert dataset.timed == (dataset.shape != long[path].shape), path


@pytest.mark.parametrize("channels", [("a",), ("a", "b")], ids=len)
def test_nexus_finds_a_plot_of_each_image(tmp_path: Path, channels: tuple[str, ...]) -> None:
    """By the rules of the NeXus manual: @default from the root to an NXdata, its @signal and its @axes."""
    path = tmp_path / "run.h5"
    target = started(recorder(path, run=header(shape=LARGE, channels=channels, sweeps=1), time_points=1))
    for channel in range(len(channels)):
        put_volume(target, 0, channel, volume=volume(0, shape=LARGE))
    target.stop()
    with h5py.File(path) as file:
        found, kinds = file, []
        while True:
            kinds.append(found.attrs["NX_class"])
            if "default" not in found.attrs:
                break
            found = found[found.attrs["default"].decode()]
        assert kinds == [b"NXroot", b"NXentry", b"NXdata"]
        assert found.name == "/entry/volume"
        plots = list(file["entry"].values())
        assert {plot.name.rpartition("/")[2] for plot in plots} == {"volume", "projections", "pyramid_1"}
        for plot in plots:
            signal = plot[plot.attrs["signal"].decode()]
            axes = plot.attrs["axes"]
            assert len(axes) == signal.ndim
            for axis, size in zip(axes, signal.shape, strict=True):
                if axis != b".":
                    assert plot[axis.decode()].shape == (size,)
                    assert plot[axis.decode()].attrs["units"] == b"um"
        assert file["entry/volume/volume"] == file["volume"]
        np.testing.assert_allclose(file["entry/pyramid_1/x"][:2], file["x"][:4].reshape(2, 2).mean(axis=1))


def test_silx_plots_the_volume(tmp_path: Path) -> None:
    nxdata = pytest.importorskip("silx.io.nxdata")
    large_run(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        default = nxdata.get_default(file, validate=True)
        assert default is not None
        assert default.is_valid
        assert default.signal.shape == (3, *LARGE)
        assert default.axes_dataset_names[-3:] == ["z", "y", "x"]
        for name in file["entry"]:
            assert nxdata.NXdata(file["entry"][name]).is_valid, name


def test_a_gap_is_an_error_that_says_why_or_what_the_caller_chose(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    large_run(path)
    with open_run(path) as run:
        np.testing.assert_array_equal(run.volume[:2, 1], np.stack([run.volume[t][1] for t in range(2)]))
        for series in run.pyramid:
            for index in (2, -1, slice(None), (2, 0, 3), (slice(1, 3), 0), [0, 2], ...):
                with pytest.raises(GapError, match="time point 2: it is skipped, the engine was busy"):
                    series[index]
            assert series.filled(7)[2].min() == series.filled(7)[2].max() == 7
            np.testing.assert_array_equal(series.filled(7)[1], series[1])
        with pytest.raises(GapError, match="no frame at"):
            run.projections[0]
        assert [(gap.time_point, gap.status, gap.reason) for gap in run.gaps()] == [
            (2, Status.SKIPPED, "the engine was busy")
        ]


def spoil(name: str, index: tuple[int, ...]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file[name][index] ^= 64

    return damage


def test_a_changed_voxel_is_noticed_where_a_whole_volume_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    large_run(path)
    spoil("volume", (1, 2, 3, 4))(path)
    spoil("pyramid/1", (0, 0, 0, 0))(path)
    with open_run(path) as run:
        run.volume[0]
        with pytest.raises(DamagedError, match="volume at time point 1 does not have its checksum"):
            run.volume[1]
        with pytest.raises(DamagedError, match="volume of level 1"):
            run.pyramid[1][0]
        run.pyramid[1][1]
    with open_run(path, check=False) as run:
        run.volume[1]
    assert verify_run(path).faults == [
        "level 1 of the volume of sweep 0 has the wrong checksum",
        "the volume of sweep 1 has the wrong checksum",
        "level 1 of the volume of sweep 1 is not made of its voxels",
    ]


def test_uncertainty_is_there_where_it_was_given(tmp_path: Path) -> None:
    from microdiffusion.config.models import RecorderConfig
    from microdiffusion.daemon.recorder.opening import create_recorder

    path = tmp_path / "run.h5"
    target = create_recorder(
        path,
        header(sweeps=2),
        RecorderConfig(),
        frames_per_sweep=3,
        configuration="{}",
        provenance={},
        on_written=lambda written: None,
        uncertainty=True,
    )
    target.start()
    put_sweep(target, 0, uncertainty=np.full(SHAPE, 3.0, np.float32))
    put_sweep(target, 1)
    target.stop()
    with open_run(path) as run:
        assert run.uncertainty is not None
        np.testing.assert_array_equal(run.uncertainty[0], np.full(SHAPE, 3))
        with pytest.raises(GapError, match="reconstructed without"):
            run.uncertainty[1]
        np.testing.assert_array_equal(run.volume[1], volume(1))
    assert verify_run(path).faults == []
    spoil("uncertainty", (0, 1, 1, 1))(path)
    assert verify_run(path).faults == ["the uncertainty of the volume of sweep 0 has the wrong checksum"]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        pytest.param(1, "layout 1, which was never released", id="a number"),
        pytest.param(np.bytes_("2.0"), "layout 2.0 and this mdd .* reads layout 1.x", id="next major"),
        pytest.param(np.bytes_("1.x"), "layout 1.x and", id="no version"),
        pytest.param(np.bytes_("1.7"), "", id="next minor"),
    ],
)
def test_versions(tmp_path: Path, version: object, words: str) -> None:
    path = tmp_path / "run.h5"
    large_run(path)
    with h5py.File(path, "r+") as file:
        file.attrs["mdd_layout"] = version
        file["mdd/of_a_later_version"] = np.arange(3)
    if words:
        with pytest.raises(InputFileError, match=words):
            open_run(path)
        return
    with open_run(path) as run:
        np.testing.assert_array_equal(run.volume[1], volume(1, shape=LARGE))


def test_a_run_of_a_later_version_is_not_gone_on_with(tmp_path: Path) -> None:
    from microdiffusion.daemon.recorder.segment import Segment

    path = tmp_path / "run.h5"
    large_run(path)
    with h5py.File(path, "r+") as file:
        file.attrs["mdd_layout"] = np.bytes_("1.7")
    with pytest.raises(InputFileError, match=r"layout 1\.7"):
        Segment.open(path)
