"""The reference's neural field: an MLP on Gaussian Fourier features, fitted to the projections of one volume.

    x(z, y, x) = MLP(sin 2πBc, cos 2πBc),  c in [-1, 1]³,  B = bandwidth · randn(256, 3)

Four hidden ReLU layers of 64, the features once more (a skip), four further layers, then 32 and 1: 96.8 k
parameters. The loss is the mean squared difference between projections and projected field.

The features of a voxel are those of its pixel, turned by an angle that depends on its slice alone (angle
sums), so turning the *weights* of the two layers that see features gives one large matrix product per batch
of pixels, (P, 512) x (512, Z·128), and no tensor of 512 numbers per voxel: the same function, faster. A
minibatch takes whole columns: each of its pixels contributes all of its projections.

Runs on the engine's thread, on any device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from microdiffusion.config import ReferenceConfig

DECAYS = 500
"""Decays of the rate in the course of a fit: every 10 of the paper's 5,000 epochs."""
_WIDTH = 64  # of the hidden layers
CHUNK = 1024
"""Pixels that are evaluated together; bounds the memory of a full batch."""


class FourierMlp(nn.Module):
    """The field.

    Parameters
    ----------
    shape : (Z, Y, X)
        Of the volume, with voxels at -1 + 2 i / n along each axis.
    frequencies : int
        Random frequencies; there are twice as many features.
    bandwidth : float
        Standard deviation of the frequencies, in cycles per unit of the coordinates.
    seed : int
        Of frequencies and initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        frequencies: int = 256,
        bandwidth: float = 4.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = shape
        generator = torch.Generator().manual_seed(seed)
        self.frequencies: Tensor
        self.register_buffer("frequencies", bandwidth * torch.randn(frequencies, 3, generator=generator))
        features, width = 2 * frequencies, _WIDTH

        def hidden(inputs: int, outputs: int) -> nn.Linear:
            return seeded(nn.Linear(inputs, outputs), generator)

        self.entry = hidden(features, width)
        self.before = nn.ModuleList(hidden(width, width) for _ in range(3))
        self.skip = hidden(width + features, width)
        self.after = nn.ModuleList(hidden(width, width) for _ in range(3))
        self.narrow = hidden(width, width // 2)
        self.head = hidden(width // 2, 1)
        with torch.no_grad():
            self.head.bias.fill_(0.02)

    def forward(self, z: Tensor, pixels: Tensor) -> Tensor:
        """Return the field (P, K) of P pixels at K slices.

        Parameters
        ----------
        z : (K,) float
            Slice numbers; between slices and beyond the volume too.
        pixels : (P, 2) float
            Row and column.
        """
        slices, rows, columns = self.shape
        size = torch.tensor([rows, columns], device=pixels.device)
        turns = (2 * pixels / size - 1) @ self.frequencies[:, :2].T
        angle = 2 * np.pi * turns
        seen = torch.cat([angle.sin(), angle.cos()], dim=1)  # (P, 2F)
        angle = 2 * np.pi * (2 * z / slices - 1)[:, None] * self.frequencies[:, 2]
        width = self.entry.out_features
        both = torch.cat([self.entry.weight, self.skip.weight[:, width:]])  # (2W, 2F)
        turned = _turned(both, angle)  # (K, 2W, 2F)
        first = (seen @ turned.flatten(0, 1).T).unflatten(1, (z.numel(), 2 * width))
        h = torch.relu(first[..., :width] + self.entry.bias)
        for layer in self.before:
            h = torch.relu(layer(h))
        h = nn.functional.linear(h, self.skip.weight[:, :width], self.skip.bias) + first[..., width:]
        h = torch.relu(h)
        for layer in self.after:
            h = torch.relu(layer(h))
        h = torch.relu(self.narrow(h))
        field: Tensor = self.head(h)
        return field.squeeze(-1)

    @torch.no_grad()
    def volume(self, z: Tensor | None = None) -> Tensor:
        """Return the field at slices `z` (K,) as (K, Y, X) float32; None: at every slice."""
        slices, rows, columns = self.shape
        device = self.frequencies.device
        if z is None:
            z = torch.arange(slices, dtype=torch.float32, device=device)
        everywhere = _pixels(torch.arange(rows * columns, device=device), columns)
        parts = [self(z, part).float().T for part in everywhere.split(CHUNK)]
        return torch.cat(parts, dim=1).reshape(z.numel(), rows, columns)

    def loss(self, operator: Tensor, images: Tensor, chosen: Tensor) -> Tensor:
        """Return the mean squared misfit of the pixels `chosen` (P,), numbers into the rows of an image.

        Parameters
        ----------
        operator : (M, Z) float32
        images : (M, Y, X) float32
        """
        lit = operator.sum(dim=0).nonzero().squeeze(1)  # slices that no slab lights need no evaluation
        field = self(lit.to(operator.dtype), _pixels(chosen, self.shape[2]))
        predicted = field.float() @ operator[:, lit].T  # (P, M)
        misfit: Tensor = (predicted - images.flatten(1)[:, chosen].T).square().mean()
        return misfit


def fit_field(
    field: FourierMlp,
    operator: Tensor,
    images: Tensor,
    config: ReferenceConfig,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """Fit the field to projections (M, Y, X) through the operator (M, Z); return the last update's loss.

    Adam from fresh moments; the field is not reset, so a second fit continues the first.
    """
    pixels = images[0].numel()
    batch = min(config.inr_batch_pixels or pixels, pixels)
    optimiser = torch.optim.Adam(field.parameters(), lr=config.inr_rate)
    generator = torch.Generator().manual_seed(seed)
    device = images.device
    last = 0.0
    with torch.enable_grad():
        for step in range(config.inr_steps):
            for group in optimiser.param_groups:
                group["lr"] = inr_rate(config, step)
            chosen = torch.arange(pixels)
            if batch < pixels:
                chosen = torch.randperm(pixels, generator=generator)[:batch]
            chosen = chosen.to(device)
            optimiser.zero_grad(set_to_none=True)
            last = 0.0
            for part in chosen.split(CHUNK):  # gradients add up: a full batch need not fit into memory
                with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
                    loss = field.loss(operator, images, part) * (part.numel() / chosen.numel())
                loss.backward()
                last += float(loss.detach())
            optimiser.step()
            progress(step + 1, config.inr_steps)
    return last


def inr_rate(config: ReferenceConfig, step: int) -> float:
    """Return the rate of an update (0, 1, ...); the first decay comes before the first update."""
    return float(config.inr_rate * config.inr_decay ** (1 + step * DECAYS // config.inr_steps))


def seeded(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """Draw a linear layer's weights as torch does by default, from a given generator."""
    bound = layer.in_features**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def _turned(weight: Tensor, angle: Tensor) -> Tensor:
    """Return weights (K, W, 2F) that do to a pixel's features what `weight` does to those of its voxels.

    From sin(a + b) = sin a cos b + cos a sin b and cos(a + b) = cos a cos b - sin a sin b, with the angles
    b (K, F) of the slices.
    """
    of_sine, of_cosine = weight.chunk(2, dim=1)
    sine, cosine = angle.sin()[:, None], angle.cos()[:, None]
    return torch.cat([of_sine * cosine - of_cosine * sine, of_sine * sine + of_cosine * cosine], dim=2)


def _pixels(numbers: Tensor, columns: int) -> Tensor:
    """Return row and column (P, 2) float32 of pixels that are numbered row by row."""
    return torch.stack([numbers // columns, numbers % columns], dim=1).float()
