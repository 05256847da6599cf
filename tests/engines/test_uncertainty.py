"""The uncertainty beside a volume: finite, larger where the error is, sized by what was held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support.sample_data import SHAPE, header, specimen, sweep_of, write_sample

from microdiffusion import open_run
from microdiffusion.config.models import Config, EngineConfig
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.offline.reconstruct import reconstruct_file
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.trust.uncertainty import DEFAULT_SCALE, deviation, pattern, scale
from microdiffusion.runfile.verify import verify_run

METHODS = ("mdd", "inr", "tikhonov", "linear")


def config(weights: Path, method: str = "mdd") -> EngineConfig:
    return EngineConfig.model_validate(
        {"method": method, "weights": weights, "device": "cpu", "threads": 1, "uncertainty": True}
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_one_and_the_volume_is_the_same(weights: Path, method: str) -> None:
    sweep, settings = sweep_of(specimen()), config(weights, method)
    with_it = Reconstructor(header(), settings).reconstruct(sweep)
    without = Reconstructor(header(), settings.model_copy(update={"uncertainty": False})).reconstruct(sweep)
    assert without.uncertainty is None
    assert with_it.uncertainty is not None
    assert with_it.uncertainty.shape == SHAPE
    assert np.isfinite(with_it.uncertainty).all()
    assert with_it.uncertainty.min() > 0
    np.testing.assert_array_equal(with_it.volume, without.volume)


def test_it_is_large_where_the_error_is_and_about_as_large(weights: Path) -> None:
    truth = specimen()
    result = Reconstructor(header(), config(weights, "inr")).reconstruct(sweep_of(truth))
    error = np.abs(result.volume - truth - 100.0)
    assert result.uncertainty is not None
    assert spearmanr(result.uncertainty.ravel(), error.ravel()).statistic > 0.3
    assert (error < 2 * result.uncertainty).mean() > 0.6
    assert 0.3 < np.sqrt((error**2).mean() / (result.uncertainty**2).mean()) < 3


def test_a_worse_answer_to_the_held_out_projection_makes_it_larger() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(8, 16, 16, generator=generator)
    operator = torch.full((1, 8), 1 / 8)
    doubt = pattern(volume, [volume, volume.roll(1, 0)], 0.0)
    held = torch.tensordot(operator, volume, dims=1)
    variance = torch.full_like(held, 1e-4)
    scales = [scale(doubt, volume, operator, held + offset, variance) for offset in (0.0, 0.1, 0.2)]
    assert 0 < scales[0] < scales[1] < scales[2]
    assert scales[2] == pytest.approx(2 * scales[1], rel=0.05)
    small, large = (deviation(doubt, each, variance) for each in scales[1:])
    assert (large >= small).all()


def test_darkness_without_doubt_has_the_noise_alone() -> None:
    volume = torch.zeros(6, 8, 8)
    variance = torch.full((2, 8, 8), 4.0)
    found = deviation(pattern(volume, [volume], 0.0), DEFAULT_SCALE, variance)
    torch.testing.assert_close(found, torch.full_like(volume, (0.1 * 4.0) ** 0.5))


def test_it_is_in_the_run_file_checked_and_said(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, off = tmp_path / "run.h5", tmp_path / "off.h5"
    source = write_sample(tmp_path / "projections.h5", 3)
    reconstruct_file(source, path, config=Config(engine=config(weights)))
    with open_run(path) as run:
        assert run.uncertainty is not None
        assert run.uncertainty.shape == run.volume.shape == (3, *SHAPE)
        assert all(run.uncertainty[t].max() > 0 for t in range(3))
    assert verify_run(path).sound
    assert main(["info", str(path)]) == 0
    assert "uncertain by" in capsys.readouterr().out
    reconstruct_file(
        source, off, config=Config(engine=config(weights).model_copy(update={"uncertainty": False}))
    )
    with open_run(off) as run:
        assert run.uncertainty is None
