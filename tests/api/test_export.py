from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.run_file_writer import header, put_volume, recorder, started, volume, wait

from microdiffusion import open_run
from microdiffusion.config.models import RecorderConfig
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.recorder.opening import create_recorder
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.errors import InputFileError
from microdiffusion.export import FORMATS, Scope, default_output, export_run
from microdiffusion.export.bdv_link import link_run, renew_link
from microdiffusion.runfile.copy import snapshot_run
from microdiffusion.runfile.pyramid import coarser, level_factors
from microdiffusion.runfile.schema import Status

SHAPE = (6, 130, 70)
VOXEL = (2.0, 0.5, 0.25)
CHANNELS, POSITIONS = ("GFP", "RFP"), ("left", "right")
SWEEPS = 5
SKIPPED = (2, 1, 0)  # sweep, channel, position

Reader = Callable[[Path], Iterator[tuple[tuple[int, int, int], np.ndarray]]]


def begin(path: Path, *, dtype: str = "uint16", **more: Any) -> Recorder:
    run = header(shape=SHAPE, channels=CHANNELS, positions=POSITIONS, dtype=dtype)
    target = started(recorder(path, run=run, **({"time_points": 3} | more)))
    for sweep in range(SWEEPS):
        for channel in range(2):
            for position in range(2):
                if (sweep, channel, position) == SKIPPED:
                    target.mark(*SKIPPED, Status.SKIPPED, "the engine was busy")
                else:
                    put_volume(target, sweep, channel, position, volume=truth(sweep, channel, position))
    wait(lambda: target.queue_bytes == 0 and target.counts[Status.WRITTEN] == 19)
    return target


def truth(sweep: int, channel: int, position: int) -> np.ndarray:
    return volume(sweep, channel, position, SHAPE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a closed run: five time points in two files, a gap, two channels, two positions."""
    path = tmp_path_factory.mktemp("run") / "run.h5"
    begin(path).stop()
    return path


def from_nrrd(folder: Path) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    nrrd = pytest.importorskip("nrrd")
    for path in sorted(folder.glob("*.nrrd")):
        data, about = nrrd.read(str(path), index_order="C")
        assert about["space directions"].tolist() == [[0.25, 0, 0], [0, 0.5, 0], [0, 0, 2.0]]
        assert about["space origin"].tolist() == [0, 0, -5]
        t = int(about["mdd_time_point"])
        assert float(about["mdd_time_s"]) == t
        yield (t, CHANNELS.index(about["mdd_channel"]), POSITIONS.index(about["mdd_position"])), data


def from_ome_tiff(path: Path) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    tifffile = pytest.importorskip("tifffile")
    ome_types = pytest.importorskip("ome_types")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        about = ome_types.from_tiff(path, validate=True)  # against the schema
    notes = [{m.k: m.value for m in one.value.ms} for one in about.structured_annotations.map_annotations]
    with tifffile.TiffFile(path) as file:
        for position, (series, image) in enumerate(zip(file.series, about.images, strict=True)):
            pixels = image.pixels
            sizes = (pixels.physical_size_z, pixels.physical_size_y, pixels.physical_size_x)
            assert (sizes, pixels.physical_size_z_unit.value) == (VOXEL, "µm")
            assert [one.name for one in pixels.channels] == list(CHANNELS)
            numbers = json.loads(notes[position]["time_points"])
            assert series.axes == "TCZYX"
            for t, number in enumerate(numbers):
                first = next(p for p in pixels.planes if (p.the_t, p.the_c, p.the_z) == (t, 0, 0))
                assert (first.delta_t, first.position_z) == (number, -5)
                for channel in range(2):
                    yield (number, channel, position), series.asarray()[t, channel]


def from_ome_zarr(folder: Path) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    zarr = pytest.importorskip("zarr")
    yaozarrs = pytest.importorskip("yaozarrs")
    root = zarr.open_group(folder, mode="r")
    assert root.attrs["bioformats2raw.layout"] == 3
    for position in range(2):
        group = root[str(position)]
        yaozarrs.validate_ome_object(dict(group.attrs), yaozarrs.v04.Image)
        (scales,) = group.attrs["multiscales"]
        first, second = (one["coordinateTransformations"] for one in scales["datasets"][:2])
        assert first[0]["scale"] == [1.0, 1.0, *VOXEL]
        assert first[1]["translation"] == [0.0, 0.0, -5.0, 0.0, 0.0]
        assert second[0]["scale"] == [1.0, 1.0, 2.0, 1.0, 0.5]
        assert second[1]["translation"] == [0.0, 0.0, -5.0, 0.25, 0.125]
        array = group["0"]
        for t in range(SWEEPS):
            for channel in range(2):
                if (folder / str(position) / "0" / str(t) / str(channel)).exists():
                    yield (t, channel, position), array[t, channel]


def from_bdv(path: Path) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    npy2bdv = pytest.importorskip("npy2bdv")
    editor = npy2bdv.BdvEditor(str(path), mode="r")
    try:
        assert (editor.ntimes, editor.nchannels, editor.ntiles) == (SWEEPS, 2, 2)
        for t in range(SWEEPS):
            for channel in range(2):
                for position in range(2):
                    try:
                        yield (t, channel, position), editor.read_view(t, channel=channel, tile=position)
                    except KeyError:
                        assert (t, channel, position) == SKIPPED
                        assert f'<MissingView timepoint="{t}" setup="2" />' in path.read_text("utf-8")
    finally:
        editor._file_object_h5.close()


READERS: dict[str, Reader] = {
    "ome-zarr": from_ome_zarr,
    "ome-tiff": from_ome_tiff,
    "bdv": from_bdv,
    "nrrd": from_nrrd,
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_another_reader_finds_every_voxel_and_no_volume_in_the_gap(
    run: Path, tmp_path: Path, name: str, compress: bool
) -> None:
    output = tmp_path / default_output(run, name).name
    told: list[tuple[int, int]] = []
    exported = export_run(
        run, name, output, compress=compress, progress=lambda *numbers: told.append(numbers)
    )
    expected = {
        (t, channel, position) for t in range(SWEEPS) for channel in range(2) for position in range(2)
    } - {SKIPPED}
    if name == "ome-tiff":  # holds whole time points
        expected.remove((2, 0, 0))
    found = set()
    for place, data in READERS[name](output):
        assert np.array_equal(data, truth(*place)), place
        found.add(place)
    assert found == expected
    assert told[-1] == (len(expected), len(expected))
    assert [(gap.time_point, gap.channel, gap.status, gap.reason) for gap in exported.gaps] == [
        (2, "RFP", "skipped", "the engine was busy")
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_that_goes_on_is_exported_as_far_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.h5"
    target = begin(path, time_points=8)
    try:
        output = default_output(path, name)
        export_run(path, name, output)
        for place, data in READERS[name](output):
            assert np.array_equal(data, truth(*place)), place
    finally:
        target.stop()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("name", ["ome-zarr", "bdv"])
def test_coarser_levels_are_those_of_the_run_or_made_by_the_same_rule(
    tmp_path: Path, name: str, stored: bool
) -> None:
    path = tmp_path / "run.h5"
    begin(path, pyramid=stored).stop()
    output = default_output(path, name)
    export_run(path, name, output, scope=Scope(channels=("GFP",), positions=("right",)))
    levels = coarser(truth(3, 0, 1).astype(np.uint16), level_factors(SHAPE, VOXEL))
    assert levels
    for number, expected in enumerate(levels, 1):
        if name == "bdv":
            with h5py.File(output.with_suffix(".h5")) as file:
                assert np.array_equal(file[f"t00003/s00/{number}/cells"], expected)
        else:
            array = pytest.importorskip("zarr").open_group(output, mode="r")[str(number)]
            assert np.array_equal(array[3, 0], expected)


def test_part_of_a_run_at_a_coarser_level(run: Path, tmp_path: Path) -> None:
    nrrd = pytest.importorskip("nrrd")
    scope = Scope(1, 2, ("RFP",), ("1",), level=1)
    export_run(run, "nrrd", tmp_path / "part", scope=scope)
    (expected, *_) = coarser(truth(2, 1, 1).astype(np.uint16), level_factors(SHAPE, VOXEL))
    names = sorted(path.name for path in (tmp_path / "part").glob("*.nrrd"))
    assert names == ["t00001_p001_c1_RFP.nrrd", "t00002_p001_c1_RFP.nrrd"]
    data, about = nrrd.read(str(tmp_path / "part" / names[1]), index_order="C")
    assert np.array_equal(data, expected)
    assert about["space origin"].tolist() == [0.125, 0.25, -5]


def test_zeros_that_were_written_are_no_gap_in_ome_zarr(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    target = started(recorder(tmp_path / "run.h5"))
    put_volume(target, 0, volume=np.zeros((6, 16, 20), np.float32))
    target.mark(1, 0, 0, Status.LOST, "no frame came")
    target.stop()
    export_run(tmp_path / "run.h5", "ome-zarr", tmp_path / "out.zarr")
    assert (tmp_path / "out.zarr/0/0").is_dir()
    assert not (tmp_path / "out.zarr/0/1").exists()


def test_uncertainties_are_images_of_their_own(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "run.h5"
    target = create_recorder(
        path,
        header(),
        RecorderConfig(time_points=2),
        frames_per_sweep=3,
        configuration="{}",
        provenance={},
        on_written=lambda written: None,
        uncertainty=True,
    )
    target.start()
    spread = np.full((6, 16, 20), 7.0, np.float32)
    put_volume(target, 0, uncertainty=spread)
    target.stop()
    export_run(path, "ome-zarr", tmp_path / "out.zarr")
    assert np.all(zarr.open_group(tmp_path / "out.zarr", mode="r")["uncertainty/0"][0, 0] == 7)
    export_run(path, "bdv", tmp_path / "out.xml")
    with h5py.File(tmp_path / "out.h5") as file:
        assert np.all(file["t00000/s01/0/cells"][()] == 7)
    assert "uncertainty of default" in (tmp_path / "out.xml").read_text("utf-8")


def test_floating_point_runs_are_scaled_for_bigdataviewer_and_refused_as_a_link(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    begin(path, dtype="float32").stop()
    with pytest.raises(InputFileError, match="uint16"):
        link_run(path)
    export_run(path, "bdv", tmp_path / "out.xml")
    with h5py.File(tmp_path / "out.h5") as file:
        scale, offset = (file["s00"].attrs[name] for name in ("mdd_scale", "mdd_offset"))
        stored = file["t00001/s00/0/cells"]
        assert stored.dtype == np.uint16
        assert np.abs(stored[()] * scale + offset - truth(1, 0, 0)).max() <= scale


def test_link_reads_the_run_while_it_goes_on_and_after(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = begin(path, time_points=8)
    link_run(path)
    with h5py.File(tmp_path / "run_bdv.h5") as file:
        assert np.array_equal(file["t00003/s02/0/cells"], truth(3, 1, 0))
        assert "t00002/s02" not in file  # the gap
        put_volume(target, 6, 1, 1, volume=truth(6, 1, 1))
        wait(lambda: target.counts[Status.WRITTEN] == 20)
        assert np.array_equal(file["t00006/s03/0/cells"], truth(6, 1, 1))
    target.stop()
    assert renew_link(path)
    with h5py.File(tmp_path / "run_bdv.h5") as file, open_run(path) as opened:
        assert np.array_equal(file["t00006/s03/0/cells"], truth(6, 1, 1))
        assert np.array_equal(file["t00004/s02/1/cells"], opened.pyramid[1][4, 1])
        assert "t00006/s00" not in file
        assert "t00007" not in file
    assert '<MissingView timepoint="5" setup="0" />' in (tmp_path / "run_bdv.xml").read_text("utf-8")
    assert (tmp_path / "run_bdv.h5").stat().st_size < path.stat().st_size / 3


def test_link_onto_a_compressed_run(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    snapshot_run(run, path, compression="gzip")
    link_run(path)
    for place, data in from_bdv(tmp_path / "run_bdv.xml"):
        assert np.array_equal(data, truth(*place)), place


def test_link_goes_over_all_files_of_a_run(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in run.parent.glob("run*.h5"):
        (moved / path.name).write_bytes(path.read_bytes())
    link_run(moved / "run.h5")
    for place, data in from_bdv(moved / "run_bdv.xml"):
        assert np.array_equal(data, truth(*place)), place


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_broken_off_leaves_nothing(run: Path, tmp_path: Path, name: str) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(run, name, tmp_path / default_output(run, name).name, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_what_exists_is_not_touched(
    run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / default_output(run, name).name
    output.write_text("mine", encoding="utf-8")
    assert main(["export", str(run), "--to", name, "--output", str(output)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--channel", "CFP"], "no channel CFP: it has GFP, RFP"),
        (["--position", "2"], "no position 2"),
        (["--level", "9"], "no level 9"),
        (["--time-points", "3-9"], "the time points 0-4, not 3-9"),
        (["--time-points", "x"], "expected time points as 3-7"),
        (["--link"], "--link is for --to bdv"),
    ],
    ids=["channel", "position", "level", "time points", "range", "link"],
)
def test_what_is_not_there_is_refused_in_a_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    output = tmp_path / "out"
    assert main(["export", str(run), "--to", "nrrd", "--output", str(output), *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not output.exists()


def test_export_says_what_it_wrote_as_json(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.xml"
    arguments = ["export", str(run), "--to", "bdv", "--output", str(output), "--json"]
    assert main([*arguments, "--time-points", "2-"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["outputs"] == [str(tmp_path / "out.h5"), str(output)]
    assert (said["volumes"], len(said["gaps"])) == (11, 1)
