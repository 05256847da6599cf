"""Volumes in common formats: HDF5 with a dataset `volume`, (OME-)TIFF, NDTiff folders, NPY.

Reads and checks them, time point by time point, with what a file says about itself: voxel size, licence,
origin. Pixels are read on demand, except for TIFF, which is read when it is opened. A `VolumeFile` belongs to
the thread that opened it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import InputFileError, MddError, MissingFileError
from microdiffusion.files.ndtiff import Stack, read_ndtiff
from microdiffusion.files.stacks import Edges, Notes, choose_part, is_ndtiff, split_part
from microdiffusion.files.tiff import read_tiff
from microdiffusion.files.whole import missing_of_hdf5, missing_planes
from microdiffusion.text import command_line, count_noun

logger = logging.getLogger(__name__)
_TIFF = frozenset({".tif", ".tiff"})
_HDF5 = frozenset({".h5", ".hdf5", ".he5"})


@dataclass(frozen=True, slots=True)
class VolumeOrigin:
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
    edges_um : (z, y, x)
        Edges of a voxel, µm; None where the file does not say.
    origin : VolumeOrigin
    """

    def __init__(
        self,
        path: Path,
        data: Any,
        file: h5py.File | None = None,
        notes: Notes = Notes(),  # noqa: B008 it is frozen
        origin: VolumeOrigin | None = None,
    ) -> None:
        if data.ndim not in (3, 4) or 0 in data.shape or data.dtype.kind not in "uif":
            raise InputFileError(
                f"{path}: the volume should be numbers of shape (Z, Y, X) or (T, Z, Y, X), "
                f"not {data.dtype} {data.shape}: convert or reshape it."
            )
        self.path = path
        self._data = data
        self._file = file
        self.edges_um = notes.edges_um
        self._z_um = notes.z_um
        self.origin = origin or VolumeOrigin(licence=notes.licence)
        self.shape: tuple[int, int, int, int] = (1, *data.shape)[-4:]

    def __len__(self) -> int:
        """Return the number of time points."""
        return self.shape[0]

    @property
    def voxel_size_um(self) -> tuple[float, float, float] | None:
        """Voxel size (z, y, x), µm; None unless the file says all of it."""
        z, y, x = self.edges_um
        return None if z is None or y is None or x is None else (z, y, x)

    def assumed_voxel_um(self) -> tuple[float, float, float]:
        """Return the voxel size (z, y, x), µm, with 1 µm for what the file does not say, which is logged.

        Raises
        ------
        InputFileError
            Two planes are at one depth.
        """
        depths = [] if self.z_um is None else self.z_um[: self.shape[1]].tolist()
        for number, depth in enumerate(depths, 1):
            first = depths.index(depth) + 1
            if first < number:
                raise InputFileError(
                    f"{self.path}: planes {first} and {number} are both at {depth:g} µm: average the "
                    "frames of each depth, and save one plane for each."
                )
        z, y, x = (edge or 1.0 for edge in self.edges_um)
        unknown = [name for name, edge in zip("zyx", self.edges_um, strict=True) if edge is None]
        if unknown:
            logger.warning(
                "%s does not say how large a voxel is along %s: taken as 1 µm, so %g x %g x %g µm (z, y, x)",
                self.path,
                ", ".join(unknown),
                *(z, y, x),
            )
        return z, y, x

    @property
    def z_um(self) -> NDArray[np.float64] | None:
        """Stage position of every image (N,) float64, µm; None where the file does not say.

        Raises
        ------
        InputFileError
            It says something else than numbers, or is damaged.
        """
        if self._file is None:
            return self._z_um
        try:
            for place in (self._file.get("z_um"), self._data.attrs.get("z_um"), self._file.attrs.get("z_um")):
                if place is not None:
                    return np.asarray(place, np.float64).ravel()
        except (TypeError, ValueError):
            raise InputFileError(
                f"{self.path}: z_um should be numbers, the stage position of each image in µm: correct it, "
                "or give --step-um or --z-um."
            ) from None
        except (OSError, RuntimeError) as error:
            raise InputFileError(
                f"{self.path}: z_um cannot be read ({error}): copy it again, or give --step-um or --z-um."
            ) from error
        return None

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
            It is damaged, lacks planes, or holds NaN or infinity.
        """
        volume = self._read(time_point)
        if not np.all(np.isfinite(volume)):
            raise InputFileError(
                f"{self.path}: the volume of time point {time_point} holds values that are not finite "
                "(NaN or infinity): replace them."
            )
        missing = missing_planes(volume)
        if time_point and not volume.any() and self._read(0).all():
            missing = "it holds nothing but zeros, and the first has none"
        if missing:
            raise InputFileError(
                f"{self.path} is not whole (time point {time_point}: {missing}): copy or record it again, or "
                "save what there is as a stack of its own."
            )
        return volume

    def _read(self, time_point: int) -> NDArray[np.float32]:
        try:
            block = self._data[time_point] if self._data.ndim == 4 else self._data[()]
            return np.asarray(block, dtype=np.float32)
        except Exception as error:  # four libraries, each with its own errors for damaged pixels
            raise InputFileError(f"{self.path} cannot be read ({error}): copy or save it again.") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        if isinstance(self._data, Stack):
            self._data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_volume(path: str | Path) -> VolumeFile:
    """Open a volume: HDF5 with the dataset `volume`, TIFF, the folder of an NDTiff dataset, or NPY.

    Of a TIFF or NDTiff that holds several positions, channels or images, one is named after a #:
    `stack.ome.tif#Pos1`. The error that asks for it lists them.

    Raises
    ------
    MissingFileError
        There is no such file.
    InputFileError
        It is none of these, its shape is wrong, or it holds several volumes and none is named.
    DependencyError
        It is TIFF or NDTiff, and the library that reads it is absent.
    """
    named, (path, part) = Path(path), split_part(path)
    if path.is_dir():
        if not is_ndtiff(path):
            raise InputFileError(
                f"{path} is a folder without an NDTiff.index: name a file in it, or, where it is an "
                "NDTiff data set, copy its index as well."
            )
        stack, notes = read_ndtiff(path, part)
        return VolumeFile(named, stack, None, notes)
    if not path.is_file():
        raise MissingFileError(f"There is no volume at {path}: check the path.")
    if path.suffix.lower() in _TIFF:
        pixels, notes = read_tiff(path, part)
        return VolumeFile(named, pixels, None, notes)
    choose_part(path, [""], part)
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
    file, _ = split_part(place)
    if file.is_file() or (file.is_dir() and is_ndtiff(file)):
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
        dataset, link = file.get("volume"), file.get("volume", getlink=True)
        if dataset is None and isinstance(link, h5py.ExternalLink):
            raise InputFileError(
                f"{path}: /volume is not whole (the file {link.filename} is not beside it): copy it again "
                "with all its files."
            )
        if not isinstance(dataset, h5py.Dataset):
            names = ", ".join(f"/{name}" for name in file) or "nothing"
            raise InputFileError(
                f"{path}: the dataset /volume is missing (found {names}): rename or copy it."
            )
        _refuse_unwritten(path, file, dataset)
        return VolumeFile(path, dataset, file, Notes(_edges(path, file, dataset)), _origin(file, dataset))
    except BaseException as error:
        file.close()
        if isinstance(error, MddError) or not isinstance(error, Exception):
            raise
        raise InputFileError(  # of a damaged file, whatever what it says of itself leads to
            f"{path} cannot be read ({type(error).__name__}: {error}): copy it again with all its files."
        ) from error


def _refuse_unwritten(path: Path, file: h5py.File, dataset: h5py.Dataset) -> None:
    """Refuse a volume of which parts were never written, or are elsewhere: HDF5 reads these as zeros."""
    header, files = file.get("mdd/run_header"), file.get("mdd/files")
    if isinstance(header, h5py.Dataset):
        run = json.loads(header[()])
        parts = {name: run.get(name, []) for name in ("channels", "positions")}
        several = [count_noun(len(names), name[:-1]) for name, names in parts.items() if len(names) > 1]
        if file.attrs.get("segment"):
            raise InputFileError(
                f"{path} is a further file of a run: save a volume of it with "
                f"`{command_line('mdd', 'export', path, '--to', 'ome-tiff')}`."
            )
        if files is not None and files[()] > 1:
            several.append(count_noun(int(files[()]), "file"))
        if several:
            options = [f"--{name[:-1]}={names[0]}" for name, names in parts.items() if len(names) > 1]
            command = command_line("mdd", "export", path, "--to", "ome-tiff", *options)
            raise InputFileError(
                f"{path} is a run of {' and '.join(several)}, and a volume is of one: save that with "
                f"`{command}`."
            )
    status = file.get("mdd/status")
    if isinstance(status, h5py.Dataset):
        times = np.flatnonzero((np.asarray(status).reshape(len(status), -1) != 1).any(axis=1))
        if times.size:
            raise InputFileError(
                f"{path} lacks the volumes of {count_noun(times.size, 'time point')} of {len(status)} "
                f"(the first is {times[0]}): export those that it has with `mdd export`."
            )
    if missing := missing_of_hdf5(path, dataset):
        raise InputFileError(f"{path}: /volume is not whole ({missing}): copy or record it again.")


def _edges(path: Path, file: h5py.File, dataset: h5py.Dataset) -> Edges:
    for attributes in (dataset.attrs, file.attrs):
        if "voxel_size_um" not in attributes:
            continue
        value = np.asarray(attributes["voxel_size_um"])
        if value.shape != (3,) or value.dtype.kind not in "uif" or not np.all((value > 0) & (value < np.inf)):
            raise InputFileError(
                f"{path}: voxel_size_um should be three positive numbers (z, y, x), not {value}: correct it."
            )
        z, y, x = (float(edge) for edge in value)
        return z, y, x
    return None, None, None


def _origin(file: h5py.File, dataset: h5py.Dataset) -> VolumeOrigin:
    def text(*names: str) -> str:
        for name in names:
            for attributes in (dataset.attrs, file.attrs):
                if isinstance(attributes.get(name), str):
                    return str(attributes[name]).strip()
        return ""

    return VolumeOrigin(text("licence", "license"), text("structure"), text("source_repo", "source"))


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputFileError(f"{path} cannot be read as NPY ({error}): save it with numpy.save.") from error
    return np.asanyarray(array)
