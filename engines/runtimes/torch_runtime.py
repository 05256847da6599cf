"""The denoiser in torch: on the CPU and on CUDA, channels-last, in the best precision of the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microdiffusion.engines.denoiser import SlabDenoiser

if TYPE_CHECKING:
    from torch import Tensor


class TorchRuntime:
    """The denoiser in torch, channels-last, in the best precision of the device."""

    def __init__(self, model: SlabDenoiser, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.device = device
        self.multiple = model.shape.multiple
        self.dtype = dtype or best_dtype(device)
        self.name = f"torch {device} {str(self.dtype).removeprefix('torch.')}"
        model = model.to(device=device, dtype=self.dtype).eval()
        self._model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X) float32."""
        images = (t.to(dtype=self.dtype, memory_format=torch.channels_last) for t in (state, prior, image))
        # The prior is added back in float32: half precision then only rounds the correction.
        result: Tensor = self._model.correction(*images, conditions.to(self.dtype)).float()
        return result + SlabDenoiser.middle_slices(prior)


def best_dtype(device: torch.device) -> torch.dtype:
    """Return the precision in which the device multiplies fastest without loss that shows."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    if not capabilities.startswith("AVX512") and capabilities != "AMX":
        return False
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
