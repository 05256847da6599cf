"""Volumes in common formats: HDF5 with a dataset `volume`, (OME-)TIFF, NDTiff folders, NPY.

Reads and checks them, time point by time point, with what a file says about itself: voxel size, licence,
origin. Pixels are read on demand, except for TIFF, which is read when it is opened. A `VolumeFile` belongs to
the thread that opened it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.files.stacks import Stack, is_ndtiff, read_ndtiff, read_tiff

_TIFF = frozenset({".tif", ".tiff"})
_HDF5 = frozenset({".h5", ".hdf5", ".he5"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a volume, as its file says; empty where it says nothing."""

    licence: str = ""
    structure: str = ""
    source: str = ""


class VolumeFile:
    """An open volume file, (Z, Y, X) or (T, Z, Y, X). Made by `open_volume`; a context manager.

    Attributes
    ----------
    path : Path
    shape : (T, Z, Y, X)
    voxel_size_um : (z, y, x) or None
        µm; None where the file has none.
    origin : Origin
    """

    def __init__(
        self,
        path: Path,
        data: Any,
        file: h5py.File | None = None,
        voxel_size_um: tuple[float, float, float] | None = None,
        origin: Origin | None = None,
    ) -> None:
        if data.ndim not in (3, 4) or 0 in data.shape or data.dtype.kind not in "uif":
            raise InputFileError(
                f"{path}: the volume should be numbers of shape (Z, Y, X) or (T, Z, Y, X), "
                f"not {data.dtype} {data.shape}: reshape it."
            )
        self.path = path
        self._data = data
        self._file = file
        self.voxel_size_um = voxel_size_um
        self.origin = origin or Origin()
        self.shape: tuple[int, int, int, int] = (1, *data.shape)[-4:]

    def __len__(self) -> int:
        """Return the number of time points."""
        return self.shape[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers in the file."""
        found: np.dtype[Any] = np.dtype(self._data.dtype)
        return found

    def volume(self, time_point: int) -> NDArray[np.float32]:
        """Return a volume (Z, Y, X) float32.

        Raises
        ------
        InputFileError
            It is damaged, or holds NaN or infinity.
        """
        try:
            block = self._data[time_point] if self._data.ndim == 4 else self._data[()]
            volume = np.asarray(block, dtype=np.float32)
        except Exception as error:  # four libraries, each with its own errors for damaged pixels
            raise InputFileError(f"{self.path} cannot be read ({error}): copy or save it again.") from error
        if not np.all(np.isfinite(volume)):
            raise InputFileError(
                f"{self.path}: the volume of time point {time_point} holds values that are not finite "
                "(NaN or infinity): replace them."
            )
        return volume

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        if isinstance(self._data, Stack):
            self._data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_volume(path: str | Path) -> VolumeFile:
    """Open a volume: HDF5 with the dataset `volume`, TIFF, the folder of an NDTiff dataset, or NPY.

    Raises
    ------
    MissingFileError
        There is no such file.
    InputFileError
        It is none of these, or its shape is wrong.
    DependencyError
        It is TIFF or NDTiff, and the library that reads it is absent.
    """
    path = Path(path)
    if path.is_dir():
        if not is_ndtiff(path):
            raise InputFileError(f"{path} is a folder without an NDTiff.index: name a file in it.")
        stack, voxel = read_ndtiff(path)
        return VolumeFile(path, stack, None, voxel)
    if not path.is_file():
        raise MissingFileError(f"There is no volume at {path}: check the path.")
    if path.suffix.lower() in _TIFF:
        pixels, voxel, licence = read_tiff(path)
        return VolumeFile(path, pixels, None, voxel, Origin(licence=licence))
    if path.suffix.lower() == ".npy":
        return VolumeFile(path, _read_npy(path))
    return _open_hdf5(path)


def volume_paths(place: Path) -> list[Path]:
    """Return the volumes at `place`: itself, or those of a folder, sorted by name.

    Raises
    ------
    MissingFileError
        There is no such file or folder.
    InputFileError
        The folder holds no volume.
    """
    if place.is_file() or (place.is_dir() and is_ndtiff(place)):
        return [place]
    if not place.is_dir():
        raise MissingFileError(f"There is no volume or folder {place}: check its name.")
    endings = _TIFF | _HDF5 | {".npy"}
    found = sorted(
        entry
        for entry in place.iterdir()
        if (entry.is_file() and entry.suffix.lower() in endings) or (entry.is_dir() and is_ndtiff(entry))
    )
    if not found:
        raise InputFileError(f"{place} holds no volume: expected .h5, .tif or .npy files, or NDTiff folders.")
    return found


def _open_hdf5(path: Path) -> VolumeFile:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read as HDF5: give an HDF5 file with a dataset `volume`, a TIFF stack, "
            "an NDTiff folder or an NPY file."
        ) from error
    try:
        dataset = file.get("volume")
        if not isinstance(dataset, h5py.Dataset):
            names = ", ".join(f"/{name}" for name in file) or "nothing"
            raise InputFileError(
                f"{path}: the dataset /volume is missing (found {names}): rename or copy it."
            )
        return VolumeFile(path, dataset, file, _voxel_size(path, file, dataset), _origin(file, dataset))
    except BaseException:
        file.close()
        raise


def _voxel_size(path: Path, file: h5py.File, dataset: h5py.Dataset) -> tuple[float, float, float] | None:
    for attributes in (dataset.attrs, file.attrs):
        if "voxel_size_um" not in attributes:
            continue
        value = np.asarray(attributes["voxel_size_um"])
        if value.shape != (3,) or value.dtype.kind not in "uif" or not np.all(value > 0):
            raise InputFileError(
                f"{path}: voxel_size_um should be three positive numbers (z, y, x), not {value}: correct it."
            )
        z, y, x = (float(edge) for edge in value)
        return z, y, x
    return None


def _origin(file: h5py.File, dataset: h5py.Dataset) -> Origin:
    def text(*names: str) -> str:
        for name in names:
            for attributes in (dataset.attrs, file.attrs):
                if isinstance(attributes.get(name), str):
                    return str(attributes[name]).strip()
        return ""

    return Origin(text("licence", "license"), text("structure"), text("source_repo", "source"))


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputFileError(f"{path} cannot be read as NPY ({error}): save it with numpy.save.") from error
    return np.asanyarray(array)
