"""The configuration: its tables, how it is read, checked and written."""

from microdiffusion.config.calibration import BeamFile, CameraFile, read_beam, write_calibration
from microdiffusion.config.config_keys import Path_, keys
from microdiffusion.config.load import load_config, presets
from microdiffusion.config.models import (
    AcquisitionConfig,
    CameraConfig,
    Config,
    DashboardConfig,
    EngineConfig,
    InrConfig,
    RecorderConfig,
    ReferenceConfig,
    SpecimenConfig,
    SweepConfig,
    TrainingConfig,
    WireConfig,
)
from microdiffusion.config.reference import chosen_toml, dump_toml, reference, toml_value

__all__ = [
    "AcquisitionConfig",
    "BeamFile",
    "CameraConfig",
    "CameraFile",
    "Config",
    "DashboardConfig",
    "EngineConfig",
    "InrConfig",
    "Path_",
    "RecorderConfig",
    "ReferenceConfig",
    "SpecimenConfig",
    "SweepConfig",
    "TrainingConfig",
    "WireConfig",
    "chosen_toml",
    "dump_toml",
    "keys",
    "load_config",
    "presets",
    "read_beam",
    "reference",
    "toml_value",
    "write_calibration",
]
