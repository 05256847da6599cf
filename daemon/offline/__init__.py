"""Work on recorded files: reconstruction, repair, summaries."""

from microdiffusion.daemon.offline.against import hold_against, read_dense
from microdiffusion.daemon.offline.reconstruct import catch_up, reconstruct_file
from microdiffusion.daemon.offline.repair import repair_run
from microdiffusion.daemon.offline.summary import duration_s, grouped_gaps, position_facts, sparkline

__all__ = [
    "catch_up",
    "duration_s",
    "grouped_gaps",
    "hold_against",
    "position_facts",
    "read_dense",
    "reconstruct_file",
    "repair_run",
    "sparkline",
]
