"""Files for a recorder: those of a new run, with room for what it announces, or those that are there.

Each is locked against other processes first; the recorder releases the lock when it stops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from microdiffusion.config import RecorderConfig
from microdiffusion.daemon.lock import RunLock
from microdiffusion.daemon.recorder.files import RunFiles
from microdiffusion.daemon.recorder.recorder import Recorder
from microdiffusion.daemon.recorder.writer import Written
from microdiffusion.errors import UserError
from microdiffusion.header import RunHeader
from microdiffusion.runfile import RunPlan, file_bytes, level_factors
from microdiffusion.text import count_noun


def create_recorder(
    path: Path,
    header: RunHeader,
    config: RecorderConfig,
    *,
    frames_per_sweep: int,
    configuration: str,
    provenance: Mapping[str, str],
    on_written: Callable[[Written], None],
    live: bool = False,
    uncertainty: bool = False,
    owner: str = "",
) -> Recorder:
    """Create the file of a new run and return its recorder.

    Parameters
    ----------
    path
        The run's first file, which must not exist.
    frames_per_sweep
        Most frames of a sweep, held-out ones included.
    configuration
        The resolved configuration, JSON.
    provenance
        Versions, device ... as far as known; see `Recorder.put_engine`.
    on_written
        Called on the recorder's thread for each volume that can be read from the disk.
    live, uncertainty
        Whether to make room for rolling volumes, two a session; for the uncertainty of each volume.
    owner
        Who may resume the run (`ingest.owner_of`); empty: whoever asks.

    Raises
    ------
    InputFileError
        The file exists, or another process writes it.
    UserError, NoRoomError, DiskError
        A time point is larger than this daemon takes; there is not enough room for all; it cannot be created.
    """
    plan = RunPlan(
        header=header,
        time_points=min(config.time_points, header.sweeps or config.time_points),
        frames_per_sweep=frames_per_sweep,
        configuration=configuration,
        provenance=dict(provenance),
        created_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
        live=live,
        pyramid=level_factors(header.shape, header.voxel_size_um) if config.pyramid else (),
        uncertainty=uncertainty,
    )
    needed, most = file_bytes(replace(plan, time_points=1)), config.time_point_gb * 1e9
    if needed > most:
        raise UserError(
            f"One time point of all {count_noun(len(header.positions), 'position')} takes "
            f"{needed / 1e9:.3g} GB, and this daemon takes {most / 1e9:.3g} GB: raise "
            "recorder.time_point_gb there, or send fewer slices, pixels or positions."
        )

    with _locked(path) as lock:
        files = RunFiles.create(path, plan, most_bytes=_most_bytes(config))
        recorder = Recorder(files, config, lock, on_written, resumes=False)
        if owner:
            recorder.data.write_owner(owner)
        return recorder


def resume_recorder(path: Path, config: RecorderConfig, *, on_written: Callable[[Written], None]) -> Recorder:
    """Return a recorder that resumes the run whose first file is `path`, whether it was closed or cut off.

    Raises
    ------
    InputFileError
        A file of the run is damaged, or another process writes it.
    DiskError
        It cannot be opened for writing.
    """
    with _locked(path) as lock:
        files = RunFiles.open(path, most_bytes=_most_bytes(config))
        return Recorder(files, config, lock, on_written, resumes=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[RunLock]:
    """Lock a run for a block; it stays locked where the block succeeds."""
    lock = RunLock(path)
    lock.acquire()
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


def _most_bytes(config: RecorderConfig) -> int:
    return int(config.file_gb * 1e9)
