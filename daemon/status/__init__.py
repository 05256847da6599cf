"""The daemon's status: figures, trends and previews, and the channel they are published on."""

from microdiffusion.daemon.status.board import StatusBoard
from microdiffusion.daemon.status.channel import StatusPublisher, subscribe
from microdiffusion.daemon.status.history import BUCKETS_S, Histogram
from microdiffusion.daemon.status.models import (
    HEADLINE,
    LIVE,
    Alarm,
    EngineStatus,
    FrameCounts,
    Note,
    QueueDepth,
    RunStatus,
    RunSummary,
    StatusSnapshot,
    SweepProgress,
)
from microdiffusion.daemon.status.previews import GAMMA, Images, Preview, make_preview, session_name
from microdiffusion.daemon.status.text import (
    LITTLE_DISK,
    Tile,
    duration,
    figures,
    log_fields,
    log_line,
    run_line,
    seconds,
    size,
    stages_of,
    state_of,
    times,
)

__all__ = [
    "BUCKETS_S",
    "GAMMA",
    "HEADLINE",
    "LITTLE_DISK",
    "LIVE",
    "Alarm",
    "EngineStatus",
    "FrameCounts",
    "Histogram",
    "Images",
    "Note",
    "Preview",
    "QueueDepth",
    "RunStatus",
    "RunSummary",
    "StatusBoard",
    "StatusPublisher",
    "StatusSnapshot",
    "SweepProgress",
    "Tile",
    "duration",
    "figures",
    "log_fields",
    "log_line",
    "make_preview",
    "run_line",
    "seconds",
    "session_name",
    "size",
    "stages_of",
    "state_of",
    "subscribe",
    "times",
]
