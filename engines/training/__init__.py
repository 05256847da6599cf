"""Trains and adapts the network."""

from microdiffusion.engines.training.adapt import AdaptPlan, adapt
from microdiffusion.engines.training.adapt_data import read_session
from microdiffusion.engines.training.checkpoint import write_weights
from microdiffusion.engines.training.loop import TrainingProgress, train

__all__ = ["AdaptPlan", "TrainingProgress", "adapt", "read_session", "train", "write_weights"]
