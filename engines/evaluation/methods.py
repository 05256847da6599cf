"""The methods that can be compared, by name, and one call for all of them.

A name is ``method[:EVALUATIONS][:key=value...]``, e.g. ``mdd``, ``mdd:4``, ``mdd:4:guidance=0``,
``mdd:consistency=false:fallback=false``, ``inr:inr.bandwidth_z=0.05``, ``tv:weight=0.1``. The methods that
the daemon can serve go through its own `Reconstructor`, and their keys are those of the table `[engine]`;
baselines take the arguments of their functions in `baselines.py`.

Every call starts from scratch (a cold INR, its own seeds), so neither the order of methods nor other
volumes change an answer. One thread, besides the one that reads the memory of a call.
"""

from __future__ import annotations

import inspect
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from microdiffusion.config import EngineConfig
from microdiffusion.engines.evaluation import baselines
from microdiffusion.engines.evaluation.protocol import Case
from microdiffusion.engines.inr import Trail
from microdiffusion.engines.pipeline import Engine, Reconstructor, open_engine, pick_device
from microdiffusion.engines.reference import steps_needed
from microdiffusion.errors import ConfigError
from microdiffusion.frames import Sweep
from microdiffusion.header import RunHeader

CLASSICAL = ("nearest", "linear", "tikhonov", "tv", "rl")
"""Answers without a network or a neural field: the ones that `mdd` has to beat."""

_ENGINE: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "tikhonov": {"method": "tikhonov"},
    # Alone, even where the held-out projection speaks for another answer.
    "inr": {"method": "inr", "fallback": False},
    "mdd": {"method": "mdd"},
    "microdiffusion": {"method": "microdiffusion"},
    # The reference's diffusion alone: from noise, without the INR in every step.
    "ddpm": {"method": "microdiffusion", "reference": {"interpolation": 1.0}},
}
_BASELINES: dict[str, Callable[..., torch.Tensor]] = {
    "nearest": baselines.nearest,
    "tv": baselines.tv,
    "rl": baselines.richardson_lucy,
}
NAMES = (*_BASELINES, *_ENGINE)
"""Every method's name, without options."""
_INTERVAL_S = 0.005


@dataclass(slots=True)
class Cost:
    """Seconds and memory of a call.

    Pages that an earlier call left with the allocator are used again and do not count, so the memory of
    small volumes is rough.

    Attributes
    ----------
    seconds : float
        Wall time, including the device's.
    memory_mb : float
        Peak resident memory above that at the begin, MB; NaN where the system does not say.
    device_memory_mb : float
        Peak of torch's allocator on the CUDA device, MB; NaN elsewhere.
    """

    seconds: float = float("nan")
    memory_mb: float = float("nan")
    device_memory_mb: float = float("nan")


@contextmanager
def measured(device: torch.device, resident_mb: Callable[[], float | None]) -> Iterator[Cost]:
    """Measure the body, its memory on a thread; the value is filled when it ends."""
    cost = Cost()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    before = resident_mb()
    highest = before or 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(_INTERVAL_S):
            highest = max(highest, resident_mb() or 0.0)

    watcher = threading.Thread(target=watch, name="memory", daemon=True)
    if before is not None:
        watcher.start()
    begun = time.perf_counter()
    try:
        yield cost
        if cuda:
            torch.cuda.synchronize(device)
    finally:
        cost.seconds = time.perf_counter() - begun
        done.set()
        if before is not None:
            watcher.join()
            cost.memory_mb = max(highest, resident_mb() or 0.0) - before
        if cuda:
            cost.device_memory_mb = torch.cuda.max_memory_allocated(device) / 1e6


@dataclass(frozen=True, slots=True)
class MethodAnswer:
    """The answer of a method.

    Attributes
    ----------
    volume : (Z, Y, X) float32
    served : str
        Which of its candidates a method of the engine served; else its own name.
    evaluations : int
        Passes of the whole volume through a network, guidance counted twice.
    """

    volume: NDArray[Any]
    served: str
    evaluations: int
    cost: Cost


@dataclass(frozen=True, slots=True)
class Method:
    """A method with its options, parsed from its name.

    Attributes
    ----------
    name : str
        As the user wrote it; the table's row.
    kind : str
        The name without options.
    options : dict
        Of the engine (nested as in `EngineConfig`) or of the baseline's function.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def classical(self) -> bool:
        """True for one of the answers to beat; with options it is a variant and does not count."""
        return self.name in CLASSICAL

    def config(self, base: Mapping[str, Any]) -> EngineConfig:
        """Return the engine's table: `base`, the keys that the name stands for, then its options.

        Raises
        ------
        ConfigError
            An option is unknown or impossible.
        """
        table = _merged(_merged(base, _ENGINE.get(self.kind, {})), self.options)
        try:
            return EngineConfig.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"The method {self.name!r} sets {key} to something impossible ({first['msg']}): "
                "see the table [engine] in docs/configuration.md."
            ) from None

    def open(self, base: Mapping[str, Any]) -> Engine | None:
        """Open device and weights, ahead of all measuring (see `open_engine`); None for the baselines."""
        return open_engine(self.config(base)) if self.kind in _ENGINE else None

    def answer(
        self,
        case: Case,
        base: Mapping[str, Any],
        *,
        engine: Engine | None = None,
        seed: int = 0,
        resident_mb: Callable[[], float | None] = lambda: None,
        report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> MethodAnswer:
        """Reconstruct a case.

        Parameters
        ----------
        base : mapping
            Keys of the table `[engine]` that hold for all methods: device, weights, threads.
        engine : Engine, optional
            From `open`.
        resident_mb : callable
            Resident memory of this process, MB.
        report : callable
            Gets the stage, how much of it is done and how much there is, from methods that take hours.
        """
        # Whatever draws from torch's own generator draws the same, in any order of methods.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.kind in _ENGINE:
                config = self.config({**base, "seed": seed})
                reconstructor = Reconstructor(case.header, config, engine, report=report)
                with measured(reconstructor.device, resident_mb) as cost:
                    result = reconstructor.reconstruct(case.sweep)
                return MethodAnswer(result.volume, result.served, evaluations(config), cost)
            device, _ = pick_device(str(base.get("device", "auto")))
            with measured(device, resident_mb) as cost:
                volume = self._baseline(case.header, case.sweep, device)
            return MethodAnswer(volume, self.kind, 0, cost)

    def learns(self, base: Mapping[str, Any]) -> bool:
        """Return whether it learns from sweep to sweep."""
        config = self.config(base) if self.kind in ("inr", "mdd") else None
        return config is not None and config.memory == "session"

    def over_time(
        self,
        header: RunHeader,
        sweeps: Sequence[Sweep],
        base: Mapping[str, Any],
        *,
        engine: Engine | None = None,
        seed: int = 0,
        both_ways: bool = False,
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield number and volume of each sweep of a session, as they are ready.

        `both_ways`: a method that learns goes through them in both directions; the rest as for `answer`.
        """
        if self.kind not in _ENGINE:
            device, _ = pick_device(str(base.get("device", "auto")))
            for sweep in sweeps:
                yield sweep.sweep, self._baseline(header, sweep, device)
            return
        reconstructor = Reconstructor(header, self.config({**base, "seed": seed}), engine)
        if not both_ways:
            for sweep in sweeps:
                yield sweep.sweep, reconstructor.reconstruct(sweep).volume
            return
        with Trail(Path(tempfile.gettempdir())) as trail:
            for sweep in sweeps:
                reconstructor.look_ahead(sweep, trail)
            for sweep in reversed(sweeps):
                yield sweep.sweep, reconstructor.reconstruct(sweep, trail=trail).volume

    def _baseline(self, header: RunHeader, sweep: Sweep, device: torch.device) -> NDArray[np.float32]:
        with torch.no_grad():
            problem = baselines.Problem.of(header, sweep, device)
            volume = _BASELINES[self.kind](problem, **self.options) + problem.offset
        answer: NDArray[np.float32] = volume.cpu().numpy()
        return answer


def evaluations(config: EngineConfig) -> int:
    """Return how often a volume passes through a network, guidance's second branch included."""
    if config.method == "microdiffusion":
        reference = config.reference
        steps = steps_needed(reference.timesteps, reference.shortcut, reference.interpolation)
        return steps * (2 if reference.guidance > 0 else 1)
    return config.steps * (2 if config.guidance > 0 else 1) if config.method == "mdd" else 0


def parse_methods(text: str) -> list[Method]:
    """Return the methods of a list that is separated by commas.

    Raises
    ------
    ConfigError
        A method is unknown or named twice, or does not have an option.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"Expected methods like linear,tv,mdd, not {text!r}: known are {', '.join(NAMES)}.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"The method {name!r} is named twice: leave one out.")
    return [_parse(name) for name in names]


def _parse(name: str) -> Method:
    kind, *parts = name.split(":")
    if kind not in NAMES:
        raise ConfigError(f"There is no method {kind!r}: known are {', '.join(NAMES)}.")
    options: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            if kind != "mdd" or not part.isdigit():
                raise ConfigError(f"Expected key=value (or, for mdd, a number) in {name!r}, not {part!r}.")
            key, value = "steps", part
        if kind in _BASELINES:
            options[key] = _argument(name, kind, key, value)
        else:
            nested: Any = value
            for level in reversed(key.split(".")):
                nested = {level: nested}
            options = _merged(options, nested)
    method = Method(name, kind, options)
    if kind in _ENGINE:
        method.config({})
    return method


def _argument(name: str, kind: str, key: str, value: str) -> float | int:
    """Return a baseline's option, by the types of its function."""
    parameters = inspect.signature(_BASELINES[kind]).parameters
    known = [parameter for parameter in parameters if parameter != "problem"]
    if key not in known:
        takes = f"takes {', '.join(known)}" if known else "takes no options"
        raise ConfigError(f"The method {name!r} has no option {key!r}: {kind} {takes}.")
    kinds: type[int] | type[float] = int if "int" in str(parameters[key].annotation) else float
    try:
        number = kinds(value)
    except ValueError:
        number = kinds(0)
    if not 0 < number < float("inf"):
        raise ConfigError(f"The option {key} of {name!r} should be a number greater than 0, not {value!r}.")
    return number


def _merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(table)
    for key, value in over.items():
        known = result.get(key)
        result[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result
