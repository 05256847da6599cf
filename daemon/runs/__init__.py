"""Open runs: from frames to sweeps, and the accounting and health of each run."""

from microdiffusion.daemon.runs.assembler import LEAST_SHARE, Assembler, enough
from microdiffusion.daemon.runs.folder import RunFolder
from microdiffusion.daemon.runs.live_run import LiveRun
from microdiffusion.daemon.runs.registry import ClosedRun, OpenRuns

__all__ = ["LEAST_SHARE", "Assembler", "ClosedRun", "LiveRun", "OpenRuns", "RunFolder", "enough"]
