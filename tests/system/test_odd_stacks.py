"""Every command that reads a stack, and every odd stack: right or refused, never zeros in place of planes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tifffile")
pytest.importorskip("ndstorage")
from support.odd_stacks import ODD_STACKS, PIXELS, Odd, imagej, ndtiff

from microdiffusion.config import SweepConfig
from microdiffusion.daemon.calibration import read_series, read_stack
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.drivers.replay import open_source
from microdiffusion.drivers.simulate import simulate
from microdiffusion.engines.evaluation.protocol import read_truth
from microdiffusion.engines.training.data import gather
from microdiffusion.errors import MddError
from microdiffusion.files import open_projections, open_volume


def _simulate(path: Path) -> None:
    output = path.with_name("projections.h5")
    try:
        simulate(path, length_um=1.0, step_um=1.0, voxel_size_um=(1.0, 1.0, 1.0), output=output)
    except MddError:
        assert not output.exists()
        raise
    with open_projections(output) as made:
        assert made.shape[2:] == made.header.shape[1:]


def _replay(path: Path) -> None:
    with open_source(path, sweep=SweepConfig(length_um=1.0)) as source:
        assert sum(1 for _ in source.frames()) > 0


READERS: dict[str, Callable[[Path], object]] = {
    "beam": lambda path: read_stack(path, step_um=1.0),
    "camera": read_series,
    "simulate": _simulate,
    "replay": _replay,
    "evaluate": read_truth,
    "train": lambda path: gather([path]),
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
        assert cli.main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
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
