"""Fields of a projection file, read and checked one by one.

A field is an attribute of the file or of /projections, or a dataset; `projections` puts the fields together.
Each error is an `InputFileError` of one sentence that names the file and the field. Pure functions on an open
file, on the thread that opened it.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from microdiffusion.errors import GeometryError, InputFileError
from microdiffusion.frames import StagePositions
from microdiffusion.header import CameraNoise, RunHeader
from microdiffusion.optics import AxialProfile


class Fields:
    """Finds a named value: attribute of the file, attribute of /projections, or dataset."""

    def __init__(self, path: Path, file: h5py.File, projections: h5py.Dataset) -> None:
        self.path = path
        self.file = file
        self._places = (file.attrs, projections.attrs, file)

    def array(self, name: str) -> NDArray[np.float64] | None:
        """Return a field as float64, None where it is absent."""
        for place in self._places:
            if name not in place:
                continue
            value = place[name]
            try:
                return np.asarray(value[()] if isinstance(value, h5py.Dataset) else value, dtype=np.float64)
            except (TypeError, ValueError):
                raise InputFileError(
                    f"{self.path}: {name} should be numbers, not {value!r}: correct it."
                ) from None
        return None

    def required(self, name: str) -> NDArray[np.float64]:
        """Return a field that must be there."""
        value = self.array(name)
        if value is None and "mdd_layout" in self.file.attrs:
            raise InputFileError(
                f"{self.path} is a run file, not a projection file: read its sweeps with "
                "microdiffusion.open_run(path).sweep(t)."
            )
        if value is None:
            raise InputFileError(
                f"{self.path}: the attribute {name} is missing: add it (docs/projection-file.md lists all)."
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a field that is one finite number; `default` None: it must be there."""
        value = self.array(name)
        if value is None and default is not None:
            return default
        value = self.required(name)
        if value.size != 1 or not np.isfinite(value).all():
            raise InputFileError(f"{self.path}: {name} should be one finite number, not {value}: correct it.")
        return float(value.reshape(()))


def find_projections(path: Path, file: h5py.File) -> h5py.Dataset:
    """Return the dataset /projections (T, M, Y, X), uint16 or float32."""
    dataset = file.get("projections")
    if not isinstance(dataset, h5py.Dataset):
        names = ", ".join(f"/{name}" for name in file) or "nothing"
        raise InputFileError(
            f"{path}: the dataset /projections is missing (found {names}): "
            "give a projection file, or make one with `mdd simulate`."
        )
    if dataset.ndim != 4 or 0 in dataset.shape:
        raise InputFileError(
            f"{path}: /projections should be (T, M, Y, X) without an empty axis, "
            f"not {dataset.shape}: reshape it."
        )
    if dataset.dtype.kind + str(dataset.dtype.itemsize) not in {"u2", "f4"}:
        raise InputFileError(
            f"{path}: /projections should be uint16 or float32, not {dataset.dtype}: convert it."
        )
    return dataset


def read_positions(fields: Fields, sweeps: int, count: int) -> list[StagePositions]:
    """Return the stage positions (M,) of each sweep."""
    z_um = fields.required("z_um")
    if z_um.shape not in {(count,), (sweeps, count)}:
        raise InputFileError(
            f"{fields.path}: z_um should be (M,) = ({count},) or (T, M) = ({sweeps}, {count}), "
            f"not {z_um.shape}: give one position for each projection."
        )
    if not np.all(np.isfinite(z_um)):
        raise InputFileError(f"{fields.path}: z_um holds positions that are not finite: correct them.")
    for sweep, row in enumerate(np.atleast_2d(z_um)):
        if count > 1 and np.ptp(row) == 0:
            raise InputFileError(
                f"{fields.path}: all {count} slabs of sweep {sweep} say {row[0]:g} µm: give each its own."
            )
    return [StagePositions.read({"z_um": row}) for row in np.broadcast_to(z_um, (sweeps, count))]


def read_times(fields: Fields, sweeps: int) -> NDArray[np.float64]:
    """Return the times of the sweeps (T,), s; their numbers where the file has none."""
    time_s = fields.array("time_s")
    if time_s is None:
        return np.arange(sweeps, dtype=np.float64)
    if time_s.shape != (sweeps,) or not np.all(np.isfinite(time_s)):
        raise InputFileError(
            f"{fields.path}: time_s should be {sweeps} finite numbers, one for each sweep, "
            f"not {time_s}: correct it."
        )
    return time_s


def read_held_out(fields: Fields, count: int) -> NDArray[np.bool_]:
    """Return whether each projection (M,) is held out; none is where the file does not say."""
    value = fields.array("held_out")
    if value is None:
        return np.zeros(count, dtype=np.bool_)
    flags = np.asarray(value != 0, dtype=np.bool_)
    if flags.shape != (count,) or flags.all():
        raise InputFileError(
            f"{fields.path}: held_out should be {count} flags, one for each projection, of which one is 0, "
            f"not {value}: correct it."
        )
    return flags


def _profile(fields: Fields) -> AxialProfile:
    """Return the measured profile if the file has one, else the box."""
    weights = fields.array("axial_profile")
    try:
        if weights is not None:
            return AxialProfile.sampled(weights, fields.number("profile_spacing_um"))
        if fields.array("length_um") is None:
            raise InputFileError(
                f"{fields.path}: the beam is missing: add the attribute length_um, or the dataset "
                "/axial_profile with the attribute profile_spacing_um."
            )
        return AxialProfile.box(fields.number("length_um"))
    except GeometryError as error:
        raise InputFileError(f"{fields.path}: {error}") from None


def read_header(fields: Fields, projections: h5py.Dataset) -> RunHeader:
    """Return geometry, beam and camera; the run id is new."""
    profile = _profile(fields)
    voxel = fields.required("voxel_size_um")
    if voxel.shape != (3,):
        raise InputFileError(
            f"{fields.path}: voxel_size_um should be three numbers (z, y, x), not {voxel}: correct it."
        )
    shape_z = fields.number("shape_z")
    if shape_z != int(shape_z):
        raise InputFileError(f"{fields.path}: shape_z should be a whole number, not {shape_z:g}: correct it.")
    dtype: Literal["uint16", "float32"] = "uint16" if projections.dtype.kind == "u" else "float32"
    values = {
        "run_id": uuid.uuid4().hex,
        "name": fields.path.stem[:200],
        "shape": (int(shape_z), *projections.shape[2:]),
        "voxel_size_um": tuple(voxel.tolist()),
        "z0_um": fields.number("z0_um"),
        "profile_weights": tuple(profile.weights.tolist()),
        "profile_spacing_um": profile.spacing_um,
        "dtype": dtype,
        "sweeps": projections.shape[0],
        "frames_per_sweep": projections.shape[1],
        "source": f"projection file {fields.path.name}"[:2000],
    }
    try:
        return RunHeader(**values, camera=_camera(fields))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "the geometry"
        name = name.replace("shape.0", "shape_z")
        raise InputFileError(
            f"{fields.path}: {name}: {first['msg']}, not {first['input']!r}: correct it."
            if first["loc"]
            else f"{fields.path}: {first['msg']}: correct it."
        ) from None


def _camera(fields: Fields) -> CameraNoise:
    gain = None if fields.array("gain") is None else fields.number("gain")
    return CameraNoise(
        offset=fields.number("offset", 0.0), gain=gain, read_noise=fields.number("read_noise", 0.0)
    )
