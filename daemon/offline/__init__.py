"""Work on recorded files: reconstruction, repair, summaries."""

from microdiffusion.daemon.offline.against import hold_against, read_dense
from microdiffusion.daemon.offline.cluster import Where, describe, open_cluster, prepare_workers
from microdiffusion.daemon.offline.farm import Outcome, work_through, work_through_here
from microdiffusion.daemon.offline.pieces import Piece, Work, plan_pieces, remove_unfinished
from microdiffusion.daemon.offline.reconstruct import catch_up, learns, reconstruct_file
from microdiffusion.daemon.offline.repair import repair_run
from microdiffusion.daemon.offline.summary import duration_s, grouped_gaps, position_facts, sparkline

__all__ = [
    "Outcome",
    "Piece",
    "Where",
    "Work",
    "catch_up",
    "describe",
    "duration_s",
    "grouped_gaps",
    "hold_against",
    "learns",
    "open_cluster",
    "plan_pieces",
    "position_facts",
    "prepare_workers",
    "read_dense",
    "reconstruct_file",
    "remove_unfinished",
    "repair_run",
    "sparkline",
    "work_through",
    "work_through_here",
]
