"""Follows an acquisition that somebody else runs."""

from microdiffusion.drivers.passive.attach import attach

__all__ = ["attach"]
