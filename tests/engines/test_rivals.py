"""Weights of one specimen beside those that ship: which of them serves, and what the user is told."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from support.sample_data import header, specimen, sweep_of

from microdiffusion.config import EngineConfig
from microdiffusion.engines.diffusion import Belonging, Denoiser, load_denoiser, save_denoiser
from microdiffusion.engines.pipeline import Engine, Reconstructor, open_engine, rivals
from microdiffusion.engines.runtimes import TorchRuntime
from microdiffusion.engines.trust import Findings
from microdiffusion.frames import Reconstruction, Sweep

CPU = torch.device("cpu")
WHOSE = Belonging("brain7", "ab", 12.0, 12.0, 2.0)
CONFIG = EngineConfig(device="cpu", runtime="torch", inr={"cold_steps": 3, "warm_steps": 2})


class Adds(Denoiser):
    """Adds so many times what it is to add."""

    multiple = 1

    def __init__(self, share: float) -> None:
        super().__init__()
        self.settings = {}
        self.share = share
        self.asked = 0

    def correction(self, state, prior, deviation, image, conditions):
        self.asked += 1
        middle = prior[:, 4:12]
        return self.share * (middle - middle.mean((2, 3), keepdim=True))


# --- the comparison -----------------------------------------------------------------------------------


def test_the_network_whose_corrections_explain_more_serves() -> None:
    findings = Findings(left_out=0.9)
    assert rivals.compare(findings, WHOSE, (100.0, 1000.0), (800.0, 1000.0))
    assert findings.general
    assert findings.left_out is None  # it was the other one's
    assert "bore out 10 % of what the weights adapted to brain7 added and 80 %" in findings.why_general
    # Now it is the adapted one that is asked beside it.
    assert rivals.compare(findings, WHOSE, (100.0, 1000.0), (800.0, 1000.0))
    assert not findings.general
    assert findings.why_general == ""


@pytest.mark.parametrize(
    ("serving", "other"),
    [
        ((500.0, 1000.0), (550.0, 1000.0)),
        ((800.0, 1000.0), (100.0, 1000.0)),
        ((-10.0, 100.0), (-5.0, 100.0)),
        ((0.0, 0.0), (800.0, 1000.0)),
        ((100.0, 1000.0), (0.0, 0.0)),
    ],
    ids=["hardly better", "worse", "both wrong", "the one was not asked", "the other was not asked"],
)
def test_the_adapted_network_stays(serving: tuple[float, float], other: tuple[float, float]) -> None:
    findings = Findings()
    assert not rivals.compare(findings, WHOSE, serving, other)
    assert not findings.general


@pytest.mark.parametrize(("other", "chosen"), [((2200.0, 4000.0), False), ((2400.0, 4000.0), True)])
def test_a_larger_correction_does_not_win_by_its_size(other: tuple[float, float], chosen: bool) -> None:
    # Twice the correction, half of it right: as good as the correction itself.
    findings = Findings()
    rivals.compare(findings, WHOSE, (1000.0, 1000.0), other)
    assert findings.general == chosen


def test_a_correction_that_is_too_small_is_not_served_larger_than_it_is() -> None:
    findings = Findings()
    rivals.compare(findings, WHOSE, (1000.0, 1000.0), (900.0, 300.0))
    assert findings.general
    findings = Findings()
    rivals.compare(findings, WHOSE, (1000.0, 1000.0), (600.0, 200.0))
    assert not findings.general


def test_the_choice_outlasts_a_restart_and_another_range() -> None:
    findings = Findings(general=True, why_general="so")
    assert Findings(**asdict(findings)) == findings
    assert findings.in_another_range().general


# --- in a session -------------------------------------------------------------------------------------


def engine(own: Denoiser, general: Denoiser, whose: Belonging | None = WHOSE) -> Engine:
    runtimes = [TorchRuntime(model, CPU, torch.float32) for model in (own, general)]
    return Engine(CPU, "torch", "", runtimes[0], belonging=whose, general=runtimes[1])


def moving(count: int) -> list[Sweep]:
    """Return sweeps of a still specimen."""
    return [sweep_of(specimen(), number) for number in range(count)]


def served(own: Denoiser, general: Denoiser, sweeps: int = 4, **changes: object) -> list[Reconstruction]:
    config = CONFIG.model_copy(update=changes)
    reconstructor = Reconstructor(header(), config, engine(own, general))
    return [reconstructor.reconstruct(sweep) for sweep in moving(sweeps)]


def test_both_are_asked_at_first_and_one_afterwards(monkeypatch) -> None:
    monkeypatch.setattr(rivals, "_FIRST", 1)
    own, general = Adds(0.0), Adds(0.0)
    served(own, general, 1)
    first = general.asked
    assert own.asked == first > 0
    own, general = Adds(0.0), Adds(0.0)
    served(own, general, 4)
    assert general.asked == first
    assert own.asked > first


def test_a_network_that_is_wrong_here_is_replaced_and_the_user_told() -> None:
    results = served(Adds(-0.8), Adds(0.0))
    assert "brain7" in results[-1].why
    plain = Reconstructor(
        header(), CONFIG, replace(engine(Adds(0.0), Adds(0.0)), belonging=None, general=None)
    )
    alone = [plain.reconstruct(sweep) for sweep in moving(4)][-1]
    np.testing.assert_allclose(results[-1].volume, alone.volume, rtol=1e-4, atol=1e-2)


def test_a_network_that_is_right_stays() -> None:
    own, general = Adds(0.0), Adds(-0.8)
    results = served(own, general)
    assert not any("brain7" in result.why for result in results)


@pytest.mark.parametrize(("effort", "asked"), [(0, True), (1, True), (2, False)])
def test_a_busy_engine_asks_both_as_long_as_it_asks_one(effort: int, asked: bool) -> None:
    general = Adds(0.0)
    reconstructor = Reconstructor(header(), CONFIG, engine(Adds(0.0), general))
    reconstructor.reconstruct(moving(1)[0], effort=effort)
    assert (general.asked > 0) == asked


def test_without_fallback_nobody_competes() -> None:
    own, general = Adds(-0.8), Adds(0.0)
    served(own, general, 2, fallback=False)
    assert general.asked == 0


def test_weights_for_other_optics_are_left_out_and_the_user_told() -> None:
    own, general = Adds(0.0), Adds(0.0)
    other = replace(WHOSE, length_um=20.0)
    reconstructor = Reconstructor(header(), CONFIG, engine(own, general, other))
    result = reconstructor.reconstruct(moving(1)[0])
    assert own.asked == 0 < general.asked
    assert "the weights adapted to brain7 are for slabs of 20 µm" in result.why


def test_the_engine_opens_a_rival_for_weights_of_a_specimen_only(weights, tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    save_denoiser(load_denoiser(weights), path, WHOSE.notes())
    mine = open_engine(CONFIG.model_copy(update={"weights": path}))
    assert mine.belonging == WHOSE
    assert mine.general is not None
    ordinary = open_engine(CONFIG.model_copy(update={"weights": weights}))
    assert ordinary.belonging is ordinary.general is None
