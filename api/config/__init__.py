"""The configuration: its tables, and the functions that read, check and write it."""

from microdiffusion.config.calibration import BeamFile, CameraFile, calibration_toml, read_beam
from microdiffusion.config.engine_tables import EngineConfig, InrConfig, ReferenceConfig, TrainingConfig
from microdiffusion.config.load import explained, load_config, presets
from microdiffusion.config.models import (
    AcquisitionConfig,
    CameraConfig,
    Config,
    DashboardConfig,
    RecorderConfig,
    SpecimenConfig,
    SweepConfig,
    WireConfig,
)
from microdiffusion.config.reference import KeyPath, chosen_toml, dump_toml, keys, reference_page

__all__ = [
    "AcquisitionConfig",
    "BeamFile",
    "CameraConfig",
    "CameraFile",
    "Config",
    "DashboardConfig",
    "EngineConfig",
    "InrConfig",
    "KeyPath",
    "RecorderConfig",
    "ReferenceConfig",
    "SpecimenConfig",
    "SweepConfig",
    "TrainingConfig",
    "WireConfig",
    "calibration_toml",
    "chosen_toml",
    "dump_toml",
    "explained",
    "keys",
    "load_config",
    "presets",
    "read_beam",
    "reference_page",
]
