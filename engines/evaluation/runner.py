"""Runs methods over volumes, and keeps the score: one row per volume, step, seed and method.

A volume that cannot be used or a method that fails affects nothing else: both are noted, and the rest
continues. Rows arrive in a fixed order and do not depend on each other. One thread; one volume in memory at a
time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.engines.evaluation.methods import Method
from microdiffusion.engines.evaluation.protocol import Case, Protocol, make_case, read_truth
from microdiffusion.engines.pipeline import Engine
from microdiffusion.errors import MddError

Row = dict[str, Any]
"""Volume, step, seed, method, its scores, and the cost of the call."""


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """The methods, volumes and conditions of an evaluation.

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

    def open(self) -> dict[str, Engine | None]:
        """Return the engine of each method by name, as for `Method.open`."""
        return {method.name: method.open(self.engine) for method in self.methods}


@dataclass(slots=True)
class Results:
    """The rows, and what was left out with the reason."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    classical: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hooks:
    """The runner's callbacks.

    Attributes
    ----------
    progress : callable
        Gets the number of calls done and what comes next.
    resident_mb : callable
        Returns the process's memory.
    show : callable
        Gets the volume's name, step, case and answers by method, of seed 0.
    saved : callable
        Gets the results so far after each volume.
    skipped : callable
        Gets each volume or call that has no row, and why.
    """

    progress: Callable[[int, str], None] = lambda done, text: None
    resident_mb: Callable[[], float | None] = lambda: None
    show: Callable[[str, float, Case, dict[str, NDArray[Any]]], None] | None = None
    saved: Callable[[Results], None] = lambda results: None
    skipped: Callable[[str], None] = lambda what: None

    def leave_out(self, results: Results, what: str) -> None:
        """Note a volume or a call that has no row."""
        results.skipped.append(what)
        self.skipped(what)


def evaluate(plan: EvaluationPlan, hooks: Hooks | None = None) -> Results:
    """Run the plan.

    Raises
    ------
    ConfigError, DependencyError, MissingFileError, InputFileError
        A method's device or weights cannot be opened. (Not for what a single volume lacks.)
    """
    hooks = hooks or Hooks()
    engines = plan.open()
    results = Results(classical=tuple(method.name for method in plan.methods if method.classical))
    each = len(plan.methods) * plan.seeds
    for number, name, truth in truths(plan, hooks, results):
        done = number * each * len(plan.steps)
        hooks.progress(done, name)
        for place, step in enumerate(plan.steps):
            _step(plan, engines, name, truth, step, done + place * each, hooks, results)
        hooks.saved(results)
    hooks.progress(plan.runs(), "done")
    return results


def truths(
    plan: EvaluationPlan, hooks: Hooks, results: Results
) -> Iterator[tuple[int, str, NDArray[np.float32]]]:
    """Yield number, name and truth (Z, Y, X) of each volume; what cannot be used is left out."""
    for number, path in enumerate(plan.files):
        try:
            truth = read_truth(path, plan.protocol.crop)
        except MddError as error:
            hooks.leave_out(results, f"{path.name}: {error}")
        else:
            yield number, path.stem, truth


def cases(
    plan: EvaluationPlan, hooks: Hooks, results: Results
) -> Iterator[tuple[str, NDArray[np.float32], Protocol, int]]:
    """Yield name and truth (Z, Y, X) of each volume, at each step and with each seed."""
    for _, name, truth in truths(plan, hooks, results):
        for step in plan.steps:
            for seed in range(plan.seeds):
                yield name, truth, dataclasses.replace(plan.protocol, step=step), seed
        hooks.saved(results)


def _step(
    plan: EvaluationPlan,
    engines: Mapping[str, Engine | None],
    name: str,
    truth: NDArray[np.float32],
    step: float,
    done: int,
    hooks: Hooks,
    results: Results,
) -> None:
    """Run all seeds and methods on one volume at one step."""
    for seed in range(plan.seeds):
        try:
            case = make_case(truth, dataclasses.replace(plan.protocol, step=step), seed)
        except MddError as error:
            hooks.leave_out(results, f"{name}, step {step:g}: {error}")
            return
        answers: dict[str, NDArray[Any]] = {}
        for method in plan.methods:
            what = f"{name}, step {step:g}: {method.name}"

            def report(stage: str, part: int, whole: int, done: int = done, what: str = what) -> None:
                hooks.progress(done, f"{what}, {stage} {part} of {whole}")

            hooks.progress(done, what)
            done += 1
            try:
                answer = method.answer(
                    case,
                    plan.engine,
                    engine=engines[method.name],
                    seed=seed,
                    resident_mb=hooks.resident_mb,
                    report=report,
                )
                scores = dataclasses.asdict(case.scores(answer.volume))
                scores["held_out_error"] = case.held_out_error(answer.volume)
            except Exception as error:  # one method's bug or lack of memory must not affect the others
                hooks.leave_out(
                    results, f"{name}, step {step:g}, {method.name}: {type(error).__name__}: {error}"
                )
                continue
            answers[method.name] = answer.volume
            key = {"volume": name, "step": step, "seed": seed, "method": method.name}
            served = {"served": answer.served, "evaluations": answer.evaluations}
            results.rows.append(key | scores | served | dataclasses.asdict(answer.cost))
        if seed == 0 and answers and hooks.show is not None:
            hooks.show(name, step, case, answers)
