"""The runtime protocol: evaluates the network on one batch of windows.

Tiling, time steps and consistency belong to the sampler. Half precision is used where the processor
multiplies it natively; inputs and outputs are float32.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Runtime(Protocol):
    """Evaluates the denoiser on one batch.

    Attributes
    ----------
    device : torch.device
    name : str
        Runtime, device and precision, for the dashboard and the run file.
    multiple : int
        Rows and columns have to be a multiple of this.
    capturable : bool
        Whether a CUDA graph can hold a call: all its work is queued on the device's current stream.
    """

    device: torch.device
    name: str
    multiple: int
    capturable: bool

    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """Return the clean slices; shapes as in `Denoiser.forward`, all float32 on `device`."""
        ...
