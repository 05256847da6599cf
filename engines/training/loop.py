"""The training loop of the denoiser, and what `mdd train` leaves: weights, card, curves, checkpoint.

AdamW, a cosine over iterations or minutes (whichever ends first), averaged weights (EMA), the network's
products in the fastest precision of the device, validation on volumes that the pool never sees. A resumed
run goes on with the batches that the uninterrupted one would have seen. Under torchrun every process has a
pool and a stream of its own; rank 0 judges, writes and talks. Runs on the main thread of each process.
"""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from microdiffusion.engines.diffusion import SlabDenoiser
from microdiffusion.engines.training import data as scenes
from microdiffusion.engines.training.batches import Stream
from microdiffusion.engines.training.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    start_from,
    write_weights,
)
from microdiffusion.engines.training.curves import Curves
from microdiffusion.engines.training.degrade import Batch
from microdiffusion.engines.training.loss import loss_of
from microdiffusion.engines.training.parallel import Team, team, training_dtype
from microdiffusion.engines.training.plan import TrainingPlan
from microdiffusion.engines.training.report import Outcome, write_card
from microdiffusion.engines.training.sources import Sources, gather
from microdiffusion.engines.training.validation import Table, validate
from microdiffusion.errors import ConfigError, EngineError, MissingFileError
from microdiffusion.files import replacing

__all__ = ["Progress", "TrainingPlan", "train"]

_LOOK_EVERY, _LOOK_EVERY_S = 50, 10.0
"""Iterations and seconds between looks at the losses, whichever is sooner: each look waits for the device."""
_SAY_EVERY = 100
_WARM_UP = 300
_STOP = math.inf


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is: `share` of the whole from 0 to 1, mean loss of the last iterations."""

    iteration: int
    share: float
    loss: float
    seconds: float

    @property
    def seconds_left(self) -> float:
        """Estimate of the seconds to go."""
        return self.seconds * (1 - self.share) / self.share if self.share > 0 else math.inf


class _Step(nn.Module):
    """From a batch to its loss: one module, so that DistributedDataParallel sees the whole step."""

    def __init__(self, model: SlabDenoiser, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self._kind, self._dtype = device.type, dtype

    def forward(self, batch: Batch) -> Tensor:
        with torch.autocast(self._kind, dtype=self._dtype, enabled=self._dtype is not torch.float32):
            change = self.model.correction(batch.state, batch.prior, batch.image, batch.conditions)
        return loss_of(batch, change.float() + SlabDenoiser.middle_slices(batch.prior))


class _Patient(AbstractContextManager["_Patient"]):
    """Turns the first Ctrl-C into a request that the loop looks at between two iterations."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)  # a second one is not patient

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def train(
    plan: TrainingPlan,
    say: Callable[[str], None],
    watch: Callable[[Progress], None] | None = None,
) -> Table:
    """Train, and write weights, card, curves and checkpoint; return the last validation.

    Parameters
    ----------
    say
        Takes lines about what happens.
    watch
        Told how far it is, several times a minute; None: `say` gets a line every hundred iterations.

    Raises
    ------
    UserError
        Data, plan or checkpoint cannot be used; the message says which and why.
    EngineError
        The loss is no longer a number.
    KeyboardInterrupt
        Asked to stop; a checkpoint was written.
    """
    with team(plan.device) as crew:
        quiet: Callable[[str], None] = lambda text: None  # noqa: E731
        run = _Run(plan, crew, say if crew.leads else quiet, watch if crew.leads else None)
        return run.go()


class _Run:
    """One process's part of a training."""

    def __init__(
        self,
        plan: TrainingPlan,
        crew: Team,
        say: Callable[[str], None],
        watch: Callable[[Progress], None] | None,
    ) -> None:
        self._plan, self._crew, self._say, self._watch = plan, crew, say, watch
        self._dtype = training_dtype(crew.device, plan.precision)
        self._check_output()
        self._sources = gather(plan.places, plan.morphologies, held_out=plan.held_out, licence=plan.licence)
        self._identity = plan.identity(self._sources.fingerprint())
        self._curves = Curves()
        self._fresh: list[Tensor] = []
        self._iteration, self._spent, self._said = 0, 0.0, 0
        self._build()

    def _check_output(self) -> None:
        plan = self._plan
        if not plan.output.parent.is_dir():
            raise MissingFileError(
                f"There is no folder {plan.output.parent} for the output: create it first."
            )
        if plan.checkpoint.is_file() and not plan.resume:
            raise ConfigError(
                f"{plan.checkpoint} is the checkpoint of an earlier training: give --resume to go on, "
                "or remove it or name another output to begin anew."
            )

    def _build(self) -> None:
        plan, device = self._plan, self._crew.device
        torch.manual_seed(plan.seed)
        self._model = SlabDenoiser(plan.shape)
        if plan.start is not None:
            start_from(self._model, plan.start)
        self._average = copy.deepcopy(self._model).to(device)
        self._model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimiser = torch.optim.AdamW(
            self._model.parameters(), lr=plan.rate, weight_decay=1e-4, betas=(0.9, 0.98)
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)
        if plan.resume:
            self._restore()
        self._step = self._crew.share(_Step(self._model, device, self._dtype))

    def _restore(self) -> None:
        state = load_checkpoint(self._plan.checkpoint, self._identity)
        self._model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self._iteration, self._spent = state["iteration"], state["seconds"]
        self._curves = Curves.of_json(state["curves"])
        self._say(f"resumed at iteration {self._iteration}")
        if (state["processes"], state["precision"]) != (self._crew.size, str(self._dtype)):
            self._say(
                f"not the same as an uninterrupted run: {state['processes']} process(es) in "
                f"{state['precision']} before, {self._crew.size} in {self._dtype} now"
            )

    def go(self) -> Table:
        """Train to the end of the plan."""
        plan = self._plan
        stream = self._open_stream()
        self._started = time.monotonic() - self._spent
        table: Table = {}
        judged, looked_s = -1, time.monotonic()
        if plan.start is not None and self._iteration == 0:
            self._judge()  # what the weights were worth before
        with _Patient() as patient:
            try:
                while True:
                    # Rank 0 decides for all: clocks and key presses reach each process at another time.
                    share = self._crew.agree(_STOP if patient.asked else self._share())
                    if share >= 1:
                        break
                    self._advance(next(stream), share)
                    if self._iteration % _LOOK_EVERY == 0 or time.monotonic() - looked_s > _LOOK_EVERY_S:
                        self._look()
                        looked_s = time.monotonic()
                    if self._iteration % plan.validate_every == 0:
                        table, judged = self._judge(), self._iteration
                        self._save(table)
            finally:
                stream.close()
            self._look()
            if share == _STOP:
                self._save(table)
                self._say(f"stopped at iteration {self._iteration}: go on with --resume")
                raise KeyboardInterrupt
        if judged != self._iteration:
            table = self._judge()
        self._save(table)
        self._write_card(table)
        self._crew.wait()
        return table

    def _open_stream(self) -> Stream:
        plan, crew = self._plan, self._crew
        used, trees = len(self._sources.used), len(self._sources.trees)
        held = ", ".join(self._sources.held) or "none"
        self._say(f"training on {used} volumes, {trees} trees; held out: {held}")
        begun = time.monotonic()
        pool = _pool(self._sources, plan, crew)
        stream = Stream(
            pool,
            size=plan.batch,
            # One more than the network's and the pool's seed.
            seed=plan.seed + 1,
            rank=crew.rank,
            ring=plan.ring,
            renew_every=plan.renew_every,
            workers=plan.workers,
            first=self._iteration,
            formulation=plan.formulation,
        )
        self._say(f"pool of {len(pool)} cubes ready after {time.monotonic() - begun:.0f} s")
        return stream

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _share(self) -> float:
        return max(self._iteration / self._plan.iterations, self._seconds / (60 * self._plan.minutes))

    def _advance(self, batch: Batch, share: float) -> None:
        warm = min(1.0, (self._iteration + 1) / _WARM_UP)
        for group in self._optimiser.param_groups:
            group["lr"] = self._plan.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        loss: Tensor = self._step(batch.to(self._crew.device))
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimiser)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 0.5)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        decay = min(0.999, (1 + self._iteration) / (10 + self._iteration))
        with torch.no_grad():
            for mean, value in zip(self._average.parameters(), self._model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        self._fresh.append(loss.detach())
        self._iteration += 1

    def _look(self) -> None:
        """Fetch the losses from the device, check them, and tell how far it is."""
        if not self._fresh:
            return
        self._curves.losses += torch.stack(self._fresh).tolist()
        self._fresh.clear()
        recent = self._curves.losses[-_SAY_EVERY:]
        if not math.isfinite(recent[-1]):
            raise EngineError(
                f"The loss is no longer a number at iteration {self._iteration}: lower training.rate "
                f"(now {self._plan.rate:g}) and resume from the last checkpoint."
            )
        mean = float(np.mean(recent))
        if self._watch is not None:
            self._watch(Progress(self._iteration, min(1.0, self._share()), mean, self._seconds))
        elif self._iteration // _SAY_EVERY > self._said:
            self._said = self._iteration // _SAY_EVERY
            self._say(f"iteration {self._iteration}  loss {mean:.5f}  {self._seconds:.0f} s")

    def _judge(self) -> Table:
        if not self._crew.leads or not self._sources.held:
            return {}
        self._look()
        # A copy: the runtime that judges takes the network to the CPU.
        table = validate(copy.deepcopy(self._average), self._sources.held, self._say)
        self._curves.validations.append(
            {"iteration": self._iteration, "seconds": round(self._seconds, 1), "scores": table}
        )
        return table

    def _save(self, table: Table) -> None:
        """Write checkpoint, weights and curves."""
        self._look()
        if not self._crew.leads:
            return
        plan = self._plan
        state = {
            "model": self._model.state_dict(),
            "average": self._average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "iteration": self._iteration,
            "seconds": self._seconds,
            "curves": self._curves.to_json(),
            "processes": self._crew.size,
            "precision": str(self._dtype),
        }
        save_checkpoint(plan.checkpoint, self._identity, state)
        notes = {"iteration": str(self._iteration), "validation": json.dumps(table), "command": plan.command}
        write_weights(self._average, plan.output, notes)
        self._curves.write(plan.output)

    def _write_card(self, table: Table) -> None:
        if not self._crew.leads:
            return
        recent = self._curves.losses[-_SAY_EVERY:]
        outcome = Outcome(
            iterations=self._iteration,
            seconds=self._seconds,
            device=str(self._crew.device),
            precision=str(self._dtype).removeprefix("torch."),
            processes=self._crew.size,
            parameters=sum(parameter.numel() for parameter in self._model.parameters()),
            table=table,
            loss=float(np.mean(recent)) if recent else float("nan"),
        )
        card = self._plan.output.with_suffix(".md")
        with replacing(card) as temporary:
            write_card(temporary, self._plan, self._sources.records, outcome)
        self._say(f"wrote {self._plan.output}, its card {card.name} and its curves")


def _pool(sources: Sources, plan: TrainingPlan, crew: Team) -> Any:
    """Return this process's share of the pool; every process draws other cubes."""
    count = max(1, plan.pool // crew.size)
    seed = plan.seed if crew.size == 1 else [plan.seed, crew.rank]
    return scenes.build_pool(
        sources.used,
        sources.trees,
        sources.graph,
        count=count,
        rng=np.random.default_rng(seed),
        shares=plan.shares,
    )
