"""The pace of the engine against that of the sweeps, in a sentence."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.driver_support import wait_until
from support.engine_owner import FAST

from microdiffusion.config import EngineConfig, load_config
from microdiffusion.daemon.engine import EngineProcess, PaceWatch, holding_interval_s, pace, too_slow


@pytest.mark.parametrize(("sweep_s", "sessions", "expected"), [(1.0, 1, 1.2), (0.1, 3, 0.35), (30.0, 2, 69)])
def test_the_interval_that_holds_has_two_digits_and_some_room(
    sweep_s: float, sessions: int, expected: float
) -> None:
    assert holding_interval_s(sweep_s, sessions) == pytest.approx(expected)


def test_an_engine_that_keeps_up_is_not_mentioned() -> None:
    assert too_slow(0.3, 3, 1.0) == ""
    assert "10% of them have to wait; an interval of 1.3 s holds" in too_slow(1.11, 1, 1.0)


def test_the_first_sweeps_of_a_run_tell_once_whether_the_engine_keeps_up() -> None:
    watch, told = PaceWatch(2), []
    for number in range(8):
        for channel in range(2):
            # The first of each session chooses kernels, and every other sweep is put off.
            taken_s = 0.6 if number else 9.0
            told.append(watch.volume((channel, 0), 2 * number, 2.0 * number, taken_s))
    assert [text for text in told if text] == [
        "the engine takes 0.6 s for a sweep of each of 2 sessions, and they come every 1 s: 17% of them have "
        "to wait; an interval of 1.4 s holds"
    ]
    quick = PaceWatch(1)
    assert not any(quick.volume((0, 0), number, float(number), 0.6) for number in range(9))


def test_of_several_devices_the_one_with_most_sessions_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from microdiffusion.daemon.doctor import pace as doctor

    shape = {"camera.width": 32, "camera.height": 32, "acquisition.sweep_interval_s": 2.0}
    stage = {"acquisition.positions_um": [[0.0, 0.0], [9.0, 0.0], [18.0, 0.0]]}
    facts = {"seconds": 1.0, "measured": (32, 32), "whole": True}
    monkeypatch.setattr(doctor, "probe", lambda *_, **__: {"pace": facts})
    one = load_config("demo", overrides=shape | stage)
    two = load_config("demo", overrides=shape | stage | {"engine.devices": ["cpu", "cpu"]})
    assert "of each of 3 sessions" in doctor.measured_pace(one).text
    assert "an interval of 2.3 s holds" not in doctor.measured_pace(one).text
    assert "2.3 s holds" in doctor.measured_pace(two).text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"acquisition.exposure_ms": 0.001, "acquisition.sweep_interval_s": 0}, True),
        ({"acquisition.sweep_interval_s": 60}, False),
    ],
    ids=["too slow", "fast enough"],
)
def test_an_engine_says_when_it_opens_that_it_is_too_slow_for_the_run_to_come(
    changes: dict[str, Any], told: bool
) -> None:
    config = load_config("demo", overrides={"camera.width": 32, "camera.height": 32, **changes})
    warnings: list[str] = []
    engine = EngineProcess(
        EngineConfig(**FAST), waiting_bytes=1, on_note=lambda text, _: warnings.append(text), planned=config
    )
    engine.start()
    try:
        assert wait_until(lambda: engine.info is not None, 60.0)
    finally:
        engine.stop()
    assert [text for text in warnings if "holds" in text] == warnings
    assert len(warnings) == told


@pytest.mark.parametrize(
    "changes",
    [
        {"camera.width": None},
        {"acquisition.driver": "none"},
        {"acquisition.driver": "watch", "acquisition.watch": ".", "acquisition.specimen": False},
    ],
    ids=["a region that only the camera knows", "frames that come", "followed"],
)
def test_no_pace_is_measured_where_another_program_sets_it(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(pace, "sweep_time", measured)
    size = {"camera.width": 32, "camera.height": 32}
    engine: Any = None
    with pytest.raises(AssertionError, match="measured"):
        pace.slow_engine(load_config("demo", overrides=size), engine)
    assert pace.slow_engine(load_config("demo", overrides=size | changes), engine) == ""


def test_the_pace_can_be_measured_more_than_once() -> None:
    # The module that measures had the name of the function, and took its place when it was imported.
    import microdiffusion.daemon.engine.trial_sweeps
    from microdiffusion.daemon.engine import sweep_time

    assert microdiffusion.daemon.engine.trial_sweeps
    assert callable(sweep_time)


def test_of_a_large_image_only_a_part_is_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    # 48 x 512 x 512, less than what a GPU is measured on, took 4 s to grow, while a run waits.
    from microdiffusion.daemon.engine import trial_sweeps
    from microdiffusion.drivers.plan import Plan

    grown: list[tuple[int, ...]] = []

    def specimen(_: object, header: Any) -> Any:
        grown.append(header.shape)
        return SimpleNamespace(expected=lambda *_: np.full(header.shape[1:], 9.0, np.float32))

    monkeypatch.setattr(trial_sweeps, "specimen_of_run", specimen)
    config = load_config("demo")
    for image in ((600, 300), (96, 700)):
        plan = Plan(config)
        (sweep,) = islice(trial_sweeps._sweeps(config, plan, plan.header(image, 1.0, source="")), 1)
        assert sweep.projections.shape[1:] == image
        assert sweep.projections.min(axis=(0, 1)).max() > 0
    assert [shape[1:] for shape in grown] == [(256, 256), (96, 256)]


def test_what_is_measured_is_a_specimen_that_a_session_learns() -> None:
    # Of one that seems to change all over, each sweep would take the network as long as the first.
    from microdiffusion.daemon.engine.trial_sweeps import _sweeps
    from microdiffusion.drivers.plan import Plan
    from microdiffusion.engines.pipeline import Reconstructor, open_engine

    config = load_config("demo", overrides={"engine.method": "inr", "volume.pixel_um": 0.1})
    plan = Plan(config)
    header = plan.header((64, 64), 0.1, source="")
    reconstructor = Reconstructor(header, config.engine, open_engine(config.engine))
    still = [reconstructor.reconstruct(sweep).still for sweep in islice(_sweeps(config, plan, header), 4)]
    assert min(still[1:]) > 0.9
