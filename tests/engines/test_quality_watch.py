"""Symptoms of a sweep, the levels that make an alarm of them, and the engine that watches."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import ndimage
from support.session_scene import SHAPE, specimen, sweep_of
from support.session_scene import session as new_session

from microdiffusion.engines.pipeline.session import Session
from microdiffusion.engines.trust import quality_watch
from microdiffusion.engines.trust.alarm_levels import FAMILIAR, LEVELS, STEADY, WHITENING
from microdiffusion.engines.trust.quality_watch import (
    SIGNS,
    TEXTS,
    alarms_of,
    novelty,
    remembered,
    strangeness,
)
from microdiffusion.engines.trust.symptoms import APPEARANCE, appearance, glance, in_reverse, surprise
from microdiffusion.frames import Reconstruction, StagePositions, Sweep

SCALE = 500.0
Change = dict[str, object]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return specimen()


def seen_as(sweep: Sweep, pixels: np.ndarray) -> Sweep:
    return dataclasses.replace(sweep, projections=pixels.astype(np.float32))


def watched(truth: np.ndarray, last: Sweep, sweeps: int = 4) -> Reconstruction:
    """Return the reconstruction of a sweep that comes after good ones."""
    reconstructor = new_session("session")
    for number in range(sweeps):
        assert reconstructor.reconstruct(sweep_of(truth, number, SCALE)).alarms == {}
    return reconstructor.reconstruct(last)


def test_every_sign_has_a_sentence_and_a_level() -> None:
    assert {sign.kind for sign in SIGNS} == set(TEXTS)
    assert {sign.name for sign in SIGNS} == set(LEVELS)
    assert len(FAMILIAR) == len(WHITENING) == len(STEADY) == len(APPEARANCE)


def test_a_good_sweep_raises_no_alarm(truth: np.ndarray) -> None:
    result = watched(truth, sweep_of(truth, 4, SCALE))
    assert result.alarms == {}
    assert {"innovation", "misplaced", "spot", "strange", "renewed"} <= set(result.symptoms)


def test_half_the_light_is_dimmed(truth: np.ndarray) -> None:
    assert "dimmed" in watched(truth, sweep_of(truth, 4, SCALE / 2)).alarms


def test_out_of_focus_is_blurred(truth: np.ndarray) -> None:
    sharp = sweep_of(truth, 4, SCALE)
    noise = np.random.default_rng(1).normal(0, 0.01 * SCALE, sharp.projections.shape)
    blurred = ndimage.gaussian_filter(sharp.projections, (0, 3, 3)) + noise
    assert "blurred" in watched(truth, seen_as(sharp, blurred)).alarms


def test_a_dead_column_is_named(truth: np.ndarray) -> None:
    reconstructor = new_session("session")
    for number in range(2):
        sweep = sweep_of(truth, number, SCALE)
        pixels = sweep.projections.copy()
        pixels[:, :, 13] = 0.0
        result = reconstructor.reconstruct(seen_as(sweep, pixels))
    assert "column" in result.alarms


def test_slabs_in_the_wrong_order_are_foretold_better_from_elsewhere(truth: np.ndarray) -> None:
    sweep = sweep_of(truth, 4, SCALE)
    good, wrong = (watched(truth, each) for each in (sweep, seen_as(sweep, sweep.projections[::-1])))
    assert wrong.symptoms["all_misplaced"] > good.symptoms["all_misplaced"] + 1.0
    assert wrong.symptoms["innovation"] > good.symptoms["innovation"] + 2.0


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_session_that_runs_the_other_way_is_told_by_its_second_sweep(
    truth: np.ndarray, mirrored: bool
) -> None:
    from support.session_scene import HEADER

    seen = []
    for offset in (0.0, 2.0):
        depths = np.arange(4.0, 25.0, 4.0) + offset
        light = np.tensordot(HEADER.operator_at(StagePositions.along_z(depths)), truth, 1)
        seen.append(glance((light[::-1] if mirrored else light).astype(np.float32), depths))
    assert (in_reverse(seen[1], seen[0]) > 0.0) is mirrored


def test_nothing_tells_the_way_of_sweeps_at_the_same_depths(truth: np.ndarray) -> None:
    sweep = sweep_of(truth, 0, SCALE)
    seen = glance(sweep.projections, np.asarray(sweep.stage.z_um))
    assert np.isnan(in_reverse(seen, seen))
    few = glance(sweep.projections[:2], np.asarray(sweep.stage.z_um)[:2])
    assert np.isnan(in_reverse(few, seen))


def test_a_loss_of_light_of_one_place_is_told_from_that_of_all(truth: np.ndarray) -> None:
    from support.session_scene import HEADER

    field = torch.from_numpy(truth.reshape(len(truth), -1))
    matrix = HEADER.operator_at(StagePositions.along_z(np.arange(6.0, 26.0, 6.0)))
    right = torch.from_numpy(np.tensordot(matrix, truth, 1)).float()
    noise = torch.full((len(right),), 1e-4)
    spread = torch.full((len(right), field.shape[1]), 1e-4)
    peak = np.unravel_index(int(right.sum(0).argmax()), right.shape[1:])
    place = right.clone()
    place[:, max(0, peak[0] - 5) : peak[0] + 6, max(0, peak[1] - 5) : peak[1] + 6] *= 0.3
    lost = {
        name: surprise(seen, field, spread, noise, matrix, 6.0)["shaded"]
        for name, seen in (("none", right), ("all", 0.5 * right), ("place", place))
    }
    assert lost["none"] == pytest.approx(0.0, abs=1e-3)
    assert lost["all"] < 0.1
    assert lost["place"] > 0.5


def test_noise_is_not_taken_for_a_loss_of_focus(truth: np.ndarray) -> None:
    from support.session_scene import HEADER

    field = torch.from_numpy(truth.reshape(len(truth), -1))
    matrix = HEADER.operator_at(StagePositions.along_z(np.arange(6.0, 26.0, 6.0)))
    sharp = np.tensordot(matrix, truth, 1)
    deviation = 0.3 * float(sharp.std())
    noise = torch.full((len(sharp),), deviation**2)
    grain = np.random.default_rng(3).normal(0, deviation, sharp.shape)

    def softened(light: np.ndarray) -> float:
        seen = torch.from_numpy(light + grain).float()
        return surprise(seen, field, torch.ones(len(sharp), field.shape[1]), noise, matrix, 6.0)["softened"]

    assert abs(softened(sharp)) < 0.15
    assert softened(ndimage.gaussian_filter(sharp, (0, 2.5, 2.5))) > softened(sharp) + 0.1


def test_novelty_counts_from_the_sessions_own_median(truth: np.ndarray) -> None:
    before: dict[str, list[float]] = {}
    for number in range(3):
        look = appearance(sweep_of(truth, number, SCALE).projections)
        assert np.isnan(novelty(look, before)) == (number < 2)
        before = remembered(look, before)
    usual = appearance(sweep_of(truth, 3, SCALE).projections)
    blurred = appearance(ndimage.gaussian_filter(sweep_of(truth, 3, SCALE).projections, (0, 3, 3)))
    assert novelty(blurred, before) > novelty(usual, before) + 0.5


def test_a_bubble_stands_out_as_a_spot(truth: np.ndarray) -> None:
    sweep = sweep_of(truth, 4, SCALE)
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    peak = np.unravel_index(ndimage.gaussian_filter(truth.sum(0), 2).argmax(), SHAPE[1:])
    far = np.hypot(rows - peak[0], columns - peak[1])
    pixels = sweep.projections * np.where(far < 6, 0.3, 1.0)
    good, odd = (watched(truth, each) for each in (sweep, seen_as(sweep, pixels)))
    assert odd.symptoms["spot"] > good.symptoms["spot"] + 2.0


def test_a_slab_that_lies_elsewhere_is_foretold_better_from_there(truth: np.ndarray) -> None:
    from support.session_scene import HEADER

    field = torch.from_numpy(truth.reshape(len(truth), -1))
    said = np.arange(6.0, 26.0, 6.0)
    true = said.copy()
    true[2] += 4.0
    matrix = HEADER.operator_at(StagePositions.along_z(said))
    seen = torch.from_numpy(np.tensordot(HEADER.operator_at(StagePositions.along_z(true)), truth, 1)).float()
    noise = torch.full((len(said),), 1e-4)
    spread = torch.full((len(said), field.shape[1]), 1e-4)
    right = torch.from_numpy(np.tensordot(matrix, truth, 1)).float()
    off, well = (surprise(each, field, spread, noise, matrix, 6.0) for each in (seen, right))
    assert off["misplaced"] > 2.0
    assert off["all_misplaced"] < 0.5, "the median slab lies where it should"
    assert well["misplaced"] <= 0.0
    assert well["dimmed"] == pytest.approx(0.0, abs=1e-3)
    dark = surprise(0.5 * right, field, spread, noise, matrix, 6.0)
    assert dark["dimmed"] == pytest.approx(np.log(2.0), abs=1e-3)


def test_appearance_takes_no_notice_of_brightness_and_offset(truth: np.ndarray) -> None:
    images = sweep_of(truth, 0, SCALE).projections
    one, other = appearance(images), appearance(3.0 * images + 100.0)
    for name in APPEARANCE:
        assert one[name] == pytest.approx(other[name], abs=1e-3)


def test_checkers_are_stranger_than_blobs(truth: np.ndarray) -> None:
    checkers = ((np.indices(SHAPE) // 5).sum(0) % 2).astype(np.float32)
    strange, usual = (strangeness(appearance(sweep_of(each, 0).projections)) for each in (checkers, truth))
    assert strange > usual + 0.5


@pytest.mark.parametrize("shape", [(1, 7, 7), (2, 1, 9), (3, 4, 4)])
def test_small_and_empty_sweeps_have_finite_symptoms(shape: tuple[int, ...]) -> None:
    for images in (np.zeros(shape, np.float32), np.random.default_rng(0).random(shape, np.float32)):
        assert all(np.isfinite(value) for value in appearance(images).values())


def test_levels_are_those_of_the_sweep_and_rises_count_from_the_median(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels = {"spot rising": (0.5, 0.4, 0.3), "column": (9.0, 9.0, 9.0)}
    monkeypatch.setattr(quality_watch, "LEVELS", levels)
    before: dict[str, list[float]] = {}
    assert alarms_of({"spot": 1.0, "column": 50.0}, before) == {}, "a first sweep is compared with nothing"
    before = remembered({"spot": 1.0, "column": 1.0}, before)
    assert alarms_of({"spot": 1.45}, before) == {}
    assert set(alarms_of({"spot": 1.55}, before)) == {"spot"}
    for spot in (5.0, 1.0):
        before = remembered({"spot": spot, "column": 1.0}, before)
    assert set(alarms_of({"spot": 1.35}, before)) == {"spot"}
    assert set(alarms_of({"spot": 1.25, "column": 9.5}, before)) == {"column"}
    for _ in range(20):
        before = remembered({"column": 1.0, "innovation": float("nan")}, before)
    assert len(before["column"]) == quality_watch.KEPT
    assert "innovation" not in before


def test_a_session_remembers_its_symptoms_on_disk(truth: np.ndarray) -> None:
    reconstructor = new_session("session")
    reconstructor.reconstruct(sweep_of(truth, 0, SCALE))
    session: Session = reconstructor._sessions.of(sweep_of(truth, 1, SCALE), "sweep", 6.0)
    numbers = json.loads(json.dumps(session.state().numbers))
    assert numbers["watched"]["column"] == session.watched["column"]
    assert len(session.watched["column"]) == 1
