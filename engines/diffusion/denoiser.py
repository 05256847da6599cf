"""The denoiser: a U-Net over slabs, conditioned on images and on the optics.

It sees a window of `WINDOW` neighbouring slices as channels and predicts the `SLICES` in the middle
jointly, so a volume of 128 slices takes 16 evaluations and neighbouring slices agree by construction.
Three stacks of slices go in: the state of the sampler, the prior it started from (the INR) and, for each
slice, the projection whose slab centre lies closest (the image condition, E_img). The optics and the
position of every slice within its slab (E_pos) enter as numbers through FiLM.

No normalisation layers and no attention: a slice's result does not depend on the size of the tile around
it, so large fields can be cut into tiles, and every layer fuses on an inference runtime.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from microdiffusion.errors import InputFileError, MissingFileError

if TYPE_CHECKING:
    from pathlib import Path

SLICES = 8
CONTEXT = 4
WINDOW = SLICES + 2 * CONTEXT
# Per slice of the window: sine and cosine of its phase between slabs, and how much light saw it. For the
# window: slab length, step, noise, time of the bridge, noise of the bridge, image condition on or off.
CONDITIONS = 3 * WINDOW + 6


@dataclass(frozen=True, slots=True)
class DenoiserShape:
    """Size of the network: channels of each level (full resolution first) and of the condition."""

    widths: tuple[int, ...] = (48, 96, 128, 160)
    blocks: int = 1
    embedding: int = 128

    @property
    def multiple(self) -> int:
        """Rows and columns have to be a multiple of this."""
        return int(2 ** (len(self.widths) - 1))


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


class SlabDenoiser(nn.Module):
    """Predicts the clean slices in the middle of a window; see the module's docstring."""

    def __init__(self, shape: DenoiserShape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or DenoiserShape()
        widths, embedding = shape.widths, shape.embedding
        self.condition = nn.Sequential(
            nn.Linear(CONDITIONS, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.stem = nn.Conv2d(3 * WINDOW, widths[0], 3, padding=1)

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(_Block(width, embedding) for _ in range(shape.blocks))

        self.down = nn.ModuleList(blocks(w) for w in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.middle = nn.ModuleList(_Block(widths[-1], embedding) for _ in range(shape.blocks + 1))
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(list(itertools.pairwise(widths)))
        )
        self.up = nn.ModuleList(blocks(w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], SLICES, 3, padding=1)
        # An untrained network returns the prior.
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X); see `correction` for the inputs."""
        return self.middle_slices(prior) + self.correction(state, prior, image, conditions)

    @staticmethod
    def middle_slices(window: Tensor) -> Tensor:
        """Return the slices (B, SLICES, Y, X) of a window that are predicted."""
        return window[:, CONTEXT : CONTEXT + SLICES]

    def correction(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        """Return what has to be added to the prior's middle slices.

        Parameters
        ----------
        state, prior, image : (B, WINDOW, Y, X)
            The sampler's state, the INR's slices, the closest projection of each slice. Y and X are
            multiples of `shape.multiple`.
        conditions : (B, CONDITIONS)
            See `microdiffusion.engines.diffusion.conditioning`.

        Returns
        -------
        (B, SLICES, Y, X)
        """
        embedded = self.condition(conditions)
        features = self.stem(torch.cat([state, prior, image], dim=1))
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


def save_denoiser(model: SlabDenoiser, path: Path, notes: dict[str, str]) -> None:
    """Write weights (half precision) and shape to a safetensors file; `notes` go into its metadata."""
    tensors = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata={"shape": json.dumps(asdict(model.shape)), **notes})


def load_denoiser(path: Path) -> SlabDenoiser:
    """Return the network of a safetensors file, float32, in evaluation mode, on the CPU.

    Raises
    ------
    MissingFileError, InputFileError
        No such file; or not the weights of this network.
    """
    if not path.is_file():
        raise MissingFileError(f"Weights {path} do not exist: correct engine.weights or leave it out.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        size = json.loads(metadata["shape"])
        model = SlabDenoiser(DenoiserShape(tuple(size["widths"]), size["blocks"], size["embedding"]))
        model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except Exception as error:
        raise InputFileError(
            f"{path} does not hold weights of this version's denoiser ({error}): "
            "name a file that `mdd train` wrote."
        ) from error
    return model.eval()
