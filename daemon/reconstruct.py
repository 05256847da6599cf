"""`mdd reconstruct`: a projection file through the daemon's own engine and recorder, without a daemon.

One thread, sweep after sweep. The run file grows under a temporary name and gets its own only when it is
complete, so a failure leaves nothing half-written behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial as partial_call
from pathlib import Path
from typing import TYPE_CHECKING

from microdiffusion.daemon.engine_child import EngineInfo
from microdiffusion.daemon.live_run import provenance
from microdiffusion.daemon.recorder import Recorder
from microdiffusion.errors import InputFileError, MissingFileError
from microdiffusion.projection_file import ProjectionFile, open_projections
from microdiffusion.run_file import Ledger
from microdiffusion.sweep import Frame, Reconstruction

if TYPE_CHECKING:
    from microdiffusion.config import Config


def reconstruct_file(
    path: Path,
    output: Path,
    *,
    config: Config,
    progress: Callable[[int, int, Reconstruction], None] = lambda done, total, result: None,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    building: Callable[[float], None] | None = None,
) -> None:
    """Reconstruct every sweep of the projection file `path` into the run file `output`.

    Parameters
    ----------
    progress : callable
        Called after each sweep with the number done, the number of all, and the result.
    report : callable
        Called within a sweep by the method that takes hours: its stage, how much is done, how much there is.
    building : callable, optional
        Called with the share that is done where an engine has to be built first: a file can wait for it.

    Raises
    ------
    InputFileError, MissingFileError
        The projection file cannot be used, the output exists, or its folder does not.
    EngineError, DiskError
        Reconstruction or writing failed.
    """
    if output.exists():
        raise InputFileError(f"{output} exists: name another output, or remove it first.")
    if not output.parent.is_dir():
        raise MissingFileError(f"The folder {output.parent} of the output does not exist: create it first.")
    with open_projections(path) as projections, _partial(output) as partial:
        # torch only now: a refused file should be refused at once.
        from microdiffusion.engines.engine import open_engine
        from microdiffusion.engines.reconstructor import Reconstructor

        engine = open_engine(config.engine, progress=building)
        reconstructor = Reconstructor(projections.header, config.engine, engine, report=report)
        info = EngineInfo.of(engine)
        total = len(projections)
        recorder = Recorder(
            partial,
            projections.header,
            # One file holds all of it, whatever room a live run would reserve.
            config.recorder.model_copy(update={"time_points": total}),
            frames_per_sweep=projections.shape[1],
            configuration=config.model_dump_json(),
            provenance=provenance(info),
            on_written=lambda written: None,
        )
        recorder.start()
        try:
            for number in range(total):
                _record_frames(recorder, projections, number)
                sweep = projections.sweep(number)
                started = time.monotonic()
                result = reconstructor.reconstruct(sweep)
                put = partial_call(
                    recorder.put_volume, number, 0, 0, result, acquired_s=sweep.time_s, received_s=started
                )
                _until_taken(recorder, put)
                progress(number + 1, total, result)
            frames = total * projections.shape[1]
            recorder.put_ledger(Ledger(announced=frames, received=frames, dropped_by_sender=0))
        finally:
            recorder.stop()


def _record_frames(recorder: Recorder, projections: ProjectionFile, number: int) -> None:
    for info, pixels in projections.frames(number):
        _until_taken(recorder, partial_call(recorder.put_frame, Frame(info, pixels)))


def _until_taken(recorder: Recorder, put: Callable[[], bool]) -> None:
    """Wait for room in the recorder's queue: a file can."""
    while not put():
        recorder.raise_if_failed()
        time.sleep(0.002)


@contextlib.contextmanager
def _partial(output: Path) -> Iterator[Path]:
    """Yield a temporary path beside `output`; rename it when all went well, else remove it."""
    partial = output.with_name(f".{output.name}.part")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
