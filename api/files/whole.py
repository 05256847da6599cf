"""Parts of a volume that were never written, or are elsewhere: libraries read them as zeros.

Pure functions but for a look into the files that a virtual dataset is made of.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray


def missing_of_hdf5(path: Path, dataset: h5py.Dataset) -> str:
    """Return what is known to be missing of a dataset of the file `path`, in words; empty: nothing."""
    if dataset.is_virtual:
        return _missing_of_virtual(path, dataset)
    if dataset.external:
        left = dataset.size * dataset.dtype.itemsize
        for name, offset, size in dataset.external:
            file = next((each for each in (path.parent / name, Path(name)) if each.is_file()), None)
            if file is None:
                return f"the file {name} is not beside it"
            if file.stat().st_size < offset + min(size, left):
                return f"the file {name} is cut"
            left -= min(size, left)
        return ""
    if dataset.chunks:
        blocks = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        written = int(dataset.id.get_num_chunks()) >= blocks
    else:
        written = not dataset.size or dataset.id.get_storage_size() > 0
    return "" if written else "parts of it were never written"


def _missing_of_virtual(path: Path, dataset: h5py.Dataset) -> str:
    sources = dataset.virtual_sources()
    if any("%b" in source.file_name + source.dset_name for source in sources):
        return ""  # a pattern for as many files as there are
    covered = 0
    for source in sources:
        file = path if source.file_name == "." else path.parent / source.file_name
        if not file.is_file():
            return f"the file {source.file_name} is not beside it"
        with h5py.File(file, "r") as opened:
            found = opened.get(source.dset_name)
            if not isinstance(found, h5py.Dataset):
                return f"{file.name} has no dataset {source.dset_name}"
            if missing := missing_of_hdf5(file, found):
                return f"{missing}, in {file.name}"
        covered += source.vspace.get_select_npoints()
    return "" if covered >= dataset.size else "parts of it are in none of its files"


def missing_of_tiff(pages: Any) -> list[int]:
    """Return the numbers, from 1, of the planes of which a part is not in the file at all."""
    return [
        number
        for number, page in enumerate(pages, 1)
        if page is None or 0 in page.databytecounts or 0 in page.dataoffsets
    ]


def missing_planes(volume: NDArray[Any]) -> str:
    """Return which planes (Z, Y, X) were never written, in words: zeros, where next to nothing else is zero.

    A pixel in a hundred may be: dead ones, the edge of what was registered.
    """
    size = volume[0].size
    dark = size - np.count_nonzero(volume, axis=(1, 2))
    if not (dark < size).any():
        return ""
    last = int(np.flatnonzero(dark < size)[-1])  # it may end in the middle
    others = np.delete(dark, last)
    others = others[others < size]
    if others.size and others.max() > 0.01 * size:
        return ""
    tail = int(np.argmax(volume[last].reshape(-1)[::-1] != 0))
    if others.size and tail > 10 * (1 + others.max()):
        return f"plane {last + 1} of {len(dark)} ends in zeros, and those before it have hardly any"
    if dark[last] <= 0.01 * size and size in dark:
        first = int(np.argmax(dark)) + 1
        return f"plane {first} of {len(dark)} holds nothing but zeros, and the others have hardly any"
    return ""
