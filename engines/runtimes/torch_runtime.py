"""The denoiser in torch: on the CPU and on CUDA, channels-last, in the best precision of the device.

On CUDA all that a call does is queued on the current stream, so that a CUDA graph can hold it. torch.compile
gained nothing that was measurable on a CPU; on CUDA TensorRT fuses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microdiffusion.engines.diffusion import Denoiser, middle_slices


class TorchRuntime:
    """The denoiser in torch, channels-last; the model's precision and place are changed.

    Parameters
    ----------
    dtype : torch.dtype, optional
        By default the best of the device.
    """

    def __init__(self, model: Denoiser, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.device = device
        self.multiple = model.multiple
        self.dtype = dtype or best_dtype(device)
        self.capturable = device.type == "cuda"
        self.name = f"torch {device} {str(self.dtype).removeprefix('torch.')}"
        model = model.to(device=device, dtype=self.dtype).eval()
        self._model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X) float32."""
        stacks = (state, prior, deviation, image)
        images = [t.to(dtype=self.dtype, memory_format=torch.channels_last) for t in stacks]
        correction: Tensor = self._model.correction(*images, conditions.to(self.dtype))
        # The prior is added back in float32: half precision then only rounds the correction.
        return correction.float() + middle_slices(prior)


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
