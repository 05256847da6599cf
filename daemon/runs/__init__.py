"""Open runs: from frames to sweeps, and the accounting and health of each run."""

from microdiffusion.daemon.runs.assembler import Assembler, enough
from microdiffusion.daemon.runs.folder import RunFolder
from microdiffusion.daemon.runs.live_run import LiveRun
from microdiffusion.daemon.runs.registry import ClosedRun, OpenRuns

__all__ = ["Assembler", "ClosedRun", "LiveRun", "OpenRuns", "RunFolder", "enough"]
