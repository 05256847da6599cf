"""The uncertainty beside a volume: finite, larger where the error is, and its intervals hold."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support.sample_data import SHAPE, header, specimen, sweep_of, write_sample
from support.session_scene import HEADER, SIDE
from support.session_scene import specimen as blobs
from support.session_scene import sweep_of as golden

from microdiffusion import open_run
from microdiffusion.config.models import Config, EngineConfig
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.daemon.offline.reconstruct import reconstruct_file
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.trust import intervals
from microdiffusion.engines.trust.uncertainty import Clues, brightness_slope, deviation
from microdiffusion.frames import Sweep
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
    assert without.uncertainty_map is not None  # a map and figures are there in any case
    np.testing.assert_allclose(
        np.square(without.uncertainty_map).mean(), np.square(with_it.uncertainty).mean(), rtol=1e-4
    )
    figures = without.confidence
    assert figures.uncertainty_rms == pytest.approx(np.sqrt(np.square(with_it.uncertainty).mean()), rel=1e-4)
    assert 0 < figures.brightness_slope <= 1
    assert math.isnan(figures.interval_width)  # nothing was held out before


def test_it_is_large_where_the_error_is_and_about_as_large(weights: Path) -> None:
    truth = specimen()
    result = Reconstructor(header(), config(weights, "inr")).reconstruct(sweep_of(truth))
    error = np.abs(result.volume - truth - 100.0)
    assert result.uncertainty is not None
    assert spearmanr(result.uncertainty.ravel(), error.ravel()).statistic > 0.3
    assert (error < 2 * result.uncertainty).mean() > 0.6
    assert 0.3 < np.sqrt((error**2).mean() / (result.uncertainty**2).mean()) < 3


def test_it_falls_as_a_session_learns_and_follows_the_error(weights: Path) -> None:
    truth = blobs(seed=5)
    made = Reconstructor(HEADER, config(weights, "inr"))
    said, true, slopes = [], [], []
    for number in range(8):
        result = made.reconstruct(golden(truth, number))
        assert result.uncertainty is not None
        inner = slice(4, SIDE - 4)
        said.append(float(np.sqrt(np.square(result.uncertainty[inner]).mean())))
        true.append(float(np.sqrt(np.square(result.volume - truth)[inner].mean())))
        slopes.append(result.confidence.brightness_slope)
    assert said[7] < 0.7 * said[0]
    assert 0.4 < true[7] / said[7] < 2.5
    assert slopes[7] > slopes[0]


def test_a_rolling_volume_has_none(weights: Path) -> None:
    result = Reconstructor(header(), config(weights, "inr")).reconstruct(sweep_of(specimen()), lane="rolling")
    assert result.uncertainty is None
    assert result.uncertainty_map is None
    assert math.isnan(result.confidence.uncertainty_rms)


def test_a_surprise_makes_it_larger_there() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(8, 16, 16, generator=generator)
    quiet = torch.full_like(volume, 1e-4)
    surprised = quiet.clone()
    surprised[:, :8] *= 50
    posterior, noise = torch.full_like(volume, 0.05), torch.tensor(1e-4)
    calm, alarmed = (deviation(Clues(volume, posterior, noise, each, 0.5)) for each in (quiet, surprised))
    assert alarmed[:, :8].mean() > 1.2 * calm[:, :8].mean()
    assert alarmed[:, :8].mean() > 1.2 * alarmed[:, 8:].mean()
    trusted = deviation(Clues(volume, posterior, noise, quiet, 1.0))
    assert (trusted < calm).all()


def test_darkness_is_surer_than_light_and_nothing_is_ever_infinite() -> None:
    volume = torch.zeros(6, 16, 16)
    volume[:, 8:] = torch.rand(6, 8, 16, generator=torch.Generator().manual_seed(0))
    found = deviation(Clues(volume, torch.full_like(volume, 0.1), torch.tensor(1e-4)))
    assert found[:, :4].mean() < 0.3 * found[:, 12:].mean()
    dark = deviation(Clues(torch.zeros(6, 8, 8), torch.full((6, 8, 8), 0.1), torch.tensor(0.0)))
    assert torch.isfinite(dark).all()


def test_the_slope_of_a_posterior_mean_is_known_without_the_truth() -> None:
    rng = np.random.default_rng(3)
    truth, noise = rng.normal(3, 1, (20, 50, 50)), 0.5
    # of a truth of variance 1, seen with noise of that variance, the mean given what is seen
    mean = 3 + (truth + rng.normal(0, np.sqrt(noise), truth.shape) - 3) / (1 + noise)
    left = torch.full((20, 50, 50), float(np.sqrt(noise / (1 + noise))))
    said, sd = brightness_slope(torch.from_numpy(mean).float(), left).tolist()
    assert np.polyfit(truth.ravel(), mean.ravel(), 1)[0] == pytest.approx(said, abs=0.01)
    assert said == pytest.approx(1 / (1 + noise), abs=0.01)
    assert 0 < sd < 0.2


def test_intervals_hold_what_they_promise_however_wrong_the_deviation_is() -> None:
    rng = np.random.default_rng(1)
    operator, known, covered = torch.full((1, 8), 1 / 8), (), []
    for _ in range(40):
        truth = torch.from_numpy(rng.random((8, 24, 24))).float()
        error = torch.from_numpy(rng.standard_t(4, (8, 24, 24))).float()
        held = torch.tensordot(operator, truth, dims=1)
        seen = held + 0.01 * torch.from_numpy(rng.standard_normal((1, 24, 24))).float()
        scores = intervals.scored(
            truth + 0.1 * error, torch.full_like(truth, 0.02), operator, seen, torch.full_like(held, 1e-4)
        )
        covered.append(intervals.coverage(scores, intervals.factor(known)))
        known = intervals.remembered(known, scores)
    assert math.isnan(covered[0])
    assert np.mean(covered[1:]) == pytest.approx(intervals.COVERAGE, abs=0.03)


def test_a_session_measures_the_coverage_of_its_intervals(weights: Path) -> None:
    truth = blobs(seed=6)
    made = Reconstructor(HEADER, config(weights, "inr"))
    figures = []
    for number in range(8):
        sweep = golden(truth, number)
        middle = len(sweep.stage) // 2
        kept = [place for place in range(len(sweep.stage)) if place != middle]
        held = Sweep(
            number,
            0,
            0,
            sweep.stage[kept],
            sweep.projections[kept],
            sweep.stage[[middle]],
            sweep.projections[[middle]],
        )
        figures.append(made.reconstruct(held).confidence)
    assert math.isnan(figures[0].interval_coverage)
    covered = [each.interval_coverage for each in figures[1:]]
    assert all(0 <= each <= 1 for each in covered)
    assert np.mean(covered) > 0.7
    assert all(each.interval_width > 0 for each in figures[1:])


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
    settings = config(weights).model_copy(update={"uncertainty": False})
    reconstruct_file(source, off, config=Config(engine=settings))
    with open_run(off) as run:
        assert run.uncertainty is None
        assert run.uncertainty_map is not None
        assert all(run.uncertainty_map[t].min() > 0 for t in range(3))
        sizes = run.values("uncertainty_rms")
        assert np.all(sizes > 0)
        np.testing.assert_allclose(np.sqrt(np.square(run.uncertainty_map[2]).mean()), sizes[2], rtol=0.05)
    assert verify_run(off).sound
    assert main(["info", str(off)]) == 0
    assert "uncertain by" in capsys.readouterr().out
