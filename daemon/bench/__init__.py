"""Measures what a volume costs on this machine."""

from microdiffusion.daemon.bench.growth import all_growth
from microdiffusion.daemon.bench.measure import Bench
from microdiffusion.daemon.bench.settings import CPU_SIZES, CUDA_SIZES, BenchSettings, Size, size_name

__all__ = ["CPU_SIZES", "CUDA_SIZES", "Bench", "BenchSettings", "Size", "all_growth", "size_name"]
