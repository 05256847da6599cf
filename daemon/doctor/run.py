"""Runs all checks side by side, and gives each of them a line within the time limit.

Each check has a daemon thread of its own. One that raises or hangs becomes a warning; a hanging thread ends
with the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from microdiffusion.config import Config
from microdiffusion.daemon.doctor import computer, disk, gpu, microscope, pace, packages, ports
from microdiffusion.daemon.doctor.finding import Check, Finding, Findings, warning
from microdiffusion.daemon.doctor.subprocess_probe import Facts, probe

LIMIT_S = 20.0
"""Time after which the page is printed with what is known."""

T = TypeVar("T")


def examine(config: Config) -> Findings:
    """Return the findings of all checks for a configuration."""
    probed = _in_thread(lambda: probe(config, timeout_s=LIMIT_S - 1.0))

    def ask(subject: str) -> Facts:
        answer = probed.result()[subject]
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    return run_checks(
        [
            *packages.checks(),
            *gpu.checks(config.engine, ask),
            *pace.checks(config, ask),
            *microscope.checks(config.acquisition),
            *ports.checks(config.wire),
            *disk.checks(config),
            *computer.checks(config),
        ]
    )


def run_checks(checks: Sequence[Check], *, limit_s: float = LIMIT_S) -> Findings:
    """Return the findings of `checks`, in their order, within `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    answers = [(check, _in_thread(check.look)) for check in checks]
    found: list[tuple[Check, Finding]] = []
    for check, answer in answers:
        try:
            error = answer.exception(max(deadline_s - time.monotonic(), 0.0))
        except TimeoutError:
            late = warning("no answer in time", "Run mdd doctor again when the machine is less busy.")
            found.append((check, late))
            continue
        if error is not None:
            text = f"the check itself failed ({type(error).__name__}: {error})"
            found.append((check, warning(text, "Please report it with the output of mdd doctor --json.")))
            continue
        result = answer.result()
        found += [(check, one) for one in ([result] if isinstance(result, Finding) else result)]
    return found


def _in_thread(function: Callable[[], T]) -> Future[T]:
    answer: Future[T] = Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except Exception as error:  # whatever a driver's library raises, the other lines are wanted
            answer.set_exception(error)

    threading.Thread(target=call, name="mdd-doctor", daemon=True).start()
    return answer
