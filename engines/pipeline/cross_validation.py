"""Cross-validation of a sweep: what the network adds, held against slabs that were left out.

In a session's first sweep no later one tells yet what the network is worth. But the sweep itself does: every
third slab is left out in turn, the engine reconstructs from the rest as if that were all there is, with one
evaluation of the network, and the share of the network's corrections that explains the slabs left out is
measured as that of a claim (`trust/claims.py`). All of it happens on the tile in which the projections show
most structure, so that a large image costs little. The gaps are twice as wide there as in the sweep itself:
the share is no weight, but a verdict on whether the network knows the specimen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from microdiffusion.engines.pipeline.device import upload
from microdiffusion.engines.projections import along_z, tensor_of
from microdiffusion.engines.trust import TELLING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader

_FOLDS = 3
_FEWEST = 4  # projections: fewer leave two, and a volume between them is a guess
_TILE = 64  # pixels of an edge: the network hardly sees further


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """Evidence of slabs that were left out.

    Attributes
    ----------
    told : (explained, claimed)
        What of them the network's corrections to the INR explain, and all that these say: as of a `Claim`.
    errors : dict
        Squared misfit of each answer there, counts², summed up.
    """

    told: tuple[float, float]
    errors: dict[str, float]

    @property
    def share(self) -> float | None:
        """Of the corrections, that explains the slabs best; None where they say too little."""
        explained, claimed = self.told
        return explained / claimed if claimed > TELLING else None


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
    errors: dict[str, float] = {}
    images = np.ascontiguousarray(sweep.projections[:, *_tile(sweep.projections)])
    tile_header = header.model_copy(update={"shape": (header.shape[0], *images.shape[1:]), "adaptive": False})
    for outside, inside in _folds(len(images)):
        # Nothing is held out of a part: that would choose the INR by the very gap that is judged.
        part = replace(
            sweep,
            stage=sweep.stage[inside],
            projections=images[inside],
            held_out_stage=sweep.stage[:0],
            held_out=images[:0],
            slots=None,
        )
        found, noise = answers(tile_header, part)
        device = found["inr"].device
        operator = tensor_of(header.operator_at(sweep.stage[outside]), device)
        seen = {name: along_z(operator, volume) for name, volume in found.items()}
        target = upload(images[outside], device)
        said = seen["mdd"] - seen["inr"]
        told = [(said * (target - seen["inr"])).sum() / noise, said.square().sum() / noise]
        missed = [(target - each).square().sum() for each in seen.values()]
        numbers = torch.stack(told + missed).tolist()
        explained, claimed = explained + numbers[0], claimed + numbers[1]
        for name, error in zip(seen, numbers[2:], strict=True):
            errors[name] = errors.get(name, 0.0) + error
    return CrossValidated((explained, claimed), errors)


def _folds(count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield which of so many slabs are left out, and which are not; the outermost ones never are."""
    for first in range(1, min(_FOLDS, count - 2) + 1):
        outside = np.arange(first, count - 1, _FOLDS)
        yield outside, np.setdiff1d(np.arange(count), outside)


def _tile(images: NDArray[np.float32]) -> tuple[slice, slice]:
    """Return the rows and columns of the tile in which images (M, Y, X) vary most."""

    def cuts(edge: int) -> list[slice]:
        size = min(edge, _TILE)
        begins = np.linspace(0, edge - size, -(-edge // size)).round().astype(int).tolist()
        return [slice(begin, begin + size) for begin in begins]

    tiles = [(rows, columns) for rows in cuts(images.shape[1]) for columns in cuts(images.shape[2])]
    return max(tiles, key=lambda tile: float(images[:, tile[0], tile[1]].var(axis=(1, 2)).sum()))
