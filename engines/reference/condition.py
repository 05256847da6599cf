"""The conditions of the reference's network: the place of a slice (E_pos), the closest projection (E_img).

The two embeddings are joined into one vector; the vector of zeros stands for "no condition". Runs on the
engine's thread, on any device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 10
POSITION = 32
PROJECTION = 128


def encode_position(z: Tensor) -> Tensor:
    """Return (N, 21) of positions (N,) in [-1, 1]: z, then sin 2^i z and cos 2^i z for i = 0 ... 9."""
    angles = z[:, None] * 2.0 ** torch.arange(LEVELS, device=z.device)
    return torch.cat([z[:, None], torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)], dim=1)


class PositionEmbedding(nn.Module):
    """E_pos: positions (N,) in [-1, 1] to (N, 32)."""

    def __init__(self) -> None:
        super().__init__()
        # Two linear layers in a row, as in the reference.
        self.body = nn.Sequential(
            nn.Linear(2 * LEVELS + 1, POSITION),
            nn.Linear(POSITION, POSITION),
            nn.SiLU(),
            nn.Linear(POSITION, POSITION),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return the embeddings (N, 32) of `z` (N,)."""
        embedded: Tensor = self.body(encode_position(z))
        return embedded


class _Residual(nn.Module):
    """Two 3x3 convolutions with batch normalisation round a shortcut (ResNet's basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


class ProjectionEmbedding(nn.Module):
    """E_img: projections (N, 1, Y, X) to (N, 128), a ResNet-18 without its pooling stem.

    The reference's last layer fits 128 x 128 pixels alone; its pooling to 4 x 4 is made adaptive here, which
    is the same at 128 x 128 and works at any other size.

    Parameters
    ----------
    width : int
        Channels of the first level, 64 in the reference; each of the three next ones doubles it.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        levels: list[nn.Module] = [
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
        for level in range(4):
            for stride in (1 if level == 0 else 2, 1):
                levels.append(_Residual(channels, width << level, stride))
                channels = width << level
        self.body = nn.Sequential(*levels)
        self.head = nn.Linear(16 * channels, PROJECTION)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (N, 128) of `images` (N, 1, Y, X), 16 x 16 pixels at least."""
        embedded: Tensor = self.head(F.adaptive_avg_pool2d(self.body(images), 4).flatten(1))
        return embedded
