"""What this machine can do at best, measured: matrix products in a precision, and copying memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from microdiffusion.daemon.bench.timing import seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable

_COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}  # far beyond any cache
_CUDA_SIZES = (4096, 8192)
_REPEATS = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """The machine's best.

    Attributes
    ----------
    precision : str
    flop_per_s : float
        Of the product of two square matrices.
    edge : int
        Of those matrices: the best of several.
    copy_bytes_per_s : float
        Bytes read plus bytes written while a large array is copied from memory to memory.
    """

    precision: str
    flop_per_s: float
    edge: int
    copy_bytes_per_s: float


def measure_limits(device: torch.device, dtype: torch.dtype, edges: tuple[int, ...]) -> Limits:
    """Return the limits of a device for products in `dtype`; on CUDA the matrices are larger than `edges`."""
    edges = _CUDA_SIZES if device.type == "cuda" else edges
    rates = {}
    for edge in edges:
        product = matrix_product(device, dtype, edge)
        rates[edge] = 2.0 * edge**3 / min(seconds_of(product, device) for _ in range(_REPEATS))
    best = max(rates, key=lambda edge: rates[edge])
    source = torch.ones(_COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copying = min(seconds_of(lambda: target.copy_(source), device) for _ in range(_REPEATS))
    moved = 2 * source.numel() * source.element_size()
    return Limits(str(dtype).removeprefix("torch."), rates[best], best, moved / copying)


def matrix_product(device: torch.device, dtype: torch.dtype, edge: int) -> Callable[[], object]:
    """Return a call that multiplies two matrices of that edge."""
    left = torch.randn(edge, edge, device=device).to(dtype)
    right = torch.randn(edge, edge, device=device).to(dtype)
    out = torch.empty(edge, edge, device=device, dtype=dtype)
    return lambda: torch.mm(left, right, out=out)
