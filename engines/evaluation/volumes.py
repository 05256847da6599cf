"""The volumes of a folder: HDF5 (dataset `volume`), TIFF stacks and NPY, each (Z, Y, X).

Files are found first and read one at a time, so that a folder larger than memory can be evaluated, and a
damaged file costs itself alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from microdiffusion.errors import DependencyError, InputFileError, MissingFileError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_HDF5 = (".h5", ".hdf5")
_TIFF = (".tif", ".tiff")
_KNOWN = (*_HDF5, *_TIFF, ".npy")


def find_volumes(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold a volume, sorted by name.

    Raises
    ------
    MissingFileError, InputFileError
        There is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise MissingFileError(f"There is no folder {folder}: name one that holds volumes.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _KNOWN and path.is_file())
    if not found:
        raise InputFileError(
            f"{folder} holds no volume: expected files {', '.join(_KNOWN)} with axes Z, Y, X."
        )
    return found


def read_volume(path: Path) -> NDArray[np.float32]:
    """Return the volume (Z, Y, X) float32 of a file.

    Raises
    ------
    InputFileError
        The file is damaged or holds no volume.
    DependencyError
        A TIFF file, and tifffile is not installed.
    """
    suffix = path.suffix.lower()
    try:
        array = _hdf5(path) if suffix in _HDF5 else _tiff(path) if suffix in _TIFF else np.load(path)
    except (DependencyError, InputFileError):
        raise
    except Exception as error:  # three libraries, each with errors of its own
        raise InputFileError(
            f"{path} cannot be read ({error}): it is damaged or not what it says."
        ) from error
    array = np.asarray(array)
    if array.ndim != 3 or array.dtype.kind not in "uif" or 0 in array.shape:
        raise InputFileError(
            f"{path} should hold numbers with axes Z, Y, X, not {array.dtype} of shape {array.shape}: "
            "take out one volume and one channel."
        )
    if not np.all(np.isfinite(array)):
        raise InputFileError(f"{path} holds values that are not finite: fill or crop them.")
    return array.astype(np.float32)


def _hdf5(path: Path) -> Any:
    with h5py.File(path, "r") as file:
        if not isinstance(file.get("volume"), h5py.Dataset):
            raise InputFileError(f"{path} has no dataset `volume`: write the volume under that name.")
        return file["volume"][()]


def _tiff(path: Path) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise DependencyError("TIFF files need tifffile: install it with `pip install tifffile`.") from error
    return tifffile.imread(path)
