"""Runs methods over sessions: many sweeps of a specimen that keeps still, is active or drifts.

The protocol is that of `protocol.py`, sweep after sweep at the offsets of an acquisition; in every fourth
sweep a projection is held out, and the noise is drawn from the seed in the order of the sweeps. Slices are
scored that any sweep saw. Rows as in `runner.py`, one for each volume, step, seed, method and course. One
thread.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from microdiffusion.engines.evaluation.courses import Active, Drifting, Still, Watch
from microdiffusion.engines.evaluation.protocol import Protocol, expose, make_header, slab_centres
from microdiffusion.engines.evaluation.runner import EvaluationPlan, Hooks, Results, cases
from microdiffusion.engines.pipeline import Engine
from microdiffusion.errors import ConfigError, MddError
from microdiffusion.frames import StagePositions, Sweep
from microdiffusion.header import RunHeader
from microdiffusion.metrics import seen_slices
from microdiffusion.optics import sweep_offset

FEWEST = 8
"""Sweeps: half of them are quiet, and the second quarter is the base of ΔF/F."""
_HELD_OUT_EVERY = 4


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """The sessions to score.

    Attributes
    ----------
    offsets : str
        As `sweep.offsets`.
    activity, drift : bool
        Whether specimens that are active, and that drift, are scored besides those that keep still.
    offline : bool
        Whether methods that learn from sweep to sweep go through a session in both directions, too.
    """

    sweeps: int
    offsets: str = "golden"
    activity: bool = False
    drift: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        if self.sweeps < FEWEST:
            raise ConfigError(
                f"A session of {self.sweeps} sweeps is too short: use --sweeps {FEWEST} or more."
            )

    @property
    def courses(self) -> tuple[str, ...]:
        """Names of what the specimens do."""
        return ("still", *(("active",) if self.activity else ()), *(("drift",) if self.drift else ()))

    def course(self, name: str, structure: NDArray[np.float32], seed: int) -> Still:
        """Return a course by its name."""
        if name == "active":
            return Active(structure, self.sweeps, seed)
        return (Drifting if name == "drift" else Still)(structure, self.sweeps)


def session_sweeps(
    course: Still, protocol: Protocol, plan: SessionPlan, seed: int
) -> tuple[RunHeader, list[Sweep]]:
    """Return the header and the sweeps of a session.

    Raises
    ------
    GeometryError
        Fewer than two slabs fit into the volume.
    """
    rng = np.random.default_rng(seed + 1)
    header = make_header(course.structure.shape, protocol, len(course.structure))
    sweeps = []
    for number in range(plan.sweeps):
        offset = protocol.offset + sweep_offset(number, plan.offsets) * protocol.step
        z_um = slab_centres(dataclasses.replace(protocol, offset=offset), len(course.structure))
        pair = number * 7 % (z_um.size - 1)
        judged = protocol.held_out and number % _HELD_OUT_EVERY == 0
        stage = StagePositions.along_z([*z_um, *([z_um[pair : pair + 2].mean()] if judged else [])])
        images, _ = expose(course.truth(number), header.operator_at(stage), protocol, rng)
        many = z_um.size
        sweeps.append(Sweep(number, 0, 0, stage[:many], images[:many], stage[many:], images[many:]))
    return header, sweeps


def still_session(
    truth: NDArray[np.float32], protocol: Protocol, plan: SessionPlan, seed: int = 0
) -> tuple[RunHeader, list[Sweep], NDArray[np.bool_]]:
    """Return header and sweeps of a specimen (Z, Y, X) that keeps still, and the slices (Z,) seen."""
    header, sweeps = session_sweeps(Still(truth, plan.sweeps), protocol, plan, seed)
    seen = seen_slices(np.concatenate([header.operator_at(sweep.stage) for sweep in sweeps]))
    return header, sweeps, seen


def session_calls(plan: EvaluationPlan, sessions: SessionPlan) -> int:
    """Return how many sessions are reconstructed."""
    twice = sum(sessions.offline and method.learns(plan.engine) for method in plan.methods)
    each = (len(plan.methods) + twice) * len(sessions.courses)
    return len(plan.files) * len(plan.steps) * plan.seeds * each


def evaluate_sessions(plan: EvaluationPlan, sessions: SessionPlan, hooks: Hooks | None = None) -> Results:
    """Run the plan over time; `Hooks.show` is not called.

    Raises
    ------
    ConfigError, DependencyError, MissingFileError, InputFileError
        A method's device or weights cannot be opened. (Not for what a single volume lacks.)
    """
    hooks = hooks or Hooks()
    engines, results = plan.open(), Results()
    done = 0
    for volume, structure, protocol, seed in cases(plan, hooks, results):
        for name in sessions.courses:
            where = f"{volume}, step {protocol.step:g}, {name}"
            key = {"volume": volume, "step": protocol.step, "seed": seed, "course": name}
            hooks.progress(done, where)
            try:
                course = sessions.course(name, structure, seed)
                for row in _rows(plan, sessions, engines, course, protocol, seed):
                    hooks.progress(done, f"{where}: {row['method']}")
                    done += 1
                    results.rows.append(key | row)
            except MddError as error:
                hooks.leave_out(results, f"{where}: {error}")
    hooks.progress(session_calls(plan, sessions), "done")
    return results


def _rows(
    plan: EvaluationPlan,
    sessions: SessionPlan,
    engines: Mapping[str, Engine | None],
    course: Still,
    protocol: Protocol,
    seed: int,
) -> Iterator[dict[str, object]]:
    """Yield method, seconds a sweep, and scores, of each method on one course."""
    header, sweeps = session_sweeps(course, protocol, sessions, seed)
    operators = [header.operator_at(sweep.stage) for sweep in sweeps]
    seen = seen_slices(np.concatenate(operators))
    looked = np.array([operator.sum(0) > 0 for operator in operators])
    for method in plan.methods:
        directions = [False, True] if sessions.offline and method.learns(plan.engine) else [False]
        for both_ways in directions:
            watch = Watch(course, seen, looked)
            began_s = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for number, volume in method.over_time(
                    header,
                    sweeps,
                    plan.engine,
                    engine=engines[method.name],
                    seed=seed,
                    both_ways=both_ways,
                ):
                    watch.add(number, volume)
            seconds = (time.perf_counter() - began_s) / len(sweeps)
            name = method.name + (", offline" if both_ways else "")
            yield {"method": name, "seconds": seconds} | watch.scores()
