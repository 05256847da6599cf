"""The denoiser on a CPU through OpenVINO: what torch computes, with every layer's neighbours fused into it.

Torch passes over memory for each activation, scale and sum; OpenVINO's processor plug-in does them while a
convolution's result is still in registers. The graph is built from the weights directly (nothing is
exported, no file is written). It takes any number of windows of any size; the first few sizes are compiled
for themselves, in a fraction of a second each, which makes them a tenth faster. Bfloat16 where the processor
multiplies it natively, else float32. OpenVINO is imported only when it is wanted; it runs on threads of its
own, as many as torch has.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

import torch

from microdiffusion.engines.diffusion import CONDITIONS, WINDOW, SlabDenoiser
from microdiffusion.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from microdiffusion.engines.diffusion import _Block

logger = logging.getLogger("microdiffusion.engines")

_MOST_SIZES = 8  # compiled for themselves; each keeps a copy of the weights
_PRECISIONS = {"bf16": "bfloat16", "f32": "float32"}  # OpenVINO's names, torch's


def find_openvino() -> Any | None:
    """Return the module openvino where it can be imported and drives this processor; None without it."""
    try:
        module = importlib.import_module("openvino")
        importlib.import_module("openvino.opset14")
        return module if "CPU" in module.Core().available_devices else None
    except ModuleNotFoundError:
        return None
    except Exception as error:  # a folder of that name, a library that does not load, a plug-in that is gone
        logger.info("openvino cannot be used: %s", error)
        return None


class OpenVINORuntime:
    """The denoiser on a CPU through OpenVINO.

    Parameters
    ----------
    model : SlabDenoiser
        Left as it is.
    device : torch.device
        The CPU.
    openvino : module
        See `find_openvino`.
    precision : str, optional
        "bf16" or "f32"; what the processor does best where it is not given.
    threads : int, optional
        As many as torch has where it is not given.

    Raises
    ------
    EngineError
        OpenVINO refuses the graph.
    """

    capturable = False

    def __init__(
        self,
        model: SlabDenoiser,
        device: torch.device,
        openvino: Any,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.device = device
        self.multiple = model.shape.multiple
        core = self._core = openvino.Core()
        if precision is None:
            precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
        version = openvino.__version__.partition("-")[0]
        self.name = f"openvino {version} cpu {_PRECISIONS[precision]}"
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            # Pinned threads wait for a core that the acquisition may be using.
            "ENABLE_CPU_PINNING": False,
        }
        self._sizes: dict[tuple[int, ...], Any] = {}
        try:
            self._graph = _Graph(openvino).correction(model)
            self._any_size = core.compile_model(self._graph, "CPU", self._settings).create_infer_request()
        except RuntimeError as error:
            raise EngineError(f"{self.name} cannot run the denoiser: {error}") from error

    @torch.inference_mode()
    def __call__(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X) float32."""
        inputs = [tensor.contiguous().numpy() for tensor in (state, prior, image, conditions)]
        answer = self._request(state.shape).infer(inputs, share_inputs=True, share_outputs=True)[0]
        # The prior is added in float32, and by that the answer leaves OpenVINO's memory.
        return SlabDenoiser.middle_slices(prior) + torch.from_numpy(answer)

    def _request(self, size: tuple[int, ...]) -> Any:
        """Return what runs windows of this size (B, WINDOW, Y, X)."""
        known = self._sizes.get(size)
        if known is None and len(self._sizes) >= _MOST_SIZES:
            return self._any_size
        if known is None:
            graph = self._graph.clone()
            graph.reshape({0: size, 1: size, 2: size, 3: (size[0], CONDITIONS)})
            known = self._core.compile_model(graph, "CPU", self._settings).create_infer_request()
            self._sizes[size] = known
        return known


class _Graph:
    """Writes `SlabDenoiser.correction` in OpenVINO's operations."""

    def __init__(self, openvino: Any) -> None:
        self._openvino = openvino
        self._ops: Any = importlib.import_module("openvino.opset14")

    def correction(self, model: SlabDenoiser) -> Any:
        ops = self._ops
        stacks = [ops.parameter([-1, WINDOW, -1, -1], name=name) for name in ("state", "prior", "image")]
        conditions = ops.parameter([-1, CONDITIONS], name="conditions")
        first, _, second, _ = model.condition
        embedded = ops.swish(self._linear(conditions, first))  # type: ignore[arg-type]
        embedded = ops.swish(self._linear(embedded, second))  # type: ignore[arg-type]
        features = self._convolution(ops.concat(stacks, 1), model.stem)
        skips = []
        for stage, shrink in zip(model.down, model.shrink, strict=True):
            for block in stage:  # type: ignore[attr-defined]
                features = self._block(features, embedded, block)
            skips.append(features)
            features = self._convolution(features, shrink)  # type: ignore[arg-type]
        for block in model.middle:
            features = self._block(features, embedded, block)  # type: ignore[arg-type]
        for grow, stage in zip(model.grow, model.up, strict=True):
            features = ops.add(self._transposed(features, grow), skips.pop())  # type: ignore[arg-type]
            for block in stage:  # type: ignore[attr-defined]
                features = self._block(features, embedded, block)
        change = self._convolution(ops.swish(features), model.head)
        return self._openvino.Model([change], [*stacks, conditions], "correction")

    def _block(self, features: Any, embedded: Any, block: _Block) -> Any:
        ops = self._ops
        scale, shift = block.film.weight.chunk(2)
        scale_bias, shift_bias = block.film.bias.chunk(2)
        hidden = self._convolution(ops.swish(features), block.first)
        hidden = ops.multiply(hidden, self._across(self._product(embedded, scale, 1 + scale_bias)))
        hidden = ops.add(hidden, self._across(self._product(embedded, shift, shift_bias)))
        return ops.add(features, self._convolution(ops.swish(hidden), block.second))

    def _convolution(self, features: Any, layer: nn.Conv2d) -> Any:
        pad = list(layer.padding)
        stride = list(layer.stride)
        result = self._ops.convolution(features, self._constant(layer.weight), stride, pad, pad, [1, 1])
        return self._add_bias(result, layer.bias)

    def _transposed(self, features: Any, layer: nn.ConvTranspose2d) -> Any:
        weight = self._constant(layer.weight)
        result = self._ops.convolution_backprop_data(features, weight, strides=list(layer.stride))
        return self._add_bias(result, layer.bias)

    def _add_bias(self, features: Any, bias: Tensor | None) -> Any:
        return (
            features if bias is None else self._ops.add(features, self._constant(bias[None, :, None, None]))
        )

    def _linear(self, numbers: Any, layer: nn.Linear) -> Any:
        return self._product(numbers, layer.weight, layer.bias)

    def _product(self, numbers: Any, weight: Tensor, bias: Tensor) -> Any:
        product = self._ops.matmul(numbers, self._constant(weight), False, True)
        return self._ops.add(product, self._constant(bias[None]))

    def _across(self, numbers: Any) -> Any:
        """Return numbers (B, C) as (B, C, 1, 1)."""
        return self._ops.unsqueeze(numbers, self._constant(torch.tensor([2, 3])))

    def _constant(self, tensor: Tensor) -> Any:
        array: NDArray[np.generic] = tensor.detach().cpu().contiguous().numpy()
        return self._ops.constant(array.copy())  # it outlives the weights
