"""The pace: what a sweep takes this engine on this geometry, measured, against the sweeps asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from microdiffusion.daemon.doctor.finding import Check, Finding, ok, warning
from microdiffusion.daemon.doctor.gpu import THEME
from microdiffusion.daemon.doctor.subprocess_probe import Facts, probe
from microdiffusion.daemon.engine import (
    Requirements,
    holding_interval_s,
    requirements_of,
    sessions_of_a_device,
    too_slow,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from microdiffusion.config import Config

FIX = (
    "Set acquisition.sweep_interval_s to that, or use a smaller camera region or thicker slices; "
    "sweeps that wait take room in the run file all the same, and mdd reconstruct RUN adds their volumes."
)
_LIMIT_S = 60.0


def checks(config: Config, ask: Callable[[str], Facts]) -> list[Check]:
    """Return the checks of this theme; `ask` gives the facts of a subject from the probe's process."""
    return [Check(THEME, "pace", lambda: pace(ask("pace"), _of_a_device(config)))]


def pace(measured: Facts, need: Requirements | None) -> Finding:
    """Judge what a sweep takes by the interval that is asked for."""
    if need is None:
        return ok("depends on the frames")
    if need.assumed:
        return ok("depends on the camera's region: camera.width, camera.height")
    rows, columns = measured["measured"]
    part = "" if measured["whole"] else f", measured on {columns} x {rows} pixels"
    holds_s = holding_interval_s(measured["seconds"], need.sessions)
    slow = too_slow(measured["seconds"], need.sessions, need.sweep_s)
    if slow:
        return warning(slow + part, FIX)
    return ok(
        f"{measured['seconds']:.2g} s for a sweep{part}: an interval of {holds_s:g} s holds, "
        f"{need.sweep_s:.2g} s is asked for"
    )


def measured_pace(config: Config) -> Finding:
    """Measure in a process of its own, and judge; for a command that asks for nothing else."""
    facts = probe(config, timeout_s=_LIMIT_S, subjects=("pace",))["pace"]
    if isinstance(facts, str):
        return warning(f"the pace was not measured ({facts})", "Run mdd doctor.")
    return pace(facts, _of_a_device(config))


def _of_a_device(config: Config) -> Requirements | None:
    """Return the demands on the device that has most sessions."""
    need = requirements_of(config)
    if need is None:
        return None
    return replace(need, sessions=sessions_of_a_device(need.sessions, config.engine))
