"""Two microscope formats of `volumes`: TIFF with its axes, and NDTiff, Micro-Manager's own.

Owns the meaning of the axes: a stack's planes are z unless the file says otherwise, and one channel and one
position are expected, because a volume has neither. tifffile and ndstorage are imported when they are
needed. Pure functions; a `Stack` belongs to the thread that opened it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import warnings
from itertools import islice
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from microdiffusion.errors import DependencyError, InputFileError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Edges = tuple[float | None, float | None, float | None]
"""Edges of a voxel (z, y, x), µm; None where a file does not say."""
PIXEL_KEYS = ("PixelSize_um", "PixelSizeUm")
Z_KEYS = ("ZPosition_um_Intended", "ZPositionUm")
"""Names in Micro-Manager's metadata: of pycromanager's engine, then of its own."""
_TO_UM = {
    "µm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "\\u00b5m": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}
"""Units as files write them, lower case and with the micro sign, to µm."""
_DAMAGE = re.compile(
    "invalid page|circular|missing|corrupt|failed to re|raised|not found|out of range|zeroed"
)
"""Words of tifffile's warnings of a file that it reads only in part."""


def read_tiff(path: Path) -> tuple[NDArray[Any], Edges, str]:
    """Return pixels ([T,] Z, Y, X), edges of a voxel, and the licence where stated."""
    try:
        import tifffile
    except ImportError as error:
        raise DependencyError(
            f"Reading {path.name} needs tifffile: install it with `pip install tifffile`, "
            "or convert it to HDF5."
        ) from error
    said = _Said()
    log = logging.getLogger("tifffile")
    log.addHandler(said)
    try:
        with tifffile.TiffFile(path) as file:
            header = (file.ome_metadata or "") if file.is_ome else ""
            if "NDTiffStack" in path.name or "<BinaryOnly" in header:
                raise InputFileError(
                    f"{path} is one of several files, and another says what its planes are: name the "
                    "folder with the NDTiff.index, or the OME-TIFF whose header lists all."
                )
            series = file.series
            if len(series) == 1:
                _refuse_partial(path, file, series[0], header, said.texts)
            else:
                _refuse_several(path, series)
            pixels, axes = np.asarray(series[0].asarray()), str(series[0].axes)
            edges, licence = _tiff_notes(tifffile, file)
    except InputFileError:
        raise
    except Exception as error:  # each decoder has its own errors for damaged data
        raise InputFileError(
            f"{path} cannot be read as TIFF ({error}): copy it again, or save it uncompressed."
        ) from error
    finally:
        log.removeHandler(said)
    return _in_order(path, pixels, axes), edges, licence


class _Said(logging.Handler):
    """The warnings that tifffile logs of a file: it fills gaps with zeros, and only says so here."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _refuse_partial(path: Path, file: Any, series: Any, header: str, said: list[str]) -> None:
    """Refuse a stack of which planes or files are missing, which tifffile would read as zeros."""
    lacking = [number for number, page in enumerate(series.pages, 1) if page is None]
    if lacking:
        named = set(re.findall(r'FileName="([^"]+)"', header))
        absent = sorted(name for name in named if not (path.parent / name).is_file())
        files = f"; these files are not beside it: {shorten(', '.join(absent), 200)}" if absent else ""
        raise InputFileError(
            f"{path} lacks {len(lacking)} of its {len(series.pages)} planes (the first is plane "
            f"{lacking[0]}){files}: copy all files of the stack, or record it again; what there is can be "
            "saved as a stack of its own."
        )
    broken = next((text for text in said if _DAMAGE.search(text)), None)
    if broken is None and series.kind in ("generic", "uniform") and len(file.pages) > len(series.pages):
        broken = f"page {len(series.pages) + 1} is empty or of another size"
    if broken is not None:
        raise InputFileError(
            f"{path} is not whole ({shorten(broken.partition('> ')[2] or broken, 200)}): copy it again with "
            "all its files, or save what there is as a stack of its own."
        )


def _refuse_several(path: Path, series: Any) -> NoReturn:
    """Ask for one of several images, or positions, of a file."""
    names = [f"{each.name or f'image {number}'} {each.shape}" for number, each in enumerate(series)]
    if not names:
        raise InputFileError(f"{path} holds no image: copy or save it again.")
    raise InputFileError(
        f"{path} holds {len(names)} images or positions, {shorten(', '.join(names), 200)}: a volume is one; "
        "save the one that is meant as a file of its own (in Fiji: File > Import > Bio-Formats asks which)."
    )


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


def _tiff_notes(tifffile: Any, file: Any) -> tuple[Edges, str]:
    """Return the edges of a voxel and the licence from the OME header, or the edges from ImageJ's."""
    if file.is_ome and file.ome_metadata:
        ome = tifffile.xml2dict(file.ome_metadata).get("OME", {})
        image = ome.get("Image", {})
        pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
        z, y, x = (
            _um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "ZYX"
        )
        rights = ome.get("Rights", {})
        return (z, y, x), str(rights.get("RightsHeld", "")) if isinstance(rights, dict) else ""
    notes = file.imagej_metadata or {}
    tags = file.pages[0].tags
    # Without a unit the tags count only in cm: inches are what programs write that know no scale.
    unit = notes.get("unit") or ("cm" if tags.valueof("ResolutionUnit", 1) == 3 else "")
    lateral = []
    for name in ("YResolution", "XResolution"):
        top, bottom = tags.valueof(name, (0, 1))
        lateral.append(_um(bottom / top if top else None, unit))
    return (_um(notes.get("spacing"), unit), lateral[0], lateral[1]), ""


def _um(value: Any, unit: Any) -> float | None:
    """Return a length in µm; ImageJ's spacing is negative where a stack was taken downwards."""
    scale = _TO_UM.get(str(unit).lower().replace("\u03bc", "µ"))  # the Greek letter as well
    with contextlib.suppress(TypeError, ValueError):
        length = abs(float(value)) * (scale or math.nan)
        return length if math.isfinite(length) and length > 0 else None
    return None


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


def read_ndtiff(folder: Path) -> tuple[Stack, Edges]:
    """Return an NDTiff dataset's images along z (and time), and the edges of its voxels."""
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
        for name in ("z", "time"):
            _refuse_gaps(folder, name, axes.get(name, []))
        for place in _all_places(axes):
            if not dataset.has_image(**place):
                raise InputFileError(f"{folder} lacks the image at {place}: record or copy it again.")
        first = next(_all_places(axes))
        image = dataset.read_image(**first)
        shape = (len(axes["z"]), *image.shape)
        edges = _ndtiff_edges(dataset, list(islice(_all_places(axes), len(axes["z"]))))
        return Stack(dataset, (times, *shape) if times > 1 else shape, image.dtype, axes), edges
    except InputFileError:
        dataset.close()
        raise
    except Exception as error:  # of a file that is missing or cut, whatever the library makes of it
        dataset.close()
        raise InputFileError(
            f"{folder} cannot be read as NDTiff ({type(error).__name__}: {error}): copy all its files again."
        ) from error


def _refuse_gaps(folder: Path, name: str, values: list[Any]) -> None:
    """Refuse an axis that skips a number: nothing says that the stage skipped it, too."""
    numbers = [value for value in values if isinstance(value, int)]
    if not numbers:
        return
    lacking = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
    if lacking:
        raise InputFileError(
            f"{folder} lacks all images of {name} = {shorten(', '.join(map(str, lacking)), 100)}: copy or "
            "record it again, or save what belongs together as a stack of its own."
        )


def _all_places(axes: dict[str, list[Any]]) -> Any:
    rest = {name: values[0] for name, values in axes.items() if name not in ("z", "time")}
    for time in axes.get("time", [None]):
        for z in axes["z"]:
            yield {**rest, "z": z} if time is None else {**rest, "z": z, "time": time}


def _ndtiff_edges(dataset: Any, places: list[dict[str, Any]]) -> Edges:
    """Return the edges of a voxel; along z from the summary, or else from the images' stage positions."""
    summary = getattr(dataset, "summary_metadata", None) or {}
    notes = [dataset.read_metadata(**place) or {} for place in places]

    def stated(source: dict[str, Any], *names: str) -> Any:
        return next((source[name] for name in names if name in source), None)

    pixel = _um(stated(notes[0] | summary, *PIXEL_KEYS), "um")
    step = _um(stated(notes[0] | summary, "z-step_um", "ZStepUm"), "um")
    depths = [stated(note, *Z_KEYS) for note in notes]
    if step is None and len(depths) > 1 and None not in depths:
        step = _um(np.median(np.abs(np.diff(np.array(depths, dtype=np.float64)))), "um")
    return step, pixel, pixel
