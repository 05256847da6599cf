"""CUDA graphs of the update: recorded once for each key and shapes of the inputs, then replayed.

A graph replays hundreds of small kernels without the host launching each of them. It reads and writes the
same memory every time, so inputs are copied into fixed buffers, and outputs are valid until the next replay
of any graph. Since graphs never run at the same time, buffers of the same name and shape, and everything
between them, are shared: ten graphs take little more memory than one. The caller runs the first calls of a
key as usual: rare geometries never cost a recording, and libraries choose their algorithms before one. Where
recording fails, the log says so once, and nothing is recorded from then on.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("microdiffusion.engines")

Tensors = dict[str, "Tensor"]
Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function queues on the device, and returns what queues it again."""

_WARM_UP = 2  # calls before one is recorded
_MOST_GRAPHS = 26  # thirteen golden offsets, with and without held-out projections
_MOST_KEYS = 64


class CudaRecorder:
    """Records on the current CUDA device; the graphs share a memory pool."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record the function's work; return what replays it."""
        if not self._graphs:
            # The allocator refuses the pool of graphs that are all gone, as after a change of settings.
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # A recording that fails leaves its stream behind as the current one; the outer context undoes that.
        # Other threads may use the device meanwhile, which is no fault of the recording.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            function()
        self._graphs.add(graph)
        return graph.replay


@dataclass(slots=True)
class _Graph:
    inputs: Tensors
    replay: Callable[[], None]
    outputs: Tensors


class Graphs:
    """The graphs of one device; of more than `most` the least recently used one is dropped."""

    def __init__(self, recorder: Recorder | None = None, most: int = _MOST_GRAPHS) -> None:
        self._recorder = recorder or CudaRecorder()
        self._most = most
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._calls: OrderedDict[Hashable, int] = OrderedDict()
        self._buffers: dict[Hashable, Tensor] = {}
        self._refused = False

    def clear(self) -> None:
        """Forget everything."""
        self._graphs.clear()
        self._calls.clear()
        self._buffers.clear()
        self._refused = False

    def __call__(
        self, key: Hashable, function: Callable[[Tensors], Tensors], given: Tensors
    ) -> Tensors | None:
        """Return the replayed result of `function(given)`; None where the caller has to run it.

        `key` holds everything but the inputs' shapes that decides what the function does. The function
        must not synchronise with the host.
        """
        if self._refused:
            return None
        key = (key, tuple((name, tensor.shape, tensor.dtype) for name, tensor in given.items()))
        graph = self._graphs.get(key)
        if graph is None:
            if not self._warm(key):
                return None
            graph = self._record(function, given)
            if graph is None:
                return None
            self._graphs[key] = graph
            while len(self._graphs) > self._most:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        for name, tensor in given.items():
            graph.inputs[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return graph.outputs

    def _warm(self, key: Hashable) -> bool:
        calls = self._calls.pop(key, 0)
        if calls >= _WARM_UP:
            return True
        self._calls[key] = calls + 1
        while len(self._calls) > _MOST_KEYS:
            self._calls.popitem(last=False)
        return False

    def _record(self, function: Callable[[Tensors], Tensors], given: Tensors) -> _Graph | None:
        inputs = {name: self._buffer("given", name, tensor.clone()) for name, tensor in given.items()}
        outputs: Tensors = {}

        def run() -> None:
            for name, tensor in function(inputs).items():
                outputs[name] = self._buffer("found", name, tensor)
                if outputs[name] is not tensor:
                    outputs[name].copy_(tensor)

        try:
            replay = self._recorder(run)
        except Exception as error:  # whatever CUDA or a runtime raises: it only is slower without graphs
            logger.warning("The update is not recorded as a CUDA graph, it runs step by step: %s", error)
            self.clear()
            self._refused = True
            return None
        logger.info("The update is recorded as a CUDA graph; %d before it", len(self._graphs))
        return _Graph(inputs, replay, outputs)

    def _buffer(self, side: str, name: str, tensor: Tensor) -> Tensor:
        """Return the buffer of this name and shape; the tensor itself becomes it where there was none."""
        return self._buffers.setdefault((side, name, tensor.shape, tensor.dtype), tensor)
