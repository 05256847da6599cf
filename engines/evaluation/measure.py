"""Seconds and memory of one call.

Memory is the high-water mark of the process's resident memory above what it held when the call began, read
every few milliseconds on a thread that lives as long as the call; on CUDA, the allocator's own peak besides.
Pages that an earlier call left with the allocator are used again and do not count, so figures of small
volumes are rough.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_INTERVAL_S = 0.005


@dataclass(slots=True)
class Measured:
    """What a call took.

    Attributes
    ----------
    seconds : float
        Wall time; waits for the device.
    memory_mb : float
        Most resident memory above that at its begin, MB; NaN where the system does not tell.
    device_memory_mb : float
        Most that torch's allocator held on the CUDA device, MB; NaN elsewhere.
    """

    seconds: float = float("nan")
    memory_mb: float = float("nan")
    device_memory_mb: float = float("nan")


@contextmanager
def measured(device: torch.device, resident_mb: Callable[[], float | None]) -> Iterator[Measured]:
    """Measure the body; the value is filled when it ends."""
    result = Measured()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    before = resident_mb()
    highest = before or 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(_INTERVAL_S):
            highest = max(highest, resident_mb() or 0.0)

    watcher = threading.Thread(target=watch, name="memory", daemon=True)
    if before is not None:
        watcher.start()
    begun = time.perf_counter()
    try:
        yield result
        if cuda:
            torch.cuda.synchronize(device)
    finally:
        result.seconds = time.perf_counter() - begun
        done.set()
        if before is not None:
            watcher.join()
            result.memory_mb = max(highest, resident_mb() or 0.0) - before
        if cuda:
            result.device_memory_mb = torch.cuda.max_memory_allocated(device) / 1e6
