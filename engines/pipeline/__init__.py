"""From a sweep to a volume, and the state that a session keeps between sweeps."""

from microdiffusion.engines.pipeline.engine import (
    Engine,
    open_engine,
    pick_device,
    shipped_weights,
    weights_path,
)
from microdiffusion.engines.pipeline.reconstructor import Reconstructor
from microdiffusion.engines.pipeline.session import State
from microdiffusion.engines.pipeline.session_store import SessionKey, SessionStore

__all__ = [
    "Engine",
    "Reconstructor",
    "SessionKey",
    "SessionStore",
    "State",
    "open_engine",
    "pick_device",
    "shipped_weights",
    "weights_path",
]
