"""Measures the axial profile of the beam and the response of the camera."""

from microdiffusion.daemon.calibration.beam import BeamResult, ZStack, measure_beam
from microdiffusion.daemon.calibration.camera import CameraResult, measure_camera
from microdiffusion.daemon.calibration.plot import beam_text, check_plot, plot_beam, plot_camera
from microdiffusion.daemon.calibration.stack import read_series, read_stack, write_stack

__all__ = [
    "BeamResult",
    "CameraResult",
    "ZStack",
    "beam_text",
    "check_plot",
    "measure_beam",
    "measure_camera",
    "plot_beam",
    "plot_camera",
    "read_series",
    "read_stack",
    "write_stack",
]
