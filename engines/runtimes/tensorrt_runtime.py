"""The denoiser on TensorRT, or on TensorRT for RTX, which has nearly the same interface.

Runs an engine that `tensorrt_build` built; who built, kept and checked it is `tensorrt_open`'s affair.

Runs on the engine's thread. The engine works on a stream of its own that waits for torch's and is waited
for, so callers need not know of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microdiffusion.engines.denoiser import SLICES, SlabDenoiser
from microdiffusion.engines.runtimes.onnx_export import INPUTS, OUTPUT
from microdiffusion.engines.runtimes.tensorrt_build import trt_logger
from microdiffusion.errors import EngineError

if TYPE_CHECKING:
    from microdiffusion.engines.runtimes.tensorrt_build import Profile


class TensorRTRuntime:
    """The denoiser on a CUDA device through TensorRT, in half precision.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    multiple : int
        Rows and columns have to be a multiple of this.
    profile : Profile
        What the engine was built for: larger batches are cut, larger tiles are refused.
    trt : module
        See `find_tensorrt`.
    engine : bytes
        What `build_engine` returned.

    Raises
    ------
    EngineError
        This TensorRT or GPU does not accept the engine.
    """

    def __init__(
        self, device: torch.device, multiple: int, profile: Profile, trt: Any, engine: bytes
    ) -> None:
        self.device = device
        self.multiple = multiple
        self.name = f"{trt.__name__} {trt.__version__} {device} float16"
        self.profile = profile
        self._log = trt_logger(trt)
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)
            self._runtime = trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            self._context: Any = None if self._engine is None else self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{self.name} does not accept the engine. {self._log.last}")

    @torch.inference_mode()
    def __call__(self, state: Tensor, prior: Tensor, image: Tensor, conditions: Tensor) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X) float32.

        Raises
        ------
        EngineError
            The tile is larger than the engine was built for, or TensorRT failed.
        """
        rows, columns = state.shape[2:]
        if not self.profile.holds(rows, columns):
            raise EngineError(
                f"The engine was built for tiles of {self.profile.smallest[1]} to "
                f"{self.profile.largest[1]} pixels, got {rows} x {columns}: "
                "use the engine.tile it was opened with."
            )
        size = self.profile.largest[0]
        inputs = zip(*(t.half().split(size) for t in (state, prior, image, conditions)), strict=True)
        correction = torch.cat([self._correction(*part) for part in inputs])
        # The prior is added back in float32: half precision then only rounds the correction.
        return correction.float() + SlabDenoiser.middle_slices(prior)

    def _correction(self, *inputs: Tensor) -> Tensor:
        batch, _, rows, columns = inputs[0].shape
        output = torch.empty(batch, SLICES, rows, columns, dtype=torch.float16, device=self.device)
        # TensorRT reads plain row-major memory; the names stay bound until the work is queued and waited for.
        tensors = [tensor.contiguous() for tensor in inputs]
        for name, tensor in zip(INPUTS, tensors, strict=True):
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise EngineError(f"TensorRT refused {name} {tuple(tensor.shape)}. {self._log.last}")
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.set_tensor_address(OUTPUT, output.data_ptr())
        # On torch's default stream TensorRT would synchronise the device with every call.
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.device(self.device):
            done = self._context.execute_async_v3(self._stream.cuda_stream)
        # Torch reuses freed memory in the order of its own stream, which from here on waits for the engine.
        current.wait_stream(self._stream)
        if not done:
            raise EngineError(f"TensorRT failed to run the denoiser. {self._log.last}")
        return output
