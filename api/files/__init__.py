"""Projection files, volumes and stacks, and output that appears whole or not at all."""

from microdiffusion.files.atomic import leftovers, refuse_existing, replacing, staged, write_text
from microdiffusion.files.projections import ProjectionFile, open_projections, write_projections
from microdiffusion.files.stacks import PIXEL_KEYS, Z_KEYS, split_part
from microdiffusion.files.volumes import VolumeFile, open_volume, volume_paths

__all__ = [
    "PIXEL_KEYS",
    "Z_KEYS",
    "ProjectionFile",
    "VolumeFile",
    "leftovers",
    "open_projections",
    "open_volume",
    "refuse_existing",
    "replacing",
    "split_part",
    "staged",
    "volume_paths",
    "write_projections",
    "write_text",
]
