"""Regions of one or two pixels, one slice, one projection: reconstructed like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from microdiffusion import open_run
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.files import write_projections
from microdiffusion.optics import AxialProfile

SHAPES = [(4, 1, 1), (4, 1, 40), (4, 40, 1), (4, 2, 40), (4, 40, 2), (4, 2, 2), (1, 20, 20), (2, 1, 1)]


def projections(folder: Path, shape: tuple[int, int, int], slices: int = 24, length_um: float = 12.0) -> Path:
    count, path = shape[0], folder / "p.h5"
    write_projections(
        path,
        np.random.default_rng(0).poisson(200, (3, *shape)).astype(np.uint16),
        z_um=np.linspace(6, 18, count) if count > 1 else np.array([0.5 * (slices - 1)]),
        profile=AxialProfile.box(min(length_um, slices)),
        voxel_size_um=(1.0, 0.5, 0.5),
        z0_um=0.0,
        shape_z=slices,
    )
    return path


@pytest.mark.parametrize("method", ["linear", "tikhonov", "inr", "mdd"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_method_reconstructs_small_images(
    tmp_path: Path, shape: tuple[int, int, int], method: str
) -> None:
    output = tmp_path / "run.h5"
    path = projections(tmp_path, shape)
    assert cli.main(["reconstruct", str(path), "--output", str(output), "--method", method]) == 0
    with open_run(output) as run:
        for time_point in range(3):
            volume = run.volume[time_point]
            assert volume.shape == (24, *shape[1:])
            assert np.isfinite(volume).all()
            assert 100 < volume.mean() < 300


def test_one_slice(tmp_path: Path) -> None:
    output = tmp_path / "run.h5"
    path = projections(tmp_path, (1, 2, 1), slices=1)
    assert cli.main(["reconstruct", str(path), "--output", str(output)]) == 0
    with open_run(output) as run:
        assert run.volume[2].shape == (1, 2, 1)


def test_gaps_that_no_slab_lit_are_told_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "run.h5"
    path = projections(tmp_path, (2, 8, 8), length_um=6.0)
    arguments = ["reconstruct", str(path), "--output", str(output), "--method", "linear"]
    assert cli.main(arguments) == 0
    told = "slices are lit by no slab of sweep 0"
    assert told in caplog.text
    with open_run(output) as run:
        assert any(told in event.text for event in run.events)
