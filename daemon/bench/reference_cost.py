"""The cost of the reference method for the same volume: parts of it measured, then extrapolated.

Its settings need days per volume on a CPU, so an update of its INR, an update of its denoiser and an
evaluation in its sampler are timed, and multiplied by how many of them its settings ask for. Where even one
image is too much (attention over all pixels grows with their square), a smaller image is timed and scaled by
the floating-point operations of both. On a CPU an evaluation of 128 x 128 pixels took 11.8 times as many
operations as one of 64 x 64, and 12 times as long.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from microdiffusion.config import ReferenceConfig
from microdiffusion.daemon.bench.timing import seconds_of, synchronise
from microdiffusion.engines.reference import (
    POSITION,
    PROJECTION,
    FourierMlp,
    ReferenceMethod,
    UNet,
    fit_field,
    padded_edge,
    steps_needed,
)

_INR_PIXELS = 256
_INR_UPDATES = 2
_CHANNELS = POSITION + PROJECTION
_SMALLEST_EDGE = 32
_TOGETHER = 1 << 16  # pixels that the reference samples together
_UPDATES = 2  # the first one of a training has to make the networks, and does not count
_UPDATE_FLOP = 4.0  # of an update, evaluations that it costs about


@dataclass(frozen=True, slots=True)
class ReferenceParts:
    """The timed parts of one volume, and their scale.

    Attributes
    ----------
    calls : dict
        "inr", "training", "sampling": each does its part and returns the seconds.
    times : dict
        How many times each of these calls would run in the whole method.
    scaled_from : dict
        Texts for the results: the timed part and the whole that it stands for.
    """

    calls: dict[str, Callable[[], float]]
    times: dict[str, float]
    scaled_from: dict[str, str]


def reference_parts(
    config: ReferenceConfig, operator: torch.Tensor, images: torch.Tensor, most_flop: float
) -> ReferenceParts:
    """Return the parts for a sweep's projections (M, Y, X), normalised, and the operator (M, Z)."""
    count, rows, columns = images.shape
    slices = operator.shape[1]
    device = images.device
    whole = steps_needed(config.timesteps, 0, config.interpolation)
    evaluations = slices * (2 if config.guidance > 0 else 1)
    real = _flop(config.width, rows, columns)

    field = FourierMlp((slices, rows, columns), frequencies=config.inr_frequencies).to(device)
    pixels = min(_INR_PIXELS, rows * columns)
    brief = config.model_copy(update={"inr_steps": _INR_UPDATES, "inr_batch_pixels": pixels})
    batch = config.inr_batch_pixels or rows * columns

    trained = _measured_edges(config.width, rows, columns, most_flop / _UPDATE_FLOP / _UPDATES)
    sampled = _measured_edges(config.width, rows, columns, most_flop)
    unet = UNet(_CHANNELS, width=config.width).to(device).eval()
    # A CPU is busy with one image; a GPU is given as many as the method samples together.
    together = min(slices, max(1, _TOGETHER // (rows * columns))) if device.type == "cuda" else 1
    state = torch.randn(together, 1, *sampled, device=device)
    condition = torch.randn(together, _CHANNELS, device=device)
    step = torch.full((together,), 9, device=device)

    def evaluate() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            unet(state, step, condition)

    update_scale, evaluation_scale = (real / _flop(config.width, *edges) for edges in (trained, sampled))
    shown = f"{_shown(sampled, evaluation_scale)}{f', {together} images together' if together > 1 else ''}"
    return ReferenceParts(
        {
            "inr": lambda: seconds_of(lambda: fit_field(field, operator, images, brief), device),
            "training": lambda: _update_seconds(config, images[:1, : trained[0], : trained[1]]),
            "sampling": lambda: seconds_of(evaluate, device) / together,
        },
        {
            "inr": config.inr_steps * batch / (pixels * _INR_UPDATES),
            "training": config.epochs * count * update_scale,
            "sampling": evaluations * whole * evaluation_scale,
        },
        {
            "inr": f"{_INR_UPDATES} updates of {pixels} pixels, for {config.inr_steps} of {batch}",
            "training": f"1 update{_shown(trained, update_scale)}, for {config.epochs} epochs of {count}",
            "sampling": f"1 evaluation{shown}, for {evaluations} images x {whole} steps",
        },
    )


def summary(parts: ReferenceParts, measured: dict[str, float], ours_s: float) -> dict[str, Any]:
    """Return the reference's seconds by stage, and their ratio to ours, as JSON can hold them."""
    seconds = {name: times * measured[name] for name, times in parts.times.items()}
    whole = sum(seconds.values())
    return {
        "ratio_reference": whole / ours_s,
        "reference": {
            "volume_s": whole,
            "stages": seconds,
            "measured_s": measured,
            "compared_with_s": ours_s,
            "scaled_from": parts.scaled_from,
        },
    }


def _update_seconds(config: ReferenceConfig, images: torch.Tensor) -> float:
    """Return the seconds of one update of the denoiser with one projection (1, Y, X)."""
    marks: list[float] = []

    def mark(stage: str, done: int, total: int) -> None:
        synchronise(images.device)
        marks.append(time.perf_counter())

    shape = (2, *images.shape[1:])
    once = config.model_copy(update={"epochs": _UPDATES})
    method = ReferenceMethod(once, shape, images.device, progress=mark)
    # Two slices and hardly any frequencies: here the INR is only what training needs to be there.
    method.field = FourierMlp(shape, frequencies=4).to(images.device)
    method.train(torch.full((1, 2), 0.5, device=images.device), images.contiguous())
    return marks[-1] - marks[-2]


def _shown(edges: tuple[int, int], scale: float) -> str:
    return "" if scale == 1 else f" of {edges[0]} x {edges[1]} pixels, scaled by operations (x{scale:.3g})"


def _measured_edges(width: int, rows: int, columns: int, most_flop: float) -> tuple[int, int]:
    """Return the image that is timed: the real one, or the largest halving of it that costs little enough.

    Its edges are what the network can halve, as the reference's method pads them.
    """
    edges = padded_edge(rows), padded_edge(columns)
    while _flop(width, *edges) > most_flop and min(edges) > _SMALLEST_EDGE:
        edges = padded_edge(edges[0] // 2), padded_edge(edges[1] // 2)
    return edges


@functools.cache
def _flop(width: int, rows: int, columns: int) -> float:
    """Return the operations of one evaluation of the reference's network, counted on shapes."""
    unet = UNet(_CHANNELS, width=width).to("meta").eval()
    image = torch.empty(1, 1, padded_edge(rows), padded_edge(columns), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(image, torch.zeros(1, device="meta"), torch.empty(1, _CHANNELS, device="meta"))
    return float(counter.get_total_flops())
