"""The interface of a denoiser, the architectures by name, and the one that ships: a U-Net over slabs.

A denoiser sees a window of `WINDOW` neighbouring slices as channels and predicts the `SLICES` in the middle
jointly, so a volume of 128 slices takes 16 evaluations and neighbouring slices agree by construction. Four
stacks of slices go in: the state of the sampler, the prior it started from (the INR), how surely the INR
knows it (the standard deviation of each voxel, which falls as a session learns) and, for each slice, the
projection whose slab centre lies closest (the image condition, E_img). The optics and the position of every
slice within its slab (E_pos) enter as numbers.

An architecture is a `Denoiser` that `register_denoiser` has given a name. Weights files carry that name;
training, OpenVINO and the ONNX export take the module as it is.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from microdiffusion.errors import InputFileError

SLICES = 8
CONTEXT = 4
WINDOW = SLICES + 2 * CONTEXT
# Per slice of the window: sine and cosine of its phase between slabs, coverage by light. For the window: slab
# length, step, noise, time of the bridge, noise of the bridge, image condition on or off.
CONDITIONS = 3 * WINDOW + 6
_SUREST, _USUAL = 1e-4, -2.0
"""Least deviation that is told apart, in units of the projections' range; logarithm of a usual one."""


class Denoiser(nn.Module):
    """A network that predicts the clean slices in the middle of a window; see the module's docstring.

    A slice's result should not depend on the size of the tile around it: large fields are cut into tiles.

    Attributes
    ----------
    architecture : str
        The name that `register_denoiser` gave the class.
    multiple : int
        Rows and columns have to be a multiple of this.
    settings : mapping
        The constructor's arguments by name, as JSON holds them: weights files carry them.
    """

    architecture: str
    multiple: int = 1
    settings: Mapping[str, Any]

    @property
    def description(self) -> str:
        """Architecture and settings, for messages and model cards."""
        return ", ".join([self.architecture, *(f"{name} {value}" for name, value in self.settings.items())])

    def correction(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """Return what has to be added to the prior's middle slices.

        Parameters
        ----------
        state, prior, deviation, image : (B, WINDOW, Y, X)
            The sampler's state, the INR's slices and their standard deviation, the closest projection of each
            slice.
        conditions : (B, CONDITIONS)
            See `microdiffusion.engines.diffusion.conditioning`.

        Returns
        -------
        (B, SLICES, Y, X)
        """
        raise NotImplementedError

    def forward(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X); see `correction` for the inputs."""
        return middle_slices(prior) + self.correction(state, prior, deviation, image, conditions)


_Architecture = TypeVar("_Architecture", bound=type[Denoiser])

_ARCHITECTURES: dict[str, type[Denoiser]] = {}
_ENTRY_POINTS = "microdiffusion.denoisers"


def register_denoiser(name: str) -> Callable[[_Architecture], _Architecture]:
    """Return a class decorator that gives a `Denoiser` the name under which weights files ask for it.

    A process of mdd's own, as the engine's, knows classes of other packages by their entry points in the
    group "microdiffusion.denoisers", which have the same names.
    """

    def register(architecture: _Architecture) -> _Architecture:
        architecture.architecture = name
        _ARCHITECTURES[name] = architecture
        return architecture

    return register


def find_architecture(name: str) -> type[Denoiser]:
    """Return the class of that name.

    Raises
    ------
    InputFileError
        There is none.
    """
    if name not in _ARCHITECTURES:
        for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS, name=name):
            entry.load()
    if name not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise InputFileError(
            f"no denoiser is called {name!r}, there are {known}: install the package that registers it"
        )
    return _ARCHITECTURES[name]


def middle_slices(window: Tensor) -> Tensor:
    """Return the slices (B, SLICES, Y, X) of a window that are predicted."""
    return window[:, CONTEXT : CONTEXT + SLICES]


class Correction(nn.Module):
    """A denoiser whose forward pass is its correction, as converters call it."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """Return the correction."""
        return self.model.correction(state, prior, deviation, image, conditions)


class _Block(nn.Module):
    """Residual block whose features are scaled and shifted by the condition (FiLM, Perez et al. 2018)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width)
        # Starts as the identity: a network without normalisation then trains at a high rate.
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.film.weight)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].unflatten(1, (2, -1)).unbind(1)
        hidden = self.first(nn.functional.silu(features))
        hidden = hidden * (1 + scale) + shift
        return features + self.second(nn.functional.silu(hidden))  # type: ignore[no-any-return]


@register_denoiser("slab-unet-2")
class SlabUNet(Denoiser):
    """A U-Net over slabs, conditioned through FiLM on the optics.

    No normalisation layers and no attention: a slice's result does not depend on the size of the tile around
    it, and every layer fuses on an inference runtime.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level, full resolution first.
    blocks : int
        Residual blocks of each level.
    embedding : int
        Channels of the condition.
    """

    def __init__(
        self, widths: Sequence[int] = (48, 96, 128, 160), blocks: int = 1, embedding: int = 128
    ) -> None:
        super().__init__()
        self.settings = {"widths": list(widths), "blocks": blocks, "embedding": embedding}
        self.multiple = 2 ** (len(widths) - 1)
        self.condition = nn.Sequential(
            nn.Linear(CONDITIONS, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.stem = nn.Conv2d(4 * WINDOW, widths[0], 3, padding=1)

        def stage(width: int, count: int = blocks) -> nn.ModuleList:
            return nn.ModuleList(_Block(width, embedding) for _ in range(count))

        self.down = nn.ModuleList(stage(w) for w in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.middle = stage(widths[-1], blocks + 1)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(list(itertools.pairwise(widths)))
        )
        self.up = nn.ModuleList(stage(w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], SLICES, 3, padding=1)
        # An untrained network returns the prior.
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def correction(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """See `Denoiser.correction`."""
        embedded = self.condition(conditions)
        # Deviations span decades.
        doubt = deviation.clamp_min(_SUREST).log10() - _USUAL
        features = self.stem(torch.cat([state, prior, image, doubt], dim=1))
        skips = []
        for stage, shrink in zip(self.down, self.shrink, strict=True):
            for block in stage:  # type: ignore[attr-defined]
                features = block(features, embedded)
            skips.append(features)
            features = shrink(features)
        for block in self.middle:
            features = block(features, embedded)
        for grow, stage in zip(self.grow, self.up, strict=True):
            features = grow(features) + skips.pop()
            for block in stage:  # type: ignore[attr-defined]
                features = block(features, embedded)
        change: Tensor = self.head(nn.functional.silu(features))
        return change
