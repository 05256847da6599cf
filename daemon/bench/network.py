"""The network's share of a volume: the batches that the sampler evaluates, and their cost.

`Listener` stands between sampler and runtime and notes the batches; they are then evaluated outside of the
sampler, by the runtime in use and by `EagerRuntime`, in turns. Costs are counted on shapes alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from microdiffusion.engines.diffusion import Denoiser, Runtime

Shape = tuple[int, ...]
_PRECISIONS = {torch.bfloat16: ("bfloat16", "bf16"), torch.float16: ("float16", "fp16", "f16", "half")}


class EagerRuntime:
    """The denoiser as plain torch code would run it: eager, float32, contiguous tensors, nothing fused."""

    capturable = False

    def __init__(self, model: Denoiser, device: torch.device) -> None:
        self.device = device
        self.multiple = model.multiple
        self.name = f"torch {device} float32, eager"
        self._model = model.to(device=device, dtype=torch.float32, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._model.eval()

    @torch.no_grad()
    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X)."""
        batch = (state, prior, deviation, image, conditions)
        result: Tensor = self._model(*(part.contiguous() for part in batch))
        return result


class Listener:
    """A runtime that notes its calls: the number of batches of each shape, and one batch of each."""

    capturable = False  # a graph would hide the calls

    def __init__(self, runtime: Runtime) -> None:
        self.device, self.name, self.multiple = runtime.device, runtime.name, runtime.multiple
        self._runtime = runtime
        self.heard = NetworkCalls()

    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """Return what the runtime returns."""
        batch = (state, prior, deviation, image, conditions)
        shape = tuple(state.shape)
        self.heard.counts[shape] += 1
        if shape not in self.heard.batches:
            self.heard.batches[shape] = tuple(part.clone() for part in batch)
        return self._runtime(*batch)


@dataclass(slots=True)
class NetworkCalls:
    """The network evaluations of one volume, by the shape (B, WINDOW, Y, X) of the batches."""

    counts: Counter[Shape] = field(default_factory=Counter)
    batches: dict[Shape, tuple[Tensor, ...]] = field(default_factory=dict)

    def on(self, runtime: Runtime) -> dict[Shape, Callable[[], Tensor]]:
        """Return, for each shape, a call of the runtime with the batch that was noted."""
        return {shape: partial(runtime, *batch) for shape, batch in self.batches.items()}

    def total(self, seconds: dict[Shape, float]) -> float:
        """Return the seconds of all evaluations, from those of one batch of each shape."""
        return sum(count * seconds[shape] for shape, count in self.counts.items())


def flop_of(model: Denoiser, calls: NetworkCalls) -> float:
    """Return the floating-point operations of the evaluations, two for each multiplication and addition.

    Counted on shapes: nothing is computed.
    """
    ghost = copy.deepcopy(model).to("meta")
    flop = 0.0
    for shape, count in calls.counts.items():
        batch = [torch.empty(part.shape, device="meta") for part in calls.batches[shape]]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ghost(*batch)
        flop += count * counter.get_total_flops()
    return flop


def precision_of(runtime: Runtime) -> torch.dtype:
    """Return the precision of a runtime's products, by its name."""
    name = runtime.name.lower()
    for dtype, words in _PRECISIONS.items():
        if any(word in name for word in words):
            return dtype
    return torch.float32
