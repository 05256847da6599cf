"""The implicit neural representation (INR) of a session."""

from microdiffusion.engines.inr.field import SessionInr, default_bandwidth
from microdiffusion.engines.inr.selection import SessionPrior, View
from microdiffusion.engines.inr.session_field import FieldEstimate, SessionField

__all__ = ["FieldEstimate", "SessionField", "SessionInr", "SessionPrior", "View", "default_bandwidth"]
