"""Every command that reads a stack, and every odd stack: right or refused, never zeros in place of planes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tifffile")
pytest.importorskip("ndstorage")
from support.odd_stacks import ODD_STACKS, OF_SEVERAL, PIXELS, Odd, imagej, ndtiff, npy, positions
from support.run_file_writer import header, put_sweep, recorder, started

from microdiffusion.config import SweepConfig
from microdiffusion.daemon.calibration import read_series, read_stack
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.drivers.replay import open_source
from microdiffusion.drivers.simulate import simulate
from microdiffusion.engines.evaluation.protocol import read_truth
from microdiffusion.engines.training.data import gather
from microdiffusion.errors import MddError
from microdiffusion.files import open_projections, open_volume, split_part


def _simulate(path: Path) -> np.ndarray:
    output = split_part(path)[0].with_name("projections.h5")
    try:
        simulate(path, length_um=1.0, step_um=1.0, voxel_size_um=(1.0, 1.0, 1.0), output=output)
    except MddError:
        assert not output.exists()
        raise
    with open_projections(output) as made:
        assert made.shape[2:] == made.header.shape[1:]
        return made.sweep(0).projections


def _replay(path: Path) -> np.ndarray:
    with open_source(path, sweep=SweepConfig(length_um=1.0)) as source:
        return np.stack([pixels for _, pixels in source.frames()])


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "beam": lambda path: read_stack(path, step_um=1.0).frames,
    "camera": read_series,
    "simulate": _simulate,
    "replay": _replay,
    "evaluate": read_truth,
    "train": lambda path: np.stack(list(gather([path]).used.values())),
}


@pytest.mark.parametrize("odd", [pytest.param(odd, id=name) for name, odd in ODD_STACKS.items()])
def test_every_reader_is_right_or_refuses(tmp_path: Path, odd: Odd) -> None:
    path = odd.make(tmp_path)
    if not odd.words:
        with open_volume(path) as file:
            np.testing.assert_array_equal(file.volume(0), odd.pixels.astype(np.float32))
            np.testing.assert_allclose(np.array(file.edges_um, float), np.array(odd.edges, float), rtol=1e-6)
            assert file.voxel_size_um == (None if None in odd.edges else file.edges_um)
        for name, read in READERS.items():
            if odd.pixels.size == PIXELS.size:
                read(path)
            elif name != "train":  # a small one may be too small for what is wanted of it, in a sentence
                with suppress(MddError):
                    read(path)
        return
    for read in READERS.values():
        with pytest.raises(MddError) as refused:
            read(path)
        text = str(refused.value)
        assert text.endswith(".")
        assert "\n" not in text
        refused.match(odd.words)


@pytest.mark.parametrize("several", [pytest.param(each, id=name) for name, each in OF_SEVERAL.items()])
def test_every_reader_reads_the_part_that_is_named(
    tmp_path: Path, several: tuple[Callable[[Path], Path], dict[str, np.ndarray]]
) -> None:
    make, parts = several
    path = make(tmp_path)
    for part, pixels in parts.items():
        named = Path(f"{path}#{part}" if part else path)
        with open_volume(named) as file:
            np.testing.assert_array_equal(file.volume(0), pixels.astype(np.float32))
        plain = npy(pixels)(tmp_path)
        for name, read in READERS.items():
            if name != "evaluate" or pixels.shape[1] > 7:
                np.testing.assert_array_equal(read(named), read(plain), err_msg=f"{name} {part}")
    for wanted in ("", "#", "#absent", "#2,absent", "#7"):
        if wanted.strip("#") or "" not in parts:
            with pytest.raises(MddError, match=r"holds .* or position.*: name it after the file") as refused:
                open_volume(f"{path}{wanted}")
            told = shlex.split(str(refused.value).rpartition(", as in ")[2].removesuffix("."))
            open_volume(told[0]).close()


def test_each_position_has_its_own_voxel_size_and_depths(tmp_path: Path) -> None:
    path = positions("Pos0", "Pos1")(tmp_path)
    for number in (0, 1):
        with open_volume(f"{path}#Pos{number}") as file:
            assert file.edges_um == (None, None, 0.25 + number)


def test_a_file_that_has_a_hash_in_its_name_comes_first(tmp_path: Path) -> None:
    path = positions("Pos0", "Pos1")(tmp_path)
    np.save(tmp_path / "two.ome.tif#Pos0.npy", PIXELS)
    with open_volume(tmp_path / "two.ome.tif#Pos0.npy") as file:
        np.testing.assert_array_equal(file.volume(0), PIXELS)
    other = path.rename(tmp_path / "a#b.ome.tif")
    with open_volume(f"{other}#Pos1") as file:
        assert file.edges_um[2] == 1.25


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"positions": ("a", "b c")}, "run of 2 positions, .* --position=a"),
        ({"channels": ("GFP", "RFP")}, "run of 2 channels, .* --channel=GFP"),
        ({}, "run of 3 files"),
    ],
)
def test_a_run_of_several_positions_channels_or_files_is_not_one_volume(
    tmp_path: Path, changes: dict[str, tuple[str, ...]], says: str
) -> None:
    run = started(recorder(tmp_path / "run.h5", run=header(**changes), time_points=3 if changes else 1))
    for sweep in range(3):
        put_sweep(run, sweep)
    run.stop()
    for name, read in READERS.items():
        with pytest.raises(MddError, match="run.h5" if name == "replay" else says):
            read(tmp_path / "run.h5")


@pytest.mark.parametrize(
    "name", ["OME that announces more planes", "OME, two positions", "compressed, flipped"]
)
def test_the_command_line_refuses_it_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = ODD_STACKS[name].make(tmp_path)
    output = tmp_path / "out"
    sizes = ["--length-um", "4", "--step-um", "4", "--output", str(output)]
    for words in (
        ["calibrate", "beam", str(path), "--step-um", "1", "--output", str(output)],
        ["calibrate", "camera", str(path), str(path), "--output", str(output)],
        ["simulate", str(path), *sizes],
        ["evaluate", str(path), "--methods", "linear", "--json", str(output)],
    ):
        leaves_out = words[0] == "evaluate"  # in a sentence, and then has nothing left
        assert cli.main(words) == (3 if leaves_out else 2)
        assert capsys.readouterr().err.count("\n") == 1 + leaves_out
        assert not output.exists()


def test_what_is_unknown_of_a_voxel_is_said_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "p.h5"
    simulate(imagej(unit="um")(tmp_path), length_um=4.0, step_um=4.0, output=output)
    (record,) = caplog.records
    assert "how large a voxel is along z: taken as 1 µm, so 1 x 0.25 x 0.25 µm" in record.getMessage()
    with open_projections(output) as made:
        assert made.header.voxel_size_um == (1.0, 0.25, 0.25)


def test_a_stack_at_one_depth_is_asked_for_its_step(tmp_path: Path) -> None:
    path = ndtiff(notes=lambda z: {"ZPositionUm": 27.0})(tmp_path)
    with pytest.raises(MddError, match="give --step-um"):
        read_stack(path)


def test_depths_of_an_ndtiff_are_those_of_its_images(tmp_path: Path) -> None:
    """Also downwards, with irregular steps, and with two frames at each depth."""
    depths = [50.0, 50.0, 48.0, 48.0, 46.0, 46.0, 44.0, 44.0, 42.0, 42.0, 39.0, 39.0]
    path = ndtiff(notes=lambda z: {"ZPositionUm": depths[z]})(tmp_path)
    assert read_stack(path).z_um.tolist() == depths
    with open_volume(path) as file:
        assert file.edges_um[0] == 2.0
    with pytest.raises(MddError, match=r"planes 1 and 2 are both at 50 µm: average"):
        simulate(path, length_um=4.0, step_um=4.0, output=tmp_path / "p.h5")
    with pytest.raises(MddError, match=r"planes 1 and 2 are both at 50 µm: average"):
        _replay(path)
