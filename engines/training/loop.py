"""The training loop of the denoiser, which writes weights, model card, curves and checkpoint.

AdamW, a cosine over iterations or minutes (whichever ends first), averaged weights (EMA), the network's
products in the fastest precision of the device, validation on volumes that the pool never sees. A resumed
run continues with the batches that the uninterrupted one would have seen. Under torchrun the processes share
the batches of one; rank 0 validates, writes and reports. Runs on the main thread of each process.
"""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor

from microdiffusion.config import TrainingConfig
from microdiffusion.engines.diffusion import Denoiser, SlabUNet, load_denoiser, shipped_weights
from microdiffusion.engines.training.batches import Batches, cubes_of
from microdiffusion.engines.training.checkpoint import (
    identity,
    load_checkpoint,
    save_checkpoint,
    start_from,
    write_weights,
)
from microdiffusion.engines.training.data import build_pool, gather
from microdiffusion.engines.training.learner import Learner
from microdiffusion.engines.training.parallel import Team, team, training_dtype
from microdiffusion.engines.training.report import Curves, Outcome, against_shipped, write_card
from microdiffusion.engines.training.validation import Table, validate
from microdiffusion.errors import ConfigError, EngineError, MissingFileError
from microdiffusion.text import count_noun

_LOOK_EVERY, _LOOK_EVERY_S = 50, 10.0
"""Iterations and seconds between looks at the losses, whichever is sooner: each look waits for the device."""
_RECENT = 100  # losses that are averaged for the user
_WARM_UP = 300
_STOP = math.inf


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Progress of a training: `share` of the whole from 0 to 1, mean loss of the last iterations."""

    iteration: int
    share: float
    loss: float
    seconds: float


def train(
    config: TrainingConfig,
    say: Callable[[str], None],
    watch: Callable[[TrainingProgress], None] = lambda progress: None,
    *,
    resume: bool = False,
    command: str = "",
    machine: str = "",
) -> Table:
    """Train, and write weights, card, curves and checkpoint; return the last validation.

    Parameters
    ----------
    say
        Gets lines about what happens.
    watch
        Gets the progress, several times a minute.
    resume
        Continue from the output's checkpoint.
    command, machine
        Texts for the model card.

    Raises
    ------
    UserError
        Data, configuration or checkpoint cannot be used; the message says which and why.
    EngineError
        The loss is no longer a number.
    KeyboardInterrupt
        Asked to stop; a checkpoint was written.
    """
    with team(config.device) as crew:
        if not crew.leads:
            say = watch = _ignore
        return _TrainingRun(config, crew, say, watch, resume=resume, command=command, machine=machine).go()


def starting_weights(config: TrainingConfig) -> Path | None:
    """Return the weights to start from; None: nothing, as there are none of these widths."""
    if config.scratch and config.init is not None:
        raise ConfigError("training.init and training.scratch exclude each other: leave one of them out.")
    if config.init is not None or config.scratch:
        return config.init
    path = shipped_weights()
    theirs = load_denoiser(path).settings
    same = (list(config.widths), config.embedding) == (theirs["widths"], theirs["embedding"])
    return path if same else None


def _ignore(_: object) -> None:
    pass


@contextmanager
def _first_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event that the loop looks at between two iterations."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)  # a second one interrupts at once

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class _TrainingRun:
    """One process's part of a training."""

    def __init__(
        self,
        config: TrainingConfig,
        crew: Team,
        say: Callable[[str], None],
        watch: Callable[[TrainingProgress], None],
        *,
        resume: bool,
        command: str,
        machine: str,
    ) -> None:
        self._began_s = time.monotonic()
        start = starting_weights(config)
        if config.rate is None:
            config = config.model_copy(update={"rate": 1e-3 if start is None else 2e-4})
        self._config, self._crew, self._say, self._watch = config, crew, say, watch
        self._start = start
        self._command, self._machine = command, machine
        self._checkpoint = config.output.with_suffix(".checkpoint.pt")
        self._check_output(resume)
        cubes_of(config.batch, crew.size)  # before anything takes long
        self._dtype = training_dtype(crew.device, config.precision)
        self._sources = gather(
            config.volumes, config.morphologies, held_out=config.held_out, licence=config.licence
        )
        self._identity = identity(config, self._sources.fingerprint())
        torch.manual_seed(config.seed)
        model: Denoiser = SlabUNet(config.widths, config.blocks, config.embedding)
        if start is not None:
            model = start_from(model, start)
        self._learner = Learner(
            model, crew.device, self._dtype, rate=config.rate or 1e-3, weight_decay=1e-4, share=crew.share
        )
        self._shipped: Table = {}
        self._reserve_s = 0.0  # for the last validation
        self._curves = Curves()
        self._fresh: list[Tensor] = []  # losses that are still on the device
        self._table: Table = {}
        self._validated = -1
        self._iteration, self._spent_s, self._cubes = 0, 0.0, config.pool
        if resume:
            self._resume()

    def _check_output(self, resume: bool) -> None:
        folder = self._config.output.parent
        if not folder.is_dir():
            raise MissingFileError(f"There is no folder {folder} for the output: create it first.")
        if self._checkpoint.is_file() and not resume:
            raise ConfigError(
                f"{self._checkpoint} is the checkpoint of an earlier training: give --resume to continue "
                "it, or remove it or name another output to start over."
            )

    def _resume(self) -> None:
        state = load_checkpoint(self._checkpoint, self._identity)
        self._learner.restore(state)
        self._iteration, self._spent_s = state["iteration"], state["seconds"]
        self._cubes = state.get("cubes", self._cubes)
        self._curves = Curves.of_json(state["curves"])
        self._say(f"resumed at iteration {self._iteration}")
        if state["precision"] != str(self._dtype):
            self._say(f"not the same as an uninterrupted run: {state['precision']} before, {self._dtype} now")
        if state["processes"] != self._crew.size:
            before = count_noun(state["processes"], "process", "processes")
            self._say(
                f"the same to rounding as an uninterrupted run: {before} before, {self._crew.size} now, with "
                "the same batches"
            )

    def go(self) -> Table:
        """Train to the end."""
        self._score_shipped()
        batches = self._open_batches()
        if self._start not in (None, shipped_weights()) and self._iteration == 0:
            self._validate()  # the score of the weights as they were
        if self._iteration == 0 and self._share() >= 1:
            raise ConfigError(
                f"Preparing took {self._seconds:.0f} s of training.minutes = {self._config.minutes:g}, which "
                "leaves nothing to train: give more minutes, or a smaller training.ring."
            )
        with _first_interrupt() as asked:
            try:
                stopped = self._iterate(batches, asked)
            finally:
                batches.close()
            self._look()
            if stopped:
                self._save()
                self._say(f"stopped at iteration {self._iteration}: continue with --resume")
                raise KeyboardInterrupt
        if self._validated != self._iteration:
            self._validate()
        self._save()
        self._write_card()
        if self._crew.leads:
            self._say(against_shipped(self._table))
        self._crew.wait()
        return self._table

    def _score_shipped(self) -> None:
        """Score the weights that ship with mdd, which new ones have to be better than."""
        if self._crew.leads and self._sources.held:
            begun_s = time.monotonic()
            self._say("the weights that ship with mdd, on the held-out volumes:")
            shipped = load_denoiser(shipped_weights())
            self._shipped = validate(shipped, self._sources.held, self._crew.device, self._say)
            self._reserve_s = time.monotonic() - begun_s

    def _open_batches(self) -> Batches:
        config, crew, sources = self._config, self._crew, self._sources
        self._say(
            f"training on {len(sources.used)} volumes, {len(sources.trees)} trees; "
            f"held out: {', '.join(sources.held) or 'none'}; starting from "
            f"{'nothing' if self._start is None else self._start.name}"
        )
        begun = time.monotonic()
        pool = build_pool(
            sources,
            count=self._cubes,
            rng=np.random.default_rng(config.seed),  # every process has all cubes: groups are made of any
            shares=config.shares.model_dump(),
            # At most a third of the time; a resumed training needs the cubes that it had.
            until_s=math.inf if self._iteration else self._began_s + 20 * config.minutes,
        )
        pool = pool[: min(crew.gather(len(pool)))]  # one may have had less time
        self._cubes = len(pool)
        batches = Batches(
            pool,
            size=config.batch,
            seed=config.seed + 1,  # not that of network and pool
            crew=crew,
            ring=config.ring,
            renew_every=config.renew_every,
            workers=config.workers,
            first=self._iteration,
        )
        self._say(f"pool of {len(pool)} cubes ready after {time.monotonic() - begun:.0f} s")
        return batches

    def _iterate(self, batches: Batches, asked: threading.Event) -> bool:
        """Train until the end, or until asked to stop, which returns True."""
        looked_s = time.monotonic()
        while True:
            # Rank 0 decides for all: clocks and interrupts differ between processes.
            share = self._crew.agree(_STOP if asked.is_set() else self._share())
            if share >= 1:
                return share == _STOP
            loss = self._learner.loss(next(batches))
            self._learner.update(loss, self._iteration, share, warm_up=_WARM_UP, least=0.01, memory=0.999)
            self._fresh.append(self._crew.mean(loss.detach()))
            self._iteration += 1
            if self._iteration % _LOOK_EVERY == 0 or time.monotonic() - looked_s > _LOOK_EVERY_S:
                self._look()
                looked_s = time.monotonic()
            if self._iteration % self._config.validate_every == 0:
                self._validate()
                self._save()

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began_s + self._spent_s

    def _share(self) -> float:
        seconds = self._seconds + self._reserve_s
        return max(self._iteration / self._config.iterations, seconds / (60 * self._config.minutes))

    def _look(self) -> None:
        """Fetch the losses from the device, check them, and report the progress."""
        if not self._fresh:
            return
        self._curves.losses += torch.stack(self._fresh).tolist()
        self._fresh.clear()
        if not math.isfinite(self._curves.losses[-1]):
            raise EngineError(
                f"The loss is no longer a number at iteration {self._iteration}: lower training.rate "
                f"(now {self._config.rate:g}) and resume from the last checkpoint."
            )
        share = min(1.0, self._share())
        self._watch(TrainingProgress(self._iteration, share, self._recent_loss(), self._seconds))

    def _recent_loss(self) -> float:
        recent = self._curves.losses[-_RECENT:]
        return float(np.mean(recent)) if recent else math.nan

    def _validate(self) -> None:
        self._validated = self._iteration
        if not self._crew.leads or not self._sources.held:
            return
        self._look()
        # A copy: the runtime changes the network's place in memory.
        network = copy.deepcopy(self._learner.average)
        begun_s = time.monotonic()
        self._table = validate(network, self._sources.held, self._crew.device, self._say)
        self._reserve_s = time.monotonic() - begun_s
        for name, row in self._shipped.items():
            theirs = {key.replace("network", "shipped"): row[key] for key in row if "network" in key}
            self._table[name] |= theirs
        self._curves.validations.append(
            {"iteration": self._iteration, "seconds": round(self._seconds, 1), "scores": self._table}
        )

    def _save(self) -> None:
        """Write checkpoint, weights and curves."""
        self._look()
        if not self._crew.leads:
            return
        state = {
            **self._learner.state(),
            "iteration": self._iteration,
            "seconds": self._seconds,
            "cubes": self._cubes,
            "curves": self._curves.to_json(),
            "processes": self._crew.size,
            "precision": str(self._dtype),
        }
        save_checkpoint(self._checkpoint, self._identity, state)
        notes = {
            "iteration": str(self._iteration),
            "validation": json.dumps(self._table),
            "command": self._command,
        }
        write_weights(self._learner.average, self._config.output, notes)
        self._curves.write(self._config.output)

    def _write_card(self) -> None:
        if not self._crew.leads:
            return
        outcome = Outcome(
            iterations=self._iteration,
            seconds=self._seconds,
            device=str(self._crew.device),
            precision=str(self._dtype).removeprefix("torch."),
            processes=self._crew.size,
            network=self._learner.model.description,
            parameters=sum(parameter.numel() for parameter in self._learner.model.parameters()),
            loss=self._recent_loss(),
            table=self._table,
            command=self._command,
            machine=self._machine,
            start="nothing" if self._start is None else self._start.name,
        )
        card = write_card(self._config, self._sources.records, outcome)
        self._say(f"wrote {self._config.output}, its card {card.name} and its curves")
