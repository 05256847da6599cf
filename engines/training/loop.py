"""The training loop of the denoiser, and what `mdd train` writes: weights and a model card.

bfloat16 where the processor has it, AdamW, cosine schedule, averaged weights (EMA), validation on volumes
that the pool never sees. Checkpoints are written beside the weights and resumed from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from microdiffusion.engines.denoiser import DenoiserShape, SlabDenoiser, load_denoiser, save_denoiser
from microdiffusion.engines.runtime import best_dtype
from microdiffusion.engines.training import phantoms, scenes
from microdiffusion.engines.training.degrade import Batches, Formulation
from microdiffusion.engines.training.loss import loss_of
from microdiffusion.engines.training.validation import Table, validate


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What is trained on what, and for how long."""

    volumes: Path
    morphologies: Path | None
    output: Path
    held_out: tuple[str, ...] = ()
    shape: DenoiserShape = field(default_factory=DenoiserShape)
    iterations: int = 20_000
    minutes: float = 60.0
    batch: int = 16
    rate: float = 1e-3
    start: Path | None = None
    formulation: Formulation = "bridge"
    pool: int = 1500
    seed: int = 0
    validate_every: int = 1000


def train(plan: TrainingPlan, say: Callable[[str], None]) -> Table:
    """Train, and write `plan.output` (weights), its checkpoint and its log; return the last validation."""
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    everything = scenes.read_volumes(plan.volumes, ())
    held = {name: everything[name] for name in plan.held_out if name in everything}
    used = {name: volume for name, volume in everything.items() if name not in plan.held_out}
    trees, graph = [], None
    if plan.morphologies is not None:
        trees = [phantoms.read_swc(path) for path in sorted(plan.morphologies.glob("*.swc"))]
        graphs = sorted(plan.morphologies.glob("*graph*.h5"))
        graph = phantoms.read_vessel_graph(graphs[0]) if graphs else None
    say(f"training on {len(used)} volumes, {len(trees)} trees; held out: {', '.join(held) or 'none'}")
    pool = scenes.build_pool(used, trees, graph, count=plan.pool, rng=rng)
    batches = Batches(pool, size=plan.batch, seed=plan.seed + 1, formulation=plan.formulation)
    say(f"pool of {len(pool)} cubes ready")

    model = SlabDenoiser(plan.shape)
    if plan.start is not None:
        known = load_denoiser(plan.start)
        # Blocks start as identities, so a deeper network starts with a shallower one's function.
        model.load_state_dict(known.state_dict(), strict=known.shape == plan.shape)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = SlabDenoiser(plan.shape)
    average.load_state_dict(model.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=1e-4, betas=(0.9, 0.98))
    checkpoint = plan.output.with_suffix(".checkpoint.pt")
    first, spent = 0, 0.0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        first, spent = saved["iteration"], saved["seconds"]
        say(f"resumed at iteration {first}")
    half = best_dtype(torch.device("cpu"))
    started = time.monotonic() - spent
    losses: list[float] = []
    table: Table = {}
    iteration = first
    while True:
        progress = max(iteration / plan.iterations, (time.monotonic() - started) / (60 * plan.minutes))
        if progress >= 1:
            break
        warm = min(1.0, (iteration + 1) / 300)
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * warm * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * progress)))
        batch = next(batches)
        with torch.autocast("cpu", dtype=half, enabled=half is not torch.float32):
            change = model.correction(batch.state, batch.prior, batch.image, batch.conditions)
        loss = loss_of(batch, change.float() + model.middle_slices(batch.prior))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        decay = min(0.999, (1 + iteration) / (10 + iteration))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        losses.append(float(loss.detach()))
        iteration += 1
        if iteration % 100 == 0:
            say(
                f"iteration {iteration}  loss {np.mean(losses[-100:]):.5f}  "
                f"{time.monotonic() - started:.0f} s"
            )
        if iteration % plan.validate_every == 0:
            table = validate(average, held, say)
            seconds = time.monotonic() - started
            torch.save(
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "iteration": iteration,
                    "seconds": seconds,
                },
                checkpoint,
            )
            save_denoiser(average, plan.output, {"iteration": str(iteration)})
    table = validate(average, held, say)
    save_denoiser(average, plan.output, {"iteration": str(iteration), "validation": json.dumps(table)})
    plan.output.with_suffix(".loss.json").write_text(json.dumps(losses))
    return table
