"""The engine's word on a sweep: where something changed, and what is left to learn."""

from __future__ import annotations

import numpy as np
import pytest

from microdiffusion.config import EngineConfig
from microdiffusion.engines.evaluation import Protocol, SessionPlan
from microdiffusion.engines.evaluation.courses import Still
from microdiffusion.engines.evaluation.sessions import session_sweeps
from microdiffusion.engines.pipeline import Reconstructor, open_engine
from microdiffusion.wire import SweepFeedback

PROTOCOL = Protocol(crop=None, length=6.0, step=6.0, noise=0.01, held_out=False)
SLICES, SWEEPS = 36, 8


class Flaring(Still):
    """A specimen of scattered spots; those about slice 12 brighten threefold from a sweep on."""

    def __init__(self, begins: int = SWEEPS) -> None:
        rng = np.random.default_rng(5)
        grid = np.indices((SLICES, 32, 32))
        spots = rng.uniform((2, 2, 2), (SLICES - 2, 30, 30), (40, 3))
        spots[:6, 0] = 12.0
        shapes = [np.exp(-((grid - each[:, None, None, None]) ** 2).sum(0) / 4.5) for each in spots]
        super().__init__(np.clip(sum(shapes), 0, 1).astype(np.float32), SWEEPS)
        self._flare = np.clip(sum(shapes[:6]), 0, 1).astype(np.float32)
        self._begins = begins

    def truth(self, sweep: int) -> np.ndarray:
        return self.structure + (2.0 * self._flare if sweep >= self._begins else np.float32(0))


def words(
    course: Still, *, adaptive: bool = True, method: str = "inr", memory: str = "session"
) -> list[SweepFeedback]:
    header, sweeps = session_sweeps(course, PROTOCOL, SessionPlan(SWEEPS), 0)
    heard: list[SweepFeedback] = []
    config = EngineConfig.model_validate({"device": "cpu", "threads": 1, "method": method, "memory": memory})
    reconstructor = Reconstructor(
        header.model_copy(update={"adaptive": adaptive}),
        config,
        open_engine(config),
        on_feedback=heard.append,
    )
    for sweep in sweeps:
        reconstructor.reconstruct(sweep)
    return heard


def test_what_changes_is_said_of_the_slices_in_which_it_does() -> None:
    heard = words(Flaring(begins=5))
    assert [each.sweep for each in heard] == list(range(SWEEPS))
    assert [each.learned for each in heard] == list(range(1, SWEEPS + 1))
    before, event = heard[4], heard[5]
    assert max(before.changed) < 0.4 * max(event.changed)
    power = np.array(event.innovation)
    assert power.max() > 20 * max(max(before.innovation), 1.0)
    assert abs(int(power.argmax()) - 12) <= 4
    assert power[:24].sum() > 0.9 * power.sum()
    assert 0.005 < max(event.changed) < 0.7


def test_what_is_left_to_learn_of_the_still_part_does_not_rise_with_what_changes() -> None:
    heard = words(Flaring(begins=5))
    assert max(heard[5].told) < 2 * max(heard[4].told)
    assert np.median(heard[5].told) < 1.5 * np.median(heard[4].told)


def test_a_specimen_that_keeps_still_has_ever_less_to_tell() -> None:
    heard = words(Flaring())
    told = [float(np.mean(each.told)) for each in heard]
    assert told[0] > told[2] > told[6] > 0
    bits = np.array([each.information for each in heard])
    assert bits.shape == (SWEEPS, 13)
    assert bits[0].mean() > bits[2].mean() > bits[6].mean() > 0
    # A sweep at the place of the last one tells less than one in between.
    last = heard[0]
    firsts = np.array(last.first_um)
    assert firsts[0] == pytest.approx(2.5)
    assert bits[0][0] < bits[0][6]


def test_it_is_said_to_those_who_ask_alone_and_not_without_a_memory() -> None:
    assert not words(Flaring(), adaptive=False)
    assert not words(Flaring(), memory="sweep")
