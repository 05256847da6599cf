"""Runs methods over volumes, and keeps the score: one row per volume, step, seed and method.

A volume that cannot be used and a method that fails cost themselves alone: both are noted and the rest goes
on. Rows arrive in a fixed order and do not depend on each other. One thread; one volume in memory at a time.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.engines.evaluation.protocol import Protocol, make_case, read_truth
from microdiffusion.errors import MddError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from microdiffusion.engines.evaluation.methods import Answer, Method
    from microdiffusion.engines.evaluation.perceptual import Perceptual
    from microdiffusion.engines.evaluation.protocol import Case
    from microdiffusion.engines.pipeline import Engine

logger = logging.getLogger("microdiffusion.evaluation")

Row = dict[str, Any]
"""Volume, step, seed, method, its scores, and what the call took."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run.

    Attributes
    ----------
    files : volumes
    methods : in the order of the table
    protocol : Protocol
        Its `step` is replaced by each of `steps`.
    steps : slices
    seeds : int
        Seeds 0 to N - 1, of the noise and of the methods alike.
    engine : mapping
        Keys of the table `[engine]` that hold for all methods.
    """

    files: Sequence[Path]
    methods: Sequence[Method]
    protocol: Protocol = field(default_factory=Protocol)
    steps: Sequence[float] = (6.0, 8.0)
    seeds: int = 1
    engine: Mapping[str, Any] = field(default_factory=dict)

    def runs(self) -> int:
        """Return how many calls of methods that makes."""
        return len(self.files) * len(self.methods) * len(self.steps) * self.seeds


@dataclass(slots=True)
class Results:
    """What came out: rows, and what was left out with the reason."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    classical: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom the runner tells, and whom it asks.

    Attributes
    ----------
    progress : callable
        Gets the number of calls done and what comes next.
    resident_mb : callable
        The process's memory.
    show : callable
        Gets the volume's name, step, case and answers by method, of seed 0.
    saved : callable
        Gets the results so far after each volume.
    """

    progress: Callable[[int, str], None] = lambda done, text: None
    resident_mb: Callable[[], float | None] = lambda: None
    show: Callable[[str, float, Case, dict[str, NDArray[Any]]], None] | None = None
    saved: Callable[[Results], None] = lambda results: None


def evaluate(plan: Plan, hooks: Hooks | None = None, perceptual: Perceptual | None = None) -> Results:
    """Run the plan.

    Raises
    ------
    ConfigError, DependencyError, MissingFileError, InputFileError
        A method's device or weights cannot be opened. (Not for what a single volume lacks.)
    """
    hooks = hooks or Hooks()
    engines = {method.name: method.open(plan.engine) for method in plan.methods}
    results = Results(classical=tuple(method.name for method in plan.methods if method.classical))
    each = len(plan.methods) * len(plan.steps) * plan.seeds
    for number, path in enumerate(plan.files):
        hooks.progress(number * each, path.stem)
        try:
            truth = read_truth(path, plan.protocol.crop)
        except MddError as error:
            _leave_out(results, f"{path.name}: {error}")
            continue
        _volume(plan, engines, path.stem, truth, number * each, hooks, results, perceptual)
        hooks.saved(results)
    hooks.progress(plan.runs(), "done")
    return results


def _volume(
    plan: Plan,
    engines: Mapping[str, Engine | None],
    name: str,
    truth: NDArray[np.float32],
    done: int,
    hooks: Hooks,
    results: Results,
    perceptual: Perceptual | None,
) -> None:
    for step in plan.steps:
        protocol = dataclasses.replace(plan.protocol, step=step)
        for seed in range(plan.seeds):
            try:
                case = make_case(truth, protocol, seed)
            except MddError as error:
                _leave_out(results, f"{name}, step {step:g}: {error}")
                done += len(plan.methods)
                continue
            answers: dict[str, NDArray[Any]] = {}
            for place, method in enumerate(plan.methods, done):
                what = f"{name}, step {step:g}: {method.name}"
                hooks.progress(place, what)
                try:
                    answer = method.answer(
                        case,
                        plan.engine,
                        engine=engines[method.name],
                        seed=seed,
                        resident_mb=hooks.resident_mb,
                        report=_stages(hooks, place, what),
                    )
                    scores = _scores(case, answer, perceptual)
                except Exception as error:  # one method's bug or lack of memory must not cost the others
                    _leave_out(
                        results, f"{name}, step {step:g}, {method.name}: {type(error).__name__}: {error}"
                    )
                    continue
                answers[method.name] = answer.volume
                results.rows.append(
                    {"volume": name, "step": step, "seed": seed, "method": method.name, **scores}
                )
            done += len(plan.methods)
            if seed == 0 and answers and hooks.show is not None:
                hooks.show(name, step, case, answers)


def _stages(hooks: Hooks, done: int, what: str) -> Callable[[str, int, int], None]:
    """Return who hears of the stages of one call."""
    return lambda stage, part, whole: hooks.progress(done, f"{what}, {stage} {part} of {whole}")


def _scores(case: Case, answer: Answer, perceptual: Perceptual | None) -> dict[str, Any]:
    scores: dict[str, Any] = dataclasses.asdict(case.scores(answer.volume))
    if perceptual is not None:
        scores["lpips"] = perceptual(answer.volume[case.seen], case.truth[case.seen])
    return {
        **scores,
        "held_out_error": case.held_out_error(answer.volume),
        "served": answer.served,
        "evaluations": answer.evaluations,
        **dataclasses.asdict(answer.cost),
    }


def _leave_out(results: Results, what: str) -> None:
    results.skipped.append(what)
    logger.warning("left out %s", what)
