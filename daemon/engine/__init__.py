"""The engine process as the daemon sees it: what is queued, who works, what is restarted."""

from microdiffusion.daemon.engine.messages import EngineInfo, provenance
from microdiffusion.daemon.engine.pace import (
    PaceWatch,
    holding_interval_s,
    sessions_of_a_device,
    sweep_time,
    too_slow,
)
from microdiffusion.daemon.engine.process import EngineProcess
from microdiffusion.daemon.engine.requirements import Requirements, requirements_of
from microdiffusion.daemon.engine.sinks import SweepJob
from microdiffusion.daemon.engine.work_queue import WorkQueue

__all__ = [
    "EngineInfo",
    "EngineProcess",
    "PaceWatch",
    "Requirements",
    "SweepJob",
    "WorkQueue",
    "holding_interval_s",
    "provenance",
    "requirements_of",
    "sessions_of_a_device",
    "sweep_time",
    "too_slow",
]
