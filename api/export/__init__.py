"""Export of run files to other formats: one module for each format, and what they share.

Owns the names of the formats, and `export_run`. The library of a format is imported when it is used.

>>> from microdiffusion.export import Scope, export_run
>>> export_run(Path("run.h5"), "ome-zarr", scope=Scope(first=0, last=9))       # doctest: +SKIP
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from microdiffusion.errors import ConfigError, InputFileError
from microdiffusion.export.bdv_link import link_run, renew_link
from microdiffusion.export.ome_zarr import VERSIONS
from microdiffusion.export.options import Exported, Progress
from microdiffusion.export.source import Scope, open_pictures
from microdiffusion.files import refuse_existing

__all__ = [
    "FORMATS",
    "VERSIONS",
    "Exported",
    "Scope",
    "default_output",
    "export_run",
    "is_url",
    "link_run",
    "renew_link",
]

FORMATS = {"ome-zarr": ".ome.zarr", "ome-tiff": ".ome.tif", "bdv": "_bdv.xml", "nrrd": "_nrrd"}
"""The formats, and the ending that the default output of each adds to the run's name."""


def default_output(run: Path, format_name: str) -> Path:
    """Return the default output of an export: beside the run."""
    return run.with_name(run.stem + FORMATS[format_name])


def is_url(text: str) -> bool:
    """Return whether an output is in an object store, such as s3://bucket/run.ome.zarr."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def export_run(
    run: Path,
    format_name: str,
    output: Path | str | None = None,
    *,
    scope: Scope | None = None,
    compress: bool = False,
    ngff: str = "",
    follow: bool = False,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write a run, or a part of it, in another format; also during the run.

    What the run holds at the time of the call is exported, one volume in memory at a time. A file or folder
    gets its name when it is complete. In an object store OME-Zarr is written in place, four volumes in memory
    at a time; what is there of the same export is gone on with.

    Parameters
    ----------
    run
        The run's first file.
    format_name
        One of `FORMATS`.
    output
        File or folder to create, or the address in an object store (s3://, gs://, az://; OME-Zarr only);
        None: beside the run.
    compress
        Smaller and slower.
    ngff
        Version of OME-Zarr: "0.4", the default of a folder, or "0.5" with shards, that of an object store.
    follow
        Go on until the run is closed; in an object store.
    progress
        Called with the number of volumes done, and of all.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such run, or part of a run, or the output exists.
    DependencyError
        The format's library is not installed.
    NoRoomError, DiskError
        The disk or store is full, or cannot be written.
    UserError
        There are no credentials for the store, no rights or no bucket; or the options do not go together.
    """
    remote = isinstance(output, str) and is_url(output)
    _check(format_name, ngff, remote=remote, follow=follow)
    if isinstance(output, str):
        if remote:
            from microdiffusion.export.object_store import write_to_store

            return write_to_store(
                run,
                output,
                scope or Scope(),
                compress=compress,
                ngff=ngff or "0.5",
                follow=follow,
                progress=progress,
            )
        output = Path(output)
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
        more = {"ngff": ngff} if ngff else {}
        exported: Exported = module.write(pictures, output, compress=compress, progress=progress, **more)
    return exported


def _check(format_name: str, ngff: str, *, remote: bool, follow: bool) -> None:
    """Refuse options that do not go together."""
    if format_name != "ome-zarr" and (remote or ngff):
        what = "An object store takes" if remote else "A version (NGFF) is an option of"
        raise ConfigError(f"{what} ome-zarr, not {format_name}: change the format, or leave it out.")
    if ngff and ngff not in VERSIONS:
        raise ConfigError(f"There is no version {ngff} of OME-Zarr here: choose {' or '.join(VERSIONS)}.")
    if follow and not remote:
        raise ConfigError(
            "Only an export to an object store follows a run, as a file or folder is complete or absent: "
            "name an output such as s3://bucket/run.ome.zarr, or export when the run has ended."
        )
