"""Attributes of a run file: its plan, and what to plot by NeXus' rules.

Owns writing a `RunPlan` into a new file and reading it back, with the layout's version. Text is written at a
fixed length. Functions hold no state; any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from microdiffusion.errors import InputFileError
from microdiffusion.header import RunHeader
from microdiffusion.runfile.pyramid import Factors
from microdiffusion.runfile.schema import LAYOUT_MAJOR, LEVEL_ZERO, RunPlan, position_prefix

_VERSION = version("microdiffusion-daemon")
_MOST_TEXT_BYTES = 64 << 20  # of header and configuration: a run of a thousand positions has a hundredth


def write_attributes(file: h5py.File, plan: RunPlan) -> None:
    """Write the part of a plan that is kept in attributes; header and configuration are datasets."""
    header = plan.header
    set_attributes(
        file,
        {
            "mdd_layout": plan.version,
            "storage": "static" if plan.compression == "none" else "chunked",
            "compression": plan.compression,
            "mdd_version": _VERSION,
            "run_id": header.run_id,
            "name": header.name,
            "created_utc": plan.created_utc,
            "time_points": plan.time_points,
            "frames_per_sweep": plan.frames_per_sweep,
            "segment": plan.segment,
            "first_time_point": plan.first_time_point,
            "planned_time_points": plan.planned,
            "live": int(plan.live),
            "uncertainty": int(plan.uncertainty),
            "pyramid_factors": np.array([LEVEL_ZERO, *plan.pyramid]),
            "voxel_size_um": np.array(header.voxel_size_um),
            "z0_um": header.z0_um,
        },
    )
    set_attributes(file.create_group("mdd/provenance"), plan.provenance)


def write_plots(file: h5py.File, plan: RunPlan) -> None:
    """Say in NeXus' terms what is to be plotted, so that h5web, silx and nexpy do so by default.

    /entry holds a group for each image, with links to the data and axes that are there anyway.
    """
    header = plan.header
    leading = ["."] if len(header.channels) == 1 else [".", "."]
    space = [*leading, "z", "y", "x"]
    set_attributes(file, {"NX_class": "NXroot", "default": "entry"})
    set_attributes(file["/"].require_group("entry"), {"NX_class": "NXentry", "default": "volume"})
    plots = {"volume": space, "projections": [*leading, ".", "y", "x"]}
    if plan.uncertainty:
        plots["uncertainty"] = space
    for name, axes in plots.items():
        group = file.create_group(f"entry/{name}")
        set_attributes(group, {"NX_class": "NXdata", "signal": name, "axes": axes})
        for link in (name, *(axis for axis in axes if axis != ".")):
            group[link] = file[link]
    for number in range(1, len(plan.pyramid) + 1):
        group = file[f"entry/pyramid_{number}"]
        set_attributes(group, {"NX_class": "NXdata", "signal": "volume", "axes": space})
        group["volume"] = file[f"pyramid/{number}"]
    for position, name in enumerate(header.positions[1:], 1):
        about = {"NX_class": "NXdata", "signal": "volume", "axes": space, "position": name}
        set_attributes(file[position_prefix(position)], about)


def set_attributes(where: h5py.Group | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """Set attributes; text at a fixed length: MATLAB's rule, and a damaged file cannot lead HDF5 astray.

    HDF5 keeps text of variable length in its global heap, whose reader never returns on some damaged files.
    """
    for name, value in attributes.items():
        is_text = isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], str))
        if not is_text:
            where.attrs[name] = value
            continue
        encoded = np.char.encode(np.array(value, dtype=str), "utf-8")
        kind = h5py.string_dtype("utf-8", max(encoded.dtype.itemsize, 1))
        where.attrs.create(name, encoded.astype(f"S{max(encoded.dtype.itemsize, 1)}"), dtype=kind)


def attribute_of(path: Path, where: h5py.Group, name: str) -> Any:
    """Return an attribute, None where it is absent."""
    attributes = where.attrs  # each look for them opens the group again
    if name not in attributes:
        return None
    kind = attributes.get_id(name).get_type()
    if isinstance(kind, h5py.h5t.TypeVlenID) or (
        isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    ):
        raise InputFileError(f"{path}: the attribute {name} was changed: use an untouched copy.")
    value = attributes[name]
    return value.decode() if isinstance(value, bytes) else value


def read_plan(path: Path, file: h5py.File) -> RunPlan:
    """Return the plan of an open run file."""
    root = file["/"]  # of a file h5py opens it for each attribute

    def attribute(name: str) -> Any:
        value = attribute_of(path, root, name)
        if value is None:
            raise KeyError(name)
        return value

    def text(name: str) -> bytes:
        dataset = file[name]
        if dataset.nbytes > _MOST_TEXT_BYTES:  # read before anything else is known of the file
            raise ValueError(name)
        return bytes(dataset[()])

    version = _check_version(path, attribute_of(path, root, "mdd_layout"))
    try:
        provenance = file["mdd/provenance"]
        storage = str(attribute("storage"))
        grown = storage == "swmr"  # layout 1.0 had a storage that grew: its datasets have the length
        return RunPlan(
            header=RunHeader.model_validate_json(text("mdd/run_header")),
            time_points=int(file["mdd/status"].shape[0] if grown else attribute("time_points")),
            frames_per_sweep=int(attribute("frames_per_sweep")),
            segment=int(attribute("segment")),
            first_time_point=int(attribute("first_time_point")),
            configuration=text("mdd/configuration").decode(),
            provenance={key: str(attribute_of(path, provenance, key)) for key in provenance.attrs},
            created_utc=str(attribute("created_utc")),
            planned_time_points=int(attribute("planned_time_points")),
            live=bool(attribute("live")),
            pyramid=_pyramid(attribute("pyramid_factors")),
            uncertainty=bool(attribute("uncertainty")),
            version=version,
            compression="none" if storage == "static" else str(attribute("compression")),
        )
    except InputFileError:
        raise
    except (KeyError, ValueError, ValidationError) as error:
        raise InputFileError(
            f"{path} lacks a part of a run file ({type(error).__name__}): "
            "it was changed or damaged; use an untouched copy."
        ) from error


def _check_version(path: Path, version: Any) -> str:
    """Return the version of the layout where it can be read here: this major one, with any minor."""
    if version is None:
        raise InputFileError(f"{path} is not a run file of mdd: give the file that `mdd serve` wrote.")
    if not isinstance(version, str):  # development wrote numbers
        raise InputFileError(
            f"{path} has run file layout {version}, which was never released, and this mdd ({_VERSION}) "
            f"reads layout {LAYOUT_MAJOR}.x: record it again, or open it with the mdd that wrote it."
        )
    major, _, minor = version.partition(".")
    if not (major.isdecimal() and minor.isdecimal()) or int(major) != LAYOUT_MAJOR:
        raise InputFileError(
            f"{path} has run file layout {version[:20]} and this mdd ({_VERSION}) reads "
            f"layout {LAYOUT_MAJOR}.x: open it with the mdd that wrote it, or a newer one."
        )
    return version


def _pyramid(factors: NDArray[Any]) -> tuple[Factors, ...]:
    levels = [(int(z), int(y), int(x)) for z, y, x in factors]
    if levels[0] != LEVEL_ZERO or any(
        after not in {(z, 2 * y, 2 * x), (2 * z, 2 * y, 2 * x)} for (z, y, x), after in pairwise(levels)
    ):
        raise ValueError("pyramid_factors")
    return tuple(levels[1:])
