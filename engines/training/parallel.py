"""The processes of one training: alone, or a team under torchrun.

`torchrun --nproc-per-node 4 -m microdiffusion.daemon.cli train ...` sets WORLD_SIZE, RANK and LOCAL_RANK;
where WORLD_SIZE is above 1 the team is joined (nccl on CUDA, gloo on CPUs), gradients are averaged by
DistributedDataParallel, and the process of rank 0 alone validates, writes and reports. Whatever every process
has to do alike (when to stop) is decided by rank 0 and broadcast. A team takes the steps that one process
would take: the work on a batch and on the groups that it is drawn from is divided, their contents are not.

The CUDA path (nccl, half precision with a scaler) is complete but has not been run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from microdiffusion.engines.pipeline import pick_device
from microdiffusion.engines.runtimes import best_dtype
from microdiffusion.errors import ConfigError

T = TypeVar("T")
_TIMEOUT = timedelta(hours=2)
"""Longest wait of the others while rank 0 validates."""


@dataclass(frozen=True, slots=True)
class Team:
    """Place of this process: its device, its rank, and the number of processes."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """True where this process validates, writes and reports."""
        return self.rank == 0

    def share(self, step: nn.Module) -> nn.Module:
        """Return `step` with its gradients averaged over the team."""
        return step if self.size == 1 else DistributedDataParallel(step)

    def agree(self, value: float) -> float:
        """Return rank 0's value."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, src=0)
        return float(tensor)

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, in the order of their ranks; on CUDA through the device."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def wait(self) -> None:
        """Wait for all the others."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def team(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started, if it did; give this one's place.

    Parameters
    ----------
    device
        auto, cpu, cuda or cuda:N; under torchrun every process takes the CUDA device of its local rank.

    Raises
    ------
    ConfigError
        The device does not exist.
    """
    place, _ = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team(place)
        return
    if place.type == "cuda":
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise ConfigError(
                f"Process {local} of this machine has no CUDA device to itself ({devices} found): start "
                "fewer processes, or set training.device to cpu."
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Team(place, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def training_dtype(device: torch.device, precision: str) -> torch.dtype:
    """Return the precision of the network's products while training.

    "auto": bfloat16 where the device multiplies it natively, else float16 on CUDA (with a gradient
    scaler), else float32.

    Raises
    ------
    ConfigError
        float16 on a CPU, where gradients would vanish without any gain in speed.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return best_dtype(device)
    if precision == "float16" and device.type == "cpu":
        raise ConfigError(
            "training.precision is float16, which a CPU does not train in: set bfloat16 or auto."
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
