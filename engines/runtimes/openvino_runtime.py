"""The denoiser on a CPU through OpenVINO: what torch computes, with every layer's neighbours fused into it.

Torch passes over memory for each activation, scale and sum; OpenVINO's processor plug-in does them while a
convolution's result is still in registers. The graph is converted from the module once, in a second or so,
and kept beside the built engines. It takes any number of windows of any size; the first few sizes are
compiled for themselves, in a fraction of a second each, which makes them a tenth faster. Bfloat16 where the
processor multiplies it natively, else float32. OpenVINO is imported only when it is wanted; it runs on
threads of its own, as many as torch has.
"""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microdiffusion.engines.diffusion import Correction, Denoiser, middle_slices
from microdiffusion.engines.runtimes.engine_cache import EngineCache, network_key
from microdiffusion.engines.runtimes.onnx_export import input_shapes
from microdiffusion.errors import EngineError

logger = logging.getLogger("microdiffusion.engines")

_MOST_SIZES = 8  # compiled for themselves; each keeps a copy of the weights
_PRECISIONS = {"bf16": "bfloat16", "f32": "float32"}  # OpenVINO's names, torch's


def find_openvino() -> Any | None:
    """Return the module openvino where it can be imported and drives this processor, else None."""
    # Importing OpenVINO reports that to its makers over the network; without this package it reports nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        module = importlib.import_module("openvino")
        return module if "CPU" in module.Core().available_devices else None
    except ModuleNotFoundError:
        return None
    except Exception as error:  # a folder of that name, a library that does not load, a plug-in that is gone
        logger.info("openvino cannot be used: %s", error)
        return None


class OpenVINORuntime:
    """The denoiser on a CPU through OpenVINO; the model is left as it is.

    Parameters
    ----------
    openvino : module
        See `find_openvino`.
    precision : str, optional
        "bf16" or "f32"; by default what the processor does best.
    threads : int, optional
        By default as many as torch has.
    cache : EngineCache, optional
        Where converted graphs are kept.

    Raises
    ------
    EngineError
        OpenVINO refuses the graph.
    """

    capturable = False

    def __init__(
        self,
        model: Denoiser,
        device: torch.device,
        openvino: Any,
        precision: str | None = None,
        threads: int | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        self.device = device
        self.multiple = model.multiple
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
            self._graph = open_graph(core, openvino, model, cache or EngineCache())
            self._any_size = core.compile_model(self._graph, "CPU", self._settings).create_infer_request()
        except RuntimeError as error:
            raise EngineError(f"{self.name} cannot run the denoiser: {error}") from error

    @torch.inference_mode()
    def __call__(
        self, state: Tensor, prior: Tensor, deviation: Tensor, image: Tensor, conditions: Tensor
    ) -> Tensor:
        """Return the clean slices (B, SLICES, Y, X) float32."""
        inputs = [tensor.contiguous().numpy() for tensor in (state, prior, deviation, image, conditions)]
        answer = self._request(state.shape).infer(inputs, share_inputs=True, share_outputs=True)[0]
        # The prior is added in float32, and by that the answer leaves OpenVINO's memory.
        return middle_slices(prior) + torch.from_numpy(answer)

    def _request(self, size: tuple[int, ...]) -> Any:
        """Return what runs windows of this size (B, WINDOW, Y, X)."""
        known = self._sizes.get(size)
        if known is None and len(self._sizes) >= _MOST_SIZES:
            return self._any_size
        if known is None:
            graph = self._graph.clone()
            graph.reshape(dict(enumerate(input_shapes(size[0], *size[2:]).values())))
            known = self._core.compile_model(graph, "CPU", self._settings).create_infer_request()
            self._sizes[size] = known
        return known


def open_graph(core: Any, openvino: Any, model: Denoiser, cache: EngineCache) -> Any:
    """Return the graph of `model.correction`: the kept one, else one that is converted here and kept."""
    version = f"openvino {openvino.__version__}, torch {torch.__version__}"
    key = {**network_key(model, sys.modules[__name__]), "exporter": version, "format": "OpenVINO"}
    kept = cache.load(key)
    if kept is None:
        kept = _convert(openvino, model)
        cache.store(key, kept)
    end = 8 + int.from_bytes(kept[:8], "little")
    return core.read_model(kept[8:end], kept[end:])


def _convert(openvino: Any, model: Denoiser) -> bytes:
    """Return the converted graph: the length of its description in eight bytes, description and weights."""
    sizes = input_shapes(2, 2 * model.multiple, 3 * model.multiple)
    example = {name: torch.zeros(size) for name, size in sizes.items()}
    shapes = {name: list(shape) for name, shape in input_shapes(-1, -1, -1).items()}
    twin = Correction(copy.deepcopy(model).to(device="cpu", dtype=torch.float32)).eval()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of torch's tracer, which OpenVINO calls
        graph = openvino.convert_model(twin, example_input=example, input=shapes)
        path = Path(folder) / "graph.xml"
        openvino.save_model(graph, path, compress_to_fp16=False)
        description, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    return len(description).to_bytes(8, "little") + description + weights
