"""The implicit neural representation (INR) of a session."""

from microdiffusion.engines.inr.covariance import sweep_deviation
from microdiffusion.engines.inr.field import SessionInr, default_bandwidth
from microdiffusion.engines.inr.selection import SessionPrior, View
from microdiffusion.engines.inr.session_field import FieldEstimate, SessionField
from microdiffusion.engines.inr.slice_changes import SliceChanges
from microdiffusion.engines.inr.smoother import Known, Trail

__all__ = [
    "FieldEstimate",
    "Known",
    "SessionField",
    "SessionInr",
    "SessionPrior",
    "SliceChanges",
    "Trail",
    "View",
    "default_bandwidth",
    "sweep_deviation",
]
