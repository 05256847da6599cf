"""Measures what a volume costs on this machine."""

from microdiffusion.daemon.bench.measure import Bench
from microdiffusion.daemon.bench.report import tables
from microdiffusion.daemon.bench.settings import CPU_SIZES, CUDA_SIZES, QUICK, BenchSettings, size_name

__all__ = [
    "CPU_SIZES",
    "CUDA_SIZES",
    "QUICK",
    "Bench",
    "BenchSettings",
    "size_name",
    "tables",
]
