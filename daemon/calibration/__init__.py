"""Measures the axial profile of the beam and the response of the camera."""

from microdiffusion.daemon.calibration.beam import BeamResult, ZStack, measure_beam
from microdiffusion.daemon.calibration.camera import CameraResult, measure_camera
from microdiffusion.daemon.calibration.stack import read_series, read_stack, write_stack

__all__ = [
    "BeamResult",
    "CameraResult",
    "ZStack",
    "measure_beam",
    "measure_camera",
    "read_series",
    "read_stack",
    "write_stack",
]
