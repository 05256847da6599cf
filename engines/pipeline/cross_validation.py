"""Cross-validation of a sweep: what the network adds, held against slabs that were left out.

In a session's first sweep no later one tells yet what the network is worth. But the sweep itself does: every
third slab is left out in turn, the engine reconstructs from the rest as if that were all there is, and the
share of the network's corrections that explains the slabs left out is measured as that of a claim
(`trust/claims.py`). All of it happens on the tiles in which the projections show most structure, so that a
large image costs little. The gaps are twice as wide there as in the sweep itself, so the share is no weight,
but a verdict on whether the network knows the specimen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from microdiffusion.engines.projections import along_z, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader

_FOLDS = 3
_FEWEST = 4  # projections: fewer leave two, and a volume between them is a guess
_TILE = 64  # pixels of an edge: the network sees no further
_TELLING = 100.0  # squared correction in units of the noise, below which it says too little to be judged


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """What the slabs left out say.

    Attributes
    ----------
    share : float or None
        Of the network's corrections to the INR, that explains them best; None where these say too little.
    errors : dict
        Mean squared misfit of each answer there, counts².
    """

    share: float | None
    errors: dict[str, float]


def cross_validated(
    sweep: Sweep,
    header: RunHeader,
    answers: Callable[[RunHeader, Sweep], tuple[dict[str, Tensor], float]],
) -> CrossValidated | None:
    """Return what a sweep says of the answers to parts of it; None for too few projections.

    `answers` returns the volumes (Z, Y, X) of a sweep that stands alone by name, "mdd" and "inr" among them,
    and the variance of its noise, in counts. Synchronises with the host.
    """
    if len(sweep.stage) < _FEWEST:
        return None
    explained = claimed = 0.0
    missed: dict[str, float] = {}
    for (outside, inside), tile in zip(_folds(len(sweep.stage)), _tiles(sweep.projections), strict=False):
        part = np.ascontiguousarray(sweep.projections[:, tile[0], tile[1]])
        none = part[:0]
        shown = replace(
            sweep,
            stage=sweep.stage[inside],
            projections=part[inside],
            held_out_stage=sweep.stage[:0],
            held_out=none,
            slots=None,
        )
        tile_header = header.model_copy(
            update={"shape": (header.shape[0], *part.shape[1:]), "adaptive": False}
        )
        found, noise = answers(tile_header, shown)
        device = found["inr"].device
        operator = tensor_of(header.operator_at(sweep.stage[outside]), device)
        seen = {name: along_z(operator, volume) for name, volume in found.items()}
        left = torch.from_numpy(part[outside]).to(device) - seen["inr"]
        said = seen["mdd"] - seen["inr"]
        told = torch.stack([(said * left).sum(), said.square().sum()]) / noise
        errors = [(left + seen["inr"] - each).square().sum() for each in seen.values()]
        numbers = torch.cat([told, torch.stack(errors)]).tolist()
        explained, claimed = explained + numbers[0], claimed + numbers[1]
        for name, error in zip(seen, numbers[2:], strict=True):
            missed[name] = missed.get(name, 0.0) + error
    return CrossValidated(explained / claimed if claimed > _TELLING else None, missed)


def _folds(count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield which of so many slabs are left out, and which are not; the outermost ones never are."""
    for first in range(1, min(_FOLDS, count - 2) + 1):
        outside = np.arange(first, count - 1, _FOLDS)
        yield outside, np.setdiff1d(np.arange(count), outside)


def _tiles(images: NDArray[np.float32]) -> list[tuple[slice, slice]]:
    """Return rows and columns of a tile for each fold, those in which images (M, Y, X) vary most."""

    def cuts(edge: int) -> list[slice]:
        count = max(1, edge // _TILE)
        size = min(edge, _TILE)
        begin = (edge - count * size) // 2
        return [slice(begin + size * number, begin + size * (number + 1)) for number in range(count)]

    tiles = [(rows, columns) for rows in cuts(images.shape[1]) for columns in cuts(images.shape[2])]
    tiles.sort(key=lambda tile: -float(images[:, tile[0], tile[1]].var(axis=(1, 2)).sum()))
    return [tiles[number % len(tiles)] for number in range(_FOLDS)]
