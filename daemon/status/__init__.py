"""What the daemon tells about itself: figures, trends, previews, and the channel they go out on."""

from microdiffusion.daemon.status.board import (
    HEADLINE,
    EngineStatus,
    FrameCounts,
    RunStatus,
    StatusBoard,
    StatusPublisher,
    subscribe,
)
from microdiffusion.daemon.status.history import BUCKETS_S, Histogram
from microdiffusion.daemon.status.models import LIVE, Alarm, Note, RunSummary, StatusSnapshot
from microdiffusion.daemon.status.previews import GAMMA, Images, Preview, make_preview
from microdiffusion.daemon.status.shelf import session_name
from microdiffusion.daemon.status.text import (
    LITTLE_DISK,
    Tile,
    depth_of,
    duration,
    figures,
    log_fields,
    log_line,
    page,
    run_line,
    seconds,
    size,
    stages,
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
    "RunStatus",
    "RunSummary",
    "StatusBoard",
    "StatusPublisher",
    "StatusSnapshot",
    "Tile",
    "depth_of",
    "duration",
    "figures",
    "log_fields",
    "log_line",
    "make_preview",
    "page",
    "run_line",
    "seconds",
    "session_name",
    "size",
    "stages",
    "state_of",
    "subscribe",
    "times",
]
