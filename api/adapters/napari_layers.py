"""A run as napari's layers: one for each channel, with the axes t, [position,] z, y, x.

Imports neither napari nor Qt: layers are tuples (data, arguments, "image"). Their data are `LayerData`: as
long as the run was, read on demand, float32, and NaN where there is no volume, so that napari shows a gap as
empty and never as a dark specimen. Any thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microdiffusion.adapters.arrays import BlockSource
from microdiffusion.errors import MddError
from microdiffusion.runfile import Run, expanded, open_run

Layer = tuple[Any, dict[str, Any], str]

# Distinguishable, also for the colour-blind; a single channel is grey.
_COLOURS = ("green", "magenta", "cyan", "yellow")


@dataclass(frozen=True, slots=True)
class LayerData:
    """Data of one channel up to a time point, indexed like an array (T, [P,] Z, Y, X) float32.

    Attributes
    ----------
    sources : tuple of BlockSource
        One for each position.
    channel, length : int
        `length` is T.
    size : (Z, Y, X)
    """

    sources: tuple[BlockSource, ...]
    channel: int
    length: int
    size: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, time first; with an axis of positions if there are several."""
        positions = () if len(self.sources) == 1 else (len(self.sources),)
        return (self.length, *positions, *self.size)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Type of the elements."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        full = expanded(index, self.ndim)
        leading, inner = full[:-3], full[-3:]
        chosen = [np.arange(size)[one] for one, size in zip(leading, self.shape, strict=False)]
        places = list(product(*(one.reshape(-1).tolist() for one in chosen)))
        found = np.empty((len(places), *np.broadcast_to(np.float32(), self.size)[inner].shape), np.float32)
        for row, (t, *position) in enumerate(places):
            found[row] = self.sources[sum(position)].read(t, self.channel, inner, fill=np.nan)
        return found.reshape(*(size for one in chosen for size in one.shape), *found.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def grown(self, length: int) -> LayerData:
        """Return the same with another T."""
        return replace(self, length=length)


@dataclass(frozen=True, slots=True)
class Shown:
    """Data of a layer, in its metadata under "mdd": the levels, finest first."""

    levels: tuple[LayerData, ...]

    @property
    def data(self) -> LayerData | list[LayerData]:
        """As napari takes it: a list where there are several levels."""
        return self.levels[0] if len(self.levels) == 1 else list(self.levels)

    def grown(self, length: int) -> Shown:
        """Return the same with another T."""
        return Shown(tuple(level.grown(length) for level in self.levels))


def run_layers(path: Path) -> list[Layer]:
    """Return a layer for each channel, then a hidden one for the uncertainty of each.

    Raises
    ------
    MissingFileError, InputFileError
        It cannot be read.
    """
    with open_run(path) as run:
        layers = [_layer(run, channel) for channel in range(len(run.header.channels))]
        if run.uncertainty is not None or run.uncertainty_map is not None:
            layers += [_layer(run, channel, uncertainty=True) for channel in range(len(run.header.channels))]
    return layers


def _layer(run: Run, channel: int, *, uncertainty: bool = False) -> Layer:
    header = run.header
    positions = range(len(header.positions))
    length = max(run.used, 1)  # napari needs something to show before the first volume
    doubts = run.uncertainty if run.uncertainty is not None else run.uncertainty_map
    levels = [(0, doubts)] if uncertainty and doubts is not None else list(enumerate(run.pyramid))
    shown = Shown(
        tuple(
            LayerData(
                tuple(
                    BlockSource.of(run, position, level, uncertainty=uncertainty) for position in positions
                ),
                channel,
                length,
                _size(series.shape),
            )
            for level, series in levels
        )
    )
    # A map of blocks lies where its voxels do.
    blocks = [whole / part for whole, part in zip(header.shape, shown.levels[0].size, strict=True)]
    scale = [edge * block for edge, block in zip(header.voxel_size_um, blocks, strict=True)]
    corner = [(block - 1) / 2 * edge for edge, block in zip(header.voxel_size_um, blocks, strict=True)]
    leading = ["t"] if len(positions) == 1 else ["t", "position"]
    name = header.name if len(header.channels) == 1 else f"{header.name} {header.channels[channel]}"
    several = len(header.channels) > 1
    arguments: dict[str, Any] = {
        "name": f"{name} uncertainty" if uncertainty else name,
        "scale": [*[1.0] * len(leading), *scale],
        "translate": [*[0.0] * len(leading), header.z0_um + corner[0], *corner[1:]],
        "units": [*["pixel"] * len(leading), "um", "um", "um"],
        "axis_labels": [*leading, "z", "y", "x"],
        "contrast_limits": brightness(shown, from_zero=uncertainty),
        "colormap": "inferno" if uncertainty else _COLOURS[channel % len(_COLOURS)] if several else "gray",
        "blending": "additive" if several else "translucent_no_depth",
        "multiscale": len(shown.levels) > 1,
        "visible": not uncertainty,
        "metadata": {"mdd": shown, "run_id": header.run_id, "gaps": run.gaps()},
    }
    return shown.data, arguments, "image"


def _size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = shape[-3:]
    return z, y, x


def brightness(shown: Shown, *, from_zero: bool = False) -> tuple[float, float]:
    """Return the contrast limits, from the last volume."""
    data = shown.levels[-1]
    for t in range(data.length - 1, max(data.length - 20, 0) - 1, -1):
        try:
            values = data.sources[0].read(t, data.channel)
        except MddError:  # a gap
            continue
        low, high = np.percentile(values, (1.0, 99.9))
        return 0.0 if from_zero else float(low), float(max(high, low + 1e-3))
    return 0.0, 1.0
