"""A small denoiser in which every input matters, and its exported graphs, made once per test run."""

from __future__ import annotations

import functools

import torch

from microdiffusion.engines.diffusion.denoiser import Denoiser, SlabUNet
from microdiffusion.engines.runtimes.onnx_export import export_onnx, input_shapes


@functools.cache
def small_denoiser() -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SlabUNet(widths=(16, 24), embedding=32)
        # A fresh network's last layers are zero, and a graph without them would pass for right.
        for name, value in model.named_parameters():
            if any(part in name for part in ("second", "film", "head")):
                torch.nn.init.normal_(value, std=0.1)
    return model.eval()


@functools.cache
def small_graph(dtype: torch.dtype) -> bytes:
    return export_onnx(small_denoiser(), dtype)


def some_inputs(batch: int, rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch * rows + columns)
    state, prior, deviation, image, conditions = (
        torch.rand(shape, generator=generator) for shape in input_shapes(batch, rows, columns).values()
    )
    return state, prior, 10 ** (2 * deviation - 3), image, 2 * conditions - 1


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())
