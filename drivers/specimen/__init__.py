"""The virtual specimen behind the demo camera."""

from microdiffusion.drivers.specimen.beads import CalibrationSpecimen, specimen_of_run
from microdiffusion.drivers.specimen.specimen import Specimen

__all__ = ["CalibrationSpecimen", "Specimen", "specimen_of_run"]
