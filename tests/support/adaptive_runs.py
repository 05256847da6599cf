"""Adaptive acquisitions without a microscope and without real time: faults drawn from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from microdiffusion.config import Config
from microdiffusion.drivers.adaptive import AcquisitionState, AdaptivePlanner, Proposal
from microdiffusion.drivers.plan import Plan
from microdiffusion.wire import SweepFeedback

FAULTS = ("none", "lost", "late", "nonsense", "raises", "stop")


def adaptive_config(policy: str = "changes", **tables: Any) -> Config:
    """Return a configuration of 48 slices of 1 µm and touching slabs of 6 µm, an adaptive one, changed."""
    acquisition = {"sweep_interval_s": 4.0, "sweeps": 40, "exposure_ms": 10.0} | tables.get("acquisition", {})
    acquisition["adaptive"] = {"policy": policy} | acquisition.get("adaptive", {})
    return Config.model_validate(
        {
            "acquisition": acquisition,
            "sweep": {"length_um": 6.0, "step_um": 6.0, "hold_out_every": 4} | tables.get("sweep", {}),
            "volume": {"voxel_z_um": 1.0, "shape_z": 48, "z0_um": 0.0, "pixel_um": 1.0}
            | tables.get("volume", {}),
        }
    )


def feedback(sweep: int, *, at: int | None = None, slices: int = 48, **more: Any) -> SweepFeedback:
    """Return the engine's word on a sweep in which something changed about a slice, None for nowhere."""
    innovation = np.zeros(slices)
    if at is not None:
        innovation[max(at - 3, 0) : at + 3] = 50.0
    values: dict[str, Any] = {
        "sweep": sweep,
        "learned": sweep + 1,
        "innovation": tuple(innovation.tolist()),
        "changed": tuple((innovation > 0).astype(float) * 0.1),
        "told": (0.01,) * slices,
        "drift_z_um": 0.0,
    }
    return SweepFeedback(**values | more)


class Nonsense:
    """A policy that proposes what no microscope should do."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def propose(self, state: AcquisitionState) -> Any:
        """Return nonsense of a kind that the seed draws."""
        steps = np.diff(state.planned_um).tolist()
        kind = int(self._rng.integers(0, 10))
        if kind == 8:
            raise RuntimeError("a policy's own mistake")
        bad = (
            Proposal(math.nan, steps, 1.0, "NaN"),
            Proposal(0.0, [math.inf, *steps[1:]], 1.0, "infinite"),
            Proposal(1e9, steps, 1.0, "out of range"),
            Proposal(0.0, [0.5] * (3 * len(steps)), 1.0, "more light"),
            Proposal(0.0, [-step for step in steps], 1.0, "backwards"),
            Proposal(0.0, steps, -1.0, "in the past"),
            Proposal(0.0, steps, 0.0, "at once"),
            None,
            None,
            Proposal(0.0, steps, "soon", 7),  # type: ignore[arg-type]
        )
        return bad[kind]


@dataclass(slots=True)
class Course:
    """Record of a run: a start and an end for each sweep, its frames, and where the stage was sent."""

    starts_s: list[float] = field(default_factory=list)
    frames_s: list[float] = field(default_factory=list)
    stage_um: list[list[float]] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    after_stop: int = 0
    notes: list[str] = field(default_factory=list)


def play(config: Config, seed: int, fault: str, travel_um: tuple[float, float] | None = None) -> Course:
    """Play a run with a fault, as the driver's loop does it; frames take their exposure and a stage move."""
    rng = np.random.default_rng([seed, 17])
    plan = Plan(config)
    policy = Nonsense(rng) if fault in ("nonsense", "raises") else None
    planner = AdaptivePlanner(config, plan, travel_um=travel_um, policy=policy)
    told: dict[tuple[int, int], SweepFeedback] = {}
    pending: list[tuple[float, SweepFeedback]] = []
    course, now_s, drift_um = Course(), 0.0, 0.0
    stops_s = float(rng.uniform(5.0, 60.0)) if fault == "stop" else math.inf
    for planned in plan.sweeps():
        while not planner.is_ready(told, now_s) and now_s < stops_s:
            now_s += 0.2
            while pending and pending[0][0] <= now_s:
                each = pending.pop(0)[1]
                told[each.channel, each.position] = each
        if now_s >= stops_s:
            break
        sweep, due_s = planner.plan(planned, dict(told), now_s)
        now_s = max(now_s, due_s)
        if now_s >= stops_s:
            break
        planner.start(sweep, now_s)
        course.starts_s.append(now_s)
        course.decisions.append(sweep.shots[0].info.decision)
        course.stage_um.append([float(shot.event["z"]) for shot in sweep.shots])
        for _ in sweep.shots:
            now_s += float(rng.uniform(0.01, 0.03))
            course.frames_s.append(now_s)
            course.after_stop += now_s >= stops_s + 1.0
        planner.over(now_s)
        drift_um += float(rng.normal(0.1, 0.2))
        active = int(rng.integers(6, 42)) if rng.random() < 0.5 else None
        word = feedback(planned.number, at=active, drift_z_um=drift_um - sweep.shots[0].info.refocus_um)
        delay_s = float(rng.uniform(0.05, 0.3)) if fault != "late" else float(rng.uniform(0.0, 20.0))
        if not (fault == "lost" and rng.random() < 0.6):
            pending.append((now_s + delay_s, word))
            pending.sort(key=lambda pair: pair[0])
        course.notes += planner.take_notes()
    return course


def exceeded(config: Config, course: Course, travel_um: tuple[float, float] | None = None) -> list[str]:
    """Return which of the user's limits a run exceeded."""
    adaptive, plan = config.acquisition.adaptive, Plan(config)
    found = []
    least_s = config.acquisition.sweep_interval_s
    if adaptive.least_interval_s is not None:
        least_s = min(least_s, adaptive.least_interval_s)
    if (np.diff(course.starts_s) < least_s - 1e-9).any():
        found.append("rate")
    times = np.array(course.frames_s)
    if adaptive.frames_per_min is not None and len(times):
        most = max(int(np.searchsorted(times, t + 60.0, side="left")) - n for n, t in enumerate(times))
        if most > adaptive.frames_per_min:
            found.append(f"light: {most} frames in a minute")
    for number, stage in enumerate(course.stage_um):
        if len(stage) != len(plan.slabs(number)):
            found.append(f"frames of sweep {number}")
    depths = np.concatenate([np.array(each) for each in course.stage_um] or [np.zeros(0)])
    lowest = -0.5 + 3.0 - adaptive.refocus_um
    highest = 47.5 - 3.0 + adaptive.refocus_um
    if adaptive.lowest_um is not None:
        lowest = max(lowest, adaptive.lowest_um)
    if travel_um is not None:
        lowest, highest = max(lowest, travel_um[0]), min(highest, travel_um[1])
    if depths.size and (depths.min() < lowest - 1e-6 or depths.max() > highest + 1e-6):
        found.append(f"range: {depths.min():.3f} to {depths.max():.3f} µm")
    if not np.isfinite(depths).all():
        found.append("positions that are not finite")
    if course.after_stop:
        found.append("stop")
    if len(course.starts_s) > (config.acquisition.sweeps or math.inf):
        found.append("sweeps")
    return found


def faulty_run(seed: int) -> tuple[str, list[str], Course]:
    """Return the fault of a seed, the limits that its run exceeded, and its course."""
    rng = np.random.default_rng([seed, 23])
    fault = FAULTS[seed % len(FAULTS)]
    adaptive: dict[str, Any] = {
        "least_interval_s": [None, 0.5, 1.5, 0.0][int(rng.integers(0, 4))],
        "frames_per_min": [None, 20.0, 120.0, 300.0][int(rng.integers(0, 4))],
        "refocus_um": [0.0, 2.0, 6.0][int(rng.integers(0, 3))],
        "lowest_um": [None, 1.0][int(rng.integers(0, 2))],
        "sparsest": [1.0, 2.0, 4.0][int(rng.integers(0, 3))],
    }
    travel_um = (0.0, 48.5) if rng.random() < 0.3 else None
    policy = "learn" if rng.random() < 0.3 else "changes"
    interval_s = [0.0, 1.0, 4.0][int(rng.integers(0, 3))]
    config = adaptive_config(policy, acquisition={"adaptive": adaptive, "sweep_interval_s": interval_s})
    course = play(config, seed, fault, travel_um)
    return fault, exceeded(config, course, travel_um), course
