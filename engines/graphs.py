"""CUDA graphs of the update: recorded once for each key and shapes of the inputs, then replayed.

A graph replays hundreds of small kernels without the host's launching each of them. It reads and writes the
same memory every time, so the inputs are copied into buffers of its own and its outputs are good until the
next replay of any graph. The first calls of a key are the caller's to run as usual: rare geometries never
cost a recording, and libraries choose their algorithms before one. All graphs share one pool of memory,
since they never run at the same time. What cannot be recorded is said once in the log, and nothing is
recorded from then on.

Runs on the reconstructor's thread.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("microdiffusion.engines")

Tensors = dict[str, "Tensor"]
Recorder = Callable[[Callable[[], Tensors]], tuple[Callable[[], None], Tensors]]
"""Records what a function queues on the device; returns what replays it, and the outputs it fills."""

_WARM_UP = 2  # calls before one is recorded
_MOST_GRAPHS = 6  # two offsets of alternating sweeps, merged or not, with and without held-out projections
_MOST_KEYS = 64


class CudaRecorder:
    """Records on the current CUDA device."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Return what replays the function's work, and its outputs."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile; that is no fault of the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = function()
        return graph.replay, outputs


@dataclass(slots=True)
class _Graph:
    inputs: Tensors
    replay: Callable[[], None]
    outputs: Tensors


class Graphs:
    """The graphs of one device.

    Parameters
    ----------
    recorder : Recorder
    most : int
        Graphs that are kept; the one that was not used for longest goes.
    """

    def __init__(self, recorder: Recorder | None = None, most: int = _MOST_GRAPHS) -> None:
        self._recorder = recorder or CudaRecorder()
        self._most = most
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._calls: OrderedDict[Hashable, int] = OrderedDict()
        self._refused = False

    def clear(self) -> None:
        """Forget everything: the next calls run something else."""
        self._graphs.clear()
        self._calls.clear()
        self._refused = False

    def __call__(
        self, key: Hashable, function: Callable[[Tensors], Tensors], given: Tensors
    ) -> Tensors | None:
        """Return what `function(given)` returns, replayed; None where the caller has to run it.

        Parameters
        ----------
        key : hashable
            Everything but the inputs' shapes that decides about what the function does.
        function : callable
            Of tensors on the device, by name; asks the host nothing.
        given : dict
            Its inputs.
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
        inputs = {name: tensor.clone() for name, tensor in given.items()}
        try:
            replay, outputs = self._recorder(lambda: function(inputs))
        except (
            Exception
        ) as error:  # whatever CUDA or a runtime says to it: without graphs it is slower, no more
            logger.warning("The update is not recorded as a CUDA graph, it runs step by step: %s", error)
            self._refused = True
            self._graphs.clear()
            return None
        logger.info("The update is recorded as a CUDA graph; %d before it", len(self._graphs))
        return _Graph(inputs, replay, outputs)
