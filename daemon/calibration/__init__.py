"""Measuring the instrument: the beam's axial profile from a z-stack, the camera's noise from two series."""
