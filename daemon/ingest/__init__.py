"""Receives frames from senders and acknowledges them."""

from microdiffusion.daemon.ingest.intake import RunStats, admits, owner_of
from microdiffusion.daemon.ingest.protocol import NotYet
from microdiffusion.daemon.ingest.receiver import Ingest
from microdiffusion.daemon.ingest.sink import PlainSink, RunState

__all__ = ["Ingest", "NotYet", "PlainSink", "RunState", "RunStats", "admits", "owner_of"]
