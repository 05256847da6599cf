"""Writes run files."""

from microdiffusion.daemon.recorder.compress import Compressor, compress_in_place, remove_leftovers
from microdiffusion.daemon.recorder.files import RunFiles
from microdiffusion.daemon.recorder.index import Key
from microdiffusion.daemon.recorder.recorder import Recorder, Written
from microdiffusion.daemon.recorder.writer import RunWriter

__all__ = [
    "Compressor",
    "Key",
    "Recorder",
    "RunFiles",
    "RunWriter",
    "Written",
    "compress_in_place",
    "remove_leftovers",
]
