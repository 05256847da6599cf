"""The denoiser in torch: on the CPU and on CUDA, channels-last, in the best precision of the device.

On CUDA all that a call does is queued on the current stream, so that a CUDA graph can hold it. torch.compile
fuses scales, shifts and activations there; on a CPU it gained nothing that was measurable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from microdiffusion.engines.diffusion import Denoiser, middle_slices

logger = logging.getLogger("microdiffusion.engines")


class TorchRuntime:
    """The denoiser in torch, channels-last; the model's precision and place are changed.

    Parameters
    ----------
    dtype : torch.dtype, optional
        By default the best of the device.
    fused : bool
        Let torch.compile fuse the network on CUDA: tens of seconds for each size of a batch at its first
        use. Where it does not work the network runs without, which the log says once.
    """

    def __init__(
        self,
        model: Denoiser,
        device: torch.device,
        dtype: torch.dtype | None = None,
        *,
        fused: bool = False,
    ) -> None:
        self.device = device
        self.multiple = model.multiple
        self.dtype = dtype or best_dtype(device)
        self.capturable = device.type == "cuda"
        self.name = f"torch {device} {str(self.dtype).removeprefix('torch.')}"
        model = model.to(device=device, dtype=self.dtype).eval()
        self._model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._fused: Callable[..., Tensor] | None = None
        if fused and device.type == "cuda":
            self._fused = torch.compile(self._model.correction, dynamic=False)

    @torch.inference_mode()
    def __call__(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X) float32."""
        images = [t.to(dtype=self.dtype, memory_format=torch.channels_last) for t in (state, prior, image)]
        correction = self._correction(*images, conditions.to(self.dtype))
        # The prior is added back in float32: half precision then only rounds the correction.
        return correction.float() + middle_slices(prior)

    def _correction(self, *inputs: Tensor) -> Tensor:
        if self._fused is not None:
            try:
                return self._fused(*inputs)
            except Exception as error:  # no compiler, no Triton, a driver that is too old: it says why
                logger.warning("torch.compile does not work here, the network runs unfused: %s", error)
                self._fused = None
        result: Tensor = self._model.correction(*inputs)
        return result


def best_dtype(device: torch.device) -> torch.dtype:
    """Return the precision in which the device multiplies fastest without visible loss."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    if not capabilities.startswith("AVX512") and capabilities != "AMX":
        return False
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
