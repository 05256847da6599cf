"""The best rate of this machine, measured: matrix products in a precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from microdiffusion.daemon.bench.timing import seconds_of

_CUDA_SIZES = (4096, 8192)
_REPEATS = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """The machine's best rate (operations per second), for square matrices of this edge and precision."""

    precision: str
    flop_per_s: float
    edge: int


def measure_limits(device: torch.device, dtype: torch.dtype, edges: tuple[int, ...]) -> Limits:
    """Return the limits of a device for products in `dtype`; on CUDA the matrices are larger than `edges`."""
    rates = {}
    for edge in _CUDA_SIZES if device.type == "cuda" else edges:
        product = matrix_product(device, dtype, edge)
        rates[edge] = 2.0 * edge**3 / min(seconds_of(product, device) for _ in range(_REPEATS))
    best = max(rates, key=lambda edge: rates[edge])
    return Limits(str(dtype).removeprefix("torch."), rates[best], best)


def matrix_product(device: torch.device, dtype: torch.dtype, edge: int) -> Callable[[], object]:
    """Return a call that multiplies two matrices of that edge."""
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    out = torch.empty(edge, edge, device=device, dtype=dtype)
    return lambda: torch.mm(left, right, out=out)
