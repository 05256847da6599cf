"""The network's share of a volume: what the sampler asks for, what that costs, and in which runtime.

`Listener` stands between sampler and runtime and notes the batches; they are then evaluated outside of the
sampler, by the runtime in use and by `EagerRuntime`, in turns. Costs are counted on shapes alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from microdiffusion.engines.diffusion import SlabDenoiser

if TYPE_CHECKING:
    from collections.abc import Callable

    from microdiffusion.engines.diffusion import Runtime

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class EagerRuntime:
    """The denoiser as plain torch code would run it: eager, float32, contiguous tensors, nothing fused."""

    capturable = False

    def __init__(self, model: SlabDenoiser, device: torch.device) -> None:
        self.device = device
        self.multiple = model.shape.multiple
        self.name = f"torch {device} float32, eager"
        self._model = model.to(device=device, dtype=torch.float32, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._model.eval()

    @torch.no_grad()
    def __call__(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X)."""
        result: Tensor = self._model(
            state.contiguous(), prior.contiguous(), image.contiguous(), conditions.contiguous()
        )
        return result


class Listener:
    """A runtime that notes what it is asked for: the number of batches of each shape, and one of each."""

    capturable = False  # a graph would hide the calls

    def __init__(self, runtime: Runtime) -> None:
        self.device = runtime.device
        self.name = runtime.name
        self.multiple = runtime.multiple
        self._runtime = runtime
        self.asked = Asked()

    def __call__(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        """Return what the runtime returns."""
        shape = tuple(state.shape)
        self.asked.counts[shape] += 1
        if shape not in self.asked.batches:
            self.asked.batches[shape] = (state.clone(), prior.clone(), image.clone(), conditions.clone())
        return self._runtime(state, prior, image, conditions)


@dataclass(slots=True)
class Asked:
    """The network evaluations of one volume, by the shape (B, WINDOW, Y, X) of the batches."""

    counts: Counter[tuple[int, ...]] = field(default_factory=Counter)
    batches: dict[tuple[int, ...], Batch] = field(default_factory=dict)

    def calls(self, runtime: Runtime) -> dict[tuple[int, ...], Callable[[], Tensor]]:
        """Return, for each shape, a call of the runtime with the batch that was noted."""
        return {shape: lambda batch=batch: runtime(*batch) for shape, batch in self.batches.items()}  # type: ignore[misc]

    def total(self, seconds: dict[tuple[int, ...], float]) -> float:
        """Return the seconds of all evaluations, from those of one batch of each shape."""
        return sum(count * seconds[shape] for shape, count in self.counts.items())


@dataclass(frozen=True, slots=True)
class Cost:
    """Arithmetic and traffic of a volume's evaluations.

    Attributes
    ----------
    flop : float
        Floating-point operations: two for each multiplication and addition of convolutions and products.
    layer_values : float
        Numbers that are read and written where each layer reads its input and weights, and writes its output,
        once.
    """

    flop: float
    layer_values: float


def cost_of(model: SlabDenoiser, asked: Asked) -> Cost:
    """Return what the evaluations cost, counted on shapes: nothing is computed."""
    ghost = SlabDenoiser(model.shape).to("meta")
    flop = values = 0.0
    for shape, count in asked.counts.items():
        counted = 0.0

        def count_layer(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal counted
            counted += inputs[0].numel() + output.numel()
            counted += sum(parameter.numel() for parameter in layer.parameters())

        layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        hooks = [
            layer.register_forward_hook(count_layer) for layer in ghost.modules() if isinstance(layer, layers)
        ]
        batch = [torch.empty(part.shape, device="meta") for part in asked.batches[shape]]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ghost(*batch)
        for hook in hooks:
            hook.remove()
        flop += count * counter.get_total_flops()
        values += count * counted
    return Cost(flop, values)


def precision_of(runtime: Runtime) -> torch.dtype:
    """Return the precision of a runtime's products: its `dtype`, or what its name says, or float32."""
    dtype = getattr(runtime, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype
    name = runtime.name.lower()
    for dtype, words in {
        torch.bfloat16: ("bfloat16", "bf16"),
        torch.float16: ("float16", "fp16", "f16", "half"),
    }.items():
        if any(word in name for word in words):
            return dtype
    return torch.float32
