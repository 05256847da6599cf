"""The settings of a bench: which sizes, and how thoroughly."""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int, int]

CPU_SIZES: tuple[Size, ...] = ((64, 128, 128),)
CUDA_SIZES: tuple[Size, ...] = ((130, 128, 128), (64, 256, 256), (64, 512, 512))
WARM_UP = 3
"""Volumes after the cold one that are not counted: every geometry of a session has occurred by then."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Thoroughness of a bench; `QUICK` takes a quarter of a minute on two cores.

    Attributes
    ----------
    evaluations : tuple of int
        Network evaluations per volume; the main figures are measured with the first.
    volumes : int
        Warm volumes of each figure.
    rounds : int
        How often things that are compared take turns.
    seed : int
        Of the specimen.
    reference_flop : float
        Most operations that one measured part of the reference may cost on a CPU; where its real image costs
        more, a smaller one is measured and scaled.
    matrix_sizes : tuple of int
        Edges of the square matrices whose product is timed.
    """

    evaluations: tuple[int, ...] = (1, 4)
    volumes: int = 8
    rounds: int = 5
    seed: int = 1
    reference_flop: float = 1e12
    matrix_sizes: tuple[int, ...] = (512, 1024, 2048)


QUICK = BenchSettings(evaluations=(1,), volumes=4, rounds=3, reference_flop=3e11, matrix_sizes=(512, 1024))


def size_name(size: Size) -> str:
    """Return a size as the command line and the JSON write it, such as 64x128x128."""
    return "x".join(map(str, size))
