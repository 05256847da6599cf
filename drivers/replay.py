"""Recorded projections, or a volume projected on the fly, sent over the wire like a camera's frames.

`open_source` reads a projection file or a plain volume file, `replay` sends it. Everything runs in the
caller's thread, except for the `Sender`'s own. Frames are read one at a time (of a volume: one sweep), so
memory is bounded by the send buffer and one sweep. With a rate, a replay behaves like a camera: it does not
wait; frames for which the buffer has no room go to the journal, and those for which it has none either are
dropped and counted. Without a rate it sends as fast as the daemon acknowledges, and needs neither.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import h5py
from numpy.typing import NDArray

from microdiffusion.config import SweepConfig
from microdiffusion.drivers.plan import load_profile
from microdiffusion.drivers.simulate import plan_positions, project_volume
from microdiffusion.errors import AcquisitionError, ConfigError
from microdiffusion.files import VolumeFile, open_projections, open_volume, split_part
from microdiffusion.frames import FrameInfo
from microdiffusion.header import RunHeader
from microdiffusion.sender import Faults, Sender, SenderStats
from microdiffusion.wire import ClientKeys

CONNECT_TIMEOUT_S = 10.0
STANDSTILL_S = 60.0
"""Time without an acknowledgement, at the end, after which the replay gives up."""
HURRIED_S = 3.0
"""Time limit for a replay that was stopped or failed to announce its end."""
POLL_S = 0.1


Frames = Iterator[tuple[FrameInfo, "NDArray[Any]"]]


@dataclass(frozen=True, slots=True)
class ReplaySource:
    """A file whose frames can be sent; a context manager that closes it.

    Attributes
    ----------
    header : RunHeader
        Describes the run; its `run_id` is new for each source.
    frames : callable
        Returns all frames in the order of recording: place and pixels (Y, X), one sweep in memory at most.
    """

    header: RunHeader
    frames: Callable[[], Frames]
    close: Callable[[], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(path: str | Path, *, sweep: SweepConfig | None = None) -> ReplaySource:
    """Open a projection file, or else a volume, as `open_volume` does.

    Parameters
    ----------
    sweep
        How a volume is projected (with `hold_out_every` above 0, one projection of every sweep is held out);
        None: the defaults. A projection file has its own plan.

    Raises
    ------
    MissingFileError, InputFileError, GeometryError
        There is no such file, it is neither, or the slabs do not fit into the volume.
    """
    path = Path(path)
    if _is_volume(path):
        volumes = open_volume(path)
        try:
            return _project(volumes, sweep or SweepConfig())
        except BaseException:
            volumes.close()
            raise
    file = open_projections(path)
    every = range(len(file))
    return ReplaySource(file.header, lambda: chain.from_iterable(map(file.frames, every)), file.close)


def _is_volume(path: Path) -> bool:
    """Return whether to read `path` as a volume; `open_projections` refuses what is neither."""
    path, part = split_part(path)
    if part or path.is_dir() or path.suffix.lower() in {".tif", ".tiff", ".npy"}:
        return True
    try:
        if not path.is_file():  # HDF5 would wait for somebody to write into a pipe
            return False
        with h5py.File(path, "r") as file:
            return "volume" in file and "projections" not in file
    except OSError:
        return False


def _project(volumes: VolumeFile, sweep: SweepConfig) -> ReplaySource:
    """Return the exact projections of a volume file: one sweep for each time point, in its units, float32.

    Voxels are 1 µm where the file does not say.
    """
    sweeps, shape_z, height, width = volumes.shape
    voxel_size_um = volumes.assumed_voxel_um()
    profile = load_profile(sweep)
    hold_out = sweep.hold_out_every > 0
    planned = plan_positions(
        sweeps,
        length_um=sweep.length_um,
        step_um=sweep.resolved_step_um,
        z0_um=0.0,
        voxel_z_um=voxel_size_um[0],
        shape_z=shape_z,
        offsets=sweep.offsets,
        hold_out=hold_out,
    )
    count = len(planned[0])

    def frames() -> Frames:
        for number, positions in enumerate(planned):
            projections = project_volume(
                volumes.volume(number), positions, profile, voxel_z_um=voxel_size_um[0]
            )
            for index, (stage, pixels) in enumerate(zip(positions, projections, strict=True)):
                info = FrameInfo(
                    seq=number * count + index,
                    sweep=number,
                    index=index,
                    count=count,
                    stage=stage,
                    held_out=hold_out and index == count - 1,
                    camera_time_s=float(number),
                )
                yield info, pixels

    header = RunHeader(
        run_id=uuid.uuid4().hex,
        name=volumes.path.stem[:200],
        shape=(shape_z, height, width),
        voxel_size_um=voxel_size_um,
        z0_um=0.0,
        profile_weights=tuple(profile.weights.tolist()),
        profile_spacing_um=profile.spacing_um,
        dtype="float32",
        sweeps=sweeps,
        frames_per_sweep=count,
        source=f"projected from volume file {volumes.path.name}"[:2000],
    )
    return ReplaySource(header, frames, volumes.close)


def replay(
    source: ReplaySource,
    address: str,
    *,
    rate_hz: float | None = None,
    faults: Faults | None = None,
    buffer_bytes: int = 256_000_000,
    journal: Path | None = None,
    journal_bytes: int = 0,
    security: ClientKeys | None = None,
    stop: Callable[[], bool] = lambda: False,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> SenderStats:
    """Send all frames of `source` to the daemon at `address`, and return the counters.

    Parameters
    ----------
    rate_hz
        Frames per second; None: as fast as the daemon acknowledges.
    faults
        Faults to inject.
    buffer_bytes
        Largest amount that waits for the daemon in memory.
    journal, journal_bytes
        Folder for further frames, with a rate, and its largest size; see `Sender`.
    security
        None only where the address is on loopback.
    stop
        Called between frames; True ends the run early, but cleanly.
    connect_timeout_s
        How long to wait for the daemon before the first frame.

    Raises
    ------
    ConfigError
        The rate is not positive, or the buffer does not hold one frame.
    AddressError
        The address is malformed, or there is no answer.
    AcquisitionError
        The daemon refused the run, or stopped answering.
    """
    if rate_hz is not None and not 0 < rate_hz < float("inf"):
        raise ConfigError(f"The rate is a positive number of frames per second, not {rate_hz:g}: correct it.")
    sender = Sender(
        address,
        source.header,
        buffer_bytes=buffer_bytes,
        faults=faults,
        journal=journal if rate_hz is not None else None,
        journal_bytes=journal_bytes,
        security=security,
    )
    sender.start()
    reason, finish_s = "broken off", 0.0
    try:
        sender.meet(stop, connect_timeout_s, ", or let the replay start one with --serve")
        finish_s = HURRIED_S
        start_s = time.monotonic()
        for count, (info, pixels) in enumerate(source.frames()):
            # A frame that is late does not delay the later ones.
            due_s = None if rate_hz is None else start_s + count / rate_hz
            if not _await_turn(sender, due_s, stop):
                break
            sender.put(info, pixels)
            sender.raise_if_failed()
        if not stop() and sender.drain(stop, STANDSTILL_S):
            reason, finish_s = "finished", STANDSTILL_S
        elif stop():
            reason = "stopped"
    except Exception as error:
        reason = f"broken off: {error}"
        raise
    finally:
        stats = sender.finish(reason=reason, timeout_s=finish_s)
    sender.raise_if_failed()
    if not stats.ended and not stop():
        left = stats.waiting + stats.on_the_way
        advice = (
            "they wait in the journal for `mdd deliver`"
            if left and stats.unsent == left
            else "start the replay again"
        )
        raise AcquisitionError(
            f"The daemon at {address} stopped answering, {left} of {stats.put} frames are not acknowledged: "
            f"look at its last messages; {advice}."
        )
    return stats


def _await_turn(sender: Sender, due_s: float | None, stop: Callable[[], bool]) -> bool:
    """Wait until a frame is due or, without a time, has room in the send buffer; False on `stop`."""
    while not stop():
        sender.raise_if_failed()
        if due_s is None:
            if sender.wait_for_room(POLL_S):
                return True
            continue
        left_s = due_s - time.monotonic()
        if left_s <= 0:
            return True
        time.sleep(min(left_s, POLL_S))
    return False
