"""Reads what a calibration starts from: a z-stack with its stage positions, a series of frames.

Stage positions come from the first of these that there is: the user's, the file's z of every image, the
distance of its planes. Several time points of a stack are further images at the same positions. Pure but for
the files.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from microdiffusion.daemon.calibration.beam import ZStack
from microdiffusion.errors import DiskError, InputFileError
from microdiffusion.files import open_volume
from microdiffusion.metrics import saturation_level

LEAST_RANGE_UM = 0.5
"""A stack over less than this has its positions in another unit."""


@dataclass(frozen=True, slots=True)
class _Pixels:
    """Images (N, Y, X) of T time points after one another, the planes of each, and z as far as known."""

    images: NDArray[np.float32]
    planes: int
    z_um: NDArray[np.float64] | None
    step_um: float | None
    dtype: np.dtype[Any]


def read_stack(
    path: Path, *, step_um: float | None = None, z_file: Path | None = None, full: float | None = None
) -> ZStack:
    """Return a z-stack.

    Parameters
    ----------
    step_um
        Distance from one image to the next, µm, negative where the stage went down; overrules the file.
    z_file
        Text file of every image's stage position, µm; overrules both.
    full
        Counts from which on a pixel is saturated; None: the highest that there can be, or is.

    Raises
    ------
    UserError
        The file cannot be read, or nothing says where the stage was.
    """
    pixels = _read(path, with_z=z_file is None and step_um is None)
    count, planes = len(pixels.images), pixels.planes
    if z_file is not None:
        z_um = _numbers(z_file)
    elif step_um is not None:
        z_um = np.arange(planes, dtype=np.float64) * step_um
    elif pixels.z_um is not None:
        z_um = pixels.z_um
    elif pixels.step_um is not None:
        z_um = np.arange(planes, dtype=np.float64) * pixels.step_um
    else:
        raise InputFileError(
            f"{path} does not say how far the stage went from image to image: give --step-um, or --z-um with "
            "a text file of the positions."
        )
    if len(z_um) == planes and planes < count:
        z_um = np.tile(z_um, count // planes)
    if len(z_um) != count:
        raise InputFileError(
            f"{path} holds {count} images, but there are {len(z_um)} stage positions for them."
        )
    if np.ptp(z_um) < LEAST_RANGE_UM:
        raise InputFileError(
            f"{path}: the stage went {np.ptp(z_um):g} µm in all, less than any beam "
            "is long: give the step or the positions in µm, with --step-um or --z-um."
        )
    if full is None and pixels.dtype.kind == "u":
        full = saturation_level(pixels.images, least=max(20, count)) or float(np.iinfo(pixels.dtype).max)
    return ZStack(pixels.images, z_um, full, str(path))


def read_series(path: Path) -> NDArray[np.float32]:
    """Return the frames (N, Y, X) of a dark or flat series, in the order of taking."""
    return _read(path, with_z=False).images


def write_stack(
    path: Path, images: NDArray[np.uint16], z_um: NDArray[np.float64], pixel_um: tuple[float, float]
) -> None:
    """Keep an acquired stack, with the stage position of every image, as `read_stack` reads it.

    Raises
    ------
    DiskError
        The file cannot be written.
    """
    try:
        with h5py.File(path, "w") as file:
            volume = file.create_dataset("volume", data=images)
            step = float(np.median(np.abs(np.diff(z_um)))) or 1.0
            volume.attrs["voxel_size_um"] = np.array([step, *pixel_um])
            file.create_dataset("z_um", data=z_um).attrs["units"] = "um"
    except OSError as error:
        raise DiskError(f"{path} cannot be written ({error}): choose another folder.") from error


def _read(path: Path, *, with_z: bool) -> _Pixels:
    with open_volume(path) as file:
        times, planes = file.shape[:2]
        images = np.concatenate([file.volume(time) for time in range(times)])
        z_um = file.z_um if with_z else None  # what is not needed may be damaged
        return _Pixels(images, planes, z_um, file.edges_um[0], file.dtype)


def _numbers(path: Path) -> NDArray[np.float64]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of a file without data
            return np.atleast_1d(np.loadtxt(path, dtype=np.float64)).ravel()
    except (OSError, ValueError, UserWarning) as error:
        raise InputFileError(
            f"{path} should hold one stage position for each image, in µm, and cannot be read ({error})."
        ) from error
