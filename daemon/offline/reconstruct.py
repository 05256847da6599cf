"""`mdd reconstruct`: recorded projections through the daemon's own engine and recorder, without a daemon.

`reconstruct_file` makes a run file from the frames of a projection file or of another run file. Where
sessions learn, each goes through its sweeps twice, forward in time and then backward, and a volume knows
both. The file grows under a temporary name and gets its own only when it is complete, so a failure leaves
nothing half-written behind. `catch_up` adds to a run file, in place, the volumes that it has frames for and
that the engine had no time for; what was done stays done, wherever it breaks off. One thread, sweep after
sweep, session after session.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.daemon.engine import EngineInfo, provenance
from microdiffusion.daemon.offline.parts import Made
from microdiffusion.daemon.offline.sweeps import SweepKey, open_recorded
from microdiffusion.daemon.recorder import Recorder, create_recorder, resume_recorder
from microdiffusion.daemon.runs import enough
from microdiffusion.errors import GeometryError, InputFileError, MissingFileError
from microdiffusion.files import staged
from microdiffusion.frames import Reconstruction
from microdiffusion.runfile import Status
from microdiffusion.text import count_noun

if TYPE_CHECKING:
    from microdiffusion.config import Config
    from microdiffusion.daemon.offline.sweeps import Recorded
    from microdiffusion.engines.pipeline import Engine, Reconstructor, SessionStore
    from microdiffusion.frames import Sweep
    from microdiffusion.header import RunHeader

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, Reconstruction], None]
Report = Callable[[str, int, int], None]

_UNFINISHED = (Status.EMPTY, Status.LOST, Status.SKIPPED, Status.FAILED)


def reconstruct_file(
    path: Path,
    output: Path,
    *,
    config: Config,
    causal: bool = False,
    engine: Engine | None = None,
    marks: Mapping[str, str] | None = None,
    progress: Progress = lambda done, total, result: None,
    report: Report = lambda stage, done, total: None,
    building: Callable[[float], None] = lambda share: None,
) -> None:
    """Reconstruct every sweep of the projection file or run file `path` into the run file `output`.

    Parameters
    ----------
    causal : bool
        Whether a volume knows the sweeps before it alone, as live.
    engine : Engine, optional
        Device and network; by default opened from the configuration.
    marks : mapping of str to str
        Added to the provenance of the file.
    progress : callable
        Called after each sweep with the number done, the number of all, and the result.
    report : callable
        Called before the first volume of a session, and within a sweep by the method that takes hours: the
        stage, how much of it is done, how much there is.
    building : callable
        Called with the share that is done where an engine has to be built first: a file can wait for it.

    Raises
    ------
    InputFileError, MissingFileError
        The file cannot be used, the output exists, or its folder does not.
    EngineError, DiskError
        Reconstruction or writing failed.
    """
    refuse_output(output)
    with open_recorded(path) as recorded:
        _refuse_empty(path, recorded)
        reconstructor, info, _ = open_reconstructor(recorded.header, config, report, building, engine)
        with staged(output) as (unnamed,):
            write_run(
                recorded,
                unnamed,
                _all_results(recorded, reconstructor, unnamed.parent, report, causal=causal),
                config=config,
                about=provenance(info) | dict(marks or {}),
                both_ways=reconstructor.learns and not causal,
                progress=progress,
            )


def learns(config: Config) -> bool:
    """Return whether a session knows more with every sweep."""
    return config.engine.memory == "session" and config.engine.method in ("mdd", "inr")


def refuse_output(output: Path) -> None:
    """Raise an InputFileError where the output exists, a MissingFileError where its folder does not."""
    if output.exists():
        raise InputFileError(f"{output} exists: name another output, or remove it first.")
    if not output.parent.is_dir():
        raise MissingFileError(f"The folder {output.parent} of the output does not exist: create it first.")


def _refuse_empty(path: Path, recorded: Recorded) -> None:
    if not any(recorded.keys.values()):
        raise InputFileError(f"{path} holds no sweep with enough frames: there is nothing to reconstruct.")


def write_run(
    recorded: Recorded,
    output: Path,
    results: Iterable[Made],
    *,
    config: Config,
    about: Mapping[str, str],
    both_ways: bool,
    progress: Progress = lambda done, total, result: None,
) -> None:
    """Write a run file: the frames of every sweep of `results`, and its volume, unless that is None."""
    total = sum(recorded.keys.values())
    recorder = create_recorder(
        output,
        recorded.header,
        # One file holds all of it, whatever room a live run would reserve.
        config.recorder.model_copy(
            update={"time_points": max(key.sweep for key in recorded.keys) + 1, "file_gb": 1e9}
        ),
        frames_per_sweep=recorded.frames_per_sweep,
        configuration=config.model_dump_json(),
        provenance=about,
        on_written=lambda written: None,
        uncertainty=config.engine.uncertainty,
    )
    recorder.start()
    _tell_gaps(recorded, recorder)
    try:
        done = 0
        for key, result, acquired_s in results:
            for frame in recorded.frames(key):
                _wait_for(recorder, lambda: not recorder.is_full)
                recorder.put_frame(frame)
            if result is not None:
                _put(recorder, key, result, acquired_s)
                done += 1
                progress(done, total, result)
        if both_ways:
            recorder.put_event("both ways", "each volume is made of the sweeps before and after it")
        recorder.put_ledger(recorded.ledger)
    finally:
        recorder.stop()


def _tell_gaps(recorded: Recorded, recorder: Recorder) -> None:
    """Tell, and put down in the file, which slices between the slabs of the first sweep none of them lit."""
    key = next(key for key, usable in recorded.keys.items() if usable)
    lit = np.flatnonzero(recorded.header.operator_at(recorded.sweep(key).stage).any(axis=0))
    dark = int(lit[-1] - lit[0] + 1 - lit.size)
    if dark:
        text = f"{count_noun(dark, 'slice is', 'slices are')} lit by no slab of sweep {key.sweep}: guessed"
        logger.warning("%s: %s", recorded.header.name, text)
        recorder.put_event("unlit", text)


def catch_up(
    path: Path,
    *,
    config: Config,
    progress: Progress = lambda done, total, result: None,
    building: Callable[[float], None] = lambda share: None,
) -> tuple[int, int]:
    """Give the run file `path` the volumes that it has frames for and that are not there; in place.

    Parameters
    ----------
    path : Path
        The run's first file.
    progress, building : callable
        As for `reconstruct_file`.

    Returns
    -------
    tuple of int
        Volumes that were added, and sweeps that could not be done (each has its reason in the file).

    Raises
    ------
    InputFileError, MissingFileError
        It is no run file, damaged, or a daemon has it open.
    EngineError, DiskError
        Reconstruction or writing failed; what was added is safe.
    """
    recorder = resume_recorder(path, config.recorder, on_written=lambda written: None)
    try:
        # Session by session: each is easier in one go, and only one is in memory.
        keys = [SweepKey(*key) for key in recorder.index.unfinished(_UNFINISHED)]
        keys.sort(key=lambda key: (key.position, key.channel, key.sweep))
        if not keys:
            return 0, 0
        reconstructor, info, _ = open_reconstructor(
            recorder.header, config, lambda stage, done, total: None, building
        )
        recorder.start()
        added, failed = 0, 0
        for key in keys:
            sweep = recorder.load_sweep(*key)
            if sweep is None or not enough(len(sweep.stage), sweep.missing):
                failed += 1  # its status says so already
                continue
            try:
                result = reconstructor.reconstruct(_unhurried(sweep))
            except GeometryError as error:  # one bad sweep must not end the others
                recorder.mark(*key, Status.FAILED, str(error))
                failed += 1
                continue
            _put(recorder, key, result, sweep.time_s, later=True)
            added += 1
            progress(added, len(keys), result)
        recorder.put_event("later", f"mdd reconstruct added {count_noun(added, 'volume')}: {info.device}")
        return added, failed
    finally:
        recorder.stop()


def open_reconstructor(
    header: RunHeader,
    config: Config,
    report: Report,
    building: Callable[[float], None],
    engine: Engine | None = None,
    *,
    state: Path | None = None,
) -> tuple[Reconstructor, EngineInfo, SessionStore]:
    """Return a reconstructor, its engine in words, and its sessions, which are kept in the folder `state`."""
    # torch only now: a refused file should be refused at once.
    from microdiffusion.engines.pipeline import Reconstructor, SessionStore, open_engine

    engine = engine or open_engine(config.engine, progress=building)
    # A session that is over never comes back, so without a folder what is beyond the limit may go for good.
    store = SessionStore(state, most_bytes=int(config.engine.session_memory_mb * 1e6))
    reconstructor = Reconstructor(header, config.engine, engine, sessions=store, report=report)
    return reconstructor, EngineInfo.of(engine), store


def _all_results(
    recorded: Recorded, reconstructor: Reconstructor, folder: Path, report: Report, *, causal: bool
) -> Iterator[Made]:
    """Yield all sweeps of all sessions, those without enough frames as well, and their volumes."""
    for _, group in groupby(recorded.keys, key=lambda key: (key.channel, key.position)):
        yield from session_results(recorded, reconstructor, list(group), folder, report, causal=causal)


def session_results(
    recorded: Recorded,
    reconstructor: Reconstructor,
    keys: list[SweepKey],
    folder: Path,
    report: Report,
    *,
    causal: bool,
) -> Iterator[Made]:
    """Yield sweeps of a session and their volumes, in the order in which they are made."""
    from microdiffusion.engines.inr import Trail

    def made(key: SweepKey, trail: Trail | None) -> Made:
        if not recorded.keys[key]:
            return key, None, float("nan")
        sweep = _unhurried(recorded.sweep(key))
        return key, reconstructor.reconstruct(sweep, trail=trail), sweep.time_s

    if causal or not reconstructor.learns:
        yield from (made(key, None) for key in keys)
        return
    usable = [key for key in keys if recorded.keys[key]]
    with Trail(folder) as trail:
        for done, key in enumerate(usable):
            report("looking ahead", done, len(usable))
            reconstructor.look_ahead(_unhurried(recorded.sweep(key)), trail)
        yield from (made(key, trail) for key in reversed(keys))


def _unhurried(sweep: Sweep) -> Sweep:
    sweep.received_s = 0.0  # nobody waits for it
    return sweep


def _put(
    recorder: Recorder, key: SweepKey, result: Reconstruction, acquired_s: float, *, later: bool = False
) -> None:
    began_s = time.monotonic() - result.seconds.get("total", 0.0)
    put = partial(recorder.put_volume, *key, result, acquired_s=acquired_s, received_s=began_s, later=later)
    _wait_for(recorder, put)


def _wait_for(recorder: Recorder, has_room: Callable[[], bool]) -> None:
    """Wait for room in the recorder's queue: a file can."""
    while not has_room():
        recorder.raise_if_failed()
        time.sleep(0.002)
