"""Freed memory stays with the process, so that the next volume finds it mapped.

glibc takes tensors beyond 32 MB from the system one by one and gives them back when they are freed: each pass
over a large volume then pays for its pages anew, which took seven times as long as the arithmetic (64 x 512 x
512 on a CPU; smaller volumes lie below that size). What is kept is bounded by what was in use at once.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 1 << 30  # of a block that comes from the heap
_KEPT = (1 << 31) - 1  # at the heap's end: the most that mallopt takes


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed; False where it is not glibc, which is then left as it is.

    For the whole process and from now on; harmless when repeated. CUDA's memory is torch's own matter.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))
