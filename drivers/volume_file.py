"""Plain volumes as others store them: HDF5 with a dataset `volume`, or TIFF.

Owns reading and checking them, time point by time point; what is done with a volume is `simulate`'s and
`replay`'s. A `VolumeFile` belongs to the thread that opened it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import DependencyError, InputFileError, MissingFileError

_TIFF = frozenset({".tif", ".tiff"})


class VolumeFile:
    """An open volume file, (Z, Y, X) or (T, Z, Y, X). Made by `open_volume`; a context manager.

    Attributes
    ----------
    path : Path
    shape : (T, Z, Y, X)
    voxel_size_um : (z, y, x) or None
        µm; None where the file does not say.
    """

    def __init__(
        self, path: Path, data: Any, file: h5py.File | None, voxel_size_um: tuple[float, float, float] | None
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
        self.shape: tuple[int, int, int, int] = (1, *data.shape)[-4:]

    def __len__(self) -> int:
        """Return the number of time points."""
        return self.shape[0]

    def volume(self, time_point: int) -> NDArray[np.float32]:
        """Return a volume (Z, Y, X) float32.

        Raises
        ------
        InputFileError
            It holds NaN or infinity.
        """
        block = self._data[time_point] if self._data.ndim == 4 else self._data[()]
        volume = np.asarray(block, dtype=np.float32)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_volume(path: str | Path) -> VolumeFile:
    """Open a volume: HDF5 with the dataset `volume`, or TIFF where tifffile is installed.

    Raises
    ------
    MissingFileError
        There is no such file.
    InputFileError
        It is neither, or its shape is wrong.
    DependencyError
        It is TIFF and tifffile is absent.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no volume at {path}: check the path.")
    if path.suffix.lower() in _TIFF:
        return VolumeFile(path, _read_tiff(path), None, None)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read as HDF5: give an HDF5 file with a dataset `volume`, or a TIFF stack."
        ) from error
    try:
        dataset = file.get("volume")
        if not isinstance(dataset, h5py.Dataset):
            names = ", ".join(f"/{name}" for name in file) or "nothing"
            raise InputFileError(
                f"{path}: the dataset /volume is missing (found {names}): rename or copy it."
            )
        return VolumeFile(path, dataset, file, _voxel_size(path, file, dataset))
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


def _read_tiff(path: Path) -> NDArray[Any]:
    try:
        import tifffile
    except ImportError as error:
        raise DependencyError(
            f"Reading {path.name} needs tifffile: install it with `pip install tifffile`, "
            "or convert it to HDF5."
        ) from error
    try:
        return np.asarray(tifffile.imread(path))
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise InputFileError(f"{path} cannot be read as TIFF ({error}): save it again.") from error
