"""Turns images of somebody else's acquisition into the frames of a run.

A `PassiveRun` takes images with their axes and metadata, as pycromanager's hooks and NDTiff files provide
them. The first time point is held back, because it shows what a sweep is (`geometry`). If it fits the
configured beam and volume, the run begins and the held images are sent first; if not, it is refused and
nothing is sent. If the images are exactly those planned by [sweep] and [volume], the run begins as soon as
they are complete.

Invariants: memory is bounded (held images by `wire.send_buffer_mb`, the rest by the sender); a frame's number
follows from the order of the images alone, so the same images give the same frames again; an image that has
no place in the run is left out, reported once, and counted as dropped in the run's ledger. For one thread at
a time.
"""

from __future__ import annotations

import time

import numpy as np

from microdiffusion.drivers.passive.geometry import (
    EXPOSURE_KEYS,
    TIME_KEYS,
    Image,
    Layout,
    infer,
    make_header,
)
from microdiffusion.drivers.plan import Plan
from microdiffusion.drivers.sending import DriverTask, SenderProgress
from microdiffusion.errors import AcquisitionError
from microdiffusion.frames import FrameInfo, StagePositions
from microdiffusion.sender import Sender, SenderStats
from microdiffusion.text import count_noun

TOLERANCE = 0.05
"""Largest deviation of a stage position from the plan, in slices."""


class PassiveRun:
    """One run.

    Parameters
    ----------
    task : DriverTask
        Beam, volume, camera; `acquisition.channels` and `positions_um` if not all of them come at once.
    source : str
        Description of the source, for the header.
    journal : bool
        False if the images are on a disk already.

    Attributes
    ----------
    sender : Sender or None
        None until the run has begun.
    unplaced : int
        Images that have no place in the run.
    unread : int
        Images before it that could not be read; set by whoever reads them.

    Raises
    ------
    GeometryError, InputFileError, MissingFileError
        See `Plan`.
    """

    def __init__(self, task: DriverTask, *, source: str, journal: bool = True) -> None:
        self.sender: Sender | None = None
        self.unplaced = self.unread = 0
        self._task, self._config = task, task.config
        self._source, self._journal = source, journal
        self._plan = Plan(task.config)
        self._planned = tuple(slab.stage for slab in self._plan.slabs(0) if not slab.held_out)
        self._held: list[Image] = []
        self._layout: Layout | None = None
        self._tell_progress: SenderProgress | None = None
        self._seq = 0
        self._began_s = 0.0

    def take(self, image: Image) -> None:
        """Pass an image on, or hold it back; its pixels are copied.

        Raises
        ------
        AcquisitionError, GeometryError
            The images do not form sweeps, or do not fit the configured beam and volume; the daemon refused
            the run.
        ConfigError, AddressError
            See `Sender`.
        """
        if self._layout is None and (not self._held or image.time == self._held[0].time):
            self._hold(image)
            if self._is_as_planned():
                self.settle()
            return
        self.settle(whole=self.unread == 0)
        self._send(image)

    def settle(self, *, whole: bool = False) -> None:
        """Begin the run with the held images, if there are any; errors as of `take`.

        `whole` says that no more images of their time point will come.
        """
        if self._layout is not None or not self._held:
            return
        layout = infer(self._held, self._config.acquisition, self._planned)
        resume = self._task.resume
        header = make_header(
            self._config,
            self._plan,
            layout,
            self._held,
            run_id=resume.run_id if resume else None,
            source=self._source,
            note=self._task.note,
            whole=whole,
        )
        sender = self._task.open_sender(header, journal=self._journal)
        sender.start()
        self.sender, self._layout, self._began_s = sender, layout, time.monotonic()
        self._tell_progress = SenderProgress(sender, self._task)
        self._task.note(
            f"run {header.run_id} has begun: {len(layout.slabs)} slabs a sweep, {len(header.channels)} "
            f"channels, {len(header.positions)} positions, {header.shape[2]} x {header.shape[1]} pixels of "
            f"{header.voxel_size_um[1]:g} µm"
        )
        held, self._held = self._held, []
        for image in held:
            self._send(image)

    @property
    def has_images(self) -> bool:
        """True once an image came."""
        return bool(self._held) or self._layout is not None

    def leave_out(self, count: int) -> None:
        """Count images that could not be read as dropped, so that the run's ledger knows of them."""
        if self.sender is not None:
            for _ in range(count):
                self.sender.leave_out()

    def finish(self, reason: str) -> SenderStats | None:
        """Deliver the remaining frames, end the run, and return the sender's counters, if it had begun."""
        if self.sender is None:
            return None
        if self.unplaced:
            reason += f"; {count_noun(self.unplaced, 'image')} without a place in the run left out"
        return self.sender.finish(reason=reason, timeout_s=self._task.finish_s())

    def raise_if_failed(self) -> None:
        """Raise the sender's error, if there was one."""
        if self.sender is not None:
            self.sender.raise_if_failed()

    def _hold(self, image: Image) -> None:
        image.check_pixels()
        limit_mb = self._config.wire.send_buffer_mb
        held_bytes = sum(held.pixels.nbytes for held in (*self._held, image))
        if 2 * held_bytes > limit_mb * 1e6:  # the sender copies them, as 16 bit
            raise AcquisitionError(
                f"The first time point fills more than half of wire.send_buffer_mb ({limit_mb:g}): let the "
                "acquisition number its sweeps along the axis time, or raise that limit."
            )
        self._held.append(Image(dict(image.axes), dict(image.metadata), image.pixels.copy()))

    def _is_as_planned(self) -> bool:
        """Return whether the held images are the complete sweep that the configuration plans."""
        acquisition = self._config.acquisition
        if any(image.others for image in self._held):  # along which another tile may follow
            return False
        for axis, configured in (("channel", acquisition.channels), ("position", acquisition.positions_um)):
            if not configured and any(axis in image.axes for image in self._held):
                return False
        stacks = max(len(acquisition.channels), 1) * max(len(acquisition.positions_um), 1)
        stage = [stage for stage in (image.stage for image in self._held) if stage is not None]
        if not len(stage) == len(self._held) == stacks * len(self._planned):
            return False
        found, planned = (StagePositions.of(sorted(each)) for each in (stage, self._planned * stacks))
        off_um = np.diag(found.distances_um(planned)).max()
        return bool(off_um <= TOLERANCE * self._config.volume.voxel_z_um)

    def _send(self, image: Image) -> None:
        if self._layout is None or self.sender is None or self._tell_progress is None:
            return
        self._layout = self._layout.with_position_of(image)
        place = self._layout.place_of(image)
        if place is None:
            self.unplaced += 1
            self.sender.leave_out()
            if self.unplaced == 1:
                self._task.note(
                    f"an image of axes {dict(image.axes)} and {image.pixels.shape} pixels has no place in "
                    "a run like its first time point: it is left out, as are all others of this kind, and "
                    "counted as dropped; later positions have one if acquisition.positions_um lists as many"
                )
            return
        sweep, channel, position, index = place
        elapsed_ms = image.number(TIME_KEYS)
        info = FrameInfo(
            seq=self._seq,
            sweep=sweep,
            index=index,
            count=len(self._layout.slabs),
            stage=image.stage or self._layout.stage[index],
            channel=channel,
            position=position,
            exposure_ms=max(image.number(EXPOSURE_KEYS) or self._config.acquisition.exposure_ms, 0.0),
            camera_time_s=time.monotonic() - self._began_s if elapsed_ms is None else elapsed_ms / 1000.0,
        )
        self.sender.put(info, image.pixels.astype(np.uint16, copy=False))
        self._seq += 1
        self.sender.raise_if_failed()
        self._tell_progress()
