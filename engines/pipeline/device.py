"""Host and device: transfers, streams, stage timing, and settings of the whole process.

On CUDA images travel through pinned memory, which the device reads and writes by itself, and stages are
timed by events in its stream; the host waits once, for the volume. On a CPU there is nothing to wait for, and
freed memory stays with the process: glibc takes tensors beyond 32 MB from the system one by one and gives
them back when they are freed, and each pass over a large volume then pays for its pages again, which took
seven times as long as the arithmetic (64 x 512 x 512). What is kept is bounded by what was in use at once.
Used by one thread at a time.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 1 << 30  # of a block that comes from the heap
_KEPT = (1 << 31) - 1  # at the heap's end: the most that mallopt takes


def upload(array: NDArray[np.float32], device: torch.device) -> Tensor:
    """Return an array as a tensor on the device; on a CPU they share memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def download(tensor: Tensor) -> NDArray[np.float32]:
    """Return a tensor as an array on the host; waits for the device."""
    host = tensor
    if tensor.device.type == "cuda":
        # Torch reuses pinned memory once the array is gone: only the first ones cost.
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        done.synchronize()
    array: NDArray[np.float32] = host.numpy()
    return array


def own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream to work on, None on a CPU.

    On the default stream, which waits for all others, nothing can be recorded, and TensorRT synchronises the
    device with every call.
    """
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def on_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """Return a context that works on the stream, after everything queued on the current one."""
    if stream is None:
        return nullcontext()
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    return torch.cuda.stream(stream)


def settle(device: torch.device) -> None:
    """Set how torch computes on the device, for the whole process."""
    if device.type == "cuda":
        # A run has a few shapes for hours: finding the library's fastest algorithms is worth it.
        torch.backends.cudnn.benchmark = True
        # TF32 keeps 10 bits, fewer than a camera's: noise and consistency need all of float32. The network is
        # in half precision anyway.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory, in the whole process; return False where the C library is another one."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS and musl have none, Windows names no library by None
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))


class Clock:
    """Seconds of each stage of one sweep; on CUDA those of the stream, waiting for the host included."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._started = self._last = time.perf_counter()
        if self._cuda:
            self._mark("")

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        if self._cuda:
            self._mark(stage)
            return
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Return the seconds of all stages, and "total"; waits for the device."""
        if self._cuda:
            self._events[-1][1].synchronize()
            for (_, before), (stage, event) in zip(self._events, self._events[1:], strict=False):
                spent = before.elapsed_time(event) / 1e3
                self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
            del self._events[:-1]
        return {**self._seconds, "total": time.perf_counter() - self._started}

    def _mark(self, stage: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((stage, event))
