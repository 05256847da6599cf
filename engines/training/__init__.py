"""Trains and adapts the network."""

from microdiffusion.engines.training.adapt import adapt
from microdiffusion.engines.training.adapt_data import read_session
from microdiffusion.engines.training.adapt_volume import adapt_to_volume
from microdiffusion.engines.training.checkpoint import write_weights
from microdiffusion.engines.training.degrade import Optics
from microdiffusion.engines.training.fine_tune import AdaptPlan, Watch
from microdiffusion.engines.training.loop import TrainingProgress, train
from microdiffusion.engines.training.session_optics import SessionOptics, planned_optics
from microdiffusion.engines.training.specimen import read_specimen

__all__ = [
    "AdaptPlan",
    "Optics",
    "SessionOptics",
    "TrainingProgress",
    "Watch",
    "adapt",
    "adapt_to_volume",
    "planned_optics",
    "read_session",
    "read_specimen",
    "train",
    "write_weights",
]
