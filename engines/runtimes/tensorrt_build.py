"""TensorRT, or TensorRT for RTX, which has nearly the same interface: find it, build engines, name them.

The half-precision ONNX graph of `onnx_export` is built strongly typed: the precision of every layer is the
graph's, and the parsed convolutions are checked for it. Building needs a GPU for TensorRT and none for
TensorRT for RTX. TensorRT itself is imported only when it is wanted. Nothing here keeps or runs an engine.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import logging
import platform
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from microdiffusion.engines.diffusion import BATCH_PIXELS, HALO
from microdiffusion.engines.runtimes.onnx_export import INPUTS, input_shapes
from microdiffusion.errors import EngineError

logger = logging.getLogger("microdiffusion.engines")

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
# Windows times pixels of the largest pass: bounds the scratch memory (about 0.3 GB at 32 channels).
_PROFILE_PIXELS = BATCH_PIXELS["cuda"]
_PROFILE_BATCH = 64
# Of TensorRT for RTX: its engines may take memory while they run, which a CUDA graph cannot hold.
_OWN_MEMORY = "REQUIRE_USER_ALLOCATION"

Progress = Callable[[float], None]
"""Told the share (0 to 1) of a build that is done."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes that an engine is built for, each as (windows, edge of the tile in pixels)."""

    smallest: tuple[int, int]
    usual: tuple[int, int]
    largest: tuple[int, int]

    @classmethod
    def of(cls, tile: int, multiple: int) -> Profile:
        """Return the sizes that the sampler asks for with tiles of `tile` pixels."""
        usual = -(-tile // multiple) * multiple
        largest = -(-(usual + 2 * HALO) // multiple) * multiple
        batch = max(1, min(_PROFILE_BATCH, _PROFILE_PIXELS // largest**2))
        return cls((1, multiple), (batch, usual), (batch, largest))

    def holds(self, rows: int, columns: int) -> bool:
        """Return whether a tile of this size can run."""
        return min(rows, columns) >= self.smallest[1] and max(rows, columns) <= self.largest[1]


def find_tensorrt() -> Any | None:
    """Return the first TensorRT module that can be imported and can build engines; None without one."""
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            # OSError: the bindings are there, one of their libraries is not.
            if not isinstance(error, ModuleNotFoundError):
                logger.info("%s cannot be imported: %s", name, error)
            continue
        # A folder of that name on the path imports too.
        if hasattr(module, "Builder") and hasattr(module, "OnnxParser"):
            return module
    return None


def build_engine(
    trt: Any, graph: bytes, profile: Profile, *, progress: Progress = lambda share: None
) -> bytes:
    """Return the serialised engine of an ONNX graph from `onnx_export`.

    `progress` is called from any thread; what it raises ends the build.

    Raises
    ------
    EngineError
        TensorRT refuses the graph, parsed it in another precision, or cannot build it.
    """
    log = trt_logger(trt)
    builder = trt.Builder(log)
    # The only mode since TensorRT 11; before, it has to be asked for.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        reasons = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
        raise EngineError(f"{trt.__name__} {trt.__version__} refused the denoiser's ONNX graph: {reasons}")
    check_precision(trt, network)
    log.last = ""  # without a GPU even a good start complains
    config = builder.create_builder_config()
    own_memory = getattr(trt.BuilderFlag, _OWN_MEMORY, None)
    if own_memory is not None:
        config.set_flag(own_memory)
    shapes = builder.create_optimization_profile()
    sizes = [
        input_shapes(batch, edge, edge) for batch, edge in (profile.smallest, profile.usual, profile.largest)
    ]
    for name in INPUTS:
        shapes.set_shape(name, *(size[name] for size in sizes))
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"{trt.__name__} {trt.__version__} refused the sizes {profile}. {log.last}")
    monitor = config.progress_monitor = _monitor(trt, progress)
    engine = builder.build_serialized_network(network, config)
    if monitor.failure is not None:
        raise monitor.failure
    if engine is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} could not build the denoiser. {log.last}")
    return bytes(engine)


def check_precision(trt: Any, network: Any) -> None:
    """Check that all convolutions of a parsed network compute in half precision.

    Raises
    ------
    EngineError
        One does not, or there is none.
    """
    wanted, found = trt.DataType.HALF, 0
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type not in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION):
            continue
        found += 1
        types = {layer.get_input(0).dtype, layer.get_output(0).dtype}
        if types != {wanted}:
            names = ", ".join(sorted(type_.name for type_ in types))
            raise EngineError(f"Expected convolutions in HALF, but {layer.name} was parsed as {names}.")
    if not found:
        raise EngineError("Expected convolutions in the denoiser's graph, but TensorRT parsed none.")


def cache_key(trt: Any, graph: bytes, profile: Profile, gpu: str, driver: str) -> dict[str, str]:
    """Return everything that an engine depends on."""
    return {
        "graph": hashlib.sha256(graph).hexdigest(),
        "tensorrt": f"{trt.__name__} {trt.__version__}",
        "machine": platform.node(),
        "gpu": gpu,
        "driver": driver,
        "shapes": str((profile.smallest, profile.usual, profile.largest)),
        "precision": "float16",
        "flags": _OWN_MEMORY,
    }


def driver_version() -> str:
    """Return the version of the NVIDIA driver; "unknown" where its management library is absent."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() != 0:
            return "unknown"
        failed = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return "unknown"
    return "unknown" if failed else text.value.decode()


def gpu_name(device: torch.device) -> str:
    """Return what an engine takes for the same GPU: its name and compute capability."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"


def trt_logger(trt: Any) -> Any:
    """Return a TensorRT logger that writes to Python's, and keeps the last error for our own messages."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last = message.strip()
            # Never louder: it knows of no dashboard, and what matters comes back as an exception.
            if severity != trt.ILogger.VERBOSE:
                logger.debug("%s: %s", trt.__name__, message)

    return Log()


def _monitor(trt: Any, progress: Progress) -> Any:
    """Return a TensorRT progress monitor that tells `progress` the share of the whole build."""

    class BuildMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._phases = Phases()
            self._lock = threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._phases.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                share = self._phases.step(name, step)
                try:
                    if self.failure is None:
                        progress(share)
                except BaseException as error:  # must not pass through C++; raised when the build has ended
                    self.failure = error
                return self.failure is None

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._phases.finish(name)

    return BuildMonitor()


class Phases:
    """The share of a build that is done, from TensorRT's nested phases."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}  # phase to its parent, steps, steps done
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of `steps` steps, as a step of `parent`."""
        self._open[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, step: int) -> float:
        """Finish step number `step`, from 0, of a phase; return the share of the whole, 0 to 1."""
        if name in self._open:
            parent, steps, _ = self._open[name]
            self._open[name] = (parent, steps, min(step + 1, steps))
            tops = [phase for phase, (above, _, _) in self._open.items() if above not in self._open]
            # Where a new phase begins while its parent counts it as begun, the share must not fall back.
            self._share = max(self._share, min(self._of(tops[0]), 1.0))
        return self._share

    def finish(self, name: str) -> None:
        """End a phase."""
        self._open.pop(name, None)

    def _of(self, phase: str) -> float:
        _, steps, done = self._open[phase]
        within = sum(self._of(name) for name, (above, _, _) in self._open.items() if above == phase)
        return min(done + within, steps) / steps
