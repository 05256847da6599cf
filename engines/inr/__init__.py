"""The implicit neural representation (INR) of a session."""

from microdiffusion.engines.inr.field import SessionInr, default_bandwidth
from microdiffusion.engines.inr.selection import SessionPrior, View

__all__ = ["SessionInr", "SessionPrior", "View", "default_bandwidth"]
