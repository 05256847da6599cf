"""Writes run files."""

from microdiffusion.daemon.recorder.compress import Compressor, compress_in_place, remove_leftovers
from microdiffusion.daemon.recorder.files import RunFiles
from microdiffusion.daemon.recorder.index import Key
from microdiffusion.daemon.recorder.opening import create_recorder, resume_recorder
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.daemon.recorder.writer import RunWriter, Written

__all__ = [
    "Compressor",
    "Key",
    "Recorder",
    "RunFiles",
    "RunWriter",
    "Written",
    "compress_in_place",
    "create_recorder",
    "remove_leftovers",
    "resume_recorder",
]
