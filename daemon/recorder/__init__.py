"""Writes run files."""

from microdiffusion.daemon.recorder.files import RunFiles
from microdiffusion.daemon.recorder.filesystem import refuse_unordered
from microdiffusion.daemon.recorder.index import Key
from microdiffusion.daemon.recorder.mending import Mended, mend
from microdiffusion.daemon.recorder.recorder import Recorder, Written
from microdiffusion.daemon.recorder.swmr_segment import SwmrSegment
from microdiffusion.daemon.recorder.voxels import as_kept
from microdiffusion.daemon.recorder.writer import RunWriter

__all__ = [
    "Key",
    "Mended",
    "Recorder",
    "RunFiles",
    "RunWriter",
    "SwmrSegment",
    "Written",
    "as_kept",
    "mend",
    "refuse_unordered",
]
