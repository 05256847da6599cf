"""Questions to the system: which processor and packages, a process's memory, the room on a disk.

Without psutil, which would be one more dependency for two numbers. An answer that the system refuses is
None, never an error: these numbers are shown, not relied upon. Safe on any thread.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import microdiffusion
from microdiffusion.text import count_noun

_PACKAGES = (
    "numpy", "scipy", "scikit-image", "h5py", "pyzmq", "torch", "openvino", "onnxruntime", "tensorrt",
    "tensorrt-rtx-cu13-bindings", "pycromanager", "pymmcore",
)  # fmt: skip


def processor_name() -> str:
    """Return the processor's name, without its number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed, by name."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def processor() -> str:
    """Return the processor's name and number of cores, for records of what something was measured on."""
    return f"{processor_name()}, {count_noun(os.cpu_count() or 1, 'core')}"


def disk_free_bytes(path: Path) -> int | None:
    """Return the free bytes of the disk that holds `path`, or its closest folder that exists."""
    path = path.absolute()
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def resident_mb(pid: int | None = None) -> float | None:
    """Return the resident memory of process `pid` (None: the own one) in MB (10^6 bytes).

    macOS answers for the own process only, and with its peak.
    """
    return _resident_mb(pid or os.getpid())


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    class _Counters(ctypes.Structure):
        _fields_ = (
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("WorkingSetSize", ctypes.c_size_t),
            ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
            ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
            ("PagefileUsage", ctypes.c_size_t),
            ("PeakPagefileUsage", ctypes.c_size_t),
        )

    def _resident_mb(pid: int) -> float | None:
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = wintypes.HANDLE
        kernel.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
        kernel.K32GetProcessMemoryInfo.argtypes = (wintypes.HANDLE, ctypes.POINTER(_Counters), wintypes.DWORD)
        kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
        query_limited_information = 0x1000
        handle = kernel.OpenProcess(query_limited_information, False, pid)
        if not handle:
            return None
        try:
            counters = _Counters(cb=ctypes.sizeof(_Counters))
            if not kernel.K32GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.cb):
                return None
            return float(counters.WorkingSetSize / 1e6)
        finally:
            kernel.CloseHandle(handle)

elif sys.platform == "darwin":
    import resource

    def _resident_mb(pid: int) -> float | None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 if pid == os.getpid() else None

else:

    def _resident_mb(pid: int) -> float | None:
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def about() -> dict[str, Any]:
    """Return machine, versions, commit and the time, as JSON can hold them, without what is not installed."""
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    cuda = torch.cuda.is_available()
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "driver": _driver() if cuda else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **package_versions(_PACKAGES),
        "mdd": microdiffusion.__version__,
        "commit": _commit(Path(microdiffusion.__file__).resolve().parent),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _driver() -> str:
    from microdiffusion.engines.runtimes import driver_version

    return driver_version()


def _commit(folder: Path) -> str | None:
    """Return the commit of the checkout that `folder` lies in, from git's files; None elsewhere."""
    git = next((parent / ".git" for parent in folder.parents if (parent / ".git").is_dir()), None)
    # Of a wheel in somebody's environment: another project's checkout may lie around it.
    if git is None or not (git.parent / "api" / "metrics.py").is_file():
        return None
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
