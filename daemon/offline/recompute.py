"""`mdd reconstruct RUN --check`: volumes made again from the raw projections, and compared bit by bit.

A volume depends on its frames, on what it was made with (its recipe) and on the session's state, which the
volumes before it left behind. The run file names the state that each volume began with and the one that it
left, so the file alone says which volumes have to be made again, in which order, and where the session went
back to an earlier state (a crash, and the checkpoint before it). Where such a state was left behind by
something that is not in the file, it is said, and nothing is claimed.

Nothing is written. One thread, session after session; states are kept only where two volumes go on from one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ValidationError

from microdiffusion.config import EngineConfig
from microdiffusion.daemon.recorder import as_kept
from microdiffusion.errors import ConfigError, DamagedError, GapError, InputFileError
from microdiffusion.runfile import Run, Status, open_run

if TYPE_CHECKING:
    from microdiffusion.engines.pipeline import Engine, Reconstructor, State

Outcome = Literal["exact", "differs", "impossible"]

NO_RECIPE = "the file does not say with what it was made"
NO_STATE = "it began from a state that no volume in the file left behind"
_MOST_TIME_POINTS = 1 << 24
DAMAGED = "its frames cannot be read"


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What became of one volume: `difference` is the most by which a voxel differs, `why` it was not made."""

    time_point: int
    channel: int
    position: int
    outcome: Outcome
    difference: float = 0.0
    why: str = ""


@dataclass(slots=True)
class _Volume:
    """A volume as the file tells of it."""

    time_point: int
    recipe: int
    effort: int
    inr_steps: int
    from_state: int
    state: int
    after: list[_Volume] = field(default_factory=list)  # those wanted that go on from it


def recompute(
    path: Path,
    *,
    time_points: Collection[int] | None = None,
    weights: Path | None = None,
    on_difference: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Recomputed]:
    """Make volumes again, and yield what became of each that is wanted.

    Parameters
    ----------
    path : Path
        The run's first file.
    time_points : collection of int, optional
        Those wanted; None: every volume of the run.
    weights : Path, optional
        Where the weights are now.
    on_difference : callable
        Told what is not here as it was recorded, before anything is made.
    progress : callable
        Told how many volumes of a session were made, wanted or not, and how many there are to make.

    Raises
    ------
    InputFileError, MissingFileError
        It is no run file; a time point that is wanted has no volume.
    """
    with open_run(path) as first:
        positions = len(first.header.positions)
        kitchen = _Kitchen(first, weights, on_difference)
        for position in range(positions):
            with open_run(path, position=position) as run:
                for channel in range(len(run.header.channels)):
                    yield from _session(run, channel, position, time_points, kitchen, progress)


class _Kitchen:
    """A reconstructor for each recipe, all with the same sessions."""

    def __init__(self, run: Run, weights: Path | None, on_difference: Callable[[str], None]) -> None:
        from microdiffusion.engines.pipeline import SessionStore

        self._header = run.header
        self._recipes = run.recipes
        self._weights = weights
        self._tell = on_difference
        self._made: dict[int, Reconstructor] = {}
        self._engines: dict[str, Engine] = {}
        self.store = SessionStore()

    def reconstructor(self, number: int) -> Reconstructor:
        """Return what works by recipe `number`, from 1."""
        import torch

        from microdiffusion.engines.pipeline import Reconstructor, differences, read_recipe, recipe

        try:
            parts = read_recipe(self._recipes[number - 1])
        except ValueError as error:
            raise InputFileError(
                f"Recipe {number} of the run is damaged, so what was made by it cannot be made again: "
                "`mdd verify` tells what else is; use an untouched copy."
            ) from error
        threads = int(parts.get("threads", 0))
        if threads:  # sums are made in as many parts
            torch.set_num_threads(threads)
        made = self._made.get(number)
        if made is None:
            config = self._config(parts, threads)
            engine = self._engine(config)
            made = self._made[number] = Reconstructor(self._header, config, engine, sessions=self.store)
            for each in differences(self._recipes[number - 1], recipe(config, engine)):
                self._tell(each)
        return made

    def _config(self, parts: dict[str, Any], threads: int) -> EngineConfig:
        settings = dict(parts["engine"])
        runtime = str(parts.get("runtime", "")).partition(" ")[0].partition("_")[0]
        if settings.get("method") == "mdd" and runtime in ("torch", "openvino", "tensorrt"):
            settings["runtime"] = runtime
        if self._weights is not None:
            settings["weights"] = self._weights
        try:
            return EngineConfig.model_validate(settings | {"threads": threads or None})
        except ValidationError as error:
            names = ", ".join(sorted({".".join(map(str, one["loc"])) for one in error.errors()}))
            raise InputFileError(
                f"The run was made with settings that this version does not know ({names or 'engine'}): "
                "install the version that mdd info names."
            ) from error

    def _engine(self, config: EngineConfig) -> Engine:
        from microdiffusion.engines.pipeline import open_engine

        names = ("method", "device", "runtime", "weights", "network", "threads", "tile", "torch_compile")
        key = repr([getattr(config, name) for name in names])
        if key not in self._engines:
            self._engines[key] = open_engine(config)
        return self._engines[key]


def _session(
    run: Run,
    channel: int,
    position: int,
    time_points: Collection[int] | None,
    kitchen: _Kitchen,
    progress: Callable[[int, int], None],
) -> Iterator[Recomputed]:
    volumes = _volumes(run, channel)
    wanted = sorted(volumes) if time_points is None else sorted(time_points)
    by_state = {volume.state: volume for volume in volumes.values() if volume.state}
    needed: dict[int, _Volume] = {}
    roots: list[_Volume] = []
    for time_point in wanted:
        if time_point not in volumes:
            raise InputFileError(f"Time point {time_point} has no volume: mdd info says why.")
        chain, why = _chain(volumes[time_point], by_state, needed, len(run.recipes))
        if why:
            yield Recomputed(time_point, channel, position, "impossible", why=why)
            continue
        for volume in chain:
            needed[volume.time_point] = volume
            if volume.from_state:
                by_state[volume.from_state].after.append(volume)
            else:
                roots.append(volume)
    asked = set(wanted)
    for done, (volume, result) in enumerate(_made(run, channel, position, roots, kitchen), 1):
        if volume.time_point in asked:
            yield result
        progress(done, len(needed))


def _chain(
    volume: _Volume, by_state: dict[int, _Volume], needed: dict[int, _Volume], recipes: int
) -> tuple[list[_Volume], str]:
    """Return what has to be made for a volume and is not on the list yet; or why it cannot be made."""
    chain: list[_Volume] = []
    at: _Volume | None = volume
    seen: set[int] = set()
    while at is not None and at.time_point not in needed:
        if not 1 <= at.recipe <= recipes or not at.state:
            return [], NO_RECIPE
        if at.time_point in seen:
            return [], NO_STATE
        seen.add(at.time_point)
        chain.append(at)
        before = by_state.get(at.from_state) if at.from_state else None
        if at.from_state and before is None:
            return [], NO_STATE
        at = before
    return chain[::-1], ""


def _made(
    run: Run, channel: int, position: int, roots: list[_Volume], kitchen: _Kitchen
) -> Iterator[tuple[_Volume, Recomputed]]:
    """Make volumes, each after the one that it goes on from."""
    from microdiffusion.engines.pipeline import SessionKey

    key = SessionKey(run.header.run_id, channel, position, "sweep")
    waiting: list[tuple[_Volume, State | None, bool]] = [(root, None, False) for root in reversed(roots)]
    broken: set[int] = set()  # states that could not be made again
    while waiting:
        volume, state, goes_on = waiting.pop()
        if not goes_on:
            kitchen.store.put_back(key, state)
        if volume.from_state in broken:
            result = Recomputed(volume.time_point, channel, position, "impossible", why=DAMAGED)
        else:
            result = _one(run, volume, channel, position, kitchen)
        if result.outcome == "impossible":
            broken.add(volume.state)
        session = kitchen.store.peek(key)
        kept = session.state() if session is not None and len(volume.after) > 1 else None
        # The last of them goes on with what is there; the others with what was kept.
        for number, each in enumerate(volume.after):
            waiting.append((each, kept, number == len(volume.after) - 1))
        yield volume, result


def _one(run: Run, volume: _Volume, channel: int, position: int, kitchen: _Kitchen) -> Recomputed:
    place = (volume.time_point,) if len(run.header.channels) == 1 else (volume.time_point, channel)
    made = kitchen.reconstructor(volume.recipe)
    try:
        sweep = run.sweep(volume.time_point, channel, used=True)
    except (DamagedError, GapError) as error:
        return Recomputed(volume.time_point, channel, position, "impossible", why=f"{DAMAGED}: {error}")
    if sweep.z_um.size == 0:
        return Recomputed(volume.time_point, channel, position, "impossible", why=DAMAGED)
    sweep.position = position
    result = made.reconstruct(sweep, effort=volume.effort, inr_steps=volume.inr_steps)
    dtype = np.dtype("<u2" if run.header.dtype == "uint16" else "<f4")
    again = as_kept(result.volume, dtype)
    if zlib.crc32(again.tobytes()) == int(run.values("crc32")[place]):
        return Recomputed(volume.time_point, channel, position, "exact")
    try:
        there = run.volume[place]
    except DamagedError as error:
        return Recomputed(volume.time_point, channel, position, "differs", float("nan"), str(error))
    difference = float(np.abs(again.astype(np.float64) - there.astype(np.float64)).max())
    return Recomputed(volume.time_point, channel, position, "differs", difference)


def _volumes(run: Run, channel: int) -> dict[int, _Volume]:
    """Return the volumes of a session by their time point."""

    def column(name: str) -> list[int]:
        values = run.values(name)
        return [int(each) for each in (values if values.ndim == 1 else values[:, channel])]

    names = ("recipe", "effort", "inr_iterations", "from_state", "state")
    # The status first: what is read after it is as long, or longer where the run goes on.
    rows = zip(column("status"), *(column(name) for name in names), strict=False)
    return {
        time_point: _Volume(time_point, *values)
        for time_point, (status, *values) in enumerate(rows)
        if status == Status.WRITTEN
    }


def read_time_points(text: str) -> list[int]:
    """Return the time points of "3,7-9".

    Raises
    ------
    ConfigError
        It says none.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"Expected time points such as 3,7-9, not {text}.")
        if max(int(first), int(last or first)) >= _MOST_TIME_POINTS:
            raise ConfigError(f"No run has a time point {last or first}: mdd info says how many there are.")
        found.extend(range(int(first), int(last or first) + 1))
    return found
