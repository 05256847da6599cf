"""NDTiff, Micro-Manager's own format, as a stack along z (and time) of one position and channel.

ndstorage is imported when it is needed. A `Stack` belongs to the thread that opened it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from itertools import product
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.errors import DependencyError, InputFileError
from microdiffusion.files.stacks import (
    PIXEL_KEYS,
    STEP_KEYS,
    Z_KEYS,
    Notes,
    choose_part,
    length_um,
    stated,
    step_um,
)


class Stack:
    """An NDTiff dataset as an array ([T,] Z, Y, X) whose time points are read on demand."""

    def __init__(
        self, dataset: Any, shape: tuple[int, ...], dtype: Any, places: list[dict[str, Any]]
    ) -> None:
        self.shape = shape
        self.ndim = len(shape)
        self.dtype = np.dtype(dtype)
        self._dataset = dataset
        self._places = places

    def __getitem__(self, index: Any) -> NDArray[Any]:
        planes = self.shape[-3]
        first = index * planes if self.ndim == 4 else 0
        return np.stack([self._dataset.read_image(**place) for place in self._places[first : first + planes]])

    def close(self) -> None:
        """Close the dataset."""
        self._dataset.close()


def read_ndtiff(folder: Path, part: str) -> tuple[Stack, Notes]:
    """Return the images along z (and time) of a dataset, or of the `part` that is named, and their notes."""
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
            dataset = _full_resolution(ndstorage.Dataset(str(folder)))
    except Exception as error:  # the library lets parsing errors of any kind through
        raise InputFileError(f"{folder} cannot be read as NDTiff ({error}): copy it again.") from error
    try:
        _refuse_partial(folder, dataset)
        rest, images = _chosen(folder, dataset.get_image_coordinates_list(), part)
        if not all("z" in image for image in images):
            raise InputFileError(
                f"{folder} has no axis z: a volume is one position and one channel along z; export that part."
            )
        axes = {
            name: sorted({image[name] for image in images if name in image})
            for name in ("time", "z")
            if any(name in image for image in images)
        }
        planned = _planned_slices(dataset.summary_metadata or {})
        for name, values in axes.items():
            _refuse_gaps(folder, name, values, planned if name == "z" else 0)
        places = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
        for place in places:
            if place not in images:
                raise InputFileError(f"{folder} lacks the image at {rest | place}: record or copy it again.")
        places = [rest | place for place in places]
        image = dataset.read_image(**places[0])
        shape = (len(places) // len(axes["z"]), len(axes["z"]), *image.shape)
        notes = _notes(dataset, places[: len(axes["z"])])
        return Stack(dataset, shape if shape[0] > 1 else shape[1:], image.dtype, places), notes
    except InputFileError:
        dataset.close()
        raise
    except Exception as error:  # of a file that is missing or cut, whatever the library makes of it
        dataset.close()
        raise InputFileError(
            f"{folder} cannot be read as NDTiff ({type(error).__name__}: {error}): copy all its files again."
        ) from error


def _full_resolution(dataset: Any) -> Any:
    """Return the images themselves of a pyramid, whose own `close` fails."""
    levels = getattr(dataset, "res_levels", {})
    if 0 not in levels or not hasattr(levels[0], "read_image"):
        return dataset
    for number, level in levels.items():
        if number:
            level.close()
    return levels[0]


def _chosen(
    folder: Path, images: list[dict[str, Any]], part: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the position, channel ... that is wanted, and the places along z and time of its images."""
    found: dict[tuple[tuple[str, Any], ...], list[dict[str, Any]]] = {}
    for image in images:
        others = tuple(sorted(item for item in image.items() if item[0] not in ("z", "time")))
        found.setdefault(others, []).append({name: image[name] for name in ("time", "z") if name in image})
    same = set.intersection(*map(set, found)) if found else set()
    names = [",".join(str(value) for name, value in each if (name, value) not in same) for each in found]
    if not names:
        raise InputFileError(f"{folder} holds no image: copy or record it again.")
    chosen = list(found)[choose_part(folder, names, part)]
    return dict(chosen), found[chosen]


def _refuse_partial(folder: Path, dataset: Any) -> None:
    """Refuse a data set of which a file, or the end of its index or of a file, is not there.

    An image's pixels and notes follow the directory that says where the next one begins, 20 bytes before the
    pixels; when a file is finished, its last directory says 0.
    """
    from ndstorage import NDTiffDataset

    if not isinstance(dataset, NDTiffDataset):
        return  # of version 1 or 2, which are laid out in another way
    last: dict[str, Any] = {}
    for entry in sorted(dataset.index.values(), key=lambda entry: entry.pix_offset):
        last[entry.filename] = entry
    files = {path.name: path for path in Path(dataset.path).glob("*.tif")}
    if absent := sorted(last.keys() - files.keys()):
        raise InputFileError(
            f"{folder} lacks the file {shorten(', '.join(absent), 200)}: copy all files of the data set."
        )
    for name, path in files.items():
        entry = last.get(name)
        with path.open("rb") as file:
            file.seek(4 if entry is None else entry.pix_offset - 20)
            follows = int.from_bytes(file.read(4), "little")
            file.seek(follows)
            more = any(file.read(2))
        if entry is not None and follows - entry.metadata_offset - entry.metadata_length not in (0, 1):
            continue  # it is finished, or laid out in another way
        if more:
            raise InputFileError(
                f"{folder}: {name} holds more images than the index: wait until the data set is finished, or "
                "copy NDTiff.index again."
            )
        if entry is not None:
            raise InputFileError(
                f"{folder}: {name} was not finished, so images may be missing: copy it again, or save what "
                "there is as a stack of its own."
            )


def _refuse_gaps(folder: Path, name: str, values: list[Any], planned: int) -> None:
    """Refuse an axis that skips a number: nothing says that the stage skipped it, too."""
    numbers = [value for value in values if isinstance(value, int)]
    if not numbers:
        return
    lacking = sorted({*range(planned), *range(min(numbers), max(numbers) + 1)} - set(numbers))
    if lacking:
        raise InputFileError(
            f"{folder} lacks all images of {name} = {shorten(', '.join(map(str, lacking)), 100)}: copy or "
            "record it again, or save what belongs together as a stack of its own."
        )


def _planned_slices(summary: dict[str, Any]) -> int:
    """Return how many slices Micro-Manager was to take; 0 where the summary does not say."""
    intended = summary.get("IntendedDimensions")
    found = intended.get("z") if isinstance(intended, dict) else summary.get("Slices")
    return found if isinstance(found, int) else 0


def _notes(dataset: Any, places: list[dict[str, Any]]) -> Notes:
    """Return the edges of a voxel, along z from the summary or else from the images, and their positions."""
    summary = dataset.summary_metadata or {}
    notes = [dataset.read_metadata(**place) or {} for place in places]

    pixel = length_um(stated(notes[0] | summary, *PIXEL_KEYS), "um")
    step = length_um(stated(notes[0] | summary, *STEP_KEYS), "um")
    depths = [stated(note, *Z_KEYS) for note in notes]
    z_um = None if None in depths else np.array(depths, np.float64)
    known = step_um(z_um)  # where all are alike they say nothing
    return Notes((step or known, pixel, pixel), z_um=z_um if known else None)
