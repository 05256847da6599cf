"""The projection file: measured or simulated projections, read by `mdd replay` and `mdd reconstruct`.

Owns the HDF5 format of docs/projection-file.md. Everything in a file is checked when it is opened; an error
is one sentence that names the file. Frames are read on demand. A file is written completely or not at all. A
`ProjectionFile` belongs to the thread that opened it.

>>> with open_projections("projections.h5") as projections:      # doctest: +SKIP
...     sweep = projections.sweep(0)                              # (M, Y, X) float32 and its positions
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from microdiffusion.errors import DiskError, GeometryError, InputFileError, MissingFileError
from microdiffusion.files.atomic import replacing
from microdiffusion.files.projection_fields import (
    Fields,
    find_projections,
    read_header,
    read_held_out,
    read_positions,
    read_times,
)
from microdiffusion.files.whole import missing_of_hdf5, missing_planes
from microdiffusion.frames import FrameInfo, StagePositions, Sweep
from microdiffusion.header import CameraNoise
from microdiffusion.optics import AxialProfile

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
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        self._projections = find_projections(path, file)
        self.shape: tuple[int, int, int, int] = self._projections.shape
        self._check_whole()
        fields = Fields(path, file, self._projections)
        sweeps, count = self.shape[:2]
        self._stage = read_positions(fields, sweeps, count)
        self.header = read_header(fields, self._projections)
        self.time_s = read_times(fields, sweeps)
        self.held_out = read_held_out(fields, count)
        self._check_geometry()
        self._truth = self._truth_dataset()
        if self.header.dtype == "float32":
            self._check_values()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixels: uint16 or float32."""
        return np.dtype(self.header.dtype)

    def __len__(self) -> int:
        """Return the number of sweeps."""
        return self.shape[0]

    def stage(self, sweep: int) -> StagePositions:
        """Return the stage positions (M,) of a sweep, in the order of the file."""
        return self._stage[sweep]

    def frame(self, sweep: int, index: int) -> NDArray[Any]:
        """Return one projection (Y, X), uint16 or float32."""
        return np.asarray(self._projections[sweep, index], dtype=self.dtype)

    def truth(self, sweep: int) -> NDArray[np.float32] | None:
        """Return the volume (Z, Y, X) float32 that was projected; None where the file has none."""
        return None if self._truth is None else np.asarray(self._truth[sweep], dtype=np.float32)

    def frames(self, sweep: int) -> Iterator[tuple[FrameInfo, NDArray[Any]]]:
        """Yield a sweep's frames as a camera would send them: info and pixels (Y, X)."""
        count = self.shape[1]
        for index, stage in enumerate(self._stage[sweep]):
            info = FrameInfo(
                seq=sweep * count + index,
                sweep=sweep,
                index=index,
                count=count,
                stage=stage,
                held_out=bool(self.held_out[index]),
                camera_time_s=float(self.time_s[sweep]),
            )
            yield info, self.frame(sweep, index)

    def sweep(self, sweep: int) -> Sweep:
        """Return a whole sweep, ascending in z, its held-out projections apart."""
        pixels = np.asarray(self._projections[sweep], dtype=np.float32)
        stage = self._stage[sweep]
        order = stage.order()
        kept, judges = (order[self.held_out[order] == flag] for flag in (False, True))
        return Sweep(
            sweep=sweep,
            channel=0,
            position=0,
            stage=stage[kept],
            projections=pixels[kept],
            held_out_stage=stage[judges],
            held_out=pixels[judges],
            time_s=float(self.time_s[sweep]),
        )

    def close(self) -> None:
        """Close the file; frames cannot be read afterwards."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_geometry(self) -> None:
        different = np.unique([stage.values for stage in self._stage], axis=0)
        try:
            for values in different:
                self.header.operator_at(StagePositions(values))
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

    def _check_whole(self) -> None:
        """Refuse what a writer left that stopped: frames that were never written, or are zeros at the end."""
        if missing := missing_of_hdf5(self.path, self._projections):
            raise InputFileError(
                f"{self.path}: /projections is not whole ({missing}): copy or record it again."
            )
        for sweep in range(self.shape[0]):
            if self._projections[sweep, -1].any():
                continue
            frames = self._projections[sweep]
            missing = missing_planes(frames)
            if not frames.any() and self._projections[0].all():
                missing = "they are nothing but zeros, and those of the first have none"
            if missing:
                raise InputFileError(
                    f"{self.path}: the projections of sweep {sweep} are not whole ({missing}): copy or "
                    "record it again."
                )

    def _check_values(self) -> None:
        for sweep in range(self.shape[0]):
            for index in range(self.shape[1]):
                if not np.all(np.isfinite(self._projections[sweep, index])):
                    raise InputFileError(
                        f"{self.path}: projection {index} of sweep {sweep} holds values that are not finite "
                        "(NaN or infinity): correct or leave out that sweep."
                    )


def open_projections(path: str | Path) -> ProjectionFile:
    """Open and check a projection file.

    Parameters
    ----------
    path
        An HDF5 file as described in docs/projection-file.md. Floating-point projections are read once
        through, to refuse NaN before anything is computed.

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
        return ProjectionFile(path, file)
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
    """Write a projection file completely, or not at all.

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
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{path.parent} cannot be made ({_short(error)}): name another folder.") from error
    with replacing(path) as temporary:
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
        try:
            open_projections(temporary).close()
        except InputFileError as error:
            raise InputFileError(str(error).replace(str(temporary), str(path))) from None


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
    """Write an attribute of the file and of /projections, or a dataset where it is too large for one."""
    if value.nbytes > _LARGEST_ATTRIBUTE:
        file[name] = value
        return
    file.attrs[name] = value
    if "projections" in file:
        file["projections"].attrs[name] = value


def _short(error: BaseException) -> str:
    """Return the first line of a library's message, without its full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
