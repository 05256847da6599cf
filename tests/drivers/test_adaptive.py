"""Adaptive acquisition: policies, limits, and the plan of each sweep; no microscope, no real time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.adaptive_runs import FAULTS, adaptive_config, faulty_run, feedback, play
from support.driver_support import Daemon, changed, wait_until

from microdiffusion.config import Config
from microdiffusion.drivers.adaptive import AcquisitionState, AdaptivePlanner, Proposal
from microdiffusion.drivers.plan import Plan, PlannedSweep
from microdiffusion.drivers.process import DriverProcess
from microdiffusion.errors import ConfigError
from microdiffusion.wire import SweepFeedback


def after(config: Config, *words: SweepFeedback) -> list[PlannedSweep]:
    """Return the sweeps that are taken when the engine says these words, one after each sweep."""
    plan = Plan(config)
    planner, told, taken, now_s = AdaptivePlanner(config, plan), {}, [], 0.0
    sweeps = plan.sweeps()
    for word in (*words, None):
        sweep, now_s = planner.plan(next(sweeps), told, now_s)
        planner.start(sweep, now_s)
        planner.over(now_s + 0.2)
        taken.append(sweep)
        if word is not None:
            told[word.channel, word.position] = word
    return taken


def depths(sweep: PlannedSweep) -> np.ndarray:
    return np.array([shot.info.stage.z_um for shot in sweep.shots if not shot.info.held_out])


def test_before_the_engine_has_spoken_and_where_nothing_changes_sweeps_are_as_planned():
    config = adaptive_config()
    plan = Plan(config)
    for sweep in after(config, feedback(0), feedback(1)):
        assert [shot.info.stage for shot in sweep.shots] == [slab.stage for slab in plan.slabs(sweep.number)]
        assert sweep.shots[0].info.decision.startswith("as planned")
        assert not any(shot.info.decision for shot in sweep.shots[1:])


def test_why_a_sweep_is_as_planned_does_not_claim_what_nobody_knows():
    first, second = after(adaptive_config(), feedback(0))
    assert first.shots[0].info.decision == "as planned: the engine has not spoken yet"
    assert second.shots[0].info.decision == "as planned: nothing changed in sweep 0"
    few = after(adaptive_config(volume={"shape_z": 18}), feedback(0, at=9, slices=18))[-1]
    assert few.shots[0].info.decision == "as planned: 2 slabs are too few to place, 4 are needed"


@pytest.mark.parametrize("at", [8, 24, 40])
def test_an_event_is_followed_by_denser_slabs_in_the_very_next_sweep_at_as_many_frames(at):
    config = adaptive_config()
    plan = Plan(config)
    sweep = after(config, feedback(0), feedback(1), feedback(2, at=at))[-1]
    slabs = depths(sweep)
    assert len(sweep.shots) == len(plan.slabs(sweep.number))
    near = np.abs(slabs - at) <= 6.0
    planned = np.array([slab.stage.z_um for slab in plan.slabs(sweep.number) if not slab.held_out])
    assert near.sum() > (np.abs(planned - at) <= 6.0).sum()
    assert np.diff(slabs).min() > 0
    assert np.diff(slabs).max() <= 12.1  # nowhere more than two slabs' length
    assert f"denser at {at - 3}" in sweep.shots[0].info.decision


def test_a_held_out_projection_lies_between_two_slabs_of_the_sweep_that_is_taken():
    sweep = after(adaptive_config(), *(feedback(number, at=24) for number in range(4)))[4]
    *slabs, judge = [shot.info.stage.z_um for shot in sweep.shots]
    assert sweep.shots[-1].info.held_out
    pair = np.searchsorted(slabs, judge)
    assert judge == pytest.approx((slabs[pair - 1] + slabs[pair]) / 2)


def test_what_changed_is_remembered_for_a_while_and_then_forgotten():
    config = adaptive_config()
    words = [feedback(0), feedback(1, at=24), *(feedback(number) for number in range(2, 24))]
    decisions = [sweep.shots[0].info.decision for sweep in after(config, *words)]
    assert decisions[2].startswith("denser")
    assert decisions[3].startswith("denser")
    assert decisions[-1] == "as planned: nothing changed in sweep 23"


def test_the_rate_rises_with_activity_and_falls_back():
    config = adaptive_config(acquisition={"adaptive": {"least_interval_s": 0.5}, "sweep_interval_s": 4.0})
    plan = Plan(config)
    planner, told, starts, now_s = AdaptivePlanner(config, plan), {}, [], 0.0
    for planned in plan.sweeps():
        sweep, now_s = planner.plan(planned, told, now_s)
        planner.start(sweep, now_s)
        starts.append(now_s)
        planner.over(now_s + 0.2)
        told[0, 0] = feedback(planned.number, at=24 if 3 <= planned.number < 6 else None)
        now_s += 0.3
    intervals = np.diff(starts)
    np.testing.assert_allclose(intervals[:3], 4.0)
    np.testing.assert_allclose(intervals[3:6], 0.5)
    np.testing.assert_allclose(intervals[6:10], [1.0, 2.0, 4.0, 4.0])


def test_the_rate_falls_back_also_where_sweeps_followed_each_other_without_a_pause():
    config = adaptive_config(acquisition={"adaptive": {"least_interval_s": 0.0}, "sweep_interval_s": 4.0})
    plan = Plan(config)
    planner, told, starts, now_s = AdaptivePlanner(config, plan), {}, [], 0.0
    for planned in plan.sweeps():
        sweep, now_s = planner.plan(planned, told, now_s)
        planner.start(sweep, now_s)
        starts.append(now_s)
        planner.over(now_s + 0.2)
        told[0, 0] = feedback(planned.number, at=24 if 3 <= planned.number < 6 else None)
        now_s += 0.2
    intervals = np.diff(starts)
    np.testing.assert_allclose(intervals[3:6], 0.2)
    np.testing.assert_allclose(intervals[6:12], [0.25, 0.5, 1.0, 2.0, 4.0, 4.0])


def test_each_place_that_changes_is_named():
    innovation = np.zeros(48)
    innovation[4:8] = innovation[38:41] = 50.0
    sweep = after(adaptive_config(), feedback(0), feedback(1, innovation=tuple(innovation.tolist())))[-1]
    assert sweep.shots[0].info.decision.startswith("denser at 4 to 7 and 38 to 40 µm, where")


def test_learning_fastest_begins_where_most_is_expected():
    config = adaptive_config("learn")
    firsts = tuple(2.5 + 6.0 * k / 13 for k in range(13))
    bits = tuple(1.0 + (k == 5) for k in range(13))
    told = feedback(0, first_um=firsts, information=bits, step_um=6.0, learned=4)
    sweep = after(config, told)[1]
    assert depths(sweep)[0] == pytest.approx(firsts[5])
    np.testing.assert_allclose(np.diff(depths(sweep)), 6.0)
    assert "2 bits per pixel" in sweep.shots[0].info.decision


def test_the_stage_follows_a_drift_within_what_the_user_allows():
    def followed(**adaptive: Any) -> list[float]:
        config = adaptive_config(acquisition={"adaptive": adaptive})
        plan = Plan(config)
        planner, told, stage, now_s = AdaptivePlanner(config, plan), {}, [], 0.0
        for planned in plan.sweeps():
            sweep, now_s = planner.plan(planned, told, now_s)
            planner.start(sweep, now_s)
            planner.over(now_s)
            refocus = {shot.info.refocus_um for shot in sweep.shots}
            assert len(refocus) == 1
            stage.append(refocus.pop())
            for shot in sweep.shots:  # the frame says where its slab is in the volume, the stage goes beyond
                assert shot.event["z"] == pytest.approx(shot.info.stage.z_um + stage[-1])
            drift_um = 0.3 * planned.number
            told[0, 0] = feedback(planned.number, drift_z_um=drift_um - stage[-1])
        return stage

    stage = followed(refocus_um=5.0)
    assert stage[10] == pytest.approx(0.3 * 9, abs=0.5)
    assert max(np.abs(np.diff(stage))) <= 1.0  # a slice at a time
    assert stage[-1] == pytest.approx(5.0)
    assert set(followed()) == {0.0}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_limit_is_exceeded_whatever_goes_wrong(fault):
    seeds = range(FAULTS.index(fault), 200, len(FAULTS))
    for seed in seeds:
        drawn, limits, course = faulty_run(seed)
        assert drawn == fault
        assert not limits, (seed, limits)
        assert course.starts_s


def test_a_policy_that_fails_costs_its_advice_and_one_note():
    course = play(adaptive_config(), 3, "nonsense")
    assert len(course.starts_s) == 40
    assert any("the policy" in note for note in course.notes)
    assert len(course.notes) == len(set(course.notes))
    assert any(text.startswith("as planned: the policy") for text in course.decisions)


def test_without_a_word_of_the_engine_nothing_waits_and_sweeps_are_as_planned():
    config = adaptive_config(acquisition={"sweep_interval_s": 0.0, "adaptive": {"wait": 1.0}})
    plan = Plan(config)
    planner, now_s, waited = AdaptivePlanner(config, plan), 0.0, []
    for planned in plan.sweeps():
        began_s = now_s
        while not planner.is_ready({}, now_s):
            now_s += 0.05
        waited.append(now_s - began_s)
        sweep, now_s = planner.plan(planned, {}, now_s)
        planner.start(sweep, now_s)
        now_s += 1.0
        planner.over(now_s)
    assert waited[1] == pytest.approx(1.0, abs=0.06)  # as long as the sweep took
    assert max(waited[5:]) == 0.0
    assert len([note for note in planner.take_notes() if "nothing of the last 3 sweeps" in note]) == 1


def test_limits_that_not_even_the_plan_fits_are_refused_at_the_start():
    config = adaptive_config(acquisition={"adaptive": {"lowest_um": 10.0}})
    with pytest.raises(ConfigError, match="widen acquisition"):
        AdaptivePlanner(config, Plan(config))
    config = adaptive_config(acquisition={"adaptive": {"frames_per_min": 5.0}})
    with pytest.raises(ConfigError, match="less than the 9 frames of one sweep"):
        AdaptivePlanner(config, Plan(config))


def test_a_policy_of_ones_own_needs_propose_and_nothing_else():
    class Reversed:
        def propose(self, state: AcquisitionState) -> Proposal:
            gaps = np.diff(state.planned_um)[::-1]
            return Proposal(0.5, gaps.tolist(), state.interval_s, "half a micrometre deeper")

    config = adaptive_config()
    plan = Plan(config)
    planner = AdaptivePlanner(config, plan, policy=Reversed())
    sweeps = plan.sweeps()
    next(sweeps)
    sweep, _ = planner.plan(next(sweeps), {}, 0.0)
    assert depths(sweep)[0] == pytest.approx(plan.slabs(1)[0].stage.z_um + 0.5)
    assert sweep.shots[0].info.decision == "half a micrometre deeper"


@pytest.mark.acquisition
def test_in_a_closed_loop_through_the_core_an_event_makes_the_next_sweep_denser_in_less_than_a_sweep() -> (
    None
):
    config = changed(
        {
            "acquisition": {"specimen": True, "exposure_ms": 20, "sweeps": 8, "sweep_interval_s": 0.0},
            "camera": {"width": 32, "height": 32, "offset": 100, "gain": 2, "read_noise": 2},
            "specimen": {"neurons": 1, "vessels": 0, "nuclei": 2},
            "volume": {"shape_z": 48, "voxel_z_um": 1.0},
            "sweep": {"length_um": 6.0, "step_um": 6.0, "hold_out_every": 0},
            "wire": {"journal_gb": 0},
        },
        {"acquisition": {"adaptive": {"policy": "changes", "wait": 1.0}}},
    )
    with Daemon() as daemon:
        driver = DriverProcess(config, daemon.address)
        driver.start()
        try:
            said = -1

            def speak() -> bool:
                """Say of each sweep, once it is whole, that something changed at 24 µm from the third on."""
                nonlocal said
                last = daemon.frames[-1].info if daemon.frames else None
                if last is not None and last.index == last.count - 1 and last.sweep > said:
                    said = last.sweep
                    word = feedback(said, at=24 if said >= 3 else None)
                    daemon.ingest.feedback(daemon.headers[-1].run_id, word)
                return not driver.alive

            assert wait_until(speak)
            driver.raise_if_failed()
        finally:
            driver.stop()
    assert daemon.headers[0].adaptive
    slabs = {
        number: [f.info.stage.z_um for f in daemon.frames if f.info.sweep == number] for number in range(8)
    }
    planned = [[slab.stage.z_um for slab in Plan(config).slabs(number)] for number in range(8)]
    for number in range(4):
        np.testing.assert_allclose(slabs[number], planned[number])
    for number in range(4, 8):
        assert len(slabs[number]) == len(planned[number])
        assert np.sum(np.abs(np.array(slabs[number]) - 24) <= 6) > 2
    decisions = [f.info.decision for f in daemon.frames if not f.info.index]
    assert [text.startswith("denser at 21 to 26") for text in decisions] == [False] * 4 + [True] * 4
