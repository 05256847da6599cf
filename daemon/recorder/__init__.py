"""Writes run files."""

from microdiffusion.daemon.recorder.files import RunFiles
from microdiffusion.daemon.recorder.index import Key
from microdiffusion.daemon.recorder.recorder import Recorder, Written
from microdiffusion.daemon.recorder.voxels import as_kept
from microdiffusion.daemon.recorder.writer import RunWriter

__all__ = ["Key", "Recorder", "RunFiles", "RunWriter", "Written", "as_kept"]
