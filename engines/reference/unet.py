"""The reference's denoiser: a U-Net with self-attention at every level, full resolution included.

Base 64, multipliers 1 2 2 2, two residual blocks a level, one attention head, group normalisation with 32
groups, dropout 0.1: 10.4 M parameters. Time and condition are added to the features inside every residual
block. Written out here, since no library's U-Net has this arrangement (diffusers' `UNet2DModel` takes one
embedding, not two, and arranges its skips otherwise), and the parameter count is part of the comparison.

Attention over all pixels of a 128 x 128 image is the greater part of the cost; torch's fused attention
keeps its 16,384 x 16,384 weights out of memory. Runs on the engine's thread, on any device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 32
_MULTIPLIERS = (1, 2, 2, 2)  # of the width, one for each level
_BLOCKS = 2  # residual blocks of a level; one more on the way up
MULTIPLE = 8
"""Images' sides are multiples of this: three levels halve them."""


def time_embedding(t: Tensor, size: int) -> Tensor:
    """Return (N, size) sinusoids of the steps `t` (N,), wavelengths from 2π to 2π · 10,000."""
    half = size // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions round a shortcut; time and condition are added between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(_GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.time = nn.Linear(embedding, outputs)
        self.condition = nn.Linear(embedding, outputs)
        self.second = nn.Sequential(
            nn.GroupNorm(_GROUPS, outputs),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, images: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return features (N, outputs, Y, X); `time` and `condition` are (N, embedding)."""
        h = self.first(images)
        added = self.time(F.silu(time)) + self.condition(F.silu(condition))
        result: Tensor = self.second(h + added[:, :, None, None]) + self.shortcut(images)
        return result


class Attention(nn.Module):
    """Self-attention over all pixels of an image, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        """Return features of the same shape (N, C, Y, X)."""
        h = self.norm(images)
        # Contiguous: torch's fused attention wants a pixel's channels side by side.
        query, key, value = (
            layer(h).flatten(2).transpose(1, 2).contiguous()[:, None]
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # (N, 1, Y·X, C)
        result: Tensor = images + self.out(mixed[:, 0].transpose(1, 2).reshape(images.shape))
        return result


class _UNetLevel(nn.Module):
    """A residual block, attention, and a change of resolution where one follows."""

    def __init__(self, block: ResidualBlock, then: nn.Module | None = None) -> None:
        super().__init__()
        self.block = block
        self.attention = Attention(block.second[-1].out_channels)  # type: ignore[arg-type]
        self.then = then or nn.Identity()

    def forward(self, images: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        result: Tensor = self.then(self.attention(self.block(images, time, condition)))
        return result


class UNet(nn.Module):
    """Predicts the noise in an image.

    Parameters
    ----------
    condition : int
        Length of the condition vector.
    width : int
        Channels at full resolution, a multiple of 32.
    """

    def __init__(self, condition: int, *, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.width = width
        embedding = 4 * width

        def mlp(inputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        self.time, self.condition = mlp(width), mlp(condition)
        self.entry = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.ModuleList()
        channels, skips = width, [width]
        last = len(_MULTIPLIERS) - 1
        for level, multiplier in enumerate(_MULTIPLIERS):
            for _ in range(_BLOCKS):
                block = ResidualBlock(channels, multiplier * width, embedding, dropout)
                self.down.append(_UNetLevel(block))
                channels = multiplier * width
                skips.append(channels)
            if level < last:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
        self.middle = _UNetLevel(ResidualBlock(channels, channels, embedding, dropout))
        self.middle_out = ResidualBlock(channels, channels, embedding, dropout)
        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            outputs = _MULTIPLIERS[level] * width
            for number in range(_BLOCKS + 1):
                block = ResidualBlock(channels + skips.pop(), outputs, embedding, dropout)
                then = None
                if level > 0 and number == _BLOCKS:
                    then = nn.Sequential(
                        nn.Upsample(scale_factor=2), nn.Conv2d(outputs, outputs, 3, padding=1)
                    )
                self.up.append(_UNetLevel(block, then))
                channels = outputs
        self.head = nn.Sequential(
            nn.GroupNorm(_GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, 1, 3, padding=1)
        )

    def forward(self, images: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the noise (N, 1, Y, X) in `images` of the same shape.

        Parameters
        ----------
        images : (N, 1, Y, X)
            Sides are multiples of 8.
        t : (N,)
            Steps of the diffusion, 0 ... T - 1.
        condition : (N, C)
        """
        time, embedded = self.time(time_embedding(t, self.width)), self.condition(condition)
        h = self.entry(images)
        skips = [h]
        for layer in self.down:
            h = layer(h, time, embedded) if isinstance(layer, _UNetLevel) else layer(h)
            skips.append(h)
        h = self.middle_out(self.middle(h, time, embedded), time, embedded)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), time, embedded)
        result: Tensor = self.head(h)
        return result
