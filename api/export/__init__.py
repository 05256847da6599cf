"""Export of run files to other formats: one module for each format, and what they share.

Owns the names of the formats, and `export_run`. The library of a format is imported when it is used.

>>> from microdiffusion.export import Scope, export_run
>>> export_run(Path("run.h5"), "ome-zarr", scope=Scope(first=0, last=9))       # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from microdiffusion.errors import InputFileError
from microdiffusion.export.bdv_link import link_run, renew_link
from microdiffusion.export.options import Exported, Progress
from microdiffusion.export.source import Scope, open_pictures
from microdiffusion.files import refuse_existing

__all__ = [
    "FORMATS",
    "Exported",
    "Scope",
    "default_output",
    "export_run",
    "link_run",
    "renew_link",
]

FORMATS = {"ome-zarr": ".ome.zarr", "ome-tiff": ".ome.tif", "bdv": "_bdv.xml", "nrrd": "_nrrd"}
"""The formats, and the ending that the default output of each adds to the run's name."""


def default_output(run: Path, format_name: str) -> Path:
    """Return the default output of an export: beside the run."""
    return run.with_name(run.stem + FORMATS[format_name])


def export_run(
    run: Path,
    format_name: str,
    output: Path | None = None,
    *,
    scope: Scope | None = None,
    compress: bool = False,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write a run, or a part of it, in another format; also during the run.

    What the run holds at the time of the call is exported, one volume in memory at a time. The output gets
    its name when it is complete.

    Parameters
    ----------
    run
        The run's first file.
    format_name
        One of `FORMATS`.
    output
        File or folder to create; None: beside the run.
    compress
        Smaller and slower.
    progress
        Called with the number of volumes done, and of all.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such run, or part of a run, or the output exists.
    DependencyError
        The format's library is not installed.
    NoRoomError, DiskError
        The disk is full, or cannot be written.
    """
    module = import_module(f"microdiffusion.export.{format_name.replace('-', '_')}")
    output = output or default_output(run, format_name)
    try:
        output.name.encode()
    except UnicodeEncodeError:  # the formats hold the name of their own file
        raise InputFileError(
            f"{output.name!a} is not UTF-8, and an export in {format_name} cannot be called so: "
            "name another with --output."
        ) from None
    refuse_existing(output)
    with open_pictures(run, scope or Scope()) as pictures:
        exported: Exported = module.write(pictures, output, compress=compress, progress=progress)
    return exported
