"""From a sweep to a volume, and the state that a session keeps between sweeps."""

from microdiffusion.engines.pipeline.blocks import lazy_projections, map_sweeps
from microdiffusion.engines.pipeline.engine import Engine, open_engine, pick_device
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.pipeline.session_store import SessionStore

__all__ = [
    "Engine",
    "Reconstructor",
    "SessionStore",
    "lazy_projections",
    "map_sweeps",
    "open_engine",
    "pick_device",
]
