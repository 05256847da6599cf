"""Two microscope formats of `volumes`: TIFF with its axes, and NDTiff, Micro-Manager's own.

Owns the meaning of the axes: a stack's planes are z unless the file says otherwise, and one channel and one
position are expected, because a volume has neither. tifffile and ndstorage are imported when they are
needed. Pure functions; a `Stack` belongs to the thread that opened it.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from microdiffusion.errors import DependencyError, InputFileError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Voxel = tuple[float, float, float]
_TO_UM = {"µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "\\u00b5m": 1.0, "nm": 1e-3, "mm": 1e3}
"""Units as files write them, lower case and with the micro sign, to µm."""


def read_tiff(path: Path) -> tuple[NDArray[Any], Voxel | None, str]:
    """Return pixels ([T,] Z, Y, X), voxel size (z, y, x; µm) where stated, and the licence where stated."""
    try:
        import tifffile
    except ImportError as error:
        raise DependencyError(
            f"Reading {path.name} needs tifffile: install it with `pip install tifffile`, "
            "or convert it to HDF5."
        ) from error
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            pixels, axes = np.asarray(series.asarray()), str(series.axes)
            voxel, licence = _tiff_notes(tifffile, file)
    except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
        raise InputFileError(f"{path} cannot be read as TIFF ({error}): save it again.") from error
    return _in_order(path, pixels, axes), voxel, licence


def _in_order(path: Path, pixels: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return the pixels with axes ([T,] Z, Y, X)."""
    keep = [number for number, name in enumerate(axes) if pixels.shape[number] > 1 or name in "ZYX"]
    pixels = pixels.reshape([pixels.shape[number] for number in keep])
    axes = "".join(axes[number] for number in keep)
    if any(name in axes for name in "CS"):
        raise InputFileError(
            f"{path} has the axes {axes} {pixels.shape}: a volume has one channel and no colours, "
            "so save each channel as a file of its own."
        )
    # Unnamed planes (Q, I) or, without any z, planes that ImageJ calls time: a plain stack.
    above = axes.removesuffix("YX")
    if "Z" not in axes and above:
        above = above[:-1] + "Z"
    if len(above) == 2 and above != "ZT":
        above = "TZ"
    if above in ("TZ", "ZT", "Z") and axes.endswith("YX"):
        return pixels.swapaxes(0, 1) if above == "ZT" else pixels
    if pixels.ndim < 3:
        raise InputFileError(
            f"{path} holds a single image {pixels.shape}: a volume needs several planes (Z, Y, X)."
        )
    raise InputFileError(
        f"{path} has the axes {axes} {pixels.shape}: a volume is (Z, Y, X) or (T, Z, Y, X); reshape it."
    )


def _tiff_notes(tifffile: Any, file: Any) -> tuple[Voxel | None, str]:
    """Return voxel size and licence from the OME header, or the voxel size from ImageJ's."""
    if file.is_ome and file.ome_metadata:
        ome = tifffile.xml2dict(file.ome_metadata).get("OME", {})
        image = ome.get("Image", {})
        pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
        edges = [
            _um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "ZYX"
        ]
        rights = ome.get("Rights", {})
        licence = str(rights.get("RightsHeld", "")) if isinstance(rights, dict) else ""
        return _voxel(edges), licence
    notes = file.imagej_metadata or {}
    tags = file.pages[0].tags
    lateral = []
    for name in ("YResolution", "XResolution"):
        top, bottom = tags[name].value if name in tags else (0, 1)
        lateral.append(_um(bottom / top if top else None, notes.get("unit", "")))
    return _voxel([_um(notes.get("spacing"), notes.get("unit", "")), *lateral]), ""


def _um(value: Any, unit: Any) -> float | None:
    scale = _TO_UM.get(str(unit).lower().replace("\u03bc", "µ"))  # the Greek letter as well
    return None if value is None or scale is None else float(value) * scale


def _voxel(edges: list[float | None]) -> Voxel | None:
    sizes = [edge for edge in edges if edge is not None and math.isfinite(edge) and edge > 0]
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else None


def is_ndtiff(folder: Path) -> bool:
    """Return whether a folder is an NDTiff dataset, or contains one in full resolution."""
    return (folder / "NDTiff.index").is_file() or (folder / "Full resolution" / "NDTiff.index").is_file()


class Stack:
    """An NDTiff dataset as an array ([T,] Z, Y, X) whose time points are read on demand."""

    def __init__(self, dataset: Any, shape: tuple[int, ...], dtype: Any, axes: dict[str, list[Any]]) -> None:
        self.shape = shape
        self.ndim = len(shape)
        self.dtype = np.dtype(dtype)
        self._dataset = dataset
        self._axes = axes

    def __getitem__(self, index: Any) -> NDArray[Any]:
        place = {name: values[0] for name, values in self._axes.items() if name not in ("z", "time")}
        if self.ndim == 4:
            place["time"] = self._axes["time"][index]
        elif "time" in self._axes:
            place["time"] = self._axes["time"][0]
        return np.stack([self._dataset.read_image(**place, z=z) for z in self._axes["z"]])

    def close(self) -> None:
        """Close the dataset."""
        self._dataset.close()


def read_ndtiff(folder: Path) -> tuple[Stack, Voxel | None]:
    """Return an NDTiff dataset's images along z (and time), and its voxel size (µm) where stated."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ndstorage
    except ImportError as error:
        raise DependencyError(
            f"Reading {folder.name} needs ndstorage: install it with `pip install ndstorage`."
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints its progress
            dataset = ndstorage.Dataset(str(folder))
    except Exception as error:  # the library lets parsing errors of any kind through
        raise InputFileError(f"{folder} cannot be read as NDTiff ({error}): copy it again.") from error
    try:
        axes = {name: sorted(values) for name, values in dataset.axes.items()}
        many = [name for name, values in axes.items() if name not in ("z", "time") and len(values) > 1]
        if "z" not in axes or many:
            what = f"several values of {', '.join(many)}" if many else "no axis z"
            raise InputFileError(
                f"{folder} has {what}: a volume is one position and one channel along z; export that part."
            )
        times = len(axes.get("time", [0]))
        for place in _all_places(axes):
            if not dataset.has_image(**place):
                raise InputFileError(f"{folder} lacks the image at {place}: record or copy it again.")
        first = next(_all_places(axes))
        image = dataset.read_image(**first)
        shape = (len(axes["z"]), *image.shape)
        voxel = _voxel(_ndtiff_voxel(dataset, first))
        return Stack(dataset, (times, *shape) if times > 1 else shape, image.dtype, axes), voxel
    except BaseException:
        dataset.close()
        raise


def _all_places(axes: dict[str, list[Any]]) -> Any:
    rest = {name: values[0] for name, values in axes.items() if name not in ("z", "time")}
    for time in axes.get("time", [None]):
        for z in axes["z"]:
            yield {**rest, "z": z} if time is None else {**rest, "z": z, "time": time}


def _ndtiff_voxel(dataset: Any, place: dict[str, Any]) -> list[float | None]:
    summary = getattr(dataset, "summary_metadata", None) or {}
    notes = dataset.read_metadata(**place) or {}
    pixel = notes.get("PixelSizeUm", summary.get("PixelSizeUm"))
    step = summary.get("z-step_um", summary.get("ZStepUm", notes.get("z-step_um")))
    return [_um(step, "um"), _um(pixel, "um"), _um(pixel, "um")]
