"""The projection file: measured or simulated projections, what `mdd replay` and `mdd reconstruct` read.

Owns the HDF5 contract of docs/projection-file.md. Everything about a file is checked when it is opened,
so that whoever reads frames later can trust them; a refusal is one sentence that names the file. Frames
stay on disk until they are asked for. Writing is all or nothing: a temporary file beside the target,
renamed when it is complete. A `ProjectionFile` belongs to the thread that opened it.

>>> with open_projections("projections.h5") as projections:      # doctest: +SKIP
...     sweep = projections.sweep(0)                              # (M, Y, X) float32 and its positions
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from microdiffusion.errors import DiskError, GeometryError, InputFileError, MissingFileError
from microdiffusion.optics import AxialProfile, projection_operator
from microdiffusion.run_header import CameraNoise, RunHeader
from microdiffusion.sweep import FrameInfo, Sweep

_LARGEST_ATTRIBUTE = 32 << 10  # HDF5 keeps attributes in the object header, 64 KiB in all


class ProjectionFile:
    """An open projection file. Made by `open_projections`; a context manager.

    Attributes
    ----------
    path : Path
    header : RunHeader
        Geometry, beam and camera; `run_id` is new each time a file is opened.
    shape : (T, M, Y, X)
        Sweeps, projections in each, rows, columns.
    time_s : (T,) float64
        Time of each sweep, s; 0, 1, 2 ... where the file does not say.
    held_out : (M,) bool
        Projections that only judge a reconstruction.
    has_truth : bool
        Whether `truth` can be asked for.
    """

    def __init__(self, path: Path, file: h5py.File, *, check_values: bool) -> None:
        self.path = path
        self._file = file
        self._projections = _projections_dataset(path, file)
        self.shape: tuple[int, int, int, int] = self._projections.shape
        read = _Reader(path, file, self._projections)
        sweeps, count = self.shape[:2]
        self._z_um = _positions(read, sweeps, count)
        self.header = _header(read, self._projections)
        self.time_s = _times(read, sweeps)
        self.held_out = _held_out(read, count)
        self._check_geometry()
        self._truth = self._truth_dataset()
        if check_values and self.header.dtype == "float32":
            self._check_values()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixels: uint16 or float32."""
        return np.dtype(self.header.dtype)

    @property
    def z_um(self) -> NDArray[np.float64]:
        """Slab centres (M,) of the first sweep, µm. They may differ from sweep to sweep: see `positions`."""
        return self.positions(0)

    @property
    def has_truth(self) -> bool:
        """Whether the file holds the volumes that were projected."""
        return self._truth is not None

    def __len__(self) -> int:
        """Return the number of sweeps."""
        return self.shape[0]

    def positions(self, sweep: int) -> NDArray[np.float64]:
        """Return the slab centres (M,) of a sweep, µm, in the order of the file."""
        row: NDArray[np.float64] = self._z_um[sweep]
        return row

    def frame(self, sweep: int, index: int) -> NDArray[Any]:
        """Return one projection (Y, X), uint16 or float32."""
        return np.asarray(self._projections[sweep, index], dtype=self.dtype)

    def truth(self, sweep: int) -> NDArray[np.float32] | None:
        """Return the volume (Z, Y, X) float32 that was projected, None where the file does not hold it."""
        return None if self._truth is None else np.asarray(self._truth[sweep], dtype=np.float32)

    def frames(self, sweep: int) -> Iterator[tuple[FrameInfo, NDArray[Any]]]:
        """Yield a sweep's frames as a camera would send them: place and pixels (Y, X)."""
        count = self.shape[1]
        for index, z_um in enumerate(self._z_um[sweep]):
            info = FrameInfo(
                seq=sweep * count + index,
                sweep=sweep,
                index=index,
                count=count,
                z_um=float(z_um),
                held_out=bool(self.held_out[index]),
                camera_time_s=float(self.time_s[sweep]),
            )
            yield info, self.frame(sweep, index)

    def sweep(self, sweep: int) -> Sweep:
        """Return a whole sweep, ascending in z, its held-out projections apart."""
        pixels = np.asarray(self._projections[sweep], dtype=np.float32)
        z_um = self._z_um[sweep]
        kept, judges = (np.flatnonzero(self.held_out == flag) for flag in (False, True))
        kept, judges = (order[np.argsort(z_um[order], kind="stable")] for order in (kept, judges))
        return Sweep(
            sweep=sweep,
            channel=0,
            position=0,
            z_um=z_um[kept],
            projections=pixels[kept],
            held_out_z_um=z_um[judges],
            held_out=pixels[judges],
            time_s=float(self.time_s[sweep]),
        )

    def close(self) -> None:
        """Close the file; frames cannot be read afterwards."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_geometry(self) -> None:
        header = self.header
        try:
            for z_um in np.unique(self._z_um, axis=0):
                projection_operator(
                    z_um,
                    header.profile,
                    z0_um=header.z0_um,
                    voxel_z_um=header.voxel_size_um[0],
                    shape_z=header.shape[0],
                )
        except GeometryError as error:
            raise InputFileError(f"{self.path}: {error}") from None

    def _truth_dataset(self) -> h5py.Dataset | None:
        truth = self._file.get("truth")
        expected = (self.shape[0], *self.header.shape)
        if truth is not None and getattr(truth, "shape", None) != expected:
            raise InputFileError(
                f"{self.path}: /truth should be (T, Z, Y, X) = {expected}, "
                f"not {getattr(truth, 'shape', 'a group')}: correct or remove it."
            )
        return truth

    def _check_values(self) -> None:
        for sweep in range(self.shape[0]):
            for index in range(self.shape[1]):
                if not np.all(np.isfinite(self._projections[sweep, index])):
                    raise InputFileError(
                        f"{self.path}: projection {index} of sweep {sweep} holds values that are not finite "
                        "(NaN or infinity): mend or leave out that sweep."
                    )


def open_projections(path: str | Path, *, check_values: bool = True) -> ProjectionFile:
    """Open and check a projection file.

    Parameters
    ----------
    path
        An HDF5 file as described in docs/projection-file.md.
    check_values
        Read floating-point projections once through to refuse NaN before anything is computed.

    Raises
    ------
    MissingFileError
        There is no such file.
    InputFileError
        It is not HDF5, or something in it is absent, of the wrong shape or impossible.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no projection file at {path}: check the path.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read as HDF5 ({_short(error)}): "
            "give a projection file as `mdd simulate` writes it."
        ) from error
    try:
        return ProjectionFile(path, file, check_values=check_values)
    except OSError as error:
        file.close()
        raise InputFileError(f"{path} is damaged ({_short(error)}): copy or record it again.") from error
    except BaseException:
        file.close()
        raise


def write_projections(
    path: str | Path,
    projections: Iterable[NDArray[Any]],
    *,
    z_um: ArrayLike,
    profile: AxialProfile,
    voxel_size_um: tuple[float, float, float],
    z0_um: float,
    shape_z: int,
    time_s: ArrayLike | None = None,
    camera: CameraNoise | None = None,
    held_out: ArrayLike | None = None,
    truth: Iterable[NDArray[Any]] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Write a projection file, whole or not at all.

    Parameters
    ----------
    projections : iterable of (M, Y, X), or (T, M, Y, X)
        One array per sweep, uint16 or float32; taken one at a time, so a generator bounds the memory.
    z_um : (M,) or (T, M)
        Slab centres, µm.
    profile, voxel_size_um, z0_um, shape_z
        Beam, voxel (z, y, x in µm), centre of the first slice (µm), number of slices.
    time_s : (T,), optional
        Seconds.
    camera
        Offset, gain, read noise; None where there is no camera (exact projections).
    held_out : (M,) bool, optional
        Projections that only judge a reconstruction.
    truth : iterable of (Z, Y, X), optional
        The volumes that were projected, in step with `projections`.
    attributes
        Texts to keep with the file, such as where a volume came from.

    Raises
    ------
    InputFileError
        What was to be written is not a valid projection file.
    DiskError
        The file cannot be written.
    """
    with _replacing(Path(path)) as temporary:
        with h5py.File(temporary, "w") as file:
            _write_frames(file, projections, truth)
            _write_array(file, "z_um", np.asarray(z_um, dtype=np.float64))
            if profile.weights.size == 1:
                _write_array(file, "length_um", np.float64(profile.length_um))
            else:
                file["axial_profile"] = profile.weights.astype(np.float32)
                _write_array(file, "profile_spacing_um", np.float64(profile.spacing_um))
            _write_array(file, "voxel_size_um", np.asarray(voxel_size_um, dtype=np.float64))
            _write_array(file, "z0_um", np.float64(z0_um))
            _write_array(file, "shape_z", np.int64(shape_z))
            if time_s is not None:
                _write_array(file, "time_s", np.asarray(time_s, dtype=np.float64))
            if held_out is not None:
                _write_array(file, "held_out", np.asarray(held_out, dtype=np.uint8))
            if camera is not None:
                for name, value in camera.model_dump(exclude_none=True).items():
                    _write_array(file, name, np.float64(value))
            for name, text in (attributes or {}).items():
                file.attrs[name] = text
        open_projections(temporary).close()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it takes the place of `path` when the body succeeds."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except InputFileError as error:
        raise InputFileError(str(error).replace(str(temporary), str(path))) from None
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written ({_short(error)}): check the folder's rights and free space."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_frames(
    file: h5py.File, projections: Iterable[NDArray[Any]], truth: Iterable[NDArray[Any]] | None
) -> None:
    volumes = None if truth is None else iter(truth)
    for sweep, frames in enumerate(projections):
        _append(file, "projections", sweep, np.asarray(frames))
        if volumes is not None:
            _append(file, "truth", sweep, np.asarray(next(volumes), dtype=np.float32))


def _append(file: h5py.File, name: str, sweep: int, block: NDArray[Any]) -> None:
    """Write one time point; the first fixes shape and dtype. One chunk per image: frames are read singly."""
    if name not in file:
        chunks = (1, 1, *block.shape[1:])
        file.create_dataset(
            name, (0, *block.shape), block.dtype, maxshape=(None, *block.shape), chunks=chunks, fillvalue=0
        )
    dataset = file[name]
    dataset.resize(sweep + 1, axis=0)
    dataset[sweep] = block


def _write_array(file: h5py.File, name: str, value: NDArray[Any] | np.generic) -> None:
    """Write an attribute, of the file and of /projections; as a dataset where it is too large for one."""
    if value.nbytes > _LARGEST_ATTRIBUTE:
        file[name] = value
        return
    file.attrs[name] = value
    if "projections" in file:
        file["projections"].attrs[name] = value


class _Reader:
    """Finds a named value: attribute of the file, attribute of /projections, or dataset."""

    def __init__(self, path: Path, file: h5py.File, projections: h5py.Dataset) -> None:
        self.path = path
        self.file = file
        self._places = (file.attrs, projections.attrs, file)

    def array(self, name: str) -> NDArray[np.float64] | None:
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
        value = self.array(name)
        if value is None:
            raise InputFileError(
                f"{self.path}: the attribute {name} is missing: add it (docs/projection-file.md lists all)."
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.array(name)
        if value is None and default is not None:
            return default
        value = self.required(name)
        if value.size != 1 or not np.isfinite(value).all():
            raise InputFileError(f"{self.path}: {name} should be one finite number, not {value}: correct it.")
        return float(value.reshape(()))


def _projections_dataset(path: Path, file: h5py.File) -> h5py.Dataset:
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


def _positions(read: _Reader, sweeps: int, count: int) -> NDArray[np.float64]:
    """Return the slab centres as (T, M)."""
    z_um = read.required("z_um")
    if z_um.shape not in {(count,), (sweeps, count)}:
        raise InputFileError(
            f"{read.path}: z_um should be (M,) = ({count},) or (T, M) = ({sweeps}, {count}), "
            f"not {z_um.shape}: give one position for each projection."
        )
    if not np.all(np.isfinite(z_um)):
        raise InputFileError(f"{read.path}: z_um holds positions that are not finite: correct them.")
    return np.broadcast_to(z_um, (sweeps, count))


def _times(read: _Reader, sweeps: int) -> NDArray[np.float64]:
    time_s = read.array("time_s")
    if time_s is None:
        return np.arange(sweeps, dtype=np.float64)
    if time_s.shape != (sweeps,) or not np.all(np.isfinite(time_s)):
        raise InputFileError(
            f"{read.path}: time_s should be {sweeps} finite numbers, one for each sweep, "
            f"not {time_s}: correct it."
        )
    return time_s


def _held_out(read: _Reader, count: int) -> NDArray[np.bool_]:
    value = read.array("held_out")
    if value is None:
        return np.zeros(count, dtype=np.bool_)
    flags = np.asarray(value != 0, dtype=np.bool_)
    if flags.shape != (count,) or flags.all():
        raise InputFileError(
            f"{read.path}: held_out should be {count} flags, one for each projection, of which one is 0, "
            f"not {value}: correct it."
        )
    return flags


def _profile(read: _Reader) -> AxialProfile:
    """Return the measured profile where the file holds one, else the box."""
    weights = read.array("axial_profile")
    try:
        if weights is not None:
            return AxialProfile.sampled(weights, read.number("profile_spacing_um"))
        if read.array("length_um") is None:
            raise InputFileError(
                f"{read.path}: the beam is missing: add the attribute length_um, or the dataset "
                "/axial_profile with the attribute profile_spacing_um."
            )
        return AxialProfile.box(read.number("length_um"))
    except GeometryError as error:
        raise InputFileError(f"{read.path}: {error}") from None


def _header(read: _Reader, projections: h5py.Dataset) -> RunHeader:
    profile = _profile(read)
    voxel = read.required("voxel_size_um")
    if voxel.shape != (3,):
        raise InputFileError(
            f"{read.path}: voxel_size_um should be three numbers (z, y, x), not {voxel}: correct it."
        )
    shape_z = read.number("shape_z")
    if shape_z != int(shape_z):
        raise InputFileError(f"{read.path}: shape_z should be a whole number, not {shape_z:g}: correct it.")
    dtype: Literal["uint16", "float32"] = "uint16" if projections.dtype.kind == "u" else "float32"
    values = {
        "run_id": uuid.uuid4().hex,
        "name": read.path.stem[:200],
        "shape": (int(shape_z), *projections.shape[2:]),
        "voxel_size_um": tuple(voxel.tolist()),
        "z0_um": read.number("z0_um"),
        "profile_weights": tuple(profile.weights.tolist()),
        "profile_spacing_um": profile.spacing_um,
        "dtype": dtype,
        "sweeps": projections.shape[0],
        "frames_per_sweep": projections.shape[1],
        "source": f"projection file {read.path.name}"[:2000],
    }
    try:
        return RunHeader(**values, camera=_camera(read))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "the geometry"
        name = name.replace("shape.0", "shape_z")
        raise InputFileError(
            f"{read.path}: {name}: {first['msg']}, not {first['input']!r}: correct it."
            if first["loc"]
            else f"{read.path}: {first['msg']}: correct it."
        ) from None


def _camera(read: _Reader) -> CameraNoise:
    gain = None if read.array("gain") is None else read.number("gain")
    return CameraNoise(
        offset=read.number("offset", 0.0), gain=gain, read_noise=read.number("read_noise", 0.0)
    )


def _short(error: BaseException) -> str:
    """Return the first line of a library's message, without its final stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
