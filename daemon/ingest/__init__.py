"""Receives frames from senders and acknowledges them."""

from microdiffusion.daemon.ingest.receiver import Ingest, NotYet, PlainSink, RunStats

__all__ = ["Ingest", "NotYet", "PlainSink", "RunStats"]
