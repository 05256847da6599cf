"""Images of an acquisition that somebody else drives, passed on as a run of ours.

A `PassiveRun` takes images with their axes and metadata, as pycromanager's hooks and NDTiff files have them.
The first time point is held back: it shows what a sweep is (`layout`). If that fits the configured beam and
volume, the run begins, and what was held back is the first to go; if not, it is refused and nothing is sent.
Where the images are exactly those that [sweep] and [volume] plan, the run begins as soon as they are there.

Invariants: memory is bounded (what is held back by `wire.send_buffer_mb`, the rest by the sender); the number
of a frame follows from the order of the images alone, so the same images give the same frames again; an image
that has no place in the run is counted and told, and harms nothing. For one thread.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import numpy as np

from microdiffusion.drivers.passive.geometry import (
    EXPOSURE_KEYS,
    TIME_KEYS,
    Z_KEYS,
    Image,
    Layout,
    learn,
    make_header,
)
from microdiffusion.drivers.plan import Plan
from microdiffusion.errors import AcquisitionError
from microdiffusion.frames import FrameInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from microdiffusion.config import Config
    from microdiffusion.header import RunHeader
    from microdiffusion.sender import Sender

TOLERANCE = 0.05
"""How far, in slices, a stage may be from where it was planned to be."""


class PassiveRun:
    """One run of images that come by.

    Parameters
    ----------
    config : Config
        Beam, volume, camera; `acquisition.channels` and `positions_um` where not all of them come at once.
    open_sender : callable
        Makes the sender, once the header of the run is known; it is started here.
    note : callable
        Is told, in one line each, what a user may want to know.
    run_id : str or None
        The run that is gone on with; None: a run of its own.
    source : str
        Where the images come from, for the header.

    Attributes
    ----------
    sender : Sender or None
        None until the run has begun.
    unplaced : int
        Images that have no place in the run.

    Raises
    ------
    GeometryError, InputFileError, MissingFileError
        See `Plan`.
    """

    def __init__(
        self,
        config: Config,
        open_sender: Callable[[RunHeader], Sender],
        *,
        note: Callable[[str], None],
        run_id: str | None = None,
        source: str = "",
    ) -> None:
        self.sender: Sender | None = None
        self.unplaced = 0
        self._config = config
        self._open_sender = open_sender
        self._note = note
        self._run_id = run_id or uuid.uuid4().hex
        self._source = source
        plan = Plan(config)
        self._profile = plan.profile
        self._planned_um = tuple(z for z, held_out in plan.slabs(0) if not held_out)
        self._held: list[Image] = []
        self._held_bytes = 0
        self._layout: Layout | None = None
        self._shape: tuple[int, ...] = ()
        self._seq = 0
        self._began_s: float | None = None

    def take(self, image: Image) -> bool:
        """Pass an image on, or hold it back; its pixels are copied. False where it has no place in the run.

        Raises
        ------
        AcquisitionError, GeometryError
            The images do not suit, or not the configured beam and volume: the run cannot begin.
        ConfigError, AddressError
            See `Sender`.
        """
        if self._layout is None and (not self._held or image.time == self._held[0].time):
            self._hold(image)
            if self._is_as_planned():
                self.settle()
            return True
        self.settle()
        return self._send(image)

    def settle(self) -> None:
        """Begin the run with what is held back, if anything is; errors as of `take`."""
        if self._layout is not None or not self._held:
            return
        first = self._held[0]
        layout = learn(self._held, self._config.acquisition, self._planned_um)
        header = make_header(
            self._config,
            layout,
            first,
            self._profile,
            run_id=self._run_id,
            source=self._source,
            note=self._note,
        )
        sender = self._open_sender(header)
        sender.start()
        self.sender, self._layout, self._shape = sender, layout, first.pixels.shape
        self._note(
            f"run {header.run_id} has begun: {len(layout.slabs)} slabs a sweep, {len(header.channels)} "
            f"channels, {len(header.positions)} positions, {header.shape[2]} x {header.shape[1]} pixels of "
            f"{header.voxel_size_um[1]:g} µm"
        )
        held, self._held = self._held, []
        for image in held:
            self._send(image)

    def _hold(self, image: Image) -> None:
        image.check_pixels()
        self._held_bytes += image.pixels.nbytes
        limit_mb = self._config.wire.send_buffer_mb
        if 2 * self._held_bytes > limit_mb * 1e6:  # the sender copies them, as 16 bit
            raise AcquisitionError(
                f"The first time point fills more than half of wire.send_buffer_mb ({limit_mb:g}): let the "
                "acquisition number its sweeps along the axis time, or raise that."
            )
        self._held.append(Image(dict(image.axes), dict(image.metadata), image.pixels.copy()))

    def _is_as_planned(self) -> bool:
        """Whether the first time point is complete, as [sweep], [volume] and [acquisition] plan it."""
        acquisition = self._config.acquisition
        if any("channel" in image.axes for image in self._held) and not acquisition.channels:
            return False
        if any("position" in image.axes for image in self._held) and not acquisition.positions_um:
            return False
        stacks = max(len(acquisition.channels), 1) * max(len(acquisition.positions_um), 1)
        if len(self._held) != stacks * len(self._planned_um):
            return False
        z_um = [image.number(Z_KEYS) for image in self._held]
        if any(z is None for z in z_um):
            return False
        taken, planned = np.sort(np.array(z_um, float)), np.repeat(np.sort(self._planned_um), stacks)
        return bool(np.abs(taken - planned).max() <= TOLERANCE * self._config.volume.voxel_z_um)

    def _send(self, image: Image) -> bool:
        layout, sender = self._layout, self.sender
        if layout is None or sender is None:
            return False
        info = self._place(layout, image)
        if info is None:
            self.unplaced += 1
            if self.unplaced == 1:
                self._note(
                    f"an image of axes {dict(image.axes)} and {image.pixels.shape} pixels has no place in "
                    "what the first time point has shown: it is left out, as are all others of this kind"
                )
            return False
        sender.put(info, image.pixels.astype(np.uint16, copy=False))
        self._seq += 1
        return True

    def _place(self, layout: Layout, image: Image) -> FrameInfo | None:
        """Return a frame's place in the run; None where it has none."""
        channel, position, slab = image.place
        sweep = image.time - layout.first_time
        fits = image.pixels.shape == self._shape and image.pixels.dtype in (np.uint8, np.uint16)
        known = channel in layout.channels and position in layout.positions and slab in layout.slabs
        if not fits or not known or sweep < 0 or image.others != layout.others:
            return None
        index = layout.slabs.index(slab)
        z_um = image.number(Z_KEYS)
        return FrameInfo(
            seq=self._seq,
            sweep=sweep,
            index=index,
            count=len(layout.slabs),
            z_um=layout.z_um[index] if z_um is None else z_um,
            channel=layout.channels.index(channel),
            position=layout.positions.index(position),
            exposure_ms=max(image.number(EXPOSURE_KEYS) or self._config.acquisition.exposure_ms, 0.0),
            camera_time_s=self._time_s(image),
        )

    def _time_s(self, image: Image) -> float:
        elapsed_ms = image.number(TIME_KEYS)
        if elapsed_ms is not None:
            return elapsed_ms / 1000.0
        if self._began_s is None:
            self._began_s = time.monotonic()
        return time.monotonic() - self._began_s
