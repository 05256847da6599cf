"""The reader that `napari.yaml` names: which files are run files, and their layers.

Imports neither napari nor Qt; only where a viewer is there does `napari_follow` let the layers grow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from microdiffusion.adapters.napari_follow import follow_soon
from microdiffusion.adapters.napari_layers import Layer, run_layers
from microdiffusion.runfile import attribute_of, open_hdf5


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[Layer]] | None:
    """Return the reader of a run file; None for everything else, which other plugins may read."""
    if not isinstance(path, str) or not Path(path).is_file():
        return None
    try:
        with open_hdf5(Path(path)) as file:
            first = attribute_of(Path(path), file, "segment") == 0 and "mdd_layout" in file.attrs
    except Exception:  # whatever a foreign or damaged file makes HDF5 say
        return None
    return read if first else None


def read(path: Any) -> list[Layer]:
    """Return the layers of a run, and let them grow where napari's window is there and the run goes on."""
    layers = run_layers(Path(path))
    follow_soon([layer[1]["metadata"]["mdd"] for layer in layers])
    return layers
